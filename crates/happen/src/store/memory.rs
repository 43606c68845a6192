//! The store in memory: maps behind one lock. Owns the order of commits; does not know what the bytes mean.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use happen_core::env::{BoxFuture, Env};
use happen_core::limits::{PAGE_BYTES_MAX, PAGE_RECORDS_MAX};
use happen_core::store::{
    Batch, Committed, Condition, Document, History, Key, List, Order, Page, Past, Position, Prune, Pruned,
    Read, Record, Replaced, Select, Start, Store, Tag, Until, Watch, Write,
};
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::Notify;

use crate::sync::{Mutex, lock};

/// A store that remembers as long as it is there. Its promises are those of [`Store`], but for durability: nothing
/// outlives the value.
///
/// # Cost
///
/// Every call takes one lock, for a time that grows with the batch or the page; that of [`Store::prune`] grows with
/// the log.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use happen::env::RealEnv;
/// use happen::store::{Batch, MemoryStore, NewRecord, Read, Select, Store, Tag};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::new(RealEnv::new())));
/// let placed = NewRecord { tags: vec![Tag::Declared("order:7".into())], bytes: (*b"placed").into() };
/// let mut results = store.commit(vec![Batch { records: vec![placed], ..Batch::default() }]).await;
/// let committed = results.remove(0)?;
///
/// let page = store.read(Read::forward(Select::tag(Tag::Declared("order:7".into())))).await?;
/// assert_eq!(page.records[0].position, committed.position);
/// # Ok(())
/// # }
/// ```
pub struct MemoryStore {
    shared: Arc<Shared>,
    /// Whether several spaces have it.
    several: bool,
}

struct Shared {
    env: Arc<dyn Env>,
    log: Mutex<Log>,
    news: Notify,
}

#[derive(Default)]
struct Log {
    head: u64,
    at_unix_ms: u64,
    closed: bool,
    /// In the order of positions, which have gaps where records were pruned.
    records: Vec<Record>,
    /// The positions of each tag's records, ascending.
    by_tag: HashMap<Tag, Vec<u64>>,
    documents: BTreeMap<Key, Revisions>,
}

/// What is kept of a document.
#[derive(Default)]
struct Revisions {
    /// The newest last; never without one.
    kept: VecDeque<Document>,
    /// What becomes of the newest once it is replaced.
    replaced: Replaced,
}

struct MemoryWatch {
    shared: Arc<Shared>,
    select: Select,
    position: Position,
}

impl MemoryStore {
    /// An empty store that takes the times of its commits from this environment.
    #[must_use]
    pub fn new(env: Arc<dyn Env>) -> Self {
        Self { shared: Arc::new(Shared { env, log: Mutex::default(), news: Notify::new() }), several: false }
    }

    /// The same for several spaces, each of which is to behave as one in a process of its own.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.several = true;
        self
    }

    pub(super) fn documents_now(&self, keys: &[Key]) -> Vec<Option<Document>> {
        let log = lock(&self.shared.log);
        keys.iter().map(|key| log.document(key).cloned()).collect()
    }
}

impl Store for MemoryStore {
    fn commit(&self, batches: Vec<Batch>) -> BoxFuture<'_, Vec<Result<Committed>>> {
        Box::pin(async move {
            let now = self.shared.env.unix_ms();
            let mut log = lock(&self.shared.log);
            let results = batches.into_iter().map(|batch| log.commit(batch, now)).collect();
            drop(log);
            self.shared.news.notify_waiters();
            results
        })
    }

    fn is_shared(&self) -> bool {
        self.several
    }

    fn read(&self, read: Read) -> BoxFuture<'_, Result<Page>> {
        Box::pin(async move { Ok(lock(&self.shared.log).read(&read)) })
    }

    fn watch(&self, select: Select, after: Position) -> BoxFuture<'_, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            let shared = Arc::clone(&self.shared);
            Ok(Box::new(MemoryWatch { shared, select, position: after }) as Box<dyn Watch>)
        })
    }

    fn document_now(&self, key: &Key) -> Option<Result<Option<Document>>> {
        Some(Ok(self.documents_now(std::slice::from_ref(key)).pop().flatten()))
    }

    fn documents(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Option<Document>>>> {
        Box::pin(async move { Ok(self.documents_now(&keys)) })
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Vec<Document>>> {
        Box::pin(async move { Ok(lock(&self.shared.log).list(&list)) })
    }

    fn history(&self, history: History) -> BoxFuture<'_, Result<Vec<Document>>> {
        Box::pin(async move { Ok(lock(&self.shared.log).history(&history)) })
    }

    fn prune(&self, prune: Prune) -> BoxFuture<'_, Result<Pruned>> {
        Box::pin(async move {
            let now = self.shared.env.unix_ms();
            lock(&self.shared.log).prune(prune, now)
        })
    }
}

impl Watch for MemoryWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Record>>> {
        Box::pin(async move {
            let Self { shared, select, position } = self;
            loop {
                // Listens before it looks, so that a commit in between is heard.
                let mut news = std::pin::pin!(shared.news.notified());
                news.as_mut().enable();
                let read = Read::forward(select.clone()).start(Start::Position(*position));
                let (page, closed) = {
                    let log = lock(&shared.log);
                    (log.read(&read), log.closed)
                };
                if let Some(last) = page.records.last() {
                    *position = last.position;
                    return Ok(page.records);
                }
                if closed {
                    return Err(Error::new(ErrorKind::Closed { what: "the store".to_owned() }));
                }
                // Where a watch begins may lie ahead of the log, in a position kept from another one.
                *position = page.head.max(*position);
                news.await;
            }
        })
    }

    fn position(&self) -> Position {
        self.position
    }
}

impl Log {
    fn commit(&mut self, batch: Batch, now_unix_ms: u64) -> Result<Committed> {
        batch.check()?;
        self.check_conditions(&batch.conditions)?;
        self.check_revisions(&batch.documents)?;
        let Batch { records, documents, conditions: _ } = batch;
        self.at_unix_ms = self.at_unix_ms.max(now_unix_ms);
        let positions: Vec<Position> = records.iter().map(|_| self.advance()).collect();
        for (new, &position) in records.into_iter().zip(&positions) {
            let mut tags = new.tags;
            let bytes = new.bytes;
            let kept: Arc<[Tag]> = tags.as_slice().into();
            self.records.push(Record { position, at_unix_ms: self.at_unix_ms, tags: kept, bytes });
            tags.sort_unstable();
            tags.dedup();
            for tag in tags {
                self.by_tag.entry(tag).or_default().push(number(position));
            }
        }
        let position = match positions.last() {
            Some(&last) => last,
            None => self.advance(),
        };
        self.write(documents, position);
        Ok(Committed { records: positions, position })
    }

    fn check_conditions(&self, conditions: &[Condition]) -> Result<()> {
        conditions.iter().try_for_each(|condition| match condition {
            Condition::Revision { key, revision } => self.check_revision(key, *revision),
            Condition::NoneAfter { tag, after } => {
                let found = self.by_tag.get(&Tag::Declared(Arc::clone(tag))).and_then(|all| all.last());
                match found.map(|&found| Position::from_number(found.into())) {
                    Some(found) if found > *after => Err(Condition::tag_conflict(tag, found)),
                    _ => Ok(()),
                }
            }
        })
    }

    fn check_revisions(&self, writes: &[Write]) -> Result<()> {
        writes.iter().try_for_each(|write| self.check_revision(&write.key, write.expected()))
    }

    fn check_revision(&self, key: &str, expected: u64) -> Result<()> {
        let found = self.document(key).map_or(0, |document| document.revision);
        if found == expected { Ok(()) } else { Err(Condition::revision_conflict(key, expected, found)) }
    }

    fn advance(&mut self) -> Position {
        self.head += 1;
        Position::from_number(self.head.into())
    }

    fn write(&mut self, writes: Vec<Write>, position: Position) {
        for Write { key, revision, content, past, replaced } in writes {
            let Revisions { kept, replaced: now } = self.documents.entry(Arc::clone(&key)).or_default();
            if *now == Replaced::Forgotten {
                kept.pop_back();
            }
            let stay = match past {
                Past::Kept => kept.len(),
                Past::Dropped => 0,
                Past::Last(count) => usize::try_from(count).unwrap_or(usize::MAX),
            };
            kept.drain(..kept.len().saturating_sub(stay));
            let at_unix_ms = self.at_unix_ms;
            kept.push_back(Document { key, revision, position, at_unix_ms, content });
            *now = replaced;
        }
    }

    fn document(&self, key: &str) -> Option<&Document> {
        self.documents.get(key)?.kept.back()
    }

    fn read(&self, read: &Read) -> Page {
        let max = read.records_max.min(PAGE_RECORDS_MAX);
        // One more than asked for tells whether there is more.
        let found = match &read.select {
            Select::All => self.all(read, max + 1),
            Select::Tagged(tags) => self.tagged(tags, read, max + 1),
        };
        let mut bytes = 0;
        let records = found.iter().take(max).enumerate().take_while(|(index, record)| {
            bytes += record.bytes.len();
            *index == 0 || bytes <= PAGE_BYTES_MAX
        });
        let records: Vec<Record> = records.map(|(_, record)| (*record).clone()).collect();
        // A page of no records tells the head and leads nowhere.
        let next = records.last().filter(|_| found.len() > records.len()).map(|last| last.position);
        Page { records, next, head: Position::from_number(self.head.into()) }
    }

    /// The part of all records that lies in the direction of reading.
    fn range(&self, read: &Read) -> &[Record] {
        let all = &self.records;
        match (read.start, read.order) {
            (Start::Edge, _) => all,
            (Start::Position(position), Order::Forward) => {
                &all[all.partition_point(|record| record.position <= position)..]
            }
            (Start::Position(position), Order::Backward) => {
                &all[..all.partition_point(|record| record.position < position)]
            }
            (Start::Time(unix_ms), Order::Forward) => {
                &all[all.partition_point(|record| record.at_unix_ms < unix_ms)..]
            }
            (Start::Time(unix_ms), Order::Backward) => {
                &all[..all.partition_point(|record| record.at_unix_ms <= unix_ms)]
            }
        }
    }

    fn all(&self, read: &Read, max: usize) -> Vec<&Record> {
        let range = self.range(read);
        match read.order {
            Order::Forward => range.iter().take(max).collect(),
            Order::Backward => range.iter().rev().take(max).collect(),
        }
    }

    fn tagged(&self, tags: &[Tag], read: &Read, max: usize) -> Vec<&Record> {
        let range = self.range(read);
        let (Some(first), Some(last)) = (range.first(), range.last()) else { return Vec::new() };
        let (first, last) = (number(first.position), number(last.position));
        let mut found: Vec<u64> = Vec::new();
        for positions in tags.iter().filter_map(|tag| self.by_tag.get(tag)) {
            let from = positions.partition_point(|&position| position < first);
            let to = positions.partition_point(|&position| position <= last);
            let positions = &positions[from..to];
            match read.order {
                Order::Forward => found.extend(positions.iter().take(max)),
                Order::Backward => found.extend(positions.iter().rev().take(max)),
            }
        }
        found.sort_unstable();
        found.dedup();
        if read.order == Order::Backward {
            found.reverse();
        }
        found.truncate(max);
        let record = |position: u64| {
            let index = range.binary_search_by_key(&position, |record| number(record.position)).ok()?;
            range.get(index)
        };
        found.into_iter().filter_map(record).collect()
    }

    fn list(&self, list: &List) -> Vec<Document> {
        let start = match &list.after {
            Some(after) if **after >= *list.prefix => Bound::Excluded(&**after),
            _ => Bound::Included(&*list.prefix),
        };
        let found = self.documents.range::<str, _>((start, Bound::Unbounded));
        let found = found.take_while(|(key, _)| key.starts_with(&*list.prefix));
        let current = found.filter_map(|(_, revisions)| revisions.kept.back());
        page(current.filter(|document| document.content.is_some()), list.documents_max)
    }

    fn history(&self, history: &History) -> Vec<Document> {
        let Some(revisions) = self.documents.get(&history.key) else { return Vec::new() };
        let selected = revisions.kept.iter().rev().filter(|document| match history.until {
            Until::Now => true,
            Until::At(position) => document.position <= position,
            Until::Before(revision) => document.revision < revision,
        });
        page(selected, history.documents_max)
    }

    fn prune(&mut self, prune: Prune, now_unix_ms: u64) -> Result<Pruned> {
        let Prune { before, records, keep, histories, documents } = prune;
        if !documents.is_empty() {
            let anchors = Batch { documents, ..Batch::default() };
            self.commit(anchors, now_unix_ms)?;
        }
        let keep = Select::Tagged(keep);
        let goes = |record: &Record| {
            record.position < before && records.matches(&record.tags) && !keep.matches(&record.tags)
        };
        let mut gone: Vec<u64> = Vec::new();
        self.records.retain(|record| {
            let goes = goes(record);
            if goes {
                gone.push(number(record.position));
            }
            !goes
        });
        if !gone.is_empty() {
            self.by_tag.retain(|_, positions| {
                positions.retain(|position| gone.binary_search(position).is_err());
                !positions.is_empty()
            });
        }
        let mut pruned = Pruned { records: gone.len() as u64, revisions: 0 };
        for prefix in &histories {
            self.documents.retain(|key, Revisions { kept: revisions, .. }| {
                if !key.starts_with(&**prefix) {
                    return true;
                }
                let len = revisions.len();
                // A revision goes when its successor, which replaced it, lies before the position.
                while revisions.get(1).is_some_and(|successor| successor.position < before) {
                    revisions.pop_front();
                }
                let deleted = |document: &Document| document.content.is_none() && document.position < before;
                if revisions.len() == 1 && revisions.front().is_some_and(deleted) {
                    revisions.pop_front();
                }
                pruned.revisions += (len - revisions.len()) as u64;
                !revisions.is_empty()
            });
        }
        Ok(pruned)
    }
}

/// As many documents as a page may have.
pub(super) fn page<'d>(documents: impl Iterator<Item = &'d Document>, max: usize) -> Vec<Document> {
    let mut bytes = 0;
    let documents = documents.take(max.min(PAGE_RECORDS_MAX)).enumerate().take_while(|(index, document)| {
        bytes += document.content.as_ref().map_or(0, |content| content.bytes.len());
        *index == 0 || bytes <= PAGE_BYTES_MAX
    });
    documents.map(|(_, document)| document.clone()).collect()
}

/// A position of this store as it counts them.
fn number(position: Position) -> u64 {
    u64::try_from(position.number()).unwrap_or(u64::MAX)
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        lock(&self.shared.log).closed = true;
        self.shared.news.notify_waiters();
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = lock(&self.shared.log);
        write!(f, "MemoryStore({} records, {} documents)", log.records.len(), log.documents.len())
    }
}

impl fmt::Debug for MemoryWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryWatch(after {})", self.position)
    }
}
