//! A small shop of three nodes: orders, payments and a ledger, with everything a real program starts from.
//!
//! You learn flows of several steps, request and reply between nodes, state that a node keeps, broadcasting, refusing
//! with a value, handling failures where everyone can see them, and asking what an order caused. Run it with
//! `cargo run --example orders`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use happen::{Context, Error, Event, Failure, Space, Step, done, millis, next, secs, with};
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize)]
struct Item {
    name: String,
    cents: u64,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("create-order")]
struct CreateOrder {
    customer: String,
    items: Vec<Item>,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("charge")]
struct Charge {
    cents: u64,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
struct Paid {
    payment: String,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("order.placed")]
struct OrderPlaced {
    customer: String,
    cents: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Accepted {
    payment: String,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Rejected {
    reason: String,
}

/// What the orders node keeps between events. Nobody else can change it.
#[derive(happen::State, Default, Clone, Serialize, Deserialize)]
#[state("orders", version = 1)]
struct Orders {
    paid: Vec<String>,
    cents: u64,
}

impl Orders {
    fn with_paid(mut self, payment: &str, cents: u64) -> Self {
        self.paid.push(payment.to_owned());
        self.cents += cents;
        self
    }
}

/// First step. A value ends the flow, and a refusal is a value; a function goes on with it.
async fn validate(order: Event<CreateOrder>, cx: Context) -> happen::Result<Step> {
    if order.items.is_empty() {
        return done(Rejected { reason: "no items".into() });
    }
    let cents: u64 = order.items.iter().map(|item| item.cents).sum();
    cx.put("total", cents)?;
    next(charge)
}

/// Second step: asks another node, changes the state and tells everyone. A change is a function of the state as it is
/// then, so none is lost however many orders are under way. `?` hands its failure on to whoever sent the order.
async fn charge(order: Event<CreateOrder>, cx: Context) -> happen::Result<Step> {
    let cents: u64 = cx.get("total")?;
    let charge = cx.send("payments", Charge { cents });
    let paid = charge.reply::<Paid>().within(secs(2)).await?;
    let payment = paid.payment.clone();
    cx.state::<Orders>().set(move |orders| orders.with_paid(&payment, cents))?;
    cx.broadcast(OrderPlaced { customer: order.customer.clone(), cents })?;
    done(Accepted { payment: paid.payment.clone() })
}

/// The payment takes a while; no other event waits for it meanwhile.
async fn pay(charge: Event<Charge>, cx: Context) -> happen::Result<Step> {
    cx.sleep(millis(20)).await;
    if charge.cents > 100_000 {
        return Err(Error::msg("the bank wants to see the customer first"));
    }
    done(Paid { payment: format!("payment-of-{}", charge.cents) })
}

#[tokio::main]
async fn main() -> happen::Result<()> {
    let revenue = Arc::new(AtomicU64::new(0));
    let failures = Arc::new(AtomicU64::new(0));

    let space = Space::memory();
    let orders = space.node("orders");
    orders.on("create-order", validate).step(charge);
    let payments = space.node("payments").max_concurrent(10);
    payments.on("charge", pay);
    let ledger = space.node("ledger");
    ledger.on(
        "order.*",
        with(Arc::clone(&revenue), |revenue: Arc<AtomicU64>, placed: &Event<OrderPlaced>, _: &Context| {
            revenue.fetch_add(placed.cents, Ordering::SeqCst);
        }),
    );
    let counted = Arc::clone(&failures);
    space.on("**.error", move |failure: &Event<Failure>, _: &Context| {
        println!("{} failed at {}: {}", failure.event_type, failure.node, failure.causes.join(", "));
        counted.fetch_add(1, Ordering::SeqCst);
    });
    space.start().await?;

    let order = |cents| CreateOrder {
        customer: "Ada".into(),
        items: vec![Item { name: "lamp".into(), cents }, Item { name: "shade".into(), cents: 900 }],
    };
    let reply = space.send(&orders, order(4_100)).correlation("order-789").reply::<Accepted>().await?;
    println!("accepted: {}", reply.payment);
    assert_eq!(reply.payment, "payment-of-5000");

    let nothing = CreateOrder { customer: "Bob".into(), items: Vec::new() };
    let reply = space.send(&orders, nothing).reply::<Result<Accepted, Rejected>>().await?;
    println!("rejected: {:?}", *reply);
    assert_eq!(*reply, Err(Rejected { reason: "no items".into() }));

    // A failure reaches the sender through both nodes, and everyone who watches errors.
    let failed = space.send(&orders, order(200_000)).reply::<Accepted>().await;
    let error = failed.err().ok_or_else(|| Error::msg("the bank let it pass"))?;
    println!("failed: {error}");
    assert_eq!(error.code(), "failed");
    assert_eq!(failures.load(Ordering::SeqCst), 2);
    assert_eq!(revenue.load(Ordering::SeqCst), 5_000);
    orders.state::<Orders>().get(|orders| assert_eq!((orders.paid.len(), orders.cents), (1, 5_000)));

    // What the first order caused, by the name its sender chose.
    let trace = space.trace("order-789").await?;
    let types: Vec<_> = trace.lines().iter().map(|line| line.event_type.as_str()).collect();
    println!("order-789: {}", types.join(" > "));
    assert_eq!(types, ["create-order", "charge", "order.placed"]);
    space.stop().await
}
