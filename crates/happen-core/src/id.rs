//! Event ids: unique, ordered in time, and cheap. Owns their layout, their text form and the block that makes
//! them; does not know where the time or the randomness comes from.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The id of one event, 16 bytes, in the layout of a version 7 UUID.
///
/// From the most significant bit: 48 bits of milliseconds since 1970, 4 bits of version, 12 bits and 20 bits of a
/// counter around the 2 variant bits, and 42 bits that belong to the block the id came from. Ids of one block
/// ascend; ids of different blocks are ordered by the millisecond. They are not secrets.
///
/// # Examples
///
/// ```
/// use happen_core::EventId;
///
/// let id: EventId = "0197a5d0-7c00-7000-8000-000000000001".parse().unwrap();
/// assert_eq!(id.to_string(), "0197a5d0-7c00-7000-8000-000000000001");
/// assert_eq!(id.unix_ms(), 0x0197_a5d0_7c00);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    high: NonZeroU64,
    low: u64,
}

/// A text that is no event id: it is not 32 hexadecimal digits, with or without the four hyphens of a UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an event id: expected 32 hexadecimal digits in the form of a UUID")]
pub struct BadEventId {
    text: String,
}

/// A source of ids for one thread: every id it gives is greater than the one before.
///
/// Two blocks with the same start value could give the same id in the same millisecond, so the start comes from the
/// operating system's randomness (42 bits of it are used).
#[derive(Debug)]
pub struct IdBlock {
    block: u64,
    unix_ms: u64,
    counter: u32,
}

impl EventId {
    /// The least id: no event that was sent has it. It stands for an event whose id could not be read.
    pub const MIN: Self = Self { high: NonZeroU64::MIN, low: 0 };

    /// The milliseconds since 1970 at which the id was made, by the clock of its block.
    #[must_use]
    pub const fn unix_ms(self) -> u64 {
        self.high.get() >> 16
    }

    /// The counter of its block at that time.
    const fn counter(self) -> u32 {
        ((self.high.get() & 0xfff) << 20) as u32 | (self.low >> 42 & 0x000f_ffff) as u32
    }

    /// An id that follows from what is given and from nothing else, so that work done again makes the same one: greater
    /// than `after`, and among those of one `after` and time in the order of `sequence`. What tells it from all others is
    /// in `hash`, of which 62 bits are used.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::id::IdBlock;
    /// use happen_core::EventId;
    ///
    /// let cause = IdBlock::new(7).next_id(1_750_000_000_000);
    /// let first = EventId::derived(0, cause, 0, 5);
    /// assert!(cause < first && first < EventId::derived(0, cause, 1, 3));
    /// assert_eq!(first, EventId::derived(0, cause, 0, 5));
    /// ```
    #[must_use]
    pub fn derived(unix_ms: u64, after: Self, sequence: u32, hash: u64) -> Self {
        // 60 bits of order: the milliseconds, and the 12 bits behind them.
        let order = |unix_ms: u64, counter: u32| (unix_ms << 12) | u64::from(counter >> 20);
        let least = order(after.unix_ms(), after.counter()) + 1;
        let order = least.max(unix_ms << 12).saturating_add(u64::from(sequence));
        let high = (order >> 12) << 16 | VERSION | (order & 0xfff);
        let low = VARIANT | hash >> 2;
        Self { high: NonZeroU64::MIN.saturating_add(high - 1), low }
    }

    /// The two halves, the more significant first.
    #[must_use]
    pub const fn to_halves(self) -> (u64, u64) {
        (self.high.get(), self.low)
    }

    /// The id with these halves; `None` for the nil id, which no event has.
    #[must_use]
    pub const fn from_halves(high: u64, low: u64) -> Option<Self> {
        match NonZeroU64::new(high) {
            Some(high) => Some(Self { high, low }),
            None => None,
        }
    }

    /// The 16 bytes in network order.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.high.get().to_be_bytes());
        bytes[8..].copy_from_slice(&self.low.to_be_bytes());
        bytes
    }

    /// The id with these bytes in network order; `None` when its first eight bytes are zero.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        let all = u128::from_be_bytes(bytes);
        Self::from_halves((all >> 64) as u64, all as u64)
    }
}

impl IdBlock {
    /// A block whose ids carry the low 42 bits of `start`.
    #[must_use]
    pub const fn new(start: u64) -> Self {
        Self { block: start & BLOCK_MASK, unix_ms: 1, counter: 0 }
    }

    /// The next id. A clock that went back does not make ids go back: the last time is kept instead.
    ///
    /// # Cost
    ///
    /// A few instructions; no allocation, no system call.
    #[inline]
    pub fn next_id(&mut self, unix_ms: u64) -> EventId {
        if unix_ms > self.unix_ms {
            self.unix_ms = unix_ms;
        }
        // When the counter is used up, the millisecond moves instead, so that order and uniqueness both hold.
        let (counter, wrapped) = self.counter.overflowing_add(1);
        self.counter = counter;
        self.unix_ms += u64::from(wrapped);
        let high = self.unix_ms << 16 | VERSION | u64::from(counter >> 20);
        let low = VARIANT | u64::from(counter & 0x000f_ffff) << 42 | self.block;
        EventId { high: NonZeroU64::MIN.saturating_add(high - 1), low }
    }
}

impl IdBlock {
    /// The next id, greater than this one too, which another block may have made: an effect is younger than its cause
    /// wherever it is sent from. A cause from a clock that runs far ahead ([`AHEAD_MS_MAX`]) is not followed.
    ///
    /// # Source
    ///
    /// Lamport, *Time, Clocks, and the Ordering of Events in a Distributed System*, 1978; with the clock as in Kulkarni
    /// et al., *Logical Physical Clocks*, 2014.
    #[inline]
    pub fn next_id_after(&mut self, unix_ms: u64, cause: EventId) -> EventId {
        let seen = (cause.unix_ms(), cause.counter());
        if seen > (self.unix_ms, self.counter) && seen.0 <= unix_ms.saturating_add(AHEAD_MS_MAX) {
            (self.unix_ms, self.counter) = seen;
        }
        self.next_id(unix_ms)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (high, low) = self.to_halves();
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventId {
    type Err = BadEventId;

    fn from_str(text: &str) -> Result<Self, BadEventId> {
        let bad = || BadEventId { text: text.chars().take(64).collect() };
        let hyphens = [8, 13, 18, 23];
        let mut digits = 0;
        let mut all: u128 = 0;
        for (index, byte) in text.bytes().enumerate() {
            if byte == b'-' && text.len() == 36 && hyphens.contains(&index) {
                continue;
            }
            let digit = char::from(byte).to_digit(16).ok_or_else(bad)?;
            digits += 1;
            if digits > 32 {
                return Err(bad());
            }
            all = all << 4 | u128::from(digit);
        }
        if digits != 32 {
            return Err(bad());
        }
        Self::from_bytes(all.to_be_bytes()).ok_or_else(bad)
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.to_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = EventId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event id as text or as 16 bytes")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<EventId, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<EventId, E> {
                let bytes = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
                EventId::from_bytes(bytes).ok_or_else(|| E::custom("the nil id belongs to no event"))
            }
        }
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(Visitor)
        } else {
            deserializer.deserialize_bytes(Visitor)
        }
    }
}

/// How far ahead a clock may be whose ids are followed: a day. A clock that is years ahead would carry the ids of every
/// process that hears of it into that time for good; with a day's limit the order of ids is lost instead, and order by
/// cause stays.
pub const AHEAD_MS_MAX: u64 = 24 * 60 * 60 * 1_000;

const BLOCK_MASK: u64 = (1 << 42) - 1;
const VERSION: u64 = 0x7000;
const VARIANT: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_block_ascend_even_when_the_clock_goes_back() {
        let mut block = IdBlock::new(u64::MAX);
        let mut last = block.next_id(1_000);
        for unix_ms in [1_000, 1_001, 5, 0, 1_002, 1_002] {
            let id = block.next_id(unix_ms);
            assert!(id > last, "{id} after {last}");
            last = id;
        }
        assert_eq!(last.unix_ms(), 1_002);
    }

    #[test]
    fn an_id_after_a_cause_of_another_block_is_greater() {
        let mut ahead = IdBlock { block: BLOCK_MASK, unix_ms: 5_000, counter: u32::MAX - 2 };
        let mut behind = IdBlock::new(0);
        for _ in 0..5 {
            let cause = ahead.next_id(0);
            let effect = behind.next_id_after(1_000, cause);
            assert!(effect > cause, "{effect} after {cause}");
            assert!(behind.next_id(1_000) > effect);
        }
    }

    #[test]
    fn a_clock_that_is_more_than_a_day_ahead_is_not_followed() {
        for (ahead_ms, followed) in
            [(AHEAD_MS_MAX - 1, true), (AHEAD_MS_MAX, true), (AHEAD_MS_MAX + 1, false)]
        {
            let cause = IdBlock::new(1).next_id(1_000 + ahead_ms);
            let effect = IdBlock::new(2).next_id_after(1_000, cause);
            assert_eq!(effect > cause, followed);
            assert_eq!(effect.unix_ms(), if followed { 1_000 + ahead_ms } else { 1_000 });
        }
    }

    #[test]
    fn a_used_up_counter_moves_the_millisecond() {
        let mut block = IdBlock { block: 7, unix_ms: 9, counter: u32::MAX - 1 };
        let before = block.next_id(9);
        let after = block.next_id(9);
        assert!(after > before);
        assert_eq!((before.unix_ms(), after.unix_ms()), (9, 10));
    }

    #[test]
    fn text_and_bytes_round_trip() {
        let id = IdBlock::new(42).next_id(1_763_000_000_000);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().replace('-', "").parse(), Ok(id));
        assert_eq!(EventId::from_bytes(id.to_bytes()), Some(id));
        let packed = rmp_serde::to_vec(&id).unwrap();
        assert_eq!(packed.len(), 18);
        assert_eq!(rmp_serde::from_slice::<EventId>(&packed).unwrap(), id);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<EventId>(&json).unwrap(), id);
    }

    #[test]
    fn rubbish_is_no_id() {
        for text in
            ["", "evt-1", "0", "00000000-0000-0000-0000-000000000000", "é", &"f".repeat(33), "0197a5d0_7c00"]
        {
            assert!(text.parse::<EventId>().is_err(), "{text}");
        }
        assert!(rmp_serde::from_slice::<EventId>(&[0xc4, 2, 1, 2]).is_err());
    }

    #[test]
    fn an_optional_id_needs_no_more_room() {
        assert_eq!(size_of::<Option<EventId>>(), 16);
    }
}
