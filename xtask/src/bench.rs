//! The command `bench`: builds one program per contender, runs them interleaved, and writes what they measured as
//! tables. It knows what is compared with what and what is aimed at; how it is measured is in `bench/`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process::{Failure, cargo, heading, output, run};

/// Runs the benchmarks with these arguments.
pub(crate) fn bench(root: &Path, arguments: &[&str]) -> Result<(), Failure> {
    let options = Options::read(arguments)?;
    if !root.join(MANIFEST).exists() {
        return Err(Failure(format!("there are no benchmarks in this checkout: {MANIFEST} is missing")));
    }
    heading("building");
    for contender in &options.contenders {
        build(root, contender.package)?;
    }
    heading("running");
    let mut machine = Machine::read(root, options.date.as_deref())?;
    let measured = measure(root, &options)?;
    machine.load_after = load();
    let report = report(&machine, &options, &measured);
    println!("\n{report}");
    if options.write == Write::ToDocument {
        let path = root.join(DOCUMENT);
        let text =
            fs::read_to_string(&path).map_err(|error| Failure(format!("cannot read {DOCUMENT}: {error}")))?;
        fs::write(&path, spliced(&text, &report)?)
            .map_err(|error| Failure(format!("cannot write {DOCUMENT}: {error}")))?;
        println!("{DOCUMENT} has these tables now");
    }
    Ok(())
}

/// Builds a package of `bench/` alone, so that the features another one wants are not switched on for it.
pub(crate) fn build(root: &Path, package: &str) -> Result<(), Failure> {
    let target = root.join(TARGET);
    let mut command = cargo(root);
    command.args(["build", "--release", "--manifest-path", MANIFEST, "--package", package]);
    run(command.arg("--target-dir").arg(target))
}

/// The program of a package of `bench/`.
pub(crate) fn program(root: &Path, name: &str) -> Command {
    let mut command = Command::new(root.join(TARGET).join("release").join(name));
    command.current_dir(root);
    command
}

/// A program that measures one way of sending events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Contender {
    name: &'static str,
    package: &'static str,
    /// The crate whose version is told.
    dependency: Option<&'static str>,
}

const fn contender(name: &'static str, package: &'static str, dependency: &'static str) -> Contender {
    Contender { name, package, dependency: Some(dependency) }
}

const HAPPEN: &str = "happen";
const TOKIO: &str = "tokio";

const CONTENDERS: [Contender; 9] = [
    Contender { name: HAPPEN, package: "bench-happen", dependency: None },
    contender(TOKIO, "bench-tokio", "tokio"),
    contender("kameo", "bench-kameo", "kameo"),
    contender("ractor", "bench-ractor", "ractor"),
    contender("actix", "bench-actix", "actix"),
    contender("xtra", "bench-xtra", "xtra"),
    contender("coerce", "bench-coerce", "coerce"),
    contender("tellus", "bench-tellus", "tellus"),
    contender("bevy", "bench-bevy", "bevy_ecs"),
];

/// Whether the document is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    ToDocument,
    ToTerminal,
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    rounds: usize,
    percent: u32,
    contenders: Vec<Contender>,
    write: Write,
    date: Option<String>,
}

impl Options {
    fn read(arguments: &[&str]) -> Result<Self, Failure> {
        let mut options = Self {
            rounds: 0,
            percent: 100,
            contenders: CONTENDERS.to_vec(),
            write: Write::ToTerminal,
            date: None,
        };
        let mut arguments = arguments.iter();
        while let Some(&argument) = arguments.next() {
            let mut value = || {
                arguments.next().copied().ok_or_else(|| Failure(format!("{argument} wants a value after it")))
            };
            match argument {
                "--rounds" => {
                    let rounds = value()?;
                    options.rounds =
                        rounds.parse().ok().filter(|rounds| *rounds > 0).ok_or_else(|| {
                            Failure(format!("--rounds takes a number above 0, not {rounds}"))
                        })?;
                }
                "--only" => options.contenders = value()?.split(',').map(find).collect::<Result<_, _>>()?,
                "--date" => options.date = Some(value()?.to_owned()),
                "--write" => options.write = Write::ToDocument,
                "--quick" => options.percent = QUICK_PERCENT,
                other => return Err(Failure(format!("bench has no argument {other}; see cargo xtask help"))),
            }
        }
        if options.rounds == 0 {
            options.rounds = if options.percent == QUICK_PERCENT { 1 } else { ROUNDS };
        }
        let is_whole = options.percent == 100
            && options.rounds >= ROUNDS
            && options.contenders.len() == CONTENDERS.len();
        if options.write == Write::ToDocument && !is_whole {
            return Err(Failure(format!(
                "--write is for a whole run: all contenders, at least {ROUNDS} rounds, not --quick"
            )));
        }
        Ok(options)
    }
}

fn find(name: &str) -> Result<Contender, Failure> {
    CONTENDERS.into_iter().find(|contender| contender.name == name).ok_or_else(|| {
        let known = CONTENDERS.map(|contender| contender.name).join(", ");
        Failure(format!("there is no contender {name}; there are {known}"))
    })
}

/// What a program said of one operation in one round.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Figure {
    cpu_ns: f64,
    wall_ns: f64,
    allocations: f64,
    bytes: Option<f64>,
}

/// Figures by contender and operation, one for each round.
type Measured = HashMap<&'static str, BTreeMap<String, Vec<Figure>>>;

fn measure(root: &Path, options: &Options) -> Result<Measured, Failure> {
    let mut measured = Measured::new();
    for round in 0..options.rounds {
        let mut order = options.contenders.clone();
        // Another one begins each time, so that none always has a machine that is warm or busy from the same one.
        order.rotate_left(round % options.contenders.len());
        let names: Vec<_> = order.iter().map(|contender| contender.name).collect();
        println!("round {} of {}: {}", round + 1, options.rounds, names.join(", "));
        for contender in order {
            let mut command = program(root, contender.package);
            command.args(["--percent", &options.percent.to_string()]);
            let text = String::from_utf8_lossy(&output(&mut command)?).into_owned();
            let all = measured.entry(contender.name).or_default();
            for line in text.lines() {
                let (operation, figure) = parsed(line).ok_or_else(|| {
                    Failure(format!("{} printed a line nobody understands: {line}", contender.name))
                })?;
                all.entry(operation).or_default().push(figure);
            }
        }
    }
    Ok(measured)
}

/// Reads `operation<TAB>cpu<TAB>wall<TAB>allocations`, and bytes after that where there are any.
fn parsed(line: &str) -> Option<(String, Figure)> {
    let mut columns = line.split('\t');
    let operation = columns.next().filter(|name| !name.is_empty())?.to_owned();
    let mut number = || columns.next().map(|column| column.parse::<f64>().ok());
    let figure = Figure { cpu_ns: number()??, wall_ns: number()??, allocations: number()??, bytes: None };
    let bytes = match number() {
        Some(bytes) => Some(bytes?),
        None => None,
    };
    Some((operation, Figure { bytes, ..figure }))
}

/// Something that follows from the figures of one contender in one round.
#[derive(Debug, Clone, Copy)]
enum Quantity {
    /// CPU nanoseconds of an operation.
    Cpu(&'static str),
    /// Resident bytes.
    Bytes(&'static str),
    /// How many times as long the first takes as the second.
    WallRatio(&'static str, &'static str),
    /// CPU nanoseconds that the first takes more than the second.
    More(&'static str, &'static str),
}

impl Quantity {
    fn operation(self) -> &'static str {
        match self {
            Self::Cpu(name) | Self::Bytes(name) | Self::WallRatio(name, _) | Self::More(name, _) => name,
        }
    }

    /// The values of all rounds.
    fn of(self, all: &BTreeMap<String, Vec<Figure>>) -> Vec<f64> {
        let figures = |name: &str| all.get(name).map_or(&[] as &[Figure], Vec::as_slice).iter();
        match self {
            Self::Cpu(name) => figures(name).map(|figure| figure.cpu_ns).collect(),
            Self::Bytes(name) => figures(name).filter_map(|figure| figure.bytes).collect(),
            Self::WallRatio(name, one) => {
                figures(name).zip(figures(one)).map(|(all, one)| all.wall_ns / one.wall_ns).collect()
            }
            Self::More(name, less) => {
                figures(name).zip(figures(less)).map(|(more, less)| more.cpu_ns - less.cpu_ns).collect()
            }
        }
    }
}

/// What the ratio of a row is taken to.
#[derive(Debug, Clone, Copy)]
enum Baseline {
    /// Raw tokio: at its fastest, and as such code is mostly written where that was measured too.
    Tokio { fastest: &'static str, usual: Option<&'static str> },
    /// Another operation of Happen's own program, and what it stands for.
    Own(&'static str, &'static str),
}

/// A row of the table: what is measured, what is aimed at.
#[derive(Debug, Clone, Copy)]
struct Row {
    what: &'static str,
    own: Quantity,
    /// The same of the rivals; some have one kind of handler only, whose cost stands for both kinds.
    rivals: Option<Quantity>,
    target: Option<f64>,
    /// Allocations of an operation; `None` where they are not aimed at.
    allocations_max: Option<f64>,
    /// The greatest ratio that will do; infinity where the ratio is only told.
    baseline: Option<(Baseline, f64)>,
}

const fn ask(usual: bool) -> Baseline {
    Baseline::Tokio { fastest: "ask", usual: if usual { Some("ask-main") } else { None } }
}

const fn same(operation: &'static str) -> Baseline {
    Baseline::Tokio { fastest: operation, usual: None }
}

/// Plain rows: CPU nanoseconds, no allocations, a ratio to tokio.
const fn row(
    what: &'static str,
    own: &'static str,
    rivals: &'static str,
    target: f64,
    baseline: Baseline,
    ratio_max: f64,
) -> Row {
    Row {
        what,
        own: Quantity::Cpu(own),
        rivals: Some(Quantity::Cpu(rivals)),
        target: Some(target),
        allocations_max: Some(0.0),
        baseline: Some((baseline, ratio_max)),
    }
}

/// Rows of what only Happen has.
const fn alone(what: &'static str, own: Quantity, target: f64) -> Row {
    Row { what, own, rivals: None, target: Some(target), allocations_max: None, baseline: None }
}

const ROWS: [Row; 22] = [
    row("ask, plain handler, one caller", "ask", "ask", 60.0, ask(true), 0.25),
    row("ask, async handler ready at first poll", "ask-async", "ask", 80.0, ask(true), 0.35),
    Row { rivals: None, ..row("ask through three steps", "ask-steps", "ask", 75.0, ask(true), 0.32) },
    row(
        "send without reply",
        "send",
        "send",
        40.0,
        Baseline::Tokio { fastest: "send", usual: Some("send-main") },
        0.40,
    ),
    Row {
        target: None,
        allocations_max: None,
        ..row("send, handler suspends", "send-suspends", "send-suspends", 0.0, same("send-suspends"), 1.2)
    },
    Row {
        target: None,
        allocations_max: None,
        ..row("ask, handler suspends once", "ask-suspends", "ask-suspends", 0.0, same("ask-suspends"), 1.3)
    },
    row("serial node, ask", "serial", "ask", 70.0, ask(true), 0.3),
    row(
        "broadcast 1→100, per delivery",
        "broadcast",
        "broadcast",
        25.0,
        Baseline::Tokio { fastest: "channel", usual: Some("broadcast") },
        0.2,
    ),
    Row {
        allocations_max: None,
        ..row(
            "the same with two publishers on two workers",
            "broadcast-2",
            "broadcast-2",
            50.0,
            Baseline::Tokio { fastest: "channel-2", usual: Some("broadcast-2") },
            0.16,
        )
    },
    Row {
        rivals: Some(Quantity::Cpu("publish-many")),
        ..alone("publish to 100 among 100 000 nodes", Quantity::Cpu("publish-many"), 2_500.0)
    },
    Row {
        allocations_max: None,
        ..row("64 callers, one node, two workers, per ask", "callers", "callers", 70.0, same("callers"), 0.25)
    },
    Row {
        rivals: Some(Quantity::WallRatio("sleep-callers", "sleep-one")),
        ..alone(
            "64 callers, handler sleeps 1 ms: times one handler's time",
            Quantity::WallRatio("sleep-callers", "sleep-one"),
            1.2,
        )
    },
    Row {
        rivals: Some(Quantity::Bytes("idle")),
        ..alone("idle node, shared routes, resident bytes", Quantity::Bytes("idle-shared"), 192.0)
    },
    Row {
        rivals: Some(Quantity::Bytes("idle")),
        ..alone("idle node, own closure, resident bytes", Quantity::Bytes("idle-own"), 700.0)
    },
    alone("state get", Quantity::Cpu("state-get"), 30.0),
    alone("state set", Quantity::Cpu("state-set"), 80.0),
    Row {
        allocations_max: Some(0.0),
        baseline: Some((Baseline::Own("decode", "rmp-serde"), 1.0)),
        ..alone("zero-allocation handler reads 3 fields of 200 bytes", Quantity::Cpu("zero"), 120.0)
    },
    Row {
        target: None,
        baseline: Some((Baseline::Own("decode", "rmp-serde"), f64::INFINITY)),
        ..alone("the reading alone, without a send", Quantity::Cpu("read"), 0.0)
    },
    Row {
        target: None,
        baseline: Some((Baseline::Own("decode", "rmp-serde"), f64::INFINITY)),
        ..alone("the same bytes to a handler that wants the type", Quantity::Cpu("zero-typed"), 0.0)
    },
    alone("what 50 patterns add to a send of a known type", Quantity::More("route-many", "route-one"), 2.0),
    alone(
        "what a type adds that was never seen, 50 patterns",
        Quantity::More("route-first", "route-again"),
        150.0,
    ),
    alone("what hooks of another node add to an ask", Quantity::More("hooks-off", "ask"), 5.0),
];

fn report(machine: &Machine, options: &Options, measured: &Measured) -> String {
    let mut text = machine.text(options);
    if options.contenders.iter().any(|contender| contender.name == HAPPEN) {
        text += "\n### Targets and gates\n\nMedian CPU nanoseconds where a line does not say otherwise.\n\n";
        text += &gates(measured);
    }
    text += "\n### All contenders side by side\n\nMedian CPU nanoseconds, and allocations in brackets.\n\n";
    text += &side_by_side(options, measured);
    text += "\n### Every figure\n\n";
    text += &every(options, measured);
    text
}

/// The table of the issue.
fn gates(measured: &Measured) -> String {
    let nothing = BTreeMap::new();
    let own = measured.get(HAPPEN).unwrap_or(&nothing);
    let mut text = String::from(
        "| what | Happen (min–max) | target | allocations | × tokio, fastest | × tokio, usual | gate | best rival | × \
         rival |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut counts = Counts::default();
    for row in ROWS {
        let values = row.own.of(own);
        let Some(median) = median(&values) else { continue };
        let (min, max) = range(&values);
        let target = row.target.map(|target| counts.target(median, target));
        let allocations = row.allocations_max.map(|allowed| {
            let allocations = allocations(own, row.own.operation());
            counts.allocations(allocations.unwrap_or(f64::NAN), allowed)
        });
        let (fastest, usual, gate) = ratios(row, &values, own, measured, &mut counts);
        let rival = row.rivals.and_then(|quantity| best_rival(quantity, &values, measured));
        let (rival, times) = rival.unwrap_or_default();
        let written = writeln!(
            text,
            "| {} | {} ({}–{}) | {} | {} | {fastest} | {usual} | {gate} | {rival} | {times} |",
            row.what,
            shown(median),
            shown(min),
            shown(max),
            target.unwrap_or_default(),
            allocations.unwrap_or_default(),
        );
        debug_assert!(written.is_ok(), "a text takes what is written to it");
    }
    text + &counts.text()
}

/// How many aims are met.
#[derive(Debug, Default)]
struct Counts {
    targets: (usize, usize),
    allocations: (usize, usize),
    gates: (usize, usize),
}

impl Counts {
    fn target(&mut self, median: f64, target: f64) -> String {
        let is_met = median <= target;
        self.targets = (self.targets.0 + usize::from(is_met), self.targets.1 + 1);
        format!("≤ {} {}", shown(target), mark(is_met))
    }

    fn allocations(&mut self, allocations: f64, allowed: f64) -> String {
        // What a burst leaves behind now and then, such as a buffer that grew once, is none for each operation.
        let is_met = allocations <= allowed + 0.005;
        self.allocations = (self.allocations.0 + usize::from(is_met), self.allocations.1 + 1);
        format!("{allocations:.2} {}", mark(is_met))
    }

    fn gate(&mut self, ratios: &[f64], allowed: f64) -> String {
        if allowed.is_infinite() {
            return String::new();
        }
        let is_met = ratios.iter().all(|ratio| *ratio <= allowed);
        let is_met_somewhere = ratios.iter().any(|ratio| *ratio <= allowed);
        self.gates = (self.gates.0 + usize::from(is_met), self.gates.1 + 1);
        let note = if is_met_somewhere && !is_met { "usual form only" } else { mark(is_met) };
        format!("≤ {allowed} × {note}")
    }

    fn text(&self) -> String {
        format!(
            "\nMet: {} of {} targets, {} of {} counts of allocations, {} of {} gates.\n",
            self.targets.0,
            self.targets.1,
            self.allocations.0,
            self.allocations.1,
            self.gates.0,
            self.gates.1
        )
    }
}

fn mark(is_met: bool) -> &'static str {
    if is_met { "met" } else { "**missed**" }
}

/// The ratios to the baseline and whether the gate is met.
fn ratios(
    row: Row,
    values: &[f64],
    own: &BTreeMap<String, Vec<Figure>>,
    measured: &Measured,
    counts: &mut Counts,
) -> (String, String, String) {
    let Some((baseline, allowed)) = row.baseline else { return Default::default() };
    let (all, fastest, usual) = match baseline {
        Baseline::Tokio { fastest, usual } => (measured.get(TOKIO), fastest, usual),
        Baseline::Own(operation, _) => (Some(own), operation, None),
    };
    let Some(all) = all else { return Default::default() };
    let to = |operation| median(&pairwise(values, &Quantity::Cpu(operation).of(all)));
    let (Some(to_fastest), to_usual) = (to(fastest), usual.and_then(to)) else { return Default::default() };
    let found: Vec<f64> = [Some(to_fastest), to_usual].into_iter().flatten().collect();
    let gate = counts.gate(&found, allowed);
    let fastest = match baseline {
        Baseline::Tokio { .. } => format!("{to_fastest:.2}"),
        Baseline::Own(_, name) => format!("{to_fastest:.2} × {name}"),
    };
    (fastest, to_usual.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(), gate)
}

/// The rival whose median is lowest, and the ratio to it.
fn best_rival(quantity: Quantity, values: &[f64], measured: &Measured) -> Option<(String, String)> {
    let rivals = CONTENDERS.into_iter().filter(|contender| ![HAPPEN, TOKIO].contains(&contender.name));
    let of_rivals = rivals.filter_map(|rival| {
        let theirs = quantity.of(measured.get(rival.name)?);
        Some((rival.name, median(&theirs)?, theirs))
    });
    let (name, best, theirs) = of_rivals.min_by(|one, other| one.1.total_cmp(&other.1))?;
    let times = median(&pairwise(values, &theirs))?;
    Some((format!("{name} {}", shown(best)), format!("{times:.2}")))
}

/// Medians of CPU time for all contenders, with allocations.
fn side_by_side(options: &Options, measured: &Measured) -> String {
    let mut text = String::from("| operation |");
    for contender in &options.contenders {
        text += &format!(" {} |", contender.name);
    }
    text += &format!("\n|---|{}\n", "---|".repeat(options.contenders.len()));
    for operation in operations(options, measured) {
        text += &format!("| {operation} |");
        for contender in &options.contenders {
            let figures = measured.get(contender.name).and_then(|all| all.get(&operation));
            let cell = figures.and_then(|figures| {
                let cpu = median(&figures.iter().map(|figure| figure.cpu_ns).collect::<Vec<_>>())?;
                let allocations =
                    median(&figures.iter().map(|figure| figure.allocations).collect::<Vec<_>>())?;
                Some(format!("{} ({})", shown(cpu), allocations.round()))
            });
            text += &format!(" {} |", cell.unwrap_or_default());
        }
        text += "\n";
    }
    text
}

/// All operations, those of more contenders first, then by name.
fn operations(options: &Options, measured: &Measured) -> Vec<String> {
    let mut counted: BTreeMap<&String, usize> = BTreeMap::new();
    for contender in &options.contenders {
        for operation in measured.get(contender.name).into_iter().flat_map(BTreeMap::keys) {
            *counted.entry(operation).or_default() += 1;
        }
    }
    let mut all: Vec<_> = counted.into_iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    all.into_iter().map(|(operation, _)| operation.clone()).collect()
}

fn every(options: &Options, measured: &Measured) -> String {
    let mut text = String::from(
        "| contender | operation | CPU ns | min | max | wall ns | allocations | resident bytes |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for contender in &options.contenders {
        for (operation, figures) in measured.get(contender.name).into_iter().flatten() {
            let of = |value: fn(&Figure) -> f64| figures.iter().map(value).collect::<Vec<_>>();
            let cpu = of(|figure| figure.cpu_ns);
            let (min, max) = range(&cpu);
            let middle = |values: &[f64]| median(values).unwrap_or(f64::NAN);
            let bytes: Vec<f64> = figures.iter().filter_map(|figure| figure.bytes).collect();
            text += &format!(
                "| {} | {operation} | {} | {} | {} | {} | {:.2} | {} |\n",
                contender.name,
                shown(middle(&cpu)),
                shown(min),
                shown(max),
                shown(middle(&of(|figure| figure.wall_ns))),
                middle(&of(|figure| figure.allocations)),
                median(&bytes).map(shown).unwrap_or_default(),
            );
        }
    }
    text
}

fn allocations(all: &BTreeMap<String, Vec<Figure>>, operation: &str) -> Option<f64> {
    median(&all.get(operation)?.iter().map(|figure| figure.allocations).collect::<Vec<_>>())
}

/// The ratios of values of the same round.
fn pairwise(values: &[f64], to: &[f64]) -> Vec<f64> {
    values.iter().zip(to).map(|(value, to)| value / to).collect()
}

/// The middle one; of an even number, the mean of the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

fn range(values: &[f64]) -> (f64, f64) {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (min, max)
}

/// Three digits, or all before the point.
fn shown(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 10.0 => 2,
        middle if middle < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let is_zero = |text: &str| text.chars().all(|character| "-0.".contains(character));
    match text.trim_end_matches('0').trim_end_matches('.') {
        _ if is_zero(&text) => "0".into(),
        short if digits > 0 => short.into(),
        _ => text,
    }
}

/// Where and with what it was measured.
#[derive(Debug, Default)]
struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
    rustc: String,
    date: String,
    commit: String,
    load_before: String,
    load_after: String,
    versions: BTreeMap<String, String>,
}

impl Machine {
    fn read(root: &Path, date: Option<&str>) -> Result<Self, Failure> {
        let said = |program: &str, arguments: &[&str]| -> Result<String, Failure> {
            let bytes = output(Command::new(program).current_dir(root).args(arguments))?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let changed = !said("git", &["status", "--porcelain", "--", "crates", "bench"])?.is_empty();
        let commit = said("git", &["rev-parse", "--short", "HEAD"])?;
        let lock = fs::read_to_string(root.join("bench/Cargo.lock")).unwrap_or_default();
        Ok(Self {
            processor: processor.trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            kernel: said("uname", &["-sr"])?,
            rustc: said("rustc", &["--version"])?,
            date: match date {
                Some(date) => date.to_owned(),
                None => said("git", &["log", "-1", "--format=%cs"])?,
            },
            commit: if changed { format!("{commit} with changes") } else { commit },
            load_before: load(),
            load_after: String::new(),
            versions: versions(&lock),
        })
    }

    fn text(&self, options: &Options) -> String {
        let version = |contender: &Contender| {
            let name = contender.dependency?;
            Some(format!("{name} {}", self.versions.get(name).map_or("unknown", String::as_str)))
        };
        let versions: Vec<_> = options.contenders.iter().filter_map(version).collect();
        let percent = match options.percent {
            100 => String::new(),
            percent => format!(", {percent} % of the operations: a smoke run, its figures mean nothing"),
        };
        format!(
            "{} rounds{percent}. Processor: {}, {} cores. Kernel: {}. Compiler: {}. Commit: {} of {}. Load average (1, \
             5, 15 minutes) before: {}, after: {}.\n\nVersions: {}.\n",
            options.rounds,
            self.processor,
            self.cores,
            self.kernel,
            self.rustc,
            self.commit,
            self.date,
            self.load_before,
            self.load_after,
            versions.join(", "),
        )
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The versions of all packages in a lock file; of several of one package, the last.
fn versions(lock: &str) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        if let Some(found) = quoted(line, "name = ") {
            name = found;
        } else if let Some(version) = quoted(line, "version = ") {
            versions.insert(name.to_owned(), version.to_owned());
        }
    }
    versions
}

fn quoted<'l>(line: &'l str, key: &str) -> Option<&'l str> {
    line.strip_prefix(key)?.strip_prefix('"')?.strip_suffix('"')
}

/// Puts the report between the markers.
fn spliced(text: &str, report: &str) -> Result<String, Failure> {
    let missing = |marker: &str| Failure(format!("{DOCUMENT} has no line `{marker}` to write at"));
    let begin = text.find(BEGIN).ok_or_else(|| missing(BEGIN))? + BEGIN.len();
    let end = text[begin..].find(END).ok_or_else(|| missing(END))? + begin;
    Ok(format!("{}\n\n{}\n{}", &text[..begin], report, &text[end..]))
}

const MANIFEST: &str = "bench/Cargo.toml";
const TARGET: &str = "bench/target";
const DOCUMENT: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";
/// Rounds of a run that counts: enough that the median is not moved by two bad ones.
const ROUNDS: usize = 7;
/// Operations of a smoke run.
const QUICK_PERCENT: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(cpu_ns: f64, wall_ns: f64) -> Figure {
        Figure { cpu_ns, wall_ns, allocations: 0.0, bytes: None }
    }

    #[test]
    fn lines_are_read() {
        assert_eq!(
            parsed("ask\t1.5\t2\t0.25"),
            Some(("ask".into(), Figure { allocations: 0.25, ..figure(1.5, 2.0) }))
        );
        assert_eq!(parsed("idle\t1\t2\t3\t4").and_then(|(_, figure)| figure.bytes), Some(4.0));
        for broken in ["", "ask", "ask\t1\t2", "ask\t1\t2\tx", "idle\t1\t2\t3\tx", "\t1\t2\t3"] {
            assert_eq!(parsed(broken), None, "{broken}");
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn numbers_show_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (-0.001, "0"),
            (1.234, "1.23"),
            (60.0, "60"),
            (45.67, "45.7"),
            (100.0, "100"),
            (2500.4, "2500"),
        ] {
            assert_eq!(shown(value), text);
        }
    }

    #[test]
    fn a_document_keeps_what_is_around_the_report() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let written = spliced(&text, "new\n").unwrap();
        assert_eq!(written, format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(spliced(&written, "new\n"), Ok(written));
        assert!(spliced("no markers", "new").is_err());
        assert!(spliced(&format!("{END} {BEGIN}"), "new").is_err());
    }

    #[test]
    fn ratios_are_taken_in_the_same_round() {
        assert_eq!(pairwise(&[1.0, 6.0], &[2.0, 3.0]), [0.5, 2.0]);
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        let lock = "[[package]]\nname = \"tokio\"\nversion = \"1.2.3\"\n[[package]]\nname = \"a\"\nversion = \"4.5.6\"\n";
        let versions = versions(lock);
        assert_eq!(versions["tokio"], "1.2.3");
        assert_eq!(versions["a"], "4.5.6");
    }

    #[test]
    fn only_whole_runs_are_written() {
        assert!(Options::read(&["--write"]).is_ok());
        for part in [
            ["--write", "--quick"].as_slice(),
            &["--write", "--rounds", "6"],
            &["--write", "--only", "happen"],
        ] {
            assert!(Options::read(part).is_err(), "{part:?}");
        }
        for wrong in [["--rounds"].as_slice(), &["--rounds", "0"], &["--only", "nobody"], &["--what"]] {
            assert!(Options::read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_gate_is_met_when_all_its_ratios_are() {
        let mut counts = Counts::default();
        assert_eq!(counts.gate(&[0.2, 0.1], 0.25), "≤ 0.25 × met");
        assert_eq!(counts.gate(&[0.3, 0.1], 0.25), "≤ 0.25 × usual form only");
        assert_eq!(counts.gate(&[0.3], 0.25), "≤ 0.25 × **missed**");
        assert_eq!(counts.gate(&[0.3], f64::INFINITY), "");
        assert_eq!(counts.gates, (1, 3));
    }

    #[test]
    fn a_row_tells_target_gate_and_best_rival() {
        let mut measured = Measured::new();
        for (name, cpu) in
            [(HAPPEN, [50.0, 70.0, 60.0]), (TOKIO, [100.0, 100.0, 120.0]), ("kameo", [300.0; 3])]
        {
            let figures = cpu.map(|cpu| figure(cpu, cpu)).to_vec();
            measured.entry(name).or_default().insert("ask".into(), figures);
        }
        measured.entry("actix").or_default().insert("ask".into(), vec![figure(200.0, 200.0); 3]);
        let table = gates(&measured);
        let row = table.lines().find(|line| line.starts_with("| ask, plain")).unwrap();
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let expected =
            ["60 (50–70)", "≤ 60 met", "0.00 met", "0.50", "", "≤ 0.25 × **missed**", "actix 200", "0.30"];
        assert_eq!(cells[2..10], expected);
        assert!(
            table.ends_with("Met: 1 of 1 targets, 1 of 1 counts of allocations, 0 of 1 gates.\n"),
            "{table}"
        );
    }
}
