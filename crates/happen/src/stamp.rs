//! The stamp every event gets before it leaves: id, time, causes, correlation, path, limits. The only place where an
//! envelope is made, so causality cannot be left out.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use happen_core::event::{Inherited, Path, Purpose};
use happen_core::limits::CAUSES_MAX;
use happen_core::payload::ErasedPayload;
use happen_core::{
    Dynamic, Envelope, ErasedEvent, Error, ErrorKind, Event, EventId, EventType, NodeKey, Payload, Result,
};

use crate::context::Context;
use crate::durable::StoredFlow;
use crate::flow::FlowInner;
use crate::hooks::{self, Seen};
use crate::import::Imported;
use crate::local;
use crate::send::{Extras, Sender};
use crate::space::SpaceInner;

/// The flow that causes what is sent.
pub(crate) type Cause<'c> = &'c FlowInner;

/// The moment at which an event is made: what its sender has to have before anything is built.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) id: EventId,
    at_unix_ms: u64,
}

/// Lets an event leave, or not.
///
/// # Errors
///
/// [`ErrorKind::Runaway`] when a limit on the correlation is passed, [`ErrorKind::Misuse`] inside a function that must
/// have no effects.
#[inline(always)]
pub(crate) fn admit(space: &SpaceInner, cause: Option<Cause<'_>>) -> Result<Moment> {
    crate::pure::check("send an event")?;
    let at_unix_ms = space.now_unix_ms();
    let id = match cause {
        None => local::with_local(space, |local| local.next_id(at_unix_ms)),
        Some(flow) => admitted(space, flow, at_unix_ms)?,
    };
    Ok(Moment { id, at_unix_ms })
}

/// The envelope of an event that was let go. A header that is copied right after it was written costs as much as
/// writing it: this belongs where the event is built, in one expression.
#[inline(always)]
pub(crate) fn envelope(
    moment: Moment,
    space: &SpaceInner,
    sender: NodeKey,
    cause: Option<Cause<'_>>,
    event_type: EventType,
    purpose: Purpose,
) -> Envelope {
    let Moment { id, at_unix_ms } = moment;
    match cause {
        None => root(id, space, sender, event_type, purpose, at_unix_ms),
        Some(flow) => caused(id, flow, sender, event_type, purpose, at_unix_ms),
    }
}

/// Makes an event that is about to leave.
///
/// # Errors
///
/// As [`admit`] and [`complete`].
pub(crate) fn stamped<T: Payload>(
    sender: Sender<'_>,
    payload: T,
    purpose: Purpose,
    extras: Option<&Extras>,
) -> Result<Event<T>> {
    let space = sender.space();
    sender.with_cause(|cause| {
        let moment = admit(space, cause)?;
        let envelope = envelope(moment, space, sender.key(), cause, payload.event_type(), purpose);
        let mut event = Event::from_parts(envelope, payload);
        complete(sender, &mut event, extras)?;
        Ok(event)
    })
}

/// Adds what the sender chose, and asks the hooks.
///
/// # Errors
///
/// [`ErrorKind::Misuse`] when a root's privilege is used inside a handler, or what a hook objects.
#[inline(always)]
pub(crate) fn complete<T: Payload>(
    sender: Sender<'_>,
    event: &mut Event<T>,
    extras: Option<&Extras>,
) -> Result<()> {
    if extras.is_none() && !sender.space().watches_emits(sender) {
        return Ok(());
    }
    let (envelope, payload) = event.parts_mut();
    complete_envelope(sender, envelope, payload, extras)
}

/// The envelope of an event that happened elsewhere, with the causes its importer names.
///
/// # Errors
///
/// As [`stamped`], and [`ErrorKind::Misuse`] where causes are not the sender's to say.
pub(crate) fn stamp_imported(
    sender: Sender<'_>,
    payload: &dyn ErasedPayload,
    causes: &[Imported],
    extras: Option<&Extras>,
) -> Result<Envelope> {
    let event_type = payload.event_type();
    let space = sender.space();
    if sender.with_cause(|cause| cause.is_some()) {
        return Err(Error::misuse(
            "a cause was named inside a handler, where the event being handled is the cause; import outside of one",
        ));
    }
    if causes.iter().any(|cause| cause.space != space.id) {
        return Err(Error::misuse("an imported event was given a cause that is an event of another space"));
    }
    if causes.len() > CAUSES_MAX {
        return Err(Error::misuse(format!(
            "an event has {} causes; {CAUSES_MAX} is the limit",
            causes.len()
        )));
    }
    let at_unix_ms = space.now_unix_ms();
    let id = local::with_local(space, |local| local.next_id(at_unix_ms));
    let mut envelope = root(id, space, sender.key(), event_type, Purpose::Broadcast, at_unix_ms);
    if let Some((first, more)) = causes.split_first() {
        let depth_max = space.config.correlation.depth_max;
        if first.depth >= depth_max {
            let path = space.way_to(first.event, RUNAWAY_PATH);
            let limit = "correlation.depth_max";
            let error = Error::new(ErrorKind::Runaway { limit, max: u64::from(depth_max), path });
            return Err(error.at_event(first.event));
        }
        let youngest = more.iter().map(|cause| cause.event).fold(first.event, EventId::max);
        envelope.id = local::with_local(space, |local| local.next_id_after(at_unix_ms, youngest));
        envelope.cause = Some(first.event);
        envelope.root = first.root;
        envelope.origin = first.origin;
        envelope.depth = first.depth + 1;
        if first.inherited.is_some() {
            envelope.extra_mut().inherited.clone_from(&first.inherited);
        }
        if !more.is_empty() {
            envelope.extra_mut().more_causes = more.iter().map(|cause| cause.event).collect();
        }
    }
    complete_envelope(sender, &mut envelope, payload, extras)?;
    Ok(envelope)
}

/// An event that follows from a change of a state, before anybody knows what it is caused by.
pub(crate) struct Unstamped {
    event_type: EventType,
    event: Box<dyn FnOnce(Envelope) -> Arc<dyn ErasedEvent> + Send>,
}

impl Unstamped {
    pub(crate) fn of<T: Payload>(payload: T) -> Self {
        let event_type = payload.event_type();
        Self { event_type, event: Box::new(|envelope| Arc::new(Event::from_parts(envelope, payload))) }
    }
}

/// An event that a step of a durable node sends, with the id that follows from its place in the step.
///
/// # Errors
///
/// As [`admit`] and [`complete`].
pub(crate) fn staged<T: Payload>(
    sender: Sender<'_>,
    flow: Cause<'_>,
    payload: T,
    purpose: Purpose,
    extras: Option<&Extras>,
    id: EventId,
) -> Result<Event<T>> {
    crate::pure::check("send an event")?;
    let space = sender.space();
    check_limits(space, flow)?;
    let envelope = caused(id, flow, sender.key(), payload.event_type(), purpose, space.now_unix_ms());
    let mut event = Event::from_parts(envelope, payload);
    complete(sender, &mut event, extras)?;
    Ok(event)
}

/// An event that follows from a change of a state by a step.
///
/// # Errors
///
/// [`ErrorKind::Runaway`] when a limit on the correlation is passed.
pub(crate) fn consequence_of(
    flow: &StoredFlow,
    id: EventId,
    unstamped: Unstamped,
) -> Result<Arc<dyn ErasedEvent>> {
    let cause = FlowInner::new(Arc::clone(&flow.node), flow.event.envelope().clone());
    let space = &flow.node.space;
    check_limits(space, &cause)?;
    let Unstamped { event_type, event } = unstamped;
    Ok(event(caused(id, &cause, flow.node.key, event_type, Purpose::Broadcast, space.now_unix_ms())))
}

/// The envelope of an event that comes by itself, such as one of a schedule, with an id that follows from what it is.
pub(crate) fn of_nobody(
    space: &SpaceInner,
    id: EventId,
    event_type: EventType,
    purpose: Purpose,
) -> Envelope {
    root(id, space, NodeKey(0), event_type, purpose, space.now_unix_ms())
}

/// The envelope of an event that tells of the failure of a durable flow.
pub(crate) fn failure_of(flow: &StoredFlow, id: EventId, event_type: EventType) -> Envelope {
    let mut envelope = flow.event.envelope().clone();
    envelope.deadline_unix_ms = 0;
    let mut cause = FlowInner::new(Arc::clone(&flow.node), envelope);
    let others = (1..flow.event.len()).filter_map(|index| flow.event.single(index));
    cause.more_causes.extend(others.map(|event| event.envelope().id));
    caused(id, &cause, flow.node.key, event_type, Purpose::Broadcast, flow.node.space.now_unix_ms())
}

#[cold]
fn complete_envelope(
    sender: Sender<'_>,
    envelope: &mut Envelope,
    payload: &dyn ErasedPayload,
    extras: Option<&Extras>,
) -> Result<()> {
    let space = sender.space();
    if let Some(extras) = extras {
        add(space, sender, envelope, extras)?;
    }
    if space.watches_emits(sender) {
        before_emit(space, sender, envelope, payload)?;
    }
    Ok(())
}

#[inline(always)]
fn root(
    id: EventId,
    space: &SpaceInner,
    sender: NodeKey,
    event_type: EventType,
    purpose: Purpose,
    at_unix_ms: u64,
) -> Envelope {
    let deadline = space.config.correlation.deadline_ms;
    Envelope {
        id,
        cause: None,
        root: id,
        at_unix_ms,
        event_type,
        extra: None,
        deadline_unix_ms: if deadline == 0 { 0 } else { at_unix_ms + deadline },
        sender,
        origin: sender,
        depth: 0,
        path: Path::default().extended(sender),
        purpose,
    }
}

/// The id of a further event that this flow causes.
///
/// # Errors
///
/// [`ErrorKind::Runaway`] when a limit on the correlation is passed.
#[inline]
fn admitted(space: &SpaceInner, flow: &FlowInner, at_unix_ms: u64) -> Result<EventId> {
    let id = local::with_local(space, |local| local.next_id_in(at_unix_ms, flow));
    check_limits(space, flow)?;
    Ok(id)
}

/// Counts a further event that this flow causes.
///
/// # Errors
///
/// [`ErrorKind::Runaway`] when a limit on the correlation is passed.
#[inline]
fn check_limits(space: &SpaceInner, flow: &FlowInner) -> Result<()> {
    let cause = flow.envelope();
    let limits = &space.config.correlation;
    let emitted = flow.emitted.fetch_add(1, Ordering::Relaxed);
    let count = local::with_local(space, |local| local.count(cause.root));
    if cause.depth >= limits.depth_max {
        return Err(runaway(space, flow, "correlation.depth_max", u64::from(limits.depth_max)));
    }
    if emitted >= limits.fan_out_max {
        return Err(runaway(space, flow, "correlation.fan_out_max", u64::from(limits.fan_out_max)));
    }
    if count > limits.events_max {
        return Err(runaway(space, flow, "correlation.events_max", limits.events_max));
    }
    Ok(())
}

/// The envelope of an event that this flow causes, whatever the limits say.
#[inline(always)]
fn caused(
    id: EventId,
    flow: &FlowInner,
    sender: NodeKey,
    event_type: EventType,
    purpose: Purpose,
    at_unix_ms: u64,
) -> Envelope {
    let cause = flow.envelope();
    // What a handler sends through the space has no node for a sender; it came by the handler's all the same.
    let hop = if sender.0 == 0 { flow.node().key } else { sender };
    let mut envelope = Envelope {
        id,
        cause: Some(cause.id),
        root: cause.root,
        at_unix_ms,
        event_type,
        extra: cause.extra_for_effect(),
        deadline_unix_ms: cause.deadline_unix_ms,
        sender,
        origin: cause.origin,
        depth: cause.depth.saturating_add(1),
        path: cause.path.extended(hop),
        purpose,
    };
    if !flow.more_causes.is_empty() {
        envelope.extra_mut().more_causes.clone_from(&flow.more_causes);
    }
    envelope
}

/// The envelope of an event that tells of a failure of this flow. No limit holds it back: it is one for each flow, and
/// it is what tells that a limit was passed.
///
/// # Errors
///
/// What a hook objects.
#[cold]
pub(crate) fn stamp_failure(
    flow: &Context,
    event_type: EventType,
    failure: &dyn ErasedPayload,
) -> Result<Envelope> {
    let sender = Sender::Flow(flow);
    let space = sender.space();
    let at_unix_ms = space.now_unix_ms();
    let id = local::with_local(space, |local| local.next_id_in(at_unix_ms, flow.inner()));
    let envelope = caused(id, flow.inner(), sender.key(), event_type, Purpose::Broadcast, at_unix_ms);
    if space.watches_emits(sender) {
        before_emit(space, sender, &envelope, failure)?;
    }
    Ok(envelope)
}

/// The envelope of an event that may not leave and is kept to be looked at, with its cause: no limit and no hook holds
/// that back.
#[cold]
pub(crate) fn bare(sender: Sender<'_>, event_type: EventType, purpose: Purpose) -> Envelope {
    let space = sender.space();
    let at_unix_ms = space.now_unix_ms();
    sender.with_cause(|cause| match cause {
        None => {
            let id = local::with_local(space, |local| local.next_id(at_unix_ms));
            root(id, space, sender.key(), event_type, purpose, at_unix_ms)
        }
        Some(flow) => {
            let id = local::with_local(space, |local| local.next_id_in(at_unix_ms, flow));
            caused(id, flow, sender.key(), event_type, purpose, at_unix_ms)
        }
    })
}

#[cold]
fn runaway(space: &SpaceInner, flow: &FlowInner, limit: &'static str, max: u64) -> Error {
    let path = space.way_to(flow.envelope().id, RUNAWAY_PATH);
    Error::new(ErrorKind::Runaway { limit, max, path })
        .at_event(flow.envelope().id)
        .at_node(&flow.node().name)
}

#[cold]
fn add(space: &SpaceInner, sender: Sender<'_>, envelope: &mut Envelope, extras: &Extras) -> Result<()> {
    let is_root = envelope.cause.is_none();
    if let Some(time) = extras.within {
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        let own = envelope.at_unix_ms.saturating_add(time_ms);
        let inherited = if envelope.deadline_unix_ms == 0 { u64::MAX } else { envelope.deadline_unix_ms };
        envelope.deadline_unix_ms = own.min(inherited);
    }
    if let Some(correlation) = &extras.correlation {
        if !is_root {
            return Err(Error::misuse(
                "a correlation is chosen on a root event; inside a handler it is inherited",
            ));
        }
        envelope.inherited_mut().correlation = Some(Arc::clone(correlation));
        space.name_correlation(correlation, envelope.root);
    }
    if let Some((source_type, source_id)) = &extras.source {
        if !is_root && extras.on_behalf_of.is_none() {
            return Err(Error::misuse(
                "a source is set on a root event; inside a handler use `.on_behalf_of(..)`",
            ));
        }
        let inherited: &mut Inherited = envelope.inherited_mut();
        inherited.source_type = Some(Arc::clone(source_type));
        inherited.source_id = Some(Arc::clone(source_id));
        if let Some(delegation) = &extras.on_behalf_of {
            let mut delegation = delegation.clone();
            delegation.node = space.name_of(sender.key()).map(|name| name.to_string()).unwrap_or_default();
            inherited.delegations.push(delegation);
        }
    }
    if let Some(user) = &extras.user {
        if !is_root && extras.on_behalf_of.is_none() {
            return Err(Error::misuse(
                "a user is set on a root event; inside a handler use `.on_behalf_of(..)` with it",
            ));
        }
        envelope.inherited_mut().user = Some(Arc::new(user.clone()));
    }
    if let Some(trace) = &extras.trace {
        envelope.inherited_mut().trace = Some(Arc::new(trace.clone()));
    }
    if !extras.metadata.is_empty() {
        envelope.extra_mut().metadata.clone_from(&extras.metadata);
    }
    Ok(())
}

#[cold]
fn before_emit(
    space: &SpaceInner,
    sender: Sender<'_>,
    envelope: &Envelope,
    payload: &dyn ErasedPayload,
) -> Result<()> {
    let name = space.name_of(sender.key());
    let payload = Dynamic::from_erased_payload(envelope.event_type.clone(), payload);
    let event = Event::from_parts(envelope.clone(), payload);
    let seen = Seen { node: name.as_deref(), event: Some(&event), state: None, error: None };
    for hooks in space.emit_hooks(sender) {
        hooks.run(hooks::Moment::BeforeEmit, &seen).map_err(|error| {
            let reason = format!("a hook objected: {error}");
            Error::new(ErrorKind::Refused { node: name.as_deref().unwrap_or("the space").to_owned(), reason })
                .with_source(error.into_std())
                .at_event(envelope.id)
        })?;
    }
    Ok(())
}

/// Events shown of a way that ran away.
const RUNAWAY_PATH: usize = 12;
