//! The node `shipping`: few people pack, and few parcels may wait for them, so a burst finds the queue full.

use std::time::Duration;

use happen::{Context, Durability, Event, Space, Step, done, with};
use serde::{Deserialize, Serialize};

use super::events::{Delivery, Report, Ship, Shipped};

/// What was sent.
#[derive(happen::State, happen::Event, Default, Clone, Debug, Serialize, Deserialize)]
#[state("shipping", version = 1)]
#[event("shipping.state")]
pub(crate) struct Shipping {
    pub(crate) parcels: u64,
}

pub(crate) fn node(space: &Space) -> happen::Result<()> {
    let shipping = space.node("shipping").max_concurrent(PACKERS).queue_limit(WAITING_MAX);
    let bulky = match shipping.durability() {
        Durability::Durable => PACKING_BULKY_STORED,
        _ => PACKING_BULKY,
    };
    shipping.on("ship", with(bulky, ship)).check()?;
    shipping.on("report", report).check()
}

async fn ship(bulky: Duration, ship: Event<Ship>, cx: Context) -> happen::Result<Step> {
    cx.sleep(if ship.delivery == Delivery::Bulky { bulky } else { PACKING }).await;
    cx.state::<Shipping>().set(|mut shipping| {
        shipping.parcels += 1;
        shipping
    })?;
    done(Shipped)
}

fn report(_: &Event<Report>, cx: &Context) -> Shipping {
    cx.state::<Shipping>().get(Clone::clone)
}

/// Parcels packed at once.
pub(crate) const PACKERS: u32 = 16;
/// Parcels that may wait.
pub(crate) const WAITING_MAX: usize = 48;
/// How long packing takes.
const PACKING: Duration = Duration::from_millis(1);
/// How long packing something large takes.
const PACKING_BULKY: Duration = Duration::from_millis(150);
/// The same over a store, where orders come more slowly, and some of the burst are still to find the queue full.
const PACKING_BULKY_STORED: Duration = Duration::from_millis(900);
