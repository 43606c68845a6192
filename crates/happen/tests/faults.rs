//! What goes wrong around durable nodes, one thing at a time: a store that fails at a certain commit, a runtime that
//! ends, senders that give up, code of users that panics or waits for itself, and clocks, steps and shapes that change.
#![expect(clippy::unwrap_used, reason = "whatever is not there fails the test, wherever it is looked for")]

use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use happen::store::{List, MemoryStore, Store};
use happen::{
    Config, Context, Error, Event, QueueOrder, Space, Step, again, done, millis, next_with, secs, with,
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

/// Runs a test on a thread of its own, so that one that waits for itself fails and does not hang.
fn in_time(work: impl FnOnce() + Send + 'static) {
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().spawn(move || {
        work();
        // Whoever waited may have given up.
        let _ = tell.send(());
    });
    match told.recv_timeout(secs(20)) {
        Ok(()) => {}
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("it waits for itself"),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.unwrap().join().unwrap_err());
        }
    }
}

/// Reads states while it reads and changes others.
fn look_around(job: &Event<Job>, cx: &Context) -> happen::Result<u64> {
    let sees = cx.clone();
    cx.state::<Left>().set(move |left| {
        let right = sees.state::<Right>().get(|right| right.count);
        let own = sees.state::<Left>().get(|left| left.count);
        Left { count: left.count + u64::from(right + own < u64::MAX) }
    })?;
    let sum = cx.state::<Left>().get(|left| cx.state::<Right>().get(|right| left.count + right.count));
    let number = job.number;
    let sees = cx.clone();
    cx.state::<Right>().set(move |right| {
        let left = sees.state::<Left>().get(|left| left.count);
        Right { count: right.count + u64::from(left + number < u64::MAX) }
    })?;
    Ok(sum)
}

#[test]
fn a_function_of_a_state_may_read_other_states_and_its_own() {
    in_time(|| {
        let world = World::new(1);
        world.sim.run(async {
            let space = world.space();
            space.node("node").on("job", look_around);
            space.start().await.unwrap();
            for number in 0..20 {
                space.send("node", Job { number }).forget();
            }
            let sum = space.send("node", Job { number: 3 }).reply::<u64>().await.unwrap();
            assert!(*sum > 0);
            space.settled(secs(10)).await.unwrap();
            assert_eq!(space.find("node").unwrap().state::<Right>().get(|right| right.count), 21);
        });
    });
}

fn left_then_right(_: &Event<Job>, cx: &Context) -> happen::Result<()> {
    let sees = cx.clone();
    cx.state::<Left>().set(move |left| {
        let right = sees.state::<Right>().get(|right| right.count);
        Left { count: left.count + u64::from(right < u64::MAX) }
    })?;
    cx.state::<Right>().set(|right| Right { count: right.count + 1 })
}

fn right_then_left(_: &Event<Part>, cx: &Context) -> happen::Result<()> {
    let sees = cx.clone();
    cx.state::<Right>().set(move |right| {
        let left = sees.state::<Left>().get(|left| left.count);
        Right { count: right.count + u64::from(left < u64::MAX) }
    })?;
    cx.state::<Left>().set(|left| Left { count: left.count + 1 })
}

#[test]
fn flows_that_change_two_states_in_opposite_order_on_several_threads_all_end() {
    in_time(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
        runtime.unwrap().block_on(async {
            let env: Arc<dyn Env> = Arc::new(happen::env::RealEnv::new());
            let store = Arc::new(MemoryStore::new(Arc::clone(&env)));
            let space = Space::with_store(Config::default(), env, store).unwrap();
            let node = space.node("node");
            node.on("job", left_then_right);
            node.on("part", right_then_left);
            space.start().await.unwrap();
            for number in 0..2_000 {
                space.send("node", Job { number }).forget();
                space.send("node", Part { number }).forget();
            }
            space.settled(secs(15)).await.unwrap();
            assert_eq!(node.state::<Left>().get(|left| left.count), 4_000);
            assert_eq!(node.state::<Right>().get(|right| right.count), 4_000);
        });
    });
}

async fn wait_for_the_last(_: Event<Job>, cx: Context) -> happen::Result<u64> {
    let wanted = |event: &Event| event.get("number").and_then(serde_json::Value::as_u64) == Some(199);
    let event = cx.wait_for_one("part", secs(600), wanted).await?;
    Ok(event.get("number").and_then(serde_json::Value::as_u64).unwrap_or_default())
}

#[test]
fn an_event_that_is_waited_for_is_found_behind_a_burst_of_others() {
    let world = World::new(1);
    world.sim.run(async {
        let space = world.space();
        worker(&space);
        space.node("waiter").on("job", wait_for_the_last);
        space.start().await.unwrap();
        space.send("waiter", Job { number: 1 }).await.unwrap();
        world.sim.env().sleep(secs(1)).await;
        for number in 0..200 {
            space.broadcast(Part { number }).unwrap();
        }
        let before = world.sim.now();
        for _ in 0..100 {
            if world.keys("flow/").await.is_empty() {
                break;
            }
            world.sim.env().sleep(millis(10)).await;
        }
        assert!(world.sim.now() - before < secs(1), "it was found by nobody");
        assert_eq!(world.keys("dead/").await, Vec::<String>::new());
    });
}

async fn open(job: Event<Job>, cx: Context) -> happen::Result<Step> {
    cx.state::<Done>().set(does(format!("open {}", job.number)))?;
    happen::next(close)
}

async fn close(job: Event<Job>, cx: Context) -> happen::Result<Step> {
    cx.sleep(secs(5)).await;
    cx.state::<Done>().set(does(format!("close {}", job.number)))?;
    done(job.number)
}

/// The flow that runs at a serial node goes on before those that were accepted earlier and have not begun.
#[test]
fn a_serial_node_ends_what_it_had_begun_before_it_begins_something_else() {
    for order in [QueueOrder::Fifo, QueueOrder::Lifo, QueueOrder::Priority] {
        let build = |space: &Space| {
            let node = space.node("node").serial().queue_order(order);
            node.on("job", open).step(close);
        };
        let world = World::new(1);
        let env = world.sim.env();
        world.sim.run(async {
            let space = world.space();
            build(&space);
            space.start().await.unwrap();
            for number in 1..=5 {
                space.send("node", Job { number }).priority(number.cast_signed()).forget();
            }
            env.sleep(secs(12)).await;
        });
        let world = world.killed();
        world.sim.run(async {
            let space = world.space();
            build(&space);
            space.start().await.unwrap();
            space.settled(secs(600)).await.unwrap();
            for _ in 0..100 {
                world.sim.env().sleep(secs(1)).await;
            }
            let lines = done_by(&space, "node");
            assert_eq!(lines.len(), 10, "{order:?} {lines:?}");
            for pair in lines.chunks(2) {
                let number = pair[0].strip_prefix("open ");
                assert_eq!(pair[1].strip_prefix("close "), number, "{order:?} {lines:?}");
            }
            if order != QueueOrder::Fifo {
                let numbers: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("open ")).collect();
                assert_eq!(numbers, ["1", "5", "4", "3", "2"], "{order:?}");
            }
        });
    }
}

#[test]
fn a_step_that_goes_on_with_itself_for_ever_is_stopped() {
    async fn round(_: Event<Job>, _: Context) -> happen::Result<Step> {
        again()
    }
    let world = World::new(1);
    world.sim.run(async {
        let space = world.space();
        let node = space.node("node").steps_max(5);
        node.on("job", round);
        space.start().await.unwrap();
        let error = space.send("node", Job { number: 1 }).reply::<u64>().within(secs(60)).await.unwrap_err();
        assert_eq!(error.code(), "runaway", "{error}");
        assert_eq!(world.keys("dead/").await.len(), 1);
        assert_eq!(world.keys("flow/").await, Vec::<String>::new());
    });
}

/// Panics when it is dropped.
struct Brittle;

impl Drop for Brittle {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::panic::resume_unwind(Box::new("brittle"));
        }
    }
}

async fn drops_badly(_: Event<Job>, cx: Context) -> happen::Result<()> {
    let brittle = Brittle;
    cx.sleep(secs(3_600)).await;
    drop(brittle);
    Ok(())
}

async fn hangs_badly(_: Event<Part>, _: Context) -> happen::Result<()> {
    let _brittle = Brittle;
    std::future::pending().await
}

#[test]
fn a_value_that_panics_when_it_is_dropped_ends_its_flow_and_nothing_else() {
    let world = World::new(1);
    world.sim.run(async {
        let space = world.space();
        let node = space.node("node").flow_time_max(secs(1)).attempts(1, millis(1));
        node.on("job", drops_badly);
        node.on("part", hangs_badly);
        space.start().await.unwrap();
        let error = space.send("node", Job { number: 1 }).reply::<()>().within(secs(60)).await.unwrap_err();
        assert!(
            ["panicked", "timed-out"].contains(&error.code()) && !error.to_string().contains("60s"),
            "{error}"
        );
        space.send("node", Part { number: 1 }).forget();
        world.sim.env().sleep(millis(10)).await;
        let flows = node.flows();
        assert_eq!(flows.into_iter().map(|flow| node.cancel(flow)).sum::<usize>(), 1);
        space.settled(secs(10)).await.unwrap();
        assert_eq!(world.keys("flow/").await, Vec::<String>::new());
    });
}

/// Panics when it is copied or written with a number that is no good.
#[derive(happen::State, Default, Debug, Deserialize)]
#[state("fragile", version = 1)]
struct Fragile {
    count: u64,
}

impl Clone for Fragile {
    fn clone(&self) -> Self {
        if self.count == 13 {
            std::panic::resume_unwind(Box::new("not this one"));
        }
        Self { count: self.count }
    }
}

impl Serialize for Fragile {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.count == 7 {
            std::panic::resume_unwind(Box::new("not this one"));
        }
        #[derive(Serialize)]
        struct Whole {
            count: u64,
        }
        Whole { count: self.count }.serialize(serializer)
    }
}

fn count_to(job: &Event<Job>, cx: &Context) -> happen::Result<()> {
    let count = job.number;
    cx.state::<Fragile>().set(move |_| Fragile { count })
}

#[test]
fn a_state_that_panics_when_it_is_written_fails_the_step_and_nothing_else() {
    let world = World::new(1);
    world.sim.run(async {
        let space = world.space();
        let node = space.node("node").attempts(2, millis(1));
        node.on("job", count_to);
        space.start().await.unwrap();
        for bad in [7, 13] {
            let error =
                space.send("node", Job { number: bad }).reply::<()>().within(secs(60)).await.unwrap_err();
            assert_eq!(error.code(), "panicked", "{bad}: {error}");
        }
        space.send("node", Job { number: 3 }).reply::<()>().await.unwrap();
        assert_eq!(node.state::<Fragile>().get(|fragile| fragile.count), 3);
        space.settled(secs(10)).await.unwrap();
    });
}

async fn never(_: Event<Job>, cx: Context) -> happen::Result<()> {
    cx.wait_for("nothing.ever", None).await.map(drop)
}

async fn asks_never(job: Event<Part>, cx: Context) -> happen::Result<u64> {
    Ok(*cx.send("never", Job { number: job.number }).reply::<u64>().await?)
}

/// Wherever a flow is when it is cancelled, it ends, whoever asked is told, and nothing is left of it.
#[test]
fn a_flow_is_cancelled_in_whatever_it_does() {
    for (after, node) in
        (0..40).flat_map(|after| [(after, "asker"), (after, "sleeper"), (after, "slow"), (after, "retrier")])
    {
        let world = World::new(after);
        world.store.takes(millis(8));
        let env = world.sim.env();
        world.sim.run(async {
            let space = world.space();
            space.node("never").on("job", never);
            space.node("asker").serial().on("part", asks_never);
            space
                .node("sleeper")
                .on("part", |_: Event<Part>, cx: Context| async move { cx.sleep(secs(9_999)).await });
            space.node("slow").on("part", |_: Event<Part>, cx: Context| async move {
                cx.once("slow", |_| async { std::future::pending::<happen::Result<u64>>().await }).await
            });
            let retrier = space.node("retrier").attempts(100, secs(100));
            retrier
                .on("part", |_: &Event<Part>, _: &Context| -> happen::Result<()> { Err(Error::msg("no")) });
            space.start().await.unwrap();
            let told = Arc::new(AtomicU32::new(0));
            for number in 0..3 {
                let (space, told) = (space.clone(), Arc::clone(&told));
                env.spawn(Box::pin(async move {
                    let reply = space.send(node, Part { number }).reply::<u64>().await;
                    assert!(reply.is_err());
                    told.fetch_add(1, Ordering::SeqCst);
                }));
            }
            env.sleep(millis(after)).await;
            // Some may only arrive now.
            for _ in 0..200 {
                for node in [node, "never"] {
                    let node = space.find(node).unwrap();
                    node.flows().into_iter().for_each(|flow| {
                        node.cancel(flow);
                    });
                }
                if told.load(Ordering::SeqCst) == 3 {
                    break;
                }
                env.sleep(millis(5)).await;
            }
            assert_eq!(told.load(Ordering::SeqCst), 3, "{node} after {after} ms: somebody waits for ever");
            space.settled(secs(10)).await.unwrap();
            env.sleep(secs(1)).await;
            assert_eq!(world.keys("flow/").await, Vec::<String>::new(), "{node} after {after} ms");
        });
    }
}

/// What one node cannot do any more is not lost with it, and whoever asked is told.
#[test]
fn a_node_that_is_destroyed_under_its_flows_leaves_nobody_waiting() {
    for after in [0, 3, 10, 2_000] {
        let world = World::new(after);
        world.store.takes(millis(8));
        let env = world.sim.env();
        world.sim.run(async {
            let space = world.space();
            let node = space.node("node").serial();
            node.on("job", |_: Event<Job>, cx: Context| async move { cx.sleep(secs(3_600)).await });
            space.start().await.unwrap();
            let told = Arc::new(AtomicU32::new(0));
            for number in 0..3 {
                let (space, told) = (space.clone(), Arc::clone(&told));
                env.spawn(Box::pin(async move {
                    assert!(space.send("node", Job { number }).reply::<()>().await.is_err());
                    told.fetch_add(1, Ordering::SeqCst);
                }));
            }
            env.sleep(millis(after)).await;
            node.destroy();
            env.sleep(secs(10)).await;
            assert_eq!(told.load(Ordering::SeqCst), 3, "after {after} ms");
            space.settled(secs(10)).await.unwrap();
            assert_eq!(space.flows_under_way(), 0);
            assert_eq!(node.flows().len(), 0);
            space.stop().await.unwrap();
            // What was stored waits for the node to be there again.
            assert_eq!(world.keys("dead/").await, Vec::<String>::new());
        });
    }
}

#[test]
fn a_registration_that_is_taken_back_lets_the_flows_of_its_steps_end() {
    let world = World::new(1);
    let env = world.sim.env();
    world.sim.run(async {
        let space = world.space();
        let node = space.node("node");
        let registration = node.on("job", open).step(close);
        space.start().await.unwrap();
        space.send("node", Job { number: 1 }).await.unwrap();
        env.sleep(secs(1)).await;
        registration.off();
        space.settled(secs(60)).await.unwrap();
        for _ in 0..10 {
            env.sleep(secs(1)).await;
        }
        // The step under way goes on to its end, as in memory.
        assert_eq!(done_by(&space, "node"), ["open 1", "close 1"]);
        assert_eq!(world.keys("flow/").await, Vec::<String>::new());
    });
}

/// What is under way when a space is stopped is left, and does not hold it up.
#[test]
fn a_space_that_stops_waits_for_what_is_under_way_once_and_not_twice() {
    for latency in [20, 200, 900] {
        let world = World::new(latency);
        world.store.takes(millis(latency));
        let env = world.sim.env();
        world.sim.run(async {
            let space = world.space_with(Config { drain_ms: 2_000, ..Config::default() });
            worker(&space);
            async fn chain(job: Event<Job>, cx: Context) -> happen::Result<Step> {
                cx.send("worker", Part { number: job.number }).await?;
                again()
            }
            space.node("chain").on("job", chain);
            space.start().await.unwrap();
            for number in 0..5 {
                space.send("chain", Job { number }).forget();
            }
            env.sleep(millis(500)).await;
            let before = world.sim.now();
            drop(space.stop().await);
            let took = world.sim.now() - before;
            assert!(took < millis(2_000 + 3 * latency + 500), "{latency}: {took:?}");
        });
    }
}

#[test]
fn as_many_flows_as_you_like_leave_nothing_in_memory() {
    let number = std::env::var("HAPPEN_FLOWS").map_or(2_000, |number| number.parse().unwrap());
    let sim = Simulator::new(1).steps_max(1 << 40);
    sim.run(async {
        let store = Arc::new(MemoryStore::new(sim.env()));
        let space = Space::with_store(Config::default(), sim.env(), store).unwrap();
        let node = space.node("node").serial_by(|job: &Job| job.number % 1_000);
        node.on("job", |_: &Event<Job>, _: &Context| {});
        let asker = space.node("asker");
        asker.on("part", |part: Event<Part>, cx: Context| async move {
            cx.send("node", Job { number: part.number }).await.map(drop)
        });
        space.start().await.unwrap();
        for number in 0..number {
            space.send("asker", Part { number }).await.unwrap();
        }
        space.settled(secs(60)).await.unwrap();
        assert_eq!(space.flows_under_way(), 0);
        for node in [node, asker] {
            assert_eq!((node.waiting(), node.flows().len()), (0, 0));
        }
    });
}

async fn note_and_rest(env: Arc<dyn Env>, job: Event<Job>, cx: Context) -> happen::Result<u64> {
    cx.state::<Done>().set(does(job.number.to_string()))?;
    env.sleep(millis(env.random_u64() % 20)).await;
    Ok(job.number)
}

/// A step sees a state as it will be when all that is on its way is committed. Not all of that is.
#[test]
fn a_step_that_saw_a_change_which_was_not_committed_makes_its_own_anew() {
    for seed in 0..40 {
        let world = World::new(seed);
        world.store.fails(300);
        world.store.takes(millis(7));
        let env = world.sim.env();
        let taken: Arc<Mutex<Vec<u64>>> = Arc::default();
        world.sim.run(async {
            let space = world.space();
            space.node("node").on("job", with(Arc::clone(&env), note_and_rest));
            if space.start().await.is_err() {
                return;
            }
            for number in 0..40 {
                let (space, taken, env) = (space.clone(), Arc::clone(&taken), Arc::clone(&env));
                world.sim.env().spawn(Box::pin(async move {
                    env.sleep(millis(env.random_u64() % 100)).await;
                    if let Ok(reply) = space.send("node", Job { number }).reply::<u64>().await {
                        taken.lock().unwrap_or_else(PoisonError::into_inner).push(*reply);
                    }
                }));
            }
            env.sleep(secs(60)).await;
            space.settled(secs(600)).await.unwrap();
            let mut done: Vec<u64> =
                done_by(&space, "node").iter().map(|number| number.parse().unwrap()).collect();
            let len = done.len();
            done.sort_unstable();
            done.dedup();
            assert_eq!(done.len(), len, "seed {seed}: made twice");
            let taken = taken.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let lost: Vec<_> = taken.iter().filter(|number| !done.contains(number)).collect();
            assert!(lost.is_empty(), "seed {seed}: {lost:?} were acknowledged and are lost");
        });
    }
}

/// The way of a store that has a commit a moment after it failed, and the clock.
type Later = (Arc<FaultyStore>, Arc<dyn Env>);

async fn put_one_there(later: Later, _: Event<Job>, cx: Context) -> happen::Result<Step> {
    cx.state::<Left>().set(|_| Left { count: 1 })?;
    next_with(take_the_last, later)
}

async fn take_the_last((store, env): Later, _: Event<Job>, cx: Context) -> happen::Result<Step> {
    let left = cx.state::<Left>();
    if left.get(|left| left.count) == 0 {
        cx.send("worker", Part { number: 0 }).await?;
        return done("nothing is left".to_owned());
    }
    left.set(|left| Left { count: left.count - 1 })?;
    store.happen_later(millis(30));
    let (back, clock) = (Arc::clone(&store), Arc::clone(&env));
    env.spawn(Box::pin(async move {
        clock.sleep(millis(10)).await;
        back.happen_later(millis(0));
    }));
    cx.send("worker", Part { number: 1 }).await?;
    done("taken".to_owned())
}

/// A commit failed, and happens while its step waits to try again: what the step is then shown is its own doing.
#[test]
fn a_step_whose_commit_happens_after_all_does_not_decide_anew_on_what_it_did() {
    let world = World::new(1);
    let later = (Arc::clone(&world.store), world.sim.env());
    world.sim.run(async {
        let space = world.space();
        worker(&space);
        let node = space.node("node");
        node.on("job", with(later.clone(), put_one_there)).step(with(later, take_the_last));
        space.start().await.unwrap();
        let told = space.send("node", Job { number: 1 }).reply::<String>().await.unwrap();
        assert_eq!(*told, "taken");
        space.settled(secs(60)).await.unwrap();
        assert_eq!(done_by(&space, "worker"), ["1"]);
        assert_eq!(node.state::<Left>().get(|left| left.count), 0);
    });
}

fn fails_at_first(
    attempts: &Arc<AtomicU32>,
) -> impl Fn(&Event<Job>, &Context) -> happen::Result<()> + Send + Sync + use<> {
    let attempts = Arc::clone(attempts);
    move |_, _| match attempts.fetch_add(1, Ordering::SeqCst) {
        0 => Err(Error::msg("not yet")),
        _ => Ok(()),
    }
}

/// What is due is due by the wall clock, for it has to be known after a restart; but nobody waits for longer than was said
/// because the clock went back.
#[test]
fn a_clock_that_jumps_back_holds_up_no_retry_and_no_sleep() {
    for restarts in [false, true] {
        let mut world = World::new(1);
        let attempts = Arc::new(AtomicU32::new(0));
        let build = |space: &Space| {
            let node = space.node("node").attempts(5, secs(10));
            node.on("job", fails_at_first(&attempts));
            let sleeper = space.node("sleeper");
            sleeper.on("part", |_: Event<Part>, cx: Context| async move { cx.sleep(secs(20)).await });
        };
        let env = world.sim.env();
        world.sim.run(async {
            let space = world.space();
            build(&space);
            space.start().await.unwrap();
            space.send("node", Job { number: 1 }).await.unwrap();
            space.send("sleeper", Part { number: 1 }).await.unwrap();
            env.sleep(secs(5)).await;
            world.sim.jump_clock_back(secs(3_600));
            if !restarts {
                env.sleep(secs(60)).await;
                assert_eq!(world.keys("flow/").await, Vec::<String>::new());
                assert_eq!(attempts.load(Ordering::SeqCst), 2);
            }
        });
        if !restarts {
            continue;
        }
        let disk = Arc::clone(&world.disk);
        let sim = Simulator::new(2);
        let store = FaultyStore::new(Arc::clone(&disk), sim.env());
        world = World { sim, disk, store };
        world.sim.jump_clock_back(secs(3_600));
        world.sim.run(async {
            let space = world.space();
            build(&space);
            space.start().await.unwrap();
            world.sim.env().sleep(secs(60)).await;
            assert_eq!(attempts.load(Ordering::SeqCst), 2, "a retry waits no longer than it was to");
            let flows = world.keys("flow/").await;
            assert!(flows.iter().all(|key| key.starts_with("flow/sleeper/")), "{flows:?}");
            // A sleep has no longest time, so it lasts until the time that was written down.
            world.sim.env().sleep(secs(2 * 3_700)).await;
            assert_eq!(world.keys("flow/").await, Vec::<String>::new());
        });
    }
}

/// The same event type as [`Job`], as an older program sent it.
#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("job")]
struct OldJob {
    id: String,
}

#[test]
fn a_payload_whose_type_changed_shape_is_a_dead_letter_until_the_type_reads_it_again() {
    #[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[event("job")]
    struct MendedJob {
        #[serde(default)]
        number: u64,
        #[serde(default)]
        id: String,
    }
    let world = World::new(1);
    world.sim.run(async {
        let space = world.space_with(Config { drain_ms: 10, ..Config::default() });
        let blocked = |_: Event<OldJob>, _: Context| std::future::pending::<happen::Result<()>>();
        space.node("node").serial().on("job", blocked).named("work");
        space.start().await.unwrap();
        for id in ["a", "b"] {
            space.send("node", OldJob { id: id.into() }).await.unwrap();
        }
        drop(space.stop().await);
    });
    let world = world.killed();
    let letters = world.sim.run(async {
        let space = world.space();
        let errors = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&errors);
        space.on("job.error", move |failure: &Event<happen::Failure>, _: &Context| {
            hears.lock().unwrap_or_else(PoisonError::into_inner).push(failure.code.to_string());
        });
        space.node("node").serial().on("job", |_: &Event<Job>, _: &Context| {}).named("work");
        space.start().await.unwrap();
        space.settled(secs(60)).await.unwrap();
        let codes = errors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert_eq!(codes, ["undecodable", "undecodable"]);
        assert_eq!(world.keys("flow/").await, Vec::<String>::new());
        let letters = world.keys("dead/node/").await;
        assert_eq!(letters.len(), 2, "{letters:?}");
        space.stop().await.unwrap();
        letters
    });
    let world = world.killed();
    world.sim.run(async {
        let space = world.space();
        let node = space.node("node").serial();
        node.on("job", |job: &Event<MendedJob>, cx: &Context| cx.state::<Done>().set(does(job.id.clone())))
            .named("work");
        space.start().await.unwrap();
        for letter in letters {
            let event = letter.split('/').nth(2).unwrap().parse().unwrap();
            space.redrive(event).await.unwrap();
        }
        space.settled(secs(60)).await.unwrap();
        assert_eq!(done_by(&space, "node"), ["a", "b"]);
        assert_eq!(world.keys("dead/").await, Vec::<String>::new());
        assert_eq!(world.keys("flow/").await, Vec::<String>::new());
    });
}

#[test]
fn a_full_disk_is_told_once_refuses_what_is_new_and_loses_nothing_that_was_taken() {
    let world = World::new(1);
    let env = world.sim.env();
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    world.sim.run(async {
        let space = world.space();
        worker(&space);
        space.node("node").on("job", open).step(close);
        for event in ["system.store-failed", "system.store-recovered"] {
            let told = Arc::clone(&told);
            space.on(event, move |event: &Event, _: &Context| {
                told.lock().unwrap_or_else(PoisonError::into_inner).push(event.event_type().to_string());
            });
        }
        space.start().await.unwrap();
        for number in 0..5 {
            space.send("node", Job { number }).await.unwrap();
        }
        world.store.fill(true);
        let refused = space.send("worker", Part { number: 1 }).reply::<u64>().await.unwrap_err();
        assert_eq!(refused.code(), "io", "{refused}");
        // Those that sleep wake meanwhile, and cannot say so.
        env.sleep(secs(30)).await;
        assert_eq!(done_by(&space, "node").len(), 5);
        world.store.fill(false);
        env.sleep(secs(10)).await;
        space.settled(secs(10)).await.unwrap();
        assert_eq!(done_by(&space, "node").len(), 10, "room was made, and work goes on by itself");
        assert_eq!(*space.send("worker", Part { number: 2 }).reply::<u64>().await.unwrap(), 2);
        assert_eq!(done_by(&space, "worker"), ["2"]);
        assert_eq!(world.keys("dead/").await, Vec::<String>::new());
        let told = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert_eq!(told, ["system.store-failed", "system.store-recovered"]);
    });
}
