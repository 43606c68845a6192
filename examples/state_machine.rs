//! A state machine: the phases of an order are an enum, and only the ways declared in one place are allowed.
//!
//! You learn how a node keeps a document for each order (`cx.entity`), how a machine decides what may become of it
//! (`model::Machine`), and how it can be drawn. Run it with `cargo run --example state_machine`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use happen::model::{Lens, Machine, NotAllowed, Passages};
use happen::{Context, Event, Space, Step, done};
use serde::{Deserialize, Serialize};

/// The phases of an order. `Event` makes them values that an answer can have.
#[derive(happen::Event, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[event("order.phase")]
enum Phase {
    #[default]
    New,
    Paid,
    Shipped,
    Cancelled,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Action {
    Pay { cents: u64 },
    Ship,
    Cancel,
}

/// An order as its node keeps it: the phase, what belongs to it, and the way that led there.
#[derive(happen::State, Clone, Debug, Default, Serialize, Deserialize)]
#[state("order", version = 1)]
struct Order {
    phase: Phase,
    paid: u64,
    passages: Passages<Phase, Action>,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("order.act")]
struct Act {
    order: String,
    action: Action,
}

/// The answer to an action that the order's phase does not allow. A refusal is a value, not an error: nothing broke.
#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Refused {
    phase: Phase,
    allowed: Vec<Action>,
}

const PRICE: u64 = 2_500;

/// The whole machine. What is not listed is not allowed.
fn machine() -> happen::Result<Machine<Order, Phase, Action>> {
    Machine::builder(Lens::new(|order: &Order| &order.phase, |order: &mut Order| &mut order.phase))
        // Actions are told apart by their names; what they carry is for the guard and for what is done on the way.
        .allow(Phase::New, Action::Pay { cents: 0 }, Phase::Paid)
        .when("paid in full", |_, action| matches!(action, Action::Pay { cents } if *cents >= PRICE))
        .allow(Phase::Paid, Action::Ship, Phase::Shipped)
        .allow_from([Phase::New, Phase::Paid], Action::Cancel, Phase::Cancelled)
        .enter(Phase::Paid, |order, action| {
            if let Action::Pay { cents } = action {
                order.paid = *cents;
            }
        })
        .record(Lens::new(|order: &Order| &order.passages, |order: &mut Order| &mut order.passages))
        .build()
}

/// Makes the action, or says why not. The machine is given the order as it is at that moment, so of two actions that come
/// at once the second one is judged by what the first one left.
fn act(machine: &Machine<Order, Phase, Action>, act: &Event<Act>, cx: &Context) -> happen::Result<Step> {
    let order = cx.entity::<Order>(&act.order);
    match order.try_set(machine.transition(act.action.clone())) {
        Ok(()) => done(order.get(|order| order.phase.clone())),
        Err(error) => match error.find_cause::<NotAllowed<Phase, Action>>() {
            Some(why) => done(Refused { phase: why.from.clone(), allowed: why.legal.clone() }),
            None => Err(error),
        },
    }
}

#[tokio::main]
async fn main() -> happen::Result<()> {
    let machine = machine()?;
    println!("{}", machine.mermaid());

    let space = Space::memory();
    let orders = space.node("orders");
    orders.on("order.act", move |event: &Event<Act>, cx: &Context| act(&machine, event, cx));
    space.start().await?;

    let mut answers = Vec::new();
    let [too_little, enough] = [100, PRICE].map(|cents| Action::Pay { cents });
    for action in [Action::Ship, too_little, enough, Action::Ship, Action::Cancel] {
        let act = Act { order: "order-1".into(), action: action.clone() };
        // Either of two types may come back, so both are asked for.
        let answer = space.send(&orders, act).reply::<Result<Phase, Refused>>().await?.into_inner();
        match &answer {
            Ok(phase) => println!("{action:?}: the order is now {phase:?}"),
            Err(refused) => println!("{action:?}: not while it is {:?}", refused.phase),
        }
        answers.push(answer);
    }
    let refused = |phase, allowed: &[Action]| Err(Refused { phase, allowed: allowed.to_vec() });
    let from_new = [Action::Pay { cents: 0 }, Action::Cancel];
    assert_eq!(
        answers,
        [
            refused(Phase::New, &from_new),
            refused(Phase::New, &from_new),
            Ok(Phase::Paid),
            Ok(Phase::Shipped),
            refused(Phase::Shipped, &[]),
        ]
    );
    let (paid, way) = orders.entity::<Order>("order-1").get(|order| (order.paid, order.passages.clone()));
    println!(
        "paid {paid} cents; the way was {}",
        way.iter().map(|at| format!("{:?}", at.to)).collect::<Vec<_>>().join(", ")
    );
    assert_eq!((paid, way.iter().len()), (PRICE, 2));
    space.stop().await
}
