//! A state machine: the states of an order are an enum, and only the transitions in one table are allowed.
//!
//! You learn how a flow branches (`next`, `goto`), how steps pass values on (`cx.put`, `cx.get`), and how a node handles
//! events about one order one at a time and about different orders side by side (`serial_by`). Run it with
//! `cargo run --example state_machine`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use happen::{Context, Event, Space, Step, done, goto, next, with};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[event("order-state")]
enum State {
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
    state: State,
    action: Action,
}

impl State {
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

#[derive(Clone, Default)]
struct Orders(Arc<Mutex<BTreeMap<String, State>>>);

impl Orders {
    fn state(&self, order: &str) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(order).copied().unwrap_or_default()
    }

    fn set(&self, order: &str, state: State) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(order.to_owned(), state);
    }
}

/// First step: looks the transition up and decides where the flow goes on.
async fn check(orders: Orders, act: Event<Act>, cx: Context) -> happen::Result<Step> {
    let state = orders.state(&act.order);
    cx.put("from", state)?;
    match state.after(act.action) {
        Some(to) => {
            cx.put("to", to)?;
            next(with(orders, change))
        }
        None => goto("refuse"),
    }
}

/// Second step of an allowed action. No other action on this order came between, for the node is serial by order.
async fn change(orders: Orders, act: Event<Act>, cx: Context) -> happen::Result<Step> {
    let to: State = cx.get("to")?;
    orders.set(&act.order, to);
    done(to)
}

/// Second step of any other.
fn refuse(act: &Event<Act>, cx: &Context) -> happen::Result<Step> {
    done(NotAllowed { state: cx.get("from")?, action: act.action })
}

#[tokio::main]
async fn main() -> happen::Result<()> {
    let space = Space::memory();
    let node = space.node("orders").serial_by(|act: &Act| act.order.clone());
    node.on("order.act", with(Orders::default(), check)).step(refuse);
    space.start().await?;

    let mut answers = Vec::new();
    for action in [Action::Ship, Action::Pay, Action::Ship, Action::Cancel] {
        let act = Act { order: "order-1".into(), action };
        // Either of two types may come back, so both are asked for.
        let answer = space.send(&node, act).reply::<Result<State, NotAllowed>>().await?.into_inner();
        match &answer {
            Ok(state) => println!("{action:?}: the order is now {state:?}"),
            Err(refusal) => println!("{action:?}: not allowed while it is {:?}", refusal.state),
        }
        answers.push(answer);
    }
    assert_eq!(
        answers,
        [
            Err(NotAllowed { state: State::New, action: Action::Ship }),
            Ok(State::Paid),
            Ok(State::Shipped),
            Err(NotAllowed { state: State::Shipped, action: Action::Cancel }),
        ]
    );
    space.stop().await
}
