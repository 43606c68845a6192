//! Whether nodes keep up: each of the four patterns is told once when it begins and once when it is over, none passes for
//! another, and nothing is told of what is quiet. In virtual time, in memory, over a link, and on one log.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen::balance::{FlowPattern, NodePlace, NodeStanding};
use happen::control::{self, Answer, Request};
use happen::store::{MemoryStore, Store};
use happen::{
    BalanceOptions, Config, Context, ErrorKind, Event, Hub, HubLink, Link, Node, Space, millis, secs, with,
};
use happen_core::env::{BoxFuture, BoxWork, CoarseClock, Env};
use happen_core::link::{ConnectionStatus, Inbound, Notice, Peer, Replies};
use happen_testing::{Simulator, check_seeds};
use serde_json::{Value as Json, json};

fn watched() -> Config {
    Config { balance: Some(BalanceOptions::default()), ..Config::default() }
}

/// What was told so far, in order.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(String, Json)>>>);

impl Told {
    /// Hears all that the detector of a space may tell.
    fn by(space: &Space) -> Self {
        let told = Self::default();
        let heard = told.clone();
        let types = "{node.{slow,down,recovered},system.{overloaded,partitioned,down,recovered}}";
        let hear = move |event: &Event, _: &Context| {
            let content = event.payload().json().unwrap().clone();
            heard.0.lock().unwrap().push((event.event_type().to_owned(), content));
        };
        space.on(types, hear).check().unwrap();
        told
    }

    fn all(&self) -> Vec<(String, Json)> {
        self.0.lock().unwrap().clone()
    }

    /// Each event by its type and the nodes that it names.
    fn lines(&self) -> Vec<String> {
        let line = |(event_type, content): (String, Json)| match content["affected_nodes"].as_array() {
            Some(nodes) => {
                let nodes: Vec<_> = nodes.iter().map(|node| node.as_str().unwrap()).collect();
                format!("{event_type} {} {}", content["pattern"].as_str().unwrap(), nodes.join(","))
            }
            None => format!("{event_type} {}", content["pattern"].as_str().unwrap()),
        };
        self.all().into_iter().map(line).collect()
    }

    /// What the first event of this type says.
    fn first(&self, event_type: &str) -> Json {
        self.all().into_iter().find(|(told, _)| told == event_type).unwrap().1
    }
}

/// A node that handles one event at a time, each for so long.
fn worker(space: &Space, id: &str, takes: Duration) -> Node {
    let node = space.node(id).serial();
    node.on("u32", with(takes, async |takes: Duration, _: Event<u32>, cx: Context| cx.sleep(takes).await))
        .check()
        .unwrap();
    node
}

/// Sends so many events in each tenth of a second to each of these nodes, for so many seconds.
async fn load(space: &Space, seconds: u32, of: &[(&Node, u32)]) {
    for _ in 0..seconds * 10 {
        for (node, count) in of {
            for number in 0..*count {
                // One that is refused is gone, as with any sender that does not care.
                drop(space.send(*node, number).await);
            }
        }
        space.env().sleep(millis(100)).await;
    }
}

fn in_memory(seed: u64, check: impl AsyncFnOnce(Space, Told)) {
    let sim = Simulator::new(seed);
    let space = Space::in_env(watched(), sim.env()).unwrap();
    sim.run(async {
        let told = Told::by(&space);
        check(space, told).await;
    });
}

#[test]
fn a_node_that_gets_more_than_it_handles_is_told_once_and_its_recovery_once() {
    in_memory(1, async |space, told| {
        let slow = worker(&space, "slow", millis(50));
        let quick = ["a", "b", "c"].map(|id| worker(&space, id, millis(1)));
        space.start().await.unwrap();
        // 40 come and 20 leave in a second.
        let [a, b, c] = &quick;
        load(&space, 20, &[(&slow, 4), (a, 4), (b, 4), (c, 4)]).await;
        assert_eq!(told.lines(), ["node.slow bottleneck slow"]);
        let content = told.first("node.slow");
        assert_eq!(content["node_id"], "slow");
        assert_eq!((&content["queue_limit"], &content["affected_len"]), (&json!(10_000), &json!(1)));
        let metrics = &content["lag_metrics"];
        assert!(metrics["waiting"].as_u64().unwrap() >= 100, "{metrics}");
        let rate = |name: &str| metrics["rates"][name].as_f64().unwrap();
        assert!((rate("lag_per_s") - 20.0).abs() < 3.0, "{metrics}");
        assert!((rate("handled_per_s") - 20.0).abs() < 3.0, "{metrics}");
        assert!((rate("arrived_per_s") - 40.0).abs() < 3.0, "{metrics}");
        assert!(
            (rate("utilisation") - 1.0).abs() < 0.1 && (rate("service_ms") - 50.0).abs() < 8.0,
            "{metrics}"
        );
        // 40 a second that take 50 ms each are two at once, at 70 percent three.
        assert_eq!(metrics["rates"]["places_needed"], 3);
        let report = space.balance_report().await.unwrap();
        assert_eq!(report.node("slow").unwrap().standing, NodeStanding::Slow);
        assert_eq!(report.node("slow").unwrap().pattern, Some(FlowPattern::Bottleneck));
        assert_eq!(report.node("a").unwrap().standing, NodeStanding::Well);
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.findings[0].event, "node.slow");
        space.settled(secs(60)).await.unwrap();
        space.env().sleep(secs(30)).await;
        assert_eq!(told.lines(), ["node.slow bottleneck slow", "node.recovered bottleneck slow"]);
        assert!(space.balance_report().await.unwrap().findings.is_empty());
    });
}

#[test]
fn a_burst_that_is_worked_off_is_not_told() {
    in_memory(1, async |space, told| {
        let node = worker(&space, "node", millis(50));
        space.start().await.unwrap();
        // Half a minute of work, which becomes less from the first look on.
        for number in 0..600u32 {
            space.send(&node, number).await.unwrap();
        }
        space.settled(secs(60)).await.unwrap();
        space.env().sleep(secs(30)).await;
        assert_eq!(told.lines(), [""; 0]);
    });
}

#[test]
fn many_nodes_that_fall_behind_together_are_one_overload() {
    in_memory(2, async |space, told| {
        let slow = ["a", "b", "c", "d"].map(|id| worker(&space, id, millis(50)));
        let quick = worker(&space, "quick", millis(1));
        space.start().await.unwrap();
        let [a, b, c, d] = &slow;
        // They pass the limit one after the other.
        load(&space, 25, &[(a, 6), (b, 5), (c, 4), (d, 4), (&quick, 4)]).await;
        let lines = told.lines();
        assert_eq!(lines[0], "system.overloaded overload a,b,c,d");
        // Four of five are most of the nodes.
        assert_eq!(lines[1..], ["system.down overload a,b,c,d"]);
        let content = told.first("system.overloaded");
        assert_eq!((&content["busy_nodes"], &content["late_ms"]), (&json!(5), &json!(0)));
        assert!(content["lag"].as_f64().unwrap() > 200.0 && content["lag_per_s"].as_f64().unwrap() > 60.0);
        assert_eq!(told.first("system.down")["level"], "most");
        space.settled(secs(120)).await.unwrap();
        space.env().sleep(secs(60)).await;
        let mut over: Vec<_> = told.lines().split_off(2);
        over.sort();
        assert_eq!(over, ["system.recovered overload", "system.recovered overload"]);
    });
}

#[test]
fn two_nodes_that_fall_behind_are_two_bottlenecks_in_one_event() {
    in_memory(3, async |space, told| {
        let slow = ["a", "b"].map(|id| worker(&space, id, millis(50)));
        let quick = ["c", "d", "e"].map(|id| worker(&space, id, millis(1)));
        space.start().await.unwrap();
        let ([a, b], [c, d, e]) = (&slow, &quick);
        load(&space, 20, &[(a, 4), (b, 4), (c, 1), (d, 1), (e, 1)]).await;
        assert_eq!(told.lines(), ["node.slow bottleneck a,b"]);
    });
}

#[test]
fn a_full_queue_is_a_bottleneck_however_short_it_is() {
    in_memory(4, async |space, told| {
        let node = worker(&space, "node", millis(100)).queue_limit(5);
        space.start().await.unwrap();
        load(&space, 10, &[(&node, 2)]).await;
        assert_eq!(told.lines(), ["node.slow bottleneck node"]);
        let metrics = told.first("node.slow")["lag_metrics"].clone();
        assert!(metrics["rates"]["refused"].as_u64().unwrap() > 20, "{metrics}");
        // Twice as many come as leave, and those that were refused count.
        assert!((metrics["rates"]["arrived_per_s"].as_f64().unwrap() - 20.0).abs() < 3.0, "{metrics}");
    });
}

#[test]
fn a_node_whose_lag_is_no_matter_is_never_slow_and_another_one_sooner() {
    in_memory(5, async |space, told| {
        let batch = worker(&space, "batch", millis(50)).lag_max(0);
        let strict = worker(&space, "strict", millis(120)).lag_max(10);
        space.start().await.unwrap();
        load(&space, 15, &[(&batch, 8), (&strict, 1)]).await;
        assert_eq!(told.lines(), ["node.slow bottleneck strict"]);
    });
}

#[test]
fn a_stopped_node_with_events_is_down_and_is_not_slow() {
    let sim = Simulator::new(1);
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
    let space = Space::with_store(watched(), sim.env(), store).unwrap();
    sim.run(async {
        let told = Told::by(&space);
        let node = worker(&space, "node", millis(1));
        let others = ["a", "b", "c"].map(|id| worker(&space, id, millis(1)));
        space.start().await.unwrap();
        node.stop();
        let [a, b, c] = &others;
        load(&space, 15, &[(&node, 5), (a, 1), (b, 1), (c, 1)]).await;
        assert_eq!(told.lines(), ["node.down node-failure node"]);
        let content = told.first("node.down");
        assert_eq!(
            (&content["node_id"], &content["lag_metrics"]["is_taken"]),
            (&json!("node"), &json!(false))
        );
        let report = space.balance_report().await.unwrap();
        assert_eq!(report.node("node").unwrap().standing, NodeStanding::Down);
        assert!(report.node("node").unwrap().flows >= 700, "{report:?}");
        node.resume();
        space.settled(secs(60)).await.unwrap();
        space.env().sleep(secs(30)).await;
        assert_eq!(told.lines()[1..], ["node.recovered node-failure node"]);
        space.stop().await.unwrap();
    });
}

#[test]
fn a_stopped_node_without_events_is_nobodys_trouble() {
    in_memory(1, async |space, told| {
        let node = worker(&space, "node", millis(1));
        space.start().await.unwrap();
        node.stop();
        space.env().sleep(secs(60)).await;
        assert_eq!(told.lines(), [""; 0]);
    });
}

#[test]
fn attempts_and_failures_are_counted() {
    let sim = Simulator::new(1);
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
    let space = Space::with_store(watched(), sim.env(), store).unwrap();
    sim.run(async {
        let node = space.node("node").attempts(3, millis(10));
        let fails = async |_: Event<u32>, _: Context| Err::<(), _>(happen::Error::msg("no"));
        node.on("u32", fails).check().unwrap();
        space.start().await.unwrap();
        for number in 0..5u32 {
            space.send(&node, number).await.unwrap();
        }
        space.env().sleep(secs(2)).await;
        let report = space.balance_report().await.unwrap();
        let figures = report.node("node").unwrap();
        assert_eq!((figures.failed, figures.retried, figures.refused), (5, 10, 0));
        space.stop().await.unwrap();
    });
}

/// A link whose other members can be hidden, as if their processes were gone without a word, and which can be cut.
#[derive(Debug)]
struct Fragile {
    link: Arc<HubLink>,
    hidden: Mutex<Vec<String>>,
    inbound: Mutex<Option<Arc<dyn Inbound>>>,
}

impl Fragile {
    fn new(link: Arc<HubLink>) -> Arc<Self> {
        Arc::new(Self { link, hidden: Mutex::default(), inbound: Mutex::default() })
    }

    fn hide(&self, members: &[&str]) {
        *self.hidden.lock().unwrap() = members.iter().map(|&member| member.to_owned()).collect();
    }

    fn tell(&self, status: ConnectionStatus) {
        let inbound = self.inbound.lock().unwrap().clone().unwrap();
        inbound.notice(Notice::Connection { status, url: "hub:", reason: None });
    }
}

impl Link for Fragile {
    fn name(&self) -> &str {
        self.link.name()
    }

    fn attach(&self, inbound: Arc<dyn Inbound>) -> BoxFuture<'_, happen::Result<()>> {
        *self.inbound.lock().unwrap() = Some(Arc::clone(&inbound));
        self.link.attach(inbound)
    }

    fn changed(&self) {
        self.link.changed();
    }

    fn post(&self, to: &str, frame: Vec<u8>) -> happen::Result<()> {
        self.link.post(to, frame)
    }

    fn request(&self, to: &str, frame: Vec<u8>) -> happen::Result<Box<dyn Replies>> {
        self.link.request(to, frame)
    }

    fn post_at(&self, member: &str, to: &str, frame: Vec<u8>) -> happen::Result<()> {
        self.link.post_at(member, to, frame)
    }

    fn request_at(&self, member: &str, to: &str, frame: Vec<u8>) -> happen::Result<Box<dyn Replies>> {
        self.link.request_at(member, to, frame)
    }

    fn publish(&self, event_type: &str, frame: Vec<u8>) -> happen::Result<()> {
        self.link.publish(event_type, frame)
    }

    fn listens(&self, event_type: &str) -> bool {
        self.link.listens(event_type)
    }

    fn peers(&self) -> Vec<Peer> {
        let hidden = self.hidden.lock().unwrap();
        self.link.peers().into_iter().filter(|peer| !hidden.contains(&peer.name)).collect()
    }

    fn revision(&self) -> u64 {
        self.link.revision()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.link.close()
    }
}

/// A watched space and four others on one hub: `x` has two nodes, `y` three, `z` and `u` one each.
struct Five {
    here: Space,
    link: Arc<Fragile>,
    others: Vec<Space>,
    told: Told,
}

async fn five(sim: &Simulator) -> Five {
    let hub = Hub::in_env(sim.env());
    let here = Space::in_env(watched(), sim.env()).unwrap();
    let link = Fragile::new(hub.link("here"));
    here.join(Arc::clone(&link) as Arc<dyn Link>).unwrap();
    let told = Told::by(&here);
    worker(&here, "own", millis(1));
    let mut others = Vec::new();
    for (member, nodes) in
        [("x", &["x1", "x2"][..]), ("y", &["y1", "y2", "y3"]), ("z", &["z1"]), ("u", &["u1"])]
    {
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        space.join(hub.link(member)).unwrap();
        for node in nodes {
            worker(&space, node, millis(1));
        }
        space.start().await.unwrap();
        others.push(space);
    }
    here.start().await.unwrap();
    here.env().sleep(secs(3)).await;
    Five { here, link, others, told }
}

#[test]
fn processes_that_are_lost_with_their_nodes_are_a_partition() {
    let sim = Simulator::new(1);
    sim.run(async {
        let Five { here, link, told, others: _others } = five(&sim).await;
        // The second one is missed a little later and went with the first.
        link.hide(&["y"]);
        here.env().sleep(secs(3)).await;
        link.hide(&["x", "y"]);
        here.env().sleep(secs(20)).await;
        assert_eq!(
            told.lines(),
            ["system.partitioned partition x1,x2,y1,y2,y3", "system.down partition x1,x2,y1,y2,y3"]
        );
        let content = told.first("system.partitioned");
        assert_eq!((&content["members"], &content["is_cut"]), (&json!(["x", "y"]), &json!(false)));
        let report = here.balance_report().await.unwrap();
        let y1 = report.node("y1").unwrap();
        assert_eq!((y1.standing, y1.place), (NodeStanding::Cut, NodePlace::Elsewhere));
        link.hide(&[]);
        here.env().sleep(secs(40)).await;
        let mut over = told.lines().split_off(2);
        over.sort();
        assert_eq!(over, ["system.recovered partition", "system.recovered partition"]);
    });
}

#[test]
fn a_process_with_one_node_that_is_lost_is_a_node_that_failed() {
    let sim = Simulator::new(2);
    sim.run(async {
        let Five { here, link, told, others: _others } = five(&sim).await;
        link.hide(&["z"]);
        here.env().sleep(secs(20)).await;
        assert_eq!(told.lines(), ["node.down node-failure z1"]);
        assert_eq!(told.first("node.down")["lag_metrics"]["processes"], json!(["z"]));
        link.hide(&[]);
        here.env().sleep(secs(30)).await;
        assert_eq!(told.lines()[1..], ["node.recovered node-failure z1"]);
        // Two such processes at once are cut off.
        link.hide(&["z", "u"]);
        here.env().sleep(secs(20)).await;
        assert_eq!(told.lines()[2..], ["system.partitioned partition u1,z1"]);
    });
}

#[test]
fn a_cut_link_is_a_partition_of_all_that_is_beyond_it() {
    let sim = Simulator::new(3);
    sim.run(async {
        let Five { here, link, told, others: _others } = five(&sim).await;
        link.tell(ConnectionStatus::Disconnected);
        here.env().sleep(secs(3)).await;
        link.tell(ConnectionStatus::Connected);
        here.env().sleep(secs(20)).await;
        assert_eq!(told.lines(), [""; 0], "it was there again before anybody had to know");
        link.tell(ConnectionStatus::Disconnected);
        here.env().sleep(secs(20)).await;
        assert_eq!(
            told.lines(),
            [
                "system.partitioned partition u1,x1,x2,y1,y2,y3,z1",
                "system.down partition u1,x1,x2,y1,y2,y3,z1"
            ]
        );
        assert_eq!(told.first("system.partitioned")["is_cut"], true);
        link.tell(ConnectionStatus::Connected);
        here.env().sleep(secs(40)).await;
        assert_eq!(told.lines().len(), 4);
    });
}

#[test]
fn a_node_that_is_destroyed_where_it_is_is_missed_by_nobody() {
    let sim = Simulator::new(5);
    sim.run(async {
        let Five { here, told, others, link: _link } = five(&sim).await;
        for (space, node) in [(0, "x1"), (0, "x2"), (2, "z1")] {
            others[space].find(node).unwrap().destroy();
        }
        here.env().sleep(secs(60)).await;
        assert_eq!(told.lines(), [""; 0]);
        assert_eq!(here.balance_report().await.unwrap().nodes_len, 5);
    });
}

#[test]
fn processes_that_say_that_they_go_are_missed_by_nobody() {
    let sim = Simulator::new(4);
    sim.run(async {
        let Five { here, told, others, link: _link } = five(&sim).await;
        for space in &others {
            space.stop().await.unwrap();
        }
        here.env().sleep(secs(60)).await;
        assert_eq!(told.lines(), [""; 0]);
        assert_eq!(here.balance_report().await.unwrap().nodes_len, 1);
    });
}

/// A process on a log, with one durable node for each id.
fn process(sim: &Simulator, log: &Arc<dyn Store>, nodes: &[&str]) -> Space {
    let space = Space::with_store(watched(), sim.env(), Arc::clone(log)).unwrap();
    nodes.iter().for_each(|node| drop(worker(&space, node, millis(1))));
    space
}

#[test]
fn a_process_on_the_same_log_that_takes_nothing_is_told_by_what_waits_for_it() {
    check_seeds(0..5, |sim| {
        let log: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()).shared());
        sim.run(async {
            let bank = process(&sim, &log, &["bank", "other"]);
            bank.start().await.unwrap();
            let shop = process(&sim, &log, &["shop"]);
            let told = Told::by(&shop);
            shop.start().await.unwrap();
            shop.send("bank", 1u32).await.unwrap();
            shop.env().sleep(secs(20)).await;
            assert_eq!(told.lines(), [""; 0], "it is taken");
            // It ends in an orderly way, so nobody waits for it, until there is something to do.
            bank.stop().await.unwrap();
            shop.env().sleep(secs(20)).await;
            assert_eq!(told.lines(), [""; 0]);
            for number in 0..40u32 {
                shop.send("bank", number).await.unwrap();
            }
            shop.env().sleep(secs(20)).await;
            assert_eq!(told.lines(), ["node.down node-failure bank"]);
            let metrics = told.first("node.down")["lag_metrics"].clone();
            assert_eq!((&metrics["inbox"], &metrics["place"]), (&json!(40), &json!("elsewhere")));
            assert!(metrics["oldest_ms"].as_u64().unwrap() >= 5_000, "{metrics}");
            assert_eq!(shop.pressure("bank").unwrap().waiting, 40);
            let bank = process(&sim, &log, &["bank", "other"]);
            bank.start().await.unwrap();
            shop.env().sleep(secs(30)).await;
            assert_eq!(told.lines()[1..], ["node.recovered node-failure bank"]);
            bank.stop().await.unwrap();
            shop.stop().await.unwrap();
        });
    });
}

#[test]
fn so_many_events_of_an_inbox_are_counted() {
    let max = happen::limits::BALANCE_INBOX_MAX;
    let sim = Simulator::new(1);
    let log: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()).shared());
    sim.run(async {
        let bank = process(&sim, &log, &["a", "bank", "c"]);
        bank.start().await.unwrap();
        let shop = process(&sim, &log, &["shop"]);
        shop.start().await.unwrap();
        bank.stop().await.unwrap();
        for number in 0..3u32 {
            shop.send("a", number).await.unwrap();
            shop.send("c", number).await.unwrap();
        }
        let mut sent = 0;
        for (count, counted) in [(max - 1, max - 1), (max, max), (max + 1, max), (2 * max + 1, max)] {
            while sent < count {
                shop.send("bank", sent as u32).await.unwrap();
                sent += 1;
            }
            let report = shop.balance_report().await.unwrap();
            let inboxes = ["a", "bank", "c"].map(|node| report.node(node).unwrap().inbox);
            assert_eq!(inboxes, [3, counted as u64, 3], "{count}");
        }
        shop.stop().await.unwrap();
    });
}

#[test]
fn so_many_nodes_are_watched() {
    let max = happen::limits::BALANCE_NODES_MAX;
    let sim = Simulator::new(1);
    let space = Space::in_env(watched(), sim.env()).unwrap();
    sim.run(async {
        let mut made = 0;
        space.start().await.unwrap();
        for (nodes, shown) in [(max - 1, max - 1), (max, max), (max + 1, max)] {
            while made < nodes {
                space.node(format!("n{made}"));
                made += 1;
            }
            space.env().sleep(millis(1_500)).await;
            let report = space.balance_report().await.unwrap();
            assert_eq!((report.nodes.len(), report.nodes_len), (shown, nodes as u64));
            // Those that are watched have been looked at twice.
            space.env().sleep(secs(1)).await;
            let report = space.balance_report().await.unwrap();
            let rated = report.nodes.iter().filter(|node| node.rates.is_some()).count();
            assert_eq!(rated, shown);
        }
    });
}

#[test]
fn the_figures_are_had_by_hand_too() {
    let sim = Simulator::new(1);
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
    sim.run(async {
        let space = Space::with_store(watched(), sim.env(), Arc::clone(&store)).unwrap();
        let node = worker(&space, "node", secs(1));
        let ask = async || match space.control(Request::Balance).await.unwrap() {
            Answer::Balance(report) => report,
            other => panic!("{other:?}"),
        };
        // Also of one that has not started.
        assert_eq!(ask().await.nodes.len(), 1);
        space.start().await.unwrap();
        for number in 0..5u32 {
            space.send(&node, number).await.unwrap();
        }
        space.env().sleep(millis(2_500)).await;
        let report = ask().await;
        let figures = &report.nodes[0];
        assert_eq!((figures.waiting, figures.active, figures.flows), (2, 1, 3));
        assert!((figures.rates.as_ref().unwrap().handled_per_s - 1.0).abs() < 0.1, "{figures:?}");
        // It is data, and comes back as it was.
        let line = Answer::to_line(&Ok(Answer::Balance(report.clone())));
        assert_eq!(Answer::parse(&line).unwrap(), Answer::Balance(report));
        space.stop().await.unwrap();
        let env = sim.env();
        let Answer::Balance(report) = control::carry_out(&store, &env, Request::Balance).await.unwrap()
        else {
            panic!("no report")
        };
        assert!(!report.is_watched);
        assert_eq!((report.nodes[0].node.as_str(), report.nodes[0].flows), ("node", 3));
    });
}

#[test]
fn nothing_is_told_of_a_space_that_keeps_up() {
    check_seeds(0..60, |sim| {
        let hub = Hub::in_env(sim.env());
        let spaces = ["a", "b"].map(|member| {
            let space = Space::in_env(watched(), sim.env()).unwrap();
            space.join(hub.link(member)).unwrap();
            space
        });
        sim.run(async {
            let env = sim.env();
            let mut all = Vec::new();
            for (index, space) in spaces.iter().enumerate() {
                let told = Told::by(space);
                let nodes: Vec<_> = (0..5)
                    .map(|node| worker(space, &format!("n{index}{node}"), millis(1 + env.random_u64() % 20)))
                    .collect();
                space.start().await.unwrap();
                all.push((space, told, nodes));
            }
            for _ in 0..300 {
                let (space, _, nodes) = &all[(env.random_u64() % 2) as usize];
                let node = &nodes[(env.random_u64() % 5) as usize];
                // Up to what is worked off in some seconds, now and then.
                let count =
                    if env.random_u64() % 20 == 0 { env.random_u64() % 150 } else { env.random_u64() % 8 };
                for number in 0..count as u32 {
                    space.send(node, number).await.unwrap();
                }
                // Somebody sets the clock, which is no time that goes by.
                match env.random_u64() % 40 {
                    0 => sim.jump_clock_forward(secs(3_600)),
                    1 => sim.jump_clock_back(secs(3_000)),
                    _ => {}
                }
                env.sleep(millis(env.random_u64() % 400)).await;
            }
            env.sleep(secs(30)).await;
            for (_, told, _) in &all {
                assert_eq!(told.lines(), [""; 0]);
            }
        });
    });
}

#[test]
fn a_node_at_the_edge_of_its_limit_is_told_once_and_does_not_flap() {
    check_seeds(0..20, |sim| {
        let space = Space::in_env(watched(), sim.env()).unwrap();
        sim.run(async {
            let told = Told::by(&space);
            let node = worker(&space, "node", millis(10));
            space.start().await.unwrap();
            // About as many come as leave, with about as many waiting as may.
            for number in 0..130u32 {
                space.send(&node, number).await.unwrap();
            }
            for number in 0..1_200u32 {
                let count = 8 + space.env().random_u64() % 5;
                for _ in 0..count {
                    space.send(&node, number).await.unwrap();
                }
                space.env().sleep(millis(100)).await;
            }
            let lines = told.lines();
            assert!(lines.len() <= 4, "{lines:?}");
            for (index, line) in lines.iter().enumerate() {
                let expected = ["node.slow bottleneck node", "node.recovered bottleneck node"][index % 2];
                assert_eq!(line, expected);
            }
        });
    });
}

/// An environment in which whoever sleeps a second wakes up late.
#[derive(Debug)]
struct Late {
    env: Arc<dyn Env>,
    by_ms: AtomicU64,
}

impl Env for Late {
    fn unix_ms(&self) -> u64 {
        self.env.unix_ms()
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
        let late = if time == secs(1) { millis(self.by_ms.load(Ordering::SeqCst)) } else { Duration::ZERO };
        self.env.sleep(time + late)
    }
}

#[test]
fn a_process_that_comes_late_to_its_timers_is_overloaded() {
    for (late_ms, is_told) in [(499, false), (500, false), (501, true)] {
        let sim = Simulator::new(1);
        let env = Arc::new(Late { env: sim.env(), by_ms: AtomicU64::new(0) });
        let space = Space::in_env(watched(), Arc::clone(&env) as Arc<dyn Env>).unwrap();
        sim.run(async {
            let told = Told::by(&space);
            worker(&space, "node", millis(1));
            space.start().await.unwrap();
            space.env().sleep(millis(2_500)).await;
            env.by_ms.store(late_ms, Ordering::SeqCst);
            space.env().sleep(secs(20)).await;
            let expected = if is_told { &["system.overloaded overload "][..] } else { &[] };
            assert_eq!(told.lines(), expected, "{late_ms}");
            env.by_ms.store(0, Ordering::SeqCst);
            space.env().sleep(secs(30)).await;
            assert_eq!(told.lines().len(), 2 * expected.len());
            if is_told {
                assert_eq!(told.first("system.overloaded")["late_ms"], late_ms);
                assert_eq!(told.first("system.recovered")["event"], "system.overloaded");
            }
        });
    }
}

#[test]
fn who_listens_and_is_overloaded_itself_hears_each_thing_once() {
    in_memory(7, async |space, told| {
        // It takes a minute for each event that it hears, has hardly any room, and is itself watched.
        let scaler = space.node("scaler").serial().queue_limit(1).lag_max(1);
        let types = "{node.slow,node.down,node.recovered}";
        scaler.on(types, async |_: Event, cx: Context| cx.sleep(secs(60)).await).check().unwrap();
        let slow = worker(&space, "slow", millis(50));
        space.start().await.unwrap();
        load(&space, 300, &[(&slow, 3)]).await;
        let lines = told.lines();
        assert!(lines.len() <= 3, "{lines:?}");
        assert_eq!(lines[0], "node.slow bottleneck slow");
    });
}

#[test]
fn a_listener_that_panics_keeps_nobody_from_hearing_what_follows() {
    in_memory(8, async |space, told| {
        let bad = space.node("bad");
        bad.on("node.*", |told: &Event, _: &Context| {
            assert_eq!(told.event_type(), "", "a listener that panics")
        })
        .check()
        .unwrap();
        let slow = worker(&space, "slow", millis(50));
        space.start().await.unwrap();
        load(&space, 20, &[(&slow, 4)]).await;
        space.settled(secs(60)).await.unwrap();
        space.env().sleep(secs(30)).await;
        assert_eq!(told.lines(), ["node.slow bottleneck slow", "node.recovered bottleneck slow"]);
        assert!(space.balance_report().await.unwrap().node("bad").unwrap().failed >= 2);
    });
}

#[test]
fn a_detector_ends_with_its_space_and_leaves_nothing_behind() {
    let sim = Simulator::new(1);
    sim.run(async {
        let space = Space::in_env(watched(), sim.env()).unwrap();
        worker(&space, "node", millis(1));
        space.start().await.unwrap();
        space.env().sleep(secs(3)).await;
        space.stop().await.unwrap();
        sim.env().sleep(millis(1)).await;
        // Dropped without a word.
        let space = Space::in_env(watched(), sim.env()).unwrap();
        space.start().await.unwrap();
        drop(space);
        sim.env().sleep(millis(1)).await;
    });
    // No timer is left, and nobody to be woken.
    let left = sim.try_run(std::future::pending::<()>()).unwrap_err();
    assert_eq!(sim.now(), secs(3) + millis(2), "{left}");
}

#[test]
fn nobody_who_does_not_ask_for_it_is_watched() {
    let sim = Simulator::new(1);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    sim.run(async {
        let told = Told::by(&space);
        let node = worker(&space, "node", millis(50));
        space.start().await.unwrap();
        load(&space, 20, &[(&node, 4)]).await;
        assert_eq!(told.lines(), [""; 0]);
        let report = space.balance_report().await.unwrap();
        assert!(!report.is_watched && report.findings.is_empty());
        let figures = report.node("node").unwrap();
        assert!(figures.waiting > 300 && figures.active == 1 && figures.rates.is_none(), "{figures:?}");
        assert!(figures.oldest_ms.unwrap() > 8_000, "{figures:?}");
    });
}

#[test]
fn who_sends_can_ask_how_much_waits_before_it_is_refused() {
    in_memory(1, async |space, _told| {
        let node = worker(&space, "node", secs(1)).queue_limit(10);
        let asks = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&asks);
        let asker = space.node("asker");
        asker
            .on("u32", move |_: &Event<u32>, cx: &Context| {
                asked.store(cx.pressure("node").unwrap().is_high(), Ordering::SeqCst);
            })
            .check()
            .unwrap();
        space.start().await.unwrap();
        assert_eq!(space.pressure("nobody"), None);
        for (sent, percent, is_high) in [(1, 0, false), (7, 70, false), (1, 80, true), (2, 100, true)] {
            for number in 0..sent {
                space.send(&node, number as u32).await.unwrap();
            }
            let pressure = space.pressure("node").unwrap();
            assert_eq!((pressure.percent(), pressure.is_high()), (percent, is_high));
            space.send(&asker, 1u32).await.unwrap();
            assert_eq!(asks.load(Ordering::SeqCst), is_high);
        }
        let refused = space.send(&node, 1u32).await.unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Busy { .. }));
        let pressure = space.pressure("node").unwrap();
        assert_eq!((pressure.waiting, pressure.refused, pressure.active), (10, 1, 1));
    });
}

#[test]
fn who_asks_down_a_chain_goes_at_the_pace_of_its_slowest_node() {
    in_memory(1, async |space, told| {
        let last = worker(&space, "last", millis(100));
        for (id, next) in [("middle", "last"), ("first", "middle")] {
            let node = space.node(id).serial();
            let ask = async |next: &'static str, number: Event<u32>, cx: Context| -> happen::Result<()> {
                cx.send(next, *number).reply::<()>().await?;
                Ok(())
            };
            node.on("u32", with(next, ask)).check().unwrap();
        }
        space.start().await.unwrap();
        let begun = space.env().monotonic();
        for number in 0..50u32 {
            space.send("first", number).reply::<()>().await.unwrap();
            assert!(last.waiting() <= 1);
        }
        assert!(space.env().monotonic() - begun >= secs(5));
        assert_eq!(told.lines(), [""; 0], "whoever waits sends no more than is handled");
    });
}

#[test]
fn a_node_that_hears_of_it_gives_another_one_the_places_it_needs() {
    in_memory(1, async |space, told| {
        let slow = worker(&space, "slow", millis(50));
        let grown = slow.clone();
        let grow = move |told: &Event, _: &Context| {
            let needed = told.get("lag_metrics").unwrap()["rates"]["places_needed"].as_u64().unwrap();
            drop(grown.clone().max_concurrent(needed as u32));
        };
        space.node("manager").on("node.slow", grow).check().unwrap();
        space.start().await.unwrap();
        // It gets three times what one place handles.
        load(&space, 60, &[(&slow, 6)]).await;
        assert_eq!(told.lines(), ["node.slow bottleneck slow", "node.recovered bottleneck slow"]);
        let report = space.balance_report().await.unwrap();
        let figures = report.node("slow").unwrap();
        // 60 a second that take 50 ms each are three at once, at 70 percent five.
        assert_eq!((figures.places, figures.lag()), (Some(5), 0));
        let rates = figures.rates.as_ref().unwrap();
        assert!((rates.handled_per_s - 60.0).abs() < 3.0 && rates.utilisation.unwrap() < 1.0, "{rates:?}");
    });
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let base = BalanceOptions::default();
    let looks = |window_ms| BalanceOptions { every_ms: 10, window_ms, ..base.clone() };
    for (options, is_good) in [
        (base.clone(), true),
        (BalanceOptions { every_ms: 0, ..base.clone() }, false),
        (looks(9), false),
        (looks(10), true),
        (looks(1_199), true),
        (looks(1_200), true),
        (looks(1_210), false),
        (BalanceOptions { many_percent: 0, ..base.clone() }, false),
        (BalanceOptions { most_percent: 100, ..base.clone() }, true),
        (BalanceOptions { most_percent: 101, ..base.clone() }, false),
        (BalanceOptions { utilisation_percent: 0, ..base.clone() }, false),
        (BalanceOptions { many_nodes: 0, ..base.clone() }, false),
        (BalanceOptions { partition_nodes_min: 0, ..base.clone() }, false),
    ] {
        let told = format!("{options:?}");
        let config = Config { balance: Some(options), ..Config::default() };
        assert_eq!(config.check().is_ok(), is_good, "{told}");
    }
    let config: Config =
        serde_json::from_str(r#"{ "balance": {}, "nodes": { "api-*": { "lag_max": 7 } } }"#).unwrap();
    assert_eq!((config.balance.clone(), config.options_for("api-x").lag_max), (Some(base), 7));
}
