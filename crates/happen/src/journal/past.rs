//! Documents as they were, and what made them so. Owns which revision was in force when; does not know what a document
//! means, but for the one function that decodes a state.

use happen_core::limits::PAGE_RECORDS_MAX;
use happen_core::store::{Document, History, Key, Order, Position, Read, Record, Select, Start, Tag, Until};
use happen_core::{Error, ErrorKind, EventId, Result, State};

use super::entry::{self, About, StoredStep};
use super::walk::{Walk, up_to};
use super::{Journal, no_event, not_found};
use crate::limits;
use crate::state::{Kind, Name};

/// A moment of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum At {
    /// What had been committed at this time, in milliseconds since 1970.
    Time(u64),
    /// What had been committed with the record at this position, and before.
    Position(Position),
    /// After everything that was done so far to handle this event.
    Event(EventId),
}

/// Why a document has one of its revisions.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Reason {
    /// The revision.
    pub revision: u64,
    /// The position of the commit that wrote it.
    pub position: Position,
    /// When it was committed, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Whether it deleted the document.
    pub is_deletion: bool,
    /// What made it.
    pub made_by: MadeBy,
}

/// What made a revision of a document.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum MadeBy {
    /// A step of a flow.
    Step {
        /// What the step did.
        step: Box<StoredStep>,
        /// The event that it handled.
        about: About,
    },
    /// A change from outside any handler.
    Outside,
    /// No record tells: it was pruned, or the document was written without one.
    Unknown,
}

impl Reason {
    /// The event whose handling made it.
    #[must_use]
    pub fn event(&self) -> Option<EventId> {
        match &self.made_by {
            MadeBy::Step { about, .. } => Some(about.event),
            MadeBy::Outside | MadeBy::Unknown => None,
        }
    }
}

impl Journal {
    /// The document as it was then; `None` when there was none. A revision that deleted it has no content.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says; [`ErrorKind::NotFound`] also when the revision of then is not kept any more.
    ///
    /// # Cost
    ///
    /// Up to three reads, and for a time a few more that halve the log.
    pub async fn at(&self, key: &str, at: At) -> Result<Option<Document>> {
        let key: Key = key.into();
        let found = match at {
            At::Position(position) => self.in_force(&key, Until::At(position), u64::MAX).await?,
            At::Time(unix_ms) => self.at_time(&key, unix_ms).await?,
            At::Event(event) => self.after_event(&key, event).await?,
        };
        if found.is_some() {
            return Ok(found);
        }
        let is_known = self.store.documents(vec![Key::clone(&key)]).await?.pop().flatten().is_some();
        // Revisions are forgotten from the first one on, so the first one tells whether any were.
        if is_known && self.revision(&key, 1).await?.is_none() {
            return Err(not_found(format!(
                "document `{key}` as it was then: that revision is not kept any more; ask for a later time, or keep more \
                 of its history"
            )));
        }
        Ok(None)
    }

    /// The state of a node as it was then; `None` when it had none.
    ///
    /// # Errors
    ///
    /// As [`Journal::at`]; [`ErrorKind::Undecodable`] when it was written in another shape.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use happen::env::RealEnv;
    /// use happen::journal::{At, Journal};
    /// # use happen::store::{Batch, Content, MemoryStore, Past, Replaced, Store, Write};
    ///
    /// #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// struct Count { total: u64 }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::new(RealEnv::new())));
    /// # let bytes = happen_core::state::encode(&Count { total: 3 })?.into();
    /// # let content = Content { name: "count".into(), version: 1, bytes };
    /// # let key = "state/shop/count".into();
    /// # let write = Write { key, revision: 1, content: Some(content), past: Past::Kept, replaced: Replaced::Kept };
    /// # store.commit(vec![Batch { documents: vec![write], ..Batch::default() }]).await.remove(0)?;
    /// let journal = Journal::new(store);
    /// let count: Count = journal.state_at("shop", At::Time(u64::MAX)).await?.unwrap_or_default();
    /// assert_eq!(count.total, 3);
    /// assert!(journal.state_at::<Count>("shop", At::Time(0)).await?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn state_at<S: State>(&self, node: &str, at: At) -> Result<Option<S>> {
        self.decoded_at(&state_key::<S>(node), at).await
    }

    /// An entity of a node as it was then; `None` when there was none.
    ///
    /// # Errors
    ///
    /// As [`Journal::state_at`].
    pub async fn entity_at<S: State>(&self, node: &str, key: &str, at: At) -> Result<Option<S>> {
        self.decoded_at(&entity_key::<S>(node, key), at).await
    }

    /// Which steps and events made a document what it is: its revisions, the newest first, each with what wrote it.
    ///
    /// A page has at most [`limits::JOURNAL_ROWS_MAX`] of them; [`Until::Before`] the last one's revision goes on, and
    /// an empty page is the end of what is kept.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says.
    ///
    /// # Cost
    ///
    /// A read for the page, and one for each revision.
    pub async fn why_document(&self, key: &str, until: Until) -> Result<Vec<Reason>> {
        let key: Key = key.into();
        let documents_max = limits::JOURNAL_ROWS_MAX;
        let revisions = self.store.history(History { key: Key::clone(&key), until, documents_max }).await?;
        if revisions.is_empty() && until == Until::Now {
            return Err(not_found(format!(
                "document `{key}`: it was never written, or was deleted and pruned; keys are like \
                 `state/<node>/<state>`, and `Store::list` has those there are"
            )));
        }
        let mut reasons = Vec::with_capacity(revisions.len());
        for document in revisions {
            reasons.push(Reason {
                revision: document.revision,
                position: document.position,
                at_unix_ms: document.at_unix_ms,
                is_deletion: document.content.is_none(),
                made_by: self.writer_of(&document).await?,
            });
        }
        Ok(reasons)
    }

    /// What the record says that was committed with this revision.
    async fn writer_of(&self, document: &Document) -> Result<MadeBy> {
        let node = Name::of(&document.key).map(|name| name.node.into_owned());
        let select = node.map_or(Select::All, |node| Select::tag(Tag::Node(node.into())));
        // The step's record is mostly the last one of its node in the commit.
        let read = Read::backward(select).start(up_to(document.position)).at_most(8);
        let mut walk = Walk::new(self.store(), read);
        while let Some(records) = walk.next().await? {
            for record in &records {
                // A commit has one time, so an older record belongs to another.
                if record.at_unix_ms < document.at_unix_ms {
                    return Ok(MadeBy::Unknown);
                }
                match writes(record, document)? {
                    Some(made_by) => return Ok(made_by),
                    None => continue,
                }
            }
        }
        Ok(MadeBy::Unknown)
    }

    /// One revision of a document, while it is kept.
    pub(super) async fn revision(&self, key: &Key, revision: u64) -> Result<Option<Document>> {
        let until = Until::Before(revision.saturating_add(1));
        let history = History { key: Key::clone(key), until, documents_max: 1 };
        let found = self.store.history(history).await?.pop();
        Ok(found.filter(|document| document.revision == revision))
    }

    async fn at_time(&self, key: &Key, unix_ms: u64) -> Result<Option<Document>> {
        let Some(later) = unix_ms.checked_add(1) else {
            return self.in_force(key, Until::Now, unix_ms).await;
        };
        // Nothing that stands at the first later record, or behind, had been committed.
        let start = Start::Time(later);
        let read = Read { select: Select::All, start, order: Order::Forward, records_max: 1 };
        let first_later = self.store.read(read).await?.records.pop();
        let until = match first_later.and_then(|record| record.position.number().checked_sub(1)) {
            Some(before) => Until::At(Position::from_number(before)),
            None => Until::Now,
        };
        self.in_force(key, until, unix_ms).await
    }

    /// The newest revision back from there that had been committed at a time. Commits without records have times too.
    async fn in_force(&self, key: &Key, until: Until, unix_ms: u64) -> Result<Option<Document>> {
        let mut history = History { key: Key::clone(key), until, documents_max: 1 };
        loop {
            let page = self.store.history(history.clone()).await?;
            let Some(last) = page.last() else { return Ok(None) };
            history.until = Until::Before(last.revision);
            history.documents_max = PAGE_RECORDS_MAX;
            if let Some(found) = page.into_iter().find(|document| document.at_unix_ms <= unix_ms) {
                return Ok(Some(found));
            }
        }
    }

    async fn after_event(&self, key: &Key, event: EventId) -> Result<Option<Document>> {
        let read = Read::backward(Select::tag(Tag::Event(event))).at_most(8);
        let mut walk = Walk::new(self.store(), read);
        let mut newest = None;
        while let Some(records) = walk.next().await? {
            for record in &records {
                newest.get_or_insert(record.position);
                let wire = entry::wire(record)?;
                let changes = wire.step.as_ref().map_or(&wire.changes, |step| &step.changes);
                if let Some(change) = changes.iter().find(|change| *change.key == **key) {
                    return self.revision(key, change.revision).await;
                }
            }
        }
        let newest = newest.ok_or_else(|| no_event(event))?;
        self.in_force(key, Until::At(newest), u64::MAX).await
    }

    async fn decoded_at<S: State>(&self, key: &str, at: At) -> Result<Option<S>> {
        match self.at(key, at).await? {
            Some(document) => decode_document(&document),
            None => Ok(None),
        }
    }
}

/// What wrote this revision, when this record tells.
fn writes(record: &Record, document: &Document) -> Result<Option<MadeBy>> {
    let wire = entry::wire(record)?;
    let changes = wire.step.as_ref().map_or(&wire.changes, |step| &step.changes);
    let is_it = |change: &happen_core::codec::WireChange<'_>| {
        *change.key == *document.key && change.revision == document.revision
    };
    if !changes.iter().any(is_it) {
        return Ok(None);
    }
    let made_by = match (&wire.step, About::of(record)) {
        (Some(step), Some(about)) => {
            let step = StoredStep::of(step, record).map_err(|error| entry::damaged(record, error))?;
            MadeBy::Step { step: Box::new(step), about }
        }
        _ => MadeBy::Outside,
    };
    Ok(Some(made_by))
}

pub(super) fn state_key<S: State>(node: &str) -> Key {
    Name { kind: Kind::State, node: node.into(), state: S::NAME.into(), key: "".into() }.to_key()
}

pub(super) fn entity_key<S: State>(node: &str, key: &str) -> Key {
    Name { kind: Kind::Entity, node: node.into(), state: S::NAME.into(), key: key.into() }.to_key()
}

/// The state in a document; `None` for a deletion. The only place where the journal knows how states are encoded.
pub(super) fn decode_document<S: State>(document: &Document) -> Result<Option<S>> {
    let Some(content) = &document.content else { return Ok(None) };
    if *content.name != *S::NAME {
        let found = Error::misuse(format!("it is a `{}`", content.name)).into_std();
        let error = Error::new(ErrorKind::Undecodable { wanted: S::NAME.to_owned() });
        return Err(error.with_source(found).context(format!("document `{}`", document.key)));
    }
    let decoded = happen_core::state::decode_document(content.version, &content.bytes);
    decoded.map(Some).map_err(|error| error.context(format!("document `{}`", document.key)))
}
