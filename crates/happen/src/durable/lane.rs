//! Which flows of a durable node run, and which wait for a place: as many as its options allow, or one at a time, or one
//! for each key. Those that wait are in the store already, so none is ever lost here.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use happen_core::{Error, ErrorKind, Result};

use super::flow::StoredFlow;
use super::hold::Held;
use crate::config::QueueOrder;
use crate::dispatch::priority_of;
use crate::node::NodeInner;
use crate::sync::{Mutex, lock};
use crate::table::{Lane, Phase, Table};

/// The lanes of one node: one, or one for each key.
#[derive(Default)]
pub(crate) struct Lanes {
    lanes: Mutex<HashMap<Option<u64>, Places>>,
    /// What is held back before it enters one.
    pub(super) held: Held,
    /// Flows that will enter once they are committed.
    coming: AtomicUsize,
}

/// Room that is kept for a flow until it is committed and enters.
pub(crate) struct Coming(Arc<NodeInner>);

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.lanes().coming.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What the lanes of a node have to do at this moment.
pub(crate) struct LaneFigures {
    pub(crate) running: u32,
    pub(crate) waiting: usize,
    pub(crate) held_back: usize,
    /// When the event was sent that waits longest.
    pub(crate) oldest_unix_ms: Option<u64>,
}

#[derive(Default)]
struct Places {
    running: u32,
    waiting: VecDeque<Arc<StoredFlow>>,
}

/// A flow's place among those that run.
pub(super) struct Place {
    flow: Arc<StoredFlow>,
    held: AtomicBool,
}

impl Lanes {
    /// Lets a flow run, or wait until it may and there is room.
    pub(super) fn enter(flow: &Arc<StoredFlow>) {
        match flow.due_unix_ms() {
            0 => Self::begin(flow),
            due => {
                let before = flow.node.lanes().held.hold(flow, due);
                if let Some(before) = before {
                    before.give_way(flow.event.envelope().id);
                }
            }
        }
    }

    /// Lets a flow begin that was held back.
    pub(super) fn due(flow: &Arc<StoredFlow>) {
        flow.node.lanes().held.release(flow);
        Self::begin(flow);
    }

    fn begin(flow: &Arc<StoredFlow>) {
        flow.hold.begins();
        let node = Arc::clone(&flow.node);
        let lane = flow.lane;
        if !Self::stand_in_line(flow) {
            return;
        }
        Self::fill(&node, lane);
        let waits = lock(&node.lanes().lanes)
            .get(&lane)
            .is_some_and(|places| places.waiting.iter().any(|waiting| Arc::ptr_eq(waiting, flow)));
        if waits {
            flow.store_meanwhile();
        }
    }

    /// Lets flows in of which the first to run is chosen when all of them stand in line.
    pub(super) fn enter_all(flows: Vec<Arc<StoredFlow>>) {
        let (flows, held): (Vec<_>, Vec<_>) = flows.into_iter().partition(|flow| flow.due_unix_ms() == 0);
        held.iter().for_each(Self::enter);
        let begins = |flow: &Arc<StoredFlow>| {
            flow.hold.begins();
            Self::stand_in_line(flow)
        };
        let flows: Vec<_> = flows.into_iter().filter(begins).collect();
        flows.iter().for_each(|flow| Self::fill(&flow.node, flow.lane));
    }

    /// Puts a flow in line; not where the node or the space has ended meanwhile and takes off who stands there.
    fn stand_in_line(flow: &Arc<StoredFlow>) -> bool {
        lock(&flow.progress).due_unix_ms = 0;
        let mut lanes = lock(&flow.node.lanes().lanes);
        // Under the lock, so that whoever clears the line finds it or comes before.
        if flow.durable().is_stopping() || flow.is_left() {
            drop(lanes);
            flow.durable().ended(flow);
            flow.let_go();
            return false;
        }
        flow.node.space.flow_began();
        lanes.entry(flow.lane).or_default().waiting.push_back(Arc::clone(flow));
        true
    }

    /// The place of a flow that was let in.
    pub(super) fn entered(flow: &Arc<StoredFlow>) -> Arc<Place> {
        let place = Arc::new(Place { flow: Arc::clone(flow), held: AtomicBool::new(true) });
        flow.durable().note_place(flow, &place);
        place
    }

    /// Starts flows that wait, as far as there is room for them.
    fn fill(node: &Arc<NodeInner>, lane: Option<u64>) {
        loop {
            let table = node.table.load();
            let next = {
                let mut lanes = lock(&node.lanes().lanes);
                let Some(places) = lanes.get_mut(&lane) else { return };
                let stopping = node.space.durable.as_ref().is_none_or(|durable| durable.is_stopping());
                if stopping || places.running >= room(&table, lane) {
                    return;
                }
                match places.next(table.options.queue_order) {
                    Some(next) => {
                        places.running += 1;
                        next
                    }
                    None => {
                        if places.running == 0 {
                            lanes.remove(&lane);
                        }
                        return;
                    }
                }
            };
            node.space.env.spawn(Box::pin(next.drive()));
        }
    }

    /// Starts what waits, after the node was stopped or held.
    pub(crate) fn wake(node: &Arc<NodeInner>) {
        let mut lanes: Vec<_> = lock(&node.lanes().lanes).keys().copied().collect();
        lanes.sort_unstable();
        for lane in lanes {
            Self::fill(node, lane);
        }
    }

    /// Takes off all that wait: they are in the store, and a later space goes on with them.
    pub(super) fn clear(node: &NodeInner) {
        let waiting: Vec<_> = {
            let mut lanes = lock(&node.lanes().lanes);
            let mut all: Vec<_> = lanes.iter_mut().collect();
            all.sort_unstable_by_key(|(lane, _)| **lane);
            all.into_iter().flat_map(|(_, places)| std::mem::take(&mut places.waiting)).collect()
        };
        for flow in waiting {
            flow.durable().ended(&flow);
            flow.let_go();
            node.space.flow_ended();
        }
        if let Some(durable) = &node.space.durable {
            node.lanes().held.clear(durable);
        }
    }

    /// How many further flows without a key could run at once.
    fn free(&self, table: &Table) -> usize {
        let lanes = lock(&self.lanes);
        let running = lanes.get(&None).map_or(0, |places| places.running);
        match table.lane {
            Lane::Concurrent => room(table, None).saturating_sub(running) as usize,
            Lane::ByKey(..) => 0,
        }
    }

    /// The number of flows that wait.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.lanes).values().map(|places| places.waiting.len()).sum()
    }

    /// What they have to do at this moment.
    #[cold]
    pub(crate) fn figures(&self, order: QueueOrder) -> LaneFigures {
        let sent = |flow: &Arc<StoredFlow>| flow.event.envelope().at_unix_ms;
        // Whatever is started first, it comes in at the end.
        let oldest = |places: &Places| match order {
            QueueOrder::Fifo | QueueOrder::Lifo => places.waiting.front().map(sent),
            QueueOrder::Priority => places.waiting.iter().map(sent).min(),
        };
        let held_back = self.held.len();
        let lanes = lock(&self.lanes);
        LaneFigures {
            running: lanes.values().map(|places| places.running).sum(),
            waiting: lanes.values().map(|places| places.waiting.len()).sum(),
            held_back,
            oldest_unix_ms: lanes.values().filter_map(oldest).min(),
        }
    }

    /// The number of flows that run or wait.
    pub(crate) fn load(&self) -> usize {
        lock(&self.lanes).values().map(|places| places.running as usize + places.waiting.len()).sum()
    }

    /// The key of the serial gate that a flow is in.
    pub(super) fn serial_key(flow: &StoredFlow) -> Option<u64> {
        flow.node.table.load().is_serial(flow.lane).then(|| flow.lane.unwrap_or(0))
    }
}

/// Keeps room for a further event, or refuses it when too many wait.
///
/// # Errors
///
/// [`ErrorKind::Busy`].
pub(crate) fn check_room(node: &Arc<NodeInner>, table: &Table) -> Result<Coming> {
    let lanes = node.lanes();
    // Counted first: of two that come at once, one sees the other.
    let before = lanes.coming.fetch_add(1, Ordering::SeqCst);
    let coming = Coming(Arc::clone(node));
    let held_back = lanes.held.len();
    let (waiting, limit) = (lanes.waiting() + held_back + before, table.options.queue_limit);
    node.space.note_pressure(node, waiting, limit);
    // Where others are held back, a place that is free says nothing.
    let free = if held_back == 0 { lanes.free(table) } else { 0 };
    if waiting >= limit.saturating_add(free) {
        node.note_refused();
        let what = format!("queue of node `{}` ({limit} events)", node.name);
        return Err(Error::new(ErrorKind::Busy { what }).at_node(&node.name));
    }
    Ok(coming)
}

fn room(table: &Table, lane: Option<u64>) -> u32 {
    if table.phase != Phase::Open {
        return 0;
    }
    match (&table.lane, lane) {
        (Lane::ByKey(..), Some(_)) => table.max_by_key(),
        _ => table.max_concurrent(),
    }
}

impl Places {
    fn next(&mut self, order: QueueOrder) -> Option<Arc<StoredFlow>> {
        match order {
            QueueOrder::Fifo => self.waiting.pop_front(),
            QueueOrder::Lifo => self.waiting.pop_back(),
            QueueOrder::Priority => {
                // The first of the highest: a later one has to be higher.
                let priority = |flow: &Arc<StoredFlow>| priority_of(flow.event.envelope());
                let best = self.waiting.iter().map(priority).max()?;
                let at = self.waiting.iter().position(|flow| priority(flow) == best)?;
                self.waiting.remove(at)
            }
        }
    }
}

impl Place {
    /// Gives the place to others while the flow waits, unless only one at a time has it.
    pub(super) fn release(&self) {
        if Lanes::serial_key(&self.flow).is_none() && self.held.swap(false, Ordering::SeqCst) {
            self.give_back();
        }
    }

    /// Takes the place again, even beyond the limit: a flow under way is never made to wait behind newer ones.
    pub(super) fn retake(&self) {
        if !self.held.swap(true, Ordering::SeqCst) {
            lock(&self.flow.node.lanes().lanes).entry(self.flow.lane).or_default().running += 1;
        }
    }

    fn give_back(&self) {
        if let Some(places) = lock(&self.flow.node.lanes().lanes).get_mut(&self.flow.lane) {
            places.running = places.running.saturating_sub(1);
        }
        Lanes::fill(&self.flow.node, self.flow.lane);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if *self.held.get_mut() {
            self.give_back();
        }
    }
}
