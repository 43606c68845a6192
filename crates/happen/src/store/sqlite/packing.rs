//! Past revisions made smaller: compressed alone, or by what the next revision has in common with them. Owns the bytes that
//! stand in a row for a packed content; does not know rows, and trusts nothing that it unpacks.
//!
//! A state of ten kilobytes of which a step changes one entry leaves a past revision of ten kilobytes, of which all but a
//! few bytes stand in the next one too. So that one is the dictionary. The next and not the one before: what is forgotten
//! of a past is always the oldest, so no revision is left without what it is read by. Every so many revisions one is
//! compressed alone, which bounds what must be read for one, and what damage to one can take along.

use std::ops::RangeInclusive;

use happen_core::limits::DOCUMENT_BYTES_MAX;
use lz4_flex::block;

use crate::limits;

/// In the column `packing`: compressed alone.
const ALONE: i64 = 1;

/// In the column `packing`: compressed with the content of the next revision as the dictionary.
const WITH_NEXT: i64 = 2;

/// How far back LZ4 can refer, which is how much of a dictionary it can use.
const REACH_BYTES: usize = u16::MAX as usize;

/// Bytes before the compressed ones: the length of the content, the lowest first.
const LENGTH_BYTES: usize = 4;

/// A content as it stands in its row.
pub(super) struct Packed {
    pub(super) packing: i64,
    pub(super) bytes: Vec<u8>,
}

/// Whether a content of this size is worth the work.
pub(super) fn is_worth_it(bytes: u64) -> bool {
    sizes().contains(&usize::try_from(bytes).unwrap_or(usize::MAX))
}

fn sizes() -> RangeInclusive<usize> {
    limits::STORE_PACKED_BYTES_MIN..=DOCUMENT_BYTES_MAX
}

/// Packs the content of this revision; `next` is that of the next one, if it will be kept. `None` when that makes it no
/// smaller.
pub(super) fn pack(revision: u64, content: &[u8], next: Option<&[u8]>) -> Option<Packed> {
    let length = u32::try_from(content.len()).ok()?;
    let is_last_of_chain = revision.is_multiple_of(limits::STORE_PACKED_CHAIN_MAX as u64);
    let next = next.filter(|next| !is_last_of_chain && !next.is_empty() && next.len() <= REACH_BYTES);
    let (packing, compressed) = match next {
        Some(next) => (WITH_NEXT, block::compress_with_dict(content, next)),
        None => (ALONE, block::compress(content)),
    };
    let smaller = LENGTH_BYTES + compressed.len() < content.len();
    smaller.then(|| Packed { packing, bytes: [&length.to_le_bytes()[..], &compressed].concat() })
}

/// Whether a content that is packed so needs that of the next revision.
pub(super) fn needs_next(packing: i64) -> bool {
    packing == WITH_NEXT
}

/// The content; `None` when the bytes are not what [`pack`] made, as far as can be seen. Never takes more memory than the
/// largest document has.
pub(super) fn unpack(packing: i64, bytes: &[u8], next: Option<&[u8]>) -> Option<Vec<u8>> {
    let (length, compressed) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if length > DOCUMENT_BYTES_MAX {
        return None;
    }
    let mut content = vec![0; length];
    let unpacked = match (packing, next) {
        (ALONE, _) => block::decompress_into(compressed, &mut content),
        (WITH_NEXT, Some(next)) => block::decompress_into_with_dict(compressed, &mut content, next),
        _ => return None,
    };
    unpacked.is_ok_and(|unpacked| unpacked == length).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that do not repeat, the same each time.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        let mut bytes = vec![0; len];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    fn back(packed: &Packed, next: Option<&[u8]>) -> Option<Vec<u8>> {
        unpack(packed.packing, &packed.bytes, next)
    }

    #[test]
    fn only_what_is_large_enough_is_packed() {
        let (min, max) = (limits::STORE_PACKED_BYTES_MIN as u64, DOCUMENT_BYTES_MAX as u64);
        assert_eq!([min - 1, min, min + 1].map(is_worth_it), [false, true, true]);
        assert_eq!([max - 1, max, max + 1].map(is_worth_it), [true, true, false]);
    }

    #[test]
    fn a_content_is_packed_by_what_the_next_one_has_in_common_with_it() {
        let content = noise(1, 10_000);
        assert!(pack(1, &content, None).is_none(), "noise alone gets no smaller");
        let mut next = content.clone();
        next[5_000] ^= 1;
        next.extend(noise(2, 100));
        let packed = pack(1, &content, Some(&next)).unwrap();
        assert!(packed.bytes.len() < 100, "{}", packed.bytes.len());
        assert_eq!(back(&packed, Some(&next)).unwrap(), content);
        assert_eq!(back(&packed, None), None);
        // Another one than it was packed with gives something else or nothing, which the checksum of the row tells.
        assert_ne!(back(&packed, Some(&content)).as_deref(), Some(&content[..]));
        let plain = "orders ".repeat(200).into_bytes();
        let packed = pack(1, &plain, None).unwrap();
        assert_eq!((packed.packing, back(&packed, None).unwrap()), (ALONE, plain.clone()));
        // An empty one is no dictionary.
        assert_eq!(pack(1, &plain, Some(&[])).unwrap().packing, ALONE);
    }

    #[test]
    fn one_of_so_many_needs_no_other() {
        let max = limits::STORE_PACKED_CHAIN_MAX as u64;
        let content = "orders ".repeat(200).into_bytes();
        let packing = |revision| pack(revision, &content, Some(&content)).unwrap().packing;
        assert_eq!([max - 1, max, max + 1].map(packing), [WITH_NEXT, ALONE, WITH_NEXT]);
    }

    #[test]
    fn a_dictionary_is_not_longer_than_lz4_can_reach() {
        for (len, packing) in
            [(REACH_BYTES - 1, Some(WITH_NEXT)), (REACH_BYTES, Some(WITH_NEXT)), (REACH_BYTES + 1, None)]
        {
            let content = noise(3, len);
            let packed = pack(1, &content, Some(&content));
            assert_eq!(packed.as_ref().map(|packed| packed.packing), packing, "{len}");
            if let Some(packed) = packed {
                assert!(packed.bytes.len() < len / 100, "{}", packed.bytes.len());
                assert_eq!(back(&packed, Some(&content)).unwrap(), content);
            }
        }
    }

    #[test]
    fn rubbish_is_refused_and_takes_no_memory() {
        let length = |len: usize| (len as u32).to_le_bytes().to_vec();
        assert_eq!(unpack(ALONE, &[], None), None);
        assert_eq!(unpack(ALONE, &[1, 0, 0], None), None);
        // A byte that repeats itself: LZ4 can say very much in few bytes.
        let zeros = |len: usize| [length(len), block::compress(&vec![0; len])].concat();
        for len in [DOCUMENT_BYTES_MAX - 1, DOCUMENT_BYTES_MAX] {
            assert_eq!(unpack(ALONE, &zeros(len), None).map(|content| content.len()), Some(len));
        }
        assert_eq!(unpack(ALONE, &zeros(DOCUMENT_BYTES_MAX + 1), None), None);
        assert_eq!(unpack(ALONE, &[length(usize::MAX), vec![0xff; 100]].concat(), None), None);
        let content = "orders ".repeat(200).into_bytes();
        let packed = pack(1, &content, None).unwrap();
        for packing in [i64::MIN, -1, 0, 3, i64::MAX] {
            assert_eq!(unpack(packing, &packed.bytes, Some(&content)), None);
        }
        for len in 0..packed.bytes.len() {
            assert_eq!(unpack(ALONE, &packed.bytes[..len], None), None, "{len}");
        }
        for seed in 0..2_000 {
            let bytes = [length(2_000), noise(seed, 200)].concat();
            for packing in [ALONE, WITH_NEXT] {
                // Anything but a panic, and never another length.
                assert!(unpack(packing, &bytes, Some(&content)).is_none_or(|content| content.len() == 2_000));
            }
        }
    }
}
