//! The limits of what a store remembers, each looked at just below it, at it, and just above it. Time is virtual, and
//! between a space and its store stands somebody who looks at every call and meddles with some.
#![expect(clippy::unwrap_used, reason = "what the helpers cannot make or find fails the test that needs it")]

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use happen::config::Retention;
use happen::store::{
    Batch, Committed, Document, History, List, MemoryStore, Page, Past, Position, Prune, Pruned, Read,
    Replaced, Select, Store, Until, Watch, Write,
};
use happen::{
    Config, Context, Error, ErrorKind, Event, Result, Space, Step, View, done, limits, millis, next_with,
    secs, with,
};
use happen_core::env::{BoxFuture, Env};
use happen_core::limits::PAGE_RECORDS_MAX;
use happen_testing::Simulator;
use serde::{Deserialize, Serialize};

#[derive(happen::State, Default, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[state("ledger", version = 1)]
struct Ledger {
    count: u32,
}

/// An entry that refers to others.
#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("entry", version = 1)]
struct Entry {
    others: Vec<String>,
}

/// Who stands between a space and its store.
struct Between {
    inner: MemoryStore,
    env: Arc<dyn Env>,
    plan: Mutex<Plan>,
}

/// What was seen so far, and what is still to be done to calls.
#[derive(Default)]
struct Plan {
    /// When each commit call came, and its batches.
    commits: Vec<(Duration, Vec<Batch>)>,
    /// When each list was asked for, and of what.
    lists: Vec<(Duration, String)>,
    /// When each document was read that was not in memory.
    reads: Vec<(Duration, String)>,
    prunes: Vec<Duration>,
    /// How long a commit call takes.
    latency: Duration,
    /// How often somebody else is faster with a document whose key begins so, and what of.
    faster: u32,
    faster_with: &'static str,
    by: By,
    /// Commit calls that fail, and reads of documents.
    failing: u32,
    reads_failing: u32,
    /// What changes before two documents or more are read at once, one change each time.
    changes: VecDeque<Vec<Write>>,
}

/// What somebody else makes of a document.
#[derive(Default, Clone, Copy)]
enum By {
    #[default]
    TheSame,
    Deleting,
    /// What it says already.
    AsItWas,
}

impl Between {
    fn new(sim: &Simulator) -> Arc<Self> {
        let inner = MemoryStore::new(sim.env());
        Arc::new(Self { inner, env: sim.env(), plan: Mutex::default() })
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap()
    }

    fn space(self: &Arc<Self>, config: Config) -> Space {
        Space::with_store(config, Arc::clone(&self.env), Arc::clone(self) as Arc<dyn Store>).unwrap()
    }

    /// Has somebody else be faster with a document that a commit is about to write.
    fn be_faster(&self, with: &'static str, times: u32, by: By) {
        let mut plan = self.plan();
        (plan.faster, plan.faster_with, plan.by) = (times, with, by);
    }

    /// What somebody else commits just before these.
    fn before(&self, batches: &[Batch]) -> Option<Batch> {
        let mut plan = self.plan();
        let mut writes = batches.iter().flat_map(|batch| &batch.documents);
        let write = writes.find(|write| plan.faster > 0 && write.key.starts_with(plan.faster_with))?.clone();
        plan.faster -= 1;
        let content = match plan.by {
            By::TheSame => write.content,
            By::Deleting => None,
            By::AsItWas => self.inner.document_now(&write.key)?.unwrap()?.content,
        };
        let write = Write { content, past: Past::Dropped, ..write };
        Some(Batch { documents: vec![write], ..Batch::default() })
    }

    fn now(&self) -> Duration {
        self.env.monotonic()
    }

    fn read_fails(&self, keys: &[Arc<str>]) -> bool {
        let now = self.now();
        let mut plan = self.plan();
        plan.reads.extend(keys.iter().map(|key| (now, key.to_string())));
        let fails = plan.reads_failing > 0;
        plan.reads_failing = plan.reads_failing.saturating_sub(1);
        fails
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::Io { what: "the disk".to_owned() })
}

impl fmt::Debug for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("who stands between")
    }
}

impl Store for Between {
    fn commit(&self, batches: Vec<Batch>) -> BoxFuture<'_, Vec<Result<Committed>>> {
        let (fails, latency) = {
            let now = self.now();
            let mut plan = self.plan();
            plan.commits.push((now, batches.clone()));
            let fails = plan.failing > 0;
            plan.failing = plan.failing.saturating_sub(1);
            (fails, plan.latency)
        };
        Box::pin(async move {
            if !latency.is_zero() {
                self.env.sleep(latency).await;
            }
            if fails {
                return batches.iter().map(|_| Err(broken())).collect();
            }
            if let Some(other) = self.before(&batches) {
                self.inner.commit(vec![other]).await.remove(0).unwrap();
            }
            self.inner.commit(batches).await
        })
    }

    fn read(&self, read: Read) -> BoxFuture<'_, Result<Page>> {
        self.inner.read(read)
    }

    fn watch(&self, select: Select, after: Position) -> BoxFuture<'_, Result<Box<dyn Watch>>> {
        self.inner.watch(select, after)
    }

    fn documents(&self, keys: Vec<Arc<str>>) -> BoxFuture<'_, Result<Vec<Option<Document>>>> {
        let fails = self.read_fails(&keys);
        Box::pin(async move {
            if fails {
                return Err(broken());
            }
            let change = if keys.len() < 2 { None } else { self.plan().changes.pop_front() };
            if let Some(documents) = change {
                let batch = Batch { documents, ..Batch::default() };
                self.inner.commit(vec![batch]).await.remove(0).unwrap();
            }
            self.inner.documents(keys).await
        })
    }

    fn document_now(&self, key: &Arc<str>) -> Option<Result<Option<Document>>> {
        if self.read_fails(std::slice::from_ref(key)) {
            return Some(Err(broken()));
        }
        self.inner.document_now(key)
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Vec<Document>>> {
        let now = self.now();
        self.plan().lists.push((now, list.prefix.to_string()));
        self.inner.list(list)
    }

    fn history(&self, history: History) -> BoxFuture<'_, Result<Vec<Document>>> {
        self.inner.history(history)
    }

    fn prune(&self, prune: Prune) -> BoxFuture<'_, Result<Pruned>> {
        let now = self.now();
        self.plan().prunes.push(now);
        self.inner.prune(prune)
    }
}

fn simulator() -> Simulator {
    Simulator::new(1).steps_max(u64::MAX)
}

/// Just below a limit, at it, and just above it.
fn around(limit: u32) -> [u32; 3] {
    [limit - 1, limit, limit + 1]
}

fn one_more(ledger: Ledger) -> Ledger {
    Ledger { count: ledger.count + 1 }
}

/// The times between calls.
fn gaps(times: &[Duration]) -> Vec<u64> {
    times.windows(2).map(|two| u64::try_from((two[1] - two[0]).as_millis()).unwrap()).collect()
}

/// The waits for a store that fails: each twice as long as the one before, from the first up to the longest.
fn waits(count: usize) -> Vec<u64> {
    let doubling = (0..).map(|failures| (limits::STORE_WAIT_MS << failures).min(limits::STORE_WAIT_MS_MAX));
    let waits: Vec<_> = doubling.take(count).collect();
    assert!(waits.contains(&3_200) && waits.ends_with(&[5_000, 5_000]), "{waits:?}");
    waits
}

#[test]
fn a_change_from_outside_is_built_anew_up_to_its_limit() {
    for faster in around(limits::COMMIT_TRIES_MAX) {
        let sim = simulator();
        let store = Between::new(&sim);
        sim.run(async {
            let space = store.space(Config::default());
            let node = space.node("mill");
            store.be_faster("state/mill/ledger", faster, By::TheSame);
            let result = node.state::<Ledger>().commit(one_more).await;
            // Somebody else has counted on as often.
            let count = node.state::<Ledger>().get(|ledger| ledger.count);
            if faster <= limits::COMMIT_TRIES_MAX {
                result.unwrap();
                assert_eq!(count, faster + 1);
            } else {
                assert_eq!((result.unwrap_err().code(), count), ("conflict", faster));
            }
        });
    }
}

#[test]
fn a_step_decides_again_when_its_commit_was_built_anew_up_to_its_limit() {
    for faster in around(limits::COMMIT_TRIES_MAX) {
        let sim = simulator();
        let store = Between::new(&sim);
        sim.run(async {
            let space = store.space(Config::default());
            let runs = Arc::new(AtomicU32::new(0));
            let ran = Arc::clone(&runs);
            let node = space.node("mill");
            node.on("u64", move |_: &Event<u64>, cx: &Context| {
                ran.fetch_add(1, Ordering::SeqCst);
                cx.state::<Ledger>().set(one_more)
            });
            space.start().await.unwrap();
            store.be_faster("state/mill/ledger", faster, By::TheSame);
            space.send("mill", 1u64).reply::<()>().await.unwrap();
            assert_eq!(node.state::<Ledger>().get(|ledger| ledger.count), faster + 1);
            let expected = if faster <= limits::COMMIT_TRIES_MAX { 1 } else { 2 };
            assert_eq!(runs.load(Ordering::SeqCst), expected, "{faster}");
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn a_point_of_a_step_is_committed_anew_up_to_the_same_limit() {
    for faster in around(limits::COMMIT_TRIES_MAX) {
        let sim = simulator();
        let store = Between::new(&sim);
        sim.run(async {
            let space = store.space(Config::default());
            let node = space.node("mill").attempts(1, millis(1));
            node.on("u64", async |_: Event<u64>, cx: Context| {
                cx.once("grind", async |_| Ok::<_, Error>(true)).await
            });
            space.start().await.unwrap();
            store.be_faster("flow/", faster, By::TheSame);
            let result = space.send("mill", 1u64).reply::<bool>().await;
            match result {
                Ok(_) => assert!(faster <= limits::COMMIT_TRIES_MAX, "{faster}"),
                Err(error) => {
                    assert_eq!((error.code(), faster), ("conflict", limits::COMMIT_TRIES_MAX + 1), "{error}");
                }
            }
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn names_keys_and_timers_are_committed_anew_up_to_the_same_limit() {
    let sim = simulator();
    let max = limits::COMMIT_TRIES_MAX;
    let store = Between::new(&sim);
    sim.run(async {
        let space = store.space(Config::default());
        space.node("mill").on("u64", |_: &Event<u64>, _: &Context| ());
        space.start().await.unwrap();
        for faster in around(max) {
            let told = |result: Result<()>| match result {
                Ok(()) => assert!(faster <= max, "{faster}"),
                Err(error) => assert_eq!((error.code(), faster > max), ("conflict", true), "{error}"),
            };
            let name = format!("n{faster}");
            store.be_faster("imported/", faster, By::Deleting);
            told(space.broadcasting(1u64).caused_by([]).once(&name).await.map(drop));
            store.be_faster("seen/", faster, By::Deleting);
            told(space.send("mill", 1u64).idempotency_key(name.clone()).await.map(drop));
            store.be_faster("timer/", faster, By::TheSame);
            told(space.after(secs(600), "mill", 1u64).key(name.clone()).await.map(drop));

            store.be_faster("timer/", 0, By::TheSame);
            space.after(secs(600), "mill", 1u64).key(name.clone()).await.unwrap();
            store.be_faster("timer/", faster, By::AsItWas);
            told(space.cancel_timer(&name).await.map(|was_there| assert!(was_there)));
            store.be_faster("", 0, By::TheSame);
        }
        space.stop().await.unwrap();
    });
}

#[test]
fn a_step_that_decides_on_what_it_sees_runs_again_up_to_its_limit() {
    let max = limits::STEP_RERUNS_MAX;
    for faster in around(max) {
        let sim = simulator();
        let store = Between::new(&sim);
        sim.run(async {
            let space = store.space(Config::default());
            let runs = Arc::new(AtomicU32::new(0));
            let ran = Arc::clone(&runs);
            let node = space.node("mill").attempts(1, millis(1));
            node.on("u64", move |_: &Event<u64>, cx: &Context| {
                ran.fetch_add(1, Ordering::SeqCst);
                let count = cx.state::<Ledger>().get_for_update(|ledger| ledger.count)?;
                cx.state::<Ledger>().set(move |_| Ledger { count: count + 1 })
            });
            space.start().await.unwrap();
            store.be_faster("state/mill/ledger", faster, By::TheSame);
            let result = space.send("mill", 1u64).reply::<()>().await.map(drop);
            let count = node.state::<Ledger>().get(|ledger| ledger.count);
            assert_eq!(runs.load(Ordering::SeqCst), faster.min(max) + 1);
            if faster <= max {
                result.unwrap();
                assert_eq!(count, faster + 1);
            } else {
                assert_eq!((result.unwrap_err().code(), count), ("conflict", faster));
            }
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn a_call_brings_a_store_so_many_batches() {
    let max = limits::COMMIT_GROUP_MAX;
    for len in around(u32::try_from(max).unwrap()) {
        let sim = simulator();
        let store = Between::new(&sim);
        sim.run(async {
            let space = store.space(Config::default());
            space.node("mill").max_concurrent(10_000).on("u64", |_: &Event<u64>, _: &Context| true);
            space.start().await.unwrap();
            store.plan().commits.clear();
            store.plan().latency = millis(5);
            let send = || {
                let space = space.clone();
                sim.env().spawn(Box::pin(async move {
                    space.send("mill", 1u64).reply::<bool>().await.unwrap();
                }));
            };
            send();
            // While the first is on its way, the others come.
            sim.env().sleep(millis(1)).await;
            (0..len).for_each(|_| send());
            sim.env().sleep(secs(1)).await;
            let groups: Vec<_> = store.plan().commits.iter().map(|(_, batches)| batches.len()).collect();
            let len = len as usize;
            let expected: Vec<_> =
                [1, len.min(max), len.saturating_sub(max)].into_iter().filter(|len| *len > 0).collect();
            assert_eq!(groups, expected);
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn so_many_timers_that_are_due_are_seen_to_by_one_call() {
    let max = limits::COMMIT_GROUP_MAX;
    for len in around(u32::try_from(max).unwrap()) {
        let sim = simulator();
        let store = Between::new(&sim);
        sim.run(async {
            let space = store.space(Config::default());
            let node = space.node("mill").max_concurrent(10_000);
            node.on("u64", |_: &Event<u64>, cx: &Context| cx.state::<Ledger>().set(one_more));
            space.start().await.unwrap();
            for _ in 0..len {
                space.after(secs(60), "mill", 1u64).await.unwrap();
            }
            store.plan().commits.clear();
            sim.env().sleep(secs(120)).await;
            assert_eq!(node.state::<Ledger>().get(|ledger| ledger.count), len);
            let ends = |batch: &Batch| {
                batch.documents.iter().any(|write| write.key.starts_with("timer/") && write.content.is_none())
            };
            let commits = store.plan().commits.clone();
            let groups =
                commits.iter().map(|(_, batches)| batches.iter().filter(|batch| ends(batch)).count());
            let groups: Vec<_> = groups.filter(|len| *len > 0).collect();
            let len = len as usize;
            let expected: Vec<_> =
                [len.min(max), len.saturating_sub(max)].into_iter().filter(|len| *len > 0).collect();
            assert_eq!(groups, expected);
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn the_wait_before_another_attempt_ends_at_a_day() {
    let max = limits::DURABLE_RETRY_WAIT_MS_MAX;
    for (first_ms, second_ms) in [(max - 1, max), (max, max), (max + 1, max), (max / 2 - 1, max - 2)] {
        let sim = simulator();
        let store = Between::new(&sim);
        sim.run(async {
            let space = store.space(Config::default());
            let times = Arc::new(Mutex::new(Vec::new()));
            let (noted, env) = (Arc::clone(&times), sim.env());
            space.node("mill").attempts(3, millis(first_ms)).on("u64", move |_: &Event<u64>, _: &Context| {
                noted.lock().unwrap().push(env.monotonic());
                Err::<(), _>(Error::msg("not yet"))
            });
            space.start().await.unwrap();
            space.send("mill", 1u64).await.unwrap();
            sim.env().sleep(millis(2 * max + 1_000)).await;
            assert_eq!(gaps(&times.lock().unwrap()), [first_ms.min(max), second_ms]);
            space.stop().await.unwrap();
        });
    }
}

const FAILURES: u32 = 10;

async fn promise(store: Arc<Between>, _: Event<u64>, _: Context) -> Result<Step> {
    next_with(keep, store)
}

/// Has the store fail when the flow is one that it has.
async fn keep(store: Arc<Between>, _: Event<u64>, cx: Context) -> Result<Step> {
    store.plan().commits.clear();
    store.plan().failing = FAILURES;
    cx.state::<Ledger>().set(one_more)?;
    done(true)
}

#[test]
fn a_step_waits_longer_and_longer_for_a_store_that_fails_up_to_a_limit() {
    let sim = simulator();
    let store = Between::new(&sim);
    sim.run(async {
        let space = store.space(Config::default());
        let node = space.node("mill");
        node.on("u64", with(Arc::clone(&store), promise)).step(with(Arc::clone(&store), keep));
        space.start().await.unwrap();
        space.send("mill", 1u64).reply::<bool>().await.unwrap();
        assert_eq!(node.state::<Ledger>().get(|ledger| ledger.count), 1);
        let times: Vec<_> = store.plan().commits.iter().map(|(at, _)| *at).collect();
        // What became of the first one is asked at once.
        assert_eq!(times[0], times[1]);
        assert_eq!(gaps(&times[1..]), waits(FAILURES as usize));
        space.stop().await.unwrap();
    });
}

#[test]
fn what_is_due_waits_longer_and_longer_for_a_store_that_fails_up_to_a_limit() {
    let sim = simulator();
    let store = Between::new(&sim);
    sim.run(async {
        let space = store.space(Config::default());
        let node = space.node("mill");
        node.on("u64", |_: &Event<u64>, cx: &Context| cx.state::<Ledger>().set(one_more));
        space.start().await.unwrap();
        space.after(secs(10), "mill", 1u64).await.unwrap();
        store.plan().commits.clear();
        store.plan().failing = FAILURES;
        sim.env().sleep(secs(60)).await;
        assert_eq!(node.state::<Ledger>().get(|ledger| ledger.count), 1);
        let times: Vec<_> = store.plan().commits.iter().map(|(at, _)| *at).collect();
        let waits = waits(FAILURES as usize);
        assert_eq!(gaps(&times)[..waits.len()], waits);
        space.stop().await.unwrap();
    });
}

#[test]
fn a_store_that_does_not_say_what_became_of_a_commit_is_asked_more_and_more_seldom() {
    let sim = simulator();
    let store = Between::new(&sim);
    sim.run(async {
        let space = store.space(Config::default());
        space.node("mill").on("u64", |_: &Event<u64>, _: &Context| ());
        space.start().await.unwrap();
        // The look whether the name is known comes before.
        let asked = space.broadcasting(1u64).caused_by([]).once("known").await;
        asked.unwrap();
        store.plan().reads.clear();
        store.plan().failing = 1;
        let (meddler, env) = (Arc::clone(&store), sim.env());
        store.plan().latency = millis(5);
        sim.env().spawn(Box::pin(async move {
            env.sleep(millis(1)).await;
            let mut plan = meddler.plan();
            plan.reads.clear();
            plan.reads_failing = FAILURES;
        }));
        let error = space.broadcasting(1u64).caused_by([]).once("new").await.unwrap_err();
        assert_eq!(error.code(), "io");
        let times: Vec<_> = store.plan().reads.iter().map(|(at, _)| *at).collect();
        assert_eq!(gaps(&times), waits(FAILURES as usize));
        space.stop().await.unwrap();
    });
}

#[test]
fn so_many_documents_are_kept_in_memory_beside_those_in_use() {
    let max = limits::STATE_DOCUMENTS_MAX;
    let sim = simulator();
    let store = Between::new(&sim);
    sim.run(async {
        let space = store.space(Config::default());
        let node = space.node("mill");
        let load = async |number: usize| {
            let before = store.plan().reads.len();
            node.entity::<Ledger>(number.to_string()).load().await.unwrap();
            store.plan().reads.len() - before
        };
        let in_use = node.entity::<Ledger>("1");
        for number in 0..max - 2 {
            assert_eq!(load(number).await, 1);
        }
        for there in [max - 1, max] {
            assert_eq!(load(there - 1).await, 1);
            assert_eq!((load(0).await, load(1).await, load(there - 1).await), (0, 0, 0), "{there} documents");
        }
        // One more makes room: all are forgotten but the one that is in use.
        assert_eq!(load(max).await, 1);
        assert_eq!((load(0).await, load(1).await, load(max - 1).await, load(max).await), (1, 0, 1, 0));
        drop(in_use);
    });
}

#[test]
fn so_many_past_revisions_are_kept() {
    let max = limits::REVISIONS_MAX;
    let sim = simulator();
    let store = Between::new(&sim);
    sim.run(async {
        let space = store.space(Config::default());
        let node = space.node("mill");
        let mut written = 0;
        // The one that holds is not a past one.
        for revisions in around(max + 1) {
            for _ in written..revisions {
                node.state::<Ledger>().commit(one_more).await.unwrap();
            }
            written = revisions;
            let history =
                History { key: "state/mill/ledger".into(), until: Until::Now, documents_max: 1_000 };
            let found: Vec<_> =
                store.history(history).await.unwrap().iter().map(|document| document.revision).collect();
            let oldest = u64::from(revisions - revisions.min(max + 1)) + 1;
            let expected: Vec<_> = (oldest..=u64::from(revisions)).rev().collect();
            assert_eq!(found, expected);
        }
    });
}

#[test]
fn a_record_is_remembered_until_it_is_older_than_its_age() {
    let max = limits::RECORD_AGE_MS;
    for (age_ms, forgotten) in [(max - 1, 0), (max, 0), (max + 1, 1)] {
        let sim = simulator();
        let store = Between::new(&sim);
        sim.run(async {
            let retention = Retention { every_ms: 0, ..Retention::default() };
            let space = store.space(Config { retention, ..Config::default() });
            space.node("mill").on("u64", |_: &Event<u64>, _: &Context| ());
            space.start().await.unwrap();
            space.send("mill", 1u64).reply::<()>().await.unwrap();
            let record = store.read(Read::forward(Select::All)).await.unwrap().records.remove(0);
            sim.env().sleep(millis(record.at_unix_ms + age_ms - sim.env().unix_ms())).await;
            let pruned = space.prune().await.unwrap();
            assert_eq!(pruned.records, forgotten, "{age_ms} ms");
            let left = store.read(Read::forward(Select::All)).await.unwrap().records;
            assert_eq!(left.contains(&record), forgotten == 0);
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn a_space_looks_for_what_may_be_forgotten_once_in_a_while() {
    let every = limits::PRUNE_EVERY_MS;
    let sim = simulator();
    let store = Between::new(&sim);
    sim.run(async {
        let retention = Retention { age_ms: 1, ..Retention::default() };
        let space = store.space(Config { retention, ..Config::default() });
        space.node("mill").on("u64", |_: &Event<u64>, _: &Context| ());
        space.start().await.unwrap();
        let begun = store.now();
        let records = async || store.read(Read::forward(Select::All)).await.unwrap().records.len();
        for look in 1..=3 {
            space.send("mill", 1u64).reply::<()>().await.unwrap();
            let due = begun + millis(look * every);
            sim.env().sleep(due - store.now() - millis(1)).await;
            assert_eq!(records().await, 1, "just before look {look}");
            sim.env().sleep(millis(2)).await;
            assert_eq!(records().await, 0, "just after look {look}");
        }
        let looked: Vec<_> = store.plan().prunes.iter().map(|at| *at - begun).collect();
        assert_eq!(looked, [1, 2, 3].map(|look| millis(look * every)));
        space.stop().await.unwrap();
    });
}

#[test]
fn references_are_followed_to_so_many_documents() {
    let max = limits::VIEWS_FOLLOWED_MAX;
    let sim = simulator();
    let store = Between::new(&sim);
    sim.run(async {
        let space = store.space(Config::default());
        let node = space.node("book");
        let follow = |entry: &Entry| -> Vec<View<Entry>> {
            entry.others.iter().map(|other| node.entity_view(other)).collect()
        };
        for all in around(u32::try_from(max).unwrap()) {
            // A chain of two, and the rest beside its end.
            let rest: Vec<_> = (2..all).map(|number| number.to_string()).collect();
            node.entity::<Entry>("root").commit(|_| Entry { others: vec!["1".into()] }).await.unwrap();
            node.entity::<Entry>("1").commit(move |_| Entry { others: rest.clone() }).await.unwrap();
            let found = space.collect_following(vec![node.entity_view("root")], follow).await;
            match found {
                Ok(found) => assert_eq!((found.len(), all as usize <= max), (all as usize, true)),
                Err(error) => {
                    assert!(all as usize > max, "{error}");
                    let ErrorKind::Runaway { limit, max: told, .. } = error.kind() else {
                        panic!("{error:?}")
                    };
                    assert_eq!((*limit, *told), ("views_followed_max", max as u64));
                }
            }
        }
    });
}

#[test]
fn references_that_change_meanwhile_are_followed_anew_up_to_a_limit() {
    let max = limits::VIEWS_TRIES_MAX;
    for changes in around(max) {
        let sim = simulator();
        let store = Between::new(&sim);
        sim.run(async {
            let space = store.space(Config::default());
            let node = space.node("book");
            let root = node.entity::<Entry>("root");
            // What the root says in each of its revisions, as its document has it.
            let mut revisions = Vec::new();
            for number in 0..=changes {
                root.commit(move |_| Entry { others: vec![number.to_string()] }).await.unwrap();
                revisions.push(
                    store.inner.documents(vec![root.document_key().into()]).await.unwrap().remove(0).unwrap(),
                );
            }
            let written = revisions.len() as u64;
            let again = revisions.into_iter().zip(1..).map(|(document, number)| {
                let (key, content) = (document.key, document.content);
                vec![Write {
                    key,
                    revision: written + number,
                    content,
                    past: Past::Dropped,
                    replaced: Replaced::Kept,
                }]
            });
            // The last one is what it says now.
            let again = again.take(changes as usize).collect();
            store.plan().changes = again;
            let follow = |entry: &Entry| -> Vec<View<Entry>> {
                entry.others.iter().map(|other| node.entity_view(other)).collect()
            };
            let found = space.collect_following(vec![node.entity_view("root")], follow).await;
            match found {
                Ok(found) => {
                    assert!(changes <= max, "{changes}");
                    let last = (changes - 1).to_string();
                    assert_eq!(found[&root.document_key()].others, std::slice::from_ref(&last));
                    assert!(found.keys().any(|key| key.ends_with(&format!("/{last}"))), "{found:?}");
                }
                Err(error) => assert_eq!((error.code(), changes > max), ("conflict", true)),
            }
        });
    }
}

#[test]
fn entries_beyond_those_whose_expiry_is_remembered_are_looked_for_again() {
    let max = limits::GLOBAL_EXPIRIES_MAX;
    // With fewer it is as with as many, which the unit tests of the sweep look at.
    for (entries, looks_again) in [(max, false), (max + 1, true)] {
        let sim = simulator();
        let store = Between::new(&sim);
        sim.run(async {
            let space = store.space(Config::default());
            space.start().await.unwrap();
            space.global().set("0", &1u64).expires_in(secs(60)).await.unwrap();
            space.stop().await.unwrap();
            // The others are copies, made while no process is there.
            let first = store.inner.documents(vec!["global/0".into()]).await.unwrap().remove(0).unwrap();
            let all: Vec<_> = (1..entries).collect();
            for some in all.chunks(1_000) {
                let copy = |number: &usize| Write {
                    key: format!("global/{number}").into(),
                    revision: 1,
                    content: first.content.clone(),
                    past: Past::Dropped,
                    replaced: Replaced::Kept,
                };
                let batch = Batch { documents: some.iter().map(copy).collect(), ..Batch::default() };
                store.inner.commit(vec![batch]).await.remove(0).unwrap();
            }
            let space = store.space(Config::default());
            space.start().await.unwrap();
            // Whoever watches has the sweep begin.
            let watch = space.global().watch("none").await.unwrap();
            sim.env().sleep(secs(30)).await;
            store.plan().lists.clear();
            sim.env().sleep(secs(31)).await;
            let list = List { prefix: "global/".into(), after: None, documents_max: 10 };
            assert_eq!(store.inner.list(list).await.unwrap().len(), 0, "{entries} entries");
            let looked = store.plan().lists.iter().any(|(_, prefix)| prefix == "global/");
            assert_eq!(looked, looks_again, "{entries} entries");
            drop(watch);
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn a_timer_whose_node_is_not_there_is_due_again_after_a_while() {
    let again = limits::DUE_AGAIN_MS;
    let sim = simulator();
    let store = Between::new(&sim);
    sim.run(async {
        let space = store.space(Config::default());
        let told = Arc::new(Mutex::new(Vec::new()));
        let (noted, env) = (Arc::clone(&told), sim.env());
        space.on("system.due-event-waits", move |_: &Event, _: &Context| {
            noted.lock().unwrap().push(env.monotonic());
        });
        let node = space.node("mill");
        space.start().await.unwrap();
        let due = store.now() + secs(10);
        space.after(secs(10), "mill", 1u64).await.unwrap();
        node.destroy();
        sim.env().sleep(secs(10) + millis(2 * again) + secs(1)).await;
        let looked: Vec<_> = told.lock().unwrap().iter().map(|at| *at - due).collect();
        assert_eq!(looked, [0, 1, 2].map(|look| millis(look * again)));

        let taken = Arc::new(Mutex::new(Vec::new()));
        let (noted, env) = (Arc::clone(&taken), sim.env());
        space.node("mill").on("u64", move |_: &Event<u64>, _: &Context| {
            noted.lock().unwrap().push(env.monotonic());
        });
        sim.env().sleep(due + millis(3 * again) - store.now() - millis(1)).await;
        assert_eq!(taken.lock().unwrap().len(), 0, "just before it is due again");
        sim.env().sleep(millis(2)).await;
        assert_eq!(*taken.lock().unwrap(), [due + millis(3 * again)]);
        space.stop().await.unwrap();
    });
}

#[test]
fn there_is_a_pause_between_two_pages_of_keys() {
    for keys in [PAGE_RECORDS_MAX - 1, PAGE_RECORDS_MAX, PAGE_RECORDS_MAX + 1] {
        let sim = simulator();
        let store = Between::new(&sim);
        sim.run(async {
            let config = || Config { idempotency_window_ms: 1, ..Config::default() };
            let space = store.space(config());
            space.node("mill").on("u64", |_: &Event<u64>, _: &Context| ());
            space.start().await.unwrap();
            for key in 0..keys {
                space.send("mill", 1u64).idempotency_key(key.to_string()).await.unwrap();
            }
            space.settled(secs(60)).await.unwrap();
            store.plan().lists.clear();
            // What is due between two pages is not held up by the others.
            let taken = Arc::new(Mutex::new(None));
            let (noted, env) = (Arc::clone(&taken), sim.env());
            space.node("clock").on("u64", move |_: &Event<u64>, _: &Context| {
                *noted.lock().unwrap() = Some(env.monotonic());
            });
            let middle = millis(1 + limits::SEEN_SWEEP_MS + limits::SEEN_PAUSE_MS / 2);
            space.after(middle, "clock", 1u64).await.unwrap();
            sim.env().sleep(millis(limits::SEEN_SWEEP_MS + 60_000)).await;
            let lists = store.plan().lists.clone();
            let lists = lists.iter().filter(|(_, prefix)| prefix == "seen/");
            let times: Vec<_> = lists.map(|(at, _)| *at).collect();
            // As many pages as there are, and one that is empty.
            assert_eq!(times.len(), keys.div_ceil(PAGE_RECORDS_MAX) + 1, "{keys} keys");
            let taken = *taken.lock().unwrap();
            assert_eq!(taken, Some(times[0] + millis(limits::SEEN_PAUSE_MS / 2)));
            assert!(gaps(&times).iter().all(|gap| *gap == limits::SEEN_PAUSE_MS), "{:?}", gaps(&times));
            space.stop().await.unwrap();
        });
    }
}
