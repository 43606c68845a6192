//! What the past of states costs in a folder. Question: how much room do kept revisions take, what does keeping them take
//! the writer, and what does reading one take? Input: 64 documents side by side, of which each revision changes one entry
//! and two counts; the same writes with the past kept and dropped are interleaved, each to a store of its own. Run with
//! `cargo run --release --bin past -- [FOLDER]`; in a folder in memory no disk is measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use happen::env::RealEnv;
use happen::store::{
    Batch, Content, History, NewRecord, Past, Replaced, SqliteOptions, SqliteStore, Store, Tag, Until, Write,
};
use rusqlite::Connection;

const DOCUMENTS: u64 = 64;
const KEPT: u32 = 100;
const REVISIONS: u64 = 160;
const ROUNDS: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::args().nth(1).map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    println!(
        "| bytes of a state | of them stored in the past | µs a write, past dropped | µs a write, {KEPT} kept \
         | µs to read one revision | ms to read all {KEPT} |"
    );
    println!("|---|---|---|---|---|---|");
    for entries in [1, 5, 14, 140, 850, 8_000] {
        let documents = if entries > 1_000 { 4 } else { DOCUMENTS };
        let (mut dropped, mut kept, mut one, mut all) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut share = 0.0;
        for round in 0..ROUNDS {
            let (a, b) =
                (folder.join(format!("a-{entries}-{round}")), folder.join(format!("b-{entries}-{round}")));
            dropped.push(write(&a, entries, documents, Past::Dropped).await);
            kept.push(write(&b, entries, documents, Past::Last(KEPT)).await);
            let (a_revision, a_history) = read(&b).await;
            one.push(a_revision);
            all.push(a_history);
            share = stored(&b, entries);
            for folder in [a, b] {
                std::fs::remove_dir_all(folder).unwrap();
            }
        }
        let us = |times: &mut Vec<Duration>| median(times).as_secs_f64() * 1e6;
        println!(
            "| {} | {:.1} % | {:.1} | {:.1} | {:.0} | {:.2} |",
            content(1, 1, entries).len(),
            share * 100.0,
            us(&mut dropped),
            us(&mut kept),
            us(&mut one),
            us(&mut all) / 1e3,
        );
    }
}

/// A state in its revision: one entry in turn is another one each time, and a count before and behind them.
fn content(document: u64, revision: u64, entries: u64) -> Vec<u8> {
    let mut text = format!("count {revision:08} ");
    for entry in 0..entries {
        let changed = (revision + entries - entry) / entries;
        let hash = (document << 40 ^ entry << 20 ^ changed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        text += &format!("id order-{entry:06} state paid at {hash:020} cents {:06};", hash % 999_983);
    }
    text += &format!("version {revision:08}");
    text.into_bytes()
}

async fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(folder, SqliteOptions::new(Arc::new(RealEnv::new()))).await.unwrap()
}

fn key(document: u64) -> Arc<str> {
    format!("entity/shop/order/{document}").into()
}

/// Writes all revisions, those of all documents in one call; gives the time for one, once the past is full.
async fn write(folder: &Path, entries: u64, documents: u64, past: Past) -> Duration {
    let store = open(folder).await;
    let mut took = Duration::ZERO;
    for revision in 1..=REVISIONS {
        let batch = |document| {
            let bytes = content(document, revision, entries).into();
            let content = Some(Content { name: "order".into(), version: 1, bytes });
            let write = Write { key: key(document), revision, content, past, replaced: Replaced::Kept };
            let tags = vec![Tag::Node("shop".into()), Tag::Type("order.paid".into())];
            let records = vec![NewRecord { tags, bytes: vec![7; 300].into() }];
            Batch { records, documents: vec![write], ..Batch::default() }
        };
        let batches = (0..documents).map(batch).collect();
        let began = Instant::now();
        let results = store.commit(batches).await;
        if revision > u64::from(KEPT) {
            took += began.elapsed();
        }
        assert!(results.iter().all(Result::is_ok));
    }
    store.close().await;
    took / ((REVISIONS - u64::from(KEPT)) * documents) as u32
}

/// How long it takes to read one revision, over all of them, and to read them all.
async fn read(folder: &Path) -> (Duration, Duration) {
    let store = open(folder).await;
    let history = |until, documents_max| History { key: key(0), until, documents_max };
    let began = Instant::now();
    for revision in REVISIONS - u64::from(KEPT)..REVISIONS {
        let found = store.history(history(Until::Before(revision + 1), 1)).await.unwrap();
        assert_eq!(found[0].revision, revision);
    }
    let one = began.elapsed() / KEPT;
    let began = Instant::now();
    let (mut until, mut found) = (Until::Now, 0);
    loop {
        let page = store.history(history(until, 1_000)).await.unwrap();
        let Some(last) = page.last() else { break };
        (until, found) = (Until::Before(last.revision), found + page.len());
    }
    assert_eq!(found, KEPT as usize + 1);
    (one, began.elapsed())
}

/// Which part of the bytes of the past is stored.
fn stored(folder: &Path, entries: u64) -> f64 {
    let connection = Connection::open(folder.join("happen.db")).unwrap();
    let sql = "SELECT sum(length(content)), count(*) FROM revisions";
    let (bytes, count): (i64, i64) =
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    bytes as f64 / (count as f64 * content(1, 1, entries).len() as f64)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
