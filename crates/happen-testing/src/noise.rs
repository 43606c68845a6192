//! Text in which nothing repeats, for tests of what is compressed and of limits in bytes. Owns nothing else.

use happen_core::hash::digest;

/// So many letters in which nothing repeats; the same for the same seed.
///
/// # Examples
///
/// ```
/// use happen_testing::noise;
///
/// assert_eq!(noise(1, 300), noise(1, 300));
/// assert_ne!(noise(1, 300), noise(2, 300));
/// assert_eq!(noise(1, 300).len(), 300);
/// ```
#[must_use]
pub fn noise(seed: u64, len: usize) -> String {
    let digests = (0u64..).map(|at| digest(&[&seed.to_le_bytes(), &at.to_le_bytes()]));
    let letters = digests
        .flat_map(|digest| (0..LETTERS_EACH).map(move |at| LETTERS[(digest >> (6 * at)) as usize & 63]));
    letters.take(len).map(char::from).collect()
}

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// How many letters of six bits one digest gives.
const LETTERS_EACH: u32 = 10;
