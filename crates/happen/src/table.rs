//! What a node handles, as one immutable table that is replaced as a whole: registrations, steps, options. Owns the
//! cache that says which registrations an event type has; does not know how they are run.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use happen_core::pattern::{Captures, is_runtime};
use happen_core::{ErasedEvent, Error, Event, EventType, Function, Pattern};

use crate::accept::Acceptance;
use crate::config::NodeOptions;
use crate::hooks::Hooks;
use crate::limits;
use crate::slow::Slowness;
use crate::sync::{Mutex, isolated, lock};

/// Everything a node is told by its user. Cloned to be changed, then swapped in.
#[derive(Clone)]
pub(crate) struct Table {
    pub(crate) options: NodeOptions,
    pub(crate) phase: Phase,
    pub(crate) lane: Lane,
    pub(crate) accept: Option<Acceptance>,
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) steps: Vec<Arc<StepEntry>>,
    pub(crate) hooks: Option<Arc<Hooks>>,
    pub(crate) metadata: Option<Arc<std::collections::BTreeMap<String, serde_json::Value>>>,
    /// What a supervisor knows of the node; absent for a node that has none.
    pub(crate) watched: Option<Arc<Watched>>,
    routes: Routes,
    class: Class,
}

/// The part of a table that a supervisor changes.
#[derive(Clone)]
pub(crate) struct Watched {
    /// Is told of every flow of the node that failed.
    pub(crate) watch: Watch,
    /// Whether events wait instead of being handled.
    pub(crate) held: bool,
    /// Counts the builds, so that a flow of an earlier one is known.
    pub(crate) build: u64,
    /// What the build under way has registered so far; handles nothing yet.
    pub(crate) fresh: Option<Fresh>,
    /// What the last build made, to be taken back by the next one.
    pub(crate) made: Made,
}

/// Is told of a failed flow.
pub(crate) type Watch = Arc<dyn Fn(&dyn ErasedEvent, &Error) + Send + Sync>;

/// Registrations and steps that are not in force yet.
#[derive(Clone, Default)]
pub(crate) struct Fresh {
    entries: Vec<Arc<Entry>>,
    steps: Vec<Arc<StepEntry>>,
    before: Rules,
}

/// What one run of a build function made.
#[derive(Clone, Default)]
pub(crate) struct Made {
    entries: Vec<u64>,
    steps: Vec<Arc<StepEntry>>,
    rules: Rules,
}

/// Hooks and predicates: what a build adds to rather than sets.
#[derive(Clone, Default)]
struct Rules {
    hooks: Option<Arc<Hooks>>,
    accept: Option<Acceptance>,
}

/// Whether a node takes events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    Stopped,
    Closed,
}

/// What runs beside what.
#[derive(Clone)]
pub(crate) enum Lane {
    /// Up to `max_concurrent` events at once.
    Concurrent,
    /// One at a time for each key.
    ByKey(KeyOf),
}

/// Computes the key under which events of a node run one at a time.
pub(crate) type KeyOf = Arc<dyn Fn(&dyn ErasedEvent) -> u64 + Send + Sync>;

/// Looks at an event and says whether a registration wants it.
pub(crate) type Guard = Arc<dyn Fn(&Event) -> bool + Send + Sync>;

/// One registration. Clones are the same one, changed.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) name: Cow<'static, str>,
    pub(crate) pattern: Pattern,
    pub(crate) priority: i32,
    pub(crate) guard: Option<Guard>,
    pub(crate) function: Arc<dyn Function>,
    pub(crate) slow: Slowness,
    /// What the function says of itself, asked once.
    pub(crate) plain: bool,
}

/// A function a flow may go on with, under its name.
pub(crate) struct StepEntry {
    pub(crate) name: Cow<'static, str>,
    pub(crate) function: Arc<dyn Function>,
}

/// The registrations of one node for one event type, by priority.
#[derive(Debug, Default)]
pub(crate) struct Route {
    pub(crate) entries: Vec<Arc<Entry>>,
    /// Whether none of them can wait by itself.
    pub(crate) plain: bool,
}

impl Route {
    /// The only registration, when it takes the event as it is and without looking at it.
    #[inline]
    pub(crate) fn only(&self, batch: bool) -> Option<&Arc<Entry>> {
        match &self.entries[..] {
            [entry] if entry.guard.is_none() && (!batch || entry.function.takes_batch()) => Some(entry),
            _ => None,
        }
    }
}

impl Table {
    pub(crate) fn new(options: NodeOptions) -> Self {
        let accept = Acceptance::from_globs(&options.accept_from);
        Self {
            options,
            phase: Phase::Open,
            lane: Lane::Concurrent,
            accept,
            entries: Vec::new(),
            steps: Vec::new(),
            hooks: None,
            metadata: None,
            watched: None,
            routes: Routes::default(),
            class: Class(None),
        }
    }

    /// A table that nodes with these options have in common, as long as they differ in nothing else.
    pub(crate) fn common(options: NodeOptions) -> Self {
        Self { class: Class::common(), ..Self::new(options) }
    }

    /// Adds a registration after those of the same priority.
    pub(crate) fn insert(&mut self, entry: Arc<Entry>) {
        let fresh = fresh(&mut self.watched);
        insert_by_priority(fresh.map_or(&mut self.entries, |fresh| &mut fresh.entries), entry);
    }

    /// This table with one registration more, and that registration. When the table is common to several nodes, those
    /// that add the same function for the same pattern have the new one in common too.
    pub(crate) fn with_entry(
        &self,
        pattern: Pattern,
        function: Arc<dyn Function>,
        id: impl FnOnce() -> u64,
    ) -> (Arc<Self>, Arc<Entry>) {
        let Some(further) = &self.class.0 else {
            let entry = Entry::new(id(), pattern, function);
            let mut changed = self.changed();
            changed.insert(Arc::clone(&entry));
            return (Arc::new(changed), entry);
        };
        let mut further = lock(further);
        for at in 0..further.len() {
            if let Some(table) = further[at].table.upgrade()
                && let Some(entry) =
                    table.entry(further[at].entry).filter(|entry| entry.is_same(&pattern, &*function))
            {
                let entry = Arc::clone(entry);
                // The one used last is the one looked for next.
                further.swap(0, at);
                return (table, entry);
            }
        }
        if further.len() >= limits::CLASS_TABLES_MAX {
            further.retain(|known| known.table.strong_count() > 0);
        }
        let entry = Entry::new(id(), pattern, function);
        let mut changed = self.changed();
        changed.insert(Arc::clone(&entry));
        if further.len() >= limits::CLASS_TABLES_MAX {
            return (Arc::new(changed), entry);
        }
        changed.class = Class::common();
        let table = Arc::new(changed);
        further.push(Further { entry: entry.id, table: Arc::downgrade(&table) });
        (table, entry)
    }

    /// Whether several nodes may have this table.
    pub(crate) fn is_common(&self) -> bool {
        self.class.0.is_some()
    }

    /// Adds a step in the place of one of the same name.
    pub(crate) fn insert_step(&mut self, step: &Arc<StepEntry>) {
        let steps = fresh(&mut self.watched).map_or(&mut self.steps, |fresh| &mut fresh.steps);
        steps.retain(|other| other.name != step.name);
        steps.push(Arc::clone(step));
    }

    /// The registration with this id, in force or not.
    pub(crate) fn entry(&self, id: u64) -> Option<&Arc<Entry>> {
        let fresh = self.watched.as_ref().and_then(|watched| watched.fresh.as_ref());
        let fresh = fresh.map_or(&[][..], |fresh| &fresh.entries);
        self.entries.iter().chain(fresh).find(|entry| entry.id == id)
    }

    /// The list that has the registration with this id, and where.
    pub(crate) fn find_entry(&mut self, id: u64) -> Option<(&mut Vec<Arc<Entry>>, usize)> {
        if let Some(at) = self.entries.iter().position(|entry| entry.id == id) {
            return Some((&mut self.entries, at));
        }
        let fresh = &mut fresh(&mut self.watched)?.entries;
        let at = fresh.iter().position(|entry| entry.id == id)?;
        Some((fresh, at))
    }

    /// How many flows may be under way now.
    #[inline]
    pub(crate) fn max_concurrent(&self) -> u32 {
        if self.is_held() { 0 } else { self.options.max_concurrent }
    }

    /// How many flows of one key may be under way now.
    pub(crate) fn max_by_key(&self) -> u32 {
        u32::from(!self.is_held())
    }

    /// Whether events wait because a supervisor is about to build the node anew.
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        self.watched.as_ref().is_some_and(|watched| watched.held)
    }

    /// The number of the build that made this table; 0 without a supervisor.
    #[inline]
    pub(crate) fn build(&self) -> u64 {
        self.watched.as_ref().map_or(0, |watched| watched.build)
    }

    /// Whether nothing stands before the registrations: neither acceptance nor hooks, and no lane but the common one.
    pub(crate) fn is_straight(&self) -> bool {
        let open = self.phase == Phase::Open && !self.is_held();
        open && self.accept.is_none() && self.hooks.is_none() && matches!(self.lane, Lane::Concurrent)
    }

    /// Has events wait, or lets them be handled.
    pub(crate) fn set_held(&mut self, held: bool) {
        if let Some(watched) = self.watched_mut() {
            watched.held = held;
        }
    }

    fn watched_mut(&mut self) -> Option<&mut Watched> {
        self.watched.as_mut().map(Arc::make_mut)
    }

    /// Keeps what is registered from now on apart, until [`Table::end_build`] or [`Table::drop_build`].
    pub(crate) fn begin_build(&mut self) {
        let before = self.rules();
        if let Some(watched) = self.watched_mut() {
            watched.fresh = Some(Fresh { before, ..Fresh::default() });
        }
    }

    /// Puts what was built in the place of what the build before had made.
    pub(crate) fn end_build(&mut self) {
        let rules = self.rules();
        let Some(watched) = self.watched_mut() else { return };
        let fresh = watched.fresh.take().unwrap_or_default();
        let made = Made {
            entries: fresh.entries.iter().map(|entry| entry.id).collect(),
            steps: fresh.steps.clone(),
            rules: rules.minus(&fresh.before),
        };
        let old = std::mem::replace(&mut watched.made, made);
        watched.build += 1;
        self.entries.retain(|entry| !old.entries.contains(&entry.id));
        for entry in fresh.entries {
            insert_by_priority(&mut self.entries, entry);
        }
        let replaced = |step: &Arc<StepEntry>| {
            old.steps.iter().any(|made| Arc::ptr_eq(made, step))
                || fresh.steps.iter().any(|made| made.name == step.name)
        };
        self.steps.retain(|step| !replaced(step));
        self.steps.extend(fresh.steps);
        self.set_rules(rules.minus(&old.rules));
    }

    /// Forgets what a build that failed has made so far.
    pub(crate) fn drop_build(&mut self) {
        let rules = self.rules();
        let Some(watched) = self.watched_mut() else { return };
        let fresh = watched.fresh.take().unwrap_or_default();
        let made = rules.minus(&fresh.before);
        self.set_rules(rules.minus(&made));
    }

    fn rules(&self) -> Rules {
        Rules { hooks: self.hooks.clone(), accept: self.accept.clone() }
    }

    fn set_rules(&mut self, rules: Rules) {
        self.hooks = rules.hooks;
        self.accept = rules.accept;
    }

    /// The registrations for this type, found once and remembered while there is room; otherwise put into `uncached`.
    #[inline]
    pub(crate) fn route<'t>(&'t self, event_type: &EventType, uncached: &'t mut Option<Route>) -> &'t Route {
        match self.routes.find(event_type, || self.match_type(event_type), self.entries.len()) {
            Ok(cached) => cached,
            Err(route) => uncached.insert(route),
        }
    }

    fn match_type(&self, event_type: &EventType) -> Route {
        let text = event_type.as_str();
        let runtime = is_runtime(text);
        let matching = self.entries.iter().filter(|entry| entry.wants_type(text, runtime));
        let entries: Vec<_> = matching.cloned().collect();
        Route { plain: entries.iter().all(|entry| entry.plain), entries }
    }

    /// The step of this name: one given with `.step`, or the function of a registration.
    pub(crate) fn step(&self, name: &str) -> Option<Arc<StepEntry>> {
        self.steps.iter().find(|step| &*step.name == name).cloned().or_else(|| {
            let entry = self.entries.iter().find(|entry| &*entry.name == name)?;
            Some(Arc::new(StepEntry { name: entry.name.clone(), function: Arc::clone(&entry.function) }))
        })
    }

    pub(crate) fn step_names(&self) -> Vec<String> {
        let steps = self.steps.iter().map(|step| step.name.to_string());
        steps.chain(self.entries.iter().map(|entry| entry.name.to_string())).collect()
    }

    /// The ids and patterns of the registrations that the last build made, or the one under way.
    pub(crate) fn made_entries(&self, which: Build) -> Vec<Arc<Entry>> {
        let Some(watched) = &self.watched else { return Vec::new() };
        match which {
            Build::Last => {
                let made = &watched.made.entries;
                self.entries.iter().filter(|entry| made.contains(&entry.id)).cloned().collect()
            }
            Build::UnderWay => watched.fresh.iter().flat_map(|fresh| fresh.entries.iter().cloned()).collect(),
        }
    }

    /// The same table with an empty cache, for a change that alters routes.
    pub(crate) fn changed(&self) -> Self {
        Self { routes: Routes::default(), ..self.clone() }
    }
}

/// What makes a table common to several nodes: the tables that come of it by one registration more. A table that was
/// changed in another way belongs to one node.
struct Class(Option<Mutex<Vec<Further>>>);

/// A table with one registration more. It lives as long as a node has it.
struct Further {
    entry: u64,
    table: Weak<Table>,
}

impl Class {
    const fn common() -> Self {
        Self(Some(Mutex::new(Vec::new())))
    }
}

impl Clone for Class {
    fn clone(&self) -> Self {
        Self(None)
    }
}

/// A run of a build function.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Build {
    Last,
    UnderWay,
}

impl Rules {
    /// These without those of `other`.
    fn minus(&self, other: &Self) -> Self {
        let hooks = match (&self.hooks, &other.hooks) {
            (Some(hooks), Some(other)) => Some(Arc::new(hooks.minus(other))),
            (hooks, _) => hooks.clone(),
        };
        let accept = match (&self.accept, &other.accept) {
            (Some(accept), Some(other)) => Some(accept.minus(other)),
            (accept, _) => accept.clone(),
        };
        Self { hooks, accept }
    }
}

fn fresh(watched: &mut Option<Arc<Watched>>) -> Option<&mut Fresh> {
    let watched = watched.as_mut().filter(|watched| watched.fresh.is_some())?;
    Arc::make_mut(watched).fresh.as_mut()
}

/// Puts a registration after those of the same priority.
fn insert_by_priority(entries: &mut Vec<Arc<Entry>>, entry: Arc<Entry>) {
    let at = entries.partition_point(|other| other.priority >= entry.priority);
    entries.insert(at, entry);
}

impl Entry {
    fn new(id: u64, pattern: Pattern, function: Arc<dyn Function>) -> Arc<Self> {
        Arc::new(Self {
            id,
            name: Cow::Borrowed(function.short_name()),
            pattern,
            priority: 0,
            guard: None,
            slow: Slowness::default(),
            plain: function.is_plain(),
            function,
        })
    }

    /// Whether a registration of this function for this pattern would be this one: it is the same value, or has none
    /// beside its type.
    fn is_same(&self, pattern: &Pattern, function: &dyn Function) -> bool {
        let own = &*self.function;
        let bare = size_of_val(own) == 0 && size_of_val(function) == 0;
        let same = std::ptr::addr_eq(own, function) && size_of_val(own) != 0
            || bare && own.identity() == function.identity() && own.is_plain() == function.is_plain();
        same && self.pattern.is_same(pattern)
    }

    /// Whether the pattern takes this type. The runtime's own events reach only patterns that name them.
    pub(crate) fn wants_type(&self, event_type: &str, runtime: bool) -> bool {
        let matches = || {
            if runtime { self.pattern.matches_runtime(event_type) } else { self.pattern.matches(event_type) }
        };
        // A predicate that panics matches nothing.
        isolated("a pattern", matches).unwrap_or(false)
    }

    pub(crate) fn captures<'t>(&self, event_type: &'t str) -> Option<Captures<'t>> {
        self.pattern.captures(event_type)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.name, self.pattern)
    }
}

/// A cache that only grows: reading it takes no lock, and it ends with its table. A level has a fixed number of slots,
/// few for a node that hears few types; a type that finds none goes to the next, larger level.
#[derive(Default)]
struct Routes {
    slots: OnceLock<Box<[Slot]>>,
    larger: OnceLock<Box<Self>>,
}

type Slot = OnceLock<(EventType, Route)>;

impl Routes {
    /// The route of a type; as an error when there is no room to keep it.
    #[inline(always)]
    fn find(
        &self,
        event_type: &EventType,
        make: impl FnOnce() -> Route,
        entries: usize,
    ) -> Result<&Route, Route> {
        if let Some(slots) = self.slots.get() {
            let slot = &slots[event_type.hash() as usize & (slots.len() - 1)];
            if let Some((cached, route)) = slot.get()
                && cached == event_type
            {
                return Ok(route);
            }
        }
        self.find_further(event_type, make, entries)
    }

    #[cold]
    fn find_further(
        &self,
        event_type: &EventType,
        make: impl FnOnce() -> Route,
        entries: usize,
    ) -> Result<&Route, Route> {
        let mut level = self;
        let mut len = (entries * 2).clamp(SLOTS_MIN, SLOTS_MAX).next_power_of_two();
        loop {
            let slots = level.slots.get_or_init(|| (0..len).map(|_| OnceLock::new()).collect());
            let mask = slots.len() - 1;
            let start = event_type.hash() as usize;
            for probe in 0..PROBES_MAX.min(slots.len()) {
                let slot = &slots[(start + probe) & mask];
                match slot.get() {
                    Some((cached, route)) if cached == event_type => return Ok(route),
                    Some(_) => {}
                    None => return Self::fill(slot, event_type, make()),
                }
            }
            if slots.len() >= SLOTS_MAX {
                return Err(make());
            }
            len = (slots.len() * LEVEL_GROWTH).min(SLOTS_MAX);
            level = level.larger.get_or_init(Box::default);
        }
    }

    #[cold]
    fn fill<'t>(slot: &'t Slot, event_type: &EventType, route: Route) -> Result<&'t Route, Route> {
        let mut ours = Some(route);
        let (cached, kept) = slot.get_or_init(|| (event_type.clone(), ours.take().unwrap_or_default()));
        match ours {
            // Another thread put a type there in between; when it is another one, ours is used without being kept.
            Some(route) if cached != event_type => Err(route),
            _ => Ok(kept),
        }
    }
}

impl Clone for Routes {
    fn clone(&self) -> Self {
        Self::default()
    }
}

const SLOTS_MIN: usize = 4;
const SLOTS_MAX: usize = 1_024;
const PROBES_MAX: usize = 8;
/// How much larger the next level of slots is. Larger than the doubling of tables that move their entries, as every
/// level that a type has to pass costs its probes.
const LEVEL_GROWTH: usize = 8;
