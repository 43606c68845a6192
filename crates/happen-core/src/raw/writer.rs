//! Writing MessagePack into memory that is there already. Owns the bookkeeping of what was announced; does not know
//! payload types.

use crate::codec::msgpack::{Head, HeadBytes};
use crate::raw::RawPayload;

/// Writes one MessagePack value into a buffer without allocating.
///
/// Maps and arrays announce their number of fields or items, and the values follow: in a map each after its
/// [`field`](Self::field). The first thing that goes wrong is kept, nothing is written after it, and
/// [`finish`](Self::finish) tells it: nothing is dropped silently.
///
/// # Examples
///
/// ```
/// use happen_core::raw::{RawPayload, RawWriter, WriteError};
///
/// let mut buffer = [0; 64];
/// let mut writer = RawWriter::new(&mut buffer);
/// writer.map(2).field("celsius").f64(21.5).field("at").array(2).u64(1).u64(2);
/// let raw = RawPayload::new(writer.finish()?);
/// assert_eq!(raw.u64("at.1"), Some(2));
///
/// let mut small = [0; 4];
/// let mut writer = RawWriter::new(&mut small);
/// writer.str("four?");
/// assert_eq!(writer.finish(), Err(WriteError::Full { bytes_max: 4 }));
/// # Ok::<(), WriteError>(())
/// ```
#[derive(Debug)]
pub struct RawWriter<'b> {
    room: Room<'b>,
    /// The values that are still to come, keys of maps included.
    missing: usize,
    failed: Option<WriteError>,
}

/// Why a value could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The buffer is full; take a larger one.
    #[error("the value needs more than the {bytes_max} bytes of its buffer")]
    Full {
        /// The bytes there were.
        bytes_max: usize,
    },
    /// A value came after the last one that was announced.
    #[error("more values were written than announced")]
    TooMany,
    /// Fewer values came than announced.
    #[error("{missing} values were announced and not written, names of fields included")]
    Incomplete {
        /// How many.
        missing: usize,
    },
}

#[derive(Debug)]
enum Room<'b> {
    Slice { buffer: &'b mut [u8], len: usize },
    Spare { buffer: &'b mut Vec<u8>, start: usize },
}

impl<'b> RawWriter<'b> {
    /// A writer into these bytes, from the first on.
    #[must_use]
    pub const fn new(buffer: &'b mut [u8]) -> Self {
        Self::with(Room::Slice { buffer, len: 0 })
    }

    /// A writer that appends within the capacity the vector has; it does not grow it. What was written stays when the
    /// value is not finished.
    #[must_use]
    pub const fn append(buffer: &'b mut Vec<u8>) -> Self {
        let start = buffer.len();
        Self::with(Room::Spare { buffer, start })
    }

    const fn with(room: Room<'b>) -> Self {
        Self { room, missing: 1, failed: None }
    }

    /// Announces a map of this many fields.
    pub fn map(&mut self, fields: usize) -> &mut Self {
        self.value(Head::Map(fields), &[], fields.saturating_mul(2))
    }

    /// Announces an array of this many items.
    pub fn array(&mut self, items: usize) -> &mut Self {
        self.value(Head::Array(items), &[], items)
    }

    /// Writes a field's name; its value comes next.
    pub fn field(&mut self, name: &str) -> &mut Self {
        self.str(name)
    }

    /// Writes an integer.
    pub fn u64(&mut self, number: u64) -> &mut Self {
        self.value(Head::Unsigned(number), &[], 0)
    }

    /// Writes an integer.
    pub fn i64(&mut self, number: i64) -> &mut Self {
        self.value(Head::Signed(number), &[], 0)
    }

    /// Writes a number.
    pub fn f64(&mut self, number: f64) -> &mut Self {
        self.value(Head::F64(number), &[], 0)
    }

    /// Writes a truth value.
    pub fn bool(&mut self, truth: bool) -> &mut Self {
        self.value(Head::Bool(truth), &[], 0)
    }

    /// Writes nil.
    pub fn nil(&mut self) -> &mut Self {
        self.value(Head::Nil, &[], 0)
    }

    /// Writes a text.
    pub fn str(&mut self, text: &str) -> &mut Self {
        self.value(Head::Str(text.len()), text.as_bytes(), 0)
    }

    /// Writes bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.value(Head::Bin(bytes.len()), bytes, 0)
    }

    /// Copies a value that is encoded already.
    pub fn raw(&mut self, value: RawPayload<'_>) -> &mut Self {
        self.count(0);
        self.put(value.as_bytes());
        self
    }

    /// The bytes of the value.
    ///
    /// # Errors
    ///
    /// [`WriteError`], the first thing that went wrong.
    pub fn finish(self) -> Result<&'b [u8], WriteError> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        if self.missing > 0 {
            return Err(WriteError::Incomplete { missing: self.missing });
        }
        Ok(match self.room {
            Room::Slice { buffer, len } => &buffer[..len],
            Room::Spare { buffer, start } => &buffer[start..],
        })
    }

    fn value(&mut self, head: Head, content: &[u8], inside: usize) -> &mut Self {
        self.count(inside);
        // What has no length in 32 bits cannot be written, however large the buffer.
        let len_max = u32::MAX as usize;
        if content.len() > len_max || inside / 2 > len_max {
            self.fail(WriteError::Full { bytes_max: self.room.bytes_max() });
        }
        self.put(HeadBytes::of(head).as_slice());
        self.put(content);
        self
    }

    fn count(&mut self, inside: usize) {
        match self.missing.checked_sub(1) {
            Some(missing) => self.missing = missing.saturating_add(inside),
            None => self.fail(WriteError::TooMany),
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.failed.is_none() && !self.room.put(bytes) {
            self.fail(WriteError::Full { bytes_max: self.room.bytes_max() });
        }
    }

    fn fail(&mut self, error: WriteError) {
        self.failed.get_or_insert(error);
    }
}

impl Room<'_> {
    fn put(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Slice { buffer, len } => {
                let Some(room) = buffer.get_mut(*len..).and_then(|rest| rest.get_mut(..bytes.len())) else {
                    return false;
                };
                room.copy_from_slice(bytes);
                *len += bytes.len();
            }
            Self::Spare { buffer, .. } => {
                if bytes.len() > buffer.capacity() - buffer.len() {
                    return false;
                }
                buffer.extend_from_slice(bytes);
            }
        }
        true
    }

    const fn bytes_max(&self) -> usize {
        match self {
            Self::Slice { buffer, .. } => buffer.len(),
            Self::Spare { buffer, start } => buffer.capacity() - *start,
        }
    }
}
