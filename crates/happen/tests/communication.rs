//! Sending and answering: every way to send, the rule for the reply, deadlines, what a failure tells whom.
#![expect(clippy::unwrap_used, reason = "a failed test may end by any panic")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen::{
    Config, Context, Dynamic, Error, ErrorKind, Event, EventType, Failure, Nodes, Result, Space, Step, done,
    with,
};
use happen_testing::Simulator;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("job")]
struct Job(u64);

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.placed")]
struct Placed {
    cents: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Accepted {
    id: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Rejected {
    reason: String,
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn simulate<F: Future<Output = Result<()>>>(program: impl FnOnce(Space) -> F) {
    let sim = Simulator::new(23);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    sim.run(program(space)).unwrap();
}

type List = Arc<Mutex<Vec<String>>>;

fn note(list: &List, text: impl Into<String>) {
    list.lock().unwrap().push(text.into());
}

fn noted(list: &List) -> Vec<String> {
    std::mem::take(&mut list.lock().unwrap())
}

#[tokio::test]
async fn a_broadcast_reaches_all_who_listen_the_sender_included() -> Result<()> {
    let space = Space::memory();
    let list = List::default();
    let nodes = ["a", "b", "c", "deaf"].map(|id| space.node(id));
    let told = Arc::clone(&list);
    nodes[..3]
        .on("order.*", move |_: &Event<Placed>, cx: &Context| {
            note(&told, format!("{} from {:?} {}", cx.node_id(), cx.sender().as_deref(), cx.expects_reply()));
        })
        .check()?;
    nodes[3].on("payment.*", |_: &Event, _: &Context| -> () { panic!("not asked") }).check()?;
    nodes[0].on("job", |_: &Event<Job>, cx: &Context| cx.broadcast(Placed { cents: 2 }).map(drop)).check()?;
    space.start().await?;
    nodes[0].broadcast(Placed { cents: 1 })?;
    assert_eq!(noted(&list), ["a", "b", "c"].map(|id| format!("{id} from Some(\"a\") false")));
    space.broadcast(Placed { cents: 1 })?;
    assert_eq!(noted(&list), ["a", "b", "c"].map(|id| format!("{id} from None false")));
    // From inside a handler of the sender too.
    space.send(&nodes[0], Job(1)).reply::<()>().await?;
    assert_eq!(noted(&list).len(), 3);
    let nobody = space.broadcast(Job(1));
    assert!(nobody.is_ok());
    assert!(space.dead_letters().is_empty(), "a broadcast that nobody wants is nobody's loss");
    Ok(())
}

#[tokio::test]
async fn a_sender_may_wait_hand_over_or_forget() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    let seen: List = List::default();
    let told = Arc::clone(&seen);
    node.on(
        "job",
        with(told, async |told: List, job: Event<Job>, cx: Context| -> Result<Step> {
            note(&told, format!("{} {:?} {}", job.0, cx.sender().as_deref(), cx.expects_reply()));
            if job.0 == 9 {
                tokio::task::yield_now().await;
            }
            done(job.0)
        }),
    )
    .check()?;
    space.start().await?;
    let other = space.node("other");
    assert_eq!(*other.send(&node, Job(1)).reply::<u64>().await?, 1);
    let sent = other.send(&node, Job(2)).await?;
    assert!(space.trace(sent.event_id()).await?.lines()[0].asked_for);
    space.send(&node, Job(3)).forget();
    // Nothing leaves before something is asked for.
    drop(space.send(&node, Job(4)));
    drop(space.send(&node, Job(5)).reply::<u64>());
    for job in [6, 9] {
        let (to, from) = tokio::sync::oneshot::channel();
        space.send("node", Job(job)).reply_with::<u64>(|reply| drop(to.send(reply)));
        assert_eq!(*from.await.unwrap()?, job);
    }
    let (to, from) = tokio::sync::oneshot::channel();
    space.send("nobody", Job(1)).reply_with::<u64>(|reply| drop(to.send(reply)));
    assert_eq!(from.await.unwrap().unwrap_err().code(), "no-such-node");
    assert_eq!(
        noted(&seen),
        ["1 Some(\"other\") true", "2 Some(\"other\") false", "3 None false", "6 None true", "9 None true"]
    );
    Ok(())
}

#[tokio::test]
async fn replies_are_typed_and_another_type_is_not_lost() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    node.on("job", |job: &Event<Job>, _: &Context| -> Result<Step> {
        match job.0 {
            0 => done(Rejected { reason: "nothing to do".into() }),
            id => done(Accepted { id }),
        }
    })
    .check()?;
    node.on("silent", |_: &Event, _: &Context| ()).check()?;
    node.on("fallible", |_: &Event, _: &Context| -> Result<Accepted, std::num::ParseIntError> {
        Ok(Accepted { id: "12".parse()? })
    })
    .check()?;
    space.start().await?;
    assert_eq!(space.send(&node, Job(3)).reply::<Accepted>().await?.into_inner(), Accepted { id: 3 });
    let either = space.send(&node, Job(0)).reply::<Result<Accepted, Rejected>>().await?;
    assert_eq!(either.into_inner().unwrap_err().reason, "nothing to do");
    let mut error = space.send(&node, Job(0)).reply::<Accepted>().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OtherReply { found, .. } if found == "rejected"), "{error:?}");
    assert!(error.event_id().is_some());
    assert_eq!(error.take_value().unwrap().take::<Rejected>()?.reason, "nothing to do");
    assert_eq!(space.send(&node, Job(3)).reply::<Dynamic>().await?.get("id"), Some(&json!(3)));
    let silent = || Event::new("silent", json!(null));
    space.send(&node, silent()).reply::<()>().await?;
    let error = space.send(&node, silent()).reply::<Accepted>().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OtherReply { found, .. } if found == "nothing"));
    assert!(space.send(&node, Job(3)).reply::<()>().await.unwrap_err().value().is_some());
    let fallible = Event::new("fallible", json!(null));
    assert_eq!(space.send(&node, fallible).reply::<Accepted>().await?.id, 12);
    Ok(())
}

#[test]
fn the_reply_is_the_first_value_by_priority_then_by_order() {
    simulate(|space| async move {
        let node = space.node("node");
        space.start().await?;
        let late = async |_: Event<Job>, cx: Context| {
            cx.sleep(ms(100)).await;
            "late".to_owned()
        };
        let silent = |_: &Event<Job>, _: &Context| ();
        let fails = |_: &Event<Job>, _: &Context| -> Result<()> { Err(Error::msg("fails")) };
        let first = |_: &Event<Job>, _: &Context| "first".to_owned();
        let second = |_: &Event<Job>, _: &Context| "second".to_owned();
        let ask = || space.send(&node, Job(1)).reply::<String>();
        let off =
            [node.on("job", silent), node.on("job", fails), node.on("job", first), node.on("job", second)];
        assert_eq!(
            *ask().await?,
            "first",
            "a handler without a value and one that fails leave it to the others"
        );
        let urgent = node.on("job", second).priority(1);
        assert_eq!(*ask().await?, "second");
        urgent.off();
        // One of higher priority that is not ready yet is waited for.
        let urgent = node.on("job", late).priority(1);
        let before = space.env().monotonic();
        assert_eq!(*ask().await?, "late");
        assert_eq!(space.env().monotonic() - before, ms(100));
        urgent.off();
        // One of lower priority is not.
        let lazy = node.on("job", late).priority(-1);
        let before = space.env().monotonic();
        assert_eq!(*ask().await?, "first");
        assert_eq!(space.env().monotonic(), before);
        space.settled(ms(200)).await?;
        lazy.off();
        off[2].off();
        off[3].off();
        assert_eq!(ask().await.unwrap_err().to_string(), "fails", "without any value, the failure");
        off[1].off();
        space.send(&node, Job(1)).reply::<()>().await?;
        Ok(())
    });
}

#[test]
fn a_deadline_travels_and_nobody_starts_after_it() {
    simulate(|space| async move {
        let (front, back) = (space.node("front"), space.node("back").serial());
        let started = Arc::new(AtomicU64::new(0));
        back.on(
            "job",
            with(Arc::clone(&started), async |started: Arc<AtomicU64>, job: Event<Job>, cx: Context| {
                started.fetch_add(1, Ordering::SeqCst);
                assert!(cx.time_left().is_none_or(|left| left <= ms(100)), "inherited");
                cx.sleep(ms(job.0)).await;
                job.0
            }),
        )
        .check()?;
        front
            .on("job", async |job: Event<Job>, cx: Context| -> Result<Step> {
                assert_eq!(cx.time_left(), Some(ms(100)));
                done(
                    cx.send("back", job.payload().clone())
                        .within(Duration::from_secs(9))
                        .reply::<u64>()
                        .await?
                        .into_inner(),
                )
            })
            .check()?;
        space.start().await?;
        assert_eq!(*space.send(&front, Job(90)).reply::<u64>().within(ms(100)).await?, 90);
        let error = space.send(&front, Job(110)).within(ms(100)).reply::<u64>().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TimedOut { after } if *after == ms(100)), "{error:?}");
        assert!(error.event_id().is_some() && error.is_retryable());
        space.settled(Duration::from_secs(1)).await?;
        // Behind a long one in the queue the deadline passes; the event is then not started at all.
        started.store(0, Ordering::SeqCst);
        space.send(&back, Job(200)).await?;
        let error = space.send(&back, Job(1)).reply::<u64>().within(ms(100)).await.unwrap_err();
        assert_eq!(error.code(), "timed-out");
        space.settled(Duration::from_secs(1)).await?;
        assert_eq!(started.load(Ordering::SeqCst), 1);
        Ok(())
    });
}

#[test]
fn a_request_that_timed_out_is_heard_of_as_an_error_event() {
    simulate(|space| async move {
        let node = space.node("node");
        node.on("job", async |_: Event<Job>, _: Context| std::future::pending::<()>().await).check()?;
        let list = List::default();
        let told = Arc::clone(&list);
        space
            .on("job.error", move |failure: &Event<Failure>, _: &Context| note(&told, failure.code.clone()))
            .check()?;
        space.start().await?;
        let error = space.send(&node, Job(1)).reply::<()>().within(ms(10)).await.unwrap_err();
        assert_eq!(error.code(), "timed-out");
        space.settled(ms(10)).await?;
        assert_eq!(noted(&list), ["cancelled"], "the flow was told to stop, and its listeners heard of it");
        assert!(space.dead_letters().is_empty());
        Ok(())
    });
}

#[test]
fn whoever_stops_asking_stops_the_flow_whatever_else_handles_it() {
    for (guarded, twice) in [(false, false), (true, false), (true, true)] {
        simulate(|space| async move {
            let node = space.node("node");
            for _ in 0..if twice { 2 } else { 1 } {
                let on = node.on("job", async |_: Event<Job>, _: Context| std::future::pending::<()>().await);
                let on = if guarded { on.guard(|_| true) } else { on };
                on.check()?;
            }
            space.start().await?;
            space.send(&node, Job(1)).reply::<()>().within(ms(10)).await.unwrap_err();
            space.env().sleep(ms(1)).await;
            assert_eq!(node.flows(), [], "guarded {guarded}, twice {twice}");
            Ok(())
        });
    }
}

#[tokio::test]
async fn the_runtimes_own_events_reach_only_who_names_them() -> Result<()> {
    let space = Space::memory();
    let list = List::default();
    let hear = |name: &'static str| {
        let list = Arc::clone(&list);
        move |event: &Event, _: &Context| note(&list, format!("{name} {}", event.event_type()))
    };
    let node = space.node("node");
    node.on("**", hear("all")).check()?;
    node.on("order.**", hear("orders")).check()?;
    node.on("order.*.error", hear("order errors")).check()?;
    node.on("order.placed", |_: &Event<Placed>, _: &Context| -> () { panic!("boom") }).check()?;
    space.on("**.error", hear("errors")).check()?;
    space.on("node.*", hear("nodes")).check()?;
    space.start().await?;
    space.send(&node, Placed { cents: 1 }).await?;
    assert_eq!(
        noted(&list),
        [
            "all order.placed",
            "orders order.placed",
            "order errors order.placed.error",
            "errors order.placed.error"
        ]
    );
    space.node("fresh");
    assert_eq!(noted(&list), ["nodes node.started"]);
    Ok(())
}

#[tokio::test]
async fn patterns_of_interaction_need_nothing_more() -> Result<()> {
    // Observer: any number listens. Mediator: one node knows the others. Strategy: the destination is a value.
    let space = Space::memory();
    let list = List::default();
    for id in ["cheap", "fast"] {
        space.node(id).on("ship", |_: &Event, cx: &Context| cx.node_id().to_owned()).check()?;
    }
    let mediator = space.node("mediator");
    mediator
        .on("job", async |job: Event<Job>, cx: Context| -> Result<Step> {
            let strategy = if job.0 > 10 { "fast" } else { "cheap" };
            let by = cx.send(strategy, Event::new("ship", json!({}))).reply::<String>().await?;
            cx.broadcast(Event::new("shipped", json!({ "by": *by })))?;
            done(by.into_inner())
        })
        .check()?;
    for observer in [space.node("o1"), space.node("o2")] {
        let told = Arc::clone(&list);
        observer
            .on("shipped", move |event: &Event, cx: &Context| {
                note(&told, format!("{} {} via {:?}", cx.node_id(), event.get("by").unwrap(), cx.path()));
            })
            .check()?;
    }
    space.start().await?;
    assert_eq!(*space.send("mediator", Job(11)).reply::<String>().await?, "fast");
    assert_eq!(noted(&list), ["o1 \"fast\" via [\"mediator\"]", "o2 \"fast\" via [\"mediator\"]"]);
    assert_eq!(*space.send("mediator", Job(1)).reply::<String>().await?, "cheap");
    Ok(())
}

#[tokio::test]
async fn a_fan_out_gives_one_result_for_each_node() -> Result<()> {
    let space = Space::memory();
    let ids = ["good", "bad", "panics", "deaf", "stopped", "last"];
    let nodes = ids.map(|id| space.node(id));
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    [&nodes[0], &nodes[4], &nodes[5]]
        .on("job", move |job: &Event<Job>, _: &Context| {
            count.fetch_add(1, Ordering::SeqCst);
            job.0
        })
        .check()?;
    nodes[1].on("job", |_: &Event<Job>, _: &Context| -> Result<u64> { Err(Error::msg("no")) }).check()?;
    nodes[2].on("job", |_: &Event<Job>, _: &Context| -> u64 { panic!("boom") }).check()?;
    space.start().await?;
    nodes[4].stop();
    let sender = space.node("sender");
    let mut to: Vec<&str> = ids.to_vec();
    to.push("nobody");
    let replies = sender.send(to, Job(7)).replies::<u64>().await;
    let codes: Vec<_> = replies
        .iter()
        .map(|(id, reply)| {
            (
                id.as_str(),
                reply.as_ref().map_or_else(Error::code, |reply| if **reply == 7 { "7" } else { "?" }),
            )
        })
        .collect();
    assert_eq!(
        codes,
        [
            ("bad", "failed"),
            ("deaf", "no-handler"),
            ("good", "7"),
            ("last", "7"),
            ("nobody", "no-such-node"),
            ("panics", "panicked"),
            ("stopped", "closed")
        ]
    );
    let events: std::collections::BTreeSet<_> = replies
        .values()
        .map(|reply| match reply {
            Ok(reply) => reply.event_id(),
            Err(error) => error.event_id().unwrap(),
        })
        .collect();
    assert_eq!(events.len(), 7, "each node's branch has an event of its own");
    // One that does not take the event keeps no other from getting it.
    seen.store(0, Ordering::SeqCst);
    let error = sender.send(&nodes[..], Job(1)).await.unwrap_err();
    assert_eq!((error.code(), error.node_id()), ("no-handler", Some("deaf")));
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    assert_eq!(nodes[..].send(Job(1)).await.unwrap_err().code(), "no-handler");
    assert_eq!(nodes[..].send(Job(7)).within(Duration::from_secs(9)).replies::<u64>().await.len(), 6);
    assert_eq!(nodes[..0].send(Job(1)).await.unwrap_err().code(), "misuse");
    assert_eq!(
        sender.send([&nodes[0], &nodes[5]], Job(1)).reply::<u64>().await.unwrap_err().code(),
        "misuse"
    );
    Ok(())
}

#[test]
fn the_branches_of_a_fan_out_run_side_by_side() {
    simulate(|space| async move {
        let nodes = ["a", "b", "c"].map(|id| space.node(id));
        nodes
            .on("job", async |job: Event<Job>, cx: Context| -> Result<Step> {
                cx.sleep(ms(job.0)).await;
                cx.broadcast(Placed { cents: 1 })?;
                done(cx.node_id().to_owned())
            })
            .check()?;
        space.start().await?;
        let before = space.env().monotonic();
        let replies = nodes.send(Job(50)).correlation("fan").replies::<String>().await;
        assert_eq!(space.env().monotonic() - before, ms(50));
        for (id, reply) in replies {
            assert_eq!(**reply.as_ref().unwrap(), id);
            let trace = space.trace(reply?.event_id()).await?;
            assert_eq!(trace.lines().len(), 2, "its own event and what followed from it: {trace}");
        }
        assert_eq!(space.trace("fan").await?.lines().len(), 6);
        Ok(())
    });
}

#[tokio::test]
async fn errors_cross_nodes_with_their_origin_and_their_causes() -> Result<()> {
    #[derive(Debug)]
    struct Declined(u32);
    impl std::fmt::Display for Declined {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "card {} was declined", self.0)
        }
    }
    impl std::error::Error for Declined {}
    let space = Space::memory();
    let (front, middle, back) = (space.node("front"), space.node("middle"), space.node("back"));
    back.on("job", |_: &Event<Job>, _: &Context| -> Result<u64> {
        Err(Error::from(Declined(7)).context("charging"))
    })
    .check()?;
    middle
        .on("job", async |job: Event<Job>, cx: Context| -> Result<Step> {
            done(cx.send("back", job.payload().clone()).reply::<u64>().await?.into_inner())
        })
        .check()?;
    front
        .on("job", async |job: Event<Job>, cx: Context| -> Result<Step> {
            let paid = cx.send("middle", job.payload().clone()).reply::<u64>().await;
            done(paid.map_err(|error| error.context("placing the order"))?.into_inner())
        })
        .check()?;
    type Heard = (Event<Failure>, Vec<happen::EventId>);
    let failures: Arc<Mutex<Vec<Heard>>> = Arc::default();
    let heard = Arc::clone(&failures);
    space
        .on("*.error", move |failure: &Event<Failure>, _: &Context| {
            heard.lock().unwrap().push((failure.clone(), failure.causes().collect()));
        })
        .check()?;
    space.start().await?;
    let error = space.send(&front, Job(1)).correlation("order-9").reply::<u64>().await.unwrap_err();
    assert_eq!((error.code(), error.node_id()), ("failed", Some("back")));
    assert_eq!(error.to_string(), "placing the order: charging: card 7 was declined");
    assert_eq!(error.context_lines().collect::<Vec<_>>(), ["charging", "placing the order"]);
    assert_eq!(error.find_cause::<Declined>().map(|declined| declined.0), Some(7));
    let heard = failures.lock().unwrap().clone();
    let by: Vec<_> =
        heard.iter().map(|(failure, _)| (failure.node.as_str(), failure.causes.concat())).collect();
    assert_eq!(by[0], ("back", "charging: card 7 was declined".to_owned()));
    assert_eq!(by[1].0, "middle");
    assert_eq!(by[2], ("front", "placing the order: charging: card 7 was declined".to_owned()));
    // The event the error belongs to is the one the origin failed at; each error event is caused by its own.
    assert_eq!(error.event_id(), Some(heard[0].0.event));
    for (failure, causes) in &heard {
        assert_eq!(causes[..], [failure.event]);
        assert_eq!(failure.correlation(), "order-9");
    }
    let why = space.why(heard[0].0.id()).await?;
    assert_eq!(why.len(), 3 + why.contains(&heard[0].0.id()) as usize, "up to the root: {why:?}");
    let trace = space.trace("order-9").await?;
    let failed = trace.lines().iter().filter(|line| {
        line.handled.iter().any(|handled| handled.outcome == happen::TraceOutcome::Failed("failed"))
    });
    assert_eq!(failed.count(), 3, "{trace}");
    Ok(())
}

#[tokio::test]
async fn dead_letters_are_whole_and_can_be_driven_again() -> Result<()> {
    let space = Space::memory();
    let late = space.node("late");
    let list = List::default();
    space.start().await?;
    space.send(&late, Job(1)).correlation("order-1").metadata("tenant", "acme").forget();
    space.send("nobody", Job(2)).correlation("order-2").forget();
    space.send(&late, [Job(3), Job(4)]).forget();
    let letters = space.dead_letters();
    let seen: Vec<_> =
        letters.iter().map(|letter| (letter.event_type(), letter.node.as_str(), letter.code)).collect();
    assert_eq!(
        seen,
        [("job", "late", "no-handler"), ("job", "nobody", "no-such-node"), ("job", "late", "no-handler")]
    );
    assert!(letters[0].causes[0].contains("no handler"), "{:?}", letters[0].causes);
    // As long as nothing changed, a letter comes back.
    let error = space.redrive(letters[0].event_id()).await.unwrap_err();
    assert_eq!((error.code(), error.event_id()), ("no-handler", Some(letters[0].event_id())));
    assert_eq!(space.dead_letters().len(), 3);
    let told = Arc::clone(&list);
    [&late, &space.node("nobody")]
        .on("job", move |job: &Event<Job>, cx: &Context| {
            let tenant = job.metadata("tenant").cloned().unwrap_or_default();
            note(&told, format!("{} {} {} {tenant}", cx.node_id(), job.0, job.id()));
        })
        .check()?;
    for letter in &letters {
        space.redrive(letter.event_id()).await?;
    }
    let ids: Vec<_> = letters.iter().map(happen::DeadLetter::event_id).collect();
    let heard = noted(&list);
    assert_eq!(heard[0], format!("late 1 {} \"acme\"", ids[0]));
    assert_eq!(heard[1], format!("nobody 2 {} null", ids[1]));
    assert!(
        heard[2].starts_with(&format!("late 3 {}", ids[2])) && heard[3].starts_with("late 4 "),
        "{heard:?}"
    );
    assert!(space.dead_letters().is_empty());
    assert_eq!(space.redrive(ids[0]).await.unwrap_err().code(), "misuse");
    let trace = space.trace("order-1").await?;
    assert_eq!(trace.lines()[0].event, ids[0]);
    Ok(())
}

#[tokio::test]
async fn an_error_while_handling_an_error_becomes_a_dead_letter() -> Result<()> {
    let space = Space::memory();
    let node = space.node("node");
    node.on("job", |_: &Event<Job>, _: &Context| -> () { panic!("first") }).check()?;
    node.on("job.error", |_: &Event<Failure>, _: &Context| -> () { panic!("second") }).check()?;
    space.start().await?;
    space.send(&node, Job(1)).await?;
    let letters = space.dead_letters();
    assert_eq!((letters.len(), letters[0].event_type(), letters[0].code), (1, "job.error", "panicked"));
    Ok(())
}

#[test]
fn bad_input_is_a_typed_error_with_its_event_and_harms_nobody_else() {
    simulate(|space| async move {
        let node = space.node("node");
        node.on("job", |job: &Event<Job>, _: &Context| -> u64 {
            assert!(job.0 != 13, "unlucky");
            job.0
        })
        .check()?;
        node.on("mixed", |job: &Event<Job>, _: &Context| job.0).check()?;
        node.on("never", async |_: Event, _: Context| std::future::pending::<()>().await).check()?;
        node.on("lost", |_: &Event, _: &Context| -> Result<Step> { happen::goto("nowhere") }).check()?;
        node.on("loop", |_: &Event, _: &Context| -> Result<Step> { happen::again() }).check()?;
        let actor = space.node("actor").serial();
        actor
            .on("job", async |job: Event<Job>, cx: Context| -> Result<Step> {
                done(cx.send("actor", job.payload().clone()).reply::<u64>().await?.into_inner())
            })
            .check()?;
        let full = space.node("full").serial().queue_limit(1);
        full.on("job", async |job: Event<Job>, cx: Context| {
            cx.sleep(Duration::from_secs(1)).await;
            job.0
        })
        .check()?;
        let closed = space.node("closed");
        closed.on("job", |job: &Event<Job>, _: &Context| job.0).check()?;
        let picky = space.node("picky").accept_from(["gate"]);
        picky.on("job", |job: &Event<Job>, _: &Context| job.0).check()?;
        space.start().await?;
        closed.stop();
        let rubbish = || Dynamic::from_bytes(EventType::new("job"), vec![0xc1, 0xff].into());
        space.send(&full, Job(1)).await?;
        space.send(&full, Job(2)).await?;
        let tries = [
            ("no-such-node", space.send("nobody", Job(1)).reply::<u64>().await),
            ("no-handler", space.send(&node, Placed { cents: 1 }).reply().await),
            ("wrong-payload", space.send(&node, Event::new("mixed", json!("text"))).reply().await),
            ("undecodable", space.send(&node, rubbish()).reply().await),
            ("undecodable", space.send(&node, Event::new("job", json!([1, 2]))).reply().await),
            ("unknown-step", space.send(&node, Event::new("lost", json!(null))).reply().await),
            ("runaway", space.send(&node, Event::new("loop", json!(null))).reply().await),
            ("panicked", space.send(&node, Job(13)).reply().await),
            ("timed-out", space.send(&node, Event::new("never", json!(null))).within(ms(5)).reply().await),
            ("busy", space.send(&full, Job(3)).reply().await),
            ("closed", space.send(&closed, Job(1)).reply().await),
            ("refused", space.send(&picky, Job(1)).reply().await),
            ("deadlock", space.send(&actor, Job(1)).reply().await),
        ];
        let mut events = std::collections::BTreeSet::new();
        for (code, result) in tries {
            let error = result.unwrap_err();
            assert_eq!(error.code(), code, "{error:?}");
            assert!(
                events.insert(error.event_id().unwrap_or_else(|| panic!("{code} has no event"))),
                "{code}"
            );
            assert_eq!(*space.send(&node, Job(4)).reply::<u64>().await?, 4, "after {code}");
        }
        space.settled(Duration::from_secs(10)).await?;
        assert_eq!(*space.send(&full, Job(5)).reply::<u64>().await?, 5);
        assert!(space.dead_letters().is_empty(), "whoever asked was told, so no letter is left");
        Ok(())
    });
}

#[tokio::test]
async fn rubbish_in_a_broadcast_is_a_failure_of_its_listener_alone() -> Result<()> {
    let space = Space::memory();
    let (typed, open) = (space.node("typed"), space.node("open"));
    let list = List::default();
    typed.on("job", |_: &Event<Job>, _: &Context| ()).check()?;
    let told = Arc::clone(&list);
    open.on("job", move |event: &Event, _: &Context| {
        note(&told, event.json().map_or_else(|error| error.code().to_owned(), ToString::to_string));
    })
    .check()?;
    let told = Arc::clone(&list);
    space
        .on("*.error", move |failure: &Event<Failure>, _: &Context| {
            note(&told, format!("{} {}", failure.node, failure.code))
        })
        .check()?;
    space.start().await?;
    space.broadcast(Dynamic::from_bytes(EventType::new("job"), vec![0xc1].into()))?;
    assert_eq!(noted(&list), ["typed undecodable", "undecodable"]);
    Ok(())
}

#[test]
fn a_serial_circle_is_told_and_the_nodes_go_on() {
    simulate(|space| async move {
        let (a, b) = (space.node("a").serial(), space.node("b").serial());
        for (node, next) in [(&a, "b"), (&b, "a")] {
            node.on(
                "job",
                with(next, async |next: &'static str, job: Event<Job>, cx: Context| -> Result<Step> {
                    match job.0 {
                        0 => done(0u64),
                        left => done(cx.send(next, Job(left - 1)).reply::<u64>().await?.into_inner() + 1),
                    }
                }),
            )
            .check()?;
        }
        space.start().await?;
        assert_eq!(*space.send(&a, Job(1)).reply::<u64>().await?, 1);
        let error = space.send(&a, Job(2)).reply::<u64>().await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Deadlock { cycle } if cycle == &["a", "b", "a"]),
            "{error:?}"
        );
        assert_eq!(*space.send(&b, Job(1)).reply::<u64>().await?, 1);
        Ok(())
    });
}
