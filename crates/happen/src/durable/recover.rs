//! Going on where the last process ended: the flows under way in the store, checked against the nodes and steps of this
//! program, and begun again. And dead letters, which begin again when somebody says so.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use happen_core::codec;
use happen_core::codec::{StepOutcome, WireParcel, WireRecord, WireReply};
use happen_core::limits::{PAGE_RECORDS_MAX, RECORD_BYTES_MAX};
use happen_core::store::{
    Batch, Content, Document, Key, List, Past, Position, Read, Replaced, Select, Tag, Write,
};
use happen_core::{ErasedEvent, Error, ErrorKind, EventId, Result};
use serde_json::Value as Json;

use super::flow::{Progress, StoredFlow};
use super::hold::{self, Hold};
use super::keys::{DEAD, FLOWS, FlowKey, IDENTITY, INBOX, SCHEDULES, SEEN, TIMERS};
use super::lane::Lanes;
use super::stage::Point;
use super::wait::Expected;
use super::{Durable, accept, by_hand, schedule, timer};
use crate::config::UnfitFlows;
use crate::keys::{escaped, plain};
use crate::space::SpaceInner;
use crate::sync::isolated;
use crate::table::Lane;
use crate::wire::Framed;

/// A flow that the store has and that can go on, with the place of its event in the log.
pub(crate) struct Resumable {
    flow: Arc<StoredFlow>,
    position: Position,
    /// Whether it has done something already.
    begun: bool,
}

impl Durable {
    /// Finds out who the space is, and which flows go on. Nothing runs yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unfit`] when flows do not fit this program, unless those are to be left alone; what the store says.
    pub(crate) async fn recover(self: &Arc<Self>, space: &Arc<SpaceInner>) -> Result<Vec<Resumable>> {
        self.identify(space).await?;
        self.recover_outboxes().await?;
        self.take_in(space).await?;
        let mut found = Vec::new();
        let mut unfit = Vec::new();
        let mut after: Option<Key> = None;
        loop {
            let list = List { prefix: FLOWS.into(), after: after.take(), documents_max: PAGE_RECORDS_MAX };
            let page = self.store.list(list).await?;
            let Some(last) = page.last() else { break };
            after = Some(Arc::clone(&last.key));
            for document in page.iter().filter(|document| !self.is_of_another(&document.key, FLOWS)) {
                match self.resumable(space, document).await? {
                    Ok(resumable) => found.push(resumable),
                    Err(why) => unfit.push(why),
                }
            }
        }
        self.recover_times(space, &mut unfit).await?;
        for node in space.all_nodes() {
            if node.is_durable() {
                hold::recover(self, &node).await?;
            }
        }
        if !unfit.is_empty() {
            let error = Error::new(ErrorKind::Unfit { flows: unfit });
            match space.config.unfit_flows {
                UnfitFlows::Refuse => return Err(error),
                UnfitFlows::Park => space.problem(error),
            }
        }
        // In the order in which they were accepted, which is the order of starting; but what had begun goes first, or
        // something else would come between its steps.
        found.sort_by_key(|resumable| (!resumable.begun, resumable.position));
        Ok(found)
    }

    /// Lets go what has its place, and keeps the times.
    pub(crate) fn start(self: &Arc<Self>, space: &Arc<SpaceInner>) {
        self.started.notify_waiters();
        self.agenda.start(space);
        self.carry_all(space);
        super::retention::keep_pruning(space);
    }

    /// Gives the flows of the last process their places, before anything new can take one. They go on when the space has
    /// started.
    pub(crate) fn enter_found(self: &Arc<Self>, found: Vec<Resumable>) {
        if !self.resumed.swap(true, Ordering::SeqCst) {
            self.resume(found);
        }
    }

    fn resume(self: &Arc<Self>, found: Vec<Resumable>) {
        for Resumable { flow, .. } in &found {
            self.begun(flow);
        }
        let superseded = hold::superseded_among(found.iter().map(|resumable| &resumable.flow));
        let mut waiting = Vec::new();
        for Resumable { flow, begun, .. } in found {
            match superseded.get(&flow.key) {
                Some(by) => flow.give_way(*by),
                None if begun => Lanes::enter(&flow),
                None => waiting.push(flow),
            }
        }
        Lanes::enter_all(waiting);
    }

    /// Has the flows of a node go on that the log has and this process does not know.
    ///
    /// # Errors
    ///
    /// What the store says.
    pub(super) async fn adopt(self: &Arc<Self>, space: &Arc<SpaceInner>, node: &str) -> Result<()> {
        let prefix: Key = format!("{FLOWS}{}/", escaped(node)).into();
        let mut after: Option<Key> = None;
        loop {
            let list =
                List { prefix: Arc::clone(&prefix), after: after.take(), documents_max: PAGE_RECORDS_MAX };
            let page = self.store.list(list).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(Arc::clone(&last.key));
            let unknown: Vec<_> =
                page.iter().map(|found| &found.key).filter(|key| !self.knows(key)).collect();
            // One that has just ended is not there any more, and one that has just begun was not there before.
            let found = self.store.documents(unknown.into_iter().cloned().collect()).await?;
            let mut adopted = Vec::new();
            for document in found.into_iter().flatten().filter(|document| document.content.is_some()) {
                match self.resumable(space, &document).await? {
                    Ok(resumable) => adopted.push(resumable),
                    // Such as one that was left alone at the start.
                    Err(why) => tracing::debug!(target: "happen", "a flow stays where it is: {why}"),
                }
            }
            adopted.sort_by_key(|resumable| (!resumable.begun, resumable.position));
            self.resume(adopted);
        }
    }

    /// Whether this process has the flow with this key.
    fn knows(&self, key: &Key) -> bool {
        let Some(name) = FlowKey::of(key, FLOWS) else { return false };
        self.flows_of(name.event).iter().any(|flow| flow.key == *key)
    }

    /// Notes when timers and schedules are due, and that keys are to be forgotten.
    async fn recover_times(&self, space: &Arc<SpaceInner>, unfit: &mut Vec<String>) -> Result<()> {
        for prefix in [TIMERS, SCHEDULES] {
            let mut after: Option<Key> = None;
            loop {
                let list =
                    List { prefix: prefix.into(), after: after.take(), documents_max: PAGE_RECORDS_MAX };
                let page = self.store.list(list).await?;
                let Some(last) = page.last() else { break };
                after = Some(Arc::clone(&last.key));
                for document in &page {
                    if self.is_to_another(prefix, document)? {
                        continue;
                    }
                    unfit.extend(match prefix {
                        TIMERS => timer::recover(space, self, document)?,
                        _ => schedule::recover(space, self, document)?,
                    });
                }
            }
        }
        let one_key = List { prefix: SEEN.into(), after: None, documents_max: 1 };
        if !self.store.list(one_key).await?.is_empty() {
            self.sweep_soon(space.env.unix_ms());
        }
        Ok(())
    }

    /// Whether a document with this prefix is of a node that lives in another process on the same log.
    fn is_of_another(&self, key: &str, prefix: &str) -> bool {
        let node = key.strip_prefix(prefix).and_then(|rest| rest.split('/').next()).map(plain);
        node.is_some_and(|node| self.is_elsewhere(&node))
    }

    /// Whether what is to come by this timer or schedule goes to a node of another process, which sees to it.
    fn is_to_another(&self, prefix: &str, document: &Document) -> Result<bool> {
        if !self.is_shared() {
            return Ok(false);
        }
        let to = if prefix == TIMERS { timer::node_of(document)? } else { schedule::node_of(document)? };
        Ok(to.is_some_and(|node| self.is_elsewhere(&node)))
    }

    /// Reads who the space is, or makes it somebody.
    async fn identify(&self, space: &SpaceInner) -> Result<()> {
        if self.identity.get().is_some() {
            return Ok(());
        }
        let read = async || -> Result<Option<[u8; 16]>> {
            let found = self.store.documents(vec![IDENTITY.into()]).await?.pop().flatten();
            Ok(found.and_then(|document| document.content?.bytes.as_ref().try_into().ok()))
        };
        let identity = match read().await? {
            Some(known) => known,
            None => {
                let mut made = [0; 16];
                space.env.fill_random(&mut made);
                let content = Content { name: "identity".into(), version: 1, bytes: made.into() };
                let write = Write {
                    key: IDENTITY.into(),
                    revision: 1,
                    content: Some(content),
                    past: Past::Dropped,
                    replaced: Replaced::Kept,
                };
                let batch = Batch { documents: vec![write], ..Batch::default() };
                match self.commits.commit(batch).await {
                    Ok(_) => made,
                    Err(error) => read().await?.ok_or(error)?,
                }
            }
        };
        // Whoever else was here first read the same.
        self.identity.get_or_init(|| identity);
        Ok(())
    }

    /// A flow of the store as one that can go on, or why it cannot.
    async fn resumable(
        self: &Arc<Self>,
        space: &Arc<SpaceInner>,
        document: &Document,
    ) -> Result<Result<Resumable, String>> {
        let Some(name) = FlowKey::of(&document.key, FLOWS) else {
            return Ok(Err(format!("`{}`, which is no flow", document.key)));
        };
        let Some(content) = &document.content else { return Ok(Err(format!("`{}`, ended", document.key))) };
        let form = WireRecord::decode(&content.bytes, RECORD_BYTES_MAX)
            .map_err(|error| error.context(format!("document `{}`", document.key)))?;
        let Some(step) = form.step else {
            return Ok(Err(format!("`{}`, which has no step", document.key)));
        };
        let Some(node) = space.find(&name.node).filter(|node| node.is_durable()) else {
            return Ok(Err(format!("{} waits for node `{}`, which is not there", name.event, name.node)));
        };
        let table = node.table.load();
        let FlowKey { event, registration, .. } = &name;
        if table.registered(registration).is_none() {
            return Ok(Err(format!(
                "{event} waits for registration `{registration}` of node `{}`, which is not there",
                name.node
            )));
        }
        let at_entry = step.name == *registration;
        if !at_entry && table.step(&step.name).is_none() {
            return Ok(Err(format!(
                "{event} waits for step `{}` of node `{}`, which is not there",
                step.name, name.node
            )));
        }
        let takes_batch = table.registered(registration).is_some_and(|entry| entry.function.takes_batch());
        let Some((arrived, framed, position)) = self.event_of(space, *event, takes_batch).await? else {
            return Ok(Err(format!("{event} of node `{}` is not in the log any more", name.node)));
        };
        let retry = match &step.outcome {
            StepOutcome::Retry { due_unix_ms, error } => Some((*due_unix_ms, error_in(error))),
            _ => None,
        };
        let points: Vec<_> = step.points.iter().map(Point::of).collect();
        let begun = step.number > 0 || step.attempt > 1 || !points.is_empty();
        let progress = Progress {
            expected: points.iter().filter_map(|point| Expected::of(self, &node.name, point)).collect(),
            revision: document.revision,
            recorded: true,
            step: (!at_entry).then(|| Arc::from(&*step.name)),
            number: step.number,
            attempt: step.attempt,
            at_unix_ms: step.at_unix_ms,
            due_unix_ms: step.due_unix_ms,
            values: step
                .values
                .iter()
                .map(|(name, value)| (name.clone().into_owned(), value.as_ref().into()))
                .collect(),
            points,
            retry,
            ..Progress::default()
        };
        // The event was taken with a key. When this program makes none of it, the flow goes on without, and that is told.
        let id = arrived.envelope().id;
        let tell = |error: Error| node.space.problem(error.at_event(id).at_node(&node.name));
        let lane = match &table.lane {
            Lane::Concurrent => None,
            Lane::ByKey(key_of, _) => {
                isolated("the key of a serial node", || key_of(&*arrived)).map_err(tell).ok()
            }
        };
        let hold = match step.number {
            0 => hold::admit_again(&node, &table, &*arrived, step.due_unix_ms)
                .map_err(tell)
                .unwrap_or_default(),
            _ => Hold::default(),
        };
        let flow = StoredFlow::new(&node, Arc::from(&**registration), arrived, (lane, hold), None, progress);
        flow.set_framed(framed);
        Ok(Ok(Resumable { flow, position, begun }))
    }

    /// An event of the log, with its bytes and its place.
    pub(super) async fn event_of(
        &self,
        space: &Arc<SpaceInner>,
        event: EventId,
        takes_batch: bool,
    ) -> Result<Option<(Arc<dyn ErasedEvent>, Framed, Position)>> {
        let page =
            self.store.read(Read::forward(Select::tag(Tag::Event(event))).at_most(EVENT_RECORDS)).await?;
        for record in &page.records {
            let position = record.position;
            let record = WireRecord::decode(&record.bytes, RECORD_BYTES_MAX)?;
            if record.event.is_empty() {
                continue;
            }
            let parcel = WireParcel::decode(&record.event, RECORD_BYTES_MAX)?;
            let hashes =
                parcel.events().iter().filter_map(|event| Some((event.id, event.hash?))).collect::<Vec<_>>();
            // A batch that is taken one by one has a flow for each of its events.
            let whole = space.event_in(&parcel)?;
            let index = parcel.events().iter().position(|one| one.id == event);
            let single = index.filter(|_| !takes_batch).and_then(|index| whole.single(index));
            let arrived = single.map_or_else(|| whole.to_shared(), ErasedEvent::to_shared);
            let framed = Framed { frame: record.event.into_owned(), hashes };
            return Ok(Some((arrived, framed, position)));
        }
        Ok(None)
    }

    /// Begins the flows of an event anew that failed for good: at the step that failed, with its first attempt and nothing
    /// known of what it had waited for. False when there are none.
    ///
    /// # Errors
    ///
    /// When the program has no such node or step any more, and what the store says.
    pub(crate) async fn redrive(self: &Arc<Self>, space: &Arc<SpaceInner>, event: EventId) -> Result<bool> {
        let letters = by_hand::documents_of(&self.store, DEAD, event, None).await?;
        let mut any = false;
        for letter in letters {
            self.redrive_one(space, &letter).await?;
            any = true;
        }
        Ok(any)
    }

    /// Begins one dead letter anew.
    ///
    /// # Errors
    ///
    /// As [`Durable::redrive`].
    pub(crate) async fn redrive_one(
        self: &Arc<Self>,
        space: &Arc<SpaceInner>,
        letter: &Document,
    ) -> Result<()> {
        let begins = by_hand::redriven(&self.store, letter, space.env.unix_ms()).await?;
        // Checked before anything is written: a letter that fits nothing stays where it is.
        let resumable = match self.resumable(space, &begins.flow).await? {
            Ok(resumable) => resumable,
            Err(why) => {
                return Err(Error::new(ErrorKind::Unfit { flows: vec![why] }).at_event(begins.event));
            }
        };
        self.begin(begins.batch, &begins.flow).await.map_err(|error| error.at_event(begins.event))?;
        self.resume(vec![resumable]);
        Ok(())
    }

    /// Handles the event of a dead letter anew, with another payload and under the id that it gives.
    ///
    /// # Errors
    ///
    /// As [`Durable::redrive`], and what [`by_hand::edited`] refuses.
    pub(crate) async fn redrive_with(
        self: &Arc<Self>,
        space: &Arc<SpaceInner>,
        letter: &Document,
        payload: &Json,
    ) -> Result<EventId> {
        let begins = by_hand::edited(&self.store, &space.env, letter, payload).await?;
        let name = FlowKey::of(&begins.flow.key, FLOWS);
        let fits = name.as_ref().is_some_and(|name| {
            let node = space.find(&name.node).filter(|node| node.is_durable());
            node.is_some_and(|node| node.table.load().registered(&name.registration).is_some())
        });
        if !fits {
            let why = format!("`{}`, whose node or registration is not there", letter.key);
            return Err(Error::new(ErrorKind::Unfit { flows: vec![why] }));
        }
        self.begin(begins.batch, &begins.flow).await?;
        match self.resumable(space, &begins.flow).await? {
            Ok(resumable) => self.resume(vec![resumable]),
            Err(why) => {
                return Err(Error::new(ErrorKind::Unfit { flows: vec![why] }).at_event(begins.event));
            }
        }
        Ok(begins.event)
    }

    /// Commits a batch that begins a flow. A store that fails may have taken it all the same, which the flow's document
    /// tells.
    async fn begin(&self, batch: Batch, flow: &Document) -> Result<()> {
        let Err(error) = self.commits.commit(batch).await else { return Ok(()) };
        let begun = self.store.documents(vec![Arc::clone(&flow.key)]).await;
        let begun = begun.ok().and_then(|mut found| found.pop()?);
        if begun.is_some_and(|begun| begun.revision == flow.revision && begun.content == flow.content) {
            return Ok(());
        }
        Err(error)
    }

    /// Takes the events that were kept while no process was there: each begins its flows and leaves the inbox in one
    /// batch. One that cannot be taken stays, and is told among the problems of the space.
    ///
    /// # Errors
    ///
    /// What the store says.
    async fn take_in(self: &Arc<Self>, space: &Arc<SpaceInner>) -> Result<()> {
        let mut after = None;
        loop {
            let list = List { prefix: INBOX.into(), after, documents_max: PAGE_RECORDS_MAX };
            let page = self.store.list(list).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(Arc::clone(&last.key));
            let mut tickets = Vec::new();
            for document in page.iter().filter(|document| !self.is_of_another(&document.key, INBOX)) {
                match accept::out_of_inbox(space, document) {
                    Ok(taken) => tickets.push(self.commits.push(taken.batch)),
                    Err(error) => space.problem(accept::not_taken_in(error, document)),
                }
            }
            for ticket in tickets {
                self.commits.settle(ticket).await?;
            }
        }
    }
}

/// The error in a frame of a reply.
pub(crate) fn error_in(frame: &[u8]) -> Error {
    match WireReply::decode(frame, RECORD_BYTES_MAX).map(|reply| reply.outcome) {
        Ok(codec::Outcome::Error(error)) => error.to_error(),
        Ok(_) => Error::misuse("a failure that is none was stored; please report this"),
        Err(error) => error,
    }
}

/// Records of an event that are looked through for the one that has it, which is the first.
const EVENT_RECORDS: usize = 8;
