//! Who is told that a state changed. Owns the bells that a change rings and the readers behind them; does not know what
//! changes a state, nor where it is kept.
//!
//! A bell says "look again" and nothing else, so it needs no queue: a reader finds the newest value and its revision
//! tells how many it missed.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use happen_core::State;
use tokio::sync::Notify;

use crate::node::{Node, NodeInner};
use crate::state::StateOf;
use crate::sync::{Mutex, lock};
use crate::table::Phase;

/// Rings for one reader.
pub(crate) type Bell = Arc<Notify>;

/// The bells of one node, by the keys of the documents.
#[derive(Default)]
pub(crate) struct Bells {
    by_document: OnceLock<Mutex<HashMap<Box<str>, Vec<Bell>>>>,
}

/// One bell at one document, until it is dropped.
pub(super) struct Listening {
    node: Arc<NodeInner>,
    document: Box<str>,
    bell: Bell,
}

/// Which document of a node.
pub(super) struct Document<S> {
    node: Arc<NodeInner>,
    /// The key of an entity; `None` for the state.
    key: Option<Box<str>>,
    state: PhantomData<fn() -> S>,
}

/// The changes of a state, as they come. Made by [`Node::changes`] and [`Node::entity_changes`].
///
/// A reader that is slower than the changes gets the newest value and the number of those it missed.
pub struct Changes<S> {
    document: Document<S>,
    listening: Listening,
    seen: u64,
}

/// A state after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changed<S> {
    /// The state.
    pub state: S,
    /// Its revision.
    pub revision: u64,
    /// How many revisions came before it that were not given, because the reader was slower than the changes.
    pub missed: u64,
}

impl Bells {
    /// Rings for those who follow a document. To be called when a change can be read by everybody.
    #[inline]
    pub(crate) fn ring(&self, document: impl FnOnce() -> String) {
        if let Some(bells) = self.by_document.get() {
            Self::ring_those(bells, |by_document| by_document.get(&*document()).cloned().unwrap_or_default());
        }
    }

    /// Rings for everybody, as when the node was destroyed.
    pub(crate) fn ring_all(&self) {
        if let Some(bells) = self.by_document.get() {
            Self::ring_those(bells, |by_document| by_document.values().flatten().cloned().collect());
        }
    }

    #[cold]
    fn ring_those(
        bells: &Mutex<HashMap<Box<str>, Vec<Bell>>>,
        which: impl FnOnce(&HashMap<Box<str>, Vec<Bell>>) -> Vec<Bell>,
    ) {
        let by_document = lock(bells);
        if by_document.is_empty() {
            return;
        }
        let bells = which(&by_document);
        // A waker is code of others.
        drop(by_document);
        bells.iter().for_each(|bell| bell.notify_one());
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let Some(bells) = self.node.states().bells.by_document.get() else { return };
        let mut by_document = lock(bells);
        if let Some(bells) = by_document.get_mut(&self.document) {
            bells.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
            if bells.is_empty() {
                by_document.remove(&self.document);
            }
        }
    }
}

impl<S: State> Document<S> {
    pub(super) fn new(node: &Arc<NodeInner>, key: Option<&str>) -> Self {
        Self { node: Arc::clone(node), key: key.map(Into::into), state: PhantomData }
    }

    /// The document, as it is for everybody: not inside any flow.
    pub(super) fn state(&self) -> StateOf<'_, S> {
        match self.key.as_deref() {
            None => StateOf::single(&self.node, None),
            Some(key) => StateOf::entity(&self.node, None, key.into()),
        }
        .committed()
    }

    pub(super) fn listen(&self, bell: &Bell) -> Listening {
        let document: Box<str> = self.state().document_key().into();
        let bells = self.node.states().bells.by_document.get_or_init(Mutex::default);
        lock(bells).entry(document.clone()).or_default().push(Arc::clone(bell));
        Listening { node: Arc::clone(&self.node), document, bell: Arc::clone(bell) }
    }

    /// Whether nothing will change it any more.
    pub(super) fn is_closed(&self) -> bool {
        self.node.table.load().phase == Phase::Closed
    }
}

impl Node {
    /// Follows the node's state of this type: every change from now on, or the newest of those that came while the reader
    /// was busy.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[derive(happen::State, Debug, Default, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
    /// # struct Stock { apples: u32 }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = happen::Space::memory();
    /// let shop = space.node("shop");
    /// let mut changes = shop.changes::<Stock>();
    /// for apples in 1..=3 {
    ///     shop.state::<Stock>().set(move |_| Stock { apples })?;
    /// }
    /// let changed = changes.next().await.unwrap();
    /// assert_eq!((changed.state, changed.revision, changed.missed), (Stock { apples: 3 }, 3, 2));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "subscribe")]
    #[must_use]
    pub fn changes<S: State>(&self) -> Changes<S> {
        Changes::of(Document::new(self.inner(), None))
    }

    /// Follows one of the node's entities of this type, as [`Node::changes`] follows its state.
    #[must_use]
    pub fn entity_changes<S: State>(&self, key: &str) -> Changes<S> {
        Changes::of(Document::new(self.inner(), Some(key)))
    }
}

impl<S: State> Changes<S> {
    fn of(document: Document<S>) -> Self {
        // The bell before the look, so that a change in between is heard.
        let listening = document.listen(&Bell::default());
        let seen = document.state().revision();
        Self { document, listening, seen }
    }

    /// The state after the next change, or after the newest when several came; `None` when the node was destroyed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the next one gives the same change, or a newer one and says so.
    ///
    /// # Cost
    ///
    /// One copy of the state.
    pub async fn next(&mut self) -> Option<Changed<S>> {
        loop {
            // Before the look, as a change may be the last thing the node does.
            let closed = self.document.is_closed();
            if self.document.state().revision() > self.seen {
                let (revision, state) = self.document.state().versioned(Clone::clone);
                let missed = revision.saturating_sub(self.seen + 1);
                self.seen = revision;
                return Some(Changed { state, revision, missed });
            }
            if closed {
                return None;
            }
            self.listening.bell.notified().await;
        }
    }
}

impl<S> fmt::Debug for Changes<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "changes of {} after revision {}", self.listening.document, self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Space;

    #[derive(Default, Clone, serde::Serialize, serde::Deserialize)]
    struct Count(u64);

    impl State for Count {
        const NAME: &'static str = "count";
        const VERSION: u32 = 1;
    }

    #[test]
    fn a_reader_that_went_leaves_no_bell_behind() {
        let space = Space::memory();
        let node = space.node("node");
        let followed = || lock(node.inner().states().bells.by_document.get().unwrap()).len();
        let (one, other) = (node.changes::<Count>(), node.changes::<Count>());
        let entities: Vec<_> = (0..10).map(|key| node.entity_changes::<Count>(&key.to_string())).collect();
        let selected = node.select(|count: &Count| count.0).changes();
        assert_eq!(followed(), 11);
        drop(one);
        drop(entities);
        assert_eq!(followed(), 1);
        drop(other);
        assert_eq!(followed(), 1);
        drop(selected);
        assert_eq!(followed(), 0);
    }
}
