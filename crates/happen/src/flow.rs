//! One run of a node's functions for one event: on the caller's stack as far as it is ready, as a task of its own from
//! its first wait on. Owns the order of steps and their limits; does not know how the event came here.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use happen_core::env::BoxFuture;
use happen_core::function::Started;
use happen_core::pool::StepFuture;
use happen_core::step::Kind;
use happen_core::{
    Envelope, ErasedEvent, Error, ErrorKind, EventId, EventType, Function, Result, Step, Value,
};

use crate::context::Context;
use crate::dispatch::Place;
use crate::local;
use crate::node::NodeInner;
use crate::stream::{Sink, Source};
use crate::sync::{Mutex, kept_going, lock};
use crate::table::{Entry, StepEntry, Table};

/// What a flow ends with: a value, nothing, or a failure.
pub(crate) type Outcome = Result<Option<Value>>;

/// What the steps of one flow share, and what is sent by them inherits from.
pub(crate) struct FlowInner {
    pub(crate) node: Arc<NodeInner>,
    pub(crate) envelope: Envelope,
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
    /// Steps remembered for its trace.
    pub(crate) noted_steps: AtomicU32,
    pub(crate) cancelled: AtomicBool,
    ended: AtomicBool,
    /// Whether `vars` was ever used, so that ending a flow takes no lock for nothing.
    used: AtomicBool,
    vars: Mutex<Vars>,
    /// The place of the delivery this flow belongs to, once it goes on as a task.
    place: OnceLock<Weak<Place>>,
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

/// A flow that waits, with everything it needs to go on.
pub(crate) struct Waiting {
    future: StepFuture,
    current: Current,
    steps: Steps,
    pub(crate) context: Context,
}

/// The steps a flow took: their number, and the names of the last ones once it comes near the limit.
#[derive(Default)]
struct Steps {
    count: u32,
    last: Vec<&'static str>,
}

impl FlowInner {
    pub(crate) fn new(node: Arc<NodeInner>, envelope: Envelope) -> Self {
        Self {
            node,
            envelope,
            more_causes: Vec::new(),
            more_types: Vec::new(),
            registration: 0,
            serial: None,
            held: None,
            emitted: AtomicU32::new(0),
            noted_steps: AtomicU32::new(0),
            cancelled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            used: AtomicBool::new(false),
            vars: Mutex::new(Vars::default()),
            place: OnceLock::new(),
        }
    }

    pub(crate) fn set_place(&self, place: &Arc<Place>) {
        // A flow is made a task once, so the cell is empty.
        let _set = self.place.set(Arc::downgrade(place));
    }

    /// The place of its delivery, while it has one.
    pub(crate) fn place(&self) -> Option<Arc<Place>> {
        self.place.get()?.upgrade()
    }

    /// Makes a context that nobody else has ready for another event.
    #[inline]
    pub(crate) fn reset(&mut self, node: &Arc<NodeInner>, envelope: &Envelope) {
        if !Arc::ptr_eq(&self.node, node) {
            self.node = Arc::clone(node);
        }
        self.envelope = envelope.clone();
        // A task that outlived its flow may have kept something after the flow had ended.
        self.clear_vars();
        self.serial = None;
        // Rarely there: asking costs less than dropping nothing.
        if !self.more_causes.is_empty() {
            self.more_causes.clear();
            self.more_types.clear();
        }
        if self.held.is_some() {
            self.held = None;
        }
        *self.emitted.get_mut() = 0;
        *self.noted_steps.get_mut() = 0;
        *self.cancelled.get_mut() = false;
        *self.ended.get_mut() = false;
        if *self.used.get_mut() {
            // Somebody who kept a clone put values there after the flow had ended.
            self.clear_vars();
        }
        if self.place.get().is_some() {
            self.place = OnceLock::new();
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

    #[inline]
    fn clear_vars(&self) {
        if self.used.load(Ordering::Relaxed) {
            self.used.store(false, Ordering::Relaxed);
            let vars = std::mem::take(&mut *lock(&self.vars));
            kept_going("values that a flow left behind", || drop(vars));
        }
    }

    #[inline]
    pub(crate) fn set_source(&mut self, source: Option<Source>) {
        if source.is_some() {
            *self.used.get_mut() = true;
            lock(&self.vars).source = source;
        }
    }

    /// Kept with what ends with the flow, and not with its context: a context may live on, in somebody's clone or to be
    /// used again, and the reader waits for the stream's end.
    #[inline]
    pub(crate) fn set_sink(&mut self, sink: Option<Sink>) {
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
    #[inline]
    fn take(&mut self, function: &dyn Function, max: u32, context: &Context) -> Result<()> {
        if self.count.saturating_add(LAST_STEPS) >= max {
            self.near_limit(function, max)?;
        }
        if self.count > 0 {
            let flow = context.inner();
            flow.node.space.note_step(flow, function);
        }
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
#[inline]
pub(crate) fn run(
    table: &Table,
    entry: &Arc<Entry>,
    event: &dyn ErasedEvent,
    context: Context,
    outcome: &mut Outcome,
) -> Option<Waiting> {
    let mut steps = Steps::default();
    // Nothing means the registration's own function, which is only shared once somebody has to keep it.
    let mut current: Option<Current> = None;
    loop {
        let function = current.as_ref().map_or(&*entry.function, Current::function);
        if let Err(error) = steps.take(function, table.options.steps_max, &context) {
            *outcome = Err(error);
            break;
        }
        match start(function, event, &context) {
            Polled::Waits(future) => {
                let current = current.unwrap_or_else(|| Current::Entry(Arc::clone(entry)));
                return Some(Waiting { future, current, steps, context });
            }
            Polled::Ended(step) => match decide(table, step, outcome) {
                Decision::End => break,
                Decision::Again => {}
                Decision::Go(next) => current = Some(next),
            },
        }
    }
    context.end();
    None
}

enum Polled {
    Ended(Result<Step>),
    Waits(StepFuture),
}

/// Starts a function and polls it once, with the flow as the cause of whatever it sends.
#[inline]
fn start(function: &dyn Function, event: &dyn ErasedEvent, context: &Context) -> Polled {
    let run = || match function.start(event, context) {
        Started::Ended(step) => Polled::Ended(step),
        Started::Future(mut future) => {
            // The first poll wakes nobody: whoever is still waiting after it is polled again by its own task.
            match Pin::new(&mut future).poll(&mut std::task::Context::from_waker(Waker::noop())) {
                Poll::Ready(step) => Polled::Ended(step),
                Poll::Pending => Polled::Waits(future),
            }
        }
        _ => Polled::Ended(Err(Error::misuse("a function started in a way this runtime does not know"))),
    };
    catch_unwind(AssertUnwindSafe(|| local::enter(context, run)))
        .unwrap_or_else(|panic| Polled::Ended(Err(Error::panicked(&*panic))))
}

enum Decision {
    Go(Current),
    Again,
    End,
}

/// What a step that ended means: how the flow goes on, or the outcome it ends with.
#[inline]
fn decide(table: &Table, step: Result<Step>, outcome: &mut Outcome) -> Decision {
    *outcome = match step.map(Step::into_kind) {
        Ok(Kind::Done(value)) => Ok(Some(value)),
        Ok(Kind::End) => Ok(None),
        Ok(Kind::Next(function)) => return Decision::Go(Current::Next(function)),
        Ok(Kind::Again) => return Decision::Again,
        Ok(Kind::Goto(name)) => match table.step(&name) {
            Some(step) => return Decision::Go(Current::Step(step)),
            None => {
                let known = table.step_names();
                Err(Error::new(ErrorKind::UnknownStep { step: name.into_owned(), known }))
            }
        },
        Ok(_) => Err(Error::misuse("a step of a kind this runtime does not know")),
        Err(error) => Err(error),
    };
    Decision::End
}

/// A waiting flow as a future: polled by its own task to its end.
pub(crate) struct Drive {
    waiting: Waiting,
    event: Arc<dyn ErasedEvent>,
    time_max: Option<(Duration, BoxFuture<'static, ()>)>,
}

impl Drive {
    pub(crate) fn new(waiting: Waiting, event: Arc<dyn ErasedEvent>, time_max: Option<Duration>) -> Self {
        let env = Arc::clone(&waiting.context.inner().node.space.env);
        let time_max = time_max.map(|time| (time, env.sleep(time)));
        Self { waiting, event, time_max }
    }
}

impl Future for Drive {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<Outcome> {
        let this = &mut *self;
        loop {
            let flow = this.waiting.context.inner();
            flow.register(task.waker());
            if flow.cancelled.load(Ordering::SeqCst) {
                return Poll::Ready(Err(Error::new(ErrorKind::Cancelled)));
            }
            if let Some((time, sleep)) = &mut this.time_max
                && sleep.as_mut().poll(task).is_ready()
            {
                return Poll::Ready(Err(Error::new(ErrorKind::TimedOut { after: *time })));
            }
            let Waiting { future, context, .. } = &mut this.waiting;
            let polled =
                catch_unwind(AssertUnwindSafe(|| local::enter(context, || Pin::new(future).poll(task))));
            let step = match polled {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(step)) => step,
                Err(panic) => Err(Error::panicked(&*panic)),
            };
            if let Some(outcome) = this.go_on(step) {
                return Poll::Ready(outcome);
            }
        }
    }
}

impl Drive {
    /// Runs the steps that follow one that ended, until one waits (`None`) or the flow ends.
    fn go_on(&mut self, mut step: Result<Step>) -> Option<Outcome> {
        let Waiting { future, current, steps, context } = &mut self.waiting;
        let flow = context.inner();
        let table = flow.node.table.load();
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
            match start(current.function(), &*self.event, context) {
                Polled::Ended(ended) => step = ended,
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
        write!(f, "flow of {} at `{}`", self.envelope.id, self.node.name)
    }
}

/// Step names kept for the message about a loop.
const LAST_STEPS: u32 = 4;
