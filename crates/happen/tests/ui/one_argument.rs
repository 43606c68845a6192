//! Mistake: the handler leaves the context out.

use happen::{Event, Space};

async fn validate(_order: Event<String>) -> happen::Result<()> {
    Ok(())
}

fn main() {
    let space = Space::memory();
    space.node("orders").on("create-order", validate);
    space.node("orders").on("create-order", |_: &Event<String>| ());
}
