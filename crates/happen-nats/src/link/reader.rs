//! The tasks that take messages in: events, one after the other, into the runtime; replies to whoever waits. Owns what is
//! noticed of messages that are unreadable or were lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::{Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use happen_core::link::Inbound;
use happen_core::{Error, ErrorKind, Result};

use super::Shared;
use super::frame::{Frame, Frames, Header, Input, Unreadable, kind};
use super::member::{Lane, Member, Room};
use super::presence::{Presence, plain};
use super::wire::{has_closed, lock};
use crate::limits;
use crate::names::token;

/// How far one run of a member has come with its messages.
#[derive(Debug, Default)]
struct Course {
    /// The number of the last message; 0 before the first.
    number: u64,
    /// What was handed over since the member was told.
    frames: usize,
    bytes: usize,
}

impl Course {
    /// Notes a message; how many are missing before it.
    fn note(&mut self, number: u64) -> u64 {
        // From 1 on, or from lower than before, the member counts anew. Of one that was never heard of it is not known what
        // was sent before.
        let known = self.number > 0 && number > self.number;
        let missing = if known { number - self.number - 1 } else { 0 };
        self.number = number;
        missing
    }
}

/// The courses of all members; those of the gone are forgotten now and then.
#[derive(Default)]
struct Courses {
    of: HashMap<u64, Course>,
    /// How often the connection had begun anew.
    begun: u64,
}

impl Courses {
    fn of(&mut self, shared: &Shared, instance: u64) -> &mut Course {
        if self.of.len() >= 2 * limits::MEMBERS_MAX && !self.of.contains_key(&instance) {
            let roster = lock(&shared.roster);
            self.of.retain(|instance, _| roster.by_instance(*instance).is_some());
        }
        self.of.entry(instance).or_default()
    }

    /// Expects no message in particular after the connection was lost.
    fn begin_anew(&mut self, begun: u64) {
        if self.begun != begun {
            self.begun = begun;
            self.of.clear();
        }
    }
}

impl Shared {
    /// Hands events over until the link closes.
    pub(super) async fn read_events(self: Arc<Self>, mut subscriber: Subscriber) {
        let Some(inbound) = self.wire.inbound().cloned() else { return };
        let mut closing = self.closing.subscribe();
        let mut courses = Courses::default();
        let mut run = 0;
        loop {
            let message = tokio::select! {
                biased;
                () = has_closed(&mut closing) => return,
                message = subscriber.next() => message,
            };
            let Some(message) = message else { return };
            match self.take_events(&mut courses, &*inbound, &message.payload) {
                Ok(frames) => run += frames,
                Err(unreadable) => self.wire.refused(unreadable),
            }
            if run >= HAND_OVER_RUN {
                run = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    fn take_events(
        &self,
        courses: &mut Courses,
        inbound: &dyn Inbound,
        message: &[u8],
    ) -> Result<usize, Unreadable> {
        let mut input = Input::new(message);
        let header = Header::read(&mut input)?;
        if header.kind != kind::EVENTS {
            return Err(Unreadable("a message of another kind than events"));
        }
        let frames = Frames::read(input)?;
        let member = self.sender(&header)?;
        let course = courses.of(self, header.instance);
        let missing = course.note(header.number);
        if missing > 0 {
            let what =
                format!("receiving from `{}`, of which {missing} messages did not arrive,", member.name);
            self.wire.lost(&Error::new(ErrorKind::Io { what }));
        }
        let mut count = 0;
        let mut sync = false;
        for frame in frames {
            if self.is_closing() {
                return Ok(count);
            }
            count += 1;
            match frame {
                Frame::Post { to, bytes } => inbound.post(to, bytes),
                Frame::Publish { bytes } => inbound.publish(bytes),
                Frame::Request { number, credit, to, bytes } => {
                    let replies = inbound.request(to, bytes);
                    let (member, closing) = (Arc::clone(&member), self.closing.subscribe());
                    self.answering.answer(&self.wire, member, (number, credit), replies, closing);
                }
                Frame::Cancel { number } => self.answering.cancel(header.instance, number),
                Frame::Sync => sync = true,
                Frame::Returned => self.answering.cancel_all_of(header.instance),
                _ => self.wire.refused(Unreadable("a frame of replies among events")),
            }
        }
        course.frames += count;
        course.bytes += message.len();
        // Told early enough that who sends without a pause need not wait.
        if sync
            || course.frames >= limits::WINDOW_FRAMES_MAX / 4
            || course.bytes >= limits::WINDOW_BYTES_MAX / 4
        {
            (course.frames, course.bytes) = (0, 0);
            let handed = Frame::Handed { number: header.number };
            // To one that is gone nothing need be said.
            let _ = member.send(&self.wire, Lane::Replies, handed, Room::Made);
        }
        Ok(count)
    }

    fn sender(&self, header: &Header<'_>) -> Result<Arc<Member>, Unreadable> {
        if header.name == self.wire.name {
            return Err(Unreadable("a message in this member's own name"));
        }
        let member = lock(&self.roster).member(&self.wire, header);
        member.ok().flatten().ok_or(Unreadable("a message of one member too many"))
    }

    /// Takes replies in until the link closes.
    pub(super) async fn read_replies(self: Arc<Self>, mut subscriber: Subscriber) {
        let mut closing = self.closing.subscribe();
        let mut courses = Courses::default();
        loop {
            let message = tokio::select! {
                biased;
                () = has_closed(&mut closing) => return,
                message = subscriber.next() => message,
            };
            let Some(message) = message else { return };
            if let Err(unreadable) = self.take_replies(&mut courses, &message).await {
                self.wire.refused(unreadable);
            }
        }
    }

    async fn take_replies(
        self: &Arc<Self>,
        courses: &mut Courses,
        message: &Message,
    ) -> Result<(), Unreadable> {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            self.bounced(message.subject.rsplit('.').next().unwrap_or_default());
            return Ok(());
        }
        let mut input = Input::new(&message.payload);
        let header = Header::read(&mut input)?;
        if header.kind == kind::CLAIM {
            if let Some(reply) = &message.reply {
                let answer = Bytes::from(plain(&self.wire.header(kind::CLAIM, 0), &[]));
                if let Err(error) = self.wire.publish(&reply.clone().into(), answer).await {
                    self.wire.lost(&error);
                }
            }
            return Ok(());
        }
        if header.kind == kind::ANNOUNCE {
            self.hear(&header, Presence::read(&header, input)?)?;
            return Ok(());
        }
        if header.kind != kind::REPLIES {
            return Err(Unreadable("a message of another kind than replies"));
        }
        let frames = Frames::read(input)?;
        let member = self.sender(&header)?;
        // Who waited for what was lost with the connection has been told.
        courses.begin_anew(self.begun.load(Ordering::SeqCst));
        let missing = courses.of(self, header.instance).note(header.number);
        if missing > 0 {
            // Nobody knows whose replies they were.
            let what =
                format!("receiving from `{}`, of which {missing} messages did not arrive,", member.name);
            self.wire.lost(&Error::new(ErrorKind::Io { what }));
            self.asking.end_left(std::slice::from_ref(&member));
        }
        for frame in frames {
            self.take_reply(&member, frame)?;
        }
        Ok(())
    }

    fn take_reply(&self, member: &Arc<Member>, frame: Frame<'_>) -> Result<(), Unreadable> {
        match frame {
            Frame::Credit { number, units } => self.answering.credit(member.instance, number, units),
            Frame::Handed { number } => member.handed_over(&self.wire, number),
            Frame::Leave => {
                self.gone(member);
                // Told once it is no peer any more, so that nobody takes it for one that has come back.
                self.wire.tell_left(&member.name);
            }
            Frame::Post { .. }
            | Frame::Request { .. }
            | Frame::Publish { .. }
            | Frame::Cancel { .. }
            | Frame::Sync
            | Frame::Returned => {
                return Err(Unreadable("a frame of events among replies"));
            }
            reply => self.asking.take(member.instance, reply),
        }
        Ok(())
    }

    /// Nobody takes the events of the member whose name is this token.
    fn bounced(&self, name: &str) {
        let members = lock(&self.roster).all();
        let named = |member: &Arc<Member>| token("member", &member.name).is_ok_and(|token| token == name);
        // One for which nothing has left is a later run of the member that is meant.
        for member in members.into_iter().filter(|member| named(member) && member.awaits_word()) {
            let what = format!("sending to `{}`, which nobody listens as any more,", member.name);
            self.wire.lost(&Error::new(ErrorKind::Io { what }));
            if member.is_held() {
                // It has not come back yet from what both of them lost.
                self.asking.end_left(&[member]);
            } else {
                self.gone(&member);
            }
        }
    }
}

/// Frames handed over in a row before other tasks get their turn.
const HAND_OVER_RUN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_messages_are_counted() {
        let mut course = Course::default();
        let missing: Vec<_> = [1, 2, 3, 7, 8, 1, 2, 4].map(|number| course.note(number)).into();
        assert_eq!(missing, [0, 0, 0, 3, 0, 0, 0, 1]);
        // A member that was there before this one has sent to somebody of its name before.
        assert_eq!(Course::default().note(500), 0);
    }
}
