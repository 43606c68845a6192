//! Supervisors: nodes that build other nodes, count their failures, and build them anew. Owns when a restart
//! is due and what it does to a node's registrations; does not know why a flow failed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use happen_core::{Envelope, ErasedEvent, Error, ErrorKind, NodeKey, Result};

use crate::limits;
use crate::node::{Node, NodeInner};
use crate::space::{Space, SpaceInner};
use crate::sync::{Mutex, lock};
use crate::table::{Build, Made, Phase, Watched};

/// A node that watches others: it builds each of them with a function, counts their failures, and builds them
/// anew when they fail. A handle; cloning shares the supervisor, and dropping it ends nothing.
///
/// A *restart* of a child keeps the node: every handle and its id stay valid, its state stays, and events
/// that come meanwhile wait in its queue. Flows under way are cancelled, their senders get
/// [`ErrorKind::Cancelled`], and what the build function made (registrations, steps, hooks, predicates) is
/// replaced by what it makes now, in one go. Registrations made elsewhere stay. The event whose flow failed
/// is not handled again.
///
/// # Which failures count
///
/// A panic in a handler of the child always counts. Errors count when [`Supervisor::counts`] says so; unless
/// set, those of the handler's own ([`ErrorKind::Failed`]) do, and errors that it got from another node and
/// passed on, or bad input, do not: a child is not to be worn down by what others send. A failure of the
/// build function counts too. Failures are told by the dispatcher itself, before the reply leaves, so none is
/// lost.
///
/// # Restarts and their limit
///
/// [`Supervisor::restarts_max`] allows so many restarts within a window; the count is kept here, not in the
/// child. Under [`Strategy::OneForOne`] each child has its own count, otherwise all share one. One failure
/// more, and the supervisor gives up: it hands the failure to the supervisor above, which restarts this one
/// with all its children, or, when there is none, stops the nodes concerned. Their senders get
/// [`ErrorKind::Closed`] from then on; [`Node::resume`] takes a node back into service.
///
/// # Events
///
/// `node.restarted` and `node.down` with `node_id`, `supervisor`, `reason`, `code`, `failures`, `restarts`
/// and `waiting` (events in the queue) are broadcast by the supervisor's node, caused by the event whose flow
/// failed.
///
/// # Examples
///
/// ```
/// use happen::{Context, Event, Space};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let supervisor = space.supervisor("shop");
/// let orders = space.node("orders");
/// supervisor.child(&orders, |orders| {
///     orders.on("order", |_: &Event, _: &Context| "taken".to_owned()).check()
/// })?;
/// space.start().await?;
/// let order = Event::new("order", serde_json::json!({}));
/// assert_eq!(*space.send(&orders, order).reply::<String>().await?, "taken");
/// assert_eq!(supervisor.children()[0].restarts, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

/// Which children a failure restarts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// The one that failed.
    #[default]
    OneForOne,
    /// All, in the order they were added.
    OneForAll,
    /// The one that failed and those added after it.
    RestForOne,
}

/// What a supervisor knows of a child.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Supervised {
    /// The id of the child: of a node, or of a supervisor below.
    pub id: String,
    /// Whether it works.
    pub standing: Standing,
    /// Failures that counted, since it was added.
    pub failures: u64,
    /// Restarts, since it was added.
    pub restarts: u64,
    /// All failures by their code, those that do not count included.
    pub codes: BTreeMap<&'static str, u64>,
    /// The words of the last failure that counted.
    pub last_failure: Option<String>,
    /// When that was, in milliseconds since 1970.
    pub failed_at_unix_ms: Option<u64>,
}

/// Whether a supervised node works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It handles events.
    Running,
    /// Its events wait until it is built anew.
    Restarting,
    /// It failed too often and was stopped.
    Down,
}

struct Inner {
    node: Node,
    state: Mutex<State>,
    /// Held while children are built, so that two rounds never build one node at once.
    building: Mutex<()>,
    /// Weak, as the parent owns this one; what keeps the parent is the watch on this one's node.
    parent: OnceLock<Weak<Self>>,
}

struct State {
    rules: Rules,
    children: Vec<Child>,
    /// The restarts within the window: of each child, or under the first index of all together.
    restarts: BTreeMap<usize, VecDeque<Duration>>,
    rounds: u64,
}

struct Rules {
    strategy: Strategy,
    restarts_max: u32,
    window: Duration,
    tolerated: u32,
    backoff_first: Duration,
    backoff_max: Duration,
    counts: Option<Counts>,
}

type Counts = Arc<dyn Fn(&Error) -> bool + Send + Sync>;

struct Child {
    unit: Unit,
    /// The round of restarts it belongs to; an older round that finds a newer number here leaves it alone.
    round: u64,
    failed: VecDeque<Duration>,
    known: Supervised,
}

/// What can be built anew.
#[derive(Clone)]
enum Unit {
    Node(Node, BuildFunction),
    Supervisor(Arc<Inner>),
}

type BuildFunction = Arc<dyn Fn(&Node) -> Result<()> + Send + Sync>;

/// A failure as its supervisor sees it.
#[derive(Clone)]
struct Failed {
    reason: String,
    code: &'static str,
    /// The context of the event whose flow failed; `None` for a failure of a build function.
    envelope: Option<Envelope>,
}

/// What a failure leads to.
enum Verdict {
    Nothing,
    Restart { round: u64, affected: Vec<usize>, after: Duration },
    Escalate { to: Arc<Inner> },
    GiveUp { down: Vec<(Node, Supervised)> },
}

impl Supervisor {
    /// A supervisor without children yet, and the node of this id that its events come from.
    #[must_use]
    pub fn new(space: &Space, id: impl AsRef<str>) -> Self {
        let rules = Rules {
            strategy: Strategy::OneForOne,
            restarts_max: limits::RESTARTS_MAX,
            window: Duration::from_millis(limits::RESTARTS_WINDOW_MS),
            tolerated: 0,
            backoff_first: Duration::from_millis(limits::RESTART_BACKOFF_FIRST_MS),
            backoff_max: Duration::from_millis(limits::RESTART_BACKOFF_MS_MAX),
            counts: None,
        };
        let state = State { rules, children: Vec::new(), restarts: BTreeMap::new(), rounds: 0 };
        let inner = Inner {
            node: space.node(id),
            state: Mutex::new(state),
            building: Mutex::default(),
            parent: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The supervisor's own node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.inner.node
    }

    /// Sets which children a failure restarts. Default [`Strategy::OneForOne`].
    #[must_use]
    pub fn strategy(self, strategy: Strategy) -> Self {
        self.rule(|rules| rules.strategy = strategy)
    }

    /// Allows so many restarts within a window; the next one gives up. Default
    /// [`RESTARTS_MAX`](limits::RESTARTS_MAX) within [`RESTARTS_WINDOW_MS`](limits::RESTARTS_WINDOW_MS).
    #[must_use]
    pub fn restarts_max(self, restarts: u32, window: Duration) -> Self {
        self.rule(|rules| (rules.restarts_max, rules.window) = (restarts, window))
    }

    /// Restarts a child only when more than so many of its failures fall within the window. Default 0.
    #[must_use]
    pub fn tolerate(self, failures: u32) -> Self {
        self.rule(|rules| rules.tolerated = failures)
    }

    /// Sets how long events wait before a restart: the first within a window so long, every further one twice
    /// the one before, never longer than `max`.
    #[must_use]
    pub fn backoff(self, first: Duration, max: Duration) -> Self {
        self.rule(|rules| (rules.backoff_first, rules.backoff_max) = (first.min(max), max))
    }

    /// Sets which errors count. Panics in a child's own handlers count anyway. A predicate that panics says
    /// yes.
    #[must_use]
    pub fn counts(self, predicate: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        let predicate: Counts = Arc::new(predicate);
        self.rule(|rules| rules.counts = Some(predicate))
    }

    fn rule(self, change: impl FnOnce(&mut Rules)) -> Self {
        change(&mut lock(&self.inner.state).rules);
        self
    }

    /// Adds a node and runs its build function, which registers what the node handles.
    ///
    /// # Errors
    ///
    /// - What the build function fails with; nothing of it stays, and the node is not a child.
    /// - [`ErrorKind::Misuse`] when the node has a supervisor already, belongs to another space, or is
    ///   destroyed.
    pub fn child(
        &self,
        node: &Node,
        build: impl Fn(&Node) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()> {
        let inner = node.inner();
        if inner.space.id != self.inner.space().id {
            return Err(Error::misuse(format!("node `{}` belongs to another space", node.id())));
        }
        if inner.table.load().watched.is_some() {
            return Err(Error::misuse(format!("node `{}` has a supervisor already", node.id())));
        }
        if inner.table.load().phase == Phase::Closed {
            return Err(Error::misuse(format!("node `{}` takes no events any more", node.id())));
        }
        self.inner.watch_node(inner);
        let unit = Unit::Node(node.clone(), Arc::new(build));
        if let Err(error) = unit.build() {
            inner.change(|table| table.watched = None);
            return Err(error.at_node(node.id()));
        }
        self.inner.add(unit);
        Ok(())
    }

    /// Adds another supervisor as a child: it is restarted, with all its children, when it gives up.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when it has a supervisor above it already, is one of those above this one, or
    /// belongs to another space.
    pub fn supervise(&self, other: &Self) -> Result<()> {
        if other.inner.space().id != self.inner.space().id {
            return Err(Error::misuse(format!("`{:?}` belongs to another space", other)));
        }
        let mut above = Some(Arc::clone(&self.inner));
        while let Some(inner) = above {
            if Arc::ptr_eq(&inner, &other.inner) {
                return Err(Error::misuse(format!("`{:?}` would supervise itself", other)));
            }
            above = inner.parent();
        }
        let unit = Unit::Supervisor(Arc::clone(&other.inner));
        if other.inner.parent.set(Arc::downgrade(&self.inner)).is_err() {
            return Err(Error::misuse(format!("`{:?}` has a supervisor already", other)));
        }
        self.inner.watch_node(other.inner.node.inner());
        self.inner.add(unit);
        Ok(())
    }

    /// What is known of the children, in the order they were added.
    #[must_use]
    pub fn children(&self) -> Vec<Supervised> {
        lock(&self.inner.state).children.iter().map(|child| child.known.clone()).collect()
    }
}

impl Space {
    /// Makes a supervisor; see [`Supervisor`].
    #[must_use]
    pub fn supervisor(&self, id: impl AsRef<str>) -> Supervisor {
        Supervisor::new(self, id)
    }
}

impl Inner {
    fn space(&self) -> &Arc<SpaceInner> {
        &self.node.inner().space
    }

    fn parent(&self) -> Option<Arc<Self>> {
        self.parent.get()?.upgrade()
    }

    /// Has the failures of this node told. The node then keeps its supervisor, until it is destroyed.
    fn watch_node(self: &Arc<Self>, node: &Arc<NodeInner>) {
        let (supervisor, key) = (Arc::clone(self), node.key);
        let watched = Arc::new(Watched {
            watch: Arc::new(move |event, error| supervisor.watch(key, event, error)),
            held: false,
            build: 0,
            fresh: None,
            made: Made::default(),
        });
        node.change(|table| table.watched = Some(Arc::clone(&watched)));
    }

    fn add(&self, unit: Unit) {
        let known = Supervised {
            id: unit.node().id().to_owned(),
            standing: Standing::Running,
            failures: 0,
            restarts: 0,
            codes: BTreeMap::new(),
            last_failure: None,
            failed_at_unix_ms: None,
        };
        lock(&self.state).children.push(Child { unit, round: 0, failed: VecDeque::new(), known });
    }

    /// A flow of a child failed. Runs on the stack of whoever drove the flow, so it only decides.
    fn watch(self: &Arc<Self>, key: NodeKey, event: &dyn ErasedEvent, error: &Error) {
        let counts = {
            let mut state = lock(&self.state);
            let counts = state.rules.counts.clone();
            let Some((_, child)) = state.find(key) else { return };
            *child.known.codes.entry(error.code()).or_default() += 1;
            let own = error.node_id() == Some(&*child.known.id);
            match (error.kind(), counts) {
                (ErrorKind::Panicked { .. }, _) if own => None,
                (ErrorKind::Failed, None) if own => None,
                (_, None) => return,
                (_, counts) => counts,
            }
        };
        // Outside the lock: the predicate is the user's, and may ask this supervisor.
        if counts.is_some_and(|counts| !catch_unwind(AssertUnwindSafe(|| counts(error))).unwrap_or(true)) {
            return;
        }
        let envelope = Some(event.envelope().clone());
        let failed = Failed { reason: error.chain().join(": "), code: error.code(), envelope };
        self.failed(key, &failed, None);
    }

    /// A failure that counts. With `round` it came from that round of restarts.
    fn failed(self: &Arc<Self>, key: NodeKey, failed: &Failed, round: Option<u64>) {
        let now = self.space().env.monotonic();
        let verdict = lock(&self.state).judge(key, failed, round, now, self);
        match verdict {
            Verdict::Nothing => {}
            Verdict::Restart { round, affected, after } => {
                let (supervisor, failed) = (Arc::clone(self), failed.clone());
                let sleep = self.space().env.sleep(after);
                self.space().env.spawn(Box::pin(async move {
                    sleep.await;
                    supervisor.restart(round, &affected, &failed);
                }));
            }
            Verdict::Escalate { to } => to.failed(self.node.inner().key, failed, None),
            Verdict::GiveUp { down } => {
                for (node, known) in down {
                    // What waited for it is refused now, by the drain, with the reason that it is closed.
                    node.inner().wake();
                    self.tell("node.down", &node, &known, failed);
                }
            }
        }
    }

    /// Builds the children of a round and lets them go on, all or none.
    fn restart(self: &Arc<Self>, round: u64, affected: &[usize], failed: &Failed) {
        if !self.space().is_running() {
            return;
        }
        let building = lock(&self.building);
        for &index in affected {
            let unit = {
                let state = lock(&self.state);
                let child = &state.children[index];
                // A later round took this child over.
                if child.round != round {
                    continue;
                }
                child.unit.clone()
            };
            if let Err(error) = unit.build() {
                drop(building);
                let node = unit.node();
                let error = error.context(format!("`{}` could not be built anew", node.id()));
                let reason = error.chain().join(": ");
                let again = Failed { reason, code: error.code(), envelope: failed.envelope.clone() };
                return self.failed(node.inner().key, &again, Some(round));
            }
        }
        let mut opened = Vec::new();
        {
            let mut state = lock(&self.state);
            for &index in affected {
                let child = &mut state.children[index];
                if child.round == round && child.known.standing == Standing::Restarting {
                    child.known.restarts += 1;
                    child.open(&mut opened);
                }
            }
        }
        drop(building);
        for (node, known) in opened {
            node.inner().wake();
            self.tell("node.restarted", &node, &known, failed);
        }
    }

    fn tell(&self, event_type: &str, node: &Node, known: &Supervised, failed: &Failed) {
        let content = serde_json::json!({
            "node_id": node.id(),
            "supervisor": self.node.id(),
            "reason": failed.reason,
            "code": failed.code,
            "failures": known.failures,
            "restarts": known.restarts,
            "waiting": node.waiting(),
        });
        self.space().announce_from(self.node.inner(), failed.envelope.as_ref(), event_type, content);
    }
}

impl State {
    fn find(&mut self, key: NodeKey) -> Option<(usize, &mut Child)> {
        self.children.iter_mut().enumerate().find(|(_, child)| child.unit.node().inner().key == key)
    }

    fn judge(
        &mut self,
        key: NodeKey,
        failed: &Failed,
        round: Option<u64>,
        now: Duration,
        supervisor: &Inner,
    ) -> Verdict {
        let at_unix_ms = supervisor.space().env.unix_ms();
        let (tolerated, window) = (self.rules.tolerated as usize, self.rules.window);
        let Some((index, child)) = self.find(key) else { return Verdict::Nothing };
        child.known.failures += 1;
        child.known.last_failure = Some(failed.reason.clone());
        child.known.failed_at_unix_ms = Some(at_unix_ms);
        match (child.known.standing, round) {
            // The restart that is due already answers this failure too, which the flows of the old build had.
            (Standing::Restarting, None) => return Verdict::Nothing,
            (Standing::Restarting, Some(round)) if child.round != round => return Verdict::Nothing,
            (Standing::Restarting, Some(_)) => {}
            (_, Some(_)) => return Verdict::Nothing,
            // Whoever resumed the node wants it watched.
            (Standing::Down, None) if child.unit.is_open() => child.known.standing = Standing::Running,
            (Standing::Down, None) => return Verdict::Nothing,
            (Standing::Running, None) => {
                within(&mut child.failed, now, window);
                // One more than is tolerated is all that is ever looked at.
                child.failed.push_back(now);
                if child.failed.len() <= tolerated {
                    return Verdict::Nothing;
                }
                child.failed.clear();
            }
        }
        let affected = self.affected(index, round);
        let counted = if self.rules.strategy == Strategy::OneForOne { index } else { 0 };
        let restarts = self.restarts.entry(counted).or_default();
        within(restarts, now, window);
        if restarts.len() < self.rules.restarts_max as usize {
            let doubled = 1u32.checked_shl(restarts.len() as u32).unwrap_or(u32::MAX);
            let after = self.rules.backoff_first.saturating_mul(doubled).min(self.rules.backoff_max);
            restarts.push_back(now);
            let round = self.hold(&affected);
            return Verdict::Restart { round, affected, after };
        }
        restarts.clear();
        if let Some(to) = supervisor.parent() {
            // All of them: what is above restarts this supervisor as a whole.
            let all: Vec<_> = (0..self.children.len()).collect();
            self.hold(&all);
            return Verdict::Escalate { to };
        }
        let mut down = Vec::new();
        for index in affected {
            self.children[index].close(&mut down);
        }
        Verdict::GiveUp { down }
    }

    /// The children that a failure of this one restarts, in order; a round that failed keeps all of its own.
    fn affected(&self, index: usize, round: Option<u64>) -> Vec<usize> {
        let by_strategy = |other: usize| match self.rules.strategy {
            Strategy::OneForOne => other == index,
            Strategy::OneForAll => true,
            Strategy::RestForOne => other >= index,
        };
        let of_round =
            |child: &Child| round == Some(child.round) && child.known.standing == Standing::Restarting;
        let numbered = self.children.iter().enumerate();
        let affected = numbered.filter(|(other, child)| by_strategy(*other) || of_round(child));
        affected.filter(|(_, child)| !child.unit.is_closed()).map(|(index, _)| index).collect()
    }

    /// Has the events of these children wait, the last child first, and gives the number of the round.
    fn hold(&mut self, affected: &[usize]) -> u64 {
        self.rounds += 1;
        for &index in affected.iter().rev() {
            let child = &mut self.children[index];
            child.round = self.rounds;
            child.known.standing = Standing::Restarting;
            child.unit.hold();
        }
        self.rounds
    }
}

impl Child {
    /// Lets its nodes handle events, once they are woken.
    fn open(&mut self, opened: &mut Vec<(Node, Supervised)>) {
        self.known.standing = Standing::Running;
        self.failed.clear();
        match &self.unit {
            Unit::Node(node, _) => {
                node.inner().change(|table| table.set_held(false));
                if !self.unit.is_open() {
                    // Somebody stopped it meanwhile, and has it stay so.
                    self.known.standing = Standing::Down;
                }
                opened.push((node.clone(), self.known.clone()));
            }
            Unit::Supervisor(inner) => {
                let mut state = lock(&inner.state);
                state.restarts.clear();
                for child in &mut state.children {
                    child.known.restarts += 1;
                    child.open(opened);
                }
            }
        }
    }

    /// Stops its nodes; what waits for them is refused once they are woken.
    fn close(&mut self, down: &mut Vec<(Node, Supervised)>) {
        self.known.standing = Standing::Down;
        match &self.unit {
            Unit::Node(node, _) => {
                node.inner().change(|table| {
                    table.set_held(false);
                    if table.phase == Phase::Open {
                        table.phase = Phase::Stopped;
                    }
                });
                down.push((node.clone(), self.known.clone()));
            }
            Unit::Supervisor(inner) => {
                lock(&inner.state).children.iter_mut().for_each(|child| child.close(down));
            }
        }
    }
}

impl Unit {
    fn node(&self) -> &Node {
        match self {
            Self::Node(node, _) => node,
            Self::Supervisor(inner) => &inner.node,
        }
    }

    fn phase(&self) -> Phase {
        self.node().inner().table.load().phase
    }

    fn is_open(&self) -> bool {
        self.phase() == Phase::Open
    }

    fn is_closed(&self) -> bool {
        self.phase() == Phase::Closed
    }

    /// Has events wait, and asks the flows under way to stop.
    fn hold(&self) {
        match self {
            Self::Node(node, _) => {
                let node = node.inner();
                node.change(|table| table.set_held(true));
                node.cancel_build(node.table.load().build());
            }
            Self::Supervisor(inner) => {
                let mut state = lock(&inner.state);
                let all: Vec<_> = (0..state.children.len()).collect();
                state.hold(&all);
            }
        }
    }

    /// Runs the build function; what it makes is in force when it succeeds, and forgotten otherwise.
    fn build(&self) -> Result<()> {
        match self {
            Self::Node(node, build) => build_node(node, build),
            Self::Supervisor(inner) => {
                let _building = lock(&inner.building);
                let units: Vec<_> =
                    lock(&inner.state).children.iter().map(|child| child.unit.clone()).collect();
                units.iter().try_for_each(Self::build)
            }
        }
    }
}

fn build_node(node: &Node, build: &BuildFunction) -> Result<()> {
    let inner = node.inner();
    inner.change(|table| table.begin_build());
    let built = catch_unwind(AssertUnwindSafe(|| build(node)));
    match built.unwrap_or_else(|panic| Err(Error::panicked(&*panic))) {
        Ok(()) => {
            let before = inner.table.load();
            inner.change(|table| table.end_build());
            inner.space.presence_changed();
            // The index last: in between a broadcast finds the node and no handler, which is no error.
            before.made_entries(Build::Last).iter().for_each(|entry| inner.space.forget_entry(inner, entry));
            inner.cancel_build(before.build());
            Ok(())
        }
        Err(error) => {
            let left = inner.table.load().made_entries(Build::UnderWay);
            inner.change(|table| table.drop_build());
            left.iter().for_each(|entry| inner.space.forget_entry(inner, entry));
            Err(error)
        }
    }
}

/// Drops the times that left the window.
fn within(times: &mut VecDeque<Duration>, now: Duration, window: Duration) {
    while times.front().is_some_and(|&at| now.saturating_sub(at) >= window) {
        times.pop_front();
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Supervisor({})", self.inner.node.id())
    }
}
