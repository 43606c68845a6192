//! The way of an event into flows of durable nodes: from outside, where it is stored first, and from a step, whose commit
//! is the acceptance. Owns who gets an event; does not know how a flow runs.

use std::sync::Arc;

use happen_core::codec::{self, StepOutcome, WireError, WireParcel, WireRecord, WireReply, WireStep};
use happen_core::event::Purpose;
use happen_core::limits::RECORD_BYTES_MAX;
use happen_core::store::{Batch, Document, NewRecord, Tag};
use happen_core::{ErasedEvent, Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::commit::Ticket;
use super::flow::StoredFlow;
use super::hold::{self, Hold};
use super::keys::INBOX;
use super::lane::{Lanes, check_room};
use super::record::event_record;
use super::seen::{self, Arrival};
use super::stage::Whereto;
use super::{Durable, Told, by_hand};
use crate::dispatch::{self, Delivered, Joined, Reply, Want};
use crate::flow::Outcome;
use crate::keys::plain;
use crate::node::NodeInner;
use crate::space::SpaceInner;
use crate::sync::isolated;
use crate::table::{Entry, Lane, Table};
use crate::wire::Framed;

/// Brings an event from outside to a durable node. The outcome is told when it is there; who does not want it is told
/// that the event is stored.
///
/// # Errors
///
/// When the node has too many waiting, or no registration wants it after all.
pub(crate) fn deliver(
    node: &Arc<NodeInner>,
    table: &Table,
    entries: &[Arc<Entry>],
    event: &dyn ErasedEvent,
    mut want: Want,
) -> Result<Delivered> {
    let _coming = check_room(node, table)?;
    let along = want.take_along().map(|along| *along).unwrap_or_default();
    let flows = flows_for(node, table, entries, event)?;
    let (to, from) = oneshot::channel();
    if let Some(keyed) = along.keyed {
        let arrival = Arrival {
            event: event.to_shared(),
            flows,
            keyed,
            node: Arc::clone(&node.name),
            wants_outcome: want.reply,
            to,
        };
        begin_keyed(&node.space, arrival);
        return Ok(Delivered::Later(Some(from)));
    }
    let told = if want.reply { Told::Outcome(to) } else { Told::Stored(to) };
    if let [flow] = &flows[..] {
        flow.stream_to(along.sink, along.source);
    }
    begin(&node.space, event, flows, told, Spread::Here);
    Ok(Delivered::Later(Some(from)))
}

/// How far an event from outside goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spread {
    /// To nodes of this process: it comes from another one, which sees to the rest.
    Here,
    /// To the nodes of other processes on the same log too.
    Log,
}

/// Brings an event that was broadcast from outside to the durable nodes that listen.
pub(crate) fn publish(
    space: &Arc<SpaceInner>,
    event: &dyn ErasedEvent,
    nodes: &[Arc<NodeInner>],
    spread: Spread,
) {
    let mut flows = Vec::new();
    for node in nodes {
        let table = node.table.load();
        let mut uncached = None;
        let route = match dispatch::admissible(node, &table, event, &mut uncached) {
            Ok(route) => route,
            Err(error) if matches!(error.kind(), ErrorKind::NoHandler { .. }) => continue,
            Err(error) => {
                space.bury(event, &node.name, &error);
                continue;
            }
        };
        match check_room(node, &table).and_then(|_| flows_for(node, &table, &route.entries, event)) {
            Ok(more) => flows.extend(more),
            Err(error) if matches!(error.kind(), ErrorKind::NoHandler { .. }) => {}
            Err(error) => space.bury(event, &node.name, &error),
        }
    }
    begin(space, event, flows, Told::Nobody, spread);
}

/// Begins flows for an event from outside.
fn begin(
    space: &Arc<SpaceInner>,
    event: &dyn ErasedEvent,
    flows: Vec<Arc<StoredFlow>>,
    told: Told,
    spread: Spread,
) {
    let Some(durable) = &space.durable else { return };
    let heard = spread == Spread::Log && space.is_heard_elsewhere(event.envelope());
    match &flows[..] {
        [] if !heard => offer_stored(space, durable, event),
        [flow] if flow.due_unix_ms() == 0 && !heard => {
            // Its first commit stores it: one that has ended by then has cost a single one.
            flow.show_when_stored();
            match told {
                Told::Outcome(to) => drop(flow.tell(Reply::One(to))),
                Told::Stored(to) => flow.tell_stored(to),
                Told::Nobody => {
                    // Somebody has to be told that it was not stored, or it would be gone without a word.
                    let (to, from) = oneshot::channel();
                    flow.tell_stored(to);
                    bury_unless_stored(space, Arc::clone(&flow.event), Arc::clone(&flow.node), from);
                }
            }
            durable.begun(flow);
            Lanes::enter(flow);
        }
        _ => {
            let event = event.to_shared();
            let space = Arc::clone(space);
            let env = Arc::clone(&space.env);
            flows.iter().for_each(|flow| durable.begun(flow));
            space.flow_began();
            // Handed on here: events are stored in the order in which they came.
            let tag = Tag::Event(event.envelope().id);
            let to = if heard { Some(Whereto::Everyone) } else { None };
            let pushed = batch_for(&space, &*event, &flows, to.as_ref());
            let pushed = pushed.map(|batch| (durable.commits.push(batch), tag));
            env.spawn(Box::pin(async move {
                store_all(&space, &event, flows, (pushed, told)).await;
                space.flow_ended();
            }));
        }
    }
}

/// Begins flows for an event from outside that has a key, unless another one came with it before.
fn begin_keyed(space: &Arc<SpaceInner>, arrival: Arrival) {
    let space = Arc::clone(space);
    let env = Arc::clone(&space.env);
    space.flow_began();
    env.spawn(Box::pin(async move {
        if let Some(durable) = &space.durable {
            seen::deliver(&space, durable, arrival).await;
        }
        space.flow_ended();
    }));
}

/// Keeps an event that begins no flow, when somebody waits for such a one.
fn offer_stored(space: &Arc<SpaceInner>, durable: &Arc<Durable>, event: &dyn ErasedEvent) {
    if !durable.waiters.want(&event.envelope().event_type) {
        return;
    }
    let (event, space, durable) = (event.to_shared(), Arc::clone(space), Arc::clone(durable));
    let env = Arc::clone(&space.env);
    space.flow_began();
    env.spawn(Box::pin(async move {
        let stored = match bare_record(&space, &*event) {
            Ok(record) => {
                let ticket = durable.commits.push(Batch { records: vec![record], ..Batch::default() });
                durable.settle_event(&space, ticket, Tag::Event(event.envelope().id)).await
            }
            Err(error) => Err(error),
        };
        match stored {
            Ok(()) => durable.waiters.offer(&space, &event),
            Err(error) => space.bury(&*event, "$space", &error),
        }
        space.flow_ended();
    }));
}

fn bury_unless_stored(
    space: &Arc<SpaceInner>,
    event: Arc<dyn ErasedEvent>,
    node: Arc<NodeInner>,
    from: oneshot::Receiver<Outcome>,
) {
    let space_then = Arc::clone(space);
    space.env.spawn(Box::pin(async move {
        if let Ok(Err(error)) = from.await {
            space_then.bury(&*event, &node.name, &error);
        }
    }));
}

/// Stores an event for several flows at once, and lets them begin.
async fn store_all(
    space: &Arc<SpaceInner>,
    event: &Arc<dyn ErasedEvent>,
    flows: Vec<Arc<StoredFlow>>,
    (pushed, told): (Result<(Ticket, Tag)>, Told),
) {
    let Some(durable) = &space.durable else { return };
    let stored = match pushed {
        Ok((ticket, event)) => durable.settle_event(space, ticket, event).await,
        Err(error) => Err(error),
    };
    if let Err(error) = stored {
        let error = error.at_event(event.envelope().id);
        flows.iter().for_each(|flow| durable.ended(flow));
        let unheard = match told {
            Told::Outcome(to) => {
                drop(to.send(Err(error)));
                None
            }
            Told::Stored(to) => to.send(Err(error)).err().and_then(Result::err),
            Told::Nobody => Some(error),
        };
        if let Some(error) = unheard {
            let node = flows.first().map_or("$space", |flow| &*flow.node.name);
            space.bury(&**event, node, &error);
        }
        return;
    }
    durable.waiters.offer(space, event);
    let stored = match told {
        Told::Outcome(to) => {
            let joined = Joined::new(flows.len(), Reply::One(to));
            for (index, flow) in flows.iter().enumerate() {
                drop(flow.tell(Reply::Part(Arc::clone(&joined), index)));
            }
            None
        }
        Told::Stored(to) => Some(to),
        Told::Nobody => None,
    };
    flows.iter().for_each(Lanes::enter);
    // Once they stand in line: what the sender sends next comes behind them.
    if let Some(to) = stored {
        drop(to.send(Ok(None)));
    }
}

/// The batch by which an event that was kept for a node begins its flows and is kept no longer.
///
/// # Errors
///
/// When the event cannot be read, and when the node is not there or does not take it.
fn taken_in(space: &Arc<SpaceInner>, kept: &Document) -> Result<TakenIn> {
    let node = node_of_inbox(kept);
    let frame = kept.content.as_ref().map_or(&[][..], |content| &content.bytes);
    let parcel = WireParcel::decode(frame, RECORD_BYTES_MAX)?;
    let event = space.event_in(&parcel)?;
    let node =
        space.find(&node).ok_or_else(|| Error::new(ErrorKind::NoSuchNode { node: node.into_owned() }))?;
    if !node.is_durable() {
        let reason = "it is not durable, and the event was kept for one that is".to_owned();
        return Err(Error::new(ErrorKind::Refused { node: node.name.to_string(), reason }));
    }
    let table = node.table.load();
    let mut uncached = None;
    let route = dispatch::acceptable(&node, &table, &*event, &mut uncached)?;
    let flows = flows_for(&node, &table, &route.entries, &*event)?;
    let hashes = parcel.events().iter().filter_map(|event| Some((event.id, event.hash?))).collect();
    let framed = Framed { frame: frame.to_vec(), hashes };
    let records = vec![event_record(space, &*event, &framed, &flows)?];
    let mut documents = flows.iter().map(|flow| flow.first_write()).collect::<Result<Vec<_>>>()?;
    documents.push(by_hand::deletion(kept));
    flows.iter().for_each(|flow| flow.set_framed(framed.clone()));
    Ok(TakenIn { batch: Batch { records, documents, conditions: Vec::new() }, flows, event })
}

/// The batch by which an event leaves the inbox of a node: it begins its flows, or the node does not want it after all.
/// What was broadcast to a node that does not listen any more just leaves; who asked a node that does not take it is told.
///
/// # Errors
///
/// Why the event stays. It was sent to a node that does not take it now, or cannot be read.
pub(super) fn out_of_inbox(space: &Arc<SpaceInner>, kept: &Document) -> Result<TakenIn> {
    let error = match taken_in(space, kept) {
        Ok(taken) => return Ok(taken),
        Err(error) => error,
    };
    let parcel =
        match kept.content.as_ref().map(|content| WireParcel::decode(&content.bytes, RECORD_BYTES_MAX)) {
            Some(Ok(parcel)) => parcel,
            // What cannot be read was told.
            Some(Err(_)) | None => return Err(error),
        };
    let purpose = parcel.events().first().map(|event| event.purpose);
    let event = space.event_in(&parcel)?;
    let mut batch = Batch { documents: vec![by_hand::deletion(kept)], ..Batch::default() };
    match purpose {
        Some(Purpose::Broadcast) if matches!(error.kind(), ErrorKind::NoHandler { .. }) => {}
        Some(Purpose::Broadcast) => space.bury(&*event, &node_of_inbox(kept), &error),
        Some(Purpose::Ask) => batch.records.push(not_taken(&*event, &node_of_inbox(kept), &error)?),
        _ => return Err(error),
    }
    Ok(TakenIn { batch, flows: Vec::new(), event })
}

/// The record that a question found nobody who takes it: a flow of no registration, which failed.
fn not_taken(event: &dyn ErasedEvent, node: &str, error: &Error) -> Result<NewRecord> {
    let id = event.envelope().id;
    let mut reply = Vec::new();
    let told = WireReply::new(id, codec::Outcome::Error(WireError::of(error)));
    told.encode_into(&mut reply, RECORD_BYTES_MAX)?;
    let step = WireStep::new(id, node, "", "", StepOutcome::Failed(reply.into()));
    let mut bytes = Vec::new();
    WireRecord { step: Some(step), ..WireRecord::default() }.encode_into(&mut bytes, RECORD_BYTES_MAX)?;
    Ok(NewRecord { tags: vec![Tag::Event(id), Tag::Node(node.into())], bytes: bytes.into() })
}

/// The node whose inbox has a document.
fn node_of_inbox(kept: &Document) -> std::borrow::Cow<'_, str> {
    let node = kept.key.strip_prefix(INBOX).and_then(|rest| rest.split('/').next());
    node.map(plain).unwrap_or_default()
}

/// What is told of an event that stays in its inbox.
pub(super) fn not_taken_in(error: Error, kept: &Document) -> Error {
    error.context(format!(
        "document `{}`: the event was kept for a node that does not take it, and stays there",
        kept.key
    ))
}

/// An event that leaves an inbox.
pub(super) struct TakenIn {
    pub(super) batch: Batch,
    pub(super) flows: Vec<Arc<StoredFlow>>,
    pub(super) event: Arc<dyn ErasedEvent>,
}

fn batch_for(
    space: &Arc<SpaceInner>,
    event: &dyn ErasedEvent,
    flows: &[Arc<StoredFlow>],
    to: Option<&Whereto>,
) -> Result<Batch> {
    let framed = space.framed_arrival(event)?;
    let mut record = event_record(space, event, &framed, flows)?;
    let mut documents = flows.iter().map(|flow| flow.first_write()).collect::<Result<Vec<_>>>()?;
    if let (Some(durable), Some(to)) = (&space.durable, to) {
        durable.inboxes(event, &framed, to).add_to(&mut record, &mut documents);
    }
    Ok(Batch { records: vec![record], documents, conditions: Vec::new() })
}

/// The flows that an event begins which a step sends, when its commit happens.
///
/// # Errors
///
/// What keeps a node from taking it; a broadcast is taken by those that can.
pub(super) fn recipients(
    space: &Arc<SpaceInner>,
    event: &Arc<dyn ErasedEvent>,
    to: &Whereto,
) -> Result<Vec<Arc<StoredFlow>>> {
    match to {
        Whereto::Kept(_) | Whereto::Away(_) | Whereto::Waits(_) => Ok(Vec::new()),
        Whereto::Node(node) if !node.is_durable() => Ok(Vec::new()),
        Whereto::Node(node) => {
            let table = node.table.load();
            let mut uncached = None;
            let route = table.route(&event.envelope().event_type, &mut uncached);
            flows_for(node, &table, &route.entries, &**event)
        }
        Whereto::Everyone => {
            let mut all = Vec::new();
            for node in space.durable_listeners(&event.envelope().event_type) {
                let table = node.table.load();
                let mut uncached = None;
                let Ok(route) = dispatch::admissible(&node, &table, &**event, &mut uncached) else {
                    continue;
                };
                match flows_for(&node, &table, &route.entries, &**event) {
                    Ok(flows) => all.extend(flows),
                    Err(error) if matches!(error.kind(), ErrorKind::NoHandler { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(all)
        }
    }
}

/// A flow for each registration that wants the event, or for each of its events where a batch is taken one by one.
pub(super) fn flows_for(
    node: &Arc<NodeInner>,
    table: &Table,
    entries: &[Arc<Entry>],
    event: &dyn ErasedEvent,
) -> Result<Vec<Arc<StoredFlow>>> {
    let held = crate::send::held_by_current(&node.space);
    let lane = |event: &dyn ErasedEvent| match &table.lane {
        Lane::Concurrent => Ok(None),
        Lane::ByKey(key_of, _) => isolated("the key of a serial node", || key_of(event)).map(Some),
    };
    let runs = dispatch::runs(node, entries, event)?;
    let flows = runs.into_iter().map(|(entry, single, guarded)| {
        let event = single.and_then(|index| event.single(index)).unwrap_or(event);
        let admitted = guarded.and_then(|()| Ok((lane(event)?, hold::admit(node, table, event)?)));
        let mut progress = StoredFlow::beginning(event);
        let (lane, (due_unix_ms, hold)) = admitted.unwrap_or_else(|error| {
            progress.spoilt = Some(error);
            (None, (0, Hold::default()))
        });
        progress.due_unix_ms = due_unix_ms;
        let registration = table.registration_name(entry);
        StoredFlow::new(node, registration, event.to_shared(), (lane, hold), held.clone(), progress)
    });
    Ok(flows.collect())
}

impl Durable {
    /// Does what a commit has let leave: flows begin, and events go to those that are not durable.
    pub(super) fn release(self: &Arc<Self>, space: &Arc<SpaceInner>, done: super::record::Done) {
        for flow in &done.begun {
            space.remember_sent(flow.event.envelope(), flow.node.key);
        }
        done.begun.iter().for_each(Lanes::enter);
        self.kept(space, &done.kept);
        for (event, to) in done.leaving {
            self.waiters.offer(space, &event);
            space.leave(&event, &to);
        }
    }
}

/// A record of an event that begins no flow: somebody waits for such events.
fn bare_record(space: &Arc<SpaceInner>, event: &dyn ErasedEvent) -> Result<NewRecord> {
    let framed = space.framed_arrival(event)?;
    event_record(space, event, &framed, &[])
}
