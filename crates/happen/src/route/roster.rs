//! Which nodes share their work, and between whom: what the link and this space tell, put together until one of them tells
//! something else. Owns what is known of instances; does not know how one is chosen.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use happen_core::Pattern;
use happen_core::link::{NodePresence, Peer, Routing};
use happen_core::pattern::is_runtime;

use super::pick::{Pool, hash};
use crate::limits;
use crate::link::RESERVED;
use crate::sync::{Mutex, lock};

/// What is known at one moment.
#[derive(Default)]
pub(crate) struct Roster {
    /// The revisions of the link and of the own nodes that it was made of; `None` for what nothing was looked up for.
    pub(super) of: Option<(u64, u64)>,
    /// The nodes elsewhere.
    elsewhere: HashSet<Arc<str>>,
    shared: BTreeMap<Arc<str>, Arc<Shared>>,
    /// Those of the shared ones that listen to a type.
    listening: Mutex<HashMap<String, Arc<[Listening]>>>,
}

/// A node that several processes have.
pub(super) struct Shared {
    pub(super) node: Arc<str>,
    pub(super) routing: Routing,
    pub(super) pool: Arc<Pool>,
    /// By the names of their members.
    pub(super) instances: Vec<Instance>,
}

/// The node in one of the processes.
pub(super) struct Instance {
    pub(super) member: Arc<str>,
    pub(super) hash: u64,
    pub(super) is_here: bool,
    /// What was sent there from here and is not answered.
    pub(super) load: Arc<AtomicUsize>,
    handles: Vec<Pattern>,
}

/// A shared node that listens to a type.
#[derive(Clone)]
pub(crate) struct Listening {
    pub(super) shared: Arc<Shared>,
    /// The places of the instances that do.
    pub(super) instances: Vec<usize>,
}

impl Roster {
    /// What is known now. Instances that were known before keep what was counted and remembered for them.
    pub(super) fn new(
        of: (u64, u64),
        own: (&str, Vec<NodePresence>),
        peers: Vec<Peer>,
        before: &Self,
    ) -> Self {
        let mut roster = Self { of: Some(of), ..Self::default() };
        let mut found: BTreeMap<Arc<str>, (Routing, Vec<Instance>)> = BTreeMap::new();
        let (own_member, own_nodes) = own;
        let own: Vec<_> = own_nodes.into_iter().map(|node| (Arc::from(own_member), true, node)).collect();
        let others = peers.into_iter().flat_map(|peer| {
            let member: Arc<str> = peer.name.into();
            let named = peer.nodes.into_iter().filter(|node| !node.id.starts_with(RESERVED));
            named.map(move |node| (Arc::clone(&member), false, node))
        });
        // This process comes first and then the others as they joined: of several ways the first is taken.
        for (member, is_here, node) in own.into_iter().chain(others) {
            let id: Arc<str> = node.id.into();
            if !is_here {
                roster.elsewhere.insert(Arc::clone(&id));
            }
            let Some(routing) = node.share else { continue };
            let known = before.shared.get(&id).and_then(|shared| shared.instance(&member));
            let instance = Instance {
                hash: hash(member.as_bytes()),
                member,
                is_here,
                load: known.map(|known| Arc::clone(&known.load)).unwrap_or_default(),
                handles: node.handles,
            };
            found.entry(id).or_insert((routing, Vec::new())).1.push(instance);
        }
        for (node, (routing, mut instances)) in found {
            instances.sort_by(|a, b| a.member.cmp(&b.member));
            let pool = before.shared.get(&node).map(|shared| Arc::clone(&shared.pool));
            let pool = pool.unwrap_or_else(|| Arc::new(Pool::new(hash(own_member.as_bytes()))));
            let shared = Shared { node: Arc::clone(&node), routing, pool, instances };
            roster.shared.insert(node, Arc::new(shared));
        }
        roster
    }

    /// Whether a node of this id is known to be elsewhere.
    pub(super) fn is_elsewhere(&self, node: &str) -> bool {
        self.elsewhere.contains(node)
    }

    pub(super) fn shared(&self, node: &str) -> Option<&Arc<Shared>> {
        self.shared.get(node)
    }

    /// The shared nodes that listen to a type.
    pub(super) fn listening(&self, event_type: &str) -> Arc<[Listening]> {
        if self.shared.is_empty() {
            return Arc::default();
        }
        let mut known = lock(&self.listening);
        if let Some(listening) = known.get(event_type) {
            return Arc::clone(listening);
        }
        let all = self.shared.values().filter_map(|shared| {
            let places = 0..shared.instances.len();
            let instances: Vec<_> =
                places.filter(|place| shared.instances[*place].listens(event_type)).collect();
            (!instances.is_empty()).then(|| Listening { shared: Arc::clone(shared), instances })
        });
        let listening: Arc<[_]> = all.collect();
        if known.len() < limits::TYPES_MAX {
            known.insert(event_type.to_owned(), Arc::clone(&listening));
        }
        listening
    }
}

impl Shared {
    fn instance(&self, member: &str) -> Option<&Instance> {
        self.instances.iter().find(|instance| *instance.member == *member)
    }
}

impl Instance {
    fn listens(&self, event_type: &str) -> bool {
        let runtime = is_runtime(event_type);
        self.handles.iter().any(|pattern| match runtime {
            true => pattern.matches_runtime(event_type),
            false => pattern.matches(event_type),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, share: Option<Routing>) -> NodePresence {
        NodePresence { id: id.into(), handles: vec![Pattern::parse("x.*").unwrap()], share }
    }

    fn peer(name: &str, nodes: Vec<NodePresence>) -> Peer {
        Peer { name: name.into(), nodes }
    }

    #[test]
    fn of_several_ways_to_share_the_first_counts_and_what_shares_nothing_is_left_out() {
        let peers = vec![
            peer("late", vec![node("a", Some(Routing::Sticky)), node("$", Some(Routing::Sticky))]),
            peer("early", vec![node("a", Some(Routing::ByKey)), node("b", None)]),
        ];
        let own = vec![node("c", Some(Routing::LeastLoaded))];
        let roster = Roster::new((1, 1), ("me", own), peers, &Roster::default());
        let a = roster.shared("a").unwrap();
        assert_eq!(a.routing, Routing::Sticky);
        assert_eq!(a.instances.iter().map(|at| &*at.member).collect::<Vec<_>>(), ["early", "late"]);
        assert!(roster.shared("b").is_none() && roster.shared("$").is_none());
        assert!(roster.is_elsewhere("b") && roster.is_elsewhere("a") && !roster.is_elsewhere("c"));
        assert!(roster.shared("c").unwrap().instances[0].is_here);
    }

    #[test]
    fn who_stays_keeps_what_was_counted() {
        let all = |names: &[&str]| {
            names.iter().map(|name| peer(name, vec![node("a", Some(Routing::Sticky))])).collect::<Vec<_>>()
        };
        let first = Roster::new((1, 1), ("me", vec![]), all(&["x", "y"]), &Roster::default());
        let second = Roster::new((2, 1), ("me", vec![]), all(&["y", "z"]), &first);
        let (before, now) = (first.shared("a").unwrap(), second.shared("a").unwrap());
        assert!(Arc::ptr_eq(&before.pool, &now.pool));
        assert!(Arc::ptr_eq(&before.instance("y").unwrap().load, &now.instance("y").unwrap().load));
        assert!(now.instance("x").is_none());
    }

    #[test]
    fn types_of_shared_nodes_are_remembered_up_to_a_limit() {
        let roster =
            Roster::new((1, 1), ("me", vec![node("a", Some(Routing::ByKey))]), vec![], &Roster::default());
        for number in 0..limits::TYPES_MAX - 1 {
            roster.listening(&format!("y.{number}"));
        }
        for (event_type, known) in [("x.1", limits::TYPES_MAX), ("x.2", limits::TYPES_MAX)] {
            assert_eq!(roster.listening(event_type).len(), 1);
            assert_eq!(lock(&roster.listening).len(), known);
        }
        assert!(roster.listening("y.0").is_empty());
    }
}
