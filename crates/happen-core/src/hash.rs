//! The hash of an event: what it covers, in which order, and what a hash that does not fit means. Does not know where
//! events are kept.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{CauseLink, WireEvent};
use crate::id::EventId;

/// The hash of one event and, through the hashes of its causes, of all it came from.
///
/// # Examples
///
/// ```
/// use happen_core::hash::EventHash;
///
/// let hash: EventHash = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff".parse()?;
/// assert_eq!(hash.as_bytes()[1], 0x11);
/// assert_eq!(hash.to_string().parse(), Ok(hash));
/// # Ok::<(), happen_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventHash([u8; 32]);

/// A text that is no hash: it is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a hash: expected 64 hexadecimal digits")]
pub struct BadEventHash {
    text: String,
}

/// What does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HashMismatch {
    /// The event is not what it was when it was hashed.
    #[error("event {id} does not fit its hash: it was changed, or its hash was")]
    Content {
        /// The event.
        id: EventId,
    },
    /// The event fits its hash, and its cause is not the one it was caused by.
    #[error("event {id} was caused by an event {cause} with another hash: the cause was changed")]
    Cause {
        /// The event.
        id: EventId,
        /// The cause.
        cause: EventId,
    },
    /// The event has no hash.
    #[error("event {id} has no hash")]
    Missing {
        /// The event.
        id: EventId,
    },
}

/// The hash of an event, from its fields and from what it says about its causes. The hash that stands in the event is
/// not looked at.
///
/// Covered are the fields that say what happened: id, root, time, depth, type, sender, origin, correlation, source,
/// user, delegations, metadata, causes, payload, and fields of later versions unless their name starts with `_`. Not
/// covered are those that say how it is carried and that may be others on the next way: the path, which each program
/// cuts at its own length and which follows from the causes; the deadline and the purpose, which change when an event is
/// sent again from the dead letters; and the trace context, which every proxy rewrites.
///
/// `docs/format.md` has the canonical bytes.
///
/// # Cost
///
/// No allocation, unless the event has unknown fields. One pass over the payload.
#[must_use]
pub fn hash_event(event: &WireEvent<'_>) -> EventHash {
    let mut canonical = Canonical::new(KEY);
    canonical.id(event.id);
    canonical.id(event.root);
    canonical.number(event.at_unix_ms);
    canonical.number(u64::from(event.depth));
    canonical.bytes(event.event_type.as_bytes());
    canonical.bytes(event.sender.as_bytes());
    canonical.bytes(event.origin.as_bytes());
    for text in [&event.correlation, &event.source_id, &event.source_type] {
        canonical.option(text.is_some());
        if let Some(text) = text {
            canonical.bytes(text.as_bytes());
        }
    }
    canonical.option(event.user.is_some());
    if let Some(user) = &event.user {
        canonical.bytes(user.id.as_bytes());
        canonical.list(&user.permissions, |canonical, text| canonical.bytes(text.as_bytes()));
    }
    canonical.list(&event.delegations, |canonical, delegation| {
        canonical.bytes(delegation.node.as_bytes());
        canonical.bytes(delegation.on_behalf_of.as_bytes());
    });
    canonical.bytes(&event.metadata);
    canonical.number(event.causes().count() as u64);
    for cause in event.causes() {
        canonical.cause(cause);
    }
    // Whoever passes an event on may write its fields in another order.
    let mut unknown: Vec<_> = event.unknown.iter().filter(|field| !field.key().starts_with('_')).collect();
    unknown.sort_unstable_by_key(|field| field.key());
    canonical.list(&unknown, |canonical, field| {
        canonical.bytes(field.key().as_bytes());
        canonical.bytes(field.value());
    });
    canonical.bytes(event.payload);
    EventHash(*canonical.finish().as_bytes())
}

/// Checks an event against its own hash, and what it says about its causes against `hash_of`, which gives the hash that
/// a cause has now, or `None` when the cause is not at hand.
///
/// Gives the causes that could not be checked: the edge of the web that is known here. The causes themselves are not
/// verified; do so for each event of a web, and a single flipped bit is found at the event that has it.
///
/// # Errors
///
/// - [`HashMismatch::Content`] when the event was changed.
/// - [`HashMismatch::Cause`] with the first cause whose hash is another now.
/// - [`HashMismatch::Missing`] when the event has no hash.
///
/// # Examples
///
/// ```
/// use happen_core::codec::WireEvent;
/// use happen_core::hash::{HashMismatch, hash_event, verify};
///
/// let id = "0197a5d0-7c00-7000-8000-000000000001".parse()?;
/// let mut event = WireEvent::new(id, "order.created", 1_750_000_000_000, &[7]);
/// event.hash = Some(hash_event(&event));
/// assert_eq!(verify(&event, |_| None), Ok(vec![]));
///
/// event.at_unix_ms += 1;
/// assert_eq!(verify(&event, |_| None), Err(HashMismatch::Content { id }));
/// # Ok::<(), happen_core::Error>(())
/// ```
pub fn verify(
    event: &WireEvent<'_>,
    mut hash_of: impl FnMut(EventId) -> Option<EventHash>,
) -> Result<Vec<EventId>, HashMismatch> {
    let id = event.id;
    match event.hash {
        None => return Err(HashMismatch::Missing { id }),
        Some(hash) if hash != hash_event(event) => return Err(HashMismatch::Content { id }),
        Some(_) => {}
    }
    let mut edge = Vec::new();
    for link in event.causes() {
        let cause = link.id();
        match (link, hash_of(cause)) {
            (CauseLink::Known { hash, .. }, Some(found)) if *hash == found => {}
            (CauseLink::Known { .. }, Some(_)) => return Err(HashMismatch::Cause { id, cause }),
            _ => edge.push(cause),
        }
    }
    Ok(edge)
}

impl EventHash {
    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for EventHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for EventHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for EventHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventHash {
    type Err = BadEventHash;

    fn from_str(text: &str) -> Result<Self, BadEventHash> {
        let bad = || BadEventHash { text: text.chars().take(80).collect() };
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in pair {
                let digit = char::from(*digit).to_digit(16).ok_or_else(bad)?;
                *byte = *byte << 4 | digit as u8;
            }
        }
        Ok(Self(bytes))
    }
}

impl Serialize for EventHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for EventHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = EventHash;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a hash as text or as 32 bytes")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<EventHash, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<EventHash, E> {
                bytes.try_into().map(EventHash).map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(Visitor)
        } else {
            deserializer.deserialize_bytes(Visitor)
        }
    }
}

/// The canonical bytes on their way into the hash. Every part has a fixed length or is preceded by its own, so that no two
/// events have the same.
///
/// Most parts are short, and a hasher takes as long for the call as for the bytes; so they are gathered first.
struct Canonical {
    hasher: blake3::Hasher,
    gathered: [u8; GATHERED_BYTES],
    length: usize,
}

/// Enough for an envelope without metadata.
const GATHERED_BYTES: usize = 512;

impl Canonical {
    fn new(key: &[u8; 32]) -> Self {
        Self { hasher: blake3::Hasher::new_keyed(key), gathered: [0; GATHERED_BYTES], length: 0 }
    }

    fn update(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        match self.gathered.get_mut(self.length..end) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.length = end;
            }
            None => {
                self.hasher.update(&self.gathered[..self.length]);
                self.hasher.update(bytes);
                self.length = 0;
            }
        }
    }

    fn finish(mut self) -> blake3::Hash {
        self.hasher.update(&self.gathered[..self.length]);
        self.hasher.finalize()
    }

    fn id(&mut self, id: EventId) {
        self.update(&id.to_bytes());
    }

    fn number(&mut self, number: u64) {
        self.update(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.update(bytes);
    }

    fn option(&mut self, is_there: bool) {
        self.update(&[u8::from(is_there)]);
    }

    fn list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Self, &T)) {
        self.number(items.len() as u64);
        for each in items {
            item(self, each);
        }
    }

    fn cause(&mut self, cause: &CauseLink<'_>) {
        let mark = match cause {
            CauseLink::Bare { .. } => 0,
            CauseLink::Known { .. } => 1,
            CauseLink::Local { .. } => 2,
        };
        self.update(&[mark]);
        self.id(cause.id());
        match cause {
            CauseLink::Bare { .. } => {}
            CauseLink::Known { hash, .. } => {
                self.update(&hash.0);
            }
            CauseLink::Local { event_type, .. } => self.bytes(event_type.as_bytes()),
        }
    }
}

/// A short digest of several parts, for ids and comparisons inside one space. Parts are told apart by their lengths.
#[must_use]
pub fn digest(parts: &[&[u8]]) -> u64 {
    let mut canonical = Canonical::new(DIGEST_KEY);
    parts.iter().for_each(|part| canonical.bytes(part));
    let mut first = [0; 8];
    first.copy_from_slice(&canonical.finish().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// As [`KEY`], for digests.
const DIGEST_KEY: &[u8; 32] = b"happen digest, version 1        ";

/// Keeps these hashes apart from all others made with BLAKE3. Keyed rather than derived from a context text: it says the
/// same and saves hashing the context for each event.
const KEY: &[u8; 32] = b"happen event hash, version 1    ";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::any_event;
    use crate::limits::EVENT_BYTES_MAX;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use std::borrow::Cow;
    use std::collections::HashMap;

    #[test]
    fn gathering_does_not_change_what_is_hashed() {
        for length in [0, 1, GATHERED_BYTES - 9, GATHERED_BYTES - 8, GATHERED_BYTES - 7, 3 * GATHERED_BYTES] {
            let part = vec![7; length];
            let mut whole = Vec::new();
            let mut canonical = Canonical::new(KEY);
            for bytes in [&part[..], b"between", &part] {
                canonical.bytes(bytes);
                whole.extend((bytes.len() as u64).to_le_bytes());
                whole.extend(bytes);
            }
            assert_eq!(canonical.finish(), blake3::keyed_hash(KEY, &whole), "{length}");
        }
    }

    /// Flips one bit of a text without making it another length, so that it stays UTF-8.
    fn flip_text(text: &mut Cow<'_, str>, at: Index) {
        if text.is_empty() {
            *text = "x".into();
            return;
        }
        let at = at.index(text.len());
        let flipped = text.char_indices().map(|(index, letter)| match letter {
            letter if index <= at && at < index + letter.len_utf8() => {
                char::from_u32(u32::from(letter) ^ 1).unwrap_or('x')
            }
            letter => letter,
        });
        *text = flipped.collect::<String>().into();
    }

    fn flip_id(id: &mut EventId, bit: u32) {
        let (high, low) = id.to_halves();
        let flipped = (u128::from(high) << 64 | u128::from(low)) ^ 1 << (bit % 128);
        // The nil id does not exist.
        *id = EventId::from_bytes(flipped.to_be_bytes()).unwrap_or(EventId::MIN);
    }

    fn flip_bytes(bytes: &mut [u8], at: Index, bit: u32) {
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << (bit % 8);
    }

    fn flip_cause(cause: &mut CauseLink<'static>, part: bool, at: Index, bit: u32) {
        match cause {
            CauseLink::Known { hash, .. } if part => flip_bytes(&mut hash.0, at, bit),
            CauseLink::Local { event_type, .. } if part => {
                let mut text = Cow::from(*event_type);
                flip_text(&mut text, at);
                *event_type = text.into_owned().leak();
            }
            CauseLink::Known { id, .. } | CauseLink::Local { id, .. } | CauseLink::Bare { id } => {
                flip_id(id, bit)
            }
        }
    }

    /// Flips one bit somewhere in what is covered.
    fn flip(event: &mut WireEvent<'static>, field: usize, at: Index, bit: u32) {
        match field % 12 {
            0 => flip_id(&mut event.id, bit),
            1 => flip_text(&mut event.event_type, at),
            2 => event.at_unix_ms ^= 1 << (bit % 64),
            3 => flip_id(&mut event.root, bit),
            4 => event.depth ^= 1 << (bit % 32),
            5 => flip_text(&mut event.sender, at),
            6 => flip_text(&mut event.origin, at),
            7 => match &mut event.correlation {
                Some(text) => flip_text(text, at),
                none => *none = Some(Cow::default()),
            },
            8 => match (&mut event.cause, event.more_causes.as_mut_slice()) {
                (Some(first), []) => flip_cause(first, bit.is_multiple_of(2), at, bit / 2),
                (_, more @ [_, ..]) => {
                    let index = at.index(more.len());
                    flip_cause(&mut more[index], bit.is_multiple_of(2), at, bit / 2);
                }
                (none, []) => *none = Some(CauseLink::Bare { id: EventId::MIN }),
            },
            9 => match &mut event.user {
                Some(user) => flip_text(&mut user.id, at),
                none => *none = Some(crate::codec::WireUser::default()),
            },
            10 if !event.metadata.is_empty() => flip_bytes(event.metadata.to_mut(), at, bit),
            _ if event.payload.is_empty() => event.payload = &[0],
            _ => {
                let mut bytes = event.payload.to_vec();
                flip_bytes(&mut bytes, at, bit);
                event.payload = bytes.leak();
            }
        }
    }

    proptest! {
        #[test]
        fn any_flipped_bit_makes_another_hash(event in any_event(), field: usize, at: Index, bit: u32) {
            let mut changed = event.clone();
            flip(&mut changed, field, at, bit);
            prop_assert_ne!(&changed, &event);
            prop_assert_ne!(hash_event(&changed), hash_event(&event));
        }

        #[test]
        fn the_hash_survives_the_wire_and_a_change_of_the_way(event in any_event(), other in any_event()) {
            let wanted = hash_event(&event);
            let mut bytes = Vec::new();
            event.encode_into(&mut bytes, EVENT_BYTES_MAX).unwrap();
            let mut read = WireEvent::decode(&bytes, EVENT_BYTES_MAX).unwrap();
            prop_assert_eq!(hash_event(&read), wanted);

            read.path = other.path;
            read.deadline_unix_ms = other.deadline_unix_ms;
            read.purpose = other.purpose;
            read.trace = other.trace;
            read.key = other.key;
            read.handover = other.handover;
            read.hash = other.hash;
            read.unknown.retain(|field| !field.key().starts_with('_'));
            read.unknown.reverse();
            prop_assert_eq!(hash_event(&read), wanted);
        }

        #[test]
        fn one_flipped_bit_in_a_web_is_found_at_its_event(
            drawn in prop::collection::vec((any_event(), prop::collection::vec(any::<Index>(), 0..4)), 1..12),
            victim: Index,
            field in 1usize..12,
            at: Index,
            bit: u32,
        ) {
            // Causes are drawn among the events before, so there is no cycle; each event gets an id of its own.
            let mut web: Vec<WireEvent<'static>> = Vec::new();
            for (number, (mut event, causes)) in drawn.into_iter().enumerate() {
                event.id = EventId::from_halves(number as u64 + 1, 7).unwrap();
                let mut links: Vec<_> = causes
                    .iter()
                    .filter(|_| number > 0)
                    .map(|cause| &web[cause.index(number)])
                    .map(|cause| CauseLink::Known { id: cause.id, hash: cause.hash.unwrap() })
                    .collect();
                event.cause = links.pop();
                event.more_causes = links;
                event.hash = Some(hash_event(&event));
                web.push(event);
            }
            let hashes = |web: &[WireEvent<'_>]| -> HashMap<_, _> {
                web.iter().map(|event| (event.id, hash_event(event))).collect()
            };
            let now = hashes(&web);
            for event in &web {
                prop_assert_eq!(verify(event, |id| now.get(&id).copied()), Ok(vec![]));
            }

            let victim = victim.index(web.len());
            let id = web[victim].id;
            flip(&mut web[victim], field, at, bit);
            let now = hashes(&web);
            for event in &web {
                let found = verify(event, |id| now.get(&id).copied());
                if event.id == id {
                    prop_assert_eq!(found, Err(HashMismatch::Content { id }));
                } else if event.causes().any(|cause| cause.id() == id) {
                    prop_assert_eq!(found, Err(HashMismatch::Cause { id: event.id, cause: id }));
                } else {
                    prop_assert_eq!(found, Ok(vec![]));
                }
            }
        }
    }

    #[test]
    fn the_edge_of_the_web_is_told() {
        let id = |low| EventId::from_halves(1, low).unwrap();
        let mut event = WireEvent::new(id(1), "x", 1, &[]);
        assert_eq!(verify(&event, |_| None), Err(HashMismatch::Missing { id: id(1) }));
        let hash = hash_event(&event);
        event.cause = Some(CauseLink::Known { id: id(2), hash });
        event.more_causes =
            vec![CauseLink::Local { id: id(3), event_type: "y" }, CauseLink::Known { id: id(4), hash }];
        event.hash = Some(hash_event(&event));
        let known = |asked| (asked == id(2)).then_some(hash);
        assert_eq!(verify(&event, known), Ok(vec![id(3), id(4)]));
    }

    #[test]
    fn text_and_bytes_round_trip() {
        let hash = hash_event(&WireEvent::new(EventId::MIN, "x", 1, &[]));
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(serde_json::from_str::<EventHash>(&serde_json::to_string(&hash).unwrap()).unwrap(), hash);
        let packed = rmp_serde::to_vec(&hash).unwrap();
        assert_eq!(packed.len(), 34);
        assert_eq!(rmp_serde::from_slice::<EventHash>(&packed).unwrap(), hash);
        for text in ["", "00", &"g".repeat(64), &"0".repeat(63), &"0".repeat(65), &"é".repeat(32)] {
            assert!(text.parse::<EventHash>().is_err(), "{text}");
        }
    }
}
