//! The hashes of events that left this process, came into it, or were asked for. Owns the bounded memory that lets an
//! effect tell the hash of its cause.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

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
#[derive(Debug, Default)]
struct Noted {
    by_event: HashMap<EventId, u32>,
    hashed: Vec<Hashed>,
    /// Where the oldest stands once all places are taken.
    oldest: usize,
}

/// A hash, and what it was computed over beside the event itself.
#[derive(Debug)]
struct Hashed {
    event: EventId,
    hash: EventHash,
    causes: Box<[Cause]>,
}

impl Noted {
    fn of(&self, event: EventId) -> Option<&Hashed> {
        self.hashed.get(*self.by_event.get(&event)? as usize)
    }

    fn note(&mut self, hashed: Hashed) {
        let place = if self.hashed.len() < limits::LINK_HASHES_MAX { self.hashed.len() } else { self.oldest };
        match self.by_event.entry(hashed.event) {
            Entry::Occupied(_) => return,
            Entry::Vacant(vacant) => vacant.insert(place as u32),
        };
        match self.hashed.get_mut(place) {
            Some(oldest) => {
                self.by_event.remove(&std::mem::replace(oldest, hashed).event);
                self.oldest = (place + 1) % limits::LINK_HASHES_MAX;
            }
            None => self.hashed.push(hashed),
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
        let name = |key| self.name_of(key).map_or(Cow::Borrowed(""), |name| Cow::Owned(name.to_string()));
        let mut wire = WireEvent::from_envelope(envelope, &payload, name)?;
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
    use super::*;

    #[test]
    fn the_newest_hashes_are_kept_up_to_a_limit() {
        let hashes = Hashes::default();
        let id = |number| EventId::from_halves(1, number).unwrap();
        let note = |number: u64, byte: u8| {
            let mut event = WireEvent::new(id(number), "e", 1, &[]);
            event.hash = Some([byte; 32].into());
            hashes.note(&event);
        };
        for number in 0..limits::LINK_HASHES_MAX as u64 {
            note(number, 1);
        }
        // An event that is told twice keeps its first hash and its place.
        note(0, 2);
        assert_eq!(hashes.of(id(0)), Some([1; 32].into()));
        note(u64::MAX, 3);
        assert_eq!(hashes.of(id(0)), None);
        assert_eq!(hashes.of(id(1)), Some([1; 32].into()));
        assert_eq!(hashes.of(id(u64::MAX)), Some([3; 32].into()));
        let noted = lock(&hashes.0);
        assert_eq!(
            (noted.by_event.len(), noted.hashed.len()),
            (limits::LINK_HASHES_MAX, limits::LINK_HASHES_MAX)
        );
    }
}
