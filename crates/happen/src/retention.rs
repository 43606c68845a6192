//! What a store forgets: records and past revisions from before a time, but nothing that a flow or a dead letter needs.
//! Owns what has to stay and the anchor that is left of the rest; does not know who prunes or when, and needs no space.

use std::collections::HashSet;
use std::sync::Arc;

use happen_core::codec::WireRecord;
use happen_core::content::ContentHasher;
use happen_core::limits::{PAGE_RECORDS_MAX, RECORD_BYTES_MAX};
use happen_core::store::{
    Content, Document, History, Key, List, Past, Position, Prune, Pruned, Read, Record, Replaced, Select,
    Start, Store, Tag, Until, Write,
};
use happen_core::{Error, ErrorKind, EventId, Result};
use serde::{Deserialize, Serialize};

use crate::durable::keys::{
    ANCHOR, DEAD, FLOWS, FlowKey, INBOX, PROCESSES, REFUSED, SCHEDULES, SEEN, TIMERS,
};
use crate::durable::outbox::waiting_before;
use crate::limits;

/// A plan of what a store forgets: all that is before a time, but what has to stay.
///
/// Records of the events that flows under way and dead letters handle stay, however old they are, of the questions of these
/// flows that are not answered, and of what waits for nodes of other processes. Documents keep what they say now. It works
/// on any store, whether a space runs on it or not.
///
/// # Examples
///
/// ```
/// use happen::retention::Pruning;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = happen::Space::memory();
/// space.global().set("motd", "be kind").await?;
/// space.global().set("motd", "be kind and brief").await?;
///
/// let store = space.store();
/// let pruning = Pruning::before(&store, u64::MAX).await?;
/// assert_eq!(pruning.count(&store).await?.records, 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Pruning {
    before: Position,
    before_unix_ms: u64,
    records: Select,
    keep: Vec<Tag>,
    events_kept: u64,
    histories: Vec<Key>,
}

impl Pruning {
    /// A plan to forget everything that was committed before this time, in milliseconds since 1970, but what is needed.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Misuse`]: more than [`limits::PRUNE_KEPT_MAX`] events from before that time are needed. Let their
    ///   flows end, or name an earlier time.
    /// - [`ErrorKind::Damaged`]: a flow's document cannot be read, or has a key that names no event, so it is not known
    ///   what has to stay.
    /// - What the store says.
    ///
    /// # Cost
    ///
    /// Lists the flows and dead letters, and looks into the log once for every [`limits::JOURNAL_TAGS_MAX`] of them.
    pub async fn before(store: &Arc<dyn Store>, unix_ms: u64) -> Result<Self> {
        let before = first_since(store, unix_ms).await?;
        let needed = needed_before(store, before).await?;
        let waiting = waiting_before(&**store, before).await?;
        if needed.len() > limits::PRUNE_KEPT_MAX {
            return Err(Error::misuse(format!(
                "more than {} flows under way or dead letters are older than that; let them end, or prune what is before \
                 an earlier time",
                limits::PRUNE_KEPT_MAX
            )));
        }
        Ok(Self::keeping(needed, waiting, before, unix_ms))
    }

    /// As [`Pruning::before`], but only as far as no more than [`limits::PRUNE_KEPT_MAX`] events are needed: for a pruning
    /// that nobody looks at, which is better done in part than not at all.
    ///
    /// # Errors
    ///
    /// As there, but for too many events.
    pub async fn as_far_as(store: &Arc<dyn Store>, unix_ms: u64) -> Result<Self> {
        let before = first_since(store, unix_ms).await?;
        let mut needed = needed_before(store, before).await?;
        let waiting = waiting_before(&**store, before).await?;
        match needed.get(limits::PRUNE_KEPT_MAX).copied() {
            None => Ok(Self::keeping(needed, waiting, before, unix_ms)),
            Some(Needed { at, at_unix_ms, .. }) => {
                // Several may begin with one record, so that those before it are fewer.
                needed.retain(|needed| needed.at < at);
                Ok(Self::keeping(needed, waiting, at, at_unix_ms))
            }
        }
    }

    fn keeping(needed: Vec<Needed>, waiting: Vec<Tag>, before: Position, before_unix_ms: u64) -> Self {
        Self {
            before,
            before_unix_ms,
            records: Select::All,
            events_kept: needed.len() as u64,
            keep: needed.into_iter().map(|needed| Tag::Event(needed.event)).chain(waiting).collect(),
            histories: HISTORIES.iter().map(|prefix| Key::from(*prefix)).collect(),
        }
    }

    /// Forgets only records of events of these types; of all types when none is named.
    #[must_use]
    pub fn types(self, types: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Self {
        let types: Vec<_> = types.into_iter().map(|name| Tag::Type(name.into())).collect();
        let records = if types.is_empty() { Select::All } else { Select::Tagged(types) };
        Self { records, ..self }
    }

    /// Keeps the records of events of these types too.
    #[must_use]
    pub fn keep_types(mut self, types: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Self {
        self.keep.extend(types.into_iter().map(|name| Tag::Type(name.into())));
        self
    }

    /// Keeps the past revisions of documents.
    #[must_use]
    pub fn keep_histories(self) -> Self {
        Self { histories: Vec::new(), ..self }
    }

    /// The number of older events whose records stay because flows under way or dead letters need them.
    #[must_use]
    pub const fn events_kept(&self) -> u64 {
        self.events_kept
    }

    /// The position before which everything is forgotten that is not kept.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.before
    }

    /// How much would be forgotten. Changes nothing.
    ///
    /// # Errors
    ///
    /// What the store says.
    ///
    /// # Cost
    ///
    /// Reads the records before the time, and the past of all documents.
    pub async fn count(&self, store: &Arc<dyn Store>) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        self.walk(store, |_, is_forgotten| pruned.records += u64::from(is_forgotten)).await?;
        for prefix in &self.histories {
            let mut after = None;
            loop {
                let list = List { prefix: Key::clone(prefix), after, documents_max: PAGE_RECORDS_MAX };
                let documents = store.list(list).await?;
                let Some(last) = documents.last() else { break };
                for document in &documents {
                    pruned.revisions += self.revisions_of(store, document).await?;
                }
                after = Some(Key::clone(&last.key));
            }
        }
        Ok(pruned)
    }

    /// Forgets. What is forgotten of the log leaves an anchor, which `docs/format.md` describes: how far it goes, and a
    /// hash over all of it and over the anchor before. Nobody who writes waits for it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] when somebody else pruned meanwhile; what the store says. Nothing is forgotten then.
    ///
    /// # Cost
    ///
    /// Reads the records before the time, and what [`Store::prune`] costs.
    pub async fn carry_out(self, store: &Arc<dyn Store>) -> Result<Pruned> {
        let anchor = self.anchor(store).await?;
        let Self { before, records, keep, histories, .. } = self;
        if anchor.is_none() && histories.is_empty() {
            return Ok(Pruned::default());
        }
        store.prune(Prune { before, records, keep, histories, documents: anchor.into_iter().collect() }).await
    }

    /// Goes through the records before the position, each with whether it is forgotten.
    async fn walk(&self, store: &Arc<dyn Store>, mut visit: impl FnMut(&Record, bool)) -> Result<()> {
        let keep: HashSet<&Tag> = self.keep.iter().collect();
        let mut start = Start::Edge;
        loop {
            let page = store.read(Read::forward(Select::All).start(start)).await?;
            for record in &page.records {
                if record.position >= self.before {
                    return Ok(());
                }
                let is_kept = record.tags.iter().any(|tag| keep.contains(tag));
                visit(record, !is_kept && self.records.matches(&record.tags));
            }
            let Some(next) = page.next else { return Ok(()) };
            start = Start::Position(next);
        }
    }

    /// The past revisions of a document that were replaced before the position.
    async fn revisions_of(&self, store: &Arc<dyn Store>, document: &Document) -> Result<u64> {
        let (mut count, mut replaced_at, mut until) =
            (0, document.position, Until::Before(document.revision));
        loop {
            let history = History { key: Key::clone(&document.key), until, documents_max: PAGE_RECORDS_MAX };
            let revisions = store.history(history).await?;
            let Some(last) = revisions.last() else { return Ok(count) };
            for revision in &revisions {
                count += u64::from(replaced_at < self.before);
                replaced_at = revision.position;
            }
            until = Until::Before(last.revision);
        }
    }

    /// The document that tells what is forgotten; `None` when no record is.
    async fn anchor(&self, store: &Arc<dyn Store>) -> Result<Option<Write>> {
        let last = store.document(ANCHOR).await?;
        let revision = last.as_ref().map_or(0, |document| document.revision) + 1;
        let mut hasher = ContentHasher::new();
        if let Some(known) = last.and_then(|document| document.content) {
            hasher.update(&known.bytes);
        }
        let (mut told, mut newest) = (Anchor::default(), None);
        self.walk(store, |record, is_forgotten| {
            let event = record.tags.iter().find_map(|tag| match tag {
                Tag::Event(event) => Some(*event),
                _ => None,
            });
            newest = event.or(newest);
            if is_forgotten {
                hasher.update(&record.position.number().to_le_bytes());
                hasher.update(&record.at_unix_ms.to_le_bytes());
                hasher.update(&record.bytes);
                told.records += 1;
                told.newest = Place::of(record.position);
                told.newest_unix_ms = record.at_unix_ms;
            }
        })
        .await?;
        if told.records == 0 {
            return Ok(None);
        }
        told.event = newest.map(|event| event.to_string());
        told.before = Place::of(self.before);
        told.before_unix_ms = self.before_unix_ms;
        told.hash = hasher.finish().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut bytes = Vec::new();
        happen_core::content::encode_into(&told, "anchor", &mut bytes)?;
        let content = Content { name: "anchor".into(), version: ANCHOR_VERSION, bytes: bytes.into() };
        Ok(Some(Write {
            key: ANCHOR.into(),
            revision,
            content: Some(content),
            past: Past::Kept,
            replaced: Replaced::Kept,
        }))
    }
}

/// What the anchor says: what the last pruning forgot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Anchor {
    /// What is before this position is forgotten, unless it was to be kept.
    before: Place,
    /// The time that stands for, in milliseconds since 1970.
    before_unix_ms: u64,
    /// The last record that is forgotten.
    newest: Place,
    /// When it was committed, in milliseconds since 1970.
    pub(crate) newest_unix_ms: u64,
    /// How many records are.
    records: u64,
    /// The newest event from before the position, forgotten or not.
    event: Option<String>,
    /// The BLAKE3 hash over the bytes of the anchor before this one and, of each record that was forgotten, in the order of
    /// the log, its position (16 bytes, lowest first), its time (8 bytes) and its bytes; in hexadecimal digits.
    hash: String,
}

impl Anchor {
    /// The anchor in a document; `None` when it is one of another form.
    pub(crate) fn of(document: &Document) -> Option<Self> {
        let content = document.content.as_ref().filter(|content| content.version == ANCHOR_VERSION)?;
        happen_core::content::decode(&content.bytes, "anchor").ok()
    }
}

/// A position in an anchor: a number as far as 64 bits go, a text beyond.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Place {
    Number(u64),
    Text(String),
}

impl Default for Place {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl Place {
    fn of(position: Position) -> Self {
        match u64::try_from(position.number()) {
            Ok(number) => Self::Number(number),
            Err(_) => Self::Text(position.to_string()),
        }
    }
}

/// An event whose records have to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Needed {
    /// Where its oldest record stands.
    at: Position,
    at_unix_ms: u64,
    event: EventId,
}

/// The position of the first record that was committed at this time or later, or the one behind the last.
async fn first_since(store: &Arc<dyn Store>, unix_ms: u64) -> Result<Position> {
    let first = Read::forward(Select::All).start(Start::Time(unix_ms)).at_most(1);
    let page = store.read(first).await?;
    Ok(match page.records.first() {
        Some(record) => record.position,
        None => Position::from_number(page.head.number().saturating_add(1)),
    })
}

/// The events that flows and dead letters are for and whose oldest record stands before a position, in the order of the
/// log.
async fn needed_before(store: &Arc<dyn Store>, before: Position) -> Result<Vec<Needed>> {
    let mut needed = Vec::new();
    let named = events_named(store).await?;
    for some in named.chunks(limits::JOURNAL_TAGS_MAX) {
        let mut found = HashSet::new();
        let mut read = Read::forward(Select::Tagged(some.iter().map(|event| Tag::Event(*event)).collect()));
        'pages: loop {
            let page = store.read(read.clone()).await?;
            for record in &page.records {
                if record.position >= before {
                    break 'pages;
                }
                for tag in record.tags.iter() {
                    if let Tag::Event(event) = tag
                        && some.binary_search(event).is_ok()
                        && found.insert(*event)
                    {
                        let (at, at_unix_ms) = (record.position, record.at_unix_ms);
                        needed.push(Needed { at, at_unix_ms, event: *event });
                    }
                }
            }
            let Some(next) = page.next else { break };
            read = read.start(Start::Position(next));
        }
    }
    needed.sort_unstable();
    Ok(needed)
}

/// The events that documents name which need them, each once and in order.
async fn events_named(store: &Arc<dyn Store>) -> Result<Vec<EventId>> {
    let mut events = Vec::new();
    for prefix in NAMING_EVENTS {
        let mut after = None;
        loop {
            let list = List { prefix: prefix.into(), after, documents_max: PAGE_RECORDS_MAX };
            let documents = store.list(list).await?;
            let Some(last) = documents.last() else { break };
            for document in &documents {
                let name = FlowKey::of(&document.key, prefix).ok_or_else(|| nameless(&document.key))?;
                events.push(name.event);
                if prefix == FLOWS {
                    events.extend(unanswered(document)?);
                }
            }
            after = Some(Key::clone(&last.key));
        }
    }
    events.sort_unstable();
    events.dedup();
    Ok(events)
}

/// The questions that a flow has asked and not had answered: without their records they would be asked again, of a node
/// that may have answered.
fn unanswered(flow: &Document) -> Result<Vec<EventId>> {
    let Some(content) = &flow.content else { return Ok(Vec::new()) };
    let form = WireRecord::decode(&content.bytes, RECORD_BYTES_MAX).map_err(|_| {
        let what = format!(
            "document `{}`: it is no flow of this version, so it is unknown what must be kept; use the program that \
             wrote it",
            flow.key
        );
        Error::new(ErrorKind::Damaged { what })
    })?;
    let points = form.step.into_iter().flat_map(|step| step.points);
    Ok(points.filter(|point| point.result.is_none()).filter_map(|point| point.event).collect())
}

#[cold]
fn nameless(key: &str) -> Error {
    let what = format!(
        "document `{key}`: its key names no event, so it is unknown what must be kept; use the program that wrote it"
    );
    Error::new(ErrorKind::Damaged { what })
}

/// Documents that need the events which their keys name as a flow's does.
const NAMING_EVENTS: [&str; 2] = [FLOWS, DEAD];

/// Documents whose past may be forgotten, and which may be forgotten wholly once they were deleted.
const HISTORIES: [&str; 12] = [
    "state/", "entity/", FLOWS, DEAD, INBOX, REFUSED, SEEN, TIMERS, SCHEDULES, PROCESSES, "global/", "large/",
];

/// The version of the anchor's form.
const ANCHOR_VERSION: u32 = 2;
