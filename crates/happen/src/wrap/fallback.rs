//! `fallback`: a handler for when another one fails. An error is a branch of the flow here, not its end.

use happen_core::IntoStep;
use std::sync::Arc;

use happen_core::{ErasedEvent, Function, Result, Step};

use super::{Running, Wrap, Wrapped, erase, go_on, later, start, wrapped};
use crate::context::Context;
use crate::handler::{Argument, Handler};

/// Runs another handler with the same event when the first one fails. It finds the error with
/// [`Context::last_error`], and may end the flow with a value, go on with any step, or fail.
///
/// Only the outcome of the other handler counts then: an error that was answered is no failure of the flow. When the
/// other fails too, the flow fails with its error, under a line that tells the first one.
///
/// # Examples
///
/// ```
/// use happen::wrap::fallback;
/// use happen::{Context, Event, Space, Step, done, next};
///
/// async fn live(_: Event, _: Context) -> happen::Result<u64> {
///     Err(happen::Error::msg("no line"))
/// }
///
/// async fn instead(_: Event, cx: Context) -> happen::Result<Step> {
///     match cx.last_error() {
///         Some(error) if error.is_retryable() => next(cached),
///         _ => done(0u64),
///     }
/// }
///
/// fn cached(_: &Event, _: &Context) -> u64 {
///     41
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let rates = space.node("rates");
/// rates.on("rate", fallback(live, instead));
/// space.start().await?;
/// assert_eq!(*space.send(&rates, Event::new("rate", "EUR".into())).reply::<u64>().await?, 41);
/// # Ok(())
/// # }
/// ```
pub fn fallback<H, M, O, N>(handler: H, other: O) -> Wrapped
where
    H: Handler<M>,
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send,
    O: Handler<N>,
    O::Argument: Argument,
    O::Output: IntoStep,
    O::Future: Send,
{
    wrapped(Fallback { inner: erase(handler), other: erase(other) })
}

struct Fallback {
    inner: Arc<dyn Function>,
    other: Arc<dyn Function>,
}

impl Wrap for Fallback {
    fn named(&self) -> &Arc<dyn Function> {
        &self.inner
    }

    fn each(&self, look: &mut dyn FnMut(&dyn Function)) {
        look(&*self.inner);
        look(&*self.other);
    }

    fn run(&self, event: &dyn ErasedEvent, context: &Context) -> Running {
        let other = Arc::clone(&self.other);
        let failing = match start(&*self.inner, event, context) {
            Running::Ended(Ok(step)) => return Running::Ended(Ok(step)),
            Running::Ended(Err(error)) => {
                let context = context.once_more(context.attempt(), Some(error));
                match go_on(&*other, event, &context) {
                    Running::Ended(result) => return Running::Ended(told(result, &context)),
                    Running::Future(future) => {
                        return later(async move { told(future.await, &context) });
                    }
                }
            }
            Running::Future(future) => future,
        };
        let (event, context) = (event.to_shared(), context.clone());
        later(async move {
            let error = match failing.await {
                Ok(step) => return Ok(step),
                Err(error) => error,
            };
            let context = context.once_more(context.attempt(), Some(error));
            let result = go_on(&*other, &*event, &context).end().await;
            told(result, &context)
        })
    }
}

fn told(result: Result<Step>, context: &Context) -> Result<Step> {
    result.map_err(|error| match context.last_error() {
        Some(first) => error.context(format!("the fallback failed too, after `{first}`")),
        None => error,
    })
}
