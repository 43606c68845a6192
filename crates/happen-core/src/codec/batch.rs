//! The wire form of several events that are sent at once. Owns the frame around them; does not know their fields.

use crate::codec::event::WireEvent;
use crate::codec::frame::{
    FORMAT_VERSION, FrameError, FrameProblem, read_list, read_version, undecodable, within,
};
use crate::codec::msgpack::{Head, Reader, put_bin, put_head};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::BATCH_EVENTS_MAX;

/// What one frame to a node carries: an event, or several that were sent at once.
///
/// # Examples
///
/// ```
/// use happen_core::codec::{WireEvent, WireParcel, encode_batch_into};
/// use happen_core::limits::EVENT_BYTES_MAX;
///
/// let id = "0197a5d0-7c00-7000-8000-000000000001".parse()?;
/// let event = WireEvent::new(id, "order.created", 1_750_000_000_000, &[7]);
/// let mut bytes = Vec::new();
/// encode_batch_into(&[event.clone(), event], &mut bytes, EVENT_BYTES_MAX)?;
/// let WireParcel::Batch(events) = WireParcel::decode(&bytes, EVENT_BYTES_MAX)? else { panic!() };
/// assert_eq!(events.len(), 2);
/// # Ok::<(), happen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum WireParcel<'a> {
    /// One event.
    One(Box<WireEvent<'a>>),
    /// Several; never none.
    Batch(Vec<WireEvent<'a>>),
}

impl<'a> WireParcel<'a> {
    /// The event or events in these bytes.
    ///
    /// # Errors
    ///
    /// As [`WireEvent::decode`].
    pub fn decode(bytes: &'a [u8], bytes_max: usize) -> Result<Self> {
        within(bytes.len(), bytes_max)?;
        // An event has a map after the version, a batch an array.
        let mut reader = Reader::new(bytes);
        let head = read_version(&mut reader).and_then(|()| reader.peek());
        let Ok(Head::Array(_)) = head else {
            return WireEvent::decode(bytes, bytes_max).map(|event| Self::One(Box::new(event)));
        };
        let at = reader.at();
        let parts = read_list(&mut reader, BATCH_EVENTS_MAX, Reader::bin)
            .and_then(|parts| reader.end().map(|()| parts))
            .and_then(|parts| match parts.is_empty() {
                true => Err(FrameError::new(FrameProblem::Missing, at)),
                false => Ok(parts),
            })
            .map_err(|error| undecodable("batch", error))?;
        let events = parts.into_iter().map(|part| WireEvent::decode(part, bytes_max));
        events.collect::<Result<_>>().map(Self::Batch)
    }

    /// The events.
    #[must_use]
    pub fn events(&self) -> &[WireEvent<'a>] {
        match self {
            Self::One(event) => std::slice::from_ref(event),
            Self::Batch(events) => events,
        }
    }

    /// The first event, to be changed.
    #[must_use]
    pub fn first_mut(&mut self) -> Option<&mut WireEvent<'a>> {
        match self {
            Self::One(event) => Some(event),
            Self::Batch(events) => events.first_mut(),
        }
    }

    /// Appends the bytes of the frame; nothing is appended when it is refused.
    ///
    /// # Errors
    ///
    /// As [`encode_batch_into`].
    pub fn encode_into(&self, out: &mut Vec<u8>, bytes_max: usize) -> Result<()> {
        match self {
            Self::One(event) => event.encode_into(out, bytes_max),
            Self::Batch(events) => encode_batch_into(events, out, bytes_max),
        }
    }
}

/// Appends the bytes of a frame with these events; nothing is appended when it is refused.
///
/// # Errors
///
/// As [`WireEvent::encode_into`], the limit being that of the whole frame; and
/// [`ErrorKind::Unencodable`] when there are no events or more than [`BATCH_EVENTS_MAX`].
pub fn encode_batch_into(events: &[WireEvent<'_>], out: &mut Vec<u8>, bytes_max: usize) -> Result<()> {
    if events.is_empty() || events.len() > BATCH_EVENTS_MAX {
        let problem = FrameProblem::OverLimit { found: events.len(), max: BATCH_EVENTS_MAX };
        let event_type = events.first().map_or_else(String::new, |event| event.event_type.to_string());
        return Err(
            Error::new(ErrorKind::Unencodable { event_type }).with_source(FrameError::new(problem, 0))
        );
    }
    let start = out.len();
    let mut write = || {
        out.push(FORMAT_VERSION);
        put_head(out, Head::Array(events.len()));
        let mut part = Vec::new();
        for event in events {
            part.clear();
            event.encode_into(&mut part, bytes_max)?;
            put_bin(out, &part);
            // Checked as it grows, so that what is refused was never much larger than the limit.
            within(out.len() - start, bytes_max)?;
        }
        Ok(())
    };
    let written = write();
    written.inspect_err(|_| out.truncate(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EventId;

    fn event(number: u64) -> WireEvent<'static> {
        WireEvent::new(EventId::from_halves(7, number).unwrap(), "e", 1, &[1, 2, 3])
    }

    fn frame(events: usize, bytes_max: usize) -> Result<Vec<u8>> {
        let events: Vec<_> = (0..events as u64).map(event).collect();
        let mut out = b"before".to_vec();
        let result = encode_batch_into(&events, &mut out, bytes_max);
        match result {
            Ok(()) => Ok(out.split_off(6)),
            Err(error) => {
                assert_eq!(out, b"before");
                Err(error)
            }
        }
    }

    #[test]
    fn a_batch_comes_back_in_order() {
        let bytes = frame(40, 1 << 20).unwrap();
        let parcel = WireParcel::decode(&bytes, 1 << 20).unwrap();
        assert_eq!(parcel.events(), (0..40).map(event).collect::<Vec<_>>());
        let mut one = Vec::new();
        event(9).encode_into(&mut one, 1 << 20).unwrap();
        assert_eq!(WireParcel::decode(&one, 1 << 20).unwrap().events(), [event(9)]);
    }

    #[test]
    fn limits_hold_for_the_whole_frame() {
        let bytes = frame(3, 1 << 20).unwrap().len();
        assert!(frame(3, bytes).is_ok());
        assert_eq!(frame(3, bytes - 1).unwrap_err().code(), "oversized");
        assert_eq!(frame(0, 1 << 20).unwrap_err().code(), "unencodable");
        assert!(frame(BATCH_EVENTS_MAX, 1 << 20).is_ok());
        assert_eq!(frame(BATCH_EVENTS_MAX + 1, 1 << 20).unwrap_err().code(), "unencodable");
    }

    #[test]
    fn bytes_that_are_no_batch_are_told_apart() {
        let whole = frame(2, 1 << 20).unwrap();
        for len in 0..whole.len() {
            assert_eq!(
                WireParcel::decode(&whole[..len], 1 << 20).unwrap_err().code(),
                "undecodable",
                "{len}"
            );
        }
        for bytes in
            [&[FORMAT_VERSION, 0x90][..], &[FORMAT_VERSION, 0x91, 0xc4, 0], &[FORMAT_VERSION, 0x91, 7]]
        {
            assert_eq!(WireParcel::decode(bytes, 1 << 20).unwrap_err().code(), "undecodable", "{bytes:?}");
        }
    }
}
