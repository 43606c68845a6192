//! A connection to a NATS server or cluster, and what is known of it. Owns when it is there and how it is shown; knows
//! nothing of what goes over it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use happen_core::link::ConnectionStatus;
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::watch;

use crate::access::Access;
use crate::limits;

/// A connection to a NATS server or cluster. Cloning shares it.
///
/// # Examples
///
/// ```
/// use happen_nats::Connection;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let server = happen_testing::NatsServer::start();
/// # let addresses = format!("{0},{0}", server.url().replace("//", "//ada:secret@"));
/// // Such as nats://ada:secret@one:4222,nats://ada:secret@two:4222
/// let connection = Connection::open(&addresses, async_nats::ConnectOptions::new()).await?;
/// assert!(!format!("{connection:?}").contains("secret"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Connection {
    client: Client,
    status: watch::Receiver<Status>,
    url: String,
}

/// Whether it is there, and how often it began: who sees another count knows that it was gone meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) is: ConnectionStatus,
    pub(super) begun: u64,
    /// What the server said when it closed the connection or refused a new one, while there is none.
    pub(super) refusal: Option<Arc<str>>,
    /// What the server said last, which may be why it is about to close the connection.
    said: Option<Arc<str>>,
}

/// How a connection is made, with more to say than the addresses and one set of options.
///
/// # Examples
///
/// ```
/// use happen::millis;
/// use happen_nats::{Access, Connector};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let server = happen_testing::NatsServer::with("authorization { token: s3cret }");
/// # let url = server.url();
/// let access = Access::from_env()?.or(Access::new().token("s3cret"));
/// let connection = Connector::new(url).access(access).reconnect_wait_max(millis(50)).connect().await?;
/// assert_eq!(connection.client().connection_state(), async_nats::connection::State::Connected);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Connector {
    urls: String,
    access: Access,
    options: Option<ConnectOptions>,
    reconnect_wait_max: Duration,
    is_patient: bool,
}

/// What went over a connection since it was made, all its servers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Messages that came.
    pub in_messages: u64,
    /// Their bytes, without what the protocol adds.
    pub in_bytes: u64,
    /// Messages that left.
    pub out_messages: u64,
    /// Their bytes, without what the protocol adds.
    pub out_bytes: u64,
    /// How often it was connected: once, and once more each time it had been lost.
    pub connects: u64,
}

impl Connector {
    /// To a server, or to the first of several that answers; their addresses are separated by commas.
    #[must_use]
    pub fn new(urls: impl Into<String>) -> Self {
        Self {
            urls: urls.into(),
            access: Access::new(),
            options: None,
            reconnect_wait_max: limits::RECONNECT_DELAY_MAX,
            is_patient: false,
        }
    }

    /// The same with a connection that is there at once, and connected as soon as a server can be reached.
    pub(crate) fn patient(self) -> Self {
        Self { is_patient: true, ..self }
    }

    /// The same to other servers.
    pub(crate) fn to(self, urls: String) -> Self {
        Self { urls, ..self }
    }

    /// Signs in and checks certificates as this says. What an address says of signing in comes first.
    #[must_use]
    pub fn access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// Everything that the client lets say, in place of [`Connector::access`]. The callbacks for events and for the time
    /// between attempts are set all the same.
    #[must_use]
    pub fn options(self, options: ConnectOptions) -> Self {
        Self { options: Some(options), ..self }
    }

    /// The longest time between two attempts to connect again, [`limits::RECONNECT_DELAY_MAX`] unless it is set. It is
    /// tried for ever, unless the options say how often.
    #[must_use]
    pub fn reconnect_wait_max(self, wait: Duration) -> Self {
        Self { reconnect_wait_max: wait, ..self }
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Misuse`] when an address cannot be read, a file is not what it should be, or both options and an
    ///   access are given.
    /// - [`ErrorKind::Io`] when no server answers, or it refuses, or a file cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future before its end closes the connection.
    pub async fn connect(&self) -> Result<Connection> {
        if self.options.is_some() && self.access != Access::new() {
            return Err(Error::misuse(
                "how to sign in is said by an access or by the options of the client, not by both",
            ));
        }
        Connection::with(&self.urls, self.reconnect_wait_max, |is_signed_in| {
            let options = match &self.options {
                Some(options) => options.clone(),
                None => self.access.options_unless(is_signed_in)?,
            };
            Ok(if self.is_patient { options.retry_on_initial_connect() } else { options })
        })
        .await
    }
}

impl Connection {
    /// Connects to a server, or to the first of several that answers; their addresses are separated by commas.
    ///
    /// The callbacks for events and for the time between attempts are set here; everything else of the options stays:
    /// how to sign in, TLS, the certificates. A name and a password, or a token, in the first address that has one are
    /// used to sign in at all of them, before what the options say; they are percent-encoded there. With
    /// `retry_on_initial_connect` it does not wait for a server.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Misuse`] when an address cannot be read.
    /// - [`ErrorKind::Io`] when no server answers, or it refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future before its end closes the connection.
    pub async fn open(urls: &str, options: ConnectOptions) -> Result<Self> {
        Connector::new(urls).options(options).connect().await
    }

    async fn with(
        urls: &str,
        reconnect_wait_max: Duration,
        options: impl FnOnce(bool) -> Result<ConnectOptions>,
    ) -> Result<Self> {
        let mut servers = Vec::new();
        for url in urls.split(',') {
            // The address is left out: it may hold a password.
            let unreadable =
                |error| Error::misuse("an address of a NATS server cannot be read").with_source(error);
            servers.push(url.trim().parse::<ServerAddr>().map_err(unreadable)?);
        }
        let shown: Vec<_> = servers
            .iter()
            .map(|server| format!("{}://{}:{}", server.scheme(), server.host(), server.port()))
            .collect();
        let url = shown.join(",");
        let is_signed_in = servers.iter().any(|server| server.username().is_some());
        let options = signed_in(options(is_signed_in)?, &servers);
        let (changes, status) = watch::channel(Status::default());
        let connected = options
            .event_callback(move |event| {
                changes.send_if_modified(|status| note(status, &event));
                std::future::ready(())
            })
            .reconnect_delay_callback(move |attempts| delay(attempts, reconnect_wait_max))
            .connect(servers)
            .await;
        let client = connected.map_err(|error| {
            Error::new(ErrorKind::Io { what: format!("connecting to {url}") }).with_source(error)
        })?;
        Ok(Self { client, status, url })
    }

    /// The client, for everything that Happen does not do itself. What is published on Happen's own subjects with it is
    /// read as any member's messages are.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The addresses, without anything secret.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Why the servers refuse this client, as they say it. Nothing secret is in it.
    pub(crate) fn refusal(&self) -> Option<Arc<str>> {
        self.status.borrow().refusal.clone()
    }

    /// What went over it, to be compared with a while ago.
    ///
    /// # Cost
    ///
    /// Reads a few counters.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let counted = self.client.statistics();
        Traffic {
            in_messages: counted.in_messages.load(Ordering::Relaxed),
            in_bytes: counted.in_bytes.load(Ordering::Relaxed),
            out_messages: counted.out_messages.load(Ordering::Relaxed),
            out_bytes: counted.out_bytes.load(Ordering::Relaxed),
            connects: counted.connects.load(Ordering::Relaxed),
        }
    }

    pub(super) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// The most bytes of one message.
    pub(super) fn message_bytes_max(&self) -> usize {
        self.client.max_payload()
    }
}

/// The options with what an address says about signing in, which the client itself does not look at.
fn signed_in(options: ConnectOptions, servers: &[ServerAddr]) -> ConnectOptions {
    match servers.iter().find_map(|server| Some((server.username()?, server.password()))) {
        Some((name, Some(password))) => options.user_and_password(decoded(name), decoded(password)),
        Some((token, None)) => options.token(decoded(token)),
        None => options,
    }
}

/// A part of an address without its percent-encoding. What is not encoded rightly stays as it is.
fn decoded(part: &str) -> String {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.first_chunk::<2>().filter(|_| *first == b'%');
        let byte = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| part.to_owned())
}

impl Default for Status {
    fn default() -> Self {
        Self { is: ConnectionStatus::Disconnected, begun: 0, refusal: None, said: None }
    }
}

/// Notes what happened. True when that is another status.
fn note(status: &mut Status, event: &Event) -> bool {
    let before = status.clone();
    match event {
        Event::Connected => {
            let (is, begun) = (ConnectionStatus::Connected, status.begun + 1);
            *status = Status { is, begun, ..Status::default() };
        }
        Event::Disconnected => {
            status.is = ConnectionStatus::Disconnected;
            status.refusal = status.said.take();
        }
        Event::Closed | Event::ClientError(async_nats::ClientError::MaxReconnects) => {
            status.is = ConnectionStatus::Closed;
        }
        Event::ServerError(error) => {
            tracing::warn!(target: "happen", "the NATS server says: {error}");
            let text = error.to_string();
            // Whoever may not do one thing keeps the connection.
            status.said = (!text.to_lowercase().contains(NOT_ALLOWED)).then(|| text.into());
        }
        Event::ClientError(async_nats::ClientError::Other(text)) if is_refusal(text) => {
            status.refusal.get_or_insert_with(|| text.as_str().into());
        }
        // What a subscription loses is seen by the numbers of the messages, where it is known whose they are.
        _ => {}
    }
    (before.is, before.begun, &before.refusal) != (status.is, status.begun, &status.refusal)
}

/// Whether an attempt to connect failed with the answer that this client may not.
fn is_refusal(text: &str) -> bool {
    let refusals = [ConnectErrorKind::AuthorizationViolation, ConnectErrorKind::Authentication];
    refusals.iter().any(|refusal| refusal.to_string() == text)
}

/// How long to wait before the next attempt, of which there were so many.
fn delay(attempts: usize, wait_max: Duration) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    let delay = Duration::from_millis(5).saturating_mul(2_u32.saturating_pow(doublings));
    if attempts <= 1 { Duration::ZERO } else { delay.min(wait_max) }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection to {}: {}", self.url, self.status.borrow().is.as_str())
    }
}

/// What the server says of something that a client may not do, and is told without closing the connection.
const NOT_ALLOWED: &str = "permissions violation";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_in_an_address_is_decoded() {
        let parts =
            [("ada", "ada"), ("a%20b%40", "a b@"), ("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("%ff", "%ff")];
        for (part, expected) in parts {
            assert_eq!(decoded(part), expected);
        }
    }

    #[test]
    fn attempts_to_connect_are_never_far_apart() {
        let delay = |attempts| delay(attempts, limits::RECONNECT_DELAY_MAX);
        assert_eq!(delay(0), Duration::ZERO);
        assert_eq!(delay(1), Duration::ZERO);
        assert_eq!(delay(2), Duration::from_millis(10));
        assert_eq!(delay(usize::MAX), limits::RECONNECT_DELAY_MAX);
    }

    #[test]
    fn every_new_connection_is_seen() {
        let mut status = Status::default();
        let mut note = |event| {
            let changed = note(&mut status, &event);
            (changed, status.clone())
        };
        assert!(note(Event::Connected).0);
        assert!(!note(Event::SlowConsumer(1)).0);
        // One that was gone for a moment, too.
        let (changed, now) = note(Event::Connected);
        assert!(changed && now.begun == 2);
        let (changed, now) = note(Event::Closed);
        assert!(changed && now.is == ConnectionStatus::Closed);
    }

    #[test]
    fn why_a_server_refuses_is_known_until_it_does_not() {
        let mut status = Status::default();
        let mut note = |event| {
            let changed = note(&mut status, &event);
            (changed, status.refusal.clone())
        };
        let error = |text: &str| Event::ServerError(async_nats::ServerError::Other(text.to_owned()));
        let other = |text: &str| Event::ClientError(async_nats::ClientError::Other(text.to_owned()));
        note(Event::Connected);
        assert_eq!(note(error("Permissions Violation for Publish to \"a\"")), (false, None));
        assert_eq!(note(Event::Disconnected), (true, None));
        assert_eq!(note(other("IO error")), (false, None));
        let (changed, refusal) = note(other(&ConnectErrorKind::AuthorizationViolation.to_string()));
        assert!(changed && refusal.unwrap().contains("authorization violation"));
        assert_eq!(note(Event::Connected), (true, None));
        assert_eq!(note(error("User Authentication Expired")), (false, None));
        let (changed, refusal) = note(Event::Disconnected);
        assert!(changed && refusal.unwrap().contains("User Authentication Expired"));
    }
}
