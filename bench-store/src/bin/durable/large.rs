//! A large store: what it takes on the disk, how long it takes to open after a kill, what following its log needs, and what
//! writers feel of a pruning. Owns the child processes, which have nothing in their memory when they begin.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use happen::Space;
use happen::env::RealEnv;
use happen::journal::Journal;
use happen::store::{Position, Prune, Select, SqliteOptions, SqliteStore};

use crate::report::{Report, percentile};
use crate::{NODES, Size, ask, open, runtime};

/// Flows in flight while a store is filled.
const FILLING: u64 = 256;

/// Writers beside a pruning.
const WRITERS: u64 = 4;

pub fn measure(size: &Size, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let before = Instant::now();
    let mut child = start(&["fill", text(folder.path()), &size.records.to_string()]);
    said(&mut child);
    report.filled = (size.records, before.elapsed());
    eprintln!("filled with {} records in {:?}", size.records, before.elapsed());
    // It still writes.
    child.kill().unwrap();
    child.wait().unwrap();
    let info = runtime().block_on(async {
        let options = SqliteOptions::new(Arc::new(RealEnv::new()));
        SqliteStore::open_read_only(folder.path(), options).await.unwrap().info().await.unwrap()
    });
    report.disk = (bytes(folder.path()), info.records, info.revisions);
    for round in 0..size.rounds {
        let mut child = start(&["first", text(folder.path())]);
        let line = said(&mut child);
        let figures: Vec<f64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        report.opened(figures[0], figures[1]);
        // Some more of it for the next one to recover.
        std::thread::sleep(Duration::from_millis(300));
        child.kill().unwrap();
        child.wait().unwrap();
        eprintln!("opened {} of {}", round + 1, size.rounds);
    }
    for records in [size.records / 10, size.records] {
        let mut child = start(&["follow", text(folder.path()), &records.to_string()]);
        let line = said(&mut child);
        child.wait().unwrap();
        let figures: Vec<f64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        report.followed(records, figures[0], figures[1], figures[2]);
    }
    drop(folder);
    runtime().block_on(prune(size, report));
    report.journal(size);
}

fn start(arguments: &[&str]) -> Child {
    let program = std::env::current_exe().unwrap();
    Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().unwrap()
}

/// The next line that a child says.
fn said(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty(), "the child ended");
    line
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn bytes(folder: &Path) -> u64 {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

/// Has this many events handled, and goes on with more until it is killed.
pub fn fill(folder: &Path, records: u64) {
    runtime().block_on(async {
        let space = open(folder).await;
        let asked = Arc::new(AtomicU64::new(0));
        write_on(&space, FILLING, &asked);
        while asked.load(Ordering::Relaxed) < records {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        say("filled");
        std::future::pending::<()>().await;
    });
}

/// Asks from this many tasks without an end.
fn write_on(space: &Space, flows: u64, asked: &Arc<AtomicU64>) {
    for flow in 0..flows {
        let (space, asked) = (space.clone(), Arc::clone(asked));
        tokio::spawn(async move {
            for number in 0.. {
                ask(&space, flow % NODES, number).await;
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

/// Opens a store after a kill, says how long it took and how long until the first event was handled, and writes until it
/// is killed itself.
pub fn first(folder: &Path) {
    runtime().block_on(async {
        let before = Instant::now();
        let space = open(folder).await;
        let opened = before.elapsed();
        ask(&space, 0, 0).await;
        let handled = before.elapsed();
        say(&format!("{} {}", opened.as_secs_f64() * 1e3, handled.as_secs_f64() * 1e3));
        write_on(&space, FILLING, &Arc::default());
        std::future::pending::<()>().await;
    });
}

/// Follows the log from its beginning for this many records; says how much memory it took at a tenth of them, at most, and
/// how many a second there were.
pub fn follow(folder: &Path, records: u64) {
    runtime().block_on(async {
        let options = SqliteOptions::new(Arc::new(RealEnv::new()));
        let store = SqliteStore::open_read_only(folder, options).await.unwrap();
        let journal = Journal::new(Arc::new(store));
        let mut tail = journal.tail(Select::All, Position::START).await.unwrap();
        let before = Instant::now();
        let mut early = 0.0;
        for number in 1..=records {
            let entry = tail.next().await.unwrap();
            assert!(!entry.events.is_empty());
            if number == records / 10 {
                early = kib("VmRSS:");
            }
        }
        let rate = records as f64 / before.elapsed().as_secs_f64();
        say(&format!("{early} {} {rate}", kib("VmHWM:")));
    });
}

/// A line of what the system knows of this process, in kibibytes.
fn kib(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What writers feel of a pruning that forgets half of a store, a part in each round, with as long a time without one
/// before it.
async fn prune(size: &Size, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let space = open(folder.path()).await;
    let records = size.records / 5;
    let asked = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..FILLING)
        .map(|flow| {
            let (space, asked) = (space.clone(), Arc::clone(&asked));
            tokio::spawn(async move {
                while asked.fetch_add(1, Ordering::Relaxed) < records {
                    ask(&space, flow % NODES, flow).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let rounds = if size.quick { 1 } else { 5 };
    for round in 1..=rounds {
        let until = Arc::new(AtomicBool::new(false));
        let writers = writers(&space, &until);
        tokio::time::sleep(Duration::from_secs(if size.quick { 1 } else { 3 })).await;
        let quiet = ended(writers, &until).await;
        let until = Arc::new(AtomicBool::new(false));
        let writers = self::writers(&space, &until);
        let before = Instant::now();
        let prune = Prune {
            before: Position::from_number(u128::from(records / 2 * round / rounds)),
            records: Select::All,
            keep: Vec::new(),
            histories: Vec::new(),
            documents: Vec::new(),
        };
        let pruned = space.store().prune(prune).await.unwrap();
        let took = before.elapsed();
        let busy = ended(writers, &until).await;
        report.pruned(pruned.records, took, percentile(&quiet, 0.99), percentile(&busy, 0.99));
    }
    space.stop().await.unwrap();
}

type Writers = Vec<tokio::task::JoinHandle<Vec<Duration>>>;

fn writers(space: &Space, until: &Arc<AtomicBool>) -> Writers {
    (0..WRITERS)
        .map(|node| {
            let (space, until) = (space.clone(), Arc::clone(until));
            tokio::spawn(async move {
                let mut times = Vec::new();
                while !until.load(Ordering::Relaxed) {
                    let before = Instant::now();
                    ask(&space, node, 0).await;
                    times.push(before.elapsed());
                }
                times
            })
        })
        .collect()
}

async fn ended(writers: Writers, until: &AtomicBool) -> Vec<Duration> {
    until.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for writer in writers {
        times.extend(writer.await.unwrap());
    }
    times
}
