//! Plain handlers that prove slow: where they run so that they hold up nobody who sends to them. Owns the count of slow
//! runs and the lane they then take, in order; which node has which lane is in `node.rs`.

use std::cell::Cell;
use std::sync::Arc;

use crate::gate::Gate;
use crate::limits;
use crate::local;
use crate::space::SpaceInner;
use crate::sync::{AtomicU32, Ordering, kept_going};

/// How slow the handler of a registration is. Nodes that share the registration share what is known of it.
#[derive(Default)]
pub(crate) struct Slowness {
    /// Grows by [`SLOW_RUN`] with each slow run and shrinks by one with each quick one, until it reaches [`PROVED`] and
    /// stays there: a handler that went back while events wait in its lane would start later ones before them.
    score: AtomicU32,
}

/// Where the events of one registration of one node wait and run, once its handler proved slow.
pub(crate) struct SlowLane {
    pub(crate) gate: Gate<SlowJob>,
}

/// A run of a plain handler on a thread of its own.
pub(crate) type SlowJob = Box<dyn FnOnce() + Send>;

/// Counts a run among the flows under way while it waits in its lane and while it runs, so that a space that stops
/// waits for it.
pub(crate) struct UnderWay(Arc<SpaceInner>);

impl UnderWay {
    pub(crate) fn new(space: &Arc<SpaceInner>) -> Self {
        space.flow_began();
        Self(Arc::clone(space))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.flow_ended();
    }
}

impl Default for SlowLane {
    fn default() -> Self {
        Self { gate: Gate::new() }
    }
}

impl Clone for Slowness {
    fn clone(&self) -> Self {
        Self { score: AtomicU32::new(self.score.load(Ordering::Relaxed)) }
    }
}

impl Slowness {
    /// Whether the handler proved slow.
    #[inline]
    pub(crate) fn is_slow(&self) -> bool {
        self.score.load(Ordering::Relaxed) >= PROVED
    }

    /// Notes how long a run on the caller's thread took. Quick runs make up for slow ones, so one that met a busy
    /// machine is forgotten; they do not undo them at once, so a handler that is slow every other time is found too.
    #[inline]
    pub(crate) fn note(&self, ms: u64) {
        if ms != 0 {
            self.took(ms);
        } else if self.score.load(Ordering::Relaxed) != 0 {
            self.was_quick();
        }
    }

    #[cold]
    fn took(&self, ms: u64) {
        let ms = count_time(ms);
        if ms < limits::SLOW_HANDLER_MS {
            return self.was_quick();
        }
        self.change(|score| score + SLOW_RUN);
    }

    #[cold]
    fn was_quick(&self) {
        self.change(|score| score.saturating_sub(1));
    }

    fn change(&self, change: impl Fn(u32) -> u32) {
        let open = |score| (score < PROVED).then(|| change(score));
        // Nothing is changed once the handler proved slow.
        let _proved = self.score.fetch_update(Ordering::Relaxed, Ordering::Relaxed, open);
    }
}

impl SlowLane {
    /// Whether nobody waits or runs here.
    pub(crate) fn is_idle(&self) -> bool {
        self.gate.active() == 0 && self.gate.waiting() == 0
    }

    /// Runs what waits in the lane, one after the other, until nothing does.
    pub(crate) fn drain(&self) {
        while let Some(job) = self.gate.next(1) {
            self.gate.started();
            kept_going("a slow lane", job);
            // The one that drains is the one that leaves, so nobody else has to be told.
            let _drain = self.gate.leave();
        }
    }
}

/// Counts the time of a handler like as many events that take none, so who sends in a loop gives way by time as by
/// number. Says how much of it was the handler's own: the rest is that of handlers which ran inline inside it, who must
/// not make those slow that only sent to them.
#[cold]
pub(crate) fn count_time(ms: u64) -> u64 {
    let depth = (local::depth() as usize).min(LEVELS - 2);
    let own = NESTED_MS.with(|nested| {
        let inner = nested[depth + 1].replace(0);
        nested[depth].set(nested[depth].get().saturating_add(ms));
        ms.saturating_sub(inner)
    });
    local::ran(u32::try_from(own).unwrap_or(u32::MAX).saturating_mul(RUNS_FOR_MS));
    own
}

/// Forgets the time of what was put off: it ran inside no handler, though one level below the outermost.
pub(crate) fn forget_nested() {
    NESTED_MS.with(|nested| nested[(local::depth() as usize + 1).min(LEVELS - 1)].set(0));
}

thread_local! {
    /// The time of handlers at each depth of this thread's stack since one at the depth above ended. A handler that
    /// took no time has none below that did, so whatever is here belongs to the next one above that took some.
    static NESTED_MS: [Cell<u64>; LEVELS] = const { [const { Cell::new(0) }; LEVELS] };
}

/// What a slow run counts beside a quick one: a handler that is slow more often than one time in as many is found.
const SLOW_RUN: u32 = 16;
/// The score from which a handler is slow: [`limits::SLOW_RUNS_MAX`] slow runs in a row.
const PROVED: u32 = (limits::SLOW_RUNS_MAX - 1) * SLOW_RUN + 1;
/// Events that a millisecond of a handler counts for: a sender gives way after [`limits::INLINE_RUN_MS_MAX`] of them.
const RUNS_FOR_MS: u32 = limits::INLINE_RUN_MAX / limits::INLINE_RUN_MS_MAX;

/// Depths of handlers inside one another, and one above and one below.
const LEVELS: usize = limits::INLINE_DEPTH_MAX as usize + 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of runs after which a handler is slow, when every so many-th run is.
    fn runs_until_slow(every: u32, most: u32) -> Option<u32> {
        let lane = Slowness::default();
        (1..=most).find(|run| {
            lane.note(if run % every == 0 { limits::SLOW_HANDLER_MS } else { 0 });
            lane.is_slow()
        })
    }

    #[test]
    fn a_handler_is_slow_after_so_many_slow_runs_in_a_row_or_more_that_are_not() {
        assert_eq!(runs_until_slow(1, 100), Some(limits::SLOW_RUNS_MAX));
        // Few quick ones between do not matter; with fifteen between, the last of eighteen slow runs tells.
        assert_eq!(runs_until_slow(2, 100), Some(2 * limits::SLOW_RUNS_MAX));
        assert_eq!(runs_until_slow(SLOW_RUN, 10_000), Some(SLOW_RUN * (PROVED - SLOW_RUN + 1)));
        assert_eq!(runs_until_slow(SLOW_RUN + 1, 100_000), None);
    }

    #[test]
    fn the_time_inside_a_handler_is_not_its_own() {
        let outer = local::deeper();
        let inner = local::deeper();
        assert_eq!(count_time(7), 7);
        assert_eq!(count_time(5), 5, "beside the one before");
        drop(inner);
        assert_eq!(count_time(20), 20 - 12);
        assert_eq!(count_time(20), 20);
        let inner = local::deeper();
        assert_eq!(count_time(9), 9);
        drop(inner);
        forget_nested();
        assert_eq!(count_time(20), 20, "what was put off is nobody's");
        drop(outer);
    }

    #[test]
    fn just_below_the_limit_is_not_slow() {
        let lane = Slowness::default();
        (0..1_000).for_each(|_| lane.note(limits::SLOW_HANDLER_MS - 1));
        assert!(!lane.is_slow());
    }

    #[test]
    fn who_proved_slow_stays_slow_whatever_runs_end_meanwhile() {
        let lane = Slowness::default();
        (0..limits::SLOW_RUNS_MAX).for_each(|_| lane.note(limits::SLOW_HANDLER_MS));
        (0..1_000).for_each(|_| lane.note(0));
        assert!(lane.is_slow());
    }
}
