//! The node `audit`: counts the ends of orders and every failure it hears of. It takes any payload, by its
//! fields.

use std::collections::BTreeMap;

use happen::{Context, Event, Space};
use serde::{Deserialize, Serialize};

use super::events::Report;

/// What was heard.
#[derive(happen::State, happen::Event, Default, Clone, Debug, Serialize, Deserialize)]
#[state("audit", version = 1)]
#[event("audit.state")]
pub(crate) struct Audit {
    /// Events by type.
    pub(crate) heard: BTreeMap<String, u64>,
    /// Failed orders by the code of the error.
    pub(crate) failed_orders: BTreeMap<String, u64>,
}

pub(crate) fn node(space: &Space) -> happen::Result<()> {
    let audit = space.node("audit");
    audit.on("order.*", count).check()?;
    audit.on("*.error", count).check()?;
    audit.on("{place-order,legacy-order}.error", count_failed_order).check()?;
    audit.on("report", report).check()
}

fn count(event: &Event, cx: &Context) -> happen::Result<()> {
    let event_type = event.event_type().to_owned();
    cx.state::<Audit>().set(move |mut audit| {
        *audit.heard.entry(event_type.clone()).or_default() += 1;
        audit
    })
}

fn count_failed_order(failure: &Event, cx: &Context) -> happen::Result<()> {
    let code = failure.get("code").and_then(|code| code.as_str()).unwrap_or("unknown").to_owned();
    cx.state::<Audit>().set(move |mut audit| {
        *audit.failed_orders.entry(code.clone()).or_default() += 1;
        audit
    })
}

fn report(_: &Event<Report>, cx: &Context) -> Audit {
    cx.state::<Audit>().get(Clone::clone)
}
