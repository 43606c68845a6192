//! The Link seam: what moves encoded events between the processes of one space. Owns the promises between a runtime and
//! whatever carries its frames; knows neither what the bytes mean (the codec does) nor how they travel.
//!
//! A runtime calls a [`Link`] with frames that leave, and gives it an [`Inbound`] that takes the frames that come. Both
//! sides have the same three verbs: *post* (to one node, nothing comes back), *request* (to one node, replies come
//! back) and *publish* (to everyone who listens). What is a value, an item or a failure is told by the frames
//! themselves, so a link hands replies on without reading them.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};

use crate::env::BoxFuture;
use crate::error::{Error, Result};
use crate::pattern::Pattern;

/// Carries frames between the processes (or the spaces of one process) that form one space.
///
/// # Delivery
///
/// - **Order.** A call of `post`, `request` or `publish` takes its place in the order when it is made, before anything is
///   awaited. Frames of one link to one member arrive in that order, whatever their kind. Nothing is promised between
///   frames of different members.
/// - **At most once.** A frame arrives once or not at all; a link never sends one again on its own. Who needs more sends
///   the same event again, under the same id, and the receiver's store tells doubles apart.
/// - **Bounded.** What waits to leave has a limit; beyond it calls fail with [`ErrorKind::Busy`] and nothing is sent.
/// - **Nothing comes back.** A published frame never arrives at the member that published it.
///
/// # When a link closes
///
/// Whether the own end was closed, the other one, or the way between them broke: requests that wait for replies end
/// with [`ErrorKind::Closed`], and whether their frames were handled is not known. Frames that still wait to arrive
/// are dropped. Later calls fail with [`ErrorKind::Closed`].
///
/// [`ErrorKind::Busy`]: crate::ErrorKind::Busy
/// [`ErrorKind::Closed`]: crate::ErrorKind::Closed
pub trait Link: Any + fmt::Debug + Send + Sync {
    /// The name of this member, which the others find among their [`Link::peers`].
    fn name(&self) -> &str;

    /// Joins: frames for this member go to `inbound` from now on, and its nodes can be reached by the others.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) when the link is attached already or its name is taken.
    /// - [`ErrorKind::Closed`](crate::ErrorKind::Closed) when it was closed.
    /// - [`ErrorKind::Io`](crate::ErrorKind::Io) when the others cannot be reached.
    fn attach(&self, inbound: Arc<dyn Inbound>) -> BoxFuture<'_, Result<()>>;

    /// Says that [`Inbound::presence`] has changed. Cheap and often called; the link asks when it needs to know, and
    /// many changes may be told to others as one.
    fn changed(&self);

    /// Sends a frame to a node, and nothing comes back.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::NoSuchNode`](crate::ErrorKind::NoSuchNode) when no other member is known to have the node.
    /// - [`ErrorKind::Busy`](crate::ErrorKind::Busy), [`ErrorKind::Closed`](crate::ErrorKind::Closed): see above.
    /// - [`ErrorKind::Oversized`](crate::ErrorKind::Oversized) when the frame is larger than the link can carry.
    fn post(&self, to: &str, frame: Vec<u8>) -> Result<()>;

    /// Sends a frame to a node; replies come back, the last one ends them.
    ///
    /// # Errors
    ///
    /// As [`Link::post`], now or as a reply.
    fn request(&self, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>>;

    /// As [`Link::post`], to the node in the member of this name.
    ///
    /// # Errors
    ///
    /// As [`Link::post`]; [`ErrorKind::NoSuchNode`](crate::ErrorKind::NoSuchNode) when that member is not known to have
    /// the node.
    fn post_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<()>;

    /// As [`Link::request`], to the node in the member of this name.
    ///
    /// # Errors
    ///
    /// As [`Link::post_at`], now or as a reply.
    fn request_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>>;

    /// Sends a frame to every other member one of whose nodes listens to this type of events, once to each. Nodes that
    /// share their work with those of other members do not count: who publishes chooses one of them, and posts to it.
    ///
    /// # Errors
    ///
    /// As [`Link::post`], except that nobody may listen. When some members cannot take it, the others still get it.
    fn publish(&self, event_type: &str, frame: Vec<u8>) -> Result<()>;

    /// Whether some other member may listen to this type, with nodes that do not share their work. Asked before a
    /// broadcast is encoded, so it has to be cheap; a link that cannot know answers true.
    fn listens(&self, event_type: &str) -> bool;

    /// The other members that are known, in the order in which they joined. Where several have a node of one id, the
    /// first of them gets what is sent to it, as long as it is there.
    fn peers(&self) -> Vec<Peer>;

    /// A number that is another one whenever [`Link::peers`] is. Asked for every event that leaves, so it has to be cheap.
    fn revision(&self) -> u64;

    /// Leaves. The leaving begins at the call; the future says when what had left before it is on its way.
    /// Closing twice is closing once.
    fn close(&self) -> BoxFuture<'static, ()>;
}

/// How one of several is chosen that do the same work: the instances of a node in several processes, or the nodes behind a
/// router.
///
/// # Examples
///
/// ```
/// use happen_core::link::Routing;
///
/// assert_eq!(Routing::parse("least-loaded"), Some(Routing::LeastLoaded));
/// assert_eq!(Routing::ByKey.as_str(), "by-key");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Routing {
    /// One after the other.
    RoundRobin,
    /// The one with the least under way: of those elsewhere, what was sent from here and is not answered.
    #[doc(alias = "least connections")]
    LeastLoaded,
    /// By the key of the event: all who know the same instances choose the same one. When one goes, its keys move to the
    /// others and no other key moves; when one comes, it takes its part of each.
    #[doc(alias = "consistent hash")]
    ByKey,
    /// By the key of the event at first, and then the same one for as long as it is there, whoever else comes.
    Sticky,
}

impl Routing {
    /// Its name, in small letters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastLoaded => "least-loaded",
            Self::ByKey => "by-key",
            Self::Sticky => "sticky",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::RoundRobin, Self::LeastLoaded, Self::ByKey, Self::Sticky]
            .into_iter()
            .find(|known| known.as_str() == name)
    }
}

/// Takes the frames that arrive; the runtime's side of a [`Link`].
///
/// A link calls it with one frame after the other for each member they come from, and never from inside a call of its
/// own [`Link`]: handlers may run before these functions return.
pub trait Inbound: fmt::Debug + Send + Sync + 'static {
    /// Takes a frame that nobody waits for. What cannot be delivered is kept or reported here.
    fn post(&self, to: &str, frame: &[u8]);

    /// Takes a frame whose sender waits. Every failure is a reply as well, an unreadable frame's too.
    fn request(&self, to: &str, frame: &[u8]) -> Box<dyn Replies>;

    /// Takes a frame for everyone here who listens. It is never passed on.
    fn publish(&self, frame: &[u8]);

    /// The nodes that are here now. Empty before the space has started.
    fn presence(&self) -> Vec<NodePresence>;

    /// Takes what the link has to tell about itself. Nothing depends on its being heard.
    fn notice(&self, notice: Notice<'_>) {
        let _ = notice;
    }
}

/// What a link tells about itself.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Notice<'a> {
    /// The way to the others is there, or is there no more.
    Connection {
        /// Which of the two.
        status: ConnectionStatus,
        /// Where it leads, without anything secret.
        url: &'a str,
        /// What the other side said when it refused, such as that whoever asks may not sign in any more.
        reason: Option<&'a str>,
    },
    /// Another member has said that it goes. One that is among the peers no more and did not say so is lost: its process
    /// has ended, or the way to it.
    Left {
        /// Its name.
        member: &'a str,
    },
    /// Something came that is no frame. It was left out.
    Refused(&'a Error),
    /// Something that was on its way did not arrive.
    Lost(&'a Error),
}

/// Whether the way to the other members is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionStatus {
    /// Frames leave and come.
    Connected,
    /// It is being looked for. What leaves meanwhile waits, up to the link's limit.
    Disconnected,
    /// It will not be there again; the link is closed.
    Closed,
}

impl ConnectionStatus {
    /// Its name, in small letters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::Closed => "closed",
        }
    }
}

/// The replies to one request, in order: the items of a stream, if it is one, and at last its outcome.
///
/// # Delivery
///
/// The reader sets the pace. A link asks for the next reply only when the reader has asked for it, or as far ahead as a
/// fixed window; a handler whose reader is slow waits in `emit`.
///
/// # Cancel safety
///
/// Dropping it before the end says that nobody waits any more: the flow that answers is asked to stop. Everything that
/// stands between has to pass that on.
pub trait Replies: Send {
    /// The next reply's frame; `None` after the last.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) or [`ErrorKind::Io`](crate::ErrorKind::Io) when the link failed.
    /// Nothing comes after an error.
    fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>>>>;
}

/// Another member of a link.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<NodePresence>,
}

/// What the others know of a node.
///
/// An id that begins with `$` belongs to the runtime of its member: it listens, and nothing can be sent to it, except that
/// one which begins with [`CONTROL`] can be asked.
#[derive(Debug, Clone)]
pub struct NodePresence {
    /// Its id.
    pub id: String,
    /// What it handles.
    pub handles: Vec<Pattern>,
    /// How its work is shared with the nodes of its id in other members that say the same; `None` when it is not.
    pub share: Option<Routing>,
}

/// What the id begins with by which a process is asked for something by hand. Behind it stands the name that the process
/// has in the log.
pub const CONTROL: &str = "$control/";

/// Whether a frame can be meant for this id: it is a node, or can be asked for something by hand.
#[must_use]
pub fn is_addressable(id: &str) -> bool {
    !id.starts_with('$') || id.starts_with(CONTROL)
}
