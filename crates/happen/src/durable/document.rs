//! The documents of durable nodes as values: the one that is committed, and the one that the next change builds on. Owns
//! how changes are staged in a step and applied in the order of commits; does not know who changes what.

use std::any::Any;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use happen_core::env::BoxFuture;
use happen_core::store::{Bytes, Condition, Content, Document as Stored, Key, Past, Replaced, Store, Write};
use happen_core::{Error, ErrorKind, Result, State, state};
use tokio::sync::Notify;

use crate::limits;
use crate::node::NodeInner;
use crate::pure;
use crate::stamp::Unstamped;
use crate::sync::{Mutex, MutexGuard, isolated, kept_going, lock};

/// The documents of one space that are in memory. Those that nobody uses make room when there are many.
pub(crate) struct Documents {
    store: Arc<dyn Store>,
    /// What becomes of the revision before, each time one is written.
    past: Past,
    all: papaya::HashMap<Key, Arc<dyn AnyDocument>>,
}

pub(crate) trait AnyDocument: Any + Send + Sync {
    /// Whether it is what the store has, so that it can be read again.
    fn is_settled(&self) -> bool;

    /// Writes what somebody says by hand, when the document has this revision and it is a value of its type. The version of
    /// the shape is that of the type, unless another one is given.
    fn set_by_hand<'d>(
        self: Arc<Self>,
        node: &'d Arc<NodeInner>,
        content: (Option<u32>, Bytes),
        expected: u64,
    ) -> BoxFuture<'d, Result<()>>;

    /// Says that a revision was written behind its back.
    fn outdated(&self, revision: u64);
}

/// One document of type `S`.
pub(crate) struct Document<S> {
    key: Key,
    store: Arc<dyn Store>,
    past: Past,
    /// Says which values stand for no document. Such a document has no past either.
    passes: Option<fn(&S) -> bool>,
    /// Held while a batch with this document is built, by functions of users too: they may read any document meanwhile.
    building: Mutex<()>,
    /// Held for moments in which no code of users runs.
    values: Mutex<Values<S>>,
    /// Tells that no batch with it is on its way any more.
    quiet: Notify,
}

struct Values<S> {
    /// What is committed, as far as this process knows; none while it was not read.
    committed: Option<Arc<Version<S>>>,
    /// What the last batch on its way makes of it.
    head: Option<Arc<Version<S>>>,
    /// A revision that was written behind its back: what was read before is not kept.
    least: u64,
    /// The batches on their way that change it.
    under_way: u32,
    /// Whether one of those was not committed, so that nobody may build on the others or beside them: a batch is known
    /// to the store by the revision it makes, and another one may make the same.
    broken: bool,
}

/// A value with its revision; 0 when nothing was written.
pub(crate) struct Version<S> {
    pub(crate) revision: u64,
    pub(crate) value: S,
}

/// What a function makes of a state, and the events that follow from it.
pub(crate) type Change<S> = Box<dyn Fn(S, &mut Vec<Unstamped>) -> Result<S> + Send + Sync>;

/// What a step does to one document.
pub(crate) struct Staging<S> {
    document: Arc<Document<S>>,
    changes: Vec<Change<S>>,
    /// Whether events follow from a change; its function then runs again when the batch is built, for they are told
    /// there.
    tells: bool,
    /// What the step sees, and the revision it was made of.
    view: Arc<S>,
    base: Arc<Version<S>>,
    /// Whether the step decided on what it saw.
    decided: bool,
    /// The revision that the document must have.
    expected: Option<u64>,
    applied: Option<Arc<Version<S>>>,
}

/// What a function made of what a step saw.
pub(super) struct Made<S> {
    value: S,
    /// Whether events follow from it.
    tells: bool,
}

/// What a step does to a document whose type is not known.
pub(crate) trait Staged: Send + Sync {
    fn key(&self) -> &Key;

    fn as_any_mut(&mut self) -> &mut dyn Any;

    /// Reads the document unless it is in memory.
    fn load(&self) -> BoxFuture<'_, Result<()>>;

    /// Keeps everybody else from building on the document.
    fn hold(&mut self) -> Box<dyn Holding + '_>;

    /// Says what became of the batch.
    fn settle(&mut self, committed: bool);
}

/// A document that is held while a batch is built.
pub(crate) trait Holding {
    fn is_loaded(&self) -> bool;

    /// Makes the next value; nobody sees it before [`Holding::adopt`].
    ///
    /// # Errors
    ///
    /// What a function refuses with, and [`ErrorKind::Conflict`] when another revision is expected.
    fn apply(&mut self, events: &mut Vec<Unstamped>) -> Result<Applied>;

    /// Lets others build on the next value.
    fn adopt(&mut self);

    /// Forgets the next value, because the batch is not made.
    fn forget(&mut self);
}

/// What a document adds to a batch.
pub(crate) struct Applied {
    pub(crate) write: Option<Write>,
    pub(crate) condition: Option<Condition>,
}

impl Documents {
    pub(crate) fn new(store: Arc<dyn Store>, revisions_max: u32) -> Self {
        let past = if revisions_max == 0 { Past::Dropped } else { Past::Last(revisions_max) };
        Self { store, past, all: papaya::HashMap::new() }
    }

    /// The document with this key; `None` when another type has it.
    pub(crate) fn document<S: State>(&self, key: &Key) -> Option<Arc<Document<S>>> {
        self.made(key, None)
    }

    /// As [`Documents::document`], for one that is deleted by a value that stands for none.
    ///
    /// # Errors
    ///
    /// When another type has it.
    pub(crate) fn passing<S: State>(&self, key: &Key, is_none: fn(&S) -> bool) -> Result<Arc<Document<S>>> {
        self.made(key, Some(is_none))
            .ok_or_else(|| Error::misuse(format!("document `{key}` is no `{}`; please report this", S::NAME)))
    }

    fn made<S: State>(&self, key: &Key, passes: Option<fn(&S) -> bool>) -> Option<Arc<Document<S>>> {
        let all = self.all.pin();
        let found = match all.get(key) {
            Some(found) => Arc::clone(found),
            None => {
                if all.len() >= limits::STATE_DOCUMENTS_MAX {
                    self.make_room();
                }
                let past = if passes.is_some() { Past::Dropped } else { self.past };
                let made = Document::<S>::new(Arc::clone(key), Arc::clone(&self.store), past, passes);
                let made = Arc::new(made);
                Arc::clone(all.get_or_insert_with(Arc::clone(key), || made))
            }
        };
        let found: Arc<dyn Any + Send + Sync> = found;
        found.downcast().ok()
    }

    /// The document with this key, whatever its type, when it is in memory.
    pub(crate) fn in_memory(&self, key: &Key) -> Option<Arc<dyn AnyDocument>> {
        self.all.pin().get(key).cloned()
    }

    /// Says that a document was written behind its back.
    pub(crate) fn outdated(&self, key: &Key, revision: u64) {
        if let Some(document) = self.in_memory(key) {
            document.outdated(revision);
        }
    }

    /// What becomes of the revision before, each time one is written.
    pub(crate) const fn past(&self) -> Past {
        self.past
    }

    /// Forgets those that nobody uses. They are read again when somebody does.
    #[cold]
    fn make_room(&self) {
        self.all.pin().retain(|_, document| Arc::strong_count(document) > 1 || !document.is_settled());
    }
}

impl<S: State> Document<S> {
    fn new(key: Key, store: Arc<dyn Store>, past: Past, passes: Option<fn(&S) -> bool>) -> Self {
        let values =
            Mutex::new(Values { committed: None, head: None, under_way: 0, broken: false, least: 0 });
        Self { key, store, past, passes, building: Mutex::default(), values, quiet: Notify::new() }
    }

    pub(super) const fn key(&self) -> &Key {
        &self.key
    }

    /// What is committed. Reads it on this thread when it is not in memory.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is no `S`.
    pub(crate) fn committed(&self) -> Result<Arc<Version<S>>> {
        if let Some(committed) = &lock(&self.values).committed {
            return Ok(Arc::clone(committed));
        }
        match self.store.document_now(&self.key) {
            Some(found) => self.take(found?),
            None => Err(Error::misuse(format!(
                "document `{}` is not in memory, and this store cannot read it at once; use `.load().await` first",
                self.key
            ))),
        }
    }

    /// What is committed, when it is in memory.
    pub(super) fn known(&self) -> Option<Arc<Version<S>>> {
        lock(&self.values).committed.clone()
    }

    /// What the next change builds on.
    fn latest(&self) -> Result<Arc<Version<S>>> {
        if let Some(head) = &lock(&self.values).head {
            return Ok(Arc::clone(head));
        }
        self.committed()
    }

    /// As [`Document::committed`], without holding up the thread.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) async fn read(&self) -> Result<Arc<Version<S>>> {
        if let Some(committed) = &lock(&self.values).committed {
            return Ok(Arc::clone(committed));
        }
        let found = self.store.documents(vec![Arc::clone(&self.key)]).await?.pop().flatten();
        self.take(found)
    }

    /// Waits until it may be built on again after a batch was not committed.
    async fn settled(&self) {
        loop {
            let mut quiet = pin!(self.quiet.notified());
            quiet.as_mut().enable();
            if !lock(&self.values).broken {
                return;
            }
            quiet.await;
        }
    }

    /// Keeps what was read, unless something newer came meanwhile.
    fn take(&self, found: Option<Stored>) -> Result<Arc<Version<S>>> {
        let read = Arc::new(self.decode(found)?);
        let mut values = lock(&self.values);
        let kept = match &values.committed {
            Some(known) if known.revision >= read.revision => Arc::clone(known),
            // Read before somebody else wrote: true then, and not to be kept.
            _ if read.revision < values.least => return Ok(read),
            _ => read,
        };
        values.committed = Some(Arc::clone(&kept));
        Ok(kept)
    }

    fn decode(&self, found: Option<Stored>) -> Result<Version<S>> {
        let Some(found) = found else { return Ok(Version { revision: 0, value: S::default() }) };
        let revision = found.revision;
        let Some(content) = found.content else { return Ok(Version { revision, value: S::default() }) };
        if &*content.name != S::NAME {
            let (found, wanted) = (&content.name, S::NAME);
            let key = &self.key;
            return Err(Error::misuse(format!(
                "document `{key}` is a `{found}` and was asked for as `{wanted}`"
            )));
        }
        let value = state::decode_document::<S>(content.version, &content.bytes)
            .map_err(|error| error.context(format!("document `{}` in revision {revision}", self.key)))?;
        Ok(Version { revision, value })
    }
}

impl<S: State> AnyDocument for Document<S> {
    fn is_settled(&self) -> bool {
        let values = lock(&self.values);
        values.head.is_none() && values.under_way == 0
    }

    fn set_by_hand<'d>(
        self: Arc<Self>,
        node: &'d Arc<NodeInner>,
        (version, bytes): (Option<u32>, Bytes),
        expected: u64,
    ) -> BoxFuture<'d, Result<()>> {
        Box::pin(async move {
            let value = state::decode_document::<S>(version.unwrap_or(S::VERSION), &bytes)
                .map_err(|error| error.context(format!("what document `{}` is to say", self.key)))?;
            crate::state::set_by_hand(node, Arc::clone(&self.key), self, value, expected).await
        })
    }

    fn outdated(&self, revision: u64) {
        let replaced = {
            let mut values = lock(&self.values);
            values.least = values.least.max(revision);
            let is_older = values.committed.as_ref().is_some_and(|known| known.revision < revision);
            if is_older { values.committed.take() } else { None }
        };
        // The user's value: what its drop does is done when no lock is held.
        drop(replaced);
    }
}

impl<S: State> Made<S> {
    /// Tries a function on what a step sees.
    ///
    /// # Errors
    ///
    /// What the function refuses with, its panic, or the effect it tried to have.
    pub(super) fn of(view: &S, change: &Change<S>) -> Result<Self> {
        let mut events = Vec::new();
        let value = pure::run(|| change(view.clone(), &mut events))?;
        Ok(Self { value, tells: !events.is_empty() })
    }
}

impl<S: State> Staging<S> {
    /// Begins to stage changes of a document, from what it will be when all that is on its way is committed: what a step
    /// makes of that is committed behind it, or not at all.
    ///
    /// # Errors
    ///
    /// As [`Document::committed`].
    pub(crate) fn new(document: Arc<Document<S>>) -> Result<Self> {
        let latest = document.latest()?;
        let view = Arc::new(latest.value.clone());
        let (changes, base) = (Vec::new(), latest);
        Ok(Self {
            document,
            changes,
            tells: false,
            view,
            base,
            decided: false,
            expected: None,
            applied: None,
        })
    }

    /// What the step sees.
    pub(super) fn view(&self) -> Arc<S> {
        Arc::clone(&self.view)
    }

    /// The number of changes so far.
    pub(super) const fn len(&self) -> usize {
        self.changes.len()
    }

    /// Has the step committed only when the document still is what the step saw.
    pub(crate) const fn expect_base(&mut self) {
        self.decided = true;
    }

    /// Adds a change, when the function agrees to what the step sees now.
    ///
    /// # Errors
    ///
    /// What the function refuses with, its panic, or the effect it tried to have.
    pub(crate) fn change(&mut self, change: Change<S>) -> Result<()> {
        let made = Made::<S>::of(&self.view, &change)?;
        self.add(made, change);
        Ok(())
    }

    /// Adds a change that was tried, and gives back what the step saw before.
    pub(super) fn add(&mut self, made: Made<S>, change: Change<S>) -> Arc<S> {
        self.tells |= made.tells;
        self.changes.push(change);
        std::mem::replace(&mut self.view, Arc::new(made.value))
    }

    /// Has the step committed only when the document has this revision.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] when it has another one already.
    pub(crate) fn expect(&mut self, revision: u64) -> Result<()> {
        let found = self.base.revision;
        if revision != found {
            return Err(Condition::revision_conflict(&self.document.key, revision, found));
        }
        self.expected = Some(revision);
        Ok(())
    }
}

impl<S: State> Staged for Staging<S> {
    fn key(&self) -> &Key {
        &self.document.key
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn load(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.document.settled().await;
            self.document.read().await.map(drop)
        })
    }

    fn hold(&mut self) -> Box<dyn Holding + '_> {
        let Self { document, changes, tells, view, base, decided, expected, applied } = self;
        let view = (!*tells).then_some(&**view);
        let building = lock(&document.building);
        let latest = {
            let values = lock(&document.values);
            let latest = values.head.as_ref().or(values.committed.as_ref());
            latest.filter(|_| !values.broken).map(Arc::clone)
        };
        Box::new(Held {
            document,
            _building: building,
            latest,
            changes,
            view,
            base,
            decided: *decided,
            expected: *expected,
            applied,
        })
    }

    fn settle(&mut self, committed: bool) {
        let Some(applied) = self.applied.take() else { return };
        let (replaced, quiet) = lock(&self.document.values).settle(applied, committed);
        if quiet {
            self.document.quiet.notify_waiters();
        }
        // The user's values: what their drop does is done when no lock is held.
        kept_going("a state that is dropped", || drop(replaced));
    }
}

impl<S> Values<S> {
    /// Says what became of a batch; gives the values that nobody sees any more, and whether nothing is on its way.
    fn settle(&mut self, applied: Arc<Version<S>>, committed: bool) -> ([Option<Arc<Version<S>>>; 2], bool) {
        self.under_way = self.under_way.saturating_sub(1);
        self.broken |= !committed;
        let is_head = self.head.as_ref().is_some_and(|head| Arc::ptr_eq(head, &applied));
        let head = if self.broken || is_head { self.head.take() } else { None };
        let newer = self.committed.as_ref().is_none_or(|known| known.revision < applied.revision);
        let mut before = if committed && newer { self.committed.replace(applied) } else { None };
        let quiet = self.under_way == 0;
        if self.broken && quiet {
            // What is true now is in the store: one that was not heard of may be committed.
            self.broken = false;
            before = self.committed.take();
        }
        ([head, before], quiet)
    }
}

impl<S> Drop for Staging<S> {
    /// A batch whose builder is gone counts as one that was not committed.
    fn drop(&mut self) {
        if let Some(applied) = self.applied.take() {
            let (replaced, quiet) = lock(&self.document.values).settle(applied, false);
            if quiet {
                self.document.quiet.notify_waiters();
            }
            kept_going("a state that is dropped", || drop(replaced));
        }
    }
}

struct Held<'d, S> {
    document: &'d Document<S>,
    _building: MutexGuard<'d, ()>,
    /// What the batch builds on.
    latest: Option<Arc<Version<S>>>,
    changes: &'d [Change<S>],
    /// What the changes made of what the step saw, when that is all they do.
    view: Option<&'d S>,
    /// What the step saw. It is known by itself and not by its revision: what was on its way then may not have been
    /// committed, and something else have its number.
    base: &'d Arc<Version<S>>,
    decided: bool,
    expected: Option<u64>,
    applied: &'d mut Option<Arc<Version<S>>>,
}

impl<S: State> Holding for Held<'_, S> {
    fn is_loaded(&self) -> bool {
        self.latest.is_some()
    }

    fn apply(&mut self, events: &mut Vec<Unstamped>) -> Result<Applied> {
        let key = &self.document.key;
        let Some(latest) = &self.latest else {
            return Err(Error::misuse("a document was changed before it was read; please report this"));
        };
        let same = Arc::ptr_eq(self.base, latest);
        if self.decided && !same {
            return Err(Condition::revision_conflict(key, self.base.revision, latest.revision));
        }
        if let Some(expected) = self.expected
            && expected != latest.revision
        {
            return Err(Condition::revision_conflict(key, expected, latest.revision));
        }
        if self.changes.is_empty() {
            let revision = latest.revision;
            let condition = Condition::Revision { key: Arc::clone(key), revision };
            let looks = self.decided || self.expected.is_some();
            return Ok(Applied { write: None, condition: looks.then_some(condition) });
        }
        // Copying and writing run code of users as well.
        let made = isolated("a state that is copied or written", || {
            let value = match self.view {
                Some(view) if same => view.clone(),
                _ => {
                    let (changes, before) = (self.changes, latest.value.clone());
                    pure::run(|| changes.iter().try_fold(before, |value, change| change(value, events)))?
                }
            };
            let content = if self.document.passes.is_some_and(|is_none| is_none(&value)) {
                None
            } else {
                let bytes = state::encode(&value)?.into();
                Some(Content { name: S::NAME.into(), version: S::VERSION, bytes })
            };
            Ok::<_, Error>((value, content))
        });
        let (value, content) = made.and_then(|made| made)?;
        let revision = latest.revision + 1;
        *self.applied = Some(Arc::new(Version { revision, value }));
        let past = self.document.past;
        let write = Write { key: Arc::clone(key), revision, content, past, replaced: Replaced::Kept };
        Ok(Applied { write: Some(write), condition: None })
    }

    fn adopt(&mut self) {
        if let Some(applied) = &*self.applied {
            let replaced = {
                let mut values = lock(&self.document.values);
                values.under_way += 1;
                // One that came down meanwhile takes this one along.
                let next = (!values.broken).then(|| Arc::clone(applied));
                std::mem::replace(&mut values.head, next)
            };
            kept_going("a state that is dropped", || drop(replaced));
        }
    }

    fn forget(&mut self) {
        *self.applied = None;
    }
}

impl<S> fmt::Debug for Document<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document `{}`", self.key)
    }
}

impl fmt::Debug for Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} documents", self.all.pin().len())
    }
}

/// Whether an error says that a decision was made of what is no longer true.
pub(crate) fn is_conflict(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Conflict { .. })
}
