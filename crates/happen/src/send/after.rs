//! Sending at a time: an event that is to come after a while, and taking it back. Owns the builders; how a timer is kept
//! and what is done when it is due is in `durable/timer.rs`.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use happen_core::env::BoxFuture;
use happen_core::event::{Delegation, Purpose, User};
use happen_core::{ErasedEvent, Error, Event, EventId, Payload, Result};
use serde_json::Value as Json;

use super::asking::{Acceptance, Accepted};
use super::target::{Destination, To};
use super::{Extras, Sender, Sent, extras};
use crate::durable::{self, StoredTimer};
use crate::stamp;

/// An event that is to come after a while, which nobody has set yet.
///
/// # Delivery
///
/// `.await` is ready once the timer is stored; set by a step of a durable node, it is part of the step and stored with it.
/// When it is due, one commit takes it away and has the node accept its event: exactly once, whatever crashes. One that
/// became due while no process was there comes when the space is started again, in the order of due times. Its event is
/// caused by the one that was handled where it was set; the deadline of that one does not concern it.
///
/// The wall clock says when it is due: when the clock is set, so are the timers. While the node does not take the event,
/// because its queue is full or it is not there, the timer waits, and `system.due-event-waits` tells why. A node that is
/// not durable, or beyond a link, gets the event after that commit, at most once.
///
/// # Cancel safety
///
/// A step has set the timer when the future is made. Outside of a step, dropping the future leaves open whether it is set.
///
/// # Cost
///
/// A document that is written and deleted; outside of a step the first is a commit of its own. The second is one, in which
/// the acceptance of the event goes along.
#[must_use = "nothing is set before `.await` or `.forget()`"]
pub struct After<'s, T> {
    sender: Sender<'s>,
    to: To<'s>,
    payload: T,
    time: Duration,
    key: Option<String>,
    extras: Option<Box<Extras>>,
}

/// A timer that is taken back, which nobody did yet.
#[must_use = "nothing is taken back before `.await` or `.forget()`"]
pub struct CancellingTimer<'s> {
    sender: Sender<'s>,
    key: String,
}

/// A timer on its way.
enum Setting {
    /// With the commit of a step.
    Staged(EventId),
    Alone(Arc<dyn ErasedEvent>, BoxFuture<'static, Result<()>>),
}

impl<'s, T: Payload> After<'s, T> {
    pub(crate) fn new(sender: Sender<'s>, time: Duration, to: Destination<'s>, payload: T) -> Self {
        let mut after = Self { sender, to: to.0, payload, time, key: None, extras: None };
        if let Sender::Flow(flow) = sender
            && let Some(stage) = flow.inner().stage()
        {
            // Given now: what is awaited side by side is set in whatever order it is polled.
            after.extras().ordinal = Some(stage.ordinal());
        }
        after
    }

    extras!();

    /// Gives the timer a key by which it is taken back, or set anew: a later one with the same key takes its place. Keys
    /// belong to the space, whoever sets them.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets it, for a caller that cannot wait. What keeps it from being set fails the step that sets it; outside of one
    /// the event goes to the dead letters.
    pub fn forget(self) {
        let sender = self.sender;
        let name = self.to.name().to_owned();
        match self.begin() {
            Ok(Setting::Staged(_)) => {}
            Ok(Setting::Alone(event, stored)) => {
                let space = Arc::clone(sender.space());
                let env = Arc::clone(&space.env);
                env.spawn(Box::pin(async move {
                    if let Err(error) = stored.await {
                        space.bury(&*event, &name, &error);
                    }
                }));
            }
            Err(error) => fail(sender, error),
        }
    }

    fn begin(self) -> Result<Setting> {
        let Self { sender, to, payload, time, key, extras } = self;
        let space = sender.space();
        let durable = durable::of(space)?;
        let name = Destination(to).one_name(space)?;
        durable::whereto(space, &name)?;
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let due_unix_ms = space.env.unix_ms().saturating_add(millis);
        let extras = extras.as_deref();
        let staged = sender.with_cause(|cause| {
            let Some((flow, stage)) = cause.and_then(|flow| Some((flow, flow.stage()?))) else {
                return Ok(None);
            };
            let ordinal = extras.and_then(|extras| extras.ordinal).unwrap_or_else(|| stage.ordinal());
            let id = stage.id(ordinal, 0);
            let event = stamp::staged(sender, flow, payload.clone(), Purpose::Send, extras, id)?;
            let event = due_at(event, due_unix_ms);
            let framed = stage.durable_flow().frame_effect(&event)?;
            let timer = StoredTimer::new(&name, &event, framed);
            durable::stage_timer(stage, &durable::timer_key(key.as_deref(), id), timer)?;
            Ok::<_, Error>(Some(id))
        })?;
        if let Some(id) = staged {
            return Ok(Setting::Staged(id));
        }
        let event = due_at(super::stamped(sender, payload, Purpose::Send, extras)?, due_unix_ms);
        let framed = space.framed_arrival(&event)?;
        let timer = StoredTimer::new(&name, &event, framed);
        let key = durable::timer_key(key.as_deref(), event.id());
        let durable = Arc::clone(durable);
        let set = async move { durable::set_timer(&durable, &key, timer).await };
        Ok(Setting::Alone(Arc::new(event), Box::pin(set)))
    }
}

/// The event as it will be when it is due. Whoever set it does not wait for it.
fn due_at<T>(mut event: Event<T>, due_unix_ms: u64) -> Event<T> {
    let (envelope, _) = event.parts_mut();
    envelope.at_unix_ms = due_unix_ms;
    envelope.deadline_unix_ms = 0;
    event
}

/// Has the step fail in which something was asked for that cannot be.
fn fail(sender: Sender<'_>, error: Error) {
    let failed = sender.with_cause(|cause| match cause.and_then(|flow| flow.stage()) {
        Some(stage) => {
            stage.fail(error);
            None
        }
        None => Some(error),
    });
    if let Some(error) = failed {
        tracing::error!(target: "happen", code = error.code(), "a timer was not set or taken back: {error}");
    }
}

impl<T: Payload> IntoFuture for After<'_, T> {
    type Output = Result<Sent>;
    type IntoFuture = Acceptance;

    fn into_future(self) -> Acceptance {
        match self.begin() {
            Ok(Setting::Staged(event)) => Acceptance::now(Ok(Sent { event })),
            Ok(Setting::Alone(event, stored)) => {
                let event = event.envelope().id;
                let sent = async move { stored.await.map(|()| Sent { event }) };
                Acceptance { state: Accepted::Later(Box::pin(sent)) }
            }
            Err(error) => Acceptance::now(Err(error)),
        }
    }
}

impl<'s> CancellingTimer<'s> {
    pub(crate) fn new(sender: Sender<'s>, key: &str) -> Self {
        Self { sender, key: key.to_owned() }
    }

    /// Takes it back, for a caller that cannot wait. What keeps it from being taken back fails the step that wants it.
    pub fn forget(self) {
        let sender = self.sender;
        match self.begin() {
            Cancelled::Staged(Ok(_)) => {}
            Cancelled::Staged(Err(error)) => fail(sender, error),
            Cancelled::Alone(cancelled) => sender.space().env.spawn(Box::pin(async move {
                if let Err(error) = cancelled.await {
                    tracing::error!(target: "happen", code = error.code(), "a timer was not taken back: {error}");
                }
            })),
        }
    }

    fn begin(self) -> Cancelled {
        let Self { sender, key } = self;
        let durable = match durable::of(sender.space()) {
            Ok(durable) => durable,
            Err(error) => return Cancelled::Staged(Err(error)),
        };
        let staged = sender.with_cause(|cause| {
            let stage = cause?.stage()?;
            Some(durable::cancel_timer_staged(stage, &key))
        });
        match staged {
            Some(staged) => Cancelled::Staged(staged),
            None => {
                let (durable, env) = (Arc::clone(durable), Arc::clone(&sender.space().env));
                Cancelled::Alone(Box::pin(async move { durable::cancel_timer(&durable, &env, &key).await }))
            }
        }
    }
}

enum Cancelled {
    Staged(Result<bool>),
    Alone(BoxFuture<'static, Result<bool>>),
}

impl IntoFuture for CancellingTimer<'_> {
    type Output = Result<bool>;
    type IntoFuture = BoxFuture<'static, Result<bool>>;

    fn into_future(self) -> Self::IntoFuture {
        match self.begin() {
            Cancelled::Staged(staged) => Box::pin(std::future::ready(staged)),
            Cancelled::Alone(cancelled) => cancelled,
        }
    }
}

impl<T> fmt::Debug for After<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a timer of {:?} for {:?}", self.time, self.to)
    }
}

impl fmt::Debug for CancellingTimer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cancels the timer `{}`", self.key)
    }
}
