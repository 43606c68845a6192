//! What a step of a durable node has done so far, none of which has happened yet: events, changes of documents, values
//! for later steps, and the points at which it waited. Owns the ids of what it sends; does not know how it is committed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use happen_core::codec::{PointKind, WirePoint};
use happen_core::hash::digest;
use happen_core::limits::{RECORD_EFFECTS_MAX, RECORD_POINTS_MAX, RECORD_VALUES_MAX};
use happen_core::store::{Bytes, Key};
use happen_core::{ErasedEvent, Error, EventId, Result, State};

use super::document::{Change, Document, Made, Staged, Staging};
use super::flow::StoredFlow;
use super::lane::Coming;
use super::outbox::Reserved;
use crate::node::NodeInner;
use crate::sync::{Mutex, lock};

/// One step of a flow while it runs.
pub(crate) struct Stage {
    pub(super) flow: Arc<StoredFlow>,
    /// What ids of this step are made of, beside their ordinals.
    seed: u64,
    at_unix_ms: u64,
    pub(super) attempt: u32,
    ordinals: AtomicU32,
    effects: Mutex<Effects>,
}

/// What a step has done.
#[derive(Default)]
pub(crate) struct Effects {
    pub(super) sent: Vec<Leaving>,
    pub(super) documents: Vec<Box<dyn Staged>>,
    pub(super) values: BTreeMap<String, Bytes>,
    pub(super) points: Vec<Point>,
    /// Room that is kept at other nodes for what was sent.
    coming: Vec<(u32, Coming)>,
    /// Room that is kept for what will wait for nodes of other processes.
    reserved: Vec<(u32, Reserved)>,
    /// What is done once it is committed: hooks after a change.
    pub(super) after: Vec<Box<dyn FnOnce() + Send>>,
    /// Why the step cannot end well, whatever its function returns.
    failure: Option<Error>,
    closed: bool,
}

/// An event that leaves with the commit.
pub(super) struct Leaving {
    pub(super) ordinal: u32,
    pub(super) event: Arc<dyn ErasedEvent>,
    pub(super) to: Whereto,
}

/// Where an event goes.
#[derive(Clone)]
pub(crate) enum Whereto {
    Node(Arc<NodeInner>),
    /// To a durable node of another process on the same log: the commit keeps it for that node, wherever it is by then.
    Kept(Arc<str>),
    /// To a node beyond the link, once.
    Away(Arc<str>),
    /// To a node beyond the link: it waits here until that node has it.
    Waits(Arc<str>),
    Everyone,
}

/// A point at which a step waited.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) ordinal: u32,
    pub(super) kind: PointKind,
    pub(super) name: String,
    pub(super) event: Option<EventId>,
    pub(super) due_unix_ms: u64,
    pub(super) digest: u64,
    pub(super) result: Option<Bytes>,
}

impl Stage {
    pub(super) fn new(
        flow: &Arc<StoredFlow>,
        number: u32,
        attempt: u32,
        at_unix_ms: u64,
        effects: Effects,
    ) -> Arc<Self> {
        let event = flow.event.envelope().id.to_bytes();
        let seed = digest(&[
            flow.durable().identity().as_slice(),
            flow.node.name.as_bytes(),
            flow.registration.as_bytes(),
            &event,
            &number.to_le_bytes(),
        ]);
        Arc::new(Self {
            flow: Arc::clone(flow),
            seed,
            at_unix_ms,
            attempt,
            ordinals: AtomicU32::new(0),
            effects: Mutex::new(effects),
        })
    }

    /// The number of the next effect, given when the call is made.
    pub(crate) fn ordinal(&self) -> u32 {
        self.ordinals.fetch_add(1, Ordering::Relaxed)
    }

    /// The id of an event that is sent under this ordinal: the same when the step is run again. A batch has several.
    pub(crate) fn id(&self, ordinal: u32, of_batch: u32) -> EventId {
        self.id_of(&[b"sent", &ordinal.to_le_bytes(), &of_batch.to_le_bytes()], ordinal)
    }

    /// The id of an event that asks. Another attempt at the step asks anew where it was answered with an error, and that
    /// is another event.
    pub(crate) fn id_of_question(&self, ordinal: u32, of_batch: u32) -> EventId {
        if self.attempt <= 1 {
            return self.id(ordinal, of_batch);
        }
        let parts: [&[u8]; 4] =
            [b"asked", &ordinal.to_le_bytes(), &of_batch.to_le_bytes(), &self.attempt.to_le_bytes()];
        self.id_of(&parts, ordinal)
    }

    /// The id of an event that follows from a change of a document.
    pub(super) fn id_of_consequence(&self, key: &Key, index: u32) -> EventId {
        let place = self.ordinals.load(Ordering::Relaxed).saturating_add(index);
        self.id_of(&[b"follows", key.as_bytes(), &index.to_le_bytes()], place)
    }

    /// The id of the event that tells of the flow's failure.
    pub(super) fn id_of_failure(&self) -> EventId {
        self.id_of(&[b"failed"], self.ordinals.load(Ordering::Relaxed))
    }

    /// The key that an effect outside is given, to be known by when it is tried again.
    pub(super) fn outside_key(&self, name: &str) -> String {
        self.id_of(&[b"once", name.as_bytes()], 0).to_string()
    }

    fn id_of(&self, parts: &[&[u8]], sequence: u32) -> EventId {
        let seed = self.seed.to_le_bytes();
        let hash = digest(&[&[seed.as_slice()], parts].concat());
        EventId::derived(self.at_unix_ms, self.flow.event.envelope().id, sequence, hash)
    }

    /// Changes what the step has done, while it runs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) when the step has ended.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Effects) -> Result<R>) -> Result<R> {
        let mut effects = lock(&self.effects);
        if effects.closed {
            return Err(Error::misuse(
                "the step has ended and was committed, so nothing can be added to it; work that goes on longer belongs \
                 into `cx.spawn`",
            )
            .at_event(self.flow.event.envelope().id));
        }
        work(&mut effects)
    }

    /// Ends the step: gives what it has done.
    pub(super) fn close(&self) -> Effects {
        let mut effects = lock(&self.effects);
        let taken = std::mem::take(&mut *effects);
        effects.closed = true;
        taken
    }

    /// When the flow came to the step.
    pub(super) const fn at_unix_ms(&self) -> u64 {
        self.at_unix_ms
    }

    /// Whether the step has ended.
    pub(super) fn is_closed(&self) -> bool {
        lock(&self.effects).closed
    }

    /// Has the step fail, wherever its function is.
    pub(crate) fn fail(&self, error: Error) {
        let mut effects = lock(&self.effects);
        effects.failure.get_or_insert(error);
    }

    pub(super) fn take_failure(&self) -> Option<Error> {
        lock(&self.effects).failure.take()
    }

    /// Adds an event that leaves with the commit.
    ///
    /// # Errors
    ///
    /// As [`Stage::with`], and when there are too many.
    pub(crate) fn send(&self, ordinal: u32, event: Arc<dyn ErasedEvent>, to: Whereto) -> Result<()> {
        self.with(|effects| {
            if effects.sent.len() >= RECORD_EFFECTS_MAX {
                return Err(Error::misuse(format!(
                    "a step sends more than {RECORD_EFFECTS_MAX} events, which are committed at once; send the rest from \
                     further steps"
                )));
            }
            effects.sent.push(Leaving { ordinal, event, to });
            Ok(())
        })
    }

    /// Keeps a value for the later steps.
    ///
    /// # Errors
    ///
    /// As [`Stage::with`], and when there are too many.
    pub(crate) fn put(&self, name: &str, value: Bytes) -> Result<()> {
        self.with(|effects| {
            if effects.values.len() >= RECORD_VALUES_MAX && !effects.values.contains_key(name) {
                return Err(Error::misuse(format!(
                    "the steps of a flow share more than {RECORD_VALUES_MAX} values; keep them together in one"
                )));
            }
            effects.values.insert(name.to_owned(), value);
            Ok(())
        })
    }

    /// Takes a value from the later steps.
    ///
    /// # Errors
    ///
    /// As [`Stage::with`].
    pub(crate) fn take(&self, name: &str) -> Result<()> {
        self.with(|effects| {
            effects.values.remove(name);
            Ok(())
        })
    }

    /// What the step sees of a document: what it made of it itself, or what is committed.
    ///
    /// # Errors
    ///
    /// When the document cannot be read.
    pub(crate) fn read<S: State, R>(
        &self,
        key: &Key,
        document: &Document<S>,
        read: impl FnOnce(&S) -> R,
    ) -> Result<R> {
        let staged = lock(&self.effects).staging::<S>(key).map(|staging| staging.view());
        // Without the lock: the function may look at further documents, and change some.
        match staged {
            Some(view) => Ok(read(&view)),
            None => Ok(read(&document.committed()?.value)),
        }
    }

    /// Changes a document in this step, when the function agrees to what the step sees of it.
    ///
    /// # Errors
    ///
    /// As [`Stage::stage`], what the function refuses with, and [`ErrorKind::Conflict`](crate::ErrorKind::Conflict)
    /// when the document has another revision than the expected one.
    pub(crate) fn change<S: State>(
        &self,
        key: &Key,
        document: &Arc<Document<S>>,
        expected: Option<u64>,
        change: Change<S>,
    ) -> Result<()> {
        let mut change = Some(change);
        while let Some(trying) = change.take() {
            let (view, len) = self.stage(key, document, |staging: &mut Staging<S>| {
                if let Some(expected) = expected {
                    staging.expect(expected)?;
                }
                Ok((staging.view(), staging.len()))
            })?;
            // Without the lock: the function may look at other documents, and at this one.
            let made = Made::<S>::of(&view, &trying)?;
            let replaced = self.stage(key, document, |staging: &mut Staging<S>| {
                if staging.len() == len {
                    return Ok(Some(staging.add(made, trying)));
                }
                // Somebody else of this step was faster.
                change = Some(trying);
                Ok(None)
            })?;
            drop((view, replaced));
        }
        Ok(())
    }

    /// Works on what the step does to a document; runs no code of users.
    ///
    /// # Errors
    ///
    /// As [`Stage::with`], when the document cannot be read, and what the work gives.
    pub(crate) fn stage<S: State, R>(
        &self,
        key: &Key,
        document: &Arc<Document<S>>,
        work: impl FnOnce(&mut Staging<S>) -> Result<R>,
    ) -> Result<R> {
        let known = lock(&self.effects).staging::<S>(key).is_some();
        // Without the lock, as reading copies a value of users.
        let mut fresh = if known { None } else { Some(Staging::new(Arc::clone(document))?) };
        self.with(|effects| {
            if effects.staging::<S>(key).is_none()
                && let Some(fresh) = fresh.take()
            {
                effects.documents.push(Box::new(fresh));
            }
            match effects.staging::<S>(key) {
                Some(staging) => work(staging),
                None => Err(Error::misuse("a document was staged as two types; please report this")),
            }
        })
    }

    /// Does something once the step is committed.
    ///
    /// # Errors
    ///
    /// As [`Stage::with`].
    pub(crate) fn afterwards(&self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        self.with(|effects| {
            effects.after.push(Box::new(work));
            Ok(())
        })
    }

    /// The point with this ordinal or name, when an earlier run of the step came to it.
    pub(super) fn point(&self, kind: PointKind, ordinal: u32, name: &str) -> Result<Option<Point>> {
        self.with(|effects| {
            let is_it = |point: &&Point| match kind {
                // What is done once is known by its name, wherever in the step it is done.
                PointKind::Once => point.kind == kind && point.name == name,
                _ => point.kind != PointKind::Once && point.ordinal == ordinal,
            };
            Ok(effects.points.iter().find(is_it).cloned())
        })
    }

    /// Keeps the room at another node for what this effect sends there, until it has arrived or comes to nothing.
    ///
    /// # Errors
    ///
    /// As [`Stage::with`].
    pub(crate) fn expects(&self, ordinal: u32, coming: Coming) -> Result<()> {
        self.with(|effects| {
            effects.coming.push((ordinal, coming));
            Ok(())
        })
    }

    /// Keeps the room for what this effect leaves to wait for a node of another process, likewise.
    ///
    /// # Errors
    ///
    /// As [`Stage::with`].
    pub(crate) fn reserves(&self, ordinal: u32, reserved: Reserved) -> Result<()> {
        self.with(|effects| {
            effects.reserved.push((ordinal, reserved));
            Ok(())
        })
    }

    /// What this effect sent has arrived.
    pub(super) fn arrived(&self, ordinal: u32) {
        let mut effects = lock(&self.effects);
        effects.coming.retain(|(of, _)| *of != ordinal);
        effects.reserved.retain(|(of, _)| *of != ordinal);
    }

    /// Whom an earlier run of the step has asked something as this effect.
    pub(crate) fn asked(&self, ordinal: u32) -> Option<String> {
        let effects = lock(&self.effects);
        let is_it = |known: &&Point| known.kind == PointKind::Ask && known.ordinal == ordinal;
        effects.points.iter().find(is_it).map(|known| known.name.to_string())
    }

    /// Notes a point, or what came of it.
    pub(super) fn note(&self, point: Point) -> Result<()> {
        self.with(|effects| {
            let same = |known: &&mut Point| known.kind == point.kind && known.ordinal == point.ordinal;
            let full = effects.points.len() >= RECORD_POINTS_MAX;
            match effects.points.iter_mut().find(same) {
                Some(known) => *known = point,
                None if full => {
                    return Err(Error::misuse(format!(
                        "a step waits more than {RECORD_POINTS_MAX} times; make it several steps"
                    )));
                }
                None => effects.points.push(point),
            }
            Ok(())
        })
    }

    pub(super) fn points(&self) -> Vec<Point> {
        lock(&self.effects).points.clone()
    }

    pub(crate) fn durable_flow(&self) -> &Arc<StoredFlow> {
        &self.flow
    }
}

impl Effects {
    /// Those of a step that has done nothing yet, with what is known from earlier ones.
    pub(super) fn of(values: BTreeMap<String, Bytes>, points: Vec<Point>) -> Self {
        Self { values, points, ..Self::default() }
    }

    fn staging<S: State>(&mut self, key: &Key) -> Option<&mut Staging<S>> {
        let staged = self.documents.iter_mut().find(|staged| staged.key() == key)?;
        staged.as_any_mut().downcast_mut()
    }
}

impl Point {
    pub(super) fn of(wire: &WirePoint<'_>) -> Self {
        Self {
            ordinal: wire.ordinal,
            kind: wire.kind,
            name: wire.name.clone().into_owned(),
            event: wire.event,
            due_unix_ms: wire.due_unix_ms,
            digest: wire.digest,
            result: wire.result.as_deref().map(Into::into),
        }
    }

    pub(super) fn wire(&self) -> WirePoint<'_> {
        WirePoint {
            ordinal: self.ordinal,
            kind: self.kind,
            name: Cow::Borrowed(&self.name),
            event: self.event,
            due_unix_ms: self.due_unix_ms,
            digest: self.digest,
            result: self.result.as_deref().map(Cow::Borrowed),
        }
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a step of {:?}", self.flow)
    }
}
