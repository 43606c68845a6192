//! What one look finds: the figures of the nodes here, who is beyond the link, and what is kept for others in a log. Owns
//! where figures come from: counters that are there anyway, the headers that the space remembers, the link, the store. Does
//! not know what they mean.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use happen_core::store::{Key, List, Store};
use happen_core::{EventId, NodeKey, Result};

use super::{NodeBalance, NodePlace};
use crate::durable::beside;
use crate::durable::keys::{FLOWS, FlowKey, INBOX, PROCESSES, name_of};
use crate::keys::plain;
use crate::limits;
use crate::link::RESERVED;
use crate::node::NodeInner;
use crate::space::SpaceInner;
use crate::web::{self, Header};

/// What a look found.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) at: Duration,
    /// By id, each once.
    pub(super) nodes: Vec<Seen>,
    /// Whether the link has lost its connection.
    pub(super) is_cut: bool,
    /// By how much the look came late.
    pub(super) late_ms: u64,
}

/// A node as a look found it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) figures: NodeBalance,
    /// Events that were handled since the look before.
    pub(super) handled: f64,
    /// The first event that is kept for it.
    pub(super) head: Option<EventId>,
    pub(super) presence: Presence,
}

/// Whether the process of a node elsewhere is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Presence {
    /// The node is here, or its process is heard.
    #[default]
    There,
    /// Nothing is known: there is no link, or the process was never heard by it.
    Unknown,
    /// It was there and said that it goes.
    Left,
    /// It was there and is not, or the link is cut.
    Lost,
}

/// What a log keeps for durable nodes until their processes take it.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    inboxes: BTreeMap<String, Inbox>,
    /// The durable nodes of other processes, with the documents that stand for those.
    owners: BTreeMap<Arc<str>, Key>,
    /// The processes that have said that they go.
    gone: BTreeSet<Key>,
}

#[derive(Debug, Clone, Copy)]
struct Inbox {
    len: u64,
    first: EventId,
}

/// What is known from look to look.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    /// Up to which number each ring was read.
    read: Vec<u64>,
    /// The nodes beyond the link, as they were last heard of.
    elsewhere: BTreeMap<Arc<str>, Heard>,
    /// What the log was last known to keep.
    kept: Kept,
}

#[derive(Debug, Clone, Default)]
struct Heard {
    members: BTreeSet<String>,
    has_left: bool,
}

/// Reads what is kept in a log for durable nodes, and who has said that it goes.
///
/// # Errors
///
/// What the store says.
pub(super) async fn kept(store: &dyn Store, owners: &[(Arc<str>, Key)]) -> Result<Kept> {
    let mut kept = Kept { owners: owners.iter().cloned().collect(), ..Kept::default() };
    let processes: BTreeSet<&Key> = owners.iter().map(|(_, process)| process).collect();
    let processes: Vec<Key> = processes.into_iter().cloned().collect();
    for some in processes.chunks(happen_core::limits::PAGE_RECORDS_MAX) {
        for (key, found) in some.iter().zip(store.documents(some.to_vec()).await?) {
            if found.is_none_or(|document| document.content.is_none()) {
                kept.gone.insert(Arc::clone(key));
            }
        }
    }
    kept.inboxes = inboxes(store).await?;
    Ok(kept)
}

/// The inboxes, each counted up to a limit.
async fn inboxes(store: &dyn Store) -> Result<BTreeMap<String, Inbox>> {
    let documents_max = limits::BALANCE_INBOX_MAX;
    let mut inboxes: BTreeMap<String, Inbox> = BTreeMap::new();
    let mut after: Option<Key> = None;
    while inboxes.len() <= limits::BALANCE_NODES_MAX {
        let page = store.list(List { prefix: INBOX.into(), after, documents_max }).await?;
        let Some(last) = page.last() else { break };
        for document in page.iter().filter(|document| document.content.is_some()) {
            let Some((part, event)) = parts(&document.key) else { continue };
            let Ok(event) = event.parse() else { continue };
            inboxes.entry(plain(part).into_owned()).or_insert(Inbox { len: 0, first: event }).len += 1;
        }
        let is_counted =
            |part: &str| inboxes.get(&*plain(part)).is_some_and(|inbox| inbox.len >= documents_max as u64);
        after = Some(match parts(&last.key).filter(|(part, _)| is_counted(part)) {
            // `0` comes behind `/`, so this is behind all that is kept for the node.
            Some((part, _)) => format!("{INBOX}{part}0").into(),
            None => Arc::clone(&last.key),
        });
    }
    for inbox in inboxes.values_mut() {
        inbox.len = inbox.len.min(documents_max as u64);
    }
    Ok(inboxes)
}

fn parts(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(INBOX)?.split_once('/')
}

/// What a store knows of nodes that no process has.
pub(super) async fn stored(store: &Arc<dyn Store>, now_unix_ms: u64) -> Result<Vec<NodeBalance>> {
    let mut nodes: BTreeMap<String, NodeBalance> = BTreeMap::new();
    let mut after: Option<Key> = None;
    loop {
        let documents_max = happen_core::limits::PAGE_RECORDS_MAX;
        let page = store.list(List { prefix: FLOWS.into(), after, documents_max }).await?;
        let Some(last) = page.last() else { break };
        after = Some(Arc::clone(&last.key));
        for name in page.iter().filter_map(|document| FlowKey::of(&document.key, FLOWS)) {
            nodes.entry(name.node.into_owned()).or_default().flows += 1;
        }
    }
    for (node, inbox) in inboxes(&**store).await? {
        let figures = nodes.entry(node).or_default();
        figures.inbox = inbox.len;
        figures.oldest_ms = Some(now_unix_ms.saturating_sub(inbox.first.unix_ms()));
    }
    if store.is_shared() {
        for owner in beside::owners_in(store).await? {
            let figures = nodes.entry(owner.node).or_default();
            figures.is_taken = !owner.has_gone;
            figures.processes = vec![owner.process];
        }
    }
    let named = |(node, figures)| NodeBalance { node, place: NodePlace::Elsewhere, ..figures };
    Ok(nodes.into_iter().map(named).collect())
}

impl Sampler {
    /// Looks at all nodes, and at what they did since the look before. `kept` is what the log keeps, unless it could not be
    /// asked; `left` are members of the link that have said that they go.
    pub(super) fn look(
        &mut self,
        space: &SpaceInner,
        kept: Option<Kept>,
        (left, is_cut): (&BTreeSet<String>, bool),
    ) -> Vec<Seen> {
        let is_known = kept.is_some();
        let kept = kept.unwrap_or_else(|| std::mem::take(&mut self.kept));
        let handled = self.handled(space);
        let mut nodes = self.nodes(space, kept, (left, is_cut));
        for (key, seen) in &mut nodes {
            seen.handled = key.and_then(|key| handled.get(&key)).copied().unwrap_or_default();
            if !is_known {
                // That an event is still there is not seen.
                seen.head = None;
            }
        }
        nodes.truncate(limits::BALANCE_NODES_MAX);
        nodes.into_iter().map(|(_, seen)| seen).collect()
    }

    /// All nodes as they are now: those of this space by id, with their keys, and then those elsewhere.
    pub(super) fn nodes(
        &mut self,
        space: &SpaceInner,
        kept: Kept,
        (left, is_cut): (&BTreeSet<String>, bool),
    ) -> Vec<(Option<NodeKey>, Seen)> {
        self.kept = kept;
        let peers = self.hear(space, left);
        let mut nodes = here(space, &self.kept);
        let ids: BTreeSet<String> = nodes.iter().map(|(_, seen)| seen.figures.node.clone()).collect();
        let owners = &self.kept.owners;
        self.elsewhere.retain(|node, heard| {
            // Who has said goodbye and has nothing in the log is missed by nobody.
            !ids.contains(&**node) && (!heard.has_left || owners.contains_key(node))
        });
        let owned = owners.keys().filter(|node| !ids.contains(&***node));
        let others: BTreeSet<Arc<str>> = self.elsewhere.keys().chain(owned).cloned().collect();
        let others =
            others.iter().map(|node| (None, self.elsewhere(space, node, (peers.contains(&**node), is_cut))));
        nodes.extend(others);
        nodes
    }

    /// A node of another process.
    fn elsewhere(&self, space: &SpaceInner, node: &Arc<str>, (is_heard, is_cut): (bool, bool)) -> Seen {
        let mut seen = Seen::default();
        let (heard, kept) = (self.elsewhere.get(node), &self.kept);
        let owner = kept.owners.get(node);
        let options = space.config.options_for(node);
        let mut processes: Vec<String> =
            heard.map(|heard| heard.members.iter().cloned().collect()).unwrap_or_default();
        if let Some(owner) = owner.filter(|_| processes.is_empty()) {
            processes.push(name_of(owner, PROCESSES).into_owned());
        }
        let has_left =
            heard.is_some_and(|heard| heard.has_left) || owner.is_some_and(|owner| kept.gone.contains(owner));
        seen.presence = match heard {
            _ if is_heard && !is_cut => Presence::There,
            _ if has_left => Presence::Left,
            Some(_) => Presence::Lost,
            None => Presence::Unknown,
        };
        seen.figures = NodeBalance {
            node: node.to_string(),
            place: NodePlace::Elsewhere,
            processes,
            queue_limit: options.queue_limit as u64,
            lag_max: options.lag_max as u64,
            is_taken: seen.presence == Presence::There || seen.presence == Presence::Unknown,
            ..NodeBalance::default()
        };
        add_inbox(&mut seen, kept, space.env.unix_ms());
        seen
    }

    /// How many events each node handled since the look before, by what the rings remember.
    fn handled(&mut self, space: &SpaceInner) -> HashMap<NodeKey, f64> {
        let mut handled = HashMap::new();
        let rings = space.rings();
        self.read.resize(rings.len(), 0);
        for (ring, read) in rings.iter().zip(&mut self.read) {
            let mut counts: HashMap<NodeKey, u64> = HashMap::new();
            let (last, shown) = ring.since(*read, |header| {
                let (node, what) = match *header {
                    Header::Sent { to, what, .. } => (to, what),
                    Header::Handled { node, what, .. } => (node, what),
                    _ => return,
                };
                if node != NodeKey(0) && web::is_handled(what) {
                    *counts.entry(node).or_default() += 1;
                }
            });
            let written = last.saturating_sub(std::mem::replace(read, last));
            // Those that were overwritten meanwhile were like those that are left.
            let share = if shown > 0 { written as f64 / shown as f64 } else { 0.0 };
            for (node, count) in counts {
                *handled.entry(node).or_default() += count as f64 * share;
            }
        }
        handled
    }

    /// Notes who is beyond the link, and who has left it. Gives the nodes that are there.
    fn hear(&mut self, space: &SpaceInner, left: &BTreeSet<String>) -> BTreeSet<String> {
        let peers = space.link.get().map(|linked| linked.link.peers()).unwrap_or_default();
        let members: BTreeSet<String> = peers.iter().map(|peer| peer.name.clone()).collect();
        let mut now: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for peer in peers {
            for node in peer.nodes.into_iter().filter(|node| !node.id.starts_with(RESERVED)) {
                now.entry(node.id).or_default().insert(peer.name.clone());
            }
        }
        let there: BTreeSet<String> = now.keys().cloned().collect();
        for (_, heard) in self.elsewhere.iter_mut().filter(|(node, _)| !there.contains(&***node)) {
            // One whose member is there without it was destroyed.
            heard.has_left |=
                heard.members.iter().any(|member| left.contains(member) || members.contains(member));
        }
        for (node, members) in now {
            if self.elsewhere.len() >= limits::BALANCE_NODES_MAX && !self.elsewhere.contains_key(&*node) {
                continue;
            }
            self.elsewhere.insert(node.into(), Heard { members, has_left: false });
        }
        there
    }
}

/// The nodes of this space as they are now, by id; not those of the runtime.
fn here(space: &SpaceInner, kept: &Kept) -> Vec<(Option<NodeKey>, Seen)> {
    let now_unix_ms = space.env.unix_ms();
    let flows = space.durable.as_ref().map(|durable| durable.flows_by_node()).unwrap_or_default();
    let mut nodes = space.all_nodes();
    nodes.retain(|node| !node.name.starts_with(RESERVED));
    nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let seen = |node: Arc<NodeInner>| {
        let figures = node.figures();
        let figures = NodeBalance {
            node: node.name.to_string(),
            waiting: figures.waiting as u64,
            oldest_ms: figures.oldest_unix_ms.map(|sent| now_unix_ms.saturating_sub(sent)),
            active: figures.active,
            places: figures.places,
            queue_limit: figures.queue_limit as u64,
            lag_max: figures.lag_max as u64,
            flows: flows.get(&node.key).copied().unwrap_or_default(),
            held_back: figures.held_back as u64,
            is_taken: figures.takes,
            refused: figures.refused,
            failed: figures.failed,
            retried: figures.retried,
            ..NodeBalance::default()
        };
        let mut seen = Seen { figures, ..Seen::default() };
        add_inbox(&mut seen, kept, now_unix_ms);
        (Some(node.key), seen)
    };
    nodes.into_iter().map(seen).collect()
}

fn add_inbox(seen: &mut Seen, kept: &Kept, now_unix_ms: u64) {
    let Some(inbox) = kept.inboxes.get(&seen.figures.node) else { return };
    seen.figures.inbox = inbox.len;
    seen.head = Some(inbox.first);
    let oldest_ms = now_unix_ms.saturating_sub(inbox.first.unix_ms());
    seen.figures.oldest_ms = Some(seen.figures.oldest_ms.unwrap_or_default().max(oldest_ms));
}
