//! The contents of documents and events as JSON, whatever their MessagePack holds. Owns what becomes of what JSON does
//! not have; does not know what a content means.

use std::fmt;

use happen::{Payload, TypeName};
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Number, Value as Json};

use crate::failure::Failure;

/// A content in the form that is shown.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) json: Json,
    pub(crate) exactness: Exactness,
}

/// Whether the JSON says all that the MessagePack did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exactness {
    Exact,
    /// It has bytes, which are shown as hexadecimal text, keys that are no texts, or numbers that JSON has not.
    Lossy,
}

/// Reads a content in MessagePack.
///
/// # Errors
///
/// [`Failure::Happen`] when it is none.
pub(crate) fn shown(bytes: &[u8]) -> Result<Shown, Failure> {
    // A payload that keeps its bytes decodes them by the framework's own reader of MessagePack.
    let kept = happen::Dynamic::from_bytes(happen::EventType::of(Shown::TYPE), bytes.into());
    Ok(kept.decode::<Shown>()?)
}

/// The content in MessagePack, as the framework writes it.
///
/// # Errors
///
/// [`Failure::Happen`] when it has no such form.
pub(crate) fn packed(json: &Json) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    happen_core::payload::ErasedPayload::encode(json, &mut bytes)?;
    Ok(bytes)
}

impl Shown {
    fn exact(json: impl Into<Json>) -> Self {
        Self { json: json.into(), exactness: Exactness::Exact }
    }

    fn lossy(json: impl Into<Json>) -> Self {
        Self { json: json.into(), exactness: Exactness::Lossy }
    }

    /// The number, or that JSON has none such.
    fn float(value: f64) -> Self {
        Number::from_f64(value).map_or(Self::lossy(Json::Null), Self::exact)
    }
}

impl Exactness {
    fn and(self, other: Self) -> Self {
        if self == Self::Exact { other } else { self }
    }
}

impl Payload for Shown {
    const TYPE: &'static TypeName = &TypeName::new("content");
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything)
    }
}

struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = Shown;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Shown, E> {
        Ok(Shown::exact(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Shown, E> {
        Ok(Shown::exact(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Shown, E> {
        Ok(Shown::exact(value))
    }

    fn visit_f32<E: serde::de::Error>(self, value: f32) -> Result<Shown, E> {
        // By way of its shortest text, so that 0.1 is not shown as 0.10000000149.
        value.to_string().parse().map(Shown::float).map_err(E::custom)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Shown, E> {
        Ok(Shown::float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Shown, E> {
        Ok(Shown::exact(value))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Shown, E> {
        let hexadecimal: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Shown::lossy(format!("0x{hexadecimal}")))
    }

    fn visit_unit<E>(self) -> Result<Shown, E> {
        Ok(Shown::exact(Json::Null))
    }

    fn visit_none<E>(self) -> Result<Shown, E> {
        Ok(Shown::exact(Json::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shown, D::Error> {
        Shown::deserialize(deserializer)
    }

    /// MessagePack's own types of extension: a number and bytes.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shown, D::Error> {
        Shown::deserialize(deserializer).map(|inner| Shown::lossy(inner.json))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shown, A::Error> {
        let (mut list, mut exactness) = (Vec::new(), Exactness::Exact);
        while let Some(item) = items.next_element::<Shown>()? {
            exactness = exactness.and(item.exactness);
            list.push(item.json);
        }
        Ok(Shown { json: Json::Array(list), exactness })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Shown, A::Error> {
        let (mut map, mut exactness) = (Map::new(), Exactness::Exact);
        while let Some((key, value)) = entries.next_entry::<Shown, Shown>()? {
            exactness = exactness.and(key.exactness).and(value.exactness);
            let key = match key.json {
                Json::String(text) => text,
                other => {
                    exactness = Exactness::Lossy;
                    other.to_string()
                }
            };
            if map.insert(key.clone(), value.json).is_some() {
                return Err(A::Error::custom(format!("the key `{key}` twice")));
            }
        }
        Ok(Shown { json: Json::Object(map), exactness })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[track_caller]
    fn read(bytes: &[u8]) -> (Json, Exactness) {
        let shown = shown(bytes).unwrap();
        (shown.json, shown.exactness)
    }

    #[test]
    fn what_json_has_comes_back_as_it_was() {
        let json = json!({ "a": [1, -2, 3.5, true, null, "é"], "big": u64::MAX, "small": i64::MIN, "": {} });
        assert_eq!(read(&packed(&json).unwrap()), (json, Exactness::Exact));
        // A number of 32 bits: 0.1.
        assert_eq!(read(&[0xca, 0x3d, 0xcc, 0xcc, 0xcd]), (json!(0.1), Exactness::Exact));
    }

    #[test]
    fn what_json_has_not_is_shown_and_told_to_be_so() {
        let mut bytes = Vec::new();
        let numbers = BTreeMap::from([(7_u64, "seven".to_owned())]);
        happen_core::payload::ErasedPayload::encode(&Keyed(numbers), &mut bytes).unwrap();
        assert_eq!(read(&bytes), (json!({ "7": "seven" }), Exactness::Lossy));
        for (bytes, json) in [
            (&[0xc4, 2, 0xab, 0x01][..], json!("0xab01")),
            (&[0x91, 0xc4, 0], json!(["0x"])),
            // Not a number, and an extension of type 5.
            (&[0xca, 0x7f, 0xc0, 0, 0], json!(null)),
            (&[0xd4, 5, 9], json!([5, "0x09"])),
        ] {
            assert_eq!(read(bytes), (json, Exactness::Lossy), "{bytes:x?}");
        }
    }

    #[test]
    fn rubbish_is_an_error() {
        for bytes in
            [&[][..], &[0xc1], &[0x92, 1], &[0x81, 0xa1, b'a'], &[0x82, 0xa1, b'a', 1, 0xa1, b'a', 2]]
        {
            assert!(shown(bytes).is_err(), "{bytes:x?}");
        }
    }

    #[derive(Clone, Serialize, Deserialize)]
    struct Keyed(BTreeMap<u64, String>);

    impl Payload for Keyed {
        const TYPE: &'static TypeName = &TypeName::new("keyed");
    }
}
