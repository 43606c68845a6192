//! `timeout`: a handler that may take so long and no longer.

use happen_core::IntoStep;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use happen_core::{ErasedEvent, Error, ErrorKind, Function};

use super::{Running, Wrap, Wrapped, erase, later, start, wrapped};
use crate::context::Context;
use crate::handler::{Argument, Handler};

/// Ends a handler that takes longer than this with [`ErrorKind::TimedOut`]; its future is dropped.
///
/// A plain handler cannot be interrupted and is not.
///
/// # Examples
///
/// ```
/// use happen::wrap::timeout;
/// use happen::{Context, Event, Space, millis, secs};
///
/// async fn search(_: Event, cx: Context) -> String {
///     cx.sleep(secs(3_600)).await;
///     "found".to_owned()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let library = space.node("library");
/// library.on("search", timeout(millis(5), search));
/// space.start().await?;
/// let error = space.send(&library, Event::new("search", "x".into())).reply::<String>().await.unwrap_err();
/// assert_eq!(error.code(), "timed-out");
/// # Ok(())
/// # }
/// ```
#[doc(alias = "withTimeout")]
pub fn timeout<H, M>(after: Duration, handler: H) -> Wrapped
where
    H: Handler<M>,
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send,
{
    wrapped(Timeout { inner: erase(handler), after })
}

struct Timeout {
    inner: Arc<dyn Function>,
    after: Duration,
}

impl Wrap for Timeout {
    fn named(&self) -> &Arc<dyn Function> {
        &self.inner
    }

    fn run(&self, event: &dyn ErasedEvent, context: &Context) -> Running {
        let mut future = match start(&*self.inner, event, context) {
            Running::Ended(result) => return Running::Ended(result),
            Running::Future(future) => future,
        };
        let (env, after) = (Arc::clone(context.env()), self.after);
        let mut sleep = None;
        later(std::future::poll_fn(move |task| {
            use std::pin::Pin;
            if let Poll::Ready(result) = Pin::new(&mut future).poll(task) {
                return Poll::Ready(result);
            }
            // Made after the first poll, so that a handler which ends at once pays for no timer.
            let sleep = sleep.get_or_insert_with(|| env.sleep(after));
            match sleep.as_mut().poll(task) {
                Poll::Ready(()) => Poll::Ready(Err(Error::new(ErrorKind::TimedOut { after }))),
                Poll::Pending => Poll::Pending,
            }
        }))
    }
}
