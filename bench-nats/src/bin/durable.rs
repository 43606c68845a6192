//! What does a durable step over NATS cost beside the raw atomic batch that would do the same without Happen? Three servers
//! that sync every write, one process of clients, in turns; figures are medians over rounds, and ratios of one run.
//!
//! Run: `cargo run --release --bin durable [operations of one round] [rounds] [servers]`. The server has to be installed
//! (`cargo xtask setup`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context, stream};
use async_nats::{Client, HeaderMap};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use happen::{Config, Event, Space};
use happen_bench_nats::{arguments, median};
use happen_nats::{Connection, Nats};
use happen_testing::{NatsCluster, NatsServer};
use serde::{Deserialize, Serialize};

/// Steps or batches in flight.
const IN_FLIGHT: [u64; 3] = [1, 16, 48];

/// The bytes of each message of the raw batch.
const BYTES: usize = 256;

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("job")]
struct Job {
    number: u64,
    text: String,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("done")]
struct Made {
    number: u64,
    text: String,
}

#[derive(happen::State, Default, Clone, Debug, Serialize, Deserialize)]
#[state("jobs", version = 1)]
struct Jobs {
    count: u64,
    text: String,
}

/// Figures of one round: operations a second for each number in flight, and the median of one alone in microseconds.
#[derive(Default)]
struct Round {
    rates: Vec<f64>,
    alone_us: f64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let [operations, rounds, servers] = arguments([4_000, 5, 3]);
    let (cluster, server);
    let url = match servers {
        1 => {
            server = NatsServer::start();
            server.url()
        }
        _ => {
            cluster = NatsCluster::start(servers as usize);
            cluster.url()
        }
    };
    let connection = Connection::open(&url, async_nats::ConnectOptions::new()).await.expect("a connection");
    let raw = raw_stream(connection.client(), servers as usize).await;
    let local = space(&connection, "local").await;
    node(&local, &Arc::default());
    local.start().await.expect("a start");
    let (sender, receiver) = (space(&connection, "apart").await, space(&connection, "apart").await);
    let handled = Arc::new(AtomicU64::new(0));
    node(&receiver, &handled);
    receiver.start().await.expect("a start");
    sender.start().await.expect("a start");
    tokio::time::sleep(Duration::from_secs(1)).await;

    let (mut raws, mut steps, mut aparts) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        raws.push(
            measure(operations, |number| raw_batch(&raw, connection.client(), round * 1_000_000 + number))
                .await,
        );
        steps.push(measure(operations, |number| step(&local, number)).await);
        aparts.push(apart(&sender, &handled, operations).await);
    }
    let rate =
        |rounds: &[Round], index: usize| median(rounds.iter().map(|round| round.rates[index]).collect());
    println!("{servers} servers, sync_interval always, {operations} operations a round, {rounds} rounds");
    println!("| in flight | raw batch of 4 | durable step | ratio |");
    println!("|---|---|---|---|");
    for (index, in_flight) in IN_FLIGHT.iter().enumerate() {
        let (raw, step) = (rate(&raws, index), rate(&steps, index));
        println!("| {in_flight} | {raw:.0}/s | {step:.0}/s | {:.2} |", step / raw);
    }
    let alone = |rounds: &[Round]| median(rounds.iter().map(|round| round.alone_us).collect());
    println!("p50 alone: raw {:.0} us, step {:.0} us", alone(&raws), alone(&steps));
    println!("sent to a node of another process and handled there: {:.0}/s", median(aparts));
}

async fn space(connection: &Connection, name: &str) -> Space {
    Nats::over(connection, name).config(Config::default()).open().await.expect("a space")
}

fn node(space: &Space, handled: &Arc<AtomicU64>) {
    let handled = Arc::clone(handled);
    space.node("work").on("job", move |job: &Event<Job>, cx: &happen::Context| {
        let text = job.text.clone();
        cx.state::<Jobs>().set(move |jobs| Jobs { count: jobs.count + 1, text: text.clone() })?;
        for number in 0..2 {
            cx.broadcast(Made { number, text: job.text.clone() })?;
        }
        handled.fetch_add(1, Ordering::Relaxed);
        Ok::<_, happen::Error>(job.number)
    });
}

fn text() -> String {
    "x".repeat(BYTES - 60)
}

async fn step(space: &Space, number: u64) {
    space.send("work", Job { number, text: text() }).reply::<u64>().await.expect("a reply");
}

/// Sends from one process and waits until all is handled in the other.
async fn apart(sender: &Space, handled: &AtomicU64, operations: u64) -> f64 {
    let before = handled.load(Ordering::SeqCst);
    let begun = Instant::now();
    let mut sending = FuturesUnordered::new();
    for number in 0..operations {
        sending.push(async move {
            sender.send("work", Job { number, text: text() }).await.expect("it is stored")
        });
        if sending.len() >= 128 {
            sending.next().await;
        }
    }
    while sending.next().await.is_some() {}
    while handled.load(Ordering::SeqCst) - before < operations {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    operations as f64 / begun.elapsed().as_secs_f64()
}

async fn raw_stream(client: &Client, replicas: usize) -> Context {
    let context = jetstream::new(client.clone());
    let config = stream::Config {
        name: "RAW".into(),
        subjects: vec!["raw.>".into()],
        num_replicas: replicas,
        allow_atomic_publish: true,
        allow_message_ttl: true,
        ..stream::Config::default()
    };
    while context.create_stream(config.clone()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    context
}

/// One atomic batch: a state, two events and the mark that the event was handled, which must not be there.
async fn raw_batch(_: &Context, client: &Client, number: u64) {
    let batch = format!("b{number}");
    let body = bytes::Bytes::from(vec![b'x'; BYTES]);
    let subjects = [
        format!("raw.state.{}", number % 1_000),
        format!("raw.event.{number}.a"),
        format!("raw.event.{number}.b"),
        format!("raw.done.{number}"),
    ];
    for (index, subject) in subjects.into_iter().enumerate() {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", batch.as_str());
        headers.insert("Nats-Batch-Sequence", (index + 1).to_string().as_str());
        if index < 3 {
            client.publish_with_headers(subject, headers, body.clone()).await.expect("it leaves");
            continue;
        }
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        headers.insert("Nats-TTL", "120s");
        headers.insert("Nats-Batch-Commit", "1");
        let answer = client.request_with_headers(subject, headers, body.clone()).await.expect("an answer");
        let told = String::from_utf8_lossy(&answer.payload);
        assert!(!told.contains("error"), "{told}");
    }
}

async fn measure<F: Future<Output = ()>>(operations: u64, operate: impl Fn(u64) -> F) -> Round {
    let mut round = Round::default();
    let mut number = 0;
    for in_flight in IN_FLIGHT {
        let count = if in_flight == 1 { operations / 8 } else { operations };
        let mut times = Vec::new();
        let begun = Instant::now();
        let mut flying = FuturesUnordered::new();
        for _ in 0..count {
            number += 1;
            let operation = operate(number);
            flying.push(async move {
                let begun = Instant::now();
                operation.await;
                begun.elapsed()
            });
            if flying.len() as u64 >= in_flight {
                times.extend(flying.next().await);
            }
        }
        while let Some(time) = flying.next().await {
            times.push(time);
        }
        round.rates.push(count as f64 / begun.elapsed().as_secs_f64());
        if in_flight == 1 {
            times.sort_unstable();
            round.alone_us = times[times.len() / 2].as_secs_f64() * 1e6;
        }
    }
    round
}
