//! The store in a folder keeps every promise of the seam, and what only it promises.
#![cfg(all(feature = "embedded", unix))]
#![expect(clippy::unwrap_used, reason = "whatever is not there fails the test, wherever it is looked for")]
#![expect(
    clippy::disallowed_methods,
    reason = "processes are real, and so is the thread that reads their output"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use happen::env::RealEnv;
use happen::store::{
    Batch, Condition, Content, Document, History, List, MemoryStore, NewRecord, Past, Position, Prune, Read,
    Record, Replaced, Select, SqliteOptions, SqliteStore, Start, Store, StoreDamage, StoreFault, Tag, Until,
    Write,
};
use happen::{Config, Error, EventId, Result, Space};
use happen_core::env::{BoxFuture, BoxWork, CoarseClock, Env};
use happen_testing::store_contract::StoreBench;
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

/// Opens stores in folders that disappear with it.
struct Folders(TempDir);

impl Folders {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl StoreBench for Folders {
    fn open(&self) -> Arc<dyn Store> {
        Arc::new(open(self.0.path()).unwrap())
    }

    fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        assert_eq!(Arc::strong_count(&store), 1, "somebody still has the store");
        drop(store);
        self.open()
    }
}

happen_testing::store_contract!(Folders::new());

/// The store of a space that was opened in a folder.
#[test]
fn a_space_remembers_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let env: Arc<dyn Env> = Arc::new(RealEnv::new());
        let open = || SqliteStore::open(folder.path(), SqliteOptions::new(Arc::clone(&env)));
        let over = |store| Space::with_store(Config::default(), Arc::clone(&env), Arc::new(store)).unwrap();
        let space = over(open().await.unwrap());
        assert_eq!(codes(&space.store().commit(vec![step(1)]).await), ["ok"]);
        let busy = open().await.unwrap_err();
        assert_eq!(busy.code(), "busy", "{busy}");
        drop(space);
        let space = over(open().await.unwrap());
        assert_eq!(space.store().read(Read::forward(Select::All)).await.unwrap().records.len(), 2);
    });
}

#[test]
fn a_folder_belongs_to_one_process_and_says_to_which() {
    let folder = tempfile::tempdir().unwrap();
    let mut holder = Role::Hold.start(folder.path());
    assert_eq!(holder.line(), "ready");
    let error = open(folder.path()).unwrap_err();
    assert_eq!(error.code(), "busy");
    let Some(StoreFault::InUse { pid, .. }) = error.find_cause() else { panic!("{error:?}") };
    assert_eq!(*pid, Some(holder.child.id()));
    assert!(error.to_string().contains(&holder.child.id().to_string()), "{error}");
    // A reader needs no leave, and sees what the other process commits, also later and by a watch.
    let reader = wait(SqliteStore::open_read_only(folder.path(), options())).unwrap();
    assert_eq!(everything(&reader).unwrap().records.len(), 2);
    let mut watch = wait(reader.watch(Select::All, Position::START)).unwrap();
    assert_eq!(wait(watch.next()).unwrap().len(), 2);
    holder.say("more");
    assert_eq!(texts(&wait(watch.next()).unwrap())[0], "2");
    assert_eq!(code_of(wait(reader.commit(vec![step(9)])).remove(0)), "misuse");
    assert_eq!(code_of(wait(reader.prune(prune_all(Position::START)))), "misuse");
    // The system lets go of the lock of a process that was killed.
    holder.kill();
    let store = open(folder.path()).unwrap();
    assert_eq!(everything(&store).unwrap().records.len(), 4);
}

/// As a child has it for a moment that this process started while it closed the store.
#[test]
fn a_folder_that_this_process_is_just_letting_go_of_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    let held = fs::OpenOptions::new().read(true).write(true).open(folder.path().join("lock")).unwrap();
    held.lock().unwrap();
    // Whoever has it for long is told, also by itself.
    assert_eq!(open(folder.path()).unwrap_err().code(), "busy");
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| open(folder.path()).map(drop));
        std::thread::park_timeout(Duration::from_millis(20));
        drop(held);
        opening.join().unwrap().unwrap();
    });
}

#[test]
fn what_was_acknowledged_survives_a_kill_and_nothing_is_half() {
    for run in 0..KILLS {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Role::Commit.start(folder.path());
        let acknowledged: BTreeSet<u64> =
            (0..40 + run * 37).map(|_| writer.line().parse().unwrap()).collect();
        let more = writer.kill();
        let acknowledged: BTreeSet<u64> =
            acknowledged.into_iter().chain(more.lines().filter_map(|line| line.parse().ok())).collect();
        let store = open(folder.path()).unwrap();
        let found = everything(&store).unwrap();
        let mut numbers: Vec<u64> =
            found.records.iter().map(|record| text(record).parse().unwrap()).collect();
        assert!(numbers.len().is_multiple_of(2), "a batch has two records");
        assert!(numbers.chunks(2).all(|pair| pair[0] == pair[1]), "{numbers:?}");
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len() * 2, found.records.len(), "nothing is there twice");
        let there: BTreeSet<u64> = numbers.into_iter().collect();
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "{lost:?} were acknowledged and are not there");
        // The documents say the same as the records: each flow counted its steps.
        for flow in 0..FLOWS {
            let steps = there.iter().filter(|number| *number % FLOWS == flow).count() as u64;
            let document = wait((&store as &dyn Store).document(&format!("flow/{flow}"))).unwrap();
            assert_eq!(document.map_or(0, |document| document.revision), steps);
        }
        assert!(wait(store.verify()).unwrap().is_whole());
        assert_eq!(codes(&wait(store.commit(vec![step(1)]))), ["ok"]);
    }
}

#[test]
fn a_pruning_that_was_killed_goes_on_and_was_never_half() {
    let folder = tempfile::tempdir().unwrap();
    let before = {
        let store = open(folder.path()).unwrap();
        for _ in 0..20 {
            let records = (0..500).map(|number| note("old", &number.to_string())).collect();
            let batch = Batch { records, ..Batch::default() };
            assert_eq!(codes(&wait(store.commit(vec![batch]))), ["ok"]);
        }
        wait(store.commit(vec![Batch { records: vec![note("new", "new")], ..Batch::default() }]))
            .remove(0)
            .unwrap()
            .position
    };
    let mut pruner = Role::Prune(before).start(folder.path());
    assert_eq!(pruner.line(), "begun");
    pruner.kill();
    let reader = wait(SqliteStore::open_read_only(folder.path(), options())).unwrap();
    let left = wait(reader.info()).unwrap();
    assert_eq!(left.prunings, 1, "killed in the middle");
    assert!(1 < left.records && left.records < 10_000, "{left:?}");
    assert_eq!(texts(&everything(&reader).unwrap().records), ["new"]);
    drop(reader);
    let store = open(folder.path()).unwrap();
    assert_eq!(texts(&everything(&store).unwrap().records), ["new"]);
    // A further pruning comes after the one that is left, so when it ends both have.
    wait(store.prune(prune_all(Position::START))).unwrap();
    let done = wait(store.info()).unwrap();
    assert_eq!((done.records, done.prunings), (1, 0));
    assert!(done.free_bytes > 0, "its room is used again");
    let document = wait((&store as &dyn Store).document("anchor")).unwrap().unwrap();
    assert_eq!(document.revision, 1);
    assert!(wait(store.verify()).unwrap().is_whole());
}

#[test]
fn positions_and_times_go_on_over_restarts_with_a_clock_that_went_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut last = Position::START;
    for (unix_ms, expected) in [(5_000, 5_000), (1_000, 5_000), (7_000, 7_000), (0, 7_000)] {
        let env = Arc::new(Clock { unix_ms: AtomicU64::new(unix_ms), env: RealEnv::new() });
        let store = wait(SqliteStore::open(folder.path(), SqliteOptions::new(env))).unwrap();
        // A batch without a record has its position and its time too.
        let write = Batch { documents: vec![write("x", None, "x", &store)], ..Batch::default() };
        let results = wait(store.commit(vec![step_without_document(), write]));
        let positions: Vec<_> = results.into_iter().map(|result| result.unwrap().position).collect();
        assert!(last < positions[0] && positions[0] < positions[1]);
        last = positions[1];
        let record = everything(&store).unwrap().records.pop().unwrap();
        let document = wait((&store as &dyn Store).document("x")).unwrap().unwrap();
        assert_eq!((record.at_unix_ms, document.at_unix_ms), (expected, expected));
        assert_eq!(wait(store.info()).unwrap().at_unix_ms, expected);
        // All records may be gone without the log beginning anew.
        wait(store.prune(prune_all(Position::from_number(u128::MAX)))).unwrap();
        assert_eq!(everything(&store).unwrap().records, []);
    }
}

#[test]
fn a_full_disk_fails_the_commit_and_the_store_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = wait(SqliteStore::open(folder.path(), options().bytes_max(1 << 20))).unwrap();
    let large = |text: &str| Batch {
        records: vec![NewRecord { tags: vec![declared(text)], bytes: vec![7; 50_000].into() }],
        documents: Vec::new(),
        conditions: Vec::new(),
    };
    let mut written = 0;
    let full = loop {
        match wait(store.commit(vec![large("a")])).remove(0) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "a mebibyte takes no hundred of these");
    };
    assert_eq!(full.code(), "io", "{full}");
    assert_eq!(full.find_cause(), Some(&StoreFault::Full), "{full:?}");
    assert!(full.to_string().contains("no room left"), "{full}");
    // Nothing of it is there, all before is, and what needs no room is still written.
    assert_eq!(everything(&store).unwrap().records.len(), written);
    let one = note("b", "small");
    assert_eq!(codes(&wait(store.commit(vec![Batch { records: vec![one], ..Batch::default() }]))), ["ok"]);
    let head = wait(store.read(Read::forward(Select::All).at_most(0))).unwrap().head;
    let pruned = wait(store.prune(prune_all(head))).unwrap();
    assert_eq!(pruned.records, written as u64);
    for _ in 0..written / 2 {
        assert_eq!(codes(&wait(store.commit(vec![large("c")]))), ["ok"]);
    }
    // One that does not fit takes none of those beside it with it.
    let (store, batch) = (Arc::new(store), large("d"));
    let huge = Batch { records: vec![batch.records[0].clone(); 30], ..Batch::default() };
    let results: Vec<_> = std::thread::scope(|threads| {
        let calls: Vec<_> = (0..16)
            .map(|call| {
                let (store, huge) = (Arc::clone(&store), huge.clone());
                let small = Batch { records: vec![note("e", "small")], ..Batch::default() };
                let batch = if call % 4 == 0 { huge } else { small };
                threads.spawn(move || wait(store.commit(vec![batch])).remove(0))
            })
            .collect();
        calls.into_iter().map(|call| code_of(call.join().unwrap())).collect()
    });
    for (call, code) in results.into_iter().enumerate() {
        assert_eq!(code, if call % 4 == 0 { "io" } else { "ok" });
    }
    assert!(wait(store.verify()).unwrap().is_whole());
}

#[test]
fn a_flipped_bit_is_told_or_does_no_harm() {
    let (folder, original) = sample();
    let database = folder.path().join("happen.db");
    let bytes = fs::read(&database).unwrap();
    let (mut told, mut harmless, mut hidden) = (0, 0, 0);
    // A step that is no divisor of a page's size, so that all parts of pages are met.
    for at in (0..bytes.len()).step_by((bytes.len() / FLIPS) | 1) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let folder = copy_of(&[("happen.db", &flipped)]);
        let store = match wait(SqliteStore::open_read_only(folder.path(), options())) {
            Ok(store) => store,
            Err(error) => {
                assert_typed(&error, at);
                told += 1;
                continue;
            }
        };
        match everything(&store) {
            Err(error) => {
                assert_typed(&error, at);
                told += 1;
            }
            Ok(found) if found == original => harmless += 1,
            Ok(found) => {
                // Never another one, never one in another place: at most, an index hides what is there.
                assert!(found.is_part_of(&original), "byte {at}: what came was never written");
                let verified = wait(store.verify());
                assert!(!verified.unwrap().is_whole(), "byte {at}: what is hidden is found by a look at all");
                hidden += 1;
            }
        }
        // Each answer is checked, not only the first one after opening.
        for record in &original.records {
            match wait(store.read(Read::forward(Select::tag(record.tags[0].clone())))) {
                Ok(page) => assert!(page.records.iter().all(|found| original.records.contains(found))),
                Err(error) => assert_typed(&error, at),
            }
        }
    }
    assert!(told > FLIPS / 4, "told {told}, harmless {harmless}, hidden {hidden}");
    assert!(hidden < FLIPS / 10, "told {told}, harmless {harmless}, hidden {hidden}");
}

#[test]
fn damage_names_its_place_and_the_rest_is_readable() {
    let (folder, original) = sample();
    let database = folder.path().join("happen.db");
    let mut bytes = fs::read(&database).unwrap();
    let damaged = &original.records[20];
    let at = find(&bytes, &damaged.bytes);
    bytes[at + 3] ^= 4;
    fs::write(&database, &bytes).unwrap();
    let store = open(folder.path()).unwrap();
    // What lies before is given, and then what is damaged is named.
    let page = wait(store.read(Read::forward(Select::All))).unwrap();
    assert_eq!(
        (&page.records[..], page.next),
        (&original.records[..20], Some(original.records[19].position))
    );
    let from = Start::Position(page.next.unwrap());
    let error = wait(store.read(Read::forward(Select::All).start(from))).unwrap_err();
    assert_eq!(error.code(), "damaged");
    assert!(!error.is_retryable());
    assert!(error.to_string().contains(&format!("position {}", damaged.position)), "{error}");
    let by_tag = wait(store.read(Read::forward(Select::tag(damaged.tags[0].clone())))).unwrap_err();
    assert_eq!(by_tag.code(), "damaged");
    let mut watch = wait(store.watch(Select::All, damaged.position)).unwrap();
    assert_eq!(wait(watch.next()).unwrap(), original.records[21..], "reading goes on behind it");
    let before = Read::backward(Select::All).start(Start::Position(damaged.position));
    assert_eq!(wait(store.read(before)).unwrap().records.len(), 20);
    let verified = wait(store.verify()).unwrap();
    assert_eq!(verified.damages, [StoreDamage::Record { position: damaged.position }]);
    assert_eq!(verified.records as usize, original.records.len() - 1);
    // A copy of damage would be one more thing that nobody knows to be damaged.
    let copy = tempfile::tempdir().unwrap();
    let refused = wait(store.backup(copy.path())).unwrap_err();
    assert_eq!(refused.code(), "damaged", "{refused}");
    assert!(!copy.path().join("happen.db").exists());
    // Pruning leaves it to be looked at, takes the rest, and says so.
    let head = wait(store.read(Read::forward(Select::All).at_most(0))).unwrap().head;
    let mut prune = prune_all(head);
    prune.documents.clear();
    prune.keep = vec![declared("nothing has this")];
    let told = wait(store.prune(prune)).unwrap_err();
    assert!(told.to_string().contains(&format!("position {}", damaged.position)), "{told}");
    assert_eq!(wait(store.info()).unwrap().records, 2, "the damaged one, and the one at the position itself");
}

#[test]
fn a_damaged_document_names_its_key() {
    let (folder, _) = sample();
    let database = folder.path().join("happen.db");
    let mut bytes = fs::read(&database).unwrap();
    let at = find(&bytes, b"content of document 3, revision 2");
    bytes[at] ^= 1;
    fs::write(&database, &bytes).unwrap();
    let store = open(folder.path()).unwrap();
    let error = wait((&store as &dyn Store).document("document/3")).unwrap_err();
    assert!(error.code() == "damaged" && error.to_string().contains("`document/3`"), "{error}");
    assert!(wait((&store as &dyn Store).document("document/4")).unwrap().is_some());
    let verified = wait(store.verify()).unwrap();
    assert!(matches!(&verified.damages[..], [StoreDamage::Document { key, .. }] if key == "document/3"));
}

#[test]
fn a_truncated_database_is_told() {
    let (folder, original) = sample();
    let bytes = fs::read(folder.path().join("happen.db")).unwrap();
    for part in 0..16 {
        let len = bytes.len() * part / 16;
        let folder = copy_of(&[("happen.db", &bytes[..len])]);
        let told = open(folder.path()).and_then(|store| everything(&store));
        let error = told.map(|found| found == original).unwrap_err();
        assert_typed(&error, len);
    }
    // No database beside its log is a database that was lost, and not a new store.
    let folder = copy_of(&[("happen.db-wal", b"something")]);
    assert_eq!(code_of(open(folder.path())), "damaged");
}

#[test]
fn damage_in_the_middle_of_the_write_ahead_log_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    for number in 0..STEPS {
        assert_eq!(codes(&wait(store.commit(vec![numbered(number)]))), ["ok"]);
    }
    // What a process leaves that is killed now.
    let database = fs::read(folder.path().join("happen.db")).unwrap();
    let log = fs::read(folder.path().join("happen.db-wal")).unwrap();
    let crashed = copy_of(&[("happen.db", &database), ("happen.db-wal", &log)]);
    let found = everything(&open(crashed.path()).unwrap()).unwrap();
    assert_eq!(found.records.len() as u64, STEPS, "all was in the log");
    let (mut told, mut last) = (0, 0);
    for at in (32..log.len()).step_by((log.len() / 150) | 1) {
        let mut flipped = log.clone();
        flipped[at] ^= 1 << (at % 8);
        let folder = copy_of(&[("happen.db", &database), ("happen.db-wal", &flipped)]);
        match open(folder.path()).and_then(|store| everything(&store)) {
            Err(error) => {
                assert_eq!(error.code(), "damaged", "byte {at}: {error}");
                told += 1;
            }
            // The last commit of all cannot be told from one that was never finished.
            Ok(found) => {
                assert!(
                    found.records.len() as u64 >= STEPS - 1,
                    "byte {at}: {} are left",
                    found.records.len()
                );
                last += 1;
            }
        }
    }
    assert!(told > 100 && last > 0, "told {told}, in the last commit {last}");
    // A log that ends early is one that was being written: whatever is whole of it is there.
    for len in (0..log.len()).step_by(log.len() / 20) {
        let folder = copy_of(&[("happen.db", &database), ("happen.db-wal", &log[..len])]);
        let found = everything(&open(folder.path()).unwrap()).unwrap();
        let numbers: Vec<_> = found.records.iter().map(text).collect();
        let expected: Vec<_> = (0..numbers.len()).map(|number| number.to_string()).collect();
        assert_eq!(numbers, expected);
    }
}

#[test]
fn what_is_no_store_of_ours_is_refused_and_left_alone() {
    let garbage = vec![b'x'; 8_192];
    let folder = copy_of(&[("happen.db", &garbage)]);
    assert_eq!(code_of(open(folder.path())), "misuse");
    assert_eq!(fs::read(folder.path().join("happen.db")).unwrap(), garbage);

    let folder = tempfile::tempdir().unwrap();
    let other = Connection::open(folder.path().join("happen.db")).unwrap();
    other.execute_batch("CREATE TABLE theirs (id INTEGER)").unwrap();
    drop(other);
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error.find_cause(), Some(StoreFault::NotAStore { .. })), "{error:?}");

    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    let newer = Connection::open(folder.path().join("happen.db")).unwrap();
    newer.pragma_update(None, "user_version", 3).unwrap();
    drop(newer);
    for opened in [open(folder.path()), wait(SqliteStore::open_read_only(folder.path(), options()))] {
        let error = opened.unwrap_err();
        assert_eq!(error.find_cause(), Some(&StoreFault::NewerFormat { found: 3, known: 2 }), "{error:?}");
        assert!(error.to_string().contains("newer program"), "{error}");
    }

    let folder = tempfile::tempdir().unwrap();
    let error = wait(SqliteStore::open_read_only(folder.path(), options())).unwrap_err();
    assert!(matches!(error.find_cause(), Some(StoreFault::Missing { .. })), "{error:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "a reader makes nothing");
}

/// A folder as the first version wrote it is read as it is, and carried over by the first process that writes it.
#[test]
fn a_folder_of_the_first_version_is_read_and_carried_over() {
    let folder = tempfile::tempdir().unwrap();
    let first = Connection::open(folder.path().join("happen.db")).unwrap();
    first.execute_batch(include_str!("formats/store-1.sql")).unwrap();
    first.pragma_update(None, "journal_mode", "wal").unwrap();
    drop(first);
    let revisions = |all: &Everything, key: &str| -> Vec<u64> {
        let of_it = all.histories.iter().filter(|document| &*document.key == key);
        of_it.map(|document| document.revision).collect()
    };
    let reader = wait(SqliteStore::open_read_only(folder.path(), options())).unwrap();
    assert_eq!(wait(reader.info()).unwrap().format, 1);
    let before = everything(&reader).unwrap();
    assert_eq!(before.records.len(), 12);
    assert_eq!(revisions(&before, "kept"), (1..=12).rev().collect::<Vec<_>>());
    assert_eq!(revisions(&before, "bounded"), [12, 11, 10, 9]);
    assert!(wait(reader.verify()).unwrap().is_whole());
    let copy = tempfile::tempdir().unwrap();
    wait(reader.backup(copy.path())).unwrap();
    for folder in [&folder, &copy] {
        let store = open(folder.path()).unwrap();
        assert_eq!(wait(store.info()).unwrap().format, 2);
        assert_eq!(everything(&store).unwrap(), before);
        let passing = Write { replaced: Replaced::Forgotten, ..write("kept", None, "13", &store) };
        let bounded = Write { past: Past::Last(3), ..write("bounded", None, "13", &store) };
        let batch = Batch { documents: vec![passing, bounded], ..Batch::default() };
        assert_eq!(codes(&wait(store.commit(vec![batch]))), ["ok"]);
        let again = Batch { documents: vec![write("kept", None, "14", &store)], ..Batch::default() };
        assert_eq!(codes(&wait(store.commit(vec![again]))), ["ok"]);
        let after = everything(&store).unwrap();
        let expected: Vec<_> = [14].into_iter().chain((1..=12).rev()).collect();
        assert_eq!(revisions(&after, "kept"), expected);
        assert_eq!(revisions(&after, "bounded"), [13, 12, 11, 10]);
        assert!(wait(store.verify()).unwrap().is_whole());
        drop(store);
        assert_eq!(everything(&open(folder.path()).unwrap()).unwrap(), after);
    }
    // Who began to read the old version goes on with the new one.
    assert_eq!(wait(reader.info()).unwrap().format, 2);
    assert_eq!(revisions(&everything(&reader).unwrap(), "kept")[0], 14);
}

/// A state of some ten kilobytes of which each revision changes one entry and a count, in MessagePack or like it.
fn ledger(revision: u64) -> Vec<u8> {
    let mut text = format!("count {revision:08} ");
    for entry in 0..160_u64 {
        // The last time that its turn came.
        let changed = (revision + 160 - entry) / 160;
        let hash = (entry << 32 | changed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        text += &format!("id order-{entry:06} state paid at {hash:020} cents {:06};", hash % 999_983);
    }
    text += &format!("version {revision:08}");
    text.into_bytes()
}

fn state(key: &str, revision: u64, bytes: Vec<u8>) -> Write {
    let content = Content { name: "ledger".into(), version: 1, bytes: bytes.into() };
    Write {
        key: key.into(),
        revision,
        content: Some(content),
        past: Past::Last(100),
        replaced: Replaced::Kept,
    }
}

fn commit_all(store: &SqliteStore, writes: impl IntoIterator<Item = Write>) {
    let batch = |write| Batch { documents: vec![write], ..Batch::default() };
    let results = wait(store.commit(writes.into_iter().map(batch).collect()));
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// The revisions of a document, one by one and each by itself.
fn one_by_one(store: &SqliteStore, key: &str, last: u64) -> Result<Vec<Document>> {
    let mut found = Vec::new();
    for revision in (1..=last).rev() {
        let until = Until::Before(revision + 1);
        let one = wait(store.history(History { key: key.into(), until, documents_max: 1 }))?;
        found.extend(one.into_iter().filter(|document| document.revision == revision));
    }
    Ok(found)
}

#[test]
fn a_past_of_much_that_stays_the_same_takes_little_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let contents: Vec<_> = (1..=120).map(ledger).collect();
    assert!(contents.iter().all(|content| content.len() > 9_000));
    let writes =
        (1..).zip(&contents).map(|(revision, content)| state("state/shop/ledger", revision, content.clone()));
    commit_all(&store, writes);
    let found = one_by_one(&store, "state/shop/ledger", 120).unwrap();
    let revisions: Vec<_> = found.iter().map(|document| document.revision).collect();
    assert_eq!(revisions, (20..=120).rev().collect::<Vec<_>>());
    for document in &found {
        let content = document.content.as_ref().unwrap();
        assert_eq!(*content.bytes, *contents[document.revision as usize - 1]);
    }
    assert_eq!(everything(&store).unwrap().histories, found);
    assert!(wait(store.verify()).unwrap().is_whole());
    drop(store);
    let connection = Connection::open(folder.path().join("happen.db")).unwrap();
    let sum = |what: &str| -> u64 {
        let sql = format!("SELECT sum({what}) FROM revisions");
        connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap() as u64
    };
    let (kept, whole) = (sum("length(content)"), 100 * contents[0].len() as u64);
    assert!(kept * 10 < whole, "{kept} of {whole} bytes");
    // One of sixteen by itself, and the others by the next one.
    assert_eq!((sum("packing = 1"), sum("packing = 2"), sum("packing IS NULL")), (6, 94, 0));
    let current: Vec<u8> =
        connection.query_row("SELECT content FROM documents", [], |row| row.get(0)).unwrap();
    assert_eq!(current, contents[119]);
}

/// Bits of a packed revision that are others: that is told, and the revisions that do not need it are given.
#[test]
fn a_flipped_bit_in_a_packed_revision_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let key = "state/shop/ledger";
    commit_all(&store, (1..=20).map(|revision| state(key, revision, ledger(revision)[..900].to_vec())));
    let whole = one_by_one(&store, key, 20).unwrap();
    drop(store);
    let path = folder.path().join("happen.db");
    for revision in [9_u64, 16] {
        let row = |connection: &Connection| -> Vec<u8> {
            let sql = "SELECT content FROM revisions WHERE revision = ?1";
            connection.query_row(sql, [revision as i64], |row| row.get(0)).unwrap()
        };
        let written = row(&Connection::open(&path).unwrap());
        let mut told = 0;
        let bits = (0..written.len() * 8).step_by(7);
        let tried = bits.len();
        for bit in bits {
            let mut flipped = written.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let put = |bytes: &[u8]| {
                let connection = Connection::open(&path).unwrap();
                connection.pragma_update(None, "synchronous", "off").unwrap();
                let sql = "UPDATE revisions SET content = ?1 WHERE revision = ?2";
                connection.execute(sql, rusqlite::params![bytes, revision as i64]).unwrap();
            };
            put(&flipped);
            let store = wait(SqliteStore::open_read_only(folder.path(), options().readers(1))).unwrap();
            let until = Until::Before(revision + 1);
            let history = History { key: key.into(), until, documents_max: 1 };
            match wait(store.history(history)) {
                Ok(found) => assert_eq!(found[0], whole[20 - revision as usize], "bit {bit}"),
                Err(error) => {
                    assert_eq!(error.code(), "damaged", "{error}");
                    assert!(error.to_string().contains(key), "{error}");
                    told += 1;
                }
            }
            // Those behind are read without it.
            let until = Until::Before(revision + 2);
            let history = History { key: key.into(), until, documents_max: 1 };
            assert_eq!(wait(store.history(history)).unwrap()[0], whole[19 - revision as usize]);
            drop(store);
            put(&written);
        }
        assert!(told * 100 > tried * 95, "{told} of {tried}");
    }
    let connection = Connection::open(&path).unwrap();
    connection.execute("DELETE FROM revisions WHERE revision = 9", []).unwrap();
    drop(connection);
    let store = open(folder.path()).unwrap();
    let history = |revision| History { key: key.into(), until: Until::Before(revision), documents_max: 1 };
    assert_eq!(code_of(wait(store.history(history(9)))), "damaged", "what it is read by is not there");
    assert_eq!(wait(store.history(history(11))).unwrap()[0].revision, 10);
    assert!(!wait(store.verify()).unwrap().is_whole());
}

/// What a random history does to one document.
#[derive(Debug, Clone)]
enum Act {
    Write { bytes: usize, changed: usize, past: Past, replaced: Replaced },
    Delete { past: Past },
    Prune { back: u64 },
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    let past = || prop_oneof![3 => Just(Past::Kept), 4 => (1..40_u32).prop_map(Past::Last), 1 => Just(Past::Dropped)];
    let replaced = prop_oneof![4 => Just(Replaced::Kept), 1 => Just(Replaced::Forgotten)];
    let bytes = prop_oneof![4 => 400..4_000_usize, 1 => 0..600_usize, 1 => 60_000..70_000_usize];
    let write = (bytes, 0..4_usize, past(), replaced)
        .prop_map(|(bytes, changed, past, replaced)| Act::Write { bytes, changed, past, replaced });
    prop_oneof![
        20 => write,
        1 => past().prop_map(|past| Act::Delete { past }),
        1 => (0..30_u64).prop_map(|back| Act::Prune { back }),
        1 => Just(Act::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Packed or not: the store in a folder has the same past as the one in memory.
    #[test]
    fn a_packed_past_is_that_of_a_store_that_packs_nothing(acts in prop::collection::vec(act(), 1..90)) {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Clock { unix_ms: AtomicU64::new(1_000), env: RealEnv::new() });
        let open = || {
            let options = SqliteOptions::new(Arc::clone(&clock) as Arc<dyn Env>);
            wait(SqliteStore::open(folder.path(), options)).unwrap()
        };
        let model = MemoryStore::new(Arc::clone(&clock) as Arc<dyn Env>);
        let mut store = open();
        let (key, mut positions) = ("state/shop/ledger", vec![Position::START]);
        let mut bytes: Vec<u8> = Vec::new();
        for (number, act) in (1_u64..).zip(&acts) {
            let revision = wait(model.documents(vec![key.into()])).unwrap().pop().flatten();
            let revision = revision.map_or(0, |document| document.revision) + 1;
            let write = match act {
                Act::Write { bytes: len, changed, past, replaced } => {
                    // About the same as before: longer or shorter, and changed in a few places.
                    let noise = |at: usize| (at as u64 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15) as u8;
                    let before = bytes.len();
                    bytes.resize(*len, 0);
                    (before..*len).for_each(|at| bytes[at] = noise(at));
                    for place in 0..*changed {
                        let at = noise(place) as usize * len / 256;
                        if let Some(byte) = bytes.get_mut(at) {
                            *byte = noise(at);
                        }
                    }
                    Write { past: *past, replaced: *replaced, ..state(key, revision, bytes.clone()) }
                }
                Act::Delete { past } => Write { past: *past, content: None, ..state(key, revision, Vec::new()) },
                Act::Prune { back } => {
                    let before = positions[positions.len().saturating_sub(*back as usize + 1)];
                    let prune = || Prune {
                        before,
                        records: Select::Tagged(Vec::new()),
                        keep: Vec::new(),
                        histories: vec!["state/".into()],
                        documents: Vec::new(),
                    };
                    prop_assert_eq!(wait(store.prune(prune())).unwrap(), wait(model.prune(prune())).unwrap());
                    continue;
                }
                Act::Reopen => {
                    drop(store);
                    store = open();
                    continue;
                }
            };
            let batch = || vec![Batch { documents: vec![write.clone()], ..Batch::default() }];
            prop_assert_eq!(codes(&wait(store.commit(batch()))), ["ok"]);
            positions.push(wait(model.commit(batch())).remove(0).unwrap().position);
        }
        let all = |until| History { key: key.into(), until, documents_max: 1_000 };
        let expected = wait(model.history(all(Until::Now))).unwrap();
        prop_assert_eq!(&wait(store.history(all(Until::Now))).unwrap(), &expected);
        for document in &expected {
            let until = Until::Before(document.revision + 1);
            let one = History { documents_max: 1, ..all(until) };
            prop_assert_eq!(&wait(store.history(one)).unwrap()[0], document);
        }
        prop_assert!(wait(store.verify()).unwrap().is_whole());
    }
}

#[test]
fn a_folder_that_may_not_be_written_is_told_and_can_be_read() {
    let (folder, _) = sample();
    fs::remove_file(folder.path().join("lock")).unwrap();
    let mode = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    fs::set_permissions(folder.path().join("happen.db"), fs::Permissions::from_mode(0o444)).unwrap();
    mode(0o555);
    let mut child = Role::ReadOnly.start(folder.path());
    let told = [child.line(), child.line(), child.line()];
    mode(0o755);
    assert_eq!(told[0], "misuse", "{told:?}");
    assert!(told[1].contains("open_read_only"), "{told:?}");
    assert_eq!(told[2], "60");
}

#[test]
fn a_file_is_no_folder_of_a_store() {
    let around = tempfile::tempdir().unwrap();
    let file = around.path().join("file");
    fs::write(&file, "a text").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = open(&path).unwrap_err();
        assert_eq!(error.code(), "misuse", "{error:?}");
        assert!(
            error.to_string().contains("file") && error.to_string().contains("is not a folder"),
            "{error}"
        );
        assert!(!error.is_retryable(), "the same call would fail again");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "a text");
}

#[test]
fn a_running_store_is_copied_and_restored() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Arc::new(open(folders.0.path()).unwrap());
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            for number in 0..300 {
                assert_eq!(codes(&wait(store.commit(vec![numbered(number)]))), ["ok"]);
            }
        });
        wait(store.backup(folders.1.path())).unwrap();
        writer.join().unwrap();
    });
    let copied = everything(&open(folders.1.path()).unwrap()).unwrap();
    assert!(copied.is_part_of(&everything(&store).unwrap()));
    let numbers: Vec<u64> = copied.records.iter().map(|record| text(record).parse().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "as it was at one moment");
    assert_eq!(code_of(wait(store.backup(folders.1.path()))), "misuse", "nothing is written over");
    let stood = everything(&store).unwrap().records.last().unwrap().position;

    wait(SqliteStore::restore(folders.1.path(), folders.2.path())).unwrap();
    let restored = open(folders.2.path()).unwrap();
    assert_eq!(everything(&restored).unwrap(), copied);
    // Who had followed the log further than the backup goes misses nothing of what comes now.
    let mut watch = wait(restored.watch(Select::All, stood)).unwrap();
    assert_eq!(codes(&wait(restored.commit(vec![numbered(numbers.len() as u64)]))), ["ok"]);
    assert_eq!(texts(&wait(watch.next()).unwrap()), [numbers.len().to_string()]);
    let missing = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    assert_eq!(code_of(wait(SqliteStore::restore(missing.path(), other.path()))), "misuse");
}

#[test]
fn a_record_takes_less_than_900_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    const RECORDS: u64 = 4_000;
    for call in 0..RECORDS / 500 {
        let numbers = call * 500..(call + 1) * 500;
        let batches = numbers.map(|number| Batch { records: vec![typical(number)], ..Batch::default() });
        assert!(wait(store.commit(batches.collect())).iter().all(Result::is_ok));
    }
    drop(store);
    let bytes = fs::metadata(folder.path().join("happen.db")).unwrap().len();
    assert!(bytes / RECORDS <= 900, "{} bytes for a record", bytes / RECORDS);
}

#[test]
fn the_queries_of_the_document_run() {
    let (folder, original) = sample();
    let connection = Connection::open(folder.path().join("happen.db")).unwrap();
    let mut queries = 0;
    for block in FORMAT.split("```sql\n").skip(1) {
        let block = block.split("```").next().unwrap();
        for query in block.split(";\n").map(str::trim).filter(|query| !query.is_empty()) {
            let mut statement = connection.prepare(query).unwrap_or_else(|error| panic!("{query}: {error}"));
            let mut rows = statement.query([]).unwrap();
            let mut found = 0;
            while rows.next().unwrap().is_some() {
                found += 1;
            }
            assert!(found > 0, "{query}\nfinds something in the sample");
            queries += 1;
        }
    }
    assert!(queries >= 6, "{queries} queries");
    let journal: (i64, String, String) = connection
        .query_row("SELECT position, event, type FROM journal ORDER BY position LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .unwrap();
    let first = &original.records[0];
    assert_eq!(u128::from(journal.0.unsigned_abs()), first.position.number());
    assert!(first.tags.contains(&Tag::Event(journal.1.parse().unwrap())));
    assert!(first.tags.contains(&Tag::Type(journal.2.into())));
}

#[test]
fn a_closed_store_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let mut watch = wait(store.watch(Select::All, Position::START)).unwrap();
    wait(store.close());
    // It is nobody's now, also while somebody still has the value.
    let other = open(folder.path()).unwrap();
    assert_eq!(code_of(wait(store.commit(vec![step(1)])).remove(0)), "closed");
    assert_eq!(code_of(wait(store.read(Read::forward(Select::All)))), "closed");
    assert_eq!(code_of(wait(store.prune(prune_all(Position::START)))), "closed");
    assert_eq!(code_of(wait(watch.next())), "closed");
    assert_eq!(codes(&wait(other.commit(vec![step(1)]))), ["ok"]);
}

/// Not a check of the store: what other tests start this program again for. Without a role it has nothing to do.
#[test]
fn a_process_that_another_test_starts() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    match role.split_once(' ').unwrap_or((&role, "")) {
        ("hold", _) => {
            let store = open(&folder).unwrap();
            assert_eq!(codes(&wait(store.commit(vec![step(1)]))), ["ok"]);
            tell("ready");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            assert_eq!(codes(&wait(store.commit(vec![step(2)]))), ["ok"]);
            std::io::stdin().read_line(&mut line).unwrap();
        }
        ("commit", _) => commit_until_killed(&Arc::new(open(&folder).unwrap())),
        ("prune", before) => {
            let store = Arc::new(open(&folder).unwrap());
            let before = Position::from_number(before.parse().unwrap());
            let pruner = Arc::clone(&store);
            let pruning = std::thread::spawn(move || wait(pruner.prune(prune_all(before))));
            while wait(store.info()).unwrap().records > 9_500 {}
            tell("begun");
            // The parent kills it long before the pruning is done.
            pruning.join().unwrap().unwrap();
        }
        ("read-only", _) => {
            let error = open(&folder).unwrap_err();
            tell(error.code());
            tell(&error.to_string());
            let store = wait(SqliteStore::open_read_only(&folder, options())).unwrap();
            tell(&everything(&store).unwrap().records.len().to_string());
        }
        _ => panic!("no role is called `{role}`"),
    }
}

fn commit_until_killed(store: &Arc<SqliteStore>) {
    std::thread::scope(|threads| {
        for flow in 0..FLOWS {
            threads.spawn(move || {
                for round in 0.. {
                    let number = round * FLOWS + flow;
                    let key = format!("flow/{flow}");
                    let content = Content { name: "text".into(), version: 1, bytes: (*b"step").into() };
                    let revision = round + 1;
                    let past = if flow % 2 == 0 { Past::Kept } else { Past::Dropped };
                    let batch = Batch {
                        records: vec![note("step", &number.to_string()); 2],
                        documents: vec![Write {
                            key: key.into(),
                            revision,
                            content: Some(content),
                            past,
                            replaced: Replaced::Kept,
                        }],
                        conditions: Vec::new(),
                    };
                    assert_eq!(codes(&wait(store.commit(vec![batch]))), ["ok"]);
                    tell(&number.to_string());
                }
            });
        }
    });
}

/// What this program does when a test starts it again.
enum Role {
    /// Holds a store, and commits once more when it is told to.
    Hold,
    /// Commits from several flows at once and tells of each that is acknowledged.
    Commit,
    /// Prunes what lies before.
    Prune(Position),
    /// Opens a store in a folder that it may not write, as a user who may not.
    ReadOnly,
}

impl Role {
    fn start(self, folder: &Path) -> Running {
        let program = std::env::current_exe().unwrap();
        let mut copied = None;
        let mut command = match self {
            // The system lets its first user write everywhere, so the program runs as another one, who may not be
            // able to reach it where it is.
            Self::ReadOnly if fs::metadata("/proc/self").unwrap().uid() == 0 => {
                let place = tempfile::tempdir().unwrap();
                fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
                let copy = place.path().join("program");
                fs::copy(program, &copy).unwrap();
                copied = Some(place);
                let mut command = Command::new(copy);
                command.uid(NOBODY).gid(NOBODY).current_dir("/");
                command
            }
            _ => Command::new(program),
        };
        let role = match self {
            Self::Hold => "hold".to_owned(),
            Self::Commit => "commit".to_owned(),
            Self::Prune(before) => format!("prune {before}"),
            Self::ReadOnly => "read-only".to_owned(),
        };
        command.env(ROLE, role).env(FOLDER, folder).env_remove("RUST_BACKTRACE");
        command.args(["--exact", "a_process_that_another_test_starts", "--nocapture", "--test-threads=1"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Running { child, output, _copied: copied }
    }
}

/// A process that ends with the test.
struct Running {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    _copied: Option<TempDir>,
}

impl Running {
    /// The next line that it tells.
    fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the process ended early");
            // The harness writes lines of its own, and the beginning of one before the first.
            if let Some((_, told)) = line.split_once(MARK) {
                return told.trim_end().to_owned();
            }
        }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Kills it; gives what it had told and nobody had read.
    fn kill(&mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut rest = String::new();
        while self.output.read_line(&mut rest).unwrap() > 0 {}
        rest.replace(MARK, "")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{line}").unwrap();
    out.flush().unwrap();
}

/// A clock that stands where it is set.
#[derive(Debug)]
struct Clock {
    unix_ms: AtomicU64,
    env: RealEnv,
}

impl Env for Clock {
    fn unix_ms(&self) -> u64 {
        self.unix_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        self.env.monotonic()
    }

    fn clock(&self) -> &Arc<CoarseClock> {
        self.env.clock()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.env.fill_random(bytes);
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.env.spawn(task);
    }

    fn spawn_blocking(&self, work: BoxWork) {
        self.env.spawn_blocking(work);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.env.sleep(time)
    }
}

/// All that a store tells, in every way that it can be asked.
#[derive(Debug, Default, PartialEq)]
struct Everything {
    records: Vec<Record>,
    by_tag: Vec<Record>,
    documents: Vec<Document>,
    histories: Vec<Document>,
}

impl Everything {
    fn is_part_of(&self, whole: &Self) -> bool {
        self.records.iter().all(|record| whole.records.contains(record))
            && self.by_tag.iter().all(|record| whole.records.contains(record))
            && self.documents.iter().all(|document| whole.histories.contains(document))
            && self.histories.iter().all(|document| whole.histories.contains(document))
    }
}

fn everything(store: &SqliteStore) -> Result<Everything> {
    wait(async {
        let mut all = Everything::default();
        let mut read = Read::forward(Select::All);
        loop {
            let page = store.read(read.clone()).await?;
            all.records.extend(page.records);
            let Some(next) = page.next else { break };
            read = read.start(Start::Position(next));
        }
        let kinds = [
            Tag::Node("node-1".into()),
            Tag::Type("type-2.done".into()),
            Tag::Sender("node-3".into()),
            Tag::Correlation("order 7".into()),
            declared("mod:1"),
        ];
        for tag in kinds {
            for read in [Read::forward(Select::tag(tag.clone())), Read::backward(Select::tag(tag.clone()))] {
                all.by_tag.extend(store.read(read).await?.records);
            }
        }
        let list = List { prefix: "".into(), after: None, documents_max: 1_000 };
        all.documents = store.list(list).await?;
        for document in &all.documents {
            let key = Arc::clone(&document.key);
            let history = History { key, until: Until::Now, documents_max: 1_000 };
            all.histories.extend(store.history(history).await?);
        }
        Ok(all)
    })
}

/// A store with some of everything, closed, so that all of it is in one file.
fn sample() -> (TempDir, Everything) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let store = open(folder.path()).unwrap();
    for number in 0..60_u64 {
        let mut record = typical(number);
        record.tags.push(declared(&format!("mod:{}", number % 4)));
        if number % 7 == 0 {
            record.tags[2] = Tag::Correlation("order 7".into());
            record.tags.insert(0, Tag::Cause(id(3)));
        }
        let key: Arc<str> = format!("document/{}", number % 6).into();
        let revision = number / 6 + 1;
        let text = format!("content of document {}, revision {revision}", number % 6);
        let content = Content { name: "text".into(), version: 3, bytes: text.as_bytes().into() };
        let past = if number % 2 == 0 { Past::Kept } else { Past::Dropped };
        let past = if revision == 2 && number % 6 == 3 { Past::Kept } else { past };
        let write = Write { key, revision, content: Some(content), past, replaced: Replaced::Kept };
        // Document 3 stays at its second revision.
        let documents = if number % 6 == 3 && revision > 2 { Vec::new() } else { vec![write] };
        let batch = Batch { records: vec![record], documents, ..Batch::default() };
        assert_eq!(codes(&wait(store.commit(vec![batch]))), ["ok"]);
    }
    let all = everything(&store).unwrap();
    assert_eq!((all.records.len(), all.documents.len()), (60, 6));
    assert!(all.histories.len() > 20 && all.by_tag.len() > 60);
    (folder, all)
}

/// A record with the tags that most have, of an event with a payload of 200 bytes and its envelope.
fn typical(number: u64) -> NewRecord {
    let tags = vec![
        Tag::Event(id(number + 1)),
        Tag::Cause(id(number)),
        Tag::Correlation(id(number - number % 5).to_string().into()),
        Tag::Node(format!("node-{}", number % 7).into()),
        Tag::Type(format!("type-{}.done", number % 20).into()),
        Tag::Sender(format!("node-{}", (number + 1) % 7).into()),
    ];
    let bytes: Vec<u8> = (0..320).map(|at| (number * 31 + at * 7) as u8).collect();
    NewRecord { tags, bytes: bytes.into() }
}

fn id(number: u64) -> EventId {
    let high = (1_760_000_000_000 + number) << 16 | 0x7000;
    EventId::from_halves(high, 1 << 63 | number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2).unwrap()
}

fn declared(text: &str) -> Tag {
    Tag::Declared(text.into())
}

fn note(tag: &str, text: &str) -> NewRecord {
    NewRecord { tags: vec![declared(tag)], bytes: text.as_bytes().into() }
}

/// Two records and a document.
fn step(number: u64) -> Batch {
    let content = Content { name: "text".into(), version: 1, bytes: (*b"x").into() };
    let key = format!("step/{number}").into();
    Batch {
        records: vec![note("step", &number.to_string()), note("step", &number.to_string())],
        documents: vec![Write {
            key,
            revision: 1,
            content: Some(content),
            past: Past::Dropped,
            replaced: Replaced::Kept,
        }],
        conditions: vec![Condition::Revision { key: "never".into(), revision: 0 }],
    }
}

fn step_without_document() -> Batch {
    Batch { records: vec![note("step", "step")], ..Batch::default() }
}

/// A record and the next revision of a document.
fn numbered(number: u64) -> Batch {
    let content = Content { name: "text".into(), version: 1, bytes: vec![7; 100].into() };
    let document = Write {
        key: "count".into(),
        revision: number + 1,
        content: Some(content),
        past: Past::Kept,
        replaced: Replaced::Kept,
    };
    Batch {
        records: vec![note("step", &number.to_string())],
        documents: vec![document],
        conditions: Vec::new(),
    }
}

/// The next revision of a document, as it stands in the store.
fn write(key: &str, name: Option<&str>, text: &str, store: &SqliteStore) -> Write {
    let found = wait((store as &dyn Store).document(key)).unwrap();
    let revision = found.map_or(0, |document| document.revision) + 1;
    let name = name.unwrap_or("text").into();
    let content = Content { name, version: 1, bytes: text.as_bytes().into() };
    Write { key: key.into(), revision, content: Some(content), past: Past::Kept, replaced: Replaced::Kept }
}

/// Everything before this position, with an anchor.
fn prune_all(before: Position) -> Prune {
    let content = Content { name: "anchor".into(), version: 1, bytes: (*b"hash").into() };
    let anchor = Write {
        key: "anchor".into(),
        revision: 1,
        content: Some(content),
        past: Past::Dropped,
        replaced: Replaced::Kept,
    };
    let documents =
        if before.number() > 1_000 && before.number() < 20_000 { vec![anchor] } else { Vec::new() };
    Prune { before, records: Select::All, keep: Vec::new(), histories: vec!["".into()], documents }
}

/// A folder with these files.
fn copy_of(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn find(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).unwrap()
}

fn assert_typed(error: &Error, at: usize) {
    let code = error.code();
    let about_the_header = at < 100 && code == "misuse";
    assert!(code == "damaged" || about_the_header || at == 0, "byte {at}: {code}: {error}");
}

fn text(record: &Record) -> String {
    String::from_utf8(record.bytes.to_vec()).unwrap()
}

fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(text).collect()
}

fn codes<T>(results: &[Result<T>]) -> Vec<&'static str> {
    results.iter().map(|result| result.as_ref().map_or_else(|error| error.code(), |_| "ok")).collect()
}

fn code_of<T>(result: Result<T>) -> &'static str {
    result.map_or_else(|error| error.code(), |_| "ok")
}

fn options() -> SqliteOptions {
    SqliteOptions::new(Arc::new(RealEnv::new()))
}

fn open(folder: &Path) -> Result<SqliteStore> {
    wait(SqliteStore::open(folder, options()))
}

/// Runs a future of the store, which needs no more than somebody who polls it.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

const FORMAT: &str = include_str!("../../../docs/format.md");

/// How a process that a test starts is told what to do.
const ROLE: &str = "HAPPEN_TEST_ROLE";
const FOLDER: &str = "HAPPEN_TEST_FOLDER";
/// Stands before each line that such a process tells.
const MARK: &str = "told: ";
/// The user who may do least.
const NOBODY: u32 = 65_534;

const KILLS: u64 = 6;
const FLOWS: u64 = 4;
/// Places at which a bit is flipped.
const FLIPS: usize = 300;
const STEPS: u64 = 40;
