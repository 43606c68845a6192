//! Mistake: a plain handler mixes the two kinds: the event by value, the context by reference, or both by value.

use happen::{Context, Event, Space};

fn count(_order: Event<String>, _cx: &Context) {}

fn charge(_order: &Event<String>, _cx: Context) {}

fn refund(_order: Event<String>, _cx: Context) {}

async fn cancel(_order: &Event<String>, _cx: &Context) {}

fn main() {
    let space = Space::memory();
    space.node("orders").on("create-order", count);
    space.node("orders").on("charge", charge);
    space.node("orders").on("refund", refund);
    space.node("orders").on("cancel", cancel);
}
