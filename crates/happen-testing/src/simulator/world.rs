//! What a simulated program shares: tasks, timers, clocks and the seeded generators, behind one lock. It polls nothing,
//! and it never calls a waker nor drops a future while it holds the lock, as both run code of others that may come
//! back here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::Duration;

use happen_core::env::{BoxFuture, CoarseClock};

use super::random::{Fingerprint, SplitMix64};
use crate::limits;

/// Everything behind the environments and wakers of one simulator.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) clock: Arc<CoarseClock>,
    state: Mutex<State>,
}

/// Whether there is something to poll.
pub(super) enum Prepared {
    Ready,
    Stalled { waiting: Vec<u64> },
}

/// Whose turn it is. A task is taken out while it is polled.
pub(super) enum Picked {
    Root,
    Task(u64, TaskParts),
}

/// What a task is polled with.
pub(super) struct TaskParts {
    pub(super) future: BoxFuture<'static, ()>,
    pub(super) waker: Waker,
}

/// What became of a timer that was to be armed.
pub(super) enum Armed {
    Due,
    At(TimerKey),
    Never,
}

/// Where a timer stands in the order of firing. Timers of one instant fire by a drawn number: a future that waits for
/// several of them may tell them apart by the order of its wakers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TimerKey {
    deadline: Duration,
    drawn: u64,
    serial: u64,
}

struct State {
    now: Duration,
    /// How far the wall clock was set forward, or back.
    wall_offset_nanos: i128,
    /// Two generators, so that a program which draws one more number keeps its order of tasks.
    order: SplitMix64,
    values: SplitMix64,
    fingerprint: Fingerprint,
    /// Ordered by number, as dropping all of them must happen in the same order each time.
    tasks: BTreeMap<u64, Slot>,
    root: Option<u64>,
    /// The tasks to poll, each once.
    ready: Vec<u64>,
    timers: BTreeMap<TimerKey, Waker>,
    task_serial: u64,
    timer_serial: u64,
    tasks_max: usize,
    tasks_exceeded: bool,
    closed: bool,
}

/// The place of a task, or of the root, whose future stays with the run.
struct Slot {
    queued: bool,
    parts: Option<TaskParts>,
}

struct TaskWaker {
    world: Arc<World>,
    task: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut seeds = SplitMix64::new(seed);
        let state = State {
            now: Duration::ZERO,
            wall_offset_nanos: 0,
            order: SplitMix64::new(seeds.next_u64()),
            values: SplitMix64::new(seeds.next_u64()),
            fingerprint: Fingerprint::default(),
            tasks: BTreeMap::new(),
            root: None,
            ready: Vec::new(),
            timers: BTreeMap::new(),
            task_serial: 0,
            timer_serial: 0,
            tasks_max: limits::TASKS_MAX,
            tasks_exceeded: false,
            closed: false,
        };
        let clock = Arc::<CoarseClock>::default();
        clock.set(state.unix_ms());
        Self { seed, clock, state: Mutex::new(state) }
    }

    pub(super) fn set_tasks_max(&self, tasks_max: usize) {
        self.lock().tasks_max = tasks_max;
    }

    pub(super) fn now(&self) -> Duration {
        self.lock().now
    }

    pub(super) fn unix_ms(&self) -> u64 {
        self.lock().unix_ms()
    }

    pub(super) fn move_wall_clock(&self, nanos: i128) {
        let mut state = self.lock();
        state.wall_offset_nanos = state.wall_offset_nanos.saturating_add(nanos);
        self.clock.set(state.unix_ms());
    }

    pub(super) fn fill_random(&self, bytes: &mut [u8]) {
        let mut state = self.lock();
        for chunk in bytes.chunks_mut(size_of::<u64>()) {
            let number = state.values.next_u64();
            state.fingerprint.add(number);
            chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
        }
    }

    pub(super) fn fingerprint(&self) -> u64 {
        self.lock().fingerprint.value()
    }

    /// Takes a task into the run queue, or drops it when there is no room or no simulator any more.
    ///
    /// Too many tasks are reported by the run, not here: spawning may happen in a destructor, where a panic would
    /// abort the program.
    pub(super) fn spawn(self: &Arc<Self>, future: BoxFuture<'static, ()>) {
        let mut state = self.lock();
        if !state.closed && state.spawned_len() < state.tasks_max {
            let task = state.insert_queued();
            let waker = self.waker(task);
            state.place(task).parts = Some(TaskParts { future, waker });
            return;
        }
        state.tasks_exceeded |= !state.closed;
        drop(state);
        drop(future);
    }

    /// How many tasks there may be at once, if more were spawned since this was last asked.
    pub(super) fn take_tasks_exceeded(&self) -> Option<usize> {
        let mut state = self.lock();
        std::mem::take(&mut state.tasks_exceeded).then_some(state.tasks_max)
    }

    /// Makes the place of a root future, which is polled first or later as the seed wills.
    pub(super) fn begin_root(self: &Arc<Self>) -> (u64, Waker) {
        let mut state = self.lock();
        let running = state.root.is_some();
        if running {
            drop(state);
            panic!("this simulator is running already: it takes one root future at a time");
        }
        let task = state.insert_queued();
        state.root = Some(task);
        (task, self.waker(task))
    }

    pub(super) fn end_root(&self, root: u64) {
        let mut state = self.lock();
        state.root = None;
        state.remove(root);
    }

    /// Lets time jump until something is ready.
    pub(super) fn prepare(&self) -> Prepared {
        loop {
            let mut state = self.lock();
            if !state.ready.is_empty() {
                return Prepared::Ready;
            }
            let Some((&TimerKey { deadline, .. }, _)) = state.timers.first_key_value() else {
                return Prepared::Stalled { waiting: state.spawned() };
            };
            assert!(deadline >= state.now, "time never goes back");
            state.now = deadline;
            self.clock.set(state.unix_ms());
            let due = state.take_due();
            drop(state);
            due.into_iter().for_each(Waker::wake);
        }
    }

    /// Draws the next of the ready tasks, of which there is one at least.
    pub(super) fn pick(&self) -> Picked {
        let state = &mut *self.lock();
        let index = state.order.index_below(state.ready.len());
        let task = state.ready.swap_remove(index);
        state.fingerprint.add(task);
        let nanos = state.now.as_nanos();
        state.fingerprint.add(nanos as u64);
        state.fingerprint.add((nanos >> 64) as u64);
        let place = state.place(task);
        place.queued = false;
        match place.parts.take() {
            Some(parts) => Picked::Task(task, parts),
            None => {
                assert_eq!(state.root, Some(task), "only the root is polled from elsewhere");
                Picked::Root
            }
        }
    }

    /// Puts a task back that has not ended.
    pub(super) fn keep(&self, task: u64, parts: TaskParts) {
        self.lock().place(task).parts = Some(parts);
    }

    /// Forgets a task that was taken out and has ended.
    pub(super) fn remove(&self, task: u64) {
        self.lock().remove(task);
    }

    /// Arms a timer, or gives an armed one another waker.
    pub(super) fn arm(&self, deadline: Duration, armed: Option<TimerKey>, waker: &Waker) -> Armed {
        // Cloning and dropping a waker runs code of others as well, so both happen outside the lock.
        let waker = waker.clone();
        let mut state = self.lock();
        if state.now >= deadline {
            let old = armed.and_then(|key| state.timers.remove(&key));
            drop(state);
            drop(old);
            return Armed::Due;
        }
        if deadline > limits::VIRTUAL_TIME_MAX {
            return Armed::Never;
        }
        let key = match armed {
            Some(key) => key,
            None => state.draw_timer(deadline),
        };
        let old = state.timers.insert(key, waker);
        drop(state);
        drop(old);
        Armed::At(key)
    }

    pub(super) fn disarm(&self, key: TimerKey) {
        let old = self.lock().timers.remove(&key);
        drop(old);
    }

    /// Takes out every task, for good.
    pub(super) fn close(&self) -> Vec<TaskParts> {
        let mut state = self.lock();
        state.closed = true;
        state.ready.clear();
        std::mem::take(&mut state.tasks).into_values().filter_map(|slot| slot.parts).collect()
    }

    fn wake(&self, task: u64) {
        let state = &mut *self.lock();
        // A waker may outlive its task.
        if let Some(slot) = state.tasks.get_mut(&task)
            && !slot.queued
        {
            slot.queued = true;
            state.ready.push(task);
        }
    }

    fn waker(self: &Arc<Self>, task: u64) -> Waker {
        Waker::from(Arc::new(TaskWaker { world: Arc::clone(self), task }))
    }

    /// What a panic under the lock may leave half done is no worse than the failed test it belongs to.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("World")
            .field("seed", &self.seed)
            .field("now", &state.now)
            .field("tasks_len", &state.spawned_len())
            .field("ready_len", &state.ready.len())
            .field("timers_len", &state.timers.len())
            .finish_non_exhaustive()
    }
}

impl State {
    fn unix_ms(&self) -> u64 {
        let nanos = i128::try_from(self.now.as_nanos())
            .unwrap_or(i128::MAX)
            .saturating_add(START_UNIX_NANOS)
            .saturating_add(self.wall_offset_nanos);
        // The coarse clock stands at 0, so the wall clock never gets there.
        u64::try_from((nanos / NANOS_PER_MS).max(1)).unwrap_or(u64::MAX)
    }

    fn spawned_len(&self) -> usize {
        self.tasks.len() - usize::from(self.root.is_some())
    }

    fn spawned(&self) -> Vec<u64> {
        self.tasks.keys().copied().filter(|&task| Some(task) != self.root).collect()
    }

    fn insert_queued(&mut self) -> u64 {
        let task = self.task_serial;
        self.task_serial += 1;
        self.tasks.insert(task, Slot { queued: true, parts: None });
        self.ready.push(task);
        task
    }

    fn place(&mut self, task: u64) -> &mut Slot {
        match self.tasks.get_mut(&task) {
            Some(slot) => slot,
            None => {
                panic!("task {task} has lost its place, please report this: it is a bug of the simulator")
            }
        }
    }

    fn remove(&mut self, task: u64) {
        if let Some(slot) = self.tasks.remove(&task) {
            assert!(slot.parts.is_none(), "a task ends while it is taken out");
            if slot.queued {
                // It woke itself while it ended.
                self.ready.retain(|&ready| ready != task);
            }
        }
    }

    fn draw_timer(&mut self, deadline: Duration) -> TimerKey {
        let serial = self.timer_serial;
        self.timer_serial += 1;
        TimerKey { deadline, drawn: self.order.next_u64(), serial }
    }

    fn take_due(&mut self) -> Vec<Waker> {
        let mut due = Vec::new();
        while let Some(timer) = self.timers.first_entry()
            && timer.key().deadline <= self.now
        {
            due.push(timer.remove());
        }
        due
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.world.wake(self.task);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.world.wake(self.task);
    }
}

/// 2026-01-01T00:00:00Z, the moment every simulation starts at.
const START_UNIX_NANOS: i128 = 1_767_225_600_000 * NANOS_PER_MS;

const NANOS_PER_MS: i128 = 1_000_000;
