//! The node `notifications`: writes one mail for the end of each order, whatever the end. It is sent nothing;
//! it listens.

use happen::{Context, Event, Space};
use serde::{Deserialize, Serialize};

use super::events::{OrderAccepted, OrderRefused, Report};

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
    let notifications = space.node("notifications");
    notifications.on("order.accepted", confirm).check()?;
    notifications.on("order.refused", regret).check()?;
    // The runtime tells of every failed flow, so a failure needs no code where it happens to be heard of.
    notifications.on("{place-order,legacy-order}.error", apologise).check()?;
    notifications.on("report", report).check()
}

fn confirm(accepted: &Event<OrderAccepted>, cx: &Context) -> happen::Result<()> {
    let mail = format!("{} is on its way", accepted.order);
    cx.state::<Notifications>().set(move |mails| Notifications {
        confirmations: mails.confirmations + 1,
        last: mail.clone(),
        ..mails
    })
}

fn regret(refused: &Event<OrderRefused>, cx: &Context) -> happen::Result<()> {
    let mail = format!("{} was refused: {:?}", refused.order, refused.reason);
    cx.state::<Notifications>().set(move |mails| Notifications {
        refusals: mails.refusals + 1,
        last: mail.clone(),
        ..mails
    })
}

fn apologise(_: &Event<happen::Failure>, cx: &Context) -> happen::Result<()> {
    // A failure knows nothing of orders, but whatever happens to an order has its correlation.
    let mail = format!("we are sorry for {}", cx.correlation());
    cx.state::<Notifications>().set(move |mails| Notifications {
        apologies: mails.apologies + 1,
        last: mail.clone(),
        ..mails
    })
}

fn report(_: &Event<Report>, cx: &Context) -> Notifications {
    cx.state::<Notifications>().get(Clone::clone)
}
