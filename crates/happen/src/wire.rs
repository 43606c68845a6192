//! Events as the bytes that leave the process or are kept, and back. Owns what is encoded and hashed with what; does not
//! know where the bytes go.

use std::borrow::Cow;
use std::sync::Arc;

use happen_core::codec::{self, WireEvent, WireParcel};
use happen_core::event::Purpose;
use happen_core::hash::{EventHash, hash_event};
use happen_core::payload::Dynamic;
use happen_core::{Batch, ErasedEvent, Error, ErrorKind, Event, EventId, EventType, NodeKey, Result};

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
}

impl SpaceInner {
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
        let mut note = |wire: &WireEvent<'_>| {
            self.hashes.note(wire);
            wire.hash.into_iter().for_each(|hash| hashed(wire.id, hash));
        };
        let singles = || (0..event.len()).filter_map(|index| event.single(index));
        if let (false, Some(single)) = (event.is_batch(), event.single(0)) {
            let (payload, causes) = (payload_of(single)?, causes(single)?);
            let wire = self.wire_of(single, sent, &payload, &causes)?;
            let mut frame = Vec::with_capacity(payload.len() + ENVELOPE_BYTES);
            wire.encode_into(&mut frame, bytes_max)?;
            note(&wire);
            return Ok(frame);
        }
        let parts: Vec<_> =
            singles().map(|single| Ok((payload_of(single)?, causes(single)?))).collect::<Result<_>>()?;
        let wires = singles().zip(&parts);
        let wires: Vec<_> = wires
            .map(|(single, (payload, causes))| self.wire_of(single, sent, payload, causes))
            .collect::<Result<_>>()?;
        let bytes: usize = parts.iter().map(|(payload, _)| payload.len() + ENVELOPE_BYTES).sum();
        let mut frame = Vec::with_capacity(bytes);
        codec::encode_batch_into(&wires, &mut frame, bytes_max)?;
        wires.iter().for_each(note);
        Ok(frame)
    }

    fn wire_of<'a>(
        &self,
        event: &'a dyn ErasedEvent,
        sent: Sent<'a>,
        payload: &'a [u8],
        causes: &'a [Cause],
    ) -> Result<WireEvent<'a>> {
        let name =
            |key: NodeKey| self.name_of(key).map_or(Cow::Borrowed(""), |name| Cow::Owned(name.to_string()));
        let mut wire = WireEvent::from_envelope(event.envelope(), payload, name)?;
        set_causes(&mut wire, causes);
        wire.purpose = sent.purpose.unwrap_or(wire.purpose);
        wire.key = sent.key.map(Cow::Borrowed);
        wire.hash = Some(hash_event(&wire));
        Ok(wire)
    }

    /// The event or the batch in a parcel. Payloads stay bytes until somebody asks for more.
    ///
    /// # Errors
    ///
    /// When its metadata have no form in JSON.
    pub(crate) fn event_in(&self, parcel: &WireParcel<'_>) -> Result<Arc<dyn ErasedEvent>> {
        let events = parcel.events().iter().map(|event| self.event_of(event)).collect::<Result<Vec<_>>>()?;
        if let WireParcel::Batch(_) = parcel {
            let batch = Batch::new(events).ok_or_else(|| unreadable("batch"))?;
            return Ok(Arc::new(batch));
        }
        let event = events.into_iter().next().ok_or_else(|| unreadable("event"))?;
        Ok(Arc::new(event))
    }

    fn event_of(&self, event: &WireEvent<'_>) -> Result<Event> {
        let event_type = EventType::new(&event.event_type);
        let envelope = event.to_envelope(event_type.clone(), |name| self.key_of(name))?;
        Ok(Event::from_parts(envelope, Dynamic::from_bytes(event_type, event.payload.into())))
    }
}

fn payload_of(event: &dyn ErasedEvent) -> Result<Vec<u8>> {
    let mut payload = Vec::with_capacity(PAYLOAD_BYTES);
    event.payload().encode(&mut payload)?;
    Ok(payload)
}

#[cold]
fn unreadable(wanted: &str) -> Error {
    Error::new(ErrorKind::Undecodable { wanted: wanted.to_owned() })
}

/// Bytes that most payloads take, and the envelope around one, so that buffers rarely grow.
const PAYLOAD_BYTES: usize = 256;
const ENVELOPE_BYTES: usize = 256;
