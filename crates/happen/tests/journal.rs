//! The journal answers from what a store remembers, without a space: in memory, in a folder, and read only beside another
//! process.
#![cfg(feature = "embedded")]
#![expect(clippy::unwrap_used, reason = "whatever is not there fails the test, wherever it is looked for")]

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use happen::env::RealEnv;
use happen::journal::{
    Ambiguous, At, FlowFilter, Journal, MadeBy, PointKind, Query, Sought, Standing, StepEnd,
};
use happen::limits;
use happen::store::{
    Batch, Content, MemoryStore, NewRecord, Past, Position, Prune, Replaced, Select, SqliteOptions,
    SqliteStore, Store, Tag, Until, Write,
};
use happen::{Error, ErrorKind, EventId, Result, TraceOutcome};
use happen_core::codec::{
    CauseLink, Outcome, StepOutcome, WireChange, WireError, WireEvent, WireFlow, WirePoint, WireRecord,
    WireReply, WireStep, encode_batch_into,
};
use happen_core::env::{BoxFuture, BoxWork, CoarseClock, Env};
use happen_core::hash::{EventHash, hash_event};
use happen_core::limits::RECORD_BYTES_MAX;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tempfile::TempDir;

const BASE_MS: u64 = 1_750_000_000_000;

#[derive(happen::State, Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[state("orders", version = 2)]
struct Orders {
    open: u64,
}

/// An event as the tests write it.
#[derive(Debug, Clone)]
struct Sent {
    id: EventId,
    event_type: String,
    causes: Vec<EventId>,
    sender: String,
    correlation: Option<String>,
    root: EventId,
    depth: u32,
    at_unix_ms: u64,
    hash: EventHash,
    frame: Vec<u8>,
}

/// A log that is written as a space with durable nodes writes it.
struct Log {
    store: Arc<dyn Store>,
    clock: Arc<Clock>,
    events: Mutex<BTreeMap<EventId, Sent>>,
    _folder: Option<TempDir>,
}

#[derive(Debug)]
struct Clock {
    unix_ms: AtomicU64,
    env: RealEnv,
}

fn id(number: u64) -> EventId {
    EventId::from_halves((BASE_MS + number) << 16 | 0x7000, 1 << 63 | number).unwrap()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The logs that a test has to pass over, each with its name.
fn logs() -> Vec<Log> {
    vec![Log::in_memory(), Log::in_a_folder()]
}

impl Log {
    fn clock() -> Arc<Clock> {
        Arc::new(Clock { unix_ms: AtomicU64::new(BASE_MS), env: RealEnv::new() })
    }

    fn in_memory() -> Self {
        let clock = Self::clock();
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as Arc<dyn Env>));
        Self { store, clock, events: Mutex::default(), _folder: None }
    }

    fn in_a_folder() -> Self {
        let clock = Self::clock();
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(Arc::clone(&clock) as Arc<dyn Env>);
        let store = Arc::new(run(SqliteStore::open(folder.path(), options)).unwrap());
        Self { store, clock, events: Mutex::default(), _folder: Some(folder) }
    }

    fn journal(&self) -> Journal {
        Journal::new(Arc::clone(&self.store))
    }

    fn at(&self, after_ms: u64) {
        self.clock.unix_ms.store(BASE_MS + after_ms, Ordering::SeqCst);
    }

    /// Makes an event whose correlation and root are those of its first cause.
    fn event(
        &self,
        number: u64,
        event_type: &str,
        causes: &[EventId],
        change: impl FnOnce(&mut Sent),
    ) -> Sent {
        let mut events = self.events.lock().unwrap();
        let first = causes.first().and_then(|cause| events.get(cause));
        let depths = causes.iter().filter_map(|cause| events.get(cause)).map(|cause| cause.depth + 1);
        let mut sent = Sent {
            id: id(number),
            event_type: event_type.to_owned(),
            causes: causes.to_vec(),
            sender: String::new(),
            correlation: first.and_then(|cause| cause.correlation.clone()),
            root: first.map_or(id(number), |cause| cause.root),
            depth: depths.max().unwrap_or(0),
            at_unix_ms: BASE_MS + number,
            hash: EventHash::from([0; 32]),
            frame: Vec::new(),
        };
        change(&mut sent);
        let payload = [0x81, 0xa6, b'n', b'u', b'm', b'b', b'e', b'r', number as u8 & 0x7f];
        let mut wire = WireEvent::new(sent.id, sent.event_type.as_str(), sent.at_unix_ms, &payload);
        wire.root = sent.root;
        wire.depth = sent.depth;
        wire.sender = sent.sender.as_str().into();
        wire.origin = "".into();
        wire.correlation = sent.correlation.as_deref().map(Cow::from);
        // Only causes that are stored have a hash; the others are told by their id.
        let links = causes.iter().map(|cause| match events.get(cause) {
            Some(known) => CauseLink::Known { id: *cause, hash: known.hash },
            None => CauseLink::Bare { id: *cause },
        });
        let mut links = links.collect::<Vec<_>>().into_iter();
        wire.cause = links.next();
        wire.more_causes = links.collect();
        sent.hash = hash_event(&wire);
        wire.hash = Some(sent.hash);
        wire.encode_into(&mut sent.frame, RECORD_BYTES_MAX).unwrap();
        events.insert(sent.id, sent.clone());
        sent
    }

    async fn commit(&self, records: Vec<NewRecord>, documents: Vec<Write>) -> Position {
        let batch = Batch { records, documents, ..Batch::default() };
        self.store.commit(vec![batch]).await.remove(0).unwrap().position
    }

    async fn store_event(&self, sent: &Sent) -> Position {
        self.store_event_with(sent, &[]).await
    }

    async fn store_event_with(&self, sent: &Sent, accepted: &[(&str, &str)]) -> Position {
        self.commit(vec![stored(sent, accepted)], Vec::new()).await
    }
}

fn encoded(record: &WireRecord<'_>) -> Arc<[u8]> {
    let mut bytes = Vec::new();
    record.encode_into(&mut bytes, RECORD_BYTES_MAX).unwrap();
    bytes.into()
}

fn tags(sent: &Sent) -> Vec<Tag> {
    let correlation = sent.correlation.clone().unwrap_or_else(|| sent.root.to_string());
    let mut tags = vec![Tag::Event(sent.id)];
    tags.extend(sent.causes.iter().copied().map(Tag::Cause));
    tags.push(Tag::Correlation(correlation.into()));
    tags.push(Tag::Type(sent.event_type.as_str().into()));
    if !sent.sender.is_empty() {
        tags.push(Tag::Sender(sent.sender.as_str().into()));
    }
    tags
}

fn flow(node: &str, registration: &str) -> WireFlow<'static> {
    WireFlow { node: node.to_owned().into(), registration: registration.to_owned().into() }
}

/// So many records in as many as one commit takes.
fn parts(records: usize) -> impl Iterator<Item = usize> {
    let full = std::iter::repeat_n(1_000, records / 1_000);
    full.chain([records % 1_000]).filter(|records| *records > 0)
}

/// The record that has the event, with the flows that begin with it.
fn stored(sent: &Sent, accepted: &[(&str, &str)]) -> NewRecord {
    let accepted = accepted.iter().map(|(node, registration)| flow(node, registration)).collect();
    let record = WireRecord { event: sent.frame.as_slice().into(), accepted, ..WireRecord::default() };
    NewRecord { tags: tags(sent), bytes: encoded(&record) }
}

/// The record of a step, which has no event of its own.
fn step(sent: &Sent, step: WireStep<'_>) -> NewRecord {
    let mut tags = tags(sent);
    tags.push(Tag::Node(step.flow.node.as_ref().into()));
    NewRecord { tags, bytes: encoded(&WireRecord { step: Some(step), ..WireRecord::default() }) }
}

fn ended<'a>(sent: &Sent, node: &'a str, registration: &'a str, outcome: StepOutcome<'a>) -> WireStep<'a> {
    WireStep::new(sent.id, node, registration, registration, outcome)
}

fn reply(of: &Sent, outcome: Outcome<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    WireReply::new(of.id, outcome).encode_into(&mut bytes, RECORD_BYTES_MAX).unwrap();
    bytes
}

fn failure(of: &Sent, kind: ErrorKind) -> Vec<u8> {
    reply(of, Outcome::Error(WireError::of(&Error::new(kind).at_node("shop"))))
}

fn orders(open: u64) -> Content {
    let bytes = happen_core::state::encode(&Orders { open }).unwrap().into();
    Content { name: "orders".into(), version: 2, bytes }
}

fn write(key: &str, revision: u64, content: Option<Content>) -> Write {
    Write { key: key.into(), revision, content, past: Past::Kept, replaced: Replaced::Kept }
}

fn change(key: &str, revision: u64) -> WireChange<'static> {
    WireChange { key: key.to_owned().into(), revision }
}

fn code<T: std::fmt::Debug>(result: Result<T>) -> &'static str {
    result.unwrap_err().code()
}

#[test]
fn an_event_is_found_by_its_id() {
    for log in logs() {
        run(async {
            let root =
                log.event(1, "order.placed", &[], |sent| sent.correlation = Some("order-7".to_owned()));
            let effect = log.event(2, "order.paid", &[root.id], |sent| sent.sender = "payments".to_owned());
            log.store_event(&root).await;
            log.at(9);
            let position = log.store_event(&effect).await;
            let journal = log.journal();
            let found = journal.event(effect.id).await.unwrap().unwrap();
            assert_eq!(
                (found.id, &*found.event_type, found.at_unix_ms),
                (effect.id, "order.paid", BASE_MS + 2)
            );
            assert_eq!((found.sender.as_deref(), found.origin.as_deref()), (Some("payments"), None));
            assert_eq!((&found.causes, found.root, found.depth), (&vec![root.id], root.id, 1));
            assert_eq!((&*found.correlation, found.hash), ("order-7", Some(effect.hash)));
            assert_eq!((found.position, found.committed_unix_ms), (position, BASE_MS + 9));
            assert_eq!(found.payload.json().unwrap(), &json!({ "number": 2 }));
            assert_eq!(found.json().unwrap(), &json!({ "number": 2 }));
            assert_eq!(found.payload_bytes().len(), 9);
            assert!(journal.event(id(3)).await.unwrap().is_none());
        });
    }
}

#[test]
fn each_event_of_a_batch_is_found_and_has_its_flow() {
    for log in logs() {
        run(async {
            let events: Vec<Sent> = (1..=3).map(|number| log.event(number, "item", &[], |_| {})).collect();
            let wires: Vec<WireEvent<'_>> =
                events.iter().map(|sent| WireEvent::decode(&sent.frame, RECORD_BYTES_MAX).unwrap()).collect();
            let mut frame = Vec::new();
            encode_batch_into(&wires, &mut frame, RECORD_BYTES_MAX).unwrap();
            let mut sums = ended(&events[0], "sums", "sum", StepOutcome::End);
            sums.changes = vec![change("state/sums/orders", 1)];
            let documents = vec![write("state/sums/orders", 1, Some(orders(6)))];
            let record = WireRecord { event: frame.into(), step: Some(sums), ..WireRecord::default() };
            let mut tags = tags(&events[0]);
            tags.extend([Tag::Event(id(2)), Tag::Event(id(3)), Tag::Node("sums".into())]);
            // What the handler sent is caused by all of them, and has the correlation of the first.
            let sum = log.event(4, "sum", &[id(1), id(2), id(3)], |sent| sent.sender = "sums".to_owned());
            log.commit(vec![NewRecord { tags, bytes: encoded(&record) }, stored(&sum, &[])], documents).await;
            let journal = log.journal();
            for event in &events {
                assert_eq!(journal.event(event.id).await.unwrap().unwrap().hash, Some(event.hash));
                let trace = journal.trace(event.id).await.unwrap();
                // The other causes of the sum lie in other correlations and are not below this root.
                assert_eq!(
                    trace.to_string(),
                    "item +0ms  sums/sum ok  <\n└─ sum +".to_owned()
                        + &format!("{}ms\n", 4 - (event.at_unix_ms - BASE_MS))
                );
                assert_eq!(journal.impact(event.id).await.unwrap(), [sum.id]);
                let found = journal.when::<Orders>("sums", Query::new().event(event.id)).await.unwrap();
                assert_eq!(found.snapshots[0].value, Orders { open: 6 });
                let at = journal.state_at("sums", At::Event(event.id)).await.unwrap();
                assert_eq!(at, Some(Orders { open: 6 }));
            }
            assert_eq!(journal.why(sum.id).await.unwrap(), [id(1), id(2), id(3)]);
            assert!(journal.verify().await.unwrap().is_whole());
        });
    }
}

#[test]
fn what_a_person_types_means_an_event_or_a_correlation() {
    for log in logs() {
        run(async {
            let named = log.event(1, "a", &[], |sent| sent.correlation = Some("order-7".to_owned()));
            log.store_event(&named).await;
            // Three ids of one millisecond, and one a minute later.
            let same = [5, 6, 7].map(|number| {
                log.event(number, "b", &[], |sent| {
                    sent.id = EventId::from_halves(id(5).to_halves().0, 1 << 63 | number << 40).unwrap();
                    sent.root = sent.id;
                })
            });
            for sent in &same {
                log.store_event(sent).await;
            }
            let journal = log.journal();
            let event = |id| Sought::Event(id);
            assert_eq!(journal.find("order-7").await.unwrap(), Sought::Correlation("order-7".to_owned()));
            assert_eq!(journal.find(&named.id.to_string()).await.unwrap(), event(named.id));
            assert_eq!(code(journal.find(&id(99).to_string()).await), "not-found");
            let text = same[1].id.to_string();
            assert_eq!(journal.find(&text[..26]).await.unwrap(), event(same[1].id));
            assert_eq!(journal.find(&text.replace('-', "")[..22]).await.unwrap(), event(same[1].id));
            let error = journal.find(&text[..14]).await.unwrap_err();
            assert_eq!(error.code(), "misuse");
            assert_eq!(
                error.find_cause::<Ambiguous>().unwrap().candidates(),
                same.each_ref().map(|sent| sent.id)
            );
            assert!(error.to_string().contains(&same[2].id.to_string()), "{error}");
            for nothing in ["", "order-8", "zzzzzzzzz", "0197ffff-ffff", &text.replace('-', "_")] {
                let error = journal.find(nothing).await.unwrap_err();
                assert_eq!(error.code(), "not-found", "{nothing}: {error}");
            }
        });
    }
}

#[test]
fn the_beginning_of_an_id_has_limits() {
    let log = Log::in_memory();
    run(async {
        let journal = log.journal();
        let text = id(0).to_string().replace('-', "");
        let late = limits::JOURNAL_PREFIX_LATE_MS;
        let early = limits::JOURNAL_PREFIX_EARLY_MS;
        // An event that was stored too long before or after its id was made is found by its whole id alone.
        for (ahead_ms, found) in [(early - 1, true), (early, true), (early + 1, false)] {
            let sent = log.event(ahead_ms, "a", &[], |_| {});
            log.store_event(&sent).await;
            assert_eq!(journal.find(&sent.id.to_string()[..35]).await.is_ok(), found, "{ahead_ms}");
        }
        for (number, after_ms, found) in [(1, late - 1, true), (2, late, true), (3, late + 1, false)] {
            let sent = log.event(number, "a", &[], |_| {});
            log.at(number + after_ms);
            log.store_event(&sent).await;
            let whole = sent.id.to_string();
            assert_eq!(journal.find(&whole[..35]).await.is_ok(), found, "{after_ms}");
            assert!(journal.find(&whole).await.is_ok());
        }
        let min = limits::JOURNAL_PREFIX_DIGITS_MIN;
        for (digits, enough) in [(min - 1, false), (min, true), (min + 1, true)] {
            let error = journal.find(&text[..digits]).await.unwrap_err();
            assert_eq!(error.find_cause::<Ambiguous>().is_some(), enough, "{digits}: {error}");
        }
    });
    let log = Log::in_memory();
    run(async {
        let journal = log.journal();
        let text = id(0).to_string().replace('-', "");
        // More ids than are named, in one millisecond.
        let max = limits::JOURNAL_CANDIDATES_MAX;
        let high = id(0).to_halves().0;
        for number in 1..=max as u64 + 1 {
            let sent = log.event(1_000 + number, "a", &[], |sent| {
                sent.id = EventId::from_halves(high, 1 << 62 | number).unwrap();
                sent.root = sent.id;
            });
            log.store_event(&sent).await;
            if number + 2 > max as u64 {
                let error = journal.find(&text[..13]).await.unwrap_err();
                let named = error.find_cause::<Ambiguous>().unwrap().candidates().len();
                assert_eq!(named, max.min(number as usize));
                assert_eq!(error.to_string().ends_with("and more"), number as usize > max);
            }
        }
    });
}

#[test]
fn the_beginning_of_an_id_is_looked_for_in_so_many_records() {
    let max = limits::JOURNAL_PREFIX_RECORDS_MAX;
    let log = Log::in_memory();
    run(async {
        let sent = log.event(0, "a", &[], |_| {});
        let other = NewRecord { tags: Vec::new(), bytes: Vec::new().into() };
        for records in parts(max - 2) {
            log.commit(vec![other.clone(); records], Vec::new()).await;
        }
        log.store_event(&sent).await;
        let text = sent.id.to_string();
        for found in [true, true, false] {
            assert_eq!(log.journal().find(&text[..30]).await.is_ok(), found);
            log.commit(vec![other.clone()], Vec::new()).await;
        }
        assert_eq!(code(log.journal().find(&text[..30]).await), "misuse");
    });
}

/// The order of the README, as a space with durable nodes would write it down.
async fn order(log: &Log) -> [Sent; 4] {
    let placed = log.event(1, "order.placed", &[], |sent| sent.correlation = Some("order-7".to_owned()));
    log.commit(vec![stored(&placed, &[("shop", "validate"), ("audit", "note")])], Vec::new()).await;
    let charge = log.event(20, "charge", &[placed.id], |sent| sent.sender = "shop".to_owned());
    let shipped = log.event(50, "order.shipped", &[placed.id], |sent| sent.sender = "shop".to_owned());
    let mail = log.event(51, "mail", &[shipped.id], |sent| sent.sender = "mailer".to_owned());
    log.at(20);
    let next = ended(&placed, "shop", "validate", StepOutcome::Next("pay".into()));
    log.commit(vec![step(&placed, next)], Vec::new()).await;
    let mut pay = ended(&placed, "shop", "validate", StepOutcome::Waits);
    (pay.name, pay.number, pay.sent) = ("pay".into(), 1, vec![charge.id]);
    log.commit(vec![step(&placed, pay.clone()), stored(&charge, &[("payments", "charge")])], Vec::new())
        .await;
    log.at(30);
    for attempt in 1..=2 {
        let busy = failure(&charge, ErrorKind::Busy { what: "the bank".to_owned() });
        let retry = StepOutcome::Retry { due_unix_ms: BASE_MS + 35, error: busy.into() };
        let mut charged = ended(&charge, "payments", "charge", retry);
        charged.attempt = attempt;
        log.commit(vec![step(&charge, charged)], Vec::new()).await;
    }
    let paid = reply(&charge, Outcome::Value { event_type: "paid".into(), bytes: &[0x2a] });
    let mut charged = ended(&charge, "payments", "charge", StepOutcome::Done(paid.into()));
    charged.attempt = 3;
    log.commit(vec![step(&charge, charged)], Vec::new()).await;
    log.at(50);
    (pay.outcome, pay.sent) = (StepOutcome::End, vec![shipped.id]);
    (pay.name, pay.number) = ("ship_by_the_cheapest_carrier".into(), 2);
    pay.changes = vec![change("state/shop/orders", 1)];
    let documents = vec![write("state/shop/orders", 1, Some(orders(1)))];
    log.commit(vec![step(&placed, pay), stored(&shipped, &[("mailer", "on_shipped")])], documents).await;
    let lost = failure(&shipped, ErrorKind::Failed);
    let told = ended(&shipped, "mailer", "on_shipped", StepOutcome::Failed(lost.into()));
    log.commit(vec![step(&shipped, told), stored(&mail, &[])], Vec::new()).await;
    [placed, charge, shipped, mail]
}

#[test]
fn a_trace_tells_nodes_steps_outcomes_and_attempts() {
    for log in logs() {
        run(async {
            let [placed, charge, shipped, mail] = order(&log).await;
            let journal = log.journal();
            let trace = journal.trace(charge.id).await.unwrap();
            let expected = "\
order.placed +0ms  audit/note waits  shop/validate > pay > ship_by_the_cheapest_carrier ok
├─ charge +19ms  payments/charge replied (3 attempts)  <
└─ order.shipped +49ms  mailer/on_shipped failed (failed)
   └─ mail +50ms
";
            assert_eq!(trace.to_string(), expected);
            assert!(!trace.is_cut());
            let narrow = trace.in_columns(80);
            assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
            assert!(narrow.contains("\n│  > ship_by_the_cheapest_carrier ok\n"), "{narrow}");
            let by_name = journal.trace("order-7").await.unwrap();
            assert_eq!(by_name.to_string(), expected.replace("  <", "").replacen(" ok\n", " ok  <\n", 1));
            let line = &by_name.lines()[1];
            assert_eq!((line.event, line.depth, line.at_unix_ms), (charge.id, 1, BASE_MS + 20));
            assert_eq!((line.sender.as_deref(), &*line.causes), (Some("shop"), &[placed.id][..]));
            assert_eq!(line.handled[0].registration.as_deref(), Some("charge"));
            assert_eq!((line.handled[0].outcome, line.handled[0].attempts), (TraceOutcome::Value, 3));
            assert_eq!(journal.why(mail.id).await.unwrap(), [placed.id, shipped.id]);
            assert_eq!(journal.impact(placed.id).await.unwrap(), [charge.id, shipped.id, mail.id]);
            assert_eq!(journal.impact(mail.id).await.unwrap(), []);
            let order = journal.causal_order([mail.id, id(99), shipped.id, placed.id]).await.unwrap();
            assert_eq!(order, [placed.id, shipped.id, mail.id]);
            for missing in [code(journal.trace(id(9)).await), code(journal.trace("order-8").await)] {
                assert_eq!(missing, "not-found");
            }
            assert_eq!(code(journal.why(id(9)).await), "not-found");
            assert_eq!(code(journal.impact(id(9)).await), "not-found");
            let steps = journal.steps(charge.id).await.unwrap();
            assert_eq!(steps.iter().map(|step| step.attempt).collect::<Vec<_>>(), [1, 2, 3]);
            let StepEnd::Retry { due_unix_ms, error } = &steps[0].ended else { panic!("{steps:?}") };
            assert_eq!((*due_unix_ms, error.code(), error.node_id()), (BASE_MS + 35, "busy", Some("shop")));
            let StepEnd::Done(paid) = &steps[2].ended else { panic!("{steps:?}") };
            assert_eq!(
                (paid.json().unwrap(), happen::Payload::event_type(paid).as_str()),
                (&json!(42), "paid")
            );
        });
    }
}

/// A random web: for each event, which earlier ones caused it, whether it begins a correlation of its own when it has no
/// cause, and which flows handled it.
fn any_web() -> impl Strategy<Value = Vec<(Vec<prop::sample::Index>, bool, u8)>> {
    prop::collection::vec(
        (prop::collection::vec(any::<prop::sample::Index>(), 0..3), any::<bool>(), 0..4_u8),
        1..60,
    )
}

/// The web as the test knows it: causes by event, in the order of the log.
struct Model(Vec<Sent>);

impl Model {
    fn causes(&self, event: EventId) -> &[EventId] {
        &self.0.iter().find(|sent| sent.id == event).unwrap().causes
    }

    fn above(&self, event: EventId) -> BTreeSet<EventId> {
        let mut found = BTreeSet::new();
        let mut next = vec![event];
        while let Some(at) = next.pop() {
            next.extend(self.causes(at).iter().filter(|cause| found.insert(**cause)));
        }
        found
    }

    fn below(&self, event: EventId) -> Vec<EventId> {
        self.0.iter().map(|sent| sent.id).filter(|id| self.above(*id).contains(&event)).collect()
    }

    fn tree(&self, event: EventId) -> BTreeSet<EventId> {
        let above = self.above(event).into_iter().chain([event]);
        let roots: Vec<EventId> = above.filter(|id| self.causes(*id).is_empty()).collect();
        roots.iter().flat_map(|root| self.below(*root)).chain(roots.iter().copied()).collect()
    }
}

async fn check_web(log: &Log, web: &[(Vec<prop::sample::Index>, bool, u8)]) {
    let mut sent: Vec<Sent> = Vec::new();
    let mut later = Vec::new();
    for (number, (causes, shared, flows)) in web.iter().enumerate() {
        let mut causes: Vec<EventId> =
            causes.iter().filter(|_| number > 0).map(|index| sent[index.index(number)].id).collect();
        causes.dedup();
        let event = log.event(number as u64, "e", &causes, |event| {
            if causes.is_empty() && *shared {
                event.correlation = Some("shared".to_owned());
            }
        });
        let nodes = &["a", "b", "c"][..usize::from(*flows)];
        let accepted: Vec<_> = nodes.iter().map(|node| (*node, "on")).collect();
        // Some steps follow at once, the others when everything else is stored.
        log.store_event_with(&event, &accepted).await;
        for (index, node) in nodes.iter().enumerate() {
            let record = step(&event, ended(&event, node, "on", StepOutcome::End));
            match index {
                0 => drop(log.commit(vec![record], Vec::new()).await),
                1 => later.push(record),
                _ => {}
            }
        }
        sent.push(event);
    }
    for record in later {
        log.commit(vec![record], Vec::new()).await;
    }
    let journal = log.journal();
    let model = Model(sent);
    for event in &model.0 {
        let trace = journal.trace(event.id).await.unwrap();
        assert!(!trace.is_cut());
        let lines: Vec<EventId> = trace.lines().iter().map(|line| line.event).collect();
        assert_eq!(lines.iter().copied().collect::<BTreeSet<_>>(), model.tree(event.id), "of {}", event.id);
        assert_eq!(lines.len(), model.tree(event.id).len(), "each event has one line");
        for (at, line) in trace.lines().iter().enumerate() {
            assert_eq!(line.causes, model.causes(line.event));
            assert!(
                line.causes.iter().all(|cause| lines[at..].iter().all(|later| later != cause)),
                "{trace}"
            );
            let outcomes: Vec<_> =
                line.handled.iter().map(|handled| (&*handled.node, handled.outcome)).collect();
            let (.., flows) = &web[(line.at_unix_ms - BASE_MS) as usize];
            let all = [("a", TraceOutcome::Ended), ("b", TraceOutcome::Ended), ("c", TraceOutcome::Waiting)];
            assert_eq!(outcomes, all[..usize::from(*flows)], "{trace}");
        }
        assert_eq!(
            journal.why(event.id).await.unwrap(),
            model.above(event.id).into_iter().collect::<Vec<_>>()
        );
        assert_eq!(journal.impact(event.id).await.unwrap(), model.below(event.id));
    }
    let all: Vec<EventId> = model.0.iter().map(|event| event.id).collect();
    assert_eq!(journal.causal_order(all.iter().rev().copied()).await.unwrap(), all);
    let verified = journal.verify().await.unwrap();
    assert!(verified.is_whole(), "{verified:?}");
    assert_eq!(verified.events, all.len() as u64);
    let causes: usize = model.0.iter().map(|event| event.causes.len()).sum();
    assert_eq!((verified.causes, verified.edge), (causes as u64, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_web_of_any_log_is_whole(web in any_web()) {
        run(check_web(&Log::in_memory(), &web));
    }

    #[test]
    fn one_flipped_bit_of_an_event_is_found_and_named(
        web in any_web(),
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let log = Log::in_memory();
        run(async {
            let damaged = which.index(web.len());
            let mut positions = Vec::new();
            let mut sent: Vec<Sent> = Vec::new();
            for (number, (causes, ..)) in web.iter().enumerate() {
                let causes: Vec<EventId> =
                    causes.iter().filter(|_| number > 0).map(|index| sent[index.index(number)].id).collect();
                let mut event = log.event(number as u64, "e", &causes, |_| {});
                if number == damaged {
                    let at = at.index(event.frame.len());
                    event.frame[at] ^= 1 << bit;
                }
                positions.push(log.store_event(&event).await);
                sent.push(event);
            }
            let verified = log.journal().verify().await.unwrap();
            let first = verified.first.clone().unwrap();
            assert_eq!((first.position, verified.records), (positions[damaged], web.len() as u64), "{verified:?}");
            assert!(verified.is_complete && !verified.is_whole());
            let error = verified.into_result().unwrap_err();
            assert_eq!(error.code(), "damaged");
            assert!(error.to_string().contains(&format!("position {}", positions[damaged])), "{error}");
            assert_eq!(error.event_id(), first.event);
        });
    }
}

#[test]
fn the_web_of_a_log_in_a_folder_is_whole() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4));
    runner
        .run(&any_web(), |web| {
            let log = Log::in_a_folder();
            run(check_web(&log, &web));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_deep_web_and_a_small_one_in_a_large_correlation_are_found() {
    for log in logs() {
        run(async {
            let named = |sent: &mut Sent| sent.correlation = Some("busy".to_owned());
            // A chain through a correlation with thousands of other events.
            let mut chain = vec![log.event(0, "link", &[], named)];
            let mut records = vec![stored(&chain[0], &[])];
            for number in 1..6_000 {
                let cause = chain.last().unwrap().id;
                let is_link = number % 40 == 0;
                let sent = match is_link {
                    true => log.event(number, "link", &[cause], |_| {}),
                    false => log.event(number, "other", &[], named),
                };
                records.push(stored(&sent, &[]));
                if is_link {
                    chain.push(sent);
                }
            }
            for some in records.chunks(500) {
                log.commit(some.to_vec(), Vec::new()).await;
            }
            let journal = log.journal();
            let ids: Vec<EventId> = chain.iter().map(|sent| sent.id).collect();
            let trace = journal.trace(ids[70]).await.unwrap();
            assert_eq!(trace.lines().iter().map(|line| line.event).collect::<Vec<_>>(), ids);
            assert_eq!(journal.why(ids[149]).await.unwrap(), ids[..149]);
            assert_eq!(journal.impact(ids[0]).await.unwrap(), ids[1..]);
            // Every other event of the correlation is a root of its own.
            let all = journal.trace("busy").await.unwrap();
            assert_eq!(all.lines().len(), 6_000);
            assert_eq!(all.lines().iter().filter(|line| line.depth == 0).count(), 6_000 - ids.len() + 1);
        });
    }
}

#[test]
fn effects_in_other_correlations_are_found_however_many_there_are() {
    let max = limits::JOURNAL_TAGS_MAX as u64;
    for count in [max - 1, max, max + 1, 2 * max, 3 * max + 1] {
        let log = Log::in_memory();
        run(async {
            // Each effect has the correlation of a cause that is not below the root.
            let (root, foreign) = (log.event(0, "root", &[], |_| {}), log.event(1, "foreign", &[], |_| {}));
            log.commit(vec![stored(&root, &[]), stored(&foreign, &[])], Vec::new()).await;
            for number in 1..=count {
                let near = log.event(10 * number, "near", &[root.id], |_| {});
                let far = log.event(10 * number + 1, "far", &[foreign.id, near.id], |_| {});
                assert_eq!(far.root, foreign.id);
                let on = step(&far, ended(&far, "n", "on", StepOutcome::End));
                log.commit(vec![stored(&near, &[]), stored(&far, &[]), on], Vec::new()).await;
            }
            assert_eq!(log.journal().impact(root.id).await.unwrap().len() as u64, 2 * count);
            let trace = log.journal().trace(root.id).await.unwrap();
            let ended =
                |line: &&happen::Line| line.handled.iter().any(|at| at.outcome == TraceOutcome::Ended);
            assert_eq!(trace.lines().iter().filter(ended).count() as u64, count);
        });
    }
}

#[test]
fn what_was_pruned_cuts_a_trace() {
    for log in logs() {
        run(async {
            let [placed, charge, ..] = order(&log).await;
            let prune = Prune {
                before: Position::from_number(u128::MAX >> 65),
                records: Select::tag(Tag::Event(placed.id)),
                keep: Vec::new(),
                histories: Vec::new(),
                documents: Vec::new(),
            };
            log.store.prune(prune).await.unwrap();
            let journal = log.journal();
            let trace = journal.trace(charge.id).await.unwrap();
            assert_eq!(trace.lines().len(), 1);
            assert!(trace.is_cut() && trace.to_string().contains("not remembered any more"), "{trace}");
            assert_eq!(trace.lines()[0].causes, [placed.id]);
            assert_eq!(journal.why(charge.id).await.unwrap(), []);
            assert!(journal.event(placed.id).await.unwrap().is_none());
        });
    }
}

#[test]
fn a_trace_and_an_impact_end_at_a_limit() {
    let max = limits::JOURNAL_TRACE_EVENTS_MAX as u64;
    let log = Log::in_memory();
    run(async {
        // Two events above one that caused as many as may be, less one.
        let top = log.event(0, "top", &[], |_| {});
        let middle = log.event(1, "middle", &[top.id], |_| {});
        let low = log.event(2, "low", &[middle.id], |_| {});
        let mut records: Vec<_> = [&top, &middle, &low].map(|sent| stored(sent, &[])).into();
        for number in 3..max + 2 {
            records.push(stored(&log.event(number, "leaf", &[low.id], |_| {}), &[]));
        }
        for some in records.chunks(500) {
            log.commit(some.to_vec(), Vec::new()).await;
        }
        let journal = log.journal();
        assert_eq!(journal.impact(low.id).await.unwrap().len() as u64, max - 1);
        assert_eq!(journal.impact(middle.id).await.unwrap().len() as u64, max);
        assert_eq!(code(journal.impact(top.id).await), "misuse");
        let trace = journal.trace(low.id).await.unwrap();
        assert!(trace.is_cut() && trace.in_columns(80).ends_with("a trace ends at 50000)\n"));
    });
}

#[test]
fn a_document_is_shown_as_it_was() {
    for log in logs() {
        run(async {
            let key = "state/shop/orders";
            let mut positions = Vec::new();
            for (revision, content) in
                [(1, Some(orders(1))), (2, Some(orders(2))), (3, None), (4, Some(orders(4)))]
            {
                log.at(revision * 10);
                // A commit without records has a position and a time as well.
                positions.push(log.commit(Vec::new(), vec![write(key, revision, content)]).await);
            }
            let journal = log.journal();
            let revision = |found: Option<happen::store::Document>| found.map_or(0, |found| found.revision);
            let times = [(9, 0), (10, 1), (11, 1), (20, 2), (30, 3), (39, 3), (40, 4), (10_000, 4)];
            for other in [false, true] {
                for (after_ms, expected) in times {
                    let found = journal.at(key, At::Time(BASE_MS + after_ms)).await.unwrap();
                    assert_eq!(revision(found), expected, "{after_ms}, {other}");
                }
                // The same with records of others behind.
                log.at(50);
                log.store_event(&log.event(50 + u64::from(other), "e", &[], |_| {})).await;
            }
            assert_eq!(revision(journal.at(key, At::Position(Position::START)).await.unwrap()), 0);
            for (index, position) in positions.iter().enumerate() {
                let found = journal.at(key, At::Position(*position)).await.unwrap();
                assert_eq!(revision(found), index as u64 + 1);
            }
            let then = |after_ms| journal.state_at::<Orders>("shop", At::Time(BASE_MS + after_ms));
            assert_eq!(then(20).await.unwrap(), Some(Orders { open: 2 }));
            assert_eq!(then(30).await.unwrap(), None);
            assert_eq!(then(0).await.unwrap(), None);
            assert!(journal.at("state/shop/nothing", At::Time(u64::MAX)).await.unwrap().is_none());
            assert_eq!(code(journal.at(key, At::Event(id(7))).await), "not-found");
            // What is not kept is not told as if it had never been.
            log.commit(Vec::new(), vec![Write { past: Past::Dropped, ..write(key, 5, Some(orders(5))) }])
                .await;
            assert_eq!(code(then(20).await), "not-found");
            assert_eq!(then(50).await.unwrap(), Some(Orders { open: 5 }));
            // Another shape is not read as if it were this one.
            let other = Content { version: 1, ..orders(6) };
            log.commit(Vec::new(), vec![write(key, 6, Some(other))]).await;
            assert_eq!(code(then(50).await), "wrong-version");
            let entity = "entity/shop/orders/a%2Fb";
            log.commit(Vec::new(), vec![write(entity, 1, Some(orders(9)))]).await;
            let found = journal.entity_at::<Orders>("shop", "a/b", At::Time(u64::MAX)).await.unwrap();
            assert_eq!(found, Some(Orders { open: 9 }));
        });
    }
}

/// A step that handles an event by changing documents, and what it sends.
async fn changed(
    log: &Log,
    sent: &Sent,
    node: &str,
    keys: &[(&str, u64)],
    effects: &[NewRecord],
) -> Position {
    let mut done = ended(sent, node, "on", StepOutcome::End);
    done.changes = keys.iter().map(|(key, revision)| change(key, *revision)).collect();
    let documents =
        keys.iter().map(|(key, revision)| write(key, *revision, Some(orders(*revision)))).collect();
    let records = [step(sent, done)].into_iter().chain(effects.iter().cloned()).collect();
    log.commit(records, documents).await
}

#[test]
fn a_document_tells_which_events_made_it_what_it_is() {
    for log in logs() {
        run(async {
            let (key, other) = ("state/shop/orders", "state/shop/other");
            let events: Vec<Sent> = (1..=3).map(|number| log.event(number, "e", &[], |_| {})).collect();
            for event in &events {
                log.store_event(event).await;
            }
            // The document's position is that of the last record of its commit, which is one of an effect here.
            let effect = log.event(9, "effect", &[id(1)], |sent| sent.sender = "shop".to_owned());
            changed(&log, &events[0], "shop", &[(key, 1), (other, 1)], &[stored(&effect, &[])]).await;
            changed(&log, &events[1], "shop", &[(other, 2)], &[]).await;
            changed(&log, &events[1], "shop", &[(key, 2)], &[]).await;
            let outside = WireRecord { changes: vec![change(key, 3)], ..WireRecord::default() };
            let outside = NewRecord { tags: vec![Tag::Node("shop".into())], bytes: encoded(&outside) };
            log.commit(vec![outside], vec![write(key, 3, Some(orders(3)))]).await;
            log.at(5);
            log.commit(Vec::new(), vec![write(key, 4, None)]).await;
            let journal = log.journal();
            let reasons = journal.why_document(key, Until::Now).await.unwrap();
            let told: Vec<_> = reasons.iter().map(|reason| (reason.revision, reason.event())).collect();
            assert_eq!(told, [(4, None), (3, None), (2, Some(id(2))), (1, Some(id(1)))]);
            assert!(matches!(reasons[0].made_by, MadeBy::Unknown) && reasons[0].is_deletion);
            assert!(matches!(reasons[1].made_by, MadeBy::Outside));
            let MadeBy::Step { step, about } = &reasons[3].made_by else { panic!("{reasons:?}") };
            assert_eq!((&*step.name, step.changes.len(), &*about.event_type), ("on", 2, "e"));
            let rest = journal.why_document(key, Until::Before(2)).await.unwrap();
            assert_eq!(rest.len(), 1);
            assert!(journal.why_document(key, Until::Before(1)).await.unwrap().is_empty());
            assert_eq!(code(journal.why_document("state/shop/nothing", Until::Now).await), "not-found");
            // After an event is after all its steps, and not after what else their commits had.
            let after = async |key, event| journal.at(key, At::Event(event)).await.unwrap().unwrap().revision;
            assert_eq!(
                (after(key, id(1)).await, after(key, id(2)).await, after(other, id(2)).await),
                (1, 2, 2)
            );
            assert!(journal.at(key, At::Event(id(3))).await.unwrap().is_none());
        });
    }
}

#[test]
fn reasons_come_in_pages() {
    let log = Log::in_memory();
    let max = limits::JOURNAL_ROWS_MAX as u64;
    run(async {
        let key = "state/shop/orders";
        for revision in 1..=max + 1 {
            log.commit(Vec::new(), vec![write(key, revision, Some(orders(revision)))]).await;
            let found = log.journal().why_document(key, Until::Now).await.unwrap();
            assert_eq!(found.len() as u64, revision.min(max));
            assert_eq!(found[0].revision, revision);
        }
        assert_eq!(log.journal().why_document(key, Until::Before(2)).await.unwrap().len(), 1);
    });
}

#[test]
fn states_of_the_past_are_found_by_what_made_them() {
    for log in logs() {
        run(async {
            let key = "state/shop/orders";
            let named = |sent: &mut Sent| sent.correlation = Some("order-7".to_owned());
            let first = log.event(1, "placed", &[], named);
            let second = log.event(2, "paid", &[first.id], |sent| sent.sender = "bank".to_owned());
            let third = log.event(3, "paid", &[], |sent| sent.sender = "cash".to_owned());
            for (number, sent) in [&first, &second, &third].into_iter().enumerate() {
                log.at(10 * (number as u64 + 1));
                log.store_event(sent).await;
                let revision = number as u64 + 1;
                changed(&log, sent, "shop", &[(key, revision), ("entity/shop/orders/a", revision)], &[])
                    .await;
                // Another node handles the same events, and changes a state of the same type.
                changed(&log, sent, "audit", &[("state/audit/orders", revision)], &[]).await;
            }
            let outside = WireRecord { changes: vec![change(key, 4)], ..WireRecord::default() };
            let outside = NewRecord { tags: vec![Tag::Node("shop".into())], bytes: encoded(&outside) };
            log.at(40);
            log.commit(vec![outside], vec![write(key, 4, Some(orders(4)))]).await;
            let journal = log.journal();
            let open = async |query: Query| {
                let found = journal.when::<Orders>("shop", query).await.unwrap();
                found.snapshots.iter().map(|then| then.value.open).collect::<Vec<_>>()
            };
            let all = Query::new;
            assert_eq!(open(all()).await, [1, 2, 3, 4]);
            assert_eq!(open(all().newest_first()).await, [4, 3, 2, 1]);
            assert_eq!(open(all().event(second.id)).await, [2]);
            assert_eq!(open(all().caused_by(first.id)).await, [2]);
            assert_eq!(open(all().correlation("order-7")).await, [1, 2]);
            assert_eq!(open(all().correlation(third.id.to_string())).await, [3]);
            assert_eq!(open(all().event_type("paid")).await, [2, 3]);
            assert_eq!(open(all().sender("cash")).await, [3]);
            assert_eq!(open(all().event_type("paid").sender("bank")).await, [2]);
            assert_eq!(open(all().correlation("order-7").sender("cash")).await, [0_u64; 0]);
            assert_eq!(open(all().since(BASE_MS + 20)).await, [2, 3, 4]);
            assert_eq!(open(all().until(BASE_MS + 20)).await, [1, 2]);
            assert_eq!(open(all().since(BASE_MS + 11).until(BASE_MS + 39).newest_first()).await, [3, 2]);
            assert_eq!(open(all().event(id(9))).await, [0_u64; 0]);

            let found = journal.when::<Orders>("shop", all().event(second.id)).await.unwrap();
            let then = &found.snapshots[0];
            let about = then.about.as_ref().unwrap();
            assert_eq!(
                (about.event, &*about.event_type, about.sender.as_deref()),
                (second.id, "paid", Some("bank"))
            );
            assert_eq!((&*about.causes, &*about.correlation), (&[first.id][..], "order-7"));
            assert_eq!((&*then.key, then.revision, then.at_unix_ms), (key, 2, BASE_MS + 20));
            assert_eq!((then.step.as_deref(), found.next, found.forgotten), (Some("on"), None, 0));

            let odd = journal
                .when::<Orders>("shop", all())
                .matching(|then| then.value.open % 2 == 1)
                .await
                .unwrap();
            assert_eq!(odd.snapshots.iter().map(|then| then.revision).collect::<Vec<_>>(), [1, 3]);
            let a = journal.when::<Orders>("shop", all()).entity("a").await.unwrap();
            let any = journal.when::<Orders>("shop", all()).entities().await.unwrap();
            assert_eq!((a.snapshots.len(), any.snapshots.len()), (3, 3));
            assert!(journal.when::<Orders>("shop", all()).entity("b").await.unwrap().snapshots.is_empty());
            assert_eq!(journal.when_documents("shop", &all()).await.unwrap().snapshots.len(), 7);

            // A page says where to go on, in both directions.
            for (query, expected) in [(all(), [1, 2, 3, 4]), (all().newest_first(), [4, 3, 2, 1])] {
                let (mut query, mut seen) = (query.at_most(1), Vec::new());
                loop {
                    let page = journal.when::<Orders>("shop", query.clone()).await.unwrap();
                    assert!(page.snapshots.len() <= 1);
                    seen.extend(page.snapshots.iter().map(|then| then.revision));
                    let Some(next) = page.next else { break };
                    query = query.after(next);
                }
                assert_eq!(seen, expected);
            }
            // Revisions that are not kept are counted.
            log.commit(Vec::new(), vec![Write { past: Past::Dropped, ..write(key, 5, Some(orders(5))) }])
                .await;
            let rest = journal.when::<Orders>("shop", all()).await.unwrap();
            assert_eq!((rest.snapshots.len(), rest.forgotten), (0, 4));
        });
    }
}

#[test]
fn a_search_looks_at_so_many_records_and_says_where_to_go_on() {
    let max = limits::JOURNAL_LOOKED_AT_MAX;
    let log = Log::in_memory();
    run(async {
        let sent = log.event(1, "e", &[], |_| {});
        let nothing = step(&sent, ended(&sent, "shop", "on", StepOutcome::End));
        for records in parts(max - 1) {
            log.commit(vec![nothing.clone(); records], Vec::new()).await;
        }
        let last = async || log.journal().when::<Orders>("shop", Query::new()).await.unwrap().next;
        assert_eq!(last().await, None);
        log.commit(vec![nothing.clone()], Vec::new()).await;
        let at_limit = last().await.unwrap();
        log.commit(vec![nothing.clone()], Vec::new()).await;
        assert_eq!(last().await, Some(at_limit));
        let rest = log.journal().when::<Orders>("shop", Query::new().after(at_limit)).await.unwrap();
        assert_eq!(rest.next, None);
    });
}

fn flow_document(kind: &str, step: WireStep<'_>) -> Write {
    let node = step.flow.node.replace('%', "%25").replace('/', "%2F");
    let key = format!("{kind}/{node}/{}/{}", step.event, step.flow.registration);
    let bytes = encoded(&WireRecord { step: Some(step), ..WireRecord::default() });
    write(&key, 1, Some(Content { name: kind.into(), version: 1, bytes }))
}

#[test]
fn flows_under_way_and_dead_ones_are_rows() {
    for log in logs() {
        run(async {
            let events: Vec<Sent> = (1..=4).map(|number| log.event(number, "e", &[], |_| {})).collect();
            let mut ready = ended(&events[0], "shop", "validate", StepOutcome::Waits);
            (ready.name, ready.number, ready.attempt) = ("charge".into(), 2, 1);
            ready.values = vec![("total".into(), vec![0xcd, 2, 0xbc].into())];
            let point = |kind, result: Option<Vec<u8>>| WirePoint {
                ordinal: 3,
                kind,
                name: "payments".into(),
                event: Some(id(7)),
                due_unix_ms: BASE_MS + 99,
                digest: 1,
                result: result.map(Cow::from),
            };
            let mut waits = ended(&events[1], "shop", "validate", StepOutcome::Waits);
            waits.points = vec![point(PointKind::Once, Some(vec![0xc0])), point(PointKind::Ask, None)];
            let busy = failure(&events[2], ErrorKind::Busy { what: "the bank".to_owned() });
            let retry = StepOutcome::Retry { due_unix_ms: BASE_MS + 5, error: busy.clone().into() };
            let mut retries = ended(&events[2], "a/b", "on", retry);
            retries.attempt = 2;
            let mut dead = ended(&events[3], "a/b", "on", StepOutcome::Failed(busy.into()));
            dead.attempt = 3;
            log.at(8);
            let documents = vec![
                flow_document("flow", ready),
                flow_document("flow", waits),
                flow_document("flow", retries.clone()),
                flow_document("dead", dead),
            ];
            let position = log.commit(vec![step(&events[2], retries)], documents).await;
            let journal = log.journal();
            let all = journal.flows(&FlowFilter::new()).await.unwrap();
            assert_eq!(all.flows.len(), 3);
            assert_eq!(all.next, None);
            let shop = journal.flows(&FlowFilter::new().node("shop")).await.unwrap().flows;
            assert_eq!(shop.iter().map(|flow| flow.event).collect::<Vec<_>>(), [id(1), id(2)]);
            assert_eq!(
                (&*shop[0].step, shop[0].number, &*shop[0].flow.registration),
                ("charge", 2, "validate")
            );
            assert_eq!(shop[0].values["total"].json().unwrap(), &json!(700));
            assert!(matches!(shop[0].standing, Standing::Ready));
            assert_eq!(
                (shop[0].since_unix_ms, shop[0].position, shop[0].revision),
                (BASE_MS + 8, position, 1)
            );
            let Standing::Waiting(point) = &shop[1].standing else { panic!("{shop:?}") };
            assert_eq!(
                (point.kind, &*point.name, point.due_unix_ms),
                (PointKind::Ask, "payments", BASE_MS + 99)
            );
            assert_eq!((point.event, point.is_settled, shop[1].points.len()), (Some(id(7)), false, 2));
            let of_event = journal.flows(&FlowFilter::new().node("a/b").event(id(3))).await.unwrap().flows;
            let Standing::Retrying { due_unix_ms, error } = &of_event[0].standing else {
                panic!("{of_event:?}")
            };
            assert_eq!((*due_unix_ms, error.code(), of_event[0].attempt), (BASE_MS + 5, "busy", 2));
            let attempts = journal.attempts(id(3), &of_event[0].flow).await.unwrap();
            assert_eq!(attempts.iter().map(|step| step.attempt).collect::<Vec<_>>(), [2]);
            assert!(journal.attempts(id(3), &shop[0].flow).await.unwrap().is_empty());
            let dead = journal.dead(&FlowFilter::new()).await.unwrap().flows;
            assert_eq!((dead.len(), dead[0].event, dead[0].attempts), (1, id(4), 3));
            assert_eq!((dead[0].error.code(), &*dead[0].flow.node), ("busy", "a/b"));
            for (filter, found) in [
                (FlowFilter::new().event(id(2)), 1),
                (FlowFilter::new().step("charge"), 1),
                (FlowFilter::new().registration("on"), 1),
                (FlowFilter::new().node("sho"), 0),
                (FlowFilter::new().node("shop").registration("on"), 0),
            ] {
                assert_eq!(journal.flows(&filter).await.unwrap().flows.len(), found, "{filter:?}");
            }
            // One at a time gives the same.
            let (mut filter, mut seen) = (FlowFilter::new().at_most(1), Vec::new());
            while let Some(next) = {
                let page = journal.flows(&filter).await.unwrap();
                seen.extend(page.flows.iter().map(|flow| flow.key.clone()));
                page.next
            } {
                filter = filter.after(next);
            }
            assert_eq!(seen, all.flows.iter().map(|flow| flow.key.clone()).collect::<Vec<_>>());
            let rubbish = Content { name: "flow".into(), version: 1, bytes: [9, 9].into() };
            log.commit(Vec::new(), vec![write("flow/zoo/x/y", 1, Some(rubbish))]).await;
            let error = journal.flows(&FlowFilter::new()).await.unwrap_err();
            assert_eq!(error.code(), "damaged");
            assert!(error.to_string().contains("flow/zoo/x/y"), "{error}");
        });
    }
}

#[test]
fn a_tail_gives_every_record_and_goes_on_behind_damage() {
    for log in logs() {
        run(async {
            let [placed, charge, ..] = order(&log).await;
            let journal = log.journal();
            let mut tail = journal.tail(Select::All, Position::START).await.unwrap();
            let mut entries = Vec::new();
            let head = journal.head().await.unwrap();
            while tail.position() < head {
                entries.push(tail.next().await.unwrap());
            }
            let events: Vec<EventId> =
                entries.iter().flat_map(|entry| &entry.events).map(|event| event.id).collect();
            assert_eq!((events.len(), events[0], events[1]), (4, placed.id, charge.id));
            assert_eq!(
                entries[0].accepted.iter().map(|flow| &*flow.node).collect::<Vec<_>>(),
                ["shop", "audit"]
            );
            let pay = entries[2].step.as_ref().unwrap();
            assert_eq!((&*pay.name, pay.sent.as_slice()), ("pay", &[charge.id][..]));
            assert!(entries.windows(2).all(|pair| pair[0].position < pair[1].position));

            let rubbish = NewRecord { tags: vec![Tag::Event(id(77))], bytes: (*b"rubbish").into() };
            let position = log.commit(vec![rubbish], Vec::new()).await;
            let last = log.event(78, "e", &[], |_| {});
            log.store_event(&last).await;
            let error = tail.next().await.unwrap_err();
            assert_eq!((error.code(), error.event_id()), ("damaged", Some(id(77))));
            assert!(error.to_string().contains(&format!("position {position}")), "{error}");
            assert_eq!(tail.next().await.unwrap().events[0].id, last.id);
            let mut of_node =
                journal.tail(Select::tag(Tag::Node("payments".into())), Position::START).await.unwrap();
            assert_eq!(of_node.next().await.unwrap().step.unwrap().event, charge.id);
            // A question that needs the damaged record says so as well.
            assert_eq!(code(journal.event(id(77)).await), "damaged");
        });
    }
}

#[test]
fn a_whole_log_is_verified_and_counted() {
    for log in logs() {
        run(async {
            order(&log).await;
            let other = NewRecord { tags: vec![Tag::Declared("mine".into())], bytes: (*b"anything").into() };
            log.commit(vec![other], Vec::new()).await;
            // Its cause was sent by another process, and is not stored here.
            let elsewhere = log.event(90, "elsewhere", &[], |_| {});
            log.store_event(&log.event(91, "e", &[elsewhere.id], |_| {})).await;
            let mut told = Vec::new();
            let verified = log.journal().verify_with(|so_far| told.push(so_far.records)).await.unwrap();
            assert!(verified.is_whole(), "{verified:?}");
            assert_eq!((verified.records, verified.events, verified.steps), (13, 5, 7));
            assert_eq!((verified.causes, verified.edge, verified.others, verified.forgotten), (3, 1, 1, 0));
            assert_eq!(told, [13]);
            assert!(verified.into_result().is_ok());
        });
    }
}

#[test]
fn what_does_not_fit_is_named() {
    async fn first(log: &Log) -> (Position, Option<EventId>, String) {
        let verified = log.journal().verify().await.unwrap();
        assert!(verified.is_complete && !verified.is_whole());
        let first = verified.first.unwrap();
        (first.position, first.event, first.what)
    }
    for make in [Log::in_memory, Log::in_a_folder] {
        // An event that was changed and hashed anew is found at its effect.
        let log = make();
        run(async {
            let changed = log.event(1, "a", &[], |_| {});
            let effect = log.event(2, "b", &[changed.id], |_| {});
            let changed = log.event(1, "another type", &[], |_| {});
            log.store_event(&changed).await;
            let position = log.store_event(&effect).await;
            let found = first(&log).await;
            assert_eq!((found.0, found.1), (position, Some(effect.id)));
            assert!(found.2.contains(&changed.id.to_string()), "{}", found.2);
        });
        // A step without its event is one, unless an anchor says that something was pruned.
        let log = make();
        run(async {
            let never = log.event(1, "a", &[], |_| {});
            let position =
                log.commit(vec![step(&never, ended(&never, "n", "on", StepOutcome::End))], vec![]).await;
            let found = first(&log).await;
            assert_eq!((found.0, found.1), (position, Some(never.id)));
            let anchor = Content { name: "anchor".into(), version: 1, bytes: Vec::new().into() };
            log.commit(Vec::new(), vec![write("anchor/1", 1, Some(anchor))]).await;
            let verified = log.journal().verify().await.unwrap();
            assert!(verified.is_whole() && verified.forgotten == 1, "{verified:?}");
        });
        // A record under the tags of another event is never found by its own.
        let log = make();
        run(async {
            let (one, two) = (log.event(1, "a", &[], |_| {}), log.event(2, "a", &[], |_| {}));
            let position =
                log.commit(vec![NewRecord { tags: tags(&two), ..stored(&one, &[]) }], vec![]).await;
            let found = first(&log).await;
            assert_eq!((found.0, found.1), (position, Some(one.id)));
        });
        // Two events of one id cannot both be true.
        let log = make();
        run(async {
            log.store_event(&log.event(1, "a", &[], |_| {})).await;
            let position = log.store_event(&log.event(1, "b", &[], |_| {})).await;
            assert_eq!(first(&log).await.0, position);
        });
    }
}

#[test]
fn a_folder_is_asked_while_its_space_runs_and_its_damage_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let options = || SqliteOptions::new(Arc::new(RealEnv::new()));
    let store = Arc::new(run(SqliteStore::open(folder.path(), options())).unwrap());
    let log = Log { store, clock: Log::clock(), events: Mutex::default(), _folder: None };
    let [placed, charge, ..] = run(order(&log));
    let reading =
        || Journal::new(Arc::new(run(SqliteStore::open_read_only(folder.path(), options())).unwrap()));
    let journal = reading();
    assert_eq!(run(journal.trace(charge.id)).unwrap().lines().len(), 4);
    assert_eq!(run(journal.why(charge.id)).unwrap(), [placed.id]);
    assert!(run(journal.verify()).unwrap().is_whole());
    drop((log, journal));
    // A disk that changes a byte is told with the position before it, and the counts up to there.
    let connection = rusqlite::Connection::open(folder.path().join("happen.db")).unwrap();
    connection
        .execute("UPDATE records SET bytes = CAST(bytes || x'00' AS BLOB) WHERE position = 4", [])
        .unwrap();
    drop(connection);
    let verified = run(reading().verify()).unwrap();
    assert_eq!((verified.records, verified.is_complete, verified.misfits), (3, false, 1));
    let first = verified.first.clone().unwrap();
    assert_eq!(first.position, Position::from_number(3));
    assert!(first.what.contains("position 4"), "{first}");
    assert_eq!(code(verified.into_result()), "damaged");
}

#[test]
fn questions_may_be_asked_from_any_task() {
    fn can_move<T: Send>(_: &T) {}
    let journal = Log::in_memory().journal();
    can_move(&journal.trace(id(1)));
    can_move(&journal.why_document("state/a/b", Until::Now));
    can_move(&journal.when::<Orders>("shop", Query::new()).into_future());
    can_move(&journal.flows(&FlowFilter::new()));
    can_move(&journal.verify());
    can_move(&journal.find("order-7"));
    can_move(&journal.tail(Select::All, Position::START));
}

impl Env for Clock {
    fn unix_ms(&self) -> u64 {
        self.unix_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        self.env.monotonic()
    }

    fn clock(&self) -> &Arc<CoarseClock> {
        self.env.clock()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.env.fill_random(bytes);
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.env.spawn(task);
    }

    fn spawn_blocking(&self, work: BoxWork) {
        self.env.spawn_blocking(work);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.env.sleep(time)
    }
}
