//! Repository tasks: reads the command line and runs one. It knows in which order things run; what a check looks for is
//! in `tidy`, how examples are found and run is in `examples`, what is measured and compared is in `bench` and
//! `instructions`.

#![expect(clippy::print_stdout, reason = "a task talks to the person who started it")]

mod bench;
mod examples;
mod instructions;
mod process;
mod setup;
mod tidy;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use process::{Failure, cargo, heading, run};

const HELP: &str = "\
cargo xtask <command>

  setup            installs the servers that tests talk to into .tools, unless
                   they are on the path
  test             does the setup, runs all tests and doctests, builds and runs
                   all examples, then tidy
  lint             checks the format, clippy and the documentation, with warnings denied
  tidy             checks the sources, the documents and the dependency budget
  bench            measures Happen and its rivals and prints tables; takes
                   --only happen,tokio,kameo  these contenders
                   --rounds 9                 so many rounds, 7 if nothing is said
                   --quick                    a smoke run of a few seconds
                   --write                    writes the tables to docs/benchmarks.md
                   --date 2026-11-30          instead of the date of the commit
  instructions     counts instructions under valgrind and compares them with
                   bench/instructions.txt, which --bless writes anew
  help             prints this text

Nothing but the Rust toolchain, git and Python with pip is needed, and valgrind
for instructions. The first failure ends a command.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["setup"] => root().and_then(|root| setup::setup(&root)),
        ["test"] => root().and_then(|root| test(&root)),
        ["lint"] => root().and_then(|root| lint(&root)),
        ["tidy"] => root().and_then(|root| tidy::run(&root)),
        ["bench", rest @ ..] => root().and_then(|root| bench::bench(&root, rest)),
        ["instructions", rest @ ..] => root().and_then(|root| instructions::instructions(&root, rest)),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(Failure(format!("there is no command `{}`; see cargo xtask help", other.join(" ")))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn test(root: &Path) -> Result<(), Failure> {
    setup::setup(root)?;
    heading("tests and doctests");
    run(cargo(root).args(["test", "--workspace", "--all-features"]))?;
    heading("examples");
    examples::run_all(root)?;
    tidy::run(root)
}

fn lint(root: &Path) -> Result<(), Failure> {
    let deny = ["--", "-D", "warnings"];
    heading("format");
    run(cargo(root).args(["fmt", "--all", "--check"]))?;
    heading("clippy, all features");
    run(cargo(root).args(["clippy", "--workspace", "--all-targets", "--all-features"]).args(deny))?;
    heading("clippy, no features");
    // One package at a time: cargo joins the features of packages that are checked together.
    for package in ["happen-core", "happen"] {
        let scope = ["clippy", "--package", package, "--all-targets", "--no-default-features"];
        run(cargo(root).args(scope).args(deny))?;
    }
    heading("documentation");
    run(cargo(root).env("RUSTDOCFLAGS", "-D warnings").args([
        "doc",
        "--workspace",
        "--no-deps",
        "--all-features",
    ]))
}

/// Finds the top folder of the checkout this is run in.
///
/// cargo names the package's folder when it starts a program. The folder known when this was compiled would be
/// the wrong one where two checkouts share a target folder.
fn root() -> Result<PathBuf, Failure> {
    let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let top = package.and_then(|folder| folder.parent().map(PathBuf::from));
    top.ok_or_else(|| Failure("start this with `cargo xtask`, which says where the checkout is".into()))
}
