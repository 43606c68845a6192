//! The events that left this process, came into it, or whose hashes were asked for. Owns the bounded memory that lets an
//! effect tell the hash of its cause, and when a hash is computed: most events have no effect that leaves, and a hash takes
//! longer than all else that is done for an event on its way.

use happen_core::codec::{CauseLink, WireEvent};
use happen_core::hash::{EventHash, HashMismatch, hash_event};
use happen_core::{ErasedEvent, Error, Event, EventId, EventType, Payload, Result};

use crate::current;
use crate::limits;
use crate::link::frames::{Frames, Kept};
use crate::space::{Space, SpaceInner};
use crate::sync::{Mutex, lock};
use crate::wire::Framed;

/// Hashes by event, or what they are computed over; of the newest events up to a limit.
#[derive(Debug, Default)]
pub(crate) struct Hashes(Mutex<Noted>);

/// Written one behind the other, and around: what is new replaces what is oldest, and nothing is moved or freed.
///
/// Every event that leaves or comes is noted, and few are looked for. So the index has nothing that had to be kept up when
/// an event is replaced: an entry that leads to another event by now is passed over, and gives way to newer ones.
#[derive(Debug)]
struct Noted {
    events: Vec<Known>,
    /// Where the oldest stands once all places are taken.
    oldest: usize,
    /// By the ids of the events; none before the first.
    buckets: Vec<Bucket>,
    frames: Frames,
    /// Where a frame is written that nobody has given.
    written: Vec<u8>,
}

impl Default for Noted {
    fn default() -> Self {
        let frames = Frames::new(limits::LINK_FRAMES_KEPT_BYTES_MAX);
        Self { events: Vec::new(), oldest: 0, buckets: Vec::new(), frames, written: Vec::new() }
    }
}

/// An event, as its frame until its hash is asked for.
#[derive(Debug)]
struct Known {
    event: EventId,
    frame: Kept,
    hashed: Option<Box<Hashed>>,
}

/// A hash, and what it was computed over beside the event itself.
#[derive(Debug)]
struct Hashed {
    hash: EventHash,
    causes: Box<[Cause]>,
}

impl Hashed {
    fn of(event: &WireEvent<'_>) -> Box<Self> {
        let hash = event.hash.unwrap_or_else(|| hash_event(event));
        Box::new(Self { hash, causes: event.causes().map(Cause::of).collect() })
    }
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
    fn place(&self, event: EventId) -> Option<usize> {
        let (bucket, tag) = place_of(event);
        let mut found = self.buckets.get(bucket)?.entries.iter().filter(|entry| entry.tag == tag);
        let is_it = |place: &usize| self.events.get(*place).is_some_and(|known| known.event == event);
        found.find_map(|entry| Some(usize::from(entry.place)).filter(is_it))
    }

    fn of(&mut self, event: EventId) -> Option<&Hashed> {
        let place = self.place(event)?;
        if self.events[place].hashed.is_none() {
            let hashed = Hashed::of(&self.read(place)?);
            self.events[place].hashed = Some(hashed);
        }
        self.events[place].hashed.as_deref()
    }

    /// The causes alone: whoever stores the event hashes it once more.
    fn causes(&self, event: EventId) -> Option<Vec<Cause>> {
        let place = self.place(event)?;
        match &self.events[place].hashed {
            Some(hashed) => Some(hashed.causes.to_vec()),
            None => Some(self.read(place)?.causes().map(Cause::of).collect()),
        }
    }

    /// An event as its frame tells, which it was read from or written to.
    fn read(&self, place: usize) -> Option<WireEvent<'_>> {
        WireEvent::decode(self.frames.of(self.events[place].frame)?, usize::MAX).ok()
    }

    fn note(&mut self, event: &WireEvent<'_>, frame: Option<&[u8]>) {
        let noted = self.place(event.id);
        if noted.is_some_and(|place| self.is_known(&self.events[place])) {
            return;
        }
        let known = self.known(event, frame);
        if let Some(place) = noted {
            self.events[place] = known;
            return;
        }
        if self.buckets.is_empty() {
            self.buckets = vec![Bucket::default(); BUCKETS];
        }
        let (bucket, tag) = place_of(event.id);
        let place = if self.events.len() < limits::LINK_HASHES_MAX { self.events.len() } else { self.oldest };
        match self.events.get_mut(place) {
            Some(oldest) => {
                *oldest = known;
                self.oldest = (place + 1) % limits::LINK_HASHES_MAX;
            }
            None => self.events.push(known),
        }
        let Bucket { entries, next } = &mut self.buckets[bucket];
        entries[usize::from(*next)] = Entry { place: place as u16, tag };
        *next = (*next + 1) % BUCKET_ENTRIES as u8;
    }

    /// Whether there is something yet that tells the hash: a frame gives way to newer ones before its event does, when many
    /// are large.
    fn is_known(&self, known: &Known) -> bool {
        known.hashed.is_some() || self.frames.of(known.frame).is_some()
    }

    fn known(&mut self, event: &WireEvent<'_>, frame: Option<&[u8]>) -> Known {
        let known = |frame, hashed| Known { event: event.id, frame, hashed };
        let bytes_max = limits::LINK_FRAME_KEPT_BYTES_MAX;
        let frame = match frame {
            Some(frame) => Some(frame).filter(|frame| frame.len() <= bytes_max),
            None if event.hash.is_some() => None,
            None => {
                self.written.clear();
                event.encode_into(&mut self.written, bytes_max).is_ok().then_some(&*self.written)
            }
        };
        match frame {
            Some(frame) => known(self.frames.keep(frame), None),
            None => known(Kept::default(), Some(Hashed::of(event))),
        }
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

    /// The causes of an event as it told of them first.
    pub(super) fn causes(&self, event: EventId) -> Option<Vec<Cause>> {
        lock(&self.0).causes(event)
    }

    /// A cause as an effect tells of it: by its hash where that is known, by its type where it stayed here.
    pub(crate) fn cause(&self, id: EventId, event_type: Option<&EventType>) -> Cause {
        match (self.of(id), event_type) {
            (Some(hash), _) => Cause::Known(id, hash),
            (None, Some(event_type)) => Cause::Local(id, event_type.clone()),
            (None, None) => Cause::Bare(id),
        }
    }

    /// Notes an event, and by its hash or its bytes what effects have to tell of it. The first counts as long as it is
    /// known: an event never has two. Whoever has its bytes at hand gives them.
    pub(crate) fn note(&self, event: &WireEvent<'_>, frame: Option<&[u8]>) {
        lock(&self.0).note(event, frame);
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
            self.hashes.note(&wire, None);
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
        hashes.note(&event, None);
    }

    fn places(hashes: &Hashes) -> usize {
        lock(&hashes.0).events.len()
    }

    /// An event with causes of all kinds, and its frame, of so many bytes.
    fn caused(causes: &[Cause], frame_bytes: usize) -> (WireEvent<'_>, Vec<u8>) {
        let id = EventId::from_halves(1, 9).unwrap();
        let of = |payload_bytes| {
            let mut event = WireEvent::new(id, "effect", 1, &[7; 2_048][..payload_bytes]);
            set_causes(&mut event, causes);
            let mut frame = Vec::new();
            event.encode_into(&mut frame, usize::MAX).unwrap();
            (event, frame)
        };
        let around = of(300).1.len() - 300;
        let (event, frame) = of(frame_bytes - around);
        assert_eq!(frame.len(), frame_bytes);
        (event, frame)
    }

    #[test]
    fn a_hash_that_is_asked_for_later_is_the_one_that_it_had_at_once() {
        let id = |low| EventId::from_halves(1, low).unwrap();
        let causes = [
            Cause::Known(id(1), EventHash::from([1; 32])),
            Cause::Local(id(2), EventType::new("order.placed")),
            Cause::Bare(id(3)),
        ];
        let max = limits::LINK_FRAME_KEPT_BYTES_MAX;
        for (frame_bytes, is_kept) in [(500, true), (max, true), (max + 1, false)] {
            let (event, frame) = caused(&causes, frame_bytes);
            for given in [Some(&frame[..]), None] {
                let hashes = Hashes::default();
                hashes.note(&event, given);
                assert_eq!(lock(&hashes.0).events[0].hashed.is_none(), is_kept, "{frame_bytes} bytes");
                let told = hashes.causes(event.id).unwrap();
                assert_eq!(format!("{told:?}"), format!("{causes:?}"));
                assert_eq!(hashes.of(event.id), Some(hash_event(&event)));
            }
        }
    }

    #[test]
    fn an_event_in_the_place_of_another_has_nothing_of_it() {
        let hashes = Hashes::default();
        let ids: Vec<_> = (1..=limits::LINK_HASHES_MAX as u64 + 3)
            .map(|low| EventId::from_halves(1, low).unwrap())
            .collect();
        let (all, late) = ids.split_at(limits::LINK_HASHES_MAX);
        let events = |id: EventId, payload| WireEvent::new(id, "e", 1, payload);
        for (at, id) in all.iter().enumerate() {
            // Some have their hashes from the beginning, some when they are asked for, and some never.
            let mut event = events(*id, &[1; 100]);
            event.hash = (at == 1).then(|| hash_event(&event));
            hashes.note(&event, None);
        }
        assert!(hashes.of(all[0]).is_some());
        for id in late {
            hashes.note(&events(*id, &[2]), None);
        }
        for id in late {
            assert_eq!(hashes.of(*id), Some(hash_event(&events(*id, &[2]))));
        }
        assert!(all[..3].iter().all(|id| hashes.of(*id).is_none()));
    }

    #[test]
    fn an_event_whose_frame_is_gone_is_noted_like_a_new_one() {
        let hashes = Hashes::default();
        let id = |low| EventId::from_halves(1, low).unwrap();
        let (frame, payload) = ([0; limits::LINK_FRAME_KEPT_BYTES_MAX], [1]);
        let mut event = WireEvent::new(id(1), "e", 1, &payload);
        hashes.note(&event, None);
        let others = limits::LINK_FRAMES_KEPT_BYTES_MAX / frame.len();
        for low in 0..others as u64 {
            hashes.note(&WireEvent::new(id(2 + low), "e", 1, &[]), Some(&frame));
        }
        assert_eq!((hashes.of(event.id), places(&hashes)), (None, others + 1));
        event.hash = Some(hash_event(&event));
        hashes.note(&event, None);
        assert_eq!((hashes.of(event.id), places(&hashes)), (event.hash, others + 1));
        // That one counts from now on.
        hashes.note(&WireEvent::new(event.id, "other", 1, &[]), None);
        assert_eq!(hashes.of(event.id), event.hash);
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
