//! A shop that gets more parcels than one packer packs: it is told so, and takes on as many as it needs.
//!
//! You learn how a space watches whether its nodes keep up, how a node that hears of it acts on the figures, and how a
//! sender asks before it sends. Run it with `cargo run --example balance`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use happen::balance::NodeStanding;
use happen::{BalanceOptions, Config, Context, Error, Event, Space, millis};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("parcel")]
struct Parcel {
    number: u32,
}

async fn pack(_: Event<Parcel>, cx: Context) {
    cx.sleep(millis(20)).await;
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> happen::Result<()> {
    // Seconds in a program that runs for months; an example is over sooner.
    let balance = BalanceOptions { every_ms: 50, window_ms: 250, calm_ms: 250, ..BalanceOptions::default() };
    let space = Space::with(Config { balance: Some(balance), ..Config::default() })?;

    let packing = space.node("packing").serial().lag_max(20);
    packing.on("parcel", pack);

    let hired = packing.clone();
    space.node("manager").on("{node.slow,node.recovered}", move |told: &Event, _: &Context| {
        let rates = told.get("lag_metrics").map(|metrics| metrics["rates"].clone()).unwrap_or_default();
        println!(
            "{}: {} come and {} leave in a second",
            told.event_type(),
            rates["arrived_per_s"],
            rates["handled_per_s"]
        );
        // As many as it takes to handle what comes, by the time that each parcel takes.
        let needed = rates["places_needed"].as_u64().and_then(|needed| u32::try_from(needed).ok());
        if let Some(needed) = needed.filter(|_| told.event_type() == "node.slow") {
            println!("{needed} packers are needed");
            drop(hired.clone().max_concurrent(needed));
        }
    });
    space.start().await?;

    let mut left_out = 0;
    for number in 0..400 {
        // Whoever can do with less asks before.
        if space.pressure("packing").is_some_and(|pressure| pressure.is_high()) {
            left_out += 1;
        } else {
            space.send(&packing, Parcel { number }).await?;
        }
        space.env().sleep(millis(5)).await;
    }
    space.settled(millis(10_000)).await?;
    space.env().sleep(millis(1_000)).await;

    let report = space.balance_report().await?;
    let figures = report.node("packing").ok_or_else(|| Error::msg("the node is not in the report"))?;
    println!("{} places, {} left out, {:?}", figures.places.unwrap_or_default(), left_out, figures.standing);
    assert!(figures.places > Some(1), "more packers were taken on");
    assert_eq!((figures.standing, figures.lag(), left_out), (NodeStanding::Well, 0, 0));
    Ok(())
}
