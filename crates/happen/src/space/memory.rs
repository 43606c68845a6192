//! What a space remembers of its events, and what a thread is given for the way of one. Owns the names behind the headers
//! in the rings; the rings themselves are in `web.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use happen_core::{Envelope, ErasedEvent, EventId, EventType, Function, NodeKey};

use super::SpaceInner;
use crate::dispatch;
use crate::flow::{FlowInner, Outcome};
use crate::lent::Way;
use crate::limits;
use crate::local::{self, Local};
use crate::published::Here;
use crate::sync::lock;
use crate::table::Table;
use crate::web::{self, Mark, Ring};

impl SpaceInner {
    /// Keeps the name of a type for traces, while there is room.
    #[cold]
    fn name_type(&self, event_type: &EventType) {
        let types = self.types.pin();
        // Looked for first: a thread knows a few hundred types, and those beyond come here again and again.
        if !types.contains_key(&event_type.hash()) && types.len() < self.config.types_max {
            types.insert(event_type.hash(), event_type.clone());
        }
    }

    pub(crate) fn type_names(&self) -> HashMap<u64, EventType> {
        self.types.pin().iter().map(|(hash, name)| (*hash, name.clone())).collect()
    }

    /// A ring for a thread: one whose thread has ended, or a new one.
    pub(crate) fn ring(&self) -> Arc<Ring> {
        let mut rings = lock(&self.rings);
        if let Some(left) = rings.iter().find(|ring| Arc::strong_count(ring) == 1) {
            return Arc::clone(left);
        }
        let ring = Arc::new(Ring::new(self.config.remembered_events));
        rings.push(Arc::clone(&ring));
        self.threads.store(rings.len() as u32, Ordering::Relaxed);
        ring
    }

    pub(crate) fn rings(&self) -> Vec<Arc<Ring>> {
        lock(&self.rings).clone()
    }

    /// Where this thread reads the tables of nodes.
    #[inline]
    pub(crate) fn here(&self) -> Here<'_, Table> {
        local::with_local(self, |local| self.readers.here(local.slots.as_ref()))
    }

    /// What an event needs of this thread to be delivered.
    #[inline]
    pub(crate) fn way(&self) -> Way<'_> {
        local::with_recycled(self, |local, recycled| Way {
            here: self.readers.here(local.slots.as_ref()),
            spare: recycled.pop(),
        })
    }

    /// Remembers an event that leaves for a node here, and prepares its way.
    #[inline]
    pub(crate) fn set_out<'s>(&'s self, envelope: &Envelope, to: NodeKey, way: &mut Way<'s>) -> Mark {
        local::with_recycled(self, |local, recycled| {
            way.here = self.readers.here(local.slots.as_ref());
            way.spare = recycled.pop();
            self.note_sent(local, envelope, to)
        })
    }

    /// Remembers what became of such an event.
    #[inline]
    pub(crate) fn arrived(&self, mark: Mark, way: &mut Way<'_>, what: u8) {
        let left = local::with_recycled(self, |local, recycled| {
            local.ring.settle(mark, what);
            let flow = way.spare.take()?;
            if recycled.len() < limits::RECYCLED_MAX {
                recycled.push(flow);
                return None;
            }
            Some(flow)
        });
        // Outside: it may own a node, and with it anything the user captured.
        drop(left);
    }

    /// Remembers an event that leaves.
    #[inline]
    pub(crate) fn remember_sent(&self, envelope: &Envelope, to: NodeKey) -> Mark {
        local::with_local(self, |local| self.note_sent(local, envelope, to))
    }

    #[inline]
    fn note_sent(&self, local: &mut Local, envelope: &Envelope, to: NodeKey) -> Mark {
        if local.sees_type(envelope.event_type.hash()) {
            self.name_type(&envelope.event_type);
        }
        let mark = local.ring.sent(envelope, to, web::SENT_ON);
        if let Some(extra) = &envelope.extra {
            for &cause in &extra.more_causes {
                local.ring.cause(envelope.id, cause);
            }
        }
        mark
    }

    #[inline]
    pub(crate) fn settle(&self, mark: Mark, what: u8) {
        local::with_local(self, |local| local.ring.settle(mark, what));
    }

    #[inline]
    pub(crate) fn remember(&self, event: EventId, node: NodeKey, what: u8) {
        local::with_local(self, |local| local.ring.handled(event, node, what));
    }

    /// Remembers how a flow ended, for every event it handled.
    #[inline]
    pub(crate) fn settled(&self, event: &dyn ErasedEvent, node: NodeKey, outcome: &Outcome) {
        let what = dispatch::what(outcome);
        self.remember(event.envelope().id, node, what);
        for later in (1..event.len()).filter_map(|index| event.single(index)) {
            self.remember(later.envelope().id, node, what);
        }
    }

    /// Remembers that a flow went on with this function.
    pub(crate) fn note_step(&self, flow: &FlowInner, function: &dyn Function) {
        let after = flow.noted_steps.fetch_add(1, Ordering::Relaxed);
        let name = function.type_name();
        // The address of a name is its number: names are constants, so it never stands for another one.
        let number = name.as_ptr() as u64;
        local::with_local(self, |local| {
            if local.sees_step(number) {
                self.steps.pin().insert(number, name);
            }
            local.ring.step(flow.envelope().id, flow.node().key, number, after);
        });
    }

    pub(crate) fn step_name(&self, number: u64) -> Option<&'static str> {
        self.steps.pin().get(&number).copied()
    }

    pub(crate) fn name_correlation(&self, name: &Arc<str>, root: EventId) {
        let mut named = lock(&self.correlations);
        if named.len() >= self.config.remembered_events {
            named.pop_front();
        }
        named.push_back((Arc::clone(name), root));
    }

    pub(crate) fn roots_of(&self, correlation: &str) -> Vec<EventId> {
        let named = lock(&self.correlations);
        named.iter().filter(|(name, _)| &**name == correlation).map(|(_, root)| *root).collect()
    }

    /// The events that led to this one, oldest first, as far as they are remembered.
    pub(crate) fn way_to(&self, event: EventId, max: usize) -> Vec<String> {
        crate::trace::Remembered::read(self).way_to(event, max)
    }

    pub(crate) fn emitted_by(&self, node: NodeKey) -> Vec<String> {
        crate::trace::Remembered::read(self).types_from(node)
    }
}
