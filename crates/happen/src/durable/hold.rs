//! What holds flows of a durable node back: how many may begin in a span of time, and quiet that has to come first. Owns
//! which flow begins when, by key; that a flow waits is in its document, and where it waits is in `agenda.rs`.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use happen_core::codec::{StepOutcome, WireRecord};
use happen_core::limits::RECORD_BYTES_MAX;
use happen_core::store::{Key, Read, Select, Start, Tag};
use happen_core::{ErasedEvent, Error, ErrorKind, EventId, Result};

use super::Durable;
use super::agenda::Ticket;
use super::flow::StoredFlow;
use super::lane::Lanes;
use crate::limits;
use crate::node::NodeInner;
use crate::sync::{Mutex, isolated, lock};
use crate::table::{KeyOf, Table};

/// The rules by which a node holds flows back.
#[derive(Clone, Default)]
pub(crate) struct Control {
    pub(crate) rate: Option<Rate>,
    pub(crate) debounce: Option<Debounce>,
}

/// So many flows of a key may begin within any span of this length.
#[derive(Clone)]
pub(crate) struct Rate {
    pub(crate) key_of: KeyOf,
    pub(crate) flows_max: usize,
    pub(crate) span_ms: u64,
}

/// A flow of a key begins when no other one came for this long, and takes the place of those before it.
#[derive(Clone)]
pub(crate) struct Debounce {
    pub(crate) key_of: KeyOf,
    pub(crate) quiet_ms: u64,
}

/// What a node knows of flows that are held back.
#[derive(Default)]
pub(crate) struct Held(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    /// Where those that wait are in the agenda, by the keys of their documents.
    tickets: HashMap<Key, Ticket>,
    /// When flows of a key began or will begin, by the key; no longer than a span ago.
    begins: HashMap<u64, VecDeque<u64>>,
    /// The last flow of a key, while it waits for quiet.
    last: HashMap<u64, Arc<StoredFlow>>,
    /// Keys of `begins` at which those that are over are looked for next.
    sweep_len: usize,
}

/// What holds one flow back.
#[derive(Default)]
pub(crate) struct Hold {
    slot: Option<Slot>,
    quiet: Option<u64>,
}

/// A time at which a flow may begin, among those of its key. Given back when the flow never does.
struct Slot {
    node: Arc<NodeInner>,
    key: u64,
    at_unix_ms: u64,
    is_used: AtomicBool,
}

/// When a flow for this event may begin, 0 for at once, and what holds it back.
///
/// # Errors
///
/// When a function that gives a key panics.
pub(super) fn admit(node: &Arc<NodeInner>, table: &Table, event: &dyn ErasedEvent) -> Result<(u64, Hold)> {
    let Some(control) = &table.control else { return Ok((0, Hold::default())) };
    let now = node.space.env.unix_ms();
    let (mut due, mut hold) = (now, Hold::default());
    if let Some(debounce) = &control.debounce {
        hold.quiet = Some(isolated("the key of a node that waits for quiet", || (debounce.key_of)(event))?);
        due = now.saturating_add(debounce.quiet_ms);
    }
    if let Some(rate) = &control.rate {
        let key = isolated("the key of a node that begins so many flows", || (rate.key_of)(event))?;
        due = node.lanes().held.reserve(rate, key, now, due);
        hold.slot =
            Some(Slot { node: Arc::clone(node), key, at_unix_ms: due, is_used: AtomicBool::new(false) });
    }
    Ok((if due > now { due } else { 0 }, hold))
}

/// The same for a flow that an earlier process left at its first step: `due_unix_ms` is when it was to begin, 0 when it
/// had and does so again.
///
/// # Errors
///
/// As [`admit`].
pub(super) fn admit_again(
    node: &Arc<NodeInner>,
    table: &Table,
    event: &dyn ErasedEvent,
    due_unix_ms: u64,
) -> Result<Hold> {
    let mut hold = Hold::default();
    let Some(control) = &table.control else { return Ok(hold) };
    if let Some(debounce) = control.debounce.as_ref().filter(|_| due_unix_ms > 0) {
        hold.quiet = Some(isolated("the key of a node that waits for quiet", || (debounce.key_of)(event))?);
    }
    if let Some(rate) = &control.rate {
        let key = isolated("the key of a node that begins so many flows", || (rate.key_of)(event))?;
        let now = node.space.env.unix_ms();
        let at_unix_ms = if due_unix_ms > 0 { due_unix_ms } else { now };
        node.lanes().held.began(key, at_unix_ms);
        hold.slot = Some(Slot { node: Arc::clone(node), key, at_unix_ms, is_used: AtomicBool::new(false) });
    }
    Ok(hold)
}

impl Held {
    /// The first time from `from` on at which one more flow of this key may begin.
    fn reserve(&self, rate: &Rate, key: u64, now: u64, from: u64) -> u64 {
        let mut inside = lock(&self.0);
        inside.forget_old(rate.span_ms, now);
        let begins = inside.begins.entry(key).or_default();
        while begins.front().is_some_and(|begin| begin.saturating_add(rate.span_ms) <= now) {
            begins.pop_front();
        }
        // They fill the spans to come one after the other. What lies further ahead was reserved by a clock that was.
        let spans = u64::try_from(begins.len() / rate.flows_max + 1).unwrap_or(u64::MAX);
        let ahead_max = from.saturating_add(rate.span_ms.saturating_mul(spans));
        if begins.back().is_some_and(|last| *last > ahead_max) {
            begins.clear();
        }
        let earliest = match begins.len().checked_sub(rate.flows_max) {
            Some(index) => begins[index].saturating_add(rate.span_ms),
            None => 0,
        };
        let at = from.max(earliest).max(begins.back().copied().unwrap_or(0));
        begins.push_back(at);
        at
    }

    /// Notes when a flow began or will begin that an earlier process admitted.
    fn began(&self, key: u64, at_unix_ms: u64) {
        let mut inside = lock(&self.0);
        let begins = inside.begins.entry(key).or_default();
        let index = begins.partition_point(|begin| *begin <= at_unix_ms);
        begins.insert(index, at_unix_ms);
    }

    fn give_back(&self, key: u64, at_unix_ms: u64) {
        let mut inside = lock(&self.0);
        if let Some(begins) = inside.begins.get_mut(&key)
            && let Some(index) = begins.iter().rposition(|begin| *begin == at_unix_ms)
        {
            begins.remove(index);
        }
    }

    /// The number of flows that are held back.
    pub(super) fn len(&self) -> usize {
        lock(&self.0).tickets.len()
    }

    /// Holds a flow back until it is due. Gives the one whose place it takes.
    pub(super) fn hold(&self, flow: &Arc<StoredFlow>, due_unix_ms: u64) -> Option<Arc<StoredFlow>> {
        let agenda = &flow.durable().agenda;
        let mut inside = lock(&self.0);
        let Some(ticket) = agenda.hold(flow, due_unix_ms) else {
            drop(inside);
            flow.let_go();
            return None;
        };
        inside.tickets.insert(Arc::clone(&flow.key), ticket);
        let before = inside.last.insert(flow.hold.quiet?, Arc::clone(flow))?;
        let ticket = inside.tickets.remove(&before.key);
        drop(inside);
        // One that is due just now begins.
        ticket.is_some_and(|ticket| agenda.take_back(ticket)).then_some(before)
    }

    /// Lets a flow begin: it is due, or is to end.
    pub(super) fn release(&self, flow: &Arc<StoredFlow>) {
        let mut inside = lock(&self.0);
        inside.tickets.remove(&flow.key);
        let Some(quiet) = flow.hold.quiet else { return };
        if inside.last.get(&quiet).is_some_and(|last| Arc::ptr_eq(last, flow)) {
            inside.last.remove(&quiet);
        }
    }

    /// Has a flow begin that need not wait any longer. False when it does not wait.
    pub(super) fn hurry(&self, flow: &Arc<StoredFlow>) -> bool {
        let ticket = lock(&self.0).tickets.get(&flow.key).copied();
        let is_taken = ticket.is_some_and(|ticket| flow.durable().agenda.take_back(ticket));
        if is_taken {
            Lanes::due(flow);
        }
        is_taken
    }

    /// Forgets those that wait: they are in the store.
    pub(super) fn clear(&self, durable: &Durable) {
        let inside = std::mem::take(&mut *lock(&self.0));
        for ticket in inside.tickets.values() {
            durable.agenda.take_back(*ticket);
        }
    }
}

impl Inside {
    /// Forgets when flows began that are over for longer than a span, of all keys when there are many.
    fn forget_old(&mut self, span_ms: u64, now: u64) {
        if self.begins.len() < self.sweep_len.max(limits::RATE_KEYS_MIN) {
            return;
        }
        self.begins.retain(|_, begins| begins.back().is_some_and(|last| last.saturating_add(span_ms) > now));
        self.sweep_len = self.begins.len() * 2;
    }
}

impl Hold {
    /// Says that the flow begins.
    pub(super) fn begins(&self) {
        if let Some(slot) = &self.slot {
            slot.is_used.store(true, Ordering::Relaxed);
        }
    }

    pub(super) const fn quiet(&self) -> Option<u64> {
        self.quiet
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !*self.is_used.get_mut() {
            self.node.lanes().held.give_back(self.key, self.at_unix_ms);
        }
    }
}

/// The error of a flow whose place another one took.
pub(super) fn superseded(by: EventId) -> Error {
    Error::new(ErrorKind::Cancelled).context(format!("event {by} of the same key took its place"))
}

/// Reads from the log when flows of a node began that have ended or gone on by now.
///
/// # Errors
///
/// What the store says, and what cannot be read.
pub(super) async fn recover(durable: &Durable, node: &Arc<NodeInner>) -> Result<()> {
    let table = node.table.load();
    let Some(rate) = table.control.as_ref().and_then(|control| control.rate.as_ref()) else { return Ok(()) };
    let since = node.space.env.unix_ms().saturating_sub(rate.span_ms);
    let select = Select::tag(Tag::Node(Arc::clone(&node.name)));
    let mut start = Start::Edge;
    let mut looked_at = 0;
    loop {
        let page = durable.store.read(Read::backward(select.clone()).start(start)).await?;
        for stored in &page.records {
            looked_at += 1;
            if stored.at_unix_ms <= since || looked_at > limits::RATE_LOOK_RECORDS_MAX {
                return Ok(());
            }
            let record = WireRecord::decode(&stored.bytes, RECORD_BYTES_MAX)?;
            let Some(step) = &record.step else { continue };
            // Of each flow the first attempt at the first step, when it ended.
            if step.number > 0 || step.attempt != 1 || step.outcome == StepOutcome::Waits {
                continue;
            }
            let Some((event, _, _)) = durable.event_of(&node.space, step.event, true).await? else {
                continue;
            };
            let key = isolated("the key of a node that begins so many flows", || (rate.key_of)(&*event))?;
            // It began before it ended, so nothing is let begin too early.
            node.lanes().held.began(key, stored.at_unix_ms);
        }
        match page.next {
            Some(next) => start = Start::Position(next),
            None => return Ok(()),
        }
    }
}

/// Which of the flows that an earlier process left behind had their places taken, by the keys of their documents, each with
/// the event that took it. They are given in the order in which they were accepted.
pub(super) fn superseded_among<'f>(
    flows: impl Iterator<Item = &'f Arc<StoredFlow>>,
) -> HashMap<Key, EventId> {
    let mut last: HashMap<(happen_core::NodeKey, u64), &Arc<StoredFlow>> = HashMap::new();
    let mut superseded = HashMap::new();
    for flow in flows {
        let (Some(quiet), due) = (flow.hold.quiet(), flow.due_unix_ms()) else { continue };
        let table = flow.node.table.load();
        let Some(debounce) = table.control.as_ref().and_then(|control| control.debounce.as_ref()) else {
            continue;
        };
        if let Some(before) = last.insert((flow.node.key, quiet), flow)
            // It had not begun by the time the next one came.
            && before.due_unix_ms() > due.saturating_sub(debounce.quiet_ms)
        {
            superseded.insert(Arc::clone(&before.key), flow.event.envelope().id);
        }
    }
    superseded
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} flows held back", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(flows_max: usize, span_ms: u64) -> Rate {
        Rate { key_of: Arc::new(|_| 0), flows_max, span_ms }
    }

    proptest! {
        #[test]
        fn no_span_has_more_than_it_may_and_nobody_waits_in_vain(
            flows_max in 1_usize..5, span in 1_u64..50, gaps in proptest::collection::vec(0_u64..30, 1..60),
        ) {
            let (held, rate) = (Held::default(), rate(flows_max, span));
            let mut now = 1_000;
            let mut begins: Vec<u64> = Vec::new();
            for gap in gaps {
                now += gap;
                let at = held.reserve(&rate, 7, now, now);
                // The first time that is neither before another one nor too close to those before.
                let close = |at: u64| begins.iter().filter(|begin| **begin + span > at).count() >= flows_max;
                let first = (now.max(begins.last().copied().unwrap_or(0))..).find(|at| !close(*at));
                prop_assert_eq!(Some(at), first);
                begins.push(at);
            }
        }
    }

    #[test]
    fn a_time_that_is_given_back_makes_no_span_too_full() {
        let (held, rate) = (Held::default(), rate(2, 10));
        assert_eq!([100, 100, 100].map(|now| held.reserve(&rate, 1, now, now)), [100, 100, 110]);
        held.give_back(1, 110);
        assert_eq!(held.reserve(&rate, 1, 105, 105), 110);
        // Another key has times of its own.
        assert_eq!(held.reserve(&rate, 2, 105, 105), 105);
    }

    #[test]
    fn a_clock_that_was_far_ahead_holds_nobody_up() {
        let (held, rate) = (Held::default(), rate(1, 10));
        assert_eq!(held.reserve(&rate, 1, 1_000_000, 1_000_000), 1_000_000);
        assert_eq!(held.reserve(&rate, 1, 100, 100), 100);
        assert_eq!(held.reserve(&rate, 1, 100, 100), 110);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let (held, rate) = (Held::default(), rate(3, 10));
        for key in 0..10_000 {
            held.reserve(&rate, key, key * 100, key * 100);
            held.reserve(&rate, 0, key * 100, key * 100);
        }
        let inside = lock(&held.0);
        assert!(inside.begins.len() <= limits::RATE_KEYS_MIN, "{}", inside.begins.len());
        assert!(inside.begins[&0].len() <= 2);
    }
}
