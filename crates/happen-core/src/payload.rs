//! What events carry. Owns the [`Payload`] trait, its form without a type, and payloads named at run time; does not
//! know the envelope.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value as Json;

use crate::error::{Error, ErrorKind, Result};
use crate::name::{EventType, TypeName};
use crate::value::Value;

/// Data that an event, a reply or an item of a stream carries.
///
/// `#[derive(happen::Event)]` implements it and gives it a name. Texts, numbers, truth values and
/// [`serde_json::Value`] have it already.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a payload",
    label = "not a payload",
    note = "add `#[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]` to `{Self}`"
)]
pub trait Payload: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name of the type: what patterns match and other processes know it by.
    const TYPE: &'static TypeName;

    /// The event type of this payload; only a payload named at run time differs from [`Self::TYPE`].
    #[inline]
    fn event_type(&self) -> EventType {
        EventType::of(Self::TYPE)
    }

    /// The payload from one without a type: by its Rust type, else by encoding and decoding.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] when the shape does not fit.
    fn from_erased(payload: &dyn ErasedPayload) -> Result<Self> {
        match payload.as_any().downcast_ref::<Self>() {
            Some(same) => Ok(same.clone()),
            None => payload.convert(),
        }
    }
}

/// A payload without its type; every [`Payload`] is one.
pub trait ErasedPayload: Send + Sync {
    /// For downcasts to the payload's own type.
    fn as_any(&self) -> &dyn Any;

    /// The payload's event type.
    fn event_type(&self) -> EventType;

    /// Appends the payload in MessagePack, structs as maps with the names of their fields.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unencodable`] when its `Serialize` refuses.
    fn encode(&self, out: &mut Vec<u8>) -> Result<()>;

    /// The payload as JSON.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unencodable`] when it has no form in JSON, such as a map with keys that are no texts.
    fn to_json(&self) -> Result<Json>;

    /// A copy that can be shared.
    fn to_shared(&self) -> Arc<dyn ErasedPayload>;

    /// A copy as a value.
    fn to_value(&self) -> Value;
}

impl dyn ErasedPayload + '_ {
    /// The payload as another Rust type, by encoding and decoding.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unencodable`] or [`ErrorKind::Undecodable`].
    pub fn convert<T: Payload>(&self) -> Result<T> {
        if let Some(dynamic) = self.as_any().downcast_ref::<Dynamic>() {
            return dynamic.decode();
        }
        let mut bytes = Vec::new();
        self.encode(&mut bytes)?;
        decode(&bytes)
    }
}

/// A payload named at run time, whose fields are read by path.
///
/// It keeps what it was made from (JSON, MessagePack bytes or a typed payload) and is turned into JSON when a field is
/// first asked for. Cloning shares.
///
/// # Examples
///
/// ```
/// use happen_core::Event;
/// use serde_json::json;
///
/// let reading = Event::new("sensor.read", json!({ "items": [{ "price": 7 }] }));
/// assert_eq!(reading.get("items.0.price"), Some(&json!(7)));
/// assert_eq!(reading.get("items.1.price"), None);
/// ```
#[derive(Clone)]
pub struct Dynamic {
    event_type: EventType,
    body: Body,
    json: Arc<OnceLock<Json>>,
}

/// What a [`Dynamic`] was made from.
#[derive(Clone)]
pub(crate) enum Body {
    Json,
    Bytes(Arc<[u8]>),
    Typed(Arc<dyn ErasedPayload>),
}

impl Dynamic {
    /// A payload of this type with this content.
    #[must_use]
    pub fn new(event_type: &str, content: Json) -> Self {
        Self::from_json(EventType::new(event_type), content)
    }

    /// As [`Dynamic::new`], with a type that is known already.
    #[must_use]
    pub fn from_json(event_type: EventType, content: Json) -> Self {
        Self { event_type, body: Body::Json, json: Arc::new(OnceLock::from(content)) }
    }

    /// A payload of this type from its MessagePack bytes, which are not read before a field is asked for.
    #[must_use]
    pub fn from_bytes(event_type: EventType, bytes: Arc<[u8]>) -> Self {
        Self { event_type, body: Body::Bytes(bytes), json: Arc::default() }
    }

    /// A typed payload under another form.
    #[must_use]
    pub fn from_erased_payload(event_type: EventType, payload: &dyn ErasedPayload) -> Self {
        Self { event_type, body: Body::Typed(payload.to_shared()), json: Arc::default() }
    }

    pub(crate) fn from_payload(body: Body) -> Self {
        let event_type = match &body {
            Body::Typed(payload) => payload.event_type(),
            Body::Json | Body::Bytes(_) => EventType::of(<Self as Payload>::TYPE),
        };
        Self { event_type, body, json: Arc::default() }
    }

    /// The value at a path of field names and indexes separated by dots; `None` when there is none, or when the
    /// payload has no form in JSON ([`Dynamic::json`] says why).
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Json> {
        let mut at = self.json().ok()?;
        for part in path.split('.') {
            at = match at {
                Json::Object(fields) => fields.get(part)?,
                Json::Array(items) => items.get(part.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        Some(at)
    }

    /// The whole content.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] or [`ErrorKind::Unencodable`] when it has no form in JSON.
    pub fn json(&self) -> Result<&Json> {
        if let Some(json) = self.json.get() {
            return Ok(json);
        }
        let json = match &self.body {
            Body::Json => Json::Null,
            Body::Bytes(bytes) => decode(bytes)?,
            Body::Typed(payload) => payload.to_json()?,
        };
        Ok(self.json.get_or_init(|| json))
    }

    /// The MessagePack bytes it was made from; `None` when it was made from anything else.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Bytes(bytes) => Some(bytes),
            Body::Json | Body::Typed(_) => None,
        }
    }

    /// The content as a typed payload.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] when the shape does not fit.
    pub fn decode<T: Payload>(&self) -> Result<T> {
        match &self.body {
            Body::Json => {
                T::deserialize(self.json()?).map_err(|error| undecodable(T::TYPE.as_str()).with_source(error))
            }
            Body::Bytes(bytes) => decode(bytes),
            Body::Typed(payload) => T::from_erased(&**payload),
        }
    }
}

#[diagnostic::do_not_recommend]
impl Payload for Dynamic {
    const TYPE: &'static TypeName = &TypeName::new("dynamic");

    fn event_type(&self) -> EventType {
        self.event_type.clone()
    }

    fn from_erased(payload: &dyn ErasedPayload) -> Result<Self> {
        Ok(match payload.as_any().downcast_ref::<Self>() {
            Some(same) => same.clone(),
            None => Self::from_payload(Body::Typed(payload.to_shared())),
        })
    }
}

impl Serialize for Dynamic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Dynamic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_json(EventType::of(Self::TYPE), Json::deserialize(deserializer)?))
    }
}

impl fmt::Debug for Dynamic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.json() {
            Ok(json) => write!(f, "{} {json}", self.event_type),
            Err(_) => write!(f, "{} (not to be shown)", self.event_type),
        }
    }
}

impl<T: Payload> ErasedPayload for T {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn event_type(&self) -> EventType {
        Payload::event_type(self)
    }

    fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        match self.as_any().downcast_ref::<Dynamic>() {
            Some(Dynamic { body: Body::Bytes(bytes), .. }) => {
                out.extend_from_slice(bytes);
                return Ok(());
            }
            // Not by way of JSON, which has no bytes and fewer numbers.
            Some(Dynamic { body: Body::Typed(payload), .. }) => return payload.encode(out),
            Some(Dynamic { body: Body::Json, .. }) | None => {}
        }
        let mut serializer = rmp_serde::Serializer::new(out).with_struct_map();
        self.serialize(&mut serializer).map_err(|error| unencodable(self).with_source(error))
    }

    fn to_json(&self) -> Result<Json> {
        serde_json::to_value(self).map_err(|error| unencodable(self).with_source(error))
    }

    fn to_shared(&self) -> Arc<dyn ErasedPayload> {
        match self.as_any().downcast_ref::<Dynamic>() {
            Some(Dynamic { body: Body::Typed(payload), .. }) => Arc::clone(payload),
            _ => Arc::new(self.clone()),
        }
    }

    fn to_value(&self) -> Value {
        Value::new(self.clone())
    }
}

impl fmt::Debug for dyn ErasedPayload + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "payload of {}", self.event_type())
    }
}

macro_rules! named {
    ($($type:ty = $name:literal),+ $(,)?) => {
        $(#[diagnostic::do_not_recommend]
        impl Payload for $type {
            const TYPE: &'static TypeName = &TypeName::new($name);
        })+
    };
}

named! {
    bool = "bool", String = "string", Json = "json", char = "char",
    u8 = "u8", u16 = "u16", u32 = "u32", u64 = "u64", usize = "usize",
    i8 = "i8", i16 = "i16", i32 = "i32", i64 = "i64", isize = "isize",
    f32 = "f32", f64 = "f64",
}

/// Decodes a payload from MessagePack.
///
/// # Errors
///
/// [`ErrorKind::Undecodable`] when the bytes are no such payload.
pub fn decode<T: Payload>(bytes: &[u8]) -> Result<T> {
    rmp_serde::from_slice(bytes).map_err(|error| undecodable(T::TYPE.as_str()).with_source(error))
}

#[cold]
fn undecodable(wanted: &str) -> Error {
    Error::new(ErrorKind::Undecodable { wanted: wanted.to_owned() })
}

#[cold]
fn unencodable(payload: &dyn ErasedPayload) -> Error {
    Error::new(ErrorKind::Unencodable { event_type: payload.event_type().as_str().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Reading {
        celsius: f64,
        at: Vec<u32>,
    }

    impl Payload for Reading {
        const TYPE: &'static TypeName = &TypeName::new("reading");
    }

    #[test]
    fn one_content_in_four_forms() {
        let typed = Reading { celsius: 21.5, at: vec![1, 2] };
        let mut bytes = Vec::new();
        typed.encode(&mut bytes).unwrap();
        let event_type = EventType::new("sensor.read");
        let forms = [
            Dynamic::from_json(event_type.clone(), typed.to_json().unwrap()),
            Dynamic::from_bytes(event_type.clone(), bytes.into()),
            Dynamic::from_erased_payload(event_type, &typed),
        ];
        for form in forms {
            assert_eq!(form.get("at.1"), Some(&json!(2)));
            assert_eq!(form.get("at.x"), None);
            assert_eq!(form.get("celsius.x"), None);
            assert_eq!(form.decode::<Reading>().unwrap(), typed);
            assert_eq!(Payload::event_type(&form).as_str(), "sensor.read");
            let mut again = Vec::new();
            form.encode(&mut again).unwrap();
            assert_eq!(decode::<Reading>(&again).unwrap(), typed);
        }
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Loud {
        volume: f64,
    }

    impl Payload for Loud {
        const TYPE: &'static TypeName = &TypeName::new("loud");
    }

    #[test]
    fn a_typed_payload_under_another_name_is_encoded_without_json() {
        // JSON has no infinity and would make it nil.
        let typed = Loud { volume: f64::INFINITY };
        let dynamic = Dynamic::from_erased_payload(EventType::new("noise"), &typed);
        let mut bytes = Vec::new();
        dynamic.encode(&mut bytes).unwrap();
        assert_eq!(decode::<Loud>(&bytes).unwrap(), typed);
        assert_eq!(dynamic.as_bytes(), None);
        let from_bytes = Dynamic::from_bytes(EventType::new("noise"), bytes.as_slice().into());
        assert_eq!(from_bytes.as_bytes(), Some(&*bytes));
    }

    #[test]
    fn a_wrong_shape_says_what_was_wanted() {
        let error = Dynamic::new("x", json!({"celsius": "warm"})).decode::<Reading>().unwrap_err();
        assert_eq!(error.code(), "undecodable");
        let error = decode::<Reading>(&[0xff, 1, 2]).unwrap_err();
        assert!(error.to_string().contains("`reading`"), "{error}");
    }
}
