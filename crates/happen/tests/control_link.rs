//! What people ask by hand on a log of several processes: each request goes over the link to the process that has the node,
//! and is done there once. What the requests do is in `control.rs`. In virtual time.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{self, Poll};

use happen::control::{
    self, Answer, FlowBecame, FlowsOf, Letters, LettersByHand, Mode, OfSchedule, Redrive, Request,
    ScheduleAct, SetState,
};
use happen::identity::{Identity, KeyKind, Seed, Signer, TrustStore, Trusted};
use happen::store::{List, MemoryStore, Store};
use happen::{Config, Context, Error, ErrorKind, Event, EventId, Hub, Link, Space, limits, secs};
use happen_core::env::{BoxFuture, Env};
use happen_core::link::{CONTROL, Inbound, Peer, Replies};
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
    /// Whether mills grind.
    broken: Arc<AtomicU32>,
}

impl World {
    fn new(sim: &Simulator) -> Self {
        let env = sim.env();
        let log = Arc::new(MemoryStore::new(Arc::clone(&env)).shared());
        Self { hub: Hub::in_env(Arc::clone(&env)), env, log, broken: Arc::default() }
    }

    /// A process with a mill, an office and a smithy whose names begin so.
    async fn process(&self, name: &str, identity: Option<Identity>) -> Space {
        let space =
            Space::with_store(Config::default(), Arc::clone(&self.env), Arc::clone(&self.log)).unwrap();
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

/// A link over which the answers to so many requests are lost that were done.
#[derive(Debug)]
struct Lossy {
    link: Arc<dyn Link>,
    lost: Arc<AtomicU32>,
    asked: AtomicU32,
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
        let replies = self.link.request(to, frame)?;
        if !to.starts_with(CONTROL) {
            return Ok(replies);
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
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
        self.link.peers()
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
        let link = world.hub.link("operator");
        let lossy = Arc::new(Lossy { link, lost: Arc::default(), asked: AtomicU32::new(0) });
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
        let refused = Arc::new(std::sync::Mutex::new(Vec::<Json>::new()));
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
