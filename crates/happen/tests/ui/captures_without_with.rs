//! Mistake: an async closure captures what `with` should hand to it.

use std::sync::Arc;

use happen::{Context, Event, Space};

fn main() {
    let space = Space::memory();
    let total = Arc::new(String::from("total"));
    space.node("orders").on("create-order", async move |order: Event<String>, _cx: Context| {
        format!("{} {}", order.payload(), total)
    });
    let sum = String::from("sum");
    space.node("orders").on("refund", move |order: Event<String>, _cx: Context| async move {
        format!("{} {}", order.payload(), sum)
    });
}
