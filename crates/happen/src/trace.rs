//! Reading the causal web: what led to an event and what followed from it, as far as it is remembered, as a tree that a
//! person can read. Owns the public types of a trace, and reading the rings; writes nothing. The journal gives the same
//! types from what a store remembers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use happen_core::{Error, ErrorKind, EventId, NodeKey, Result};

use crate::journal::Sought;
use crate::space::{Space, SpaceInner};
use crate::tree::{self, Told, Web};
use crate::web::{self, Header};

/// What to trace: an event by its id, or a correlation by the name its sender chose.
pub trait Traceable {
    #[doc(hidden)]
    fn events(&self, space: &Space) -> Vec<EventId>;

    /// The event or the correlation as a log knows it.
    #[doc(hidden)]
    fn sought(&self) -> Sought;
}

impl Traceable for EventId {
    fn events(&self, _: &Space) -> Vec<EventId> {
        vec![*self]
    }

    fn sought(&self) -> Sought {
        (*self).into()
    }
}

impl Traceable for str {
    fn events(&self, space: &Space) -> Vec<EventId> {
        let named = space.inner().roots_of(self);
        if named.is_empty() { self.parse().into_iter().collect() } else { named }
    }

    fn sought(&self) -> Sought {
        self.into()
    }
}

impl<T: Traceable + ?Sized> Traceable for &T {
    fn events(&self, space: &Space) -> Vec<EventId> {
        (**self).events(space)
    }

    fn sought(&self) -> Sought {
        (**self).sought()
    }
}

impl Traceable for String {
    fn events(&self, space: &Space) -> Vec<EventId> {
        self.as_str().events(space)
    }

    fn sought(&self) -> Sought {
        self.as_str().sought()
    }
}

/// A part of the causal web as a tree, one line for each event, causes before effects. Iterate it for its lines.
#[derive(Debug, Clone)]
pub struct Trace {
    pub(crate) lines: Vec<Line>,
    pub(crate) cut: Cut,
}

/// Whether a trace has everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Whole,
    /// Some causes or effects are not remembered any more.
    Forgotten,
    /// It ended at this limit on its events.
    Limit(usize),
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
    /// When it was sent, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Milliseconds since the first event of the trace.
    pub after_ms: u64,
    /// Whether it is the one that was asked for.
    pub asked_for: bool,
    pub(crate) guides: String,
    /// What stands before the parts of the line that did not fit.
    pub(crate) below: String,
}

/// What became of an event at one node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handled {
    /// The node.
    pub node: String,
    /// The registration whose flow it was, where a store remembers each flow; `None` for the node as a whole.
    pub registration: Option<String>,
    /// The outcome.
    pub outcome: TraceOutcome,
    /// The further steps of its flow, by name.
    pub steps: Vec<String>,
    /// How often the step was tried that was tried most often; 1 where attempts are not remembered.
    pub attempts: u32,
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
    /// Not yet: its step failed with this code and is tried again.
    Retrying(&'static str),
}

impl Space {
    /// The tree of the event: up to its root, and down to everything that followed, as far as it is remembered.
    ///
    /// Ephemeral nodes keep headers in a bounded ring; [`Trace::is_cut`] says whether some may be missing. What a store has
    /// of the event is told from there, whole and from any time: of a web that durable and ephemeral nodes share, what
    /// concerns the durable ones.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) when nothing is remembered of it.
    ///
    /// # Cost
    ///
    /// Reads every remembered header once.
    pub async fn trace(&self, what: impl Traceable) -> Result<Trace> {
        if let Some(journal) = self.inner().journal() {
            match journal.trace(what.sought()).await {
                Err(error) if matches!(error.kind(), ErrorKind::NotFound { .. }) => {}
                trace => return trace,
            }
        }
        let asked = what.events(self);
        let remembered = Remembered::read(self.inner());
        let known: Vec<_> = asked.into_iter().filter(|event| remembered.events.contains_key(event)).collect();
        if known.is_empty() {
            return Err(Error::misuse("no such event or correlation is remembered"));
        }
        let roots: BTreeSet<_> =
            known.iter().flat_map(|event| tree::first_known(&remembered, *event)).collect();
        let lines = tree::draw(&remembered, &roots, &known.into_iter().collect());
        Ok(Trace { lines, cut: if remembered.cut { Cut::Forgotten } else { Cut::Whole } })
    }

    /// The events that caused this one, the root first: one for each step back, all of them where an event was made
    /// from several.
    ///
    /// # Errors
    ///
    /// As [`Space::trace`].
    pub async fn why(&self, event: EventId) -> Result<Vec<EventId>> {
        if let Some(journal) = self.inner().journal_of(event).await? {
            return journal.why(event).await;
        }
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
        if let Some(journal) = self.inner().journal_of(event).await? {
            return journal.impact(event).await;
        }
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

    /// Whether causes or effects may be missing: they are not remembered any more, or were more than a trace may have.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut != Cut::Whole
    }

    /// The trace as text whose lines have at most so many columns, as far as single names let them. What became of an
    /// event goes on below it when it does not fit.
    ///
    /// # Examples
    ///
    /// ```
    /// # use happen::{Context, Event, Space};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = Space::memory();
    /// for name in ["a-node-with-a-long-name", "another-node-with-a-long-name"] {
    ///     space.node(name).on("order.placed", |_: &Event, _: &Context| {});
    /// }
    /// space.start().await?;
    /// let id = space.broadcast(Event::new("order.placed", serde_json::Value::Null))?;
    ///
    /// let text = space.trace(id).await?.in_columns(60);
    /// assert!(text.lines().count() == 2 && text.lines().all(|line| line.chars().count() <= 60), "{text}");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn in_columns(&self, columns: usize) -> String {
        let mut text = String::new();
        for line in &self.lines {
            line.wrap(columns, &mut text);
        }
        text.push_str(&self.cut.to_string());
        text
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
        fmt::Display::fmt(&self.cut, f)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => Ok(()),
            Self::Forgotten => writeln!(f, "(older events are not remembered any more)"),
            Self::Limit(max) => writeln!(f, "(there are more events; a trace ends at {max})"),
        }
    }
}

impl Line {
    /// The parts of the line, each with what parts it from the one before.
    fn parts(&self) -> Vec<(&'static str, String)> {
        let mut parts = vec![("", format!("{}{} +{}ms", self.guides, self.event_type, self.after_ms))];
        self.handled.iter().for_each(|handled| handled.parts(&mut parts));
        if self.asked_for {
            parts.push(("  ", "<".to_owned()));
        }
        parts
    }

    fn wrap(&self, columns: usize, text: &mut String) {
        let mut used = 0;
        for (apart, part) in self.parts() {
            let len = part.chars().count();
            if used > 0 && used + apart.len() + len > columns {
                text.push('\n');
                text.push_str(&self.below);
                used = self.below.chars().count();
            } else {
                text.push_str(apart);
                used += apart.len();
            }
            text.push_str(&part);
            used += len;
        }
        text.push('\n');
    }
}

impl Handled {
    fn parts(&self, parts: &mut Vec<(&'static str, String)>) {
        let registration = self.registration.iter().map(|name| format!("/{name}"));
        parts.push(("  ", std::iter::once(self.node.clone()).chain(registration).collect()));
        parts.extend(self.steps.iter().map(|step| (" ", format!("> {step}"))));
        parts.push((" ", self.outcome.to_string()));
        if self.attempts > 1 {
            parts.push((" ", format!("({} attempts)", self.attempts)));
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts().iter().try_for_each(|(apart, part)| write!(f, "{apart}{part}"))
    }
}

impl fmt::Display for TraceOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("ok"),
            Self::Value => f.write_str("replied"),
            Self::Failed(code) => write!(f, "failed ({code})"),
            Self::Waiting => f.write_str("waits"),
            Self::Retrying(code) => write!(f, "is tried again ({code})"),
        }
    }
}

/// All that the rings of a space hold, put together.
pub(crate) struct Remembered {
    events: HashMap<EventId, Known>,
    effects: HashMap<EventId, Vec<EventId>>,
    types: HashMap<u64, happen_core::EventType>,
    names: HashMap<NodeKey, Arc<str>>,
    steps: HashMap<u64, &'static str>,
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
        let mut steps = HashMap::new();
        for (&id, known) in &mut events {
            let names = known.steps.iter().map(|&(.., step)| (step, space.step_name(step)));
            steps.extend(names.filter_map(|(step, name)| Some((step, name?))));
            known.steps.sort_by_key(|&(_, after, _)| after);
            for &cause in &known.causes {
                effects.entry(cause).or_default().push(id);
            }
        }
        for all in effects.values_mut() {
            all.sort_unstable();
        }
        Self { events, effects, types: space.type_names(), names: space.all_names(), steps, cut }
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

    fn steps_of(&self, known: &Known, node: NodeKey) -> Vec<String> {
        let own = known.steps.iter().filter(|(at, ..)| *at == node);
        let names = own.map(|(.., step)| self.steps.get(step).copied().unwrap_or("(unknown step)"));
        names.map(|name| name.rsplit("::").next().unwrap_or(name).to_owned()).collect()
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

impl Web for Remembered {
    fn causes(&self, event: EventId) -> Option<&[EventId]> {
        self.events.get(&event).map(|known| &known.causes[..])
    }

    fn effects(&self, event: EventId) -> &[EventId] {
        self.effects.get(&event).map_or(&[], Vec::as_slice)
    }

    fn told(&self, event: EventId) -> Option<Told> {
        let known = self.events.get(&event)?;
        let handled = known.handled.iter().map(|(&node, &what)| Handled {
            node: self.name(node).unwrap_or("(a node that is gone)").to_owned(),
            registration: None,
            outcome: outcome(what),
            steps: self.steps_of(known, node),
            attempts: 1,
        });
        Some(Told {
            event_type: self.type_name(known).to_owned(),
            sender: self.name(known.sender).map(str::to_owned),
            handled: handled.collect(),
            at_unix_ms: event.unix_ms(),
        })
    }
}

fn outcome(what: u8) -> TraceOutcome {
    match what {
        web::VALUE => TraceOutcome::Value,
        web::ENDED => TraceOutcome::Ended,
        what => web::code(what).map_or(TraceOutcome::Waiting, TraceOutcome::Failed),
    }
}
