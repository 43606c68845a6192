//! Sending: from a payload and a destination to what the sender asked for. Owns the builders that nothing leaves
//! before; does not know how a node handles what it gets.
#![expect(
    unsafe_code,
    reason = "the flow that causes an event is asked for without a closure, so that the event is built where it stays \
              (docs/performance.md)"
)]

mod after;
mod asking;
mod broadcast;
mod staged;
mod target;

use std::collections::BTreeMap;
use std::fmt;
use std::future::IntoFuture;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use happen_core::env::BoxFuture;
use happen_core::event::{Delegation, Purpose, User};
use happen_core::{
    Answer, Batch, ErasedEvent, Error, ErrorKind, Event, EventId, NodeKey, Outgoing, Parcel, Payload, Result,
};
use serde_json::Value as Json;
use tokio::sync::oneshot;

use crate::context::Context;
use crate::current;
use crate::dispatch::{self, Delivered, Want};
use crate::durable::Keyed;
use crate::flow::{Held, Outcome};
use crate::lent::Way;
use crate::link::Away;
use crate::local;
use crate::node::NodeInner;
use crate::route::{ROUTING_KEY, Went};
use crate::space::SpaceInner;
use crate::stamp::{self, Cause, bare, stamped};
use crate::stream::{Items, Sink};
use crate::web;
use asking::{Accepted, Answered, Answering, Later, answer, worse};
use target::{To, one_destination};

pub use after::{After, CancellingTimer};
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
    Flow(&'s Context),
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
    /// The number of the effect among those of its step, of a durable node: given when the call was made.
    pub(crate) ordinal: Option<u32>,
    /// By what the event is known when it is sent again.
    pub(crate) idempotency_key: Option<Arc<str>>,
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
    /// Nothing once it was sent.
    parcel: Option<Parcel<T>>,
    extras: Option<Box<Extras>>,
}

/// Where an event went that was sent.
enum Begun {
    /// To a node here; an outcome that is there already stands where the sender wanted it.
    Here(Delivered),
    /// By the link; nothing is there when nobody wants to hear of it.
    Away(Option<Box<Away>>),
    /// From a step of a durable node that waits for the answer.
    Asked(BoxFuture<'static, Outcome>),
    /// To a durable node, under a key that says which event it stands for.
    Keyed(oneshot::Receiver<Outcome>, Arc<Keyed>),
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
        Self { sender, to: to.0, parcel: Some(event.into_parcel()), extras: None }
    }

    extras!();

    /// Notes the number of the effect among those of its step.
    #[cold]
    pub(crate) fn numbered(mut self, ordinal: u32) -> Self {
        self.extras().ordinal = Some(ordinal);
        self
    }

    /// Gives the priority by which a waiting event starts, in nodes whose queue goes by priority. Default 0; the
    /// highest first.
    pub fn priority(self, priority: i64) -> Self {
        self.metadata("priority", priority)
    }

    /// Gives the event the key by which it is routed, where it is sent to a node that [shares](crate::Node::shared) its
    /// work by keys or to a [`Router`](crate::Router) that routes by them. Without one its correlation is the key.
    pub fn routing_key(self, key: impl Into<String>) -> Self {
        self.metadata(ROUTING_KEY, key.into())
    }

    /// Gives the event a key by which it is known when it is sent to the same node once more, for callers from outside that
    /// do not know whether they got through. The second event is not handled: its reply is that of the first, also when
    /// that one is still under way, and the id that is told is that of the first. Of two that are sent at once one is the
    /// first.
    ///
    /// The key is stored with the acceptance of the event, for as long as
    /// [`idempotency_window_ms`](crate::Config::idempotency_window_ms) says. Another event under a known key is refused
    /// with [`ErrorKind::Conflict`]. Only durable nodes have such keys; steps of durable nodes need none, for what they
    /// send has an id that follows from the step.
    ///
    /// # Cost
    ///
    /// The acceptance is a commit before the first step; without a key an event whose only step ends at once has one commit
    /// in all.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Space};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// let space = Space::open(folder.path()).await?;
    /// let payments = space.node("payments");
    /// payments.on("u64", |cents: &Event<u64>, _: &Context| **cents);
    /// space.start().await?;
    ///
    /// let first = space.send(&payments, 700u64).idempotency_key("order-7").reply::<u64>().await?;
    /// let again = space.send(&payments, 700u64).idempotency_key("order-7").reply::<u64>().await?;
    /// assert_eq!(first, again);
    /// # space.stop().await
    /// # }
    /// ```
    pub fn idempotency_key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.extras().idempotency_key = Some(key.into());
        self
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
    pub fn reply_now<R: Answer>(mut self) -> Result<Reply<R>> {
        let mut outcome = Ok(None);
        let (event, begun) = self.begin(Purpose::Ask, Want::plain(true), Told::Back, &mut outcome)?;
        match begun {
            Begun::Here(Delivered::Now | Delivered::Later(None)) => return answer(event, outcome),
            Begun::Here(Delivered::Later(Some(mut receiver))) => {
                if let Ok(outcome) = receiver.try_recv() {
                    return answer(event, outcome);
                }
            }
            // Beyond a link no answer is there at once, and a step has to commit its question first.
            Begun::Away(_) | Begun::Asked(_) | Begun::Keyed(..) => {}
        }
        let cannot_wait = "the answer is not there at once and this caller cannot wait; use `.reply().await`";
        Err(Error::new(ErrorKind::Cancelled).context(cannot_wait).at_event(event))
    }

    /// Sends, and hands the answer to a function when it comes, beside the caller.
    pub fn reply_with<R: Answer>(mut self, then: impl FnOnce(Result<Reply<R>>) + Send + 'static)
    where
        T: 'static,
    {
        let env = Arc::clone(&self.sender.space().env);
        let flow = match self.sender {
            Sender::Flow(flow) => Some(flow.clone()),
            Sender::Space(_) | Sender::Node(_) => local::current_context(self.sender.space()),
        };
        match self.start::<R>() {
            Answered::Now(result) => then(result),
            Answered::Later(waiting) => env.spawn(Box::pin(async move {
                let result = waiting.await;
                match flow {
                    // What the function sends has the same cause whether the answer was there at once or not.
                    Some(flow) => current::enter(&flow, || then(result)),
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
                let mut one = Sending { sender, to, parcel: parcel.clone(), extras };
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
    pub fn stream<I: Payload>(mut self) -> Items<I> {
        let (sink, items) = Sink::new();
        let mut outcome = Ok(None);
        match self.begin(Purpose::Stream, Want::plain(true).stream_to(sink), Told::Back, &mut outcome) {
            Err(error) => Items::failed(error),
            Ok((_, Begun::Away(Some(away)))) => Items::from_away(away),
            Ok((event, Begun::Here(Delivered::Later(end)))) => Items::from_handler(items, end, event),
            Ok((event, Begun::Asked(_) | Begun::Keyed(..))) => {
                Items::failed(staged::no_stream().at_event(event))
            }
            Ok((event, Begun::Here(Delivered::Now) | Begun::Away(None))) => {
                Items::ended(items, outcome, event)
            }
        }
    }

    /// Sends and does not wait for anything. What cannot be delivered goes to the dead letters.
    pub fn forget(self) {
        if !self.to.is_many() {
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
        let Some(parcel) = parcel else { return };
        local::ran(1);
        let copy = parcel.clone();
        if let Some(kept) = staged::forget(sender, &to, parcel.clone(), extras) {
            if let Err(error) = kept {
                lost(sender, to.name(), &copy, &error);
            }
            return;
        }
        if extras.is_some_and(|extras| extras.idempotency_key.is_some()) {
            let error = "an idempotency key is for a sender who waits; use `.await` or `.reply()`";
            lost(sender, to.name(), &copy, &Error::misuse(error));
            return;
        }
        let node = resolve(space, &to);
        let elsewhere = match &node {
            Ok(node) => node.is_shared(),
            Err(error) => away(space, error),
        };
        if elsewhere {
            let how = (Purpose::Send, Want::plain(false), Told::Nothing);
            let left = send_away(sender, to.name(), parcel, how, extras, &mut Ok(None));
            return left.map_or_else(|error| lost(sender, to.name(), &copy, &error), drop);
        }
        let taken = |event: &dyn ErasedEvent| match &node {
            Ok(node) => {
                let want = Want::plain(false).held_by(sender.with_cause(held_by));
                bring_batch(node, event, want, &mut Ok(None)).map(drop)
            }
            Err(error) => {
                let mark = space.remember_sent(event.envelope(), NodeKey(0));
                space.settle(mark, web::failed(error.code()));
                Err(error.duplicate().at_event(event.envelope().id))
            }
        };
        let keep = |event: &dyn ErasedEvent| {
            if let Err(error) = taken(event) {
                space.bury(event, to.name(), &error);
            }
        };
        let sent = match parcel {
            Parcel::One(payload) => stamped(sender, payload, Purpose::Send, extras).map(|event| keep(&event)),
            Parcel::Batch(payloads) => {
                stamped_batch(sender, payloads, Purpose::Send, extras).map(|batch| keep(&batch))
            }
            _ => Err(unknown_parcel()),
        };
        if let Err(error) = sent {
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
            Some(Parcel::Batch(payloads)) => payloads,
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
            let parcel = Some(Parcel::Batch(payloads.by_ref().take(len).collect()));
            let extras = extras.as_deref().map(|extras| Box::new(extras.copy()));
            chunks.push_back((
                start..(start + len).min(all),
                Sending { sender, to: to.clone(), parcel, extras },
            ));
        }
        crate::chunks::Chunks::new(chunks, all)
    }

    #[inline]
    fn send_now(mut self) -> Acceptance {
        if self.to.is_many() {
            return self.send_to_many();
        }
        let within = self.extras.as_ref().and_then(|extras| extras.within);
        let sender = self.sender;
        match self.begin(Purpose::Send, Want::plain(false), Told::Back, &mut Ok(None)) {
            Err(error) => Acceptance::now(Err(error)),
            Ok((event, Begun::Away(Some(away)))) => match away.keyed() {
                None => Acceptance::later(sender, event, Box::pin(away.outcome()), within),
                Some(keyed) => {
                    let answering = Answering::Away(Box::pin(away.outcome()));
                    Later::<()>::new(sender, event, answering, within).known_by(keyed).into_acceptance()
                }
            },
            Ok((event, Begun::Here(Delivered::Later(Some(stored))))) => {
                let stored = async { stored.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled))) };
                Acceptance::later(sender, event, Box::pin(stored), within)
            }
            Ok((event, Begun::Keyed(stored, keyed))) => {
                Later::<()>::new(sender, event, Answering::Here(stored), within)
                    .known_by(keyed)
                    .into_acceptance()
            }
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

    #[inline(always)]
    fn start<R: Answer>(&mut self) -> Answered<R> {
        let mut outcome = Ok(None);
        match self.begin(Purpose::Ask, Want::plain(true), Told::Back, &mut outcome) {
            Err(error) => Answered::Now(Err(error)),
            Ok((event, Begun::Here(Delivered::Later(Some(receiver))))) => {
                self.answered_later(event, Answering::Here(receiver))
            }
            Ok((event, Begun::Away(Some(away)))) => {
                let keyed = away.keyed();
                let answered = self.answered_later(event, Answering::Away(Box::pin(away.outcome())));
                match (answered, keyed) {
                    (Answered::Later(later), Some(keyed)) => Answered::Later(later.known_by(keyed)),
                    (answered, _) => answered,
                }
            }
            Ok((event, Begun::Keyed(receiver, keyed))) => {
                let within = self.extras.as_ref().and_then(|extras| extras.within);
                let later = Later::new(self.sender, event, Answering::Here(receiver), within);
                Answered::Later(later.known_by(keyed))
            }
            // It keeps the time itself, for a step that is run again has to give up where it gave up before.
            Ok((event, Begun::Asked(answer))) => {
                Answered::Later(Later::new(self.sender, event, Answering::Away(answer), None))
            }
            Ok((event, Begun::Here(_) | Begun::Away(None))) => Answered::Now(answer(event, outcome)),
        }
    }

    #[cold]
    fn answered_later<R: Answer>(&self, event: EventId, from: Answering) -> Answered<R> {
        let within = self.extras.as_ref().and_then(|extras| extras.within);
        Answered::Later(Later::new(self.sender, event, from, within))
    }

    /// Stamps the event and brings it to its one destination.
    #[inline(always)]
    fn begin(
        &mut self,
        purpose: Purpose,
        want: Want,
        told: Told,
        outcome: &mut Outcome,
    ) -> Result<(EventId, Begun)> {
        let Self { sender, to, parcel, extras } = self;
        let (sender, to, extras) = (*sender, &*to, extras.as_deref());
        let Some(parcel) = parcel.take() else { return Err(sent_already()) };
        let space = sender.space();
        // SAFETY: it is used in this function alone, and to ask what waits.
        let cause = unsafe { sender.cause() };
        if let Some(flow) = cause
            && let Some(stage) = flow.stage()
        {
            return staged::begin((sender, flow, stage), to, parcel, (purpose, want), extras, told);
        }
        let held;
        let node = match to {
            To::Node(node) if node.inner().is_at_hand(space) => node.inner(),
            other => match resolve(space, other) {
                Ok(found) if !found.is_shared() => {
                    held = found;
                    &held
                }
                Err(error) if !away(space, &error) => {
                    return Err(nowhere(sender, parcel, purpose, extras, error));
                }
                // Not here, or not here alone.
                _ => return send_away(sender, to.name(), parcel, (purpose, want, told), extras, outcome),
            },
        };
        if let Some(key) = extras.and_then(|extras| extras.idempotency_key.as_ref()) {
            return bring_keyed(sender, node, (parcel, purpose), extras, want, key);
        }
        let payload = match parcel {
            Parcel::One(payload) => payload,
            Parcel::Batch(payloads) => {
                let batch = stamped_batch(sender, payloads, purpose, extras)?;
                let want = want.held_by(sender.with_cause(held_by));
                let delivered = bring_batch(node, &batch, want, outcome)?;
                return Ok((batch[0].id(), Begun::Here(delivered)));
            }
            _ => return Err(unknown_parcel()),
        };
        let moment = stamp::admit(space, cause)?;
        let event_type = payload.event_type();
        let envelope = stamp::envelope(moment, space, sender.key(), cause, event_type, purpose);
        let mut event = Event::from_parts(envelope, payload);
        stamp::complete(sender, &mut event, extras)?;
        let want = want.held_by(held_by(cause));
        Ok((moment.id, Begun::Here(bring(space, node, &event, want, outcome)?)))
    }
}

#[cold]
fn stamped_batch<T: Payload>(
    sender: Sender<'_>,
    payloads: Vec<T>,
    purpose: Purpose,
    extras: Option<&Extras>,
) -> Result<Batch<T>> {
    let mut events: Vec<Event<T>> = Vec::with_capacity(payloads.len());
    for payload in payloads {
        let event_type = payload.event_type();
        if events.first().is_some_and(|first| first.envelope().event_type != event_type) {
            return Err(mixed_batch());
        }
        events.push(stamped(sender, payload, purpose, extras)?);
    }
    Batch::new(events).ok_or_else(empty_batch)
}

/// The one node of this space that is meant.
fn resolve(space: &Arc<SpaceInner>, to: &To<'_>) -> Result<Arc<NodeInner>> {
    match to {
        To::Node(node) if node.inner().space.id == space.id => Ok(Arc::clone(node.inner())),
        To::Node(node) => Err(Error::misuse(format!("node `{}` belongs to another space", node.id()))),
        many if many.is_many() => Err(one_destination()),
        name => {
            let missing = || Error::new(ErrorKind::NoSuchNode { node: name.name().to_owned() });
            space.find(name.name()).ok_or_else(missing)
        }
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
    let remember = |event: &dyn ErasedEvent| {
        for single in (0..event.len()).filter_map(|index| event.single(index)) {
            let mark = space.remember_sent(single.envelope(), NodeKey(0));
            space.settle(mark, web::failed(error.code()));
        }
        event.envelope().id
    };
    let id = match parcel {
        Parcel::One(payload) => stamped(sender, payload, purpose, extras).map(|event| remember(&event)),
        Parcel::Batch(payloads) => {
            stamped_batch(sender, payloads, purpose, extras).map(|batch| remember(&batch))
        }
        _ => return error,
    };
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
    matches!(error.kind(), ErrorKind::NoSuchNode { node } if space.may_be_away(node))
}

/// Stamps an event for a node that is not here, or not here alone, and sends it on.
#[cold]
fn send_away<T: Payload>(
    sender: Sender<'_>,
    to: &str,
    parcel: Parcel<T>,
    (purpose, want, told): (Purpose, Want, Told),
    extras: Option<&Extras>,
    outcome: &mut Outcome,
) -> Result<(EventId, Begun)> {
    let space = sender.space();
    space.check_running()?;
    let keyed = match extras.and_then(|extras| extras.idempotency_key.as_ref()) {
        None => None,
        Some(key) => {
            check_key(&parcel, purpose, key)?;
            // Whoever is chosen the next time would not know it.
            if space.is_chosen(to) {
                return Err(unknown_key(to));
            }
            // The process that has the node knows its keys, and is asked itself.
            Some(Keyed::new(key))
        }
    };
    let want = want.held_by(sender.with_cause(held_by));
    let send = |event: &dyn ErasedEvent| -> Result<Begun> {
        let wants = (want, told == Told::Back, keyed.clone());
        Ok(match space.send_on(sender, to, event, wants, outcome)? {
            Went::Here(delivered) => Begun::Here(delivered),
            Went::Away(away) => Begun::Away(away.map(Box::new)),
        })
    };
    Ok(match parcel {
        Parcel::One(payload) => {
            let event = stamped(sender, payload, purpose, extras)?;
            (event.id(), send(&event)?)
        }
        Parcel::Batch(payloads) => {
            let batch = stamped_batch(sender, payloads, purpose, extras)?;
            (batch[0].id(), send(&batch)?)
        }
        _ => return Err(unknown_parcel()),
    })
}

/// Stamps an event that has a key and brings it to its node.
#[cold]
fn bring_keyed<T: Payload>(
    sender: Sender<'_>,
    node: &Arc<NodeInner>,
    (parcel, purpose): (Parcel<T>, Purpose),
    extras: Option<&Extras>,
    want: Want,
    key: &Arc<str>,
) -> Result<(EventId, Begun)> {
    check_key(&parcel, purpose, key)?;
    let Parcel::One(payload) = parcel else { return Err(unknown_parcel()) };
    if !node.is_durable() {
        return Err(unknown_key(&node.name));
    }
    let event = stamped(sender, payload, purpose, extras)?;
    let keyed = Keyed::new(key);
    let want = want.held_by(sender.with_cause(held_by)).known_by(&keyed);
    match bring(sender.space(), node, &event, want, &mut Ok(None))? {
        Delivered::Later(Some(told)) => Ok((event.id(), Begun::Keyed(told, keyed))),
        delivered => Ok((event.id(), Begun::Here(delivered))),
    }
}

/// Whether what is sent can have a key.
#[cold]
fn check_key<T>(parcel: &Parcel<T>, purpose: Purpose, key: &str) -> Result<()> {
    if key.is_empty() {
        return Err(Error::misuse("an idempotency key is empty, and so would be the same for all"));
    }
    match parcel {
        Parcel::One(_) if purpose != Purpose::Stream => Ok(()),
        _ => Err(Error::misuse(
            "an idempotency key belongs to one event and its outcome; send the events of a batch one by one, each with a \
             key of its own, and read a stream without one",
        )),
    }
}

#[cold]
pub(crate) fn unknown_key(node: &str) -> Error {
    Error::misuse(format!(
        "an event with an idempotency key was sent to node `{node}`, which is not durable and would forget the key"
    ))
}

/// Remembers the event, brings it to its node, and remembers what became of it.
#[inline(always)]
fn bring(
    space: &Arc<SpaceInner>,
    node: &Arc<NodeInner>,
    event: &dyn ErasedEvent,
    want: Want,
    outcome: &mut Outcome,
) -> Result<Delivered> {
    let mut way = Way::new();
    let mark = space.set_out(event.envelope(), node.key, &mut way);
    let delivered = dispatch::deliver(node, &mut way, event, want, outcome);
    space.arrived(mark, &mut way, what_became(&delivered, outcome));
    delivered.map_err(|error| error.at_event(event.envelope().id).at_node(&node.name))
}

/// The same for several events at once, or for one when it is no matter.
#[cold]
pub(crate) fn bring_batch(
    node: &Arc<NodeInner>,
    event: &dyn ErasedEvent,
    want: Want,
    outcome: &mut Outcome,
) -> Result<Delivered> {
    let space = &node.space;
    let later = || (1..event.len()).filter_map(|index| event.single(index)).map(ErasedEvent::envelope);
    // The first stands for the batch and is remembered last.
    for envelope in later() {
        space.remember_sent(envelope, node.key);
    }
    let delivered = bring(space, node, event, want, outcome);
    let what = what_became(&delivered, outcome);
    for envelope in later() {
        space.remember(envelope.id, node.key, what);
    }
    delivered
}

#[inline(always)]
fn what_became(delivered: &Result<Delivered>, outcome: &Outcome) -> u8 {
    match delivered {
        Ok(Delivered::Now) => dispatch::what(outcome),
        Ok(Delivered::Later(_)) => web::WAITING,
        Err(error) => web::failed(error.code()),
    }
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
    #[inline(always)]
    pub(crate) fn space(self) -> &'s Arc<SpaceInner> {
        match self {
            Self::Space(space) => space,
            Self::Node(node) => &node.space,
            Self::Flow(flow) => &flow.inner().node().space,
        }
    }

    #[inline(always)]
    pub(crate) fn key(self) -> NodeKey {
        match self {
            Self::Space(_) => NodeKey(0),
            Self::Node(node) => node.key,
            Self::Flow(flow) => flow.inner().node().key,
        }
    }

    /// Runs `work` with the flow that causes what is sent: the context's own, or the one being polled on this thread.
    pub(crate) fn with_cause<R>(self, work: impl FnOnce(Option<Cause<'_>>) -> R) -> R {
        // SAFETY: it is lent to `work`, which is over before this returns.
        work(unsafe { self.cause() })
    }

    /// The flow that causes what is sent: the context's own, or the one being polled on this thread.
    ///
    /// # Safety
    ///
    /// It is used no longer than the function runs that asks for it.
    #[inline(always)]
    pub(crate) unsafe fn cause<'c>(self) -> Option<Cause<'c>>
    where
        's: 'c,
    {
        match self {
            Self::Flow(flow) => Some(flow.inner()),
            Self::Space(_) | Self::Node(_) => {
                // SAFETY: by the contract of this function.
                let polled = unsafe { current::flow() }.map(Context::inner);
                // A space is asked for the flows of its own alone.
                polled.filter(|flow| flow.node().space.id == self.space().id)
            }
        }
    }
}

/// The serial gates that wait while the flow waits that is polled on this thread.
pub(crate) fn held_by_current(space: &Arc<SpaceInner>) -> Option<Arc<Held>> {
    Sender::Space(space).with_cause(held_by)
}

/// The serial gates that wait while this flow waits.
#[inline(always)]
fn held_by(flow: Option<Cause<'_>>) -> Option<Arc<Held>> {
    let flow = flow?;
    let Some(key) = flow.serial else { return flow.held.clone() };
    let gate = (flow.node().key.0, key);
    Some(Arc::new(Held { node: Arc::clone(&flow.node().name), gate, up: flow.held.clone() }))
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
            ordinal: None,
            idempotency_key: self.idempotency_key.clone(),
        }
    }
}

#[cold]
fn sent_already() -> Error {
    Error::misuse("the event was sent already; a finished future was polled")
}

#[cold]
fn unknown_parcel() -> Error {
    Error::misuse("a parcel of a kind this runtime does not know")
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
