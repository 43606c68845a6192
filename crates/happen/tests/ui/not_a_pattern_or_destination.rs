//! Mistake: a pattern that is a number, and an event sent to what is no node.

use happen::{Context, Event, Space};

fn count(_order: &Event<String>, _cx: &Context) {}

async fn order(space: &Space) -> happen::Result<()> {
    space.send(7, String::from("tea")).await?;
    let node = space.node("orders");
    space.send(node, String::from("tea")).await?;
    Ok(())
}

fn main() {
    let space = Space::memory();
    space.node("orders").on(7, count);
    drop(order(&space));
}
