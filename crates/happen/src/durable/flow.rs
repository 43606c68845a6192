//! A flow of a durable node: its progress, and the turns in which it takes one step after the other. Owns when a step is
//! run, run again, given up; what its commit consists of is in `record.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use happen_core::pool::StepFuture;
use happen_core::step::Kind;
use happen_core::store::{Batch, Bytes, Key};
use happen_core::{ErasedEvent, Error, ErrorKind, EventId, Function, Result, Step, Value};
use tokio::sync::{Notify, oneshot};

use super::Durable;
use super::hold::{Hold, superseded};
use super::keys::{FLOWS, FlowKey};
use super::lane::Lanes;
use super::record::Done;
use super::stage::{Effects, Point, Stage};
use super::wait::Expected;
use super::whole::Whole;
use crate::context::{Context, Encoded};
use crate::current;
use crate::dispatch::Reply;
use crate::flow::{self, FlowInner, Held, Outcome, Polled};
use crate::limits;
use crate::node::NodeInner;
use crate::stream::{Sink, Source};
use crate::sync::{Mutex, kept_going, lock};
use crate::table::{Phase, Table};
use crate::wire::Framed;

/// One run of one registration for one event, remembered by the store from its first commit on.
pub(crate) struct StoredFlow {
    pub(crate) node: Arc<NodeInner>,
    pub(crate) event: Arc<dyn ErasedEvent>,
    /// The name of its registration.
    pub(crate) registration: Arc<str>,
    pub(super) key: Key,
    /// The key under which flows of its node run one at a time.
    pub(super) lane: Option<u64>,
    /// What holds it back before it begins.
    pub(super) hold: Hold,
    /// The serial gates that wait for this flow.
    held: Option<Arc<Held>>,
    framed: OnceLock<Framed>,
    pub(super) progress: Mutex<Progress>,
    told: Mutex<Told>,
    cancelled: AtomicBool,
    /// Why nobody knows whether the log has the flow at all, after a commit inside its first step.
    pub(super) unstored: OnceLock<Error>,
    interrupt: Notify,
    /// Held while the flow is stored that waits for a place, so that it does not begin meanwhile.
    storing: Arc<tokio::sync::Mutex<()>>,
    /// Whether the store did not take it: it never begins.
    refused: AtomicBool,
}

/// How far a flow is.
#[derive(Default)]
pub(super) struct Progress {
    /// The revision of its document that the next commit builds on; 0 while there is none.
    pub(super) revision: u64,
    /// Whether the log has its event.
    pub(super) recorded: bool,
    /// The step to run; none for the function of the registration.
    pub(super) step: Option<Arc<str>>,
    pub(super) number: u32,
    pub(super) attempt: u32,
    pub(super) at_unix_ms: u64,
    /// When it may begin; 0 once it has.
    pub(super) due_unix_ms: u64,
    pub(super) values: BTreeMap<String, Bytes>,
    pub(super) points: Vec<Point>,
    /// Says that the step was waiting for events when the last process ended, so that none is missed before it waits again.
    pub(super) expected: Vec<Expected>,
    /// When the step is tried again, and after which error.
    pub(super) retry: Option<(u64, Error)>,
    /// Why it fails before it begins.
    pub(super) spoilt: Option<Error>,
    /// How often the step was run again because what it saw had changed.
    pub(super) reruns: u32,
}

/// Who is told of what becomes of a flow.
#[derive(Default)]
struct Told {
    replies: Vec<Reply>,
    stored: Option<oneshot::Sender<Outcome>>,
    /// Whether its event is shown to those who wait for such a one, once it is stored.
    shows: bool,
    sink: Option<Sink>,
    source: Option<Source>,
    /// Whether all were told.
    settled: bool,
}

/// How a step ended.
pub(super) enum End {
    /// Goes on with the step of this name, which it came to at this time.
    Next(Arc<str>, u64),
    Done(Value),
    Finished,
    Retry(Error, u64),
    Failed(Error),
    /// It ended without having begun, and that is no failure.
    Dropped(Error),
}

/// Why a step was left before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interrupt {
    /// The space stops; the flow goes on when it is started again.
    Stop,
    Cancel,
}

/// Why a commit did not happen.
pub(super) enum Trouble {
    /// What the step decided on is no longer so: it has to decide again.
    Outdated(Error),
    /// It cannot be written.
    Impossible(Error),
    /// What the store says.
    Store(Error),
    /// What the store says to a batch that it may have taken all the same, and what follows when it has.
    Unheard(Error, Done),
}

/// What is next after a turn.
pub(super) enum Turn {
    Again,
    Over,
}

impl StoredFlow {
    pub(super) fn new(
        node: &Arc<NodeInner>,
        registration: Arc<str>,
        event: Arc<dyn ErasedEvent>,
        (lane, hold): (Option<u64>, Hold),
        held: Option<Arc<Held>>,
        progress: Progress,
    ) -> Arc<Self> {
        let id = event.envelope().id;
        let name = FlowKey { node: (&*node.name).into(), event: id, registration: (&*registration).into() };
        let flow = Self {
            key: name.key(FLOWS),
            node: Arc::clone(node),
            registration,
            lane,
            hold,
            held,
            framed: OnceLock::new(),
            progress: Mutex::new(progress),
            told: Mutex::default(),
            cancelled: AtomicBool::new(false),
            unstored: OnceLock::new(),
            interrupt: Notify::new(),
            storing: Arc::default(),
            refused: AtomicBool::new(false),
            event,
        };
        Arc::new(flow)
    }

    /// The progress of a flow that begins with this event.
    pub(super) fn beginning(event: &dyn ErasedEvent) -> Progress {
        Progress { attempt: 1, at_unix_ms: event.envelope().at_unix_ms, ..Progress::default() }
    }

    pub(super) fn durable(&self) -> &Arc<Durable> {
        // A flow is made by the durable part of its space alone.
        match &self.node.space.durable {
            Some(durable) => durable,
            None => unreachable_part(),
        }
    }

    pub(super) fn name(&self) -> FlowKey<'_> {
        FlowKey {
            node: (&*self.node.name).into(),
            event: self.event.envelope().id,
            registration: (&*self.registration).into(),
        }
    }

    /// Who else is told of its outcome. Gives it back when the flow has ended: the log has the outcome by then.
    pub(crate) fn tell(&self, reply: Reply) -> Option<Reply> {
        let mut told = lock(&self.told);
        if told.settled {
            return Some(reply);
        }
        told.replies.push(reply);
        None
    }

    /// Who is told that it is stored.
    pub(super) fn tell_stored(&self, stored: oneshot::Sender<Outcome>) {
        lock(&self.told).stored = Some(stored);
    }

    /// Has its event shown to those who wait for such a one, once it is stored.
    pub(super) fn show_when_stored(&self) {
        lock(&self.told).shows = true;
    }

    pub(super) fn stream_to(&self, sink: Option<Sink>, source: Option<Source>) {
        let mut told = lock(&self.told);
        told.sink = sink;
        told.source = source;
    }

    /// Sets the bytes that the log has of the event, so that they are not made anew.
    pub(super) fn set_framed(&self, framed: Framed) {
        // Made once, where the flow is.
        drop(self.framed.set(framed));
    }

    /// The event as bytes.
    pub(super) fn framed(&self) -> Result<&Framed> {
        if let Some(framed) = self.framed.get() {
            return Ok(framed);
        }
        let framed = self.node.space.framed_arrival(&*self.event)?;
        Ok(self.framed.get_or_init(|| framed))
    }

    /// Asks the flow to stop at its next wait. It ends with [`ErrorKind::Cancelled`].
    pub(crate) fn cancel(self: &Arc<Self>) {
        self.cancelled.store(true, Ordering::SeqCst);
        if !self.node.lanes().held.hurry(self) {
            self.interrupt.notify_one();
        }
    }

    /// Whether it is stored and counts among those under way. One that is held back counts as none.
    pub(super) fn waits_its_turn(&self) -> bool {
        let progress = lock(&self.progress);
        progress.recorded && progress.due_unix_ms == 0
    }

    /// When it may begin; 0 once it has.
    pub(super) fn due_unix_ms(&self) -> u64 {
        lock(&self.progress).due_unix_ms
    }

    /// Lets a flow that waits for its next attempt have it now. False when it waits for none.
    pub(crate) fn try_now(&self, now_unix_ms: u64) -> bool {
        let waits = match &mut lock(&self.progress).retry {
            Some((due, _)) if *due > now_unix_ms => {
                *due = NOW;
                true
            }
            _ => false,
        };
        if waits {
            self.interrupt.notify_one();
        }
        waits
    }

    /// The key of its document.
    pub(crate) const fn key(&self) -> &Key {
        &self.key
    }

    /// Has the flow look whether the space stops.
    pub(super) fn interrupt(&self) {
        self.interrupt.notify_one();
    }

    /// Whether its node was destroyed. What is stored stays, and goes on where the node is made again.
    pub(super) fn is_left(&self) -> bool {
        self.node.table.load().phase == Phase::Closed
    }

    fn interrupted(&self) -> Option<Interrupt> {
        if self.durable().is_stopping() || self.is_left() {
            return Some(Interrupt::Stop);
        }
        self.cancelled.load(Ordering::SeqCst).then_some(Interrupt::Cancel)
    }

    /// Says that the flow is stored: whoever sent its event or waits for it may go on.
    pub(super) fn stored(&self) {
        let (sender, shows) = {
            let mut told = lock(&self.told);
            (told.stored.take(), std::mem::take(&mut told.shows))
        };
        if shows {
            self.durable().waiters.offer(&self.node.space, &self.event);
        }
        if let Some(sender) = sender {
            // It may have gone.
            drop(sender.send(Ok(None)));
        }
    }

    /// Whether a sender waits to hear that the flow is stored.
    fn is_awaited(&self) -> bool {
        lock(&self.told).stored.is_some()
    }

    /// Runs the flow from where it is to its end, or until the space stops.
    pub(super) async fn drive(self: Arc<Self>) {
        let lane = Lanes::entered(&self);
        drop(self.storing.lock().await);
        self.durable().until_started(&self.node.space).await;
        if !self.refused.load(Ordering::SeqCst) {
            while let Turn::Again = self.whole_turn().await {}
        }
        self.durable().ended(&self);
        drop(lane);
        self.let_go();
        self.node.space.flow_ended();
    }

    /// A turn that ends whatever panics in it: what users' values do when they are copied, written or dropped is not
    /// only done in functions of theirs.
    async fn whole_turn(self: &Arc<Self>) -> Turn {
        let panic = {
            let mut turn = Box::pin(self.turn());
            let polled = poll_fn(|task| match catch_unwind(AssertUnwindSafe(|| turn.as_mut().poll(task))) {
                Ok(polled) => polled.map(Ok),
                Err(panic) => Poll::Ready(Err(panic)),
            });
            match polled.await {
                Ok(turn) => return turn,
                Err(panic) => Error::panicked(&*panic),
            }
        };
        self.commit(&self.empty_stage(), Err(panic)).await
    }

    /// Ends a flow that is held back, because another one took its place.
    pub(super) fn give_way(self: &Arc<Self>, to: EventId) {
        let flow = Arc::clone(self);
        flow.node.space.flow_began();
        self.node.space.env.spawn(Box::pin(async move {
            let stage = flow.empty_stage();
            let turn = flow.commit(&stage, Ok(End::Dropped(superseded(to)))).await;
            debug_assert!(matches!(turn, Turn::Over), "a flow that never began does not go on");
            flow.durable().ended(&flow);
            flow.let_go();
            flow.node.space.flow_ended();
        }));
    }

    /// Stores a flow that has to wait for its turn: whoever sent its event need not wait for that.
    pub(super) fn store_meanwhile(self: &Arc<Self>) {
        if lock(&self.progress).recorded {
            return;
        }
        // Taken here and not in the task, for the flow may begin before the task does.
        let Ok(storing) = Arc::clone(&self.storing).try_lock_owned() else { return };
        let flow = Arc::clone(self);
        // Here as well: events are stored in the order in which they came.
        let pushed = self.push_progress(None, &Batch::default());
        self.node.space.env.spawn(Box::pin(async move {
            let stored = match pushed {
                Ok(handed) => flow.settle_progress(handed, None, &Batch::default()).await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(()) => flow.stored(),
                Err(error) => {
                    flow.refused.store(true, Ordering::SeqCst);
                    flow.refuse_storing(&error);
                }
            }
            drop(storing);
        }));
    }

    /// Tells whoever still waits that nobody will answer here, by the channels that end.
    pub(super) fn let_go(&self) {
        let told = std::mem::take(&mut *lock(&self.told));
        lock(&self.told).settled = true;
        drop(told);
    }

    async fn turn(self: &Arc<Self>) -> Turn {
        if let Some(interrupt) = self.wait_for_retry().await {
            return self.leave(interrupt).await;
        }
        let (number, attempt, at_unix_ms, values, points) = {
            let progress = lock(&self.progress);
            let Progress { number, attempt, at_unix_ms, .. } = *progress;
            (number, attempt, at_unix_ms, progress.values.clone(), progress.points.clone())
        };
        let effects = Effects::of(values, points);
        let stage = Stage::new(self, number, attempt, at_unix_ms, effects);
        let ended = match self.run(&stage).await {
            // A node that was destroyed meanwhile knows none of its steps any more.
            Ok(Err(_)) if self.is_left() => {
                drop(stage.close());
                return self.leave(Interrupt::Stop).await;
            }
            Ok(ended) => ended,
            Err(interrupt) => {
                drop(stage.close());
                return self.leave(interrupt).await;
            }
        };
        self.commit(&stage, ended).await
    }

    /// Waits until the step may be tried again.
    async fn wait_for_retry(self: &Arc<Self>) -> Option<Interrupt> {
        let env = Arc::clone(&self.node.space.env);
        let due = {
            let progress = lock(&self.progress);
            progress.retry.as_ref().map(|(due, _)| (*due, progress.attempt))
        };
        // The wall clock knows the time that was written down; if it went back since, nobody waits longer than was said.
        let left = due.map_or(0, |(due, attempt)| {
            due.saturating_sub(env.unix_ms()).min(self.wait_after(attempt.saturating_sub(1)))
        });
        let until = env.monotonic() + Duration::from_millis(left);
        loop {
            if let Some(interrupt) = self.interrupted() {
                return Some(interrupt);
            }
            if lock(&self.progress).retry.as_ref().is_none_or(|(due, _)| *due == NOW) {
                return None;
            }
            let left = until.checked_sub(env.monotonic()).filter(|left| !left.is_zero())?;
            let _parked = self.durable().parked(self);
            let mut sleep = env.sleep(left);
            let mut interrupt = pin!(self.interrupt.notified());
            poll_fn(|task| {
                let over = interrupt.as_mut().poll(task).is_ready() || sleep.as_mut().poll(task).is_ready();
                if over { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }

    /// How long the node waits after an attempt that failed, in milliseconds.
    fn wait_after(&self, attempt: u32) -> u64 {
        let shift = attempt.saturating_sub(1).min(32);
        let first = self.node.table.load().options.retry_wait_ms;
        first.saturating_mul(1 << shift).min(limits::DURABLE_RETRY_WAIT_MS_MAX)
    }

    /// Runs the step that the flow has come to.
    async fn run(self: &Arc<Self>, stage: &Arc<Stage>) -> Result<Result<End>, Interrupt> {
        let (spoilt, step) = {
            let mut progress = lock(&self.progress);
            (progress.spoilt.take(), progress.step.clone())
        };
        if let Some(error) = spoilt {
            return Ok(Err(error));
        }
        let table = self.node.table.load();
        let (function, registration) = match function_of(&table, step.as_deref(), &self.registration) {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let context = self.context(stage, registration);
        let mut outcome = Ok(None);
        let step = match flow::start(&*function, &*self.event, &context, &mut outcome) {
            Polled::Ended => None,
            Polled::Goes(step) => Some(step),
            Polled::Waits(future) => {
                let time_max = table.options.flow_time_max();
                let storing = self.store_beside(stage);
                match self.wait_for(future, &context, stage, storing, time_max, &mut outcome).await? {
                    Ok(step) => step,
                    Err(error) => return Ok(Err(error)),
                }
            }
        };
        drop(context.end());
        if let Some(error) = stage.take_failure() {
            return Ok(Err(error));
        }
        let Some(step) = step else {
            return Ok(outcome.map(|value| value.map_or(End::Finished, End::Done)));
        };
        // What it goes on with is looked for among what is registered now.
        let table = self.node.table.load();
        // Read once: what the step sends has ids that tell it, now and after a restart.
        let at_unix_ms = self.node.space.now_unix_ms().max(stage.at_unix_ms());
        let decided = decide(&table, step, function.identity(), self.current_name())
            .and_then(|decided| self.within_limit(&table, decided));
        Ok(decided.map(|decided| match decided {
            Decided::Next(name) => End::Next(name, at_unix_ms),
            Decided::Ends(end) => end,
        }))
    }

    /// Stores a flow whose step waits, when its sender waits to hear that it is stored: who sent it need not wait for what
    /// the step waits for. It goes on beside the step, which may be what carries the commit.
    fn store_beside(self: &Arc<Self>, stage: &Arc<Stage>) -> Option<Whole<Result<()>>> {
        // A step that has come to a point stores it there.
        if !self.is_awaited() || lock(&self.progress).recorded {
            return None;
        }
        let (flow, stage) = (Arc::clone(self), Arc::clone(stage));
        let storing = async move {
            flow.commit_progress(&stage, |_, _| Ok(())).await?;
            flow.stored();
            Ok(())
        };
        Some(Whole::new(&self.node.space.env, Box::pin(storing)))
    }

    /// What a step decided, unless the flow would have more steps than it may.
    fn within_limit(&self, table: &Table, decided: Decided) -> Result<Decided> {
        let max = table.options.steps_max;
        if matches!(decided, Decided::Ends(_)) || lock(&self.progress).number + 1 < max {
            return Ok(decided);
        }
        let path = vec![self.current_name().to_string()];
        Err(Error::new(ErrorKind::Runaway { limit: "steps_max", max: u64::from(max), path }))
    }

    /// The name of the step that is run.
    pub(super) fn current_name(&self) -> Arc<str> {
        lock(&self.progress).step.clone().unwrap_or_else(|| Arc::clone(&self.registration))
    }

    fn context(self: &Arc<Self>, stage: &Arc<Stage>, registration: u64) -> Context {
        let mut inner = FlowInner::new(Arc::clone(&self.node), self.event.envelope().clone());
        for other in (1..self.event.len()).filter_map(|index| self.event.single(index)) {
            inner.more_causes.push(other.envelope().id);
            inner.more_types.push(other.envelope().event_type.clone());
        }
        inner.registration = registration;
        inner.serial = Lanes::serial_key(self);
        inner.held = self.held.clone();
        inner.stage = Some(Arc::clone(stage));
        let (sink, source) = {
            let mut told = lock(&self.told);
            (told.sink.clone(), told.source.take())
        };
        inner.set_streams(sink, source);
        for (name, value) in &lock(&self.progress).values {
            inner.with_named(|named| named.push((name.clone().into(), Box::new(Encoded(Arc::clone(value))))));
        }
        Context::owned(inner)
    }

    /// Polls a step that waits until it ends or has to be left.
    async fn wait_for(
        &self,
        mut future: StepFuture,
        context: &Context,
        stage: &Stage,
        mut storing: Option<Whole<Result<()>>>,
        time_max: Option<Duration>,
        outcome: &mut Outcome,
    ) -> Result<Result<Option<Step>>, Interrupt> {
        let mut late = time_max.map(|time| (time, self.node.space.env.sleep(time)));
        let mut interrupt: Pin<Box<dyn Future<Output = ()> + Send + '_>> =
            Box::pin(self.interrupt.notified());
        let ended = poll_fn(|task| {
            while interrupt.as_mut().poll(task).is_ready() {
                interrupt = Box::pin(self.interrupt.notified());
                if let Some(interrupt) = self.interrupted() {
                    return Poll::Ready(Err(interrupt));
                }
            }
            if let Some(interrupt) = self.interrupted() {
                return Poll::Ready(Err(interrupt));
            }
            if let Some((time, sleep)) = &mut late
                && sleep.as_mut().poll(task).is_ready()
            {
                return Poll::Ready(Ok(Err(Error::new(ErrorKind::TimedOut { after: *time }))));
            }
            if let Some(work) = &mut storing
                && let Poll::Ready(stored) = Pin::new(work).poll(task)
            {
                storing = None;
                if let Err(error) = stored {
                    return Poll::Ready(Ok(Err(error)));
                }
            }
            let polled = catch_unwind(AssertUnwindSafe(|| {
                current::enter(context, || future.poll_into(task, outcome))
            }));
            if context.is_cancelled() {
                self.cancelled.store(true, Ordering::SeqCst);
                return Poll::Ready(Err(Interrupt::Cancel));
            }
            if let Some(error) = stage.take_failure() {
                return Poll::Ready(Ok(Err(error)));
            }
            match polled {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(step)) => Poll::Ready(Ok(Ok(step))),
                Err(panic) => Poll::Ready(Ok(Err(Error::panicked(&*panic)))),
            }
        })
        .await;
        kept_going("a step that is left", || drop(future));
        ended
    }

    /// Leaves a step that did not end.
    async fn leave(self: &Arc<Self>, interrupt: Interrupt) -> Turn {
        match interrupt {
            Interrupt::Stop => Turn::Over,
            Interrupt::Cancel => {
                let stage = self.empty_stage();
                self.commit(&stage, Err(Error::new(ErrorKind::Cancelled))).await
            }
        }
    }

    /// A step that has done nothing, for a commit that says how a flow ended.
    fn empty_stage(self: &Arc<Self>) -> Arc<Stage> {
        let progress = lock(&self.progress);
        let effects = Effects::of(progress.values.clone(), Vec::new());
        Stage::new(self, progress.number, progress.attempt, progress.at_unix_ms, effects)
    }

    /// Commits what a step did, or that it failed; again until the store has it or says that it never will.
    async fn commit(self: &Arc<Self>, stage: &Arc<Stage>, ended: Result<End>) -> Turn {
        if let Some(error) = self.unstored.get() {
            // Another attempt would ask once more what the log may have been asked. If it has the flow, that goes on.
            return self.refuse_storing(error);
        }
        let mut effects = stage.close();
        let mut end = ended.unwrap_or_else(|error| self.failed(error));
        let (mut tries, mut failures) = (0, 0);
        loop {
            if matches!(end, End::Retry(..) | End::Failed(_) | End::Dropped(_)) {
                // Nothing of what it did has happened. What it waited for stays known.
                let values = lock(&self.progress).values.clone();
                effects = Effects::of(values, std::mem::take(&mut effects.points));
            }
            let (error, done) = match self.try_commit(stage, &mut effects, &end).await {
                Ok(done) => return self.carry_out(done, effects, end),
                Err(Trouble::Store(error)) => (error, Done::default()),
                Err(Trouble::Unheard(error, done)) => (error, done),
                Err(Trouble::Outdated(error)) => {
                    if self.may_run_again(&effects) {
                        crate::space::yield_now().await;
                        return Turn::Again;
                    }
                    end = self.failed(error);
                    continue;
                }
                Err(Trouble::Impossible(error)) => {
                    if matches!(end, End::Failed(_)) {
                        return self.refuse_storing(&error);
                    }
                    end = End::Failed(error);
                    continue;
                }
            };
            let known = loop {
                if self.durable().is_stopping() || matches!(error.kind(), ErrorKind::Closed { .. }) {
                    self.durable().forget(&done);
                    return self.refuse_storing(&error);
                }
                match self.resync(stage, &error).await {
                    Ok(known) => break known,
                    Err(_) if self.outlast(&error, &mut failures).await => {}
                    Err(_) => {
                        self.durable().forget(&done);
                        return self.refuse_storing(&error);
                    }
                }
            };
            match known {
                // What it has let leave leaves now, as if the store had said so.
                Known::Committed => return self.carry_out(done, effects, end),
                Known::Open => self.durable().forget(&done),
                // Somebody else ended it, with the store's own tools.
                Known::Gone => {
                    self.durable().forget(&done);
                    return self.refuse_storing(&Error::new(ErrorKind::Cancelled));
                }
            }
            match error.kind() {
                // A document was changed by somebody else: the changes are applied to what it is now.
                ErrorKind::Conflict { .. } if tries < limits::COMMIT_TRIES_MAX => tries += 1,
                ErrorKind::Conflict { .. } if self.may_run_again(&effects) => return Turn::Again,
                ErrorKind::Io { .. } => {
                    if !self.outlast(&error, &mut failures).await {
                        return self.refuse_storing(&error);
                    }
                }
                _ if matches!(end, End::Failed(_)) => return self.refuse_storing(&error),
                _ => end = End::Failed(error),
            }
        }
    }

    /// Whether the step runs once more at once, because what it saw has changed. What it waited for stays known.
    fn may_run_again(&self, effects: &Effects) -> bool {
        let mut progress = lock(&self.progress);
        if progress.reruns >= limits::STEP_RERUNS_MAX {
            return false;
        }
        progress.reruns += 1;
        progress.points.clone_from(&effects.points);
        true
    }

    /// Waits for a store that fails, as long as the flow is one that it has already. False when nobody was promised
    /// anything: then whoever sent the event is told.
    pub(super) async fn outlast(&self, error: &Error, failures: &mut u32) -> bool {
        self.durable().store_failed(&self.node.space, error);
        if lock(&self.progress).revision == 0 && !lock(&self.progress).recorded {
            return false;
        }
        *failures += 1;
        let shift = (*failures - 1).min(16);
        let wait = (limits::STORE_WAIT_MS << shift).min(limits::STORE_WAIT_MS_MAX);
        // It does not listen for interrupts, which whoever runs the step has to hear.
        self.node.space.env.sleep(Duration::from_millis(wait)).await;
        true
    }

    /// Ends a flow that the store does not take: nothing of it has happened. Where nobody is there any more who is told,
    /// its event is a dead letter.
    fn refuse_storing(&self, error: &Error) -> Turn {
        let error = error.duplicate().at_event(self.event.envelope().id).at_node(&self.node.name);
        let told = std::mem::take(&mut *lock(&self.told));
        if let Some(stored) = told.stored
            && let Err(Err(error)) = stored.send(Err(error.duplicate()))
        {
            self.node.space.bury(&*self.event, &self.node.name, &error);
        }
        for reply in told.replies {
            reply.refuse(error.duplicate());
        }
        Turn::Over
    }

    /// What a failure means: another attempt, or the end.
    fn failed(&self, error: Error) -> End {
        let error = error.at_event(self.event.envelope().id).at_node(&self.node.name);
        let attempt = lock(&self.progress).attempt;
        let options = &self.node.table.load().options;
        if !error.is_retryable() || attempt >= options.attempts_max.max(1) {
            return End::Failed(error);
        }
        self.node.note_retried();
        let wait = self.wait_after(attempt);
        End::Retry(error, self.node.space.env.unix_ms().saturating_add(wait))
    }

    /// Tells the outcome to all who wait for it.
    pub(super) fn settle(&self, outcome: Outcome) {
        self.stored();
        let replies = {
            let mut told = lock(&self.told);
            told.settled = true;
            std::mem::take(&mut told.replies)
        };
        let mut outcome = Some(outcome);
        let last = replies.len();
        for (index, reply) in replies.into_iter().enumerate() {
            match outcome.take() {
                Some(told) if index + 1 == last => reply.send(told),
                Some(told) => {
                    reply.send(copy(&told));
                    outcome = Some(told);
                }
                None => {}
            }
        }
    }
}

/// What the store knows of a step whose commit failed.
pub(super) enum Known {
    /// It was committed all the same.
    Committed,
    /// It was not, and can be.
    Open,
    /// The flow is not under way any more.
    Gone,
}

/// An outcome once more.
pub(super) fn copy(outcome: &Outcome) -> Outcome {
    match outcome {
        Ok(value) => Ok(value.as_ref().map(|value| value.as_payload().to_value())),
        Err(error) => Err(error.duplicate()),
    }
}

/// The function of a step, and the number of the registration that the flow belongs to.
fn function_of(table: &Table, step: Option<&str>, registration: &str) -> Result<(Arc<dyn Function>, u64)> {
    let entry = table.registered(registration);
    let number = entry.map_or(0, |entry| entry.id);
    let found = match step.filter(|name| *name != registration) {
        None => entry.map(|entry| Arc::clone(&entry.function)),
        Some(name) => table.step(name).map(|step| Arc::clone(&step.function)),
    };
    let name = step.unwrap_or(registration);
    let unknown = || Error::new(ErrorKind::UnknownStep { step: name.to_owned(), known: table.step_names() });
    Ok((found.ok_or_else(unknown)?, number))
}

/// What a step that ended means for its flow.
enum Decided {
    /// It goes on with the step of this name.
    Next(Arc<str>),
    Ends(End),
}

fn decide(table: &Table, step: Step, current: std::any::TypeId, name: Arc<str>) -> Result<Decided> {
    match step.into_kind() {
        Kind::Next(function) if function.identity() == current => Ok(Decided::Next(name)),
        Kind::Next(function) => table.name_of_step(&*function).map(Decided::Next).ok_or_else(|| {
            Error::misuse(format!(
                "a step of a durable node went on with `{}`, which is not registered; add it with `.step({})` where the \
                 handler is registered, so that the flow finds it after a restart",
                function.type_name(),
                function.short_name(),
            ))
        }),
        Kind::Again => Ok(Decided::Next(name)),
        Kind::Goto(goal) => match table.step(&goal) {
            Some(step) => Ok(Decided::Next((&*step.name).into())),
            None => {
                let known = table.step_names();
                Err(Error::new(ErrorKind::UnknownStep { step: goal.into_owned(), known }))
            }
        },
        Kind::Done(value) => Ok(Decided::Ends(End::Done(value))),
        Kind::End => Ok(Decided::Ends(End::Finished)),
        _ => Err(Error::misuse("a step of a kind this runtime does not know")),
    }
}

/// The due time of an attempt that somebody asked for.
const NOW: u64 = 0;

#[cold]
fn unreachable_part() -> ! {
    // Not an error that anybody could handle: the caller would have to exist without what made it.
    unreachable!("a stored flow without a store")
}

impl fmt::Debug for StoredFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (event, node) = (self.event.envelope().id, &self.node.name);
        write!(f, "the flow `{}` of {event} at `{node}`", self.registration)
    }
}
