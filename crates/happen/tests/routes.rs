//! Events that several may take: nodes that processes share, and nodes behind routers. Processes are spaces on a hub, in
//! virtual time.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use happen::store::{MemoryStore, Store};
use happen::{
    Batch, Config, Context, Error, ErrorKind, Event, Hub, Link, Nodes, Routing, Space, Step, done, limits,
    millis, secs,
};
use happen_core::env::{BoxFuture, Env};
use happen_core::link::{Inbound, NodePresence, Peer, Replies};
use happen_testing::link::until;
use happen_testing::{Dies, FaultyStore, Simulator, check_seeds};

const ALL: [Routing; 4] = [Routing::RoundRobin, Routing::LeastLoaded, Routing::ByKey, Routing::Sticky];

/// Processes on one hub.
struct World {
    env: Arc<dyn Env>,
    hub: Hub,
}

impl World {
    fn new(sim: &Simulator) -> Self {
        Self { env: sim.env(), hub: Hub::in_env(sim.env()) }
    }

    fn space(&self, name: &str) -> Space {
        let space = Space::in_env(Config::default(), Arc::clone(&self.env)).unwrap();
        space.join(self.hub.link(name)).unwrap();
        space
    }

    /// A process with the node `work`, which tells where it is.
    async fn instance(&self, name: &str, routing: Routing) -> Space {
        let space = self.space(name);
        let work = space.node("work").shared(routing);
        let at = name.to_owned();
        work.on("u64", move |_: &Event<u64>, _: &Context| at.clone());
        space.start().await.unwrap();
        space
    }

    async fn instances<const N: usize>(&self, names: [&str; N], routing: Routing) -> [Space; N] {
        let mut spaces = Vec::new();
        for name in names {
            spaces.push(self.instance(name, routing).await);
        }
        spaces.try_into().unwrap()
    }

    /// A process that only sends.
    async fn sender(&self) -> Space {
        let space = self.space("sender");
        space.start().await.unwrap();
        space
    }
}

/// Where an event with this key is handled.
async fn place(from: &Space, key: impl ToString) -> String {
    let sent = from.send("work", 1u64).routing_key(key.to_string());
    sent.reply::<String>().await.unwrap().into_inner()
}

async fn places(from: &Space, keys: u64) -> Vec<String> {
    let mut all = Vec::new();
    for key in 0..keys {
        all.push(place(from, key).await);
    }
    all
}

fn count(places: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for place in places {
        *counts.entry(&**place).or_default() += 1;
    }
    counts
}

#[test]
fn work_is_shared_in_turns_and_by_load_whoever_sends() {
    for routing in [Routing::RoundRobin, Routing::LeastLoaded] {
        check_seeds(0..5, |sim| {
            let world = World::new(&sim);
            sim.run(async {
                let [a, b, _c] = &world.instances(["a", "b", "c"], routing).await;
                let outside = world.sender().await;
                for from in [&outside, a, b] {
                    let places = places(from, 90).await;
                    assert_eq!(count(&places), BTreeMap::from([("a", 30), ("b", 30), ("c", 30)]));
                }
                // By the handle of the own node, too, which is one of several.
                let own = a.find("work").unwrap();
                let mut at = BTreeSet::new();
                for _ in 0..3 {
                    at.insert(a.send(&own, 1u64).reply::<String>().await.unwrap().into_inner());
                }
                assert_eq!(at.len(), 3);
            });
        });
    }
}

#[test]
fn only_the_keys_of_a_process_that_goes_move() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let [a, b, c] = world.instances(["a", "b", "c"], Routing::ByKey).await;
            let outside = world.sender().await;
            let before = places(&outside, 300).await;
            for has in count(&before).into_values() {
                // 100 is fair; six standard deviations of a throw.
                assert!((50..=150).contains(&has), "{has}");
            }
            // All who know the same instances choose the same, one that has an instance, too.
            assert_eq!(places(&b, 300).await, before);
            a.stop().await.unwrap();
            let after = places(&outside, 300).await;
            for (was, is) in before.iter().zip(&after) {
                assert!(was == is || was == "a" && is != "a", "{was} {is}");
            }
            // One that comes takes its part of each, and no key moves between the others.
            let _d = world.instance("d", Routing::ByKey).await;
            let grown = places(&outside, 300).await;
            assert!(grown.iter().filter(|is| *is == "d").count() >= 50);
            assert!(after.iter().zip(&grown).all(|(was, is)| was == is || is == "d"));
            // One that comes back has what it had.
            let _a = world.instance("a", Routing::ByKey).await;
            let back = places(&outside, 300).await;
            assert!(before.iter().zip(&back).all(|(was, is)| is == was || is == "d"));
            drop(c);
        });
    });
}

#[test]
fn a_correlation_is_the_key_where_none_is_given() {
    let sim = Simulator::new(3);
    let world = World::new(&sim);
    sim.run(async {
        let _spaces = world.instances(["a", "b", "c"], Routing::ByKey).await;
        let outside = world.sender().await;
        let ask = async |name: &str| {
            let sent = outside.send("work", 1u64).correlation(name.to_owned());
            sent.reply::<String>().await.unwrap().into_inner()
        };
        let mut at = BTreeSet::new();
        for number in 0..20 {
            let name = format!("order-{number}");
            let first = ask(&name).await;
            assert_eq!(ask(&name).await, first);
            assert_eq!(
                place(&outside, &name).await,
                first,
                "the name of the correlation is a key like any other"
            );
            at.insert(first);
        }
        assert_eq!(at.len(), 3);
        // What a handler sends has the correlation of what it handles, so it all goes to one.
        let relay = outside.node("relay");
        relay.on("bool", async |_: Event<bool>, cx: Context| -> happen::Result<bool> {
            let mut at = BTreeSet::new();
            for number in 0..10u64 {
                at.insert(cx.send("work", number).reply::<String>().await?.into_inner());
            }
            Ok(at.len() == 1)
        });
        for _ in 0..10 {
            assert!(*outside.send("relay", true).reply::<bool>().await.unwrap());
        }
    });
}

#[test]
fn who_is_stuck_gets_no_more_by_load() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        let stuck = world.space("stuck");
        let begun = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&begun);
        let hang = happen::with(counted, async |counted: Arc<AtomicUsize>, _: Event<u64>, cx: Context| {
            counted.fetch_add(1, Ordering::SeqCst);
            cx.sleep(secs(3_600)).await;
            "stuck".to_owned()
        });
        stuck.node("work").shared(Routing::LeastLoaded).on("u64", hang);
        sim.run(async {
            stuck.start().await.unwrap();
            let _others = world.instances(["a", "b"], Routing::LeastLoaded).await;
            let outside = world.sender().await;
            let ended = Arc::new(AtomicUsize::new(0));
            for number in 0..100u64 {
                let count = Arc::clone(&ended);
                outside.send("work", number).reply_with::<String>(move |reply| {
                    assert_ne!(*reply.unwrap(), "stuck");
                    count.fetch_add(1, Ordering::SeqCst);
                });
                world.env.sleep(millis(1)).await;
            }
            until(&world.env, "all but one are answered", || ended.load(Ordering::SeqCst) == 99).await;
            assert_eq!(begun.load(Ordering::SeqCst), 1);
        });
    });
}

#[test]
fn a_key_that_sticks_stays_until_its_process_goes() {
    check_seeds(0..10, |sim| {
        let world = World::new(&sim);
        sim.run(async {
            let [a, _b] = world.instances(["a", "b"], Routing::Sticky).await;
            let outside = world.sender().await;
            let first = places(&outside, 100).await;
            let _c = world.instance("c", Routing::Sticky).await;
            assert_eq!(places(&outside, 100).await, first);
            a.stop().await.unwrap();
            let second = places(&outside, 100).await;
            for (was, is) in first.iter().zip(&second) {
                assert_eq!(was == is, was != "a");
            }
            assert_eq!(count(&second).len(), 2);
            let _a = world.instance("a", Routing::Sticky).await;
            assert_eq!(places(&outside, 100).await, second);
        });
    });
}

#[test]
fn what_was_under_way_where_a_process_goes_is_told_and_nothing_else_fails() {
    for routing in ALL {
        check_seeds(0..5, |sim| {
            let world = World::new(&sim);
            let mut spaces = Vec::new();
            let links = ["a", "b", "c"].map(|name| (name, world.hub.link(name)));
            for (name, link) in &links {
                let name = *name;
                let space = Space::in_env(Config::default(), Arc::clone(&world.env)).unwrap();
                space.join(Arc::clone(link) as Arc<dyn Link>).unwrap();
                space.node("work").shared(routing).on("u64", async move |number: Event<u64>, cx: Context| {
                    cx.sleep(millis(*number.payload())).await;
                    name.to_owned()
                });
                spaces.push(space);
            }
            sim.run(async {
                for space in &spaces {
                    space.start().await.unwrap();
                }
                let outside = world.sender().await;
                let ends: Arc<Mutex<Vec<Result<String, &'static str>>>> = Arc::default();
                for number in 0..30u64 {
                    let push = Arc::clone(&ends);
                    let sent = outside.send("work", 50 + number).routing_key(number.to_string());
                    sent.reply_with::<String>(move |reply| {
                        let end = reply.map(happen::Reply::into_inner).map_err(|error| error.code());
                        push.lock().unwrap().push(end);
                    });
                }
                world.env.sleep(millis(10)).await;
                // As if its process had been killed: nothing comes from there any more.
                links[0].1.close().await;
                for number in 0..30u64 {
                    let sent = outside.send("work", 1u64).routing_key(number.to_string());
                    let at = sent.reply::<String>().await.unwrap();
                    assert!(["b", "c"].contains(&&**at));
                }
                until(&world.env, "all have ended", || ends.lock().unwrap().len() == 30).await;
                let ends = std::mem::take(&mut *ends.lock().unwrap());
                let failed = ends.iter().filter(|end| end.is_err()).count();
                assert!(
                    ends.iter().all(|end| end.as_ref().err().is_none_or(|code| *code == "closed")),
                    "{ends:?}"
                );
                assert!((1..30).contains(&failed), "{failed}");
                assert!(ends.iter().all(|end| end.as_deref() != Ok("a")));
                for (_, link) in &links {
                    link.close().await;
                }
                let error = outside.send("work", 1u64).reply::<String>().await.unwrap_err();
                assert_eq!(error.code(), "no-such-node");
            });
        });
    }
}

#[test]
fn one_that_is_stopped_is_left_out_until_it_goes_on() {
    for routing in ALL {
        let sim = Simulator::new(7);
        let world = World::new(&sim);
        sim.run(async {
            let [a, b] = &world.instances(["a", "b"], routing).await;
            let outside = world.sender().await;
            assert_eq!(count(&places(&outside, 50).await).len(), 2);
            let node = a.find("work").unwrap();
            node.stop();
            for from in [&outside, a, b] {
                assert_eq!(count(&places(from, 50).await), BTreeMap::from([("b", 50)]));
            }
            b.find("work").unwrap().stop();
            assert_eq!(a.send("work", 1u64).reply::<String>().await.unwrap_err().code(), "closed");
            assert_eq!(
                outside.send("work", 1u64).reply::<String>().await.unwrap_err().code(),
                "no-such-node"
            );
            node.resume();
            assert_eq!(count(&places(&outside, 50).await), BTreeMap::from([("a", 50)]));
            node.destroy();
            assert_eq!(outside.send("work", 1u64).await.unwrap_err().code(), "no-such-node");
        });
    }
}

#[test]
fn one_instance_takes_a_broadcast_and_every_other_node_too() {
    for routing in ALL {
        check_seeds(0..5, |sim| {
            let world = World::new(&sim);
            let taken: Arc<Mutex<Vec<(&str, u64)>>> = Arc::default();
            let spaces = ["a", "b", "c"].map(|name| {
                let space = world.space(name);
                for (node, shared) in [("work", true), ("audit", true), ("all", false)] {
                    let node = space.node(node);
                    let node = if shared { node.shared(routing) } else { node };
                    let push = Arc::clone(&taken);
                    let id = node.id().to_owned();
                    let id: &str = ["work", "audit", "all"].into_iter().find(|known| *known == id).unwrap();
                    node.on("u64", move |number: &Event<u64>, _: &Context| {
                        push.lock().unwrap().push((id, **number));
                    });
                }
                space
            });
            sim.run(async {
                for space in &spaces {
                    space.start().await.unwrap();
                }
                let outside = world.sender().await;
                for number in 0..40u64 {
                    let from = if number % 2 == 0 { &outside } else { &spaces[1] };
                    from.broadcast(number).unwrap();
                }
                let env = &world.env;
                until(env, "all came", || taken.lock().unwrap().len() == 40 * 5).await;
                env.sleep(millis(50)).await;
                let mut taken = std::mem::take(&mut *taken.lock().unwrap());
                taken.sort_unstable();
                for (node, times) in [("work", 1), ("audit", 1), ("all", 3)] {
                    let numbers: Vec<_> =
                        taken.iter().filter(|(at, _)| *at == node).map(|(_, number)| *number).collect();
                    let expected: Vec<_> = (0..40u64).flat_map(|number| vec![number; times]).collect();
                    assert_eq!(numbers, expected, "{node}");
                }
                assert!(spaces.iter().chain([&outside]).all(|space| space.dead_letters().is_empty()));
            });
        });
    }
}

#[test]
fn a_broadcast_goes_to_an_instance_that_listens() {
    let sim = Simulator::new(5);
    let world = World::new(&sim);
    let heard = Arc::new(AtomicUsize::new(0));
    // One of them is an older version that does not know the event yet.
    let spaces = ["old", "new"].map(|name| {
        let space = world.space(name);
        let work = space.node("work").shared(Routing::RoundRobin);
        work.on("bool", |_: &Event<bool>, _: &Context| ());
        if name == "new" {
            let count = Arc::clone(&heard);
            work.on("u64", move |_: &Event<u64>, _: &Context| {
                count.fetch_add(1, Ordering::SeqCst);
            });
            // A guard is known to its own process alone.
            work.on("text", |_: &Event, _: &Context| ()).guard(|_| false);
        }
        space
    });
    sim.run(async {
        for space in &spaces {
            space.start().await.unwrap();
        }
        let outside = world.sender().await;
        for number in 0..20u64 {
            outside.broadcast(number).unwrap();
            outside.broadcast(Event::new("text", serde_json::json!({}))).unwrap();
        }
        until(&world.env, "all came", || heard.load(Ordering::SeqCst) == 20).await;
        // What happens to the runtime of one process is told there.
        let told = Arc::new(AtomicUsize::new(0));
        for space in &spaces {
            let count = Arc::clone(&told);
            space.find("work").unwrap().on("node.stopped", move |_: &Event, _: &Context| {
                count.fetch_add(1, Ordering::SeqCst);
            });
        }
        spaces[0].node("other").stop();
        world.env.sleep(millis(20)).await;
        assert_eq!(told.load(Ordering::SeqCst), 1);
        assert!(spaces.iter().chain([&outside]).all(|space| space.dead_letters().is_empty()));
    });
}

#[test]
fn events_with_one_key_come_in_their_order() {
    check_seeds(0..20, |sim| {
        let world = World::new(&sim);
        let came: Arc<Mutex<BTreeMap<u64, Vec<u64>>>> = Arc::default();
        let spaces = ["a", "b", "c"].map(|name| {
            let space = world.space(name);
            let push = Arc::clone(&came);
            space.node("work").serial().shared(Routing::ByKey).on(
                "u64",
                happen::with(
                    push,
                    async |push: Arc<Mutex<BTreeMap<u64, Vec<u64>>>>, number: Event<u64>, cx: Context| {
                        push.lock().unwrap().entry(*number % 7).or_default().push(*number);
                        cx.sleep(millis(1)).await;
                    },
                ),
            );
            space
        });
        sim.run(async {
            for space in &spaces {
                space.start().await.unwrap();
            }
            for number in 0..140u64 {
                spaces[0].send("work", number).routing_key((number % 7).to_string()).forget();
            }
            let len = || came.lock().unwrap().values().map(Vec::len).sum::<usize>();
            until(&world.env, "all came", || len() == 140).await;
            for (key, numbers) in &*came.lock().unwrap() {
                assert!(numbers.is_sorted(), "{key}: {numbers:?}");
            }
        });
    });
}

#[test]
fn every_way_of_sending_reaches_one_instance() {
    check_seeds(0..5, |sim| {
        let world = World::new(&sim);
        let sum = Arc::new(AtomicU64::new(0));
        let spaces = ["a", "b", "c"].map(|name| {
            let space = world.space(name);
            let work = space.node("work").shared(Routing::RoundRobin);
            let add = Arc::clone(&sum);
            work.on("u64", move |batch: &Batch<u64>, _: &Context| {
                add.fetch_add(batch.payloads().sum(), Ordering::SeqCst);
            });
            work.on("bool", async |_: Event<bool>, cx: Context| -> happen::Result<u64> {
                for item in 0..3u64 {
                    cx.emit(item).await?;
                }
                Ok(3)
            });
            work.on("text", |_: &Event, _: &Context| Err::<(), _>(Error::msg("no")));
            space
        });
        sim.run(async {
            for space in &spaces {
                space.start().await.unwrap();
            }
            let outside = world.sender().await;
            let mut expected = 0;
            for from in [&outside, &spaces[0]] {
                for _ in 0..3 {
                    from.send("work", 1u64).await.unwrap();
                    from.send("work", 10u64).forget();
                    from.send("work", [100u64, 200]).await.unwrap();
                    from.send("work", [1_000u64, 2_000]).forget();
                    from.send("work", vec![10_000u64; 5])
                        .chunks::<()>(2)
                        .next()
                        .await
                        .unwrap()
                        .reply
                        .unwrap();
                    from.send(["work"], 100_000u64).await.unwrap();
                    expected += 1 + 10 + 300 + 3_000 + 20_000 + 100_000;
                    let items = from.send("work", true).stream::<u64>().collect().await.unwrap();
                    assert_eq!(items, [0, 1, 2]);
                    let error =
                        from.send("work", Event::new("text", serde_json::json!({}))).reply::<()>().await;
                    assert_eq!(error.unwrap_err().code(), "failed");
                    let error = from.send("work", "x".to_owned()).await.unwrap_err();
                    assert_eq!(error.code(), "no-handler");
                    let error = from.send("work", 1u64).idempotency_key("k").await.unwrap_err();
                    assert_eq!(error.code(), "misuse");
                }
            }
            until(&world.env, "all came", || sum.load(Ordering::SeqCst) == expected).await;
        });
    });
}

#[test]
fn one_here_that_does_not_share_is_nearer() {
    let sim = Simulator::new(2);
    let world = World::new(&sim);
    sim.run(async {
        let [_a, _b] = &world.instances(["a", "b"], Routing::RoundRobin).await;
        let own = world.space("own");
        own.node("work").on("u64", |_: &Event<u64>, _: &Context| "own".to_owned());
        own.start().await.unwrap();
        assert_eq!(count(&places(&own, 5).await), BTreeMap::from([("own", 5)]));
        // Who does not share is none of those who do.
        let outside = world.sender().await;
        assert_eq!(count(&places(&outside, 10).await), BTreeMap::from([("a", 5), ("b", 5)]));
        let mut told: Vec<_> =
            outside.remote_nodes().into_iter().map(|node| (node.member, node.shared)).collect();
        told.sort_by(|a, b| a.0.cmp(&b.0));
        let shared = Some(Routing::RoundRobin);
        assert_eq!(told, [("a".into(), shared), ("b".into(), shared), ("own".into(), None)]);
    });
}

#[test]
fn sharing_comes_from_the_configuration_too_and_is_not_for_durable_nodes() {
    let sim = Simulator::new(2);
    let config: Config =
        serde_json::from_str(r#"{ "nodes": { "wo*": { "shared": "least-loaded" } } }"#).unwrap();
    let hub = Hub::in_env(sim.env());
    let spaces = ["a", "b"].map(|name| {
        let space = Space::in_env(config.clone(), sim.env()).unwrap();
        space.join(hub.link(name)).unwrap();
        space.node("work").on("u64", move |_: &Event<u64>, _: &Context| name.to_owned());
        space
    });
    sim.run(async {
        for space in &spaces {
            space.start().await.unwrap();
        }
        assert_eq!(count(&places(&spaces[0], 10).await), BTreeMap::from([("a", 5), ("b", 5)]));
        let durable = Space::with_store(config, sim.env(), Arc::new(MemoryStore::new(sim.env()))).unwrap();
        let work = durable.node("work");
        let error = durable.start().await.unwrap_err();
        assert_eq!(error.code(), "misuse");
        assert!(error.to_string().contains("`work`"), "{error}");
        drop(work.ephemeral());
        durable.start().await.unwrap();
        // Without a link there is no other.
        durable.find("work").unwrap().on("u64", |number: &Event<u64>, _: &Context| **number);
        assert_eq!(*durable.send("work", 3u64).reply::<u64>().await.unwrap(), 3);
        durable.broadcast(3u64).unwrap();
        durable.stop().await.unwrap();
    });
}

/// A link to many members, some of which are gone without anybody having told yet.
struct Lagging {
    routing: Routing,
    error: fn() -> Error,
    /// So many of the next tries fail.
    failing: AtomicUsize,
    tried: Mutex<Vec<String>>,
}

impl Lagging {
    fn reach(&self, member: &str) -> happen::Result<()> {
        self.tried.lock().unwrap().push(member.to_owned());
        match self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err((self.error)()),
            Err(_) => Ok(()),
        }
    }
}

impl fmt::Debug for Lagging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a link that lags")
    }
}

impl Link for Lagging {
    fn name(&self) -> &str {
        "lagging"
    }
    fn attach(&self, _: Arc<dyn Inbound>) -> BoxFuture<'_, happen::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn changed(&self) {}
    fn post(&self, to: &str, _: Vec<u8>) -> happen::Result<()> {
        Err(no_such_node(to))
    }
    fn request(&self, to: &str, _: Vec<u8>) -> happen::Result<Box<dyn Replies>> {
        Err(no_such_node(to))
    }
    fn post_at(&self, member: &str, _: &str, _: Vec<u8>) -> happen::Result<()> {
        self.reach(member)
    }
    fn request_at(&self, member: &str, to: &str, _: Vec<u8>) -> happen::Result<Box<dyn Replies>> {
        self.reach(member)?;
        Err(no_such_node(to))
    }
    fn publish(&self, _: &str, _: Vec<u8>) -> happen::Result<()> {
        Ok(())
    }
    fn listens(&self, _: &str) -> bool {
        false
    }
    fn peers(&self) -> Vec<Peer> {
        let handles = vec![happen::exact("u64")];
        let node = NodePresence { id: "work".into(), handles, share: Some(self.routing) };
        let members = 0..3 * limits::ROUTE_TRIES_MAX;
        members.map(|place| Peer { name: place.to_string(), nodes: vec![node.clone()] }).collect()
    }
    fn revision(&self) -> u64 {
        0
    }
    fn close(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

fn no_such_node(node: &str) -> Error {
    Error::new(ErrorKind::NoSuchNode { node: node.into() })
}

fn closed(_: &str) -> Error {
    Error::new(ErrorKind::Closed { what: "the link".into() })
}

/// How many members are tried when so many of them fail, and whether the sender is told.
fn tries(routing: Routing, failing: usize, error: fn() -> Error, send: fn(&Space)) -> (usize, bool) {
    let sim = Simulator::new(1);
    let link = Arc::new(Lagging { routing, error, failing: AtomicUsize::new(0), tried: Mutex::default() });
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    space.join(Arc::clone(&link) as Arc<dyn Link>).unwrap();
    sim.run(async {
        space.start().await.unwrap();
        link.failing.store(failing, Ordering::SeqCst);
        send(&space);
        let tried = link.tried.lock().unwrap();
        assert_eq!(tried.iter().collect::<BTreeSet<_>>().len(), tried.len(), "none is tried twice");
        (tried.len(), !space.dead_letters().is_empty() || !space.problems().is_empty())
    })
}

#[test]
fn the_next_ones_are_tried_up_to_a_limit_when_one_is_gone() {
    let max = limits::ROUTE_TRIES_MAX;
    let post: fn(&Space) = |space| space.send("work", 1u64).forget();
    let publish: fn(&Space) = |space| assert!(space.broadcast(1u64).is_ok());
    for routing in ALL {
        for error in [|| no_such_node("work"), || closed("")] {
            for send in [post, publish] {
                let tries = |failing| tries(routing, failing, error, send);
                assert_eq!(tries(0), (1, false));
                assert_eq!(tries(max - 1), (max, false));
                assert_eq!(tries(max), (max + 1, false));
                assert_eq!(tries(max + 1), (max + 1, true));
            }
        }
    }
    // One that is busy keeps what has a key.
    let busy: fn() -> Error = || Error::new(ErrorKind::Busy { what: "the link".into() });
    for send in [post, publish] {
        assert_eq!(tries(Routing::ByKey, 1, busy, send), (1, true));
        assert_eq!(tries(Routing::Sticky, 1, busy, send), (1, true));
        assert_eq!(tries(Routing::RoundRobin, 1, busy, send), (2, false));
        assert_eq!(tries(Routing::LeastLoaded, 1, busy, send), (2, false));
    }
    // What may have arrived is never sent again.
    let io: fn() -> Error = || Error::new(ErrorKind::Io { what: "sending".into() });
    assert_eq!(tries(Routing::RoundRobin, 1, io, post), (1, true));
}

/// A space with these nodes, each of which tells its id.
fn workers(sim: &Simulator, names: &[&str]) -> Space {
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    for name in names {
        space.node(name).on("u64", |_: &Event<u64>, cx: &Context| cx.node_id().to_owned());
    }
    space
}

async fn asked(space: &Space, router: &str, number: u64) -> String {
    space.send(router, number).reply::<String>().await.unwrap().into_inner()
}

#[test]
fn a_router_goes_by_turns_keys_and_who_is_there() {
    let sim = Simulator::new(4);
    let space = workers(&sim, &["w1", "w2", "w3"]);
    let all = ["w1", "w2", "w3"];
    let turns = space.router("turns", all, Routing::RoundRobin);
    let keys = space.router("keys", all, Routing::ByKey).key_by(|number: &u64| number % 50);
    let sticky = space.router("sticky", all, Routing::Sticky).key_by(|number: &u64| format!("n{number}"));
    sim.run(async {
        space.start().await.unwrap();
        let mut at = Vec::new();
        for number in 0..30 {
            at.push(asked(&space, "turns", number).await);
        }
        assert_eq!(count(&at), all.map(|name| (name, 10)).into());
        assert_eq!(space.send(&turns, 1u64).reply::<String>().await.unwrap().len(), 2);
        let map = async |router: &str| {
            let mut at = Vec::new();
            for number in 0..100 {
                at.push(asked(&space, router, number).await);
            }
            at
        };
        let (by_key, by_stick) = (map("keys").await, map("sticky").await);
        assert_eq!(by_key[..50], by_key[50..]);
        assert_eq!(count(&by_key).len(), 3);
        // One that stops moves its own and comes back to them, where they do not stick elsewhere.
        space.find("w2").unwrap().stop();
        let (less, stuck) = (map("keys").await, map("sticky").await);
        for (was, is) in by_key.iter().zip(&less).chain(by_stick.iter().zip(&stuck)) {
            assert_eq!(was == is, was != "w2");
        }
        space.find("w2").unwrap().resume();
        assert_eq!((map("keys").await, map("sticky").await), (by_key, stuck));
        // Nodes come and go behind it.
        turns.remove("w1");
        turns.add("w4");
        turns.add("w4");
        assert_eq!(turns.ids(), ["w2", "w3", "w4"]);
        let at: BTreeSet<_> = [asked(&space, "turns", 1).await, asked(&space, "turns", 2).await].into();
        assert_eq!(at, BTreeSet::from(["w2".to_owned(), "w3".to_owned()]), "the last one is not there yet");
        space.node("w4").on("u64", |_: &Event<u64>, cx: &Context| cx.node_id().to_owned());
        let mut at = BTreeSet::new();
        for number in 0..3 {
            at.insert(asked(&space, "turns", number).await);
        }
        assert_eq!(at.len(), 3);
        // An event of another type has its correlation for a key.
        let other = space.send(&keys, "x".to_owned()).reply::<String>().await.unwrap_err();
        assert_eq!(other.code(), "no-handler");
        drop(sticky);
    });
}

#[test]
fn a_router_avoids_who_is_stuck() {
    let sim = Simulator::new(4);
    let space = workers(&sim, &["w1", "w2"]);
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&begun);
    space.node("stuck").serial().on(
        "u64",
        happen::with(counted, async |counted: Arc<AtomicUsize>, _: Event<u64>, cx: Context| {
            counted.fetch_add(1, Ordering::SeqCst);
            cx.sleep(secs(3_600)).await;
        }),
    );
    let workers = space.router("workers", ["w1", "stuck", "w2"], Routing::LeastLoaded);
    sim.run(async {
        space.start().await.unwrap();
        for number in 0..50u64 {
            workers.send(number).forget();
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        for number in 0..50u64 {
            asked(&space, "workers", number).await;
        }
        // The same for one beyond a link.
        assert_eq!(space.find("stuck").unwrap().waiting(), 0);
    });
}

#[test]
fn a_router_leads_beyond_the_link_and_is_reached_from_there() {
    check_seeds(0..5, |sim| {
        let world = World::new(&sim);
        let there = world.space("there");
        let hang = there.node("hang");
        hang.on("u64", async |_: Event<u64>, cx: Context| {
            cx.sleep(secs(3_600)).await;
            "hang".to_owned()
        });
        there.node("far").on("u64", |_: &Event<u64>, cx: &Context| cx.node_id().to_owned());
        let here = world.space("here");
        here.node("near").on("u64", |_: &Event<u64>, cx: &Context| cx.node_id().to_owned());
        here.router("turns", ["near", "far", "nowhere"], Routing::RoundRobin);
        here.router("loads", ["far", "hang"], Routing::LeastLoaded);
        sim.run(async {
            there.start().await.unwrap();
            here.start().await.unwrap();
            let mut at = Vec::new();
            for number in 0..10 {
                at.push(asked(&here, "turns", number).await);
            }
            assert_eq!(count(&at), BTreeMap::from([("far", 5), ("near", 5)]));
            // What is not answered counts.
            let hung = Arc::new(AtomicUsize::new(0));
            for number in 0..2u64 {
                let count = Arc::clone(&hung);
                here.send("loads", number).reply_with::<String>(move |_| {
                    count.fetch_add(1, Ordering::SeqCst);
                });
            }
            until(&world.env, "one is answered", || hung.load(Ordering::SeqCst) == 1).await;
            for number in 0..20 {
                assert_eq!(asked(&here, "loads", number).await, "far");
            }
            assert_eq!(hung.load(Ordering::SeqCst), 1);
            // From there the name reaches what is here.
            for number in 0..4 {
                assert_eq!(asked(&there, "turns", number).await, "near");
            }
            there.send("turns", 1u64).await.unwrap();
            let error = there.send("loads", 1u64).reply::<String>().await.unwrap_err();
            assert_eq!(error.code(), "no-such-node");
            drop(there);
            assert_eq!(asked(&here, "turns", 1).await, "near");
            assert_eq!(here.send("loads", 1u64).await.unwrap_err().code(), "no-such-node");
            here.send("loads", 1u64).forget();
            assert_eq!(here.dead_letters()[0].code, "no-such-node");
        });
    });
}

#[test]
fn a_router_may_lead_to_what_processes_share() {
    let sim = Simulator::new(9);
    let world = World::new(&sim);
    sim.run(async {
        let [a, _b] = &world.instances(["a", "b"], Routing::RoundRobin).await;
        a.router("jobs", ["work"], Routing::LeastLoaded);
        let mut at = Vec::new();
        for number in 0..10 {
            at.push(asked(a, "jobs", number).await);
        }
        assert_eq!(count(&at), BTreeMap::from([("a", 5), ("b", 5)]));
    });
}

#[test]
fn names_of_routers_are_theirs() {
    let sim = Simulator::new(1);
    let codes = |space: &Space| space.problems().iter().map(Error::code).collect::<Vec<_>>();
    let space = workers(&sim, &["w"]);
    let first = space.router("r", ["w"], Routing::RoundRobin);
    space.router("r", ["w"], Routing::ByKey).destroy();
    assert_eq!(codes(&space), ["duplicate-node"]);
    for taken in ["w", "", "$r"] {
        space.router(taken, ["w"], Routing::ByKey);
    }
    space.node("r");
    assert_eq!(codes(&space), ["duplicate-node", "duplicate-node", "misuse", "misuse", "duplicate-node"]);
    let space = workers(&sim, &["w"]);
    drop(first);
    let router = space.router("r", ["w"], Routing::RoundRobin);
    sim.run(async {
        space.start().await.unwrap();
        assert_eq!(asked(&space, "r", 1).await, "w");
        router.destroy();
        assert_eq!(space.send("r", 1u64).await.unwrap_err().code(), "no-such-node");
        space.node("r").on("u64", |_: &Event<u64>, _: &Context| "node".to_owned());
        assert_eq!(asked(&space, "r", 1).await, "node");
        assert!(codes(&space).is_empty());
    });
}

#[test]
fn routers_behind_routers_have_an_end() {
    let sim = Simulator::new(1);
    let max = limits::ROUTERS_NESTED_MAX;
    for (nested, fails) in [(max - 1, false), (max, true), (max + 1, true)] {
        let space = workers(&sim, &["r0"]);
        for depth in 1..=nested {
            space.router(format!("r{depth}"), [format!("r{}", depth - 1)], Routing::RoundRobin);
        }
        sim.run(async {
            space.start().await.unwrap();
            let reply = space.send(format!("r{nested}"), 1u64).reply::<String>().await;
            match reply {
                Ok(reply) => assert!(!fails && *reply == "r0"),
                Err(error) => assert!(fails && error.code() == "misuse", "{nested}: {error:?}"),
            }
        });
    }
    let space = workers(&sim, &[]);
    space.router("a", ["b"], Routing::RoundRobin);
    space.router("b", ["a"], Routing::RoundRobin);
    let panics = space.router("panics", ["a"], Routing::ByKey).key_by(|_: &u64| -> u64 { panic!("a key") });
    sim.run(async {
        space.start().await.unwrap();
        let error = space.send("a", 1u64).await.unwrap_err();
        assert!(error.to_string().contains("leads to itself"), "{error}");
        assert_eq!(panics.send(1u64).await.unwrap_err().code(), "panicked");
    });
}

/// A process of a durable program whose step sends by routers and to what others share.
fn durable(sim: &Simulator, hub: Option<&Hub>, store: &Arc<FaultyStore>, behind: &[&str]) -> Space {
    let store = Arc::clone(store) as Arc<dyn Store>;
    let space = Space::with_store(Config::default(), sim.env(), store).unwrap();
    if let Some(hub) = hub {
        space.join(hub.link("durable")).unwrap();
    }
    let nodes: Vec<_> = behind.iter().map(|name| space.node(name)).collect();
    nodes.on("u64", |_: &Event<u64>, cx: &Context| {
        cx.state::<Count>().set(|count| Count { count: count.count + 1 })?;
        Ok::<_, Error>(cx.node_id().to_owned())
    });
    for routing in ALL {
        space.router(routing.as_str(), behind.iter().copied(), routing);
    }
    space.node("boss").on("bool", async |_: Event<bool>, cx: Context| -> happen::Result<Step> {
        let mut at = Vec::new();
        for routing in ALL {
            cx.send(routing.as_str(), 1u64).await?;
            at.push(cx.send(routing.as_str(), 2u64).reply::<String>().await?.into_inner());
        }
        at.push(cx.send("work", 3u64).reply::<String>().await?.into_inner());
        cx.send("work", 4u64).await?;
        done(at.join(" "))
    });
    space
}

#[derive(happen::State, Default, Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[state("count", version = 1)]
struct Count {
    count: u64,
}

async fn total(space: &Space) -> u64 {
    let mut total = 0;
    for node in space.nodes().into_iter().filter(|node| node.id().starts_with('w')) {
        node.state::<Count>().load().await.unwrap();
        total += node.state::<Count>().get(|count| count.count);
    }
    total
}

#[test]
fn steps_of_durable_nodes_send_by_routers_and_to_shared_nodes() {
    check_seeds(0..5, |sim| {
        let world = World::new(&sim);
        let log: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
        let store = FaultyStore::new(log, sim.env());
        let space = durable(&sim, Some(&world.hub), &store, &["w1", "w2", "w3"]);
        sim.run(async {
            let _instances = world.instances(["a", "b"], Routing::RoundRobin).await;
            space.start().await.unwrap();
            for _ in 0..10 {
                let at = space.send("boss", true).reply::<String>().await.unwrap();
                assert_eq!(at.split(' ').count(), 5);
            }
            space.settled(secs(5)).await.unwrap();
            assert_eq!(total(&space).await, 10 * 8);
            // A timer's event goes to one of them, too.
            for routing in ALL {
                space.after(secs(1), routing.as_str(), 5u64).await.unwrap();
            }
            space.after(secs(1), "work", 5u64).await.unwrap();
            space.after(secs(1), "boss", true).await.unwrap();
            world.env.sleep(secs(2)).await;
            space.settled(secs(5)).await.unwrap();
            assert_eq!(total(&space).await, 10 * 8 + 4 + 8);
            assert!(space.dead_letters().is_empty(), "{:?}", space.dead_letters());
        });
    });
}

#[test]
fn a_router_takes_timers_and_steps_in_a_space_by_itself() {
    let sim = Simulator::new(3);
    let store = FaultyStore::new(Arc::new(MemoryStore::new(sim.env())), sim.env());
    let space = durable(&sim, None, &store, &["w1", "w2"]);
    space.node("clerk").on("bool", async |_: Event<bool>, cx: Context| -> happen::Result<()> {
        cx.after(secs(1), "round-robin", 1u64).await?;
        cx.send("by-key", 2u64).await?;
        drop(cx.send("sticky", 3u64).reply::<String>().await?);
        Ok(())
    });
    sim.run(async {
        space.start().await.unwrap();
        space.send("clerk", true).reply::<()>().await.unwrap();
        space.after(secs(1), "least-loaded", 4u64).await.unwrap();
        let keyed = space.send("round-robin", 5u64).idempotency_key("once").await;
        assert_eq!(keyed.unwrap_err().code(), "misuse");
        sim.env().sleep(secs(2)).await;
        space.settled(secs(5)).await.unwrap();
        assert_eq!(total(&space).await, 4);
        assert!(space.dead_letters().is_empty());
    });
}

#[test]
fn a_step_that_is_run_again_asks_the_same_and_nothing_happens_twice() {
    for dies in [Dies::Before, Dies::Unheard] {
        // As many commits as there are, until a process lives through all of them.
        for at in 1.. {
            let sim = Simulator::new(at);
            let world = World::new(&sim);
            let log: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
            let lived = sim.run(async {
                let _instances = world.instances(["a", "b"], Routing::RoundRobin).await;
                let store = FaultyStore::new(Arc::clone(&log), sim.env());
                let first = durable(&sim, Some(&world.hub), &store, &["w1", "w2", "w3"]);
                first.start().await.unwrap();
                store.dies_at(store.commits() + at, dies);
                first.send("boss", true).forget();
                world.env.sleep(secs(1)).await;
                let lived = !store.is_dead();
                drop(first);
                // Whoever else is behind them then.
                let store = FaultyStore::new(log, sim.env());
                let second = durable(&sim, Some(&world.hub), &store, &["w0", "w1", "w2", "w3", "w4", "w5"]);
                second.start().await.unwrap();
                let boss = second.find("boss").unwrap();
                until(&world.env, "the flow has ended", || boss.flows().is_empty()).await;
                second.settled(secs(30)).await.unwrap();
                let times = total(&second).await;
                // The first commit is the one by which the event is taken.
                let taken = (at, dies) != (1, Dies::Before);
                assert_eq!(times, if taken { 8 } else { 0 }, "commit {at}, {dies:?}");
                assert!(second.dead_letters().is_empty());
                lived
            });
            if lived {
                assert!(at > 8, "a commit for each question at least, and not {at}");
                break;
            }
        }
    }
}
