//! MessagePack in place: markers, lengths, skipping. Owns how bytes are read without copying them and how heads are
//! written; does not know what the values mean. No byte makes it panic, and no length is believed before it is checked.

use crate::codec::frame::{FrameError, FrameProblem};
use crate::id::EventId;
use crate::limits::NESTING_MAX;

/// The first bytes of a value: all of a scalar, or the length of what follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Head {
    Nil,
    Bool(bool),
    Unsigned(u64),
    /// Negative only.
    Signed(i64),
    F32(f32),
    F64(f64),
    Str(usize),
    Bin(usize),
    /// The length with the byte that says which extension it is.
    Ext(usize),
    Array(usize),
    /// The number of pairs.
    Map(usize),
    Reserved,
}

/// The head at `at` and the position after it; `None` when the bytes end before.
#[inline]
pub(crate) fn head(bytes: &[u8], at: usize) -> Option<(Head, usize)> {
    let marker = *bytes.get(at)?;
    let next = at + 1;
    Some(match marker {
        0x00..=0x7f => (Head::Unsigned(u64::from(marker)), next),
        0x80..=0x8f => (Head::Map(usize::from(marker & 0x0f)), next),
        0x90..=0x9f => (Head::Array(usize::from(marker & 0x0f)), next),
        0xa0..=0xbf => (Head::Str(usize::from(marker & 0x1f)), next),
        0xc0 => (Head::Nil, next),
        0xc1 => (Head::Reserved, next),
        0xc2 => (Head::Bool(false), next),
        0xc3 => (Head::Bool(true), next),
        0xc4 => (Head::Bin(len8(bytes, next)?), next + 1),
        0xc5 => (Head::Bin(len16(bytes, next)?), next + 2),
        0xc6 => (Head::Bin(len32(bytes, next)?), next + 4),
        0xc7 => (Head::Ext(len8(bytes, next)? + 1), next + 1),
        0xc8 => (Head::Ext(len16(bytes, next)? + 1), next + 2),
        0xc9 => (Head::Ext(len32(bytes, next)?.saturating_add(1)), next + 4),
        0xca => (Head::F32(f32::from_be_bytes(fixed(bytes, next)?)), next + 4),
        0xcb => (Head::F64(f64::from_be_bytes(fixed(bytes, next)?)), next + 8),
        0xcc => (Head::Unsigned(u64::from(*bytes.get(next)?)), next + 1),
        0xcd => (Head::Unsigned(u64::from(u16::from_be_bytes(fixed(bytes, next)?))), next + 2),
        0xce => (Head::Unsigned(u64::from(u32::from_be_bytes(fixed(bytes, next)?))), next + 4),
        0xcf => (Head::Unsigned(u64::from_be_bytes(fixed(bytes, next)?)), next + 8),
        0xd0 => (integer(i64::from(i8::from_be_bytes(fixed(bytes, next)?))), next + 1),
        0xd1 => (integer(i64::from(i16::from_be_bytes(fixed(bytes, next)?))), next + 2),
        0xd2 => (integer(i64::from(i32::from_be_bytes(fixed(bytes, next)?))), next + 4),
        0xd3 => (integer(i64::from_be_bytes(fixed(bytes, next)?)), next + 8),
        0xd4..=0xd8 => (Head::Ext((1 << (marker - 0xd4)) + 1), next),
        0xd9 => (Head::Str(len8(bytes, next)?), next + 1),
        0xda => (Head::Str(len16(bytes, next)?), next + 2),
        0xdb => (Head::Str(len32(bytes, next)?), next + 4),
        0xdc => (Head::Array(len16(bytes, next)?), next + 2),
        0xdd => (Head::Array(len32(bytes, next)?), next + 4),
        0xde => (Head::Map(len16(bytes, next)?), next + 2),
        0xdf => (Head::Map(len32(bytes, next)?), next + 4),
        0xe0..=0xff => (Head::Signed(i64::from(marker as i8)), next),
    })
}

/// The position after the value at `at`; `None` when the bytes end before, or have the marker that is never used.
///
/// It counts the values still to pass instead of descending, so nesting costs no stack; each turn passes at least one
/// byte, so it ends.
#[inline]
pub(crate) fn skip(bytes: &[u8], at: usize) -> Option<usize> {
    let plain = PLAIN[usize::from(*bytes.get(at)?)];
    // One short value without others inside is by far the commonest.
    if plain.bytes > 0 && plain.inside == 0 {
        let end = at + usize::from(plain.bytes);
        return (end <= bytes.len()).then_some(end);
    }
    skip_many(bytes, at)
}

/// The bytes of the text at `at`, when it is one, and the position after the value.
#[inline]
pub(crate) fn text_or_skip(bytes: &[u8], at: usize) -> Option<(Option<&[u8]>, usize)> {
    let marker = *bytes.get(at)?;
    let (len, start) = match marker {
        0xa0..=0xbf => (usize::from(marker & 0x1f), at + 1),
        _ => match head(bytes, at)? {
            (Head::Str(len), start) => (len, start),
            _ => return Some((None, skip(bytes, at)?)),
        },
    };
    let text = bytes.get(start..)?.get(..len)?;
    Some((Some(text), start + len))
}

fn skip_many(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut values: usize = 1;
    while values > 0 {
        let plain = PLAIN[usize::from(*bytes.get(at)?)];
        values -= 1;
        if plain.bytes > 0 {
            at += usize::from(plain.bytes);
            values += usize::from(plain.inside);
            continue;
        }
        let (found, next) = head(bytes, at)?;
        let (content, inside) = match found {
            Head::Array(items) => (0, items),
            Head::Map(pairs) => (0, pairs.checked_mul(2)?),
            Head::Str(len) | Head::Bin(len) | Head::Ext(len) => (len, 0),
            _ => return None,
        };
        at = next.checked_add(content)?;
        // Each value has a byte or more, so a count beyond the bytes that are left is a lie; this also keeps the sum
        // from overflowing.
        values = values.checked_add(inside).filter(|values| *values <= bytes.len().saturating_sub(at))?;
    }
    (at <= bytes.len()).then_some(at)
}

/// What a marker alone says of its value: the bytes up to the next one, and how many values are inside. No bytes where
/// more has to be read.
#[derive(Clone, Copy)]
struct Plain {
    bytes: u8,
    inside: u8,
}

static PLAIN: [Plain; 256] = {
    let mut table = [Plain { bytes: 0, inside: 0 }; 256];
    let mut marker = 0;
    while marker < 256 {
        let (bytes, inside) = match marker as u8 {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => (1, 0),
            map @ 0x80..=0x8f => (1, 2 * (map & 0x0f)),
            array @ 0x90..=0x9f => (1, array & 0x0f),
            text @ 0xa0..=0xbf => (1 + (text & 0x1f), 0),
            0xcc | 0xd0 => (2, 0),
            0xcd | 0xd1 | 0xd4 => (3, 0),
            0xd5 => (4, 0),
            0xca | 0xce | 0xd2 => (5, 0),
            0xd6 => (6, 0),
            0xcb | 0xcf | 0xd3 => (9, 0),
            0xd7 => (10, 0),
            0xd8 => (18, 0),
            _ => (0, 0),
        };
        table[marker] = Plain { bytes, inside };
        marker += 1;
    }
    table
};

#[inline]
fn fixed<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[inline]
fn len8(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at).map(|len| usize::from(*len))
}

#[inline]
fn len16(bytes: &[u8], at: usize) -> Option<usize> {
    fixed(bytes, at).map(|len| usize::from(u16::from_be_bytes(len)))
}

#[inline]
fn len32(bytes: &[u8], at: usize) -> Option<usize> {
    fixed(bytes, at).map(|len| u32::from_be_bytes(len) as usize)
}

#[inline]
const fn integer(number: i64) -> Head {
    if number < 0 { Head::Signed(number) } else { Head::Unsigned(number as u64) }
}

/// Reads values one after the other and says what is wrong where.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Read<T> = Result<T, FrameError>;

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The position of the next byte.
    pub(crate) const fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn byte(&mut self) -> Read<u8> {
        let byte = *self.bytes.get(self.at).ok_or_else(|| self.problem(FrameProblem::Truncated))?;
        self.at += 1;
        Ok(byte)
    }

    pub(crate) fn text(&mut self) -> Read<&'a str> {
        let start = self.at;
        match self.head()? {
            Head::Str(len) => self.utf8(len),
            _ => Err(unexpected("a text", start)),
        }
    }

    pub(crate) fn bin(&mut self) -> Read<&'a [u8]> {
        let start = self.at;
        match self.head()? {
            Head::Bin(len) => self.take(len),
            _ => Err(unexpected("bytes", start)),
        }
    }

    pub(crate) fn number(&mut self) -> Read<u64> {
        let start = self.at;
        match self.head()? {
            Head::Unsigned(number) => Ok(number),
            _ => Err(unexpected("a number that is not negative", start)),
        }
    }

    pub(crate) fn truth(&mut self) -> Read<bool> {
        let start = self.at;
        match self.head()? {
            Head::Bool(truth) => Ok(truth),
            _ => Err(unexpected("a truth value", start)),
        }
    }

    pub(crate) fn id(&mut self) -> Read<EventId> {
        let start = self.at;
        let bytes: [u8; 16] = self.fixed_bin("the 16 bytes of an event id")?;
        EventId::from_bytes(bytes).ok_or_else(|| unexpected("the 16 bytes of an event id", start))
    }

    /// Bytes of exactly this number.
    pub(crate) fn fixed_bin<const N: usize>(&mut self, wanted: &'static str) -> Read<[u8; N]> {
        let start = self.at;
        let Head::Bin(len) = self.head()? else { return Err(unexpected(wanted, start)) };
        self.take(len)?.try_into().map_err(|_| unexpected(wanted, start))
    }

    /// The number of pairs of a map; at most half the bytes that are left.
    pub(crate) fn map(&mut self) -> Read<usize> {
        let start = self.at;
        match self.head()? {
            Head::Map(pairs) => self.at_most(pairs, pairs.saturating_mul(2)),
            _ => Err(unexpected("a map", start)),
        }
    }

    /// The number of items of an array; at most the bytes that are left.
    pub(crate) fn array(&mut self, items_max: usize) -> Read<usize> {
        let start = self.at;
        match self.head()? {
            Head::Array(found) if found > items_max => {
                Err(FrameError::new(FrameProblem::OverLimit { found, max: items_max }, start))
            }
            Head::Array(items) => self.at_most(items, items),
            _ => Err(unexpected("an array", start)),
        }
    }

    /// The head of the next value, without moving on.
    pub(crate) fn peek(&self) -> Read<Head> {
        self.clone().head()
    }

    /// The bytes of the next value, whatever it is, checked to the last.
    pub(crate) fn value(&mut self) -> Read<&'a [u8]> {
        let start = self.at;
        self.check(NESTING_MAX)?;
        Ok(&self.bytes[start..self.at])
    }

    /// Refuses bytes that are left over.
    pub(crate) fn end(&self) -> Read<()> {
        match self.left() {
            0 => Ok(()),
            bytes => Err(self.problem(FrameProblem::Trailing { bytes })),
        }
    }

    fn check(&mut self, depth_left: usize) -> Read<()> {
        let start = self.at;
        let values = match self.head()? {
            Head::Str(len) => return self.utf8(len).map(drop),
            Head::Bin(len) | Head::Ext(len) => return self.take(len).map(drop),
            Head::Array(items) => self.at_most(items, items)?,
            Head::Map(pairs) => self.at_most(pairs, pairs.saturating_mul(2))?.saturating_mul(2),
            _ => return Ok(()),
        };
        let Some(depth_left) = depth_left.checked_sub(1) else {
            return Err(FrameError::new(FrameProblem::TooDeep { max: NESTING_MAX }, start));
        };
        for _ in 0..values {
            self.check(depth_left)?;
        }
        Ok(())
    }

    #[inline]
    fn head(&mut self) -> Read<Head> {
        match head(self.bytes, self.at) {
            Some((Head::Reserved, _)) => Err(self.problem(FrameProblem::Reserved)),
            Some((head, next)) => {
                self.at = next;
                Ok(head)
            }
            None => Err(self.problem(FrameProblem::Truncated)),
        }
    }

    fn take(&mut self, len: usize) -> Read<&'a [u8]> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..len));
        let taken = taken.ok_or_else(|| self.problem(FrameProblem::Truncated))?;
        self.at += len;
        Ok(taken)
    }

    fn utf8(&mut self, len: usize) -> Read<&'a str> {
        let start = self.at;
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes)
            .map_err(|error| FrameError::new(FrameProblem::BadText, start + error.valid_up_to()))
    }

    fn at_most(&self, len: usize, values: usize) -> Read<usize> {
        if values > self.left() {
            return Err(self.problem(FrameProblem::Truncated));
        }
        Ok(len)
    }

    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    const fn problem(&self, problem: FrameProblem) -> FrameError {
        FrameError::new(problem, self.at)
    }
}

const fn unexpected(wanted: &'static str, position: usize) -> FrameError {
    FrameError::new(FrameProblem::Unexpected { wanted }, position)
}

/// The bytes of a head, in the shortest form.
#[derive(Clone, Copy)]
pub(crate) struct HeadBytes {
    bytes: [u8; 9],
    len: u8,
}

impl HeadBytes {
    /// A length beyond 32 bits is cut: whoever writes refuses a frame of that size.
    pub(crate) fn of(head: Head) -> Self {
        match head {
            Head::Nil => Self::marker(0xc0),
            Head::Reserved => Self::marker(0xc1),
            Head::Bool(truth) => Self::marker(if truth { 0xc3 } else { 0xc2 }),
            Head::Unsigned(number) => match number {
                0..=0x7f => Self::marker(number as u8),
                0x80..=0xff => Self::with(0xcc, [number as u8]),
                0x100..=0xffff => Self::with(0xcd, (number as u16).to_be_bytes()),
                0x1_0000..=0xffff_ffff => Self::with(0xce, (number as u32).to_be_bytes()),
                _ => Self::with(0xcf, number.to_be_bytes()),
            },
            Head::Signed(number) => match number {
                0.. => Self::of(Head::Unsigned(number as u64)),
                -32..=-1 => Self::marker(number as u8),
                -0x80..=-33 => Self::with(0xd0, (number as i8).to_be_bytes()),
                -0x8000..=-0x81 => Self::with(0xd1, (number as i16).to_be_bytes()),
                -0x8000_0000..=-0x8001 => Self::with(0xd2, (number as i32).to_be_bytes()),
                _ => Self::with(0xd3, number.to_be_bytes()),
            },
            Head::F32(number) => Self::with(0xca, number.to_be_bytes()),
            Head::F64(number) => Self::with(0xcb, number.to_be_bytes()),
            Head::Str(len @ 0..=31) => Self::marker(0xa0 | len as u8),
            Head::Str(len) => Self::sized(Some(0xd9), 0xda, 0xdb, len),
            Head::Bin(len) => Self::sized(Some(0xc4), 0xc5, 0xc6, len),
            // An extension's length counts the byte of its kind, which MessagePack's own length does not.
            Head::Ext(len) => Self::sized(Some(0xc7), 0xc8, 0xc9, len.saturating_sub(1)),
            Head::Array(len @ 0..=15) => Self::marker(0x90 | len as u8),
            Head::Array(len) => Self::sized(None, 0xdc, 0xdd, len),
            Head::Map(len @ 0..=15) => Self::marker(0x80 | len as u8),
            Head::Map(len) => Self::sized(None, 0xde, 0xdf, len),
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    const fn marker(marker: u8) -> Self {
        Self { bytes: [marker, 0, 0, 0, 0, 0, 0, 0, 0], len: 1 }
    }

    fn with<const N: usize>(marker: u8, rest: [u8; N]) -> Self {
        let mut head = Self::marker(marker);
        head.bytes[1..=N].copy_from_slice(&rest);
        head.len = 1 + N as u8;
        head
    }

    fn sized(short: Option<u8>, middle: u8, long: u8, len: usize) -> Self {
        match (short, len) {
            (Some(short), 0..=0xff) => Self::with(short, [len as u8]),
            (_, 0..=0xffff) => Self::with(middle, (len as u16).to_be_bytes()),
            _ => Self::with(long, (len as u32).to_be_bytes()),
        }
    }
}

pub(crate) fn put_head(out: &mut Vec<u8>, head: Head) {
    out.extend_from_slice(HeadBytes::of(head).as_slice());
}

pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_head(out, Head::Str(text.len()));
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn put_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    put_head(out, Head::Bin(bytes.len()));
    out.extend_from_slice(bytes);
}

pub(crate) fn put_number(out: &mut Vec<u8>, number: u64) {
    put_head(out, Head::Unsigned(number));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_head() -> impl Strategy<Value = Head> {
        let len = prop_oneof![0usize..40, 250usize..260, 65_530usize..65_540, Just(u32::MAX as usize)];
        prop_oneof![
            Just(Head::Nil),
            any::<bool>().prop_map(Head::Bool),
            any::<u64>().prop_map(Head::Unsigned),
            (0u32..64, any::<u64>()).prop_map(|(shift, number)| Head::Unsigned(number >> shift)),
            (0u32..63, i64::MIN..0).prop_map(|(shift, number)| Head::Signed(number >> shift)),
            any::<i32>().prop_map(|number| Head::F32(number as f32)),
            any::<i32>().prop_map(|number| Head::F64(f64::from(number))),
            len.clone().prop_map(Head::Str),
            len.clone().prop_map(Head::Bin),
            len.clone().prop_map(|len| Head::Ext(len.max(1))),
            len.clone().prop_map(Head::Array),
            len.prop_map(Head::Map),
        ]
    }

    fn nested(depth: usize) -> Vec<u8> {
        let mut bytes = vec![0x91; depth];
        bytes.push(0xc0);
        bytes
    }

    proptest! {
        #[test]
        fn heads_come_back(wanted in any_head()) {
            let written = HeadBytes::of(wanted);
            prop_assert_eq!(head(written.as_slice(), 0), Some((wanted, written.as_slice().len())));
            let cut = &written.as_slice()[..written.as_slice().len() - 1];
            prop_assert_eq!(head(cut, 0), None);
        }

        #[test]
        fn the_quick_skip_and_the_checked_one_agree(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&bytes);
            match reader.value() {
                Ok(value) => prop_assert_eq!(skip(&bytes, 0), Some(value.len())),
                // The quick one reads no text.
                Err(error) => {
                    let text = matches!(error.problem(), FrameProblem::BadText);
                    prop_assert!(text || skip(&bytes, 0).is_none(), "{}", error);
                }
            }
        }
    }

    #[test]
    fn nesting_ends_at_its_limit() {
        for (depth, fits) in [(NESTING_MAX - 1, true), (NESTING_MAX, true), (NESTING_MAX + 1, false)] {
            let bytes = nested(depth);
            let read = Reader::new(&bytes).value().map(<[u8]>::len);
            if fits {
                assert_eq!(read, Ok(depth + 1));
            } else {
                assert_eq!(
                    read,
                    Err(FrameError::new(FrameProblem::TooDeep { max: NESTING_MAX }, NESTING_MAX))
                );
            }
        }
        assert_eq!(skip(&nested(100_000), 0), Some(100_001));
    }

    #[test]
    fn a_length_that_lies_is_refused_at_once() {
        for bytes in [
            &[0xdd, 0xff, 0xff, 0xff, 0xff, 1][..],
            &[0xdf, 0xff, 0xff, 0xff, 0xff, 1],
            &[0xc6, 0xff, 0xff, 0xff, 0xff, 1],
            &[0xdb, 0xff, 0xff, 0xff, 0xff, 1],
            &[0xc9, 0xff, 0xff, 0xff, 0xff, 1],
        ] {
            assert_eq!(skip(bytes, 0), None);
            assert_eq!(Reader::new(bytes).value().unwrap_err().problem(), &FrameProblem::Truncated);
        }
    }
}
