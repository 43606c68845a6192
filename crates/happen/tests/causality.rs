//! Why things happen: causes, correlation, path and inheritance of everything a system sends, the limits that end
//! runaway loops, and the memory that `trace`, `why` and `impact` read.
#![expect(
    clippy::await_holding_lock,
    reason = "one thread, and nothing else runs when the outcome is looked at"
)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use happen::config::CorrelationLimits;
use happen::{
    Batch, Config, Context, Envelope, Error, ErrorKind, Event, EventId, Failure, Node, Space, TraceContext,
    TraceOutcome, User,
};
use happen_testing::Simulator;
use proptest::prelude::*;
use serde_json::json;

// Random little systems.

/// What a handler does, one after the other. Everything it sends is of the next level, so every system ends.
#[derive(Debug, Clone)]
enum Act {
    Send(usize),
    Ask(usize),
    Replies,
    ReplyWith(usize),
    Forget(usize),
    Stream(usize),
    Batch(usize, usize),
    Broadcast,
    /// Through a handle of another node that the handler captured.
    Captured(usize, usize),
    /// Through the space, as somebody outside would.
    Outside(usize),
    Spawn(Vec<Act>),
    Offload,
    Wait(u64),
    Emit,
    Fail,
}

/// How a node takes the events of one level.
#[derive(Debug, Clone)]
enum Handling {
    Asynchronous(Vec<Act>),
    Together(Vec<Act>),
    Plain(Vec<Act>),
}

#[derive(Debug, Clone)]
struct System {
    /// By node, then by level.
    nodes: Vec<Vec<Handling>>,
    roots: Vec<Act>,
    root_senders: Vec<Option<usize>>,
}

const LEVELS: usize = 3;

fn act(nodes: usize) -> impl Strategy<Value = Act> {
    let node = 0..nodes;
    let leaf = prop_oneof![
        3 => node.clone().prop_map(Act::Send),
        3 => node.clone().prop_map(Act::Ask),
        1 => Just(Act::Replies),
        1 => node.clone().prop_map(Act::ReplyWith),
        1 => node.clone().prop_map(Act::Forget),
        1 => node.clone().prop_map(Act::Stream),
        2 => (node.clone(), 1..4usize).prop_map(|(to, len)| Act::Batch(to, len)),
        2 => Just(Act::Broadcast),
        2 => (node.clone(), node.clone()).prop_map(|(via, to)| Act::Captured(via, to)),
        1 => node.prop_map(Act::Outside),
        1 => Just(Act::Offload),
        3 => (0..20u64).prop_map(Act::Wait),
        1 => Just(Act::Emit),
        1 => Just(Act::Fail),
    ];
    leaf.prop_recursive(2, 4, 2, |inner| prop::collection::vec(inner, 1..3).prop_map(Act::Spawn))
}

fn system() -> impl Strategy<Value = System> {
    (2..5usize).prop_flat_map(|nodes| {
        let handling = prop_oneof![
            3 => prop::collection::vec(act(nodes), 0..4).prop_map(Handling::Asynchronous),
            1 => prop::collection::vec(act(nodes), 0..4).prop_map(Handling::Together),
            1 => prop::collection::vec(act(nodes), 0..4).prop_map(Handling::Plain),
        ];
        let by_level = prop::collection::vec(handling, LEVELS);
        let roots = prop::collection::vec(act(nodes), 1..4);
        let senders = prop::collection::vec(prop::option::of(0..nodes), 4);
        (prop::collection::vec(by_level, nodes), roots, senders)
            .prop_map(|(nodes, roots, root_senders)| System { nodes, roots, root_senders })
    })
}

/// Everything that was sent, and what handlers saw.
#[derive(Default)]
struct Seen {
    sent: Vec<Envelope>,
    /// An event, as it was handled, with the events its sender handled when it sent it.
    handled: Vec<(Envelope, Vec<EventId>)>,
    heard: BTreeSet<EventId>,
}

type Shared = Arc<Mutex<Seen>>;

/// Who acts: the way to send, and the events that must turn out to be the causes.
#[derive(Clone)]
struct Actor {
    space: Space,
    nodes: Vec<Node>,
    context: Option<Context>,
    sender: Option<usize>,
    level: usize,
    by: Vec<EventId>,
}

impl Actor {
    fn event(&self) -> happen::Dynamic {
        Event::new(&format!("level{}.thing", self.level), json!({ "by": self.by }))
    }

    fn do_now(&self, act: &Act) -> Result<(), Error> {
        match (act, &self.context) {
            (Act::Broadcast | Act::Send(_), Some(context)) => context.broadcast(self.event()).map(drop),
            (Act::Broadcast, None) => match self.sender {
                Some(sender) => self.nodes[sender].broadcast(self.event()).map(drop),
                None => self.space.broadcast(self.event()).map(drop),
            },
            (Act::Captured(via, to), _) => {
                self.nodes[*via].send(&self.nodes[*to], self.event()).forget();
                Ok(())
            }
            (Act::Outside(to), _) => {
                self.space.send(&self.nodes[*to], self.event()).forget();
                Ok(())
            }
            (Act::Fail, _) => Err(Error::msg("as told")),
            _ => Ok(()),
        }
    }

    fn run<'a>(&'a self, acts: &'a [Act]) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>> {
        Box::pin(async move {
            for act in acts {
                self.run_one(act).await?;
            }
            Ok(())
        })
    }

    async fn run_one(&self, act: &Act) -> Result<(), Error> {
        let sending = |to: usize| match (&self.context, self.sender) {
            (Some(context), _) => context.send(&self.nodes[to], self.event()),
            (None, Some(sender)) => self.nodes[sender].send(&self.nodes[to], self.event()),
            (None, None) => self.space.send(&self.nodes[to], self.event()),
        };
        match act {
            Act::Send(to) => {
                sending(*to).await?;
            }
            // Failures of others are told by their own events; here it matters who caused what.
            Act::Ask(to) => drop(sending(*to).reply::<()>().await),
            Act::ReplyWith(to) => {
                let then = Self { level: self.level + 1, ..self.clone() };
                let told = self.event();
                sending(*to).reply_with::<()>(move |_| {
                    if then.level <= LEVELS {
                        then.space.broadcast(told).map(drop).unwrap_or_default();
                    }
                });
            }
            Act::Replies => {
                let replies = match &self.context {
                    Some(context) => context.send(&self.nodes[..], self.event()).replies::<()>().await,
                    None => self.space.send(&self.nodes[..], self.event()).replies::<()>().await,
                };
                assert_eq!(replies.len(), self.nodes.len());
            }
            Act::Forget(to) => sending(*to).forget(),
            Act::Stream(to) => {
                let mut items = sending(*to).stream::<u64>();
                while let Some(Ok(_)) = items.next().await {
                    self.do_now(&Act::Broadcast)?;
                }
            }
            Act::Batch(to, len) => {
                let events: Vec<_> = (0..*len).map(|_| self.event()).collect();
                match &self.context {
                    Some(context) => context.send(&self.nodes[*to], events).await?,
                    None => self.space.send(&self.nodes[*to], events).await?,
                };
            }
            Act::Spawn(acts) => match &self.context {
                Some(context) => {
                    let (actor, acts) = (self.clone(), acts.clone());
                    context.spawn(async move { actor.run(&acts).await.unwrap_or_default() });
                }
                None => self.run(acts).await?,
            },
            Act::Offload => {
                if let Some(context) = &self.context {
                    let (space, event) = (self.space.clone(), self.event());
                    context.offload(move || space.broadcast(event)).await??;
                }
            }
            Act::Wait(ms) => self.space.env().sleep(Duration::from_millis(*ms)).await,
            Act::Emit => {
                if let Some(context) = &self.context {
                    context.emit(7u64).await.unwrap_or_default();
                }
            }
            Act::Broadcast | Act::Captured(..) | Act::Outside(_) | Act::Fail => self.do_now(act)?,
        }
        Ok(())
    }
}

fn note(seen: &Shared, event: &Event) -> EventId {
    let by = serde_json::from_value(event.get("by").unwrap().clone()).unwrap();
    seen.lock().unwrap().handled.push((event.envelope().clone(), by));
    event.id()
}

fn build(space: &Space, system: &System, seen: &Shared) -> Vec<Node> {
    let nodes: Vec<_> = (0..system.nodes.len()).map(|index| space.node(format!("n{index}"))).collect();
    for (index, levels) in system.nodes.iter().enumerate() {
        for (level, handling) in levels.iter().enumerate() {
            let actor = Actor {
                space: space.clone(),
                nodes: nodes.clone(),
                context: None,
                sender: None,
                level: level + 1,
                by: Vec::new(),
            };
            let pattern = format!("level{level}.*");
            let given = (actor, seen.clone());
            let registration = match handling.clone() {
                Handling::Asynchronous(acts) => nodes[index].on(
                    pattern,
                    happen::with(
                        (given, acts),
                        async |given: ((Actor, Shared), Vec<Act>), event: Event, cx: Context| {
                            let ((mut actor, seen), acts) = given;
                            actor.by = vec![note(&seen, &event)];
                            actor.context = Some(cx);
                            actor.run(&acts).await
                        },
                    ),
                ),
                Handling::Together(acts) => nodes[index].on(
                    pattern,
                    happen::with(
                        (given, acts),
                        async |given: ((Actor, Shared), Vec<Act>), batch: Batch, cx: Context| {
                            let ((mut actor, seen), acts) = given;
                            actor.by = batch.iter().map(|event| note(&seen, event)).collect();
                            actor.context = Some(cx);
                            actor.run(&acts).await
                        },
                    ),
                ),
                Handling::Plain(acts) => nodes[index].on(pattern, move |event: &Event, cx: &Context| {
                    let (mut actor, seen) = given.clone();
                    actor.by = vec![note(&seen, event)];
                    actor.context = Some(cx.clone());
                    acts.iter().try_for_each(|act| actor.do_now(act))
                }),
            };
            registration.check().unwrap();
        }
    }
    nodes
}

fn run_system(system: &System, seed: u64) {
    let sim = Simulator::new(seed);
    let config = Config { remembered_events: 1 << 15, ..Config::default() };
    let space = Space::in_env(config, sim.env()).unwrap();
    let seen = Shared::default();
    let sent = seen.clone();
    space.before_emit(0, move |emitted| {
        sent.lock().unwrap().sent.push(emitted.event.unwrap().envelope().clone());
        Ok(())
    });
    let nodes = build(&space, system, &seen);
    let heard = seen.clone();
    let audit = space.node("audit");
    audit
        .on("**", move |event: &Event, _: &Context| {
            heard.lock().unwrap().heard.insert(event.id());
        })
        .check()
        .unwrap();
    sim.run(async {
        space.start().await.unwrap();
        for (act, sender) in system.roots.iter().zip(&system.root_senders) {
            let actor = Actor {
                space: space.clone(),
                nodes: nodes.clone(),
                context: None,
                sender: *sender,
                level: 0,
                by: Vec::new(),
            };
            actor.run_one(act).await.unwrap_or_default();
        }
        space.settled(Duration::from_secs(60)).await.unwrap();
        // Tasks beside the flows: they sleep for less than that.
        space.env().sleep(Duration::from_secs(1)).await;
        check_web(&space, &seen.lock().unwrap()).await;
    });
}

async fn check_web(space: &Space, seen: &Seen) {
    let all: BTreeMap<EventId, &Envelope> =
        seen.sent.iter().map(|envelope| (envelope.id, envelope)).collect();
    assert_eq!(all.len(), seen.sent.len(), "every event has an id of its own");
    for envelope in &seen.sent {
        check_envelope(envelope, &all);
    }
    for (envelope, by) in &seen.handled {
        assert_eq!(
            envelope.causes().collect::<Vec<_>>(),
            *by,
            "{envelope:?} was sent by the handler of {by:?}"
        );
    }
    for heard in &seen.heard {
        assert!(all.contains_key(heard), "nobody sent {heard}");
    }
    let ids: Vec<_> = all.keys().copied().collect();
    let ordered = space.causal_order(ids.iter().rev().copied());
    assert_eq!(ordered.len(), ids.len());
    let place: HashMap<_, _> = ordered.iter().enumerate().map(|(place, id)| (*id, place)).collect();
    for envelope in &seen.sent {
        for cause in envelope.causes() {
            assert!(place[&cause] < place[&envelope.id], "{cause} before {}", envelope.id);
        }
    }
    let mut why = HashMap::new();
    for (id, envelope) in &all {
        let mut expected = BTreeSet::new();
        for cause in envelope.causes() {
            expected.insert(cause);
            // Ids ascend from cause to effect, so the sets of the causes are there already.
            let further: &BTreeSet<EventId> = &why[&cause];
            expected.extend(further);
        }
        let found = space.why(*id).await.unwrap();
        assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), expected);
        assert_eq!(found.len(), expected.len());
        why.insert(*id, expected);
    }
    for id in ids.iter().step_by(1 + ids.len() / 20) {
        let impact = space.impact(*id).await.unwrap();
        let expected: BTreeSet<_> = ids.iter().copied().filter(|other| why[other].contains(id)).collect();
        assert_eq!(impact.iter().copied().collect::<BTreeSet<_>>(), expected, "why and impact are inverse");
        check_trace(space, *id, &all, &why).await;
    }
}

fn check_envelope(envelope: &Envelope, all: &BTreeMap<EventId, &Envelope>) {
    let hops: Vec<_> = envelope.path.hops().collect();
    let Some(cause) = envelope.cause else {
        assert_eq!((envelope.root, envelope.depth), (envelope.id, 0));
        assert_eq!(envelope.origin, envelope.sender);
        let sender = (envelope.sender.0 != 0).then_some(envelope.sender);
        assert_eq!(hops, sender.into_iter().collect::<Vec<_>>());
        return;
    };
    for cause in envelope.causes() {
        assert!(all.contains_key(&cause), "{cause} is known");
        assert!(cause < envelope.id, "a cause is older than its effect");
    }
    let cause = all[&cause];
    let root = all[&cause.root];
    assert_eq!(envelope.root, cause.root);
    assert_eq!(envelope.correlation(), cause.correlation());
    assert_eq!(envelope.depth, cause.depth + 1);
    assert_eq!(envelope.origin, root.sender);
    if envelope.sender.0 != 0 {
        assert_eq!(hops.first(), Some(&envelope.sender), "the nearest hop is the sender");
    }
    let further: Vec<_> = cause.path.hops().take(4).collect();
    assert_eq!(hops[1..], further, "the path goes on where the cause's ends");
}

async fn check_trace(
    space: &Space,
    asked: EventId,
    all: &BTreeMap<EventId, &Envelope>,
    why: &HashMap<EventId, BTreeSet<EventId>>,
) {
    let trace = space.trace(asked).await.unwrap();
    assert!(!trace.is_cut());
    let mut place = HashMap::new();
    for (index, line) in trace.lines().iter().enumerate() {
        assert_eq!(place.insert(line.event, index), None, "shown once");
        let envelope = all[&line.event];
        assert_eq!(line.causes, envelope.causes().collect::<Vec<_>>());
        assert_eq!(line.event_type, envelope.event_type.as_str());
        assert_eq!(line.asked_for, line.event == asked);
    }
    for line in trace.lines() {
        for cause in &line.causes {
            if let Some(cause) = place.get(cause) {
                assert!(*cause < place[&line.event], "causes stand before effects in\n{trace}");
            }
        }
    }
    let mut roots: BTreeSet<_> = why[&asked].iter().filter(|id| all[id].cause.is_none()).copied().collect();
    if roots.is_empty() {
        roots.insert(asked);
    }
    let expected = all.keys().filter(|id| roots.contains(id) || !why[id].is_disjoint(&roots));
    assert_eq!(place.len(), expected.count(), "everything below the roots of {asked} in\n{trace}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_web_of_any_system_is_whole(system in system(), seed in any::<u64>()) {
        run_system(&system, seed);
    }
}

// Ids.

/// A space whose clock stands, so that ids cannot lean on the time.
fn standing(sim: &Simulator, config: Config) -> Space {
    let space = Space::in_env(config, sim.env()).unwrap();
    sim.run(async { space.start().await.unwrap() });
    space
}

#[test]
fn a_million_ids_of_many_threads_and_two_spaces_are_unique_and_ascend() {
    let sim = Simulator::new(1);
    let spaces = [standing(&sim, Config::default()), standing(&sim, Config::default())];
    let all = Mutex::new(Vec::new());
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                let mut own = [Vec::new(), Vec::new()];
                for index in 0..125_000 {
                    own[index % 2]
                        .push(spaces[index % 2].broadcast(Event::new("tick", json!(null))).unwrap());
                }
                for ids in own {
                    assert!(ids.is_sorted_by(|a, b| a < b));
                    all.lock().unwrap().extend(ids);
                }
            });
        }
    });
    let all = all.into_inner().unwrap();
    assert_eq!(all.len(), 1_000_000);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 1_000_000);
}

#[test]
fn ids_ascend_when_the_clock_jumps_back() {
    let sim = Simulator::new(1);
    let space = standing(&sim, Config::default());
    let mut last = space.broadcast(Event::new("tick", json!(null))).unwrap();
    for back in [1, 1_000, 3_600_000] {
        sim.jump_clock_back(Duration::from_millis(back));
        for _ in 0..100 {
            let id = space.broadcast(Event::new("tick", json!(null))).unwrap();
            assert!(id > last);
            last = id;
        }
    }
}

#[test]
fn an_effect_is_younger_than_its_cause_on_another_thread_whatever_the_clock_says() {
    for back in [0, 5_000] {
        let sim = Simulator::new(1);
        let space = standing(&sim, Config::default());
        for _ in 0..1_000 {
            space.broadcast(Event::new("tick", json!(null))).unwrap();
        }
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        let node = space.node("node");
        node.on("cause", move |_: &Event, cx: &Context| *keep.lock().unwrap() = Some(cx.clone()))
            .check()
            .unwrap();
        let cause = space.broadcast(Event::new("cause", json!(null))).unwrap();
        let context = kept.lock().unwrap().take().unwrap();
        sim.jump_clock_back(Duration::from_millis(back));
        let effect = std::thread::scope(|scope| {
            scope.spawn(|| context.broadcast(Event::new("effect", json!(null))).unwrap()).join().unwrap()
        });
        assert!(effect > cause, "{effect} was caused by {cause}");
    }
}

// Limits.

fn limited(correlation: CorrelationLimits) -> Config {
    Config { correlation, ..Config::default() }
}

/// Runs a test in virtual time.
fn simulate<F: Future<Output = ()>>(config: Config, test: impl FnOnce(Space) -> F) {
    let sim = Simulator::new(7);
    let space = Space::in_env(config, sim.env()).unwrap();
    sim.run(test(space));
}

fn number(event: &Event) -> u64 {
    event.get("n").and_then(serde_json::Value::as_u64).unwrap()
}

fn step(n: u64) -> happen::Dynamic {
    Event::new("step", json!({ "n": n }))
}

#[test]
fn the_depth_of_a_correlation_is_limited() {
    simulate(limited(CorrelationLimits { depth_max: 5, ..CorrelationLimits::default() }), async |space| {
        let node = space.node("node");
        node.on("step", async |event: Event, cx: Context| match number(&event) {
            0 => Ok(u64::from(cx.envelope().depth)),
            n => cx.send("node", step(n - 1)).reply::<u64>().await.map(happen::Reply::into_inner),
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        for n in [4, 5] {
            assert_eq!(*space.send(&node, step(n)).reply::<u64>().await.unwrap(), n);
        }
        let error = space.send(&node, step(6)).reply::<u64>().await.unwrap_err();
        let ErrorKind::Runaway { limit, max, path } = error.kind() else { panic!("{error:?}") };
        assert_eq!((*limit, *max, path.len()), ("correlation.depth_max", 5, 6));
    });
}

#[test]
fn the_fan_out_of_a_flow_is_limited() {
    simulate(limited(CorrelationLimits { fan_out_max: 3, ..CorrelationLimits::default() }), async |space| {
        let node = space.node("node");
        node.on("fan-out", |event: &Event, cx: &Context| -> happen::Result<u64> {
            let n = number(event);
            (0..n).try_for_each(|_| cx.broadcast(Event::new("part", json!(null))).map(drop))?;
            Ok(n)
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        let fan_out = |n: u64| Event::new("fan-out", json!({ "n": n }));
        for n in [2, 3] {
            assert_eq!(*space.send(&node, fan_out(n)).reply::<u64>().await.unwrap(), n);
        }
        let error = space.send(&node, fan_out(4)).reply::<u64>().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Runaway { limit: "correlation.fan_out_max", max: 3, .. }));
    });
}

#[test]
fn the_number_of_events_below_one_root_is_limited() {
    simulate(limited(CorrelationLimits { events_max: 6, ..CorrelationLimits::default() }), async |space| {
        let node = space.node("node");
        // Each step is two events: wide and deep count the same.
        node.on("step", |event: &Event, cx: &Context| -> happen::Result<()> {
            if number(event) > 0 {
                cx.broadcast(Event::new("aside", json!(null)))?;
            }
            if number(event) > 1 {
                cx.broadcast(step(number(event) - 2))?;
            }
            Ok(())
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hear = heard.clone();
        space
            .on("*.error", move |failure: &Event<Failure>, _: &Context| {
                hear.lock().unwrap().push(failure.code.clone())
            })
            .check()
            .unwrap();
        for (n, failures) in [(5, 0), (6, 0), (7, 1)] {
            space.send(&node, step(n)).await.unwrap();
            assert_eq!(heard.lock().unwrap().len(), failures, "{n} events");
        }
        assert_eq!(*heard.lock().unwrap(), ["runaway"]);
    });
}

#[test]
fn a_correlation_ends_at_its_deadline() {
    simulate(
        limited(CorrelationLimits { deadline_ms: 100, ..CorrelationLimits::default() }),
        async |space| {
            let node = space.node("node");
            node.on("late", async |event: Event, cx: Context| {
                cx.sleep(Duration::from_millis(number(&event))).await;
                let effect = cx.send("node", Event::new("effect", json!(null)));
                effect.reply::<bool>().await.map(happen::Reply::into_inner)
            })
            .check()
            .unwrap();
            node.on("effect", |_: &Event, _: &Context| true).check().unwrap();
            space.start().await.unwrap();
            let late = |ms: u64| Event::new("late", json!({ "n": ms }));
            assert!(*space.send(&node, late(99)).reply::<bool>().await.unwrap());
            for ms in [100, 101] {
                let error = space.send(&node, late(ms)).reply::<bool>().await.unwrap_err();
                assert_eq!(
                    error.kind(),
                    &ErrorKind::TimedOut { after: Duration::from_millis(100 - ms.min(100)) }
                );
            }
        },
    );
}

#[test]
fn a_runaway_loop_ends_with_its_way_and_nothing_else_is_lost() {
    simulate(
        limited(CorrelationLimits { depth_max: 1_000, ..CorrelationLimits::default() }),
        async |space| {
            let (a, b) = (space.node("a"), space.node("b"));
            let rounds = Arc::new(AtomicU64::new(0));
            let count = rounds.clone();
            a.on("pong", move |_: &Event, cx: &Context| {
                count.fetch_add(1, Ordering::Relaxed);
                cx.broadcast(Event::new("ping", json!(null))).map(drop)
            })
            .check()
            .unwrap();
            b.on("ping", |_: &Event, cx: &Context| cx.broadcast(Event::new("pong", json!(null))).map(drop))
                .check()
                .unwrap();
            b.on("ordinary", |_: &Event, _: &Context| 7u64).check().unwrap();
            let failures = Arc::new(Mutex::new(Vec::new()));
            let keep = failures.clone();
            space
                .on("*.error", move |failure: &Event<Failure>, _: &Context| {
                    keep.lock().unwrap().push(failure.payload().clone())
                })
                .check()
                .unwrap();
            space.start().await.unwrap();
            space.broadcast(Event::new("ping", json!(null))).unwrap();
            assert_eq!(rounds.load(Ordering::Relaxed), 500);
            let failures = failures.lock().unwrap();
            let [failure] = &failures[..] else { panic!("{failures:?}") };
            assert_eq!((&*failure.code, &*failure.node), ("runaway", "b"));
            assert!(
                failure.causes[0].contains("pong at a -> ping at b -> pong at a -> ping at b"),
                "{:?}",
                failure.causes
            );
            assert_eq!(
                *space.send("b", Event::new("ordinary", json!(null))).reply::<u64>().await.unwrap(),
                7
            );
            assert_eq!(space.dead_letters().len(), 0);
        },
    );
}

#[test]
fn what_a_runaway_flow_sends_without_waiting_goes_to_the_dead_letters() {
    simulate(limited(CorrelationLimits { fan_out_max: 1, ..CorrelationLimits::default() }), async |space| {
        let node = space.node("node");
        node.on("start", |_: &Event, cx: &Context| {
            cx.send("node", step(1)).forget();
            cx.send("node", step(2)).forget();
        })
        .check()
        .unwrap();
        node.on("step", |_: &Event, _: &Context| ()).check().unwrap();
        space.start().await.unwrap();
        space.send(&node, Event::new("start", json!(null))).await.unwrap();
        let letters = space.dead_letters();
        let [letter] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!((letter.code, letter.event_type(), &*letter.node), ("runaway", "step", "node"));
    });
}

#[test]
fn an_error_while_handling_an_error_goes_to_the_dead_letters_and_ends() {
    simulate(Config::default(), async |space| {
        let node = space.node("node");
        node.on("work", |_: &Event, _: &Context| -> happen::Result<()> { Err(Error::msg("broken")) })
            .check()
            .unwrap();
        let errors = Arc::new(AtomicU64::new(0));
        let count = errors.clone();
        node.on("**.error", move |_: &Event, _: &Context| -> happen::Result<()> {
            count.fetch_add(1, Ordering::Relaxed);
            Err(Error::msg("broken too"))
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        let work = space.send(&node, Event::new("work", json!(null))).await.unwrap();
        assert_eq!(errors.load(Ordering::Relaxed), 1);
        let letters = space.dead_letters();
        let [letter] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!(
            (letter.event_type(), letter.code, &letter.causes[..]),
            ("work.error", "failed", &["broken too".to_owned()][..])
        );
        assert_eq!(space.why(letter.event_id()).await.unwrap(), [work.event_id()]);
    });
}

#[test]
fn the_error_of_a_batch_is_caused_by_all_of_it() {
    simulate(Config::default(), async |space| {
        let node = space.node("node");
        node.on("work", async |_: Batch, _: Context| -> happen::Result<()> { Err(Error::msg("broken")) })
            .check()
            .unwrap();
        let causes = Arc::new(Mutex::new(Vec::new()));
        let keep = causes.clone();
        space
            .on("*.error", move |failure: &Event<Failure>, _: &Context| {
                keep.lock().unwrap().extend(failure.causes())
            })
            .check()
            .unwrap();
        space.start().await.unwrap();
        let first = space.send(&node, [1, 2, 3].map(|_| Event::new("work", json!(null)))).await.unwrap();
        let causes = causes.lock().unwrap();
        assert_eq!((causes.len(), causes[0]), (3, first.event_id()));
    });
}

// Inheritance.

#[test]
fn an_effect_inherits_what_its_root_was_given_and_no_metadata() {
    simulate(Config::default(), async |space| {
        let (a, b) = (space.node("a"), space.node("b"));
        a.on("first", async |_: Event, cx: Context| {
            cx.sleep(Duration::from_millis(1)).await;
            cx.send("b", Event::new("second", json!(null))).metadata("own", 2).await.map(drop)
        })
        .check()
        .unwrap();
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        b.on("second", move |event: &Event, cx: &Context| {
            assert_eq!(cx.correlation(), "order-7");
            *keep.lock().unwrap() = Some(event.envelope().clone());
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        let user = User { id: "ada".into(), permissions: vec!["pay".into()] };
        let trace = TraceContext { parent: "00-1-2-01".into(), state: "x=y".into() };
        let root = space
            .send(&a, Event::new("first", json!(null)))
            .correlation("order-7")
            .from_source("tenant", "acme")
            .user(user.clone())
            .trace_context(trace.clone())
            .metadata("note", 1)
            .reply::<()>()
            .await
            .unwrap();
        let envelope = kept.lock().unwrap().take().unwrap();
        let inherited = envelope.inherited().unwrap();
        assert_eq!(
            inherited.source_type.as_deref().zip(inherited.source_id.as_deref()),
            Some(("tenant", "acme"))
        );
        assert_eq!(inherited.user.as_deref(), Some(&user));
        assert_eq!(inherited.trace.as_deref(), Some(&trace));
        assert_eq!((envelope.root, envelope.cause), (root.event_id(), Some(root.event_id())));
        assert_eq!(envelope.extra.unwrap().metadata, BTreeMap::from([("own".to_owned(), json!(2))]));
        let trace = space.trace("order-7").await.unwrap();
        assert_eq!(
            trace.lines().iter().map(|line| &*line.event_type).collect::<Vec<_>>(),
            ["first", "second"]
        );
    });
}

#[test]
fn what_belongs_to_a_root_is_refused_inside_a_handler() {
    simulate(Config::default(), async |space| {
        let node = space.node("node");
        node.on("step", async |event: Event, cx: Context| -> happen::Result<()> {
            let effect = cx.send("node", Event::new("effect", json!(null)));
            let effect = match number(&event) {
                0 => effect.correlation("mine"),
                1 => effect.from_source("user", "admin"),
                2 => effect.user(User { id: "admin".into(), permissions: Vec::new() }),
                _ => effect
                    .on_behalf_of("user", "bob")
                    .user(User { id: "bob".into(), permissions: Vec::new() }),
            };
            effect.await.map(drop)
        })
        .check()
        .unwrap();
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keep = kept.clone();
        node.on("effect", move |event: &Event, _: &Context| {
            keep.lock().unwrap().push(event.envelope().clone())
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        for n in 0..3 {
            let root = space.send(&node, step(n)).from_source("user", "ada");
            let error = root.reply::<()>().await.unwrap_err();
            assert_eq!(error.code(), "misuse", "{n}: {error}");
            assert!(error.to_string().contains("inside a handler"), "{error}");
        }
        assert!(kept.lock().unwrap().is_empty());
        space.send(&node, step(3)).from_source("user", "ada").reply::<()>().await.unwrap();
        let kept = kept.lock().unwrap();
        let inherited = kept[0].inherited().unwrap();
        assert_eq!(inherited.source_id.as_deref(), Some("bob"));
        assert_eq!(inherited.user.as_ref().unwrap().id, "bob");
        let [delegation] = &inherited.delegations[..] else { panic!("{inherited:?}") };
        assert_eq!((&*delegation.node, &*delegation.on_behalf_of), ("node", "user:bob"));
    });
}

#[test]
fn the_extras_of_a_batch_are_those_of_each_event() {
    simulate(Config::default(), async |space| {
        let node = space.node("node");
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keep = kept.clone();
        node.on("step", move |batch: &Batch, cx: &Context| -> happen::Result<()> {
            for event in batch.iter() {
                assert_eq!(
                    (event.correlation(), event.metadata("lot")),
                    ("lot-1".to_owned(), Some(&json!(9)))
                );
            }
            keep.lock().unwrap().extend(batch.iter().map(Event::id));
            assert_eq!(cx.correlation(), "lot-1");
            let effect = cx.broadcast(Event::new("sum", json!(null)))?;
            keep.lock().unwrap().push(effect);
            Ok(())
        })
        .check()
        .unwrap();
        space.start().await.unwrap();
        let batch = space.send(&node, vec![step(1), step(2)]).correlation("lot-1").metadata("lot", 9);
        let sent = batch.await.unwrap();
        let kept = kept.lock().unwrap();
        assert_eq!(sent.event_id(), kept[0]);
        assert_eq!(space.why(kept[2]).await.unwrap(), kept[..2]);
        assert_eq!(space.impact(kept[1]).await.unwrap(), [kept[2]]);
    });
}

#[test]
fn a_batch_of_several_types_is_refused() {
    simulate(Config::default(), async |space| {
        let node = space.node("node");
        node.on("*", |_: &Event, _: &Context| ()).check().unwrap();
        space.start().await.unwrap();
        let error = space.send(&node, [step(1), Event::new("other", json!(null))]).await.unwrap_err();
        assert_eq!(error.code(), "misuse");
        assert!(error.to_string().contains("a batch has events of one type"), "{error}");
    });
}

#[test]
fn a_flow_sees_nothing_that_a_task_of_an_earlier_flow_kept() {
    simulate(Config::default(), async |space| {
        let node = space.node("node");
        node.on("leave", |_: &Event, cx: &Context| {
            let late = cx.clone();
            cx.spawn(async move {
                late.sleep(Duration::from_millis(1)).await;
                late.put("secret", 7u64).unwrap();
            });
        })
        .check()
        .unwrap();
        node.on("look", |_: &Event, cx: &Context| cx.get::<u64>("secret").is_ok()).check().unwrap();
        space.start().await.unwrap();
        space.send(&node, Event::new("leave", json!(null))).await.unwrap();
        space.env().sleep(Duration::from_millis(5)).await;
        for _ in 0..10 {
            assert!(!*space.send(&node, Event::new("look", json!(null))).reply::<bool>().await.unwrap());
        }
    });
}

#[test]
fn what_a_function_sends_when_the_answer_comes_is_caused_by_the_event_in_any_case() {
    simulate(Config::default(), async |space| {
        let (asks, answers) = (space.node("asks"), space.node("answers"));
        answers.on("now", |_: &Event, _: &Context| 1u64).check().unwrap();
        answers
            .on("later", async |_: Event, cx: Context| {
                cx.sleep(Duration::from_millis(3)).await;
                2u64
            })
            .check()
            .unwrap();
        let captured = asks.clone();
        asks.on("step", move |event: &Event, cx: &Context| {
            for event_type in ["now", "later"] {
                let then = captured.clone();
                let tell = move |answer: happen::Result<happen::Reply<u64>>| {
                    drop(then.broadcast(Event::new("told", json!({ "answer": *answer.unwrap() }))));
                };
                // Through the context, and through a handle of the node.
                match number(event) {
                    0 => cx.send("answers", Event::new(event_type, json!(null))).reply_with(tell),
                    _ => captured.send("answers", Event::new(event_type, json!(null))).reply_with(tell),
                }
            }
        })
        .check()
        .unwrap();
        let causes = Arc::new(Mutex::new(Vec::new()));
        let keep = causes.clone();
        answers
            .on("told", move |event: &Event, _: &Context| keep.lock().unwrap().push(event.causation_id()))
            .check()
            .unwrap();
        space.start().await.unwrap();
        for n in 0..2 {
            let root = space.send(&asks, step(n)).await.unwrap().event_id();
            space.env().sleep(Duration::from_millis(5)).await;
            assert_eq!(std::mem::take(&mut *causes.lock().unwrap()), [Some(root), Some(root)]);
        }
    });
}

#[test]
fn a_stream_ends_with_its_flow() {
    simulate(Config::default(), async |space| {
        let node = space.node("node");
        node.on("count", async |_: Event, cx: Context| {
            cx.emit(1u64).await?;
            cx.emit(2u64).await
        })
        .check()
        .unwrap();
        node.on("nothing", |_: &Event, _: &Context| ()).check().unwrap();
        space.start().await.unwrap();
        for (event_type, expected) in [("count", &[1, 2][..]), ("nothing", &[])] {
            let mut items = space.send(&node, Event::new(event_type, json!(null))).stream::<u64>();
            let mut seen = Vec::new();
            while let Some(item) = items.next().await {
                seen.push(item.unwrap());
            }
            assert_eq!(seen, expected);
        }
    });
}

// The memory.

#[test]
fn the_memory_is_bounded_and_says_when_it_was_cut() {
    for (events, cut) in [(7, false), (8, false), (9, true)] {
        simulate(Config { remembered_events: 8, ..Config::default() }, async |space| {
            space.start().await.unwrap();
            // The start itself was announced: one event.
            let ids: Vec<_> =
                (1..events).map(|_| space.broadcast(Event::new("tick", json!(null))).unwrap()).collect();
            let trace = space.trace(*ids.last().unwrap()).await.unwrap();
            assert_eq!(trace.is_cut(), cut, "{events} events");
            assert_eq!(trace.to_string().contains("not remembered any more"), cut);
            let remembered = space.causal_order(ids.iter().copied()).len();
            assert_eq!(remembered, ids.len().min(8));
        });
    }
}

#[test]
fn two_spaces_remember_apart() {
    simulate(Config::default(), async |space| {
        let other = Space::in_env(Config::default(), space.env().clone()).unwrap();
        space.start().await.unwrap();
        other.start().await.unwrap();
        let inner = other.clone();
        let node = space.node("node");
        // What is sent in another space is not caused by an event of this one.
        node.on("here", move |_: &Event, _: &Context| {
            inner.broadcast(Event::new("there", json!(null))).map(drop)
        })
        .check()
        .unwrap();
        let there = Arc::new(Mutex::new(None));
        let keep = there.clone();
        let listener = other.node("node");
        listener
            .on("there", move |event: &Event, _: &Context| {
                *keep.lock().unwrap() = Some(event.envelope().clone())
            })
            .check()
            .unwrap();
        let here = space.broadcast(Event::new("here", json!(null))).unwrap();
        let there = there.lock().unwrap().take().unwrap();
        assert_eq!((there.cause, there.root), (None, there.id));
        assert_eq!(other.trace(here).await.unwrap_err().code(), "misuse");
        assert_eq!(space.trace(there.id).await.unwrap_err().code(), "misuse");
        assert_eq!(space.impact(here).await.unwrap(), []);
    });
}

#[test]
fn reading_while_eight_threads_write_shows_no_header_that_was_not_written() {
    let sim = Simulator::new(3);
    let space = standing(&sim, Config { remembered_events: 64, ..Config::default() });
    for thread in 0..8 {
        let node = space.node(format!("n{thread}"));
        let effect = format!("effect{thread}");
        node.on(format!("cause{thread}"), move |_: &Event, cx: &Context| {
            cx.broadcast(Event::new(&effect, json!(null))).map(drop)
        })
        .check()
        .unwrap();
    }
    let over = AtomicBool::new(false);
    let last: Vec<_> = (0..8).map(|_| Mutex::new(None)).collect();
    let (start, shown) = (Barrier::new(9), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|thread| {
                let (space, last, start) = (&space, &last, &start);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..10_000 {
                        let id = space.broadcast(Event::new(&format!("cause{thread}"), json!(null))).unwrap();
                        *last[thread].lock().unwrap() = Some(id);
                    }
                })
            })
            .collect();
        let (space, last, start, over, shown) = (&space, &last, &start, &over, &shown);
        let reader = scope.spawn(move || {
            start.wait();
            let mut thread = 0;
            // Once more after the writers are done, so that something is shown however the threads were scheduled.
            let mut last_round = false;
            while !last_round {
                last_round = over.load(Ordering::Acquire);
                thread = (thread + 1) % 8;
                let Some(id) = *last[thread].lock().unwrap() else { continue };
                let mut trace = Box::pin(space.trace(id));
                let polled =
                    trace.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
                let std::task::Poll::Ready(trace) = polled else { panic!("reading memory does not wait") };
                // Overwritten since it was chosen: nothing to look at.
                let Ok(trace) = trace else { continue };
                check_headers(&trace, id, thread);
                shown.fetch_add(1, Ordering::Relaxed);
            }
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        over.store(true, Ordering::Release);
        reader.join().unwrap();
    });
    assert!(shown.load(Ordering::Relaxed) > 0);
}

/// Every part of a header tells which thread wrote it.
fn check_headers(trace: &happen::Trace, asked: EventId, thread: usize) {
    assert!(trace.lines().len() <= 2, "{trace}");
    for line in trace.lines() {
        if line.event == asked {
            assert_eq!(line.event_type, format!("cause{thread}"));
            assert_eq!((line.sender.as_deref(), &line.causes[..]), (None, &[][..]));
            assert!(line.handled.iter().all(|handled| handled.node == format!("n{thread}")));
        } else {
            assert_eq!(line.event_type, format!("effect{thread}"));
            assert_eq!(line.sender, Some(format!("n{thread}")));
            assert_eq!(line.causes, [asked]);
        }
    }
}

// How a trace reads.

#[test]
fn a_trace_reads_as_a_tree() {
    simulate(Config::default(), async |space| {
        let (orders, payments) = (space.node("orders"), space.node("payments"));
        let (mail, audit) = (space.node("mail"), space.node("audit"));
        orders
            .on("create-order", async |_: Event, cx: Context| -> happen::Result<u64> {
                let paid =
                    cx.send("payments", Event::new("charge", json!({ "cents": 7 }))).reply::<u64>().await?;
                cx.broadcast(Event::new("order.placed", json!({ "cents": *paid })))?;
                Ok(*paid)
            })
            .check()
            .unwrap();
        payments
            .on("charge", async |_: Event, cx: Context| {
                cx.sleep(Duration::from_millis(12)).await;
                cx.broadcast(Event::new("payment.received", json!(null))).map(|_| 7u64)
            })
            .check()
            .unwrap();
        mail.on("order.placed", async |_: Event, _: Context| -> happen::Result<()> {
            Err(Error::msg("no server"))
        })
        .check()
        .unwrap();
        audit.on("{order,payment}.*", |_: &Event, _: &Context| ()).check().unwrap();
        space.start().await.unwrap();
        let root = space.send(&orders, Event::new("create-order", json!(null))).correlation("order-789");
        let root = root.reply::<u64>().await.unwrap().event_id();
        let expected = "\
create-order +0ms  orders replied  <
├─ charge +0ms  payments replied
│  └─ payment.received +12ms  audit ok
└─ order.placed +12ms  mail failed (failed)  audit ok
   └─ order.placed.error +12ms
";
        let trace = space.trace("order-789").await.unwrap();
        assert_eq!(trace.to_string(), expected);
        assert!(expected.lines().all(|line| line.chars().count() <= 80));
        // Whatever is asked for, the tree is the same; only the mark moves.
        let leaf = trace.lines()[2].event;
        let of_leaf = space.trace(leaf).await.unwrap().to_string();
        assert_eq!(of_leaf.replace("  <", ""), expected.replace("  <", ""));
        assert!(of_leaf.contains("audit ok  <\n"), "{of_leaf}");
        assert_eq!(space.why(leaf).await.unwrap()[0], root);
    });
}

#[test]
fn an_event_of_several_causes_is_shown_once_under_the_last() {
    simulate(Config::default(), async |space| {
        let (gate, sums) = (space.node("gate"), space.node("sums"));
        gate.on("start", async |_: Event, cx: Context| {
            cx.send("sums", [step(1), step(2), step(3)]).await.map(drop)
        })
        .check()
        .unwrap();
        sums.on("step", |_: &Batch, cx: &Context| cx.broadcast(Event::new("sum", json!(6))).map(drop))
            .check()
            .unwrap();
        space.start().await.unwrap();
        let root = space.send(&gate, Event::new("start", json!(null))).await.unwrap();
        let trace = space.trace(root.event_id()).await.unwrap();
        assert_eq!(
            trace.to_string(),
            "\
start +0ms  gate ok  <
├─ step +0ms  sums ok
├─ step +0ms  sums ok
└─ step +0ms  sums ok
   └─ sum +0ms
"
        );
        assert_eq!(trace.lines()[4].causes.len(), 3);
    });
}

#[test]
fn roots_that_meet_are_one_trace() {
    simulate(Config::default(), async |space| {
        let sums = space.node("sums");
        sums.on("step", |_: &Batch, cx: &Context| cx.broadcast(Event::new("sum", json!(3))).map(drop))
            .check()
            .unwrap();
        space.start().await.unwrap();
        space.send(&sums, [step(1), step(2)]).correlation("lot").await.unwrap();
        let trace = space.trace("lot").await.unwrap();
        assert_eq!(trace.to_string(), "step +0ms  sums ok  <\nstep +0ms  sums ok  <\n└─ sum +0ms\n");
    });
}

#[test]
fn a_trace_hides_no_failure_behind_another_handler() {
    simulate(Config::default(), async |space| {
        let node = space.node("node");
        node.on("work", |_: &Event, _: &Context| -> happen::Result<()> { Err(Error::msg("broken")) })
            .check()
            .unwrap();
        node.on("work", |_: &Event, _: &Context| 7u64).check().unwrap();
        node.on("work", |_: &Event, _: &Context| ()).check().unwrap();
        space.start().await.unwrap();
        let reply = space.send(&node, Event::new("work", json!(null))).reply::<u64>().await.unwrap();
        let trace = space.trace(reply.event_id()).await.unwrap();
        assert_eq!(trace.lines()[0].handled[0].outcome, TraceOutcome::Failed("failed"), "{trace}");
    });
}

#[test]
fn what_a_flow_sends_has_ascending_ids_on_whatever_threads() {
    let space = Space::memory();
    let node = space.node("node");
    let ids = Arc::new(Mutex::new(Vec::new()));
    let sent = Arc::clone(&ids);
    node.on("go", move |_: &Event, cx: &Context| {
        for _ in 0..10 {
            let note = || sent.lock().unwrap().push(cx.broadcast(Event::new("told", json!({}))).unwrap());
            (0..10).for_each(|_| note());
            std::thread::scope(|scope| drop(scope.spawn(note).join()));
        }
    });
    let mut task = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::pin::pin!(space.start()).poll(&mut task).is_ready());
    space.send(&node, Event::new("go", json!({}))).reply_now::<()>().unwrap();
    let ids = ids.lock().unwrap();
    assert_eq!(ids.len(), 110);
    assert!(ids.is_sorted(), "{ids:?}");
}
