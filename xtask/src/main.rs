//! Repository tasks: reads the command line and runs `test`, `lint`, `tidy` or `bench`. It knows in which order
//! things run; what a check looks for is in `tidy`, how examples are found and run is in `examples`.

#![expect(clippy::print_stdout, reason = "a task talks to the person who started it")]

mod examples;
mod process;
mod tidy;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use process::{Failure, cargo, heading, run};

const HELP: &str = "\
cargo xtask <command>

  test             runs all tests and doctests, builds and runs all examples, then tidy
  lint             checks the format, clippy and the documentation, with warnings denied
  tidy             checks the sources, the documents and the dependency budget
  bench [args]     runs the benchmarks in bench/ with these arguments
  help             prints this text

Nothing but the Rust toolchain and git is needed. The first failure ends a command.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["test"] => root().and_then(|root| test(&root)),
        ["lint"] => root().and_then(|root| lint(&root)),
        ["tidy"] => root().and_then(|root| tidy::run(&root)),
        ["bench", rest @ ..] => root().and_then(|root| bench(&root, rest)),
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

fn bench(root: &Path, arguments: &[&str]) -> Result<(), Failure> {
    if !root.join("bench/Cargo.toml").exists() {
        return Err(Failure("there are no benchmarks in this checkout: bench/Cargo.toml is missing".into()));
    }
    run(cargo(root).args(["run", "--release", "--manifest-path", "bench/Cargo.toml", "--"]).args(arguments))
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
