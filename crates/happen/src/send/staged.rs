//! Sending from a step of a durable node: nothing leaves before the step is committed, and a question is a commit of its
//! own. Owns what is staged and under which id; does not know how it is committed.

use std::sync::Arc;

use happen_core::event::Purpose;
use happen_core::{Batch, ErasedEvent, Error, ErrorKind, EventId, EventType, Parcel, Payload, Result};

use super::target::To;
use super::{Begun, Extras, Sender, Told, empty_batch, mixed_batch, resolve, unknown_parcel};
use crate::config::Delivery;
use crate::dispatch::{self, Delivered, Want};
use crate::durable::{self, Coming, Reserved, Stage, Whereto};
use crate::flow::FlowInner;
use crate::route::Among;
use crate::stamp;

/// Whose step sends: the sender, the flow, and what the step has done so far.
type Within<'s> = (Sender<'s>, &'s FlowInner, &'s Arc<Stage>);

/// Stages an event, or begins to ask.
pub(super) fn begin<T: Payload>(
    within: Within<'_>,
    to: &To<'_>,
    parcel: Parcel<T>,
    (purpose, want): (Purpose, Want),
    extras: Option<&Extras>,
    _told: Told,
) -> Result<(EventId, Begun)> {
    let (_, _, stage) = within;
    if extras.is_some_and(|extras| extras.idempotency_key.is_some()) {
        return Err(Error::misuse(
            "what a step of a durable node sends has an id that follows from the step, and needs no idempotency key",
        ));
    }
    let ordinal = ordinal(stage, extras);
    let event = stamped(within, parcel, purpose, extras, ordinal)?;
    let id = event.envelope().id;
    let asked = stage.asked(ordinal).filter(|_| purpose == Purpose::Ask);
    let (whereto, room) =
        whereto(within, to, &event, asked.as_deref()).map_err(|error| error.at_event(id))?;
    match room {
        Room::None => {}
        Room::AtNode(coming) => stage.expects(ordinal, coming)?,
        Room::InOutbox(reserved) => stage.reserves(ordinal, reserved)?,
    }
    match purpose {
        Purpose::Stream => Err(no_stream().at_event(id)),
        Purpose::Ask => {
            let within = extras.and_then(|extras| extras.within);
            debug_assert!(want.reply, "whoever asks wants the answer");
            let asked = durable::ask(Arc::clone(stage), ordinal, event, whereto, within);
            Ok((id, Begun::Asked(Box::pin(asked))))
        }
        _ => {
            stage.send(ordinal, event, whereto)?;
            Ok((id, Begun::Here(Delivered::Later(None))))
        }
    }
}

/// Stages an event that nobody wants to hear of; nothing when no step of a durable node sends it.
pub(super) fn forget<T: Payload>(
    sender: Sender<'_>,
    to: &To<'_>,
    parcel: Parcel<T>,
    extras: Option<&Extras>,
) -> Option<Result<()>> {
    sender.with_cause(|cause| {
        let flow = cause?;
        let within = (sender, flow, flow.stage()?);
        let wants = (Purpose::Send, Want::plain(false));
        Some(begin(within, to, parcel, wants, extras, Told::Nothing).map(drop))
    })
}

/// Whether a step of a durable node sends.
#[inline]
pub(super) fn is_step(sender: Sender<'_>) -> bool {
    sender.with_cause(|cause| cause.is_some_and(|flow| flow.stage().is_some()))
}

/// Stages a broadcast of a step of a durable node.
#[cold]
pub(super) fn publish<T: Payload>(
    sender: Sender<'_>,
    payload: T,
    source: Option<&tokio::sync::broadcast::Sender<happen_core::Value>>,
    extras: Option<&Extras>,
) -> Result<EventId> {
    sender.with_cause(|cause| {
        let Some((flow, stage)) = cause.and_then(|flow| Some((flow, flow.stage()?))) else {
            return Err(Error::misuse("no step of a durable node sends this; please report this"));
        };
        if source.is_some() {
            return Err(no_stream());
        }
        let ordinal = ordinal(stage, extras);
        let within = (sender, flow, stage);
        let event = stamped(within, Parcel::One(payload), Purpose::Broadcast, extras, ordinal)?;
        let id = event.envelope().id;
        stage.send(ordinal, event, Whereto::Everyone)?;
        Ok(id)
    })
}

fn ordinal(stage: &Stage, extras: Option<&Extras>) -> u32 {
    extras.and_then(|extras| extras.ordinal).unwrap_or_else(|| stage.ordinal())
}

fn stamped<T: Payload>(
    (sender, flow, stage): Within<'_>,
    parcel: Parcel<T>,
    purpose: Purpose,
    extras: Option<&Extras>,
    ordinal: u32,
) -> Result<Arc<dyn ErasedEvent>> {
    let id = |index: u32| match purpose {
        Purpose::Ask => stage.id_of_question(ordinal, index),
        _ => stage.id(ordinal, index),
    };
    match parcel {
        Parcel::One(payload) => Ok(Arc::new(stamp::staged(sender, flow, payload, purpose, extras, id(0))?)),
        Parcel::Batch(payloads) => {
            let mut events = Vec::with_capacity(payloads.len());
            let mut first: Option<EventType> = None;
            for (index, payload) in (0..).zip(payloads) {
                let event_type = payload.event_type();
                if *first.get_or_insert_with(|| event_type.clone()) != event_type {
                    return Err(mixed_batch());
                }
                events.push(stamp::staged(sender, flow, payload, purpose, extras, id(index))?);
            }
            Ok(Arc::new(Batch::new(events).ok_or_else(empty_batch)?))
        }
        _ => Err(unknown_parcel()),
    }
}

/// Where an event goes, when it will be taken there: what keeps a node from it is told now, and not after the commit. A
/// question that an earlier run of the step has asked is not asked again, so nothing keeps a node from it.
fn whereto(
    (sender, flow, _): Within<'_>,
    to: &To<'_>,
    event: &Arc<dyn ErasedEvent>,
    asked: Option<&str>,
) -> Result<(Whereto, Room)> {
    let space = sender.space();
    let known = asked.is_some();
    let chosen;
    let to = match asked {
        // Whoever was asked before has the question, whatever is chosen now.
        Some(asked) if space.leads_to(to.name(), asked) => &To::Name(asked),
        _ if space.routes.has_router(to.name()) => {
            chosen = space.behind_routers(to.name(), &**event, Among::Everywhere)?;
            &To::Name(&chosen)
        }
        _ => to,
    };
    match resolve(space, to) {
        // Which process has it is looked for when the event leaves.
        Ok(node) if node.is_shared() => Ok((Whereto::Away(Arc::clone(&node.name)), Room::None)),
        Ok(node) if known => Ok((Whereto::Node(node), Room::None)),
        Err(error) if known && matches!(error.kind(), ErrorKind::NoSuchNode { .. }) => {
            let elsewhere = Whereto::elsewhere(space, delivery(flow), to.name());
            Ok((elsewhere.unwrap_or_else(|| Whereto::Away(to.name().into())), Room::None))
        }
        Ok(node) => {
            let table = node.table.load();
            let mut uncached = None;
            dispatch::admissible(&node, &table, &**event, &mut uncached)
                .map_err(|error| error.at_node(&node.name))?;
            let coming = match node.is_durable() {
                true => Room::AtNode(durable::check_room(&node, &table)?),
                false => Room::None,
            };
            Ok((Whereto::Node(node), coming))
        }
        Err(error) if matches!(error.kind(), ErrorKind::NoSuchNode { .. }) => {
            let Some(whereto) = Whereto::elsewhere(space, delivery(flow), to.name()) else {
                return Err(error);
            };
            let room = match (&whereto, &space.durable) {
                (Whereto::Waits(_), Some(durable)) => {
                    Room::InOutbox(durable.outboxes.reserve(&space.config.outbox)?)
                }
                _ => Room::None,
            };
            Ok((whereto, room))
        }
        Err(error) => Err(error),
    }
}

/// How surely what a flow sends arrives beyond the link.
fn delivery(flow: &FlowInner) -> Delivery {
    flow.node().table.load().options.delivery
}

/// The room that is kept for what is sent.
enum Room {
    None,
    AtNode(Coming),
    InOutbox(Reserved),
}

#[cold]
pub(super) fn no_stream() -> Error {
    Error::misuse(
        "a step of a durable node cannot read or send a stream, which nobody could commit; do it in `cx.spawn`, or from \
         an ephemeral node",
    )
}
