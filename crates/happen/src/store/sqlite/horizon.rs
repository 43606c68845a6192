//! What a pruning under way has forgotten already while its rows are still there. Owns the rule that readers, the
//! writer and the pruning itself go by; does not delete.
//!
//! A pruning may take minutes, and nobody may wait for it or see half of it. So its first transaction only says what
//! is forgotten; from then on everybody leaves that out, and it is deleted in small steps behind. A process that is
//! killed meanwhile goes on with the steps when it opens the store again.

use std::sync::Arc;

use happen_core::Result;
use happen_core::store::{Prune, Select, Tag};
use rusqlite::Connection;

use super::fault::{self, Fault};
use super::rows;

/// One pruning under way.
#[derive(Debug, Clone)]
pub(super) struct Pruning {
    pub(super) id: i64,
    pub(super) before: i64,
    pub(super) records: Select,
    pub(super) keep: Select,
    pub(super) histories: Vec<Arc<str>>,
}

/// All prunings under way: the one at work and those that wait for it.
#[derive(Debug, Default)]
pub(super) struct Horizon {
    pub(super) prunings: Vec<Pruning>,
}

impl Pruning {
    /// Whether a record is forgotten.
    pub(super) fn forgets(&self, position: i64, tags: &[Tag]) -> bool {
        position < self.before && self.records.matches(tags) && !self.keep.matches(tags)
    }

    /// Whether the past of the document with this key is forgotten.
    pub(super) fn covers(&self, key: &str) -> bool {
        self.histories.iter().any(|prefix| key.starts_with(&**prefix))
    }

    /// Writes it down; gives its number.
    pub(super) fn insert(connection: &Connection, before: i64, prune: &Prune) -> Result<i64> {
        let selected = match &prune.records {
            Select::All => None,
            Select::Tagged(tags) => Some(rows::put_tags(tags)),
        };
        let keep = rows::put_tags(&prune.keep);
        let histories = rows::put_keys(&prune.histories);
        let checksum = rows::prune_checksum(before, selected.as_deref(), &keep, &histories);
        let mut insert = connection.prepare_cached(INSERT).during(doing)?;
        insert.insert(rusqlite::params![before, selected, keep, histories, checksum]).during(doing)
    }
}

impl Horizon {
    /// The prunings under way, as this transaction sees them.
    pub(super) fn load(connection: &Connection) -> Result<Self> {
        let mut select = connection.prepare_cached(SELECT).during(doing)?;
        let mut found = select.query([]).during(doing)?;
        let mut prunings = Vec::new();
        while let Some(row) = found.next().during(doing)? {
            let selected: Option<Vec<u8>> = row.get(2).during(doing)?;
            let (keep, histories): (Vec<u8>, Vec<u8>) =
                (row.get(3).during(doing)?, row.get(4).during(doing)?);
            let before = row.get(1).during(doing)?;
            let checksum: i64 = row.get(5).during(doing)?;
            let fits = checksum == rows::prune_checksum(before, selected.as_deref(), &keep, &histories);
            let records = match &selected {
                None => Some(Select::All),
                Some(list) => rows::tags(list, |_| None).map(Select::Tagged),
            };
            let (Some(records), Some(keep), Some(histories), true) =
                (records, rows::tags(&keep, |_| None), rows::keys(&histories), fits)
            else {
                let what =
                    "what is being pruned, so it is unknown which records were forgotten; restore a backup";
                return Err(fault::damaged(what));
            };
            let id = row.get(0).during(doing)?;
            prunings.push(Pruning { id, before, records, keep: Select::Tagged(keep), histories });
        }
        Ok(Self { prunings })
    }

    pub(super) fn hides(&self, position: i64, tags: &[Tag]) -> bool {
        self.prunings.iter().any(|pruning| pruning.forgets(position, tags))
    }

    /// Whether a record at this position may be hidden at all.
    pub(super) fn reaches(&self, position: i64) -> bool {
        self.prunings.iter().any(|pruning| position < pruning.before)
    }

    /// Whether a deletion of a document at this position is forgotten.
    pub(super) fn hides_deletion(&self, key: &str, position: i64) -> bool {
        self.hides_before(key, position)
    }

    /// Whether the revisions before the one written at this position are forgotten.
    pub(super) fn hides_before(&self, key: &str, position: i64) -> bool {
        self.prunings.iter().any(|pruning| position < pruning.before && pruning.covers(key))
    }

    /// The position from which on records can be seen at all: what lies before is forgotten without exception.
    pub(super) fn first(&self) -> i64 {
        let keeps = |select: &Select| matches!(select, Select::Tagged(tags) if tags.is_empty());
        let total =
            self.prunings.iter().filter(|pruning| pruning.records == Select::All && keeps(&pruning.keep));
        total.map(|pruning| pruning.before).max().unwrap_or(0)
    }
}

fn doing() -> String {
    "read what is being pruned".to_owned()
}

const INSERT: &str =
    "INSERT INTO prunes (before, selected, keep, histories, checksum) VALUES (?1, ?2, ?3, ?4, ?5)";
const SELECT: &str = "SELECT id, before, selected, keep, histories, checksum FROM prunes ORDER BY id";
