//! A store of one's own with a link: what a step sends to a node of another process waits in the store until that node has
//! it, whoever is cut off or killed meanwhile, and is handled once and in order. In virtual time.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use happen::identity::{Identity, KeyKind, Seed, Signer, TrustStore, Trusted};
use happen::journal::Journal;
use happen::store::{List, MemoryStore, Read, Select, Start, Store, Tag};
use happen::{
    Config, Context, Delivery, Error, ErrorKind, Event, Hub, OutboxLimits, Routing, Space, Step, done,
    limits, millis, next, secs,
};
use happen_core::codec::{CauseLink, Outcome, WireParcel, WireRecord, WireReply, open_summed};
use happen_core::env::Env;
use happen_core::hash::hash_event;
use happen_core::limits::RECORD_BYTES_MAX;
use happen_core::link::Link;
use happen_ed25519::KeyPair;
use happen_testing::link::{Probe, next_reply};
use happen_testing::{Dies, FaultyLink, FaultyStore, Simulator, check_seeds};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("measure")]
struct Measure {
    number: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("reading")]
struct Reading {
    number: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("charge")]
struct Charge {
    number: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("paid")]
struct Paid {
    number: u64,
    receipt: u64,
}

/// What a node has handled, in its order.
#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("handled", version = 1)]
struct Handled {
    numbers: Vec<u64>,
}

fn with(number: u64) -> impl Fn(Handled) -> Handled + Send + Sync + 'static {
    move |mut handled| {
        handled.numbers.push(number);
        handled
    }
}

/// Two places, each with a store of its own that outlives its processes.
struct World {
    env: Arc<dyn Env>,
    hub: Hub,
    edge: Arc<dyn Store>,
    centre: Arc<dyn Store>,
}

/// A process at one of them.
struct Process {
    space: Space,
    store: Arc<FaultyStore>,
    link: Arc<FaultyLink>,
}

impl World {
    fn new(sim: &Simulator) -> Self {
        let store = || -> Arc<dyn Store> { Arc::new(MemoryStore::new(sim.env())) };
        Self { env: sim.env(), hub: Hub::in_env(sim.env()), edge: store(), centre: store() }
    }

    fn process(&self, name: &str, store: &Arc<dyn Store>, config: Config) -> Process {
        let store = FaultyStore::new(Arc::clone(store), Arc::clone(&self.env));
        let link = FaultyLink::new(self.hub.link(name), Arc::clone(&self.env));
        let space = Space::with_store(config, Arc::clone(&self.env), Arc::clone(&store) as _).unwrap();
        space.join(Arc::clone(&link) as Arc<dyn Link>).unwrap();
        Process { space, store, link }
    }

    /// A process with a meter that sends each measure to `hub` and, when it is even, asks `bank`.
    fn edge(&self) -> Process {
        self.edge_with(Config::default())
    }

    fn edge_with(&self, config: Config) -> Process {
        let process = self.process("edge", &self.edge, config);
        process.space.node("meter").attempts(20, millis(50)).on("measure", measure);
        process.space.node("shop").on("measure", take).step(charge);
        process
    }

    /// A process with the nodes of the others.
    fn centre(&self) -> Process {
        let process = self.process("centre", &self.centre, Config::default());
        process.space.node("hub").serial().on("reading", |reading: &Event<Reading>, cx: &Context| {
            cx.state::<Handled>().set(with(reading.number))
        });
        process.space.node("bank").serial().on("charge", |charge: &Event<Charge>, cx: &Context| {
            let receipt = cx.state::<Handled>().get(|handled| handled.numbers.len() as u64);
            cx.state::<Handled>().set(with(charge.number))?;
            Ok::<_, Error>(Paid { number: charge.number, receipt })
        });
        process
    }
}

async fn measure(measure: Event<Measure>, cx: Context) -> happen::Result<()> {
    cx.state::<Handled>().set(with(measure.number))?;
    cx.send("hub", Reading { number: measure.number }).await?;
    Ok(())
}

async fn take(measure: Event<Measure>, cx: Context) -> happen::Result<Step> {
    cx.state::<Handled>().set(with(measure.number))?;
    next(charge)
}

async fn charge(measure: Event<Measure>, cx: Context) -> happen::Result<Step> {
    let paid = cx.send("bank", Charge { number: measure.number }).reply::<Paid>().await?;
    done(Paid::clone(&paid))
}

impl Process {
    async fn start(&self) {
        self.space.start().await.unwrap();
    }

    async fn measure(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            self.space.send("meter", Measure { number }).reply::<()>().await.unwrap();
        }
    }

    fn waiting(&self) -> u64 {
        self.space.outboxes().iter().map(|outbox| outbox.events).sum()
    }
}

/// What the store says that a node has handled.
async fn handled(store: &Arc<dyn Store>, node: &str) -> Vec<u64> {
    let found = store.documents(vec![format!("state/{node}/handled").into()]).await.unwrap();
    let Some(document) = found.into_iter().next().flatten() else { return Vec::new() };
    let content = document.content.unwrap();
    let handled: Handled = happen_core::state::decode_document(content.version, &content.bytes).unwrap();
    handled.numbers
}

async fn keys(store: &Arc<dyn Store>, prefix: &str) -> Vec<String> {
    let list = List { prefix: prefix.into(), after: None, documents_max: 1_000 };
    store.list(list).await.unwrap().iter().map(|document| document.key.to_string()).collect()
}

async fn until(env: &Arc<dyn Env>, what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..4_000 {
        if holds().await {
            return;
        }
        env.sleep(millis(20)).await;
    }
    panic!("this did not become true: {what}");
}

#[test]
fn what_is_sent_to_a_node_beyond_the_link_is_handled_there_once_and_in_order() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (edge, centre) = (world.edge(), world.centre());
            centre.start().await;
            edge.start().await;
            edge.measure(1..=30).await;
            until(&world.env, "all are handled", async || {
                handled(&world.centre, "hub").await == (1..=30).collect::<Vec<_>>()
            })
            .await;
            until(&world.env, "nothing waits", async || edge.space.outboxes().is_empty()).await;
            assert!(edge.space.dead_letters().is_empty());
            assert!(edge.space.journal().verify().await.unwrap().is_whole());
            assert!(centre.space.journal().verify().await.unwrap().is_whole());
        });
    });
}

#[test]
fn what_is_sent_while_cut_off_waits_and_arrives_in_order_when_healed() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (edge, centre) = (world.edge(), world.centre());
            centre.start().await;
            edge.start().await;
            edge.measure(1..=5).await;
            edge.link.cut();
            let cut_at = world.env.unix_ms();
            edge.measure(6..=40).await;
            world.env.sleep(secs(3_600)).await;
            let [outbox] = &edge.space.outboxes()[..] else { panic!("{:?}", edge.space.outboxes()) };
            assert!(outbox.events >= 35 && outbox.bytes > 35 * 50, "{outbox:?}");
            assert_eq!(outbox.node, "hub");
            assert!(outbox.since_unix_ms.abs_diff(cut_at) < 2_000, "{outbox:?}");
            assert!(outbox.attempts > 10, "{outbox:?}");
            assert_eq!(outbox.failure.as_ref().unwrap().code(), "no-such-node");
            let stored = edge.space.journal().outboxes().await.unwrap();
            assert_eq!((stored[0].events, stored[0].bytes), (outbox.events, outbox.bytes));
            edge.link.heal();
            edge.measure(41..=42).await;
            let healed_at = world.env.unix_ms();
            until(&world.env, "all are handled", async || {
                handled(&world.centre, "hub").await == (1..=42).collect::<Vec<_>>()
            })
            .await;
            assert!(world.env.unix_ms() - healed_at <= limits::HANDOVER_AGAIN_MS_MAX + 200);
            until(&world.env, "nothing waits", async || edge.space.outboxes().is_empty()).await;
        });
    });
}

#[test]
fn a_cut_at_any_time_and_a_link_that_loses_neither_lose_nor_double_nor_turn_around() {
    check_seeds(0..60, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (edge, centre) = (world.edge(), world.centre());
            centre.start().await;
            edge.start().await;
            edge.link.loses(200);
            for round in 0..10 {
                edge.measure(round * 10..round * 10 + 10).await;
                if world.env.random_u64().is_multiple_of(2) {
                    edge.link.cut();
                    world.env.sleep(millis(world.env.random_u64() % 300)).await;
                    edge.link.heal();
                }
                world.env.sleep(millis(world.env.random_u64() % 50)).await;
            }
            until(&world.env, "all are handled", async || handled(&world.centre, "hub").await.len() >= 100)
                .await;
            world.env.sleep(secs(20)).await;
            assert_eq!(handled(&world.centre, "hub").await, (0..100).collect::<Vec<_>>());
            assert!(edge.space.outboxes().is_empty());
        });
    });
}

#[test]
fn a_process_that_dies_at_any_commit_loses_nothing_and_hands_nothing_over_twice() {
    let mut most = [0, 0];
    for dies in [Dies::Before, Dies::Unheard] {
        for at in 1..26 {
            for victim in 0..2 {
                let sim = Simulator::new(at);
                let world = World::new(&sim);
                let died = sim.run(async {
                    let mut sent = Vec::new();
                    {
                        let processes = [world.edge(), world.centre()];
                        processes[victim].store.dies_at(at, dies);
                        let mut runs = true;
                        for process in &processes {
                            runs &= process.space.start().await.is_ok();
                        }
                        for number in 0..6 {
                            let measured = processes[0].space.send("meter", Measure { number });
                            if runs && measured.idempotency_key(number.to_string()).await.is_ok() {
                                sent.push(number);
                            }
                        }
                        world.env.sleep(secs(30)).await;
                        let died = processes[victim].store.is_dead();
                        if !died {
                            return false;
                        }
                        // The one that is dead goes; the other one too, at any moment.
                        world.env.sleep(millis(world.env.random_u64() % 500)).await;
                    }
                    let (edge, centre) = (world.edge(), world.centre());
                    edge.start().await;
                    world.env.sleep(millis(world.env.random_u64() % 500)).await;
                    centre.start().await;
                    // Whoever was not told sends again, with the same key.
                    for number in 0..6 {
                        let measured = edge.space.send("meter", Measure { number });
                        measured.idempotency_key(number.to_string()).await.unwrap();
                    }
                    world.env.sleep(secs(20)).await;
                    let mut measured = handled(&world.edge, "meter").await;
                    assert_eq!(handled(&world.centre, "hub").await, measured, "{dies:?} {at} {victim}");
                    measured.sort_unstable();
                    assert_eq!(measured, (0..6).collect::<Vec<_>>(), "{dies:?} {at} {victim}");
                    assert_eq!(edge.waiting(), 0);
                    assert!(keys(&world.edge, "refused/").await.is_empty());
                    assert!(edge.space.journal().verify().await.unwrap().is_whole());
                    assert!(centre.space.journal().verify().await.unwrap().is_whole());
                    true
                });
                if died {
                    most[victim] = most[victim].max(at);
                }
            }
        }
    }
    assert!(most[0] > 8 && most[1] > 4, "the last commits at which a process died: {most:?}");
}

#[test]
fn a_question_of_a_step_survives_whoever_dies_and_is_answered_the_same() {
    let mut most = [0, 0];
    for dies in [Dies::Before, Dies::Unheard] {
        for at in 1..22 {
            for victim in 0..2 {
                let sim = Simulator::new(at);
                let world = World::new(&sim);
                let died = sim.run(async {
                    {
                        let processes = [world.edge(), world.centre()];
                        processes[victim].store.dies_at(at, dies);
                        let mut runs = true;
                        for process in &processes {
                            runs &= process.space.start().await.is_ok();
                        }
                        for number in 0..3 {
                            let sent = processes[0].space.send("shop", Measure { number });
                            if runs {
                                drop(sent.idempotency_key(number.to_string()).await);
                            }
                        }
                        world.env.sleep(secs(30)).await;
                        if !processes[victim].store.is_dead() {
                            return false;
                        }
                    }
                    let (edge, centre) = (world.edge(), world.centre());
                    edge.start().await;
                    world.env.sleep(millis(world.env.random_u64() % 3_000)).await;
                    centre.start().await;
                    let mut receipts = Vec::new();
                    for number in 0..3 {
                        let asked = edge.space.send("shop", Measure { number });
                        let paid = asked.idempotency_key(number.to_string()).reply::<Paid>().await.unwrap();
                        assert_eq!(paid.number, number);
                        receipts.push(paid.receipt);
                    }
                    receipts.sort_unstable();
                    assert_eq!(receipts, [0, 1, 2], "{dies:?} {at} {victim}");
                    let mut charged = handled(&world.centre, "bank").await;
                    charged.sort_unstable();
                    assert_eq!(charged, [0, 1, 2], "{dies:?} {at} {victim}");
                    world.env.sleep(secs(20)).await;
                    assert!(keys(&world.edge, "flow/").await.is_empty());
                    assert!(keys(&world.edge, "dead/").await.is_empty());
                    assert_eq!(edge.waiting(), 0);
                    true
                });
                if died {
                    most[victim] = most[victim].max(at);
                }
            }
        }
    }
    assert!(most[0] > 8 && most[1] > 4, "the last commits at which a process died: {most:?}");
}

/// Nothing waits for what a node sends at most once; it may be set otherwise when its process is begun again.
#[test]
fn a_question_that_never_left_and_does_not_wait_is_asked_again() {
    let mut most = 0;
    for dies in [Dies::Before, Dies::Unheard] {
        for at in 1..12 {
            let sim = Simulator::new(at);
            let world = World::new(&sim);
            let died = sim.run(async {
                let centre = world.centre();
                centre.start().await;
                let first = world.edge();
                let _ = first.space.find("shop").unwrap().delivery(Delivery::AtMostOnce);
                first.store.dies_at(at, dies);
                if first.space.start().await.is_ok() {
                    drop(first.space.send("shop", Measure { number: 7 }).idempotency_key("7").await);
                }
                world.env.sleep(secs(30)).await;
                let died = first.store.is_dead();
                drop(first);
                let edge = world.edge();
                edge.start().await;
                let asked = edge.space.send("shop", Measure { number: 7 });
                let paid = asked.idempotency_key("7").reply::<Paid>().await.unwrap();
                assert_eq!(*paid, Paid { number: 7, receipt: 0 }, "{dies:?} {at}");
                assert_eq!(handled(&world.centre, "bank").await, [7], "{dies:?} {at}");
                died
            });
            if died {
                most = most.max(at);
            }
        }
    }
    assert!(most > 4, "the last commit at which the process died was only the {most}th");
}

#[test]
fn a_question_waits_while_cut_off_and_its_answer_is_kept_for_who_asked() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let edge = world.edge();
            edge.start().await;
            // Nobody is there. It is taken, and waits.
            edge.space.send("shop", Measure { number: 7 }).idempotency_key("7").await.unwrap();
            world.env.sleep(secs(100)).await;
            let centre = world.centre();
            centre.start().await;
            let asked = edge.space.send("shop", Measure { number: 7 });
            let paid = asked.idempotency_key("7").reply::<Paid>().await.unwrap();
            assert_eq!(*paid, Paid { number: 7, receipt: 0 });
            // What is asked through a link that loses half of everything is answered as well, once.
            edge.link.loses(500);
            for number in 8..18 {
                let paid = edge.space.send("shop", Measure { number }).reply::<Paid>().await.unwrap();
                assert_eq!(*paid, Paid { number, receipt: number - 7 });
            }
        });
    });
}

#[test]
fn what_waits_has_limits_and_the_step_beyond_fails_and_is_tried_again() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let outbox = OutboxLimits { events_max: 4, ..OutboxLimits::default() };
            let edge = world.edge_with(Config { outbox, ..Config::default() });
            edge.start().await;
            edge.measure(1..=3).await;
            assert_eq!(edge.waiting(), 3);
            edge.measure([4]).await;
            assert_eq!(edge.waiting(), 4);
            // A fifth has no room: its step is tried again, and nothing of it has happened.
            edge.space.send("meter", Measure { number: 5 }).await.unwrap();
            world.env.sleep(millis(500)).await;
            assert_eq!(edge.waiting(), 4);
            assert_eq!(handled(&world.edge, "meter").await, [1, 2, 3, 4]);
            let centre = world.centre();
            centre.start().await;
            until(&world.env, "the fifth is handled", async || {
                handled(&world.centre, "hub").await == [1, 2, 3, 4, 5]
            })
            .await;
            assert!(edge.space.dead_letters().is_empty());

            // Without another try it is a dead letter that says why.
            drop(centre);
            edge.measure(6..=9).await;
            let once = edge.space.node("once").attempts(1, millis(1));
            once.on("measure", measure);
            let error = edge.space.send("once", Measure { number: 10 }).reply::<()>().await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Busy { .. }), "{error}");
            assert!(error.to_string().contains("outbox (4 events"), "{error}");
        });
    });
}

#[test]
fn what_waits_is_bounded_in_bytes_too() {
    let sim = Simulator::new(1);
    let world = World::new(&sim);
    sim.run(async {
        let outbox = OutboxLimits { bytes_max: 1, ..OutboxLimits::default() };
        let edge = world.edge_with(Config { outbox, ..Config::default() });
        let once = edge.space.node("once").attempts(1, millis(1));
        once.on("measure", measure);
        edge.start().await;
        // The one with which it is reached still has room.
        edge.space.send("once", Measure { number: 1 }).reply::<()>().await.unwrap();
        let error = edge.space.send("once", Measure { number: 2 }).reply::<()>().await.unwrap_err();
        assert!(error.to_string().contains("outbox (1 bytes"), "{error}");
    });
}

#[test]
fn what_waits_is_found_after_a_restart_and_not_forgotten_however_old_it_is() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            {
                let edge = world.edge();
                edge.start().await;
                edge.measure(1..=3).await;
            }
            world.env.sleep(secs(90 * 24 * 3_600)).await;
            let edge = world.edge();
            edge.start().await;
            assert_eq!(edge.waiting(), 3);
            edge.space.prune().await.unwrap();
            edge.measure([4]).await;
            let centre = world.centre();
            centre.start().await;
            until(&world.env, "all are handled", async || {
                handled(&world.centre, "hub").await == [1, 2, 3, 4]
            })
            .await;
            until(&world.env, "nothing waits", async || edge.space.outboxes().is_empty()).await;
            // Now they may go.
            world.env.sleep(secs(90 * 24 * 3_600)).await;
            edge.space.prune().await.unwrap();
            let kept = Read::forward(Select::tag(Tag::Declared("outbox/hub".into())));
            assert!(world.edge.read(kept).await.unwrap().records.is_empty());
        });
    });
}

#[test]
fn what_a_node_refuses_is_put_aside_and_holds_up_nothing() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (edge, centre) = (world.edge(), world.centre());
            edge.space.node("clumsy").on("measure", async |measure: Event<Measure>, cx: Context| {
                // A node that does not handle such a thing.
                cx.send("hub", Charge { number: measure.number }).await.map(drop)
            });
            edge.space.node("asker").on("measure", async |measure: Event<Measure>, cx: Context| {
                cx.send("hub", Charge { number: measure.number }).reply::<Paid>().await.map(drop)
            });
            edge.start().await;
            for number in 1..=4 {
                edge.space.send("meter", Measure { number }).reply::<()>().await.unwrap();
                edge.space.send("clumsy", Measure { number }).reply::<()>().await.unwrap();
            }
            centre.start().await;
            until(&world.env, "those between are handled", async || {
                handled(&world.centre, "hub").await == [1, 2, 3, 4]
            })
            .await;
            until(&world.env, "nothing waits", async || edge.space.outboxes().is_empty()).await;
            let letters = edge.space.dead_letters();
            assert_eq!(letters.len(), 4);
            assert!(letters.iter().all(|letter| letter.code == "no-handler"), "{letters:?}");
            assert_eq!(keys(&world.edge, "refused/hub/").await.len(), 4);
            // Who asks is told.
            let error = edge.space.send("asker", Measure { number: 5 }).reply::<()>().await.unwrap_err();
            assert_eq!(error.code(), "no-handler");
            assert_eq!(keys(&world.edge, "refused/hub/").await.len(), 4, "nothing is kept of a question");
            // When the node takes such things, what was refused can be driven again, also by the next process.
            let [first, second, ..] = [0, 1, 2, 3].map(|index| letters[index].event_id());
            let hub = centre.space.find("hub").unwrap();
            hub.on("charge", |charge: &Event<Charge>, cx: &Context| {
                cx.state::<Handled>().set(with(charge.number + 100))
            });
            edge.space.redrive(first).await.unwrap();
            until(&world.env, "the first is handled", async || {
                handled(&world.centre, "hub").await.ends_with(&[101])
            })
            .await;
            assert_eq!(edge.space.dead_letters().len(), 3);
            drop(edge);
            let edge = world.edge();
            edge.start().await;
            edge.space.redrive(second).await.unwrap();
            until(&world.env, "the second is handled", async || {
                handled(&world.centre, "hub").await.ends_with(&[101, 102])
            })
            .await;
            assert_eq!(edge.space.redrive(second).await.unwrap_err().code(), "misuse");
            assert_eq!(keys(&world.edge, "refused/hub/").await.len(), 2);
            assert!(edge.space.journal().verify().await.unwrap().is_whole());
        });
    });
}

#[test]
fn a_node_that_is_full_is_waited_for() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (edge, centre) = (world.edge(), world.process("centre", &world.centre, Config::default()));
            let hub = centre.space.node("hub").serial().queue_limit(3);
            hub.on("reading", async |reading: Event<Reading>, cx: Context| {
                cx.sleep(millis(20)).await;
                cx.state::<Handled>().set(with(reading.number))
            });
            edge.start().await;
            edge.measure(1..=30).await;
            centre.start().await;
            until(&world.env, "all are handled", async || {
                handled(&world.centre, "hub").await == (1..=30).collect::<Vec<_>>()
            })
            .await;
            assert!(edge.space.dead_letters().is_empty());
        });
    });
}

#[test]
fn a_log_that_was_set_back_is_told_and_nothing_is_passed_over() {
    let sim = Simulator::new(3);
    let world = World::new(&sim);
    sim.run(async {
        let centre = world.centre();
        centre.start().await;
        let edge = world.edge();
        edge.start().await;
        edge.measure(1..=20).await;
        until(&world.env, "all are handled", async || handled(&world.centre, "hub").await.len() == 20).await;
        // The identity of its space, and nothing else, comes back from an older copy.
        let identity = world.edge.documents(vec!["space/identity".into()]).await.unwrap().remove(0).unwrap();
        drop(edge);
        let older: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::clone(&world.env)));
        let write = happen::store::Write {
            key: identity.key,
            revision: 1,
            content: identity.content,
            past: happen::store::Past::Dropped,
            replaced: happen::store::Replaced::Kept,
        };
        let batch = happen::store::Batch { documents: vec![write], ..Default::default() };
        older.commit(vec![batch]).await.remove(0).unwrap();
        let edge = world.process("edge", &older, Config::default());
        edge.space.node("meter").on("measure", measure);
        edge.start().await;
        edge.measure([21]).await;
        until(&world.env, "it is told", async || edge.space.dead_letters().len() == 1).await;
        let letter = &edge.space.dead_letters()[0];
        assert_eq!(letter.code, "refused");
        assert!(letter.causes.iter().any(|cause| cause.contains("set back")), "{letter:?}");
        assert_eq!(keys(&older, "refused/hub/").await.len(), 1);
    });
}

async fn see((seen, time): (Arc<Mutex<Vec<u64>>>, u64), reading: Event<Reading>, cx: Context) {
    seen.lock().unwrap().push(reading.number);
    cx.sleep(millis(time)).await;
}

/// A centre whose hub remembers nothing: it counts, and each takes its time.
fn forgetful(world: &World, delivery: Delivery, time: u64) -> (Process, Arc<Mutex<Vec<u64>>>) {
    let centre = world.process("centre", &world.centre, Config::default());
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let sees = (Arc::clone(&seen), time);
    let hub = centre.space.node("hub").ephemeral().delivery(delivery);
    hub.on("reading", happen::with(sees, see));
    (centre, seen)
}

#[test]
fn a_node_that_remembers_nothing_handles_each_once_as_long_as_its_process_is_there() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (centre, seen) = forgetful(&world, Delivery::ExactlyOnce, 30);
            let edge = world.edge();
            centre.start().await;
            edge.start().await;
            edge.link.loses(300);
            edge.measure(0..30).await;
            until(&world.env, "nothing waits", async || edge.space.outboxes().is_empty()).await;
            assert_eq!(*seen.lock().unwrap(), (0..30).collect::<Vec<_>>());
        });
    });
}

#[test]
fn what_such_a_node_had_not_ended_is_handled_again_or_not_as_it_is_set() {
    check_seeds(0..10, |sim| {
        for (delivery, again) in
            [(Delivery::ExactlyOnce, true), (Delivery::AtLeastOnce, true), (Delivery::AtMostOnce, false)]
        {
            let world = World::new(&sim);
            sim.run(async {
                let edge = world.edge();
                edge.start().await;
                let (centre, seen) = forgetful(&world, delivery, 10_000);
                centre.start().await;
                edge.measure([1]).await;
                until(&world.env, "it is being handled", async || seen.lock().unwrap().len() == 1).await;
                world.env.sleep(secs(2)).await;
                drop(centre);
                let (centre, seen) = forgetful(&world, delivery, 10);
                centre.start().await;
                world.env.sleep(secs(20)).await;
                assert_eq!(seen.lock().unwrap().len(), usize::from(again), "{delivery:?}");
                assert!(edge.space.outboxes().is_empty());
            });
        }
    });
}

#[test]
fn a_handler_that_takes_longer_than_a_silence_is_not_begun_twice() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let (centre, seen) = forgetful(&world, Delivery::AtLeastOnce, 3 * limits::HANDOVER_ANSWER_MS_MAX);
        let edge = world.edge();
        centre.start().await;
        edge.start().await;
        edge.measure([1]).await;
        until(&world.env, "nothing waits", async || {
            world.env.sleep(secs(1)).await;
            edge.space.outboxes().is_empty()
        })
        .await;
        assert_eq!(*seen.lock().unwrap(), [1]);
        assert!(edge.link.requests() > 3, "it was handed over again after each silence");
    });
}

#[test]
fn what_is_not_answered_is_handed_over_again_after_a_silence_and_not_before() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let (centre, _) = forgetful(&world, Delivery::AtLeastOnce, 10 * limits::HANDOVER_ANSWER_MS_MAX);
        let edge = world.edge();
        centre.start().await;
        edge.start().await;
        edge.measure([1]).await;
        until(&world.env, "it left", async || edge.link.requests() == 1).await;
        world.env.sleep(millis(limits::HANDOVER_ANSWER_MS_MAX - 100)).await;
        assert_eq!(edge.link.requests(), 1);
        world.env.sleep(millis(100 + limits::HANDOVER_AGAIN_MS + 100)).await;
        assert_eq!(edge.link.requests(), 2);
    });
}

/// How many commits it takes to hand over what waits, and whether it arrived.
fn rounds_for(numbers: u64, text: usize) -> u64 {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let edge = world.edge();
        let burst = edge.space.node("burst").attempts(1, millis(1));
        burst.on(
            "measure",
            happen::with(text, async |text: usize, measure: Event<Measure>, cx: Context| {
                for _ in 0..measure.number {
                    cx.send("sink", "x".repeat(text)).await?;
                }
                Ok::<_, Error>(())
            }),
        );
        edge.start().await;
        for part in [numbers / 2, numbers - numbers / 2] {
            edge.space.send("burst", Measure { number: part }).reply::<()>().await.unwrap();
        }
        let before = edge.store.commits();
        let (sunk, sinks) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counts, bytes) = (Arc::clone(&sunk), Arc::clone(&sinks));
        let centre = world.process("centre", &world.centre, Config::default());
        centre.space.node("sink").ephemeral().on("string", move |text: &Event<String>, _: &Context| {
            counts.fetch_add(1, Ordering::SeqCst);
            bytes.fetch_add(text.len() as u64, Ordering::SeqCst);
        });
        centre.start().await;
        until(&world.env, "nothing waits", async || edge.space.outboxes().is_empty()).await;
        assert_eq!(sunk.load(Ordering::SeqCst), numbers);
        assert_eq!(sinks.load(Ordering::SeqCst), numbers * text as u64);
        edge.store.commits() - before
    })
}

#[test]
fn so_many_events_and_bytes_leave_at_once_and_no_more() {
    let window = limits::HANDOVER_WINDOW_MAX as u64;
    let rounds = [window - 1, window, window + 1].map(|numbers| rounds_for(numbers, 1));
    assert_eq!(rounds, [1, 1, 2]);
    // Four of these are less than half of the bytes, and with the last of so many they are reached.
    let half = limits::HANDOVER_WINDOW_BYTES_MAX / 8;
    assert_eq!([7, 8, 9].map(|numbers| rounds_for(numbers, half)), [1, 1, 2]);
}

#[test]
fn the_largest_event_that_can_be_sent_can_be_handed_over() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let small = || Config { event_bytes_max: 600, ..Config::default() };
        let edge = world.process("edge", &world.edge, small());
        let texts = edge.space.node("texts").attempts(1, millis(1));
        texts.on("measure", async |measure: Event<Measure>, cx: Context| {
            cx.send("sink", "x".repeat(measure.number as usize)).await.map(drop)
        });
        edge.start().await;
        let centre = world.process("centre", &world.centre, small());
        let longest = Arc::new(AtomicU64::new(0));
        let longer = Arc::clone(&longest);
        centre.space.node("sink").on("string", move |text: &Event<String>, _: &Context| {
            longer.fetch_max(text.len() as u64, Ordering::SeqCst);
        });
        centre.start().await;
        let mut largest = 0;
        for number in 200..600 {
            match edge.space.send("texts", Measure { number }).reply::<()>().await {
                Ok(_) => largest = number,
                Err(error) => assert_eq!(error.code(), "oversized"),
            }
        }
        assert!(largest > 300 && largest < 590, "{largest}");
        until(&world.env, "nothing waits", async || edge.space.outboxes().is_empty()).await;
        assert_eq!(longest.load(Ordering::SeqCst), largest);
        assert!(keys(&world.edge, "refused/").await.is_empty());
    });
}

#[test]
fn a_panic_and_a_deadline_put_aside_what_they_concern_and_nothing_else() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let (edge, centre) = (world.edge(), world.centre());
        let hasty = edge.space.node("hasty");
        hasty.on("measure", async |measure: Event<Measure>, cx: Context| {
            cx.send("hub", Reading { number: measure.number }).within(secs(5)).await.map(drop)
        });
        let hub = centre.space.find("hub").unwrap();
        drop(hub.transform(|reading: Reading| match reading.number {
            13 => panic!("a number that nobody likes"),
            _ => Ok(reading),
        }));
        edge.start().await;
        edge.measure(11..=12).await;
        edge.space.send("hasty", Measure { number: 100 }).reply::<()>().await.unwrap();
        edge.measure(13..=15).await;
        world.env.sleep(secs(10)).await;
        centre.start().await;
        until(&world.env, "nothing waits", async || edge.space.outboxes().is_empty()).await;
        until(&world.env, "the others are handled", async || {
            handled(&world.centre, "hub").await == [11, 12, 14, 15]
        })
        .await;
        let mut codes: Vec<_> = edge.space.dead_letters().iter().map(|letter| letter.code).collect();
        codes.sort_unstable();
        assert_eq!(codes, ["panicked", "timed-out"]);
    });
}

#[test]
fn a_batch_is_handed_over_whole() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let edge = world.edge();
        edge.space.node("batches").on("measure", async |measure: Event<Measure>, cx: Context| {
            let batch = [0, 1, 2].map(|index| Reading { number: measure.number * 3 + index });
            cx.send("hub", batch).await.map(drop)
        });
        edge.start().await;
        for number in 0..4 {
            edge.space.send("batches", Measure { number }).reply::<()>().await.unwrap();
        }
        assert_eq!(edge.waiting(), 4, "a batch counts as one");
        let centre = world.centre();
        centre.start().await;
        until(&world.env, "all are handled", async || {
            handled(&world.centre, "hub").await == (0..12).collect::<Vec<_>>()
        })
        .await;
        until(&world.env, "nothing waits", async || edge.space.outboxes().is_empty()).await;
    });
}

#[test]
fn what_is_handed_over_is_signed_and_whoever_is_not_trusted_yet_waits() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (edge, centre) = (world.edge(), world.centre());
            let pair = |number| KeyPair::from_seed(&Seed::new(KeyKind::User, [number; 32]));
            let trusted = |number| Trusted::new(pair(number).public_key()).nodes(["*"]).origins(["*"]);
            let (edges, centres) = (TrustStore::new(), TrustStore::new());
            edges.trust(trusted(2)).unwrap();
            edge.space.identity(Identity::new(pair(1)).trust(&edges)).unwrap();
            centre.space.identity(Identity::new(pair(2)).trust(&centres)).unwrap();
            centre.start().await;
            edge.start().await;
            edge.measure(1..=3).await;
            world.env.sleep(secs(10)).await;
            assert!(handled(&world.centre, "hub").await.is_empty());
            assert!(edge.space.outboxes()[0].failure.is_some(), "{:?}", edge.space.outboxes());
            centres.trust(trusted(1)).unwrap();
            edge.link.loses(300);
            until(&world.env, "all are handled", async || handled(&world.centre, "hub").await == [1, 2, 3])
                .await;
            let paid = edge.space.send("shop", Measure { number: 4 }).reply::<Paid>().await.unwrap();
            assert_eq!(*paid, Paid { number: 4, receipt: 0 });
        });
    });
}

/// That its receiver is one of several is not known before it is there.
#[test]
fn what_waits_for_a_node_that_several_share_reaches_one_of_them_signed_or_not() {
    for signed in [false, true] {
        let sim = Simulator::new(5);
        let world = World::new(&sim);
        sim.run(async {
            let pair = |number| KeyPair::from_seed(&Seed::new(KeyKind::User, [number; 32]));
            let known_as = |space: &Space, own: u8| {
                let trust = TrustStore::new();
                for number in (1..=3).filter(|number| *number != own) {
                    let trusted = Trusted::new(pair(number).public_key()).nodes(["*"]).origins(["*"]);
                    trust.trust(trusted).unwrap();
                }
                if signed {
                    space.identity(Identity::new(pair(own)).trust(&trust)).unwrap();
                }
            };
            let edge = world.edge();
            known_as(&edge.space, 1);
            edge.start().await;
            edge.measure(1..=3).await;
            assert_eq!(edge.waiting(), 3);
            let came = Arc::new(Mutex::new(Vec::new()));
            let mut sharing = Vec::new();
            for (own, name) in [(2, "one"), (3, "two")] {
                let space = Space::in_env(Config::default(), sim.env()).unwrap();
                space.join(world.hub.link(name)).unwrap();
                known_as(&space, own);
                let came = Arc::clone(&came);
                let note = move |reading: &Event<Reading>, _: &Context| {
                    came.lock().unwrap().push(reading.number);
                };
                space.node("hub").shared(Routing::RoundRobin).on("reading", note);
                space.start().await.unwrap();
                sharing.push(space);
            }
            until(&world.env, "nothing waits", async || edge.space.outboxes().is_empty()).await;
            assert_eq!(*came.lock().unwrap(), [1, 2, 3], "signed: {signed}");
            assert!(edge.space.dead_letters().is_empty(), "{:?}", edge.space.dead_letters());
        });
    }
}

#[test]
fn a_node_may_send_at_most_once_and_then_nothing_waits() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let edge = world.edge();
        edge.space.node("thermometer").delivery(Delivery::AtMostOnce).on("measure", measure);
        edge.start().await;
        edge.space.send("thermometer", Measure { number: 1 }).reply::<()>().await.unwrap();
        assert!(edge.space.outboxes().is_empty());
        assert_eq!(edge.space.dead_letters()[0].code, "no-such-node");
        let centre = world.centre();
        centre.start().await;
        edge.space.send("thermometer", Measure { number: 2 }).reply::<()>().await.unwrap();
        until(&world.env, "it is handled", async || handled(&world.centre, "hub").await == [2]).await;
    });
}

#[test]
fn a_timer_for_a_node_beyond_the_link_waits_like_anything_else() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let edge = world.edge();
        edge.start().await;
        edge.space.after(secs(1), "hub", Reading { number: 1 }).await.unwrap();
        world.env.sleep(secs(10)).await;
        assert_eq!(edge.waiting(), 1);
        let centre = world.centre();
        centre.start().await;
        until(&world.env, "it is handled", async || handled(&world.centre, "hub").await == [1]).await;
    });
}

#[test]
fn a_key_of_an_event_is_known_by_a_node_beyond_the_link() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (edge, centre) = (world.edge(), world.centre());
            let begun = Arc::new(AtomicU64::new(0));
            let begins = Arc::clone(&begun);
            centre.space.node("cache").ephemeral().on("charge", move |_: &Event<Charge>, _: &Context| {
                begins.fetch_add(1, Ordering::SeqCst);
            });
            centre.start().await;
            edge.start().await;
            let pay = || edge.space.send("bank", Charge { number: 7 }).idempotency_key("order 7");
            let first = pay().reply::<Paid>().await.unwrap();
            let again = pay().reply::<Paid>().await.unwrap();
            assert_eq!((*first).clone(), (*again).clone());
            assert_eq!(first.event_id(), again.event_id(), "the id that is told is that of the first");
            assert_eq!(pay().await.unwrap().event_id(), first.event_id());
            assert_eq!(handled(&world.centre, "bank").await, [7]);
            let other = edge.space.send("bank", Charge { number: 8 }).idempotency_key("order 7");
            assert_eq!(other.reply::<Paid>().await.unwrap_err().code(), "conflict");
            // However often it is lost on the way.
            edge.link.loses(400);
            for number in 10..20 {
                until(&world.env, "it got through", async || {
                    let sent = edge.space.send("bank", Charge { number });
                    sent.idempotency_key(number.to_string()).reply::<Paid>().await.is_ok()
                })
                .await;
            }
            edge.link.loses(0);
            assert_eq!(handled(&world.centre, "bank").await[1..], (10..20).collect::<Vec<_>>());
            // A node that would forget it says so.
            let sent = edge.space.send("cache", Charge { number: 1 }).idempotency_key("k");
            assert_eq!(sent.reply::<()>().await.unwrap_err().code(), "misuse");
            assert_eq!(begun.load(Ordering::SeqCst), 0);
        });
    });
}

#[test]
fn word_that_a_node_beyond_the_link_has_an_event_says_that_it_is_stored() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let (edge, centre) = (world.edge(), world.centre());
        centre.start().await;
        edge.start().await;
        centre.store.takes(secs(1));
        let before = world.env.unix_ms();
        let sent = edge.space.send("hub", Reading { number: 1 }).await.unwrap();
        assert!(world.env.unix_ms() > before, "the store takes its time");
        assert!(centre.space.journal().event(sent.event_id()).await.unwrap().is_some());
        centre.store.fill(true);
        let error = edge.space.send("hub", Reading { number: 2 }).await.unwrap_err();
        assert_eq!(error.code(), "io");
    });
}

#[test]
fn ten_thousand_events_that_waited_leave_in_bulk() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let edge = world.edge();
        edge.space.node("burst").on("measure", async |measure: Event<Measure>, cx: Context| {
            for number in 0..500 {
                cx.send("hub", Reading { number: measure.number * 500 + number }).await?;
            }
            Ok::<_, Error>(())
        });
        edge.start().await;
        for number in 0..20 {
            edge.space.send("burst", Measure { number }).reply::<()>().await.unwrap();
        }
        assert_eq!(edge.waiting(), 10_000);
        let centre = world.centre();
        // Each call to a store takes up to ten milliseconds: one event after the other would take a minute.
        centre.store.takes(millis(10));
        edge.store.takes(millis(10));
        let (before, commits) = (world.env.unix_ms(), edge.store.commits());
        centre.start().await;
        until(&world.env, "nothing waits", async || edge.space.outboxes().is_empty()).await;
        assert!(edge.store.commits() - commits <= 12, "{} commits", edge.store.commits() - commits);
        assert!(world.env.unix_ms() - before < 5_000, "{} ms", world.env.unix_ms() - before);
        until(&world.env, "all are handled", async || handled(&world.centre, "hub").await.len() == 10_000)
            .await;
        assert_eq!(handled(&world.centre, "hub").await, (0..10_000).collect::<Vec<_>>());
    });
}

/// The events and batches in a log, as they are there.
async fn frames(store: &Arc<dyn Store>) -> Vec<Vec<u8>> {
    let (mut frames, mut start) = (Vec::new(), Some(Start::Edge));
    while let Some(from) = start {
        let page = store.read(Read { start: from, ..Read::forward(Select::All) }).await.unwrap();
        let records = page.records.iter();
        let records = records.map(|record| WireRecord::decode(&record.bytes, RECORD_BYTES_MAX).unwrap());
        frames.extend(records.map(|record| record.event.into_owned()).filter(|frame| !frame.is_empty()));
        start = page.next.map(Start::Position);
    }
    frames
}

/// Looks at every event that these stores have, as `verify` does for each alone: an event has one hash wherever it is, and
/// its effects tell that one. Gives how many causes were told by their hashes from one store to another.
async fn told_of_each_other(stores: &[&Arc<dyn Store>]) -> usize {
    let (mut hashes, mut causes) = (BTreeMap::new(), Vec::new());
    for (place, store) in stores.iter().enumerate() {
        assert!(Journal::new(Arc::clone(store)).verify().await.unwrap().is_whole());
        for frame in frames(store).await {
            for event in WireParcel::decode(&frame, RECORD_BYTES_MAX).unwrap().events() {
                let hash = event.hash.unwrap();
                assert_eq!(hash, hash_event(event));
                let (_, known) = *hashes.entry(event.id).or_insert((place, hash));
                assert_eq!(known, hash, "{} {} in {place}", event.event_type, event.id);
                causes.extend(event.causes().filter_map(|cause| match cause {
                    CauseLink::Known { id, hash } => Some((place, *id, *hash)),
                    _ => None,
                }));
            }
        }
    }
    let beyond = causes.iter().filter(|(place, id, hash)| {
        hashes.get(id).is_some_and(|(other, known)| {
            assert_eq!(known, hash, "{id} as a cause in {place}");
            other != place
        })
    });
    beyond.count()
}

/// A third process, which remembers nothing: what it gets it sends on to nodes of both, alone and as a batch, and to
/// everybody.
fn relay(world: &World) -> Space {
    let space = Space::in_env(Config::default(), Arc::clone(&world.env)).unwrap();
    space.join(world.hub.link("relay")).unwrap();
    space.node("relay").on("measure", async |measure: Event<Measure>, cx: Context| {
        let number = measure.number * 10;
        cx.send("hub", Reading { number }).await?;
        cx.send("ledger", [1, 2].map(|more| Paid { number: number + more, receipt: 2 })).await?;
        cx.send("shop", Measure { number }).await?;
        cx.broadcast(Paid { number, receipt: 0 })?;
        Ok::<_, Error>(())
    });
    space
}

#[test]
fn the_stores_of_spaces_on_a_link_agree_on_each_event_and_its_causes() {
    for signs in [&[][..], &["edge"], &["edge", "centre"], &["edge", "centre", "relay"]] {
        check_seeds(0..5, |sim| {
            let world = World::new(&sim);
            sim.run(async {
                let (edge, centre, relay) = (world.edge(), world.centre(), relay(&world));
                let pair = |number| KeyPair::from_seed(&Seed::new(KeyKind::User, [number; 32]));
                let trust = TrustStore::new();
                for ((name, space), number) in
                    [("edge", &edge.space), ("centre", &centre.space), ("relay", &relay)].into_iter().zip(1..)
                {
                    let trusted = Trusted::new(pair(number).public_key());
                    trust.trust(trusted.nodes(["*"]).origins(["*"])).unwrap();
                    if signs.contains(&name) {
                        let identity = Identity::new(pair(number)).trust(&trust);
                        space.identity(identity.accept_unsigned()).unwrap();
                    }
                }
                // From here to there by the outbox, as an answer, and as a broadcast, and back in the same ways.
                edge.space.node("begin").on("measure", async |measure: Event<Measure>, cx: Context| {
                    let number = measure.number;
                    cx.broadcast(Paid { number, receipt: 1 })?;
                    cx.send("relay", Measure { number }).await?;
                    cx.send("bank", Charge { number }).reply::<Paid>().await?;
                    Ok::<_, Error>(())
                });
                let ledger = async |paid: Event<Paid>, cx: Context| {
                    cx.broadcast(Charge { number: paid.number })?;
                    cx.send("meter", Measure { number: 1_000 + paid.number }).await.map(drop)
                };
                centre.space.node("ledger").on("paid", ledger);
                edge.space.node("book").on("charge", |_: &Event<Charge>, _: &Context| ());
                for space in [&relay, &centre.space, &edge.space] {
                    space.start().await.unwrap();
                }
                for number in 1..=5 {
                    edge.space.send("begin", Measure { number }).reply::<()>().await.unwrap();
                }
                world.env.sleep(secs(5)).await;
                assert!(edge.space.outboxes().is_empty() && centre.space.outboxes().is_empty());
                for space in [&relay, &centre.space, &edge.space] {
                    assert!(space.dead_letters().is_empty(), "{:?}", space.dead_letters());
                    assert_eq!(space.refused_frames(), 0);
                }
                let beyond = told_of_each_other(&[&world.edge, &world.centre]).await;
                assert!(beyond >= 60, "{beyond}");
            });
        });
    }
}

/// So many events that nothing is remembered of those before, at neither end.
async fn flood(edge: &Process) {
    let text = "x".repeat(limits::LINK_FRAME_KEPT_BYTES_MAX / 2);
    for _ in 0..limits::LINK_HASHES_MAX {
        edge.space.send("sink", text.clone()).await.unwrap();
    }
}

#[test]
fn what_is_handed_over_is_stored_as_it_left_whatever_comes_before_its_turn() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let edge = world.edge();
        edge.start().await;
        edge.measure(1..=5).await;
        let (stranger, probe) = (world.hub.link("stranger"), Probe::new("hub"));
        stranger.attach(Arc::clone(&probe) as _).await.unwrap();
        until(&world.env, "all left", async || probe.frames().len() >= 5).await;

        let centre = world.centre();
        centre.space.node("sink").ephemeral().on("string", |_: &Event<String>, _: &Context| ());
        centre.start().await;
        // One is on its way into the store, and the others stand behind it.
        centre.store.takes(secs(20));
        let mut replies = Vec::new();
        for frame in probe.frames().into_iter().take(5) {
            replies.push(stranger.request_at("centre", "hub", frame).unwrap());
            world.env.sleep(millis(100)).await;
        }
        flood(&edge).await;
        for reply in &mut replies {
            next_reply(&mut **reply).await.unwrap().unwrap();
        }
        until(&world.env, "all are handled", async || handled(&world.centre, "hub").await.len() == 5).await;
        assert_eq!(told_of_each_other(&[&world.edge, &world.centre]).await, 5);
    });
}

#[test]
fn an_event_is_stored_as_it_came_whatever_comes_before_it_is_stored() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let (edge, centre) = (world.edge(), world.centre());
        edge.space.node("begin").on("measure", async |measure: Event<Measure>, cx: Context| {
            cx.broadcast(Paid { number: measure.number, receipt: 1 }).map(drop)
        });
        edge.space.node("end").on("charge", |_: &Event<Charge>, _: &Context| ());
        let env = Arc::clone(&world.env);
        centre.space.node("ledger").serial().on("paid", move |paid: Event<Paid>, cx: Context| {
            let env = Arc::clone(&env);
            async move {
                env.sleep(secs(20)).await;
                cx.send("end", Charge { number: paid.number }).await.map(drop)
            }
        });
        centre.space.node("sink").ephemeral().on("string", |_: &Event<String>, _: &Context| ());
        centre.start().await;
        edge.start().await;
        for number in [1, 2] {
            edge.space.send("begin", Measure { number }).reply::<()>().await.unwrap();
        }
        flood(&edge).await;
        assert_eq!(centre.space.flows_under_way(), 2, "one that runs, and one behind it");
        let ended = async || told_of_each_other(&[&world.edge, &world.centre]).await == 4;
        until(&world.env, "the effect is back", ended).await;
    });
}

#[test]
fn what_leaves_after_a_restart_is_what_is_stored() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    let edge = || {
        let edge = world.edge();
        edge.space.node("begin").on("measure", async |measure: Event<Measure>, cx: Context| {
            cx.sleep(secs(10)).await;
            cx.broadcast(Paid { number: measure.number, receipt: 1 }).map(drop)
        });
        edge
    };
    sim.run(async {
        let centre = world.centre();
        centre.space.node("ledger").on("paid", |_: &Event<Paid>, _: &Context| ());
        centre.start().await;
        let first = edge();
        first.start().await;
        first.space.send("begin", Measure { number: 1 }).await.unwrap();
        world.env.sleep(secs(1)).await;
        first.space.stop().await.unwrap();
        drop(first);
        // Nothing that the event came from was seen by this one.
        let second = edge();
        second.start().await;
        let came = async || told_of_each_other(&[&world.edge, &world.centre]).await == 1;
        until(&world.env, "it is stored beyond the link", came).await;
    });
}

#[test]
fn a_flipped_bit_of_what_is_handed_over_is_never_believed() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let edge = world.edge();
        let probe = Probe::new("hub");
        let stranger = world.hub.link("stranger");
        stranger.attach(Arc::clone(&probe) as _).await.unwrap();
        edge.start().await;
        edge.measure([1]).await;
        until(&world.env, "the frame left", async || !probe.frames().is_empty()).await;
        let frame = probe.frames().remove(0);
        edge.space.stop().await.unwrap();

        let centre = world.centre();
        centre.start().await;
        let told = async |frame: Vec<u8>| {
            let mut replies = stranger.request_at("centre", "hub", frame).unwrap();
            let reply = next_reply(&mut *replies).await.unwrap().unwrap();
            let reply = open_summed(&reply).unwrap().unwrap();
            match WireReply::decode(reply, 1 << 20).unwrap().outcome {
                Outcome::Error(told) => told.code().to_owned(),
                other => format!("{other:?}"),
            }
        };
        for bit in 0..frame.len() * 8 {
            let mut changed = frame.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(told(changed).await, "undecodable", "bit {bit}");
        }
        assert_eq!(centre.space.refused_frames() as usize, frame.len() * 8);
        assert_eq!(told(frame).await, "End");
        until(&world.env, "it is handled", async || handled(&world.centre, "hub").await == [1]).await;
    });
}

/// What is stored has hashes, which do not leave with an event that nobody signs.
#[test]
fn what_is_not_too_large_to_leave_is_not_too_large_to_be_stored() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    let config = Config { event_bytes_max: 4_096, ..Config::default() };
    sim.run(async {
        let centre = world.process("centre", &world.centre, config.clone());
        centre.space.node("notes").on("string", |_: &Event<String>, _: &Context| ());
        let sending = Space::in_env(config, Arc::clone(&world.env)).unwrap();
        sending.join(world.hub.link("sending")).unwrap();
        centre.start().await;
        sending.start().await.unwrap();
        let (mut taken, mut refused, mut forgotten) = (0, 0, 0);
        for bytes in 3_880..4_100 {
            let alone = sending.send("notes", "x".repeat(bytes)).await;
            let batch = sending.send("notes", vec!["x".repeat((bytes - 3_880) / 4); 30]).await;
            for sent in [alone.map(drop), batch.map(drop)] {
                match sent {
                    Ok(()) => taken += 1,
                    Err(error) => {
                        assert_eq!(error.code(), "oversized");
                        refused += 1;
                    }
                }
            }
            sending.send("notes", "x".repeat(bytes)).forget();
            forgotten += 1;
        }
        world.env.sleep(secs(1)).await;
        assert!(taken > 10 && refused > 10, "{taken} taken, {refused} refused");
        let stored = frames(&world.centre).await.len();
        assert_eq!(stored, taken + forgotten - sending.dead_letters().len());
        assert!(centre.space.dead_letters().is_empty(), "{:?}", centre.space.dead_letters().len());
        assert_eq!(centre.space.refused_frames(), 0);
    });
}

#[test]
fn what_nobody_waits_for_and_cannot_be_stored_is_a_dead_letter() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    sim.run(async {
        let centre = world.centre();
        // The event of this one begins several flows, and is stored before them.
        let twice = centre.space.node("twice");
        twice.on("reading", |_: &Event<Reading>, _: &Context| ());
        twice.on("reading", |_: &Event<Reading>, _: &Context| ());
        let sending = Space::in_env(Config::default(), Arc::clone(&world.env)).unwrap();
        sending.join(world.hub.link("sending")).unwrap();
        centre.start().await;
        sending.start().await.unwrap();
        centre.store.fill(true);
        for node in ["hub", "twice"] {
            sending.send(node, Reading { number: 1 }).forget();
            centre.space.send(node, Reading { number: 2 }).forget();
        }
        world.env.sleep(secs(1)).await;
        let letters = centre.space.dead_letters();
        assert_eq!(letters.iter().map(|letter| letter.code).collect::<Vec<_>>(), ["io"; 4]);
        centre.store.fill(false);
        for letter in letters {
            centre.space.redrive(letter.event_id()).await.unwrap();
        }
        let both = async || handled(&world.centre, "hub").await.len() == 2;
        until(&world.env, "both are handled", both).await;
        // Whoever waits is told, and there is no letter.
        centre.store.fill(true);
        assert_eq!(sending.send("hub", Reading { number: 3 }).await.unwrap_err().code(), "io");
        assert!(centre.space.dead_letters().is_empty());
    });
}
