//! One of Happen's operations in a loop, for profilers and instruction counters: `one ask 1000000`.

use std::time::Duration;

use bench_common::{one_thread, run, two_workers};
use bench_happen::{ON_ONE_THREAD, ON_TWO_WORKERS, Operation, World};
use happen::{Error, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let count = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let find = |all: &[Operation]| all.iter().copied().find(|(known, ..)| *known == name);
    match (find(&ON_ONE_THREAD), find(&ON_TWO_WORKERS)) {
        (Some((name, _, each)), _) => run(&one_thread(), repeat(name, count / each)),
        (_, Some((name, _, each))) => run(&two_workers(), repeat(name, count / each)),
        (None, None) => {
            let names: Vec<_> = ON_ONE_THREAD.iter().chain(&ON_TWO_WORKERS).map(|(name, ..)| *name).collect();
            Err(Error::msg(format!("say `one OPERATION COUNT` with one of {}", names.join(", "))))
        }
    }
}

async fn repeat(operation: &'static str, count: u64) -> Result<()> {
    let world = World::new(operation).await?;
    // Until its thread has run for the first time the coarse clock asks the system, for every event; under valgrind,
    // which runs one thread at a time, that can be for long.
    world.run(operation, 1).await?;
    tokio::time::sleep(CLOCK_STARTS).await;
    world.run(operation, count.max(1)).await
}

/// Several ticks of the coarse clock.
const CLOCK_STARTS: Duration = Duration::from_millis(5);
