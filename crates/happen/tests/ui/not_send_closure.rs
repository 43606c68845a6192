//! Mistake: an `Rc` lives across an `.await` of an async closure.

use std::rc::Rc;
use std::time::Duration;

use happen::{Context, Event, Space};

fn main() {
    let space = Space::memory();
    space.node("orders").on("cancel", async |order: Event<String>, cx: Context| {
        let held = Rc::new(order.payload().clone());
        cx.sleep(Duration::from_secs(1)).await;
        drop(held);
    });
}
