//! `retry`: a handler that is run again when it fails. Owns how often, after which waits, and for which errors.

use happen_core::IntoStep;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use happen_core::env::Env;
use happen_core::{ErasedEvent, Error, Function};

use super::{Judge, Running, Wrap, Wrapped, erase, go_on, later, start, wrapped};
use crate::context::Context;
use crate::handler::{Argument, Handler};
use crate::limits;

/// Runs a handler again when it fails, after waits that grow.
///
/// The policy is a [`Backoff`], or the number of attempts. The handler sees which attempt it is
/// ([`Context::attempt`]) and the error of the one before ([`Context::last_error`]). When no attempt is left, the flow
/// fails with the last error as it was, under a line that says how many attempts there were and how long they took.
///
/// What an attempt sent or kept with `cx.put` before it failed stays.
///
/// # Cancel safety
///
/// A flow that is cancelled while it waits for the next attempt ends there.
///
/// # Examples
///
/// ```
/// use happen::wrap::{Backoff, retry, timeout};
/// use happen::{Context, ErrorKind, Event, Space, millis, secs};
///
/// async fn charge(_: Event, cx: Context) -> happen::Result<u32> {
///     if cx.attempt() < 3 {
///         return Err(happen::Error::msg("the bank does not answer"));
///     }
///     Ok(cx.attempt())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let payments = space.node("payments");
/// let policy = Backoff::new().attempts_max(5).wait(millis(2)).time_max(secs(10));
/// payments.on("charge", retry(policy, timeout(secs(1), charge)));
/// space.start().await?;
/// let charge = Event::new("charge", serde_json::json!({ "cents": 100 }));
/// assert_eq!(*space.send(&payments, charge).reply::<u32>().await?, 3);
/// # Ok(())
/// # }
/// ```
#[doc(alias = "withRetry")]
pub fn retry<H, M>(policy: impl Into<Backoff>, handler: H) -> Wrapped
where
    H: Handler<M>,
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send,
{
    wrapped(Retry { inner: erase(handler), policy: policy.into() })
}

/// How often and when [`retry`] runs a handler again. Waits grow from the first one by a factor up to the longest.
#[derive(Clone)]
#[must_use]
pub struct Backoff {
    attempts_max: u32,
    wait: Duration,
    wait_max: Duration,
    factor: u32,
    jitter_percent: u32,
    time_max: Option<Duration>,
    retries: Option<Judge>,
}

impl Backoff {
    /// Three attempts, a wait of 100 ms before the second, each further one twice as long up to 30 s, the shorter half
    /// of each wait drawn; again for errors that are [retryable](Error::is_retryable).
    pub fn new() -> Self {
        Self {
            attempts_max: limits::RETRY_ATTEMPTS_MAX,
            wait: Duration::from_millis(limits::RETRY_WAIT_MS),
            wait_max: Duration::from_millis(limits::RETRY_WAIT_MS_MAX),
            factor: 2,
            jitter_percent: 50,
            time_max: None,
            retries: None,
        }
    }

    /// Limits the runs of the handler, the first one included; at least one.
    pub fn attempts_max(mut self, attempts: u32) -> Self {
        self.attempts_max = attempts.max(1);
        self
    }

    /// Sets the wait before the second attempt.
    pub fn wait(mut self, first: Duration) -> Self {
        self.wait = first;
        self
    }

    /// Limits each wait.
    pub fn wait_max(mut self, longest: Duration) -> Self {
        self.wait_max = longest;
        self
    }

    /// Sets by what each wait is longer than the one before; 1 makes all the same.
    pub fn factor(mut self, factor: u32) -> Self {
        self.factor = factor.max(1);
        self
    }

    /// Sets which part of each wait is drawn, in percent: 0 gives exact waits, 50 between half a wait and a whole one,
    /// 100 between none and a whole one. Callers that failed together then do not come back together.
    pub fn jitter_percent(mut self, percent: u32) -> Self {
        self.jitter_percent = percent.min(100);
        self
    }

    /// Limits the time from the first attempt on: none begins later. It does not cut an attempt short, which
    /// [`timeout`](super::timeout) does.
    pub fn time_max(mut self, time: Duration) -> Self {
        self.time_max = Some(time);
        self
    }

    /// Says for which errors another attempt is made, in the place of [`Error::is_retryable`].
    pub fn retry_if(mut self, retries: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        self.retries = Some(Arc::new(retries));
        self
    }

    fn retries(&self, error: &Error) -> bool {
        self.retries.as_ref().map_or_else(|| error.is_retryable(), |retries| retries(error))
    }

    /// The wait after this attempt, as far as chance leaves it.
    fn wait_after(&self, attempt: u32, env: &dyn Env) -> Duration {
        let factor = self.factor.checked_pow(attempt - 1).unwrap_or(u32::MAX);
        let longest = self.wait.saturating_mul(factor).min(self.wait_max);
        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        let drawn = (u128::from(nanos) * u128::from(self.jitter_percent) / 100) as u64;
        if drawn == 0 {
            return Duration::from_nanos(nanos);
        }
        // Scaled by a multiplication: a remainder would favour short waits.
        let part = (u128::from(env.random_u64()) * (u128::from(drawn) + 1)) >> 64;
        Duration::from_nanos(nanos - part as u64)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl From<u32> for Backoff {
    fn from(attempts: u32) -> Self {
        Self::new().attempts_max(attempts)
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} attempts, {:?} to {:?}", self.attempts_max, self.wait, self.wait_max)
    }
}

struct Retry {
    inner: Arc<dyn Function>,
    policy: Backoff,
}

impl Wrap for Retry {
    fn named(&self) -> &Arc<dyn Function> {
        &self.inner
    }

    fn waits(&self) -> bool {
        true
    }

    fn run(&self, event: &dyn ErasedEvent, context: &Context) -> Running {
        let began = context.env().monotonic();
        let mut running = match start(&*self.inner, event, context) {
            Running::Ended(Ok(step)) => return Running::Ended(Ok(step)),
            running => running,
        };
        let (inner, policy) = (Arc::clone(&self.inner), self.policy.clone());
        let (event, context) = (event.to_shared(), context.clone());
        later(async move {
            let mut attempt = 1;
            loop {
                let error = match running.end().await {
                    Ok(step) => return Ok(step),
                    Err(error) => error,
                };
                let env = context.env();
                let elapsed = env.monotonic().saturating_sub(began);
                if !policy.retries(&error) {
                    return Err(gave_up(error, attempt, elapsed, "another would not help"));
                }
                if attempt >= policy.attempts_max {
                    return Err(gave_up(error, attempt, elapsed, "the last one allowed"));
                }
                let wait = policy.wait_after(attempt, &**env);
                if policy.time_max.is_some_and(|max| elapsed.saturating_add(wait) > max) {
                    return Err(gave_up(error, attempt, elapsed, "no time left for another"));
                }
                if context.time_left().is_some_and(|left| wait >= left) {
                    return Err(gave_up(error, attempt, elapsed, "the caller would not wait for another"));
                }
                env.sleep(wait).await;
                attempt += 1;
                running = go_on(&*inner, &*event, &context.once_more(attempt, Some(error)));
            }
        })
    }
}

/// The last error under a line about the attempts; unchanged when trying again was never in question.
#[cold]
fn gave_up(error: Error, attempts: u32, elapsed: Duration, why: &str) -> Error {
    if attempts == 1 && !error.is_retryable() {
        return error;
    }
    let attempts = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
    error.context(format!("gave up after {attempts} in {elapsed:?}, {why}"))
}
