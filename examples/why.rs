//! Asking a running system why: which events led to this one, and what followed from that one.
//!
//! Causes need no code: whatever a handler sends is caused by the event it handles, through its context or through any
//! node it holds. You learn `space.trace`, `space.why` and `space.impact`. Run it with `cargo run --example why`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::sync::{Arc, Mutex, PoisonError};

use happen::{Context, Event, EventId, Space, with};
use serde_json::json;

/// The event that started the alarm, as the siren saw it.
type Heard = Arc<Mutex<Option<EventId>>>;

#[tokio::main]
async fn main() -> happen::Result<()> {
    let heard = Heard::default();
    let space = Space::memory();
    let [boiler, watch, siren] = ["boiler", "watch", "siren"].map(|id| space.node(id));

    // Events without a Rust type of their own: a name and some JSON, read by path.
    boiler
        .on("valve.closed", |_: &Event, cx: &Context| -> happen::Result<()> {
            cx.broadcast(Event::new("pressure.rose", json!({ "bar": 9 })))?;
            Ok(())
        })
        .named("close");
    watch
        .on("pressure.*", |pressure: &Event, cx: &Context| -> happen::Result<()> {
            if pressure.get("bar").and_then(|bar| bar.as_u64()) > Some(8) {
                cx.broadcast(Event::new("alarm", json!({})))?;
            }
            Ok(())
        })
        .named("judge");
    siren
        .on(
            "alarm",
            with(Arc::clone(&heard), |heard: Heard, alarm: &Event, _: &Context| {
                *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(alarm.id());
            }),
        )
        .named("wail");
    space.start().await?;

    let closed = Event::new("valve.closed", json!({ "by": "Bob" }));
    let root = space.send(&boiler, closed).correlation("shift-7").await?.event_id();
    let alarm = heard.lock().unwrap_or_else(PoisonError::into_inner).take();
    let alarm = alarm.ok_or_else(|| happen::Error::msg("the siren heard nothing"))?;

    // Why did the siren wail? Back to the root, the root first.
    let causes = space.why(alarm).await?;
    assert_eq!(causes.first(), Some(&root));
    assert_eq!(causes.len(), 2);

    // What did closing the valve cause? Everything that followed.
    let effects = space.impact(root).await?;
    assert_eq!(effects.last(), Some(&alarm));
    assert_eq!(effects.len(), 2);

    // Both at once as a tree. `println!("{trace}")` draws it with times; only what is the same every time is shown here.
    let trace = space.trace("shift-7").await?;
    let mut told = Vec::new();
    for line in trace.lines() {
        let nodes: Vec<_> = line.handled.iter().map(|handled| handled.node.as_str()).collect();
        told.push(format!("{}{} -> {}", "  ".repeat(line.depth), line.event_type, nodes.join(", ")));
    }
    println!("{}", told.join("\n"));
    assert_eq!(told, ["valve.closed -> boiler", "  pressure.rose -> watch", "    alarm -> siren"]);
    assert!(!trace.is_cut());
    space.stop().await
}
