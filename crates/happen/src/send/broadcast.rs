//! Broadcasting: to everyone who listens, here and behind the link.

use std::fmt;
use std::sync::Arc;

use happen_core::event::{Delegation, Purpose, User};
use happen_core::{ErasedEvent, Event, EventId, NodeKey, Payload, Result};
use serde_json::Value as Json;

use super::{Extras, Sender, extras};
use crate::durable::Spread;
use crate::route::Takers;
use crate::stamp::stamped;
use crate::stream::Outlet;
use crate::web;

/// An event on its way to everyone who listens, not sent yet.
#[must_use = "nothing is sent before `.publish()` or `.stream()`"]
pub struct Broadcasting<'s, T> {
    sender: Sender<'s>,
    payload: T,
    extras: Option<Box<Extras>>,
}

impl<'s, T: Payload> Broadcasting<'s, T> {
    #[inline]
    pub(crate) fn new(sender: Sender<'s>, payload: T) -> Self {
        Self { sender, payload, extras: None }
    }

    extras!();

    /// Sends the event to every node whose patterns match, the sender included.
    ///
    /// # Errors
    ///
    /// When the space does not run, a limit on the correlation is passed, or a hook objects. What one listener does
    /// with the event is not the broadcaster's concern: its failure becomes an error event and a dead letter.
    pub fn publish(self) -> Result<EventId> {
        self.publish_from(None, Reach::Everywhere)
    }

    /// Publishes an event that concerns this process alone.
    pub(crate) fn publish_here(self) -> Result<EventId> {
        self.publish_from(None, Reach::Here)
    }

    /// Sends the event together with a stream, whose items every listener reads at its own pace with
    /// [`Context::items`](crate::Context::items). The items stay in this process; a listener beyond a link gets the event
    /// without them.
    ///
    /// # Errors
    ///
    /// As [`Broadcasting::publish`].
    pub fn stream<I: Payload>(self) -> Result<Outlet<I>> {
        let (to, _) = tokio::sync::broadcast::channel(crate::limits::STREAM_BROADCAST_ITEMS_MAX);
        let event = self.publish_from(Some(&to), Reach::Everywhere)?;
        Ok(Outlet::new(to, event))
    }

    #[inline]
    fn publish_from(
        self,
        source: Option<&tokio::sync::broadcast::Sender<happen_core::Value>>,
        reach: Reach,
    ) -> Result<EventId> {
        let Self { sender, payload, extras } = self;
        if reach == Reach::Everywhere && super::staged::is_step(sender) {
            return super::staged::publish(sender, payload, source, extras.as_deref());
        }
        let space = sender.space();
        space.check_running()?;
        let event = stamped(sender, payload, Purpose::Broadcast, extras.as_deref())?;
        Ok(spread(sender, &event, source, reach))
    }

    pub(crate) fn into_parts(self) -> (Sender<'s>, T, Option<Box<Extras>>) {
        (self.sender, self.payload, self.extras)
    }
}

/// Brings a stamped event to everyone who listens.
#[inline]
pub(crate) fn spread<T: Payload>(
    sender: Sender<'_>,
    event: &Event<T>,
    source: Option<&tokio::sync::broadcast::Sender<happen_core::Value>>,
    reach: Reach,
) -> EventId {
    let space = sender.space();
    let id = event.id();
    let mark = space.remember_sent(event.envelope(), NodeKey(0));
    space.settle(mark, web::PUBLISHED);
    let spread = if reach == Reach::Everywhere { Spread::Log } else { Spread::Here };
    if reach == Reach::Everywhere && space.link.get().is_some() {
        spread_away(sender, event, source);
    } else {
        space.publish_to_listeners(event, source, spread, &Takers::All);
    }
    id
}

/// The same in a space with a link.
#[cold]
fn spread_away(
    sender: Sender<'_>,
    event: &dyn ErasedEvent,
    source: Option<&tokio::sync::broadcast::Sender<happen_core::Value>>,
) {
    let space = sender.space();
    // Before the listeners here, whose handlers may send what it causes.
    let takers = space.publish_away(sender, event, space.is_heard_elsewhere(event.envelope()));
    space.publish_to_listeners(event, source, Spread::Log, &takers);
}

/// How far a broadcast goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Everywhere,
    Here,
}

impl<T: fmt::Debug> fmt::Debug for Broadcasting<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to all", self.payload)
    }
}
