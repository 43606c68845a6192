//! What may be a node's state. Owns the name and version a state is kept under; does not know where it is kept.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Data that a node keeps between events.
///
/// `#[derive(happen::State)]` implements it. The name and the version are what stored documents are known by, so the
/// Rust type can be renamed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a state",
    label = "not a state",
    note = "add `#[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]` to `{Self}`"
)]
pub trait State: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name the state is stored under.
    const NAME: &'static str;

    /// The version of its shape.
    const VERSION: u32;
}
