//! Mistake: the handler takes the payload instead of the event.

use happen::{Context, Space};

#[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
struct CreateOrder {
    customer: String,
}

async fn validate(_order: CreateOrder, _cx: Context) {}

fn check(_order: &CreateOrder, _cx: &Context) {}

fn main() {
    let space = Space::memory();
    space.node("orders").on("create-order", validate);
    space.node("orders").on("create-order", check);
}
