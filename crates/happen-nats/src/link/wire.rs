//! What every part of a link needs to reach the others: the connection, who this member is, and where its notices go. Owns
//! the one call that publishes; does not know what is in the messages.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_nats::Subject;
use bytes::Bytes;
use futures_util::FutureExt as _;
use happen_core::env::Env;
use happen_core::link::{ConnectionStatus, Inbound, Notice};
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::watch;

use super::connection::Connection;
use super::frame::{HEADER_BYTES_MAX, Header, Unreadable};
use super::queue::QueueMax;
use super::subject::Subjects;

/// This member's end of the wire.
pub(super) struct Wire {
    pub(super) connection: Connection,
    pub(super) env: Arc<dyn Env>,
    pub(super) subjects: Subjects,
    pub(super) name: String,
    /// How much may wait for each of the others.
    pub(super) queue_max: QueueMax,
    /// Which run of the member this is.
    pub(super) instance: u64,
    connected: AtomicBool,
    inbound: OnceLock<Arc<dyn Inbound>>,
}

impl Wire {
    pub(super) fn new(
        connection: Connection,
        env: Arc<dyn Env>,
        subjects: Subjects,
        name: String,
        queue_max: QueueMax,
    ) -> Self {
        // 0 stands for every run of a member.
        let instance = env.random_u64().max(1);
        let connected = AtomicBool::new(true);
        Self { connection, env, subjects, name, queue_max, instance, connected, inbound: OnceLock::new() }
    }

    /// The header of a message of this member.
    pub(super) fn header(&self, kind: u8, number: u64) -> Header<'_> {
        Header { kind, instance: self.instance, number, name: &self.name }
    }

    /// Whether what is published leaves now. It is learned a moment late.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::SeqCst)
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::SeqCst);
    }

    /// The most bytes of one frame.
    pub(super) fn frame_bytes_max(&self) -> usize {
        self.connection.message_bytes_max().saturating_sub(HEADER_BYTES_MAX)
    }

    /// Publishes at once, unless the connection has too much to do; then nothing was published.
    pub(super) fn publish_now(&self, way: &Way, message: Bytes) -> Option<Result<()>> {
        self.publishing(way, message).now_or_never()
    }

    pub(super) async fn publish(&self, way: &Way, message: Bytes) -> Result<()> {
        self.publishing(way, message).await
    }

    async fn publishing(&self, way: &Way, message: Bytes) -> Result<()> {
        let client = self.connection.client();
        let subject = way.subject.clone();
        let published = match way.bounces.clone() {
            Some(bounces) => client.publish_with_reply(subject, bounces, message).await,
            None => client.publish(subject, message).await,
        };
        published.map_err(|error| Error::new(ErrorKind::Io { what: "sending".to_owned() }).with_source(error))
    }

    /// Sets who takes what comes; false when somebody does already.
    pub(super) fn set_inbound(&self, inbound: Arc<dyn Inbound>) -> bool {
        self.inbound.set(inbound).is_ok()
    }

    pub(super) fn inbound(&self) -> Option<&Arc<dyn Inbound>> {
        self.inbound.get()
    }

    fn tell(&self, notice: Notice<'_>) {
        if let Some(inbound) = self.inbound.get() {
            inbound.notice(notice);
        }
    }

    #[cold]
    pub(super) fn refused(&self, unreadable: Unreadable) {
        self.tell(Notice::Refused(&unreadable.error()));
    }

    #[cold]
    pub(super) fn lost(&self, error: &Error) {
        self.tell(Notice::Lost(error));
    }

    pub(super) fn tell_left(&self, member: &str) {
        self.tell(Notice::Left { member });
    }

    pub(super) fn tell_status(&self, status: ConnectionStatus, reason: Option<&str>) {
        self.tell(Notice::Connection { status, url: self.connection.url(), reason });
    }
}

/// Where messages go, and where it is told that nobody takes them.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) subject: Subject,
    pub(super) bounces: Option<Subject>,
}

impl From<Subject> for Way {
    fn from(subject: Subject) -> Self {
        Self { subject, bounces: None }
    }
}

/// Ends when the link closes.
pub(super) async fn has_closed(closing: &mut watch::Receiver<bool>) {
    // An error says that the link is gone, which is closed as well.
    drop(closing.wait_for(|closing| *closing).await);
}

/// Locks, also when a panic happened inside: what is guarded here is changed in single steps, so it is whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a call on a link that is closed fails with, and what ends the replies of one that was lost.
#[cold]
pub(super) fn closed(member: &str) -> Error {
    Error::new(ErrorKind::Closed { what: format!("the link to `{member}`") })
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wire of `{}`", self.name)
    }
}
