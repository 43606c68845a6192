//! What is true of the log of every space that has come to rest, whatever its nodes did. Knows the records, and no
//! workload.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use happen::store::{Document, List, Read, Select, Start, Store, Tag};
use happen::{EventId, State};
use happen_core::codec::{CauseLink, PointKind, StepOutcome, WireParcel, WireRecord};
use happen_core::limits::RECORD_BYTES_MAX;
use happen_core::state::decode_document;

/// What the log tells.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) records: usize,
    pub(crate) events: BTreeSet<EventId>,
    /// The keys of dead letters.
    pub(crate) dead: Vec<String>,
}

/// One run of one registration for one event.
type Flow = (EventId, String, String);

/// Reads the whole log and checks what holds for each: records can be read, each event has its causes before it, each
/// flow that began has ended exactly once, no step was committed twice, and what was done once has one value.
pub(crate) async fn check(store: &Arc<dyn Store>) -> Log {
    let mut log = Log::default();
    let mut begun = BTreeSet::new();
    // Those that were kept for nodes of other processes, whose takings are records with the event as well.
    let mut kept = BTreeSet::new();
    let mut ends: BTreeMap<Flow, u32> = BTreeMap::new();
    let mut steps: BTreeSet<(Flow, u32)> = BTreeSet::new();
    let mut once: BTreeMap<(Flow, u32, String), Vec<u8>> = BTreeMap::new();
    let mut sent = BTreeSet::new();
    let mut start = Start::Edge;
    loop {
        let page = store.read(Read::forward(Select::All).start(start)).await.unwrap();
        for record in &page.records {
            log.records += 1;
            let wire = WireRecord::decode(&record.bytes, RECORD_BYTES_MAX).unwrap();
            if !wire.event.is_empty() {
                let parcel = WireParcel::decode(&wire.event, RECORD_BYTES_MAX).unwrap();
                for event in parcel.events() {
                    assert!(record.tags.contains(&Tag::Event(event.id)), "{:?}", record.tags);
                    for cause in event.causes() {
                        let id = id_of(cause);
                        assert!(log.events.contains(&id), "{} has no cause {id} before it", event.id);
                        assert!(record.tags.contains(&Tag::Cause(id)), "{:?}", record.tags);
                    }
                    let taken = kept.contains(&event.id) && !wire.accepted.is_empty();
                    assert!(
                        log.events.insert(event.id) || taken,
                        "{} `{}` is there twice",
                        event.id,
                        event.event_type
                    );
                    if record.tags.iter().any(is_inbox) {
                        kept.insert(event.id);
                    }
                    if parcel.events().len() == 1 {
                        for flow in &wire.accepted {
                            let (node, registration) = (flow.node.to_string(), flow.registration.to_string());
                            let flow = (event.id, node, registration);
                            assert!(begun.insert(flow.clone()), "{flow:?} began twice");
                        }
                    }
                }
            }
            let Some(step) = wire.step else { continue };
            let flow: Flow = (step.event, step.flow.node.into_owned(), step.flow.registration.into_owned());
            sent.extend(step.sent);
            for point in step.points.iter().filter(|point| point.kind == PointKind::Once) {
                let Some(result) = point.result.as_deref() else { continue };
                let key = (flow.clone(), step.number, point.name.clone().into_owned());
                let known = once.entry(key).or_insert_with(|| result.to_vec());
                assert_eq!(known, result, "{flow:?} did `{}` more than once", point.name);
            }
            match step.outcome {
                StepOutcome::Waits | StepOutcome::Retry { .. } => {}
                outcome => {
                    let first = steps.insert((flow.clone(), step.number));
                    assert!(first, "step {} of {flow:?} was committed twice", step.number);
                    if !matches!(outcome, StepOutcome::Next(_)) {
                        *ends.entry(flow).or_default() += 1;
                    }
                }
            }
        }
        match page.next {
            Some(next) => start = Start::Position(next),
            None => break,
        }
    }
    let lost: Vec<_> = begun.iter().filter(|flow| !ends.contains_key(*flow)).collect();
    assert!(lost.is_empty(), "these began and never ended: {lost:?}");
    let twice: Vec<_> = ends.iter().filter(|(_, ends)| **ends > 1).collect();
    assert!(twice.is_empty(), "these ended more than once: {twice:?}");
    let unsent: Vec<_> = sent.difference(&log.events).collect();
    assert!(unsent.is_empty(), "these were sent and are not in the log: {unsent:?}");
    log.dead = documents(store, "dead/").await.into_iter().map(|document| document.key.to_string()).collect();
    log
}

/// The flows that are under way.
pub(crate) async fn flows(store: &Arc<dyn Store>) -> Vec<String> {
    documents(store, "flow/").await.into_iter().map(|document| document.key.to_string()).collect()
}

/// The states below a key, by the rest of their keys.
pub(crate) async fn read_all<S: State>(store: &Arc<dyn Store>, prefix: &str) -> BTreeMap<String, S> {
    let read = |document: Document| {
        let content = document.content.unwrap();
        let state = decode_document::<S>(content.version, &content.bytes).unwrap();
        (document.key[prefix.len()..].to_owned(), state)
    };
    documents(store, prefix).await.into_iter().map(read).collect()
}

async fn documents(store: &Arc<dyn Store>, prefix: &str) -> Vec<Document> {
    let mut all = Vec::new();
    loop {
        let after = all.last().map(|document: &Document| Arc::clone(&document.key));
        let list = List { prefix: prefix.into(), after, documents_max: 500 };
        let page = store.list(list).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

fn is_inbox(tag: &Tag) -> bool {
    matches!(tag, Tag::Declared(name) if name.starts_with("inbox/"))
}

fn id_of(cause: &CauseLink<'_>) -> EventId {
    match cause {
        CauseLink::Known { id, .. } | CauseLink::Local { id, .. } | CauseLink::Bare { id } => *id,
        _ => panic!("a cause of a kind this test does not know"),
    }
}
