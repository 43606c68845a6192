//! Payload bytes read and written in place, without allocating: for handlers that must not. Owns access by path; does
//! not know events, and does not copy.
//!
//! The layout is plain MessagePack as [`crate::payload::ErasedPayload::encode`] writes it: structs are maps with the
//! names of their fields, sequences are arrays.

mod buffers;
mod path;
mod records;
mod texts;
mod writer;

use std::fmt;

use crate::codec::FrameError;
use crate::codec::msgpack::{Head, Reader, head, skip, text_or_skip};

pub use buffers::Buffers;
pub use path::{AsPath, FieldPath, Segment};
pub use records::{FixedRecords, Records};
pub use texts::Texts;
pub use writer::{RawWriter, WriteError};

/// A payload's MessagePack bytes, borrowed, with its fields read by path.
///
/// A path is a text of field names and indexes separated by dots, a [`FieldPath`] that was split in advance, or the
/// index of an array's item. The empty path is the payload itself. Reading answers `None` when there is no such field,
/// when it has another type or does not fit the one asked for, and when the bytes before it are no MessagePack; it never
/// panics. Where a map has a name twice, the first counts.
///
/// # Cost
///
/// No allocation. Each reading passes over what stands before the field.
///
/// # Examples
///
/// ```
/// use happen_core::payload::ErasedPayload;
/// use happen_core::raw::{FieldPath, RawPayload};
/// use serde_json::json;
///
/// const PRICE: FieldPath<'_> = FieldPath::new("items.1.price");
///
/// let mut bytes = Vec::new();
/// json!({ "customer": "ada", "items": [{ "price": 7 }, { "price": 300 }] }).encode(&mut bytes)?;
/// let raw = RawPayload::new(&bytes);
/// assert_eq!(raw.str("customer"), Some("ada"));
/// assert_eq!(raw.u64(&PRICE), Some(300));
/// assert_eq!(raw.u8(&PRICE), None);
/// assert_eq!(raw.f64("items.0.price"), Some(7.0));
/// # Ok::<(), happen_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawPayload<'a> {
    bytes: &'a [u8],
}

macro_rules! integers {
    ($($name:ident: $article:literal),+) => {
        $(
            #[doc = concat!("The integer at the path, when it fits ", $article, " `", stringify!($name), "`,")]
            /// however it was encoded.
            #[must_use]
            #[inline]
            pub fn $name(&self, path: impl AsPath) -> Option<$name> {
                match self.head(path)? {
                    Head::Unsigned(number) => number.try_into().ok(),
                    Head::Signed(number) => number.try_into().ok(),
                    _ => None,
                }
            }
        )+
    };
}

impl<'a> RawPayload<'a> {
    /// The payload in these bytes, which are not checked: reading a field checks what it passes.
    #[must_use]
    #[inline]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The payload in these bytes, all of them checked.
    ///
    /// # Errors
    ///
    /// [`FrameError`] when they are not exactly one well-formed value, or when it is nested deeper than
    /// [`crate::limits::NESTING_MAX`].
    pub fn check(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(bytes);
        reader.value()?;
        reader.end()?;
        Ok(Self { bytes })
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    integers! { u8: "a", u16: "a", u32: "a", u64: "a", i8: "an", i16: "an", i32: "an", i64: "an" }

    /// The number at the path. An integer counts when it is exact as `f64`, since some languages write `21.0` as `21`.
    #[must_use]
    #[inline]
    pub fn f64(&self, path: impl AsPath) -> Option<f64> {
        match self.head(path)? {
            Head::F64(number) => Some(number),
            Head::F32(number) => Some(f64::from(number)),
            // All integers up to 2^53 are exact; of those beyond it only some, so none counts.
            Head::Unsigned(number) => (number <= 1 << 53).then_some(number as f64),
            Head::Signed(number) => (number >= -(1 << 53)).then_some(number as f64),
            _ => None,
        }
    }

    /// The number at the path, rounded to the nearest `f32`: some languages have none and write all numbers in 64 bits. A
    /// finite number beyond the range of `f32` does not count, nor an integer that is not exact as `f32`.
    #[must_use]
    #[inline]
    pub fn f32(&self, path: impl AsPath) -> Option<f32> {
        match self.head(path)? {
            Head::F32(number) => Some(number),
            Head::F64(number) => {
                let rounded = number as f32;
                (rounded.is_finite() || !number.is_finite()).then_some(rounded)
            }
            Head::Unsigned(number) => (number <= 1 << 24).then_some(number as f32),
            Head::Signed(number) => (number >= -(1 << 24)).then_some(number as f32),
            _ => None,
        }
    }

    /// The truth value at the path.
    #[must_use]
    #[inline]
    pub fn bool(&self, path: impl AsPath) -> Option<bool> {
        match self.head(path)? {
            Head::Bool(truth) => Some(truth),
            _ => None,
        }
    }

    /// The text at the path.
    #[must_use]
    #[inline]
    pub fn str(&self, path: impl AsPath) -> Option<&'a str> {
        let at = self.find(path)?;
        match head(self.bytes, at)? {
            (Head::Str(len), start) => std::str::from_utf8(self.slice(start, len)?).ok(),
            _ => None,
        }
    }

    /// The bytes at the path; a text is none.
    #[must_use]
    #[inline]
    pub fn bytes(&self, path: impl AsPath) -> Option<&'a [u8]> {
        let at = self.find(path)?;
        match head(self.bytes, at)? {
            (Head::Bin(len), start) => self.slice(start, len),
            _ => None,
        }
    }

    /// The number of items of the array at the path, as it says itself.
    #[must_use]
    pub fn array_len(&self, path: impl AsPath) -> Option<usize> {
        match self.head(path)? {
            Head::Array(items) => Some(items),
            _ => None,
        }
    }

    /// Whether nil stands at the path; `None` when nothing does.
    #[must_use]
    pub fn is_nil(&self, path: impl AsPath) -> Option<bool> {
        Some(self.head(path)? == Head::Nil)
    }

    /// Whether anything stands at the path, nil included.
    #[must_use]
    pub fn exists(&self, path: impl AsPath) -> bool {
        self.head(path).is_some()
    }

    /// The value at the path as a payload of its own, for several readings inside it.
    #[must_use]
    pub fn at(&self, path: impl AsPath) -> Option<Self> {
        let start = self.find(path)?;
        let end = skip(self.bytes, start)?;
        self.bytes.get(start..end).map(Self::new)
    }

    /// The items of the array at the path.
    #[must_use]
    pub fn records(&self, path: impl AsPath) -> Option<Records<'a>> {
        let at = self.find(path)?;
        match head(self.bytes, at)? {
            (Head::Array(items), start) => Some(Records::new(self.bytes.get(start..)?, items)),
            _ => None,
        }
    }

    #[inline]
    fn head(&self, path: impl AsPath) -> Option<Head> {
        let at = self.find(path)?;
        match head(self.bytes, at)? {
            (Head::Reserved, _) => None,
            (head, _) => Some(head),
        }
    }

    #[inline]
    fn find(&self, path: impl AsPath) -> Option<usize> {
        let mut at = 0;
        path.walk(|segment| {
            at = self.enter(at, segment)?;
            Some(())
        })?;
        Some(at)
    }

    /// The position of a map's field or an array's item.
    fn enter(&self, at: usize, segment: Segment<'_>) -> Option<usize> {
        let (container, mut at) = head(self.bytes, at)?;
        match container {
            Head::Map(pairs) => {
                let name = segment.name()?;
                for _ in 0..pairs {
                    let (key, next) = text_or_skip(self.bytes, at)?;
                    if key == Some(name) {
                        return Some(next);
                    }
                    at = skip(self.bytes, next)?;
                }
                None
            }
            Head::Array(items) => {
                let index = segment.index().filter(|index| *index < items)?;
                for _ in 0..index {
                    at = skip(self.bytes, at)?;
                }
                Some(at)
            }
            _ => None,
        }
    }

    #[inline]
    fn slice(&self, start: usize, len: usize) -> Option<&'a [u8]> {
        self.bytes.get(start..)?.get(..len)
    }
}

impl fmt::Debug for RawPayload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match rmp_serde::from_slice::<serde_json::Value>(self.bytes) {
            Ok(json) => write!(f, "raw {json}"),
            Err(_) => write!(f, "raw {} bytes", self.bytes.len()),
        }
    }
}

#[cfg(test)]
mod tests;
