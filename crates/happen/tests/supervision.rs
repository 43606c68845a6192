//! Supervisors in virtual time: what restarts, when, how often, and what stays valid meanwhile.
#![expect(clippy::unwrap_used, reason = "a failed test may end by any panic")]
#![expect(clippy::disallowed_methods, reason = "one test wants the threads of tokio")]

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen::{
    Config, Context, Error, ErrorKind, Event, Node, Result, Space, Standing, Step, Strategy, Supervisor,
    done, with,
};
use happen_testing::{Simulator, check_seeds};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("job")]
struct Job(u64);

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("crash")]
struct Crash;

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("fail")]
struct Fail;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Runs a program in virtual time in a space of its own.
fn simulate<F: Future<Output = Result<()>>>(program: impl FnOnce(Space) -> F) {
    let sim = Simulator::new(11);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    sim.run(program(space)).unwrap();
}

/// What the runtime told, in order: the type and the node.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<(String, serde_json::Value)>>>);

impl Heard {
    fn of(space: &Space) -> Self {
        let heard = Self::default();
        let list = Arc::clone(&heard.0);
        space
            .on("{node.restarted,node.down}", move |event: &Event, _: &Context| {
                list.lock().unwrap().push((event.event_type().to_owned(), event.json().unwrap().clone()));
            })
            .check()
            .unwrap();
        heard
    }

    fn names(&self) -> Vec<String> {
        let list = self.0.lock().unwrap();
        list.iter().map(|(kind, told)| format!("{kind} {}", told["node_id"].as_str().unwrap())).collect()
    }

    fn last(&self) -> serde_json::Value {
        self.0.lock().unwrap().last().unwrap().1.clone()
    }
}

/// A child that answers jobs with the number of its build, and crashes or fails when told to.
fn worker(supervisor: &Supervisor, node: &Node) -> Arc<AtomicU64> {
    let builds = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&builds);
    supervisor
        .child(node, move |node| {
            let build = counter.fetch_add(1, Ordering::SeqCst) + 1;
            node.on("job", move |_: &Event<Job>, _: &Context| build).check()?;
            node.on("crash", |_: &Event<Crash>, _: &Context| -> () { panic!("crashed as told") }).check()?;
            node.on("fail", |_: &Event<Fail>, _: &Context| -> Result<()> {
                Err(Error::msg("failed as told"))
            })
            .check()
        })
        .unwrap();
    builds
}

#[test]
fn a_panic_restarts_a_child_and_its_handles_stay_valid() {
    simulate(|space| async move {
        let supervisor = space.supervisor("top").backoff(ms(100), ms(100));
        let heard = Heard::of(&space);
        let node = space.node("worker").serial().metadata("team", "blue");
        worker(&supervisor, &node);
        space.start().await?;
        assert_eq!(*space.send(&node, Job(1)).reply::<u64>().await?, 1);
        let error = space.send(&node, Crash).reply::<()>().await.unwrap_err();
        assert_eq!(error.code(), "panicked");
        assert_eq!(supervisor.children()[0].standing, Standing::Restarting);
        // Asked while the node waits for its restart, through the handle from before it.
        let before = space.env().monotonic();
        let reply = space.send(&node, Job(2)).reply::<u64>().await?;
        assert_eq!(*reply, 2);
        assert_eq!(space.env().monotonic() - before, ms(100));
        assert_eq!(*space.send("worker", Job(3)).reply::<u64>().await?, 2);
        assert_eq!(node.handles().len(), 3, "the old registrations are gone");
        assert_eq!(node.all_metadata()["team"], "blue");
        assert_eq!(heard.names(), ["node.restarted worker"]);
        let told = heard.last();
        assert_eq!(told["supervisor"], "top");
        assert_eq!(told["code"], "panicked");
        assert_eq!(told["restarts"], 1);
        assert_eq!(told["failures"], 1);
        assert!(told["reason"].as_str().unwrap().contains("crashed as told"), "{told}");
        let known = &supervisor.children()[0];
        assert_eq!((known.standing, known.failures, known.restarts), (Standing::Running, 1, 1));
        assert_eq!(known.codes["panicked"], 1);
        assert!(known.failed_at_unix_ms.is_some());
        Ok(())
    });
}

#[test]
fn the_restart_is_caused_by_the_event_that_crashed() {
    simulate(|space| async move {
        let supervisor = space.supervisor("top");
        let node = space.node("worker");
        worker(&supervisor, &node);
        let causes = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&causes);
        space
            .on("node.restarted", move |event: &Event, cx: &Context| {
                *seen.lock().unwrap() = Some((event.causation_id(), cx.sender(), event.correlation()));
            })
            .check()?;
        space.start().await?;
        // The deadline of the request is long over when the restart is told.
        let asked =
            space.send(&node, Crash).correlation("order-7").within(ms(5)).reply::<()>().await.unwrap_err();
        space.env().sleep(ms(500)).await;
        let (cause, sender, correlation) = causes.lock().unwrap().clone().unwrap();
        assert_eq!(cause, asked.event_id());
        assert_eq!(sender.as_deref(), Some("top"));
        assert_eq!(correlation, "order-7");
        let trace = space.trace("order-7").await?;
        assert!(trace.lines().iter().any(|line| line.event_type == "node.restarted"), "{trace}");
        Ok(())
    });
}

#[test]
fn the_queue_of_a_serial_node_survives_in_order() {
    check_seeds(0..20, |sim| {
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        sim.run(async move {
            let supervisor = space.supervisor("top");
            let node = space.node("worker").serial();
            let seen = Arc::new(Mutex::new(Vec::new()));
            let list = Arc::clone(&seen);
            supervisor
                .child(&node, move |node| {
                    node.on(
                        "job",
                        with(
                            Arc::clone(&list),
                            async |list: Arc<Mutex<Vec<u64>>>, job: Event<Job>, cx: Context| {
                                cx.sleep(ms(10)).await;
                                assert_ne!(job.0, 3, "the third one crashes");
                                list.lock().unwrap().push(job.0);
                            },
                        ),
                    )
                    .check()
                })
                .unwrap();
            space.start().await.unwrap();
            for job in 0..8 {
                space.send(&node, Job(job)).await.unwrap();
            }
            space.settled(Duration::from_secs(60)).await.unwrap();
            assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 4, 5, 6, 7]);
            assert_eq!(supervisor.children()[0].restarts, 1);
            assert!(space.dead_letters().is_empty());
        });
    });
}

#[test]
fn flows_of_the_old_build_are_cancelled_and_their_askers_told() {
    simulate(|space| async move {
        let supervisor = space.supervisor("top");
        let node = space.node("worker");
        let cleaned = Arc::new(AtomicU64::new(0));
        struct Cleanup(Arc<AtomicU64>);
        impl Drop for Cleanup {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let count = Arc::clone(&cleaned);
        supervisor.child(&node, move |node| {
            node.on(
                "job",
                with(Arc::clone(&count), async |count: Arc<AtomicU64>, _: Event<Job>, cx: Context| {
                    let _cleanup = Cleanup(count);
                    cx.sleep(Duration::from_secs(3_600)).await;
                }),
            )
            .check()?;
            node.on("crash", |_: &Event<Crash>, _: &Context| -> () { panic!("boom") }).check()
        })?;
        space.start().await?;
        let asked = space.clone();
        let (to, from) = tokio::sync::oneshot::channel();
        space.env().spawn(Box::pin(async move {
            let _sent = to.send(asked.send("worker", Job(1)).reply::<()>().await);
        }));
        space.env().sleep(ms(10)).await;
        assert_eq!(node.flows().len(), 1);
        space.send(&node, Crash).await?;
        let error = from.await.unwrap().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Cancelled), "{error:?}");
        assert_eq!(cleaned.load(Ordering::SeqCst), 1);
        space.env().sleep(ms(500)).await;
        assert!(node.flows().is_empty());
        // A cancelled flow is no failure of the child.
        assert_eq!(supervisor.children()[0].failures, 1);
        assert_eq!(supervisor.children()[0].codes["cancelled"], 1);
        Ok(())
    });
}

#[test]
fn broadcasts_during_a_restart_wait_too() {
    simulate(|space| async move {
        let supervisor = space.supervisor("top");
        let node = space.node("worker");
        let seen = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&seen);
        supervisor.child(&node, move |node| {
            let count = Arc::clone(&count);
            node.on("job", move |job: &Event<Job>, _: &Context| {
                count.fetch_add(job.0, Ordering::SeqCst);
            })
            .check()?;
            node.on("crash", |_: &Event<Crash>, _: &Context| -> () { panic!("boom") }).check()
        })?;
        space.start().await?;
        space.send(&node, Crash).await?;
        space.broadcast(Job(5))?;
        assert_eq!((seen.load(Ordering::SeqCst), node.waiting()), (0, 1));
        space.env().sleep(ms(500)).await;
        assert_eq!((seen.load(Ordering::SeqCst), node.waiting()), (5, 0));
        Ok(())
    });
}

#[test]
fn a_restart_takes_back_what_the_build_made_and_nothing_else() {
    simulate(|space| async move {
        let supervisor = space.supervisor("top");
        let node = space.node("worker");
        let (hooked, transformed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        node.on("before", |_: &Event, _: &Context| 1u64).check()?;
        let (hooks, transforms) = (Arc::clone(&hooked), Arc::clone(&transformed));
        supervisor.child(&node, move |node| {
            let (hooks, transforms) = (Arc::clone(&hooks), Arc::clone(&transforms));
            let node = node
                .clone()
                .hook(happen::Moment::BeforeHandle, 0, move |_| {
                    hooks.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
                .transform(move |job: Job| {
                    transforms.fetch_add(1, Ordering::SeqCst);
                    Ok(Job(job.0 + 1))
                })
                .accept_if(|origin| origin.event_type != "evil");
            node.on("job", |job: &Event<Job>, _: &Context| job.0).priority(2).named("work").check()?;
            node.on("evil", |_: &Event, _: &Context| 0u64).check()?;
            node.on("crash", |_: &Event<Crash>, _: &Context| -> () { panic!("boom") }).step(charge).check()
        })?;
        node.on("after", |_: &Event, _: &Context| 2u64).check()?;
        space.start().await?;
        for _ in 0..3 {
            space.send(&node, Crash).await?;
            space.env().sleep(Duration::from_secs(30)).await;
        }
        assert_eq!(supervisor.children()[0].restarts, 3);
        let patterns: Vec<_> = node.handles().into_iter().map(|handles| handles.pattern).collect();
        assert_eq!(patterns, ["job", "before", "after", "evil", "crash"]);
        hooked.store(0, Ordering::SeqCst);
        transformed.store(0, Ordering::SeqCst);
        assert_eq!(*space.send(&node, Job(1)).reply::<u64>().await?, 2);
        assert_eq!((hooked.load(Ordering::SeqCst), transformed.load(Ordering::SeqCst)), (1, 1));
        for (event, value) in [("before", 1), ("after", 2)] {
            assert_eq!(*space.send(&node, Event::new(event, json!(null))).reply::<u64>().await?, value);
        }
        let refused = space.send(&node, Event::new("evil", json!(null))).await.unwrap_err();
        assert_eq!(refused.code(), "refused");
        Ok(())
    });
}

async fn charge(_: Event, _: Context) -> Result<Step> {
    done(1u64)
}

/// Crashes the node so many times, each time after it works again; says how it stands then.
async fn crash(space: &Space, supervisor: &Supervisor, node: &str, times: u32) -> Standing {
    for _ in 0..times {
        let _crashed = space.send(node, Crash).reply::<()>().await;
        space.env().sleep(Duration::from_secs(1)).await;
    }
    supervisor.children().iter().find(|child| child.id == node).unwrap().standing
}

#[test]
fn the_limit_is_a_number_of_restarts_within_a_window() {
    for (crashes, expected) in [(2, Standing::Running), (3, Standing::Running), (4, Standing::Down)] {
        simulate(|space| async move {
            let window = Duration::from_secs(60);
            let supervisor = space.supervisor("top").restarts_max(3, window).backoff(ms(1), ms(1));
            let heard = Heard::of(&space);
            let node = space.node("worker");
            worker(&supervisor, &node);
            space.start().await?;
            assert_eq!(crash(&space, &supervisor, "worker", crashes).await, expected, "{crashes}");
            assert_eq!(supervisor.children()[0].restarts, u64::from(crashes.min(3)));
            let alive = space.send(&node, Job(1)).reply::<u64>().await;
            match expected {
                Standing::Down => {
                    assert_eq!(alive.unwrap_err().code(), "closed");
                    assert_eq!(heard.names().last().unwrap(), "node.down worker");
                    let told = heard.last();
                    assert!(told["reason"].as_str().unwrap().contains("crashed as told"));
                    assert_eq!((&told["restarts"], &told["failures"]), (&json!(3), &json!(4)));
                }
                _ => assert_eq!(*alive?, u64::from(crashes) + 1),
            }
            Ok(())
        });
    }
}

#[test]
fn restarts_outside_the_window_do_not_count() {
    simulate(|space| async move {
        let supervisor =
            space.supervisor("top").restarts_max(1, Duration::from_secs(10)).backoff(ms(1), ms(1));
        worker(&supervisor, &space.node("worker"));
        space.start().await?;
        for _ in 0..5 {
            assert_eq!(crash(&space, &supervisor, "worker", 1).await, Standing::Running);
            space.env().sleep(Duration::from_secs(9)).await;
        }
        assert_eq!(crash(&space, &supervisor, "worker", 2).await, Standing::Down);
        Ok(())
    });
}

#[test]
fn a_node_that_went_down_refuses_its_queue_and_can_be_resumed() {
    simulate(|space| async move {
        let supervisor = space.supervisor("top").restarts_max(0, Duration::from_secs(10));
        let node = space.node("worker").serial();
        supervisor.child(&node, |node| {
            node.on("job", async |job: Event<Job>, cx: Context| {
                cx.sleep(ms(10)).await;
                assert!(job.0 != 0, "boom");
                job.0
            })
            .check()
        })?;
        space.start().await?;
        space.send(&node, Job(0)).await?;
        space.send(&node, Job(1)).await?;
        let asked = space.send(&node, Job(2)).reply::<u64>().await;
        assert_eq!(asked.unwrap_err().code(), "closed");
        let letters = space.dead_letters();
        assert_eq!(letters.len(), 1);
        assert_eq!((letters[0].event_type(), letters[0].code), ("job", "closed"));
        node.resume();
        space.redrive(letters[0].event_id()).await?;
        assert_eq!(*space.send(&node, Job(7)).reply::<u64>().await?, 7);
        // Still watched: the next failure is not lost.
        space.send(&node, Job(0)).await?;
        space.env().sleep(ms(50)).await;
        assert_eq!(supervisor.children()[0].standing, Standing::Down);
        assert_eq!(supervisor.children()[0].failures, 2);
        Ok(())
    });
}

#[test]
fn waiting_doubles_up_to_its_limit() {
    simulate(|space| async move {
        let hour = Duration::from_secs(3_600);
        let supervisor = space.supervisor("top").restarts_max(40, hour).backoff(ms(100), ms(500));
        worker(&supervisor, &space.node("worker"));
        space.start().await?;
        let mut waited = Vec::new();
        for _ in 0..40 {
            space.send("worker", Crash).await?;
            let before = space.env().monotonic();
            space.send("worker", Job(1)).reply::<u64>().await?;
            waited.push((space.env().monotonic() - before).as_millis());
        }
        assert_eq!(waited[..5], [100, 200, 400, 500, 500]);
        assert_eq!(waited[39], 500, "doubling does not overflow");
        Ok(())
    });
}

#[test]
fn errors_count_by_a_predicate_and_bad_input_does_not() {
    simulate(|space| async move {
        let supervisor = space.supervisor("top");
        let (strict, mild) = (space.node("strict"), space.node("mild"));
        let tolerant = space.supervisor("tolerant").counts(|error| error.code() == "undecodable");
        let builds = worker(&supervisor, &strict);
        let mild_builds = worker(&tolerant, &mild);
        space.start().await?;
        for node in [&strict, &mild] {
            space.send(node, Event::new("job", json!("no number"))).await?;
            space.env().sleep(Duration::from_secs(1)).await;
        }
        assert_eq!((builds.load(Ordering::SeqCst), mild_builds.load(Ordering::SeqCst)), (1, 2));
        for node in [&strict, &mild] {
            space.send(node, Fail).await?;
            space.env().sleep(Duration::from_secs(1)).await;
        }
        assert_eq!((builds.load(Ordering::SeqCst), mild_builds.load(Ordering::SeqCst)), (2, 2));
        space.send(&mild, Crash).await?;
        space.env().sleep(Duration::from_secs(1)).await;
        assert_eq!(mild_builds.load(Ordering::SeqCst), 3, "a panic counts whatever the predicate says");
        let known = &tolerant.children()[0];
        assert_eq!(
            known.codes.clone().into_iter().collect::<Vec<_>>(),
            [("failed", 1), ("panicked", 1), ("undecodable", 1)]
        );
        assert_eq!(known.failures, 2);
        Ok(())
    });
}

#[test]
fn the_failure_of_another_node_passed_on_is_not_the_childs() {
    simulate(|space| async move {
        let supervisor = space.supervisor("top");
        let (front, back) = (space.node("front"), space.node("back"));
        back.on("job", |_: &Event<Job>, _: &Context| -> () { panic!("elsewhere") }).check()?;
        supervisor.child(&front, |node| {
            node.on("job", async |job: Event<Job>, cx: Context| -> Result<Step> {
                cx.send("back", job.payload().clone()).reply::<()>().await?;
                done(0u64)
            })
            .check()
        })?;
        space.start().await?;
        let error = space.send(&front, Job(1)).reply::<()>().await.unwrap_err();
        assert_eq!((error.code(), error.node_id()), ("panicked", Some("back")));
        assert_eq!(supervisor.children()[0].failures, 0);
        assert_eq!(supervisor.children()[0].codes["panicked"], 1);
        Ok(())
    });
}

#[test]
fn a_tolerant_supervisor_waits_for_one_failure_more() {
    simulate(|space| async move {
        let supervisor = space
            .supervisor("top")
            .tolerate(2)
            .restarts_max(3, Duration::from_secs(10))
            .backoff(ms(1), ms(1));
        let builds = worker(&supervisor, &space.node("worker"));
        space.start().await?;
        crash(&space, &supervisor, "worker", 2).await;
        assert_eq!(builds.load(Ordering::SeqCst), 1);
        // These two leave the window before the third comes.
        space.env().sleep(Duration::from_secs(10)).await;
        crash(&space, &supervisor, "worker", 2).await;
        assert_eq!(builds.load(Ordering::SeqCst), 1);
        crash(&space, &supervisor, "worker", 1).await;
        assert_eq!(builds.load(Ordering::SeqCst), 2);
        assert_eq!(supervisor.children()[0].failures, 5);
        Ok(())
    });
}

/// Three children that note their builds, and what is built when the second one crashes.
fn built_after_a_crash(strategy: Strategy) -> Vec<String> {
    let built = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&built);
    simulate(|space| async move {
        let supervisor = space.supervisor("top").strategy(strategy);
        for id in ["a", "b", "c"] {
            let list = Arc::clone(&list);
            supervisor.child(&space.node(id), move |node| {
                list.lock().unwrap().push(node.id().to_owned());
                node.on("crash", |_: &Event<Crash>, _: &Context| -> () { panic!("boom") }).check()
            })?;
        }
        let heard = Heard::of(&space);
        space.start().await?;
        list.lock().unwrap().clear();
        space.send("b", Crash).await?;
        space.env().sleep(Duration::from_secs(1)).await;
        let restarted: Vec<_> =
            list.lock().unwrap().iter().map(|id| format!("node.restarted {id}")).collect();
        assert_eq!(heard.names(), restarted);
        Ok(())
    });
    Arc::into_inner(built).unwrap().into_inner().unwrap()
}

#[test]
fn strategies_restart_children_in_the_order_they_were_added() {
    assert_eq!(built_after_a_crash(Strategy::OneForOne), ["b"]);
    assert_eq!(built_after_a_crash(Strategy::OneForAll), ["a", "b", "c"]);
    assert_eq!(built_after_a_crash(Strategy::RestForOne), ["b", "c"]);
}

#[test]
fn an_earlier_child_takes_over_the_restart_of_a_later_one() {
    simulate(|space| async move {
        let supervisor = space.supervisor("top").strategy(Strategy::RestForOne).backoff(ms(100), ms(100));
        let nodes = ["a", "b", "c"].map(|id| space.node(id));
        let builds = nodes.each_ref().map(|node| worker(&supervisor, node));
        space.start().await?;
        space.send("c", Crash).await?;
        space.env().sleep(ms(50)).await;
        space.send("a", Crash).await?;
        space.env().sleep(ms(75)).await;
        let standing = |index: usize| supervisor.children()[index].standing;
        // The time of the first round has come, but its only child belongs to the second by now.
        assert_eq!(standing(2), Standing::Restarting);
        space.env().sleep(ms(50)).await;
        assert_eq!([0, 1, 2].map(standing), [Standing::Running; 3]);
        assert_eq!(builds.map(|builds| builds.load(Ordering::SeqCst)), [2, 2, 2]);
        Ok(())
    });
}

#[test]
fn a_storm_of_failures_is_one_restart() {
    check_seeds(0..20, |sim| {
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        sim.run(async move {
            let supervisor = space.supervisor("top").restarts_max(1, Duration::from_secs(60));
            let node = space.node("worker").max_concurrent(1_000);
            let sick = Arc::new(AtomicBool::new(true));
            let shared = Arc::clone(&sick);
            supervisor
                .child(&node, move |node| {
                    node.on(
                        "job",
                        with(
                            Arc::clone(&shared),
                            async |sick: Arc<AtomicBool>, job: Event<Job>, cx: Context| {
                                cx.sleep(ms(5)).await;
                                assert!(!sick.load(Ordering::SeqCst), "sick");
                                job.0
                            },
                        ),
                    )
                    .check()
                })
                .unwrap();
            space.start().await.unwrap();
            let asked: Vec<_> = (0..500u64)
                .map(|job| {
                    let (space, (to, from)) = (space.clone(), tokio::sync::oneshot::channel());
                    space.clone().env().spawn(Box::pin(async move {
                        let _sent = to.send(space.send("worker", Job(job)).reply::<u64>().await.map(|n| *n));
                    }));
                    from
                })
                .collect();
            space.env().sleep(ms(50)).await;
            sick.store(false, Ordering::SeqCst);
            let mut codes = std::collections::BTreeMap::new();
            for answer in asked {
                let code = answer.await.unwrap().map_or_else(|error| error.code(), |_| "ok");
                *codes.entry(code).or_insert(0) += 1;
            }
            space.env().sleep(Duration::from_secs(1)).await;
            // Nobody is left without an answer, whatever happened to the flow.
            assert_eq!(codes.values().sum::<u64>(), 500, "{codes:?}");
            let known = &supervisor.children()[0];
            assert_eq!(known.restarts, 1, "{codes:?}");
            assert_eq!(known.standing, Standing::Running);
            let failed: u64 = known.codes.values().sum();
            assert_eq!(failed, 500 - codes.get("ok").copied().unwrap_or(0), "every failure was seen");
        });
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_event_is_stuck_when_threads_send_while_a_child_restarts() {
    for serial in [false, true] {
        let space = Space::memory();
        let supervisor = space
            .supervisor("top")
            .restarts_max(u32::MAX, Duration::from_secs(3_600))
            .backoff(Duration::ZERO, Duration::ZERO);
        let node = space.node("worker");
        let node = if serial { node.serial() } else { node };
        let (handled, builds) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (count, built) = (Arc::clone(&handled), Arc::clone(&builds));
        supervisor
            .child(&node, move |node| {
                built.fetch_add(1, Ordering::SeqCst);
                let count = Arc::clone(&count);
                node.on("job", move |job: &Event<Job>, _: &Context| {
                    count.fetch_add(1, Ordering::SeqCst);
                    if job.0.is_multiple_of(10) {
                        std::panic::resume_unwind(Box::new("tenth"));
                    }
                    job.0
                })
                .check()
            })
            .unwrap();
        space.start().await.unwrap();
        let senders: Vec<_> = (0..3u64)
            .map(|_| {
                let space = space.clone();
                tokio::spawn(async move {
                    for job in 1..=1_000 {
                        let asked = space.send("worker", Job(job)).within(Duration::from_secs(60));
                        match asked.reply::<u64>().await {
                            Ok(reply) => assert_eq!(*reply, job),
                            Err(error) => assert_eq!((error.code(), job % 10), ("panicked", 0), "{error:?}"),
                        }
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.await.unwrap();
        }
        assert_eq!(handled.load(Ordering::SeqCst), 3_000, "each once");
        space.settled(Duration::from_secs(60)).await.unwrap();
        while supervisor.children()[0].standing != Standing::Running {
            tokio::task::yield_now().await;
        }
        let known = &supervisor.children()[0];
        assert_eq!(known.failures, 300, "every failure was told");
        assert_eq!(known.restarts + 1, builds.load(Ordering::SeqCst));
        assert_eq!((node.handles().len(), node.waiting()), (1, 0));
    }
}

#[test]
fn a_build_that_fails_counts_and_the_old_one_never_runs_again() {
    simulate(|space| async move {
        let supervisor =
            space.supervisor("top").restarts_max(3, Duration::from_secs(60)).backoff(ms(10), ms(10));
        let heard = Heard::of(&space);
        let node = space.node("worker");
        let builds = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&builds);
        supervisor.child(&node, move |node| {
            let build = count.fetch_add(1, Ordering::SeqCst) + 1;
            node.on("job", move |_: &Event<Job>, _: &Context| build).check()?;
            match build {
                2 => return Err(Error::msg("no database")),
                3 => panic!("no luck"),
                _ => {}
            }
            node.on("crash", |_: &Event<Crash>, _: &Context| -> () { panic!("boom") }).check()
        })?;
        space.start().await?;
        space.send(&node, Crash).await?;
        assert_eq!(*space.send(&node, Job(1)).reply::<u64>().await?, 4);
        assert_eq!(node.handles().len(), 2, "half a build leaves nothing behind");
        let known = &supervisor.children()[0];
        assert_eq!((known.failures, known.restarts), (3, 1));
        assert_eq!(heard.names(), ["node.restarted worker"]);
        assert!(heard.last()["reason"].as_str().unwrap().contains("no luck"));
        Ok(())
    });
}

#[test]
fn a_build_that_never_works_ends_at_the_limit() {
    simulate(|space| async move {
        let supervisor = space.supervisor("top").strategy(Strategy::OneForAll).backoff(ms(10), ms(10));
        let heard = Heard::of(&space);
        worker(&supervisor, &space.node("good"));
        let broken = Arc::new(AtomicBool::new(false));
        let is_broken = Arc::clone(&broken);
        supervisor.child(&space.node("bad"), move |_| match is_broken.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::msg("no database")),
        })?;
        space.start().await?;
        broken.store(true, Ordering::SeqCst);
        space.send("good", Crash).await?;
        let asked = space.send("good", Job(1)).reply::<u64>().await;
        assert_eq!(asked.unwrap_err().code(), "closed");
        assert_eq!(heard.names(), ["node.down good", "node.down bad"]);
        assert!(heard.last()["reason"].as_str().unwrap().contains("no database"), "{}", heard.last());
        Ok(())
    });
}

#[test]
fn the_first_build_tells_its_error_to_the_caller() {
    simulate(|space| async move {
        let supervisor = space.supervisor("top");
        let node = space.node("worker");
        let error = supervisor.child(&node, |node| {
            node.on("job", |_: &Event<Job>, _: &Context| 1u64).check()?;
            Err(Error::msg("no database"))
        });
        assert_eq!(error.unwrap_err().node_id(), Some("worker"));
        assert!(node.handles().is_empty() && supervisor.children().is_empty());
        worker(&supervisor, &node);
        assert_eq!(supervisor.child(&node, |_| Ok(())).unwrap_err().code(), "misuse");
        let other = Space::in_env(Config::default(), Arc::clone(space.env()))?;
        assert_eq!(supervisor.child(&other.node("x"), |_| Ok(())).unwrap_err().code(), "misuse");
        Ok(())
    });
}

#[test]
fn a_supervisor_above_restarts_all_below_and_stops_them_at_its_own_limit() {
    simulate(|space| async move {
        let minute = Duration::from_secs(60);
        let top = space.supervisor("top").restarts_max(1, minute).backoff(ms(10), ms(10));
        let low = space.supervisor("low").restarts_max(1, minute).backoff(ms(10), ms(10));
        let other = space.node("other");
        let heard = Heard::of(&space);
        let builds = worker(&low, &space.node("a"));
        worker(&low, &space.node("b"));
        let others = worker(&top, &other);
        top.supervise(&low)?;
        space.start().await?;
        assert_eq!(crash(&space, &low, "a", 1).await, Standing::Running);
        assert_eq!(heard.names(), ["node.restarted a"]);
        // The second crash is beyond the limit of `low`, so `top` restarts it with both children.
        assert_eq!(crash(&space, &low, "a", 1).await, Standing::Running);
        assert_eq!(heard.names(), ["node.restarted a", "node.restarted a", "node.restarted b"]);
        assert_eq!(builds.load(Ordering::SeqCst), 3);
        assert_eq!(*space.send("a", Job(1)).reply::<u64>().await?, 3);
        let known = top.children();
        assert_eq!((known[1].id.as_str(), known[1].failures, known[1].restarts), ("low", 1, 1));
        // The count of `low` began anew; then both limits are used up.
        assert_eq!(crash(&space, &low, "a", 1).await, Standing::Running);
        assert_eq!(crash(&space, &low, "b", 1).await, Standing::Running, "each child has its own count");
        assert_eq!(crash(&space, &low, "a", 1).await, Standing::Down);
        assert_eq!(heard.names()[5..], ["node.down a", "node.down b"]);
        assert_eq!(space.send("b", Job(1)).await.unwrap_err().code(), "closed");
        assert_eq!(*space.send(&other, Job(1)).reply::<u64>().await?, 1);
        assert_eq!(others.load(Ordering::SeqCst), 1);
        Ok(())
    });
}

#[test]
fn supervisors_cannot_stand_in_a_circle() {
    simulate(|space| async move {
        let (a, b) = (space.supervisor("a"), space.supervisor("b"));
        a.supervise(&b)?;
        for (above, below) in [(&b, &a), (&a, &a), (&a, &b)] {
            assert_eq!(above.supervise(below).unwrap_err().code(), "misuse");
        }
        Ok(())
    });
}

#[test]
fn supervision_holds_without_a_handle_and_ends_with_the_space() {
    let sim = Simulator::new(3);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    let held = Arc::new(());
    let weak = Arc::downgrade(&held);
    sim.run(async {
        let node = space.node("worker");
        let supervisor = space.supervisor("top");
        supervisor
            .child(&node, move |node| {
                let held = Arc::clone(&held);
                node.on("crash", move |_: &Event<Crash>, _: &Context| -> () { panic!("boom {held:?}") })
                    .check()
            })
            .unwrap();
        drop(supervisor);
        space.start().await.unwrap();
        let down = Heard::of(&space);
        space.send(&node, Crash).await.unwrap();
        space.env().sleep(Duration::from_secs(1)).await;
        assert_eq!(down.names(), ["node.restarted worker"]);
        space.send(&node, Crash).await.unwrap();
    });
    // The space ends while a restart is due.
    drop(space);
    sim.run(async { sim.env().sleep(Duration::from_secs(60)).await });
    assert!(weak.upgrade().is_none(), "nothing keeps the build function");
}
