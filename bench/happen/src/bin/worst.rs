//! The worst cases in figures: `worst million [NODES]`, `worst late`, `worst deep`, `worst types`, or all of them.
//!
//! Each states time and memory of this machine; what is exact about the same cases is asserted by the tests in
//! `crates/happen/tests/worst.rs`. Run it in release, alone: `cargo run --release --bin worst`.
#![expect(unsafe_code, reason = "a counting global allocator is an unsafe trait; it hands every call on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use happen::{Context, Event, Space, with};
use serde::{Deserialize, Serialize};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static HELD: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches no memory it hands out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(place, layout) }
    }
}

fn held() -> u64 {
    HELD.load(Ordering::Relaxed)
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() << 10
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("ping")]
struct Ping {
    n: u64,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("news")]
struct News {
    n: u64,
}

fn pong(ping: &Event<Ping>, _: &Context) -> u64 {
    ping.n
}

fn per(time: Duration, count: usize) -> f64 {
    time.as_nanos() as f64 / count as f64
}

async fn million(nodes: usize, own: bool) -> happen::Result<()> {
    let kind = if own { "a closure of its own each" } else { "one function for all" };
    let (held_before, resident_before) = (held(), resident());
    let start = Instant::now();
    let space = Space::memory();
    let heard = Arc::new(AtomicU64::new(0));
    for index in 0..nodes {
        let node = space.node(format!("node-{index}"));
        if own {
            node.on("ping", move |ping: &Event<Ping>, _: &Context| ping.n + index as u64).check()?;
        } else {
            node.on("ping", pong).check()?;
        }
    }
    let made = start.elapsed();
    let bytes = held().saturating_sub(held_before) as f64 / nodes as f64;
    let resident_bytes = resident().saturating_sub(resident_before) as f64 / nodes as f64;
    for index in (0..nodes).step_by((nodes / 100).max(1)) {
        let hears = |heard: Arc<AtomicU64>, news: &Event<News>, _: &Context| {
            heard.fetch_add(news.n, Ordering::Relaxed);
        };
        space.find(&format!("node-{index}")).ok_or_else(missing)?.on("news", with(Arc::clone(&heard), hears)).check()?;
    }
    let start = Instant::now();
    space.start().await?;
    let started = start.elapsed();
    let start = Instant::now();
    space.broadcast(News { n: 1 })?;
    let first_broadcast = start.elapsed();
    let start = Instant::now();
    for _ in 0..1_000 {
        space.broadcast(News { n: 1 })?;
    }
    let broadcast = per(start.elapsed(), 1_000);
    let names: Vec<_> = (0..100_000).map(|n| format!("node-{}", n * 7_919 % nodes)).collect();
    let start = Instant::now();
    for name in &names {
        black_box(space.find(name).ok_or_else(missing)?);
    }
    let find = per(start.elapsed(), names.len());
    let start = Instant::now();
    for name in &names {
        black_box(space.send(name.as_str(), Ping { n: 1 }).reply::<u64>().await?);
    }
    let ask = per(start.elapsed(), names.len());
    let start = Instant::now();
    drop(space);
    let dropped = start.elapsed();
    let left = held().saturating_sub(held_before);
    println!(
        "{nodes} nodes, {kind}: made in {made:.2?} ({:.0} ns each), {bytes:.0} B each ({resident_bytes:.0} B \
         resident), started in {started:.2?}, first broadcast to {} of them {first_broadcast:.2?}, further ones \
         {broadcast:.0} ns, find {find:.0} ns, ask by name {ask:.0} ns, dropped in {dropped:.2?}, {left} B left",
        per(made, nodes),
        heard.load(Ordering::Relaxed) / 1_001,
    );
    Ok(())
}

fn missing() -> happen::Error {
    happen::Error::msg("a node that was made is not found")
}

/// How late a timer of a millisecond was beside a flood: the median, 99 of 100, and the most.
struct Lateness(Vec<Duration>);

impl Lateness {
    fn tell(mut self, what: &str, events: u64, time: Duration) {
        self.0.sort_unstable();
        let at = |part: f64| self.0.get((self.0.len() as f64 * part) as usize).copied().unwrap_or_default();
        let most = self.0.last().copied().unwrap_or_default();
        println!(
            "{what}: {events} events in {time:.2?}, {} timers, late by {:.2?} (median), {:.2?} (99 %), {most:.2?} (most)",
            self.0.len(),
            at(0.5),
            at(0.99),
        );
    }
}

/// Runs a flood on a runtime of one thread beside a timer of a millisecond.
fn beside_timers<F: Future<Output = happen::Result<()>>>(
    what: &str,
    flood: impl FnOnce(Space, Arc<AtomicU64>) -> F,
) -> happen::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let late = Arc::new(Mutex::new(Vec::with_capacity(1 << 16)));
        let timer = {
            let late = Arc::clone(&late);
            tokio::spawn(async move {
                let mut interval = tokio::time::interval(Duration::from_millis(1));
                interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    let due = interval.tick().await;
                    if let Ok(mut late) = late.lock() {
                        late.push(due.elapsed());
                    }
                }
            })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Ok(mut late) = late.lock() {
            late.clear();
        }
        let handled = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        flood(Space::memory(), Arc::clone(&handled)).await?;
        // The timer that was due last is told too.
        let time = start.elapsed();
        tokio::time::sleep(Duration::from_millis(2)).await;
        timer.abort();
        let late = late.lock().map(|late| late.clone()).unwrap_or_default();
        Lateness(late).tell(what, handled.load(Ordering::Relaxed), time);
        Ok(())
    })
}

const FLOOD: u64 = 1_000_000;

fn count(handled: Arc<AtomicU64>, _: &Event<Ping>, _: &Context) {
    handled.fetch_add(1, Ordering::Relaxed);
}

async fn count_ready(handled: Arc<AtomicU64>, _: Event<Ping>, _: Context) {
    handled.fetch_add(1, Ordering::Relaxed);
}

fn late() -> happen::Result<()> {
    beside_timers("nothing", |_, _| async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(())
    })?;
    beside_timers("awaited sends to a plain handler", |space, handled| async move {
        space.node("node").on("ping", with(handled, count)).check()?;
        space.start().await?;
        for n in 0..FLOOD {
            space.send("node", Ping { n }).await?;
        }
        Ok(())
    })?;
    beside_timers("asks of an async handler", |space, handled| async move {
        space.node("node").on("ping", with(handled, count_ready)).check()?;
        space.start().await?;
        for n in 0..FLOOD {
            space.send("node", Ping { n }).reply::<()>().await?;
        }
        Ok(())
    })?;
    beside_timers("sixty-four tasks that ask", |space, handled| async move {
        space.node("node").on("ping", with(handled, count)).check()?;
        space.start().await?;
        let tasks: Vec<tokio::task::JoinHandle<happen::Result<()>>> = (0..64)
            .map(|_| {
                let space = space.clone();
                tokio::spawn(async move {
                    for n in 0..FLOOD / 64 {
                        space.send("node", Ping { n }).reply::<()>().await?;
                    }
                    Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    })?;
    beside_timers("a handler of 50 us", |space, handled| async move {
        let works = |handled: Arc<AtomicU64>, _: &Event<Ping>, _: &Context| {
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(50) {}
            handled.fetch_add(1, Ordering::Relaxed);
        };
        space.node("node").on("ping", with(handled, works)).check()?;
        space.start().await?;
        for n in 0..20_000 {
            space.send("node", Ping { n }).await?;
        }
        Ok(())
    })?;
    beside_timers("an async handler of 50 us", |space, handled| async move {
        let works = async |handled: Arc<AtomicU64>, _: Event<Ping>, _: Context| {
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(50) {}
            handled.fetch_add(1, Ordering::Relaxed);
        };
        space.node("node").on("ping", with(handled, works)).check()?;
        space.start().await?;
        for n in 0..20_000 {
            space.send("node", Ping { n }).await?;
        }
        Ok(())
    })?;
    beside_timers("sends of one handler that suspended", |space, handled| async move {
        space.node("node").on("ping", with(handled, count)).check()?;
        let floods = async |_: Event<News>, cx: Context| -> happen::Result<()> {
            for n in 0..FLOOD {
                cx.send("node", Ping { n }).await?;
            }
            Ok(())
        };
        space.node("flooder").on("news", floods).check()?;
        space.start().await?;
        space.send("flooder", News { n: 1 }).reply::<()>().await?;
        Ok(())
    })?;
    beside_timers("broadcasts to 1 000 nodes, each followed by a send", |space, handled| async move {
        for index in 0..1_000 {
            space.node(format!("node-{index}")).on("ping", with(Arc::clone(&handled), count)).check()?;
        }
        space.node("last").on("news", |_: &Event<News>, _: &Context| ()).check()?;
        space.start().await?;
        for n in 0..FLOOD / 1_000 {
            space.broadcast(Ping { n })?;
            space.send("last", News { n }).await?;
        }
        Ok(())
    })?;
    beside_timers("a queue of 10 000 drained, a hundred times", |space, handled| async move {
        let node = space.node("node").max_concurrent(1);
        let works = async |handled: Arc<AtomicU64>, ping: Event<Ping>, cx: Context| {
            if ping.n == 0 {
                cx.sleep(Duration::from_millis(1)).await;
            }
            handled.fetch_add(1, Ordering::Relaxed);
        };
        node.on("ping", with(handled, works)).check()?;
        space.start().await?;
        for _ in 0..100 {
            for n in 0..10_000 {
                space.send(&node, Ping { n }).await?;
            }
            space.settled(Duration::from_secs(60)).await?;
        }
        Ok(())
    })?;
    beside_timers("a cascade of 90 000 plain handlers, ten times", |space, handled| async move {
        let falls = |handled: Arc<AtomicU64>, ping: &Event<Ping>, cx: &Context| {
            handled.fetch_add(1, Ordering::Relaxed);
            if ping.n > 0 {
                cx.send(&cx.node(), Ping { n: ping.n - 1 }).forget();
            }
        };
        let node = space.node("node");
        node.on("ping", with(handled, falls)).check()?;
        space.start().await?;
        for _ in 0..10 {
            space.send(&node, Ping { n: 90_000 }).await?;
        }
        Ok(())
    })?;
    beside_timers("100 slow plain handlers, 10 broadcasts", |space, handled| async move {
        let works = |handled: Arc<AtomicU64>, _: &Event<Ping>, _: &Context| {
            std::thread::sleep(Duration::from_millis(12));
            handled.fetch_add(1, Ordering::Relaxed);
        };
        for index in 0..100 {
            space.node(format!("node-{index}")).on("ping", with(Arc::clone(&handled), works)).check()?;
        }
        space.start().await?;
        // Known to be slow before the timers count.
        for n in 0..10 {
            space.broadcast(Ping { n })?;
            tokio::task::yield_now().await;
        }
        space.settled(Duration::from_secs(60)).await?;
        Ok(())
    })
}

async fn deep() -> happen::Result<()> {
    for levels in [10_000u64, 90_000] {
        let space = Space::memory();
        let falls = |ping: &Event<Ping>, cx: &Context| {
            if ping.n > 0 {
                cx.send(&cx.node(), Ping { n: ping.n - 1 }).forget();
            }
        };
        let asks = async |news: Event<News>, cx: Context| -> happen::Result<u64> {
            if news.n == 0 {
                return Ok(0);
            }
            Ok(*cx.send(&cx.node(), News { n: news.n - 1 }).reply::<u64>().await? + 1)
        };
        let node = space.node("node");
        node.on("ping", falls).check()?;
        node.on("news", asks).check()?;
        space.start().await?;
        let start = Instant::now();
        space.send(&node, Ping { n: levels }).await?;
        let sent = start.elapsed();
        let before = held();
        let start = Instant::now();
        let reply = space.send(&node, News { n: levels }).reply::<u64>().await?;
        println!(
            "{levels} levels: by send {sent:.2?} ({:.0} ns each), by ask {:.2?}, {} B kept after it",
            per(sent, levels as usize),
            start.elapsed(),
            held().saturating_sub(before),
        );
        assert_eq!(*reply, levels);
    }
    Ok(())
}

async fn types() -> happen::Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    node.on("kind.**", |_: &Event, _: &Context| ()).check()?;
    space.start().await?;
    let before = held();
    for (from, to) in [(0, 16_384), (16_384, 32_768), (32_768, 100_000)] {
        let (bytes, start) = (held(), Instant::now());
        for index in from..to {
            space.broadcast(Event::new(&format!("kind.of-{index}"), serde_json::json!({})))?;
        }
        let time = per(start.elapsed(), to - from);
        println!("types {from}..{to}: {time:.0} ns each, {} B more", held() as i64 - bytes as i64);
    }
    println!("100 000 types: {} B in all", held() - before);
    Ok(())
}

fn main() -> happen::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let nodes = arguments.next().and_then(|nodes| nodes.parse().ok()).unwrap_or(1_000_000);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build();
    let all = what.is_empty();
    if all || what == "million" {
        runtime()?.block_on(million(nodes, false))?;
        runtime()?.block_on(million(nodes, true))?;
    }
    if all || what == "late" {
        late()?;
    }
    if all || what == "deep" {
        runtime()?.block_on(deep())?;
    }
    if all || what == "types" {
        runtime()?.block_on(types())?;
    }
    Ok(())
}
