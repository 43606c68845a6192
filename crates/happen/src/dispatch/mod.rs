//! The way of an event into a node: acceptance, admission, its registrations, their flows, the outcome. Everything
//! here runs on the sender's stack; only what has to wait leaves it.

mod publish;
mod queue;
mod reply;
mod task;

use std::sync::Arc;

use happen_core::{Envelope, ErasedEvent, Error, ErrorKind, Event, Result};
use tokio::sync::oneshot;

use crate::accept::{Acceptance, Origin};
use crate::context::Context;
use crate::durable::{self, Keyed};
use crate::encoded::Scope;
use crate::flow::{self, Held, Outcome, Paused};
use crate::hooks::{Moment, Seen};
use crate::identity;
use crate::lent::{Lease, Way};
use crate::local;
use crate::node::NodeInner;
use crate::slow;
use crate::stream::{Sink, Source};
use crate::sync::isolated;
use crate::table::{Entry, Lane, Phase, Route, Table};
use crate::waits::WaitGuard;
use crate::web;
use queue::{Permit, enqueue, queue};
use reply::later;
use task::{run_slow, spawn_flow};

pub(crate) use publish::{Listener, bring_to, publish};
pub(crate) use queue::{Job, Place, priority_of, spawn_drain};
pub(crate) use reply::{Joined, Reply};

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
    /// The key by which an event from outside is known when it is sent again.
    pub(crate) keyed: Option<Arc<Keyed>>,
    /// Says to the others that the serial gates above wait for a place, as long as they do.
    waits: Option<WaitGuard>,
}

impl Want {
    /// What a sender wants that sends nothing along.
    #[inline(always)]
    pub(crate) const fn plain(reply: bool) -> Self {
        Self { reply, along: None }
    }

    /// The same with the way for the items of a stream.
    pub(crate) fn stream_to(self, sink: Sink) -> Self {
        self.with(|along| along.sink = Some(sink))
    }

    /// The same with the items of a broadcaster.
    pub(crate) fn items_of(self, source: Source) -> Self {
        self.with(|along| along.source = Some(source))
    }

    /// The same with the serial gates that wait for the event.
    #[inline(always)]
    pub(crate) fn held_by(self, held: Option<Arc<Held>>) -> Self {
        match held {
            None => self,
            Some(held) => self.with(|along| along.held = Some(held)),
        }
    }

    /// The same with the key of an event from outside.
    #[cold]
    pub(crate) fn known_by(self, keyed: &Arc<Keyed>) -> Self {
        self.with(|along| along.keyed = Some(Arc::clone(keyed)))
    }

    /// Whether the event has a key.
    pub(crate) fn is_keyed(&self) -> bool {
        self.along.as_ref().is_some_and(|along| along.keyed.is_some())
    }

    #[cold]
    fn with(mut self, change: impl FnOnce(&mut Along)) -> Self {
        change(self.along.get_or_insert_default());
        self
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
            Box::new(Along {
                sink: along.sink.clone(),
                source,
                held: along.held.clone(),
                keyed: None,
                waits: None,
            })
        });
        Self { reply: true, along }
    }
}

/// What became of an event that was taken by a node.
pub(crate) enum Delivered {
    /// It was handled; the outcome stands where the sender wanted it.
    Now,
    /// It is under way or waits; the receiver gets the outcome when somebody wants it.
    Later(Option<oneshot::Receiver<Outcome>>),
}

/// Brings an event to a node. An outcome that is there at once is put into `outcome`.
///
/// # Errors
///
/// When the node does not take it: closed, refused, no handler, busy, too late, or waiting would never end.
#[inline(never)]
pub(crate) fn deliver(
    node: &Arc<NodeInner>,
    way: &mut Way<'_>,
    event: &dyn ErasedEvent,
    want: Want,
    outcome: &mut Outcome,
) -> Result<Delivered> {
    node.table.read(&node.space.readers, way.here, |table| deliver_by(node, table, way, event, want, outcome))
}

#[inline(always)]
fn deliver_by(
    node: &Arc<NodeInner>,
    table: &Table,
    way: &mut Way<'_>,
    event: &dyn ErasedEvent,
    want: Want,
    outcome: &mut Outcome,
) -> Result<Delivered> {
    let mut uncached = None;
    let route = admissible(node, table, event, &mut uncached)?;
    let changed = match &table.hooks {
        None => None,
        Some(hooks) => before_handling(node, hooks, event)?,
    };
    let event = changed.as_deref().unwrap_or(event);
    if node.is_durable() {
        return durable::deliver(node, table, &route.entries, event, want);
    }
    let Some(_depth) = local::deeper() else { return put_off(node, event, want) };
    let permit = match &table.lane {
        Lane::Concurrent => {
            let max = table.max_concurrent();
            if route.plain && node.space.inline_is_uncounted(max, &node.gate) {
                Permit::uncounted(node)
            } else if node.gate.enter(max) {
                Permit::counted(node, None)
            } else {
                return queue(node, table, event, want, None);
            }
        }
        Lane::ByKey(key_of, _) => {
            let key = isolated("the key of a serial node", || key_of(event))?;
            let gate = node.key_gate(key);
            if gate.enter(table.max_by_key()) {
                Permit::counted(node, Some(key))
            } else {
                return queue(node, table, event, want, Some(key));
            }
        }
    };
    let batch = event.is_batch();
    let Some(entry) = route.only(batch) else {
        return run_many(node, table, &route.entries, event, &want, Reply::Nobody, permit);
    };
    let wants_reply = want.reply;
    match run_flow(node, Some(table), way, entry, (event, batch), (want, permit.serial_key(table)), outcome) {
        Flow::Ended => Ok(Delivered::Now),
        flow => {
            let (reply, receiver) = later(Reply::Nobody, wants_reply);
            go_on(node, table, entry, event, flow, reply, permit.into_place());
            Ok(Delivered::Later(receiver))
        }
    }
}

/// The registrations for an event that the node takes: from its table, or put into `uncached`.
#[inline(always)]
pub(crate) fn admissible<'t>(
    node: &Arc<NodeInner>,
    table: &'t Table,
    event: &dyn ErasedEvent,
    uncached: &'t mut Option<Arc<Route>>,
) -> Result<&'t Route> {
    if (table.phase != Phase::Open || !node.space.is_running()) && !keeps_for_later(node, table) {
        return Err(node.closed_error(table.phase));
    }
    acceptable(node, table, event, uncached)
}

/// As [`admissible`], whether or not the node is open and its space runs.
///
/// # Errors
///
/// When the node does not accept the origin or has no registration for the type, or the deadline has passed.
#[inline(always)]
pub(crate) fn acceptable<'t>(
    node: &Arc<NodeInner>,
    table: &'t Table,
    event: &dyn ErasedEvent,
    uncached: &'t mut Option<Arc<Route>>,
) -> Result<&'t Route> {
    let envelope = event.envelope();
    if let Some(accept) = &table.accept {
        accepted(node, accept, event)?;
    }
    if envelope.deadline_unix_ms != 0 && node.space.now_unix_ms() >= envelope.deadline_unix_ms {
        return Err(late(envelope));
    }
    let route = table.route(&envelope.event_type, uncached);
    if route.entries.is_empty() {
        return Err(no_handler(node, envelope));
    }
    Ok(route)
}

/// Whether the node accepts where each of the events comes from, and the space's policies let each of them through.
#[inline(never)]
fn accepted(node: &NodeInner, accept: &Acceptance, event: &dyn ErasedEvent) -> Result<()> {
    let singles = (0..event.len()).filter_map(|index| event.single(index));
    for single in singles.filter(|_| accept.asks_for_origins()) {
        let envelope = single.envelope();
        let (sender, origin) = (node.space.name_of(envelope.sender), node.space.name_of(envelope.origin));
        let origin = Origin::of(envelope, sender.as_deref(), origin.as_deref());
        accept
            .check(&origin)
            .map_err(|reason| Error::new(ErrorKind::Refused { node: node.name.to_string(), reason }))?;
    }
    let policies = accept.policies().map_or(Ok(()), |policies| policies.check(event));
    policies.map_err(|objection| identity::refused(node, event, objection))
}

/// Whether a node takes events although it is stopped, because the store keeps them until it goes on.
#[cold]
fn keeps_for_later(node: &NodeInner, table: &Table) -> bool {
    table.phase == Phase::Stopped && node.is_durable() && node.space.is_running()
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
pub(crate) fn before_handling(
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

/// Handles a job whose sender has gone on. With a permit it has been admitted already.
fn again(node: &Arc<NodeInner>, job: Job, permit: Option<Permit<'_>>) {
    node.table.read(&node.space.readers, node.space.here(), |table| again_by(node, table, job, permit));
}

fn again_by(node: &Arc<NodeInner>, table: &Table, job: Job, permit: Option<Permit<'_>>) {
    let Job { event, mut want, reply, keyed } = job;
    drop(keyed);
    want.set_waits(None);
    let came_by_queue = permit.is_some();
    let started = Started { node, key: permit.as_ref().and_then(Permit::key), came_by_queue };
    let mut uncached = None;
    let route = match admissible(node, table, &*event, &mut uncached) {
        Ok(route) => route,
        Err(error) => {
            drop(started);
            let error = error.at_event(event.envelope().id).at_node(&node.name);
            return node.space.undelivered(&*event, &node.name, error, reply);
        }
    };
    // Put-off work runs from the outermost level and queued work from a task, so there is room for one level more.
    let _depth = local::deeper();
    let permit = match permit {
        Some(permit) => permit,
        None => {
            let key = match &table.lane {
                Lane::Concurrent => None,
                Lane::ByKey(key_of, _) => match isolated("the key of a serial node", || key_of(&*event)) {
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
                return enqueue(node, table, Job { event, want, reply, keyed: None }, key);
            }
            Permit::counted(node, key)
        }
    };
    let Some(entry) = route.only(event.is_batch()) else {
        // Failures were reported where they happened, and the outcome goes through `reply`.
        drop(run_many(node, table, &route.entries, &*event, &want, reply, permit));
        return drop(started);
    };
    let mut outcome = Ok(None);
    let (wants_reply, serial) = (want.reply, permit.serial_key(table));
    match run_flow_aside(node, table, entry, &*event, want, serial, &mut outcome) {
        Flow::Ended => {
            drop(permit);
            if !matches!(reply, Reply::Nobody) {
                node.space.settled(&*event, node.key, &outcome);
                reply.send(outcome);
            }
        }
        flow => {
            let (reply, _nobody) = later(reply, wants_reply);
            go_on(node, table, entry, &*event, flow, reply, permit.into_place());
        }
    }
    drop(started);
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

/// A run to be made of an event: for which registration, for which one event of a batch that is taken one by one, and
/// how its guard failed.
pub(crate) type Run<'e> = (&'e Arc<Entry>, Option<usize>, Result<()>);

/// The runs whose guards want the event. A batch that is taken as a whole is wanted when each of its events is.
pub(crate) fn runs<'e>(
    node: &NodeInner,
    entries: &'e [Arc<Entry>],
    event: &dyn ErasedEvent,
) -> Result<Vec<Run<'e>>> {
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
    permit: Permit<'_>,
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
    let joined = Joined::new(runs.len(), outer);
    let serial = permit.serial_key(table);
    let place = permit.into_place();
    for (index, (entry, single, guarded)) in runs.into_iter().enumerate() {
        let event = single.and_then(|single| event.single(single)).unwrap_or(event);
        let part = Reply::Part(Arc::clone(&joined), index);
        if let Err(error) = guarded {
            let outcome = Err(failed(node, table, entry, event, error));
            node.space.settled(event, node.key, &outcome);
            part.send(outcome);
            continue;
        }
        let mut outcome = Ok(None);
        match run_flow_aside(node, table, entry, event, want.copy(), serial, &mut outcome) {
            Flow::Ended => {
                node.space.settled(event, node.key, &outcome);
                part.send(outcome);
            }
            flow => go_on(node, table, entry, event, flow, part, Arc::clone(&place)),
        }
    }
    Ok(Delivered::Later(receiver))
}

enum Flow {
    Ended,
    Waits(Context, Paused),
    /// Not begun: its handler runs elsewhere, with what the sender wants and the key of its serial gate.
    Slow(Want, Option<u64>),
}

/// As [`run_flow`], out of line, for events that did not come straight from their sender.
#[inline(never)]
fn run_flow_aside(
    node: &Arc<NodeInner>,
    table: &Table,
    entry: &Arc<Entry>,
    event: &dyn ErasedEvent,
    want: Want,
    serial: Option<u64>,
    outcome: &mut Outcome,
) -> Flow {
    let way = &mut node.space.way();
    run_flow(node, Some(table), way, entry, (event, event.is_batch()), (want, serial), outcome)
}

/// Runs the flow of one registration until it ends or waits. Without a table nothing stands before the registration, and
/// the table is looked for once it is needed.
#[inline(always)]
fn run_flow(
    node: &Arc<NodeInner>,
    table: Option<&Table>,
    way: &mut Way<'_>,
    entry: &Arc<Entry>,
    (event, batch): (&dyn ErasedEvent, bool),
    (want, serial): (Want, Option<u64>),
    outcome: &mut Outcome,
) -> Flow {
    if entry.slow.is_slow() {
        return Flow::Slow(want, serial);
    }
    let before = node.space.now_unix_ms();
    let lease = Lease::new(way, node, (event, batch), entry.id, serial, want);
    let paused = flow::run(table, entry, event, &lease, outcome);
    let waits = match paused {
        None => {
            lease.end();
            None
        }
        Some(paused) => Some((lease.keep(), paused)),
    };
    // The coarse clock may have come to stand meanwhile, just because the handler took so long.
    let ms = node.space.now_unix_ms().saturating_sub(before);
    if entry.plain {
        entry.slow.note(ms);
    } else if ms != 0 {
        let _own = slow::count_time(ms);
    }
    if let Some((context, paused)) = waits {
        return Flow::Waits(context, paused);
    }
    finish(node, table, entry, event, outcome);
    Flow::Ended
}

/// Lets a flow go on without its sender.
#[cold]
fn go_on(
    node: &Arc<NodeInner>,
    table: &Table,
    entry: &Arc<Entry>,
    event: &dyn ErasedEvent,
    flow: Flow,
    reply: Reply,
    place: Arc<Place>,
) {
    match flow {
        Flow::Ended => {}
        Flow::Waits(context, paused) => {
            spawn_flow(node, table, entry, (context, paused), event.to_shared(), reply, place);
        }
        Flow::Slow(want, serial) => {
            run_slow(node, entry, event.to_shared(), (want, serial), reply, place);
        }
    }
}

/// Tells of a failure where it is looked for: in the reply (which the outcome becomes), as an event, to the hooks.
#[inline(always)]
fn finish(
    node: &Arc<NodeInner>,
    table: Option<&Table>,
    entry: &Entry,
    event: &dyn ErasedEvent,
    outcome: &mut Outcome,
) {
    if outcome.is_err() {
        fail(node, table, entry, event, outcome);
    } else if let Some(table) = table.filter(|table| table.hooks.is_some()) {
        after_handling(node, table, event, None);
    }
}

#[cold]
fn fail(
    node: &Arc<NodeInner>,
    table: Option<&Table>,
    entry: &Entry,
    event: &dyn ErasedEvent,
    outcome: &mut Outcome,
) {
    let loaded;
    let table = match table {
        Some(table) => table,
        None => {
            loaded = node.table.load();
            &loaded
        }
    };
    *outcome = match std::mem::replace(outcome, Ok(None)) {
        Err(error) => Err(failed(node, table, entry, event, error)),
        ended => ended,
    };
}

#[cold]
fn failed(
    node: &Arc<NodeInner>,
    table: &Table,
    entry: &Entry,
    event: &dyn ErasedEvent,
    error: Error,
) -> Error {
    node.note_failed();
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
pub(crate) fn after_handling(
    node: &NodeInner,
    table: &Table,
    event: &dyn ErasedEvent,
    error: Option<&Error>,
) {
    let Some(hooks) = table.hooks.as_ref().filter(|hooks| hooks.has(Moment::AfterHandle)) else { return };
    let seen_event = as_dynamic(event);
    let seen = Seen { node: Some(&node.name), event: Some(&seen_event), state: None, error };
    if let Err(objection) = hooks.run(Moment::AfterHandle, &seen) {
        node.space.warn(node, event.envelope(), &objection.context("a hook after handling failed"));
    }
}

/// What is remembered of an outcome.
pub(crate) fn what(outcome: &Outcome) -> u8 {
    match outcome {
        Ok(Some(_)) => web::VALUE,
        Ok(None) => web::ENDED,
        Err(error) => web::failed(error.code()),
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
