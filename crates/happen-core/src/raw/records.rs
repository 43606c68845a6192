//! The items of an array, one after the other or by index. Knows nothing of their fields.

use std::iter::FusedIterator;

use crate::codec::msgpack::skip;
use crate::raw::RawPayload;

/// The items of an array in a payload, each a payload of its own. It ends early where the bytes are malformed.
///
/// # Examples
///
/// ```
/// use happen_core::payload::ErasedPayload;
/// use happen_core::raw::RawPayload;
/// use serde_json::json;
///
/// let mut bytes = Vec::new();
/// json!({ "readings": [[1, 21.5], [2, 22.5], [3, 20.0]] }).encode(&mut bytes)?;
/// let raw = RawPayload::new(&bytes);
///
/// let sum: f64 = raw.records("readings").into_iter().flatten().filter_map(|record| record.f64(1)).sum();
/// assert_eq!(sum, 64.0);
///
/// let fixed = raw.records("readings").and_then(|records| records.fixed()).unwrap();
/// assert_eq!(fixed.at(2).and_then(|record| record.f64(1)), Some(20.0));
/// # Ok::<(), happen_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Records<'a> {
    /// From the next item on.
    bytes: &'a [u8],
    left: usize,
}

/// Items that all have the same number of bytes, so that each is found in constant time.
#[derive(Clone, Copy, Debug)]
pub struct FixedRecords<'a> {
    bytes: &'a [u8],
    record_bytes: usize,
}

impl<'a> Records<'a> {
    pub(crate) const fn new(bytes: &'a [u8], left: usize) -> Self {
        Self { bytes, left }
    }

    /// The items that are left, for access by index; `None` when they do not all have the same number of bytes, when
    /// there are none, or when the bytes are malformed.
    ///
    /// # Cost
    ///
    /// One pass over all items.
    #[must_use]
    pub fn fixed(self) -> Option<FixedRecords<'a>> {
        let record_bytes = skip(self.bytes, 0).filter(|_| self.left > 0)?;
        let all = self.bytes.get(..record_bytes.checked_mul(self.left)?)?;
        let same = all.chunks_exact(record_bytes).all(|record| skip(record, 0) == Some(record_bytes));
        same.then_some(FixedRecords { bytes: all, record_bytes })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = RawPayload<'a>;

    #[inline]
    fn next(&mut self) -> Option<RawPayload<'a>> {
        self.left = self.left.checked_sub(1)?;
        let Some((record, rest)) = skip(self.bytes, 0).and_then(|end| self.bytes.split_at_checked(end))
        else {
            self.left = 0;
            return None;
        };
        self.bytes = rest;
        Some(RawPayload::new(record))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // The number is what the bytes claim; each item has a byte or more.
        (0, Some(self.left.min(self.bytes.len())))
    }
}

impl FusedIterator for Records<'_> {}

impl<'a> FixedRecords<'a> {
    /// The item at the index.
    ///
    /// # Cost
    ///
    /// Constant.
    #[must_use]
    #[inline]
    pub fn at(&self, index: usize) -> Option<RawPayload<'a>> {
        let start = index.checked_mul(self.record_bytes)?;
        self.bytes.get(start..)?.get(..self.record_bytes).map(RawPayload::new)
    }

    /// The number of items; at least one.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len() / self.record_bytes
    }

    /// The bytes of each item.
    #[must_use]
    pub const fn record_bytes(&self) -> usize {
        self.record_bytes
    }
}
