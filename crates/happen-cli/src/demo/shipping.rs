//! The node `shipping`: few people pack, and few parcels may wait for them, so a burst finds the queue full.

use std::time::Duration;

use happen::{Context, Event, Space, Step, done, with};
use serde::{Deserialize, Serialize};

use super::events::{Delivery, Report, Ship, Shipped};
use crate::kept::Kept;

/// What was sent.
#[derive(happen::State, happen::Event, Default, Clone, Debug, Serialize, Deserialize)]
#[state("shipping", version = 1)]
#[event("shipping.state")]
pub(crate) struct Shipping {
    pub(crate) parcels: u64,
}

pub(crate) fn node(space: &Space) -> happen::Result<()> {
    let kept = Kept::new();
    let shipping = space.node("shipping").max_concurrent(PACKERS).queue_limit(WAITING_MAX);
    shipping.on("ship", with(kept.clone(), ship)).check()?;
    shipping.on("report", with(kept, report)).check()
}

async fn ship(kept: Kept<Shipping>, ship: Event<Ship>, cx: Context) -> happen::Result<Step> {
    cx.sleep(if ship.delivery == Delivery::Bulky { PACKING_BULKY } else { PACKING }).await;
    let parcel = kept.change(|shipping| {
        shipping.parcels += 1;
        shipping.parcels
    });
    done(Shipped { parcel })
}

fn report(kept: Kept<Shipping>, _: &Event<Report>, _: &Context) -> Shipping {
    kept.get(Clone::clone)
}

/// Parcels packed at once.
pub(crate) const PACKERS: u32 = 16;
/// Parcels that may wait.
pub(crate) const WAITING_MAX: usize = 48;
/// How long packing takes.
const PACKING: Duration = Duration::from_millis(1);
/// How long packing something large takes.
const PACKING_BULKY: Duration = Duration::from_millis(150);
