//! What is shared without a common lock, under a model checker: the gate with its arrivals, leavers and drainers, and the
//! published value with its readers and changers, in every order the checker thinks of. The files are those the crate
//! uses; only the synchronisation types are the checker's.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::HashSet;

use shuttle::sync::Arc;
use shuttle::thread;

/// The checker's types in the place of the standard ones.
mod sync {
    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
    pub(crate) use shuttle::sync::{Mutex, MutexGuard};

    pub(crate) fn kept_going(_: &str, work: impl FnOnce()) {
        work();
    }

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }
}

/// The two settings the gate looks at, with the variants of the crate's own.
#[expect(dead_code, reason = "the model queues in one order and refuses what is too much")]
mod config {
    #[derive(Clone, Copy, PartialEq)]
    pub(crate) enum QueueOrder {
        Fifo,
        Lifo,
        Priority,
    }

    #[derive(Clone, Copy, PartialEq)]
    pub(crate) enum Overflow {
        Reject,
        DropOldest,
    }
}

#[expect(dead_code, reason = "the crate uses more of it than the model")]
#[path = "../src/gate.rs"]
mod gate;

#[expect(dead_code, reason = "the crate uses more of it than the model")]
#[path = "../src/published.rs"]
mod published;

use config::{Overflow, QueueOrder};
use gate::{Gate, Queued};
use published::{Published, Readers};
use sync::{AtomicU32, Mutex, Ordering};

struct World {
    gate: Gate<u32>,
    max: u32,
    inside: AtomicU32,
    ran: Mutex<Vec<u32>>,
}

impl World {
    fn new(max: u32) -> Arc<Self> {
        Arc::new(Self { gate: Gate::new(), max, inside: AtomicU32::new(0), ran: Mutex::new(Vec::new()) })
    }

    /// What `dispatch` does with an event: run now, or wait; and whoever must drain does.
    fn arrive(&self, job: u32) {
        if self.gate.enter(self.max) {
            self.run(job);
            self.leave();
            return;
        }
        match self.gate.queue(job, 0, self.max, 100, QueueOrder::Fifo, Overflow::Reject) {
            Queued::Waits => {}
            Queued::Drain => self.drain(),
            Queued::Full(_) | Queued::Instead(_) => panic!("the queue is never full here"),
        }
    }

    fn drain(&self) {
        while let Some(job) = self.gate.next(self.max) {
            self.run(job);
            self.gate.started();
            self.leave();
        }
    }

    fn leave(&self) {
        if self.gate.leave() {
            self.drain();
        }
    }

    fn run(&self, job: u32) {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(inside <= self.max, "{inside} inside a gate for {}", self.max);
        thread::yield_now();
        sync::lock(&self.ran).push(job);
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn check_over(&self, jobs: u32) {
        let ran = sync::lock(&self.ran);
        assert_eq!(ran.len(), jobs as usize, "a job was lost or ran twice: {ran:?}");
        assert_eq!(ran.iter().collect::<HashSet<_>>().len(), jobs as usize);
        assert_eq!((self.gate.active(), self.gate.waiting()), (0, 0));
    }
}

fn arrivals_from_threads(max: u32, threads: u32, each: u32) {
    let world = World::new(max);
    let all: Vec<_> = (0..threads)
        .map(|thread| {
            let world = Arc::clone(&world);
            thread::spawn(move || (0..each).for_each(|index| world.arrive(thread * each + index)))
        })
        .collect();
    all.into_iter().for_each(|thread| thread.join().unwrap());
    world.check_over(threads * each);
}

#[test]
fn no_job_waits_at_an_open_gate_and_none_runs_twice() {
    shuttle::check_random(|| arrivals_from_threads(1, 3, 3), 2_000);
    shuttle::check_random(|| arrivals_from_threads(2, 4, 2), 2_000);
    shuttle::check_pct(|| arrivals_from_threads(1, 3, 2), 2_000, 3);
}

#[test]
fn every_order_of_two_arrivals() {
    shuttle::check_dfs(|| arrivals_from_threads(1, 2, 1), Some(20_000));
}

#[test]
fn jobs_of_one_sender_start_in_order_at_a_serial_gate() {
    shuttle::check_random(
        || {
            let world = World::new(1);
            let senders: Vec<_> = (0..2)
                .map(|sender| {
                    let world = Arc::clone(&world);
                    thread::spawn(move || (0..4).for_each(|index| world.arrive(sender * 100 + index)))
                })
                .collect();
            senders.into_iter().for_each(|sender| sender.join().unwrap());
            world.check_over(8);
            let ran = sync::lock(&world.ran);
            for sender in 0..2 {
                let own: Vec<_> = ran.iter().filter(|job| *job / 100 == sender).collect();
                assert!(own.is_sorted(), "{ran:?}");
            }
        },
        3_000,
    );
}

#[test]
fn a_place_given_back_while_waiting_for_a_reply_is_taken_by_others() {
    shuttle::check_random(
        || {
            let world = World::new(1);
            let waiter = {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    if world.gate.enter(1) {
                        // A flow waits for a reply, gives its place back, and goes on even beyond the limit.
                        world.leave();
                        thread::yield_now();
                        world.gate.enter_anyway();
                        world.leave();
                    }
                })
            };
            let sender = {
                let world = Arc::clone(&world);
                thread::spawn(move || (0..3).for_each(|job| world.arrive(job)))
            };
            waiter.join().unwrap();
            sender.join().unwrap();
            world.check_over(3);
        },
        3_000,
    );
}

/// A value that knows whether it was dropped: what tells is outside of it, and outlives it.
struct Watched {
    number: usize,
    dropped: Arc<Vec<AtomicU32>>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let before = self.dropped[self.number].fetch_add(1, Ordering::SeqCst);
        assert_eq!(before, 0, "a value is dropped once");
    }
}

/// Readers beside a changer: nobody uses a value that was dropped, and every replaced value is dropped in the end.
fn published(readers_len: usize, changes: usize) {
    let dropped: Arc<Vec<AtomicU32>> = Arc::new((0..=changes).map(|_| AtomicU32::new(0)).collect());
    let value = |number| Arc::new(Watched { number, dropped: Arc::clone(&dropped) });
    let all = Arc::new((Readers::new(), Published::new(value(0))));
    let threads: Vec<_> = (0..readers_len)
        .map(|_| {
            let (all, dropped) = (Arc::clone(&all), Arc::clone(&dropped));
            thread::spawn(move || {
                let (readers, published) = &*all;
                let claim = readers.claim();
                let mut last = 0;
                for _ in 0..2 {
                    let here = readers.here(claim.as_ref());
                    published.read(readers, here, |outer| {
                        let number = outer.number;
                        assert!(number >= last, "a value came back that was replaced");
                        last = number;
                        // Inside one another, as handlers are.
                        published.read(readers, here, |inner| {
                            assert!(inner.number >= number);
                            assert_eq!(dropped[inner.number].load(Ordering::SeqCst), 0, "in use");
                        });
                        assert_eq!(dropped[number].load(Ordering::SeqCst), 0, "in use");
                    });
                }
            })
        })
        .collect();
    for number in 1..=changes {
        all.1.change(&all.0, |_| value(number));
    }
    for thread in threads {
        thread.join().unwrap();
    }
    let left: Vec<_> = (0..changes).filter(|&number| dropped[number].load(Ordering::SeqCst) == 0).collect();
    assert!(left.is_empty(), "nobody reads any more and these are left: {left:?}");
    assert_eq!(all.1.load().number, changes);
}

#[test]
fn a_published_value_lives_as_long_as_it_is_read_and_no_longer() {
    shuttle::check_random(|| published(2, 2), 5_000);
    shuttle::check_pct(|| published(3, 1), 5_000, 3);
}
