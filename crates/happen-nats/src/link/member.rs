//! Another member as this one sends to it: what waits to leave, in order and within limits, and how far it has been handed
//! over there. Does not know what nodes the member has, nor what becomes of requests.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen_core::{Error, ErrorKind, Result};
use tokio::sync::Notify;

use super::frame::{Frame, HEADER_BYTES_MAX, Header, kind};
use super::queue::{Envelope, Queue, Window};
use super::wire::{Way, Wire, closed, lock};
use crate::limits;

/// One run of another member.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) instance: u64,
    events: Way,
    replies: Way,
    out: Mutex<Out>,
    /// Woken when something has left.
    room: Notify,
}

/// Which of the two ways to a member a frame takes. Each keeps its order.
///
/// Replies do not stand behind events because handlers may run where events are taken out, and who runs there may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// What the runtime there is handed, and what has to stay in order with it.
    Events,
    /// Replies, and what the link itself has to say.
    Replies,
}

/// Whether a frame may be turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// It keeps to the limits of the queue.
    Needed,
    /// It is small, and there are only as many as requests.
    Made,
}

#[derive(Default)]
struct Out {
    events: Queue,
    replies: Queue,
    window: Window,
    /// The member is to say how far it is, whatever waits.
    sync_due: bool,
    /// The member is to know that the connection was lost, before anything else.
    returned_due: bool,
    /// When the last message left.
    left: Duration,
    /// A task takes messages out.
    draining: bool,
    /// Nothing leaves until the member has been heard of.
    held: bool,
    /// When it was last held.
    held_until: Option<Duration>,
    gone: bool,
}

impl Member {
    pub(super) fn new(wire: &Wire, name: &str, instance: u64) -> Result<Self> {
        let subjects = &wire.subjects;
        Ok(Self {
            events: Way { subject: subjects.events_of(name)?, bounces: Some(subjects.bounces_of(name)?) },
            replies: subjects.replies_of(name)?.into(),
            name: name.to_owned(),
            instance,
            out: Mutex::default(),
            room: Notify::new(),
        })
    }

    /// Sends a frame: at once when nothing is under way, behind what waits otherwise.
    pub(super) fn send(
        self: &Arc<Self>,
        wire: &Arc<Wire>,
        lane: Lane,
        frame: Frame<'_>,
        room: Room,
    ) -> Result<()> {
        let mut out = lock(&self.out);
        if out.gone {
            return Err(closed(&self.name));
        }
        if room == Room::Needed && !out.queue(lane).has_room(frame.bytes_max(), wire.queue_max) {
            return Err(Error::new(ErrorKind::Busy { what: format!("the link to `{}`", self.name) }));
        }
        let now = wire.env.monotonic();
        if out.is_alone(lane, now) && self.leaves_now(wire, &mut out, lane, frame, now) {
            return Ok(());
        }
        out.queue(lane).push(&wire.header(lane.kind(), 0), frame);
        self.set_going(wire, &mut out);
        Ok(())
    }

    fn leaves_now(&self, wire: &Wire, out: &mut Out, lane: Lane, frame: Frame<'_>, now: Duration) -> bool {
        let number = out.queue(lane).number + 1;
        let mut message = Vec::with_capacity(HEADER_BYTES_MAX + frame.bytes_max());
        wire.header(lane.kind(), number).write(&mut message);
        frame.write(&mut message);
        let bytes = message.len();
        // What fails here is tried by the task, which tells.
        if !matches!(wire.publish_now(self.way(lane), message.into()), Some(Ok(()))) {
            return false;
        }
        out.note_left(lane, 1, bytes, now);
        true
    }

    /// Starts the task that takes messages out, if there is something to do and nobody does it.
    fn set_going(self: &Arc<Self>, wire: &Arc<Wire>, out: &mut Out) {
        if !out.draining && out.has_work() {
            out.draining = true;
            wire.env.spawn(Box::pin(drain(Arc::clone(self), Arc::clone(wire))));
        }
    }

    /// Whether another reply may wait.
    pub(super) fn has_room_for_replies(&self, wire: &Wire) -> bool {
        lock(&self.out).replies.has_room(0, wire.queue_max)
    }

    /// Ends when something has left after the call.
    pub(super) fn some_left(&self) -> tokio::sync::futures::Notified<'_> {
        self.room.notified()
    }

    /// Notes that the member has handed over all envelopes up to this one.
    pub(super) fn handed_over(self: &Arc<Self>, wire: &Arc<Wire>, number: u64) {
        let mut out = lock(&self.out);
        out.window.handed_over(number);
        self.set_going(wire, &mut out);
    }

    /// Asks how far the member is when nothing may leave before that is known.
    pub(super) fn sync(self: &Arc<Self>, wire: &Arc<Wire>) {
        let mut out = lock(&self.out);
        if !out.window.is_open() {
            out.sync_due = true;
            self.set_going(wire, &mut out);
        }
    }

    /// Keeps everything until the member has been heard of.
    pub(super) fn hold(&self) {
        let mut out = lock(&self.out);
        out.held = true;
        out.returned_due = true;
    }

    /// Notes that the member was heard of.
    pub(super) fn release(self: &Arc<Self>, wire: &Arc<Wire>) {
        let mut out = lock(&self.out);
        if std::mem::take(&mut out.held) {
            out.held_until = Some(wire.env.monotonic());
            self.set_going(wire, &mut out);
        }
    }

    /// Whether it is held, or was less than this time ago.
    pub(super) fn was_held_until(&self, now: Duration, ago: Duration) -> bool {
        let out = lock(&self.out);
        out.held || out.held_until.is_some_and(|until| now.saturating_sub(until) < ago)
    }

    pub(super) fn is_held(&self) -> bool {
        lock(&self.out).held
    }

    /// Whether something has left for it of which it is not known that it arrived.
    pub(super) fn awaits_word(&self) -> bool {
        !lock(&self.out).window.sent.is_empty()
    }

    /// Whether nothing waits to leave.
    pub(super) fn is_empty(&self) -> bool {
        let out = lock(&self.out);
        out.events.waiting.is_empty() && out.replies.waiting.is_empty() && !out.draining
    }

    /// The requests that have not left yet.
    pub(super) fn waiting_requests(&self) -> Vec<u64> {
        lock(&self.out).events.waiting.iter().flat_map(|envelope| envelope.requests.iter().copied()).collect()
    }

    /// Gives up what waits: nobody is there who would take it. The number of frames for nodes that are lost with it.
    pub(super) fn give_up(&self) -> usize {
        let mut out = lock(&self.out);
        out.gone = true;
        let lost = out.events.frames;
        out.events = Queue::default();
        out.replies = Queue::default();
        drop(out);
        self.room.notify_waiters();
        lost
    }

    fn way(&self, lane: Lane) -> &Way {
        match lane {
            Lane::Events => &self.events,
            Lane::Replies => &self.replies,
        }
    }
}

/// Takes messages out, one after the other, as long as some may leave.
async fn drain(member: Arc<Member>, wire: Arc<Wire>) {
    // Whoever else has something to send is ready by now: it travels along.
    tokio::task::yield_now().await;
    loop {
        let now = wire.env.monotonic();
        let taken = {
            let mut out = lock(&member.out);
            let taken = out.take(&wire, now);
            out.draining = taken.is_some();
            taken
        };
        member.room.notify_waiters();
        let Some((lane, message)) = taken else { return };
        if let Err(error) = wire.publish(member.way(lane), message.into()).await {
            wire.lost(&error.context(format!("sending to `{}`", member.name)));
        }
    }
}

impl Lane {
    fn kind(self) -> u8 {
        match self {
            Self::Events => kind::EVENTS,
            Self::Replies => kind::REPLIES,
        }
    }
}

impl Out {
    fn queue(&mut self, lane: Lane) -> &mut Queue {
        match lane {
            Lane::Events => &mut self.events,
            Lane::Replies => &mut self.replies,
        }
    }

    /// Whether a frame may leave on the stack of its sender: nothing is before it, and nothing came just before it, so
    /// that a flood is gathered.
    fn is_alone(&self, lane: Lane, now: Duration) -> bool {
        let free = !self.draining
            && !self.held
            && !self.returned_due
            && self.events.waiting.is_empty()
            && self.replies.waiting.is_empty();
        free && (lane == Lane::Replies || self.window.is_open())
            && now.saturating_sub(self.left) > limits::GATHER_AFTER
    }

    fn has_work(&self) -> bool {
        let events = !self.events.waiting.is_empty() && self.window.is_open();
        !self.held && (events || self.sync_due || self.returned_due || !self.replies.waiting.is_empty())
    }

    fn take(&mut self, wire: &Wire, now: Duration) -> Option<(Lane, Vec<u8>)> {
        if !self.has_work() {
            return None;
        }
        let returned = std::mem::take(&mut self.returned_due);
        if returned || std::mem::take(&mut self.sync_due) {
            let mut message = Vec::with_capacity(HEADER_BYTES_MAX + 1);
            wire.header(kind::EVENTS, self.events.number + 1).write(&mut message);
            if returned { Frame::Returned } else { Frame::Sync }.write(&mut message);
            self.note_left(Lane::Events, 0, message.len(), now);
            return Some((Lane::Events, message));
        }
        let lane = if self.replies.waiting.is_empty() { Lane::Events } else { Lane::Replies };
        let queue = self.queue(lane);
        let Envelope { mut message, frames, .. } = queue.pop()?;
        Header::set_number(&mut message, queue.number + 1);
        self.note_left(lane, frames, message.len(), now);
        Some((lane, message))
    }

    fn note_left(&mut self, lane: Lane, frames: usize, bytes: usize, now: Duration) {
        let queue = self.queue(lane);
        queue.number += 1;
        let number = queue.number;
        if lane == Lane::Events {
            self.window.note(number, frames, bytes);
        }
        self.left = now;
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "member `{}`", self.name)
    }
}
