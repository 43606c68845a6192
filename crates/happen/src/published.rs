//! A value that is read for every event and replaced seldom: reading it writes nothing that another thread writes too.
//! Owns how long a replaced value lives; does not know what the value is.
//!
//! Each reader says in a slot of its thread which value it is about to use, and looks once more whether that is still
//! the current one. Whoever replaces a value looks into all slots before it drops the old one; an old value that is
//! still in use is dropped by the reader that leaves it last. Both sides write first and then look, so one of them sees
//! the other. The reader's side of that is a barrier for the compiler alone: the rare side makes up for it by a barrier
//! in every running thread (`membarrier`), where the system has one. Elsewhere both sides pay for a full one.
//!
//! Source: Michael, *Hazard Pointers: Safe Memory Reclamation for Lock-Free Objects*, 2004.
#![expect(
    unsafe_code,
    reason = "a counted reference for every event costs two atomic writes, a fifth of an ask (docs/performance.md)"
)]

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::sync::atomic::{compiler_fence, fence};
use std::sync::{Arc, OnceLock};

use crate::sync::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Mutex, Ordering, kept_going, lock};

/// A value that is replaced as a whole.
pub(crate) struct Published<T> {
    /// From `Arc::into_raw`; the reference counted there is ours.
    current: AtomicPtr<T>,
    changing: Mutex<()>,
    /// How often it was replaced.
    version: AtomicU32,
    /// Whether it was ever read through a slot. Before that a replaced value needs no look into the slots, so making a
    /// node costs no barrier.
    was_read: AtomicBool,
}

/// The slots of all threads that read values of one kind, and the replaced values that were still in use.
pub(crate) struct Readers<T> {
    threads: Box<[OnceLock<Arc<Slots<T>>>]>,
    claiming: Mutex<()>,
    retired: Mutex<Vec<Arc<T>>>,
    /// Whether somebody has to look at what was retired.
    pending: AtomicBool,
    barriers: Barriers,
}

/// What one thread reads at this moment, the innermost last.
pub(crate) struct Slots<T> {
    /// The address of the readers they belong to.
    readers: usize,
    /// The number of slots in use; written by the thread alone.
    top: AtomicUsize,
    slots: [AtomicPtr<T>; SLOTS],
}

/// The slots of the thread that asks, if it has some. It stays on its thread.
pub(crate) struct Here<'r, T>(Option<&'r Slots<T>>, PhantomData<*const ()>);

/// A thread's claim to slots. While it lives, nobody else uses them.
pub(crate) struct Claim<T> {
    index: usize,
    _slots: Arc<Slots<T>>,
}

impl<T> Here<'_, T> {
    /// For a thread that has no slots.
    pub(crate) const NOWHERE: Self = Self(None, PhantomData);
}

impl<T> Clone for Here<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Here<'_, T> {}

impl<T> Published<T> {
    /// The value may be shared with others, and be their current one too.
    pub(crate) fn new(value: Arc<T>) -> Self {
        Self {
            current: AtomicPtr::new(Arc::into_raw(value).cast_mut()),
            changing: Mutex::new(()),
            version: AtomicU32::new(0),
            was_read: AtomicBool::new(false),
        }
    }

    /// A number that is another one as soon as the value was replaced.
    #[inline]
    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// The current value, to be kept.
    pub(crate) fn load(&self) -> Arc<T> {
        let _changing = lock(&self.changing);
        let current = self.current.load(Ordering::Relaxed);
        // SAFETY: it came from `Arc::into_raw`, and the lock keeps our reference to it from being given up meanwhile.
        unsafe {
            Arc::increment_strong_count(current);
            Arc::from_raw(current)
        }
    }

    /// Runs `work` with the value that is current now. Without slots the value is shared for the time, which
    /// costs more.
    #[inline(always)]
    pub(crate) fn read<R>(&self, readers: &Readers<T>, here: Here<'_, T>, work: impl FnOnce(&T) -> R) -> R {
        if !self.was_read.load(Ordering::Relaxed) {
            self.note_read();
        }
        let (shared, _reading);
        // Slots among other readers would not be looked into.
        let slots = here.0.filter(|slots| slots.readers == std::ptr::from_ref(readers).addr());
        let value: *const T = match slots.and_then(|slots| slots.next()) {
            Some((slots, top, slot)) => {
                let mut value = self.current.load(Ordering::Relaxed);
                loop {
                    slot.store(value, Ordering::Relaxed);
                    readers.barriers.light();
                    let now = self.current.load(Ordering::Acquire);
                    if now == value {
                        break;
                    }
                    value = now;
                }
                slots.top.store(top + 1, Ordering::Relaxed);
                _reading = Reading { readers, slots, slot, top };
                value
            }
            None => {
                shared = self.load();
                Arc::as_ptr(&shared)
            }
        };
        // SAFETY: `shared` holds the value, or it was current after its slot had been written: whoever replaces it from
        // then on looks into the slots behind a barrier, finds it there, and leaves it alone until `_reading` clears it.
        work(unsafe { &*value })
    }

    /// From now on a change looks into the slots. Under the lock, so that the change that comes next knows.
    #[cold]
    fn note_read(&self) {
        let _changing = lock(&self.changing);
        self.was_read.store(true, Ordering::Relaxed);
    }

    /// Replaces the value. What `make` gives comes after the value it was given, whoever else changes it too.
    pub(crate) fn change(&self, readers: &Readers<T>, make: impl FnOnce(&Arc<T>) -> Arc<T>) {
        let changing = lock(&self.changing);
        // SAFETY: it came from `Arc::into_raw`; the lock keeps our reference to it from being given up meanwhile, and it is
        // not given up here.
        let known = ManuallyDrop::new(unsafe { Arc::from_raw(self.current.load(Ordering::Relaxed)) });
        let new = make(&known);
        let old = self.current.swap(Arc::into_raw(new).cast_mut(), Ordering::AcqRel);
        self.version.fetch_add(1, Ordering::Release);
        let was_read = self.was_read.load(Ordering::Relaxed);
        drop(changing);
        // SAFETY: it came from `Arc::into_raw`, and the swap took our reference to it out of the cell.
        let old = unsafe { Arc::from_raw(old) };
        if was_read {
            drop(readers.retire(old));
        }
    }
}

impl<T> Drop for Published<T> {
    fn drop(&mut self) {
        // SAFETY: it came from `Arc::into_raw`; a reader borrows this value, so none is left.
        drop(unsafe { Arc::from_raw(self.current.load(Ordering::Relaxed)) });
    }
}

impl<T> Readers<T> {
    pub(crate) fn new() -> Self {
        Self {
            threads: (0..THREADS_MAX).map(|_| OnceLock::new()).collect(),
            claiming: Mutex::new(()),
            retired: Mutex::new(Vec::new()),
            pending: AtomicBool::new(false),
            barriers: Barriers::new(),
        }
    }

    /// Slots for a thread: those of one that has ended, or new ones. Nothing when too many threads have some.
    pub(crate) fn claim(&self) -> Option<Claim<T>> {
        let _claiming = lock(&self.claiming);
        self.threads.iter().enumerate().find_map(|(index, place)| {
            let slots = match place.get() {
                None => place.get_or_init(|| Arc::new(Slots::new(std::ptr::from_ref(self).addr()))),
                Some(slots) if slots.are_free() => slots,
                Some(_) => return None,
            };
            Some(Claim { index, _slots: Arc::clone(slots) })
        })
    }

    /// The slots of this thread's claim.
    #[inline]
    pub(crate) fn here(&self, claim: Option<&Claim<T>>) -> Here<'_, T> {
        let slots = claim.and_then(|claim| self.threads.get(claim.index)?.get());
        Here(slots.map(|slots| &**slots), PhantomData)
    }

    /// Takes a value that was replaced; gives what nobody uses any more, to be dropped.
    #[cold]
    fn retire(&self, old: Arc<T>) -> Vec<Arc<T>> {
        let mut retired = lock(&self.retired);
        retired.push(old);
        // Before the barrier in `collect`: a reader that is not seen there sees this when it leaves.
        self.pending.store(true, Ordering::Relaxed);
        drop(retired);
        self.collect()
    }

    /// Gives what was retired and is in no slot any more, to be dropped without a lock: it may be anything the user
    /// captured.
    #[cold]
    fn collect(&self) -> Vec<Arc<T>> {
        let mut retired = lock(&self.retired);
        if !self.barriers.heavy() {
            // Without the barrier nobody can say what is in use; it is kept.
            return Vec::new();
        }
        let all = std::mem::take(&mut *retired);
        let (kept, free): (Vec<_>, Vec<_>) = all.into_iter().partition(|value| self.is_read(value));
        self.pending.store(!kept.is_empty(), Ordering::Relaxed);
        *retired = kept;
        free
    }

    fn is_read(&self, value: &Arc<T>) -> bool {
        let value = Arc::as_ptr(value).cast_mut();
        let threads = self.threads.iter().filter_map(OnceLock::get);
        threads.flat_map(|slots| &slots.slots).any(|slot| slot.load(Ordering::Acquire) == value)
    }
}

impl<T> Slots<T> {
    fn new(readers: usize) -> Self {
        Self {
            readers,
            top: AtomicUsize::new(0),
            slots: std::array::from_fn(|_| AtomicPtr::new(std::ptr::null_mut())),
        }
    }

    /// Whether no thread has a claim to them. One that forgot its claim in the middle of reading still uses them.
    fn are_free(self: &Arc<Self>) -> bool {
        // One reference is that of the readers. The barrier puts all that the last owner wrote before what comes now.
        let unclaimed = Arc::strong_count(self) == 1;
        fence(Ordering::Acquire);
        unclaimed && self.top.load(Ordering::Relaxed) == 0
    }

    #[inline]
    fn next(&self) -> Option<(&Self, usize, &AtomicPtr<T>)> {
        let top = self.top.load(Ordering::Relaxed);
        self.slots.get(top).map(|slot| (self, top, slot))
    }
}

/// A value in use. Made and dropped on one thread, the innermost first.
struct Reading<'r, T> {
    readers: &'r Readers<T>,
    slots: &'r Slots<T>,
    slot: &'r AtomicPtr<T>,
    top: usize,
}

impl<T> Drop for Reading<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.slot.store(std::ptr::null_mut(), Ordering::Release);
        self.slots.top.store(self.top, Ordering::Relaxed);
        self.readers.barriers.light();
        if self.readers.pending.load(Ordering::Relaxed) {
            let free = self.readers.collect();
            // Whoever reads has nothing to do with what others replaced.
            kept_going("what a handler captured", || drop(free));
        }
    }
}

/// The two sides of a barrier.
#[derive(Clone, Copy)]
struct Barriers {
    /// Whether the rare side can make up for the frequent one.
    asymmetric: bool,
}

impl Barriers {
    fn new() -> Self {
        Self { asymmetric: membarrier::register() }
    }

    #[inline]
    fn light(self) {
        if self.asymmetric {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    /// False when the system refused the barrier it had promised.
    fn heavy(self) -> bool {
        if self.asymmetric {
            return membarrier::run();
        }
        fence(Ordering::SeqCst);
        true
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
mod membarrier {
    /// Whether the system runs a barrier in every thread of this process on request.
    pub(super) fn register() -> bool {
        call(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
    }

    pub(super) fn run() -> bool {
        call(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    }

    fn call(command: libc::c_int) -> bool {
        // SAFETY: the call takes three numbers and touches no memory of ours; an unknown one is answered by an error.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod membarrier {
    pub(super) const fn register() -> bool {
        false
    }

    pub(super) const fn run() -> bool {
        false
    }
}

/// Values one thread reads at once: one for each handler on its stack and a few more.
const SLOTS: usize = 40;
/// Threads with slots; those beyond share the value for the time of reading.
const THREADS_MAX: usize = 128;
