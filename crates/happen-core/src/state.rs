//! What may be a node's state. Owns the name and version a state is kept under; does not know where it is kept.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

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

/// Encodes a state as it is kept in documents: MessagePack, structs as maps with the names of their fields.
///
/// # Errors
///
/// [`ErrorKind::Unencodable`] when its `Serialize` refuses.
pub fn encode<S: State>(state: &S) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut serializer = rmp_serde::Serializer::new(&mut bytes).with_struct_map();
    match state.serialize(&mut serializer) {
        Ok(()) => Ok(bytes),
        Err(error) => {
            let kind = ErrorKind::Unencodable { event_type: S::NAME.to_owned() };
            Err(Error::new(kind).with_source(error))
        }
    }
}

/// Decodes a state of the version that the type has.
///
/// # Errors
///
/// [`ErrorKind::Undecodable`] when the bytes are no such state.
pub fn decode<S: State>(bytes: &[u8]) -> Result<S> {
    rmp_serde::from_slice(bytes)
        .map_err(|error| Error::new(ErrorKind::Undecodable { wanted: S::NAME.to_owned() }).with_source(error))
}
