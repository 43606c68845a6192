//! How a handler says what comes next: `next`, `next_with`, `again`, `goto`, `done`.

use std::borrow::Cow;

use happen_core::step::Kind;
use happen_core::{IntoStep, Payload, Result, Step, Value};

use crate::handler::{Argument, Handler, With, with};

/// Goes on with this function, which gets the same event and the same context.
///
/// An `async fn` cannot name itself or a cycle of itself (the compiler would need the type of its own future); use
/// [`again`] and [`goto`] for loops.
///
/// # Errors
///
/// Never; the type is that of a handler's result.
///
/// # Examples
///
/// ```
/// use happen::{Context, Event, Space, Step, done, next};
///
/// async fn first(_: Event, cx: Context) -> happen::Result<Step> {
///     cx.put("total", 20u64)?;
///     next(second)
/// }
///
/// async fn second(_: Event, cx: Context) -> happen::Result<Step> {
///     done(cx.get::<u64>("total")? + 1)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let node = space.node("counter");
/// node.on("count", first).step(second);
/// space.start().await?;
/// let total = space.send(&node, Event::new("count", serde_json::json!(null))).reply::<u64>().await?;
/// assert_eq!(*total, 21);
/// # Ok(())
/// # }
/// ```
#[inline]
pub fn next<H, M>(function: H) -> Result<Step>
where
    H: Handler<M>, // what an async handler captures is handed to it by `with`
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send, // for a cycle of `async fn` use `again()` or `goto("step")`
{
    Ok(Step::new(Kind::Next(function.into_function())))
}

/// Goes on with this function and hands it a value as its first argument.
///
/// # Errors
///
/// Never; the type is that of a handler's result.
pub fn next_with<H, S, M>(function: H, state: S) -> Result<Step>
where
    With<S, H>: Handler<M, Argument: Argument, Output: IntoStep, Future: Send>,
{
    next(with(state, function))
}

/// Runs the same function again, with the same event and context.
///
/// # Errors
///
/// Never; the type is that of a handler's result. A flow that takes more steps than `steps_max` fails with
/// [`ErrorKind::Runaway`](crate::ErrorKind::Runaway).
pub fn again() -> Result<Step> {
    Ok(Step::new(Kind::Again))
}

/// Goes on with the step of this name: the name of a function given to `on` or `.step`, or the one given with it.
///
/// # Errors
///
/// Never; the flow fails with [`ErrorKind::UnknownStep`](crate::ErrorKind::UnknownStep) when there is none.
pub fn goto(step: impl Into<Cow<'static, str>>) -> Result<Step> {
    Ok(Step::new(Kind::Goto(step.into())))
}

/// Ends the flow with a value, which becomes the reply.
///
/// # Errors
///
/// Never; the type is that of a handler's result.
#[inline]
pub fn done<T: Payload>(value: T) -> Result<Step> {
    Ok(Step::new(Kind::Done(Value::new(value))))
}
