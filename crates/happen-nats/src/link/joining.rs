//! How a member joins: its name is free, the others are asked when they joined, and then they are told. Owns that order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::client::{Request, RequestErrorKind};
use async_nats::connection::State;
use bytes::Bytes;
use futures_util::future::join;
use happen_core::link::{ConnectionStatus, Inbound};
use happen_core::{Error, ErrorKind, Result};

use super::Shared;
use super::frame::{Header, Input, kind};
use super::presence::plain;
use super::pulse::Pulse;
use super::wire::closed;
use crate::limits;

impl Shared {
    pub(super) async fn attach(self: Arc<Self>, inbound: Arc<dyn Inbound>) -> Result<()> {
        if self.is_closing() {
            return Err(closed(&self.wire.name));
        }
        if self.attached.load(Ordering::SeqCst) {
            return Err(Error::misuse("a link is attached once"));
        }
        let wire = &self.wire;
        let client = wire.connection.client();
        if client.connection_state() != State::Connected {
            return Err(Error::new(ErrorKind::Io { what: format!("reaching {}", wire.connection.url()) }));
        }
        let claim = Bytes::from(plain(&wire.header(kind::CLAIM, 0), &[]));
        let hello = Bytes::from(plain(&wire.header(kind::HELLO, 0), &[]));
        let holder = self.ask(wire.subjects.bounces_of(&wire.name)?, claim.clone(), limits::ATTACH_WAIT);
        let (holder, others) =
            join(holder, self.ask(wire.subjects.presence(), hello, limits::ATTACH_WAIT)).await;
        if holder?.is_some() {
            return Err(Error::misuse(format!("a space has one member named `{}` at a time", wire.name)));
        }
        if let Some(seen) = others?.as_deref().and_then(read_stamp) {
            self.see_stamp(seen);
        }
        let failed = |error| Error::new(ErrorKind::Io { what: "subscribing".to_owned() }).with_source(error);
        let events = client.subscribe(wire.subjects.own_events()).await.map_err(failed)?;
        let replies = client.subscribe(wire.subjects.own_replies()).await.map_err(failed)?;
        let presence = client.subscribe(wire.subjects.presence()).await.map_err(failed)?;
        // Later than everybody's, so that all agree on the order whatever the clocks show.
        let stamp = wire.env.unix_ms().max(self.stamp.load(Ordering::SeqCst).saturating_add(1));
        self.see_stamp(stamp);
        self.joined.store(stamp, Ordering::SeqCst);
        if !wire.set_inbound(inbound) || self.attached.swap(true, Ordering::SeqCst) {
            return Err(Error::misuse("a link is attached once"));
        }
        let mut status = wire.connection.status();
        wire.set_connected(status.borrow_and_update().is == ConnectionStatus::Connected);
        let mut pulse = Pulse::new(Arc::clone(&self), stamp);
        pulse.announce().await;
        pulse.ask(0).await;
        wire.env.spawn(Box::pin(Arc::clone(&self).read_events(events)));
        wire.env.spawn(Box::pin(Arc::clone(&self).read_replies(replies)));
        wire.env.spawn(Box::pin(pulse.beat(presence, status)));
        // Answered by the own task that was just begun: the server has taken what was subscribed before.
        let heard = self.ask(wire.subjects.bounces_of(&wire.name)?, claim, limits::JOIN_WAIT).await;
        let lost = || Error::new(ErrorKind::Io { what: "joining".to_owned() });
        heard.and_then(|heard| heard.ok_or_else(lost)).map(drop).inspect_err(|_| drop(self.close()))
    }

    /// Asks whoever takes this subject. `None` when nobody does, or answers.
    async fn ask(
        &self,
        subject: async_nats::Subject,
        message: Bytes,
        wait: Duration,
    ) -> Result<Option<Bytes>> {
        let request = Request::new().payload(message).timeout(Some(wait));
        let client = self.wire.connection.client();
        match client.send_request(subject, request).await {
            Ok(answer) => Ok(Some(answer.payload)),
            Err(error) => {
                match error.kind() {
                    RequestErrorKind::NoResponders => Ok(None),
                    // Whoever had it has lost its machine. Without a connection it is known of nobody.
                    RequestErrorKind::TimedOut if client.connection_state() == State::Connected => Ok(None),
                    _ => Err(Error::new(ErrorKind::Io { what: "asking who is there".to_owned() })
                        .with_source(error)),
                }
            }
        }
    }
}

/// The stamp in an answer to who joins.
fn read_stamp(answer: &[u8]) -> Option<u64> {
    let mut input = Input::new(answer);
    let header = Header::read(&mut input).ok()?;
    (header.kind == kind::HELLO).then(|| input.u64().ok()).flatten()
}
