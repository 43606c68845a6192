//! Handlers made of handlers: [`retry`], [`timeout`], [`fallback`], [`breaker`], [`bulkhead`], [`validate`], [`tap`],
//! [`conditional`], [`sequence`] and [`parallel`]. Owns how a handler is run inside another one; does not know how
//! events reach either.
//!
//! Each takes any handler and gives a handler, so they nest, and each reads from the outside in:
//!
//! ```
//! use happen::wrap::{fallback, parallel, retry, timeout};
//! use happen::{Context, Event, Space, millis, secs};
//!
//! #[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
//! #[event("quote")]
//! struct Quote { item: String }
//!
//! async fn price(_: Event<Quote>, cx: Context) -> happen::Result<u64> {
//!     if cx.attempt() == 1 {
//!         return Err(happen::Error::msg("the price list is being written"));
//!     }
//!     Ok(250)
//! }
//!
//! async fn stock(_: Event<Quote>, cx: Context) -> u64 {
//!     cx.sleep(secs(60)).await;
//!     12
//! }
//!
//! fn unknown(_: &Event<Quote>, cx: &Context) -> u64 {
//!     assert_eq!(cx.last_error().unwrap().code(), "timed-out");
//!     0
//! }
//!
//! async fn answer((cents, pieces): (u64, u64), quote: Event<Quote>, _: Context) -> String {
//!     format!("{}: {cents} cents, {pieces} in stock", quote.item)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> happen::Result<()> {
//! let space = Space::memory();
//! let shop = space.node("shop");
//! shop.on(
//!     "quote",
//!     parallel((retry(3, price), fallback(timeout(millis(20), stock), unknown)), answer),
//! );
//! space.start().await?;
//! let text = space.send(&shop, Quote { item: "lamp".into() }).reply::<String>().await?;
//! assert_eq!(*text, "lamp: 250 cents, 0 in stock");
//! # Ok(())
//! # }
//! ```
//!
//! What holds for all of them:
//!
//! - A wrapper covers the function it wraps, not the steps that follow: when `charge` returns `next(pay)`, then
//!   `retry(3, charge)` tries `charge` again and never `pay`. What is to be tried again there is `next(retry(3, pay))`.
//! - What the wrapped function returns passes through unchanged; `again()` runs the wrapper anew.
//! - A panic of the wrapped function is its failure, as for any handler.
//! - A wrapper has the name of the function it wraps, of the first one when there are several, so traces and `goto`
//!   speak of the user's functions; each further function it runs is a step of the trace.
//! - Time and chance come from the space's environment, so a simulator repeats all of it exactly.

mod breaker;
mod bulkhead;
mod conditional;
mod fallback;
mod parallel;
mod retry;
mod sequence;
mod tap;
mod timeout;
mod validate;

use happen_core::IntoStep;
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use happen_core::function::{Outcome, Started};
use happen_core::pool::StepFuture;
use happen_core::step::Kind;
use happen_core::{ErasedEvent, Error, Event, Function, Payload, Result, Step};

use crate::context::Context;
use crate::handler::{Argument, Handler, foreign_context};

pub use breaker::{Breaker, BreakerState, breaker};
pub use bulkhead::{Bulkhead, bulkhead};
pub use conditional::conditional;
pub use fallback::fallback;
pub use parallel::{Parts, SettledParts, parallel, parallel_settled};
pub use retry::{Backoff, retry};
pub use sequence::sequence;
pub use tap::tap;
pub use timeout::timeout;
pub use validate::validate;

/// A handler made of others, by the functions of [`wrap`](crate::wrap).
pub struct Wrapped(Box<dyn Function>);

/// Marks handlers that are functions without their types already.
#[derive(Debug)]
pub struct Erased(());

#[diagnostic::do_not_recommend]
impl Handler<Erased> for Wrapped {
    type Argument = Event;
    type Output = ();
    type Future = ();

    fn into_function(self) -> Box<dyn Function> {
        self.0
    }
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wrapped {}", self.0.type_name())
    }
}

/// What a user's rule says of an error.
type Judge = Arc<dyn Fn(&Error) -> bool + Send + Sync>;

/// A handler without its types, to be shared by the futures that run it.
fn erase<H, M>(handler: H) -> Arc<dyn Function>
where
    H: Handler<M>,
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send,
{
    handler.into_function().into()
}

/// What a wrapper does with an event. The rest of a [`Function`] follows from what it wraps.
trait Wrap: Send + Sync + 'static {
    /// The function whose name the wrapper has.
    fn named(&self) -> &Arc<dyn Function>;

    /// Every function it may run.
    fn each(&self, look: &mut dyn FnMut(&dyn Function)) {
        look(&**self.named());
    }

    /// Whether it may wait by itself, with functions that do not.
    fn waits(&self) -> bool {
        false
    }

    fn run(&self, event: &dyn ErasedEvent, context: &Context) -> Running;
}

struct Wrapper<W>(W);

fn wrapped(wrap: impl Wrap) -> Wrapped {
    Wrapped(Box::new(Wrapper(wrap)))
}

impl<W: Wrap> Function for Wrapper<W> {
    fn start(&self, event: &dyn ErasedEvent, context: &dyn Any, outcome: &mut Outcome) -> Started {
        let Some(context) = context.downcast_ref::<Context>() else { return foreign_context(outcome) };
        match self.0.run(event, context) {
            Running::Ended(step) => Started::ended(step, outcome),
            Running::Future(Caught(future)) => Started::Future(future),
        }
    }

    fn identity(&self) -> std::any::TypeId {
        self.0.named().identity()
    }

    fn type_name(&self) -> &'static str {
        self.0.named().type_name()
    }

    fn takes_batch(&self) -> bool {
        // One that takes single events would be handed the first of a batch only.
        let mut all = true;
        self.0.each(&mut |function| all &= function.takes_batch());
        all
    }

    fn is_plain(&self) -> bool {
        let mut all = !self.0.waits();
        self.0.each(&mut |function| all &= function.is_plain());
        all
    }

    fn payload_name(&self) -> Option<&'static str> {
        self.0.named().payload_name()
    }
}

/// Starts a function; its panic is its failure.
fn start(function: &dyn Function, event: &dyn ErasedEvent, context: &Context) -> Running {
    let mut outcome = Ok(None);
    let started = catch_unwind(AssertUnwindSafe(|| function.start(event, context, &mut outcome)));
    match started {
        Ok(Started::Ended) => Running::Ended(match outcome {
            Ok(Some(value)) => Ok(Step::new(Kind::Done(value))),
            Ok(None) => Ok(Step::new(Kind::End)),
            Err(error) => Err(error),
        }),
        Ok(Started::Goes(step)) => Running::Ended(Ok(step)),
        Ok(Started::Future(future)) => Running::Future(Caught(future)),
        Ok(_) => Running::Ended(Err(Error::misuse("a function started in a way this runtime does not know"))),
        Err(panic) => Running::Ended(Err(Error::panicked(&*panic))),
    }
}

/// Starts a further function of a wrapper, which becomes a step of the trace.
fn go_on(function: &dyn Function, event: &dyn ErasedEvent, context: &Context) -> Running {
    let flow = context.inner();
    flow.node().space.note_step(flow, function);
    start(function, event, context)
}

/// A function that has ended, or that goes on.
enum Running {
    Ended(Result<Step>),
    Future(Caught),
}

impl Running {
    async fn end(self) -> Result<Step> {
        match self {
            Self::Ended(result) => result,
            Self::Future(future) => future.await,
        }
    }
}

/// A future whose panic is its failure.
struct Caught(StepFuture);

impl Future for Caught {
    type Output = Result<Step>;

    fn poll(mut self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<Result<Step>> {
        catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.0).poll(task)))
            .unwrap_or_else(|panic| Poll::Ready(Err(Error::panicked(&*panic))))
    }
}

/// The rest of a wrapper's run, as a future.
fn later(future: impl Future<Output = Result<Step>> + Send + 'static) -> Running {
    Running::Future(Caught(StepFuture::new(future)))
}

/// Looks at an event of some payload; of a batch, at each in turn until a look gives something.
fn look<T: Payload, R>(
    event: &dyn ErasedEvent,
    mut look: impl FnMut(&Event<T>) -> Option<R>,
) -> Result<Option<R>> {
    for index in 0..event.len() {
        let Some(single) = event.single(index) else { continue };
        let found = match single.as_any().downcast_ref::<Event<T>>() {
            Some(same) => look(same),
            None => look(&Event::<T>::own(single)?),
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
