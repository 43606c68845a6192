//! Taking in what other spaces keep until it is here: what comes from one space is taken in its order and once, however
//! often it is handed over. Owns what is remembered of that; does not know who keeps the events, or how they come.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use happen_core::codec::Handover;
use happen_core::env::BoxFuture;
use happen_core::event::Purpose;
use happen_core::store::{Batch, Content, Key, Past, Replaced, Write};
use happen_core::{ErasedEvent, Error, ErrorKind, EventId, Result};
use tokio::sync::oneshot;

use super::Durable;
use super::accept::flows_for;
use super::commit::Ticket;
use super::document::is_conflict;
use super::flow::StoredFlow;
use super::keys::{ANCHOR, TAKEN};
use super::lane::{Coming, Lanes, check_room};
use super::point::attach;
use super::record::event_record;
use super::timer::is_recorded;
use crate::config::Delivery;
use crate::dispatch::{self, Delivered, Want};
use crate::flow::Outcome;
use crate::keys::escaped;
use crate::limits;
use crate::local;
use crate::node::NodeInner;
use crate::retention::Anchor;
use crate::space::{SpaceInner, yield_now};
use crate::sync::{Mutex, isolated, lock};
use crate::table::Phase;
use crate::web;
use crate::wire::Framed;

/// What a space is taking in.
#[derive(Default)]
pub(crate) struct TakingIn {
    lanes: Mutex<BTreeMap<LaneKey, Arc<Lane>>>,
}

/// A node, and the identity of the space whose events it takes in.
type LaneKey = (Arc<str>, [u8; 16]);

/// What one node takes in from one space.
#[derive(Default)]
struct Lane {
    queue: Mutex<Queue>,
    /// What a node that is not durable has in mind of it, for as long as the process is there.
    handled: Mutex<Handled>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Handed>,
    /// Whether a task takes out what waits.
    runs: bool,
    /// What the store knows, once it was looked up.
    known: Option<Known>,
}

/// An event that was handed over, and who is told.
struct Handed {
    event: Arc<dyn ErasedEvent>,
    /// The event as it is stored by a node that stores it.
    framed: Option<Framed>,
    handover: Handover,
    to: oneshot::Sender<Outcome>,
}

/// What the document of a lane says.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    revision: u64,
    last: u128,
}

#[derive(Default)]
struct Handled {
    last: u128,
    under_way: BTreeSet<u128>,
    /// Those that were begun and came to nothing.
    undone: BTreeSet<u128>,
}

/// Where an event stands beside the last one that was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Next,
    Before,
    /// Another one has to come first.
    Later,
}

/// An event on its way into the store.
struct Storing {
    ticket: Ticket,
    flows: Vec<Arc<StoredFlow>>,
    event: Arc<dyn ErasedEvent>,
    to: oneshot::Sender<Outcome>,
    mark: web::Mark,
    _coming: Coming,
}

/// Says of an error that it is no outcome: nothing is known here of the event that it belongs to.
#[derive(Debug)]
pub(crate) struct NotTaken;

/// Takes in an event that another space keeps. The receiver is told when the node has it: when it is stored; or of a node
/// that is not durable, as its [`Delivery`] says.
///
/// # Errors
///
/// [`ErrorKind::Busy`] when events of too many spaces come at once, and when it cannot be encoded.
pub(crate) fn take_in(
    node: &Arc<NodeInner>,
    event: &Arc<dyn ErasedEvent>,
    handover: Handover,
) -> Result<oneshot::Receiver<Outcome>> {
    let space = &node.space;
    let Some(linked) = space.link.get() else {
        return Err(Error::misuse("an event was handed over without a link; please report this"));
    };
    let lane = linked.taking_in.lane((Arc::clone(&node.name), handover.space))?;
    // Now, and not when its turn has come: of its causes nothing may be remembered then.
    let framed = if node.is_durable() { Some(space.framed_arrival(&**event)?) } else { None };
    let (to, from) = oneshot::channel();
    let begins = {
        let mut queue = lock(&lane.queue);
        queue.waiting.push_back(Handed { event: Arc::clone(event), framed, handover, to });
        !std::mem::replace(&mut queue.runs, true)
    };
    if begins {
        let run = Run { lane, node: Arc::clone(node), over: false };
        space.flow_began();
        space.env.spawn(Box::pin(run.all()));
    }
    Ok(from)
}

/// The outcome of an event that a durable node has taken in.
///
/// # Errors
///
/// [`ErrorKind::Misuse`] when its space has no store.
pub(crate) fn outcome(
    node: &Arc<NodeInner>,
    event: &Arc<dyn ErasedEvent>,
) -> Result<oneshot::Receiver<Outcome>> {
    let durable = Arc::clone(super::of(&node.space)?);
    let (to, from) = oneshot::channel();
    let (node, event) = (Arc::clone(node), Arc::clone(event));
    node.space.env.clone().spawn(Box::pin(async move {
        let outcome = outcome_at(&durable, &node, &event).await;
        // Whoever asked may have gone, and asks again.
        drop(to.send(outcome));
    }));
    Ok(from)
}

async fn outcome_at(durable: &Arc<Durable>, node: &Arc<NodeInner>, event: &Arc<dyn ErasedEvent>) -> Outcome {
    let id = event.envelope().id;
    let (to_us, from) = oneshot::channel();
    match attach(durable, id, &node.name, to_us).await {
        Ok(true) => {
            from.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled).with_source(NotTaken)))
        }
        Ok(false) => {
            // It may have come and not have been taken, which is told once more.
            let table = node.table.load();
            dispatch::admissible(node, &table, &**event, &mut None)?;
            let what = format!("event {id} at node `{}`", node.name);
            Err(Error::new(ErrorKind::NotFound { what }).with_source(NotTaken))
        }
        Err(error) => {
            let what = format!("looking for event {id} at node `{}` ({error})", node.name);
            Err(Error::new(ErrorKind::Io { what }).with_source(NotTaken))
        }
    }
}

impl TakingIn {
    fn lane(&self, key: LaneKey) -> Result<Arc<Lane>> {
        let mut lanes = lock(&self.lanes);
        if let Some(lane) = lanes.get(&key) {
            return Ok(Arc::clone(lane));
        }
        if lanes.len() >= limits::HANDOVER_LANES_MAX {
            let idle = lanes.iter().find(|(_, lane)| lane.is_idle()).map(|(key, _)| key.clone());
            let Some(idle) = idle else {
                let what = format!("taking in from other spaces ({} at once)", limits::HANDOVER_LANES_MAX);
                return Err(Error::new(ErrorKind::Busy { what }));
            };
            lanes.remove(&idle);
        }
        Ok(Arc::clone(lanes.entry(key).or_default()))
    }
}

/// A task that takes out what waits in a lane.
struct Run {
    lane: Arc<Lane>,
    node: Arc<NodeInner>,
    over: bool,
}

impl Run {
    async fn all(mut self) {
        while let Some(some) = self.lane.take() {
            match &self.node.space.durable {
                Some(durable) if self.node.is_durable() => self.lane.store(durable, &self.node, some).await,
                _ => self.lane.handle(&self.node, some).await,
            }
        }
        self.over = true;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.over {
            // It panicked, or its runtime ends. Whoever waits is told by the channels, and hands over again.
            let mut queue = lock(&self.lane.queue);
            queue.runs = false;
            queue.known = None;
            drop(std::mem::take(&mut queue.waiting));
        }
        self.node.space.flow_ended();
    }
}

impl Lane {
    fn is_idle(&self) -> bool {
        let queue = lock(&self.queue);
        !queue.runs && lock(&self.handled).under_way.is_empty()
    }

    /// All that waits; `None` when nothing does, and then nobody looks any more.
    fn take(&self) -> Option<VecDeque<Handed>> {
        let mut queue = lock(&self.queue);
        if queue.waiting.is_empty() {
            queue.runs = false;
            return None;
        }
        Some(std::mem::take(&mut queue.waiting))
    }

    /// Stores what was handed over, many events by one call to the store.
    async fn store(&self, durable: &Arc<Durable>, node: &Arc<NodeInner>, some: VecDeque<Handed>) {
        let space = &node.space;
        let Some(identity) = some.front().map(|first| first.handover.space) else { return };
        let key: Key =
            format!("{TAKEN}{}/{:032x}", escaped(&node.name), u128::from_be_bytes(identity)).into();
        let known = lock(&self.queue).known;
        let known = match known {
            Some(known) => Ok(known),
            None => Known::read(durable, &key).await,
        };
        let mut known = match known {
            Ok(known) => known,
            Err(error) => {
                some.into_iter().for_each(|handed| drop(handed.to.send(Err(error.duplicate()))));
                return;
            }
        };
        let stored = known.last;
        let mut storing = Vec::with_capacity(some.len());
        for Handed { event, framed, handover, to } in some {
            // Who has gone hands it over again.
            if to.is_closed() {
                continue;
            }
            let next = Known { revision: known.revision + 1, last: handover.at };
            let told = match known.turn(&handover) {
                Turn::Later => Err(not_its_turn(&node.name)),
                // Whether it is stored is not known yet.
                Turn::Before if handover.at > stored => Err(not_its_turn(&node.name)),
                Turn::Before => was_taken(durable, node, &event).await,
                Turn::Next => {
                    let write = next.write(&key, event.envelope().id);
                    let admitted =
                        isolated("taking in an event", || admit(space, node, (&event, framed), write));
                    match admitted.and_then(|admitted| admitted) {
                        Ok((batch, flows, coming)) => {
                            flows.iter().for_each(|flow| durable.begun(flow));
                            let mark = space.remember_arrived(event.envelope(), node.key);
                            let ticket = durable.commits.push(batch);
                            storing.push(Storing { ticket, flows, event, to, mark, _coming: coming });
                            known = next;
                            continue;
                        }
                        Err(error) => Err(error.at_node(&node.name)),
                    }
                }
            };
            drop(to.send(told.map(|()| None).map_err(|error| error.at_event(event.envelope().id))));
        }
        let mut all = true;
        for one in storing {
            all &= one.settle(durable, space).await;
        }
        // What was built on one that is not stored is not stored either.
        lock(&self.queue).known = all.then_some(known);
    }

    /// Hands what was handed over to a node that is not durable.
    async fn handle(self: &Arc<Self>, node: &Arc<NodeInner>, some: VecDeque<Handed>) {
        for Handed { event, handover, to, .. } in some {
            if to.is_closed() {
                continue;
            }
            self.handle_one(node, &event, handover, to);
            if local::should_yield() {
                yield_now().await;
            }
        }
    }

    fn handle_one(
        self: &Arc<Self>,
        node: &Arc<NodeInner>,
        event: &Arc<dyn ErasedEvent>,
        handover: Handover,
        to: oneshot::Sender<Outcome>,
    ) {
        let at = handover.at;
        let told = {
            let mut handled = lock(&self.handled);
            let known = Known { revision: 0, last: handled.last };
            match known.turn(&handover) {
                Turn::Later => Some(Err(not_its_turn(&node.name))),
                Turn::Before if handled.under_way.contains(&at) => Some(Err(not_its_turn(&node.name))),
                Turn::Before if handled.undone.remove(&at) => None,
                Turn::Before => Some(Ok(None)),
                Turn::Next => None,
            }
        };
        if let Some(told) = told {
            drop(to.send(told));
            return;
        }
        if event.envelope().purpose == Purpose::Ask {
            // Its sender asks for the outcome, and it is handled then.
            self.is_at(at);
            drop(to.send(Ok(None)));
            return;
        }
        let waits = node.table.load().options.delivery != Delivery::AtMostOnce;
        lock(&self.handled).under_way.insert(at);
        let mut outcome = Ok(None);
        let delivered = node.space.bring_in(&node.name, &**event, Want::plain(waits), &mut outcome);
        match delivered {
            Err(error) => {
                lock(&self.handled).under_way.remove(&at);
                drop(to.send(Err(error)));
            }
            Ok(Delivered::Later(Some(end))) if waits => {
                self.is_at(at);
                let (lane, node) = (Arc::clone(self), Arc::clone(node));
                node.space.env.clone().spawn(Box::pin(async move {
                    let ended = end.await;
                    // How it ended is told where it is looked for. Here it counts that it did, and not because its node or
                    // process does.
                    let goes = !node.space.is_running() || node.table.load().phase == Phase::Closed;
                    let told = lane.ended(at, ended.is_ok() && !goes);
                    drop(to.send(told));
                }));
            }
            Ok(_) => {
                self.is_at(at);
                lock(&self.handled).under_way.remove(&at);
                drop(to.send(Ok(None)));
            }
        }
    }

    fn is_at(&self, at: u128) {
        let mut handled = lock(&self.handled);
        handled.last = handled.last.max(at);
    }

    fn ended(&self, at: u128, is_handled: bool) -> Outcome {
        let mut handled = lock(&self.handled);
        handled.under_way.remove(&at);
        if is_handled {
            return Ok(None);
        }
        handled.undone.insert(at);
        Err(Error::new(ErrorKind::Cancelled))
    }
}

impl Known {
    async fn read(durable: &Durable, key: &Key) -> Result<Self> {
        let found = durable.store.documents(vec![Arc::clone(key)]).await?.pop().flatten();
        let Some(document) = found else { return Ok(Self::default()) };
        let last = match &document.content {
            None => 0,
            Some(content) => {
                let last = content.bytes.first_chunk::<16>().ok_or_else(|| {
                    let what = format!("document `{key}`, which says no position");
                    Error::new(ErrorKind::Damaged { what })
                })?;
                u128::from_be_bytes(*last)
            }
        };
        Ok(Self { revision: document.revision, last })
    }

    fn write(self, key: &Key, event: EventId) -> Write {
        let bytes = [self.last.to_be_bytes(), event.to_bytes()].concat();
        Write {
            key: Arc::clone(key),
            revision: self.revision,
            content: Some(Content { name: "taken".into(), version: 1, bytes: bytes.into() }),
            past: Past::Dropped,
            replaced: Replaced::Kept,
        }
    }

    const fn turn(&self, handover: &Handover) -> Turn {
        match handover {
            Handover { at, .. } if *at <= self.last => Turn::Before,
            Handover { after, .. } if *after <= self.last => Turn::Next,
            _ => Turn::Later,
        }
    }
}

impl Storing {
    /// Waits until it is stored, lets its flows begin, and tells who handed it over.
    async fn settle(self, durable: &Arc<Durable>, space: &Arc<SpaceInner>) -> bool {
        let Self { ticket, flows, event, to, mark, _coming } = self;
        let id = event.envelope().id;
        let stored = match durable.commits.settle(ticket).await {
            Ok(_) => Ok(()),
            // It may be stored all the same.
            Err(error) if matches!(error.kind(), ErrorKind::Io { .. }) => {
                let look = || -> BoxFuture<'_, _> { Box::pin(is_recorded(durable, id)) };
                match durable.found_out(space, look).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(error),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        let is_stored = stored.is_ok();
        match &stored {
            Ok(()) => {
                space.settle(mark, web::WAITING);
                durable.waiters.offer(space, &event);
                flows.iter().for_each(Lanes::enter);
            }
            Err(error) => {
                space.settle(mark, web::failed(error.code()));
                flows.iter().for_each(|flow| durable.ended(flow));
            }
        }
        let stored = match stored {
            // It came by another way before: its flows have begun.
            Err(error) if is_conflict(&error) => match is_recorded(durable, id).await {
                Ok(true) => Ok(()),
                _ => Err(error),
            },
            stored => stored,
        };
        drop(to.send(stored.map(|()| None).map_err(|error| error.at_event(id))));
        is_stored
    }
}

/// The batch by which a node takes an event in.
fn admit(
    space: &Arc<SpaceInner>,
    node: &Arc<NodeInner>,
    (event, framed): (&Arc<dyn ErasedEvent>, Option<Framed>),
    taken: Write,
) -> Result<(Batch, Vec<Arc<StoredFlow>>, Coming)> {
    let table = node.table.load();
    let mut uncached = None;
    let route = dispatch::admissible(node, &table, &**event, &mut uncached)?;
    let changed = match &table.hooks {
        None => None,
        Some(hooks) => dispatch::before_handling(node, hooks, &**event)?,
    };
    let event = changed.as_ref().unwrap_or(event);
    let coming = check_room(node, &table)?;
    let flows = flows_for(node, &table, &route.entries, &**event)?;
    let framed = match framed.filter(|_| changed.is_none()) {
        Some(framed) => framed,
        None => space.framed_arrival(&**event)?,
    };
    let records = vec![event_record(space, &**event, &framed, &flows)?];
    let mut documents = flows.iter().map(|flow| flow.first_write()).collect::<Result<Vec<_>>>()?;
    documents.push(taken);
    flows.iter().for_each(|flow| flow.set_framed(framed.clone()));
    let batch = Batch { records, documents, conditions: Vec::new() };
    batch.check()?;
    Ok((batch, flows, coming))
}

/// Whether an event that does not stand behind the last one is one that was taken in.
///
/// # Errors
///
/// [`ErrorKind::Refused`] when it never came: then the log of its sender was set back, and what it numbers now stands where
/// other events stood. And what the store says.
async fn was_taken(durable: &Durable, node: &NodeInner, event: &Arc<dyn ErasedEvent>) -> Result<()> {
    let envelope = event.envelope();
    if is_recorded(durable, envelope.id).await? {
        return Ok(());
    }
    let anchor = durable.store.documents(vec![ANCHOR.into()]).await?.pop().flatten();
    // What is as old as that was forgotten here.
    if let Some(anchor) = anchor
        && envelope.at_unix_ms <= Anchor::of(&anchor).map_or(u64::MAX, |told| told.newest_unix_ms)
    {
        return Ok(());
    }
    let reason = "its place in the log of its sender was that of another event before: that log was set back, as by an \
                  older copy of its folder"
        .to_owned();
    Err(Error::new(ErrorKind::Refused { node: node.name.to_string(), reason }))
}

#[cold]
fn not_its_turn(node: &str) -> Error {
    let what = format!("node `{node}`, which takes what waits for it in its order,");
    Error::new(ErrorKind::Busy { what })
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the event was not taken in there")
    }
}

impl std::error::Error for NotTaken {}

impl fmt::Debug for TakingIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "events of {} spaces", lock(&self.lanes).len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handover(at: u128, after: u128) -> Handover {
        Handover { space: [7; 16], at, after }
    }

    #[test]
    fn an_event_is_taken_behind_the_last_one_and_behind_what_waits_before_it() {
        let known = Known { revision: 1, last: 10 };
        for (at, after, turn) in [
            (9, 0, Turn::Before),
            (10, 9, Turn::Before),
            (11, 0, Turn::Next),
            (11, 10, Turn::Next),
            (15, 10, Turn::Next),
            (15, 11, Turn::Later),
            (15, 0, Turn::Next),
        ] {
            assert_eq!(known.turn(&handover(at, after)), turn, "{at} after {after}");
        }
        assert_eq!(Known::default().turn(&handover(57, 0)), Turn::Next, "a node that knows nothing");
        assert_eq!(Known::default().turn(&handover(57, 56)), Turn::Later);
    }

    #[test]
    fn lanes_have_a_limit_and_idle_ones_make_room() {
        let taking_in = TakingIn::default();
        let key = |number: u128| (Arc::from("node"), number.to_be_bytes());
        for number in 0..limits::HANDOVER_LANES_MAX as u128 - 1 {
            lock(&taking_in.lane(key(number)).unwrap().queue).runs = true;
        }
        assert_eq!(lock(&taking_in.lanes).len(), limits::HANDOVER_LANES_MAX - 1);
        let last = taking_in.lane(key(u128::MAX)).unwrap();
        assert_eq!(lock(&taking_in.lanes).len(), limits::HANDOVER_LANES_MAX);
        taking_in.lane(key(u128::MAX - 1)).unwrap();
        assert_eq!(lock(&taking_in.lanes).len(), limits::HANDOVER_LANES_MAX, "the idle one made room");
        lock(&taking_in.lane(key(u128::MAX - 1)).unwrap().queue).runs = true;
        assert_eq!(taking_in.lane(key(u128::MAX - 2)).err().unwrap().code(), "busy");
        drop(last);
    }
}
