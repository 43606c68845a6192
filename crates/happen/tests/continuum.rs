//! Flows: their steps, what they share, how they end, and that a simulated one repeats exactly.
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use happen::wrap::{Backoff, fallback, parallel, retry, timeout};
use happen::{
    Config, Context, Dynamic, Error, ErrorKind, Event, EventId, Node, Result, Space, Step, again, done, goto,
    millis, next, next_with, secs, with,
};
use happen_testing::Simulator;
use serde_json::json;

fn run<F, Fut, R>(seed: u64, test: F) -> R
where
    F: FnOnce(Space, Node) -> Fut,
    Fut: Future<Output = R>,
{
    let sim = Simulator::new(seed);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    let node = space.node("node");
    sim.run(test(space, node))
}

fn go(content: serde_json::Value) -> Dynamic {
    Event::new("go", content)
}

fn count(cx: &Context) -> Result<u32> {
    let turns = cx.take::<u32>("turns").unwrap_or(0) + 1;
    cx.put("turns", turns)?;
    Ok(turns)
}

#[test]
fn a_loop_of_exactly_so_many_steps_is_allowed() {
    fn plain(event: &Event, cx: &Context) -> Result<Step> {
        if u64::from(count(cx)?) < event.get("turns").unwrap().as_u64().unwrap() {
            again()
        } else {
            done(true)
        }
    }
    async fn waiting(event: Event, cx: Context) -> Result<Step> {
        cx.sleep(millis(1)).await;
        plain(&event, &cx)
    }
    async fn ready(event: Event, cx: Context) -> Result<Step> {
        plain(&event, &cx)
    }
    run(1, async |space, node| {
        let _limited = node.steps_max(10);
        let (second, third) = (space.node("second").steps_max(10), space.node("third").steps_max(10));
        let node = space.find("node").unwrap();
        node.on("go", plain).check().unwrap();
        second.on("go", waiting).check().unwrap();
        third.on("go", ready).check().unwrap();
        space.start().await.unwrap();
        for node in [&node, &second, &third] {
            for turns in [9, 10] {
                let event = go(json!({ "turns": turns }));
                assert!(*space.send(node, event).reply::<bool>().await.unwrap());
            }
            let error = space.send(node, go(json!({ "turns": 11 }))).reply::<bool>().await.unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::Runaway { limit: "steps_max", max: 10, .. }),
                "{error:?}"
            );
        }
    });
}

#[test]
fn earlier_steps_are_run_again_by_name() {
    async fn check(_: Event, cx: Context) -> Result<Step> {
        if count(&cx)? < 4 { next(repair) } else { done(cx.get::<u32>("repairs")?) }
    }
    fn repair(_: &Event, cx: &Context) -> Result<Step> {
        let repairs = cx.get::<u32>("repairs").unwrap_or(0);
        cx.put("repairs", repairs + 1)?;
        goto("check")
    }
    run(1, async |space, node| {
        node.on("go", check).step(repair).check().unwrap();
        space.start().await.unwrap();
        let reply = space.send(&node, go(json!({}))).reply::<u32>().await.unwrap();
        assert_eq!(*reply, 3);
        let trace = space.trace(reply.event_id()).await.unwrap();
        let steps = &trace.lines()[0].handled[0].steps;
        assert_eq!(steps.join(" "), "repair check repair check repair check");
        assert!(trace.to_string().contains("node > repair > check > repair"), "{trace}");
    });
}

#[test]
fn a_bare_end_ends_the_flow_and_the_caller_reads_nothing() {
    run(1, async |space, node| {
        node.on("go", async |event: Event, _: Context| -> Result<Step> {
            if event.get("on") == Some(&json!(true)) {
                return next(|_: &Event, _: &Context| ());
            }
            happen::IntoStep::into_step(())
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        for on in [true, false] {
            space.send(&node, go(json!({ "on": on }))).reply::<()>().await.unwrap();
            let error = space.send(&node, go(json!({ "on": on }))).reply::<u64>().await.unwrap_err();
            assert_eq!(error.code(), "other-reply");
        }
    });
}

#[test]
fn a_step_is_handed_state_by_its_caller() {
    async fn first(_: Event, _: Context) -> Result<Step> {
        next_with(second, (2u64, "x".to_owned()))
    }
    async fn second((n, text): (u64, String), _: Event, cx: Context) -> Result<Step> {
        cx.sleep(millis(1)).await;
        next_with(|n: u64, _: &Event, _: &Context| n * 10, n + text.len() as u64)
    }
    run(1, async |space, node| {
        node.on("go", first).check().unwrap();
        space.start().await.unwrap();
        assert_eq!(*space.send(&node, go(json!({}))).reply::<u64>().await.unwrap(), 30);
    });
}

#[test]
fn values_of_a_flow_are_named_typed_and_taken_once() {
    run(1, async |space, node| {
        node.on("go", |_: &Event, cx: &Context| -> Result<u64> {
            assert_eq!(cx.get::<u64>("n").unwrap_err().code(), "misuse");
            assert!(cx.get::<u64>("n").unwrap_err().to_string().contains("`n`"));
            cx.put("n", 1u64)?;
            cx.put("n", 2u64)?;
            assert_eq!(cx.get::<u64>("n")?, 2);
            assert_eq!(cx.get::<String>("n").unwrap_err().code(), "misuse");
            assert_eq!(cx.take::<String>("n").unwrap_err().code(), "misuse");
            let n = cx.take::<u64>("n")?;
            assert_eq!(cx.take::<u64>("n").unwrap_err().code(), "misuse");
            cx.put("n", "another type".to_owned())?;
            assert_eq!(cx.get::<String>("n")?, "another type");
            Ok(n)
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        for _ in 0..2 {
            assert_eq!(*space.send(&node, go(json!({}))).reply::<u64>().await.unwrap(), 2);
        }
    });
}

#[test]
fn flows_do_not_see_each_others_values() {
    async fn keep(event: Event, cx: Context) -> Result<Step> {
        let own = event.get("n").unwrap().as_u64().unwrap();
        assert_eq!(cx.get::<u64>("own").unwrap_err().code(), "misuse");
        cx.put("own", own)?;
        cx.sleep(millis(10)).await;
        next(tell)
    }
    fn tell(_: &Event, cx: &Context) -> Result<u64> {
        cx.get("own")
    }
    run(5, async |space, node| {
        node.on("go", keep).named("first").check().unwrap();
        // A second registration of the same node is a flow of its own for the same event.
        node.on("go", |_: &Event, cx: &Context| -> Result<()> {
            assert_eq!(cx.get::<u64>("own").unwrap_err().code(), "misuse");
            Ok(())
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        let begun = space.env().monotonic();
        let (to, mut from) = tokio::sync::mpsc::channel(50);
        for n in 0..50u64 {
            let to = to.clone();
            space.send(&node, go(json!({ "n": n }))).reply_with::<u64>(move |reply| {
                to.try_send((n, *reply.unwrap())).unwrap();
            });
        }
        for _ in 0..50 {
            let (n, own) = from.recv().await.unwrap();
            assert_eq!(n, own);
        }
        assert_eq!(space.env().monotonic() - begun, millis(10));
    });
}

#[test]
fn a_flow_is_cancelled_by_the_event_it_handles() {
    struct Dropped(Arc<AtomicU32>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    async fn wait(dropped: Arc<AtomicU32>, _: Event, cx: Context) {
        let _dropped = Dropped(dropped);
        cx.sleep(secs(3_600)).await;
    }
    run(1, async |space, node| {
        let dropped = Arc::new(AtomicU32::new(0));
        node.on("go", with(Arc::clone(&dropped), wait)).check().unwrap();
        space.start().await.unwrap();
        let kept = space.send(&node, go(json!({}))).await.unwrap().event_id();
        let sent = space.send(&node, go(json!({}))).await.unwrap().event_id();
        assert_eq!(node.cancel(sent), 1);
        space.env().sleep(millis(1)).await;
        assert_eq!((node.flows(), dropped.load(Ordering::SeqCst)), (vec![kept], 1));
        let trace = space.trace(sent).await.unwrap().to_string();
        assert!(trace.contains("failed (cancelled)"), "{trace}");
        assert_eq!(node.cancel(sent), 0);
        assert_eq!(node.cancel(kept), 1);
        space.settled(secs(1)).await.unwrap();
        assert_eq!(dropped.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn a_flow_cancels_itself_between_steps_and_hears_of_it() {
    async fn first(_: Event, cx: Context) -> Result<Step> {
        cx.sleep(millis(1)).await;
        assert!(!cx.is_cancelled());
        cx.cancel();
        assert!(cx.is_cancelled());
        next(|_: &Event, _: &Context| -> u64 { panic!("this step does not run") })
    }
    run(1, async |space, node| {
        node.on("go", first).check().unwrap();
        space.start().await.unwrap();
        let error = space.send(&node, go(json!({}))).reply::<u64>().await.unwrap_err();
        assert_eq!(error.code(), "cancelled");
    });
}

#[test]
fn who_stops_asking_stops_the_flow() {
    async fn wait(_: Event, cx: Context) -> u64 {
        cx.sleep(secs(3_600)).await;
        1
    }
    run(1, async |space, node| {
        node.on("go", wait).check().unwrap();
        space.start().await.unwrap();
        let mut asking = Box::pin(space.send(&node, go(json!({}))).reply::<u64>());
        let polled = asking.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
        assert_eq!(node.flows().len(), 1);
        drop(asking);
        space.settled(secs(1)).await.unwrap();
        assert_eq!(node.flows(), [] as [EventId; 0]);

        // One who only sends has nothing to stop asking for.
        space.send(&node, go(json!({}))).await.unwrap();
        assert_eq!(space.settled(secs(10)).await.unwrap_err().code(), "timed-out");
        space.settled(secs(3_600)).await.unwrap();
    });
}

#[test]
fn a_plain_handler_answers_at_the_first_poll() {
    run(1, async |space, node| {
        node.on("go", |_: &Event, _: &Context| next(|_: &Event, _: &Context| 7u64)).check().unwrap();
        let waits = space.node("waits");
        waits.on("go", async |_: Event, cx: Context| cx.sleep(millis(1)).await).check().unwrap();
        let several = space.node("several");
        several.on("go", |_: &Event, _: &Context| ()).check().unwrap();
        several.on("go", async |_: Event, _: Context| 8u64).check().unwrap();
        space.start().await.unwrap();
        let mut asking = std::pin::pin!(space.send(&node, go(json!({}))).reply::<u64>());
        let polled = asking.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(reply)) = polled else { panic!("not ready: {polled:?}") };
        assert_eq!(*reply, 7);

        assert_eq!(*space.send(&node, go(json!({}))).reply_now::<u64>().unwrap(), 7);
        assert_eq!(*space.send(&several, go(json!({}))).reply_now::<u64>().unwrap(), 8);
        let error = space.send(&waits, go(json!({}))).reply_now::<()>().unwrap_err();
        assert_eq!(error.code(), "cancelled");
        assert!(error.event_id().is_some());
        space.settled(millis(0)).await.unwrap_err();
        space.settled(millis(1)).await.unwrap();
        let error = space.send("nobody", go(json!({}))).reply_now::<u64>().unwrap_err();
        assert_eq!(error.code(), "no-such-node");
    });
}

#[test]
fn a_panic_ends_its_flow_and_nothing_else() {
    async fn handler(event: Event, cx: Context) -> Result<Step> {
        let at = event.get("at").unwrap().as_u64().unwrap();
        assert_ne!(at, 0, "before it waits");
        cx.sleep(millis(5)).await;
        assert_ne!(at, 1, "after it waited");
        next(|event: &Event, _: &Context| {
            assert_ne!(event.get("at"), Some(&json!(2)), "in a later step");
            1u64
        })
    }
    run(1, async |space, node| {
        node.on("go", handler).check().unwrap();
        space.start().await.unwrap();
        let ask = async |at: u64| space.send(&node, go(json!({ "at": at }))).reply::<u64>().await;
        for (at, text) in [(0, "before it waits"), (1, "after it waited"), (2, "in a later step")] {
            let error = ask(at).await.unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::Panicked { message } if message.contains(text)),
                "{error:?}"
            );
            assert_eq!(*ask(3).await.unwrap(), 1);
        }
        assert_eq!(space.flows_under_way(), 0);
    });
}

#[test]
fn the_highest_priority_answers_and_guards_and_captures_choose() {
    run(1, async |space, node| {
        let order = Arc::new(Mutex::new(Vec::new()));
        for (name, priority) in [("low", -1), ("first", 0), ("second", 0), ("high", 9)] {
            let order = Arc::clone(&order);
            let handler = move |_: &Event, _: &Context| {
                order.lock().unwrap().push(name);
                name.to_owned()
            };
            node.on("go", handler).priority(priority).check().unwrap();
        }
        let large = |event: &Event| event.get("n").and_then(serde_json::Value::as_u64) > Some(5);
        let guarded = space.node("guarded");
        guarded.on("go", |_: &Event, _: &Context| "large".to_owned()).guard(large).check().unwrap();
        let parts = space.node("parts");
        parts.on("*.created.{big,small}", |_: &Event, cx: &Context| cx.captures().join(" ")).check().unwrap();
        space.start().await.unwrap();
        let said = space.send(&node, go(json!({}))).reply::<String>().await.unwrap();
        assert_eq!(*said, "high");
        assert_eq!(*order.lock().unwrap(), ["high", "first", "second", "low"]);
        let ask = async |n: u64| space.send(&guarded, go(json!({ "n": n }))).reply::<String>().await;
        assert_eq!(*ask(6).await.unwrap(), "large");
        assert_eq!(ask(5).await.unwrap_err().code(), "no-handler");
        let created = Event::new("order.created.big", json!({}));
        assert_eq!(*space.send(&parts, created).reply::<String>().await.unwrap(), "order big");
    });
}

/// A shop in which much goes wrong: what a run of it looks like, and the simulator's fingerprint.
fn shop(seed: u64) -> (String, u64) {
    async fn order(_: Event, cx: Context) -> Result<Step> {
        cx.put("begun", true)?;
        next(collect())
    }
    fn collect() -> happen::wrap::Wrapped {
        let policy = Backoff::new().attempts_max(4).wait(millis(20));
        parallel((retry(policy, timeout(millis(15), stock)), fallback(price, list_price)), answer)
    }
    async fn stock(_: Event, cx: Context) -> Result<u64> {
        Ok(cx.send("store", Event::new("count", json!({}))).reply::<u64>().await?.into_inner())
    }
    async fn price(_: Event, cx: Context) -> Result<u64> {
        Ok(cx.send("prices", Event::new("look-up", json!({}))).reply::<u64>().await?.into_inner())
    }
    fn list_price(_: &Event, _: &Context) -> u64 {
        999
    }
    async fn answer((stock, price): (u64, u64), _: Event, cx: Context) -> Result<Step> {
        cx.broadcast(Event::new("order.answered", json!({ "stock": stock, "price": price })))?;
        done(stock * price)
    }
    async fn slow(_: Event, cx: Context) -> u64 {
        let wait =
            cx.node().all_metadata()["seed"].as_u64().unwrap() + (cx.event_id().to_halves().1 >> 42) % 30;
        cx.sleep(millis(wait % 30)).await;
        3
    }
    async fn moody(_: Event, cx: Context) -> Result<u64> {
        cx.sleep(millis(3)).await;
        if (cx.event_id().to_halves().1 >> 42).is_multiple_of(2) {
            Err(Error::msg("no price"))
        } else {
            Ok(250)
        }
    }
    let sim = Simulator::new(seed);
    let env = sim.env();
    let text = sim.run(async {
        let space = Space::in_env(Config::default(), env).unwrap();
        let shop = space.node("shop");
        shop.on("order", order).check().unwrap();
        let store = space.node("store").metadata("seed", seed).max_concurrent(2);
        store.on("count", slow).check().unwrap();
        space.node("prices").on("look-up", moody).check().unwrap();
        let audit = space.node("audit");
        audit.on("order.*", async |_: Event, cx: Context| cx.sleep(millis(1)).await).check().unwrap();
        space.on("*.error", |_: &Event, _: &Context| ()).check().unwrap();
        space.start().await.unwrap();
        let (to, mut from) = tokio::sync::mpsc::channel(8);
        for number in 0..8 {
            let to = to.clone();
            let asked =
                space.send(&shop, Event::new("order", json!({}))).correlation(format!("order-{number}"));
            asked.reply_with::<u64>(move |reply| {
                to.try_send(reply.map(happen::Reply::into_inner).map_err(|error| error.to_string())).unwrap();
            });
        }
        let mut text = String::new();
        for _ in 0..8 {
            text.push_str(&format!("{:?}\n", from.recv().await.unwrap()));
        }
        space.settled(secs(60)).await.unwrap();
        for number in 0..8 {
            let trace = space.trace(format!("order-{number}")).await.unwrap();
            for line in trace.lines() {
                text.push_str(&format!("{} {line}\n", line.event));
            }
        }
        text
    });
    (text, sim.fingerprint())
}

#[test]
fn a_seed_repeats_a_flow_to_the_letter_and_another_does_not() {
    let mut different = 0;
    for seed in 0..20 {
        let (text, fingerprint) = shop(seed);
        assert_eq!(shop(seed), (text.clone(), fingerprint), "seed {seed}");
        let (other, other_print) = shop(seed + 1_000);
        assert_ne!(fingerprint, other_print);
        different += usize::from(text != other);
        assert!(text.contains("shop > stock"), "{text}");
    }
    assert_eq!(different, 20);
}

#[test]
fn a_space_that_stops_ends_its_flows_in_the_same_order_each_time() {
    let run = || {
        let sim = Simulator::new(3);
        let env = sim.env();
        let ended = Arc::new(Mutex::new(Vec::new()));
        sim.run(async {
            let space = Space::in_env(Config { drain_ms: 10, ..Config::default() }, env.clone()).unwrap();
            for number in 0..30u32 {
                let node = space.node(format!("node {number}")).serial_by(|n: &u32| *n);
                let wait = async |_: Event<u32>, cx: Context| cx.sleep(secs(3_600)).await;
                node.on("u32", wait).check().unwrap();
            }
            space.start().await.unwrap();
            for number in 0..30u32 {
                for key in [1, 2, 3, 1, 2, 3u32] {
                    let ended = Arc::clone(&ended);
                    let asked = space.send(format!("node {number}"), key);
                    asked.reply_with::<()>(move |reply| {
                        ended.lock().unwrap().push((number, key, reply.unwrap_err().code()));
                    });
                }
            }
            assert_eq!(space.stop().await.unwrap_err().code(), "timed-out");
            env.sleep(millis(1)).await;
        });
        assert_eq!(ended.lock().unwrap().len(), 180);
        (Arc::try_unwrap(ended).unwrap().into_inner().unwrap(), sim.fingerprint())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_stream_ends_when_its_flow_does() {
    async fn ready(_: Event, cx: Context) -> Result<u64> {
        cx.emit(1u64).await?;
        Ok(2)
    }
    async fn waiting(event: Event, cx: Context) -> Result<u64> {
        cx.sleep(millis(1)).await;
        ready(event, cx).await
    }
    run(1, async |space, node| {
        node.on("go", ready).check().unwrap();
        let other = space.node("other");
        other.on("go", waiting).check().unwrap();
        space.start().await.unwrap();
        for node in [&node, &other] {
            let items = space.send(node, go(json!({}))).stream::<u64>();
            assert_eq!(items.collect().await.unwrap(), [1]);
            let items = space.send(node, go(json!({}))).stream::<u64>();
            assert_eq!(items.finish::<u64>().await.unwrap(), 2);
        }
    });
}
