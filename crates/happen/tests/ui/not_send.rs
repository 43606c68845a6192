//! Mistake: an `Rc` lives across an `.await`, so the handler cannot move between threads.

use std::rc::Rc;
use std::time::Duration;

use happen::{Context, Event, Space, with};

async fn validate(order: Event<String>, cx: Context) {
    let shared = Rc::new(order.payload().clone());
    cx.sleep(Duration::from_secs(1)).await;
    drop(shared);
}

async fn refund(_ledger: u64, order: Event<String>, cx: Context) {
    let paid = Rc::new(order.payload().clone());
    cx.sleep(Duration::from_secs(1)).await;
    drop(paid);
}

fn main() {
    let space = Space::memory();
    space.node("orders").on("create-order", validate);
    space.node("orders").on("refund", with(7, refund));
}
