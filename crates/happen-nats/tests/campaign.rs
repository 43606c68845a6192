//! The bank and the shop over three processes and three servers while everything fails that can, one thing after the other,
//! chosen by a seed: what was acknowledged is there, once, and the log is whole. An ordinary run takes a minute; with
//! `HAPPEN_CAMPAIGN_MINUTES=60` it goes on for an hour, and `HAPPEN_SEED=7` repeats what was done under that seed.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "whatever is not there fails the test, wherever it is looked for")]
#![expect(
    clippy::disallowed_methods,
    reason = "a seed says when a clock is set, and nothing else of the time"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use async_nats::ConnectOptions;
use async_nats::jetstream::stream;
use futures_util::FutureExt as _;
use happen::env::RealEnv;
use happen::journal::{Entry, FlowFilter};
use happen::store::{List, Read, Select, Start, Store};
use happen::{Config, Error, ErrorKind, Space, millis, secs};
use happen_core::env::Env;
use happen_nats::{Connection, LinkOptions, NatsLink, NatsStore, NatsStoreOptions};
use happen_testing::{NatsCluster, SetClock, Way};
use workloads::orders::{Approved, Note};
use workloads::{Part, Provider, audit, bank, orders};

#[path = "../../happen/tests/workloads/mod.rs"]
mod workloads;

#[test]
fn whatever_fails_money_is_kept_and_each_order_ships_once() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let env = RealEnv::new();
    let minutes = number(MINUTES).unwrap_or(0);
    let first = number(SEED).unwrap_or_else(|| env.random_u64() % 1_000_000);
    let mut seed = first;
    loop {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut done = Vec::new();
        let checked = runtime.block_on(AssertUnwindSafe(round(seed, minutes > 0, &mut done)).catch_unwind());
        eprintln!("seed {seed}, after {:?}: {}", env.monotonic(), done.join(", "));
        if let Err(panic) = checked {
            eprintln!(
                "repeat it with: {SEED}={seed} cargo test -p happen-nats --test campaign -- --nocapture"
            );
            std::panic::resume_unwind(panic);
        }
        seed += 1;
        if env.monotonic() >= secs(60 * minutes) {
            return;
        }
    }
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    /// The next number: splitmix64.
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

/// What fails.
#[derive(Clone, Copy, Debug)]
enum Fault {
    ProcessKilled,
    ProcessStandsStill,
    ProcessCutOff,
    ServerKilled,
    ServerStandsStill,
    ServerCutOff,
    LeaderKilled,
    AllServersKilled,
    LogFull,
    CredentialsTaken,
    Rubbish,
}

const FAULTS: [Fault; 11] = [
    Fault::ProcessKilled,
    Fault::ProcessStandsStill,
    Fault::ProcessCutOff,
    Fault::ServerKilled,
    Fault::ServerStandsStill,
    Fault::ServerCutOff,
    Fault::LeaderKilled,
    Fault::AllServersKilled,
    Fault::LogFull,
    Fault::CredentialsTaken,
    Fault::Rubbish,
];

/// The servers, the processes, and the ways between all of them.
struct World {
    cluster: NatsCluster,
    routes: Vec<(usize, usize, Way)>,
    processes: Vec<Process>,
    /// Where the processes tell what they did outside.
    effects: PathBuf,
    env: Arc<dyn Env>,
}

struct Process {
    part: usize,
    ways: Vec<Way>,
    child: Child,
}

impl Process {
    fn start(&mut self, effects: &Path) {
        let urls = self.ways.iter().map(|way| way.url().replace("//", "//process:s3cret@"));
        let url = urls.collect::<Vec<_>>().join(",");
        self.child = start(self.part, &url, effects);
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended is not there to be killed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn start(part: usize, url: &str, effects: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(PART, part.to_string()).env(URL, url).env(EFFECTS, effects);
    command.args(["--exact", "a_process_to_which_another_test_does_harm", "--nocapture", "--test-threads=1"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

fn users(processes: bool) -> String {
    let process = if processes { "{ user: process, password: \"s3cret\" }," } else { "" };
    format!("authorization {{ users: [{process} {{ user: asks, password: \"asks\" }}] }}")
}

impl World {
    async fn start(effects: PathBuf) -> Self {
        let mut routes = Vec::new();
        let cluster = NatsCluster::with(&users(true), 3, |route| {
            let way = Way::to(route.port);
            let port = way.port();
            routes.push((route.from, route.to, way));
            port
        });
        let mut world =
            Self { cluster, routes, processes: Vec::new(), effects, env: Arc::new(RealEnv::new()) };
        // The log is there before anything fails.
        world.asks("first").await.stop().await.unwrap();
        for part in 0..Part::ALL.len() {
            let ways: Vec<_> = world.cluster.servers.iter().map(|server| Way::to(server.port())).collect();
            let child = Command::new("true").spawn().unwrap();
            let mut process = Process { part, ways, child };
            process.child.wait().unwrap();
            process.start(&world.effects);
            world.processes.push(process);
        }
        world
    }

    /// The space of somebody who asks and has no nodes.
    async fn asks(&self, name: &str) -> Space {
        let url = self.cluster.url().replace("//", "//asks:asks@");
        let space = open(&self.env, &url, name).await;
        space.start().await.unwrap();
        space
    }

    async fn context(&self) -> async_nats::jetstream::Context {
        let urls: Vec<_> = self.cluster.servers.iter().map(happen_testing::NatsServer::url).collect();
        let options = ConnectOptions::with_user_and_password("asks".into(), "asks".into());
        async_nats::jetstream::new(options.connect(urls).await.unwrap())
    }

    /// Starts the processes again that have ended of themselves. That a process may, is said by its doors only.
    fn look_after(&mut self) {
        for process in &mut self.processes {
            if process.child.try_wait().unwrap().is_some() {
                process.start(&self.effects);
            }
        }
    }

    async fn harm(&mut self, fault: Fault, dice: &mut Dice) {
        let which = dice.below(3) as usize;
        let short = millis(300 + dice.below(3_000));
        let long = millis(1_000 + dice.below(11_000));
        let env = Arc::clone(&self.env);
        match fault {
            Fault::ProcessKilled => {
                self.processes[which].kill();
                if dice.below(2) == 0 {
                    env.sleep(short).await;
                }
                self.processes[which].start(&self.effects);
            }
            Fault::ProcessStandsStill => {
                self.processes[which].signal("-STOP");
                env.sleep(long).await;
                self.processes[which].signal("-CONT");
            }
            Fault::ProcessCutOff => {
                self.processes[which].ways.iter().for_each(Way::cut);
                env.sleep(long).await;
                self.processes[which].ways.iter().for_each(Way::heal);
            }
            Fault::ServerKilled => {
                self.cluster.servers[which].kill();
                env.sleep(short).await;
                self.cluster.servers[which].restart();
            }
            Fault::ServerStandsStill => {
                self.cluster.servers[which].pause();
                env.sleep(long).await;
                self.cluster.servers[which].go_on();
            }
            Fault::ServerCutOff => {
                let ways = |change: fn(&Way)| {
                    let of = self.routes.iter().filter(|(from, to, _)| [from, to].contains(&&which));
                    of.for_each(|(_, _, way)| change(way));
                };
                ways(Way::cut);
                env.sleep(long).await;
                ways(Way::heal);
            }
            Fault::LeaderKilled => {
                let name = format!("happen_{SPACE}");
                let leader = async {
                    self.context()
                        .await
                        .get_stream(name)
                        .await
                        .ok()?
                        .cached_info()
                        .cluster
                        .as_ref()?
                        .leader
                        .clone()
                };
                // While there is none, there is none to kill.
                if let Some(leader) = leader.await {
                    let server = self.cluster.named(&leader).unwrap();
                    server.kill();
                    env.sleep(short).await;
                    server.restart();
                }
            }
            Fault::AllServersKilled => self.cluster.restart_all(),
            Fault::LogFull => {
                let context = self.context().await;
                let limit = async |max_bytes: i64| {
                    let stream = context.get_stream(format!("happen_{SPACE}")).await?;
                    let config = stream::Config { max_bytes, ..stream.cached_info().config.clone() };
                    context.update_stream(config).await.map_err(async_nats::Error::from)?;
                    Ok::<_, async_nats::Error>(())
                };
                // Without a leader nothing is limited.
                if limit(1_000).await.is_ok() {
                    env.sleep(short).await;
                }
                while limit(-1).await.is_err() {
                    env.sleep(millis(100)).await;
                }
            }
            Fault::CredentialsTaken => {
                self.cluster.servers.iter_mut().for_each(|server| server.reload(&users(false)));
                env.sleep(long).await;
                self.cluster.servers.iter_mut().for_each(|server| server.reload(&users(true)));
            }
            Fault::Rubbish => self.write_rubbish(dice).await,
        }
    }

    /// Writes what does not belong there on every subject of the space.
    async fn write_rubbish(&self, dice: &mut Dice) {
        let context = self.context().await;
        let client = context.client();
        let mut bytes: Vec<Vec<u8>> = vec![Vec::new(), b"hello".to_vec(), vec![0xff; 300], vec![1; 2_000]];
        bytes.extend((0..20).map(|_| {
            let len = 1 + dice.below(100) as usize;
            (0..len).map(|_| dice.roll() as u8).collect()
        }));
        // What is in the log already, once more, cut off, and changed.
        if let Ok(stream) = context.get_stream(format!("happen_{SPACE}")).await
            && let Ok(message) = stream.get_raw_message(1 + dice.below(20)).await
        {
            let whole = message.payload.to_vec();
            let mut changed = whole.clone();
            let place = dice.below(changed.len() as u64) as usize;
            changed[place] ^= 1 << dice.below(8);
            bytes.extend([whole[..whole.len() / 2].to_vec(), whole]);
            // A version of later times stops every process, as it has to.
            if place > 2 {
                bytes.push(changed);
            }
        }
        let members = Part::ALL.iter().enumerate().flat_map(|(part, _)| {
            [format!("happen.{SPACE}.member.part-{part}"), format!("happen.{SPACE}.back.part-{part}.x")]
        });
        let mut subjects: Vec<_> = members.collect();
        subjects.extend([format!("happen.{SPACE}.presence"), format!("happen.{SPACE}.log")]);
        for subject in subjects {
            for rubbish in &bytes {
                client.publish(subject.clone(), rubbish.clone().into()).await.unwrap();
            }
        }
        client.flush().await.unwrap();
    }
}

/// What those who ask know.
#[derive(Default)]
struct Known {
    transfers: Vec<bank::Known>,
    orders: Vec<orders::Known>,
    notes: BTreeMap<String, orders::Notes>,
}

type Told = Arc<Mutex<Known>>;

async fn round(seed: u64, is_long: bool, done: &mut Vec<String>) {
    let mut dice = Dice(seed);
    let folder = tempfile::tempdir().unwrap();
    let effects = folder.path().join("effects");
    let mut world = World::start(effects.clone()).await;
    let env = Arc::clone(&world.env);
    let asking = world.asks("asks").await;
    until(&env, "the processes are there", async || {
        asking.send("journal", Note { key: "first".to_owned(), number: 0 }).await.is_ok()
            && asking.send("journal", Note { key: "last".to_owned(), number: 0 }).await.is_ok()
            && asking.remote_nodes().len() >= NODES
    })
    .await;
    let told: Told = Arc::default();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let (space, told) = (asking.clone(), Arc::clone(&told));
        clients.push(tokio::spawn(ask(space, told, number, Dice(dice.roll()))));
    }
    let count = if is_long { LONG_FAULTS } else { ORDINARY_FAULTS };
    // All of them come, in another order each time.
    let mut faults = Vec::new();
    while faults.len() < count {
        let mut all = FAULTS.to_vec();
        for index in (1..all.len()).rev() {
            all.swap(index, dice.below(index as u64 + 1) as usize);
        }
        faults.extend(all);
    }
    for fault in faults.into_iter().take(count) {
        let begun = env.monotonic();
        done.push(format!("{fault:?}"));
        world.harm(fault, &mut dice).await;
        env.sleep(millis(dice.below(2_000))).await;
        world.look_after();
        done.push(format!("{:?}", env.monotonic() - begun));
    }
    let store: Arc<dyn Store> = asking.store();
    let mut looks = 0;
    loop {
        world.look_after();
        let large: Vec<_> = {
            let told = told.lock().unwrap();
            told.orders.iter().map(|known| known.order.clone()).filter(orders::needs_approval).collect()
        };
        for order in large {
            // What is not taken now is said again.
            drop(asking.broadcast(Approved { order: order.id }));
        }
        env.sleep(millis(500)).await;
        let flows = audit::flows(&store).await;
        if flows.is_empty() && clients.iter().all(tokio::task::JoinHandle::is_finished) {
            // What waits in an inbox is no flow yet.
            env.sleep(secs(2)).await;
            if audit::flows(&store).await.is_empty() {
                break;
            }
        }
        looks += 1;
        if looks == LOOKS_MAX {
            panic!("flows that never end: {}", unended(&asking).await);
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    let effects = read_effects(&effects);
    let mut log = audit::check(&store).await;
    for dead in asking.journal().dead(&FlowFilter::new()).await.unwrap().flows {
        if !dead.error.to_string().contains("poison") {
            let trace = asking.journal().trace(dead.event).await.unwrap();
            panic!("nothing but a poison is dead: {dead:?}\n{trace}");
        }
    }
    let inboxes = List { prefix: "inbox/".into(), after: None, documents_max: 500 };
    assert_eq!(store.list(inboxes).await.unwrap(), [], "something waits in an inbox");
    let known = std::mem::take(&mut *told.lock().unwrap());
    let checking = bank::check(&store, &log, &known.transfers, &effects);
    if let Err(panic) = AssertUnwindSafe(checking).catch_unwind().await {
        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        let words = text.split_whitespace().skip_while(|word| *word != "transfer");
        if let Some(Ok(id)) = words.skip(1).map(|word| word.trim_matches(',').parse()).next() {
            eprintln!("{}", history_of(&asking, id).await);
        }
        std::panic::resume_unwind(panic);
    }
    // Those of the bank were looked at.
    log.dead.retain(|key| !key.starts_with("dead/bank/"));
    orders::check(&store, &log, &known.orders, &known.notes).await;
    let verified = asking.journal().verify().await.unwrap();
    assert!(verified.is_whole(), "{verified:?}");
    // Who comes later finds the same.
    let later = world.asks("later").await;
    assert_eq!(audit::check(&later.store()).await.events, log.events);
    let acknowledged = known.transfers.iter().filter(|known| known.acknowledged).count();
    assert!(acknowledged > 0, "nothing was done");
    done.push(format!("{acknowledged} of {} transfers acknowledged", known.transfers.len()));
    asking.stop().await.unwrap();
}

/// What is known of the flows that are under way.
async fn unended(space: &Space) -> String {
    let journal = space.journal();
    let mut told = String::new();
    for flow in journal.flows(&FlowFilter::new()).await.unwrap().flows {
        let trace = journal.trace(flow.event).await.unwrap();
        write!(told, "\n{flow:?}\n{trace}").unwrap();
    }
    for kept in ["inbox/", "owner/", "process/"] {
        let list = List { prefix: kept.into(), after: None, documents_max: 500 };
        for document in space.store().list(list).await.unwrap() {
            let content =
                document.content.map(|content| String::from_utf8_lossy(&content.bytes).into_owned());
            write!(told, "\n{}: {content:?}", document.key).unwrap();
        }
    }
    told
}

/// What the log has of a transfer, and of what it asked.
async fn history_of(space: &Space, id: u64) -> String {
    let mut told = String::new();
    let mut read = Read::forward(Select::All);
    loop {
        let page = space.store().read(read.clone()).await.unwrap();
        for record in &page.records {
            let Ok(entry) = Entry::read(record) else { continue };
            for event in &entry.events {
                let Ok(json) = event.payload.json() else { continue };
                let is_its = |name| json.get(name).and_then(serde_json::Value::as_u64) == Some(id);
                if event.event_type == "transfer.create" && is_its("id") || is_its("transfer") {
                    let (id, kind, accepted) = (event.id, &event.event_type, &entry.accepted);
                    let tags = &record.tags;
                    write!(told, "\n{:?} {id} {kind} {json} {accepted:?} {tags:?}", entry.position).unwrap();
                    for step in space.journal().steps(event.id).await.unwrap() {
                        write!(told, "\n    {step:?}").unwrap();
                    }
                }
            }
        }
        let Some(next) = page.next else { return told };
        read = read.start(Start::Position(next));
    }
}

/// Sends transfers, orders and notes, one after the other.
async fn ask(space: Space, told: Told, number: u64, mut dice: Dice) {
    let env = Arc::clone(space.env());
    for index in 0..REQUESTS {
        let id = number * 1_000 + index;
        match dice.below(6) {
            0 => send_order(&space, &told, id, &mut dice).await,
            1 | 2 => send_note(&space, &told, number).await,
            _ => send_transfer(&space, &told, id, &mut dice).await,
        }
        env.sleep(millis(dice.below(1_000))).await;
    }
}

async fn send_transfer(space: &Space, told: &Told, id: u64, dice: &mut Dice) {
    let transfer = bank::transfer(id, || dice.roll());
    told.lock().unwrap().transfers.push(bank::Known {
        transfer: transfer.clone(),
        acknowledged: false,
        outcome: None,
    });
    let sending = space.send("bank", transfer);
    let outcome = match dice.below(3) {
        // Without a deadline, which would travel to the bank: what it ends in the middle stays there.
        0 => sending.reply::<bank::Outcome>().await.ok().map(|reply| Some(*reply)),
        _ => sending.await.ok().map(|_| None),
    };
    if let Some(outcome) = outcome {
        let mut told = told.lock().unwrap();
        let known = told.transfers.iter_mut().find(|known| known.transfer.id == id).unwrap();
        (known.acknowledged, known.outcome) = (true, outcome);
    }
}

async fn send_order(space: &Space, told: &Told, id: u64, dice: &mut Dice) {
    let order = orders::order(id, || dice.roll());
    told.lock().unwrap().orders.push(orders::Known {
        order: order.clone(),
        acknowledged: false,
        outcome: None,
    });
    // A large one is answered when somebody has approved it.
    if space.send("orders", order).await.is_ok() {
        let mut told = told.lock().unwrap();
        told.orders.iter_mut().find(|known| known.order.id == id).unwrap().acknowledged = true;
    }
}

async fn send_note(space: &Space, told: &Told, client: u64) {
    let key = format!("client-{client}");
    let number = {
        let mut told = told.lock().unwrap();
        let notes = told.notes.entry(key.clone()).or_default();
        notes.sent += 1;
        notes.sent
    };
    if space.send("journal", Note { key: key.clone(), number }).await.is_ok() {
        told.lock().unwrap().notes.get_mut(&key).unwrap().acknowledged.push(number);
    }
}

fn read_effects(file: &Path) -> BTreeMap<u64, Vec<String>> {
    let mut effects: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    // A run in which nothing was done outside leaves no file.
    for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
        let (transfer, key) = line.split_once(' ').unwrap();
        effects.entry(transfer.parse().unwrap()).or_default().push(key.to_owned());
    }
    effects
}

async fn until(env: &Arc<dyn Env>, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        env.sleep(millis(100)).await;
    }
    panic!("this did not become true: {what}");
}

/// Does nothing in the ordinary test: it is what the other one starts.
#[test]
fn a_process_to_which_another_test_does_harm() {
    let Ok(part) = std::env::var(PART) else { return };
    let part: usize = part.parse().unwrap();
    let url = std::env::var(URL).unwrap();
    let lines = OpenOptions::new().create(true).append(true).open(std::env::var(EFFECTS).unwrap()).unwrap();
    let lines = Arc::new(lines);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let env = Arc::new(SetClock::over(Arc::new(RealEnv::new())));
        let dice = Arc::clone(&env);
        let provider = Provider(Arc::new(move |key, transfer| {
            if dice.random_u64().is_multiple_of(10) {
                return Err(Error::new(ErrorKind::Io { what: "the provider".to_owned() }));
            }
            // One write, so that no line is half.
            (&*lines).write_all(format!("{transfer} {key}\n").as_bytes()).unwrap();
            Ok(())
        }));
        let shared: Arc<dyn Env> = env.clone();
        let space = open(&shared, &url, &format!("part-{part}")).await;
        bank::build(&space, &provider, Part::ALL[part]);
        orders::build(&space, &Arc::new(AtomicU64::new(0)), Part::ALL[part]);
        // A process that cannot start, as when its servers die meanwhile, ends and is started again.
        if let Err(error) = space.start().await {
            eprintln!("part {part} does not start: {}", error.chain().join(": "));
            return;
        }
        loop {
            // The clock of this machine is set, by so little that what sleeps is awake when the test looks.
            env.sleep(millis(500 + env.random_u64() % 5_000)).await;
            env.set_ahead(env.random_u64().cast_signed() % 3_000);
            // A copy that fell behind what is kept of the log gives nothing more: its process ends, and is started again.
            if let Err(error) = space.store().documents(vec!["any".into()]).await {
                eprintln!("part {part} ends: {}", error.chain().join(": "));
                return;
            }
        }
    });
}

/// Opens the space of a process, which waits for its servers as a program does that is started again until it runs.
async fn open(env: &Arc<dyn Env>, url: &str, name: &str) -> Space {
    loop {
        match try_open(env, url, name).await {
            Ok(space) => return space,
            Err(error) => eprintln!("{name} does not open: {}", error.chain().join(": ")),
        }
        env.sleep(millis(200)).await;
    }
}

async fn try_open(env: &Arc<dyn Env>, url: &str, name: &str) -> happen::Result<Space> {
    let connection = Connection::open(url, ConnectOptions::new()).await?;
    let options = NatsStoreOptions::new(SPACE, Arc::clone(env)).copy_after(COPY_AFTER_BYTES);
    let store = NatsStore::open(connection.client().clone(), options).await?;
    let space = Space::with_store(Config::default(), Arc::clone(env), Arc::new(store))?;
    space.join(NatsLink::new(&connection, Arc::clone(env), LinkOptions::new(SPACE, name))?)?;
    Ok(space)
}

const SPACE: &str = "campaign";
const PART: &str = "HAPPEN_TEST_PART";
const URL: &str = "HAPPEN_TEST_URL";
const EFFECTS: &str = "HAPPEN_TEST_EFFECTS";
/// For how many minutes further seeds are tried.
const MINUTES: &str = "HAPPEN_CAMPAIGN_MINUTES";
const SEED: &str = "HAPPEN_SEED";
/// The nodes of all processes.
const NODES: usize = 12;
/// Of those that ask, and what each of them sends.
const CLIENTS: u64 = 4;
const REQUESTS: u64 = 60;
/// So few that each is there at least once.
const ORDINARY_FAULTS: usize = FAULTS.len();
const LONG_FAULTS: usize = 3 * FAULTS.len();
/// So that a copy is kept while everything fails, and not two while somebody is cut off: who is would have to open the
/// log anew.
const COPY_AFTER_BYTES: u64 = 1_000_000;
/// How often it is looked whether everything has ended: for two minutes.
const LOOKS_MAX: u32 = 240;
