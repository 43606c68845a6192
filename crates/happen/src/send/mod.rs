//! Sending: from a payload and a destination to what the sender asked for. Owns the builders that nothing leaves
//! before; does not know how a node handles what it gets.

mod asking;
mod broadcast;
mod target;

use std::collections::BTreeMap;
use std::fmt;
use std::future::IntoFuture;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use happen_core::event::{Delegation, Purpose, User};
use happen_core::{
    Answer, Batch, ErasedEvent, Error, ErrorKind, Event, EventId, NodeKey, Outgoing, Parcel, Payload, Result,
};
use serde_json::Value as Json;

use crate::dispatch::{self, Delivered, Want};
use crate::flow::{FlowInner, Held, Outcome};
use crate::link::Away;
use crate::local;
use crate::node::NodeInner;
use crate::space::SpaceInner;
use crate::stamp::{Cause, bare, stamp};
use crate::stream::{Items, Sink};
use crate::web;
use asking::{Accepted, Answered, Answering, answer, worse};
use target::{To, one_destination};

pub use asking::{Acceptance, Asking};
pub use broadcast::Broadcasting;
pub(crate) use broadcast::{Reach, spread};
pub use target::Target;
pub(crate) use target::{Destination, no_destination};

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

use extras;

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
        Asking::new(self)
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
        let mut sent = Begun::new();
        let event = match self.begin(Purpose::Ask, None, Told::Back, &mut sent)? {
            Delivered::Now | Delivered::Later(None) => return answer(sent.event, sent.outcome),
            Delivered::Later(Some(mut receiver)) => match receiver.try_recv() {
                Ok(outcome) => return answer(sent.event, outcome),
                Err(_) => sent.event,
            },
            // Beyond a link no answer is there at once.
            Delivered::Away(_) => sent.event,
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
            Answered::Now(result) => then(result),
            Answered::Later(waiting) => env.spawn(Box::pin(async move {
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
                Answered::Now(reply) => reply,
                Answered::Later(waiting) => waiting.await,
            };
            replies.insert(name, reply);
        }
        replies
    }

    /// Sends and reads the items the handler emits. An error that comes before the first item is the first item.
    #[doc(alias = "generator")]
    pub fn stream<I: Payload>(self) -> Items<I> {
        let (sink, items) = Sink::new();
        let mut sent = Begun::new();
        match self.begin(Purpose::Stream, Some(sink), Told::Back, &mut sent) {
            Err(error) => Items::failed(error),
            Ok(Delivered::Away(Some(away))) => Items::from_away(away),
            Ok(Delivered::Now | Delivered::Away(None)) => Items::ended(items, sent.outcome, sent.event),
            Ok(Delivered::Later(end)) => Items::from_handler(items, end, sent.event),
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
        local::ran(1);
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
                Ok(node) => bring(space, &node, event, want, &mut Ok(None)).map(drop),
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
        let mut sent = Begun::new();
        match self.begin(Purpose::Send, None, Told::Back, &mut sent) {
            Err(error) => Acceptance::now(Err(error)),
            Ok(Delivered::Away(Some(away))) => Acceptance::later(sender, sent.event, *away, within),
            Ok(_) => Acceptance::now(Ok(Sent { event: sent.event })),
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
    fn start<R: Answer>(self) -> Answered<R> {
        let within = self.extras.as_ref().and_then(|extras| extras.within);
        let sender = self.sender;
        let mut sent = Begun::new();
        match self.begin(Purpose::Ask, None, Told::Back, &mut sent) {
            Err(error) => Answered::Now(Err(error)),
            Ok(Delivered::Now | Delivered::Later(None) | Delivered::Away(None)) => {
                Answered::Now(answer(sent.event, sent.outcome))
            }
            Ok(Delivered::Later(Some(receiver))) => {
                Answered::later(sender, sent.event, Answering::Here(receiver), within)
            }
            Ok(Delivered::Away(Some(away))) => {
                Answered::later(sender, sent.event, Answering::Away(Box::pin(away.outcome())), within)
            }
        }
    }

    /// Stamps the event and brings it to its one destination.
    #[inline]
    fn begin(self, purpose: Purpose, sink: Option<Sink>, told: Told, sent: &mut Begun) -> Result<Delivered> {
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
                    let (event, away) =
                        send_away(sender, to.name(), parcel, purpose, extras.as_deref(), told)?;
                    sent.event = event;
                    return Ok(Delivered::Away(away));
                }
                Err(error) => return Err(nowhere(sender, parcel, purpose, extras.as_deref(), error)),
            },
        };
        let want = Want::new(purpose != Purpose::Send, sink, None, sender.held());
        stamped(sender, parcel, purpose, extras.as_deref(), node.key, |event| {
            sent.event = event.envelope().id;
            bring(space, node, event, want, &mut sent.outcome)
        })?
    }
}

/// An event that was sent, and its outcome if it is there at once.
struct Begun {
    event: EventId,
    outcome: Outcome,
}

impl Begun {
    #[inline]
    const fn new() -> Self {
        Self { event: EventId::MIN, outcome: Ok(None) }
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
) -> Result<(EventId, Option<Box<Away>>)> {
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
    Ok((event, away.map(Box::new)))
}

/// Remembers the event, brings it to its node, and remembers what became of it.
#[inline]
fn bring(
    space: &Arc<SpaceInner>,
    node: &Arc<NodeInner>,
    event: &dyn ErasedEvent,
    want: Want,
    outcome: &mut Outcome,
) -> Result<Delivered> {
    let mark = space.remember_sent(event.envelope(), node.key);
    let delivered = dispatch::deliver(node, event, want, outcome);
    let what = match &delivered {
        Ok(Delivered::Now) => dispatch::what(outcome),
        Ok(Delivered::Later(_) | Delivered::Away(_)) => web::WAITING,
        Err(error) => web::failed(error.code()),
    };
    space.settle(mark, what);
    if event.is_batch() {
        for later in (1..event.len()).filter_map(|index| event.single(index)) {
            space.remember(later.envelope().id, node.key, what);
        }
    }
    delivered.map_err(|error| error.at_event(event.envelope().id).at_node(&node.name))
}

impl<'s, T: Payload> IntoFuture for Sending<'s, T> {
    type Output = Result<Sent>;
    type IntoFuture = Acceptance;

    #[inline]
    fn into_future(self) -> Acceptance {
        self.send_now()
    }
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

#[cold]
fn empty_batch() -> Error {
    Error::misuse("a batch without events was sent")
}

#[cold]
fn mixed_batch() -> Error {
    Error::misuse("a batch has events of one type; send those of another type by themselves")
}

impl<T: fmt::Debug> fmt::Debug for Sending<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to {:?}", self.parcel, self.to)
    }
}
