//! What a node handles, as one immutable table that is replaced as a whole: registrations, steps, options. Owns the
//! cache that says which registrations an event type has; does not know how they are run.

use std::fmt;
use std::sync::{Arc, OnceLock};

use happen_core::pattern::{Captures, is_runtime};
use happen_core::{ErasedEvent, Event, EventType, Function, Pattern};

use crate::accept::Acceptance;
use crate::config::NodeOptions;
use crate::hooks::Hooks;
use crate::slow::SlowLane;
use crate::sync::isolated;

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
    routes: Routes,
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

/// One registration.
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) pattern: Pattern,
    pub(crate) priority: i32,
    pub(crate) guard: Option<Guard>,
    pub(crate) function: Arc<dyn Function>,
    pub(crate) slow: Arc<SlowLane>,
    /// What the function says of itself, asked once.
    pub(crate) plain: bool,
    pub(crate) zero: bool,
}

/// A function a flow may go on with, under its name.
pub(crate) struct StepEntry {
    pub(crate) name: Arc<str>,
    pub(crate) function: Arc<dyn Function>,
}

/// The registrations of one node for one event type, by priority.
#[derive(Debug, Default)]
pub(crate) struct Route {
    pub(crate) entries: Vec<Arc<Entry>>,
}

/// A route from the cache, or one that found no room in it.
pub(crate) enum Found<'t> {
    Cached(&'t Route),
    Fresh(Route),
}

impl std::ops::Deref for Found<'_> {
    type Target = Route;

    #[inline]
    fn deref(&self) -> &Route {
        match self {
            Self::Cached(route) => route,
            Self::Fresh(route) => route,
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
            routes: Routes::default(),
        }
    }

    /// Adds a registration after those of the same priority.
    pub(crate) fn insert(&mut self, entry: Arc<Entry>) {
        let at = self.entries.partition_point(|other| other.priority >= entry.priority);
        self.entries.insert(at, entry);
    }

    /// The registrations for this type, found once and remembered while there is room.
    #[inline]
    pub(crate) fn route(&self, event_type: &EventType) -> Found<'_> {
        self.routes.find(event_type, || self.match_type(event_type), self.entries.len())
    }

    fn match_type(&self, event_type: &EventType) -> Route {
        let text = event_type.as_str();
        let runtime = is_runtime(text);
        let matching = self.entries.iter().filter(|entry| entry.wants_type(text, runtime));
        Route { entries: matching.cloned().collect() }
    }

    /// The step of this name: one given with `.step`, or the function of a registration.
    pub(crate) fn step(&self, name: &str) -> Option<Arc<StepEntry>> {
        self.steps.iter().find(|step| &*step.name == name).cloned().or_else(|| {
            let entry = self.entries.iter().find(|entry| &*entry.name == name)?;
            Some(Arc::new(StepEntry { name: Arc::clone(&entry.name), function: Arc::clone(&entry.function) }))
        })
    }

    pub(crate) fn step_names(&self) -> Vec<String> {
        let steps = self.steps.iter().map(|step| step.name.to_string());
        steps.chain(self.entries.iter().map(|entry| entry.name.to_string())).collect()
    }

    /// The same table with an empty cache, for a change that alters routes.
    pub(crate) fn changed(&self) -> Self {
        Self { routes: Routes::default(), ..self.clone() }
    }
}

impl Entry {
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

/// A cache that only grows, in a fixed number of slots: reading it takes no lock, and it ends with its table.
struct Routes {
    slots: OnceLock<Box<[Slot]>>,
}

type Slot = OnceLock<(EventType, Route)>;

impl Routes {
    #[inline]
    fn find(&self, event_type: &EventType, make: impl FnOnce() -> Route, entries: usize) -> Found<'_> {
        let slots = self.slots.get_or_init(|| {
            let len = (entries * 2).clamp(SLOTS_MIN, SLOTS_MAX).next_power_of_two();
            (0..len).map(|_| OnceLock::new()).collect()
        });
        let mask = slots.len() - 1;
        let start = event_type.hash() as usize;
        for probe in 0..PROBES_MAX {
            let slot = &slots[(start + probe) & mask];
            match slot.get() {
                Some((cached, route)) if cached == event_type => return Found::Cached(route),
                Some(_) => {}
                None => return Self::fill(slot, event_type, make()),
            }
        }
        Found::Fresh(make())
    }

    #[cold]
    fn fill<'t>(slot: &'t Slot, event_type: &EventType, route: Route) -> Found<'t> {
        let mut ours = Some(route);
        let (cached, kept) = slot.get_or_init(|| (event_type.clone(), ours.take().unwrap_or_default()));
        match ours {
            // Another thread put a type there in between; when it is another one, ours is used without being kept.
            Some(route) if cached != event_type => Found::Fresh(route),
            _ => Found::Cached(kept),
        }
    }
}

impl Default for Routes {
    fn default() -> Self {
        Self { slots: OnceLock::new() }
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
