//! From the envelope of a process to the wire and back. Owns how node keys, which mean something in one space only, become
//! the ids that travel; does not know the bytes.

use std::borrow::Cow;
use std::sync::Arc;

use crate::codec::event::{CauseLink, WireDelegation, WireEvent, WireTrace, WireUser};
use crate::error::Result;
use crate::event::{Delegation, Envelope, Extra, Inherited, NodeKey, Path, Trace, User};
use crate::name::EventType;

impl<'a> WireEvent<'a> {
    /// The wire form of an event of this process. `node_id` is asked for the ids of the nodes it names; the space itself
    /// has none. Causes are bare and there is no hash yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unencodable`](crate::ErrorKind::Unencodable) when its metadata have no form in MessagePack.
    pub fn from_envelope(
        envelope: &'a Envelope,
        payload: &'a [u8],
        node_id: impl Fn(NodeKey) -> Cow<'a, str>,
    ) -> Result<Self> {
        let name = |node: NodeKey| if node.0 == 0 { Cow::default() } else { node_id(node) };
        let mut event = Self::new(envelope.id, envelope.event_type.as_str(), envelope.at_unix_ms, payload);
        event.root = envelope.root;
        event.cause = envelope.cause.map(|id| CauseLink::Bare { id });
        event.depth = envelope.depth;
        event.sender = name(envelope.sender);
        event.origin = name(envelope.origin);
        event.path = envelope.path.hops().map(name).collect();
        event.deadline_unix_ms = envelope.deadline_unix_ms;
        event.purpose = envelope.purpose;
        let Some(extra) = &envelope.extra else { return Ok(event) };
        event.more_causes = extra.more_causes.iter().map(|id| CauseLink::Bare { id: *id }).collect();
        if !extra.metadata.is_empty() {
            let bytes = rmp_serde::to_vec_named(&extra.metadata)
                .map_err(|error| event.unencodable().with_source(error))?;
            event.metadata = bytes.into();
        }
        if let Some(inherited) = &extra.inherited {
            event.correlation = inherited.correlation.as_deref().map(Cow::from);
            event.source_id = inherited.source_id.as_deref().map(Cow::from);
            event.source_type = inherited.source_type.as_deref().map(Cow::from);
            event.user = inherited.user.as_deref().map(WireUser::from);
            event.trace = inherited.trace.as_deref().map(WireTrace::from);
            event.delegations = inherited.delegations.iter().map(WireDelegation::from).collect();
        }
        Ok(event)
    }

    /// The envelope of the event in this process. `node_key` is asked for the keys of the nodes it names, which may be
    /// nodes elsewhere.
    ///
    /// What an envelope has no place for stays behind: hashes of causes, the event's own, and unknown fields. Who passes
    /// an event on, or verifies it later, keeps its bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`](crate::ErrorKind::Undecodable) when its metadata have no form in JSON.
    pub fn to_envelope(
        &self,
        event_type: EventType,
        mut node_key: impl FnMut(&str) -> NodeKey,
    ) -> Result<Envelope> {
        let mut key = |id: &str| if id.is_empty() { NodeKey::default() } else { node_key(id) };
        let mut envelope = Envelope {
            id: self.id,
            cause: self.cause.map(|cause| cause.id()),
            root: self.root,
            at_unix_ms: self.at_unix_ms,
            event_type,
            extra: None,
            deadline_unix_ms: self.deadline_unix_ms,
            sender: key(&self.sender),
            origin: key(&self.origin),
            depth: self.depth,
            path: self.path.hops().rev().fold(Path::default(), |path, hop| path.extended(key(hop))),
            purpose: self.purpose,
        };
        let extra = Extra {
            inherited: self.inherited().map(Arc::new),
            more_causes: self.more_causes.iter().map(CauseLink::id).collect(),
            metadata: self.metadata()?,
        };
        if extra.inherited.is_some() || !extra.more_causes.is_empty() || !extra.metadata.is_empty() {
            envelope.extra = Some(Arc::new(extra));
        }
        Ok(envelope)
    }

    fn inherited(&self) -> Option<Inherited> {
        let shared = |text: &Option<Cow<'_, str>>| text.as_deref().map(Arc::from);
        let none = self.correlation.is_none()
            && self.source_id.is_none()
            && self.source_type.is_none()
            && self.user.is_none()
            && self.trace.is_none()
            && self.delegations.is_empty();
        (!none).then(|| Inherited {
            correlation: shared(&self.correlation),
            source_id: shared(&self.source_id),
            source_type: shared(&self.source_type),
            user: self.user.as_ref().map(|user| Arc::new(User::from(user))),
            trace: self.trace.as_ref().map(|trace| Arc::new(Trace::from(trace))),
            delegations: self.delegations.iter().map(Delegation::from).collect(),
        })
    }
}

impl<'a> From<&'a User> for WireUser<'a> {
    fn from(user: &'a User) -> Self {
        let permissions = user.permissions.iter().map(Cow::from).collect();
        Self { id: Cow::from(&user.id), permissions }
    }
}

impl From<&WireUser<'_>> for User {
    fn from(user: &WireUser<'_>) -> Self {
        let permissions = user.permissions.iter().map(|text| text.clone().into_owned()).collect();
        Self { id: user.id.clone().into_owned(), permissions }
    }
}

impl<'a> From<&'a Trace> for WireTrace<'a> {
    fn from(trace: &'a Trace) -> Self {
        Self { parent: Cow::from(&trace.parent), state: Cow::from(&trace.state) }
    }
}

impl From<&WireTrace<'_>> for Trace {
    fn from(trace: &WireTrace<'_>) -> Self {
        Self { parent: trace.parent.clone().into_owned(), state: trace.state.clone().into_owned() }
    }
}

impl<'a> From<&'a Delegation> for WireDelegation<'a> {
    fn from(delegation: &'a Delegation) -> Self {
        Self { node: Cow::from(&delegation.node), on_behalf_of: Cow::from(&delegation.on_behalf_of) }
    }
}

impl From<&WireDelegation<'_>> for Delegation {
    fn from(delegation: &WireDelegation<'_>) -> Self {
        Self {
            node: delegation.node.clone().into_owned(),
            on_behalf_of: delegation.on_behalf_of.clone().into_owned(),
        }
    }
}
