//! Futures of steps, placed in memory that each thread uses again, so that an async handler that is ready at its first
//! poll allocates nothing. Owns that memory; does not know what the futures do.
#![expect(
    unsafe_code,
    reason = "futures of many types share recycled memory: 0 allocations on the ready path"
)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

use crate::error::Result;
use crate::function::Outcome;
use crate::step::{IntoStep, Kind, Step};

/// The future of one step, of a type known at run time. It stays where it was put, so it can be moved freely.
///
/// # Cost
///
/// No allocation once this thread has recycled a future of about the same size; otherwise one.
pub struct StepFuture {
    place: NonNull<u8>,
    table: &'static Table,
}

struct Table {
    layout: Layout,
    /// SAFETY of the call: `place` holds the future of this table, not yet dropped, and is not moved until it is.
    poll: unsafe fn(NonNull<u8>, &mut Context<'_>, &mut Outcome) -> Poll<Option<Step>>,
    /// SAFETY of the call: as above; `place` must not be polled afterwards.
    drop: unsafe fn(NonNull<u8>),
}

struct Of<F>(PhantomData<F>);

impl<F> Of<F>
where
    F: Future<Output: IntoStep> + Send + 'static,
{
    const TABLE: &'static Table =
        &Table { layout: place_for(Layout::new::<F>()), poll: Self::poll, drop: Self::drop };

    unsafe fn poll(place: NonNull<u8>, task: &mut Context<'_>, outcome: &mut Outcome) -> Poll<Option<Step>> {
        // SAFETY: by the contract of the table `place` holds an `F` that stays there until it is dropped.
        let future = unsafe { Pin::new_unchecked(place.cast::<F>().as_mut()) };
        future.poll(task).map(|step| Step::settle(step.into_step(), outcome))
    }

    unsafe fn drop(place: NonNull<u8>) {
        // SAFETY: by the contract of the table `place` holds an `F`, which is dropped once.
        unsafe { place.cast::<F>().drop_in_place() }
    }
}

// SAFETY: it owns exactly one `F: Send`; the memory is plain and may be freed or recycled by any thread.
unsafe impl Send for StepFuture {}

impl StepFuture {
    /// Places a future.
    #[must_use]
    #[inline]
    pub fn new<F>(future: F) -> Self
    where
        F: Future<Output: IntoStep> + Send + 'static,
    {
        let table = Of::<F>::TABLE;
        let place = take(table.layout);
        // SAFETY: `take` gives unused memory of the size and alignment of the layout, which fits an `F`.
        unsafe { place.cast::<F>().write(future) };
        Self { place, table }
    }
}

impl StepFuture {
    /// Polls it. What ends the flow is put into its outcome; what goes on with it is given back.
    #[inline]
    pub fn poll_into(&mut self, task: &mut Context<'_>, outcome: &mut Outcome) -> Poll<Option<Step>> {
        // SAFETY: `new` put the future of this table there; only `drop` takes it away.
        unsafe { (self.table.poll)(self.place, task, outcome) }
    }
}

impl Future for StepFuture {
    type Output = Result<Step>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Result<Step>> {
        let mut outcome = Ok(None);
        self.poll_into(task, &mut outcome).map(|step| match (step, outcome) {
            (Some(step), _) => Ok(step),
            (None, Ok(Some(value))) => Ok(Step::new(Kind::Done(value))),
            (None, Ok(None)) => Ok(Step::new(Kind::End)),
            (None, Err(error)) => Err(error),
        })
    }
}

impl Drop for StepFuture {
    #[inline]
    fn drop(&mut self) {
        /// Gives the memory back even when the future panics while it is dropped.
        struct GiveBack(NonNull<u8>, Layout);
        impl Drop for GiveBack {
            #[inline]
            fn drop(&mut self) {
                give_back(self.0, self.1);
            }
        }
        let _memory = GiveBack(self.place, self.table.layout);
        // SAFETY: `new` put the future of this table there, and it is dropped only here.
        unsafe { (self.table.drop)(self.place) }
    }
}

impl fmt::Debug for StepFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StepFuture({} bytes)", self.table.layout.size())
    }
}

thread_local! {
    static FREE: RefCell<Free> = const { RefCell::new(Free([const { Vec::new() }; CLASSES])) };
}

struct Free([Vec<NonNull<u8>>; CLASSES]);

impl Drop for Free {
    fn drop(&mut self) {
        for (class, places) in self.0.iter_mut().enumerate() {
            for place in places.drain(..) {
                // SAFETY: every place of a class was allocated with that class's layout and is unused.
                unsafe { dealloc(place.as_ptr(), class_layout(class)) };
            }
        }
    }
}

/// The layout of the place for a future: that of its size class, or its own when it is too large or aligned too
/// strictly for one.
const fn place_for(layout: Layout) -> Layout {
    match class_of(layout) {
        Some(class) => class_layout(class),
        // A future without any bytes still needs a place with an address.
        None if layout.size() == 0 => class_layout(0),
        None => layout,
    }
}

const fn class_of(layout: Layout) -> Option<usize> {
    if layout.align() > PLACE_ALIGN || layout.size() > class_size(CLASSES - 1) || layout.size() == 0 {
        return None;
    }
    let mut class = 0;
    while class_size(class) < layout.size() {
        class += 1;
    }
    Some(class)
}

const fn class_size(class: usize) -> usize {
    PLACE_BYTES_MIN << class
}

const fn class_layout(class: usize) -> Layout {
    match Layout::from_size_align(class_size(class), PLACE_ALIGN) {
        Ok(layout) => layout,
        Err(_) => panic!("size classes are powers of two far below the address space"),
    }
}

#[inline]
fn take(layout: Layout) -> NonNull<u8> {
    if let Some(class) = class_of(layout) {
        let recycled =
            FREE.try_with(|free| free.try_borrow_mut().ok().and_then(|mut free| free.0[class].pop()));
        if let Ok(Some(place)) = recycled {
            return place;
        }
    }
    // SAFETY: no layout of a place has size 0, see `place_for`.
    let place = unsafe { alloc(layout) };
    NonNull::new(place).unwrap_or_else(|| handle_alloc_error(layout))
}

#[inline]
fn give_back(place: NonNull<u8>, layout: Layout) {
    let kept = class_of(layout).is_some_and(|class| {
        let kept = FREE.try_with(|free| {
            let Ok(mut free) = free.try_borrow_mut() else { return false };
            let places = &mut free.0[class];
            let room = places.len() < PLACES_MAX;
            if room {
                places.push(place);
            }
            room
        });
        kept.unwrap_or(false)
    });
    if !kept {
        // SAFETY: the place was allocated with this layout by `take` and holds nothing.
        unsafe { dealloc(place.as_ptr(), layout) };
    }
}

/// The smallest place in bytes; each class doubles it.
const PLACE_BYTES_MIN: usize = 64;
/// Size classes: 64 bytes to 8 KiB.
const CLASSES: usize = 8;
/// What the system's allocator gives anyway.
const PLACE_ALIGN: usize = 16;
/// Places of one class a thread keeps.
const PLACES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    fn poll(future: &mut StepFuture) -> Poll<Result<Step>> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    struct CountDrops(Arc<AtomicUsize>);

    impl Drop for CountDrops {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn futures_of_all_sizes_run_and_are_dropped_once() {
        fn check<const N: usize>() {
            let drops = Arc::new(AtomicUsize::new(0));
            for _ in 0..3 {
                let counted = CountDrops(Arc::clone(&drops));
                let filler = [7u8; N];
                let mut future = StepFuture::new(async move {
                    let _counted = counted;
                    let before = filler;
                    std::future::ready(()).await;
                    before.iter().map(|&b| u64::from(b)).sum::<u64>()
                });
                let Poll::Ready(Ok(step)) = poll(&mut future) else { panic!("not ready") };
                assert_eq!(format!("{step:?}"), "done(u64)");
            }
            let never = StepFuture::new({
                let counted = CountDrops(Arc::clone(&drops));
                async move {
                    let _counted = counted;
                    std::future::pending::<()>().await;
                }
            });
            drop(never);
            assert_eq!(drops.load(Ordering::SeqCst), 4);
        }
        check::<0>();
        check::<100>();
        check::<5_000>();
        check::<20_000>();
    }

    #[test]
    fn an_empty_future_and_a_strictly_aligned_one_have_a_place() {
        #[repr(align(64))]
        struct Strict(u8);
        let mut empty = StepFuture::new(std::future::ready(()));
        assert!(poll(&mut empty).is_ready());
        let strict = Strict(9);
        let mut aligned = StepFuture::new(async move {
            assert_eq!(&raw const strict as usize % 64, 0);
            u64::from(strict.0)
        });
        assert!(poll(&mut aligned).is_ready());
    }

    #[test]
    fn a_future_may_end_on_another_thread() {
        let future = StepFuture::new(async { "here".to_owned() });
        let run = move || {
            let mut future = future;
            poll(&mut future).is_ready()
        };
        assert!(std::thread::Builder::new().spawn(run).unwrap().join().unwrap());
    }
}
