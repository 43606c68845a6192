//! The same rows as a durable step writes, by hand: what anybody would write who needs these tables. Owns the statements;
//! does not know what is compared.

use std::collections::HashMap;
use std::path::Path;

use happen::EventId;
use happen::store::{Batch, List, NewRecord, Past, Read, Replaced, Select, Store, Tag, Write};
use rusqlite::{Connection, params};

/// One step as a space wrote it, to be written again under other ids.
#[derive(Clone)]
pub struct Template {
    batch: Batch,
}

impl Template {
    /// Takes the last step of a store, which has changed one document.
    pub async fn last_of(store: &dyn Store, revisions_max: u32) -> Self {
        let page = store.read(Read::backward(Select::All).at_most(1)).await.unwrap();
        let record = &page.records[0];
        let documents =
            store.list(List { prefix: "state/".into(), after: None, documents_max: 1_000 }).await.unwrap();
        let document = documents.into_iter().find(|document| document.position == record.position).unwrap();
        let write = Write {
            key: document.key,
            revision: document.revision,
            content: document.content,
            past: Past::Last(revisions_max),
            replaced: Replaced::Kept,
        };
        let record = NewRecord { tags: record.tags.to_vec(), bytes: record.bytes.clone() };
        Self { batch: Batch { records: vec![record], documents: vec![write], ..Batch::default() } }
    }

    /// The bytes of the record and of the document.
    pub fn bytes(&self) -> (usize, usize) {
        let content = self.batch.documents[0].content.as_ref().unwrap();
        (self.batch.records[0].bytes.len(), content.bytes.len())
    }

    /// The step once more: this event, at the node of this number.
    pub fn step(&self, event: EventId, node: u64, revision: u64) -> Batch {
        let mut batch = self.batch.clone();
        for tag in &mut batch.records[0].tags {
            match tag {
                Tag::Event(id) => *id = event,
                Tag::Correlation(text) => *text = event.to_string().into(),
                Tag::Node(text) => *text = format!("account-{node}").into(),
                _ => {}
            }
        }
        batch.documents[0].key = format!("state/account-{node}/account").into();
        batch.documents[0].revision = revision;
        batch
    }
}

/// Ids as they are made: the time first, then a counter, then what belongs to the block.
pub fn id(number: u64) -> EventId {
    let unix_ms = 1_760_000_000_000 + number / 10;
    let high = unix_ms << 16 | 0x7000 | (number % 10);
    EventId::from_halves(high, 0x8000_0000_0000_0000 | number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2)
        .unwrap()
}

/// A connection that writes steps.
pub struct Raw {
    connection: Connection,
    position: i64,
    names: HashMap<String, i64>,
    template: Template,
    next: u64,
    revisions: HashMap<u64, u64>,
}

impl Raw {
    /// Writes into a store that a space has made and closed, so the tables are the same.
    pub fn open(folder: &Path, template: Template) -> Self {
        let connection = Connection::open(folder.join("happen.db")).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -32768; \
                 PRAGMA wal_autocheckpoint = 4000",
            )
            .unwrap();
        connection.set_prepared_statement_cache_capacity(32);
        let position =
            connection.query_row("SELECT max(position) FROM records", [], |row| row.get(0)).unwrap();
        Self { connection, position, names: HashMap::new(), template, next: 1, revisions: HashMap::new() }
    }

    /// The next step of the node of this number.
    pub fn step(&mut self, node: u64) -> Batch {
        let connection = &self.connection;
        let revision = self.revisions.entry(node).or_insert_with(|| {
            let key = format!("state/account-{node}/account");
            let select = "SELECT revision FROM documents WHERE key = ?1";
            connection.query_row(select, [key], |row| row.get::<_, i64>(0)).unwrap_or(0) as u64
        });
        *revision += 1;
        self.next += 1;
        self.template.step(id(self.next), node, *revision)
    }

    /// Writes steps in one transaction.
    pub fn commit(&mut self, steps: &[Batch]) {
        self.connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        for step in steps {
            for record in &step.records {
                self.position += 1;
                self.record(record);
            }
            for write in &step.documents {
                self.document(write);
            }
        }
        self.connection.execute_batch("COMMIT").unwrap();
    }

    fn name(&mut self, text: &str) -> i64 {
        if let Some(id) = self.names.get(text) {
            return *id;
        }
        let select = "SELECT id FROM names WHERE name = ?1";
        let found = self.connection.query_row(select, [text], |row| row.get(0));
        let id = found.unwrap_or_else(|_| {
            self.connection.execute("INSERT INTO names (name) VALUES (?1)", [text]).unwrap();
            self.connection.last_insert_rowid()
        });
        self.names.insert(text.to_owned(), id);
        id
    }

    fn record(&mut self, record: &NewRecord) {
        let (mut event, mut cause, mut correlation) = (None, None, None);
        let (mut node, mut event_type, mut sender) = (None, None, None);
        for tag in &record.tags {
            match tag {
                Tag::Event(id) => event = Some(id.to_bytes()),
                Tag::Cause(id) => cause = Some(id.to_bytes()),
                Tag::Correlation(text) => correlation = Some(text.parse::<EventId>().unwrap().to_bytes()),
                Tag::Node(text) => node = Some(self.name(text)),
                Tag::Type(text) => event_type = Some(self.name(text)),
                Tag::Sender(text) => sender = Some(self.name(text)),
                _ => {}
            }
        }
        let mut insert = self
            .connection
            .prepare_cached(
                "INSERT INTO records (position, at_unix_ms, checksum, event, cause, correlation, node, type, sender, \
                 tags, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, NULL, ?10)",
            )
            .unwrap();
        let checksum = (self.position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as i64;
        let row = params![
            self.position,
            AT + self.position / 10,
            checksum,
            event,
            cause,
            correlation,
            node,
            event_type,
            sender,
            &record.bytes[..],
        ];
        insert.execute(row).unwrap();
    }

    fn document(&mut self, write: &Write) {
        let Past::Last(kept) = write.past else { panic!("the past of a state is kept to a number") };
        let content = write.content.as_ref().unwrap();
        let name = self.name(&content.name);
        let (revision, version) = (write.revision as i64, content.version);
        let checksum = write.revision.wrapping_mul(0x9e37_79b9_7f4a_7c15) as i64;
        let (connection, at) = (&self.connection, AT + self.position / 10);
        // The revision is checked, as any user of it would have to.
        let found: Option<(i64, i64)> = connection
            .prepare_cached("SELECT id, revision FROM documents WHERE key = ?1")
            .unwrap()
            .query_row([&*write.key], |row| Ok((row.get(0)?, row.get(1)?)))
            .ok();
        let Some((id, before)) = found else {
            connection
                .prepare_cached(
                    "INSERT INTO documents (key, past, revision, position, at_unix_ms, checksum, name, version, \
                     content) VALUES (?1, 0, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                )
                .unwrap()
                .execute(params![
                    &*write.key,
                    revision,
                    self.position,
                    at,
                    checksum,
                    name,
                    version,
                    &content.bytes[..]
                ])
                .unwrap();
            return;
        };
        assert_eq!(before + 1, revision);
        let keep = "INSERT INTO revisions (document, revision, position, at_unix_ms, checksum, name, version, content) \
                    SELECT id, revision, position, at_unix_ms, checksum, name, version, content FROM documents \
                    WHERE id = ?1";
        connection.prepare_cached(keep).unwrap().execute([id]).unwrap();
        if let Some(oldest) = write.revision.checked_sub(u64::from(kept)) {
            let forget = "DELETE FROM revisions WHERE document = ?1 AND revision < ?2";
            connection.prepare_cached(forget).unwrap().execute(params![id, oldest as i64]).unwrap();
        }
        let update = "UPDATE documents SET past = 1, revision = ?2, position = ?3, at_unix_ms = ?4, checksum = ?5, \
                      name = ?6, version = ?7, content = ?8 WHERE id = ?1";
        let row = params![id, revision, self.position, at, checksum, name, version, &content.bytes[..]];
        connection.prepare_cached(update).unwrap().execute(row).unwrap();
    }
}

const AT: i64 = 1_760_000_000_000;
