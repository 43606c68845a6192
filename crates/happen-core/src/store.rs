//! The Store seam: what the framework asks of whatever remembers. Owns the operations, their promises and the checks
//! that every store makes alike; does not know what the bytes mean, who writes them, or where they are kept.
//!
//! A store has one **log** of records, each with tags, and **documents**, each with a key and a revision. Everything
//! that is remembered goes in by [`Store::commit`], and everything that has to be true beforehand goes with it as a
//! condition. A journal, exactly once, compare-and-set, an outbox, snapshots and checkpoints are the same operation.
//!
//! Every implementation passes `happen_testing::store_contract!`, which has a test for each promise made here.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::env::BoxFuture;
use crate::error::{Error, ErrorKind, Result};
use crate::id::EventId;
use crate::limits;

/// What remembers: one log of records and any number of documents. One value serves a whole space.
///
/// # Delivery
///
/// A commit is durable, to the degree that the store states, when its future ends with `Ok`. Whatever was committed so
/// is seen by every call on the same store that begins afterwards: a store whose indexes follow its log waits for
/// them. What other processes commit is seen as fresh as the store states; [`Page::head`] says how far it knew.
///
/// # Cancel safety
///
/// Dropping the future of a commit leaves it open whether its batches are committed, each of them whole or not at all;
/// conditions make it safe to try again. Dropping any other future changes nothing.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Commits batches in this order and says of each what became of it, in the same order.
    ///
    /// A batch is committed whole or not at all, and only when all its conditions hold and every document it writes
    /// has the revision before the written one. Conditions see what the earlier batches of the same call wrote, so
    /// one may build on another; a batch that fails does not stop those behind it, and fails only those that build
    /// on it. No reader sees a batch before all earlier ones of the log.
    ///
    /// # Errors
    ///
    /// For each batch:
    ///
    /// - [`ErrorKind::Conflict`]: a condition or a revision did not hold. Read again, decide again.
    /// - [`ErrorKind::Misuse`], [`ErrorKind::Oversized`]: what [`Batch::check`] says.
    /// - [`ErrorKind::Io`]: it may be committed or not. A retry with the same conditions finds out.
    /// - [`ErrorKind::Closed`]: the store was closed.
    fn commit(&self, batches: Vec<Batch>) -> BoxFuture<'_, Vec<Result<Committed>>>;

    /// How many calls of [`Store::commit`] may be under way that build on one another.
    ///
    /// A store that gives more than 1 commits what it is called for in the order in which the futures were polled first,
    /// so a batch may build on one of an earlier call that has not ended. As given a store keeps no order, and whoever
    /// needs one waits for each call before the next.
    fn commits_in_order(&self) -> usize {
        1
    }

    /// Whether other processes may commit to the same log meanwhile.
    ///
    /// A space over such a store says in it which nodes are its own, and gives way when another process takes them over.
    fn is_shared(&self) -> bool {
        false
    }

    /// A page of the log: selected records from a place on, in one of both directions.
    ///
    /// A page ends after [`Read::records_max`] records, after [`limits::PAGE_RECORDS_MAX`], or when it would have more
    /// than [`limits::PAGE_BYTES_MAX`] bytes; it has at least one record when there is one and one was asked for.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] or [`ErrorKind::Closed`]; a store that checks what it reads also says which record is damaged.
    fn read(&self, read: Read) -> BoxFuture<'_, Result<Page>>;

    /// Follows the log: selected records after a position, those there are and then those that come.
    ///
    /// However many writers there are, no record is left out and none comes twice, in the order of positions. Only
    /// what was pruned before it was given is never given.
    ///
    /// # Errors
    ///
    /// As [`Store::read`].
    fn watch(&self, select: Select, after: Position) -> BoxFuture<'_, Result<Box<dyn Watch>>>;

    /// The documents with these keys, in the same order, all as they were at one point of the log.
    ///
    /// `None` stands for a key that was never written or whose deletion was pruned: its revision is 0. A deleted
    /// document is given without content, because its revision counts on.
    ///
    /// # Errors
    ///
    /// As [`Store::read`].
    fn documents(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Option<Document>>>>;

    /// A document, for a caller that cannot wait: the state of a node is read by a function that gives its value at once.
    ///
    /// A store answers that has its documents in this process or on a disk of this machine, and then without needing
    /// the runtime of the caller. As given a store has no answer, and nodes over it read their documents beforehand.
    ///
    /// # Errors
    ///
    /// As [`Store::read`].
    fn document_now(&self, key: &Key) -> Option<Result<Option<Document>>> {
        let _ = key;
        None
    }

    /// The documents whose keys begin with a text, in the order of their keys' bytes, deleted ones left out.
    ///
    /// Bounded like a page of [`Store::read`], with documents for records. An empty list means that there are no more.
    ///
    /// # Errors
    ///
    /// As [`Store::read`].
    fn list(&self, list: List) -> BoxFuture<'_, Result<Vec<Document>>>;

    /// The revisions of a document, the newest first: the current one and those that were kept.
    ///
    /// Bounded like a page of [`Store::read`]. An empty list means that there are no more.
    ///
    /// # Errors
    ///
    /// As [`Store::read`].
    fn history(&self, history: History) -> BoxFuture<'_, Result<Vec<Document>>>;

    /// Forgets records and past revisions, and writes documents in the same atomic step: what was forgotten is told
    /// there, by an anchor.
    ///
    /// The log keeps its positions, so readers and watchers go on. A condition on a tag sees only records that are
    /// still there; whoever relies on one keeps the records of its tag.
    ///
    /// # Errors
    ///
    /// As [`Store::commit`]; nothing is forgotten then.
    fn prune(&self, prune: Prune) -> BoxFuture<'_, Result<Pruned>>;
}

impl dyn Store {
    /// The document with this key.
    ///
    /// # Errors
    ///
    /// As [`Store::documents`].
    pub async fn document(&self, key: &str) -> Result<Option<Document>> {
        let mut found = self.documents(vec![key.into()]).await?;
        Ok(found.pop().flatten())
    }
}

/// A reader that follows the log.
pub trait Watch: fmt::Debug + Send {
    /// The next records, as soon as there are any: at least one, at most a page.
    ///
    /// # Errors
    ///
    /// As [`Store::read`]; [`ErrorKind::Closed`] once the store has gone. After [`ErrorKind::Io`] a further call goes on
    /// where this one stood.
    ///
    /// # Cancel safety
    ///
    /// A record counts as given when the future ends with it. Dropping the future before loses nothing.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Record>>>;

    /// The position up to which everything selected was given. A watch that starts there misses nothing.
    fn position(&self) -> Position;
}

/// The key of a document, at most [`limits::KEY_BYTES_MAX`] bytes.
pub type Key = Arc<str>;

/// Bytes as they were written.
pub type Bytes = Arc<[u8]>;

/// What is committed at once or not at all.
///
/// Not to be confused with [`Batch`](crate::Batch), which is events handled together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Records to be added to the log, in this order, without other records between them.
    pub records: Vec<NewRecord>,
    /// Documents to be written, each at most once.
    pub documents: Vec<Write>,
    /// What has to hold.
    pub conditions: Vec<Condition>,
}

/// A record before it has its position.
#[derive(Debug, Clone)]
pub struct NewRecord {
    /// What it is found by.
    pub tags: Vec<Tag>,
    /// What it says.
    pub bytes: Bytes,
}

/// A new revision of a document.
#[derive(Debug, Clone)]
pub struct Write {
    /// Which document.
    pub key: Key,
    /// The revision that this write makes, from 1. The document must have the one before, and 0 is that of a document
    /// which was never written. The writer counts, so it can write again before it knows that this was committed.
    pub revision: u64,
    /// What it says from now on; `None` deletes it.
    pub content: Option<Content>,
    /// What becomes of the revisions before.
    pub past: Past,
    /// What becomes of the written revision once there is a newer one.
    pub replaced: Replaced,
}

/// What a document says, with the name and version of its shape, which tell how the bytes are to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The name of the shape, such as the name of a state.
    pub name: Arc<str>,
    /// The version of the shape.
    pub version: u32,
    /// The encoded content, at most [`limits::DOCUMENT_BYTES_MAX`] bytes.
    pub bytes: Bytes,
}

/// What becomes of the revisions of a document that are no longer current.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a store has to know what to do in every case")]
pub enum Past {
    /// They stay readable by [`Store::history`] until they are pruned.
    Kept,
    /// So many of those before the written one stay, as far as they were kept until now; older ones are forgotten. Only
    /// those count that are kept.
    Last(u32),
    /// They are forgotten, this time and those of earlier writes.
    #[default]
    Dropped,
}

/// What becomes of a revision when it is replaced, as its writer says: the one who replaces it need not know why it was
/// written. Revision numbers that are missing from a history show where such revisions were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a store has to know what to do in every case")]
pub enum Replaced {
    /// It stays as far as the [`Past`] of what replaces it says.
    #[default]
    Kept,
    /// It is forgotten, whatever that says, and those before it stay as if it had never been.
    Forgotten,
}

/// What has to hold for a batch to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a store that overlooked a condition would break its promise")]
pub enum Condition {
    /// The document has this revision, also when the batch does not write it. 0 stands for never written.
    Revision {
        /// Which document.
        key: Key,
        /// The revision.
        revision: u64,
    },
    /// No record with this declared tag stands behind this position of the log.
    NoneAfter {
        /// The text of a [`Tag::Declared`].
        tag: Arc<str>,
        /// The position; usually the [`Page::head`] of what was read to decide.
        after: Position,
    },
}

/// What records are found by.
///
/// The kinds but the last are what most records have; a store may keep them in columns of their own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Tag {
    /// The event that a record is about.
    Event(EventId),
    /// What caused that event.
    Cause(EventId),
    /// The correlation of the event.
    Correlation(Arc<str>),
    /// The id of the node that handled it.
    Node(Arc<str>),
    /// The event's type.
    Type(Arc<str>),
    /// The id of the node that sent it.
    Sender(Arc<str>),
    /// A text that the writer declared. Conditions may name it.
    Declared(Arc<str>),
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The positions of its records, in order.
    pub records: Vec<Position>,
    /// The position of the batch: that of its last record, or one of its own when it has none.
    pub position: Position,
}

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub position: Position,
    /// When it was committed, in milliseconds since 1970. Never less than that of the record before: a store raises
    /// the time when its clock went back.
    pub at_unix_ms: u64,
    /// What it is found by, as it was written.
    pub tags: Arc<[Tag]>,
    /// What it says, as it was written.
    pub bytes: Bytes,
}

/// A revision of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Which document.
    pub key: Key,
    /// Which revision, from 1, one more for each write.
    pub revision: u64,
    /// The position of the batch that wrote it.
    pub position: Position,
    /// When it was committed, as in [`Record::at_unix_ms`].
    pub at_unix_ms: u64,
    /// What it says; `None` when this revision is a deletion.
    pub content: Option<Content>,
}

/// A place in the log, given by the commit, in the order of commits.
///
/// Positions of one log can be compared and kept; their distance means nothing. [`Position::START`] is before all.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u128);

/// Which records.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a store has to know what to select in every case")]
pub enum Select {
    /// All.
    All,
    /// Those that have at least one of these tags; each once, whatever number of them it has. None for no tags.
    Tagged(Vec<Tag>),
}

/// What part of the log is read.
#[derive(Debug, Clone)]
pub struct Read {
    /// Which records.
    pub select: Select,
    /// Where reading starts.
    pub start: Start,
    /// In which direction it goes on.
    pub order: Order,
    /// After how many records the page ends at the latest. A page of 0 tells the head of the log.
    pub records_max: usize,
}

/// Where reading starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a store has to know where to start in every case")]
pub enum Start {
    /// At the oldest record, or backwards at the newest.
    Edge,
    /// At the first record behind this position, or backwards before it; the record there is left out.
    Position(Position),
    /// At the first record committed at this time or later, or backwards at the last one committed then or earlier;
    /// in milliseconds since 1970.
    Time(u64),
}

/// In which direction the log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are two directions")]
pub enum Order {
    /// From older to newer.
    Forward,
    /// From newer to older.
    Backward,
}

/// A page of the log.
#[derive(Debug, Clone)]
pub struct Page {
    /// The records, in the order asked for.
    pub records: Vec<Record>,
    /// Where to go on with [`Start::Position`]; `None` when nothing further is selected in this direction.
    pub next: Option<Position>,
    /// How far the log went when the page was read, whatever was selected. With it as [`Condition::NoneAfter`] a
    /// decision that read to the end is committed only when nothing came between.
    pub head: Position,
}

/// Which documents are listed.
#[derive(Debug, Clone)]
pub struct List {
    /// What their keys begin with.
    pub prefix: Key,
    /// Only keys behind this one, to go on where a list ended.
    pub after: Option<Key>,
    /// How many at most.
    pub documents_max: usize,
}

/// Which revisions of a document are read.
#[derive(Debug, Clone)]
pub struct History {
    /// Which document.
    pub key: Key,
    /// Which revision is the first one, going back from there.
    pub until: Until,
    /// How many at most.
    pub documents_max: usize,
}

/// From which revision on a history goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a store has to know where to start in every case")]
pub enum Until {
    /// From the current one.
    Now,
    /// From the one in force at this position of the log.
    At(Position),
    /// From the one before this revision, to go on where a page ended.
    Before(u64),
}

/// What is forgotten.
#[derive(Debug, Clone)]
pub struct Prune {
    /// Only what lies before this position: records that stand there, revisions whose next kept one stands there, and
    /// documents that were deleted there.
    pub before: Position,
    /// Which records.
    pub records: Select,
    /// Records with one of these tags stay nevertheless.
    pub keep: Vec<Tag>,
    /// What the keys begin with of those documents whose past revisions are forgotten, and which are forgotten wholly
    /// when they were deleted. An empty text stands for all documents.
    pub histories: Vec<Key>,
    /// Documents written in the same step.
    pub documents: Vec<Write>,
}

/// What was forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The number of records.
    pub records: u64,
    /// The number of revisions of documents.
    pub revisions: u64,
}

impl Batch {
    /// Checks what needs no knowledge of the store. Every store does before it commits.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Misuse`]: more than [`limits::BATCH_PARTS_MAX`] parts or none, a document written twice, a
    ///   revision 0, a key or tag that is empty or has more than [`limits::KEY_BYTES_MAX`] bytes, more than
    ///   [`limits::RECORD_TAGS_MAX`] tags.
    /// - [`ErrorKind::Oversized`]: a record over [`limits::RECORD_BYTES_MAX`] or a document over
    ///   [`limits::DOCUMENT_BYTES_MAX`].
    pub fn check(&self) -> Result<()> {
        let parts = self.records.len() + self.documents.len() + self.conditions.len();
        if parts == 0 {
            return Err(Error::misuse("a batch has no record, no document and no condition"));
        }
        if parts > limits::BATCH_PARTS_MAX {
            let max = limits::BATCH_PARTS_MAX;
            return Err(Error::misuse(format!("a batch has {parts} parts and the limit is {max}; split it")));
        }
        self.records.iter().try_for_each(NewRecord::check)?;
        let mut written = HashSet::with_capacity(self.documents.len());
        for write in &self.documents {
            write.check()?;
            if !written.insert(&*write.key) {
                return Err(Error::misuse(format!("a batch writes document `{}` twice", write.key)));
            }
        }
        self.conditions.iter().try_for_each(|condition| match condition {
            Condition::Revision { key, .. } => check_key("document", key),
            Condition::NoneAfter { tag, .. } => check_key("tag", tag),
        })
    }
}

impl NewRecord {
    fn check(&self) -> Result<()> {
        let (tags, max) = (self.tags.len(), limits::RECORD_TAGS_MAX);
        if tags > max {
            return Err(Error::misuse(format!("a record has {tags} tags and the limit is {max}")));
        }
        self.tags.iter().try_for_each(|tag| check_key("tag", &tag.text()))?;
        check_size(self.bytes.len(), limits::RECORD_BYTES_MAX).map_err(|error| error.context("a record"))
    }
}

impl Write {
    fn check(&self) -> Result<()> {
        check_key("document", &self.key)?;
        if self.revision == 0 {
            let key = &self.key;
            return Err(Error::misuse(format!("revision 0 of document `{key}` is the one never written")));
        }
        let Some(content) = &self.content else { return Ok(()) };
        check_size(content.bytes.len(), limits::DOCUMENT_BYTES_MAX)
            .map_err(|error| error.context(format!("document `{}`", self.key)))
    }

    /// The revision that the document must have for this write.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.revision.saturating_sub(1)
    }
}

fn check_key(what: &str, text: &str) -> Result<()> {
    let (bytes, max) = (text.len(), limits::KEY_BYTES_MAX);
    if bytes == 0 {
        return Err(Error::misuse(format!("a {what} has an empty name")));
    }
    if bytes > max {
        return Err(Error::misuse(format!("the name of a {what} has {bytes} bytes and the limit is {max}")));
    }
    Ok(())
}

fn check_size(bytes: usize, bytes_max: usize) -> Result<()> {
    if bytes > bytes_max {
        return Err(Error::new(ErrorKind::Oversized { bytes, bytes_max }));
    }
    Ok(())
}

impl Condition {
    /// The error of a batch whose document has another revision.
    #[must_use]
    pub fn revision_conflict(key: &str, expected: u64, found: u64) -> Error {
        let what = format!("document `{key}` has revision {found} and not {expected}");
        Error::new(ErrorKind::Conflict { what })
    }

    /// The error of a batch because of a record with this tag.
    #[must_use]
    pub fn tag_conflict(tag: &str, found: Position) -> Error {
        Error::new(ErrorKind::Conflict { what: format!("a record with the tag `{tag}` came at {found}") })
    }
}

impl Tag {
    /// The name of the kind, for a store that keeps kind and text.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Event(_) => "event",
            Self::Cause(_) => "cause",
            Self::Correlation(_) => "correlation",
            Self::Node(_) => "node",
            Self::Type(_) => "type",
            Self::Sender(_) => "sender",
            Self::Declared(_) => "declared",
        }
    }

    /// The text: of an id the one it is shown by.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Event(id) | Self::Cause(id) => Cow::Owned(id.to_string()),
            Self::Correlation(text)
            | Self::Node(text)
            | Self::Type(text)
            | Self::Sender(text)
            | Self::Declared(text) => Cow::Borrowed(text),
        }
    }
}

impl Position {
    /// Before every record.
    pub const START: Self = Self(0);

    /// The position with this number. For stores, and for what was kept of [`Position::number`].
    #[must_use]
    pub const fn from_number(number: u128) -> Self {
        Self(number)
    }

    /// A number in the order of positions, to be kept.
    #[must_use]
    pub const fn number(self) -> u128 {
        self.0
    }
}

impl Select {
    /// Those with this tag.
    #[must_use]
    pub fn tag(tag: Tag) -> Self {
        Self::Tagged(vec![tag])
    }

    /// Whether a record with these tags is one of them.
    #[must_use]
    pub fn matches(&self, tags: &[Tag]) -> bool {
        match self {
            Self::All => true,
            Self::Tagged(wanted) => tags.iter().any(|tag| wanted.contains(tag)),
        }
    }
}

impl Read {
    /// From the oldest to the newest, in pages of any size.
    #[must_use]
    pub fn forward(select: Select) -> Self {
        Self { select, start: Start::Edge, order: Order::Forward, records_max: limits::PAGE_RECORDS_MAX }
    }

    /// From the newest to the oldest, in pages of any size.
    #[must_use]
    pub fn backward(select: Select) -> Self {
        Self { order: Order::Backward, ..Self::forward(select) }
    }

    /// The same from another start.
    #[must_use]
    pub fn start(self, start: Start) -> Self {
        Self { start, ..self }
    }

    /// The same with pages of at most so many records.
    #[must_use]
    pub fn at_most(self, records_max: usize) -> Self {
        Self { records_max, ..self }
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Position({})", self.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tags: usize, bytes: usize) -> NewRecord {
        let tags = (0..tags).map(|index| Tag::Declared(index.to_string().into())).collect();
        NewRecord { tags, bytes: vec![0; bytes].into() }
    }

    fn document(key: &str, revision: u64, bytes: usize) -> Write {
        let content = Content { name: "x".into(), version: 1, bytes: vec![0; bytes].into() };
        Write {
            key: key.into(),
            revision,
            content: Some(content),
            past: Past::Dropped,
            replaced: Replaced::Kept,
        }
    }

    fn code(batch: &Batch) -> Option<&'static str> {
        batch.check().err().map(|error| error.code())
    }

    fn records(records: Vec<NewRecord>) -> Batch {
        Batch { records, ..Batch::default() }
    }

    fn documents(documents: Vec<Write>) -> Batch {
        Batch { documents, ..Batch::default() }
    }

    /// The codes with the limit less one, at it, and one over it.
    fn around(limit: usize, batch: impl Fn(usize) -> Batch) -> [Option<&'static str>; 3] {
        [limit - 1, limit, limit + 1].map(|count| code(&batch(count)))
    }

    #[test]
    fn limits_hold_to_the_last_one_allowed() {
        let misuse = [None, None, Some("misuse")];
        let oversized = [None, None, Some("oversized")];
        let tags = |count| records(vec![record(count, 0)]);
        assert_eq!(around(limits::RECORD_TAGS_MAX, tags), misuse);
        let bytes = |count| records(vec![record(0, count)]);
        assert_eq!(around(limits::RECORD_BYTES_MAX, bytes), oversized);
        let bytes = |count| documents(vec![document("a", 1, count)]);
        assert_eq!(around(limits::DOCUMENT_BYTES_MAX, bytes), oversized);
        let key = |count| documents(vec![document(&"k".repeat(count), 1, 0)]);
        assert_eq!(around(limits::KEY_BYTES_MAX, key), misuse);
        let parts = |count| records(vec![record(0, 0); count]);
        assert_eq!(around(limits::BATCH_PARTS_MAX, parts), misuse);
    }

    #[test]
    fn a_batch_that_means_nothing_is_refused() {
        assert_eq!(code(&Batch::default()), Some("misuse"));
        assert_eq!(code(&documents(vec![document("a", 0, 0)])), Some("misuse"));
        assert_eq!(code(&documents(vec![document("", 1, 0)])), Some("misuse"));
        assert_eq!(code(&documents(vec![document("a", 1, 0), document("a", 2, 0)])), Some("misuse"));
        assert_eq!(code(&documents(vec![document("a", 1, 0), document("b", 2, 0)])), None);
        let condition = Condition::NoneAfter { tag: "".into(), after: Position::START };
        assert_eq!(code(&Batch { conditions: vec![condition], ..Batch::default() }), Some("misuse"));
    }

    #[test]
    fn a_record_is_selected_by_any_of_the_tags() {
        let tags = [Tag::Node("orders".into()), Tag::Declared("a".into())];
        assert!(Select::All.matches(&tags));
        assert!(Select::Tagged(vec![Tag::Declared("b".into()), Tag::Declared("a".into())]).matches(&tags));
        assert!(!Select::tag(Tag::Sender("orders".into())).matches(&tags));
        assert!(!Select::Tagged(Vec::new()).matches(&tags));
    }
}
