//! Timers: events that are to come at a time. Owns their documents, setting and cancelling them, and what is committed
//! when one is due; does not know when that is looked after.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use happen_core::codec::{WireChange, WireParcel, WireRecord};
use happen_core::env::{BoxFuture, Env};
use happen_core::limits::{PAGE_RECORDS_MAX, RECORD_BYTES_MAX};
use happen_core::store::{Batch, Document as Stored, Key, List, NewRecord, Read, Select, Tag};
use happen_core::{ErasedEvent, Error, ErrorKind, EventId, Result, State};
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::Durable;
use super::accept::recipients;
use super::document::{Document, is_conflict};
use super::flow::StoredFlow;
use super::keys::{KEYED_TIMERS, TIMERS, name_of, named};
use super::outside::{self, Pending};
use super::record::{Done, tags_of};
use super::stage::{Stage, Whereto};
use crate::config::Delivery;
use crate::dispatch;
use crate::limits;
use crate::route::Among;
use crate::space::SpaceInner;
use crate::wire::Framed;

/// A timer that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    key: Option<String>,
    event: EventId,
    stored: StoredTimer,
}

/// What the document of a timer says. One without a frame stands for none.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredTimer {
    pub(super) to: String,
    pub(super) due_unix_ms: u64,
    pub(super) event_type: String,
    pub(super) frame: Blob,
}

/// Bytes within a document.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Blob(pub(crate) Arc<[u8]>);

impl State for StoredTimer {
    const NAME: &'static str = "timer";
    const VERSION: u32 = 1;
}

impl Timer {
    /// The key that it was given.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The id that its event has.
    #[must_use]
    pub fn event_id(&self) -> EventId {
        self.event
    }

    /// The type of its event.
    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.stored.event_type
    }

    /// The id of the node that its event goes to.
    #[must_use]
    pub fn node_id(&self) -> &str {
        &self.stored.to
    }

    /// When it is due, in milliseconds since 1970.
    #[must_use]
    pub fn due_unix_ms(&self) -> u64 {
        self.stored.due_unix_ms
    }
}

impl StoredTimer {
    /// A timer for an event, whose envelope says when it is due.
    pub(crate) fn new(to: &str, event: &dyn ErasedEvent, framed: Framed) -> Self {
        Self {
            to: to.to_owned(),
            due_unix_ms: event.envelope().at_unix_ms,
            event_type: event.envelope().event_type.as_str().to_owned(),
            frame: Blob(framed.frame.into()),
        }
    }

    fn is_none(&self) -> bool {
        self.frame.0.is_empty()
    }
}

impl Durable {
    fn timer(&self, key: &Key) -> Result<Arc<Document<StoredTimer>>> {
        self.documents.passing(key, StoredTimer::is_none)
    }

    /// Has the agenda know what a timer says now; where that is not known, that it has to be looked at.
    fn note_timer(&self, document: &Document<StoredTimer>) {
        let due = match document.known() {
            Some(known) if known.value.is_none() => None,
            Some(known) => Some(known.value.due_unix_ms),
            None => Some(0),
        };
        self.agenda.set(document.key(), due);
    }
}

/// The document of a timer: by the key that its user chose, or by its event.
pub(crate) fn key_of(chosen: Option<&str>, event: EventId) -> Key {
    match chosen {
        Some(chosen) => named(KEYED_TIMERS, chosen),
        None => format!("{TIMERS}{event}").into(),
    }
}

/// Sets a timer with the commit of a step.
///
/// # Errors
///
/// As [`Stage::with`], and when its document cannot be read.
pub(crate) fn stage(stage: &Stage, key: &Key, timer: StoredTimer) -> Result<()> {
    let durable = Arc::clone(stage.durable_flow().durable());
    let document = durable.timer(key)?;
    stage.stage(key, &document, |staging| staging.change(Box::new(move |_, _| Ok(timer.clone()))))?;
    stage.afterwards(move || durable.note_timer(&document))
}

/// Takes a timer back with the commit of a step. False when the step sees none.
///
/// # Errors
///
/// As [`stage`].
pub(crate) fn cancel_staged(stage: &Stage, chosen: &str) -> Result<bool> {
    let key = named(KEYED_TIMERS, chosen);
    let document = stage.durable_flow().durable().timer(&key)?;
    let is_there = stage.stage(&key, &document, |staging| {
        // Exactly what was seen: when it is due before the commit, the step is run again and sees none.
        staging.expect_base();
        Ok(!staging.view().is_none())
    })?;
    if is_there {
        self::stage(stage, &key, StoredTimer::default())?;
    }
    Ok(is_there)
}

/// Sets a timer by a commit of its own.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn set(durable: &Arc<Durable>, key: &Key, timer: StoredTimer) -> Result<()> {
    let document = durable.timer(key)?;
    let change = move |_: StoredTimer| Ok(timer.clone());
    let set = outside::change(durable, &document, None, change, |_, _| Ok(())).await;
    // Also when it failed: it may be set all the same.
    durable.note_timer(&document);
    set
}

/// Takes a timer back by a commit of its own. False when there is none.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn cancel(durable: &Arc<Durable>, env: &Arc<dyn Env>, chosen: &str) -> Result<bool> {
    let document = durable.timer(&named(KEYED_TIMERS, chosen))?;
    for tries in 0..=limits::COMMIT_TRIES_MAX {
        let found = document.read().await?;
        if found.value.is_none() {
            return Ok(false);
        }
        // Exactly the one that was seen: whether this call took it back or it was due is not left open.
        let at = Some(found.revision);
        let cancelled =
            outside::change(durable, &document, at, |_| Ok(StoredTimer::default()), |_, _| Ok(())).await;
        durable.note_timer(&document);
        match cancelled {
            Ok(()) => return Ok(true),
            Err(error) if is_conflict(&error) => {
                // Somebody's commit is on its way, and what became of it is looked at then.
                let wait = (limits::STORE_WAIT_MS << tries.min(16)).min(limits::STORE_WAIT_MS_MAX);
                env.sleep(Duration::from_millis(wait)).await;
            }
            Err(error) => return Err(error),
        }
    }
    Err(busy(document.key()))
}

/// All timers that are set, by when they are due.
///
/// # Errors
///
/// What the store says, and a document that cannot be read.
pub(crate) async fn list(durable: &Durable) -> Result<Vec<Timer>> {
    let mut all = Vec::new();
    let mut after: Option<Key> = None;
    loop {
        let list = List { prefix: TIMERS.into(), after: after.take(), documents_max: PAGE_RECORDS_MAX };
        let page = durable.store.list(list).await?;
        let Some(last) = page.last() else { break };
        after = Some(Arc::clone(&last.key));
        for document in &page {
            all.extend(decode(document)?);
        }
    }
    all.sort_by_key(|timer| (timer.stored.due_unix_ms, timer.event));
    Ok(all)
}

fn decode(document: &Stored) -> Result<Option<Timer>> {
    let Some(content) = &document.content else { return Ok(None) };
    let timer = (|| {
        let stored: StoredTimer = happen_core::state::decode_document(content.version, &content.bytes)?;
        let parcel = WireParcel::decode(&stored.frame.0, RECORD_BYTES_MAX)?;
        let event = parcel.events().first().map_or(EventId::MIN, |event| event.id);
        let is_keyed = document.key.starts_with(KEYED_TIMERS);
        let key = is_keyed.then(|| name_of(&document.key, KEYED_TIMERS).into_owned());
        Ok(Timer { key, event, stored })
    })();
    timer.map(Some).map_err(|error: Error| error.context(format!("document `{}`", document.key)))
}

#[cold]
fn busy(key: &str) -> Error {
    Error::new(ErrorKind::Conflict {
        what: format!("document `{key}` was changed by others again and again"),
    })
}

/// A timer that is due, on its way: its document goes and its event is accepted, both or neither.
pub(super) struct Firing {
    document: Arc<Document<StoredTimer>>,
    event: EventId,
    done: Done,
    pending: Pending<StoredTimer>,
}

/// Hands on the commit of a timer that is due, behind those of all that were due before; nothing when it is none any more.
///
/// # Errors
///
/// What the store says, what keeps the node from the event, and what cannot be read; the timer is due still.
pub(super) async fn begin(
    space: &Arc<SpaceInner>,
    durable: &Arc<Durable>,
    key: &Key,
) -> Result<Option<Firing>> {
    let document = durable.timer(key)?;
    let found = document.read().await?;
    let timer = &found.value;
    if timer.is_none() {
        return Ok(None);
    }
    if timer.due_unix_ms > space.env.unix_ms() {
        durable.agenda.set(key, Some(timer.due_unix_ms));
        return Ok(None);
    }
    let arriving = arriving(space, &timer.to, &timer.frame.0)?;
    check_taken(space, &*arriving.event, &arriving.to)?;
    durable.register(&arriving.to).await?;
    let event = arriving.event.envelope().id;
    let mut done = Done::default();
    let add = |batch: &mut Batch, change: WireChange<'_>| {
        done = add_acceptance(space, batch, Some(change), &arriving)?;
        done.begun.iter().for_each(|flow| durable.begun(flow));
        Ok(())
    };
    let gone = |_| Ok(StoredTimer::default());
    match outside::hand_on(durable, &document, Some(found.revision), gone, add).await {
        Ok(pending) => Ok(Some(Firing { document, event, done, pending })),
        Err(error) => {
            done.begun.iter().for_each(|flow| durable.ended(flow));
            look_again(space, durable, key, error).map(|()| None)
        }
    }
}

/// Waits for such a commit, and lets the flows begin.
///
/// # Errors
///
/// What the store says; the timer is due still.
pub(super) async fn finish(space: &Arc<SpaceInner>, durable: &Arc<Durable>, firing: Firing) -> Result<()> {
    let Firing { document, event, done, pending } = firing;
    let committed = pending.settle(durable).await;
    match conclude(space, durable, event, done, committed).await {
        Ok(()) => {
            durable.note_timer(&document);
            Ok(())
        }
        Err(error) => look_again(space, durable, document.key(), error),
    }
}

/// A step is about to set the timer anew or to take it back, when there is a conflict. What it did is looked at then, and
/// at the latest here.
fn look_again(space: &SpaceInner, durable: &Durable, key: &Key, error: Error) -> Result<()> {
    if !is_conflict(&error) {
        return Err(error);
    }
    durable.agenda.set(key, Some(space.env.unix_ms() + limits::STORE_WAIT_MS));
    Ok(())
}

/// An event on its way to a node, with its bytes.
pub(super) struct Arriving {
    pub(super) event: Arc<dyn ErasedEvent>,
    pub(super) framed: Framed,
    pub(super) to: Whereto,
}

fn arriving(space: &Arc<SpaceInner>, to: &str, frame: &[u8]) -> Result<Arriving> {
    let parcel = WireParcel::decode(frame, RECORD_BYTES_MAX)?;
    let hashes = parcel.events().iter().filter_map(|event| Some((event.id, event.hash?))).collect();
    let event = space.event_in(&parcel)?;
    let framed = Framed { frame: frame.to_vec(), hashes };
    let sender = parcel.events().first().map_or("", |event| &event.sender);
    let to = space.behind_routers(to, &*event, Among::Everywhere)?;
    let to = whereto_by(space, &to, delivery_of(space, sender))?;
    Ok(Arriving { event, framed, to })
}

/// How surely what a node sends arrives beyond the link.
fn delivery_of(space: &SpaceInner, sender: &str) -> Delivery {
    match space.find(sender) {
        Some(node) => node.table.load().options.delivery,
        None => space.config.options_for(sender).delivery,
    }
}

pub(crate) fn whereto(space: &Arc<SpaceInner>, to: &str) -> Result<Whereto> {
    whereto_by(space, to, space.config.node_defaults.delivery)
}

fn whereto_by(space: &Arc<SpaceInner>, to: &str, delivery: Delivery) -> Result<Whereto> {
    match space.find(to) {
        // It is looked for again when the event leaves.
        Some(node) if node.is_shared() => Ok(Whereto::Away(to.into())),
        Some(node) => Ok(Whereto::Node(node)),
        None => Whereto::elsewhere(space, delivery, to)
            .ok_or_else(|| Error::new(ErrorKind::NoSuchNode { node: to.to_owned() })),
    }
}

/// What keeps a node from an event that is due is told before anything is committed.
pub(super) fn check_taken(space: &SpaceInner, event: &dyn ErasedEvent, to: &Whereto) -> Result<()> {
    let node = match (to, &space.durable) {
        (Whereto::Node(node), _) => node,
        (Whereto::Waits(_), Some(durable)) => {
            return durable.outboxes.reserve(&space.config.outbox).map(drop);
        }
        _ => return Ok(()),
    };
    debug_assert_eq!(node.space.id, space.id, "a name is looked up in its space");
    let table = node.table.load();
    let mut uncached = None;
    dispatch::admissible(node, &table, event, &mut uncached).map_err(|error| error.at_node(&node.name))?;
    if node.is_durable() { super::check_room(node, &table).map(drop) } else { Ok(()) }
}

/// Commits a change of a document together with the acceptance of an event, and lets its flows begin.
///
/// # Errors
///
/// As [`outside::change`]. A commit that was made although the store said otherwise counts as made.
pub(super) async fn accept_with<S: State>(
    space: &Arc<SpaceInner>,
    durable: &Arc<Durable>,
    document: &Arc<Document<S>>,
    at: Option<u64>,
    change: impl Fn(S) -> Result<S> + Send + Sync + 'static,
    arriving: &Arriving,
) -> Result<()> {
    durable.register(&arriving.to).await?;
    let id = arriving.event.envelope().id;
    let mut done = Done::default();
    let committed = outside::change(durable, document, at, change, |batch, change| {
        done = add_acceptance(space, batch, Some(change), arriving)?;
        done.begun.iter().for_each(|flow| durable.begun(flow));
        Ok(())
    })
    .await;
    conclude(space, durable, id, done, committed).await
}

/// Commits the acceptance of an event by itself.
///
/// # Errors
///
/// As [`accept_with`].
pub(super) async fn accept(
    space: &Arc<SpaceInner>,
    durable: &Arc<Durable>,
    arriving: &Arriving,
) -> Result<()> {
    durable.register(&arriving.to).await?;
    let mut batch = Batch::default();
    let done = add_acceptance(space, &mut batch, None, arriving)?;
    done.begun.iter().for_each(|flow| durable.begun(flow));
    let committed = durable.commits.commit(batch).await.map(drop);
    conclude(space, durable, arriving.event.envelope().id, done, committed).await
}

/// Lets flows begin whose acceptance was committed.
async fn conclude(
    space: &Arc<SpaceInner>,
    durable: &Arc<Durable>,
    event: EventId,
    done: Done,
    committed: Result<()>,
) -> Result<()> {
    if let Err(error) = committed {
        let is_open = matches!(error.kind(), ErrorKind::Io { .. });
        let look = || -> BoxFuture<'_, _> { Box::pin(is_recorded(durable, event)) };
        if !is_open || !durable.found_out(space, look).await? {
            done.begun.iter().for_each(|flow| durable.ended(flow));
            return Err(error);
        }
    }
    durable.release(space, done);
    Ok(())
}

/// Adds to a batch that an event is accepted.
fn add_acceptance(
    space: &Arc<SpaceInner>,
    batch: &mut Batch,
    change: Option<WireChange<'_>>,
    arriving: &Arriving,
) -> Result<Done> {
    let Arriving { event, framed, to } = arriving;
    let begun = recipients(space, event, to)?;
    let record = WireRecord {
        event: (&*framed.frame).into(),
        accepted: begun.iter().map(|flow| flow.wire_flow()).collect(),
        changes: change.into_iter().collect(),
        ..WireRecord::default()
    };
    let mut bytes = Vec::new();
    record.encode_into(&mut bytes, RECORD_BYTES_MAX)?;
    let mut record = NewRecord { tags: tags_of(space, &**event)?, bytes: bytes.into() };
    if let Some(durable) = &space.durable {
        durable.inboxes(&**event, framed, to).add_to(&mut record, &mut batch.documents);
    }
    batch.records.push(record);
    for flow in &begun {
        set_framed(flow, framed);
        batch.documents.push(flow.first_write()?);
    }
    let mut done = Done { begun, leaving: vec![(Arc::clone(event), to.clone())], ..Done::default() };
    done.keeps(to, framed);
    Ok(done)
}

fn set_framed(flow: &StoredFlow, framed: &Framed) {
    flow.set_framed(Framed { frame: framed.frame.clone(), hashes: framed.hashes.clone() });
}

/// Whether the log has an event.
pub(super) async fn is_recorded(durable: &Durable, event: EventId) -> Result<bool> {
    let select = Select::tag(Tag::Event(event));
    let page = durable.store.read(Read::forward(select).at_most(1)).await?;
    Ok(!page.records.is_empty())
}

/// The node that a timer's event goes to.
///
/// # Errors
///
/// When it cannot be read.
pub(super) fn node_of(stored: &Stored) -> Result<Option<String>> {
    let Some(content) = &stored.content else { return Ok(None) };
    let timer: StoredTimer = happen_core::state::decode_document(content.version, &content.bytes)
        .map_err(|error| error.context(format!("document `{}`", stored.key)))?;
    Ok(Some(timer.to))
}

/// Notes a timer that an earlier process set; tells when it fits no node.
///
/// # Errors
///
/// When it cannot be read.
pub(super) fn recover(space: &Arc<SpaceInner>, durable: &Durable, stored: &Stored) -> Result<Option<String>> {
    let Some(content) = &stored.content else { return Ok(None) };
    let timer: StoredTimer = happen_core::state::decode_document(content.version, &content.bytes)
        .map_err(|error| error.context(format!("document `{}`", stored.key)))?;
    durable.agenda.set(&stored.key, Some(timer.due_unix_ms));
    Ok(unfit(space, &timer.to, &timer.event_type).map(|why| format!("`{}` {why}", stored.key)))
}

/// Why an event that is to come would not be taken by the nodes of this program.
pub(super) fn unfit(space: &Arc<SpaceInner>, to: &str, event_type: &str) -> Option<String> {
    match whereto(space, to) {
        Err(_) => Some(format!("waits for node `{to}`, which is not there")),
        Ok(Whereto::Node(node)) => {
            let table = node.table.load();
            let mut uncached = None;
            let route = table.route(&happen_core::EventType::new(event_type), &mut uncached);
            let is_taken = !route.entries.is_empty();
            (!is_taken).then(|| format!("waits for node `{to}`, which does not handle `{event_type}`"))
        }
        Ok(_) => None,
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.into()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}
