//! What a node handles, as one immutable table that is replaced as a whole: registrations, steps, options. Owns the
//! cache that says which registrations an event type has; does not know how they are run.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use happen_core::pattern::{Captures, is_runtime};
use happen_core::store::Replaced;
use happen_core::{ErasedEvent, Error, Event, EventType, Function, Pattern};

use crate::accept::Acceptance;
use crate::config::{self, NodeOptions};
use crate::durable::Control;
use crate::hooks::Hooks;
use crate::identity::Policies;
use crate::limits;
use crate::slow::Slowness;
use crate::sync::{Mutex, isolated, lock};

/// Everything a node is told by its user. Cloned to be changed, then swapped in.
#[derive(Clone)]
pub(crate) struct Table {
    pub(crate) options: Arc<NodeOptions>,
    pub(crate) phase: Phase,
    pub(crate) lane: Lane,
    /// What holds flows of a durable node back; absent for a node that begins them as they come.
    pub(crate) control: Option<Arc<Control>>,
    pub(crate) accept: Option<Box<Acceptance>>,
    /// The events whose changes of documents are kept as snapshots; absent for all.
    pub(crate) snapshots: Option<Arc<[Pattern]>>,
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) steps: Vec<Arc<StepEntry>>,
    pub(crate) hooks: Option<Arc<Hooks>>,
    pub(crate) metadata: Option<Arc<std::collections::BTreeMap<String, serde_json::Value>>>,
    /// What a supervisor knows of the node; absent for a node that has none.
    pub(crate) watched: Option<Arc<Watched>>,
    routes: Routes,
    matching: LazyMatching,
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
    accept: Option<Box<Acceptance>>,
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
    /// So many at a time for each key.
    ByKey(KeyOf, u32),
}

/// Computes the key under which events of a node wait for one another.
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

/// Patterns, unless there are none.
fn some_of(patterns: Vec<Pattern>) -> Option<Arc<[Pattern]>> {
    (!patterns.is_empty()).then(|| patterns.into())
}

impl Table {
    pub(crate) fn new(options: NodeOptions) -> Self {
        let accept = Acceptance::from_globs(&options.accept_from).map(Box::new);
        // Where they come from a configuration they were checked with it.
        let snapshots = config::patterns(&options.snapshots).unwrap_or_default();
        Self {
            options: Arc::new(options),
            phase: Phase::Open,
            lane: Lane::Concurrent,
            control: None,
            accept,
            snapshots: some_of(snapshots),
            entries: Vec::new(),
            steps: Vec::new(),
            hooks: None,
            metadata: None,
            watched: None,
            routes: Routes::default(),
            matching: LazyMatching::default(),
            class: Class(None),
        }
    }

    /// A table that nodes with these options have in common, as long as they differ in nothing else.
    pub(crate) fn common(options: NodeOptions) -> Self {
        Self { class: Class::common(), ..Self::new(options) }
    }

    /// What becomes of a revision that an event of this type makes, once it is replaced.
    pub(crate) fn replaced(&self, event_type: &str) -> Replaced {
        match &self.snapshots {
            Some(patterns) if !patterns.iter().any(|pattern| pattern.matches(event_type)) => {
                Replaced::Forgotten
            }
            _ => Replaced::Kept,
        }
    }

    /// Keeps only what events make whose types match; of all when there is no pattern.
    pub(crate) fn keep_snapshots(&mut self, texts: Vec<String>, patterns: Vec<Pattern>) {
        Arc::make_mut(&mut self.options).snapshots = texts;
        self.snapshots = some_of(patterns);
    }

    /// Adds a registration after those of the same priority.
    pub(crate) fn insert(&mut self, entry: Arc<Entry>) {
        let fresh = fresh(&mut self.watched);
        insert_by_priority(fresh.map_or(&mut self.entries, |fresh| &mut fresh.entries), entry);
    }

    /// This table with one registration more, and that registration. When the table is common to several nodes, those
    /// that add the same function for the same pattern have the new one in common too. The function is shared and not
    /// taken: what is not used of it is the caller's to drop, for this runs under a lock.
    pub(crate) fn with_entry(
        &self,
        pattern: Pattern,
        function: &Arc<dyn Function>,
        id: impl FnOnce() -> u64,
    ) -> (Arc<Self>, Arc<Entry>) {
        let Some(further) = &self.class.0 else {
            let entry = Entry::new(id(), pattern, Arc::clone(function));
            let mut changed = self.changed();
            changed.insert(Arc::clone(&entry));
            return (Arc::new(changed), entry);
        };
        let mut further = lock(further);
        let mut written = pattern;
        for at in 0..further.len() {
            let Some(table) = further[at].table.upgrade() else { continue };
            let Some(entry) = table.entry(further[at].entry) else { continue };
            if !entry.pattern.is_same(&written) {
                continue;
            }
            // Also where the functions differ: a pattern takes more than the rest of a registration.
            written = entry.pattern.clone();
            if entry.is_of(&**function) {
                let entry = Arc::clone(entry);
                // The one used last is the one looked for next.
                further.swap(0, at);
                return (table, entry);
            }
        }
        if further.len() >= limits::CLASS_TABLES_MAX {
            further.retain(|known| known.table.strong_count() > 0);
        }
        let entry = Entry::new(id(), written, Arc::clone(function));
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
        match &self.lane {
            _ if self.is_held() => 0,
            Lane::ByKey(_, max) => *max,
            Lane::Concurrent => 1,
        }
    }

    /// Whether flows in the lane of this key run one at a time.
    pub(crate) fn is_serial(&self, key: Option<u64>) -> bool {
        match (&self.lane, key) {
            (Lane::ByKey(_, max), Some(_)) => *max == 1,
            _ => self.options.max_concurrent == 1,
        }
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

    /// Has the node keep to these policies of its space.
    pub(crate) fn set_policies(&mut self, policies: &Arc<Policies>) {
        let accept = *self.accept.take().unwrap_or_default();
        self.accept = Some(Box::new(accept.with_policies(policies)));
    }

    /// Whether the node keeps to these policies already.
    pub(crate) fn is_under(&self, policies: &Policies) -> bool {
        let own = self.accept.as_ref().and_then(|accept| accept.policies());
        own.is_some_and(|own| std::ptr::eq(own, policies))
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
    #[inline(always)]
    pub(crate) fn route<'t>(
        &'t self,
        event_type: &EventType,
        uncached: &'t mut Option<Arc<Route>>,
    ) -> &'t Route {
        match self.routes.find(event_type, || self.match_type(event_type), self.entries.len()) {
            Ok(cached) => cached,
            Err(route) => uncached.insert(route),
        }
    }

    /// The route of a type: most types of a node have the route of another one, so nothing is made for them.
    fn match_type(&self, event_type: &EventType) -> Arc<Route> {
        let text = event_type.as_str();
        let (runtime, marks) = (is_runtime(text), marks_of(text));
        let matching = self.matching.0.get_or_init(|| Box::new(Matching::new(&self.entries)));
        let wanted = |index: &usize| self.entries[*index].wants_type(text, runtime);
        let all = || {
            matching.sieves.iter().enumerate().filter(|(_, sieve)| sieve.lets(marks)).map(|(index, _)| index)
        };
        let (mut few, mut len) = ([0; FEW], 0);
        for index in all().filter(wanted) {
            if let Some(place) = few.get_mut(len) {
                *place = index;
            }
            len += 1;
        }
        let found = few.get(..len).unwrap_or_default();
        let mut known = lock(&matching.routes);
        if len == found.len()
            && let Some(route) = known.iter().find(|route| {
                let entries = found.iter().map(|&index| &self.entries[index]);
                route.entries.len() == len
                    && route.entries.iter().zip(entries).all(|(a, b)| Arc::ptr_eq(a, b))
            })
        {
            return Arc::clone(route);
        }
        let entries: Vec<_> = if len == found.len() {
            found.iter().map(|&index| Arc::clone(&self.entries[index])).collect()
        } else {
            all().filter(wanted).map(|index| Arc::clone(&self.entries[index])).collect()
        };
        let route = Arc::new(Route { plain: entries.iter().all(|entry| entry.plain), entries });
        if len == found.len() && known.len() < limits::ROUTES_MAX {
            known.push(Arc::clone(&route));
        }
        route
    }

    /// The step of this name: one given with `.step`, or the function of a registration.
    pub(crate) fn step(&self, name: &str) -> Option<Arc<StepEntry>> {
        self.steps.iter().find(|step| &*step.name == name).cloned().or_else(|| {
            let entry = self.entries.iter().find(|entry| &*entry.name == name)?;
            Some(Arc::new(StepEntry { name: entry.name.clone(), function: Arc::clone(&entry.function) }))
        })
    }

    /// The name under which a durable flow knows its registration: that of the function, with a number from the second one
    /// of that name on, in the order in which they were registered.
    pub(crate) fn registration_name(&self, entry: &Entry) -> Arc<str> {
        let before = self.entries.iter().filter(|other| other.name == entry.name && other.id < entry.id);
        match before.count() {
            0 => Arc::from(&*entry.name),
            count => format!("{}#{}", entry.name, count + 1).into(),
        }
    }

    /// The registration with this name.
    pub(crate) fn registered(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|entry| *self.registration_name(entry) == *name)
    }

    /// The name under which a function is registered, as a step or for a pattern.
    pub(crate) fn name_of_step(&self, function: &dyn Function) -> Option<Arc<str>> {
        let identity = function.identity();
        let step = self.steps.iter().find(|step| step.function.identity() == identity);
        let entry = || self.entries.iter().find(|entry| entry.function.identity() == identity);
        match step {
            Some(step) => Some(Arc::from(&*step.name)),
            None => entry().map(|entry| Arc::from(&*entry.name)),
        }
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
        self.clone()
    }
}

/// What makes a table common to several nodes: the tables that come of it by one registration more. A table that was
/// changed in another way belongs to one node.
struct Class(Option<Box<Mutex<Vec<Further>>>>);

/// A table with one registration more. It lives as long as a node has it.
struct Further {
    entry: u64,
    table: Weak<Table>,
}

impl Class {
    fn common() -> Self {
        Self(Some(Box::default()))
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
            (Some(accept), Some(other)) => Some(Box::new(accept.minus(other))),
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
    // Every change makes a table of its own, so room for more would never be used.
    entries.reserve_exact(1);
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

    /// Whether this function is the one registered here: the same value, or one that has none beside its type.
    fn is_of(&self, function: &dyn Function) -> bool {
        let own = &*self.function;
        match (size_of_val(own), size_of_val(function)) {
            (0, 0) => own.identity() == function.identity() && own.is_plain() == function.is_plain(),
            (0, _) | (_, 0) => false,
            _ => std::ptr::addr_eq(own, function),
        }
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
/// few for a node that hears few types; a type that finds none makes the next, larger level.
#[derive(Default)]
struct Routes {
    slots: OnceLock<Box<[Slot]>>,
    larger: OnceLock<Box<Self>>,
}

/// The hash of a type, which tells most others apart without a look at them, the type, and its route.
type Slot = OnceLock<(u64, EventType, Arc<Route>)>;

impl Routes {
    /// The route of a type; as an error when there is no room to keep it.
    #[inline(always)]
    fn find(
        &self,
        event_type: &EventType,
        make: impl FnOnce() -> Arc<Route>,
        entries: usize,
    ) -> Result<&Route, Arc<Route>> {
        if let Some(slots) = self.slots.get() {
            let hash = event_type.hash();
            let slot = &slots[hash as usize & (slots.len() - 1)];
            if let Some((known, cached, route)) = slot.get()
                && *known == hash
                && cached == event_type
            {
                return Ok(route);
            }
        }
        self.find_further(event_type, make, entries)
    }

    /// Looks into the largest level first: a node that hears many types has most of them there. One that is found in a
    /// smaller level only is put there too.
    #[inline(never)]
    fn find_further(
        &self,
        event_type: &EventType,
        make: impl FnOnce() -> Arc<Route>,
        entries: usize,
    ) -> Result<&Route, Arc<Route>> {
        let mut largest = self;
        while let Some(larger) = largest.larger.get() {
            largest = larger;
        }
        let mut len = (entries * 2).clamp(SLOTS_MIN, SLOTS_FIRST_MAX).next_power_of_two();
        let route = match probe(largest.slots.get().map_or(&[], |slots| slots), event_type) {
            Probe::Found(route) => return Ok(route),
            // Nothing was put into a larger level before this one was full for somebody.
            Probe::Free(_) | Probe::Full => self.known(event_type, largest).unwrap_or_else(make),
        };
        loop {
            let slots = largest.slots.get_or_init(|| (0..len).map(|_| OnceLock::new()).collect());
            match probe(slots, event_type) {
                Probe::Found(route) => return Ok(route),
                Probe::Free(slot) => return Self::fill(slot, event_type, route),
                Probe::Full if slots.len() >= SLOTS_MAX => return Err(route),
                Probe::Full => {}
            }
            len = (slots.len() * LEVEL_GROWTH).min(SLOTS_MAX);
            largest = largest.larger.get_or_init(Box::default);
        }
    }

    /// The route of a type in a level below the largest.
    fn known(&self, event_type: &EventType, largest: &Self) -> Option<Arc<Route>> {
        let mut level = self;
        while !std::ptr::eq(level, largest) {
            let slots = level.slots.get()?;
            let found = slots_of(slots, event_type).find_map(|slot| same(slot, event_type));
            if let Some(route) = found {
                return Some(Arc::clone(route));
            }
            level = level.larger.get()?;
        }
        None
    }

    #[cold]
    fn fill<'t>(slot: &'t Slot, event_type: &EventType, route: Arc<Route>) -> Result<&'t Route, Arc<Route>> {
        let (_, cached, kept) =
            slot.get_or_init(|| (event_type.hash(), event_type.clone(), Arc::clone(&route)));
        // Another thread put a type there in between; when it is another one, ours is used without being kept.
        if cached == event_type { Ok(kept) } else { Err(route) }
    }
}

/// What looking for a type in a level gives.
enum Probe<'t> {
    Found(&'t Route),
    Free(&'t Slot),
    Full,
}

fn probe<'t>(slots: &'t [Slot], event_type: &EventType) -> Probe<'t> {
    for slot in slots_of(slots, event_type) {
        match same(slot, event_type) {
            Some(route) => return Probe::Found(route),
            None if slot.get().is_none() => return Probe::Free(slot),
            None => {}
        }
    }
    Probe::Full
}

/// The slots of a level that a type may be in.
fn slots_of<'t>(slots: &'t [Slot], event_type: &EventType) -> impl Iterator<Item = &'t Slot> {
    let start = event_type.hash() as usize;
    (0..PROBES_MAX.min(slots.len())).map(move |probe| &slots[start.wrapping_add(probe) & (slots.len() - 1)])
}

fn same<'t>(slot: &'t Slot, event_type: &EventType) -> Option<&'t Arc<Route>> {
    let (hash, cached, route) = slot.get()?;
    (*hash == event_type.hash() && cached == event_type).then_some(route)
}

impl Clone for Routes {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What makes finding the route of a type quick, made when the first one is looked for. Ends with its table.
#[derive(Default)]
struct LazyMatching(OnceLock<Box<Matching>>);

struct Matching {
    /// One for each registration.
    sieves: Box<[Sieve]>,
    /// The routes that types have in common.
    routes: Mutex<Vec<Arc<Route>>>,
}

/// Which marks a type must have for a pattern to match it; most patterns are told by that to match not.
struct Sieve {
    marks: u64,
    mask: u64,
}

impl Matching {
    fn new(entries: &[Arc<Entry>]) -> Self {
        Self {
            sieves: entries.iter().map(|entry| Sieve::of(&entry.pattern)).collect(),
            routes: Mutex::default(),
        }
    }
}

impl Sieve {
    fn of(pattern: &Pattern) -> Self {
        let needs = pattern.needs();
        let mut sieve = Self { marks: 0, mask: 0 };
        for (place, segment) in [needs.first, needs.second, needs.last].into_iter().enumerate() {
            if let Some(segment) = segment {
                sieve.marks |= mark(segment.as_bytes(), place);
                sieve.mask |= MARK << (place as u32 * MARK_BITS);
            }
        }
        sieve
    }

    #[inline]
    const fn lets(&self, marks: u64) -> bool {
        (marks ^ self.marks) & self.mask == 0
    }
}

/// The marks of a type: a few bits of a hash of its first, second and last segment.
fn marks_of(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let dot = |from: usize| bytes[from..].iter().position(|&byte| byte == b'.').map(|at| from + at);
    let Some(first) = dot(0) else { return mark(bytes, 0) | mark(bytes, 2) };
    let second = dot(first + 1).unwrap_or(bytes.len());
    let last = bytes.iter().rposition(|&byte| byte == b'.').map_or(0, |at| at + 1);
    mark(&bytes[..first], 0) | mark(&bytes[first + 1..second], 1) | mark(&bytes[last..], 2)
}

/// Never 0, which stands for a segment that is not there.
fn mark(segment: &[u8], place: usize) -> u64 {
    let mut hash: u32 = 0x811c_9dc5;
    for &byte in segment {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    let mark = u64::from((hash ^ (hash >> MARK_BITS)) | 1) & MARK;
    mark << (place as u32 * MARK_BITS)
}

impl Clone for LazyMatching {
    fn clone(&self) -> Self {
        Self::default()
    }
}

const MARK_BITS: u32 = 21;
const MARK: u64 = (1 << MARK_BITS) - 1;
/// Registrations of a route that is shared between types: others are seldom met and made for each.
const FEW: usize = 8;

const SLOTS_MIN: usize = 4;
/// Slots of the first level.
const SLOTS_FIRST_MAX: usize = 1_024;
/// Slots of the last one: twice the types that are kept by default, so that nearly all of them find their place.
const SLOTS_MAX: usize = 2 * limits::TYPES_MAX;
const PROBES_MAX: usize = 8;
/// How much larger the next level of slots is. Larger than the doubling of tables that move their entries, as every
/// level that a type has to pass costs its probes.
const LEVEL_GROWTH: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sieve_lets_through_whatever_its_pattern_matches() {
        let types =
            ["a", "a.b", "b.a", "a.b.c", "a.c", "x.b.c", "a.b.b", "x.y", "node.down", "a.error", "", "."];
        let patterns = [
            "a",
            "a.*",
            "*.b",
            "a.**",
            "**.c",
            "{a,x}.b.c",
            "{a,b}.{a,b}",
            "*",
            "**",
            "a.b.*",
            "*.b.**",
            "*.{b,c}.c",
        ];
        let mut refused = 0;
        for pattern in patterns {
            let pattern = Pattern::parse(pattern).unwrap();
            let sieve = Sieve::of(&pattern);
            for event_type in types {
                let lets = sieve.lets(marks_of(event_type));
                assert!(lets || !pattern.matches(event_type), "{pattern} and {event_type}");
                refused += usize::from(!lets);
            }
        }
        assert!(refused > 70, "only {refused} of {} were refused", types.len() * patterns.len());
    }
}
