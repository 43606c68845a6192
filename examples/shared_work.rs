//! A thumbnail service that runs in several processes, of which one goes away, and a router over different nodes.
//!
//! You learn how processes share the work of a node (`shared`), how what belongs together stays together
//! (`routing_key`), and how one name stands for several nodes (`router`). The processes are spaces on a `Hub` here; over
//! NATS they are those that call `Space::connect`, whose node is made `.ephemeral()` first.
//!
//! Run it with `cargo run --example shared_work`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::collections::BTreeMap;

use happen::{Context, Event, Hub, Nodes, Routing, Space};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("image")]
struct Image {
    album: String,
    number: u32,
}

/// What each process does: it makes the node, and says that it shares the work.
async fn process(hub: &Hub, name: &'static str) -> happen::Result<Space> {
    let space = Space::memory();
    space.join(hub.link(name))?;
    let resize = space.node("resize").shared(Routing::ByKey);
    resize.on("image", move |_: &Event<Image>, _: &Context| name.to_owned());
    space.start().await?;
    Ok(space)
}

/// In which process each of the albums is.
async fn places(space: &Space) -> happen::Result<BTreeMap<String, String>> {
    let mut places = BTreeMap::new();
    for number in 0..24 {
        let album = format!("album-{}", number % 8);
        let sent = space.send("resize", Image { album: album.clone(), number }).routing_key(album.clone());
        let place = sent.reply::<String>().await?.into_inner();
        // All images of an album go to one process, which can keep what it knows of the album.
        assert_eq!(places.entry(album).or_insert_with(|| place.clone()), &place);
    }
    Ok(places)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> happen::Result<()> {
    let hub = Hub::new();
    let (first, second) = (process(&hub, "first").await?, process(&hub, "second").await?);
    let third = process(&hub, "third").await?;
    let before = places(&first).await?;
    println!("three processes: {before:?}");
    // Whoever sends chooses the same.
    assert_eq!(places(&second).await?, before);

    third.stop().await?;
    let after = places(&first).await?;
    println!("two processes:   {after:?}");
    for (album, place) in &before {
        assert!(after[album] == *place || place == "third");
    }

    // Different nodes behind one name, each with a state of its own.
    let [small, large] = ["small", "large"].map(|id| first.node(id));
    [&small, &large].on("image", |_: &Event<Image>, cx: &Context| cx.node_id().to_owned());
    let printers = first.router("printers", ["small", "large"], Routing::RoundRobin);
    let image = || Image { album: "album-1".to_owned(), number: 1 };
    let one = printers.send(image()).reply::<String>().await?;
    let other = first.send("printers", image()).reply::<String>().await?;
    println!("printed by {} and {}", *one, *other);
    assert_ne!(*one, *other);

    second.stop().await?;
    first.stop().await
}
