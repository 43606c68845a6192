//! Paths to fields, split at use or in advance. Owns their text form; does not know the bytes they lead through.

use crate::limits::PATH_SEGMENTS_AHEAD;

/// Something that leads to a field: a text, a [`FieldPath`], or the index of an array's item.
pub trait AsPath: sealed::Sealed {
    /// Calls `enter` with each segment in order, until it answers `None`.
    fn walk(self, enter: impl FnMut(Segment<'_>) -> Option<()>) -> Option<()>;
}

/// One part of a path: a field's name, which may also be an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'p> {
    name: Option<&'p [u8]>,
    index: Option<usize>,
}

/// A path split in advance, so that a handler run often does not split it each time. Made by the compiler when it is a
/// constant.
///
/// # Examples
///
/// ```
/// use happen_core::raw::{FieldPath, RawPayload};
///
/// const CELSIUS: FieldPath<'_> = FieldPath::new("reading.celsius");
///
/// let bytes = [0x81, 0xa7, b'r', b'e', b'a', b'd', b'i', b'n', b'g', 0x81,
///     0xa7, b'c', b'e', b'l', b's', b'i', b'u', b's', 21];
/// assert_eq!(RawPayload::new(&bytes).i32(&CELSIUS), Some(21));
/// assert_eq!(CELSIUS.as_str(), "reading.celsius");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldPath<'p> {
    text: &'p str,
    ahead: [Segment<'p>; PATH_SEGMENTS_AHEAD],
    len: usize,
    /// What is beyond the segments split in advance.
    rest: Option<&'p [u8]>,
}

impl<'p> FieldPath<'p> {
    /// The path with this text: field names and indexes separated by dots.
    #[must_use]
    pub const fn new(text: &'p str) -> Self {
        let mut ahead = [Segment { name: None, index: None }; PATH_SEGMENTS_AHEAD];
        let mut len = 0;
        let mut rest = if text.is_empty() { None } else { Some(text.as_bytes()) };
        while len < PATH_SEGMENTS_AHEAD {
            let Some(bytes) = rest else { break };
            let (segment, after) = split(bytes);
            ahead[len] = segment;
            len += 1;
            rest = after;
        }
        Self { text, ahead, len, rest }
    }

    /// The text.
    #[must_use]
    pub const fn as_str(&self) -> &'p str {
        self.text
    }
}

impl<'p> Segment<'p> {
    /// The name as bytes; `None` when the path was given as an index.
    #[must_use]
    #[inline]
    pub const fn name(&self) -> Option<&'p [u8]> {
        self.name
    }

    /// The index, when the segment is one.
    #[must_use]
    #[inline]
    pub const fn index(&self) -> Option<usize> {
        self.index
    }

    const fn new(name: &'p [u8]) -> Self {
        Self { name: Some(name), index: index_of(name) }
    }
}

impl AsPath for &FieldPath<'_> {
    #[inline]
    fn walk(self, mut enter: impl FnMut(Segment<'_>) -> Option<()>) -> Option<()> {
        for segment in self.ahead.iter().take(self.len) {
            enter(*segment)?;
        }
        walk_text(self.rest, enter)
    }
}

impl AsPath for &str {
    #[inline]
    fn walk(self, enter: impl FnMut(Segment<'_>) -> Option<()>) -> Option<()> {
        walk_text((!self.is_empty()).then_some(self.as_bytes()), enter)
    }
}

impl AsPath for usize {
    #[inline]
    fn walk(self, mut enter: impl FnMut(Segment<'_>) -> Option<()>) -> Option<()> {
        enter(Segment { name: None, index: Some(self) })
    }
}

#[inline]
fn walk_text<'s>(mut rest: Option<&'s [u8]>, mut enter: impl FnMut(Segment<'s>) -> Option<()>) -> Option<()> {
    while let Some(bytes) = rest {
        let (segment, after) = split(bytes);
        enter(segment)?;
        rest = after;
    }
    Some(())
}

/// The segment before the first dot, and what is after it.
const fn split(bytes: &[u8]) -> (Segment<'_>, Option<&[u8]>) {
    let mut dot = 0;
    while dot < bytes.len() {
        if bytes[dot] == b'.' {
            let (name, after) = bytes.split_at(dot);
            return (Segment::new(name), Some(after.split_at(1).1));
        }
        dot += 1;
    }
    (Segment::new(bytes), None)
}

const fn index_of(name: &[u8]) -> Option<usize> {
    // MessagePack's lengths have 32 bits, that is ten digits; leading zeros beyond that are no index.
    if name.is_empty() || name.len() > 10 {
        return None;
    }
    let mut index: u64 = 0;
    let mut digit = 0;
    while digit < name.len() {
        if !name[digit].is_ascii_digit() {
            return None;
        }
        index = index * 10 + (name[digit] - b'0') as u64;
        digit += 1;
    }
    if index <= u32::MAX as u64 { Some(index as usize) } else { None }
}

mod sealed {
    use super::FieldPath;

    #[expect(unnameable_types, reason = "nobody else implements paths, so their form can change")]
    pub trait Sealed {}
    impl Sealed for &FieldPath<'_> {}
    impl Sealed for &str {}
    impl Sealed for usize {}
}
