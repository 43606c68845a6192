//! Durable nodes: steps that are committed, flows that go on where a process ended, and what each of them sends and
//! remembers. The store is the one in memory, so that what a process leaves behind is looked at in virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use happen::store::{MemoryStore, Store};
use happen::{Config, Context, Error, Event, Space, Step, done, next, secs};
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
