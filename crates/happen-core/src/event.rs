//! An event: its payload and its envelope. Owns what an event remembers of where it came from; does not know who
//! handles it.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::id::EventId;
use crate::name::EventType;
use crate::payload::{Dynamic, ErasedPayload, Payload};

/// An immutable fact: a payload with its causal context. Reads like its payload.
///
/// Events are made by sending a payload, never by hand, so every event has an id, a sender and its causes.
#[derive(Clone)]
pub struct Event<T = Dynamic> {
    envelope: Envelope,
    payload: T,
}

/// The context of an event: who it is, why it is, and under which conditions. At most 128 bytes; what most events do
/// not have is kept aside in [`Extra`].
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The event's own id.
    pub id: EventId,
    /// The event that caused it first; `None` for a root.
    pub cause: Option<EventId>,
    /// The root event of its correlation; a root's own id.
    pub root: EventId,
    /// When it was sent, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Its type.
    pub event_type: EventType,
    /// What most events do not have.
    pub extra: Option<Arc<Extra>>,
    /// When an answer comes too late, in milliseconds since 1970; 0 for never.
    pub deadline_unix_ms: u64,
    /// The node that sent it.
    pub sender: NodeKey,
    /// The node that sent the root event.
    pub origin: NodeKey,
    /// The number of causes up to the root; 0 for a root.
    pub depth: u32,
    /// The nodes it came by, the nearest first.
    pub path: Path,
    /// How it was sent.
    pub purpose: Purpose,
}

/// What an event was sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// To one node, without waiting for an answer.
    Send,
    /// To one node, and the sender waits for the answer.
    Ask,
    /// To one node, and the sender reads a stream of items.
    Stream,
    /// To every node that listens.
    Broadcast,
    /// To every node that listens, and those that remember get it by the log that they share with the sender.
    Stored,
}

/// A node of one space, as a small number. 0 is the space itself: a sender outside any node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeKey(pub u32);

/// The last nodes an event came by. Bounded: the whole journey follows from the causes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    hops: [NodeKey; PATH_HOPS_MAX],
}

/// The parts of a context that most events do not have.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// What descendants have too.
    pub inherited: Option<Arc<Inherited>>,
    /// Causes beyond the first, of an event made from several.
    pub more_causes: Vec<EventId>,
    /// Free metadata of this event alone.
    pub metadata: BTreeMap<String, Json>,
}

/// The parts of a context that an event passes on to those it causes.
#[derive(Clone, Debug, Default)]
pub struct Inherited {
    /// The correlation that the sender of the root chose.
    pub correlation: Option<Arc<str>>,
    /// Whose source the root came from, such as a user's name.
    pub source_id: Option<Arc<str>>,
    /// What kind of source that is, such as `user`.
    pub source_type: Option<Arc<str>>,
    /// The user on whose account it happens.
    pub user: Option<Arc<User>>,
    /// The W3C trace context, as its two header values.
    pub trace: Option<Arc<Trace>>,
    /// Delegations, the oldest first: who acted on whose behalf.
    pub delegations: Vec<Delegation>,
}

/// A user as an event tells of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The id.
    pub id: String,
    /// The permissions.
    pub permissions: Vec<String>,
}

/// A W3C trace context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The header `traceparent`.
    pub parent: String,
    /// The header `tracestate`.
    pub state: String,
}

/// A node that acted on behalf of another source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegation {
    /// The node.
    pub node: String,
    /// The source it acted for, as `type:id`.
    pub on_behalf_of: String,
}

impl Event {
    /// A payload named at run time, to be sent; its fields are read by path.
    #[expect(
        clippy::new_ret_no_self,
        reason = "an event exists once it is sent; before that it is a payload"
    )]
    #[must_use]
    pub fn new(event_type: &str, content: Json) -> Dynamic {
        Dynamic::new(event_type, content)
    }

    /// The value at a path of field names and indexes separated by dots.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Json> {
        self.payload.get(path)
    }
}

impl<T> Event<T> {
    /// The event with this context and payload; for runtimes and adapters.
    #[must_use]
    #[inline]
    pub const fn from_parts(envelope: Envelope, payload: T) -> Self {
        Self { envelope, payload }
    }

    /// The context and the payload.
    #[must_use]
    #[inline]
    pub fn into_parts(self) -> (Envelope, T) {
        (self.envelope, self.payload)
    }

    /// The payload.
    #[must_use]
    pub const fn payload(&self) -> &T {
        &self.payload
    }

    /// The payload, without its event.
    #[must_use]
    pub fn into_payload(self) -> T {
        self.payload
    }

    /// The whole context.
    #[must_use]
    #[inline]
    pub const fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// The context and the payload, to be completed before anybody has the event; for runtimes and adapters.
    #[must_use]
    #[inline]
    pub const fn parts_mut(&mut self) -> (&mut Envelope, &mut T) {
        (&mut self.envelope, &mut self.payload)
    }

    /// The event's id.
    #[must_use]
    pub const fn id(&self) -> EventId {
        self.envelope.id
    }

    /// The event's type.
    #[must_use]
    pub fn event_type(&self) -> &str {
        self.envelope.event_type.as_str()
    }

    /// The first event that caused it; `None` for a root.
    #[must_use]
    #[doc(alias = "causationId")]
    pub const fn causation_id(&self) -> Option<EventId> {
        self.envelope.cause
    }

    /// All events that caused it.
    pub fn causes(&self) -> impl Iterator<Item = EventId> {
        self.envelope.causes()
    }

    /// The correlation: what the sender of the root chose, or the root's id.
    #[must_use]
    #[doc(alias = "correlationId")]
    pub fn correlation(&self) -> String {
        self.envelope.correlation()
    }

    /// The free metadata under this name.
    #[must_use]
    pub fn metadata(&self, name: &str) -> Option<&Json> {
        self.envelope.extra.as_ref()?.metadata.get(name)
    }
}

impl Envelope {
    /// All causes, the first one first.
    pub fn causes(&self) -> impl Iterator<Item = EventId> {
        let more = self.extra.as_ref().map_or(&[][..], |extra| &extra.more_causes);
        self.cause.into_iter().chain(more.iter().copied())
    }

    /// The correlation: what the sender of the root chose, or the root's id.
    #[must_use]
    pub fn correlation(&self) -> String {
        match self.inherited().and_then(|inherited| inherited.correlation.as_deref()) {
            Some(chosen) => chosen.to_owned(),
            None => self.root.to_string(),
        }
    }

    /// What the event passes on to those it causes.
    #[must_use]
    pub fn inherited(&self) -> Option<&Arc<Inherited>> {
        self.extra.as_ref()?.inherited.as_ref()
    }

    /// The part of `extra` that an event caused by this one starts with.
    #[must_use]
    #[inline]
    pub fn extra_for_effect(&self) -> Option<Arc<Extra>> {
        let extra = self.extra.as_ref()?;
        if extra.more_causes.is_empty() && extra.metadata.is_empty() {
            return Some(Arc::clone(extra));
        }
        let inherited = extra.inherited.clone()?;
        Some(Arc::new(Extra { inherited: Some(inherited), ..Extra::default() }))
    }

    /// Changes the rare parts, copying them when they are shared.
    pub fn extra_mut(&mut self) -> &mut Extra {
        Arc::make_mut(self.extra.get_or_insert_default())
    }

    /// Changes what descendants have too, copying it when it is shared.
    pub fn inherited_mut(&mut self) -> &mut Inherited {
        Arc::make_mut(self.extra_mut().inherited.get_or_insert_default())
    }

    /// Whether the sender waits for an answer.
    #[must_use]
    pub const fn expects_reply(&self) -> bool {
        matches!(self.purpose, Purpose::Ask | Purpose::Stream)
    }
}

impl Path {
    /// The path with one more hop, which becomes the nearest; the farthest falls off.
    #[must_use]
    #[inline]
    pub const fn extended(self, node: NodeKey) -> Self {
        let [a, b, c, d, e] = self.hops;
        let _ = e;
        Self { hops: [node, a, b, c, d] }
    }

    /// The hops, the nearest first.
    pub fn hops(&self) -> impl Iterator<Item = NodeKey> {
        self.hops.into_iter().take_while(|node| node.0 != 0)
    }
}

impl<T> Deref for Event<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.payload
    }
}

impl<T: fmt::Debug> fmt::Debug for Event<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.envelope.event_type, self.envelope.id, self.payload)
    }
}

/// Several events of one type that were sent at once, for a handler that takes them together. Reads like a slice.
///
/// The events keep their own ids; what the handler sends is caused by all of them.
#[derive(Clone, Debug)]
pub struct Batch<T = Dynamic> {
    events: Vec<Event<T>>,
}

impl<T> Batch<T> {
    /// The batch of these events; `None` when there are none, for nothing would have caused its effects.
    #[must_use]
    pub fn new(events: Vec<Event<T>>) -> Option<Self> {
        (!events.is_empty()).then_some(Self { events })
    }

    /// The events.
    #[must_use]
    pub fn into_events(self) -> Vec<Event<T>> {
        self.events
    }

    /// When the events were sent at the latest, in milliseconds since 1970.
    #[must_use]
    #[doc(alias = "receivedAt")]
    pub fn received_at_unix_ms(&self) -> u64 {
        self.events.iter().map(|event| event.envelope.at_unix_ms).max().unwrap_or(0)
    }

    /// The payloads, in the order they were sent.
    pub fn payloads(&self) -> impl Iterator<Item = &T> {
        self.events.iter().map(Event::payload)
    }
}

impl<T> Deref for Batch<T> {
    type Target = [Event<T>];

    fn deref(&self) -> &[Event<T>] {
        &self.events
    }
}

/// An event or a batch of events, without its type.
pub trait ErasedEvent: Send + Sync {
    /// The context; of a batch, that of its first event.
    fn envelope(&self) -> &Envelope;

    /// The payload; of a batch, that of its first event.
    fn payload(&self) -> &dyn ErasedPayload;

    /// For downcasts to the event's own type.
    fn as_any(&self) -> &dyn Any;

    /// A copy that can be shared and kept.
    fn to_shared(&self) -> Arc<dyn ErasedEvent>;

    /// The number of events.
    fn len(&self) -> usize {
        1
    }

    /// Never: an event is one, and a batch has at least one.
    fn is_empty(&self) -> bool {
        false
    }

    /// One event of a batch; an event is its own first and only one.
    fn single(&self, index: usize) -> Option<&dyn ErasedEvent>;

    /// Whether it was sent as a batch.
    fn is_batch(&self) -> bool {
        false
    }
}

impl<T: Payload> ErasedEvent for Event<T> {
    #[inline]
    fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    #[inline]
    fn payload(&self) -> &dyn ErasedPayload {
        &self.payload
    }

    #[inline]
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn to_shared(&self) -> Arc<dyn ErasedEvent> {
        Arc::new(self.clone())
    }

    fn single(&self, index: usize) -> Option<&dyn ErasedEvent> {
        (index == 0).then_some(self)
    }
}

impl<T: Payload> ErasedEvent for Batch<T> {
    fn envelope(&self) -> &Envelope {
        &self.events[0].envelope
    }

    fn payload(&self) -> &dyn ErasedPayload {
        &self.events[0].payload
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn to_shared(&self) -> Arc<dyn ErasedEvent> {
        Arc::new(self.clone())
    }

    fn len(&self) -> usize {
        self.events.len()
    }

    fn single(&self, index: usize) -> Option<&dyn ErasedEvent> {
        self.events.get(index).map(|event| event as _)
    }

    fn is_batch(&self) -> bool {
        true
    }
}

impl fmt::Debug for dyn ErasedEvent + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.envelope().event_type, self.envelope().id)
    }
}

/// The hops a [`Path`] keeps.
pub const PATH_HOPS_MAX: usize = 5;

const _: () =
    assert!(size_of::<Envelope>() <= 128, "the envelope travels by value on the way of every event");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_keeps_the_nearest_hops() {
        let mut path = Path::default();
        for key in 1..=7 {
            path = path.extended(NodeKey(key));
        }
        assert_eq!(path.hops().map(|key| key.0).collect::<Vec<_>>(), [7, 6, 5, 4, 3]);
    }
}
