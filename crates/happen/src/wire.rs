//! Events as the bytes that leave the process or are kept, and back. Owns what is encoded and hashed with what; does not
//! know where the bytes go.

use std::borrow::Cow;
use std::sync::Arc;

use happen_core::codec::{self, SUM_BYTES, WireEvent, WireParcel};
use happen_core::event::{Envelope, PATH_HOPS_MAX, Purpose};
use happen_core::hash::{EventHash, hash_event};
use happen_core::payload::Dynamic;
use happen_core::{Batch, ErasedEvent, Error, ErrorKind, Event, EventId, EventType, NodeKey, Result};

use crate::limits;
use crate::link::{Cause, set_causes};
use crate::space::SpaceInner;

/// An event, or a batch, as bytes, with the hashes that stand in them.
#[derive(Debug, Clone)]
pub(crate) struct Framed {
    pub(crate) frame: Vec<u8>,
    pub(crate) hashes: Vec<(EventId, EventHash)>,
}

/// What is said of an event beside itself when it is sent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent<'s> {
    /// Another purpose than the one that it was made for.
    pub(crate) purpose: Option<Purpose>,
    /// The key by which it is known when it is sent once more.
    pub(crate) key: Option<&'s str>,
    /// Whether it has a sum in front; then an event that is stamped now has no hash, which is computed by whoever asks for
    /// it.
    pub(crate) summed: bool,
}

impl Sent<'_> {
    /// Appends what `write` appends, with its sum in front if it has one.
    ///
    /// # Errors
    ///
    /// That of `write`.
    pub(crate) fn encode(
        self,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        if self.summed { codec::encode_summed(out, write) } else { write(out) }
    }

    const fn bytes_in_front(self) -> usize {
        if self.summed { SUM_BYTES } else { 0 }
    }

    /// Checks that a frame of so many events is no larger than the limit when it is stored where it arrives.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Oversized`].
    fn check_storable(self, frame: &[u8], events: usize, bytes_max: usize) -> Result<()> {
        let hashes = if self.summed { events * limits::HASH_BYTES } else { 0 };
        let bytes = frame.len() - self.bytes_in_front() + hashes;
        if bytes > bytes_max {
            return Err(Error::new(ErrorKind::Oversized { bytes, bytes_max }));
        }
        Ok(())
    }
}

/// The names of the nodes that an envelope tells of, each looked up once, for as long as the envelope is encoded.
pub(crate) struct NodeNames {
    /// Most envelopes tell of one node in all places.
    names: [Option<(NodeKey, Arc<str>)>; 2 + PATH_HOPS_MAX],
}

impl NodeNames {
    /// The name of a node of the envelope; none for one that is not known, or of no envelope at all.
    pub(crate) fn of(&self, key: NodeKey) -> Cow<'_, str> {
        let known = self.names.iter().map_while(Option::as_ref).find(|(known, _)| *known == key);
        known.map_or(Cow::Borrowed(""), |(_, name)| Cow::Borrowed(name))
    }
}

impl SpaceInner {
    pub(crate) fn names_in(&self, envelope: &Envelope) -> NodeNames {
        let mut names = [const { None }; 2 + PATH_HOPS_MAX];
        let mut len = 0;
        for key in [envelope.sender, envelope.origin].into_iter().chain(envelope.path.hops()) {
            let is_known = names.iter().map_while(Option::as_ref).any(|(known, _)| *known == key);
            if !is_known
                && key != NodeKey::default()
                && let Some(name) = self.name_of(key)
            {
                names[len] = Some((key, name));
                len += 1;
            }
        }
        NodeNames { names }
    }

    /// Encodes an event or a batch, with hashes over what it says of its causes.
    ///
    /// # Errors
    ///
    /// When a payload or its metadata cannot be encoded, when it is too large, and what `causes` gives.
    pub(crate) fn framed(
        &self,
        event: &dyn ErasedEvent,
        causes: impl Fn(&dyn ErasedEvent) -> Result<Vec<Cause>>,
    ) -> Result<Framed> {
        let mut hashes = Vec::with_capacity(event.len());
        let frame = self.frame_for(event, Sent::default(), causes, |id, hash| hashes.push((id, hash)))?;
        Ok(Framed { frame, hashes })
    }

    /// The same, as it is sent; whoever needs the hashes is told them.
    ///
    /// # Errors
    ///
    /// As [`SpaceInner::framed`].
    pub(crate) fn frame_for(
        &self,
        event: &dyn ErasedEvent,
        sent: Sent<'_>,
        causes: impl Fn(&dyn ErasedEvent) -> Result<Vec<Cause>>,
        mut hashed: impl FnMut(EventId, EventHash),
    ) -> Result<Vec<u8>> {
        let bytes_max = self.config.event_bytes_max;
        let mut note = |wire: &WireEvent<'_>, frame: Option<&[u8]>| {
            self.hashes.note(wire, frame);
            wire.hash.into_iter().for_each(|hash| hashed(wire.id, hash));
        };
        let singles = || (0..event.len()).filter_map(|index| event.single(index));
        if let (false, Some(single)) = (event.is_batch(), event.single(0)) {
            let part = self.part_of(single, &causes)?;
            let wire = wire_of(single, sent, &part)?;
            let mut frame = Vec::with_capacity(part.payload.len() + ENVELOPE_BYTES);
            sent.encode(&mut frame, |out| wire.encode_into(out, bytes_max))?;
            sent.check_storable(&frame, 1, bytes_max)?;
            note(&wire, Some(&frame[sent.bytes_in_front()..]));
            return Ok(frame);
        }
        let parts: Vec<_> = singles().map(|single| self.part_of(single, &causes)).collect::<Result<_>>()?;
        let wires = singles().zip(&parts);
        let wires: Vec<_> = wires.map(|(single, part)| wire_of(single, sent, part)).collect::<Result<_>>()?;
        let bytes: usize = parts.iter().map(|part| part.payload.len() + ENVELOPE_BYTES).sum();
        let mut frame = Vec::with_capacity(bytes);
        sent.encode(&mut frame, |out| codec::encode_batch_into(&wires, out, bytes_max))?;
        sent.check_storable(&frame, wires.len(), bytes_max)?;
        wires.iter().for_each(|wire| note(wire, None));
        Ok(frame)
    }

    fn part_of(
        &self,
        event: &dyn ErasedEvent,
        causes: impl Fn(&dyn ErasedEvent) -> Result<Vec<Cause>>,
    ) -> Result<Part> {
        let mut payload = Vec::with_capacity(PAYLOAD_BYTES);
        event.payload().encode(&mut payload)?;
        Ok(Part { payload, causes: causes(event)?, names: self.names_in(event.envelope()) })
    }

    /// The event or the batch in a parcel. Payloads stay bytes until somebody asks for more.
    ///
    /// # Errors
    ///
    /// When its metadata have no form in JSON.
    pub(crate) fn event_in(&self, parcel: &WireParcel<'_>) -> Result<Arc<dyn ErasedEvent>> {
        let events = match parcel {
            WireParcel::Batch(events) => events.iter().map(|event| self.event_of(event)),
            parcel => {
                let event = parcel.events().first().ok_or_else(|| unreadable("event"))?;
                return Ok(Arc::new(self.event_of(event)?));
            }
        };
        let batch = Batch::new(events.collect::<Result<_>>()?).ok_or_else(|| unreadable("batch"))?;
        Ok(Arc::new(batch))
    }

    fn event_of(&self, event: &WireEvent<'_>) -> Result<Event> {
        let event_type = EventType::new(&event.event_type);
        let envelope = event.to_envelope(event_type.clone(), |name| self.key_of(name))?;
        Ok(Event::from_parts(envelope, Dynamic::from_bytes(event_type, event.payload.into())))
    }
}

/// What an event is encoded with beside its envelope.
struct Part {
    payload: Vec<u8>,
    causes: Vec<Cause>,
    names: NodeNames,
}

fn wire_of<'a>(event: &'a dyn ErasedEvent, sent: Sent<'a>, part: &'a Part) -> Result<WireEvent<'a>> {
    let mut wire = WireEvent::from_envelope(event.envelope(), &part.payload, |key| part.names.of(key))?;
    set_causes(&mut wire, &part.causes);
    wire.purpose = sent.purpose.unwrap_or(wire.purpose);
    wire.key = sent.key.map(Cow::Borrowed);
    wire.hash = (!sent.summed).then(|| hash_event(&wire));
    Ok(wire)
}

#[cold]
fn unreadable(wanted: &str) -> Error {
    Error::new(ErrorKind::Undecodable { wanted: wanted.to_owned() })
}

/// Bytes that most payloads take, and the envelope around one, so that buffers rarely grow.
const PAYLOAD_BYTES: usize = 256;
const ENVELOPE_BYTES: usize = 256;
