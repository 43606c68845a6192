//! A record of the log in its parts, read. Owns how bytes of records become values that outlive them; does not know
//! which records are looked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use happen_core::codec::{
    Outcome, PointKind, StepOutcome, WireChange, WireEvent, WireFlow, WireParcel, WirePoint, WireRecord,
    WireReply, WireStep,
};
use happen_core::hash::EventHash;
use happen_core::limits::RECORD_BYTES_MAX;
use happen_core::store::{Position, Record, Tag};
use happen_core::{Dynamic, Error, ErrorKind, EventId, EventType, Result};
use serde_json::Value as Json;

/// A record of the log, read: the events it has first, what a step of a flow did, and documents that were changed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Entry {
    /// Where it stands in the log.
    pub position: Position,
    /// When it was committed, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The event that it is the first to have; of a batch all events, in their order; none when earlier records have it.
    pub events: Vec<StoredEvent>,
    /// The flows that begin with it.
    pub accepted: Vec<FlowName>,
    /// What a flow did.
    pub step: Option<StoredStep>,
    /// Documents that were written with it and not by a step.
    pub changes: Vec<Change>,
}

/// An event as the log has it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoredEvent {
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub event_type: String,
    /// When it was sent, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The node that sent it; `None` for a sender outside any node.
    pub sender: Option<String>,
    /// The node that sent the root event; `None` as above.
    pub origin: Option<String>,
    /// The events that caused it, the first one first.
    pub causes: Vec<EventId>,
    /// The root event of its correlation; a root's own id.
    pub root: EventId,
    /// The correlation: what the sender of the root chose, or the root's id.
    pub correlation: String,
    /// The number of causes up to the root.
    pub depth: u32,
    /// Its hash, as it stands in the event.
    pub hash: Option<EventHash>,
    /// Its payload, which is read when a field is asked for.
    pub payload: Dynamic,
    /// The position of the record that has it.
    pub position: Position,
    /// When that record was committed, in milliseconds since 1970.
    pub committed_unix_ms: u64,
    bytes: Arc<[u8]>,
}

/// An event, as every record that is about it tells of it in its tags.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct About {
    /// Its id.
    pub event: EventId,
    /// Its type.
    pub event_type: String,
    /// The node that sent it; `None` for a sender outside any node.
    pub sender: Option<String>,
    /// The events that caused it, the first one first.
    pub causes: Vec<EventId>,
    /// Its correlation.
    pub correlation: String,
}

/// A flow by its names; with the event it handles, it is one run of one registration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct FlowName {
    /// The node.
    pub node: String,
    /// The name of its registration.
    pub registration: String,
}

/// What one step of a flow did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoredStep {
    /// The event that was handled; of a batch, its first.
    pub event: EventId,
    /// The flow.
    pub flow: FlowName,
    /// The name of the function that ran.
    pub name: String,
    /// The number of the step in its flow, from 0.
    pub number: u32,
    /// Which attempt at this step it was, from 1.
    pub attempt: u32,
    /// How it ended.
    pub ended: StepEnd,
    /// What the steps of the flow share from here on, by name.
    pub values: BTreeMap<String, Dynamic>,
    /// The documents it changed.
    pub changes: Vec<Change>,
    /// The events it sent, in the order in which it sent them.
    pub sent: Vec<EventId>,
    /// What it waited for, in the order in which it did.
    pub points: Vec<Point>,
    /// Where its record stands in the log.
    pub position: Position,
    /// When that record was committed, in milliseconds since 1970.
    pub at_unix_ms: u64,
}

/// How a step ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum StepEnd {
    /// The flow goes on with the step of this name.
    Next(String),
    /// The flow ended with this value.
    Done(Dynamic),
    /// The flow ended without a value.
    End,
    /// The step failed and is tried again.
    Retry {
        /// When, in milliseconds since 1970.
        due_unix_ms: u64,
        /// Why.
        error: Arc<Error>,
    },
    /// The flow failed for good.
    Failed(Arc<Error>),
    /// It waits for something.
    Waits,
}

/// A document in the revision that a commit gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The key of the document.
    pub key: String,
    /// The revision.
    pub revision: u64,
}

/// A point at which a step waited.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Point {
    /// Its number among the effects of the step.
    pub ordinal: u32,
    /// What it is.
    pub kind: PointKind,
    /// The node that was asked, the name of what was done once, or the pattern that was waited for.
    pub name: String,
    /// The event that asked or was waited for.
    pub event: Option<EventId>,
    /// When it is due or comes too late, in milliseconds since 1970; 0 for never.
    pub due_unix_ms: u64,
    /// Whether its result is known.
    pub is_settled: bool,
}

impl Entry {
    /// The record, read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Damaged`] with the position when its bytes are no record of this version.
    pub fn read(record: &Record) -> Result<Self> {
        let wire = wire(record)?;
        let parcel = parcel(record, &wire)?;
        let events = parcel.iter().flat_map(WireParcel::events);
        let step = wire.step.as_ref().map(|step| StoredStep::of(step, record)).transpose();
        Ok(Self {
            position: record.position,
            at_unix_ms: record.at_unix_ms,
            events: events.map(|event| StoredEvent::of(event, record)).collect(),
            accepted: wire.accepted.iter().map(FlowName::of).collect(),
            step: step.map_err(|error| damaged(record, error))?,
            changes: wire.changes.iter().map(Change::of).collect(),
        })
    }
}

impl StoredEvent {
    pub(super) fn of(event: &WireEvent<'_>, record: &Record) -> Self {
        let bytes: Arc<[u8]> = event.payload.into();
        Self {
            id: event.id,
            event_type: event.event_type.clone().into_owned(),
            at_unix_ms: event.at_unix_ms,
            sender: named(&event.sender),
            origin: named(&event.origin),
            causes: event.causes().map(|cause| cause.id()).collect(),
            root: event.root,
            correlation: correlation(event),
            depth: event.depth,
            hash: event.hash,
            payload: Dynamic::from_bytes(EventType::new(&event.event_type), Arc::clone(&bytes)),
            position: record.position,
            committed_unix_ms: record.at_unix_ms,
            bytes,
        }
    }

    /// The bytes of its payload, in MessagePack, as they were encoded first.
    #[must_use]
    pub fn payload_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its payload as JSON.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] when it has no form in JSON.
    pub fn json(&self) -> Result<&Json> {
        self.payload.json()
    }
}

impl About {
    /// What a record's tags tell; `None` when it is about no event.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let mut about = Self {
            event: event_of(record)?,
            event_type: String::new(),
            sender: None,
            causes: Vec::new(),
            correlation: String::new(),
        };
        for tag in &*record.tags {
            match tag {
                Tag::Cause(cause) => about.causes.push(*cause),
                Tag::Type(event_type) => about.event_type = event_type.to_string(),
                Tag::Sender(sender) => about.sender = named(sender),
                Tag::Correlation(correlation) => about.correlation = correlation.to_string(),
                _ => {}
            }
        }
        Some(about)
    }
}

impl FlowName {
    pub(super) fn of(flow: &WireFlow<'_>) -> Self {
        Self { node: flow.node.clone().into_owned(), registration: flow.registration.clone().into_owned() }
    }
}

impl Change {
    fn of(change: &WireChange<'_>) -> Self {
        Self { key: change.key.clone().into_owned(), revision: change.revision }
    }
}

impl Point {
    pub(super) fn of(point: &WirePoint<'_>) -> Self {
        Self {
            ordinal: point.ordinal,
            kind: point.kind,
            name: point.name.clone().into_owned(),
            event: point.event,
            due_unix_ms: point.due_unix_ms,
            is_settled: point.result.is_some(),
        }
    }
}

impl StoredStep {
    pub(super) fn of(step: &WireStep<'_>, record: &Record) -> Result<Self> {
        Ok(Self {
            event: step.event,
            flow: FlowName::of(&step.flow),
            name: step.name.clone().into_owned(),
            number: step.number,
            attempt: step.attempt,
            ended: StepEnd::of(&step.outcome)?,
            values: values(step),
            changes: step.changes.iter().map(Change::of).collect(),
            sent: step.sent.clone(),
            points: step.points.iter().map(Point::of).collect(),
            position: record.position,
            at_unix_ms: record.at_unix_ms,
        })
    }
}

impl StepEnd {
    fn of(outcome: &StepOutcome<'_>) -> Result<Self> {
        Ok(match outcome {
            StepOutcome::Next(to) => Self::Next(to.clone().into_owned()),
            StepOutcome::Done(reply) => match WireReply::decode(reply, RECORD_BYTES_MAX)?.outcome {
                Outcome::Value { event_type, bytes } | Outcome::Item { event_type, bytes } => {
                    Self::Done(Dynamic::from_bytes(EventType::new(&event_type), bytes.into()))
                }
                Outcome::End => Self::End,
                Outcome::Error(error) => Self::Failed(Arc::new(error.to_error())),
                _ => return Err(Error::new(ErrorKind::Undecodable { wanted: "outcome".to_owned() })),
            },
            StepOutcome::End => Self::End,
            StepOutcome::Retry { due_unix_ms, error } => {
                Self::Retry { due_unix_ms: *due_unix_ms, error: Arc::new(told(error)?) }
            }
            StepOutcome::Failed(error) => Self::Failed(Arc::new(told(error)?)),
            StepOutcome::Waits => Self::Waits,
            // Records are of the version that this crate writes; it has no other outcome.
            _ => return Err(Error::new(ErrorKind::Undecodable { wanted: "outcome".to_owned() })),
        })
    }
}

/// The error in a frame of a reply.
pub(super) fn told(reply: &[u8]) -> Result<Error> {
    match WireReply::decode(reply, RECORD_BYTES_MAX)?.outcome {
        Outcome::Error(error) => Ok(error.to_error()),
        _ => Err(Error::new(ErrorKind::Undecodable { wanted: "error".to_owned() })),
    }
}

/// What the steps of a flow share.
pub(super) fn values(step: &WireStep<'_>) -> BTreeMap<String, Dynamic> {
    let values = step.values.iter().map(|(name, bytes)| {
        (name.clone().into_owned(), Dynamic::from_bytes(EventType::new(name), bytes.as_ref().into()))
    });
    values.collect()
}

/// The record in the bytes of a record.
pub(super) fn wire(record: &Record) -> Result<WireRecord<'_>> {
    WireRecord::decode(&record.bytes, RECORD_BYTES_MAX).map_err(|error| damaged(record, error))
}

/// The event or batch of a record; `None` when an earlier one has it.
pub(super) fn parcel<'w>(record: &Record, wire: &'w WireRecord<'_>) -> Result<Option<WireParcel<'w>>> {
    if wire.event.is_empty() {
        return Ok(None);
    }
    // Each event was held to the limit of its space when it came; here the record's own limit is enough.
    WireParcel::decode(&wire.event, RECORD_BYTES_MAX).map(Some).map_err(|error| damaged(record, error))
}

/// The correlation of an event as its records are tagged with it.
pub(super) fn correlation(event: &WireEvent<'_>) -> String {
    event.correlation.as_deref().map_or_else(|| event.root.to_string(), str::to_owned)
}

/// The first event that a record is tagged with.
pub(super) fn event_of(record: &Record) -> Option<EventId> {
    record.tags.iter().find_map(|tag| match tag {
        Tag::Event(id) => Some(*id),
        _ => None,
    })
}

pub(super) fn named(node: &str) -> Option<String> {
    (!node.is_empty()).then(|| node.to_owned())
}

/// The error of a record that was read and makes no sense.
#[cold]
pub(super) fn damaged(record: &Record, error: Error) -> Error {
    let position = record.position;
    let what = format!(
        "the record at position {position} cannot be read; the others can; `Journal::verify` names the first that does \
         not fit; restore a backup"
    );
    let made = Error::new(ErrorKind::Damaged { what }).with_source(error.into_std());
    match event_of(record) {
        Some(event) => made.at_event(event),
        None => made,
    }
}
