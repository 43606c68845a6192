//! Streams and batches: items at the reader's pace, their end and their failures, listeners of a broadcast, many events
//! at once.
#![expect(clippy::unwrap_used, reason = "a failed test may end by any panic")]
#![expect(clippy::disallowed_methods, reason = "these tests want the threads of tokio")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen::{
    Batch, Config, Context, Error, ErrorKind, Event, EventId, Nodes, Result, Space, Step, done, limits, with,
};
use happen_testing::Simulator;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("job")]
struct Job(u64);

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Progress {
    percent: u8,
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn simulate<F: Future<Output = Result<()>>>(program: impl FnOnce(Space) -> F) {
    let sim = Simulator::new(31);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    sim.run(program(space)).unwrap();
}

/// Emits the numbers below its job, counting how far it came.
async fn count_up(emitted: Arc<AtomicU64>, job: Event<Job>, cx: Context) -> Result<Step> {
    for number in 0..job.0 {
        cx.emit(number).await?;
        emitted.fetch_add(1, Ordering::SeqCst);
    }
    done(format!("{} numbers", job.0))
}

#[test]
fn items_come_at_the_pace_of_the_reader_and_end_with_a_value() {
    simulate(|space| async move {
        let node = space.node("node");
        let emitted = Arc::new(AtomicU64::new(0));
        node.on("job", with(Arc::clone(&emitted), count_up)).check()?;
        space.start().await?;
        let mut items = space.send(&node, Job(100)).stream::<u64>();
        space.env().sleep(ms(10)).await;
        assert_eq!(emitted.load(Ordering::SeqCst), limits::STREAM_ITEMS_MAX as u64, "nobody read yet");
        for number in 0..40 {
            assert_eq!(items.next().await.unwrap()?, number);
        }
        space.env().sleep(ms(10)).await;
        assert_eq!(emitted.load(Ordering::SeqCst), 40 + limits::STREAM_ITEMS_MAX as u64);
        assert_eq!(items.finish::<String>().await?, "100 numbers");
        assert_eq!(emitted.load(Ordering::SeqCst), 100);
        assert_eq!(space.send(&node, Job(3)).stream::<u64>().collect().await?, [0, 1, 2]);
        // Without a reader the items are dropped and the flow ends as ever; a plain handler is a stream without items.
        assert_eq!(*space.send(&node, Job(100)).reply::<String>().await?, "100 numbers");
        node.on("plain", |_: &Event, _: &Context| 7u64).check()?;
        let mut plain = space.send(&node, Event::new("plain", json!(null))).stream::<u64>();
        assert!(plain.next().await.is_none());
        assert_eq!(plain.finish::<u64>().await?, 7);
        Ok(())
    });
}

#[test]
fn progress_and_chunks_are_items() {
    simulate(|space| async move {
        let node = space.node("node");
        node.on("job", async |job: Event<Job>, cx: Context| -> Result<Step> {
            for part in 1..=4u8 {
                cx.sleep(ms(job.0)).await;
                cx.emit(Progress { percent: part * 25 }).await?;
            }
            done("all".to_owned())
        })
        .check()?;
        space.start().await?;
        let mut items = space.send(&node, Job(10)).stream::<Progress>();
        let mut chunks = Vec::new();
        while let Some(chunk) = items.next_chunk(3).await {
            chunks.push(chunk?.iter().map(|progress| progress.percent).collect::<Vec<_>>());
        }
        assert_eq!(chunks, [vec![25, 50, 75], vec![100]]);
        assert_eq!(items.finish::<String>().await?, "all");
        let mut other = space.send(&node, Job(1)).stream::<u64>();
        let mut error = other.next().await.unwrap().unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::OtherReply { found, .. } if found == "progress"),
            "{error:?}"
        );
        assert_eq!(error.take_value().unwrap().take::<Progress>()?.percent, 25, "readable, not lost");
        Ok(())
    });
}

#[test]
fn a_failure_in_the_middle_is_one_item_after_those_before_it() {
    simulate(|space| async move {
        let node = space.node("node");
        node.on("job", async |job: Event<Job>, cx: Context| -> Result<()> {
            for number in 0..3u64 {
                cx.emit(number).await?;
            }
            match job.0 {
                0 => panic!("halfway"),
                _ => Err(Error::msg("halfway")),
            }
        })
        .check()?;
        space.start().await?;
        for (job, code) in [(0, "panicked"), (1, "failed")] {
            let mut items = space.send(&node, Job(job)).stream::<u64>();
            for number in 0..3 {
                assert_eq!(items.next().await.unwrap()?, number);
            }
            let error = items.next().await.unwrap().unwrap_err();
            assert_eq!((error.code(), error.node_id()), (code, Some("node")));
            assert!(error.event_id().is_some());
            assert!(items.next().await.is_none(), "told once");
            assert_eq!(items.finish::<()>().await.unwrap_err().code(), code, "and by the end");
            let mut items = space.send(&node, Job(job)).stream::<u64>();
            assert_eq!(items.next_chunk(2).await.unwrap()?, [0, 1]);
            assert_eq!(items.next_chunk(2).await.unwrap()?, [2]);
            assert_eq!(items.next_chunk(2).await.unwrap().unwrap_err().code(), code);
            assert!(items.next_chunk(2).await.is_none());
            assert_eq!(space.send(&node, Job(job)).stream::<u64>().collect().await.unwrap_err().code(), code);
        }
        let mut nowhere = space.send("nobody", Job(1)).stream::<u64>();
        let error = nowhere.next().await.unwrap().unwrap_err();
        assert!(error.code() == "no-such-node" && error.event_id().is_some());
        assert!(nowhere.next().await.is_none());
        Ok(())
    });
}

#[test]
fn when_the_reader_leaves_the_handler_cleans_up() {
    simulate(|space| async move {
        let node = space.node("node");
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        node.on(
            "job",
            with(Arc::clone(&told), async |told: Arc<Mutex<Vec<String>>>, _: Event<Job>, cx: Context| {
                let mut number = 0u64;
                let error = loop {
                    match cx.emit(number).await {
                        Ok(()) => number += 1,
                        Err(error) => break error,
                    }
                };
                told.lock().unwrap().push(format!("{} after {number}", error.code()));
            }),
        )
        .check()?;
        node.on("idle", async |_: Event, _: Context| std::future::pending::<()>().await).check()?;
        space.start().await?;
        let mut items = space.send(&node, Job(1)).stream::<u64>();
        assert_eq!(items.next().await.unwrap()?, 0);
        space.env().sleep(ms(1)).await;
        drop(items);
        space.env().sleep(ms(1)).await;
        assert_eq!(*told.lock().unwrap(), [format!("closed after {}", 1 + limits::STREAM_ITEMS_MAX)]);
        assert_eq!(node.flows(), []);
        // One that waits for something else is cancelled.
        let idle = space.send(&node, Event::new("idle", json!(null))).stream::<u64>();
        space.env().sleep(ms(1)).await;
        assert_eq!(node.flows().len(), 1);
        drop(idle);
        space.env().sleep(ms(1)).await;
        assert_eq!(node.flows(), []);
        Ok(())
    });
}

#[test]
fn reading_can_be_given_up_and_taken_up_again() {
    simulate(|space| async move {
        let node = space.node("node");
        node.on("job", async |job: Event<Job>, cx: Context| -> Result<Step> {
            for number in 0..job.0 {
                cx.sleep(ms(10)).await;
                cx.emit(number).await?;
            }
            cx.sleep(ms(10)).await;
            done(job.0)
        })
        .check()?;
        space.start().await?;
        let mut items = space.send(&node, Job(5)).stream::<u64>();
        let mut seen = Vec::new();
        let mut given_up = 0;
        loop {
            let mut late = space.env().sleep(ms(3));
            let read = {
                let mut next = std::pin::pin!(items.next());
                std::future::poll_fn(|task| {
                    if let std::task::Poll::Ready(item) = next.as_mut().poll(task) {
                        return std::task::Poll::Ready(Some(item));
                    }
                    late.as_mut().poll(task).map(|()| None)
                })
                .await
            };
            match read {
                None => given_up += 1,
                Some(None) => break,
                Some(Some(item)) => seen.push(item?),
            }
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        assert!(given_up >= 10, "{given_up}");
        assert_eq!(items.finish::<u64>().await?, 5);
        Ok(())
    });
}

#[test]
fn each_listener_of_a_broadcast_stream_has_its_own_pace() {
    simulate(|space| async move {
        let (fast, slow) = (space.node("fast"), space.node("slow"));
        let told: Arc<Mutex<Vec<(String, u64, u64)>>> = Arc::default();
        [&fast, &slow]
            .on(
                "job",
                with(
                    Arc::clone(&told),
                    async |told: Arc<Mutex<Vec<(String, u64, u64)>>>,
                           _: Event<Job>,
                           cx: Context|
                           -> Result<()> {
                        let mut items = cx.items::<u64>()?;
                        assert_eq!(cx.items::<u64>().unwrap_err().code(), "misuse", "taken once");
                        let (mut read, mut missed) = (0, 0);
                        if cx.node_id() == "slow" {
                            cx.sleep(Duration::from_secs(1)).await;
                        }
                        while let Some(item) = items.next().await {
                            match item {
                                Ok(number) => {
                                    assert_eq!(number, read + missed, "in order");
                                    read += 1;
                                }
                                Err(error) => match error.kind() {
                                    ErrorKind::Lagged { items } => missed += *items,
                                    kind => panic!("{kind:?}"),
                                },
                            }
                        }
                        told.lock().unwrap().push((cx.node_id().to_owned(), read, missed));
                        Ok(())
                    },
                ),
            )
            .check()?;
        space.start().await?;
        let outlet = space.broadcasting(Job(1)).stream::<u64>()?;
        let all = limits::STREAM_BROADCAST_ITEMS_MAX as u64 + 10;
        for number in 0..all {
            assert_eq!(outlet.emit(number)?, 2);
            space.env().sleep(ms(1)).await;
        }
        assert_eq!(outlet.listeners(), 2);
        let event: EventId = outlet.event_id();
        drop(outlet);
        space.settled(Duration::from_secs(10)).await?;
        assert_eq!(*told.lock().unwrap(), [("fast".to_owned(), all, 0), ("slow".to_owned(), all - 10, 10)]);
        assert_eq!(space.trace(event).await?.lines().len(), 1);
        // Without listeners an item has nobody to go to.
        let lonely = space.broadcasting(Event::new("nobody", json!(null))).stream::<u64>()?;
        assert_eq!(lonely.emit(1).unwrap_err().code(), "closed");
        let error = fast.send(&fast, Job(1)).reply::<()>().await.unwrap_err();
        assert_eq!(error.code(), "misuse", "an event without a stream has no items");
        Ok(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_for_a_processor_holds_up_no_event() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    let release = Arc::new((Mutex::new(false), std::sync::Condvar::new()));
    node.on(
        "job",
        with(
            Arc::clone(&release),
            async |release: Arc<(Mutex<bool>, std::sync::Condvar)>,
                   job: Event<Job>,
                   cx: Context|
                   -> Result<Step> {
                let number = job.0;
                let result = cx.offload(move || {
                    let (open, changed) = &*release;
                    drop(changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
                    assert!(number != 13, "unlucky");
                    number * 2
                });
                done(result.await?)
            },
        ),
    )
    .check()?;
    node.on(
        "open",
        with(
            Arc::clone(&release),
            |release: Arc<(Mutex<bool>, std::sync::Condvar)>, _: &Event, _: &Context| {
                *release.0.lock().unwrap() = true;
                release.1.notify_all();
            },
        ),
    )
    .check()?;
    space.start().await?;
    let asked: Vec<_> = [1, 2, 13]
        .map(|job| {
            let space = space.clone();
            tokio::spawn(async move { space.send("node", Job(job)).reply::<u64>().await })
        })
        .into();
    // All three block a thread of their own; the node still takes the event that lets them go.
    while node.flows().len() < 3 {
        tokio::task::yield_now().await;
    }
    space.send(&node, Event::new("open", json!(null))).reply::<()>().await?;
    let mut results = Vec::new();
    for asked in asked {
        results.push(
            asked.await.unwrap().map_or_else(|error| error.code().to_owned(), |reply| reply.to_string()),
        );
    }
    assert_eq!(results, ["2", "4", "panicked"]);
    Ok(())
}

#[tokio::test]
async fn a_batch_handler_gets_all_and_its_effects_have_all_causes() -> Result<()> {
    let space = Space::memory();
    let (all, single) = (space.node("all"), space.node("single"));
    type Sum = (u64, Vec<EventId>);
    let sums: Arc<Mutex<Vec<Sum>>> = Arc::default();
    all.on("job", async |batch: Batch<Job>, cx: Context| -> Result<Step> {
        assert!(batch.iter().all(|event| event.envelope().at_unix_ms <= batch.received_at_unix_ms()));
        cx.broadcast(Event::new("sum", json!(batch.payloads().map(|job| job.0).sum::<u64>())))?;
        done(batch.iter().map(|event| event.id().to_string()).collect::<Vec<_>>().join(" "))
    })
    .check()?;
    single.on("job", |job: &Event<Job>, _: &Context| job.0).check()?;
    let heard = Arc::clone(&sums);
    space
        .on("sum", move |event: &Event, _: &Context| {
            heard.lock().unwrap().push((event.json().unwrap().as_u64().unwrap(), event.causes().collect()));
        })
        .check()?;
    space.start().await?;
    let ids = space.send(&all, [Job(1), Job(2), Job(3)]).correlation("batch").reply::<String>().await?;
    let ids: Vec<EventId> = ids.split(' ').map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids.len(), 3);
    assert_eq!(*sums.lock().unwrap(), [(6, ids.clone())]);
    for id in &ids {
        assert!(
            space.trace(*id).await?.lines().iter().any(|line| line.event_type == "sum"),
            "each leads to the sum"
        );
    }
    // One event is a batch of one; a handler of single events gets them one by one, and answers with the first.
    assert_eq!(space.send(&all, Job(9)).reply::<String>().await?.split(' ').count(), 1);
    assert_eq!(*space.send(&single, vec![Job(4), Job(5)]).reply::<u64>().await?, 4);
    assert_eq!(space.send(&all, Vec::<Job>::new()).await.unwrap_err().code(), "misuse");
    let mixed = vec![Event::new("job", json!(1)), Event::new("other", json!(2))];
    assert_eq!(space.send(&all, mixed).await.unwrap_err().code(), "misuse");
    Ok(())
}

#[tokio::test]
async fn the_error_of_a_batch_is_caused_by_all_its_events() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    node.on("job", |_: &Batch<Job>, _: &Context| -> Result<()> { Err(Error::msg("no")) }).check()?;
    let causes = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&causes);
    space
        .on("job.error", move |event: &Event<happen::Failure>, _: &Context| {
            count.fetch_add(event.causes().count() as u64, Ordering::SeqCst);
        })
        .check()?;
    space.start().await?;
    space.send(&node, [Job(1), Job(2), Job(3)]).reply::<()>().await.unwrap_err();
    assert_eq!(causes.load(Ordering::SeqCst), 3);
    Ok(())
}

#[tokio::test]
async fn a_batch_fans_out_to_each_node_in_its_own_way() -> Result<()> {
    let space = Space::memory();
    let nodes = ["all", "single", "fails"].map(|id| space.node(id));
    nodes[0].on("job", |batch: &Batch<Job>, _: &Context| batch.len() as u64).check()?;
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    nodes[1]
        .on("job", move |job: &Event<Job>, _: &Context| {
            count.fetch_add(job.0, Ordering::SeqCst);
            job.0
        })
        .check()?;
    nodes[2]
        .on("job", |job: &Event<Job>, _: &Context| if job.0 == 2 { Err(Error::msg("two")) } else { Ok(()) })
        .check()?;
    space.start().await?;
    let replies = nodes.send([Job(1), Job(2), Job(3)]).replies::<u64>().await;
    assert_eq!(**replies["all"].as_ref().unwrap(), 3);
    assert_eq!((**replies["single"].as_ref().unwrap(), seen.load(Ordering::SeqCst)), (1, 6));
    assert_eq!(replies["fails"].as_ref().unwrap_err().to_string(), "two");
    Ok(())
}

#[test]
fn a_large_batch_goes_in_chunks_whose_progress_can_be_told() {
    simulate(|space| async move {
        let node = space.node("node");
        let busy = Arc::new(AtomicBool::new(false));
        node.on(
            "job",
            with(
                Arc::clone(&busy),
                async |busy: Arc<AtomicBool>, batch: Batch<Job>, cx: Context| -> Result<Step> {
                    assert!(!busy.swap(true, Ordering::SeqCst), "one chunk at a time");
                    cx.sleep(ms(10)).await;
                    busy.store(false, Ordering::SeqCst);
                    if batch.payloads().any(|job| job.0 == 150) {
                        return Err(Error::msg("cannot do 150"));
                    }
                    done(batch.payloads().map(|job| job.0).sum::<u64>())
                },
            ),
        )
        .check()?;
        space.start().await?;
        let jobs: Vec<_> = (0..250).map(Job).collect();
        let mut chunks = space.send(&node, jobs).correlation("bulk").chunks::<u64>(100);
        space.env().sleep(ms(50)).await;
        assert_eq!(
            space.trace("bulk").await.unwrap_err().code(),
            "misuse",
            "nothing left before it was asked for"
        );
        let mut seen = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let (events, percent) = (chunk.events.clone(), chunk.percent());
            let reply = chunk.reply.map_or_else(|error| error.to_string(), |sum| sum.to_string());
            seen.push((events, percent, reply));
        }
        assert_eq!(
            seen,
            [
                (0..100, 40, "4950".to_owned()),
                (100..200, 80, "cannot do 150".to_owned()),
                (200..250, 100, (200..250u64).sum::<u64>().to_string())
            ]
        );
        assert!(chunks.next().await.is_none());
        // The limits of a chunk: one event, all, more than all; and one event that is no batch.
        for (len, expected) in [(1, 3), (2, 2), (3, 1), (4, 1), (0, 3)] {
            let mut chunks = space.send(&node, [Job(1), Job(2), Job(3)]).chunks::<u64>(len);
            let mut count = 0;
            while let Some(chunk) = chunks.next().await {
                chunk.reply?;
                count += 1;
            }
            assert_eq!(count, expected, "{len}");
        }
        assert_eq!(*space.send(&node, Job(7)).chunks::<u64>(9).next().await.unwrap().reply?, 7);
        assert!(space.send(&node, Vec::<Job>::new()).chunks::<u64>(9).next().await.is_none());
        Ok(())
    });
}
