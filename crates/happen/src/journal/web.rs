//! The part of the causal web around some events, as the log has it. Owns in which order the log is asked, so that it
//! takes few reads; does not know how the web is drawn.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use happen_core::codec::{StepOutcome, WireParcel};
use happen_core::store::{Position, Read, Record, Select, Store, Tag};
use happen_core::{EventId, Result};

use super::entry::{self, FlowName};
use super::walk::{self, Walk};
use crate::limits;
use crate::trace::{Handled, TraceOutcome};
use crate::tree::{self, Told, Web};

/// What was read of the web so far.
///
/// The log is asked in two ways by turns: for the records of whole correlations, a page at a time, for most webs lie in
/// one; and for the causes or effects of exactly those events whose own are not known yet, which ends when there are none.
/// A web that fills its correlation is read by its pages; a small web in a large correlation by its depth.
pub(super) struct Branch<'s> {
    store: &'s dyn Store,
    events: HashMap<EventId, Known>,
    effects: HashMap<EventId, Vec<EventId>>,
    /// Records that were taken already: the two ways meet the same ones.
    taken: HashSet<Position>,
    /// How far each correlation was read, in one direction.
    pages: HashMap<Arc<str>, Walk<'s>>,
    /// Correlations that were read whole.
    whole: HashSet<Arc<str>>,
    /// Events that the log does not have.
    absent: HashSet<EventId>,
    /// Whether effects were left out because there were too many.
    pub(super) is_full: bool,
}

struct Known {
    event_type: Arc<str>,
    correlation: Arc<str>,
    sender: Option<String>,
    at_unix_ms: u64,
    causes: Vec<EventId>,
    /// The record, and the number in its batch.
    place: (Position, usize),
    /// The first event of its batch, whose flows are its own too.
    first_of_batch: Option<EventId>,
    flows: BTreeMap<FlowName, Run>,
}

/// One flow, as far as its steps were read.
struct Run {
    /// The position of the newest step that was read.
    at: Position,
    outcome: TraceOutcome,
    steps: BTreeMap<u32, String>,
    attempts: u32,
}

/// Where the web is followed to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl<'s> Branch<'s> {
    pub(super) fn new(store: &'s dyn Store) -> Self {
        Self {
            store,
            events: HashMap::new(),
            effects: HashMap::new(),
            taken: HashSet::new(),
            pages: HashMap::new(),
            whole: HashSet::new(),
            absent: HashSet::new(),
            is_full: false,
        }
    }

    pub(super) fn knows(&self, event: EventId) -> bool {
        self.events.contains_key(&event)
    }

    /// Whether a cause or an event was looked for that the log does not have.
    pub(super) fn is_cut(&self) -> bool {
        !self.absent.is_empty()
    }

    /// Reads all records of these events.
    pub(super) async fn read_events(&mut self, events: &[EventId]) -> Result<()> {
        for some in events.chunks(limits::JOURNAL_TAGS_MAX) {
            let tags = some.iter().copied().map(Tag::Event).collect();
            self.read_all(Select::Tagged(tags)).await?;
            self.absent.extend(some.iter().filter(|event| !self.events.contains_key(event)));
        }
        Ok(())
    }

    /// Reads the correlation of this event, if it is of an ordinary size: then nothing of it is read twice, whichever
    /// way the web is followed.
    pub(super) async fn read_around(&mut self, event: EventId) -> Result<()> {
        let Some(known) = self.events.get(&event) else { return Ok(()) };
        let name = Arc::clone(&known.correlation);
        let mut walk = Walk::new(self.store, Read::forward(Select::tag(Tag::Correlation(Arc::clone(&name)))));
        for _ in 0..PAGES_FIRST {
            match walk.next().await? {
                Some(records) => self.take_all(&records)?,
                None => break,
            }
        }
        if walk.is_at_end() {
            self.whole.insert(name);
        }
        Ok(())
    }

    /// Reads a whole correlation, as far as a trace may be long, and gives its roots.
    pub(super) async fn read_correlation(&mut self, name: &str) -> Result<BTreeSet<EventId>> {
        let select = Select::tag(Tag::Correlation(name.into()));
        let mut walk = Walk::new(self.store, Read::forward(select));
        while let Some(records) = walk.next().await? {
            self.take_all(&records)?;
            if self.events.len() > limits::JOURNAL_TRACE_EVENTS_MAX {
                self.is_full = true;
                break;
            }
        }
        if walk.is_at_end() {
            self.whole.insert(name.into());
        }
        let of_it = self.events.iter().filter(|(_, known)| &*known.correlation == name);
        let roots = of_it.filter(|(_, known)| !known.causes.iter().any(|cause| self.knows(*cause)));
        Ok(roots.map(|(event, _)| *event).collect())
    }

    /// Reads until all causes of these events are known, as far as the log has them.
    pub(super) async fn follow_up(&mut self, events: &[EventId]) -> Result<()> {
        self.pages.clear();
        let mut seen: HashSet<EventId> = events.iter().copied().collect();
        let mut next: Vec<EventId> = events.to_vec();
        loop {
            let mut missing = BTreeSet::new();
            while let Some(event) = next.pop() {
                for &cause in self.causes(event).unwrap_or_default() {
                    if self.knows(cause) {
                        if seen.insert(cause) {
                            next.push(cause);
                        }
                    } else if !self.absent.contains(&cause) {
                        missing.insert((cause, event));
                    }
                }
            }
            let Some(&(_, effect)) = missing.first() else { return Ok(()) };
            self.read_page(effect, Way::Up).await?;
            let wanted: BTreeSet<EventId> =
                missing.iter().map(|(cause, _)| *cause).filter(|cause| !self.knows(*cause)).collect();
            self.read_events(&wanted.into_iter().collect::<Vec<_>>()).await?;
            next.extend(missing.into_iter().map(|(_, effect)| effect));
        }
    }

    /// Reads until everything that followed from these events is known, and gives it without them.
    pub(super) async fn follow_down(&mut self, events: &BTreeSet<EventId>) -> Result<BTreeSet<EventId>> {
        self.pages.clear();
        let mut below: BTreeSet<EventId> = BTreeSet::new();
        let mut asked: HashSet<EventId> = HashSet::new();
        let mut next: Vec<EventId> = events.iter().copied().collect();
        // Twice as many each time, so that neither a deep web nor a large correlation takes many reads.
        let (mut pages, mut pages_next) = (PAGES_FIRST, PAGES_FIRST);
        loop {
            let mut frontier = Vec::new();
            while let Some(event) = next.pop() {
                if !asked.contains(&event) {
                    frontier.push(event);
                }
                let found = self.effects(event).iter().copied();
                next.extend(found.filter(|effect| !events.contains(effect) && below.insert(*effect)));
            }
            if below.len() > limits::JOURNAL_TRACE_EVENTS_MAX {
                self.is_full = true;
                return Ok(below);
            }
            let Some(&first) = frontier.first() else { return Ok(below) };
            if pages_next > 0 {
                // What the pages have may lie below too, and is then asked for together with these.
                for _ in 0..std::mem::take(&mut pages_next) {
                    if !self.read_page(first, Way::Down).await? {
                        break;
                    }
                }
                next = frontier;
                continue;
            }
            self.read_effects(&frontier).await?;
            asked.extend(&frontier);
            next = frontier;
            pages *= 2;
            pages_next = pages;
        }
    }

    /// Puts effects into the order of the log, whatever order they were read in.
    pub(super) fn sort(&mut self) {
        let place = |event: &EventId| self.events.get(event).map(|known| known.place);
        self.effects.values_mut().for_each(|effects| effects.sort_by_key(place));
    }

    /// These events in the order of the log, in which causes stand before effects.
    pub(super) fn in_order(&self, events: impl IntoIterator<Item = EventId>) -> Vec<EventId> {
        let mut placed: Vec<_> = events
            .into_iter()
            .filter_map(|event| self.events.get(&event).map(|known| (known.place, event)))
            .collect();
        placed.sort_unstable();
        placed.dedup();
        placed.into_iter().map(|(_, event)| event).collect()
    }

    /// All causes of an event, as far as they were read.
    pub(super) fn causes_of(&self, event: EventId) -> BTreeSet<EventId> {
        let mut found = BTreeSet::new();
        let mut next = vec![event];
        while let Some(at) = next.pop() {
            next.extend(self.causes(at).unwrap_or_default().iter().filter(|cause| found.insert(**cause)));
        }
        found
    }

    pub(super) fn first_known(&self, events: impl IntoIterator<Item = EventId>) -> BTreeSet<EventId> {
        events.into_iter().flat_map(|event| tree::first_known(self, event)).collect()
    }

    /// Reads all records of the events that these caused.
    async fn read_effects(&mut self, events: &[EventId]) -> Result<()> {
        let mut chunks = events.chunks(limits::JOURNAL_TAGS_MAX).map(|some| {
            let tags = some.iter().copied().map(Tag::Cause).collect();
            Walk::new(self.store, Read::forward(Select::Tagged(tags)))
        });
        let mut pairs = Vec::new();
        while let Some(one) = chunks.next() {
            pairs.push((one, chunks.next()));
        }
        for (mut one, other) in pairs {
            let Some(mut other) = other else {
                while let Some(records) = one.next().await? {
                    self.take_all(&records)?;
                }
                continue;
            };
            loop {
                let (some, more) = walk::next_of_both(&mut one, &mut other).await;
                let (some, more) = (some?, more?);
                if some.is_none() && more.is_none() {
                    break;
                }
                self.take_all(&some.unwrap_or_default())?;
                self.take_all(&more.unwrap_or_default())?;
            }
        }
        Ok(())
    }

    async fn read_all(&mut self, select: Select) -> Result<()> {
        let mut walk = Walk::new(self.store, Read::forward(select));
        while let Some(records) = walk.next().await? {
            self.take_all(&records)?;
        }
        Ok(())
    }

    /// Reads the next page of an event's correlation, from where the event stands; says whether there was one.
    async fn read_page(&mut self, event: EventId, way: Way) -> Result<bool> {
        let Some(known) = self.events.get(&event) else { return Ok(false) };
        let name = Arc::clone(&known.correlation);
        if self.whole.contains(&name) {
            return Ok(false);
        }
        let select = Select::tag(Tag::Correlation(Arc::clone(&name)));
        let at = known.place.0;
        let store = self.store;
        let walk = self.pages.entry(name).or_insert_with(|| {
            let read = match way {
                Way::Up => Read::backward(select).start(walk::up_to(at)),
                Way::Down => Read::forward(select).start(walk::from(at)),
            };
            Walk::new(store, read)
        });
        let Some(records) = walk.next().await? else { return Ok(false) };
        self.take_all(&records)?;
        Ok(true)
    }

    fn take_all(&mut self, records: &[Record]) -> Result<()> {
        records.iter().try_for_each(|record| self.take(record))
    }

    fn take(&mut self, record: &Record) -> Result<()> {
        if !self.taken.insert(record.position) {
            return Ok(());
        }
        let wire = entry::wire(record)?;
        let parcel = entry::parcel(record, &wire)?;
        let events = parcel.as_ref().map_or(&[][..], WireParcel::events);
        for (number, event) in events.iter().enumerate() {
            let id = event.id;
            let known = Known {
                event_type: event.event_type.as_ref().into(),
                correlation: entry::correlation(event).into(),
                sender: entry::named(&event.sender),
                at_unix_ms: event.at_unix_ms,
                causes: event.causes().map(|cause| cause.id()).collect(),
                place: (record.position, number),
                first_of_batch: events.first().map(|first| first.id).filter(|first| *first != id),
                flows: BTreeMap::new(),
            };
            self.absent.remove(&id);
            self.add(id, known);
        }
        if let Some(first) = events.first().and_then(|first| self.events.get_mut(&first.id)) {
            for flow in &wire.accepted {
                first.flows.entry(FlowName::of(flow)).or_insert_with(Run::accepted);
            }
        }
        let Some(step) = &wire.step else { return Ok(()) };
        // The record of the event stands before those of its steps, wherever the reading began.
        let Some(known) = self.events.get_mut(&step.event) else {
            self.taken.remove(&record.position);
            return Ok(());
        };
        let run = known.flows.entry(FlowName::of(&step.flow)).or_insert_with(Run::accepted);
        if step.number > 0 {
            run.steps.insert(step.number, step.name.clone().into_owned());
        }
        run.attempts = run.attempts.max(step.attempt);
        if record.position >= run.at {
            run.at = record.position;
            let code = |error: &[u8]| {
                entry::told(error).map(|error| error.code()).map_err(|error| entry::damaged(record, error))
            };
            run.outcome = match &step.outcome {
                StepOutcome::Done(_) => TraceOutcome::Value,
                StepOutcome::End => TraceOutcome::Ended,
                StepOutcome::Failed(error) => TraceOutcome::Failed(code(error)?),
                StepOutcome::Retry { error, .. } => TraceOutcome::Retrying(code(error)?),
                _ => TraceOutcome::Waiting,
            };
        }
        Ok(())
    }

    fn add(&mut self, id: EventId, known: Known) {
        let Entry::Vacant(place) = self.events.entry(id) else { return };
        for &cause in &known.causes {
            let effects = self.effects.entry(cause).or_default();
            // A cause may be told twice.
            if effects.last() != Some(&id) {
                effects.push(id);
            }
        }
        place.insert(known);
    }

    /// The flows of an event, and those of its batch.
    fn flows(&self, known: &Known) -> Vec<Handled> {
        let first = known.first_of_batch.and_then(|first| self.events.get(&first));
        let flows = known.flows.iter().chain(first.into_iter().flat_map(|first| &first.flows));
        flows.map(|(flow, run)| run.handled(flow)).collect()
    }
}

impl Run {
    fn accepted() -> Self {
        Self { at: Position::START, outcome: TraceOutcome::Waiting, steps: BTreeMap::new(), attempts: 1 }
    }

    fn handled(&self, flow: &FlowName) -> Handled {
        Handled {
            node: flow.node.clone(),
            registration: Some(flow.registration.clone()),
            outcome: self.outcome,
            steps: self.steps.values().cloned().collect(),
            attempts: self.attempts,
        }
    }
}

impl Web for Branch<'_> {
    fn causes(&self, event: EventId) -> Option<&[EventId]> {
        self.events.get(&event).map(|known| &known.causes[..])
    }

    fn effects(&self, event: EventId) -> &[EventId] {
        self.effects.get(&event).map_or(&[], Vec::as_slice)
    }

    fn told(&self, event: EventId) -> Option<Told> {
        let known = self.events.get(&event)?;
        Some(Told {
            event_type: known.event_type.to_string(),
            sender: known.sender.clone(),
            handled: self.flows(known),
            at_unix_ms: known.at_unix_ms,
        })
    }
}

/// Pages of a correlation that are read before anything else is tried: most are smaller.
const PAGES_FIRST: usize = 2;
