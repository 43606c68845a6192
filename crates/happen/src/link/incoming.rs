//! The way of a frame into a space: read, verified, and then the same way as any event; and the way of its replies out.
//! What cannot be trusted ends here, counted and told, before any node sees it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use happen_core::codec::{self, Addressee, Handover, WireError, WireEvent, WireParcel, WireReply, WireSeal};
use happen_core::event::Purpose;
use happen_core::hash::{self, HashMismatch};
use happen_core::link::{CONTROL, Inbound, NodePresence, Notice, Replies};
use happen_core::{ErasedEvent, Error, ErrorKind, EventId, NodeKey, Result, Value};
use tokio::sync::{mpsc, oneshot};

use crate::control::ByHand;
use crate::dispatch::{self, Delivered, Reply, Want};
use crate::durable::{self, Keyed, NotTaken, Spread};
use crate::flow::Outcome;
use crate::identity::{Asked, Distrust, Guard, Opened, Trusted};
use crate::limits;
use crate::link::{Entrance, Linked, RESERVED};
use crate::route::Takers;
use crate::send;
use crate::space::SpaceInner;
use crate::stream::Sink;
use crate::table::Phase;
use crate::web;

impl Inbound for Entrance {
    fn post(&self, to: &str, frame: &[u8]) {
        let Some(space) = self.space.upgrade() else { return };
        let Some(Arrived { event, key, .. }) = space.admit(space.addressee(to), frame) else { return };
        let want = key.iter().fold(Want::default(), |want, key| want.known_by(&Keyed::new(key)));
        let Err(error) = space.bring_in(to, &*event, want, &mut Ok(None)) else { return };
        let broadcast = matches!(event.envelope().purpose, Purpose::Broadcast | Purpose::Stored);
        // Of a node that several share the one was chosen that takes a broadcast; what it listens to is its own affair.
        if !broadcast || !matches!(error.kind(), ErrorKind::NoHandler { .. }) {
            space.undelivered(&*event, to, error, Reply::Nobody);
        }
    }

    fn request(&self, to: &str, frame: &[u8]) -> Box<dyn Replies> {
        match self.space.upgrade() {
            Some(space) => Box::new(space.answer(to, frame)),
            None => Box::new(Answers {
                to: EventId::MIN,
                source: Source::Ended(Err(Error::new(ErrorKind::Closed { what: "the space".to_owned() }))),
                items: 0,
                bytes_max: happen_core::limits::EVENT_BYTES_MAX,
                error_bytes_max: happen_core::limits::EVENT_BYTES_MAX,
                keyed: None,
                sealing: None,
                _place: None,
            }),
        }
    }

    fn publish(&self, frame: &[u8]) {
        let Some(space) = self.space.upgrade() else { return };
        let Some(Arrived { event, .. }) = space.admit(Addressee::Everyone, frame) else { return };
        if !space.is_running() {
            return;
        }
        for single in (0..event.len()).filter_map(|index| event.single(index)) {
            let envelope = single.envelope();
            let mark = space.remember_arrived(envelope, NodeKey(0));
            space.settle(mark, web::PUBLISHED);
            if envelope.purpose == Purpose::Stored && space.shares_its_log() {
                space.publish_to_forgetful(single, &Takers::of_arrival());
            } else {
                space.publish_to_listeners(single, None, Spread::Here, &Takers::of_arrival());
            }
        }
    }

    fn presence(&self) -> Vec<NodePresence> {
        self.space
            .upgrade()
            .filter(|space| space.is_running())
            .map_or_else(Vec::new, |space| space.presence())
    }

    fn notice(&self, notice: Notice<'_>) {
        let Some(space) = self.space.upgrade() else { return };
        match notice {
            Notice::Connection { status, url, reason } => {
                if let Some(balance) = &space.balance {
                    balance.note_connection(status);
                }
                let mut told = serde_json::json!({ "status": status.as_str(), "url": url });
                if let Some(reason) = reason {
                    told["reason"] = reason.into();
                }
                space.announce("system.connection-status", told);
            }
            Notice::Left { member } => {
                if let Some(balance) = &space.balance {
                    balance.note_left(member);
                }
            }
            Notice::Refused(error) => space.refuse(error),
            Notice::Lost(error) => space.problem(error.duplicate()),
            _ => {}
        }
    }
}

/// What came in a frame: an event or a batch, and what is said of it beside.
struct Arrived {
    event: Arc<dyn ErasedEvent>,
    key: Option<Arc<str>>,
    handover: Option<Handover>,
    /// The rules of who signed it; nobody's where that is not asked, or unsigned frames are taken.
    by: Option<Arc<Trusted>>,
}

impl SpaceInner {
    /// What is in a frame, when it is to be trusted.
    fn admit(self: &Arc<Self>, addressee: Addressee<'_>, frame: &[u8]) -> Option<Arrived> {
        self.read_frame(addressee, frame).inspect_err(|error| self.refuse(error)).ok()
    }

    fn read_frame(&self, addressee: Addressee<'_>, frame: &[u8]) -> Result<Arrived> {
        let opened = match self.guard.get() {
            Some(guard) => guard.open(addressee, frame)?,
            // Whoever signs where nobody verifies is heard like everybody else.
            None => Opened { frame: WireSeal::open(frame)?.1, by: None },
        };
        let summed = if opened.by.is_none() { codec::open_summed(opened.frame)? } else { None };
        let frame = summed.unwrap_or(opened.frame);
        let parcel = self.parcel_in(frame)?;
        let known = |id| self.hashes.of(id);
        let first = parcel.events().first().map(|event| &event.event_type);
        for event in parcel.events() {
            // A sum does for a hash where nobody has signed.
            if event.hash.is_some() || summed.is_none() {
                hash::verify(event, known).map_err(|mismatch| untrue(event, mismatch))?;
            }
            // What a node takes is decided by the type of the first.
            if first != Some(&event.event_type) {
                return Err(mixed(event));
            }
            if let Some(trusted) = &opened.by {
                trusted.may_send(event).map_err(|distrust| distrust.into_error().at_event(event.id))?;
            }
        }
        let event = self.event_in(&parcel)?;
        if let (Addressee::Node(to), Some(_)) = (addressee, self.guard.get())
            && to.starts_with(CONTROL)
        {
            // Nobody's word is enough to send an event, where that was said, and never for this.
            let may = |by: &Trusted| ByHand::read(&*event)?.allows(by, self).map_err(Distrust::into_error);
            let allowed = opened.by.as_deref().map_or_else(|| Err(Distrust::Unsigned.into_error()), may);
            allowed.map_err(|error| error.at_event(event.envelope().id))?;
        }
        let frame = matches!(parcel, WireParcel::One(_)).then_some(frame);
        for event in parcel.events() {
            self.hashes.note(event, frame);
        }
        let first = parcel.events().first();
        let key = first.and_then(|event| event.key.as_deref()).map(Arc::from);
        let handover = first.and_then(|event| event.handover);
        Ok(Arrived { event, key, handover, by: opened.by })
    }

    /// The parcel in a frame. One that is handed over is larger by what says so.
    fn parcel_in<'f>(&self, frame: &'f [u8]) -> Result<WireParcel<'f>> {
        let bytes_max = self.config.event_bytes_max;
        let too_large = match WireParcel::decode(frame, bytes_max) {
            Err(error) if matches!(error.kind(), ErrorKind::Oversized { .. }) => error,
            decoded => return decoded,
        };
        match WireParcel::decode(frame, bytes_max + limits::HANDOVER_BYTES) {
            Ok(parcel) if parcel.events().first().is_some_and(|event| event.handover.is_some()) => Ok(parcel),
            _ => Err(too_large),
        }
    }

    /// Counts a frame that is not to be trusted, and tells of it in this process alone: an answer to it would be a frame
    /// again, and two spaces could refuse each other's refusals for ever.
    #[cold]
    pub(super) fn refuse(self: &Arc<Self>, error: &Error) {
        if let Some(linked) = self.link.get() {
            linked.refused.fetch_add(1, Ordering::SeqCst);
        }
        let distrust = error.find_cause::<Distrust>();
        let told = serde_json::json!({
            "code": error.code(),
            "reason": error.chain().join(": "),
            "event": error.event_id().map(|id| id.to_string()),
            "distrust": distrust.map(Distrust::code),
            "key": distrust.and_then(Distrust::key),
        });
        self.announce("system.refused", told);
    }

    pub(crate) fn bring_in(
        self: &Arc<Self>,
        to: &str,
        event: &dyn ErasedEvent,
        want: Want,
        outcome: &mut Outcome,
    ) -> Result<Delivered> {
        let id = event.envelope().id;
        let node = if to.starts_with(RESERVED) { None } else { self.find_behind_routers(to, event) };
        let Some(node) = node else {
            let mark = self.remember_arrived(event.envelope(), NodeKey(0));
            self.settle(mark, web::failed("no-such-node"));
            return Err(Error::new(ErrorKind::NoSuchNode { node: to.to_owned() }).at_event(id).at_node(to));
        };
        for later in (1..event.len()).filter_map(|index| event.single(index)) {
            self.remember_arrived(later.envelope(), node.key);
        }
        let mark = self.remember_arrived(event.envelope(), node.key);
        if want.is_keyed() && !node.is_durable() {
            self.settle(mark, web::failed("misuse"));
            return Err(send::unknown_key(to).at_event(id).at_node(to));
        }
        match dispatch::deliver(&node, &mut self.way(), event, want, outcome) {
            Ok(delivered) => {
                let what = match &delivered {
                    Delivered::Now => dispatch::what(outcome),
                    Delivered::Later(_) => web::WAITING,
                };
                self.settle(mark, what);
                Ok(delivered)
            }
            Err(error) => {
                self.settle(mark, web::failed(error.code()));
                Err(error.at_event(id).at_node(to))
            }
        }
    }

    pub(crate) fn remember_arrived(&self, envelope: &happen_core::Envelope, to: NodeKey) -> web::Mark {
        if let Some(name) = envelope.inherited().and_then(|inherited| inherited.correlation.as_ref()) {
            // The root may never come here, so the name leads to what did.
            self.name_correlation(name, envelope.id);
        }
        self.remember_sent(envelope, to)
    }

    fn answer(self: &Arc<Self>, to: &str, frame: &[u8]) -> Answers {
        let mut answers = Answers {
            to: EventId::MIN,
            source: Source::Over,
            items: 0,
            bytes_max: self.config.event_bytes_max,
            error_bytes_max: self.reply_bytes_max(),
            keyed: None,
            sealing: self.sealing(to, frame),
            _place: None,
        };
        let taken = self
            .read_frame(self.addressee(to), frame)
            .inspect_err(|error| self.refuse(error))
            .and_then(|Arrived { event, key, handover, by }| {
                let envelope = event.envelope();
                if to.starts_with(CONTROL) {
                    answers.to = envelope.id;
                    let asked = ByHand::read(&*event)?;
                    if let Some(sealing) = &mut answers.sealing {
                        // Who has the node answers for it.
                        sealing.asked.node.clone_from(&asked.node);
                    }
                    if asked.is_of_balance() {
                        // Answered each time anew, and so many at once as other requests.
                        answers._place =
                            Some(self.place_for_answer().map_err(|error| error.at_event(envelope.id))?);
                        return self.asked_for_balance(to, by).map(Source::Waits);
                    }
                    return self.asked_by_hand(to, envelope.id, asked).map(Source::Waits);
                }
                answers._place = Some(self.place_for_answer().map_err(|error| error.at_event(envelope.id))?);
                // From here on an error is one of the event, and before one of the way.
                answers.to = envelope.id;
                if let Some(handover) = handover {
                    return self.answer_kept(to, &event, handover);
                }
                let keyed = key.as_ref().map(Keyed::new);
                answers.keyed.clone_from(&keyed);
                let known = |want: Want| keyed.iter().fold(want, |want, keyed| want.known_by(keyed));
                let (want, items) = match envelope.purpose {
                    Purpose::Ask => (known(Want::plain(true)), None),
                    Purpose::Stream if keyed.is_some() => {
                        return Err(Error::misuse("a stream is read without an idempotency key"));
                    }
                    Purpose::Stream => {
                        let (sink, items) = Sink::new();
                        (Want::plain(true).stream_to(sink), Some(items))
                    }
                    // Nobody waits for its outcome, only for its being taken.
                    _ => {
                        let taken = self.bring_in(to, &*event, known(Want::default()), &mut Ok(None))?;
                        return Ok(match taken {
                            // A node that remembers has taken it when it is stored.
                            Delivered::Later(Some(stored)) => Source::Waits(stored),
                            Delivered::Now | Delivered::Later(None) => Source::Ended(Ok(None)),
                        });
                    }
                };
                let mut outcome = Ok(None);
                let end = match self.bring_in(to, &*event, want, &mut outcome)? {
                    Delivered::Later(Some(end)) => Source::Waits(end),
                    Delivered::Now | Delivered::Later(None) => Source::Ended(outcome),
                };
                Ok(match items {
                    Some(items) => Source::Stream { items, end: Box::new(end) },
                    None => end,
                })
            });
        answers.source = taken.unwrap_or_else(|error| Source::Ended(Err(error)));
        answers
    }

    /// The answer to an event that its sender keeps until it is taken in, or to the question what became of it.
    fn answer_kept(
        self: &Arc<Self>,
        to: &str,
        event: &Arc<dyn ErasedEvent>,
        handover: Handover,
    ) -> Result<Source> {
        let id = event.envelope().id;
        let node = if to.starts_with(RESERVED) { None } else { self.find(to) };
        let Some(node) = node.filter(|_| self.is_running()) else {
            return Err(Error::new(ErrorKind::NoSuchNode { node: to.to_owned() }).at_event(id).at_node(to));
        };
        if !handover.asks_for_outcome() {
            return Ok(Source::Waits(durable::take_in(&node, event, handover)?));
        }
        if node.is_durable() {
            return Ok(Source::Waits(durable::outcome(&node, event)?));
        }
        // One that remembers nothing is asked now.
        let mut outcome = Ok(None);
        Ok(match self.bring_in(to, &**event, Want::plain(true), &mut outcome)? {
            Delivered::Later(Some(end)) => Source::Waits(end),
            Delivered::Now | Delivered::Later(None) => Source::Ended(outcome),
        })
    }

    /// What the replies to this frame are sealed with and for, in a space with an identity.
    fn sealing(&self, to: &str, frame: &[u8]) -> Option<Box<Sealing>> {
        let guard = self.guard.get()?;
        // Who asked knows the leaf of the frame without its seal.
        let asked = WireSeal::open(frame).map_or(frame, |(_, inside)| inside);
        let leaf = guard.leaf(self.addressee(to), asked);
        Some(Box::new(Sealing { guard: Arc::clone(guard), asked: Asked { leaf, node: to.to_owned() } }))
    }

    fn place_for_answer(&self) -> Result<Place> {
        let answering = self.link.get().map(|linked| &linked.answering);
        answering.map_or_else(|| Ok(Place(Arc::default())), Linked::place)
    }

    /// Whom a frame has to be for that comes for this node.
    fn addressee<'a>(&'a self, to: &'a str) -> Addressee<'a> {
        let shared = self.guard.get().and_then(|_| self.find(to)).filter(|node| node.is_shared());
        match shared.and_then(|_| self.link.get()) {
            Some(linked) => Addressee::Instance { node: to, member: linked.link.name() },
            None => Addressee::Node(to),
        }
    }

    pub(crate) fn presence(&self) -> Vec<NodePresence> {
        let told = self.all_nodes().into_iter().filter_map(|node| {
            let table = node.table.load();
            let share = table.options.shared.filter(|_| node.is_shared());
            // The others do the work of one that is stopped.
            if share.is_some() && table.phase != Phase::Open {
                return None;
            }
            let mut handles: Vec<_> = table.entries.iter().map(|entry| entry.pattern.clone()).collect();
            // Whoever waits for an event wants it as well.
            if let Some(durable) = &self.durable {
                handles.extend(durable.waiters.patterns_of(&node.name));
            }
            Some(NodePresence { id: node.name.to_string(), handles, share })
        });
        let mut nodes: Vec<_> = told.collect();
        let routers = self.routes.routers().into_iter();
        nodes.extend(routers.map(|id| NodePresence { id: id.to_string(), handles: Vec::new(), share: None }));
        if let Some(id) = self.control_id() {
            nodes.push(NodePresence { id, handles: Vec::new(), share: None });
        }
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        nodes
    }
}

impl Linked {
    fn place(answering: &Arc<AtomicUsize>) -> Result<Place> {
        if answering.fetch_add(1, Ordering::SeqCst) < limits::LINK_ANSWERING_MAX {
            return Ok(Place(Arc::clone(answering)));
        }
        answering.fetch_sub(1, Ordering::SeqCst);
        let what = format!("the number of requests over the link ({})", limits::LINK_ANSWERING_MAX);
        Err(Error::new(ErrorKind::Busy { what }))
    }
}

/// One of the requests that may be answered at once.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The replies to one request, encoded as they are asked for. Dropping it drops what the flow reports to, which asks
/// the flow to stop.
struct Answers {
    to: EventId,
    source: Source,
    items: u64,
    bytes_max: usize,
    error_bytes_max: usize,
    /// What the key of the event, if it has one, stands for in the end.
    keyed: Option<Arc<Keyed>>,
    sealing: Option<Box<Sealing>>,
    _place: Option<Place>,
}

/// How replies are sealed.
struct Sealing {
    guard: Arc<Guard>,
    asked: Asked,
}

enum Source {
    Ended(Outcome),
    Waits(oneshot::Receiver<Outcome>),
    Stream { items: mpsc::Receiver<Value>, end: Box<Self> },
    Over,
}

impl Replies for Answers {
    fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>>>> {
        let polled = self.poll_reply(task);
        let Some(Sealing { guard, asked }) = self.sealing.as_deref() else { return polled };
        let Poll::Ready(Some(Ok(reply))) = polled else { return polled };
        let sealed = guard.seal(Addressee::Asker(&asked.leaf), &asked.node, &reply);
        if sealed.is_err() {
            // Nothing comes after an error.
            self.source = Source::Over;
        }
        Poll::Ready(Some(sealed.map(|(sealed, _)| sealed)))
    }
}

impl Answers {
    fn poll_reply(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>>>> {
        let outcome = match std::mem::replace(&mut self.source, Source::Over) {
            Source::Over => return Poll::Ready(None),
            Source::Ended(outcome) => outcome,
            Source::Waits(mut end) => match Pin::new(&mut end).poll(task) {
                Poll::Ready(outcome) => outcome.unwrap_or_else(|_| Err(cancelled())),
                Poll::Pending => {
                    self.source = Source::Waits(end);
                    return Poll::Pending;
                }
            },
            Source::Stream { mut items, end } => {
                // Items come as long as somebody may emit; with the last of those gone the end is told.
                match items.poll_recv(task) {
                    Poll::Ready(Some(item)) => {
                        self.source = Source::Stream { items, end };
                        return Poll::Ready(Some(self.item(&item)));
                    }
                    Poll::Ready(None) => {
                        self.source = *end;
                        return self.poll_reply(task);
                    }
                    Poll::Pending => {
                        self.source = Source::Stream { items, end };
                        return Poll::Pending;
                    }
                }
            }
        };
        Poll::Ready(Some(self.last(outcome)))
    }

    fn item(&mut self, item: &Value) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let event_type = item.event_type();
        let encoded = item.as_payload().encode(&mut bytes).and_then(|()| {
            self.frame(codec::Outcome::Item { event_type: event_type.as_str().into(), bytes: &bytes })
        });
        match encoded {
            Ok(frame) => {
                self.items += 1;
                Ok(frame)
            }
            Err(error) => {
                // The reader is told why the stream ends here; dropping the source ends it at its other end.
                self.source = Source::Over;
                self.failure(&error)
            }
        }
    }

    fn last(&self, outcome: Outcome) -> Result<Vec<u8>> {
        let frame = outcome.and_then(|value| {
            let Some(value) = value else { return self.frame(codec::Outcome::End) };
            let mut bytes = Vec::new();
            value.as_payload().encode(&mut bytes)?;
            let event_type = value.event_type();
            self.frame(codec::Outcome::Value { event_type: event_type.as_str().into(), bytes: &bytes })
        });
        frame.or_else(|error| self.failure(&error))
    }

    fn failure(&self, error: &Error) -> Result<Vec<u8>> {
        // Of what was not taken in, nothing is known here.
        let to = if error.find_cause::<NotTaken>().is_some() { EventId::MIN } else { self.to };
        let mut reply = WireReply::new(to, codec::Outcome::Error(WireError::of(error)));
        reply.sequence = self.items;
        reply.first = self.first();
        self.encoded(&reply, self.error_bytes_max)
    }

    fn frame(&self, outcome: codec::Outcome<'_>) -> Result<Vec<u8>> {
        let mut reply = WireReply::new(self.to, outcome);
        reply.sequence = self.items;
        reply.first = self.first();
        self.encoded(&reply, self.bytes_max)
    }

    fn encoded(&self, reply: &WireReply<'_>, bytes_max: usize) -> Result<Vec<u8>> {
        let mut frame = Vec::new();
        match self.sealing {
            Some(_) => reply.encode_into(&mut frame, bytes_max)?,
            None => codec::encode_summed(&mut frame, |out| reply.encode_into(out, bytes_max))?,
        }
        Ok(frame)
    }

    /// The event that came first under the key of the answered one, when that is another one.
    fn first(&self) -> Option<EventId> {
        self.keyed.as_ref().and_then(|keyed| keyed.first()).filter(|first| *first != self.to)
    }
}

#[cold]
fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled)
}

#[cold]
fn mixed(event: &WireEvent<'_>) -> Error {
    let reason = "a batch has events of one type, and this one has others".to_owned();
    Error::new(ErrorKind::Invalid { reason }).at_event(event.id)
}

#[cold]
fn untrue(event: &WireEvent<'_>, mismatch: HashMismatch) -> Error {
    Error::new(ErrorKind::Invalid { reason: mismatch.to_string() }).with_source(mismatch).at_event(event.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_up_to_a_limit() {
        let answering = Arc::default();
        let mut places: Vec<_> =
            (0..limits::LINK_ANSWERING_MAX).map(|_| Linked::place(&answering).ok().unwrap()).collect();
        assert_eq!(Linked::place(&answering).err().unwrap().code(), "busy");
        places.pop();
        assert!(Linked::place(&answering).is_ok());
        drop(places);
        assert_eq!(answering.load(Ordering::SeqCst), 0);
    }
}
