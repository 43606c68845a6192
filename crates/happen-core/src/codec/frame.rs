//! What all frames share: the version byte, the fields a map may have, and what can be wrong with bytes. Does not know
//! which fields an event or a reply has.

use std::fmt;

use crate::codec::msgpack::{Head, HeadBytes, Reader, put_bin, put_head, put_number, put_text};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::UNKNOWN_FIELDS_MAX;

/// The version of the format that this crate writes, and the only one it reads.
pub const FORMAT_VERSION: u8 = 1;

/// What is wrong with the bytes of a frame, in which field, and at which byte.
///
/// It is the source of the errors of kind [`ErrorKind::Undecodable`] that decoding gives.
///
/// # Examples
///
/// ```
/// use happen_core::codec::{FrameError, FrameProblem, WireEvent};
/// use happen_core::limits::EVENT_BYTES_MAX;
///
/// let error = WireEvent::decode(&[2, 0x80], EVENT_BYTES_MAX).unwrap_err();
/// assert_eq!(error.code(), "undecodable");
/// let cause = error.find_cause::<FrameError>().unwrap();
/// assert_eq!(cause.problem(), &FrameProblem::Version { found: 2, known: 1 });
/// assert_eq!(cause.to_string(), "version 2 of the format is not known here, only version 1, at byte 0");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameError {
    problem: FrameProblem,
    field: Option<&'static str>,
    position: usize,
}

/// What can be wrong with the bytes of a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameProblem {
    /// The bytes end before what they announce.
    #[error("cut off")]
    Truncated,
    /// The first byte names another version of the format.
    #[error("version {found} of the format is not known here, only version {known},")]
    Version {
        /// The version of the bytes.
        found: u8,
        /// The version this crate reads.
        known: u8,
    },
    /// Something follows after the end.
    #[error("bytes left over, {bytes} of them,")]
    Trailing {
        /// How many bytes.
        bytes: usize,
    },
    /// A field that every such frame has is not there.
    #[error("missing")]
    Missing,
    /// A field is there twice.
    #[error("there twice")]
    Duplicate,
    /// Something else than the format has in this place.
    #[error("not {wanted}")]
    Unexpected {
        /// What the format has there.
        wanted: &'static str,
    },
    /// A text that is not UTF-8.
    #[error("text that is not UTF-8")]
    BadText,
    /// The marker byte 0xc1, which MessagePack never uses.
    #[error("a marker that MessagePack does not use")]
    Reserved,
    /// A frame whose sum is another than the one in front of it.
    #[error("bytes that were changed on their way: they do not fit their sum")]
    Changed,
    /// More arrays and maps inside one another than the limit.
    #[error("nested deeper than {max}")]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// A list with more items than the limit, or metadata with more bytes.
    #[error("{found} where the limit is {max},")]
    OverLimit {
        /// How many there are, or are said to be.
        found: usize,
        /// The limit.
        max: usize,
    },
}

impl FrameError {
    pub(crate) const fn new(problem: FrameProblem, position: usize) -> Self {
        Self { problem, field: None, position }
    }

    /// What is wrong.
    #[must_use]
    pub const fn problem(&self) -> &FrameProblem {
        &self.problem
    }

    /// The field of the frame in which it is wrong, when it is in one that is known.
    #[must_use]
    pub const fn field(&self) -> Option<&'static str> {
        self.field
    }

    /// Where it is wrong, in bytes from the start.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn in_field(mut self, field: &'static str) -> Self {
        self.field.get_or_insert(field);
        self
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = self.field {
            write!(f, "field `{field}`: ")?;
        }
        write!(f, "{} at byte {}", self.problem, self.position)
    }
}

impl std::error::Error for FrameError {}

/// The names of the fields of one kind of frame, at most 32, as an enum with a bit for each.
macro_rules! fields {
    ($($variant:ident = $name:literal),+ $(,)?) => {
        #[derive(Clone, Copy)]
        enum Field {
            $($variant),+
        }

        impl Field {
            fn of(name: &str) -> Option<Self> {
                Some(match name {
                    $($name => Self::$variant,)+
                    _ => return None,
                })
            }

            const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }

            const fn bit(self) -> u32 {
                1 << self as u32
            }
        }
    };
}
pub(crate) use fields;

/// A field that a later version of the format has. It is kept as it came and written back, so that a frame can pass
/// through an older program unharmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownField<'a> {
    pub(crate) key: &'a str,
    pub(crate) value: &'a [u8],
}

impl<'a> UnknownField<'a> {
    /// The name. One that starts with `_` belongs to the way and is not covered by the event's hash.
    #[must_use]
    pub const fn key(&self) -> &'a str {
        self.key
    }

    /// The value in MessagePack.
    #[must_use]
    pub const fn value(&self) -> &'a [u8] {
        self.value
    }
}

/// Reads an unknown field's value and keeps it.
pub(crate) fn keep_unknown<'a>(
    reader: &mut Reader<'a>,
    key: &'a str,
    key_at: usize,
    unknown: &mut Vec<UnknownField<'a>>,
) -> std::result::Result<(), FrameError> {
    if unknown.iter().any(|field| field.key == key) {
        return Err(FrameError::new(FrameProblem::Duplicate, key_at));
    }
    if unknown.len() == UNKNOWN_FIELDS_MAX {
        let problem = FrameProblem::OverLimit { found: UNKNOWN_FIELDS_MAX + 1, max: UNKNOWN_FIELDS_MAX };
        return Err(FrameError::new(problem, key_at));
    }
    let value = reader.value()?;
    unknown.push(UnknownField { key, value });
    Ok(())
}

/// Reads a list item by item. Room is made as items come, never for as many as are announced.
pub(crate) fn read_list<'a, T>(
    reader: &mut Reader<'a>,
    items_max: usize,
    mut item: impl FnMut(&mut Reader<'a>) -> std::result::Result<T, FrameError>,
) -> std::result::Result<Vec<T>, FrameError> {
    let items = reader.array(items_max)?;
    let mut list = Vec::with_capacity(items.min(8));
    for _ in 0..items {
        list.push(item(reader)?);
    }
    Ok(list)
}

/// Writes the fields of a frame, whose number is known at the end.
pub(crate) struct FieldWriter<'o> {
    out: &'o mut Vec<u8>,
    head_at: usize,
    pairs: usize,
}

impl<'o> FieldWriter<'o> {
    /// Starts a frame: the version and room for a short head.
    pub(crate) fn new(out: &'o mut Vec<u8>) -> Self {
        out.push(FORMAT_VERSION);
        let head_at = out.len();
        out.push(0);
        Self { out, head_at, pairs: 0 }
    }

    /// Writes a field's name; its value comes next.
    pub(crate) fn field(&mut self, name: &str) -> &mut Vec<u8> {
        self.pairs += 1;
        put_text(self.out, name);
        self.out
    }

    pub(crate) fn text(&mut self, name: &str, text: &str) {
        put_text(self.field(name), text);
    }

    pub(crate) fn texts<'t>(&mut self, name: &str, texts: impl ExactSizeIterator<Item = &'t str>) {
        let out = self.field(name);
        put_head(out, Head::Array(texts.len()));
        texts.for_each(|text| put_text(out, text));
    }

    pub(crate) fn number(&mut self, name: &str, number: u64) {
        put_number(self.field(name), number);
    }

    pub(crate) fn unknown(&mut self, unknown: &[UnknownField<'_>]) {
        for UnknownField { key, value } in unknown {
            self.field(key).extend_from_slice(value);
        }
    }

    /// Ends the fields and appends the payload.
    pub(crate) fn finish(self, payload: &[u8]) {
        let head = HeadBytes::of(Head::Map(self.pairs));
        // More than 15 fields need a longer head; few frames have them, so only those pay for moving the bytes.
        self.out.splice(self.head_at..=self.head_at, head.as_slice().iter().copied());
        put_bin(self.out, payload);
    }
}

/// Reads the first byte.
pub(crate) fn read_version(reader: &mut Reader<'_>) -> std::result::Result<(), FrameError> {
    match reader.byte()? {
        FORMAT_VERSION => Ok(()),
        found => Err(FrameError::new(FrameProblem::Version { found, known: FORMAT_VERSION }, 0)),
    }
}

/// Refuses a frame that is larger than the limit.
pub(crate) fn within(bytes: usize, bytes_max: usize) -> Result<()> {
    // The lengths of MessagePack have 32 bits.
    let bytes_max = bytes_max.min(u32::MAX as usize);
    if bytes > bytes_max {
        return Err(Error::new(ErrorKind::Oversized { bytes, bytes_max }));
    }
    Ok(())
}

#[cold]
pub(crate) fn undecodable(wanted: &str, source: FrameError) -> Error {
    Error::new(ErrorKind::Undecodable { wanted: wanted.to_owned() }).with_source(source)
}
