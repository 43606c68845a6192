//! `happen dev --nats`, with the real server and without any.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use happen::{Event, Space};
use happen_nats::Connect;
use serde::{Deserialize, Serialize};

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("ledger", version = 1)]
struct Ledger {
    count: u64,
}

/// The program in a folder where no server is installed but the one that is named.
fn dev(folder: &Path, server: Option<&Path>, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_happen"));
    command.args(["dev", "--nats", "--port", &port.to_string()]).current_dir(folder);
    command.env_clear().envs(server.map(|server| ("HAPPEN_NATS_SERVER", server)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The one sentence of a command that failed.
fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_server_runs_until_it_is_interrupted_and_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let (server, port) = (happen_testing::nats_server_program(), port());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for count in 1..=2 {
        let mut command = dev(folder.path(), Some(&server), port);
        let mut dev = Dev(command.stderr(Stdio::null()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(dev.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("HAPPEN_URL=").unwrap().to_owned();
        assert_eq!(url, format!("nats://127.0.0.1:{port}/main"));
        runtime.block_on(async {
            let space = Space::connect(&url).await.unwrap();
            let mill = space.node("mill");
            mill.on("u64", |event: &Event<u64>, cx: &happen::Context| {
                let more = **event;
                cx.state::<Ledger>().set(move |ledger| Ledger { count: ledger.count + more })
            });
            space.start().await.unwrap();
            space.send("mill", 1_u64).reply::<()>().await.unwrap();
            assert_eq!(mill.state::<Ledger>().get(|ledger| ledger.count), count);
            space.stop().await.unwrap();
        });
        let id = dev.0.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        assert!(dev.0.wait().unwrap().code().is_some(), "it did not end in its own way");
        assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "a server was left");
    }
    let config = fs::read_to_string(folder.path().join("nats-data/server.conf")).unwrap();
    assert!(config.contains("sync_interval: always"), "{config}");
}

#[test]
fn a_folder_has_one_server() {
    let folder = tempfile::tempdir().unwrap();
    let (server, first) = (happen_testing::nats_server_program(), port());
    let mut command = dev(folder.path(), Some(&server), first);
    let mut running = Dev(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut told = BufReader::new(running.0.stderr.take().unwrap()).lines();
    assert!(told.any(|line| line.unwrap().ends_with("Server is ready")), "it did not start");
    let config = folder.path().join("nats-data/server.conf");
    let written = fs::read_to_string(&config).unwrap();

    let refused = failure(&dev(folder.path(), Some(&server), port()).output().unwrap());
    let expected = format!("happen: a server that listens on port {first} has ");
    assert!(refused.starts_with(&expected), "{refused}");
    let refused = failure(&dev(folder.path(), Some(&server), first).output().unwrap());
    assert!(refused.starts_with(&format!("happen: port {first} cannot be had ")), "{refused}");
    assert_eq!(
        fs::read_to_string(&config).unwrap(),
        written,
        "the configuration of a running server was changed"
    );

    let none = dev(folder.path(), Some(&server), 0).output().unwrap();
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    drop(running);
    let other = port();
    let mut command = dev(folder.path(), Some(&server), other);
    let mut again = Dev(command.stderr(Stdio::null()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(again.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("HAPPEN_URL=nats://127.0.0.1:{other}/main\n"));
}

#[test]
fn what_keeps_a_server_from_starting_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let told = failure(&dev(folder.path(), None, port()).output().unwrap());
    assert!(told.starts_with("happen: no server of NATS is installed; "), "{told}");

    let old = folder.path().join("old");
    fs::write(&old, "#!/bin/sh\necho nats-server: v2.14.9\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    let told = failure(&dev(folder.path(), Some(&old), port()).output().unwrap());
    assert!(told.contains("`nats-server: v2.14.9`, and 2.15 is the oldest"), "{told}");
    assert!(!folder.path().join("nats-data").exists(), "something was made");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let server = happen_testing::nats_server_program();
    let told = failure(&dev(folder.path(), Some(&server), port).output().unwrap());
    assert!(told.starts_with(&format!("happen: port {port} cannot be had ")), "{told}");

    let output = Command::new(env!("CARGO_BIN_EXE_happen")).arg("dev").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
