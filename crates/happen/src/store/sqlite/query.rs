//! What is asked of the database, by a reader as by the writer: a connection, the names it remembers, and every
//! statement that selects. Owns that nothing leaves unchecked; does not know threads.

use std::collections::HashMap;
use std::sync::Arc;

use happen_core::limits::{PAGE_BYTES_MAX, PAGE_RECORDS_MAX};
use happen_core::store::{
    Bytes, Content, Document, History, Key, List, Order, Page, Position, Read, Record, Select, Start, Tag,
    Until,
};
use happen_core::{Error, ErrorKind, EventId, Result};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::fault::{self, Fault};
use super::horizon::Horizon;
use super::packing;
use super::rows::{self, TagValue};
use super::schema;
use crate::limits;

/// A connection and what it remembers of names.
pub(super) struct Queries {
    pub(super) connection: Connection,
    names: HashMap<i64, Arc<str>>,
}

/// Between which positions is looked, both left out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) after: i64,
    pub(super) before: i64,
}

/// What the log says of its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) position: i64,
    pub(super) at_unix_ms: u64,
}

impl Queries {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, names: HashMap::new() }
    }

    /// Forgets names that a transaction made which was undone.
    pub(super) fn forget_names(&mut self) {
        self.names.clear();
    }

    /// Runs questions that all see one point of the log.
    pub(super) fn snapshot<T>(&mut self, ask: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let what = || "begin to read".to_owned();
        run(&self.connection, "BEGIN").during(what)?;
        let asked = ask(self);
        let ended = run(&self.connection, "COMMIT").during(what);
        let answer = asked?;
        ended?;
        Ok(answer)
    }

    pub(super) fn head(&self) -> Result<Head> {
        let what = || "read the head of the log".to_owned();
        let mut log = self.connection.prepare_cached(LOG).during(what)?;
        let kept = log.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        let kept: Option<(i64, i64, i64)> = kept.optional().during(what)?;
        let Some((head, at, checksum)) = kept else {
            return Err(fault::damaged("the head of the log, which is not there; restore a backup"));
        };
        if checksum != rows::log_checksum(head, at) {
            return Err(fault::damaged(
                "the head of the log; records are readable by a copy of the folder and `sqlite3`; restore a backup",
            ));
        }
        let mut last = self.connection.prepare_cached(LAST).during(what)?;
        let last: Option<(i64, i64)> =
            last.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional().during(what)?;
        let (position, last_at) = last.unwrap_or((0, 0));
        Ok(Head { position: position.max(head), at_unix_ms: at.max(last_at) as u64 })
    }

    pub(super) fn read(&mut self, read: &Read) -> Result<Page> {
        self.snapshot(|queries| {
            let head = queries.head()?;
            let horizon = Horizon::load(&queries.connection)?;
            let mut page = Filling::new(read.records_max.min(PAGE_RECORDS_MAX));
            if page.max > 0 {
                let range = queries.range(read, &horizon)?;
                let filled = match &read.select {
                    Select::All => queries.all(range, read.order, &horizon, &mut page),
                    Select::Tagged(tags) => queries.tagged(tags, range, read.order, &horizon, &mut page),
                };
                match filled {
                    // What lies before damage is given first; the next page begins with the damage and tells of it.
                    Err(error) if is_damage(&error) && !page.records.is_empty() => page.more = true,
                    filled => filled?,
                }
            }
            let next = page.records.last().filter(|_| page.more).map(|last| last.position);
            Ok(Page { records: page.records, next, head: position(head.position) })
        })
    }

    fn range(&mut self, read: &Read, horizon: &Horizon) -> Result<Range> {
        let everything = Range { after: horizon.first() - 1, before: i64::MAX };
        let forward = read.order == Order::Forward;
        let range = match (read.start, forward) {
            (Start::Edge, _) => everything,
            (Start::Position(from), true) => Range { after: number(from), ..everything },
            (Start::Position(from), false) => Range { before: number(from), ..everything },
            (Start::Time(unix_ms), true) => Range { after: self.place_of(unix_ms)? - 1, ..everything },
            (Start::Time(unix_ms), false) => match unix_ms.checked_add(1) {
                Some(later) => Range { before: self.place_of(later)?, ..everything },
                None => everything,
            },
        };
        Ok(Range { after: range.after.max(everything.after), ..range })
    }

    /// The position of the first record committed at this time or later, or any behind the last record.
    fn place_of(&mut self, unix_ms: u64) -> Result<i64> {
        let what = || "find the ends of the log".to_owned();
        let ends = |sql: &str| -> Result<Option<i64>> {
            let mut statement = self.connection.prepare_cached(sql).during(what)?;
            statement.query_row([], |row| row.get(0)).optional().during(what)
        };
        let (Some(mut low), Some(last)) = (ends(FIRST)?, ends(LAST)?) else { return Ok(1) };
        let mut high = last.saturating_add(1);
        // Times ascend with the positions, so each turn halves what is left: 63 at most.
        while low < high {
            let middle = low + (high - low) / 2;
            let range = Range { after: middle - 1, before: high };
            match self.first_in(range)? {
                Some(record) if record.at_unix_ms < unix_ms => low = number(record.position) + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    fn first_in(&mut self, range: Range) -> Result<Option<Record>> {
        let Self { connection, names } = self;
        let what = || "read a record".to_owned();
        let mut statement = connection.prepare_cached(ALL_FORWARD).during(what)?;
        let mut found = statement.query([range.after, range.before]).during(what)?;
        let row = found.next().during(what)?;
        row.map(|row| record(connection, names, row)).transpose()
    }

    fn all(&mut self, range: Range, order: Order, horizon: &Horizon, page: &mut Filling) -> Result<()> {
        let Self { connection, names } = self;
        let sql = match order {
            Order::Forward => ALL_FORWARD,
            Order::Backward => ALL_BACKWARD,
        };
        let mut last = None;
        let what = |last: Option<i64>| match last {
            None => format!("read the log between {} and {}", range.after, range.before),
            Some(last) => format!("read the log on from position {last}"),
        };
        let mut statement = connection.prepare_cached(sql).during(|| what(last))?;
        let mut found = statement.query([range.after, range.before]).during(|| what(last))?;
        while let Some(row) = found.next().during(|| what(last))? {
            let record = record(connection, names, row)?;
            let place = number(record.position);
            // A damaged inner page may lead to the same rows twice, or to rows of another part of the log.
            let in_order = last.is_none_or(|last| match order {
                Order::Forward => place > last,
                Order::Backward => place < last,
            });
            if !in_order || place <= range.after || place >= range.before {
                return Err(fault::damaged(format!(
                    "the order of the log: position {place} came where it does not belong; keep a copy of the \
                     folder and restore a backup"
                )));
            }
            last = Some(place);
            if !horizon.hides(place, &record.tags) && !page.take(record) {
                break;
            }
        }
        Ok(())
    }

    fn tagged(
        &mut self,
        tags: &[Tag],
        range: Range,
        order: Order,
        horizon: &Horizon,
        page: &mut Filling,
    ) -> Result<()> {
        let mut rest = range;
        loop {
            // One more than fits tells whether there is more.
            let max = page.max + 1 - page.records.len().min(page.max);
            let positions = self.positions(tags, rest, order, max)?;
            for &place in &positions {
                let record = self.record_at(place)?;
                if !tags.iter().any(|tag| record.tags.contains(tag)) {
                    return Err(fault::record(place, "an index finds it by a tag that it does not have"));
                }
                if !horizon.hides(place, &record.tags) && !page.take(record) {
                    return Ok(());
                }
            }
            match (positions.last(), order) {
                (Some(&last), _) if positions.len() == max => match order {
                    Order::Forward => rest.after = last,
                    Order::Backward => rest.before = last,
                },
                _ => return Ok(()),
            }
        }
    }

    /// The first positions of records that have one of these tags, in this order.
    pub(super) fn positions(&self, tags: &[Tag], range: Range, order: Order, max: usize) -> Result<Vec<i64>> {
        let mut found = Vec::new();
        for tag in tags {
            self.positions_of(tag, range, order, max, &mut found)?;
        }
        found.sort_unstable();
        found.dedup();
        if order == Order::Backward {
            found.reverse();
        }
        found.truncate(max);
        Ok(found)
    }

    fn positions_of(
        &self,
        tag: &Tag,
        range: Range,
        order: Order,
        max: usize,
        found: &mut Vec<i64>,
    ) -> Result<()> {
        let Some(kind) = rows::kind(tag) else { return Ok(()) };
        let what = || format!("find records by their {}", tag.kind());
        let max = max as i64;
        let value = TagValue::of(tag);
        let mut from = |sql: &str, values: &[&dyn rusqlite::ToSql]| -> Result<()> {
            let mut statement = self.connection.prepare_cached(sql).during(what)?;
            let mut rows = statement.query(values).during(what)?;
            while let Some(row) = rows.next().during(what)? {
                found.push(row.get(0).during(what)?);
            }
            Ok(())
        };
        let (forward, backward) = TAG_ROWS;
        let sql = if order == Order::Forward { forward } else { backward };
        from(sql, &[&kind, &value, &range.after, &range.before, &max])?;
        let Some((forward, backward)) = column(kind) else { return Ok(()) };
        let sql = if order == Order::Forward { forward } else { backward };
        match (kind, &value) {
            (rows::NODE | rows::TYPE | rows::SENDER, TagValue::Text(name)) => match self.name_id(name)? {
                Some(id) => from(sql, &[&id, &range.after, &range.before, &max]),
                None => Ok(()),
            },
            _ => from(sql, &[&value, &range.after, &range.before, &max]),
        }
    }

    pub(super) fn name_id(&self, name: &str) -> Result<Option<i64>> {
        let what = || format!("look up the name `{name}`");
        let mut statement = self.connection.prepare_cached(NAME_ID).during(what)?;
        statement.query_row([name], |row| row.get(0)).optional().during(what)
    }

    pub(super) fn record_at(&mut self, place: i64) -> Result<Record> {
        let Self { connection, names } = self;
        let what = || format!("read the record at position {place}");
        let mut statement = connection.prepare_cached(RECORD).during(what)?;
        let mut found = statement.query([place]).during(what)?;
        match found.next().during(what)? {
            Some(row) => record(connection, names, row),
            None => Err(fault::record(place, "an index names it, and it is not there")),
        }
    }

    pub(super) fn documents(&mut self, keys: &[Key]) -> Result<Vec<Option<Document>>> {
        self.snapshot(|queries| {
            let horizon = Horizon::load(&queries.connection)?;
            keys.iter().map(|key| Ok(queries.document(key, &horizon)?.map(|(_, found)| found))).collect()
        })
    }

    /// A document with its number in the tables, unless its deletion is forgotten.
    fn document(&mut self, key: &str, horizon: &Horizon) -> Result<Option<(i64, Document)>> {
        let Self { connection, names } = self;
        let what = || format!("read document `{key}`");
        let mut statement = connection.prepare_cached(DOCUMENT).during(what)?;
        let mut found = statement.query([key]).during(what)?;
        let Some(row) = found.next().during(what)? else { return Ok(None) };
        let (id, read) = document(connection, names, row, key)?;
        if *read.key != *key {
            return Err(fault::document(key, "the index of keys leads to another one"));
        }
        let gone = read.content.is_none() && horizon.hides_deletion(key, number(read.position));
        Ok((!gone).then_some((id, read)))
    }

    pub(super) fn list(&mut self, list: &List) -> Result<Vec<Document>> {
        let what = || format!("list documents from `{}`", list.prefix);
        self.snapshot(|queries| {
            let Self { connection, names } = queries;
            let (sql, from) = match &list.after {
                Some(after) if **after >= *list.prefix => (LIST_AFTER, after),
                _ => (LIST_FROM, &list.prefix),
            };
            let mut page = DocumentPage::new(list.documents_max);
            let mut statement = connection.prepare_cached(sql).during(what)?;
            let mut found = statement.query([&**from]).during(what)?;
            while page.has_room()
                && let Some(row) = found.next().during(what)?
            {
                let (_, read) = document(connection, names, row, &list.prefix)?;
                let last = page.documents.last().map(|last| &last.key);
                if last.is_some_and(|last| *last >= read.key) || !in_list(list, &read.key) {
                    return Err(fault::damaged(format!(
                        "the index of keys: `{}` came where it does not belong; documents are readable by their \
                         keys; restore a backup",
                        read.key
                    )));
                }
                if !read.key.starts_with(&*list.prefix) {
                    break;
                }
                if read.content.is_some() && !page.take(read) {
                    break;
                }
            }
            Ok(page.documents)
        })
    }

    pub(super) fn history(&mut self, history: &History) -> Result<Vec<Document>> {
        let key = &history.key;
        let what = || format!("read the history of document `{key}`");
        self.snapshot(|queries| {
            let horizon = Horizon::load(&queries.connection)?;
            let mut page = DocumentPage::new(history.documents_max);
            let Some((id, current)) = queries.document(key, &horizon)? else { return Ok(page.documents) };
            let selected = |document: &Document| match history.until {
                Until::Now => true,
                Until::At(position) => document.position <= position,
                Until::Before(revision) => document.revision < revision,
            };
            // Each is forgotten with the one that replaced it, which is the one before on the way back.
            let mut successor = (number(current.position), current.revision);
            let mut chain = Chain::new(id, &current);
            if selected(&current) && page.has_room() && !page.take(current) {
                return Ok(page.documents);
            }
            let Self { connection, names } = queries;
            // Another process may have carried the tables over since this one opened them.
            let sql = if schema::has_packing(connection)? { REVISIONS } else { REVISIONS_FIRST };
            let before = match history.until {
                Until::Before(revision) if horizon.prunings.is_empty() => number_of(revision),
                _ => i64::MAX,
            };
            let mut statement = connection.prepare_cached(sql).during(what)?;
            let mut found = statement.query([id, before]).during(what)?;
            while page.has_room()
                && let Some(row) = found.next().during(what)?
            {
                let read = chain.document(connection, names, row, key)?;
                if read.revision >= successor.1 {
                    return Err(fault::document(key, "its revisions are out of order"));
                }
                if horizon.hides_before(key, successor.0) {
                    break;
                }
                successor = (number(read.position), read.revision);
                if selected(&read) && !page.take(read) {
                    break;
                }
            }
            Ok(page.documents)
        })
    }
}

/// Runs a statement that has no answer, prepared once.
pub(super) fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged { .. })
}

fn in_list(list: &List, key: &Key) -> bool {
    *key >= list.prefix && list.after.as_ref().is_none_or(|after| key > after || **after < *list.prefix)
}

/// The record of a row with the columns of [`ALL_FORWARD`], checked.
fn record(connection: &Connection, names: &mut HashMap<i64, Arc<str>>, row: &Row<'_>) -> Result<Record> {
    let what = || "read a record".to_owned();
    let place: i64 = row.get(0).during(what)?;
    decode_record(connection, names, row, place).map_err(|error| match error {
        Undecodable::Row => fault::record(place, "its row is not as it was written"),
        Undecodable::Other(error) => error,
    })
}

/// Why a row is no record or document.
enum Undecodable {
    Row,
    Other(Error),
}

impl From<rusqlite::Error> for Undecodable {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            error @ rusqlite::Error::SqliteFailure(..) => {
                let read: rusqlite::Result<()> = Err(error);
                Self::Other(read.during(|| "read a row".to_owned()).err().unwrap_or_else(fault::closed))
            }
            _ => Self::Row,
        }
    }
}

fn decode_record(
    connection: &Connection,
    names: &mut HashMap<i64, Arc<str>>,
    row: &Row<'_>,
    place: i64,
) -> Result<Record, Undecodable> {
    let at: i64 = row.get(1)?;
    let checksum: i64 = row.get(2)?;
    let mut column = |kind: u8| -> Result<Option<Tag>, Undecodable> {
        let value = row.get_ref(usize::from(kind) + 2)?;
        Ok(match (kind, value) {
            (_, ValueRef::Null) => None,
            (rows::EVENT, ValueRef::Blob(id)) => Some(Tag::Event(event_id(id)?)),
            (rows::CAUSE, ValueRef::Blob(id)) => Some(Tag::Cause(event_id(id)?)),
            (rows::CORRELATION, ValueRef::Blob(id)) => {
                Some(Tag::Correlation(event_id(id)?.to_string().into()))
            }
            (rows::CORRELATION, ValueRef::Text(text)) => Some(Tag::Correlation(utf8(text)?.into())),
            (rows::NODE, ValueRef::Integer(id)) => Some(Tag::Node(name(connection, names, id)?)),
            (rows::TYPE, ValueRef::Integer(id)) => Some(Tag::Type(name(connection, names, id)?)),
            (rows::SENDER, ValueRef::Integer(id)) => Some(Tag::Sender(name(connection, names, id)?)),
            _ => return Err(Undecodable::Row),
        })
    };
    let list: Option<&[u8]> = match row.get_ref(9)? {
        ValueRef::Null => None,
        ValueRef::Blob(list) => Some(list),
        _ => return Err(Undecodable::Row),
    };
    let tags = match list {
        None => {
            let mut tags = Vec::with_capacity(6);
            for kind in rows::EVENT..=rows::SENDER {
                tags.extend(column(kind)?);
            }
            tags
        }
        Some(list) => {
            let mut failed = None;
            let tags = rows::tags(list, |kind| {
                if !(rows::EVENT..=rows::SENDER).contains(&kind) {
                    return None;
                }
                column(kind).unwrap_or_else(|error| {
                    failed = Some(error);
                    None
                })
            });
            match (tags, failed) {
                (_, Some(error)) => return Err(error),
                (Some(tags), None) => tags,
                (None, None) => return Err(Undecodable::Row),
            }
        }
    };
    let ValueRef::Blob(bytes) = row.get_ref(10)? else { return Err(Undecodable::Row) };
    if rows::record_checksum(place, at, &tags, bytes) != checksum {
        return Err(Undecodable::Other(fault::record(place, "its checksum does not fit")));
    }
    Ok(Record { position: position(place), at_unix_ms: at as u64, tags: tags.into(), bytes: bytes.into() })
}

fn event_id(bytes: &[u8]) -> Result<EventId, Undecodable> {
    bytes.try_into().ok().and_then(EventId::from_bytes).ok_or(Undecodable::Row)
}

fn utf8(bytes: &[u8]) -> Result<&str, Undecodable> {
    std::str::from_utf8(bytes).map_err(|_| Undecodable::Row)
}

fn name(
    connection: &Connection,
    names: &mut HashMap<i64, Arc<str>>,
    id: i64,
) -> Result<Arc<str>, Undecodable> {
    if let Some(known) = names.get(&id) {
        return Ok(Arc::clone(known));
    }
    let mut statement = connection.prepare_cached(NAME)?;
    // A name that is not there is QueryReturnedNoRows, which is a damaged row.
    let found: Arc<str> = statement.query_row([id], |row| row.get(0))?;
    if names.len() >= limits::STORE_NAMES_MAX {
        names.clear();
    }
    names.insert(id, Arc::clone(&found));
    Ok(found)
}

/// The document of a row with the columns of [`DOCUMENT`], checked.
fn document(
    connection: &Connection,
    names: &mut HashMap<i64, Arc<str>>,
    row: &Row<'_>,
    asked: &str,
) -> Result<(i64, Document)> {
    let decoded = decode_document(connection, names, row, |_, bytes| Ok(bytes.into()));
    decoded.map_err(|error| undecodable(error, row, asked))
}

fn undecodable(error: Undecodable, row: &Row<'_>, asked: &str) -> Error {
    match error {
        Undecodable::Row => {
            let key: Option<String> = row.get(1).ok();
            fault::document(key.as_deref().unwrap_or(asked), "its row is not as it was written")
        }
        Undecodable::Other(error) => error,
    }
}

/// The contents of a history on the way back, by which packed ones are unpacked.
struct Chain {
    id: i64,
    /// The current revision, which is never packed.
    current: (u64, Option<Bytes>),
    /// The last one that was unpacked.
    last: (u64, Option<Bytes>),
}

impl Chain {
    fn new(id: i64, current: &Document) -> Self {
        let current = (current.revision, current.content.as_ref().map(|content| Arc::clone(&content.bytes)));
        Self { id, last: current.clone(), current }
    }

    /// The past revision of a row with the columns of [`REVISIONS`], unpacked and checked.
    fn document(
        &mut self,
        connection: &Connection,
        names: &mut HashMap<i64, Arc<str>>,
        row: &Row<'_>,
        key: &str,
    ) -> Result<Document> {
        let unpack = |revision: i64, bytes: &[u8]| match row.get_ref(9)? {
            ValueRef::Null => Ok(bytes.into()),
            ValueRef::Integer(packing) => {
                let next = match packing::needs_next(packing) {
                    true => Some(self.next(connection, revision)?),
                    false => None,
                };
                let content = packing::unpack(packing, bytes, next.as_deref()).ok_or(Undecodable::Row)?;
                Ok(content.into())
            }
            _ => Err(Undecodable::Row),
        };
        let decoded = decode_document(connection, names, row, unpack);
        let (_, read) = decoded.map_err(|error| undecodable(error, row, key))?;
        self.last = (read.revision, read.content.as_ref().map(|content| Arc::clone(&content.bytes)));
        Ok(read)
    }

    /// The content of the revision after this one.
    fn next(&self, connection: &Connection, revision: i64) -> Result<Bytes, Undecodable> {
        let wanted = (revision as u64).wrapping_add(1);
        let known = |(number, content): &(u64, Option<Bytes>)| content.clone().filter(|_| *number == wanted);
        if let Some(next) = known(&self.last).or_else(|| known(&self.current)) {
            return Ok(next);
        }
        // A page that begins in the middle: forward to one that needs no other, and back from there.
        let mut statement = connection.prepare_cached(CHAIN)?;
        let max = limits::STORE_PACKED_CHAIN_MAX as i64;
        let mut found = statement.query([self.id, revision, max])?;
        let mut packed: Vec<(i64, Vec<u8>)> = Vec::new();
        let mut next: Option<Bytes> = None;
        let mut number = revision as u64;
        while next.is_none()
            && let Some(row) = found.next()?
        {
            number += 1;
            let (found, ValueRef::Blob(bytes)) = (row.get::<_, i64>(0)? as u64, row.get_ref(1)?) else {
                return Err(Undecodable::Row);
            };
            if found != number {
                return Err(Undecodable::Row);
            }
            match row.get_ref(2)? {
                ValueRef::Null => next = Some(bytes.into()),
                ValueRef::Integer(packing) if packing::needs_next(packing) => {
                    packed.push((packing, bytes.to_vec()));
                }
                ValueRef::Integer(packing) => {
                    next = Some(packing::unpack(packing, bytes, None).ok_or(Undecodable::Row)?.into());
                }
                _ => return Err(Undecodable::Row),
            }
        }
        let (current, content) = &self.current;
        let next = next.or_else(|| content.clone().filter(|_| *current == number + 1));
        packed.iter().rev().try_fold(next.ok_or(Undecodable::Row)?, |next, (packing, bytes)| {
            Ok(packing::unpack(*packing, bytes, Some(&next)).ok_or(Undecodable::Row)?.into())
        })
    }
}

fn decode_document(
    connection: &Connection,
    names: &mut HashMap<i64, Arc<str>>,
    row: &Row<'_>,
    unpack: impl FnOnce(i64, &[u8]) -> Result<Bytes, Undecodable>,
) -> Result<(i64, Document), Undecodable> {
    let key: Key = row.get(1)?;
    let revision: i64 = row.get(2)?;
    let place: i64 = row.get(3)?;
    let at: i64 = row.get(4)?;
    let checksum: i64 = row.get(5)?;
    let content = match (row.get_ref(6)?, row.get_ref(7)?, row.get_ref(8)?) {
        (ValueRef::Null, ValueRef::Null, ValueRef::Null) => None,
        (ValueRef::Integer(id), ValueRef::Integer(version), ValueRef::Blob(bytes)) => Some(Content {
            name: name(connection, names, id)?,
            version: u32::try_from(version).map_err(|_| Undecodable::Row)?,
            bytes: unpack(revision, bytes)?,
        }),
        _ => return Err(Undecodable::Row),
    };
    let (revision, at_unix_ms) = (revision as u64, at as u64);
    let document = Document { key, revision, position: position(place), at_unix_ms, content };
    if rows::document_checksum(&document, place) != checksum {
        let why = format!("the checksum of revision {revision} does not fit");
        return Err(Undecodable::Other(fault::document(&document.key, &why)));
    }
    Ok((row.get(0)?, document))
}

/// A page of records while it is filled.
struct Filling {
    records: Vec<Record>,
    bytes: usize,
    max: usize,
    more: bool,
}

impl Filling {
    fn new(max: usize) -> Self {
        Self { records: Vec::new(), bytes: 0, max, more: false }
    }

    /// Takes a record unless the page is full, and says whether it did.
    fn take(&mut self, record: Record) -> bool {
        self.bytes += record.bytes.len();
        let full = self.records.len() >= self.max;
        self.more = full || !self.records.is_empty() && self.bytes > PAGE_BYTES_MAX;
        if !self.more {
            self.records.push(record);
        }
        !self.more
    }
}

struct DocumentPage {
    documents: Vec<Document>,
    bytes: usize,
    max: usize,
}

impl DocumentPage {
    fn new(max: usize) -> Self {
        Self { documents: Vec::new(), bytes: 0, max: max.min(PAGE_RECORDS_MAX) }
    }

    fn has_room(&self) -> bool {
        self.documents.len() < self.max
    }

    fn take(&mut self, document: Document) -> bool {
        self.bytes += document.content.as_ref().map_or(0, |content| content.bytes.len());
        let fits = self.has_room() && (self.documents.is_empty() || self.bytes <= PAGE_BYTES_MAX);
        if fits {
            self.documents.push(document);
        }
        fits
    }
}

/// A position as this store counts: all it ever gave fit.
pub(super) fn number(position: Position) -> i64 {
    i64::try_from(position.number()).unwrap_or(i64::MAX)
}

pub(super) fn position(number: i64) -> Position {
    Position::from_number(u128::from(number.unsigned_abs()))
}

fn number_of(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

const LOG: &str = "SELECT head, at_unix_ms, checksum FROM log WHERE one = 1";
const LAST: &str = "SELECT position, at_unix_ms FROM records ORDER BY position DESC LIMIT 1";
const FIRST: &str = "SELECT position FROM records ORDER BY position LIMIT 1";
const NAME: &str = "SELECT name FROM names WHERE id = ?1";
const NAME_ID: &str = "SELECT id FROM names WHERE name = ?1";
pub(super) const RECORD: &str = "SELECT position, at_unix_ms, checksum, event, cause, correlation, node, \
    type, sender, tags, bytes FROM records WHERE position = ?1";
pub(super) const ALL_FORWARD: &str = "SELECT position, at_unix_ms, checksum, event, cause, correlation, \
    node, type, sender, tags, bytes FROM records WHERE position > ?1 AND position < ?2 ORDER BY position";
pub(super) const ALL_BACKWARD: &str = "SELECT position, at_unix_ms, checksum, event, cause, correlation, \
    node, type, sender, tags, bytes FROM records WHERE position > ?1 AND position < ?2 \
    ORDER BY position DESC";
pub(super) const DOCUMENT: &str = "SELECT id, key, revision, position, at_unix_ms, checksum, name, version, \
    content FROM documents WHERE key = ?1";
pub(super) const LIST_FROM: &str = "SELECT id, key, revision, position, at_unix_ms, checksum, name, \
    version, content FROM documents WHERE key >= ?1 ORDER BY key";
pub(super) const LIST_AFTER: &str = "SELECT id, key, revision, position, at_unix_ms, checksum, name, \
    version, content FROM documents WHERE key > ?1 ORDER BY key";
pub(super) const REVISIONS: &str = "SELECT r.document, d.key, r.revision, r.position, r.at_unix_ms, \
    r.checksum, r.name, r.version, r.content, r.packing FROM revisions r JOIN documents d ON d.id = r.document \
    WHERE r.document = ?1 AND r.revision < ?2 ORDER BY r.revision DESC";
/// The same of a store of the first version, in which nothing is packed.
const REVISIONS_FIRST: &str = "SELECT r.document, d.key, r.revision, r.position, r.at_unix_ms, \
    r.checksum, r.name, r.version, r.content, NULL FROM revisions r JOIN documents d ON d.id = r.document \
    WHERE r.document = ?1 AND r.revision < ?2 ORDER BY r.revision DESC";
const CHAIN: &str = "SELECT revision, content, packing FROM revisions WHERE document = ?1 AND revision > ?2 \
    ORDER BY revision LIMIT ?3";
pub(super) const TAG_ROWS: (&str, &str) = (
    "SELECT position FROM tags WHERE kind = ?1 AND value = ?2 AND position > ?3 AND position < ?4 \
     ORDER BY position LIMIT ?5",
    "SELECT position FROM tags WHERE kind = ?1 AND value = ?2 AND position > ?3 AND position < ?4 \
     ORDER BY position DESC LIMIT ?5",
);

macro_rules! by_column {
    ($column:literal) => {
        (
            concat!(
                "SELECT position FROM records INDEXED BY records_by_",
                $column,
                " WHERE ",
                $column,
                " = ?1 AND position > ?2 AND position < ?3 ORDER BY position LIMIT ?4"
            ),
            concat!(
                "SELECT position FROM records INDEXED BY records_by_",
                $column,
                " WHERE ",
                $column,
                " = ?1 AND position > ?2 AND position < ?3 ORDER BY position DESC LIMIT ?4"
            ),
        )
    };
}

/// The statements that find records by the column of this kind, forwards and backwards.
pub(super) fn column(kind: u8) -> Option<(&'static str, &'static str)> {
    match kind {
        rows::EVENT => Some(by_column!("event")),
        rows::CAUSE => Some(by_column!("cause")),
        rows::CORRELATION => Some(by_column!("correlation")),
        rows::NODE => Some(by_column!("node")),
        rows::TYPE => Some(by_column!("type")),
        rows::SENDER => Some(by_column!("sender")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::{schema, writer};

    fn plan(connection: &Connection, sql: &str) -> String {
        let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        // What the parameters are does not change the plan, and they may stay empty.
        let mut rows = explain.raw_query();
        let mut plan = String::new();
        while let Some(row) = rows.next().unwrap() {
            plan += &row.get::<_, String>(3).unwrap();
            plan += "\n";
        }
        plan
    }

    /// Each selects by an index, in the order of that index: nothing is sorted and no table is gone through.
    #[test]
    fn every_question_has_an_index() {
        let folder = tempfile::tempdir().unwrap();
        schema::create(folder.path()).unwrap();
        let connection = schema::reader(folder.path()).unwrap();
        let kinds = rows::EVENT..=rows::SENDER;
        let by_column = kinds.filter_map(column).flat_map(|(forward, backward)| [forward, backward]);
        let others = [
            TAG_ROWS.0,
            TAG_ROWS.1,
            RECORD,
            ALL_FORWARD,
            ALL_BACKWARD,
            DOCUMENT,
            LIST_FROM,
            LIST_AFTER,
            REVISIONS,
            REVISIONS_FIRST,
            CHAIN,
            NAME,
            NAME_ID,
            LOG,
            writer::REVISION,
            writer::DROP_BEYOND,
        ];
        for sql in by_column.chain(others) {
            let plan = plan(&connection, sql);
            let mut lines = plan.lines().filter(|line| !line.starts_with("SCALAR SUBQUERY"));
            let searches = lines.all(|line| line.starts_with("SEARCH "));
            assert!(searches && !plan.is_empty(), "{sql}\n{plan}");
        }
        // The ends of the log are the ends of its table, so the walk ends with its first row.
        for sql in [FIRST, LAST] {
            assert_eq!(plan(&connection, sql), "SCAN records\n", "{sql}");
        }
        for (kind, index) in [(rows::EVENT, "event"), (rows::SENDER, "sender")] {
            let plan = plan(&connection, column(kind).unwrap().1);
            assert!(plan.contains(&format!("COVERING INDEX records_by_{index}")), "{plan}");
        }
    }
}
