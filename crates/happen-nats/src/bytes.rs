//! Numbers and texts as bytes: what the frames and entries of this crate are made of. Owns how a number is written and
//! that reading foreign bytes neither panics nor takes memory that they only claim; does not know what is said.

use happen_core::{Error, ErrorKind, Result};

/// Puts numbers, least significant byte first, and bytes behind their length.
pub(crate) trait Put {
    fn put_u8(&mut self, number: u8);
    fn put_u32(&mut self, number: u32);
    fn put_u64(&mut self, number: u64);
    fn put_u128(&mut self, number: u128);
    /// A length of four bytes and the bytes.
    fn put_bytes(&mut self, bytes: &[u8]);
    /// The number of things that follow. Whoever puts them has checked that they are few.
    fn put_count(&mut self, count: usize);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, number: u8) {
        self.push(number);
    }

    fn put_u32(&mut self, number: u32) {
        self.extend(number.to_le_bytes());
    }

    fn put_u64(&mut self, number: u64) {
        self.extend(number.to_le_bytes());
    }

    fn put_u128(&mut self, number: u128) {
        self.extend(number.to_le_bytes());
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_count(bytes.len());
        self.extend(bytes);
    }

    fn put_count(&mut self, count: usize) {
        self.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

/// Takes what was put, from the front on.
pub(crate) struct Take<'b> {
    rest: &'b [u8],
}

impl<'b> Take<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What is left.
    pub(crate) fn rest(self) -> &'b [u8] {
        self.rest
    }

    /// # Errors
    ///
    /// When something is left.
    pub(crate) fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(unreadable("it is longer than what it says")) }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'b [u8]> {
        let length = self.u32()? as usize;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn text(&mut self) -> Result<&'b str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| unreadable("a text is not UTF-8"))
    }

    /// So many things as are said to follow, each taken by this function and at least a byte long.
    pub(crate) fn list<T>(&mut self, mut take: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = self.u32()? as usize;
        // More than there are bytes cannot follow, so nothing is made room for that is not there.
        if count > self.rest.len() {
            return Err(short());
        }
        (0..count).map(|_| take(self)).collect()
    }
}

pub(crate) fn unreadable(why: &str) -> Error {
    Error::new(ErrorKind::Damaged { what: format!("what came over NATS cannot be read: {why}") })
}

fn short() -> Error {
    unreadable("it ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_taken() {
        let mut bytes = Vec::new();
        bytes.put_u8(1);
        bytes.put_u32(4);
        bytes.put_u64(5);
        bytes.put_u128(6);
        bytes.put_bytes("größer".as_bytes());
        bytes.put_count(2);
        bytes.extend([7, 8, 9]);
        assert_eq!(bytes[..5], [1, 4, 0, 0, 0]);
        let mut take = Take::new(&bytes);
        assert_eq!((take.u8().unwrap(), take.u32().unwrap()), (1, 4));
        assert_eq!((take.u64().unwrap(), take.u128().unwrap()), (5, 6));
        assert_eq!(take.text().unwrap(), "größer");
        assert_eq!(take.list(Take::u8).unwrap(), [7, 8]);
        assert_eq!(take.rest(), [9]);
    }

    #[test]
    fn what_is_cut_or_claimed_is_an_error() {
        let mut bytes = Vec::new();
        bytes.put_bytes(b"abc");
        for length in 0..bytes.len() {
            assert!(Take::new(&bytes[..length]).bytes().is_err(), "{length}");
        }
        let claimed = u32::MAX.to_le_bytes();
        assert!(Take::new(&claimed).bytes().is_err());
        assert!(Take::new(&claimed).list(Take::u8).is_err());
        let mut text = Vec::new();
        text.put_bytes(&[0xff]);
        assert!(Take::new(&text).text().is_err());
        assert!(Take::new(&text).end().is_err());
        assert!(Take::new(&[]).end().is_ok());
    }
}
