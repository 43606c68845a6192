//! Exact counts of allocations on the ways that promise none. Everything an event needs is made while the way is warm;
//! from then on the count per event is zero, in debug and in release builds.
#![expect(unsafe_code, reason = "a counting global allocator is an unsafe trait; it hands every call on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::future::{Future, IntoFuture};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Task, Poll, Waker};

use happen::raw::FieldPath;
use happen::{
    Context, Dynamic, Envelope, Event, EventId, EventType, Node, RawEvent, Result, Space, Step, Value, done,
    next,
};
use serde::{Deserialize, Serialize};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    // The harness and the ticking clock run on threads of their own, so each thread has its own count.
    static COUNTED: Cell<u64> = const { Cell::new(0) };
    static COUNTS: Cell<bool> = const { Cell::new(false) };
    static FIRST: RefCell<Option<Backtrace>> = const { RefCell::new(None) };
}

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches no memory it hands out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are handed on.
        unsafe { System.realloc(place, layout, bytes) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(place, layout) }
    }
}

fn count() {
    // A thread that ends has no counter any more, and nobody asks for its count.
    if COUNTS.try_with(Cell::get) != Ok(true) {
        return;
    }
    COUNTED.set(COUNTED.get() + 1);
    if COUNTED.get() == 1 {
        // Taking a backtrace allocates too, which is not what is counted.
        COUNTS.set(false);
        let first = Backtrace::force_capture();
        FIRST.with_borrow_mut(|slot| *slot = Some(first));
        COUNTS.set(true);
    }
}

/// The number of allocations of this thread while `work` runs, and where the first one was.
fn allocations(work: impl FnOnce()) -> (u64, String) {
    COUNTED.set(0);
    COUNTS.set(true);
    work();
    COUNTS.set(false);
    let first = FIRST.take().map(|trace| trace.to_string()).unwrap_or_default();
    (COUNTED.get(), first)
}

/// Runs `event` often enough that all memory to be used again is there, then asserts that no further run allocates.
#[track_caller]
fn never_allocates(mut event: impl FnMut()) {
    for _ in 0..WARM_UP {
        event();
    }
    let (count, first) = allocations(|| (0..COUNTED_RUNS).for_each(|_| event()));
    assert_eq!(count, 0, "{count} allocations in {COUNTED_RUNS} runs, the first one at:\n{first}");
}

const WARM_UP: usize = 200;
/// Enough to go around the ring of remembered headers, which has 4 096 slots, and for buffers to grow at odd times.
const COUNTED_RUNS: usize = 6_000;

/// Polls to the end on this thread. What gives way to other tasks is polled again at once.
fn wait<F: IntoFuture>(future: F) -> F::Output {
    let mut future = pin!(future.into_future());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Task::from_waker(Waker::noop())) {
            return output;
        }
    }
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("add")]
struct Add {
    a: u64,
    b: u64,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("added")]
struct Added {
    sum: u64,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("ping")]
struct Ping {
    n: u64,
}

/// A space with a node `adder`, not started yet.
fn space() -> (Space, Node) {
    let space = Space::memory();
    let node = space.node("adder");
    (space, node)
}

fn plain(add: &Event<Add>, _: &Context) -> Added {
    Added { sum: add.a + add.b }
}

fn assert_asks_without_allocation(space: &Space, node: &Node) {
    assert!(wait(space.start()).is_ok());
    let mut n = 0;
    never_allocates(|| {
        n += 1;
        let added = wait(space.send(node, Add { a: n, b: 1 }).reply::<Added>());
        assert_eq!(added.ok().map(|added| added.sum), Some(n + 1));
    });
}

#[test]
fn the_counter_counts() {
    let (count, first) = allocations(|| drop(std::hint::black_box(Box::new(7u64))));
    assert_eq!(count, 1);
    assert!(!first.is_empty());
    let (count, _) = allocations(|| {
        let mut grows = Vec::with_capacity(1);
        for n in 0..2u64 {
            grows.push(std::hint::black_box(n));
        }
    });
    assert_eq!(count, 2, "growing counts");
    let (count, _) = allocations(|| drop(std::hint::black_box(vec![0u8; 100])));
    assert_eq!(count, 1, "zeroed memory counts");
}

#[test]
fn asking_a_plain_handler() {
    let (space, node) = space();
    node.on("add", plain).check().unwrap();
    assert_asks_without_allocation(&space, &node);
}

#[test]
fn asking_an_async_handler_that_is_ready() {
    async fn add(add: Event<Add>, _: Context) -> Added {
        Added { sum: add.a + add.b }
    }
    let (space, node) = space();
    node.on("add", add).check().unwrap();
    assert_asks_without_allocation(&space, &node);
}

#[test]
fn three_steps_of_both_kinds() {
    async fn first(_: Event<Add>, _: Context) -> Result<Step> {
        next(second)
    }
    fn second(_: &Event<Add>, _: &Context) -> Result<Step> {
        next(third)
    }
    async fn third(add: Event<Add>, _: Context) -> Result<Step> {
        done(Added { sum: add.a + add.b })
    }
    let (space, node) = space();
    node.on("add", first).step(second).step(third).check().unwrap();
    assert_asks_without_allocation(&space, &node);
}

#[test]
fn steps_that_read_in_place_between_others() {
    async fn first(_: Event<Add>, _: Context) -> Result<Step> {
        next(second)
    }
    fn second(event: RawEvent<'_>) -> Result<Step> {
        match event.u64("b") {
            Some(1) => next(third),
            _ => done(0u64),
        }
    }
    async fn third(add: Event<Add>, _: Context) -> Result<Step> {
        done(Added { sum: add.a + add.b })
    }
    let (space, node) = space();
    node.on("add", first).step(second).step(third).check().unwrap();
    assert_asks_without_allocation(&space, &node);
}

#[test]
fn asking_a_serial_node() {
    let (space, node) = space();
    let node = node.serial();
    node.on("add", plain).check().unwrap();
    assert_asks_without_allocation(&space, &node);
}

#[test]
fn sending_without_a_reply() {
    let (space, node) = space();
    let sum = Arc::new(AtomicU64::new(0));
    let total = Arc::clone(&sum);
    node.on("add", move |add: &Event<Add>, _: &Context| {
        total.fetch_add(add.a, Ordering::Relaxed);
    })
    .check()
    .unwrap();
    wait(space.start()).unwrap();
    never_allocates(|| {
        wait(space.send(&node, Add { a: 1, b: 0 })).unwrap();
    });
    assert_eq!(sum.load(Ordering::Relaxed), (WARM_UP + COUNTED_RUNS) as u64);
}

#[test]
fn a_broadcast_to_a_hundred() {
    let space = Space::memory();
    let sum = Arc::new(AtomicU64::new(0));
    for index in 0..100 {
        let total = Arc::clone(&sum);
        let listener = space.node(format!("listener-{index}"));
        listener
            .on("ping", move |ping: &Event<Ping>, _: &Context| {
                total.fetch_add(ping.n, Ordering::Relaxed);
            })
            .check()
            .unwrap();
    }
    wait(space.start()).unwrap();
    never_allocates(|| {
        space.broadcast(Ping { n: 1 }).unwrap();
    });
    assert_eq!(sum.load(Ordering::Relaxed), 100 * (WARM_UP + COUNTED_RUNS) as u64);
}

#[test]
fn sending_asking_and_broadcasting_inside_a_handler() {
    let (space, node) = space();
    let listener = space.node("listener");
    let heard = Arc::new(AtomicU64::new(0));
    let total = Arc::clone(&heard);
    listener
        .on("ping", move |ping: &Event<Ping>, _: &Context| {
            total.fetch_add(ping.n, Ordering::Relaxed);
            ping.n
        })
        .check()
        .unwrap();
    let target = listener.clone();
    node.on("add", move |add: &Event<Add>, cx: &Context| -> Result<Added> {
        cx.broadcast(Ping { n: 1 })?;
        cx.send(&target, Ping { n: 1 }).forget();
        let n = wait(cx.send(&target, Ping { n: 1 }).reply::<u64>())?;
        Ok(Added { sum: add.a + *n })
    })
    .check()
    .unwrap();
    assert_asks_without_allocation(&space, &node);
    assert_eq!(heard.load(Ordering::Relaxed), 3 * (WARM_UP + COUNTED_RUNS) as u64);
}

/// About 200 bytes when it is encoded.
#[derive(happen::Event, Clone, Copy, Debug, Serialize, Deserialize)]
#[event("sensor.read")]
struct Reading {
    id: u32,
    at: u64,
    celsius: f64,
    humidity: f64,
    position: [f64; 3],
    samples: [u16; 32],
    ok: bool,
}

fn reading(id: u32) -> Reading {
    Reading {
        id,
        at: 1_700_000_000_000,
        celsius: 21.5,
        humidity: 0.4,
        position: [59.3, 18.1, 28.0],
        samples: [1_000; 32],
        ok: true,
    }
}

const CELSIUS: FieldPath<'_> = FieldPath::new("celsius");

fn three_fields(event: RawEvent<'_>) -> Option<u64> {
    Some(u64::from(event.u32("id")?) + event.f64(&CELSIUS)? as u64 + u64::from(event.bool("ok")?))
}

#[test]
fn three_fields_of_two_hundred_bytes_in_place() {
    let space = Space::memory();
    let node = space.node("sensors");
    let bytes = Arc::new(AtomicU64::new(0));
    let len = Arc::clone(&bytes);
    node.zero("sensor.*", move |event| {
        len.store(event.as_bytes().len() as u64, Ordering::Relaxed);
        three_fields(event).unwrap()
    })
    .check()
    .unwrap();
    wait(space.start()).unwrap();
    never_allocates(|| {
        wait(space.send(&node, reading(7))).unwrap();
    });
    never_allocates(|| assert_eq!(*wait(space.send(&node, reading(7)).reply::<u64>()).unwrap(), 29));
    assert!((190..=210).contains(&bytes.load(Ordering::Relaxed)), "{bytes:?}");
}

#[test]
fn an_event_of_bytes_sent_again_and_again() {
    let space = Space::memory();
    let node = space.node("sensors");
    node.zero("sensor.*", |event| three_fields(event).unwrap()).check().unwrap();
    wait(space.start()).unwrap();
    let mut bytes = Vec::new();
    happen_core::payload::ErasedPayload::encode(&reading(7), &mut bytes).unwrap();
    let event = Dynamic::from_bytes(EventType::new("sensor.read"), bytes.into());
    never_allocates(|| {
        let sum = wait(space.send(&node, event.clone()).reply::<u64>()).unwrap();
        assert_eq!(*sum, 29);
    });
}

#[test]
fn a_broadcast_to_many_that_read_in_place_and_send_on() {
    let space = Space::memory();
    let sum = Arc::new(AtomicU64::new(0));
    for index in 0..10 {
        let total = Arc::clone(&sum);
        space
            .node(format!("sensors-{index}"))
            .zero("sensor.read", move |event| -> Result<()> {
                let n = three_fields(event).unwrap();
                event.context().broadcast(Ping { n })?;
                total.fetch_add(three_fields(event).unwrap(), Ordering::Relaxed);
                Ok(())
            })
            .check()
            .unwrap();
    }
    let total = Arc::clone(&sum);
    space
        .node("pinged")
        .zero("ping", move |event| {
            total.fetch_add(event.u64("n").unwrap(), Ordering::Relaxed);
        })
        .check()
        .unwrap();
    wait(space.start()).unwrap();
    never_allocates(|| {
        space.broadcast(reading(7)).unwrap();
    });
    assert_eq!(sum.load(Ordering::Relaxed), 20 * 29 * (WARM_UP + COUNTED_RUNS) as u64);
}

/// What travels by value on the way of every event is small.
#[test]
fn sizes() {
    assert!(size_of::<Envelope>() <= 128, "{}", size_of::<Envelope>());
    assert_eq!(size_of::<EventId>(), 16);
    assert_eq!(size_of::<Option<EventId>>(), 16);
    assert_eq!(size_of::<Context>(), 2 * size_of::<usize>());
    assert_eq!(size_of::<Value>(), 4 * size_of::<usize>(), "24 bytes inline and a table");
    assert_eq!(size_of::<happen::Error>(), size_of::<usize>(), "results of the way stay small");
    assert_eq!(size_of::<RawEvent<'_>>(), 4 * size_of::<usize>());
}

#[test]
fn very_many_types_in_turn_allocate_nothing_once_they_were_seen() {
    let (space, node) = space();
    (0..49).for_each(|index| drop(node.on(&*format!("kind.*.never-{index}"), |_: &Event, _: &Context| {})));
    node.on("kind.*.seen", |_: &Event, _: &Context| {}).check().unwrap();
    assert!(wait(space.start()).is_ok());
    // More than a thread remembers to have seen.
    let events: Vec<Dynamic> =
        (0..2_000).map(|index| Event::new(&format!("kind.{index}.seen"), serde_json::Value::Null)).collect();
    let send_all = || events.iter().for_each(|event| assert!(wait(space.send(&node, event.clone())).is_ok()));
    (0..6).for_each(|_| send_all());
    let (count, first) = allocations(|| (0..3).for_each(|_| send_all()));
    assert_eq!(count, 0, "{count} allocations, the first one at:\n{first}");
}
