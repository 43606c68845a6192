//! Handlers that read events in place: what they see, how they mix with other handlers, and that the bytes they
//! borrow stay theirs whatever is sent meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use happen::raw::{FieldPath, RawWriter};
use happen::{
    Batch, Context, Dynamic, Event, EventId, EventType, RawEvent, Result, Space, Step, again, done, next,
    next_with, with,
};
use happen_testing::Simulator;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("sensor.read")]
struct Reading {
    id: u32,
    celsius: f64,
    name: String,
}

fn reading(id: u32) -> Reading {
    Reading { id, celsius: f64::from(id) + 0.5, name: format!("sensor {id}") }
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("numbers")]
struct Numbers {
    small: u8,
    int: u16,
    long: u32,
    huge: u64,
    tiny: i8,
    short: i16,
    below: i32,
    far: i64,
    half: f32,
    double: f64,
    yes: bool,
    text: String,
    nothing: Option<u8>,
    bytes: Bytes,
    pairs: Vec<(u16, f64)>,
}

/// Bytes as bytes, which serde's own `Vec<u8>` is not.
#[derive(Clone, Debug, PartialEq)]
struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self)
    }
}

/// Cannot be encoded when it is negative.
#[derive(happen::Event, Clone, Debug, Deserialize)]
#[event("shy")]
struct Shy {
    number: i64,
}

impl Serialize for Shy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.number < 0 {
            Err(S::Error::custom("not in public"))
        } else {
            self.number.serialize(serializer)
        }
    }
}

fn made(names: &[&str]) -> (Space, Vec<happen::Node>) {
    let space = Space::memory();
    let nodes = names.iter().map(|name| space.node(name)).collect();
    (space, nodes)
}

#[tokio::test]
async fn every_accessor_reads_through_a_handler() {
    const SECOND: FieldPath<'_> = FieldPath::new("pairs.1.1");
    let (space, nodes) = made(&["reader"]);
    space.start().await.unwrap();
    nodes[0]
        .zero("numbers", |e: RawEvent<'_>| {
            assert_eq!(e.u8("small"), Some(200));
            assert_eq!(e.u16("int"), Some(60_000));
            assert_eq!(e.u32("long"), Some(4_000_000_000));
            assert_eq!(e.u64("huge"), Some(u64::MAX));
            assert_eq!(e.i8("tiny"), Some(-100));
            assert_eq!(e.i16("short"), Some(-30_000));
            assert_eq!(e.i32("below"), Some(-2_000_000_000));
            assert_eq!(e.i64("far"), Some(i64::MIN));
            assert_eq!(e.f32("half"), Some(0.5));
            assert_eq!(e.f64("double"), Some(1e300));
            assert_eq!(e.bool("yes"), Some(true));
            assert_eq!(e.str("text"), Some("grüß"));
            assert_eq!(e.bytes("bytes"), Some(&[1, 2, 255][..]));
            assert_eq!(e.is_nil("nothing"), Some(true));
            assert_eq!(e.array_len("pairs"), Some(2));
            assert_eq!(e.f64(&SECOND), Some(20.5));
            assert_eq!(e.at("pairs.0").and_then(|pair| pair.u16(0)), Some(1));
            let records = e.records("pairs").unwrap();
            assert_eq!(records.into_iter().filter_map(|pair| pair.f64(1)).sum::<f64>(), 31.0);
            assert!(e.exists("nothing"));
            assert!(!e.exists("missing"));
            assert_eq!(e.u8("int"), None, "too large");
            assert_eq!(e.u8("text"), None, "another type");
            assert_eq!(e.u8("pairs.7.0"), None, "no such item");
            e.check().unwrap();
            assert_eq!(e.decode::<Numbers>().unwrap().small, 200);
            assert_eq!(e.decode::<Reading>().unwrap_err().event_id(), Some(e.id()));
            assert_eq!(e.event_type(), "numbers");
            assert_eq!(e.envelope().id, e.context().event_id());
            assert_eq!((e.causation_id(), e.causes().count()), (None, 0));
            assert_eq!(e.context().node_id(), "reader");
            assert!(format!("{e:?}").starts_with("numbers "), "{e:?}");
            e.str("text").unwrap().len() as u64
        })
        .check()
        .unwrap();
    let numbers = Numbers {
        small: 200,
        int: 60_000,
        long: 4_000_000_000,
        huge: u64::MAX,
        tiny: -100,
        short: -30_000,
        below: -2_000_000_000,
        far: i64::MIN,
        half: 0.5,
        double: 1e300,
        yes: true,
        text: "grüß".into(),
        nothing: None,
        bytes: Bytes(vec![1, 2, 255]),
        pairs: vec![(1, 10.5), (2, 20.5)],
    };
    assert_eq!(*space.send(&nodes[0], numbers).reply::<u64>().await.unwrap(), 6);
}

/// A function and not a closure.
fn celsius(event: RawEvent<'_>) -> Option<f64> {
    event.f64("celsius")
}

#[tokio::test]
async fn typed_json_and_bytes_read_the_same() {
    let (space, nodes) = made(&["reader"]);
    space.start().await.unwrap();
    nodes[0].zero("sensor.*", |event| celsius(event).unwrap()).check().unwrap();
    let mut buffer = [0; 128];
    let mut writer = RawWriter::new(&mut buffer);
    writer.map(3).field("id").u64(7).field("celsius").f64(7.5).field("name").str("sensor 7");
    let bytes: Arc<[u8]> = writer.finish().unwrap().into();
    let json = Event::new("sensor.read", json!({ "id": 7, "celsius": 7.5, "name": "sensor 7" }));
    let from_bytes = Dynamic::from_bytes(EventType::new("sensor.read"), bytes);
    assert_eq!(*space.send(&nodes[0], reading(7)).reply::<f64>().await.unwrap(), 7.5);
    assert_eq!(*space.send(&nodes[0], json).reply::<f64>().await.unwrap(), 7.5);
    assert_eq!(*space.send(&nodes[0], from_bytes).reply::<f64>().await.unwrap(), 7.5);
}

#[tokio::test]
async fn bytes_are_read_where_they_are() {
    let (space, nodes) = made(&["reader"]);
    space.start().await.unwrap();
    nodes[0].zero("raw", |event: RawEvent<'_>| event.as_bytes().as_ptr().addr()).check().unwrap();
    let bytes: Arc<[u8]> = vec![0x81, 0xa1, b'n', 7].into();
    let at = bytes.as_ptr().addr();
    let event = Dynamic::from_bytes(EventType::new("raw"), bytes);
    assert_eq!(*space.send(&nodes[0], event).reply::<usize>().await.unwrap(), at);
}

#[tokio::test]
async fn steps_of_all_kinds_mix_in_one_flow() {
    fn first(event: RawEvent<'_>) -> Result<Step> {
        event.context().put("celsius", celsius(event).unwrap())?;
        next(second)
    }
    async fn second(reading: Event<Reading>, cx: Context) -> Result<Step> {
        // It waits, so the flow goes on as a task.
        cx.sleep(std::time::Duration::from_millis(1)).await;
        assert_eq!(reading.celsius, cx.get::<f64>("celsius")?);
        next(third)
    }
    fn third(event: RawEvent<'_>) -> Result<Step> {
        let turns = event.context().take::<u64>("turns").unwrap_or(0) + 1;
        event.context().put("turns", turns)?;
        if turns < 3 { again() } else { next_with(fourth, turns) }
    }
    fn fourth(turns: u64, event: RawEvent<'_>) -> Result<Step> {
        let name = event.str("name").unwrap().to_owned();
        next(move |reading: &Event<Reading>, _: &Context| format!("{} {name} {turns}", reading.id))
    }
    let sim = Simulator::new(1);
    let space = Space::in_env(happen::Config::default(), sim.env()).unwrap();
    let node = space.node("mixed");
    node.zero("sensor.read", first).step(second).step(third).check().unwrap();
    let text = sim.run(async move {
        space.start().await.unwrap();
        space.send(&node, reading(7)).reply::<String>().await.unwrap().into_inner()
    });
    assert_eq!(text, "7 sensor 7 3");
}

#[tokio::test]
async fn a_dependency_may_come_first() {
    #[expect(clippy::needless_pass_by_value, reason = "each event gets a clone of its own")]
    fn add(total: Arc<AtomicU64>, event: RawEvent<'_>) {
        total.fetch_add(u64::from(event.u32("id").unwrap()), Ordering::Relaxed);
    }
    let (space, nodes) = made(&["reader"]);
    space.start().await.unwrap();
    let total = Arc::new(AtomicU64::new(0));
    nodes[0].on("sensor.read", with(Arc::clone(&total), add)).check().unwrap();
    assert_eq!(nodes[0].handles()[0].handler, "add");
    space.send(&nodes[0], reading(7)).await.unwrap();
    assert_eq!(total.load(Ordering::Relaxed), 7);
}

/// What a handler sends while it reads is encoded into other buffers, at every depth.
#[tokio::test]
async fn what_is_sent_meanwhile_leaves_the_bytes_alone() {
    fn descend(event: RawEvent<'_>) -> Result<u64> {
        let id = event.u32("id").unwrap();
        let name = event.str("name").unwrap();
        let before = event.as_bytes().to_vec();
        let cx = event.context();
        if id > 0 {
            cx.send(cx.node_id(), reading(id - 1)).forget();
            cx.broadcast(reading(id - 1))?;
            // A panic in between must give its buffer back too.
            cx.send("panics", reading(1_000 + id)).forget();
        }
        assert_eq!(event.as_bytes(), before);
        assert_eq!(name, format!("sensor {id}"));
        event.decode::<Reading>().map(|reading| u64::from(reading.id))
    }
    let (space, nodes) = made(&["down", "panics", "other", "typed"]);
    space.start().await.unwrap();
    let reads = Arc::new(AtomicU64::new(0));
    for node in [&nodes[0], &nodes[2]] {
        let count = Arc::clone(&reads);
        node.zero("sensor.read", move |event| {
            count.fetch_add(1, Ordering::Relaxed);
            match event.context().node_id() {
                "down" => descend(event),
                _ => event.decode::<Reading>().map(|reading| u64::from(reading.id)),
            }
        })
        .check()
        .unwrap();
    }
    nodes[1]
        .zero("sensor.read", |event| -> u64 {
            if event.u32("id").unwrap() >= 1_000 {
                panic!("as it should");
            }
            0
        })
        .check()
        .unwrap();
    let failures = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&failures);
    space
        .on("**.error", move |failure: &Event<happen::Failure>, _: &Context| {
            seen.lock().unwrap().push((failure.node.clone(), failure.code.clone()));
        })
        .check()
        .unwrap();
    assert_eq!(*space.send(&nodes[0], reading(5)).reply::<u64>().await.unwrap(), 5);
    // A panic is slow to tell, so its handler may have moved off this thread.
    space.settled(happen::secs(60)).await.unwrap();
    // Each level sends itself and broadcasts to both: 2^n readings by `down`, and half as many by `other`.
    assert_eq!(reads.load(Ordering::Relaxed), 63 + 31);
    let failures = failures.lock().unwrap();
    assert_eq!(failures.len(), 31);
    assert!(failures.iter().all(|(node, code)| node == "panics" && code == "panicked"), "{failures:?}");
}

#[tokio::test]
async fn one_broadcast_reaches_readers_in_place_and_typed_ones() {
    static ENCODED: AtomicU64 = AtomicU64::new(0);

    /// Counts how often it is encoded.
    #[derive(happen::Event, Clone, Debug, Deserialize)]
    #[event("counted")]
    struct Counted {
        number: u64,
    }
    impl Serialize for Counted {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            ENCODED.fetch_add(1, Ordering::Relaxed);
            self.number.serialize(serializer)
        }
    }

    let (space, nodes) = made(&["a", "b", "c", "d", "e"]);
    space.start().await.unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    for node in &nodes[..3] {
        let heard = Arc::clone(&heard);
        node.zero("counted", move |event| {
            // A second broadcast in between takes nothing from the first.
            if event.context().node_id() == "a" {
                event.context().broadcast(reading(1)).unwrap();
            }
            heard.lock().unwrap().push((event.context().node_id().to_owned(), event.u64("").unwrap()));
        })
        .check()
        .unwrap();
        node.zero("sensor.read", |event| u64::from(event.u32("id").unwrap())).check().unwrap();
    }
    for node in &nodes[3..] {
        let heard = Arc::clone(&heard);
        node.on("counted", move |counted: &Event<Counted>, cx: &Context| {
            heard.lock().unwrap().push((cx.node_id().to_owned(), counted.number));
        })
        .check()
        .unwrap();
    }
    space.broadcast(Counted { number: 40 }).unwrap();
    assert_eq!(ENCODED.load(Ordering::Relaxed), 1, "once for three readers");
    let expected = |number| ["a", "b", "c", "d", "e"].map(|node| (node.to_owned(), number));
    assert_eq!(*std::mem::take(&mut *heard.lock().unwrap()), expected(40));
    space.broadcast(Counted { number: 41 }).unwrap();
    assert_eq!(ENCODED.load(Ordering::Relaxed), 2);
    assert_eq!(*heard.lock().unwrap(), expected(41));
    // Several registrations of one node share as well, and so do the events of a batch.
    nodes[0].zero("*", |event| event.u64("").unwrap()).check().unwrap();
    space.send(&nodes[0], Counted { number: 42 }).await.unwrap();
    assert_eq!(ENCODED.load(Ordering::Relaxed), 3);
    let batch: Vec<_> = (0..10).map(|number| Counted { number }).collect();
    heard.lock().unwrap().clear();
    space.send(&nodes[0], batch).await.unwrap();
    assert_eq!(ENCODED.load(Ordering::Relaxed), 13);
    let numbers: Vec<_> = heard.lock().unwrap().iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>());
}

/// The id of the event stays the same under a transformer, so bytes must not be found by id.
#[tokio::test]
async fn a_transformed_payload_is_encoded_anew() {
    let space = Space::memory();
    let heard = Arc::new(Mutex::new(Vec::new()));
    for name in ["a", "b", "c", "d"] {
        let mut node = space.node(name);
        if name == "b" || name == "c" {
            node = node.transform(move |mut reading: Reading| {
                reading.name = name.repeat(3);
                Ok(reading)
            });
        }
        let heard = Arc::clone(&heard);
        node.zero("sensor.read", move |event| {
            heard.lock().unwrap().push(event.str("name").unwrap().to_owned())
        })
        .check()
        .unwrap();
    }
    space.start().await.unwrap();
    space.broadcast(reading(7)).unwrap();
    assert_eq!(*heard.lock().unwrap(), ["sensor 7", "bbb", "ccc", "sensor 7"]);
}

#[tokio::test]
async fn rubbish_answers_none_and_check_says_why() {
    let (space, nodes) = made(&["reader"]);
    space.start().await.unwrap();
    nodes[0]
        .zero("rubbish", |event| -> Result<u64> {
            let whole = event.check();
            // One byte too many: reading finds the field before it, checking refuses the whole.
            let found = event.as_bytes().starts_with(b"\x81\xa1n\x07").then_some(7);
            assert_eq!(event.u64("n"), found);
            assert_eq!(event.str(""), None);
            whole?;
            Ok(0)
        })
        .check()
        .unwrap();
    let rubbish: [&[u8]; 5] = [b"", b"\xc1", b"\x82\xa1n", b"\x81\xa1n\x07\x07", b"\xdf\xff\xff\xff\xff"];
    for bytes in rubbish {
        let event = Dynamic::from_bytes(EventType::new("rubbish"), bytes.into());
        let error = space.send(&nodes[0], event).reply::<u64>().await.unwrap_err();
        assert_eq!(error.code(), "undecodable", "{bytes:?} {error:?}");
        assert!(error.event_id().is_some() && error.source().is_some());
    }
}

#[tokio::test]
async fn what_cannot_be_encoded_fails_its_flow_alone() {
    let (space, nodes) = made(&["reader", "typed"]);
    space.start().await.unwrap();
    nodes[0].zero("shy", |event| event.i64("").unwrap()).check().unwrap();
    nodes[0].zero("*", |event| event.i64("").unwrap()).check().unwrap();
    nodes[1].on("shy", |shy: &Event<Shy>, _: &Context| shy.number).check().unwrap();
    let error = space.send(&nodes[0], Shy { number: -1 }).reply::<i64>().await.unwrap_err();
    assert_eq!(error.code(), "unencodable");
    assert!(error.event_id().is_some());
    assert_eq!(*space.send(&nodes[1], Shy { number: -1 }).reply::<i64>().await.unwrap(), -1);
    assert_eq!(*space.send(&nodes[0], Shy { number: 1 }).reply::<i64>().await.unwrap(), 1);
}

#[tokio::test]
async fn payloads_at_the_limit_of_a_buffer_and_far_above_are_whole() {
    let (space, nodes) = made(&["a", "b"]);
    space.start().await.unwrap();
    let max = happen::limits::ENCODED_BUFFER_BYTES_MAX;
    for node in &nodes {
        node.zero("text", |event| {
            let text = event.str("text").unwrap();
            assert!(text.bytes().all(|byte| byte == b'x'));
            text.len() as u64
        })
        .check()
        .unwrap();
    }
    for len in [0, max - 20, max - 1, max, max + 1, 3_000_000] {
        let large = Event::new("text", json!({ "text": "x".repeat(len) }));
        let replies = space.send([&nodes[0], &nodes[1]], large.clone()).replies::<u64>().await;
        assert!(replies.values().all(|reply| **reply.as_ref().unwrap() == len as u64));
        space.broadcast(large).unwrap();
    }
    // A batch beyond what is shared.
    let many: Vec<_> = (0..50).map(|_| Event::new("text", json!({ "text": "x".repeat(3_000) }))).collect();
    nodes[0].zero("*", |event| event.str("text").unwrap().len() as u64).check().unwrap();
    assert_eq!(*space.send(&nodes[0], many).reply::<u64>().await.unwrap(), 3_000);
    assert!(space.dead_letters().is_empty());
}

#[tokio::test]
async fn guards_captures_priorities_and_off_work_as_for_others() {
    let (space, nodes) = made(&["reader"]);
    space.start().await.unwrap();
    let node = &nodes[0];
    let low = node.zero("{sensor,meter}.*", |event| event.context().captures().join("+"));
    low.check().unwrap();
    let high = node
        .zero("sensor.*", |_| "hot".to_owned())
        .guard(|event: &Event| event.get("celsius").and_then(serde_json::Value::as_f64) > Some(80.0))
        .priority(10)
        .named("hot");
    assert_eq!(node.handles()[0].handler, "hot");
    assert_eq!(node.handles()[0].payload, None);
    let ask =
        |reading| async { space.send(node, reading).reply::<String>().await.map(|text| text.into_inner()) };
    assert_eq!(ask(reading(7)).await.unwrap(), "sensor+read");
    assert_eq!(ask(reading(90)).await.unwrap(), "hot");
    high.off();
    assert_eq!(ask(reading(90)).await.unwrap(), "sensor+read");
    low.off();
    assert_eq!(ask(reading(90)).await.unwrap_err().code(), "no-handler");
    assert!(node.zero("a..b", |_| ()).check().is_err(), "a pattern with an empty segment");
}

#[tokio::test]
async fn what_it_sends_is_caused_by_the_event() {
    let (space, nodes) = made(&["reader", "next"]);
    space.start().await.unwrap();
    let causes = Arc::new(Mutex::new(Vec::<(Option<EventId>, String)>::new()));
    let captured = nodes[0].clone();
    nodes[0]
        .zero("sensor.read", move |event| -> Result<()> {
            event.context().broadcast(Event::new("told", json!(1)))?;
            event.context().send("next", Event::new("told", json!(2))).forget();
            captured.send("next", Event::new("told", json!(3))).forget();
            Ok(())
        })
        .check()
        .unwrap();
    let seen = Arc::clone(&causes);
    nodes[1]
        .zero("told", move |event| {
            assert_eq!(event.context().sender().as_deref(), Some("reader"));
            assert_eq!(event.context().origin(), None);
            seen.lock().unwrap().push((event.causation_id(), event.context().correlation()));
        })
        .check()
        .unwrap();
    let sent = space.send(&nodes[0], reading(1)).correlation("order-1").await.unwrap();
    let expected = vec![(Some(sent.event_id()), "order-1".to_owned()); 3];
    assert_eq!(*causes.lock().unwrap(), expected);
    assert_eq!(space.trace("order-1").await.unwrap().lines().len(), 4);
}

#[tokio::test]
async fn batches_come_one_by_one_and_a_whole_one_is_refused() {
    async fn all(_: Batch<Reading>, _: Context) -> Result<Step> {
        next(celsius_step)
    }
    async fn typed(_: Batch<Reading>, _: Context) -> Result<Step> {
        next(|reading: &Event<Reading>, _: &Context| reading.id)
    }
    fn celsius_step(event: RawEvent<'_>) -> Result<Step> {
        done(celsius(event).unwrap())
    }
    let (space, nodes) = made(&["single", "whole", "typed"]);
    space.start().await.unwrap();
    let ids = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ids);
    nodes[0]
        .zero("sensor.read", move |event| {
            seen.lock().unwrap().push((event.id(), event.u32("id").unwrap(), event.context().event_id()));
        })
        .check()
        .unwrap();
    nodes[1].on("sensor.read", all).check().unwrap();
    nodes[2].on("sensor.read", typed).check().unwrap();
    let batch = [reading(1), reading(2), reading(3)];
    space.send(&nodes[0], batch.clone()).await.unwrap();
    let ids = std::mem::take(&mut *ids.lock().unwrap());
    assert_eq!(ids.iter().map(|(_, id, _)| *id).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(ids.iter().all(|(id, _, of_context)| id == of_context));
    assert!(ids.windows(2).all(|pair| pair[0].0 < pair[1].0), "each event has its own id");
    for node in &nodes[1..] {
        let error = space.send(node, batch.clone()).reply::<f64>().await.unwrap_err();
        assert_eq!(
            error.code(),
            "misuse",
            "a step for one event must not take the first of three: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_forgotten_event_that_found_no_node_can_be_driven_again() {
    let space = Space::memory();
    space.start().await.unwrap();
    space.send("late", reading(7)).forget();
    let letter = space.dead_letters().remove(0);
    assert_eq!((letter.event_type(), letter.code), ("sensor.read", "no-such-node"));
    let read = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&read);
    let late = space.node("late");
    late.zero("sensor.*", move |event| seen.store(u64::from(event.u32("id").unwrap()), Ordering::Relaxed))
        .check()
        .unwrap();
    space.redrive(letter.event_id()).await.unwrap();
    assert_eq!(read.load(Ordering::Relaxed), 7);
}

/// Readers on several threads at once: each has its own buffers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "the test is about real threads")]
async fn threads_do_not_share_buffers() {
    let (space, nodes) = made(&["reader"]);
    space.start().await.unwrap();
    nodes[0]
        .zero("sensor.read", |event| -> Result<u64> {
            let id = event.u32("id").unwrap();
            if id % 2 == 0 {
                event.context().send("reader", reading(id + 1)).forget();
            }
            assert_eq!(event.str("name").unwrap(), format!("sensor {id}"));
            Ok(u64::from(id))
        })
        .check()
        .unwrap();
    let asks = (0..4u32).map(|task| {
        let (space, node) = (space.clone(), nodes[0].clone());
        tokio::spawn(async move {
            for id in (task * 1_000)..(task * 1_000 + 500) {
                assert_eq!(*space.send(&node, reading(id)).reply::<u64>().await.unwrap(), u64::from(id));
            }
        })
    });
    for ask in asks.collect::<Vec<_>>() {
        ask.await.unwrap();
    }
    assert!(space.dead_letters().is_empty());
}

/// `docs/zero.md` shows bytes and positions; they are those the code writes.
#[tokio::test]
async fn the_documented_layout_is_the_real_one() {
    #[derive(happen::Event, Clone, Serialize, Deserialize)]
    #[event("documented")]
    struct Documented {
        sensor: u32,
        reading: Inner,
        last: Vec<(u32, f64)>,
    }
    #[derive(Clone, Serialize, Deserialize)]
    struct Inner {
        celsius: f64,
        ok: bool,
    }
    let page = include_str!("../../../docs/zero.md");
    let block = page.split("```hex payload").nth(1).unwrap().split("```").next().unwrap();
    let digits: String = block.split_whitespace().collect();
    let (space, nodes) = made(&["reader"]);
    space.start().await.unwrap();
    nodes[0]
        .zero("documented", move |event| {
            let hex: String = event.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, digits);
            let start = event.as_bytes().as_ptr().addr();
            let at = |path| event.at(path).unwrap().as_bytes().as_ptr().addr() - start;
            for path in ["sensor", "reading.celsius", "reading.ok", "last", "last.1.1"] {
                let row = format!("| `{path}` | {} |", at(path));
                assert!(page.contains(&row), "{row}");
            }
            event.records("last").unwrap().fixed().unwrap().record_bytes()
        })
        .check()
        .unwrap();
    let reading = Inner { celsius: 21.5, ok: true };
    let documented = Documented { sensor: 7, reading, last: vec![(1, 20.5), (2, 21.0)] };
    assert_eq!(*space.send(&nodes[0], documented).reply::<usize>().await.unwrap(), 11);
}
