//! The real environment: the system's clock and randomness, and tokio's tasks. The only file of this crate that asks
//! the system for any of them.
#![expect(clippy::disallowed_methods, reason = "this is the adapter that the rest of the crate goes through")]

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use happen_core::env::{BoxFuture, BoxWork, CoarseClock, Env};
use tokio::runtime::Handle;

/// Time and randomness of the system, tasks of the tokio runtime it was made in.
pub struct RealEnv {
    started: Instant,
    runtime: Option<Handle>,
    clock: Arc<Ticking>,
    ticker: std::sync::OnceLock<Option<Thread>>,
}

#[derive(Debug, Default)]
struct Ticking {
    clock: Arc<CoarseClock>,
    asleep: AtomicBool,
}

impl RealEnv {
    /// The environment of the tokio runtime that the caller runs in.
    ///
    /// Outside of one, handlers that end at once still run; a handler that waits needs a runtime, and the runtime of
    /// the thread it was sent from is taken then.
    #[must_use]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            runtime: Handle::try_current().ok(),
            clock: Arc::default(),
            ticker: std::sync::OnceLock::new(),
        }
    }

    fn runtime(&self) -> Handle {
        match &self.runtime {
            Some(handle) => handle.clone(),
            // Tokio's own message says that a runtime is needed, at the place where it was missing.
            None => Handle::current(),
        }
    }

    fn ticker(&self) -> Option<&Thread> {
        let start = || {
            let clock = Arc::downgrade(&self.clock);
            let named = thread::Builder::new().name("happen-clock".to_owned());
            // Without the thread the clock stands, and every reader asks the system: slower, and right.
            named.spawn(move || tick(&clock)).ok().map(|handle| handle.thread().clone())
        };
        self.ticker.get_or_init(start).as_ref()
    }
}

/// Moves the coarse clock while it is read: after [`TICKS_AWAKE`] ticks it lets the clock stand and sleeps until a
/// reader asks again, so an idle program does not wake up.
fn tick(clock: &Weak<Ticking>) {
    loop {
        for _ in 0..TICKS_AWAKE {
            thread::sleep(Duration::from_millis(CoarseClock::TICK_MS));
            let Some(ticking) = clock.upgrade() else { return };
            ticking.clock.set(system_unix_ms());
        }
        let Some(ticking) = clock.upgrade() else { return };
        ticking.clock.set(0);
        ticking.asleep.store(true, Ordering::SeqCst);
        drop(ticking);
        // The wait is bounded so that the thread of an environment that was dropped ends.
        thread::park_timeout(PARK_MAX);
        let Some(ticking) = clock.upgrade() else { return };
        while ticking.asleep.load(Ordering::SeqCst) {
            if Arc::strong_count(&ticking) == 1 {
                return;
            }
            thread::park_timeout(PARK_MAX);
        }
    }
}

impl Env for RealEnv {
    fn unix_ms(&self) -> u64 {
        let now = system_unix_ms();
        if self.clock.clock.unix_ms() == 0
            && let Some(ticker) = self.ticker()
            && self.clock.asleep.swap(false, Ordering::SeqCst)
        {
            self.clock.clock.set(now);
            ticker.unpark();
        }
        now
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    fn clock(&self) -> &Arc<CoarseClock> {
        &self.clock.clock
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        // The operating system's source can only fail before the machine has booted.
        #[expect(clippy::expect_used, reason = "no ids without randomness, and no program to go on with")]
        getrandom::fill(bytes).expect("the operating system has no source of randomness");
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(self.runtime().spawn(task));
    }

    fn spawn_blocking(&self, work: BoxWork) {
        drop(self.runtime().spawn_blocking(work));
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let _inside = self.runtime().enter();
        Box::pin(tokio::time::sleep(time))
    }
}

impl Default for RealEnv {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for RealEnv {
    fn drop(&mut self) {
        if let Some(Some(ticker)) = self.ticker.get() {
            ticker.unpark();
        }
    }
}

impl fmt::Debug for RealEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealEnv").field("runtime", &self.runtime.is_some()).finish_non_exhaustive()
    }
}

fn system_unix_ms() -> u64 {
    // A clock before 1970 is a clock that was never set; ids still ascend from it.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis() as u64)
}

/// Ticks after which the clock stands unless it is read again. Few enough to be idle soon, many enough that a busy
/// program wakes the thread some sixty times a second and not more.
const TICKS_AWAKE: u32 = 16;

/// The longest sleep of the clock's thread.
const PARK_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coarse_clock_follows_the_system_and_stands_when_idle() {
        let env: Arc<dyn Env> = Arc::new(RealEnv::new());
        let deadline = env.monotonic() + Duration::from_secs(20);
        let mut went = false;
        let mut stood = false;
        while env.monotonic() < deadline && !(went && stood) {
            let before = env.unix_ms();
            let coarse = env.coarse_unix_ms();
            assert!(coarse.abs_diff(before) < 5_000, "{coarse} is far from {before}");
            went |= env.clock().unix_ms() != 0;
            while went && env.clock().unix_ms() != 0 && env.monotonic() < deadline {
                thread::yield_now();
            }
            stood |= went && env.clock().unix_ms() == 0;
            thread::yield_now();
        }
        assert!(went && stood, "went {went}, stood {stood}");
    }
}
