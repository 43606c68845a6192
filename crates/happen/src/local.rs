//! What each thread keeps for each space: the block its ids come from, its ring of headers, and how deep it is in
//! handlers that run inline. Keyed by space, so two spaces in one process share nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use happen_core::id::IdBlock;
use happen_core::{Error, ErrorKind, EventId, Result};
use triomphe::UniqueArc;

use crate::context::Context;
use crate::current;
use crate::dispatch::Place;
use crate::flow::FlowInner;
use crate::limits;
use crate::published::Claim;
use crate::slow;
use crate::space::SpaceInner;
use crate::sync::kept_going;
use crate::table::Table;
use crate::web::Ring;

thread_local! {
    static LOCALS: RefCell<Locals> = const { RefCell::new(Locals::new()) };
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static RUN: Cell<u32> = const { Cell::new(0) };
    static DEFERRED_LEN: Cell<usize> = const { Cell::new(0) };
    static DEFERRED: RefCell<VecDeque<Deferred>> = const { RefCell::new(VecDeque::new()) };
}

/// Work that waits for the stack to unwind.
pub(crate) type Deferred = Box<dyn FnOnce()>;

struct Locals {
    /// The space used last, and this thread's part of it. Most threads know one.
    id: u64,
    local: Option<Box<Local>>,
    /// The others.
    spaces: Vec<(u64, Box<Local>)>,
    recycled: Vec<UniqueArc<FlowInner>>,
}

impl Locals {
    const fn new() -> Self {
        Self { id: 0, local: None, spaces: Vec::new(), recycled: Vec::new() }
    }

    #[inline]
    fn of(&mut self, space: &SpaceInner) -> (&mut Local, &mut Vec<UniqueArc<FlowInner>>) {
        if self.id != space.id {
            self.bring_forward(space);
        }
        // It is there whenever the id is that of a space.
        (self.local.get_or_insert_with(|| Local::boxed(space)), &mut self.recycled)
    }

    #[cold]
    fn bring_forward(&mut self, space: &SpaceInner) {
        let known = self.spaces.iter().position(|(id, _)| *id == space.id);
        let next = match known {
            Some(index) => self.spaces.swap_remove(index).1,
            None => {
                self.spaces.retain(|(_, local)| !local.ring.is_closed());
                Local::boxed(space)
            }
        };
        if let Some(before) = self.local.replace(next) {
            self.spaces.push((self.id, before));
        }
        self.id = space.id;
    }
}

/// One thread's part of one space.
pub(crate) struct Local {
    ids: IdBlock,
    pub(crate) ring: Arc<Ring>,
    pub(crate) slots: Option<Claim<Table>>,
    counts: Box<[(Option<EventId>, u64)]>,
    steps_seen: Seen,
    types_seen: Seen,
    /// Keeps the id of the space from being given to another one while it is remembered here.
    _token: Arc<()>,
}

impl Local {
    #[cold]
    #[inline(never)]
    fn boxed(space: &SpaceInner) -> Box<Self> {
        Box::new(Self {
            ids: IdBlock::new(space.env.random_u64()),
            ring: space.ring(),
            slots: space.readers.claim(),
            counts: vec![(None, 0); COUNTS].into(),
            steps_seen: Seen::new(),
            types_seen: Seen::new(),
            _token: space.token(),
        })
    }

    #[inline]
    pub(crate) fn next_id(&mut self, unix_ms: u64) -> EventId {
        self.ids.next_id(unix_ms)
    }

    /// An id for an effect of this flow's events: younger than all of them, and than what the flow sent before, which may
    /// have been on another thread.
    #[inline]
    pub(crate) fn next_id_in(&mut self, unix_ms: u64, flow: &FlowInner) -> EventId {
        // The events of a batch were stamped one after the other, so the last is the youngest.
        let cause = flow.more_causes.last().copied().unwrap_or(flow.envelope().id);
        let after = flow.last_effect().map_or(cause, |last| last.max(cause));
        let id = self.next_id_after(unix_ms, after);
        flow.note_effect(id);
        id
    }

    #[inline]
    pub(crate) fn next_id_after(&mut self, unix_ms: u64, cause: EventId) -> EventId {
        self.ids.next_id_after(unix_ms, cause)
    }

    /// Counts one more event below this root and returns how many this thread has seen. Roots share a table of fixed
    /// size; one that is pushed out begins anew, and a root that runs away is not pushed out for long.
    #[inline]
    pub(crate) fn count(&mut self, root: EventId) -> u64 {
        let (high, low) = root.to_halves();
        let index = (low >> 42 ^ high) as usize & (COUNTS - 1);
        let entry = &mut self.counts[index];
        if entry.0 == Some(root) {
            entry.1 += 1;
        } else {
            *entry = (Some(root), 1);
        }
        entry.1
    }
}

impl Local {
    /// Whether this thread sees the name of a step for the first time, or again after others took its place.
    #[inline]
    pub(crate) fn sees_step(&mut self, number: u64) -> bool {
        self.steps_seen.is_new(number)
    }

    /// Whether this thread sees a type for the first time, or again after others took its place.
    #[inline]
    pub(crate) fn sees_type(&mut self, hash: u64) -> bool {
        self.types_seen.is_new(hash)
    }
}

/// Numbers a thread has met: sets of a few, the one met last first, so that some that fall together do not push each
/// other out for ever.
struct Seen([[u64; SEEN_WAYS]; SEEN_SETS]);

impl Seen {
    const fn new() -> Self {
        Self([[0; SEEN_WAYS]; SEEN_SETS])
    }

    /// Whether the number is met for the first time, or again after others took its place.
    #[inline]
    fn is_new(&mut self, number: u64) -> bool {
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
        let set = &mut self.0[spread as usize % SEEN_SETS];
        if set[0] == number {
            return false;
        }
        let at = set.iter().position(|&seen| seen == number);
        set[..=at.unwrap_or(SEEN_WAYS - 1)].rotate_right(1);
        set[0] = number;
        at.is_none()
    }
}

/// Runs `work` with this thread's part of the space.
#[inline]
pub(crate) fn with_local<R>(space: &SpaceInner, work: impl FnOnce(&mut Local) -> R) -> R {
    LOCALS.with_borrow_mut(|locals| work(locals.of(space).0))
}

/// The same, with the contexts that are to be used again.
#[inline]
pub(crate) fn with_recycled<R>(
    space: &SpaceInner,
    work: impl FnOnce(&mut Local, &mut Vec<UniqueArc<FlowInner>>) -> R,
) -> R {
    LOCALS.with_borrow_mut(|locals| {
        let (local, recycled) = locals.of(space);
        work(local, recycled)
    })
}

/// Keeps a context for later use.
#[inline]
pub(crate) fn recycle(flow: UniqueArc<FlowInner>) {
    // A context that ends with its thread finds no place to be kept in, which is fine.
    let kept = LOCALS.try_with(|locals| {
        if let Ok(mut locals) = locals.try_borrow_mut()
            && locals.recycled.len() < limits::RECYCLED_MAX
        {
            locals.recycled.push(flow);
            return None;
        }
        Some(flow)
    });
    // Dropped outside the borrow: a context may own a node, and with it anything the user captured.
    drop(kept);
}

/// Forgets the contexts kept by this thread, which may keep a closed space alive.
pub(crate) fn forget_recycled() {
    // A space that ends with its thread finds that what the thread kept has ended already.
    let recycled = LOCALS.try_with(|locals| std::mem::take(&mut locals.borrow_mut().recycled));
    drop(recycled);
}

/// The flow that is being polled on this thread, when it belongs to this space.
#[inline(always)]
pub(crate) fn current<R>(space: &SpaceInner, work: impl FnOnce(Option<&FlowInner>) -> R) -> R {
    current::with(|flow| work(flow.map(Context::inner).filter(|flow| flow.node().space.id == space.id)))
}

/// As [`current`], to be kept.
pub(crate) fn current_context(space: &SpaceInner) -> Option<Context> {
    current::with(|flow| flow.filter(|flow| flow.inner().node().space.id == space.id).cloned())
}

/// The place of the flow that is being polled on this thread, once it goes on as a task.
pub(crate) fn current_place() -> Option<Arc<Place>> {
    current::with(|flow| flow.and_then(|flow| flow.inner().place()))
}

/// One level deeper in handlers that run inline; `None` when it is deep enough, or when earlier events on this thread
/// were put off and so have to come first.
#[inline]
pub(crate) fn deeper() -> Option<Depth> {
    let now = DEPTH.get();
    let free = now < limits::INLINE_DEPTH_MAX && (now == 0 || DEFERRED_LEN.get() == 0);
    free.then(|| {
        DEPTH.set(now + 1);
        Depth
    })
}

/// How many handlers are nested on this thread's stack.
#[inline]
pub(crate) fn depth() -> u32 {
    DEPTH.get()
}

/// A level of handlers that run inline. When the outermost one ends, what was put off is run.
pub(crate) struct Depth;

impl Drop for Depth {
    #[inline]
    fn drop(&mut self) {
        let depth = DEPTH.get();
        // Only the outermost level runs what was put off, so its stack is as short as it gets.
        if depth == 1 && DEFERRED_LEN.get() != 0 {
            run_deferred();
        }
        DEPTH.set(depth - 1);
    }
}

#[cold]
fn run_deferred() {
    while let Some(work) = DEFERRED.with_borrow_mut(VecDeque::pop_front) {
        // Counted until it has run, so that what it sends itself waits behind what was put off before.
        kept_going("what was put off", work);
        DEFERRED_LEN.set(DEFERRED_LEN.get() - 1);
        ran(1);
    }
    slow::forget_nested();
}

/// Puts work off until the outermost handler on this thread has returned.
///
/// # Errors
///
/// [`ErrorKind::Busy`] when too much waits already.
pub(crate) fn defer(work: Deferred) -> Result<()> {
    let len = DEFERRED_LEN.get();
    if len >= limits::DEFERRED_MAX {
        let what = format!("the list of {len} events that wait for the stack to unwind");
        return Err(Error::new(ErrorKind::Busy { what }));
    }
    DEFERRED_LEN.set(len + 1);
    DEFERRED.with_borrow_mut(|deferred| deferred.push_back(work));
    Ok(())
}

/// Whether this thread has dispatched so much in a row that others should run.
#[inline]
pub(crate) fn should_yield() -> bool {
    let run = RUN.get();
    if run < limits::INLINE_RUN_MAX {
        RUN.set(run + 1);
        return false;
    }
    RUN.set(0);
    true
}

/// Counts work in a row that no `should_yield` saw, so that whoever made it gives way the sooner at its next wait.
#[inline]
pub(crate) fn ran(dispatches: u32) {
    RUN.set(RUN.get().saturating_add(dispatches));
}

/// Begins the count of dispatches anew, for a space that was just made: what ran on this thread before must not decide
/// when its events give way to others, or a simulator could not repeat a run.
pub(crate) fn begin_run() {
    RUN.set(0);
}

/// Roots whose events are counted at once.
const COUNTS: usize = 256;
/// Sets of names this thread knows to be known, one table for steps and one for types.
const SEEN_SETS: usize = 64;
/// Names in one set.
const SEEN_WAYS: usize = 4;
