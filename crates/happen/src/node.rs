//! A node: its registrations, options and lifecycle. Owns the public types [`Node`] and [`Registration`]; how events
//! reach its handlers is in `dispatch`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use happen_core::link::Routing;
use happen_core::{
    ErasedEvent, Error, ErrorKind, Event, EventId, Function, IntoPattern, IntoStep, NodeKey, Outgoing,
    Pattern, Payload, Result, State,
};

use crate::accept::{Acceptance, Origin};
use crate::config::{self, Delivery, Durability, NodeOptions, Overflow, QueueOrder};
use crate::context::Context;
use crate::dispatch::{self, Job};
use crate::durable::{Control, Debounce, Lanes, Rate, StoredFlow};
use crate::gate::Gate;
use crate::global::{Author, Global};
use crate::handler::{Argument, Handler};
use crate::hooks::{Hooks, Moment, Seen};
use crate::limits;
use crate::published::Published;
use crate::send::{Broadcasting, Sender, Sending, Target};
use crate::slow::SlowLane;
use crate::space::SpaceInner;
use crate::state::StateOf;
use crate::sync::{Mutex, lock};
use crate::table::{Entry, Guard, KeyOf, Lane, Phase, StepEntry, Table};

/// An autonomous component with an id: it handles events and owns its state. A handle; cloning shares the node.
///
/// Made by [`Space::node`](crate::Space::node). Options are given in one go with the making, handlers with
/// [`Node::on`]; both may change while events flow.
#[derive(Clone)]
pub struct Node {
    inner: Arc<NodeInner>,
}

/// A handler's registration. Dropping it changes nothing; [`Registration::off`] takes it back.
#[derive(Clone)]
pub struct Registration {
    node: Arc<NodeInner>,
    id: Option<u64>,
}

pub(crate) struct NodeInner {
    pub(crate) key: NodeKey,
    pub(crate) name: Arc<str>,
    pub(crate) space: Arc<SpaceInner>,
    pub(crate) table: Published<Table>,
    pub(crate) gate: Gate<Job>,
    has_hooks: AtomicBool,
    /// The id of the space, for whose senders the node is at hand; 0 while it shares its work and others may be. Asked for
    /// every event, instead of the space itself.
    at_hand: AtomicU64,
    /// Whether anything is different from running at once in this process. Asked for every event.
    kind: AtomicU8,
    aside: OnceLock<Box<Aside>>,
}

/// What only some nodes need.
#[derive(Default)]
struct Aside {
    keys: Mutex<HashMap<u64, Arc<Gate<Job>>>>,
    /// Events that wait for their keys, all keys together.
    keyed: AtomicUsize,
    under_way: Mutex<Flows>,
    /// The lanes of handlers that proved slow, by registration.
    slow: Mutex<HashMap<u64, Arc<SlowLane>>>,
    pub(crate) states: crate::state::States,
    /// What went wrong so far, counted where it does.
    mishaps: Mishaps,
    lanes: Lanes,
}

/// How often something went wrong at a node.
#[derive(Default)]
struct Mishaps {
    refused: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
}

/// What a node has to do at this moment, and what went wrong there so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// Events that wait for a place.
    pub(crate) waiting: usize,
    /// Flows that are held back on purpose.
    pub(crate) held_back: usize,
    /// Events that have a place.
    pub(crate) active: u32,
    /// The places; `None` where every key has places of its own.
    pub(crate) places: Option<u32>,
    pub(crate) queue_limit: usize,
    pub(crate) lag_max: usize,
    /// When the event was sent that waits longest.
    pub(crate) oldest_unix_ms: Option<u64>,
    /// Whether what waits is started.
    pub(crate) takes: bool,
    pub(crate) refused: u64,
    pub(crate) failed: u64,
    pub(crate) retried: u64,
}

/// The flows of a node that go on as tasks, each with the number of the build it belongs to.
#[derive(Default)]
struct Flows {
    places: Vec<Option<(Context, u64)>>,
    /// Places to use again: looking for one costs nothing, however many flows there are.
    free: Vec<usize>,
}

impl Flows {
    fn insert(&mut self, flow: (Context, u64)) -> usize {
        if let Some(index) = self.free.pop() {
            self.places[index] = Some(flow);
            return index;
        }
        self.places.push(Some(flow));
        self.places.len() - 1
    }

    fn remove(&mut self, index: usize) -> Option<(Context, u64)> {
        let flow = self.places[index].take();
        self.free.push(index);
        if self.free.len() == self.places.len() && self.places.len() > IDLE_PLACES_MAX {
            *self = Self::default();
        }
        flow
    }

    fn iter(&self) -> impl Iterator<Item = &(Context, u64)> {
        self.places.iter().flatten()
    }

    fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

/// Whether there is room for an event that has to wait for its key.
pub(crate) enum Room {
    /// There is; so many wait now, for whichever keys.
    Free(usize),
    /// There is, in the place of an older one of the same key.
    Instead,
    /// There is none.
    None,
}

/// Counts an event that waits for its key, until it starts.
pub(crate) struct KeyedWait(Arc<NodeInner>);

impl Drop for KeyedWait {
    fn drop(&mut self) {
        self.0.aside().keyed.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Takes a flow off the list of those under way when it ends.
pub(crate) struct UnderWay {
    node: Arc<NodeInner>,
    index: Option<usize>,
}

/// What a node handles, for introspection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handles {
    /// The pattern, as it was written.
    pub pattern: String,
    /// The name of the handler's function.
    pub handler: String,
    /// The payload type it takes; `None` for any.
    pub payload: Option<String>,
    /// Its priority.
    pub priority: i32,
}

impl NodeInner {
    pub(crate) fn new(space: &Arc<SpaceInner>, key: NodeKey, name: Arc<str>, table: Arc<Table>) -> Self {
        let kind = Self::kind_of(space, &table.options);
        Self {
            key,
            name,
            space: Arc::clone(space),
            table: Published::new(table),
            gate: Gate::new(),
            has_hooks: AtomicBool::new(false),
            at_hand: AtomicU64::new(if kind == SHARED { 0 } else { space.id }),
            kind: AtomicU8::new(kind),
            aside: OnceLock::new(),
        }
    }

    fn kind_of(space: &SpaceInner, options: &NodeOptions) -> u8 {
        match options.shared {
            _ if space.durable.is_some() && options.durability == Durability::Durable => DURABLE,
            Some(_) => SHARED,
            None => PLAIN,
        }
    }

    /// Notes what follows from the options for those who look for the node.
    fn note_kind(&self) {
        let kind = Self::kind_of(&self.space, &self.table.load().options);
        self.kind.store(kind, Ordering::Relaxed);
        self.at_hand.store(if kind == SHARED { 0 } else { self.space.id }, Ordering::Relaxed);
        self.space.presence_changed();
    }

    /// Whether what is sent in this space goes to the node without a look at anything else.
    #[inline(always)]
    pub(crate) fn is_at_hand(&self, space: &SpaceInner) -> bool {
        self.at_hand.load(Ordering::Relaxed) == space.id
    }

    /// Whether it is neither durable nor shared.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.kind.load(Ordering::Relaxed) == PLAIN
    }

    /// Whether the store of the space remembers what the node does.
    #[inline]
    pub(crate) fn is_durable(&self) -> bool {
        self.kind.load(Ordering::Relaxed) == DURABLE
    }

    /// Whether other processes may have it too and share its work.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        self.kind.load(Ordering::Relaxed) == SHARED
    }

    /// Whether it was told to share its work, which only a node does that is not durable.
    pub(crate) fn shares_in_vain(&self) -> bool {
        self.is_durable() && self.table.load().options.shared.is_some()
    }

    /// What is under way or waits here, as far as it has left its senders' stacks.
    pub(crate) fn load(&self) -> usize {
        let Some(aside) = self.aside.get() else { return self.gate.waiting() as usize };
        let durable = if self.is_durable() { aside.lanes.load() } else { 0 };
        let keyed = aside.keyed.load(Ordering::Relaxed);
        self.gate.waiting() as usize + keyed + lock(&aside.under_way).len() + durable
    }

    /// Whether it was told to hold flows back, which only a durable node does.
    pub(crate) fn holds_back_in_vain(&self) -> bool {
        !self.is_durable() && self.table.load().control.is_some()
    }

    /// Which of its durable flows run.
    pub(crate) fn lanes(&self) -> &Lanes {
        &self.aside().lanes
    }

    /// The durable flows of the node that are under way.
    pub(crate) fn durable_flows(&self) -> Vec<Arc<StoredFlow>> {
        self.space.durable.as_ref().map_or_else(Vec::new, |durable| durable.flows_at(self))
    }

    /// Tells how a durable flow ended, to whoever listens in this process.
    pub(crate) fn tell_of_end(
        self: &Arc<Self>,
        event: &dyn ErasedEvent,
        handler: &str,
        outcome: &crate::flow::Outcome,
    ) {
        let table = self.table.load();
        if let Err(error) = outcome {
            self.note_failed();
            tracing::debug!(target: "happen", node = &*self.name, handler, "a durable flow failed");
            self.space.warn(self, event.envelope(), error);
            if let Some(watched) = table.watched.clone() {
                (watched.watch)(event, error);
            }
        }
        dispatch::after_handling(self, &table, event, outcome.as_ref().err());
        self.space.settled(event, self.key, outcome);
    }

    /// Whether hooks look at what the node does; asked for every event it sends.
    #[inline]
    pub(crate) fn has_hooks(&self) -> bool {
        self.has_hooks.load(Ordering::Relaxed)
    }

    #[inline]
    fn aside(&self) -> &Aside {
        self.aside.get_or_init(Box::default)
    }

    #[inline]
    pub(crate) fn states(&self) -> &crate::state::States {
        &self.aside().states
    }

    pub(crate) fn key_gate(&self, key: u64) -> Arc<Gate<Job>> {
        let mut keys = lock(&self.aside().keys);
        Arc::clone(keys.entry(key).or_insert_with(|| Arc::new(Gate::new())))
    }

    /// Gives a place of a key back. True when jobs of this key wait and the caller must drain them.
    pub(crate) fn leave_key(&self, key: u64) -> bool {
        let gate = self.key_gate(key);
        let drain = gate.leave();
        drop(gate);
        self.forget_idle(key);
        drain
    }

    /// Counts a job that is about to wait for its key, when there is room for it, or when it takes the place of another.
    pub(crate) fn wait_for_key(self: &Arc<Self>, job: &mut Job, limit: usize, instead: bool) -> Room {
        let before = self.aside().keyed.fetch_add(1, Ordering::SeqCst);
        // The guard first, so that it takes the count back when there is no room.
        let counted = KeyedWait(Arc::clone(self));
        let room = match (before < limit, instead && limit > 0) {
            (true, _) => Room::Free(before + 1),
            (false, true) => Room::Instead,
            (false, false) => return Room::None,
        };
        job.keyed = Some(counted);
        room
    }

    pub(crate) fn key_started(&self, key: u64) {
        self.key_gate(key).started();
        self.forget_idle(key);
    }

    /// Drops the gate of a key that nobody is in, waits for or is about to enter.
    fn forget_idle(&self, key: u64) {
        let mut keys = lock(&self.aside().keys);
        if let Some(gate) = keys.get(&key)
            && Arc::strong_count(gate) == 1
            && gate.active() == 0
            && gate.waiting() == 0
        {
            keys.remove(&key);
            // A map keeps its memory: after very many keys at once most of it would never be used again.
            if keys.capacity() > IDLE_PLACES_MAX && keys.len() < keys.capacity() / 8 {
                let len = keys.len();
                keys.shrink_to(2 * len);
            }
        }
    }

    /// The lane of a registration whose handler proved slow. Those that nobody is in are forgotten.
    pub(crate) fn slow_lane(&self, registration: u64) -> Arc<SlowLane> {
        let mut lanes = lock(&self.aside().slow);
        if let Some(lane) = lanes.get(&registration) {
            return Arc::clone(lane);
        }
        lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || !lane.is_idle());
        let lane = Arc::new(SlowLane::default());
        lanes.insert(registration, Arc::clone(&lane));
        lane
    }

    /// Lists a flow that goes on as a task.
    pub(crate) fn under_way(self: &Arc<Self>, context: &Context, build: u64) -> UnderWay {
        self.space.flow_began();
        let mut flows = lock(&self.aside().under_way);
        let index = flows.insert((context.clone(), build));
        drop(flows);
        // Either whoever ended that build saw the flow listed, or the flow sees here that its build has ended.
        let now = self.table.read(&self.space.readers, self.space.here(), Table::build);
        if now != build {
            context.cancel();
        }
        UnderWay { node: Arc::clone(self), index: Some(index) }
    }

    fn flows(&self) -> Vec<Context> {
        match self.aside.get() {
            Some(aside) => lock(&aside.under_way).iter().map(|(context, _)| context.clone()).collect(),
            None => Vec::new(),
        }
    }

    /// Asks the flows of builds up to this one to stop.
    pub(crate) fn cancel_build(&self, last: u64) {
        let Some(aside) = self.aside.get() else { return };
        let flows: Vec<_> = lock(&aside.under_way).iter().cloned().collect();
        for (flow, _) in flows.iter().filter(|(_, build)| *build <= last) {
            flow.cancel();
        }
    }

    /// Starts what waits, after the node was held.
    pub(crate) fn wake(self: &Arc<Self>) {
        if self.is_durable() {
            Lanes::wake(self);
        }
        if self.gate.claim_drain() {
            dispatch::spawn_drain(self, None);
        }
        if let Some(aside) = self.aside.get() {
            let gates: Vec<_> =
                lock(&aside.keys).iter().map(|(key, gate)| (*key, Arc::clone(gate))).collect();
            for (key, gate) in gates {
                if gate.claim_drain() {
                    dispatch::spawn_drain(self, Some(key));
                }
            }
        }
    }

    /// Changes the table.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Table)) {
        self.table.change(&self.space.readers, |table| {
            let mut changed = table.changed();
            change(&mut changed);
            Arc::new(changed)
        });
    }

    /// Changes the options. A node that has nothing of its own yet gets the table of those with the same options.
    fn change_options(&self, change: impl FnOnce(&mut NodeOptions)) {
        self.table.change(&self.space.readers, |table| {
            if table.is_common() && table.entries.is_empty() {
                let mut options = NodeOptions::clone(&table.options);
                change(&mut options);
                return self.space.class(options);
            }
            let mut changed = table.changed();
            change(Arc::make_mut(&mut changed.options));
            Arc::new(changed)
        });
    }

    /// Counts an event for which there was no room.
    #[cold]
    pub(crate) fn note_refused(&self) {
        self.aside().mishaps.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a flow that failed for good.
    #[cold]
    pub(crate) fn note_failed(&self) {
        self.aside().mishaps.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an attempt that is followed by another one.
    #[cold]
    pub(crate) fn note_retried(&self) {
        self.aside().mishaps.retried.fetch_add(1, Ordering::Relaxed);
    }

    /// What the node has to do at this moment. Reads what is counted anyway, key by key where it has keys.
    #[cold]
    pub(crate) fn figures(&self) -> Figures {
        let table = self.table.load();
        let order = table.options.queue_order;
        let sent = |job: &Job| job.event.envelope().at_unix_ms;
        let mut figures = Figures {
            waiting: self.gate.waiting() as usize,
            held_back: 0,
            active: self.gate.active(),
            places: matches!(table.lane, Lane::Concurrent).then_some(table.options.max_concurrent),
            queue_limit: table.options.queue_limit,
            lag_max: table.options.lag_max,
            oldest_unix_ms: self.gate.oldest(order, sent),
            takes: table.phase == Phase::Open && !table.is_held(),
            refused: 0,
            failed: 0,
            retried: 0,
        };
        let oldest = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        let Some(aside) = self.aside.get() else { return figures };
        for gate in lock(&aside.keys).values() {
            figures.waiting += gate.waiting() as usize;
            figures.active = figures.active.saturating_add(gate.active());
            figures.oldest_unix_ms = oldest(figures.oldest_unix_ms, gate.oldest(order, sent));
        }
        for lane in lock(&aside.slow).values() {
            // They have places already, and wait all the same.
            let waiting = lane.gate.waiting();
            figures.waiting += waiting as usize;
            figures.active = figures.active.saturating_sub(waiting);
        }
        if self.is_durable() {
            let lanes = aside.lanes.figures(order);
            figures.waiting += lanes.waiting;
            figures.active = figures.active.saturating_add(lanes.running);
            figures.held_back = lanes.held_back;
            figures.oldest_unix_ms = oldest(figures.oldest_unix_ms, lanes.oldest_unix_ms);
        }
        let Mishaps { refused, failed, retried } = &aside.mishaps;
        figures.refused = refused.load(Ordering::Relaxed);
        figures.failed = failed.load(Ordering::Relaxed);
        figures.retried = retried.load(Ordering::Relaxed);
        figures
    }

    #[cold]
    pub(crate) fn closed_error(&self, phase: Phase) -> Error {
        if phase != Phase::Open {
            return Error::new(ErrorKind::Closed { what: format!("node `{}`", self.name) });
        }
        self.space.check_running().err().unwrap_or_else(|| Error::new(ErrorKind::NotStarted))
    }

    /// Ends the node: what waits is refused, what is under way is asked to stop.
    pub(crate) fn close(self: &Arc<Self>) {
        self.change(|table| {
            table.phase = Phase::Closed;
            table.entries.clear();
            table.steps.clear();
            table.watched = None;
        });
        let mut jobs = self.gate.clear();
        if let Some(aside) = self.aside.get() {
            aside.states.bells.ring_all();
            let keys = lock(&aside.keys);
            let mut gates: Vec<_> = keys.iter().map(|(key, gate)| (*key, Arc::clone(gate))).collect();
            drop(keys);
            gates.sort_unstable_by_key(|(key, _)| *key);
            jobs.extend(gates.iter().flat_map(|(_, gate)| gate.clear()));
        }
        for job in jobs {
            let error = Error::new(ErrorKind::Closed { what: format!("node `{}`", self.name) });
            self.space.undelivered(&*job.event, &self.name, error, job.reply);
        }
        for flow in self.flows() {
            flow.cancel();
        }
        if let Some(durable) = self.space.durable.as_ref().filter(|_| self.is_durable()) {
            // What is stored stays: it goes on where the node is made again.
            durable.leave(self);
        }
    }
}

impl UnderWay {
    /// Takes the flow off the list, so that its context is nobody's any more. It still counts.
    pub(crate) fn unlist(&mut self) {
        if let Some(index) = self.index.take() {
            let flow = lock(&self.node.aside().under_way).remove(index);
            drop(flow);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.unlist();
        self.node.space.flow_ended();
    }
}

impl Node {
    pub(crate) fn from_inner(inner: Arc<NodeInner>) -> Self {
        Self { inner }
    }

    pub(crate) fn inner(&self) -> &Arc<NodeInner> {
        &self.inner
    }

    /// The node's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.name
    }

    /// Registers a handler for the events whose type matches a pattern.
    ///
    /// The handler is an `async fn(Event<T>, Context)` or a plain `fn(&Event<T>, &Context)`, see [`Handler`]. A pattern
    /// that cannot be understood registers nothing and is told by [`Space::start`](crate::Space::start), or at once by
    /// [`Registration::check`].
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Space};
    ///
    /// #[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
    /// #[event("greet")]
    /// struct Greet { name: String }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = Space::memory();
    /// let greeter = space.node("greeter");
    /// greeter.on("greet", |greet: &Event<Greet>, _: &Context| format!("hello {}", greet.name));
    /// space.start().await?;
    /// let text = space.send(&greeter, Greet { name: "Ada".into() }).reply::<String>().await?;
    /// assert_eq!(*text, "hello Ada");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "addEventListener")]
    #[doc(alias = "subscribe")]
    pub fn on<P, PM, H, M>(&self, pattern: P, handler: H) -> Registration
    where
        P: IntoPattern<PM>,
        H: Handler<M>, // what an async handler captures is handed to it by `with`
        H::Argument: Argument,
        H::Output: IntoStep,
        H::Future: Send,
    {
        self.register(pattern.into_pattern().map_err(Error::from), handler.into_function())
    }

    pub(crate) fn register(
        &self,
        pattern: Result<Pattern>,
        function: impl Into<Arc<dyn Function>>,
    ) -> Registration {
        let node = Arc::clone(&self.inner);
        let pattern = match pattern {
            Ok(pattern) => pattern,
            Err(error) => {
                node.space.problem(error.at_node(&node.name));
                return Registration { node, id: None };
            }
        };
        if node.table.load().phase == Phase::Closed {
            // What would be registered here is heard of by nobody, while senders would be told of a node that is closed.
            return Registration { node, id: None };
        }
        let function: Arc<dyn Function> = function.into();
        if function.reads_bytes() {
            node.space.note_reads_bytes();
        }
        let mut made = None;
        node.table.change(&node.space.readers, |table| {
            let (table, entry) = table.with_entry(pattern, &function, || node.space.next_registration());
            made = Some(entry);
            table
        });
        if let Some(entry) = &made {
            node.space.index(&node, entry);
        }
        node.space.presence_changed();
        Registration { node, id: made.map(|entry| entry.id) }
    }

    /// Sends an event to one node, several nodes, or as a batch, from this node. Inside a handler the event is caused
    /// by the one being handled. Nothing leaves before `.await`, `.reply()`, `.replies()`, `.stream()` or `.forget()`.
    #[inline]
    pub fn send<'n, T: Outgoing>(&'n self, to: impl Target<'n>, event: T) -> Sending<'n, T::Payload> {
        Sending::new(Sender::Node(&self.inner), to.into_destination(), event)
    }

    /// Sends an event to every node that listens, this one included.
    ///
    /// # Errors
    ///
    /// As [`Broadcasting::publish`].
    #[doc(alias = "emit")]
    #[inline]
    pub fn broadcast<T: Payload>(&self, event: T) -> Result<EventId> {
        Broadcasting::new(Sender::Node(&self.inner), event).publish()
    }

    /// A broadcast that is not sent yet, to give it metadata or to make it a stream.
    pub fn broadcasting<T: Payload>(&self, event: T) -> Broadcasting<'_, T> {
        Broadcasting::new(Sender::Node(&self.inner), event)
    }

    /// Lets the store remember nothing of the node, in a space that has one: its handlers run at once, and what they were
    /// doing ends with the process. For what can be asked again, such as a cache or a measurement.
    #[must_use]
    pub fn ephemeral(self) -> Self {
        self.inner.change_options(|options| options.durability = Durability::Ephemeral);
        self.inner.note_kind();
        self
    }

    /// Shares the work of the node with the nodes of its id in the other processes of the link that say the same: what is
    /// sent to the id goes to one of them, from whichever process, and one of them takes a broadcast.
    ///
    /// Without it, what is sent goes to the node in this process, or to that in the process that joined first, and each
    /// takes every broadcast. A durable node belongs to one process and cannot be shared; the start of the space says
    /// so. Each of the nodes has a state of its own. All should give the same routing: of several, senders go by their
    /// own node's, and otherwise by that of the process that joined first.
    ///
    /// With [`Routing::ByKey`] and [`Routing::Sticky`] the key is what was given with the send
    /// ([`Sending::routing_key`]), or else the correlation.
    ///
    /// # Delivery
    ///
    /// At most once, to the one that the sender chose among those it knows; it learns of new ones and of those that went as
    /// [`Space::remote_nodes`](crate::Space::remote_nodes) does. When it finds at once that one is gone, the next one gets
    /// the event; what was under way there ends with [`ErrorKind::Closed`]. Order is kept from one sender to one of the
    /// nodes, and so for each key as long as the same nodes are there; there is none between different ones. One that is
    /// [stopped](Node::stop) is left out until it goes on.
    ///
    /// # Cost
    ///
    /// Nothing for other nodes. A send takes two locks and time for each of the nodes.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Hub, Routing, Space};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// // Each process does the same.
    /// let hub = Hub::new();
    /// let spaces = ["one", "two"].map(|name| {
    ///     let space = Space::memory();
    ///     space.join(hub.link(name)).unwrap();
    ///     let resize = space.node("resize").shared(Routing::RoundRobin);
    ///     resize.on("string", move |_: &Event<String>, _: &Context| name.to_owned());
    ///     space
    /// });
    /// for space in &spaces {
    ///     space.start().await?;
    /// }
    ///
    /// let first = spaces[0].send("resize", "cat.png".to_owned()).reply::<String>().await?;
    /// let second = spaces[0].send("resize", "dog.png".to_owned()).reply::<String>().await?;
    /// assert_ne!(*first, *second);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "load balancing")]
    #[must_use]
    pub fn shared(self, routing: Routing) -> Self {
        self.inner.change_options(|options| options.shared = Some(routing));
        self.inner.note_kind();
        self
    }

    /// Whether the store of the space remembers what the node does.
    #[must_use]
    pub fn durability(&self) -> Durability {
        if self.inner.is_durable() { Durability::Durable } else { Durability::Ephemeral }
    }

    /// Sets how often a step of this node is tried, the first time included, and how long the second attempt waits; each
    /// further one waits twice as long. After the last one the flow is a dead letter.
    ///
    /// The count outlives the process. Only failures that may pass are tried again, see
    /// [`Error::is_retryable`](crate::Error::is_retryable). An ephemeral node tries once; use
    /// [`wrap::retry`](crate::wrap::retry) there.
    #[must_use]
    pub fn attempts(self, max: u32, first_wait: std::time::Duration) -> Self {
        let wait = u64::try_from(first_wait.as_millis()).unwrap_or(u64::MAX);
        self.inner.change_options(|options| {
            options.attempts_max = max.max(1);
            options.retry_wait_ms = wait;
        });
        self
    }

    /// Sets how surely events pass between this node and those of other processes.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Delivery, Space};
    ///
    /// let space = Space::memory();
    /// // What it measures is worth something now or never.
    /// space.node("thermometer").delivery(Delivery::AtMostOnce);
    /// ```
    #[must_use]
    pub fn delivery(self, delivery: Delivery) -> Self {
        self.inner.change_options(|options| options.delivery = delivery);
        self
    }

    /// Keeps in the past only what events of these types make of the states and entities of this node: the patterns say
    /// whose changes are snapshots. Default all.
    ///
    /// What another event makes is committed like anything else, and no longer kept once the next change replaces it. Its
    /// record stays, so [`Journal::when`](crate::journal::Journal::when) and
    /// [`Journal::at`](crate::journal::Journal::at) know that it was, and never show an older one in its place. Changes
    /// from outside any handler are always kept.
    ///
    /// # Examples
    ///
    /// ```
    /// # let space = happen::Space::memory();
    /// let meter = space.node("meter").snapshots(["meter.calibrated", "day.*"]);
    /// ```
    #[must_use]
    pub fn snapshots<T: Into<String>>(self, patterns: impl IntoIterator<Item = T>) -> Self {
        let texts: Vec<String> = patterns.into_iter().map(Into::into).collect();
        match config::patterns(&texts) {
            Ok(patterns) => {
                self.inner.change(|table| table.keep_snapshots(texts.clone(), patterns.clone()));
            }
            Err(error) => self.inner.space.problem(error.at_node(&self.inner.name)),
        }
        self
    }

    /// Makes the node handle one event at a time, in the order they came: an actor.
    #[must_use]
    pub fn serial(self) -> Self {
        self.max_concurrent(1)
    }

    /// Makes the node handle events one at a time for each key, and side by side for different keys.
    ///
    /// An event whose payload is no `T` has the key of its type.
    #[must_use]
    pub fn serial_by<T: Payload, K: Hash>(self, key: impl Fn(&T) -> K + Send + Sync + 'static) -> Self {
        self.concurrent_by(key, 1)
    }

    /// Makes the node handle up to so many events of each key at once, and any number of keys side by side.
    ///
    /// An event whose payload is no `T` has the key of its type.
    #[must_use]
    pub fn concurrent_by<T: Payload, K: Hash>(
        self,
        key: impl Fn(&T) -> K + Send + Sync + 'static,
        max: u32,
    ) -> Self {
        let key_of = key_of(key);
        self.inner.change(|table| table.lane = Lane::ByKey(Arc::clone(&key_of), max.max(1)));
        self
    }

    /// Lets at most so many flows of each key begin within any span of this length; the others wait for their time, in the
    /// order in which their events came. Default is no limit.
    ///
    /// Only a durable node holds flows back: when each may begin is stored with it and outlives the process, and what began
    /// before the last start counts, too. At the start of a space [`Misuse`](ErrorKind::Misuse) tells of a node that is
    /// not durable, and of a limit of 0 or of more than [`RATE_FLOWS_MAX`](limits::RATE_FLOWS_MAX). Flows that are held
    /// back count as waiting for [`Node::queue_limit`], and as none for [`Space::settled`](crate::Space::settled). An
    /// event whose payload is no `T` has the key of its type.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Space, secs};
    ///
    /// #[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
    /// #[event("mail")]
    /// struct Mail { to: String }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// let space = Space::open(folder.path()).await?;
    /// let mails = space.node("mails").rate_by(|mail: &Mail| mail.to.clone(), 10, secs(3_600));
    /// mails.on("mail", |mail: &Event<Mail>, _: &Context| println!("to {}", mail.to));
    /// space.start().await?;
    /// space.send(&mails, Mail { to: "ada".into() }).await?;
    /// # space.stop().await
    /// # }
    /// ```
    #[must_use]
    pub fn rate_by<T: Payload, K: Hash>(
        self,
        key: impl Fn(&T) -> K + Send + Sync + 'static,
        max: usize,
        span: std::time::Duration,
    ) -> Self {
        if !(1..=limits::RATE_FLOWS_MAX).contains(&max) {
            let most = limits::RATE_FLOWS_MAX;
            let what = format!("`rate_by` lets 1 to {most} flows begin within its span, and not {max}");
            self.inner.space.problem(Error::misuse(what).at_node(self.id()));
        }
        let span_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = Rate { key_of: key_of(key), flows_max: max.max(1), span_ms };
        self.change_control(|control| control.rate = Some(rate.clone()))
    }

    /// Lets a flow of a key begin when no further event of that key came for so long. The event that came last is handled;
    /// each before it ends, recorded as [`Cancelled`](ErrorKind::Cancelled), as does the waiting for its reply. A key that
    /// is never quiet for so long has none handled.
    ///
    /// Only a durable node holds flows back, as with [`Node::rate_by`].
    #[must_use]
    pub fn debounce_by<T: Payload, K: Hash>(
        self,
        key: impl Fn(&T) -> K + Send + Sync + 'static,
        quiet: std::time::Duration,
    ) -> Self {
        let quiet_ms = u64::try_from(quiet.as_millis()).unwrap_or(u64::MAX).max(1);
        let debounce = Debounce { key_of: key_of(key), quiet_ms };
        self.change_control(|control| control.debounce = Some(debounce.clone()))
    }

    fn change_control(self, change: impl Fn(&mut Control)) -> Self {
        self.inner.change(|table| {
            let mut control = table.control.as_deref().cloned().unwrap_or_default();
            change(&mut control);
            table.control = Some(Arc::new(control));
        });
        self
    }

    /// Limits how many events are handled at once; 1 makes the node serial. Default
    /// [`MAX_CONCURRENT`](crate::limits::MAX_CONCURRENT).
    #[must_use]
    #[doc(alias = "maxConcurrent")]
    pub fn max_concurrent(self, max: u32) -> Self {
        self.inner.change_options(|options| options.max_concurrent = max.max(1));
        self
    }

    /// Limits how many events wait, for all keys together where a node is serial by key. Default
    /// [`QUEUE_LIMIT`](crate::limits::QUEUE_LIMIT).
    #[must_use]
    #[doc(alias = "queueLimit")]
    pub fn queue_limit(self, events: usize) -> Self {
        self.inner.change_options(|options| options.queue_limit = events);
        self
    }

    /// Sets how many events may wait while the node counts as keeping up, in a space that watches its
    /// [`balance`](crate::balance); 0 for any number. Default [`LAG_MAX`](crate::limits::LAG_MAX).
    #[must_use]
    pub fn lag_max(self, events: usize) -> Self {
        self.inner.change_options(|options| options.lag_max = events);
        self
    }

    /// Sets in which order waiting events start.
    #[must_use]
    #[doc(alias = "queueStrategy")]
    pub fn queue_order(self, order: QueueOrder) -> Self {
        self.inner.change_options(|options| options.queue_order = order);
        self
    }

    /// Sets what happens to an event that finds the queue full.
    #[must_use]
    pub fn overflow(self, overflow: Overflow) -> Self {
        self.inner.change_options(|options| options.overflow = overflow);
        self
    }

    /// Limits the steps of one flow. Default [`STEPS_MAX`](crate::limits::STEPS_MAX).
    #[must_use]
    pub fn steps_max(self, steps: u32) -> Self {
        self.inner.change_options(|options| options.steps_max = steps.max(1));
        self
    }

    /// Limits how long one flow may take. A plain function cannot be interrupted and is not.
    #[must_use]
    pub fn flow_time_max(self, time: std::time::Duration) -> Self {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        self.inner.change_options(|options| options.flow_ms_max = ms);
        self
    }

    /// Accepts only events whose sender, source id or `source_type:source_id` matches one of these globs, in which `*`
    /// stands for any characters.
    #[doc(alias = "acceptFrom")]
    #[must_use]
    pub fn accept_from<G: Into<String>>(self, globs: impl IntoIterator<Item = G>) -> Self {
        let globs: Vec<String> = globs.into_iter().map(Into::into).collect();
        self.inner.change(|table| {
            Arc::make_mut(&mut table.options).accept_from.clone_from(&globs);
            let accept = *table.accept.take().unwrap_or_default();
            table.accept = Some(Box::new(accept.with_globs(globs.clone())));
        });
        self
    }

    /// Accepts only events for whose origin the predicate answers true, in addition to other rules.
    #[must_use]
    pub fn accept_if(self, predicate: impl Fn(&Origin<'_>) -> bool + Send + Sync + 'static) -> Self {
        let predicate = Arc::new(predicate);
        self.inner.change(|table| {
            let predicate = Arc::clone(&predicate);
            let accept: Acceptance = *table.accept.take().unwrap_or_default();
            table.accept = Some(Box::new(accept.with_predicate(move |origin| predicate(origin))));
        });
        self
    }

    /// Keeps metadata about the node, for people and tools.
    #[must_use]
    pub fn metadata(self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        let value = value.into();
        self.inner.change(|table| {
            let mut all = table.metadata.as_deref().cloned().unwrap_or_default();
            all.insert(name.to_owned(), value.clone());
            table.metadata = Some(Arc::new(all));
        });
        self
    }

    /// The metadata kept about the node.
    #[must_use]
    pub fn all_metadata(&self) -> BTreeMap<String, serde_json::Value> {
        self.inner.table.load().metadata.as_deref().cloned().unwrap_or_default()
    }

    /// Runs a hook at this moment of the node's work. Hooks of higher priority run first.
    #[must_use]
    pub fn hook(
        self,
        moment: Moment,
        priority: i32,
        hook: impl Fn(&Seen<'_>) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let hook = Arc::new(hook);
        self.change_hooks(|hooks| {
            let hook = Arc::clone(&hook);
            hooks.add(moment, priority, move |seen| hook(seen));
        });
        self
    }

    /// Changes every payload of one type before the node's handlers see it. Transformers run in the order they were
    /// added; one that fails refuses the event.
    #[doc(alias = "use")]
    #[must_use]
    pub fn transform<T: Payload>(self, transform: impl Fn(T) -> Result<T> + Send + Sync + 'static) -> Self {
        let transform = Arc::new(transform);
        self.change_hooks(|hooks| {
            let transform = Arc::clone(&transform);
            hooks.add_transform(move |payload| transform(payload));
        });
        self
    }

    fn change_hooks(&self, change: impl Fn(&mut Hooks)) {
        self.inner.change(|table| {
            let mut hooks = table.hooks.as_deref().cloned().unwrap_or_default();
            change(&mut hooks);
            table.hooks = Some(Arc::new(hooks));
        });
        self.inner.has_hooks.store(true, Ordering::Relaxed);
    }

    /// Adds a step that a flow of this node may resume or `goto` at, named after its function.
    pub fn step<H, M>(&self, function: H)
    where
        H: Handler<M>, // what an async handler captures is handed to it by `with`
        H::Argument: Argument,
        H::Output: IntoStep,
        H::Future: Send,
    {
        let function: Arc<dyn Function> = function.into_function().into();
        let name = function.short_name();
        self.add_step(name.into(), &function);
    }

    fn add_step(&self, name: Cow<'static, str>, function: &Arc<dyn Function>) {
        let step = Arc::new(StepEntry { name, function: Arc::clone(function) });
        self.inner.change(|table| {
            table.insert_step(&step);
        });
    }

    /// What the node handles, by priority.
    #[must_use]
    pub fn handles(&self) -> Vec<Handles> {
        let table = self.inner.table.load();
        let handles = table.entries.iter().map(|entry| Handles {
            pattern: entry.pattern.to_string(),
            handler: entry.name.to_string(),
            payload: entry.function.payload_name().map(str::to_owned),
            priority: entry.priority,
        });
        handles.collect()
    }

    /// The types of events the node was seen to send, as far as is remembered.
    #[must_use]
    pub fn emits(&self) -> Vec<String> {
        self.inner.space.emitted_by(self.inner.key)
    }

    /// The number of events that wait for the node.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let by_key = self
            .inner
            .aside
            .get()
            .map_or(0, |aside| lock(&aside.keys).values().map(|gate| gate.waiting() as usize).sum());
        let durable = if self.inner.is_durable() { self.inner.lanes().waiting() } else { 0 };
        self.inner.gate.waiting() as usize + by_key + durable
    }

    /// The flows of the node that wait for something, as the ids of the events they handle.
    #[must_use]
    pub fn flows(&self) -> Vec<EventId> {
        let durable = self.inner.durable_flows();
        let durable = durable.iter().map(|flow| flow.event.envelope().id);
        self.inner.flows().iter().map(Context::event_id).chain(durable).collect()
    }

    /// Asks every flow of this node that handles the event to stop at its next wait. Says how many there were.
    pub fn cancel(&self, event: EventId) -> usize {
        let flows = self.inner.flows();
        let matching = flows.iter().filter(|flow| flow.event_id() == event);
        let durable = self.inner.durable_flows();
        let stored = durable.iter().filter(|flow| flow.event.envelope().id == event);
        matching.map(Context::cancel).count() + stored.map(|flow| flow.cancel()).count()
    }

    /// The node's state of this type, to be read and changed.
    ///
    /// Holding the node's handle is the authority to change its state; a handler should use
    /// [`Context::state`](crate::Context::state), which reaches the state of its own node and no other.
    #[inline]
    pub fn state<S: State>(&self) -> StateOf<'_, S> {
        StateOf::single(&self.inner, None)
    }

    /// One of the node's entities of this type: a state of its own for each key. Only the document with this key is
    /// copied, changed and counted.
    ///
    /// # Examples
    ///
    /// ```
    /// #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// struct Order { paid: bool }
    ///
    /// # fn main() -> happen::Result<()> {
    /// let space = happen::Space::memory();
    /// let orders = space.node("orders");
    /// orders.entity::<Order>("order-123").set(|_| Order { paid: true })?;
    /// assert!(orders.entity::<Order>("order-123").get(|order| order.paid));
    /// assert_eq!(orders.entity::<Order>("order-124").revision(), 0);
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn entity<'n, S: State>(&'n self, key: impl Into<Cow<'n, str>>) -> StateOf<'n, S> {
        StateOf::entity(&self.inner, None, key.into())
    }

    /// The values that everybody in the space reads and changes, by key. What is changed by it is recorded as changed by
    /// this node.
    pub fn global(&self) -> Global {
        let author = Author { node: Some(Arc::clone(&self.inner.name)), event: None };
        Global::new(&self.inner.space, author)
    }

    /// Takes events again after [`Node::stop`].
    pub fn resume(&self) {
        self.inner.change(|table| {
            if table.phase == Phase::Stopped {
                table.phase = Phase::Open;
            }
        });
        self.inner.space.presence_changed();
        self.inner.wake();
        self.inner.space.announce("node.started", serde_json::json!({ "node_id": self.id() }));
    }

    /// Stops taking events: senders get the error `closed`. What is under way goes on.
    pub fn stop(&self) {
        self.inner.change(|table| {
            if table.phase == Phase::Open {
                table.phase = Phase::Stopped;
            }
        });
        self.inner.space.presence_changed();
        self.inner.space.announce("node.stopped", serde_json::json!({ "node_id": self.id() }));
    }

    /// Ends the node for good: takes every registration back, refuses what waits, cancels what is under way, and frees
    /// the id.
    pub fn destroy(&self) {
        self.inner.space.remove(&self.inner);
        self.inner.close();
        self.inner.space.announce("node.destroyed", serde_json::json!({ "node_id": self.id() }));
    }
}

impl Registration {
    /// Adds a step that flows of the node may resume or `goto` at, named after its function.
    pub fn step<H, M>(self, function: H) -> Self
    where
        H: Handler<M>, // what an async handler captures is handed to it by `with`
        H::Argument: Argument,
        H::Output: IntoStep,
        H::Future: Send,
    {
        Node::from_inner(Arc::clone(&self.node)).step(function);
        self
    }

    /// Adds a step under a name of its own.
    pub fn step_as<H, M>(self, name: &str, function: H) -> Self
    where
        H: Handler<M>, // what an async handler captures is handed to it by `with`
        H::Argument: Argument,
        H::Output: IntoStep,
        H::Future: Send,
    {
        let function: Arc<dyn Function> = function.into_function().into();
        Node::from_inner(Arc::clone(&self.node)).add_step(name.to_owned().into(), &function);
        self
    }

    /// Gives the registration a name of its own, for `goto` and for traces. Closures want one.
    #[expect(clippy::must_use_candidate, reason = "a registration stays, whether or not it is kept")]
    pub fn named(self, name: &str) -> Self {
        self.change(|entry| entry.name = name.to_owned().into())
    }

    /// Orders the handlers of one node for one event: the highest first. Default 0.
    #[expect(clippy::must_use_candidate, reason = "a registration stays, whether or not it is kept")]
    pub fn priority(self, priority: i32) -> Self {
        self.change(|entry| entry.priority = priority)
    }

    /// Handles only events for which the guard answers true. It sees the payload by path.
    pub fn guard(self, guard: impl Fn(&Event) -> bool + Send + Sync + 'static) -> Self {
        let guard: Guard = Arc::new(guard);
        self.change(|entry| entry.guard = Some(Arc::clone(&guard)))
    }

    /// Takes the registration back. Flows under way go on.
    pub fn off(&self) {
        let Some(id) = self.id else { return };
        self.node.space.unindex(&self.node, id);
        self.node.change(|table| {
            if let Some((entries, at)) = table.find_entry(id) {
                entries.remove(at);
            }
        });
        self.node.space.presence_changed();
    }

    /// Says why nothing was registered.
    ///
    /// # Errors
    ///
    /// The pattern's error, or [`ErrorKind::Closed`] for a node that takes no events: one whose id was taken, or that
    /// was destroyed.
    pub fn check(&self) -> Result<()> {
        match self.id {
            Some(_) => Ok(()),
            None if self.node.table.load().phase == Phase::Closed => {
                Err(self.node.closed_error(Phase::Closed).at_node(&self.node.name))
            }
            None => Err(self.node.space.first_problem_of(&self.node.name)),
        }
    }

    fn change(self, change: impl Fn(&mut Entry)) -> Self {
        if let Some(id) = self.id {
            self.node.change(|table| {
                let Some((entries, at)) = table.find_entry(id) else { return };
                let old = entries.remove(at);
                let mut entry = Entry::clone(&old);
                change(&mut entry);
                if entry.priority == old.priority {
                    entries.insert(at, Arc::new(entry));
                } else {
                    table.insert(Arc::new(entry));
                }
            });
        }
        self
    }
}

/// The function that gives the key of an event by its payload.
fn key_of<T: Payload, K: Hash>(key: impl Fn(&T) -> K + Send + Sync + 'static) -> KeyOf {
    Arc::new(move |event: &dyn ErasedEvent| {
        let mut hasher = DefaultHasher::new();
        match event.payload().as_any().downcast_ref::<T>() {
            Some(payload) => key(payload).hash(&mut hasher),
            None => match event.single(0).map(Event::<T>::own) {
                Some(Ok(event)) => key(event.payload()).hash(&mut hasher),
                _ => event.envelope().event_type.as_str().hash(&mut hasher),
            },
        }
        hasher.finish()
    })
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.id())
    }
}

impl fmt::Debug for NodeInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.name)
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registration({:?} of {})", self.id, self.node.name)
    }
}

/// What a node does with an event: runs it at once in this process, remembers it first, or leaves it to other processes
/// too.
const PLAIN: u8 = 0;
const DURABLE: u8 = 1;
const SHARED: u8 = 2;

/// Places for flows and keys that a node keeps although nobody is in them.
const IDLE_PLACES_MAX: usize = 1_024;
