//! Flows that are under way and flows that failed for good, from the documents that stand for them. Owns how those are
//! read; does not know how a flow is run or driven again.

use std::collections::BTreeMap;
use std::sync::Arc;

use happen_core::codec::{PointKind, StepOutcome, WireRecord, WireStep};
use happen_core::limits::RECORD_BYTES_MAX;
use happen_core::store::{Document, Key, List, Position};
use happen_core::{Dynamic, Error, ErrorKind, EventId, Result};

use super::entry::{self, FlowName, Point, StoredStep};
use super::{Journal, limits};
use crate::keys::escaped;

/// Which flows are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowFilter {
    node: Option<String>,
    registration: Option<String>,
    event: Option<EventId>,
    step: Option<String>,
    after: Option<Key>,
    at_most: Option<usize>,
}

/// A page of flows.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Flows<T> {
    /// The flows, by node and then by event.
    pub flows: Vec<T>,
    /// Where to go on with [`FlowFilter::after`]; `None` when there are no more.
    pub next: Option<Key>,
}

/// A flow that has not ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FlowUnderWay {
    /// The key of its document.
    pub key: Key,
    /// The flow.
    pub flow: FlowName,
    /// The event that it handles; of a batch, its first.
    pub event: EventId,
    /// The step that runs next.
    pub step: String,
    /// The number of that step in the flow, from 0.
    pub number: u32,
    /// Which attempt at it comes next or is under way, from 1.
    pub attempt: u32,
    /// What it waits for.
    pub standing: Standing,
    /// What its steps share, by name; each value gives JSON.
    pub values: BTreeMap<String, Dynamic>,
    /// The points of that step that were reached.
    pub points: Vec<Point>,
    /// When it came to stand so, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// The position of the commit that left it so.
    pub position: Position,
    /// The revision of its document.
    pub revision: u64,
}

/// What a flow under way waits for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Standing {
    /// Nothing: its step may run, or runs.
    Ready,
    /// The point that it reached last: an answer, an event, an effect, or the time until which it sleeps.
    Waiting(Point),
    /// The next attempt at a step that failed.
    Retrying {
        /// When it is due, in milliseconds since 1970.
        due_unix_ms: u64,
        /// Why the last attempt failed.
        error: Arc<Error>,
    },
}

/// A flow that failed for good: a dead letter.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeadFlow {
    /// The key of its document.
    pub key: Key,
    /// The flow.
    pub flow: FlowName,
    /// The event that it handled; of a batch, its first.
    pub event: EventId,
    /// The step that failed.
    pub step: String,
    /// The number of that step in the flow, from 0.
    pub number: u32,
    /// The attempts that were made at it.
    pub attempts: u32,
    /// Why the last one failed.
    pub error: Arc<Error>,
    /// What its steps shared, by name; each value gives JSON.
    pub values: BTreeMap<String, Dynamic>,
    /// The points of that step that were reached.
    pub points: Vec<Point>,
    /// When it failed, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// The position of the commit that gave it up.
    pub position: Position,
    /// The revision of its document.
    pub revision: u64,
}

impl FlowFilter {
    /// All flows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only those of this node.
    #[must_use]
    pub fn node(self, node: impl Into<String>) -> Self {
        Self { node: Some(node.into()), ..self }
    }

    /// Only those of the registration of this name.
    #[must_use]
    pub fn registration(self, registration: impl Into<String>) -> Self {
        Self { registration: Some(registration.into()), ..self }
    }

    /// Only those that handle this event.
    #[must_use]
    pub fn event(self, event: EventId) -> Self {
        Self { event: Some(event), ..self }
    }

    /// Only those that stand at the step of this name.
    #[must_use]
    pub fn step(self, step: impl Into<String>) -> Self {
        Self { step: Some(step.into()), ..self }
    }

    /// Goes on behind this key, which [`Flows::next`] gave.
    #[must_use]
    pub fn after(self, key: Key) -> Self {
        Self { after: Some(key), ..self }
    }

    /// Ends after so many flows, at most [`limits::JOURNAL_ROWS_MAX`].
    #[must_use]
    pub fn at_most(self, flows: usize) -> Self {
        Self { at_most: Some(flows.clamp(1, limits::JOURNAL_ROWS_MAX)), ..self }
    }

    fn prefix(&self, kind: &str) -> Key {
        match (&self.node, self.event) {
            (None, _) => kind.into(),
            (Some(node), None) => format!("{kind}{}/", escaped(node)).into(),
            (Some(node), Some(event)) => format!("{kind}{}/{event}/", escaped(node)).into(),
        }
    }

    fn takes(&self, step: &WireStep<'_>) -> bool {
        let same = |asked: &Option<String>, found: &str| asked.as_ref().is_none_or(|asked| asked == found);
        same(&self.node, &step.flow.node)
            && same(&self.registration, &step.flow.registration)
            && same(&self.step, &step.name)
            && self.event.is_none_or(|event| event == step.event)
    }
}

impl Journal {
    /// The flows that have not ended: what each does next, what it waits for, and what its steps share.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says; a document that is no flow is [`ErrorKind::Damaged`].
    ///
    /// # Cost
    ///
    /// Pages of the documents of the node that the filter names, or of all nodes.
    pub async fn flows(&self, filter: &FlowFilter) -> Result<Flows<FlowUnderWay>> {
        self.listed(FLOW, filter, FlowUnderWay::of).await
    }

    /// The flows that failed for good, each with its last error. [`Journal::attempts`] has the errors before.
    ///
    /// # Errors
    ///
    /// As [`Journal::flows`].
    pub async fn dead(&self, filter: &FlowFilter) -> Result<Flows<DeadFlow>> {
        self.listed(DEAD, filter, DeadFlow::of).await
    }

    /// What the steps of one flow did, the oldest first, failed attempts included.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says.
    pub async fn attempts(&self, event: EventId, flow: &FlowName) -> Result<Vec<StoredStep>> {
        let mut steps = self.steps(event).await?;
        steps.retain(|step| step.flow == *flow && step.event == event);
        Ok(steps)
    }

    async fn listed<T>(
        &self,
        kind: &str,
        filter: &FlowFilter,
        row: impl Fn(&Document, &WireStep<'_>) -> Result<T>,
    ) -> Result<Flows<T>> {
        let at_most = filter.at_most.unwrap_or(limits::JOURNAL_ROWS_MAX);
        let mut list =
            List { prefix: filter.prefix(kind), after: filter.after.clone(), documents_max: at_most };
        let mut flows = Vec::new();
        let mut looked_at = 0;
        loop {
            let page = self.store.list(list.clone()).await?;
            let Some(last) = page.last() else { return Ok(Flows { flows, next: None }) };
            let last = Key::clone(&last.key);
            looked_at += page.len();
            for document in page {
                let Some(content) = &document.content else { continue };
                let read = WireRecord::decode(&content.bytes, RECORD_BYTES_MAX);
                let record = read.map_err(|error| damaged(&document, error))?;
                let Some(step) = &record.step else {
                    return Err(damaged(&document, Error::msg("it has no step")));
                };
                if filter.takes(step) {
                    flows.push(row(&document, step).map_err(|error| damaged(&document, error))?);
                }
                if flows.len() == at_most {
                    return Ok(Flows { flows, next: Some(document.key) });
                }
            }
            if looked_at >= limits::JOURNAL_LOOKED_AT_MAX {
                return Ok(Flows { flows, next: Some(last) });
            }
            list.after = Some(last);
        }
    }
}

impl FlowUnderWay {
    fn of(document: &Document, step: &WireStep<'_>) -> Result<Self> {
        let points: Vec<Point> = step.points.iter().map(Point::of).collect();
        let standing = match &step.outcome {
            // A sleep needs nothing to come, so its point is stored with its result.
            StepOutcome::Waits => match points.last() {
                Some(last) if !last.is_settled || last.kind == PointKind::Sleep => {
                    Standing::Waiting(last.clone())
                }
                _ => Standing::Ready,
            },
            StepOutcome::Retry { due_unix_ms, error } => {
                Standing::Retrying { due_unix_ms: *due_unix_ms, error: Arc::new(entry::told(error)?) }
            }
            _ => return Err(Error::msg("a flow under way waits or is tried again, and this one ended")),
        };
        Ok(Self {
            key: Key::clone(&document.key),
            flow: FlowName::of(&step.flow),
            event: step.event,
            step: step.name.clone().into_owned(),
            number: step.number,
            attempt: step.attempt,
            standing,
            values: entry::values(step),
            points,
            since_unix_ms: document.at_unix_ms,
            position: document.position,
            revision: document.revision,
        })
    }
}

impl DeadFlow {
    fn of(document: &Document, step: &WireStep<'_>) -> Result<Self> {
        let StepOutcome::Failed(error) = &step.outcome else {
            return Err(Error::msg("a dead flow failed, and this one did not"));
        };
        Ok(Self {
            key: Key::clone(&document.key),
            flow: FlowName::of(&step.flow),
            event: step.event,
            step: step.name.clone().into_owned(),
            number: step.number,
            attempts: step.attempt,
            error: Arc::new(entry::told(error)?),
            values: entry::values(step),
            points: step.points.iter().map(Point::of).collect(),
            since_unix_ms: document.at_unix_ms,
            position: document.position,
            revision: document.revision,
        })
    }
}

#[cold]
fn damaged(document: &Document, error: Error) -> Error {
    let what = format!(
        "document `{}` in revision {} is no flow; the others can be read; restore a backup, or delete it when nothing \
         waits for it",
        document.key, document.revision
    );
    Error::new(ErrorKind::Damaged { what }).with_source(error.into_std())
}

const FLOW: &str = "flow/";
const DEAD: &str = "dead/";
