//! Values as bytes, for what is kept beside events and states, and the hash of bytes. Owns how any value of serde's is
//! written and read back; does not know where it is kept.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// Appends a value as MessagePack, structs as maps with the names of their fields. `name` is what an error calls it.
///
/// # Errors
///
/// [`ErrorKind::Unencodable`] when its `Serialize` refuses; what was appended by then is taken away.
pub fn encode_into<T: Serialize + ?Sized>(value: &T, name: &str, out: &mut Vec<u8>) -> Result<()> {
    let before = out.len();
    let mut serializer = rmp_serde::Serializer::new(&mut *out).with_struct_map();
    value.serialize(&mut serializer).map_err(|error| {
        out.truncate(before);
        Error::new(ErrorKind::Unencodable { event_type: name.to_owned() }).with_source(error)
    })
}

/// Reads a value from MessagePack. `name` is what an error calls it.
///
/// # Errors
///
/// [`ErrorKind::Undecodable`] when the bytes are no such value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T> {
    rmp_serde::from_slice(bytes)
        .map_err(|error| Error::new(ErrorKind::Undecodable { wanted: name.to_owned() }).with_source(error))
}

/// The hash of bytes that come in pieces: BLAKE3 without a key, which other tools compute too.
///
/// # Examples
///
/// ```
/// use happen_core::content::ContentHasher;
///
/// let mut pieces = ContentHasher::new();
/// pieces.update(b"hap");
/// pieces.update(b"pen");
/// let mut whole = ContentHasher::new();
/// whole.update(b"happen");
/// assert_eq!(pieces.finish(), whole.finish());
/// ```
#[derive(Clone, Default)]
pub struct ContentHasher(blake3::Hasher);

impl ContentHasher {
    /// The hasher of no bytes so far.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on with these bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all of them.
    #[must_use]
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

impl fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHasher({} bytes)", self.0.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serializer};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Profile {
        name: String,
        age: u32,
    }

    struct Stubborn;

    impl Serialize for Stubborn {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }

    #[test]
    fn values_come_back_and_structs_keep_the_names_of_their_fields() {
        let profile = Profile { name: "Ada".into(), age: 36 };
        let mut bytes = vec![7];
        encode_into(&profile, "profile", &mut bytes).unwrap();
        assert_eq!(&bytes[..7], b"\x07\x82\xa4name");
        assert_eq!(decode::<Profile>(&bytes[1..], "profile").unwrap(), profile);
    }

    #[test]
    fn what_is_no_such_value_is_an_error_with_its_name() {
        let error = decode::<Profile>(&[0xc1], "profile").unwrap_err();
        assert_eq!(
            (error.code(), error.to_string()),
            ("undecodable", "the bytes are no `profile`".to_owned())
        );
        let mut bytes = vec![7];
        let error = encode_into(&("a", Stubborn), "stubborn", &mut bytes).unwrap_err();
        assert_eq!((error.code(), bytes), ("unencodable", vec![7]));
    }

    #[test]
    fn the_hash_is_what_other_tools_compute() {
        // The hash of nothing, from the test vectors of the BLAKE3 paper.
        let text: String = ContentHasher::new().finish().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
    }
}
