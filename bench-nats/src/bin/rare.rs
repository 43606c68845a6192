//! What happens seldom, and what it costs that nothing happens: handling again after the server was killed, the state at an
//! event in a large log, and nodes that are idle. Figures are medians over rounds.
//!
//! Run: `cargo run --release --bin rare [records of the log] [idle nodes]`. The server has to be installed
//! (`cargo xtask setup`).

#[path = "../../../bench-store/src/bin/journal/log.rs"]
mod log;

use std::fs;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::ConnectOptions;
use happen::env::RealEnv;
use happen::journal::{Journal, Query};
use happen::{Context, Error, Event, Space};
use happen_bench_nats::arguments;
use happen_core::env::Env;
use happen_nats::{Connection, LinkOptions, Nats, NatsLink, NatsStore, NatsStoreOptions};
use happen_testing::NatsServer;
use happen_testing::link::until;

use crate::log::{Orders, TRACED, fill, id};

const ROUNDS: usize = 11;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let [records, nodes] = arguments([1_000_000, 10_000]);
    idle(nodes).await;
    back().await;
    when(records).await;
}

fn env() -> Arc<dyn Env> {
    Arc::new(RealEnv::new())
}

/// Memory that a process has, in bytes.
fn resident(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
}

async fn linked(server: &NatsServer, name: &str) -> Space {
    let connection = Connection::open(&server.url(), ConnectOptions::new()).await.expect("a connection");
    let link = NatsLink::new(&connection, env(), LinkOptions::new("bench", name)).expect("names");
    let space = Space::memory();
    space.join(link).expect("a link");
    space
}

fn fill_with_nodes(space: &Space, nodes: u64) {
    for number in 0..nodes {
        space.node(format!("node-{number}")).on("tick", |_: &Event, _: &Context| {});
    }
}

/// Nodes that another process knows and that do nothing: what they take here, there and on the server, beyond what as many
/// nodes take in a process of their own.
async fn idle(nodes: u64) {
    let server = NatsServer::start();
    let own = std::process::id();
    let alone = Space::memory();
    let before = resident(own);
    fill_with_nodes(&alone, nodes);
    alone.start().await.expect("a start");
    let in_process = (resident(own) - before) / nodes as f64;
    let (here, there) = (linked(&server, "here").await, linked(&server, "there").await);
    there.start().await.expect("a start");
    let serves = server.process().expect("it runs");
    let (before, server_before) = (resident(own), resident(serves));
    fill_with_nodes(&here, nodes);
    here.start().await.expect("a start");
    until(&env(), "all are known", || there.remote_nodes().len() as u64 == nodes).await;
    let both = (resident(own) - before) / nodes as f64;
    let on_server = (resident(serves) - server_before) / nodes as f64;
    println!(
        "an idle node of {nodes}: {in_process:.0} bytes in process; over the link {:.0} more, here and there together; \
         {on_server:.0} on the server",
        both - in_process
    );
    for space in [alone, here, there] {
        space.stop().await.expect("an end");
    }
}

/// From the moment in which a killed server accepts connections again until an event that was sent then is handled: by a
/// node that remembers nothing in another process, and by a durable one there.
async fn back() {
    let mut server = NatsServer::start();
    let (here, there) = (linked(&server, "here").await, linked(&server, "there").await);
    let came = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&came);
    there.node("sink").on("u64", move |_: &Event<u64>, _: &Context| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let durable = async || Nats::at(format!("{}/durable", server.url())).open().await.expect("a space");
    let (asking, keeping) = (durable().await, durable().await);
    let kept = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&kept);
    keeping.node("keeper").on("u64", move |_: &Event<u64>, _: &Context| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok::<_, Error>(())
    });
    for space in [&here, &there, &asking, &keeping] {
        space.start().await.expect("a start");
    }
    until(&env(), "the sink is known", || here.remote_nodes().len() == 1).await;
    while asking.send("keeper", 0_u64).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (mut by_link, mut by_log) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS as u64 {
        until(&env(), "all is handled", || kept.load(Ordering::SeqCst) == round + 1).await;
        let (sent, stored) = (came.load(Ordering::SeqCst), kept.load(Ordering::SeqCst));
        server.restart();
        let address = server.url().trim_start_matches("nats://").to_owned();
        while TcpStream::connect(&address).is_err() {
            tokio::task::yield_now().await;
        }
        let begun = Instant::now();
        let sends = async {
            here.send("sink", round).forget();
            while came.load(Ordering::SeqCst) == sent {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            begun.elapsed()
        };
        let keeps = async {
            asking.send("keeper", round).await.expect("it is stored");
            while kept.load(Ordering::SeqCst) == stored {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            begun.elapsed()
        };
        let (sink, keeper) = tokio::join!(sends, keeps);
        by_link.push(sink);
        by_log.push(keeper);
    }
    assert_eq!(
        (came.load(Ordering::SeqCst), kept.load(Ordering::SeqCst)),
        (ROUNDS as u64, ROUNDS as u64 + 1)
    );
    assert!(here.dead_letters().is_empty());
    told("handled again by the link, after the server accepts connections", by_link);
    told("handled again by the log, after the server accepts connections", by_log);
}

/// What a node's state was when an event was handled, in a log of so many records.
async fn when(records: u64) {
    let server = NatsServer::start();
    let client = async_nats::connect(server.url()).await.expect("a connection");
    let store = NatsStore::open(client, NatsStoreOptions::new("large", env())).await.expect("a store");
    let store = Arc::new(store);
    let before = Instant::now();
    fill(&*store, records).await;
    println!("{records} records written in {:.1} s", before.elapsed().as_secs_f64());
    let journal = Journal::new(Arc::clone(&store) as _);
    let every = records / TRACED;
    let mut times = Vec::new();
    for round in 0..5 * ROUNDS as u64 {
        let number = every * (round * 37 % TRACED);
        let node = format!("node-{}", number % 7);
        let before = Instant::now();
        let found = journal.when::<Orders>(&node, Query::new().event(id(number))).await.expect("an answer");
        times.push(before.elapsed());
        assert!(found.snapshots[0].value.revision > 0);
    }
    told("the state at an event", times);
    store.close().await;
}

fn told(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let [p50, most] = [times[times.len() / 2], times[times.len() - 1]].map(|time| time.as_secs_f64() * 1e3);
    println!("{what}: p50 {p50:.1} ms, longest {most:.1} ms");
}
