//! The messages that carry entries: who wrote one, as its which one, and whether it is whole. Owns their first bytes and
//! how an entry that is too large for one message is put together again; does not look into entries.

use std::collections::HashMap;

use happen_core::{Error, Result};

use crate::bytes::{Put, Take, unreadable};
use crate::limits;

/// Tells one process that writes from all others, made anew each time it opens the log.
pub(crate) type WriterId = [u8; 16];

/// A message of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message<'b> {
    pub(crate) writer: WriterId,
    /// Which message of its writer it is, from 1. One that does not follow the one before has no effect, so a message may
    /// be sent again, and what was sent behind one that got lost is sent again as well.
    pub(crate) number: u64,
    /// Whether the entry goes on in the next message.
    pub(crate) more: bool,
    pub(crate) body: &'b [u8],
}

impl Message<'_> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.body.len());
        bytes.extend(MAGIC);
        bytes.put_u8(VERSION);
        bytes.put_u8(u8::from(self.more));
        bytes.extend(self.writer);
        bytes.put_u64(self.number);
        let checksum = checksum(&bytes, self.body);
        bytes.extend(checksum);
        bytes.extend(self.body);
        bytes
    }
}

impl<'b> Message<'b> {
    /// # Errors
    ///
    /// - [`ErrorKind::Misuse`](happen_core::ErrorKind::Misuse): a later version wrote it. Whoever goes on without it has
    ///   another state than all others.
    /// - [`ErrorKind::Damaged`](happen_core::ErrorKind::Damaged): it is no message, or not as it was written. Everybody
    ///   sees the same and leaves it out.
    pub(crate) fn decode(bytes: &'b [u8]) -> Result<Self> {
        let mut take = Take::new(bytes);
        if take.array()? != MAGIC {
            return Err(unreadable("it is no message of this log"));
        }
        let version = take.u8()?;
        if version != VERSION {
            return Err(newer(version));
        }
        let (flags, writer, number) = (take.u8()?, take.array()?, take.u64()?);
        let written: [u8; CHECKSUM_BYTES] = take.array()?;
        let body = take.rest();
        let header = bytes.get(..HEADER_BYTES - CHECKSUM_BYTES).unwrap_or_default();
        if written != checksum(header, body) {
            return Err(unreadable("its bytes are not those that were written"));
        }
        Ok(Self { writer, number, more: flags & 1 != 0, body })
    }
}

/// Who has written what so far: every copy of the log has the same.
#[derive(Debug, Default, Clone)]
pub(crate) struct Writers {
    known: HashMap<WriterId, Writer>,
    /// The bytes of all messages since the last one that a copy was due at.
    bytes: u64,
}

#[derive(Debug, Default, Clone)]
struct Writer {
    number: u64,
    at_unix_ms: u64,
    /// The parts so far of an entry that goes on.
    parts: Vec<u8>,
}

/// What a message is to the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// The end of an entry, which is this one.
    Whole(Vec<u8>),
    /// A part of an entry.
    Part,
    /// Something that was there before.
    Again,
    /// Something behind what is missing; it has no effect.
    Early,
}

impl Writers {
    /// Takes a message that the log has at this time.
    ///
    /// # Errors
    ///
    /// When an entry has too many bytes; it has no effect then.
    pub(crate) fn take(&mut self, message: &Message<'_>, at_unix_ms: u64) -> Result<Arrived> {
        let writer = self.known.entry(message.writer).or_default();
        if message.number <= writer.number {
            return Ok(Arrived::Again);
        }
        if message.number != writer.number + 1 {
            return Ok(Arrived::Early);
        }
        writer.number = message.number;
        writer.at_unix_ms = at_unix_ms;
        if writer.parts.len() + message.body.len() > limits::ENTRY_BYTES_MAX {
            writer.parts = Vec::new();
            return Err(unreadable("an entry has too many bytes"));
        }
        if !message.more && writer.parts.is_empty() {
            return Ok(Arrived::Whole(message.body.to_vec()));
        }
        writer.parts.extend(message.body);
        if message.more { Ok(Arrived::Part) } else { Ok(Arrived::Whole(std::mem::take(&mut writer.parts))) }
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Counts the bytes of a message. True when there are so many that a copy is due: at the same messages everywhere.
    pub(crate) fn is_copy_due(&mut self, bytes: usize, copy_after: u64) -> bool {
        self.bytes += bytes as u64;
        let due = self.bytes >= copy_after;
        if due {
            self.bytes = 0;
        }
        due
    }

    /// Forgets who wrote nothing for long. Called at the same messages by everybody.
    pub(crate) fn forget_before(&mut self, unix_ms: u64) {
        self.known.retain(|_, writer| writer.at_unix_ms >= unix_ms);
    }
}

impl Writers {
    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_u64(self.bytes);
        bytes.put_count(self.known.len());
        for (id, writer) in &self.known {
            bytes.extend(id);
            bytes.put_u64(writer.number);
            bytes.put_u64(writer.at_unix_ms);
            bytes.put_bytes(&writer.parts);
        }
    }

    /// # Errors
    ///
    /// When the bytes are none that were put.
    pub(crate) fn taken(take: &mut Take<'_>) -> Result<Self> {
        let bytes = take.u64()?;
        let writers = take.list(|take| {
            let (id, number, at_unix_ms) = (take.array()?, take.u64()?, take.u64()?);
            Ok((id, Writer { number, at_unix_ms, parts: take.bytes()?.to_vec() }))
        })?;
        Ok(Self { known: writers.into_iter().collect(), bytes })
    }
}

fn checksum(header: &[u8], body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header);
    hasher.update(body);
    let mut checksum = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut checksum);
    checksum
}

fn newer(version: u8) -> Error {
    Error::misuse(format!(
        "a later version of Happen writes this log (format {version}, known is {VERSION}); update this program"
    ))
}

/// What every message of a log begins with.
const MAGIC: [u8; 2] = *b"HL";

const VERSION: u8 = 1;

const CHECKSUM_BYTES: usize = 8;

/// The bytes of a message before its part of an entry.
pub(crate) const HEADER_BYTES: usize = MAGIC.len() + 2 + size_of::<WriterId>() + 8 + CHECKSUM_BYTES;

#[cfg(test)]
mod tests {
    use happen_core::ErrorKind;

    use super::*;

    const ADA: WriterId = [1; 16];
    const BOB: WriterId = [2; 16];

    fn message(writer: WriterId, number: u64, more: bool, body: &[u8]) -> Message<'_> {
        Message { writer, number, more, body }
    }

    #[test]
    fn a_message_is_read_as_it_was_written_and_not_at_all_when_it_was_changed() {
        for more in [false, true] {
            let written = message(ADA, 7, more, b"entry");
            let bytes = written.encode();
            assert_eq!(bytes.len(), HEADER_BYTES + 5);
            assert_eq!(Message::decode(&bytes).unwrap(), written);
            for length in 0..bytes.len() {
                assert!(Message::decode(&bytes[..length]).is_err());
            }
            for index in 0..bytes.len() {
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[index] ^= 1 << bit;
                    assert!(Message::decode(&changed).is_err(), "bit {bit} of byte {index}");
                }
            }
        }
    }

    #[test]
    fn a_later_version_is_told_from_rubbish() {
        let mut bytes = message(ADA, 1, false, b"").encode();
        bytes[2] = VERSION + 1;
        assert!(matches!(Message::decode(&bytes).unwrap_err().kind(), ErrorKind::Misuse { .. }));
        assert!(matches!(Message::decode(b"hello there").unwrap_err().kind(), ErrorKind::Damaged { .. }));
    }

    #[test]
    fn each_message_of_a_writer_counts_once_and_in_order() {
        let mut writers = Writers::default();
        let mut take = |writer, number, more, body: &[u8]| {
            writers.take(&message(writer, number, more, body), 0).unwrap()
        };
        assert_eq!(take(ADA, 2, false, b"b"), Arrived::Early);
        assert_eq!(take(ADA, 1, false, b"a"), Arrived::Whole(b"a".to_vec()));
        assert_eq!(take(BOB, 1, true, b"x"), Arrived::Part);
        assert_eq!(take(ADA, 2, false, b"b"), Arrived::Whole(b"b".to_vec()));
        assert_eq!(take(ADA, 2, false, b"b"), Arrived::Again);
        assert_eq!(take(BOB, 3, false, b"z"), Arrived::Early);
        assert_eq!(take(BOB, 2, false, b"y"), Arrived::Whole(b"xy".to_vec()));
        assert_eq!(take(BOB, 3, false, b"z"), Arrived::Whole(b"z".to_vec()));
    }

    #[test]
    fn an_entry_has_an_end() {
        let mut writers = Writers::default();
        let part = vec![0; limits::ENTRY_BYTES_MAX / 2];
        assert_eq!(writers.take(&message(ADA, 1, true, &part), 0).unwrap(), Arrived::Part);
        assert_eq!(writers.take(&message(ADA, 2, true, &part), 0).unwrap(), Arrived::Part);
        assert!(writers.take(&message(ADA, 3, false, b"!"), 0).is_err());
        // What comes behind it is taken again.
        assert_eq!(writers.take(&message(ADA, 4, false, b"a"), 0).unwrap(), Arrived::Whole(b"a".to_vec()));
        let whole = [&part[..], &part[..]].concat();
        assert_eq!(writers.take(&message(BOB, 1, false, &whole), 0).unwrap(), Arrived::Whole(whole.clone()));
    }

    #[test]
    fn writers_are_kept_with_a_copy_and_forgotten_in_time() {
        let mut writers = Writers::default();
        writers.take(&message(ADA, 1, false, b""), 10).unwrap();
        writers.take(&message(BOB, 1, true, b"x"), 20).unwrap();
        let mut bytes = Vec::new();
        writers.put(&mut bytes);
        let mut writers = Writers::taken(&mut Take::new(&bytes)).unwrap();
        writers.forget_before(20);
        assert_eq!(writers.take(&message(BOB, 2, false, b"y"), 30).unwrap(), Arrived::Whole(b"xy".to_vec()));
        assert_eq!(writers.take(&message(ADA, 2, false, b""), 30).unwrap(), Arrived::Early);
        assert_eq!(writers.take(&message(BOB, 2, false, b"y"), 30).unwrap(), Arrived::Again);
    }
}
