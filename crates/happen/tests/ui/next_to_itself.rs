//! Mistake: an `async fn` goes on with itself.

use happen::{Context, Event, Space, Step, next};

async fn poll(_order: Event<String>, _cx: Context) -> happen::Result<Step> {
    next(poll)
}

fn main() {
    let space = Space::memory();
    space.node("orders").on("create-order", poll);
}
