//! State of nodes: reading in part, changing by functions, one owner, hooks around a change, and the documents that the
//! space's store shows of it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use happen::store::{
    Batch, Condition, Content, History, List, Past, Position, Prune, Replaced, Select, Until, Write,
};
use happen::{Config, Context, Error, ErrorKind, Event, Moment, Node, Space};
use happen_testing::Simulator;
use serde::{Deserialize, Serialize};

#[derive(happen::State, Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[state("orders", version = 3)]
struct Orders {
    open: Vec<String>,
    paid: BTreeSet<String>,
}

impl Orders {
    fn with_paid(&self, id: &str) -> Self {
        let mut paid = self.paid.clone();
        paid.insert(id.to_owned());
        let open = self.open.iter().filter(|open| *open != id).cloned().collect();
        Self { open, paid }
    }
}

#[derive(happen::State, Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Count {
    total: u64,
}

impl Count {
    fn more(self) -> Self {
        Self { total: self.total + 1 }
    }
}

#[derive(happen::State, Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Order {
    lines: Vec<u32>,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
struct Add {
    by: u64,
}

#[derive(Debug)]
struct SoldOut {
    left: u64,
}

impl std::fmt::Display for SoldOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "only {} left", self.left)
    }
}

impl std::error::Error for SoldOut {}

fn total(node: &Node) -> u64 {
    node.state::<Count>().get(|count| count.total)
}

#[test]
fn a_state_begins_as_its_default_and_is_read_in_part() {
    let space = Space::memory();
    let node = space.node("orders");
    assert_eq!(node.state::<Orders>().revision(), 0);
    assert_eq!(node.state::<Orders>().get(|orders| orders.open.len()), 0);
    let open = vec!["a".to_owned(), "b".to_owned()];
    node.state::<Orders>().set(move |orders| Orders { open: open.clone(), ..orders }).unwrap();
    assert_eq!(node.state::<Orders>().get(|orders| orders.open[1].clone()), "b");
    assert_eq!(node.state::<Orders>().revision(), 1);
    // States of one node are apart, and so are those of one type at two nodes.
    assert_eq!(total(&node), 0);
    assert_eq!(space.node("other").state::<Orders>().get(|orders| orders.open.len()), 0);
}

#[test]
fn a_state_is_changed_by_a_function_of_what_it_was() {
    let space = Space::memory();
    let node = space.node("orders");
    for id in ["a", "b"] {
        node.state::<Orders>()
            .set(move |mut orders| {
                orders.open.push(id.to_owned());
                orders
            })
            .unwrap();
    }
    let id = "a".to_owned();
    node.state::<Orders>().set(move |orders| orders.with_paid(&id)).unwrap();
    let expected = Orders { open: vec!["b".to_owned()], paid: ["a".to_owned()].into() };
    assert_eq!(node.state::<Orders>().get(Clone::clone), expected);
    assert_eq!(node.state::<Orders>().revision(), 3);
}

#[derive(Default, Serialize, Deserialize)]
struct Copies {
    #[serde(skip)]
    counted: Arc<AtomicU64>,
}

impl Clone for Copies {
    fn clone(&self) -> Self {
        self.counted.fetch_add(1, Ordering::SeqCst);
        Self { counted: Arc::clone(&self.counted) }
    }
}

impl happen::State for Copies {
    const NAME: &'static str = "copies";
    const VERSION: u32 = 1;
}

#[test]
fn reading_copies_nothing_and_changing_copies_once() {
    let space = Space::memory();
    let node = space.node("node");
    let copies = || node.state::<Copies>().get(|copies| copies.counted.load(Ordering::SeqCst));
    assert_eq!((copies(), copies()), (0, 0));
    node.state::<Copies>().set(|copies| copies).unwrap();
    assert_eq!((copies(), copies()), (1, 1));
}

#[test]
fn a_function_may_refuse_with_an_error_of_its_own() {
    let space = Space::memory();
    let node = space.node("shop");
    let buy = |wanted: u64| {
        node.state::<Count>().try_set(move |count| match count.total.checked_sub(wanted) {
            Some(total) => Ok(Count { total }),
            None => Err(SoldOut { left: count.total }),
        })
    };
    node.state::<Count>().set(|_| Count { total: 5 }).unwrap();
    buy(3).unwrap();
    let error = buy(3).unwrap_err();
    assert_eq!(error.find_cause::<SoldOut>().map(|sold_out| sold_out.left), Some(2));
    assert_eq!((error.code(), error.node_id()), ("failed", Some("shop")));
    assert_eq!((total(&node), node.state::<Count>().revision()), (2, 2));
    let invalid = || Error::new(ErrorKind::Invalid { reason: "closed on Sundays".into() });
    let error = node.state::<Count>().try_set(move |_| Err::<Count, _>(invalid())).unwrap_err();
    assert_eq!(error.code(), "invalid");
}

#[test]
fn a_panic_leaves_the_state_as_it_was() {
    let space = Space::memory();
    let node = space.node("node");
    node.state::<Orders>().set(|_| Orders { open: vec!["a".into()], ..Orders::default() }).unwrap();
    let result = node.state::<Orders>().set(|mut orders| {
        orders.open.clear();
        if orders.paid.is_empty() {
            panic!("half way");
        }
        orders
    });
    let error = result.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Panicked { message: "half way".into() });
    assert_eq!(node.state::<Orders>().get(|orders| orders.open.len()), 1);
    assert_eq!(node.state::<Orders>().revision(), 1);
    node.state::<Orders>().set(|orders| orders.with_paid("a")).unwrap();
}

#[test]
fn no_change_of_many_threads_is_lost() {
    let space = Space::memory();
    let node = space.node("node");
    let start = Barrier::new(8);
    std::thread::scope(|threads| {
        for thread in 0..8 {
            let (node, start) = (&node, &start);
            threads.spawn(move || {
                start.wait();
                for turn in 0..1_000 {
                    node.state::<Count>().set(Count::more).unwrap();
                    let key = format!("{}", turn % 10);
                    node.entity::<Count>(key).set(Count::more).unwrap();
                    // Readers hold old revisions meanwhile.
                    let (before, after) = node.state::<Count>().get(|count| (count.total, total(node)));
                    assert!(before <= after, "thread {thread} read {after} after {before}");
                }
            });
        }
    });
    assert_eq!(total(&node), 8_000);
    assert_eq!(node.state::<Count>().revision(), 8_000);
    for key in 0..10 {
        let entity = node.entity::<Count>(key.to_string());
        assert_eq!((entity.revision(), entity.get(|count| count.total)), (800, 800));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_change_of_many_flows_is_lost() {
    let space = Space::memory();
    let node = space.node("node");
    node.on("add", async |add: Event<Add>, cx: Context| -> happen::Result<()> {
        let by = add.by;
        cx.state::<Count>().set(move |count| Count { total: count.total + by })?;
        cx.sleep(Duration::ZERO).await;
        cx.state::<Count>().set(Count::more)
    })
    .check()
    .unwrap();
    space.start().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let (space, node) = (space.clone(), node.clone());
        tasks.spawn(async move { space.send(&node, Add { by: 2 }).reply::<()>().await.map(drop) });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap().unwrap();
    }
    assert_eq!(total(&node), 3_000);
    assert_eq!(node.state::<Count>().revision(), 2_000);
}

#[test]
fn no_change_is_lost_in_any_order_of_tasks() {
    for seed in 0..50 {
        let sim = Simulator::new(seed);
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        let node = space.node("node");
        node.on("add", async |add: Event<Add>, cx: Context| -> happen::Result<()> {
            cx.sleep(Duration::from_millis(add.by % 7)).await;
            let key = format!("{}", add.by % 3);
            cx.entity::<Count>(key).set(Count::more)?;
            cx.sleep(Duration::from_millis(add.by % 5)).await;
            cx.state::<Count>().set(Count::more)
        })
        .check()
        .unwrap();
        sim.run(async {
            space.start().await.unwrap();
            for by in 0..90 {
                space.send(&node, Add { by }).await.unwrap();
            }
            space.settled(Duration::from_secs(60)).await.unwrap();
        });
        assert_eq!(total(&node), 90, "seed {seed}");
        for key in ["0", "1", "2"] {
            assert_eq!(node.entity::<Count>(key).revision(), 30, "seed {seed}");
        }
    }
}

#[tokio::test]
async fn nothing_is_sent_while_a_state_changes() {
    let space = Space::memory();
    let (node, other) = (space.node("node"), space.node("other"));
    let heard = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&heard);
    let hear = move |_: &Event<Add>, _: &Context| {
        count.fetch_add(1, Ordering::SeqCst);
    };
    other.on("add", hear).check().unwrap();
    node.on("add", |_: &Event<Add>, cx: &Context| -> happen::Result<()> {
        let inner = cx.clone();
        cx.state::<Count>().set(move |count| {
            // Ignored errors are no way around it.
            drop(inner.broadcast(Add { by: 1 }));
            count.more()
        })
    })
    .check()
    .unwrap();
    space.start().await.unwrap();
    let error = space.send(&node, Add { by: 1 }).reply::<()>().await.unwrap_err();
    assert_eq!((error.code(), error.node_id()), ("misuse", Some("node")));
    assert!(error.to_string().contains("cannot send an event"), "{error}");
    assert!(error.event_id().is_some());
    let sending = other.clone();
    let forgotten = node.state::<Count>().set(move |count| {
        sending.send("other", Add { by: 1 }).forget();
        count.more()
    });
    assert_eq!(forgotten.unwrap_err().code(), "misuse");
    let sending = other.clone();
    let refused = node.state::<Count>().try_set(move |count| sending.broadcast(Add { by: 1 }).map(|_| count));
    assert_eq!(refused.unwrap_err().code(), "misuse");
    assert_eq!((total(&node), heard.load(Ordering::SeqCst)), (0, 0));
    // Afterwards all is as usual.
    node.state::<Count>().set(Count::more).unwrap();
    other.broadcast(Add { by: 1 }).unwrap();
    assert_eq!(heard.load(Ordering::SeqCst), 1);
}

#[test]
fn a_state_inside_a_state_is_read_and_never_changed() {
    let space = Space::memory();
    let (node, other) = (space.node("node"), space.node("other"));
    node.state::<Count>().set(|_| Count { total: 7 }).unwrap();
    // Reading the same state gives what it was before.
    let inner = node.clone();
    node.state::<Count>().set(move |count| Count { total: count.total + total(&inner) }).unwrap();
    assert_eq!(total(&node), 14);
    for inner in [node.clone(), other.clone()] {
        let nested = node.state::<Count>().set(move |count| {
            let result = inner.state::<Count>().set(Count::more);
            assert_eq!(result.unwrap_err().code(), "misuse");
            count.more()
        });
        let error = nested.unwrap_err();
        assert!(error.to_string().contains("cannot set a state"), "{error}");
    }
    assert_eq!((total(&node), total(&other)), (14, 0));
    // A reader holds nothing up: it may change what it reads, and goes on seeing what it began with.
    let seen = node.state::<Count>().get(|count| {
        node.state::<Count>().set(Count::more).unwrap();
        (count.total, total(&node))
    });
    assert_eq!(seen, (14, 15));
}

#[tokio::test]
async fn a_context_reaches_its_own_node_alone() {
    let space = Space::memory();
    let nodes = [space.node("a"), space.node("b")];
    for node in &nodes {
        node.on("add", |add: &Event<Add>, cx: &Context| {
            let by = add.by;
            cx.state::<Count>().set(move |count| Count { total: count.total + by })?;
            cx.entity::<Count>("one").set(Count::more)
        })
        .check()
        .unwrap();
    }
    space.start().await.unwrap();
    space.send("a", Add { by: 5 }).await.unwrap();
    space.send("a", Add { by: 5 }).await.unwrap();
    space.send("b", Add { by: 1 }).await.unwrap();
    assert_eq!((total(&nodes[0]), total(&nodes[1])), (10, 1));
    assert_eq!(nodes[0].entity::<Count>("one").revision(), 2);
    assert_eq!(nodes[1].entity::<Count>("one").revision(), 1);
    // Spaces of one process share nothing, whatever their nodes are called.
    assert_eq!(total(&Space::memory().node("a")), 0);
}

#[tokio::test]
async fn a_state_belongs_to_the_id_and_only_a_living_node_changes_it() {
    let space = Space::memory();
    let first = space.node("node");
    first.state::<Count>().set(|_| Count { total: 3 }).unwrap();
    first.entity::<Count>("x").set(|_| Count { total: 4 }).unwrap();
    first.destroy();
    let error = first.state::<Count>().set(Count::more).unwrap_err();
    assert_eq!((error.code(), error.node_id()), ("closed", Some("node")));
    assert_eq!(first.entity::<Count>("x").set(Count::more).unwrap_err().code(), "closed");
    let second = space.node("node");
    assert_eq!(total(&second), 3);
    second.state::<Count>().set(Count::more).unwrap();
    assert_eq!(second.state::<Count>().revision(), 2);
    assert_eq!(second.entity::<Count>("x").get(|count| count.total), 4);
    // A second node under a living one's id is none.
    let impostor = space.node("node");
    assert_eq!(impostor.state::<Count>().set(Count::more).unwrap_err().code(), "closed");
    second.stop();
    second.state::<Count>().set(Count::more).unwrap();
    assert_eq!(total(&second), 5);
    drop(space);
    assert_eq!(second.state::<Count>().set(Count::more).unwrap_err().code(), "closed");
    assert_eq!(total(&second), 5);
}

#[test]
fn a_change_at_a_revision_is_made_there_or_not_at_all() {
    let space = Space::memory();
    let node = space.node("node");
    let at = |revision| node.state::<Count>().at_revision(revision);
    at(0).set(Count::more).unwrap();
    let error = at(0).set(Count::more).unwrap_err();
    assert_eq!(error.code(), "conflict");
    assert!(error.to_string().contains("`state/node/count` has revision 1 and not 0"), "{error}");
    assert!(at(1).try_set(|_| Err::<Count, _>(SoldOut { left: 0 })).is_err());
    at(1).set(Count::more).unwrap();
    assert_eq!(node.entity::<Count>("x").at_revision(1).set(Count::more).unwrap_err().code(), "conflict");
    node.entity::<Count>("x").at_revision(0).set(Count::more).unwrap();
    // Of many that saw the same revision, one comes through.
    let seen = node.state::<Count>().revision();
    let wins: usize = std::thread::scope(|threads| {
        let tries: Vec<_> =
            (0..8).map(|_| threads.spawn(|| at(seen).set(Count::more).is_ok() as usize)).collect();
        tries.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert_eq!((wins, total(&node)), (1, 3));
}

#[test]
fn entities_are_documents_of_their_own() {
    let space = Space::memory();
    let node = space.node("orders");
    let add = |key: &'static str, line: u32| {
        node.entity::<Order>(key).set(move |mut order| {
            order.lines.push(line);
            order
        })
    };
    add("a", 1).unwrap();
    add("a", 2).unwrap();
    add("b", 3).unwrap();
    let lines = |key: &str| node.entity::<Order>(key).get(|order| order.lines.clone());
    assert_eq!((lines("a"), lines("b"), lines("c")), (vec![1, 2], vec![3], vec![]));
    let revision = |key: String| node.entity::<Order>(key).revision();
    assert_eq!((revision("a".into()), revision("b".into()), revision("c".into())), (2, 1, 0));
    // The state of the node and its entities are apart, also when they have the same type.
    assert_eq!(node.state::<Order>().revision(), 0);
    assert_eq!(node.entity::<Order>("x/y%").document_key(), "entity/orders/order/x%2Fy%25");
    assert_eq!(node.state::<Order>().document_key(), "state/orders/order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entity_that_is_refused_at_once_is_not_kept() {
    let space = Space::memory();
    let node = space.node("node");
    let refuse = |_: Count| Err(SoldOut { left: 0 });
    assert!(node.entity::<Count>("x").try_set(refuse).is_err());
    assert!(listed(&space, "").await.unwrap().is_empty());
    // Some refuse and some count, all on keys that begin with nothing: no count is lost in between.
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let node = &node;
            threads.spawn(move || {
                for turn in 0..2_000 {
                    let entity = node.entity::<Count>((turn / 4).to_string());
                    match thread {
                        0 | 1 => assert!(entity.try_set(refuse).is_err()),
                        _ => entity.set(Count::more).unwrap(),
                    }
                }
            });
        }
    });
    for key in 0..500 {
        assert_eq!(node.entity::<Count>(key.to_string()).get(|count| count.total), 8, "{key}");
    }
    assert_eq!(listed(&space, "entity/node/count/").await.unwrap().len(), 500);
}

/// What hooks saw: the moment, the node, the state, the type of the event.
type Seen = (Moment, String, String, Option<String>);

#[tokio::test]
async fn hooks_see_every_change_and_can_stop_it() {
    let space = Space::memory();
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let note = |moment| {
        let all = Arc::clone(&seen);
        move |seen: &happen::Seen<'_>| -> happen::Result<()> {
            let event = seen.event.map(|event| event.envelope().event_type.to_string());
            let (node, state) = (seen.node.unwrap().to_owned(), seen.state.unwrap().to_owned());
            all.lock().unwrap().push((moment, node, state, event));
            Ok(())
        }
    };
    let (before, after) = (Moment::BeforeState, Moment::AfterState);
    let node = space.node("node").hook(before, 0, note(before)).hook(after, 0, note(after));
    node.on("add", |_: &Event<Add>, cx: &Context| cx.entity::<Count>("x").set(Count::more)).check().unwrap();
    space.start().await.unwrap();
    let told = || std::mem::take(&mut *seen.lock().unwrap());
    node.state::<Count>().set(Count::more).unwrap();
    let moments = |event: Option<&str>| {
        [before, after].map(|moment| (moment, "node".into(), "count".into(), event.map(str::to_owned)))
    };
    assert_eq!(told(), moments(None));
    space.send(&node, Add { by: 1 }).await.unwrap();
    assert_eq!(told(), moments(Some("add")));
    // A change that was refused has no afterwards.
    assert!(node.state::<Count>().try_set(|_| Err::<Count, _>(SoldOut { left: 0 })).is_err());
    assert_eq!(told(), moments(None)[..1]);

    let strict = space.node("strict").hook(before, 1, |seen| match seen.event {
        None => Err(Error::new(ErrorKind::Invalid { reason: "only events change this".into() })),
        Some(_) => Ok(()),
    });
    strict.on("add", |_: &Event<Add>, cx: &Context| cx.state::<Count>().set(Count::more)).check().unwrap();
    let error = strict.state::<Count>().set(Count::more).unwrap_err();
    assert_eq!((error.code(), error.node_id()), ("invalid", Some("strict")));
    assert!(error.to_string().contains("a hook stopped a change of state `count`"), "{error}");
    assert_eq!((total(&strict), strict.state::<Count>().revision()), (0, 0));
    space.send(&strict, Add { by: 1 }).await.unwrap();
    assert_eq!(total(&strict), 1);
}

#[tokio::test]
async fn hooks_afterwards_may_send_and_set_but_not_for_ever() {
    let space = Space::memory();
    let audit = space.node("audit");
    audit.on("changed", |_: &Event, cx: &Context| cx.state::<Count>().set(Count::more)).check().unwrap();
    let sending = audit.clone();
    let node = space.node("node").hook(Moment::AfterState, 0, move |seen| {
        let told = serde_json::json!({ "state": seen.state });
        sending.send("audit", Event::new("changed", told)).forget();
        Err(Error::msg("too late to object"))
    });
    space.start().await.unwrap();
    node.state::<Count>().set(Count::more).unwrap();
    node.state::<Count>().set(Count::more).unwrap();
    assert_eq!((total(&node), total(&audit)), (2, 2));

    for moment in [Moment::BeforeState, Moment::AfterState] {
        let looping = space.node(format!("looping {moment:?}"));
        let (again, errors) = (looping.clone(), Arc::new(Mutex::new(Vec::new())));
        let noted = Arc::clone(&errors);
        let looping = looping.hook(moment, 0, move |_| {
            let result = again.state::<Count>().set(Count::more);
            noted.lock().unwrap().extend(result.as_ref().err().map(Error::code));
            result
        });
        let result = looping.state::<Count>().set(Count::more);
        assert_eq!(errors.lock().unwrap().first(), Some(&"runaway"), "{moment:?}");
        let max = u64::from(happen::limits::STATE_HOOKS_NESTED_MAX);
        match moment {
            // The innermost hook objects, so nobody comes to change anything.
            Moment::BeforeState => assert_eq!((result.unwrap_err().code(), total(&looping)), ("runaway", 0)),
            _ => assert_eq!((result.is_ok(), total(&looping)), (true, max)),
        }
        // The count of levels went back.
        assert_eq!(space.node(format!("free {moment:?}")).state::<Count>().set(Count::more).ok(), Some(()));
    }
}

async fn listed(space: &Space, prefix: &str) -> happen::Result<Vec<String>> {
    let list = List { prefix: prefix.into(), after: None, documents_max: 1_000 };
    let documents = space.store().list(list).await?;
    Ok(documents.iter().map(|document| document.key.to_string()).collect())
}

#[tokio::test]
async fn the_store_shows_states_as_documents() {
    let space = Space::memory();
    let node = space.node("orders/eu");
    let store = space.store();
    let key = node.state::<Orders>().document_key();
    assert_eq!(key, "state/orders%2Feu/orders");
    assert_eq!(store.document(&key).await.unwrap(), None);
    // Looking at a state is not writing it.
    node.state::<Orders>().get(|_| ());
    assert_eq!(store.document(&key).await.unwrap(), None);
    node.state::<Orders>().set(|orders| orders.with_paid("a")).unwrap();
    node.state::<Orders>().set(|orders| orders.with_paid("b")).unwrap();
    node.entity::<Order>("7").set(|_| Order { lines: vec![1, 2] }).unwrap();
    let document = store.document(&key).await.unwrap().unwrap();
    assert_eq!((document.revision, document.position), (2, Position::START));
    assert!(document.at_unix_ms > 0);
    let content = document.content.unwrap();
    assert_eq!((&*content.name, content.version), ("orders", 3));
    let now = node.state::<Orders>().get(Clone::clone);
    assert_eq!(happen_core::state::decode::<Orders>(&content.bytes).unwrap(), now);
    assert_eq!(*happen_core::state::encode(&now).unwrap(), *content.bytes);
    let keys = ["entity/orders%2Feu/order/7", "state/orders%2Feu/orders"];
    assert_eq!(listed(&space, "").await.unwrap(), keys);
    assert_eq!(listed(&space, "state/orders%2Feu/").await.unwrap(), keys[1..]);
    let history = |until| History { key: keys[0].into(), until, documents_max: 10 };
    assert_eq!(store.history(history(Until::Now)).await.unwrap().len(), 1);
    assert_eq!(store.history(history(Until::Before(1))).await.unwrap(), []);
}

#[tokio::test]
async fn live_documents_and_committed_ones_are_listed_together() {
    let space = Space::memory();
    let node = space.node("n");
    let store = space.store();
    let write = |key: &str| {
        let content = Content { name: "x".into(), version: 1, bytes: (*b"x").into() };
        let write = Write {
            key: key.into(),
            revision: 1,
            content: Some(content),
            past: Past::Dropped,
            replaced: Replaced::Kept,
        };
        Batch { documents: vec![write], ..Batch::default() }
    };
    let results = store.commit(["a", "b", "m", "n", "x", "y"].map(write).into()).await;
    assert!(results.iter().all(Result::is_ok));
    for key in ["1", "2", "3"] {
        node.entity::<Count>(key).set(Count::more).unwrap();
    }
    node.state::<Count>().set(Count::more).unwrap();
    let entities = ["entity/n/count/1", "entity/n/count/2", "entity/n/count/3"];
    let expected: Vec<&str> =
        ["a", "b"].into_iter().chain(entities).chain(["m", "n", "state/n/count", "x", "y"]).collect();
    for size in 1..12 {
        let mut found: Vec<Arc<str>> = Vec::new();
        loop {
            let list = List { prefix: "".into(), after: found.last().cloned(), documents_max: size };
            let page = store.list(list).await.unwrap();
            assert!(page.len() <= size);
            if page.is_empty() {
                break;
            }
            found.extend(page.into_iter().map(|document| document.key));
        }
        assert_eq!(found.iter().map(|key| &**key).collect::<Vec<_>>(), expected, "pages of {size}");
    }
}

#[tokio::test]
async fn nobody_writes_a_state_through_the_store() {
    let space = Space::memory();
    let node = space.node("n");
    node.state::<Count>().set(Count::more).unwrap();
    let store = space.store();
    let write = |key: &str| Write {
        key: key.into(),
        revision: 2,
        content: None,
        past: Past::Dropped,
        replaced: Replaced::Kept,
    };
    let of = |key: &str| Batch { documents: vec![write(key)], ..Batch::default() };
    let condition = Condition::Revision { key: "state/n/count".into(), revision: 1 };
    let depends = Batch { conditions: vec![condition], ..Batch::default() };
    let allowed = Condition::Revision { key: "other".into(), revision: 0 };
    let allowed = Batch { conditions: vec![allowed], ..Batch::default() };
    let call = vec![of("state/n/count"), allowed.clone(), of("entity/n/count/x"), depends, allowed];
    let results = store.commit(call).await;
    let codes: Vec<_> = results.iter().map(|result| result.as_ref().err().map(Error::code)).collect();
    assert_eq!(codes, [Some("misuse"), None, Some("misuse"), Some("misuse"), None]);
    let prune = Prune {
        before: Position::START,
        records: Select::All,
        keep: Vec::new(),
        histories: vec!["".into()],
        documents: vec![write("state/n/count")],
    };
    assert_eq!(store.prune(prune).await.unwrap_err().code(), "misuse");
    assert_eq!(total(&node), 1);
}

#[test]
fn live_documents_are_read_at_one_point() {
    let sim = Simulator::new(5);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    let (a, b) = (space.node("a"), space.node("b"));
    let revisions = async |keys: &[Arc<str>]| -> Vec<u64> {
        let documents = space.store().documents(keys.to_vec()).await.unwrap();
        documents.iter().map(|document| document.as_ref().map_or(0, |document| document.revision)).collect()
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        // `a` is always changed before `b`, so `b` is never ahead.
        let writer = || {
            while !done.load(Ordering::SeqCst) {
                a.state::<Count>().set(Count::more).unwrap();
                b.state::<Count>().set(Count::more).unwrap();
            }
        };
        threads.spawn(writer);
        let _ends = SetAtEnd(&done);
        let keys: Vec<Arc<str>> = ["b", "a", "b"].map(|node| format!("state/{node}/count").into()).into();
        sim.run(async {
            for _ in 0..20_000 {
                let [b, a, again] = revisions(&keys).await[..] else { panic!() };
                assert_eq!(b, again);
                assert!(b == a || b + 1 == a, "a is at {a} and b at {b}");
            }
        });
    });
    assert_eq!(total(&a), total(&b));

    // The same for documents that are made meanwhile.
    done.store(false, Ordering::SeqCst);
    let next = AtomicUsize::new(0);
    std::thread::scope(|threads| {
        let writer = || {
            while !done.load(Ordering::SeqCst) {
                let key = next.load(Ordering::SeqCst).to_string();
                a.entity::<Count>(&*key).at_revision(0).set(Count::more).ok();
                b.entity::<Count>(&*key).at_revision(0).set(Count::more).ok();
            }
        };
        threads.spawn(writer);
        let _ends = SetAtEnd(&done);
        sim.run(async {
            for key in 0..300 {
                // What is asked for in between gives the writer time.
                let mut keys: Vec<Arc<str>> = vec!["entity/a/count/none".into(); 400];
                keys[0] = format!("entity/a/count/{key}").into();
                keys[399] = format!("entity/b/count/{key}").into();
                next.store(key, Ordering::SeqCst);
                loop {
                    let revisions = revisions(&keys).await;
                    let (a, b) = (revisions[0], revisions[399]);
                    assert!(a >= b, "b was there and a was not");
                    if b == 1 {
                        break;
                    }
                }
            }
        });
    });
}

/// Ends a thread also when an assertion beside it fails.
struct SetAtEnd<'f>(&'f AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

mod elsewhere {
    use serde::{Deserialize, Serialize};

    #[derive(happen::State, Default, Clone, Serialize, Deserialize)]
    pub(crate) struct Count(String);
}

#[tokio::test]
async fn two_types_under_one_name_are_a_problem_that_is_told() {
    let space = Space::memory();
    let node = space.node("node");
    node.state::<Count>().set(Count::more).unwrap();
    let error = node.state::<elsewhere::Count>().set(|count| count).unwrap_err();
    assert_eq!(error.code(), "misuse");
    assert!(error.to_string().contains("elsewhere::Count"), "{error}");
    assert!(node.state::<elsewhere::Count>().at_revision(1).set(|count| count).is_err());
    assert_eq!(node.state::<elsewhere::Count>().revision(), 0);
    assert_eq!(total(&node), 1);
    assert_eq!(space.problems().len(), 1);
    assert_eq!(space.start().await.unwrap_err().code(), "misuse");
    // Entities have names of their own.
    node.entity::<elsewhere::Count>("x").set(|count| count).unwrap();
}
