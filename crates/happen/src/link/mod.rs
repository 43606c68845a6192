//! What joins a space with others: the space's own end of a link, and a link between spaces of one process. Owns the
//! way from events to frames and back; handlers never see any of it, and what carries the frames is the link's business.

mod frames;
mod hashes;
mod hub;
mod incoming;
mod leaving;
mod names;
mod outgoing;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use happen_core::link::{Link, Routing};
use happen_core::{Error, ErrorKind, Result};

use crate::control::Carried;
use crate::durable::TakingIn;
use crate::space::{Space, SpaceInner};

pub use self::hub::{Hub, HubLink};

use self::leaving::Leaving;

pub(crate) use self::hashes::{Cause, Hashes, set_causes};
pub(crate) use self::leaving::Departure;
pub(crate) use self::names::RemoteNames;
pub(crate) use self::outgoing::{Answered, Away};

/// A space's end of its link.
pub(crate) struct Linked {
    pub(crate) link: Arc<dyn Link>,
    attached: AtomicBool,
    refused: AtomicU64,
    /// Requests from elsewhere that are being answered.
    answering: Arc<AtomicUsize>,
    /// What leaves signed and nobody waits for.
    leaving: Leaving,
    /// What was asked for by hand from elsewhere.
    pub(crate) carried: Carried,
    /// What others hand over.
    pub(crate) taking_in: TakingIn,
}

/// A node of another member of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteNode {
    /// Its id.
    pub id: String,
    /// The member it lives in: the name of a space or a process.
    pub member: String,
    /// The patterns it handles.
    pub handles: Vec<String>,
    /// How it shares its work with the nodes of its id in other members; see [`Node::shared`](crate::Node::shared).
    pub shared: Option<Routing>,
}

impl Space {
    /// Joins this space with those at the other ends of a link: names that no node here has are looked for there, and
    /// broadcasts reach whoever listens there. Called once, before [`Space::start`], which attaches the link.
    ///
    /// # Delivery
    ///
    /// A node here is found before one of the same id elsewhere; of several elsewhere, the one in the member that
    /// joined first gets what is sent to the id. A broadcast reaches all of them. Those that are
    /// [shared](crate::Node::shared) take turns instead, and one of them takes a broadcast. The runtime's events about
    /// nodes and the system stay in their process; `<type>.error` reaches everyone who listens.
    ///
    /// Over a link, `.await` on a send says that the other side took the event, after one round trip; a durable node has
    /// stored it by then. `forget` does not wait. Events are delivered at most once, in order from one sender to one
    /// receiver.
    ///
    /// In a space with a store of its own, what steps of durable nodes send to a node elsewhere, or ask it, waits in the
    /// store until that node has it, and is handled there once and in order; see [`Delivery`](crate::Delivery) and
    /// [`Space::outboxes`]. What they broadcast reaches those elsewhere who are there at that moment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when the space has a link already, or has started.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Config, Context, Event, Hub, Space};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let hub = Hub::new();
    /// let (here, there) = (Space::memory(), Space::memory());
    /// here.join(hub.link("here"))?;
    /// there.join(hub.link("there"))?;
    /// there.node("echo").on("string", |said: &Event<String>, _: &Context| said.to_uppercase());
    /// here.start().await?;
    /// there.start().await?;
    ///
    /// let heard = here.send("echo", "hello".to_owned()).reply::<String>().await?;
    /// assert_eq!(*heard, "HELLO");
    /// # Ok(())
    /// # }
    /// ```
    pub fn join(&self, link: Arc<dyn Link>) -> Result<()> {
        let inner = self.inner();
        if inner.check_building().is_err() {
            return Err(Error::misuse("a link is joined before the space starts"));
        }
        let linked = Linked {
            link,
            attached: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            answering: Arc::default(),
            leaving: Leaving::default(),
            carried: Carried::default(),
            taking_in: TakingIn::default(),
        };
        inner.link.set(linked).map_err(|_| Error::misuse("a space has one link, and this one has it already"))
    }

    /// The link that this space has joined, for what only one kind of link has; `None` without one. What is done with it
    /// goes past everything that the space sees to.
    #[must_use]
    pub fn link(&self) -> Option<Arc<dyn Link>> {
        self.inner().link.get().map(|linked| Arc::clone(&linked.link))
    }

    /// The nodes of the other members of the link, by id; empty without a link.
    #[must_use]
    pub fn remote_nodes(&self) -> Vec<RemoteNode> {
        let peers = self.inner().link.get().map(|linked| linked.link.peers()).unwrap_or_default();
        let mut nodes: Vec<_> = peers
            .into_iter()
            .flat_map(|peer| {
                let member = peer.name;
                let named = peer.nodes.into_iter().filter(|node| !node.id.starts_with(RESERVED));
                named.map(move |node| RemoteNode {
                    id: node.id,
                    member: member.clone(),
                    handles: node.handles.iter().map(ToString::to_string).collect(),
                    shared: node.share,
                })
            })
            .collect();
        // Stable, so that those of one id stay in the order in which they are asked.
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        nodes
    }

    /// The number of frames that came over the link and were refused before any node saw them: unreadable ones, too
    /// large ones, those whose content does not fit their hash, and, in a space with an [identity](Space::identity), those
    /// that are not to be trusted, replies among them. Each was also told as the event `system.refused`.
    #[must_use]
    pub fn refused_frames(&self) -> u64 {
        self.inner().link.get().map_or(0, |linked| linked.refused.load(Ordering::SeqCst))
    }
}

impl SpaceInner {
    /// Attaches the link, if there is one and nobody did.
    pub(crate) async fn attach_link(self: &Arc<Self>) -> Result<()> {
        let Some(linked) = self.link.get() else { return Ok(()) };
        if linked.attached.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let inbound = Arc::new(Entrance { space: Arc::downgrade(self) });
        let attached = linked.link.attach(inbound).await;
        attached.inspect_err(|_| linked.attached.store(false, Ordering::SeqCst))
    }

    /// Tells the link that nodes or what they handle have changed.
    #[inline]
    pub(crate) fn presence_changed(&self) {
        self.routes.changed();
        if let Some(linked) = self.link.get() {
            linked.link.changed();
        }
        if let Some(durable) = &self.durable {
            durable.nodes_changed();
        }
    }

    /// Begins to leave the link; the future, if any, says when that is done.
    pub(crate) fn leave_link(self: &Arc<Self>) -> Option<happen_core::env::BoxFuture<'static, ()>> {
        self.carry_all();
        self.link.get().map(|linked| linked.link.close())
    }

    /// Whether a process is there that can be asked by this id.
    pub(crate) fn hears_process(&self, id: &str) -> bool {
        let peers = self.link.get().map(|linked| linked.link.peers()).unwrap_or_default();
        peers.iter().any(|peer| peer.nodes.iter().any(|node| node.id == id))
    }

    /// Whether a member of this name is there.
    pub(crate) fn hears_member(&self, name: &str) -> bool {
        let peers = self.link.get().map(|linked| linked.link.peers()).unwrap_or_default();
        peers.iter().any(|peer| peer.name == name)
    }

    fn linked(&self, node: &str) -> Result<&Linked> {
        self.link.get().ok_or_else(|| Error::new(ErrorKind::NoSuchNode { node: node.to_owned() }))
    }
}

/// Where frames enter a space. Holds the space loosely: a link does not keep a space alive.
struct Entrance {
    space: Weak<SpaceInner>,
}

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("entrance of a space")
    }
}

impl fmt::Debug for Linked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.link, f)
    }
}

/// What ids of the runtime's own nodes begin with; nothing that comes over a link can be sent to them.
pub(crate) const RESERVED: char = '$';
