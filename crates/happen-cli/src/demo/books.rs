//! Whether the numbers of the nodes and of the senders say the same. Knows nothing of how they came about.

use super::Summary;
use super::events::Reason;
use super::plan::FLASH_ORDERS;
use crate::failure::Failure;

/// Two numbers that must be equal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Check {
    pub(super) what: &'static str,
    pub(super) expected: u64,
    pub(super) found: u64,
}

impl Check {
    pub(super) fn holds(self) -> bool {
        self.expected == self.found
    }
}

/// All that must be equal.
pub(super) fn checks(summary: &Summary) -> Vec<Check> {
    let Summary { plan, tally, nodes, .. } = summary;
    let refused: u64 = tally.refused.values().sum();
    let failed: u64 = tally.failed.values().sum();
    let heard = |event_type: &str| nodes.audit.heard.get(event_type).copied().unwrap_or(0);
    let stock = |state: &super::inventory::Inventory| state.stock.values().sum::<u64>();
    let mails = &nodes.notifications;
    let check = |what, expected, found| Check { what, expected, found };
    vec![
        check("every order has one outcome", plan.orders, tally.accepted + refused + failed),
        check("and the one it was made for", 0, tally.unplanned.len() as u64),
        check("audit heard of the accepted", tally.accepted, heard("order.accepted")),
        check("audit heard of the refused", refused, heard("order.refused")),
        check("audit heard of the failed", failed, nodes.audit.failed_orders.values().sum()),
        check(
            "cents taken are those of accepted orders",
            tally.accepted_cents,
            nodes.payments.taken_cents - nodes.payments.refunded_cents.min(nodes.payments.taken_cents),
        ),
        check(
            "stock left and sold is what there was",
            stock(&plan.stock()),
            stock(&nodes.inventory) + tally.accepted_units,
        ),
        check("a parcel for each accepted order", tally.accepted, nodes.shipping.parcels),
        check("a mail for each order", plan.orders, mails.confirmations + mails.refusals + mails.apologies),
        check("every way to end was seen", WAYS, ways(summary)),
    ]
}

/// Says what does not add up.
///
/// # Errors
///
/// [`Failure::Unbalanced`] with everything that does not.
pub(super) fn balance(summary: &Summary) -> Result<(), Failure> {
    let broken = checks(summary).into_iter().filter(|check| !check.holds());
    let mut told: Vec<_> = broken
        .map(|check| format!("\"{}\": {} expected, {} found", check.what, check.expected, check.found))
        .collect();
    told.extend(summary.tally.unplanned.iter().take(UNPLANNED_SHOWN).cloned());
    if told.is_empty() { Ok(()) } else { Err(Failure::Unbalanced(told.join("; "))) }
}

fn ways(summary: &Summary) -> u64 {
    let tally = &summary.tally;
    let refused = REASONS.iter().filter(|reason| tally.refused.contains_key(reason)).count();
    let failed = CODES.iter().filter(|(code, _)| tally.failed.contains_key(code)).count();
    (refused + failed) as u64 + u64::from(tally.accepted > 0)
}

/// The reasons to refuse an order.
pub(super) const REASONS: [Reason; 3] = [Reason::NothingOrdered, Reason::OutOfStock, Reason::PaymentDeclined];

/// The errors an order may end with, by code, and what happened then.
pub(super) const CODES: [(&str, &str); 7] = [
    ("io", "payment provider down at every try"),
    ("timed-out", "payment provider silent"),
    ("panicked", "handler panicked"),
    ("no-such-node", "sent to a node that does not exist"),
    ("wrong-payload", "payload of another type"),
    ("runaway", "loop stopped by its limit"),
    ("busy", "queue of shipping full"),
];

const WAYS: u64 = (REASONS.len() + CODES.len() + 1) as u64;
/// Orders told of when they ended otherwise than planned.
const UNPLANNED_SHOWN: usize = 3;
const _: () = assert!(FLASH_ORDERS > 0, "without a burst no queue is full");
