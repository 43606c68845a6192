//! Which flow is being polled on this thread. Owns the mark that says so, and nothing about what it is used for.
#![expect(
    unsafe_code,
    reason = "asked twice for every event; a scoped key of a library takes a closure for each way out, and the envelope \
              is then built in one place and copied to another (docs/performance.md)"
)]

use std::cell::Cell;
use std::ptr;

use crate::context::Context;

thread_local! {
    static CURRENT: Cell<*const Context> = const { Cell::new(ptr::null()) };
}

/// Runs `work` as part of this flow.
#[inline]
pub(crate) fn enter<R>(flow: &Context, work: impl FnOnce() -> R) -> R {
    /// Puts back what was there, also when `work` panics.
    struct Before(*const Context);
    impl Drop for Before {
        #[inline]
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _before = Before(CURRENT.replace(flow));
    work()
}

/// Runs `work` with the flow that is being polled on this thread.
#[inline]
pub(crate) fn with<R>(work: impl FnOnce(Option<&Context>) -> R) -> R {
    // SAFETY: it is lent to `work`, which is over before this returns.
    work(unsafe { flow() })
}

/// The flow that is being polled on this thread.
///
/// # Safety
///
/// It is used no longer than the function runs that asks for it.
#[inline(always)]
pub(crate) unsafe fn flow<'f>() -> Option<&'f Context> {
    // SAFETY: it is null, or was set by an `enter` further up this stack. That borrows the context until it returns,
    // which is later than when the asking function does.
    unsafe { CURRENT.get().as_ref() }
}
