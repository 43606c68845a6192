//! Following entries of global state: what is there, then every change. Owns how the two are joined so that nothing is
//! missed and nothing comes twice; does not know who writes.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;

use happen_core::limits::PAGE_RECORDS_MAX;
use happen_core::store::{self, Document, Key, List, Position, Read, Record, Select, Store};
use happen_core::{Error, ErrorKind, EventId, Result};
use serde::de::DeserializeOwned;

use super::Global;
use super::commons::Commons;
use super::format::{self, Author, Kept, Made, Told};
use super::sweep;
use super::write::Place;
use crate::pure;
use crate::space::SpaceInner;

/// A reader that follows entries of global state. Made by [`Global::watch`] and [`Global::watch_key`].
///
/// # Delivery
///
/// First it gives what was there when the watch began, each entry in the revision it had; what was changed since is left
/// out there, because its changes follow. Then it gives every change once, in the order of the log, however many
/// writers there are: of one entry its revisions one by one, of several entries in the order they were committed.
/// A deletion may be given of an entry that was not, because it was deleted meanwhile, or had expired.
///
/// # Cost
///
/// Memory for one page of the store, however long it follows. A watch reads the records of all of global state and
/// passes on those it was asked for.
pub struct Watch {
    space: Weak<SpaceInner>,
    commons: Arc<Commons>,
    watched: Watched,
    /// The scope, which the keys that are given leave out.
    prefix: Arc<str>,
    listing: Listing,
    /// Up to here the documents tell, from here on the records.
    since: Position,
    records: Following,
    ready: VecDeque<Result<Change>>,
}

/// Which entries.
#[derive(Debug)]
pub(super) enum Watched {
    Prefix(String),
    Entry(Place),
}

/// How far what was there is given.
#[derive(Debug)]
enum Listing {
    After(Option<Key>),
    Done,
    /// Something was missed, so it has to begin again.
    Lost,
}

/// A watch of the records of all changes, which ends with the space and notices when something was forgotten before it
/// was read.
pub(super) struct Following {
    commons: Arc<Commons>,
    records: Box<dyn store::Watch>,
    forgotten: u64,
}

/// An entry that was there, or a change of one.
#[derive(Clone)]
pub struct Change {
    key: String,
    revision: u64,
    at_unix_ms: u64,
    kind: ChangeKind,
    kept: Option<Kept>,
    author: Author,
}

/// What a [`Change`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChangeKind {
    /// The entry was there when the watch began.
    There,
    /// It was written.
    Written,
    /// It was deleted by somebody.
    Deleted,
    /// It was deleted because its time was over.
    Expired,
}

impl Watch {
    pub(super) async fn begin(global: &Global, watched: Watched) -> Result<Self> {
        pure::check("watch global state")?;
        global.space.check_not_stopped()?;
        let (since, records) = Following::begin(&*global.space.store(), &global.space.commons).await?;
        // Whoever watches is to hear of what expires, also of what an earlier process wrote.
        sweep::begin(&global.space);
        Ok(Self {
            space: Arc::downgrade(&global.space),
            commons: Arc::clone(&global.space.commons),
            watched,
            prefix: Arc::clone(&global.prefix),
            listing: Listing::After(None),
            since,
            records,
            ready: VecDeque::new(),
        })
    }

    /// The next entry or change, as soon as there is one; `None` once the space has ended.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Io`] when the store failed; the next call goes on where this one stood.
    /// - [`ErrorKind::Damaged`] as the store says.
    /// - [`ErrorKind::Lagged`] in a space in memory when the watch was not read for
    ///   [`GLOBAL_RECORDS_KEPT`](crate::limits::GLOBAL_RECORDS_KEPT) changes or more, with the number of those forgotten
    ///   meanwhile. It begins again then, with what is there.
    /// - [`ErrorKind::Undecodable`] in the place of a change that was written by a later version; the next call gives
    ///   the one after it.
    ///
    /// # Cancel safety
    ///
    /// A change counts as given when the future ends with it. Dropping the future before loses nothing.
    pub async fn next(&mut self) -> Option<Result<Change>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            if self.commons.has_stopped() {
                return None;
            }
            match self.read_on().await {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Closed { .. }) => return None,
                Err(error) => {
                    if let ErrorKind::Lagged { .. } = error.kind() {
                        self.listing = Listing::Lost;
                    }
                    return Some(Err(error));
                }
            }
        }
    }

    /// Reads one page more.
    async fn read_on(&mut self) -> Result<()> {
        match &self.listing {
            Listing::Done => {}
            Listing::After(after) => {
                let after = after.clone();
                return self.list(after).await;
            }
            Listing::Lost => {
                let store = self.space.upgrade().ok_or_else(closed)?.store();
                (self.since, self.records) = Following::begin(&*store, &self.commons).await?;
                self.listing = Listing::After(None);
                return Ok(());
            }
        }
        for record in self.records.next().await? {
            if let Some(change) = self.changed(&record).transpose() {
                self.ready.push_back(change);
            }
        }
        Ok(())
    }

    /// Gives the next page of what was there.
    async fn list(&mut self, after: Option<Key>) -> Result<()> {
        let store = self.space.upgrade().ok_or_else(closed)?.store();
        let (documents, next) = match &self.watched {
            Watched::Entry(place) => {
                (store.document(&place.document).await?.into_iter().collect(), Listing::Done)
            }
            Watched::Prefix(prefix) => {
                let prefix = format::document_key(prefix);
                let documents = store.list(List { prefix, after, documents_max: PAGE_RECORDS_MAX }).await?;
                let last = documents.last().map(|last| Key::clone(&last.key));
                (documents, last.map_or(Listing::Done, |last| Listing::After(Some(last))))
            }
        };
        let now = store_time(&self.space)?;
        for document in documents {
            if let Some(change) = self.there(document, now).transpose() {
                self.ready.push_back(change);
            }
        }
        self.listing = next;
        Ok(())
    }

    /// An entry that was there when the watch began; a later one has a record that will tell it.
    fn there(&self, document: Document, now_unix_ms: u64) -> Result<Option<Change>> {
        let Document { key, revision, position, at_unix_ms, content } = document;
        let Some(content) = content.filter(|_| position <= self.since) else { return Ok(None) };
        let Some(name) = format::entry_name(&key) else { return Ok(None) };
        let kept =
            Kept::of_content(&content).map_err(|error| error.context(format!("reading global `{name}`")))?;
        if kept.has_expired(now_unix_ms) {
            return Ok(None);
        }
        let Some(key) = name.strip_prefix(&*self.prefix) else { return Ok(None) };
        let (key, kept, author) = (key.to_owned(), Some(kept), Author::default());
        Ok(Some(Change { key, revision, at_unix_ms, kind: ChangeKind::There, kept, author }))
    }

    /// What a record tells, if it is of an entry that is followed.
    fn changed(&self, record: &Record) -> Result<Option<Change>> {
        let told = Told::of_record(&record.bytes)
            .map_err(|error| error.context(format!("reading the record at {}", record.position)))?;
        let Told { name, revision, change, author } = told;
        let wanted = match &self.watched {
            Watched::Prefix(prefix) => name.starts_with(&**prefix),
            Watched::Entry(place) => name == place.name,
        };
        let Some(key) = name.strip_prefix(&*self.prefix).filter(|_| wanted) else { return Ok(None) };
        let (kind, kept) = match change {
            Made::Set(kept) => (ChangeKind::Written, Some(kept)),
            Made::Deleted => (ChangeKind::Deleted, None),
            Made::Expired => (ChangeKind::Expired, None),
        };
        let at_unix_ms = record.at_unix_ms;
        Ok(Some(Change { key: key.to_owned(), revision, at_unix_ms, kind, kept, author }))
    }
}

impl Change {
    /// The key of the entry, within the scope that is watched.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The revision that was there, or that the change made.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// When it was written or deleted, in milliseconds since 1970, by the clock of the store.
    #[must_use]
    pub fn at_unix_ms(&self) -> u64 {
        self.at_unix_ms
    }

    /// What is told.
    #[must_use]
    pub fn kind(&self) -> ChangeKind {
        self.kind
    }

    /// The value; `None` after a deletion or an expiry.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] when it is no `T`.
    pub fn value<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let decode = |kept: &Kept| {
            kept.decode().map_err(|error| error.context(format!("reading global `{}`", self.key)))
        };
        self.kept.as_ref().map(decode).transpose()
    }

    /// When the entry expires, in milliseconds since 1970; `None` for never.
    #[must_use]
    pub fn expires_at_unix_ms(&self) -> Option<u64> {
        self.kept.as_ref()?.until_unix_ms
    }

    /// The event whose handler made the change. `None` when it was made outside of handlers, and for what was there.
    #[must_use]
    pub fn cause(&self) -> Option<EventId> {
        self.author.event
    }

    /// The id of the node that made the change. `None` as for [`Change::cause`].
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.author.node.as_deref()
    }
}

impl Following {
    /// Begins at the head of the log, and gives that too.
    pub(super) async fn begin(store: &dyn Store, commons: &Arc<Commons>) -> Result<(Position, Self)> {
        // Before the head is read: what is forgotten later is noticed.
        let forgotten = commons.forgotten().records;
        let head = store.read(Read::forward(Select::All).at_most(0)).await?.head;
        let records = store.watch(Select::tag(format::tag()), head).await?;
        Ok((head, Self { commons: Arc::clone(commons), records, forgotten }))
    }

    /// The next records.
    pub(super) async fn next(&mut self) -> Result<Vec<Record>> {
        let from = self.records.position();
        let records = {
            let mut stopped = pin!(self.commons.stopped());
            let mut records = self.records.next();
            poll_fn(|task| match stopped.as_mut().poll(task) {
                Poll::Ready(()) => Poll::Ready(Err(closed())),
                Poll::Pending => records.as_mut().poll(task),
            })
            .await?
        };
        // Looked at afterwards: what is gone by now was perhaps gone when it was read.
        let forgotten = self.commons.forgotten();
        if forgotten.before > from {
            return Err(Error::new(ErrorKind::Lagged { items: forgotten.records - self.forgotten }));
        }
        self.forgotten = forgotten.records;
        Ok(records)
    }

    fn position(&self) -> Position {
        self.records.position()
    }
}

fn store_time(space: &Weak<SpaceInner>) -> Result<u64> {
    Ok(space.upgrade().ok_or_else(closed)?.env.unix_ms())
}

#[cold]
pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed { what: "the space".to_owned() })
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch({:?} after {})", self.watched, self.records.position())
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} in revision {}", self.key, self.kind, self.revision)
    }
}
