//! The way of an event out of a space: encoded once, hashed, handed to the link; and the way of its replies back. Does
//! not know how the link carries either.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use happen_core::codec::{self, Addressee, Handover, SealHash, WireParcel, WireReply, WireSeal};
use happen_core::event::Purpose;
use happen_core::link::Replies;
use happen_core::payload::Dynamic;
use happen_core::{ErasedEvent, Error, ErrorKind, EventId, EventType, NodeKey, Result, Value};

use crate::durable::Keyed;
use crate::flow::Outcome;
use crate::identity::Asked;
use crate::limits;
use crate::link::leaving::{Departure, To};
use crate::link::{Cause, Linked};
use crate::route::{Load, Takers, There};
use crate::send::Sender;
use crate::space::SpaceInner;
use crate::wire::Sent;

impl SpaceInner {
    /// Sends an event to a node elsewhere, under a key if it has one, of which is told which event it stands for; `None`
    /// when nobody wants to hear of it.
    pub(crate) fn send_away(
        self: &Arc<Self>,
        sender: Sender<'_>,
        there: &mut There,
        event: &dyn ErasedEvent,
        keyed: Option<&Arc<Keyed>>,
        wants_replies: bool,
    ) -> Result<Option<Away>> {
        let node = &*there.node;
        let linked = self.linked(node)?;
        let key = keyed.map(|keyed| keyed.key());
        let frame = self.frame(sender, event, Sent { key, ..self.leaving() })?;
        let to = To::Node { node: Arc::clone(&there.node), member: there.member.clone() };
        if !wants_replies && !self.is_remembered_elsewhere(node) {
            return self.leave_by(linked, to, event, frame).map(|()| None);
        }
        // What the sender is told of at once is signed alone, behind what it sent before.
        self.carry_all();
        let (frame, leaf) = self.sealed(to.addressee(), event, frame)?;
        if !wants_replies {
            return linked.post(&to, event, frame).map(|()| None);
        }
        let replies = match &there.member {
            None => linked.link.request(node, frame)?,
            Some(member) => linked.link.request_at(member, node, frame)?,
        };
        let asked = leaf.map(|leaf| Asked { leaf, node: node.to_owned() });
        let away = self.awaited(event.envelope().id, self.key_of(node), replies, asked);
        let loads = std::mem::take(&mut there.loads);
        Ok(Some(Away { keyed: keyed.cloned(), loads, ..away }))
    }

    /// Asks a process for something by hand, by the id that its runtime has for it. Whoever may speak for the node has to
    /// have signed the answer.
    ///
    /// # Errors
    ///
    /// When it cannot be encoded or signed, and what the link says.
    pub(crate) fn ask_process(
        self: &Arc<Self>,
        process: &str,
        node: &str,
        event: &dyn ErasedEvent,
    ) -> Result<Away> {
        let linked = self.linked(process)?;
        let frame = self.frame(Sender::Space(self), event, self.leaving())?;
        self.carry_all();
        let (frame, leaf) = self.sealed(Addressee::Node(process), event, frame)?;
        let replies = linked.link.request(process, frame)?;
        let asked = leaf.map(|leaf| Asked { leaf, node: node.to_owned() });
        Ok(self.awaited(event.envelope().id, NodeKey(0), replies, asked))
    }

    /// Hands an event over that is kept here until its node has taken it in, or asks for the outcome of such a one.
    ///
    /// # Errors
    ///
    /// When it cannot leave: by the link, or because it is too large.
    pub(crate) fn hand_over(
        self: &Arc<Self>,
        to: &str,
        mut parcel: WireParcel<'_>,
        handover: Handover,
    ) -> Result<Away> {
        let Some(first) = parcel.first_mut() else {
            return Err(Error::new(ErrorKind::Undecodable { wanted: "event".to_owned() }));
        };
        first.handover = Some(handover);
        let (id, sender) = (first.id, first.sender.clone());
        let mut frame = Vec::new();
        let bytes_max = self.config.event_bytes_max + limits::HANDOVER_BYTES;
        // The hash that is stored with it does not cover what is said of its being handed over.
        self.leaving().encode(&mut frame, |out| parcel.encode_into(out, bytes_max))?;
        let linked = self.linked(to)?;
        let member = self.instance_elsewhere(to);
        // What left before is signed before.
        self.carry_all();
        let (frame, leaf) = match self.guard.get() {
            None => (frame, None),
            Some(guard) => {
                let whom = To::Node { node: to.into(), member: member.clone() };
                let (sealed, leaf) = guard.seal(whom.addressee(), &sender, &frame)?;
                (sealed, Some(leaf))
            }
        };
        let replies = match member {
            None => linked.link.request(to, frame)?,
            Some(member) => linked.link.request_at(&member, to, frame)?,
        };
        let asked = leaf.map(|leaf| Asked { leaf, node: to.to_owned() });
        Ok(self.awaited(id, self.key_of(to), replies, asked))
    }

    fn awaited(
        self: &Arc<Self>,
        event: EventId,
        node: NodeKey,
        replies: Box<dyn Replies>,
        asked: Option<Asked>,
    ) -> Away {
        Away {
            space: Arc::clone(self),
            event,
            node,
            replies,
            items: 0,
            keyed: None,
            was_heard: false,
            asked: asked.map(Box::new),
            loads: Vec::new(),
        }
    }

    /// Sends an event to everyone elsewhere who listens, and chooses one for each node that several processes share: gives
    /// those of which it is the one here. What nobody elsewhere can be told is told here. Nodes that remember have one that
    /// is stored by the log that they share with this space.
    pub(crate) fn publish_away(
        self: &Arc<Self>,
        sender: Sender<'_>,
        event: &dyn ErasedEvent,
        stored: bool,
    ) -> Takers {
        let Some(linked) = self.link.get() else { return Takers::All };
        let envelope = event.envelope();
        let event_type = envelope.event_type.as_str();
        let (sharing, listens) = (self.sharing(event_type), linked.link.listens(event_type));
        if !listens && sharing.is_empty() {
            return Takers::of_arrival();
        }
        let purpose = stored.then_some(Purpose::Stored);
        let frame = match self.frame(sender, event, Sent { purpose, ..self.leaving() }) {
            Ok(frame) => frame,
            Err(error) => {
                self.not_everyone_reached(event, error);
                return self.share_out(event, &sharing, |_| Ok(())).0;
            }
        };
        let (takers, failed) = self.share_out(event, &sharing, |there| {
            let to = To::Node { node: Arc::clone(&there.node), member: there.member.clone() };
            self.leave_by(linked, to, event, frame.clone())
        });
        let published = match listens {
            true => self.leave_by(linked, To::Everyone, event, frame),
            false => Ok(()),
        };
        if let Some(error) = failed.or(published.err()) {
            self.not_everyone_reached(event, error);
        }
        takers
    }

    #[cold]
    pub(super) fn not_everyone_reached(self: &Arc<Self>, event: &dyn ErasedEvent, error: Error) {
        let error = error.context("a broadcast did not reach everyone beyond the link");
        self.problem(error.at_event(event.envelope().id));
    }

    /// Has a frame leave that nobody waits for: at once, or in a space with an identity when it is signed.
    fn leave_by(
        self: &Arc<Self>,
        linked: &Linked,
        to: To,
        event: &dyn ErasedEvent,
        frame: Vec<u8>,
    ) -> Result<()> {
        let Some(guard) = self.guard.get() else {
            return linked.post(&to, event, frame);
        };
        let by = self.name_of(event.envelope().sender).unwrap_or_default();
        let leaf = guard.leaf(to.addressee(), &frame);
        self.depart(linked, Departure { to, by, frame, leaf, event: event.to_shared() })
    }

    /// How what leaves is encoded. Where nobody signs, a hash says no more than a sum does: whoever changes an event makes
    /// both anew.
    fn leaving(&self) -> Sent<'static> {
        Sent { summed: self.guard.get().is_none(), ..Sent::default() }
    }

    fn frame(&self, sender: Sender<'_>, event: &dyn ErasedEvent, sent: Sent<'_>) -> Result<Vec<u8>> {
        let causes = |single: &dyn ErasedEvent| Ok(self.causes_from(sender, single));
        self.frame_for(event, sent, causes, |_, _| {})
    }

    /// The frame as it leaves: sealed in the name of the sender, if this space has an identity, and then with its leaf.
    fn sealed(
        &self,
        addressee: Addressee<'_>,
        event: &dyn ErasedEvent,
        frame: Vec<u8>,
    ) -> Result<(Vec<u8>, Option<SealHash>)> {
        let Some(guard) = self.guard.get() else { return Ok((frame, None)) };
        let sender = self.name_of(event.envelope().sender);
        let (sealed, leaf) = guard.seal(addressee, sender.as_deref().unwrap_or_default(), &frame)?;
        Ok((sealed, Some(leaf)))
    }

    /// The causes of an event that is just being sent: their types stand in the flow that sends it. One that is stored, or
    /// left before, tells of them as it did then, whatever is known of them now: its hash is one over that.
    fn causes_from(&self, sender: Sender<'_>, event: &dyn ErasedEvent) -> Vec<Cause> {
        let envelope = event.envelope();
        if envelope.cause.is_none() {
            return Vec::new();
        }
        if let Some(told) = self.hashes.causes(envelope.id) {
            return told;
        }
        sender.with_cause(|flow| {
            let causes = envelope.causes().map(|id| {
                let event_type = flow.and_then(|flow| {
                    if flow.envelope().id == id {
                        return Some(&flow.envelope().event_type);
                    }
                    let at = flow.more_causes.iter().position(|cause| *cause == id)?;
                    flow.more_types.get(at)
                });
                self.hashes.cause(id, event_type)
            });
            causes.collect()
        })
    }

    /// The bytes a reply may have. Never below the default: a failure can always be told.
    pub(crate) fn reply_bytes_max(&self) -> usize {
        self.config.event_bytes_max.max(happen_core::limits::EVENT_BYTES_MAX)
    }
}

/// An event that left by the link and whose replies are awaited. Dropping it says that nobody waits.
pub(crate) struct Away {
    space: Arc<SpaceInner>,
    event: EventId,
    node: NodeKey,
    replies: Box<dyn Replies>,
    items: u64,
    /// What is told of the event's key.
    keyed: Option<Arc<Keyed>>,
    /// Whether the other side has read the event: an end that it told is not one of the way.
    was_heard: bool,
    /// What the replies have to be sealed for, in a space with an identity.
    asked: Option<Box<Asked>>,
    /// Count the event as under way until its end.
    loads: Vec<Load>,
}

/// One reply.
pub(crate) enum Answered {
    Item(Value),
    End(Outcome),
}

impl Away {
    /// The next reply. Nothing is asked for after the end.
    pub(crate) fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Answered> {
        let answered = match self.replies.poll_next(task) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                let opened = self.open(&frame).inspect_err(|error| self.space.refuse(error));
                let read = opened.and_then(|frame| self.read(frame));
                read.unwrap_or_else(|error| Answered::End(Err(error)))
            }
            Poll::Ready(Some(Err(error))) => Answered::End(Err(error)),
            Poll::Ready(None) => Answered::End(Err(closed())),
        };
        Poll::Ready(match answered {
            Answered::Item(item) => Answered::Item(item),
            Answered::End(outcome) => {
                self.loads.clear();
                self.space.remember(self.event, self.node, crate::dispatch::what(&outcome));
                Answered::End(outcome.map_err(|error| error.at_event(self.event)))
            }
        })
    }

    /// The outcome; items before it are not kept.
    pub(crate) async fn outcome(mut self) -> Outcome {
        loop {
            if let Answered::End(outcome) = poll_fn(|task| self.poll_next(task)).await {
                return outcome;
            }
        }
    }

    /// What the other side says of the event.
    ///
    /// # Errors
    ///
    /// When it says nothing: the way to it failed, or it could not read the event. Whether it has it is not known then.
    pub(crate) async fn heard(mut self) -> Result<Outcome> {
        loop {
            if let Answered::End(outcome) = poll_fn(|task| self.poll_next(task)).await {
                return if self.was_heard { Ok(outcome) } else { outcome.map(Ok) };
            }
        }
    }

    /// The key of the event, if it has one, which says in the end which event it stands for.
    pub(crate) fn keyed(&self) -> Option<Arc<Keyed>> {
        self.keyed.clone()
    }

    /// The reply in a frame, when it is to be trusted.
    fn open<'f>(&self, frame: &'f [u8]) -> Result<&'f [u8]> {
        let opened = match self.space.guard.get().zip(self.asked.as_ref()) {
            Some((guard, asked)) => guard.open_reply(asked, frame),
            None => WireSeal::open(frame).map(|(_, inside)| inside),
        };
        let whole = opened.and_then(|frame| Ok(codec::open_summed(frame)?.unwrap_or(frame)));
        whole.map_err(|error| error.at_event(self.event))
    }

    fn read(&mut self, frame: &[u8]) -> Result<Answered> {
        let reply = WireReply::decode(frame, self.space.reply_bytes_max())?;
        // The least id stands for an event that could not be read there.
        if reply.to != self.event && reply.to != EventId::MIN {
            let what = format!("reading the answer, which is one to event {},", reply.to);
            return Err(Error::new(ErrorKind::Io { what }));
        }
        self.was_heard = reply.to == self.event && !matches!(reply.outcome, codec::Outcome::Item { .. });
        if let Some((keyed, first)) = self.keyed.as_ref().zip(reply.first) {
            keyed.stands_for(first);
        }
        let failed = matches!(reply.outcome, codec::Outcome::Error(_));
        if !failed && reply.sequence != self.items {
            let lost = reply.sequence.abs_diff(self.items);
            return Err(Error::new(ErrorKind::Io {
                what: format!("the stream, of which {lost} items were lost,"),
            }));
        }
        Ok(match reply.outcome {
            codec::Outcome::Item { event_type, bytes } => {
                self.items += 1;
                Answered::Item(value(&event_type, bytes))
            }
            codec::Outcome::Value { event_type, bytes } => Answered::End(Ok(Some(value(&event_type, bytes)))),
            codec::Outcome::End => Answered::End(Ok(None)),
            codec::Outcome::Error(told) => Answered::End(Err(told.to_error())),
            _ => return Err(Error::new(ErrorKind::Undecodable { wanted: "reply".to_owned() })),
        })
    }
}

/// A value that came as bytes: its shape is found by the name of its type.
fn value(event_type: &str, bytes: &[u8]) -> Value {
    Value::new(Dynamic::from_bytes(EventType::new(event_type), bytes.into()))
}

#[cold]
fn closed() -> Error {
    Error::new(ErrorKind::Closed { what: "the link".to_owned() })
}

impl fmt::Debug for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "replies to {}", self.event)
    }
}
