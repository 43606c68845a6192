//! What may be sent, and what an answer may be read as. Owns the two conversions at the ends of a call.

use crate::error::{Error, ErrorKind, Result};
use crate::payload::Payload;
use crate::value::Value;

/// What `send` takes: one payload, or several as a batch.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent",
    label = "neither a payload nor a batch of payloads",
    note = "add `#[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]` to its type; arrays and \
            vectors of such payloads are sent as a batch"
)]
pub trait Outgoing {
    /// The payload type.
    type Payload: Payload;

    /// One payload or a batch of them.
    fn into_parcel(self) -> Parcel<Self::Payload>;
}

/// What is sent at once.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Parcel<T> {
    /// One payload.
    One(T),
    /// Several of one type; a handler that takes a batch gets them all, others one by one.
    Batch(Vec<T>),
}

/// What the final value of a flow may be read as: a payload, `()`, or a `Result` of two payload types that takes
/// whichever came.
#[diagnostic::on_unimplemented(
    message = "a reply cannot be read as `{Self}`",
    label = "not a payload",
    note = "add `#[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]` to its type, or ask for `()` \
            or for `Result<A, B>` of two payload types"
)]
pub trait Answer: Sized + Send + 'static {
    /// Reads the value; `None` when the flow ended without one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OtherReply`] with the value inside, when it has another type.
    fn from_reply(value: Option<Value>) -> Result<Self>;
}

impl<T: Payload> Outgoing for T {
    type Payload = T;

    #[inline]
    fn into_parcel(self) -> Parcel<T> {
        Parcel::One(self)
    }
}

#[diagnostic::do_not_recommend]
impl<T: Payload, const N: usize> Outgoing for [T; N] {
    type Payload = T;

    fn into_parcel(self) -> Parcel<T> {
        Parcel::Batch(self.into())
    }
}

#[diagnostic::do_not_recommend]
impl<T: Payload> Outgoing for Vec<T> {
    type Payload = T;

    fn into_parcel(self) -> Parcel<T> {
        Parcel::Batch(self)
    }
}

impl<T: Payload> Answer for T {
    #[inline]
    fn from_reply(value: Option<Value>) -> Result<Self> {
        match value {
            Some(value) => value.take(),
            None => Err(nothing(T::TYPE.as_str())),
        }
    }
}

#[diagnostic::do_not_recommend]
impl Answer for () {
    fn from_reply(value: Option<Value>) -> Result<Self> {
        match value {
            None => Ok(()),
            Some(value) => {
                let found = value.event_type().as_str().to_owned();
                Err(Error::new(ErrorKind::OtherReply { asked: "nothing".to_owned(), found })
                    .with_value(value))
            }
        }
    }
}

#[diagnostic::do_not_recommend]
impl<A: Payload, B: Payload> Answer for Result<A, B> {
    fn from_reply(value: Option<Value>) -> Result<Self> {
        let value = value.ok_or_else(|| nothing(A::TYPE.as_str()))?;
        let found = value.event_type();
        if value.is::<A>() || !value.is::<B>() && found.as_str() == A::TYPE.as_str() {
            return value.take().map(Ok);
        }
        value.take().map(Err)
    }
}

#[cold]
fn nothing(asked: &str) -> Error {
    Error::new(ErrorKind::OtherReply { asked: asked.to_owned(), found: "nothing".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_takes_either_type() {
        let ok = <Result<u64, String>>::from_reply(Some(Value::new(1u64))).unwrap();
        assert_eq!(ok, Ok(1));
        let err = <Result<u64, String>>::from_reply(Some(Value::new("no".to_owned()))).unwrap();
        assert_eq!(err, Err("no".to_owned()));
        assert_eq!(
            <Result<u64, String>>::from_reply(Some(Value::new(true))).unwrap_err().code(),
            "other-reply"
        );
        assert_eq!(<Result<u64, String>>::from_reply(None).unwrap_err().code(), "other-reply");
    }

    #[test]
    fn no_value_is_read_as_nothing() {
        <()>::from_reply(None).unwrap();
        assert!(<()>::from_reply(Some(Value::new(1u64))).unwrap_err().value().is_some());
    }
}
