//! Durable nodes: steps that are committed, flows that go on where a process ended, and what each of them sends and
//! remembers. The store is the one in memory, so that what a process leaves behind is looked at in virtual time.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use happen::store::{List, MemoryStore, Read, Select, Store};
use happen::{
    Config, Context, Durability, Error, Event, Space, Step, UnfitFlows, again, done, millis, next, secs, with,
};
use happen_core::codec::{WireEvent, WireRecord};
use happen_core::limits::RECORD_BYTES_MAX;
use happen_testing::{Dies, FaultyStore, Simulator};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.create")]
struct Create {
    id: String,
    cents: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("charge")]
struct Charge {
    cents: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("paid")]
struct Paid {
    total: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.placed")]
struct Placed {
    id: String,
}

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("ledger", version = 1)]
struct Ledger {
    cents: u64,
    count: u64,
}

/// A disk and the simulator that the processes over it run in.
struct World {
    sim: Simulator,
    disk: Arc<dyn Store>,
}

impl World {
    fn new(seed: u64) -> Self {
        let sim = Simulator::new(seed);
        let disk = Arc::new(MemoryStore::new(sim.env()));
        Self { sim, disk }
    }

    /// What a process has of the disk.
    fn store(&self) -> Arc<FaultyStore> {
        FaultyStore::new(Arc::clone(&self.disk), self.sim.env())
    }

    fn space_over(&self, store: &Arc<FaultyStore>) -> Space {
        let store = Arc::clone(store) as Arc<dyn Store>;
        Space::with_store(Config::default(), self.sim.env(), store).unwrap()
    }

    /// A space over what an earlier one left behind.
    fn space(&self) -> Space {
        self.space_over(&self.store())
    }
}

fn add(cents: u64) -> impl Fn(Ledger) -> Ledger + Send + Sync + 'static {
    move |ledger| Ledger { cents: ledger.cents + cents, count: ledger.count + 1 }
}

async fn validate(order: Event<Create>, cx: Context) -> happen::Result<Step> {
    cx.put("cents", order.cents)?;
    next(charge)
}

async fn charge(order: Event<Create>, cx: Context) -> happen::Result<Step> {
    let cents: u64 = cx.get("cents")?;
    let paid = cx.send("payments", Charge { cents }).reply::<Paid>().await?;
    cx.state::<Ledger>().set(add(paid.total))?;
    cx.broadcast(Placed { id: order.id.clone() })?;
    done(Paid { total: paid.total })
}

/// An order is validated, charged at another node, and announced.
fn shop(space: &Space, announced: &Arc<AtomicU32>) {
    let orders = space.node("orders");
    orders.on("order.create", validate).step(charge);
    let payments = space.node("payments");
    payments.on("charge", |charge: &Event<Charge>, cx: &Context| {
        cx.state::<Ledger>().set(add(charge.cents))?;
        Ok::<_, Error>(Paid { total: charge.cents })
    });
    let announced = Arc::clone(announced);
    space.node("mails").on("order.placed", move |_: &Event<Placed>, cx: &Context| {
        announced.fetch_add(1, Ordering::SeqCst);
        cx.state::<Ledger>().set(add(0))
    });
}

#[test]
fn an_order_goes_through_three_nodes_and_its_states_stay() {
    let world = World::new(1);
    let announced = Arc::new(AtomicU32::new(0));
    world.sim.run(async {
        let space = world.space();
        shop(&space, &announced);
        space.start().await.unwrap();
        let paid = space.send("orders", Create { id: "a".into(), cents: 700 }).reply::<Paid>().await.unwrap();
        assert_eq!(*paid, Paid { total: 700 });
        space.settled(secs(10)).await.unwrap();
        assert_eq!(announced.load(Ordering::SeqCst), 1);
        space.stop().await.unwrap();
    });
    world.sim.run(async {
        let space = world.space();
        shop(&space, &announced);
        space.start().await.unwrap();
        for node in ["orders", "payments", "mails"] {
            let ledger = space.find(node).unwrap().state::<Ledger>().get(Clone::clone);
            assert_eq!(ledger.count, 1, "{node}");
        }
        space.settled(secs(10)).await.unwrap();
        assert_eq!(announced.load(Ordering::SeqCst), 1);
        space.stop().await.unwrap();
    });
}

/// Kills the process at every commit it makes, before and after, and lets the next one go on.
#[test]
fn a_process_that_dies_at_any_commit_loses_nothing_and_does_nothing_twice() {
    let mut deaths = 0;
    for dies in [Dies::Before, Dies::Unheard] {
        for commit in 1.. {
            let world = World::new(commit);
            let announced = Arc::new(AtomicU32::new(0));
            let store = world.store();
            store.dies_at(commit, dies);
            let acknowledged = world.sim.run(async {
                let space = world.space_over(&store);
                shop(&space, &announced);
                if space.start().await.is_err() {
                    return false;
                }
                let sent = space.send("orders", Create { id: "a".into(), cents: 700 }).await;
                // Beyond what is acknowledged nothing is promised; the rest goes on by itself until the end.
                drop(space.settled(secs(60)).await);
                drop(space.stop().await);
                sent.is_ok()
            });
            let died = store.is_dead();
            deaths += u32::from(died);
            let counts = world.sim.run(async {
                let space = world.space();
                shop(&space, &announced);
                space.start().await.unwrap();
                space.settled(secs(60)).await.unwrap();
                let count =
                    |node: &str| space.find(node).unwrap().state::<Ledger>().get(|ledger| ledger.count);
                let counts = ["orders", "payments", "mails"].map(count);
                space.stop().await.unwrap();
                counts
            });
            let once = [1; 3];
            assert!(counts == once || (!acknowledged && counts == [0; 3]), "{dies:?} {commit}: {counts:?}");
            if !died {
                assert!(acknowledged && announced.load(Ordering::SeqCst) >= 1);
                break;
            }
        }
    }
    assert!(deaths >= 10, "only {deaths} deaths: the workload has become too small");
}

async fn count_to_three(start: Event<u64>, cx: Context) -> happen::Result<Step> {
    let count = cx.get("count").unwrap_or(*start);
    cx.broadcast(Placed { id: format!("{}:{count}", cx.node_id()) })?;
    if count >= 3 {
        return done(count);
    }
    cx.put("count", count + 1)?;
    again()
}

/// Every event that the log has, in its order, with its id.
async fn log(space: &Space) -> Vec<(String, happen::EventId)> {
    let page = space.store().read(Read::forward(Select::All)).await.unwrap();
    let mut events = Vec::new();
    for record in &page.records {
        let record = WireRecord::decode(&record.bytes, RECORD_BYTES_MAX).unwrap();
        if !record.event.is_empty() {
            let event = WireEvent::decode(&record.event, RECORD_BYTES_MAX).unwrap();
            let text = String::from_utf8_lossy(event.payload).into_owned();
            events.push((format!("{} {text}", event.event_type), event.id));
        }
    }
    events
}

/// `again`, two listeners, and one function registered twice: each effect has an id of its own, and the same one when its
/// step is run again.
#[test]
fn what_a_step_sends_has_the_same_ids_when_it_is_run_again() {
    let run = |dies: Option<u64>| {
        let world = World::new(5);
        let build = |space: &Space| {
            let [one, two] = ["one", "two"].map(|id| space.node(id));
            one.on("start", count_to_three);
            one.on("*", count_to_three).priority(-1);
            two.on("start", count_to_three);
            space.node("ear").on("order.placed", |_: &Event<Placed>, _: &Context| ());
        };
        world.sim.run(async {
            let store = world.store();
            if let Some(commit) = dies {
                store.dies_at(commit, Dies::Before);
            }
            let space = world.space_over(&store);
            build(&space);
            space.start().await.unwrap();
            space.broadcast(Event::new("start", serde_json::json!(1))).unwrap();
            drop(space.settled(secs(60)).await);
            drop(space.stop().await);
            let space = world.space();
            build(&space);
            space.start().await.unwrap();
            space.settled(secs(60)).await.unwrap();
            let mut events = log(&space).await;
            space.stop().await.unwrap();
            events.sort();
            events
        })
    };
    let whole = run(None);
    let placed = whole.iter().filter(|(text, _)| text.starts_with("order.placed")).count();
    // Three flows with three steps each.
    assert_eq!(placed, 9);
    let mut ids: Vec<_> = whole.iter().map(|(_, id)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), whole.len(), "two events have one id");
    for commit in 3..9 {
        assert_eq!(run(Some(commit)), whole, "killed at commit {commit}");
    }
}

/// What was done outside, by name.
#[derive(Clone, Default)]
struct Outside(Arc<std::sync::Mutex<Vec<String>>>);

impl Outside {
    fn does(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }

    fn done(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

async fn call_once(outside: Outside, _: Event<u64>, cx: Context) -> happen::Result<String> {
    let first = outside.clone();
    let receipt = cx
        .once("charge", |key| async move {
            first.does("charge");
            Ok(key)
        })
        .await?;
    outside.does("attempt");
    if outside.done().iter().filter(|what| *what == "attempt").count() < 3 {
        return Err(Error::msg("the line is down"));
    }
    Ok(receipt)
}

#[test]
fn an_effect_under_once_is_done_once_however_often_its_step_is_tried() {
    let world = World::new(2);
    let outside = Outside::default();
    let build = |space: &Space| {
        space.node("till").attempts(3, secs(3_600)).on("u64", with(outside.clone(), call_once));
    };
    world.sim.run(async {
        let space = world.space();
        build(&space);
        space.start().await.unwrap();
        space.send("till", 1u64).await.unwrap();
        space.settled(secs(1)).await.unwrap();
        // It failed, and the next attempt is an hour away.
        assert_eq!(outside.done(), ["charge", "attempt"]);
        assert_eq!(space.find("till").unwrap().flows().len(), 1);
        space.stop().await.unwrap();
        world.sim.env().sleep(secs(1_800)).await;
        let space = world.space();
        build(&space);
        space.start().await.unwrap();
        let from = world.sim.env().monotonic();
        while !space.find("till").unwrap().flows().is_empty() {
            world.sim.env().sleep(secs(60)).await;
        }
        // Half an hour of the first wait was left, and the second one is twice as long.
        let took = (world.sim.env().monotonic() - from).as_secs();
        assert!((9_000..9_100).contains(&took), "{took}");
        assert_eq!(outside.done(), ["charge", "attempt", "attempt", "attempt"]);
        space.stop().await.unwrap();
    });
}

async fn remind(_: Event<u64>, cx: Context) -> happen::Result<u64> {
    cx.sleep(secs(30 * 24 * 3_600)).await;
    cx.state::<Ledger>().set(add(1))?;
    Ok(7)
}

#[test]
fn a_flow_sleeps_through_restarts_and_holds_nobody_up() {
    let world = World::new(3);
    world.sim.run(async {
        for day in 0..40 {
            let space = world.space();
            let node = space.node("reminder").max_concurrent(1).on("other", |_: &Event, _: &Context| ());
            drop(node);
            space.node("sleeper").on("u64", remind);
            space.start().await.unwrap();
            if day == 0 {
                space.send("sleeper", 1u64).await.unwrap();
            }
            space.settled(secs(5)).await.unwrap();
            if day < 30 {
                let flows = space.journal().flows(&happen::journal::FlowFilter::new()).await.unwrap().flows;
                let happen::journal::Standing::Waiting(sleep) = &flows[0].standing else {
                    panic!("{:?}", flows[0])
                };
                let began = flows[0].event.unix_ms();
                assert_eq!(sleep.due_unix_ms - began, 30 * 24 * 3_600_000, "day {day}");
            }
            let sleeper = space.find("sleeper").unwrap();
            assert_eq!(sleeper.flows().len(), usize::from(day < 30), "day {day}");
            assert_eq!(sleeper.state::<Ledger>().get(|ledger| ledger.count), u64::from(day >= 30));
            space.stop().await.unwrap();
            world.sim.env().sleep(secs(24 * 3_600)).await;
        }
    });
}

#[test]
fn a_sleep_is_remembered_from_a_second_on() {
    let limit = happen::limits::SLEEP_REMEMBERED_MS;
    for (time_ms, commits) in [(limit - 1, 1), (limit, 2), (limit + 1, 2)] {
        let world = World::new(18);
        world.sim.run(async {
            let store = world.store();
            let space = world.space_over(&store);
            space.node("sleeper").on("u64", |ms: Event<u64>, cx: Context| async move {
                cx.sleep(millis(*ms)).await;
                Ok::<_, Error>(true)
            });
            space.start().await.unwrap();
            let before = store.commits();
            assert!(space.send("sleeper", time_ms).reply::<bool>().await.unwrap().into_inner());
            assert_eq!(store.commits() - before, commits, "{time_ms} ms");
            space.stop().await.unwrap();
        });
    }
}

async fn approve(order: Event<Create>, cx: Context) -> happen::Result<String> {
    let id = order.id.clone();
    let approval = cx
        .wait_for_one("order.approved", secs(7 * 24 * 3_600), move |event| {
            event.get("id").and_then(serde_json::Value::as_str) == Some(&id)
        })
        .await?;
    Ok(approval.get("by").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned())
}

fn approvals(space: &Space) {
    space.node("orders").on("order.create", approve);
}

fn approval(id: &str, by: &str) -> happen::Dynamic {
    Event::new("order.approved", serde_json::json!({ "id": id, "by": by }))
}

#[test]
fn an_approval_is_waited_for_over_restarts_and_the_right_one_is_found() {
    let world = World::new(4);
    world.sim.run(async {
        let space = world.space();
        approvals(&space);
        space.start().await.unwrap();
        // One that came before counts for nothing.
        space.broadcast(approval("a", "early")).unwrap();
        space.settled(secs(1)).await.unwrap();
        space.send("orders", Create { id: "a".into(), cents: 1 }).await.unwrap();
        space.settled(secs(1)).await.unwrap();
        space.broadcast(approval("b", "wrong")).unwrap();
        space.settled(secs(1)).await.unwrap();
        assert_eq!(space.find("orders").unwrap().flows().len(), 1);
        space.stop().await.unwrap();

        let space = world.space();
        approvals(&space);
        space.start().await.unwrap();
        space.broadcast(approval("a", "Ada")).unwrap();
        space.settled(secs(1)).await.unwrap();
        assert!(space.find("orders").unwrap().flows().is_empty());
        let late = space.send("orders", Create { id: "c".into(), cents: 1 }).reply::<String>().await;
        assert_eq!(late.unwrap_err().code(), "timed-out");
        let waits = space.send("orders", Create { id: "d".into(), cents: 1 });
        let asked = async { waits.reply::<String>().await.unwrap().into_inner() };
        let approved = async {
            world.sim.env().sleep(secs(3_600)).await;
            space.broadcast(approval("d", "Grace")).unwrap();
        };
        assert_eq!(tokio::join!(asked, approved).0, "Grace");
        space.stop().await.unwrap();
    });
}

async fn wait_for_another(_: Event<Create>, cx: Context) -> happen::Result<String> {
    let other = cx.wait_for("order.create", secs(60)).await?;
    Ok(other.get("id").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned())
}

#[test]
fn an_event_is_waited_for_that_others_handle_and_never_the_own_one() {
    let world = World::new(5);
    world.sim.run(async {
        let space = world.space();
        let buyers = space.node("buyers");
        buyers.on("order.create", wait_for_another);
        space.node("clerk").on("order.create", |_: &Event<Create>, _: &Context| {});
        space.start().await.unwrap();
        let first = space.send(&buyers, Create { id: "first".into(), cents: 1 });
        let asked = async { first.reply::<String>().await.unwrap().into_inner() };
        let second = async {
            world.sim.env().sleep(secs(5)).await;
            space.send("clerk", Create { id: "second".into(), cents: 1 }).await.unwrap();
        };
        assert_eq!(tokio::join!(asked, second).0, "second");
        space.stop().await.unwrap();
    });
}

#[test]
fn a_flow_that_fails_for_good_is_a_dead_letter_that_can_be_driven_again() {
    let world = World::new(6);
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let told = Arc::new(AtomicU32::new(0));
    let build = |space: &Space| {
        let broken = Arc::clone(&broken);
        space.node("mill").on("u64", move |n: &Event<u64>, cx: &Context| {
            if broken.load(Ordering::SeqCst) {
                return Err(Error::msg("out of grain"));
            }
            cx.state::<Ledger>().set(add(**n))
        });
        let told = Arc::clone(&told);
        space.node("watch").on("u64.error", move |_: &Event, _: &Context| {
            told.fetch_add(1, Ordering::SeqCst);
        });
    };
    world.sim.run(async {
        let space = world.space();
        build(&space);
        space.start().await.unwrap();
        let error = space.send("mill", 5u64).reply::<()>().await.unwrap_err();
        assert_eq!((error.code(), error.node_id()), ("failed", Some("mill")));
        assert!(error.to_string().contains("out of grain"), "{error}");
        let event = error.event_id().unwrap();
        space.settled(secs(60)).await.unwrap();
        assert_eq!(told.load(Ordering::SeqCst), 1);
        space.stop().await.unwrap();

        broken.store(false, Ordering::SeqCst);
        let space = world.space();
        build(&space);
        space.start().await.unwrap();
        space.settled(secs(60)).await.unwrap();
        let count = || space.find("mill").unwrap().state::<Ledger>().get(|ledger| ledger.count);
        assert_eq!(count(), 0);
        space.redrive(event).await.unwrap();
        space.settled(secs(60)).await.unwrap();
        assert_eq!(count(), 1);
        assert_eq!(space.redrive(event).await.unwrap_err().code(), "misuse");
        space.stop().await.unwrap();
    });
}

#[test]
fn flows_that_do_not_fit_are_told_at_the_start_and_can_be_left_alone() {
    let world = World::new(7);
    world.sim.run(async {
        let space = world.space();
        space.node("orders").on("order.create", validate).step(charge);
        space.node("payments").on("charge", forever);
        space.start().await.unwrap();
        space.send("orders", Create { id: "a".into(), cents: 1 }).await.unwrap();
        drop(space.settled(secs(1)).await);
        // The step that never ends is left where it is, after the time that a stop waits.
        assert_eq!(space.stop().await.unwrap_err().code(), "timed-out");

        let renamed = |config: Config| {
            let store = world.store() as Arc<dyn Store>;
            let space = Space::with_store(config, world.sim.env(), store).unwrap();
            space.node("orders").on("order.create", validate).step_as("pay", charge);
            space.node("payments").on("charge", forever);
            space
        };
        let space = renamed(Config::default());
        let error = space.start().await.unwrap_err();
        assert_eq!(error.code(), "unfit");
        assert!(error.to_string().contains("step `charge` of node `orders`"), "{error}");
        let parked = renamed(Config { unfit_flows: UnfitFlows::Park, ..Config::default() });
        parked.start().await.unwrap();
        assert_eq!(parked.problems().len(), 1);
        assert!(parked.find("orders").unwrap().flows().is_empty());
        drop(parked.stop().await);

        // Under its old name it goes on.
        let space = world.space();
        space.node("orders").on("order.create", validate).step_as("charge", charge);
        space
            .node("payments")
            .on("charge", |charge: &Event<Charge>, _: &Context| Paid { total: charge.cents });
        let error = space.start().await.unwrap_err();
        assert!(error.to_string().contains("registration `forever` of node `payments`"), "{error}");
        drop(space);
        let space = world.space();
        space.node("orders").on("order.create", validate).step_as("charge", charge);
        space
            .node("payments")
            .on("charge", |charge: &Event<Charge>, _: &Context| Paid { total: charge.cents })
            .named("forever");
        space.start().await.unwrap();
        space.settled(secs(60)).await.unwrap();
        let ledger = space.find("orders").unwrap().state::<Ledger>().get(Clone::clone);
        assert_eq!(ledger, Ledger { cents: 1, count: 1 });
        space.stop().await.unwrap();
    });
}

async fn forever(_: Event<Charge>, _: Context) -> happen::Result<Paid> {
    std::future::pending().await
}

#[test]
fn a_cancelled_flow_ends_and_leaves_nothing() {
    let world = World::new(8);
    world.sim.run(async {
        let space = world.space();
        shop(&space, &Arc::default());
        space.node("slow").on("charge", forever);
        space.start().await.unwrap();
        let sent = space.send("slow", Charge { cents: 1 }).await.unwrap();
        let slow = space.find("slow").unwrap();
        assert_eq!(slow.flows(), [sent.event_id()]);
        assert_eq!(slow.cancel(sent.event_id()), 1);
        space.settled(secs(1)).await.unwrap();
        assert!(slow.flows().is_empty());
        let list = |prefix: &str| List { prefix: prefix.into(), after: None, documents_max: 9 };
        for prefix in ["flow/", "dead/"] {
            assert!(space.store().list(list(prefix)).await.unwrap().is_empty(), "{prefix}");
        }
        space.stop().await.unwrap();
    });
}

async fn ask_two_ways(asks: Arc<AtomicU32>, _: Event<u64>, cx: Context) -> happen::Result<u64> {
    let cents = u64::from(asks.fetch_add(1, Ordering::SeqCst));
    cx.send("payments", Charge { cents }).reply::<Paid>().await?;
    Err(Error::msg("again, please"))
}

#[test]
fn a_step_that_asks_something_else_when_it_is_run_again_is_told_so() {
    let world = World::new(9);
    world.sim.run(async {
        let space = world.space();
        shop(&space, &Arc::default());
        space.node("fickle").on("u64", with(Arc::new(AtomicU32::new(0)), ask_two_ways));
        space.start().await.unwrap();
        let error = space.send("fickle", 1u64).reply::<u64>().await.unwrap_err();
        assert_eq!(error.code(), "diverged");
        assert!(error.to_string().contains("asked `payments`"), "{error}");
        let paid = space.find("payments").unwrap().state::<Ledger>().get(|ledger| ledger.count);
        assert_eq!(paid, 1);
        space.stop().await.unwrap();
    });
}

#[test]
fn no_change_of_a_state_is_lost_however_many_flows_make_it() {
    for seed in 0..20 {
        let world = World::new(seed);
        world.sim.run(async {
            let store = world.store();
            store.takes(millis(5));
            let space = world.space_over(&store);
            let node = space.node("counter");
            node.on("u64", |n: &Event<u64>, cx: &Context| cx.state::<Ledger>().set(add(**n)));
            node.on("i64", |_: &Event<i64>, cx: &Context| {
                // Decided on what is seen, so the step is run again when somebody was faster.
                let seen = cx.state::<Ledger>().get_for_update(|ledger| ledger.count)?;
                cx.state::<Ledger>().set(move |ledger| {
                    assert_eq!(ledger.count, seen);
                    Ledger { count: seen + 1, ..ledger }
                })
            });
            space.start().await.unwrap();
            let sends = (0..100u64).map(|n| {
                let space = space.clone();
                async move {
                    match n % 2 {
                        0 => space.send("counter", 1u64).reply::<()>().await.map(drop),
                        _ => space.send("counter", 1i64).reply::<()>().await.map(drop),
                    }
                }
            });
            let all: Vec<_> = sends.map(Box::pin).collect();
            for result in join_all(all).await {
                result.unwrap();
            }
            let ledger = node.state::<Ledger>().get(Clone::clone);
            assert_eq!(ledger, Ledger { cents: 50, count: 100 }, "seed {seed}");
            assert!(store.commits() < 100, "{} commits: nothing was grouped", store.commits());
            space.stop().await.unwrap();
        });
    }
}

/// Runs futures side by side.
async fn join_all<F: Future + Unpin>(futures: Vec<F>) -> Vec<F::Output> {
    let mut left: Vec<_> = futures.into_iter().map(Some).collect();
    let mut outputs: Vec<Option<F::Output>> = left.iter().map(|_| None).collect();
    std::future::poll_fn(move |task| {
        for (future, output) in left.iter_mut().zip(&mut outputs) {
            if let Some(running) = future
                && let std::task::Poll::Ready(ended) = std::pin::Pin::new(running).poll(task)
            {
                *output = Some(ended);
                *future = None;
            }
        }
        if left.iter().all(Option::is_none) {
            return std::task::Poll::Ready(outputs.drain(..).flatten().collect());
        }
        std::task::Poll::Pending
    })
    .await
}

#[test]
fn what_follows_from_a_change_is_part_of_its_commit() {
    let world = World::new(10);
    let heard = Arc::new(AtomicU32::new(0));
    let build = |space: &Space| {
        space.node("stock").on("u64", |n: &Event<u64>, cx: &Context| {
            let n = **n;
            cx.state::<Ledger>().set_emit(move |ledger| {
                let count = ledger.count + n;
                let low = (count >= 3).then(|| Placed { id: format!("at {count}") });
                (Ledger { count, ..ledger }, low)
            })
        });
        let heard = Arc::clone(&heard);
        space.node("ear").on("order.placed", move |_: &Event<Placed>, cx: &Context| {
            heard.fetch_add(1, Ordering::SeqCst);
            cx.state::<Ledger>().set(add(1))
        });
    };
    world.sim.run(async {
        let store = world.store();
        let space = world.space_over(&store);
        build(&space);
        space.start().await.unwrap();
        space.send("stock", 2u64).reply::<()>().await.unwrap();
        // It dies in the commit that makes the change, and the event is there with it.
        store.dies_at(store.commits() + 1, Dies::Unheard);
        assert!(space.send("stock", 2u64).reply::<()>().await.is_err());
        drop(space.stop().await);
        assert_eq!(heard.load(Ordering::SeqCst), 0);
        let space = world.space();
        build(&space);
        space.start().await.unwrap();
        space.settled(secs(5)).await.unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), 1);
        assert_eq!(space.find("stock").unwrap().state::<Ledger>().get(|ledger| ledger.count), 4);
        space.stop().await.unwrap();
    });
}

#[test]
fn a_serial_node_keeps_its_order_over_a_restart() {
    let world = World::new(11);
    let outside = Outside::default();
    let build = |space: &Space| {
        let outside = outside.clone();
        space.node("line").serial().on(
            "u64",
            with(outside, async |outside: Outside, n: Event<u64>, cx: Context| {
                cx.sleep(secs(10)).await;
                outside.does(&n.to_string());
            }),
        );
    };
    world.sim.run(async {
        let space = world.space();
        build(&space);
        space.start().await.unwrap();
        for n in 0..20u64 {
            space.send("line", n).forget();
        }
        world.sim.env().sleep(secs(95)).await;
        space.stop().await.unwrap();
        let space = world.space();
        build(&space);
        space.start().await.unwrap();
        world.sim.env().sleep(secs(200)).await;
        space.stop().await.unwrap();
        let order: Vec<_> = (0..20).map(|n: u64| n.to_string()).collect();
        assert_eq!(outside.done(), order);
    });
}

#[test]
fn a_flow_whose_key_cannot_be_had_after_a_restart_goes_on_and_that_is_told() {
    let world = World::new(17);
    let outside = Outside::default();
    let build = |space: &Space, has_key: bool| {
        let outside = outside.clone();
        let key = move |n: &u64| if has_key { *n } else { panic!("no key") };
        space.node("line").serial_by(key).on(
            "u64",
            with(outside, async |outside: Outside, n: Event<u64>, cx: Context| {
                cx.sleep(secs(10)).await;
                outside.does(&n.to_string());
            }),
        );
    };
    world.sim.run(async {
        let space = world.space();
        build(&space, true);
        space.start().await.unwrap();
        let sent = space.send("line", 7u64).await.unwrap().event_id();
        world.sim.env().sleep(secs(5)).await;
        space.stop().await.unwrap();
        let space = world.space();
        build(&space, false);
        space.start().await.unwrap();
        world.sim.env().sleep(secs(60)).await;
        let problems = space.problems();
        assert_eq!((problems.len(), problems[0].event_id()), (1, Some(sent)), "{problems:?}");
        assert!(problems[0].to_string().contains("no key"), "{problems:?}");
        space.stop().await.unwrap();
        assert_eq!(outside.done(), ["7"]);
    });
}

#[test]
fn an_ephemeral_node_beside_durable_ones_is_asked_and_told() {
    let world = World::new(12);
    let heard = Arc::new(AtomicU32::new(0));
    world.sim.run(async {
        let space = world.space();
        let orders = space.node("orders");
        orders.on("order.create", validate).step(charge);
        assert_eq!(orders.durability(), Durability::Durable);
        let payments = space.node("payments").ephemeral();
        payments.on("charge", |charge: &Event<Charge>, _: &Context| Paid { total: charge.cents });
        let hears = Arc::clone(&heard);
        space.node("ear").ephemeral().on("order.placed", move |_: &Event<Placed>, _: &Context| {
            hears.fetch_add(1, Ordering::SeqCst);
        });
        space.start().await.unwrap();
        let paid = payments.send(&orders, Create { id: "a".into(), cents: 3 }).reply::<Paid>().await.unwrap();
        assert_eq!(*paid, Paid { total: 3 });
        space.settled(secs(1)).await.unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), 1);
        // What an ephemeral node keeps is not in the store.
        payments.state::<Ledger>().set(add(1)).unwrap();
        assert!(space.store().document("state/payments/ledger").await.unwrap().is_none());
        assert!(space.store().document("state/orders/ledger").await.unwrap().is_some());
        let error = orders.state::<Ledger>().set(add(1)).unwrap_err();
        assert_eq!(error.code(), "misuse");
        orders.state::<Ledger>().commit(add(10)).await.unwrap();
        assert_eq!(orders.state::<Ledger>().get(|ledger| (ledger.count, ledger.cents)), (2, 13));
        space.stop().await.unwrap();
    });
}

#[test]
fn what_is_old_is_forgotten_and_what_is_needed_stays() {
    let world = World::new(13);
    let day = 24 * 3_600;
    let build = |space: &Space| {
        space.node("counter").on("u64", |n: &Event<u64>, cx: &Context| cx.state::<Ledger>().set(add(**n)));
        space.node("orders").attempts(1, secs(1)).on("order.create", approve);
        space.node("mill").on("i64", |_: &Event<i64>, _: &Context| {
            Err::<(), _>(Error::new(happen::ErrorKind::Invalid { reason: "never".into() }))
        });
    };
    world.sim.run(async {
        let config = Config {
            retention: happen::Retention {
                revisions_max: 5,
                keep: vec!["audit.*".into()],
                ..Default::default()
            },
            ..Config::default()
        };
        let store = world.store() as Arc<dyn Store>;
        let space = Space::with_store(config, world.sim.env(), store).unwrap();
        build(&space);
        space.node("audit").on("audit.*", |_: &Event, _: &Context| ());
        space.start().await.unwrap();
        // Nothing is old yet.
        assert_eq!(space.prune().await.unwrap().records, 0);
        let waiting = space.send("orders", Create { id: "a".into(), cents: 1 }).await.unwrap();
        let dead = space.send("mill", 1i64).reply::<()>().await.unwrap_err().event_id().unwrap();
        for n in 0..20u64 {
            space.send("counter", n).reply::<()>().await.unwrap();
        }
        space.send("audit", Event::new("audit.login", serde_json::json!(1))).await.unwrap();
        let first = space.journal().head().await.unwrap();
        let before = space.store().read(Read::forward(Select::All)).await.unwrap().records.len();
        assert_eq!(past(&space, "state/counter/ledger").await, 6);

        world.sim.env().sleep(secs(31 * day)).await;
        space.send("counter", 1u64).reply::<()>().await.unwrap();
        space.settled(secs(5)).await.unwrap();
        let left = space.store().read(Read::forward(Select::All)).await.unwrap().records;
        assert!(left.len() < before / 2, "{} of {before} are left", left.len());
        // Dead letters, of which the approval that never came is one, and what is kept by its type.
        let old = left.iter().filter(|record| record.position <= first);
        let mut types: Vec<_> = old
            .flat_map(|record| record.tags.iter())
            .filter_map(|tag| match tag {
                happen::store::Tag::Type(name) => Some(&**name),
                _ => None,
            })
            .collect();
        types.sort_unstable();
        assert_eq!(types, ["audit.login", "i64", "order.create"]);
        assert!(space.journal().event(waiting.event_id()).await.unwrap().is_some());
        let anchor = space.store().document("anchor/log").await.unwrap();
        assert!(anchor.is_some_and(|anchor| anchor.content.is_some()));
        assert!(space.journal().verify().await.unwrap().is_whole());
        assert_eq!(space.find("counter").unwrap().state::<Ledger>().get(|ledger| ledger.count), 21);
        space.redrive(dead).await.unwrap();
        space.stop().await.unwrap();
    });
}

async fn past(space: &Space, key: &str) -> usize {
    let history =
        happen::store::History { key: key.into(), until: happen::store::Until::Now, documents_max: 99 };
    space.store().history(history).await.unwrap().len()
}

#[test]
fn a_space_tells_why_long_after_its_process_ended() {
    let world = World::new(14);
    world.sim.run(async {
        let space = world.space();
        shop(&space, &Arc::default());
        space.start().await.unwrap();
        let order = Create { id: "a".into(), cents: 700 };
        let paid = space.send("orders", order).correlation("order-a").reply::<Paid>().await.unwrap();
        space.settled(secs(5)).await.unwrap();
        space.stop().await.unwrap();

        let space = world.space();
        shop(&space, &Arc::default());
        space.start().await.unwrap();
        let trace = space.trace("order-a").await.unwrap();
        let told: Vec<_> = trace.lines().iter().map(|line| (line.depth, line.event_type.as_str())).collect();
        assert_eq!(told, [(0, "order.create"), (1, "charge"), (1, "order.placed")], "{trace}");
        assert_eq!(trace.lines()[0].handled[0].steps, ["charge"]);
        let placed = trace.lines()[2].event;
        assert_eq!(space.why(placed).await.unwrap(), [paid.event_id()]);
        assert_eq!(space.impact(paid.event_id()).await.unwrap().len(), 2);
        let journal = space.journal();
        let made = journal.why_document("state/orders/ledger", happen::store::Until::Now).await.unwrap();
        assert_eq!(made[0].event(), Some(paid.event_id()));
        assert!(journal.verify().await.unwrap().is_whole());
        let head = journal.head().await.unwrap();
        let orders = space.find("orders").unwrap();
        orders.state::<Ledger>().commit(|_| Ledger::default()).await.unwrap();
        let rebuilt = Arc::new(AtomicU32::new(0));
        let sees = Arc::clone(&rebuilt);
        space.on("state-rebuilt", move |_: &Event, _: &Context| {
            sees.fetch_add(1, Ordering::SeqCst);
        });
        orders.state::<Ledger>().restore(happen::journal::At::Position(head)).await.unwrap();
        assert_eq!(orders.state::<Ledger>().get(Clone::clone), Ledger { cents: 700, count: 1 });
        assert_eq!(rebuilt.load(Ordering::SeqCst), 1);
        space.stop().await.unwrap();
    });
}

async fn round_and_round(_: Event<u64>, cx: Context) -> happen::Result<Step> {
    let turns = cx.get("turns").unwrap_or(0u64) + 1;
    cx.put("turns", turns)?;
    if turns == 9 { done(turns) } else { again() }
}

#[test]
fn a_durable_loop_of_exactly_so_many_steps_is_allowed() {
    let world = World::new(15);
    world.sim.run(async {
        let space = world.space();
        for (id, steps_max) in [("short", 8), ("exact", 9), ("long", 10)] {
            space.node(id).steps_max(steps_max).on("u64", round_and_round);
        }
        space.start().await.unwrap();
        let turns =
            async |id: &str| space.send(id, 1u64).reply::<u64>().await.map(|turns| turns.into_inner());
        assert_eq!(turns("short").await.unwrap_err().code(), "runaway");
        assert_eq!((turns("exact").await.unwrap(), turns("long").await.unwrap()), (9, 9));
        space.stop().await.unwrap();
    });
}

async fn ask_the_desk(n: Event<u64>, cx: Context) -> happen::Result<u64> {
    Ok(cx.send("desk", i64::try_from(*n)?).reply::<u64>().await?.into_inner())
}

/// A queue that is full is an error the sender sees, whether it stands outside or is a durable node itself.
#[test]
fn a_full_queue_is_told_to_whoever_sends() {
    let world = World::new(16);
    world.sim.run(async {
        let space = world.space();
        space.node("asker").attempts(1, secs(1)).on("u64", ask_the_desk);
        space.node("desk").max_concurrent(2).queue_limit(3).on("i64", async |_: Event<i64>, cx: Context| {
            cx.sleep(millis(900)).await;
            7u64
        });
        space.start().await.unwrap();
        let through = |asker: bool| {
            let space = space.clone();
            async move {
                let asks = (0..10u64).map(|n| {
                    let space = space.clone();
                    Box::pin(async move {
                        let reply = match asker {
                            true => space.send("asker", n).reply::<u64>().await,
                            false => space.send("desk", n as i64).reply::<u64>().await,
                        };
                        reply.map_or_else(|error| error.code(), |_| "ok")
                    })
                });
                let mut told = join_all(asks.collect()).await;
                told.sort_unstable();
                told
            }
        };
        let expected = [vec!["busy"; 5], vec!["ok"; 5]].concat();
        assert_eq!(through(false).await, expected);
        assert_eq!(through(true).await, expected);
        space.stop().await.unwrap();
    });
}
