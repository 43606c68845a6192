//! Mistake: the handler wants a dependency and is not wrapped in `with`.

use happen::{Context, Event, Space};

#[derive(Clone)]
struct Ledger;

async fn refund(_ledger: Ledger, _order: Event<String>, _cx: Context) {}

fn main() {
    let space = Space::memory();
    space.node("orders").on("refund", refund);
}
