//! Deletes in small steps what a pruning has forgotten. Owns where it stands; the rule of what is forgotten is
//! `horizon.rs`'s.

use std::sync::Arc;
use std::time::Duration;

use happen_core::env::Env;
use happen_core::store::{Order, Pruned, Record, Select};
use happen_core::{Error, ErrorKind, Result};

use super::fault::{self, Fault};
use super::horizon::Pruning;
use super::query::{Queries, Range};
use super::rows::{self, Columns};
use crate::limits;

/// A pruning while its rows are deleted.
#[derive(Debug, Clone)]
pub(super) struct Sweep {
    pruning: Arc<Pruning>,
    stage: Stage,
    pruned: Pruned,
    /// The first record that could not be read, and so was left.
    damaged: Option<i64>,
}

#[derive(Debug, Clone)]
enum Stage {
    /// Records up to here are done.
    Records {
        after: i64,
    },
    /// Of the prefixes those before the index are done, and of this one the keys up to here.
    Documents {
        prefix_index: usize,
        after: Option<Arc<str>>,
    },
    Done,
}

/// How long a pruning may keep others waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slice {
    /// Nobody waits, and who comes may come at any time.
    Small,
    /// Somebody always waits, and it happens seldom.
    Rare,
}

/// How much of its slice is left.
struct Budget<'e> {
    env: &'e dyn Env,
    until: Duration,
    left: usize,
}

impl Budget<'_> {
    fn is_spent(&self) -> bool {
        self.left == 0 || self.env.monotonic() >= self.until
    }
}

impl Sweep {
    pub(super) fn new(pruning: Pruning) -> Self {
        Self {
            pruning: Arc::new(pruning),
            stage: Stage::Records { after: 0 },
            pruned: Pruned::default(),
            damaged: None,
        }
    }

    pub(super) fn id(&self) -> i64 {
        self.pruning.id
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// What whoever asked for it is told at its end.
    pub(super) fn result(&self) -> Result<Pruned> {
        match self.damaged {
            None => Ok(self.pruned),
            Some(position) => {
                Err(fault::record(position, "it is damaged, so it was not pruned; all else was"))
            }
        }
    }

    /// Deletes for a short time.
    pub(super) fn slice(&mut self, queries: &mut Queries, env: &dyn Env, slice: Slice) -> Result<()> {
        let times = match slice {
            Slice::Small => 1,
            Slice::Rare => limits::STORE_PRUNE_RARE,
        };
        let us_max = limits::STORE_PRUNE_SLICE_US_MAX * times as u64;
        let until = env.monotonic() + Duration::from_micros(us_max);
        let mut budget = Budget { env, until, left: limits::STORE_PRUNE_SLICE_MAX * times };
        while !budget.is_spent() && !self.is_done() {
            match self.stage.clone() {
                Stage::Records { after } => self.records(queries, after, &mut budget)?,
                Stage::Documents { prefix_index, after } => {
                    self.documents(queries, prefix_index, after.as_ref(), &mut budget)?;
                }
                Stage::Done => {}
            }
        }
        Ok(())
    }

    fn records(&mut self, queries: &mut Queries, after: i64, budget: &mut Budget<'_>) -> Result<()> {
        let pruning = Arc::clone(&self.pruning);
        let range = Range { after, before: pruning.before };
        let max = budget.left;
        let positions = match &pruning.records {
            Select::All => queries.positions_of_all(range, max)?,
            Select::Tagged(tags) => queries.positions(tags, range, Order::Forward, max)?,
        };
        for &place in &positions {
            if budget.is_spent() {
                return Ok(());
            }
            budget.left -= 1;
            match queries.record_at(place) {
                Ok(record) if pruning.forgets(place, &record.tags) => {
                    delete_record(queries, place, &record)?;
                    self.pruned.records += 1;
                }
                Ok(_) => {}
                // Nobody knows what it was; it stays to be looked at, and the rest is pruned all the same.
                Err(error) if matches!(error.kind(), ErrorKind::Damaged { .. }) => {
                    self.damaged.get_or_insert(place);
                }
                Err(error) => return Err(error),
            }
            self.stage = Stage::Records { after: place };
        }
        if positions.len() < max {
            self.stage = Stage::Documents { prefix_index: 0, after: None };
        }
        Ok(())
    }

    fn documents(
        &mut self,
        queries: &Queries,
        prefix_index: usize,
        after: Option<&Arc<str>>,
        budget: &mut Budget<'_>,
    ) -> Result<()> {
        let pruning = Arc::clone(&self.pruning);
        let Some(prefix) = pruning.histories.get(prefix_index) else { return self.end(queries) };
        let what = || format!("prune documents from `{prefix}`");
        let connection = &queries.connection;
        let sql = if after.is_some() { KEYS_AFTER } else { KEYS_FROM };
        let from = after.unwrap_or(prefix);
        let mut select = connection.prepare_cached(sql).during(what)?;
        let mut found = select.query(rusqlite::params![&**from, budget.left as i64]).during(what)?;
        let mut any = false;
        while let Some(row) = found.next().during(what)? {
            let key: Arc<str> = row.get(1).during(what)?;
            if !key.starts_with(&**prefix) {
                break;
            }
            any = true;
            if budget.is_spent() {
                return Ok(());
            }
            budget.left -= 1;
            let document = (row.get(0).during(what)?, row.get(2).during(what)?, row.get(3).during(what)?);
            if !self.history(queries, document, budget)? {
                return Ok(());
            }
            self.stage = Stage::Documents { prefix_index, after: Some(key) };
        }
        if !any {
            self.stage = Stage::Documents { prefix_index: prefix_index + 1, after: None };
        }
        Ok(())
    }

    /// Deletes the forgotten revisions of one document. False when some are left.
    fn history(
        &mut self,
        queries: &Queries,
        (id, position, deleted): (i64, i64, bool),
        budget: &mut Budget<'_>,
    ) -> Result<bool> {
        let what = || "prune the past of a document".to_owned();
        let connection = &queries.connection;
        // A revision goes when the one that replaced it lies before: the next one, or the current one.
        let max = budget.left + 1;
        let mut oldest: Vec<(i64, i64)> = Vec::new();
        let mut select = connection.prepare_cached(OLDEST_REVISIONS).during(what)?;
        let mut found = select.query([id, max as i64]).during(what)?;
        while let Some(row) = found.next().during(what)? {
            oldest.push((row.get(0).during(what)?, row.get(1).during(what)?));
        }
        let full = oldest.len() == max;
        if !full {
            oldest.push((0, position));
        }
        let mut delete = connection.prepare_cached(DELETE_REVISION).during(what)?;
        let replaced = oldest.windows(2).take_while(|pair| pair[1].1 < self.pruning.before);
        let gone = replaced.map(|pair| delete.execute([pair[0].0])).sum::<rusqlite::Result<usize>>();
        let gone = gone.during(what)?;
        self.pruned.revisions += gone as u64;
        budget.left -= gone.min(budget.left);
        if full && gone == max - 1 {
            return Ok(false);
        }
        if deleted && position < self.pruning.before {
            let mut delete = connection.prepare_cached(DELETE_DOCUMENT).during(what)?;
            self.pruned.revisions += delete.execute([id]).during(what)? as u64;
        }
        Ok(true)
    }

    fn end(&mut self, queries: &Queries) -> Result<()> {
        let what = || "end a pruning".to_owned();
        let mut delete = queries.connection.prepare_cached(DELETE_PRUNING).during(what)?;
        delete.execute([self.pruning.id]).during(what)?;
        self.stage = Stage::Done;
        Ok(())
    }
}

impl Queries {
    fn positions_of_all(&self, range: Range, max: usize) -> Result<Vec<i64>> {
        let what = || "find the records to be pruned".to_owned();
        let mut select = self.connection.prepare_cached(POSITIONS).during(what)?;
        let mut found = select.query([range.after, range.before, max as i64]).during(what)?;
        let mut positions = Vec::new();
        while let Some(row) = found.next().during(what)? {
            positions.push(row.get(0).during(what)?);
        }
        Ok(positions)
    }
}

fn delete_record(queries: &Queries, place: i64, record: &Record) -> Result<(), Error> {
    let what = || format!("prune the record at position {place}");
    let mut columns = Columns::of(&record.tags);
    let further = columns.further();
    if !further.is_empty() {
        let mut delete = queries.connection.prepare_cached(DELETE_TAG).during(what)?;
        for tag in further {
            let value = rows::TagValue::of(tag);
            delete.execute(rusqlite::params![rows::kind(tag), value, place]).during(what)?;
        }
    }
    let mut delete = queries.connection.prepare_cached(DELETE_RECORD).during(what)?;
    delete.execute([place]).during(what)?;
    Ok(())
}

const POSITIONS: &str =
    "SELECT position FROM records WHERE position > ?1 AND position < ?2 ORDER BY position LIMIT ?3";
const DELETE_RECORD: &str = "DELETE FROM records WHERE position = ?1";
const DELETE_TAG: &str = "DELETE FROM tags WHERE kind = ?1 AND value = ?2 AND position = ?3";
const KEYS_FROM: &str =
    "SELECT id, key, position, content IS NULL FROM documents WHERE key >= ?1 ORDER BY key LIMIT ?2";
const KEYS_AFTER: &str =
    "SELECT id, key, position, content IS NULL FROM documents WHERE key > ?1 ORDER BY key LIMIT ?2";
const OLDEST_REVISIONS: &str =
    "SELECT id, position FROM revisions WHERE document = ?1 ORDER BY revision LIMIT ?2";
const DELETE_REVISION: &str = "DELETE FROM revisions WHERE id = ?1";
const DELETE_DOCUMENT: &str = "DELETE FROM documents WHERE id = ?1";
const DELETE_PRUNING: &str = "DELETE FROM prunes WHERE id = ?1";
