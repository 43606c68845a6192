//! Waiting for a node: places in its gate, and the queue of those who found none. Owns how a place is taken, given
//! back and handed on; does not know what a job does once it starts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use happen_core::{Envelope, ErasedEvent, Error, ErrorKind, Result};

use super::reply::{Reply, later};
use super::{Delivered, Want, again};
use crate::flow::GateId;
use crate::gate::Queued;
use crate::local;
use crate::node::{KeyedWait, NodeInner, Room};
use crate::sync::kept_going;
use crate::table::Table;

/// An event that waits for a node.
pub(crate) struct Job {
    pub(crate) event: Arc<dyn ErasedEvent>,
    pub(crate) want: Want,
    pub(crate) reply: Reply,
    /// Counts the job among those that wait for their keys, as long as it does.
    pub(crate) keyed: Option<KeyedWait>,
}

/// How a delivery is counted against the node's limit while it runs on somebody's stack.
pub(super) struct Permit<'n> {
    node: &'n Arc<NodeInner>,
    key: Option<u64>,
    /// The limit leaves room for what can run inline, so that most deliveries need not be counted at all.
    counted: bool,
}

impl<'n> Permit<'n> {
    #[inline]
    pub(super) const fn uncounted(node: &'n Arc<NodeInner>) -> Self {
        Self { node, key: None, counted: false }
    }

    /// For a place that was taken in the gate.
    #[inline]
    pub(super) const fn counted(node: &'n Arc<NodeInner>, key: Option<u64>) -> Self {
        Self { node, key, counted: true }
    }

    /// The key of the lane that the place is in.
    pub(super) const fn key(&self) -> Option<u64> {
        self.key
    }

    /// The key of the serial gate that flows of this delivery are in.
    #[inline]
    pub(super) fn serial_key(&self, table: &Table) -> Option<u64> {
        table.is_serial(self.key).then(|| self.key.unwrap_or(0))
    }

    /// A counted place for a delivery that goes on after its sender.
    #[cold]
    pub(super) fn into_place(mut self) -> Arc<Place> {
        if !self.counted {
            self.node.gate.enter_anyway();
        }
        self.counted = false;
        Arc::new(Place { node: Arc::clone(self.node), key: self.key, held: AtomicBool::new(true) })
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.counted {
            give_back(self.node, self.key);
        }
    }
}

#[inline]
fn give_back(node: &Arc<NodeInner>, key: Option<u64>) {
    let drain = match key {
        None => node.gate.leave(),
        Some(key) => node.leave_key(key),
    };
    if drain {
        spawn_drain(node, key);
    }
}

/// A place in a node's gate, of a flow that goes on as a task. Given back when it is dropped.
pub(crate) struct Place {
    node: Arc<NodeInner>,
    key: Option<u64>,
    held: AtomicBool,
}

impl Place {
    /// Whether only one at a time has such a place; it is then kept while its flow waits for a reply.
    fn is_serial(&self) -> bool {
        self.node.table.load().is_serial(self.key)
    }

    /// Gives the place back while its flow waits for a reply.
    pub(crate) fn release(&self) {
        if !self.is_serial() && self.held.swap(false, Ordering::SeqCst) {
            give_back(&self.node, self.key);
        }
    }

    /// Takes the place again, even beyond the limit: a flow under way is never made to wait behind newer ones.
    pub(crate) fn retake(&self) {
        if !self.held.swap(true, Ordering::SeqCst) {
            match self.key {
                None => self.node.gate.enter_anyway(),
                Some(key) => self.node.key_gate(key).enter_anyway(),
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if *self.held.get_mut() {
            give_back(&self.node, self.key);
        }
    }
}

#[cold]
pub(super) fn queue(
    node: &Arc<NodeInner>,
    table: &Table,
    event: &dyn ErasedEvent,
    want: Want,
    key: Option<u64>,
) -> Result<Delivered> {
    let (reply, receiver) = later(Reply::Nobody, want.reply);
    let job = Job { event: event.to_shared(), want, reply, keyed: None };
    match try_enqueue(node, table, job, key) {
        Ok(()) => Ok(Delivered::Later(receiver)),
        Err((_, error)) => Err(error),
    }
}

pub(super) fn enqueue(node: &Arc<NodeInner>, table: &Table, job: Job, key: Option<u64>) {
    if let Err((job, error)) = try_enqueue(node, table, job, key) {
        node.space.undelivered(&*job.event, &node.name, error, job.reply);
    }
}

fn try_enqueue(
    node: &Arc<NodeInner>,
    table: &Table,
    mut job: Job,
    key: Option<u64>,
) -> Result<(), (Job, Error)> {
    let options = &table.options;
    if job.want.reply && (options.max_concurrent == 1 || key.is_some()) {
        match node.space.waits.enter(node, gate_id(node, key), job.want.held()) {
            Ok(waits) => job.want.set_waits(waits),
            Err(error) => return Err((job, error)),
        }
    }
    let priority = priority_of(job.event.envelope());
    let keyed;
    let (gate, max) = match key {
        None => (&node.gate, table.max_concurrent()),
        Some(key) => {
            keyed = node.key_gate(key);
            (&*keyed, table.max_by_key())
        }
    };
    let own = gate.waiting() as usize;
    // The keys have a limit together: many keys with a few events each would be a queue without an end. Where the oldest
    // gives way, it is the oldest of the same key.
    let (order, overflow) = (options.queue_order, options.overflow);
    let instead = overflow == crate::config::Overflow::DropOldest && own > 0;
    let (queued, waiting) = match key.map(|_| node.wait_for_key(&mut job, options.queue_limit, instead)) {
        None => (gate.queue(job, priority, max, options.queue_limit, order, overflow), own + 1),
        Some(Room::Free(all)) => (gate.queue(job, priority, max, usize::MAX, order, overflow), all),
        Some(Room::Instead) => (gate.queue(job, priority, max, own, order, overflow), options.queue_limit),
        Some(Room::None) => (Queued::Full(job), options.queue_limit),
    };
    node.space.note_pressure(node, waiting, options.queue_limit);
    match queued {
        Queued::Waits => {
            // The look after the write: a held node may have been let go before its supervisor could see this job.
            if table.is_held() && !node.table.load().is_held() && gate.claim_drain() {
                spawn_drain(node, key);
            }
            Ok(())
        }
        Queued::Drain => {
            spawn_drain(node, key);
            Ok(())
        }
        Queued::Instead(oldest) => {
            node.note_refused();
            let what = format!("queue of node `{}` ({} events)", node.name, options.queue_limit);
            let error = Error::new(ErrorKind::Busy { what });
            node.space.undelivered(&*oldest.event, &node.name, error, oldest.reply);
            Ok(())
        }
        Queued::Full(job) => {
            node.note_refused();
            let what = format!("queue of node `{}` ({} events)", node.name, options.queue_limit);
            let error =
                Error::new(ErrorKind::Busy { what }).at_event(job.event.envelope().id).at_node(&node.name);
            if options.overflow == crate::config::Overflow::DropNewest {
                node.space.undelivered(&*job.event, &node.name, error, job.reply);
                return Ok(());
            }
            Err((job, error))
        }
    }
}

pub(crate) fn priority_of(envelope: &Envelope) -> i64 {
    let metadata = envelope.extra.as_ref().and_then(|extra| extra.metadata.get("priority"));
    metadata.and_then(serde_json::Value::as_i64).unwrap_or(0)
}

/// Starts waiting jobs from a task of their own, so that whoever freed the place is not held up by the work of others.
#[cold]
pub(crate) fn spawn_drain(node: &Arc<NodeInner>, key: Option<u64>) {
    let node = Arc::clone(node);
    let env = Arc::clone(&node.space.env);
    env.spawn(Box::pin(async move {
        let mut run = 0;
        loop {
            let table = node.table.load();
            let next = match key {
                None => node.gate.next(table.max_concurrent()),
                Some(key) => node.key_gate(key).next(table.max_by_key()),
            };
            drop(table);
            let Some(job) = next else { return };
            let permit = Permit::counted(&node, key);
            kept_going("what waited", || again(&node, job, Some(permit)));
            run += 1;
            if run % DRAIN_RUN == 0 || local::should_yield() {
                crate::space::yield_now().await;
            }
        }
    }));
}

fn gate_id(node: &NodeInner, key: Option<u64>) -> GateId {
    (node.key.0, key.unwrap_or(0))
}

/// Waiting jobs started in a row before other tasks get their turn.
const DRAIN_RUN: usize = 64;
