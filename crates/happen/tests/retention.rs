//! What a store forgets by a plan, without a space: what stays, what is counted before, and the anchors that are left,
//! which `verify` goes by.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use happen::journal::Journal;
use happen::retention::Pruning;
use happen::store::{
    Batch, Content, History, MemoryStore, NewRecord, Past, Pruned, Read, Record, Replaced, Select, Store,
    Tag, Until, Write,
};
use happen::{Config, Context, Event, EventId, Space, limits, secs};
use happen_core::codec::{StepOutcome, WireRecord, WireStep};
use happen_core::content::ContentHasher;
use happen_core::env::Env;
use happen_testing::Simulator;
use serde_json::{Value as Json, json};

/// A store in which a space has handled so many events, one each second.
async fn store(sim: &Simulator, events: u64) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
    let space = Space::with_store(Config::default(), sim.env(), Arc::clone(&store)).unwrap();
    space.node("ear").on("*", |_: &Event, _: &Context| ());
    space.start().await.unwrap();
    for event in 0..events {
        let event_type = if event % 2 == 0 { "even" } else { "odd" };
        space.send("ear", Event::new(event_type, json!(event))).reply::<()>().await.unwrap();
        space.env().sleep(secs(1)).await;
    }
    space.stop().await.unwrap();
    store
}

async fn log(store: &Arc<dyn Store>) -> Vec<Record> {
    store.read(Read::forward(Select::All)).await.unwrap().records
}

async fn anchors(store: &Arc<dyn Store>) -> Vec<(Vec<u8>, Json)> {
    let history = History { key: "anchor/log".into(), until: Until::Now, documents_max: 10 };
    let found = store.history(history).await.unwrap();
    let contents = found.into_iter().filter_map(|document| document.content);
    contents
        .map(|content| {
            (content.bytes.to_vec(), happen_core::content::decode(&content.bytes, "anchor").unwrap())
        })
        .collect()
}

/// The hash over an earlier anchor and what was forgotten behind it.
fn chained(before: &[u8], forgotten: &[Record]) -> String {
    let mut hasher = ContentHasher::new();
    hasher.update(before);
    for record in forgotten {
        hasher.update(&record.position.number().to_le_bytes());
        hasher.update(&record.at_unix_ms.to_le_bytes());
        hasher.update(&record.bytes);
    }
    hasher.finish().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn each_anchor_has_the_hash_of_what_is_forgotten_and_of_the_anchor_before() {
    let sim = Simulator::new(1);
    sim.run(async {
        let store = store(&sim, 10).await;
        let all = log(&store).await;
        for at in [4, 7] {
            let pruning = Pruning::before(&store, all[at].at_unix_ms).await.unwrap();
            assert_eq!(pruning.position(), all[at].position);
            let would = pruning.count(&store).await.unwrap();
            assert_eq!(pruning.carry_out(&store).await.unwrap(), would);
        }
        assert_eq!(log(&store).await, all[7..]);
        let anchors = anchors(&store).await;
        let [(_, second), (bytes, first)] = &anchors[..] else { panic!("{anchors:?}") };
        assert_eq!(first["hash"], chained(b"", &all[..4]));
        assert_eq!(second["hash"], chained(bytes, &all[4..7]));
        assert_eq!((&second["records"], &second["newest_unix_ms"]), (&3.into(), &all[6].at_unix_ms.into()));
        assert!(Journal::new(Arc::clone(&store)).verify().await.unwrap().is_whole());
        // Nothing is left to forget, and no anchor says otherwise.
        let again = Pruning::before(&store, all[7].at_unix_ms).await.unwrap();
        assert_eq!(again.carry_out(&store).await.unwrap(), Pruned::default());
        assert_eq!(self::anchors(&store).await.len(), 2);
    });
}

#[test]
fn a_plan_is_for_all_types_for_some_or_for_all_but_some() {
    let sim = Simulator::new(2);
    sim.run(async {
        let store = store(&sim, 10).await;
        let plan = async || Pruning::before(&store, u64::MAX).await.unwrap();
        assert_eq!(plan().await.count(&store).await.unwrap().records, 10);
        assert_eq!(plan().await.types([""; 0]).count(&store).await.unwrap().records, 10);
        assert_eq!(plan().await.types(["even", "other"]).count(&store).await.unwrap().records, 5);
        assert_eq!(plan().await.keep_types(["even", "odd"]).count(&store).await.unwrap().records, 0);
        assert_eq!(plan().await.types(["even"]).carry_out(&store).await.unwrap().records, 5);
        let is_odd = |record: &Record| record.tags.contains(&Tag::Type("odd".into()));
        let left = log(&store).await;
        assert!(left.len() == 5 && left.iter().all(is_odd), "{left:?}");
        let anchors = anchors(&store).await;
        assert_eq!(anchors[0].1["records"], 5);
    });
}

#[test]
fn a_step_without_its_event_is_forgotten_only_when_its_event_is_as_old_as_what_was() {
    let sim = Simulator::new(3);
    sim.run(async {
        let store = store(&sim, 3).await;
        let all = log(&store).await;
        let pruning = Pruning::before(&store, all[2].at_unix_ms).await.unwrap();
        pruning.carry_out(&store).await.unwrap();
        let unix_ms = sim.env().unix_ms();
        for (made_unix_ms, is_whole) in [(all[1].at_unix_ms, true), (unix_ms + 60_000, false)] {
            let event = happen_core::id::IdBlock::new(7).next_id(made_unix_ms);
            let step = WireStep::new(event, "ear", "hear", "hear", StepOutcome::End);
            let record = WireRecord { step: Some(step), ..Default::default() };
            let mut bytes = Vec::new();
            record.encode_into(&mut bytes, 1 << 20).unwrap();
            let tags = vec![Tag::Event(event), Tag::Node("ear".into())];
            let records = vec![NewRecord { tags, bytes: bytes.into() }];
            store.commit(vec![Batch { records, ..Batch::default() }]).await.remove(0).unwrap();
            let verified = Journal::new(Arc::clone(&store)).verify().await.unwrap();
            assert_eq!((verified.is_whole(), verified.forgotten), (is_whole, 1), "{verified:?}");
        }
    });
}

#[test]
fn a_flow_that_cannot_be_read_or_names_no_event_keeps_anything_from_being_forgotten() {
    let readable = format!("flow/ear/{}/hear", EventId::from_halves(7, 1).unwrap());
    for key in ["flow/ear/not-an-id/hear", &readable] {
        let sim = Simulator::new(4);
        sim.run(async {
            let store = store(&sim, 3).await;
            let content = Content { name: "flow".into(), version: 1, bytes: (*b"?").into() };
            let write = Write {
                key: key.into(),
                revision: 1,
                content: Some(content),
                past: Past::Dropped,
                replaced: Replaced::Kept,
            };
            let batch = Batch { documents: vec![write], ..Batch::default() };
            store.commit(vec![batch]).await.remove(0).unwrap();
            let error = Pruning::before(&store, u64::MAX).await.unwrap_err();
            assert_eq!(error.code(), "damaged");
            assert!(error.to_string().contains(key), "{error}");
            assert_eq!(log(&store).await.len(), 3);
        });
    }
}

/// Leaves the documents of so many flows, each of an event with a record of its own.
async fn under_way(store: &Arc<dyn Store>, env: &Arc<dyn Env>, flows: std::ops::Range<usize>) {
    for flow in flows {
        let event = EventId::from_halves(7, flow as u64 + 1).unwrap();
        let tags = vec![Tag::Event(event), Tag::Type("wait".into())];
        let step = WireStep::new(event, "ear", "hear", "hear", StepOutcome::Waits);
        let mut bytes = Vec::new();
        WireRecord { step: Some(step), ..WireRecord::default() }.encode_into(&mut bytes, 1 << 20).unwrap();
        let content = Content { name: "flow".into(), version: 1, bytes: bytes.into() };
        let write = Write {
            key: format!("flow/ear/{event}/hear").into(),
            revision: 1,
            content: Some(content),
            past: Past::Dropped,
            replaced: Replaced::Kept,
        };
        let records = vec![NewRecord { tags, bytes: (*b"?").into() }];
        let batch = Batch { records, documents: vec![write], ..Batch::default() };
        store.commit(vec![batch]).await.remove(0).unwrap();
        env.sleep(secs(1)).await;
    }
}

#[test]
fn a_pruning_that_nobody_looks_at_goes_as_far_as_not_too_many_events_are_needed() {
    let sim = Simulator::new(5);
    sim.run(async {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
        let max = limits::PRUNE_KEPT_MAX;
        let mut there = 0;
        for len in [max - 1, max, max + 1] {
            under_way(&store, &sim.env(), there..len).await;
            there = len;
            let exact = Pruning::before(&store, u64::MAX).await.map(|plan| plan.events_kept());
            match exact {
                Ok(kept) => assert_eq!((kept, len <= max), (len as u64, true)),
                Err(error) => assert_eq!((error.code(), len > max), ("misuse", true)),
            }
            let far = Pruning::as_far_as(&store, u64::MAX).await.unwrap();
            assert_eq!(far.events_kept(), len.min(max) as u64);
        }
        // The last one and what came behind it stay until fewer are needed.
        let loose = NewRecord { tags: vec![Tag::Type("loose".into())], bytes: (*b"?").into() };
        let batch = Batch { records: vec![loose], ..Batch::default() };
        store.commit(vec![batch]).await.remove(0).unwrap();
        let newest = store.read(Read::backward(Select::All).at_most(2)).await.unwrap().records;
        let far = Pruning::as_far_as(&store, u64::MAX).await.unwrap();
        assert_eq!(far.position(), newest[1].position);
        assert_eq!(far.carry_out(&store).await.unwrap().records, 0);
        let first = EventId::from_halves(7, 1).unwrap();
        let key = format!("flow/ear/{first}/hear").into();
        let end = Write { key, revision: 2, content: None, past: Past::Dropped, replaced: Replaced::Kept };
        store.commit(vec![Batch { documents: vec![end], ..Batch::default() }]).await.remove(0).unwrap();
        let far = Pruning::as_far_as(&store, u64::MAX).await.unwrap();
        assert_eq!(far.carry_out(&store).await.unwrap().records, 2);
    });
}
