//! The form of a record: what the log remembers of an event and of the steps that handled it. Owns which fields there are
//! and what they are called; does not know how a step is run, and leaves the event inside as the bytes it came in.

use std::borrow::Cow;

use crate::codec::frame::{
    FieldWriter, FrameError, FrameProblem, UnknownField, fields, keep_unknown, read_list, read_version,
    undecodable, within,
};
use crate::codec::msgpack::{Head, Reader, put_bin, put_head, put_number, put_text};
use crate::error::Result;
use crate::id::EventId;
use crate::limits::{BATCH_PARTS_MAX, RECORD_EFFECTS_MAX, RECORD_POINTS_MAX, RECORD_VALUES_MAX};

/// One record of the log of a space whose nodes are durable.
///
/// It has an event, in the record that is the first to have it, or a step of a flow, or both: an event from outside whose
/// first step ended at once is one record.
///
/// # Examples
///
/// ```
/// use happen_core::codec::{StepOutcome, WireRecord, WireStep};
/// use happen_core::limits::RECORD_BYTES_MAX;
///
/// let event = "0197a5d0-7c00-7000-8000-000000000001".parse()?;
/// let step = WireStep::new(event, "orders", "validate", "validate", StepOutcome::End);
/// let record = WireRecord { step: Some(step), ..WireRecord::default() };
///
/// let mut bytes = Vec::new();
/// record.encode_into(&mut bytes, RECORD_BYTES_MAX)?;
/// assert_eq!(WireRecord::decode(&bytes, RECORD_BYTES_MAX)?, record);
/// # Ok::<(), happen_core::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireRecord<'a> {
    /// The event as a frame of its own, see [`WireEvent`](crate::codec::WireEvent); empty when an earlier record has it.
    /// A batch is a frame of a batch.
    pub event: Cow<'a, [u8]>,
    /// The flows that begin with this record, at most [`BATCH_PARTS_MAX`].
    pub accepted: Vec<WireFlow<'a>>,
    /// What a flow did.
    pub step: Option<WireStep<'a>>,
    /// Documents that were written by the batch of this record and not by a step, each with its new revision.
    pub changes: Vec<WireChange<'a>>,
    /// Fields of later versions, in the order they came in.
    pub unknown: Vec<UnknownField<'a>>,
}

/// A flow, as records and documents name it: with the event that it handles, it is one run of one registration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WireFlow<'a> {
    /// The node.
    pub node: Cow<'a, str>,
    /// The name of its registration.
    pub registration: Cow<'a, str>,
}

/// What a flow did in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WireStep<'a> {
    /// The event that is handled; of a batch, its first.
    pub event: EventId,
    /// The flow.
    pub flow: WireFlow<'a>,
    /// The name of the function that ran.
    pub name: Cow<'a, str>,
    /// The number of the step in its flow, from 0.
    pub number: u32,
    /// Which attempt at this step it was, from 1.
    pub attempt: u32,
    /// When the flow came to this step, in milliseconds since 1970. Ids of what it sends follow from it.
    pub at_unix_ms: u64,
    /// When the flow may begin that is held back, in milliseconds since 1970; 0 for at once. Not for a step that is tried
    /// again, whose outcome says when.
    pub due_unix_ms: u64,
    /// How it ended.
    pub outcome: StepOutcome<'a>,
    /// What the steps of the flow share from here on, by name; each value in MessagePack.
    pub values: Vec<(Cow<'a, str>, Cow<'a, [u8]>)>,
    /// The documents it changed, each with its new revision.
    pub changes: Vec<WireChange<'a>>,
    /// The events it sent, in the order of their ordinals.
    pub sent: Vec<EventId>,
    /// What it waited for, in the order of their ordinals.
    pub points: Vec<WirePoint<'a>>,
}

/// A document in the revision that a commit gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireChange<'a> {
    /// The key of the document.
    pub key: Cow<'a, str>,
    /// The revision.
    pub revision: u64,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepOutcome<'a> {
    /// The flow goes on with the step of this name.
    Next(Cow<'a, str>),
    /// The flow ended with a value: a frame of a reply, see [`WireReply`](crate::codec::WireReply).
    Done(Cow<'a, [u8]>),
    /// The flow ended without a value.
    End,
    /// The step failed and is tried again at this time, in milliseconds since 1970.
    Retry {
        /// When.
        due_unix_ms: u64,
        /// The error, as a frame of a reply.
        error: Cow<'a, [u8]>,
    },
    /// The flow failed, with this error as a frame of a reply.
    Failed(Cow<'a, [u8]>),
    /// The step has not ended: what it waits for from here on was committed.
    Waits,
}

/// A point of a step at which something had to be remembered before it went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WirePoint<'a> {
    /// Its number among the effects of the step, given when the call was made.
    pub ordinal: u32,
    /// What it is.
    pub kind: PointKind,
    /// The id of the node that was asked, the name under which something was done once, or the pattern of what is waited
    /// for; empty for a sleep.
    pub name: Cow<'a, str>,
    /// The event that asked, or that was waited for; none for the others.
    pub event: Option<EventId>,
    /// When it is due or comes too late, in milliseconds since 1970; 0 for never.
    pub due_unix_ms: u64,
    /// A digest of what was asked, so that a step that asks for something else in its place is found.
    pub digest: u64,
    /// What came of it: a frame of a reply, or the value in MessagePack; none while it is not known.
    pub result: Option<Cow<'a, [u8]>>,
}

/// What a step waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PointKind {
    /// The answer of a node.
    Ask,
    /// An effect outside, done once.
    Once,
    /// A time.
    Sleep,
    /// An event.
    Wait,
}

fields! {
    Accepted = "for", Changes = "docs", Event = "of", Flow = "flow", Name = "step", Number = "number",
    Attempt = "try", At = "at", Is = "is", To = "to", Due = "due", Reply = "reply", Values = "values", Sent = "sent",
    Points = "points",
}

type Read<T> = std::result::Result<T, FrameError>;

impl<'a> WireRecord<'a> {
    /// Appends the record's bytes; nothing is appended when it is refused.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Oversized`](crate::ErrorKind::Oversized) when it has more than `bytes_max` bytes.
    pub fn encode_into(&self, out: &mut Vec<u8>, bytes_max: usize) -> Result<()> {
        within(self.event.len(), bytes_max)?;
        let start = out.len();
        self.write(out);
        let bytes = out.len() - start;
        within(bytes, bytes_max).inspect_err(|_| out.truncate(start))
    }

    /// The record in these bytes, all of which belong to it.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Oversized`](crate::ErrorKind::Oversized) when there are more than `bytes_max` bytes.
    /// - [`ErrorKind::Undecodable`](crate::ErrorKind::Undecodable) when they are no record of this version; the source is
    ///   a [`FrameError`].
    pub fn decode(bytes: &'a [u8], bytes_max: usize) -> Result<Self> {
        within(bytes.len(), bytes_max)?;
        Self::read(bytes).map_err(|error| undecodable("record", error))
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut fields = FieldWriter::new(out);
        if !self.accepted.is_empty() {
            let out = fields.field(Field::Accepted.name());
            put_head(out, Head::Array(self.accepted.len()));
            self.accepted.iter().for_each(|flow| flow.write(out));
        }
        let changes = self.step.as_ref().map_or(&self.changes, |step| &step.changes);
        if !changes.is_empty() {
            let out = fields.field(Field::Changes.name());
            put_head(out, Head::Array(changes.len()));
            for WireChange { key, revision } in changes {
                put_head(out, Head::Array(2));
                put_text(out, key);
                put_number(out, *revision);
            }
        }
        if let Some(step) = &self.step {
            step.write(&mut fields);
        }
        fields.unknown(&self.unknown);
        fields.finish(&self.event);
    }

    fn read(bytes: &'a [u8]) -> Read<Self> {
        let mut reader = Reader::new(bytes);
        read_version(&mut reader)?;
        let head_at = reader.at();
        let mut seen = 0;
        let mut record = Self::default();
        let mut step = WireStep::new(EventId::MIN, "", "", "", StepOutcome::End);
        let (mut is, mut to, mut due_unix_ms, mut reply) = (Is::End, Cow::default(), 0, Cow::default());
        for _ in 0..reader.map()? {
            let key_at = reader.at();
            let key = reader.text()?;
            let Some(field) = Field::of(key) else {
                keep_unknown(&mut reader, key, key_at, &mut record.unknown)?;
                continue;
            };
            if seen & field.bit() != 0 {
                return Err(FrameError::new(FrameProblem::Duplicate, key_at).in_field(field.name()));
            }
            seen |= field.bit();
            let mut read = || -> Read<()> {
                match field {
                    Field::Accepted => {
                        record.accepted = read_list(&mut reader, BATCH_PARTS_MAX, WireFlow::read)?;
                    }
                    Field::Changes => {
                        step.changes = read_list(&mut reader, BATCH_PARTS_MAX, WireChange::read)?;
                    }
                    Field::Event => step.event = reader.id()?,
                    Field::Flow => step.flow = WireFlow::read(&mut reader)?,
                    Field::Name => step.name = reader.text()?.into(),
                    Field::Number => step.number = small(&mut reader)?,
                    Field::Attempt => step.attempt = small(&mut reader)?,
                    Field::At => step.at_unix_ms = reader.number()?,
                    Field::Is => is = Is::read(&mut reader)?,
                    Field::To => to = reader.text()?.into(),
                    Field::Due => due_unix_ms = reader.number()?,
                    Field::Reply => reply = reader.bin()?.into(),
                    Field::Values => step.values = read_list(&mut reader, RECORD_VALUES_MAX, value)?,
                    Field::Sent => step.sent = read_list(&mut reader, RECORD_EFFECTS_MAX, Reader::id)?,
                    Field::Points => {
                        step.points = read_list(&mut reader, RECORD_POINTS_MAX, WirePoint::read)?;
                    }
                }
                Ok(())
            };
            read().map_err(|error| error.in_field(field.name()))?;
        }
        record.event = reader.bin().map_err(|error| error.in_field("payload"))?.into();
        reader.end()?;

        let of_step = Field::Event.bit() | Field::Flow.bit() | Field::Name.bit() | Field::Is.bit();
        if seen & of_step == 0 {
            record.changes = step.changes;
            return Ok(record);
        }
        let needs = |field: Field| match seen & field.bit() {
            0 => Err(FrameError::new(FrameProblem::Missing, head_at).in_field(field.name())),
            _ => Ok(()),
        };
        [Field::Event, Field::Flow, Field::Name, Field::Is].into_iter().try_for_each(needs)?;
        if !matches!(is, Is::Retry) {
            step.due_unix_ms = due_unix_ms;
        }
        step.outcome = match is {
            Is::Next => {
                needs(Field::To)?;
                StepOutcome::Next(to)
            }
            Is::Done => {
                needs(Field::Reply)?;
                StepOutcome::Done(reply)
            }
            Is::End => StepOutcome::End,
            Is::Retry => {
                needs(Field::Reply)?;
                StepOutcome::Retry { due_unix_ms, error: reply }
            }
            Is::Failed => {
                needs(Field::Reply)?;
                StepOutcome::Failed(reply)
            }
            Is::Waits => StepOutcome::Waits,
        };
        record.step = Some(step);
        Ok(record)
    }
}

impl<'a> WireStep<'a> {
    /// The first attempt at the first step of a flow, with this outcome and without effects.
    #[must_use]
    pub fn new(
        event: EventId,
        node: &'a str,
        registration: &'a str,
        name: &'a str,
        outcome: StepOutcome<'a>,
    ) -> Self {
        Self {
            event,
            flow: WireFlow { node: node.into(), registration: registration.into() },
            name: name.into(),
            number: 0,
            attempt: 1,
            at_unix_ms: 0,
            due_unix_ms: 0,
            outcome,
            values: Vec::new(),
            changes: Vec::new(),
            sent: Vec::new(),
            points: Vec::new(),
        }
    }

    fn write(&self, fields: &mut FieldWriter<'_>) {
        put_bin(fields.field(Field::Event.name()), &self.event.to_bytes());
        self.flow.write(fields.field(Field::Flow.name()));
        fields.text(Field::Name.name(), &self.name);
        if self.number > 0 {
            fields.number(Field::Number.name(), self.number.into());
        }
        if self.attempt != 1 {
            fields.number(Field::Attempt.name(), self.attempt.into());
        }
        if self.at_unix_ms > 0 {
            fields.number(Field::At.name(), self.at_unix_ms);
        }
        let (is, reply) = match &self.outcome {
            StepOutcome::Next(_) => (Is::Next, None),
            StepOutcome::Done(reply) => (Is::Done, Some(reply)),
            StepOutcome::End => (Is::End, None),
            StepOutcome::Retry { error, .. } => (Is::Retry, Some(error)),
            StepOutcome::Failed(error) => (Is::Failed, Some(error)),
            StepOutcome::Waits => (Is::Waits, None),
        };
        fields.text(Field::Is.name(), is.name());
        if let StepOutcome::Next(to) = &self.outcome {
            fields.text(Field::To.name(), to);
        }
        match &self.outcome {
            StepOutcome::Retry { due_unix_ms, .. } => fields.number(Field::Due.name(), *due_unix_ms),
            _ if self.due_unix_ms > 0 => fields.number(Field::Due.name(), self.due_unix_ms),
            _ => {}
        }
        if let Some(reply) = reply {
            put_bin(fields.field(Field::Reply.name()), reply);
        }
        if !self.values.is_empty() {
            let out = fields.field(Field::Values.name());
            put_head(out, Head::Array(self.values.len()));
            for (name, value) in &self.values {
                put_head(out, Head::Array(2));
                put_text(out, name);
                put_bin(out, value);
            }
        }
        if !self.sent.is_empty() {
            let out = fields.field(Field::Sent.name());
            put_head(out, Head::Array(self.sent.len()));
            self.sent.iter().for_each(|id| put_bin(out, &id.to_bytes()));
        }
        if !self.points.is_empty() {
            let out = fields.field(Field::Points.name());
            put_head(out, Head::Array(self.points.len()));
            self.points.iter().for_each(|point| point.write(out));
        }
    }
}

impl<'a> WireFlow<'a> {
    fn write(&self, out: &mut Vec<u8>) {
        put_head(out, Head::Array(2));
        put_text(out, &self.node);
        put_text(out, &self.registration);
    }

    fn read(reader: &mut Reader<'a>) -> Read<Self> {
        items(reader, 2, "a node and a registration")?;
        Ok(Self { node: reader.text()?.into(), registration: reader.text()?.into() })
    }
}

impl<'a> WireChange<'a> {
    fn read(reader: &mut Reader<'a>) -> Read<Self> {
        items(reader, 2, "a key and a revision")?;
        Ok(Self { key: reader.text()?.into(), revision: reader.number()? })
    }
}

impl<'a> WirePoint<'a> {
    fn write(&self, out: &mut Vec<u8>) {
        put_head(out, Head::Array(7));
        put_number(out, self.ordinal.into());
        put_text(out, self.kind.name());
        put_text(out, &self.name);
        match self.event {
            Some(event) => put_bin(out, &event.to_bytes()),
            None => put_head(out, Head::Nil),
        }
        put_number(out, self.due_unix_ms);
        put_number(out, self.digest);
        match &self.result {
            Some(result) => put_bin(out, result),
            None => put_head(out, Head::Nil),
        }
    }

    fn read(reader: &mut Reader<'a>) -> Read<Self> {
        items(reader, 7, "the seven parts of a point")?;
        Ok(Self {
            ordinal: small(reader)?,
            kind: PointKind::read(reader)?,
            name: reader.text()?.into(),
            event: optional(reader, Reader::id)?,
            due_unix_ms: reader.number()?,
            digest: reader.number()?,
            result: optional(reader, Reader::bin)?.map(Cow::Borrowed),
        })
    }
}

impl PointKind {
    /// The name in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Once => "once",
            Self::Sleep => "sleep",
            Self::Wait => "wait",
        }
    }

    fn read(reader: &mut Reader<'_>) -> Read<Self> {
        let start = reader.at();
        Ok(match reader.text()? {
            "ask" => Self::Ask,
            "once" => Self::Once,
            "sleep" => Self::Sleep,
            "wait" => Self::Wait,
            _ => return Err(unexpected("`ask`, `once`, `sleep` or `wait`", start)),
        })
    }
}

#[derive(Clone, Copy)]
enum Is {
    Next,
    Done,
    End,
    Retry,
    Failed,
    Waits,
}

impl Is {
    const fn name(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Done => "done",
            Self::End => "end",
            Self::Retry => "retry",
            Self::Failed => "failed",
            Self::Waits => "waits",
        }
    }

    fn read(reader: &mut Reader<'_>) -> Read<Self> {
        let start = reader.at();
        let name = reader.text()?;
        let all = [Self::Next, Self::Done, Self::End, Self::Retry, Self::Failed, Self::Waits];
        let wanted = "`next`, `done`, `end`, `retry`, `failed` or `waits`";
        all.into_iter().find(|is| is.name() == name).ok_or_else(|| unexpected(wanted, start))
    }
}

fn value<'a>(reader: &mut Reader<'a>) -> Read<(Cow<'a, str>, Cow<'a, [u8]>)> {
    items(reader, 2, "a name and a value")?;
    Ok((reader.text()?.into(), reader.bin()?.into()))
}

/// Reads the head of a list that has always so many items.
fn items(reader: &mut Reader<'_>, wanted: usize, what: &'static str) -> Read<()> {
    let start = reader.at();
    if reader.array(wanted)? == wanted { Ok(()) } else { Err(unexpected(what, start)) }
}

fn small(reader: &mut Reader<'_>) -> Read<u32> {
    let start = reader.at();
    u32::try_from(reader.number()?).map_err(|_| unexpected("a number of 32 bits", start))
}

fn optional<'a, T>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Read<T>,
) -> Read<Option<T>> {
    if reader.peek()? == Head::Nil {
        reader.value()?;
        return Ok(None);
    }
    read(reader).map(Some)
}

fn unexpected(wanted: &'static str, at: usize) -> FrameError {
    FrameError::new(FrameProblem::Unexpected { wanted }, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0197a5d0-7c00-7000-8000-000000000001";

    fn id() -> EventId {
        ID.parse().unwrap()
    }

    fn full(outcome: StepOutcome<'_>) -> WireRecord<'_> {
        let mut step = WireStep::new(id(), "orders", "validate#2", "charge", outcome);
        step.number = 3;
        step.attempt = 2;
        step.at_unix_ms = 1_750_000_000_000;
        step.values = vec![("total".into(), vec![7].into())];
        step.changes = vec![WireChange { key: "state/orders/orders".into(), revision: 9 }];
        step.sent = vec![id()];
        step.points = vec![WirePoint {
            ordinal: 1,
            kind: PointKind::Ask,
            name: "payments".into(),
            event: Some(id()),
            due_unix_ms: 5,
            digest: u64::MAX,
            result: Some(vec![1, 2].into()),
        }];
        let accepted = vec![WireFlow { node: "a/b".into(), registration: "x".into() }];
        WireRecord { event: vec![1, 2, 3].into(), accepted, step: Some(step), ..WireRecord::default() }
    }

    fn encoded(record: &WireRecord<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode_into(&mut bytes, 1 << 20).unwrap();
        bytes
    }

    #[test]
    fn records_come_back() {
        let outcomes = [
            StepOutcome::Next("ship".into()),
            StepOutcome::Done(vec![4].into()),
            StepOutcome::End,
            StepOutcome::Retry { due_unix_ms: 77, error: vec![5].into() },
            StepOutcome::Failed(vec![6].into()),
            StepOutcome::Waits,
        ];
        for outcome in outcomes {
            let record = full(outcome);
            assert_eq!(WireRecord::decode(&encoded(&record), 1 << 20).unwrap(), record);
        }
        let mut held_back = full(StepOutcome::Waits);
        held_back.step.as_mut().unwrap().due_unix_ms = 78;
        assert_eq!(WireRecord::decode(&encoded(&held_back), 1 << 20).unwrap(), held_back);
        let change = WireChange { key: "state/a/b".into(), revision: 1 };
        let record = WireRecord { changes: vec![change], ..WireRecord::default() };
        assert_eq!(WireRecord::decode(&encoded(&record), 1 << 20).unwrap(), record);
        assert_eq!(encoded(&WireRecord::default()), [1, 0x80, 0xc4, 0]);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_read_or_refused() {
        let record = full(StepOutcome::Next("ship".into()));
        let bytes = encoded(&record);
        for end in 0..bytes.len() {
            assert!(WireRecord::decode(&bytes[..end], 1 << 20).is_err(), "{end}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                if let Ok(read) = WireRecord::decode(&changed, 1 << 20) {
                    assert_eq!(WireRecord::decode(&encoded(&read), 1 << 20).unwrap(), read);
                }
            }
        }
    }

    #[test]
    fn lists_and_sizes_have_limits() {
        let around = |limit: usize, make: &dyn Fn(usize) -> WireRecord<'static>| {
            [limit - 1, limit, limit + 1].map(|count| {
                let mut bytes = Vec::new();
                make(count).encode_into(&mut bytes, 8 << 20).unwrap();
                WireRecord::decode(&bytes, 8 << 20).is_ok()
            })
        };
        let with = |change: &dyn Fn(&mut WireStep<'static>)| {
            let mut step = WireStep::new(id(), "a", "b", "c", StepOutcome::End);
            change(&mut step);
            WireRecord { step: Some(step), ..WireRecord::default() }
        };
        let sent = |count| with(&|step| step.sent = vec![id(); count]);
        assert_eq!(around(RECORD_EFFECTS_MAX, &sent), [true, true, false]);
        let values = |count| with(&|step| step.values = vec![("a".into(), vec![0].into()); count]);
        assert_eq!(around(RECORD_VALUES_MAX, &values), [true, true, false]);
        let point = WirePoint {
            ordinal: 0,
            kind: PointKind::Sleep,
            name: "".into(),
            event: None,
            due_unix_ms: 0,
            digest: 0,
            result: None,
        };
        let points = |count| with(&|step| step.points = vec![point.clone(); count]);
        assert_eq!(around(RECORD_POINTS_MAX, &points), [true, true, false]);
        let accepted =
            |count| WireRecord { accepted: vec![WireFlow::default(); count], ..WireRecord::default() };
        assert_eq!(around(BATCH_PARTS_MAX, &accepted), [true, true, false]);

        let record = full(StepOutcome::End);
        let bytes = encoded(&record);
        let mut out = vec![9];
        assert_eq!(record.encode_into(&mut out, bytes.len() - 1).unwrap_err().code(), "oversized");
        assert_eq!(out, [9]);
        assert!(record.encode_into(&mut out, bytes.len()).is_ok());
        assert_eq!(WireRecord::decode(&bytes, bytes.len() - 1).unwrap_err().code(), "oversized");
    }

    #[test]
    fn a_step_that_lacks_a_part_is_refused() {
        let record = WireRecord {
            step: Some(WireStep::new(id(), "a", "b", "c", StepOutcome::Next("d".into()))),
            ..WireRecord::default()
        };
        let bytes = encoded(&record);
        for name in ["of", "flow", "step", "is", "to"] {
            let mut changed = bytes.clone();
            let at = changed
                .windows(name.len() + 1)
                .position(|window| window[0] == 0xa0 | name.len() as u8 && &window[1..] == name.as_bytes());
            // A field of another name is unknown, so the one that is needed is missing.
            changed[at.unwrap() + 1] = b'_';
            let error = WireRecord::decode(&changed, 1 << 20).unwrap_err();
            let cause = error.find_cause::<FrameError>().unwrap();
            assert_eq!((cause.problem(), cause.field()), (&FrameProblem::Missing, Some(name)), "{name}");
        }
    }
}
