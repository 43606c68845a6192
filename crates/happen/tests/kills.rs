//! Real processes that are killed at any moment while the bank and the shop run on a folder, and the next ones that go on.
//! What was acknowledged is there, once, and the folder is whole.
#![cfg(all(feature = "embedded", unix))]
#![expect(clippy::unwrap_used, reason = "whatever is not there fails the test, wherever it is looked for")]
#![expect(
    clippy::disallowed_methods,
    reason = "processes are real, and so are the moments at which they are killed"
)]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use happen::env::RealEnv;
use happen::store::{SqliteOptions, SqliteStore, Store};
use happen::{Config, Context, Error, ErrorKind, Event, Space, millis, secs};
use happen_core::env::Env;
use serde::{Deserialize, Serialize};
use workloads::orders::{Approved, Note};
use workloads::{Part, Provider, audit, bank, orders};

mod workloads;

/// Each run is a folder that a few processes work on one after the other; all but the last are killed.
#[test]
fn whatever_moment_a_process_is_killed_at_nothing_is_lost_and_nothing_happens_twice() {
    let runs = std::env::var(RUNS_VARIABLE).map_or(RUNS, |runs| runs.parse().unwrap());
    let env = RealEnv::new();
    // Several at once, for each of them mostly waits for its disk.
    std::thread::scope(|scope| {
        for part in 0..PARTS {
            let env = &env;
            scope
                .spawn(move || (0..runs).filter(|run| run % PARTS == part).for_each(|run| survive(run, env)));
        }
    });
}

fn survive(run: u64, env: &RealEnv) {
    let folder = tempfile::tempdir().unwrap();
    let lives = 1 + env.random_u64() % 2;
    let mut moments = Vec::new();
    for life in 0..lives {
        let mut child = start(folder.path(), life, "hasty");
        let moment = millis(20 + env.random_u64() % 350);
        moments.push(moment);
        std::thread::sleep(moment);
        child.0.kill().unwrap();
        child.0.wait().unwrap();
    }
    let mut last = start(folder.path(), lives, "patient");
    let status = last.0.wait().unwrap();
    assert!(status.success(), "run {run}, killed after {moments:?}: the last process failed");
    let told = Told::read(folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let checked = std::panic::catch_unwind(|| runtime.block_on(check(folder.path(), &told)));
    if checked.is_err() {
        let kept = folder.keep();
        panic!("run {run}, killed after {moments:?}: see above, and {}", kept.display());
    }
}

async fn check(folder: &Path, told: &Told) {
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let store = SqliteStore::open(folder.join(STORE), SqliteOptions::new(env)).await.unwrap();
    let verified = store.verify().await.unwrap();
    assert!(verified.is_whole(), "{verified:?}");
    let store: Arc<dyn Store> = Arc::new(store);
    assert_eq!(audit::flows(&store).await, Vec::<String>::new());
    let mut log = audit::check(&store).await;
    bank::check(&store, &log, &told.transfers, &told.effects).await;
    // Those of the bank were looked at.
    log.dead.retain(|key| !key.starts_with("dead/bank/"));
    orders::check(&store, &log, &told.orders, &told.notes).await;
    assert!(told.transfers.iter().any(|known| known.acknowledged));
}

/// What a process tells before and after it sends something, a line each.
#[derive(Serialize, Deserialize)]
enum Line {
    Transfer(bank::Transfer),
    TransferTaken(u64, Option<bank::Outcome>),
    Effect(u64, String),
    Order(orders::Place),
    OrderTaken(u64, Option<orders::Outcome>),
    Note(String, u64),
    NoteTaken(String, u64),
}

/// What all processes of one folder told.
#[derive(Default)]
struct Told {
    transfers: Vec<bank::Known>,
    effects: BTreeMap<u64, Vec<String>>,
    orders: Vec<orders::Known>,
    notes: BTreeMap<String, orders::Notes>,
}

impl Told {
    fn read(folder: &Path) -> Self {
        let mut told = Self::default();
        let text = std::fs::read_to_string(folder.join(LINES)).unwrap();
        for line in text.lines() {
            match serde_json::from_str(line).unwrap() {
                Line::Transfer(transfer) => {
                    told.transfers.push(bank::Known { transfer, acknowledged: false, outcome: None });
                }
                Line::TransferTaken(id, outcome) => {
                    let known = told.transfers.iter_mut().find(|known| known.transfer.id == id).unwrap();
                    known.acknowledged = true;
                    known.outcome = outcome;
                }
                Line::Effect(transfer, key) => told.effects.entry(transfer).or_default().push(key),
                Line::Order(order) => {
                    told.orders.push(orders::Known { order, acknowledged: false, outcome: None });
                }
                Line::OrderTaken(id, outcome) => {
                    let known = told.orders.iter_mut().find(|known| known.order.id == id).unwrap();
                    known.acknowledged = true;
                    known.outcome = outcome;
                }
                Line::Note(key, number) => told.notes.entry(key).or_default().sent = number,
                Line::NoteTaken(key, number) => {
                    told.notes.get_mut(&key).unwrap().acknowledged.push(number);
                }
            }
        }
        told
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(folder: &Path, life: u64, role: &str) -> Running {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, role).env(LIFE, life.to_string()).env(FOLDER, folder);
    command.args(["--exact", "a_process_that_another_test_kills", "--nocapture", "--test-threads=1"]);
    Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

/// Does nothing in the ordinary test: it is what the other one starts.
#[test]
fn a_process_that_another_test_kills() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    let life: u64 = std::env::var(LIFE).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work(&folder, life, role == "patient"));
}

/// Appends lines to the file of a folder, each with one write, so that none is half.
#[derive(Clone)]
struct Teller(Arc<std::fs::File>);

impl Teller {
    fn tell(&self, line: &Line) {
        let mut text = serde_json::to_string(line).unwrap();
        text.push('\n');
        (&*self.0).write_all(text.as_bytes()).unwrap();
    }
}

async fn work(folder: &Path, life: u64, patient: bool) {
    let lines = OpenOptions::new().create(true).append(true).open(folder.join(LINES)).unwrap();
    let teller = Teller(Arc::new(lines));
    let space = Space::open(folder.join(STORE)).await.unwrap();
    let env = Arc::clone(space.env());
    let (tells, dice) = (teller.clone(), Arc::clone(&env));
    let provider = Provider(Arc::new(move |key, transfer| {
        if dice.random_u64().is_multiple_of(10) {
            return Err(Error::new(ErrorKind::Io { what: "the provider".to_owned() }));
        }
        tells.tell(&Line::Effect(transfer, key.to_owned()));
        Ok(())
    }));
    let screen = Arc::new(AtomicU64::new(0));
    for part in Part::ALL {
        bank::build(&space, &provider, part);
        orders::build(&space, &screen, part);
    }
    space.start().await.unwrap();
    let mut clients = Vec::new();
    for number in 0..TRANSFERS {
        let mut dice = || env.random_u64();
        let transfer = bank::transfer(life * 1_000 + number, &mut dice);
        clients.push(tokio::spawn(send_transfer(space.clone(), teller.clone(), transfer, dice())));
    }
    let mut large = Vec::new();
    for number in 0..ORDERS {
        let mut dice = || env.random_u64();
        let order = orders::order(life * 1_000 + number, &mut dice);
        clients.push(tokio::spawn(send_order(space.clone(), teller.clone(), order, dice())));
    }
    for key in 0..3 {
        // A number is used once, whoever used it.
        let first = life * NOTES;
        clients.push(tokio::spawn(send_notes(space.clone(), teller.clone(), format!("key-{key}"), first)));
    }
    if !patient {
        // Somebody kills it.
        std::future::pending::<()>().await;
    }
    for _ in 0..PATIENCE {
        large.extend(orders_of(&teller, folder));
        for order in large.drain(..) {
            space.broadcast(Approved { order }).unwrap();
        }
        drop(space.settled(millis(200)).await);
        let done = clients.iter().all(tokio::task::JoinHandle::is_finished);
        if done && audit::flows(&space.store()).await.is_empty() {
            space.stop().await.unwrap();
            return;
        }
        env.sleep(millis(20)).await;
    }
    panic!("flows that never end: {:?}", audit::flows(&space.store()).await);
}

/// The orders that wait for a person, of every life.
fn orders_of(_: &Teller, folder: &Path) -> Vec<u64> {
    let told = Told::read(folder);
    let waits = |known: &&orders::Known| orders::needs_approval(&known.order);
    told.orders.iter().filter(waits).map(|known| known.order.id).collect()
}

async fn send_transfer(space: Space, teller: Teller, transfer: bank::Transfer, dice: u64) {
    space.env().sleep(millis(dice % 200)).await;
    let id = transfer.id;
    teller.tell(&Line::Transfer(transfer.clone()));
    let sending = space.send("bank", transfer);
    match dice % 3 {
        0 => {
            if let Ok(reply) = sending.reply::<bank::Outcome>().await {
                teller.tell(&Line::TransferTaken(id, Some(*reply)));
            }
        }
        1 => {
            if sending.await.is_ok() {
                teller.tell(&Line::TransferTaken(id, None));
            }
        }
        _ => sending.forget(),
    }
}

async fn send_order(space: Space, teller: Teller, order: orders::Place, dice: u64) {
    space.env().sleep(millis(dice % 200)).await;
    let id = order.id;
    teller.tell(&Line::Order(order.clone()));
    let sending = space.send("orders", order);
    if dice.is_multiple_of(2) {
        if let Ok(reply) = sending.reply::<orders::Outcome>().within(secs(60)).await {
            teller.tell(&Line::OrderTaken(id, Some(*reply)));
        }
    } else if sending.await.is_ok() {
        teller.tell(&Line::OrderTaken(id, None));
    }
}

async fn send_notes(space: Space, teller: Teller, key: String, first: u64) {
    for number in first + 1..=first + NOTES {
        teller.tell(&Line::Note(key.clone(), number));
        if space.send("journal", Note { key: key.clone(), number }).await.is_ok() {
            teller.tell(&Line::NoteTaken(key.clone(), number));
        }
        space.env().sleep(Duration::from_micros(space.env().random_u64() % 5_000)).await;
    }
}

const ROLE: &str = "HAPPEN_TEST_ROLE";
const LIFE: &str = "HAPPEN_TEST_LIFE";
const FOLDER: &str = "HAPPEN_TEST_FOLDER";
/// How many folders are worked on: more at night.
const RUNS_VARIABLE: &str = "HAPPEN_KILLS";
const RUNS: u64 = 20;
/// How many of them are worked on at once.
const PARTS: u64 = 4;
/// The part of a folder that the store is in, and the file of what was told.
const STORE: &str = "store";
const LINES: &str = "lines";
const TRANSFERS: u64 = 16;
const ORDERS: u64 = 5;
const NOTES: u64 = 25;
/// How often a process that is not killed looks whether everything has ended.
const PATIENCE: u32 = 200;

/// A text with its own number in it, so that one that was altered is known.
#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("page")]
struct Page {
    number: u64,
    text: String,
}

impl Page {
    fn new(number: u64) -> Self {
        Self { number, text: format!("page {number} ").repeat(40) }
    }
}

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("pages", version = 1)]
struct Pages {
    read: Vec<Page>,
}

fn read_page(page: &Event<Page>, cx: &Context) -> happen::Result<()> {
    let page = (**page).clone();
    cx.state::<Pages>().set(move |mut pages| {
        pages.read.push(page.clone());
        pages
    })
}

/// Leaves a folder in which ten pages are read and ten wait to be.
async fn leave_pages(folder: &Path) {
    let space = Space::open_with(folder, Config { drain_ms: 50, ..Config::default() }).await.unwrap();
    let reader = space.node("reader").serial();
    reader.on("page", read_page);
    space.start().await.unwrap();
    for number in 0..PAGES / 2 {
        space.send("reader", Page::new(number)).reply::<()>().await.unwrap();
    }
    reader.destroy();
    let blocked = space.node("reader").serial();
    blocked
        .on("page", |_: Event<Page>, _: Context| std::future::pending::<happen::Result<()>>())
        .named("read_page");
    for number in PAGES / 2..PAGES {
        space.send("reader", Page::new(number)).await.unwrap();
    }
    drop(space.stop().await);
}

/// Goes on with a folder: whether it was told that something is wrong, and the pages that were handed on.
async fn read_on(folder: &Path) -> (bool, Vec<Page>) {
    let Ok(space) = Space::open(folder).await else { return (true, Vec::new()) };
    let handed: Arc<Mutex<Vec<Page>>> = Arc::default();
    let wrong = Arc::new(AtomicBool::new(false));
    let (gets, hears) = (Arc::clone(&handed), Arc::clone(&wrong));
    let reader = space.node("reader").serial();
    let read = move |page: &Event<Page>, cx: &Context| {
        gets.lock().unwrap_or_else(PoisonError::into_inner).push((**page).clone());
        read_page(page, cx)
    };
    reader.on("page", read).named("read_page");
    space.on("{page.error,system.store-failed}", move |_: &Event, _: &Context| {
        hears.store(true, Ordering::SeqCst)
    });
    let mut told = space.start().await.is_err();
    told |= space.settled(secs(2)).await.is_err();
    told |= !space.problems().is_empty() || wrong.load(Ordering::SeqCst);
    match reader.state::<Pages>().try_get(Clone::clone) {
        Ok(pages) => handed.lock().unwrap_or_else(PoisonError::into_inner).extend(pages.read),
        Err(_) => told = true,
    }
    drop(space.stop().await);
    let handed = handed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (told, handed)
}

fn copied(from: &Path, change: impl FnOnce(&mut Vec<u8>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let database = folder.path().join("happen.db");
    let mut bytes = std::fs::read(&database).unwrap();
    change(&mut bytes);
    std::fs::write(&database, bytes).unwrap();
    folder
}

#[test]
fn a_space_over_a_damaged_folder_says_so_and_hands_on_nothing_that_is_wrong() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let whole = tempfile::tempdir().unwrap();
        leave_pages(whole.path()).await;
        let (told, pages) = read_on(copied(whole.path(), |_| {}).path()).await;
        assert!(!told);
        assert_eq!(pages.len() as u64, PAGES / 2 + PAGES, "ten are handed on, and all are kept");
        let len = std::fs::metadata(whole.path().join("happen.db")).unwrap().len() as usize;
        let (mut tolds, mut harmless) = (0, 0);
        let flips = (0..FLIPS).map(|flip| (flip * 2 + 1) * len / (2 * FLIPS));
        let flipped = flips.map(|at| copied(whole.path(), |bytes| bytes[at] ^= 1 << (at % 8)));
        let truncated =
            [len / 4, len / 2, len - 4_096].map(|len| copied(whole.path(), |bytes| bytes.truncate(len)));
        for folder in flipped.chain(truncated) {
            let (told, pages) = read_on(folder.path()).await;
            assert!(pages.iter().all(|page| *page == Page::new(page.number)), "a page was altered");
            let complete = pages.len() as u64 == PAGES / 2 + PAGES;
            assert!(told || complete, "{} pages, and nobody was told of the others", pages.len());
            tolds += u32::from(told);
            harmless += u32::from(!told);
        }
        assert!(tolds > 3 && harmless > 0, "{tolds} told, {harmless} did no harm");
    });
}

#[test]
fn a_folder_that_another_process_works_on_is_not_opened_twice() {
    let folder = tempfile::tempdir().unwrap();
    let child = start(folder.path(), 0, "hasty");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let lines = folder.path().join(LINES);
        // Once it has told something it has started.
        while !std::fs::read_to_string(&lines).is_ok_and(|lines| lines.contains("NoteTaken")) {
            std::thread::yield_now();
        }
        let error = Space::open(folder.path().join(STORE)).await.unwrap_err();
        assert_eq!(error.code(), "busy");
        assert!(error.to_string().contains(&child.0.id().to_string()), "{error}");
        drop(child);
        // The next one is let in as soon as that one is gone, and goes on with its flows.
        let space = Space::open(folder.path().join(STORE)).await.unwrap();
        let error = Space::open(folder.path().join(STORE)).await.unwrap_err();
        assert_eq!(error.code(), "busy", "nor by the same process");
        drop(space);
    });
}

/// A space whose last handle is dropped lets go of its folder by itself, and what it left goes on.
#[test]
fn a_space_that_is_dropped_without_a_stop_leaves_its_folder_and_its_flows_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let space = Space::open(folder.path()).await.unwrap();
        let env = Arc::clone(space.env());
        let slow = |_: Event<Page>, cx: Context| async move { cx.sleep(secs(3_600)).await };
        space.node("reader").on("page", slow).named("read_page");
        space.start().await.unwrap();
        for number in 0..PAGES {
            space.send("reader", Page::new(number)).await.unwrap();
        }
        drop(space);
        let mut tries = 0;
        let space = loop {
            match Space::open(folder.path()).await {
                Ok(space) => break space,
                Err(error) => assert_eq!(error.code(), "busy"),
            }
            tries += 1;
            assert!(tries < 200, "the folder is still held");
            env.sleep(millis(10)).await;
        };
        let reader = space.node("reader");
        reader.on("page", read_page);
        space.start().await.unwrap();
        space.settled(secs(10)).await.unwrap();
        assert_eq!(reader.state::<Pages>().get(|pages| pages.read.len()) as u64, PAGES);
        space.stop().await.unwrap();
    });
}

/// Pages of a folder that is damaged: half of them are read before.
const PAGES: u64 = 20;
/// Places at which a bit is flipped.
const FLIPS: usize = 40;
