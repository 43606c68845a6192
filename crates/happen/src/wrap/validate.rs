//! `validate`: a handler that sees only payloads which passed a check.

use happen_core::IntoStep;
use std::marker::PhantomData;
use std::sync::Arc;

use happen_core::{ErasedEvent, Error, ErrorKind, Function, Payload};

use super::{Running, Wrap, Wrapped, erase, look, start, wrapped};
use crate::context::Context;
use crate::handler::{Argument, Handler};

/// Checks the payload before the handler runs; what the check says is wrong becomes [`ErrorKind::Invalid`].
///
/// Of a batch every payload is checked.
///
/// # Examples
///
/// ```
/// use happen::wrap::validate;
/// use happen::{Context, Event, Space};
///
/// #[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
/// #[event("pay")]
/// struct Pay { cents: u64 }
///
/// fn has_amount(pay: &Pay) -> Result<(), &'static str> {
///     if pay.cents == 0 { Err("nothing to pay") } else { Ok(()) }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let desk = space.node("desk");
/// desk.on("pay", validate(has_amount, async |pay: Event<Pay>, _: Context| pay.cents));
/// space.start().await?;
/// let error = space.send(&desk, Pay { cents: 0 }).reply::<u64>().await.unwrap_err();
/// assert_eq!(error.to_string(), "not valid: nothing to pay");
/// # Ok(())
/// # }
/// ```
#[doc(alias = "withValidation")]
pub fn validate<T, E, H, M>(
    check: impl Fn(&T) -> Result<(), E> + Send + Sync + 'static,
    handler: H,
) -> Wrapped
where
    T: Payload,
    E: Into<String> + 'static,
    H: Handler<M>,
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send,
{
    wrapped(Validate { inner: erase(handler), check, checks: PhantomData::<fn(&T) -> E> })
}

struct Validate<C, F> {
    inner: Arc<dyn Function>,
    check: C,
    checks: PhantomData<F>,
}

impl<T, E, C> Wrap for Validate<C, fn(&T) -> E>
where
    T: Payload,
    E: Into<String> + 'static,
    C: Fn(&T) -> Result<(), E> + Send + Sync + 'static,
{
    fn named(&self) -> &Arc<dyn Function> {
        &self.inner
    }

    fn run(&self, event: &dyn ErasedEvent, context: &Context) -> Running {
        match look::<T, _>(event, |event| (self.check)(event.payload()).err()) {
            Ok(None) => start(&*self.inner, event, context),
            Ok(Some(reason)) => Running::Ended(Err(Error::new(ErrorKind::Invalid { reason: reason.into() }))),
            Err(error) => Running::Ended(Err(error)),
        }
    }
}
