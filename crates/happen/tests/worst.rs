//! The worst that may come: deep cascades, slow handlers, floods, very many nodes and types, and code of the user's that
//! panics where nobody expects it. What is stated of them is exact; times are measured by `bench/src/bin/worst.rs`.
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]
#![expect(unsafe_code, reason = "a counting global allocator is an unsafe trait; it hands every call on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::{Future, IntoFuture};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as Task, Poll, Waker};

use happen::{Config, Context, Event, Node, Result, Space, limits, millis, secs, with};
use happen_testing::Simulator;
use serde_json::json;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    // Each test has a thread, so each has a count of its own, whatever runs beside it.
    static HELD: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches no memory it hands out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(place, layout) }
    }
}

fn count(bytes: i64) {
    // A thread that ends has no counter any more, and nobody asks for its count.
    let _ended = HELD.try_with(|held| held.set(held.get() + bytes));
}

/// Bytes that this thread took and did not give back while `work` ran, or gave back beyond what it took.
fn bytes_kept<R>(work: impl FnOnce() -> R) -> (i64, R) {
    let before = HELD.get();
    let result = work();
    (HELD.get() - before, result)
}

/// Polls to the end on this thread. What gives way to other tasks is polled again at once.
fn wait<F: IntoFuture>(future: F) -> F::Output {
    wait_counting(future, || ()).0
}

/// As [`wait`], and calls `turn` after each poll that was not the last.
fn wait_counting<F: IntoFuture>(future: F, mut turn: impl FnMut()) -> (F::Output, u64) {
    let mut future = pin!(future.into_future());
    let mut turns = 0;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Task::from_waker(Waker::noop())) {
            return (output, turns);
        }
        turns += 1;
        turn();
    }
}

fn run<F, Fut, R>(seed: u64, test: F) -> R
where
    F: FnOnce(Space) -> Fut,
    Fut: Future<Output = R>,
{
    let sim = Simulator::new(seed);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    sim.run(test(space))
}

type Log<T> = Arc<Mutex<Vec<T>>>;

// ---- Cascades

const DEEP: u32 = 10_000;

/// Runs `work` on a thread with little stack: what overflows it ends the whole process, so there is no way to miss it.
fn with_small_stack<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(SMALL_STACK_BYTES);
        thread.spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

const SMALL_STACK_BYTES: usize = 512 << 10;

/// The node that the level after this one is handled by: two take turns.
fn other(level: u32) -> &'static str {
    if level.is_multiple_of(2) { "even" } else { "odd" }
}

#[test]
fn cascades_by_send_and_by_broadcast_fit_a_small_stack() {
    let forgets = |reached: Log<u32>, n: &Event<u32>, cx: &Context| {
        reached.lock().unwrap().push(**n);
        if **n < DEEP {
            cx.send(other(**n + 1), **n + 1).forget();
        }
    };
    let awaits = async |reached: Log<u32>, n: Event<u64>, cx: Context| -> Result<()> {
        let n = *n as u32;
        reached.lock().unwrap().push(n);
        if n < DEEP {
            cx.send(other(n + 1), u64::from(n + 1)).await?;
        }
        Ok(())
    };
    let spreads = |reached: Log<u32>, n: &Event<i64>, cx: &Context| -> Result<()> {
        reached.lock().unwrap().push(**n as u32);
        if **n < i64::from(DEEP) {
            cx.broadcast(**n + 1)?;
        }
        Ok(())
    };
    with_small_stack(|| {
        run(1, async |space| {
            let reached: [Log<u32>; 3] = Default::default();
            for node in ["even", "odd"].map(|name| space.node(name)) {
                node.on("u32", with(Arc::clone(&reached[0]), forgets)).check().unwrap();
                node.on("u64", with(Arc::clone(&reached[1]), awaits)).check().unwrap();
            }
            space.node("listener").on("i64", with(Arc::clone(&reached[2]), spreads)).check().unwrap();
            space.start().await.unwrap();
            space.send("odd", 1u32).await.unwrap();
            space.send("odd", 1u64).await.unwrap();
            space.broadcast(1i64).unwrap();
            space.settled(secs(10)).await.unwrap();
            for reached in reached {
                assert_eq!(*reached.lock().unwrap(), (1..=DEEP).collect::<Vec<_>>());
            }
            assert!(space.dead_letters().is_empty());
        });
    });
}

/// Asks down so many levels at a node of this kind and says what comes back.
fn asked_down(levels: u32, kind: fn(Node) -> Node, ends: fn(u32) -> Result<u32>) -> Result<u32> {
    let asks = async |ends: fn(u32) -> Result<u32>, n: Event<u32>, cx: Context| -> Result<u32> {
        if *n == 0 {
            return ends(0);
        }
        Ok(*cx.send(other(*n - 1), *n - 1).reply::<u32>().await? + 1)
    };
    with_small_stack(|| {
        run(1, async |space| {
            for name in ["even", "odd"] {
                kind(space.node(name)).on("u32", with(ends, asks)).check().unwrap();
            }
            space.start().await.unwrap();
            let reply = space.send("even", levels).reply::<u32>().await;
            assert_eq!(space.flows_under_way(), 0);
            reply.map(happen::Reply::into_inner)
        })
    })
}

#[test]
fn a_cascade_by_ask_fits_a_small_stack() {
    assert_eq!(asked_down(DEEP, |node| node, Ok).unwrap(), DEEP);
}

#[test]
fn a_cascade_by_ask_of_serial_keys_fits_a_small_stack() {
    assert_eq!(asked_down(DEEP, |node| node.serial_by(|n: &u32| *n), Ok).unwrap(), DEEP);
}

#[test]
fn a_failure_comes_back_up_a_cascade_and_fits_a_small_stack() {
    let error = asked_down(2_000, |node| node, |_| Err(happen::Error::msg("at the bottom"))).unwrap_err();
    assert!(error.chain().iter().any(|cause| cause.contains("at the bottom")), "{error:?}");
    let error = asked_down(2_000, |node| node, |_| panic!("at the bottom")).unwrap_err();
    assert!(format!("{error:?}").contains("at the bottom"), "{error:?}");
}
