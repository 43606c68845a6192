//! Durable time: timers, schedules, flows that are held back, and keys by which events from outside are known again. The
//! store is the one in memory and time is virtual, so that years and the ends of processes are looked at at once.
#![expect(clippy::unwrap_used, reason = "what the helpers cannot make or find fails the test that needs it")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen::store::{Batch, Content, List, MemoryStore, Past, Replaced, Store, Write};
use happen::{
    Config, Context, CronError, Error, ErrorKind, Event, Missed, Node, Space, UnfitFlows, every, limits,
    millis, secs,
};
use happen_testing::{Dies, FaultyStore, Simulator};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order")]
struct Order {
    id: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("remind")]
struct Remind {
    id: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("paid")]
struct Paid {
    id: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("report")]
struct Report {
    page: u32,
}

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("ledger", version = 1)]
struct Ledger {
    count: u64,
    reminded: u64,
}

/// A disk and the simulator that the processes over it run in.
struct World {
    sim: Simulator,
    disk: Arc<dyn Store>,
}

/// What was handled, in order: when, and what.
type Seen = Arc<Mutex<Vec<(u64, String)>>>;

impl World {
    fn new(seed: u64) -> Self {
        let sim = Simulator::new(seed).steps_max(u64::MAX);
        let disk = Arc::new(MemoryStore::new(sim.env()));
        Self { sim, disk }
    }

    fn store(&self) -> Arc<FaultyStore> {
        FaultyStore::new(Arc::clone(&self.disk), self.sim.env())
    }

    fn space_over(&self, store: &Arc<FaultyStore>) -> Space {
        let store = Arc::clone(store) as Arc<dyn Store>;
        Space::with_store(Config::default(), self.sim.env(), store).unwrap()
    }

    fn space(&self) -> Space {
        self.space_over(&self.store())
    }

    fn now(&self) -> u64 {
        self.sim.env().unix_ms()
    }

    /// Lets time pass while no process is there.
    fn pass(&self, time: Duration) {
        let env = self.sim.env();
        self.sim.run(env.sleep(time));
    }

    async fn documents(&self, prefix: &str) -> Vec<String> {
        let list = List { prefix: prefix.into(), after: None, documents_max: 1_000 };
        self.disk.list(list).await.unwrap().iter().map(|document| document.key.to_string()).collect()
    }
}

fn note(seen: &Seen, space: &Space, what: impl Into<String>) {
    seen.lock().unwrap().push((space.env().unix_ms(), what.into()));
}

fn taken(seen: &Seen) -> Vec<(u64, String)> {
    std::mem::take(&mut seen.lock().unwrap())
}

const DAY: Duration = secs(86_400);

/// Reminds of an order an hour after it came, unless it is paid.
fn orders(space: &Space, seen: &Seen) -> Node {
    let orders = space.node("orders");
    orders.on("order", async |order: Event<Order>, cx: Context| {
        let key = format!("reminder:{}", order.id);
        cx.after(secs(3_600), "orders", Remind { id: order.id }).key(key).await?;
        cx.state::<Ledger>().set(|ledger| Ledger { count: ledger.count + 1, ..ledger })
    });
    orders.on("paid", |paid: &Event<Paid>, cx: &Context| {
        cx.cancel_timer(&format!("reminder:{}", paid.id)).forget();
    });
    let (noted, known) = (Arc::clone(seen), space.clone());
    orders.on("remind", move |remind: &Event<Remind>, cx: &Context| {
        note(&noted, &known, format!("{} {:?}", remind.id, remind.causation_id().is_some()));
        cx.state::<Ledger>().set(|ledger| Ledger { reminded: ledger.reminded + 1, ..ledger })
    });
    orders
}

#[test]
fn a_timer_set_by_a_step_comes_at_its_time_and_is_caused_by_its_event() {
    let world = World::new(1);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        orders(&space, &seen);
        space.start().await.unwrap();
        let start = world.now();
        let sent = space.send("orders", Order { id: 7 }).await.unwrap();
        space.settled(secs(10)).await.unwrap();
        assert_eq!(world.documents("timer/").await, ["timer/key/reminder:7"]);
        space.env().sleep(secs(3_599)).await;
        assert_eq!(taken(&seen), []);
        space.env().sleep(secs(2)).await;
        let [(at, what)] = &taken(&seen)[..] else { panic!("one") };
        assert!((3_600_000..3_600_100).contains(&(at - start)), "{at}");
        assert_eq!(what, "7 true");
        assert_eq!(world.documents("timer/").await, [""; 0]);
        assert_eq!(space.impact(sent.event_id()).await.unwrap().len(), 1);
        space.stop().await.unwrap();
    });
}

#[test]
fn a_key_takes_a_timer_back_and_sets_it_anew() {
    let world = World::new(2);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        orders(&space, &seen);
        space.start().await.unwrap();
        space.send("orders", Order { id: 1 }).reply::<()>().await.unwrap();
        space.send("orders", Paid { id: 1 }).reply::<()>().await.unwrap();
        assert_eq!(world.documents("timer/").await, [""; 0]);
        // Set again half an hour later, it comes an hour after that.
        space.send("orders", Order { id: 2 }).reply::<()>().await.unwrap();
        space.env().sleep(secs(1_800)).await;
        space.send("orders", Order { id: 2 }).reply::<()>().await.unwrap();
        space.env().sleep(secs(1_801)).await;
        assert_eq!(taken(&seen), []);
        space.env().sleep(secs(1_800)).await;
        assert_eq!(taken(&seen).len(), 1);
        // From outside, and never a second time.
        let later = space.after(secs(90), "orders", Remind { id: 4 }).await.unwrap();
        space.after(secs(60), "orders", Remind { id: 3 }).key("x/%").await.unwrap();
        let timers = space.timers().await.unwrap();
        assert_eq!(timers.iter().map(|timer| timer.key()).collect::<Vec<_>>(), [Some("x/%"), None]);
        assert_eq!((timers[1].event_id(), timers[1].node_id()), (later.event_id(), "orders"));
        assert_eq!((timers[1].event_type(), timers[1].due_unix_ms()), ("remind", world.now() + 90_000));
        space.env().sleep(secs(91)).await;
        assert_eq!(taken(&seen).len(), 2);
        assert_eq!(space.timers().await.unwrap(), []);
        space.after(secs(60), "orders", Remind { id: 3 }).key("x").await.unwrap();
        assert!(space.cancel_timer("x").await.unwrap());
        assert!(!space.cancel_timer("x").await.unwrap());
        assert!(!space.cancel_timer("reminder:2").await.unwrap());
        space.env().sleep(secs(7_200)).await;
        assert_eq!(taken(&seen), []);
        space.stop().await.unwrap();
    });
}

#[test]
fn a_timer_that_is_taken_back_when_it_is_due_comes_or_is_taken_back_and_never_both() {
    let (mut came, mut cancelled) = (0, 0);
    for seed in 0..200 {
        let world = World::new(seed);
        let seen = Seen::default();
        let store = world.store();
        store.takes(millis(4));
        world.sim.run(async {
            let space = world.space_over(&store);
            orders(&space, &seen);
            space.node("paid").on("paid", async |paid: Event<Paid>, cx: Context| {
                cx.cancel_timer(&format!("reminder:{}", paid.id)).await
            });
            space.start().await.unwrap();
            space.after(secs(60), "orders", Remind { id: 1 }).key("reminder:1").await.unwrap();
            space.env().sleep(millis(59_994 + seed % 8)).await;
            let is_cancelled = match seed % 2 {
                0 => *space.send("paid", Paid { id: 1 }).reply::<bool>().await.unwrap(),
                _ => space.cancel_timer("reminder:1").await.unwrap(),
            };
            space.env().sleep(secs(10)).await;
            let has_come = !taken(&seen).is_empty();
            assert_ne!(is_cancelled, has_come, "seed {seed}");
            came += u32::from(has_come);
            cancelled += u32::from(is_cancelled);
            space.stop().await.unwrap();
        });
    }
    assert!(came > 10 && cancelled > 10, "{came} came and {cancelled} were taken back");
}

#[test]
fn timers_that_were_missed_come_at_the_start_in_the_order_of_their_times() {
    let world = World::new(3);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        orders(&space, &seen);
        space.start().await.unwrap();
        for (id, seconds) in [(1, 300), (2, 100), (3, 200), (4, 864_000)] {
            space.after(secs(seconds), "orders", Remind { id }).await.unwrap();
        }
        space.stop().await.unwrap();
    });
    world.pass(DAY);
    world.sim.run(async {
        let space = world.space();
        assert_eq!(orders(&space, &seen).serial().id(), "orders");
        space.start().await.unwrap();
        space.settled(secs(10)).await.unwrap();
        let ids: Vec<_> = taken(&seen).into_iter().map(|(_, what)| what).collect();
        assert_eq!(ids, ["2 false", "3 false", "1 false"]);
        space.env().sleep(DAY * 10).await;
        assert_eq!(taken(&seen).len(), 1);
        space.stop().await.unwrap();
    });
}

#[test]
fn an_earlier_timer_wakes_the_space_and_what_a_failed_step_set_never_comes() {
    let world = World::new(4);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        orders(&space, &seen);
        space.node("broken").attempts(1, secs(1)).on("order", async |order: Event<Order>, cx: Context| {
            cx.after(secs(1), "orders", Remind { id: order.id }).await?;
            Err::<(), _>(Error::msg("no"))
        });
        space.start().await.unwrap();
        let start = world.now();
        space.after(DAY, "orders", Remind { id: 1 }).await.unwrap();
        space.env().sleep(secs(1)).await;
        space.after(secs(1), "orders", Remind { id: 2 }).await.unwrap();
        space.send("broken", Order { id: 3 }).reply::<()>().await.unwrap_err();
        space.env().sleep(secs(2)).await;
        let seen = taken(&seen);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!((2_000..2_100).contains(&(seen[0].0 - start)), "{seen:?}");
        space.stop().await.unwrap();
    });
}

/// Kills the process at every commit it makes, before and after, and lets the next one go on.
fn killed_at_each_commit<O>(
    first: &impl AsyncFn(&World, &Space) -> O,
    then: &impl AsyncFn(&World, &Space, O),
) -> u32 {
    let mut deaths = 0;
    for dies in [Dies::Before, Dies::Unheard] {
        for commit in 1.. {
            let world = World::new(commit);
            let store = world.store();
            store.dies_at(commit, dies);
            let outcome = world.sim.run(async {
                let space = world.space_over(&store);
                let outcome = first(&world, &space).await;
                drop(space.stop().await);
                outcome
            });
            let died = store.is_dead();
            deaths += u32::from(died);
            world.sim.run(async {
                let space = world.space();
                then(&world, &space, outcome).await;
                space.stop().await.unwrap();
            });
            if !died {
                break;
            }
        }
    }
    deaths
}

fn ledger(space: &Space, node: &str) -> Ledger {
    space.find(node).unwrap().state::<Ledger>().get(Clone::clone)
}

#[test]
fn a_timer_comes_exactly_once_whatever_crashes() {
    let seen = Seen::default();
    let deaths = killed_at_each_commit(
        &async |_, space| {
            orders(space, &seen);
            if space.start().await.is_err() {
                return false;
            }
            let sent = space.send("orders", Order { id: 7 }).reply::<()>().await;
            space.env().sleep(secs(3_700)).await;
            sent.is_ok()
        },
        &async |_, space, acknowledged| {
            orders(space, &seen);
            space.start().await.unwrap();
            space.env().sleep(secs(7_300)).await;
            let Ledger { count, reminded } = ledger(space, "orders");
            assert_eq!(count, reminded);
            assert!(count == 1 || (!acknowledged && count == 0), "{count}");
        },
    );
    assert!(deaths >= 6, "only {deaths} deaths");
}

#[test]
fn timers_that_are_due_together_share_a_commit_and_keep_their_order() {
    let world = World::new(27);
    let seen = Seen::default();
    let store = world.store();
    world.sim.run(async {
        let space = world.space_over(&store);
        let node = orders(&space, &seen).serial();
        space.start().await.unwrap();
        for id in 0..500 {
            space.after(secs(3_600) - millis(id), "orders", Remind { id }).await.unwrap();
        }
        // What is stopped is stored, and goes on later.
        node.stop();
        space.env().sleep(secs(3_599)).await;
        let before = store.commits();
        world.sim.jump_clock_forward(secs(60));
        space.env().sleep(millis(limits::CLOCK_LOOK_MS_MAX)).await;
        assert!(store.commits() - before <= 3, "{} commits", store.commits() - before);
        node.resume();
        space.settled(secs(60)).await.unwrap();
        let ids: Vec<u64> =
            taken(&seen).iter().map(|(_, what)| what.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(ids, (0..500).rev().collect::<Vec<_>>());
        space.stop().await.unwrap();
    });
}

#[test]
fn timers_that_are_due_together_come_once_each_whatever_crashes() {
    let seen = Seen::default();
    let deaths = killed_at_each_commit(
        &async |_, space| {
            orders(space, &seen);
            let mut acknowledged = 0;
            if space.start().await.is_err() {
                return acknowledged;
            }
            for id in 0..5 {
                acknowledged += u64::from(space.after(secs(60), "orders", Remind { id }).await.is_ok());
            }
            space.env().sleep(secs(61)).await;
            acknowledged
        },
        &async |_, space, acknowledged| {
            orders(space, &seen);
            space.start().await.unwrap();
            space.env().sleep(secs(61)).await;
            let count = ledger(space, "orders").reminded;
            // One more may be stored than was heard of.
            assert!((acknowledged..=acknowledged + 1).contains(&count), "{count} of {acknowledged}");
        },
    );
    assert!(deaths >= 12, "only {deaths} deaths");
}

#[test]
fn the_wall_clock_says_when_a_timer_is_due() {
    let world = World::new(6);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        orders(&space, &seen);
        space.start().await.unwrap();
        space.after(secs(3_600), "orders", Remind { id: 1 }).await.unwrap();
        space.after(DAY * 365, "orders", Remind { id: 2 }).await.unwrap();
        // Set back by a day, the clock has to come to that time again.
        world.sim.jump_clock_back(DAY);
        space.env().sleep(secs(7_200)).await;
        assert_eq!(taken(&seen), []);
        space.env().sleep(DAY).await;
        assert_eq!(taken(&seen).len(), 1);
        // Set forward, it is noticed within a minute.
        world.sim.jump_clock_forward(DAY * 400);
        space.env().sleep(millis(limits::CLOCK_LOOK_MS_MAX + 10)).await;
        assert_eq!(taken(&seen).len(), 1);
        space.stop().await.unwrap();
    });
}

#[test]
fn a_timer_for_a_node_that_is_not_there_is_told_and_waits() {
    let world = World::new(7);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        orders(&space, &seen);
        space.start().await.unwrap();
        let error = space.after(secs(1), "nobody", Remind { id: 1 }).await.unwrap_err();
        assert_eq!(error.code(), "no-such-node");
        space.after(secs(60), "orders", Remind { id: 1 }).await.unwrap();
        space.stop().await.unwrap();
    });
    world.sim.run(async {
        let space = world.space();
        let error = space.start().await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Unfit { flows } if flows[0].contains("`orders`")),
            "{error}"
        );
        let config = Config { unfit_flows: UnfitFlows::Park, ..Config::default() };
        let store = world.store() as Arc<dyn Store>;
        let space = Space::with_store(config, world.sim.env(), store).unwrap();
        space.start().await.unwrap();
        let waits = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&waits);
        space.on("system.due-event-waits", move |_: &Event, _: &Context| *counted.lock().unwrap() += 1);
        space.env().sleep(secs(70)).await;
        assert!(*waits.lock().unwrap() >= 1);
        // The node comes, and so does the event.
        orders(&space, &seen);
        space.env().sleep(secs(10)).await;
        assert_eq!(taken(&seen).len(), 1);
        space.stop().await.unwrap();
    });
}

/// Writes a document as a later version, or a mistake, may have left it.
async fn left_behind(world: &World, key: &str, name: &str, version: u32, bytes: &[u8]) {
    let content = Content { name: name.into(), version, bytes: bytes.into() };
    let write = Write {
        key: key.into(),
        revision: 1,
        content: Some(content),
        past: Past::Dropped,
        replaced: Replaced::Kept,
    };
    let batch = Batch { documents: vec![write], ..Batch::default() };
    assert!(world.disk.commit(vec![batch]).await[0].is_ok());
}

#[test]
fn documents_of_time_that_cannot_be_read_are_told_at_the_start() {
    for (key, name) in [("timer/key/x", "timer"), ("schedule/x", "schedule")] {
        for (version, bytes, code) in
            [(1, &[0xc1_u8][..], "undecodable"), (1, &[], "undecodable"), (99, &[0x80], "wrong-version")]
        {
            let world = World::new(9);
            world.sim.run(async {
                left_behind(&world, key, name, version, bytes).await;
                let error = world.space().start().await.unwrap_err();
                assert_eq!(error.code(), code, "{key} {version}");
                assert!(error.chain().join(" ").contains(key), "{error:?}");
            });
        }
    }
}

#[test]
fn one_thing_that_cannot_be_done_holds_up_no_other() {
    let world = World::new(9);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        orders(&space, &seen);
        space.start().await.unwrap();
        space.after(secs(10), "orders", Remind { id: 1 }).key("a").await.unwrap();
        space.after(secs(10), "orders", Remind { id: 2 }).key("b").await.unwrap();
        space.stop().await.unwrap();
    });
    world.sim.run(async {
        let store = world.store() as Arc<dyn Store>;
        let mut document = store.document("timer/key/a").await.unwrap().unwrap();
        // The event inside is damaged, and the document around it is not.
        let mut content = document.content.take().unwrap();
        let mut bytes = content.bytes.to_vec();
        let at = bytes.windows(6).position(|window| window == b"remind").unwrap();
        let frame = bytes.windows(5).position(|window| window == b"frame").unwrap();
        bytes[at.max(frame) + 8] = 0xc1;
        content.bytes = bytes.into();
        let write = Write {
            key: document.key.clone(),
            revision: document.revision + 1,
            content: Some(content),
            past: Past::Dropped,
            replaced: Replaced::Kept,
        };
        assert!(store.commit(vec![Batch { documents: vec![write], ..Batch::default() }]).await[0].is_ok());
        let space = world.space();
        orders(&space, &seen);
        space.start().await.unwrap();
        space.env().sleep(secs(11)).await;
        let ids: Vec<_> = taken(&seen).into_iter().map(|(_, what)| what).collect();
        assert_eq!(ids, ["2 false"]);
        // It can be taken back.
        assert!(space.cancel_timer("a").await.unwrap());
        space.stop().await.unwrap();
    });
}

#[test]
fn a_space_in_memory_says_that_it_remembers_no_times() {
    let world = World::new(8);
    world.sim.run(async {
        let space = Space::in_env(Config::default(), world.sim.env()).unwrap();
        let node = space.node("a");
        let failed = [
            space.after(secs(1), &node, Remind { id: 1 }).await.unwrap_err(),
            space.cancel_timer("x").await.unwrap_err(),
            space.timers().await.unwrap_err(),
            space.schedule("x", "@daily", &node, Remind { id: 1 }).await.unwrap_err(),
            space.schedules().list().await.unwrap_err(),
        ];
        assert!(failed.iter().all(|error| error.code() == "misuse"));
        let node = node.rate_by(|order: &Order| order.id, 1, secs(1));
        assert_eq!(space.start().await.unwrap_err().code(), "misuse", "{node:?}");
    });
}

/// A node that notes the due times of its reports.
fn reports(space: &Space, seen: &Seen) -> Node {
    let reports = space.node("reports").serial();
    let (noted, known) = (Arc::clone(seen), space.clone());
    reports.on("report", move |report: &Event<Report>, cx: &Context| {
        let name = report.metadata("schedule").unwrap().as_str().unwrap();
        let due = report.metadata("due_unix_ms").unwrap().as_u64().unwrap();
        assert_eq!(report.causation_id(), None);
        note(&noted, &known, format!("{name} {due} {}", report.page));
        cx.state::<Ledger>().set(|ledger| Ledger { count: ledger.count + 1, ..ledger })
    });
    reports
}

/// The due times of what was seen, in minutes since the start.
fn minutes(seen: &Seen, start: u64) -> Vec<u64> {
    let due = |what: &str| what.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
    taken(seen).iter().map(|(_, what)| (due(what) - start) / 60_000).collect()
}

#[test]
fn a_schedule_comes_at_its_times_and_is_defined_again_at_each_start() {
    let world = World::new(10);
    let seen = Seen::default();
    // The simulator begins with 2026-01-01T00:00:00Z.
    let start = world.now();
    for round in 0..3_u64 {
        world.sim.run(async {
            let space = world.space();
            let reports = reports(&space, &seen);
            space.schedule("nightly", "0 3 * * *", &reports, Report { page: 1 }).await.unwrap();
            space.start().await.unwrap();
            let before = space.store().document("schedule/nightly").await.unwrap().unwrap().revision;
            space.schedule("nightly", "0 3 * * *", &reports, Report { page: 1 }).await.unwrap();
            assert_eq!(space.store().document("schedule/nightly").await.unwrap().unwrap().revision, before);
            let listed = &space.schedules().list().await.unwrap()[0];
            assert_eq!(
                (listed.name(), listed.node_id(), listed.event_type()),
                ("nightly", "reports", "report")
            );
            assert_eq!(listed.due_unix_ms().map(|due| (due - start) / 60_000), Some(round * 1_440 + 180));
            space.env().sleep(DAY).await;
            assert_eq!(minutes(&seen, start), [round * 1_440 + 180]);
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn changed_times_are_taken_over_and_other_changes_keep_what_is_due() {
    let world = World::new(11);
    let seen = Seen::default();
    world.sim.run(async {
        let start = world.now();
        let space = world.space();
        let reports = reports(&space, &seen);
        space.start().await.unwrap();
        space.schedule("a", every(secs(600)), &reports, Report { page: 1 }).await.unwrap();
        space.env().sleep(secs(300)).await;
        space
            .schedule("a", every(secs(600)), &reports, Report { page: 2 })
            .missed(Missed::All)
            .await
            .unwrap();
        space.env().sleep(secs(301)).await;
        let seen_now = taken(&seen);
        assert_eq!(seen_now.len(), 1);
        assert!(seen_now[0].1.ends_with(&format!("{} 2", start + 600_000)), "{seen_now:?}");
        space.schedule("a", every(secs(60)), &reports, Report { page: 3 }).await.unwrap();
        space.env().sleep(secs(61)).await;
        assert_eq!(taken(&seen).len(), 1);
        // What is paused stays so.
        space.schedules().pause("a").await.unwrap();
        space.schedule("a", "@hourly", &reports, Report { page: 3 }).await.unwrap();
        space.env().sleep(secs(7_200)).await;
        assert_eq!(taken(&seen), []);
        assert!(space.schedules().list().await.unwrap()[0].is_paused());
        let error = space.schedule("a", "0 25 * * *", &reports, Report { page: 3 }).await.unwrap_err();
        assert_eq!(error.code(), "misuse");
        assert_eq!(error.find_cause::<CronError>().unwrap().position(), 2);
        space.stop().await.unwrap();
    });
}

#[test]
fn a_year_of_missed_times_is_made_up_for_as_the_policy_says_and_no_further() {
    for (missed, expected) in [
        (Missed::Skip, 0),
        (Missed::Once, 1),
        (Missed::All, u64::try_from(limits::SCHEDULE_MISSED_MAX).unwrap()),
    ] {
        let world = World::new(12);
        let seen = Seen::default();
        let start = world.now();
        let define = async |space: &Space| {
            let reports = reports(space, &seen);
            space.schedule("h", "0 * * * *", &reports, Report { page: 1 }).missed(missed).await.unwrap();
            space.start().await.unwrap();
        };
        world.sim.run(async {
            let space = world.space();
            define(&space).await;
            space.env().sleep(secs(9_000)).await;
            assert_eq!(minutes(&seen, start), [60, 120]);
            space.stop().await.unwrap();
        });
        world.pass(DAY * 365);
        world.sim.run(async {
            let space = world.space();
            define(&space).await;
            space.settled(secs(10)).await.unwrap();
            let last = 365 * 24 + 2;
            let all: Vec<_> = (last + 1 - expected..=last).map(|hour| hour * 60).collect();
            assert_eq!(minutes(&seen, start), all, "{missed:?}");
            space.env().sleep(secs(3_600)).await;
            assert_eq!(minutes(&seen, start), [(last + 1) * 60], "{missed:?}");
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn what_is_missed_is_bounded_at_its_limit() {
    let max = limits::SCHEDULE_MISSED_MAX;
    for (missed, expected) in [(max - 1, max - 1), (max, max), (max + 1, max)] {
        let world = World::new(13);
        let seen = Seen::default();
        let define = async |space: &Space| {
            let reports = reports(space, &seen);
            space.schedule("s", "@every 1s", &reports, Report { page: 1 }).missed(Missed::All).await.unwrap();
        };
        world.sim.run(async {
            let space = world.space();
            define(&space).await;
        });
        world.pass(secs(missed as u64));
        world.sim.run(async {
            let space = world.space();
            define(&space).await;
            space.start().await.unwrap();
            space.env().sleep(millis(1)).await;
            space.settled(secs(10)).await.unwrap();
            assert_eq!(taken(&seen).len(), expected);
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn a_schedule_is_paused_resumed_triggered_made_up_for_and_removed() {
    let world = World::new(14);
    let seen = Seen::default();
    let start = world.now();
    world.sim.run(async {
        let space = world.space();
        let node = reports(&space, &seen);
        space.schedule("h", "@hourly", &node, Report { page: 1 }).await.unwrap();
        space.start().await.unwrap();
        let schedules = space.schedules();
        schedules.pause("h").await.unwrap();
        assert_eq!(schedules.list().await.unwrap()[0].due_unix_ms(), None);
        space.stop().await.unwrap();
    });
    world.pass(secs(3_600 * 10 - 60));
    world.sim.run(async {
        let space = world.space();
        let node = reports(&space, &seen);
        space.schedule("h", "@hourly", &node, Report { page: 1 }).await.unwrap();
        space.start().await.unwrap();
        let schedules = space.schedules();
        space.env().sleep(secs(3_600 * 2)).await;
        assert_eq!(minutes(&seen, start), [0; 0]);

        // Triggered, although it is paused.
        schedules.trigger("h").await.unwrap();
        space.settled(secs(1)).await.unwrap();
        assert_eq!(taken(&seen).len(), 1);

        schedules.resume("h").await.unwrap();
        space.env().sleep(secs(3_600)).await;
        assert_eq!(minutes(&seen, start), [12 * 60]);

        // Made up for, except for what came, and only once.
        let hour = 3_600_000;
        let made = schedules.backfill("h", start + 9 * hour, start + 15 * hour).await.unwrap();
        space.settled(secs(1)).await.unwrap();
        assert_eq!(minutes(&seen, start), [9 * 60, 10 * 60, 11 * 60]);
        assert_eq!(made.len(), 3);
        assert!(made.is_sorted());
        assert_eq!(schedules.backfill("h", start + 9 * hour, start + 15 * hour).await.unwrap(), []);
        assert_eq!(schedules.backfill("h", start + 15 * hour, start).await.unwrap(), []);

        assert!(schedules.remove("h").await.unwrap());
        assert!(!schedules.remove("h").await.unwrap());
        space.env().sleep(DAY).await;
        assert_eq!(taken(&seen), []);
        assert_eq!(schedules.list().await.unwrap(), []);
        for error in [
            schedules.pause("h").await.unwrap_err(),
            schedules.resume("h").await.unwrap_err(),
            schedules.trigger("h").await.unwrap_err(),
            schedules.backfill("h", 0, 1).await.unwrap_err(),
        ] {
            assert_eq!(error.code(), "not-found");
        }
        space.stop().await.unwrap();
    });
}

#[test]
fn making_up_for_much_is_refused_at_its_limit() {
    let world = World::new(15);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        let node = reports(&space, &seen);
        space.schedule("s", "* * * * * *", &node, Report { page: 1 }).await.unwrap();
        space.start().await.unwrap();
        space.schedules().pause("s").await.unwrap();
        let max = limits::SCHEDULE_BACKFILL_MAX as u64;
        let from = world.now() - 100_000_000;
        assert!(space.schedules().backfill("s", from, from + (max + 1) * 1_000).await.is_err());
        let made = space.schedules().backfill("s", from, from + max * 1_000).await.unwrap();
        assert_eq!(made.len() as u64, max);
        space.settled(secs(10)).await.unwrap();
        let less = space.schedules().backfill("s", from - (max - 1) * 1_000, from).await.unwrap();
        assert_eq!(less.len() as u64, max - 1);
        space.stop().await.unwrap();
    });
}

#[test]
fn each_due_time_of_a_schedule_comes_exactly_once_whatever_crashes() {
    let seen = Seen::default();
    let hours = async |space: &Space| {
        let reports = reports(space, &seen);
        let defined =
            space.schedule("h", "@hourly", &reports, Report { page: 1 }).missed(Missed::All).await.is_ok();
        defined && space.start().await.is_ok()
    };
    let deaths = killed_at_each_commit(
        &async |_, space| {
            let defined = hours(space).await;
            space.env().sleep(secs(3_600 * 3 + 60)).await;
            defined
        },
        &async |_, space, defined| {
            assert!(hours(space).await);
            space.env().sleep(secs(3_600 * 3)).await;
            let count = ledger(space, "reports").count;
            assert!(count == 6 || (!defined && count == 3), "{count}");
        },
    );
    assert!(deaths >= 8, "only {deaths} deaths");
}

#[test]
fn a_clock_that_is_set_gives_no_due_time_twice() {
    let world = World::new(17);
    let seen = Seen::default();
    let start = world.now();
    world.sim.run(async {
        let space = world.space();
        let node = reports(&space, &seen);
        space.schedule("h", "@hourly", &node, Report { page: 1 }).missed(Missed::All).await.unwrap();
        space.start().await.unwrap();
        space.env().sleep(secs(3_600 * 2 + 60)).await;
        assert_eq!(minutes(&seen, start), [60, 120]);
        world.sim.jump_clock_back(secs(3_600 * 2));
        space.env().sleep(secs(3_600 * 2 + 120)).await;
        assert_eq!(minutes(&seen, start), [0; 0]);
        space.env().sleep(secs(3_600)).await;
        assert_eq!(minutes(&seen, start), [180]);
        // A century ahead: the last of what was missed, and then on from there.
        world.sim.jump_clock_forward(DAY * 36_525);
        space.env().sleep(secs(120)).await;
        assert_eq!(minutes(&seen, start).len(), limits::SCHEDULE_MISSED_MAX);
        // Set right again, it would be silent for a century, and is told to go on from now.
        world.sim.jump_clock_back(DAY * 36_525);
        space.env().sleep(secs(7_200)).await;
        assert_eq!(minutes(&seen, start), [0; 0]);
        space.schedules().resume("h").await.unwrap();
        space.env().sleep(secs(3_600)).await;
        assert_eq!(minutes(&seen, start).len(), 1);
        space.stop().await.unwrap();
    });
}

#[test]
fn a_day_that_comes_every_four_years_comes_then() {
    let world = World::new(18);
    let seen = Seen::default();
    let start = world.now();
    // From the eve of one leap day to that of the next.
    let eves = [DAY * (365 * 2 + 31 + 27) + secs(43_200), DAY * 1_460];
    for (round, eve) in (0..).zip(eves) {
        world.sim.run(async {
            let space = world.space();
            let node = reports(&space, &seen);
            space.schedule("leap", "0 0 29 2 *", &node, Report { page: 1 }).await.unwrap();
        });
        world.pass(eve);
        world.sim.run(async {
            let space = world.space();
            let node = reports(&space, &seen);
            space.schedule("leap", "0 0 29 2 *", &node, Report { page: 1 }).await.unwrap();
            space.start().await.unwrap();
            space.settled(secs(1)).await.unwrap();
            assert_eq!(taken(&seen), []);
            space.env().sleep(DAY).await;
            let first = (365 * 2 + 31 + 28) * 1_440;
            assert_eq!(minutes(&seen, start), [first + round * 1_461 * 1_440]);
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn a_store_that_fails_for_a_while_only_delays_what_is_due() {
    let world = World::new(19);
    let seen = Seen::default();
    let start = world.now();
    let store = world.store();
    world.sim.run(async {
        let space = world.space_over(&store);
        let node = reports(&space, &seen);
        space.schedule("m", "* * * * *", &node, Report { page: 1 }).missed(Missed::All).await.unwrap();
        space.start().await.unwrap();
        store.fails(500);
        space.env().sleep(secs(1_800)).await;
        store.fails(0);
        space.env().sleep(secs(90)).await;
        let all: Vec<_> = (1..=31).collect();
        assert_eq!(minutes(&seen, start), all);
        store.fill(true);
        space.env().sleep(secs(600)).await;
        assert_eq!(minutes(&seen, start), [0; 0]);
        store.fill(false);
        space.env().sleep(secs(10)).await;
        assert_eq!(minutes(&seen, start), (32..=41).collect::<Vec<_>>());
        assert_eq!(ledger(&space, "reports").count, 41);
        space.stop().await.unwrap();
    });
}

fn numbers(seen: &Seen) -> Vec<u64> {
    taken(seen).iter().map(|(_, what)| what.parse().unwrap()).collect()
}

/// A node that notes the ids of orders.
fn noting(node: &Node, space: &Space, seen: &Seen) {
    let (noted, known) = (Arc::clone(seen), space.clone());
    node.on("order", move |order: &Event<Order>, cx: &Context| {
        note(&noted, &known, order.id.to_string());
        cx.state::<Ledger>().set(|ledger| Ledger { count: ledger.count + 1, ..ledger })
    });
}

#[test]
fn so_many_flows_of_a_key_begin_within_a_span_and_the_others_wait_also_over_restarts() {
    let world = World::new(20);
    let seen = Seen::default();
    let make = |space: &Space| {
        let node = space.node("mails").rate_by(|order: &Order| order.id % 2, 3, secs(60));
        noting(&node, space, &seen);
    };
    world.sim.run(async {
        let space = world.space();
        make(&space);
        space.start().await.unwrap();
        for id in 0..20 {
            space.send("mails", Order { id }).await.unwrap();
        }
        space.settled(secs(1)).await.unwrap();
        let mut first = numbers(&seen);
        first.sort_unstable();
        assert_eq!(first, [0, 1, 2, 3, 4, 5]);
        assert_eq!(space.find("mails").unwrap().flows().len(), 14);
        space.env().sleep(secs(30)).await;
        space.stop().await.unwrap();
    });
    let mut begun = Vec::new();
    world.sim.run(async {
        let space = world.space();
        make(&space);
        space.start().await.unwrap();
        // The three of each key that began half a minute ago count.
        space.send("mails", Order { id: 20 }).await.unwrap();
        space.env().sleep(secs(29)).await;
        assert_eq!(numbers(&seen), [0; 0]);
        space.env().sleep(secs(240)).await;
        begun.extend(taken(&seen));
        space.stop().await.unwrap();
    });
    let of_key = |key| {
        let all = begun.iter().map(|(at, what)| (*at, what.parse::<u64>().unwrap()));
        all.filter(|(_, id)| id % 2 == key).collect::<Vec<_>>()
    };
    for key in [0, 1] {
        let begun = of_key(key);
        let mut ids: Vec<_> = begun.iter().map(|(_, id)| *id).collect();
        ids.sort_unstable();
        let expected: Vec<_> = (6..=20).filter(|id| id % 2 == key).collect();
        assert_eq!(ids, expected);
        for window in begun.windows(4) {
            assert!(window[3].0 - window[0].0 >= 60_000, "{begun:?}");
        }
    }
}

#[test]
fn flows_that_began_and_ended_before_a_restart_count_for_the_rate() {
    let world = World::new(21);
    let seen = Seen::default();
    let make = |space: &Space| {
        let node = space.node("mails").rate_by(|_: &Order| (), 2, secs(60));
        noting(&node, space, &seen);
    };
    for round in 0..4_u64 {
        world.sim.run(async {
            let space = world.space();
            make(&space);
            space.start().await.unwrap();
            space.send("mails", Order { id: round }).await.unwrap();
            space.env().sleep(secs(1)).await;
            space.stop().await.unwrap();
        });
    }
    assert_eq!(numbers(&seen), [0, 1]);
    world.sim.run(async {
        let space = world.space();
        make(&space);
        space.start().await.unwrap();
        space.env().sleep(secs(62)).await;
        assert_eq!(numbers(&seen), [2, 3]);
        space.stop().await.unwrap();
    });
}

#[test]
fn rates_have_limits() {
    let world = World::new(25);
    world.sim.run(async {
        let max = limits::RATE_FLOWS_MAX;
        for (flows, is_taken) in [(0, false), (1, true), (max - 1, true), (max, true), (max + 1, false)] {
            let space = world.space();
            let node = space.node("mails").rate_by(|order: &Order| order.id, flows, secs(1));
            assert_eq!(space.start().await.is_ok(), is_taken, "{flows} at {node:?}");
            drop(space.stop().await);
        }
    });
}

#[test]
fn what_is_looked_for_in_the_log_of_a_rate_is_bounded_at_its_limit() {
    let max = limits::RATE_LOOK_RECORDS_MAX as u64;
    for (records, is_counted) in [(max - 1, true), (max, true), (max + 1, false)] {
        let world = World::new(26);
        let seen = Seen::default();
        let make = |space: &Space| {
            let node = space.node("mails").rate_by(|order: &Order| order.id, 1, DAY);
            noting(&node, space, &seen);
        };
        // Each event is one record, and the first is the one that is looked for.
        world.sim.run(async {
            let space = world.space();
            make(&space);
            space.start().await.unwrap();
            for id in 0..records {
                space.send("mails", Order { id }).await.unwrap();
            }
            space.settled(secs(10)).await.unwrap();
            space.stop().await.unwrap();
        });
        taken(&seen);
        world.sim.run(async {
            let space = world.space();
            make(&space);
            space.start().await.unwrap();
            space.send("mails", Order { id: 0 }).await.unwrap();
            space.settled(secs(10)).await.unwrap();
            assert_eq!(numbers(&seen).is_empty(), is_counted, "{records}");
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn flows_that_are_held_back_count_for_the_queue_and_can_be_cancelled() {
    let world = World::new(22);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        let node = space.node("mails").rate_by(|_: &Order| (), 1, secs(60)).queue_limit(2);
        noting(&node, &space, &seen);
        space.start().await.unwrap();
        let mut sent = Vec::new();
        for id in 0..3 {
            sent.push(space.send("mails", Order { id }).await.unwrap().event_id());
            space.settled(secs(1)).await.unwrap();
        }
        assert_eq!(space.send("mails", Order { id: 3 }).await.unwrap_err().code(), "busy");
        assert_eq!(node.cancel(sent[1]), 1);
        space.settled(secs(1)).await.unwrap();
        assert_eq!(world.documents("flow/").await.len(), 1);
        assert_eq!(world.documents("dead/").await.len(), 0);
        space.env().sleep(secs(200)).await;
        assert_eq!(numbers(&seen), [0, 2]);
        space.stop().await.unwrap();
    });
}

fn search(space: &Space, seen: &Seen) -> Node {
    let node = space.node("search").debounce_by(|order: &Order| order.id / 10, secs(5));
    noting(&node, space, seen);
    node
}

#[test]
fn of_events_that_come_in_quick_succession_the_last_one_is_handled() {
    let world = World::new(23);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        search(&space, &seen);
        space.start().await.unwrap();
        let first = space.send("search", Order { id: 10 }).await.unwrap();
        let asked = ask_beside(&space, Order { id: 11 });
        for id in [12, 20, 13] {
            space.env().sleep(secs(2)).await;
            space.send("search", Order { id }).await.unwrap();
        }
        assert_eq!(numbers(&seen), [0; 0]);
        let error = asked.lock().unwrap().take().unwrap().unwrap_err();
        assert_eq!(error.code(), "cancelled");
        assert!(error.chain().join(" ").contains("took its place"), "{error:?}");
        space.env().sleep(secs(6)).await;
        assert_eq!(numbers(&seen), [20, 13]);
        // Superseded ones are recorded and are no failures.
        assert_eq!(world.documents("flow/").await.len() + world.documents("dead/").await.len(), 0);
        assert!(space.impact(first.event_id()).await.unwrap().is_empty());
        assert_eq!(ledger(&space, "search").count, 2);
        space.stop().await.unwrap();
    });
}

/// Asks beside the test, and keeps what came of it.
fn ask_beside(space: &Space, order: Order) -> Arc<Mutex<Option<happen::Result<()>>>> {
    let (kept, space) = (Arc::default(), space.clone());
    let told: Arc<Mutex<Option<happen::Result<()>>>> = Arc::clone(&kept);
    let env = Arc::clone(space.env());
    env.spawn(Box::pin(async move {
        let reply = space.send("search", order).reply::<()>().await.map(drop);
        *told.lock().unwrap() = Some(reply);
    }));
    kept
}

#[test]
fn quiet_is_waited_for_over_restarts_whatever_crashes() {
    let seen = Seen::default();
    let deaths = killed_at_each_commit(
        &async |_, space| {
            search(space, &seen);
            let mut acknowledged = Vec::new();
            if space.start().await.is_err() {
                return acknowledged;
            }
            for id in [10, 11, 12] {
                if space.send("search", Order { id }).await.is_ok() {
                    acknowledged.push(id);
                }
                space.env().sleep(secs(1)).await;
            }
            acknowledged
        },
        &async |world, space, acknowledged| {
            taken(&seen);
            search(space, &seen);
            space.start().await.unwrap();
            space.env().sleep(secs(20)).await;
            // The last one of which the sender knows, or a later one that was stored and not heard of.
            let handled = numbers(&seen);
            assert!(handled.len() <= 1, "{handled:?}");
            assert!(handled.last() >= acknowledged.last(), "{handled:?} {acknowledged:?}");
            assert_eq!(world.documents("flow/").await.len(), 0);
        },
    );
    assert!(deaths >= 4, "only {deaths} deaths");
}

#[test]
fn a_store_that_fails_loses_no_timer_and_no_flow_that_is_held_back() {
    for seed in 0..60 {
        let world = World::new(seed);
        let seen = Seen::default();
        let store = world.store();
        world.sim.run(async {
            let space = world.space_over(&store);
            orders(&space, &seen);
            search(&space, &Seen::default());
            let mails = space.node("mails").rate_by(|_: &Order| (), 2, secs(10));
            noting(&mails, &space, &Seen::default());
            space.start().await.unwrap();
            store.fails(300);
            let mut asked = 0;
            let mut sent = 0;
            for id in 0..10 {
                // What the sender was told of is handled; what failed may be.
                asked += u64::from(space.send("orders", Order { id }).reply::<()>().await.is_ok());
                sent += u64::from(space.send("mails", Order { id }).await.is_ok());
                drop(space.send("search", Order { id: 10 + id % 2 }).await);
            }
            space.env().sleep(secs(1_800)).await;
            store.fails(0);
            space.env().sleep(secs(3_600)).await;
            space.settled(secs(60)).await.unwrap();
            let Ledger { count, reminded } = ledger(&space, "orders");
            assert_eq!(count, reminded, "seed {seed}");
            assert!(count >= asked, "seed {seed}");
            assert!(ledger(&space, "mails").count >= sent, "seed {seed}");
            assert!(ledger(&space, "search").count <= 1, "seed {seed}");
            for prefix in ["flow/", "timer/", "dead/"] {
                assert_eq!(world.documents(prefix).await, [""; 0], "seed {seed}");
            }
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn so_many_flows_of_a_key_run_at_once() {
    for durable in [true, false] {
        let world = World::new(24);
        let most = Arc::new(Mutex::new((0_u32, 0_u32)));
        world.sim.run(async {
            let space = world.space();
            let node = space.node("work").concurrent_by(|order: &Order| order.id % 2, 3);
            let node = if durable { node } else { node.ephemeral() };
            let (counted, env) = (Arc::clone(&most), world.sim.env());
            node.on("order", move |_: Event<Order>, _: Context| {
                let (counted, env) = (Arc::clone(&counted), Arc::clone(&env));
                async move {
                    {
                        let mut counts = counted.lock().unwrap();
                        counts.0 += 1;
                        counts.1 = counts.1.max(counts.0);
                    }
                    // Not the sleep of a context, which gives the place away.
                    env.sleep(secs(1)).await;
                    counted.lock().unwrap().0 -= 1;
                }
            });
            space.start().await.unwrap();
            for id in 0..20 {
                space.send("work", Order { id }).await.unwrap();
            }
            space.settled(secs(100)).await.unwrap();
        });
        assert_eq!(*most.lock().unwrap(), (0, 6), "durable: {durable}");
    }
}

#[test]
fn an_event_that_is_sent_again_under_its_key_is_answered_and_not_handled_again() {
    let world = World::new(30);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        let node = space.node("payments");
        noting(&node, &space, &seen);
        node.on("paid", |paid: &Event<Paid>, _: &Context| paid.id * 2);
        space.start().await.unwrap();
        let pay = || space.send("payments", Paid { id: 21 }).idempotency_key("k/%1");
        let first = pay().reply::<u64>().await.unwrap();
        let again = pay().reply::<u64>().await.unwrap();
        assert_eq!((*first, &first), (42, &again));
        assert_eq!(pay().await.unwrap().event_id(), again.event_id());
        // At once: one is the first.
        let order = || space.send("payments", Order { id: 1 }).idempotency_key("order");
        let (a, b) = (order().into_future(), order().into_future());
        let (a, b) = (a.await.unwrap(), b.await.unwrap());
        assert_eq!(a, b);
        space.settled(secs(1)).await.unwrap();
        assert_eq!(numbers(&seen), [1]);
        // Something else under the same key is a mistake of the sender's, and at another node it is another key.
        let error = space.send("payments", Order { id: 2 }).idempotency_key("order").await.unwrap_err();
        assert_eq!(error.code(), "conflict");
        let other = space.node("others");
        noting(&other, &space, &seen);
        space.send("others", Order { id: 2 }).idempotency_key("order").await.unwrap();
        space.settled(secs(1)).await.unwrap();
        assert_eq!(numbers(&seen), [2]);
        space.stop().await.unwrap();
    });
}

#[test]
fn keys_are_refused_where_nobody_would_remember_them() {
    let world = World::new(31);
    let seen = Seen::default();
    world.sim.run(async {
        let space = world.space();
        let cache = space.node("cache").ephemeral();
        noting(&cache, &space, &seen);
        let node = space.node("orders").attempts(1, secs(1));
        node.on("order", async |order: Event<Order>, cx: Context| {
            cx.send("cache", Order { id: order.id }).idempotency_key("k").await.map(drop)
        });
        space.start().await.unwrap();
        for error in [
            space.send("cache", Order { id: 1 }).idempotency_key("k").await.unwrap_err(),
            space.send("orders", Order { id: 1 }).reply::<()>().await.unwrap_err(),
            space.send("orders", Order { id: 1 }).idempotency_key("").await.unwrap_err(),
            space.send("orders", vec![Order { id: 1 }]).idempotency_key("k").await.unwrap_err(),
        ] {
            assert_eq!(error.code(), "misuse", "{error}");
        }
        space.send("orders", Order { id: 1 }).idempotency_key("k").forget();
        assert_eq!(space.dead_letters().len(), 1);
        assert_eq!(numbers(&seen), [0; 0]);
        space.stop().await.unwrap();
    });
}

#[test]
fn an_event_with_a_key_is_handled_once_whatever_crashes() {
    let seen = Seen::default();
    let make = |space: &Space| {
        let node = space.node("payments");
        noting(&node, space, &seen);
    };
    let deaths = killed_at_each_commit(
        &async |_, space| {
            make(space);
            if space.start().await.is_err() {
                return None;
            }
            let sent = space.send("payments", Order { id: 1 }).idempotency_key("k").reply::<()>().await;
            sent.ok().map(|reply| reply.event_id())
        },
        &async |_, space, first| {
            make(space);
            space.start().await.unwrap();
            let again =
                space.send("payments", Order { id: 1 }).idempotency_key("k").reply::<()>().await.unwrap();
            assert!(first.is_none_or(|first| first == again.event_id()));
            space.settled(secs(10)).await.unwrap();
            assert_eq!(ledger(space, "payments").count, 1);
        },
    );
    assert!(deaths >= 4, "only {deaths} deaths");
}

#[test]
fn a_store_that_fails_leaves_no_doubt_about_a_key() {
    for seed in 0..50 {
        let world = World::new(seed);
        let seen = Seen::default();
        let store = world.store();
        world.sim.run(async {
            let space = world.space_over(&store);
            let node = space.node("payments");
            noting(&node, &space, &seen);
            space.start().await.unwrap();
            store.fails(400);
            for id in 0..5 {
                let mut tries = 0;
                while let Err(error) =
                    space.send("payments", Order { id }).idempotency_key(format!("k{id}")).reply::<()>().await
                {
                    tries += 1;
                    assert!(tries < 100 && error.code() == "io", "{error}");
                }
            }
            store.fails(0);
            space.settled(secs(60)).await.unwrap();
            assert_eq!(ledger(&space, "payments").count, 5, "seed {seed}");
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn keys_are_forgotten_after_their_window() {
    let world = World::new(33);
    let seen = Seen::default();
    let window = millis(limits::IDEMPOTENCY_WINDOW_MS);
    let space = || {
        let space = world.space();
        let node = space.node("payments");
        noting(&node, &space, &seen);
        space
    };
    let send = async |space: &Space, id: u64| {
        space.send("payments", Order { id }).idempotency_key(format!("k{id}")).reply::<()>().await.unwrap();
    };
    world.sim.run(async {
        let space = space();
        space.start().await.unwrap();
        send(&space, 1).await;
        space.env().sleep(window - secs(60)).await;
        send(&space, 1).await;
        assert_eq!(numbers(&seen), [1]);
        space.env().sleep(secs(61)).await;
        send(&space, 1).await;
        assert_eq!(numbers(&seen), [1]);
        for id in 2..1_500 {
            send(&space, id).await;
        }
        taken(&seen);
        space.env().sleep(window + millis(limits::SEEN_SWEEP_MS) + secs(10)).await;
        assert_eq!(world.documents("seen/").await, [""; 0]);
        send(&space, 2).await;
        assert_eq!(numbers(&seen), [2]);
        space.stop().await.unwrap();
    });
    world.pass(window * 2);
    // What an earlier process kept is forgotten, too.
    world.sim.run(async {
        let space = space();
        assert_eq!(world.documents("seen/").await.len(), 1);
        space.start().await.unwrap();
        space.env().sleep(secs(1)).await;
        assert_eq!(world.documents("seen/").await, [""; 0]);
        space.stop().await.unwrap();
    });
}
