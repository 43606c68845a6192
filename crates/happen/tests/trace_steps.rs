//! The steps of a flow in its trace: in the order they were taken, whichever threads they ran on.

use std::time::Duration;

use happen::{Context, Event, Space, Step, done, next};
use serde_json::json;

async fn first(_: Event, _: Context) -> happen::Result<Step> {
    next(second)
}

async fn second(_: Event, cx: Context) -> happen::Result<Step> {
    cx.sleep(Duration::from_millis(1)).await;
    next(third)
}

async fn third(_: Event, _: Context) -> happen::Result<Step> {
    done(true)
}

/// The one worker starts the space, so it has a memory of events before this thread has one. A flow sent from
/// here runs here until it first waits, and then on the worker; so its end is found in the older memory and
/// its start in the newer.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn steps_on_several_threads_stand_in_order() -> happen::Result<()> {
    let space = Space::memory();
    space.node("node").on("go", first).check()?;
    let on_worker = space.clone();
    let mut worker = tokio::task::JoinSet::new();
    worker.spawn(async move { on_worker.start().await });
    worker.join_next().await.unwrap().unwrap()?;

    let go = Event::new("go", json!(null));
    let reply = space.send("node", go).correlation("crossing").reply::<bool>().await?;
    let trace = space.trace(reply.event_id()).await?;
    assert_eq!(trace.lines()[0].handled[0].steps, ["second", "third"]);
    Ok(())
}
