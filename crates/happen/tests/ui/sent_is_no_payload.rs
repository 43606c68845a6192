//! Mistake: what is sent, broadcast or returned with `done` is no payload.

use happen::{Space, Step, done};

struct CreateOrder;

async fn order(space: &Space) -> happen::Result<()> {
    space.send("orders", CreateOrder).await?;
    space.broadcast(CreateOrder)?;
    Ok(())
}

fn step() -> happen::Result<Step> {
    done(CreateOrder)
}

fn main() {
    drop(order(&Space::memory()));
    drop(step());
}
