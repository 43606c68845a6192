//! One run of a node's functions for one event: on the caller's stack as far as it is ready, as a task of its own from
//! its first wait on. Owns the order of steps and their limits; does not know how the event came here.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use happen_core::env::BoxFuture;
pub(crate) use happen_core::function::Outcome;
use happen_core::function::Started;
use happen_core::pool::StepFuture;
use happen_core::step::Kind;
use happen_core::{Envelope, ErasedEvent, Error, ErrorKind, EventId, EventType, Function, Result, Step};

use crate::context::Context;
use crate::current;
use crate::dispatch::{Along, Place, Want};
use crate::durable::Stage;
use crate::lent::Lent;
use crate::node::NodeInner;
use crate::stream::{Sink, Source};
use crate::sync::{Mutex, kept_going, lock};
use crate::table::{Entry, StepEntry, Table};

/// What the steps of one flow share, and what is sent by them inherits from.
pub(crate) struct FlowInner {
    pub(crate) lent: Lent,
    /// Causes of effects beyond the first, when a batch is handled.
    pub(crate) more_causes: Vec<EventId>,
    /// The types of those, in the same order.
    pub(crate) more_types: Vec<EventType>,
    pub(crate) registration: u64,
    /// The serial gate this flow is in, by the key of its lane.
    pub(crate) serial: Option<u64>,
    /// The serial gates that wait for this flow.
    pub(crate) held: Option<Arc<Held>>,
    pub(crate) emitted: AtomicU32,
    /// The halves of the id that was given last to something sent from here; 0 for none.
    last_effect: [AtomicU64; 2],
    /// Steps remembered for its trace.
    pub(crate) noted_steps: AtomicU32,
    pub(crate) cancelled: AtomicBool,
    ended: AtomicBool,
    /// Whether `vars` was ever used, so that ending a flow takes no lock for nothing.
    used: AtomicBool,
    vars: Mutex<Vars>,
    /// The place of the delivery this flow belongs to, once it goes on as a task.
    place: OnceLock<Weak<Place>>,
    /// What a step of a durable node has done so far; none for others.
    pub(crate) stage: Option<Arc<Stage>>,
}

#[derive(Default)]
struct Vars {
    named: Vec<(Cow<'static, str>, Box<dyn Any + Send>)>,
    waker: Option<Waker>,
    source: Option<Source>,
    sink: Option<Sink>,
}

/// A serial gate that waits, and the one that waits for it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) node: Arc<str>,
    pub(crate) gate: GateId,
    pub(crate) up: Option<Arc<Self>>,
}

impl Drop for Held {
    /// One by one: a chain is as long as asking went deep, and dropping it link inside link would need as long a stack.
    fn drop(&mut self) {
        let mut next = self.up.take();
        while let Some(mut held) = next.and_then(Arc::into_inner) {
            next = held.up.take();
        }
    }
}

/// A serial gate: its node, and the key of its lane.
pub(crate) type GateId = (u32, u64);

/// What a flow does next: where it is now.
pub(crate) enum Current {
    Entry(Arc<Entry>),
    Step(Arc<StepEntry>),
    Next(Box<dyn Function>),
}

/// A flow that waits: with its context, everything it needs to go on.
pub(crate) struct Paused {
    future: StepFuture,
    current: Current,
    steps: Steps,
}

/// The steps a flow took: their number, and the names of the last ones once it comes near the limit.
struct Steps {
    count: u32,
    last: Vec<&'static str>,
}

impl FlowInner {
    pub(crate) fn new(node: Arc<NodeInner>, envelope: Envelope) -> Self {
        Self {
            lent: Lent::owned(node, envelope),
            more_causes: Vec::new(),
            more_types: Vec::new(),
            registration: 0,
            serial: None,
            held: None,
            emitted: AtomicU32::new(0),
            last_effect: [AtomicU64::new(0), AtomicU64::new(0)],
            noted_steps: AtomicU32::new(0),
            cancelled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            used: AtomicBool::new(false),
            vars: Mutex::new(Vars::default()),
            place: OnceLock::new(),
            stage: None,
        }
    }

    /// The step of a durable node that this is.
    #[inline]
    pub(crate) const fn stage(&self) -> Option<&Arc<Stage>> {
        self.stage.as_ref()
    }

    /// The streams that came along with the event.
    pub(crate) fn set_streams(&mut self, sink: Option<Sink>, source: Option<Source>) {
        self.set_sink(sink);
        self.set_source(source);
    }

    pub(crate) fn set_place(&self, place: &Arc<Place>) {
        // A flow is made a task once, so the cell is empty.
        let _set = self.place.set(Arc::downgrade(place));
    }

    /// The place of its delivery, while it has one.
    pub(crate) fn place(&self) -> Option<Arc<Place>> {
        self.place.get()?.upgrade()
    }

    #[inline]
    pub(crate) fn node(&self) -> &Arc<NodeInner> {
        self.lent.node()
    }

    #[inline]
    pub(crate) fn envelope(&self) -> &Envelope {
        self.lent.envelope()
    }

    /// The youngest of what was sent from here. Threads that send at once may see each other's or not.
    #[inline]
    pub(crate) fn last_effect(&self) -> Option<EventId> {
        let [high, low] = &self.last_effect;
        EventId::from_halves(high.load(Ordering::Relaxed), low.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn note_effect(&self, id: EventId) {
        let (high, low) = id.to_halves();
        self.last_effect[0].store(high, Ordering::Relaxed);
        self.last_effect[1].store(low, Ordering::Relaxed);
    }

    /// Makes a flow that nobody else has ready for another event.
    #[inline(always)]
    pub(crate) fn begin(
        &mut self,
        event: &dyn ErasedEvent,
        batch: bool,
        registration: u64,
        serial: Option<u64>,
        mut want: Want,
    ) {
        self.registration = registration;
        self.serial = serial;
        *self.emitted.get_mut() = 0;
        *self.last_effect[0].get_mut() = 0;
        *self.noted_steps.get_mut() = 0;
        *self.cancelled.get_mut() = false;
        *self.ended.get_mut() = false;
        // What follows is rarely there: asking costs less than dropping nothing.
        if !self.more_causes.is_empty() {
            self.more_causes.clear();
            self.more_types.clear();
        }
        if self.held.is_some() {
            self.held = None;
        }
        if *self.used.get_mut() {
            // Somebody who kept a clone put values there after the flow had ended.
            self.clear_vars();
        }
        if self.place.get().is_some() {
            self.place = OnceLock::new();
        }
        if let Some(along) = want.take_along() {
            self.take_along(*along);
        }
        if batch {
            let others = (1..event.len()).filter_map(|index| event.single(index));
            for other in others.map(ErasedEvent::envelope) {
                self.more_causes.push(other.id);
                self.more_types.push(other.event_type.clone());
            }
        }
    }

    /// Ends the flow: drops what the steps left behind. Whoever kept a clone of the context finds it ended.
    #[inline]
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.clear_vars();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    #[inline(always)]
    fn clear_vars(&self) {
        if self.used.load(Ordering::Relaxed) {
            self.clear_used();
        }
    }

    #[cold]
    fn clear_used(&self) {
        self.used.store(false, Ordering::Relaxed);
        let vars = std::mem::take(&mut *lock(&self.vars));
        kept_going("values that a flow left behind", || drop(vars));
    }

    #[cold]
    fn take_along(&mut self, along: Along) {
        let Along { sink, source, held, .. } = along;
        self.held = held;
        self.set_sink(sink);
        self.set_source(source);
    }

    #[inline]
    fn set_source(&mut self, source: Option<Source>) {
        if source.is_some() {
            *self.used.get_mut() = true;
            lock(&self.vars).source = source;
        }
    }

    /// Kept with what ends with the flow, and not with its context: a context may live on, in somebody's clone or to be
    /// used again, and the reader waits for the stream's end.
    #[inline]
    fn set_sink(&mut self, sink: Option<Sink>) {
        if sink.is_some() {
            *self.used.get_mut() = true;
            lock(&self.vars).sink = sink;
        }
    }

    pub(crate) fn sink(&self) -> Option<Sink> {
        lock(&self.vars).sink.clone()
    }

    pub(crate) fn take_source(&self) -> Option<Source> {
        lock(&self.vars).source.take()
    }

    pub(crate) fn with_named<R>(
        &self,
        work: impl FnOnce(&mut Vec<(Cow<'static, str>, Box<dyn Any + Send>)>) -> R,
    ) -> R {
        self.used.store(true, Ordering::Relaxed);
        work(&mut lock(&self.vars).named)
    }

    /// Asks the flow to stop: it is dropped at its next wait.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        let waker = lock(&self.vars).waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn register(&self, waker: &Waker) {
        self.used.store(true, Ordering::Relaxed);
        let mut vars = lock(&self.vars);
        match &mut vars.waker {
            Some(known) if known.will_wake(waker) => {}
            known => *known = Some(waker.clone()),
        }
    }
}

impl Current {
    pub(crate) fn function(&self) -> &dyn Function {
        match self {
            Self::Entry(entry) => &*entry.function,
            Self::Step(step) => &*step.function,
            Self::Next(function) => &**function,
        }
    }
}

impl Steps {
    /// The first step, which no limit forbids.
    const fn first() -> Self {
        Self { count: 1, last: Vec::new() }
    }

    /// One step more.
    #[inline]
    fn take(&mut self, function: &dyn Function, max: u32, context: &Context) -> Result<()> {
        if self.count.saturating_add(LAST_STEPS) >= max {
            self.near_limit(function, max)?;
        }
        let flow = context.inner();
        flow.node().space.note_step(flow, function);
        self.count += 1;
        Ok(())
    }

    #[cold]
    fn near_limit(&mut self, function: &dyn Function, max: u32) -> Result<()> {
        if self.count < max {
            self.last.push(function.short_name());
            return Ok(());
        }
        let path = self.last.iter().map(|&name| name.to_owned()).collect();
        Err(Error::new(ErrorKind::Runaway { limit: "steps_max", max: u64::from(max), path }))
    }
}

/// Runs a flow on the caller's stack until it ends, with the outcome put into its place, or waits.
#[inline(always)]
pub(crate) fn run(
    table: Option<&Table>,
    entry: &Arc<Entry>,
    event: &dyn ErasedEvent,
    context: &Context,
    outcome: &mut Outcome,
) -> Option<Paused> {
    let mut steps = Steps::first();
    // Nothing means the registration's own function, which is only shared once somebody has to keep it.
    let mut current: Option<Current> = None;
    loop {
        let function = current.as_ref().map_or(&*entry.function, Current::function);
        match start(function, event, context, outcome) {
            Polled::Ended => break,
            Polled::Goes(step) => {
                // Most flows have one step, and need no table.
                let loaded;
                let table = match table {
                    Some(table) => table,
                    None => {
                        loaded = context.inner().node().table.load();
                        &loaded
                    }
                };
                match decide(table, step, outcome) {
                    Decision::End => break,
                    Decision::Again => {}
                    Decision::Go(next) => current = Some(next),
                }
                let function = current.as_ref().map_or(&*entry.function, Current::function);
                if let Err(error) = steps.take(function, table.options.steps_max, context) {
                    *outcome = Err(error);
                    break;
                }
            }
            Polled::Waits(future) => {
                let current = current.unwrap_or_else(|| Current::Entry(Arc::clone(entry)));
                return Some(Paused { future, current, steps });
            }
        }
    }
    None
}

pub(crate) enum Polled {
    Ended,
    Goes(Step),
    Waits(StepFuture),
}

/// Starts a function and polls it once, with the flow as the cause of whatever it sends.
#[inline(always)]
pub(crate) fn start(
    function: &dyn Function,
    event: &dyn ErasedEvent,
    context: &Context,
    outcome: &mut Outcome,
) -> Polled {
    let mut call = Call { function, event, context, outcome };
    // One word is caught, so that what crosses is not copied there and back.
    match catch_unwind(AssertUnwindSafe(|| call.run())) {
        Ok(polled) => polled,
        Err(panic) => {
            *outcome = Err(Error::panicked(&*panic));
            Polled::Ended
        }
    }
}

/// A function about to be started.
struct Call<'c> {
    function: &'c dyn Function,
    event: &'c dyn ErasedEvent,
    context: &'c Context,
    outcome: &'c mut Outcome,
}

impl Call<'_> {
    #[inline(always)]
    fn run(&mut self) -> Polled {
        current::enter(self.context, || {
            match self.function.start(self.event, self.context, self.outcome) {
                Started::Ended => Polled::Ended,
                Started::Goes(step) => Polled::Goes(step),
                Started::Future(mut future) => {
                    // The first poll wakes nobody: whoever still waits after it is polled again by its own task.
                    let mut task = std::task::Context::from_waker(Waker::noop());
                    match future.poll_into(&mut task, self.outcome) {
                        Poll::Ready(None) => Polled::Ended,
                        Poll::Ready(Some(step)) => Polled::Goes(step),
                        Poll::Pending => Polled::Waits(future),
                    }
                }
                _ => {
                    let what = "a function started in a way this runtime does not know";
                    *self.outcome = Err(Error::misuse(what));
                    Polled::Ended
                }
            }
        })
    }
}

enum Decision {
    Go(Current),
    Again,
    End,
}

/// What a step that ended means: how the flow goes on, or the outcome it ends with.
#[inline]
fn decide(table: &Table, step: Step, outcome: &mut Outcome) -> Decision {
    match step.into_kind() {
        Kind::Next(function) => return Decision::Go(Current::Next(function)),
        Kind::Again => return Decision::Again,
        Kind::Goto(name) => match table.step(&name) {
            Some(step) => return Decision::Go(Current::Step(step)),
            None => {
                let known = table.step_names();
                *outcome = Err(Error::new(ErrorKind::UnknownStep { step: name.into_owned(), known }));
            }
        },
        Kind::Done(value) => *outcome = Ok(Some(value)),
        Kind::End => *outcome = Ok(None),
        _ => *outcome = Err(Error::misuse("a step of a kind this runtime does not know")),
    }
    Decision::End
}

/// A waiting flow as a future: polled by its own task to its end.
pub(crate) struct Drive {
    context: Context,
    paused: Paused,
    event: Arc<dyn ErasedEvent>,
    time_max: Option<(Duration, BoxFuture<'static, ()>)>,
}

impl Drive {
    pub(crate) fn new(
        context: Context,
        paused: Paused,
        event: Arc<dyn ErasedEvent>,
        time_max: Option<Duration>,
    ) -> Self {
        let time_max = time_max.map(|time| (time, context.env().sleep(time)));
        Self { context, paused, event, time_max }
    }

    pub(crate) const fn context(&self) -> &Context {
        &self.context
    }

    /// What is left when the flow has ended: its future is dropped here.
    pub(crate) fn into_parts(self) -> (Context, Arc<dyn ErasedEvent>) {
        (self.context, self.event)
    }
}

impl Future for Drive {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<Outcome> {
        let this = &mut *self;
        loop {
            let flow = this.context.inner();
            flow.register(task.waker());
            if flow.cancelled.load(Ordering::SeqCst) {
                return Poll::Ready(Err(Error::new(ErrorKind::Cancelled)));
            }
            if let Some((time, sleep)) = &mut this.time_max
                && sleep.as_mut().poll(task).is_ready()
            {
                return Poll::Ready(Err(Error::new(ErrorKind::TimedOut { after: *time })));
            }
            let (future, context) = (&mut this.paused.future, &this.context);
            let mut outcome = Ok(None);
            let polled = catch_unwind(AssertUnwindSafe(|| {
                current::enter(context, || future.poll_into(task, &mut outcome))
            }));
            match polled {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(None)) => return Poll::Ready(outcome),
                Ok(Poll::Ready(Some(step))) => {
                    if let Some(outcome) = this.go_on(step) {
                        return Poll::Ready(outcome);
                    }
                }
                Err(panic) => return Poll::Ready(Err(Error::panicked(&*panic))),
            }
        }
    }
}

impl Drive {
    /// Runs the steps that follow one that ended, until one waits (`None`) or the flow ends.
    fn go_on(&mut self, mut step: Step) -> Option<Outcome> {
        let context = &self.context;
        let Paused { future, current, steps } = &mut self.paused;
        let flow = context.inner();
        let table = flow.node().table.load();
        let mut outcome = Ok(None);
        loop {
            match decide(&table, step, &mut outcome) {
                Decision::End => return Some(outcome),
                Decision::Again => {}
                Decision::Go(next) => *current = next,
            }
            if flow.cancelled.load(Ordering::SeqCst) {
                return Some(Err(Error::new(ErrorKind::Cancelled)));
            }
            if let Err(error) = steps.take(current.function(), table.options.steps_max, context) {
                return Some(Err(error));
            }
            match start(current.function(), &*self.event, context, &mut outcome) {
                Polled::Ended => return Some(outcome),
                Polled::Goes(next) => step = next,
                Polled::Waits(waits) => {
                    *future = waits;
                    return None;
                }
            }
        }
    }
}

impl fmt::Debug for FlowInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flow of {} at `{}`", self.envelope().id, self.node().name)
    }
}

/// Step names kept for the message about a loop.
const LAST_STEPS: u32 = 4;
