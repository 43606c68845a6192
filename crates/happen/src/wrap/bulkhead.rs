//! `bulkhead`: so many runs at once of what several handlers share, and so many that wait. Owns the places; what is
//! behind them, such as a pool of connections, it does not know.

use happen_core::IntoStep;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use happen_core::{ErasedEvent, Error, ErrorKind, Function, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Running, Wrap, Wrapped, erase, later, start, wrapped};
use crate::context::Context;
use crate::handler::{Argument, Handler};

/// Limits how many runs of a handler there are at once, together with all other handlers behind the same
/// [`Bulkhead`]. An event that finds all places taken waits, first come, first run; one that finds the waiting room full
/// as well fails with [`ErrorKind::Busy`].
///
/// A node has a limit of its own ([`Node::max_concurrent`](crate::Node::max_concurrent)). A bulkhead is for what
/// several nodes or handlers share, or for the one expensive handler of a node.
///
/// # Examples
///
/// ```
/// use happen::wrap::{Bulkhead, bulkhead};
/// use happen::{Context, Event, Space};
///
/// async fn render(_: Event, _: Context) -> String { "a page".into() }
/// async fn print(_: Event, _: Context) -> String { "a sheet".into() }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let press = Bulkhead::new(2, 100);
/// let pages = space.node("pages");
/// pages.on("render", bulkhead(press.clone(), render));
/// pages.on("print", bulkhead(press.clone(), print));
/// space.start().await?;
/// assert_eq!(*space.send(&pages, Event::new("print", ().into())).reply::<String>().await?, "a sheet");
/// assert_eq!(press.running(), 0);
/// # Ok(())
/// # }
/// ```
pub fn bulkhead<H, M>(bulkhead: Bulkhead, handler: H) -> Wrapped
where
    H: Handler<M>,
    H::Argument: Argument,
    H::Output: IntoStep,
    H::Future: Send,
{
    wrapped(Behind { inner: erase(handler), bulkhead })
}

/// The places that handlers share. A handle; cloning shares them.
#[derive(Clone)]
pub struct Bulkhead(Arc<Places>);

struct Places {
    free: Arc<Semaphore>,
    places: u32,
    waiting: AtomicUsize,
    waiting_max: usize,
}

impl Bulkhead {
    /// A bulkhead with so many places (at least one), where so many events may wait for one.
    #[must_use]
    pub fn new(max_concurrent: u32, max_waiting: usize) -> Self {
        let places = max_concurrent.max(1);
        let free = Arc::new(Semaphore::new(places as usize));
        Self(Arc::new(Places { free, places, waiting: AtomicUsize::new(0), waiting_max: max_waiting }))
    }

    /// The runs there are now.
    #[must_use]
    pub fn running(&self) -> usize {
        (self.0.places as usize).saturating_sub(self.0.free.available_permits())
    }

    /// The events that wait for a place.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::SeqCst)
    }

    fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.free).try_acquire_owned().ok()
    }

    fn wait(&self) -> Result<Waiting> {
        let places = Arc::clone(&self.0);
        if places.waiting.fetch_add(1, Ordering::SeqCst) >= places.waiting_max {
            places.waiting.fetch_sub(1, Ordering::SeqCst);
            let what = format!("a bulkhead of {} places, where {} wait,", places.places, places.waiting_max);
            return Err(Error::new(ErrorKind::Busy { what }));
        }
        Ok(Waiting(places))
    }
}

/// Somebody in the waiting room, who leaves it by a place or because the flow was cancelled.
struct Waiting(Arc<Places>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Behind {
    inner: Arc<dyn Function>,
    bulkhead: Bulkhead,
}

impl Wrap for Behind {
    fn named(&self) -> &Arc<dyn Function> {
        &self.inner
    }

    fn waits(&self) -> bool {
        true
    }

    fn run(&self, event: &dyn ErasedEvent, context: &Context) -> Running {
        if let Some(place) = self.bulkhead.enter() {
            return match start(&*self.inner, event, context) {
                Running::Ended(result) => Running::Ended(result),
                Running::Future(future) => later(async move {
                    let _place = place;
                    future.await
                }),
            };
        }
        let waiting = match self.bulkhead.wait() {
            Ok(waiting) => waiting,
            Err(busy) => return Running::Ended(Err(busy)),
        };
        let (inner, free) = (Arc::clone(&self.inner), Arc::clone(&self.bulkhead.0.free));
        let (event, context) = (event.to_shared(), context.clone());
        later(async move {
            let place = free.acquire_owned().await;
            drop(waiting);
            // Nobody closes the semaphore, so there is always a place in the end.
            let _place = place?;
            start(&*inner, &*event, &context).end().await
        })
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Places { places, waiting_max, .. } = &*self.0;
        write!(f, "{} of {places} run, {} of {waiting_max} wait", self.running(), self.waiting())
    }
}
