//! What may handle events, and how it loses its types. Owns the trait [`Handler`] and its kinds: plain functions that
//! borrow, `async fn` that own, and either with dependencies.

use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;

use happen_core::downcast::downcast_ref;
use happen_core::function::{Function, Outcome, Started};
use happen_core::pool::StepFuture;
use happen_core::{Batch, ErasedEvent, Error, ErrorKind, Event, IntoStep, Payload, Result};

use crate::context::Context;

/// What a handler takes first: an [`Event`] of some payload, or a [`Batch`] of them.
#[diagnostic::on_unimplemented(
    message = "a handler cannot take `{Self}`",
    label = "neither `Event<T>` nor `Batch<T>`",
    note = "the first argument is `Event<T>` (or `&Event<T>` in a plain function), where `T` derives `happen::Event`"
)]
pub trait Argument: Sized + Send + Sync + 'static {
    #[doc(hidden)]
    const BATCH: bool;

    #[doc(hidden)]
    fn payload_name() -> Option<&'static str>;

    #[doc(hidden)]
    fn own(event: &dyn ErasedEvent) -> Result<Self>;
}

/// A function that handles events.
///
/// Two kinds implement it, always with these two arguments: plain functions and closures `Fn(&Event<T>, &Context)`,
/// which run on the caller's stack, and asynchronous ones `Fn(Event<T>, Context)`, which may wait. What they return is
/// any [`IntoStep`]. [`with`] adds a dependency in front. The marker `M` tells the kinds apart and is inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "not a handler",
    note = "an asynchronous handler is `async fn(Event<T>, Context) -> R`: two arguments, both by value",
    note = "a plain handler is `fn(&Event<T>, &Context) -> R`: two arguments, both by reference, and not `async`",
    note = "whatever else it needs is its first argument, handed to it by `happen::with(dependency, handler)`",
    note = "a closure needs the types of its arguments written out"
)]
pub trait Handler<M>: Send + Sync + 'static {
    /// What it takes first.
    type Argument;
    /// What it returns, in the end.
    type Output;
    /// What calling it gives: a future for the asynchronous kind.
    type Future;

    #[doc(hidden)]
    fn into_function(self) -> Box<dyn Function>
    where
        Self::Argument: Argument,
        Self::Output: IntoStep,
        Self::Future: Send;
}

/// Marks plain handlers.
pub struct Plain<A, R>(PhantomData<fn(A) -> R>);
/// Marks asynchronous handlers.
pub struct Asynchronous<A, F>(PhantomData<fn(A) -> F>);
/// Marks handlers with a dependency.
pub struct WithDependency<D, M>(PhantomData<fn(D) -> M>);

/// A handler and the dependency it is given; made by [`with`].
#[derive(Clone)]
pub struct With<D, F> {
    pub(crate) dependency: D,
    pub(crate) function: F,
}

/// Gives a handler a dependency as its first argument: a clone for every event.
///
/// An async closure that captures cannot be called twice, so what a handler needs is handed to it. Several
/// dependencies are a tuple.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use happen::{Context, Event, Space, with};
///
/// #[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
/// #[event("refund")]
/// struct Refund { cents: u64 }
///
/// async fn refund(total: Arc<AtomicU64>, refund: Event<Refund>, _: Context) {
///     total.fetch_add(refund.cents, Ordering::Relaxed);
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let total = Arc::new(AtomicU64::new(0));
/// let space = Space::memory();
/// let desk = space.node("desk");
/// desk.on("refund", with(total.clone(), refund));
/// space.start().await?;
/// space.send(&desk, Refund { cents: 250 }).await?;
/// assert_eq!(total.load(Ordering::Relaxed), 250);
/// # Ok(())
/// # }
/// ```
pub fn with<D, F>(dependency: D, function: F) -> With<D, F> {
    With { dependency, function }
}

impl<T: Payload> Argument for Event<T> {
    const BATCH: bool = false;

    fn payload_name() -> Option<&'static str> {
        payload_name::<T>()
    }

    #[inline]
    fn own(event: &dyn ErasedEvent) -> Result<Self> {
        if let Some(same) = downcast_ref::<Self>(event.as_any()) {
            return Ok(same.clone());
        }
        convert(event)
    }
}

impl<T: Payload> Argument for Batch<T> {
    const BATCH: bool = true;

    fn payload_name() -> Option<&'static str> {
        payload_name::<T>()
    }

    fn own(event: &dyn ErasedEvent) -> Result<Self> {
        if let Some(same) = downcast_ref::<Self>(event.as_any()) {
            return Ok(same.clone());
        }
        let singles = (0..event.len()).filter_map(|index| event.single(index));
        let events = singles.map(Event::<T>::own).collect::<Result<Vec<_>>>()?;
        Self::new(events).ok_or_else(|| Error::misuse("a batch without events"))
    }
}

fn payload_name<T: Payload>() -> Option<&'static str> {
    (TypeId::of::<T>() != TypeId::of::<happen_core::Dynamic>()).then_some(T::TYPE.as_str())
}

/// The event with its payload as another Rust type: the pattern chose the event, the type says what shape it has.
#[cold]
fn convert<T: Payload>(event: &dyn ErasedEvent) -> Result<Event<T>> {
    let envelope = event.envelope();
    if event.is_batch() {
        return Err(whole_batch(event));
    }
    let payload = T::from_erased(event.payload()).map_err(|error| {
        let wanted = T::TYPE.as_str().to_owned();
        let found = envelope.event_type.as_str().to_owned();
        let kind = if wanted == found {
            ErrorKind::Undecodable { wanted }
        } else {
            ErrorKind::WrongPayload { wanted, found }
        };
        Error::new(kind).with_source(error.into_std()).at_event(envelope.id)
    })?;
    Ok(Event::from_parts(envelope.clone(), payload))
}

impl<F, A, R> Handler<Plain<A, R>> for F
where
    F: Fn(&A, &Context) -> R + Send + Sync + 'static,
    R: 'static,
{
    type Argument = A;
    type Output = R;
    type Future = ();

    fn into_function(self) -> Box<dyn Function>
    where
        A: Argument,
        R: IntoStep,
    {
        Box::new(PlainFunction { function: self, kind: PhantomData::<Plain<A, R>> })
    }
}

impl<F, A, Fut> Handler<Asynchronous<A, Fut>> for F
where
    F: Fn(A, Context) -> Fut + Send + Sync + 'static,
    Fut: Future + 'static,
{
    type Argument = A;
    type Output = Fut::Output;
    type Future = Fut;

    fn into_function(self) -> Box<dyn Function>
    where
        A: Argument,
        Fut::Output: IntoStep,
        Fut: Send,
    {
        Box::new(AsyncFunction { function: self, kind: PhantomData::<Asynchronous<A, Fut>> })
    }
}

#[diagnostic::do_not_recommend]
impl<D, F, A, R> Handler<WithDependency<D, Plain<A, R>>> for With<D, F>
where
    D: Clone + Send + Sync + 'static,
    F: Fn(D, &A, &Context) -> R + Send + Sync + 'static,
    R: 'static,
{
    type Argument = A;
    type Output = R;
    type Future = ();

    fn into_function(self) -> Box<dyn Function>
    where
        A: Argument,
        R: IntoStep,
    {
        let Self { dependency, function } = self;
        let named = Named::<F>::of(&function);
        let call = move |event: &A, context: &Context| function(dependency.clone(), event, context);
        Box::new(Renamed {
            function: PlainFunction { function: call, kind: PhantomData::<Plain<A, R>> },
            named,
        })
    }
}

#[diagnostic::do_not_recommend]
impl<D, F, A, Fut> Handler<WithDependency<D, Asynchronous<A, Fut>>> for With<D, F>
where
    D: Clone + Send + Sync + 'static,
    F: Fn(D, A, Context) -> Fut + Send + Sync + 'static,
    Fut: Future + 'static,
{
    type Argument = A;
    type Output = Fut::Output;
    type Future = Fut;

    fn into_function(self) -> Box<dyn Function>
    where
        A: Argument,
        Fut::Output: IntoStep,
        Fut: Send,
    {
        let Self { dependency, function } = self;
        let named = Named::<F>::of(&function);
        let call = move |event: A, context: Context| function(dependency.clone(), event, context);
        Box::new(Renamed {
            function: AsyncFunction { function: call, kind: PhantomData::<Asynchronous<A, Fut>> },
            named,
        })
    }
}

struct PlainFunction<F, M> {
    function: F,
    kind: PhantomData<M>,
}

impl<F, A, R> Function for PlainFunction<F, Plain<A, R>>
where
    F: Fn(&A, &Context) -> R + Send + Sync + 'static,
    A: Argument,
    R: IntoStep + 'static,
{
    #[inline]
    fn start(&self, event: &dyn ErasedEvent, context: &dyn Any, outcome: &mut Outcome) -> Started {
        let Some(context) = downcast_ref::<Context>(context) else { return foreign_context(outcome) };
        if let Some(event) = downcast_ref::<A>(event.as_any()) {
            return Started::ended((self.function)(event, context).into_step(), outcome);
        }
        let step = A::own(event).and_then(|event| (self.function)(&event, context).into_step());
        Started::ended(step, outcome)
    }

    fn identity(&self) -> TypeId {
        TypeId::of::<F>()
    }

    fn type_name(&self) -> &'static str {
        type_name::<F>()
    }

    fn takes_batch(&self) -> bool {
        A::BATCH
    }

    fn is_plain(&self) -> bool {
        true
    }

    fn payload_name(&self) -> Option<&'static str> {
        A::payload_name()
    }
}

struct AsyncFunction<F, M> {
    function: F,
    kind: PhantomData<M>,
}

impl<F, A, Fut> Function for AsyncFunction<F, Asynchronous<A, Fut>>
where
    F: Fn(A, Context) -> Fut + Send + Sync + 'static,
    A: Argument,
    Fut: Future<Output: IntoStep> + Send + 'static,
{
    #[inline]
    fn start(&self, event: &dyn ErasedEvent, context: &dyn Any, outcome: &mut Outcome) -> Started {
        let Some(context) = downcast_ref::<Context>(context) else { return foreign_context(outcome) };
        match A::own(event) {
            Ok(event) => Started::Future(StepFuture::new((self.function)(event, context.clone()))),
            Err(error) => Started::ended(Err(error), outcome),
        }
    }

    fn identity(&self) -> TypeId {
        TypeId::of::<F>()
    }

    fn type_name(&self) -> &'static str {
        type_name::<F>()
    }

    fn takes_batch(&self) -> bool {
        A::BATCH
    }

    fn is_plain(&self) -> bool {
        false
    }

    fn payload_name(&self) -> Option<&'static str> {
        A::payload_name()
    }
}

/// The name and identity of a function that was wrapped to be given a dependency.
pub(crate) struct Named<F>(PhantomData<fn() -> F>);

impl<F> Named<F> {
    pub(crate) fn of(_: &F) -> Self {
        Self(PhantomData)
    }
}

pub(crate) struct Renamed<G, F> {
    pub(crate) function: G,
    pub(crate) named: Named<F>,
}

impl<G: Function, F: 'static> Function for Renamed<G, F> {
    fn start(&self, event: &dyn ErasedEvent, context: &dyn Any, outcome: &mut Outcome) -> Started {
        self.function.start(event, context, outcome)
    }

    fn identity(&self) -> TypeId {
        fn identity_of<F: 'static>(_: &Named<F>) -> TypeId {
            TypeId::of::<F>()
        }
        identity_of(&self.named)
    }

    fn type_name(&self) -> &'static str {
        type_name::<F>()
    }

    fn takes_batch(&self) -> bool {
        self.function.takes_batch()
    }

    fn is_plain(&self) -> bool {
        self.function.is_plain()
    }

    fn reads_bytes(&self) -> bool {
        self.function.reads_bytes()
    }

    fn payload_name(&self) -> Option<&'static str> {
        self.function.payload_name()
    }
}

/// The first event would do for the types, and the others would be lost.
#[cold]
pub(crate) fn whole_batch(event: &dyn ErasedEvent) -> Error {
    let events = event.len();
    Error::misuse(format!(
        "a step that takes a batch went on with a function that takes one event, and there are {events}; let that \
         function take a `Batch`, or register it itself to get the events one by one"
    ))
    .at_event(event.envelope().id)
}

#[cold]
pub(crate) fn foreign_context(outcome: &mut Outcome) -> Started {
    let error = Error::misuse("a function of this crate was started with another runtime's context");
    Started::ended(Err(error), outcome)
}

impl<D, F> fmt::Debug for With<D, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "with({}, {})", type_name::<D>(), type_name::<F>())
    }
}

macro_rules! debug_marker {
    ($($name:ident<$($parameter:ident),+>),+) => {
        $(impl<$($parameter),+> fmt::Debug for $name<$($parameter),+> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        })+
    };
}

debug_marker!(Plain<A, R>, Asynchronous<A, F>, WithDependency<D, M>);
