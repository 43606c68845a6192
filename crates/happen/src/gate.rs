//! How many events of a node run at once, and where the others wait. Owns the counters and the queue; does not know
//! what a job does.
//!
//! The counters and the queue are used from any thread without a common lock: an arrival that finds the gate full puts
//! itself into the queue and then looks once more, and a job that leaves takes itself off and then looks into the
//! queue. Either the arrival sees the free place or the leaver sees the arrival (both write before they read, in one
//! total order), so no job waits at an open gate. `tests/model.rs` checks it with a model checker.

use std::collections::VecDeque;

use crate::config::{Overflow, QueueOrder};
use crate::sync::{AtomicU32, Mutex, Ordering, lock};

/// The gate of a node, or of one key of a node.
pub(crate) struct Gate<J> {
    /// Jobs inside.
    active: AtomicU32,
    /// Jobs that came and have not started yet.
    waiting: AtomicU32,
    /// Made by the first job that has to wait: most gates never see one.
    queue: Mutex<Option<Box<Queue<J>>>>,
}

struct Queue<J> {
    jobs: VecDeque<(i64, J)>,
    draining: bool,
}

impl<J> Queue<J> {
    fn boxed() -> Box<Self> {
        Box::new(Self { jobs: VecDeque::new(), draining: false })
    }
}

/// What became of a job that could not run at once.
pub(crate) enum Queued<J> {
    /// It waits.
    Waits,
    /// It waits, and the caller must drain the queue because nobody else does.
    Drain,
    /// The queue is full; the job is given back.
    Full(J),
    /// It waits in the place of this older one; or it is this one, when nobody gives way to it.
    Instead(J),
}

impl<J> Gate<J> {
    pub(crate) fn new() -> Self {
        Self { active: AtomicU32::new(0), waiting: AtomicU32::new(0), queue: Mutex::new(None) }
    }

    /// Jobs inside.
    #[inline]
    pub(crate) fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Jobs that wait.
    #[inline]
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes a place, when there is one and nobody waits for it.
    #[inline]
    pub(crate) fn enter(&self, max: u32) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0 && self.enter_now(max)
    }

    #[inline]
    fn enter_now(&self, max: u32) -> bool {
        let mut active = self.active.load(Ordering::SeqCst);
        while active < max {
            match self.active.compare_exchange_weak(active, active + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return true,
                Err(now) => active = now,
            }
        }
        false
    }

    /// Takes a place even beyond the limit, for a flow that is under way already.
    #[inline]
    pub(crate) fn enter_anyway(&self) {
        self.active.fetch_add(1, Ordering::SeqCst);
    }

    /// Gives a place back. True when jobs wait and the caller must drain the queue.
    #[inline]
    #[must_use]
    pub(crate) fn leave(&self) -> bool {
        let before = self.active.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "a place was given back that nobody had");
        self.waiting.load(Ordering::SeqCst) > 0 && self.claim_drain()
    }

    /// Puts a job into the queue.
    #[cold]
    pub(crate) fn queue(
        &self,
        job: J,
        priority: i64,
        max: u32,
        limit: usize,
        order: QueueOrder,
        overflow: Overflow,
    ) -> Queued<J> {
        let mut queue = lock(&self.queue);
        let queue = queue.get_or_insert_with(Queue::boxed);
        let mut instead = None;
        if queue.jobs.len() >= limit {
            match overflow {
                Overflow::DropOldest if limit > 0 => {
                    let oldest = match order {
                        QueueOrder::Fifo => queue.jobs.pop_front(),
                        QueueOrder::Lifo => queue.jobs.pop_back(),
                        QueueOrder::Priority => {
                            let lowest = queue.jobs.back().map_or(priority, |(lowest, _)| *lowest);
                            if priority < lowest {
                                return Queued::Instead(job);
                            }
                            let at = queue.jobs.partition_point(|(other, _)| *other > lowest);
                            queue.jobs.remove(at)
                        }
                    };
                    instead = oldest.map(|(_, job)| job);
                }
                _ => return Queued::Full(job),
            }
        } else {
            self.waiting.fetch_add(1, Ordering::SeqCst);
        }
        match order {
            QueueOrder::Fifo => queue.jobs.push_back((priority, job)),
            QueueOrder::Lifo => queue.jobs.push_front((priority, job)),
            QueueOrder::Priority => {
                let at = queue.jobs.partition_point(|(other, _)| *other >= priority);
                queue.jobs.insert(at, (priority, job));
            }
        }
        if let Some(job) = instead {
            return Queued::Instead(job);
        }
        // The look after the write: a place may have become free before the leaver could see this job.
        if !queue.draining && self.active.load(Ordering::SeqCst) < max {
            queue.draining = true;
            return Queued::Drain;
        }
        Queued::Waits
    }

    /// For a gate that opens again: true when jobs wait and the caller must drain the queue.
    #[must_use]
    pub(crate) fn claim_drain(&self) -> bool {
        let mut queue = lock(&self.queue);
        let Some(queue) = queue.as_deref_mut() else { return false };
        if queue.draining || queue.jobs.is_empty() {
            return false;
        }
        queue.draining = true;
        true
    }

    /// For the one that drains: the next job with a place taken for it, or `None` when the draining is over.
    pub(crate) fn next(&self, max: u32) -> Option<J> {
        let mut queue = lock(&self.queue);
        let queue = queue.as_deref_mut()?;
        if queue.jobs.is_empty() || !self.enter_now(max) {
            // Whoever frees a place from now on finds nobody draining, for it needs the lock held here.
            queue.draining = false;
            return None;
        }
        queue.jobs.pop_front().map(|(_, job)| job)
    }

    /// What `of` says of the job that waited longest; by priority, the least that it says of any.
    #[cold]
    pub(crate) fn oldest<T: Ord>(&self, order: QueueOrder, of: impl Fn(&J) -> T) -> Option<T> {
        let queue = lock(&self.queue);
        let jobs = &queue.as_deref()?.jobs;
        let oldest = match order {
            QueueOrder::Fifo => jobs.front(),
            QueueOrder::Lifo => jobs.back(),
            QueueOrder::Priority => return jobs.iter().map(|(_, job)| of(job)).min(),
        };
        oldest.map(|(_, job)| of(job))
    }

    /// Says that a job which came by the queue has started, so that later arrivals may go past.
    pub(crate) fn started(&self) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Takes out every job that waits, for a node that closes.
    pub(crate) fn clear(&self) -> Vec<J> {
        let mut queue = lock(&self.queue);
        let Some(queue) = queue.as_deref_mut() else { return Vec::new() };
        let jobs: Vec<J> = queue.jobs.drain(..).map(|(_, job)| job).collect();
        for _ in &jobs {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        jobs
    }
}
