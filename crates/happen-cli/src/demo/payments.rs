//! The node `payments`: takes money through a provider that is slow, refuses, fails, is silent, and finds a
//! bug of ours.

use std::time::Duration;

use happen::{Context, Error, ErrorKind, Event, Space, Step, done};
use serde::{Deserialize, Serialize};

use super::events::{Card, Charge, Declined, Paid, Refund, Report};

/// What was taken and given back, in cents.
#[derive(happen::State, happen::Event, Default, Clone, Debug, Serialize, Deserialize)]
#[state("payments", version = 1)]
#[event("payments.state")]
pub(crate) struct Payments {
    pub(crate) taken_cents: u64,
    pub(crate) refunded_cents: u64,
}

pub(crate) fn node(space: &Space) -> happen::Result<()> {
    let payments = space.node("payments");
    payments.on("charge", charge).check()?;
    payments.on("refund", refund).check()?;
    payments.on("report", report).check()
}

async fn charge(charge: Event<Charge>, cx: Context) -> happen::Result<Step> {
    // The bug: nobody checks that there is at least one instalment, so this panics when there is none.
    let instalment_cents = charge.total_cents / charge.payment.instalments;
    cx.sleep(ANSWER).await;
    match charge.payment.card {
        Card::Declines => return done(Declined),
        Card::Hiccups if charge.attempt < 3 => return Err(unreachable_provider()),
        Card::Down => return Err(unreachable_provider()),
        // Who asked gives up long before. In memory this flow is cancelled then; one that a store remembers wakes up
        // much later, and sees that nobody wants the money taken any more.
        Card::Silent => {
            cx.sleep(SILENCE).await;
            return Err(Error::new(ErrorKind::TimedOut { after: SILENCE }));
        }
        Card::Hiccups | Card::Pays => {}
    }
    let cents = charge.total_cents;
    cx.state::<Payments>().set(move |mut payments| {
        payments.taken_cents += cents;
        payments
    })?;
    done(Paid { instalment_cents })
}

fn unreachable_provider() -> Error {
    Error::new(ErrorKind::Io { what: "the payment provider refused the connection".to_owned() })
}

fn refund(refund: &Event<Refund>, cx: &Context) -> happen::Result<()> {
    let cents = refund.total_cents;
    cx.state::<Payments>().set(move |mut payments| {
        payments.refunded_cents += cents;
        payments
    })
}

fn report(_: &Event<Report>, cx: &Context) -> Payments {
    cx.state::<Payments>().get(Clone::clone)
}

/// How long the provider takes.
const ANSWER: Duration = Duration::from_millis(1);
/// How long a silent one would take.
const SILENCE: Duration = Duration::from_secs(600);
