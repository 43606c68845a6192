//! What a flow borrows while it runs on somebody's stack: its node and the envelope of its event. Owns the moment at
//! which they become its own: as soon as anybody keeps its context. Most flows end without that, and pay for no count
//! and no copy.
#![expect(
    unsafe_code,
    reason = "counting the node and copying the envelope for every event cost a fifth of an ask (docs/performance.md)"
)]

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};

use happen_core::{Envelope, ErasedEvent};

use crate::context::Context;
use crate::dispatch::Want;
use crate::flow::FlowInner;
use crate::local;
use crate::node::NodeInner;
use crate::published::Here;
use crate::table::Table;

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

/// What a delivery needs of the thread it runs on: where to read tables, and the context of a flow that has ended, to be
/// used again.
pub(crate) struct Way<'s> {
    pub(crate) here: Here<'s, Table>,
    pub(crate) spare: Option<triomphe::UniqueArc<FlowInner>>,
}

impl Way<'_> {
    /// Before anything is known.
    pub(crate) const fn new() -> Self {
        Self { here: Here::NOWHERE, spare: None }
    }
}

impl Drop for Way<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(flow) = self.spare.take() {
            local::recycle(flow);
        }
    }
}

/// The context of a new flow, which borrows its node and its event. It is used again afterwards unless somebody kept it.
pub(crate) struct Lease<'l, 's> {
    context: ManuallyDrop<Context>,
    way: &'l mut Way<'s>,
    lent: PhantomData<&'l ()>,
}

impl<'l, 's> Lease<'l, 's> {
    #[inline(always)]
    pub(crate) fn new(
        way: &'l mut Way<'s>,
        node: &'l Arc<NodeInner>,
        (event, batch): (&'l dyn ErasedEvent, bool),
        registration: u64,
        serial: Option<u64>,
        want: Want,
    ) -> Self {
        let mut flow = way.spare.take().unwrap_or_else(|| {
            triomphe::UniqueArc::new(FlowInner::new(Arc::clone(node), event.envelope().clone()))
        });
        // SAFETY: both are borrowed for longer than the lease lives. Whatever outlives it is a clone of the context, and
        // cloning keeps; the context itself ends with the lease, or is kept when it is given away.
        unsafe { flow.lent.lend(node, event.envelope()) };
        flow.begin(event, batch, registration, serial, want);
        Self { context: ManuallyDrop::new(Context::of(flow)), way, lent: PhantomData }
    }

    /// Ends the flow, as dropping the lease does.
    #[inline(always)]
    pub(crate) fn end(self) {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: the lease is not dropped and not used again.
        let context = unsafe { ManuallyDrop::take(&mut this.context) };
        this.way.spare = context.end();
    }

    /// The context, which owns what it needs from now on.
    #[cold]
    pub(crate) fn keep(self) -> Context {
        self.context.keep();
        let mut this = ManuallyDrop::new(self);
        // SAFETY: the lease is not dropped and not used again.
        unsafe { ManuallyDrop::take(&mut this.context) }
    }
}

impl Deref for Lease<'_, '_> {
    type Target = Context;

    #[inline(always)]
    fn deref(&self) -> &Context {
        &self.context
    }
}

impl Drop for Lease<'_, '_> {
    #[cold]
    fn drop(&mut self) {
        // SAFETY: it was there until now, and nobody asks for it after this.
        let context = unsafe { ManuallyDrop::take(&mut self.context) };
        self.way.spare = context.end();
    }
}
