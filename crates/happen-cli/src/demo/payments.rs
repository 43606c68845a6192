//! The node `payments`: takes money through a provider that is slow, refuses, fails, is silent, and finds a
//! bug of ours.

use std::time::Duration;

use happen::{Context, Error, ErrorKind, Event, Space, Step, done, with};
use serde::{Deserialize, Serialize};

use super::events::{Card, Charge, Declined, Paid, Refund, Report};
use crate::kept::Kept;

/// What was taken and given back, in cents.
#[derive(happen::State, happen::Event, Default, Clone, Debug, Serialize, Deserialize)]
#[state("payments", version = 1)]
#[event("payments.state")]
pub(crate) struct Payments {
    pub(crate) taken_cents: u64,
    pub(crate) refunded_cents: u64,
}

pub(crate) fn node(space: &Space) -> happen::Result<()> {
    let kept = Kept::new();
    let payments = space.node("payments");
    payments.on("charge", with(kept.clone(), charge)).check()?;
    payments.on("refund", with(kept.clone(), refund)).check()?;
    payments.on("report", with(kept, report)).check()
}

async fn charge(kept: Kept<Payments>, charge: Event<Charge>, cx: Context) -> happen::Result<Step> {
    // The bug: nobody checks that there is at least one instalment, so this panics when there is none.
    let instalment_cents = charge.total_cents / charge.payment.instalments;
    cx.sleep(ANSWER).await;
    match charge.payment.card {
        Card::Declines => return done(Declined),
        Card::Hiccups if charge.attempt < 3 => return Err(unreachable_provider()),
        Card::Down => return Err(unreachable_provider()),
        // Who asked gives up long before; then this flow is cancelled here, and no money is taken.
        Card::Silent => cx.sleep(SILENCE).await,
        Card::Hiccups | Card::Pays => {}
    }
    kept.change(|payments| payments.taken_cents += charge.total_cents);
    done(Paid { instalment_cents })
}

fn unreachable_provider() -> Error {
    Error::new(ErrorKind::Io { what: "the payment provider refused the connection".to_owned() })
}

fn refund(kept: Kept<Payments>, refund: &Event<Refund>, _: &Context) {
    kept.change(|payments| payments.refunded_cents += refund.total_cents);
}

fn report(kept: Kept<Payments>, _: &Event<Report>, _: &Context) -> Payments {
    kept.get(Clone::clone)
}

/// How long the provider takes.
const ANSWER: Duration = Duration::from_millis(1);
/// How long a silent one would take.
const SILENCE: Duration = Duration::from_secs(600);
