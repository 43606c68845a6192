//! Several nodes behind one name. Owns who is behind it and which of them an event goes to; does not know how an event gets
//! there.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use happen_core::link::Routing;
use happen_core::{ErasedEvent, Error, ErrorKind, Event, Outgoing, Payload, Result};

use super::key_of;
use super::pick::{Candidate, Load, Pool, hash};
use crate::handler::Argument;
use crate::send::{Destination, Sender, Sending, Target};
use crate::space::{Space, SpaceInner};
use crate::sync::{Mutex, isolated, lock};
use crate::table::Phase;

/// Several nodes behind one name: what is sent to it goes to one of them. A handle; cloning shares the router.
///
/// The nodes are named by their ids and may be here or beyond a link, durable or not, and routers themselves. One that
/// is not there is left out as long as it is not. Nothing is registered on a router; to have all of its nodes handle
/// the same, put one handler on them with [`Nodes::on`](crate::Nodes::on) or a [`Group`](crate::Group), which is also
/// the way to reach every one of them.
///
/// # Delivery
///
/// As a send to the node that was chosen, whose order is kept for each sender; there is none between different nodes.
/// The choice is part of what a step of a durable node commits: a question that was asked stays where it was asked when
/// the step is run again, also after a restart, as long as that node is behind the router.
///
/// From beyond a link the name reaches those of the nodes that are here.
///
/// # Cost
///
/// Plain sends cost nothing more for it. One by a router takes a lock, and time for each node behind it.
///
/// # Examples
///
/// ```
/// use happen::{Context, Event, Nodes, Routing, Space};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let (one, two) = (space.node("worker-1"), space.node("worker-2"));
/// [&one, &two].on("u64", |_: &Event<u64>, cx: &Context| cx.node_id().to_owned());
/// let workers = space.router("workers", ["worker-1", "worker-2"], Routing::RoundRobin);
/// space.start().await?;
///
/// let first = space.send("workers", 1u64).reply::<String>().await?;
/// let second = space.send(&workers, 2u64).reply::<String>().await?;
/// assert_ne!(*first, *second);
///
/// let carts = space.router("carts", ["worker-1", "worker-2"], Routing::ByKey).key_by(|customer: &u64| *customer);
/// let at = carts.send(7u64).reply::<String>().await?;
/// assert_eq!(*carts.send(7u64).reply::<String>().await?, *at);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Router {
    space: Arc<SpaceInner>,
    inner: Arc<RouterInner>,
}

pub(super) struct RouterInner {
    name: Arc<str>,
    routing: Routing,
    members: Mutex<Vec<Member>>,
    pool: Pool,
    key: Mutex<Option<KeyOf>>,
}

type KeyOf = Arc<dyn Fn(&dyn ErasedEvent) -> Option<u64> + Send + Sync>;

/// A node behind a router.
struct Member {
    name: Arc<str>,
    hash: u64,
    /// What was sent there beyond the link and is not answered.
    load: Arc<AtomicUsize>,
}

/// Which nodes may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Among {
    Everywhere,
    /// Those of this space.
    Here,
}

impl Space {
    /// Makes a router: what is sent to its name goes to one of these nodes; see [`Router`].
    ///
    /// A name that a node or another router has, or that no node may have, gives a router that nothing reaches by its name;
    /// [`Space::start`] tells why.
    pub fn router<N: Into<String>>(
        &self,
        name: impl AsRef<str>,
        nodes: impl IntoIterator<Item = N>,
        routing: Routing,
    ) -> Router {
        let space = self.inner();
        let name: Arc<str> = name.as_ref().into();
        let inner = Arc::new(RouterInner {
            pool: Pool::new(hash(name.as_bytes())),
            name,
            routing,
            members: Mutex::default(),
            key: Mutex::default(),
        });
        nodes.into_iter().for_each(|node| inner.add(&node.into()));
        space.add_router(&inner.name, &inner);
        Router { space: Arc::clone(space), inner }
    }
}

impl Router {
    /// Takes the key of an event from its payload, instead of what was given with the send or its correlation. An event
    /// whose payload is no `T` has those.
    ///
    /// Keys are compared as texts, so routers of several processes agree on them.
    #[must_use]
    pub fn key_by<T: Payload, K: ToString>(self, key: impl Fn(&T) -> K + Send + Sync + 'static) -> Self {
        let key_of = move |event: &dyn ErasedEvent| {
            let key = match event.payload().as_any().downcast_ref::<T>() {
                Some(payload) => key(payload).to_string(),
                None => match event.single(0).map(Event::<T>::own) {
                    Some(Ok(event)) => key(event.payload()).to_string(),
                    _ => return None,
                },
            };
            Some(hash(key.as_bytes()))
        };
        *lock(&self.inner.key) = Some(Arc::new(key_of));
        self
    }

    /// The name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.name
    }

    /// Puts a node behind the router; one that is there already stays.
    pub fn add(&self, node: &str) {
        self.inner.add(node);
    }

    /// Takes a node away. What is under way there goes on.
    pub fn remove(&self, node: &str) {
        lock(&self.inner.members).retain(|member| *member.name != *node);
    }

    /// The ids of the nodes behind it, whether or not they are there, in the order in which they were added.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.inner.names().iter().map(ToString::to_string).collect()
    }

    /// Sends an event to one of the nodes, from outside of any node, as [`Space::send`] does.
    pub fn send<T: Outgoing>(&self, event: T) -> Sending<'_, T::Payload> {
        Sending::new(Sender::Space(&self.space), self.into_destination(), event)
    }

    /// Ends the router, and frees its name.
    pub fn destroy(&self) {
        self.space.remove_router(&self.inner);
    }
}

impl RouterInner {
    /// The names of the nodes behind it.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        lock(&self.members).iter().map(|member| Arc::clone(&member.name)).collect()
    }

    fn add(&self, node: &str) {
        let mut members = lock(&self.members);
        if members.iter().all(|member| *member.name != *node) {
            members.push(Member { name: node.into(), hash: hash(node.as_bytes()), load: Arc::default() });
        }
    }

    /// The node that an event goes to, and what counts it as under way there, when it is elsewhere.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchNode`] when none of them is there, and when the function panics that takes the key.
    pub(super) fn choose(
        &self,
        space: &Arc<SpaceInner>,
        event: &dyn ErasedEvent,
        among: Among,
    ) -> Result<(Arc<str>, Option<Load>)> {
        let by_key = matches!(self.routing, Routing::ByKey | Routing::Sticky);
        let key_fn = lock(&self.key).clone().filter(|_| by_key);
        // Code of the user's, so nothing is locked meanwhile.
        let own_key = match key_fn {
            Some(key) => isolated("the key of a router", || key(event))?,
            None => None,
        };
        let key = || own_key.unwrap_or_else(|| key_of(event));
        let members = lock(&self.members);
        let there: Vec<_> = members.iter().filter(|member| space.is_there(&member.name, among)).collect();
        let candidates: Vec<_> = there
            .iter()
            .map(|member| {
                let here = space.find(&member.name);
                let load = here.map_or_else(|| member.load.load(Ordering::Relaxed), |node| node.load());
                Candidate { hash: member.hash, load }
            })
            .collect();
        let chosen = self.pool.pick(self.routing, &candidates, key);
        let Some(member) = chosen.map(|chosen| there[chosen]) else {
            return Err(Error::new(ErrorKind::NoSuchNode { node: self.name.to_string() })
                .context("no node behind the router is there"));
        };
        let load = space.find(&member.name).is_none().then(|| Load::begin(&member.load));
        Ok((Arc::clone(&member.name), load))
    }
}

impl SpaceInner {
    fn add_router(self: &Arc<Self>, name: &Arc<str>, router: &Arc<RouterInner>) {
        if !self.may_be_named(name) {
            return;
        }
        let mut routers = lock(&self.routes.routers);
        if routers.contains_key(name) || self.find(name).is_some() {
            drop(routers);
            self.problem(Error::new(ErrorKind::DuplicateNode { node: name.to_string() }));
            return;
        }
        routers.insert(Arc::clone(name), Arc::clone(router));
        drop(routers);
        self.routes.has_routers.store(true, Ordering::SeqCst);
        self.presence_changed();
    }

    fn remove_router(&self, router: &Arc<RouterInner>) {
        let mut routers = lock(&self.routes.routers);
        if routers.get(&router.name).is_some_and(|known| Arc::ptr_eq(known, router)) {
            routers.remove(&router.name);
            drop(routers);
            self.presence_changed();
        }
    }

    /// Whether there is somebody of this name who takes events, as far as is known here.
    fn is_there(self: &Arc<Self>, name: &str, among: Among) -> bool {
        match self.find(name) {
            Some(node) if among != Among::Here && node.is_shared() => self.roster().shared(name).is_some(),
            Some(node) => match node.table.load().phase {
                Phase::Open => true,
                // The store keeps what comes.
                Phase::Stopped => node.is_durable(),
                Phase::Closed => false,
            },
            None => {
                self.routes.has_router(name)
                    || among != Among::Here
                        && (self.is_remembered_elsewhere(name) || self.roster().is_elsewhere(name))
            }
        }
    }
}

impl<'t> Target<'t> for &'t Router {
    fn into_destination(self) -> Destination<'t> {
        self.id().into_destination()
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Router({}: {})", self.id(), self.ids().join(", "))
    }
}
