//! How a node runs what it gets: how many at once, in which order, what waits, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use happen::config::NodeOverrides;
use happen::{
    Answer, Config, Context, Error, ErrorKind, Event, Node, Overflow, Payload, QueueOrder, Reply, Result,
    Space, Step, done, millis, next, secs, with,
};
use happen_core::env::Env;
use happen_testing::Simulator;
use serde_json::json;

fn run<F, Fut, R>(seed: u64, test: F) -> R
where
    F: FnOnce(Space) -> Fut,
    Fut: Future<Output = R>,
{
    let sim = Simulator::new(seed);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    sim.run(test(space))
}

/// How many are inside at once, and how many were at most.
#[derive(Clone, Default)]
struct Gauge(Arc<(AtomicU32, AtomicU32)>);

struct Inside(Gauge);

impl Gauge {
    fn enter(&self) -> Inside {
        let inside = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.fetch_max(inside, Ordering::SeqCst);
        Inside(self.clone())
    }

    fn now(&self) -> u32 {
        self.0.0.load(Ordering::SeqCst)
    }

    fn most(&self) -> u32 {
        self.0.1.load(Ordering::SeqCst)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn work(gauge: Gauge, _: Event<u32>, cx: Context) -> u32 {
    let _inside = gauge.enter();
    cx.sleep(millis(300)).await;
    1
}

type Answered<R> = tokio::sync::oneshot::Receiver<Result<R>>;

/// Asks beside the caller.
fn ask<T: Payload, R: Answer>(space: &Space, node: &Node, event: T) -> Answered<R> {
    ask_with(space.send(node, event))
}

fn ask_with<T: Payload, R: Answer>(sending: happen::Sending<'_, T>) -> Answered<R> {
    let (to, from) = tokio::sync::oneshot::channel();
    sending.reply_with::<R>(move |reply| {
        let _gone = to.send(reply.map(Reply::into_inner));
    });
    from
}

type Log<T> = Arc<Mutex<Vec<T>>>;

#[test]
fn one_who_waits_holds_up_nobody() {
    run(1, async |space| {
        let node = space.node("node");
        let gauge = Gauge::default();
        node.on("u32", with(gauge.clone(), work)).check().unwrap();
        space.start().await.unwrap();
        let asked: Vec<Answered<u32>> = (0..64u32).map(|n| ask(&space, &node, n)).collect();
        assert_eq!(gauge.now(), 64);
        for answer in asked {
            assert_eq!(answer.await.unwrap().unwrap(), 1);
        }
        assert_eq!(space.env().monotonic(), millis(300));
    });
}

#[test]
fn so_many_run_at_once_and_the_rest_wait() {
    for limit in [1, 2, 10, 100] {
        for asked in [limit - 1, limit, limit + 1, 3 * limit] {
            run(u64::from(limit + asked), async |space| {
                let node = space.node("node").max_concurrent(limit);
                let gauge = Gauge::default();
                node.on("u32", with(gauge.clone(), work)).check().unwrap();
                space.start().await.unwrap();
                let answers: Vec<Answered<u32>> = (0..asked).map(|n| ask(&space, &node, n)).collect();
                assert_eq!(gauge.now(), asked.min(limit));
                assert_eq!(node.waiting(), asked.saturating_sub(limit) as usize);
                for answer in answers {
                    answer.await.unwrap().unwrap();
                }
                assert_eq!(gauge.most(), asked.min(limit));
                assert_eq!(space.env().monotonic(), millis(300) * asked.div_ceil(limit));
                assert_eq!((gauge.now(), node.waiting()), (0, 0));
            });
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "these tests are about real threads")]
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn threads_never_pass_the_limit() {
    for limit in [1, 2, 10, 100] {
        let space = Space::memory();
        let node = space.node("node").max_concurrent(limit);
        let gauge = Gauge::default();
        let handler = async |gauge: Gauge, _: Event<u32>, _: Context| {
            let _inside = gauge.enter();
            tokio::task::yield_now().await;
            std::thread::yield_now();
            tokio::task::yield_now().await;
        };
        node.on("u32", with(gauge.clone(), handler)).check().unwrap();
        space.start().await.unwrap();
        let senders: Vec<_> = (0..200)
            .map(|_| {
                let (space, node) = (space.clone(), node.clone());
                tokio::spawn(async move {
                    for n in 0..20u32 {
                        space.send(&node, n).reply::<()>().await.unwrap();
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.await.unwrap();
        }
        assert!(gauge.most() <= limit, "{} at once, and the limit is {limit}", gauge.most());
        assert_eq!((gauge.now(), node.waiting()), (0, 0));
    }
}

/// One flow is held on its sender's thread before its first wait while others come from another thread.
#[expect(clippy::disallowed_methods, reason = "these tests are about real threads")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_has_not_waited_yet_counts_too() {
    let space = Space::memory();
    let node = space.node("node").max_concurrent(100);
    let gauge = Gauge::default();
    let held = Arc::new(AtomicBool::new(true));
    let handler = async |(gauge, held): (Gauge, Arc<AtomicBool>), n: Event<u32>, _: Context| {
        let _inside = gauge.enter();
        while *n == 0 && held.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        if *n != 0 {
            std::future::pending::<()>().await;
        }
    };
    node.on("u32", with((gauge.clone(), Arc::clone(&held)), handler)).check().unwrap();
    space.start().await.unwrap();
    let first = {
        let (space, node) = (space.clone(), node.clone());
        tokio::spawn(async move { space.send(&node, 0u32).reply::<()>().await })
    };
    while gauge.now() == 0 {
        tokio::task::yield_now().await;
    }
    for n in 1..=150u32 {
        space.send(&node, n).await.unwrap();
    }
    let most = gauge.most();
    held.store(false, Ordering::SeqCst);
    first.await.unwrap().unwrap();
    assert_eq!(most, 100);
}

#[test]
fn a_full_queue_refuses_or_drops_as_it_is_told() {
    for limit in [0, 1, 5] {
        for overflow in [Overflow::Reject, Overflow::DropOldest, Overflow::DropNewest] {
            run(limit as u64, async |space| {
                let node = space.node("node").serial().queue_limit(limit).overflow(overflow);
                node.on("u32", async |n: Event<u32>, cx: Context| {
                    cx.sleep(millis(10)).await;
                    *n
                })
                .check()
                .unwrap();
                space.start().await.unwrap();
                let limit = limit as u32;
                // The first one runs, `limit` wait, and one more finds the queue full.
                let answers: Vec<Answered<u32>> = (0..limit + 2).map(|n| ask(&space, &node, n)).collect();
                assert_eq!(node.waiting(), limit as usize);
                let mut codes = BTreeMap::new();
                for (n, answer) in answers.into_iter().enumerate() {
                    match answer.await.unwrap() {
                        Ok(value) => assert_eq!(value as usize, n),
                        Err(error) => {
                            assert_eq!(error.node_id(), Some("node"));
                            assert!(error.event_id().is_some() && error.is_retryable());
                            codes.insert(n as u32, error.code());
                        }
                    }
                }
                let dropped = if overflow == Overflow::DropOldest && limit > 0 { 1 } else { limit + 1 };
                assert_eq!(codes, BTreeMap::from([(dropped, "busy")]), "{limit} {overflow:?}");
            });
        }
    }
}

#[test]
fn what_is_dropped_without_an_asker_is_a_dead_letter() {
    for (overflow, refused, dead) in [
        (Overflow::Reject, true, vec![]),
        (Overflow::DropOldest, false, vec![1]),
        (Overflow::DropNewest, false, vec![3]),
    ] {
        run(1, async |space| {
            let node = space.node("node").serial().queue_limit(2).overflow(overflow);
            node.on("u32", async |_: Event<u32>, cx: Context| cx.sleep(millis(10)).await).check().unwrap();
            space.start().await.unwrap();
            let mut sent = Vec::new();
            for n in 0..4u32 {
                match space.send(&node, n).await {
                    Ok(taken) => sent.push(taken.event_id()),
                    Err(error) => assert!(refused && n == 3 && error.code() == "busy"),
                }
            }
            let letters = space.dead_letters();
            let ids: Vec<_> = letters.iter().map(happen::DeadLetter::event_id).collect();
            assert_eq!(ids, dead.iter().map(|&n: &usize| sent[n]).collect::<Vec<_>>());
            assert!(letters.iter().all(|letter| letter.code == "busy" && letter.node == "node"));
            space.settled(secs(1)).await.unwrap();
            if let Some(&id) = ids.first() {
                space.redrive(id).await.unwrap();
                assert!(space.dead_letters().is_empty());
            }
        });
    }
}

/// The order in which a serial node starts what waits.
fn started(order: QueueOrder, overflow: Overflow, limit: usize, events: &[(u32, i64)]) -> Vec<u32> {
    run(1, async |space| {
        let node = space.node("node").serial().queue_order(order).overflow(overflow).queue_limit(limit);
        let log: Log<u32> = Arc::default();
        let handler = async |log: Log<u32>, n: Event<u32>, cx: Context| {
            log.lock().unwrap().push(*n);
            cx.sleep(millis(1)).await;
        };
        node.on("u32", with(Arc::clone(&log), handler)).check().unwrap();
        space.start().await.unwrap();
        space.send(&node, 0u32).await.unwrap();
        for &(n, priority) in events {
            space.send(&node, n).priority(priority).await.unwrap();
        }
        space.settled(secs(10)).await.unwrap();
        let log = log.lock().unwrap();
        assert_eq!(log[0], 0);
        log[1..].to_vec()
    })
}

#[test]
fn what_waits_starts_in_the_order_that_is_set() {
    let events = [(1, 0), (2, 5), (3, -5), (4, 5), (5, 0)];
    let all = |order| started(order, Overflow::Reject, 100, &events);
    assert_eq!(all(QueueOrder::Fifo), [1, 2, 3, 4, 5]);
    assert_eq!(all(QueueOrder::Lifo), [5, 4, 3, 2, 1]);
    assert_eq!(all(QueueOrder::Priority), [2, 4, 1, 5, 3]);
}

#[test]
fn the_oldest_is_dropped_and_by_priority_the_oldest_of_the_lowest() {
    let events = [(1, 0), (2, 0), (3, 9), (4, 0), (5, -1)];
    let some = |order| started(order, Overflow::DropOldest, 2, &events);
    assert_eq!(some(QueueOrder::Fifo), [4, 5]);
    assert_eq!(some(QueueOrder::Lifo), [5, 4]);
    // 3 pushes 1 out, 4 pushes 2 out, and 5 is the lowest itself.
    assert_eq!(some(QueueOrder::Priority), [3, 4]);
}

#[test]
fn a_filling_queue_is_told_once_at_four_fifths() {
    run(1, async |space| {
        let told: Log<(u64, u64)> = Arc::default();
        let heard = Arc::clone(&told);
        let hear = move |event: &Event, _: &Context| {
            assert_eq!(event.get("node_id"), Some(&json!("node")));
            let number = |field: &str| event.get(field).unwrap().as_u64().unwrap();
            heard.lock().unwrap().push((number("waiting"), number("queue_limit")));
        };
        space.on("node.slow", hear).check().unwrap();
        let node = space.node("node").serial().queue_limit(10);
        node.on("u32", async |_: Event<u32>, cx: Context| cx.sleep(millis(1)).await).check().unwrap();
        space.start().await.unwrap();
        let fill = async |count: u32| {
            for n in 0..count {
                space.send(&node, n).await.unwrap();
            }
        };
        fill(8).await;
        assert_eq!(*told.lock().unwrap(), [], "one runs and seven wait");
        fill(1).await;
        assert_eq!(*told.lock().unwrap(), [(8, 10)]);
        fill(2).await;
        assert_eq!(told.lock().unwrap().len(), 1, "it is told once");
        space.settled(secs(1)).await.unwrap();
        fill(11).await;
        assert_eq!(told.lock().unwrap().len(), 2, "and again after it was relieved");
        space.settled(secs(1)).await.unwrap();
    });
}

#[test]
fn options_come_from_the_configuration_by_id() {
    let sim = Simulator::new(1);
    let mut config = Config::default();
    let few = NodeOverrides { max_concurrent: Some(2), queue_limit: Some(1), ..NodeOverrides::default() };
    config.nodes.insert("api-*".to_owned(), few);
    let one = NodeOverrides { max_concurrent: Some(1), ..NodeOverrides::default() };
    config.nodes.insert("api-admin-*".to_owned(), one);
    let space = Space::in_env(config, sim.env()).unwrap();
    sim.run(async {
        for (id, at_once, taken) in [("api-users", 2, 3), ("api-admin-x", 1, 2), ("other", 9, 9)] {
            let node = space.node(id);
            let gauge = Gauge::default();
            node.on("u32", with(gauge.clone(), work)).check().unwrap();
            space.start().await.unwrap();
            let mut ok = 0;
            for n in 0..9u32 {
                ok += u32::from(space.send(&node, n).await.is_ok());
            }
            assert_eq!((gauge.now(), ok), (at_once, taken), "{id}");
            space.settled(secs(10)).await.unwrap();
        }
    });
}

#[test]
fn events_of_one_sender_start_in_their_order_through_inline_and_queue() {
    for limit in [1, 2, 7, 100] {
        run(u64::from(limit), async |space| {
            let node = space.node("node").max_concurrent(limit);
            let log: Log<u32> = Arc::default();
            let handler = async |log: Log<u32>, n: Event<u32>, cx: Context| {
                log.lock().unwrap().push(*n);
                // Some are ready at once, the others end in another order than they began.
                if !n.is_multiple_of(3) {
                    cx.sleep(millis(u64::from(*n * 7 % 11))).await;
                }
            };
            node.on("u32", with(Arc::clone(&log), handler)).check().unwrap();
            let sender = space.node("sender");
            sender
                .on("go", async |_: Event, cx: Context| -> Result<()> {
                    for n in 0..1_000u32 {
                        cx.send("node", n).await?;
                        if n % 97 == 0 {
                            cx.sleep(millis(2)).await;
                        }
                    }
                    Ok(())
                })
                .check()
                .unwrap();
            space.start().await.unwrap();
            space.send(&sender, Event::new("go", json!({}))).reply::<()>().await.unwrap();
            space.settled(secs(60)).await.unwrap();
            assert_eq!(*log.lock().unwrap(), (0..1_000).collect::<Vec<_>>());
        });
    }
}

#[test]
fn keys_keep_their_own_order_beside_each_other() {
    run(3, async |space| {
        let gauges: Arc<[Gauge; 4]> = Arc::default();
        let all = Gauge::default();
        let log: Log<u32> = Arc::default();
        type State = (Arc<[Gauge; 4]>, Gauge, Log<u32>);
        let handler = async |(gauges, all, log): State, n: Event<u32>, cx: Context| {
            let _inside = (gauges[(*n % 4) as usize].enter(), all.enter());
            log.lock().unwrap().push(*n);
            cx.sleep(millis(10)).await;
        };
        let node = space.node("node").serial_by(|n: &u32| n % 4);
        node.on("u32", with((Arc::clone(&gauges), all.clone(), Arc::clone(&log)), handler)).check().unwrap();
        space.start().await.unwrap();
        for n in 0..100u32 {
            space.send(&node, n).await.unwrap();
        }
        space.settled(secs(10)).await.unwrap();
        assert!(gauges.iter().all(|gauge| gauge.most() == 1));
        assert_eq!(all.most(), 4);
        let log = log.lock().unwrap();
        for key in 0..4 {
            let own: Vec<_> = log.iter().copied().filter(|n| n % 4 == key).collect();
            assert_eq!(own, (0..100).filter(|n| n % 4 == key).collect::<Vec<_>>());
        }
        assert!(space.env().monotonic() < millis(260), "25 turns of 10 ms each");
    });
}

#[test]
fn the_keys_of_a_node_have_one_limit_together() {
    for (limit, overflow) in [(3, Overflow::Reject), (4, Overflow::Reject), (3, Overflow::DropOldest)] {
        run(1, async |space| {
            let slow = async |_: Event<u32>, cx: Context| cx.sleep(millis(10)).await;
            let node = space.node("node").serial_by(|n: &u32| n % 10).queue_limit(limit).overflow(overflow);
            node.on("u32", slow).check().unwrap();
            space.start().await.unwrap();
            // One of each key runs, and the others wait behind it: three of three keys.
            for n in [1u32, 2, 3, 11, 12, 13] {
                space.send(&node, n).await.unwrap();
            }
            assert_eq!(node.waiting(), 3);
            let fourth = space.send(&node, 21u32).await.map_err(|error| error.code());
            let (told, waiting, letters) = match (limit, overflow) {
                (4, _) => (None, 4, 0),
                (_, Overflow::Reject) => (Some("busy"), 3, 0),
                _ => (None, 3, 1),
            };
            assert_eq!((fourth.err(), node.waiting(), space.dead_letters().len()), (told, waiting, letters));
            space.settled(secs(10)).await.unwrap();
            // All places are free again.
            for n in [1u32, 2, 3, 11, 12, 13] {
                space.send(&node, n).await.unwrap();
            }
            space.settled(secs(10)).await.unwrap();
        });
    }
}

#[test]
fn a_cascade_of_ten_thousand_keeps_its_order_and_needs_no_stack() {
    const DEEP: u32 = 10_000;
    run(1, async |space| {
        let logs: [Log<u32>; 3] = Default::default();
        let plain = |log: Log<u32>, n: &Event<u32>, cx: &Context| {
            log.lock().unwrap().push(**n);
            if **n < DEEP {
                cx.send("plain", **n + 1).forget();
            }
        };
        let waiting = async |log: Log<u32>, n: Event<u32>, cx: Context| -> Result<()> {
            log.lock().unwrap().push(*n);
            if *n < DEEP {
                cx.send("async", *n + 1).await?;
            }
            Ok(())
        };
        space.node("plain").on("u32", with(Arc::clone(&logs[0]), plain)).check().unwrap();
        space.node("async").on("u32", with(Arc::clone(&logs[1]), waiting)).check().unwrap();
        let broadcasts = |log: Log<u32>, n: &Event<u64>, cx: &Context| -> Result<()> {
            log.lock().unwrap().push(**n as u32);
            // Two at each level: breadth first, for what was put off first comes first.
            if **n < u64::from(DEEP) {
                cx.broadcast(**n + 1)?;
            }
            Ok(())
        };
        space.node("broadcasts").on("u64", with(Arc::clone(&logs[2]), broadcasts)).check().unwrap();
        space.start().await.unwrap();
        space.send("plain", 1u32).await.unwrap();
        space.send("async", 1u32).await.unwrap();
        space.broadcast(1u64).unwrap();
        space.settled(secs(10)).await.unwrap();
        for log in logs {
            assert_eq!(*log.lock().unwrap(), (1..=DEEP).collect::<Vec<_>>());
        }
        assert!(space.dead_letters().is_empty());
    });
}

#[test]
fn asking_down_ten_thousand_levels_needs_no_stack() {
    run(1, async |space| {
        let node = space.node("node");
        node.on("u32", async |n: Event<u32>, cx: Context| -> Result<u32> {
            if *n == 0 {
                return Ok(0);
            }
            Ok(*cx.send("node", *n - 1).reply::<u32>().await? + 1)
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        assert_eq!(*space.send(&node, 10_000u32).reply::<u32>().await.unwrap(), 10_000);
    });
}

#[test]
fn one_who_waits_for_a_reply_lets_others_in() {
    async fn asks_twice(gauge: Gauge, _: Event<u32>, cx: Context) -> Result<u32> {
        let _inside = gauge.enter();
        cx.sleep(millis(100)).await;
        let first = cx.send("helper", true).reply::<u32>().await?.into_inner();
        let second = cx.send("helper", true).reply::<u32>().await?.into_inner();
        Ok(first + second)
    }
    async fn by_handle((gauge, helper): (Gauge, Node), _: Event<u64>, cx: Context) -> Result<u32> {
        let _inside = gauge.enter();
        let reply = cx.node().send(&helper, true).reply::<u32>().await?;
        Ok(*reply)
    }
    run(1, async |space| {
        let helper = space.node("helper").max_concurrent(1_000);
        helper
            .on("bool", async |_: Event<bool>, cx: Context| {
                cx.sleep(millis(100)).await;
                1u32
            })
            .check()
            .unwrap();
        let node = space.node("node").max_concurrent(2);
        let gauge = Gauge::default();
        node.on("u32", with(gauge.clone(), asks_twice)).check().unwrap();
        node.on("u64", with((gauge.clone(), helper.clone()), by_handle)).check().unwrap();
        space.start().await.unwrap();
        let now = || space.env().monotonic();
        let answers: Vec<Answered<u32>> = (0..20u32).map(|n| ask(&space, &node, n)).collect();
        for answer in answers {
            assert_eq!(answer.await.unwrap().unwrap(), 2);
        }
        // Two at a time sleep; as soon as they ask, the next two come in: 10 times 100 ms, and the last two ask twice.
        assert_eq!(now(), millis(1_200));
        assert!((6..=8).contains(&gauge.most()), "{}", gauge.most());
        let before = now();
        let answers: Vec<Answered<u32>> = (0..20u64).map(|n| ask(&space, &node, n)).collect();
        for answer in answers {
            assert_eq!(answer.await.unwrap().unwrap(), 1);
        }
        assert_eq!(now() - before, millis(100));
    });
}

#[test]
fn a_place_given_away_for_a_reply_is_taken_again() {
    async fn asks_and_works(gauge: Gauge, _: Event<u32>, cx: Context) -> Result<u32> {
        cx.send("helper", true).reply::<u32>().await?;
        let _inside = gauge.enter();
        cx.sleep(millis(100)).await;
        Ok(1)
    }
    run(1, async |space| {
        space
            .node("helper")
            .on("bool", async |_: Event<bool>, cx: Context| {
                cx.sleep(millis(1)).await;
                1u32
            })
            .check()
            .unwrap();
        let node = space.node("node").max_concurrent(2);
        let gauge = Gauge::default();
        node.on("u32", with(gauge.clone(), asks_and_works)).check().unwrap();
        space.start().await.unwrap();
        let answers: Vec<Answered<u32>> = (0..2u32).map(|n| ask(&space, &node, n)).collect();
        space.env().sleep(millis(50)).await;
        let third: Answered<u32> = ask(&space, &node, 3u32);
        assert_eq!(node.waiting(), 1, "both work, so the third one waits");
        for answer in answers.into_iter().chain([third]) {
            answer.await.unwrap().unwrap();
        }
        assert_eq!(node.waiting(), 0);
    });
}

#[test]
fn a_serial_node_keeps_its_place_while_it_waits_for_a_reply() {
    run(1, async |space| {
        space
            .node("helper")
            .on("bool", async |_: Event<bool>, cx: Context| {
                cx.sleep(millis(10)).await;
            })
            .check()
            .unwrap();
        let node = space.node("node").serial();
        let gauge = Gauge::default();
        let asks = async |gauge: Gauge, _: Event<u32>, cx: Context| -> Result<u32> {
            let _inside = gauge.enter();
            cx.send("helper", true).reply::<()>().await?;
            cx.send("helper", true).reply::<()>().await?;
            Ok(1)
        };
        node.on("u32", with(gauge.clone(), asks)).check().unwrap();
        space.start().await.unwrap();
        let answers: Vec<Answered<u32>> = (0..5u32).map(|n| ask(&space, &node, n)).collect();
        for answer in answers {
            answer.await.unwrap().unwrap();
        }
        assert_eq!((gauge.most(), space.env().monotonic()), (1, millis(100)));
    });
}

/// Serial nodes that each ask the next one of this list, after a moment.
fn ring(space: &Space, names: &'static [&'static str], plain_beside: bool) {
    for (index, name) in names.iter().enumerate() {
        let node = space.node(name).serial();
        let to = names[(index + 1) % names.len()];
        let asks = async |to: &'static str, n: Event<u32>, cx: Context| -> Result<u32> {
            cx.sleep(millis(5)).await;
            if *n == 0 {
                return Ok(0);
            }
            Ok(cx.send(to, *n - 1).reply::<u32>().await?.into_inner())
        };
        node.on("u32", with(to, asks)).check().unwrap();
        if plain_beside {
            node.on("u32", |_: &Event<u32>, _: &Context| ()).check().unwrap();
        }
    }
}

#[test]
fn a_cycle_of_serial_nodes_that_wait_is_shown() {
    for (names, shown) in
        [(&["a"][..], "a -> a"), (&["a", "b"][..], "a -> b -> a"), (&["a", "b", "c"][..], "a -> b -> c -> a")]
    {
        for plain_beside in [false, true] {
            run(1, async |space| {
                ring(&space, names, plain_beside);
                space.start().await.unwrap();
                let asked = space.send("a", 9u32).reply::<u32>().within(secs(60)).await;
                let error = asked.unwrap_err();
                assert_eq!(error.code(), "deadlock", "{error:?}");
                assert!(error.to_string().contains(shown), "{error}");
                // One round less ends before it comes back.
                let rounds = names.len() as u32 - 1;
                assert_eq!(*space.send("a", rounds).reply::<u32>().await.unwrap(), 0);
                assert_eq!(space.flows_under_way(), 0);
            });
        }
    }
}

#[test]
fn a_cycle_through_a_node_that_is_not_serial_is_shown() {
    run(1, async |space| {
        space
            .node("a")
            .serial()
            .on("u32", async |_: Event<u32>, cx: Context| -> Result<u32> {
                Ok(cx.send("b", 1u64).reply::<u32>().await?.into_inner())
            })
            .check()
            .unwrap();
        space
            .node("b")
            .on("u64", async |_: Event<u64>, cx: Context| -> Result<u32> {
                Ok(cx.send("a", 1u32).reply::<u32>().await?.into_inner())
            })
            .check()
            .unwrap();
        space.start().await.unwrap();
        let error = space.send("a", 1u32).reply::<u32>().within(secs(60)).await.unwrap_err();
        assert_eq!(error.code(), "deadlock", "{error:?}");
    });
}

#[test]
fn two_roots_that_wait_for_each_other_do_not_wait_for_ever() {
    for seed in 0..50 {
        run(seed, async |space| {
            ring(&space, &["a", "b"], false);
            space.start().await.unwrap();
            let asked: [Answered<u32>; 2] =
                ["a", "b"].map(|name| ask_with(space.send(name, 1u32).within(secs(60))));
            let mut codes = Vec::new();
            for answer in asked {
                codes.push(answer.await.unwrap().map_err(|error| error.code()));
            }
            // One of them is told; the other goes on then.
            codes.sort_unstable();
            assert_eq!(codes, [Ok(0), Err("deadlock")], "seed {seed}");
            assert!(space.env().monotonic() < secs(1));
            assert_eq!(space.flows_under_way(), 0);
        });
    }
}

/// Keeps the processor busy until the environment's clock says that so many milliseconds have passed.
fn busy(env: &dyn Env, ms: u64) {
    let end = env.monotonic() + millis(ms);
    while env.monotonic() < end {
        std::hint::spin_loop();
    }
}

#[tokio::test]
async fn a_plain_handler_that_proves_slow_leaves_its_senders_thread_and_keeps_its_order() {
    let space = Space::memory();
    let node = space.node("node");
    let log: Log<(u32, ThreadId)> = Arc::default();
    let env = Arc::clone(space.env());
    let slow = move |log: Log<(u32, ThreadId)>, n: &Event<u32>, _: &Context| -> u32 {
        log.lock().unwrap().push((**n, std::thread::current().id()));
        busy(&*env, happen::limits::SLOW_HANDLER_MS * 2);
        **n
    };
    node.on("u32", with(Arc::clone(&log), slow)).check().unwrap();
    space.start().await.unwrap();
    let here = std::thread::current().id();
    let mut inline = 0;
    while inline < 100 {
        space.send(&node, inline).reply::<u32>().await.unwrap();
        if log.lock().unwrap().last().unwrap().1 != here {
            break;
        }
        inline += 1;
    }
    assert!((happen::limits::SLOW_RUNS_MAX..100).contains(&inline), "{inline} runs on the sender's thread");
    let answers: Vec<Answered<u32>> = (1_000..1_008u32).map(|n| ask(&space, &node, n)).collect();
    for (n, answer) in (1_000..).zip(answers) {
        assert_eq!(answer.await.unwrap().unwrap(), n);
    }
    let log = log.lock().unwrap();
    let later: Vec<_> = log.iter().filter(|(n, _)| *n >= 1_000).collect();
    assert!(later.iter().all(|(_, thread)| *thread != here));
    assert_eq!(later.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (1_000..1_008).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_slow_handler_still_streams_panics_and_tells_of_dead_locks() {
    let space = Space::memory();
    let node = space.node("node").serial();
    let moved = Arc::new(AtomicBool::new(false));
    let env = Arc::clone(space.env());
    let slow =
        move |(moved, here): (Arc<AtomicBool>, ThreadId), n: &Event<u32>, _: &Context| -> Result<Step> {
            busy(&*env, if **n == 0 { happen::limits::SLOW_HANDLER_MS * 2 } else { 0 });
            moved.store(std::thread::current().id() != here, Ordering::SeqCst);
            match **n {
                0 => done(0u32),
                1 => panic!("slowly"),
                2 => next(async |_: Event<u32>, cx: Context| -> Result<u32> {
                    cx.emit(7u64).await?;
                    Ok(1)
                }),
                _ => next(async |_: Event<u32>, cx: Context| -> Result<u32> {
                    Ok(cx.send("node", 0u32).reply::<u32>().await?.into_inner())
                }),
            }
        };
    node.on("u32", with((Arc::clone(&moved), std::thread::current().id()), slow)).check().unwrap();
    space.start().await.unwrap();
    for _ in 0..100 {
        space.send(&node, 0u32).reply::<u32>().await.unwrap();
        if moved.load(Ordering::SeqCst) {
            break;
        }
    }
    assert!(moved.load(Ordering::SeqCst));
    let error = space.send(&node, 1u32).reply::<u32>().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Panicked { .. }), "{error:?}");
    assert_eq!(space.send(&node, 2u32).stream::<u64>().collect().await.unwrap(), [7]);
    let error: Error = space.send(&node, 3u32).reply::<u32>().within(secs(20)).await.unwrap_err();
    assert_eq!(error.code(), "deadlock", "{error:?}");
    assert!(moved.load(Ordering::SeqCst), "all of it off the sender's thread");
}
