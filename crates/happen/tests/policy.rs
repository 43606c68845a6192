//! Policies of event types: no pattern, no way and no batch goes around them.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use happen::identity::permission;
use happen::store::MemoryStore;
use happen::{Config, Context, ErrorKind, Event, EventId, Hub, Link, Space, User, any, domain, secs};
use happen_core::codec::{WireEvent, encode_batch_into};
use happen_core::hash::hash_event;
use happen_core::limits::EVENT_BYTES_MAX;
use happen_testing::Simulator;
use happen_testing::link::{Probe, until};
use serde_json::json;

type Heard = Arc<Mutex<Vec<String>>>;

/// A node that hears everything it can, in every way there is.
fn curious(space: &Space, heard: &Heard) {
    let node = space.node("curious");
    for (pattern, name) in [("**", "all"), ("order.*", "segment"), ("order.delete", "exact")] {
        let push = Arc::clone(heard);
        node.on(pattern, move |event: &Event, _: &Context| {
            push.lock().unwrap().push(format!("{name} {}", event.event_type()));
        });
    }
    let push = Arc::clone(heard);
    node.on(|_: &str| true, move |_: &Event, _: &Context| push.lock().unwrap().push("predicate".into()));
    let push = Arc::clone(heard);
    node.on(domain("order"), move |_: &Event, _: &Context| push.lock().unwrap().push("domain".into()));
    let push = Arc::clone(heard);
    node.zero("order.delete", move |_: happen::RawEvent<'_>| push.lock().unwrap().push("zero".into()));
    let push = Arc::clone(heard);
    space.on("**", move |event: &Event, _: &Context| {
        push.lock().unwrap().push(format!("space {}", event.event_type()))
    });
}

#[test]
fn no_pattern_goes_around_a_policy() {
    let sim = Simulator::new(1);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    let heard = Heard::default();
    // Nodes made before and after it are alike.
    curious(&space, &heard);
    space.policy("order.delete", permission("orders:delete")).unwrap();
    let push = Arc::clone(&heard);
    space.node("later").on("**", move |_: &Event, _: &Context| push.lock().unwrap().push("later".into()));
    let refused = Arc::new(Mutex::new(Vec::new()));
    let push = Arc::clone(&refused);
    space.on("system.refused", move |told: &Event, _: &Context| {
        push.lock().unwrap().push(told.get("node").and_then(|node| node.as_str()).map(str::to_owned));
    });
    sim.run(async {
        space.start().await.unwrap();
        let push = Arc::clone(&heard);
        space
            .node("latest")
            .on("**", move |_: &Event, _: &Context| push.lock().unwrap().push("latest".into()));
        space.broadcast(Event::new("order.delete", json!({}))).unwrap();
        assert_eq!(*heard.lock().unwrap(), [""; 0]);
        let mut told: Vec<_> = refused.lock().unwrap().drain(..).flatten().collect();
        told.sort();
        assert_eq!(told, ["$space", "curious", "later", "latest"]);
        assert_eq!(space.dead_letters().len(), 4);
        let send = || space.send("curious", Event::new("order.delete", json!({})));
        let error = send().reply::<()>().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Refused { node, .. } if node == "curious"), "{error:?}");
        assert!(error.to_string().contains("orders:delete"), "{error}");
        send().user(User { id: "ada".into(), permissions: vec!["orders:read".into()] }).await.unwrap_err();
        assert_eq!(*heard.lock().unwrap(), [""; 0]);
        send().user(User { id: "ada".into(), permissions: vec!["orders:delete".into()] }).await.unwrap();
        assert_eq!(heard.lock().unwrap().len(), 6);
        heard.lock().unwrap().clear();
        space.send("curious", Event::new("order.read", json!({}))).await.unwrap();
        assert_eq!(*heard.lock().unwrap(), ["all order.read", "segment order.read", "predicate", "domain"]);
    });
}

#[test]
fn a_node_accepts_by_sender_by_source_and_by_kind_of_source() {
    let sim = Simulator::new(6);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    let node = |name: &str, globs: &[&str]| {
        let node = space.node(name).accept_from(globs.iter().copied());
        node.on("job", |_: &Event, _: &Context| true);
    };
    node("by-sender", &["gate-*"]);
    node("by-source", &["acme"]);
    node("by-kind", &["tenant:acme", "user:*"]);
    let gate = space.node("gate-1");
    gate.on("pass", async |event: Event, cx: Context| -> happen::Result<()> {
        let to = event.get("to").and_then(|to| to.as_str()).unwrap_or_default().to_owned();
        cx.send(&*to, Event::new("job", json!({}))).await.map(drop)
    });
    sim.run(async {
        space.start().await.unwrap();
        let job = |to: &'static str| space.send(to, Event::new("job", json!({})));
        for (to, source, accepted) in [
            ("by-sender", None, false),
            ("by-sender", Some(("tenant", "gate-1")), true),
            ("by-source", None, false),
            ("by-source", Some(("tenant", "acme")), true),
            ("by-source", Some(("tenant", "acme2")), false),
            ("by-source", Some(("acme", "x")), false),
            ("by-kind", Some(("tenant", "acme")), true),
            ("by-kind", Some(("service", "acme")), false),
            ("by-kind", Some(("user", "ada")), true),
            ("by-kind", Some(("user2", "ada")), false),
        ] {
            let sending = match source {
                Some((kind, id)) => job(to).from_source(kind, id),
                None => job(to),
            };
            let taken = sending.await;
            assert_eq!(taken.is_ok(), accepted, "{to} {source:?}");
            assert!(taken.err().is_none_or(|error| error.code() == "refused"));
        }
        // Through another node the sender is another one, and the source stays.
        let pass = |to: &str| space.send("gate-1", Event::new("pass", json!({ "to": to })));
        pass("by-sender").reply::<()>().await.unwrap();
        pass("by-source").from_source("tenant", "acme").reply::<()>().await.unwrap();
        pass("by-source").from_source("tenant", "umbrella").reply::<()>().await.unwrap_err();
    });
}

#[test]
fn every_way_to_a_node_is_under_the_policy() {
    let sim = Simulator::new(2);
    let hub = Hub::in_env(sim.env());
    let [here, there] = &["here", "there"].map(|name| {
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        space.join(hub.link(name)).unwrap();
        space
    });
    let heard = Heard::default();
    there
        .policy("order.delete", |event: &Event| match event.get("order").and_then(|order| order.as_u64()) {
            Some(7) => Err(happen::Error::msg("order 7 stays")),
            _ => Ok(()),
        })
        .unwrap();
    curious(there, &heard);
    sim.run(async {
        here.start().await.unwrap();
        there.start().await.unwrap();
        let outside = hub.link("outside");
        outside.attach(Probe::new("outside")).await.unwrap();
        let env = sim.env();
        until(&env, "the other is known", || !here.remote_nodes().is_empty()).await;
        let error =
            here.send("curious", Event::new("order.delete", json!({ "order": 7 }))).await.unwrap_err();
        assert_eq!(error.code(), "refused");
        here.broadcast(Event::new("order.delete", json!({ "order": 7 }))).unwrap();
        until(&env, "the broadcast was refused", || there.dead_letters().len() == 2).await;
        // One letter may be sent again, and is under the same policy.
        let letter = there.dead_letters()[0].event_id();
        assert_eq!(there.redrive(letter).await.unwrap_err().code(), "refused");
        // A batch that hides one among others.
        let payload = |order: u64| rmp_serde_of(order);
        let (seven, eight) = (payload(7), payload(8));
        let mut events: Vec<_> = [&eight, &seven, &eight]
            .into_iter()
            .zip(1..)
            .map(|(payload, number)| {
                WireEvent::new(EventId::from_halves(9, number).unwrap(), "order.delete", 1, payload)
            })
            .collect();
        events.iter_mut().for_each(|event| event.hash = Some(hash_event(event)));
        let mut frame = Vec::new();
        encode_batch_into(&events, &mut frame, EVENT_BYTES_MAX).unwrap();
        let before = there.dead_letters().len();
        outside.post("curious", frame).unwrap();
        until(&env, "the batch was refused", || there.dead_letters().len() > before).await;
        assert_eq!(*heard.lock().unwrap(), [""; 0]);
        here.send("curious", Event::new("order.delete", json!({ "order": 8 }))).await.unwrap();
        assert_eq!(heard.lock().unwrap().len(), 6);
    });
}

/// `{ "order": … }` in MessagePack, for a small number.
fn rmp_serde_of(order: u64) -> Vec<u8> {
    [&[0x81, 0xa5][..], b"order", &[u8::try_from(order).unwrap()]].concat()
}

#[test]
fn durable_nodes_and_those_who_wait_are_under_it_too() {
    let sim = Simulator::new(5);
    let store = Arc::new(MemoryStore::new(sim.env()));
    let space = Space::with_store(Config::default(), sim.env(), store).unwrap();
    space.policy("approval", permission("approve")).unwrap();
    let heard = Heard::default();
    let push = Arc::clone(&heard);
    space.node("listener").on("**", move |event: &Event, _: &Context| {
        push.lock().unwrap().push(event.event_type().to_owned());
    });
    let waiting = space.node("waiting");
    waiting.on("begin", async |_: Event, cx: Context| -> happen::Result<bool> {
        Ok(cx.wait_for("approval", secs(2)).await.is_ok())
    });
    sim.run(async {
        space.start().await.unwrap();
        let approval = || Event::new("approval", json!({}));
        let ada = || User { id: "ada".into(), permissions: vec!["approve".into()] };
        for allowed in [false, true] {
            let begin = space.send("waiting", Event::new("begin", json!({})));
            let begun = begin.reply::<bool>().into_future();
            let approve = async {
                sim.env().sleep(secs(1)).await;
                if allowed {
                    space.broadcasting(approval()).user(ada()).publish().unwrap();
                } else {
                    space.broadcast(approval()).unwrap();
                    space.send("listener", approval()).await.unwrap_err();
                }
            };
            assert_eq!(*both(begun, approve).await.unwrap(), allowed);
        }
        assert_eq!(*heard.lock().unwrap(), ["approval"]);
    });
}

/// The first of the two, after both have ended.
async fn both<T>(first: impl Future<Output = T>, second: impl Future<Output = ()>) -> T {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut came, mut ended) = (None, false);
    poll_fn(|task| {
        if came.is_none()
            && let Poll::Ready(value) = first.as_mut().poll(task)
        {
            came = Some(value);
        }
        ended = ended || second.as_mut().poll(task).is_ready();
        match ended {
            true => came.take().map_or(Poll::Pending, Poll::Ready),
            false => Poll::Pending,
        }
    })
    .await
}

#[test]
fn all_policies_of_a_type_have_to_agree_and_one_that_panics_does_not() {
    let sim = Simulator::new(3);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    let asked = Heard::default();
    for (pattern, name) in [("order.*", "first"), ("**", "second")] {
        let push = Arc::clone(&asked);
        space
            .policy(pattern, move |event: &Event| {
                push.lock().unwrap().push(format!("{name} {}", event.event_type()));
                Ok(())
            })
            .unwrap();
    }
    space.policy("order.panic", |_: &Event| panic!("the gate is broken")).unwrap();
    space
        .policy(
            |ty: &str| if ty == "order.worse" { panic!("no pattern") } else { false },
            |_: &Event| Err(happen::Error::msg("never")),
        )
        .unwrap();
    space.node("n").on(any(), |_: &Event, _: &Context| {});
    sim.run(async {
        space.start().await.unwrap();
        space.send("n", Event::new("order.make", json!({}))).await.unwrap();
        assert_eq!(*asked.lock().unwrap(), ["first order.make", "second order.make"]);
        for bad in ["order.panic", "order.worse"] {
            assert_eq!(
                space.send("n", Event::new(bad, json!({}))).await.unwrap_err().code(),
                "refused",
                "{bad}"
            );
        }
        let late = space.policy("x", |_: &Event| Ok(()));
        assert_eq!(late.unwrap_err().code(), "misuse");
    });
    let space = Space::memory();
    assert_eq!(space.policy("order.{a", |_: &Event| Ok(())).unwrap_err().code(), "bad-pattern");
}

#[test]
fn who_answers_refusals_with_what_is_refused_comes_to_an_end() {
    let sim = Simulator::new(4);
    let mut config = Config::default();
    config.correlation.depth_max = 20;
    let space = Space::in_env(config, sim.env()).unwrap();
    space.policy("alert", |_: &Event| Err(happen::Error::msg("no alerts"))).unwrap();
    space.node("alerts").on("alert", |_: &Event, _: &Context| {});
    let told = Arc::new(Mutex::new(0));
    let count = Arc::clone(&told);
    space.node("audit").on("system.refused", move |_: &Event, cx: &Context| {
        *count.lock().unwrap() += 1;
        cx.broadcast(Event::new("alert", json!({}))).map(drop)
    });
    sim.run(async {
        space.start().await.unwrap();
        space.send("alerts", Event::new("alert", json!({}))).await.unwrap_err();
        assert!((2..20).contains(&*told.lock().unwrap()), "{told:?}");
    });
}
