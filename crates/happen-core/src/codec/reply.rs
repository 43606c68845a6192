//! The wire form of what goes back to a sender. Owns which fields a reply has; does not know how replies find their way.

use std::borrow::Cow;

use crate::codec::failure::WireError;
use crate::codec::frame::{
    FieldWriter, FrameError, FrameProblem, UnknownField, fields, keep_unknown, read_list, read_version,
    undecodable, within,
};
use crate::codec::msgpack::{Head, Reader, put_bin, put_head};
use crate::error::Result;
use crate::id::EventId;
use crate::limits::ERROR_LINES_MAX;

/// One answer to an event: its final value, its failure, or an item of its stream.
///
/// # Examples
///
/// ```
/// use happen_core::codec::{Outcome, WireError, WireReply};
/// use happen_core::limits::EVENT_BYTES_MAX;
/// use happen_core::{Error, ErrorKind};
///
/// let to = "0197a5d0-7c00-7000-8000-000000000001".parse()?;
/// let error = Error::new(ErrorKind::Busy { what: "queue of node `orders`".to_owned() }).at_node("orders");
/// let reply = WireReply::new(to, Outcome::Error(WireError::of(&error)));
///
/// let mut bytes = Vec::new();
/// reply.encode_into(&mut bytes, EVENT_BYTES_MAX)?;
/// let Outcome::Error(told) = WireReply::decode(&bytes, EVENT_BYTES_MAX)?.outcome else { panic!() };
/// let again = told.to_error();
/// assert_eq!(again.kind(), error.kind());
/// assert_eq!(again.node_id(), Some("orders"));
/// # Ok::<(), happen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WireReply<'a> {
    /// The event that is answered.
    pub to: EventId,
    /// The number of items of its stream that were sent before this reply: an item's own number, and with the final
    /// outcome how many there were.
    pub sequence: u64,
    /// The answer.
    pub outcome: Outcome<'a>,
    /// The event that came first under the key of the one that is answered, when that is another one: the outcome is its.
    pub first: Option<EventId>,
    /// Fields of later versions, in the order they came in.
    pub unknown: Vec<UnknownField<'a>>,
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome<'a> {
    /// The flow ended with a value.
    Value {
        /// The name of its type.
        event_type: Cow<'a, str>,
        /// Its bytes in MessagePack.
        bytes: &'a [u8],
    },
    /// The flow ended without a value.
    End,
    /// It failed.
    Error(WireError<'a>),
    /// An item of the stream; more replies follow.
    Item {
        /// The name of its type.
        event_type: Cow<'a, str>,
        /// Its bytes in MessagePack.
        bytes: &'a [u8],
    },
}

fields! {
    To = "to", Is = "is", Sequence = "seq", Type = "type", Code = "code", With = "with", Retry = "retry",
    Text = "text", Context = "context", Causes = "causes", Node = "node", Event = "event", First = "first",
}

type Read<T> = std::result::Result<T, FrameError>;

impl<'a> WireReply<'a> {
    /// The reply to this event with this outcome, the first of its replies.
    #[must_use]
    pub const fn new(to: EventId, outcome: Outcome<'a>) -> Self {
        Self { to, sequence: 0, outcome, first: None, unknown: Vec::new() }
    }

    /// Appends the reply's bytes; nothing is appended when it is refused.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Oversized`](crate::ErrorKind::Oversized) when it has more than `bytes_max` bytes.
    pub fn encode_into(&self, out: &mut Vec<u8>, bytes_max: usize) -> Result<()> {
        within(self.payload().len(), bytes_max)?;
        let start = out.len();
        self.write(out);
        let bytes = out.len() - start;
        within(bytes, bytes_max).inspect_err(|_| out.truncate(start))
    }

    /// The reply in these bytes, all of which belong to it.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Oversized`](crate::ErrorKind::Oversized) when there are more than `bytes_max` bytes.
    /// - [`ErrorKind::Undecodable`](crate::ErrorKind::Undecodable) when they are no reply of this version; the source is
    ///   a [`FrameError`].
    pub fn decode(bytes: &'a [u8], bytes_max: usize) -> Result<Self> {
        within(bytes.len(), bytes_max)?;
        Self::read(bytes).map_err(|error| undecodable("reply", error))
    }

    fn payload(&self) -> &'a [u8] {
        match self.outcome {
            Outcome::Value { bytes, .. } | Outcome::Item { bytes, .. } => bytes,
            Outcome::End | Outcome::Error(_) => &[],
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut fields = FieldWriter::new(out);
        put_bin(fields.field(Field::To.name()), &self.to.to_bytes());
        let (is, event_type) = match &self.outcome {
            Outcome::Value { event_type, .. } => ("value", Some(event_type)),
            Outcome::End => ("end", None),
            Outcome::Error(_) => ("error", None),
            Outcome::Item { event_type, .. } => ("item", Some(event_type)),
        };
        fields.text(Field::Is.name(), is);
        if self.sequence > 0 {
            fields.number(Field::Sequence.name(), self.sequence);
        }
        if let Some(event_type) = event_type {
            fields.text(Field::Type.name(), event_type);
        }
        if let Outcome::Error(error) = &self.outcome {
            write_error(&mut fields, error);
        }
        if let Some(first) = self.first {
            put_bin(fields.field(Field::First.name()), &first.to_bytes());
        }
        fields.unknown(&self.unknown);
        fields.finish(self.payload());
    }

    fn read(bytes: &'a [u8]) -> Read<Self> {
        let mut reader = Reader::new(bytes);
        read_version(&mut reader)?;
        let head_at = reader.at();
        let mut seen = 0;
        let mut to = EventId::MIN;
        let mut is = Is::End;
        let mut event_type = Cow::default();
        let mut error = WireError::default();
        let mut reply = Self::new(to, Outcome::End);
        for _ in 0..reader.map()? {
            let key_at = reader.at();
            let key = reader.text()?;
            let Some(field) = Field::of(key) else {
                keep_unknown(&mut reader, key, key_at, &mut reply.unknown)?;
                continue;
            };
            if seen & field.bit() != 0 {
                return Err(FrameError::new(FrameProblem::Duplicate, key_at).in_field(field.name()));
            }
            seen |= field.bit();
            let mut read = || -> Read<()> {
                match field {
                    Field::To => to = reader.id()?,
                    Field::Is => is = Is::read(&mut reader)?,
                    Field::Sequence => reply.sequence = reader.number()?,
                    Field::Type => event_type = reader.text()?.into(),
                    Field::First => reply.first = Some(reader.id()?),
                    other => read_error(&mut error, other, &mut reader)?,
                }
                Ok(())
            };
            read().map_err(|error| error.in_field(field.name()))?;
        }
        let payload_at = reader.at();
        let bytes = reader.bin().map_err(|error| error.in_field("payload"))?;
        reader.end()?;

        let needed: &[Field] = match is {
            Is::Value | Is::Item => &[Field::To, Field::Is, Field::Type],
            Is::Error => &[Field::To, Field::Is, Field::Code],
            Is::End => &[Field::To, Field::Is],
        };
        for field in needed {
            if seen & field.bit() == 0 {
                return Err(FrameError::new(FrameProblem::Missing, head_at).in_field(field.name()));
            }
        }
        if matches!(is, Is::End | Is::Error) && !bytes.is_empty() {
            let wanted = FrameProblem::Unexpected { wanted: "empty, as it is without a value" };
            return Err(FrameError::new(wanted, payload_at).in_field("payload"));
        }
        reply.to = to;
        reply.outcome = match is {
            Is::Value => Outcome::Value { event_type, bytes },
            Is::End => Outcome::End,
            Is::Error => Outcome::Error(error),
            Is::Item => Outcome::Item { event_type, bytes },
        };
        Ok(reply)
    }
}

#[derive(Clone, Copy)]
enum Is {
    Value,
    End,
    Error,
    Item,
}

impl Is {
    fn read(reader: &mut Reader<'_>) -> Read<Self> {
        let start = reader.at();
        Ok(match reader.text()? {
            "value" => Self::Value,
            "end" => Self::End,
            "error" => Self::Error,
            "item" => Self::Item,
            _ => {
                let wanted = FrameProblem::Unexpected { wanted: "`value`, `end`, `error` or `item`" };
                return Err(FrameError::new(wanted, start));
            }
        })
    }
}

fn write_error(fields: &mut FieldWriter<'_>, error: &WireError<'_>) {
    fields.text(Field::Code.name(), &error.code);
    if !error.with.is_empty() {
        fields.field(Field::With.name()).extend_from_slice(&error.with);
    }
    put_head(fields.field(Field::Retry.name()), Head::Bool(error.retryable));
    if !error.text.is_empty() {
        fields.text(Field::Text.name(), &error.text);
    }
    for (field, lines) in [(Field::Context, &error.context), (Field::Causes, &error.causes)] {
        if !lines.is_empty() {
            fields.texts(field.name(), lines.iter().map(|line| &**line));
        }
    }
    if let Some(node) = &error.node {
        fields.text(Field::Node.name(), node);
    }
    if let Some(event) = error.event {
        put_bin(fields.field(Field::Event.name()), &event.to_bytes());
    }
}

fn read_error<'a>(error: &mut WireError<'a>, field: Field, reader: &mut Reader<'a>) -> Read<()> {
    let lines = |reader: &mut Reader<'a>| {
        read_list(reader, ERROR_LINES_MAX, |reader| reader.text().map(Cow::Borrowed))
    };
    match field {
        Field::Code => error.code = reader.text()?.into(),
        Field::With => error.with = reader.value()?.into(),
        Field::Retry => error.retryable = reader.truth()?,
        Field::Text => error.text = reader.text()?.into(),
        Field::Context => error.context = lines(reader)?,
        Field::Causes => error.causes = lines(reader)?,
        Field::Node => error.node = Some(reader.text()?.into()),
        Field::Event => error.event = Some(reader.id()?),
        Field::To | Field::Is | Field::Sequence | Field::Type | Field::First => {}
    }
    Ok(())
}
