//! What does the link over NATS cost beside the bare client? Both move the same bytes through one server on loopback, in
//! turns; figures are medians over rounds, and ratios of one run.
//!
//! Run: `cargo run --release [events of one round] [rounds]`. The payload is the same in every run. The server has to be
//! installed (`cargo xtask setup`).

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::StreamExt as _;
use happen::env::RealEnv;
use happen::{Config, Context, Event, Hub, Link, Space, done};
use happen_bench_nats::{Came, arguments, flooded, link, median, p50, payload, rate, space};
use happen_core::env::Env;
use happen_core::link::{Inbound, NodePresence, Replies};
use happen_nats::{Connection, LinkOptions, NatsLink};
use happen_testing::NatsServer;
use happen_testing::link::{Probe, next_reply, until};

const SPACE: &str = "bench";
/// Requests in flight.
const IN_FLIGHT: u64 = 64;
const BATCH: usize = 100;

struct Parts {
    here: Space,
    came: Arc<Came>,
    raw_here: Client,
    raw_there: Client,
    frame: Bytes,
    events: u64,
    hub_here: Space,
    link_here: Arc<NatsLink>,
    taken: Arc<Came>,
}

/// A member that counts what it gets.
#[derive(Debug, Default)]
struct Counter(Arc<Came>);

impl Inbound for Counter {
    fn post(&self, _: &str, _: &[u8]) {
        self.0.one();
    }

    fn request(&self, _: &str, frame: &[u8]) -> Box<dyn Replies> {
        Box::new(Echo(Some(frame.to_vec())))
    }

    fn publish(&self, _: &[u8]) {}

    fn presence(&self) -> Vec<NodePresence> {
        vec![NodePresence { id: "counter".to_owned(), handles: Vec::new(), share: None }]
    }
}

/// Answers with what it was asked.
struct Echo(Option<Vec<u8>>);

impl Replies for Echo {
    fn poll_next(&mut self, _: &mut std::task::Context<'_>) -> Poll<Option<happen::Result<Vec<u8>>>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let [events, rounds] = arguments([200_000, 5]);
    let server = NatsServer::start();
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let here = space(&server, &env, SPACE, "here").await;
    let there = space(&server, &env, SPACE, "there").await;
    let came = Arc::new(Came::default());
    let count = Arc::clone(&came);
    there.node("sink").on("string", move |_: &Event<String>, _: &Context| {
        count.one();
    });
    there.node("taker").on("string", |_: &Event<String>, _: &Context| ());
    there.node("echo").on("string", |text: &Event<String>, _: &Context| text.payload().clone());
    there.node("stream").on("u64", async |items: Event<u64>, cx: Context| -> happen::Result<_> {
        for item in 0..*items.payload() {
            cx.emit(item).await?;
        }
        done(true)
    });
    here.start().await.expect("a start");
    there.start().await.expect("a start");
    let probe = Probe::new("probe");
    let connection = Connection::open(&server.url(), ConnectOptions::new()).await.expect("a connection");
    let options = LinkOptions::new(SPACE, "probe");
    let stranger = NatsLink::new(&connection, Arc::clone(&env), options).expect("names");
    stranger.attach(Arc::clone(&probe) as _).await.expect("a place");
    until(&env, "all are known", || here.remote_nodes().len() == 5).await;
    here.send("probe", payload()).forget();
    until(&env, "a frame came", || !probe.frames().is_empty()).await;
    let frame = Bytes::from(probe.frames().remove(0));
    stranger.close().await;
    let raw_here = async_nats::connect(server.url()).await.expect("a connection");
    let raw_there = async_nats::connect(server.url()).await.expect("a connection");
    let hub = Hub::new();
    let [hub_here, hub_there] = ["here", "there"].map(|name| {
        let space = Space::in_env(Config::default(), Arc::clone(&env)).expect("a space");
        space.join(hub.link(name)).expect("a link");
        space
    });
    let count = Arc::clone(&came);
    hub_there.node("sink").on("string", move |_: &Event<String>, _: &Context| {
        count.one();
    });
    hub_here.start().await.expect("a start");
    hub_there.start().await.expect("a start");
    let taken = Arc::new(Came::default());
    let link_here = link(&server, &env, SPACE, "link-here").await;
    let link_there = link(&server, &env, SPACE, "link-there").await;
    link_there.attach(Arc::new(Counter(Arc::clone(&taken)))).await.expect("a place");
    link_here.attach(Arc::new(Counter::default())).await.expect("a place");
    until(&env, "the links know each other", || {
        link_here.peers().iter().any(|peer| peer.name == "link-there")
    })
    .await;
    let parts = Parts { here, came, raw_here, raw_there, frame, events, hub_here, link_here, taken };
    println!(
        "payload {} bytes, frame {} bytes, {events} events, {rounds} rounds",
        payload().len(),
        parts.frame.len()
    );

    let mut echo = parts.raw_there.subscribe("raw.echo").await.expect("a subscription");
    let replier = parts.raw_there.clone();
    tokio::spawn(async move {
        while let Some(message) = echo.next().await {
            let reply = message.reply.expect("a reply subject");
            replier.publish(reply, message.payload).await.expect("a reply");
        }
    });
    let mut figures: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut note = |name, figure| match figures.iter_mut().find(|(known, _)| *known == name) {
        Some((_, all)) => all.push(figure),
        None => figures.push((name, vec![figure])),
    };
    for _ in 0..rounds {
        note("raw: events/s", parts.raw_flood().await);
        note("send -> handler: events/s", parts.flood().await);
        note("in process, by a hub: events/s", parts.hub_flood().await);
        note("frames alone, without events: frames/s", parts.frame_flood().await);
        note("raw: request p50 alone, us", parts.raw_alone().await);
        note("request p50 alone, us", parts.alone().await);
        note("raw: requests/s, 64 in flight", parts.raw_in_flight().await);
        note("requests/s, 64 in flight", parts.in_flight().await);
        note("frames alone: requests/s, 64 in flight", parts.frames_in_flight().await);
        note("singles, each awaited: events/s", parts.awaited(1).await);
        note("batches of 100, each awaited: events/s", parts.awaited(BATCH).await);
        note("stream: items/s", parts.stream().await);
    }
    let figure = |name: &str| {
        let (_, all) = figures.iter().find(|(known, _)| *known == name).expect("a figure");
        median(all.clone())
    };
    for (name, all) in &figures {
        let (least, most) = all.iter().fold((f64::MAX, 0.0f64), |(l, m), x| (l.min(*x), m.max(*x)));
        println!("{name:44} {:>12.1}   ({least:.1} to {most:.1})", figure(name));
    }
    for (what, ours, raw) in [
        ("send -> handler / raw", "send -> handler: events/s", "raw: events/s"),
        ("send -> handler / by a hub", "send -> handler: events/s", "in process, by a hub: events/s"),
        ("frames alone / raw", "frames alone, without events: frames/s", "raw: events/s"),
        ("request p50 / raw", "request p50 alone, us", "raw: request p50 alone, us"),
        ("64 in flight / raw", "requests/s, 64 in flight", "raw: requests/s, 64 in flight"),
        (
            "frames alone, 64 in flight / raw",
            "frames alone: requests/s, 64 in flight",
            "raw: requests/s, 64 in flight",
        ),
        ("batch / singles", "batches of 100, each awaited: events/s", "singles, each awaited: events/s"),
        ("batch / send -> handler", "batches of 100, each awaited: events/s", "send -> handler: events/s"),
    ] {
        println!("{what:44} {:>12.2}", figure(ours) / figure(raw));
    }
}

impl Parts {
    async fn raw_flood(&self) -> f64 {
        let mut subscriber = self.raw_there.subscribe("raw.flood").await.expect("a subscription");
        self.raw_there.flush().await.expect("a flush");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let begun = Instant::now();
        let (client, frame, events) = (self.raw_here.clone(), self.frame.clone(), self.events);
        tokio::spawn(async move {
            for _ in 0..events {
                client.publish("raw.flood", frame.clone()).await.expect("a publication");
            }
        });
        for _ in 0..events {
            subscriber.next().await.expect("a message");
        }
        rate(events, begun.elapsed())
    }

    async fn flood(&self) -> f64 {
        self.flood_from(&self.here).await
    }

    async fn hub_flood(&self) -> f64 {
        self.flood_from(&self.hub_here).await
    }

    async fn frame_flood(&self) -> f64 {
        let (link, frame, taken) = (Arc::clone(&self.link_here), self.frame.clone(), Arc::clone(&self.taken));
        flooded(self.events, move || link.post("counter", frame.to_vec()).expect("room"), &taken).await
    }

    async fn flood_from(&self, here: &Space) -> f64 {
        let (space, payload, came) = (here.clone(), payload(), Arc::clone(&self.came));
        let rate = flooded(self.events, move || space.send("sink", payload.clone()).forget(), &came).await;
        assert!(here.dead_letters().is_empty());
        rate
    }

    async fn raw_alone(&self) -> f64 {
        let mut times = Vec::new();
        for _ in 0..self.events / 40 {
            let begun = Instant::now();
            self.raw_here.request("raw.echo", self.frame.clone()).await.expect("a reply");
            times.push(begun.elapsed());
        }
        p50(times)
    }

    async fn alone(&self) -> f64 {
        let mut times = Vec::new();
        for _ in 0..self.events / 40 {
            let begun = Instant::now();
            self.here.send("echo", payload()).reply::<String>().await.expect("a reply");
            times.push(begun.elapsed());
        }
        p50(times)
    }

    async fn raw_in_flight(&self) -> f64 {
        let each = self.events / 4 / IN_FLIGHT;
        let begun = Instant::now();
        let tasks = (0..IN_FLIGHT).map(|_| {
            let (client, frame) = (self.raw_here.clone(), self.frame.clone());
            tokio::spawn(async move {
                for _ in 0..each {
                    client.request("raw.echo", frame.clone()).await.expect("a reply");
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("an end");
        }
        rate(each * IN_FLIGHT, begun.elapsed())
    }

    async fn in_flight(&self) -> f64 {
        let each = self.events / 4 / IN_FLIGHT;
        let begun = Instant::now();
        let tasks = (0..IN_FLIGHT).map(|_| {
            let (here, payload) = (self.here.clone(), payload());
            tokio::spawn(async move {
                for _ in 0..each {
                    here.send("echo", payload.clone()).reply::<String>().await.expect("a reply");
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("an end");
        }
        rate(each * IN_FLIGHT, begun.elapsed())
    }

    async fn frames_in_flight(&self) -> f64 {
        let each = self.events / 4 / IN_FLIGHT;
        let begun = Instant::now();
        let tasks = (0..IN_FLIGHT).map(|_| {
            let (link, frame) = (Arc::clone(&self.link_here), self.frame.clone());
            tokio::spawn(async move {
                for _ in 0..each {
                    let mut replies = link.request("counter", frame.to_vec()).expect("room");
                    next_reply(&mut *replies).await.expect("a reply").expect("a reply");
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("an end");
        }
        rate(each * IN_FLIGHT, begun.elapsed())
    }

    async fn awaited(&self, batch: usize) -> f64 {
        let count = if batch == 1 { self.events / 40 } else { self.events / batch as u64 };
        let begun = Instant::now();
        for _ in 0..count {
            if batch == 1 {
                self.here.send("taker", payload()).await.expect("taken");
            } else {
                self.here.send("taker", vec![payload(); batch]).await.expect("taken");
            }
        }
        rate(count * batch as u64, begun.elapsed())
    }

    async fn stream(&self) -> f64 {
        let begun = Instant::now();
        let mut items = self.here.send("stream", self.events).stream::<u64>();
        let mut count = 0;
        while let Some(item) = items.next().await {
            item.expect("an item");
            count += 1;
        }
        assert_eq!(count, self.events);
        rate(count, begun.elapsed())
    }
}
