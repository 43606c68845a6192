//! Waiting for what comes back: the answer to an event, or word that it was taken. Owns the futures; does not know how
//! the event left.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use happen_core::env::BoxFuture;
use happen_core::{Answer, Error, ErrorKind, EventId, Payload, Result};
use tokio::sync::oneshot;

use super::{Reply, Sender, Sending, Sent};
use crate::context::Yielding;
use crate::durable::Keyed;
use crate::flow::Outcome;
use crate::local;
use crate::space;

/// The worse of what was told of several nodes: the first that went wrong, for one that takes nothing must not keep the
/// others from it.
pub(super) fn worse(first: Option<Result<Sent>>, next: Option<Result<Sent>>) -> Option<Result<Sent>> {
    match (&first, &next) {
        (None | Some(Ok(_)), Some(Err(_))) | (None, Some(Ok(_))) => next,
        _ => first,
    }
}

#[inline]
pub(super) fn answer<R: Answer>(event: EventId, outcome: Outcome) -> Result<Reply<R>> {
    match outcome.and_then(R::from_reply) {
        Ok(answer) => Ok(Reply { event, answer }),
        Err(error) => Err(error.at_event(event)),
    }
}

pub(super) enum Answered<R> {
    Now(Result<Reply<R>>),
    Later(Later<R>),
}

/// An answer that is on its way.
pub(super) struct Later<R> {
    event: EventId,
    /// Tells which event it is, once that is known.
    keyed: Option<Arc<Keyed>>,
    waiting: Yielding<Waiting>,
    answer: PhantomData<fn() -> R>,
}

impl<R> Later<R> {
    #[cold]
    pub(super) fn new(sender: Sender<'_>, event: EventId, from: Answering, within: Option<Duration>) -> Self {
        let waiting = Yielding::new(Waiting::new(sender, from, within));
        Self { event, keyed: None, waiting, answer: PhantomData }
    }

    /// The same for an event with a key, which may stand for an earlier one.
    #[cold]
    pub(super) fn known_by(self, keyed: Arc<Keyed>) -> Self {
        Self { keyed: Some(keyed), ..self }
    }
}

impl Later<()> {
    /// Says that the event was taken instead of what came of it.
    #[cold]
    pub(super) fn into_acceptance(self) -> Acceptance {
        let sent = async move { self.await.map(|taken| Sent { event: taken.event_id() }) };
        Acceptance { state: Accepted::Later(Box::pin(sent)) }
    }
}

impl<R: Answer> Future for Later<R> {
    type Output = Result<Reply<R>>;

    fn poll(mut self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.waiting).poll(task).map(|outcome| {
            let first = self.keyed.as_ref().and_then(|keyed| keyed.first());
            answer(first.unwrap_or(self.event), outcome)
        })
    }
}

pub(super) struct Waiting {
    from: Answering,
    sleep: Option<(Duration, BoxFuture<'static, ()>)>,
}

/// Where an answer comes from.
pub(super) enum Answering {
    Here(oneshot::Receiver<Outcome>),
    Away(BoxFuture<'static, Outcome>),
}

impl Waiting {
    pub(super) fn new(sender: Sender<'_>, from: Answering, within: Option<Duration>) -> Self {
        Self { from, sleep: within.map(|time| (time, sender.space().env.sleep(time))) }
    }
}

impl Future for Waiting {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<Outcome> {
        let polled = match &mut self.from {
            Answering::Here(receiver) => Pin::new(receiver)
                .poll(task)
                .map(|outcome| outcome.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled)))),
            Answering::Away(away) => away.as_mut().poll(task),
        };
        if polled.is_ready() {
            return polled;
        }
        if let Some((time, sleep)) = &mut self.sleep
            && sleep.as_mut().poll(task).is_ready()
        {
            let after = *time;
            self.sleep = None;
            return Poll::Ready(Err(Error::new(ErrorKind::TimedOut { after })));
        }
        Poll::Pending
    }
}

/// An event for whose answer somebody waits. Sent when it is first polled.
#[must_use = "nothing is sent before `.await`"]
pub struct Asking<'s, T, R> {
    state: State<'s, T, R>,
    answer: PhantomData<fn() -> R>,
}

enum State<'s, T, R> {
    New(Sending<'s, T>),
    Waits(Later<R>),
    Over,
}

impl<'s, T: Payload, R: Answer> Asking<'s, T, R> {
    #[inline]
    pub(super) fn new(sending: Sending<'s, T>) -> Self {
        Self { state: State::New(sending), answer: PhantomData }
    }

    /// As [`Sending::within`].
    pub fn within(mut self, time: Duration) -> Self {
        if let State::New(sending) = &mut self.state {
            sending.extras().within = Some(time);
        }
        self
    }
}

impl<T: Payload, R: Answer> Future for Asking<'_, T, R> {
    type Output = Result<Reply<R>>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        let sending = match &mut self.state {
            State::New(sending) => sending,
            State::Waits(waiting) => return Pin::new(waiting).poll(task),
            State::Over => return Poll::Ready(Err(told_already())),
        };
        if local::should_yield() {
            space::give_way(task);
            return Poll::Pending;
        }
        match sending.start::<R>() {
            Answered::Now(reply) => {
                self.state = State::Over;
                Poll::Ready(reply)
            }
            Answered::Later(mut waiting) => {
                let polled = Pin::new(&mut waiting).poll(task);
                self.state = State::Waits(waiting);
                polled
            }
        }
    }
}

impl<T, R> Unpin for Asking<'_, T, R> {}

/// Says whether a sent event was taken: at once by a node here, after a round trip by one beyond a link.
///
/// # Cancel safety
///
/// The event has left; dropping this does not take it back.
#[must_use = "whether the event was taken is told by `.await`"]
pub struct Acceptance {
    pub(super) state: Accepted,
}

pub(super) enum Accepted {
    /// `None` once it was told.
    Now(Option<Result<Sent>>),
    Later(BoxFuture<'static, Result<Sent>>),
}

impl Acceptance {
    #[inline]
    pub(crate) const fn now(sent: Result<Sent>) -> Self {
        Self { state: Accepted::Now(Some(sent)) }
    }

    #[cold]
    pub(super) fn later(
        sender: Sender<'_>,
        event: EventId,
        taken: BoxFuture<'static, Outcome>,
        within: Option<Duration>,
    ) -> Self {
        let waiting = Waiting::new(sender, Answering::Away(taken), within);
        let waiting = Yielding::new(waiting);
        Self {
            state: Accepted::Later(Box::pin(async move {
                waiting.await.map(|_| Sent { event }).map_err(|error| error.at_event(event))
            })),
        }
    }
}

impl Future for Acceptance {
    type Output = Result<Sent>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<Result<Sent>> {
        match &mut self.state {
            // The event has left already: giving way holds up its sender and nothing else.
            Accepted::Now(_) if local::should_yield() => {
                space::give_way(task);
                Poll::Pending
            }
            Accepted::Now(sent) => Poll::Ready(sent.take().unwrap_or_else(|| Err(told_already()))),
            Accepted::Later(waiting) => waiting.as_mut().poll(task),
        }
    }
}

impl fmt::Debug for Acceptance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            Accepted::Now(sent) => write!(f, "{sent:?}"),
            Accepted::Later(_) => f.write_str("waits for the other side"),
        }
    }
}

#[cold]
fn told_already() -> Error {
    Error::misuse("the answer was given already; a finished future was polled")
}

impl<T, R> fmt::Debug for Asking<'_, T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::New(_) => "not sent",
            State::Waits(_) => "waits for the answer",
            State::Over => "answered",
        })
    }
}
