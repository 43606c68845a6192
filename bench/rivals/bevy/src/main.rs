//! bevy_ecs: observers, which run inside `World::trigger`. Only fan-out is comparable: there is no addressee, no reply,
//! no asynchronous handler, and everything needs `&mut World`, so one thread at a time.
//!
//! Settings: built with the `std` feature only (no reflection, no backtraces, no change locations). Each observer is a
//! system of its own without parameters. An idle node is an entity with an observer of its own.

use std::hint::black_box;

use bench_common::{BROADCASTS, BURST, Bench, LISTENERS, MANY_NODES, alloc};
use bevy_ecs::prelude::*;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

#[derive(Event)]
struct Tick {
    number: u64,
}

#[derive(Event)]
struct Other {
    number: u64,
}

fn broadcasts(world: &mut World, bursts: u64) {
    for _ in 0..bursts {
        for number in 0..BROADCASTS {
            world.trigger(Tick { number: black_box(number) });
        }
    }
}

fn listening(world: &mut World) {
    world.add_observer(|tick: On<'_, '_, Tick>| {
        black_box(tick.number);
    });
}

fn main() {
    let bench = Bench::from_arguments();
    let mut world = World::new();
    (0..LISTENERS).for_each(|_| listening(&mut world));
    world.flush();
    for count in bench.operation("broadcast", 300).each(BURST) {
        broadcasts(&mut world, count);
    }
    let mut world = World::new();
    for index in 0..MANY_NODES {
        if index % (MANY_NODES / LISTENERS) == 0 {
            listening(&mut world);
        }
        // Waits for another event, as the other nodes do everywhere.
        world.add_observer(|other: On<'_, '_, Other>| {
            black_box(other.number);
        });
    }
    for count in bench.operation("publish-many", 30).each(BROADCASTS) {
        broadcasts(&mut world, count);
    }
}
