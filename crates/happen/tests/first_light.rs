//! The smallest real programs: what a newcomer writes first must work as it reads.
#![expect(clippy::disallowed_methods, reason = "tests with real tasks start them themselves")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use happen::{Batch, Context, Error, ErrorKind, Event, Space, Step, done, goto, next, with};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("create-order")]
struct CreateOrder {
    customer: String,
    cents: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Charge {
    cents: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Paid {
    cents: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.placed")]
struct OrderPlaced {
    customer: String,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Accepted {
    customer: String,
    paid: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Rejected {
    reason: String,
}

async fn validate(order: Event<CreateOrder>, cx: Context) -> happen::Result<Step> {
    if order.cents == 0 {
        return done(Rejected { reason: "nothing to pay".into() });
    }
    cx.put("total", order.cents + 1)?;
    next(charge)
}

async fn charge(order: Event<CreateOrder>, cx: Context) -> happen::Result<Step> {
    let cents: u64 = cx.get("total")?;
    let paid = cx.send("payments", Charge { cents }).reply::<Paid>().await?;
    cx.broadcast(OrderPlaced { customer: order.customer.clone() })?;
    done(Accepted { customer: order.customer.clone(), paid: paid.cents })
}

async fn slow_payment(charge: Event<Charge>, cx: Context) -> happen::Result<Step> {
    cx.sleep(Duration::from_millis(1)).await;
    done(Paid { cents: charge.cents })
}

#[tokio::test]
async fn an_order_is_placed() -> happen::Result<()> {
    let space = Space::memory();
    let orders = space.node("orders");
    let payments = space.node("payments");
    let audit = space.node("audit");
    let heard = Arc::new(AtomicU64::new(0));
    orders.on("create-order", validate).step(charge).check()?;
    payments.on("charge", slow_payment).check()?;
    let count = Arc::clone(&heard);
    audit
        .on("order.*", move |_: &Event, _: &Context| {
            count.fetch_add(1, Ordering::SeqCst);
        })
        .check()?;
    space.start().await?;
    let order = CreateOrder { customer: "Ada".into(), cents: 41 };
    let reply = space.send(&orders, order.clone()).correlation("order-789").reply::<Accepted>().await?;
    assert_eq!(*reply, Accepted { customer: "Ada".into(), paid: 42 });
    assert_eq!(heard.load(Ordering::SeqCst), 1);
    let trace = space.trace("order-789").await?;
    println!("{trace}");
    assert_eq!(trace.lines().len(), 3);
    let empty = CreateOrder { cents: 0, ..order };
    let either = space.send("orders", empty).reply::<Result<Accepted, Rejected>>().await?;
    assert_eq!(either.into_inner(), Err(Rejected { reason: "nothing to pay".into() }));
    space.stop().await
}

#[tokio::test]
async fn failures_are_typed() -> happen::Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    node.on("create-order", |order: &Event<CreateOrder>, _: &Context| -> happen::Result<Step> {
        match order.cents {
            0 => panic!("no cents"),
            1 => Err(Error::msg("one cent")),
            2 => goto("nowhere"),
            _ => done(order.cents),
        }
    })
    .check()?;
    let errors = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&errors);
    space
        .on("*.error", move |failure: &Event<happen::Failure>, _: &Context| {
            assert_eq!(failure.node, "node");
            count.fetch_add(1, Ordering::SeqCst);
        })
        .check()?;
    let order = |cents| CreateOrder { customer: "x".into(), cents };
    assert_eq!(space.send(&node, order(1)).await.unwrap_err().code(), "not-started");
    space.start().await?;
    for (cents, code) in [(0, "panicked"), (1, "failed"), (2, "unknown-step")] {
        let error = space.send(&node, order(cents)).reply::<u64>().await.unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
        assert!(error.event_id().is_some());
    }
    assert_eq!(errors.load(Ordering::SeqCst), 3);
    let unknown = space.send("nobody", order(1)).await.unwrap_err();
    assert_eq!(unknown.code(), "no-such-node");
    assert!(space.trace(unknown.event_id().unwrap()).await.is_ok());
    assert_eq!(space.send(&node, Charge { cents: 1 }).await.unwrap_err().code(), "no-handler");
    let other = space.send(&node, order(5)).reply::<String>().await.unwrap_err();
    assert!(matches!(other.kind(), ErrorKind::OtherReply { .. }));
    Ok(())
}

async fn add(total: Arc<AtomicU64>, batch: Batch<Charge>, _: Context) -> happen::Result<Step> {
    done(batch.payloads().map(|charge| charge.cents).sum::<u64>() + total.load(Ordering::SeqCst))
}

#[tokio::test]
async fn batches_and_fan_out() -> happen::Result<()> {
    let space = Space::memory();
    let (a, b) = (space.node("a"), space.node("b"));
    a.on("charge", with(Arc::new(AtomicU64::new(1)), add)).check()?;
    b.on("charge", |charge: &Event<Charge>, _: &Context| charge.cents).check()?;
    space.start().await?;
    let charges = [Charge { cents: 1 }, Charge { cents: 2 }, Charge { cents: 3 }];
    let sum = space.send(&a, charges.clone()).reply::<u64>().await?;
    assert_eq!(*sum, 7);
    let replies = space.send([&a, &b], Charge { cents: 5 }).replies::<u64>().await;
    assert_eq!(**replies["a"].as_ref().unwrap(), 6);
    assert_eq!(**replies["b"].as_ref().unwrap(), 5);
    Ok(())
}

#[tokio::test]
async fn a_serial_node_takes_one_at_a_time_and_tells_of_dead_locks() -> happen::Result<()> {
    let space = Space::memory();
    let node = space.node("actor").serial();
    let inside = Arc::new(AtomicU64::new(0));
    node.on(
        "charge",
        with(Arc::clone(&inside), async |inside: Arc<AtomicU64>, charge: Event<Charge>, cx: Context| {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            cx.sleep(Duration::from_millis(1)).await;
            assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
            charge.cents
        }),
    )
    .check()?;
    node.on("create-order", async |_: Event<CreateOrder>, cx: Context| -> happen::Result<Step> {
        let cents = cx.send("actor", Charge { cents: 1 }).reply::<u64>().await?;
        done(*cents)
    })
    .check()?;
    space.start().await?;
    let asks: Vec<_> = (0..20)
        .map(|cents| {
            let space = space.clone();
            tokio::spawn(async move {
                space.send("actor", Charge { cents }).reply::<u64>().await.unwrap().into_inner()
            })
        })
        .collect();
    for (index, ask) in asks.into_iter().enumerate() {
        assert_eq!(ask.await.unwrap(), index as u64);
    }
    let order = CreateOrder { customer: "x".into(), cents: 1 };
    let error = space.send("actor", order).reply::<u64>().within(Duration::from_secs(20)).await.unwrap_err();
    assert!(error.to_string().contains("actor -> actor"), "{error:?}");
    Ok(())
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Count {
    to: u64,
}

async fn count(count: Event<Count>, cx: Context) -> happen::Result<Step> {
    for number in 1..=count.to {
        cx.emit(number).await?;
    }
    done(count.to)
}

#[test]
fn a_stream_ends_with_its_handler_whether_it_waited_or_not() {
    let sim = happen_testing::Simulator::new(1);
    sim.run(async {
        let space = Space::in_env(happen::Config::default(), sim.env()).unwrap();
        let node = space.node("counter");
        node.on("count", count).check().unwrap();
        space.start().await.unwrap();
        // One that fits into the channel, so that the handler never waits, and one that does not.
        for to in [3, 100] {
            let mut items = space.send(&node, Count { to }).stream::<u64>();
            for number in 1..=to {
                assert_eq!(items.next().await.unwrap().unwrap(), number);
            }
            assert!(items.next().await.is_none());
            assert_eq!(items.finish::<u64>().await.unwrap(), to);
        }
    });
}

#[test]
fn a_stream_ends_with_its_flow_and_not_with_who_keeps_the_context() {
    let sim = happen_testing::Simulator::new(1);
    sim.run(async {
        let space = Space::in_env(happen::Config::default(), sim.env()).unwrap();
        let node = space.node("counter");
        let (to, mut codes) = tokio::sync::mpsc::channel(1);
        node.on(
            "count",
            with(to, async |codes: tokio::sync::mpsc::Sender<&'static str>, _: Event<Count>, cx: Context| {
                let later = cx.clone();
                cx.spawn(async move {
                    later.sleep(Duration::from_millis(5)).await;
                    let error = later.emit(7u64).await.unwrap_err();
                    later.put("left behind", 1u64).unwrap();
                    codes.send(error.code()).await.unwrap();
                });
                cx.emit(1u64).await
            }),
        )
        .check()
        .unwrap();
        node.on("look", |_: &Event, cx: &Context| cx.get::<u64>("left behind").is_err()).check().unwrap();
        space.start().await.unwrap();
        let items = space.send(&node, Count { to: 1 }).stream::<u64>();
        assert_eq!(items.collect().await.unwrap(), [1]);
        assert_eq!(codes.recv().await, Some("closed"));
        let look = Event::new("look", serde_json::json!(null));
        assert!(space.send(&node, look).reply::<bool>().await.unwrap().into_inner());
    });
}
