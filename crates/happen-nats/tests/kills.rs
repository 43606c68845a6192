//! Real processes on one log over NATS, killed at any moment, and servers as well: each order is charged once and heard of
//! once by everybody who should.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen::env::RealEnv;
use happen::{BalanceOptions, Config, Context, Error, Event, Space, Step, done, next, secs};
use happen_core::env::Env;
use happen_core::store::{Key, List, Read, Select};
use happen_nats::Nats;
use happen_testing::{NatsCluster, NatsServer};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.create")]
struct Create {
    id: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("charge")]
struct Charge {
    order: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("paid")]
struct Paid {
    order: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.placed")]
struct Placed {
    id: u64,
}

/// What a node has done, once for each order.
#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("done", version = 1)]
struct Done {
    orders: Vec<u64>,
}

fn with(id: u64) -> impl Fn(Done) -> Done + Send + Sync + 'static {
    move |mut done| {
        done.orders.push(id);
        done
    }
}

async fn take(order: Event<Create>, cx: Context) -> happen::Result<Step> {
    cx.state::<Done>().set(with(order.id))?;
    next(charge)
}

async fn charge(order: Event<Create>, cx: Context) -> happen::Result<Step> {
    cx.send("bank", Charge { order: order.id }).reply::<Paid>().await?;
    cx.send("notes", Placed { id: order.id }).await?;
    cx.broadcast(Placed { id: order.id })?;
    done(Paid { order: order.id })
}

fn at(url: &str) -> Nats {
    // Nobody asks again here, however long the servers take to agree on who leads.
    Nats::at(format!("{url}/shop")).commit_wait(secs(120))
}

fn build(space: &Space, role: &str) {
    match role {
        "shop" => drop(space.node("orders").on("order.create", take).step(charge)),
        "bank" => drop(space.node("bank").on("charge", |charge: &Event<Charge>, cx: &Context| {
            cx.state::<Done>().set(with(charge.order))?;
            Ok::<_, Error>(Paid { order: charge.order })
        })),
        _ => {
            let note = |placed: &Event<Placed>, cx: &Context| cx.state::<Done>().set(with(placed.id));
            drop(space.node("notes").on("order.placed", note));
            drop(space.node("mails").on("order.*", note));
        }
    }
}

struct Process(Child);

impl Process {
    fn start(role: &str, url: &str) -> Self {
        Self::start_with(role, url, &std::env::temp_dir())
    }

    /// With its temporary files in this folder.
    fn start_with(role: &str, url: &str, temporary: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(ROLE, role).env(URL, url).env("TMPDIR", temporary);
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
    let url = std::env::var(URL).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        // The server may be away just now, and whoever looks after a process would start it again.
        let _running = loop {
            let Ok(space) = at(&url).open().await else { continue };
            build(&space, &role);
            if space.start().await.is_ok() {
                break space;
            }
        };
        std::future::pending::<()>().await;
    });
}

/// What the log says that a node has done.
async fn done_by(space: &Space, node: &str) -> Vec<u64> {
    let key = format!("state/{node}/done");
    let Some(document) = space.store().document(&key).await.unwrap() else { return Vec::new() };
    let content = document.content.unwrap();
    let done: Done = happen_core::state::decode_document(content.version, &content.bytes).unwrap();
    done.orders
}

fn sorted(mut orders: Vec<u64>) -> Vec<u64> {
    orders.sort_unstable();
    orders
}

/// Sends orders while whatever runs is killed, one thing after the other, and checks what became of them.
async fn survive(url: &str, mut kill: impl FnMut(u64)) {
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let mut processes: Vec<_> = ROLES.iter().map(|role| Process::start(role, url)).collect();
    let asking = at(url).open().await.unwrap();
    asking.start().await.unwrap();
    // Whatever no process ever had is no node.
    until(&env, &asking, async || {
        let nodes = List { prefix: "owner/".into(), after: None, documents_max: 10 };
        let all = asking.store().list(nodes).await.unwrap().len() == NODES;
        all && asking.send("orders", Create { id: 0 }).await.is_ok()
    })
    .await;
    for id in 1..ORDERS {
        // Stored for a node that may be dead at this moment.
        asking.send("orders", Create { id }).await.unwrap();
        if id % 10 == 0 {
            let victim = (env.random_u64() % ROLES.len() as u64) as usize;
            let replaced = Process::start(ROLES[victim], url);
            drop(std::mem::replace(&mut processes[victim], replaced));
            kill(id);
        }
        env.sleep(Duration::from_millis(10)).await;
    }
    let all: Vec<u64> = (0..ORDERS).collect();
    let twice: Vec<u64> = all.iter().flat_map(|id| [*id, *id]).collect();
    until(&env, &asking, async || {
        done_by(&asking, "mails").await.len() >= all.len()
            && done_by(&asking, "notes").await.len() >= twice.len()
    })
    .await;
    // Whoever would do something twice has the time to.
    env.sleep(secs(1)).await;
    for node in ["orders", "bank", "mails"] {
        assert_eq!(sorted(done_by(&asking, node).await), all, "{node}");
    }
    assert_eq!(sorted(done_by(&asking, "notes").await), twice, "sent to it once, and heard by it once");
    let verified = asking.journal().verify().await.unwrap();
    assert!(verified.is_whole(), "{verified:?}");
    asking.stop().await.unwrap();
}

/// What a space was told of its balance: the type, the pattern and the nodes.
fn told(space: &Space) -> Arc<Mutex<Vec<(String, Json)>>> {
    let told: Arc<Mutex<Vec<(String, Json)>>> = Arc::default();
    let heard = Arc::clone(&told);
    let types = "{node.slow,node.down,node.recovered,system.overloaded,system.partitioned,system.down}";
    space.on(types, move |event: &Event, _: &Context| {
        let content = event.payload().json().unwrap().clone();
        heard.lock().unwrap().push((event.event_type().to_owned(), content));
    });
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_is_told_as_its_nodes_that_are_down() {
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let server = NatsServer::start();
    let url = server.url();
    let quick =
        BalanceOptions { every_ms: 200, window_ms: 1_000, calm_ms: 1_000, ..BalanceOptions::default() };
    let config = Config { balance: Some(quick), ..Config::default() };
    let watching = Nats::at(format!("{url}/shop")).config(config).open().await.unwrap();
    let told = told(&watching);
    watching.start().await.unwrap();
    let [bank, office] = ["bank", "office"].map(|role| Process::start(role, &url));
    until(&env, &watching, async || watching.remote_nodes().len() == 3).await;
    watching.send("bank", Charge { order: 1 }).await.unwrap();
    until(&env, &watching, async || done_by(&watching, "bank").await == [1]).await;
    assert!(told.lock().unwrap().is_empty(), "{told:?}");

    drop(bank);
    watching.send("bank", Charge { order: 2 }).await.unwrap();
    until(&env, &watching, async || !told.lock().unwrap().is_empty()).await;
    let (event_type, content) = told.lock().unwrap()[0].clone();
    assert_eq!((&*event_type, &content["pattern"]), ("node.down", &json!("node-failure")));
    assert_eq!((&content["node_id"], &content["affected_nodes"]), (&json!("bank"), &json!(["bank"])));
    let metrics = &content["lag_metrics"];
    assert_eq!((&metrics["inbox"], &metrics["is_taken"]), (&json!(1), &json!(false)), "{metrics}");
    assert_eq!(watching.pressure("bank").unwrap().waiting, 1);

    // The next one takes what was kept.
    let bank = Process::start("bank", &url);
    until(&env, &watching, async || told.lock().unwrap().len() == 2).await;
    let (event_type, content) = told.lock().unwrap()[1].clone();
    assert_eq!((&*event_type, &content["node_id"]), ("node.recovered", &json!("bank")));
    assert_eq!(sorted(done_by(&watching, "bank").await), [1, 2]);

    // A process with several nodes is a part of the system.
    drop(office);
    until(&env, &watching, async || told.lock().unwrap().len() == 3).await;
    let (event_type, content) = told.lock().unwrap()[2].clone();
    assert_eq!((&*event_type, &content["pattern"]), ("system.partitioned", &json!("partition")));
    assert_eq!((&content["affected_nodes"], &content["is_cut"]), (&json!(["mails", "notes"]), &json!(false)));
    drop(bank);
    watching.stop().await.unwrap();
}

#[tokio::test]
async fn what_a_killed_process_has_left_in_temporary_files_goes_with_the_next_one() {
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let server = NatsServer::start();
    let temporary = tempfile::tempdir().unwrap();
    let there = || -> Vec<_> {
        fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    let begun = env.monotonic();
    let mut before = Vec::new();
    for _ in 0..3 {
        let process = Process::start_with("bank", &server.url(), temporary.path());
        while there().len() != 1 || there() == before {
            assert!(env.monotonic() - begun < secs(120), "{:?} is there, after {before:?}", there());
            env.sleep(Duration::from_millis(20)).await;
        }
        drop(process);
        before = there();
        assert_eq!(before.len(), 1, "nobody is left who could remove it");
    }
}

/// Waits as long as the log gets on.
async fn until(env: &Arc<dyn Env>, space: &Space, mut holds: impl AsyncFnMut() -> bool) {
    let (mut position, mut looks) = (Default::default(), 0);
    while !holds().await {
        let head = Read { records_max: 0, ..Read::forward(Select::All) };
        let now = space.store().read(head).await.unwrap().head;
        looks = if now == position { looks + 1 } else { 0 };
        position = now;
        assert!(looks < 1_200, "nothing was done for a minute: {}", left(space).await);
        env.sleep(Duration::from_millis(50)).await;
    }
}

/// What stands in the log beside what was done.
async fn left(space: &Space) -> String {
    let mut left = String::new();
    for kind in ["process", "owner", "inbox", "flow", "timer", "dead"] {
        let prefix = Key::from(format!("{kind}/"));
        let all = List { prefix, after: None, documents_max: 100 };
        for document in space.store().list(all).await.unwrap() {
            let text = document.content.map(|content| String::from_utf8_lossy(&content.bytes).into_owned());
            writeln!(left, "{} {text:?}", document.key).unwrap();
        }
    }
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_are_killed_lose_nothing_and_do_nothing_twice() {
    let server = NatsServer::start();
    survive(&server.url(), |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_and_the_server_that_are_killed_lose_nothing_and_do_nothing_twice() {
    let mut server = NatsServer::start();
    let url = server.url();
    survive(&url, |id| {
        if id % 20 == 0 {
            server.restart();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_and_servers_of_a_cluster_that_are_killed_lose_nothing_and_do_nothing_twice() {
    let mut cluster = NatsCluster::start(3);
    let url = cluster.url();
    survive(&url, |id| {
        if id % 30 == 0 {
            let server = (id / 30) as usize % 3;
            cluster.servers[server].restart();
        }
    })
    .await;
}

const ROLES: [&str; 3] = ["shop", "bank", "office"];

/// How many nodes they have together.
const NODES: usize = 4;

/// Orders of a run.
const ORDERS: u64 = 100;

const ROLE: &str = "HAPPEN_TEST_ROLE";
const URL: &str = "HAPPEN_TEST_URL";
