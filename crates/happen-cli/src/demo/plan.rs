//! Which order comes when: a stream made from a seed, in which every way to fail has its orders. The end of
//! each order follows from the seed and not from timing, but for the last ones, which come all at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::events::{Card, Delivery, Line, Payment, PlaceOrder, Reason};
use super::inventory::Inventory;
use super::orders::Catalogue;

/// What is special about an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ordinary,
    /// An article that has a successor.
    Successor,
    /// A provider that answers at the third try.
    Hiccup,
    Empty,
    Unavailable,
    Declined,
    ProviderDown,
    ProviderSilent,
    /// Finds the bug in `payments`.
    NoInstalments,
    /// Is sent on to a node that does not exist.
    Gift,
    /// Comes from an old shop that says what it wants in another form.
    Legacy,
    /// Two articles that are each other's successor.
    Circular,
    /// One of the burst at the end.
    Flash,
}

/// How an order may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Accepted,
    Refused(Reason),
    /// By an error of this code.
    Failed(&'static str),
}

/// A stream of orders.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) orders: u64,
    pub(crate) seed: u64,
}

impl Plan {
    /// The orders before the burst.
    pub(crate) fn steady(self) -> u64 {
        self.orders - FLASH_ORDERS
    }

    /// The kind of an order by its number, from 1.
    pub(crate) fn kind(self, number: u64) -> Kind {
        if number > self.steady() {
            return Kind::Flash;
        }
        // The first orders show one of each kind, so that none is missing from a short stream.
        if let Some((kind, _)) = usize::try_from(number - 1).ok().and_then(|index| KINDS.get(index)) {
            return *kind;
        }
        let mut left = mixed(self.seed, number) % 1_000;
        for (kind, per_mille) in KINDS {
            if left < per_mille {
                return kind;
            }
            left -= per_mille;
        }
        Kind::Ordinary
    }

    /// The order with this number.
    pub(crate) fn order(self, number: u64) -> PlaceOrder {
        let kind = self.kind(number);
        let chance = mixed(!self.seed, number);
        let article = match kind {
            Kind::Successor => "oil-lamp",
            Kind::Circular => "left-boot",
            Kind::Unavailable => "unicorn",
            Kind::Flash => "wardrobe",
            _ => ["lamp", "chair", "table"][(chance % 3) as usize],
        };
        let quantity = 1 + chance / 3 % 3;
        let mut lines = vec![Line { article: article.to_owned(), quantity }];
        if kind == Kind::Empty {
            lines.clear();
        }
        let card = match kind {
            Kind::Declined => Card::Declines,
            Kind::Hiccup => Card::Hiccups,
            Kind::ProviderDown => Card::Down,
            Kind::ProviderSilent => Card::Silent,
            _ => Card::Pays,
        };
        let instalments = if kind == Kind::NoInstalments { 0 } else { 1 + chance / 9 % 3 };
        let delivery = match kind {
            Kind::Gift => Delivery::Gift,
            Kind::Flash => Delivery::Bulky,
            _ => Delivery::Parcel,
        };
        PlaceOrder { order: name(number), lines, payment: Payment { card, instalments }, delivery }
    }

    /// More of everything than all orders together can want, and no unicorn.
    pub(crate) fn stock(self) -> Inventory {
        let available = ["lamp", "chair", "table", "wardrobe"];
        let enough = available.map(|article| (article.to_owned(), 3 * self.orders));
        Inventory { stock: enough.into_iter().chain([("unicorn".to_owned(), 0)]).collect() }
    }
}

impl Kind {
    /// How an order of this kind may end.
    pub(crate) fn ends(self) -> &'static [End] {
        match self {
            Self::Ordinary | Self::Successor | Self::Hiccup => &[End::Accepted],
            Self::Empty => &[End::Refused(Reason::NothingOrdered)],
            Self::Unavailable => &[End::Refused(Reason::OutOfStock)],
            Self::Declined => &[End::Refused(Reason::PaymentDeclined)],
            Self::ProviderDown => &[End::Failed("io")],
            Self::ProviderSilent => &[End::Failed("timed-out")],
            Self::NoInstalments => &[End::Failed("panicked")],
            Self::Gift => &[End::Failed("no-such-node")],
            Self::Legacy => &[End::Failed("wrong-payload")],
            Self::Circular => &[End::Failed("runaway")],
            // Which ones of a burst find room is a matter of timing.
            Self::Flash => &[End::Accepted, End::Failed("busy")],
        }
    }
}

/// What the shop sells. Somebody made a mistake with the boots.
pub(crate) fn catalogue() -> Arc<Catalogue> {
    let prices = [("lamp", 4_900), ("chair", 8_900), ("table", 24_900), ("wardrobe", 59_900), ("unicorn", 1)];
    let successors = [
        ("oil-lamp", "gas-lamp"),
        ("gas-lamp", "lamp"),
        ("left-boot", "right-boot"),
        ("right-boot", "left-boot"),
    ];
    Arc::new(Catalogue { prices: BTreeMap::from(prices), successors: BTreeMap::from(successors) })
}

/// The business id of an order, which is its correlation too.
pub(crate) fn name(number: u64) -> String {
    format!("order-{number}")
}

/// A number that looks random and depends on nothing but the two given: one step of SplitMix64 (Steele, Lea
/// and Flood, "Fast splittable pseudorandom number generators", 2014).
fn mixed(seed: u64, number: u64) -> u64 {
    let mut mixed = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// The kinds of orders that come at any time, and how many of a thousand are of them; the others are
/// ordinary.
const KINDS: [(Kind, u64); 12] = [
    (Kind::Ordinary, 0),
    (Kind::ProviderDown, 10),
    (Kind::Successor, 40),
    (Kind::Hiccup, 20),
    (Kind::Empty, 10),
    (Kind::Unavailable, 30),
    (Kind::Declined, 40),
    (Kind::ProviderSilent, 4),
    (Kind::NoInstalments, 5),
    (Kind::Gift, 15),
    (Kind::Legacy, 10),
    (Kind::Circular, 5),
];

/// Orders of the burst at the end: more than `shipping` has places, so that some find its queue full.
pub(crate) const FLASH_ORDERS: u64 = 100;
/// The shortest stream in which every kind of order has its place.
pub(crate) const ORDERS_MIN: u64 = 2 * FLASH_ORDERS;
/// The longest stream that counters and patience are made for.
pub(crate) const ORDERS_MAX: u64 = 10_000_000;

const _: () =
    assert!(KINDS.len() as u64 <= ORDERS_MIN - FLASH_ORDERS, "each kind comes once before the burst");
const _: () = assert!(
    FLASH_ORDERS > super::shipping::PACKERS as u64 + super::shipping::WAITING_MAX as u64,
    "a burst is more than shipping takes"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides() {
        let plan = |seed| Plan { orders: 1_000, seed };
        let kinds = |seed| (1..=1_000).map(|number| plan(seed).kind(number)).collect::<Vec<_>>();
        assert_eq!(kinds(7), kinds(7));
        assert_ne!(kinds(7), kinds(8));
        assert_eq!(kinds(7).iter().filter(|kind| **kind == Kind::Flash).count() as u64, FLASH_ORDERS);
    }

    #[test]
    fn the_shortest_stream_has_every_kind() {
        let plan = Plan { orders: ORDERS_MIN, seed: 1 };
        let kinds: Vec<_> = (1..=ORDERS_MIN).map(|number| plan.kind(number)).collect();
        assert!(KINDS.iter().all(|(kind, _)| kinds.contains(kind)));
        assert_eq!(kinds.last(), Some(&Kind::Flash));
    }
}
