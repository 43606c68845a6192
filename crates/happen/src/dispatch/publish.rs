//! Bringing one event to everyone who listens. Owns what is known beforehand of a listener, so that most of them cost no
//! look into their node's table.

use std::sync::Arc;

use happen_core::{Envelope, ErasedEvent, ErrorKind, EventId, EventType, Value};
use tokio::sync::broadcast;

use super::queue::Permit;
use super::{Delivered, Flow, Reply, Want, deliver, go_on, run_flow, what};
use crate::encoded::Scope;
use crate::lent::Way;
use crate::local;
use crate::node::NodeInner;
use crate::table::Entry;
use crate::web;

/// A node that listens to a type.
pub(crate) struct Listener {
    node: Arc<NodeInner>,
    straight: Option<Straight>,
}

/// The only registration of a node for a type, when nothing stands before it: no acceptance, no hook, no lane, no guard,
/// no store. In force as long as the node has the table it had.
struct Straight {
    entry: Arc<Entry>,
    version: u32,
    max_concurrent: u32,
}

impl Listener {
    pub(crate) fn new(node: Arc<NodeInner>, event_type: &EventType) -> Self {
        // Before the table: a change in between makes what is known here old, not wrong.
        let version = node.table.version();
        let table = node.table.load();
        let mut uncached = None;
        let only = table.route(event_type, &mut uncached).only(false).filter(|entry| entry.plain);
        let straight = only.filter(|_| table.is_straight() && node.is_plain()).map(|entry| Straight {
            entry: Arc::clone(entry),
            version,
            max_concurrent: table.max_concurrent(),
        });
        Self { node, straight }
    }

    pub(crate) const fn node(&self) -> &Arc<NodeInner> {
        &self.node
    }

    /// Whether the node has changed since.
    fn is_old(&self) -> bool {
        self.straight.as_ref().is_some_and(|straight| straight.version != self.node.table.version())
    }

    /// Runs the registration at once, when nothing stands before it; gives what became of the event. Nothing when the
    /// event has to go the whole way.
    #[inline(always)]
    fn run_straight(&self, way: &mut Way<'_>, event: &dyn ErasedEvent, envelope: &Envelope) -> Option<u8> {
        let (node, straight) = (&self.node, self.straight.as_ref()?);
        let entry = &straight.entry;
        if straight.version != node.table.version()
            || envelope.deadline_unix_ms != 0
            || !node.space.is_running()
            || entry.slow.is_slow()
            || !node.space.inline_is_uncounted(straight.max_concurrent, &node.gate)
        {
            return None;
        }
        let _depth = local::deeper()?;
        let mut outcome = Ok(None);
        match run_flow(node, None, way, entry, (event, false), (Want::default(), None), &mut outcome) {
            Flow::Ended => Some(what(&outcome)),
            flow => {
                let place = Permit::uncounted(node).into_place();
                go_on(node, &node.table.load(), entry, event, flow, Reply::Nobody, place);
                Some(web::WAITING)
            }
        }
    }
}

/// Out of the way of those that are plain.
#[cold]
fn gather(aside: &mut Vec<Arc<NodeInner>>, node: &Arc<NodeInner>) {
    aside.push(Arc::clone(node));
}

/// Brings an event to everyone who listens; gathers durable nodes, for the store comes first there, and those that share
/// their work, for others may take it. What becomes of it is remembered for each listener. True when what is known of a
/// listener is old.
pub(crate) fn publish(
    listeners: &[Listener],
    event: &dyn ErasedEvent,
    id: EventId,
    source: Option<&broadcast::Sender<Value>>,
    aside: &mut Vec<Arc<NodeInner>>,
) -> bool {
    let Some(first) = listeners.first() else { return false };
    let _encoded = Scope::open(&first.node.space, event);
    let mut way = first.node.space.way();
    let envelope = event.envelope();
    let straight = source.is_none() && !event.is_batch();
    local::ran(u32::try_from(listeners.len()).unwrap_or(u32::MAX));
    let mut old = false;
    // What happens meanwhile on this thread is written to the same ring, one after the other.
    let ring = local::with_local(&first.node.space, |local| Arc::clone(&local.ring));
    for listener in listeners {
        let node = &listener.node;
        if straight && let Some(what) = listener.run_straight(&mut way, event, envelope) {
            ring.handled(id, node.key, what);
            continue;
        }
        if !node.is_plain() {
            gather(aside, node);
            continue;
        }
        old |= listener.is_old();
        bring_to(node, &mut way, event, id, source);
    }
    old
}

/// Brings an event that everyone hears to one node.
pub(crate) fn bring_to(
    node: &Arc<NodeInner>,
    way: &mut Way<'_>,
    event: &dyn ErasedEvent,
    id: EventId,
    source: Option<&broadcast::Sender<Value>>,
) {
    let mut outcome = Ok(None);
    let want = Want::plain(false);
    let want = match source {
        None => want,
        Some(source) => want.items_of(source.subscribe()),
    };
    match deliver(node, way, event, want, &mut outcome) {
        Ok(Delivered::Now) => node.space.settled(event, node.key, &outcome),
        Ok(Delivered::Later(_)) => node.space.remember(id, node.key, web::WAITING),
        // Every guard of the node said no, or it stopped listening since the list was made.
        Err(error) if matches!(error.kind(), ErrorKind::NoHandler { .. }) => {}
        Err(error) => {
            node.space.remember(id, node.key, web::failed(error.code()));
            let error = error.at_event(id).at_node(&node.name);
            node.space.undelivered(event, &node.name, error, Reply::Nobody);
        }
    }
}
