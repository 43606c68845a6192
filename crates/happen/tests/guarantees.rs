//! What `docs/guarantees.md` promises and no other topic shows: code of the user's that panics without being a handler,
//! the limits on correlations, causality in work beside a flow, and what a failed flow leaves behind.
#![expect(clippy::unwrap_used, reason = "a space that cannot be made fails the test")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen::config::CorrelationLimits;
use happen::{Config, Context, ErrorKind, Event, EventId, Moment, Space, with};
use happen_testing::Simulator;
use serde_json::json;

/// The cause of an event, and its correlation.
type Cause = (Option<EventId>, String);

#[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
struct Tally {
    count: u32,
}

fn run(config: Config, test: impl AsyncFnOnce(Space)) {
    let sim = Simulator::new(1);
    let space = Space::in_env(config, sim.env()).unwrap();
    sim.run(test(space));
}

fn event(event_type: &str) -> happen::Dynamic {
    Event::new(event_type, json!({}))
}

#[test]
fn a_panic_outside_handlers_fails_that_delivery_and_nothing_else() {
    run(Config::default(), async |space| {
        let fine = |_: &Event, _: &Context| 1u64;
        let guarded = space.node("guarded");
        guarded.on("go", fine).guard(|event| event.get("boom").is_none() || panic!("guard")).check().unwrap();
        let hooked = space.node("hooked").hook(Moment::BeforeHandle, 0, |seen| {
            assert!(seen.event.is_some_and(|event| event.get("boom").is_none()), "hook");
            Ok(())
        });
        hooked.on("go", fine).check().unwrap();
        let picky = space.node("picky").accept_if(|origin| origin.event_type == "go" || panic!("predicate"));
        picky.on("*", fine).check().unwrap();
        let keyed = space.node("keyed").serial_by(|event: &happen::Dynamic| {
            assert!(event.get("boom").is_none(), "key");
        });
        keyed.on("go", fine).check().unwrap();
        space.start().await.unwrap();
        let boom = || Event::new("go", json!({ "boom": true }));
        for (node, code) in [("guarded", "panicked"), ("hooked", "refused"), ("keyed", "panicked")] {
            let error = space.send(node, boom()).reply::<u64>().await.unwrap_err();
            assert_eq!(error.code(), code, "{node}: {error:?}");
            assert_eq!(*space.send(node, event("go")).reply::<u64>().await.unwrap(), 1, "{node}");
        }
        // Acceptance fails closed.
        assert_eq!(space.send("picky", event("stop")).await.unwrap_err().code(), "refused");
        assert_eq!(*space.send("picky", event("go")).reply::<u64>().await.unwrap(), 1);
    });
}

#[test]
fn a_correlation_ends_at_each_of_its_limits() {
    for (limits, limit, max) in [
        (CorrelationLimits { depth_max: 7, ..CorrelationLimits::default() }, "correlation.depth_max", 7),
        (CorrelationLimits { fan_out_max: 3, ..CorrelationLimits::default() }, "correlation.fan_out_max", 3),
        (CorrelationLimits { events_max: 5, ..CorrelationLimits::default() }, "correlation.events_max", 5),
    ] {
        run(Config { correlation: limits, ..Config::default() }, async |space| {
            let ended: Arc<Mutex<Vec<happen::Error>>> = Arc::default();
            let sent: Arc<Mutex<u64>> = Arc::default();
            let loops = |(ended, sent): (Arc<Mutex<Vec<_>>>, Arc<Mutex<u64>>), _: &Event, cx: &Context| {
                let wide = cx.event_id() == cx.envelope().root && cx.envelope().event_type.as_str() == "wide";
                for _ in 0..if wide { 4 } else { 1 } {
                    match cx.broadcast(event(if wide { "leaf" } else { "deep" })) {
                        Ok(_) => *sent.lock().unwrap() += 1,
                        Err(error) => return ended.lock().unwrap().push(error),
                    }
                }
            };
            let node = space.node("node");
            node.on("{deep,wide}", with((Arc::clone(&ended), Arc::clone(&sent)), loops)).check().unwrap();
            space.start().await.unwrap();
            space.broadcast(event(if limit.contains("fan_out") { "wide" } else { "deep" })).unwrap();
            space.settled(Duration::from_secs(1)).await.unwrap();
            let ended = ended.lock().unwrap();
            let [error] = &ended[..] else { panic!("{limit}: {ended:?}") };
            assert!(
                matches!(error.kind(), ErrorKind::Runaway { limit: found, max: at, path } if
                    *found == limit && *at == max && !path.is_empty()),
                "{error:?}"
            );
            assert_eq!(*sent.lock().unwrap(), max, "{limit}: so many are allowed");
        });
    }
}

#[test]
fn an_effect_inherits_what_its_cause_has_and_adds_a_hop() {
    run(Config::default(), async |space| {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let [first, second] = ["first", "second"].map(|id| space.node(id));
        let pass_on = |_: &Event, cx: &Context| cx.broadcast(event("second")).map(|_| ());
        first.on("first", pass_on).check().unwrap();
        let keep = Arc::clone(&seen);
        let look = move |event: &Event, cx: &Context| {
            let inherited = cx.envelope().inherited().unwrap();
            let (kind, id) = (inherited.source_type.as_deref(), inherited.source_id.as_deref());
            let path: Vec<_> = cx.path().iter().map(ToString::to_string).collect();
            let told = (event.correlation(), cx.origin().as_deref().map(str::to_owned), kind, id, path);
            keep.lock().unwrap().push(format!("{told:?}"));
        };
        second.on("second", look).check().unwrap();
        space.start().await.unwrap();
        let sending = second.send(&first, event("first")).correlation("shift-7").from_source("user", "7");
        let root = sending.await.unwrap().event_id();
        let told = r#"("shift-7", Some("second"), Some("user"), Some("7"), ["first", "second"])"#;
        assert_eq!(*seen.lock().unwrap(), [told]);
        assert_eq!(space.impact(root).await.unwrap().len(), 1);
    });
}

#[test]
fn what_work_beside_a_flow_sends_is_caused_by_its_event() {
    run(Config::default(), async |space| {
        let seen: Arc<Mutex<Vec<Cause>>> = Arc::default();
        let node = space.node("node");
        let other = node.clone();
        node.on(
            "go",
            with(other, async |node: happen::Node, _: Event, cx: Context| {
                let beside = cx.clone();
                cx.spawn(async move {
                    beside.sleep(Duration::from_millis(5)).await;
                    // Through a node the task merely holds, and after the flow has ended.
                    node.broadcast(event("later")).unwrap();
                });
            }),
        )
        .check()
        .unwrap();
        node.on(
            "later",
            with(Arc::clone(&seen), |seen: Arc<Mutex<Vec<_>>>, event: &Event, _: &Context| {
                seen.lock().unwrap().push((event.causation_id(), event.correlation()));
            }),
        )
        .check()
        .unwrap();
        space.start().await.unwrap();
        let sent = space.send(&node, event("go")).correlation("shift-7").await.unwrap();
        space.env().sleep(Duration::from_millis(10)).await;
        assert_eq!(*seen.lock().unwrap(), [(Some(sent.event_id()), "shift-7".to_owned())]);
        space.stop().await.unwrap();
    });
}

#[test]
fn a_change_stands_although_its_flow_fails_later() {
    run(Config::default(), async |space| {
        let node = space.node("node");
        node.on("go", async |_: Event, cx: Context| -> happen::Result<()> {
            cx.state::<Tally>().set(|tally| Tally { count: tally.count + 1 })?;
            cx.sleep(Duration::from_millis(1)).await;
            Err(happen::Error::msg("too late"))
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        assert_eq!(space.send(&node, event("go")).reply::<()>().await.unwrap_err().code(), "failed");
        assert_eq!(node.state::<Tally>().get(|tally| tally.count), 1);
    });
}
