//! The hashes of events that left this process, came into it, or were asked for. Owns the bounded memory that lets an
//! effect tell the hash of its cause.

use happen_core::codec::{CauseLink, WireEvent};
use happen_core::hash::{EventHash, HashMismatch, hash_event};
use happen_core::{ErasedEvent, Error, Event, EventId, EventType, Payload, Result};

use crate::current;
use crate::limits;
use crate::space::{Space, SpaceInner};
use crate::sync::{Mutex, lock};
use crate::wire::Framed;

/// Hashes by event, the newest up to a limit.
#[derive(Debug, Default)]
pub(crate) struct Hashes(Mutex<Noted>);

/// Written one behind the other, and around: what is new replaces what is oldest, and nothing is moved or freed.
///
/// Every event that leaves or comes is noted, and few are looked for. So the index has nothing that had to be kept up when
/// an event is replaced: an entry that leads to another event by now is passed over, and gives way to newer ones.
#[derive(Debug, Default)]
struct Noted {
    hashed: Vec<Hashed>,
    /// Where the oldest stands once all places are taken.
    oldest: usize,
    /// By the ids of the events; none before the first.
    buckets: Vec<Bucket>,
}

/// A hash, and what it was computed over beside the event itself.
#[derive(Debug)]
struct Hashed {
    event: EventId,
    hash: EventHash,
    causes: Box<[Cause]>,
}

/// Where events stand whose ids have some bits in common; the newest of them, where there are many.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
struct Bucket {
    entries: [Entry; BUCKET_ENTRIES],
    /// Which entry is written next.
    next: u8,
}

/// Where an event stands, and other bits of its id, so that few others are looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    place: u16,
    tag: u16,
}

/// Twice as many as there are events for each bucket, so that hardly any is pushed out of one before its time.
const BUCKET_ENTRIES: usize = 15;
const BUCKETS: usize = 2_048;
const _: () =
    assert!(BUCKETS * BUCKET_ENTRIES > limits::LINK_HASHES_MAX * 3 / 2 && limits::LINK_HASHES_MAX <= 1 << 16);

/// The bucket of an event, and the tag that it has there.
fn place_of(event: EventId) -> (usize, u16) {
    let (high, low) = event.to_halves();
    // What differs between the ids of one block are counters and the time, which the product spreads over its upper bits.
    let mixed = (high.rotate_left(32) ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 53) as usize % BUCKETS, (mixed >> 37) as u16)
}

impl Noted {
    fn of(&self, event: EventId) -> Option<&Hashed> {
        let (bucket, tag) = place_of(event);
        let found = self.buckets.get(bucket)?.entries.iter().filter(|entry| entry.tag == tag);
        found
            .filter_map(|entry| self.hashed.get(usize::from(entry.place)))
            .find(|hashed| hashed.event == event)
    }

    fn note(&mut self, hashed: Hashed) {
        if self.of(hashed.event).is_some() {
            return;
        }
        if self.buckets.is_empty() {
            self.buckets = vec![Bucket::default(); BUCKETS];
        }
        let (bucket, tag) = place_of(hashed.event);
        let place = if self.hashed.len() < limits::LINK_HASHES_MAX { self.hashed.len() } else { self.oldest };
        match self.hashed.get_mut(place) {
            Some(oldest) => {
                *oldest = hashed;
                self.oldest = (place + 1) % limits::LINK_HASHES_MAX;
            }
            None => self.hashed.push(hashed),
        }
        let Bucket { entries, next } = &mut self.buckets[bucket];
        entries[usize::from(*next)] = Entry { place: place as u16, tag };
        *next = (*next + 1) % BUCKET_ENTRIES as u8;
    }
}

/// A cause as the hash of its effect covers it.
#[derive(Debug, Clone)]
pub(crate) enum Cause {
    Known(EventId, EventHash),
    Local(EventId, EventType),
    /// Nothing but its id is remembered.
    Bare(EventId),
}

impl Cause {
    pub(crate) fn link(&self) -> CauseLink<'_> {
        match self {
            Self::Known(id, hash) => CauseLink::Known { id: *id, hash: *hash },
            Self::Local(id, event_type) => CauseLink::Local { id: *id, event_type: event_type.as_str() },
            Self::Bare(id) => CauseLink::Bare { id: *id },
        }
    }

    fn of(link: &CauseLink<'_>) -> Self {
        match link {
            CauseLink::Known { id, hash } => Self::Known(*id, *hash),
            CauseLink::Local { id, event_type } => Self::Local(*id, EventType::new(event_type)),
            other => Self::Bare(other.id()),
        }
    }
}

impl Hashes {
    pub(crate) fn of(&self, event: EventId) -> Option<EventHash> {
        lock(&self.0).of(event).map(|hashed| hashed.hash)
    }

    fn causes(&self, event: EventId) -> Option<Vec<Cause>> {
        lock(&self.0).of(event).map(|hashed| hashed.causes.to_vec())
    }

    /// A cause as an effect tells of it: by its hash where that is known, by its type where it stayed here.
    pub(crate) fn cause(&self, id: EventId, event_type: Option<&EventType>) -> Cause {
        match (self.of(id), event_type) {
            (Some(hash), _) => Cause::Known(id, hash),
            (None, Some(event_type)) => Cause::Local(id, event_type.clone()),
            (None, None) => Cause::Bare(id),
        }
    }

    /// Notes the hash of an event that has one. The first stays: an event never has two.
    pub(crate) fn note(&self, event: &WireEvent<'_>) {
        let Some(hash) = event.hash else { return };
        let causes = event.causes().map(Cause::of).collect();
        lock(&self.0).note(Hashed { event: event.id, hash, causes });
    }
}

impl Space {
    /// The hash of an event, over its content and its causes; the same that other processes compute for it.
    ///
    /// It is known for events that came over a link or left by one, and computed otherwise. A cause that never left this
    /// process is part of it by its id and type, which have to be remembered still.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unencodable`](crate::ErrorKind::Unencodable) when the payload has no bytes;
    /// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) when a cause is not remembered any more.
    ///
    /// # Cost
    ///
    /// Encodes the event; reads every remembered header once when it has causes whose hashes are not known.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Space};
    /// use std::sync::Mutex;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = Space::memory();
    /// let node = space.node("node");
    /// let seen = std::sync::Arc::new(Mutex::new(None));
    /// let keep = seen.clone();
    /// node.on("u64", move |event: &Event<u64>, _: &Context| *keep.lock().unwrap() = Some(event.clone()));
    /// space.start().await?;
    /// space.send(&node, 7u64).await?;
    ///
    /// let event = seen.lock().unwrap().take().unwrap();
    /// let hash = space.hash_of(&event)?;
    /// space.verify(&event, hash)?;
    /// let changed = Event::from_parts(event.envelope().clone(), 8u64);
    /// assert_eq!(space.verify(&changed, hash).unwrap_err().code(), "invalid");
    /// # Ok(())
    /// # }
    /// ```
    pub fn hash_of<T: Payload>(&self, event: &Event<T>) -> Result<EventHash> {
        match self.inner().hashes.of(event.id()) {
            Some(known) => Ok(known),
            None => self.inner().hash_anew(event, true),
        }
    }

    /// Checks that an event is the one that has this hash.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with a [`HashMismatch`] as its source when it is not; otherwise
    /// as [`Space::hash_of`].
    pub fn verify<T: Payload>(&self, event: &Event<T>, hash: EventHash) -> Result<()> {
        if self.inner().hash_anew(event, false)? == hash {
            return Ok(());
        }
        let mismatch = HashMismatch::Content { id: event.id() };
        Err(Error::new(happen_core::ErrorKind::Invalid { reason: mismatch.to_string() })
            .with_source(mismatch)
            .at_event(event.id()))
    }
}

impl SpaceInner {
    fn hash_anew(&self, event: &dyn ErasedEvent, note: bool) -> Result<EventHash> {
        let envelope = event.envelope();
        let mut payload = Vec::new();
        event.payload().encode(&mut payload)?;
        let names = self.names_in(envelope);
        let mut wire = WireEvent::from_envelope(envelope, &payload, |key| names.of(key))?;
        let causes = self.hashes.causes(envelope.id).map_or_else(|| self.causes_of(event), Ok)?;
        set_causes(&mut wire, &causes);
        let hash = hash_event(&wire);
        if note {
            wire.hash = Some(hash);
            self.hashes.note(&wire);
        }
        Ok(hash)
    }

    /// An event that came from outside a durable flow, as bytes: with what is known of its causes.
    pub(crate) fn framed_arrival(&self, event: &dyn ErasedEvent) -> Result<Framed> {
        self.framed(event, |single| {
            let envelope = single.envelope();
            if let Some(known) = self.hashes.causes(envelope.id) {
                return Ok(known);
            }
            // Most such events have no cause. The one of others is the flow that is sending just now, if it is known.
            let causes = envelope.causes().map(|id| {
                let event_type = current::with(|flow| {
                    let cause = flow?.inner().envelope();
                    (cause.id == id).then(|| cause.event_type.clone())
                });
                self.hashes.cause(id, event_type.as_ref())
            });
            Ok(causes.collect())
        })
    }

    /// The causes of an event that a durable flow sends, whose own events have these hashes.
    pub(crate) fn causes_in(&self, event: &dyn ErasedEvent, own: &[(EventId, EventHash)]) -> Vec<Cause> {
        let hash_of = |id| own.iter().find(|(own, _)| *own == id).map(|(_, hash)| *hash);
        let causes = event.envelope().causes().map(|id| match hash_of(id) {
            Some(hash) => Cause::Known(id, hash),
            None => self.hashes.cause(id, None),
        });
        causes.collect()
    }

    /// The causes of an event, with what is remembered of them.
    fn causes_of(&self, event: &dyn ErasedEvent) -> Result<Vec<Cause>> {
        let envelope = event.envelope();
        let mut remembered = None;
        let causes = envelope.causes().map(|id| {
            if let Some(hash) = self.hashes.of(id) {
                return Ok(Cause::Known(id, hash));
            }
            let remembered = remembered.get_or_insert_with(|| crate::trace::Remembered::read(self));
            let forgotten = || Error::misuse("a cause is not remembered any more").at_event(id);
            remembered.type_of(id).map(|event_type| Cause::Local(id, event_type)).ok_or_else(forgotten)
        });
        causes.collect()
    }
}

/// Says of each cause what is known of it.
pub(crate) fn set_causes<'a>(event: &mut WireEvent<'a>, causes: &'a [Cause]) {
    let mut links = causes.iter().map(Cause::link);
    event.cause = links.next();
    event.more_causes = links.collect();
}

#[cfg(test)]
mod tests {
    use happen_core::hash::digest;
    use happen_core::id::IdBlock;

    use super::*;

    fn noted(hashes: &Hashes, id: EventId, byte: u8) {
        let mut event = WireEvent::new(id, "e", 1, &[]);
        event.hash = Some([byte; 32].into());
        hashes.note(&event);
    }

    fn places(hashes: &Hashes) -> usize {
        lock(&hashes.0).hashed.len()
    }

    #[test]
    fn the_newest_hashes_are_kept_up_to_a_limit() {
        let hashes = Hashes::default();
        let mut block = IdBlock::new(7);
        let ids: Vec<_> = (0..limits::LINK_HASHES_MAX as u64 + 1)
            .map(|at| block.next_id(1_795_000_000_000 + at / 200))
            .collect();
        let (last, kept) = ids.split_last().unwrap();
        for id in kept {
            noted(&hashes, *id, 1);
        }
        // An event that is told twice keeps its first hash and its place.
        noted(&hashes, kept[1], 2);
        assert_eq!(places(&hashes), limits::LINK_HASHES_MAX);
        noted(&hashes, *last, 3);
        assert_eq!(places(&hashes), limits::LINK_HASHES_MAX);
        assert_eq!(hashes.of(kept[0]), None);
        assert_eq!(hashes.of(kept[1]), Some([1; 32].into()));
        assert_eq!(hashes.of(*last), Some([3; 32].into()));
        // What is long gone is not found by what is left of it.
        assert!(ids.iter().all(|id| hashes.of(EventId::derived(1, *id, 3, 9)).is_none()));
    }

    #[test]
    fn hardly_any_hash_is_forgotten_before_its_time() {
        let derived =
            |at: u64| EventId::derived(at / 50, EventId::MIN, at as u32 % 7, digest(&[&at.to_le_bytes()]));
        let mut blocks = [1u64, 1 << 41, 0x155_5555_5555].map(IdBlock::new);
        let mut of_blocks = |at: u64| blocks[at as usize % 3].next_id(1_795_000_000_000 + at / 3);
        for id in [&mut { derived } as &mut dyn FnMut(u64) -> EventId, &mut of_blocks] {
            let hashes = Hashes::default();
            let all: Vec<_> = (0..limits::LINK_HASHES_MAX as u64 * 4).map(id).collect();
            all.iter().for_each(|id| noted(&hashes, *id, 1));
            let newest = &all[all.len() - limits::LINK_HASHES_MAX..];
            let lost = newest.iter().filter(|id| hashes.of(**id).is_none()).count();
            assert!(
                lost * 100 < limits::LINK_HASHES_MAX,
                "{lost} of {} are forgotten",
                limits::LINK_HASHES_MAX
            );
            let (_, half) = newest.split_at(newest.len() / 2);
            assert!(half.iter().all(|id| hashes.of(*id).is_some()), "one of the newest is forgotten");
        }
    }
}
