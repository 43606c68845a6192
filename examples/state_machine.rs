//! A state machine: the states of an order are an enum, and only the transitions in one table are allowed.
//!
//! You learn how a node keeps a document for each order (`cx.entity`), how a flow branches (`next`, `goto`), and how steps
//! pass values on (`cx.put`, `cx.get`). Run it with `cargo run --example state_machine`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use happen::{Context, Event, Space, Step, done, goto, next};
use serde::{Deserialize, Serialize};

/// The state of one order. The derives say what it is: a document of its node, and a value in an answer.
#[derive(happen::State, happen::Event, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[state("order", version = 1)]
#[event("order.state")]
enum Order {
    #[default]
    New,
    Paid,
    Shipped,
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Action {
    Pay,
    Ship,
    Cancel,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("order.act")]
struct Act {
    order: String,
    action: Action,
}

/// The answer to an action that the order's state does not allow. A refusal is a value, not an error: nothing broke.
#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct NotAllowed {
    state: Order,
    action: Action,
}

impl Order {
    /// The whole machine. What is not listed is not allowed.
    const fn after(self, action: Action) -> Option<Self> {
        match (self, action) {
            (Self::New, Action::Pay) => Some(Self::Paid),
            (Self::Paid, Action::Ship) => Some(Self::Shipped),
            (Self::New | Self::Paid, Action::Cancel) => Some(Self::Cancelled),
            _ => None,
        }
    }
}

/// First step: looks the transition up and decides where the flow goes on.
async fn check(act: Event<Act>, cx: Context) -> happen::Result<Step> {
    let order = cx.entity::<Order>(&act.order).get(|order| *order);
    cx.put("from", order)?;
    match order.after(act.action) {
        Some(_) => next(change),
        None => goto("refuse"),
    }
}

/// Second step of an allowed action. What was looked up before may be outdated, so the change itself decides: it is a
/// function of the state as it is then, and refuses when that does not allow the action any more.
async fn change(act: Event<Act>, cx: Context) -> happen::Result<Step> {
    let action = act.action;
    let changed = cx.entity::<Order>(&act.order).try_set(move |order| order.after(action).ok_or(Outdated));
    match changed {
        Ok(()) => done(cx.entity::<Order>(&act.order).get(|order| *order)),
        Err(error) if error.find_cause::<Outdated>().is_some() => goto("check"),
        Err(error) => Err(error),
    }
}

/// Second step of any other.
async fn refuse(act: Event<Act>, cx: Context) -> happen::Result<Step> {
    done(NotAllowed { state: cx.get("from")?, action: act.action })
}

#[derive(Debug)]
struct Outdated;

impl std::fmt::Display for Outdated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the order has another state by now")
    }
}

impl std::error::Error for Outdated {}

#[tokio::main]
async fn main() -> happen::Result<()> {
    let space = Space::memory();
    let orders = space.node("orders");
    orders.on("order.act", check).step(refuse);
    space.start().await?;

    let mut answers = Vec::new();
    for action in [Action::Ship, Action::Pay, Action::Ship, Action::Cancel] {
        let act = Act { order: "order-1".into(), action };
        // Either of two types may come back, so both are asked for.
        let answer = space.send(&orders, act).reply::<Result<Order, NotAllowed>>().await?.into_inner();
        match &answer {
            Ok(state) => println!("{action:?}: the order is now {state:?}"),
            Err(refusal) => println!("{action:?}: not allowed while it is {:?}", refusal.state),
        }
        answers.push(answer);
    }
    assert_eq!(
        answers,
        [
            Err(NotAllowed { state: Order::New, action: Action::Ship }),
            Ok(Order::Paid),
            Ok(Order::Shipped),
            Err(NotAllowed { state: Order::Shipped, action: Action::Cancel }),
        ]
    );
    assert_eq!(orders.entity::<Order>("order-1").revision(), 2);
    space.stop().await
}
