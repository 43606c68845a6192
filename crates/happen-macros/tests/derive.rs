//! Derives on real types, with `happen_core` in the place of `happen`: they implement the traits, have their names, and
//! come back from what they are encoded to.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fmt::Debug;

use happen_core::payload::{ErasedPayload, decode};
use happen_core::{Dynamic, EventType, OldState, Payload, Result, State, state};
use happen_macros::{Event, State};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A crate that re-exports what the derives name.
mod my {
    pub(crate) mod happen {
        pub(crate) use happen_core::{OldState, Payload, Result, State, TypeName};
    }
}

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("create-order", crate = happen_core)]
struct CreateOrder {
    customer: String,
    items: Vec<u32>,
}

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(crate = my::happen)]
struct HTTPError(u16, String);

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("system.tick", crate = crate::my::happen)]
struct Tick;

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(crate = ::happen_core)]
enum PaymentResult {
    Paid { order: String },
    Refused(String),
    Pending,
}

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("audit.entry", crate = happen_core)]
struct Audited<T, U = u8>
where
    T: Debug,
{
    what: T,
    level: U,
}

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("pair", crate = happen_core)]
struct Flags<const BIT: u8> {
    set: bool,
}

#[derive(State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("orders", version = 2, crate = happen_core)]
struct Orders {
    open: Vec<String>,
}

#[derive(State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state(crate = my::happen)]
struct StockLevels(u32, u32);

/// Both derives on one type; each reads its own attribute.
#[derive(Event, State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("door.changed", crate = happen_core)]
#[state("door", version = 7, crate = happen_core)]
enum Door {
    #[default]
    Closed,
    Open {
        since: u64,
    },
}

macro_rules! ping {
    ($ident:ident, $name:expr, $happen:path) => {
        #[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[event($name, crate = $happen)]
        struct $ident;
    };
    ($ident:ident, $name:literal) => {
        #[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[event($name, crate = $crate::my::happen)]
        struct $ident;
    };
}

ping!(Ping, "ping", my::happen);
ping!(Pong, "pong");

#[track_caller]
fn carried<T: Payload + PartialEq + Debug>(payload: &T, name: &str) {
    assert_eq!(T::TYPE.as_str(), name);
    assert_eq!(Payload::event_type(payload), EventType::new(name));
    let mut bytes = Vec::new();
    payload.encode(&mut bytes).unwrap();
    assert_eq!(&decode::<T>(&bytes).unwrap(), payload);
    let json = serde_json::to_string(payload).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), payload);
}

#[track_caller]
fn kept<T: State + PartialEq + Debug>(state: &T, name: &str, version: u32) {
    assert_eq!((T::NAME, T::VERSION), (name, version));
    let json = serde_json::to_string(state).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), state);
}

#[test]
fn events_of_every_kind() {
    carried(&CreateOrder { customer: "ada".into(), items: vec![1, 2] }, "create-order");
    carried(&HTTPError(404, "gone".into()), "http-error");
    carried(&Tick, "system.tick");
    carried(&PaymentResult::Paid { order: "o-1".into() }, "payment-result");
    carried(&PaymentResult::Refused("no".into()), "payment-result");
    carried(&PaymentResult::Pending, "payment-result");
}

#[test]
fn generic_events() {
    carried(&Audited { what: Tick, level: 3 }, "audit.entry");
    carried(
        &Audited { what: Audited { what: 1_u64, level: 2_u16 }, level: "high".to_owned() },
        "audit.entry",
    );
    carried(&Flags::<3> { set: true }, "pair");
}

#[test]
fn two_instantiations_of_one_event_are_not_mixed_up() {
    let of_number = Audited { what: 1_u64, level: 0_u8 };
    let converted = Audited::<u32>::from_erased(&of_number).unwrap();
    assert_eq!(converted, Audited { what: 1_u32, level: 0 });
    let error = Audited::<String>::from_erased(&of_number).unwrap_err();
    assert_eq!(error.code(), "undecodable");
}

#[test]
fn states_of_every_kind() {
    kept(&Orders { open: vec!["o-1".into()] }, "orders", 2);
    kept(&StockLevels(1, 2), "stock-levels", 1);
    kept(&Door::default(), "door", 7);
    kept(&Door::Open { since: 5 }, "door", 7);
    carried(&Door::Open { since: 5 }, "door.changed");
}

#[derive(State, Clone, Default, Debug, PartialEq, Serialize, Deserialize)]
#[state("shelf", crate = my::happen)]
struct ShelfV1(u32);

#[derive(State, Clone, Default, Debug, PartialEq, Serialize, Deserialize)]
#[state("shelf", version = 2, migrate = Self::of, crate = my::happen)]
struct Shelf {
    books: u32,
}

impl Shelf {
    fn of(old: &OldState<'_>) -> Result<Self> {
        Ok(Self { books: old.state::<ShelfV1>()?.0 })
    }
}

#[test]
fn an_older_document_goes_through_the_function_named() {
    let stored = state::encode(&ShelfV1(7)).unwrap();
    assert_eq!(state::decode_document::<Shelf>(1, &stored).unwrap(), Shelf { books: 7 });
    assert_eq!(state::decode_document::<ShelfV1>(0, &stored).unwrap_err().code(), "wrong-version");
}

#[test]
fn names_and_paths_from_a_macro() {
    carried(&Ping, "ping");
    carried(&Pong, "pong");
}

#[test]
fn a_payload_named_at_run_time_becomes_a_derived_one() {
    let dynamic = Dynamic::new("create-order", json!({ "customer": "ada", "items": [7] }));
    let order = dynamic.decode::<CreateOrder>().unwrap();
    assert_eq!(order, CreateOrder { customer: "ada".into(), items: vec![7] });
}
