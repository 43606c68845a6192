//! Plain handlers that prove slow: where they run so that they hold up nobody who sends to them. Owns the count of slow
//! runs and the lane they then take, in order.

use crate::gate::Gate;
use crate::limits;
use crate::sync::{AtomicU32, Ordering};

/// The lane of one registration.
pub(crate) struct SlowLane {
    slow_runs: AtomicU32,
    pub(crate) gate: Gate<SlowJob>,
}

/// A run of a plain handler on a thread of its own.
pub(crate) type SlowJob = Box<dyn FnOnce() + Send>;

impl Default for SlowLane {
    fn default() -> Self {
        Self { slow_runs: AtomicU32::new(0), gate: Gate::new() }
    }
}

impl SlowLane {
    /// Whether the handler proved slow.
    #[inline]
    pub(crate) fn is_slow(&self) -> bool {
        self.slow_runs.load(Ordering::Relaxed) >= limits::SLOW_RUNS_MAX
    }

    /// Notes how long a run on the caller's thread took. Only runs in a row count, so one that met a busy machine
    /// does not.
    #[inline]
    pub(crate) fn note(&self, ms: u64) {
        if ms >= limits::SLOW_HANDLER_MS {
            self.slow_runs.fetch_add(1, Ordering::Relaxed);
        } else if self.slow_runs.load(Ordering::Relaxed) != 0 {
            self.slow_runs.store(0, Ordering::Relaxed);
        }
    }
}
