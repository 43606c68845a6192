//! Timers: events that are to come at a time. Owns their documents, setting and cancelling them, and what is committed
//! when one is due; does not know when that is looked after.

use std::fmt;
use std::sync::Arc;

use happen_core::codec::{WireChange, WireParcel, WireRecord};
use happen_core::env::BoxFuture;
use happen_core::limits::RECORD_BYTES_MAX;
use happen_core::store::{Batch, Document as Stored, Key, NewRecord, Read, Select, Tag};
use happen_core::{ErasedEvent, Error, ErrorKind, EventId, Result, State};
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::Durable;
use super::accept::recipients;
use super::document::Document;
use super::flow::StoredFlow;
use super::keys::{KEYED_TIMERS, TIMERS, named};
use super::outside;
use super::record::{Done, tags_of};
use super::stage::{Stage, Whereto};
use crate::dispatch;
use crate::limits;
use crate::space::SpaceInner;
use crate::wire::Framed;

/// What the document of a timer says. One without a frame stands for none.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
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
    if stage.read(&key, &document, StoredTimer::is_none)? {
        return Ok(false);
    }
    self::stage(stage, &key, StoredTimer::default())?;
    Ok(true)
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
pub(crate) async fn cancel(durable: &Arc<Durable>, chosen: &str) -> Result<bool> {
    let document = durable.timer(&named(KEYED_TIMERS, chosen))?;
    for _ in 0..limits::COMMIT_TRIES_MAX {
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
            Err(error) if super::document::is_conflict(&error) => crate::space::yield_now().await,
            Err(error) => return Err(error),
        }
    }
    Err(busy(document.key()))
}

#[cold]
fn busy(key: &str) -> Error {
    Error::new(ErrorKind::Conflict {
        what: format!("document `{key}` was changed by others again and again"),
    })
}

/// Commits that a timer was due: its document goes and its event is accepted, both or neither.
///
/// # Errors
///
/// What the store says, what keeps the node from the event, and what cannot be read; the timer is due still.
pub(super) async fn fire(space: &Arc<SpaceInner>, durable: &Arc<Durable>, key: &Key) -> Result<()> {
    let document = durable.timer(key)?;
    let found = document.read().await?;
    let timer = &found.value;
    if timer.is_none() {
        return Ok(());
    }
    if timer.due_unix_ms > space.env.unix_ms() {
        durable.agenda.set(key, Some(timer.due_unix_ms));
        return Ok(());
    }
    let arriving = arriving(space, &timer.to, &timer.frame.0)?;
    check_taken(space, &*arriving.event, &arriving.to)?;
    let at = Some(found.revision);
    let fired = accept_with(space, durable, &document, at, |_| Ok(StoredTimer::default()), &arriving).await;
    match fired {
        Err(error) if super::document::is_conflict(&error) => {
            // A step is about to set it anew or to take it back; what it did is looked at then, and at the latest here.
            durable.agenda.set(key, Some(space.env.unix_ms() + limits::STORE_WAIT_MS));
            Ok(())
        }
        fired => fired.inspect(|()| durable.note_timer(&document)),
    }
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
    Ok(Arriving { event, framed, to: whereto(space, to)? })
}

pub(crate) fn whereto(space: &Arc<SpaceInner>, to: &str) -> Result<Whereto> {
    match space.find(to) {
        Some(node) => Ok(Whereto::Node(node)),
        None if space.link.get().is_some() => Ok(Whereto::Away(to.into())),
        None => Err(Error::new(ErrorKind::NoSuchNode { node: to.to_owned() })),
    }
}

/// What keeps a node from an event that is due is told before anything is committed.
pub(super) fn check_taken(space: &SpaceInner, event: &dyn ErasedEvent, to: &Whereto) -> Result<()> {
    let Whereto::Node(node) = to else { return Ok(()) };
    debug_assert_eq!(node.space.id, space.id, "a name is looked up in its space");
    let table = node.table.load();
    let mut uncached = None;
    dispatch::admissible(node, &table, event, &mut uncached).map_err(|error| error.at_node(&node.name))?;
    if node.is_durable() { super::check_room(node, &table) } else { Ok(()) }
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
    batch.records.push(NewRecord { tags: tags_of(space, &**event)?, bytes: bytes.into() });
    for flow in &begun {
        set_framed(flow, framed);
        batch.documents.push(flow.first_write()?);
    }
    Ok(Done { begun, leaving: vec![(Arc::clone(event), to.clone())] })
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
