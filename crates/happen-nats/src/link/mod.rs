//! The link over NATS: how members of a space find each other by subjects and send each other frames. Owns the calls of the
//! runtime and what they change; the bytes are in `frame.rs` and `presence.rs`, the tasks in `reader.rs` and `pulse.rs`.

mod answering;
mod asking;
mod closing;
mod connection;
mod frame;
mod joining;
mod member;
mod patient;
mod presence;
mod pulse;
mod queue;
mod reader;
mod roster;
mod silence;
mod subject;
mod wire;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use happen_core::env::{BoxFuture, Env};
use happen_core::link::{Inbound, Link, Peer, Replies};
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::{Notify, watch};

use self::answering::Answering;
use self::asking::Asking;
use self::frame::{Frame, Frames, Header, Input, kind};
use self::member::{Lane, Member, Room};
use self::presence::Presence;
use self::queue::QueueMax;
use self::roster::Roster;
use self::subject::Subjects;
use self::wire::{Wire, closed, lock};

pub use self::connection::{Connection, Connector, Traffic};
pub use self::patient::PatientLink;

/// One member's end of a space whose members reach each other over NATS.
///
/// # Delivery
///
/// Everything that [`Link`] promises. Frames to one member that wait to leave travel in one message; one that is alone
/// leaves at once. Beyond a limit of what a member has not handed over yet, frames wait here, and beyond the limit of
/// what waits, calls fail with [`ErrorKind::Busy`]: so a slow receiver is felt by those who send to it, and nothing is
/// dropped between them.
///
/// While the connection is lost, what is sent waits within the same limits, and leaves when the connection is there again
/// and the receiver has been heard of. Requests that had left end with [`ErrorKind::Closed`].
///
/// A member that is silent for [`limits::SILENT_MAX`](crate::limits::SILENT_MAX), or whose subject nobody listens to any
/// more, is gone. What was on its way to it is lost, and the space is told as `system.problem`. One whose heartbeats come
/// with pauses may be silent for longer, up to [`limits::SILENT_ADAPTED_MAX`](crate::limits::SILENT_ADAPTED_MAX); and a
/// process that stood still itself begins to count anew.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use happen::env::RealEnv;
/// use happen::{Context, Event, Space};
/// use happen_nats::{Connection, LinkOptions, NatsLink};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let server = happen_testing::NatsServer::start();
/// # let url = server.url();
/// // In one process:
/// let connection = Connection::open(&url, async_nats::ConnectOptions::new()).await?;
/// let there = Space::memory();
/// there.join(NatsLink::new(&connection, Arc::new(RealEnv::new()), LinkOptions::new("shop", "echo-1"))?)?;
/// there.node("echo").on("string", |said: &Event<String>, _: &Context| said.to_uppercase());
/// there.start().await?;
///
/// // In another:
/// let connection = Connection::open(&url, async_nats::ConnectOptions::new()).await?;
/// let here = Space::memory();
/// here.join(NatsLink::new(&connection, Arc::new(RealEnv::new()), LinkOptions::new("shop", "api-1"))?)?;
/// here.start().await?;
/// # while here.remote_nodes().is_empty() { tokio::task::yield_now().await; }
/// let heard = here.send("echo", "hello".to_owned()).reply::<String>().await?;
/// assert_eq!(*heard, "HELLO");
/// # Ok(())
/// # }
/// ```
pub struct NatsLink {
    shared: Arc<Shared>,
}

/// Reads a message as if it had come from another member; how many frames or nodes it has, if it is one. For fuzzing.
#[doc(hidden)]
#[must_use]
pub fn read_message(message: &[u8]) -> Option<usize> {
    let mut input = Input::new(message);
    let header = Header::read(&mut input).ok()?;
    match header.kind {
        kind::EVENTS | kind::REPLIES => Frames::read(input).ok().map(Iterator::count),
        _ => match Presence::read(&header, input).ok()? {
            Presence::Announce { nodes, .. } | Presence::Change { nodes, .. } => Some(nodes.len()),
            _ => Some(0),
        },
    }
}

/// Which space a link joins, and as whom.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    prefix: String,
    space: String,
    member: String,
    queue_max: QueueMax,
}

impl LinkOptions {
    /// The space of this name, and the name of this member, which no other member has at the same time. Both may have any
    /// characters, up to [`limits::NAME_BYTES_MAX`](crate::limits::NAME_BYTES_MAX) bytes.
    #[must_use]
    pub fn new(space: impl Into<String>, member: impl Into<String>) -> Self {
        Self {
            prefix: "happen".to_owned(),
            space: space.into(),
            member: member.into(),
            queue_max: QueueMax::default(),
        }
    }

    /// What the subjects begin with; `happen` unless it is set. All members of a space have the same.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How many frames may wait to leave for one other member, and how many bytes of them: those that are sent while the
    /// connection is lost, or faster than they are handed over. Beyond it calls fail with [`ErrorKind::Busy`].
    /// [`limits::LINK_QUEUE_MAX`](crate::limits::LINK_QUEUE_MAX) and
    /// [`limits::LINK_QUEUE_BYTES_MAX`](crate::limits::LINK_QUEUE_BYTES_MAX) unless they are set; at least one frame, and
    /// enough bytes for the largest.
    #[must_use]
    pub fn queue_max(mut self, frames: usize, bytes: usize) -> Self {
        self.queue_max = QueueMax { frames: frames.max(1), bytes };
        self
    }
}

/// What the calls of the runtime and the tasks of a link have in common.
struct Shared {
    wire: Arc<Wire>,
    roster: Mutex<Roster>,
    asking: Arc<Asking>,
    answering: Arc<Answering>,
    /// The latest stamp of joining that was seen.
    stamp: AtomicU64,
    /// The own one.
    joined: AtomicU64,
    /// How often the connection began anew.
    begun: AtomicU64,
    /// Woken when the own nodes have changed.
    changed: Notify,
    attached: AtomicBool,
    /// True from the moment in which the link begins to leave.
    closing: watch::Sender<bool>,
    /// True when it has left.
    left: watch::Sender<bool>,
}

impl NatsLink {
    /// A link over this connection. Its tasks run in the environment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when a name is empty or too long, or the prefix cannot stand in subjects.
    pub fn new(connection: &Connection, env: Arc<dyn Env>, options: LinkOptions) -> Result<Arc<Self>> {
        let subjects = Subjects::new(&options.prefix, &options.space, &options.member)?;
        let wire = Wire::new(connection.clone(), env, subjects, options.member, options.queue_max);
        let shared = Shared {
            wire: Arc::new(wire),
            roster: Mutex::default(),
            asking: Arc::default(),
            answering: Arc::default(),
            stamp: AtomicU64::new(0),
            joined: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            changed: Notify::new(),
            attached: AtomicBool::new(false),
            closing: watch::Sender::new(false),
            left: watch::Sender::new(false),
        };
        Ok(Arc::new(Self { shared: Arc::new(shared) }))
    }
}

impl NatsLink {
    /// The connection that it is over.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.shared.wire.connection
    }
}

impl Link for NatsLink {
    fn name(&self) -> &str {
        &self.shared.wire.name
    }

    fn attach(&self, inbound: Arc<dyn Inbound>) -> BoxFuture<'_, Result<()>> {
        Box::pin(Arc::clone(&self.shared).attach(inbound))
    }

    fn changed(&self) {
        self.shared.changed.notify_one();
    }

    fn post(&self, to: &str, frame: Vec<u8>) -> Result<()> {
        let member = self.shared.find(to)?;
        self.shared.send(&member, Frame::Post { to, bytes: &frame })
    }

    fn request(&self, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>> {
        let member = self.shared.find(to)?;
        self.shared.request(member, to, &frame)
    }

    fn post_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<()> {
        let member = self.shared.find_at(member, to)?;
        self.shared.send(&member, Frame::Post { to, bytes: &frame })
    }

    fn request_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>> {
        let member = self.shared.find_at(member, to)?;
        self.shared.request(member, to, &frame)
    }

    fn publish(&self, event_type: &str, frame: Vec<u8>) -> Result<()> {
        self.shared.check_open()?;
        let listeners = lock(&self.shared.roster).listeners(event_type);
        let mut failed = None;
        for member in listeners.iter() {
            if let Err(error) = self.shared.send(member, Frame::Publish { bytes: &frame })
                // One that has left meanwhile listens no more.
                && !matches!(error.kind(), ErrorKind::Closed { .. })
            {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn listens(&self, event_type: &str) -> bool {
        !lock(&self.shared.roster).listeners(event_type).is_empty()
    }

    fn peers(&self) -> Vec<Peer> {
        lock(&self.shared.roster).peers()
    }

    fn revision(&self) -> u64 {
        lock(&self.shared.roster).revision()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.shared.close()
    }
}

impl Shared {
    fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    fn check_open(&self) -> Result<()> {
        if self.attached.load(Ordering::SeqCst) && !self.is_closing() {
            return Ok(());
        }
        Err(closed(&self.wire.name))
    }

    fn find(&self, node: &str) -> Result<Arc<Member>> {
        self.check_open()?;
        let found = lock(&self.roster).find(node);
        found.ok_or_else(|| Error::new(ErrorKind::NoSuchNode { node: node.to_owned() }))
    }

    fn find_at(&self, member: &str, node: &str) -> Result<Arc<Member>> {
        self.check_open()?;
        let found = lock(&self.roster).find_at(member, node);
        found.ok_or_else(|| Error::new(ErrorKind::NoSuchNode { node: node.to_owned() }))
    }

    fn request(&self, member: Arc<Member>, to: &str, frame: &[u8]) -> Result<Box<dyn Replies>> {
        self.check_size(Frame::Request { number: 0, credit: 0, to, bytes: frame })?;
        let asked = self.asking.ask(&self.wire, member, to, frame)?;
        if self.is_closing() {
            // Whatever ended the requests meanwhile may not have seen this one.
            self.asking.end_all();
        }
        Ok(Box::new(asked))
    }

    fn send(&self, member: &Arc<Member>, frame: Frame<'_>) -> Result<()> {
        self.check_size(frame)?;
        member.send(&self.wire, Lane::Events, frame, Room::Needed)
    }

    fn check_size(&self, frame: Frame<'_>) -> Result<()> {
        let (Frame::Post { bytes, .. } | Frame::Request { bytes, .. } | Frame::Publish { bytes }) = frame
        else {
            return Ok(());
        };
        let (size, size_max) = (frame.bytes_max(), self.wire.frame_bytes_max());
        if size <= size_max {
            return Ok(());
        }
        let bytes_max = size_max.saturating_sub(size - bytes.len());
        Err(Error::new(ErrorKind::Oversized { bytes: bytes.len(), bytes_max }))
    }

    /// A member is gone, or this run of it: nothing comes from it any more, and nothing gets there.
    fn gone(&self, member: &Arc<Member>) {
        lock(&self.roster).forget(member.instance);
        let lost = member.give_up();
        self.asking.end_of(member);
        self.answering.cancel_all_of(member.instance);
        if lost > 0 && !self.is_closing() {
            let what =
                format!("sending to `{}`, which is gone with {lost} frames on their way to it,", member.name);
            self.wire.lost(&Error::new(ErrorKind::Io { what }));
        }
    }

    /// Has seen a stamp of joining.
    fn see_stamp(&self, stamp: u64) {
        self.stamp.fetch_max(stamp, Ordering::SeqCst);
    }
}

impl Drop for NatsLink {
    fn drop(&mut self) {
        // Begun by the call; nobody waits for its end.
        drop(self.shared.close());
    }
}

impl fmt::Debug for NatsLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link of `{}` over a {:?}", self.shared.wire.name, self.shared.wire.connection)
    }
}
