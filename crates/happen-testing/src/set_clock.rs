//! Surroundings with a wall clock that can be set, as that of a machine can, and with time that passes at once. Owns the
//! differences; everything else is that of the environment inside.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use happen_core::env::{BoxFuture, BoxWork, CoarseClock, Env};

/// An environment whose wall clock is ahead of another one, or behind it, and which may have stood still.
///
/// # Examples
///
/// ```
/// use happen_core::env::Env;
/// use happen_testing::{SetClock, Simulator};
///
/// let sim = Simulator::new(1);
/// let clock = SetClock::over(sim.env());
/// clock.set_ahead(-1_000);
/// assert_eq!(clock.unix_ms() + 1_000, sim.env().unix_ms());
/// ```
#[derive(Debug)]
pub struct SetClock {
    inner: Arc<dyn Env>,
    ahead_ms: AtomicI64,
    stood_still_ms: AtomicU64,
    /// Stands, so that whoever reads it asks for the time.
    coarse: Arc<CoarseClock>,
}

impl SetClock {
    /// The clock of this environment, which nobody has set yet.
    #[must_use]
    pub fn over(inner: Arc<dyn Env>) -> Self {
        Self { inner, ahead_ms: AtomicI64::new(0), stood_still_ms: AtomicU64::new(0), coarse: Arc::default() }
    }

    /// Sets it so many milliseconds ahead of the one inside, or behind it.
    pub fn set_ahead(&self, ahead_ms: i64) {
        self.ahead_ms.store(ahead_ms, Ordering::SeqCst);
    }

    /// Has so many milliseconds pass at once, in which nothing ran that lives here: what a process sees that was stopped.
    pub fn stand_still(&self, time_ms: u64) {
        self.stood_still_ms.fetch_add(time_ms, Ordering::SeqCst);
    }

    fn stood_still(&self) -> Duration {
        Duration::from_millis(self.stood_still_ms.load(Ordering::SeqCst))
    }
}

impl Env for SetClock {
    fn unix_ms(&self) -> u64 {
        let unix_ms = self.inner.unix_ms().saturating_add_signed(self.ahead_ms.load(Ordering::SeqCst));
        unix_ms + self.stood_still_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        self.inner.monotonic() + self.stood_still()
    }

    fn clock(&self) -> &Arc<CoarseClock> {
        &self.coarse
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.inner.fill_random(bytes);
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.inner.spawn(task);
    }

    fn spawn_blocking(&self, work: BoxWork) {
        self.inner.spawn_blocking(work);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.inner.sleep(time)
    }
}
