//! How servers are asked that may not answer yet: those that choose who leads them answer nothing, or say that they lack
//! something that comes by itself. Owns how long that is waited for; does not know what is asked.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind, RequestError,
    RequestErrorKind,
};
use async_nats::jetstream::{self, ErrorCode};
use happen_core::env::Env;

use crate::limits;

/// Why there is no answer that can be used.
pub(crate) trait Unanswered: std::error::Error {
    /// What servers said that answered, if they did.
    fn said(&self) -> Option<jetstream::Error>;

    /// Whether nobody said anything in time.
    fn is_late(&self) -> bool;

    /// Whether they said no, which they do again.
    fn is_no(&self) -> bool {
        self.said().is_some_and(|said| lack(&said).is_none())
    }

    /// What servers lack that have just begun to know each other; none when they say no.
    fn lack(&self) -> Option<&'static str> {
        match self.said() {
            Some(said) => lack(&said),
            None => self.is_late().then_some(NOBODY_ANSWERS),
        }
    }
}

impl Unanswered for GetStreamError {
    fn said(&self) -> Option<jetstream::Error> {
        match self.kind() {
            GetStreamErrorKind::JetStream(said) => Some(said),
            _ => None,
        }
    }

    fn is_late(&self) -> bool {
        let cause = std::error::Error::source(self).and_then(|cause| cause.downcast_ref::<RequestError>());
        // A server without JetStream says at once that nobody is there.
        cause.is_some_and(|cause| cause.kind() == RequestErrorKind::TimedOut)
    }
}

impl Unanswered for CreateStreamError {
    fn said(&self) -> Option<jetstream::Error> {
        match self.kind() {
            CreateStreamErrorKind::JetStream(said) => Some(said),
            _ => None,
        }
    }

    fn is_late(&self) -> bool {
        self.kind() == CreateStreamErrorKind::TimedOut
    }
}

/// Asks until there is an answer, for as long as servers take that choose who leads them.
///
/// # Errors
///
/// The last one, once it took too long; at once one that is final.
pub(crate) async fn patiently<T, E, F: Future<Output = Result<T, E>>>(
    env: &Arc<dyn Env>,
    is_final: impl Fn(&E) -> bool,
    ask: impl Fn() -> F,
) -> Result<T, E> {
    let begun = env.monotonic();
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if is_final(&error) || !again(env, begun, None).await {
            return Err(error);
        }
    }
}

/// Waits before servers are asked again. False when that took too long already, which is longer for servers that do not say
/// no and lack something that comes by itself.
pub(crate) async fn again(env: &Arc<dyn Env>, begun: Duration, lack: Option<&str>) -> bool {
    let wait_ms = if lack.is_some() { limits::AGREE_WAIT_MS } else { limits::OPEN_WAIT_MS };
    if env.monotonic() - begun >= Duration::from_millis(wait_ms) {
        return false;
    }
    env.sleep(Duration::from_millis(limits::OPEN_AGAIN_MS)).await;
    true
}

/// What servers lack that have just begun to know each other, by what they answer; none when they say no.
fn lack(error: &jetstream::Error) -> Option<&'static str> {
    let code = error.error_code();
    if [ErrorCode::CLUSTER_NOT_AVAILABLE, ErrorCode::CLUSTER_NOT_LEADER].contains(&code) {
        return Some("the servers have no leader for JetStream yet");
    }
    let few = [ErrorCode::CLUSTER_NO_PEERS, ErrorCode::INSUFFICIENT_RESOURCES].contains(&code);
    few.then_some("fewer servers know each other and have room than the log has replicas")
}

/// What is lacking where a question gets no answer at all.
const NOBODY_ANSWERS: &str =
    "no server answers that leads JetStream or the log; are most of the servers there?";
