//! What people ask by hand on a log of several processes: each request goes over the link to the process that has the node,
//! and is done there once. What the requests do is in `control.rs`. In virtual time.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{self, Poll};
use std::time::Duration;

use happen::balance::{BalanceReport, FlowPattern, NodePlace, ProcessBalance};
use happen::control::{
    self, Answer, FlowBecame, FlowsOf, Letters, LettersByHand, Mode, OfSchedule, Redrive, Request,
    ScheduleAct, SetState,
};
use happen::identity::{Identity, KeyKind, Seed, Signer, TrustStore, Trusted};
use happen::store::{List, MemoryStore, Store};
use happen::{
    BalanceOptions, Config, Context, Error, ErrorKind, Event, EventId, Hub, Link, Space, limits, millis, secs,
};
use happen_core::env::{BoxFuture, Env};
use happen_core::link::{CONTROL, Inbound, NodePresence, Peer, Replies};
use happen_ed25519::KeyPair;
use happen_testing::Simulator;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("ledger", version = 1)]
struct Ledger {
    count: u64,
}

/// A log, the link of its processes, and the simulator that they run in.
struct World {
    env: Arc<dyn Env>,
    hub: Hub,
    log: Arc<dyn Store>,
    /// Of the processes.
    config: Config,
    /// Whether mills grind.
    broken: Arc<AtomicU32>,
}

impl World {
    fn new(sim: &Simulator) -> Self {
        let env = sim.env();
        let log = Arc::new(MemoryStore::new(Arc::clone(&env)).shared());
        let hub = Hub::in_env(Arc::clone(&env));
        Self { hub, env, log, config: Config::default(), broken: Arc::default() }
    }

    /// One whose processes watch their balance.
    fn watched(sim: &Simulator) -> Self {
        let config = Config { balance: Some(BalanceOptions::default()), ..Config::default() };
        Self { config, ..Self::new(sim) }
    }

    /// A process with a mill, an office and a smithy whose names begin so.
    async fn process(&self, name: &str, identity: Option<Identity>) -> Space {
        let space =
            Space::with_store(self.config.clone(), Arc::clone(&self.env), Arc::clone(&self.log)).unwrap();
        space.join(self.hub.link(name)).unwrap();
        if let Some(identity) = identity {
            space.identity(identity).unwrap();
        }
        let broken = Arc::clone(&self.broken);
        space.node(format!("{name}-mill")).attempts(1, secs(1)).on(
            "grain",
            move |_: &Event, cx: &Context| {
                if broken.load(Ordering::SeqCst) > 0 {
                    return Err(Error::msg("broken"));
                }
                cx.state::<Ledger>().set(|ledger| Ledger { count: ledger.count + 1 })
            },
        );
        space.node(format!("{name}-office")).on("ask", |_: Event, cx: Context| async move {
            cx.wait_for("answer", secs(7 * 24 * 3_600)).await?;
            Ok::<_, Error>(())
        });
        let failing = |_: &Event, _: &Context| Err::<(), _>(Error::msg("cold"));
        space.node(format!("{name}-smith")).attempts(2, secs(24 * 3_600)).on("iron", failing);
        space.start().await.unwrap();
        space
    }

    /// Somebody with a place at this link and none of the nodes.
    async fn operator(&self, link: Arc<dyn Link>, identity: Option<Identity>) -> Space {
        let space = Space::in_env(Config::default(), Arc::clone(&self.env)).unwrap();
        space.join(link).unwrap();
        if let Some(identity) = identity {
            space.identity(identity).unwrap();
        }
        space.start().await.unwrap();
        space
    }

    /// An event that every node of every process hears which takes its type.
    async fn told(&self, by: &Space, event_type: &str) -> EventId {
        let event = by.broadcast(Event::new(event_type, json!(1))).unwrap();
        self.env.sleep(secs(1)).await;
        event
    }

    async fn dead(&self) -> usize {
        let (mut len, mut after) = (0, None);
        loop {
            let list = List { prefix: "dead/".into(), after, documents_max: usize::MAX };
            let page = self.log.list(list).await.unwrap();
            let Some(last) = page.last() else { return len };
            (len, after) = (len + page.len(), Some(Arc::clone(&last.key)));
        }
    }
}

fn mill(space: &Space, name: &str) -> u64 {
    space.find(&format!("{name}-mill")).unwrap().state::<Ledger>().get(|ledger| ledger.count)
}

fn of(event: EventId) -> FlowsOf {
    FlowsOf { event, node: None }
}

fn set(node: &str, revision: u64, count: u64) -> Request {
    let content = json!({ "count": count });
    Request::SetState(SetState { key: format!("state/{node}/ledger"), revision, shape: Some(1), content })
}

fn again(letters: Letters) -> Request {
    Request::Redrive(Redrive { letters, payload: None })
}

fn schedule(name: &str, act: ScheduleAct) -> Request {
    Request::Schedule(OfSchedule { name: name.into(), act })
}

#[track_caller]
fn flows(answer: happen::Result<Answer>) -> Vec<(String, FlowBecame)> {
    let Answer::Flows(mut flows) = answer.unwrap() else { panic!("no flows") };
    flows.sort_by(|a, b| a.node.cmp(&b.node));
    flows.into_iter().map(|flow| (flow.node, flow.became)).collect()
}

#[track_caller]
fn letters(answer: happen::Result<Answer>) -> LettersByHand {
    let Answer::Letters(letters) = answer.unwrap() else { panic!("no letters") };
    letters
}

#[track_caller]
fn taken(answer: happen::Result<Answer>) -> usize {
    let Answer::Scheduled(scheduled) = answer.unwrap() else { panic!("no schedule") };
    scheduled.events.len()
}

fn key(number: u8) -> KeyPair {
    KeyPair::from_seed(&Seed::new(KeyKind::User, [number; 32]))
}

#[test]
fn what_is_asked_by_hand_is_done_by_the_processes_that_have_the_nodes() {
    // By somebody who has none of the nodes, and by a process that has some of them.
    for by_process in [false, true] {
        let sim = Simulator::new(1);
        sim.run(async {
            let world = World::new(&sim);
            let (a, b) = (world.process("a", None).await, world.process("b", None).await);
            world.env.sleep(secs(1)).await;
            let operator = world.operator(world.hub.link("operator"), None).await;
            let ask = async |request: Request| match by_process {
                true => a.control(request).await,
                false => control::carry_out_among(&operator, &world.log, request).await,
            };

            let asked = world.told(&a, "ask").await;
            let cancelled = flows(ask(Request::Cancel(of(asked))).await);
            let became = |became| vec![("a-office".to_owned(), became), ("b-office".to_owned(), became)];
            assert_eq!(cancelled, became(FlowBecame::Cancelled));
            assert!(a.find("a-office").unwrap().flows().is_empty(), "it ends in its process at once");
            assert!(b.find("b-office").unwrap().flows().is_empty(), "it ends in its process at once");
            assert_eq!(ask(Request::Cancel(of(asked))).await.unwrap_err().code(), "not-found");

            let iron = world.told(&b, "iron").await;
            let due = flows(ask(Request::Retry(of(iron))).await);
            assert_eq!(due.len(), 2, "{due:?}");
            world.env.sleep(secs(1)).await;
            assert_eq!(world.dead().await, 2, "they were tried for the second time and failed");
            let dry = Letters { mode: Mode::DryRun, ..Letters::default() };
            assert_eq!(letters(ask(again(dry)).await).letters.len(), 2);
            let of_one = Letters { event: Some(iron), ..Letters::default() };
            let mut begun = letters(ask(again(of_one.clone())).await);
            while let Some(next) = begun.next.take() {
                let more = letters(ask(again(Letters { after: Some(next), ..of_one.clone() })).await);
                begun.letters.extend(more.letters);
                begun.next = more.next;
            }
            assert_eq!(begun.letters.len(), 2, "each at its process: {begun:?}");
            let none = ask(again(of_one)).await.unwrap_err();
            assert_eq!(none.code(), "not-found", "they are under way");
            world.env.sleep(secs(48 * 3_600)).await;
            assert_eq!(world.dead().await, 2, "and failed again");
            let dropped = letters(ask(Request::Drop(Letters::default())).await).letters;
            assert_eq!((dropped.len(), world.dead().await), (2, 0));

            // A live value changes where it lives.
            for (node, space) in [("a", &a), ("b", &b)] {
                let Answer::Written(written) = ask(set(&format!("{node}-mill"), 0, 40)).await.unwrap() else {
                    panic!("not written")
                };
                assert_eq!((written.revision, mill(space, node)), (1, 40));
                let late = ask(set(&format!("{node}-mill"), 0, 50)).await.unwrap_err();
                assert_eq!(late.code(), "conflict");
            }
            world.told(&a, "grain").await;
            assert_eq!((mill(&a, "a"), mill(&b, "b")), (41, 41));

            for (name, space) in [("a", &a), ("b", &b)] {
                let node = space.find(&format!("{name}-mill")).unwrap();
                space.schedule(name, "0 3 * * *", &node, Event::new("grain", json!(2))).await.unwrap();
            }
            for name in ["a", "b"] {
                assert_eq!(taken(ask(schedule(name, ScheduleAct::Trigger)).await), 1);
                assert_eq!(taken(ask(schedule(name, ScheduleAct::Pause)).await), 0);
            }
            world.env.sleep(secs(24 * 3_600)).await;
            assert_eq!((mill(&a, "a"), mill(&b, "b")), (42, 42), "triggered once, and paused since");
            for name in ["a", "b"] {
                taken(ask(schedule(name, ScheduleAct::Remove)).await);
                assert_eq!(ask(schedule(name, ScheduleAct::Resume)).await.unwrap_err().code(), "not-found");
            }

            assert!(a.journal().verify().await.unwrap().is_whole());
            for space in [operator, b, a] {
                space.stop().await.unwrap();
            }
        });
    }
}

/// The nodes that a process says it has, or why it says nothing.
type Own<'t> = Result<Vec<&'t str>, &'static str>;

/// What each process told of its own nodes: their names.
fn own(told: &[ProcessBalance]) -> Vec<(&str, Own<'_>)> {
    fn of(told: &ProcessBalance) -> Own<'_> {
        let report = told.report.as_ref().map_err(Error::code)?;
        let own = report.nodes.iter().filter(|node| node.place == NodePlace::Here);
        Ok(own.map(|node| node.node.as_str()).collect())
    }
    told.iter().map(|told| (told.process.as_str(), of(told))).collect()
}

/// The nodes of which something was found, each once.
fn named(report: &BalanceReport) -> Vec<&str> {
    let named: BTreeSet<_> = report.findings.iter().flat_map(|finding| &finding.nodes).collect();
    named.into_iter().map(String::as_str).collect()
}

#[test]
fn how_the_nodes_of_all_processes_keep_up_is_told_by_each() {
    let sim = Simulator::new(13);
    sim.run(async {
        let world = World::watched(&sim);
        let (a, b) = (world.process("a", None).await, world.process("b", None).await);
        // One that keeps nothing, of which no log says anything.
        let env = Arc::clone(&world.env);
        b.node("b-bell").ephemeral().serial().on("ring", move |_: Event, _: Context| {
            let env = Arc::clone(&env);
            async move { env.sleep(secs(1)).await }
        });
        let operator = world.operator(world.hub.link("operator"), None).await;
        // A member without nodes has nothing to tell, and one without the log is not asked by hand.
        let idle = world.operator(world.hub.link("idle"), None).await;
        let apart = world.operator(world.hub.link("c-apart"), None).await;
        apart.node("lamp").on("light", |_: &Event, _: &Context| {});
        b.find("b-smith").unwrap().stop();
        for number in 0..30 {
            for node in ["b-bell", "b-smith"] {
                b.send(node, Event::new(if node == "b-bell" { "ring" } else { "iron" }, json!(number)))
                    .await
                    .unwrap();
            }
        }
        world.env.sleep(millis(8_500)).await;

        let told = operator.balance_reports().await;
        let nodes_of_b = vec!["b-bell", "b-mill", "b-office", "b-smith"];
        assert_eq!(
            own(&told),
            [
                ("a", Ok(vec!["a-mill", "a-office", "a-smith"])),
                ("b", Ok(nodes_of_b.clone())),
                ("c-apart", Err("misuse")),
            ]
        );
        let report = told[1].report.as_ref().unwrap();
        // What only its process knows: what waits there, and how fast it is worked off.
        let bell = report.node("b-bell").unwrap();
        assert!((18..=24).contains(&bell.waiting) && bell.active == 1, "{bell:?}");
        let handled = bell.rates.as_ref().unwrap().handled_per_s;
        assert!((0.8..=1.2).contains(&handled), "{bell:?}");
        let down = report.findings.iter().find(|finding| finding.pattern == FlowPattern::NodeFailure);
        assert_eq!(down.unwrap().nodes, ["b-smith"]);
        let report = told[0].report.as_ref().unwrap();
        assert!(report.is_watched && report.node("a-mill").unwrap().rates.is_some());
        // A process that has nodes tells of itself, too.
        let told = a.balance_reports().await;
        assert_eq!(own(&told)[0], ("a", Ok(vec!["a-mill", "a-office", "a-smith"])));
        assert_eq!(own(&told)[1], ("b", Ok(nodes_of_b)));
        assert_eq!(told.len(), 3);
        b.stop().await.unwrap();
        assert_eq!(own(&operator.balance_reports().await).len(), 2, "one that went is asked no more");
        let alone = Space::in_env(Config::default(), Arc::clone(&world.env)).unwrap();
        assert!(alone.balance_reports().await.is_empty());
        alone.node("lamp").on("light", |_: &Event, _: &Context| {});
        assert_eq!(own(&alone.balance_reports().await), [("", Ok(vec!["lamp"]))]);
        for space in [apart, idle, operator, a] {
            space.stop().await.unwrap();
        }
    });
}

#[test]
fn a_process_that_does_not_tell_in_time_is_named_and_holds_up_no_other() {
    let sim = Simulator::new(15);
    sim.run(async {
        let world = World::new(&sim);
        let (a, b) = (world.process("a", None).await, world.process("b", None).await);
        let lossy = Arc::new(Lossy::new(&world, "operator"));
        let operator = world.operator(Arc::clone(&lossy) as Arc<dyn Link>, None).await;
        let (at_a, at_b) = (operator_sees(&world, "a"), operator_sees(&world, "b"));
        let took = async || {
            let begun = world.env.monotonic();
            let told = operator.balance_reports().await;
            ((world.env.monotonic() - begun).as_millis() as u64, told)
        };
        let nodes = |name: &str| ["mill", "office", "smith"].map(|node| format!("{name}-{node}"));
        let max = limits::BALANCE_ASK_MS;
        for (late, comes) in [(max - 1, true), (max, true), (max + 1, false)] {
            lossy.late.lock().unwrap().insert(at_a.clone(), millis(late));
            let (took, told) = took().await;
            let of_a = if comes { Ok(nodes("a").to_vec()) } else { Err("timed-out") };
            let (of_a, nodes) =
                (of_a.as_ref().map(|nodes| nodes.iter().map(String::as_str).collect()), nodes("b"));
            assert_eq!(
                own(&told),
                [("a", of_a.map_err(|code| *code)), ("b", Ok(nodes.iter().map(String::as_str).collect()))],
                "{late}"
            );
            assert_eq!(took, late.min(max));
        }
        // Both at once.
        lossy.late.lock().unwrap().insert(at_b, secs(3_600));
        let (took, told) = took().await;
        assert_eq!(own(&told), [("a", Err("timed-out")), ("b", Err("timed-out"))]);
        assert_eq!(took, max);
        // One whose way breaks is not asked again, for somebody looks on.
        lossy.late.lock().unwrap().clear();
        lossy.lost.store(1, Ordering::SeqCst);
        let told = operator.balance_reports().await;
        assert_eq!(own(&told).iter().filter(|(_, told)| *told == Err("closed")).count(), 1);
        for space in [operator, b, a] {
            space.stop().await.unwrap();
        }
    });
}

#[test]
fn so_many_processes_are_asked_at_once_and_the_others_after_them() {
    let sim = Simulator::new(17);
    sim.run(async {
        let world = World::new(&sim);
        let max = limits::BALANCE_ASKED_MAX;
        for (len, rounds) in [(max - 1, 1), (max, 1), (max + 1, 2)] {
            let mut lossy = Lossy::new(&world, &format!("operator-{len}"));
            let node = |id: String| NodePresence { id, handles: Vec::new(), share: None };
            lossy.silent = (0..len)
                .map(|number| Peer {
                    name: format!("{number:04}"),
                    nodes: vec![node(format!("{CONTROL}silent-{number}")), node(format!("node-{number}"))],
                })
                .collect();
            let lossy = Arc::new(lossy);
            let operator = world.operator(Arc::clone(&lossy) as Arc<dyn Link>, None).await;
            let begun = world.env.monotonic();
            let told = operator.balance_reports().await;
            assert_eq!(world.env.monotonic() - begun, millis(rounds * limits::BALANCE_ASK_MS));
            assert_eq!(own(&told).iter().filter(|(_, told)| *told == Err("timed-out")).count(), len);
            assert_eq!(lossy.most_waiting.load(Ordering::SeqCst) as usize, len.min(max));
            assert_eq!(lossy.waiting.load(Ordering::SeqCst), 0, "nobody waits for them any more");
            operator.stop().await.unwrap();
        }
    });
}

#[test]
fn a_report_has_as_many_nodes_as_there_is_room_for_and_says_how_many_there_are() {
    let sim = Simulator::new(19);
    sim.run(async {
        let mut world = World::watched(&sim);
        world.config.event_bytes_max = 8_192;
        let a = world.process("a", None).await;
        for number in 0..100 {
            a.node(format!("many-{number:03}")).ephemeral().on("u32", |_: &Event<u32>, _: &Context| {});
        }
        world.env.sleep(secs(5)).await;
        let operator = world.operator(world.hub.link("operator"), None).await;
        let told = operator.balance_reports().await;
        let report = told[0].report.as_ref().unwrap();
        assert_eq!(report.nodes_len, 103);
        assert!((5..50).contains(&report.nodes.len()), "{}", report.nodes.len());
        assert_eq!(report.nodes[0].node, "a-mill");
        for space in [operator, a] {
            space.stop().await.unwrap();
        }
    });
}

#[test]
fn where_keys_are_trusted_figures_are_told_to_who_operates_nodes_and_of_those_alone() {
    const SHOP: u8 = 1;
    const OPERATOR: u8 = 2;
    const CLERK: u8 = 3;
    const MILLER: u8 = 4;
    const STRANGER: u8 = 5;
    let sim = Simulator::new(21);
    sim.run(async {
        let public = |number| key(number).public_key();
        let trust = TrustStore::new();
        trust.trust(Trusted::new(public(SHOP)).nodes(["a-*", "b-*", ""])).unwrap();
        trust.trust(Trusted::new(public(OPERATOR)).nodes([""]).operates(["a-*"])).unwrap();
        trust.trust(Trusted::new(public(MILLER)).nodes([""]).operates(["*-mill"])).unwrap();
        trust.trust(Trusted::new(public(CLERK)).nodes(["*"])).unwrap();
        let identity = |number| Identity::new(key(number)).trust(&trust);
        let world = World::watched(&sim);
        let a = world.process("a", Some(identity(SHOP))).await;
        let b = world.process("b", Some(identity(SHOP).accept_unsigned())).await;
        let refused = Arc::new(Mutex::new(Vec::<Json>::new()));
        for space in [&a, &b] {
            let push = Arc::clone(&refused);
            space.on("system.refused", move |told: &Event, _: &Context| {
                push.lock().unwrap().push(told.get("distrust").cloned().unwrap_or_default());
            });
        }
        for name in ["a-mill", "a-office"] {
            a.find(name).unwrap().stop();
            a.send(name, Event::new(if name == "a-mill" { "grain" } else { "ask" }, json!(1))).await.unwrap();
        }
        world.env.sleep(secs(8)).await;
        let by = async |name: &str, identity| {
            let operator = world.operator(world.hub.link(name), identity).await;
            let told = operator.balance_reports().await;
            operator.stop().await.unwrap();
            told
        };

        let told = by("operator", Some(identity(OPERATOR))).await;
        let of_a = ["a-mill", "a-office", "a-smith"];
        assert_eq!(own(&told), [("a", Ok(of_a.to_vec())), ("b", Err("untrusted"))]);
        let report = told[0].report.as_ref().unwrap();
        assert_eq!(named(report), ["a-mill", "a-office"]);
        assert_eq!(std::mem::take(&mut *refused.lock().unwrap()), [json!("not-operator")]);

        let told = by("miller", Some(identity(MILLER))).await;
        assert_eq!(own(&told), [("a", Ok(vec!["a-mill"])), ("b", Ok(vec!["b-mill"]))]);
        let report = told[0].report.as_ref().unwrap();
        assert!(report.nodes.iter().all(|node| node.node.ends_with("-mill")), "{report:?}");
        assert_eq!(named(report), ["a-mill"]);
        assert!(report.findings.iter().all(|finding| finding.nodes_len == 1), "{report:?}");
        assert_eq!(refused.lock().unwrap().len(), 0);

        for (name, identity, why) in [
            ("clerk", Some(identity(CLERK)), "not-operator"),
            ("stranger", Some(identity(STRANGER)), "unknown-key"),
            // Also where unsigned events are taken.
            ("nobody", None, "unsigned"),
        ] {
            let told = by(name, identity).await;
            assert_eq!(own(&told), [("a", Err("untrusted")), ("b", Err("untrusted"))], "{name}");
            assert_eq!(std::mem::take(&mut *refused.lock().unwrap()), [json!(why), json!(why)], "{name}");
        }
        // An answer counts when it is signed by who speaks for the nodes.
        let theirs = TrustStore::new();
        theirs.trust(Trusted::new(public(SHOP)).nodes(["b-*"])).unwrap();
        let told = by("doubts", Some(Identity::new(key(MILLER)).trust(&theirs))).await;
        assert_eq!(own(&told), [("a", Err("untrusted")), ("b", Ok(vec!["b-mill"]))]);
        for space in [b, a] {
            space.stop().await.unwrap();
        }
    });
}

#[test]
fn dead_letters_of_many_nodes_begin_anew_page_by_page_each_at_its_process() {
    let sim = Simulator::new(3);
    sim.run(async {
        let world = World::new(&sim);
        let (a, b) = (world.process("a", None).await, world.process("b", None).await);
        world.env.sleep(secs(1)).await;
        world.broken.store(1, Ordering::SeqCst);
        let each = limits::CONTROL_LETTERS_MAX + 1;
        for number in 0..each {
            for to in ["a-mill", "b-mill"] {
                a.send(to, Event::new("grain", json!(number))).await.unwrap();
            }
        }
        world.env.sleep(secs(60)).await;
        assert_eq!(world.dead().await, 2 * each);
        // One process has gone: what is left of it is done to the log, for its next start.
        b.stop().await.unwrap();
        world.broken.store(0, Ordering::SeqCst);
        let operator = world.operator(world.hub.link("operator"), None).await;
        let (mut all, mut pages, mut after) = (0, 0, None);
        loop {
            let wanted = Letters { after: after.take(), ..Letters::default() };
            let told = letters(control::carry_out_among(&operator, &world.log, again(wanted)).await);
            assert!(told.letters.len() <= limits::CONTROL_LETTERS_MAX);
            assert!(told.letters.iter().all(|letter| letter.refused.is_none()), "{told:?}");
            (all, pages) = (all + told.letters.len(), pages + 1);
            match told.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(all, 2 * each, "each once, in {pages} pages");
        world.env.sleep(secs(60)).await;
        assert_eq!(mill(&a, "a"), each as u64);
        let b = world.process("b", None).await;
        world.env.sleep(secs(60)).await;
        assert_eq!(mill(&b, "b"), each as u64);
        assert_eq!(world.dead().await, 0);
        for space in [operator, b, a] {
            space.stop().await.unwrap();
        }
    });
}

/// A link over which the answers to so many requests are lost that were done, those of some come late, and some members
/// never answer.
#[derive(Debug)]
struct Lossy {
    link: Arc<dyn Link>,
    env: Arc<dyn Env>,
    lost: Arc<AtomicU32>,
    asked: AtomicU32,
    late: Mutex<BTreeMap<String, Duration>>,
    silent: Vec<Peer>,
    /// Requests that wait for those.
    waiting: Arc<AtomicU32>,
    most_waiting: AtomicU32,
}

impl Lossy {
    fn new(world: &World, name: &str) -> Self {
        Self {
            link: world.hub.link(name),
            env: Arc::clone(&world.env),
            lost: Arc::default(),
            asked: AtomicU32::new(0),
            late: Mutex::default(),
            silent: Vec::new(),
            waiting: Arc::default(),
            most_waiting: AtomicU32::new(0),
        }
    }
}

struct LateAnswer {
    replies: Box<dyn Replies>,
    late: Option<BoxFuture<'static, ()>>,
}

impl Replies for LateAnswer {
    fn poll_next(&mut self, task: &mut task::Context<'_>) -> Poll<Option<happen::Result<Vec<u8>>>> {
        if let Some(late) = &mut self.late {
            task::ready!(late.as_mut().poll(task));
            self.late = None;
        }
        self.replies.poll_next(task)
    }
}

/// One that never comes.
struct NoAnswer(Arc<AtomicU32>);

impl Replies for NoAnswer {
    fn poll_next(&mut self, _: &mut task::Context<'_>) -> Poll<Option<happen::Result<Vec<u8>>>> {
        Poll::Pending
    }
}

impl Drop for NoAnswer {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct LostAnswer {
    replies: Box<dyn Replies>,
    is_over: bool,
}

impl Replies for LostAnswer {
    fn poll_next(&mut self, task: &mut task::Context<'_>) -> Poll<Option<happen::Result<Vec<u8>>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        self.replies.poll_next(task).map(|_| {
            self.is_over = true;
            Some(Err(Error::new(ErrorKind::Closed { what: "the way".into() })))
        })
    }
}

impl Link for Lossy {
    fn name(&self) -> &str {
        self.link.name()
    }

    fn attach(&self, inbound: Arc<dyn Inbound>) -> BoxFuture<'_, happen::Result<()>> {
        self.link.attach(inbound)
    }

    fn changed(&self) {
        self.link.changed();
    }

    fn post(&self, to: &str, frame: Vec<u8>) -> happen::Result<()> {
        self.link.post(to, frame)
    }

    fn request(&self, to: &str, frame: Vec<u8>) -> happen::Result<Box<dyn Replies>> {
        if self.silent.iter().any(|peer| peer.nodes.iter().any(|node| node.id == to)) {
            let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_waiting.fetch_max(waiting, Ordering::SeqCst);
            return Ok(Box::new(NoAnswer(Arc::clone(&self.waiting))));
        }
        let replies = self.link.request(to, frame)?;
        if !to.starts_with(CONTROL) {
            return Ok(replies);
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(late) = self.late.lock().unwrap().get(to) {
            return Ok(Box::new(LateAnswer { replies, late: Some(self.env.sleep(*late)) }));
        }
        let lose = |left: u32| left.checked_sub(1);
        match self.lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose) {
            Ok(_) => Ok(Box::new(LostAnswer { replies, is_over: false })),
            Err(_) => Ok(replies),
        }
    }

    fn post_at(&self, member: &str, to: &str, frame: Vec<u8>) -> happen::Result<()> {
        self.link.post_at(member, to, frame)
    }

    fn request_at(&self, member: &str, to: &str, frame: Vec<u8>) -> happen::Result<Box<dyn Replies>> {
        self.link.request_at(member, to, frame)
    }

    fn publish(&self, event_type: &str, frame: Vec<u8>) -> happen::Result<()> {
        self.link.publish(event_type, frame)
    }

    fn listens(&self, event_type: &str) -> bool {
        self.link.listens(event_type)
    }

    fn peers(&self) -> Vec<Peer> {
        self.link.peers().into_iter().chain(self.silent.iter().cloned()).collect()
    }

    fn revision(&self) -> u64 {
        self.link.revision()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.link.close()
    }
}

#[test]
fn what_is_asked_by_hand_is_done_once_however_often_its_answer_is_lost() {
    let sim = Simulator::new(5);
    sim.run(async {
        let world = World::new(&sim);
        let a = world.process("a", None).await;
        let node = a.find("a-mill").unwrap();
        a.schedule("daily", "0 3 * * *", &node, Event::new("grain", json!(1))).await.unwrap();
        let lossy = Arc::new(Lossy::new(&world, "operator"));
        let operator = world.operator(Arc::clone(&lossy) as Arc<dyn Link>, None).await;
        let ask = async |request| control::carry_out_among(&operator, &world.log, request).await;

        lossy.lost.store(3, Ordering::SeqCst);
        assert_eq!(taken(ask(schedule("daily", ScheduleAct::Trigger)).await), 1);
        assert_eq!(lossy.asked.load(Ordering::SeqCst), 4);
        world.env.sleep(secs(1)).await;
        assert_eq!(mill(&a, "a"), 1, "a trigger that is told four times is one");
        // Done a second time it would be a conflict.
        lossy.lost.store(1, Ordering::SeqCst);
        ask(set("a-mill", 1, 10)).await.unwrap();
        let asked = world.told(&a, "ask").await;
        lossy.lost.store(1, Ordering::SeqCst);
        assert_eq!(flows(ask(Request::Cancel(of(asked))).await)[0].1, FlowBecame::Cancelled);
        // A refusal is an answer like any other.
        lossy.lost.store(1, Ordering::SeqCst);
        assert_eq!(ask(set("a-mill", 1, 20)).await.unwrap_err().code(), "conflict");

        // Nobody knows what became of one that is never answered.
        lossy.lost.store(u32::MAX, Ordering::SeqCst);
        let before = world.env.monotonic();
        let unknown = ask(schedule("daily", ScheduleAct::Trigger)).await.unwrap_err();
        assert_eq!(unknown.code(), "closed");
        assert!(unknown.to_string().contains("it is not known"), "{unknown}");
        let took = (world.env.monotonic() - before).as_millis() as u64;
        let slack = 2 * limits::CONTROL_AGAIN_WAIT_MS;
        assert!((limits::CONTROL_AGAIN_MS..=limits::CONTROL_AGAIN_MS + slack).contains(&took), "{took}");
        world.env.sleep(secs(1)).await;
        assert_eq!(mill(&a, "a"), 11, "and it was done once");

        // A process that was started anew is another one, and does nothing for the one before.
        let stopping = a.clone();
        let next = async {
            world.env.sleep(secs(1)).await;
            stopping.stop().await.unwrap();
            world.process("a", None).await
        };
        let (unknown, a) = tokio::join!(ask(schedule("daily", ScheduleAct::Trigger)), next);
        assert_eq!(unknown.unwrap_err().code(), "closed");
        world.env.sleep(secs(1)).await;
        a.find("a-mill").unwrap().state::<Ledger>().load().await.unwrap();
        assert_eq!(mill(&a, "a"), 12, "it was done by the one before alone");
        for space in [operator, a] {
            space.stop().await.unwrap();
        }
    });
}

#[test]
fn where_keys_are_trusted_only_an_operator_is_obeyed_and_only_for_its_nodes() {
    const SHOP: u8 = 1;
    const OPERATOR: u8 = 2;
    const CLERK: u8 = 3;
    let sim = Simulator::new(7);
    sim.run(async {
        let public = |number| key(number).public_key();
        let trust = TrustStore::new();
        trust.trust(Trusted::new(public(SHOP)).nodes(["a-*", "b-*", ""])).unwrap();
        trust.trust(Trusted::new(public(OPERATOR)).nodes([""]).operates(["a-*"])).unwrap();
        trust.trust(Trusted::new(public(CLERK)).nodes(["*"])).unwrap();
        let identity = |number| Identity::new(key(number)).trust(&trust);
        let world = World::new(&sim);
        let a = world.process("a", Some(identity(SHOP))).await;
        let b = world.process("b", Some(identity(SHOP).accept_unsigned())).await;
        let refused = Arc::new(Mutex::new(Vec::<Json>::new()));
        let (push, from_b) = (Arc::clone(&refused), Arc::clone(&refused));
        a.on("system.refused", move |told: &Event, _: &Context| {
            push.lock().unwrap().push(told.get("distrust").cloned().unwrap_or_default());
        });
        b.on("system.refused", move |told: &Event, _: &Context| {
            from_b.lock().unwrap().push(told.get("distrust").cloned().unwrap_or_default());
        });
        world.env.sleep(secs(1)).await;
        let told = |expected: Json| assert_eq!(refused.lock().unwrap().pop(), Some(expected));
        let log = &world.log;

        let operator = world.operator(world.hub.link("operator"), Some(identity(OPERATOR))).await;
        control::carry_out_among(&operator, log, set("a-mill", 0, 7)).await.unwrap();
        assert_eq!(mill(&a, "a"), 7);
        let denied = control::carry_out_among(&operator, log, set("b-mill", 0, 7)).await.unwrap_err();
        assert_eq!(denied.code(), "untrusted");
        told(json!("not-operator"));

        // One that may send in the name of everybody is no operator.
        let clerk = world.operator(world.hub.link("clerk"), Some(identity(CLERK))).await;
        let denied = control::carry_out_among(&clerk, log, set("a-mill", 1, 8)).await.unwrap_err();
        assert_eq!(denied.code(), "untrusted");
        told(json!("not-operator"));

        // Nobody's word counts, also where unsigned events are taken.
        let nobody = world.operator(world.hub.link("nobody"), None).await;
        for node in ["a-mill", "b-mill"] {
            let denied = control::carry_out_among(&nobody, log, set(node, 1, 8)).await.unwrap_err();
            assert_eq!(denied.code(), "untrusted", "{node}");
            told(json!("unsigned"));
        }
        trust.revoke(&public(OPERATOR)).unwrap();
        let denied = control::carry_out_among(&operator, log, set("a-mill", 1, 8)).await.unwrap_err();
        assert_eq!(denied.code(), "untrusted");
        told(json!("revoked-key"));
        assert_eq!((mill(&a, "a"), mill(&b, "b")), (7, 0));
        assert!(refused.lock().unwrap().is_empty());
        for space in [nobody, clerk, operator, b, a] {
            space.stop().await.unwrap();
        }
    });
}

#[test]
fn an_answer_counts_only_when_it_is_signed_by_who_speaks_for_the_node() {
    const SHOP: u8 = 1;
    const OPERATOR: u8 = 2;
    let sim = Simulator::new(9);
    sim.run(async {
        let public = |number| key(number).public_key();
        // What the process believes, and what the operator does.
        let (theirs, ours) = (TrustStore::new(), TrustStore::new());
        theirs.trust(Trusted::new(public(OPERATOR)).nodes([""]).operates(["*"])).unwrap();
        ours.trust(Trusted::new(public(SHOP)).nodes(["orders"])).unwrap();
        let world = World::new(&sim);
        let a = world.process("a", Some(Identity::new(key(SHOP)).trust(&theirs))).await;
        let identity = Identity::new(key(OPERATOR)).trust(&ours);
        let operator = world.operator(world.hub.link("operator"), Some(identity)).await;
        let unbelieved = control::carry_out_among(&operator, &world.log, set("a-mill", 0, 7)).await;
        assert_eq!(unbelieved.unwrap_err().code(), "untrusted");
        for space in [operator, a] {
            space.stop().await.unwrap();
        }
    });
}

#[test]
fn what_is_no_request_of_a_process_is_refused_and_changes_nothing() {
    let sim = Simulator::new(11);
    sim.run(async {
        let world = World::new(&sim);
        let a = world.process("a", None).await;
        let operator = world.operator(world.hub.link("operator"), None).await;
        let id = operator_sees(&world, "a");
        // Whatever is sent to the id as an event like any other.
        let asked = |event_type: &str, payload| {
            let event = Event::new(event_type, payload);
            operator.send(id.as_str(), event).reply::<Json>()
        };
        for (event_type, payload) in [
            ("grain", json!(1)),
            ("$control", Json::Null),
            ("$control", json!({ "node": "a-mill", "request": "stats" })),
            ("$control", json!({ "node": "a-mill", "request": { "drop": {} } })),
            ("$control", json!({ "node": "a-mill", "request": { "drop": { "node": "a-smith" } } })),
            ("$control", json!({ "node": "a-mill", "request": { "drop": { "node": "a-mill" } }, "more": 1 })),
            (
                "$control",
                json!({ "node": "a-mill", "request": {
                "set-state": { "key": "state/a-smith/ledger", "revision": 0, "shape": 1, "content": {} },
            } }),
            ),
        ] {
            let refused = asked(event_type, payload.clone()).await.unwrap_err();
            assert_eq!(refused.code(), "misuse", "{event_type} {payload}: {refused}");
        }
        let at = format!("{CONTROL}another");
        let unknown = operator.send(at.as_str(), Event::new("$control", Json::Null)).reply::<Json>().await;
        assert_eq!(unknown.unwrap_err().code(), "no-such-node");
        // It is told of as nobody's node.
        assert!(operator.remote_nodes().iter().all(|node| !node.id.starts_with('$')));
        assert_eq!(mill(&a, "a"), 0);
        for space in [operator, a] {
            space.stop().await.unwrap();
        }
    });
}

/// The id by which a process is asked, as a further member of the link sees it.
fn operator_sees(world: &World, member: &str) -> String {
    let peers = world.hub.link("looks").peers();
    let nodes = peers.into_iter().filter(|peer| peer.name == member).flat_map(|peer| peer.nodes);
    nodes.map(|node| node.id).find(|id| id.starts_with(CONTROL)).unwrap()
}
