//! What all handles of one space's global state have in common: the lines that changes wait in, whether there is a
//! sweep, what it is told, and how much of the log is forgotten. Does not know the store.

use std::collections::hash_map::DefaultHasher;
use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::task::Poll;

use happen_core::env::BoxFuture;
use happen_core::store::Position;
use tokio::sync::{MutexGuard, Notify};

use crate::limits::{GLOBAL_DELETED_KEPT_MS, GLOBAL_LINES, GLOBAL_RECORDS_KEPT, LARGE_GIVEN_UP_MAX};
use crate::sync::lock;

/// One for each space; takes little room before anything is contended.
#[derive(Default)]
pub(crate) struct Commons {
    lines: OnceLock<Box<[Line; GLOBAL_LINES]>>,
    sweeps: AtomicBool,
    swept: Notify,
    stopped: AtomicBool,
    stopping: Notify,
    given_up: Mutex<Vec<String>>,
    news: Notify,
    log: Mutex<Log>,
}

/// What of the records of changes is forgotten, in a space in memory.
#[derive(Default)]
struct Log {
    written: u64,
    /// Where the log was when the last [`GLOBAL_RECORDS_KEPT`] changes began.
    mark: Position,
    /// Where it was a day ago or later, and when that was.
    day: Option<(Position, u64)>,
    forgotten: Forgotten,
}

/// What is to be forgotten now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forget {
    /// The records of changes before this position.
    pub(super) changes_before: Position,
    /// The revisions of entries that were deleted before this position.
    pub(super) deletions_before: Position,
}

/// The records before this position are forgotten, so many.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Forgotten {
    pub(super) before: Position,
    pub(super) records: u64,
}

/// Where changes wait that lost to another one, one after the other. Without it each of a hundred changes would be tried
/// against all others.
#[derive(Default)]
pub(super) struct Line {
    waiting: AtomicUsize,
    first: tokio::sync::Mutex<()>,
}

/// A place in a line. Whoever has one is the first.
pub(super) struct Turn<'l> {
    _first: MutexGuard<'l, ()>,
    _waiting: Waiting<'l>,
}

/// Counts somebody who waits or whose turn it is.
struct Waiting<'l>(&'l Line);

impl Commons {
    pub(super) fn line(&self, key: &str) -> &Line {
        let lines = self.lines.get_or_init(|| Box::new(std::array::from_fn(|_| Line::default())));
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        &lines[(hasher.finish() % GLOBAL_LINES as u64) as usize]
    }

    /// Ends the sweep and every watch. For good: the space has ended.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.stopping.notify_waiters();
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Waits until the space has ended.
    pub(super) async fn stopped(&self) {
        let mut stopping = pin!(self.stopping.notified());
        // Listens before it looks, so that an end in between is heard.
        stopping.as_mut().enable();
        if !self.has_stopped() {
            stopping.await;
        }
    }

    /// Says that a sweep begins, unless there is one.
    pub(super) fn begin_sweep(&self) -> bool {
        !self.sweeps.swap(true, Ordering::SeqCst)
    }

    pub(super) fn end_sweep(&self) {
        self.sweeps.store(false, Ordering::SeqCst);
        self.swept.notify_waiters();
    }

    /// Waits until there is no sweep, and so nobody but users has the store; or until it is too late, which it is when
    /// nobody runs the sweep any more.
    pub(crate) async fn swept(&self, mut too_late: BoxFuture<'_, ()>) {
        let mut swept = pin!(self.swept.notified());
        swept.as_mut().enable();
        if self.sweeps.load(Ordering::SeqCst) {
            poll_fn(|task| match swept.as_mut().poll(task) {
                Poll::Pending => too_late.as_mut().poll(task),
                Poll::Ready(()) => Poll::Ready(()),
            })
            .await;
        }
    }

    /// Counts a change at this position. Says from time to time what is to be forgotten: who is behind it counts as
    /// behind at once, before anything is gone.
    pub(super) fn count_change(&self, at: Position, now_unix_ms: u64) -> Option<Forget> {
        let mut log = lock(&self.log);
        log.written += 1;
        if !log.written.is_multiple_of(GLOBAL_RECORDS_KEPT) {
            return None;
        }
        // Changes are counted in another order than they are committed in, so a mark never goes back.
        let mark = at.max(log.mark);
        let changes_before = std::mem::replace(&mut log.mark, mark);
        let deletions_before = match log.day {
            Some((day, since)) if now_unix_ms >= since.saturating_add(GLOBAL_DELETED_KEPT_MS) => {
                log.day = Some((mark, now_unix_ms));
                day
            }
            Some(_) => Position::START,
            None => {
                log.day = Some((mark, now_unix_ms));
                Position::START
            }
        };
        if changes_before == Position::START {
            return None;
        }
        log.forgotten =
            Forgotten { before: changes_before, records: log.forgotten.records + GLOBAL_RECORDS_KEPT };
        Some(Forget { changes_before, deletions_before })
    }

    pub(super) fn forgotten(&self) -> Forgotten {
        lock(&self.log).forgotten
    }

    /// Tells the sweep of a large value that its writer gave up.
    pub(super) fn give_up(&self, id: String) {
        let mut given_up = lock(&self.given_up);
        if given_up.len() < LARGE_GIVEN_UP_MAX {
            given_up.push(id);
        }
        drop(given_up);
        self.news.notify_one();
    }

    /// Waits until there is something that a writer gave up.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    pub(super) fn take_given_up(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.given_up))
    }

    /// Tells the sweep that a large value was begun, of which nobody may ever hear again.
    pub(super) fn begun(&self) {
        self.news.notify_one();
    }
}

impl Line {
    /// Whether somebody waits here, who is to come first.
    pub(super) fn is_waited_in(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Waits to be the first.
    pub(super) async fn turn(&self) -> Turn<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let waiting = Waiting(self);
        Turn { _first: self.first.lock().await, _waiting: waiting }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_that_were_given_up_are_kept_in_mind() {
        let commons = Commons::default();
        for given_up in [LARGE_GIVEN_UP_MAX - 1, LARGE_GIVEN_UP_MAX, LARGE_GIVEN_UP_MAX + 1] {
            (0..given_up).for_each(|id| commons.give_up(id.to_string()));
            assert_eq!(commons.take_given_up().len(), given_up.min(LARGE_GIVEN_UP_MAX));
        }
    }

    #[test]
    fn marks_never_go_back_and_deletions_are_forgotten_after_a_day() {
        let commons = Commons::default();
        let at = |number| Position::from_number(number);
        let count = |from: u128, now: u64| {
            let forget = (0..GLOBAL_RECORDS_KEPT).find_map(|_| commons.count_change(at(from), now));
            forget.map(|forget| (forget.changes_before.number(), forget.deletions_before.number()))
        };
        let day = GLOBAL_DELETED_KEPT_MS;
        assert_eq!((count(10, 7), count(5, 7 + day - 1)), (None, Some((10, 0))));
        assert_eq!((count(20, 7 + day), count(30, 7 + day)), (Some((10, 10)), Some((20, 0))));
        assert_eq!((count(40, 8 + 2 * day), count(50, 8 + 4 * day)), (Some((30, 20)), Some((40, 40))));
        assert_eq!(commons.forgotten().records, 5 * GLOBAL_RECORDS_KEPT);
    }
}
