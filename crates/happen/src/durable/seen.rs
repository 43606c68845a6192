//! Keys that callers from outside give their events, so that one that is sent again is not handled again. Owns their
//! documents, who is told what of the second one, and when keys are forgotten.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use happen_core::env::BoxFuture;
use happen_core::hash::digest;
use happen_core::limits::PAGE_RECORDS_MAX;
use happen_core::store::{Batch, Key, List, Past, Prune, Read, Replaced, Select, Write};
use happen_core::{ErasedEvent, Error, ErrorKind, EventId, Result, State};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Durable;
use super::document::{Document, is_conflict};
use super::flow::StoredFlow;
use super::keys::SEEN;
use super::lane::Lanes;
use super::outside;
use super::point::attach;
use super::record::event_record;
use crate::dispatch::{Joined, Reply};
use crate::flow::Outcome;
use crate::keys::escaped;
use crate::limits;
use crate::space::SpaceInner;
use crate::sync::{Mutex, lock};

/// A key that a caller gave an event, and the event that it stands for once that is known.
#[derive(Debug)]
pub(crate) struct Keyed {
    key: Arc<str>,
    first: OnceLock<EventId>,
}

/// What the document of a key says. One without an event stands for none.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct StoredKey {
    event: String,
    /// What was sent under the key.
    digest: u64,
    /// When the key is forgotten.
    until_unix_ms: u64,
}

impl State for StoredKey {
    const NAME: &'static str = "seen";
    const VERSION: u32 = 1;
}

/// What a space keeps in mind of keys.
#[derive(Default)]
pub(crate) struct Keys {
    /// Events under way to the store: a second one of the same key waits for the first.
    under_way: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
    /// Whether the agenda knows when keys are to be forgotten next.
    awaits_sweep: AtomicBool,
    /// Where forgetting goes on, and when the first key that was passed over is to be forgotten.
    sweep: Mutex<(Option<Key>, Option<u64>)>,
}

/// An event from outside with a key, on its way to the store.
pub(super) struct Arrival {
    pub(super) event: Arc<dyn ErasedEvent>,
    pub(super) flows: Vec<Arc<StoredFlow>>,
    pub(super) keyed: Arc<Keyed>,
    pub(super) node: Arc<str>,
    /// Whether the caller wants the outcome; otherwise that the event is stored.
    pub(super) wants_outcome: bool,
    pub(super) to: oneshot::Sender<Outcome>,
}

impl Keyed {
    pub(crate) fn new(key: &Arc<str>) -> Arc<Self> {
        Arc::new(Self { key: Arc::clone(key), first: OnceLock::new() })
    }

    /// The key itself.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The event that the key stands for.
    pub(crate) fn first(&self) -> Option<EventId> {
        self.first.get().copied()
    }

    pub(crate) fn stands_for(&self, event: EventId) {
        // Told once, by whoever looked the key up.
        self.first.get_or_init(|| event);
    }
}

impl Keys {
    /// What whoever is at this key holds meanwhile.
    pub(super) fn turn(&self, key: &Key) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(lock(&self.under_way).entry(Arc::clone(key)).or_default())
    }

    /// Forgets a turn that is over, unless others wait for theirs.
    pub(super) fn gone(&self, key: &Key, turn: &Arc<tokio::sync::Mutex<()>>) {
        let mut under_way = lock(&self.under_way);
        // This one and the map: nobody waits.
        if Arc::strong_count(turn) == 2 {
            under_way.remove(key);
        }
    }
}

impl StoredKey {
    fn is_none(&self) -> bool {
        self.event.is_empty()
    }
}

/// Stores an event with its key and lets its flows begin, or answers as the one that came with that key before.
pub(super) async fn deliver(space: &Arc<SpaceInner>, durable: &Arc<Durable>, arrival: Arrival) {
    let key: Key = format!("{SEEN}{}/{}", escaped(&arrival.node), escaped(&arrival.keyed.key)).into();
    let turn = durable.keys.turn(&key);
    let id = arrival.event.envelope().id;
    let refused = {
        let _mine = turn.lock().await;
        store_or_answer(space, durable, &key, arrival).await
    };
    if let Err((to, error)) = refused {
        // The caller may have gone.
        drop(to.send(Err(error.at_event(id))));
    }
    durable.keys.gone(&key, &turn);
}

async fn store_or_answer(
    space: &Arc<SpaceInner>,
    durable: &Arc<Durable>,
    key: &Key,
    arrival: Arrival,
) -> Result<(), (oneshot::Sender<Outcome>, Error)> {
    let Arrival { event, flows, keyed, node, wants_outcome, to } = arrival;
    let before = match accept(space, durable, key, &event, &flows).await {
        Ok(before) => before,
        Err(error) => {
            flows.iter().for_each(|flow| durable.ended(flow));
            return Err((to, error));
        }
    };
    let Some(first) = before else {
        keyed.stands_for(event.envelope().id);
        if wants_outcome {
            let joined = Joined::new(flows.len(), Reply::One(to));
            for (index, flow) in flows.iter().enumerate() {
                drop(flow.tell(Reply::Part(Arc::clone(&joined), index)));
            }
        } else {
            drop(to.send(Ok(None)));
        }
        durable.waiters.offer(space, &event);
        flows.iter().for_each(Lanes::enter);
        return Ok(());
    };
    flows.iter().for_each(|flow| durable.ended(flow));
    keyed.stands_for(first);
    if !wants_outcome {
        drop(to.send(Ok(None)));
        return Ok(());
    }
    let (to_us, from) = oneshot::channel();
    match attach(durable, first, &node, to_us).await {
        Ok(true) => {
            let env = Arc::clone(&space.env);
            env.spawn(Box::pin(async move {
                let outcome = from.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled)));
                drop(to.send(outcome));
            }));
            Ok(())
        }
        Ok(false) => {
            let what = format!("the event {first} of this key, whose record is gone,");
            Err((to, Error::new(ErrorKind::Closed { what })))
        }
        Err(error) => Err((to, error)),
    }
}

/// Commits that an event is accepted under a key. Gives the event that was before, when there is one.
async fn accept(
    space: &Arc<SpaceInner>,
    durable: &Arc<Durable>,
    key: &Key,
    event: &Arc<dyn ErasedEvent>,
    flows: &[Arc<StoredFlow>],
) -> Result<Option<EventId>> {
    let document = durable.documents.passing(key, StoredKey::is_none)?;
    let digest = digest_of(&**event)?;
    let framed = space.framed_arrival(&**event)?;
    flows.iter().for_each(|flow| durable.begun(flow));
    let mut tries = 0;
    loop {
        let found = document.read().await?;
        if let Some(first) = first_of(&found.value, digest, space.env.unix_ms())? {
            return Ok(Some(first));
        }
        let until_unix_ms = space.env.unix_ms().saturating_add(space.config.idempotency_window_ms);
        let stored = StoredKey { event: event.envelope().id.to_string(), digest, until_unix_ms };
        let committed = outside::change(
            durable,
            &document,
            Some(found.revision),
            move |_| Ok(stored.clone()),
            |batch, _| {
                batch.records.push(event_record(space, &**event, &framed, flows)?);
                for flow in flows {
                    batch.documents.push(flow.first_write()?);
                }
                Ok(())
            },
        )
        .await;
        match committed {
            Ok(()) => {
                durable.expect_sweep(until_unix_ms);
                return Ok(None);
            }
            Err(error) if is_conflict(&error) && tries < limits::COMMIT_TRIES_MAX => tries += 1,
            Err(error) if matches!(error.kind(), ErrorKind::Io { .. }) => {
                return if is_ours(space, durable, &document, event.envelope().id).await? {
                    Ok(None)
                } else {
                    Err(error)
                };
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether a commit was made of which the store said that it may be.
async fn is_ours(
    space: &SpaceInner,
    durable: &Durable,
    document: &Document<StoredKey>,
    event: EventId,
) -> Result<bool> {
    let event = event.to_string();
    let look = || -> BoxFuture<'_, _> { Box::pin(async { Ok(document.read().await?.value.event == event) }) };
    durable.found_out(space, look).await
}

/// The event that a key stands for.
///
/// # Errors
///
/// [`ErrorKind::Conflict`] when something else was sent under the key.
fn first_of(stored: &StoredKey, digest: u64, now: u64) -> Result<Option<EventId>> {
    if stored.is_none() || stored.until_unix_ms <= now {
        return Ok(None);
    }
    let first = stored.event.parse::<EventId>()?;
    if stored.digest != digest {
        let what =
            format!("the idempotency key was given to event {first} before, which said something else");
        return Err(Error::new(ErrorKind::Conflict { what }));
    }
    Ok(Some(first))
}

fn digest_of(event: &dyn ErasedEvent) -> Result<u64> {
    let mut bytes = Vec::new();
    event.payload().encode(&mut bytes)?;
    Ok(digest(&[event.envelope().event_type.as_str().as_bytes(), &bytes]))
}

impl Durable {
    /// Has the agenda know that keys are to be forgotten, unless it does.
    fn expect_sweep(&self, until_unix_ms: u64) {
        if !self.keys.awaits_sweep.swap(true, Ordering::SeqCst) {
            self.agenda.sweep_at(until_unix_ms.saturating_add(limits::SEEN_SWEEP_MS));
        }
    }

    /// Begins to forget what an earlier process kept.
    pub(super) fn sweep_soon(&self, now: u64) {
        if !self.keys.awaits_sweep.swap(true, Ordering::SeqCst) {
            self.agenda.sweep_at(now);
        }
    }
}

/// Forgets the keys of one page whose time is over, and has the agenda go on with the next.
///
/// # Errors
///
/// What the store says; the same page is looked at again.
pub(super) async fn sweep(space: &Arc<SpaceInner>, durable: &Arc<Durable>) -> Result<()> {
    let now = space.env.unix_ms();
    let (after, mut first_left) = lock(&durable.keys.sweep).clone();
    if after.is_none() {
        // What is stored from here on may lie behind the page, and sees to itself.
        durable.keys.awaits_sweep.store(false, Ordering::SeqCst);
    }
    let list = List { prefix: SEEN.into(), after, documents_max: PAGE_RECORDS_MAX };
    let page = durable.store.list(list).await?;
    let mut writes = Vec::new();
    for document in &page {
        let Some(content) = &document.content else { continue };
        let stored: StoredKey = happen_core::state::decode_document(content.version, &content.bytes)
            .map_err(|error| error.context(format!("document `{}`", document.key)))?;
        if stored.until_unix_ms > now {
            first_left =
                Some(first_left.map_or(stored.until_unix_ms, |first| first.min(stored.until_unix_ms)));
            continue;
        }
        let (key, revision) = (Arc::clone(&document.key), document.revision + 1);
        writes.push(Write { key, revision, content: None, past: Past::Dropped, replaced: Replaced::Kept });
    }
    for some in writes.chunks(SWEEP_BATCH) {
        let batch = Batch { documents: some.to_vec(), ..Batch::default() };
        match durable.commits.commit(batch).await {
            Ok(_) => {}
            // One of them was given anew just now; the others wait for the next time.
            Err(error) if is_conflict(&error) => first_left = Some(now),
            Err(error) => return Err(error),
        }
    }
    if let Some(last) = page.last() {
        *lock(&durable.keys.sweep) = (Some(Arc::clone(&last.key)), first_left);
        // Not at once, so that what is due meanwhile is not held up.
        durable.agenda.sweep_at(now + limits::SEEN_PAUSE_MS);
        return Ok(());
    }
    *lock(&durable.keys.sweep) = (None, None);
    // That they were deleted need not be remembered either.
    let before = durable.store.read(Read::forward(Select::All).at_most(0)).await?.head;
    let none = Select::Tagged(Vec::new());
    let histories = vec![SEEN.into()];
    durable
        .store
        .prune(Prune { before, records: none, keep: Vec::new(), histories, documents: Vec::new() })
        .await?;
    if let Some(first_left) = first_left {
        durable.keys.awaits_sweep.store(true, Ordering::SeqCst);
        durable.agenda.sweep_at(first_left.saturating_add(limits::SEEN_SWEEP_MS));
    }
    Ok(())
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys under way", lock(&self.under_way).len())
    }
}

/// Keys that are forgotten by one commit.
const SWEEP_BATCH: usize = 100;
