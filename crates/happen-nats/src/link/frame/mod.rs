//! The bytes of what members send each other: envelopes with frames, as docs/format.md has them. Owns writing and reading;
//! does not know what the frames of events mean, nor who sends them.

use happen_core::{Error, ErrorKind};

use crate::limits;

/// The version of this form.
pub(super) const VERSION: u8 = 1;

/// What a message is, in its second byte.
pub(super) mod kind {
    pub(in crate::link) const EVENTS: u8 = 1;
    pub(in crate::link) const REPLIES: u8 = 2;
    pub(in crate::link) const ANNOUNCE: u8 = 16;
    pub(in crate::link) const CHANGE: u8 = 17;
    pub(in crate::link) const BEAT: u8 = 18;
    pub(in crate::link) const LEAVE: u8 = 19;
    pub(in crate::link) const ASK: u8 = 20;
    pub(in crate::link) const HELLO: u8 = 21;
    pub(in crate::link) const CLAIM: u8 = 22;
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable(pub(super) &'static str);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Unreadable {}

impl Unreadable {
    /// As the runtime is told.
    pub(super) fn error(self) -> Error {
        Error::new(ErrorKind::Undecodable { wanted: "message between members".to_owned() }).with_source(self)
    }
}

/// What is in front of the frames, and of everything members tell each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header<'a> {
    pub(super) kind: u8,
    /// The run of the member that sends: another after each start.
    pub(super) instance: u64,
    /// Of an envelope its number, from 1 on for each receiver; of presence its revision.
    pub(super) number: u64,
    pub(super) name: &'a str,
}

impl<'a> Header<'a> {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend([VERSION, self.kind]);
        out.extend(self.instance.to_le_bytes());
        out.extend(self.number.to_le_bytes());
        // Names have at most 128 bytes.
        out.push(self.name.len() as u8);
        out.extend(self.name.as_bytes());
    }

    /// Puts another number into a header that was written.
    pub(super) fn set_number(message: &mut [u8], number: u64) {
        if let Some(at) = message.get_mut(10..18) {
            at.copy_from_slice(&number.to_le_bytes());
        }
    }

    pub(super) fn read(input: &mut Input<'a>) -> Result<Self, Unreadable> {
        if input.u8()? != VERSION {
            return Err(Unreadable("a version that is not known"));
        }
        let (kind, instance, number) = (input.u8()?, input.u64()?, input.u64()?);
        let length = usize::from(input.u8()?);
        if length == 0 || length > limits::NAME_BYTES_MAX {
            return Err(Unreadable("a name that is none"));
        }
        let name = input.utf8(length)?;
        Ok(Self { kind, instance, number, name })
    }
}

/// One frame of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// For a node; nothing comes back.
    Post { to: &'a str, bytes: &'a [u8] },
    /// For a node; replies come back under this number, as many ahead as these units.
    Request { number: u64, credit: u32, to: &'a str, bytes: &'a [u8] },
    /// For everyone who listens.
    Publish { bytes: &'a [u8] },
    /// Nobody waits for the replies to this request any more.
    Cancel { number: u64 },
    /// Asks how far what was sent has been handed over.
    Sync,
    /// The connection of this member was lost: it waits for nothing that it asked before.
    Returned,
    /// A reply; more follow.
    Reply { number: u64, bytes: &'a [u8] },
    /// The last reply.
    Last { number: u64, bytes: &'a [u8] },
    /// There are no more replies.
    End { number: u64 },
    /// A reply was too large to be sent, and none follows.
    Oversized { number: u64, bytes: u64, bytes_max: u64 },
    /// The replies ended without an end.
    Broken { number: u64 },
    /// The reader takes so many units more.
    Credit { number: u64, units: u32 },
    /// All envelopes up to this number have been handed over.
    Handed { number: u64 },
    /// The member leaves; nothing follows.
    Leave,
}

/// What a reply of this length takes of the credit.
pub(super) fn units(bytes: usize) -> u32 {
    1 + u32::try_from(bytes / limits::CREDIT_UNIT_BYTES).unwrap_or(u32::MAX - 1)
}

/// The most bytes of a frame beside the bytes and the node's id it carries.
const FRAME_OVERHEAD_MAX: usize = 32;

/// The most bytes of an envelope's header.
pub(super) const HEADER_BYTES_MAX: usize = 19 + limits::NAME_BYTES_MAX;

impl<'a> Frame<'a> {
    /// The most bytes it takes in an envelope.
    pub(super) fn bytes_max(&self) -> usize {
        let carried = match *self {
            Self::Post { to, bytes } | Self::Request { to, bytes, .. } => to.len() + bytes.len(),
            Self::Publish { bytes } | Self::Reply { bytes, .. } | Self::Last { bytes, .. } => bytes.len(),
            _ => 0,
        };
        carried + FRAME_OVERHEAD_MAX
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let numbered = |out: &mut Vec<u8>, tag: u8, number: u64| {
            out.push(tag);
            out.extend(number.to_le_bytes());
        };
        match *self {
            Self::Post { to, bytes } => {
                out.push(1);
                carry(out, to.as_bytes());
                carry(out, bytes);
            }
            Self::Request { number, credit, to, bytes } => {
                numbered(out, 2, number);
                out.extend(credit.to_le_bytes());
                carry(out, to.as_bytes());
                carry(out, bytes);
            }
            Self::Publish { bytes } => {
                out.push(3);
                carry(out, bytes);
            }
            Self::Cancel { number } => numbered(out, 4, number),
            Self::Sync => out.push(5),
            Self::Returned => out.push(6),
            Self::Reply { number, bytes } => {
                numbered(out, 17, number);
                carry(out, bytes);
            }
            Self::Last { number, bytes } => {
                numbered(out, 18, number);
                carry(out, bytes);
            }
            Self::End { number } => numbered(out, 19, number),
            Self::Oversized { number, bytes, bytes_max } => {
                numbered(out, 20, number);
                out.extend(bytes.to_le_bytes());
                out.extend(bytes_max.to_le_bytes());
            }
            Self::Broken { number } => numbered(out, 21, number),
            Self::Credit { number, units } => {
                numbered(out, 22, number);
                out.extend(units.to_le_bytes());
            }
            Self::Handed { number } => numbered(out, 23, number),
            Self::Leave => out.push(24),
        }
    }

    fn read(input: &mut Input<'a>) -> Result<Self, Unreadable> {
        Ok(match input.u8()? {
            1 => Self::Post { to: input.text()?, bytes: input.carried()? },
            2 => Self::Request {
                number: input.u64()?,
                credit: input.u32()?,
                to: input.text()?,
                bytes: input.carried()?,
            },
            3 => Self::Publish { bytes: input.carried()? },
            4 => Self::Cancel { number: input.u64()? },
            5 => Self::Sync,
            6 => Self::Returned,
            17 => Self::Reply { number: input.u64()?, bytes: input.carried()? },
            18 => Self::Last { number: input.u64()?, bytes: input.carried()? },
            19 => Self::End { number: input.u64()? },
            20 => Self::Oversized { number: input.u64()?, bytes: input.u64()?, bytes_max: input.u64()? },
            21 => Self::Broken { number: input.u64()? },
            22 => Self::Credit { number: input.u64()?, units: input.u32()? },
            23 => Self::Handed { number: input.u64()? },
            24 => Self::Leave,
            _ => return Err(Unreadable("a frame of a kind that is not known")),
        })
    }
}

/// The frames of an envelope, all of which are readable.
#[derive(Debug, Clone)]
pub(super) struct Frames<'a>(Input<'a>);

impl<'a> Frames<'a> {
    /// Reads them once without keeping them: an envelope is taken whole or not at all, and nothing is allocated by
    /// lengths that a stranger wrote.
    pub(super) fn read(input: Input<'a>) -> Result<Self, Unreadable> {
        let mut looked = input.clone();
        while !looked.is_empty() {
            Frame::read(&mut looked)?;
        }
        Ok(Self(input))
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        if self.0.is_empty() { None } else { Frame::read(&mut self.0).ok() }
    }
}

/// Bytes that are read from their beginning.
#[derive(Debug, Clone)]
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Unreadable("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Unreadable("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Unreadable> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Unreadable> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Unreadable> {
        self.array().map(u64::from_le_bytes)
    }

    fn utf8(&mut self, length: usize) -> Result<&'a str, Unreadable> {
        std::str::from_utf8(self.take(length)?).map_err(|_| Unreadable("a text that is no UTF-8"))
    }

    /// Bytes behind their length.
    pub(super) fn carried(&mut self) -> Result<&'a [u8], Unreadable> {
        let length = self.u32()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// A text behind its length.
    pub(super) fn text(&mut self) -> Result<&'a str, Unreadable> {
        std::str::from_utf8(self.carried()?).map_err(|_| Unreadable("a text that is no UTF-8"))
    }
}

/// Writes bytes behind their length. What is longer than a length can say never comes here: no message is as large.
pub(super) fn carry(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

#[cfg(test)]
mod tests;
