//! The few synchronisation types that are checked by a model: the standard ones, or the model checker's.

pub(crate) use std::sync::atomic::{AtomicU32, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};

/// Locks, also when a panic happened inside: what is guarded here is changed in single steps, so it is whole.
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
