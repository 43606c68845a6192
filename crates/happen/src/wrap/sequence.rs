//! `sequence`: one handler after another, for one event.

use happen_core::IntoStep;
use std::sync::Arc;

use happen_core::step::Kind;
use happen_core::{ErasedEvent, Function, Result, Step};

use super::{Running, Wrap, Wrapped, erase, go_on, later, start, wrapped};
use crate::context::Context;
use crate::handler::{Argument, Handler};

/// Runs the second handler when the first one has ended without a value. Longer sequences nest:
/// `sequence(a, sequence(b, c))`.
///
/// A value, a further step or an error of the first one is what the sequence gives; the second does not run then.
///
/// # Examples
///
/// ```
/// use happen::wrap::sequence;
/// use happen::{Context, Event, Space};
///
/// async fn load(_: Event, cx: Context) -> happen::Result<()> {
///     cx.put("rows", 3u64)
/// }
///
/// fn report(_: &Event, cx: &Context) -> happen::Result<u64> {
///     cx.get("rows")
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let node = space.node("node");
/// node.on("import", sequence(load, report));
/// space.start().await?;
/// assert_eq!(*space.send(&node, Event::new("import", ().into())).reply::<u64>().await?, 3);
/// # Ok(())
/// # }
/// ```
#[doc(alias = "compose")]
pub fn sequence<A, M, B, N>(first: A, second: B) -> Wrapped
where
    A: Handler<M>,
    A::Argument: Argument,
    A::Output: IntoStep,
    A::Future: Send,
    B: Handler<N>,
    B::Argument: Argument,
    B::Output: IntoStep,
    B::Future: Send,
{
    wrapped(Sequence { first: erase(first), second: erase(second) })
}

struct Sequence {
    first: Arc<dyn Function>,
    second: Arc<dyn Function>,
}

impl Wrap for Sequence {
    fn named(&self) -> &Arc<dyn Function> {
        &self.first
    }

    fn each(&self, look: &mut dyn FnMut(&dyn Function)) {
        look(&*self.first);
        look(&*self.second);
    }

    fn run(&self, event: &dyn ErasedEvent, context: &Context) -> Running {
        match start(&*self.first, event, context) {
            Running::Ended(result) => match value_of(result) {
                Some(result) => Running::Ended(result),
                None => go_on(&*self.second, event, context),
            },
            Running::Future(future) => {
                let second = Arc::clone(&self.second);
                let (event, context) = (event.to_shared(), context.clone());
                later(async move {
                    match value_of(future.await) {
                        Some(result) => result,
                        None => go_on(&*second, &*event, &context).end().await,
                    }
                })
            }
        }
    }
}

/// The result, unless it is an end without a value.
fn value_of(result: Result<Step>) -> Option<Result<Step>> {
    match result.map(Step::into_kind) {
        Ok(Kind::End) => None,
        Ok(kind) => Some(Ok(Step::new(kind))),
        Err(error) => Some(Err(error)),
    }
}
