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

/// What is kept of a value from a moment: the value as it was then, or, where that revision is not kept, the newest one
/// from before that is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Then<T> {
    /// The value.
    pub value: T,
    /// Its revision.
    pub revision: u64,
    /// How many later revisions had been written by then, none of which is kept; 0 says that the value is exactly as it
    /// was. Where the log does not have the records any more that tell, as many as there can be.
    pub missing: u64,
}

impl<T> Then<T> {
    /// Whether it was so then. Otherwise it is older.
    #[must_use]
    pub const fn is_exact(&self) -> bool {
        self.missing == 0
    }
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
    /// How many revisions right before it are not kept: made by events that make no snapshots, or forgotten.
    pub missing: u64,
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
    /// Never an older one: [`Journal::nearest`] gives that, and says so.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says; [`ErrorKind::NotFound`] also when the revision of then is not kept, because the event that made
    /// it makes no snapshots, or not any more.
    ///
    /// # Cost
    ///
    /// As [`Journal::nearest`].
    pub async fn at(&self, key: &str, at: At) -> Result<Option<Document>> {
        exactly(key, self.nearest(key, at).await?)
    }

    /// What is kept of the document from then: the document as it was, or the newest kept revision from before, with how
    /// many came after it; `None` when there was none.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says; [`ErrorKind::NotFound`] also when nothing is kept from before then, and there was something.
    ///
    /// # Cost
    ///
    /// Up to five reads, and for a time a few more that halve the log. Where revisions are missing, the records of the node
    /// behind that moment are read up to the next change, [`limits::JOURNAL_LOOKED_AT_MAX`] at most.
    ///
    /// # Examples
    ///
    /// ```
    /// # use happen::{Context, Event};
    /// use happen::journal::At;
    ///
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Meter { watts: u64 }
    /// # fn set(n: &Event<u64>, cx: &Context) -> happen::Result<()> {
    /// #     let watts = **n;
    /// #     cx.state::<Meter>().set(move |_| Meter { watts })
    /// # }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// let space = happen::Space::open(folder.path()).await?;
    /// let meter = space.node("meter").snapshots(["day.ended"]);
    /// # meter.on("u64", set);
    /// space.start().await?;
    /// meter.state::<Meter>().commit(|_| Meter { watts: 40 }).await?;
    /// # space.send("meter", 50u64).reply::<()>().await?;
    /// let noon = space.journal().head().await?;
    /// # space.send("meter", 60u64).reply::<()>().await?;
    ///
    /// // What the events of noon made was not kept.
    /// let then = space.journal().nearest("state/meter/meter", At::Position(noon)).await?.unwrap();
    /// assert_eq!((then.revision, then.missing, then.is_exact()), (1, 1, false));
    /// assert_eq!(space.journal().at("state/meter/meter", At::Position(noon)).await.unwrap_err().code(), "not-found");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn nearest(&self, key: &str, at: At) -> Result<Option<Then<Document>>> {
        let key: Key = key.into();
        let (found, behind) = match at {
            At::Position(position) => {
                let found = self.in_force(&key, Until::At(position), u64::MAX).await?;
                (found, Some(Start::Position(position)))
            }
            At::Time(unix_ms) => {
                let behind = unix_ms.checked_add(1).map(Start::Time);
                (self.at_time(&key, unix_ms).await?, behind)
            }
            At::Event(event) => match self.change_by(&key, event).await? {
                Made::Revision(revision) => return self.up_to_revision(&key, revision).await.map(Some),
                Made::Nothing(newest) => {
                    let found = self.in_force(&key, Until::At(newest), u64::MAX).await?;
                    (found, Some(Start::Position(newest)))
                }
            },
        };
        let revision = found.as_ref().map_or(0, |found| found.revision);
        let missing = self.missing_behind(&key, revision, behind).await?;
        match found {
            Some(found) => Ok(Some(Then { revision, missing, value: found })),
            None if missing > 0 => Err(not_kept(&key)),
            None => Ok(None),
        }
    }

    /// How many revisions after this one had been written before a place of the log, when the next kept one was not.
    async fn missing_behind(&self, key: &Key, revision: u64, behind: Option<Start>) -> Result<u64> {
        let current = self.store.documents(vec![Key::clone(key)]).await?.pop().flatten();
        let Some(current) = current.filter(|current| current.revision > revision) else { return Ok(0) };
        if current.revision == revision + 1 || self.revision(key, revision + 1).await?.is_some() {
            return Ok(0);
        }
        let next = match behind {
            Some(start) => self.next_change(key, start).await?,
            None => None,
        };
        let next = match next {
            // A document that was deleted and forgotten begins to count anew.
            Some(next) if next > revision && next <= current.revision => next,
            _ => self.next_kept(key, revision, current.revision).await?,
        };
        Ok(next - 1 - revision)
    }

    /// The revision that the first change of a document makes from a place of the log on.
    async fn next_change(&self, key: &Key, start: Start) -> Result<Option<u64>> {
        let mut walk =
            Walk::new(self.store(), Read::forward(records_about(key)).start(start).at_most(RECORDS_FIRST));
        let mut looked_at = 0;
        while let Some(records) = walk.next().await? {
            for record in &records {
                if let Some(revision) = revision_of(record, key)? {
                    return Ok(Some(revision));
                }
                looked_at += 1;
                if looked_at >= limits::JOURNAL_LOOKED_AT_MAX {
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    /// The oldest revision that is kept after this one, up to one that is. Each turn halves what is left.
    async fn next_kept(&self, key: &Key, revision: u64, kept: u64) -> Result<u64> {
        let (mut low, mut high) = (revision, kept);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.kept_up_to(key, middle).await?.map_or(0, |found| found.revision) {
                found if found > revision => high = found,
                _ => low = middle,
            }
        }
        Ok(high)
    }

    /// What is kept from when a document had this revision.
    async fn up_to_revision(&self, key: &Key, revision: u64) -> Result<Then<Document>> {
        let found = self.kept_up_to(key, revision).await?.ok_or_else(|| not_kept(key))?;
        Ok(Then { revision: found.revision, missing: revision - found.revision, value: found })
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

    /// What is kept of the state of a node from then, as [`Journal::nearest`] gives it.
    ///
    /// # Errors
    ///
    /// As [`Journal::nearest`]; [`ErrorKind::Undecodable`] when it was written in another shape.
    pub async fn nearest_state<S: State>(&self, node: &str, at: At) -> Result<Option<Then<S>>> {
        decoded(self.nearest(&state_key::<S>(node), at).await?)
    }

    /// What is kept of an entity of a node from then, as [`Journal::nearest`] gives it.
    ///
    /// # Errors
    ///
    /// As [`Journal::nearest_state`].
    pub async fn nearest_entity<S: State>(&self, node: &str, key: &str, at: At) -> Result<Option<Then<S>>> {
        decoded(self.nearest(&entity_key::<S>(node, key), at).await?)
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
    /// Two reads for the page, and one for each revision.
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
        let mut older =
            revisions.iter().skip(1).map(|document| document.revision).collect::<Vec<_>>().into_iter();
        for document in revisions {
            let before = document.revision.saturating_sub(1);
            let older = match older.next() {
                Some(older) => older,
                // The last of the page.
                None => self.kept_up_to(&key, before).await?.map_or(0, |older| older.revision),
            };
            reasons.push(Reason {
                revision: document.revision,
                position: document.position,
                at_unix_ms: document.at_unix_ms,
                is_deletion: document.content.is_none(),
                missing: before.saturating_sub(older),
                made_by: self.writer_of(&document).await?,
            });
        }
        Ok(reasons)
    }

    /// What the record says that was committed with this revision.
    async fn writer_of(&self, document: &Document) -> Result<MadeBy> {
        // The step's record is mostly the last one of its node in the commit.
        let read = Read::backward(records_about(&document.key)).start(up_to(document.position)).at_most(8);
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
        let found = self.kept_up_to(key, revision).await?;
        Ok(found.filter(|document| document.revision == revision))
    }

    /// The newest revision up to this one that is kept.
    async fn kept_up_to(&self, key: &Key, revision: u64) -> Result<Option<Document>> {
        let until = Until::Before(revision.saturating_add(1));
        let history = History { key: Key::clone(key), until, documents_max: 1 };
        Ok(self.store.history(history).await?.pop())
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

    /// What an event made of a document.
    async fn change_by(&self, key: &Key, event: EventId) -> Result<Made> {
        let read = Read::backward(Select::tag(Tag::Event(event))).at_most(8);
        let mut walk = Walk::new(self.store(), read);
        let mut newest = None;
        while let Some(records) = walk.next().await? {
            for record in &records {
                newest.get_or_insert(record.position);
                if let Some(revision) = revision_of(record, key)? {
                    return Ok(Made::Revision(revision));
                }
            }
        }
        newest.map(Made::Nothing).ok_or_else(|| no_event(event))
    }

    async fn decoded_at<S: State>(&self, key: &str, at: At) -> Result<Option<S>> {
        match self.at(key, at).await? {
            Some(document) => decode_document(&document),
            None => Ok(None),
        }
    }
}

/// What the handling of an event made of a document.
enum Made {
    /// This revision, the last one that it made.
    Revision(u64),
    /// Nothing, up to this position, which is the last that tells of the event.
    Nothing(Position),
}

fn exactly(key: &str, then: Option<Then<Document>>) -> Result<Option<Document>> {
    match then {
        Some(Then { revision, missing, .. }) if missing > 0 => Err(not_found(format!(
            "document `{key}` as it was then: that revision is not kept, the newest before that is, is {revision}, and up \
             to {missing} came after it until then; `Journal::nearest` gives it"
        ))),
        then => Ok(then.map(|then| then.value)),
    }
}

fn not_kept(key: &str) -> Error {
    not_found(format!(
        "document `{key}` as it was then: that revision is not kept, nor one before; ask for a later time, or keep more of \
         its history"
    ))
}

fn decoded<S: State>(then: Option<Then<Document>>) -> Result<Option<Then<S>>> {
    let Some(Then { value, revision, missing }) = then else { return Ok(None) };
    match decode_document(&value)? {
        Some(value) => Ok(Some(Then { value, revision, missing })),
        // A deletion leaves no state to show; but an older one does not say that there was none then.
        None if missing > 0 => Err(not_kept(&value.key)),
        None => Ok(None),
    }
}

/// The records that may tell of a change of this document.
fn records_about(key: &str) -> Select {
    let node = Name::of(key).map(|name| name.node.into_owned());
    node.map_or(Select::All, |node| Select::tag(Tag::Node(node.into())))
}

/// The revision of a document that a record tells of.
fn revision_of(record: &Record, key: &str) -> Result<Option<u64>> {
    let wire = entry::wire(record)?;
    let changes = wire.step.as_ref().map_or(&wire.changes, |step| &step.changes);
    Ok(changes.iter().find(|change| *change.key == *key).map(|change| change.revision))
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

/// Records of the first page that is read for the next change: most come soon.
const RECORDS_FIRST: usize = 32;
