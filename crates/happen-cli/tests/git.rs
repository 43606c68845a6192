//! `happen git` on repositories made for each test; what it counts is compared with what git prints.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/repository.rs"]
mod repository;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use repository::{Draft, Script, TestRepository, new_folder};
use serde_json::Value;

fn happen(path: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_happen"));
    command.arg("git").arg(path).args(arguments).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("the program could not be started: {error}"))
}

#[track_caller]
fn report(repository: &TestRepository, arguments: &[&str]) -> Value {
    let output = happen(repository.path(), &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line on standard error that is no progress.
#[track_caller]
fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let complaints = String::from_utf8(output.stderr.clone()).unwrap();
    let told: Vec<_> = complaints.lines().filter(|line| !line.starts_with("commits: ")).collect();
    let [sentence] = told[..] else { panic!("{complaints}") };
    sentence.to_owned()
}

/// A root, two branches and a merge of both; a second root; an octopus of three; a commit on top. And one of
/// another branch, which is no part of the history of `main`.
fn branchy() -> TestRepository {
    let mut script = Script::new();
    let file = |path: &'static str| [(path.as_bytes(), path.as_bytes())];
    let root = script.commit(Draft { files: &file("root"), ..Draft::default() });
    let fix = script.commit(Draft {
        author: "Émile".as_bytes(),
        email: b"emile@example.org",
        parents: &[root],
        files: &file("fix"),
        ..Draft::default()
    });
    let idea =
        script.commit(Draft { branch: "idea", parents: &[root], files: &file("idea"), ..Draft::default() });
    let merge = script.commit(Draft { parents: &[fix, idea], ..Draft::default() });
    let other = script.commit(Draft { branch: "other", author: b"Ada L.", ..Draft::default() });
    let side =
        script.commit(Draft { branch: "side", parents: &[root], files: &file("side"), ..Draft::default() });
    let octopus = script.commit(Draft { parents: &[merge, other, side], ..Draft::default() });
    let top = [("top-1".as_bytes(), b"1".as_slice()), (b"top-2", b"2")];
    script.commit(Draft { parents: &[octopus], message: b"Top", files: &top, ..Draft::default() });
    let away = script.commit(Draft { branch: "away", parents: &[root], ..Draft::default() });
    script.annotated_tag("v1", merge);
    script.light_tag("v2", octopus);
    script.light_tag("away", away);
    TestRepository::with(&script)
}

#[test]
fn totals_and_traces_are_those_of_git() {
    let repository = branchy();
    let report = report(&repository, &[]);
    assert_eq!((&report["commits"], &report["merges"]), (&8.into(), &2.into()), "{report:#}");
    assert_eq!((&report["authors"], &report["files_changed"]), (&3.into(), &6.into()), "{report:#}");
    let lines = ["checks", "by_hand"].map(|list| report[list].as_array().unwrap().clone()).concat();
    assert_eq!(lines.len(), 8);
    for line in lines {
        // What is printed for a person to run has to give the same.
        let command = line["command"].as_str().unwrap();
        let output = Command::new("sh").args(["-c", command]).env("LC_ALL", "C.UTF-8").output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(printed.trim(), line["found"].to_string(), "{command}: {:?}", output.stderr);
    }

    let tags: Vec<_> =
        report["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
    assert_eq!(tags, ["away", "v1", "v2"]);
    assert_eq!(report["tags"][1]["commit"], repository.git(&["rev-parse", "v1^{commit}"]));
    let busiest = &report["top_authors"][0];
    assert_eq!((&busiest["email"], &busiest["commits"]), (&"ada@example.org".into(), &7.into()));
    assert_eq!(busiest["names"]["Ada L."], 1);

    let head = repository.git(&["rev-parse", "HEAD"]);
    assert_eq!((&report["trace"]["commit"], &report["trace"]["ancestors"]), (&head.into(), &7.into()));
    let line = repository.git(&["rev-list", "--first-parent", "HEAD"]);
    let found: Vec<_> =
        report["trace"]["first_parents"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert_eq!(found, line.lines().collect::<Vec<_>>());
}

#[test]
fn any_commit_is_traced_by_the_beginning_of_its_id() {
    let repository = branchy();
    let merge = repository.git(&["rev-parse", "v1^{commit}"]);
    let report = report(&repository, &["--commit", &merge[..12].to_uppercase()]);
    assert_eq!((&report["trace"]["commit"], &report["trace"]["ancestors"]), (&merge.into(), &3.into()));

    let away = repository.git(&["rev-parse", "away"]);
    let sentence = failure(&happen(repository.path(), &["--commit", &away]));
    assert_eq!(sentence, format!("happen: no commit of this history begins with `{away}`"));
    let usage = happen(repository.path(), &["--commit", "HEAD"]);
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
}

#[test]
fn a_shallow_clone_begins_where_it_was_cut() {
    let repository = TestRepository::bare(&Script::line(20)).shallow_clone(5);
    let report = report(&repository, &[]);
    assert_eq!((&report["commits"], &report["trace"]["ancestors"]), (&5.into(), &4.into()));
}

#[test]
fn two_thousand_commits() {
    let repository = TestRepository::bare(&Script::line(2_000));
    let report = report(&repository, &[]);
    assert_eq!((&report["commits"], &report["trace"]["ancestors"]), (&2_000.into(), &1_999.into()));
    assert_eq!(report["events"], 4_000);
    // Of so many ids some begin with the same digit.
    let sentence = failure(&happen(repository.path(), &["--commit", "7"]));
    assert!(sentence.starts_with("happen: several commits begin with `7`: "), "{sentence}");
}

#[test]
fn a_report_for_a_person() {
    let repository = branchy();
    let output = happen(repository.path(), &[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for part in
        ["        8  commits, the same by git\n", "  7  Ada <ada@example.org>\n", " Top\n", "events/s\n"]
    {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn what_authors_write_cannot_steer_a_terminal() {
    let mut script = Script::new();
    script.commit(Draft {
        author: b"\x1b[2JEve",
        email: b"",
        message: b"\x1b]0;title\x07 \xff",
        ..Draft::default()
    });
    let output = happen(TestRepository::with(&script).path(), &[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("?[2JEve <>") && text.contains("?]0;title? "), "{text}");
    assert!(!text.contains(|char: char| char.is_control() && char != '\n'), "{text:?}");
}

#[test]
fn what_is_no_history_is_told_in_one_sentence() {
    let folder = new_folder();
    let path = folder.path();
    let sentence = failure(&happen(path, &[]));
    assert_eq!(sentence, format!("happen: {} is not a folder of a git repository", path.display()));
    let missing = path.join("missing");
    let sentence = failure(&happen(&missing, &["--json"]));
    assert_eq!(sentence, format!("happen: there is no file or folder at {}", missing.display()));
    let empty = TestRepository::empty();
    let sentence = failure(&happen(empty.path(), &[]));
    assert!(sentence.ends_with("has no commits on its current branch"), "{sentence}");
}

/// What `happen` prints about a store, a JSON value for each line.
#[track_caller]
fn ask(store: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_happen"))
        .args(arguments)
        .arg("--json")
        .arg("--store")
        .arg(store)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    values.collect::<Result<_, _>>().unwrap()
}

/// The commits that are events in a store, each as often as there is one.
fn commits_in(store: &Path) -> Vec<String> {
    let entries = ask(store, &["tail", "-n", "1000000", "--type", "commit"]);
    let events = entries.iter().filter_map(|entry| entry["events"].as_array()).flatten();
    events.map(|event| event["payload"]["id"].as_str().unwrap().to_owned()).collect()
}

/// The report without what is another one in each run.
fn of_history(mut report: Value) -> Value {
    for field in ["seconds", "seconds_handling", "events_per_second", "events", "new_commits"] {
        report.as_object_mut().unwrap().remove(field).unwrap();
    }
    report["trace"].as_object_mut().unwrap().remove("event").unwrap();
    report
}

/// The end of the log: everything that is committed moves it.
fn end(store: &Path) -> Value {
    ask(store, &["tail", "-n", "1"])[0]["position"].clone()
}

#[test]
fn a_history_that_is_killed_in_a_store_goes_on_and_each_commit_is_handled_once() {
    const COMMITS: usize = 400;
    let repository = TestRepository::bare(&Script::line(COMMITS));
    let folder = new_folder();
    let store = folder.path().join("store");
    let arguments = ["--store", store.to_str().unwrap()];
    let mut killed = 0;
    for taken in [1, 100, 200, 300] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_happen"));
        command.arg("git").arg(repository.path()).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let told = BufReader::new(child.stderr.take().unwrap());
        for line in told.lines().map_while(Result::ok) {
            let so_far = line.strip_prefix("commits: ").and_then(|rest| rest.split(' ').next());
            if so_far.is_some_and(|so_far| so_far.parse::<usize>().unwrap() >= taken) {
                break;
            }
        }
        killed += u64::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed > 0, "each run had ended before it could be killed");

    let disturbed = report(&repository, &arguments);
    let undisturbed_store = folder.path().join("undisturbed");
    let undisturbed = report(&repository, &["--store", undisturbed_store.to_str().unwrap()]);
    assert_eq!(undisturbed["new_commits"], COMMITS);
    assert_eq!(of_history(disturbed.clone()), of_history(undisturbed));
    assert_eq!(of_history(disturbed), of_history(report(&repository, &[])), "memory says something else");
    let commits = commits_in(&store);
    assert_eq!(commits.len(), COMMITS);
    assert_eq!(commits.iter().collect::<BTreeSet<_>>().len(), COMMITS);

    // Nothing is new, and nothing is written.
    let before = end(&store);
    let again = report(&repository, &arguments);
    assert_eq!((&again["new_commits"], &again["events"]), (&0.into(), &0.into()), "{again:#}");
    assert_eq!(end(&store), before);
    let web = &ask(&store, &["verify"])[0]["web"];
    assert_eq!((&web["whole"], &web["edge"]), (&true.into(), &0.into()), "{web:#}");
}

#[test]
fn a_store_takes_the_commits_and_tags_that_are_new_and_answers_about_them() {
    let folder = new_folder();
    let store = folder.path().join("store");
    let arguments = ["--store", store.to_str().unwrap()];
    let repository = branchy();
    let first = report(&repository, &arguments);
    assert_eq!((&first["new_commits"], &first["events"]), (&8.into(), &22.into()), "{first:#}");

    let head = repository.git(&["rev-parse", "HEAD"]);
    let tree = repository.git(&["rev-parse", "HEAD^{tree}"]);
    let next = |parent: &str, subject: &str| {
        let identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"];
        repository.git(&[&identity[..], &["commit-tree", &tree, "-p", parent, "-m", subject]].concat())
    };
    let newest = next(&next(&head, "One more"), "And another");
    repository.git(&["update-ref", "refs/heads/main", &newest]);
    repository.git(&["tag", "-f", "v2", &newest]);
    let second = report(&repository, &arguments);
    assert_eq!((&second["commits"], &second["new_commits"]), (&10.into(), &2.into()), "{second:#}");
    assert_eq!((&second["events"], &second["trace"]["ancestors"]), (&6.into(), &9.into()), "{second:#}");
    assert_eq!(second["tags"][2]["commit"], newest.as_str());
    // Moved back, it is given anew, and once only.
    repository.git(&["tag", "-f", "v2", &head]);
    for events in [2, 0] {
        let moved = report(&repository, &arguments);
        assert_eq!((&moved["tags"][2]["commit"], &moved["events"]), (&head.as_str().into(), &events.into()));
    }

    let event = second["trace"]["event"].as_str().unwrap();
    let why = ask(&store, &["why", event]);
    let commits: Vec<_> = why.iter().filter(|event| event["type"] == "commit").collect();
    assert_eq!(commits.len(), 9, "{why:#?}");
    assert_eq!(why.last().unwrap()["payload"]["id"], repository.git(&["rev-parse", "HEAD~1"]));
    let author = ask(&store, &["state", "get", "author:ada@example.org"]);
    assert_eq!(author[0]["content"]["commits"], 9, "{author:#?}");
    let trace = &ask(&store, &["trace", event])[0];
    let of_it = trace["events"].as_array().unwrap().iter().find(|told| told["event"] == event).unwrap();
    let nodes: BTreeSet<_> =
        of_it["handled"].as_array().unwrap().iter().map(|flow| flow["node"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["audit", "authors"].into());
}

#[test]
fn a_store_of_another_history_is_refused_and_stays_as_it_is() {
    let folder = new_folder();
    let store = folder.path().join("store");
    let arguments = ["--store", store.to_str().unwrap()];
    let repository = branchy();
    report(&repository, &arguments);
    let before = end(&store);
    let old = repository.git(&["rev-parse", "HEAD"]);
    repository.git(&["update-ref", "refs/heads/main", "HEAD~1"]);
    let others = TestRepository::bare(&Script::line(3));
    for other in [&repository, &others] {
        let output = happen(other.path(), &arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(&format!("has the history of commit {old}, which is no part of")), "{told}");
    }
    assert_eq!(end(&store), before);
}

#[test]
fn the_report_of_a_store_tells_how_to_ask_on() {
    let folder = new_folder();
    let store = folder.path().join("my store");
    let repository = branchy();
    let output = happen(repository.path(), &["--store", store.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("8 of the commits are new to the store in '"), "{text}");
    let command = text.lines().last().unwrap().trim();
    let program = env!("CARGO_BIN_EXE_happen");
    let command = command.strip_prefix("happen ").unwrap();
    let output = Command::new("sh").args(["-c", &format!("{program} {command}")]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().lines().count(),
        7,
        "the history of the newest commit"
    );
}
