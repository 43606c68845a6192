//! What people ask of a space by hand, while it runs and while it does not: the same requests, in virtual time. How they
//! reach another process is in `control_channel.rs`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use happen::control::{
    self, Answer, Became, FlowBecame, FlowsOf, Histories, Letters, LettersByHand, Mode, Phase, PruneBefore,
    Redrive, Request, SendEvent, SetState, Wait,
};
use happen::journal::{DeadFlow, FlowFilter, FlowUnderWay, Standing, StepEnd};
use happen::store::{MemoryStore, Read, Select, Store};
use happen::{Config, Context, Error, ErrorKind, Event, EventId, Space, UnfitFlows, limits, millis, secs};
use happen_testing::{Dies, FaultyStore, Simulator};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("ledger", version = 1)]
struct Ledger {
    count: u64,
}

/// A disk and the simulator that the processes over it run in.
struct World {
    sim: Simulator,
    disk: Arc<dyn Store>,
}

impl World {
    fn new(seed: u64) -> Self {
        let sim = Simulator::new(seed);
        let disk = Arc::new(MemoryStore::new(sim.env()));
        Self { sim, disk }
    }

    fn space(&self) -> Space {
        Space::with_store(Config::default(), self.sim.env(), Arc::clone(&self.disk)).unwrap()
    }

    /// A mill in a running space.
    async fn mill(&self, broken: &Arc<AtomicU32>) -> Space {
        let space = self.space();
        mill(&space, broken);
        space.start().await.unwrap();
        space
    }

    /// Carries out a request while no process is there.
    async fn stopped(&self, request: Request) -> happen::Result<Answer> {
        control::carry_out(&self.disk, &self.sim.env(), request).await
    }
}

/// A node that grinds numbers and is broken so many times more, and one that waits for somebody.
fn mill(space: &Space, broken: &Arc<AtomicU32>) {
    let broken = Arc::clone(broken);
    space.node("mill").attempts(2, secs(3_600)).on("grain", move |grain: &Event, cx: &Context| {
        if broken.load(Ordering::SeqCst) > 0 {
            broken.fetch_sub(1, Ordering::SeqCst);
            return Err(Error::msg("broken"));
        }
        let _ = grain;
        cx.state::<Ledger>().set(|ledger| Ledger { count: ledger.count + 1 })?;
        Ok(json!({ "ground": grain.json()?.clone() }))
    });
    space.node("office").on("ask", |_: Event, cx: Context| async move {
        cx.wait_for("answer", secs(7 * 24 * 3_600)).await?;
        Ok::<_, Error>(())
    });
    space.node("bed").on("nap", |_: Event, cx: Context| async move { cx.sleep(secs(3_600)).await });
}

fn count(space: &Space) -> u64 {
    space.find("mill").unwrap().state::<Ledger>().get(|ledger| ledger.count)
}

fn grain(payload: Json) -> SendEvent {
    let (node, event_type) = ("mill".into(), "grain".into());
    SendEvent { node, event_type, payload, correlation: Some("harvest".into()), wait: Wait::Taken }
}

fn of(event: EventId) -> FlowsOf {
    FlowsOf { event, node: None }
}

fn letter(event: EventId) -> Letters {
    Letters { event: Some(event), ..Letters::default() }
}

fn again(letters: Letters) -> Request {
    Request::Redrive(Redrive { letters, payload: None })
}

async fn flows(space: &Space) -> Vec<FlowUnderWay> {
    space.journal().flows(&FlowFilter::new()).await.unwrap().flows
}

async fn dead(space: &Space) -> Vec<DeadFlow> {
    space.journal().dead(&FlowFilter::new()).await.unwrap().flows
}

#[track_caller]
fn letters(answer: Answer) -> LettersByHand {
    let Answer::Letters(letters) = answer else { panic!("{answer:?}") };
    letters
}

#[track_caller]
fn became(answer: Answer) -> Vec<FlowBecame> {
    let Answer::Flows(flows) = answer else { panic!("{answer:?}") };
    flows.into_iter().map(|flow| flow.became).collect()
}

async fn sent(space: &Space, node: &str, event_type: &str) -> EventId {
    let sent = space.send(node, Event::new(event_type, json!(1))).await.unwrap();
    space.env().sleep(secs(1)).await;
    sent.event_id()
}

async fn whole(space: &Space) {
    let verified = space.journal().verify().await.unwrap();
    assert!(verified.is_whole(), "{verified:?}");
}

#[test]
fn an_event_is_sent_by_hand_and_answered() {
    let world = World::new(1);
    world.sim.run(async {
        let space = world.mill(&Arc::default()).await;
        let ask = SendEvent { wait: Wait::Reply, ..grain(json!([1])) };
        let Answer::Sent(sent) = space.control(Request::Send(ask)).await.unwrap() else { panic!("no event") };
        let Became::Replied { payload, .. } = sent.became else { panic!("{sent:?}") };
        assert_eq!(payload, json!({ "ground": [1] }));
        let stored = space.journal().event(sent.event).await.unwrap().unwrap();
        assert_eq!(stored.correlation, "harvest");
        let Answer::Sent(sent) = space.control(Request::Send(grain(json!(2)))).await.unwrap() else {
            panic!("no event")
        };
        assert_eq!(sent.became, Became::Taken);
        space.settled(secs(1)).await.unwrap();
        assert_eq!(count(&space), 2);
        for (node, event_type, code) in
            [("nobody", "grain", "no-such-node"), ("mill", "sand", "no-handler"), ("", "grain", "misuse")]
        {
            let send = SendEvent { node: node.into(), event_type: event_type.into(), ..grain(Json::Null) };
            assert_eq!(
                space.control(Request::Send(send)).await.unwrap_err().code(),
                code,
                "{node} {event_type}"
            );
        }
        // One that is never answered is not waited for without end.
        let ask = SendEvent { node: "office".into(), event_type: "ask".into(), ..grain(Json::Null) };
        let ask = SendEvent { wait: Wait::Reply, ..ask };
        let late = space.control(Request::Send(ask)).await.unwrap_err();
        assert_eq!(*late.kind(), ErrorKind::TimedOut { after: millis(limits::CONTROL_REPLY_MS) });
        assert_eq!(flows(&space).await.len(), 1, "it is still waited for");
        space.stop().await.unwrap();
    });
}

#[test]
fn flows_are_cancelled_while_they_wait_sleep_or_are_to_be_tried_again() {
    let world = World::new(2);
    world.sim.run(async {
        let space = world.mill(&Arc::new(9.into())).await;
        for (node, event_type) in [("office", "ask"), ("bed", "nap"), ("mill", "grain")] {
            let event = sent(&space, node, event_type).await;
            assert!(!matches!(flows(&space).await[0].standing, Standing::Ready), "{node} runs");
            let elsewhere = FlowsOf { node: Some("elsewhere".into()), ..of(event) };
            assert_eq!(space.control(Request::Cancel(elsewhere)).await.unwrap_err().code(), "not-found");
            let answer = space.control(Request::Cancel(of(event))).await.unwrap();
            assert_eq!(became(answer), [FlowBecame::Cancelled], "{node}");
            assert!(flows(&space).await.is_empty() && dead(&space).await.is_empty(), "{node}");
            let error = space.control(Request::Cancel(of(event))).await.unwrap_err();
            assert_eq!((error.code(), error.event_id()), ("not-found", Some(event)));
        }
        whole(&space).await;
        space.stop().await.unwrap();
    });
}

#[test]
fn a_flow_that_has_not_begun_is_asked_to_stop_and_ends_when_its_turn_comes() {
    let world = World::new(18);
    world.sim.run(async {
        let space = world.space();
        space.node("desk").max_concurrent(1).on("ask", |_: Event, cx: Context| async move {
            cx.wait_for("answer", secs(7 * 24 * 3_600)).await?;
            Ok::<_, Error>(())
        });
        space.start().await.unwrap();
        let first = sent(&space, "desk", "ask").await;
        let second = sent(&space, "desk", "ask").await;
        let before = space.env().monotonic();
        let answer = space.control(Request::Cancel(of(second))).await.unwrap();
        assert_eq!(became(answer), [FlowBecame::Asked]);
        assert_eq!(space.env().monotonic() - before, millis(limits::CONTROL_CANCEL_MS));
        let answer = space.control(Request::Cancel(of(first))).await.unwrap();
        assert_eq!(became(answer), [FlowBecame::Cancelled]);
        space.env().sleep(secs(1)).await;
        assert!(flows(&space).await.is_empty() && dead(&space).await.is_empty());
        whole(&space).await;
        space.stop().await.unwrap();
    });
}

#[test]
fn a_flow_is_cancelled_in_a_stopped_store_and_stays_so() {
    let world = World::new(3);
    world.sim.run(async {
        let space = world.mill(&Arc::default()).await;
        let event = sent(&space, "office", "ask").await;
        space.stop().await.unwrap();
        let answer = world.stopped(Request::Cancel(of(event))).await.unwrap();
        assert_eq!(became(answer), [FlowBecame::Cancelled]);
        assert_eq!(world.stopped(Request::Cancel(of(event))).await.unwrap_err().code(), "not-found");

        let space = world.mill(&Arc::default()).await;
        assert!(flows(&space).await.is_empty() && dead(&space).await.is_empty());
        let steps = space.journal().steps(event).await.unwrap();
        let Some(StepEnd::Failed(error)) = steps.last().map(|step| &step.ended) else { panic!("{steps:?}") };
        assert_eq!((error.code(), error.event_id()), ("cancelled", Some(event)));
        whole(&space).await;
        space.stop().await.unwrap();
    });
}

#[test]
fn a_flow_that_waits_for_its_next_attempt_is_tried_now() {
    let world = World::new(4);
    world.sim.run(async {
        let broken = Arc::new(AtomicU32::new(1));
        let space = world.mill(&broken).await;
        let event = sent(&space, "mill", "grain").await;
        assert_eq!(count(&space), 0);
        let answer = space.control(Request::Retry(of(event))).await.unwrap();
        assert_eq!(became(answer), [FlowBecame::Due]);
        // Far less than the hour that it would have waited.
        space.env().sleep(secs(1)).await;
        assert_eq!(count(&space), 1);
        assert_eq!(space.control(Request::Retry(of(event))).await.unwrap_err().code(), "not-found");
        // One that waits for something else is not hurried.
        let asked = sent(&space, "office", "ask").await;
        assert_eq!(space.control(Request::Retry(of(asked))).await.unwrap_err().code(), "not-found");
        assert_eq!(flows(&space).await.len(), 1);

        broken.store(1, Ordering::SeqCst);
        let event = sent(&space, "mill", "grain").await;
        space.stop().await.unwrap();
        assert_eq!(became(world.stopped(Request::Retry(of(event))).await.unwrap()), [FlowBecame::Due]);
        assert_eq!(world.stopped(Request::Retry(of(asked))).await.unwrap_err().code(), "not-found");
        let space = world.mill(&broken).await;
        space.settled(secs(5)).await.unwrap();
        assert_eq!(count(&space), 2);
        whole(&space).await;
        space.stop().await.unwrap();
    });
}

/// Leaves so many dead letters of the mill, and gives their events.
async fn fail(world: &World, letters: u32) -> Vec<EventId> {
    let broken = Arc::new(AtomicU32::new(2 * letters));
    let space = world.mill(&broken).await;
    let mut events = Vec::new();
    for _ in 0..letters {
        events.push(space.send("mill", Event::new("grain", json!(1))).await.unwrap().event_id());
    }
    space.env().sleep(secs(2 * 3_600)).await;
    assert_eq!(dead(&space).await.len(), limits::JOURNAL_ROWS_MAX.min(letters as usize));
    space.stop().await.unwrap();
    events
}

#[test]
fn dead_letters_begin_anew_live_and_in_a_stopped_store() {
    let world = World::new(5);
    world.sim.run(async {
        let events = fail(&world, 3).await;
        let dry = letters(
            world.stopped(again(Letters { mode: Mode::DryRun, ..Letters::default() })).await.unwrap(),
        );
        assert_eq!((dry.letters.len(), dry.next), (3, None));
        let done = letters(world.stopped(again(letter(events[0]))).await.unwrap());
        assert_eq!((done.letters[0].event, done.letters[0].refused.is_none()), (events[0], true));
        assert_eq!(world.stopped(again(letter(events[0]))).await.unwrap_err().code(), "not-found");

        let space = world.mill(&Arc::default()).await;
        space.settled(secs(5)).await.unwrap();
        assert_eq!((count(&space), dead(&space).await.len()), (1, 2));
        let of_type = |name: &str| Letters { event_type: Some(name.into()), ..Letters::default() };
        assert!(letters(space.control(again(of_type("sand"))).await.unwrap()).letters.is_empty());
        let of_node = Letters { node: Some("mil".into()), ..Letters::default() };
        assert!(letters(space.control(again(of_node)).await.unwrap()).letters.is_empty());
        assert_eq!(letters(space.control(again(of_type("grain"))).await.unwrap()).letters.len(), 2);
        space.settled(secs(5)).await.unwrap();
        assert_eq!((count(&space), dead(&space).await.len()), (3, 0));
        whole(&space).await;
        space.stop().await.unwrap();
    });
}

#[test]
fn a_dead_letter_that_fits_nothing_stays_and_holds_up_no_other() {
    let world = World::new(6);
    world.sim.run(async {
        let events = fail(&world, 2).await;
        let space = world.space();
        space.start().await.unwrap();
        let done = letters(space.control(again(Letters::default())).await.unwrap());
        let codes = done.letters.iter().filter_map(|letter| letter.refused.as_ref());
        assert_eq!(codes.map(|refused| &*refused.code).collect::<Vec<_>>(), ["unfit", "unfit"]);
        for payload in [None, Some(json!(2))] {
            let request = Request::Redrive(Redrive { letters: letter(events[0]), payload });
            assert_eq!(space.control(request).await.unwrap_err().code(), "unfit");
        }
        assert_eq!(dead(&space).await.len(), 2);
        space.stop().await.unwrap();
    });
}

#[test]
fn a_dead_letter_is_handled_anew_with_another_payload() {
    for live in [true, false] {
        let world = World::new(7);
        world.sim.run(async {
            let events = fail(&world, 1).await;
            let request = Request::Redrive(Redrive { letters: letter(events[0]), payload: Some(Json::Null) });
            let done = if live {
                let space = world.mill(&Arc::default()).await;
                let done = space.control(request).await.unwrap();
                space.settled(secs(5)).await.unwrap();
                space.stop().await.unwrap();
                done
            } else {
                world.stopped(request).await.unwrap()
            };
            let instead = letters(done).letters[0].instead.unwrap();
            let space = world.mill(&Arc::default()).await;
            space.settled(secs(5)).await.unwrap();
            assert_eq!((count(&space), dead(&space).await.len(), flows(&space).await.len()), (1, 0, 0));
            let stored = space.journal().event(instead).await.unwrap().unwrap();
            assert_eq!(stored.causes, events);
            assert_eq!((stored.event_type.as_str(), stored.payload.json().unwrap()), ("grain", &Json::Null));
            assert_eq!(space.why(instead).await.unwrap(), events);
            whole(&space).await;
            let all = Letters::default();
            let request = Request::Redrive(Redrive { letters: all, payload: Some(json!(1)) });
            assert_eq!(space.control(request).await.unwrap_err().code(), "misuse");
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn dead_letters_are_dropped_with_a_record_that_says_so() {
    let world = World::new(8);
    world.sim.run(async {
        let events = fail(&world, 2).await;
        let dry = Letters { mode: Mode::DryRun, ..Letters::default() };
        assert_eq!(letters(world.stopped(Request::Drop(dry)).await.unwrap()).letters.len(), 2);
        world.stopped(Request::Drop(letter(events[1]))).await.unwrap();
        let space = world.mill(&Arc::default()).await;
        assert_eq!(dead(&space).await.len(), 1);
        space.control(Request::Drop(letter(events[0]))).await.unwrap();
        assert!(dead(&space).await.is_empty());
        let told = space.store().read(Read::backward(Select::All).at_most(1)).await.unwrap();
        let entry = happen::journal::Entry::read(&told.records[0]).unwrap();
        assert!(entry.changes[0].key.starts_with("dead/mill/"), "{entry:?}");
        whole(&space).await;
        space.stop().await.unwrap();
    });
}

#[test]
fn so_many_dead_letters_are_done_by_one_request() {
    let world = World::new(9);
    world.sim.run(async {
        let max = limits::CONTROL_LETTERS_MAX;
        fail(&world, max as u32 + 1).await;
        let dry = Letters { mode: Mode::DryRun, ..Letters::default() };
        let first = letters(world.stopped(Request::Drop(dry.clone())).await.unwrap());
        assert_eq!((first.letters.len(), first.next.is_some()), (max, true));
        let rest = Letters { after: first.next, ..dry.clone() };
        let rest = letters(world.stopped(Request::Drop(rest)).await.unwrap());
        assert_eq!((rest.letters.len(), rest.next), (1, None));
        // At the limit there may be more; there are none behind the last one.
        world.stopped(Request::Drop(letter(rest.letters[0].event))).await.unwrap();
        let all = letters(world.stopped(Request::Drop(dry.clone())).await.unwrap());
        let rest = Letters { after: all.next.clone(), ..dry.clone() };
        assert_eq!(
            (all.letters.len(), letters(world.stopped(Request::Drop(rest)).await.unwrap()).letters.len()),
            (max, 0)
        );
        world.stopped(Request::Drop(letter(all.letters[0].event))).await.unwrap();
        let fewer = letters(world.stopped(Request::Drop(dry)).await.unwrap());
        assert_eq!((fewer.letters.len(), fewer.next), (max - 1, None));
    });
}

#[test]
fn an_event_that_is_sent_while_no_process_is_there_is_delivered_once_whenever_the_next_one_dies() {
    let mut deaths = 0;
    for dies in [Dies::Before, Dies::Unheard] {
        for commit in 1.. {
            let world = World::new(commit);
            let store = FaultyStore::new(Arc::clone(&world.disk), world.sim.env());
            store.dies_at(commit, dies);
            world.sim.run(async {
                for payload in [json!(1), json!(2)] {
                    let Answer::Sent(sent) = world.stopped(Request::Send(grain(payload))).await.unwrap()
                    else {
                        panic!("no event")
                    };
                    assert_eq!(sent.became, Became::Kept);
                }
                let over = Arc::clone(&store) as Arc<dyn Store>;
                let space = Space::with_store(Config::default(), world.sim.env(), over).unwrap();
                mill(&space, &Arc::default());
                if space.start().await.is_ok() {
                    drop(space.settled(secs(60)).await);
                }
                drop(space.stop().await);
            });
            deaths += u32::from(store.is_dead());
            world.sim.run(async {
                let space = world.mill(&Arc::default()).await;
                space.settled(secs(60)).await.unwrap();
                assert_eq!(count(&space), 2, "{dies:?} {commit}");
                assert!(space.problems().is_empty());
                whole(&space).await;
                space.stop().await.unwrap();
            });
            if !store.is_dead() {
                break;
            }
        }
    }
    assert!(deaths >= 6, "only {deaths} deaths: the workload has become too small");
}

#[test]
fn an_event_that_nobody_takes_stays_until_somebody_does() {
    let world = World::new(10);
    world.sim.run(async {
        let ask = SendEvent { wait: Wait::Reply, ..grain(json!(1)) };
        assert_eq!(world.stopped(Request::Send(ask)).await.unwrap_err().code(), "misuse");
        world.stopped(Request::Send(grain(json!(1)))).await.unwrap();
        world
            .stopped(Request::Send(SendEvent { event_type: "sand".into(), ..grain(json!(1)) }))
            .await
            .unwrap();

        let space = world.space();
        space.node("mill").ephemeral().on("grain", |_: &Event, _: &Context| ());
        space.start().await.unwrap();
        let codes: Vec<_> = space.problems().iter().map(Error::code).collect();
        assert_eq!(codes, ["refused", "refused"]);
        space.stop().await.unwrap();

        let space = world.mill(&Arc::default()).await;
        space.settled(secs(5)).await.unwrap();
        let problems = space.problems();
        assert_eq!(problems.iter().map(Error::code).collect::<Vec<_>>(), ["no-handler"]);
        assert!(problems[0].chain().join(": ").contains("inbox/mill/"), "{:?}", problems[0]);
        assert_eq!(count(&space), 1);
        space.stop().await.unwrap();
    });
}

#[test]
fn an_event_that_is_kept_and_damaged_is_told_and_holds_up_no_other() {
    let world = World::new(11);
    world.sim.run(async {
        world.stopped(Request::Send(grain(json!(1)))).await.unwrap();
        for (key, bytes) in
            [("inbox/mill/x", &b""[..]), ("inbox/", b"\xc1"), ("inbox/mill/a/b/c", &[0x92, 1])]
        {
            let content = happen::store::Content { name: "inbox".into(), version: 1, bytes: bytes.into() };
            let write = happen::store::Write {
                key: key.into(),
                revision: 1,
                content: Some(content),
                past: happen::store::Past::Dropped,
                replaced: happen::store::Replaced::Kept,
            };
            let batch = happen::store::Batch { documents: vec![write], ..Default::default() };
            world.disk.commit(vec![batch]).await.remove(0).unwrap();
        }
        let space = world.mill(&Arc::default()).await;
        space.settled(secs(5)).await.unwrap();
        assert_eq!((count(&space), space.problems().len()), (1, 3));
        space.stop().await.unwrap();
    });
}

fn ledger(revision: u64, content: Json) -> Request {
    Request::SetState(SetState { key: "state/mill/ledger".into(), revision, shape: None, content })
}

#[test]
fn a_state_that_is_set_by_hand_is_what_its_node_goes_on_with() {
    let world = World::new(12);
    world.sim.run(async {
        let space = world.mill(&Arc::default()).await;
        let mill =
            space.find("mill").unwrap().validate_state(|_: &Ledger, after: &Ledger| match after.count {
                13 => Err(Error::msg("unlucky")),
                _ => Ok(()),
            });
        let mut changes = mill.changes::<Ledger>();
        space.send("mill", Event::new("grain", json!(1))).reply::<Json>().await.unwrap();
        changes.next().await.unwrap();
        space.control(ledger(1, json!({ "count": 41 }))).await.unwrap();
        assert_eq!((count(&space), mill.state::<Ledger>().revision()), (41, 2));
        changes.next().await.unwrap();
        space.send("mill", Event::new("grain", json!(1))).reply::<Json>().await.unwrap();
        assert_eq!(count(&space), 42);
        for (revision, content, code) in [
            (2, json!({ "count": 1 }), "conflict"),
            (4, json!({ "count": 1 }), "conflict"),
            (3, json!({ "count": "many" }), "undecodable"),
            (3, json!({ "count": 13 }), "invalid"),
        ] {
            let told = space.control(ledger(revision, content)).await.unwrap_err();
            assert_eq!(told.code(), code, "{told:?}");
        }
        assert_eq!((count(&space), mill.state::<Ledger>().revision()), (42, 3));
        for key in ["flow/a/b/c", "state/mill", "anchor/log", ""] {
            let set = SetState { key: key.into(), revision: 0, shape: Some(1), content: Json::Null };
            assert_eq!(space.control(Request::SetState(set)).await.unwrap_err().code(), "misuse", "{key}");
        }
        whole(&space).await;
        space.stop().await.unwrap();
    });
}

#[test]
fn a_state_that_nobody_has_read_is_set_by_hand_too() {
    let world = World::new(13);
    world.sim.run(async {
        let space = world.mill(&Arc::default()).await;
        assert_eq!(space.control(ledger(0, json!({ "count": 6 }))).await.unwrap_err().code(), "misuse");
        let set = SetState {
            key: "state/mill/ledger".into(),
            revision: 0,
            shape: Some(1),
            content: json!({ "count": 6 }),
        };
        space.control(Request::SetState(set)).await.unwrap();
        assert_eq!(count(&space), 6);
        space.stop().await.unwrap();
        let Answer::Written(written) = world.stopped(ledger(1, json!({ "count": 7 }))).await.unwrap() else {
            panic!("not written")
        };
        assert_eq!(written.revision, 2);
        assert_eq!(world.stopped(ledger(1, json!({ "count": 8 }))).await.unwrap_err().code(), "conflict");
        let space = world.mill(&Arc::default()).await;
        assert_eq!(count(&space), 7);
        let _rest = space.node("rest").ephemeral();
        let set =
            SetState { key: "state/rest/ledger".into(), revision: 0, shape: Some(1), content: json!({}) };
        assert_eq!(space.control(Request::SetState(set)).await.unwrap_err().code(), "misuse");
        space.stop().await.unwrap();
    });
}

#[test]
fn states_that_are_set_by_hand_at_once_with_events_lose_nothing() {
    for seed in 0..20 {
        let world = World::new(100 + seed);
        world.sim.run(async {
            let space = world.mill(&Arc::default()).await;
            let mill = space.find("mill").unwrap();
            let mut set = 0;
            for round in 0..20 {
                for _ in 0..3 {
                    space.send("mill", Event::new("grain", json!(1))).forget();
                }
                space.env().sleep(millis(round % 3)).await;
                let revision = mill.state::<Ledger>().revision();
                let seen = count(&space);
                if mill.state::<Ledger>().revision() != revision {
                    continue;
                }
                let request = Request::SetState(SetState {
                    key: "state/mill/ledger".into(),
                    revision,
                    shape: Some(1),
                    content: json!({ "count": seen + 1_000 }),
                });
                match space.control(request).await {
                    Ok(_) => set += 1,
                    Err(error) => assert_eq!(error.code(), "conflict", "{error:?}"),
                }
            }
            space.settled(secs(60)).await.unwrap();
            assert!(set > 0, "nothing was ever set");
            assert_eq!(count(&space), 60 + 1_000 * set);
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn a_pruning_is_counted_first_and_keeps_what_is_needed() {
    let world = World::new(14);
    world.sim.run(async {
        let space = world.mill(&Arc::default()).await;
        let waiting = sent(&space, "office", "ask").await;
        for _ in 0..10 {
            space.send("mill", Event::new("grain", json!(1))).reply::<Json>().await.unwrap();
        }
        let prune = |mode| PruneBefore {
            before_unix_ms: space.env().unix_ms() + 1,
            types: Vec::new(),
            histories: Histories::Forget,
            mode,
        };
        let Answer::Pruned(would) = space.control(Request::Prune(prune(Mode::DryRun))).await.unwrap() else {
            panic!("no pruning")
        };
        assert!(would.records >= 10 && would.revisions == 9 && would.events_kept == 1, "{would:?}");
        let Answer::Pruned(did) = space.control(Request::Prune(prune(Mode::CarryOut))).await.unwrap() else {
            panic!("no pruning")
        };
        assert_eq!(did, would);
        assert!(space.journal().event(waiting).await.unwrap().is_some());
        assert_eq!(count(&space), 10);
        whole(&space).await;
        space.stop().await.unwrap();
    });
}

#[test]
fn before_the_start_and_after_the_end_only_figures_are_told() {
    let world = World::new(15);
    world.sim.run(async {
        let space = world.space();
        mill(&space, &Arc::default());
        let phase = async |space: &Space| match space.control(Request::Stats).await.unwrap() {
            Answer::Stats(stats) => (stats.phase, stats.nodes_len),
            other => panic!("{other:?}"),
        };
        assert_eq!(phase(&space).await, (Phase::Building, 3));
        assert_eq!(space.control(Request::Send(grain(json!(1)))).await.unwrap_err().code(), "not-started");
        space.start().await.unwrap();
        sent(&space, "office", "ask").await;
        let Answer::Stats(stats) = space.control(Request::Stats).await.unwrap() else { panic!("no figures") };
        assert_eq!((stats.phase, stats.flows, stats.nodes.len()), (Phase::Running, 1, 3));
        assert_eq!(
            (&*stats.nodes[2].node, stats.nodes[2].flows, stats.nodes[2].is_durable),
            ("office", 1, true)
        );
        space.stop().await.unwrap();
        assert_eq!(phase(&space).await, (Phase::Stopped, 0));
        assert_eq!(space.control(Request::Send(grain(json!(1)))).await.unwrap_err().code(), "closed");
        let Answer::Stats(stats) = world.stopped(Request::Stats).await.unwrap() else { panic!("no figures") };
        assert_eq!((stats.phase, stats.flows, stats.nodes_len), (Phase::Stopped, 1, 0));
        assert_eq!(Space::memory().control(Request::Stats).await.unwrap_err().code(), "misuse");
    });
}

#[test]
fn so_many_nodes_are_named_among_the_figures() {
    let world = World::new(16);
    world.sim.run(async {
        let space = world.space();
        let max = limits::CONTROL_NODES_MAX;
        for len in 1..=max + 1 {
            let _node = space.node(format!("n{len:05}")).ephemeral();
            if len + 1 >= max {
                let Answer::Stats(stats) = space.control(Request::Stats).await.unwrap() else {
                    panic!("none")
                };
                assert_eq!((stats.nodes_len, stats.nodes.len()), (len as u64, len.min(max)));
            }
        }
    });
}

#[test]
fn flows_that_fit_no_program_are_cancelled_where_they_are_parked() {
    let world = World::new(17);
    world.sim.run(async {
        let space = world.mill(&Arc::new(1.into())).await;
        let asked = sent(&space, "office", "ask").await;
        let failed = sent(&space, "mill", "grain").await;
        space.stop().await.unwrap();
        let config = Config { unfit_flows: UnfitFlows::Park, ..Config::default() };
        let space = Space::with_store(config, world.sim.env(), Arc::clone(&world.disk)).unwrap();
        space.start().await.unwrap();
        assert_eq!(became(space.control(Request::Retry(of(failed))).await.unwrap()), [FlowBecame::Due]);
        for event in [asked, failed] {
            let answer = space.control(Request::Cancel(of(event))).await.unwrap();
            assert_eq!(became(answer), [FlowBecame::Cancelled]);
        }
        assert!(flows(&space).await.is_empty());
        whole(&space).await;
        space.stop().await.unwrap();
    });
}
