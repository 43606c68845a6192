//! The tables: targets, figures, where and with what they were measured. Owns how they are put together and where they are
//! written; does not know how anything was measured.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Size;

/// Figures of several rounds.
#[derive(Default, Clone)]
pub struct Series(Vec<f64>);

impl Series {
    /// Times in microseconds.
    pub fn of_times(times: &[Duration]) -> Self {
        Self(times.iter().map(|time| time.as_secs_f64() * 1e6).collect())
    }

    fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        write!(f, "{} ({}–{})", shown(self.median()), shown(least), shown(most))
    }
}

/// A percentile in microseconds.
pub fn percentile(times: &[Duration], part: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[((sorted.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6
}

/// What is known at the end.
pub struct Report {
    machine: String,
    /// The bytes of the record and of the document of one step.
    pub step_bytes: (usize, usize),
    raw: Percentiles,
    store: Percentiles,
    ask: Percentiles,
    three: Percentiles,
    asking: Percentiles,
    few: Rates,
    many: Rates,
    one: Series,
    /// Records, and the time it took to write them.
    pub filled: (u64, Duration),
    /// Bytes, records and past revisions.
    pub disk: (u64, u64, u64),
    opened: Series,
    handled: Series,
    follows: Vec<Follow>,
    pruned: (u64, Duration),
    quiet: Series,
    busy: Series,
    prune_ratio: Series,
    journal: Vec<(String, f64, f64)>,
}

/// What one kind of operation took in each round, in microseconds and in raw commits.
#[derive(Default)]
struct Percentiles {
    half: Series,
    late: Series,
    half_ratio: Series,
    late_ratio: Series,
}

/// Steps a second.
#[derive(Default)]
struct Rates {
    ours: Series,
    raw: Series,
    of_one: Series,
    of_raw: Series,
}

struct Follow {
    records: u64,
    early_mib: f64,
    most_mib: f64,
    rate: f64,
}

impl Report {
    pub fn begin(size: &Size, date: Option<String>) -> Self {
        // Asked last, and missed before anything is measured.
        let journal = journal_program();
        assert!(journal.exists(), "there is no {}; build it with `cargo build --release`", journal.display());
        Self {
            machine: machine(size, date),
            step_bytes: (0, 0),
            raw: Percentiles::default(),
            store: Percentiles::default(),
            ask: Percentiles::default(),
            three: Percentiles::default(),
            asking: Percentiles::default(),
            few: Rates::default(),
            many: Rates::default(),
            one: Series::default(),
            filled: (0, Duration::ZERO),
            disk: (0, 1, 0),
            opened: Series::default(),
            handled: Series::default(),
            follows: Vec::new(),
            pruned: (0, Duration::ZERO),
            quiet: Series::default(),
            busy: Series::default(),
            prune_ratio: Series::default(),
            journal: Vec::new(),
        }
    }

    /// The times of a round: of raw commits, of the store alone, of asks, of flows of three steps, and of such that ask.
    pub fn singles(&mut self, times: [Vec<Duration>; 5]) {
        let raw = (percentile(&times[0], 0.5), percentile(&times[0], 0.99));
        let all = [&mut self.raw, &mut self.store, &mut self.ask, &mut self.three, &mut self.asking];
        for (kept, times) in all.into_iter().zip(&times) {
            let (half, late) = (percentile(times, 0.5), percentile(times, 0.99));
            kept.half.push(half);
            kept.late.push(late);
            kept.half_ratio.push(half / raw.0);
            kept.late_ratio.push(late / raw.1);
        }
    }

    pub fn in_flight(&mut self, flows: u64, one: f64, raw: f64, ours: f64) {
        let rates = if flows == 16 { &mut self.few } else { &mut self.many };
        rates.ours.push(ours);
        rates.raw.push(raw);
        rates.of_one.push(ours / one);
        rates.of_raw.push(ours / raw);
        self.one.push(one);
    }

    pub fn opened(&mut self, opened_ms: f64, handled_ms: f64) {
        self.opened.push(opened_ms);
        self.handled.push(handled_ms);
    }

    pub fn followed(&mut self, records: u64, early_kib: f64, most_kib: f64, rate: f64) {
        let follow = Follow { records, early_mib: early_kib / 1024.0, most_mib: most_kib / 1024.0, rate };
        self.follows.push(follow);
    }

    pub fn pruned(&mut self, records: u64, took: Duration, quiet_us: f64, busy_us: f64) {
        self.pruned.0 += records;
        self.pruned.1 += took;
        self.quiet.push(quiet_us);
        self.busy.push(busy_us);
        self.prune_ratio.push(busy_us / quiet_us);
    }

    /// Asks the program that measures the journal.
    pub fn journal(&mut self, size: &Size) {
        let output = Command::new(journal_program()).arg(size.records.to_string()).output().unwrap();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let Some((name, rest)) = line.split_once(": p50 ") else { continue };
            let mut words = rest.split_whitespace();
            let half = words.next().unwrap().parse().unwrap();
            let most = words.nth(2).unwrap().parse().unwrap();
            self.journal.push((name.to_owned(), half, most));
        }
    }

    fn asked(&self, name: &str) -> f64 {
        self.journal.iter().find(|(asked, ..)| asked == name).map_or(f64::NAN, |(_, half, _)| *half)
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let per_record = self.disk.0 as f64 / self.disk.1 as f64;
        let (early, late) = match &self.follows[..] {
            [early, late] => (early.most_mib, late.most_mib),
            _ => (f64::NAN, f64::NAN),
        };
        let mut row = |what: &str, figure: String, target: &str, met: bool| {
            let verdict = if met { "met" } else { "**missed**" };
            let _ = writeln!(text, "| {what} | {figure} | {target} | {verdict} |");
        };
        let median = Series::median;
        row(
            "one durable step at a time, p50, × a raw commit",
            self.ask.half_ratio.to_string(),
            "≤ 1.3",
            median(&self.ask.half_ratio) <= 1.3,
        );
        row(
            "16 flows in flight, × the rate of one at a time",
            self.few.of_one.to_string(),
            "≥ 8",
            median(&self.few.of_one) >= 8.0,
        );
        row(
            "16 flows in flight, × raw SQLite in groups of 16",
            self.few.of_raw.to_string(),
            "≥ 0.6",
            median(&self.few.of_raw) >= 0.6,
        );
        row(
            "128 flows in flight, × the rate of one at a time",
            self.many.of_one.to_string(),
            "≥ 15",
            median(&self.many.of_one) >= 15.0,
        );
        row(
            "128 flows in flight, × raw SQLite in groups of 128",
            self.many.of_raw.to_string(),
            "≥ 0.6",
            median(&self.many.of_raw) >= 0.6,
        );
        row(
            "a flow of three steps, p50, in raw commits",
            self.three.half_ratio.to_string(),
            "≤ 4.5",
            median(&self.three.half_ratio) <= 4.5,
        );
        row(
            "event by id, p50, ms",
            shown(self.asked("event by id")),
            "≤ 2",
            self.asked("event by id") <= 2.0,
        );
        let trace = self.asked("trace of 1 000 events");
        row("trace of 1 000 events, p50, ms", shown(trace), "≤ 30", trace <= 30.0);
        row(
            "from opening after a kill -9 to the first handled event, ms",
            self.handled.to_string(),
            "≤ 100",
            median(&self.handled) <= 100.0,
        );
        row("disk per record with a payload of 200 bytes", shown(per_record), "≤ 900", per_record <= 900.0);
        row(
            "writers' p99 beside a pruning of half the store, × without",
            self.prune_ratio.to_string(),
            "≤ 2",
            median(&self.prune_ratio) <= 2.0,
        );
        row(
            "memory at the end of a log ten times as long, × that of the shorter",
            shown(late / early),
            "1, within a tenth",
            late <= early * 1.1,
        );
        let head = "| what | figure (min–max) | target | |\n|---|---|---|---|\n";
        format!("{}\n{head}{text}\n{}", self.machine, self.details())
    }

    fn details(&self) -> String {
        let mut text = String::new();
        let (record, document) = self.step_bytes;
        let _ = writeln!(
            text,
            "One at a time, in microseconds; a step writes one record of {record} bytes and a state of {document}, and \
             keeps the state's last revision.\n"
        );
        text.push_str(
            "| operation | p50 (min–max) | p99 (min–max) | p50 × raw | p99 × raw |\n|---|---|---|---|---|\n",
        );
        let all = [
            ("raw SQLite, one commit", &self.raw),
            ("the store alone, one commit", &self.store),
            ("ask of a plain handler that sets a state", &self.ask),
            ("flow of three steps", &self.three),
            ("flow of three steps, an ask of another node in the second", &self.asking),
        ];
        for (name, of) in all {
            let Percentiles { half, late, half_ratio, late_ratio } = of;
            let _ = writeln!(text, "| {name} | {half} | {late} | {half_ratio} | {late_ratio} |");
        }
        text.push_str(
            "\nSteps a second.\n\n| flows in flight | Happen (min–max) | raw SQLite in groups of as many |\n\
             |---|---|---|\n",
        );
        let _ = writeln!(text, "| 1 | {} | |", self.one);
        for (flows, rates) in [(16, &self.few), (128, &self.many)] {
            let _ = writeln!(text, "| {flows} | {} | {} |", rates.ours, rates.raw);
        }
        let (bytes, records, revisions) = self.disk;
        let (filled, time) = self.filled;
        let _ = writeln!(
            text,
            "\nThe large store: {filled} events asked for in {:.0} s, {records} records with {revisions} past revisions of \
             states in {} MiB when it was killed, the write-ahead log included. Opened after a kill in {} ms, the first \
             event handled after {} ms.\n",
            time.as_secs_f64(),
            bytes >> 20,
            self.opened,
            self.handled,
        );
        text.push_str(
            "| following the log | MiB at a tenth | MiB at most | records a second |\n|---|---|---|---|\n",
        );
        for Follow { records, early_mib, most_mib, rate } in &self.follows {
            let _ = writeln!(
                text,
                "| {records} records | {} | {} | {} |",
                shown(*early_mib),
                shown(*most_mib),
                shown(*rate)
            );
        }
        let _ = writeln!(
            text,
            "\nPruned {} records in {:.1} s beside four writers, whose p99 was {} µs without it and {} µs beside it.\n",
            self.pruned.0,
            self.pruned.1.as_secs_f64(),
            self.quiet,
            self.busy,
        );
        text.push_str("| question to the journal | p50 ms | longest ms |\n|---|---|---|\n");
        for (name, half, most) in &self.journal {
            let _ = writeln!(text, "| {name} | {} | {} |", shown(*half), shown(*most));
        }
        text
    }
}

/// Three digits, or all before the point.
fn shown(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 10.0 => 2,
        middle if middle < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// Where and with what it was measured.
/// The program that measures the journal, which stands beside this one.
fn journal_program() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("journal")
}

fn machine(size: &Size, date: Option<String>) -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).current_dir(root()).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let changed = !said("git", &["status", "--porcelain", "--", "crates", "bench-store"]).is_empty();
    let date = date.unwrap_or_else(|| said("git", &["log", "-1", "--format=%cs"]));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{} rounds{}. Processor: {}, {} cores. Kernel: {}. Compiler: {}. Commit: {}{} of {date}. Load average (1, 5, 15 \
         minutes) before: {}.\n",
        size.rounds,
        if size.quick { ": a smoke run, its figures mean nothing" } else { "" },
        processor.trim_start_matches([' ', '\t', ':']),
        std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        said("uname", &["-sr"]),
        said("rustc", &["--version"]),
        said("git", &["rev-parse", "--short", "HEAD"]),
        if changed { " with changes" } else { "" },
        load.split(' ').take(3).collect::<Vec<_>>().join(" "),
    )
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Puts the report between the markers of the page.
pub fn write(report: &str) {
    let path = root().join("docs/benchmarks.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let begin = page.find(BEGIN).expect("the page has a place for these tables") + BEGIN.len();
    let end = begin + page[begin..].find(END).expect("the place ends");
    std::fs::write(&path, format!("{}\n\n{report}\n{}", &page[..begin], &page[end..])).unwrap();
}

const BEGIN: &str = "<!-- durable: begin -->";
const END: &str = "<!-- durable: end -->";
