//! Mistake: the handler returns what is neither a step nor a payload.

use happen::{Context, Event, Space};

struct Receipt;

async fn validate(_order: Event<String>, _cx: Context) -> Receipt {
    Receipt
}

async fn charge(_order: Event<String>, _cx: Context) -> happen::Result<Receipt> {
    Ok(Receipt)
}

fn main() {
    let space = Space::memory();
    space.node("orders").on("create-order", validate);
    space.node("orders").on("create-order", charge);
    space.node("orders").on("create-order", |_: &Event<String>, _: &Context| Receipt);
}
