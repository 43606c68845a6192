//! One live document: a value with its revision, changed by one writer at a time and read by anybody. Owns what is
//! locked when; does not know whose it is.

use std::sync::Arc;

use happen_core::store::{Condition, Content};
use happen_core::{Result, State, state};

use crate::pure;
use crate::sync::{Mutex, MutexGuard, lock};

/// A live document of one type.
///
/// Two locks: `writer` is held while a function of the user runs, so changes are one after the other and each sees the
/// one before; `current` only while a pointer is copied, so no function of the user runs below it, and reading never
/// waits for a change. A lock-free pointer in place of `current` was measured: it reads in half the time and takes
/// three times as long to change, more with every thread.
pub(super) struct Cell<S> {
    writer: Mutex<Life>,
    current: Mutex<Arc<Version<S>>>,
}

/// Whether a cell is still where it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Listed,
    /// It was taken off before anything was written; a new one has its place.
    Dropped,
}

/// A value with its revision.
struct Version<S> {
    revision: u64,
    at_unix_ms: u64,
    value: S,
}

/// What a change replaced, to be dropped when no lock is held: it belongs to the user.
#[must_use]
pub(super) struct Replaced<S> {
    _value: Option<S>,
    _version: Option<Arc<Version<S>>>,
}

/// The right to change a cell.
pub(super) struct Writing<'c, S> {
    cell: &'c Cell<S>,
    life: MutexGuard<'c, Life>,
}

/// A live document whose type is not known.
pub(crate) trait Live: Send + Sync {
    /// Keeps it from being changed.
    fn hold(&self) -> MutexGuard<'_, Life>;

    /// What it says now.
    fn snapshot(&self) -> Arc<dyn Snapshot>;
}

/// What a live document said at one moment.
pub(crate) trait Snapshot: Send + Sync {
    /// The revision; 0 when nothing was written.
    fn revision(&self) -> u64;

    /// When it was written.
    fn at_unix_ms(&self) -> u64;

    /// The content, encoded now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unencodable`] when its `Serialize` refuses.
    fn content(&self) -> Result<Content>;
}

impl<S: State> Cell<S> {
    pub(super) fn new() -> Self {
        let version = Version { revision: 0, at_unix_ms: 0, value: S::default() };
        Self { writer: Mutex::new(Life::Listed), current: Mutex::new(Arc::new(version)) }
    }

    #[inline]
    fn load(&self) -> Arc<Version<S>> {
        Arc::clone(&lock(&self.current))
    }

    /// Reads without holding a lock, so the reader may read and change whatever it likes.
    #[inline]
    pub(super) fn read<R>(&self, read: impl FnOnce(&S) -> R) -> R {
        read(&self.load().value)
    }

    #[inline]
    pub(super) fn revision(&self) -> u64 {
        lock(&self.current).revision
    }

    /// Waits until no other change is under way; `None` when the cell was taken off its list meanwhile.
    #[inline]
    pub(super) fn writing(&self) -> Option<Writing<'_, S>> {
        let life = lock(&self.writer);
        (*life == Life::Listed).then_some(Writing { cell: self, life })
    }
}

impl<S: State> Writing<'_, S> {
    /// Makes the next revision of what the function makes of this one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] when another revision is expected; what the function refuses with, its panic, or the
    /// effect it tried to have. Nothing is changed then.
    #[inline]
    pub(super) fn change(
        &self,
        expected: Option<u64>,
        key: impl FnOnce() -> String,
        at_unix_ms: u64,
        change: impl Fn(S) -> Result<S>,
    ) -> Result<Replaced<S>> {
        let before = self.cell.load();
        if let Some(expected) = expected
            && expected != before.revision
        {
            return Err(Condition::revision_conflict(&key(), expected, before.revision));
        }
        let value = pure::run(|| change(before.value.clone()))?;
        let revision = before.revision + 1;
        drop(before);
        let mut current = lock(&self.cell.current);
        // Nobody reads it at this moment, as nearly always: no allocation.
        Ok(match Arc::get_mut(&mut current) {
            Some(version) => {
                version.revision = revision;
                version.at_unix_ms = at_unix_ms;
                Replaced { _value: Some(std::mem::replace(&mut version.value, value)), _version: None }
            }
            None => {
                let version = Arc::new(Version { revision, at_unix_ms, value });
                Replaced { _value: None, _version: Some(std::mem::replace(&mut *current, version)) }
            }
        })
    }

    /// Says that the cell is taken off its list, when nothing was ever written to it.
    pub(super) fn drop_unwritten(&mut self) -> bool {
        let unwritten = self.cell.revision() == 0;
        if unwritten {
            *self.life = Life::Dropped;
        }
        unwritten
    }
}

impl<S: State> Live for Cell<S> {
    fn hold(&self) -> MutexGuard<'_, Life> {
        lock(&self.writer)
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        self.load()
    }
}

impl<S: State> Snapshot for Version<S> {
    fn revision(&self) -> u64 {
        self.revision
    }

    fn at_unix_ms(&self) -> u64 {
        self.at_unix_ms
    }

    fn content(&self) -> Result<Content> {
        let bytes = state::encode(&self.value)?.into();
        Ok(Content { name: S::NAME.into(), version: S::VERSION, bytes })
    }
}
