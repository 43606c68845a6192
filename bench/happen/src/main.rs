//! Happen. What is measured is in the library; this runs all of it.

use std::sync::Arc;

use bench_common::{Bench, MANY_NODES, alloc, one_thread, run, two_workers};
use bench_happen::{ON_ONE_THREAD, ON_TWO_WORKERS, Operation, World, fresh_event, idle_owning, idle_sharing};
use happen::{Result, Space};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

fn main() -> Result<()> {
    let bench = Bench::from_arguments();
    // First, and kept, so that what they take in memory is new memory.
    std::mem::forget(run(&one_thread(), idle(bench.clone()))?);
    run(&two_workers(), measure(bench.clone(), &ON_TWO_WORKERS))?;
    run(&one_thread(), measure(bench.clone(), &ON_ONE_THREAD))?;
    run(&one_thread(), first_sight(bench))
}

async fn measure(bench: Bench, operations: &'static [Operation]) -> Result<()> {
    let world = World::new("").await?;
    for &(name, count, each) in operations {
        let many =
            if name == "publish-many" && bench.wants(name) { Some(World::new(name).await?) } else { None };
        let world = many.as_ref().unwrap_or(&world);
        for count in bench.operation(name, count).each(each) {
            World::run(world, name, count).await?;
        }
    }
    Ok(())
}

/// Types that were never seen before, and the same ones again.
async fn first_sight(bench: Bench) -> Result<()> {
    if !bench.wants("route-first") && !bench.wants("route-again") {
        return Ok(());
    }
    let world: Arc<World> = World::new("").await?;
    let count = bench.scaled(TYPES);
    let events: Vec<_> = (0..2 * count).map(fresh_event).collect();
    for name in ["route-first", "route-again"] {
        let mut left = events.iter().as_slice();
        for count in bench.operation(name, TYPES) {
            let (now, later) = left.split_at(count as usize);
            world.sends_each(now).await?;
            left = later;
        }
    }
    Ok(())
}

async fn idle(bench: Bench) -> Result<Vec<Space>> {
    let mut kept = Vec::new();
    if bench.wants("idle-shared") {
        kept.push(bench.items("idle-shared", MANY_NODES, idle_sharing).await?);
    }
    if bench.wants("idle-own") {
        kept.push(bench.items("idle-own", MANY_NODES, idle_owning).await?);
    }
    Ok(kept)
}

/// Types that are sent for the first time: few enough that none of what is remembered of a type is forgotten again.
const TYPES: u64 = 500;
