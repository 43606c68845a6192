//! Keys of nodes and what is done with them: their text form, and the two traits by which a space signs and verifies. Does
//! not know how a signature is computed; that is chosen by value.
//!
//! The text form is that of nkeys, which NATS uses, so one key serves both: base32 of a prefix, the 32 bytes of an
//! Ed25519 key, and a checksum. A public key begins with the letter of its kind, such as `U`; a seed with `S` and that
//! letter.

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Result;

/// What a key is for. To Happen all kinds are the same; servers of NATS tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum KeyKind {
    /// `U`: a user, which is what a node is to NATS.
    User = 20 << 3,
    /// `A`: an account.
    Account = 0,
    /// `N`: a server.
    Server = 13 << 3,
    /// `C`: a cluster.
    Cluster = 2 << 3,
    /// `O`: an operator.
    Operator = 14 << 3,
}

/// The public part of a key: who signed.
///
/// # Examples
///
/// ```
/// use happen_core::key::{KeyKind, PublicKey};
///
/// let key = PublicKey::new(KeyKind::User, [7; 32]);
/// let text = key.to_string();
/// assert!(text.starts_with('U'));
/// assert_eq!(text.parse(), Ok(key));
/// # Ok::<(), happen_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey {
    kind: KeyKind,
    bytes: [u8; 32],
}

/// The secret part of a key, from which the rest follows.
///
/// It is never shown: its `Debug` says nothing of it, it has no `Display`, and its bytes are overwritten when it is
/// dropped. [`Seed::reveal`] writes it as text for whoever has to keep it.
///
/// # Examples
///
/// ```
/// use happen_core::key::{KeyKind, Seed};
///
/// let seed = Seed::new(KeyKind::User, [7; 32]);
/// assert_eq!(format!("{seed:?}"), "seed of a User key");
/// let text = seed.reveal();
/// assert!(text.starts_with("SU"));
/// assert_eq!(text.parse::<Seed>()?.expose(), &[7; 32]);
/// # Ok::<(), happen_core::Error>(())
/// ```
pub struct Seed {
    kind: KeyKind,
    bytes: [u8; 32],
}

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

/// A text that is no key. The text itself is not repeated: it may be a secret in the wrong place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadKey {
    /// Not as long as a key, or with a letter that base32 does not have.
    #[error("this is no key in the text form of nkeys")]
    Form,
    /// The checksum does not fit: a letter was mistyped.
    #[error("the checksum of the key does not fit, so a letter of it is wrong")]
    Checksum,
    /// A prefix of no kind that signs.
    #[error("this is a key of a kind that does not sign events")]
    Kind,
    /// A seed, where a public key belongs.
    #[error("this is a seed, which is a secret, and a public key belongs here")]
    Secret,
    /// A public key, where a seed belongs.
    #[error("this is a public key, and a seed belongs here")]
    Public,
}

/// Signs in the name of one key. Chosen by value: a key in memory, in a file, in a device.
///
/// # Cost
///
/// It is called on the stack of whoever sends, for each frame that leaves the process, so it should not wait.
pub trait Signer: fmt::Debug + Send + Sync + 'static {
    /// Whose signatures these are.
    fn public_key(&self) -> PublicKey;

    /// The signature of this message.
    ///
    /// # Errors
    ///
    /// When the key cannot be used now. The frame does not leave.
    fn sign(&self, message: &[u8]) -> Result<Signature>;
}

/// Says whether a signature is one of a key.
pub trait Verifier: fmt::Debug + Send + Sync + 'static {
    /// Whether this is the key's signature of exactly this message. False for whatever is not well formed.
    fn verifies(&self, key: &PublicKey, message: &[u8], signature: &Signature) -> bool;
}

impl KeyKind {
    const ALL: [Self; 5] = [Self::User, Self::Account, Self::Server, Self::Cluster, Self::Operator];

    const fn prefix(self) -> u8 {
        self as u8
    }

    fn of(prefix: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.prefix() == prefix)
    }
}

impl PublicKey {
    /// The bytes of its wire form: the kind and the key.
    pub const WIRE_BYTES: usize = 33;

    /// The key with these bytes.
    #[must_use]
    pub const fn new(kind: KeyKind, bytes: [u8; 32]) -> Self {
        Self { kind, bytes }
    }

    /// What it is for.
    #[must_use]
    pub const fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The 32 bytes of the Ed25519 key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The prefix of its kind and its 32 bytes, as they stand in a seal.
    #[must_use]
    pub fn to_wire(&self) -> [u8; Self::WIRE_BYTES] {
        let mut wire = [self.kind.prefix(); Self::WIRE_BYTES];
        wire[1..].copy_from_slice(&self.bytes);
        wire
    }

    /// The key with this wire form; `None` for a prefix that no kind has.
    #[must_use]
    pub fn from_wire(wire: &[u8; Self::WIRE_BYTES]) -> Option<Self> {
        let (prefix, bytes) = wire.split_first()?;
        Some(Self { kind: KeyKind::of(*prefix)?, bytes: bytes.try_into().ok()? })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_text(&self.to_wire()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let bytes = from_text(text)?;
        let wire: &[u8; Self::WIRE_BYTES] = match bytes.first() {
            Some(prefix) if prefix & SEED_MASK == SEED => return Err(BadKey::Secret),
            _ => bytes.as_slice().try_into().map_err(|_| BadKey::Form)?,
        };
        Self::from_wire(wire).ok_or(BadKey::Kind)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = PublicKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a public key in the text form of nkeys")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PublicKey, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl Seed {
    /// The seed with these bytes, which must come from a source of secrets.
    #[must_use]
    pub const fn new(kind: KeyKind, bytes: [u8; 32]) -> Self {
        Self { kind, bytes }
    }

    /// What the key is for.
    #[must_use]
    pub const fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The secret bytes, for whoever computes signatures.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The secret as text, for whoever keeps it.
    #[must_use]
    pub fn reveal(&self) -> String {
        let prefix = self.kind.prefix();
        let mut bytes = vec![SEED | prefix >> 5, (prefix & 31) << 3];
        bytes.extend_from_slice(&self.bytes);
        let text = to_text(&bytes);
        wipe(&mut bytes);
        text
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        wipe(&mut self.bytes);
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed of a {:?} key", self.kind)
    }
}

impl FromStr for Seed {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let mut bytes = from_text(text)?;
        let seed = match bytes.as_slice() {
            [first, ..] if first & SEED_MASK != SEED => Err(BadKey::Public),
            [first, second, secret @ ..] => {
                let kind = KeyKind::of((first & 7) << 5 | second >> 3).filter(|_| second & 7 == 0);
                let secret = secret.try_into().map_err(|_| BadKey::Form);
                secret.and_then(|bytes| Ok(Self { kind: kind.ok_or(BadKey::Kind)?, bytes }))
            }
            _ => Err(BadKey::Form),
        };
        wipe(&mut bytes);
        seed
    }
}

impl Signature {
    /// The 64 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl From<[u8; 64]> for Signature {
    fn from(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Overwrites a secret. The compiler is told that somebody looks at the zeros, so that it does not leave them out.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    black_box(bytes);
}

/// The base32 of RFC 4648 without padding, of these bytes and their checksum.
fn to_text(bytes: &[u8]) -> String {
    let sum = checksum(bytes).to_le_bytes();
    let (mut text, mut bits, mut held) = (String::with_capacity(TEXT_LEN_MAX), 0_u32, 0);
    for byte in bytes.iter().chain(&sum) {
        bits = bits << 8 | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            text.push(char::from(LETTERS[(bits >> held & 31) as usize]));
        }
    }
    if held > 0 {
        text.push(char::from(LETTERS[(bits << (5 - held) & 31) as usize]));
    }
    text
}

/// The bytes before a checksum that fits.
fn from_text(text: &str) -> Result<Vec<u8>, BadKey> {
    if text.len() > TEXT_LEN_MAX {
        return Err(BadKey::Form);
    }
    let (mut bytes, mut bits, mut held) = (Vec::with_capacity(TEXT_LEN_MAX), 0_u32, 0);
    for letter in text.bytes() {
        let five = LETTERS.iter().position(|known| *known == letter).ok_or(BadKey::Form)?;
        bits = bits << 5 | five as u32;
        held += 5;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    // A key has one text: what the last letter has beyond the last byte is zero.
    if held >= 5 || bits & ((1 << held) - 1) != 0 {
        return Err(BadKey::Form);
    }
    let content = bytes.len().checked_sub(2).filter(|content| *content > 0).ok_or(BadKey::Form)?;
    if bytes[content..] != checksum(&bytes[..content]).to_le_bytes() {
        return Err(BadKey::Checksum);
    }
    bytes.truncate(content);
    Ok(bytes)
}

/// CRC-16 as XMODEM has it: polynomial 0x1021, beginning with zero.
fn checksum(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte) << 8, |sum, _| match sum & 0x8000 {
            0 => sum << 1,
            _ => sum << 1 ^ 0x1021,
        })
    })
}

const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The prefix of seeds, in the upper five bits of their first byte.
const SEED: u8 = 18 << 3;
const SEED_MASK: u8 = 31 << 3;

/// A seed has 36 bytes with its checksum, a public key one less.
const TEXT_LEN_MAX: usize = 58;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = KeyKind> {
        proptest::sample::select(KeyKind::ALL.to_vec())
    }

    #[test]
    fn each_kind_has_its_letter() {
        let letters = KeyKind::ALL.map(|kind| {
            let public = PublicKey::new(kind, [1; 32]).to_string();
            let seed = Seed::new(kind, [1; 32]).reveal();
            assert_eq!((public.len(), seed.len()), (56, 58));
            assert_eq!(seed.get(..1), Some("S"));
            assert_eq!(seed.get(1..2), public.get(..1));
            public.chars().next().unwrap()
        });
        assert_eq!(letters, ['U', 'A', 'N', 'C', 'O']);
    }

    #[test]
    fn the_checksum_is_the_one_of_xmodem() {
        assert_eq!(checksum(b"123456789"), 0x31c3);
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        let seed = Seed::new(KeyKind::User, [9; 32]).reveal();
        let error = seed.parse::<PublicKey>().unwrap_err();
        assert_eq!(error, BadKey::Secret);
        assert!(!error.to_string().contains(&seed));
        let public = PublicKey::new(KeyKind::User, [9; 32]).to_string();
        assert_eq!(public.parse::<Seed>().unwrap_err(), BadKey::Public);
    }

    #[test]
    fn what_is_no_key_is_told_so() {
        for text in ["", "U", "SU", "äöü", "uaaa", "UA=A", &"A".repeat(59), &"A".repeat(1 << 20)] {
            assert!(text.parse::<PublicKey>().is_err(), "{text:.70}");
            assert!(text.parse::<Seed>().is_err(), "{text:.70}");
        }
        // Of the kind `X`, which encrypts and does not sign.
        let curve = to_text(&[&[23 << 3][..], &[1; 32]].concat());
        assert_eq!(curve.parse::<PublicKey>(), Err(BadKey::Kind));
        let short = to_text(&[&[20 << 3][..], &[1; 31]].concat());
        assert_eq!(short.parse::<PublicKey>(), Err(BadKey::Form));
    }

    proptest! {
        #[test]
        fn keys_come_back_from_their_texts(kind in kinds(), bytes: [u8; 32]) {
            let public = PublicKey::new(kind, bytes);
            prop_assert_eq!(public.to_string().parse(), Ok(public));
            prop_assert_eq!(PublicKey::from_wire(&public.to_wire()), Some(public));
            let seed: Seed = Seed::new(kind, bytes).reveal().parse().unwrap();
            prop_assert_eq!((seed.kind(), *seed.expose()), (kind, bytes));
        }

        #[test]
        fn a_mistyped_letter_is_found(bytes: [u8; 32], at in 0..56_usize, letter in 0..32_usize) {
            let mut text = PublicKey::new(KeyKind::User, bytes).to_string().into_bytes();
            prop_assume!(text[at] != LETTERS[letter]);
            text[at] = LETTERS[letter];
            prop_assert!(String::from_utf8(text).unwrap().parse::<PublicKey>().is_err());
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,70}") {
            let _ = text.parse::<PublicKey>();
            let _ = text.parse::<Seed>();
        }
    }
}
