//! Histories that happened elsewhere: an imported event has exactly the causes its importer names, and
//! everything that follows from it here is caused by it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::{Arc, Mutex};

use happen::store::{MemoryStore, Read, Select, Store};
use happen::{Config, Context, Dynamic, Event, EventId, Imported, Space, secs};
use happen_testing::{Dies, FaultyStore, Simulator};
use serde::{Deserialize, Serialize};
use serde_json::json;

fn commit(name: &str) -> Dynamic {
    Event::new("commit", json!({ "name": name }))
}

async fn started(config: Config) -> happen::Result<Space> {
    let space = Space::with(config)?;
    space.start().await?;
    Ok(space)
}

#[tokio::test]
async fn a_merge_has_all_its_parents_as_causes() -> happen::Result<()> {
    let space = started(Config::default()).await?;
    let import = |name, causes: &[&Imported]| {
        space.broadcasting(commit(name)).caused_by(causes.iter().copied()).publish()
    };
    let root = space.broadcasting(commit("root")).correlation("history").caused_by([]).publish()?;
    let left = import("left", &[&root])?;
    let right = import("right", &[&root])?;
    let other_root = import("other root", &[])?;
    let merge = import("merge", &[&left, &right, &other_root])?;

    let ids = |all: &[&Imported]| all.iter().map(|one| one.event_id()).collect::<Vec<_>>();
    assert_eq!(space.why(merge.event_id()).await?, ids(&[&root, &left, &right, &other_root]));
    assert_eq!(space.impact(root.event_id()).await?, ids(&[&left, &right, &merge]));
    let trace = space.trace("history").await?;
    let lines = trace.lines();
    let line = |event: &Imported| lines.iter().find(|line| line.event == event.event_id());
    assert_eq!(line(&merge).unwrap().causes, ids(&[&left, &right, &other_root]));
    assert!(line(&root).unwrap().causes.is_empty());
    assert!(line(&root).unwrap().asked_for);
    Ok(())
}

#[tokio::test]
async fn what_follows_from_an_imported_event_is_caused_by_it() -> happen::Result<()> {
    let space = started(Config::default()).await?;
    let seen = Arc::new(Mutex::new(Vec::<(EventId, Vec<EventId>, String, u32)>::new()));
    space
        .node("authors")
        .on("commit", |_: &Event, cx: &Context| -> happen::Result<()> {
            cx.broadcast(Event::new("authored", json!(null)))?;
            Ok(())
        })
        .check()?;
    let kept = Arc::clone(&seen);
    space
        .node("audit")
        .on("authored", move |event: &Event, cx: &Context| {
            let causes = event.causes().collect();
            kept.lock().unwrap().push((event.id(), causes, cx.correlation(), event.envelope().depth));
        })
        .check()?;
    let root = space.broadcasting(commit("root")).correlation("history").caused_by([]).publish()?;
    let child = space.broadcasting(commit("child")).caused_by([&root]).publish()?;
    let seen = seen.lock().unwrap().clone();
    let [first, second] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((&first.1, first.2.as_str(), first.3), (&vec![root.event_id()], "history", 1));
    assert_eq!((&second.1, second.2.as_str(), second.3), (&vec![child.event_id()], "history", 2));
    assert_eq!(space.impact(child.event_id()).await?, [second.0]);
    Ok(())
}

#[tokio::test]
async fn causes_are_named_only_where_no_handler_is_the_cause() -> happen::Result<()> {
    let space = started(Config::default()).await?;
    let root = space.broadcasting(commit("root")).caused_by([]).publish()?;
    let node = space.node("node");
    let cause = root.clone();
    node.on("try", move |_: &Event, cx: &Context| -> happen::Result<()> {
        cx.broadcasting(commit("forged")).caused_by([&cause]).publish()?;
        Ok(())
    })
    .check()?;
    let cause = root.clone();
    node.on("try-node", move |_: &Event, cx: &Context| -> happen::Result<()> {
        cx.node().broadcasting(commit("forged")).caused_by([&cause]).publish()?;
        Ok(())
    })
    .check()?;
    for attempt in ["try", "try-node"] {
        let asked = space.send(&node, Event::new(attempt, json!(null))).reply::<()>().await;
        let error = asked.unwrap_err();
        assert_eq!(error.code(), "misuse", "{error:?}");
    }

    let elsewhere = started(Config::default()).await?;
    let foreign = elsewhere.broadcasting(commit("child")).caused_by([&root]).publish().unwrap_err();
    assert!(foreign.to_string().contains("another space"), "{foreign:?}");
    let chosen = space.broadcasting(commit("child")).correlation("own").caused_by([&root]).publish();
    assert_eq!(chosen.unwrap_err().code(), "misuse");
    Ok(())
}

#[tokio::test]
async fn the_depth_of_a_history_is_limited() -> happen::Result<()> {
    let mut config = Config::default();
    config.correlation.depth_max = 2;
    let space = started(config).await?;
    let mut last = space.broadcasting(commit("root")).caused_by([]).publish()?;
    for name in ["first", "second"] {
        last = space.broadcasting(commit(name)).caused_by([&last]).publish()?;
    }
    let error = space.broadcasting(commit("third")).caused_by([&last]).publish().unwrap_err();
    assert!(error.to_string().contains("correlation.depth_max"), "{error:?}");
    assert_eq!(error.event_id(), Some(last.event_id()));
    Ok(())
}

#[tokio::test]
async fn a_long_history_is_traced_to_its_root() -> happen::Result<()> {
    const COMMITS: usize = 5_000;
    let space = started(Config { remembered_events: COMMITS, ..Config::default() }).await?;
    let mut line = vec![space.broadcasting(commit("root")).caused_by([]).publish()?];
    for number in 1..COMMITS {
        line.push(space.broadcasting(commit(&number.to_string())).caused_by([&line[number - 1]]).publish()?);
    }
    let ids: Vec<_> = line.iter().map(Imported::event_id).collect();
    let last = ids[COMMITS - 1];
    assert_eq!(space.why(last).await?, ids[..COMMITS - 1]);
    let trace = space.trace(last).await?;
    assert_eq!(trace.lines().len(), COMMITS);
    assert!(!trace.is_cut());
    let deepest = trace.lines().last().unwrap();
    assert_eq!((deepest.event, deepest.depth), (last, COMMITS - 1));
    assert!(deepest.to_string().starts_with("(4999) commit"), "{deepest}");
    Ok(())
}

#[tokio::test]
async fn a_handler_sends_to_a_name_it_has_just_made() -> happen::Result<()> {
    let space = started(Config::default()).await?;
    space
        .node("authors")
        .on("commit", async |commit: Event, cx: Context| -> happen::Result<()> {
            cx.send(format!("author:{}", commit.get("name").unwrap().as_str().unwrap()), 1u64).await?;
            Ok(())
        })
        .check()?;
    let heard = Arc::new(Mutex::new(0));
    let count = Arc::clone(&heard);
    space
        .node("author:ada")
        .on("u64", move |event: &Event<u64>, _: &Context| *count.lock().unwrap() += event.payload())
        .check()?;
    space.broadcasting(commit("ada")).caused_by([]).publish()?;
    assert_eq!(*heard.lock().unwrap(), 1);
    Ok(())
}

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("count", version = 1)]
struct Count {
    commits: Vec<String>,
}

/// A process over a disk: two nodes that take note of commits.
async fn historian(sim: &Simulator, store: &Arc<FaultyStore>) -> happen::Result<Space> {
    let space = Space::with_store(Config::default(), sim.env(), Arc::clone(store) as Arc<dyn Store>).unwrap();
    for node in ["first", "second"] {
        space.node(node).on("commit", |commit: &Event, cx: &Context| {
            let name = commit.get("name").unwrap().as_str().unwrap().to_owned();
            cx.state::<Count>().set(move |mut count| {
                count.commits.push(name.clone());
                count.commits.sort();
                count
            })
        });
    }
    space.start().await?;
    Ok(space)
}

/// Brings a line of commits in, as far as the process lives.
async fn bring_in(space: &Space, commits: usize) -> happen::Result<Vec<Imported>> {
    let mut line: Vec<Imported> = Vec::new();
    for number in 0..commits {
        let name = format!("c{number}");
        line.push(space.broadcasting(commit(&name)).caused_by(line.last()).once(&name).await?);
    }
    Ok(line)
}

fn noted(space: &Space, node: &str) -> Vec<String> {
    space.find(node).unwrap().state::<Count>().get(|count| count.commits.clone())
}

#[test]
fn a_history_that_is_brought_in_again_after_any_crash_is_taken_once() {
    const COMMITS: usize = 4;
    let expected: Vec<_> = (0..COMMITS).map(|number| format!("c{number}")).collect();
    let mut ends = 0;
    for dies in [Dies::Before, Dies::Unheard] {
        for at in 1.. {
            let sim = Simulator::new(at);
            let disk: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
            let is_over = sim.run(async {
                let store = FaultyStore::new(Arc::clone(&disk), sim.env());
                store.dies_at(at, dies);
                // It may die before it has begun.
                if let Ok(space) = historian(&sim, &store).await {
                    drop(bring_in(&space, COMMITS).await);
                    drop(space.settled(secs(60)).await);
                }
                let is_over = !store.is_dead();

                let space = historian(&sim, &FaultyStore::new(Arc::clone(&disk), sim.env())).await.unwrap();
                let line = bring_in(&space, COMMITS).await.unwrap();
                space.settled(secs(60)).await.unwrap();
                for node in ["first", "second"] {
                    assert_eq!(noted(&space, node), expected, "{node} after a crash at commit {at}");
                }
                let ids: Vec<_> = line.iter().map(Imported::event_id).collect();
                assert_eq!(space.why(ids[COMMITS - 1]).await.unwrap(), ids[..COMMITS - 1]);
                let verified = space.journal().verify().await.unwrap();
                // Also causes of the process that died are told by their hashes.
                assert!(verified.is_whole() && verified.edge == 0, "{verified:?}");
                is_over
            });
            if is_over {
                break;
            }
            ends += 1;
        }
    }
    assert!(ends > 4 * COMMITS, "{ends}");
}

#[test]
fn a_name_that_is_known_is_one_look_and_no_commit() {
    let sim = Simulator::new(1);
    let disk: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
    sim.run(async {
        let store = FaultyStore::new(Arc::clone(&disk), sim.env());
        let space = historian(&sim, &store).await.unwrap();
        let root = commit("c0");
        let first = space.broadcasting(root).correlation("history").caused_by([]).once("c0").await.unwrap();
        space.settled(secs(60)).await.unwrap();
        space.stop().await.unwrap();

        // Another process: what it names as a cause it has from the store, correlation and depth included.
        let store = FaultyStore::new(Arc::clone(&disk), sim.env());
        let space = historian(&sim, &store).await.unwrap();
        let commits = store.commits();
        let again = space.broadcasting(commit("c0")).caused_by([]).once("c0").await.unwrap();
        assert_eq!((again.event_id(), store.commits()), (first.event_id(), commits));
        let child = space.broadcasting(commit("c1")).caused_by([&again]).once("c1").await.unwrap();
        let stored = space.journal().event(child.event_id()).await.unwrap().unwrap();
        assert_eq!((stored.causes.as_slice(), &*stored.correlation), (&[first.event_id()][..], "history"));
        assert_eq!(stored.depth, 1);
    });
}

#[test]
fn of_many_who_bring_in_the_same_name_at_once_one_is_taken() {
    let sim = Simulator::new(3);
    let disk: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
    sim.run(async {
        let store = FaultyStore::new(Arc::clone(&disk), sim.env());
        store.takes(secs(1));
        let space = historian(&sim, &store).await.unwrap();
        let receipts = Arc::new(Mutex::new(Vec::new()));
        for _ in 0..50 {
            let (space, receipts) = (space.clone(), Arc::clone(&receipts));
            sim.env().spawn(Box::pin(async move {
                let receipt = space.broadcasting(commit("c0")).caused_by([]).once("c0").await.unwrap();
                receipts.lock().unwrap().push(receipt.event_id());
            }));
        }
        // One that nobody waits for any longer goes on.
        let dropped = space.broadcasting(commit("c1")).caused_by([]).once("c1");
        let (waited, _) = (sim.env().sleep(secs(0)), ());
        tokio::select! { biased; _ = dropped => panic!("too early"), () = waited => {} }
        sim.env().sleep(secs(60)).await;
        space.settled(secs(60)).await.unwrap();
        let receipts = receipts.lock().unwrap().clone();
        assert_eq!(receipts.len(), 50);
        assert!(receipts.iter().all(|event| *event == receipts[0]), "{receipts:?}");
        assert_eq!(noted(&space, "first"), ["c0", "c1"]);
        let read = disk.read(Read::forward(Select::tag(happen::store::Tag::Type("commit".into())))).await;
        let begun = read.unwrap().records.iter().filter(|record| begins_flows(&record.bytes)).count();
        assert_eq!(begun, 2);
    });
}

fn begins_flows(bytes: &[u8]) -> bool {
    let record = happen_core::codec::WireRecord::decode(bytes, bytes.len()).unwrap();
    !record.accepted.is_empty()
}

#[test]
fn all_who_listen_take_it_or_nobody() {
    let sim = Simulator::new(1);
    let disk: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
    sim.run(async {
        let store = FaultyStore::new(Arc::clone(&disk), sim.env());
        let space = historian(&sim, &store).await.unwrap();
        let full = space.node("full").max_concurrent(1).queue_limit(0);
        let env = sim.env();
        full.on("commit", move |_: Event, _: Context| {
            let env = Arc::clone(&env);
            async move { env.sleep(secs(1)).await }
        });
        let first = space.broadcasting(commit("c0")).caused_by([]).once("c0").await.unwrap();
        let refused = space.broadcasting(commit("c1")).caused_by([&first]).once("c1").await.unwrap_err();
        assert_eq!(refused.code(), "busy");
        space.settled(secs(60)).await.unwrap();
        assert_eq!(noted(&space, "first"), ["c0"], "others took what was refused");
        space.broadcasting(commit("c1")).caused_by([&first]).once("c1").await.unwrap();
        space.settled(secs(60)).await.unwrap();
        assert_eq!(noted(&space, "second"), ["c0", "c1"]);
        assert!(space.dead_letters().is_empty(), "{:?}", space.dead_letters());
    });
}

#[test]
fn those_that_are_not_durable_hear_of_it_too() {
    let sim = Simulator::new(1);
    let disk: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
    sim.run(async {
        let space = historian(&sim, &FaultyStore::new(disk, sim.env())).await.unwrap();
        let heard = Arc::new(Mutex::new(0));
        let count = Arc::clone(&heard);
        space.node("ear").ephemeral().on("commit", move |_: &Event, _: &Context| *count.lock().unwrap() += 1);
        for _ in 0..2 {
            space.broadcasting(commit("c0")).caused_by([]).once("c0").await.unwrap();
        }
        space.settled(secs(60)).await.unwrap();
        assert_eq!(*heard.lock().unwrap(), 1);
    });
}

#[tokio::test]
async fn a_space_in_memory_keeps_no_names() -> happen::Result<()> {
    let space = started(Config::default()).await?;
    let refused = space.broadcasting(commit("root")).caused_by([]).once("root").await.unwrap_err();
    assert_eq!(refused.code(), "misuse");
    Ok(())
}
