//! Happen's operations: the nodes they need, and each of them in a loop. Used by the program that measures all of them
//! and by `one`, which runs one of them under a profiler; so both run the same code.
//!
//! Everything is on that is on by default: causality, the ring of event headers, limits, panic isolation, error
//! reporting. Nothing is configured, but for the node whose handlers suspend a thousand at a time.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bench_common::{BROADCASTS, BURST, CALLERS, LATCHES, LISTENERS, Last, MANY_NODES, SLEEP, suspend_once};
use happen::raw::RawPayload;
use happen::{Context, Dynamic, Event, Hub, Moment, Node, RawEvent, Result, Space, Step, done, next};
use serde::{Deserialize, Serialize};

/// An operation: its name, how often to run it for one measurement, and how many operations one run is.
pub type Operation = (&'static str, u64, u64);

/// What runs on one thread.
pub const ON_ONE_THREAD: [Operation; 20] = [
    ("ask", 500_000, 1),
    ("ask-async", 500_000, 1),
    ("ask-steps", 200_000, 1),
    ("serial", 500_000, 1),
    ("ask-id", 500_000, 1),
    ("hooks-off", 500_000, 1),
    ("send", 500, BURST),
    ("ask-suspends", 100_000, 1),
    ("send-suspends", 100, BURST),
    ("broadcast", 300, BURST),
    ("away", 100, BURST),
    ("zero", 200_000, 1),
    ("zero-typed", 100_000, 1),
    ("decode", 200_000, 1),
    ("read", 200_000, 1),
    ("state-get", 1_000_000, 1),
    ("state-set", 1_000_000, 1),
    ("route-one", 200_000, 1),
    ("route-many", 200_000, 1),
    ("publish-many", 300, 1),
];

/// What runs on two workers.
pub const ON_TWO_WORKERS: [Operation; 4] = [
    ("broadcast-2", 100, 2 * BURST),
    ("callers", 5_000, CALLERS),
    ("sleep-one", 10, 1),
    ("sleep-callers", 10, 1),
];

#[derive(happen::Event, Clone, Serialize, Deserialize)]
struct Add {
    number: u64,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
struct Tick {
    number: u64,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
struct Told {
    number: u64,
    last: u8,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
struct Reading {
    number: u64,
}

/// About 200 bytes in MessagePack, as a device might send.
#[derive(happen::Event, Clone, Serialize, Deserialize)]
struct Wide {
    sensor: u64,
    celsius: f64,
    count: u64,
    samples: [f64; 16],
}

/// What is sent to another space: a payload of this many bytes.
const TEXT_BYTES: usize = 200;

#[derive(happen::State, Default, Clone, Serialize, Deserialize)]
struct Total {
    number: u64,
}

async fn ready(event: Event<Add>, _: Context) -> u64 {
    event.number + 1
}

async fn first(_: Event<Add>, _: Context) -> Result<Step> {
    next(second)
}

async fn second(_: Event<Add>, _: Context) -> Result<Step> {
    next(third)
}

async fn third(event: Event<Add>, _: Context) -> Result<Step> {
    done(event.number + 1)
}

async fn suspends(event: Event<Add>, _: Context) -> u64 {
    suspend_once().await;
    event.number + 1
}

async fn suspends_told(event: Event<Told>, _: Context) {
    suspend_once().await;
    black_box(event.number);
    Last::from_number(event.last).handled();
}

async fn sleeps(event: Event<Add>, _: Context) -> u64 {
    tokio::time::sleep(SLEEP).await;
    event.number + 1
}

fn plain(event: &Event<Add>, _: &Context) -> u64 {
    event.number + 1
}

fn listens(event: &Event<Tick>, _: &Context) {
    black_box(event.number);
}

fn noted(event: &Event, _: &Context) {
    black_box(event.id());
}

/// The nodes that the operations are about.
#[derive(Debug)]
pub struct World {
    space: Space,
    plain: Node,
    ready: Node,
    steps: Node,
    serial: Node,
    waits: Node,
    sleeps: Node,
    zero: Node,
    typed: Node,
    state: Node,
    one_pattern: Node,
    many_patterns: Node,
    hooked: Space,
    /// The one that sends, and the one that it sends to.
    away: [Space; 2],
    arrived: Arc<AtomicU64>,
    text: String,
    beside_hooked: Node,
    wide: Vec<u8>,
}

impl World {
    /// Makes the nodes; those of which there are many only for the operation that needs them.
    pub async fn new(operation: &str) -> Result<Arc<Self>> {
        let space = Space::memory();
        let node = |id: &str| space.node(id);
        let [plain_node, ready_node, steps] = ["plain", "ready", "steps"].map(node);
        plain_node.on("add", plain).check()?;
        ready_node.on("add", ready).check()?;
        steps.on("add", first).step(second).step(third).check()?;
        let serial = node("serial").serial();
        serial.on("add", plain).check()?;
        let waits = node("waits").max_concurrent(2 * BURST as u32);
        waits.on("add", suspends).check()?;
        waits.on("told", suspends_told).check()?;
        let sleeping = node("sleeps");
        sleeping.on("add", sleeps).check()?;
        let [zero, typed] = ["zero", "typed"].map(node);
        zero.zero("wide", |event: RawEvent<'_>| {
            black_box((event.u64("sensor"), event.f64("celsius"), event.u64("count")));
        })
        .check()?;
        typed
            .on("wide", |event: &Event<Wide>, _: &Context| {
                black_box((event.sensor, event.celsius, event.count));
            })
            .check()?;
        let [one_pattern, many_patterns] = ["one-pattern", "many-patterns"].map(node);
        one_pattern.on("route.*.seen", noted).check()?;
        for index in 0..49 {
            // Patterns of every kind; none of them matches.
            let pattern = match index % 4 {
                0 => format!("route.{index}.**"),
                1 => format!("{{route,way}}.{index}.seen"),
                2 => format!("*.{index}.*"),
                _ => format!("route.*.never-{index}"),
            };
            many_patterns.on(&*pattern, |_: &Event, _: &Context| {}).check()?;
        }
        many_patterns.on("route.*.seen", noted).check()?;
        for index in 0..LISTENERS {
            node(&format!("listener-{index}")).on("tick", listens).check()?;
        }
        if operation == "publish-many" {
            for index in 0..MANY_NODES {
                let many = node(&format!("node-{index}"));
                if index % (MANY_NODES / LISTENERS) == 0 {
                    many.on("reading", |reading: &Event<Reading>, _: &Context| {
                        black_box(reading.number);
                    })
                    .check()?;
                } else {
                    many.on("add", plain).check()?;
                }
            }
        }
        let state = node("state");
        space.start().await?;

        // Another node of this space has hooks; the one that is asked has none.
        let hooked = Space::memory();
        let moments = [Moment::BeforeEmit, Moment::BeforeHandle, Moment::AfterHandle, Moment::BeforeState];
        let elsewhere =
            moments.into_iter().fold(hooked.node("hooked"), |node, moment| node.hook(moment, 0, |_| Ok(())));
        elsewhere.on("add", plain).check()?;
        let beside_hooked = hooked.node("plain");
        beside_hooked.on("add", plain).check()?;
        hooked.start().await?;

        // What is sent to a node of another space leaves as bytes, by a link in this process.
        let hub = Hub::new();
        let [away, elsewhere] = ["away", "elsewhere"].map(|name| (Space::memory(), hub.link(name)));
        let arrived = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&arrived);
        let far = elsewhere.0.node("far");
        far.on("string", move |_: &Event<String>, _: &Context| {
            count.fetch_add(1, Ordering::Relaxed);
        })
        .check()?;
        for (space, link) in [&away, &elsewhere] {
            space.join(Arc::clone(link) as _)?;
            space.start().await?;
        }

        let wide = Wide { sensor: 7, celsius: 21.0, count: 16, samples: [20.5; 16] };
        let wide = rmp_serde::to_vec_named(&wide).map_err(|error| happen::Error::msg(error.to_string()))?;
        assert!((180..=220).contains(&wide.len()), "the wide event has {} bytes", wide.len());
        Ok(Arc::new(Self {
            plain: plain_node,
            ready: ready_node,
            steps,
            serial,
            waits,
            sleeps: sleeping,
            zero,
            typed,
            state,
            one_pattern,
            many_patterns,
            hooked,
            away: [away.0, elsewhere.0],
            arrived,
            text: "a".repeat(TEXT_BYTES),
            beside_hooked,
            wide,
            space,
        }))
    }

    /// Runs an operation so many times.
    pub async fn run(self: &Arc<Self>, operation: &str, count: u64) -> Result<()> {
        match operation {
            "ask" => self.asks(&self.plain, count).await,
            "ask-async" => self.asks(&self.ready, count).await,
            "ask-steps" => self.asks(&self.steps, count).await,
            "serial" => self.asks(&self.serial, count).await,
            "ask-suspends" => self.asks(&self.waits, count).await,
            "ask-id" => self.asks_by_id(count).await,
            "hooks-off" => self.asks_beside_hooked(count).await,
            "send" => self.sends(count).await,
            "away" => self.sends_away(count).await,
            "send-suspends" => self.sends_suspending(count).await,
            "broadcast" => self.broadcasts(count * BROADCASTS),
            "publish-many" => self.publishes(count),
            "zero" => self.sends_wide(&self.zero, count).await,
            "zero-typed" => self.sends_wide(&self.typed, count).await,
            "decode" => self.decodes(count),
            "read" => self.reads(count),
            "state-get" => self.gets(count),
            "state-set" => self.sets(count),
            "route-one" => self.sends_seen(&self.one_pattern, count).await,
            "route-many" => self.sends_seen(&self.many_patterns, count).await,
            "broadcast-2" => self.broadcasts_from_two(count).await,
            "callers" => self.called_by_many(count).await,
            "sleep-one" => self.sleeps(1, count).await,
            "sleep-callers" => self.sleeps(CALLERS, count).await,
            other => Err(happen::Error::msg(format!("there is no operation {other}"))),
        }
    }

    async fn asks(&self, node: &Node, count: u64) -> Result<()> {
        for _ in 0..count {
            black_box(self.space.send(node, Add { number: black_box(1) }).reply::<u64>().await?.into_inner());
        }
        Ok(())
    }

    async fn asks_by_id(&self, count: u64) -> Result<()> {
        for _ in 0..count {
            black_box(
                self.space.send("plain", Add { number: black_box(1) }).reply::<u64>().await?.into_inner(),
            );
        }
        Ok(())
    }

    async fn asks_beside_hooked(&self, count: u64) -> Result<()> {
        for _ in 0..count {
            let asking = self.hooked.send(&self.beside_hooked, Add { number: black_box(1) });
            black_box(asking.reply::<u64>().await?.into_inner());
        }
        Ok(())
    }

    /// A plain handler has run when the send is done, so there is nothing to wait for after a burst.
    async fn sends(&self, bursts: u64) -> Result<()> {
        for number in 0..bursts * BURST {
            black_box(self.space.send(&self.plain, Add { number: black_box(number) }).await?);
        }
        Ok(())
    }

    /// A burst leaves, and is waited for where it arrives.
    async fn sends_away(&self, bursts: u64) -> Result<()> {
        for _ in 0..bursts {
            let until = self.arrived.load(Ordering::Relaxed) + BURST;
            for _ in 0..BURST {
                self.away[0].send("far", self.text.clone()).forget();
            }
            while self.arrived.load(Ordering::Relaxed) < until {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    async fn sends_suspending(&self, bursts: u64) -> Result<()> {
        for _ in 0..bursts {
            LATCHES[0].set(1);
            for number in 0..BURST {
                let last = Last::of(number, BURST, 0).number();
                black_box(self.space.send(&self.waits, Told { number: black_box(number), last }).await?);
            }
            LATCHES[0].opened().await;
        }
        Ok(())
    }

    fn broadcasts(&self, count: u64) -> Result<()> {
        for number in 0..count {
            black_box(self.space.broadcast(Tick { number: black_box(number) })?);
        }
        Ok(())
    }

    fn publishes(&self, count: u64) -> Result<()> {
        for number in 0..count {
            black_box(self.space.broadcast(Reading { number: black_box(number) })?);
        }
        Ok(())
    }

    /// An event made of bytes is made once and sent by cloning it, which copies no bytes.
    async fn sends_wide(&self, node: &Node, count: u64) -> Result<()> {
        let event = Dynamic::from_bytes(happen::EventType::new("wide"), self.wide.as_slice().into());
        for _ in 0..count {
            black_box(self.space.send(node, event.clone()).await?);
        }
        Ok(())
    }

    fn decodes(&self, count: u64) -> Result<()> {
        for _ in 0..count {
            let wide: Wide = rmp_serde::from_slice(black_box(&self.wide))
                .map_err(|error| happen::Error::msg(error.to_string()))?;
            black_box((wide.sensor, wide.celsius, wide.count));
        }
        Ok(())
    }

    fn reads(&self, count: u64) -> Result<()> {
        for _ in 0..count {
            let wide = RawPayload::new(black_box(&self.wide));
            black_box((wide.u64("sensor"), wide.f64("celsius"), wide.u64("count")));
        }
        Ok(())
    }

    fn gets(&self, count: u64) -> Result<()> {
        let total = self.state.state::<Total>();
        for _ in 0..count {
            black_box(total.get(|total| total.number));
        }
        Ok(())
    }

    fn sets(&self, count: u64) -> Result<()> {
        let total = self.state.state::<Total>();
        for _ in 0..count {
            total.set(|mut total| {
                total.number += 1;
                total
            })?;
        }
        Ok(())
    }

    async fn sends_seen(&self, node: &Node, count: u64) -> Result<()> {
        let event = fresh_event(0);
        for _ in 0..count {
            black_box(self.space.send(node, event.clone()).await?);
        }
        Ok(())
    }

    /// Sends each of these events to the node with 50 patterns.
    pub async fn sends_each(&self, events: &[Dynamic]) -> Result<()> {
        for event in events {
            black_box(self.space.send(&self.many_patterns, event.clone()).await?);
        }
        Ok(())
    }

    /// Two publishers, as everywhere else.
    async fn broadcasts_from_two(self: &Arc<Self>, bursts: u64) -> Result<()> {
        let publishers = [0, 1].map(|_| {
            let world = Arc::clone(self);
            tokio::spawn(async move { world.broadcasts(bursts * BROADCASTS) })
        });
        for publisher in publishers {
            publisher.await.expect("it publishes")?;
        }
        Ok(())
    }

    async fn called_by_many(self: &Arc<Self>, count: u64) -> Result<()> {
        let caller = |_| {
            let world = Arc::clone(self);
            tokio::spawn(async move { world.asks(&world.plain, count).await })
        };
        for caller in (0..CALLERS).map(caller).collect::<Vec<_>>() {
            caller.await.expect("it asks")?;
        }
        Ok(())
    }

    async fn sleeps(self: &Arc<Self>, callers: u64, count: u64) -> Result<()> {
        for _ in 0..count {
            let caller = |_| {
                let world = Arc::clone(self);
                tokio::spawn(async move { world.asks(&world.sleeps, 1).await })
            };
            for caller in (0..callers).map(caller).collect::<Vec<_>>() {
                caller.await.expect("it asks")?;
            }
        }
        Ok(())
    }
}

/// An event of a type of its own for each number, all of which the same one of 50 patterns matches.
#[must_use]
pub fn fresh_event(number: u64) -> Dynamic {
    Event::new(&format!("route.{}.seen", 1_000 + number), serde_json::Value::Null)
}

/// Makes nodes that share one handler.
pub async fn idle_sharing(count: u64) -> Result<Space> {
    let space = Space::memory();
    for index in 0..count {
        space.node(format!("node-{index}")).on("add", plain).check()?;
    }
    space.start().await?;
    Ok(space)
}

/// Makes nodes that each have a closure of their own, which owns something.
pub async fn idle_owning(count: u64) -> Result<Space> {
    let space = Space::memory();
    for index in 0..count {
        let add = move |event: &Event<Add>, _: &Context| event.number + index;
        space.node(format!("node-{index}")).on("add", add).check()?;
    }
    space.start().await?;
    Ok(space)
}
