//! The tables of the embedded store: their text, how a connection to them is set up, and how a new database comes to
//! be. Owns the version of the format; does not know who reads or writes. `docs/format.md` has the same for people.

use std::borrow::Cow;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use happen_core::{Error, Result};
use rusqlite::{Connection, OpenFlags};

use super::fault::{self, Fault, StoreFault};
use super::rows;

/// The number in the header of the file that says whose it is: `HAPP`.
pub(super) const APPLICATION_ID: i64 = 0x4841_5050;

/// The version of the tables, which the header of the file keeps as `user_version`.
pub(super) const FORMAT_VERSION: i64 = 2;

/// The first version, which is carried over when it is opened to be written, and read as it is.
const FORMAT_FIRST: i64 = 1;

/// What came with the second version: the last columns of these tables.
const COLUMNS_SECOND: [(&str, &str); 2] =
    [("documents", "replaced INTEGER"), ("revisions", "packing INTEGER")];

/// The database in the folder of a store. SQLite keeps two more files beside it while it is open.
pub(super) const DATABASE: &str = "happen.db";

/// The log that SQLite writes before it writes into the database.
pub(super) const WRITE_AHEAD_LOG: &str = "happen.db-wal";

/// The file that a running store keeps locked.
pub(super) const LOCK: &str = "lock";

/// A database that is being made; it gets its name once it is whole.
pub(super) const UNFINISHED: &str = "happen.db-new";

/// What every record has is a column, because a row of its own for each would take more room than the record. Their
/// indexes end with the position, so each finds the records of one tag in the order of the log. There is no index of
/// times: they ascend with the positions, so the place of a time is found by halving.
const TABLES: &str = "
CREATE TABLE log (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    head INTEGER NOT NULL,
    at_unix_ms INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE names (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE records (
    position INTEGER PRIMARY KEY,
    at_unix_ms INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    event BLOB,
    cause BLOB,
    correlation ANY,
    node INTEGER,
    type INTEGER,
    sender INTEGER,
    tags BLOB,
    bytes BLOB NOT NULL
) STRICT;
CREATE INDEX records_by_event ON records (event) WHERE event IS NOT NULL;
CREATE INDEX records_by_cause ON records (cause) WHERE cause IS NOT NULL;
CREATE INDEX records_by_correlation ON records (correlation) WHERE correlation IS NOT NULL;
CREATE INDEX records_by_node ON records (node) WHERE node IS NOT NULL;
CREATE INDEX records_by_type ON records (type) WHERE type IS NOT NULL;
CREATE INDEX records_by_sender ON records (sender) WHERE sender IS NOT NULL;
CREATE TABLE tags (
    kind INTEGER NOT NULL,
    value ANY NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (kind, value, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    past INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    position INTEGER NOT NULL,
    at_unix_ms INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    name INTEGER,
    version INTEGER,
    content BLOB,
    replaced INTEGER
) STRICT;
CREATE TABLE revisions (
    id INTEGER PRIMARY KEY,
    document INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    position INTEGER NOT NULL,
    at_unix_ms INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    name INTEGER,
    version INTEGER,
    content BLOB,
    packing INTEGER,
    UNIQUE (document, revision)
) STRICT;
CREATE TABLE prunes (
    id INTEGER PRIMARY KEY,
    before INTEGER NOT NULL,
    selected BLOB,
    keep BLOB NOT NULL,
    histories BLOB NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE VIEW journal AS SELECT
    position,
    strftime('%Y-%m-%d %H:%M:%f', at_unix_ms / 1000.0, 'unixepoch') AS at,
    lower(substr(hex(event), 1, 8) || '-' || substr(hex(event), 9, 4) || '-' || substr(hex(event), 13, 4) || '-'
        || substr(hex(event), 17, 4) || '-' || substr(hex(event), 21)) AS event,
    lower(substr(hex(cause), 1, 8) || '-' || substr(hex(cause), 9, 4) || '-' || substr(hex(cause), 13, 4) || '-'
        || substr(hex(cause), 17, 4) || '-' || substr(hex(cause), 21)) AS cause,
    CASE typeof(correlation) WHEN 'blob' THEN
        lower(substr(hex(correlation), 1, 8) || '-' || substr(hex(correlation), 9, 4) || '-'
            || substr(hex(correlation), 13, 4) || '-' || substr(hex(correlation), 17, 4) || '-'
            || substr(hex(correlation), 21))
        ELSE correlation END AS correlation,
    (SELECT name FROM names WHERE id = node) AS node,
    (SELECT name FROM names WHERE id = type) AS type,
    (SELECT name FROM names WHERE id = sender) AS sender,
    length(bytes) AS bytes
FROM records;
";

/// Pages of memory for the writer: the upper levels of all indexes of some million records. In kibibytes.
const WRITER_CACHE_KIB: i64 = 32 << 10;

/// The same for each reader.
const READER_CACHE_KIB: i64 = 8 << 10;

/// Pages after which the write-ahead log is carried over into the database. A page that is written often is carried
/// over once each time, so a longer log is less work; 16 MiB of it are read in some ten milliseconds after a crash.
const CHECKPOINT_PAGES: i64 = 4_000;

/// Bytes to which the write-ahead log shrinks again after something, such as a backup, kept it from being used anew.
const LOG_BYTES_KEPT: i64 = 64 << 20;

/// Statements that a connection keeps prepared; there are fewer.
const STATEMENTS_MAX: usize = 96;

/// How long a connection waits for another process that recovers the database after a crash.
const BUSY: Duration = Duration::from_secs(5);

/// Makes a database in the folder unless there is one. It has its name only once it is whole, so a crash meanwhile
/// leaves none, and an empty file with that name is known to be damaged.
pub(super) fn create(folder: &Path) -> Result<()> {
    let database = folder.join(DATABASE);
    if database.try_exists().map_err(|error| fault::file("look for", &database, error))? {
        return Ok(());
    }
    let log = folder.join(WRITE_AHEAD_LOG);
    if log.try_exists().map_err(|error| fault::file("look for", &log, error))? {
        return Err(fault::damaged(format!(
            "{} has a write-ahead log and no database, so the database was lost; restore a backup",
            folder.display()
        )));
    }
    let unfinished = folder.join(UNFINISHED);
    remove_unfinished(&unfinished)?;
    let what = || format!("make the database {}", unfinished.display());
    let mode = flags(OpenFlags::SQLITE_OPEN_READ_WRITE, true);
    let connection = Connection::open_with_flags(&unfinished, mode).during(what)?;
    let begin = format!(
        "PRAGMA page_size = 4096; PRAGMA journal_mode = OFF; PRAGMA application_id = {APPLICATION_ID}; \
         PRAGMA user_version = {FORMAT_VERSION}; BEGIN; {TABLES}"
    );
    connection.execute_batch(&begin).during(what)?;
    let first = rusqlite::params![0, 0, rows::log_checksum(0, 0)];
    connection.execute(PUT_LOG, first).during(what)?;
    connection.execute_batch("COMMIT; PRAGMA journal_mode = WAL").during(what)?;
    connection.close().map_err(|(_, error)| error).during(what)?;
    sync(&unfinished)?;
    fs::rename(&unfinished, &database).map_err(|error| fault::file("name", &database, error))?;
    sync(folder)
}

/// Removes what a process that ended too early left.
pub(super) fn remove_unfinished(unfinished: &Path) -> Result<()> {
    match fs::remove_file(unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(fault::file("remove", unfinished, error))
        }
        _ => Ok(()),
    }
}

/// A connection to a database that nobody else knows.
pub(super) fn plain(database: &Path) -> Result<Connection> {
    let mode = flags(OpenFlags::SQLITE_OPEN_READ_WRITE, false);
    Connection::open_with_flags(database, mode).during(|| format!("open {}", database.display()))
}

/// Makes sure that a file or folder is on the disk.
pub(super) fn sync(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|error| fault::file("sync", path, error))
}

fn flags(mode: OpenFlags, create: bool) -> OpenFlags {
    let create = if create { OpenFlags::SQLITE_OPEN_CREATE } else { OpenFlags::empty() };
    // One thread has one connection, so SQLite's own locks between threads are not needed.
    mode | create | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// The connection that writes; there is one. One that does not sync leaves it to the system when its writes reach the disk.
pub(super) fn writer(folder: &Path, pages_max: Option<u64>, synced: bool) -> Result<Connection> {
    let (connection, version) = connect(folder, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let what = || format!("open the store in {}", folder.display());
    let mode: String =
        connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).during(what)?;
    if mode != "wal" {
        let what = format!("SQLite cannot keep a write-ahead log in {}", folder.display());
        return Err(Error::misuse(format!("{what}; choose a folder on a disk of this machine")));
    }
    let synchronous = if synced { "FULL" } else { "OFF" };
    connection
        .execute_batch(&format!(
            "PRAGMA synchronous = {synchronous}; PRAGMA cache_size = -{WRITER_CACHE_KIB}; \
             PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; PRAGMA journal_size_limit = {LOG_BYTES_KEPT};"
        ))
        .during(what)?;
    if let Some(pages) = pages_max {
        let set = format!("PRAGMA max_page_count = {pages}");
        connection.query_row(&set, [], |row| row.get::<_, i64>(0)).during(what)?;
    }
    if version == FORMAT_FIRST {
        carry_over(folder, &connection)?;
    }
    Ok(connection)
}

/// Makes a store of the first version one of this version: whole or not at all, and without touching a row.
fn carry_over(folder: &Path, connection: &Connection) -> Result<()> {
    let what = || format!("carry the store in {} over to format {FORMAT_VERSION}", folder.display());
    let add = |(table, column)| format!("ALTER TABLE {table} ADD COLUMN {column}; ");
    let columns: String = COLUMNS_SECOND.map(add).concat();
    connection
        .execute_batch(&format!("BEGIN IMMEDIATE; {columns} PRAGMA user_version = {FORMAT_VERSION}; COMMIT"))
        .during(what)?;
    check_tables(folder, connection, FORMAT_VERSION)
}

/// A connection that reads.
pub(super) fn reader(folder: &Path) -> Result<Connection> {
    let (connection, _) = connect(folder, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let set = format!("PRAGMA cache_size = -{READER_CACHE_KIB};");
    connection.execute_batch(&set).during(|| format!("open the store in {}", folder.display()))?;
    Ok(connection)
}

/// A connection, and the version of what it is connected to.
fn connect(folder: &Path, mode: OpenFlags) -> Result<(Connection, i64)> {
    let database = folder.join(DATABASE);
    check_file(folder, &database)?;
    let what = || format!("open the store in {}", folder.display());
    let mut connection = Connection::open_with_flags(&database, flags(mode, false)).during(what)?;
    if mode == OpenFlags::SQLITE_OPEN_READ_ONLY
        && connection.query_row("PRAGMA schema_version", [], |_| Ok(())).is_err()
        && !folder.join(WRITE_AHEAD_LOG).exists()
    {
        // A reader of a write-ahead log writes a little too. In a folder where it must not, a store that was closed
        // well has all in one file, which nobody can be writing.
        let uri = format!("file:{}?immutable=1", escape(&database));
        let mode = flags(mode, false) | OpenFlags::SQLITE_OPEN_URI;
        connection = Connection::open_with_flags(uri, mode).during(what)?;
    }
    connection.busy_timeout(BUSY).during(what)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Costs little, and finds cells of pages that cannot be.
    connection.execute_batch("PRAGMA cell_size_check = 1").during(what)?;
    let version = check_version(folder, &connection)?;
    Ok((connection, version))
}

/// A path as a URI has it.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}

fn check_file(folder: &Path, database: &Path) -> Result<()> {
    match fs::metadata(database) {
        Ok(found) if found.len() == 0 => Err(fault::damaged(format!(
            "{} is empty, so what it had was lost; nothing of it is readable; restore a backup",
            database.display()
        ))),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let what = format!("there is no store in {}; give the folder of one", folder.display());
            Err(Error::misuse(what).with_source(StoreFault::Missing { folder: folder.to_owned() }))
        }
        Err(error) => Err(fault::file("look at", database, error)),
    }
}

/// The version of what a connection sees now: another process may carry it over while this one reads.
pub(super) fn version(connection: &Connection) -> Result<i64> {
    let what = || "read the version of the store".to_owned();
    let mut version = connection.prepare_cached("PRAGMA user_version").during(what)?;
    version.query_row([], |row| row.get(0)).during(what)
}

/// Whether the tables that a connection sees now can have packed revisions.
pub(super) fn has_packing(connection: &Connection) -> Result<bool> {
    Ok(version(connection)? > FORMAT_FIRST)
}

fn check_version(folder: &Path, connection: &Connection) -> Result<i64> {
    let what = || format!("read the version of the store in {}", folder.display());
    let number = |pragma| connection.query_row(pragma, [], |row| row.get::<_, i64>(0)).during(what);
    let (application, version) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
    if application != APPLICATION_ID {
        return Err(fault::not_a_store(&folder.join(DATABASE)));
    }
    match version {
        FORMAT_FIRST..=FORMAT_VERSION => check_tables(folder, connection, version).map(|()| version),
        found if found > FORMAT_VERSION => {
            let source = StoreFault::NewerFormat { found, known: FORMAT_VERSION };
            let what = format!(
                "the store in {} has format {found} and this program knows {FORMAT_VERSION}; use the newer program \
                 that wrote it, or restore a backup from before",
                folder.display()
            );
            Err(Error::misuse(what).with_source(source))
        }
        found => Err(fault::damaged(format!(
            "the store in {} says that it has format {found}, which there never was; restore a backup",
            folder.display()
        ))),
    }
}

/// Checks that the tables are those that were made: SQLite keeps their text, and what it says is how it reads them.
fn check_tables(folder: &Path, connection: &Connection, version: i64) -> Result<()> {
    let what = || format!("read what tables the store in {} has", folder.display());
    // In any order, because a copy has them in another one.
    let mut select =
        connection.prepare("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").during(what)?;
    let mut rows = select.query([]).during(what)?;
    let mut found: Vec<(String, String)> = Vec::new();
    while let Some(row) = rows.next().during(what)? {
        found.push((row.get(0).during(what)?, row.get(1).during(what)?));
    }
    let tables = tables(version);
    let expected = tables.split(";\n").map(str::trim).filter(|table| !table.is_empty());
    let expected: Vec<_> = expected.collect();
    let is_there = |table: &&str| {
        let name = table.split_whitespace().nth(2);
        found.iter().any(|(named, text)| is_same_sql(text, table) && name == Some(&**named))
    };
    if found.len() == expected.len() && expected.iter().all(is_there) {
        return Ok(());
    }
    Err(fault::damaged(format!(
        "the store in {}: its tables are not those of format {version}; keep a copy of the folder and restore a backup",
        folder.display()
    )))
}

/// Whether two statements are the same but for white space: SQLite adds a column to the text of its table in its own way.
fn is_same_sql(one: &str, other: &str) -> bool {
    one.split_ascii_whitespace().flat_map(str::bytes).eq(other.split_ascii_whitespace().flat_map(str::bytes))
}

/// The tables of a version.
fn tables(version: i64) -> Cow<'static, str> {
    if version > FORMAT_FIRST {
        return TABLES.into();
    }
    let without =
        |tables: String, (_, column): &(&str, &str)| tables.replace(&format!(",\n    {column}"), "");
    COLUMNS_SECOND.iter().fold(TABLES.to_owned(), without).into()
}

pub(super) const PUT_LOG: &str =
    "INSERT OR REPLACE INTO log (one, head, at_unix_ms, checksum) VALUES (1, ?1, ?2, ?3)";
