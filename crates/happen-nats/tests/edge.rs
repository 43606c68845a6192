//! A folder of one's own and a link over NATS: a process works on while no server can be reached, and whatever is killed
//! meanwhile, what it sends is handled at the other end once and in order.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen::env::RealEnv;
use happen::{Config, Context, Error, Event, Space, UnfitFlows, secs};
use happen_core::env::Env;
use happen_nats::Nats;
use happen_testing::NatsServer;
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("measure")]
struct Measure {
    from: u64,
    until: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("reading")]
struct Reading {
    number: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("seal")]
struct Seal {
    number: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("how-many")]
struct HowMany {}

/// What a node has handled, in its order.
#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("handled", version = 1)]
struct Handled {
    numbers: Vec<u64>,
    sealed: Vec<u64>,
}

/// The reading that comes next.
#[derive(happen::State, Default, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[state("next", version = 1)]
struct Next {
    number: u64,
}

/// Sends some readings; the last of every ten is sealed at the other end before the step ends.
async fn measure(measure: Event<Measure>, cx: Context) -> happen::Result<u64> {
    let (from, until) = (measure.from, measure.until);
    for number in from..until {
        cx.send("hub", Reading { number }).await?;
        if number % 10 == 9 {
            let sealed = cx.send("hub", Seal { number }).reply::<u64>().await?;
            assert_eq!(*sealed, number, "the answer is that of the question");
        }
    }
    cx.state::<Handled>().set(move |mut handled| {
        handled.numbers.extend(from..until);
        handled
    })?;
    Ok(until)
}

async fn edge(url: &str, folder: &Path) -> Space {
    let space = Nats::at(format!("{url}/shop")).folder(folder).open().await.unwrap();
    space.node("meter").serial().on("measure", measure);
    space
}

async fn hub(url: &str, folder: &Path) -> Space {
    let space = Nats::at(format!("{url}/shop")).folder(folder).open().await.unwrap();
    let node = space.node("hub").serial();
    node.on("reading", |reading: &Event<Reading>, cx: &Context| {
        let number = reading.number;
        cx.state::<Handled>().set(move |mut handled| {
            handled.numbers.push(number);
            handled
        })
    });
    node.on("seal", |seal: &Event<Seal>, cx: &Context| {
        let number = seal.number;
        cx.state::<Handled>().set(move |mut handled| {
            handled.sealed.push(number);
            handled
        })?;
        Ok::<_, Error>(number)
    });
    node.on("how-many", |_: &Event<HowMany>, cx: &Context| {
        cx.state::<Handled>().get(|handled| handled.numbers.len() as u64)
    });
    space
}

async fn handled(space: &Space, node: &str) -> Handled {
    let found = space.store().document(&format!("state/{node}/handled")).await.unwrap();
    let Some(document) = found else { return Handled::default() };
    let content = document.content.unwrap();
    happen_core::state::decode_document(content.version, &content.bytes).unwrap()
}

async fn until(env: &Arc<dyn Env>, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2_400 {
        if holds().await {
            return;
        }
        env.sleep(Duration::from_millis(25)).await;
    }
    panic!("this takes longer than a minute");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_begins_and_works_without_a_server_and_syncs_when_there_is_one() {
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let folder = tempfile::tempdir().unwrap();
    // The address of a server that is not there yet.
    let mut server = NatsServer::start();
    let url = server.url();
    server.kill();
    let edge = edge(&url, &folder.path().join("edge")).await;
    edge.start().await.unwrap();
    let asked = edge.send("meter", Measure { from: 0, until: 5 }).reply::<u64>().await.unwrap();
    assert_eq!(*asked, 5);
    assert_eq!(edge.outboxes()[0].events, 5);
    server.restart();
    let hub = hub(&url, &folder.path().join("hub")).await;
    hub.start().await.unwrap();
    until(&env, async || handled(&hub, "hub").await.numbers.len() == 5).await;
    // A question waits for the other end, through a server that goes and comes back.
    server.kill();
    edge.send("meter", Measure { from: 5, until: 10 }).await.unwrap();
    env.sleep(secs(1)).await;
    assert!(handled(&edge, "meter").await.numbers.len() == 5, "it waits for its answer");
    server.restart();
    until(&env, async || handled(&edge, "meter").await.numbers.len() == 10).await;
    until(&env, async || handled(&hub, "hub").await.numbers.len() >= 10).await;
    assert_eq!(handled(&hub, "hub").await.numbers, (0..10).collect::<Vec<_>>());
    assert_eq!(handled(&hub, "hub").await.sealed, [9]);
    until(&env, async || edge.outboxes().is_empty()).await;
    edge.stop().await.unwrap();
    hub.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_events_that_waited_leave_in_seconds() {
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let folder = tempfile::tempdir().unwrap();
    let server = NatsServer::start();
    let edge = edge(&server.url(), &folder.path().join("edge")).await;
    edge.node("burst").on("measure", async |measure: Event<Measure>, cx: Context| {
        for number in measure.from..measure.until {
            cx.send("sink", Reading { number }).await?;
        }
        Ok::<_, Error>(())
    });
    edge.start().await.unwrap();
    for part in 0..20 {
        let measure = Measure { from: part * 500, until: part * 500 + 500 };
        edge.send("burst", measure).reply::<()>().await.unwrap();
    }
    assert_eq!(edge.outboxes()[0].events, 10_000);
    let hub = hub(&server.url(), &folder.path().join("hub")).await;
    hub.node("sink").serial().on("reading", |reading: &Event<Reading>, cx: &Context| {
        let number = reading.number;
        cx.state::<Next>().try_set(move |next| match next.number == number {
            true => Ok(Next { number: number + 1 }),
            false => Err(Error::misuse(format!("{number} came where {} has its turn", next.number))),
        })
    });
    let begun = env.monotonic();
    hub.start().await.unwrap();
    until(&env, async || edge.outboxes().is_empty()).await;
    let took = env.monotonic() - begun;
    println!("10 000 events that waited were taken in within {took:?}");
    assert!(took < secs(30), "{took:?}");
    let next = async || hub.find("sink").unwrap().state::<Next>().get(|next| next.number);
    until(&env, async || next().await == 10_000).await;
    assert!(hub.dead_letters().is_empty());
    edge.stop().await.unwrap();
    hub.stop().await.unwrap();
}

async fn wait_and_count(
    gate: Arc<tokio::sync::Notify>,
    reading: Event<Reading>,
    cx: Context,
) -> happen::Result<()> {
    if reading.number == 1 {
        gate.notified().await;
    }
    let number = reading.number;
    cx.state::<Handled>().set(move |mut handled| {
        handled.numbers.push(number);
        handled
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_whose_store_is_on_nats_commits_nothing_while_cut_off_and_says_so() {
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let mut server = NatsServer::start();
    let url = format!("{}/shop", server.url());
    let space = Nats::at(url).commit_wait(secs(1)).open().await.unwrap();
    let gate = Arc::new(tokio::sync::Notify::new());
    space.node("hub").on("reading", happen::with(Arc::clone(&gate), wait_and_count));
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let watch = space.node("watch").ephemeral();
    for event_type in ["system.store-failed", "system.store-recovered"] {
        let tells = Arc::clone(&told);
        watch.on(event_type, move |_: &Event, _: &Context| tells.lock().unwrap().push(event_type.to_owned()));
    }
    space.start().await.unwrap();
    space.send("hub", Reading { number: 1 }).await.unwrap();
    server.kill();
    // What has begun cannot end, and what is new is refused: nothing is acknowledged that is not in the log.
    gate.notify_one();
    until(&env, async || *told.lock().unwrap() == ["system.store-failed"]).await;
    let refused = space.send("hub", Reading { number: 2 }).await.unwrap_err();
    assert_eq!(refused.code(), "io", "{refused}");
    server.restart();
    until(&env, async || handled(&space, "hub").await.numbers.contains(&1)).await;
    // What is committed next says that it is over.
    space.send("hub", Reading { number: 3 }).await.unwrap();
    until(&env, async || handled(&space, "hub").await.numbers.contains(&3)).await;
    until(&env, async || *told.lock().unwrap() == ["system.store-failed", "system.store-recovered"]).await;
    space.stop().await.unwrap();
}

struct Process(Child);

impl Process {
    fn start(role: &str, url: &str, folder: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(ROLE, role).env(URL, url).env(FOLDER, folder.join(role));
        command.args(["--exact", "a_process_that_another_test_kills", "--nocapture", "--test-threads=1"]);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Does nothing in the ordinary test: it is what the others start.
#[test]
fn a_process_that_another_test_kills() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (url, folder) = (std::env::var(URL).unwrap(), std::env::var(FOLDER).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        if role == "hub" {
            let space = hub(&url, Path::new(&folder)).await;
            space.start().await.unwrap();
            return std::future::pending::<()>().await;
        }
        let space = edge(&url, Path::new(&folder)).await;
        space.start().await.unwrap();
        // Goes on where it was: a part that was taken before its process was killed is known by its key.
        for part in 0..READINGS / 5 {
            let measure = Measure { from: part * 5, until: part * 5 + 5 };
            space.send("meter", measure).idempotency_key(part.to_string()).reply::<u64>().await.unwrap();
        }
        std::future::pending::<()>().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_every_reading_is_handled_once_and_in_order() {
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let folder = tempfile::tempdir().unwrap();
    let mut server = NatsServer::start();
    let url = server.url();
    let mut processes = ROLES.map(|role| Process::start(role, &url, folder.path()));
    let watching = Nats::at(format!("{url}/shop")).folder(folder.path().join("watch")).open().await.unwrap();
    watching.start().await.unwrap();
    let how_many = async || {
        let asked = watching.send("hub", HowMany {}).reply::<u64>().within(secs(2)).await;
        asked.map_or(0, |count| *count)
    };
    let mut rounds = 0;
    until(&env, async || {
        rounds += 1;
        if rounds % 40 == 0 && rounds < 1_000 {
            let victim = (env.random_u64() % 3) as usize;
            if victim == 2 {
                server.restart();
            } else {
                // A folder is free when the process that had it is gone.
                let old =
                    std::mem::replace(&mut processes[victim], Process(Command::new("true").spawn().unwrap()));
                drop(old);
                processes[victim] = Process::start(ROLES[victim], &url, folder.path());
            }
        }
        how_many().await >= READINGS
    })
    .await;
    // Whoever would do something twice has the time to.
    env.sleep(secs(1)).await;
    drop(processes);
    watching.stop().await.unwrap();
    let config = || Config { unfit_flows: UnfitFlows::Park, ..Config::default() };
    let hub = Space::open_with(folder.path().join("hub"), config()).await.unwrap();
    let handled = handled(&hub, "hub").await;
    assert_eq!(handled.numbers, (0..READINGS).collect::<Vec<_>>(), "after {rounds} rounds");
    assert_eq!(handled.sealed, (9..READINGS).step_by(10).collect::<Vec<_>>());
    assert!(hub.journal().verify().await.unwrap().is_whole());
    let edge = Space::open_with(folder.path().join("edge"), config()).await.unwrap();
    assert!(edge.journal().verify().await.unwrap().is_whole());
    assert!(edge.journal().outboxes().await.unwrap().iter().all(|outbox| outbox.node != "hub"));
}

const ROLES: [&str; 2] = ["edge", "hub"];

/// Readings of a run.
const READINGS: u64 = 400;

const ROLE: &str = "HAPPEN_TEST_ROLE";
const URL: &str = "HAPPEN_TEST_URL";
const FOLDER: &str = "HAPPEN_TEST_FOLDER";
