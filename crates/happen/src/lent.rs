//! What a flow borrows while it runs on somebody's stack: its node and the envelope of its event. Owns the moment at
//! which they become its own: as soon as anybody keeps its context. Most flows end without that, and pay for no count
//! and no copy.
#![expect(
    unsafe_code,
    reason = "counting the node and copying the envelope for every event cost a fifth of an ask (docs/performance.md)"
)]

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};

use happen_core::{Envelope, ErasedEvent};

use crate::context::Context;
use crate::dispatch::Want;
use crate::flow::FlowInner;
use crate::local;
use crate::node::NodeInner;
use crate::table::Entry;

/// A node and an envelope, borrowed or owned.
pub(crate) struct Lent {
    /// Where they are while they are borrowed; read only while nothing is kept.
    node: AtomicPtr<Arc<NodeInner>>,
    envelope: AtomicPtr<Envelope>,
    /// The same ones, owned. A node may stay here from the flow before, when it is the same.
    kept_node: OnceLock<Arc<NodeInner>>,
    kept_envelope: OnceLock<Envelope>,
}

impl Lent {
    /// Both owned from the beginning.
    pub(crate) fn owned(node: Arc<NodeInner>, envelope: Envelope) -> Self {
        Self {
            node: AtomicPtr::new(ptr::null_mut()),
            envelope: AtomicPtr::new(ptr::null_mut()),
            kept_node: OnceLock::from(node),
            kept_envelope: OnceLock::from(envelope),
        }
    }

    /// Forgets what was there and borrows these.
    ///
    /// # Safety
    ///
    /// Both stay where they are until [`Lent::keep`] was called, or until nobody asks for them any more.
    #[inline]
    unsafe fn lend(&mut self, node: &Arc<NodeInner>, envelope: &Envelope) {
        if self.kept_node.get().is_some_and(|kept| !Arc::ptr_eq(kept, node)) {
            self.kept_node.take();
        }
        if self.kept_envelope.get().is_some() {
            self.kept_envelope.take();
        }
        *self.node.get_mut() = ptr::from_ref(node).cast_mut();
        *self.envelope.get_mut() = ptr::from_ref(envelope).cast_mut();
    }

    #[inline]
    pub(crate) fn node(&self) -> &Arc<NodeInner> {
        match self.kept_node.get() {
            Some(kept) => kept,
            // SAFETY: nothing is kept, so it is lent, and by the contract of `lend` it is still where it was.
            None => unsafe { &*self.node.load(Ordering::Relaxed) },
        }
    }

    #[inline]
    pub(crate) fn envelope(&self) -> &Envelope {
        match self.kept_envelope.get() {
            Some(kept) => kept,
            // SAFETY: as above.
            None => unsafe { &*self.envelope.load(Ordering::Relaxed) },
        }
    }

    /// Makes both its own.
    #[inline]
    pub(crate) fn keep(&self) {
        if self.kept_node.get().is_none() {
            self.kept_node.get_or_init(|| Arc::clone(self.node()));
        }
        if self.kept_envelope.get().is_none() {
            self.kept_envelope.get_or_init(|| self.envelope().clone());
        }
    }
}

/// The context of a flow that has ended, to be used again: by the next delivery of the same event, or by this thread.
pub(crate) struct Spare(Option<triomphe::UniqueArc<FlowInner>>);

impl Spare {
    #[inline]
    pub(crate) fn take() -> Self {
        Self(local::take_recycled())
    }
}

impl Drop for Spare {
    #[inline]
    fn drop(&mut self) {
        if let Some(flow) = self.0.take() {
            local::recycle(flow);
        }
    }
}

impl Context {
    /// Runs `work` in the context of a new flow, which is used again afterwards unless somebody kept it. Something left
    /// to do is given back together with the context, which is then its own.
    #[inline(always)]
    pub(crate) fn lent_to<R>(
        spare: &mut Spare,
        node: &Arc<NodeInner>,
        event: &dyn ErasedEvent,
        batch: bool,
        entry: &Entry,
        serial: Option<u64>,
        want: Want,
        work: impl FnOnce(&Self) -> Option<R>,
    ) -> Option<(Self, R)> {
        let mut flow = spare.0.take().unwrap_or_else(|| {
            triomphe::UniqueArc::new(FlowInner::new(Arc::clone(node), event.envelope().clone()))
        });
        // SAFETY: both are borrowed for longer than this call. Whatever outlives it is a clone of the context, and
        // cloning keeps; the context itself is ended here, or kept before it is given away.
        unsafe { flow.lent.lend(node, event.envelope()) };
        flow.begin(event, batch, entry.id, serial, want);
        let context = Self::of(flow);
        match work(&context) {
            None => {
                spare.0 = context.end();
                None
            }
            Some(rest) => {
                context.keep();
                Some((context, rest))
            }
        }
    }
}
