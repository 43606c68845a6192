//! Small things around standard types: the synchronisation types that a model checks (`tests/model.rs` puts the
//! checker's in their place), and the isolation of panics in code of the user's that is no handler.

use std::panic::{AssertUnwindSafe, catch_unwind};

use happen_core::{Error, Result};

pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};

/// Runs code of the user's, such as a guard or a hook, and makes a panic an error: it must not end whoever sends.
pub(crate) fn isolated<T>(what: &str, work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|panic| Error::panicked(&*panic).context(format!("in {what}")))
}

/// Runs work whose panics are told elsewhere already, except those of values of the user's that are dropped meanwhile.
/// Such a panic must not take along whoever has more to do.
pub(crate) fn kept_going(what: &str, work: impl FnOnce()) {
    if let Err(panic) = isolated(what, work) {
        tracing::error!(target: "happen", "{panic}");
    }
}

/// Locks, also when a panic happened inside: what is guarded here is changed in single steps, so it is whole.
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
