//! How long do questions to the journal take in a large store? The log has steps of many small correlations, and the
//! thousand events of one traced order spread over all of it. Figures are medians over rounds.
//!
//! Run: `cargo run --release --bin journal [records]`. Input is made by counting, so it is the same in every run; the last
//! column is what each answer had, so that it can be compared.

mod log;

use std::sync::Arc;
use std::time::{Duration, Instant};

use happen::env::RealEnv;
use happen::journal::{Journal, Query};
use happen::store::{SqliteOptions, SqliteStore, Until};

use crate::log::{Orders, TRACED, fill, id};

const ROUNDS: usize = 21;

async fn median<T>(name: &str, mut ask: impl AsyncFnMut(usize) -> T, had: impl Fn(&T) -> String) {
    let mut times: Vec<Duration> = Vec::new();
    let mut last = None;
    let used = processor_ms();
    for round in 0..ROUNDS {
        let before = Instant::now();
        let answer = ask(round).await;
        times.push(before.elapsed());
        last = Some(answer);
    }
    let used = (processor_ms() - used) as f64 / ROUNDS as f64;
    times.sort_unstable();
    let (half, most) = (times[ROUNDS / 2].as_secs_f64() * 1e3, times[ROUNDS - 1].as_secs_f64() * 1e3);
    let had = had(last.as_ref().unwrap());
    println!("{name}: p50 {half:.2} ms, longest {most:.2} ms, of the processor {used:.1} ms; {had}");
}

/// What this process used of the processors so far; it tells the cost also on a machine that does other work. In steps of
/// ten milliseconds, which the number of rounds makes half a millisecond.
fn processor_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let records: u64 = std::env::args().nth(1).map_or(1_000_000, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let options = || SqliteOptions::new(Arc::new(RealEnv::new()));
    let before = Instant::now();
    let store = SqliteStore::open(folder.path(), options()).await.unwrap();
    fill(&store, records).await;
    drop(store);
    println!("filled with {records} records in {:.1} s", before.elapsed().as_secs_f64());
    let journal =
        Journal::new(Arc::new(SqliteStore::open_read_only(folder.path(), options()).await.unwrap()));
    let every = records / TRACED;
    let spread = |round: usize| id(1 + (round as u64 * 7_919 * 41) % (records - 1));

    median(
        "event by id",
        async |round| journal.event(spread(round)).await.unwrap(),
        |event| event.as_ref().unwrap().event_type.clone(),
    )
    .await;
    let leaf = id(every * (TRACED - 1));
    let trace = async |_| journal.trace(leaf).await.unwrap();
    median("trace of 1 000 events", trace, |trace| format!("{} lines", trace.lines().len())).await;
    let small = async |round| journal.trace(spread(round)).await.unwrap();
    median("trace of some 5 events", small, |trace| format!("{} lines", trace.lines().len())).await;
    median("why of its leaf", async |_| journal.why(leaf).await.unwrap(), |ids| ids.len().to_string()).await;
    let impact = async |_| journal.impact(id(0)).await.unwrap();
    median("impact of its root", impact, |ids| ids.len().to_string()).await;
    let when = async |round| {
        let number = every * (round as u64 * 37 % TRACED);
        let node = format!("node-{}", number % 7);
        journal.when::<Orders>(&node, Query::new().event(id(number))).await.unwrap()
    };
    median("when by event", when, |found| format!("revision {}", found.snapshots[0].value.revision)).await;
    let reasons = async |_| journal.why_document("state/node-0/orders", Until::Now).await.unwrap();
    median("why of a document, 100 revisions", reasons, |reasons| reasons.len().to_string()).await;
    let before = Instant::now();
    let verified = journal.verify().await.unwrap();
    let seconds = before.elapsed().as_secs_f64();
    println!("verify: {:.0} records/s; {verified:?}", records as f64 / seconds);
}
