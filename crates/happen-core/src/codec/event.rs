//! The wire form of one event. Owns which fields there are and what they are called; does not know how an event
//! looks inside a process.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::codec::frame::{
    FieldWriter, FrameError, FrameProblem, UnknownField, fields, keep_unknown, read_list, read_version,
    undecodable, within,
};
use crate::codec::msgpack::{Head, Reader, put_bin, put_head, put_text};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{PATH_HOPS_MAX, Purpose};
use crate::hash::EventHash;
use crate::id::EventId;
use crate::limits::{CAUSES_MAX, DELEGATIONS_MAX, METADATA_BYTES_MAX, PERMISSIONS_MAX};

/// One event as it leaves a process or is stored: its envelope with names in full, and the bytes of its payload.
///
/// Decoding borrows texts, metadata and payload from the bytes. It allocates only for what few events have: several
/// causes, delegations, permissions, and fields of later versions.
///
/// # Examples
///
/// ```
/// use happen_core::codec::WireEvent;
/// use happen_core::limits::EVENT_BYTES_MAX;
///
/// let id = "0197a5d0-7c00-7000-8000-000000000001".parse()?;
/// let payload = [0x81, 0xa5, b't', b'o', b't', b'a', b'l', 7];
/// let mut event = WireEvent::new(id, "order.created", 1_750_000_000_000, &payload);
/// event.sender = "orders".into();
///
/// let mut bytes = Vec::new();
/// event.encode_into(&mut bytes, EVENT_BYTES_MAX)?;
/// let read = WireEvent::decode(&bytes, EVENT_BYTES_MAX)?;
/// assert_eq!(read, event);
/// # Ok::<(), happen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WireEvent<'a> {
    /// The event's own id.
    pub id: EventId,
    /// Its type.
    pub event_type: Cow<'a, str>,
    /// When it was sent, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The root event of its correlation; a root's own id.
    pub root: EventId,
    /// The event that caused it first; `None` for a root.
    pub cause: Option<CauseLink<'a>>,
    /// Causes beyond the first, at most [`CAUSES_MAX`] with it.
    pub more_causes: Vec<CauseLink<'a>>,
    /// The number of causes up to the root; 0 for a root.
    pub depth: u32,
    /// The id of the node that sent it; empty for a sender outside any node.
    pub sender: Cow<'a, str>,
    /// The id of the node that sent the root event; empty as above.
    pub origin: Cow<'a, str>,
    /// The correlation that the sender of the root chose.
    pub correlation: Option<Cow<'a, str>>,
    /// Whose source the root came from.
    pub source_id: Option<Cow<'a, str>>,
    /// What kind of source that is.
    pub source_type: Option<Cow<'a, str>>,
    /// The user on whose account it happens.
    pub user: Option<WireUser<'a>>,
    /// Who acted on whose behalf, the oldest first, at most [`DELEGATIONS_MAX`].
    pub delegations: Vec<WireDelegation<'a>>,
    /// The metadata, as a MessagePack map of at most [`METADATA_BYTES_MAX`] bytes; empty when there is none.
    pub metadata: Cow<'a, [u8]>,
    /// Fields of later versions, in the order they came in.
    pub unknown: Vec<UnknownField<'a>>,
    /// The nodes it came by, the nearest first. Of the way: not covered by the hash.
    pub path: WirePath<'a>,
    /// When an answer comes too late, in milliseconds since 1970; 0 for never. Of the way.
    pub deadline_unix_ms: u64,
    /// How it was sent. Of the way.
    pub purpose: Purpose,
    /// The W3C trace context. Of the way.
    pub trace: Option<WireTrace<'a>>,
    /// The key by which the event is known when it is sent once more. Of the way.
    pub key: Option<Cow<'a, str>>,
    /// Who keeps the event until it is taken in. Of the way.
    pub handover: Option<Handover>,
    /// The hash, when it was computed.
    pub hash: Option<EventHash>,
    /// The payload's bytes, as they were encoded first.
    pub payload: &'a [u8],
}

/// A cause as its effect remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CauseLink<'a> {
    /// It was stored or sent, so its hash is known and part of the effect's.
    Known {
        /// The cause.
        id: EventId,
        /// Its hash.
        hash: EventHash,
    },
    /// It never left its process; here the web that can be verified ends.
    Local {
        /// The cause.
        id: EventId,
        /// Its type.
        event_type: &'a str,
    },
    /// Only the id is told: the event is not hashed, or nothing else is remembered of its cause.
    Bare {
        /// The cause.
        id: EventId,
    },
}

/// A user as an event tells of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireUser<'a> {
    /// The id.
    pub id: Cow<'a, str>,
    /// The permissions, at most [`PERMISSIONS_MAX`].
    pub permissions: Vec<Cow<'a, str>>,
}

/// A node that acted on behalf of another source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireDelegation<'a> {
    /// The node.
    pub node: Cow<'a, str>,
    /// The source it acted for, as `type:id`.
    pub on_behalf_of: Cow<'a, str>,
}

/// A W3C trace context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireTrace<'a> {
    /// The header `traceparent`.
    pub parent: Cow<'a, str>,
    /// The header `tracestate`.
    pub state: Cow<'a, str>,
}

/// Who keeps an event until its node has taken it in, and where the event stands among those that wait for this node.
///
/// A node takes in what comes from one space in the order of the positions, each once: one that is not behind the last
/// it took was there before, and one that comes before its turn is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a part of the format")]
pub struct Handover {
    /// The identity of the space that keeps the event.
    pub space: [u8; 16],
    /// The position of the event in the log of that space; 0 asks for the outcome of an event that was taken in, or will
    /// be.
    pub at: u128,
    /// The position of the event before it that waited for the same node when this one left; 0 when none did.
    pub after: u128,
}

/// The ids of the last nodes an event came by, the nearest first; no more than [`PATH_HOPS_MAX`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WirePath<'a> {
    hops: [Cow<'a, str>; PATH_HOPS_MAX],
    len: usize,
}

// A name that starts with `_` belongs to the way of the event and is not covered by its hash; see `docs/format.md`.
fields! {
    Id = "id", Type = "type", At = "at", Root = "root", Causes = "causes", Depth = "depth", Sender = "sender",
    Origin = "origin", Correlation = "corr", SourceId = "source", SourceType = "source_type", User = "user",
    Delegations = "behalf", Metadata = "meta", Path = "_path", Deadline = "_deadline", Purpose = "_for",
    Trace = "_trace", Key = "_key", Handover = "_handed", Hash = "_hash",
}

type Read<T> = std::result::Result<T, FrameError>;

impl<'a> WireEvent<'a> {
    /// A root event without sender, to be filled in.
    #[must_use]
    pub fn new(id: EventId, event_type: impl Into<Cow<'a, str>>, at_unix_ms: u64, payload: &'a [u8]) -> Self {
        Self {
            id,
            event_type: event_type.into(),
            at_unix_ms,
            root: id,
            cause: None,
            more_causes: Vec::new(),
            depth: 0,
            sender: Cow::default(),
            origin: Cow::default(),
            correlation: None,
            source_id: None,
            source_type: None,
            user: None,
            delegations: Vec::new(),
            metadata: Cow::default(),
            unknown: Vec::new(),
            path: WirePath::default(),
            deadline_unix_ms: 0,
            purpose: Purpose::Send,
            trace: None,
            key: None,
            handover: None,
            hash: None,
            payload,
        }
    }

    /// All causes, the first one first.
    pub fn causes(&self) -> impl Iterator<Item = &CauseLink<'a>> {
        self.cause.iter().chain(&self.more_causes)
    }

    /// Appends the event's bytes; nothing is appended when it is refused.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Oversized`] when it has more than `bytes_max` bytes.
    /// - [`ErrorKind::Unencodable`] when a list is longer than its limit or the metadata are no map.
    pub fn encode_into(&self, out: &mut Vec<u8>, bytes_max: usize) -> Result<()> {
        self.check_limits().map_err(|error| self.unencodable().with_source(error))?;
        // Checked before anything is copied, and again when the envelope's own size is known.
        within(self.payload.len(), bytes_max)?;
        let start = out.len();
        self.write(out);
        let bytes = out.len() - start;
        within(bytes, bytes_max).inspect_err(|_| out.truncate(start))
    }

    /// The event in these bytes, all of which belong to it.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Oversized`] when there are more than `bytes_max` bytes; none of them is read.
    /// - [`ErrorKind::Undecodable`] when they are no event of this version; the source is a [`FrameError`] that says
    ///   what is wrong at which byte.
    ///
    /// # Cost
    ///
    /// One pass over the envelope, none over the payload.
    pub fn decode(bytes: &'a [u8], bytes_max: usize) -> Result<Self> {
        within(bytes.len(), bytes_max)?;
        Self::read(bytes).map_err(|error| undecodable("event", error))
    }

    /// The metadata as JSON values.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] when they have no form in JSON.
    pub fn metadata(&self) -> Result<BTreeMap<String, Json>> {
        if self.metadata.is_empty() {
            return Ok(BTreeMap::new());
        }
        rmp_serde::from_slice(&self.metadata).map_err(|error| {
            Error::new(ErrorKind::Undecodable { wanted: "metadata".to_owned() })
                .with_source(error)
                .at_event(self.id)
        })
    }

    fn check_limits(&self) -> Read<()> {
        let permissions = self.user.as_ref().map_or(0, |user| user.permissions.len());
        for (field, found, max) in [
            (Field::Causes, self.causes().count(), CAUSES_MAX),
            (Field::Delegations, self.delegations.len(), DELEGATIONS_MAX),
            (Field::User, permissions, PERMISSIONS_MAX),
            (Field::Metadata, self.metadata.len(), METADATA_BYTES_MAX),
        ] {
            if found > max {
                return Err(FrameError::new(FrameProblem::OverLimit { found, max }, 0).in_field(field.name()));
            }
        }
        if !self.metadata.is_empty() {
            let mut reader = Reader::new(&self.metadata);
            let well_formed = read_metadata(&mut reader).and_then(|_| reader.end());
            well_formed.map_err(|error| error.in_field(Field::Metadata.name()))?;
        }
        Ok(())
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut fields = FieldWriter::new(out);
        put_bin(fields.field(Field::Id.name()), &self.id.to_bytes());
        fields.text(Field::Type.name(), &self.event_type);
        fields.number(Field::At.name(), self.at_unix_ms);
        if self.root != self.id {
            put_bin(fields.field(Field::Root.name()), &self.root.to_bytes());
        }
        let causes = self.causes().count();
        if causes > 0 {
            let out = fields.field(Field::Causes.name());
            put_head(out, Head::Array(causes));
            self.causes().for_each(|cause| cause.write(out));
        }
        if self.depth > 0 {
            fields.number(Field::Depth.name(), u64::from(self.depth));
        }
        if !self.sender.is_empty() {
            fields.text(Field::Sender.name(), &self.sender);
        }
        // The same text most often: to compare what was written just now takes longer than anything else here.
        if !std::ptr::eq(&*self.origin, &*self.sender) && self.origin != self.sender {
            fields.text(Field::Origin.name(), &self.origin);
        }
        for (field, text) in [
            (Field::Correlation, &self.correlation),
            (Field::SourceId, &self.source_id),
            (Field::SourceType, &self.source_type),
        ] {
            if let Some(text) = text {
                fields.text(field.name(), text);
            }
        }
        if let Some(user) = &self.user {
            let texts = std::iter::once(&user.id).chain(&user.permissions).map(|text| &**text);
            let out = fields.field(Field::User.name());
            put_head(out, Head::Array(1 + user.permissions.len()));
            texts.for_each(|text| put_text(out, text));
        }
        if !self.delegations.is_empty() {
            let out = fields.field(Field::Delegations.name());
            put_head(out, Head::Array(self.delegations.len()));
            for delegation in &self.delegations {
                put_head(out, Head::Array(2));
                put_text(out, &delegation.node);
                put_text(out, &delegation.on_behalf_of);
            }
        }
        if !self.metadata.is_empty() {
            fields.field(Field::Metadata.name()).extend_from_slice(&self.metadata);
        }
        if self.path.len > 0 {
            fields.texts(Field::Path.name(), self.path.hops());
        }
        if self.deadline_unix_ms > 0 {
            fields.number(Field::Deadline.name(), self.deadline_unix_ms);
        }
        if self.purpose != Purpose::Send {
            fields.text(Field::Purpose.name(), purpose_text(self.purpose));
        }
        if let Some(trace) = &self.trace {
            fields.texts(Field::Trace.name(), [&*trace.parent, &*trace.state].into_iter());
        }
        if let Some(key) = &self.key {
            fields.text(Field::Key.name(), key);
        }
        if let Some(handover) = &self.handover {
            put_bin(fields.field(Field::Handover.name()), &handover.to_bytes());
        }
        if let Some(hash) = &self.hash {
            put_bin(fields.field(Field::Hash.name()), hash.as_bytes());
        }
        fields.unknown(&self.unknown);
        fields.finish(self.payload);
    }

    fn read(bytes: &'a [u8]) -> Read<Self> {
        let mut reader = Reader::new(bytes);
        read_version(&mut reader)?;
        let head_at = reader.at();
        // The id stands for the missing one until the end.
        let mut event = Self::new(EventId::MIN, "", 0, &[]);
        let mut seen = 0;
        for _ in 0..reader.map()? {
            let key_at = reader.at();
            let key = reader.text()?;
            let Some(field) = Field::of(key) else {
                keep_unknown(&mut reader, key, key_at, &mut event.unknown)?;
                continue;
            };
            if seen & field.bit() != 0 {
                return Err(FrameError::new(FrameProblem::Duplicate, key_at).in_field(field.name()));
            }
            seen |= field.bit();
            event.read_field(field, &mut reader).map_err(|error| error.in_field(field.name()))?;
        }
        for field in [Field::Id, Field::Type, Field::At] {
            if seen & field.bit() == 0 {
                return Err(FrameError::new(FrameProblem::Missing, head_at).in_field(field.name()));
            }
        }
        if seen & Field::Root.bit() == 0 {
            event.root = event.id;
        }
        if seen & Field::Origin.bit() == 0 {
            event.origin = event.sender.clone();
        }
        event.payload = reader.bin().map_err(|error| error.in_field("payload"))?;
        reader.end()?;
        Ok(event)
    }

    fn read_field(&mut self, field: Field, reader: &mut Reader<'a>) -> Read<()> {
        match field {
            Field::Id => self.id = reader.id()?,
            Field::Type => self.event_type = reader.text()?.into(),
            Field::At => self.at_unix_ms = reader.number()?,
            Field::Root => self.root = reader.id()?,
            Field::Causes => {
                let causes = reader.array(CAUSES_MAX)?;
                for index in 0..causes {
                    let cause = CauseLink::read(reader)?;
                    match index {
                        0 => self.cause = Some(cause),
                        _ => self.more_causes.push(cause),
                    }
                }
            }
            Field::Depth => {
                let start = reader.at();
                let wanted = FrameProblem::Unexpected { wanted: "a number of at most 32 bits" };
                self.depth = u32::try_from(reader.number()?).map_err(|_| FrameError::new(wanted, start))?;
            }
            Field::Sender => self.sender = reader.text()?.into(),
            Field::Origin => self.origin = reader.text()?.into(),
            Field::Correlation => self.correlation = Some(reader.text()?.into()),
            Field::SourceId => self.source_id = Some(reader.text()?.into()),
            Field::SourceType => self.source_type = Some(reader.text()?.into()),
            Field::User => self.user = Some(WireUser::read(reader)?),
            Field::Delegations => {
                self.delegations = read_list(reader, DELEGATIONS_MAX, WireDelegation::read)?;
            }
            Field::Metadata => self.metadata = read_metadata(reader)?.into(),
            Field::Path => {
                // A sender that keeps more hops than this version is not wrong; the farthest are left out.
                for _ in 0..reader.array(usize::MAX)? {
                    self.path.push(reader.text()?);
                }
            }
            Field::Deadline => self.deadline_unix_ms = reader.number()?,
            Field::Purpose => {
                let start = reader.at();
                let wanted = FrameProblem::Unexpected { wanted: "`send`, `ask`, `stream` or `broadcast`" };
                self.purpose = purpose_of(reader.text()?).ok_or_else(|| FrameError::new(wanted, start))?;
            }
            Field::Trace => {
                pair(reader, "the two texts of a trace context")?;
                self.trace = Some(WireTrace { parent: reader.text()?.into(), state: reader.text()?.into() });
            }
            Field::Key => self.key = Some(reader.text()?.into()),
            Field::Handover => {
                let bytes = reader.fixed_bin("the 48 bytes of a handover")?;
                self.handover = Some(Handover::from_bytes(&bytes));
            }
            Field::Hash => self.hash = Some(EventHash::from(reader.fixed_bin("the 32 bytes of a hash")?)),
        }
        Ok(())
    }

    #[cold]
    pub(super) fn unencodable(&self) -> Error {
        Error::new(ErrorKind::Unencodable { event_type: self.event_type.clone().into_owned() })
            .at_event(self.id)
    }
}

impl CauseLink<'_> {
    /// The cause.
    #[must_use]
    pub const fn id(&self) -> EventId {
        match self {
            Self::Known { id, .. } | Self::Local { id, .. } | Self::Bare { id } => *id,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let id = self.id().to_bytes();
        match self {
            Self::Bare { .. } => put_bin(out, &id),
            Self::Known { hash, .. } => {
                put_head(out, Head::Array(2));
                put_bin(out, &id);
                put_bin(out, hash.as_bytes());
            }
            Self::Local { event_type, .. } => {
                put_head(out, Head::Array(2));
                put_bin(out, &id);
                put_text(out, event_type);
            }
        }
    }
}

impl<'a> CauseLink<'a> {
    fn read(reader: &mut Reader<'a>) -> Read<Self> {
        if let Head::Bin(_) = reader.peek()? {
            return Ok(Self::Bare { id: reader.id()? });
        }
        pair(reader, "an id, or an id with a hash or a type")?;
        let id = reader.id()?;
        Ok(match reader.peek()? {
            Head::Str(_) => Self::Local { id, event_type: reader.text()? },
            _ => Self::Known { id, hash: EventHash::from(reader.fixed_bin("the 32 bytes of a hash")?) },
        })
    }
}

impl<'a> WireUser<'a> {
    fn read(reader: &mut Reader<'a>) -> Read<Self> {
        let start = reader.at();
        let Some(permissions) = reader.array(1 + PERMISSIONS_MAX)?.checked_sub(1) else {
            let wanted = FrameProblem::Unexpected { wanted: "a user's id and permissions" };
            return Err(FrameError::new(wanted, start));
        };
        let mut user = Self { id: reader.text()?.into(), permissions: Vec::new() };
        for _ in 0..permissions {
            user.permissions.push(reader.text()?.into());
        }
        Ok(user)
    }
}

impl<'a> WireDelegation<'a> {
    fn read(reader: &mut Reader<'a>) -> Read<Self> {
        pair(reader, "a node and whom it acted for")?;
        Ok(Self { node: reader.text()?.into(), on_behalf_of: reader.text()?.into() })
    }
}

impl Handover {
    /// Whether the outcome of the event is asked for, and nothing is handed over.
    #[must_use]
    pub const fn asks_for_outcome(&self) -> bool {
        self.at == 0
    }

    fn to_bytes(self) -> [u8; HANDOVER_BYTES] {
        let mut bytes = [0; HANDOVER_BYTES];
        bytes[..16].copy_from_slice(&self.space);
        bytes[16..32].copy_from_slice(&self.at.to_be_bytes());
        bytes[32..].copy_from_slice(&self.after.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HANDOVER_BYTES]) -> Self {
        let part = |start: usize| {
            let mut part = [0; 16];
            part.copy_from_slice(&bytes[start..start + 16]);
            part
        };
        Self { space: part(0), at: u128::from_be_bytes(part(16)), after: u128::from_be_bytes(part(32)) }
    }
}

impl<'a> WirePath<'a> {
    /// The hops, the nearest first.
    #[must_use]
    pub fn hops(&self) -> impl DoubleEndedIterator<Item = &str> + ExactSizeIterator {
        self.hops[..self.len].iter().map(|hop| &**hop)
    }

    fn push(&mut self, hop: impl Into<Cow<'a, str>>) {
        if let Some(free) = self.hops.get_mut(self.len) {
            *free = hop.into();
            self.len += 1;
        }
    }
}

/// The nearest first; those beyond the limit are left out, as they are when a path grows.
impl<'a, T: Into<Cow<'a, str>>> FromIterator<T> for WirePath<'a> {
    fn from_iter<I: IntoIterator<Item = T>>(hops: I) -> Self {
        let mut path = Self::default();
        hops.into_iter().take(PATH_HOPS_MAX).for_each(|hop| path.push(hop));
        path
    }
}

const fn purpose_text(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Send => "send",
        Purpose::Ask => "ask",
        Purpose::Stream => "stream",
        Purpose::Broadcast => "broadcast",
        Purpose::Stored => "stored",
    }
}

fn purpose_of(text: &str) -> Option<Purpose> {
    [Purpose::Send, Purpose::Ask, Purpose::Stream, Purpose::Broadcast, Purpose::Stored]
        .into_iter()
        .find(|purpose| purpose_text(*purpose) == text)
}

fn read_metadata<'a>(reader: &mut Reader<'a>) -> Read<&'a [u8]> {
    let start = reader.at();
    let Head::Map(_) = reader.peek()? else {
        return Err(FrameError::new(FrameProblem::Unexpected { wanted: "a map" }, start));
    };
    let bytes = reader.value()?;
    if bytes.len() > METADATA_BYTES_MAX {
        let problem = FrameProblem::OverLimit { found: bytes.len(), max: METADATA_BYTES_MAX };
        return Err(FrameError::new(problem, start));
    }
    Ok(bytes)
}

fn pair(reader: &mut Reader<'_>, wanted: &'static str) -> Read<()> {
    let start = reader.at();
    match reader.peek()? {
        Head::Array(2) => reader.array(2).map(drop),
        _ => Err(FrameError::new(FrameProblem::Unexpected { wanted }, start)),
    }
}

/// The bytes of a handover: an identity and two positions.
const HANDOVER_BYTES: usize = 48;
