//! The smallest program: a node that answers an event. Run it with `cargo run --example hello`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use happen::{Context, Event, Space};

#[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
#[event("greet")]
struct Greet {
    name: String,
}

#[tokio::main]
async fn main() -> happen::Result<()> {
    let space = Space::memory();
    let greeter = space.node("greeter");
    greeter.on("greet", |greet: &Event<Greet>, _: &Context| format!("hello {}", greet.name));
    space.start().await?;

    let text = space.send(&greeter, Greet { name: "Ada".into() }).reply::<String>().await?;
    println!("{}", *text);
    assert_eq!(*text, "hello Ada");
    space.stop().await
}
