//! Mistake: a closure leaves the types of its arguments out.

use happen::Space;

fn main() {
    let space = Space::memory();
    space.node("orders").on("create-order", |order, cx| ());
    space.node("orders").on("create-order", async |order, cx| ());
}
