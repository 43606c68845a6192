//! What makes nodes durable: flows that the store remembers step by step. Owns what a space with a store has beside the
//! others: its flows under way, its documents, its commits, and who waits for what.
//!
//! A step of a durable node has no effect while it runs. What it sends, sets and keeps is staged (`stage.rs`) and
//! committed at its end as one batch (`record.rs`), in the order in which batches were built (`commit.rs`). So a crash
//! leaves either all of a step or nothing, and whoever starts the space again finds each flow at its first step that was
//! not committed (`recover.rs`).

mod accept;
mod agenda;
pub(crate) mod beside;
pub(crate) mod by_hand;
mod commit;
mod courier;
mod hold;
pub(crate) mod imported;
pub(crate) mod cron;
mod document;
mod flow;
pub(crate) mod keys;
mod lane;
pub(crate) mod outbox;
mod outside;
pub(crate) mod owners;
mod point;
mod record;
mod recover;
mod retention;
pub(crate) mod schedule;
mod seen;
mod stage;
mod taken;
pub(crate) mod timer;
mod wait;
mod whole;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use happen_core::env::{BoxFuture, Env};
use happen_core::store::{Key, Read, Select, Store, Tag};
use happen_core::{Error, ErrorKind, EventId, NodeKey, Result};
use tokio::sync::{Notify, oneshot};

use crate::flow::Outcome;
use crate::limits;
use crate::node::NodeInner;
use crate::space::SpaceInner;
use crate::sync::{Mutex, lock};
use commit::{Commits, Ticket};
use lane::Place;
use outbox::Outboxes;
use owners::Owners;
use record::Done;
use wait::Waiters;

pub(crate) use accept::{Spread, deliver, publish};
use agenda::Agenda;
pub(crate) use document::{Change, Document, Documents, Staging};
pub(crate) use flow::StoredFlow;
pub(crate) use hold::{Control, Debounce, Rate};
pub(crate) use lane::{Coming, Lanes, check_room};
pub(crate) use outbox::Reserved;
pub(crate) use outside::commit as commit_outside;
pub(crate) use point::{ask, once, sleep};
pub(crate) use seen::Keyed;
use seen::Keys;
pub(crate) use stage::{Stage, Whereto};
pub(crate) use taken::{NotTaken, TakingIn, outcome, take_in};
pub(crate) use timer::{
    StoredTimer, cancel as cancel_timer, cancel_staged as cancel_timer_staged, key_of as timer_key,
    list as timers, set as set_timer, stage as stage_timer, whereto,
};
pub(crate) use wait::wait_for;

/// The durable part of a space.
pub(crate) struct Durable {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) commits: Arc<Commits>,
    pub(crate) documents: Documents,
    agenda: Arc<Agenda>,
    keys: Keys,
    /// What waits for nodes of other processes.
    pub(crate) outboxes: Outboxes,
    /// Tells the ids of this space from those of others, whatever its nodes are called.
    identity: OnceLock<[u8; 16]>,
    live: Mutex<HashMap<EventId, Vec<Live>>>,
    stopping: AtomicBool,
    /// Whether the flows of the last process have their places.
    resumed: AtomicBool,
    /// Tells the flows of the last process that the space has started, or never will.
    started: Notify,
    /// Flows that wait at a point of a step: they can be left there.
    at_points: AtomicUsize,
    pub(crate) waiters: Waiters,
    troubled: AtomicBool,
    /// Prunings wait for each other.
    pruning: tokio::sync::Mutex<()>,
    /// The store as its owner knows it, when it was opened with the space.
    owned: Option<OwnedStore>,
    /// Who else writes the log, where others do.
    owners: Option<Owners>,
}

/// What a space that has opened its store itself can do with it beyond the seam.
pub(crate) struct OwnedStore {
    pub(crate) close: Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
    /// The bytes that the store takes.
    pub(crate) bytes: Box<dyn Fn() -> BoxFuture<'static, Result<u64>> + Send + Sync>,
}

/// A flow under way, with its place once it runs.
struct Live {
    flow: Arc<StoredFlow>,
    place: Weak<Place>,
}

/// Who is told what of an event from outside.
enum Told {
    Outcome(oneshot::Sender<Outcome>),
    Stored(oneshot::Sender<Outcome>),
    Nobody,
}

/// Counts a flow that waits at a point.
pub(crate) struct AtPoint<'d>(&'d Durable);

/// A flow that waits for a time and counts as none meanwhile.
pub(crate) struct Parked {
    space: Arc<SpaceInner>,
    place: Option<Arc<Place>>,
}

/// The durable part of a space, for what only that can remember.
///
/// # Errors
///
/// [`ErrorKind::Misuse`] in a space in memory.
pub(crate) fn of(space: &SpaceInner) -> Result<&Arc<Durable>> {
    space.durable.as_ref().ok_or_else(|| {
        Error::misuse(
            "a space in memory remembers no timers and no schedules; open one with `Space::open` or \
             `Space::with_store`, or wait with `cx.sleep`",
        )
    })
}

impl Durable {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        env: &Arc<dyn Env>,
        revisions_max: u32,
        owned: Option<OwnedStore>,
    ) -> Arc<Self> {
        let owners = Owners::over(&*store, &**env);
        Arc::new(Self {
            commits: Commits::new(Arc::clone(&store), Arc::clone(env)),
            documents: Documents::new(Arc::clone(&store), revisions_max),
            agenda: Arc::default(),
            keys: Keys::default(),
            outboxes: Outboxes::default(),
            store,
            identity: OnceLock::new(),
            live: Mutex::default(),
            stopping: AtomicBool::new(false),
            resumed: AtomicBool::new(false),
            started: Notify::new(),
            at_points: AtomicUsize::new(0),
            waiters: Waiters::default(),
            troubled: AtomicBool::new(false),
            pruning: tokio::sync::Mutex::new(()),
            owned,
            owners,
        })
    }

    fn identity(&self) -> [u8; 16] {
        self.identity.get().copied().unwrap_or_default()
    }

    /// Lists a flow, so that it is found by its event.
    fn begun(&self, flow: &Arc<StoredFlow>) {
        let live = Live { flow: Arc::clone(flow), place: Weak::new() };
        lock(&self.live).entry(flow.event.envelope().id).or_default().push(live);
    }

    fn note_place(&self, flow: &Arc<StoredFlow>, place: &Arc<Place>) {
        let mut live = lock(&self.live);
        let same = |live: &&mut Live| Arc::ptr_eq(&live.flow, flow);
        let found = live.get_mut(&flow.event.envelope().id).and_then(|flows| flows.iter_mut().find(same));
        if let Some(live) = found {
            live.place = Arc::downgrade(place);
        }
    }

    fn place_of(&self, flow: &Arc<StoredFlow>) -> Option<Arc<Place>> {
        let live = lock(&self.live);
        let flows = live.get(&flow.event.envelope().id)?;
        flows.iter().find(|live| Arc::ptr_eq(&live.flow, flow))?.place.upgrade()
    }

    /// Takes a flow off the list.
    fn ended(&self, flow: &Arc<StoredFlow>) {
        let mut live = lock(&self.live);
        let id = flow.event.envelope().id;
        let Some(flows) = live.get_mut(&id) else { return };
        flows.retain(|live| !Arc::ptr_eq(&live.flow, flow));
        if flows.is_empty() {
            live.remove(&id);
        }
    }

    /// Takes flows off the list whose commit did not happen.
    fn forget(&self, done: &Done) {
        done.begun.iter().for_each(|flow| self.ended(flow));
    }

    /// The flows under way for an event.
    pub(crate) fn flows_of(&self, event: EventId) -> Vec<Arc<StoredFlow>> {
        lock(&self.live)
            .get(&event)
            .map_or_else(Vec::new, |flows| flows.iter().map(|live| Arc::clone(&live.flow)).collect())
    }

    /// The number of flows under way.
    pub(crate) fn flows_len(&self) -> usize {
        lock(&self.live).values().map(Vec::len).sum()
    }

    /// Waits until no pruning is under way, and keeps others from beginning.
    pub(crate) async fn one_pruning(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.pruning.lock().await
    }

    /// The numbers of flows under way, by node.
    pub(crate) fn flows_by_node(&self) -> HashMap<NodeKey, u64> {
        let mut flows = HashMap::new();
        for live in lock(&self.live).values().flatten() {
            *flows.entry(live.flow.node.key).or_default() += 1;
        }
        flows
    }

    /// The flows under way at a node.
    pub(crate) fn flows_at(&self, node: &NodeInner) -> Vec<Arc<StoredFlow>> {
        let live = lock(&self.live);
        let all = live.values().flatten().filter(|live| live.flow.node.key == node.key);
        in_order(all.map(|live| Arc::clone(&live.flow)).collect())
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The flows that can be left where they are: those that wait at a point, and those that are stored and wait for their
    /// turn.
    pub(crate) fn can_be_left(&self) -> usize {
        let live = lock(&self.live);
        let waiting = live
            .values()
            .flatten()
            .filter(|live| live.place.strong_count() == 0 && live.flow.waits_its_turn());
        self.at_points.load(Ordering::SeqCst) + waiting.count()
    }

    fn at_point(&self) -> AtPoint<'_> {
        self.at_points.fetch_add(1, Ordering::SeqCst);
        AtPoint(self)
    }

    /// Lets a flow count as none while it waits for a time: it holds up neither its node nor the end of the space.
    fn parked(&self, flow: &Arc<StoredFlow>) -> Parked {
        let place = self.place_of(flow);
        if let Some(place) = &place {
            place.release();
        }
        flow.node.space.flow_ended();
        Parked { space: Arc::clone(&flow.node.space), place }
    }

    /// Has every flow leave its step: it goes on when the space is started again.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.agenda.end();
        self.started.notify_waiters();
        let live: Vec<_> = lock(&self.live).values().flatten().map(|live| Arc::clone(&live.flow)).collect();
        in_order(live).into_iter().for_each(|flow| flow.interrupt());
    }

    /// Waits until the space has started, or has ended instead.
    async fn until_started(&self, space: &SpaceInner) {
        // Made first, so that it hears what happens after the look.
        let started = self.started.notified();
        if space.is_building() {
            started.await;
        }
    }

    /// Takes off what waits for a place.
    pub(crate) fn leave(&self, node: &NodeInner) {
        Lanes::clear(node);
        for flow in self.flows_at(node) {
            flow.interrupt();
        }
    }

    /// Gives up the nodes, and closes the store when it belongs to the space.
    pub(crate) async fn close(&self) {
        self.resign().await;
        if let Some(owned) = &self.owned {
            (owned.close)().await;
        }
    }

    /// Tells once that the store does not take what is committed, and that it does again.
    fn store_failed(&self, space: &Arc<SpaceInner>, error: &Error) {
        if !self.troubled.swap(true, Ordering::SeqCst) {
            tracing::error!(target: "happen", code = error.code(), "the store does not take a commit: {error}");
            let told = serde_json::json!({ "code": error.code(), "reason": error.chain().join(": ") });
            space.announce("system.store-failed", told);
        }
    }

    fn store_took(&self, space: &Arc<SpaceInner>) {
        if self.troubled.load(Ordering::Relaxed) && self.troubled.swap(false, Ordering::SeqCst) {
            space.announce("system.store-recovered", serde_json::json!({}));
        }
    }

    /// Finds out by looking into the store, however long it does not answer, unless the space ends.
    ///
    /// # Errors
    ///
    /// What the store says, when it is closed or the space ends.
    async fn found_out<'l>(
        &self,
        space: &SpaceInner,
        look: impl Fn() -> BoxFuture<'l, Result<bool>>,
    ) -> Result<bool> {
        let mut wait = limits::STORE_WAIT_MS;
        loop {
            match look().await {
                Err(error) if !self.is_stopping() && !matches!(error.kind(), ErrorKind::Closed { .. }) => {
                    tracing::warn!(target: "happen", code = error.code(), "the store does not answer: {error}");
                    space.env.sleep(Duration::from_millis(wait)).await;
                    wait = (wait * 2).min(limits::STORE_WAIT_MS_MAX);
                }
                found => return found,
            }
        }
    }

    /// Waits for a batch that has the first record of an event. A store that fails may have taken it all the same,
    /// which the log tells.
    ///
    /// # Errors
    ///
    /// As [`Store::commit`], when the log does not have the event or cannot be asked.
    async fn settle_event(&self, space: &Arc<SpaceInner>, ticket: Ticket, event: Tag) -> Result<()> {
        let Err(error) = self.commits.settle(ticket).await else {
            self.store_took(space);
            return Ok(());
        };
        let found = self.store.read(Read::forward(Select::tag(event)).at_most(1)).await;
        if found.is_ok_and(|page| !page.records.is_empty()) {
            return Ok(());
        }
        // Whoever sent the event is told, and so is whoever looks after the store.
        if matches!(error.kind(), ErrorKind::Io { .. }) && !self.is_stopping() {
            self.store_failed(space, &error);
        }
        Err(error)
    }

    /// Has the others on the log hear that nodes, or what they listen to, have changed.
    #[inline]
    pub(crate) fn nodes_changed(&self) {
        if let Some(owners) = &self.owners {
            owners.nodes_changed();
        }
    }

    /// The revision that a document has, deleted or not.
    async fn revision_of(&self, key: &Key) -> Result<u64> {
        let found = self.store.documents(vec![Arc::clone(key)]).await?.pop().flatten();
        Ok(found.map_or(0, |document| document.revision))
    }
}

/// Flows in the order of their events: the order of the map is another in every process.
fn in_order(mut flows: Vec<Arc<StoredFlow>>) -> Vec<Arc<StoredFlow>> {
    flows.sort_by_key(|flow| flow.event.envelope().id);
    flows
}

impl Drop for AtPoint<'_> {
    fn drop(&mut self) {
        self.0.at_points.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.space.flow_began();
        if let Some(place) = &self.place {
            place.retake();
        }
    }
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} flows over {:?}", lock(&self.live).len(), self.store)
    }
}
