//! How a member leaves: of its own will, because its connection is gone for good, or because another one has its name. Owns
//! the order of the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use happen_core::env::BoxFuture;
use happen_core::link::ConnectionStatus;
use happen_core::{Error, ErrorKind};

use super::Shared;
use super::frame::{Frame, kind};
use super::member::{Lane, Room};
use super::presence::plain;
use super::wire::lock;
use crate::limits;

impl Shared {
    /// Begins to leave, if nobody has; the future ends when that is done.
    pub(super) fn close(self: &Arc<Self>) -> BoxFuture<'static, ()> {
        if !self.closing.send_replace(true) {
            self.asking.end_all();
            if self.attached.load(Ordering::SeqCst) {
                let shared = Arc::clone(self);
                self.wire.env.spawn(Box::pin(async move {
                    let leaving = Box::pin(shared.leave());
                    // Whatever has not left by then does not: the others see that nobody is here.
                    if let Either::Right(_) = select(leaving, shared.wire.env.sleep(limits::CLOSE_WAIT)).await
                    {
                        tracing::warn!(target: "happen", "`{}` did not leave in time", shared.wire.name);
                    }
                    shared.left.send_replace(true);
                }));
            } else {
                self.left.send_replace(true);
            }
        }
        let mut left = self.left.subscribe();
        // An error would say that the link is gone, and it has left then.
        Box::pin(async move { drop(left.wait_for(|left| *left).await) })
    }

    async fn leave(&self) {
        let wire = &self.wire;
        if !wire.is_connected() {
            return;
        }
        self.answering.all_ended().await;
        let members = lock(&self.roster).all();
        for member in &members {
            // Behind the last replies, so that nobody takes them for lost.
            let _ = member.send(wire, Lane::Replies, Frame::Leave, Room::Made);
        }
        while !members.iter().all(|member| member.is_empty() || member.is_held()) {
            wire.env.sleep(LOOK_EVERY).await;
        }
        let leave = Bytes::from(plain(&wire.header(kind::LEAVE, 0), &[]));
        let told = wire.publish(&wire.subjects.presence().into(), leave).await;
        if let Err(error) = told {
            tracing::warn!(target: "happen", code = error.code(), "`{}` left without a word: {error}", wire.name);
        }
        if let Err(error) = wire.connection.client().flush().await {
            tracing::warn!(target: "happen", "`{}` left without a word: {error}", wire.name);
        }
    }

    /// The connection is gone for good.
    pub(super) fn cut_off(self: &Arc<Self>) {
        self.wire.set_connected(false);
        let reason = self.wire.connection.refusal();
        self.wire.tell_status(ConnectionStatus::Closed, reason.as_deref());
        drop(self.close());
    }

    /// Another member has the own name: of two that claimed it at the same moment, or because this one was taken for
    /// gone. The later one stays, for it was let in when nobody answered.
    pub(super) fn met_namesake(self: &Arc<Self>, stamp: u64, instance: u64) {
        let own = (self.joined.load(Ordering::SeqCst), self.wire.instance);
        if (stamp, instance) <= own || self.is_closing() {
            return;
        }
        let what =
            format!("staying in the space, in which another member took the name `{}`,", self.wire.name);
        self.wire.lost(&Error::new(ErrorKind::Io { what }));
        self.cut_off();
    }
}

/// How often it is looked whether what waits has left. Nothing is slower for it but the end.
const LOOK_EVERY: Duration = Duration::from_millis(1);
