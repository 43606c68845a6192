//! What may be a node's state. Owns the name and version a state is kept under, and the way from older versions to the
//! current one; does not know where it is kept.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

use crate::error::{Error, ErrorKind, Result};
use crate::limits;

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

    /// Makes the state of a document that an older version of the type wrote. [`decode_document`] calls it.
    ///
    /// As given there is no way from any older version. `#[state("orders", version = 3, migrate = from_old)]` names
    /// the function that knows one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::WrongVersion`] when there is no way from that version, which [`OldState::no_way`] gives; or what
    /// is wrong with the document.
    fn migrate(old: &OldState<'_>) -> Result<Self> {
        Err(old.no_way())
    }
}

/// A stored document of an older version than the type has, on the way to the current one.
///
/// # Examples
///
/// Each version is a state of its own that knows the way from the one before; the newest is reached from all of them.
///
/// ```
/// use happen_core::state::{self, State};
/// use happen_core::{OldState, Result};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Default, Clone, Serialize, Deserialize)]
/// struct OrdersV1 { open: u32 }
///
/// impl State for OrdersV1 {
///     const NAME: &'static str = "orders";
///     const VERSION: u32 = 1;
/// }
///
/// /// In version 2 the name of a field changed.
/// #[derive(Default, Clone, Serialize, Deserialize)]
/// struct OrdersV2 { waiting: u32 }
///
/// impl State for OrdersV2 {
///     const NAME: &'static str = "orders";
///     const VERSION: u32 = 2;
///
///     fn migrate(old: &OldState<'_>) -> Result<Self> {
///         Ok(Self { waiting: old.state::<OrdersV1>()?.open })
///     }
/// }
///
/// /// In version 3 one number became two.
/// #[derive(Default, Clone, PartialEq, Debug, Serialize, Deserialize)]
/// struct Orders { new: u32, paid: u32 }
///
/// impl State for Orders {
///     const NAME: &'static str = "orders";
///     const VERSION: u32 = 3;
///
///     fn migrate(old: &OldState<'_>) -> Result<Self> {
///         Ok(Self { new: old.state::<OrdersV2>()?.waiting, paid: 0 })
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let stored = state::encode(&OrdersV1 { open: 7 })?;
/// assert_eq!(state::decode_document::<Orders>(1, &stored)?, Orders { new: 7, paid: 0 });
/// assert_eq!(state::decode_document::<Orders>(4, &stored).unwrap_err().code(), "wrong-version");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct OldState<'d> {
    name: &'static str,
    version: u32,
    known: u32,
    bytes: &'d [u8],
}

impl OldState<'_> {
    /// The version it was stored in: less than that of the type which is wanted.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What was stored, as the state of an older version: decoded when it has that version, or else brought there by
    /// that type's own [`State::migrate`]. So a chain of versions needs one function for each step.
    ///
    /// # Errors
    ///
    /// As [`decode_document`].
    pub fn state<S: State>(&self) -> Result<S> {
        way_to(self.version, self.bytes)
    }

    /// What was stored, as any type of that shape.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] when the bytes have another shape.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        rmp_serde::from_slice(self.bytes).map_err(|error| self.undecodable(error))
    }

    /// What was stored, as JSON: for documents whose Rust type is no longer there.
    ///
    /// Bytes become arrays of numbers and keys of maps become texts, as `serde_json` writes them, so that the type
    /// reads them again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] when the bytes are no MessagePack, or nested deeper than [`limits::NESTING_MAX`].
    pub fn json(&self) -> Result<Json> {
        let mut reader = rmp_serde::Deserializer::from_read_ref(self.bytes);
        // The reader counts the level that it would enter next.
        reader.set_max_depth(limits::NESTING_MAX + 1);
        AsJson.deserialize(&mut reader).map_err(|error| self.undecodable(error))
    }

    /// The state that comes of what was stored when the function has changed it as JSON.
    ///
    /// # Errors
    ///
    /// As [`OldState::json`]; what the function returns; [`ErrorKind::Undecodable`] when what it left is no such state.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::state::{self, State};
    /// use happen_core::{OldState, Result};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Default, Clone, Serialize, Deserialize)]
    /// struct Stock { apples: u32, pears: u32 }
    ///
    /// impl State for Stock {
    ///     const NAME: &'static str = "stock";
    ///     const VERSION: u32 = 2;
    ///
    ///     fn migrate(old: &OldState<'_>) -> Result<Self> {
    ///         old.patch(|stock| {
    ///             stock["pears"] = 0.into();
    ///             Ok(())
    ///         })
    ///     }
    /// }
    ///
    /// let stored = [0x81, 0xa6, b'a', b'p', b'p', b'l', b'e', b's', 5];
    /// assert_eq!(state::decode_document::<Stock>(1, &stored)?.apples, 5);
    /// # Ok::<(), happen_core::Error>(())
    /// ```
    pub fn patch<S: State>(&self, patch: impl FnOnce(&mut Json) -> Result<()>) -> Result<S> {
        let mut json = self.json()?;
        patch(&mut json)?;
        S::deserialize(json).map_err(|error| self.undecodable(error))
    }

    /// The error that there is no way from this version.
    #[must_use]
    pub fn no_way(&self) -> Error {
        wrong_version(self.name, self.version, self.known)
    }

    fn undecodable(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        let wanted = format!("{} of version {}", self.name, self.version);
        Error::new(ErrorKind::Undecodable { wanted }).with_source(error)
    }
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

/// Decodes the content of a document, whichever version of the type wrote it: that of the type by [`decode`], an older
/// one by [`State::migrate`].
///
/// # Errors
///
/// - [`ErrorKind::WrongVersion`] when the version is newer than the type's, or there is no way from it.
/// - [`ErrorKind::Undecodable`] when the bytes are no state of that version.
/// - [`ErrorKind::Panicked`] when `migrate` panics, and whatever it returns.
pub fn decode_document<S: State>(version: u32, bytes: &[u8]) -> Result<S> {
    // Decoding runs code of the user's, and a document that it cannot stand is to fail and not the reader.
    match catch_unwind(AssertUnwindSafe(|| way_to(version, bytes))) {
        Ok(result) => result,
        Err(panic) => Err(Error::panicked(&*panic).context(reading::<S>(version))),
    }
}

/// The same where a panic is caught further out. The error tells each version that was passed on the way.
fn way_to<S: State>(version: u32, bytes: &[u8]) -> Result<S> {
    if version == S::VERSION {
        return decode(bytes);
    }
    let old = OldState { name: S::NAME, version, known: S::VERSION, bytes };
    if version > S::VERSION {
        return Err(old.no_way());
    }
    S::migrate(&old).map_err(|error| match error.kind() {
        ErrorKind::WrongVersion { known, .. } if *known == S::VERSION => error,
        _ => error.context(reading::<S>(version)),
    })
}

fn reading<S: State>(version: u32) -> String {
    format!("making version {} of state `{}` from version {version}", S::VERSION, S::NAME)
}

fn wrong_version(name: &str, stored: u32, known: u32) -> Error {
    Error::new(ErrorKind::WrongVersion { name: name.to_owned(), stored, known })
}

/// Reads any MessagePack as JSON.
struct AsJson;

impl<'de> DeserializeSeed<'de> for AsJson {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AsJson {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_none<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        // Without the length that the bytes claim: memory is for items that are there.
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            all.push(item);
        }
        Ok(Json::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut all = serde_json::Map::new();
        while let Some(key) = entries.next_key_seed(Key)? {
            all.insert(key, entries.next_value_seed(Self)?);
        }
        Ok(Json::Object(all))
    }
}

/// Reads the key of a map as the text that `serde_json` writes for it.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that JSON has: a text, a whole number, true or false")
    }

    fn visit_bool<E>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_str<E>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    macro_rules! state {
        ($type:ty, $version:literal $(, $migrate:expr)?) => {
            impl State for $type {
                const NAME: &'static str = "orders";
                const VERSION: u32 = $version;
                $(fn migrate(old: &OldState<'_>) -> Result<Self> {
                    $migrate(old)
                })?
            }
        };
    }

    #[derive(Debug, Default, Clone, Serialize, Deserialize)]
    struct First {
        by_number: BTreeMap<u32, String>,
    }
    state!(First, 1);

    #[derive(Default, Clone, Serialize, Deserialize)]
    struct Second {
        by_number: BTreeMap<u32, String>,
        bytes: Vec<u8>,
    }
    state!(Second, 2, |old: &OldState<'_>| {
        Ok(Second { by_number: old.state::<First>()?.by_number, bytes: vec![1] })
    });

    #[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
    struct Third {
        by_number: BTreeMap<u32, String>,
        bytes: Vec<u8>,
        share: Option<f64>,
    }
    state!(Third, 3, |old: &OldState<'_>| old.state::<Second>().map(|second| Third {
        by_number: second.by_number,
        bytes: second.bytes,
        share: None
    }));

    fn numbers() -> BTreeMap<u32, String> {
        [(7, "seven".to_owned()), (8, String::new())].into()
    }

    #[test]
    fn an_older_document_goes_through_every_version_between() {
        let third = |bytes| Third { by_number: numbers(), bytes, share: None };
        let first = encode(&First { by_number: numbers() }).unwrap();
        assert_eq!(decode_document::<Third>(1, &first).unwrap(), third(vec![1]));
        let second = encode(&Second { by_number: numbers(), bytes: vec![9] }).unwrap();
        assert_eq!(decode_document::<Third>(2, &second).unwrap(), third(vec![9]));
        let current = Third { share: Some(0.5), ..third(vec![]) };
        assert_eq!(decode_document::<Third>(3, &encode(&current).unwrap()).unwrap(), current);
    }

    #[test]
    fn a_version_without_a_way_and_a_newer_one_say_so() {
        let stored = encode(&First::default()).unwrap();
        let newer = decode_document::<First>(2, &stored).unwrap_err();
        let kind = ErrorKind::WrongVersion { name: "orders".into(), stored: 2, known: 1 };
        assert_eq!((newer.kind(), newer.is_retryable()), (&kind, false));
        assert_eq!(
            newer.to_string(),
            "state `orders` was stored in version 2, and this program knows it up to version 1: \
             run the program that wrote it, or a newer one"
        );
        // The error is that of the step which is missing, with the way that led there.
        let missing = decode_document::<Third>(0, &stored).unwrap_err();
        let kind = ErrorKind::WrongVersion { name: "orders".into(), stored: 0, known: 1 };
        assert_eq!(missing.kind(), &kind);
        assert_eq!(
            missing.to_string(),
            "making version 3 of state `orders` from version 0: \
             making version 2 of state `orders` from version 0: \
             state `orders` was stored in version 0, and version 1 has no way from there: give it one with `migrate`"
        );
    }

    #[test]
    fn bytes_of_another_shape_are_told_with_the_version_they_should_have() {
        let error = decode_document::<Third>(1, b"\x93\x01\x02\x03").unwrap_err();
        assert_eq!(error.code(), "undecodable");
        assert!(
            error.to_string().starts_with("making version 3 of state `orders` from version 1"),
            "{error}"
        );
        assert_eq!(decode_document::<Third>(3, b"\x01").unwrap_err().code(), "undecodable");
        assert_eq!(decode_document::<Third>(3, b"").unwrap_err().code(), "undecodable");
    }

    #[derive(Debug, Default, Clone, Serialize, Deserialize)]
    struct Panics;
    state!(Panics, 2, |_: &OldState<'_>| panic!("this cannot be"));

    #[test]
    fn a_migration_that_panics_is_an_error() {
        let error = decode_document::<Panics>(1, b"\xc0").unwrap_err();
        assert_eq!(error.code(), "panicked");
        assert!(error.to_string().contains("this cannot be"), "{error}");
    }

    #[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
    struct Patched {
        by_number: BTreeMap<u32, String>,
        total: u32,
    }
    state!(Patched, 2, |old: &OldState<'_>| old.patch(|json| {
        let total = json["by_number"].as_object().map_or(0, serde_json::Map::len);
        json.as_object_mut().ok_or_else(|| Error::msg("no map"))?.insert("total".into(), total.into());
        Ok(())
    }));

    #[test]
    fn an_old_document_is_patched_as_json() {
        let stored = encode(&First { by_number: numbers() }).unwrap();
        let patched = Patched { by_number: numbers(), total: 2 };
        assert_eq!(decode_document::<Patched>(1, &stored).unwrap(), patched);
        // What the patch left is no such state.
        let stored = encode(&Other { by_number: "none".into() }).unwrap();
        assert_eq!(decode_document::<Patched>(1, &stored).unwrap_err().code(), "undecodable");
    }

    #[derive(Default, Clone, Serialize, Deserialize)]
    struct Other {
        by_number: String,
    }
    state!(Other, 1);

    fn old(bytes: &[u8]) -> OldState<'_> {
        OldState { name: "orders", version: 1, known: 2, bytes }
    }

    #[test]
    fn what_json_has_not_becomes_what_serde_json_makes_of_it() {
        let stored = [0x84, 0xa1, b'b', 0xc4, 2, 1, 2, 0xff, 0xc0, 7, 0xc3, 0xc3, 0xca, 0x3f, 0, 0, 0];
        assert_eq!(old(&stored).json().unwrap(), json!({"b": [1, 2], "-1": null, "7": true, "true": 0.5}));
    }

    #[test]
    fn json_is_nested_up_to_the_limit() {
        let nested = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
        let read = |depth: usize| old(&nested(depth)).json().err().map(|error| error.code());
        let max = limits::NESTING_MAX;
        assert_eq!([max - 1, max, max + 1].map(read), [None, None, Some("undecodable")]);
        assert_eq!(read(100_000), Some("undecodable"));
    }

    proptest! {
        #[test]
        fn rubbish_makes_no_document_panic(version in 0_u32..5, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            // Any result will do, a panic would be one of them: it would be told as such.
            for code in [
                decode_document::<Third>(version, &bytes).err().map(|error| error.code()),
                decode_document::<Patched>(version, &bytes).err().map(|error| error.code()),
            ] {
                prop_assert!(code.is_none_or(|code| code != "panicked"), "{code:?}");
            }
        }
    }
}
