//! The one thread that writes: it takes whatever waits, checks and writes it in one transaction, syncs once, and
//! answers. Owns positions and times; does not know who asks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use happen_core::env::Env;
use happen_core::store::{
    Batch, Committed, Condition, Content, Document, NewRecord, Order, Past, Position, Prune, Pruned,
    Replaced, Tag, Write,
};
use happen_core::{Error, ErrorKind, Result};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _};
use tokio::sync::{mpsc, oneshot, watch};

use super::fault::{self, Fault};
use super::horizon::{Horizon, Pruning};
use super::packing::{self, Packed};
use super::prune::{Slice, Sweep};
use super::query::{Head, Queries, Range, number, position, run};
use super::rows::{self, Columns};
use super::schema::PUT_LOG;
use crate::limits;

/// What the writer is asked for.
pub(super) enum Call {
    Commit { batches: Vec<Batch>, bytes: usize, at: At, answer: Answer },
    Prune { prune: Prune, at: At, begun: oneshot::Sender<()>, answer: oneshot::Sender<Result<Pruned>> },
}

/// When something is committed, in milliseconds since 1970; none stands for the time at which it is written.
pub(super) type At = Option<u64>;

/// Whom to tell what became of the batches of a call. They go back to where they were made, because memory that another
/// thread frees makes both wait for each other.
type Answer = oneshot::Sender<(Vec<Result<Committed>>, Vec<Batch>)>;

pub(super) struct Writer {
    queries: Queries,
    env: Arc<dyn Env>,
    calls: mpsc::Receiver<Call>,
    news: watch::Sender<i64>,
    head: Head,
    /// The position of the last record that was written here; 0 before the first.
    last_record: i64,
    /// The numbers of names, also of those that this transaction makes.
    names: HashMap<Arc<str>, i64>,
    horizon: Horizon,
    /// Who waits for which pruning.
    sweeps: VecDeque<(Sweep, Option<oneshot::Sender<Result<Pruned>>>)>,
    found: Vec<Option<Found>>,
    /// Groups committed so far.
    groups: u64,
    patience: Patience,
}

/// Whether it is worth while to look for the next call for a moment before the thread sleeps: to be woken takes longer
/// than a step that follows the last one at once.
#[derive(Debug)]
struct Patience {
    /// How many waits go by without looking; none where a second processor is missing that could bring the call.
    skips: Option<u32>,
    /// The waits that go by after the next one in vain.
    penalty: u32,
}

/// Calls that are committed together.
#[derive(Default)]
struct Group {
    calls: Vec<(Vec<Batch>, At, Answer)>,
    bytes: usize,
}

/// Wakes the writer.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A document that is to be written, as it stands.
#[derive(Debug, Clone, Copy)]
struct Found {
    id: i64,
    revision: u64,
    /// Whether it was deleted and the deletion is forgotten.
    forgotten: bool,
    position: i64,
    past: Kept,
    /// Bytes of its content.
    bytes: u64,
    /// What becomes of it when it is replaced.
    replaced: Replaced,
}

/// What is kept of a document's past. Most have none, and then nothing needs to be looked for to drop it; and of most
/// that have one, the numbers tell how many revisions there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kept {
    #[default]
    Nothing,
    /// All revisions back from the current one, up to the oldest that is kept.
    All,
    /// Some of them. They are counted when they may be too many, and how many there may be is kept, because to count a
    /// hundred takes as long as the rest of the write; a pruning makes them fewer without saying so.
    Some { at_most: u32 },
}

/// Why a transaction was given up: the store failed, and not what was asked.
struct GivenUp(Error);

impl Writer {
    /// # Errors
    ///
    /// When the head of the log cannot be read.
    pub(super) fn new(
        connection: Connection,
        env: Arc<dyn Env>,
        calls: mpsc::Receiver<Call>,
        news: watch::Sender<i64>,
    ) -> Result<Self> {
        let queries = Queries::new(connection);
        let head = queries.head()?;
        let horizon = Horizon::load(&queries.connection)?;
        // What was being pruned when the last process ended goes on, and nobody waits for it.
        let sweeps = horizon.prunings.iter().map(|pruning| (Sweep::new(pruning.clone()), None)).collect();
        news.send_replace(head.position);
        Ok(Self {
            queries,
            env,
            calls,
            news,
            head,
            last_record: 0,
            names: HashMap::new(),
            horizon,
            sweeps,
            found: Vec::new(),
            groups: 0,
            patience: Patience::new(),
        })
    }

    /// Writes until nobody can ask any more.
    pub(super) fn run(mut self) {
        let mut waiting = VecDeque::new();
        while self.wait(&mut waiting) {
            match waiting.pop_front() {
                Some(Call::Prune { prune, at, begun, answer }) => {
                    self.begin_prune(&prune, at, answer);
                    // Whoever does not wait any more needs no answer.
                    let _ = begun.send(());
                }
                Some(commit) => {
                    waiting.push_front(commit);
                    self.groups += 1;
                    let slice = self.groups.is_multiple_of(limits::STORE_PRUNE_GROUPS).then_some(Slice::Rare);
                    self.group(&mut waiting, slice);
                }
                None => self.group(&mut waiting, Some(Slice::Small)),
            }
        }
        // The last connection to close carries the write-ahead log over, so that one file has all.
        drop(self.queries.connection.close());
    }

    /// Waits for a call. False when there will be none.
    ///
    /// While there is something to sweep it only waits for a moment, so that sweeping has the time that nobody needs.
    fn wait(&mut self, waiting: &mut VecDeque<Call>) -> bool {
        if !waiting.is_empty() {
            return true;
        }
        if self.sweeps.is_empty() {
            let soon = self.patience.look(|| self.calls.try_recv());
            let call = soon.or_else(|| self.calls.blocking_recv());
            let is_open = call.is_some();
            waiting.extend(call);
            return is_open;
        }
        let unpark = Waker::from(Arc::new(Unpark(thread::current())));
        let mut task = Context::from_waker(&unpark);
        let pause = Duration::from_micros(limits::STORE_PRUNE_PAUSE_US);
        let since = self.env.monotonic();
        // A call that came while the last group was written has left a wake-up behind, which ends the first turn.
        for turn in 0..=2 {
            match self.calls.poll_recv(&mut task) {
                Poll::Ready(Some(call)) => {
                    waiting.push_back(call);
                    return true;
                }
                Poll::Ready(None) => return false,
                Poll::Pending if turn == 2 || self.env.monotonic().saturating_sub(since) >= pause => break,
                Poll::Pending => thread::park_timeout(pause),
            }
        }
        true
    }

    /// Takes commits into a group: those that wait, up to a pruning, which has a transaction of its own.
    fn take(&mut self, waiting: &mut VecDeque<Call>, group: &mut Group) {
        while group.calls.len() < limits::STORE_CALLS_MAX && group.bytes < limits::STORE_GROUP_BYTES_MAX {
            match waiting.pop_front().or_else(|| self.calls.try_recv().ok()) {
                Some(Call::Commit { batches, bytes, at, answer }) => {
                    group.calls.push((batches, at, answer));
                    group.bytes += bytes;
                }
                Some(prune) => return waiting.push_front(prune),
                None => return,
            }
        }
    }

    /// Commits what waits and what comes while that is written: all in one transaction, with one sync. So whoever is
    /// answered and asks again at once is in the next group with all others, and nobody has to wait for it to fill.
    fn group(&mut self, waiting: &mut VecDeque<Call>, slice: Option<Slice>) {
        let mut group = Group::default();
        let committed = self.transaction(|writer| {
            let mut results = Vec::new();
            loop {
                writer.take(waiting, &mut group);
                let Some(new) = group.calls.get(results.len()..).filter(|new| !new.is_empty()) else { break };
                for (batches, at, _) in new {
                    results.push(writer.batches(batches, *at)?);
                }
            }
            let swept = slice.map_or(Ok(None), |slice| writer.sweep(slice))?;
            Ok((results, swept))
        });
        match committed {
            Ok((results, swept)) => {
                self.swept(swept);
                for ((batches, _, answer), results) in group.calls.into_iter().zip(results) {
                    // Whoever does not wait any more needs no answer.
                    drop(answer.send((results, batches)));
                }
            }
            Err(GivenUp(error)) if group.calls.is_empty() => self.give_up_sweeping(&error),
            // One of them may be what cannot be written, or the sweep, so each has a transaction of its own.
            Err(GivenUp(error)) => {
                let alone = group.calls.len() == 1 && (slice.is_none() || self.sweeps.is_empty());
                for (batches, at, answer) in group.calls {
                    let again = if alone {
                        Err(GivenUp(fault::again(&error)))
                    } else {
                        self.transaction(|writer| writer.batches(&batches, at))
                    };
                    let failed = |error: Error| batches.iter().map(|_| Err(fault::again(&error))).collect();
                    let results = again.unwrap_or_else(|GivenUp(error)| failed(error));
                    drop(answer.send((results, batches)));
                }
            }
        }
    }

    /// Runs work in one transaction, whole or not at all.
    fn transaction<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, GivenUp>) -> Result<T, GivenUp> {
        let before = self.head;
        let last_record = self.last_record;
        let what = || "begin a transaction".to_owned();
        run(&self.queries.connection, "BEGIN IMMEDIATE").during(what)?;
        let done = work(self).and_then(|done| {
            // Where the log ends is written down unless its last record tells: that saves most commits a page.
            if self.head.position != before.position && self.last_record != self.head.position {
                self.put_head()?;
            }
            run(&self.queries.connection, "COMMIT").during(|| "commit to the store".to_owned())?;
            Ok(done)
        });
        if done.is_err() {
            if !self.queries.connection.is_autocommit() {
                // SQLite may have rolled back already; what is left is undone here, and a failure changes nothing.
                drop(run(&self.queries.connection, "ROLLBACK"));
            }
            self.head = before;
            self.last_record = last_record;
            self.names.clear();
            self.queries.forget_names();
        } else if self.head.position != before.position {
            self.news.send_replace(self.head.position);
        }
        done
    }

    fn batches(&mut self, batches: &[Batch], at: At) -> Result<Vec<Result<Committed>>, GivenUp> {
        let now = at.unwrap_or_else(|| self.env.unix_ms());
        batches.iter().map(|batch| self.batch(batch, now)).collect()
    }

    /// Checks a batch and writes it. Nothing is written unless everything holds, so nothing needs to be undone.
    fn batch(&mut self, batch: &Batch, now_unix_ms: u64) -> Result<Result<Committed>, GivenUp> {
        if let Err(error) = batch.check() {
            return Ok(Err(error));
        }
        match self.check(batch) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Conflict { .. }) => return Ok(Err(error)),
            Err(error) => return Err(GivenUp(error)),
        }
        self.head.at_unix_ms = self.head.at_unix_ms.max(now_unix_ms);
        let mut records = Vec::with_capacity(batch.records.len());
        for new in &batch.records {
            self.head.position += 1;
            self.insert_record(new)?;
            self.last_record = self.head.position;
            records.push(position(self.head.position));
        }
        if records.is_empty() {
            self.head.position += 1;
        }
        for (index, write) in batch.documents.iter().enumerate() {
            let found = self.found.get(index).copied().flatten();
            self.write_document(write, found)?;
        }
        Ok(Ok(Committed { records, position: position(self.head.position) }))
    }

    /// Checks all conditions and remembers what the documents to be written are.
    fn check(&mut self, batch: &Batch) -> Result<()> {
        for condition in &batch.conditions {
            match condition {
                Condition::Revision { key, revision } => {
                    self.expect(key, *revision)?;
                }
                Condition::NoneAfter { tag, after } => self.expect_none(tag, *after)?,
            }
        }
        self.found.clear();
        for write in &batch.documents {
            let found = self.expect(&write.key, write.expected())?;
            self.found.push(found);
        }
        Ok(())
    }

    fn expect(&self, key: &str, expected: u64) -> Result<Option<Found>> {
        let what = || format!("read the revision of document `{key}`");
        let mut select = self.queries.connection.prepare_cached(REVISION).during(what)?;
        let row = select.query_row([key], |row| {
            let (position, deleted) = (row.get(2)?, row.get::<_, bool>(3)?);
            Ok(Found {
                id: row.get(0)?,
                revision: row.get::<_, i64>(1)? as u64,
                forgotten: deleted && self.horizon.hides_deletion(key, position),
                position,
                past: Kept::from_number(row.get(4)?),
                bytes: row.get::<_, i64>(6)? as u64,
                replaced: if row.get::<_, Option<i64>>(5)?.is_some() {
                    Replaced::Forgotten
                } else {
                    Replaced::Kept
                },
            })
        });
        let found = row.optional().during(what)?;
        let revision = found.map_or(0, |found| if found.forgotten { 0 } else { found.revision });
        if revision == expected {
            Ok(found)
        } else {
            Err(Condition::revision_conflict(key, expected, revision))
        }
    }

    fn expect_none(&mut self, tag: &Arc<str>, after: Position) -> Result<()> {
        let declared = [Tag::Declared(Arc::clone(tag))];
        let mut range = Range { after: number(after), before: i64::MAX };
        loop {
            let found = self.queries.positions(&declared, range, Order::Backward, 1)?;
            let Some(&found) = found.first() else { return Ok(()) };
            let visible = !self.horizon.reaches(found) || {
                let record = self.queries.record_at(found)?;
                !self.horizon.hides(found, &record.tags)
            };
            if visible {
                return Err(Condition::tag_conflict(tag, position(found)));
            }
            range.before = found;
        }
    }

    fn insert_record(&mut self, new: &NewRecord) -> Result<()> {
        let Head { position: place, at_unix_ms } = self.head;
        let what = || "write a record".to_owned();
        let at = at_unix_ms as i64;
        let checksum = rows::record_checksum(place, at, &new.tags, &new.bytes);
        let mut columns = Columns::of(&new.tags);
        let mut name = |kind: u8| match columns.first(kind) {
            Some(Tag::Node(text) | Tag::Type(text) | Tag::Sender(text)) => {
                intern(&self.queries, &mut self.names, text).map(Some)
            }
            _ => Ok(None),
        };
        let (node, event_type, sender) = (name(rows::NODE)?, name(rows::TYPE)?, name(rows::SENDER)?);
        let connection = &self.queries.connection;
        let mut insert = connection.prepare_cached(INSERT_RECORD).during(what)?;
        insert
            .execute(rusqlite::params![
                place,
                at,
                checksum,
                columns.value(rows::EVENT),
                columns.value(rows::CAUSE),
                columns.value(rows::CORRELATION),
                node,
                event_type,
                sender,
                columns.list,
                &new.bytes[..],
            ])
            .during(what)?;
        let further = columns.further();
        if !further.is_empty() {
            let mut insert = connection.prepare_cached(INSERT_TAG).during(what)?;
            for tag in further {
                let value = rows::TagValue::of(tag);
                insert.execute(rusqlite::params![rows::kind(tag), value, place]).during(what)?;
            }
        }
        Ok(())
    }

    fn write_document(&mut self, write: &Write, found: Option<Found>) -> Result<()> {
        let what = || format!("write document `{}`", write.key);
        let place = self.head.position;
        let document = Document {
            key: Arc::clone(&write.key),
            revision: write.revision,
            position: position(place),
            at_unix_ms: self.head.at_unix_ms,
            content: write.content.clone(),
        };
        let checksum = rows::document_checksum(&document, place);
        let (name, version, bytes) = match &write.content {
            None => (None, None, None),
            Some(Content { name, version, bytes }) => {
                (Some(intern(&self.queries, &mut self.names, name)?), Some(*version), Some(&bytes[..]))
            }
        };
        let connection = &self.queries.connection;
        let past = found.map_or(Ok(Kept::Nothing), |found| self.keep_past(write, found))?.number();
        let (revision, at) = (write.revision as i64, self.head.at_unix_ms as i64);
        let replaced = (write.replaced == Replaced::Forgotten).then_some(1);
        match found {
            Some(Found { id, .. }) => {
                let mut update = connection.prepare_cached(UPDATE_DOCUMENT).during(what)?;
                let row = rusqlite::params![
                    id, past, revision, place, at, checksum, name, version, bytes, replaced
                ];
                update.execute(row).during(what)?;
            }
            None => {
                let mut insert = connection.prepare_cached(INSERT_DOCUMENT).during(what)?;
                let key = &*write.key;
                let row = rusqlite::params![
                    key, past, revision, place, at, checksum, name, version, bytes, replaced
                ];
                insert.execute(row).during(what)?;
            }
        }
        Ok(())
    }

    /// Moves what is replaced to the past, as far as it is to be kept; gives what there is of the past then.
    fn keep_past(&self, write: &Write, found: Found) -> Result<Kept> {
        let connection = &self.queries.connection;
        let id = found.id;
        let passes = found.replaced == Replaced::Forgotten;
        // What a pruning under way has forgotten must not come back when the revision goes by which that is known.
        let hidden = passes && self.horizon.hides_before(&write.key, found.position);
        if matches!(write.past, Past::Dropped | Past::Last(0)) || found.forgotten || hidden {
            if found.past != Kept::Nothing {
                // Also what is forgotten and still there, which would be taken for the past of the new one.
                let what = || "forget the past of a document".to_owned();
                connection.prepare_cached(DROP_PAST).during(what)?.execute([id]).during(what)?;
            }
            return Ok(Kept::Nothing);
        }
        let past = match (found.past, passes) {
            (Kept::Nothing, true) => return Ok(Kept::Nothing),
            (Kept::All, true) => Kept::Some { at_most: u32::MAX },
            (Kept::Nothing | Kept::All, false) => Kept::All,
            (Kept::Some { at_most }, true) => Kept::Some { at_most },
            (Kept::Some { at_most }, false) => Kept::Some { at_most: at_most.saturating_add(1) },
        };
        if !passes {
            let what = || "keep the past of a document".to_owned();
            match self.packed(write, found)? {
                Some(Packed { packing, bytes }) => {
                    let mut keep = connection.prepare_cached(KEEP_PAST_PACKED).during(what)?;
                    keep.execute(rusqlite::params![id, bytes, packing]).during(what)?;
                }
                None => {
                    connection.prepare_cached(KEEP_PAST).during(what)?.execute([id]).during(what)?;
                }
            }
        }
        let Past::Last(count) = write.past else { return Ok(past) };
        let what = || "forget the oldest past of a document".to_owned();
        match past {
            Kept::All if found.past == Kept::All => {
                if let Some(oldest) = write.revision.checked_sub(u64::from(count)) {
                    let mut drop_older = connection.prepare_cached(DROP_OLDER).during(what)?;
                    drop_older.execute([id, oldest as i64]).during(what)?;
                }
                Ok(past)
            }
            Kept::Some { at_most } if at_most > count => {
                let mut drop_beyond = connection.prepare_cached(DROP_BEYOND).during(what)?;
                drop_beyond.execute([id, i64::from(count)]).during(what)?;
                Ok(Kept::Some { at_most: count })
            }
            past => Ok(past),
        }
    }

    /// The content that is replaced, made smaller; `None` when it moves as it is.
    fn packed(&self, write: &Write, found: Found) -> Result<Option<Packed>> {
        if !packing::is_worth_it(found.bytes) {
            return Ok(None);
        }
        // What is written now becomes the dictionary, if it stays as long as what is packed with it.
        let next = write.content.as_ref().filter(|_| write.replaced == Replaced::Kept);
        let next = next.map(|content| &content.bytes[..]);
        let what = || format!("read document `{}`", write.key);
        let mut select = self.queries.connection.prepare_cached(CONTENT).during(what)?;
        let mut rows = select.query([found.id]).during(what)?;
        let Some(row) = rows.next().during(what)? else { return Ok(None) };
        let ValueRef::Blob(content) = row.get_ref(0).during(what)? else { return Ok(None) };
        Ok(packing::pack(found.revision, content, next))
    }

    /// Makes a pruning true for everybody; what it forgets is deleted later.
    fn begin_prune(&mut self, prune: &Prune, at: At, answer: oneshot::Sender<Result<Pruned>>) {
        let begun = self.transaction(|writer| {
            if !prune.documents.is_empty() {
                // A pruning may leave no more anchors than a batch has documents.
                let anchors = Batch { documents: prune.documents.clone(), ..Batch::default() };
                let now = at.unwrap_or_else(|| writer.env.unix_ms());
                if let Err(error) = writer.batch(&anchors, now)? {
                    return Ok(Err(error));
                }
            }
            // Records that come later are not meant, however far ahead the position lies.
            let before = number(prune.before).min(writer.head.position.saturating_add(1));
            // The last records tell where the log ends; once they are gone, only this does.
            writer.put_head()?;
            Pruning::insert(&writer.queries.connection, before, prune)?;
            Horizon::load(&writer.queries.connection).map(Ok).map_err(GivenUp)
        });
        match begun {
            Ok(Ok(horizon)) => {
                self.horizon = horizon;
                if let Some(pruning) = self.horizon.prunings.last() {
                    self.sweeps.push_back((Sweep::new(pruning.clone()), Some(answer)));
                }
            }
            Ok(Err(error)) | Err(GivenUp(error)) => drop(answer.send(Err(error))),
        }
    }

    fn put_head(&self) -> Result<()> {
        let what = || "write the head of the log".to_owned();
        let Head { position, at_unix_ms } = self.head;
        let checksum = rows::log_checksum(position, at_unix_ms as i64);
        let mut put = self.queries.connection.prepare_cached(PUT_LOG).during(what)?;
        put.execute(rusqlite::params![position, at_unix_ms as i64, checksum]).during(what)?;
        Ok(())
    }

    /// Deletes a slice of what the oldest pruning forgot; gives how it stands then.
    fn sweep(&mut self, slice: Slice) -> Result<Option<Sweep>, GivenUp> {
        let Some((sweep, _)) = self.sweeps.front() else { return Ok(None) };
        let mut sweep = sweep.clone();
        sweep.slice(&mut self.queries, &*self.env, slice)?;
        Ok(Some(sweep))
    }

    /// Notes what a committed transaction swept.
    fn swept(&mut self, sweep: Option<Sweep>) {
        let (Some(now), Some((kept, _))) = (sweep, self.sweeps.front_mut()) else { return };
        *kept = now;
        if !kept.is_done() {
            return;
        }
        let Some((sweep, answer)) = self.sweeps.pop_front() else { return };
        self.horizon.prunings.retain(|pruning| pruning.id != sweep.id());
        if let Some(answer) = answer {
            drop(answer.send(sweep.result()));
        }
    }

    /// Stops sweeping because the store failed. What is forgotten stays forgotten; the next process goes on.
    fn give_up_sweeping(&mut self, error: &Error) {
        for (_, answer) in self.sweeps.drain(..) {
            if let Some(answer) = answer {
                let error = fault::again(error).context(
                    "what was pruned is forgotten, and its room is freed when the store is opened next",
                );
                drop(answer.send(Err(error)));
            }
        }
    }
}

impl Kept {
    /// As the column `past` has it.
    fn from_number(number: i64) -> Self {
        match number {
            0 => Self::Nothing,
            1 => Self::All,
            more => Self::Some { at_most: u32::try_from(more.saturating_sub(2)).unwrap_or(u32::MAX) },
        }
    }

    fn number(self) -> i64 {
        match self {
            Self::Nothing => 0,
            Self::All => 1,
            Self::Some { at_most } => i64::from(at_most) + 2,
        }
    }
}

impl Patience {
    fn new() -> Self {
        let alone = thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
        Self { skips: (!alone).then_some(0), penalty: 1 }
    }

    /// Looks for a call. Each time that none comes twice as many waits go by without looking, so that calls now and
    /// then cost nothing.
    fn look<T>(&mut self, mut next: impl FnMut() -> Result<T, mpsc::error::TryRecvError>) -> Option<T> {
        let skips = self.skips.as_mut()?;
        if *skips > 0 {
            *skips -= 1;
            return None;
        }
        for _ in 0..limits::STORE_LOOKS_MAX {
            match next() {
                Ok(call) => {
                    self.penalty = 1;
                    return Some(call);
                }
                Err(mpsc::error::TryRecvError::Empty) => std::hint::spin_loop(),
                Err(mpsc::error::TryRecvError::Disconnected) => return None,
            }
        }
        *skips = self.penalty;
        self.penalty = (self.penalty * 2).min(limits::STORE_LOOKS_SKIPPED_MAX);
        None
    }
}

/// The number of a name, which is made if it is new.
fn intern(queries: &Queries, names: &mut HashMap<Arc<str>, i64>, text: &Arc<str>) -> Result<i64> {
    if let Some(&id) = names.get(text) {
        return Ok(id);
    }
    let id = match queries.name_id(text)? {
        Some(id) => id,
        None => {
            let what = || format!("write the name `{text}`");
            let mut insert = queries.connection.prepare_cached(INSERT_NAME).during(what)?;
            insert.insert([&**text]).during(what)?
        }
    };
    if names.len() >= limits::STORE_NAMES_MAX {
        names.clear();
    }
    names.insert(Arc::clone(text), id);
    Ok(id)
}

/// About how many bytes a call writes.
pub(super) fn bytes_of(batches: &[Batch]) -> usize {
    let bytes = |batch: &Batch| -> usize {
        let records = batch.records.iter().map(|record| record.bytes.len());
        let contents = batch.documents.iter().filter_map(|write| write.content.as_ref());
        records.sum::<usize>() + contents.map(|content| content.bytes.len()).sum::<usize>()
    };
    batches.iter().map(bytes).sum()
}

impl From<Error> for GivenUp {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// The answer to whoever asked of a store that ended meanwhile: one for each batch.
pub(super) fn closed(batches: usize) -> Vec<Result<Committed>> {
    (0..batches).map(|_| Err(fault::closed())).collect()
}

pub(super) const REVISION: &str = "SELECT id, revision, position, content IS NULL, past, replaced, \
    ifnull(length(content), 0) FROM documents WHERE key = ?1";
pub(super) const INSERT_RECORD: &str = "INSERT INTO records (position, at_unix_ms, checksum, event, cause, \
    correlation, node, type, sender, tags, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
const INSERT_TAG: &str = "INSERT INTO tags (kind, value, position) VALUES (?1, ?2, ?3)";
const INSERT_NAME: &str = "INSERT INTO names (name) VALUES (?1)";
const INSERT_DOCUMENT: &str = "INSERT INTO documents (key, past, revision, position, at_unix_ms, checksum, \
    name, version, content, replaced) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
const UPDATE_DOCUMENT: &str = "UPDATE documents SET past = ?2, revision = ?3, position = ?4, at_unix_ms = ?5, \
    checksum = ?6, name = ?7, version = ?8, content = ?9, replaced = ?10 WHERE id = ?1";
const KEEP_PAST: &str = "INSERT INTO revisions (document, revision, position, at_unix_ms, checksum, name, \
    version, content) SELECT id, revision, position, at_unix_ms, checksum, name, version, content \
    FROM documents WHERE id = ?1";
const KEEP_PAST_PACKED: &str = "INSERT INTO revisions (document, revision, position, at_unix_ms, checksum, name, \
    version, content, packing) SELECT id, revision, position, at_unix_ms, checksum, name, version, ?2, ?3 \
    FROM documents WHERE id = ?1";
const CONTENT: &str = "SELECT content FROM documents WHERE id = ?1";
const DROP_PAST: &str = "DELETE FROM revisions WHERE document = ?1";
const DROP_OLDER: &str = "DELETE FROM revisions WHERE document = ?1 AND revision < ?2";
/// Where numbers are missing the revisions are counted: an index of some hundred entries is looked at, and no content.
pub(super) const DROP_BEYOND: &str = "DELETE FROM revisions WHERE document = ?1 AND revision <= (SELECT revision \
    FROM revisions WHERE document = ?1 ORDER BY revision DESC LIMIT 1 OFFSET ?2)";

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Call {
        Call::Commit { batches: Vec::new(), bytes: 0, at: None, answer: oneshot::channel().0 }
    }

    /// How many waits go by without looking after the next look, which is in vain.
    fn skipped(patience: &mut Patience, calls: &mut mpsc::Receiver<Call>) -> u32 {
        assert_eq!(patience.skips, Some(0));
        assert!(patience.look(|| calls.try_recv()).is_none());
        let mut skipped = 0;
        while patience.skips != Some(0) {
            assert!(patience.look(|| calls.try_recv()).is_none());
            skipped += 1;
        }
        skipped
    }

    #[test]
    fn looking_in_vain_is_done_more_and_more_rarely() {
        let (send, mut calls) = mpsc::channel(1);
        let mut patience = Patience { skips: Some(0), penalty: 1 };
        let mut most = 1;
        while most < limits::STORE_LOOKS_SKIPPED_MAX {
            assert_eq!(skipped(&mut patience, &mut calls), most);
            most *= 2;
        }
        for _ in 0..3 {
            assert_eq!(skipped(&mut patience, &mut calls), limits::STORE_LOOKS_SKIPPED_MAX);
        }
        // A call that is there when it looks makes it hope again.
        assert!(send.try_send(call()).is_ok());
        assert!(patience.look(|| calls.try_recv()).is_some());
        assert_eq!(skipped(&mut patience, &mut calls), 1);
    }

    #[test]
    fn a_call_that_comes_at_the_last_look_is_found() {
        let max = limits::STORE_LOOKS_MAX;
        for (comes_at, is_found) in [(max - 1, true), (max, true), (max + 1, false)] {
            let mut patience = Patience { skips: Some(0), penalty: 1 };
            let mut looks = 0;
            let found = patience.look(|| {
                looks += 1;
                if looks == comes_at { Ok(looks) } else { Err(mpsc::error::TryRecvError::Empty) }
            });
            assert_eq!((found.is_some(), looks), (is_found, comes_at.min(max)));
            assert_eq!(patience.skips, Some(u32::from(!is_found)), "it looks again unless this was in vain");
        }
    }

    #[test]
    fn nobody_looks_where_a_single_processor_would_have_to_bring_the_call() {
        let (send, mut calls) = mpsc::channel(1);
        let mut patience = Patience { skips: None, penalty: 1 };
        assert!(send.try_send(call()).is_ok());
        assert!(patience.look(|| calls.try_recv()).is_none());
        assert!(calls.try_recv().is_ok());
    }
}
