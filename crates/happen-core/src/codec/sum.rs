//! The sum in front of a frame that nobody signs: how whoever reads it knows that it is as it left. Owns the sum; does not
//! know what is in the frame.
//!
//! A sum finds what was changed by chance. Whoever changes a frame on purpose makes the sum anew: seals are for that.

use crate::codec::frame::{FORMAT_VERSION, FrameError, FrameProblem, undecodable};
use crate::error::Result;

/// What stands in front of the frame: the version, the head of a number of 32 bits, and the sum, its highest byte first.
pub const SUM_BYTES: usize = 6;

/// The head of a number of 32 bits in MessagePack. An event has a map in its place, a batch an array, a seal plain bytes.
const SUM_HEAD: u8 = 0xce;

/// Appends a frame that `write` appends, with its sum in front; nothing is appended when it fails.
///
/// # Errors
///
/// That of `write`.
///
/// # Examples
///
/// ```
/// use happen_core::codec::{encode_summed, open_summed};
///
/// let mut bytes = Vec::new();
/// encode_summed(&mut bytes, |out| Ok(out.extend_from_slice(b"a frame")))?;
/// assert_eq!(open_summed(&bytes)?, Some(&b"a frame"[..]));
///
/// *bytes.last_mut().unwrap() ^= 1;
/// assert_eq!(open_summed(&bytes).unwrap_err().code(), "undecodable");
/// # Ok::<(), happen_core::Error>(())
/// ```
pub fn encode_summed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
    let start = out.len();
    out.extend_from_slice(&[FORMAT_VERSION, SUM_HEAD, 0, 0, 0, 0]);
    write(out).inspect_err(|_| out.truncate(start))?;
    let sum = crc32fast::hash(&out[start + SUM_BYTES..]);
    out[start + SUM_BYTES - 4..start + SUM_BYTES].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// The frame behind a sum; `None` when there is no sum in front.
///
/// # Errors
///
/// [`ErrorKind::Undecodable`](crate::ErrorKind::Undecodable) when there is one that does not fit.
pub fn open_summed(bytes: &[u8]) -> Result<Option<&[u8]>> {
    let Some(([FORMAT_VERSION, SUM_HEAD, sum @ ..], frame)) = bytes.split_first_chunk::<SUM_BYTES>() else {
        return Ok(None);
    };
    if u32::from_be_bytes(*sum) == crc32fast::hash(frame) {
        return Ok(Some(frame));
    }
    Err(undecodable("frame", FrameError::new(FrameProblem::Changed, SUM_BYTES - 4)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::{Error, ErrorKind};

    fn summed(frame: &[u8]) -> Vec<u8> {
        let mut bytes = b"before".to_vec();
        encode_summed(&mut bytes, |out| {
            out.extend_from_slice(frame);
            Ok(())
        })
        .unwrap();
        bytes.split_off(b"before".len())
    }

    #[test]
    fn the_sum_is_the_one_that_other_languages_have() {
        // The check value of CRC-32 in every catalogue.
        assert_eq!(summed(b"123456789"), [&[1, 0xce, 0xcb, 0xf4, 0x39, 0x26][..], b"123456789"].concat());
        assert_eq!(summed(b""), [1, 0xce, 0, 0, 0, 0]);
    }

    #[test]
    fn what_has_no_sum_is_left_alone() {
        for bytes in
            [&b""[..], &[1], &[1, 0xce], &[1, 0xce, 0, 0, 0], &[1, 0x80, 0, 0, 0, 0], &[2, 0xce, 0, 0, 0, 0]]
        {
            assert_eq!(open_summed(bytes).unwrap(), None, "{bytes:?}");
        }
    }

    #[test]
    fn nothing_is_left_of_a_frame_that_cannot_be_written() {
        let mut bytes = vec![7];
        let refused = encode_summed(&mut bytes, |out| {
            out.push(8);
            Err(Error::new(ErrorKind::Oversized { bytes: 2, bytes_max: 1 }))
        });
        assert_eq!((refused.unwrap_err().code(), bytes), ("oversized", vec![7]));
    }

    proptest! {
        #[test]
        fn frames_come_back_and_changed_ones_do_not(frame: Vec<u8>, bit: usize) {
            let bytes = summed(&frame);
            prop_assert_eq!(open_summed(&bytes).unwrap(), Some(&frame[..]));
            let mut changed = bytes.clone();
            let bit = bit % (bytes.len() * 8);
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches!(open_summed(&changed), Ok(Some(_))));
            prop_assert!(!matches!(open_summed(&bytes[..bytes.len() - 1]), Ok(Some(_))));
        }
    }
}
