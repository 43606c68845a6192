//! The `happen` binary: the command line, the runtime, and the exit code. What a command does is in its own file.
#![expect(clippy::needless_pass_by_value, reason = "a handler is given a clone of its dependency as its own")]

mod demo;
mod dev;
mod failure;
mod git;
mod git_log;
mod git_store;
mod output;
mod store;
#[cfg(test)]
#[path = "../tests/support/repository.rs"]
mod test_repository;

use std::future::Future;
use std::io::Write;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::aot::{self, Bash, Fish, Zsh};
use happen_nats::Address;

use crate::demo::plan::{ORDERS_MAX, ORDERS_MIN, Plan};
use crate::dev::DevArguments;
use crate::failure::{Failure, sentence};
use crate::output::{Output, plain};
use crate::store::balance::BalanceArguments;
use crate::store::doctor::DoctorArguments;
use crate::store::flows::{DeadCommand, FlowsCommand};
use crate::store::hand::SendArguments;
use crate::store::nodes::NodesArguments;
use crate::store::owners::OwnersArguments;
use crate::store::reach::Reach;
use crate::store::region::RegionCommand;
use crate::store::schedule::ScheduleCommand;
use crate::store::state::StateCommand;
use crate::store::tail::TailArguments;
use crate::store::upkeep::StoreCommand;
use crate::store::verify::VerifyArguments;
use crate::store::web::{ImpactArguments, TraceArguments, WhyArguments};

/// Event-driven systems out of nodes and events
#[derive(Debug, Parser)]
#[command(name = "happen", version, after_help = EXIT_CODES)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a shop with thousands of orders, some of which fail in every possible way
    Demo(DemoArguments),
    /// Turn a git history into events and say what led to a commit
    Git(GitArguments),
    /// Print the newest records of a store, and follow those that come
    Tail(TailArguments),
    /// List the nodes that a store knows of, with their flows and dead letters
    Ps(NodesArguments),
    /// List the nodes of a space, with the process that has each and what it listens to
    Nodes(OwnersArguments),
    /// Show whether the nodes of a space keep up, and what they would need
    Balance(BalanceArguments),
    /// Look which of several regions writes the log of a space on NATS, or have another one take over
    #[command(subcommand)]
    Region(RegionCommand),
    /// Print what led to an event and what followed, as a tree
    Trace(TraceArguments),
    /// Print what caused an event, or what made each revision of a document
    Why(WhyArguments),
    /// Print what followed from an event
    Impact(ImpactArguments),
    /// Send an event to a node, or keep it for the next start when the space is stopped
    Send(SendArguments),
    /// Look at flows that are under way, cancel them, or try them now
    #[command(subcommand)]
    Flows(FlowsCommand),
    /// Look at flows that failed for good, begin them anew, or give them up
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Look at schedules, pause, resume, trigger, make up for, or remove them
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Read and change the documents of nodes
    #[command(subcommand)]
    State(StateCommand),
    /// Look after a store: sizes, copies, pruning, checking
    #[command(subcommand)]
    Store(StoreCommand),
    /// Check everything in a store: that it is as it was written, and that it fits together
    Verify(VerifyArguments),
    /// Look for what is wrong with a store and say what to do
    Doctor(DoctorArguments),
    /// Start what a program needs while it is written: a local server of NATS
    Dev(DevArguments),
    /// Print the completion of this program's commands for a shell
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
struct DemoArguments {
    /// How many orders to place [default: 5000, over a store 1000]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(ORDERS_MIN..=ORDERS_MAX))]
    orders: Option<u64>,
    /// Which orders to place: the same seed gives the same orders
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Keep the shop in a store in this folder, or on NATS (nats://HOST:PORT/SPACE): killed at any moment, it goes on with
    /// the same command
    #[arg(long, visible_alias = "url", value_name = "ADDRESS", value_hint = ValueHint::AnyPath)]
    store: Option<String>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Args)]
struct GitArguments {
    /// A folder of the repository
    #[arg(default_value = ".")]
    path: PathBuf,
    /// The commit to trace, by the first digits of its id [default: HEAD]
    #[arg(long, value_name = "PREFIX", value_parser = commit_prefix)]
    commit: Option<String>,
    /// Keep the events in a store in this folder, or on NATS (nats://HOST:PORT/SPACE): killed at any moment, it goes on
    /// with the same command, and a later run takes the commits that are new
    #[arg(long, visible_alias = "url", value_name = "ADDRESS", value_hint = ValueHint::AnyPath)]
    store: Option<String>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Where a space of this program's own is kept; in memory unless something else is said. The parser of the command line
/// would repeat a wrong address, which may have a password in it.
fn kept_at(store: Option<String>) -> Result<Option<Address>, Failure> {
    let address = store.as_deref().map(Address::parse).transpose();
    let address = address.map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(address.filter(|address| *address != Address::Memory))
}

fn commit_prefix(text: &str) -> Result<String, &'static str> {
    let is_prefix = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_prefix { Ok(text.to_owned()) } else { Err("the id of a commit is made of the digits 0-9 and a-f") }
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    let output = Output::standard();
    let result = match line.command {
        Command::Demo(DemoArguments { orders, seed, store, json, reach }) => {
            let default = if store.is_some() { ORDERS_STORED } else { ORDERS_DEFAULT };
            let plan = Plan { orders: orders.unwrap_or(default), seed };
            kept_at(store).and_then(|store| {
                run(demo::run(plan, store.as_ref().map(|address| (address, &reach)), json, &output))
            })
        }
        Command::Git(GitArguments { path, commit, store, json, reach }) => kept_at(store)
            .and_then(|store| run(git::run(&git::Request { path, commit, store, reach, json }, &output))),
        Command::Tail(arguments) => run(store::tail::run(&arguments, &output)),
        Command::Ps(arguments) => run(store::nodes::run(&arguments, &output)),
        Command::Nodes(arguments) => run(store::owners::run(&arguments, &output)),
        Command::Balance(arguments) => run(store::balance::run(&arguments, &output)),
        Command::Region(command) => run(store::region::run(&command, &output)),
        Command::Trace(arguments) => run(store::web::trace(&arguments, &output)),
        Command::Why(arguments) => run(store::web::why(&arguments, &output)),
        Command::Impact(arguments) => run(store::web::impact(&arguments, &output)),
        Command::Send(arguments) => run(store::hand::send(&arguments, &output)),
        Command::Flows(command) => run(store::flows::run(command, &output)),
        Command::Dead(command) => run(store::flows::run_dead(command, &output)),
        Command::Schedule(command) => run(store::schedule::run(command, &output)),
        Command::Verify(arguments) => run(store::verify::run(&arguments, &output)),
        Command::State(command) => run(store::state::run(command, &output)),
        Command::Store(command) => run(store::upkeep::run(command, &output)),
        Command::Doctor(arguments) => run(store::doctor::run(&arguments, &output)),
        Command::Dev(arguments) => dev::run(&arguments, &output),
        Command::Completion { shell } => completion(shell, &output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Names of nodes and keys are foreign text, and the sentence is one line for a person.
            let sentence = plain(&sentence(&failure), usize::MAX);
            // Without a standard error there is only the exit code left to tell it.
            drop(writeln!(std::io::stderr().lock(), "happen: {sentence}"));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Runs a command on at least two threads, also where the machine has one processor.
fn run(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let threads = std::thread::available_parallelism().map_or(2, NonZero::get).max(2);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(Failure::Runtime)?;
    runtime.block_on(command)
}

/// Writes what a shell needs to complete the commands that there are.
fn completion(shell: Shell, output: &Output) -> Result<(), Failure> {
    let mut command = CommandLine::command();
    let mut script = Vec::new();
    match shell {
        Shell::Bash => aot::generate(Bash, &mut command, "happen", &mut script),
        Shell::Zsh => aot::generate(Zsh, &mut command, "happen", &mut script),
        Shell::Fish => aot::generate(Fish, &mut command, "happen", &mut script),
    }
    output.write_as_it_is(&String::from_utf8_lossy(&script)).map(drop)
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 4 not found, 5 verification failed.";

/// Orders of a demonstration that takes a few seconds; without optimisation, fewer.
const ORDERS_DEFAULT: u64 = if cfg!(debug_assertions) { 500 } else { 5_000 };
/// The same over a store, which syncs the disk for every step.
const ORDERS_STORED: u64 = if cfg!(debug_assertions) { 300 } else { 1_000 };
