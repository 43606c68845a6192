//! The commands over a space on NATS, as people and scripts run them: by the real program, at a real server, beside a
//! process that has the nodes and after it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::disallowed_methods, reason = "processes are real, and so is the time they take")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use happen::identity::{Identity, Signer as _, TrustStore};
use happen::{BalanceOptions, Config, Context, Error, Event, Space, secs};
use happen_ed25519::KeyPair;
use happen_nats::{Connect, Nats};
use happen_testing::{NatsServer, NatsSetup};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("ledger", version = 1)]
struct Ledger {
    count: u64,
}

/// A node that grinds numbers and none else, one that waits for somebody, one that tries again and again, and one that
/// keeps nothing.
async fn build(space: &Space) {
    let mill = space.node("mill").attempts(1, secs(3_600));
    mill.on("grain", |grain: &Event, cx: &Context| {
        let Some(count) = grain.json()?.as_u64() else { return Err(Error::msg("this is no grain")) };
        cx.state::<Ledger>().set(move |ledger| Ledger { count: ledger.count + count })?;
        Ok(json!({ "ground": count }))
    });
    mill.on("u32", |_: &Event<u32>, _: &Context| {});
    space.node("office").on("ask", |_: Event, cx: Context| async move {
        cx.wait_for("answer", secs(7 * 24 * 3_600)).await?;
        Ok::<_, Error>(())
    });
    space
        .node("smith")
        .attempts(9, secs(24 * 3_600))
        .on("iron", |_: &Event, _: &Context| Err::<(), _>(Error::msg("cold")));
    space.node("clock").ephemeral().on("string", |said: &Event<String>, _: &Context| said.to_uppercase());
}

/// Does nothing in the ordinary test: it is the process that the others start.
#[test]
fn a_process_that_another_test_starts() {
    let Ok(url) = std::env::var(URL) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let space = match std::env::var(KEYS) {
            Ok(folder) => {
                let file = |name: &str| Path::new(&folder).join(name);
                let key = KeyPair::from_text(&fs::read_to_string(file("process")).unwrap()).unwrap();
                let trust = TrustStore::open(file("trust.json")).unwrap();
                Nats::at(&url).identity(Identity::new(key).trust(&trust)).open().await.unwrap()
            }
            Err(_) => Space::connect(&url).await.unwrap(),
        };
        build(&space).await;
        space.start().await.unwrap();
        let mill = space.find("mill").unwrap();
        space.schedule("nightly", "0 3 * * *", &mill, 7u32).await.unwrap();
        println!("\n{READY}");
        tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
            .await
            .unwrap()
            .unwrap();
        space.stop().await.unwrap();
    });
}

struct Process(Child);

impl Process {
    fn start(url: &str) -> Self {
        Self::start_with(url, None)
    }

    /// One that signs, with keys from a folder.
    fn start_with(url: &str, keys: Option<&Path>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.envs(keys.map(|keys| (KEYS, keys)));
        command.env(URL, url).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.args(["--exact", "a_process_that_another_test_starts", "--nocapture", "--test-threads=1"]);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == READY), "the process ended");
        // What it prints later goes nowhere, and is no reason for it to end.
        thread::spawn(move || lines.for_each(drop));
        Self(child)
    }

    /// Has it say that it goes.
    fn stop(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

struct Shop {
    url: String,
    _server: NatsServer,
}

impl Shop {
    fn new() -> Self {
        let server = NatsServer::start();
        Self { url: format!("{}/shop", server.url()), _server: server }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        happen(&self.url, arguments)
    }

    #[track_caller]
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn lines(&self, arguments: &[&str]) -> Vec<Json> {
        let text = self.text(&[arguments, &["--json"]].concat());
        serde_json::Deserializer::from_str(&text).into_iter().map(|value| value.unwrap()).collect()
    }

    /// Sends an event and says which.
    #[track_caller]
    fn send(&self, node: &str, event_type: &str, payload: &str) -> String {
        let told = self.lines(&["send", node, event_type, payload]);
        assert_eq!(told[0]["became"], "kept");
        told[0]["event"].as_str().unwrap().to_owned()
    }

    /// The line about a node.
    #[track_caller]
    fn node(&self, name: &str) -> Json {
        let nodes = self.lines(&["nodes"]);
        nodes.into_iter().find(|node| node["node"] == name).unwrap_or_default()
    }

    #[track_caller]
    fn until(&self, mut holds: impl FnMut() -> bool) {
        for _ in 0..1000 {
            if holds() {
                return;
            }
        }
        panic!("this takes too long: {}", self.text(&["ps"]));
    }

    /// Three flows: one that failed for good, one that waits, one that is tried again tomorrow.
    #[track_caller]
    fn flows(&self) -> [String; 3] {
        let sent = [
            self.send("mill", "grain", "\"stones\""),
            self.send("office", "ask", "1"),
            self.send("smith", "iron", "1"),
        ];
        self.until(|| self.lines(&["dead", "ls"]).len() == 1 && self.retrying() == 1);
        self.until(|| {
            self.lines(&["flows", "ls", "--node", "office"]).iter().any(|flow| flow["stands"] == "waiting")
        });
        sent
    }

    fn retrying(&self) -> usize {
        self.lines(&["flows", "ls"]).iter().filter(|flow| flow["stands"] == "retrying").count()
    }
}

fn happen(url: &str, arguments: &[&str]) -> Output {
    command(url, arguments).output().unwrap()
}

fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_happen"));
    command.args(arguments).stdin(Stdio::null()).env_clear().env("LC_ALL", "C.UTF-8");
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path))).env("HAPPEN_URL", url);
    command
}

/// The one sentence of a command that failed with this exit code.
#[track_caller]
fn failure(output: &Output, code: i32) -> String {
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let sentence = told.strip_prefix("happen: ").and_then(|told| told.strip_suffix('\n'));
    sentence.unwrap_or_else(|| panic!("{told:?}")).to_owned()
}

#[test]
fn every_command_that_reads_says_the_same_beside_a_process_and_after_it() {
    let shop = Shop::new();
    let process = Process::start(&shop.url);
    let [dead, waiting, _] = shop.flows();
    shop.send("mill", "grain", "7");
    shop.until(|| shop.run(&["state", "get", "mill"]).status.success());
    let reading: [&[&str]; 18] = [
        &["tail", "-n", "1000"],
        &["tail", "--json", "--type", "grain"],
        &["ps"],
        &["trace", &dead],
        &["why", &dead[..23]],
        &["why", "mill"],
        &["impact", &dead],
        &["flows", "ls"],
        &["flows", "show", &waiting],
        &["dead", "ls"],
        &["dead", "show", &dead],
        &["schedule", "ls"],
        &["verify"],
        &["store", "info"],
        &["store", "verify"],
        &["state", "ls"],
        &["state", "get", "mill"],
        &["state", "history", "mill"],
    ];
    let beside: Vec<_> = reading.iter().map(|arguments| shop.text(arguments)).collect();
    assert!(beside.iter().filter(|text| !text.is_empty()).count() >= 17, "{beside:?}");
    assert_eq!(shop.lines(&["state", "get", "mill"])[0]["content"], json!({ "count": 7 }));
    process.stop();
    for (arguments, beside) in reading.iter().zip(&beside) {
        // The end of a process is a commit of its own, and times that are to come get nearer.
        if !matches!(arguments[0], "store" | "flows") {
            assert_eq!(&shop.text(arguments), beside, "{arguments:?}");
        }
    }
    assert!(shop.text(&["store", "info"]).starts_with(&format!("address      {}\n", shop.url)));

    // What was read of the log is a store of its own.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let copy = copy.to_str().unwrap();
    shop.text(&["store", "backup", copy]);
    assert_eq!(shop.text(&["dead", "ls", "--store", copy]), shop.text(&["dead", "ls"]));
}

#[test]
fn an_event_is_taken_by_the_process_that_runs_and_kept_where_none_does() {
    let shop = Shop::new();
    let process = Process::start(&shop.url);
    let told = shop.text(&["send", "mill", "grain", "1"]);
    assert!(told.ends_with("  kept for its process\n"), "{told}");
    shop.until(|| shop.text(&["state", "get", "mill"]).contains("\"count\": 1"));
    let told = shop.lines(&["send", "mill", "grain", "2", "--reply"]);
    assert_eq!((&told[0]["became"], &told[0]["reply"]), (&"replied".into(), &json!({ "ground": 2 })));
    // One that keeps nothing is reached too.
    assert_eq!(shop.text(&["send", "clock", "string", "\"tick\"", "--reply"]), "\"TICK\"\n");
    assert!(shop.text(&["send", "clock", "string", "\"tick\""]).ends_with("  taken\n"));
    process.stop();

    let told = failure(&shop.run(&["send", "mill", "grain", "3", "--reply"]), 1);
    assert!(told.starts_with("no process that has node `mill` is there"), "{told}");
    let third = shop.send("mill", "grain", "3");
    assert_eq!(shop.node("mill")["kept_first"], third);
    // For a node that nobody ever had, too.
    shop.send("barn", "hay", "1");
    assert_eq!(shop.lines(&["ps", "--node", "mill"])[0]["kept"], 1);
    let process = Process::start(&shop.url);
    shop.until(|| shop.text(&["state", "get", "mill"]).contains("\"count\": 6"));
    assert_eq!(shop.node("mill")["kept"], 0);
    assert_eq!(shop.node("barn")["kept"], 1);
    assert!(shop.run(&["verify"]).status.success());
    process.stop();
}

#[test]
fn what_a_process_has_to_know_of_is_done_by_that_process() {
    let shop = Shop::new();
    let process = Process::start(&shop.url);
    let [dead, waiting, retrying] = shop.flows();
    assert!(shop.text(&["flows", "retry", &retrying]).ends_with("  due\n"));
    assert!(shop.text(&["flows", "cancel", &waiting]).ends_with("  cancelled\n"));
    assert_eq!(shop.text(&["flows", "ls", "--node", "office"]), "");
    failure(&shop.run(&["flows", "cancel", &waiting]), 4);

    let set = |revision, count| {
        let content = format!("{{ \"count\": {count} }}");
        shop.run(&["state", "set", "mill/ledger", &content, "--revision", revision, "--shape", "1"])
    };
    assert!(set("0", 40).status.success());
    assert!(failure(&set("0", 50), 1).contains("has revision 1 and not 0"));
    // The live value is the one that was changed.
    let told = shop.lines(&["send", "mill", "grain", "2", "--reply"]);
    assert_eq!(told[0]["reply"], json!({ "ground": 2 }));
    assert_eq!(shop.text(&["state", "get", "mill"]), "{\n  \"count\": 42\n}\n");

    assert!(shop.text(&["schedule", "pause", "nightly"]).contains("nightly"));
    assert_eq!(shop.lines(&["schedule", "trigger", "nightly"])[0]["events"].as_array().unwrap().len(), 1);
    assert!(shop.text(&["schedule", "resume", "nightly"]).contains("nightly"));
    let from = ["schedule", "backfill", "nightly", "--from", "3d"];
    assert!(shop.lines(&from)[0]["events"].as_array().unwrap().len() >= 2);
    shop.text(&["schedule", "rm", "nightly"]);
    failure(&shop.run(&["schedule", "trigger", "nightly"]), 4);

    for arguments in [&["dead", "redrive", &dead][..], &["dead", "redrive", "--all"]] {
        assert!(shop.text(arguments).contains("begun"), "{arguments:?}");
        // Once more in vain.
        shop.until(|| shop.lines(&["dead", "ls"]).len() == 1);
    }
    let edited = shop.text(&["dead", "redrive", &dead, "--payload", "8"]);
    assert!(edited.contains("begun as "), "{edited}");
    shop.until(|| shop.text(&["state", "get", "mill"]).contains("\"count\": 50"));
    assert_eq!(shop.text(&["dead", "ls"]), "");
    assert!(shop.run(&["verify"]).status.success());
    process.stop();
}

#[test]
fn what_no_process_has_to_know_of_is_done_to_the_log() {
    let shop = Shop::new();
    let process = Process::start(&shop.url);
    let [dead, waiting, retrying] = shop.flows();
    failure(&shop.run(&["flows", "cancel", &dead]), 4);
    process.stop();
    let told = failure(&shop.run(&["schedule", "trigger", "nightly"]), 1);
    assert!(told.contains("start the space"), "{told}");
    let changes: [&[&str]; 6] = [
        &["flows", "retry", &retrying],
        &["flows", "cancel", &waiting],
        &["schedule", "pause", "nightly"],
        &["state", "set", "mill/ledger", "{ \"count\": 40 }", "--revision", "0", "--shape", "1"],
        &["dead", "redrive", &dead],
        &["schedule", "rm", "nightly"],
    ];
    for arguments in changes {
        let told = shop.run(arguments);
        assert!(told.status.success(), "{arguments:?}: {told:?}");
    }
    assert_eq!(shop.text(&["schedule", "ls"]), "");
    assert_eq!(shop.text(&["state", "get", "mill"]), "{\n  \"count\": 40\n}\n");
    let _process = Process::start(&shop.url);
    // Once more in vain.
    shop.until(|| shop.lines(&["dead", "ls"]).len() == 1 && shop.retrying() == 1);
    assert!(shop.text(&["flows", "ls", "--node", "office"]).is_empty());
    // A letter is in nobody's memory.
    assert!(shop.text(&["dead", "drop", &dead]).contains("dropped"));
    shop.send("mill", "grain", "2");
    shop.until(|| shop.text(&["state", "get", "mill"]).contains("\"count\": 42"));
    assert!(shop.text(&["store", "prune", "--before", "0s", "--dry-run"]).contains("would forget"));
    assert!(shop.run(&["verify"]).status.success());
}

/// Keys for a space that signs, in files: the process's own, an operator's, and that of somebody who may only send.
fn keys() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut trusted = Vec::new();
    for (name, nodes, operates) in [("process", "*", ""), ("operator", "", "mill"), ("clerk", "", "")] {
        let key = KeyPair::generate().unwrap();
        fs::write(folder.path().join(name), key.seed().reveal()).unwrap();
        let operates = Some(operates).filter(|node| !node.is_empty());
        trusted.push(json!({
            "key": key.public_key().to_string(), "nodes": [nodes], "operates": Vec::from_iter(operates),
        }));
    }
    fs::write(folder.path().join("trust.json"), json!({ "keys": trusted }).to_string()).unwrap();
    folder
}

#[test]
fn a_process_that_signs_does_only_what_an_operator_asks() {
    let (shop, keys) = (Shop::new(), keys());
    let process = Process::start_with(&shop.url, Some(keys.path()));
    let file = |name: &str| keys.path().join(name).to_str().unwrap().to_owned();
    let trust = file("trust.json");
    let by = |name: &str, arguments: &[&str]| {
        shop.run(&[arguments, &["--sign-with", &file(name), "--trust", &trust]].concat())
    };
    let set = ["state", "set", "mill/ledger", "{ \"count\": 40 }", "--revision", "0", "--shape", "1"];
    let told = failure(&shop.run(&set), 1);
    assert!(told.contains("not signed"), "{told}");
    let told = failure(&by("clerk", &set), 1);
    assert!(told.contains("may not change anything of node `mill` by hand"), "{told}");
    // Everybody who is trusted to may send.
    let told = by("clerk", &["send", "clock", "string", "\"tick\"", "--reply"]);
    assert_eq!(String::from_utf8_lossy(&told.stdout), "\"TICK\"\n");
    assert!(by("operator", &set).status.success());
    shop.send("office", "ask", "1");
    shop.until(|| shop.lines(&["flows", "ls"]).iter().any(|flow| flow["stands"] == "waiting"));
    let asked = shop.lines(&["flows", "ls"])[0]["event"].as_str().unwrap().to_owned();
    let told = failure(&by("operator", &["flows", "cancel", &asked]), 1);
    assert!(told.contains("may not change anything of node `office` by hand"), "{told}");
    // Figures are told of the nodes that somebody operates.
    let told = by("operator", &["balance", "--json"]);
    let told: Json = serde_json::from_slice(&told.stdout).unwrap();
    let nodes: Vec<_> =
        told["nodes"].as_array().unwrap().iter().map(|node| (&node["node"], &node["place"])).collect();
    assert!(nodes.contains(&(&json!("mill"), &json!("here"))), "{nodes:?}");
    assert!(!nodes.contains(&(&json!("office"), &json!("here"))), "{nodes:?}");
    for output in [by("clerk", &["balance"]), shop.run(&["balance"])] {
        assert!(failure(&output, 1).starts_with("1 of 1 processes did not tell"));
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(told.contains("  did not tell: "), "{told}");
    }
    // The environment says it as well.
    let mut command =
        command(&shop.url, &["state", "set", "mill/ledger", "{ \"count\": 41 }", "--revision", "1"]);
    command.env("HAPPEN_KEY", file("operator")).env("HAPPEN_TRUST", &trust);
    assert!(command.output().unwrap().status.success());
    let told = failure(&shop.run(&["flows", "cancel", &asked, "--sign-with", &file("operator")]), 2);
    assert!(told.contains("--trust"), "{told}");
    let secret = fs::read_to_string(file("operator")).unwrap();
    fs::write(file("bad"), &secret[1..]).unwrap();
    let told = failure(&by("bad", &["flows", "cancel", &asked]), 1);
    assert!(told.contains("/bad cannot be used") && !told.contains(&secret[1..]), "{told}");
    process.stop();
}

#[test]
fn a_server_that_asks_who_comes_is_reached_with_files_and_variables() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let authority = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    fs::write(file("ca.pem"), params.self_signed(&authority).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, authority);
    for (name, at) in [("server", vec!["127.0.0.1".to_owned()]), ("client", Vec::new())] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(at).unwrap();
        fs::write(file(&format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        fs::write(file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let user = KeyPair::generate().unwrap();
    fs::write(file("user.nk"), user.seed().reveal()).unwrap();
    let server = NatsServer::with(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}\n\
         authorization {{ users: [{{ nkey: {} }}, {{ user: ada, password: \"s3 cret\" }}] }}",
        file("server.pem"),
        file("server.key"),
        file("ca.pem"),
        user.public_key()
    ));
    let url = format!("{}/shop", server.url());
    let [ca, certificate, key] = ["ca.pem", "client.pem", "client.key"].map(file);
    let files = ["--ca", &ca, "--cert", &certificate, "--cert-key", &key];
    let orders = ["demo", "--orders", ORDERS, "--json", "--store", &url, "--nkey", &file("user.nk")];
    let mut placed = command("", &[&orders[..], &files].concat());
    let told = placed.env("HAPPEN_NATS_PREFIX", "acme.prod").output().unwrap();
    assert!(told.status.success(), "{told:?}");
    let nkey = file("user.nk");
    let listing = [&["state", "ls", "--nkey", &nkey], &files[..]].concat();
    let told = happen(&url, &[&listing[..], &["--prefix", "acme.prod"]].concat());
    assert!(String::from_utf8_lossy(&told.stdout).contains("state/payments/"), "{told:?}");
    // Under another prefix there is another space of the same name, or none.
    let told = failure(&happen(&url, &listing), 1);
    assert!(told.starts_with("there is no space at "), "{told}");

    let mut by_variables = command(&url, &["ps"]);
    by_variables
        .env("HAPPEN_NATS_CA", &ca)
        .env("HAPPEN_NATS_CERT", &certificate)
        .env("HAPPEN_NATS_KEY", &key);
    by_variables.env("HAPPEN_NATS_PREFIX", "acme.prod");
    by_variables.env("HAPPEN_NATS_USER", "ada").env("HAPPEN_NATS_PASSWORD", "s3 cret");
    let told = by_variables.output().unwrap();
    assert!(told.status.success(), "{told:?}");
    let told = failure(&by_variables.env("HAPPEN_NATS_PASSWORD", "wr0ng").output().unwrap(), 1);
    assert!(told.contains("authorization violation") && !told.contains("wr0ng"), "{told}");
    let told = failure(&by_variables.env("HAPPEN_NATS_TOKEN", "t").output().unwrap(), 2);
    assert!(told.contains("HAPPEN_NATS_USER") && told.contains("HAPPEN_NATS_TOKEN"), "{told}");
    let told = failure(&happen(&url, &["ps", "--ca", &file("user.nk")]), 1);
    assert!(told.contains("user.nk should have a certificate in PEM"), "{told}");
    let told = failure(&happen(&url, &["ps", "--creds", &file("none.creds")]), 1);
    assert!(told.contains("none.creds"), "{told}");
    let told = failure(&happen(&url, &["ps"]), 1);
    assert!(told.starts_with("no server lets this program in at nats://127.0.0.1"), "{told}");
}

/// Every command and what it is given, by its name; none for those that need no space, or one in several regions.
fn all_commands(of: &Everything) -> BTreeMap<&'static str, Option<Vec<&str>>> {
    let Everything { dead, given_up, waiting, retrying, copy, backup, repository } = of;
    let demo = vec!["--orders", ORDERS];
    let set = vec!["mill/ledger", "{ \"count\": 40 }", "--revision", "2"];
    BTreeMap::from([
        ("demo", Some(demo)),
        ("git", Some(vec![repository.as_str()])),
        ("tail", Some(vec!["-n", "3"])),
        ("ps", Some(vec![])),
        ("nodes", Some(vec![])),
        ("balance", Some(vec![])),
        ("region show", Some(vec![])),
        ("region take-over", Some(vec![])),
        ("region follow", None),
        ("trace", Some(vec![dead])),
        ("why", Some(vec!["mill"])),
        ("impact", Some(vec![dead])),
        ("send", Some(vec!["clock", "string", "\"tick\""])),
        ("flows ls", Some(vec![])),
        ("flows show", Some(vec![waiting])),
        ("flows cancel", Some(vec![waiting])),
        ("flows retry", Some(vec![retrying])),
        ("dead ls", Some(vec![])),
        ("dead show", Some(vec![dead])),
        ("dead redrive", Some(vec![dead])),
        ("dead drop", Some(vec![given_up])),
        ("schedule ls", Some(vec![])),
        ("schedule pause", Some(vec!["nightly"])),
        ("schedule resume", Some(vec!["nightly"])),
        ("schedule rm", Some(vec!["nightly"])),
        ("schedule trigger", Some(vec!["nightly"])),
        ("schedule backfill", Some(vec!["nightly", "--from", "2d"])),
        ("state ls", Some(vec![])),
        ("state get", Some(vec!["mill"])),
        ("state history", Some(vec!["mill"])),
        ("state diff", Some(vec!["mill", "1", "2"])),
        ("state set", Some(set)),
        ("store info", Some(vec![])),
        ("store backup", Some(vec![copy])),
        ("store restore", Some(vec![backup])),
        ("store prune", Some(vec!["--before", "30d"])),
        ("store verify", Some(vec![])),
        ("verify", Some(vec![])),
        ("doctor", Some(vec![])),
        ("dev", None),
        ("completion", None),
    ])
}

/// What commands are given that need something to be there.
struct Everything {
    dead: String,
    given_up: String,
    waiting: String,
    retrying: String,
    copy: String,
    backup: String,
    repository: String,
}

/// The names of all commands, as the program's own help has them.
fn commands(of: &[&str]) -> Vec<String> {
    let help = String::from_utf8(happen("", &[of, &["--help"]].concat()).stdout).unwrap();
    let Some((_, listed)) = help.split_once("Commands:\n") else { return vec![of.join(" ")] };
    let names = listed.lines().take_while(|line| !line.is_empty());
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.flat_map(|name| commands(&[of, &[name]].concat())).collect()
}

#[test]
fn every_command_works_in_a_space_on_nats() {
    // By either name of the option, for a person may have learned one or the other.
    for option in ["--url", "--store"] {
        let shop = Shop::new();
        let process = Process::start(&shop.url);
        for ground in ["2", "3"] {
            assert!(shop.run(&["send", "mill", "grain", ground, "--reply"]).status.success());
        }
        let [dead, waiting, retrying] = shop.flows();
        let given_up = shop.send("mill", "grain", "\"sand\"");
        shop.until(|| shop.lines(&["dead", "ls"]).len() == 2);
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        shop.text(&["store", "backup", &file("backup")]);
        let git = |arguments: &[&str]| {
            let known = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-C", &file("")];
            assert!(Command::new("git").args(known).args(arguments).status().unwrap().success());
        };
        git(&["init", "-q", "app"]);
        git(&["-C", "app", "commit", "-q", "--allow-empty", "-m", "Begin"]);
        let everything = Everything {
            dead,
            given_up,
            waiting,
            retrying,
            copy: file("copy"),
            backup: file("backup"),
            repository: file("app"),
        };
        let all = all_commands(&everything);
        let listed = commands(&[]);
        assert!(listed.len() >= 37, "{listed:?}");
        let known: Vec<_> = all.keys().map(|name| (*name).to_owned()).collect();
        let mut sorted = listed.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, known, "a command that is new has to work over NATS, too");
        // In the order of the help, but for what takes away what others need.
        let takes_away = |name: &&String| *name == "schedule rm";
        for name in listed.iter().filter(|name| !takes_away(name)).chain(listed.iter().filter(takes_away)) {
            let Some(given) = &all[name.as_str()] else { continue };
            let url = match name.as_str() {
                // They make a space of their own.
                "demo" | "git" | "store restore" => {
                    shop.url.replace("/shop", &format!("/{}", name.replace(' ', "-")))
                }
                _ => shop.url.clone(),
            };
            let names: Vec<_> = name.split(' ').collect();
            let output = happen("", &[&names[..], given, &[option, &url]].concat());
            assert!(output.status.success(), "{name}: {output:?}");
            assert!(!output.stdout.is_empty(), "{name} told nothing");
        }
        for space in ["demo", "git", "store-restore"] {
            let url = shop.url.replace("/shop", &format!("/{space}"));
            let told = happen(&url, &["verify"]);
            assert!(told.status.success(), "{space}: {told:?}");
        }
        process.stop();
    }
}

#[test]
fn a_region_takes_over_by_hand() {
    let mut east = NatsSetup::new().region("east", &[]).start();
    let west = NatsSetup::new().region("west", &[east.leaf_port()]).start();
    let [in_east, in_west] = [&east, &west].map(|server| format!("{}/shop", server.url()));
    let told = failure(&happen(&in_west, &["region", "show"]), 4);
    assert!(told.contains("these servers have no log"), "{told}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let written = Nats::at(&*in_east).open().await.unwrap();
        written.start().await.unwrap();
        let followed = Nats::at(&*in_west).mirror_of("east").open().await.unwrap();
        followed.start().await.unwrap();
        followed.stop().await.unwrap();
        written.stop().await.unwrap();
    });
    let show = |url: &str| {
        let output = happen(url, &["region", "show", "--json"]);
        serde_json::from_slice::<Json>(&output.stdout).unwrap()
    };
    // What a doctor says of the region of an address: the verdict, the words, and what to do.
    let doctor = |url: &str| {
        let output = happen(url, &["doctor", "--quick", "--json"]);
        let told = serde_json::from_slice::<Json>(&output.stdout).unwrap();
        let checks = told["checks"].as_array().unwrap();
        let check =
            checks.iter().find(|check| check["check"] == "region").unwrap_or_else(|| panic!("{told}"));
        let text = |name: &str| check[name].as_str().unwrap().to_owned();
        (format!("{} {}", text("verdict"), text("found")), text("advice"))
    };
    assert_eq!(doctor(&in_east).0, "ok these servers write the log, and took it over from nobody");
    assert_eq!(
        doctor(&in_west).0,
        "ok these servers follow region `east`, which writes the log and answers; 0 messages behind it"
    );
    assert_eq!(show(&in_east)["stands"], "written");
    assert_eq!((&show(&in_west)["stands"], &show(&in_west)["of"]), (&json!("mirrored"), &json!("east")));
    let told = failure(&happen(&in_west, &["region", "take-over", "--lost"]), 1);
    assert!(told.contains("region `east` answers"), "{told}");
    east.kill();
    let told = failure(&happen(&in_west, &["region", "take-over"]), 1);
    assert!(told.contains("to go on without what it has"), "{told}");
    let (found, advice) = doctor(&in_west);
    assert!(
        found.starts_with(
            "warn these servers follow region `east`, which writes the log and does not answer; "
        ),
        "{found}"
    );
    assert!(advice.contains("`happen region take-over --lost`"), "{advice}");
    let output = happen(&in_west, &["region", "take-over", "--lost"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(show(&in_west)["stands"], "written");
    let (found, advice) = doctor(&in_west);
    assert!(
        found
            .starts_with("warn these servers write the log in place of region `east`, which does not answer"),
        "{found}"
    );
    assert!(advice.contains("it seals the log in `east`"), "{advice}");
    let told = failure(&happen(&in_west, &["region", "follow", "east"]), 1);
    assert!(told.contains("ask region `east`"), "{told}");
    // It comes back, is told by whoever opens the log, and then takes nothing more.
    east.restart();
    let mut last = String::new();
    for _ in 0..100 {
        last = doctor(&in_west).0;
        if last
            == "ok these servers write the log in place of region `east`, which is sealed and takes nothing more"
        {
            break;
        }
        assert!(
            last.contains("does not answer") || last.starts_with("fail ") && last.ends_with("there is lost"),
            "{last}"
        );
    }
    assert!(last.starts_with("ok "), "{last}");
    let (found, advice) = doctor(&in_east);
    assert!(found.starts_with("fail sealed at message "), "{found}");
    assert!(advice.contains("`happen region follow`"), "{advice}");
    assert_eq!(show(&in_east)["stands"], "sealed");
    let told = failure(&happen(&in_west, &["region", "follow", "east"]), 1);
    assert!(told.contains("region `east` does not write the log"), "{told}");
    let output = happen(&in_east, &["region", "follow", "west", "--json"]);
    let followed: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(followed["given_up"], 0, "{followed}");
    assert_eq!((&show(&in_east)["stands"], &show(&in_east)["of"]), (&json!("mirrored"), &json!("west")));
    let output = happen(&in_east, &["region", "follow", "west"]);
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("follows region west"));
    let told = failure(&happen("", &["region", "show", "--store", "./folder"]), 2);
    assert!(told.contains("regions are those of NATS servers"), "{told}");
}

#[test]
fn a_backup_of_a_folder_or_a_space_becomes_a_space_that_goes_on() {
    let shop = Shop::new();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let process = Process::start(&shop.url);
    let [dead, ..] = shop.flows();
    shop.send("mill", "grain", "7");
    shop.until(|| shop.run(&["state", "get", "mill"]).status.success());
    shop.text(&["store", "backup", &file("copy")]);
    process.stop();
    let other = shop.url.replace("/shop", "/other");
    let told = happen(&other, &["store", "restore", &file("copy")]);
    assert!(told.status.success(), "{told:?}");
    assert_eq!(happen(&other, &["dead", "ls"]).stdout, shop.run(&["dead", "ls"]).stdout);
    let told = failure(&happen(&other, &["store", "restore", &file("copy")]), 1);
    assert!(told.contains("there is a space `other` on this server already"), "{told}");
    let told = failure(&happen(&other, &["store", "restore", &file("none")]), 1);
    assert!(told.contains("there is no folder"), "{told}");

    // It goes on where the backup was made.
    let process = Process::start(&other);
    let told = happen(&other, &["send", "mill", "grain", "3", "--reply"]);
    assert!(told.status.success(), "{told:?}");
    assert!(
        String::from_utf8_lossy(&happen(&other, &["state", "get", "mill"]).stdout).contains("\"count\": 10")
    );
    let told = happen(&other, &["dead", "redrive", &dead, "--payload", "5"]);
    assert!(told.status.success(), "{told:?}");
    let count = || String::from_utf8_lossy(&happen(&other, &["state", "get", "mill"]).stdout).into_owned();
    shop.until(|| count().contains("\"count\": 15"));
    process.stop();
    assert!(happen(&other, &["verify"]).status.success());
    // And back into a folder.
    assert!(happen(&other, &["store", "backup", &file("back")]).status.success());
    assert_eq!(happen(&file("back"), &["state", "get", "mill"]).stdout, count().as_bytes());
}

#[test]
fn a_process_that_is_not_heard_of_has_ended_with_a_change_of_its_nodes() {
    let shop = Shop::new();
    let process = Process::start(&shop.url);
    let [_, waiting, _] = shop.flows();
    process.signal("-STOP");
    shop.until(|| shop.node("office")["stands"] == "silent");
    assert!(shop.text(&["flows", "cancel", &waiting]).ends_with("  cancelled\n"));
    process.signal("-CONT");
    assert_eq!(shop.node("office")["stands"], "gone");
    let kept = shop.send("mill", "grain", "7");
    let heard = || shop.lines(&["nodes"]).iter().any(|node| node["stands"] == "runs");
    shop.until(|| !heard());
    assert_eq!(shop.node("mill")["kept_first"], kept, "a process that has ended took an event");
    let _process = Process::start(&shop.url);
    shop.until(|| shop.text(&["state", "get", "mill"]).contains("\"count\": 7"));
    assert!(shop.run(&["verify"]).status.success());
}

#[test]
fn nodes_are_told_over_all_processes() {
    let shop = Shop::new();
    let process = Process::start(&shop.url);
    let mill = shop.node("mill");
    assert_eq!((&mill["stands"], &mill["durable"]), (&"runs".into(), &true.into()));
    assert_eq!(mill["handles"], json!(["grain", "u32"]));
    let clock = shop.node("clock");
    assert_eq!(
        (&clock["stands"], &clock["durable"], &clock["process"]),
        (&"runs".into(), &false.into(), &mill["process"])
    );
    let told = shop.text(&["nodes"]);
    assert!(told.lines().all(|line| line.chars().count() <= 80 && line.contains("  runs")), "{told}");
    process.stop();
    assert_eq!(shop.node("mill")["stands"], "gone");
    assert_eq!(shop.node("clock"), Json::Null);
    drop(Process::start(&shop.url));
    assert_eq!(shop.node("mill")["stands"], "silent");
}

#[test]
fn how_nodes_keep_up_is_told_over_all_processes() {
    let shop = Shop::new();
    let process = Process::start(&shop.url);
    let mill = shop.node("mill")["process"].as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // A second process, with a node that keeps nothing: of what waits there no log says anything.
    let barn = runtime.block_on(async {
        let config = Config { balance: Some(BalanceOptions::default()), drain_ms: 1, ..Config::default() };
        let barn = Nats::at(&shop.url).config(config).member("barn").open().await.unwrap();
        barn.node("hay").ephemeral().serial().on("load", |_: Event, _: Context| std::future::pending::<()>());
        barn.node("rats").on("grain", |_: &Event, _: &Context| {});
        barn.start().await.unwrap();
        barn.find("rats").unwrap().stop();
        for load in 0..5 {
            barn.send("hay", Event::new("load", json!(load))).await.unwrap();
        }
        barn.send("rats", Event::new("grain", json!(1))).await.unwrap();
        barn
    });
    let told = || shop.lines(&["balance"]).remove(0);
    let node = |told: &Json, name: &str| {
        let nodes = told["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["node"] == name).cloned().unwrap_or_default()
    };
    shop.until(|| !told()["findings"].as_array().unwrap().is_empty());
    let all = told();
    assert_eq!(
        (&all["findings"][0]["event"], &all["findings"][0]["process"]),
        (&json!("node.down"), &json!("barn"))
    );
    assert_eq!(all["findings"][0]["nodes"], json!(["rats"]));
    let hay = node(&all, "hay");
    assert_eq!((&hay["process"], &hay["waiting"], &hay["active"]), (&json!("barn"), &json!(4), &json!(1)));
    // What only its process counts.
    assert_eq!(
        (&node(&all, "smith")["process"], &node(&all, "smith")["place"]),
        (&json!(mill), &json!("here"))
    );
    assert_eq!(all["nodes_len"], 6);
    let processes: BTreeMap<_, _> = all["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|told| (told["process"].as_str().unwrap(), (told["is_watched"].clone(), told["error"].clone())))
        .collect();
    assert_eq!(
        processes,
        BTreeMap::from([("barn", (json!(true), Json::Null)), (&*mill, (json!(false), Json::Null))])
    );
    let text = shop.text(&["balance"]);
    assert!(
        text.starts_with("node.down  node-failure  for ") && text.contains("  by barn  rats\n"),
        "{text}"
    );
    let line = text.lines().find(|line| line.starts_with("hay ")).unwrap();
    assert!(line.contains("  4  ") && line.ends_with("  barn"), "{line}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert_eq!(
        shop.text(&["balance", "--node", "mill"]).lines().last().unwrap().split_whitespace().next(),
        Some("mill")
    );
    failure(&shop.run(&["balance", "--node", "stable"]), 4);

    // One of which nothing is heard is named, and its nodes are shown as the log has them.
    process.signal("-STOP");
    let output = shop.run(&["balance", "--json"]);
    assert!(failure(&output, 1).starts_with("1 of 2 processes did not tell"), "{output:?}");
    let all: Json = serde_json::from_slice(&output.stdout).unwrap();
    let silent = all["processes"].as_array().unwrap().iter().find(|told| told["process"] != "barn").unwrap();
    assert_eq!(silent["error"]["code"], "closed");
    assert_eq!(
        (&node(&all, "mill")["process"], &node(&all, "mill")["is_taken"]),
        (&Json::Null, &json!(false))
    );
    assert_eq!(node(&all, "hay")["waiting"], 4);
    let text = String::from_utf8(shop.run(&["balance"]).stdout).unwrap();
    assert!(
        text.lines().next().unwrap().contains("  did not tell: it has `mill`, `office`, `smith`, "),
        "{text}"
    );
    process.signal("-CONT");
    shop.until(|| shop.run(&["balance"]).status.success());
    process.stop();
    let all = told();
    assert_eq!(all["processes"].as_array().unwrap().len(), 1, "one that said that it goes is not missed");
    assert_eq!(
        (&node(&all, "mill")["process"], &node(&all, "mill")["is_taken"]),
        (&Json::Null, &json!(false))
    );
    // What hangs is given up.
    drop(runtime.block_on(barn.stop()));
}

#[test]
fn a_doctor_looks_at_server_log_and_processes() {
    let monitor = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = NatsServer::with(&format!("http: \"{monitor}\""));
    let shop = Shop { url: format!("{}/shop", server.url()), _server: server };
    let process = Process::start(&shop.url);
    shop.send("mill", "grain", "1");
    shop.until(|| shop.node("mill")["kept"] == 0);
    let of = |arguments: &[&str]| {
        let told = shop.lines(&[&["doctor"], arguments].concat()).remove(0);
        assert_eq!(told["folder"], shop.url);
        let checks = told["checks"].as_array().unwrap().clone();
        move |name: &str| {
            let check =
                checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("{name}"));
            format!("{} {}", check["verdict"].as_str().unwrap(), check["found"].as_str().unwrap())
        }
    };
    let monitor = format!("http://{monitor}");
    let found = of(&["--monitor", &monitor]);
    assert!(found("server").starts_with("ok alone 2."), "{}", found("server"));
    assert_eq!(found("jetstream"), "ok on");
    assert!(found("stream").starts_with("ok happen_shop, "), "{}", found("stream"));
    assert!(found("replicas").starts_with("ok 1 of 1 up to date"), "{}", found("replicas"));
    assert!(found("copy").starts_with("ok none yet"), "{}", found("copy"));
    assert_eq!(found("sync"), "ok alone syncs every write");
    assert_eq!(found("refused"), "ok no message of the log was refused");
    assert_eq!(found("processes"), "ok 1 there, with 3 durable nodes");
    assert_eq!(found("kept events"), "ok none");
    assert!(found("integrity").starts_with("ok "), "{}", found("integrity"));
    assert!(found("last commit").starts_with("ok "), "{}", found("last commit"));
    // Messages that are none of Happen's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(shop.url.trim_end_matches("/shop")).await.unwrap();
        client.publish("happen.shop.log", "rubbish".into()).await.unwrap();
        client.flush().await.unwrap();
    });
    drop(process);
    let found = of(&["--quick"]);
    assert!(found("sync").starts_with("warn not known"), "{}", found("sync"));
    assert!(found("refused").starts_with("warn 1 message "), "{}", found("refused"));
    assert!(
        found("processes")
            .starts_with("warn none with durable nodes is there; nothing is heard of that with `mill`")
    );
    let found = of(&["--quick", "--monitor", "http://127.0.0.1:9"]);
    assert!(found("sync").starts_with("warn http://127.0.0.1:9 did not tell"), "{}", found("sync"));
}

#[test]
fn a_server_that_syncs_late_or_has_no_jetstream_is_told() {
    let shop = Shop::new();
    let told = failure(&shop.run(&["doctor"]), 1);
    assert_eq!(told, "1 check failed; do what is said there");
    let folder = tempfile::tempdir().unwrap();
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (port, config) = (port(), folder.path().join("server.conf"));
    fs::write(&config, format!("listen: \"127.0.0.1:{port}\"\n")).unwrap();
    let mut server = Command::new(happen_testing::nats_server_program());
    let mut server = server.arg("-c").arg(&config).stderr(Stdio::null()).spawn().unwrap();
    let url = format!("nats://127.0.0.1:{port}/shop");
    shop.until(|| !String::from_utf8_lossy(&happen(&url, &["ps"]).stderr).contains("no server lets"));
    let told = failure(&happen(&url, &["ps"]), 1);
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(told.starts_with("JetStream is off on the server at nats://127.0.0.1:"), "{told}");
    let told = happen(&url, &["doctor"]);
    assert!(
        String::from_utf8_lossy(&told.stdout).starts_with("fail  address      no server lets"),
        "{told:?}"
    );
}

#[test]
fn nothing_secret_of_an_address_is_shown() {
    let server = NatsServer::with("authorization { user: ada, password: \"s3cret\" }");
    let at = |secret: &str| server.url().replace("nats://", &format!("nats://ada:{secret}@")) + "/shop";
    let process = Process::start(&at("s3cret"));
    for arguments in [
        &["ps"][..],
        &["store", "info"],
        &["doctor"],
        &["doctor", "--json"],
        &["nodes"],
        &["flows", "cancel", "01234567"],
        &["send", "mill", "grain", "1", "--reply"],
        &["state", "set", "mill/ledger", "{}", "--revision", "0", "--shape", "1"],
        &["store", "restore", "copy"],
    ] {
        for secret in ["s3cret", "wr0ng"] {
            let output = happen(&at(secret), arguments);
            let told = format!("{output:?}");
            assert!(!told.contains(secret), "{arguments:?}: {told}");
            assert!(secret == "s3cret" || !output.status.success(), "{arguments:?}: {told}");
        }
    }
    assert!(happen(&at("s3cret"), &["ps"]).status.success());
    let told = failure(&happen(&at("wr0ng"), &["ps"]), 1);
    assert!(told.starts_with("no server lets this program in at nats://127.0.0.1:"), "{told}");
    process.stop();
}

#[test]
fn what_is_not_there_is_told_and_never_made() {
    let shop = Shop::new();
    for arguments in [
        &["ps"][..],
        &["tail"],
        &["nodes"],
        &["send", "mill", "grain", "1"],
        &["flows", "cancel", "01234567-0000-7000-8000-000000000000"],
        &["state", "get", "mill"],
        &["store", "prune", "--before", "1d"],
    ] {
        let told = failure(&shop.run(arguments), 1);
        assert!(told.starts_with(&format!("there is no space at {}; ", shop.url)), "{arguments:?}: {told}");
    }
    failure(&happen("http://localhost/shop", &["ps"]), 2);
    failure(&shop.run(&["store", "restore", "copy"]), 1);
    for arguments in [&["ps"][..], &["store", "restore", "."]] {
        let told = failure(&happen("memory:", arguments), 1);
        assert!(
            told.contains("a space in memory is in its process alone") || told.contains("no store in ."),
            "{told}"
        );
    }
    // On the line it goes before the environment, and by either name.
    for name in ["--store", "--url"] {
        let told = failure(&happen("nats://127.0.0.1:9/x", &["ps", name, &shop.url]), 1);
        assert!(told.starts_with("there is no space at "), "{told}");
    }
}

const URL: &str = "HAPPEN_TEST_URL";
/// Where a process that signs finds its keys.
const KEYS: &str = "HAPPEN_TEST_KEYS";
/// As few orders as a demonstration has.
const ORDERS: &str = "200";

/// What a process says once its space has started.
const READY: &str = "the space has started";
