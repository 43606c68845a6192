//! A log that other processes write too: which process has which durable nodes, and how events reach those of the others.
//! Owns the documents that say so and what follows from them; does not know how processes reach each other otherwise.
//!
//! Every process has a document that stands for it, and each batch that it commits has the condition that the document is
//! still there. Whoever takes the nodes of a process over deletes it in the same batch, so from that place of the log on
//! nothing of the process counts any more, whatever it still believes. An event for a node of another process is kept in
//! the node's inbox by the commit that sends it, and its process takes it from there.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use happen_core::codec::{WireChange, WireRecord};
use happen_core::env::Env;
use happen_core::limits::{PAGE_RECORDS_MAX, RECORD_BYTES_MAX, RECORD_TAGS_MAX};
use happen_core::pattern::{Shape, domain, exact, is_runtime};
use happen_core::store::{
    Batch, Content, Document, Key, List, NewRecord, Past, Position, Read, Record, Replaced, Select, Store,
    Tag, Watch, Write,
};
use happen_core::{ErasedEvent, Error, ErrorKind, Pattern, Result, State};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot, watch};

use super::commit::Commits;
use super::document::is_conflict;
use super::keys::{INBOX, OWNERS, PROCESSES, name_of, named};
use super::lane::Lanes;
use super::outbox::outbox_tag;
use super::record::event_record;
use super::stage::Whereto;
use super::{Durable, accept, by_hand};
use crate::flow::Outcome;
use crate::keys::escaped;
use crate::limits;
use crate::node::NodeInner;
use crate::space::SpaceInner;
use crate::sync::{Mutex, lock};
use crate::wire::Framed;

/// What a space knows of the others on its log.
pub(crate) struct Owners {
    /// The document that stands for this process.
    process: Key,
    known: Mutex<Known>,
    /// Heard when nodes of this space, what they listen to, or what their flows wait for, have changed.
    changed: Notify,
    /// The generation of what is waited for that the log is followed for.
    followed: watch::Sender<u64>,
    /// Of the commits of which nobody knew what became of them, how many have been looked into.
    looked_into: AtomicU64,
}

#[derive(Default)]
struct Known {
    /// Up to where the log was looked at.
    position: Position,
    /// The durable nodes of the log.
    nodes: BTreeMap<Arc<str>, Owner>,
    /// Whether the document of this process was written.
    is_there: bool,
}

/// A durable node as the log knows it.
struct Owner {
    process: Key,
    revision: u64,
    handles: Vec<Pattern>,
    stored: Vec<StoredPattern>,
}

/// Other processes, by the documents that stand for them, and which nodes each of them has.
type Others = BTreeMap<Key, Vec<Arc<str>>>;

/// What the document of a durable node's owner says.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredOwner {
    /// The key of the document that stands for the process.
    process: String,
    /// The patterns that the node handles.
    handles: Vec<StoredPattern>,
}

/// A pattern as far as another process can match it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredPattern {
    /// What is parsed.
    Text(String),
    Exact(String),
    Domain(String),
    /// One with functions in it: too much is kept for its node then, which looks what it takes.
    Other,
}

/// What the document says that stands for a process.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredProcess {
    /// The name of its space on the link; empty without one.
    member: String,
}

impl StoredProcess {
    /// The name on the link of the process that such a document stands for; `None` when it has gone.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub(super) fn member_in(document: &Document) -> Result<Option<String>> {
        let Some(content) = &document.content else { return Ok(None) };
        let process: Self = happen_core::state::decode_document(content.version, &content.bytes)
            .map_err(|error| error.context(format!("document `{}`", document.key)))?;
        Ok(Some(process.member))
    }
}

impl State for StoredProcess {
    const NAME: &'static str = "process";
    const VERSION: u32 = 1;
}

impl StoredPattern {
    fn of(pattern: &Pattern) -> Self {
        match pattern.shape() {
            Shape::Text(text) => Self::Text(text.to_owned()),
            Shape::Exact(text) => Self::Exact(text.to_owned()),
            Shape::Domain(name) => Self::Domain(name.to_owned()),
            _ => Self::Other,
        }
    }

    fn to_pattern(&self) -> Pattern {
        let everything = || Pattern::runtime(|_| true);
        match self {
            Self::Text(text) => Pattern::parse(text).unwrap_or_else(|_| everything()),
            Self::Exact(text) => exact(text),
            Self::Domain(name) => domain(name),
            Self::Other => everything(),
        }
    }
}

impl State for StoredOwner {
    const NAME: &'static str = "owner";
    const VERSION: u32 = 1;
}

impl StoredOwner {
    /// What such a document says; `None` when it was deleted.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub(super) fn of(document: &Document) -> Result<Option<Self>> {
        let Some(content) = &document.content else { return Ok(None) };
        happen_core::state::decode_document(content.version, &content.bytes)
            .map(Some)
            .map_err(|error| error.context(format!("document `{}`", document.key)))
    }

    /// The key of the process's document, and the patterns.
    pub(super) fn into_parts(self) -> (String, Vec<String>) {
        let handles = self.handles.iter().map(|stored| match stored {
            StoredPattern::Other => "a function".to_owned(),
            told => told.to_pattern().to_string(),
        });
        let handles = handles.collect();
        (self.process, handles)
    }
}

/// What keeps an event for nodes of other processes.
#[derive(Default)]
pub(super) struct Inboxes {
    nodes: Vec<Arc<str>>,
    documents: Vec<Write>,
    /// The tag by which it waits here for a node beyond the link.
    outbox: Option<Tag>,
}

/// What a process hears that follows the log.
enum Heard {
    /// Another process has taken its nodes over.
    Fenced,
    /// Its own nodes have changed.
    Changed,
    /// A commit failed that may be in the log all the same, or get there later.
    Doubt,
    Records(Result<Vec<Record>>),
}

impl Inboxes {
    /// Has a commit keep the event for them: its record, and documents beside others.
    pub(super) fn add_to(self, record: &mut NewRecord, documents: &mut Vec<Write>) {
        record.tags.extend(self.outbox);
        if self.documents.is_empty() {
            return;
        }
        documents.extend(self.documents);
        // More than the record has room for are found by the tag of all.
        let few =
            self.nodes.len() <= INBOX_TAGS_MAX && record.tags.len() + self.nodes.len() <= RECORD_TAGS_MAX;
        match few {
            true => record.tags.extend(self.nodes.iter().map(|node| inbox_tag(node))),
            false => record.tags.push(Tag::Declared(EVERY_INBOX.into())),
        }
    }
}

impl Owners {
    /// What a space has over a store that is shared; `None` over one that it has for itself.
    pub(super) fn over(store: &dyn Store, env: &dyn Env) -> Option<Self> {
        store.is_shared().then(|| {
            let mut id = [0; 16];
            env.fill_random(&mut id);
            let process = format!("{PROCESSES}{:032x}", u128::from_le_bytes(id)).into();
            Self {
                process,
                known: Mutex::default(),
                changed: Notify::new(),
                followed: watch::Sender::new(0),
                looked_into: AtomicU64::new(0),
            }
        })
    }

    pub(crate) fn nodes_changed(&self) {
        self.changed.notify_one();
    }

    /// Whether the document of this process was written.
    fn is_written(&self) -> bool {
        lock(&self.known).is_there
    }

    fn is_elsewhere(&self, node: &str) -> bool {
        lock(&self.known).nodes.get(node).is_some_and(|owner| owner.process != self.process)
    }

    /// The durable nodes of other processes that listen to a type.
    fn listeners(&self, event_type: &str) -> Vec<Arc<str>> {
        let runtime = is_runtime(event_type);
        let listens = |owner: &Owner| {
            owner.process != self.process
                && owner.handles.iter().any(|pattern| match runtime {
                    true => pattern.matches_runtime(event_type),
                    false => pattern.matches(event_type),
                })
        };
        let known = lock(&self.known);
        known.nodes.iter().filter(|(_, owner)| listens(owner)).map(|(node, _)| Arc::clone(node)).collect()
    }
}

impl Durable {
    /// Whether a durable node of this name lives in another process on the same log, running or not.
    pub(crate) fn is_elsewhere(&self, node: &str) -> bool {
        self.owners.as_ref().is_some_and(|owners| owners.is_elsewhere(node))
    }

    /// The durable nodes of other processes on the same log, each with the key of the document that stands for its process.
    pub(crate) fn nodes_elsewhere(&self) -> Vec<(Arc<str>, Key)> {
        let Some(owners) = &self.owners else { return Vec::new() };
        let known = lock(&owners.known);
        let others = known.nodes.iter().filter(|(_, owner)| owner.process != owners.process);
        others.map(|(node, owner)| (Arc::clone(node), Arc::clone(&owner.process))).collect()
    }

    /// Whether durable nodes of other processes on the same log listen to a type.
    pub(crate) fn is_heard_elsewhere(&self, event_type: &str) -> bool {
        self.owners.as_ref().is_some_and(|owners| !owners.listeners(event_type).is_empty())
    }

    /// Whether other processes write the log.
    pub(crate) fn is_shared(&self) -> bool {
        self.owners.is_some()
    }

    /// The key of the document that stands for this process, on a log that others write too.
    pub(crate) fn process(&self) -> Option<&Key> {
        self.owners.as_ref().map(|owners| &owners.process)
    }

    /// What a commit has to have so that an event reaches the durable nodes of other processes.
    pub(super) fn inboxes(&self, event: &dyn ErasedEvent, framed: &Framed, to: &Whereto) -> Inboxes {
        if let Whereto::Waits(node) = to {
            return Inboxes { outbox: Some(outbox_tag(node)), ..Inboxes::default() };
        }
        let Some(owners) = &self.owners else { return Inboxes::default() };
        let nodes = match to {
            Whereto::Node(_) | Whereto::Away(_) | Whereto::Waits(_) => return Inboxes::default(),
            Whereto::Kept(node) => vec![Arc::clone(node)],
            Whereto::Everyone => owners.listeners(event.envelope().event_type.as_str()),
        };
        if nodes.is_empty() {
            return Inboxes::default();
        }
        let content = Content { name: "inbox".into(), version: 1, bytes: framed.frame.as_slice().into() };
        let document = |node: &Arc<str>| Write {
            key: format!("{INBOX}{}/{}", escaped(node), event.envelope().id).into(),
            revision: 1,
            content: Some(content.clone()),
            past: Past::Dropped,
            replaced: Replaced::Kept,
        };
        Inboxes { documents: nodes.iter().map(document).collect(), nodes, outbox: None }
    }

    /// Keeps an event for a durable node of another process. Whoever waits is told when it is stored.
    pub(crate) fn keep(
        self: &Arc<Self>,
        space: &Arc<SpaceInner>,
        to: &str,
        event: &dyn ErasedEvent,
    ) -> Result<oneshot::Receiver<Outcome>> {
        let framed = space.framed_arrival(event)?;
        let mut record = event_record(space, event, &framed, &[])?;
        let mut documents = Vec::new();
        self.inboxes(event, &framed, &Whereto::Kept(to.into())).add_to(&mut record, &mut documents);
        let ticket = self.commits.push(Batch { records: vec![record], documents, ..Batch::default() });
        let (told, tells) = oneshot::channel();
        let (durable, ending) = (Arc::clone(self), Arc::clone(space));
        let (event, to) = (event.to_shared(), to.to_owned());
        space.flow_began();
        space.env.spawn(Box::pin(async move {
            let stored = durable.settle_event(&ending, ticket, Tag::Event(event.envelope().id)).await;
            if let Err(Err(error)) = told.send(stored.map(|()| None)) {
                // Nobody waits, and it would be gone without a word.
                ending.bury(&*event, &to, &error);
            }
            ending.flow_ended();
        }));
        Ok(tells)
    }

    /// Has this process own its durable nodes: at once where nobody has them, and otherwise when the process that has them
    /// is gone. Until then it stands by.
    ///
    /// # Errors
    ///
    /// What the store says, and when the space ends meanwhile.
    pub(crate) async fn claim(self: &Arc<Self>, space: &Arc<SpaceInner>) -> Result<()> {
        let Some(owners) = &self.owners else { return Ok(()) };
        let mut stands_by = false;
        // Those that were not heard of, and had the time to say that they are there.
        let mut waited_for: Vec<Key> = Vec::new();
        loop {
            if space.has_ended() {
                return Err(ended());
            }
            owners.look(&*self.store).await?;
            let (mut batch, others) = owners.claims(space)?;
            if batch.documents.is_empty() {
                // All is claimed, perhaps by a commit that nobody was told of; or there is nothing to take over.
                break;
            }
            let alive = self.alive(&others).await?;
            if !alive.is_empty() {
                if are_there(space, &alive)? {
                    if !std::mem::replace(&mut stands_by, true) {
                        tracing::info!(target: "happen", "another process has the nodes of this one, which stands by");
                    }
                    space.env.sleep(Duration::from_millis(limits::STAND_BY_LOOK_MS)).await;
                    continue;
                }
                // Who is there may not have said so yet to a process that has just come, or has just come itself.
                let new = alive.iter().any(|process| !waited_for.contains(&process.key));
                if space.link.get().is_some() && new {
                    waited_for.extend(alive.iter().map(|process| Arc::clone(&process.key)));
                    space.env.sleep(Duration::from_millis(limits::OWNER_LOOK_MS)).await;
                    continue;
                }
                batch.documents.extend(alive.iter().map(by_hand::deletion));
            }
            match self.store.commit(vec![batch]).await.pop() {
                Some(Ok(_)) => break,
                // Somebody else was faster, or it was committed and nobody said so: the next look tells.
                Some(Err(error)) if is_conflict(&error) => {}
                Some(Err(error)) if matches!(error.kind(), ErrorKind::Io { .. }) => {
                    tracing::warn!(target: "happen", code = error.code(), "the nodes are not claimed yet: {error}");
                    space.env.sleep(Duration::from_millis(limits::STORE_WAIT_MS_MAX)).await;
                }
                Some(Err(error)) => return Err(error),
                None => return Err(Error::misuse("a store answered nothing; please report this")),
            }
        }
        owners.look(&*self.store).await?;
        if owners.is_written() {
            self.commits.fence(&owners.process);
        }
        Ok(())
    }

    /// The documents that stand for these processes, of those that have not said that they go.
    async fn alive(&self, processes: &Others) -> Result<Vec<Document>> {
        let found = self.store.documents(processes.keys().cloned().collect()).await?;
        Ok(found.into_iter().flatten().filter(|document| document.content.is_some()).collect())
    }

    /// Says that this process has gone, so that the next one need not wait.
    pub(super) async fn resign(&self) {
        let Some(owners) = &self.owners else { return };
        if !owners.is_written() || self.commits.is_fenced() {
            return;
        }
        let end = Write {
            key: Arc::clone(&owners.process),
            revision: 2,
            content: None,
            past: Past::Dropped,
            replaced: Replaced::Kept,
        };
        let batch = Batch { documents: vec![end], ..Batch::default() };
        if let Some(Err(error)) = self.store.commit(vec![batch]).await.pop() {
            tracing::warn!(target: "happen", code = error.code(), "the process could not say that it goes: {error}");
        }
    }

    /// Takes what comes for the nodes of this process, as long as the space is there.
    pub(crate) fn keep_following(self: &Arc<Self>, space: &Arc<SpaceInner>) {
        let Some(owners) = &self.owners else { return };
        let mut position = lock(&owners.known).position;
        let (env, durable, space) = (Arc::clone(&space.env), Arc::clone(self), Arc::downgrade(space));
        env.clone().spawn(Box::pin(async move {
            let mut wait = limits::STORE_WAIT_MS;
            loop {
                let followed = durable.follow(&space, &mut position).await;
                // Whoever finds it out, by a commit of its own or by that of another.
                if durable.commits.is_fenced() {
                    if let Some(space) = space.upgrade() {
                        space.fenced();
                    }
                    return;
                }
                match followed {
                    Ok(()) => return,
                    Err(error) if matches!(error.kind(), ErrorKind::Closed { .. }) => {
                        tracing::debug!(target: "happen", "the log is followed no longer: {error}");
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(target: "happen", code = error.code(), "the log is followed anew: {error}");
                        env.sleep(Duration::from_millis(wait)).await;
                        wait = (wait * 2).min(limits::STORE_WAIT_MS_MAX);
                    }
                }
            }
        }));
    }

    /// Waits until the log is followed for what is waited for in this generation, so that nobody waits in vain for what
    /// other processes write.
    pub(super) async fn until_followed(&self, generation: u64) {
        let Some(owners) = &self.owners else { return };
        // An error would say that there are no owners any more, which this holds.
        drop(owners.followed.subscribe().wait_for(|followed| *followed >= generation).await);
    }

    /// Follows the log until the space ends.
    async fn follow(self: &Arc<Self>, space: &Weak<SpaceInner>, position: &mut Position) -> Result<()> {
        let Some(owners) = &self.owners else { return Ok(()) };
        loop {
            let Some(own) = space.upgrade().filter(|space| space.is_running()) else { return Ok(()) };
            self.claim_changes(&own).await?;
            let mut tags: Vec<Tag> = durable_nodes(&own).map(|node| inbox_tag(&node.name)).collect();
            tags.extend([Tag::Declared(OWNERS.into()), Tag::Declared(EVERY_INBOX.into())]);
            drop(own);
            let (generation, waited_for) = self.waiters.patterns();
            let mut watch = self.store.watch(followed(tags, &waited_for), *position).await?;
            owners.followed.send_replace(generation);
            loop {
                let heard = owners.hear(&self.commits, &mut *watch).await;
                let own = space.upgrade();
                match heard {
                    Heard::Fenced => return Ok(()),
                    Heard::Changed => break,
                    Heard::Doubt => {
                        let Some(space) = own.filter(|space| space.is_running()) else { return Ok(()) };
                        self.look_into_doubts(&space).await?;
                    }
                    Heard::Records(records) => {
                        let Some(space) = own.filter(|space| space.is_running()) else { return Ok(()) };
                        let records = records?;
                        if records.iter().any(|record| record.tags.contains(&Tag::Declared(OWNERS.into()))) {
                            owners.look(&*self.store).await?;
                        }
                        self.take_in_events(&space, &records).await?;
                        self.waiters.offer_records(&space, &records);
                        *position = watch.position();
                    }
                }
            }
        }
    }

    /// Has flows go on that the log began although their commit had failed: it was on its way to a server that did not
    /// answer, or its answer was lost. Whoever sent their event was told that it failed, and it is handled all the same.
    async fn look_into_doubts(self: &Arc<Self>, space: &Arc<SpaceInner>) -> Result<()> {
        let Some(owners) = self.owners.as_ref().filter(|owners| owners.is_written()) else { return Ok(()) };
        let doubts = self.commits.doubts();
        while let Err(error) = self.commits.pass().await {
            if space.has_ended() || !matches!(error.kind(), ErrorKind::Io { .. }) {
                return Err(error);
            }
            space.env.sleep(Duration::from_millis(limits::STORE_WAIT_MS_MAX)).await;
        }
        self.store_took(space);
        for node in durable_nodes(space) {
            self.adopt(space, &node.name).await?;
        }
        owners.looked_into.store(doubts, Ordering::SeqCst);
        Ok(())
    }

    /// Claims the nodes that were made since the space started, and says what they listen to now. One that a process has
    /// which is there ends here: it is that process's.
    async fn claim_changes(self: &Arc<Self>, space: &Arc<SpaceInner>) -> Result<()> {
        let Some(owners) = &self.owners else { return Ok(()) };
        loop {
            let (mut batch, others) = owners.claims(space)?;
            let alive = self.alive(&others).await?;
            if are_there(space, &alive)? {
                let nodes = others.values().flatten().filter_map(|name| space.find(name));
                nodes.for_each(|node| {
                    space.remove(&node);
                    node.close();
                    let what = format!(
                        "node `{}` belongs to another process on the same log; name it anew",
                        node.name
                    );
                    space.problem(Error::misuse(what));
                });
                continue;
            }
            batch.documents.extend(alive.iter().map(by_hand::deletion));
            if batch.documents.is_empty() {
                return Ok(());
            }
            let claimed = self.commits.commit(batch).await;
            owners.look(&*self.store).await?;
            match claimed {
                Ok(_) => {
                    self.commits.fence(&owners.process);
                    let nodes: Vec<_> = durable_nodes(space).collect();
                    for node in nodes {
                        self.take_in_of(space, &node.name).await?;
                    }
                    return Ok(());
                }
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the events of records into those nodes of this process whose inboxes have them.
    async fn take_in_events(self: &Arc<Self>, space: &Arc<SpaceInner>, records: &[Record]) -> Result<()> {
        let every = Tag::Declared(EVERY_INBOX.into());
        let nodes: Vec<_> = durable_nodes(space).map(|node| (inbox_tag(&node.name), node)).collect();
        let mut keys: Vec<Key> = Vec::new();
        for record in records {
            let Some(Tag::Event(event)) = record.tags.iter().find(|tag| matches!(tag, Tag::Event(_))) else {
                continue;
            };
            let to_every = record.tags.contains(&every);
            let here = nodes.iter().filter(|(tag, _)| to_every || record.tags.contains(tag));
            keys.extend(here.map(|(_, node)| Key::from(format!("{INBOX}{}/{event}", escaped(&node.name)))));
        }
        if keys.is_empty() {
            return Ok(());
        }
        let found = self.store.documents(keys).await?;
        self.take_in_all(space, found.into_iter().flatten()).await
    }

    /// Takes all that waits for one node.
    async fn take_in_of(self: &Arc<Self>, space: &Arc<SpaceInner>, node: &str) -> Result<()> {
        let prefix: Key = format!("{INBOX}{}/", escaped(node)).into();
        let mut after: Option<Key> = None;
        loop {
            let list = List { prefix: Arc::clone(&prefix), after, documents_max: PAGE_RECORDS_MAX };
            let page = self.store.list(list).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(Arc::clone(&last.key));
            self.take_in_all(space, page).await?;
        }
    }

    /// Takes events out of inboxes, in this order and all at once: the flows of each begin with the commit by which it
    /// leaves.
    async fn take_in_all(
        self: &Arc<Self>,
        space: &Arc<SpaceInner>,
        kept: impl IntoIterator<Item = Document>,
    ) -> Result<()> {
        let mut taken = Vec::new();
        for document in kept.into_iter().filter(|document| document.content.is_some()) {
            match accept::out_of_inbox(space, &document) {
                Ok(accept::TakenIn { batch, flows, event }) => {
                    flows.iter().for_each(|flow| self.begun(flow));
                    taken.push((self.commits.push(batch), flows, event));
                }
                Err(error) => space.problem(accept::not_taken_in(error, &document)),
            }
        }
        let mut failed = None;
        for (ticket, flows, event) in taken {
            match self.commits.settle(ticket).await {
                Ok(_) => {
                    self.waiters.offer(space, &event);
                    flows.iter().for_each(Lanes::enter);
                }
                Err(error) => {
                    flows.iter().for_each(|flow| self.ended(flow));
                    // What somebody took before is in no inbox any more; everything else stays and is looked for again.
                    if !is_conflict(&error) {
                        failed.get_or_insert(error);
                    }
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// What is followed in the log: what has one of these tags, and what is waited for.
fn followed(mut tags: Vec<Tag>, waited_for: &[Pattern]) -> Select {
    for pattern in waited_for {
        match pattern.is_literal() {
            Some(exact) => tags.push(Tag::Type(exact.into())),
            None => return Select::All,
        }
    }
    Select::Tagged(tags)
}

impl Owners {
    /// What happens next.
    async fn hear(&self, commits: &Commits, watch: &mut dyn Watch) -> Heard {
        let mut fenced = pin!(commits.until_fenced());
        let mut changed = pin!(self.changed.notified());
        let mut doubt = pin!(commits.until_more_doubts(self.looked_into.load(Ordering::SeqCst)));
        let mut records = watch.next();
        poll_fn(|task| {
            if fenced.as_mut().poll(task).is_ready() {
                return Poll::Ready(Heard::Fenced);
            }
            if changed.as_mut().poll(task).is_ready() {
                return Poll::Ready(Heard::Changed);
            }
            if doubt.as_mut().poll(task).is_ready() {
                return Poll::Ready(Heard::Doubt);
            }
            records.as_mut().poll(task).map(Heard::Records)
        })
        .await
    }

    /// Looks up which nodes there are, and who has them.
    async fn look(&self, store: &dyn Store) -> Result<()> {
        let head = store.read(Read::forward(Select::All).at_most(0)).await?.head;
        let mut nodes = BTreeMap::new();
        let mut after: Option<Key> = None;
        loop {
            let list = List { prefix: OWNERS.into(), after, documents_max: PAGE_RECORDS_MAX };
            let page = store.list(list).await?;
            let Some(last) = page.last() else { break };
            after = Some(Arc::clone(&last.key));
            for document in &page {
                let Some(owner) = StoredOwner::of(document)? else { continue };
                let node: Arc<str> = name_of(&document.key, OWNERS).as_ref().into();
                let handles = owner.handles.iter().map(StoredPattern::to_pattern).collect();
                let process = owner.process.into();
                let owner = Owner { process, revision: document.revision, handles, stored: owner.handles };
                nodes.insert(node, owner);
            }
        }
        let own = store.documents(vec![Arc::clone(&self.process)]).await?.pop().flatten();
        let mut known = lock(&self.known);
        known.is_there = own.is_some();
        // Of two that look at once, the later look stands.
        if known.position <= head {
            known.position = head;
            known.nodes = nodes;
        }
        Ok(())
    }

    /// The batch by which this process owns its nodes and says what they listen to, and who has some of them now.
    fn claims(&self, space: &Arc<SpaceInner>) -> Result<(Batch, Others)> {
        let known = lock(&self.known);
        let mut batch = Batch::default();
        let mut others = Others::new();
        let mut nodes = durable_nodes(space).peekable();
        if !known.is_there && nodes.peek().is_some() {
            let member = space.link.get().map_or_else(String::new, |linked| linked.link.name().to_owned());
            let bytes = happen_core::state::encode(&StoredProcess { member })?.into();
            let (name, version) = (StoredProcess::NAME.into(), StoredProcess::VERSION);
            let content = Some(Content { name, version, bytes });
            batch.documents.push(Write {
                key: Arc::clone(&self.process),
                revision: 1,
                content,
                past: Past::Dropped,
                replaced: Replaced::Kept,
            });
        }
        let mut changes = Vec::new();
        for node in nodes {
            let table = node.table.load();
            let mut handles: Vec<_> =
                table.entries.iter().map(|entry| StoredPattern::of(&entry.pattern)).collect();
            handles.sort_unstable();
            handles.dedup();
            let before = known.nodes.get(&node.name);
            if let Some(owner) = before {
                if owner.process != self.process {
                    others.entry(Arc::clone(&owner.process)).or_default().push(Arc::clone(&node.name));
                } else if owner.stored == handles {
                    continue;
                }
            }
            let owner = StoredOwner { process: self.process.to_string(), handles };
            let bytes = happen_core::state::encode(&owner)?.into();
            let content = Content { name: StoredOwner::NAME.into(), version: StoredOwner::VERSION, bytes };
            let key = named(OWNERS, &node.name);
            let revision = before.map_or(0, |owner| owner.revision) + 1;
            changes.push(WireChange { key: key.to_string().into(), revision });
            batch.documents.push(Write {
                key,
                revision,
                content: Some(content),
                past: Past::Dropped,
                replaced: Replaced::Kept,
            });
        }
        if !changes.is_empty() {
            let record = WireRecord { changes, ..WireRecord::default() };
            let mut bytes = Vec::new();
            record.encode_into(&mut bytes, RECORD_BYTES_MAX)?;
            batch.records.push(NewRecord { tags: vec![Tag::Declared(OWNERS.into())], bytes: bytes.into() });
        }
        Ok((batch, others))
    }
}

/// Whether one of the processes that these documents stand for is heard beyond the link.
///
/// # Errors
///
/// When a document cannot be read.
fn are_there(space: &SpaceInner, processes: &[Document]) -> Result<bool> {
    let (Some(linked), false) = (space.link.get(), processes.is_empty()) else { return Ok(false) };
    let peers = linked.link.peers();
    for document in processes {
        let member = StoredProcess::member_in(document)?;
        if member.is_some_and(|member| peers.iter().any(|peer| peer.name == member)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The durable nodes of a space, in the order of their names.
fn durable_nodes(space: &SpaceInner) -> impl Iterator<Item = Arc<NodeInner>> + use<> {
    let mut nodes = space.all_nodes();
    nodes.retain(|node| node.is_durable());
    nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    nodes.into_iter()
}

/// The tag by which a process finds what was kept for one of its nodes.
pub(crate) fn inbox_tag(node: &str) -> Tag {
    Tag::Declared(format!("{INBOX}{}", escaped(node)).into())
}

#[cold]
fn ended() -> Error {
    Error::new(ErrorKind::Closed { what: "the space".to_owned() })
}

impl fmt::Debug for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, which knows of {} durable nodes", self.process, lock(&self.known).nodes.len())
    }
}

/// The tag of an event that is kept in more inboxes than it has tags for.
const EVERY_INBOX: &str = INBOX;

/// As many inboxes have tags of their own; the rest of a record's tags is for its events and causes.
const INBOX_TAGS_MAX: usize = RECORD_TAGS_MAX / 16;
