//! Carrying out requests: on the engine of a running space, or on a store alone. Owns which of the two does what; what a
//! change of a flow consists of is in `durable/by_hand.rs`.

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use happen_core::env::{BoxFuture, Env};
use happen_core::limits::{DOCUMENT_BYTES_MAX, PAGE_RECORDS_MAX};
use happen_core::payload::ErasedPayload;
use happen_core::store::{
    Batch, Committed, Condition, Content, Document, Key, List, Past, Read, Replaced, Select, Store, Tag,
    Write,
};
use happen_core::{Answer as Answering, Dynamic, Error, ErrorKind, EventId, EventType, Result, Value};
use serde_json::Value as Json;
use tokio::sync::oneshot;

use super::linked;
use super::{
    Answer, Became, FlowBecame, FlowByHand, FlowsOf, Histories, LetterByHand, Letters, LettersByHand, Mode,
    NodeStats, OfSchedule, Phase, PruneBefore, PrunedByHand, Redrive, Refused, Request, ScheduleAct,
    ScheduledByHand, SendEvent, SentByHand, SetState, Stats, Wait, Written,
};
use crate::balance::{self, BalanceReport};
use crate::dispatch::Reply;
use crate::durable::beside::{self, Heard, Others};
use crate::durable::by_hand::{self, Incoming};
use crate::durable::keys::{DEAD, FLOWS, FlowKey};
use crate::durable::owners::inbox_tag;
use crate::durable::schedule::{self, Edit, Schedules};
use crate::durable::{Durable, StoredFlow};
use crate::keys::escaped;
use crate::limits;
use crate::node::NodeInner;
use crate::retention::Pruning;
use crate::send::{Sender, Sending, Target};
use crate::space::{Space, SpaceInner};
use crate::state::Name;

/// Whoever carries out requests.
pub(crate) struct Hands<'h> {
    store: &'h Arc<dyn Store>,
    env: &'h Arc<dyn Env>,
    live: Option<Live<'h>>,
    others: Others<'h>,
}

/// The engine of a running space.
#[derive(Clone, Copy)]
struct Live<'h> {
    space: &'h Arc<SpaceInner>,
    durable: &'h Arc<Durable>,
}

/// Another process, and a node that it has.
struct Elsewhere<'h> {
    space: &'h Arc<SpaceInner>,
    process: String,
    node: String,
}

impl Elsewhere<'_> {
    async fn ask(&self, request: Request) -> Result<Answer> {
        linked::ask(self.space, &self.process, &self.node, request).await
    }

    /// Asks for something to be done to those of the letters that are the node's, behind a key.
    async fn ask_of_letters(
        &self,
        letters: &Letters,
        after: Option<Key>,
        act: Act<'_>,
    ) -> Result<LettersByHand> {
        let after = after.map(|key| key.to_string());
        let letters = Letters { node: Some(self.node.clone()), after, ..letters.clone() };
        let request = match act {
            Act::Redrive => Request::Redrive(Redrive { letters, payload: None }),
            Act::Edit(payload) => Request::Redrive(Redrive { letters, payload: Some(payload.clone()) }),
            Act::Drop => Request::Drop(letters),
        };
        match self.ask(request).await {
            Ok(Answer::Letters(told)) => Ok(told),
            Ok(_) => Err(other_answer()),
            // Somebody was faster.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound { .. }) => {
                Ok(LettersByHand { letters: Vec::new(), next: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Asks for something to be done to flows; none when there are no such flows any more.
    async fn ask_of_flows(
        &self,
        of: &FlowsOf,
        request: impl FnOnce(FlowsOf) -> Request,
    ) -> Result<Vec<FlowByHand>> {
        let of = FlowsOf { event: of.event, node: Some(self.node.clone()) };
        match self.ask(request(of)).await {
            Ok(Answer::Flows(flows)) => Ok(flows),
            Ok(_) => Err(other_answer()),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

#[cold]
fn other_answer() -> Error {
    Error::misuse("the process answered something else than was asked; it may be of another version")
}

/// What is done to a dead letter.
#[derive(Clone, Copy)]
enum Act<'a> {
    Redrive,
    /// With another payload.
    Edit(&'a Json),
    Drop,
}

impl Space {
    /// Carries out what somebody asks for by hand, as the control channel does for other processes.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::NotStarted`], [`ErrorKind::Closed`]: the space does not run. Figures are told nevertheless.
    /// - [`ErrorKind::NotFound`]: no flow or dead letter of that name.
    /// - [`ErrorKind::Conflict`]: a document has another revision.
    /// - [`ErrorKind::Unfit`]: a flow fits no node or step of this program.
    /// - [`ErrorKind::Misuse`]: the space keeps nothing, or what was asked for cannot mean anything.
    /// - As [`Space::send`], and what the store says.
    ///
    /// # Cancel safety
    ///
    /// What was begun is done whole or not at all.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::control::{Answer, Phase, Request};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// let space = happen::Space::open(folder.path()).await?;
    /// space.start().await?;
    /// let Answer::Stats(stats) = space.control(Request::Stats).await? else { unreachable!() };
    /// assert_eq!((stats.phase, stats.flows), (Phase::Running, 0));
    /// # space.stop().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn control(&self, request: Request) -> Result<Answer> {
        Hands::of_space(self.inner())?.carry_out(request).await
    }
}

impl<'h> Hands<'h> {
    pub(super) fn of_store(
        store: &'h Arc<dyn Store>,
        env: &'h Arc<dyn Env>,
        heard: Option<&'h Heard<'h>>,
    ) -> Self {
        Self { store, env, live: None, others: Others::of(&**store, heard) }
    }

    /// Those of somebody who has a place among the processes of a log and none of its nodes.
    pub(super) fn among(space: &'h Arc<SpaceInner>, store: &'h Arc<dyn Store>) -> Self {
        let others = if store.is_shared() { Others::Linked(space) } else { Others::Nobody };
        Self { store, env: &space.env, live: None, others }
    }

    /// Those of a space that was asked by another process: what is no more its own is nobody's to do here.
    ///
    /// # Errors
    ///
    /// As [`Hands::of_space`].
    pub(super) fn of_asked(space: &'h Arc<SpaceInner>) -> Result<Self> {
        let hands = Self::of_space(space)?;
        Ok(Self { others: Others::of(&**hands.store, None), ..hands })
    }

    pub(super) fn store(&self) -> &'h Arc<dyn Store> {
        self.store
    }

    /// Those of a space.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] for a space in memory.
    pub(crate) fn of_space(space: &'h Arc<SpaceInner>) -> Result<Self> {
        match &space.durable {
            Some(durable) => {
                let live = Some(Live { space, durable });
                let others = match (durable.is_shared(), space.link.get()) {
                    (false, _) => Others::Nobody,
                    (true, None) => Others::Logged,
                    (true, Some(_)) => Others::Linked(space),
                };
                Ok(Self { store: &durable.store, env: &space.env, live, others })
            }
            None => {
                Err(Error::misuse("a space in memory has no store, and nothing in it is asked for by hand"))
            }
        }
    }

    /// Does what is asked for.
    ///
    /// # Errors
    ///
    /// As [`Space::control`] and [`carry_out`](super::carry_out).
    pub(crate) async fn carry_out(&self, request: Request) -> Result<Answer> {
        if let Some(Live { space, .. }) = self.live
            && !matches!(request, Request::Stats | Request::Balance)
        {
            // Before it starts, the space is just finding out what is under way.
            space.check_running()?;
        }
        match request {
            Request::Send(send) => self.send(send).await.map(Answer::Sent),
            Request::Cancel(of) => self.cancel(&of).await.map(Answer::Flows),
            Request::Retry(of) => self.retry(&of).await.map(Answer::Flows),
            Request::Redrive(redrive) => self.redrive(&redrive).await.map(Answer::Letters),
            Request::Drop(letters) => self.drop_letters(&letters).await.map(Answer::Letters),
            Request::SetState(set) => self.set_state(&set).await.map(Answer::Written),
            Request::Prune(prune) => self.prune(&prune).await.map(Answer::Pruned),
            Request::Schedule(of) => self.schedule(of).await.map(Answer::Scheduled),
            Request::Stats => self.stats().await.map(Answer::Stats),
            Request::Balance => self.balance().await.map(Answer::Balance),
        }
    }

    /// Commits what the process would have to know of that has the node.
    async fn commit_at(&self, node: &str, batch: Batch) -> Result<Committed> {
        let own = self.live.and_then(|Live { durable, .. }| durable.process());
        self.commit(beside::guarded(self.store, self.others, own, node, batch).await?).await
    }

    /// The process that has a node and is to be asked instead, if there is one.
    async fn elsewhere(&self, node: &str) -> Result<Option<Elsewhere<'h>>> {
        let Others::Linked(space) = self.others else { return Ok(None) };
        let process = linked::elsewhere(space, self.store, node).await?;
        Ok(process.map(|process| Elsewhere { space, process, node: node.to_owned() }))
    }

    /// Commits a change of a flow under way.
    async fn commit_flow(&self, flow: &Document, batch: Batch) -> Result<Committed> {
        self.commit_at(&flow_node(flow, FLOWS), batch).await
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        match self.live {
            Some(Live { durable, .. }) => durable.commits.commit(batch).await,
            None => {
                let committed = self.store.commit(vec![batch]).await.pop();
                committed
                    .unwrap_or_else(|| Err(Error::misuse("the store gave no answer; please report this")))
            }
        }
    }

    async fn send(&self, send: SendEvent) -> Result<SentByHand> {
        if send.node.is_empty() || send.event_type.is_empty() {
            return Err(Error::misuse("an event is sent to a node and has a type; neither can be empty"));
        }
        let Some(Live { space, .. }) = self.live else {
            if send.wait == Wait::Reply {
                return Err(Error::misuse(
                    "no process has the store, so nobody answers; send without waiting for a reply",
                ));
            }
            let incoming = Incoming {
                node: &send.node,
                event_type: &send.event_type,
                payload: &send.payload,
                correlation: send.correlation.as_deref(),
            };
            let inbox = (!self.others.is_nobody()).then(|| inbox_tag(&send.node));
            let (event, batch) = by_hand::kept(self.env, &incoming, inbox)?;
            self.commit(batch).await?;
            return Ok(SentByHand { event, became: Became::Kept });
        };
        let wait = send.wait;
        let space = Arc::clone(space);
        // In a task of its own: whoever asked may go away, and what it sent goes on.
        let (told, tells) = oneshot::channel();
        self.env.spawn(Box::pin(async move {
            let payload = Dynamic::from_json(EventType::new(&send.event_type), send.payload);
            let to = (*send.node).into_destination();
            let mut sending = Sending::new(Sender::Space(&space), to, payload);
            if let Some(correlation) = send.correlation {
                sending = sending.correlation(correlation);
            }
            let sent = match wait {
                Wait::Reply => sending.reply::<Anything>().await.map(|reply| {
                    let event = reply.event_id();
                    let Anything(event_type, payload) = reply.into_inner();
                    SentByHand { event, became: Became::Replied { event_type, payload } }
                }),
                Wait::Taken => {
                    let sent = sending.await;
                    sent.map(|sent| SentByHand { event: sent.event_id(), became: Became::Taken })
                }
            };
            // Who asked may have gone.
            drop(told.send(sent));
        }));
        match within(self.env, limits::CONTROL_REPLY_MS, tells).await {
            Some(sent) => sent.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled))),
            None => {
                let after = Duration::from_millis(limits::CONTROL_REPLY_MS);
                Err(Error::new(ErrorKind::TimedOut { after })
                    .context("the event was sent and is still handled"))
            }
        }
    }

    /// The flows of an event that the engine has.
    fn live_flows(&self, of: &FlowsOf) -> Vec<Arc<StoredFlow>> {
        let Some(Live { durable, .. }) = self.live else { return Vec::new() };
        let mut flows = durable.flows_of(of.event);
        flows.retain(|flow| of.node.as_ref().is_none_or(|node| **node == *flow.node.name));
        flows
    }

    /// The flows of an event that only the store has.
    async fn stored_flows(&self, of: &FlowsOf, live: &[Arc<StoredFlow>]) -> Result<Vec<Document>> {
        let mut found = by_hand::documents_of(self.store, FLOWS, of.event, of.node.as_deref()).await?;
        let live: HashSet<_> = live.iter().map(|flow| flow.key()).collect();
        found.retain(|document| !live.contains(&document.key));
        Ok(found)
    }

    /// Flows that are for this process to change, and the processes that have the others, one for each node.
    async fn apart(&self, flows: Vec<Document>) -> Result<(Vec<Document>, Vec<Elsewhere<'h>>)> {
        let (mut here, mut elsewhere): (_, Vec<Elsewhere<'h>>) = (Vec::new(), Vec::new());
        for document in flows {
            let node = flow_node(&document, FLOWS);
            if elsewhere.iter().any(|known| known.node == node) {
                continue;
            }
            match self.elsewhere(&node).await? {
                Some(process) => elsewhere.push(process),
                None => here.push(document),
            }
        }
        Ok((here, elsewhere))
    }

    async fn cancel(&self, of: &FlowsOf) -> Result<Vec<FlowByHand>> {
        let live = self.live_flows(of);
        let mut asked = Vec::new();
        for flow in &live {
            let (told, tells) = oneshot::channel();
            if flow.tell(Reply::One(told)).is_none() {
                flow.cancel();
                asked.push((flow, tells));
            }
        }
        let mut flows = Vec::new();
        // One time for all of them, for an event may have many flows.
        let mut late = Some(self.env.sleep(Duration::from_millis(limits::CONTROL_CANCEL_MS)));
        for (flow, tells) in asked {
            let became = match unless(&mut late, tells).await {
                Some(Ok(Err(error))) if matches!(error.kind(), ErrorKind::Cancelled) => FlowBecame::Cancelled,
                Some(Ok(_)) => FlowBecame::Ended,
                Some(Err(_)) | None => FlowBecame::Asked,
            };
            flows.push(FlowByHand {
                event: of.event,
                node: flow.node.name.to_string(),
                registration: flow.registration.to_string(),
                became,
            });
        }
        let (here, elsewhere) = self.apart(self.stored_flows(of, &live).await?).await?;
        for process in elsewhere {
            flows.extend(process.ask_of_flows(of, Request::Cancel).await?);
        }
        for document in here {
            let batch = by_hand::cancelled(self.store, &document).await?;
            self.commit_flow(&document, batch).await.map_err(|error| error.at_event(of.event))?;
            flows.extend(by_hand_of(&document, FlowBecame::Cancelled));
        }
        if flows.is_empty() {
            return Err(none_of("no flow under way", of));
        }
        Ok(flows)
    }

    async fn retry(&self, of: &FlowsOf) -> Result<Vec<FlowByHand>> {
        let live = self.live_flows(of);
        let now_unix_ms = self.env.unix_ms();
        let due = live.iter().filter(|flow| flow.try_now(now_unix_ms));
        let mut flows: Vec<_> = due
            .map(|flow| FlowByHand {
                event: of.event,
                node: flow.node.name.to_string(),
                registration: flow.registration.to_string(),
                became: FlowBecame::Due,
            })
            .collect();
        let (here, elsewhere) = self.apart(self.stored_flows(of, &live).await?).await?;
        for process in elsewhere {
            flows.extend(process.ask_of_flows(of, Request::Retry).await?);
        }
        for document in here {
            if let Some(batch) = by_hand::tried_now(&document, now_unix_ms)? {
                self.commit_flow(&document, batch).await.map_err(|error| error.at_event(of.event))?;
                flows.extend(by_hand_of(&document, FlowBecame::Due));
            }
        }
        if flows.is_empty() {
            return Err(none_of("no flow that waits for its next attempt", of));
        }
        Ok(flows)
    }

    /// Does something to dead letters, at most so many, and says what came of each.
    async fn each_letter(&self, letters: &Letters, act: Act<'_>) -> Result<LettersByHand> {
        let (mut done, mut after) = (Vec::new(), letters.after.as_deref().map(Key::from));
        // Nodes whose letters are not given away.
        let mut own: HashSet<String> = HashSet::new();
        'pages: loop {
            let from = after.take();
            let (page, next) =
                by_hand::page_of(self.store, DEAD, letters.node.as_deref(), from.clone()).await?;
            for (index, document) in page.iter().enumerate() {
                let Some(name) = FlowKey::of(&document.key, DEAD) else { continue };
                // Nobody has a letter in memory, so those that are dropped need nobody else.
                if letters.mode == Mode::CarryOut && !matches!(act, Act::Drop) && !own.contains(&*name.node) {
                    if let Some(process) = self.elsewhere(&name.node).await? {
                        let before = index.checked_sub(1).and_then(|before| page.get(before));
                        let from = before.map(|before| Arc::clone(&before.key)).or(from);
                        if !done.is_empty() {
                            // What a process answers is an answer of its own.
                            return Ok(LettersByHand {
                                letters: done,
                                next: from.map(|key| key.to_string()),
                            });
                        }
                        let told = process.ask_of_letters(letters, from, act).await?;
                        let node_end = behind(&name.node);
                        let next = told.next.or_else(|| letters.node.is_none().then(|| node_end.to_string()));
                        if !told.letters.is_empty() {
                            return Ok(LettersByHand { letters: told.letters, next });
                        }
                        match next {
                            Some(next) => after = Some(next.into()),
                            None => break 'pages,
                        }
                        continue 'pages;
                    }
                    own.insert(name.node.to_string());
                }
                if letters.event.is_some_and(|event| event != name.event) {
                    continue;
                }
                if let Some(wanted) = &letters.event_type
                    && !self.is_of_type(name.event, wanted).await?
                {
                    continue;
                }
                let acted = match letters.mode {
                    Mode::CarryOut => self.act(document, act).await,
                    Mode::DryRun => Ok(None),
                };
                let (instead, refused) = match acted {
                    Ok(instead) => (instead, None),
                    // Everything else would fail too.
                    Err(error) if matches!(error.kind(), ErrorKind::Io { .. } | ErrorKind::Closed { .. }) => {
                        return Err(error);
                    }
                    Err(error) if letters.event.is_some() => return Err(error),
                    Err(error) => (None, Some(Refused::of(&error))),
                };
                let (node, registration) = (name.node.into_owned(), name.registration.into_owned());
                done.push(LetterByHand { event: name.event, node, registration, instead, refused });
                if done.len() == limits::CONTROL_LETTERS_MAX {
                    return Ok(LettersByHand { letters: done, next: Some(document.key.to_string()) });
                }
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        // Behind a page there may be nothing more.
        if let (Some(event), true, None) = (letters.event, done.is_empty(), &letters.after) {
            let of = FlowsOf { event, node: letters.node.clone() };
            return Err(none_of("no dead letter", &of));
        }
        Ok(LettersByHand { letters: done, next: None })
    }

    async fn is_of_type(&self, event: EventId, wanted: &str) -> Result<bool> {
        let read = Read::forward(Select::tag(Tag::Event(event))).at_most(1);
        let page = self.store.read(read).await?;
        let mut tags = page.records.iter().flat_map(|record| record.tags.iter());
        Ok(tags.any(|tag| matches!(tag, Tag::Type(found) if **found == *wanted)))
    }

    async fn redrive(&self, Redrive { letters, payload }: &Redrive) -> Result<LettersByHand> {
        if payload.is_some() && letters.event.is_none() {
            return Err(Error::misuse("another payload is given to the dead letters of one event; name it"));
        }
        self.each_letter(letters, payload.as_ref().map_or(Act::Redrive, Act::Edit)).await
    }

    async fn drop_letters(&self, letters: &Letters) -> Result<LettersByHand> {
        self.each_letter(letters, Act::Drop).await
    }

    /// Does something to one dead letter; gives the event that is handled in its place.
    async fn act(&self, letter: &Document, act: Act<'_>) -> Result<Option<EventId>> {
        match (act, self.live) {
            (Act::Redrive, Some(Live { space, durable })) => {
                durable.redrive_one(space, letter).await.map(|()| None)
            }
            (Act::Edit(payload), Some(Live { space, durable })) => {
                durable.redrive_with(space, letter, payload).await.map(Some)
            }
            (Act::Redrive, None) => {
                let begins = by_hand::redriven(self.store, letter, self.env.unix_ms()).await?;
                self.commit_at(&flow_node(letter, DEAD), begins.batch).await.map(|_| None)
            }
            (Act::Edit(payload), None) => {
                let begins = by_hand::edited(self.store, self.env, letter, payload).await?;
                self.commit_at(&flow_node(letter, DEAD), begins.batch).await.map(|_| Some(begins.event))
            }
            // Nobody has a letter in memory, and the revision sees to it that it is there.
            (Act::Drop, _) => self.commit(by_hand::dropped(letter)?).await.map(|_| None),
        }
    }

    async fn set_state(&self, set: &SetState) -> Result<Written> {
        let key: Key = set.key.as_str().into();
        let Some(name) = Name::of(&key) else {
            return Err(Error::misuse(format!(
                "`{key}` is no document of a node; only those with `state/` and `entity/` can be set"
            )));
        };
        let mut bytes = Vec::new();
        set.content.encode(&mut bytes)?;
        if bytes.len() > DOCUMENT_BYTES_MAX {
            let (bytes, bytes_max) = (bytes.len(), DOCUMENT_BYTES_MAX);
            return Err(Error::new(ErrorKind::Oversized { bytes, bytes_max }));
        }
        if let Some(process) = self.elsewhere(&name.node).await? {
            return match process.ask(Request::SetState(set.clone())).await? {
                Answer::Written(written) => Ok(written),
                _ => Err(other_answer()),
            };
        }
        let written = Written { key: set.key.clone(), revision: set.revision.saturating_add(1) };
        let found = self.store.document(&key).await?;
        let revision = found.as_ref().map_or(0, |document| document.revision);
        if revision != set.revision {
            return Err(Condition::revision_conflict(&key, set.revision, revision));
        }
        let content = found.and_then(|document| document.content);
        let shape = set.shape.or_else(|| content.as_ref().map(|content| content.version));
        let node = self.live.and_then(|Live { space, .. }| space.find(&name.node));
        if let (Some(node), Some(Live { durable, .. })) = (&node, self.live) {
            check_durable(node, &key)?;
            if let Some(document) = durable.documents.in_memory(&key) {
                document.set_by_hand(node, (shape, bytes.into()), set.revision).await?;
                return Ok(written);
            }
        }
        let Some(version) = shape else {
            return Err(Error::misuse(format!(
                "`{key}` says nothing yet, so the version of its shape is unknown; give it"
            )));
        };
        let shape_name = content.map_or_else(|| Arc::from(&*name.state), |content| content.name);
        let content = Content { name: shape_name, version, bytes: bytes.into() };
        let write = Write {
            key: Arc::clone(&key),
            revision: written.revision,
            content: Some(content),
            past: self.live.map_or(Past::Kept, |Live { durable, .. }| durable.documents.past()),
            replaced: Replaced::Kept,
        };
        self.commit_at(&name.node, by_hand::changed(&name.node, write)?).await?;
        if let Some(Live { durable, .. }) = self.live {
            durable.documents.outdated(&key, written.revision);
        }
        if let Some(node) = node {
            node.states().bells.ring(|| set.key.clone());
        }
        Ok(written)
    }

    async fn prune(&self, prune: &PruneBefore) -> Result<PrunedByHand> {
        let _one_at_a_time = match self.live {
            Some(Live { durable, .. }) => Some(durable.one_pruning().await),
            None => None,
        };
        let mut pruning = Pruning::before(self.store, prune.before_unix_ms).await?;
        pruning = pruning.types(prune.types.iter().map(String::as_str));
        if let Some(Live { space, .. }) = self.live {
            pruning = pruning.keep_types(space.types_kept()?);
        }
        if prune.histories == Histories::Keep {
            pruning = pruning.keep_histories();
        }
        let events_kept = pruning.events_kept();
        let pruned = match prune.mode {
            Mode::DryRun => pruning.count(self.store).await?,
            Mode::CarryOut => pruning.carry_out(self.store).await?,
        };
        Ok(PrunedByHand { records: pruned.records, revisions: pruned.revisions, events_kept })
    }

    async fn schedule(&self, OfSchedule { name, act }: OfSchedule) -> Result<ScheduledByHand> {
        if let Others::Linked(_) = self.others
            && let Some(node) = schedule::taker_of(self.store, &name).await?
            && let Some(process) = self.elsewhere(&node).await?
        {
            return match process.ask(Request::Schedule(OfSchedule { name, act })).await? {
                Answer::Scheduled(scheduled) => Ok(scheduled),
                _ => Err(other_answer()),
            };
        }
        let Some(Live { space, .. }) = self.live else {
            let edit = match act {
                ScheduleAct::Pause => Edit::Pause,
                ScheduleAct::Resume => Edit::Resume,
                ScheduleAct::Remove => Edit::Remove,
                ScheduleAct::Trigger | ScheduleAct::Backfill { .. } => {
                    if schedule::taker_of(self.store, &name).await?.is_none() {
                        return Err(schedule::no_such(&name));
                    }
                    return Err(Error::misuse(match self.others {
                        Others::Nobody => {
                            "no process has the store, so nobody takes the events of a schedule; start the space first"
                        }
                        Others::Linked(_) => {
                            "no process that has the node of the schedule is there, so nobody takes its events; start the \
                             space first"
                        }
                        Others::Logged | Others::Heard(_) => {
                            "only the process that has the node of a schedule gives it the events; ask that process"
                        }
                    }));
                }
            };
            let (node, batch) = schedule::edited(self.store, &name, edit, self.env.unix_ms()).await?;
            self.commit_at(&node, batch).await?;
            return Ok(ScheduledByHand { name, events: Vec::new() });
        };
        let schedules = Schedules::of(space);
        let events = match act {
            ScheduleAct::Pause => schedules.pause(&name).await.map(|()| Vec::new()),
            ScheduleAct::Resume => schedules.resume(&name).await.map(|()| Vec::new()),
            ScheduleAct::Remove => match schedules.remove(&name).await {
                Ok(true) => Ok(Vec::new()),
                Ok(false) => Err(schedule::no_such(&name)),
                Err(error) => Err(error),
            },
            ScheduleAct::Trigger => schedules.trigger(&name).await.map(|event| vec![event]),
            ScheduleAct::Backfill { from_unix_ms, until_unix_ms } => {
                schedules.backfill(&name, from_unix_ms, until_unix_ms).await
            }
        }?;
        Ok(ScheduledByHand { name, events })
    }

    async fn stats(&self) -> Result<Stats> {
        let head = self.store.read(Read::forward(Select::All).at_most(0)).await?.head.to_string();
        let Some(Live { space, durable }) = self.live else {
            let flows = self.flows_stored().await?;
            return Ok(Stats { phase: Phase::Stopped, head, flows, nodes_len: 0, nodes: Vec::new() });
        };
        let phase = match space.check_running() {
            Ok(()) => Phase::Running,
            Err(error) if matches!(error.kind(), ErrorKind::NotStarted) => Phase::Building,
            Err(_) => Phase::Stopped,
        };
        let mut all = space.all_nodes();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let nodes_len = all.len() as u64;
        let nodes = all.into_iter().take(limits::CONTROL_NODES_MAX).map(|inner| {
            let node = crate::node::Node::from_inner(Arc::clone(&inner));
            NodeStats {
                node: inner.name.to_string(),
                is_durable: inner.is_durable(),
                flows: node.flows().len() as u64,
                waiting: node.waiting() as u64,
            }
        });
        Ok(Stats { phase, head, flows: durable.flows_len() as u64, nodes_len, nodes: nodes.collect() })
    }

    async fn balance(&self) -> Result<BalanceReport> {
        let report = match self.live {
            Some(Live { space, .. }) => space.balance_report().await?,
            None => balance::report_of_store(self.store, self.env.unix_ms()).await?,
        };
        Ok(report.at_most(limits::CONTROL_NODES_MAX))
    }

    async fn flows_stored(&self) -> Result<u64> {
        let (mut flows, mut after) = (0, None);
        loop {
            let list = List { prefix: FLOWS.into(), after, documents_max: PAGE_RECORDS_MAX };
            let page = self.store.list(list).await?;
            let Some(last) = page.last() else { return Ok(flows) };
            flows += page.len() as u64;
            after = Some(Arc::clone(&last.key));
        }
    }
}

impl Refused {
    fn of(error: &Error) -> Self {
        Self { code: error.code().to_owned(), text: error.chain().join(": ") }
    }
}

/// An answer of any type, or none, as JSON.
struct Anything(Option<String>, Json);

impl Answering for Anything {
    fn from_reply(value: Option<Value>) -> Result<Self> {
        let Some(value) = value else { return Ok(Self(None, Json::Null)) };
        let event_type = value.event_type().as_str().to_owned();
        Ok(Self(Some(event_type), value.as_payload().to_json()?))
    }
}

fn check_durable(node: &NodeInner, key: &str) -> Result<()> {
    if node.is_durable() {
        return Ok(());
    }
    Err(Error::misuse(format!(
        "`{key}` belongs to an ephemeral node, whose states are in no store; send the node an event instead"
    )))
}

/// The node of a flow, or of a dead letter.
fn flow_node(document: &Document, prefix: &str) -> String {
    FlowKey::of(&document.key, prefix).map_or_else(String::new, |name| name.node.into_owned())
}

/// Behind all dead letters of a node, and before those of the next.
fn behind(node: &str) -> Key {
    // `0` is what comes behind `/`.
    format!("{DEAD}{}0", escaped(node)).into()
}

fn by_hand_of(document: &Document, became: FlowBecame) -> Option<FlowByHand> {
    let name = FlowKey::of(&document.key, FLOWS)?;
    let (node, registration) = (name.node.into_owned(), name.registration.into_owned());
    Some(FlowByHand { event: name.event, node, registration, became })
}

#[cold]
fn none_of(what: &str, of: &FlowsOf) -> Error {
    let at = of.node.as_ref().map_or_else(String::new, |node| format!(" at node `{node}`"));
    let what = format!("{what}{at} handles event {}", of.event);
    Error::new(ErrorKind::NotFound { what }).at_event(of.event)
}

/// Waits for something, at most so long.
pub(crate) async fn within<T>(env: &Arc<dyn Env>, millis: u64, work: impl Future<Output = T>) -> Option<T> {
    unless(&mut Some(env.sleep(Duration::from_millis(millis))), work).await
}

/// Waits for something unless a time is over, which is taken away then.
async fn unless<T>(late: &mut Option<BoxFuture<'static, ()>>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    std::future::poll_fn(|task| {
        if let Poll::Ready(done) = work.as_mut().poll(task) {
            return Poll::Ready(Some(done));
        }
        match late.as_mut().map(|late| late.as_mut().poll(task)) {
            Some(Poll::Pending) => Poll::Pending,
            _ => {
                *late = None;
                Poll::Ready(None)
            }
        }
    })
    .await
}
