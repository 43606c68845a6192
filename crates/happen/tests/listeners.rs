//! Who hears what: broadcasts reach exactly the registrations whose patterns match, while registrations come and go,
//! and patterns are asked once for each type.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use happen::{
    Batch, Config, Context, Event, Failure, Node, Pattern, Registration, Space, all_of, any, domain, exact,
    not, one_of, predicate,
};
use happen_core::pattern::is_runtime;
use happen_testing::Simulator;
use proptest::prelude::*;
use serde_json::json;

fn simulate<F: Future<Output = ()>>(config: Config, test: impl FnOnce(Space) -> F) {
    let sim = Simulator::new(11);
    let space = Space::in_env(config, sim.env()).unwrap();
    sim.run(test(space));
}

// The index.

#[derive(Debug, Clone)]
enum Op {
    On { node: usize, pattern: Pattern },
    Off { registration: usize },
    Destroy { node: usize },
    Broadcast { event_type: String },
}

const NODES: usize = 4;

fn segment() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["a", "b", "order", "node", "system", "error"][..])
}

fn event_type() -> impl Strategy<Value = String> {
    prop::collection::vec(segment(), 1..4).prop_map(|segments| segments.join("."))
}

fn pattern() -> impl Strategy<Value = Pattern> {
    let part = prop_oneof![
        4 => segment().prop_map(str::to_owned),
        2 => Just("*".to_owned()),
        1 => Just("**".to_owned()),
        1 => (segment(), segment()).prop_map(|(one, other)| format!("{{{one},{other}}}")),
    ];
    let text = prop::collection::vec(part, 1..4).prop_map(|parts| Pattern::parse(&parts.join(".")).unwrap());
    let leaf = prop_oneof![
        6 => text,
        1 => event_type().prop_map(|text| exact(&text)),
        1 => segment().prop_map(domain),
        1 => Just(any()),
        1 => segment().prop_map(|last| predicate(move |text| text.ends_with(last))),
        1 => segment().prop_map(|first| Pattern::runtime(move |text| text.starts_with(first))),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(one_of),
            prop::collection::vec(inner.clone(), 0..3).prop_map(all_of),
            inner.prop_map(not),
        ]
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0..NODES, pattern()).prop_map(|(node, pattern)| Op::On { node, pattern }),
        3 => (0..40usize).prop_map(|registration| Op::Off { registration }),
        1 => (0..NODES).prop_map(|node| Op::Destroy { node }),
        8 => event_type().prop_map(|event_type| Op::Broadcast { event_type }),
    ]
}

/// One registration as the model sees it.
struct Known {
    node: usize,
    pattern: Pattern,
    registration: Registration,
    on: bool,
}

fn run_ops(ops: Vec<Op>, types_max: usize) {
    simulate(Config { types_max, ..Config::default() }, async |space| {
        let mut nodes: Vec<Node> = (0..NODES).map(|node| space.node(format!("n{node}"))).collect();
        let heard: Arc<Mutex<BTreeMap<usize, u32>>> = Arc::default();
        let mut known: Vec<Known> = Vec::new();
        space.start().await.unwrap();
        for op in ops {
            match op {
                Op::On { node, pattern } => {
                    let (index, heard) = (known.len(), heard.clone());
                    let registration = nodes[node].on(&pattern, move |event: &Event, _: &Context| {
                        // The runtime tells of destroyed nodes; only what the test sends is counted.
                        if event.get("probe").is_some() {
                            *heard.lock().unwrap().entry(index).or_default() += 1;
                        }
                    });
                    registration.check().unwrap();
                    known.push(Known { node, pattern, registration, on: true });
                }
                Op::Off { registration } => {
                    if let Some(known) = known.get_mut(registration) {
                        known.registration.off();
                        known.on = false;
                    }
                }
                Op::Destroy { node } => {
                    nodes[node].destroy();
                    nodes[node] = space.node(format!("n{node}"));
                    known.iter_mut().filter(|known| known.node == node).for_each(|known| known.on = false);
                }
                Op::Broadcast { event_type } => {
                    let expected: BTreeMap<_, _> = known
                        .iter()
                        .enumerate()
                        .filter(|(_, known)| known.on && wants(&known.pattern, &event_type))
                        .map(|(index, _)| (index, 1))
                        .collect();
                    space.broadcast(Event::new(&event_type, json!({ "probe": true }))).unwrap();
                    let heard = std::mem::take(&mut *heard.lock().unwrap());
                    assert_eq!(heard, expected, "listeners to `{event_type}`");
                }
            }
        }
        assert_eq!(space.dead_letters().len(), 0, "{:?}", space.dead_letters());
    });
}

fn wants(pattern: &Pattern, event_type: &str) -> bool {
    if is_runtime(event_type) { pattern.matches_runtime(event_type) } else { pattern.matches(event_type) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_broadcast_reaches_exactly_those_who_listen(
        ops in prop::collection::vec(op(), 1..60),
        types_max in prop::sample::select(&[0usize, 1, 3, 16_384][..]),
    ) {
        run_ops(ops, types_max);
    }
}

// The caches.

/// A node whose pattern counts how often it is asked.
fn counting(space: &Space) -> (Arc<AtomicU64>, Arc<AtomicU64>) {
    let (asked, heard) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
    let (ask, hear) = (asked.clone(), heard.clone());
    let test = predicate(move |text| {
        ask.fetch_add(1, Ordering::Relaxed);
        text.starts_with("type")
    });
    let count = move |_: &Event, _: &Context| {
        hear.fetch_add(1, Ordering::Relaxed);
    };
    space.node("counting").on(test, count).check().unwrap();
    (asked, heard)
}

fn broadcast_types(space: &Space, types: usize) {
    for number in 0..types {
        space.broadcast(Event::new(&format!("type{number}"), json!(null))).unwrap();
    }
}

#[test]
fn a_pattern_is_asked_once_for_each_type_and_not_for_each_event() {
    simulate(Config::default(), async |space| {
        let (asked, heard) = counting(&space);
        space.start().await.unwrap();
        let others = space.node("others");
        for number in 0..500 {
            others.on(format!("other{number}.*"), |_: &Event, _: &Context| ()).check().unwrap();
        }
        asked.store(0, Ordering::Relaxed);
        broadcast_types(&space, 300);
        // Once by the index of the space and once by the node's own table.
        assert_eq!(asked.load(Ordering::Relaxed), 600);
        for _ in 0..20 {
            broadcast_types(&space, 300);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 600);
        assert_eq!(heard.load(Ordering::Relaxed), 21 * 300);
    });
}

#[test]
fn more_types_than_the_table_holds_are_heard_all_the_same() {
    const TYPES_MAX: usize = 8;
    for (types, cached) in [(TYPES_MAX - 1, true), (TYPES_MAX, true), (TYPES_MAX + 1, false), (100, false)] {
        // One place is for the event with which the runtime tells of its start.
        simulate(Config { types_max: TYPES_MAX + 1, ..Config::default() }, async |space| {
            let (asked, heard) = counting(&space);
            space.start().await.unwrap();
            broadcast_types(&space, types);
            let first = asked.load(Ordering::Relaxed);
            broadcast_types(&space, types);
            assert_eq!(heard.load(Ordering::Relaxed), 2 * types as u64);
            assert_eq!(asked.load(Ordering::Relaxed) == first, cached, "{types} types");
            let last = space.broadcast(Event::new(&format!("type{}", types - 1), json!(null))).unwrap();
            let trace = space.trace(last).await.unwrap();
            let named = trace.lines()[0].event_type == format!("type{}", types - 1);
            assert_eq!(named, cached, "{trace}");
        });
    }
}

#[test]
fn a_table_of_no_types_still_delivers() {
    simulate(Config { types_max: 0, ..Config::default() }, async |space| {
        let (_, heard) = counting(&space);
        space.start().await.unwrap();
        broadcast_types(&space, 3);
        assert_eq!(heard.load(Ordering::Relaxed), 3);
    });
}

#[test]
fn a_node_of_an_id_that_is_taken_hears_nothing_and_loses_nothing() {
    simulate(Config::default(), async |space| {
        let (_, heard) = counting(&space);
        space.start().await.unwrap();
        let second = space.node("counting");
        let refused = second.on("type0", |_: &Event, _: &Context| -> () { panic!("it takes no events") });
        assert_eq!(refused.check().unwrap_err().code(), "closed");
        broadcast_types(&space, 1);
        assert_eq!(heard.load(Ordering::Relaxed), 1);
        assert_eq!(space.dead_letters().len(), 0);
    });
}

// Guards.

fn amount(event: &Event) -> u64 {
    event.get("amount").and_then(serde_json::Value::as_u64).unwrap()
}

fn pay(amount: u64) -> happen::Dynamic {
    Event::new("pay", json!({ "amount": amount }))
}

#[test]
fn a_guard_looks_at_each_event_of_a_batch() {
    simulate(Config::default(), async |space| {
        let node = space.node("node");
        let (single, together) = <(Arc<Mutex<Vec<u64>>>, Arc<Mutex<Vec<usize>>>)>::default();
        let (one, all) = (single.clone(), together.clone());
        node.on("pay", move |event: &Event, _: &Context| one.lock().unwrap().push(amount(event)))
            .guard(|event| amount(event) > 10)
            .check()
            .unwrap();
        node.on("pay", move |batch: &Batch, _: &Context| all.lock().unwrap().push(batch.len()))
            .guard(|event| amount(event) > 4)
            .check()
            .unwrap();
        space.start().await.unwrap();
        space.send(&node, [pay(5), pay(20), pay(30)]).await.unwrap();
        space.send(&node, [pay(20), pay(4)]).await.unwrap();
        assert_eq!(*single.lock().unwrap(), [20, 30, 20]);
        assert_eq!(*together.lock().unwrap(), [3], "a batch is taken as a whole or not at all");
    });
}

#[test]
fn a_guard_that_panics_fails_its_own_flow_alone() {
    simulate(Config::default(), async |space| {
        let node = space.node("node");
        node.on("pay", |_: &Event, _: &Context| ())
            .named("guarded")
            .guard(|_| panic!("no guard"))
            .check()
            .unwrap();
        node.on("pay", |event: &Event, _: &Context| amount(event)).check().unwrap();
        let failures = Arc::new(Mutex::new(Vec::new()));
        let keep = failures.clone();
        space
            .on("*.error", move |failure: &Event<Failure>, _: &Context| {
                keep.lock().unwrap().push((failure.handler.clone(), failure.code.clone()));
            })
            .check()
            .unwrap();
        space.start().await.unwrap();
        for _ in 0..3 {
            assert_eq!(*space.send(&node, pay(7)).reply::<u64>().await.unwrap(), 7);
        }
        assert_eq!(*failures.lock().unwrap(), vec![("guarded".to_owned(), "panicked".to_owned()); 3]);
    });
}
