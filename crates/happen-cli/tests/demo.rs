//! `happen demo` as a person and as a script run it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Read;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_happen"));
    command.arg("demo").args(arguments).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("the program could not be started: {error}"))
}

#[track_caller]
fn summary(seed: &str) -> Value {
    let output = run(&mut demo(&["--orders", "300", "--seed", seed, "--json"]));
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The outcomes without those of the burst, of which some are accepted and the others find a queue full.
fn planned(summary: &Value) -> (Value, Value, u64) {
    let mut failed = summary["failed"].clone();
    let busy = failed.as_object_mut().unwrap().remove("busy").unwrap();
    (summary["refused"].clone(), failed, summary["accepted"].as_u64().unwrap() + busy.as_u64().unwrap())
}

#[test]
fn every_way_to_end_is_seen_and_the_seed_decides() {
    let first = summary("7");
    assert_eq!(first["balanced"], true, "{first:#}");
    let books = first["books"].as_array().unwrap();
    assert!(books.len() >= 9 && books.iter().all(|check| check["holds"] == true), "{first:#}");
    for (kind, reasons) in [
        ("refused", &["nothing-ordered", "out-of-stock", "payment-declined"][..]),
        ("failed", &["io", "timed-out", "panicked", "no-such-node", "wrong-payload", "runaway", "busy"][..]),
    ] {
        assert_eq!(first[kind].as_object().unwrap().len(), reasons.len(), "{first:#}");
        for reason in reasons {
            assert!(first[kind][reason].as_u64() >= Some(1), "no order ended as {reason}: {first:#}");
        }
    }
    assert!(first["accepted"].as_u64() >= Some(100), "{first:#}");

    assert_eq!(planned(&first), planned(&summary("7")), "the same seed, another outcome");
    assert_ne!(planned(&first), planned(&summary("8")), "another seed, the same outcome");
}

#[test]
fn the_traces_tell_why() {
    let summary = summary("3");
    let trace = |order: &str| {
        let lines = summary["traces"][order].as_array().unwrap_or_else(|| panic!("{summary:#}"));
        lines.iter().map(|line| line.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let accepted = trace("order-1");
    assert!(accepted[0].contains("reserve > wrap > charge > ship replied"), "{accepted:?}");
    assert!(accepted.last().unwrap().contains("order.accepted"), "{accepted:?}");
    let failed = trace("order-2");
    assert!(failed[0].contains("charge > charge > charge failed (io)"), "{failed:?}");
    assert!(failed.last().unwrap().contains("place-order.error"), "{failed:?}");
}

#[test]
fn a_pipe_gets_plain_text_and_progress_in_lines() {
    let output = run(&mut demo(&["--orders", "200"]));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "outcome    reason",
        "└─ order.accepted",
        "state of the nodes:",
        "ok     every order has one outcome: 200",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    let progress = String::from_utf8(output.stderr).unwrap();
    assert_eq!(progress.lines().count(), 4, "{progress}");
    assert!(progress.ends_with("orders: 200 of 200 (100 %)\n"), "{progress}");
    let steering = |char: char| char.is_control() && char != '\n';
    assert!(!text.contains(steering) && !progress.contains(steering), "{text}{progress}");
}

#[test]
fn a_locale_without_utf8_gets_ascii() {
    let output = run(demo(&["--orders", "200"]).env("LC_ALL", "C"));
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_ascii(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("+- order.accepted"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = demo(&["--orders", "200"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut complaints = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
    assert!(child.wait().unwrap().success(), "{complaints}");
    assert!(complaints.lines().all(|line| line.starts_with("orders: ")), "{complaints}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_sentence_and_exit_code_1() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = demo(&["--orders", "200"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let output = output.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let complaints = String::from_utf8(output.stderr).unwrap();
    let told: Vec<_> = complaints.lines().filter(|line| !line.starts_with("orders: ")).collect();
    let [sentence] = told[..] else { panic!("{complaints}") };
    assert!(sentence.starts_with("happen: could not write to standard output: "), "{sentence}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [&["--orders", "3"][..], &["--orders", "many"], &["--sed", "1"]] {
        let output = run(&mut demo(arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty());
        assert!(output.stderr.starts_with(b"error: "), "{output:?}");
    }
}

/// The shop in a folder, killed in the middle of its work again and again, and its last run.
#[test]
fn a_shop_that_is_killed_goes_on_and_its_books_balance() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("shop");
    let arguments = ["--orders", "250", "--store", store.to_str().unwrap(), "--json"];
    let mut killed = 0;
    for placed in [20, 90, 150] {
        let mut child = demo(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = std::io::BufReader::new(child.stderr.take().unwrap());
        // Progress is told when a quarter of the orders has ended; until then the log grows.
        let mut line = String::new();
        while std::io::BufRead::read_line(&mut told, &mut line).unwrap() > 0 {
            let ended = line.rsplit("orders: ").next().and_then(|rest| rest.split(' ').next());
            if ended.and_then(|ended| ended.parse::<u64>().ok()).is_some_and(|ended| ended >= placed) {
                break;
            }
            line.clear();
        }
        killed += u64::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed > 0, "each run had ended before it could be killed");
    let output = run(&mut demo(&arguments));
    assert!(output.status.success(), "{output:?}");
    let last: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(last["balanced"], true, "{last:#}");

    let other = run(demo(&["--orders", "300", "--store"]).arg(&store));
    assert_eq!(other.status.code(), Some(2), "{other:?}");
    let told = String::from_utf8(other.stderr).unwrap();
    assert!(told.contains("go on with `--orders 250 --seed 1`"), "{told}");

    let verified = run(Command::new(env!("CARGO_BIN_EXE_happen")).args(["verify", "--store"]).arg(&store));
    assert!(verified.status.success(), "{verified:?}");
    let trace = Command::new(env!("CARGO_BIN_EXE_happen"))
        .args(["trace", "order-1", "--store"])
        .arg(&store)
        .output()
        .unwrap();
    let trace = String::from_utf8(trace.stdout).unwrap();
    assert!(trace.contains("order.accepted"), "{trace}");
}
