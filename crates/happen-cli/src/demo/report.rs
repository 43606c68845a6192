//! The summary of the demonstration, for people and as JSON. Knows what was counted and counts nothing.

use std::fmt::Write;

use serde_json::{Map, Value as Json, json};

use super::Summary;
use super::books::{CODES, Check, REASONS, checks};
use super::events::Reason;
use crate::output::{number, per_second};

/// The summary for a person.
pub(super) fn text(summary: &Summary) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _written = write_text(summary, &mut text);
    text
}

fn write_text(summary: &Summary, out: &mut String) -> std::fmt::Result {
    let Summary { plan, time, events, tally, nodes } = summary;
    writeln!(
        out,
        "{} orders (seed {}) and {} events in {:.2} s: {} orders/s, {} events/s",
        number(plan.orders),
        plan.seed,
        number(*events),
        time.as_secs_f64(),
        number(per_second(plan.orders, *time)),
        number(per_second(*events, *time)),
    )?;
    writeln!(out, "\noutcome    reason                               orders")?;
    row(out, "accepted", "", tally.accepted)?;
    for reason in REASONS {
        row(out, "refused", reason_text(reason), tally.refused.get(&reason).copied().unwrap_or(0))?;
    }
    for (code, what) in CODES {
        row(out, "failed", what, tally.failed.get(code).copied().unwrap_or(0))?;
    }
    for (code, count) in
        tally.failed.iter().filter(|(code, _)| !CODES.iter().any(|(known, _)| known == *code))
    {
        row(out, "failed", code, *count)?;
    }

    for ((name, trace), what) in tally.traces.iter().flatten().zip(["accepted", "failed"]) {
        writeln!(out, "\nwhy and how {name} {what}:")?;
        for line in trace.lines() {
            writeln!(out, "  {line}")?;
        }
    }

    let stock = |all: &super::inventory::Inventory| all.stock.values().sum::<u64>();
    let (left, first) = (stock(&nodes.inventory), stock(&plan.stock()));
    let mails = &nodes.notifications;
    writeln!(out, "\nstate of the nodes:")?;
    writeln!(out, "  inventory      {} of {} articles left", number(left), number(first))?;
    writeln!(
        out,
        "  payments       {} taken, {} of it given back",
        money(nodes.payments.taken_cents),
        money(nodes.payments.refunded_cents)
    )?;
    writeln!(out, "  shipping       {} parcels", number(nodes.shipping.parcels))?;
    writeln!(
        out,
        "  notifications  {} confirmations, {} refusals, {} apologies; the last one: {}",
        number(mails.confirmations),
        number(mails.refusals),
        number(mails.apologies),
        mails.last
    )?;
    let heard: Vec<_> = nodes
        .audit
        .heard
        .iter()
        .map(|(event_type, count)| format!("{} {event_type}", number(*count)))
        .collect();
    writeln!(out, "  audit          {}", heard.join(", "))?;

    writeln!(out, "\nbooks:")?;
    for check in checks(summary) {
        let Check { what, expected, found } = check;
        let verdict = if check.holds() { "ok" } else { "WRONG" };
        writeln!(out, "  {verdict:<5}  {what}: {}", compared(expected, found))?;
    }
    Ok(())
}

fn row(out: &mut String, outcome: &str, reason: &str, orders: u64) -> std::fmt::Result {
    writeln!(out, "{outcome:<9}  {reason:<35} {:>7}", number(orders))
}

fn compared(expected: u64, found: u64) -> String {
    if expected == found {
        number(found)
    } else {
        format!("{} expected, {} found", number(expected), number(found))
    }
}

fn money(cents: u64) -> String {
    format!("{}.{:02}", number(cents / 100), cents % 100)
}

fn reason_text(reason: Reason) -> &'static str {
    match reason {
        Reason::NothingOrdered => "nothing ordered",
        Reason::OutOfStock => "out of stock",
        Reason::PaymentDeclined => "payment declined",
    }
}

/// The summary for a program.
pub(super) fn json(summary: &Summary) -> Json {
    let Summary { plan, time, events, tally, nodes } = summary;
    let refused: Map<_, _> =
        tally.refused.iter().map(|(reason, count)| (name(*reason), json!(count))).collect();
    let checks: Vec<_> = checks(summary)
        .into_iter()
        .map(|check| {
            let Check { what, expected, found } = check;
            json!({ "what": what, "expected": expected, "found": found, "holds": check.holds() })
        })
        .collect();
    let traces: Map<_, _> = tally
        .traces
        .iter()
        .flatten()
        .map(|(name, trace)| (name.clone(), trace.lines().collect::<Vec<_>>().into()))
        .collect();
    json!({
        "orders": plan.orders,
        "seed": plan.seed,
        "seconds": time.as_secs_f64(),
        "events": events,
        "orders_per_second": per_second(plan.orders, *time),
        "events_per_second": per_second(*events, *time),
        "accepted": tally.accepted,
        "refused": refused,
        "failed": tally.failed,
        "unplanned": tally.unplanned,
        "balanced": super::books::balance(summary).is_ok(),
        "books": checks,
        "nodes": {
            "inventory": nodes.inventory,
            "payments": nodes.payments,
            "shipping": nodes.shipping,
            "notifications": nodes.notifications,
            "audit": nodes.audit,
        },
        "traces": traces,
    })
}

fn name(reason: Reason) -> String {
    match serde_json::to_value(reason) {
        Ok(Json::String(name)) => name,
        _ => format!("{reason:?}"),
    }
}
