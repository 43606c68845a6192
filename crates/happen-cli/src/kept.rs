//! What a node keeps between events, shared by its handlers. The one place that knows how it is kept.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The state of one node. A handle; cloning shares the state.
#[derive(Default)]
pub(crate) struct Kept<S>(Arc<Mutex<S>>);

impl<S: Default> Kept<S> {
    /// A state in which nothing has happened.
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }
}

impl<S> Kept<S> {
    /// A state to begin with.
    pub(crate) fn from(state: S) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    /// Reads the state.
    pub(crate) fn get<R>(&self, read: impl FnOnce(&S) -> R) -> R {
        read(&self.lock())
    }

    /// Changes the state; nobody sees it half changed.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut S) -> R) -> R {
        change(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, S> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Clone for Kept<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: fmt::Debug> fmt::Debug for Kept<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get(|state| fmt::Debug::fmt(state, f))
    }
}
