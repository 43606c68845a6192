//! `parallel`: several handlers at once for one event, and a function that gets all they gave. Owns what becomes of
//! parts that fail.
//!
//! The smallest program that needs it asks two services and answers with both:
//!
//! ```text
//! async fn stock(order: Event<Order>, cx: Context) -> Result<u64>
//! async fn price(order: Event<Order>, cx: Context) -> Result<u64>
//! async fn answer((stock, price): (u64, u64), order: Event<Order>, cx: Context) -> Result<Step>
//!
//! node.on("order", parallel((stock, price), answer));
//! ```
//!
//! So the results arrive as what `with` and `next_with` give, the first argument, and the function that takes them is
//! an ordinary next step of the flow: it shows in traces, and what it does is not part of the parts.

use crate::handler::Argument;
use happen_core::IntoStep;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use happen_core::step::Kind;
use happen_core::{Answer, ErasedEvent, Error, Event, Function, Result, Step, Value};

use super::{Caught, Running, Wrap, Wrapped, erase, go_on, later, wrapped};
use crate::context::Context;
use crate::handler::{Handler, With, with};
use crate::limits;

/// Runs several handlers at once for one event and goes on with a function that gets their values, in the order of the
/// parts, as its first argument.
///
/// The parts are a tuple of up to eight handlers, or a vector of handlers of one kind whose values come as a vector.
/// Each value is read as the function says: a payload, `()` for none, or a `Result` of two payloads. The first part that
/// fails ends all: the others are dropped, and the flow fails with its error. Where each failure is to be seen, use
/// [`parallel_settled`].
///
/// All parts share the context of the flow. They run beside each other as far as they wait; a plain handler runs to its
/// end when its turn comes. A part gives a value or none; it cannot go on to a step of its own.
///
/// # Examples
///
/// ```
/// use happen::wrap::parallel;
/// use happen::{Context, Event, Space};
///
/// async fn stock(_: Event, _: Context) -> happen::Result<u64> { Ok(12) }
/// async fn price(_: Event, _: Context) -> happen::Result<u64> { Ok(250) }
/// fn answer((stock, price): (u64, u64), _: &Event, _: &Context) -> String {
///     format!("{stock} at {price}")
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let shop = space.node("shop");
/// shop.on("order", parallel((stock, price), answer));
/// space.start().await?;
/// let text = space.send(&shop, Event::new("order", ().into())).reply::<String>().await?;
/// assert_eq!(*text, "12 at 250");
/// # Ok(())
/// # }
/// ```
pub fn parallel<P, MP, R, H, M>(parts: P, then: H) -> Wrapped
where
    P: Parts<MP, R>,
    R: Clone + Send + Sync + 'static,
    H: Clone + Send + Sync + 'static,
    With<R, H>: Handler<M>,
    <With<R, H> as Handler<M>>::Argument: Argument,
    <With<R, H> as Handler<M>>::Output: IntoStep,
    <With<R, H> as Handler<M>>::Future: Send,
    M: 'static,
{
    let go_on = move |outcomes: Vec<Option<Outcome>>| {
        let values = outcomes.into_iter().flatten().collect::<Result<Vec<_>>>()?;
        Ok(next_with(P::read(values)?, then.clone()))
    };
    wrapped(Parallel::new(parts.erased(), Arc::new(go_on), Settles::First))
}

/// Runs several handlers at once for one event and goes on, when all have ended, with a function that gets what became
/// of each: a `Result<R, Arc<Error>>` for every part, in their order.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use happen::wrap::parallel_settled;
/// use happen::{Context, Error, Event, Space};
///
/// async fn stock(_: Event, _: Context) -> happen::Result<u64> { Ok(12) }
/// async fn price(_: Event, _: Context) -> happen::Result<u64> { Err(Error::msg("no list")) }
/// type Got = Result<u64, Arc<Error>>;
/// fn answer((stock, price): (Got, Got), _: &Event, _: &Context) -> String {
///     format!("{} at {}", stock.unwrap_or(0), price.map_or_else(|error| error.to_string(), |p| p.to_string()))
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let shop = space.node("shop");
/// shop.on("order", parallel_settled((stock, price), answer));
/// space.start().await?;
/// let text = space.send(&shop, Event::new("order", ().into())).reply::<String>().await?;
/// assert_eq!(*text, "12 at no list");
/// # Ok(())
/// # }
/// ```
pub fn parallel_settled<P, MP, R, H, M>(parts: P, then: H) -> Wrapped
where
    P: SettledParts<MP, R>,
    R: Clone + Send + Sync + 'static,
    H: Clone + Send + Sync + 'static,
    With<R, H>: Handler<M>,
    <With<R, H> as Handler<M>>::Argument: Argument,
    <With<R, H> as Handler<M>>::Output: IntoStep,
    <With<R, H> as Handler<M>>::Future: Send,
    M: 'static,
{
    let go_on = move |outcomes: Vec<Option<Outcome>>| {
        Ok(next_with(P::read(outcomes.into_iter().flatten().collect())?, then.clone()))
    };
    wrapped(Parallel::new(parts.erased(), Arc::new(go_on), Settles::All))
}

fn next_with<R, H, M>(results: R, then: H) -> Step
where
    With<R, H>: Handler<M>,
    <With<R, H> as Handler<M>>::Argument: Argument,
    <With<R, H> as Handler<M>>::Output: IntoStep,
    <With<R, H> as Handler<M>>::Future: Send,
{
    Step::new(Kind::Next(with(results, then).into_function()))
}

/// Handlers that [`parallel`] can run at once, for values of the types `R`.
#[diagnostic::on_unimplemented(
    message = "these parts do not give `{R}`",
    label = "not parts of that many values",
    note = "parts are a tuple of up to eight handlers, and the function takes a tuple of as many values; or a vector \
            of handlers, and the function takes a vector of values"
)]
pub trait Parts<M, R> {
    #[doc(hidden)]
    fn erased(self) -> Vec<Arc<dyn Function>>;

    #[doc(hidden)]
    fn read(values: Vec<Option<Value>>) -> Result<R>;
}

/// Handlers that [`parallel_settled`] can run at once, for results of the types `R`.
#[diagnostic::on_unimplemented(
    message = "these parts do not give `{R}`",
    label = "not parts of that many results",
    note = "parts are a tuple of up to eight handlers, and the function takes a tuple of as many \
            `Result<T, Arc<happen::Error>>`; or a vector of each"
)]
pub trait SettledParts<M, R> {
    #[doc(hidden)]
    fn erased(self) -> Vec<Arc<dyn Function>>;

    #[doc(hidden)]
    fn read(outcomes: Vec<Result<Option<Value>>>) -> Result<R>;
}

macro_rules! tuples {
    ($($handler:ident $marker:ident $result:ident),+) => {
        impl<$($handler, $marker, $result),+> Parts<($($marker,)+), ($($result,)+)> for ($($handler,)+)
        where
            $($handler: Handler<$marker>, $handler::Argument: Argument, $handler::Output: IntoStep,
            $handler::Future: Send, $result: Answer,)+
        {
            fn erased(self) -> Vec<Arc<dyn Function>> {
                #[expect(non_snake_case, reason = "the names of the types serve for the values as well")]
                let ($($handler,)+) = self;
                vec![$(erase($handler)),+]
            }

            fn read(values: Vec<Option<Value>>) -> Result<($($result,)+)> {
                let mut values = values.into_iter();
                Ok(($($result::from_reply(values.next().flatten())?,)+))
            }
        }

        impl<$($handler, $marker, $result),+>
            SettledParts<($($marker,)+), ($(Result<$result, Arc<Error>>,)+)> for ($($handler,)+)
        where
            $($handler: Handler<$marker>, $handler::Argument: Argument, $handler::Output: IntoStep,
            $handler::Future: Send, $result: Answer,)+
        {
            fn erased(self) -> Vec<Arc<dyn Function>> {
                <Self as Parts<($($marker,)+), ($($result,)+)>>::erased(self)
            }

            fn read(outcomes: Vec<Outcome>) -> Result<($(Result<$result, Arc<Error>>,)+)> {
                let mut outcomes = outcomes.into_iter();
                Ok(($(settled::<$result>(outcomes.next()),)+))
            }
        }
    };
}

fn settled<R: Answer>(outcome: Option<Outcome>) -> Result<R, Arc<Error>> {
    outcome.unwrap_or(Ok(None)).and_then(R::from_reply).map_err(Arc::new)
}

tuples!(A MA RA);
tuples!(A MA RA, B MB RB);
tuples!(A MA RA, B MB RB, C MC RC);
tuples!(A MA RA, B MB RB, C MC RC, D MD RD);
tuples!(A MA RA, B MB RB, C MC RC, D MD RD, E ME RE);
tuples!(A MA RA, B MB RB, C MC RC, D MD RD, E ME RE, F MF RF);
tuples!(A MA RA, B MB RB, C MC RC, D MD RD, E ME RE, F MF RF, G MG RG);
tuples!(A MA RA, B MB RB, C MC RC, D MD RD, E ME RE, F MF RF, G MG RG, H MH RH);

impl<H, M, R> Parts<M, Vec<R>> for Vec<H>
where
    H: Handler<M>,
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send,
    R: Answer,
{
    fn erased(self) -> Vec<Arc<dyn Function>> {
        self.into_iter().map(erase).collect()
    }

    fn read(values: Vec<Option<Value>>) -> Result<Vec<R>> {
        values.into_iter().map(R::from_reply).collect()
    }
}

impl<H, M, R> SettledParts<M, Vec<Result<R, Arc<Error>>>> for Vec<H>
where
    H: Handler<M>,
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send,
    R: Answer,
{
    fn erased(self) -> Vec<Arc<dyn Function>> {
        self.into_iter().map(erase).collect()
    }

    fn read(outcomes: Vec<Outcome>) -> Result<Vec<Result<R, Arc<Error>>>> {
        Ok(outcomes.into_iter().map(|outcome| settled(Some(outcome))).collect())
    }
}

/// What a part gave.
type Outcome = Result<Option<Value>>;

type Then = Arc<dyn Fn(Vec<Option<Outcome>>) -> Result<Step> + Send + Sync>;

struct Parallel {
    named: Arc<dyn Function>,
    parts: Vec<Arc<dyn Function>>,
    then: Then,
    settles: Settles,
}

impl Parallel {
    fn new(parts: Vec<Arc<dyn Function>>, then: Then, settles: Settles) -> Self {
        let named = parts.first().cloned().unwrap_or_else(|| erase(no_parts));
        Self { named, parts, then, settles }
    }
}

/// What a vector without any parts is named after.
fn no_parts(_: &Event, _: &Context) {}

/// When the parts are over.
#[derive(Clone, Copy, PartialEq)]
enum Settles {
    /// At the first failure.
    First,
    /// When all have ended.
    All,
}

impl Wrap for Parallel {
    fn named(&self) -> &Arc<dyn Function> {
        &self.named
    }

    fn each(&self, look: &mut dyn FnMut(&dyn Function)) {
        self.parts.iter().for_each(|part| look(&**part));
    }

    fn run(&self, event: &dyn ErasedEvent, context: &Context) -> Running {
        if self.parts.len() > limits::PARALLEL_PARTS_MAX {
            let most = limits::PARALLEL_PARTS_MAX;
            let error = Error::misuse(format!("`parallel` runs at most {most} parts; send to nodes instead"));
            return Running::Ended(Err(error));
        }
        let mut parts = Vec::with_capacity(self.parts.len());
        let mut waits = false;
        for part in &self.parts {
            let part = match go_on(&**part, event, context) {
                Running::Ended(result) => Part::Ended(Some(outcome(result))),
                Running::Future(future) => Part::Waits(future),
            };
            waits |= matches!(part, Part::Waits(_));
            let failed = matches!(part, Part::Ended(Some(Err(_))));
            parts.push(part);
            if failed && self.settles == Settles::First {
                return Running::Ended((self.then)(take(&mut parts)));
            }
        }
        if !waits {
            return Running::Ended((self.then)(take(&mut parts)));
        }
        let (then, settles) = (Arc::clone(&self.then), self.settles);
        later(std::future::poll_fn(move |task| {
            let mut waits = false;
            for part in &mut parts {
                let Part::Waits(future) = part else { continue };
                match Pin::new(future).poll(task) {
                    Poll::Pending => waits = true,
                    Poll::Ready(result) => {
                        let outcome = outcome(result);
                        let failed = outcome.is_err();
                        *part = Part::Ended(Some(outcome));
                        if failed && settles == Settles::First {
                            waits = false;
                            break;
                        }
                    }
                }
            }
            if waits { Poll::Pending } else { Poll::Ready(then(take(&mut parts))) }
        }))
    }
}

enum Part {
    Waits(Caught),
    Ended(Option<Outcome>),
}

/// What the parts gave; those that still wait are dropped.
fn take(parts: &mut Vec<Part>) -> Vec<Option<Outcome>> {
    let ended = parts.drain(..).map(|part| match part {
        Part::Ended(outcome) => outcome,
        Part::Waits(_) => None,
    });
    ended.collect()
}

fn outcome(result: Result<Step>) -> Outcome {
    match result?.into_kind() {
        Kind::Done(value) => Ok(Some(value)),
        Kind::End => Ok(None),
        _ => Err(Error::misuse(
            "a part of `parallel` ends with a value or without one; it cannot go on to another step",
        )),
    }
}
