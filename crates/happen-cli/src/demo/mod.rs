//! The demonstration: a shop that takes a stream of orders, some of which fail in each possible way. Owns the
//! space, the stream and the tally; what happens to an order is in the file of each node.

mod audit;
mod books;
mod events;
mod inventory;
mod notifications;
mod orders;
mod payments;
pub(crate) mod plan;
mod report;
mod shipping;

use std::collections::BTreeMap;
use std::panic::{PanicHookInfo, set_hook, take_hook};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use happen::{Config, Durability, Event, NodeOptions, Payload, Reply, Space, secs};
use happen_nats::Address;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;

use self::events::{Accepted, Reason, Refused, Report};
use self::plan::{End, Kind, Plan};
use crate::failure::Failure;
use crate::output::{Output, Progress};
use crate::store::reach::Reach;

/// What came of all orders.
#[derive(Debug)]
struct Summary {
    plan: Plan,
    time: Duration,
    /// Events sent by anyone, while the orders were under way.
    events: u64,
    tally: Tally,
    nodes: States,
}

/// The outcomes, as the senders of the orders saw them.
#[derive(Debug, Default)]
struct Tally {
    accepted: u64,
    accepted_cents: u64,
    accepted_units: u64,
    refused: BTreeMap<Reason, u64>,
    /// By the code of the error.
    failed: BTreeMap<&'static str, u64>,
    /// Orders that ended in another way than planned.
    unplanned: Vec<String>,
    /// The trace of an accepted order, and of a failed one.
    traces: [Option<(String, String)>; 2],
}

/// The state of each node at the end.
#[derive(Debug)]
struct States {
    inventory: inventory::Inventory,
    payments: payments::Payments,
    shipping: shipping::Shipping,
    notifications: notifications::Notifications,
    audit: audit::Audit,
}

/// How one order ended.
struct Outcome {
    number: u64,
    end: End,
    cents: u64,
    units: u64,
    trace: Option<String>,
}

/// Runs the demonstration and writes its summary.
///
/// # Errors
///
/// [`Failure::Unbalanced`] when the numbers of the nodes and of the senders contradict each other, after the
/// summary was written; other failures when it could not run.
pub(crate) async fn run(
    plan: Plan,
    store: Option<(&Address, &Reach)>,
    json: bool,
    output: &Output,
) -> Result<(), Failure> {
    silence_the_planned_panic();
    let summary = happen(plan, store).await?;
    if json {
        output.write_json(&report::json(&summary))?;
    } else {
        output.write(&report::text(&summary))?;
    }
    books::balance(&summary)
}

/// The plan that a store was begun with: orders that were placed by an earlier run are the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    orders: u64,
    seed: u64,
}

/// The shop's space: in memory, or on a store that an earlier run may have left in the middle of its work.
async fn open(plan: Plan, store: Option<(&Address, &Reach)>) -> Result<Space, Failure> {
    let Some((address, reach)) = store else { return Ok(Space::memory()) };
    // Failures are part of the show: tried again, they would fail again.
    let node_defaults = NodeOptions { attempts_max: 1, ..NodeOptions::default() };
    let space = reach.space(address, Config { node_defaults, ..Config::default() }).await?;
    let begun = Begun { orders: plan.orders, seed: plan.seed };
    let known = space.global().update("demo", move |known: Option<Begun>| known.unwrap_or(begun)).await?;
    if known != begun {
        return Err(Failure::Usage(format!(
            "{address} has a shop of {} orders with seed {}; go on with `--orders {} --seed {}`, or choose another {}",
            known.orders,
            known.seed,
            known.orders,
            known.seed,
            kind(address),
        )));
    }
    Ok(space)
}

/// What is chosen to have another store.
pub(crate) fn kind(address: &Address) -> &'static str {
    if matches!(address, Address::Folder(_)) { "folder" } else { "name for the space" }
}

async fn happen(plan: Plan, store: Option<(&Address, &Reach)>) -> Result<Summary, Failure> {
    let space = open(plan, store).await?;
    let catalogue = plan::catalogue();
    orders::node(&space, &catalogue)?;
    inventory::node(&space, plan.stock()).await?;
    payments::node(&space)?;
    shipping::node(&space)?;
    notifications::node(&space)?;
    audit::node(&space)?;

    let events = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&events);
    space.before_emit(0, move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    space.start().await?;

    let start = space.env().monotonic();
    let tally = place_all(&space, plan).await?;
    let time = space.env().monotonic() - start;
    let events = events.load(Ordering::Relaxed);
    // Whoever listens may still be at it when the last order has ended.
    space.settled(secs(60)).await?;
    let nodes = States {
        inventory: state(&space, "inventory").await?,
        payments: state(&space, "payments").await?,
        shipping: state(&space, "shipping").await?,
        notifications: state(&space, "notifications").await?,
        audit: state(&space, "audit").await?,
    };
    space.stop().await?;
    Ok(Summary { plan, time, events, tally, nodes })
}

/// Places the orders side by side: many at a time, and those of the burst all at once.
async fn place_all(space: &Space, plan: Plan) -> Result<Tally, Failure> {
    let mut progress = Progress::new("orders", plan.orders);
    let mut tally = Tally::default();
    let mut under_way = JoinSet::new();
    let mut ended = 0;
    for number in 1..=plan.orders {
        let burst = number > plan.steady();
        let others_max = match burst {
            false => UNDER_WAY_MAX - 1,
            // The first of the burst waits for all others, the others of the burst wait for none.
            true if number == plan.steady() + 1 => 0,
            true => usize::MAX,
        };
        while under_way.len() > others_max {
            ended += 1;
            take(&mut tally, &mut under_way, plan).await?;
            progress.show(ended);
        }
        under_way.spawn(place(space.clone(), plan, number));
    }
    while !under_way.is_empty() {
        ended += 1;
        take(&mut tally, &mut under_way, plan).await?;
        progress.show(ended);
    }
    Ok(tally)
}

/// Places one order and waits for its end.
///
/// An order has its name for an idempotency key: placed again by a later run over the same store, it is the same order.
async fn place(space: Space, plan: Plan, number: u64) -> Outcome {
    let name = plan::name(number);
    let kind = plan.kind(number);
    let replied = if kind == Kind::Legacy {
        let order = Event::new("legacy-order", json!({ "article": "lamp", "count": "two" }));
        ask(&space, &name, order).await
    } else {
        ask(&space, &name, plan.order(number)).await
    };
    let (end, cents, units) = match replied.map(Reply::into_inner) {
        Ok(Ok(accepted)) => (End::Accepted, accepted.total_cents, accepted.units),
        Ok(Err(refused)) => (End::Refused(refused.reason), 0, 0),
        Err(error) => (End::Failed(error.code()), 0, 0),
    };
    // A space remembers the newest events, so an order is traced when it ends and not when all have.
    let trace = match TRACED.contains(&number) {
        true => space.trace(&name).await.ok().map(|trace| trace.to_string()),
        false => None,
    };
    Outcome { number, end, cents, units, trace }
}

async fn ask<T: Payload>(
    space: &Space,
    name: &str,
    order: T,
) -> happen::Result<Reply<Result<Accepted, Refused>>> {
    let order = space.send("orders", order).correlation(name);
    let remembered = space.find("orders").is_some_and(|orders| orders.durability() == Durability::Durable);
    let order = if remembered { order.idempotency_key(name) } else { order };
    order.reply().await
}

/// Waits for the end of one order and counts it.
async fn take(tally: &mut Tally, under_way: &mut JoinSet<Outcome>, plan: Plan) -> Result<(), Failure> {
    let outcome = match under_way.join_next().await {
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => return Err(Failure::Unbalanced(format!("an order was lost: {error}"))),
        None => return Err(Failure::Unbalanced("an order was lost".to_owned())),
    };
    let kind = plan.kind(outcome.number);
    if !kind.ends().contains(&outcome.end) {
        let name = plan::name(outcome.number);
        tally.unplanned.push(format!("{name} ({kind:?}) ended as {:?}", outcome.end));
    }
    match outcome.end {
        End::Accepted => tally.accepted += 1,
        End::Refused(reason) => *tally.refused.entry(reason).or_default() += 1,
        End::Failed(code) => *tally.failed.entry(code).or_default() += 1,
    }
    tally.accepted_cents += outcome.cents;
    tally.accepted_units += outcome.units;
    let shown = TRACED.iter().position(|number| *number == outcome.number);
    if let (Some(index), Some(trace)) = (shown, outcome.trace) {
        tally.traces[index] = Some((plan::name(outcome.number), trace));
    }
    Ok(())
}

async fn state<S: Payload>(space: &Space, node: &str) -> Result<S, Failure> {
    Ok(space.send(node, Report).reply::<S>().await?.into_inner())
}

/// Keeps the panic that belongs to the demonstration from being printed, as it is told in the summary. Any
/// other panic is printed as always.
fn silence_the_planned_panic() {
    let other = take_hook();
    set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        let planned = info.payload().downcast_ref::<&str>().is_some_and(|text| *text == PLANNED_PANIC)
            || info.payload().downcast_ref::<String>().is_some_and(|text| text == PLANNED_PANIC);
        if !planned {
            other(info);
        }
    }));
}

/// What a division by zero says.
const PLANNED_PANIC: &str = "attempt to divide by zero";
/// Orders under way at once before the burst: as many as may wait for `shipping`, so that none of them finds
/// it full.
const UNDER_WAY_MAX: usize = shipping::WAITING_MAX;
/// The orders whose traces are shown: an ordinary one, and one whose payment provider is down.
const TRACED: [u64; 2] = [1, 2];
