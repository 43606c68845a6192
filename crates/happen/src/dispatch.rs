//! The way of an event into a node: acceptance, admission, its registrations, their flows, the outcome. Everything
//! here runs on the sender's stack; only what has to wait leaves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use happen_core::{Envelope, ErasedEvent, Error, ErrorKind, Event, EventId, Result};
use tokio::sync::oneshot;

use crate::accept::Origin;
use crate::context::Context;
use crate::encoded::Scope;
use crate::flow::{self, Drive, GateId, Held, Outcome, Ran, Waiting};
use crate::gate::Queued;
use crate::hooks::{Moment, Seen};
use crate::limits;
use crate::link::Away;
use crate::local;
use crate::node::{KeyedWait, NodeInner, Room};
use crate::stream::{Sink, Source};
use crate::sync::{Mutex, isolated, lock};
use crate::table::{Entry, Found, Lane, Phase, Route, Table};
use crate::waits::WaitGuard;
use crate::web;

/// What the sender of an event wants to know, and what it sends along.
#[derive(Default)]
pub(crate) struct Want {
    /// Whether somebody waits for the outcome.
    pub(crate) reply: bool,
    /// What few senders have; kept aside, because a want is handed on at every turn.
    along: Option<Box<Along>>,
}

#[derive(Default)]
pub(crate) struct Along {
    /// Where items of a stream go.
    pub(crate) sink: Option<Sink>,
    /// The items a broadcaster sends along.
    pub(crate) source: Option<Source>,
    /// The serial gates that wait for this event.
    pub(crate) held: Option<Arc<Held>>,
    /// Says to the others that the serial gates above wait for a place, as long as they do.
    waits: Option<WaitGuard>,
}

impl Want {
    /// What a sender of this kind wants.
    #[inline]
    pub(crate) fn new(
        reply: bool,
        sink: Option<Sink>,
        source: Option<Source>,
        held: Option<Arc<Held>>,
    ) -> Self {
        let plain = sink.is_none() && source.is_none() && held.is_none();
        let along = if plain { None } else { Some(Box::new(Along { sink, source, held, waits: None })) };
        Self { reply, along }
    }

    /// What it sends along.
    #[inline]
    pub(crate) fn take_along(&mut self) -> Option<Box<Along>> {
        self.along.take()
    }

    fn held(&self) -> Option<&Held> {
        self.along.as_ref()?.held.as_deref()
    }

    fn set_waits(&mut self, waits: Option<WaitGuard>) {
        if let Some(along) = &mut self.along {
            along.waits = waits;
        }
    }

    /// The same for one more flow of the same event.
    fn copy(&self) -> Self {
        let along = self.along.as_deref().map(|along| {
            let source = along.source.as_ref().map(Source::resubscribe);
            Box::new(Along { sink: along.sink.clone(), source, held: along.held.clone(), waits: None })
        });
        Self { reply: true, along }
    }
}

/// What became of an event that was taken by a node.
pub(crate) enum Delivered {
    /// It was handled.
    Now(Outcome),
    /// It is under way or waits; the receiver gets the outcome when somebody wants it.
    Later(Option<oneshot::Receiver<Outcome>>),
    /// It left by the link; nothing is there when nobody wants to hear of it.
    Away(Option<Box<Away>>),
}

/// An event that waits for a node.
pub(crate) struct Job {
    pub(crate) event: Arc<dyn ErasedEvent>,
    pub(crate) want: Want,
    pub(crate) reply: Reply,
    /// Counts the job among those that wait for their keys, as long as it does.
    pub(crate) keyed: Option<KeyedWait>,
}

/// Who is told of an outcome.
pub(crate) enum Reply {
    Nobody,
    One(oneshot::Sender<Outcome>),
    Part(Arc<Joined>, usize),
}

impl Reply {
    fn send(self, outcome: Outcome) {
        match self {
            Self::Nobody => {}
            // The one who asked may have gone; then nobody is left to tell.
            Self::One(to) => drop(to.send(outcome)),
            Self::Part(joined, index) => joined.settle(index, outcome),
        }
    }

    /// Whether the one who asked has gone, which asks the flow to stop.
    fn poll_gone(&mut self, task: &mut std::task::Context<'_>) -> bool {
        match self {
            Self::One(to) => to.poll_closed(task).is_ready(),
            Self::Part(joined, index) => joined.poll_gone(*index, task),
            Self::Nobody => false,
        }
    }
}

/// The outcomes of several flows for one event, joined into one: the first value by priority, then by order of
/// registration; without any value the first failure; without that, nothing.
pub(crate) struct Joined(Mutex<Parts>);

struct Parts {
    outcomes: Vec<Option<Outcome>>,
    /// Who is woken when the one who asked has gone: only one task at a time can wait for that itself.
    wakers: Vec<Option<Waker>>,
    reply: Option<Reply>,
}

impl Joined {
    fn settle(&self, index: usize, outcome: Outcome) {
        let mut parts = lock(&self.0);
        parts.outcomes[index] = Some(outcome);
        parts.wakers[index] = None;
        // This one may have been the task that waits for the asker to go; another one has to take its place.
        let next = parts.wakers.iter_mut().find_map(Option::take);
        let joined = join(&mut parts.outcomes).and_then(|joined| Some((joined, parts.reply.take()?)));
        drop(parts);
        if let Some((joined, reply)) = joined {
            reply.send(joined);
        }
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

impl Joined {
    fn poll_gone(&self, index: usize, task: &mut std::task::Context<'_>) -> bool {
        let mut parts = lock(&self.0);
        let gone = parts.reply.as_mut().is_some_and(|reply| reply.poll_gone(task));
        if !gone {
            parts.wakers[index] = Some(task.waker().clone());
            return false;
        }
        parts.wakers[index] = None;
        let others: Vec<_> = parts.wakers.iter_mut().filter_map(Option::take).collect();
        drop(parts);
        others.into_iter().for_each(Waker::wake);
        true
    }
}

/// The joined outcome, as soon as it cannot change any more.
fn join(outcomes: &mut [Option<Outcome>]) -> Option<Outcome> {
    for outcome in outcomes.iter_mut() {
        match outcome {
            // A flow of higher priority may still give a value.
            None => return None,
            Some(Ok(Some(_))) => return outcome.take(),
            Some(_) => {}
        }
    }
    let failed = outcomes.iter_mut().find(|outcome| matches!(outcome, Some(Err(_))));
    Some(failed.and_then(Option::take).unwrap_or(Ok(None)))
}

/// Brings an event to a node.
///
/// # Errors
///
/// When the node does not take it: closed, refused, no handler, busy, too late, or waiting would never end.
#[inline]
pub(crate) fn deliver(node: &Arc<NodeInner>, event: &dyn ErasedEvent, want: Want) -> Result<Delivered> {
    let table = node.table.load();
    let route = admissible(node, &table, event)?;
    let changed = match &table.hooks {
        None => None,
        Some(hooks) => before_handling(node, hooks, event)?,
    };
    let event = changed.as_deref().unwrap_or(event);
    let Some(_depth) = local::deeper() else { return put_off(node, event, want) };
    let max = table.max_concurrent();
    let permit = match &table.lane {
        Lane::Concurrent => {
            if route.plain && node.space.inline_is_uncounted(max, &node.gate) {
                Permit::Uncounted
            } else if node.gate.enter(max) {
                Permit::Held(Place::new(node, None))
            } else {
                return queue(node, &table, event, want, None);
            }
        }
        Lane::ByKey(key_of) => {
            let key = isolated("the key of a serial node", || key_of(event))?;
            let gate = node.key_gate(key);
            if gate.enter(table.max_by_key()) {
                Permit::Held(Place::new(node, Some(key)))
            } else {
                return queue(node, &table, event, want, Some(key));
            }
        }
    };
    run(node, &table, &route, event, want, Reply::Nobody, permit)
}

/// The registrations for an event that the node takes.
#[inline]
fn admissible<'t>(node: &Arc<NodeInner>, table: &'t Table, event: &dyn ErasedEvent) -> Result<Found<'t>> {
    if table.phase != Phase::Open || !node.space.is_running() {
        return Err(node.closed_error(table.phase));
    }
    let envelope = event.envelope();
    if let Some(accept) = &table.accept {
        let (sender, origin) = (node.space.name_of(envelope.sender), node.space.name_of(envelope.origin));
        let origin = Origin::of(envelope, sender.as_deref(), origin.as_deref());
        accept
            .check(&origin)
            .map_err(|reason| Error::new(ErrorKind::Refused { node: node.name.to_string(), reason }))?;
    }
    if envelope.deadline_unix_ms != 0 && node.space.env.coarse_unix_ms() >= envelope.deadline_unix_ms {
        return Err(late(envelope));
    }
    let route = table.route(&envelope.event_type);
    if route.entries.is_empty() {
        return Err(no_handler(node, envelope));
    }
    Ok(route)
}

#[cold]
fn late(envelope: &Envelope) -> Error {
    let after = envelope.deadline_unix_ms.saturating_sub(envelope.at_unix_ms);
    Error::new(ErrorKind::TimedOut { after: std::time::Duration::from_millis(after) })
}

#[cold]
fn no_handler(node: &NodeInner, envelope: &Envelope) -> Error {
    Error::new(ErrorKind::NoHandler {
        node: node.name.to_string(),
        event_type: envelope.event_type.as_str().to_owned(),
    })
}

#[cold]
fn before_handling(
    node: &NodeInner,
    hooks: &crate::hooks::Hooks,
    event: &dyn ErasedEvent,
) -> Result<Option<Arc<dyn ErasedEvent>>> {
    let changed = hooks.transform(event)?;
    if hooks.has(Moment::BeforeHandle) {
        let seen_event = as_dynamic(changed.as_deref().unwrap_or(event));
        let seen = Seen { node: Some(&node.name), event: Some(&seen_event), state: None, error: None };
        hooks.run(Moment::BeforeHandle, &seen).map_err(|error| {
            let reason = format!("a hook objected: {error}");
            Error::new(ErrorKind::Refused { node: node.name.to_string(), reason })
                .with_source(error.into_std())
        })?;
    }
    Ok(changed)
}

/// Too deep in handlers that run inline, or behind others that were: the event waits for the stack to unwind.
#[cold]
fn put_off(node: &Arc<NodeInner>, event: &dyn ErasedEvent, want: Want) -> Result<Delivered> {
    let (reply, receiver) = later(Reply::Nobody, want.reply);
    let job = Job { event: event.to_shared(), want, reply, keyed: None };
    let node = Arc::clone(node);
    local::defer(Box::new(move || again(&node, job, None)))?;
    Ok(Delivered::Later(receiver))
}

/// Handles a job whose sender has gone on. With `place` it has been admitted already.
fn again(node: &Arc<NodeInner>, job: Job, place: Option<Place>) {
    let Job { event, mut want, reply, keyed } = job;
    drop(keyed);
    want.set_waits(None);
    let came_by_queue = place.is_some();
    let table = node.table.load();
    let admitted = admissible(node, &table, &*event);
    let started = Started { node, key: place.as_ref().and_then(|place| place.key), came_by_queue };
    let route = match admitted {
        Ok(route) => route,
        Err(error) => {
            drop(started);
            let error = error.at_event(event.envelope().id).at_node(&node.name);
            return node.space.undelivered(&*event, &node.name, error, reply);
        }
    };
    // Put-off work runs from the outermost level and queued work from a task, so there is room for one level more.
    let _depth = local::deeper();
    let permit = match place {
        Some(place) => place,
        None => {
            let key = match &table.lane {
                Lane::Concurrent => None,
                Lane::ByKey(key_of) => match isolated("the key of a serial node", || key_of(&*event)) {
                    Ok(key) => Some(key),
                    Err(error) => {
                        drop(started);
                        return node.space.undelivered(&*event, &node.name, error, reply);
                    }
                },
            };
            let entered = match key {
                None => node.gate.enter(table.max_concurrent()),
                Some(key) => node.key_gate(key).enter(table.max_by_key()),
            };
            if !entered {
                return enqueue(node, &table, Job { event, want, reply, keyed: None }, key);
            }
            Place::new(node, key)
        }
    };
    let result = run(node, &table, &route, &*event, want, reply, Permit::Held(permit));
    drop(started);
    // The outcome went through `reply`, and failures were reported where they happened.
    drop(result);
}

/// Says that a job which came by the queue has started, whatever way it is left.
struct Started<'n> {
    node: &'n Arc<NodeInner>,
    key: Option<u64>,
    came_by_queue: bool,
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        if self.came_by_queue {
            match self.key {
                None => self.node.gate.started(),
                Some(key) => self.node.key_started(key),
            }
        }
    }
}

/// How a delivery is counted against the node's limit.
enum Permit {
    /// Not at all while it runs inline: the limit leaves room for what can run so.
    Uncounted,
    /// By a place in a gate.
    Held(Place),
}

/// A place in a node's gate, given back when it is dropped.
pub(crate) struct Place {
    node: Arc<NodeInner>,
    key: Option<u64>,
    held: AtomicBool,
}

impl Place {
    fn new(node: &Arc<NodeInner>, key: Option<u64>) -> Self {
        Self { node: Arc::clone(node), key, held: AtomicBool::new(true) }
    }

    /// Whether only one at a time has such a place; it is then kept while its flow waits for a reply.
    fn is_serial(&self) -> bool {
        self.key.is_some() || self.node.table.load().options.max_concurrent == 1
    }

    /// Gives the place back while its flow waits for a reply.
    pub(crate) fn release(&self) {
        if !self.is_serial() && self.held.swap(false, Ordering::SeqCst) {
            self.give_back();
        }
    }

    /// Takes the place again, even beyond the limit: a flow under way is never made to wait behind newer ones.
    pub(crate) fn retake(&self) {
        if !self.held.swap(true, Ordering::SeqCst) {
            self.node.gate.enter_anyway();
        }
    }

    fn give_back(&self) {
        let drain = match self.key {
            None => self.node.gate.leave(),
            Some(key) => self.node.leave_key(key),
        };
        if drain {
            spawn_drain(&self.node, self.key);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if *self.held.get_mut() {
            self.give_back();
        }
    }
}

#[cold]
fn queue(
    node: &Arc<NodeInner>,
    table: &Table,
    event: &dyn ErasedEvent,
    want: Want,
    key: Option<u64>,
) -> Result<Delivered> {
    let (reply, receiver) = later(Reply::Nobody, want.reply);
    let job = Job { event: event.to_shared(), want, reply, keyed: None };
    match try_enqueue(node, table, job, key) {
        Ok(()) => Ok(Delivered::Later(receiver)),
        Err((_, error)) => Err(error),
    }
}

fn enqueue(node: &Arc<NodeInner>, table: &Table, job: Job, key: Option<u64>) {
    if let Err((job, error)) = try_enqueue(node, table, job, key) {
        node.space.undelivered(&*job.event, &node.name, error, job.reply);
    }
}

fn try_enqueue(
    node: &Arc<NodeInner>,
    table: &Table,
    mut job: Job,
    key: Option<u64>,
) -> Result<(), (Job, Error)> {
    let options = &table.options;
    if job.want.reply && (options.max_concurrent == 1 || key.is_some()) {
        match node.space.waits.enter(node, gate_id(node, key), job.want.held()) {
            Ok(waits) => job.want.set_waits(waits),
            Err(error) => return Err((job, error)),
        }
    }
    let priority = priority_of(job.event.envelope());
    let keyed;
    let (gate, max) = match key {
        None => (&node.gate, table.max_concurrent()),
        Some(key) => {
            keyed = node.key_gate(key);
            (&*keyed, table.max_by_key())
        }
    };
    let own = gate.waiting() as usize;
    // The keys have a limit together: many keys with a few events each would be a queue without an end. Where the oldest
    // gives way, it is the oldest of the same key.
    let (order, overflow) = (options.queue_order, options.overflow);
    let instead = overflow == crate::config::Overflow::DropOldest && own > 0;
    let (queued, waiting) = match key.map(|_| node.wait_for_key(&mut job, options.queue_limit, instead)) {
        None => (gate.queue(job, priority, max, options.queue_limit, order, overflow), own + 1),
        Some(Room::Free(all)) => (gate.queue(job, priority, max, usize::MAX, order, overflow), all),
        Some(Room::Instead) => (gate.queue(job, priority, max, own, order, overflow), options.queue_limit),
        Some(Room::None) => (Queued::Full(job), options.queue_limit),
    };
    node.space.note_pressure(node, waiting, options.queue_limit);
    match queued {
        Queued::Waits => {
            // The look after the write: a held node may have been let go before its supervisor could see this job.
            if table.is_held() && !node.table.load().is_held() && gate.claim_drain() {
                spawn_drain(node, key);
            }
            Ok(())
        }
        Queued::Drain => {
            spawn_drain(node, key);
            Ok(())
        }
        Queued::Instead(oldest) => {
            let what = format!("queue of node `{}` ({} events)", node.name, options.queue_limit);
            let error = Error::new(ErrorKind::Busy { what });
            node.space.undelivered(&*oldest.event, &node.name, error, oldest.reply);
            Ok(())
        }
        Queued::Full(job) => {
            let what = format!("queue of node `{}` ({} events)", node.name, options.queue_limit);
            let error =
                Error::new(ErrorKind::Busy { what }).at_event(job.event.envelope().id).at_node(&node.name);
            if options.overflow == crate::config::Overflow::DropNewest {
                node.space.undelivered(&*job.event, &node.name, error, job.reply);
                return Ok(());
            }
            Err((job, error))
        }
    }
}

fn priority_of(envelope: &Envelope) -> i64 {
    let metadata = envelope.extra.as_ref().and_then(|extra| extra.metadata.get("priority"));
    metadata.and_then(serde_json::Value::as_i64).unwrap_or(0)
}

/// Starts waiting jobs from a task of their own, so that whoever freed the place is not held up by the work of others.
#[cold]
pub(crate) fn spawn_drain(node: &Arc<NodeInner>, key: Option<u64>) {
    let node = Arc::clone(node);
    let env = Arc::clone(&node.space.env);
    env.spawn(Box::pin(async move {
        let mut run = 0;
        loop {
            let table = node.table.load();
            let next = match key {
                None => node.gate.next(table.max_concurrent()),
                Some(key) => node.key_gate(key).next(table.max_by_key()),
            };
            drop(table);
            let Some(job) = next else { return };
            again(&node, job, Some(Place::new(&node, key)));
            run += 1;
            if run % DRAIN_RUN == 0 {
                crate::space::yield_now().await;
            }
        }
    }));
}

/// Runs every registration's flow for an event that was admitted.
#[inline]
fn run(
    node: &Arc<NodeInner>,
    table: &Table,
    route: &Route,
    event: &dyn ErasedEvent,
    want: Want,
    reply: Reply,
    permit: Permit,
) -> Result<Delivered> {
    if let [entry] = &route.entries[..]
        && entry.guard.is_none()
        && (!event.is_batch() || entry.function.takes_batch())
    {
        return Ok(run_one(node, table, entry, event, want, reply, permit));
    }
    run_many(node, table, &route.entries, event, &want, reply, permit)
}

#[inline]
fn run_one(
    node: &Arc<NodeInner>,
    table: &Table,
    entry: &Arc<Entry>,
    event: &dyn ErasedEvent,
    want: Want,
    reply: Reply,
    permit: Permit,
) -> Delivered {
    let wants_reply = want.reply;
    let serial = serial_key(table, &permit);
    match run_flow(node, table, entry, event, want, serial) {
        Flow::Ended(outcome) => {
            drop(permit);
            if let Reply::Nobody = reply {
                return Delivered::Now(outcome);
            }
            node.space.settled(event, node.key, &outcome);
            reply.send(outcome);
            Delivered::Later(None)
        }
        Flow::Waits(waiting) => {
            let (reply, receiver) = later(reply, wants_reply);
            spawn_flow(node, table, entry, waiting, event.to_shared(), reply, place(node, permit));
            Delivered::Later(receiver)
        }
        Flow::Slow(want, serial) => {
            let (reply, receiver) = later(reply, wants_reply);
            run_slow(node, entry, event.to_shared(), (want, serial), reply, place(node, permit));
            Delivered::Later(receiver)
        }
    }
}

/// Who is told of an outcome that comes later: the one who was to be told already, or whoever asked just now.
#[cold]
fn later(reply: Reply, wants_reply: bool) -> (Reply, Option<oneshot::Receiver<Outcome>>) {
    match reply {
        Reply::Nobody if wants_reply => {
            let (to, from) = oneshot::channel();
            (Reply::One(to), Some(from))
        }
        reply => (reply, None),
    }
}

/// A run to be made of an event: for which registration, for which one event of a batch that is taken one by one, and
/// how its guard failed.
type Run<'e> = (&'e Arc<Entry>, Option<usize>, Result<()>);

/// The runs whose guards want the event. A batch that is taken as a whole is wanted when each of its events is.
fn runs<'e>(node: &NodeInner, entries: &'e [Arc<Entry>], event: &dyn ErasedEvent) -> Result<Vec<Run<'e>>> {
    let mut runs: Vec<Run<'e>> = Vec::new();
    for entry in entries {
        let mut wanted = (0..event.len()).map(|index| wants(entry, event.single(index).unwrap_or(event)));
        if event.is_batch() && !entry.function.takes_batch() {
            let singles = wanted.enumerate().filter(|(_, wanted)| !matches!(wanted, Ok(false)));
            runs.extend(singles.map(|(index, wanted)| (entry, Some(index), wanted.map(drop))));
        } else {
            match wanted.find(|wanted| !matches!(wanted, Ok(true))) {
                None => runs.push((entry, None, Ok(()))),
                Some(Err(error)) => runs.push((entry, None, Err(error))),
                Some(Ok(_)) => {}
            }
        }
    }
    if runs.is_empty() { Err(no_handler(node, event.envelope())) } else { Ok(runs) }
}

/// What the guard of a registration says to an event. One that panics fails the flow it would have let begin.
fn wants(entry: &Entry, event: &dyn ErasedEvent) -> Result<bool> {
    entry.guard.as_ref().map_or(Ok(true), |guard| isolated("a guard", || guard(&as_dynamic(event))))
}

/// Several registrations, or one that looks at the event first, or a batch taken one by one.
#[cold]
fn run_many(
    node: &Arc<NodeInner>,
    table: &Table,
    entries: &[Arc<Entry>],
    event: &dyn ErasedEvent,
    want: &Want,
    reply: Reply,
    permit: Permit,
) -> Result<Delivered> {
    let runs = match runs(node, entries, event) {
        Ok(runs) => runs,
        Err(error) => match reply {
            Reply::Nobody => return Err(error),
            reply => {
                node.space.undelivered(event, &node.name, error, reply);
                return Ok(Delivered::Later(None));
            }
        },
    };
    let (outer, receiver) = later(reply, want.reply);
    let _encoded = Scope::open(&node.space, event);
    let outcomes = runs.iter().map(|_| None).collect();
    let wakers = vec![None; runs.len()];
    let joined = Arc::new(Joined(Mutex::new(Parts { outcomes, wakers, reply: Some(outer) })));
    let serial = serial_key(table, &permit);
    let place = place(node, permit);
    for (index, (entry, single, guarded)) in runs.into_iter().enumerate() {
        let event = single.and_then(|single| event.single(single)).unwrap_or(event);
        if let Err(error) = guarded {
            let outcome = Err(failed(node, table, entry, event, error));
            node.space.settled(event, node.key, &outcome);
            Reply::Part(Arc::clone(&joined), index).send(outcome);
            continue;
        }
        let want = want.copy();
        let part = Reply::Part(Arc::clone(&joined), index);
        match run_flow(node, table, entry, event, want, serial) {
            Flow::Ended(outcome) => {
                node.space.settled(event, node.key, &outcome);
                part.send(outcome);
            }
            Flow::Waits(waiting) => {
                spawn_flow(node, table, entry, waiting, event.to_shared(), part, Arc::clone(&place));
            }
            Flow::Slow(want, serial) => {
                run_slow(node, entry, event.to_shared(), (want, serial), part, Arc::clone(&place));
            }
        }
    }
    Ok(Delivered::Later(receiver))
}

enum Flow {
    Ended(Outcome),
    Waits(Waiting),
    /// Not begun: its handler runs elsewhere, with what the sender wants and the key of its serial gate.
    Slow(Want, Option<u64>),
}

/// The key of the serial gate that flows of this delivery are in.
#[inline]
fn serial_key(table: &Table, permit: &Permit) -> Option<u64> {
    match permit {
        Permit::Held(place) if place.key.is_some() || table.options.max_concurrent == 1 => {
            Some(place.key.unwrap_or(0))
        }
        _ => None,
    }
}

#[inline]
fn run_flow(
    node: &Arc<NodeInner>,
    table: &Table,
    entry: &Arc<Entry>,
    event: &dyn ErasedEvent,
    want: Want,
    serial: Option<u64>,
) -> Flow {
    if entry.slow.is_slow() {
        return Flow::Slow(want, serial);
    }
    let context = Context::start(node, event, entry.id, serial, want);
    let plain = entry.plain;
    let before = if plain { node.space.env.coarse_unix_ms() } else { 0 };
    match flow::run(table, entry, event, context) {
        Ran::Ended(outcome) => {
            if plain {
                // The coarse clock may have come to stand meanwhile, just because the handler took so long.
                entry.slow.note(node.space.env.coarse_unix_ms().saturating_sub(before));
            }
            Flow::Ended(finish(node, table, entry, event, outcome))
        }
        Ran::Waits(waiting) => Flow::Waits(waiting),
    }
}

/// Tells of a failure where it is looked for: in the reply (which the outcome becomes), as an event, to the hooks.
#[inline]
fn finish(
    node: &Arc<NodeInner>,
    table: &Table,
    entry: &Entry,
    event: &dyn ErasedEvent,
    outcome: Outcome,
) -> Outcome {
    match outcome {
        Ok(value) => {
            if table.hooks.is_some() {
                after_handling(node, table, event, None);
            }
            Ok(value)
        }
        Err(error) => Err(failed(node, table, entry, event, error)),
    }
}

#[cold]
fn failed(
    node: &Arc<NodeInner>,
    table: &Table,
    entry: &Entry,
    event: &dyn ErasedEvent,
    error: Error,
) -> Error {
    let error = error.at_event(event.envelope().id).at_node(&node.name);
    after_handling(node, table, event, Some(&error));
    // The table of now: a flow may have begun before its node was given a supervisor.
    if let Some(watched) = node.table.load().watched.clone() {
        (watched.watch)(event, &error);
    }
    node.space.flow_failed(node, &entry.name, event, &error);
    error
}

#[cold]
fn after_handling(node: &NodeInner, table: &Table, event: &dyn ErasedEvent, error: Option<&Error>) {
    let Some(hooks) = table.hooks.as_ref().filter(|hooks| hooks.has(Moment::AfterHandle)) else { return };
    let seen_event = as_dynamic(event);
    let seen = Seen { node: Some(&node.name), event: Some(&seen_event), state: None, error };
    if let Err(objection) = hooks.run(Moment::AfterHandle, &seen) {
        node.space.warn(node, event.envelope(), &objection.context("a hook after handling failed"));
    }
}

/// A counted place for a delivery that goes on after its sender.
fn place(node: &Arc<NodeInner>, permit: Permit) -> Arc<Place> {
    Arc::new(match permit {
        Permit::Held(place) => place,
        Permit::Uncounted => {
            node.gate.enter_anyway();
            Place::new(node, None)
        }
    })
}

/// Lets a flow that waits go on as a task of its own.
#[cold]
fn spawn_flow(
    node: &Arc<NodeInner>,
    table: &Table,
    entry: &Arc<Entry>,
    waiting: Waiting,
    event: Arc<dyn ErasedEvent>,
    mut reply: Reply,
    place: Arc<Place>,
) {
    let space = &node.space;
    let context = waiting.context.clone();
    context.inner().set_place(&place);
    let under_way = node.under_way(&context, table.build());
    let entry = Arc::clone(entry);
    let mut drive = Drive::new(waiting, Arc::clone(&event), table.options.flow_time_max());
    let node = Arc::clone(node);
    space.env.spawn(Box::pin(async move {
        let mut gone = false;
        let outcome = std::future::poll_fn(|task| {
            use std::future::Future;
            if !gone && reply.poll_gone(task) {
                gone = true;
                // Once more before it is cancelled: a flow that emits learns that its reader has gone and cleans up.
                let polled = std::pin::Pin::new(&mut drive).poll(task);
                if polled.is_ready() {
                    return polled;
                }
                context.inner().cancel();
            }
            std::pin::Pin::new(&mut drive).poll(task)
        })
        .await;
        drop(drive);
        let table = node.table.load_full();
        let outcome = finish(&node, &table, &entry, &*event, outcome);
        node.space.settled(&*event, node.key, &outcome);
        // The place first: whoever gets the reply may send the next event at once and finds it free.
        drop(place);
        context.end();
        reply.send(outcome);
        // Last: a space that stops waits for what is under way and then leaves its link, which takes the reply along.
        drop(under_way);
    }));
}

/// Runs a plain handler that proved slow on a thread of its own, in order.
#[cold]
fn run_slow(
    node: &Arc<NodeInner>,
    entry: &Arc<Entry>,
    event: Arc<dyn ErasedEvent>,
    (want, serial): (Want, Option<u64>),
    reply: Reply,
    place: Arc<Place>,
) {
    let (at, lane) = (Arc::clone(node), Arc::clone(entry));
    let overflow_event = Arc::clone(&event);
    let shared = Arc::new(Mutex::new(Some(reply)));
    let reply = Arc::clone(&shared);
    let job: crate::slow::SlowJob = Box::new(move || {
        let table = at.table.load_full();
        let context = Context::start(&at, &*event, lane.id, serial, want);
        let outcome = match flow::run(&table, &lane, &*event, context) {
            Ran::Ended(outcome) => finish(&at, &table, &lane, &*event, outcome),
            Ran::Waits(waiting) => {
                let reply = lock(&reply).take().unwrap_or(Reply::Nobody);
                return spawn_flow(&at, &table, &lane, waiting, event, reply, place);
            }
        };
        at.space.settled(&*event, at.key, &outcome);
        drop(place);
        let reply = lock(&reply).take().unwrap_or(Reply::Nobody);
        reply.send(outcome);
    });
    let order = crate::config::QueueOrder::Fifo;
    let reject = crate::config::Overflow::Reject;
    match entry.slow.gate.queue(job, 0, 1, limits::SLOW_QUEUE_LIMIT, order, reject) {
        Queued::Drain => {
            let lane = Arc::clone(&entry.slow);
            node.space.env.spawn_blocking(Box::new(move || {
                while let Some(job) = lane.gate.next(1) {
                    lane.gate.started();
                    job();
                    // The one that drains is the one that leaves, so nobody else has to be told.
                    let _drain = lane.gate.leave();
                }
            }));
        }
        Queued::Waits | Queued::Instead(_) => {}
        Queued::Full(job) => {
            drop(job);
            let what = format!("queue of the slow handler `{}` of node `{}`", entry.name, node.name);
            let reply = lock(&shared).take().unwrap_or(Reply::Nobody);
            node.space.undelivered(&*overflow_event, &node.name, Error::new(ErrorKind::Busy { what }), reply);
        }
    }
}

impl Reply {
    /// Tells of a failure before any flow started.
    pub(crate) fn refuse(self, error: Error) {
        self.send(Err(error));
    }
}

pub(crate) fn gate_id(node: &NodeInner, key: Option<u64>) -> GateId {
    (node.key.0, key.unwrap_or(0))
}

/// What is remembered of an outcome.
pub(crate) fn what(outcome: &Outcome) -> u8 {
    match outcome {
        Ok(Some(_)) => web::VALUE,
        Ok(None) => web::ENDED,
        Err(error) => web::failed(error.code()),
    }
}

/// Brings an event to everyone who listens. What becomes of it is remembered for each listener.
pub(crate) fn publish(
    listeners: &[Arc<NodeInner>],
    event: &dyn ErasedEvent,
    id: EventId,
    source: Option<&tokio::sync::broadcast::Sender<happen_core::Value>>,
) {
    let space = listeners.first().map(|node| &node.space);
    let _encoded = space.and_then(|space| Scope::open(space, event));
    for node in listeners {
        let want = Want::new(false, None, source.map(tokio::sync::broadcast::Sender::subscribe), None);
        match deliver(node, event, want) {
            Ok(Delivered::Now(outcome)) => node.space.settled(event, node.key, &outcome),
            Ok(Delivered::Later(_) | Delivered::Away(_)) => node.space.remember(id, node.key, web::WAITING),
            // Every guard of the node said no, or it stopped listening since the list was made.
            Err(error) if matches!(error.kind(), ErrorKind::NoHandler { .. }) => {}
            Err(error) => {
                node.space.remember(id, node.key, web::failed(error.code()));
                let error = error.at_event(id).at_node(&node.name);
                node.space.undelivered(event, &node.name, error, Reply::Nobody);
            }
        }
    }
}

/// An event as hooks and guards see it: its fields by path.
pub(crate) fn as_dynamic(event: &dyn ErasedEvent) -> Event {
    let envelope = event.envelope().clone();
    let payload = event.payload();
    let dynamic = match payload.as_any().downcast_ref::<happen_core::Dynamic>() {
        Some(same) => same.clone(),
        None => happen_core::Dynamic::from_erased_payload(envelope.event_type.clone(), payload),
    };
    Event::from_parts(envelope, dynamic)
}

/// Waiting jobs started in a row before other tasks get their turn.
const DRAIN_RUN: usize = 64;
