//! What all benchmark programs share: arguments, counters, clocks, output. It knows nothing of any contender.
//!
//! A program prints one line for each operation, `operation<TAB>cpu_ns<TAB>wall_ns<TAB>allocations`, each per
//! operation; a line about memory has a fifth column, resident bytes per item. Its arguments:
//!
//! - `--only ask,send` runs these operations and no others;
//! - `--percent 5` runs each operation 5 % as often as usual, for a smoke run.

pub mod alloc;
mod latch;
pub mod mailboxes;
mod process;

use std::time::{Duration, Instant};

pub use latch::{LATCHES, Last, Latch, Suspend, suspend_once};

/// Messages that are under way before a sender waits for them to be handled, where it does not wait for each.
pub const BURST: u64 = 1_000;
/// Listeners of a broadcast.
pub const LISTENERS: u64 = 100;
/// Broadcasts under way before the sender waits: as many deliveries as there are messages in a burst.
pub const BROADCASTS: u64 = BURST / LISTENERS;
/// Callers of one node at once.
pub const CALLERS: u64 = 64;
/// Nodes where it matters how many there are.
pub const MANY_NODES: u64 = 100_000;
/// How long a handler sleeps that sleeps.
pub const SLEEP: Duration = Duration::from_millis(1);

/// What the program was asked to do.
#[derive(Debug, Clone)]
pub struct Bench {
    only: Vec<String>,
    percent: u64,
}

impl Bench {
    /// Reads the arguments of the program.
    ///
    /// # Panics
    ///
    /// When they cannot be understood.
    #[must_use]
    pub fn from_arguments() -> Self {
        let mut bench = Self { only: Vec::new(), percent: 100 };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().unwrap_or_default();
            match name.as_str() {
                "--only" => bench.only = value.split(',').map(str::to_owned).collect(),
                "--percent" => bench.percent = value.parse().expect("--percent takes a number"),
                other => panic!("there is no argument {other}; there are --only and --percent"),
            }
        }
        bench
    }

    /// Whether this operation is to be run.
    #[must_use]
    pub fn wants(&self, operation: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == operation)
    }

    /// So many, or the part of them that a smoke run makes do with.
    #[must_use]
    pub fn scaled(&self, count: u64) -> u64 {
        (count * self.percent / 100).max(1)
    }

    /// Measures an operation that is run `count` times.
    ///
    /// ```
    /// for count in bench_common::Bench::from_arguments().operation("add", 1_000) {
    ///     for number in 0..count {
    ///         std::hint::black_box(number + 1);
    ///     }
    /// }
    /// ```
    ///
    /// The loop's body is run three times: to warm up, timed, and counting allocations. When it is over, the line is
    /// printed.
    #[must_use]
    pub fn operation(&self, name: &'static str, count: u64) -> Operation {
        Operation {
            name,
            count: self.scaled(count),
            each: 1,
            pass: if self.wants(name) { Pass::Begin } else { Pass::Over },
            began: (Duration::ZERO, Instant::now()),
            took: (Duration::ZERO, Duration::ZERO),
        }
    }

    /// Measures what making `count` items costs in time and memory; prints nothing when the operation is not wanted, but
    /// makes them. They have to be kept until the program ends, or the next ones would be put where these were and seem
    /// to take no memory.
    pub async fn items<T>(&self, name: &'static str, count: u64, make: impl AsyncFnOnce(u64) -> T) -> T {
        let count = self.scaled(count).max(LISTENERS);
        let resident = process::resident_bytes();
        alloc::start();
        let began = (process::cpu_time(), Instant::now());
        let made = make(count).await;
        let took = (process::cpu_time() - began.0, began.1.elapsed());
        let allocations = alloc::stop();
        let resident = process::resident_bytes().saturating_sub(resident);
        if self.wants(name) {
            let per = |total: f64| total / count as f64;
            println!(
                "{name}\t{:.2}\t{:.2}\t{:.4}\t{:.1}",
                per(took.0.as_nanos() as f64),
                per(took.1.as_nanos() as f64),
                per(allocations as f64),
                per(resident as f64),
            );
        }
        made
    }
}

/// One operation, as an iterator over its passes; gives how often to run it in each.
#[derive(Debug)]
pub struct Operation {
    name: &'static str,
    count: u64,
    each: u64,
    pass: Pass,
    began: (Duration, Instant),
    took: (Duration, Duration),
}

#[derive(Debug, Clone, Copy)]
enum Pass {
    Begin,
    WarmUp,
    Timed,
    Counted,
    Over,
}

impl Operation {
    /// Says that one run of the loop is so many operations, such as the deliveries of one broadcast.
    #[must_use]
    pub const fn each(mut self, each: u64) -> Self {
        self.each = each;
        self
    }

    const fn short(&self) -> u64 {
        let part = self.count / PART;
        if part == 0 { 1 } else { part }
    }

    fn print(&self, allocations: u64) {
        let per = |total: f64, count: u64| total / (count * self.each) as f64;
        println!(
            "{}\t{:.2}\t{:.2}\t{:.4}",
            self.name,
            per(self.took.0.as_nanos() as f64, self.count),
            per(self.took.1.as_nanos() as f64, self.count),
            per(allocations as f64, self.short()),
        );
    }
}

impl Iterator for Operation {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        match self.pass {
            Pass::Begin => {
                self.pass = Pass::WarmUp;
                Some(self.short())
            }
            Pass::WarmUp => {
                self.pass = Pass::Timed;
                self.began = (process::cpu_time(), Instant::now());
                Some(self.count)
            }
            Pass::Timed => {
                self.took = (process::cpu_time() - self.began.0, self.began.1.elapsed());
                self.pass = Pass::Counted;
                alloc::start();
                Some(self.short())
            }
            Pass::Counted => {
                self.print(alloc::stop());
                self.pass = Pass::Over;
                None
            }
            Pass::Over => None,
        }
    }
}

/// A tokio runtime on this thread alone, with timers and without I/O, whose polling would be paid for by every
/// contender.
#[must_use]
pub fn one_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime can be built")
}

/// A tokio runtime with two workers.
#[must_use]
pub fn two_workers() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_time().build().expect("a runtime can be built")
}

/// Runs a program on a runtime as one of its tasks. The task that `block_on` runs itself is woken by way of the
/// drivers, which costs a contender that hops between tasks more than a hop between two spawned ones.
pub fn run<F>(runtime: &tokio::runtime::Runtime, program: F) -> F::Output
where
    F: Future<Output: Send> + Send + 'static,
{
    runtime.block_on(async { tokio::spawn(program).await.expect("the program ran to its end") })
}

/// Passes that do not measure time run the operation this many times less often.
const PART: u64 = 10;
