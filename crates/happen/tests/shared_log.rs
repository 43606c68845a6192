//! Several processes on one log: each has nodes of its own, events reach those of the others once, and whoever has taken
//! nodes over leaves nothing to the one that had them. Processes are spaces over one store, in virtual time.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use happen::control::{self, Answer, Became, Request, SendEvent, SetState, Wait};
use happen::retention::Pruning;
use happen::store::{List, MemoryStore, Store};
use happen::{
    Config, Context, Error, ErrorKind, Event, Hub, Space, Step, done, every, millis, next, secs, with,
};
use happen_core::env::Env;
use happen_testing::{Dies, FaultyStore, Simulator, check_seeds};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.create")]
struct Create {
    id: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("charge")]
struct Charge {
    order: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("paid")]
struct Paid {
    order: u64,
    number: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.placed")]
struct Placed {
    id: u64,
}

#[derive(happen::State, Default, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[state("count", version = 1)]
struct Count {
    count: u64,
}

/// A log and the simulator that the processes on it run in.
struct World {
    env: Arc<dyn Env>,
    log: Arc<dyn Store>,
}

impl World {
    fn new(sim: &Simulator) -> Self {
        Self { env: sim.env(), log: Arc::new(MemoryStore::new(sim.env()).shared()) }
    }

    fn store(&self) -> Arc<FaultyStore> {
        FaultyStore::new(Arc::clone(&self.log), Arc::clone(&self.env))
    }

    fn process_over(&self, store: &Arc<FaultyStore>) -> Space {
        let store = Arc::clone(store) as Arc<dyn Store>;
        Space::with_store(Config::default(), Arc::clone(&self.env), store).unwrap()
    }

    /// A process on the log.
    fn process(&self) -> Space {
        self.process_over(&self.store())
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let list = List { prefix: prefix.into(), after: None, documents_max: 1_000 };
        let found = self.log.list(list).await.unwrap();
        found.iter().map(|document| document.key.to_string()).collect()
    }
}

fn one_more(count: Count) -> Count {
    Count { count: count.count + 1 }
}

async fn take(_: Event<Create>, cx: Context) -> happen::Result<Step> {
    cx.state::<Count>().set(one_more)?;
    next(charge)
}

async fn charge(order: Event<Create>, cx: Context) -> happen::Result<Step> {
    let paid = cx.send("bank", Charge { order: order.id }).reply::<Paid>().await?;
    cx.send("notes", Placed { id: order.id }).await?;
    cx.broadcast(Placed { id: order.id })?;
    done(Paid::clone(&paid))
}

fn shop(space: &Space) {
    space.node("orders").on("order.create", take).step(charge);
}

fn bank(space: &Space) {
    space.node("bank").on("charge", |charge: &Event<Charge>, cx: &Context| {
        let number = cx.state::<Count>().get(|count| count.count) + 1;
        cx.state::<Count>().set(one_more)?;
        Ok::<_, Error>(Paid { order: charge.order, number })
    });
}

/// Two nodes that count what is placed: one is sent it, the other one listens.
fn office(space: &Space) {
    let count = |_: &Event<Placed>, cx: &Context| cx.state::<Count>().set(one_more);
    space.node("notes").on("order.placed", count);
    space.node("mails").on("order.*", count);
}

async fn counted(space: &Space, node: &str) -> u64 {
    space.find(node).unwrap().state::<Count>().get(|count| count.count)
}

async fn until(env: &Arc<dyn Env>, what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..2_000 {
        if holds().await {
            return;
        }
        env.sleep(millis(5)).await;
    }
    panic!("this did not become true: {what}");
}

/// Waits until nothing is left to do in any of these processes.
async fn settled(world: &World, spaces: &[&Space]) {
    until(&world.env, "nothing is left to do", async || {
        for space in spaces {
            space.settled(secs(60)).await.unwrap();
        }
        world.keys("inbox/").await.is_empty() && world.keys("flow/").await.is_empty()
    })
    .await;
}

#[test]
fn nodes_of_several_processes_ask_send_and_hear_by_the_log_alone() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (shopping, banking, writing) = (world.process(), world.process(), world.process());
            shop(&shopping);
            bank(&banking);
            office(&writing);
            for space in [&writing, &banking, &shopping] {
                space.start().await.unwrap();
            }
            for id in 1..=5 {
                let paid = shopping.send("orders", Create { id }).reply::<Paid>().await.unwrap();
                assert_eq!(*paid, Paid { order: id, number: id });
            }
            settled(&world, &[&shopping, &banking, &writing]).await;
            assert_eq!(counted(&shopping, "orders").await, 5);
            assert_eq!(counted(&banking, "bank").await, 5);
            assert_eq!(counted(&writing, "notes").await, 5 + 5, "it is sent each and hears each");
            assert_eq!(counted(&writing, "mails").await, 5);
            for space in [shopping, banking, writing] {
                assert!(space.problems().is_empty(), "{:?}", space.problems());
                space.stop().await.unwrap();
            }
            assert!(world.keys("process/").await.is_empty(), "whoever goes says so");
        });
    });
}

/// Whether the question is kept for a node or goes by the link is decided once, whatever is heard of the node meanwhile.
#[test]
fn a_question_to_a_node_that_is_just_beginning_ends() {
    let answered = AtomicU32::new(0);
    check_seeds(0..100, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let hub = Hub::in_env(sim.env());
            let store = world.store();
            let (shopping, banking) = (world.process_over(&store), world.process());
            // So much happens while a question is on its way to the log.
            store.takes(millis(5));
            for (space, name) in [(&shopping, "shop"), (&banking, "bank")] {
                space.join(hub.link(name)).unwrap();
            }
            shop(&shopping);
            bank(&banking);
            office(&shopping);
            shopping.start().await.unwrap();
            let begins = sim.env().random_u64() % 20;
            let (env, begun) = (sim.env(), banking.clone());
            sim.env().spawn(Box::pin(async move {
                env.sleep(millis(begins)).await;
                begun.start().await.unwrap();
            }));
            for id in 0..20 {
                let asked = shopping.send("orders", Create { id }).within(secs(60)).reply::<Paid>().await;
                match asked {
                    Ok(_) => drop(answered.fetch_add(1, Ordering::SeqCst)),
                    Err(error) => assert_eq!(error.code(), "no-such-node", "{error}"),
                }
            }
        });
    });
    assert!(answered.load(Ordering::SeqCst) > 500);
}

/// The orders that one run is about.
const ORDERS: u64 = 3;

/// Sends the orders again and again until they are taken, as a client does that keys them.
async fn order(world: &World, shopping: &Space) -> bool {
    for id in 1..=ORDERS {
        let sent = shopping.send("orders", Create { id }).idempotency_key(format!("order {id}")).await;
        if sent.is_err() {
            return false;
        }
    }
    settled_but_for_the_dead(world).await;
    true
}

async fn settled_but_for_the_dead(world: &World) {
    world.env.sleep(secs(120)).await;
}

/// Lets one of the two processes die at each of its commits, before and after, and a new one take its place.
#[test]
fn a_process_that_dies_at_any_commit_leaves_everything_to_the_next() {
    let mut most = 0;
    for dies in [Dies::Before, Dies::Unheard] {
        for at in 1..60 {
            for victim in ["shop", "bank"] {
                let sim = Simulator::new(at);
                let world = World::new(&sim);
                let died = sim.run(async {
                    let stores = [world.store(), world.store()];
                    let [shopping, banking] = [0, 1].map(|index| world.process_over(&stores[index]));
                    shop(&shopping);
                    bank(&banking);
                    let writing = world.process();
                    office(&writing);
                    let victims = if victim == "shop" { &stores[0] } else { &stores[1] };
                    victims.dies_at(at, dies);
                    writing.start().await.unwrap();
                    let started = [banking.start().await.is_ok(), shopping.start().await.is_ok()];
                    let ordered = started == [true; 2] && order(&world, &shopping).await;
                    let died = victims.is_dead();
                    assert!(ordered || died);
                    // Whoever is still there goes on; the dead one is begun again.
                    drop(if victim == "shop" { shopping } else { banking });
                    let next = world.process();
                    if victim == "shop" {
                        shop(&next)
                    } else {
                        bank(&next)
                    }
                    next.start().await.unwrap();
                    if victim == "shop" {
                        assert!(order(&world, &next).await);
                    } else if !ordered {
                        // Its sender asks again, with the same keys.
                        let again = world.process();
                        shop(&again);
                        again.start().await.unwrap();
                        assert!(order(&world, &again).await);
                    } else {
                        settled_but_for_the_dead(&world).await;
                    }
                    assert!(world.keys("flow/").await.is_empty());
                    assert!(world.keys("inbox/").await.is_empty());
                    assert!(world.keys("dead/").await.is_empty());
                    assert_eq!(
                        counted(&writing, "mails").await,
                        ORDERS,
                        "{victim} died {dies:?} commit {at}"
                    );
                    assert_eq!(
                        counted(&writing, "notes").await,
                        2 * ORDERS,
                        "{victim} died {dies:?} commit {at}"
                    );
                    died
                });
                if died {
                    most = most.max(at);
                }
            }
        }
    }
    assert!(most > 8, "the last commit at which a process died was only the {most}th");
}

/// A process that asked may be away for so long that the log would forget what it asked and what the answer was.
#[test]
fn a_question_is_not_forgotten_before_its_answer_was_taken() {
    let mut most = 0;
    for dies in [Dies::Before, Dies::Unheard] {
        for at in 1..12 {
            let sim = Simulator::new(at);
            let world = World::new(&sim);
            let died = sim.run(async {
                let store = world.store();
                let (shopping, banking) = (world.process_over(&store), world.process());
                shop(&shopping);
                bank(&banking);
                office(&banking);
                banking.start().await.unwrap();
                store.dies_at(at, dies);
                let order = async |shopping: &Space| {
                    let sent = shopping.send("orders", Create { id: 1 }).idempotency_key("order 1").await;
                    settled_but_for_the_dead(&world).await;
                    sent.is_ok()
                };
                let ordered = shopping.start().await.is_ok() && order(&shopping).await;
                let died = store.is_dead();
                assert!(ordered || died);
                drop(shopping);
                Pruning::before(&world.log, u64::MAX).await.unwrap().carry_out(&world.log).await.unwrap();
                let next = world.process();
                shop(&next);
                next.start().await.unwrap();
                assert!(order(&next).await);
                assert!(world.keys("flow/").await.is_empty() && world.keys("dead/").await.is_empty());
                assert_eq!(counted(&banking, "bank").await, 1, "died {dies:?} commit {at}");
                assert_eq!(counted(&banking, "mails").await, 1, "died {dies:?} commit {at}");
                died
            });
            if died {
                most = most.max(at);
            }
        }
    }
    assert!(most > 4, "the last commit at which the process died was only the {most}th");
}

/// What was asked across processes is known by the one that has both nodes afterwards.
#[test]
fn a_process_that_takes_all_nodes_over_asks_nothing_again() {
    let mut most = 0;
    for dies in [Dies::Before, Dies::Unheard] {
        for at in 1..12 {
            let sim = Simulator::new(at);
            let world = World::new(&sim);
            let died = sim.run(async {
                let store = world.store();
                let (shopping, banking) = (world.process_over(&store), world.process());
                shop(&shopping);
                bank(&banking);
                office(&banking);
                banking.start().await.unwrap();
                store.dies_at(at, dies);
                let order = async |shopping: &Space| {
                    let sent = shopping.send("orders", Create { id: 1 }).idempotency_key("order 1").await;
                    settled_but_for_the_dead(&world).await;
                    sent.is_ok()
                };
                let ordered = shopping.start().await.is_ok() && order(&shopping).await;
                let died = store.is_dead();
                assert!(ordered || died);
                drop((shopping, banking));
                let all = world.process();
                shop(&all);
                bank(&all);
                office(&all);
                all.start().await.unwrap();
                assert!(order(&all).await);
                assert!(world.keys("flow/").await.is_empty() && world.keys("dead/").await.is_empty());
                assert_eq!(counted(&all, "bank").await, 1, "died {dies:?} commit {at}");
                assert_eq!(counted(&all, "mails").await, 1, "died {dies:?} commit {at}");
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
fn whoever_takes_nodes_over_leaves_nothing_to_the_one_that_had_them() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let old = world.process();
            bank(&old);
            let told = Arc::new(AtomicU32::new(0));
            let tells = Arc::clone(&told);
            old.node("watch").ephemeral().on("system.fenced", move |_: &Event, _: &Context| {
                tells.fetch_add(1, Ordering::SeqCst);
            });
            old.start().await.unwrap();
            let charge = |order| Charge { order };
            assert_eq!(old.send("bank", charge(1)).reply::<Paid>().await.unwrap().number, 1);
            // It stands still, and a new process takes over: nobody is there to be heard.
            let new = world.process();
            bank(&new);
            new.start().await.unwrap();
            assert_eq!(new.send("bank", charge(2)).reply::<Paid>().await.unwrap().number, 2);
            // The old one does not know yet, and nothing of what it does counts.
            let error = old.send("bank", charge(3)).reply::<Paid>().await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Closed { .. } | ErrorKind::Cancelled), "{error}");
            until(&world.env, "the old one is told", async || told.load(Ordering::SeqCst) == 1).await;
            until(&world.env, "the old one has ended", async || old.send("bank", charge(4)).await.is_err())
                .await;
            assert!(old.problems().iter().any(|problem| problem.to_string().contains("taken over")));
            assert_eq!(new.send("bank", charge(5)).reply::<Paid>().await.unwrap().number, 3);
            assert_eq!(counted(&new, "bank").await, 3);
            drop(old.stop().await);
            new.stop().await.unwrap();
        });
    });
}

/// An event by hand for the bank.
fn charge_by_hand(order: u64) -> Request {
    let (node, event_type) = ("bank".into(), "charge".into());
    let payload = serde_json::json!({ "order": order });
    Request::Send(SendEvent { node, event_type, payload, correlation: None, wait: Wait::Taken })
}

#[test]
fn by_hand_is_done_what_is_safe_beside_a_process_and_the_rest_when_none_has_the_node() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let banking = world.process();
            bank(&banking);
            banking.start().await.unwrap();
            let [owner] = &control::owners(&world.log).await.unwrap()[..] else { panic!("not one node") };
            assert_eq!((owner.node.as_str(), owner.has_gone), ("bank", false));
            assert_eq!(owner.handles, ["charge"]);

            // An event is taken at once.
            let sent = control::carry_out(&world.log, &world.env, charge_by_hand(1)).await.unwrap();
            let Answer::Sent(sent) = sent else { panic!("{sent:?}") };
            assert_eq!(sent.became, Became::Kept);
            until(&world.env, "the event is handled", async || counted(&banking, "bank").await == 1).await;
            assert!(world.keys("inbox/").await.is_empty());

            // What it would have to know of is refused, by the name under which it is known.
            let set = |revision, count| {
                let (key, shape) = ("state/bank/count".to_owned(), None);
                Request::SetState(SetState {
                    key,
                    revision,
                    shape,
                    content: serde_json::json!({ "count": count }),
                })
            };
            let refused = control::carry_out(&world.log, &world.env, set(1, 40)).await.unwrap_err();
            assert!(refused.to_string().contains(&owner.process), "{refused}");
            let heard = |node: &str| (node == "bank").then(|| "bank-1".to_owned());
            let refused =
                control::carry_out_beside(&world.log, &world.env, &heard, set(1, 40)).await.unwrap_err();
            assert!(refused.to_string().contains("`bank-1`"), "{refused}");

            // One that nobody hears has ended with the change.
            let nobody = |_: &str| None;
            control::carry_out_beside(&world.log, &world.env, &nobody, set(1, 40)).await.unwrap();
            assert!(control::owners(&world.log).await.unwrap()[0].has_gone);
            control::carry_out(&world.log, &world.env, charge_by_hand(2)).await.unwrap();
            until(&world.env, "the old one is told", async || {
                banking.problems().iter().any(|problem| problem.to_string().contains("taken over"))
            })
            .await;
            assert_eq!(world.keys("inbox/").await.len(), 1, "one that has ended took an event");
            drop(banking.stop().await);

            // Nobody has the node, so nobody is asked.
            control::carry_out(&world.log, &world.env, set(2, 50)).await.unwrap();
            let again = world.process();
            bank(&again);
            again.start().await.unwrap();
            until(&world.env, "the event is handled", async || counted(&again, "bank").await == 51).await;
            let verified = again.journal().verify().await.unwrap();
            assert!(verified.is_whole(), "{verified:?}");
            again.stop().await.unwrap();
        });
    });
}

#[test]
fn a_change_by_hand_does_not_count_when_the_node_changes_hands_meanwhile() {
    let (refused, done) = (AtomicU32::new(0), AtomicU32::new(0));
    check_seeds(0..40, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let old = world.process();
            bank(&old);
            old.start().await.unwrap();
            old.send("bank", Charge { order: 1 }).reply::<Paid>().await.unwrap();
            drop(old.stop().await);
            let taken = Arc::new(AtomicU32::new(0));
            let (takes, env) = (Arc::clone(&taken), Arc::clone(&world.env));
            let new = world.process();
            bank(&new);
            let starting = new.clone();
            env.spawn(Box::pin(async move {
                starting.start().await.unwrap();
                takes.store(1, Ordering::SeqCst);
            }));
            let set = SetState {
                key: "state/bank/count".to_owned(),
                revision: 1,
                shape: None,
                content: serde_json::json!({ "count": 40 }),
            };
            for _ in 0..world.env.random_u64() % 12 {
                world.env.sleep(millis(0)).await;
            }
            let set = control::carry_out(&world.log, &world.env, Request::SetState(set)).await;
            until(&world.env, "the new one has started", async || taken.load(Ordering::SeqCst) == 1).await;
            if set.is_ok() { &done } else { &refused }.fetch_add(1, Ordering::SeqCst);
            // Either it was there first, or it found what was written.
            let expected = if set.is_ok() { 41 } else { 2 };
            new.send("bank", Charge { order: 2 }).reply::<Paid>().await.unwrap();
            assert_eq!(counted(&new, "bank").await, expected, "{set:?}");
            assert!(new.problems().is_empty(), "{:?}", new.problems());
            new.stop().await.unwrap();
        });
    });
    let (refused, done) = (refused.load(Ordering::SeqCst), done.load(Ordering::SeqCst));
    assert!(refused > 0 && done > 0, "{refused} refused and {done} done");
}

#[test]
fn a_second_process_stands_by_until_the_first_has_gone() {
    for leaves in ["stops", "dies"] {
        check_seeds(0..10, |sim| {
            let world = World::new(&sim);
            let hub = Hub::in_env(sim.env());
            sim.run(async {
                let (first, second) = (world.process(), world.process());
                for (name, space) in [("first", &first), ("second", &second)] {
                    bank(space);
                    space.join(hub.link(name)).unwrap();
                }
                first.start().await.unwrap();
                assert_eq!(first.send("bank", Charge { order: 1 }).reply::<Paid>().await.unwrap().number, 1);
                let standing = second.clone();
                let started = Arc::new(AtomicU32::new(0));
                let starts = Arc::clone(&started);
                sim.env().spawn(Box::pin(async move {
                    standing.start().await.unwrap();
                    starts.store(1, Ordering::SeqCst);
                }));
                world.env.sleep(secs(60)).await;
                assert_eq!(started.load(Ordering::SeqCst), 0, "it stands by as long as the first is there");
                assert_eq!(first.send("bank", Charge { order: 2 }).reply::<Paid>().await.unwrap().number, 2);
                if leaves == "stops" {
                    first.stop().await.unwrap();
                }
                drop(first);
                until(&world.env, "the second goes on", async || started.load(Ordering::SeqCst) == 1).await;
                assert_eq!(second.send("bank", Charge { order: 3 }).reply::<Paid>().await.unwrap().number, 3);
                second.stop().await.unwrap();
            });
        });
    }
}

#[test]
fn an_event_for_a_node_whose_process_is_not_there_waits_for_it() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        let hub = Hub::in_env(sim.env());
        sim.run(async {
            let writing = world.process();
            office(&writing);
            writing.start().await.unwrap();
            writing.stop().await.unwrap();
            drop(writing);

            // Outside of nodes, from a node that remembers nothing, and with a link on which nobody has the node.
            let shopping = world.process();
            shopping.join(hub.link("shop")).unwrap();
            shopping.node("clerk").ephemeral().on("charge", async |charge: Event<Charge>, cx: Context| {
                cx.send("notes", Placed { id: charge.order }).await.map(drop)
            });
            shopping.start().await.unwrap();
            shopping.send("notes", Placed { id: 1 }).await.unwrap();
            shopping.send("clerk", Charge { order: 2 }).reply::<()>().await.ok();
            shopping.broadcast(Placed { id: 3 }).unwrap();
            let error = shopping.send("nobody", Placed { id: 4 }).await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::NoSuchNode { .. }), "{error}");
            until(&world.env, "they are kept", async || world.keys("inbox/").await.len() == 4).await;

            let writing = world.process();
            office(&writing);
            writing.start().await.unwrap();
            settled(&world, &[&writing]).await;
            assert_eq!(counted(&writing, "notes").await, 3);
            assert_eq!(counted(&writing, "mails").await, 1);
        });
    });
}

#[test]
fn a_broadcast_reaches_everyone_once_whether_they_remember_or_not() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        let hub = Hub::in_env(sim.env());
        sim.run(async {
            let (shopping, writing, loose) =
                (world.process(), world.process(), Space::in_env(Config::default(), sim.env()).unwrap());
            let heard = Arc::new(AtomicU32::new(0));
            for (name, space) in [("shopping", &shopping), ("writing", &writing), ("loose", &loose)] {
                space.join(hub.link(name)).unwrap();
                let hears = Arc::clone(&heard);
                space.node(format!("ear of {name}")).ephemeral().on(
                    "order.placed",
                    move |_: &Event, _: &Context| {
                        hears.fetch_add(1, Ordering::SeqCst);
                    },
                );
            }
            office(&writing);
            shopping
                .node("ledger")
                .on("order.placed", |_: &Event, cx: &Context| cx.state::<Count>().set(one_more));
            for space in [&writing, &shopping, &loose] {
                space.start().await.unwrap();
            }
            world.env.sleep(secs(1)).await;
            for (number, space) in (1..).zip([&shopping, &writing, &loose]) {
                space.broadcast(Placed { id: number }).unwrap();
                settled(&world, &[&shopping, &writing]).await;
                // What goes over the link is under way nowhere.
                world.env.sleep(secs(1)).await;
                let number = number as u32;
                assert_eq!(heard.load(Ordering::SeqCst), 3 * number, "by those that do not remember");
                assert_eq!(counted(&writing, "notes").await, u64::from(number));
                assert_eq!(counted(&writing, "mails").await, u64::from(number));
                assert_eq!(counted(&shopping, "ledger").await, u64::from(number));
            }
        });
    });
}

#[test]
fn a_node_that_is_made_later_is_found_by_the_others() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (shopping, banking) = (world.process(), world.process());
            shop(&shopping);
            banking.start().await.unwrap();
            shopping.start().await.unwrap();
            world.env.sleep(secs(1)).await;
            bank(&banking);
            office(&banking);
            world.env.sleep(secs(1)).await;
            let paid = shopping.send("orders", Create { id: 1 }).reply::<Paid>().await.unwrap();
            assert_eq!(paid.number, 1);
            settled(&world, &[&shopping, &banking]).await;
            assert_eq!(counted(&banking, "notes").await, 2);
        });
    });
}

#[test]
fn what_is_due_at_a_node_of_another_process_comes_once() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (shopping, writing) = (world.process(), world.process());
            shopping.node("planner").on(
                "charge",
                async |charge: Event<Charge>, cx: Context| -> happen::Result<()> {
                    cx.after(secs(30), "notes", Placed { id: charge.order }).await?;
                    Ok(())
                },
            );
            office(&writing);
            writing.start().await.unwrap();
            shopping.start().await.unwrap();
            world.env.sleep(secs(1)).await;
            shopping.send("planner", Charge { order: 1 }).await.unwrap();
            settled(&world, &[&shopping, &writing]).await;
            assert_eq!(counted(&writing, "notes").await, 0);
            world.env.sleep(secs(60)).await;
            settled(&world, &[&shopping, &writing]).await;
            assert_eq!(counted(&writing, "notes").await, 1);
        });
    });
}

#[test]
fn a_schedule_that_several_processes_have_comes_once_each_time() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let processes = [world.process(), world.process(), world.process()];
            office(&processes[0]);
            bank(&processes[1]);
            shop(&processes[2]);
            for space in &processes {
                space.start().await.unwrap();
            }
            world.env.sleep(secs(1)).await;
            for space in &processes {
                space.schedule("rounds", every(secs(10)), "notes", Placed { id: 0 }).await.unwrap();
            }
            world.env.sleep(secs(95)).await;
            settled(&world, &processes.iter().collect::<Vec<_>>()).await;
            assert_eq!(counted(&processes[0], "notes").await, 9);
            for space in &processes {
                assert!(space.problems().is_empty(), "{:?}", space.problems());
            }
        });
    });
}

#[test]
fn a_process_without_durable_nodes_leaves_nothing_behind() {
    check_seeds(0..5, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (writing, sending) = (world.process(), world.process());
            office(&writing);
            writing.start().await.unwrap();
            sending.start().await.unwrap();
            assert_eq!(world.keys("process/").await.len(), 1);
            sending.send("notes", Placed { id: 1 }).await.unwrap();
            // It dies, and nobody has to take anything over.
            drop(sending);
            settled(&world, &[&writing]).await;
            assert_eq!(counted(&writing, "notes").await, 1);
            writing.stop().await.unwrap();
            assert!(world.keys("process/").await.is_empty());
        });
    });
}

#[test]
fn a_claim_that_was_committed_unheard_is_a_claim() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let store = world.store();
            store.fails_at(1, Dies::Unheard);
            let old = world.process_over(&store);
            bank(&old);
            old.start().await.unwrap();
            assert_eq!(old.send("bank", Charge { order: 1 }).reply::<Paid>().await.unwrap().number, 1);
            let new = world.process();
            bank(&new);
            new.start().await.unwrap();
            let error = old.send("bank", Charge { order: 2 }).reply::<Paid>().await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Closed { .. } | ErrorKind::Cancelled), "{error}");
            assert_eq!(new.send("bank", Charge { order: 3 }).reply::<Paid>().await.unwrap().number, 2);
        });
    });
}

#[test]
fn of_several_that_stand_by_one_goes_on() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        let hub = Hub::in_env(sim.env());
        sim.run(async {
            let first = world.process();
            bank(&first);
            first.join(hub.link("first")).unwrap();
            first.start().await.unwrap();
            let started = Arc::new(AtomicU32::new(0));
            let others: Vec<Space> = (0..3).map(|_| world.process()).collect();
            for (number, space) in others.iter().enumerate() {
                bank(space);
                space.join(hub.link(format!("other-{number}"))).unwrap();
                let (starts, standing) = (Arc::clone(&started), space.clone());
                sim.env().spawn(Box::pin(async move {
                    standing.start().await.unwrap();
                    starts.fetch_add(1, Ordering::SeqCst);
                }));
            }
            world.env.sleep(secs(5)).await;
            // It dies without a word.
            drop(first);
            world.env.sleep(secs(60)).await;
            assert_eq!(started.load(Ordering::SeqCst), 1);
            assert!(others.iter().all(|space| space.problems().is_empty()));
        });
    });
}

#[test]
fn a_node_that_another_process_has_is_not_made_here_later() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        let hub = Hub::in_env(sim.env());
        sim.run(async {
            let (banking, shopping) = (world.process(), world.process());
            for (name, space) in [("banking", &banking), ("shopping", &shopping)] {
                space.join(hub.link(name)).unwrap();
            }
            bank(&banking);
            shop(&shopping);
            office(&shopping);
            banking.start().await.unwrap();
            shopping.start().await.unwrap();
            world.env.sleep(secs(5)).await;
            bank(&shopping);
            world.env.sleep(secs(5)).await;
            assert!(shopping.find("bank").is_none());
            assert!(
                shopping.problems()[0].to_string().contains("another process"),
                "{:?}",
                shopping.problems()
            );
            // What is asked of it reaches the one that there is.
            for id in 1..=3 {
                shopping.send("orders", Create { id }).reply::<Paid>().await.unwrap();
            }
            assert_eq!(counted(&banking, "bank").await, 3);
            assert!(banking.problems().is_empty(), "{:?}", banking.problems());
        });
    });
}

#[test]
fn whatever_pattern_a_listener_has_it_hears_and_what_it_wants_no_more_is_not_kept() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (shopping, writing) = (world.process(), world.process());
            let count = |_: &Event<Placed>, cx: &Context| cx.state::<Count>().set(one_more);
            let by_function = writing.node("by function");
            let listening = by_function.on(|name: &str| name.ends_with(".placed"), count);
            writing.node("exactly").on(happen::exact("order.placed"), count);
            writing.node("of a domain").on(happen::domain("order"), count);
            writing.node("others").on(happen::domain("other"), count);
            writing.start().await.unwrap();
            shopping.start().await.unwrap();
            world.env.sleep(secs(1)).await;
            shopping.broadcast(Placed { id: 1 }).unwrap();
            settled(&world, &[&shopping, &writing]).await;
            for (node, expected) in [("by function", 1), ("exactly", 1), ("of a domain", 1), ("others", 0)] {
                assert_eq!(counted(&writing, node).await, expected, "{node}");
            }
            // It is kept for the node as long as nobody knows that it listens no more, and leaves without a word.
            shopping.broadcast(Placed { id: 2 }).unwrap();
            listening.off();
            settled(&world, &[&shopping, &writing]).await;
            assert_eq!(counted(&writing, "exactly").await, 2);
            for space in [&shopping, &writing] {
                assert!(space.problems().is_empty(), "{:?}", space.problems());
            }
        });
    });
}

#[test]
fn who_asks_a_node_of_another_process_that_does_not_take_it_is_told() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (shopping, banking) = (world.process(), world.process());
            shop(&shopping);
            banking.node("bank").on("withdraw", |_: &Event, _: &Context| ());
            banking.start().await.unwrap();
            shopping.start().await.unwrap();
            world.env.sleep(secs(1)).await;
            let error = shopping.send("orders", Create { id: 1 }).reply::<Paid>().await.unwrap_err();
            assert!(error.chain().join(": ").contains("no handler for `charge`"), "{error}");
            settled(&world, &[&shopping, &banking]).await;
            assert_eq!(world.keys("dead/").await.len(), 1, "that of the order, after its attempts");
            assert!(shopping.journal().verify().await.unwrap().is_whole());
        });
    });
}

async fn ask_for_approval(order: Event<Create>, cx: Context) -> happen::Result<Step> {
    let id = order.id;
    let number = |event: &Event, name| event.get(name).and_then(serde_json::Value::as_u64);
    match id {
        3 => {
            cx.wait_for_one("order.placed", secs(3_600), move |event| number(event, "id") == Some(id)).await?
        }
        _ => cx.wait_for_one("charge", secs(3_600), move |event| number(event, "order") == Some(id)).await?,
    };
    cx.state::<Count>().set(one_more)?;
    done(Paid { order: id, number: 0 })
}

/// Somebody else may send it to a node, or broadcast it, with or without a link and anybody who listens.
#[test]
fn an_event_that_another_process_sends_is_waited_for() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        let hub = Hub::in_env(sim.env());
        sim.run(async {
            let (waiting, asked, other) = (world.process(), world.process(), world.process());
            waiting.join(hub.link("waiting")).unwrap();
            other.join(hub.link("other")).unwrap();
            waiting.node("orders").on("order.create", ask_for_approval);
            bank(&asked);
            for space in [&waiting, &asked, &other] {
                space.start().await.unwrap();
            }
            let is_known = async || other.remote_nodes().iter().any(|node| node.id == "orders");
            until(&world.env, "the nodes know each other", is_known).await;
            // One before anybody waits is none that is waited for.
            other.send("bank", Charge { order: 1 }).await.unwrap();
            for id in 1..=3 {
                waiting.send("orders", Create { id }).await.unwrap();
            }
            world.env.sleep(secs(1)).await;
            assert_eq!(counted(&waiting, "orders").await, 0);
            // To a node of a third process, which is there in the log.
            other.send("bank", Charge { order: 1 }).await.unwrap();
            until(&world.env, "it was found", async || counted(&waiting, "orders").await == 1).await;
            asked.broadcast(Charge { order: 2 }).unwrap();
            until(&world.env, "it was found", async || counted(&waiting, "orders").await == 2).await;
            // Nobody has it in the log, and nobody listens: whoever waits is told over the link.
            other.broadcast(Placed { id: 3 }).unwrap();
            until(&world.env, "it was found", async || counted(&waiting, "orders").await == 3).await;
            settled(&world, &[&waiting, &asked, &other]).await;
        });
    });
}

/// A commit is on its way to a server that does not answer: its sender is told that it failed, and then it happens.
#[test]
fn what_is_committed_after_all_goes_on_after_all() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let (theirs, own) = (world.store(), world.store());
            let (asking, banking) = (world.process_over(&theirs), world.process_over(&own));
            bank(&banking);
            shop(&banking);
            office(&banking);
            for space in [&banking, &asking] {
                space.start().await.unwrap();
            }
            asking.send("bank", Charge { order: 0 }).await.unwrap();
            until(&world.env, "it is taken", async || counted(&banking, "bank").await == 1).await;
            own.happen_later(secs(3));
            // What comes by the log, what comes from here, and what takes several steps.
            asking.send("bank", Charge { order: 1 }).await.unwrap();
            let refused = banking.send("bank", Charge { order: 2 }).await.unwrap_err();
            assert_eq!(refused.code(), "io", "{refused}");
            banking.send("orders", Create { id: 3 }).await.unwrap_err();
            world.env.sleep(secs(1)).await;
            own.happen_later(millis(0));
            settled(&world, &[&asking, &banking]).await;
            // What a step asked is asked once, though its commit had failed.
            assert_eq!(counted(&banking, "bank").await, 4);
            assert_eq!(counted(&banking, "orders").await, 1);
            assert_eq!(counted(&banking, "notes").await, 2);
            assert_eq!(counted(&banking, "mails").await, 1);
        });
    });
}

/// The first commit of a flow is the question of its first step: another attempt would ask once more.
#[test]
fn a_question_that_is_committed_after_all_is_asked_once() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let own = world.store();
            let banking = world.process_over(&own);
            bank(&banking);
            let store = Arc::clone(&own);
            let ask = with(store, async |store: Arc<FaultyStore>, order: Event<Create>, cx: Context| {
                let paid = cx.send("bank", Charge { order: order.id }).reply::<Paid>().await;
                // The server is back, and has its commit a moment later.
                store.happen_later(millis(0));
                paid.map(|paid| Paid::clone(&paid))
            });
            banking.node("hasty").attempts(5, millis(10)).on("order.create", ask);
            banking.start().await.unwrap();
            own.happen_later(secs(3));
            let refused = banking.send("hasty", Create { id: 1 }).await.unwrap_err();
            assert_eq!(refused.code(), "io", "{refused}");
            world.env.sleep(secs(5)).await;
            settled(&world, &[&banking]).await;
            assert_eq!(counted(&banking, "bank").await, 1);
        });
    });
}

async fn send_to_nobody(order: Event<Create>, cx: Context) -> happen::Result<String> {
    let sent = cx.send("nowhere", Placed { id: order.id }).await;
    let asked = cx.send("nowhere", Charge { order: order.id }).reply::<Paid>().await;
    let code = |error: &Error| error.code().to_owned();
    Ok(format!("{} {}", sent.err().as_ref().map_or("staged".to_owned(), code), code(&asked.unwrap_err())))
}

/// A node that does not remember may be there when the event leaves, and a process alone knows that it is not.
#[test]
fn what_is_sent_to_a_node_that_nobody_has_is_told_at_once_or_is_a_dead_letter() {
    for (joins, expected) in [(false, "no-such-node no-such-node"), (true, "staged no-such-node")] {
        let sim = Simulator::new(1);
        let world = World::new(&sim);
        sim.run(async {
            let space = world.process();
            if joins {
                space.join(Hub::in_env(sim.env()).link("here")).unwrap();
            }
            space.node("orders").on("order.create", send_to_nobody);
            space.start().await.unwrap();
            let told = space.send("orders", Create { id: 1 }).reply::<String>().await.unwrap();
            assert_eq!(*told, expected);
            space.settled(secs(10)).await.unwrap();
            let letters = space.dead_letters();
            assert_eq!(letters.len(), usize::from(joins));
            assert!(letters.iter().all(|letter| (&*letter.node, letter.code) == ("nowhere", "no-such-node")));
            space.stop().await.unwrap();
        });
    }
}
