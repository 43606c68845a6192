//! `tap`: a side look at the events of a handler.

use happen_core::IntoStep;
use std::sync::Arc;

use happen_core::{ErasedEvent, Function, Result, Step};

use super::{Running, Wrap, Wrapped, erase, later, start, wrapped};
use crate::context::Context;
use crate::handler::{Argument, Handler};

/// Lets a handler look at each event before another one handles it. What it returns is not used, and its failure or
/// panic does not fail the flow: it is reported as a warning of `tracing`.
///
/// An asynchronous look is waited for, so that looks cannot pile up; what may take its time goes to `cx.spawn`.
///
/// # Examples
///
/// ```
/// use happen::wrap::tap;
/// use happen::{Context, Event, Space};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let node = space.node("node");
/// let look = |event: &Event, _: &Context| -> () { panic!("cannot look at {}", event.event_type()) };
/// node.on("ping", tap(look, |_: &Event, _: &Context| "pong".to_owned()));
/// space.start().await?;
/// assert_eq!(*space.send(&node, Event::new("ping", ().into())).reply::<String>().await?, "pong");
/// # Ok(())
/// # }
/// ```
pub fn tap<L, N, H, M>(look: L, handler: H) -> Wrapped
where
    L: Handler<N>,
    L::Argument: Argument,
    L::Output: IntoStep,
    L::Future: Send,
    H: Handler<M>,
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send,
{
    wrapped(Tap { look: erase(look), inner: erase(handler) })
}

struct Tap {
    look: Arc<dyn Function>,
    inner: Arc<dyn Function>,
}

impl Wrap for Tap {
    fn named(&self) -> &Arc<dyn Function> {
        &self.inner
    }

    fn each(&self, look: &mut dyn FnMut(&dyn Function)) {
        look(&*self.look);
        look(&*self.inner);
    }

    fn run(&self, event: &dyn ErasedEvent, context: &Context) -> Running {
        match start(&*self.look, event, context) {
            Running::Ended(result) => {
                report(&self.look, context, result);
                start(&*self.inner, event, context)
            }
            Running::Future(future) => {
                let (look, inner) = (Arc::clone(&self.look), Arc::clone(&self.inner));
                let (event, context) = (event.to_shared(), context.clone());
                later(async move {
                    report(&look, &context, future.await);
                    start(&*inner, &*event, &context).end().await
                })
            }
        }
    }
}

fn report(look: &Arc<dyn Function>, context: &Context, result: Result<Step>) {
    if let Err(error) = result {
        tracing::warn!(
            target: "happen",
            node = context.node_id(),
            event = %context.event_id(),
            code = error.code(),
            "the look `{}` failed, and the flow goes on: {error}",
            look.short_name(),
        );
    }
}
