//! What a commit of a flow consists of: the record of the step, the records of what it sends, the flows that begin with
//! those, its documents, and its own progress. Owns how these are put together; does not know when a step is run.

use std::borrow::Cow;
use std::sync::Arc;

use happen_core::codec::{
    self, PointKind, StepOutcome, WireChange, WireError, WireFlow, WireRecord, WireReply, WireStep,
};
use happen_core::limits::{DOCUMENT_BYTES_MAX, RECORD_BYTES_MAX, RECORD_TAGS_MAX};
use happen_core::store::{Batch, Bytes, Content, NewRecord, Past, Read, Replaced, Select, Start, Tag, Write};
use happen_core::{ErasedEvent, Error, ErrorKind, Event, EventType, Result};

use super::accept;
use super::commit::Ticket;
use super::document::Applied;
use super::flow::{End, Known, Progress, StoredFlow, Trouble, Turn};
use super::keys::{DEAD, FLOWS};
use super::stage::{Effects, Point, Stage, Whereto};
use crate::failure::Failure;
use crate::flow::Outcome;
use crate::limits;
use crate::space::SpaceInner;
use crate::stamp;
use crate::sync::lock;
use crate::wire::Framed;

/// What is to be done once a commit has happened.
#[derive(Default)]
pub(super) struct Done {
    /// The flows that begin with it.
    pub(super) begun: Vec<Arc<StoredFlow>>,
    /// The events that leave.
    pub(super) leaving: Vec<(Arc<dyn ErasedEvent>, Whereto)>,
    /// The nodes of other processes that events wait for from now on, and the bytes of each.
    pub(super) kept: Vec<(Arc<str>, usize)>,
}

impl Done {
    /// Notes where an event goes that is kept until its node has it.
    pub(super) fn keeps(&mut self, to: &Whereto, framed: &Framed) {
        self.kept.extend(to.waits_for().map(|node| (Arc::clone(node), framed.frame.len())));
    }
}

/// What a batch tells beside what its documents make of it.
struct Told<'t> {
    outcome: &'t StepOutcome<'t>,
    /// The bytes of the events that are sent.
    sent: &'t [Framed],
    /// The event that tells of a failure.
    failure: Option<&'t (Arc<dyn ErasedEvent>, Framed)>,
    /// The revision that the flow's dead letter has, from an earlier life.
    dead: u64,
}

/// A batch that was handed on, and what follows from it.
struct Pushed {
    ticket: Ticket,
    done: Done,
}

/// A batch that says where a flow is within its step, on its way.
pub(super) struct Handed {
    /// Its record.
    own: Bytes,
    ticket: Ticket,
}

impl StoredFlow {
    /// Commits what a step did, once.
    ///
    /// # Errors
    ///
    /// See [`Trouble`].
    pub(super) async fn try_commit(
        self: &Arc<Self>,
        stage: &Stage,
        effects: &mut Effects,
        end: &End,
    ) -> Result<Done, Trouble> {
        let outcome = encode_end(self, end).map_err(Trouble::Impossible)?;
        let mut sent = Vec::with_capacity(effects.sent.len());
        effects.sent.sort_by_key(|leaving| leaving.ordinal);
        for leaving in &effects.sent {
            sent.push(self.frame_effect(&*leaving.event).map_err(Trouble::Impossible)?);
            self.durable().register(&leaving.to).await.map_err(Trouble::Store)?;
        }
        let failure = match end {
            End::Failed(error) => self.failure_event(stage, error),
            _ => None,
        };
        let dead = match end {
            End::Failed(_) => {
                self.durable().revision_of(&self.name().key(DEAD)).await.map_err(Trouble::Store)?
            }
            _ => 0,
        };
        let told = Told { outcome: &outcome, sent: &sent, failure: failure.as_ref(), dead };
        let pushed = loop {
            if let Some(pushed) = self.push(stage, effects, end, &told)? {
                break pushed;
            }
            for staged in &effects.documents {
                staged.load().await.map_err(Trouble::Store)?;
            }
        };
        let result = self.durable().commits.settle(pushed.ticket).await;
        effects.documents.iter_mut().for_each(|staged| staged.settle(result.is_ok()));
        match result {
            Ok(_) => {
                self.durable().store_took(&self.node.space);
                Ok(pushed.done)
            }
            Err(error) => Err(Trouble::Unheard(error, pushed.done)),
        }
    }

    /// Builds the batch while its documents are held, and hands it on; `None` when one of them was not read yet.
    fn push(
        self: &Arc<Self>,
        stage: &Stage,
        effects: &mut Effects,
        end: &End,
        told: &Told<'_>,
    ) -> Result<Option<Pushed>, Trouble> {
        let space = &self.node.space;
        let Told { outcome, sent, failure, dead } = *told;
        let Effects { sent: leaving, documents, values, points, .. } = effects;
        // Everybody who holds several takes them in this order, so nobody waits for another one in a circle.
        documents.sort_by(|a, b| a.key().cmp(b.key()));
        let keys: Vec<_> = documents.iter().map(|staged| Arc::clone(staged.key())).collect();
        let mut held: Vec<_> = documents.iter_mut().map(|staged| staged.hold()).collect();
        if !held.iter().all(|document| document.is_loaded()) {
            return Ok(None);
        }
        let mut batch = Batch::default();
        let mut changes = Vec::new();
        let mut consequences = Vec::new();
        let mut refused = None;
        let table = self.node.table.load();
        for (document, key) in held.iter_mut().zip(&keys) {
            let mut unstamped = Vec::new();
            match document.apply(&mut unstamped) {
                Ok(Applied { write, condition }) => {
                    batch.conditions.extend(condition);
                    if let Some(mut write) = write {
                        write.replaced = table.replaced(self.event.envelope().event_type.as_str());
                        changes.push(WireChange { key: key.to_string().into(), revision: write.revision });
                        batch.documents.push(write);
                    }
                }
                Err(error) => refused = Some(error),
            }
            for (index, event) in (0..).zip(unstamped) {
                let id = stage.id_of_consequence(key, index);
                let stamped = stamp::consequence_of(self, id, event);
                match stamped.and_then(|event| Ok((self.frame_effect(&*event)?, event))) {
                    Ok(framed) => consequences.push(framed),
                    Err(error) => refused = Some(error),
                }
            }
        }
        if let Some(error) = refused {
            held.iter_mut().for_each(|document| document.forget());
            return Err(Trouble::Outdated(error));
        }
        let built = (|| {
            let mut done = Done::default();
            let mut ids = Vec::with_capacity(sent.len() + consequences.len() + 1);
            let mut records = Vec::with_capacity(sent.len() + 1);
            let all = leaving.iter().zip(sent).map(|(leaving, framed)| (&leaving.event, framed, &leaving.to));
            let everyone = Whereto::Everyone;
            let follows = consequences.iter().map(|(framed, event)| (event, framed, &everyone));
            let failure = failure.iter().map(|(event, framed)| (event, framed, &everyone));
            for (event, framed, to) in all.chain(follows).chain(failure) {
                ids.extend(framed.hashes.iter().map(|(id, _)| *id));
                let begun = accept::recipients(space, event, to)?;
                let mut record = event_record(space, &**event, framed, &begun)?;
                let inboxes = self.durable().inboxes(&**event, framed, to);
                inboxes.add_to(&mut record, &mut batch.documents);
                records.push(record);
                for flow in &begun {
                    batch.documents.push(flow.first_write()?);
                }
                done.begun.extend(begun);
                done.keeps(to, framed);
                done.leaving.push((Arc::clone(event), to.clone()));
            }
            let mut progress = lock(&self.progress);
            let step = self.wire_step(&progress, outcome.clone(), values, changes, ids, points);
            let mut record = WireRecord { step: Some(step), ..WireRecord::default() };
            if !progress.recorded {
                record.event = Cow::Borrowed(&self.framed()?.frame);
            }
            batch.records.push(self.record(&record)?);
            batch.records.extend(records);
            let writes = self.last_writes(&progress, end, values, points, dead)?;
            let written = writes.iter().any(|write| write.key == self.key);
            batch.documents.extend(writes);
            batch.check()?;
            progress.revision += u64::from(written);
            Ok(done)
        })();
        let done = match built {
            Ok(done) => done,
            Err(error) => {
                held.iter_mut().for_each(|document| document.forget());
                return Err(Trouble::Impossible(error));
            }
        };
        // Listed before they are committed, so that whoever asks for them finds them.
        done.begun.iter().for_each(|flow| self.durable().begun(flow));
        // In the same order as others may build on it.
        held.iter_mut().for_each(|document| document.adopt());
        let ticket = self.durable().commits.push(batch);
        Ok(Some(Pushed { ticket, done }))
    }

    /// Commits where the flow is within its step, and what `add` puts into the batch.
    ///
    /// # Errors
    ///
    /// As [`StoredFlow::settle_progress`].
    pub(super) async fn commit_progress(
        self: &Arc<Self>,
        stage: &Stage,
        add: impl FnOnce(&mut Batch, &mut Done) -> Result<()>,
    ) -> Result<Done> {
        let mut done = Done::default();
        let mut further = Batch::default();
        add(&mut further, &mut done)?;
        // Listed before they are committed, so that whoever asks for them finds them.
        done.begun.iter().for_each(|flow| self.durable().begun(flow));
        let committed = match self.push_progress(Some(stage), &further) {
            Ok(handed) => self.settle_progress(handed, Some(stage), &further).await,
            Err(error) => Err(error),
        };
        match committed {
            Ok(()) => Ok(done),
            Err(error) => {
                self.durable().forget(&done);
                Err(error)
            }
        }
    }

    /// Hands on a batch that says where the flow is within its step, with what else belongs to it. A flow that waits for
    /// its turn is in no step.
    pub(super) fn push_progress(self: &Arc<Self>, stage: Option<&Stage>, further: &Batch) -> Result<Handed> {
        let mut progress = lock(&self.progress);
        // Under the lock: of several that are committed at once, the last one has the points of all.
        let points = stage.map_or_else(Vec::new, Stage::points);
        let values = progress.values.clone();
        let step = self.wire_step(&progress, StepOutcome::Waits, &values, Vec::new(), Vec::new(), &points);
        let document = self.form(FLOWS, step.clone())?;
        let mut record = WireRecord { step: Some(step), ..WireRecord::default() };
        if !progress.recorded {
            record.event = Cow::Borrowed(&self.framed()?.frame);
            record.accepted.push(self.wire_flow());
        }
        let record = self.record(&record)?;
        let own = Arc::clone(&record.bytes);
        let mut batch = Batch { records: vec![record], ..Batch::default() };
        batch.records.extend_from_slice(&further.records);
        batch.documents.push(self.write(progress.revision + 1, Some(document)));
        batch.documents.extend_from_slice(&further.documents);
        batch.check()?;
        progress.revision += 1;
        progress.recorded = true;
        Ok(Handed { own, ticket: self.durable().commits.push(batch) })
    }

    /// Waits for such a batch; hands it on again until the store has it or says that it never will.
    ///
    /// # Errors
    ///
    /// What keeps it from being committed. Then nothing of it is, or the space stops.
    pub(super) async fn settle_progress(
        self: &Arc<Self>,
        mut handed: Handed,
        stage: Option<&Stage>,
        further: &Batch,
    ) -> Result<()> {
        let (mut tries, mut failures) = (0, 0);
        loop {
            let Handed { own, ticket } = handed;
            let Err(error) = self.durable().commits.settle(ticket).await else {
                self.durable().store_took(&self.node.space);
                return Ok(());
            };
            // A store that fails may have committed all the same.
            let committed = loop {
                if self.durable().is_stopping() || matches!(error.kind(), ErrorKind::Closed { .. }) {
                    return Err(error);
                }
                match self.look_up(&own, further, &error).await {
                    Ok(committed) => break committed,
                    Err(_) if self.outlast(&error, &mut failures).await => {}
                    Err(_) => {
                        self.unstored.get_or_init(|| error.duplicate());
                        return Err(error);
                    }
                }
            };
            if committed {
                return Ok(());
            }
            // A step that ended meanwhile has said itself where the flow is.
            if stage.is_some_and(Stage::is_closed) {
                return Err(error);
            }
            match error.kind() {
                ErrorKind::Conflict { .. } if tries < limits::COMMIT_TRIES_MAX => tries += 1,
                ErrorKind::Io { .. } if self.outlast(&error, &mut failures).await => {}
                ErrorKind::Io { .. } => {
                    self.unstored.get_or_init(|| error.duplicate());
                    return Err(error);
                }
                _ => return Err(error),
            }
            handed = self.push_progress(stage, further)?;
        }
    }

    /// Waits until a commit that failed is in the store or never will be. One that happened later would have the step
    /// decide anew on what it has done itself.
    async fn pass_doubt(&self, error: &Error) -> Result<()> {
        let ErrorKind::Io { .. } = error.kind() else { return Ok(()) };
        let passed = self.durable().commits.pass().await;
        if passed.is_err() {
            // Whether to wait for the store depends on what it has.
            self.reread().await?;
        }
        passed
    }

    /// Whether the log has what was to be committed with this error, and how far the flow is by the store.
    async fn look_up(&self, own: &Bytes, further: &Batch, error: &Error) -> Result<bool> {
        self.pass_doubt(error).await?;
        let question = further.records.first().and_then(|record| record.tags.first());
        let committed = match question {
            Some(tag) => {
                let read = Read::forward(Select::tag(tag.clone())).at_most(1);
                !self.durable().store.read(read).await?.records.is_empty()
            }
            None => self.finds_record(|record| Ok(record == &**own)).await?,
        };
        self.reread().await?;
        Ok(committed)
    }

    /// Whether one of the records of this event is the one that is looked for, the newest first.
    async fn finds_record(&self, mut is_it: impl FnMut(&[u8]) -> Result<bool>) -> Result<bool> {
        let mut start = Start::Edge;
        loop {
            let select = Select::tag(Tag::Event(self.event.envelope().id));
            let page = self.durable().store.read(Read::backward(select).start(start)).await?;
            for record in &page.records {
                if is_it(&record.bytes)? {
                    return Ok(true);
                }
            }
            match page.next {
                Some(next) => start = Start::Position(next),
                None => return Ok(false),
            }
        }
    }

    /// What the store knows of this step, whose commit ended with this error.
    pub(super) async fn resync(self: &Arc<Self>, stage: &Stage, error: &Error) -> Result<Known> {
        self.pass_doubt(error).await?;
        if self.has_record_of(stage).await? {
            return Ok(Known::Committed);
        }
        let before = lock(&self.progress).revision;
        self.reread().await?;
        let progress = lock(&self.progress);
        let was_stored = before > 1 || progress.recorded;
        Ok(if was_stored && progress.revision == 0 { Known::Gone } else { Known::Open })
    }

    /// Looks up which revision of its document the store has, and whether it has its event.
    async fn reread(&self) -> Result<()> {
        let document = self.durable().store.documents(vec![Arc::clone(&self.key)]).await?.pop().flatten();
        let recorded = match &document {
            Some(_) => true,
            None => {
                let select = Select::tag(Tag::Event(self.event.envelope().id));
                !self.durable().store.read(Read::forward(select).at_most(1)).await?.records.is_empty()
            }
        };
        let mut progress = lock(&self.progress);
        progress.revision = match document {
            Some(document) if document.content.is_some() => document.revision,
            _ => 0,
        };
        progress.recorded = recorded;
        Ok(())
    }

    /// Whether the log has this attempt at this step of this flow.
    async fn has_record_of(&self, stage: &Stage) -> Result<bool> {
        let number = lock(&self.progress).number;
        self.finds_record(|bytes| {
            let record = WireRecord::decode(bytes, RECORD_BYTES_MAX)?;
            Ok(record.step.is_some_and(|step| {
                step.flow == self.wire_flow()
                    && step.number == number
                    && step.attempt == stage.attempt
                    && step.outcome != StepOutcome::Waits
            }))
        })
        .await
    }

    /// Does what follows from a commit.
    pub(super) fn carry_out(self: &Arc<Self>, done: Done, effects: Effects, end: End) -> Turn {
        let space = &self.node.space;
        self.stored();
        effects.after.into_iter().for_each(|after| crate::sync::kept_going("a hook", after));
        self.durable().release(space, done);
        // What functions of users captured, whose drop is theirs.
        let (documents, values, points) = (effects.documents, effects.values, effects.points);
        crate::sync::kept_going("a change of a state", || drop(documents));
        let mut progress = lock(&self.progress);
        progress.recorded = true;
        let outcome = match end {
            End::Next(name, at_unix_ms) => {
                progress.step = Some(name);
                progress.number += 1;
                progress.attempt = 1;
                progress.reruns = 0;
                progress.at_unix_ms = at_unix_ms;
                progress.values = values;
                progress.points.clear();
                progress.expected.clear();
                progress.retry = None;
                return Turn::Again;
            }
            End::Retry(error, due) => {
                progress.attempt += 1;
                progress.reruns = 0;
                progress.points = kept_points(&points);
                progress.retry = Some((due, error));
                return Turn::Again;
            }
            End::Done(value) => Ok(Some(value)),
            End::Finished => Ok(None),
            End::Dropped(error) => {
                drop(progress);
                self.settle(Err(error));
                return Turn::Over;
            }
            End::Failed(error) => Err(error),
        };
        drop(progress);
        self.node.tell_of_end(&*self.event, &self.registration, &outcome);
        self.settle(outcome);
        Turn::Over
    }

    /// The event that tells everyone of a failure; none for the failure of one that told of a failure itself.
    fn failure_event(&self, stage: &Stage, error: &Error) -> Option<(Arc<dyn ErasedEvent>, Framed)> {
        let envelope = self.event.envelope();
        if envelope.event_type.as_str().ends_with(".error") {
            return None;
        }
        let failure = Failure::new(&self.node.name, &self.registration, &*self.event, error);
        let event_type = EventType::new(&format!("{}.error", envelope.event_type));
        let envelope = stamp::failure_of(self, stage.id_of_failure(), event_type);
        let event: Arc<dyn ErasedEvent> = Arc::new(Event::from_parts(envelope, failure));
        // It is as small as its error; where even that cannot be told, the dead letter tells it.
        let framed = self.frame_effect(&*event).ok()?;
        Some((event, framed))
    }

    /// An event that this flow sends, as bytes.
    pub(crate) fn frame_effect(&self, event: &dyn ErasedEvent) -> Result<Framed> {
        let own = self.framed()?;
        self.node.space.framed(event, |single| Ok(self.node.space.causes_in(single, &own.hashes)))
    }

    pub(super) fn wire_flow(&self) -> WireFlow<'_> {
        WireFlow { node: (&*self.node.name).into(), registration: (&*self.registration).into() }
    }

    fn wire_step<'r>(
        &'r self,
        progress: &Progress,
        outcome: StepOutcome<'r>,
        values: &'r std::collections::BTreeMap<String, Bytes>,
        changes: Vec<WireChange<'r>>,
        sent: Vec<happen_core::EventId>,
        points: &'r [Point],
    ) -> WireStep<'r> {
        let mut step = WireStep::new(
            self.event.envelope().id,
            &self.node.name,
            &self.registration,
            &self.registration,
            outcome,
        );
        if let Some(name) = &progress.step {
            step.name = name.to_string().into();
        }
        step.number = progress.number;
        step.attempt = progress.attempt;
        step.at_unix_ms = progress.at_unix_ms;
        step.due_unix_ms = progress.due_unix_ms;
        step.values =
            values.iter().map(|(name, value)| (Cow::Borrowed(&**name), Cow::Borrowed(&**value))).collect();
        step.changes = changes;
        step.sent = sent;
        step.points = points.iter().map(Point::wire).collect();
        step
    }

    fn record(&self, record: &WireRecord<'_>) -> Result<NewRecord> {
        let mut bytes = Vec::with_capacity(record.event.len() + STEP_BYTES);
        record.encode_into(&mut bytes, RECORD_BYTES_MAX)?;
        let mut tags = tags_of(&self.node.space, &*self.event)?;
        // In the order that stores have columns in: a list of its own for each record would be longer.
        let behind = tags.iter().position(|tag| matches!(tag, Tag::Type(_))).unwrap_or(tags.len());
        tags.insert(behind, Tag::Node(Arc::clone(&self.node.name)));
        Ok(NewRecord { tags, bytes: bytes.into() })
    }

    /// The content of a document that says where a flow is.
    fn form(&self, prefix: &str, step: WireStep<'_>) -> Result<Content> {
        let record = WireRecord { step: Some(step), ..WireRecord::default() };
        let mut bytes = Vec::with_capacity(STEP_BYTES);
        record.encode_into(&mut bytes, DOCUMENT_BYTES_MAX)?;
        let name = if prefix == DEAD { "dead" } else { "flow" };
        Ok(Content { name: name.into(), version: 1, bytes: bytes.into() })
    }

    fn write(&self, revision: u64, content: Option<Content>) -> Write {
        Write { key: Arc::clone(&self.key), revision, content, past: Past::Dropped, replaced: Replaced::Kept }
    }

    /// The document of a flow that begins.
    pub(super) fn first_write(&self) -> Result<Write> {
        let mut progress = lock(&self.progress);
        progress.recorded = true;
        progress.revision = 1;
        let values = std::collections::BTreeMap::new();
        let step = self.wire_step(&progress, StepOutcome::Waits, &values, Vec::new(), Vec::new(), &[]);
        Ok(self.write(1, Some(self.form(FLOWS, step)?)))
    }

    /// The documents that say where the flow is after a step.
    fn last_writes(
        &self,
        progress: &Progress,
        end: &End,
        values: &std::collections::BTreeMap<String, Bytes>,
        points: &[Point],
        dead: u64,
    ) -> Result<Vec<Write>> {
        let revision = progress.revision + 1;
        let next = |outcome| self.wire_step(progress, outcome, values, Vec::new(), Vec::new(), &[]);
        match end {
            End::Next(name, at_unix_ms) => {
                let mut step = next(StepOutcome::Waits);
                step.name = name.to_string().into();
                step.number += 1;
                step.attempt = 1;
                step.at_unix_ms = *at_unix_ms;
                Ok(vec![self.write(revision, Some(self.form(FLOWS, step)?))])
            }
            End::Retry(error, due_unix_ms) => {
                let error = encode_error(self, error)?.into();
                let kept = kept_points(points);
                let mut step = next(StepOutcome::Retry { due_unix_ms: *due_unix_ms, error });
                step.attempt += 1;
                step.points = kept.iter().map(Point::wire).collect();
                Ok(vec![self.write(revision, Some(self.form(FLOWS, step)?))])
            }
            End::Done(_) | End::Finished | End::Dropped(_) => Ok(self.deletion(progress)),
            End::Failed(error) => {
                let mut writes = self.deletion(progress);
                if !matches!(error.kind(), ErrorKind::Cancelled) {
                    let step = next(StepOutcome::Failed(encode_error(self, error)?.into()));
                    let key = self.name().key(DEAD);
                    let content = Some(self.form(DEAD, step)?);
                    writes.push(Write {
                        key,
                        revision: dead + 1,
                        content,
                        past: Past::Dropped,
                        replaced: Replaced::Kept,
                    });
                }
                Ok(writes)
            }
        }
    }

    fn deletion(&self, progress: &Progress) -> Vec<Write> {
        if progress.revision == 0 { Vec::new() } else { vec![self.write(progress.revision + 1, None)] }
    }
}

/// What stays known of the points of a step that failed: what was answered, and not how it failed.
fn kept_points(points: &[Point]) -> Vec<Point> {
    let is_kept = |point: &&Point| match (&point.result, point.kind) {
        (Some(result), PointKind::Ask | PointKind::Wait) => !is_error(result),
        (result, _) => result.is_some(),
    };
    points.iter().filter(is_kept).cloned().collect()
}

fn is_error(frame: &[u8]) -> bool {
    WireReply::decode(frame, RECORD_BYTES_MAX)
        .is_ok_and(|reply| matches!(reply.outcome, codec::Outcome::Error(_)))
}

/// The tags by which the records of an event are found.
///
/// # Errors
///
/// When a batch has more events than a record has tags.
pub(super) fn tags_of(space: &SpaceInner, event: &dyn ErasedEvent) -> Result<Vec<Tag>> {
    let envelope = event.envelope();
    let mut tags = Vec::with_capacity(6);
    let singles = || (0..event.len()).filter_map(|index| event.single(index)).map(ErasedEvent::envelope);
    tags.extend(singles().map(|envelope| Tag::Event(envelope.id)));
    let mut causes: Vec<_> = singles().flat_map(happen_core::Envelope::causes).collect();
    causes.sort_unstable();
    causes.dedup();
    if tags.len() + causes.len() > RECORD_TAGS_MAX - FURTHER_TAGS {
        let max = RECORD_TAGS_MAX - FURTHER_TAGS;
        return Err(Error::misuse(format!(
            "{} events with {} causes in one batch are more than a record can be found by ({max} together); send it in \
             parts with `.chunks(100)`",
            event.len(),
            causes.len(),
        )));
    }
    tags.extend(causes.into_iter().map(Tag::Cause));
    tags.push(Tag::Correlation(envelope.correlation().into()));
    tags.push(Tag::Type(envelope.event_type.as_str().into()));
    if let Some(sender) = space.name_of(envelope.sender) {
        tags.push(Tag::Sender(sender));
    }
    Ok(tags)
}

/// The record of an event that is sent, with the flows that begin with it.
pub(super) fn event_record(
    space: &SpaceInner,
    event: &dyn ErasedEvent,
    framed: &Framed,
    begun: &[Arc<StoredFlow>],
) -> Result<NewRecord> {
    let accepted = begun.iter().map(|flow| flow.wire_flow()).collect();
    let record = WireRecord { event: Cow::Borrowed(&framed.frame), accepted, ..WireRecord::default() };
    let mut bytes = Vec::with_capacity(framed.frame.len() + STEP_BYTES);
    record.encode_into(&mut bytes, RECORD_BYTES_MAX)?;
    Ok(NewRecord { tags: tags_of(space, event)?, bytes: bytes.into() })
}

/// How a step ended, as its record has it.
fn encode_end(flow: &StoredFlow, end: &End) -> Result<StepOutcome<'static>> {
    Ok(match end {
        End::Next(name, _) => StepOutcome::Next(name.to_string().into()),
        End::Finished => StepOutcome::End,
        End::Done(value) => {
            StepOutcome::Done(encode_outcome(flow, &Ok(Some(value.as_payload().to_value())))?.into())
        }
        End::Retry(error, due_unix_ms) => {
            StepOutcome::Retry { due_unix_ms: *due_unix_ms, error: encode_error(flow, error)?.into() }
        }
        End::Failed(error) | End::Dropped(error) => StepOutcome::Failed(encode_error(flow, error)?.into()),
    })
}

fn encode_error(flow: &StoredFlow, error: &Error) -> Result<Vec<u8>> {
    encode_outcome(flow, &Err(error.duplicate()))
}

/// An outcome as the frame of a reply.
///
/// # Errors
///
/// When its value cannot be encoded or is too large.
pub(super) fn encode_outcome(flow: &StoredFlow, outcome: &Outcome) -> Result<Vec<u8>> {
    let (mut bytes, mut frame) = (Vec::new(), Vec::new());
    let event_type;
    let outcome = match outcome {
        Ok(None) => codec::Outcome::End,
        Ok(Some(value)) => {
            value.as_payload().encode(&mut bytes)?;
            event_type = value.event_type();
            codec::Outcome::Value { event_type: event_type.as_str().into(), bytes: &bytes }
        }
        Err(error) => codec::Outcome::Error(WireError::of(error)),
    };
    let bytes_max = flow.node.space.reply_bytes_max();
    WireReply::new(flow.event.envelope().id, outcome).encode_into(&mut frame, bytes_max)?;
    Ok(frame)
}

/// The outcome in a frame of a reply.
pub(super) fn decode_outcome(frame: &[u8]) -> Outcome {
    let reply = WireReply::decode(frame, RECORD_BYTES_MAX)?;
    match reply.outcome {
        codec::Outcome::Value { event_type, bytes } => {
            let payload = happen_core::Dynamic::from_bytes(EventType::new(&event_type), bytes.into());
            Ok(Some(happen_core::Value::new(payload)))
        }
        codec::Outcome::Error(error) => Err(error.to_error()),
        _ => Ok(None),
    }
}

/// Bytes that most steps take in a record, so that its buffer rarely grows.
const STEP_BYTES: usize = 384;

/// Tags of a record beside those of its events and causes: correlation, type, sender, node.
const FURTHER_TAGS: usize = 4;
