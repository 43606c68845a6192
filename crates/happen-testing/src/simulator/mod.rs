//! The simulator: runs a program alone on one thread, in virtual time, in an order drawn from a seed. Owns the loop
//! that polls; knows nothing of nodes and events, and never asks the machine for time or randomness.

mod env;
mod error;
mod random;
mod world;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use happen_core::env::Env;

use self::env::VirtualEnv;
use self::world::{Picked, Prepared, World};
use crate::limits;
use crate::panic_text::panic_text;

pub use self::error::{RunError, RunErrorKind};

/// A deterministic executor with a clock of its own.
///
/// Tasks run on the thread that calls [`run`](Self::run), one poll at a time; which of the ready tasks comes next is
/// drawn from the seed. Time stands while any task is ready, and jumps to the next timer when none is; the clock
/// starts at 2026-01-01T00:00:00Z. One seed gives one order of polls, the same times and the same random numbers,
/// each time; another seed gives another order.
///
/// Only virtual things count. Another thread may wake a task, and the task is then polled, but a run does not wait for
/// threads, files or sockets: with nothing ready and no timer left it has stalled, whatever happens outside. A program
/// repeats exactly as long as it takes time, randomness and tasks from [`env`](Self::env) alone; iterating over a
/// `HashMap` of the standard library is enough to break that.
///
/// Dropping a simulator drops the tasks it holds, in the order they were spawned. What is spawned afterwards is
/// dropped at once.
///
/// # Examples
///
/// ```
/// use happen_testing::Simulator;
/// use std::time::Duration;
///
/// let sim = Simulator::new(7);
/// let env = sim.env();
/// let year = Duration::from_secs(365 * 24 * 3_600);
/// let slept = sim.run(async {
///     let before = env.monotonic();
///     env.sleep(year).await;
///     env.monotonic() - before
/// });
/// assert_eq!(slept, year);
/// ```
#[derive(Debug)]
pub struct Simulator {
    world: Arc<World>,
    steps_max: u64,
}

impl Simulator {
    /// Makes a simulator whose order, times and random numbers follow from the seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { world: Arc::new(World::new(seed)), steps_max: limits::STEPS_MAX }
    }

    /// Sets how many polls one run may take; [`limits::STEPS_MAX`] unless set.
    ///
    /// A task that loops without ever giving way is a single endless poll, which no number of steps ends.
    #[must_use]
    pub fn steps_max(mut self, steps_max: u64) -> Self {
        self.steps_max = steps_max;
        self
    }

    /// Sets how many spawned tasks there may be at once; [`limits::TASKS_MAX`] unless set.
    #[must_use]
    pub fn tasks_max(self, tasks_max: usize) -> Self {
        self.world.set_tasks_max(tasks_max);
        self
    }

    /// The environment to hand to the program under test: all of its values share this simulator.
    ///
    /// Tasks may be spawned before a run; they wait for it. [`Env::spawn_blocking`] runs its work as one task, on the
    /// same thread: work that waits for another task waits for ever. [`Env::sleep`] counts from the call on; dropping
    /// the sleep takes its timer away, and a sleep of no time lets other ready tasks run.
    #[must_use]
    pub fn env(&self) -> Arc<dyn Env> {
        Arc::new(VirtualEnv::new(Arc::clone(&self.world)))
    }

    /// Runs a future to its end, and beside it every spawned task.
    ///
    /// The future need be neither `Send` nor `'static`, so it may borrow the simulator. Tasks that have not ended by
    /// then are kept, and go on in the next run.
    ///
    /// # Panics
    ///
    /// In the cases in which [`try_run`](Self::try_run) gives an error, with the text of that error.
    #[track_caller]
    pub fn run<F: Future>(&self, root: F) -> F::Output {
        match self.try_run(root) {
            Ok(output) => output,
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs a future to its end, and beside it every spawned task; tells why when it cannot.
    ///
    /// # Errors
    ///
    /// Each names the seed and the virtual time, and ends the root future; the other tasks are kept.
    ///
    /// - [`RunErrorKind::Stalled`]: nothing is ready and no timer is left.
    /// - [`RunErrorKind::StepsExceeded`]: the run took as many polls as it may and has not ended.
    /// - [`RunErrorKind::TasksExceeded`]: more tasks were spawned than there may be; the last were dropped.
    /// - [`RunErrorKind::RootPanicked`], [`RunErrorKind::TaskPanicked`]: a future panicked, and is dropped.
    ///
    /// # Panics
    ///
    /// When this simulator is running already, on this thread or on another.
    pub fn try_run<F: Future>(&self, root: F) -> Result<F::Output, RunError> {
        let root_run = RootRun::begin(&self.world);
        // After the guard, so that the future is dropped while its place is still taken.
        let mut root = pin!(root);
        let mut steps = 0;
        loop {
            self.check_tasks()?;
            if let Prepared::Stalled { waiting } = self.world.prepare() {
                return Err(self.failed(RunErrorKind::Stalled { waiting }));
            }
            if steps == self.steps_max {
                let steps_max = self.steps_max;
                return Err(self.failed(RunErrorKind::StepsExceeded { steps_max }));
            }
            steps += 1;
            match self.world.pick() {
                Picked::Root => {
                    let mut context = Context::from_waker(&root_run.waker);
                    match caught(|| root.as_mut().poll(&mut context)) {
                        // A task that was dropped in this last poll must not pass for one that ran.
                        Ok(Poll::Ready(output)) => return self.check_tasks().map(|()| output),
                        Ok(Poll::Pending) => {}
                        Err(message) => return Err(self.failed(RunErrorKind::RootPanicked { message })),
                    }
                }
                Picked::Task(task, mut parts) => {
                    let polled = caught(|| {
                        let mut context = Context::from_waker(&parts.waker);
                        match parts.future.as_mut().poll(&mut context) {
                            // A destructor may panic as well: it runs here, where that is caught.
                            Poll::Ready(()) => {
                                drop(parts);
                                None
                            }
                            Poll::Pending => Some(parts),
                        }
                    });
                    match polled {
                        Ok(Some(parts)) => self.world.keep(task, parts),
                        Ok(None) => self.world.remove(task),
                        Err(message) => {
                            self.world.remove(task);
                            return Err(self.failed(RunErrorKind::TaskPanicked { task, message }));
                        }
                    }
                }
            }
        }
    }

    /// The seed this simulator was made with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// The virtual time since the simulator was made; what [`Env::monotonic`] gives.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.world.now()
    }

    /// Sets the wall clock back, as an operator or a time server does. Monotonic time and timers go on unmoved.
    ///
    /// The wall clock ends at the first millisecond after 1970-01-01T00:00:00Z, as the coarse clock means *standing*
    /// by 0.
    pub fn jump_clock_back(&self, time: Duration) {
        self.world.move_wall_clock(-signed_nanos(time));
    }

    /// Sets the wall clock forward. Monotonic time and timers go on unmoved.
    pub fn jump_clock_forward(&self, time: Duration) {
        self.world.move_wall_clock(signed_nanos(time));
    }

    /// A hash over what happened so far: each poll with its task and virtual time, and each random number drawn.
    ///
    /// Two runs of one program under one seed that give different fingerprints took something from outside.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.world.fingerprint()
    }

    fn check_tasks(&self) -> Result<(), RunError> {
        match self.world.take_tasks_exceeded() {
            Some(tasks_max) => Err(self.failed(RunErrorKind::TasksExceeded { tasks_max })),
            None => Ok(()),
        }
    }

    fn failed(&self, kind: RunErrorKind) -> RunError {
        RunError::new(self.world.seed, self.world.now(), kind)
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // Tasks hold the environment, which holds the tasks: without this the circle would never be freed.
        let mut panicked = None;
        for parts in self.world.close() {
            // One destructor that panics keeps no other from running. A test that fails already is unwinding, where a
            // second panic would abort the whole test program.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(parts))) {
                panicked.get_or_insert(payload);
            }
        }
        if let Some(payload) = panicked.filter(|_| !std::thread::panicking()) {
            resume_unwind(payload);
        }
    }
}

/// Keeps the place of the root future for the time of a run.
struct RootRun<'a> {
    world: &'a World,
    id: u64,
    waker: Waker,
}

impl<'a> RootRun<'a> {
    fn begin(world: &'a Arc<World>) -> Self {
        let (id, waker) = world.begin_root();
        Self { world, id, waker }
    }
}

impl Drop for RootRun<'_> {
    fn drop(&mut self) {
        self.world.end_root(self.id);
    }
}

/// Polls, and gives the text of a panic. Whatever panicked is not polled again, so its broken insides stay unseen.
fn caught<T>(poll: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(poll)).map_err(|payload| panic_text(&*payload))
}

fn signed_nanos(time: Duration) -> i128 {
    // The longest duration has less than 2^95 nanoseconds.
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
}
