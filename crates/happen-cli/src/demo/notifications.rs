//! The node `notifications`: writes one mail for the end of each order, whatever the end. It is sent nothing;
//! it listens.

use happen::{Context, Event, Space, with};
use serde::{Deserialize, Serialize};

use super::events::{OrderAccepted, OrderRefused, Report};
use crate::kept::Kept;

/// The mails written.
#[derive(happen::State, happen::Event, Default, Clone, Debug, Serialize, Deserialize)]
#[state("notifications", version = 1)]
#[event("notifications.state")]
pub(crate) struct Notifications {
    pub(crate) confirmations: u64,
    pub(crate) refusals: u64,
    pub(crate) apologies: u64,
    /// The newest mail.
    pub(crate) last: String,
}

pub(crate) fn node(space: &Space) -> happen::Result<()> {
    let kept = Kept::new();
    let notifications = space.node("notifications");
    notifications.on("order.accepted", with(kept.clone(), confirm)).check()?;
    notifications.on("order.refused", with(kept.clone(), regret)).check()?;
    // The runtime tells of every failed flow, so a failure needs no code where it happens to be heard of.
    notifications.on("{place-order,legacy-order}.error", with(kept.clone(), apologise)).check()?;
    notifications.on("report", with(kept, report)).check()
}

fn confirm(kept: Kept<Notifications>, accepted: &Event<OrderAccepted>, _: &Context) {
    kept.change(|mails| {
        mails.confirmations += 1;
        mails.last = format!("{} is on its way", accepted.order);
    });
}

fn regret(kept: Kept<Notifications>, refused: &Event<OrderRefused>, _: &Context) {
    kept.change(|mails| {
        mails.refusals += 1;
        mails.last = format!("{} was refused: {:?}", refused.order, refused.reason);
    });
}

fn apologise(kept: Kept<Notifications>, _: &Event<happen::Failure>, cx: &Context) {
    kept.change(|mails| {
        mails.apologies += 1;
        // A failure knows nothing of orders, but whatever happens to an order has its correlation.
        mails.last = format!("we are sorry for {}", cx.correlation());
    });
}

fn report(kept: Kept<Notifications>, _: &Event<Report>, _: &Context) -> Notifications {
    kept.get(Clone::clone)
}
