//! `conditional`: one of two handlers, by a look at the event.

use happen_core::IntoStep;
use std::marker::PhantomData;
use std::sync::Arc;

use happen_core::{ErasedEvent, Event, Function, Payload};

use super::{Running, Wrap, Wrapped, erase, go_on, look, wrapped};
use crate::context::Context;
use crate::handler::{Argument, Handler};

/// Runs the first handler for events the predicate answers true for, the other one for the rest. Of a batch it looks at
/// the first event.
///
/// # Examples
///
/// ```
/// use happen::wrap::conditional;
/// use happen::{Context, Event, Space};
///
/// #[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
/// #[event("pay")]
/// struct Pay { cents: u64 }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// async fn by_hand(_: Event<Pay>, _: Context) -> String { "a person looks at it".into() }
/// fn at_once(_: &Event<Pay>, _: &Context) -> String { "paid".into() }
///
/// let space = Space::memory();
/// let desk = space.node("desk");
/// desk.on("pay", conditional(|pay: &Event<Pay>| pay.cents > 10_000, by_hand, at_once));
/// space.start().await?;
/// assert_eq!(*space.send(&desk, Pay { cents: 5 }).reply::<String>().await?, "paid");
/// # Ok(())
/// # }
/// ```
pub fn conditional<T, H, M, O, N>(
    predicate: impl Fn(&Event<T>) -> bool + Send + Sync + 'static,
    then: H,
    otherwise: O,
) -> Wrapped
where
    T: Payload,
    H: Handler<M>,
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send,
    O: Handler<N>,
    O::Argument: Argument,
    O::Output: IntoStep,
    O::Future: Send,
{
    let looks_at = PhantomData::<fn(&T)>;
    wrapped(Conditional { predicate, then: erase(then), otherwise: erase(otherwise), looks_at })
}

struct Conditional<P, T> {
    predicate: P,
    then: Arc<dyn Function>,
    otherwise: Arc<dyn Function>,
    looks_at: PhantomData<T>,
}

impl<T, P> Wrap for Conditional<P, fn(&T)>
where
    T: Payload,
    P: Fn(&Event<T>) -> bool + Send + Sync + 'static,
{
    fn named(&self) -> &Arc<dyn Function> {
        &self.then
    }

    fn each(&self, look: &mut dyn FnMut(&dyn Function)) {
        look(&*self.then);
        look(&*self.otherwise);
    }

    fn run(&self, event: &dyn ErasedEvent, context: &Context) -> Running {
        match look::<T, _>(event, |event| Some((self.predicate)(event))) {
            Ok(answer) => {
                let chosen = if answer == Some(true) { &self.then } else { &self.otherwise };
                go_on(&**chosen, event, context)
            }
            Err(error) => Running::Ended(Err(error)),
        }
    }
}
