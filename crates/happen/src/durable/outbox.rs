//! What waits here for nodes of other processes until they have taken it in: how much, since when, and how far each of them
//! is. Owns the documents that say so and the limits of it all; how it is handed over is in `courier.rs`.
//!
//! An event that waits is a record of the log with the tag of its node, put there by the commit that sends it. A document
//! for each node says up to which position the node has everything, so what waits is what stands behind it, in its order.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use happen_core::codec::WireRecord;
use happen_core::limits::{PAGE_RECORDS_MAX, RECORD_BYTES_MAX};
use happen_core::store::{
    Batch, Content, Document, Key, List, NewRecord, Past, Position, Read, Replaced, Select, Start, Store,
    Tag, Write,
};
use happen_core::{Error, ErrorKind, EventId, Result};
use tokio::sync::Notify;

use super::document::is_conflict;
use super::keys::{OUTBOX, REFUSED, name_of, named};
use super::stage::Whereto;
use super::{Durable, by_hand};
use crate::config::OutboxLimits;
use crate::keys::{escaped, plain};
use crate::space::SpaceInner;
use crate::sync::{Mutex, lock};

/// What waits in a space for one node of another process.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outbox {
    /// The node's id.
    pub node: String,
    /// Events that wait; a batch counts as one.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Since when the first of them waits, in milliseconds since 1970; 0 when none does.
    pub since_unix_ms: u64,
    /// How often in a row it was tried in vain to hand them over.
    pub attempts: u32,
    /// Why the last attempt was in vain.
    pub failure: Option<Error>,
}

/// What a space knows of what waits.
#[derive(Default)]
pub(crate) struct Outboxes {
    receivers: Mutex<BTreeMap<Arc<str>, Receiver>>,
    /// One node is made known at a time.
    registering: tokio::sync::Mutex<()>,
    filling: Arc<Filling>,
}

/// How much waits for all nodes, with the room that is kept for what is on its way. Whoever reads the log may see an event
/// before it is counted, so that both may be below 0 for a moment.
#[derive(Default)]
struct Filling {
    events: AtomicI64,
    bytes: AtomicI64,
}

/// Room for an event that a step is about to send.
pub(crate) struct Reserved(Arc<Filling>);

/// A node that events wait for.
#[derive(Default)]
struct Receiver {
    /// The revision of its document.
    revision: u64,
    /// Up to here it has everything.
    after: Position,
    events: i64,
    bytes: i64,
    since_unix_ms: u64,
    attempts: u32,
    failure: Option<Error>,
    /// Whether a courier is on its way.
    is_carried: bool,
    /// Whether something has come that the courier may not have seen.
    has_news: bool,
    /// Heard when the node has taken in more.
    moved: Arc<Notify>,
}

/// How far a courier has come.
pub(super) struct Moved {
    pub(super) after: Position,
    pub(super) events: i64,
    pub(super) bytes: i64,
    /// Since when the next one waits; 0 when that is not known.
    pub(super) since_unix_ms: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.events.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The tag by which what waits for a node is found.
pub(crate) fn outbox_tag(node: &str) -> Tag {
    Tag::Declared(format!("{OUTBOX}{}", escaped(node)).into())
}

impl Outboxes {
    /// Keeps room for an event that is about to be sent.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] when there is none.
    pub(crate) fn reserve(&self, limits: &OutboxLimits) -> Result<Reserved> {
        let before = self.filling.events.fetch_add(1, Ordering::SeqCst);
        // Made first, so that what does not fit is given back as well.
        let reserved = Reserved(Arc::clone(&self.filling));
        let bytes = self.filling.bytes.load(Ordering::SeqCst);
        if usize::try_from(before).is_ok_and(|before| before >= limits.events_max) {
            return Err(full(&format!("{} events", limits.events_max)));
        }
        if u64::try_from(bytes).is_ok_and(|bytes| bytes >= limits.bytes_max) {
            return Err(full(&format!("{} bytes", limits.bytes_max)));
        }
        Ok(reserved)
    }

    /// What waits for each node that something waits for.
    pub(crate) fn all(&self) -> Vec<Outbox> {
        let receivers = lock(&self.receivers);
        let waiting = receivers.iter().filter(|(_, receiver)| receiver.events > 0);
        waiting
            .map(|(node, receiver)| Outbox {
                node: node.to_string(),
                events: receiver.events.unsigned_abs(),
                bytes: receiver.bytes.max(0).unsigned_abs(),
                since_unix_ms: receiver.since_unix_ms,
                attempts: receiver.attempts,
                failure: receiver.failure.as_ref().map(Error::duplicate),
            })
            .collect()
    }

    /// Whether a node is known to have everything.
    pub(super) fn is_empty_for(&self, node: &str) -> bool {
        lock(&self.receivers).get(node).is_none_or(|receiver| receiver.events <= 0 && !receiver.has_news)
    }

    /// Heard when a node has taken in more.
    pub(super) fn moved(&self, node: &str) -> Arc<Notify> {
        let receivers = lock(&self.receivers);
        receivers.get(node).map_or_else(Arc::default, |receiver| Arc::clone(&receiver.moved))
    }

    /// Counts an event that was committed for a node. True when nobody carries what waits for it.
    fn note(&self, node: &Arc<str>, bytes: usize, now_unix_ms: u64) -> bool {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.filling.events.fetch_add(1, Ordering::SeqCst);
        self.filling.bytes.fetch_add(bytes, Ordering::SeqCst);
        let mut receivers = lock(&self.receivers);
        let receiver = receivers.entry(Arc::clone(node)).or_default();
        receiver.events += 1;
        receiver.bytes += bytes;
        receiver.has_news = true;
        if receiver.since_unix_ms == 0 {
            receiver.since_unix_ms = now_unix_ms;
        }
        !std::mem::replace(&mut receiver.is_carried, true)
    }

    /// Where what waits for a node begins. From here on a courier hears of what comes.
    pub(super) fn begin(&self, node: &str) -> Position {
        self.of(node, |receiver| {
            receiver.has_news = false;
            receiver.after
        })
    }

    /// The write that says how far a node is.
    pub(super) fn write(&self, node: &str, after: Position) -> Write {
        let revision = self.of(node, |receiver| receiver.revision + 1);
        write(node, revision, after)
    }

    /// Notes how far a node is, as it was committed.
    pub(super) fn has_moved(&self, node: &str, moved: &Moved) {
        self.filling.events.fetch_sub(moved.events, Ordering::SeqCst);
        self.filling.bytes.fetch_sub(moved.bytes, Ordering::SeqCst);
        self.of(node, |receiver| {
            receiver.revision += 1;
            receiver.after = moved.after;
            receiver.events -= moved.events;
            receiver.bytes -= moved.bytes;
            receiver.since_unix_ms = moved.since_unix_ms;
            receiver.attempts = 0;
            receiver.failure = None;
            receiver.moved.notify_waiters();
        });
    }

    /// Notes that an attempt was in vain. Gives how many were in a row.
    pub(super) fn has_failed(&self, node: &str, error: Error) -> u32 {
        self.of(node, |receiver| {
            receiver.attempts = receiver.attempts.saturating_add(1);
            receiver.failure = Some(error);
            receiver.attempts
        })
    }

    /// Ends the way of a courier that found nothing more. False when something has come since.
    pub(super) fn rests(&self, node: &str) -> bool {
        let (events, bytes) = {
            let mut receivers = lock(&self.receivers);
            let Some(receiver) = receivers.get_mut(node) else { return true };
            if receiver.has_news {
                return false;
            }
            receiver.is_carried = false;
            receiver.since_unix_ms = 0;
            receiver.moved.notify_waiters();
            // What was seen before it was counted, or never was: the log has the last word.
            (std::mem::take(&mut receiver.events), std::mem::take(&mut receiver.bytes))
        };
        self.filling.events.fetch_sub(events, Ordering::SeqCst);
        self.filling.bytes.fetch_sub(bytes, Ordering::SeqCst);
        true
    }

    /// Ends the way of a courier whose space ends.
    pub(super) fn leaves(&self, node: &str) {
        self.of(node, |receiver| receiver.is_carried = false);
    }

    /// The nodes that something waits for and nobody carries it to; somebody does from here on.
    fn uncarried(&self) -> Vec<Arc<str>> {
        let mut receivers = lock(&self.receivers);
        let uncarried =
            receivers.iter_mut().filter(|(_, receiver)| receiver.events > 0 && !receiver.is_carried);
        uncarried
            .map(|(node, receiver)| {
                receiver.is_carried = true;
                Arc::clone(node)
            })
            .collect()
    }

    fn of<R>(&self, node: &str, work: impl FnOnce(&mut Receiver) -> R) -> R {
        let mut receivers = lock(&self.receivers);
        match receivers.get_mut(node) {
            Some(receiver) => work(receiver),
            None => work(receivers.entry(node.into()).or_default()),
        }
    }

    fn knows(&self, node: &str) -> bool {
        lock(&self.receivers).get(node).is_some_and(|receiver| receiver.revision > 0)
    }

    /// Takes over what the store says of a node.
    fn take_over(&self, document: &Document) -> Result<(Arc<str>, Position)> {
        let node: Arc<str> = name_of(&document.key, OUTBOX).as_ref().into();
        let after = position_in(document)?;
        self.of(&node, |receiver| (receiver.revision, receiver.after) = (document.revision, after));
        Ok((node, after))
    }
}

impl Durable {
    /// Has the store know of a node that events are to wait for, so that they are found after a restart.
    ///
    /// # Errors
    ///
    /// What the store says.
    pub(super) async fn register(&self, to: &Whereto) -> Result<()> {
        let Whereto::Waits(node) = to else { return Ok(()) };
        if self.outboxes.knows(node) {
            return Ok(());
        }
        let _one_at_a_time = self.outboxes.registering.lock().await;
        let key = named(OUTBOX, node);
        for _ in 0..2 {
            let found = self.store.documents(vec![Arc::clone(&key)]).await?.pop().flatten();
            if let Some(document) = found {
                return self.outboxes.take_over(&document).map(drop);
            }
            let batch = Batch { documents: vec![write(node, 1, Position::START)], ..Batch::default() };
            match self.commits.commit(batch).await {
                Ok(_) => {
                    self.outboxes.of(node, |receiver| receiver.revision = 1);
                    return Ok(());
                }
                // It may have been committed all the same: the next look tells.
                Err(error) if is_conflict(&error) || matches!(error.kind(), ErrorKind::Io { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let what = format!("making node `{node}` known, which events are to wait for,");
        Err(Error::new(ErrorKind::Io { what }))
    }

    /// Looks up anew how far a node is, when a commit that said so was not heard of.
    ///
    /// # Errors
    ///
    /// What the store says.
    pub(super) async fn look_up_outbox(&self, node: &str) -> Result<()> {
        let found = self.store.documents(vec![named(OUTBOX, node)]).await?.pop().flatten();
        if let Some(document) = found {
            self.outboxes.take_over(&document)?;
        }
        Ok(())
    }

    /// Finds out what waited when the last process ended.
    ///
    /// # Errors
    ///
    /// What the store says.
    pub(super) async fn recover_outboxes(&self) -> Result<()> {
        if self.is_shared() {
            return Ok(());
        }
        for document in documents(&*self.store).await? {
            let (node, after) = self.outboxes.take_over(&document)?;
            let (events, bytes, since) = waiting(&*self.store, &node, after).await?;
            let (events, bytes) =
                (i64::try_from(events).unwrap_or(i64::MAX), i64::try_from(bytes).unwrap_or(i64::MAX));
            self.outboxes.filling.events.fetch_add(events, Ordering::SeqCst);
            self.outboxes.filling.bytes.fetch_add(bytes, Ordering::SeqCst);
            self.outboxes.of(&node, |receiver| {
                (receiver.events, receiver.bytes, receiver.since_unix_ms) = (events, bytes, since);
            });
        }
        Ok(())
    }

    /// Lets an event wait once more that its node refused, behind all that waits for it by now. False when there is none.
    ///
    /// # Errors
    ///
    /// What the store says, and when the event cannot be read any more.
    pub(crate) async fn redrive_refused(
        self: &Arc<Self>,
        space: &Arc<SpaceInner>,
        event: EventId,
    ) -> Result<bool> {
        let suffix = format!("/{event}");
        let mut after: Option<Key> = None;
        let letter = loop {
            let list = List { prefix: REFUSED.into(), after: after.take(), documents_max: PAGE_RECORDS_MAX };
            let page = self.store.list(list).await?;
            let Some(last) = page.last() else { return Ok(false) };
            after = Some(Arc::clone(&last.key));
            let is_it = |document: &Document| document.content.is_some() && document.key.ends_with(&suffix);
            if let Some(letter) = page.into_iter().find(is_it) {
                break letter;
            }
        };
        let node: Arc<str> =
            letter.key[REFUSED.len()..].split('/').next().map(plain).unwrap_or_default().into();
        let content = letter.content.as_ref().map_or(&[][..], |content| &content.bytes);
        let mut frame = WireRecord::decode(content, RECORD_BYTES_MAX)?.event.into_owned();
        if frame.is_empty() {
            let Some((_, framed, _)) = self.event_of(space, event, true).await? else {
                let what = format!("event {event}, which is in the log no more,");
                return Err(Error::new(ErrorKind::NotFound { what }).at_event(event));
            };
            frame = framed.frame;
        }
        let to = Whereto::Waits(Arc::clone(&node));
        self.register(&to).await?;
        let bytes_len = frame.len();
        let mut bytes = Vec::new();
        WireRecord { event: frame.into(), ..WireRecord::default() }
            .encode_into(&mut bytes, RECORD_BYTES_MAX)?;
        // Found by who hands it over alone: its first record is the one that tells of the event.
        let record = NewRecord { tags: vec![outbox_tag(&node)], bytes: bytes.into() };
        let documents = vec![by_hand::deletion(&letter)];
        self.commits.commit(Batch { records: vec![record], documents, ..Batch::default() }).await?;
        self.kept(space, &[(node, bytes_len)]);
        Ok(true)
    }

    /// Has what waits be carried.
    pub(super) fn carry_all(self: &Arc<Self>, space: &Arc<SpaceInner>) {
        if space.link.get().is_some() {
            self.outboxes.uncarried().into_iter().for_each(|node| super::courier::carry(space, node));
        }
    }

    /// Counts events that were committed for nodes of other processes, and has them carried.
    pub(super) fn kept(&self, space: &Arc<SpaceInner>, kept: &[(Arc<str>, usize)]) {
        for (node, bytes) in kept {
            if !self.outboxes.note(node, *bytes, space.now_unix_ms()) {
                continue;
            }
            match space.is_running() {
                true => super::courier::carry(space, Arc::clone(node)),
                false => self.outboxes.leaves(node),
            }
        }
    }
}

fn write(node: &str, revision: u64, after: Position) -> Write {
    let bytes = after.number().to_be_bytes();
    Write {
        key: named(OUTBOX, node),
        revision,
        content: Some(Content { name: "outbox".into(), version: 1, bytes: bytes.as_slice().into() }),
        past: Past::Dropped,
        replaced: Replaced::Kept,
    }
}

fn position_in(document: &Document) -> Result<Position> {
    let bytes = document.content.as_ref().and_then(|content| (*content.bytes).try_into().ok());
    let bytes = bytes.ok_or_else(|| {
        Error::new(ErrorKind::Damaged {
            what: format!("document `{}`, which says no position", document.key),
        })
    })?;
    Ok(Position::from_number(u128::from_be_bytes(bytes)))
}

/// The documents of all nodes that events wait for, or did.
///
/// # Errors
///
/// What the store says.
async fn documents(store: &dyn Store) -> Result<Vec<Document>> {
    let mut all = Vec::new();
    loop {
        let after: Option<Key> = all.last().map(|last: &Document| Arc::clone(&last.key));
        let list = List { prefix: OUTBOX.into(), after, documents_max: PAGE_RECORDS_MAX };
        let page = store.list(list).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

/// How many events wait behind a position for a node, their bytes, and since when the first does.
async fn waiting(store: &dyn Store, node: &str, after: Position) -> Result<(u64, u64, u64)> {
    let (mut events, mut bytes, mut since) = (0, 0, 0);
    let mut start = after;
    loop {
        let read = Read::forward(Select::tag(outbox_tag(node))).start(Start::Position(start));
        let page = store.read(read).await?;
        for record in &page.records {
            if events == 0 {
                since = record.at_unix_ms;
            }
            events += 1;
            bytes += WireRecord::decode(&record.bytes, RECORD_BYTES_MAX)?.event.len() as u64;
        }
        match page.next {
            Some(next) => start = next,
            None => return Ok((events, bytes, since)),
        }
    }
}

/// What waits in a store for nodes of other processes, whether a space runs on it or not.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn outboxes(store: &dyn Store) -> Result<Vec<Outbox>> {
    let mut all = Vec::new();
    for document in documents(store).await? {
        let node = name_of(&document.key, OUTBOX).into_owned();
        let (events, bytes, since_unix_ms) = waiting(store, &node, position_in(&document)?).await?;
        if events > 0 {
            all.push(Outbox { node, events, bytes, since_unix_ms, attempts: 0, failure: None });
        }
    }
    Ok(all)
}

/// The tags of records that wait and stand before a position, so that they are not forgotten.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn waiting_before(store: &dyn Store, before: Position) -> Result<Vec<Tag>> {
    let mut tags = Vec::new();
    for document in documents(store).await? {
        let tag = outbox_tag(&name_of(&document.key, OUTBOX));
        let start = Start::Position(position_in(&document)?);
        let first = store.read(Read::forward(Select::tag(tag.clone())).start(start).at_most(1)).await?;
        if first.records.first().is_some_and(|record| record.position < before) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

#[cold]
fn full(what: &str) -> Error {
    let what = format!("the outbox ({what} that wait for nodes of other processes)");
    Error::new(ErrorKind::Busy { what })
}

impl fmt::Debug for Outboxes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events = self.filling.events.load(Ordering::SeqCst);
        write!(f, "{events} events for {} nodes elsewhere", lock(&self.receivers).len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_events_and_bytes_wait_and_no_more() {
        let limits = OutboxLimits { events_max: 3, bytes_max: 100 };
        let outboxes = Outboxes::default();
        let node: Arc<str> = "hub".into();
        let first = outboxes.reserve(&limits).unwrap();
        let second = outboxes.reserve(&limits).unwrap();
        let third = outboxes.reserve(&limits).unwrap();
        assert_eq!(outboxes.reserve(&limits).err().unwrap().code(), "busy", "a fourth has no room");
        drop((second, third));
        assert!(outboxes.note(&node, 99, 7), "nobody carries it yet");
        assert!(!outboxes.note(&node, 0, 8));
        drop(first);
        drop(outboxes.reserve(&limits).unwrap());
        outboxes.has_moved(
            "hub",
            &Moved { after: Position::from_number(4), events: 1, bytes: 0, since_unix_ms: 8 },
        );
        assert!(!outboxes.note(&node, 1, 9));
        assert_eq!(outboxes.reserve(&limits).err().unwrap().code(), "busy", "a hundred bytes wait");
        let all = outboxes.all();
        assert_eq!((all[0].events, all[0].bytes, all[0].since_unix_ms), (2, 100, 8));
    }

    #[test]
    fn an_event_that_is_carried_before_it_is_counted_leaves_no_count() {
        let outboxes = Outboxes::default();
        let node: Arc<str> = "hub".into();
        assert!(outboxes.note(&node, 10, 1));
        assert_eq!(outboxes.begin("hub"), Position::START);
        // The courier sees two, of which one is counted by now.
        outboxes.has_moved(
            "hub",
            &Moved { after: Position::from_number(2), events: 2, bytes: 20, since_unix_ms: 0 },
        );
        assert!(!outboxes.note(&node, 10, 2), "the courier is still on its way");
        assert!(!outboxes.rests("hub"), "it has to look once more");
        assert_eq!(outboxes.begin("hub"), Position::from_number(2));
        assert!(outboxes.rests("hub"));
        assert!(outboxes.all().is_empty());
        assert_eq!(outboxes.filling.events.load(Ordering::SeqCst), 0);
        assert_eq!(outboxes.filling.bytes.load(Ordering::SeqCst), 0);
    }
}
