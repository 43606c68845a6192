//! What goes wrong around durable nodes, one thing at a time: a store that fails at a certain commit, a runtime that
//! ends, senders that give up, code of users that panics or waits for itself, and clocks, steps and shapes that change.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use happen::store::{List, MemoryStore, Store};
use happen::{
    Config, Context, Error, Event, QueueOrder, Space, Step, UnfitFlows, again, done, millis, next_with, secs,
    with,
};
use happen_core::env::Env;
use happen_testing::{Dies, FaultyStore, Simulator};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("job")]
struct Job {
    number: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("part")]
struct Part {
    number: u64,
}

/// What a node has done, in its order.
#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("done", version = 1)]
struct Done {
    what: Vec<String>,
}

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("left", version = 1)]
struct Left {
    count: u64,
}

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("right", version = 1)]
struct Right {
    count: u64,
}

/// A disk, and the process over it.
struct World {
    sim: Simulator,
    disk: Arc<dyn Store>,
    store: Arc<FaultyStore>,
}

impl World {
    fn new(seed: u64) -> Self {
        let sim = Simulator::new(seed);
        let disk: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
        let store = FaultyStore::new(Arc::clone(&disk), sim.env());
        Self { sim, disk, store }
    }

    fn space(&self) -> Space {
        self.space_with(Config::default())
    }

    fn space_with(&self, config: Config) -> Space {
        Space::with_store(config, self.sim.env(), Arc::clone(&self.store) as Arc<dyn Store>).unwrap()
    }

    /// The process is killed wherever it is; another one comes over the same disk.
    fn killed(self) -> Self {
        let sim = Simulator::new(self.sim.seed() + 1);
        sim.jump_clock_forward(self.sim.now());
        let disk = Arc::clone(&self.disk);
        drop(self.sim);
        let store = FaultyStore::new(Arc::clone(&disk), sim.env());
        Self { sim, disk, store }
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let list = List { prefix: prefix.into(), after: None, documents_max: 100 };
        self.disk.list(list).await.unwrap().into_iter().map(|document| document.key.to_string()).collect()
    }
}

fn does(what: impl Into<String>) -> impl Fn(Done) -> Done + Send + Sync + 'static {
    let what = what.into();
    move |mut done| {
        done.what.push(what.clone());
        done
    }
}

fn done_by(space: &Space, node: &str) -> Vec<String> {
    space.find(node).unwrap().state::<Done>().get(|done| done.what.clone())
}

/// Notes the part it was sent.
fn worker(space: &Space) {
    let worker = space.node("worker");
    worker.on("part", |part: &Event<Part>, cx: &Context| {
        cx.state::<Done>().set(does(part.number.to_string()))?;
        Ok::<_, Error>(part.number)
    });
}

async fn ask_once(job: Event<Job>, cx: Context) -> happen::Result<Step> {
    let answer = cx.send("worker", Part { number: job.number }).reply::<u64>().await?;
    done(*answer)
}

async fn send_on(job: Event<Job>, cx: Context) -> happen::Result<Step> {
    cx.send("worker", Part { number: job.number }).await?;
    cx.broadcast(Part { number: job.number + 1 })?;
    done(job.number)
}

#[test]
fn a_runtime_that_ends_while_commits_wait_just_ends() {
    let world = World::new(1);
    world.store.takes(secs(10));
    let env = world.sim.env();
    world.sim.run(async {
        let space = world.space();
        worker(&space);
        space.start().await.unwrap();
        for number in 0..600 {
            space.send("worker", Part { number }).forget();
        }
        env.sleep(millis(1)).await;
    });
    // Each commit that waits is dropped, and nobody carries it.
    drop(world.killed());
}

/// Fails every commit in turn, in both ways.
#[test]
fn a_commit_that_failed_or_was_not_heard_of_is_found_out_about_in_the_same_life() {
    for how in [Dies::Before, Dies::Unheard] {
        for commit in 1..12 {
            let world = World::new(commit);
            world.store.fails_at(commit, how);
            let heard = Arc::new(AtomicU32::new(0));
            let hears = Arc::clone(&heard);
            world.sim.run(async {
                let space = world.space();
                worker(&space);
                space.node("asker").on("job", ask_once);
                space.node("sender").on("job", send_on);
                space.node("listener").ephemeral().on("part", move |_: &Event<Part>, _: &Context| {
                    hears.fetch_add(1, Ordering::SeqCst);
                });
                if space.start().await.is_err() {
                    assert_eq!(commit, 1, "only who the space is was not known");
                    return;
                }
                let asked = space.send("asker", Job { number: 1 }).reply::<u64>().await;
                let sent = space.send("sender", Job { number: 2 }).reply::<u64>().await;
                space.settled(secs(60)).await.unwrap();
                let done = done_by(&space, "worker");
                let count = |what: &str| done.iter().filter(|done| *done == what).count();
                let flows = world.keys("flow/").await;
                assert!(flows.is_empty(), "{how:?} {commit}: {flows:?} wait for the next life");
                // What was refused has not happened, and what was taken has, once.
                assert_eq!(count("1"), usize::from(asked.is_ok()), "{how:?} {commit}: {asked:?}");
                assert_eq!(count("2"), usize::from(sent.is_ok()), "{how:?} {commit}: {sent:?}");
                assert_eq!(count("3"), usize::from(sent.is_ok()), "{how:?} {commit}: {sent:?}");
                assert_eq!(heard.load(Ordering::SeqCst), u32::from(sent.is_ok()), "{how:?} {commit}");
                space.stop().await.unwrap();
            });
        }
    }
}

/// An event for several registrations is stored before any of them begins.
#[test]
fn an_event_for_several_that_was_stored_unheard_of_begins_all_the_same() {
    for commit in 1..6 {
        let world = World::new(commit);
        world.store.fails_at(commit, Dies::Unheard);
        world.sim.run(async {
            let space = world.space();
            worker(&space);
            space.find("worker").unwrap().on("part", |_: &Event<Part>, _: &Context| {});
            if space.start().await.is_err() {
                return;
            }
            let sent = space.send("worker", Part { number: 7 }).await;
            space.settled(secs(60)).await.unwrap();
            assert!(sent.is_ok(), "{commit}: {sent:?}");
            assert_eq!(done_by(&space, "worker"), ["7"], "{commit}");
            assert!(world.keys("flow/").await.is_empty(), "{commit}");
        });
    }
}

type Keys = Arc<Mutex<Vec<String>>>;

async fn begin(keys: Keys, _: Event<Job>, _: Context) -> happen::Result<Step> {
    next_with(outside, keys)
}

async fn outside(keys: Keys, _: Event<Job>, cx: Context) -> happen::Result<()> {
    let told = |key: String| async move {
        keys.lock().unwrap_or_else(PoisonError::into_inner).push(key);
        Ok(())
    };
    cx.once("outside", told).await
}

#[test]
fn an_effect_outside_has_one_key_through_every_life() {
    let mut most = 0;
    for commit in 2..8 {
        let mut world = World::new(commit);
        let keys = Keys::default();
        // While a commit is on its way, time goes on.
        world.store.takes(millis(50));
        world.store.dies_at(commit, Dies::Before);
        for _ in 0..2 {
            world.sim.run(async {
                let space = world.space();
                space
                    .node("node")
                    .on("job", with(Arc::clone(&keys), begin))
                    .step(with(Arc::clone(&keys), outside));
                if space.start().await.is_ok() {
                    space.send("node", Job { number: 1 }).forget();
                    drop(space.settled(secs(60)).await);
                }
            });
            world = world.killed();
        }
        let mut keys = keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        most = most.max(keys.len());
        keys.sort();
        keys.dedup();
        assert!(keys.len() <= 2, "two jobs, two keys: {keys:?}");
    }
    assert!(most >= 3, "no effect was tried again");
}

async fn give_up(env: Arc<dyn Env>, job: Event<Job>, cx: Context) -> happen::Result<Step> {
    let mut asked = Box::pin(async { cx.send("worker", Part { number: job.number }).reply::<u64>().await });
    let mut late = env.sleep(millis(1));
    poll_fn(|task| {
        let over = asked.as_mut().poll(task).is_ready() || late.as_mut().poll(task).is_ready();
        if over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    drop(asked);
    done(job.number)
}

/// What a step asks is committed before it leaves. Here it is given up just then, while that commit carries those of
/// others too.
#[test]
fn a_question_that_is_given_up_while_it_is_committed_holds_up_nobody() {
    let world = World::new(1);
    world.store.takes(millis(100));
    let failures = Arc::new(AtomicU32::new(0));
    let counts = Arc::clone(&failures);
    world.sim.run(async {
        let space = world.space();
        worker(&space);
        let env = world.sim.env();
        space.node("hasty").on("job", with(env, give_up));
        space.on("system.store-failed", move |_: &Event, _: &Context| {
            counts.fetch_add(1, Ordering::SeqCst);
        });
        space.start().await.unwrap();
        for number in 0..20 {
            space.send("hasty", Job { number }).forget();
            space.send("worker", Part { number: 100 + number }).forget();
        }
        space.settled(secs(60)).await.unwrap();
        let done = done_by(&space, "worker");
        assert_eq!(done.len(), 40, "{done:?}");
        assert_eq!(world.keys("flow/").await, Vec::<String>::new());
        assert_eq!(failures.load(Ordering::SeqCst), 0, "the store never failed");
    });
}
