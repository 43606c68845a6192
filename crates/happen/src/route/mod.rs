//! Where an event goes that several may take: one of the nodes behind a router, one of the processes that share a node.
//! Owns that choice and going on to the next when one turns out to be gone; does not know how an event gets there.

mod pick;
mod roster;
mod router;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use happen_core::event::Purpose;
use happen_core::link::Routing;
use happen_core::{ErasedEvent, Error, ErrorKind, Result};
use serde_json::Value as Json;

use self::pick::{Candidate, hash};
use self::roster::{Roster, Shared};
use self::router::RouterInner;
use crate::dispatch::{Delivered, Want};
use crate::durable::{Durable, Keyed};
use crate::flow::Outcome;
use crate::limits;
use crate::link::Away;
use crate::node::NodeInner;
use crate::send::{Sender, bring_batch};
use crate::space::SpaceInner;
use crate::sync::{Mutex, lock};
use crate::web;

pub use self::router::Router;

pub(crate) use self::pick::Load;
pub(crate) use self::roster::Listening;
pub(crate) use self::router::Among;

/// What a space knows of ways that fork.
#[derive(Default)]
pub(crate) struct Routes {
    /// Raised whenever nodes of this space, or what they do, have changed.
    changes: AtomicU64,
    roster: Mutex<Arc<Roster>>,
    routers: Mutex<BTreeMap<Arc<str>, Arc<RouterInner>>>,
    has_routers: AtomicBool,
}

/// Where an event goes that was sent to a name.
enum Leg {
    Here(Arc<NodeInner>),
    There(There),
}

/// A node elsewhere.
pub(crate) struct There {
    pub(crate) node: Arc<str>,
    /// The member it was chosen in, of several that share it.
    pub(crate) member: Option<Arc<str>>,
    /// Count the event as under way.
    pub(crate) loads: Vec<Load>,
    routing: Option<Routing>,
}

/// Where an event went.
pub(crate) enum Went {
    Here(Delivered),
    /// Nothing when nobody wants to hear of it.
    Away(Option<Away>),
}

/// Which nodes of this space that share their work take a broadcast.
pub(crate) enum Takers {
    /// All: it concerns this process alone, or there is no other.
    All,
    /// Those of these ids, which the publisher chose.
    Chosen(Vec<Arc<str>>),
}

impl Takers {
    /// Those of a broadcast that came from elsewhere: whoever is to take it is sent it by name.
    pub(crate) const fn of_arrival() -> Self {
        Self::Chosen(Vec::new())
    }

    pub(crate) fn has(&self, node: &NodeInner) -> bool {
        match self {
            Self::All => true,
            Self::Chosen(chosen) => chosen.contains(&node.name),
        }
    }
}

impl There {
    /// Whether another instance is to be tried after this error, by which nothing has left.
    fn moves_on(&self, error: &Error) -> bool {
        let Some(routing) = self.routing else { return false };
        match error.kind() {
            ErrorKind::NoSuchNode { .. } | ErrorKind::Closed { .. } => true,
            // What has a key waits its turn where its key is.
            ErrorKind::Busy { .. } => matches!(routing, Routing::RoundRobin | Routing::LeastLoaded),
            _ => false,
        }
    }
}

impl Routes {
    /// Notes that nodes of this space, or what they do, have changed.
    #[inline]
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Forgets what holds code of the user's.
    pub(crate) fn clear(&self) {
        // Dropped outside of the locks: code of the user's may look for them.
        let routers = std::mem::take(&mut *lock(&self.routers));
        let roster = std::mem::take(&mut *lock(&self.roster));
        drop((routers, roster));
    }

    pub(crate) fn has_router(&self, name: &str) -> bool {
        self.router(name).is_some()
    }

    /// The names of the routers.
    pub(crate) fn routers(&self) -> Vec<Arc<str>> {
        if !self.has_routers.load(Ordering::SeqCst) {
            return Vec::new();
        }
        lock(&self.routers).keys().cloned().collect()
    }

    fn router(&self, name: &str) -> Option<Arc<RouterInner>> {
        if !self.has_routers.load(Ordering::SeqCst) {
            return None;
        }
        lock(&self.routers).get(name).cloned()
    }
}

impl SpaceInner {
    /// Sends a stamped event to whoever takes what is sent to this name: here, by the link, or by a log. Where one of
    /// several was chosen that turns out to be gone, the next one is.
    ///
    /// # Errors
    ///
    /// As a send.
    pub(crate) fn send_on(
        self: &Arc<Self>,
        sender: Sender<'_>,
        to: &str,
        event: &dyn ErasedEvent,
        (want, wants_replies, keyed): (Want, bool, Option<Arc<Keyed>>),
        outcome: &mut Outcome,
    ) -> Result<Went> {
        let want = keyed.iter().fold(want, Want::known_by);
        let mut tried = Vec::new();
        let mut failed = None;
        let error = loop {
            let mut there = match self.leg(to, event, &tried) {
                Ok(Leg::Here(node)) => return bring_batch(&node, event, want, outcome).map(Went::Here),
                Ok(Leg::There(there)) => there,
                Err(error) => break failed.unwrap_or(error),
            };
            if keyed.is_none()
                && let Some(durable) = self.keeps_for(&there, event)
            {
                let stored = durable.keep(self, &there.node, event)?;
                return Ok(Went::Here(Delivered::Later(Some(stored))));
            }
            if tried.is_empty() {
                let node = self.key_of(&there.node);
                for single in (0..event.len()).filter_map(|index| event.single(index)) {
                    let mark = self.remember_sent(single.envelope(), node);
                    self.settle(mark, web::WAITING);
                }
            }
            let wants_replies = wants_replies || keyed.is_some();
            match self.send_away(sender, &mut there, event, keyed.as_ref(), wants_replies) {
                Ok(away) => return Ok(Went::Away(away)),
                Err(error) if there.moves_on(&error) && tried.len() < limits::ROUTE_TRIES_MAX => {
                    tried.extend(there.member.take());
                    failed = Some(error);
                }
                Err(error) => break error,
            }
        };
        let id = event.envelope().id;
        self.remember(id, self.key_of(to), web::failed(error.code()));
        Err(error.at_event(id).at_node(to))
    }

    /// What keeps an event for a durable node that another process on the same log has, whoever has it at this moment.
    fn keeps_for(&self, there: &There, event: &dyn ErasedEvent) -> Option<&Arc<Durable>> {
        let durable = self.durable.as_ref().filter(|durable| durable.is_elsewhere(&there.node))?;
        (event.envelope().purpose == Purpose::Send).then_some(durable)
    }

    /// Where an event goes that is sent to this name, but not to members that were tried.
    fn leg(self: &Arc<Self>, to: &str, event: &dyn ErasedEvent, tried: &[Arc<str>]) -> Result<Leg> {
        let mut name: Arc<str> = to.into();
        let mut loads = Vec::new();
        for _ in 0..limits::ROUTERS_NESTED_MAX {
            match self.find(&name) {
                Some(node) if node.is_shared() => {}
                Some(node) => return Ok(Leg::Here(node)),
                None => {
                    if let Some(router) = self.routes.router(&name) {
                        let (member, load) = router.choose(self, event, Among::Everywhere)?;
                        loads.extend(load);
                        name = member;
                        continue;
                    }
                }
            }
            return self.instance(name, event, tried, loads);
        }
        Err(leads_to_itself(to))
    }

    /// The name behind routers that an event goes to which is sent to this one.
    ///
    /// # Errors
    ///
    /// When nobody is behind a router, or they lead nowhere.
    pub(crate) fn behind_routers(
        self: &Arc<Self>,
        to: &str,
        event: &dyn ErasedEvent,
        among: Among,
    ) -> Result<Arc<str>> {
        let mut name: Arc<str> = to.into();
        for _ in 0..limits::ROUTERS_NESTED_MAX {
            match self.routes.router(&name) {
                Some(router) => name = router.choose(self, event, among)?.0,
                None => return Ok(name),
            }
        }
        Err(leads_to_itself(to))
    }

    /// Whether a node is behind the router of this name.
    pub(crate) fn leads_to(&self, router: &str, node: &str) -> bool {
        let mut names: Vec<Arc<str>> = vec![router.into()];
        for _ in 1..limits::ROUTERS_NESTED_MAX {
            let routers = names.iter().filter_map(|name| self.routes.router(name));
            names = routers.flat_map(|router| router.names()).collect();
            names.sort_unstable();
            names.dedup();
            if names.iter().any(|name| **name == *node) {
                return true;
            }
        }
        false
    }

    /// The node of this space that takes what came from elsewhere for this name.
    pub(crate) fn find_behind_routers(
        self: &Arc<Self>,
        to: &str,
        event: &dyn ErasedEvent,
    ) -> Option<Arc<NodeInner>> {
        self.find(to).or_else(|| self.find(&self.behind_routers(to, event, Among::Here).ok()?))
    }

    /// Whether it is chosen when an event leaves who gets what is sent to this name: behind a router, or among those that
    /// share their work.
    pub(crate) fn is_chosen(self: &Arc<Self>, name: &str) -> bool {
        self.routes.has_router(name) || self.roster().shared(name).is_some()
    }

    /// Who takes in what waits here for a node that several processes share: always the same one as long as it is there,
    /// for it alone knows what it has. None of a node that is not shared.
    pub(crate) fn instance_elsewhere(self: &Arc<Self>, node: &str) -> Option<Arc<str>> {
        let roster = self.roster();
        let instances = &roster.shared(node)?.instances;
        instances.iter().find(|instance| !instance.is_here).map(|instance| Arc::clone(&instance.member))
    }

    /// Where an event goes for a node that is not here, or that several processes share.
    fn instance(
        self: &Arc<Self>,
        node: Arc<str>,
        event: &dyn ErasedEvent,
        tried: &[Arc<str>],
        mut loads: Vec<Load>,
    ) -> Result<Leg> {
        let roster = self.roster();
        let Some(shared) = roster.shared(&node) else {
            // One here that takes nothing now says so itself.
            return Ok(match self.find(&node) {
                Some(here) => Leg::Here(here),
                None => Leg::There(There { node, member: None, loads, routing: None }),
            });
        };
        let places = 0..shared.instances.len();
        let Some(place) = self.choose(shared, places, event, tried) else {
            return Err(Error::new(ErrorKind::NoSuchNode { node: node.to_string() }));
        };
        let instance = &shared.instances[place];
        if instance.is_here
            && let Some(here) = self.find(&node)
        {
            return Ok(Leg::Here(here));
        }
        loads.push(Load::begin(&instance.load));
        let member = Some(Arc::clone(&instance.member));
        Ok(Leg::There(There { node, member, loads, routing: Some(shared.routing) }))
    }

    /// The place of the instance that an event goes to, of those in these places.
    fn choose(
        &self,
        shared: &Shared,
        places: impl Iterator<Item = usize>,
        event: &dyn ErasedEvent,
        tried: &[Arc<str>],
    ) -> Option<usize> {
        let untried = |place: &usize| !tried.contains(&shared.instances[*place].member);
        let places: Vec<_> = places.filter(untried).collect();
        let candidates: Vec<_> = places
            .iter()
            .map(|place| {
                let instance = &shared.instances[*place];
                let here = instance.is_here.then(|| self.find(&shared.node)).flatten();
                let load = here.map_or_else(|| instance.load.load(Ordering::Relaxed), |node| node.load());
                Candidate { hash: instance.hash, load }
            })
            .collect();
        shared.pool.pick(shared.routing, &candidates, || key_of(event)).map(|chosen| places[chosen])
    }

    /// Chooses who takes a broadcast of each node that several processes share: gives those nodes whose instance here does,
    /// and sends the event to the others by `post`, which says why one did not get it.
    pub(crate) fn share_out(
        &self,
        event: &dyn ErasedEvent,
        listening: &[Listening],
        mut post: impl FnMut(&There) -> Result<()>,
    ) -> (Takers, Option<Error>) {
        let mut here = Vec::new();
        let mut failed = None;
        for Listening { shared, instances } in listening {
            let mut tried = Vec::new();
            while let Some(place) = self.choose(shared, instances.iter().copied(), event, &tried) {
                let instance = &shared.instances[place];
                if instance.is_here {
                    here.push(Arc::clone(&shared.node));
                    break;
                }
                let (node, member) = (Arc::clone(&shared.node), Some(Arc::clone(&instance.member)));
                let there = There { node, member, loads: Vec::new(), routing: Some(shared.routing) };
                match post(&there) {
                    Ok(()) => break,
                    Err(error) if there.moves_on(&error) && tried.len() < limits::ROUTE_TRIES_MAX => {
                        tried.extend(there.member);
                        if tried.len() == instances.len() {
                            failed.get_or_insert(error);
                        }
                    }
                    Err(error) => {
                        failed.get_or_insert(error);
                        break;
                    }
                }
            }
        }
        (Takers::Chosen(here), failed)
    }

    /// The shared nodes that listen to a type.
    pub(crate) fn sharing(&self, event_type: &str) -> Arc<[Listening]> {
        self.roster().listening(event_type)
    }

    fn roster(&self) -> Arc<Roster> {
        let mut roster = lock(&self.routes.roster);
        let link = self.link.get().map(|linked| &linked.link);
        // Before it is asked who is there: what changes in between is looked up again.
        let now = (link.map_or(0, |link| link.revision()), self.routes.changes.load(Ordering::SeqCst));
        if roster.of != Some(now) {
            let own = (link.map_or("", |link| link.name()), self.presence());
            let peers = link.map(|link| link.peers()).unwrap_or_default();
            *roster = Arc::new(Roster::new(now, own, peers, &roster));
        }
        Arc::clone(&roster)
    }
}

/// The key by which an event is routed: what was given with the send, or else its correlation.
fn key_of(event: &dyn ErasedEvent) -> u64 {
    let envelope = event.envelope();
    match envelope.extra.as_ref().and_then(|extra| extra.metadata.get(ROUTING_KEY)) {
        Some(Json::String(key)) => hash(key.as_bytes()),
        Some(other) => hash(other.to_string().as_bytes()),
        None => hash(envelope.correlation().as_bytes()),
    }
}

#[cold]
fn leads_to_itself(router: &str) -> Error {
    Error::misuse(format!(
        "router `{router}` leads to itself, or through more than {} others",
        limits::ROUTERS_NESTED_MAX - 1
    ))
}

/// The metadata that has the key by which an event is routed.
pub(crate) const ROUTING_KEY: &str = "routing-key";
