//! Sending: from a payload and a destination to what the sender asked for. Owns the builders that nothing leaves
//! before; does not know how a node handles what it gets.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use happen_core::env::BoxFuture;
use happen_core::event::{Delegation, Purpose, User};
use happen_core::{
    Answer, Batch, Envelope, ErasedEvent, Error, ErrorKind, Event, EventId, NodeKey, Outgoing, Parcel,
    Payload, Result,
};
use serde_json::Value as Json;
use tokio::sync::oneshot;

use crate::context::Yielding;
use crate::dispatch::{self, Delivered, Want};
use crate::flow::{FlowInner, Held, Outcome};
use crate::link::Away;
use crate::local;
use crate::node::{Node, NodeInner};
use crate::space::SpaceInner;
use crate::stamp::{Cause, bare, stamp};
use crate::stream::{Items, Outlet, Sink};
use crate::web;

/// Who sends.
#[derive(Clone, Copy)]
pub(crate) enum Sender<'s> {
    /// Somebody outside any node.
    Space(&'s Arc<SpaceInner>),
    /// A node, through its handle.
    Node(&'s Arc<NodeInner>),
    /// A flow, through its context.
    Flow(&'s Arc<FlowInner>),
}

/// Where an event goes: a node, the id of one, or several of either.
#[diagnostic::on_unimplemented(
    message = "an event cannot be sent to `{Self}`",
    label = "not a destination",
    note = "a destination is `&Node`, the id of a node as text, or an array, slice or vector of these"
)]
pub trait Target<'t> {
    #[doc(hidden)]
    fn into_destination(self) -> Destination<'t>;
}

/// Where an event goes; made by [`Target`].
#[derive(Debug)]
#[doc(hidden)]
#[expect(unnameable_types, reason = "what a target becomes concerns only the runtime")]
pub struct Destination<'t>(To<'t>);

#[derive(Debug, Clone)]
enum To<'t> {
    Node(&'t Node),
    Name(Cow<'t, str>),
    Many(Vec<To<'t>>),
}

/// What a sender adds to an event; absent for most.
#[derive(Default)]
pub(crate) struct Extras {
    pub(crate) correlation: Option<Arc<str>>,
    pub(crate) source: Option<(Arc<str>, Arc<str>)>,
    pub(crate) user: Option<User>,
    pub(crate) trace: Option<happen_core::event::Trace>,
    pub(crate) on_behalf_of: Option<Delegation>,
    pub(crate) metadata: BTreeMap<String, Json>,
    pub(crate) within: Option<Duration>,
}

/// An event on its way to nodes that was not sent yet. Awaiting it sends and says whether it was taken; `reply` waits
/// for the answer.
///
/// # Delivery
///
/// `.await` is ready once the event is handled, or waits in the queue of its node. What the handler returns, or its
/// failure, is not told here: ask for it with [`Sending::reply`]. A node beyond a link has said by then that it took
/// the event, which is one round trip; dropping the future meanwhile does not take the event back.
#[must_use = "nothing is sent before `.await`, `.reply()`, `.replies()`, `.stream()` or `.forget()`"]
pub struct Sending<'s, T> {
    sender: Sender<'s>,
    to: To<'s>,
    parcel: Parcel<T>,
    extras: Option<Box<Extras>>,
}

/// Says that an event was taken, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    event: EventId,
}

impl Sent {
    /// The event's id; of a batch, that of its first event.
    #[must_use]
    pub fn event_id(self) -> EventId {
        self.event
    }
}

/// An answer and the id of the event that asked. Reads like the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<R> {
    event: EventId,
    answer: R,
}

impl<R> Reply<R> {
    /// The id of the event that asked; of a batch, that of its first event.
    #[must_use]
    pub fn event_id(&self) -> EventId {
        self.event
    }

    /// The answer.
    #[must_use]
    pub fn into_inner(self) -> R {
        self.answer
    }
}

impl<R> Deref for Reply<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.answer
    }
}

/// The answers of several nodes, by node id. One that failed does not hide the others.
pub type Replies<R> = BTreeMap<String, Result<Reply<R>>>;

macro_rules! extras {
    () => {
        /// Gives the root event of a new correlation a name of the sender's choice, such as a business id. Inside a
        /// handler the correlation is inherited and this is refused when the event is sent.
        #[doc(alias = "correlationId")]
        pub fn correlation(mut self, name: impl Into<Arc<str>>) -> Self {
            self.extras().correlation = Some(name.into());
            self
        }

        /// Says on a root event whose it is: a source of some kind, such as `("user", "admin")`. Inherited by all it
        /// causes; inside a handler it is refused when the event is sent, use [`Self::on_behalf_of`].
        #[doc(alias = "sourceId")]
        #[doc(alias = "sourceType")]
        pub fn from_source(
            mut self,
            source_type: impl Into<Arc<str>>,
            source_id: impl Into<Arc<str>>,
        ) -> Self {
            self.extras().source = Some((source_type.into(), source_id.into()));
            self
        }

        /// Acts for another source: changes the source that the event and its effects tell, and records who did so.
        pub fn on_behalf_of(mut self, source_type: &str, source_id: &str) -> Self {
            let extras = self.extras();
            extras.source = Some((source_type.into(), source_id.into()));
            let on_behalf_of = format!("{source_type}:{source_id}");
            extras.on_behalf_of = Some(Delegation { node: String::new(), on_behalf_of });
            self
        }

        /// Says on whose account the event happens. Inherited.
        pub fn user(mut self, user: User) -> Self {
            self.extras().user = Some(user);
            self
        }

        /// Gives the event a W3C trace context. Inherited.
        pub fn trace_context(mut self, trace: happen_core::event::Trace) -> Self {
            self.extras().trace = Some(trace);
            self
        }

        /// Adds free metadata to this event alone.
        pub fn metadata(mut self, name: impl Into<String>, value: impl Into<Json>) -> Self {
            self.extras().metadata.insert(name.into(), value.into());
            self
        }

        fn extras(&mut self) -> &mut Extras {
            self.extras.get_or_insert_default()
        }
    };
}

impl<'s, T: Payload> Sending<'s, T> {
    #[inline]
    pub(crate) fn new(sender: Sender<'s>, to: Destination<'s>, event: impl Outgoing<Payload = T>) -> Self {
        Self { sender, to: to.0, parcel: event.into_parcel(), extras: None }
    }

    extras!();

    /// Gives the priority by which a waiting event starts, in nodes whose queue goes by priority. Default 0; the
    /// highest first.
    pub fn priority(self, priority: i64) -> Self {
        self.metadata("priority", priority)
    }

    /// Limits how long the sender waits. The deadline travels with the event: nobody starts on it when it has passed,
    /// and what it causes inherits it.
    pub fn within(mut self, time: Duration) -> Self {
        self.extras().within = Some(time);
        self
    }

    /// Sends and waits for the answer.
    ///
    /// The type to read the answer as is a payload, `()`, or a `Result` of two payloads.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future asks the handler's flow to stop at its next wait.
    #[inline]
    #[doc(alias = "return")]
    pub fn reply<R: Answer>(self) -> Asking<'s, T, R> {
        Asking { state: State::New(self), answer: PhantomData }
    }

    /// Sends and gives the answer at once, for a caller that cannot wait.
    ///
    /// Plain handlers answer so, and asynchronous ones that are ready without waiting.
    ///
    /// # Errors
    ///
    /// As [`Sending::reply`], and [`ErrorKind::Cancelled`] when the answer is not there yet: the flow is then asked to
    /// stop at its next wait, as when a future of `reply` is dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Space};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = Space::memory();
    /// let adder = space.node("adder");
    /// adder.on("u64", |n: &Event<u64>, _: &Context| **n + 1);
    /// space.start().await?;
    /// assert_eq!(*space.send(&adder, 41u64).reply_now::<u64>()?, 42);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "processSync")]
    pub fn reply_now<R: Answer>(self) -> Result<Reply<R>> {
        let event = match self.begin(Purpose::Ask, None, Told::Back)? {
            (event, Delivered::Now(outcome)) => return answer(event, outcome),
            (event, Delivered::Later(None)) => return answer(event, Ok(None)),
            (event, Delivered::Later(Some(mut receiver))) => match receiver.try_recv() {
                Ok(outcome) => return answer(event, outcome),
                Err(_) => event,
            },
            // Beyond a link no answer is there at once.
            (event, Delivered::Away(_)) => event,
        };
        let cannot_wait = "the answer is not there at once and this caller cannot wait; use `.reply().await`";
        Err(Error::new(ErrorKind::Cancelled).context(cannot_wait).at_event(event))
    }

    /// Sends, and hands the answer to a function when it comes, beside the caller.
    pub fn reply_with<R: Answer>(self, then: impl FnOnce(Result<Reply<R>>) + Send + 'static)
    where
        T: 'static,
    {
        let env = Arc::clone(&self.sender.space().env);
        let flow = match self.sender {
            Sender::Flow(flow) => Some(crate::context::Context::from_shared(Arc::clone(flow))),
            Sender::Space(_) | Sender::Node(_) => local::current_context(self.sender.space()),
        };
        match self.start::<R>() {
            Begun::Now(result) => then(result),
            Begun::Later(waiting) => env.spawn(Box::pin(async move {
                let result = waiting.await;
                match flow {
                    // What the function sends has the same cause whether the answer was there at once or not.
                    Some(flow) => local::enter(&flow, || then(result)),
                    None => then(result),
                }
            })),
        }
    }

    /// Sends to several nodes and waits for every answer. One node is several of length one.
    pub async fn replies<R: Answer>(self) -> Replies<R> {
        let Self { sender, to, parcel, extras } = self;
        let mut names = Vec::new();
        to.names(&mut names);
        // All are sent before any is waited for, so the nodes work side by side.
        let begun: Vec<_> = names
            .into_iter()
            .map(|to| {
                let name = to.name().to_owned();
                let extras = extras.as_deref().map(|extras| Box::new(extras.copy()));
                let one = Sending { sender, to, parcel: parcel.clone(), extras };
                (name, one.start::<R>())
            })
            .collect();
        let mut replies = Replies::new();
        for (name, begun) in begun {
            let reply = match begun {
                Begun::Now(reply) => reply,
                Begun::Later(waiting) => waiting.await,
            };
            replies.insert(name, reply);
        }
        replies
    }

    /// Sends and reads the items the handler emits. An error that comes before the first item is the first item.
    #[doc(alias = "generator")]
    pub fn stream<I: Payload>(self) -> Items<I> {
        let (sink, items) = Sink::new();
        match self.begin(Purpose::Stream, Some(sink), Told::Back) {
            Err(error) => Items::failed(error),
            Ok((_, Delivered::Away(Some(away)))) => Items::from_away(away),
            Ok((event, Delivered::Away(None))) => Items::ended(items, Ok(None), event),
            Ok((event, Delivered::Now(outcome))) => Items::ended(items, outcome, event),
            Ok((event, Delivered::Later(end))) => Items::from_handler(items, end, event),
        }
    }

    /// Sends and does not wait for anything. What cannot be delivered goes to the dead letters.
    pub fn forget(self) {
        if !matches!(self.to, To::Many(_)) {
            return self.forget_one();
        }
        let Self { sender, to, parcel, extras } = self;
        let mut all = Vec::new();
        to.names(&mut all);
        for to in all {
            let extras = extras.as_deref().map(|extras| Box::new(extras.copy()));
            Sending { sender, to, parcel: parcel.clone(), extras }.forget_one();
        }
    }

    fn forget_one(self) {
        let Self { sender, to, parcel, extras } = self;
        let (space, extras) = (sender.space(), extras.as_deref());
        let copy = parcel.clone();
        let node = match resolve(space, &to) {
            Err(error) if away(space, &error) => {
                let left = send_away(sender, to.name(), parcel, Purpose::Send, extras, Told::Nothing);
                return left.map_or_else(|error| lost(sender, to.name(), &copy, &error), drop);
            }
            node => node,
        };
        let sent_to = node.as_ref().map(|node| node.key).unwrap_or_default();
        let want = Want::new(false, None, None, sender.held());
        let result = stamped(sender, parcel, Purpose::Send, extras, sent_to, |event| {
            let id = event.envelope().id;
            let taken = match node {
                Ok(node) => bring(space, &node, event, id, want).map(drop),
                Err(error) => {
                    space
                        .settle(space.remember_sent(event.envelope(), NodeKey(0)), web::failed(error.code()));
                    Err(error.at_event(id))
                }
            };
            if let Err(error) = taken {
                space.bury(event, to.name(), &error);
            }
        });
        if let Err(error) = result {
            lost(sender, to.name(), &copy, &error);
        }
    }

    /// Sends a batch in parts of at most `len` events, one part after the reply to the one before: work in bulk whose
    /// progress can be told.
    ///
    /// # Examples
    ///
    /// ```
    /// # use happen::{Batch, Context, Space};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = Space::memory();
    /// let adder = space.node("adder");
    /// adder.on("u64", |batch: &Batch<u64>, _: &Context| batch.payloads().sum::<u64>());
    /// space.start().await?;
    /// let numbers: Vec<u64> = (1..=250).collect();
    /// let mut chunks = space.send(&adder, numbers).chunks::<u64>(100);
    /// while let Some(chunk) = chunks.next().await {
    ///     let sum = chunk.reply?;
    ///     assert!(*sum > 0);
    ///     // 40 %, 80 %, 100 %
    ///     assert!(chunk.events.end % 50 == 0);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn chunks<R: Answer>(self, len: usize) -> crate::chunks::Chunks<'s, T, R> {
        let Self { sender, to, parcel, extras } = self;
        let payloads = match parcel {
            Parcel::Batch(payloads) => payloads,
            // Whatever is no batch goes as it is.
            parcel => {
                let one = Sending { sender, to, parcel, extras };
                return crate::chunks::Chunks::new([(0..1, one)].into(), 1);
            }
        };
        let (all, len) = (payloads.len(), len.max(1));
        let mut chunks = std::collections::VecDeque::with_capacity(all.div_ceil(len));
        let mut payloads = payloads.into_iter();
        for start in (0..all).step_by(len) {
            let parcel = Parcel::Batch(payloads.by_ref().take(len).collect());
            let extras = extras.as_deref().map(|extras| Box::new(extras.copy()));
            chunks.push_back((
                start..(start + len).min(all),
                Sending { sender, to: to.clone(), parcel, extras },
            ));
        }
        crate::chunks::Chunks::new(chunks, all)
    }

    #[inline]
    fn send_now(self) -> Acceptance {
        if let To::Many(_) = self.to {
            return self.send_to_many();
        }
        let within = self.extras.as_ref().and_then(|extras| extras.within);
        let sender = self.sender;
        match self.begin(Purpose::Send, None, Told::Back) {
            Err(error) => Acceptance::now(Err(error)),
            Ok((event, Delivered::Away(Some(away)))) => Acceptance::later(sender, event, *away, within),
            Ok((event, _)) => Acceptance::now(Ok(Sent { event })),
        }
    }

    #[cold]
    fn send_to_many(self) -> Acceptance {
        let Self { sender, to, parcel, extras } = self;
        let mut all = Vec::new();
        to.names(&mut all);
        let mut first: Option<Result<Sent>> = None;
        let mut awaited = Vec::new();
        for to in all {
            let extras = extras.as_deref().map(|extras| Box::new(extras.copy()));
            let one = Sending { sender, to, parcel: parcel.clone(), extras };
            match one.send_now().state {
                Accepted::Now(sent) => first = worse(first, sent),
                Accepted::Later(waiting) => awaited.push(waiting),
            }
        }
        if awaited.is_empty() {
            return Acceptance::now(first.unwrap_or_else(|| Err(no_destination())));
        }
        Acceptance {
            state: Accepted::Later(Box::pin(async move {
                for waiting in awaited {
                    first = worse(first, Some(waiting.await));
                }
                first.unwrap_or_else(|| Err(no_destination()))
            })),
        }
    }

    #[inline]
    fn start<R: Answer>(self) -> Begun<R> {
        let within = self.extras.as_ref().and_then(|extras| extras.within);
        let sender = self.sender;
        match self.begin(Purpose::Ask, None, Told::Back) {
            Err(error) => Begun::Now(Err(error)),
            Ok((event, Delivered::Now(outcome))) => Begun::Now(answer(event, outcome)),
            Ok((event, Delivered::Later(Some(receiver)))) => {
                Begun::later(sender, event, Answering::Here(receiver), within)
            }
            Ok((event, Delivered::Away(Some(away)))) => {
                Begun::later(sender, event, Answering::Away(Box::pin(away.outcome())), within)
            }
            Ok((event, Delivered::Later(None) | Delivered::Away(None))) => {
                Begun::Now(answer(event, Ok(None)))
            }
        }
    }

    /// Stamps the event and brings it to its one destination.
    #[inline]
    fn begin(self, purpose: Purpose, sink: Option<Sink>, told: Told) -> Result<(EventId, Delivered)> {
        let Self { sender, to, parcel, extras } = self;
        let space = sender.space();
        let held;
        let node = match &to {
            To::Node(node) if node.inner().space.id == space.id => node.inner(),
            other => match resolve(space, other) {
                Ok(found) => {
                    held = found;
                    &held
                }
                Err(error) if away(space, &error) => {
                    return send_away(sender, to.name(), parcel, purpose, extras.as_deref(), told);
                }
                Err(error) => return Err(nowhere(sender, parcel, purpose, extras.as_deref(), error)),
            },
        };
        let want = Want::new(purpose != Purpose::Send, sink, None, sender.held());
        stamped(sender, parcel, purpose, extras.as_deref(), node.key, |event| {
            bring(space, node, event, event.envelope().id, want)
        })?
    }
}

/// Makes the event, or the batch of events, and hands it on.
#[inline]
fn stamped<T: Payload, R>(
    sender: Sender<'_>,
    parcel: Parcel<T>,
    purpose: Purpose,
    extras: Option<&Extras>,
    to: NodeKey,
    then: impl FnOnce(&dyn ErasedEvent) -> R,
) -> Result<R> {
    match parcel {
        Parcel::One(payload) => {
            let envelope = stamp(sender, &payload, purpose, extras)?;
            Ok(then(&Event::from_parts(envelope, payload)))
        }
        Parcel::Batch(payloads) => {
            let mut events: Vec<Event<T>> = Vec::with_capacity(payloads.len());
            for payload in payloads {
                let event_type = payload.event_type();
                if events.first().is_some_and(|first| first.envelope().event_type != event_type) {
                    return Err(mixed_batch());
                }
                events.push(Event::from_parts(stamp(sender, &payload, purpose, extras)?, payload));
            }
            let batch = Batch::new(events).ok_or_else(|| Error::misuse("a batch without events was sent"))?;
            for later in &batch[1..] {
                sender.space().remember_sent(later.envelope(), to);
            }
            Ok(then(&batch))
        }
        _ => Err(Error::misuse("a parcel of a kind this runtime does not know")),
    }
}

/// The one node of this space that is meant.
fn resolve(space: &Arc<SpaceInner>, to: &To<'_>) -> Result<Arc<NodeInner>> {
    match to {
        To::Node(node) if node.inner().space.id == space.id => Ok(Arc::clone(node.inner())),
        To::Node(node) => Err(Error::misuse(format!("node `{}` belongs to another space", node.id()))),
        To::Name(name) => {
            let missing = || Error::new(ErrorKind::NoSuchNode { node: name.clone().into_owned() });
            space.find(name).ok_or_else(missing)
        }
        To::Many(_) => Err(one_destination()),
    }
}

/// Gives an event that has nowhere to go its id all the same, so that the error and the trace can tell which it was.
#[cold]
fn nowhere<T: Payload>(
    sender: Sender<'_>,
    parcel: Parcel<T>,
    purpose: Purpose,
    extras: Option<&Extras>,
    error: Error,
) -> Error {
    let space = sender.space();
    let id = stamped(sender, parcel, purpose, extras, NodeKey(0), |event| {
        space.settle(space.remember_sent(event.envelope(), NodeKey(0)), web::failed(error.code()));
        event.envelope().id
    });
    match id {
        Ok(id) => error.at_event(id),
        Err(_) => error,
    }
}

/// Keeps an event that could not even be stamped, for nobody waits to be told.
#[cold]
fn lost<T: Payload>(sender: Sender<'_>, name: &str, parcel: &Parcel<T>, error: &Error) {
    let payloads = match parcel {
        Parcel::One(payload) => std::slice::from_ref(payload),
        Parcel::Batch(payloads) => payloads,
        _ => &[],
    };
    for payload in payloads {
        let space = sender.space();
        let envelope = bare(sender, payload.event_type(), Purpose::Send);
        let to = space.find(name).map_or(NodeKey(0), |node| node.key);
        space.settle(space.remember_sent(&envelope, to), web::failed(error.code()));
        sender.space().bury(&Event::from_parts(envelope, payload.clone()), name, error);
    }
}

/// What a sender is told of an event that leaves by the link.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// What comes back: that it was taken, or its outcome.
    Back,
    /// Nothing.
    Nothing,
}

/// The worse of what was told of several nodes: the first that went wrong, for one that takes nothing must not keep the
/// others from it.
fn worse(first: Option<Result<Sent>>, next: Option<Result<Sent>>) -> Option<Result<Sent>> {
    match (&first, &next) {
        (None | Some(Ok(_)), Some(Err(_))) | (None, Some(Ok(_))) => next,
        _ => first,
    }
}

/// Whether a node that is not here may be behind the link.
fn away(space: &SpaceInner, error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NoSuchNode { .. }) && space.link.get().is_some()
}

/// Stamps an event for a node that is not here and hands it to the link, if there is one.
#[cold]
fn send_away<T: Payload>(
    sender: Sender<'_>,
    to: &str,
    parcel: Parcel<T>,
    purpose: Purpose,
    extras: Option<&Extras>,
    told: Told,
) -> Result<(EventId, Delivered)> {
    let space = sender.space();
    space.check_running()?;
    let stamped = |payload: T| {
        let envelope = stamp(sender, &payload, purpose, extras)?;
        Ok(Event::from_parts(envelope, payload))
    };
    let (event, away) = match parcel {
        Parcel::One(payload) => {
            let event = stamped(payload)?;
            (event.id(), space.send_away(sender, to, &event, told == Told::Back)?)
        }
        Parcel::Batch(payloads) => {
            let events = payloads.into_iter().map(stamped).collect::<Result<Vec<_>>>()?;
            let batch = Batch::new(events).ok_or_else(empty_batch)?;
            (batch[0].id(), space.send_away(sender, to, &batch, told == Told::Back)?)
        }
        _ => return Err(Error::misuse("a parcel of a kind this runtime does not know")),
    };
    Ok((event, Delivered::Away(away.map(Box::new))))
}

/// Remembers the event, brings it to its node, and remembers what became of it.
#[inline]
fn bring(
    space: &Arc<SpaceInner>,
    node: &Arc<NodeInner>,
    event: &dyn ErasedEvent,
    id: EventId,
    want: Want,
) -> Result<(EventId, Delivered)> {
    let mark = space.remember_sent(event.envelope(), node.key);
    let delivered = dispatch::deliver(node, event, want);
    let what = match &delivered {
        Ok(Delivered::Now(outcome)) => dispatch::what(outcome),
        Ok(Delivered::Later(_) | Delivered::Away(_)) => web::WAITING,
        Err(error) => web::failed(error.code()),
    };
    space.settle(mark, what);
    for later in (1..event.len()).filter_map(|index| event.single(index)) {
        space.remember(later.envelope().id, node.key, what);
    }
    match delivered {
        Ok(delivered) => Ok((id, delivered)),
        Err(error) => Err(error.at_event(id).at_node(&node.name)),
    }
}

#[inline]
fn answer<R: Answer>(event: EventId, outcome: Outcome) -> Result<Reply<R>> {
    match outcome.and_then(R::from_reply) {
        Ok(answer) => Ok(Reply { event, answer }),
        Err(error) => Err(error.at_event(event)),
    }
}

enum Begun<R> {
    Now(Result<Reply<R>>),
    Later(BoxFuture<'static, Result<Reply<R>>>),
}

impl<R: Answer> Begun<R> {
    #[cold]
    fn later(sender: Sender<'_>, event: EventId, from: Answering, within: Option<Duration>) -> Self {
        let waiting = Waiting::new(sender, from, within);
        Self::Later(Box::pin(Yielding::new(async move { answer(event, waiting.await) })))
    }
}

struct Waiting {
    from: Answering,
    sleep: Option<(Duration, BoxFuture<'static, ()>)>,
}

/// Where an answer comes from.
enum Answering {
    Here(oneshot::Receiver<Outcome>),
    Away(BoxFuture<'static, Outcome>),
}

impl Waiting {
    fn new(sender: Sender<'_>, from: Answering, within: Option<Duration>) -> Self {
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
    Waits(BoxFuture<'static, Result<Reply<R>>>),
    Over,
}

impl<T: Payload, R: Answer> Asking<'_, T, R> {
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
        if let State::Waits(waiting) = &mut self.state {
            return waiting.as_mut().poll(task);
        }
        if local::should_yield() {
            task.waker().wake_by_ref();
            return Poll::Pending;
        }
        let State::New(sending) = std::mem::replace(&mut self.state, State::Over) else {
            return Poll::Ready(Err(told_already()));
        };
        match sending.start::<R>() {
            Begun::Now(reply) => Poll::Ready(reply),
            Begun::Later(mut waiting) => {
                let polled = waiting.as_mut().poll(task);
                self.state = State::Waits(waiting);
                polled
            }
        }
    }
}

impl<T, R> Unpin for Asking<'_, T, R> {}

impl<'s, T: Payload> IntoFuture for Sending<'s, T> {
    type Output = Result<Sent>;
    type IntoFuture = Acceptance;

    #[inline]
    fn into_future(self) -> Acceptance {
        self.send_now()
    }
}

/// Says whether a sent event was taken: at once by a node here, after a round trip by one beyond a link.
///
/// # Cancel safety
///
/// The event has left; dropping this does not take it back.
#[must_use = "whether the event was taken is told by `.await`"]
pub struct Acceptance {
    state: Accepted,
}

enum Accepted {
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
    fn later(sender: Sender<'_>, event: EventId, away: Away, within: Option<Duration>) -> Self {
        let waiting = Waiting::new(sender, Answering::Away(Box::pin(away.outcome())), within);
        let taken =
            async move { waiting.await.map(|_| Sent { event }).map_err(|error| error.at_event(event)) };
        Self { state: Accepted::Later(Box::pin(Yielding::new(taken))) }
    }
}

impl Future for Acceptance {
    type Output = Result<Sent>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<Result<Sent>> {
        match &mut self.state {
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
        let space = sender.space();
        space.check_running()?;
        let envelope = stamp(sender, &payload, Purpose::Broadcast, extras.as_deref())?;
        Ok(spread(sender, envelope, payload, source, reach))
    }

    pub(crate) fn into_parts(self) -> (Sender<'s>, T, Option<Box<Extras>>) {
        (self.sender, self.payload, self.extras)
    }
}

/// Brings a stamped event to everyone who listens.
#[inline]
pub(crate) fn spread<T: Payload>(
    sender: Sender<'_>,
    envelope: Envelope,
    payload: T,
    source: Option<&tokio::sync::broadcast::Sender<happen_core::Value>>,
    reach: Reach,
) -> EventId {
    let space = sender.space();
    let id = envelope.id;
    let listeners = space.listeners(&envelope.event_type);
    let mark = space.remember_sent(&envelope, NodeKey(0));
    space.settle(mark, web::PUBLISHED);
    let leaves = space.link.get().is_some() && reach == Reach::Everywhere;
    if leaves || !listeners.is_empty() {
        let event = Event::from_parts(envelope, payload);
        if leaves {
            // Before the listeners here, whose handlers may send what it causes.
            space.publish_away(sender, &event);
        }
        dispatch::publish(&listeners, &event, id, source);
    }
    id
}

/// How far a broadcast goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Everywhere,
    Here,
}

impl<'s> Sender<'s> {
    #[inline]
    pub(crate) fn space(self) -> &'s Arc<SpaceInner> {
        match self {
            Self::Space(space) => space,
            Self::Node(node) => &node.space,
            Self::Flow(flow) => &flow.node.space,
        }
    }

    #[inline]
    pub(crate) fn key(self) -> NodeKey {
        match self {
            Self::Space(_) => NodeKey(0),
            Self::Node(node) => node.key,
            Self::Flow(flow) => flow.node.key,
        }
    }

    /// Runs `work` with the flow that causes what is sent: the context's own, or the one being polled on this thread.
    #[inline]
    pub(crate) fn with_cause<R>(self, work: impl FnOnce(Option<Cause<'_>>) -> R) -> R {
        match self {
            Self::Flow(flow) => work(Some(flow)),
            Self::Space(_) | Self::Node(_) => local::current(self.space(), work),
        }
    }

    /// The serial gates that wait while this sender waits.
    #[inline]
    fn held(self) -> Option<Arc<Held>> {
        self.with_cause(|flow| flow.and_then(held_by))
    }
}

fn held_by(flow: &FlowInner) -> Option<Arc<Held>> {
    let Some(key) = flow.serial else { return flow.held.clone() };
    let gate = (flow.node.key.0, key);
    Some(Arc::new(Held { node: Arc::clone(&flow.node.name), gate, up: flow.held.clone() }))
}

impl<'t> Destination<'t> {
    pub(crate) fn many(all: impl Iterator<Item = Self>) -> Self {
        Self(To::Many(all.map(|one| one.0).collect()))
    }
}

impl<'t> To<'t> {
    fn names(self, out: &mut Vec<Self>) {
        match self {
            Self::Many(all) => all.into_iter().for_each(|to| to.names(out)),
            one => out.push(one),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Node(node) => node.id(),
            Self::Name(name) => name,
            Self::Many(_) => "several nodes",
        }
    }
}

impl Extras {
    fn copy(&self) -> Self {
        Self {
            correlation: self.correlation.clone(),
            source: self.source.clone(),
            user: self.user.clone(),
            trace: self.trace.clone(),
            on_behalf_of: self.on_behalf_of.clone(),
            metadata: self.metadata.clone(),
            within: self.within,
        }
    }
}

impl<'t> Target<'t> for &'t Node {
    #[inline]
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Node(self))
    }
}

impl<'t> Target<'t> for &'t str {
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Name(Cow::Borrowed(self)))
    }
}

impl<'t> Target<'t> for &'t String {
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Name(Cow::Borrowed(self)))
    }
}

impl<'t> Target<'t> for String {
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Name(Cow::Owned(self)))
    }
}

impl<'t> Target<'t> for &Arc<str> {
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Name(Cow::Owned(self.to_string())))
    }
}

impl<'t, X: Target<'t>, const N: usize> Target<'t> for [X; N] {
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Many(self.into_iter().map(|to| to.into_destination().0).collect()))
    }
}

impl<'t, X: Target<'t>> Target<'t> for Vec<X> {
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Many(self.into_iter().map(|to| to.into_destination().0).collect()))
    }
}

impl<'t, X> Target<'t> for &'t [X]
where
    &'t X: Target<'t>,
{
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Many(self.iter().map(|to| to.into_destination().0).collect()))
    }
}

#[cold]
pub(crate) fn no_destination() -> Error {
    Error::misuse("an event was sent to a list of nodes that is empty")
}

#[cold]
fn empty_batch() -> Error {
    Error::misuse("a batch without events was sent")
}

#[cold]
fn told_already() -> Error {
    Error::misuse("the answer was given already; a finished future was polled")
}

#[cold]
fn mixed_batch() -> Error {
    Error::misuse("a batch has events of one type; send those of another type by themselves")
}

#[cold]
fn one_destination() -> Error {
    Error::misuse("several nodes were asked for one reply; use `.replies()`, which gives one for each")
}

impl<T: fmt::Debug> fmt::Debug for Sending<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to {:?}", self.parcel, self.to)
    }
}

impl<T: fmt::Debug> fmt::Debug for Broadcasting<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to all", self.payload)
    }
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
