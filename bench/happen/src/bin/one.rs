//! One operation in a loop, for profilers and instruction counters: `one ask|ready|steps|send|serial|broadcast COUNT`.

use std::hint::black_box;

use happen::{Context, Event, Space, Step, done, next};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Serialize, Deserialize)]
struct Add {
    number: u64,
}

async fn add(event: Event<Add>, _: Context) -> u64 {
    event.number + 1
}

async fn first(_: Event<Add>, _: Context) -> happen::Result<Step> {
    next(second)
}

async fn second(_: Event<Add>, _: Context) -> happen::Result<Step> {
    next(third)
}

async fn third(event: Event<Add>, _: Context) -> happen::Result<Step> {
    done(event.number + 1)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> happen::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let operation = arguments.next().unwrap_or_default();
    let count: u64 = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let space = Space::memory();
    let plain = space.node("plain");
    plain.on("add", |event: &Event<Add>, _: &Context| event.number + 1).check()?;
    let ready = space.node("ready");
    ready.on("add", add).check()?;
    let steps = space.node("steps");
    steps.on("add", first).step(second).step(third).check()?;
    let serial = space.node("serial").serial();
    serial.on("add", |event: &Event<Add>, _: &Context| event.number + 1).check()?;
    let listening = if operation == "broadcast" { 100 } else { 0 };
    for index in 0..listening {
        let listener = space.node(format!("listener-{index}"));
        listener
            .on("add", |event: &Event<Add>, _: &Context| {
                black_box(event.number);
            })
            .check()?;
    }
    space.start().await?;
    for _ in 0..count {
        let event = Add { number: black_box(1) };
        match operation.as_str() {
            "ask" => drop(black_box(space.send(&plain, event).reply::<u64>().await?)),
            "ready" => drop(black_box(space.send(&ready, event).reply::<u64>().await?)),
            "steps" => drop(black_box(space.send(&steps, event).reply::<u64>().await?)),
            "serial" => drop(black_box(space.send(&serial, event).reply::<u64>().await?)),
            "send" => {
                black_box(space.send(&plain, event).await?);
            }
            "broadcast" => {
                black_box(space.broadcast(event)?);
            }
            _ => return Err(happen::Error::msg("name one of ask, ready, steps, serial, send, broadcast")),
        }
    }
    Ok(())
}
