//! The task that keeps a member known to the others and the others known to it: announcing, heartbeats, silence, and what
//! becomes of both when the connection is lost and found. Owns what was told of the own nodes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt as _;
use happen_core::link::ConnectionStatus;
use happen_core::{Error, ErrorKind};
use tokio::sync::watch;

use super::Shared;
use super::connection::Status;
use super::frame::{Header, Input, Unreadable, kind};
use super::presence::{Nodes, Presence, announce, by_id, change, equal, plain};
use super::roster::Heard;
use super::silence::Silence;
use super::wire::{Way, has_closed, lock};
use crate::limits;

/// What the others have been told.
pub(super) struct Pulse {
    shared: Arc<Shared>,
    stamp: u64,
    revision: u64,
    nodes: Nodes,
    /// How the connection was when this was last looked at.
    status: Status,
    /// When it beat last.
    beat_at: Duration,
}

impl Pulse {
    pub(super) fn new(shared: Arc<Shared>, stamp: u64) -> Self {
        let status = shared.wire.connection.status().borrow().clone();
        let beat_at = shared.wire.env.monotonic();
        let mut pulse = Self { shared, stamp, revision: 1, nodes: Nodes::new(), status, beat_at };
        pulse.nodes = pulse.look();
        pulse
    }

    fn look(&self) -> Nodes {
        self.shared.wire.inbound().map(|inbound| by_id(inbound.presence())).unwrap_or_default()
    }

    /// Tells everyone who is here.
    pub(super) async fn announce(&mut self) {
        self.announce_to(&self.shared.wire.subjects.presence().into()).await;
    }

    /// Asks a run of a member, or everyone, to announce itself.
    pub(super) async fn ask(&self, instance: u64) {
        self.tell(kind::ASK, &[instance]).await;
    }

    async fn announce_to(&self, way: &Way) {
        let wire = &self.shared.wire;
        let header = wire.header(kind::ANNOUNCE, self.revision);
        let bytes_max = wire.connection.message_bytes_max();
        let (messages, left_out) = announce(&header, self.stamp, &self.nodes, bytes_max);
        for message in messages {
            self.publish(way, message).await;
        }
        if !left_out.is_empty() {
            let what = format!("telling the others of {} nodes, for which there is no room,", left_out.len());
            wire.lost(&Error::new(ErrorKind::Io { what }));
        }
    }

    async fn tell(&self, kind: u8, numbers: &[u64]) {
        let wire = &self.shared.wire;
        let message = plain(&wire.header(kind, self.revision), numbers);
        self.publish(&wire.subjects.presence().into(), message).await;
    }

    async fn publish(&self, way: &Way, message: Vec<u8>) {
        let wire = &self.shared.wire;
        // What cannot be told now is told when the connection is there again.
        if wire.is_connected()
            && let Err(error) = wire.publish(way, Bytes::from(message)).await
        {
            wire.lost(&error.context("telling who is here"));
        }
    }

    /// Beats until the link closes.
    pub(super) async fn beat(mut self, mut presence: Subscriber, mut status: watch::Receiver<Status>) {
        let shared = Arc::clone(&self.shared);
        let mut closing = shared.closing.subscribe();
        let mut tick = shared.wire.env.sleep(limits::HEARTBEAT);
        loop {
            tokio::select! {
                biased;
                () = has_closed(&mut closing) => return,
                changed = status.changed() => {
                    let now = status.borrow_and_update().clone();
                    if changed.is_err() || now.is == ConnectionStatus::Closed {
                        return self.shared.cut_off();
                    }
                    self.connection_changed(now).await;
                }
                () = &mut tick => {
                    tick = shared.wire.env.sleep(limits::HEARTBEAT);
                    self.tick().await;
                }
                () = shared.changed.notified() => self.nodes_changed().await,
                message = presence.next() => {
                    let Some(message) = message else { return self.shared.cut_off() };
                    if let Err(unreadable) = self.take(&message).await {
                        shared.wire.refused(unreadable);
                    }
                }
            }
        }
    }

    async fn take(&mut self, message: &async_nats::Message) -> Result<(), Unreadable> {
        let mut input = Input::new(&message.payload);
        let header = Header::read(&mut input)?;
        let wire = Arc::clone(&self.shared.wire);
        if header.instance == wire.instance {
            return Ok(());
        }
        let presence = Presence::read(&header, input)?;
        match presence {
            Presence::Hello => {
                if let Some(reply) = &message.reply {
                    let seen = self.shared.stamp.load(Ordering::SeqCst);
                    self.publish(&reply.clone().into(), plain(&wire.header(kind::HELLO, 0), &[seen])).await;
                }
                return Ok(());
            }
            Presence::Ask { instance } if instance == 0 || instance == wire.instance => {
                if let Ok(way) = wire.subjects.replies_of(header.name) {
                    self.announce_to(&way.into()).await;
                }
            }
            Presence::Announce { part: 0, .. } => self.shared.hear_return(header.instance),
            _ => {}
        }
        if self.shared.hear(&header, presence)?.ask {
            self.ask(header.instance).await;
        }
        Ok(())
    }

    /// Looks what is different, and tells that.
    async fn nodes_changed(&mut self) {
        let now = self.look();
        let same =
            |(id, handles): (&String, &Vec<_>)| self.nodes.get(id).is_some_and(|told| equal(told, handles));
        if now.len() == self.nodes.len() && now.iter().all(same) {
            return;
        }
        self.revision += 1;
        let wire = Arc::clone(&self.shared.wire);
        let message = change(&wire.header(kind::CHANGE, self.revision), self.stamp, &self.nodes, &now);
        self.nodes = now;
        if message.len() <= wire.connection.message_bytes_max() {
            self.publish(&wire.subjects.presence().into(), message).await;
        } else {
            // Who sees another revision than it knows asks for all of it.
            self.tell(kind::BEAT, &[self.stamp]).await;
        }
    }

    async fn tick(&mut self) {
        if !self.shared.wire.is_connected() {
            return;
        }
        self.tell(kind::BEAT, &[self.stamp]).await;
        let now = self.shared.wire.env.monotonic();
        let went_unread = Silence::went_unread(std::mem::replace(&mut self.beat_at, now), now);
        let (silent, all) = {
            let mut roster = lock(&self.shared.roster);
            if went_unread {
                roster.hear_anew(now);
            }
            (roster.silent(now), roster.all())
        };
        silent.iter().for_each(|member| self.shared.gone(member));
        all.iter().for_each(|member| member.sync(&self.shared.wire));
    }

    /// The connection was lost, or is there again, or both.
    async fn connection_changed(&mut self, now: Status) {
        let wire = Arc::clone(&self.shared.wire);
        let connected = now.is == ConnectionStatus::Connected;
        let before = std::mem::replace(&mut self.status, now.clone());
        let begun_anew = now.begun != before.begun;
        if !connected || begun_anew {
            wire.set_connected(false);
            let members = lock(&self.shared.roster).all();
            members.iter().for_each(|member| member.hold());
            self.shared.asking.end_left(&members);
            if connected && before.is == ConnectionStatus::Connected {
                // What was between was too short to be seen.
                wire.tell_status(ConnectionStatus::Disconnected, None);
            }
        }
        if connected {
            self.shared.begun.fetch_add(1, Ordering::SeqCst);
            lock(&self.shared.roster).hear_anew(wire.env.monotonic());
            wire.set_connected(true);
            self.announce().await;
            self.ask(0).await;
        }
        wire.tell_status(now.is, now.refusal.as_deref());
    }
}

impl Shared {
    /// Notes what a member tells of itself, and does what follows from that.
    pub(super) fn hear(
        self: &Arc<Self>,
        header: &Header<'_>,
        presence: Presence<'_>,
    ) -> Result<Heard, Unreadable> {
        if let Presence::Announce { stamp, .. } | Presence::Beat { stamp } | Presence::Change { stamp, .. } =
            &presence
        {
            self.see_stamp(*stamp);
            if header.name == self.wire.name {
                self.met_namesake(*stamp, header.instance);
                return Ok(Heard::default());
            }
        }
        if let Presence::Leave = presence {
            self.hear_leave(header.instance);
            return Ok(Heard::default());
        }
        if header.name == self.wire.name {
            return Err(Unreadable("a message in this member's own name"));
        }
        let heard = lock(&self.roster).hear(&self.wire, header, presence);
        let heard = heard.map_err(|_| Unreadable("a name that is none"))?;
        let member = heard.member.as_ref().ok_or(Unreadable("a message of one member too many"))?;
        heard.over.iter().for_each(|member| self.gone(member));
        member.release(&self.wire);
        Ok(heard)
    }

    /// A member announces itself to everyone. One that had done so has lost its connection meanwhile, and what was on its
    /// way to it, or from it, may be lost; unless the own connection was lost as well, when that has been seen to.
    fn hear_return(&self, instance: u64) {
        let known = lock(&self.roster).told(instance);
        let now = self.wire.env.monotonic();
        if let Some(member) = known.filter(|member| !member.was_held_until(now, limits::HEARTBEAT)) {
            self.asking.end_left(&[member]);
        }
    }

    /// A member leaves. Replies that it sent before come another way and may come later.
    fn hear_leave(self: &Arc<Self>, instance: u64) {
        let Some(member) = lock(&self.roster).forget(instance) else { return };
        self.wire.tell_left(&member.name);
        let shared = Arc::clone(self);
        self.wire.env.spawn(Box::pin(async move {
            shared.wire.env.sleep(limits::LEAVE_GRACE).await;
            shared.gone(&member);
        }));
    }
}
