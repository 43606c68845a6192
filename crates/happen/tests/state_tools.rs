//! What is done with values of states: checks, lenses, selections, differences, undo, machines, merging, and who is told
//! of a change.
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Context as TaskContext, Poll, Waker};

use happen::model::{
    Conflicts, Diff, Edit, Lens, Machine, NotAllowed, Passages, Policy, Prefer, Selection, Undoable, all,
    lens, merge, when,
};
use happen::{Config, Context, Error, ErrorKind, Event, Node, Space, limits};
use happen_core::state::{decode, encode};
use happen_testing::{Simulator, check_seeds};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

#[derive(happen::State, Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Stock {
    pieces: i64,
    prices: BTreeMap<String, u32>,
    note: Option<String>,
    sizes: Vec<u8>,
}

#[derive(happen::State, Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Count {
    total: u64,
}

fn more(count: Count) -> Count {
    Count { total: count.total + 1 }
}

fn add(pieces: i64) -> impl Fn(Stock) -> Stock + Clone + Send + 'static {
    move |stock| Stock { pieces: stock.pieces + pieces, ..stock }
}

fn pieces(node: &Node) -> i64 {
    node.state::<Stock>().get(|stock| stock.pieces)
}

#[derive(Debug, PartialEq)]
struct Missing(i64);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} too few", self.0)
    }
}

impl std::error::Error for Missing {}

fn never_negative(_: &Stock, after: &Stock) -> happen::Result<()> {
    if after.pieces < 0 { Err(Missing(-after.pieces).into()) } else { Ok(()) }
}

// Checks.

#[test]
fn a_change_that_a_check_refuses_is_none() {
    let space = Space::memory();
    let shop = space.node("shop").validate_state(never_negative);
    shop.state::<Stock>().set(add(3)).unwrap();
    let refused = shop.state::<Stock>().set(add(-5)).unwrap_err();
    assert_eq!((refused.code(), refused.node_id()), ("invalid", Some("shop")));
    assert_eq!(refused.find_cause::<Missing>(), Some(&Missing(2)));
    assert_eq!(refused.to_string(), "not valid: 2 too few");
    assert!(!refused.is_retryable());
    assert_eq!((pieces(&shop), shop.state::<Stock>().revision()), (3, 1));
    // The check is for entities of the type too, and one that never came to be is not there.
    let entity = shop.entity::<Stock>("x");
    assert_eq!(entity.try_set(all((add(1), add(-2)))).unwrap_err().code(), "invalid");
    assert_eq!(entity.revision(), 0);
    // Other types and other nodes have no such check.
    shop.state::<Count>().set(more).unwrap();
    space.node("other").state::<Stock>().set(add(-1)).unwrap();
}

#[test]
fn a_check_compares_what_was_with_what_comes_and_all_are_asked_in_order() {
    let space = Space::memory();
    let asked = Arc::new(AtomicUsize::new(0));
    let second = Arc::clone(&asked);
    let shop = space
        .node("shop")
        .validate_state(|before: &Count, after: &Count| match after.total.checked_sub(before.total) {
            Some(1) => Ok(()),
            by => Err(Error::msg(format!("by {by:?}")).context("counting")),
        })
        .validate_state(move |_: &Count, _: &Count| {
            second.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
    shop.state::<Count>().set(more).unwrap();
    let refused = shop.state::<Count>().set(|count| more(more(count))).unwrap_err();
    assert_eq!(refused.to_string(), "counting: not valid: by Some(2)");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // What the change itself refuses with is not the check's.
    let own = shop.state::<Count>().try_set(|_| Err::<Count, _>(Missing(1))).unwrap_err();
    assert_eq!(own.code(), "failed");
}

#[test]
fn a_check_is_a_part_of_the_change() {
    let space = Space::memory();
    let shop = space.node("shop").validate_state(never_negative);
    shop.state::<Stock>().set(add(500)).unwrap();
    let (start, sold) = (Barrier::new(4), AtomicU64::new(0));
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                start.wait();
                for _ in 0..400 {
                    let bought = shop.state::<Stock>().set(add(-1));
                    sold.fetch_add(u64::from(bought.is_ok()), Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!((sold.into_inner(), pieces(&shop)), (500, 0));
}

#[test]
fn a_check_has_no_effects_and_may_panic() {
    let space = Space::memory();
    let other = space.node("other");
    let sets = other.clone();
    let shop = space.node("shop").validate_state(move |_: &Stock, after: &Stock| match after.pieces {
        1 => panic!("one is too many"),
        // The refusal is ignored, and the change is refused all the same.
        2 => sets.state::<Count>().set(more).or(Ok(())),
        _ => Ok(()),
    });
    let panicked = shop.state::<Stock>().set(add(1)).unwrap_err();
    assert_eq!(panicked.code(), "panicked");
    assert_eq!(shop.state::<Stock>().set(add(2)).unwrap_err().code(), "misuse");
    assert_eq!(other.state::<Count>().revision(), 0);
    shop.state::<Stock>().set(add(3)).unwrap();
    assert_eq!((pieces(&shop), shop.state::<Stock>().revision()), (3, 1));
}

#[test]
fn a_check_of_a_node_that_is_built_anew_is_not_there_twice() {
    let sim = Simulator::new(2);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    sim.run(async {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let supervisor = space.supervisor("top");
        let node = space.node("worker");
        supervisor
            .child(&node, move |node| {
                let counter = Arc::clone(&counter);
                let node = node.clone().validate_state(move |_: &Count, _: &Count| {
                    counter.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                });
                node.on("crash", |_: &Event, _: &Context| -> () { panic!("crashed as told") }).check()?;
                node.on("count", |_: &Event, cx: &Context| cx.state::<Count>().set(more)).check()
            })
            .unwrap();
        space.start().await.unwrap();
        for _ in 0..2 {
            assert!(space.send(&node, Event::new("crash", json!({}))).reply::<()>().await.is_err());
            space.send(&node, Event::new("count", json!({}))).reply::<()>().await.unwrap();
        }
        assert_eq!(supervisor.children()[0].restarts, 2);
        assert_eq!((asked.load(Ordering::SeqCst), node.state::<Count>().revision()), (2, 2));
    });
}

// Lenses.

#[derive(happen::State, Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Shop {
    stock: Stock,
    open: bool,
}

#[test]
fn a_lens_reads_and_changes_one_place_and_composes() {
    let stock = Lens::new(|shop: &Shop| &shop.stock, |shop: &mut Shop| &mut shop.stock);
    let pieces = stock.then(&Lens::new(|stock: &Stock| &stock.pieces, |stock: &mut Stock| &mut stock.pieces));
    let space = Space::memory();
    let node = space.node("shop");
    let before = Shop { open: true, ..Shop::default() };
    node.state::<Shop>().set(Lens::whole().setter(before.clone())).unwrap();
    node.state::<Shop>().set(pieces.setter(5)).unwrap();
    node.state::<Shop>().set(pieces.updater(|pieces| pieces * 2)).unwrap();
    assert_eq!(node.state::<Shop>().get(|shop| *pieces.get(shop)), 10);
    let expected = Shop { stock: Stock { pieces: 10, ..Stock::default() }, ..before };
    assert_eq!(node.state::<Shop>().get(Clone::clone), expected);
    // The laws: one reads what one sets; what one reads can be set without a change; the last one set counts.
    let mut shop = expected;
    assert_eq!(*pieces.get(&pieces.setter(7)(shop.clone())), 7);
    assert_eq!(pieces.setter(*pieces.get(&shop))(shop.clone()), shop);
    assert_eq!(pieces.setter(8)(pieces.setter(7)(shop.clone())), pieces.setter(8)(shop.clone()));
    *pieces.get_mut(&mut shop) = 9;
    assert_eq!(shop.stock.pieces, 9);
}

#[test]
fn a_lens_by_path_reads_and_changes_one_place_and_composes() {
    let space = Space::memory();
    let node = space.node("shop");
    let state = node.state::<Shop>();
    let stock = lens::<Shop, Stock>("stock");
    let apples = stock.then(&lens::<Stock, u32>("prices.granny\\.smith"));
    // An entry of a map may be new, and a value that is not there yet is set.
    state.try_set(apples.setter(7)).unwrap();
    state.try_set(apples.updater(|price| price + 1)).unwrap();
    state.try_set(lens::<Shop, Option<String>>("stock.note").setter(Some("fresh".into()))).unwrap();
    state.try_set(lens::<Shop, Vec<u8>>("stock.sizes").setter(vec![1, 2])).unwrap();
    state.try_set(lens::<Shop, u8>("stock.sizes.1").setter(9)).unwrap();
    let stock_now = state.get(|shop| stock.get(shop)).unwrap();
    assert_eq!(stock_now.prices["granny.smith"], 8);
    assert_eq!((stock_now.note.as_deref(), &*stock_now.sizes), (Some("fresh"), &[1, 9][..]));
    assert_eq!(state.get(|shop| apples.get(shop)).unwrap(), 8);
    let whole = lens::<Shop, Shop>("");
    state.try_set(whole.setter(Shop { open: true, ..Shop::default() })).unwrap();
    assert_eq!(state.get(Clone::clone), Shop { open: true, ..Shop::default() });
}

#[test]
fn a_path_that_leads_nowhere_changes_nothing_and_says_so() {
    let space = Space::memory();
    let node = space.node("shop");
    node.state::<Shop>().set(|shop| Shop { stock: Stock { sizes: vec![1], ..shop.stock }, ..shop }).unwrap();
    let code = |path: &str| {
        let set = node.state::<Shop>().try_set(lens::<Shop, u8>(path).setter(1)).err();
        let get = node.state::<Shop>().get(|shop| lens::<Shop, u8>(path).get(shop)).err();
        (set.map(|error| error.code()), get.map(|error| error.code()))
    };
    let nowhere = (Some("invalid"), Some("invalid"));
    // A field that does not exist is passed over by its type: setting it would be lost.
    for path in ["stok", "stock.peces", "stock.sizes.1", "stock.sizes.x", "stock.note.deep", "a.b", "open.x"]
    {
        assert_eq!(code(path), nowhere, "{path}");
    }
    // A value of another type.
    for path in ["open", "stock", "stock.note", ""] {
        assert_eq!(code(path), (Some("undecodable"), Some("undecodable")), "{path}");
    }
    assert_eq!(node.state::<Shop>().revision(), 1);
    let error = node.state::<Shop>().try_set(lens::<Shop, u8>("stok").setter(1)).unwrap_err();
    assert!(error.to_string().contains("`stok` leads nowhere in a "), "{error}");

    // A type that makes something else of what it is given.
    #[derive(Debug, Default, Serialize, Deserialize)]
    struct Tags(BTreeSet<u8>);
    let tags = lens::<Tags, Vec<u8>>("");
    assert_eq!(tags.set(&Tags::default(), &vec![1, 2]).unwrap().0, [1, 2].into());
    let error = tags.set(&Tags::default(), &vec![2, 1]).unwrap_err();
    assert!(error.to_string().ends_with("does not keep what is set at ``"), "{error}");
}

// Changes made of changes.

#[test]
fn several_changes_are_one_revision_or_none() {
    let space = Space::memory();
    let shop = space.node("shop").validate_state(never_negative);
    let state = shop.state::<Stock>();
    let sell = |wanted: i64| {
        move |stock: Stock| match stock.pieces >= wanted {
            true => Ok(Stock { pieces: stock.pieces - wanted, ..stock }),
            false => Err(Missing(wanted - stock.pieces)),
        }
    };
    // In between the state may be what a check would refuse: only what comes of all of them counts.
    state.try_set(all((add(-3), add(5), sell(1)))).unwrap();
    assert_eq!((pieces(&shop), state.revision()), (1, 1));
    let refused = state.try_set(all((add(1), sell(1), sell(5), add(100)))).unwrap_err();
    assert_eq!(refused.find_cause::<Missing>(), Some(&Missing(4)));
    assert_eq!((pieces(&shop), state.revision()), (1, 1));
    // Arrays, lists known at run time, and one inside another.
    state.try_set(all([add(1), add(2)])).unwrap();
    state.try_set(all((1..=10).map(add).collect::<Vec<_>>())).unwrap();
    state
        .try_set(all((all([add(1), add(1)]), add(1), add(1), add(1), add(1), add(1), add(1), add(1))))
        .unwrap();
    state.try_set(all(Vec::<fn(Stock) -> Stock>::new())).unwrap();
    assert_eq!((pieces(&shop), state.revision()), (68, 5));
    let few = || when(|stock: &Stock| stock.pieces < 69, add(100));
    state.try_set(all((few(), few()))).unwrap();
    assert_eq!(pieces(&shop), 168);
}

// Selections.

#[test]
fn a_selection_is_computed_once_for_each_revision_and_shared() {
    let space = Space::memory();
    let node = space.node("node");
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let doubled = node.select(move |count: &Count| {
        counter.fetch_add(1, Ordering::SeqCst);
        count.total * 2
    });
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    let start = Barrier::new(4);
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                start.wait();
                for _ in 0..100 {
                    assert_eq!(*doubled.get(), 0);
                }
            });
        }
    });
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert!(Arc::ptr_eq(&doubled.get(), &doubled.clone().get()));
    for total in 1..=3 {
        node.state::<Count>().set(more).unwrap();
        assert_eq!((*doubled.get(), *doubled.get()), (total * 2, total * 2));
    }
    assert_eq!(runs.load(Ordering::SeqCst), 4);
    // Nobody asked in between, so nothing was computed in between.
    (0..5).for_each(|_| node.state::<Count>().set(more).unwrap());
    assert_eq!((*doubled.get(), runs.load(Ordering::SeqCst)), (16, 5));
}

#[test]
fn a_selection_never_falls_behind_what_was_read_before() {
    let space = Space::memory();
    let node = space.node("node");
    let total = node.select(|count: &Count| count.total);
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            (0..20_000).for_each(|_| node.state::<Count>().set(more).unwrap());
            done.store(true, Ordering::SeqCst);
        });
        for _ in 0..2 {
            threads.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::SeqCst) {
                    let now = node.state::<Count>().get(|count| count.total);
                    let selected = *total.get();
                    assert!(selected >= now && selected >= last, "{selected} after {now} and {last}");
                    last = selected;
                }
            });
        }
    });
    assert_eq!(*total.get(), 20_000);
}

#[test]
fn selections_are_made_of_selections_of_several_nodes() {
    let space = Space::memory();
    let nodes: Vec<_> = (0..10).map(|number| space.node(format!("node-{number}"))).collect();
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let counts = Selection::all(nodes.iter().map(|node| node.select(|count: &Count| count.total)));
    let sum = counts.map(move |counts| {
        counter.fetch_add(1, Ordering::SeqCst);
        counts.iter().map(|count| **count).sum::<u64>()
    });
    let stock = nodes[0].select_entity("x", |stock: &Stock| stock.pieces);
    let both = sum.zip(&stock).map(|(sum, stock)| (**sum, **stock));
    assert_eq!(*both.get(), (0, 0));
    nodes.iter().for_each(|node| node.state::<Count>().set(more).unwrap());
    assert_eq!((*both.get(), *sum.get()), ((10, 0), 10));
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    // A part that did not change is not computed again.
    nodes[0].entity::<Stock>("x").set(add(7)).unwrap();
    assert_eq!((*both.get(), runs.load(Ordering::SeqCst)), ((10, 7), 2));
    assert_eq!(*Selection::<u64>::all([]).map(|none| none.len()).get(), 0);
}

#[test]
fn a_selection_keeps_one_value_and_outlives_a_panic() {
    struct Counted(u64, Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let space = Space::memory();
    let node = space.node("node");
    let alive = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&alive);
    let selection = node.select(move |count: &Count| {
        assert!(count.total % 10 != 3, "three is not computed");
        counter.fetch_add(1, Ordering::SeqCst);
        Counted(count.total, Arc::clone(&counter))
    });
    for total in 0..100 {
        let read = catch_unwind(AssertUnwindSafe(|| selection.get().0));
        assert_eq!(read.ok(), (total % 10 != 3).then_some(total));
        assert_eq!(alive.load(Ordering::SeqCst), 1);
        node.state::<Count>().set(more).unwrap();
    }
    drop(selection);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

#[test]
fn who_follows_a_selection_is_told_of_other_values_only() {
    let sim = Simulator::new(3);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    sim.run(async {
        let [a, b] = ["a", "b"].map(|id| space.node(id));
        let tens = |node: &Node| node.select(|count: &Count| count.total / 10);
        let sum = tens(&a).zip(&tens(&b)).map(|(a, b)| **a + **b);
        let mut changes = sum.changes();
        let mut ended = sum.changes();
        for _ in 0..9 {
            a.state::<Count>().set(more).unwrap();
            b.state::<Count>().set(more).unwrap();
        }
        assert!(pending(changes.next()));
        a.state::<Count>().set(more).unwrap();
        assert_eq!(changes.next().await.as_deref(), Some(&1));
        assert!(pending(changes.next()));
        b.state::<Count>().set(more).unwrap();
        a.destroy();
        assert_eq!(changes.next().await.as_deref(), Some(&2));
        // One of the two nodes still changes.
        assert!(pending(changes.next()));
        b.destroy();
        assert_eq!(changes.next().await, None);
        assert_eq!((ended.next().await.as_deref(), ended.next().await), (Some(&2), None));
    });
}

// Who is told of a change.

/// Whether a future waits, at its first poll.
fn pending(future: impl Future) -> bool {
    pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())).is_pending()
}

/// What a future ends with at its first poll.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

#[test]
fn a_reader_that_lags_is_told_how_much_it_missed_and_gets_the_newest() {
    let space = Space::memory();
    let node = space.node("node");
    node.state::<Count>().set(more).unwrap();
    let mut changes = node.changes::<Count>();
    // What was before is not a change.
    assert!(pending(changes.next()));
    node.state::<Count>().set(more).unwrap();
    let changed = ready(changes.next()).unwrap();
    assert_eq!((changed.state.total, changed.revision, changed.missed), (2, 2, 0));
    (0..1_000).for_each(|_| node.state::<Count>().set(more).unwrap());
    let changed = ready(changes.next()).unwrap();
    assert_eq!((changed.state.total, changed.revision, changed.missed), (1_002, 1_002, 999));
    assert!(pending(changes.next()));
    // Neither a change that failed, nor one of another document is told.
    node.state::<Count>().try_set(|_| Err::<Count, _>(Missing(1))).unwrap_err();
    node.state::<Stock>().set(add(1)).unwrap();
    node.entity::<Count>("x").set(more).unwrap();
    space.node("other").state::<Count>().set(more).unwrap();
    assert!(pending(changes.next()));
    // An entity that is not there yet can be followed too.
    let mut entity = node.entity_changes::<Count>("y/%");
    assert!(pending(entity.next()));
    node.entity::<Count>("y/%").set(more).unwrap();
    assert_eq!(ready(entity.next()).unwrap().revision, 1);
}

#[test]
fn following_ends_with_the_node_after_its_last_change() {
    let space = Space::memory();
    let node = space.node("node");
    let mut changes = node.changes::<Count>();
    node.state::<Count>().set(more).unwrap();
    node.destroy();
    assert_eq!(ready(changes.next()).unwrap().revision, 1);
    assert_eq!(ready(changes.next()), None);
    assert_eq!(ready(node.changes::<Count>().next()), None);
    // The state belongs to the id: who follows the new node goes on where the old one ended.
    let node = space.node("node");
    let mut changes = node.changes::<Count>();
    node.state::<Count>().set(more).unwrap();
    assert_eq!(ready(changes.next()).unwrap().revision, 2);
}

#[test]
fn who_waits_for_a_change_is_woken_when_the_space_stops() {
    let sim = Simulator::new(4);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    sim.run(async {
        let node = space.node("node");
        let (mut state, mut entity) = (node.changes::<Count>(), node.entity_changes::<Count>("x"));
        space.start().await.unwrap();
        let (to, ended) = tokio::sync::oneshot::channel();
        space.env().spawn(Box::pin(async move {
            to.send((state.next().await, entity.next().await)).unwrap();
        }));
        // Long enough that it waits.
        space.env().sleep(std::time::Duration::from_secs(1)).await;
        space.stop().await.unwrap();
        assert_eq!(ended.await.unwrap(), (None, None));
    });
}

#[test]
fn no_change_is_overlooked_in_any_order_of_tasks() {
    check_seeds(0..100, |sim| {
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        sim.run(async {
            let node = space.node("node");
            let done = Arc::new(AtomicU64::new(0));
            for _ in 0..3 {
                let (mut changes, done) = (node.changes::<Count>(), Arc::clone(&done));
                space.env().spawn(Box::pin(async move {
                    let (mut seen, mut missed) = (0, 0);
                    while let Some(changed) = changes.next().await {
                        assert_eq!(changed.state.total, changed.revision);
                        (seen, missed) = (seen + 1, missed + changed.missed);
                        assert_eq!(seen + missed, changed.revision);
                        if changed.revision == 20 {
                            break;
                        }
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }));
            }
            for _ in 0..4 {
                let (node, env) = (node.clone(), Arc::clone(space.env()));
                space.env().spawn(Box::pin(async move {
                    for _ in 0..5 {
                        env.sleep(std::time::Duration::from_millis(env.random_u64() % 3)).await;
                        node.state::<Count>().set(more).unwrap();
                    }
                }));
            }
            space.env().sleep(std::time::Duration::from_secs(1)).await;
            assert_eq!(done.load(Ordering::SeqCst), 3);
        });
    });
}

#[test]
fn no_change_is_overlooked_between_threads() {
    let space = Space::memory();
    let node = space.node("node");
    let readers: Vec<_> = (0..2).map(|_| node.changes::<Count>()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let tasks: Vec<_> = readers
        .into_iter()
        .map(|mut changes| {
            runtime.spawn(async move {
                let mut told = 0;
                while told < 4_000 {
                    let changed = changes.next().await.unwrap();
                    assert_eq!(changed.state.total, changed.revision);
                    told += 1 + changed.missed;
                    assert_eq!(told, changed.revision);
                }
            })
        })
        .collect();
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| (0..2_000).for_each(|_| node.state::<Count>().set(more).unwrap()));
        }
    });
    tasks.into_iter().for_each(|task| runtime.block_on(task).unwrap());
}

#[test]
fn a_value_is_read_with_its_own_revision() {
    let space = Space::memory();
    let node = space.node("node");
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            (0..20_000).for_each(|_| node.state::<Count>().set(more).unwrap());
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let (revision, total) = node.state::<Count>().versioned(|count| count.total);
            assert_eq!(revision, total);
        }
    });
}

// Differences.

#[test]
fn a_cache_follows_by_differences_and_notices_when_one_is_missing() {
    let space = Space::memory();
    let (owner, cache) = (space.node("owner"), space.node("cache"));
    let mut diffs = Vec::new();
    for change in [add(1), add(2), add(3)] {
        let before = owner.state::<Stock>().get(Clone::clone);
        owner.state::<Stock>().set(change).unwrap();
        diffs.push(Diff::between(&before, &owner.state::<Stock>().get(Clone::clone)).unwrap());
    }
    let follow = |diff: &Diff| {
        let diff = diff.clone();
        cache.state::<Stock>().try_set(move |stock| diff.apply(&stock))
    };
    follow(&diffs[0]).unwrap();
    assert_eq!(follow(&diffs[2]).unwrap_err().code(), "conflict");
    assert_eq!(pieces(&cache), 1);
    follow(&diffs[1]).unwrap();
    follow(&diffs[2]).unwrap();
    assert_eq!(cache.state::<Stock>().get(Clone::clone), owner.state::<Stock>().get(Clone::clone));
}

#[test]
fn a_difference_names_what_was_added_removed_and_changed() {
    let before = Stock { pieces: 1, prices: [("apple".into(), 1)].into(), note: None, sizes: vec![1, 2, 3] };
    let after = Stock {
        pieces: 2,
        prices: [("pear".into(), 2)].into(),
        note: Some("fresh".into()),
        sizes: vec![1, 3],
    };
    let diff = Diff::between(&before, &after).unwrap();
    let mut lines: Vec<_> = diff.to_string().lines().map(str::to_owned).collect();
    lines.sort_unstable();
    let expected = [
        "+ prices.pear: 2",
        "- prices.apple: 1",
        "- sizes.1: 2",
        "~ note: null -> \"fresh\"",
        "~ pieces: 1 -> 2",
    ];
    assert_eq!(lines, expected);
    let note = diff.edits().iter().find(|edit| edit.path().to_string() == "note").unwrap();
    assert_eq!((note.old_value(), note.new_value()), (Some(&Json::Null), Some(&json!("fresh"))));
    assert!(matches!(note, Edit::Changed { .. }));
    assert_eq!(diff.apply(&before).unwrap(), after);
    assert_eq!(diff.inverse().apply(&after).unwrap(), before);
    assert!(Diff::between(&after, &after).unwrap().is_empty());
}

// Undo.

#[derive(happen::State, Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Page(Undoable<BTreeMap<String, u32>>);

#[derive(Debug, Clone)]
enum Action {
    Set(u8, u32),
    Undo,
    Redo,
    Store,
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (0..3_u8, 0..3_u32).prop_map(|(key, value)| Action::Set(key, value)),
        2 => Just(Action::Undo),
        1 => Just(Action::Redo),
        1 => Just(Action::Store),
    ]
}

proptest! {
    #[test]
    fn undo_and_redo_are_those_of_two_stacks(actions in prop::collection::vec(any_action(), 0..60)) {
        let mut page = Page::default();
        let (mut now, mut done, mut undone) = (BTreeMap::new(), Vec::new(), Vec::new());
        for action in actions {
            match action {
                Action::Set(key, value) => {
                    let mut changed: BTreeMap<String, u32> = now.clone();
                    changed.insert(key.to_string(), value);
                    page = Page(page.0.set(changed.clone()).unwrap());
                    if changed != now {
                        done.push(std::mem::replace(&mut now, changed));
                        undone.clear();
                    }
                }
                Action::Undo => match (page.clone().0.undo(), done.pop()) {
                    (Ok(back), Some(before)) => {
                        undone.push(std::mem::replace(&mut now, before));
                        page = Page(back);
                    }
                    (Err(error), None) => prop_assert_eq!(error.to_string(), "not valid: there is nothing to undo"),
                    (found, expected) => prop_assert!(false, "{found:?} and not {expected:?}"),
                },
                Action::Redo => match (page.clone().0.redo(), undone.pop()) {
                    (Ok(again), Some(after)) => {
                        done.push(std::mem::replace(&mut now, after));
                        page = Page(again);
                    }
                    (Err(error), None) => prop_assert_eq!(error.to_string(), "not valid: there is nothing to redo"),
                    (found, expected) => prop_assert!(false, "{found:?} and not {expected:?}"),
                },
                Action::Store => page = decode(&encode(&page).unwrap()).unwrap(),
            }
            prop_assert_eq!(page.0.now(), &now);
            prop_assert_eq!((page.0.undo_len(), page.0.redo_len()), (done.len(), undone.len()));
        }
    }
}

#[test]
fn so_many_changes_can_be_taken_back_and_no_more() {
    let max = limits::UNDO_STEPS_MAX;
    for changes in [max - 1, max, max + 1] {
        let mut number = (1..=changes).fold(Undoable::new(0), |number, to| number.set(to).unwrap());
        let kept = changes.min(max);
        assert_eq!(number.undo_len(), kept);
        for step in 1..=kept {
            number = number.undo().unwrap();
            assert_eq!((*number.now(), number.redo_len()), (changes - step, step));
        }
        assert_eq!(number.clone().undo().unwrap_err().code(), "invalid");
        number = (0..kept).fold(number, |number, _| number.redo().unwrap());
        assert_eq!((*number.now(), number.undo_len()), (changes, kept));
    }
}

#[test]
fn undo_is_a_change_like_any() {
    let space = Space::memory();
    let node = space.node("wiki");
    let page = node.entity::<Page>("home");
    let put = |key: &'static str| {
        move |page: Page| {
            page.0
                .change(|mut map| {
                    map.insert(key.to_owned(), 1);
                    map
                })
                .map(Page)
        }
    };
    page.try_set(put("a")).unwrap();
    page.try_set(put("b")).unwrap();
    page.try_set(|page| page.0.undo().map(Page)).unwrap();
    assert_eq!(page.get(|page| page.0.now().len()), 1);
    // A new change cuts what was taken back.
    page.try_set(put("c")).unwrap();
    assert_eq!(page.try_set(|page| page.0.redo().map(Page)).unwrap_err().code(), "invalid");
    assert_eq!(page.get(|page| page.0.now().keys().cloned().collect::<Vec<_>>()), ["a", "c"]);
    // One that is equal does not, and is nothing to take back.
    page.try_set(|page| page.0.undo().map(Page)).unwrap();
    page.try_set(put("a")).unwrap();
    assert_eq!(page.get(|page| (page.0.undo_len(), page.0.redo_len())), (1, 1));
}

// State machines.

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
enum Phase {
    #[default]
    New,
    Paid {
        cents: u64,
    },
    Shipped,
    Cancelled,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Act {
    Pay(u64),
    Ship,
    Cancel,
    Remind,
}

#[derive(happen::State, Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Order {
    phase: Phase,
    price: u64,
    log: Vec<String>,
    passages: Passages<Phase, Act>,
}

fn phase() -> Lens<Order, Phase> {
    Lens::new(|order: &Order| &order.phase, |order: &mut Order| &mut order.phase)
}

fn machine() -> Machine<Order, Phase, Act> {
    let paid = Phase::Paid { cents: 0 };
    Machine::builder(phase())
        .allow(Phase::New, Act::Pay(0), paid.clone())
        .when("paid in full", |order: &Order, act| matches!(act, Act::Pay(cents) if *cents >= order.price))
        .allow(Phase::New, Act::Pay(0), Phase::Cancelled)
        .when("paid with false money: beware;", |_, act| *act == Act::Pay(13))
        .allow(Phase::New, Act::Remind, Phase::New)
        .allow(paid.clone(), Act::Ship, Phase::Shipped)
        .allow_from([Phase::New, paid.clone()], Act::Cancel, Phase::Cancelled)
        .leave(Phase::New, |order, act| order.log.push(format!("{:?} left by {act:?}", order.phase)))
        .enter(Phase::New, |order, _| order.log.push("new again".into()))
        .enter(paid, |order, act| {
            if let (Phase::Paid { cents: paid }, Act::Pay(cents)) = (&mut order.phase, act) {
                *paid = *cents;
            }
        })
        .record(Lens::new(|order: &Order| &order.passages, |order: &mut Order| &mut order.passages))
        .build()
        .unwrap()
}

#[test]
fn a_machine_goes_the_ways_that_are_allowed() {
    let (machine, space) = (machine(), Space::memory());
    let node = space.node("orders");
    let order = node.entity::<Order>("1");
    order.set(|order| Order { price: 100, ..order }).unwrap();
    order.try_set(machine.transition(Act::Remind)).unwrap();
    order.try_set(machine.transition(Act::Pay(120))).unwrap();
    assert_eq!(order.get(|order| order.phase.clone()), Phase::Paid { cents: 120 });
    assert_eq!(order.get(|order| machine.legal(order)), [Act::Ship, Act::Cancel]);
    order.try_set(machine.transition(Act::Ship)).unwrap();
    assert_eq!(order.get(|order| machine.legal(order)), []);
    assert_eq!(
        order.get(|order| order.log.clone()),
        ["New left by Remind", "new again", "New left by Pay(120)"]
    );
    // What is remembered of the way is a part of the state, stored with it.
    let stored: Order = decode(&encode(&order.get(Clone::clone)).unwrap()).unwrap();
    let way: Vec<_> = stored.passages.iter().map(|passage| (&passage.event, &passage.to)).collect();
    let paid = Phase::Paid { cents: 120 };
    assert_eq!(way, [(&Act::Remind, &Phase::New), (&Act::Pay(120), &paid), (&Act::Ship, &Phase::Shipped)]);
    assert_eq!(stored.passages.forgotten(), 0);
}

#[test]
fn a_machine_refuses_the_others_and_lists_those_that_are_allowed() {
    let (machine, space) = (machine(), Space::memory());
    let node = space.node("orders");
    let order = node.entity::<Order>("1");
    order.set(|order| Order { price: 100, ..order }).unwrap();
    let refused = order.try_set(machine.transition(Act::Ship)).unwrap_err();
    assert_eq!((refused.code(), refused.is_retryable()), ("invalid", false));
    let why = refused.find_cause::<NotAllowed<Phase, Act>>().unwrap();
    assert_eq!((&why.from, &why.event, &why.guards), (&Phase::New, &Act::Ship, &vec![]));
    assert_eq!(why.legal, [Act::Pay(0), Act::Remind, Act::Cancel]);
    assert_eq!(
        refused.to_string(),
        "not valid: `Ship` is not allowed in `New`, which allows `Pay`, `Remind`, `Cancel`"
    );
    let refused = order.try_set(machine.transition(Act::Pay(99))).unwrap_err();
    let guards = &refused.find_cause::<NotAllowed<Phase, Act>>().unwrap().guards;
    assert_eq!(guards[..], ["paid in full", "paid with false money: beware;"]);
    // Of two rules the first one whose guard agrees.
    order.try_set(machine.transition(Act::Pay(13))).unwrap();
    assert_eq!(order.get(|order| order.phase.clone()), Phase::Cancelled);
    let refused = order.try_set(machine.transition(Act::Cancel)).unwrap_err();
    assert!(refused.to_string().ends_with("`Cancel` is not allowed in `Cancelled`, which allows nothing"));
    assert_eq!(order.revision(), 2);
}

#[test]
fn a_way_that_many_take_at_once_is_taken_once() {
    let (machine, space) = (machine(), Space::memory());
    let node = space.node("orders");
    let (start, paid) = (Barrier::new(8), AtomicUsize::new(0));
    std::thread::scope(|threads| {
        for cents in 0..8 {
            let (machine, node, start, paid) = (&machine, &node, &start, &paid);
            threads.spawn(move || {
                start.wait();
                let result = node.state::<Order>().try_set(machine.transition(Act::Pay(cents)));
                paid.fetch_add(usize::from(result.is_ok()), Ordering::SeqCst);
            });
        }
    });
    assert_eq!((paid.into_inner(), node.state::<Order>().get(|order| order.passages.iter().len())), (1, 1));
}

#[test]
fn so_many_passages_are_remembered_and_older_ones_counted() {
    let (machine, max) = (machine(), limits::PASSAGES_MAX);
    let remind = machine.transition(Act::Remind);
    for passages in [max - 1, max, max + 1] {
        let order = (0..passages).fold(Order::default(), |order, _| remind(order).unwrap());
        assert_eq!(order.passages.iter().len(), passages.min(max));
        assert_eq!(order.passages.forgotten(), passages.saturating_sub(max) as u64);
    }
}

#[test]
fn a_machine_is_drawn() {
    let text = "stateDiagram-v2\n    \
                [*] --> New\n    \
                New --> Paid: Pay [paid in full]\n    \
                New --> Cancelled: Pay [paid with false money  beware ]\n    \
                New --> New: Remind\n    \
                Paid --> Shipped: Ship\n    \
                New --> Cancelled: Cancel\n    \
                Paid --> Cancelled: Cancel\n    \
                Cancelled --> [*]\n    \
                Shipped --> [*]\n";
    assert_eq!(machine().mermaid(), text);
}

#[test]
fn mistakes_in_the_rules_are_told_when_the_machine_is_built() {
    let builder = || Machine::builder(Lens::<Phase, Phase>::whole());
    let wrong = |builder: happen::model::MachineBuilder<Phase, Phase, Act>| {
        let error = builder.build().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Misuse { .. }));
        error.to_string()
    };
    let twice =
        builder().allow(Phase::New, Act::Ship, Phase::Shipped).allow(Phase::New, Act::Ship, Phase::Cancelled);
    assert_eq!(
        wrong(twice),
        "the rule for `Ship` in `New` is never followed: one without a guard is before it"
    );
    assert_eq!(wrong(builder().when("early", |_, _| true)), "the guard `early` stands before every rule");
    let rule = || builder().allow(Phase::New, Act::Ship, Phase::Shipped);
    assert_eq!(wrong(rule().enter(Phase::New, |_, _| ())), "no rule enters `New`, where something is done");
    assert_eq!(
        wrong(rule().leave(Phase::Shipped, |_, _| ())),
        "no rule leaves `Shipped`, where something is done"
    );
    assert!(rule().leave(Phase::New, |_, _| ()).enter(Phase::Shipped, |_, _| ()).build().is_ok());
}

#[test]
fn what_is_done_on_the_way_is_no_way_around_the_rules() {
    let builder = || Machine::builder(phase()).allow(Phase::New, Act::Ship, Phase::Shipped);
    let around = |order: &mut Order, _: &Act| order.phase = Phase::Cancelled;
    for machine in [builder().enter(Phase::Shipped, around), builder().leave(Phase::New, around)] {
        let error = machine.build().unwrap().transition(Act::Ship)(Order::default()).unwrap_err();
        assert_eq!(error.code(), "misuse");
        assert!(error.to_string().contains("made the phase `Cancelled`"), "{error}");
    }
}

// Merging.

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![Just(Json::Null), (0..3).prop_map(Json::from), "[ab]{0,1}".prop_map(Json::from)];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn what_one_side_changed_is_taken_and_the_rest_is_decided(
        base in any_json(), mine in any_json(), theirs in any_json(),
    ) {
        let of = |prefer| merge(&base, &mine, &theirs, &Policy::new(prefer));
        for prefer in [Prefer::Mine, Prefer::Theirs, Prefer::Neither] {
            let policy = Policy::new(prefer);
            prop_assert_eq!(&merge(&base, &mine, &base, &policy).unwrap(), &mine);
            prop_assert_eq!(&merge(&base, &base, &theirs, &policy).unwrap(), &theirs);
            prop_assert_eq!(&merge(&base, &mine, &mine, &policy).unwrap(), &mine);
        }
        let (my_way, their_way) = (of(Prefer::Mine).unwrap(), of(Prefer::Theirs).unwrap());
        // From the other side it is the same, so both come to the same result.
        let across = merge(&base, &theirs, &mine, &Policy::new(Prefer::Theirs)).unwrap();
        prop_assert_eq!(&across, &my_way);
        prop_assert_eq!(
            merge(&base, &mine, &theirs, &Policy::greater(&"node-a", &"node-b")).unwrap(),
            merge(&base, &theirs, &mine, &Policy::greater(&"node-b", &"node-a")).unwrap()
        );
        match of(Prefer::Neither) {
            Ok(merged) => prop_assert!(merged == my_way && merged == their_way),
            Err(error) => {
                let conflicts = error.find_cause::<Conflicts>().unwrap();
                prop_assert!(conflicts.iter().len() > 0);
                for conflict in conflicts.iter() {
                    prop_assert!(conflict.mine() != conflict.theirs());
                    prop_assert!(conflict.base() != conflict.mine() && conflict.base() != conflict.theirs());
                }
                prop_assert!(my_way != their_way);
            }
        }
    }
}

#[test]
fn conflicts_are_all_told_with_the_three_values() {
    let base = json!({"a": 1, "b": {"c": 1, "d": 1}, "e": 1, "items": [1, 2]});
    let mine = json!({"a": 2, "b": {"c": 2, "d": 1}, "items": [1, 2, 3]});
    let theirs = json!({"a": 3, "b": {"c": 1, "d": 2}, "e": 2, "items": [0, 2]});
    let error = merge(&base, &mine, &theirs, &Policy::default()).unwrap_err();
    assert_eq!(error.to_string(), "conflict: both sides changed `a`, `items`, `e`");
    let conflicts = error.find_cause::<Conflicts>().unwrap();
    let deleted = conflicts.iter().find(|conflict| conflict.path().to_string() == "e").unwrap();
    assert_eq!((deleted.base(), deleted.mine(), deleted.theirs()), (Some(&json!(1)), None, Some(&json!(2))));
    let policy =
        Policy::new(Prefer::Theirs).at("a", Prefer::Mine).at("items", Prefer::Mine).at("e", Prefer::Mine);
    let merged = merge(&base, &mine, &theirs, &policy).unwrap();
    assert_eq!(merged, json!({"a": 2, "b": {"c": 2, "d": 2}, "items": [1, 2, 3]}));
}

#[test]
fn a_list_that_lost_different_items_on_each_side_is_a_conflict() {
    // Place by place it would look as if only one side had changed each.
    let (base, mine, theirs) = (vec![1, 2, 3], vec![2, 3], vec![1, 2]);
    let error = merge(&base, &mine, &theirs, &Policy::default()).unwrap_err();
    assert_eq!(error.to_string(), "conflict: both sides changed the whole value");
    let conflicts = error.find_cause::<Conflicts>().unwrap();
    assert!(conflicts.iter().map(|conflict| conflict.path().to_string()).eq([""]));
    assert_eq!(merge(&base, &mine, &theirs, &Policy::new(Prefer::Theirs)).unwrap(), theirs);
}

#[test]
fn a_rule_holds_at_its_place_and_inside_and_the_last_one_counts() {
    let stock =
        |north: [i64; 2], south: [i64; 2]| json!({"north": {"a": north[0], "b": north[1]}, "south": south});
    let (base, mine, theirs) = (stock([1, 1], [1, 1]), stock([2, 3], [2, 1]), stock([4, 5], [3, 1]));
    let merged = |policy: Policy| merge(&base, &mine, &theirs, &policy).unwrap();
    let policy = Policy::new(Prefer::Theirs).at("north", Prefer::Mine).at("north.b", Prefer::Theirs);
    assert_eq!(merged(policy), stock([2, 5], [3, 1]));
    let policy =
        Policy::new(Prefer::Theirs).at("*.a", Prefer::Mine).at("*.0", Prefer::Theirs).at("*.0", Prefer::Mine);
    assert_eq!(merged(policy), stock([2, 5], [2, 1]));
    // A function decides about the place as a whole, and may take it away.
    let policy = Policy::new(Prefer::Mine).custom("north", |_| Ok(None));
    assert_eq!(merged(policy), json!({"south": [2, 1]}));
    let policy = Policy::default().custom("north", |_| Err(Missing(3).into()));
    let error = merge(&base, &mine, &theirs, &policy).unwrap_err();
    assert_eq!(error.to_string(), "merging `north`: 3 too few");
}

#[test]
fn two_variants_of_an_enum_are_never_mixed() {
    let phases =
        [Phase::New, Phase::Paid { cents: 1 }, Phase::Paid { cents: 2 }, Phase::Shipped, Phase::Cancelled];
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Choice {
        One { a: u8 },
        Two { a: u8 },
        Three(u8),
    }
    for (base, mine, theirs) in every_three(&phases) {
        assert!(
            merge(base, mine, theirs, &Policy::new(Prefer::Mine)).is_ok(),
            "{base:?} {mine:?} {theirs:?}"
        );
    }
    let choices = [Choice::One { a: 1 }, Choice::One { a: 2 }, Choice::Two { a: 1 }, Choice::Three(1)];
    for (base, mine, theirs) in every_three(&choices) {
        assert!(
            merge(base, mine, theirs, &Policy::new(Prefer::Mine)).is_ok(),
            "{base:?} {mine:?} {theirs:?}"
        );
        let fresh = Policy::default();
        let pair = (&Some(base.clone()), &Some(mine.clone()), &Some(theirs.clone()));
        match merge(pair.0, pair.1, pair.2, &fresh) {
            Ok(merged) => assert!(merged == *pair.1 || merged == *pair.2),
            Err(error) => assert_eq!(error.code(), "conflict"),
        }
        assert!(merge(&None, pair.1, pair.2, &Policy::new(Prefer::Theirs)).is_ok());
    }
}

fn every_three<T>(values: &[T]) -> impl Iterator<Item = (&T, &T, &T)> {
    values.iter().flat_map(move |base| {
        values.iter().flat_map(move |mine| values.iter().map(move |theirs| (base, mine, theirs)))
    })
}
