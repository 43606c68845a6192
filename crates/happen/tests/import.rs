//! Histories that happened elsewhere: an imported event has exactly the causes its importer names, and
//! everything that follows from it here is caused by it.

use std::sync::{Arc, Mutex};

use happen::{Config, Context, Dynamic, Event, EventId, Imported, Space};
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
