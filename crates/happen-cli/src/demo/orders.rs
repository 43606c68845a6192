//! The node `orders`: one flow for each order, from its arrival to its end. Knows the other nodes by their
//! names only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use happen::{Context, Error, ErrorKind, Event, Reply, Space, Step, again, done, next, next_with, with};

use super::events::{
    Accepted, Charge, Declined, Line, OrderAccepted, OrderRefused, OutOfStock, Paid, PlaceOrder, Reason,
    Refund, Refused, Release, Reserve, Reserved, Ship, Shipped, Wrap,
};

/// What the shop sells, given to the node as a dependency.
#[derive(Debug)]
pub(crate) struct Catalogue {
    /// Prices in cents.
    pub(crate) prices: BTreeMap<&'static str, u64>,
    /// Articles that are no longer made, and what is sold instead.
    pub(crate) successors: BTreeMap<&'static str, &'static str>,
}

pub(crate) fn node(space: &Space, catalogue: &Arc<Catalogue>) -> happen::Result<()> {
    let orders = space.node("orders").steps_max(STEPS_MAX);
    orders
        .on("{place-order,legacy-order}", with(Arc::clone(catalogue), receive))
        .step(with(Arc::clone(catalogue), choose))
        .step(reserve)
        .step(wrap)
        .step(charge)
        .step(ship)
        .check()
}

async fn receive(catalogue: Arc<Catalogue>, order: Event<PlaceOrder>, cx: Context) -> happen::Result<Step> {
    if order.lines.is_empty() {
        return refuse(&order, &cx, Reason::NothingOrdered);
    }
    cx.put("lines", order.lines.clone())?;
    next_with(choose, catalogue)
}

/// Replaces one article that is no longer made, and looks again: its successor may have one too.
async fn choose(catalogue: Arc<Catalogue>, _: Event<PlaceOrder>, cx: Context) -> happen::Result<Step> {
    let mut lines: Vec<Line> = cx.get("lines")?;
    for line in &mut lines {
        if let Some(successor) = catalogue.successors.get(&*line.article) {
            line.article = (*successor).to_owned();
            cx.put("lines", lines)?;
            return again();
        }
    }
    let mut total_cents = 0;
    for line in &lines {
        let price = catalogue.prices.get(&*line.article);
        let price = price.ok_or_else(|| Error::msg(format!("`{}` has no price", line.article)))?;
        total_cents += price * line.quantity;
    }
    cx.put("total", total_cents)?;
    next(reserve)
}

async fn reserve(order: Event<PlaceOrder>, cx: Context) -> happen::Result<Step> {
    let reserve = Reserve { lines: cx.get("lines")? };
    let reply = cx.send("inventory", reserve).reply::<Result<Reserved, OutOfStock>>().await?;
    match reply.into_inner() {
        Ok(Reserved) => next(wrap),
        Err(OutOfStock { .. }) => refuse(&order, &cx, Reason::OutOfStock),
    }
}

async fn wrap(order: Event<PlaceOrder>, cx: Context) -> happen::Result<Step> {
    if order.delivery == super::events::Delivery::Gift {
        // Asked and not only told: what is sent across machines may be for a node that comes later.
        let wrapped = cx.send("gift-wrap", Wrap { order: order.order.clone() }).reply::<()>().await;
        if let Err(error) = wrapped {
            release(&cx).await?;
            return Err(error);
        }
    }
    cx.put("attempt", 1u32)?;
    next(charge)
}

async fn charge(order: Event<PlaceOrder>, cx: Context) -> happen::Result<Step> {
    let attempt: u32 = cx.get("attempt")?;
    let charge = Charge { total_cents: cx.get("total")?, payment: order.payment, attempt };
    let asked = cx.send("payments", charge).reply::<Result<Paid, Declined>>().within(PAYMENT_TIME_MAX);
    match asked.await.map(Reply::into_inner) {
        Ok(Ok(Paid { .. })) => next(ship),
        Ok(Err(Declined)) => {
            release(&cx).await?;
            refuse(&order, &cx, Reason::PaymentDeclined)
        }
        Err(error) if is_worth_another_try(&error) && attempt < ATTEMPTS_MAX => {
            cx.put("attempt", attempt + 1)?;
            cx.sleep(PAUSE * attempt).await;
            again()
        }
        Err(error) => {
            release(&cx).await?;
            Err(error)
        }
    }
}

/// A provider that could not be reached may be reached later. One that was silent may have taken the money,
/// and a bug stays one, so neither is tried again.
fn is_worth_another_try(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io { .. })
}

async fn ship(order: Event<PlaceOrder>, cx: Context) -> happen::Result<Step> {
    let total_cents: u64 = cx.get("total")?;
    let ship = Ship { order: order.order.clone(), delivery: order.delivery };
    if let Err(error) = cx.send("shipping", ship).reply::<Shipped>().await {
        cx.send("payments", Refund { total_cents }).reply::<()>().await?;
        release(&cx).await?;
        return Err(error);
    }
    cx.broadcast(OrderAccepted { order: order.order.clone() })?;
    let lines: Vec<Line> = cx.get("lines")?;
    done(Accepted { total_cents, units: lines.iter().map(|line| line.quantity).sum() })
}

/// Puts the goods of this order back. Waits for it: what a step only sends has not happened when the step fails, and this
/// is done for steps that fail.
async fn release(cx: &Context) -> happen::Result<()> {
    cx.send("inventory", Release { lines: cx.get("lines")? }).reply::<()>().await?;
    Ok(())
}

fn refuse(order: &PlaceOrder, cx: &Context, reason: Reason) -> happen::Result<Step> {
    cx.broadcast(OrderRefused { order: order.order.clone(), reason })?;
    done(Refused { reason })
}

/// Steps of one order: far more than any needs, so that a circle in the catalogue is found.
const STEPS_MAX: u32 = 40;
/// How often a payment is tried.
const ATTEMPTS_MAX: u32 = 3;
/// How long a payment may take.
const PAYMENT_TIME_MAX: Duration = Duration::from_secs(1);
/// How long the flow waits after the first failed try, and how much longer after each further one.
const PAUSE: Duration = Duration::from_millis(2);
