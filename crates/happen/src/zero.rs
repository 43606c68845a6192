//! Handlers that read an event's bytes in place and allocate nothing. Owns the public type [`RawEvent`] and the
//! registration with [`Node::zero`]; how the bytes are laid out is `happen_core::raw`'s business, where they stand is
//! `encoded.rs`'s.

use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use happen_core::downcast::downcast_ref;
use happen_core::function::{Function, Outcome, Started};
use happen_core::payload;
use happen_core::raw::RawPayload;
use happen_core::{
    Envelope, ErasedEvent, Error, ErrorKind, Event, EventId, IntoPattern, IntoStep, Payload, Result, Step,
};

use crate::context::Context;
use crate::encoded;
use crate::handler::{Handler, Named, Renamed, With, WithDependency, foreign_context, whole_batch};
use crate::node::{Node, Registration};

/// An event whose payload is read in place: its bytes are borrowed, its fields are found by path. Reads like a
/// [`RawPayload`].
///
/// The payload is a MessagePack map with the names of its fields, whatever it was sent as: a typed payload and JSON are
/// encoded first, into memory that is used again, and once for all handlers that one broadcast reaches on a thread; a
/// payload that came as bytes is read where it is. The crate's page on the memory layout is `docs/zero.md`.
///
/// A field that is not there, has another type or stands in bytes that are no MessagePack answers `None`;
/// [`RawEvent::check`] tells the last case apart.
#[derive(Clone, Copy)]
pub struct RawEvent<'e> {
    payload: RawPayload<'e>,
    envelope: &'e Envelope,
    context: &'e Context,
}

/// Marks handlers that read in place.
pub struct Zero<R>(PhantomData<fn() -> R>);

impl<'e> RawEvent<'e> {
    /// The payload's bytes with their accessors.
    #[must_use]
    pub const fn payload(&self) -> RawPayload<'e> {
        self.payload
    }

    /// The whole envelope.
    #[must_use]
    pub const fn envelope(&self) -> &'e Envelope {
        self.envelope
    }

    /// The flow's surroundings: its node, its values, and the ways to send.
    #[must_use]
    pub const fn context(&self) -> &'e Context {
        self.context
    }

    /// The event's id.
    #[must_use]
    pub const fn id(&self) -> EventId {
        self.envelope.id
    }

    /// The event's type.
    #[must_use]
    pub fn event_type(&self) -> &'e str {
        self.envelope.event_type.as_str()
    }

    /// The first event that caused it; `None` for a root.
    #[must_use]
    pub const fn causation_id(&self) -> Option<EventId> {
        self.envelope.cause
    }

    /// All events that caused it.
    pub fn causes(&self) -> impl Iterator<Item = EventId> {
        self.envelope.causes()
    }

    /// Checks all bytes of the payload: for events that come from outside.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] when they are not exactly one well-formed MessagePack value.
    pub fn check(&self) -> Result<()> {
        RawPayload::check(self.payload.as_bytes()).map(drop).map_err(|error| {
            let wanted = self.event_type().to_owned();
            Error::new(ErrorKind::Undecodable { wanted }).with_source(error).at_event(self.id())
        })
    }

    /// The payload as a type, by copying.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] when its shape does not fit.
    pub fn decode<T: Payload>(&self) -> Result<T> {
        payload::decode(self.payload.as_bytes()).map_err(|error| error.at_event(self.id()))
    }
}

impl<'e> Deref for RawEvent<'e> {
    type Target = RawPayload<'e>;

    #[inline]
    fn deref(&self) -> &RawPayload<'e> {
        &self.payload
    }
}

impl fmt::Debug for RawEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.envelope.event_type, self.envelope.id, self.payload)
    }
}

impl<R> fmt::Debug for Zero<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Zero")
    }
}

impl Node {
    /// Registers a handler that reads events in place: it borrows the bytes and finds fields by path.
    ///
    /// The handler is a plain function or closure `Fn(RawEvent<'_>) -> R`; it may capture, and it runs on the sender's
    /// thread. `R` is what any handler returns. It gets the events of a batch one by one. Such a function is a
    /// [`Handler`] too: ordinary steps go on with it by `next(read)`, and it goes on with ordinary steps by
    /// `next(store)`.
    ///
    /// # Errors
    ///
    /// A payload that its `Serialize` refuses to encode fails the flow with [`ErrorKind::Unencodable`].
    ///
    /// # Cost
    ///
    /// No allocation once the thread has handled a few events, for payloads of up to
    /// [`ENCODED_BUFFER_BYTES_MAX`](crate::limits::ENCODED_BUFFER_BYTES_MAX) whose `Serialize` allocates nothing. The
    /// counts are asserted in `tests/allocations.rs`.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{RawEvent, Space};
    ///
    /// #[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
    /// #[event("sensor.read")]
    /// struct Reading { id: u32, celsius: f64 }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = Space::memory();
    /// let alarm = space.node("alarm");
    /// alarm.zero("sensor.*", |event: RawEvent<'_>| event.f64("celsius").is_some_and(|celsius| celsius > 80.0));
    /// space.start().await?;
    /// let hot = space.send(&alarm, Reading { id: 7, celsius: 93.5 }).reply::<bool>().await?;
    /// assert!(*hot);
    /// # Ok(())
    /// # }
    /// ```
    pub fn zero<P, PM, F, R>(&self, pattern: P, handler: F) -> Registration
    where
        P: IntoPattern<PM>,
        F: Fn(RawEvent<'_>) -> R + Send + Sync + 'static,
        R: IntoStep + 'static,
    {
        self.register(
            pattern.into_pattern().map_err(Error::from),
            Box::new(ZeroFunction::new(handler)) as Box<dyn Function>,
        )
    }
}

#[diagnostic::do_not_recommend]
impl<F, R> Handler<Zero<R>> for F
where
    F: Fn(RawEvent<'_>) -> R + Send + Sync + 'static,
    R: 'static,
{
    type Argument = Event;
    type Output = R;
    type Future = ();

    fn into_function(self) -> Box<dyn Function>
    where
        R: IntoStep,
    {
        Box::new(ZeroFunction::new(self))
    }
}

#[diagnostic::do_not_recommend]
impl<D, F, R> Handler<WithDependency<D, Zero<R>>> for With<D, F>
where
    D: Clone + Send + Sync + 'static,
    F: Fn(D, RawEvent<'_>) -> R + Send + Sync + 'static,
    R: 'static,
{
    type Argument = Event;
    type Output = R;
    type Future = ();

    fn into_function(self) -> Box<dyn Function>
    where
        R: IntoStep,
    {
        let Self { dependency, function } = self;
        let named = Named::<F>::of(&function);
        let call = move |event: RawEvent<'_>| function(dependency.clone(), event);
        Box::new(Renamed { function: ZeroFunction::new(call), named })
    }
}

struct ZeroFunction<F, R> {
    function: F,
    kind: PhantomData<Zero<R>>,
}

impl<F, R> ZeroFunction<F, R>
where
    F: Fn(RawEvent<'_>) -> R + Send + Sync + 'static,
    R: IntoStep + 'static,
{
    fn new(function: F) -> Self {
        Self { function, kind: PhantomData }
    }

    fn call(&self, event: &dyn ErasedEvent, context: &Context) -> Result<Step> {
        if event.is_batch() {
            return Err(whole_batch(event));
        }
        encoded::with_bytes(event, |bytes| {
            let payload = RawPayload::new(bytes);
            (self.function)(RawEvent { payload, envelope: event.envelope(), context }).into_step()
        })?
    }
}

impl<F, R> Function for ZeroFunction<F, R>
where
    F: Fn(RawEvent<'_>) -> R + Send + Sync + 'static,
    R: IntoStep + 'static,
{
    #[inline]
    fn start(&self, event: &dyn ErasedEvent, context: &dyn Any, outcome: &mut Outcome) -> Started {
        let Some(context) = downcast_ref::<Context>(context) else { return foreign_context(outcome) };
        Started::ended(self.call(event, context), outcome)
    }

    fn identity(&self) -> TypeId {
        TypeId::of::<F>()
    }

    fn type_name(&self) -> &'static str {
        type_name::<F>()
    }

    fn is_plain(&self) -> bool {
        true
    }

    fn reads_bytes(&self) -> bool {
        true
    }

    fn payload_name(&self) -> Option<&'static str> {
        None
    }
}
