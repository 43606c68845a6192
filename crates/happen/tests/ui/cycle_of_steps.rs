//! Mistake: two `async fn` go on with each other.

use happen::{Context, Event, Space, Step, next};

async fn ping(_order: Event<String>, _cx: Context) -> happen::Result<Step> {
    next(pong)
}

async fn pong(_order: Event<String>, _cx: Context) -> happen::Result<Step> {
    next(ping)
}

fn main() {
    let space = Space::memory();
    space.node("orders").on("create-order", ping);
}
