//! The events of the order system and what they are made of: what the nodes say to each other. Knows no node.

use serde::{Deserialize, Serialize};

/// A customer wants something.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("place-order")]
pub(crate) struct PlaceOrder {
    pub(crate) order: String,
    pub(crate) lines: Vec<Line>,
    pub(crate) payment: Payment,
    pub(crate) delivery: Delivery,
}

/// So many of one article.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) article: String,
    pub(crate) quantity: u64,
}

/// How the customer pays.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Payment {
    pub(crate) card: Card,
    pub(crate) instalments: u64,
}

/// A card, named after what its provider does when it is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Card {
    Pays,
    Declines,
    /// Fails at first and pays at the third try.
    Hiccups,
    /// Fails whenever it is asked.
    Down,
    /// Never answers.
    Silent,
}

/// How the goods reach the customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Delivery {
    Parcel,
    Gift,
    /// Takes the people who pack much longer.
    Bulky,
}

/// The end of an order that went well; its reply.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Accepted {
    pub(crate) total_cents: u64,
    pub(crate) units: u64,
}

/// The end of an order that is not wanted. A refusal is a value: nothing went wrong.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
}

/// Why an order is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reason {
    NothingOrdered,
    OutOfStock,
    PaymentDeclined,
}

/// Told to everyone who listens when an order was accepted.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("order.accepted")]
pub(crate) struct OrderAccepted {
    pub(crate) order: String,
}

/// Told to everyone who listens when an order was refused.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("order.refused")]
pub(crate) struct OrderRefused {
    pub(crate) order: String,
    pub(crate) reason: Reason,
}

/// Asks the inventory to put goods aside.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reserve {
    pub(crate) lines: Vec<Line>,
}

/// They are put aside.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reserved;

/// There are not enough of this article.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OutOfStock {
    pub(crate) article: String,
}

/// Puts goods back that were reserved.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Release {
    pub(crate) lines: Vec<Line>,
}

/// Asks for the order to be wrapped. The shop has no node that does it, which some orders find out.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Wrap {
    pub(crate) order: String,
}

/// Asks for money.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Charge {
    pub(crate) total_cents: u64,
    pub(crate) payment: Payment,
    pub(crate) attempt: u32,
}

/// The money is there.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Paid {
    pub(crate) instalment_cents: u64,
}

/// The card has not enough money.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Declined;

/// Gives money back.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Refund {
    pub(crate) total_cents: u64,
}

/// Asks for a parcel to be packed and sent.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ship {
    pub(crate) order: String,
    pub(crate) delivery: Delivery,
}

/// The parcel is on its way.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Shipped;

/// Asks a node for its state.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report;
