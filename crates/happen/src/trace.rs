//! Reading the causal web: what led to an event and what followed from it, as far as it is remembered, as a tree that a
//! person can read. Owns the public types of a trace; writes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use happen_core::{Error, EventId, NodeKey, Result};

use crate::space::{Space, SpaceInner};
use crate::web::{self, Header};

/// What to trace: an event by its id, or a correlation by the name its sender chose.
pub trait Traceable {
    #[doc(hidden)]
    fn events(&self, space: &Space) -> Vec<EventId>;
}

impl Traceable for EventId {
    fn events(&self, _: &Space) -> Vec<EventId> {
        vec![*self]
    }
}

impl Traceable for str {
    fn events(&self, space: &Space) -> Vec<EventId> {
        let named = space.inner().roots_of(self);
        if named.is_empty() { self.parse().into_iter().collect() } else { named }
    }
}

impl<T: Traceable + ?Sized> Traceable for &T {
    fn events(&self, space: &Space) -> Vec<EventId> {
        (**self).events(space)
    }
}

impl Traceable for String {
    fn events(&self, space: &Space) -> Vec<EventId> {
        self.as_str().events(space)
    }
}

/// A part of the causal web as a tree, one line for each event, causes before effects. Iterate it for its lines.
#[derive(Debug, Clone)]
pub struct Trace {
    lines: Vec<Line>,
    cut: bool,
}

/// One event of a trace.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Line {
    /// How far the event is from the root of the trace.
    pub depth: usize,
    /// The event.
    pub event: EventId,
    /// Its type.
    pub event_type: String,
    /// Its causes.
    pub causes: Vec<EventId>,
    /// The node that sent it; `None` for the space itself.
    pub sender: Option<String>,
    /// What became of it, at each node that got it.
    pub handled: Vec<Handled>,
    /// Milliseconds since the first event of the trace.
    pub after_ms: u64,
    /// Whether it is the one that was asked for.
    pub asked_for: bool,
    guides: String,
}

/// What became of an event at one node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handled {
    /// The node.
    pub node: String,
    /// The outcome.
    pub outcome: TraceOutcome,
    /// The further steps of its flow, by name.
    pub steps: Vec<String>,
}

/// How an event ended at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceOutcome {
    /// Without a value.
    Ended,
    /// With a value, which was the reply.
    Value,
    /// With a failure of this code.
    Failed(&'static str),
    /// Not yet: its flow waits, or it waits for its flow.
    Waiting,
}

impl Space {
    /// The tree of the event: up to its root, and down to everything that followed, as far as it is remembered.
    ///
    /// Ephemeral nodes keep headers in a bounded ring; [`Trace::is_cut`] says whether some may be missing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) when nothing is remembered of it.
    ///
    /// # Cost
    ///
    /// Reads every remembered header once.
    pub async fn trace(&self, what: impl Traceable) -> Result<Trace> {
        let asked = what.events(self);
        let remembered = Remembered::read(self.inner());
        let known: Vec<_> = asked.into_iter().filter(|event| remembered.events.contains_key(event)).collect();
        if known.is_empty() {
            return Err(Error::misuse("no such event or correlation is remembered"));
        }
        let roots: BTreeSet<_> = known.iter().flat_map(|event| remembered.first_known(*event)).collect();
        let mut lines = Vec::new();
        let asked: HashSet<_> = known.iter().copied().collect();
        let start = roots.iter().next().map_or(0, |root| root.unix_ms());
        let waits = remembered.causes_below(&roots);
        let mut tree = Tree { remembered: &remembered, space: self.inner(), asked: &asked, waits, start };
        for root in &roots {
            tree.add(*root, &mut lines);
        }
        Ok(Trace { lines, cut: remembered.cut })
    }

    /// The events that caused this one, the root first: one for each step back, all of them where an event was made
    /// from several.
    ///
    /// # Errors
    ///
    /// As [`Space::trace`].
    pub async fn why(&self, event: EventId) -> Result<Vec<EventId>> {
        let remembered = Remembered::read(self.inner());
        if !remembered.events.contains_key(&event) {
            return Err(Error::misuse("no such event is remembered").at_event(event));
        }
        Ok(remembered.causes_of(event))
    }

    /// The events that followed from this one, causes before effects.
    ///
    /// # Errors
    ///
    /// As [`Space::trace`].
    pub async fn impact(&self, event: EventId) -> Result<Vec<EventId>> {
        let remembered = Remembered::read(self.inner());
        if !remembered.events.contains_key(&event) {
            return Err(Error::misuse("no such event is remembered").at_event(event));
        }
        let mut found = BTreeSet::new();
        let mut next = vec![event];
        while let Some(cause) = next.pop() {
            for &effect in remembered.effects.get(&cause).into_iter().flatten() {
                if found.insert(effect) {
                    next.push(effect);
                }
            }
        }
        Ok(remembered.sorted(&found))
    }

    /// The remembered ones of these events so that every cause stands before its effects.
    #[must_use]
    pub fn causal_order(&self, events: impl IntoIterator<Item = EventId>) -> Vec<EventId> {
        Remembered::read(self.inner()).sorted(&events.into_iter().collect())
    }
}

impl Trace {
    /// The lines, causes before effects.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Whether older headers were overwritten, so that causes or effects may be missing.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }
}

impl IntoIterator for Trace {
    type Item = Line;
    type IntoIter = std::vec::IntoIter<Line>;

    fn into_iter(self) -> Self::IntoIter {
        self.lines.into_iter()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        if self.cut {
            writeln!(f, "(older events are not remembered any more)")?;
        }
        Ok(())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} +{}ms", self.guides, self.event_type, self.after_ms)?;
        for handled in &self.handled {
            write!(f, "  {}", handled.node)?;
            for step in &handled.steps {
                write!(f, " > {step}")?;
            }
            write!(f, " {}", handled.outcome)?;
        }
        if self.asked_for {
            f.write_str("  <")?;
        }
        Ok(())
    }
}

impl fmt::Display for TraceOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("ok"),
            Self::Value => f.write_str("replied"),
            Self::Failed(code) => write!(f, "failed ({code})"),
            Self::Waiting => f.write_str("waits"),
        }
    }
}

/// All that the rings of a space hold, put together.
pub(crate) struct Remembered {
    events: HashMap<EventId, Known>,
    effects: HashMap<EventId, Vec<EventId>>,
    types: HashMap<u64, happen_core::EventType>,
    names: HashMap<NodeKey, Arc<str>>,
    cut: bool,
}

#[derive(Default)]
struct Known {
    causes: Vec<EventId>,
    root: Option<EventId>,
    event_type: u64,
    sender: NodeKey,
    handled: BTreeMap<NodeKey, u8>,
    steps: Vec<(NodeKey, u32, u64)>,
}

impl Remembered {
    pub(crate) fn read(space: &SpaceInner) -> Self {
        let mut events: HashMap<EventId, Known> = HashMap::new();
        let mut later = Vec::new();
        let mut cut = false;
        for ring in space.rings() {
            let (headers, ring_cut) = ring.read();
            cut |= ring_cut;
            for header in headers {
                match header {
                    Header::Sent { id, cause, root, event_type, sender, to, what } => {
                        let known = events.entry(id).or_default();
                        known.causes.splice(0..0, cause);
                        known.root = Some(root);
                        known.event_type = event_type;
                        known.sender = sender;
                        if to != NodeKey(0) && what != web::SENT_ON {
                            // What a flow told when it ended is newer than what its sender saw.
                            known.handled.entry(to).or_insert(what);
                        }
                    }
                    other => later.push(other),
                }
            }
        }
        for header in later {
            match header {
                Header::Handled { id, node, what } => {
                    if let Some(known) = events.get_mut(&id) {
                        let outcome = known.handled.entry(node).or_insert(what);
                        // Of several handlers at one node a failure is told first, then a value.
                        if telling(what) >= telling(*outcome) {
                            *outcome = what;
                        }
                    }
                }
                Header::Cause { id, cause } => {
                    if let Some(known) = events.get_mut(&id) {
                        known.causes.push(cause);
                    }
                }
                Header::Step { id, node, step, after } => {
                    if let Some(known) = events.get_mut(&id) {
                        known.steps.push((node, after, step));
                    }
                }
                Header::Sent { .. } => {}
            }
        }
        let mut effects: HashMap<EventId, Vec<EventId>> = HashMap::new();
        for (&id, known) in &mut events {
            known.steps.sort_by_key(|&(_, after, _)| after);
            for &cause in &known.causes {
                effects.entry(cause).or_default().push(id);
            }
        }
        for all in effects.values_mut() {
            all.sort_unstable();
        }
        Self { events, effects, types: space.type_names(), names: space.all_names(), cut }
    }

    /// The farthest causes of an event that are remembered.
    fn first_known(&self, event: EventId) -> BTreeSet<EventId> {
        let mut first = BTreeSet::new();
        let mut seen = HashSet::new();
        let mut next = vec![event];
        while let Some(at) = next.pop() {
            if !seen.insert(at) {
                continue;
            }
            let causes = self.events.get(&at).map_or(&[][..], |known| &known.causes);
            let known: Vec<_> = causes.iter().filter(|cause| self.events.contains_key(cause)).collect();
            if known.is_empty() {
                first.insert(at);
            }
            next.extend(known);
        }
        first
    }

    /// The events below these, each with the number of its causes that are there too.
    fn causes_below(&self, roots: &BTreeSet<EventId>) -> HashMap<EventId, usize> {
        let mut waits = HashMap::new();
        let mut next: Vec<_> = roots.iter().copied().collect();
        while let Some(cause) = next.pop() {
            for &effect in self.effects.get(&cause).into_iter().flatten() {
                let waiting = waits.entry(effect).or_insert(0);
                *waiting += 1;
                if *waiting == 1 {
                    next.push(effect);
                }
            }
        }
        waits
    }

    fn causes_of(&self, event: EventId) -> Vec<EventId> {
        let mut found = BTreeSet::new();
        let mut next = vec![event];
        while let Some(at) = next.pop() {
            for &cause in self.events.get(&at).into_iter().flat_map(|known| &known.causes) {
                if found.insert(cause) {
                    next.push(cause);
                }
            }
        }
        self.sorted(&found)
    }

    /// These events so that causes stand before effects: by a walk over the web, among independent ones by id.
    fn sorted(&self, events: &BTreeSet<EventId>) -> Vec<EventId> {
        let mut waits: HashMap<EventId, usize> = HashMap::new();
        for &event in events {
            let causes = self.events.get(&event).map_or(&[][..], |known| &known.causes);
            waits.insert(event, causes.iter().filter(|cause| events.contains(cause)).count());
        }
        let mut ready: BTreeSet<_> =
            waits.iter().filter(|(_, left)| **left == 0).map(|(event, _)| *event).collect();
        let mut sorted = Vec::with_capacity(events.len());
        while let Some(event) = ready.pop_first() {
            sorted.push(event);
            for effect in self.effects.get(&event).into_iter().flatten() {
                if let Some(left) = waits.get_mut(effect) {
                    *left -= 1;
                    if *left == 0 {
                        ready.insert(*effect);
                    }
                }
            }
        }
        sorted
    }

    pub(crate) fn way_to(&self, event: EventId, max: usize) -> Vec<String> {
        let mut way = Vec::new();
        let mut at = Some(event);
        while let Some(id) = at.filter(|_| way.len() < max) {
            let Some(known) = self.events.get(&id) else { break };
            let node = known.handled.keys().next().map_or(known.sender, |node| *node);
            way.push(format!("{} at {}", self.type_name(known), self.name(node).unwrap_or("the space")));
            at = known.causes.first().copied();
        }
        way.reverse();
        way
    }

    pub(crate) fn type_of(&self, event: EventId) -> Option<happen_core::EventType> {
        self.types.get(&self.events.get(&event)?.event_type).cloned()
    }

    pub(crate) fn types_from(&self, node: NodeKey) -> Vec<String> {
        let from = self.events.values().filter(|known| known.sender == node);
        let types: BTreeSet<_> = from.map(|known| self.type_name(known).to_owned()).collect();
        types.into_iter().collect()
    }

    fn type_name(&self, known: &Known) -> &str {
        self.types.get(&known.event_type).map_or("(one of very many types)", |name| name.as_str())
    }

    fn name(&self, key: NodeKey) -> Option<&str> {
        self.names.get(&key).map(|name| &**name)
    }
}

/// How much an outcome tells beside others of the same event at the same node.
fn telling(what: u8) -> u8 {
    match what {
        web::SENT_ON | web::WAITING => 0,
        web::ENDED | web::PUBLISHED => 1,
        web::VALUE => 2,
        _ => 3,
    }
}

struct Tree<'r> {
    remembered: &'r Remembered,
    space: &'r SpaceInner,
    asked: &'r HashSet<EventId>,
    /// For each event below the roots, how many of its causes there are still to be shown.
    waits: HashMap<EventId, usize>,
    start: u64,
}

impl Tree<'_> {
    /// Adds a root and what is below it. An event of several causes is shown once, under the last of them.
    fn add(&mut self, root: EventId, lines: &mut Vec<Line>) {
        // A stack of its own: a cascade may be deeper than the thread's.
        let mut stack = vec![(root, 0, Vec::<bool>::new())];
        while let Some((event, depth, last)) = stack.pop() {
            let Some(known) = self.remembered.events.get(&event) else { continue };
            lines.push(self.line(event, known, depth, &last));
            let effects = self.remembered.effects.get(&event).map_or(&[][..], Vec::as_slice);
            let shown: Vec<_> =
                effects.iter().copied().filter(|effect| self.is_last_cause_of(*effect)).collect();
            for (index, &effect) in shown.iter().enumerate().rev() {
                let mut last = last.clone();
                // Guides end at a depth, and so does what is kept for them: a cascade may be many thousand deep.
                if last.len() < GUIDES_MAX + 2 {
                    last.push(index + 1 == shown.len());
                }
                stack.push((effect, depth + 1, last));
            }
        }
    }

    fn is_last_cause_of(&mut self, effect: EventId) -> bool {
        let Some(waits) = self.waits.get_mut(&effect) else { return false };
        *waits -= 1;
        *waits == 0
    }

    fn line(&self, event: EventId, known: &Known, depth: usize, last: &[bool]) -> Line {
        let mut guides = String::new();
        if let Some((own, above)) = last.split_last() {
            // Beyond a depth a person can follow, the indent stays and the number of levels is written out.
            if above.len() > GUIDES_MAX {
                guides.push_str(&format!("({depth}) "));
            } else {
                above.iter().for_each(|last| guides.push_str(if *last { "   " } else { "│  " }));
                guides.push_str(if *own { "└─ " } else { "├─ " });
            }
        }
        let handled = known.handled.iter().map(|(&node, &what)| Handled {
            node: self.remembered.name(node).unwrap_or("(a node that is gone)").to_owned(),
            outcome: outcome(what),
            steps: self.steps(known, node),
        });
        Line {
            depth,
            event,
            event_type: self.remembered.type_name(known).to_owned(),
            causes: known.causes.clone(),
            sender: self.remembered.name(known.sender).map(str::to_owned),
            handled: handled.collect(),
            after_ms: event.unix_ms().saturating_sub(self.start),
            asked_for: self.asked.contains(&event),
            guides,
        }
    }

    fn steps(&self, known: &Known, node: NodeKey) -> Vec<String> {
        let own = known.steps.iter().filter(|(at, ..)| *at == node);
        let names = own.map(|(.., step)| self.space.step_name(*step).unwrap_or("(unknown step)"));
        names.map(|name| name.rsplit("::").next().unwrap_or(name).to_owned()).collect()
    }
}

fn outcome(what: u8) -> TraceOutcome {
    match what {
        web::VALUE => TraceOutcome::Value,
        web::ENDED => TraceOutcome::Ended,
        what => web::code(what).map_or(TraceOutcome::Waiting, TraceOutcome::Failed),
    }
}

/// Levels of a tree that are drawn.
const GUIDES_MAX: usize = 20;
