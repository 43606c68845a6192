//! `breaker`: a handler that is left alone for a while after it failed too often. Owns the three states and the ways
//! between them.

use happen_core::IntoStep;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use happen_core::{ErasedEvent, Error, ErrorKind, Function, Result, Step};

use super::{Judge, Running, Wrap, Wrapped, erase, later, start, wrapped};
use crate::context::Context;
use crate::handler::{Argument, Handler};
use crate::limits;
use crate::sync::{Mutex, lock};

/// Stops calling a handler that fails too often, so that what is behind it can recover and callers learn at once.
///
/// Closed, every event goes through. After too many failures the breaker opens: events fail at once with
/// [`ErrorKind::Busy`], which tells how long it stays so. When that time is over it is half-open: a few events go
/// through as probes; when they succeed it closes, when one fails it opens again.
///
/// Errors that are not [retryable](Error::is_retryable) say nothing about what is behind the handler and do not count,
/// unless [`Breaker::counts_if`] says otherwise. A run that is dropped counts neither way; so a `timeout` belongs inside
/// the breaker: `breaker(b, timeout(secs(2), h))`.
///
/// Each change of state is told as the event `system.breaker` with the fields `name`, `from`, `to` and `node_id`.
///
/// # Examples
///
/// ```
/// use happen::wrap::{Breaker, BreakerState, breaker};
/// use happen::{Context, Event, Space, secs};
///
/// async fn charge(_: Event, _: Context) -> happen::Result<u64> {
///     Err(happen::Error::msg("the bank is down"))
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let bank = Breaker::new().named("bank").failures_max(2).open_for(secs(10));
/// let payments = space.node("payments");
/// payments.on("charge", breaker(bank.clone(), charge));
/// space.start().await?;
/// let mut codes = Vec::new();
/// for _ in 0..3 {
///     let asked = space.send(&payments, Event::new("charge", 1.into())).reply::<u64>().await;
///     codes.push(asked.unwrap_err().code());
/// }
/// assert_eq!(codes, ["failed", "failed", "busy"]);
/// assert_eq!(bank.state(), BreakerState::Open);
/// # Ok(())
/// # }
/// ```
#[doc(alias = "circuitBreaker")]
pub fn breaker<H, M>(breaker: Breaker, handler: H) -> Wrapped
where
    H: Handler<M>,
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send,
{
    wrapped(Guarded { inner: erase(handler), breaker })
}

/// What decides whether events go through. A handle; cloning shares the state, so several handlers can be behind one.
///
/// Its settings are given in one go with the making; a clone has those of its moment.
#[derive(Clone)]
pub struct Breaker {
    settings: Settings,
    cell: Arc<Mutex<Cell>>,
}

/// Whether a [`Breaker`] lets events through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// Every event goes through.
    Closed,
    /// No event goes through. It stays so until an event comes after the time set.
    Open,
    /// Probes go through, and no other event.
    HalfOpen,
}

#[derive(Clone)]
struct Settings {
    name: Option<Arc<str>>,
    failures_max: u32,
    within: Option<Duration>,
    open_for: Duration,
    probes_max: u32,
    counts: Option<Judge>,
}

struct Cell {
    state: BreakerState,
    /// The state was set by hand and does not change by itself.
    forced: bool,
    /// The state that was told last.
    told: BreakerState,
    /// The number of changes, so that a run which began before one does not count after it.
    changes: u64,
    /// When the last failures happened, at most as many as open the breaker.
    failures: VecDeque<Duration>,
    opened_at: Duration,
    probing: u32,
    passed: u32,
}

/// A run that the breaker let through.
struct Pass {
    breaker: Breaker,
    changes: u64,
    probes: bool,
    settled: bool,
}

impl Breaker {
    /// A breaker that five failures in a row open for 30 s, and one successful probe closes.
    #[must_use]
    pub fn new() -> Self {
        let settings = Settings {
            name: None,
            failures_max: limits::BREAKER_FAILURES_MAX,
            within: None,
            open_for: Duration::from_millis(limits::BREAKER_OPEN_MS),
            probes_max: limits::BREAKER_PROBES_MAX,
            counts: None,
        };
        let cell = Cell {
            state: BreakerState::Closed,
            forced: false,
            told: BreakerState::Closed,
            changes: 0,
            failures: VecDeque::new(),
            opened_at: Duration::ZERO,
            probing: 0,
            passed: 0,
        };
        Self { settings, cell: Arc::new(Mutex::new(cell)) }
    }

    /// Gives the breaker a name, for errors and events.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// Sets how many failures open the breaker: in a row, or within a time when [`Breaker::within`] sets one.
    #[must_use]
    pub fn failures_max(mut self, failures: u32) -> Self {
        self.settings.failures_max = failures.max(1);
        self
    }

    /// Counts the failures of this last time, whatever succeeded in between, in the place of failures in a row.
    #[must_use]
    pub fn within(mut self, time: Duration) -> Self {
        self.settings.within = Some(time);
        self
    }

    /// Sets how long the breaker stays open before it lets probes through.
    #[must_use]
    pub fn open_for(mut self, time: Duration) -> Self {
        self.settings.open_for = time;
        self
    }

    /// Sets how many probes go through a half-open breaker; as many must succeed to close it.
    #[must_use]
    pub fn probes_max(mut self, probes: u32) -> Self {
        self.settings.probes_max = probes.max(1);
        self
    }

    /// Says which errors are failures of what is behind the handler, in the place of [`Error::is_retryable`].
    #[must_use]
    pub fn counts_if(mut self, counts: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        self.settings.counts = Some(Arc::new(counts));
        self
    }

    /// The state it is in.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        lock(&self.cell).state
    }

    /// Opens the breaker by hand. It stays open until [`Breaker::release`] or [`Breaker::force_closed`].
    ///
    /// The event that tells of it is sent with the next event that comes.
    pub fn force_open(&self) {
        self.force(BreakerState::Open);
    }

    /// Closes the breaker by hand. It stays closed, whatever fails, until [`Breaker::release`] or
    /// [`Breaker::force_open`].
    pub fn force_closed(&self) {
        self.force(BreakerState::Closed);
    }

    /// Lets the breaker decide by itself again, as if it were new.
    pub fn release(&self) {
        let mut cell = lock(&self.cell);
        cell.forced = false;
        cell.turn(BreakerState::Closed);
    }

    fn force(&self, state: BreakerState) {
        let mut cell = lock(&self.cell);
        cell.forced = true;
        cell.turn(state);
    }

    fn name(&self) -> &str {
        self.settings.name.as_deref().unwrap_or("unnamed")
    }

    /// Lets a run through, or says how long none will be.
    fn enter(&self, context: &Context) -> Result<Pass> {
        let now = context.env().monotonic();
        let settings = &self.settings;
        let mut cell = lock(&self.cell);
        let since = now.saturating_sub(cell.opened_at);
        if cell.state == BreakerState::Open && !cell.forced && since >= settings.open_for {
            cell.turn(BreakerState::HalfOpen);
        }
        let refusal = match cell.state {
            BreakerState::Closed => None,
            BreakerState::Open if cell.forced => Some("opened by hand".to_owned()),
            BreakerState::Open => Some(format!("open for another {:?}", settings.open_for - since)),
            BreakerState::HalfOpen if cell.probing + cell.passed < settings.probes_max => None,
            BreakerState::HalfOpen => Some("half-open while it is probed".to_owned()),
        };
        if let Some(why) = refusal {
            drop(cell);
            self.tell(context);
            let what = format!("the breaker `{}`, {why},", self.name());
            return Err(Error::new(ErrorKind::Busy { what }));
        }
        let probes = cell.state == BreakerState::HalfOpen;
        cell.probing += u32::from(probes);
        let pass = Pass { breaker: self.clone(), changes: cell.changes, probes, settled: false };
        drop(cell);
        self.tell(context);
        Ok(pass)
    }

    /// Tells of a change of state that was not told yet. Not under the lock: whoever listens may run at once.
    fn tell(&self, context: &Context) {
        let mut cell = lock(&self.cell);
        let (from, to) = (cell.told, cell.state);
        cell.told = to;
        drop(cell);
        if from != to {
            let told = serde_json::json!({
                "name": self.settings.name.as_deref(),
                "from": from.text(),
                "to": to.text(),
                "node_id": context.node_id(),
            });
            context.inner().node().space.announce("system.breaker", told);
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new()
    }
}

impl BreakerState {
    fn text(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

impl Cell {
    fn turn(&mut self, state: BreakerState) {
        self.state = state;
        self.changes += 1;
        self.failures.clear();
        self.probing = 0;
        self.passed = 0;
    }

    fn succeeded(&mut self, settings: &Settings) {
        match self.state {
            BreakerState::HalfOpen => {
                self.passed += 1;
                if self.passed >= settings.probes_max {
                    self.turn(BreakerState::Closed);
                }
            }
            BreakerState::Closed if settings.within.is_none() => self.failures.clear(),
            BreakerState::Closed | BreakerState::Open => {}
        }
    }

    fn failed(&mut self, settings: &Settings, now: Duration) {
        if self.forced {
            return;
        }
        if let Some(within) = settings.within {
            while self.failures.front().is_some_and(|&then| now.saturating_sub(then) > within) {
                self.failures.pop_front();
            }
        }
        self.failures.push_back(now);
        let many = self.failures.len() >= settings.failures_max as usize;
        if many || self.state == BreakerState::HalfOpen {
            self.turn(BreakerState::Open);
            self.opened_at = now;
        }
    }
}

impl Pass {
    fn settle(mut self, result: &Result<Step>, context: &Context) {
        self.settled = true;
        let settings = &self.breaker.settings;
        let counts = match result {
            Ok(_) => true,
            Err(error) => match &settings.counts {
                Some(counts) => counts(error),
                None => error.is_retryable(),
            },
        };
        let now = context.env().monotonic();
        let mut cell = lock(&self.breaker.cell);
        // What began before the state changed says nothing about the time since.
        if cell.changes == self.changes {
            cell.probing -= u32::from(self.probes);
            match result {
                Ok(_) => cell.succeeded(settings),
                Err(_) if counts => cell.failed(settings, now),
                Err(_) => {}
            }
        }
        drop(cell);
        self.breaker.tell(context);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut cell = lock(&self.breaker.cell);
        if cell.changes == self.changes {
            cell.probing -= u32::from(self.probes);
        }
    }
}

struct Guarded {
    inner: Arc<dyn Function>,
    breaker: Breaker,
}

impl Wrap for Guarded {
    fn named(&self) -> &Arc<dyn Function> {
        &self.inner
    }

    fn run(&self, event: &dyn ErasedEvent, context: &Context) -> Running {
        let pass = match self.breaker.enter(context) {
            Ok(pass) => pass,
            Err(busy) => return Running::Ended(Err(busy)),
        };
        match start(&*self.inner, event, context) {
            Running::Ended(result) => {
                pass.settle(&result, context);
                Running::Ended(result)
            }
            Running::Future(future) => {
                let context = context.clone();
                later(async move {
                    let result = future.await;
                    pass.settle(&result, &context);
                    result
                })
            }
        }
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "breaker `{}`, {}", self.name(), self.state().text())
    }
}
