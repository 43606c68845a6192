//! How the commits of many flows reach a store: how many calls are under way at once, and that what builds on a step that
//! is not committed yet comes behind it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use happen::limits::COMMIT_GROUPS_MAX;
use happen::store::{
    Batch, Committed, Document, History, List, MemoryStore, Page, Position, Prune, Pruned, Read, Select,
    Store, Watch,
};
use happen::{Config, Context, Error, ErrorKind, Result, Space, millis, secs};
use happen_core::env::{BoxFuture, Env};
use happen_testing::Simulator;
use serde::{Deserialize, Serialize};

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("ledger", version = 1)]
struct Ledger {
    count: u32,
}

/// What becomes of every so many calls.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// It fails.
    Refused,
    /// It is committed, and told to have failed.
    Unheard,
}

/// A store that takes a time for each call and remembers how many there were at once.
#[derive(Debug)]
struct Slow {
    inner: MemoryStore,
    env: Arc<dyn Env>,
    in_order: usize,
    fault: Fault,
    calls: AtomicU32,
    under_way: AtomicUsize,
    most: AtomicUsize,
}

impl Slow {
    fn new(sim: &Simulator, in_order: usize, fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::new(sim.env()),
            env: sim.env(),
            in_order,
            fault,
            calls: AtomicU32::new(0),
            under_way: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }
}

impl Store for Slow {
    fn commit(&self, batches: Vec<Batch>) -> BoxFuture<'_, Vec<Result<Committed>>> {
        Box::pin(async move {
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
            let len = batches.len();
            let fault = if call.is_multiple_of(5) { self.fault } else { Fault::None };
            let results = match fault {
                Fault::Refused => Vec::new(),
                Fault::None | Fault::Unheard => self.inner.commit(batches).await,
            };
            self.env.sleep(millis(5)).await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            match fault {
                Fault::None => results,
                _ => (0..len).map(|_| Err(Error::new(ErrorKind::Io { what: "writing".into() }))).collect(),
            }
        })
    }

    fn commits_in_order(&self) -> usize {
        self.in_order
    }

    fn read(&self, read: Read) -> BoxFuture<'_, Result<Page>> {
        self.inner.read(read)
    }

    fn watch(&self, select: Select, after: Position) -> BoxFuture<'_, Result<Box<dyn Watch>>> {
        self.inner.watch(select, after)
    }

    fn documents(&self, keys: Vec<Arc<str>>) -> BoxFuture<'_, Result<Vec<Option<Document>>>> {
        self.inner.documents(keys)
    }

    fn document_now(&self, key: &Arc<str>) -> Option<Result<Option<Document>>> {
        self.inner.document_now(key)
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Vec<Document>>> {
        self.inner.list(list)
    }

    fn history(&self, history: History) -> BoxFuture<'_, Result<Vec<Document>>> {
        self.inner.history(history)
    }

    fn prune(&self, prune: Prune) -> BoxFuture<'_, Result<Pruned>> {
        self.inner.prune(prune)
    }
}

/// Has so many flows add one to the same ledger at once; gives what it counts then, and how many were told that theirs has
/// happened.
fn add(sim: &Simulator, store: &Arc<Slow>, flows: usize) -> (u32, u32) {
    let store = Arc::clone(store) as Arc<dyn Store>;
    sim.run(async {
        let space = Space::with_store(Config::default(), sim.env(), store).unwrap();
        let node = space.node("ledger").max_concurrent(10_000);
        node.on("u64", |_: &happen::Event<u64>, cx: &Context| {
            cx.state::<Ledger>().set(|ledger| Ledger { count: ledger.count + 1 })?;
            Ok::<_, Error>(true)
        });
        space.start().await.unwrap();
        let told = Arc::new(AtomicU32::new(0));
        for number in 0..flows {
            let (space, told) = (space.clone(), Arc::clone(&told));
            sim.env().spawn(Box::pin(async move {
                if space.send("ledger", number as u64).reply::<bool>().await.is_ok() {
                    told.fetch_add(1, Ordering::SeqCst);
                }
            }));
        }
        sim.env().sleep(secs(60)).await;
        space.settled(secs(60)).await.unwrap();
        let count = node.state::<Ledger>().get(|ledger| ledger.count);
        space.stop().await.unwrap();
        (count, told.load(Ordering::SeqCst))
    })
}

#[test]
fn a_store_that_keeps_no_order_gets_one_call_at_a_time() {
    let sim = Simulator::new(1);
    let store = Slow::new(&sim, 1, Fault::None);
    assert_eq!(add(&sim, &store, 300), (300, 300));
    assert_eq!(store.most.load(Ordering::SeqCst), 1);
}

#[test]
fn a_store_that_keeps_the_order_gets_as_many_calls_as_it_says_and_no_more_than_the_limit() {
    let max = COMMIT_GROUPS_MAX;
    let cases = [(3, 300, 3), (max - 1, 400, max - 1), (max, 400, max), (max + 1, 400, max)];
    for (in_order, flows, most) in cases {
        let sim = Simulator::new(2);
        let store = Slow::new(&sim, in_order, Fault::None);
        let flows_told = flows as u32;
        assert_eq!(add(&sim, &store, flows), (flows_told, flows_told), "{in_order}");
        assert_eq!(store.most.load(Ordering::SeqCst), most, "{in_order}");
    }
}

/// Each step builds on the one before it, so those behind one that was not committed are built anew.
#[test]
fn a_call_that_fails_among_others_takes_nothing_with_it() {
    for seed in 0..20 {
        for fault in [Fault::Refused, Fault::Unheard] {
            let sim = Simulator::new(seed);
            let store = Slow::new(&sim, 8, fault);
            let (count, told) = add(&sim, &store, 100);
            assert_eq!(count, told, "{fault:?}, seed {seed}");
            match fault {
                // Whoever was promised nothing is told that nothing has happened.
                Fault::Refused => assert!(count > 0 && count < 100, "{count}, seed {seed}"),
                _ => assert_eq!(count, 100, "seed {seed}"),
            }
        }
    }
}
