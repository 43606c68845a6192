//! One of Happen's operations in a loop, for profilers and instruction counters: `one ask 1000000`.

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
    World::new(operation).await?.run(operation, count.max(1)).await
}
