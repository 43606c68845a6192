//! Durable nodes: steps that are committed, flows that go on where a process ended, and what each of them sends and
//! remembers. The store is the one in memory, so that what a process leaves behind is looked at in virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use happen::store::{MemoryStore, Store};
use happen::{Config, Context, Error, ErrorKind, Event, Space, Step, done, next, secs};
use happen_testing::Simulator;
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

/// A store and the simulator that its spaces run in.
struct World {
    sim: Simulator,
    store: Arc<dyn Store>,
}

impl World {
    fn new(seed: u64) -> Self {
        let sim = Simulator::new(seed);
        let store = Arc::new(MemoryStore::new(sim.env()));
        Self { sim, store }
    }

    /// A space over what an earlier one left behind.
    fn space(&self) -> Space {
        Space::with_store(Config::default(), self.sim.env(), Arc::clone(&self.store)).unwrap()
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
