//! Mistake: the reply is read as a type that is no payload.

use happen::Space;

struct Accepted;

async fn ask(space: &Space) -> happen::Result<()> {
    let _accepted = space.send("orders", String::from("tea")).reply::<Accepted>().await?;
    Ok(())
}

fn main() {
    drop(ask(&Space::memory()));
}
