//! The node `audit`: counts the ends of orders and every failure it hears of. It takes any payload, by its
//! fields.

use std::collections::BTreeMap;

use happen::{Context, Event, Space, with};
use serde::{Deserialize, Serialize};

use super::events::Report;
use crate::kept::Kept;

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
    let kept = Kept::new();
    let audit = space.node("audit");
    audit.on("order.*", with(kept.clone(), count)).check()?;
    audit.on("*.error", with(kept.clone(), count)).check()?;
    audit.on("{place-order,legacy-order}.error", with(kept.clone(), count_failed_order)).check()?;
    audit.on("report", with(kept, report)).check()
}

fn count(kept: Kept<Audit>, event: &Event, _: &Context) {
    kept.change(|audit| *audit.heard.entry(event.event_type().to_owned()).or_default() += 1);
}

fn count_failed_order(kept: Kept<Audit>, failure: &Event, _: &Context) {
    let code = failure.get("code").and_then(|code| code.as_str()).unwrap_or("unknown").to_owned();
    kept.change(|audit| *audit.failed_orders.entry(code).or_default() += 1);
}

fn report(kept: Kept<Audit>, _: &Event<Report>, _: &Context) -> Audit {
    kept.get(Clone::clone)
}
