//! A store as durable nodes leave it: a shop in which one order was shipped, one waits for a person, one could not be
//! paid, and one is tried again. Times come from a clock of its own, so what is printed is the same each time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use happen::store::{
    Batch, Content, NewRecord, Past, Replaced, SqliteOptions, SqliteStore, Store, Tag, Write,
};
use happen::{Error, EventId};
use happen_core::codec::{
    CauseLink, Outcome, PointKind, StepOutcome, WireChange, WireError, WireEvent, WireFlow, WirePoint,
    WireRecord, WireReply, WireStep,
};
use happen_core::env::{BoxFuture, BoxWork, CoarseClock, Env};
use happen_core::hash::hash_event;
use happen_core::payload::ErasedPayload;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

/// When the shop opened: 2026-01-05T10:00:00Z.
pub(crate) const OPENED_UNIX_MS: u64 = 1_767_607_200_000;

/// The order that was shipped, its charge, and its parcel.
pub(crate) const ORDER: &str = "019b8d99-6900-7000-8000-000000000001";
pub(crate) const CHARGE: &str = "019b8d99-6ce8-7000-8000-000000000002";
pub(crate) const PARCEL: &str = "019b8d99-70d0-7000-8000-000000000003";
/// The order that waits for a person.
pub(crate) const LARGE: &str = "019b8d99-74b8-7000-8000-000000000004";
/// The order that could not be paid.
pub(crate) const UNPAID: &str = "019b8d99-78a0-7000-8000-000000000005";
/// The order that is tried again.
pub(crate) const AGAIN: &str = "019b8d99-7c88-7000-8000-000000000006";

/// A folder with a store in it.
pub(crate) struct Shop {
    folder: TempDir,
}

/// Time that goes on by a second whenever it is asked for.
#[derive(Debug, Default)]
struct Clock {
    asked: AtomicU64,
    coarse: Arc<CoarseClock>,
}

impl Env for Clock {
    fn unix_ms(&self) -> u64 {
        OPENED_UNIX_MS + 1_000 * self.asked.fetch_add(1, Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn clock(&self) -> &Arc<CoarseClock> {
        &self.coarse
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }

    fn spawn(&self, _: BoxFuture<'static, ()>) {
        unreachable!("a store has threads of its own");
    }

    fn spawn_blocking(&self, _: BoxWork) {
        unreachable!("a store has threads of its own");
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        unreachable!("a store does not wait for a time");
    }
}

impl Shop {
    /// A folder without a store.
    pub(crate) fn closed() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A store without anything.
    pub(crate) fn empty() -> Self {
        let shop = Self::closed();
        shop.commit(&[]);
        shop
    }

    /// The shop as it is described above.
    pub(crate) fn open() -> Self {
        let shop = Self::closed();
        shop.commit(&story());
        shop
    }

    /// The folder around that of the store.
    pub(crate) fn around(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of the store.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Commits these batches one by one.
    pub(crate) fn commit(&self, batches: &[Batch]) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = self.store().await;
            for batch in batches {
                store.commit(vec![batch.clone()]).await.remove(0).unwrap();
            }
            store.close().await;
        });
    }

    /// The store, open to write.
    pub(crate) async fn store(&self) -> SqliteStore {
        SqliteStore::open(self.path(), SqliteOptions::new(Arc::new(Clock::default()))).await.unwrap()
    }
}

/// An id.
pub(crate) fn id(text: &str) -> EventId {
    text.parse().unwrap()
}

/// JSON as MessagePack.
pub(crate) fn packed(json: &Json) -> Vec<u8> {
    let mut bytes = Vec::new();
    json.encode(&mut bytes).unwrap();
    bytes
}

/// A new revision of a document.
pub(crate) fn document(key: &str, revision: u64, name: &str, bytes: Option<Vec<u8>>) -> Write {
    let content = bytes.map(|bytes| Content { name: name.into(), version: 1, bytes: bytes.into() });
    Write { key: key.into(), revision, content, past: Past::Kept, replaced: Replaced::Kept }
}

fn tags(of: &WireEvent<'_>) -> Vec<Tag> {
    let causes = of.causes().map(|cause| match cause {
        CauseLink::Known { id, .. } | CauseLink::Local { id, .. } | CauseLink::Bare { id } => *id,
        other => panic!("{other:?}"),
    });
    let mut tags = vec![Tag::Event(of.id)];
    tags.extend(causes.map(Tag::Cause));
    tags.push(Tag::Correlation(of.correlation.as_deref().unwrap_or_default().into()));
    tags.push(Tag::Type(of.event_type.as_ref().into()));
    if !of.sender.is_empty() {
        tags.push(Tag::Sender(of.sender.as_ref().into()));
    }
    tags
}

/// A record of an event, of a step, or of both.
pub(crate) fn record(
    of: &WireEvent<'_>,
    accepted: &[(&str, &str)],
    step: Option<WireStep<'_>>,
    first: bool,
) -> NewRecord {
    let mut frame = Vec::new();
    if first {
        let mut event = of.clone();
        event.hash = Some(hash_event(of));
        event.encode_into(&mut frame, 1 << 20).unwrap();
    }
    let mut tags = tags(of);
    if let Some(step) = &step {
        tags.push(Tag::Node(step.flow.node.as_ref().into()));
    }
    let accepted = accepted
        .iter()
        .map(|(node, registration)| WireFlow { node: (*node).into(), registration: (*registration).into() });
    let record =
        WireRecord { event: frame.into(), accepted: accepted.collect(), step, ..WireRecord::default() };
    let mut bytes = Vec::new();
    record.encode_into(&mut bytes, 8 << 20).unwrap();
    NewRecord { tags, bytes: bytes.into() }
}

/// The document of a flow under way or of a dead letter.
pub(crate) fn flow(kind: &str, step: WireStep<'_>, revision: u64) -> Write {
    let key = format!("{kind}/{}/{}/{}", step.flow.node, step.event, step.flow.registration);
    let record = WireRecord { step: Some(step), ..WireRecord::default() };
    let mut bytes = Vec::new();
    record.encode_into(&mut bytes, 8 << 20).unwrap();
    Write { past: Past::Dropped, ..document(&key, revision, kind, Some(bytes)) }
}

/// A root event from outside.
pub(crate) fn root<'a>(
    event: &str,
    event_type: &'a str,
    correlation: &'a str,
    payload: &'a [u8],
) -> WireEvent<'a> {
    let event = id(event);
    let mut root = WireEvent::new(event, event_type, event.unix_ms(), payload);
    root.correlation = Some(correlation.into());
    root
}

/// What a node sends because of an event.
fn effect<'a>(
    event: &str,
    event_type: &'a str,
    cause: &WireEvent<'a>,
    sender: &'a str,
    payload: &'a [u8],
) -> WireEvent<'a> {
    let mut effect = root(event, event_type, "", payload);
    effect.correlation = cause.correlation.clone();
    effect.root = cause.root;
    effect.cause = Some(CauseLink::Known { id: cause.id, hash: hash_event(cause) });
    effect.depth = cause.depth + 1;
    effect.sender = sender.into();
    effect
}

/// A reply with an error, as records have it.
pub(crate) fn failure(event: &str, text: &str) -> Vec<u8> {
    let error = Error::msg(text).at_event(id(event));
    let mut bytes = Vec::new();
    let reply = WireReply::new(id(event), Outcome::Error(WireError::of(&error)));
    reply.encode_into(&mut bytes, 1 << 20).unwrap();
    bytes
}

fn change(key: &str, revision: u64) -> WireChange<'_> {
    WireChange { key: key.into(), revision }
}

fn story() -> Vec<Batch> {
    let item = packed(&json!({ "item": "tea", "total": 7 }));
    let amount = packed(&json!({ "amount": 7 }));
    let order = root(ORDER, "place-order", "order-1", &item);
    let charge = effect(CHARGE, "charge", &order, "orders", &amount);
    let parcel = effect(PARCEL, "order.shipped", &charge, "payments", &item);

    let mut validate =
        WireStep::new(order.id, "orders", "validate", "validate", StepOutcome::Next("pay".into()));
    validate.changes = vec![change("state/orders/orders", 1)];
    let mut pay = WireStep::new(order.id, "orders", "validate", "pay", StepOutcome::End);
    pay.number = 1;
    pay.sent = vec![charge.id];
    pay.changes = vec![change("state/orders/orders", 2), change("entity/orders/order/1", 1)];
    let mut take = WireStep::new(charge.id, "payments", "take", "take", StepOutcome::End);
    take.sent = vec![parcel.id];
    take.changes = vec![change("state/payments/account", 1)];

    let large_item = packed(&json!({ "item": "piano", "total": 9_000 }));
    let large = root(LARGE, "place-order", "order-2", &large_item);
    let mut waits = WireStep::new(large.id, "orders", "validate", "approve", StepOutcome::Waits);
    waits.number = 1;
    waits.points = vec![WirePoint {
        ordinal: 0,
        kind: PointKind::Wait,
        name: "approval.*".into(),
        event: None,
        due_unix_ms: OPENED_UNIX_MS + 3_600_000,
        digest: 1,
        result: None,
    }];
    let checked =
        WireStep::new(large.id, "orders", "validate", "validate", StepOutcome::Next("approve".into()));

    let unpaid_item = packed(&json!({ "item": "cake", "total": 3 }));
    let unpaid = root(UNPAID, "charge", "order-3", &unpaid_item);
    let declined = failure(UNPAID, "the card was declined");
    let mut dead = WireStep::new(unpaid.id, "payments", "take", "take", StepOutcome::Failed(declined.into()));
    dead.attempt = 3;

    let again_item = packed(&json!({ "item": "milk", "total": 2 }));
    let again = root(AGAIN, "charge", "order-4", &again_item);
    let due_unix_ms = OPENED_UNIX_MS + 60_000;
    let error = failure(AGAIN, "the bank is closed").into();
    let retry =
        WireStep::new(again.id, "payments", "take", "take", StepOutcome::Retry { due_unix_ms, error });

    let orders =
        |revision, json: &Json| document("state/orders/orders", revision, "orders", Some(packed(json)));
    let batch = |records, documents| Batch { records, documents, ..Batch::default() };
    vec![
        batch(
            vec![record(&order, &[("orders", "validate")], Some(validate), true)],
            vec![orders(1, &json!({ "placed": 1, "last": { "item": "tea" } }))],
        ),
        batch(
            vec![record(&order, &[], Some(pay), false), record(&charge, &[("payments", "take")], None, true)],
            vec![
                orders(2, &json!({ "placed": 1, "charged": [7], "last": { "item": "tea", "total": 7 } })),
                document("entity/orders/order/1", 1, "order", Some(packed(&json!({ "total": 7 })))),
            ],
        ),
        batch(
            vec![record(&charge, &[], Some(take), false), record(&parcel, &[], None, true)],
            vec![document("state/payments/account", 1, "account", Some(packed(&json!({ "balance": 7 }))))],
        ),
        batch(
            vec![record(&large, &[("orders", "validate")], Some(checked), true)],
            vec![flow("flow", waits, 1)],
        ),
        batch(
            vec![record(&unpaid, &[("payments", "take")], Some(dead.clone()), true)],
            vec![flow("dead", dead, 1)],
        ),
        batch(
            vec![record(&again, &[("payments", "take")], Some(retry.clone()), true)],
            vec![flow("flow", retry, 1)],
        ),
    ]
}
