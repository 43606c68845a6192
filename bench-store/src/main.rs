//! What does the embedded store cost beside raw SQLite? Both write the same rows into the same tables with the same
//! indexes, in the same folder, taking turns; figures are medians over rounds, and ratios of one run.
//!
//! Run: `cargo run --release [records of the large store] [seconds for each figure]`. Input is made by counting, so it
//! is the same in every run. The last lines measure the large store: opening after a kill, reading, pruning, its size.

use std::collections::VecDeque;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use happen::EventId;
use happen::env::RealEnv;
use happen::store::{
    Batch, Content, NewRecord, Past, Position, Prune, Read, Replaced, Select, SqliteOptions, SqliteStore,
    Store, Tag, Write,
};
use rusqlite::{Connection, params};

/// What a record has besides the payload of 200 bytes: an envelope with ids, names and a step.
const RECORD_BYTES: usize = 320;
const DOCUMENT_BYTES: usize = 200;
const DOCUMENTS: u64 = 100;

fn id(number: u64) -> EventId {
    // Ids as they are made: the time first, then a counter, then what belongs to the block.
    let unix_ms = 1_760_000_000_000 + number / 10;
    let high = unix_ms << 16 | 0x7000 | (number % 10);
    EventId::from_halves(high, 0x8000_0000_0000_0000 | number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2)
        .unwrap()
}

fn bytes(number: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (number.wrapping_mul(31).wrapping_add(at * 7) >> 3) as u8).collect()
}

fn correlation(number: u64) -> u64 {
    number - number % 5
}

fn record(number: u64) -> NewRecord {
    let tags = vec![
        Tag::Event(id(number)),
        Tag::Cause(id(number.saturating_sub(1))),
        Tag::Correlation(id(correlation(number)).to_string().into()),
        Tag::Node(format!("node-{}", number % 7).into()),
        Tag::Type(format!("type-{}.done", number % 20).into()),
        Tag::Sender(format!("node-{}", (number + 1) % 7).into()),
    ];
    NewRecord { tags, bytes: bytes(number, RECORD_BYTES).into() }
}

/// One durable step: a record, and the state of its node.
fn step(number: u64) -> Batch {
    let content = Content { name: "orders".into(), version: 1, bytes: bytes(number, DOCUMENT_BYTES).into() };
    let document = Write {
        key: format!("state/node-{}", number % DOCUMENTS).into(),
        revision: number / DOCUMENTS + 1,
        content: Some(content),
        past: Past::Dropped,
        replaced: Replaced::Kept,
    };
    Batch { records: vec![record(number)], documents: vec![document], ..Batch::default() }
}

/// The same rows by hand: what anybody would write who needs these tables.
struct Raw {
    connection: Connection,
    next: u64,
}

impl Raw {
    fn open(folder: &Path) -> Self {
        // The tables are made by the store itself, so they are the same.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        drop(runtime.block_on(SqliteStore::open(folder, options())).unwrap());
        let connection = Connection::open(folder.join("happen.db")).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -32768; \
                 PRAGMA wal_autocheckpoint = 4000; \
                 INSERT INTO names (id, name) VALUES (1, 'x'), (2, 'y'), (3, 'z'), (4, 'u'), (5, 'v'), (6, 'w'),
                 (7, 'a'), (8, 'b'), (9, 'c'), (10, 'd'), (11, 'e'), (12, 'f'), (13, 'g'), (14, 'h'), (15, 'i'),
                 (16, 'j'), (17, 'k'), (18, 'l'), (19, 'm'), (20, 'n'), (21, 'o'), (22, 'p'), (23, 'q'), (24, 'r'),
                 (25, 's'), (26, 't'), (27, 'aa'), (28, 'ab'), (29, 'ac'), (30, 'ad')",
            )
            .unwrap();
        connection.set_prepared_statement_cache_capacity(32);
        Self { connection, next: 1 }
    }

    fn commit(&mut self, steps: u64) {
        let Self { connection, next } = self;
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        for number in *next..*next + steps {
            let mut insert = connection
                .prepare_cached(
                    "INSERT INTO records (position, at_unix_ms, checksum, event, cause, correlation, node, type, \
                     sender, tags, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, NULL, ?10)",
                )
                .unwrap();
            let now = 1_760_000_000_000_i64;
            insert
                .execute(params![
                    number as i64,
                    now + number as i64 / 10,
                    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) as i64,
                    id(number).to_bytes(),
                    id(number.saturating_sub(1)).to_bytes(),
                    id(correlation(number)).to_bytes(),
                    (number % 7 + 1) as i64,
                    (number % 20 + 8) as i64,
                    ((number + 1) % 7 + 1) as i64,
                    bytes(number, RECORD_BYTES),
                ])
                .unwrap();
            let key = format!("state/node-{}", number % DOCUMENTS);
            let revision = (number / DOCUMENTS + 1) as i64;
            let content = bytes(number, DOCUMENT_BYTES);
            let checksum = number.wrapping_mul(0x9e37_79b9) as i64;
            // The revision is checked, as any user of it would have to.
            let found: Option<i64> = connection
                .prepare_cached("SELECT revision FROM documents WHERE key = ?1")
                .unwrap()
                .query_row([&key], |row| row.get(0))
                .ok();
            let sql = if found.is_some() {
                "UPDATE documents SET revision = ?2, position = ?3, at_unix_ms = ?4, checksum = ?5, name = 1, \
                 version = 1, content = ?6 WHERE key = ?1"
            } else {
                "INSERT INTO documents (key, past, revision, position, at_unix_ms, checksum, name, version, \
                 content) VALUES (?1, 0, ?2, ?3, ?4, ?5, 1, 1, ?6)"
            };
            let row = params![key, revision, number as i64, now, checksum, content];
            connection.prepare_cached(sql).unwrap().execute(row).unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
        *next += steps;
    }
}

fn options() -> SqliteOptions {
    SqliteOptions::new(Arc::new(RealEnv::new()))
}

struct Ours {
    store: Arc<SqliteStore>,
    next: u64,
}

impl Ours {
    async fn commit(&mut self) {
        let batch = step(self.next);
        self.next += 1;
        self.store.commit(vec![batch]).await.remove(0).unwrap();
    }

    /// So many flows that each commit one step after the other, for this time; gives steps a second.
    async fn in_flight(&mut self, flows: u64, time: Duration) -> f64 {
        let started = Instant::now();
        let first = self.next;
        // Ids are made when an event is, so those of flows beside each other lie beside each other; each flow has a
        // document of its own, as every node has.
        let next = Arc::new(AtomicU64::new(first));
        let tasks: Vec<_> = (0..flows)
            .map(|flow| {
                let (store, next) = (Arc::clone(&self.store), Arc::clone(&next));
                tokio::spawn(async move {
                    let mut done = 0;
                    while started.elapsed() < time {
                        let mut batch = step(next.fetch_add(1, Ordering::Relaxed));
                        batch.documents[0].key = format!("state/{first}/{flow}").into();
                        batch.documents[0].revision = done + 1;
                        store.commit(vec![batch]).await.remove(0).unwrap();
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let mut steps = 0;
        for task in tasks {
            steps += task.await.unwrap();
        }
        self.next = next.load(Ordering::Relaxed);
        self.next += (DOCUMENTS - self.next % DOCUMENTS) % DOCUMENTS;
        steps as f64 / started.elapsed().as_secs_f64()
    }
}

fn percentile(times: &mut [Duration], part: f64) -> f64 {
    times.sort_unstable();
    let at = ((times.len() - 1) as f64 * part) as usize;
    times[at].as_secs_f64() * 1e6
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("child") {
        return child(&arguments.next().unwrap(), arguments.next().unwrap().parse().unwrap());
    }
    let records: u64 = first.map_or(1_000_000, |text| text.parse().unwrap());
    let seconds: f64 = arguments.next().map_or(4.0, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(small(Duration::from_secs_f64(seconds)));
    runtime.block_on(large(records));
}

async fn small(time: Duration) {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut raw = tokio::task::spawn_blocking({
        let folder = folders.0.path().to_owned();
        move || Raw::open(&folder)
    })
    .await
    .unwrap();
    let store = Arc::new(SqliteStore::open(folders.1.path(), options()).await.unwrap());
    let mut ours = Ours { store, next: 1 };
    // One at a time, in turns of twenty.
    let (mut raw_times, mut our_times) = (Vec::new(), Vec::new());
    let started = Instant::now();
    // Documents of step `n` begin at revision `n / DOCUMENTS + 1`, so both begin with revision 1 of all.
    raw.next = DOCUMENTS;
    ours.next = DOCUMENTS;
    fix_first(&mut raw, &mut ours).await;
    while started.elapsed() < time * 2 {
        for _ in 0..20 {
            let before = Instant::now();
            raw.commit(1);
            raw_times.push(before.elapsed());
        }
        for _ in 0..20 {
            let before = Instant::now();
            ours.commit().await;
            our_times.push(before.elapsed());
        }
    }
    for (name, part) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        let (raw, ours) = (percentile(&mut raw_times, part), percentile(&mut our_times, part));
        println!("one at a time, {name}: raw {raw:.0} us, ours {ours:.0} us, ratio {:.2}", ours / raw);
    }
    let mean = |times: &[Duration]| times.len() as f64 / times.iter().sum::<Duration>().as_secs_f64();
    let (raw_one, our_one) = (mean(&raw_times), mean(&our_times));
    println!("one at a time: raw {raw_one:.0}/s, ours {our_one:.0}/s");
    for flows in [16, 128] {
        let (mut raw_rates, mut our_rates) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            let before = Instant::now();
            let mut steps = 0;
            while before.elapsed() < time / 4 {
                raw.commit(flows);
                steps += flows;
            }
            raw_rates.push(steps as f64 / before.elapsed().as_secs_f64());
            our_rates.push(ours.in_flight(flows, time / 4).await);
        }
        raw_rates.sort_by(f64::total_cmp);
        our_rates.sort_by(f64::total_cmp);
        let (raw_rate, our_rate) = (raw_rates[2], our_rates[2]);
        println!(
            "{flows} in flight: {our_rate:.0}/s, {:.1} x one at a time; raw in groups of {flows}: {raw_rate:.0}/s, \
             ratio {:.2}",
            our_rate / our_one,
            our_rate / raw_rate
        );
    }
}

/// Writes revision 1 of all documents in both.
async fn fix_first(raw: &mut Raw, ours: &mut Ours) {
    for number in 0..DOCUMENTS {
        let mut batch = step(number);
        batch.records.clear();
        ours.store.commit(vec![batch]).await.remove(0).unwrap();
    }
    let _ = raw;
    raw.commit(DOCUMENTS);
    for _ in 0..DOCUMENTS {
        ours.commit().await;
    }
}

/// Fills a store and is killed.
fn child(folder: &str, records: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(folder, options()).await.unwrap();
        let mut number = 1;
        while number <= records {
            let calls = (number..(number + 500).min(records + 1))
                .map(|number| Batch { records: vec![record(number)], ..Batch::default() });
            for result in store.commit(calls.collect()).await {
                result.unwrap();
            }
            number += 500;
        }
        println!("done");
        std::future::pending::<()>().await;
    });
}

fn size(folder: &Path) -> u64 {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

async fn large(records: u64) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", folder.to_str().unwrap(), &records.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let before = Instant::now();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    println!("filled with {records} records in {:.1} s", before.elapsed().as_secs_f64());
    child.kill().unwrap();
    child.wait().unwrap();
    println!("disk per record with all files: {:.0} bytes", size(folder) as f64 / records as f64);
    let before = Instant::now();
    let store: Arc<SqliteStore> = Arc::new(SqliteStore::open(folder, options()).await.unwrap());
    println!("open after kill -9: {:.1} ms", before.elapsed().as_secs_f64() * 1e3);
    let mut times = Vec::new();
    for number in 0..1_000_u64 {
        let event = id(1 + number.wrapping_mul(7_919) % records);
        let before = Instant::now();
        let page = store.read(Read::forward(Select::tag(Tag::Event(event)))).await.unwrap();
        times.push(before.elapsed());
        assert_eq!(page.records.len(), 1);
    }
    let (p50, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    println!(
        "read by event id: p50 {p50:.0} us, p99 {p99:.0} us, longest {:.0} us",
        percentile(&mut times, 1.0)
    );
    let before = Instant::now();
    let mut watch = store.watch(Select::All, Position::START).await.unwrap();
    let mut followed = 0;
    let mut resident = VecDeque::new();
    while followed < records {
        followed += watch.next().await.unwrap().len() as u64;
        if followed.is_multiple_of(100_000) {
            resident.push_back(resident_kib());
        }
    }
    println!(
        "followed the log: {:.0} records/s, resident KiB {resident:?}",
        records as f64 / before.elapsed().as_secs_f64()
    );
    let info = store.info().await.unwrap();
    println!("{info:?}");
    prune(&store, records).await;
    let before = Instant::now();
    let verified = store.verify().await.unwrap();
    println!(
        "verified {} records in {:.1} s, {}",
        verified.records,
        before.elapsed().as_secs_f64(),
        verified.is_whole()
    );
    let copy = tempfile::tempdir().unwrap();
    let before = Instant::now();
    store.backup(copy.path()).await.unwrap();
    println!("backup: {:.1} s, {} MiB", before.elapsed().as_secs_f64(), size(copy.path()) >> 20);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What writers feel of a pruning: each of four commits one step after the other.
async fn prune(store: &Arc<SqliteStore>, records: u64) {
    let writers = |name: u64, until: Arc<AtomicBool>| {
        (0..4_u64).map(move |flow| {
            let store = Arc::clone(store);
            let until = Arc::clone(&until);
            tokio::spawn(async move {
                let mut times = Vec::new();
                let mut number = 0;
                while !until.load(Ordering::Relaxed) {
                    let mut batch = step(10_000_000_000 + name * 1_000_000_000 + number * 4 + flow);
                    batch.documents[0].key = format!("prune/{name}/{flow}").into();
                    batch.documents[0].revision = number + 1;
                    number += 1;
                    let before = Instant::now();
                    store.commit(vec![batch]).await.remove(0).unwrap();
                    times.push(before.elapsed());
                }
                times
            })
        })
    };
    let mut figures = Vec::new();
    for round in 0..2 {
        let until = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = writers(round, Arc::clone(&until)).collect();
        let before = Instant::now();
        if round == 0 {
            tokio::time::sleep(Duration::from_secs(6)).await;
        } else {
            let prune = Prune {
                before: Position::from_number(u128::from(records / 2)),
                records: Select::All,
                keep: Vec::new(),
                histories: Vec::new(),
                documents: Vec::new(),
            };
            println!(
                "{:?} in {:.1} s beside four writers",
                store.prune(prune).await.unwrap(),
                before.elapsed().as_secs_f64()
            );
        }
        until.store(true, Ordering::Relaxed);
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await.unwrap());
        }
        figures.push((
            percentile(&mut times, 0.5),
            percentile(&mut times, 0.99),
            percentile(&mut times, 0.999),
            times.len(),
        ));
    }
    let ((quiet50, quiet99, quiet999, _), (busy50, busy99, busy999, _)) = (figures[0], figures[1]);
    println!("writers without pruning: p50 {quiet50:.0} us, p99 {quiet99:.0} us, p99.9 {quiet999:.0} us");
    println!("writers beside pruning:  p50 {busy50:.0} us, p99 {busy99:.0} us, p99.9 {busy999:.0} us");
    println!("p99 ratio {:.2}", busy99 / quiet99);
}
