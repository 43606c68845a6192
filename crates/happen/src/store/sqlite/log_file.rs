//! The write-ahead log of SQLite, read before SQLite reads it. Owns one question: was something lost in the middle of
//! it? Does not know the tables.
//!
//! After a crash SQLite takes the log up to the first frame whose checksum does not fit, as the end of what was being
//! written. That is right for the transaction that a crash interrupted, and it would be silent loss for damage in the
//! middle: commits behind it were synced, and somebody was told so. Only the last transaction can be unfinished, and
//! only its last frame ends a commit; so a second commit behind the first bad frame, or frames behind a commit there,
//! means damage.
//!
//! Source: the section "The Write-Ahead Log" of <https://www.sqlite.org/fileformat2.html>.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use happen_core::Result;

use super::fault;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;

/// # Errors
///
/// When commits that were synced can no longer be read.
pub(super) fn check(log: &Path) -> Result<()> {
    let file = match File::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fault::file("open", log, error)),
    };
    let read = scan(&mut BufReader::with_capacity(1 << 20, file));
    match read.map_err(|error| fault::file("read", log, error))? {
        Found::Whole => Ok(()),
        Found::Lost { at_bytes, commits } => Err(fault::damaged(format!(
            "the write-ahead log {} at byte {at_bytes}: {commits} or more commits behind it are lost, and all before \
             them is readable; keep a copy of the folder, then restore a backup, or cut the log off at that byte to \
             go on without them",
            log.display()
        ))),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Whole,
    Lost { at_bytes: u64, commits: u64 },
}

fn scan(log: &mut impl Read) -> std::io::Result<Found> {
    let mut header = [0; HEADER_BYTES];
    if !fill(log, &mut header)? {
        return Ok(Found::Whole);
    }
    let big_endian = match word(&header, 0) {
        0x377f_0682 => false,
        0x377f_0683 => true,
        // Not yet written, or what SQLite will not read either.
        _ => return Ok(Found::Whole),
    };
    let page_bytes = word(&header, 8) as usize;
    if !(512..=65_536).contains(&page_bytes) {
        return Ok(Found::Whole);
    }
    let mut sum = checksum((0, 0), &header[..24], big_endian);
    let header_fits = sum == (word(&header, 24), word(&header, 28));
    let mut frame = vec![0; FRAME_HEADER_BYTES + page_bytes];
    let mut at_bytes = HEADER_BYTES as u64;
    let mut bad_at = (!header_fits).then_some(0);
    let mut commits = 0;
    let mut behind_a_commit = false;
    while fill(log, &mut frame)? {
        // Frames with other salts are left over from before the log was used anew.
        if frame[8..16] != header[16..24] {
            if bad_at.is_none() {
                // The damage may be in the salts; the next frame tells.
                bad_at = Some(at_bytes);
            }
        } else if bad_at.is_none() {
            let next = checksum(sum, &frame[..8], big_endian);
            let next = checksum(next, &frame[FRAME_HEADER_BYTES..], big_endian);
            if next == (word(&frame, 16), word(&frame, 20)) {
                sum = next;
            } else {
                bad_at = Some(at_bytes);
                note(&frame, &mut commits, &mut behind_a_commit);
            }
        } else {
            note(&frame, &mut commits, &mut behind_a_commit);
        }
        at_bytes += frame.len() as u64;
    }
    Ok(match bad_at {
        Some(at_bytes) if commits > 0 && (commits > 1 || behind_a_commit) => {
            Found::Lost { at_bytes, commits: commits.max(1) }
        }
        _ => Found::Whole,
    })
}

/// Notes a frame of this log behind the first bad one.
fn note(frame: &[u8], commits: &mut u64, behind_a_commit: &mut bool) {
    *behind_a_commit |= *commits > 0;
    if word(frame, 4) != 0 {
        *commits += 1;
    }
}

/// Reads exactly so many bytes; false at the end of the file, whatever part of them was there.
fn fill(log: &mut impl Read, bytes: &mut [u8]) -> std::io::Result<bool> {
    match log.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    word.map_or(0, |word| u32::from_be_bytes(*word))
}

fn checksum(before: (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    let (mut first, mut second) = before;
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let word = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            if big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
        };
        first = first.wrapping_add(word(0)).wrapping_add(second);
        second = second.wrapping_add(word(4)).wrapping_add(first);
    }
    (first, second)
}
