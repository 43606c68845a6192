//! Nodes: registering and taking back, options, lifecycle, hooks, and that spaces do not see each other.
#![expect(clippy::unwrap_used, reason = "a failed test may end by any panic")]
#![expect(clippy::disallowed_methods, reason = "these tests want the threads of tokio")]

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen::{
    Config, Context, Error, ErrorKind, Event, Group, Moment, Node, Nodes, Result, Space, Step, domain, done,
    exact, goto, not, with,
};
use happen_testing::Simulator;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("job")]
struct Job(u64);

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("job")]
struct LooseJob(u32);

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.placed")]
struct Placed {
    cents: u64,
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn simulated() -> (Simulator, Space) {
    let sim = Simulator::new(5);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    (sim, space)
}

fn event(name: &str) -> happen::Dynamic {
    Event::new(name, json!({ "n": 1 }))
}

type List = Arc<Mutex<Vec<String>>>;

fn note(list: &List, text: impl Into<String>) {
    list.lock().unwrap().push(text.into());
}

fn noted(list: &List) -> Vec<String> {
    std::mem::take(&mut list.lock().unwrap())
}

#[tokio::test]
async fn the_defaults_work_and_options_come_from_one_configuration() -> Result<()> {
    let config: Config = serde_json::from_value(json!({
        "environment": "test",
        "nodes": { "api-*": { "max_concurrent": 1, "queue_limit": 0, "accept_from": ["gate"] } }
    }))?;
    let space = Space::with(config)?;
    let (gate, api, free) = (space.node("gate"), space.node("api-users"), space.node("free"));
    for node in [&api, &free] {
        node.on("job", |_: &Event<Job>, _: &Context| 1u64).check()?;
    }
    space.start().await?;
    assert_eq!(space.config().environment, "test");
    assert_eq!(*gate.send(&api, Job(1)).reply::<u64>().await?, 1);
    assert_eq!(free.send(&api, Job(1)).await.unwrap_err().code(), "refused");
    assert_eq!(*gate.send(&free, Job(1)).reply::<u64>().await?, 1);
    let mut bad = Config::default();
    bad.node_defaults.steps_max = 0;
    assert_eq!(Space::with(bad).unwrap_err().code(), "misuse");
    Ok(())
}

#[tokio::test]
async fn patterns_of_every_kind_choose_events() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    let list = List::default();
    let hears = |name: &'static str| {
        let list = Arc::clone(&list);
        move |_: &Event, _: &Context| note(&list, name)
    };
    node.on("order.*", hears("star")).check()?;
    node.on("{order,payment}.created", hears("braces")).check()?;
    node.on("user.**", hears("deep")).check()?;
    node.on(domain("order").and(not(exact("order.test"))), hears("domain")).check()?;
    node.on(|ty: &str| ty.ends_with(".done"), hears("closure")).check()?;
    space.start().await?;
    for (name, expected) in [
        ("order.created", vec!["star", "braces", "domain"]),
        ("order.test", vec!["star"]),
        ("order.item.done", vec!["domain", "closure"]),
        ("payment.created", vec!["braces"]),
        ("user.a.b", vec!["deep"]),
    ] {
        space.send(&node, event(name)).await?;
        assert_eq!(noted(&list), expected, "{name}");
    }
    assert_eq!(space.send(&node, event("user")).await.unwrap_err().code(), "no-handler");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn handlers_come_and_go_while_events_flow() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    let (always, sometimes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&always);
    node.on("job", move |_: &Event<Job>, _: &Context| {
        count.fetch_add(1, Ordering::SeqCst);
    })
    .check()?;
    space.start().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..2)
        .map(|_| {
            let (space, stop) = (space.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut sent = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    match sent % 2 {
                        0 => drop(space.send("node", Job(sent)).await.unwrap()),
                        _ => drop(space.broadcast(Job(sent)).unwrap()),
                    }
                    sent += 1;
                    tokio::task::yield_now().await;
                }
                sent
            })
        })
        .collect();
    for turn in 0..500u64 {
        let count = Arc::clone(&sometimes);
        let registration = node.on("job", move |_: &Event<Job>, _: &Context| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let registration = registration.priority(turn as i32 % 3 - 1).named("sometimes");
        let before = sometimes.load(Ordering::SeqCst);
        space.send(&node, Job(0)).await?;
        assert!(sometimes.load(Ordering::SeqCst) > before, "registered and yet not called");
        registration.off();
        registration.off();
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::SeqCst);
    let mut sent = 500;
    for sender in senders {
        sent += sender.await.unwrap();
    }
    assert_eq!(always.load(Ordering::SeqCst), sent, "the handler that stayed saw each event once");
    assert_eq!(node.handles().len(), 1);
    let after = sometimes.load(Ordering::SeqCst);
    space.send(&node, Job(0)).await?;
    assert_eq!(sometimes.load(Ordering::SeqCst), after);
    Ok(())
}

#[test]
fn what_a_handler_captured_is_dropped_with_its_registration() {
    let space = Space::memory();
    let node = space.node("node");
    let other = space.node("other");
    other.on("job", |_: &Event<Job>, _: &Context| {});
    // The start is ready at once: there is no link to attach.
    assert!(ready_value(space.start()).is_ok());
    for turn in 0..50 {
        let captured = Arc::new(turn);
        let watched = Arc::downgrade(&captured);
        let registration = node.on("job", move |_: &Event<Job>, _: &Context| {
            let _mine = &captured;
        });
        // Threads that have used it and go on to live, idle or busy elsewhere, must not keep it.
        let (used, gone) = (std::sync::Barrier::new(4), std::sync::Barrier::new(4));
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (space, other, used, gone) = (&space, &other, &used, &gone);
                scope.spawn(move || {
                    space.send("node", Job(1)).forget();
                    space.broadcast(Job(2)).unwrap();
                    if thread == 0 {
                        space.send(other, Job(3)).forget();
                    }
                    used.wait();
                    gone.wait();
                });
            }
            used.wait();
            registration.off();
            assert!(watched.upgrade().is_none(), "turn {turn}");
            gone.wait();
        });
    }
}

#[test]
fn what_a_running_handler_captured_is_dropped_when_it_has_returned() {
    let space = Space::memory();
    let node = space.node("node");
    assert!(ready_value(space.start()).is_ok());
    let captured = Arc::new(());
    let watched = Arc::downgrade(&captured);
    let (inside, leave) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(std::sync::Barrier::new(2)));
    let (at_inside, at_leave) = (Arc::clone(&inside), Arc::clone(&leave));
    let registration = node.on("job", move |_: &Event<Job>, _: &Context| {
        let _mine = &captured;
        at_inside.wait();
        at_leave.wait();
    });
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| space.send(&node, Job(1)).forget());
        inside.wait();
        registration.off();
        assert!(watched.upgrade().is_some(), "it runs");
        leave.wait();
        sender.join().unwrap();
        assert!(watched.upgrade().is_none(), "it has returned");
    });
}

#[test]
fn what_a_handler_captured_may_panic_when_its_last_run_drops_it() {
    struct Grumpy;
    impl Drop for Grumpy {
        fn drop(&mut self) {
            panic!("not like this");
        }
    }
    let space = Space::memory();
    let node = space.node("node");
    assert!(ready_value(space.start()).is_ok());
    let grumpy = Grumpy;
    let (inside, leave) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(std::sync::Barrier::new(2)));
    let (at_inside, at_leave) = (Arc::clone(&inside), Arc::clone(&leave));
    let registration = node.on("job", move |_: &Event<Job>, _: &Context| {
        let _mine = &grumpy;
        at_inside.wait();
        at_leave.wait();
        7_u64
    });
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| space.send(&node, Job(1)).reply_now::<u64>());
        inside.wait();
        registration.off();
        leave.wait();
        let reply = sender.join().unwrap();
        assert_eq!(*reply.unwrap(), 7);
    });
}

/// The value of a future that is ready at once.
fn ready_value<T>(future: impl Future<Output = T>) -> T {
    let mut task = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut task) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

#[tokio::test]
async fn a_handler_may_take_itself_back() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    let slot: Arc<Mutex<Option<happen::Registration>>> = Arc::default();
    let own = Arc::clone(&slot);
    let registration = node.on("job", move |_: &Event<Job>, _: &Context| {
        if let Some(registration) = own.lock().unwrap().take() {
            registration.off();
        }
    });
    *slot.lock().unwrap() = Some(registration);
    space.start().await?;
    space.send(&node, Job(1)).await?;
    assert_eq!(space.send(&node, Job(1)).await.unwrap_err().code(), "no-handler");
    Ok(())
}

#[tokio::test]
async fn nothing_is_delivered_before_the_start() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    node.on("job", move |_: &Event<Job>, _: &Context| {
        count.fetch_add(1, Ordering::SeqCst);
    })
    .check()?;
    let error = space.send(&node, Job(1)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotStarted));
    assert!(error.event_id().is_some() && error.is_retryable());
    assert_eq!(space.send(&node, Job(1)).reply::<()>().await.unwrap_err().code(), "not-started");
    assert_eq!(space.broadcast(Job(1)).unwrap_err().code(), "not-started");
    assert_eq!(
        space.send(&node, Job(1)).stream::<Job>().next().await.unwrap().unwrap_err().code(),
        "not-started"
    );
    space.start().await?;
    space.start().await?;
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    space.send(&node, Job(1)).await?;
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    Ok(())
}

#[tokio::test]
async fn mistakes_of_building_are_told_by_the_start() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    let error = node.on("order.{a", |_: &Event, _: &Context| ()).check().unwrap_err();
    match error.kind() {
        ErrorKind::BadPattern { pattern, position, .. } => {
            assert_eq!((pattern.as_str(), *position), ("order.{a", 6))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(error.node_id(), Some("node"));
    let twin = space.node("node");
    assert_eq!(
        twin.on("job", |_: &Event<Job>, _: &Context| ()).check().map_err(|error| error.code()),
        Err("closed")
    );
    for reserved in ["", "$space"] {
        assert_eq!(space.send(&space.node(reserved), Job(1)).await.unwrap_err().code(), "closed");
    }
    assert_eq!(space.start().await.unwrap_err().code(), "bad-pattern");
    let codes: Vec<_> = space.problems().iter().map(Error::code).collect();
    assert_eq!(codes, ["bad-pattern", "duplicate-node", "misuse", "misuse"]);
    assert!(space.problems()[1].to_string().contains("`node`"));
    Ok(())
}

#[tokio::test]
async fn a_mistake_while_running_is_told_as_an_event() -> Result<()> {
    let space = Space::memory();
    let list = List::default();
    let told = Arc::clone(&list);
    space
        .on("system.problem", move |event: &Event, _: &Context| {
            note(&told, event.get("code").and_then(|code| code.as_str()).unwrap_or_default());
        })
        .check()?;
    space.start().await?;
    let node = space.node("node");
    let bad = node.on("a..b", |_: &Event, _: &Context| ());
    let twin = space.node("node");
    assert_eq!(bad.check().unwrap_err().code(), "bad-pattern");
    assert_eq!(space.send(&twin, Job(1)).await.unwrap_err().code(), "closed");
    assert_eq!(noted(&list), ["bad-pattern", "duplicate-node"]);
    assert_eq!(space.find("node").unwrap().id(), "node");
    Ok(())
}

#[test]
fn a_node_stops_resumes_and_is_destroyed() {
    let (sim, space) = simulated();
    sim.run(async move {
        let list = List::default();
        let told = Arc::clone(&list);
        space
            .on("{node.started,node.stopped,node.destroyed}", move |event: &Event, _: &Context| {
                note(&told, format!("{} {}", event.event_type(), event.get("node_id").unwrap()));
            })
            .check()?;
        space.start().await?;
        let node = space.node("node");
        node.on("job", async |job: Event<Job>, cx: Context| {
            cx.sleep(ms(job.0)).await;
            job.0
        })
        .check()?;
        let asked = {
            let (space, (to, from)) = (space.clone(), tokio::sync::oneshot::channel());
            space.clone().env().spawn(Box::pin(async move {
                let _sent = to.send(space.send("node", Job(50)).reply::<u64>().await);
            }));
            from
        };
        space.env().sleep(ms(10)).await;
        node.stop();
        let error = space.send(&node, Job(1)).reply::<u64>().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Closed { what } if what.contains("`node`")), "{error:?}");
        assert!(error.event_id().is_some());
        assert_eq!(*asked.await.unwrap()?, 50, "what is under way goes on");
        node.resume();
        assert_eq!(*space.send(&node, Job(1)).reply::<u64>().await?, 1);
        node.destroy();
        assert_eq!(space.send(&node, Job(1)).await.unwrap_err().code(), "closed");
        assert_eq!(space.send("node", Job(1)).await.unwrap_err().code(), "no-such-node");
        node.resume();
        assert_eq!(space.send(&node, Job(1)).await.unwrap_err().code(), "closed", "destroyed is for good");
        let again = space.node("node");
        again.on("job", |_: &Event<Job>, _: &Context| 7u64).check()?;
        assert_eq!(*space.send("node", Job(1)).reply::<u64>().await?, 7);
        let starts = noted(&list).into_iter().filter(|line| line.starts_with("node.destroyed")).count();
        assert_eq!(starts, 1);
        Ok::<(), Error>(())
    })
    .unwrap();
}

#[test]
fn destroying_refuses_what_waits_and_cancels_what_runs() {
    let (sim, space) = simulated();
    sim.run(async move {
        let node = space.node("node").serial();
        node.on("job", async |job: Event<Job>, cx: Context| {
            cx.sleep(Duration::from_secs(60)).await;
            job.0
        })
        .check()?;
        space.start().await?;
        let ask = |job| {
            let (space, (to, from)) = (space.clone(), tokio::sync::oneshot::channel());
            space.clone().env().spawn(Box::pin(async move {
                let _sent = to.send(space.send("node", Job(job)).reply::<u64>().await);
            }));
            from
        };
        let running = ask(1);
        space.env().sleep(ms(1)).await;
        let waiting = ask(2);
        space.env().sleep(ms(1)).await;
        space.send(&node, Job(3)).await?;
        assert_eq!((node.flows().len(), node.waiting()), (1, 2));
        node.destroy();
        assert_eq!(running.await.unwrap().unwrap_err().code(), "cancelled");
        assert_eq!(waiting.await.unwrap().unwrap_err().code(), "closed");
        let letters = space.dead_letters();
        assert_eq!((letters.len(), letters[0].code, letters[0].node.as_str()), (1, "closed", "node"));
        assert_eq!(node.waiting(), 0);
        Ok::<(), Error>(())
    })
    .unwrap();
}

#[test]
fn a_stopping_space_waits_for_flows_and_cancels_them_at_its_limit() {
    for (takes, drained) in [(999, true), (1_001, false)] {
        let sim = Simulator::new(5);
        let config = Config { drain_ms: 1_000, ..Config::default() };
        let space = Space::in_env(config, sim.env()).unwrap();
        let ended = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&ended);
        let env = sim.env();
        sim.run(async move {
            let node = space.node("node").serial();
            node.on(
                "job",
                with(count, async |count: Arc<AtomicU64>, job: Event<Job>, cx: Context| {
                    cx.sleep(ms(job.0)).await;
                    count.fetch_add(1, Ordering::SeqCst);
                }),
            )
            .check()
            .unwrap();
            space.start().await.unwrap();
            space.send(&node, Job(takes - 900)).await.unwrap();
            space.send(&node, Job(900)).await.unwrap();
            let stopped = space.stop().await;
            assert_eq!(stopped.is_ok(), drained, "{stopped:?}");
            if let Err(error) = stopped {
                assert!(matches!(error.kind(), ErrorKind::TimedOut { after } if *after == ms(1_000)));
            }
            assert_eq!(space.send(&node, Job(1)).await.unwrap_err().code(), "closed");
            assert_eq!(space.broadcast(Job(1)).unwrap_err().code(), "closed");
            assert_eq!(space.start().await.unwrap_err().code(), "closed");
            space.stop().await.unwrap();
        });
        sim.run(async move { env.sleep(Duration::from_secs(60)).await });
        assert_eq!(ended.load(Ordering::SeqCst), if drained { 2 } else { 1 }, "cancelled flows do not go on");
    }
}

#[tokio::test]
async fn a_node_tells_its_metadata_what_it_handles_and_emits() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node").metadata("team", "blue").metadata("slots", 3).metadata("team", "red");
    node.on("job", async |job: Event<Job>, cx: Context| -> Result<Step> {
        cx.broadcast(Placed { cents: job.0 })?;
        done(job.0)
    })
    .priority(3)
    .named("work")
    .check()?;
    node.on("order.**", |_: &Event, _: &Context| ()).check()?;
    space.start().await?;
    assert_eq!(serde_json::to_value(node.all_metadata())?, json!({ "slots": 3, "team": "red" }));
    let handles = node.handles();
    assert_eq!(handles.len(), 2);
    assert_eq!(
        (
            handles[0].pattern.as_str(),
            handles[0].handler.as_str(),
            handles[0].payload.as_deref(),
            handles[0].priority
        ),
        ("job", "work", Some("job"), 3)
    );
    assert_eq!((handles[1].pattern.as_str(), handles[1].payload.as_deref()), ("order.**", None));
    assert!(node.emits().is_empty());
    space.send(&node, Job(1)).await?;
    assert_eq!(node.emits(), ["order.placed"]);
    assert_eq!(space.nodes().iter().map(Node::id).collect::<Vec<_>>(), ["node"]);
    Ok(())
}

#[tokio::test]
async fn hooks_run_by_priority_and_may_object() -> Result<()> {
    let space = Space::memory();
    let list = List::default();
    let hook = |name: &'static str| {
        let list = Arc::clone(&list);
        move |seen: &happen::Seen<'_>| -> Result<()> {
            let failed = seen.error.map(|error| format!(" {}", error.code())).unwrap_or_default();
            note(&list, format!("{name} {}{failed}", seen.event.unwrap().event_type()));
            Ok(())
        }
    };
    let node = space
        .node("node")
        .hook(Moment::BeforeHandle, 0, hook("late"))
        .hook(Moment::BeforeHandle, 5, hook("early"))
        .hook(Moment::BeforeHandle, 3, |seen| match seen.event.and_then(|event| event.json().ok()) {
            Some(payload) if payload == &json!(13) => Err(Error::msg("unlucky")),
            _ => Ok(()),
        })
        .hook(Moment::AfterHandle, 0, hook("after"))
        .hook(Moment::BeforeEmit, 0, |seen| match seen.event.unwrap().event_type() {
            // It sees what is sent, not only of which type it is.
            "order.placed" if seen.event.unwrap().get("cents").is_some() => {
                Err(Error::msg("closed on Sundays"))
            }
            _ => Ok(()),
        });
    space.before_emit(9, hook("space"));
    node.on("job", async |job: Event<Job>, cx: Context| -> Result<Step> {
        assert_ne!(job.0, 7, "seven");
        cx.broadcast(Placed { cents: job.0 })?;
        done(job.0)
    })
    .check()?;
    node.on("plain", |_: &Event, _: &Context| 1u64).check()?;
    space.start().await?;
    noted(&list);
    assert_eq!(*space.send(&node, event("plain")).reply::<u64>().await?, 1);
    assert_eq!(noted(&list), ["space plain", "early plain", "late plain", "after plain"]);
    let unlucky = space.send(&node, Job(13)).reply::<u64>().await.unwrap_err();
    assert_eq!((unlucky.code(), unlucky.node_id()), ("refused", Some("node")));
    assert!(unlucky.chain().iter().any(|line| line.contains("unlucky")), "{unlucky:?}");
    assert!(unlucky.event_id().is_some());
    assert_eq!(noted(&list), ["space job", "early job"]);
    let sunday = space.send(&node, Job(1)).reply::<u64>().await.unwrap_err();
    assert!(sunday.to_string().contains("closed on Sundays"), "{sunday:?}");
    assert!(noted(&list).contains(&"after job refused".to_owned()));
    space.send(&node, Job(7)).reply::<u64>().await.unwrap_err();
    assert!(noted(&list).contains(&"after job panicked".to_owned()));
    Ok(())
}

#[tokio::test]
async fn transformers_change_payloads_in_order() -> Result<()> {
    let space = Space::memory();
    let node = space
        .node("node")
        .transform(|job: Job| Ok(Job(job.0 + 1)))
        .transform(|job: Job| if job.0 > 100 { Err(Error::msg("too much")) } else { Ok(Job(job.0 * 10)) });
    node.on("job", |job: &Event<Job>, _: &Context| job.0).check()?;
    node.on("u64", |number: &Event<u64>, _: &Context| *number.payload()).check()?;
    space.start().await?;
    assert_eq!(*space.send(&node, Job(1)).reply::<u64>().await?, 20);
    assert_eq!(*space.send(&node, 1u64).reply::<u64>().await?, 1, "other types pass by");
    assert_eq!(*space.send(&node, Event::new("job", json!(2))).reply::<u64>().await?, 30, "by name");
    let error = space.send(&node, Job(100)).reply::<u64>().await.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.node_id()), ("too much", Some("node")));
    Ok(())
}

#[tokio::test]
async fn handlers_are_values_with_dependencies_and_own_contexts() -> Result<()> {
    let space = Space::memory();
    let (a, b) = (space.node("a"), space.node("b"));
    let ledger = Arc::new(AtomicU64::new(0));
    async fn book(ledger: Arc<AtomicU64>, job: Event<Job>, cx: Context) -> Result<Step> {
        assert!(cx.get::<u64>("seen").is_err(), "a flow sees no other flow's values");
        cx.put("seen", job.0)?;
        ledger.fetch_add(job.0, Ordering::SeqCst);
        done(format!("{} {}", cx.node_id(), cx.node().id()))
    }
    let registrations =
        [&a, &b].on("job", with(Arc::clone(&ledger), book)).each(|one| one.priority(2).named("book"));
    registrations.check()?;
    space.start().await?;
    for node in [&a, &b, &a] {
        let id = node.id();
        assert_eq!(*space.send(node, Job(2)).reply::<String>().await?, format!("{id} {id}"));
    }
    assert_eq!(ledger.load(Ordering::SeqCst), 6);
    assert_eq!((a.handles()[0].priority, b.handles()[0].handler.as_str()), (2, "book"));
    registrations.off();
    assert_eq!(a.handles(), []);
    assert_eq!(space.send(&b, Job(1)).await.unwrap_err().code(), "no-handler");
    let bad = [a.clone(), b.clone()].on("x..y", |_: &Event, _: &Context| ());
    assert_eq!(bad.check().unwrap_err().code(), "bad-pattern");
    assert_eq!(space.problems().len(), 2, "told for each node");
    Ok(())
}

#[tokio::test]
async fn a_group_changes_at_run_time() -> Result<()> {
    let space = Space::memory();
    let (a, b, c) = (space.node("a"), space.node("b"), space.node("c"));
    let group: Group = space.group();
    group.add(&a)?;
    let own = group.on("job", |job: &Event<Job>, cx: &Context| format!("{}{}", cx.node_id(), job.0));
    own.check()?;
    space.start().await?;
    group.add(&b)?;
    group.add(&b)?;
    assert_eq!(b.handles().len(), 1, "added twice, registered once");
    assert_eq!((group.ids(), group.contains("c")), (vec!["a".to_owned(), "b".to_owned()], false));
    let replies = group.send(Job(1)).replies::<String>().await;
    assert_eq!(replies.values().map(|reply| &***reply.as_ref().unwrap()).collect::<Vec<_>>(), ["a1", "b1"]);
    group.remove("a");
    group.remove("a");
    assert!(a.handles().is_empty());
    group.add(&c)?;
    let later = group.on("other", |_: &Event, _: &Context| 1u64);
    // A group is a destination: for nodes, in handlers, and beside others.
    assert_eq!(a.send(&group, Job(2)).replies::<String>().await.into_keys().collect::<Vec<_>>(), ["b", "c"]);
    b.destroy();
    assert_eq!(group.ids(), ["c"], "a destroyed node leaves by itself");
    own.off();
    assert_eq!(c.handles().len(), 1);
    later.off();
    later.off();
    assert!(c.handles().is_empty());
    assert_eq!(group.add(&b).unwrap_err().code(), "misuse");
    assert_eq!(group.add(&Space::memory().node("x")).unwrap_err().code(), "misuse");
    assert_eq!(group.on("x..", |_: &Event, _: &Context| ()).check().unwrap_err().code(), "bad-pattern");
    group.remove("c");
    assert_eq!(group.send(Job(1)).await.unwrap_err().code(), "misuse");
    assert!(group.send(Job(1)).replies::<String>().await.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_group_changes_while_events_flow() -> Result<()> {
    let space = Space::memory();
    let group = space.group();
    group.on("job", |_: &Event<Job>, _: &Context| 1u64).check()?;
    space.start().await?;
    let nodes: Vec<_> = (0..8).map(|index| space.node(format!("n{index}"))).collect();
    group.add(&nodes[0])?;
    let changes = {
        let (group, nodes) = (group.clone(), nodes.clone());
        tokio::spawn(async move {
            for turn in 0..400usize {
                let node = &nodes[1 + turn % 7];
                group.add(node).unwrap();
                tokio::task::yield_now().await;
                group.remove(node.id());
            }
        })
    };
    while !changes.is_finished() {
        let replies = group.send(Job(1)).replies::<u64>().await;
        assert_eq!(**replies["n0"].as_ref().unwrap(), 1);
        for (id, reply) in replies {
            // A node may have left between the look and the delivery; nothing else can happen.
            assert!(
                reply.is_ok() || reply.as_ref().is_err_and(|error| error.code() == "no-handler"),
                "{id} {reply:?}"
            );
        }
        tokio::task::yield_now().await;
    }
    changes.await.unwrap();
    assert_eq!(group.ids(), ["n0"]);
    assert!(nodes[1..].iter().all(|node| node.handles().is_empty()));
    Ok(())
}

#[tokio::test]
async fn two_spaces_never_see_each_other() -> Result<()> {
    let (here, there) = (Space::memory(), Space::memory());
    let list = List::default();
    let mut nodes = Vec::new();
    for (name, space) in [("here", &here), ("there", &there)] {
        let node = space.node("node");
        let told = Arc::clone(&list);
        node.on("job", move |_: &Event<Job>, _: &Context| note(&told, name)).check()?;
        space.start().await?;
        nodes.push(node);
    }
    here.broadcast(Job(1))?;
    assert_eq!(noted(&list), ["here"]);
    there.send("node", Job(1)).await?;
    assert_eq!(noted(&list), ["there"]);
    let error = here.send(&nodes[1], Job(1)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Misuse { .. }), "{error:?}");
    assert!(error.to_string().contains("another space"));
    let replies = here.send([&nodes[0], &nodes[1]], Job(1)).replies::<()>().await;
    assert_eq!(replies.len(), 1, "one id, although two spaces have it");
    // What a handler of one space does in the other begins there anew: no cause, no correlation, no node.
    type Seen = (Option<happen::EventId>, String, Option<Arc<str>>);
    let seen: Arc<Mutex<Option<Seen>>> = Arc::default();
    let shared = Arc::clone(&seen);
    let far = there.node("far");
    far.on("order.placed", move |event: &Event<Placed>, cx: &Context| {
        *shared.lock().unwrap() = Some((event.causation_id(), event.correlation(), cx.sender()));
    })
    .check()?;
    let near = here.node("near");
    near.on(
        "job",
        with(
            (there.clone(), far.clone()),
            async |(there, far): (Space, Node), _: Event<Job>, _: Context| -> Result<()> {
                there.send(&far, Placed { cents: 1 }).await?;
                Ok(())
            },
        ),
    )
    .check()?;
    here.send(&near, Job(1)).correlation("order-1").reply::<()>().await?;
    let (cause, correlation, sender) = seen.lock().unwrap().take().unwrap();
    assert_eq!((cause, sender), (None, None));
    assert_ne!(correlation, "order-1");
    assert!(here.trace("order-1").await?.lines().iter().all(|line| line.event_type != "order.placed"));
    assert!(there.trace("order-1").await.is_err());
    // A node of this space, captured by a handler of the other, sends from its own.
    far.on(
        "job",
        with(near.clone(), async |near: Node, _: Event<Job>, _: Context| -> Result<()> {
            near.send("node", Job(1)).await?;
            Ok(())
        }),
    )
    .check()?;
    noted(&list);
    there.send(&far, Job(1)).reply::<()>().await?;
    assert_eq!(noted(&list), ["here"]);
    here.stop().await?;
    there.send("node", Job(1)).await?;
    assert_eq!(noted(&list), ["there"]);
    Ok(())
}

#[tokio::test]
async fn payloads_of_one_name_are_converted_and_others_are_errors() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    node.on("job", |job: &Event<Job>, _: &Context| job.0).check()?;
    node.on("order.placed", |event: &Event, _: &Context| event.get("cents").cloned().unwrap_or_default())
        .check()?;
    node.on("mixed", |job: &Event<Job>, _: &Context| job.0).check()?;
    space.start().await?;
    // Typed to dynamic, dynamic to typed, another Rust type of the same name.
    assert_eq!(*space.send(&node, Placed { cents: 5 }).reply::<serde_json::Value>().await?, json!(5));
    assert_eq!(*space.send(&node, Event::new("job", json!(6))).reply::<u64>().await?, 6);
    assert_eq!(*space.send(&node, LooseJob(7)).reply::<u64>().await?, 7);
    let shape = space.send(&node, Event::new("job", json!({ "a": 1 }))).reply::<u64>().await.unwrap_err();
    assert!(matches!(shape.kind(), ErrorKind::Undecodable { wanted } if wanted == "job"), "{shape:?}");
    let other = space.send(&node, Event::new("mixed", json!("text"))).reply::<u64>().await.unwrap_err();
    match other.kind() {
        ErrorKind::WrongPayload { wanted, found } => assert_eq!((&**wanted, &**found), ("job", "mixed")),
        kind => panic!("{kind:?}"),
    }
    assert!(other.source().is_some(), "says what the decoder met");
    Ok(())
}

#[tokio::test]
async fn steps_by_name_and_loops_are_checked() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node").steps_max(50);
    async fn last(_: Event<Job>, cx: Context) -> Result<Step> {
        done(cx.take::<u64>("n")?)
    }
    node.on("job", |job: &Event<Job>, cx: &Context| -> Result<Step> {
        cx.put("n", job.0)?;
        match job.0 {
            0 => goto("nowhere"),
            1 => happen::again(),
            _ => goto("the end"),
        }
    })
    .named("first")
    .step_as("the end", last)
    .check()?;
    space.start().await?;
    assert_eq!(*space.send(&node, Job(9)).reply::<u64>().await?, 9);
    let error = space.send(&node, Job(0)).reply::<u64>().await.unwrap_err();
    match error.kind() {
        ErrorKind::UnknownStep { step, known } => {
            assert_eq!((&**step, &known[..]), ("nowhere", &["the end".to_owned(), "first".to_owned()][..]))
        }
        kind => panic!("{kind:?}"),
    }
    let error = space.send(&node, Job(1)).reply::<u64>().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Runaway { limit: "steps_max", max: 50, .. }), "{error:?}");
    assert_eq!(error.node_id(), Some("node"));
    Ok(())
}

#[tokio::test]
async fn dropping_the_last_handle_frees_everything() -> Result<()> {
    let held = Arc::new(());
    let space = Space::memory();
    let node = space.node("node");
    let (mine, other) = (Arc::clone(&held), node.clone());
    node.on("job", move |_: &Event<Job>, _: &Context| drop((Arc::clone(&mine), other.clone()))).check()?;
    let group = space.group();
    let mine = Arc::clone(&held);
    group.on("job", move |_: &Event<Job>, _: &Context| drop(Arc::clone(&mine))).check()?;
    group.add(&node)?;
    space.start().await?;
    space.send(&node, Job(1)).await?;
    drop((space, group));
    assert_eq!(node.handles(), []);
    drop(node);
    assert_eq!(Arc::strong_count(&held), 1);
    Ok(())
}
