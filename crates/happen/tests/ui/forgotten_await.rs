//! Mistake: nothing is sent, for the `.await` is missing.

#![deny(unused_must_use)]

use happen::{Context, Event, Space};

async fn charge(order: Event<String>, cx: Context) {
    cx.send("payments", order.payload().clone());
    cx.send("payments", order.payload().clone()).reply::<u64>();
    cx.node().broadcasting(order.payload().clone());
}

fn main() {
    let space = Space::memory();
    space.node("orders").on("create-order", charge);
}
