//! Derives for data only: `Event` names a payload, `State` names and versions a state. Owns the attributes and their
//! error messages; knows nothing of nodes, and of the traits no more than their paths.
//!
//! Users reach both through the crate `happen`. Neither derive writes code that decides anything: each is an `impl` of
//! constants, with a call of the function that `migrate` names, and can as well be written by hand.
//!
//! ```
//! use happen_core::{Payload, State};
//! use happen_macros::{Event, State};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Event, Clone, Serialize, Deserialize)]
//! #[event("create-order", crate = happen_core)]
//! struct CreateOrder {
//!     customer: String,
//! }
//!
//! #[derive(State, Default, Clone, Serialize, Deserialize)]
//! #[state("orders", version = 2, crate = happen_core)]
//! struct Orders {
//!     open: Vec<String>,
//! }
//!
//! assert_eq!(CreateOrder::TYPE.as_str(), "create-order");
//! assert_eq!(Orders::NAME, "orders");
//! assert_eq!(Orders::VERSION, 2);
//! ```
//!
//! # Names
//!
//! Without a name in the attribute a type is named after itself in kebab-case: `OrderPlaced` is `order-placed`,
//! `HTTPError` is `http-error`, `Sha256Sum` is `sha256-sum`. A name is what other processes and stored documents know
//! a type by. Write it out where it has to outlive a renaming of the Rust type.
//!
//! A name is made of segments with dots between them. No segment is empty; none contains `*`, `{`, `}`, `,`, white
//! space or control characters; and the whole has at most 200 bytes.
//!
//! # The path of the crate
//!
//! What is generated says `::happen`. A crate that re-exports it puts its own path in: `crate = my::happen`, and a
//! declarative macro `crate = $crate::happen`. The examples here say `crate = happen_core`, which stands below `happen`
//! and has the same traits.

mod event;
#[cfg(test)]
mod expansion;
mod name;
mod options;
mod state;

use proc_macro::TokenStream;

/// Implements `happen::Payload`, which makes a struct or an enum something an event can carry.
///
/// `#[event("order.created")]` gives the event type; without it the type is named after itself in kebab-case.
/// `crate = path` replaces the path `::happen`, with a name before it or alone.
///
/// The type also has to be `Clone`, `Serialize` and `Deserialize`, and to own its data: a lifetime among its parameters
/// is refused. Each type parameter of a generic payload has to be a payload too, and all instantiations have the one
/// name. `from_erased` of `Payload` therefore takes one instantiation for another by way of its encoding, and fails when
/// their shapes differ. Constant parameters are passed through.
///
/// # Errors
///
/// The compiler points at the piece of the attribute that is wrong and says what to write:
///
/// - a name that is no legal event type, is missing, or is not a text in quotes
/// - an unknown key, or a key, a name or an attribute given twice
/// - an attribute on a field or a variant
/// - a union, or a type with a lifetime
///
/// # Examples
///
/// ```
/// use happen_core::Payload;
/// use happen_macros::Event;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Event, Clone, Serialize, Deserialize)]
/// #[event(crate = happen_core)]
/// enum PaymentResult {
///     Paid { order: String },
///     Refused(String),
/// }
///
/// #[derive(Event, Clone, Serialize, Deserialize)]
/// #[event("audit.entry", crate = happen_core)]
/// struct Audited<T> {
///     by: String,
///     what: T,
/// }
///
/// assert_eq!(PaymentResult::TYPE.as_str(), "payment-result");
/// assert_eq!(Audited::<PaymentResult>::TYPE.as_str(), "audit.entry");
/// ```
///
/// A name that is written like a pattern does not compile:
///
/// ```compile_fail
/// # use serde::{Deserialize, Serialize};
/// #[derive(happen_macros::Event, Clone, Serialize, Deserialize)]
/// #[event("order.*", crate = happen_core)]    // an event type has no `*`, which belongs to patterns: write `"order"`
/// struct OrderPlaced;
/// ```
#[proc_macro_derive(Event, attributes(event))]
pub fn derive_event(input: TokenStream) -> TokenStream {
    event::event(input.into()).into()
}

/// Implements `happen::State`, which makes a struct or an enum something a node can keep.
///
/// `#[state("orders", version = 1)]` gives the name and the version its documents are stored under. Both can be left
/// out: the name is then the one of the type in kebab-case, the version is 1. `migrate = from_old` names the function
/// that makes the state of an older version's document, `fn(&OldState<'_>) -> Result<Self>`. `crate = path` replaces
/// the path `::happen`.
///
/// The type also has to be `Default`, `Clone`, `Serialize` and `Deserialize`, and to have no generic parameters:
/// documents of one name and version have one shape, which two instantiations would not have. A generic state
/// implements the trait by hand, with names that differ.
///
/// # Errors
///
/// Those of [`Event`](macro@Event) under the name `#[state]`, and further:
///
/// - a version that is not a whole number from 1 to [`u32::MAX`]
/// - a `migrate` that is no path of a function
/// - a type with any generic parameter
///
/// # Examples
///
/// ```
/// use happen_core::State;
/// use happen_macros::State;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(State, Default, Clone, Serialize, Deserialize)]
/// #[state(crate = happen_core)]
/// struct StockLevels(Vec<u32>);
///
/// assert_eq!(StockLevels::NAME, "stock-levels");
/// assert_eq!(StockLevels::VERSION, 1);
/// ```
///
/// A type that changed its shape has the next version, and a way to it from the one before:
///
/// ```
/// use happen_core::{OldState, Result, state};
/// use happen_macros::State;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(State, Default, Clone, Serialize, Deserialize)]
/// #[state("stock", version = 1, crate = happen_core)]
/// struct StockV1 { apples: u32 }
///
/// #[derive(State, Default, Clone, Serialize, Deserialize)]
/// #[state("stock", version = 2, migrate = from_old, crate = happen_core)]
/// struct Stock { fruit: Vec<(String, u32)> }
///
/// fn from_old(old: &OldState<'_>) -> Result<Stock> {
///     let StockV1 { apples } = old.state()?;
///     Ok(Stock { fruit: vec![("apples".into(), apples)] })
/// }
///
/// # fn main() -> Result<()> {
/// let stored = state::encode(&StockV1 { apples: 5 })?;
/// assert_eq!(state::decode_document::<Stock>(1, &stored)?.fruit[0].1, 5);
/// # Ok(())
/// # }
/// ```
///
/// Versions start at 1:
///
/// ```compile_fail
/// # use serde::{Deserialize, Serialize};
/// #[derive(happen_macros::State, Default, Clone, Serialize, Deserialize)]
/// #[state("stock", version = 0, crate = happen_core)]    // write `version = 1`
/// struct Stock;
/// ```
#[proc_macro_derive(State, attributes(state))]
pub fn derive_state(input: TokenStream) -> TokenStream {
    state::state(input.into()).into()
}
