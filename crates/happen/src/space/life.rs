//! The life of a space: built, started, stopped, ended. Owns what is done at each of these moments and in which order, and
//! how many flows are under way; does not know what they do.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use happen_core::{Error, ErrorKind, Result};

use super::{Owner, Space, SpaceInner};
#[cfg(feature = "embedded")]
use crate::control::Listening;
use crate::local;
use crate::node::{Node, NodeInner};
use crate::sync::lock;

impl Space {
    /// Begins to deliver events.
    ///
    /// # Errors
    ///
    /// The first mistake made while the space was built: a pattern that cannot be understood, an id given twice. The
    /// others are its causes' neighbours in [`Space::problems`]. [`ErrorKind::Unfit`] when the store has flows under
    /// way that do not fit these nodes and steps. And whatever keeps the link from being attached or the store from
    /// being read.
    pub async fn start(&self) -> Result<()> {
        let inner = self.inner();
        if let Some(first) = lock(&inner.problems).first() {
            return Err(first.duplicate());
        }
        if let Some(node) = inner.all_nodes().iter().find(|node| node.holds_back_in_vain()) {
            return Err(Error::misuse(format!(
                "node `{}` is to hold flows back and is not durable, so they would be gone with the process; leave out \
                 `rate_by` or `debounce_by`, or open the space on a store",
                node.name
            )));
        }
        if let Some(node) = inner.all_nodes().iter().find(|node| node.shares_in_vain()) {
            return Err(Error::misuse(format!(
                "node `{}` is durable, so one process has it and others stand by; make it `ephemeral` to share its work",
                node.name
            )));
        }
        inner.guard_nodes();
        // Looked up before anything is delivered, and let go once everything can be.
        let building = inner.phase.load(Ordering::SeqCst) == BUILDING;
        if let Some(durable) = inner.durable.as_ref().filter(|durable| building && durable.is_shared()) {
            // Who else is there is heard by the link, and nobody hears of these nodes before they run.
            inner.attach_link().await?;
            durable.claim(inner).await?;
        }
        let resumable = match &inner.durable {
            Some(durable) if building => durable.recover(inner).await?,
            _ => Vec::new(),
        };
        inner.attach_link().await?;
        if let Some(durable) = &inner.durable {
            durable.enter_found(resumable);
        }
        let started = inner.phase.compare_exchange(BUILDING, RUNNING, Ordering::SeqCst, Ordering::SeqCst);
        if started == Err(STOPPED) {
            return Err(closed_space());
        }
        if started.is_ok() {
            inner.presence_changed();
            let nodes = inner.by_name.pin().len();
            if let Some(durable) = &inner.durable {
                durable.start(inner);
                durable.keep_following(inner);
            }
            inner.announce("system.started", serde_json::json!({ "nodes": nodes }));
            if let Some(balance) = &inner.balance {
                balance.begin(inner);
            }
        }
        Ok(())
    }

    /// The mistakes made while the space was built, and since.
    #[must_use]
    pub fn problems(&self) -> Vec<Error> {
        lock(&self.inner().problems).iter().map(Error::duplicate).collect()
    }

    /// Stops taking events from outside, waits for the flows under way, and ends the space.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`] when flows are still under way after the configured time; they are cancelled then.
    pub async fn stop(&self) -> Result<()> {
        let inner = self.inner();
        inner.announce("system.stopping", serde_json::json!({ "flows": inner.flows.load(Ordering::SeqCst) }));
        let after = Duration::from_millis(inner.config.drain_ms);
        let drained = inner.drained(after, Ends::Leaves).await;
        inner.close();
        if let Some(left) = inner.leave_link() {
            left.await;
        }
        inner.commons.swept(inner.env.sleep(after)).await;
        if let Some(durable) = &inner.durable {
            // Flows have been told to leave; what they are just committing is committed before the store closes.
            inner.drained(after, Ends::Waits).await;
            durable.close().await;
        }
        if drained { Ok(()) } else { Err(Error::new(ErrorKind::TimedOut { after })) }
    }

    /// Waits until no flow is under way and no event waits, which a flow that waits forever prevents.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`] after this time.
    pub async fn settled(&self, within: Duration) -> Result<()> {
        if self.inner().drained(within, Ends::Waits).await {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::TimedOut { after: within }))
        }
    }
}

impl SpaceInner {
    pub(crate) fn has_ended(&self) -> bool {
        self.phase.load(Ordering::SeqCst) == STOPPED
    }

    pub(crate) fn is_building(&self) -> bool {
        self.phase.load(Ordering::SeqCst) == BUILDING
    }

    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == RUNNING
    }

    /// Refuses what needs a space that has not ended, whether it has started or not.
    pub(crate) fn check_not_stopped(&self) -> Result<()> {
        if self.phase.load(Ordering::SeqCst) == STOPPED { Err(closed_space()) } else { Ok(()) }
    }

    pub(crate) fn check_building(&self) -> Result<()> {
        match self.phase.load(Ordering::Relaxed) {
            BUILDING => Ok(()),
            _ => Err(Error::misuse("the space has started")),
        }
    }

    pub(crate) fn check_running(&self) -> Result<()> {
        match self.phase.load(Ordering::Relaxed) {
            RUNNING => Ok(()),
            BUILDING => Err(Error::new(ErrorKind::NotStarted)),
            _ => Err(closed_space()),
        }
    }

    /// Listens for what other processes ask for. A space that cannot goes on without.
    #[cfg(feature = "embedded")]
    pub(super) fn listen(self: &Arc<Self>, folder: &std::path::Path) {
        match Listening::open(self, folder) {
            Ok(listening) => drop(self.control.set(listening)),
            Err(error) => {
                let why = error.chain().join(": ");
                tracing::warn!(target: "happen", code = error.code(), "the space has no control channel: {why}");
            }
        }
    }

    pub(crate) fn flow_began(&self) {
        self.flows.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn flow_ended(&self) {
        if self.flows.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.idle.notify_waiters();
        }
    }

    fn is_idle(&self, ends: Ends) -> bool {
        let left = match (&self.durable, ends) {
            (Some(durable), Ends::Leaves) => durable.can_be_left(),
            _ => 0,
        };
        let waits = |node: Arc<NodeInner>| match ends {
            Ends::Leaves if node.is_durable() => false,
            _ => Node::from_inner(node).waiting() > 0,
        };
        self.flows.load(Ordering::SeqCst) <= left && !self.all_nodes().into_iter().any(waits)
    }

    async fn drained(&self, within: Duration, ends: Ends) -> bool {
        let mut late = self.env.sleep(within);
        loop {
            let idle = self.idle.notified();
            let mut idle = std::pin::pin!(idle);
            idle.as_mut().enable();
            if self.is_idle(ends) {
                return true;
            }
            // Events that wait for their node make no sound when they start, so there is a look from time to time too.
            let mut again = self.env.sleep(DRAIN_LOOK);
            let on_time = poll_fn(|task| {
                use std::future::Future;
                if late.as_mut().poll(task).is_ready() {
                    return Poll::Ready(false);
                }
                let ready = idle.as_mut().poll(task).is_ready() || again.as_mut().poll(task).is_ready();
                if ready { Poll::Ready(true) } else { Poll::Pending }
            })
            .await;
            if !on_time {
                return self.is_idle(ends);
            }
        }
    }

    /// Ends the space, because another process has taken its nodes over.
    pub(crate) fn fenced(self: &Arc<Self>) {
        let what = "another process has taken over the nodes of this one, which ends";
        tracing::error!(target: "happen", "{what}");
        self.announce("system.fenced", serde_json::json!({ "reason": what }));
        self.problem(Error::misuse(what));
        self.close();
    }

    /// Ends the space: every node is closed, every cycle of references is cut.
    fn close(self: &Arc<Self>) {
        if self.phase.swap(STOPPED, Ordering::SeqCst) == STOPPED {
            return;
        }
        #[cfg(feature = "embedded")]
        if let Some(control) = self.control.get() {
            control.close();
        }
        // First, so that whoever waits beyond the link learns that it closed, and not of flows that were cancelled.
        drop(self.leave_link());
        self.commons.stop();
        if let Some(balance) = &self.balance {
            balance.end();
        }
        // The maps are emptied slot by slot, here and in the index, and not cleared: a space that ends with its thread
        // finds the thread's own memory gone, which `pin` and `clear` need.
        let names = self.by_name.pin_owned();
        // In the order they were made: the order of the map is another in every process.
        let mut nodes: Vec<_> = names.values().filter_map(|slot| slot.0.load_full()).collect();
        nodes.sort_unstable_by_key(|node| node.key);
        if let Some(durable) = &self.durable {
            durable.stop();
        }
        for node in nodes {
            node.close();
        }
        self.index.clear();
        names.values().for_each(|slot| slot.0.store(None));
        drop(names);
        self.hooks.store(None);
        self.routes.clear();
        for ring in lock(&self.rings).iter() {
            ring.close();
        }
        local::forget_recycled();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
        // Nobody can ask for a trace any more, while other threads may keep the space itself for a while.
        lock(&self.0.rings).clear();
    }
}

#[cold]
fn closed_space() -> Error {
    Error::new(ErrorKind::Closed { what: "the space".to_owned() })
}

/// What is made of flows that can be left where they are, because the store remembers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// They are waited for like others.
    Waits,
    Leaves,
}

pub(super) const BUILDING: u8 = 0;
const RUNNING: u8 = 1;
const STOPPED: u8 = 2;

/// How often a stopping space looks whether events still wait.
const DRAIN_LOOK: Duration = Duration::from_millis(5);
