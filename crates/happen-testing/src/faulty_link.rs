//! A link with faults: cut off and healed again, losing what leaves or what comes back. Owns what goes wrong when;
//! everything else is the link inside.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use happen_core::env::{BoxFuture, Env};
use happen_core::link::{Inbound, Link, NodePresence, Notice, Peer, Replies};
use happen_core::{Error, ErrorKind, Result};

/// A member's end of a link that goes wrong as planned.
///
/// # Examples
///
/// ```
/// # use std::sync::Arc;
/// # use happen_core::link::Link;
/// # use happen_testing::{FaultyLink, Simulator};
/// # fn hub(_: &Simulator) -> Option<Arc<dyn Link>> { None }
/// let sim = Simulator::new(7);
/// # let Some(inner) = hub(&sim) else { return };
/// let link = FaultyLink::new(inner, sim.env());
/// link.cut();
/// assert!(link.peers().is_empty());
/// link.heal();
/// ```
pub struct FaultyLink {
    inner: Arc<dyn Link>,
    state: Arc<State>,
}

struct State {
    env: Arc<dyn Env>,
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    is_cut: bool,
    /// Rises with every cut: replies that were awaited before it never come.
    cuts: u64,
    waiting: Vec<Waker>,
    /// Of a thousand requests, so many are lost.
    losing_per_mille: u64,
    requests: u64,
}

/// What happens to a request.
enum Fate {
    Passes,
    /// It never arrives.
    Lost,
    /// It arrives, and nobody hears of it.
    Unheard,
}

impl FaultyLink {
    /// A link without faults so far, which takes its dice from this environment.
    #[must_use]
    pub fn new(inner: Arc<dyn Link>, env: Arc<dyn Env>) -> Arc<Self> {
        Arc::new(Self { inner, state: Arc::new(State { env, plan: Mutex::default() }) })
    }

    /// Cuts the member off: it reaches nobody and nobody reaches it, and whoever waits for a reply is told that the link
    /// closed.
    pub fn cut(&self) {
        let waiting = {
            let mut plan = self.state.plan();
            plan.is_cut = true;
            plan.cuts += 1;
            std::mem::take(&mut plan.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        self.state.plan().is_cut = false;
        self.inner.changed();
    }

    /// Loses so many of a thousand requests, half of them although they arrived.
    pub fn loses(&self, per_mille: u64) {
        self.state.plan().losing_per_mille = per_mille;
    }

    /// The number of requests that left so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.state.plan().requests
    }

    fn asked(
        &self,
        to: &str,
        request: impl FnOnce() -> Result<Box<dyn Replies>>,
    ) -> Result<Box<dyn Replies>> {
        self.check_there(to)?;
        match self.state.fate() {
            Fate::Passes => Ok(self.state.replies(request()?)),
            Fate::Lost => Ok(Box::new(NoReplies)),
            Fate::Unheard => {
                // It has to be kept, as to drop it says that nobody waits.
                let mut replies = request()?;
                self.state.env.spawn(Box::pin(async move {
                    while let Some(Ok(_)) = std::future::poll_fn(|task| replies.poll_next(task)).await {}
                }));
                Ok(Box::new(NoReplies))
            }
        }
    }

    fn check_there(&self, node: &str) -> Result<()> {
        match self.state.plan().is_cut {
            true => Err(Error::new(ErrorKind::NoSuchNode { node: node.to_owned() })),
            false => Ok(()),
        }
    }
}

impl State {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self) -> Fate {
        let dice = self.env.random_u64() % 1_000;
        let mut plan = self.plan();
        plan.requests += 1;
        match dice < plan.losing_per_mille {
            true if dice.is_multiple_of(2) => Fate::Lost,
            true => Fate::Unheard,
            false => Fate::Passes,
        }
    }

    fn replies(self: &Arc<Self>, inner: Box<dyn Replies>) -> Box<dyn Replies> {
        let cuts = self.plan().cuts;
        Box::new(FaultyReplies { inner: Some(inner), state: Arc::clone(self), cuts })
    }
}

impl Link for FaultyLink {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn attach(&self, inbound: Arc<dyn Inbound>) -> BoxFuture<'_, Result<()>> {
        self.inner.attach(Arc::new(FaultyInbound { inner: inbound, state: Arc::clone(&self.state) }))
    }

    fn changed(&self) {
        self.inner.changed();
    }

    fn post(&self, to: &str, frame: Vec<u8>) -> Result<()> {
        self.check_there(to)?;
        self.inner.post(to, frame)
    }

    fn request(&self, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>> {
        self.asked(to, || self.inner.request(to, frame))
    }

    fn post_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<()> {
        self.check_there(to)?;
        self.inner.post_at(member, to, frame)
    }

    fn request_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>> {
        self.asked(to, || self.inner.request_at(member, to, frame))
    }

    fn publish(&self, event_type: &str, frame: Vec<u8>) -> Result<()> {
        if self.state.plan().is_cut { Ok(()) } else { self.inner.publish(event_type, frame) }
    }

    fn listens(&self, event_type: &str) -> bool {
        !self.state.plan().is_cut && self.inner.listens(event_type)
    }

    fn peers(&self) -> Vec<Peer> {
        if self.state.plan().is_cut { Vec::new() } else { self.inner.peers() }
    }

    fn revision(&self) -> u64 {
        let plan = self.state.plan();
        // Whoever is cut off, or not any more, has other peers.
        self.inner.revision() + ((plan.cuts * 2 + u64::from(plan.is_cut)) << 32)
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.inner.close()
    }
}

/// What comes in, unless the member is cut off.
struct FaultyInbound {
    inner: Arc<dyn Inbound>,
    state: Arc<State>,
}

impl Inbound for FaultyInbound {
    fn post(&self, to: &str, frame: &[u8]) {
        if !self.state.plan().is_cut {
            self.inner.post(to, frame);
        }
    }

    fn request(&self, to: &str, frame: &[u8]) -> Box<dyn Replies> {
        if self.state.plan().is_cut {
            return Box::new(NoReplies);
        }
        self.state.replies(self.inner.request(to, frame))
    }

    fn publish(&self, frame: &[u8]) {
        if !self.state.plan().is_cut {
            self.inner.publish(frame);
        }
    }

    fn presence(&self) -> Vec<NodePresence> {
        self.inner.presence()
    }

    fn notice(&self, notice: Notice<'_>) {
        self.inner.notice(notice);
    }
}

/// Replies that end when the member is cut off.
struct FaultyReplies {
    inner: Option<Box<dyn Replies>>,
    state: Arc<State>,
    cuts: u64,
}

impl Replies for FaultyReplies {
    fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        {
            let mut plan = self.state.plan();
            if plan.cuts != self.cuts {
                drop(plan);
                self.inner = None;
                return Poll::Ready(Some(Err(closed())));
            }
            plan.waiting.push(task.waker().clone());
        }
        inner.poll_next(task)
    }
}

/// Replies of whom nothing is heard.
struct NoReplies;

impl Replies for NoReplies {
    fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>>>> {
        Poll::Ready(Some(Err(closed())))
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed { what: "the link, which was made to fail,".to_owned() })
}

impl fmt::Debug for FaultyLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.state.plan();
        write!(f, "FaultyLink({:?}{})", self.inner, if plan.is_cut { ", cut off" } else { "" })
    }
}

impl fmt::Debug for FaultyInbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.inner, f)
    }
}
