//! `happen doctor`: what is wrong with a store, or soon will be, and what to do about it. Owns the checks, their
//! thresholds and the advice; changes nothing.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};

use clap::Args;
use happen::EventId;
use happen::journal::{FlowFilter, Journal, Standing};
use happen::store::Verified;
use happen_nats::Address;
use serde_json::json;

use crate::failure::Failure;
use crate::output::{Output, count_of, number, plain};
use crate::store::inbox::{Kept, Registered, kept, waiting};
use crate::store::moment::{Utc, span};
use crate::store::nodes::count;
use crate::store::opened::Opened;
use crate::store::table::WIDTH_CHARS_MAX;
use crate::store::upkeep::damage_text;
use crate::store::{Place, journal, now_unix_ms, of_store, server};

/// `happen doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// Leave out what reads the whole store
    #[arg(long)]
    quick: bool,
    /// The monitoring address of a server of NATS, such as http://localhost:8222; may be given several times
    #[arg(long, value_name = "URL")]
    monitor: Vec<String>,
    #[command(flatten)]
    place: Place,
}

/// What a check found.
#[derive(Debug)]
pub(crate) struct Check {
    name: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) found: String,
    /// What to do; empty when there is nothing.
    advice: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl Check {
    pub(crate) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), advice: String::new() }
    }

    pub(crate) fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), advice: advice.into() }
    }

    pub(crate) fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), advice: advice.into() }
    }

    /// A check that could not be made: what failed, and what is said to be done about it.
    pub(crate) fn broken(name: &'static str, failure: &Failure) -> Self {
        let text = failure.to_string();
        let (found, advice) = text.split_once("; ").unwrap_or((&text, "look at the folder, and try again"));
        Self::fail(name, found, advice)
    }
}

/// Who has a store open to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    Nobody,
    Process(Option<u32>),
}

/// Makes all checks.
///
/// # Errors
///
/// [`Failure::Store`] when a check failed, [`Failure::NotWhole`] when the store is not as it was written; what was found
/// is on standard output.
pub(crate) async fn run(arguments: &DoctorArguments, output: &Output) -> Result<(), Failure> {
    let address = arguments.place.address()?;
    let (checks, worst) = checks(arguments, &address).await;
    if arguments.place.json {
        let told: Vec<_> = checks
            .iter()
            .map(|check| {
                let Check { name, verdict, found, advice } = check;
                json!({ "check": name, "verdict": verdict.name(), "found": found, "advice": advice })
            })
            .collect();
        output.write_json(&json!({ "folder": address.to_string(), "checks": told }))?;
    } else {
        output.write(&checks.iter().map(lines).collect::<String>())?;
    }
    match worst {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// What was found, and the failure to end with.
async fn checks(arguments: &DoctorArguments, address: &Address) -> (Vec<Check>, Option<Failure>) {
    let (store, journal) = match journal(&arguments.place).await {
        Ok(opened) => opened,
        Err(failure) => {
            let name = if matches!(address, Address::Folder(_)) { "folder" } else { "address" };
            return (vec![Check::broken(name, &failure)], Some(failed(1)));
        }
    };
    let now_unix_ms = now_unix_ms();
    let (mut checks, holder, registered) = match address {
        Address::Folder(folder) => of_folder(&store, folder, now_unix_ms).await,
        _ => {
            let (mut checks, holder, registered) = server::checks(&store, &arguments.monitor).await;
            checks.push(match store.info().await {
                Ok(info) => clock(info.at_unix_ms, now_unix_ms),
                Err(failure) => Check::broken("contents", &failure),
            });
            (checks, holder, Some(registered))
        }
    };
    checks.push(match overdue(&store, &journal, now_unix_ms).await {
        Ok(overdue) => flows(&overdue, holder, now_unix_ms),
        Err(failure) => Check::broken("flows", &failure),
    });
    checks.push(match count(&store, "dead/").await {
        Ok(count) => dead(count),
        Err(failure) => Check::broken("dead letters", &failure),
    });
    checks.push(match kept(&store, None).await {
        Ok(kept) if kept.is_empty() => inbox(&kept, holder, &Registered::Unknown, now_unix_ms),
        Ok(kept) => {
            let registered = match (registered, address) {
                (None, Address::Folder(folder)) => Registered::of(folder).await,
                (registered, _) => registered.unwrap_or(Registered::Unknown),
            };
            inbox(&kept, holder, &registered, now_unix_ms)
        }
        Err(failure) => Check::broken("kept events", &failure),
    });
    // On a log that processes share nothing waits: each takes what is for its nodes.
    if matches!(address, Address::Folder(_)) {
        checks.push(match (waiting(&store, &journal).await, count(&store, "refused/").await) {
            (Ok(waiting), Ok(refused)) => outbox(&waiting, refused, holder, now_unix_ms),
            (Err(failure), _) | (_, Err(failure)) => Check::broken("outbox", &failure),
        });
    }
    let mut is_whole = true;
    if !arguments.quick {
        let check = match store.verify().await {
            Ok(verified) => integrity(&verified),
            Err(failure) => Check::broken("integrity", &failure),
        };
        is_whole = check.verdict != Verdict::Fail;
        checks.push(check);
    }
    let count = checks.iter().filter(|check| check.verdict == Verdict::Fail).count() as u64;
    let failure = match (is_whole, count) {
        (_, 0) => None,
        (true, count) => Some(failed(count)),
        (false, _) => Some(Failure::NotWhole(
            "the store is damaged; keep a copy of the folder and restore a backup".to_owned(),
        )),
    };
    (checks, failure)
}

/// The checks of a folder, who has it, and the nodes of that process where they are known already.
async fn of_folder(
    store: &Opened,
    folder: &Path,
    now_unix_ms: u64,
) -> (Vec<Check>, Holder, Option<Registered>) {
    let mut checks = vec![Check::ok("folder", folder.display().to_string()), permissions(folder)];
    let holder = match holder(folder) {
        Ok(holder) => {
            checks.push(lock(holder));
            holder
        }
        Err(failure) => {
            checks.push(Check::broken("lock", &failure));
            Holder::Nobody
        }
    };
    checks.push(space(free_bytes(folder)));
    match store.info().await {
        Ok(info) => checks.extend([
            Check::ok("format", format!("{}, which this program knows", info.format)),
            clock(info.at_unix_ms, now_unix_ms),
            log(info.log_bytes),
            pruning(info.prunings, holder),
        ]),
        Err(failure) => checks.push(Check::broken("contents", &failure)),
    }
    (checks, holder, None)
}

fn failed(count: u64) -> Failure {
    Failure::Store(format!("{} failed; do what is said there", count_of(count, "check")))
}

/// A check in lines of at most the width of a terminal.
fn lines(check: &Check) -> String {
    let start = format!("{:5} {:12} ", check.verdict.name(), check.name);
    let mut text = wrapped(&start, &plain(&check.found, TEXT_CHARS_MAX));
    if !check.advice.is_empty() {
        text.push_str(&wrapped(&format!("{:19}-> ", ""), &plain(&check.advice, TEXT_CHARS_MAX)));
    }
    text
}

fn wrapped(start: &str, text: &str) -> String {
    let indent = " ".repeat(start.chars().count());
    let (mut lines, mut line) = (String::new(), start.to_owned());
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH_CHARS_MAX {
            lines.push_str(&line);
            lines.push('\n');
            (line, is_empty) = (indent.clone(), true);
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    format!("{lines}{}\n", line.trim_end())
}

/// Whether this user may write what the process that has the store writes. Looks by opening, and writes nothing.
fn permissions(folder: &Path) -> Check {
    for name in [DATABASE, LOCK] {
        let opened = OpenOptions::new().write(true).open(folder.join(name));
        // The first process to write makes what is not there.
        let Some(error) = opened.err().filter(|error| error.kind() != io::ErrorKind::NotFound) else {
            continue;
        };
        let found = format!("this user may read the store and not write {name} ({error})");
        return Check::warn("permissions", found, "run the program as the user who owns the folder");
    }
    Check::ok("permissions", "this user may read and write the store")
}

fn lock(holder: Holder) -> Check {
    Check::ok(
        "lock",
        match holder {
            Holder::Nobody => "no process has the store open to write".to_owned(),
            Holder::Process(Some(pid)) => format!("process {pid} has the store open to write"),
            Holder::Process(None) => "a process has the store open to write".to_owned(),
        },
    )
}

/// Who has the lock of a folder.
///
/// # Errors
///
/// [`Failure::Store`] when the file cannot be read.
pub(crate) fn holder(folder: &Path) -> Result<Holder, Failure> {
    let path = folder.join(LOCK);
    let failed =
        |error| Failure::Store(format!("cannot read {} ({error}); allow this user to", path.display()));
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    (&mut file).take(PID_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    let pid: Option<u32> = text.trim().parse().ok();
    // A lock that is taken to see whether it is free is in the way of a space that starts at this moment. So it is not
    // tried where the process that had it last is known to be gone.
    let processes = Path::new("/proc/self");
    if let Some(pid) = pid
        && processes.exists()
        && !Path::new("/proc").join(pid.to_string()).exists()
    {
        return Ok(Holder::Nobody);
    }
    match file.try_lock_shared() {
        Ok(()) => Ok(Holder::Nobody),
        Err(TryLockError::WouldBlock) => Ok(Holder::Process(pid)),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn clock(last_unix_ms: u64, now_unix_ms: u64) -> Check {
    if last_unix_ms == 0 {
        return Check::ok("last commit", "none yet");
    }
    let at = Utc(last_unix_ms);
    match now_unix_ms.checked_sub(last_unix_ms) {
        Some(ago) => Check::ok("last commit", format!("{at}, {} ago", span(ago))),
        None => {
            let ahead = span(last_unix_ms - now_unix_ms);
            let found = format!("{at}, {ahead} ahead of this machine's clock");
            Check::warn("last commit", found, "set the clock: until then all commits have that time")
        }
    }
}

/// The bytes that are free where the folder is, as far as the system tells.
fn free_bytes(folder: &Path) -> Option<u64> {
    let folder = fs::canonicalize(folder).ok()?;
    let output = Command::new("df")
        .args(["-Pk", "--"])
        .arg(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let free = text.lines().nth(1)?.split_whitespace().nth(3)?;
    free.parse::<u64>().ok()?.checked_mul(1 << 10)
}

fn space(free: Option<u64>) -> Check {
    let advice = "make room, or forget old records with `happen store prune`";
    match free {
        None => {
            let found = "the program `df` did not tell how much is free";
            Check::warn("space", found, "look at the disk by another way")
        }
        Some(free) if free < SPACE_BYTES_FAIL => {
            Check::fail("space", format!("{} MiB free", free >> 20), advice)
        }
        Some(free) if free < SPACE_BYTES_WARN => {
            Check::warn("space", format!("{} MiB free", free >> 20), advice)
        }
        Some(free) => Check::ok("space", format!("{} MiB free", number(free >> 20))),
    }
}

fn log(bytes: u64) -> Check {
    let found = format!("{} KiB of write-ahead log", number(bytes.div_ceil(1 << 10)));
    if bytes <= LOG_BYTES_WARN {
        return Check::ok("log", found);
    }
    let advice = "a backup or a reader keeps it from being carried over: let it end; if there is none, stop the \
                  program and start it again";
    Check::warn("log", found, advice)
}

fn pruning(under_way: usize, holder: Holder) -> Check {
    match (under_way, holder) {
        (0, _) => Check::ok("pruning", "none under way"),
        (count, Holder::Process(_)) => Check::ok("pruning", format!("{count} under way")),
        (count, Holder::Nobody) => {
            let advice = "start the program: it goes on with them";
            Check::warn("pruning", format!("{count} not at their end, and nobody goes on with them"), advice)
        }
    }
}

/// Flows under way, and those that are due.
#[derive(Debug, Default)]
struct Overdue {
    flows: u64,
    due: u64,
    /// The one that is due longest.
    first: Option<(u64, EventId)>,
}

async fn overdue(store: &Opened, journal: &Journal, now_unix_ms: u64) -> Result<Overdue, Failure> {
    let mut overdue = Overdue::default();
    let mut filter = FlowFilter::new();
    loop {
        let page = journal.flows(&filter).await.map_err(|error| of_store(store.address(), &error))?;
        overdue.flows += page.flows.len() as u64;
        for flow in &page.flows {
            let due_unix_ms = match &flow.standing {
                Standing::Ready => flow.since_unix_ms,
                Standing::Retrying { due_unix_ms, .. } => *due_unix_ms,
                Standing::Waiting(point) if point.due_unix_ms > 0 => point.due_unix_ms,
                _ => continue,
            };
            if due_unix_ms <= now_unix_ms {
                overdue.due += 1;
                let first = overdue.first.get_or_insert((due_unix_ms, flow.event));
                *first = (*first).min((due_unix_ms, flow.event));
            }
        }
        let Some(next) = page.next else { return Ok(overdue) };
        filter = filter.after(next);
    }
}

fn flows(overdue: &Overdue, holder: Holder, now_unix_ms: u64) -> Check {
    let Overdue { flows, due, first } = overdue;
    let under_way = format!("{} under way", number(*flows));
    let Some((since_unix_ms, event)) = first else { return Check::ok("flows", under_way) };
    let since = now_unix_ms.saturating_sub(*since_unix_ms);
    let found =
        format!("{under_way}, {} due, the first, of event {event}, since {}", number(*due), span(since));
    match holder {
        Holder::Nobody => Check::warn("flows", found, "start the program: it goes on with them"),
        Holder::Process(_) if since < OVERDUE_MS => Check::ok("flows", found),
        Holder::Process(_) => {
            let advice = format!(
                "the program has not gone on: see `happen flows show {event}`, and what the program logs"
            );
            Check::warn("flows", found, advice)
        }
    }
}

fn dead(count: u64) -> Check {
    match count {
        0 => Check::ok("dead letters", "none"),
        count => {
            let found = format!("{} failed for good", count_of(count, "flow"));
            Check::warn("dead letters", found, "see why: `happen dead ls`")
        }
    }
}

/// Events that were sent while no process had the store. Only a start takes them, so a program that runs has left them.
fn inbox(kept: &BTreeMap<String, Kept>, holder: Holder, registered: &Registered, now_unix_ms: u64) -> Check {
    const NAME: &str = "kept events";
    if kept.is_empty() {
        return Check::ok(NAME, "none");
    }
    let shown = kept.iter().take(KEPT_SHOWN).map(|(node, kept)| kept.of(node, now_unix_ms));
    let mut found: Vec<_> = shown.collect();
    if kept.len() > KEPT_SHOWN {
        found.push(format!(
            "and for {} more; see `happen ps`",
            count_of((kept.len() - KEPT_SHOWN) as u64, "node")
        ));
    }
    let found = found.join("; ");
    let advice = match (holder, registered) {
        (Holder::Nobody, _) => "start the program: it takes them".to_owned(),
        (Holder::Process(_), Registered::Unknown) => {
            "the program did not take them when it started; see its problems".to_owned()
        }
        (Holder::Process(_), Registered::These(nodes)) => {
            let missing = kept.keys().filter(|node| !nodes.contains(node));
            let missing: Vec<_> = missing.take(KEPT_SHOWN).map(|node| format!("`{node}`")).collect();
            match missing.is_empty() {
                true => "the program has the nodes, and did not take them when it started; see its problems"
                    .to_owned(),
                false => format!(
                    "the program has no node {}: add it or correct its name, and start the program again",
                    missing.join(", ")
                ),
            }
        }
    };
    Check::warn(NAME, found, advice)
}

/// Events that wait for nodes of other processes, and those that such nodes refused.
fn outbox(waiting: &BTreeMap<String, Kept>, refused: u64, holder: Holder, now_unix_ms: u64) -> Check {
    const NAME: &str = "outbox";
    let mut found: Vec<_> =
        waiting.iter().take(KEPT_SHOWN).map(|(node, kept)| kept.of(node, now_unix_ms)).collect();
    if waiting.len() > KEPT_SHOWN {
        let more = count_of((waiting.len() - KEPT_SHOWN) as u64, "node");
        found.push(format!("and for {more} more; see `happen ps`"));
    }
    let is_late = waiting.values().any(|kept| now_unix_ms.saturating_sub(kept.since_unix_ms) >= OVERDUE_MS);
    if refused > 0 {
        found.push(format!("{} refused by nodes of other processes", count_of(refused, "event")));
    }
    let found = if found.is_empty() { "none".to_owned() } else { found.join("; ") };
    match (refused, waiting.is_empty(), holder) {
        (1.., ..) => {
            let advice = "see why: documents `refused/` name the node and the event, and have the reason";
            Check::warn(NAME, found, advice)
        }
        (0, true, _) => Check::ok(NAME, found),
        (0, false, Holder::Nobody) => Check::warn(NAME, found, "start the program: it hands them over"),
        (0, false, Holder::Process(_)) if !is_late => Check::ok(NAME, found),
        (0, false, Holder::Process(_)) => {
            let advice = "the nodes are not reached: see whether this program is connected, and theirs runs";
            Check::warn(NAME, found, advice)
        }
    }
}

fn integrity(verified: &Verified) -> Check {
    let Some(first) = verified.damages.first() else {
        let (records, revisions) =
            (count_of(verified.records, "record"), count_of(verified.documents, "revision"));
        let found = format!("{records} and {revisions} are as they were written");
        return Check::ok("integrity", found);
    };
    let found =
        format!("damaged at {}; the first: {}", count_of(verified.damages_len, "place"), damage_text(first));
    let advice = "keep a copy of the folder and restore a backup; `happen store verify` tells all";
    Check::fail("integrity", found, advice)
}

/// The names of files in the folder of a store, as `docs/format.md` has them.
const DATABASE: &str = "happen.db";
const LOCK: &str = "lock";
/// Bytes of the file with the id of a process: more than any has.
const PID_BYTES_MAX: u64 = 64;
/// Below this a store may be full at any moment: its write-ahead log alone takes 16 MiB, and a pruning as much again.
const SPACE_BYTES_FAIL: u64 = 64 << 20;
/// Below this somebody has to look soon.
const SPACE_BYTES_WARN: u64 = 1 << 30;
/// The size to which the store lets its write-ahead log shrink again: beyond it, something holds it up now.
const LOG_BYTES_WARN: u64 = 64 << 20;
/// How long a flow may be due in a program that runs: more than one that is busy needs to come to it.
const OVERDUE_MS: u64 = 60_000;
/// Nodes of which is told how many events are kept for them.
const KEPT_SHOWN: usize = 3;
/// Characters of what was found.
const TEXT_CHARS_MAX: usize = 600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_and_log_are_judged_by_their_thresholds() {
        let verdicts = |limit: u64, check: &dyn Fn(u64) -> Check| {
            [limit - 1, limit, limit + 1].map(|bytes| check(bytes).verdict)
        };
        let by_space = |bytes| space(Some(bytes));
        assert_eq!(verdicts(SPACE_BYTES_FAIL, &by_space), [Verdict::Fail, Verdict::Warn, Verdict::Warn]);
        assert_eq!(verdicts(SPACE_BYTES_WARN, &by_space), [Verdict::Warn, Verdict::Ok, Verdict::Ok]);
        assert_eq!(verdicts(LOG_BYTES_WARN, &log), [Verdict::Ok, Verdict::Ok, Verdict::Warn]);
        assert_eq!(space(None).verdict, Verdict::Warn);
    }

    #[test]
    fn a_clock_that_went_back_is_told() {
        assert_eq!(clock(0, 0).verdict, Verdict::Ok);
        assert_eq!(clock(7, 7).verdict, Verdict::Ok);
        assert_eq!(clock(8, 7).verdict, Verdict::Warn);
    }

    #[test]
    fn prunings_that_nobody_goes_on_with_are_told() {
        assert_eq!(pruning(0, Holder::Nobody).verdict, Verdict::Ok);
        assert_eq!(pruning(1, Holder::Process(None)).verdict, Verdict::Ok);
        assert_eq!(pruning(1, Holder::Nobody).verdict, Verdict::Warn);
    }

    #[test]
    fn flows_that_are_due_are_told_when_nobody_goes_on_with_them() {
        let event = EventId::MIN;
        let overdue = |first: Option<u64>| Overdue { flows: 3, due: 2, first: first.map(|due| (due, event)) };
        let now = 10 * OVERDUE_MS;
        let verdict = |first, holder| flows(&overdue(first), holder, now).verdict;
        assert_eq!(verdict(None, Holder::Nobody), Verdict::Ok);
        assert_eq!(verdict(Some(now), Holder::Nobody), Verdict::Warn);
        let since = |ms| verdict(Some(now - ms), Holder::Process(None));
        let around = [OVERDUE_MS - 1, OVERDUE_MS, OVERDUE_MS + 1].map(since);
        assert_eq!(around, [Verdict::Ok, Verdict::Warn, Verdict::Warn]);
        assert_eq!(dead(0).verdict, Verdict::Ok);
        assert_eq!(dead(1).verdict, Verdict::Warn);
    }

    #[test]
    fn what_waits_for_other_processes_is_told_when_it_waits_long() {
        let now = 10 * OVERDUE_MS;
        let check = |ms: Option<u64>, refused, holder| {
            let kept = |ms| Kept { events: 3, since_unix_ms: now - ms, first: None };
            let waiting = ms.map(|ms| ("hub".to_owned(), kept(ms))).into_iter().collect();
            outbox(&waiting, refused, holder, now)
        };
        let running = Holder::Process(None);
        assert_eq!(check(None, 0, Holder::Nobody).verdict, Verdict::Ok);
        assert_eq!(check(Some(1), 0, Holder::Nobody).verdict, Verdict::Warn);
        let around =
            [OVERDUE_MS - 1, OVERDUE_MS, OVERDUE_MS + 1].map(|ms| check(Some(ms), 0, running).verdict);
        assert_eq!(around, [Verdict::Ok, Verdict::Warn, Verdict::Warn]);
        let refused = check(None, 1, running);
        assert_eq!(refused.verdict, Verdict::Warn);
        assert_eq!(refused.found, "1 event refused by nodes of other processes");
        assert!(check(Some(1), 0, running).found.starts_with("3 events for `hub`, the oldest since"));
    }

    #[test]
    fn long_texts_are_wrapped_between_words() {
        let found = "word ".repeat(30);
        let text = lines(&Check::warn("log", found, "advice"));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH_CHARS_MAX), "{text}");
        assert_eq!(text.split_whitespace().filter(|word| *word == "word").count(), 30);
        assert!(text.ends_with("\n                   -> advice\n"), "{text}");
        let long = "x".repeat(90);
        assert_eq!(lines(&Check::ok("log", long.clone())), format!("ok    log          {long}\n"));
    }
}
