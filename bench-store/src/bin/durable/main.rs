//! What does a durable step cost beside a raw SQLite commit of the same rows, and what does a durable space cost in time
//! to open, in room and in memory? Everything goes through `Space::open`, on a tokio runtime of two workers; the rival is
//! SQLite by hand with the same tables and indexes in the same folder, which takes turns with it. Ratios are taken within a
//! round; quoted are the median, the least and the most of all rounds.
//!
//! Run: `cargo build --release && target/release/durable [--records N] [--rounds N] [--quick] [--date DAY] [--write]`.
//! `--write` puts the tables into `docs/benchmarks.md`. Input is made by counting, so it is the same in every run.

mod large;
mod raw;
mod report;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use happen::store::{Batch, Store};
use happen::{Context, Event, Space, State, Step, done, next};
use serde::{Deserialize, Serialize};

use raw::{Raw, Template, id};
use report::{Report, Series};

/// Bytes of the text of each event, which makes payloads of 200 bytes.
const NOTE_BYTES: usize = 186;

/// A node for each flow, as a program has that lets many run.
pub const NODES: u64 = 128;

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("account.pay")]
pub struct Pay {
    cents: u64,
    note: String,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("order.create")]
struct Create {
    cents: u64,
    note: String,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("order.charge")]
struct Charge {
    cents: u64,
    note: String,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("paid")]
pub struct Paid {
    cents: u64,
}

#[derive(State, Default, Clone, Debug, Serialize, Deserialize)]
#[state("account", version = 1)]
struct Account {
    cents: u64,
    count: u64,
}

pub fn pay(number: u64) -> Pay {
    Pay { cents: 1_000 + number % 1_000, note: note(number) }
}

/// Made at no cost that would be measured.
fn note(number: u64) -> String {
    const TEXT: &str = include_str!("main.rs");
    TEXT[(number % 16) as usize..][..NOTE_BYTES].to_owned()
}

async fn validate(order: Event<Create>, cx: Context) -> happen::Result<Step> {
    cx.put("cents", order.cents)?;
    next(charge)
}

async fn charge(_: Event<Create>, cx: Context) -> happen::Result<Step> {
    let cents: u64 = cx.get("cents")?;
    cx.put("paid", cents)?;
    next(finish)
}

async fn ask_and_charge(_: Event<Create>, cx: Context) -> happen::Result<Step> {
    let cents: u64 = cx.get("cents")?;
    let paid = cx.send("payments", Charge { cents, note: note(cents) }).reply::<Paid>().await?;
    cx.put("paid", paid.cents)?;
    next(finish)
}

async fn validate_and_ask(order: Event<Create>, cx: Context) -> happen::Result<Step> {
    cx.put("cents", order.cents)?;
    next(ask_and_charge)
}

async fn finish(_: Event<Create>, cx: Context) -> happen::Result<Step> {
    done(Paid { cents: cx.get("paid")? })
}

/// A space whose nodes are those that are measured.
pub async fn open(folder: &Path) -> Space {
    let space = Space::open(folder).await.unwrap();
    for node in 0..NODES {
        space.node(format!("account-{node}")).on("account.pay", |pay: &Event<Pay>, cx: &Context| {
            let cents = pay.cents;
            cx.state::<Account>()
                .set(move |account| Account { cents: account.cents + cents, count: account.count + 1 })?;
            Ok::<_, happen::Error>(Paid { cents })
        });
    }
    space.node("orders").on("order.create", validate).step(charge).step(finish);
    space.node("orders-that-ask").on("order.create", validate_and_ask).step(ask_and_charge).step(finish);
    space.node("payments").on("order.charge", |charge: &Event<Charge>, _: &Context| {
        Ok::<_, happen::Error>(Paid { cents: charge.cents })
    });
    space.start().await.unwrap();
    space
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// How much is measured.
#[derive(Clone)]
pub struct Size {
    pub records: u64,
    pub rounds: usize,
    pub quick: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["fill", folder, records] => return large::fill(Path::new(folder), records.parse().unwrap()),
        ["first", folder] => return large::first(Path::new(folder)),
        ["follow", folder, records] => return large::follow(Path::new(folder), records.parse().unwrap()),
        ["one", what, count] => return runtime().block_on(one(what.to_owned(), count.parse().unwrap())),
        _ => {}
    }
    let mut size = Size { records: 1_000_000, rounds: 9, quick: false };
    let (mut write, mut date) = (false, None);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match *word {
            "--records" => size.records = rest.next().unwrap().parse().unwrap(),
            "--rounds" => size.rounds = rest.next().unwrap().parse().unwrap(),
            "--date" => date = rest.next().map(|day| (*day).to_owned()),
            "--quick" => size = Size { records: 20_000, rounds: 1, quick: true },
            "--write" => write = true,
            other => panic!("there is no argument {other}"),
        }
    }
    assert!(!(write && size.quick), "a smoke run is not written down");
    let mut report = Report::begin(&size, date);
    let measured = size.clone();
    let mut report = runtime().block_on(async move {
        // In a task, as in a server: the thread that began the runtime is none of its workers.
        tokio::spawn(async move {
            steps(&measured, &mut report).await;
            report
        })
        .await
        .unwrap()
    });
    large::measure(&size, &mut report);
    let text = report.text();
    println!("\n{text}");
    if write {
        report::write(&text);
    }
}

async fn timed<T>(times: &mut Vec<Duration>, work: impl Future<Output = T>) -> T {
    let before = Instant::now();
    let done = work.await;
    times.push(before.elapsed());
    done
}

/// A folder with a store that a space has made, and one step of that space.
async fn prepared(folder: &Path) -> Template {
    let space = open(folder).await;
    for node in 0..NODES {
        ask(&space, node, node).await;
    }
    let template = Template::last_of(&*space.store(), space.config().retention.revisions_max).await;
    space.stop().await.unwrap();
    template
}

async fn ask(space: &Space, node: u64, number: u64) {
    let paid = space.send(&*format!("account-{node}"), pay(number)).reply::<Paid>().await.unwrap();
    assert_eq!(paid.cents, 1_000 + number % 1_000);
}

async fn order(space: &Space, to: &str, number: u64) {
    let paid = space.send(to, Create { cents: number, note: note(number) }).reply::<Paid>().await.unwrap();
    assert_eq!(paid.cents, number);
}

async fn steps(size: &Size, report: &mut Report) {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let template = prepared(folders[0].path()).await;
    prepared(folders[2].path()).await;
    report.step_bytes = template.bytes();
    let mut raw = Raw::open(folders[0].path(), template.clone());
    let space = open(folders[1].path()).await;
    for node in 0..NODES {
        ask(&space, node, node).await;
    }
    // The store alone, without a space over it: what a step costs above this is the space's.
    let options = happen::store::SqliteOptions::new(Arc::new(happen::env::RealEnv::new()));
    let store = happen::store::SqliteStore::open(folders[2].path(), options).await.unwrap();
    let mut alone = 0;
    let turns = if size.quick { 2 } else { 15 };
    let time = Duration::from_millis(if size.quick { 100 } else { 500 });
    for round in 0..size.rounds {
        let mut times: [Vec<Duration>; 5] = Default::default();
        for turn in 0..turns {
            let [raw_times, store_times, ask_times, three_times, asking_times] = &mut times;
            for _ in 0..20 {
                let step = [raw.step(0)];
                let before = Instant::now();
                raw.commit(&step);
                raw_times.push(before.elapsed());
            }
            for _ in 0..20 {
                alone += 1;
                let step = template.step(id(alone), 0, alone + 1);
                let mut results = timed(store_times, store.commit(vec![step])).await;
                results.remove(0).unwrap();
            }
            for number in 0..20 {
                timed(ask_times, ask(&space, 0, number)).await;
            }
            for number in 0..7 {
                timed(three_times, order(&space, "orders", turn * 7 + number)).await;
            }
            for number in 0..7 {
                timed(asking_times, order(&space, "orders-that-ask", turn * 7 + number)).await;
            }
        }
        report.singles(times);
        let one = asks(&space, 1, time).await;
        for flows in [16, 128] {
            let raw_rate = groups(&mut raw, flows, time);
            let rate = asks(&space, flows, time).await;
            report.in_flight(flows, one, raw_rate, rate);
        }
        eprintln!("round {} of {}", round + 1, size.rounds);
    }
    space.stop().await.unwrap();
}

/// Steps a second of raw SQLite that writes this many in each transaction.
fn groups(raw: &mut Raw, flows: u64, time: Duration) -> f64 {
    let (before, mut steps) = (Instant::now(), 0);
    while before.elapsed() < time {
        let group: Vec<Batch> = (0..flows).map(|node| raw.step(node)).collect();
        raw.commit(&group);
        steps += flows;
    }
    steps as f64 / before.elapsed().as_secs_f64()
}

/// Steps a second of this many tasks that each ask one node again and again.
async fn asks(space: &Space, flows: u64, time: Duration) -> f64 {
    let (before, asked) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..flows)
        .map(|node| {
            let (space, asked) = (space.clone(), Arc::clone(&asked));
            tokio::spawn(async move {
                while before.elapsed() < time {
                    let number = asked.fetch_add(1, Ordering::Relaxed);
                    ask(&space, node, number).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    asked.load(Ordering::Relaxed) as f64 / before.elapsed().as_secs_f64()
}

/// One operation again and again, for a profiler.
async fn one(what: String, count: u64) {
    tokio::spawn(async move {
        let folder = tempfile::tempdir().unwrap();
        let template = prepared(folder.path()).await;
        let mut times = Vec::new();
        match &*what {
            "raw" => {
                let mut raw = Raw::open(folder.path(), template);
                for _ in 0..count {
                    let step = [raw.step(0)];
                    timed(&mut times, async { raw.commit(&step) }).await;
                }
            }
            "store" => {
                let options = happen::store::SqliteOptions::new(Arc::new(happen::env::RealEnv::new()));
                let store = happen::store::SqliteStore::open(folder.path(), options).await.unwrap();
                for number in 1..=count {
                    let step = template.step(id(number), 0, number + 1);
                    timed(&mut times, store.commit(vec![step])).await.remove(0).unwrap();
                }
            }
            _ => {
                let space = open(folder.path()).await;
                for number in 0..count {
                    match &*what {
                        "ask" => timed(&mut times, ask(&space, 0, number)).await,
                        "three" => timed(&mut times, order(&space, "orders", number)).await,
                        "asking" => timed(&mut times, order(&space, "orders-that-ask", number)).await,
                        flows => {
                            let rate =
                                asks(&space, flows.parse().unwrap(), Duration::from_millis(count)).await;
                            println!("{flows} in flight: {rate:.0}/s");
                            break;
                        }
                    }
                }
                space.stop().await.unwrap();
            }
        }
        if !times.is_empty() {
            println!("{what}: {}", Series::of_times(&times));
        }
    })
    .await
    .unwrap();
}
