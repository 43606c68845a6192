//! One program that runs in this process, in a folder or across machines: where, says the environment variable HAPPEN_URL.
//!
//! `shop` runs all of it, sends three orders and ends. `shop bank` runs the bank alone until it is killed, and `shop
//! orders` runs the rest: then the two have to meet at one address.

#![expect(clippy::print_stdout, reason = "it talks to the person who started it")]

use happen::{Context, Event, Space, Step, done, next, secs};
use happen_nats::Connect;
use serde_json::{Value, json};

#[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
struct Account {
    cents: u64,
}

async fn take(order: Event, cx: Context) -> happen::Result<Step> {
    let items = order.get("items").and_then(Value::as_u64).unwrap_or(0);
    if items == 0 {
        return done(json!({ "rejected": "no items" }));
    }
    cx.put("cents", items * 250)?;
    next(charge)
}

async fn charge(_: Event, cx: Context) -> happen::Result<Step> {
    let cents: u64 = cx.get("cents")?;
    let paid = cx.send("bank", Event::new("pay", json!({ "cents": cents }))).reply::<Value>().await?;
    done(paid.into_inner())
}

async fn pay(asked: Event, cx: Context) -> happen::Result<Value> {
    let cents = asked.get("cents").and_then(Value::as_u64).unwrap_or(0);
    cx.state::<Account>().set(move |account| Account { cents: account.cents + cents })?;
    Ok(json!({ "paid": cents }))
}

#[tokio::main]
async fn main() -> happen::Result<()> {
    let role = std::env::args().nth(1).unwrap_or_default();
    let space = Space::connect_from_env("memory:").await?;
    if role != "orders" {
        space.node("bank").on("pay", pay);
    }
    if role != "bank" {
        space.node("orders").on("order", take).step(charge);
    }
    space.start().await?;
    if role == "bank" {
        println!("the bank is open");
        return std::future::pending().await;
    }
    for items in 0..3 {
        let order = Event::new("order", json!({ "items": items }));
        let reply = space.send("orders", order).reply::<Value>().within(secs(60)).await?;
        println!("an order of {items}: {}", *reply);
    }
    space.stop().await
}
