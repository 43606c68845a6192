//! A payload of any type in one small value, without a box while it has at most 24 bytes.
//!
//! Owns the layout. Replies, final values of flows and items of streams travel in it. The unsafe code is here because
//! a box would cost an allocation for every reply.
#![expect(unsafe_code, reason = "values up to 24 bytes are kept inline: no allocation for a reply")]

use std::any::{TypeId, type_name};
use std::fmt;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit, align_of, size_of};

use crate::error::{Error, ErrorKind, Result};
use crate::name::EventType;
use crate::payload::{Body, Dynamic, ErasedPayload, Payload};

/// A payload whose type is known at run time.
///
/// # Cost
///
/// Values of at most [`INLINE_BYTES`] bytes are kept inside; larger ones take one allocation.
///
/// # Examples
///
/// ```
/// use happen_core::Value;
///
/// let value = Value::new(42u64);
/// assert_eq!(value.downcast_ref::<u64>(), Some(&42));
/// assert_eq!(value.take::<u64>().unwrap(), 42);
/// ```
pub struct Value {
    data: Data,
    table: &'static Table,
}

/// The largest payload kept without an allocation, in bytes.
pub const INLINE_BYTES: usize = size_of::<Data>();

type Data = MaybeUninit<[usize; 3]>;

struct Table {
    type_id: fn() -> TypeId,
    /// SAFETY of the call: `data` was written by `Value::new::<T>` of the same table and not yet taken.
    payload: unsafe fn(&Data) -> &dyn ErasedPayload,
    /// SAFETY of the call: as above; `data` must not be used afterwards.
    drop: unsafe fn(&mut Data),
}

struct Of<T>(PhantomData<T>);

impl<T: Payload> Of<T> {
    const INLINE: bool = size_of::<T>() <= INLINE_BYTES && align_of::<T>() <= align_of::<Data>();

    const TABLE: &'static Table =
        &Table { type_id: TypeId::of::<T>, payload: Self::payload, drop: Self::drop };

    unsafe fn payload(data: &Data) -> &dyn ErasedPayload {
        // SAFETY: by the contract of the table `data` holds a `T`, or a box of one when `T` is not inline.
        unsafe { if Self::INLINE { &*data.as_ptr().cast::<T>() } else { &**data.as_ptr().cast::<Box<T>>() } }
    }

    unsafe fn drop(data: &mut Data) {
        // SAFETY: as in `payload`, and the caller does not use `data` again.
        unsafe {
            if Self::INLINE {
                data.as_mut_ptr().cast::<T>().drop_in_place();
            } else {
                data.as_mut_ptr().cast::<Box<T>>().drop_in_place();
            }
        }
    }
}

// SAFETY: a value holds exactly one `T: Payload`, and payloads are `Send` and `Sync`.
unsafe impl Send for Value {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Value {}

impl Value {
    /// The value holding this payload.
    #[must_use]
    #[inline]
    pub fn new<T: Payload>(payload: T) -> Self {
        let mut data = Data::uninit();
        // SAFETY: `INLINE` says that size and alignment of `T` fit; a box of a sized type is one word.
        unsafe {
            if Of::<T>::INLINE {
                data.as_mut_ptr().cast::<T>().write(payload);
            } else {
                data.as_mut_ptr().cast::<Box<T>>().write(Box::new(payload));
            }
        }
        Self { data, table: Of::<T>::TABLE }
    }

    /// Whether it holds a `T`.
    #[must_use]
    #[inline]
    pub fn is<T: Payload>(&self) -> bool {
        // The same table is the same type; another one may be too, from another part of the program.
        std::ptr::eq(self.table, Of::<T>::TABLE) || (self.table.type_id)() == TypeId::of::<T>()
    }

    /// The payload, when it is a `T`.
    #[must_use]
    pub fn downcast_ref<T: Payload>(&self) -> Option<&T> {
        self.as_payload().as_any().downcast_ref()
    }

    /// The payload as a `T`: as it is, or decoded by its name when it came as bytes, as JSON or as another Rust type
    /// of the same name.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::OtherReply`] with the value inside, when it has another name.
    /// - [`ErrorKind::Undecodable`] when the name fits and the shape does not.
    #[inline]
    pub fn take<T: Payload>(self) -> Result<T> {
        if self.is::<T>() {
            return Ok(self.take_exact());
        }
        self.convert()
    }

    #[cold]
    fn convert<T: Payload>(self) -> Result<T> {
        let found = self.event_type();
        if TypeId::of::<T>() == TypeId::of::<Dynamic>() {
            return Self::new(Dynamic::from_payload(self.into_shared())).take();
        }
        if found.as_str() != T::TYPE.as_str() {
            let kind = ErrorKind::OtherReply {
                asked: T::TYPE.as_str().to_owned(),
                found: found.as_str().to_owned(),
            };
            return Err(Error::new(kind).with_value(self));
        }
        self.as_payload().convert().map_err(|error| error.with_value(self))
    }

    #[inline]
    fn take_exact<T: Payload>(self) -> T {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: the caller checked that this holds a `T`; `ManuallyDrop` keeps it from being dropped a second time.
        unsafe {
            if Of::<T>::INLINE {
                this.data.as_mut_ptr().cast::<T>().read()
            } else {
                *this.data.as_mut_ptr().cast::<Box<T>>().read()
            }
        }
    }

    /// The payload without its type.
    #[must_use]
    pub fn as_payload(&self) -> &dyn ErasedPayload {
        // SAFETY: `data` and `table` were made together in `new`.
        unsafe { (self.table.payload)(&self.data) }
    }

    /// The payload's type name.
    #[must_use]
    pub fn event_type(&self) -> EventType {
        self.as_payload().event_type()
    }

    fn into_shared(self) -> Body {
        Body::Typed(self.as_payload().to_shared())
    }
}

impl Clone for Value {
    fn clone(&self) -> Self {
        self.as_payload().to_value()
    }
}

impl Drop for Value {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: made together in `new`; a value is dropped once.
        unsafe { (self.table.drop)(&mut self.data) }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_payload().to_json() {
            Ok(json) => write!(f, "{} {json}", self.event_type()),
            Err(_) => write!(f, "{} (not to be shown)", self.event_type()),
        }
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(type_name::<Self>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn small_and_large_payloads_come_back_and_are_dropped_once() {
        let text = "x".repeat(100);
        let value = Value::new(text.clone());
        assert!(value.is::<String>());
        assert!(!value.is::<u64>());
        assert_eq!(value.clone().take::<String>().unwrap(), text);
        drop(value.clone());
        assert_eq!(value.take::<String>().unwrap(), text);

        let large = Value::new(serde_json::json!({"a": [1, 2, 3]}));
        assert_eq!(large.clone().take::<serde_json::Value>().unwrap()["a"][2], 3);
        drop(large);
    }

    #[test]
    fn another_type_is_readable_and_not_lost() {
        let mut error = Value::new(7u64).take::<String>().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::OtherReply { .. }), "{error}");
        assert_eq!(error.take_value().unwrap().take::<u64>().unwrap(), 7);
    }

    #[test]
    fn any_value_can_be_read_as_dynamic() {
        let dynamic = Value::new(7u64).take::<Dynamic>().unwrap();
        assert_eq!(dynamic.to_json().unwrap(), serde_json::json!(7));
    }

    #[test]
    fn values_cross_threads() {
        let value = Arc::new(Value::new("shared".to_owned()));
        let other = Arc::clone(&value);
        let handle =
            std::thread::Builder::new().spawn(move || other.downcast_ref::<String>().cloned()).unwrap();
        assert_eq!(handle.join().unwrap().as_deref(), Some("shared"));
    }
}
