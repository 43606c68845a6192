//! Undo and redo: a value that knows the way back. Owns the two stacks and their limit; does not know where the value is
//! kept.

use std::collections::VecDeque;

use happen_core::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::diff::Diff;
use super::path::invalid;
use crate::limits;

/// A value whose changes can be taken back and made again: a part of a state, and so as durable as the state is.
///
/// It keeps the last [`limits::UNDO_STEPS_MAX`] changes, as differences, so a small change of a large value takes
/// little. A new change forgets what was taken back. Fields that are not serialised are not remembered.
///
/// # Examples
///
/// ```
/// use happen::model::Undoable;
///
/// #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
/// struct Page(Undoable<String>);
///
/// # fn main() -> happen::Result<()> {
/// let space = happen::Space::memory();
/// let wiki = space.node("wiki");
/// let home = wiki.entity::<Page>("home");
/// home.try_set(|page| Ok::<_, happen::Error>(Page(page.0.set("one".into())?)))?;
/// home.try_set(|page| page.0.change(|text| text + " two").map(Page))?;
/// assert_eq!(home.get(|page| page.0.now().clone()), "one two");
///
/// home.try_set(|page| page.0.undo().map(Page))?;
/// assert_eq!(home.get(|page| page.0.now().clone()), "one");
/// home.try_set(|page| page.0.redo().map(Page))?;
/// assert_eq!(home.get(|page| page.0.now().clone()), "one two");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Undoable<T> {
    now: T,
    /// Each leads from the value before to the one after; the newest change is last.
    done: VecDeque<Diff>,
    /// The change that was taken back last is last.
    undone: Vec<Diff>,
}

impl<T: Serialize + DeserializeOwned> Undoable<T> {
    /// A value that nothing was changed of yet.
    #[must_use]
    pub fn new(now: T) -> Self {
        Self { now, done: VecDeque::new(), undone: Vec::new() }
    }

    /// The value as it is.
    #[must_use]
    pub fn now(&self) -> &T {
        &self.now
    }

    /// How many changes can be taken back.
    #[must_use]
    pub fn undo_len(&self) -> usize {
        self.done.len()
    }

    /// How many changes that were taken back can be made again.
    #[must_use]
    pub fn redo_len(&self) -> usize {
        self.undone.len()
    }

    /// The same with another value. One that is equal changes nothing and forgets nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unencodable`](crate::ErrorKind::Unencodable) when a value has no form in JSON.
    pub fn set(mut self, value: T) -> Result<Self> {
        let diff = Diff::between(&self.now, &value)?;
        self.now = value;
        if diff.is_empty() {
            return Ok(self);
        }
        self.undone.clear();
        self.done.push_back(diff);
        // More than one when an earlier version of the program kept more.
        while self.done.len() > limits::UNDO_STEPS_MAX {
            self.done.pop_front();
        }
        Ok(self)
    }

    /// The same with what the function makes of the value.
    ///
    /// # Errors
    ///
    /// As [`Undoable::set`].
    pub fn change(self, change: impl FnOnce(T) -> T) -> Result<Self>
    where
        T: Clone,
    {
        let changed = change(self.now.clone());
        self.set(changed)
    }

    /// The same without its last change.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when there is none;
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) or
    /// [`ErrorKind::Undecodable`](crate::ErrorKind::Undecodable) when the value does not come back from its serialised
    /// form.
    pub fn undo(mut self) -> Result<Self> {
        let diff = self.done.pop_back().ok_or_else(|| invalid("there is nothing to undo"))?;
        self.now = diff.inverse().apply(&self.now)?;
        self.undone.push(diff);
        Ok(self)
    }

    /// The same with the change that was taken back last.
    ///
    /// # Errors
    ///
    /// As [`Undoable::undo`].
    pub fn redo(mut self) -> Result<Self> {
        let diff = self.undone.pop().ok_or_else(|| invalid("there is nothing to redo"))?;
        self.now = diff.apply(&self.now)?;
        self.done.push_back(diff);
        Ok(self)
    }
}
