//! What does a local event cost, next to a raw tokio channel?
//!
//! Question: nanoseconds and allocations per operation for asking, telling, a flow of three steps, a broadcast, a
//! serial node, and bytes per idle node. Machine and versions are printed. Input: fixed payloads of 8 to 16 bytes.
//! Baseline: a tokio mpsc channel with a oneshot for the reply, on the same runtime. Every round runs each operation
//! once, so a machine whose speed drifts hits all alike; quoted are medians over the rounds and the ratio to the
//! baseline, pair by pair.
//!
//! `cargo run --release --manifest-path bench/Cargo.toml -- [--rounds N] [--operations N]`

mod alloc;

use std::hint::black_box;
use std::time::{Duration, Instant};

use happen::{Context, Event, Node, RawEvent, Space, Step, done, next};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

#[derive(happen::Event, Clone, Serialize, Deserialize)]
struct Add {
    number: u64,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
struct Tick {
    number: u64,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
struct Reading {
    sensor: u64,
    celsius: f64,
}

/// About 200 bytes in MessagePack, as a device might send.
#[derive(happen::Event, Clone, Serialize, Deserialize)]
struct Wide {
    sensor: u64,
    samples: [f64; 16],
    celsius: f64,
    count: u64,
}

#[derive(happen::State, Default, Clone, Serialize, Deserialize)]
struct Total {
    number: u64,
}

async fn add(event: Event<Add>, _: Context) -> u64 {
    event.number + 1
}

async fn first(_: Event<Add>, _: Context) -> happen::Result<Step> {
    next(second)
}

async fn second(_: Event<Add>, _: Context) -> happen::Result<Step> {
    next(third)
}

async fn third(event: Event<Add>, _: Context) -> happen::Result<Step> {
    done(event.number + 1)
}

async fn suspends(event: Event<Add>, _: Context) -> u64 {
    tokio::task::yield_now().await;
    event.number + 1
}

/// One operation: its name, how many of it make one measurement, and what one costs in nanoseconds and allocations.
struct Row {
    name: &'static str,
    baseline: Option<&'static str>,
    nanoseconds: Vec<f64>,
    allocations: f64,
}

struct Rows(Vec<Row>);

impl Rows {
    fn add(&mut self, name: &'static str, baseline: Option<&'static str>, took: Duration, allocations: u64, count: u64) {
        let nanoseconds = took.as_nanos() as f64 / count as f64;
        let per = allocations as f64 / count as f64;
        match self.0.iter_mut().find(|row| row.name == name) {
            Some(row) => {
                row.nanoseconds.push(nanoseconds);
                row.allocations = row.allocations.min(per);
            }
            None => self.0.push(Row { name, baseline, nanoseconds: vec![nanoseconds], allocations: per }),
        }
    }

    fn print(&self) {
        println!("| operation | ns (median) | min | max | ratio | allocations |");
        println!("|---|---|---|---|---|---|");
        for row in &self.0 {
            let ratio = row.baseline.and_then(|name| self.0.iter().find(|row| row.name == name)).map(|base| {
                let pairs = row.nanoseconds.iter().zip(&base.nanoseconds).map(|(own, base)| own / base);
                format!("{:.2} × {}", median(pairs.collect()), base.name)
            });
            let min = row.nanoseconds.iter().copied().fold(f64::INFINITY, f64::min);
            let max = row.nanoseconds.iter().copied().fold(0.0, f64::max);
            println!(
                "| {} | {:.1} | {min:.1} | {max:.1} | {} | {:.3} |",
                row.name,
                median(row.nanoseconds.clone()),
                ratio.unwrap_or_default(),
                row.allocations
            );
        }
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

macro_rules! measure {
    ($rows:expr, $name:literal, $baseline:expr, $count:expr, $operation:expr) => {{
        let count: u64 = $count;
        // A short warm-up, so that caches and recycled memory are as in a running program.
        for _ in 0..(count / 10).max(1) {
            $operation;
        }
        let (before, start) = (alloc::count(), Instant::now());
        for _ in 0..count {
            $operation;
        }
        $rows.add($name, $baseline, start.elapsed(), alloc::count() - before, count);
    }};
}

struct World {
    space: Space,
    plain: Node,
    ready: Node,
    steps: Node,
    serial: Node,
    waits: Node,
    zero: Node,
    state: Node,
}

async fn world() -> happen::Result<World> {
    let space = Space::memory();
    let plain = space.node("plain");
    plain.on("add", |event: &Event<Add>, _: &Context| event.number + 1).check()?;
    let ready = space.node("ready");
    ready.on("add", add).check()?;
    let steps = space.node("steps");
    steps.on("add", first).step(second).step(third).check()?;
    let serial = space.node("serial").serial();
    serial.on("add", |event: &Event<Add>, _: &Context| event.number + 1).check()?;
    let waits = space.node("waits");
    waits.on("add", suspends).check()?;
    let zero = space.node("zero");
    zero.zero("wide", |event: RawEvent<'_>| {
        black_box((event.u64("sensor"), event.f64("celsius"), event.u64("count")));
    })
    .check()?;
    let state = space.node("state");
    for index in 0..100 {
        let listener = space.node(format!("listener-{index}"));
        listener
            .on("tick", |event: &Event<Tick>, _: &Context| {
                black_box(event.number);
            })
            .check()?;
    }
    space.start().await?;
    Ok(World { space, plain, ready, steps, serial, waits, zero, state })
}

async fn round(rows: &mut Rows, world: &World, operations: u64) -> happen::Result<()> {
    let World { space, plain, ready, steps, serial, waits, zero, state } = world;

    let (to, mut from) = mpsc::channel::<(u64, oneshot::Sender<u64>)>(64);
    let server = tokio::spawn(async move {
        while let Some((number, reply)) = from.recv().await {
            black_box(reply.send(number + 1).is_ok());
        }
    });
    measure!(rows, "mpsc ask", None, operations / 4, {
        let (reply, answer) = oneshot::channel();
        if to.send((black_box(1), reply)).await.is_ok() {
            black_box(answer.await.ok());
        }
    });
    drop(to);
    drop(server.await);

    let (to, mut from) = mpsc::channel::<u64>(1_024);
    let server = tokio::spawn(async move {
        while let Some(number) = from.recv().await {
            black_box(number);
        }
    });
    measure!(rows, "mpsc tell", None, operations, {
        black_box(to.send(black_box(1)).await.is_ok());
    });
    drop(to);
    drop(server.await);

    measure!(rows, "ask, plain handler", Some("mpsc ask"), operations, {
        black_box(space.send(plain, Add { number: black_box(1) }).reply::<u64>().await?.into_inner());
    });
    measure!(rows, "ask, async handler, ready", Some("mpsc ask"), operations, {
        black_box(space.send(ready, Add { number: black_box(1) }).reply::<u64>().await?.into_inner());
    });
    measure!(rows, "ask, three steps", Some("mpsc ask"), operations, {
        black_box(space.send(steps, Add { number: black_box(1) }).reply::<u64>().await?.into_inner());
    });
    measure!(rows, "ask, serial node", Some("mpsc ask"), operations, {
        black_box(space.send(serial, Add { number: black_box(1) }).reply::<u64>().await?.into_inner());
    });
    measure!(rows, "ask by node id", Some("mpsc ask"), operations, {
        black_box(space.send("plain", Add { number: black_box(1) }).reply::<u64>().await?.into_inner());
    });
    measure!(rows, "send, plain handler", Some("mpsc tell"), operations, {
        black_box(space.send(plain, Add { number: black_box(1) }).await?);
    });
    measure!(rows, "tokio::spawn and join", None, operations / 8, {
        black_box(tokio::spawn(async { tokio::task::yield_now().await }).await.is_ok());
    });
    measure!(rows, "ask, handler suspends once", Some("tokio::spawn and join"), operations / 8, {
        black_box(space.send(waits, Add { number: black_box(1) }).reply::<u64>().await?.into_inner());
    });
    let wide = Wide { sensor: 7, samples: [20.5; 16], celsius: 21.0, count: 16 };
    measure!(rows, "send, zero-allocation handler, 200 bytes", Some("mpsc tell"), operations, {
        black_box(space.send(zero, wide.clone()).await?);
    });
    let total = state.state::<Total>();
    measure!(rows, "state get", None, operations, {
        black_box(total.get(|total| total.number));
    });
    measure!(rows, "state set", None, operations, {
        total.set(|mut total| {
            total.number += 1;
            total
        })?;
    });
    let (before, start) = (alloc::count(), Instant::now());
    let broadcasts = (operations / 100).max(1);
    for number in 0..broadcasts {
        space.broadcast(Tick { number })?;
    }
    rows.add(
        "broadcast 1→100, per delivery",
        Some("mpsc tell"),
        start.elapsed(),
        alloc::count() - before,
        broadcasts * 100,
    );
    Ok(())
}

/// A hundred nodes out of many listen; a broadcast must not look at the others.
async fn among_many(rows: &mut Rows, nodes: usize, rounds: usize) -> happen::Result<()> {
    let space = Space::memory();
    let before = alloc::held_bytes();
    let started = Instant::now();
    for index in 0..nodes {
        let node = space.node(format!("node-{index}"));
        if index % (nodes / 100).max(1) == 0 {
            node.on("reading", |reading: &Event<Reading>, _: &Context| {
                black_box(reading.sensor);
            })
            .check()?;
        } else {
            node.on("add", |event: &Event<Add>, _: &Context| event.number + 1).check()?;
        }
    }
    let bytes = (alloc::held_bytes() - before) / nodes as i64;
    println!("{nodes} nodes made in {:?}, {bytes} bytes each with one closure of its own", started.elapsed());
    space.start().await?;
    for _ in 0..rounds {
        measure!(rows, "publish, 100 of 100 000 nodes", None, 200, {
            space.broadcast(Reading { sensor: 1, celsius: 20.0 })?;
        });
    }
    Ok(())
}

fn argument(name: &str, default: u64) -> u64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.next();
    arguments.next().and_then(|number| number.parse().ok()).unwrap_or(default)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> happen::Result<()> {
    let rounds = argument("--rounds", 9);
    let operations = argument("--operations", 200_000);
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    println!("{cpus} processors, tokio current-thread runtime, {rounds} rounds, {operations} operations");
    let world = world().await?;
    let mut rows = Rows(Vec::new());
    for _ in 0..rounds {
        round(&mut rows, &world, operations).await?;
    }
    among_many(&mut rows, 100_000, rounds as usize).await?;
    rows.print();
    Ok(())
}
