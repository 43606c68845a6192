//! Looking after a store: what it is, whether all of it can be read, copying it and putting a copy back. Owns the
//! order of the steps; none of them holds up the writer.

use std::fs;
use std::path::{Path, PathBuf};

use happen_core::limits::PAGE_RECORDS_MAX;
use happen_core::store::{History, Order, Position, Read, Select, Start, Until};
use happen_core::{Error, ErrorKind, Result};
use rusqlite::Connection;

use super::fault::{self, Fault};
use super::query::{Queries, number, position};
use super::{SqliteStore, on_a_thread, schema, take_lock};
use crate::limits;

/// What a store is, see [`SqliteStore::info`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreInfo {
    /// The folder.
    pub folder: PathBuf,
    /// The version of its format.
    pub format: u32,
    /// Records in the log, those included that are pruned and not deleted yet.
    pub records: u64,
    /// Documents, deleted ones included whose revision still counts.
    pub documents: u64,
    /// Past revisions of documents.
    pub revisions: u64,
    /// How far the log goes.
    pub head: Position,
    /// When its last commit was, in milliseconds since 1970; 0 before the first.
    pub at_unix_ms: u64,
    /// Bytes of the database on the disk.
    pub database_bytes: u64,
    /// Bytes in it that are free and will be used again.
    pub free_bytes: u64,
    /// Bytes of the write-ahead log on the disk.
    pub log_bytes: u64,
    /// Prunings whose records are not all deleted yet.
    pub prunings: usize,
}

/// What [`SqliteStore::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Records that are as they were written.
    pub records: u64,
    /// Documents that are as they were written; their past revisions count too.
    pub documents: u64,
    /// What is not, up to [`limits::STORE_DAMAGES_MAX`] places.
    pub damages: Vec<StoreDamage>,
    /// How many damages there are in all.
    pub damages_len: u64,
}

/// A place of a store that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreDamage {
    /// A record.
    Record {
        /// Where it stands.
        position: Position,
    },
    /// Records between two positions, both left out: the part of the file that has them cannot be read.
    Records {
        /// The last readable one before; [`Position::START`] when there is none.
        after: Position,
        /// The first readable one behind; `None` when there is none.
        before: Option<Position>,
    },
    /// A document, or one of its past revisions.
    Document {
        /// Its key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The shape of the file, as SQLite tells it: an index, perhaps, that lacks a row.
    Structure {
        /// SQLite's words.
        reason: String,
    },
}

impl Verified {
    /// Whether all is as it was written.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damages_len == 0
    }

    fn note(&mut self, damage: StoreDamage) {
        self.damages_len += 1;
        if self.damages.len() < limits::STORE_DAMAGES_MAX {
            self.damages.push(damage);
        }
    }
}

impl SqliteStore {
    /// What the store is: sizes and counts.
    ///
    /// # Errors
    ///
    /// As [`Store::read`](super::Store::read).
    ///
    /// # Cost
    ///
    /// Counting looks at an index as a whole: some ten milliseconds for a million records.
    pub async fn info(&self) -> Result<StoreInfo> {
        let folder = self.folder.clone();
        self.readers.ask(move |queries| queries.info(folder)).await
    }

    /// Reads everything and tells what is not as it was written.
    ///
    /// Checks every record and document against its checksum, and by SQLite's own check every page, and every index
    /// against its table. The store goes on meanwhile; while SQLite checks, the write-ahead log grows.
    ///
    /// # Errors
    ///
    /// When it cannot be looked at at all. Damage is not an error here but what is told.
    ///
    /// # Cost
    ///
    /// Reads the whole database twice, on a thread of its own: some five seconds for a million records.
    pub async fn verify(&self) -> Result<Verified> {
        let folder = self.folder.clone();
        on_a_thread("verify a store", move || verify(&folder)).await
    }

    /// Copies the store into another folder, as it is at one moment, while it goes on. The copy is a store that can be
    /// opened, and takes no more room than it needs.
    ///
    /// Everything in the copy is read and checked before this ends: damage is told while the store, and older backups,
    /// are still there.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Misuse`]: there is a store in that folder already, or it cannot be written.
    /// - [`ErrorKind::Damaged`]: the store is damaged; [`SqliteStore::verify`] tells where. No copy is left.
    /// - [`ErrorKind::Io`]: the disk is full or failed. No copy is left.
    pub async fn backup(&self, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (self.folder.clone(), to.as_ref().to_owned());
        on_a_thread("copy a store", move || copy(&from, &to, Head::AsItIs)).await
    }

    /// Makes a store in a folder out of a backup.
    ///
    /// What was committed after the backup is gone, and its positions are not given again: whoever followed the log up
    /// to one of them goes on behind the restored records and misses nothing that is committed from now on.
    ///
    /// # Errors
    ///
    /// As [`SqliteStore::backup`].
    pub async fn restore(backup: impl AsRef<Path>, folder: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (backup.as_ref().to_owned(), folder.as_ref().to_owned());
        on_a_thread("restore a store", move || copy(&from, &to, Head::Ahead)).await
    }
}

/// Where the log of a copy goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    AsItIs,
    Ahead,
}

fn copy(from: &Path, to: &Path, head: Head) -> Result<()> {
    fs::create_dir_all(to).map_err(|error| fault::file("make", to, error))?;
    let _lock = take_lock(to)?;
    let database = to.join(schema::DATABASE);
    if database.try_exists().map_err(|error| fault::file("look for", &database, error))? {
        let what = format!("there is a store in {} already; give another folder", to.display());
        return Err(Error::misuse(what));
    }
    let unfinished = to.join(schema::UNFINISHED);
    let made = copy_to(from, to, &unfinished, head);
    if made.is_err() {
        // It was not there before, and half a store is none. That it cannot be removed changes nothing.
        drop(fs::remove_file(&unfinished));
        drop(fs::remove_file(&database));
    }
    made
}

fn copy_to(from: &Path, to: &Path, unfinished: &Path, head: Head) -> Result<()> {
    let what = || format!("copy the store in {} to {}", from.display(), to.display());
    schema::remove_unfinished(unfinished)?;
    let connection = schema::reader(from)?;
    connection.execute("VACUUM INTO ?1", [unfinished.to_string_lossy()]).during(what)?;
    drop(connection);
    if head == Head::Ahead {
        let mut queries = Queries::new(schema::plain(unfinished)?);
        queries.skip_ahead()?;
        queries.connection.close().map_err(|(_, error)| error).during(what)?;
    }
    schema::sync(unfinished)?;
    let database = to.join(schema::DATABASE);
    fs::rename(unfinished, &database).map_err(|error| fault::file("name", &database, error))?;
    schema::sync(to)?;
    let verified = verify(to)?;
    match verified.damages.first() {
        None => Ok(()),
        Some(first) => Err(fault::damaged(format!(
            "the store in {} at {} places, first {first:?}; `SqliteStore::verify` tells all; no copy was made",
            from.display(),
            verified.damages_len
        ))),
    }
}

fn verify(folder: &Path) -> Result<Verified> {
    let mut queries = Queries::new(schema::reader(folder)?);
    let mut verified = Verified::default();
    queries.verify_records(&mut verified)?;
    queries.verify_documents(&mut verified)?;
    queries.verify_structure(&mut verified)?;
    Ok(verified)
}

impl Queries {
    fn info(&mut self, folder: PathBuf) -> Result<StoreInfo> {
        let what = || "count what is in the store".to_owned();
        let number = |queries: &Self, sql: &str| -> Result<u64> {
            let number: i64 = queries.connection.query_row(sql, [], |row| row.get(0)).during(what)?;
            Ok(number as u64)
        };
        let log = folder.join(schema::WRITE_AHEAD_LOG);
        let log_bytes = fs::metadata(log).map_or(0, |log| log.len());
        self.snapshot(|queries| {
            let head = queries.head()?;
            let page_bytes = number(queries, "PRAGMA page_size")?;
            Ok(StoreInfo {
                format: schema::version(&queries.connection)? as u32,
                records: number(queries, "SELECT count(*) FROM records")?,
                documents: number(queries, "SELECT count(*) FROM documents")?,
                revisions: number(queries, "SELECT count(*) FROM revisions")?,
                head: position(head.position),
                at_unix_ms: head.at_unix_ms,
                database_bytes: number(queries, "PRAGMA page_count")? * page_bytes,
                free_bytes: number(queries, "PRAGMA freelist_count")? * page_bytes,
                log_bytes,
                prunings: number(queries, "SELECT count(*) FROM prunes")? as usize,
                folder,
            })
        })
    }

    /// Moves the head so far on that no position given before is given again.
    fn skip_ahead(&mut self) -> Result<()> {
        let what = || "write the head of the log".to_owned();
        let head = self.head()?;
        let ahead = head.position.saturating_add(RESTORED_AHEAD);
        let at = head.at_unix_ms as i64;
        let row = rusqlite::params![ahead, at, super::rows::log_checksum(ahead, at)];
        self.connection.execute(schema::PUT_LOG, row).during(what)?;
        Ok(())
    }

    fn verify_records(&mut self, verified: &mut Verified) -> Result<()> {
        let mut after = Position::START;
        loop {
            let read = Read::forward(Select::All).start(Start::Position(after));
            match self.read(&read) {
                Ok(page) => {
                    verified.records += page.records.len() as u64;
                    let Some(next) = page.next else { return Ok(()) };
                    after = next;
                }
                Err(error) => match self.step_over(after, error, verified)? {
                    Some(next) => after = next,
                    None => return Ok(()),
                },
            }
        }
    }

    /// Goes on behind damage that a page from this position met, record by record up to it.
    fn step_over(
        &mut self,
        after: Position,
        met: Error,
        verified: &mut Verified,
    ) -> Result<Option<Position>> {
        if !matches!(met.kind(), ErrorKind::Damaged { .. }) {
            return Err(met);
        }
        let mut after = after;
        loop {
            let read = Read::forward(Select::All).start(Start::Position(after)).at_most(1);
            match self.read(&read) {
                Ok(page) => match page.records.first() {
                    Some(record) => {
                        verified.records += 1;
                        after = record.position;
                    }
                    None => return Ok(None),
                },
                Err(_) => break,
            }
        }
        // The next row that is there has a position, unless the page that has it cannot be read.
        if let Some(damaged) = self.position_behind(after) {
            verified.note(StoreDamage::Record { position: position(damaged) });
            return Ok(Some(position(damaged)));
        }
        let behind = self.readable_behind(after, verified);
        verified.note(StoreDamage::Records { after, before: behind });
        Ok(None)
    }

    /// The position of the next row, readable or not.
    fn position_behind(&self, after: Position) -> Option<i64> {
        let sql = "SELECT position FROM records WHERE position > ?1 ORDER BY position LIMIT 1";
        let after = number(after);
        let found: Option<i64> = self.connection.query_row(sql, [after], |row| row.get(0)).ok();
        found.filter(|found| *found > after)
    }

    /// Reads from the end back to damage that cannot be stepped over; gives the last record readable from there.
    fn readable_behind(&mut self, after: Position, verified: &mut Verified) -> Option<Position> {
        let mut first = None;
        loop {
            let start = first.map_or(Start::Edge, Start::Position);
            // One at a time, because a page fails as a whole.
            let read = Read { select: Select::All, start, order: Order::Backward, records_max: 1 };
            match self.read(&read) {
                Ok(page) => match page.records.first() {
                    Some(record) if record.position > after => {
                        verified.records += 1;
                        first = Some(record.position);
                    }
                    _ => return first,
                },
                Err(_) => return first,
            }
        }
    }

    fn verify_documents(&mut self, verified: &mut Verified) -> Result<()> {
        let mut after = None;
        loop {
            let keys = match self.keys_behind(after.as_deref()) {
                Ok(keys) => keys,
                Err(error) => {
                    let reason = error.to_string();
                    verified.note(StoreDamage::Structure { reason });
                    return Ok(());
                }
            };
            let Some(last) = keys.last() else { return Ok(()) };
            after = Some(last.clone());
            for key in keys {
                if let Err(error) = self.verify_document(&key, verified) {
                    if !matches!(error.kind(), ErrorKind::Damaged { .. }) {
                        return Err(error);
                    }
                    verified.note(StoreDamage::Document { key, reason: error.to_string() });
                }
            }
        }
    }

    fn verify_document(&mut self, key: &str, verified: &mut Verified) -> Result<()> {
        let mut until = Until::Now;
        loop {
            let history = History { key: key.into(), until, documents_max: PAGE_RECORDS_MAX };
            let documents = self.history(&history)?;
            verified.documents += documents.len() as u64;
            let Some(last) = documents.last() else { break };
            until = Until::Before(last.revision);
        }
        if until == Until::Now && !self.is_deletion_forgotten(key)? {
            return Err(fault::document(key, "the index of keys has it, and it cannot be found by its key"));
        }
        Ok(())
    }

    fn is_deletion_forgotten(&mut self, key: &str) -> Result<bool> {
        let what = || format!("read document `{key}`");
        let sql = "SELECT content IS NULL AND EXISTS (SELECT 1 FROM prunes) FROM documents WHERE key = ?1";
        let found = self.connection.query_row(sql, [key], |row| row.get(0));
        match found {
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok(false),
            found => found.during(what),
        }
    }

    fn keys_behind(&self, after: Option<&str>) -> Result<Vec<String>> {
        let what = || "list all documents".to_owned();
        let sql = match after {
            None => {
                "SELECT key FROM documents INDEXED BY sqlite_autoindex_documents_1 ORDER BY key LIMIT 1000"
            }
            Some(_) => {
                "SELECT key FROM documents INDEXED BY sqlite_autoindex_documents_1 WHERE key > ?1 \
                 ORDER BY key LIMIT 1000"
            }
        };
        let mut select = self.connection.prepare_cached(sql).during(what)?;
        let mut rows = match after {
            None => select.query([]).during(what)?,
            Some(after) => select.query([after]).during(what)?,
        };
        let mut keys: Vec<String> = Vec::new();
        while let Some(row) = rows.next().during(what)? {
            let key: String = row.get(0).during(what)?;
            if keys.last().map(String::as_str).or(after).is_some_and(|last| *last >= *key) {
                return Err(fault::damaged("the index of keys is out of order"));
            }
            keys.push(key);
        }
        Ok(keys)
    }

    fn verify_structure(&self, verified: &mut Verified) -> Result<()> {
        let what = || "check the database".to_owned();
        let mut check = |connection: &Connection| -> Result<()> {
            let mut check = connection.prepare(INTEGRITY_CHECK).during(what)?;
            let mut told = check.query([]).during(what)?;
            while let Some(row) = told.next().during(what)? {
                let reason: String = row.get(0).during(what)?;
                if reason != "ok" {
                    verified.note(StoreDamage::Structure { reason });
                }
            }
            Ok(())
        };
        match check(&self.connection) {
            Err(error) if matches!(error.kind(), ErrorKind::Damaged { .. }) => {
                verified.note(StoreDamage::Structure { reason: error.to_string() });
                Ok(())
            }
            checked => checked,
        }
    }
}

const INTEGRITY_CHECK: &str = "PRAGMA integrity_check(100)";

/// How far the log of a restored store goes on ahead: more than anybody commits between a backup and its restoring,
/// and it can be done two thousand million times.
const RESTORED_AHEAD: i64 = 1 << 32;
