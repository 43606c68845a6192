//! What people do to flows by hand, as batches: cancel one, try one now, drive a dead letter again, as it was or with
//! another payload, or drop it, and keep an event for later. Owns what such a batch consists of; needs a store and no
//! space, so it is the same for a space that runs and for one that does not.

use std::borrow::Cow;
use std::sync::Arc;

use happen_core::codec::{
    CauseLink, Outcome, StepOutcome, WireChange, WireError, WireEvent, WireFlow, WireParcel, WirePath,
    WireRecord, WireReply, WireStep,
};
use happen_core::env::Env;
use happen_core::event::Purpose;
use happen_core::hash::hash_event;
use happen_core::id::IdBlock;
use happen_core::limits::{DOCUMENT_BYTES_MAX, EVENT_BYTES_MAX, PAGE_RECORDS_MAX, RECORD_BYTES_MAX};
use happen_core::payload::ErasedPayload;
use happen_core::store::{
    Batch, Content, Document, Key, List, NewRecord, Past, Read, Record, Replaced, Select, Store, Tag, Write,
};
use happen_core::{Error, ErrorKind, EventId, Result};
use serde_json::Value as Json;

use super::keys::{DEAD, FLOWS, FlowKey, INBOX};
use crate::keys::escaped;

/// A batch, and the document of the flow that begins with it.
pub(crate) struct Begins {
    pub(crate) batch: Batch,
    /// As it is once the batch is committed, but for its position.
    pub(crate) flow: Document,
    /// The event that it handles.
    pub(crate) event: EventId,
}

/// An event that comes from outside.
pub(crate) struct Incoming<'i> {
    pub(crate) node: &'i str,
    pub(crate) event_type: &'i str,
    pub(crate) payload: &'i Json,
    pub(crate) correlation: Option<&'i str>,
}

/// A page of the documents of flows, or of dead letters, behind a key: those that are wanted, and where to go on.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn page_of(
    store: &Arc<dyn Store>,
    prefix: &str,
    node: Option<&str>,
    after: Option<Key>,
) -> Result<(Vec<Document>, Option<Key>)> {
    let prefix = match node {
        Some(node) => format!("{prefix}{}/", escaped(node)),
        None => prefix.to_owned(),
    };
    let list = List { prefix: prefix.into(), after, documents_max: PAGE_RECORDS_MAX };
    let page = store.list(list).await?;
    let next = page.last().map(|last| Arc::clone(&last.key));
    Ok((page, next))
}

/// The documents under a prefix that are about an event.
///
/// # Errors
///
/// What the store says.
///
/// # Cost
///
/// Lists all documents of the node, or of all nodes.
pub(crate) async fn documents_of(
    store: &Arc<dyn Store>,
    prefix: &str,
    event: EventId,
    node: Option<&str>,
) -> Result<Vec<Document>> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let (page, next) = page_of(store, prefix, node, after).await?;
        let wanted =
            |document: &Document| FlowKey::of(&document.key, prefix).is_some_and(|name| name.event == event);
        found.extend(page.into_iter().filter(wanted));
        match next {
            Some(next) => after = Some(next),
            None => return Ok(found),
        }
    }
}

/// The step in the document of a flow or of a dead letter.
///
/// # Errors
///
/// [`ErrorKind::Damaged`] when there is none.
pub(crate) fn step_in(document: &Document) -> Result<WireStep<'_>> {
    let damaged = || {
        let what = format!("document `{}` in revision {} is no flow", document.key, document.revision);
        Error::new(ErrorKind::Damaged { what })
    };
    let content = document.content.as_ref().ok_or_else(damaged)?;
    let record = WireRecord::decode(&content.bytes, RECORD_BYTES_MAX)
        .map_err(|error| damaged().with_source(error.into_std()))?;
    record.step.ok_or_else(damaged)
}

/// The record that has an event, which is the first that tells of it.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] when the log has none; what the store says.
pub(crate) async fn record_of(store: &Arc<dyn Store>, event: EventId) -> Result<Record> {
    let read = Read::forward(Select::tag(Tag::Event(event))).at_most(EVENT_RECORDS);
    for record in store.read(read).await?.records {
        if !WireRecord::decode(&record.bytes, RECORD_BYTES_MAX)?.event.is_empty() {
            return Ok(record);
        }
    }
    let what = format!("event {event}, which is not in the log any more");
    Err(Error::new(ErrorKind::NotFound { what }).at_event(event))
}

/// The tags by which a further record of the same event is found.
fn tags_of(record: &Record, node: &str) -> Vec<Tag> {
    let is_own = |tag: &&Tag| !matches!(tag, Tag::Node(_) | Tag::Declared(_));
    let mut tags: Vec<_> = record.tags.iter().filter(is_own).cloned().collect();
    tags.push(Tag::Node(node.into()));
    tags
}

/// A flow that ends here and now.
///
/// # Errors
///
/// What [`step_in`] and [`record_of`] give.
pub(crate) async fn cancelled(store: &Arc<dyn Store>, flow: &Document) -> Result<Batch> {
    let mut step = step_in(flow)?;
    let node = step.flow.node.clone().into_owned();
    let error = Error::new(ErrorKind::Cancelled).at_event(step.event).at_node(&node);
    let mut frame = Vec::new();
    WireReply::new(step.event, Outcome::Error(WireError::of(&error)))
        .encode_into(&mut frame, EVENT_BYTES_MAX)?;
    step.outcome = StepOutcome::Failed(frame.into());
    step.due_unix_ms = 0;
    let tags = tags_of(&record_of(store, step.event).await?, &node);
    let record = WireRecord { step: Some(step), ..WireRecord::default() };
    Ok(Batch {
        records: vec![NewRecord { tags, bytes: encoded(&record, RECORD_BYTES_MAX)? }],
        documents: vec![deletion(flow)],
        conditions: Vec::new(),
    })
}

/// A flow whose next attempt is due now; `None` when it does not wait for one.
///
/// # Errors
///
/// What [`step_in`] gives.
pub(crate) fn tried_now(flow: &Document, now_unix_ms: u64) -> Result<Option<Batch>> {
    let mut step = step_in(flow)?;
    let StepOutcome::Retry { due_unix_ms, .. } = &mut step.outcome else { return Ok(None) };
    *due_unix_ms = now_unix_ms.min(*due_unix_ms);
    let record = WireRecord { step: Some(step), ..WireRecord::default() };
    let content = flow_content(encoded(&record, DOCUMENT_BYTES_MAX)?);
    let write = Write {
        key: Arc::clone(&flow.key),
        revision: flow.revision + 1,
        content: Some(content),
        past: Past::Dropped,
        replaced: Replaced::Kept,
    };
    Ok(Some(Batch { documents: vec![write], ..Batch::default() }))
}

/// A dead letter that begins anew: at the step that failed, with its first attempt and nothing known of what it had waited
/// for.
///
/// # Errors
///
/// What [`step_in`] and [`record_of`] give.
pub(crate) async fn redriven(store: &Arc<dyn Store>, letter: &Document, now_unix_ms: u64) -> Result<Begins> {
    let name = name_of(letter)?;
    let mut step = step_in(letter)?;
    step.outcome = StepOutcome::Waits;
    step.due_unix_ms = 0;
    step.attempt = 1;
    step.points = Vec::new();
    step.at_unix_ms = now_unix_ms;
    let key = name.key(FLOWS);
    let revision = store.document(&key).await?.map_or(0, |document| document.revision) + 1;
    let tags = tags_of(&record_of(store, name.event).await?, &name.node);
    let bytes = encoded(&WireRecord { step: Some(step), ..WireRecord::default() }, DOCUMENT_BYTES_MAX)?;
    let (begins, flow) = begins(&key, revision, letter, Arc::clone(&bytes));
    let batch = Batch {
        records: vec![NewRecord { tags, bytes }],
        documents: vec![deletion(letter), begins],
        conditions: Vec::new(),
    };
    Ok(Begins { batch, flow, event: name.event })
}

/// A dead letter whose event is handled anew with another payload: as an event of its own, caused by the one that failed,
/// at the first step of the same registration.
///
/// # Errors
///
/// [`ErrorKind::Misuse`] when it was handled together with others as one batch; what [`record_of`] gives; and
/// [`ErrorKind::Oversized`].
pub(crate) async fn edited(
    store: &Arc<dyn Store>,
    env: &Arc<dyn Env>,
    letter: &Document,
    payload: &Json,
) -> Result<Begins> {
    let name = name_of(letter)?;
    let record = record_of(store, name.event).await?;
    let wire = WireRecord::decode(&record.bytes, RECORD_BYTES_MAX)?;
    let parcel = WireParcel::decode(&wire.event, RECORD_BYTES_MAX)?;
    let WireParcel::One(failed) = &parcel else {
        return Err(Error::misuse(
            "the event was sent with others as one batch, so it cannot be given another payload alone; send a new one",
        )
        .at_event(name.event));
    };
    let mut bytes = Vec::new();
    payload.encode(&mut bytes)?;
    let now_unix_ms = env.unix_ms();
    let event = EventId::derived(now_unix_ms, name.event, 0, env.random_u64());
    let hash = failed.hash.unwrap_or_else(|| hash_event(failed));
    let mut again = WireEvent::clone(failed);
    again.id = event;
    again.at_unix_ms = now_unix_ms;
    again.cause = Some(CauseLink::Known { id: failed.id, hash });
    again.more_causes = Vec::new();
    again.depth = failed.depth.saturating_add(1);
    again.sender = Cow::Borrowed("");
    again.path = WirePath::default();
    again.deadline_unix_ms = 0;
    again.purpose = Purpose::Send;
    again.payload = &bytes;
    again.hash = Some(hash_event(&again));
    let mut frame = Vec::new();
    again.encode_into(&mut frame, EVENT_BYTES_MAX)?;

    let is_own = |tag: &&Tag| matches!(tag, Tag::Correlation(_) | Tag::Type(_));
    let mut tags = vec![Tag::Event(event), Tag::Cause(failed.id)];
    tags.extend(record.tags.iter().filter(is_own).cloned());
    let flow = WireFlow { node: name.node.clone(), registration: name.registration.clone() };
    let first = WireRecord { event: frame.into(), accepted: vec![flow], ..WireRecord::default() };
    let mut step =
        WireStep::new(event, &name.node, &name.registration, &name.registration, StepOutcome::Waits);
    step.at_unix_ms = now_unix_ms;
    let form = encoded(&WireRecord { step: Some(step), ..WireRecord::default() }, DOCUMENT_BYTES_MAX)?;
    let key = FlowKey { event, ..name.clone() }.key(FLOWS);
    let (begins, flow) = begins(&key, 1, letter, form);
    let batch = Batch {
        records: vec![NewRecord { tags, bytes: encoded(&first, RECORD_BYTES_MAX)? }],
        documents: vec![deletion(letter), begins],
        conditions: Vec::new(),
    };
    Ok(Begins { batch, flow, event })
}

/// A dead letter that is given up, with a record that says so.
///
/// # Errors
///
/// What the key or the record cannot say.
pub(crate) fn dropped(letter: &Document) -> Result<Batch> {
    let name = name_of(letter)?;
    changed(&name.node, deletion(letter))
}

/// A document that is written by hand, with a record that says so.
///
/// # Errors
///
/// When the record is too large, which one change is not.
pub(crate) fn changed(node: &str, write: Write) -> Result<Batch> {
    let changes = vec![WireChange { key: write.key.to_string().into(), revision: write.revision }];
    let record = WireRecord { changes, ..WireRecord::default() };
    let bytes = encoded(&record, RECORD_BYTES_MAX)?;
    Ok(Batch {
        records: vec![NewRecord { tags: vec![Tag::Node(node.into())], bytes }],
        documents: vec![write],
        conditions: Vec::new(),
    })
}

/// An event that is kept until the next process takes it. A process that follows the log finds it by the record with the
/// tag of its node's inbox.
///
/// # Errors
///
/// [`ErrorKind::Oversized`].
pub(crate) fn kept(
    env: &Arc<dyn Env>,
    incoming: &Incoming<'_>,
    inbox: Option<Tag>,
) -> Result<(EventId, Batch)> {
    let mut payload = Vec::new();
    incoming.payload.encode(&mut payload)?;
    let now_unix_ms = env.unix_ms();
    let id = IdBlock::new(env.random_u64()).next_id(now_unix_ms);
    let mut event = WireEvent::new(id, incoming.event_type, now_unix_ms, &payload);
    event.correlation = incoming.correlation.map(Cow::Borrowed);
    event.hash = Some(hash_event(&event));
    let mut frame = Vec::new();
    event.encode_into(&mut frame, EVENT_BYTES_MAX)?;
    let mut records = Vec::new();
    if let Some(inbox) = inbox {
        let correlation = incoming.correlation.map_or_else(|| id.to_string().into(), Arc::from);
        let tags =
            vec![Tag::Event(id), Tag::Correlation(correlation), Tag::Type(incoming.event_type.into()), inbox];
        let record = WireRecord { event: Cow::Borrowed(&frame), ..WireRecord::default() };
        records.push(NewRecord { tags, bytes: encoded(&record, RECORD_BYTES_MAX)? });
    }
    let key = format!("{INBOX}{}/{id}", escaped(incoming.node)).into();
    let content = Content { name: "inbox".into(), version: 1, bytes: frame.into() };
    let write =
        Write { key, revision: 1, content: Some(content), past: Past::Dropped, replaced: Replaced::Kept };
    Ok((id, Batch { records, documents: vec![write], conditions: Vec::new() }))
}

fn name_of(letter: &Document) -> Result<FlowKey<'_>> {
    FlowKey::of(&letter.key, DEAD).ok_or_else(|| {
        let what = format!("document `{}`, whose key names no flow", letter.key);
        Error::new(ErrorKind::Damaged { what })
    })
}

/// The end of a document that keeps no past.
pub(super) fn deletion(document: &Document) -> Write {
    Write {
        key: Arc::clone(&document.key),
        revision: document.revision + 1,
        content: None,
        past: Past::Dropped,
        replaced: Replaced::Kept,
    }
}

/// The document of a flow that begins instead of a letter.
fn begins(key: &Key, revision: u64, letter: &Document, bytes: Arc<[u8]>) -> (Write, Document) {
    let content = Some(flow_content(bytes));
    let flow =
        Document { key: Arc::clone(key), revision, content: content.clone(), ..Document::clone(letter) };
    (Write { key: Arc::clone(key), revision, content, past: Past::Dropped, replaced: Replaced::Kept }, flow)
}

fn flow_content(bytes: Arc<[u8]>) -> Content {
    Content { name: "flow".into(), version: 1, bytes }
}

fn encoded(record: &WireRecord<'_>, bytes_max: usize) -> Result<Arc<[u8]>> {
    let mut bytes = Vec::new();
    record.encode_into(&mut bytes, bytes_max)?;
    Ok(bytes.into())
}

/// Records of an event that are looked through for the one that has it, which is the first.
const EVENT_RECORDS: usize = 8;
