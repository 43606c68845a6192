//! What is due when, and the one task of a space that sees to it: timers, schedules, flows that are held back, and
//! forgetting keys. Owns the order in which things become due; what is done then is in their own files. Nothing is
//! lost here: whatever is due is in the store, too.
//!
//! The wall clock decides, as due times outlive the process and its monotonic clock. A sleep does not notice when the
//! clock is set or the machine slept, so the task looks again after [`limits::CLOCK_LOOK_MS_MAX`] at the latest while
//! anything is to come, and sleeps without an end when nothing is.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use happen_core::env::Env;
use happen_core::store::Key;
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::Notify;

use super::flow::StoredFlow;
use super::keys::TIMERS;
use super::lane::Lanes;
use super::{Durable, schedule, seen, timer};
use crate::limits;
use crate::space::SpaceInner;
use crate::sync::{Mutex, lock};

/// What is due when in one space.
#[derive(Default)]
pub(crate) struct Agenda {
    queue: Mutex<Queue>,
    /// Heard when something is due earlier than what was to be first, and when the space ends.
    changed: Notify,
}

#[derive(Default)]
struct Queue {
    due: BTreeMap<Ticket, Item>,
    /// Where the documents are in the order above.
    documents: HashMap<Key, Ticket>,
    number: u64,
    ended: bool,
}

/// A place in the order of due times: the time in milliseconds since 1970, and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64, u64);

/// What becomes due.
enum Item {
    /// A timer or a schedule.
    Document(Key),
    /// A flow that is held back.
    Flow(Arc<StoredFlow>),
    /// Keys of events from outside are forgotten.
    Sweep,
}

impl Agenda {
    /// Notes when a document is due, in place of what was noted before; `None` for never.
    pub(super) fn set(&self, key: &Key, due_unix_ms: Option<u64>) {
        let mut queue = lock(&self.queue);
        if let Some(before) = queue.documents.remove(key) {
            queue.due.remove(&before);
        }
        let Some(due) = due_unix_ms else { return };
        if let Some(ticket) = self.add(&mut queue, due, Item::Document(Arc::clone(key))) {
            queue.documents.insert(Arc::clone(key), ticket);
        }
    }

    /// Notes when a flow may begin that is held back.
    pub(super) fn hold(&self, flow: &Arc<StoredFlow>, due_unix_ms: u64) -> Option<Ticket> {
        self.add(&mut lock(&self.queue), due_unix_ms, Item::Flow(Arc::clone(flow)))
    }

    /// Takes back what was noted; false when it was due meanwhile.
    pub(super) fn take_back(&self, ticket: Ticket) -> bool {
        let taken = lock(&self.queue).due.remove(&ticket);
        taken.is_some()
    }

    /// Notes when keys of events from outside are to be forgotten.
    pub(super) fn sweep_at(&self, due_unix_ms: u64) {
        self.add(&mut lock(&self.queue), due_unix_ms, Item::Sweep);
    }

    fn add(&self, queue: &mut Queue, due: u64, item: Item) -> Option<Ticket> {
        if queue.ended {
            return None;
        }
        queue.number += 1;
        let ticket = Ticket(due, queue.number);
        let is_first = queue.due.first_key_value().is_none_or(|(first, _)| ticket < *first);
        queue.due.insert(ticket, item);
        if is_first {
            self.changed.notify_one();
        }
        Some(ticket)
    }

    fn first_due(&self) -> Option<u64> {
        lock(&self.queue).due.first_key_value().map(|(ticket, _)| ticket.0)
    }

    /// Takes what is due first, when it is due by now.
    fn take_due(&self, now: u64) -> Option<(Ticket, Item)> {
        let mut queue = lock(&self.queue);
        let (ticket, _) = queue.due.first_key_value().filter(|(ticket, _)| ticket.0 <= now)?;
        let ticket = *ticket;
        let item = queue.due.remove(&ticket)?;
        if let Item::Document(key) = &item {
            queue.documents.remove(key);
        }
        Some((ticket, item))
    }

    /// Ends the task, and forgets what it would have done: it is in the store.
    pub(super) fn end(&self) {
        let due = {
            let mut queue = lock(&self.queue);
            queue.ended = true;
            queue.documents.clear();
            std::mem::take(&mut queue.due)
        };
        self.changed.notify_one();
        for item in due.into_values() {
            if let Item::Flow(flow) = item {
                flow.let_go();
            }
        }
    }

    fn has_ended(&self) -> bool {
        lock(&self.queue).ended
    }

    /// Begins to see to what is due. What is due already counts as under way.
    pub(super) fn start(self: &Arc<Self>, space: &Arc<SpaceInner>) {
        space.flow_began();
        let (agenda, env, space) = (Arc::clone(self), Arc::clone(&space.env), Arc::downgrade(space));
        let task_env = Arc::clone(&env);
        env.spawn(Box::pin(async move { agenda.run(&task_env, &space).await }));
    }

    async fn run(&self, env: &Arc<dyn Env>, space: &Weak<SpaceInner>) {
        let mut failures = 0;
        let mut behind = Some(Behind(space));
        loop {
            if self.has_ended() {
                return;
            }
            let now = env.unix_ms();
            let left = match self.first_due() {
                Some(due) if due <= now => {
                    let Some(space) = space.upgrade() else { return };
                    match self.see_to_some(&space, now).await {
                        Ok(()) => failures = 0,
                        Err(()) => failures += 1,
                    }
                    if failures == 0 {
                        continue;
                    }
                    let shift = (failures - 1).min(16);
                    Some((limits::STORE_WAIT_MS << shift).min(limits::STORE_WAIT_MS_MAX))
                }
                Some(due) => Some((due - now).min(limits::CLOCK_LOOK_MS_MAX)),
                None => None,
            };
            drop(behind.take());
            self.wait(env, left).await;
        }
    }

    /// Does what is due, in its order: many timers by one call to the store, or one other thing. An error says that the
    /// store failed: what could not be done is due still.
    async fn see_to_some(&self, space: &Arc<SpaceInner>, now: u64) -> Result<(), ()> {
        let Some(durable) = &space.durable else { return Ok(()) };
        // A space that waits for what is under way waits for this, too.
        space.flow_began();
        let mut outcome = Ok(());
        let mut firing = Vec::new();
        while outcome.is_ok() && firing.len() < limits::COMMIT_GROUP_MAX {
            let Some((ticket, item)) = self.take_due(now) else { break };
            match &item {
                Item::Document(key) if key.starts_with(TIMERS) => {
                    match timer::begin(space, durable, key).await {
                        Ok(Some(begun)) => firing.push((ticket, item, begun)),
                        seen_to => outcome = self.seen_to(space, durable, (ticket, item), seen_to.map(drop)),
                    }
                }
                _ if firing.is_empty() => {
                    let seen_to = see_to(space, durable, &item).await;
                    outcome = self.seen_to(space, durable, (ticket, item), seen_to);
                    break;
                }
                // Its turn comes when those before it are done.
                _ => {
                    self.put_back(ticket, item);
                    break;
                }
            }
        }
        for (ticket, item, begun) in firing {
            let seen_to = timer::finish(space, durable, begun).await;
            outcome = outcome.and(self.seen_to(space, durable, (ticket, item), seen_to));
        }
        space.flow_ended();
        outcome
    }

    /// Notes what became of something that was due.
    fn seen_to(
        &self,
        space: &Arc<SpaceInner>,
        durable: &Durable,
        (ticket, item): (Ticket, Item),
        seen_to: Result<()>,
    ) -> Result<(), ()> {
        match seen_to {
            Ok(()) => {
                durable.store_took(space);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::Io { .. } | ErrorKind::Closed { .. }) => {
                if !matches!(error.kind(), ErrorKind::Closed { .. }) && !durable.is_stopping() {
                    durable.store_failed(space, &error);
                }
                self.put_back(ticket, item);
                Err(())
            }
            Err(error) => {
                // Something about this one thing: it does not hold up the others.
                self.postpone(space, &item, &error);
                Ok(())
            }
        }
    }

    /// Tries again later what cannot be done now, and tells why.
    fn postpone(&self, space: &Arc<SpaceInner>, item: &Item, error: &Error) {
        let later = space.env.unix_ms().saturating_add(limits::DUE_AGAIN_MS);
        match item {
            Item::Document(key) => {
                tracing::warn!(target: "happen", code = error.code(), "`{key}` is due and cannot be seen to: {error}");
                let told = serde_json::json!({ "key": **key, "code": error.code(), "reason": error.chain().join(": ") });
                space.announce("system.due-event-waits", told);
                self.set(key, Some(later));
            }
            Item::Sweep => {
                tracing::error!(target: "happen", code = error.code(), "idempotency keys are not forgotten: {error}");
                self.sweep_at(later);
            }
            Item::Flow(_) => {}
        }
    }

    /// Notes once more what could not be done, unless it was noted anew meanwhile.
    fn put_back(&self, ticket: Ticket, item: Item) {
        let mut queue = lock(&self.queue);
        if queue.ended {
            return;
        }
        if let Item::Document(key) = &item {
            if queue.documents.contains_key(key) {
                return;
            }
            queue.documents.insert(Arc::clone(key), ticket);
        }
        queue.due.insert(ticket, item);
    }

    async fn wait(&self, env: &Arc<dyn Env>, left_ms: Option<u64>) {
        let mut late = left_ms.map(|left| env.sleep(Duration::from_millis(left)));
        let mut changed = pin!(self.changed.notified());
        poll_fn(|task| {
            if changed.as_mut().poll(task).is_ready() {
                return Poll::Ready(());
            }
            match &mut late {
                Some(late) => late.as_mut().poll(task),
                None => Poll::Pending,
            }
        })
        .await;
    }
}

/// Does one thing that is due and no timer.
async fn see_to(space: &Arc<SpaceInner>, durable: &Arc<Durable>, item: &Item) -> Result<()> {
    match item {
        Item::Document(key) => schedule::fire(space, durable, key).await,
        Item::Flow(flow) => {
            Lanes::due(flow);
            Ok(())
        }
        Item::Sweep => seen::sweep(space, durable).await,
    }
}

/// Counts as under way until what was due at the start is seen to.
struct Behind<'s>(&'s Weak<SpaceInner>);

impl Drop for Behind<'_> {
    fn drop(&mut self) {
        if let Some(space) = self.0.upgrade() {
            space.flow_ended();
        }
    }
}

impl fmt::Debug for Agenda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} things to come", lock(&self.queue).due.len())
    }
}
