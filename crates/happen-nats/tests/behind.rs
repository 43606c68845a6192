//! Whoever falls far behind: a process that stands still while others write, one that takes nothing in while others send
//! to it. It catches up or is told that it cannot, its memory stays bounded, and nobody else is held up. With
//! `HAPPEN_BEHIND=1000000` it is a million records, which takes a few minutes.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use happen::env::RealEnv;
use happen::{Context, Event, Space, millis, secs};
use happen_core::env::Env;
use happen_core::store::{Batch, NewRecord, Position, Select, Store, Tag};
use happen_nats::{Connection, LinkOptions, NatsLink, NatsStore, NatsStoreOptions};
use happen_testing::NatsServer;

fn env() -> Arc<dyn Env> {
    Arc::new(RealEnv::new())
}

async fn open(url: &str, copy_after: u64) -> NatsStore {
    let client = async_nats::connect(url).await.unwrap();
    let options = NatsStoreOptions::new("log", env()).copy_after(copy_after);
    // How long a loaded machine takes is not what these tests are about.
    NatsStore::open(client, options.commit_wait(Duration::from_secs(120))).await.unwrap()
}

/// The process that falls behind.
struct Process(Child);

impl Process {
    fn start(role: &str, url: &str, copy_after: u64, told: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(ROLE, role).env(URL, url).env(COPY_AFTER, copy_after.to_string()).env(TOLD, told);
        command.args(["--exact", "a_process_that_another_test_stops", "--nocapture", "--test-threads=1"]);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// The most memory that it ever had, in bytes.
    fn memory(&self) -> u64 {
        memory_of(&self.0.id().to_string(), "VmHWM:")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn memory_of(process: &str, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1_024
}

/// Does nothing in the ordinary test: it is what the others start.
#[test]
fn a_process_that_another_test_stops() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let variable = |name| std::env::var(name).unwrap();
    let (url, copy_after) = (variable(URL), variable(COPY_AFTER).parse().unwrap());
    let mut told = OpenOptions::new().append(true).create(true).open(variable(TOLD)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        if role == "member" {
            let space = member(&url, "still").await;
            std::mem::forget(space);
            std::future::pending::<()>().await;
        }
        loop {
            let store = open(&url, copy_after).await;
            let mut count = 0;
            let error = match store.watch(Select::All, Position::START).await {
                Ok(mut watch) => loop {
                    match watch.next().await {
                        Ok(records) => count += records.len(),
                        Err(error) => break error,
                    }
                    writeln!(told, "{count}").unwrap();
                },
                Err(error) => error,
            };
            writeln!(told, "{}: {}", error.code(), error.chain().join(": ")).unwrap();
        }
    });
}

/// What the process told last, and the errors that it told.
fn told(file: &Path) -> (usize, Vec<String>) {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let count = whole.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0);
    let errors = whole.lines().filter(|line| line.parse::<usize>().is_err() && !line.is_empty());
    (count, errors.map(str::to_owned).collect())
}

async fn has(file: &Path, count: usize) {
    let env = env();
    for _ in 0..6_000 {
        if told(file).0 == count {
            return;
        }
        env.sleep(millis(100)).await;
    }
    panic!("it does not catch up: {:?} of {count}", told(file));
}

/// Writes so many small records, many at a time.
async fn write(store: &NatsStore, count: u64) {
    let batch = |first: u64| {
        let record = |number: u64| NewRecord {
            tags: vec![Tag::Declared("small".into())],
            bytes: number.to_le_bytes().as_slice().into(),
        };
        Batch { records: (first..first + BATCH).map(record).collect(), ..Batch::default() }
    };
    let calls = (0..count / BATCH).map(|index| store.commit(vec![batch(index * BATCH)]));
    let results: Vec<_> = futures_util::stream::iter(calls).buffered(8).collect().await;
    let failed = results.iter().flatten().find_map(|result| result.as_ref().err());
    assert!(failed.is_none(), "{failed:?}");
}

fn records() -> u64 {
    std::env::var(COUNT).map_or(100_000, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_very_far_behind_catches_up_with_bounded_memory_and_holds_up_nobody() {
    let (server, folder, env, count) = (NatsServer::start(), tempfile::tempdir().unwrap(), env(), records());
    let file = folder.path().join("told");
    let [here, beside] = [open(&server.url(), u64::MAX).await, open(&server.url(), u64::MAX).await];
    let still = Process::start("reads", &server.url(), u64::MAX, &file);
    write(&here, BATCH).await;
    has(&file, BATCH as usize).await;
    let before = still.memory();
    still.signal("-STOP");
    let writing = async {
        write(&here, count).await;
    };
    let reading = async {
        let mut watch = beside.watch(Select::All, Position::START).await.unwrap();
        let mut seen = 0;
        while seen < BATCH + count {
            seen += watch.next().await.unwrap().len() as u64;
        }
    };
    tokio::join!(writing, reading);
    assert_eq!(told(&file).0, BATCH as usize, "it does not stand still");
    let begun = env.monotonic();
    write(&here, BATCH).await;
    assert!(env.monotonic() - begun < secs(5), "a commit takes {:?}", env.monotonic() - begun);
    still.signal("-CONT");
    has(&file, (BATCH * 2 + count) as usize).await;
    assert_eq!(told(&file).1, Vec::<String>::new());
    let more = still.memory() - before;
    eprintln!("{count} records behind, it took {} MB more", more >> 20);
    assert!(more < MEMORY_MAX, "{} MB more than before", more >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_behind_what_is_kept_is_told_and_begins_anew() {
    let (server, folder, env) = (NatsServer::start(), tempfile::tempdir().unwrap(), env());
    let file = folder.path().join("told");
    let here = open(&server.url(), COPY_OFTEN).await;
    let still = Process::start("reads", &server.url(), COPY_OFTEN, &file);
    write(&here, BATCH).await;
    has(&file, BATCH as usize).await;
    still.signal("-STOP");
    let client = async_nats::connect(server.url()).await.unwrap();
    let stream = async_nats::jetstream::new(client).get_stream("happen_log").await.unwrap();
    let mut written = BATCH;
    let taken = stream.get_info().await.unwrap().state.last_sequence;
    // The server sends some ahead, which its connection keeps.
    while stream.get_info().await.unwrap().state.first_sequence < taken + AHEAD {
        write(&here, 5 * BATCH).await;
        written += 5 * BATCH;
        env.sleep(millis(50)).await;
        assert!(written < 3_000_000, "the log is not let go");
    }
    still.signal("-CONT");
    has(&file, written as usize).await;
    let (_, errors) = told(&file);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("damaged") && errors[0].contains("open the store again"), "{errors:?}");
}

async fn member(url: &str, name: &str) -> Space {
    let connection = Connection::open(url, async_nats::ConnectOptions::new()).await.unwrap();
    let space = Space::in_env(happen::Config::default(), env()).unwrap();
    space.join(NatsLink::new(&connection, env(), LinkOptions::new("link", name)).unwrap()).unwrap();
    let (counted, heard) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counts = Arc::clone(&counted);
    let node = space.node(name);
    node.on("string", move |_: &Event<String>, _: &Context| {
        counts.fetch_add(1, Ordering::SeqCst);
    });
    node.on("u64", move |_: &Event<u64>, _: &Context| {
        heard.fetch_add(1, Ordering::SeqCst);
        counted.load(Ordering::SeqCst)
    });
    space.start().await.unwrap();
    space
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stands_still_under_a_flood_costs_bounded_memory_and_holds_up_nobody() {
    let (server, folder, env) = (NatsServer::start(), tempfile::tempdir().unwrap(), env());
    let file = folder.path().join("told");
    let [sends, other] = [member(&server.url(), "sends").await, member(&server.url(), "other").await];
    let still = Process::start("member", &server.url(), 0, &file);
    let known = || sends.remote_nodes().len();
    happen_testing::link::until(&env, "both are known", || known() == 2).await;
    let before = memory_of("self", "VmRSS:");
    let own = still.memory();
    still.signal("-STOP");
    let stop = AtomicBool::new(false);
    let flooding = async {
        for number in 0..records() {
            sends.send("still", "x".repeat(100)).forget();
            // What may leave does, and the limits are reached before the member counts as gone.
            if number % 1_000 == 0 {
                tokio::task::yield_now().await;
            }
        }
        // Until it counts as gone, whatever it is sent waits.
        happen_testing::link::until(&env, "it is gone", || known() == 1).await;
        stop.store(true, Ordering::SeqCst);
    };
    let asking = async {
        let mut longest = Duration::ZERO;
        while !stop.load(Ordering::SeqCst) {
            let begun = env.monotonic();
            other.send("sends", 1u64).reply::<u64>().await.unwrap();
            sends.send("other", 1u64).reply::<u64>().await.unwrap();
            longest = longest.max(env.monotonic() - begun);
            env.sleep(millis(20)).await;
        }
        longest
    };
    let ((), longest) = tokio::join!(flooding, asking);
    assert!(longest < secs(2), "others waited for {longest:?}");
    let codes: BTreeSet<_> = sends.dead_letters().iter().map(|dead| dead.code).collect();
    assert!(codes.contains("busy"), "{codes:?}");
    let more = memory_of("self", "VmRSS:").saturating_sub(before);
    assert!(more < MEMORY_MAX, "{} MB more than before", more >> 20);
    still.signal("-CONT");
    // It takes in what had reached it, and is known again.
    let mut counted = Err(happen::Error::msg("not yet"));
    for _ in 0..1_000 {
        counted = sends.send("still", 1u64).reply::<u64>().within(secs(5)).await;
        if counted.is_ok() {
            break;
        }
        env.sleep(millis(10)).await;
    }
    let counted = *counted.unwrap();
    assert!(counted > 0 && counted < records(), "{counted} of {}", records());
    sends.send("still", "x".repeat(100)).await.unwrap();
    let more = still.memory() - own;
    assert!(more < MEMORY_MAX, "{} MB more than before", more >> 20);
}

/// Records of one commit.
const BATCH: u64 = 500;

/// How much more memory whoever is behind may take. A server sends at most 32 MiB ahead, and SQLite has pages.
const MEMORY_MAX: u64 = 200 << 20;

/// So often that much of the log is let go while a process stands still.
const COPY_OFTEN: u64 = 500_000;

/// How many messages have to be gone: more than a connection keeps.
const AHEAD: u64 = 400;

const COUNT: &str = "HAPPEN_BEHIND";
const ROLE: &str = "HAPPEN_TEST_ROLE";
const URL: &str = "HAPPEN_TEST_URL";
const COPY_AFTER: &str = "HAPPEN_TEST_COPY_AFTER";
const TOLD: &str = "HAPPEN_TEST_TOLD";
