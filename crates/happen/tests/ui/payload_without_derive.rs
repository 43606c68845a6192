//! Mistake: the payload's type derives everything but `happen::Event`.

use happen::{Context, Event, Space};

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct CreateOrder {
    customer: String,
}

async fn validate(_order: Event<CreateOrder>, _cx: Context) {}

fn main() {
    let space = Space::memory();
    space.node("orders").on("create-order", validate);
    space.node("orders").on("create-order", |_: &Event<CreateOrder>, _: &Context| ());
}
