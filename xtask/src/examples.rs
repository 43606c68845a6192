//! Finds the examples of the workspace and runs each of them once. It knows where cargo looks for examples and
//! where it puts them; what an example does is its own business.

use std::collections::BTreeSet;
use std::env::{self, consts::EXE_SUFFIX};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::process::{Failure, cargo, run};

/// An example ends by itself; one that still runs after this waits for something that never comes.
const EXAMPLE_SECONDS_MAX: u64 = 60;

/// Short against the shortest example, long against the cost of asking.
const POLL_MS: u64 = 10;

/// How much of a failed example's output is shown.
const SHOWN_LINES_MAX: usize = 30;

/// Builds all examples and runs one after the other.
pub(crate) fn run_all(root: &Path) -> Result<(), Failure> {
    let names = find(root)?;
    if names.is_empty() {
        println!("there are no examples yet");
        return Ok(());
    }
    run(cargo(root).args(["build", "--workspace", "--all-features", "--examples"]))?;
    let folder = built_folder()?;
    for name in &names {
        run_one(root, &folder, name)?;
    }
    println!("{} examples ran", names.len());
    Ok(())
}

fn run_one(root: &Path, folder: &Path, name: &str) -> Result<(), Failure> {
    let failure = |what: String| Failure(format!("example {name}: {what}"));
    let program = folder.join(format!("{name}{EXE_SUFFIX}"));
    // A file takes any amount of output; a pipe would need a reader to keep the example going.
    let log_path = folder.join(format!("{name}.log"));
    let log =
        File::create(&log_path).map_err(|error| failure(format!("cannot write its output: {error}")))?;
    let log_too = log.try_clone().map_err(|error| failure(format!("cannot write its output: {error}")))?;
    let mut command = Command::new(&program);
    command.current_dir(root).stdin(Stdio::null()).stdout(log).stderr(log_too);
    let child = command.spawn().map_err(|error| failure(format!("cannot start: {error}")))?;
    let limit = Duration::from_secs(EXAMPLE_SECONDS_MAX);
    let what = match wait(child, limit).map_err(|error| failure(format!("cannot wait: {error}")))? {
        Some((status, took)) if status.success() => {
            println!("{name}: ok in {:.1} s", took.as_secs_f64());
            return Ok(());
        }
        Some((status, _)) => format!("ended with {status}"),
        None => format!("still ran after {EXAMPLE_SECONDS_MAX} s and was stopped"),
    };
    let printed = fs::read(&log_path).unwrap_or_default();
    let printed = String::from_utf8_lossy(&printed);
    let lines: Vec<&str> = printed.lines().collect();
    println!("{}", lines[lines.len().saturating_sub(SHOWN_LINES_MAX)..].join("\n"));
    Err(failure(what))
}

/// Waits for a process and gives its status and how long it took; past the limit it is ended, and nothing given.
#[expect(clippy::disallowed_methods, reason = "a program of its own is waited for in real time")]
fn wait(mut child: Child, limit: Duration) -> std::io::Result<Option<(ExitStatus, Duration)>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some((status, started.elapsed())));
        }
        if started.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(POLL_MS));
    }
}

/// Says where cargo puts built examples: beside this program, whatever the target folder is called.
fn built_folder() -> Result<PathBuf, Failure> {
    let this = env::current_exe().map_err(|error| Failure(format!("cannot find this program: {error}")))?;
    let folder = this.parent().map(|folder| folder.join("examples"));
    folder.ok_or_else(|| Failure("this program is in no folder".into()))
}

/// Lists the names of all examples. One that no package declares is a failure, for it would never be compiled.
fn find(root: &Path) -> Result<BTreeSet<String>, Failure> {
    let mut names = BTreeSet::new();
    let mut declared_files = BTreeSet::new();
    for package in entries(&root.join("crates")) {
        let manifest = fs::read_to_string(package.join("Cargo.toml")).unwrap_or_default();
        for (name, path) in declared(&manifest) {
            if let Some(file) = path.and_then(|path| package.join(path).canonicalize().ok()) {
                declared_files.insert(file);
            }
            names.insert(name);
        }
        for (name, file) in source_files(&package.join("examples")) {
            // A package's own folder is searched by cargo; a declaration there only renames or adds to it.
            if !file.canonicalize().is_ok_and(|file| declared_files.contains(&file)) {
                names.insert(name);
            }
        }
    }
    for (_, file) in source_files(&root.join("examples")) {
        if !file.canonicalize().is_ok_and(|file| declared_files.contains(&file)) {
            let shown = file.strip_prefix(root).unwrap_or(&file).display();
            let advice = "declare it as an [[example]] in a crate's Cargo.toml, or it is never compiled";
            return Err(Failure(format!("{shown}: {advice}")));
        }
    }
    Ok(names)
}

/// Reads the name and path of each `[[example]]` of a manifest.
///
/// Only lines of the form `key = "value"` count, which is how this workspace writes them; a TOML reader would be
/// the only dependency of this program.
fn declared(manifest: &str) -> Vec<(String, Option<String>)> {
    let mut found: Vec<(String, Option<String>)> = Vec::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[[example]]";
            if inside {
                found.push((String::new(), None));
            }
        } else if inside
            && let Some((key, value)) = line.split_once('=')
            && let Some(example) = found.last_mut()
        {
            let value = value.trim().trim_matches('"').to_owned();
            match key.trim() {
                "name" => example.0 = value,
                "path" => example.1 = Some(value),
                _ => {}
            }
        }
    }
    found.retain(|(name, _)| !name.is_empty());
    found
}

/// Lists `name.rs` and `name/main.rs` of a folder, as cargo does.
fn source_files(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    for entry in entries(folder) {
        let Some(name) = entry.file_stem().map(|name| name.to_string_lossy().into_owned()) else { continue };
        if entry.is_file() && entry.extension().is_some_and(|extension| extension == "rs") {
            files.push((name, entry));
        } else if entry.join("main.rs").is_file() {
            files.push((name, entry.join("main.rs")));
        }
    }
    files
}

/// Lists a folder in the order of names; a folder that does not exist is empty.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_examples_are_read_from_a_manifest() {
        let manifest = "[package]\nname = \"p\"\n\n[[example]]\nname = \"one\"\npath = \"../../examples/one.rs\"\n\
                        \n[[example]]\nname = \"two\"\n\n[[bench]]\nname = \"three\"\n";
        let expected = [("one".into(), Some("../../examples/one.rs".into())), ("two".into(), None)];
        assert_eq!(declared(manifest), expected);
    }

    #[test]
    fn an_example_no_package_declares_is_refused() {
        let root = env::temp_dir().join(format!("xtask-examples-{}", std::process::id()));
        let package = root.join("crates/one");
        for folder in [root.join("examples/large"), package.join("examples")] {
            fs::create_dir_all(folder).unwrap();
        }
        let source = "//! Does nothing.\nfn main() {}\n";
        for file in ["examples/declared.rs", "examples/large/main.rs", "crates/one/examples/own.rs"] {
            fs::write(root.join(file), source).unwrap();
        }
        let declare = |name: &str, path: &str| {
            format!("[[example]]\nname = \"{name}\"\npath = \"../../examples/{path}\"\n")
        };
        let mut manifest = declare("declared", "declared.rs");
        fs::write(package.join("Cargo.toml"), &manifest).unwrap();
        let refused = find(&root).unwrap_err().0;
        manifest += &declare("large", "large/main.rs");
        fs::write(package.join("Cargo.toml"), &manifest).unwrap();
        let accepted = find(&root);
        fs::remove_dir_all(&root).unwrap();
        assert!(refused.starts_with("examples/large/main.rs: declare it"), "{refused}");
        assert_eq!(accepted.unwrap(), ["declared", "large", "own"].map(String::from).into());
    }

    #[cfg(unix)]
    #[test]
    fn a_process_that_does_not_end_is_stopped_at_the_limit() {
        let child = |seconds: &str| Command::new("sleep").arg(seconds).spawn().unwrap();
        assert_eq!(wait(child("600"), Duration::ZERO).unwrap(), None);
        let (status, _) = wait(child("0"), Duration::from_secs(60)).unwrap().unwrap();
        assert!(status.success());
    }
}
