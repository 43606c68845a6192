//! What a handler is given beside the event: its node, the flow's own values, and the ways to send. Owns the public
//! type [`Context`] and its recycling.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use happen_core::content;
use happen_core::env::Env;
use happen_core::store::Bytes;
use happen_core::{
    Envelope, Error, ErrorKind, Event, EventId, Outgoing, Pattern, Payload, Result, State, Value,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::current;
use crate::dispatch::Place;
use crate::durable;
use crate::flow::FlowInner;
use crate::global::{Author, Global};
use crate::local;
use crate::node::Node;
use crate::send::{After, Broadcasting, CancellingTimer, Sender, Sending, Target};
use crate::state::StateOf;
use crate::stream::Items;

/// The surroundings of one flow: shared by its steps, seen by no other flow. Cloning shares.
pub struct Context(triomphe::Arc<FlowInner>, Option<Arc<Attempt>>);

/// What a wrapper tells the handler it runs once more, or instead of another.
#[derive(Debug)]
struct Attempt {
    number: u32,
    error: Option<Error>,
}

impl Clone for Context {
    #[inline]
    fn clone(&self) -> Self {
        // Whoever has a clone may outlive what the flow borrows.
        self.keep();
        Self(triomphe::Arc::clone(&self.0), self.1.clone())
    }
}

impl Context {
    /// The context of a flow that owns what it needs.
    pub(crate) fn owned(flow: FlowInner) -> Self {
        Self(triomphe::Arc::new(flow), None)
    }

    /// The context of a flow that nobody else has.
    #[inline]
    pub(crate) fn of(flow: triomphe::UniqueArc<FlowInner>) -> Self {
        Self(flow.shareable(), None)
    }

    /// Makes what the flow borrows its own.
    #[inline]
    pub(crate) fn keep(&self) {
        self.0.lent.keep();
    }

    #[inline]
    pub(crate) fn inner(&self) -> &FlowInner {
        &self.0
    }

    /// The same context for another run of a handler in it, after this error.
    pub(crate) fn once_more(&self, number: u32, error: Option<Error>) -> Self {
        Self(self.clone().0, Some(Arc::new(Attempt { number, error })))
    }

    /// Ends the flow: its values are dropped. Its place can be used again unless somebody kept a clone.
    #[inline(always)]
    pub(crate) fn end(self) -> Option<triomphe::UniqueArc<FlowInner>> {
        self.0.end();
        // What somebody kept a clone of is not ours to change.
        triomphe::Arc::into_unique(self.0)
    }

    pub(crate) fn env(&self) -> &Arc<dyn Env> {
        &self.0.node().space.env
    }

    /// The node that handles the event.
    #[must_use]
    pub fn node(&self) -> Node {
        Node::from_inner(Arc::clone(self.0.node()))
    }

    /// The id of the node that handles the event.
    #[must_use]
    pub fn node_id(&self) -> &str {
        &self.0.node().name
    }

    /// The id of the node that sent the event; `None` when it was sent through the space itself.
    #[must_use]
    pub fn sender(&self) -> Option<Arc<str>> {
        self.0.node().space.name_of(self.0.envelope().sender)
    }

    /// The id of the node that sent the root event of this correlation.
    #[must_use]
    pub fn origin(&self) -> Option<Arc<str>> {
        self.0.node().space.name_of(self.0.envelope().origin)
    }

    /// Whether the sender waits for the value this flow ends with.
    #[must_use]
    #[doc(alias = "expectsResponse")]
    pub fn expects_reply(&self) -> bool {
        self.0.envelope().expects_reply()
    }

    /// The context of the event that is handled.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        self.0.envelope()
    }

    /// The id of the event that is handled.
    #[must_use]
    pub fn event_id(&self) -> EventId {
        self.0.envelope().id
    }

    /// The correlation: what the sender of the root event chose, or the root's id.
    #[must_use]
    #[doc(alias = "correlationId")]
    pub fn correlation(&self) -> String {
        self.0.envelope().correlation()
    }

    /// The ids of the nodes the event came by, the nearest first, as far as the event remembers.
    #[must_use]
    pub fn path(&self) -> Vec<Arc<str>> {
        let space = &self.0.node().space;
        self.0.envelope().path.hops().filter_map(|key| space.name_of(key)).collect()
    }

    /// What the parts of the pattern stood for in the event's type, in order.
    ///
    /// # Examples
    ///
    /// ```
    /// # use happen::{Context, Event, Space};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = Space::memory();
    /// let node = space.node("audit");
    /// node.on("*.created", |_: &Event, cx: &Context| cx.captures()[0].clone());
    /// space.start().await?;
    /// let what = space.send(&node, Event::new("order.created", serde_json::json!({}))).reply::<String>().await?;
    /// assert_eq!(*what, "order");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn captures(&self) -> Vec<String> {
        let table = self.0.node().table.load();
        let entry = table.entries.iter().find(|entry| entry.id == self.0.registration);
        let captures = entry.and_then(|entry| entry.captures(self.0.envelope().event_type.as_str()));
        captures
            .iter()
            .flat_map(|captures| captures.iter())
            .map(|part| part.unwrap_or_default().to_owned())
            .collect()
    }

    /// Keeps a value for the later steps of this flow, under a name. A value of the same name is replaced.
    ///
    /// # Errors
    ///
    /// Never for an ephemeral node. A durable one encodes the value: [`ErrorKind::Unencodable`] when that cannot be, and
    /// [`ErrorKind::Misuse`] when there are more than [`RECORD_VALUES_MAX`](happen_core::limits::RECORD_VALUES_MAX).
    pub fn put<T>(&self, name: impl Into<Cow<'static, str>>, value: T) -> Result<()>
    where
        T: Serialize + DeserializeOwned + Clone + Send + 'static,
    {
        let name = name.into();
        if let Some(stage) = self.0.stage() {
            let mut bytes = Vec::new();
            content::encode_into(&value, &name, &mut bytes)?;
            stage.put(&name, bytes.into())?;
        }
        let value: Box<dyn Any + Send> = Box::new(value);
        let old = self.0.with_named(|named| match named.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => Some(std::mem::replace(old, value)),
            None => {
                named.push((name, value));
                None
            }
        });
        drop(old);
        Ok(())
    }

    /// A copy of the value an earlier step kept under this name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when there is none, or when it has another type.
    pub fn get<T>(&self, name: &str) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Clone + Send + 'static,
    {
        self.0.with_named(|named| {
            let found = named.iter().find(|(known, _)| known == name).map(|(_, value)| value);
            match found.map(|value| (value.downcast_ref::<T>(), value.downcast_ref::<Encoded>())) {
                Some((Some(value), _)) => Ok(value.clone()),
                Some((None, Some(Encoded(bytes)))) => content::decode(bytes, name),
                Some((None, None)) => Err(other_type::<T>(name)),
                None => Err(nothing_kept(name)),
            }
        })
    }

    /// Takes the value an earlier step kept under this name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when there is none, or when it has another type; then it stays.
    pub fn take<T>(&self, name: &str) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Clone + Send + 'static,
    {
        let taken = self.0.with_named(|named| {
            let Some(index) = named.iter().position(|(known, _)| known == name) else {
                return Err(nothing_kept(name));
            };
            let (known, value) = named.swap_remove(index);
            if let Some(Encoded(bytes)) = value.downcast_ref() {
                return content::decode(bytes, name).inspect_err(|_| named.push((known, value)));
            }
            value.downcast::<T>().map(|value| *value).map_err(|value| {
                named.push((known, value));
                other_type::<T>(name)
            })
        })?;
        if let Some(stage) = self.0.stage() {
            stage.take(name)?;
        }
        Ok(taken)
    }

    /// The state of this type of the node that handles the event, to be read and changed.
    #[inline]
    pub fn state<S: State>(&self) -> StateOf<'_, S> {
        StateOf::single(self.0.node(), Some(&self.0))
    }

    /// One of the entities of this type of the node that handles the event: a state of its own for each key.
    #[inline]
    pub fn entity<'c, S: State>(&'c self, key: impl Into<Cow<'c, str>>) -> StateOf<'c, S> {
        StateOf::entity(self.0.node(), Some(&self.0), key.into())
    }

    /// The values that everybody in the space reads and changes, by key.
    ///
    /// A change happens at once and is not part of the step: it stays when the step fails afterwards, and happens again
    /// when the step is run again. It is recorded as caused by the event being handled.
    pub fn global(&self) -> Global {
        let node = self.0.node();
        let author = Author { node: Some(Arc::clone(&node.name)), event: Some(self.event_id()) };
        Global::new(&node.space, author)
    }

    /// Sends an event, caused by the one being handled, to one node, several nodes, or as a batch. Nothing leaves
    /// before `.await`, `.reply()`, `.replies()`, `.stream()` or `.forget()`.
    #[inline]
    pub fn send<'c, T: Outgoing>(&'c self, to: impl Target<'c>, event: T) -> Sending<'c, T::Payload> {
        let sending = Sending::new(Sender::Flow(self), to.into_destination(), event);
        match self.0.stage() {
            None => sending,
            // Given now: what is awaited side by side is sent in whatever order it is polled.
            Some(stage) => sending.numbered(stage.ordinal()),
        }
    }

    /// Sends an event, caused by the one being handled, after a while: a timer, which outlives the process. Set by a step
    /// of a durable node it is part of the step. What repeats without an end is better a
    /// [`schedule`](crate::Space::schedule): events that cause each other for ever pass a limit of their correlation.
    ///
    /// # Errors
    ///
    /// Of `.await`: as [`Space::after`](crate::Space::after).
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, secs};
    ///
    /// async fn placed(order: Event<u64>, cx: Context) -> happen::Result<()> {
    ///     let remind = Event::new("remind", serde_json::json!({ "order": *order }));
    ///     cx.after(secs(86_400), "orders", remind).key(format!("reminder:order-{}", *order)).await?;
    ///     Ok(())
    /// }
    ///
    /// async fn paid(order: Event<u64>, cx: Context) -> happen::Result<()> {
    ///     cx.cancel_timer(&format!("reminder:order-{}", *order)).await?;
    ///     Ok(())
    /// }
    /// # let _ = (placed, paid);
    /// ```
    pub fn after<'c, T: Payload>(&'c self, time: Duration, to: impl Target<'c>, event: T) -> After<'c, T> {
        After::new(Sender::Flow(self), time, to.into_destination(), event)
    }

    /// Takes the timer with this key back, with the commit of the step. False when the step sees none.
    ///
    /// # Errors
    ///
    /// Of `.await`: as [`Space::cancel_timer`](crate::Space::cancel_timer).
    pub fn cancel_timer(&self, key: &str) -> CancellingTimer<'_> {
        CancellingTimer::new(Sender::Flow(self), key)
    }

    /// Sends an event, caused by the one being handled, to every node that listens, this one included.
    ///
    /// # Errors
    ///
    /// When a limit on the correlation is passed, or a hook objects.
    #[inline]
    pub fn broadcast<T: Payload>(&self, event: T) -> Result<EventId> {
        Broadcasting::new(Sender::Flow(self), event).publish()
    }

    /// How much waits at a node, for a flow that can send less. See [`Space::pressure`](crate::Space::pressure).
    #[must_use]
    pub fn pressure(&self, node: &str) -> Option<crate::balance::Pressure> {
        self.0.node().space.pressure(node)
    }

    /// A broadcast that is not sent yet, to give it metadata or to make it a stream.
    pub fn broadcasting<T: Payload>(&self, event: T) -> Broadcasting<'_, T> {
        Broadcasting::new(Sender::Flow(self), event)
    }

    /// Sends one item to the reader of this flow's stream and waits until there is room for it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] when the reader has gone (a flow that returns this error ends there), or when the flow has
    /// ended and with it its stream. When nobody asked for a stream the item is dropped and the call succeeds.
    #[doc(alias = "yield")]
    pub async fn emit<T: Payload>(&self, item: T) -> Result<()> {
        match self.0.sink() {
            Some(sink) => sink.emit(Value::new(item)).await,
            None if self.0.has_ended() => {
                let what = "the stream, because its flow has ended,".to_owned();
                Err(Error::new(ErrorKind::Closed { what }).at_event(self.event_id()))
            }
            None => Ok(()),
        }
    }

    /// The items of the stream that the event was broadcast with. Each listener reads at its own pace.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when the event came without a stream, or its items were taken already.
    pub fn items<T: Payload>(&self) -> Result<Items<T>> {
        self.0.take_source().map(Items::from_broadcast).ok_or_else(|| {
            Error::misuse("the event came without a stream of items, or they were taken already")
                .at_event(self.event_id())
        })
    }

    /// Runs a future beside this flow. What it sends is caused by the event being handled.
    ///
    /// The task is not part of the flow: the flow does not wait for it. Of a durable node it is not part of the step
    /// either: what it sends leaves at once, and is gone if the process ends.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let context = self.beside();
        let mut future = Box::pin(future);
        let task = std::future::poll_fn(move |task| current::enter(&context, || future.as_mut().poll(task)));
        self.0.node().space.env.spawn(Box::pin(task));
    }

    /// This context for work beside the flow.
    fn beside(&self) -> Self {
        if self.0.stage().is_none() {
            return self.clone();
        }
        let mut beside = FlowInner::new(Arc::clone(self.0.node()), self.0.envelope().clone());
        beside.more_causes.clone_from(&self.0.more_causes);
        beside.more_types.clone_from(&self.0.more_types);
        beside.registration = self.0.registration;
        Self::owned(beside)
    }

    /// Waits; in a test with virtual time, without waiting.
    ///
    /// A durable node remembers until when, from [`SLEEP_REMEMBERED_MS`](crate::limits::SLEEP_REMEMBERED_MS) on: after a
    /// crash the step is run again and waits for what is left. Meanwhile it takes no place among the events that are
    /// handled at once, unless the node is serial. A step that cannot have this remembered fails.
    #[doc(alias = "setTimeout")]
    pub async fn sleep(&self, time: Duration) {
        let Some(stage) = self.0.stage() else { return self.0.node().space.env.sleep(time).await };
        if let Err(error) = durable::sleep(Arc::clone(stage), time).await {
            self.fail(error).await;
        }
    }

    /// Does something outside once, by whatever a step of a durable node is interrupted: the value is remembered under the
    /// name, and a step that is run again gets it without doing the work. The name belongs to the step.
    ///
    /// The work is given a key that is the same each time, for services that take one to recognise a call that is made
    /// again: between the effect and the commit that remembers it the process can still end. A failure of the work is not
    /// remembered. An ephemeral node just does the work.
    ///
    /// # Errors
    ///
    /// What the work gives; [`ErrorKind::Unencodable`] and [`ErrorKind::Undecodable`] when the value cannot be remembered;
    /// what the store says.
    ///
    /// # Examples
    ///
    /// ```
    /// # use happen::{Context, Event, Space};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let space = Space::memory();
    /// # let node = space.node("payments");
    /// async fn charge(cents: Event<u64>, cx: Context) -> happen::Result<String> {
    ///     // A real one would call the provider, with `key` as its idempotency key.
    ///     cx.once("charge", |key| async move { Ok(format!("{} cents, {}", *cents, key.len())) }).await
    /// }
    /// node.on("u64", charge);
    /// # space.start().await?;
    /// # assert_eq!(*space.send(&node, 5u64).reply::<String>().await?, "5 cents, 36");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn once<T, F>(&self, name: impl Into<String>, work: impl FnOnce(String) -> F) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T>>,
    {
        match self.0.stage() {
            None => work(self.event_id().to_string()).await,
            Some(stage) => durable::once(Arc::clone(stage), name.into(), work).await,
        }
    }

    /// Waits for an event of the space that matches the pattern, such as a person's approval: the first one that comes
    /// after this call was reached. It need not be for this node, nor caused by what this flow did. Only a durable node
    /// can wait so, and then for years: what comes while the process is not there counts.
    ///
    /// Events are seen that the store has: those for durable nodes and from them, and broadcasts.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`] when none came within the time; [`ErrorKind::Misuse`] on an ephemeral node; a pattern that
    /// cannot be understood; what the store says.
    pub async fn wait_for(&self, pattern: &str, within: impl Into<Option<Duration>>) -> Result<Event> {
        self.wait_for_one(pattern, within, |_| true).await
    }

    /// As [`Context::wait_for`], for the first one that the function says yes to.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn wait_for_one(
        &self,
        pattern: &str,
        within: impl Into<Option<Duration>>,
        wanted: impl Fn(&Event) -> bool + Send + Sync + 'static,
    ) -> Result<Event> {
        let pattern = Pattern::parse(pattern)?;
        match self.0.stage() {
            Some(stage) => {
                durable::wait_for(Arc::clone(stage), pattern, within.into(), Arc::new(wanted)).await
            }
            None => Err(Error::misuse(
                "only a durable node can wait for an event, as nobody else would know what came meanwhile; ask for it, or \
                 keep what is needed in a state",
            )
            .at_event(self.event_id())),
        }
    }

    /// Has the step fail, whatever its function would do next.
    async fn fail(&self, error: Error) {
        if let Some(stage) = self.0.stage() {
            stage.fail(error);
            // The flow looks after this poll why it does not go on.
            std::future::pending::<()>().await;
        }
    }

    /// Runs work that keeps a processor busy, or blocks, on a thread where it holds up no event. What it sends is caused
    /// by the event being handled.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Panicked`] when the work panics, [`ErrorKind::Cancelled`] when the runtime stops before it ran.
    pub async fn offload<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Result<R> {
        let (to, from) = tokio::sync::oneshot::channel();
        let context = self.beside();
        self.0.node().space.env.spawn_blocking(Box::new(move || {
            let work = std::panic::AssertUnwindSafe(|| current::enter(&context, work));
            let result = std::panic::catch_unwind(work);
            drop(context);
            // The flow may have been cancelled meanwhile; then nobody wants the result.
            drop(to.send(result));
        }));
        match from.await {
            Ok(result) => result.map_err(|panic| Error::panicked(&*panic)),
            Err(_) => Err(Error::new(ErrorKind::Cancelled)),
        }
    }

    /// Which run of the handler this is under [`retry`](crate::wrap::retry): 1 at first.
    ///
    /// It belongs to the wrapped handler; the steps that follow it are at their first attempt.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.1.as_ref().map_or(1, |attempt| attempt.number)
    }

    /// The error that led here: of the attempt before under [`retry`](crate::wrap::retry), of the handler this one
    /// stands in for under [`fallback`](crate::wrap::fallback); `None` otherwise.
    #[must_use]
    pub fn last_error(&self) -> Option<&Error> {
        self.1.as_ref()?.error.as_ref()
    }

    /// Asks this flow to stop at its next wait. It ends with [`ErrorKind::Cancelled`].
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Whether this flow was asked to stop, for loops that do not wait.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// The time left until the sender stops waiting; `None` when there is no deadline.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        let deadline = self.0.envelope().deadline_unix_ms;
        let now = self.0.node().space.now_unix_ms();
        (deadline != 0).then(|| Duration::from_millis(deadline.saturating_sub(now)))
    }
}

/// A value that an earlier step kept, as the store has it.
pub(crate) struct Encoded(pub(crate) Bytes);

/// A future that a flow waits for: it gives the place of whichever flow polls it to others meanwhile.
pub(crate) struct Yielding<F> {
    future: F,
    given: Option<Weak<Place>>,
}

impl<F: Future + Unpin> Yielding<F> {
    pub(crate) const fn new(future: F) -> Self {
        Self { future, given: None }
    }
}

impl<F> Yielding<F> {
    fn take_back(&mut self) {
        if let Some(place) = self.given.take().and_then(|place| place.upgrade()) {
            place.retake();
        }
    }
}

impl<F: Future + Unpin> Future for Yielding<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<F::Output> {
        let polled = Pin::new(&mut self.future).poll(task);
        if polled.is_ready() {
            self.take_back();
        } else if let Some(place) = local::current_place() {
            // A flow has a place of its own from its first wait on; until then there is none to give.
            place.release();
            self.given = Some(Arc::downgrade(&place));
        }
        polled
    }
}

impl<F> Drop for Yielding<F> {
    fn drop(&mut self) {
        self.take_back();
    }
}

#[cold]
fn nothing_kept(name: &str) -> Error {
    Error::misuse(format!("no step of this flow kept a value named `{name}`; use `cx.put` first"))
}

#[cold]
fn other_type<T>(name: &str) -> Error {
    let wanted = std::any::type_name::<T>();
    Error::misuse(format!("the value named `{name}` was kept as another type than `{wanted}`"))
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
