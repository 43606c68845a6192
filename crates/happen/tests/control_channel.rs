//! The control channel of a space in a folder: real sockets, threads and processes. What the requests mean is in
//! `control.rs`.
#![cfg(all(feature = "embedded", unix))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::disallowed_methods, reason = "processes are real, and one of them has to be killed")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use happen::control::{Answer, Became, Client, Letters, Phase, Request, SendEvent, Wait};
use happen::{Context, Event, Space, limits, secs};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tally {
    count: u64,
}

/// A running space with a node that counts and one that never answers.
async fn open(folder: &Path) -> Space {
    let space = Space::open(folder).await.unwrap();
    space.node("counter").on("one", |_: &Event, cx: &Context| {
        cx.state::<Tally>().set(|tally| Tally { count: tally.count + 1 })?;
        Ok::<_, happen::Error>(json!("counted"))
    });
    space.node("wall").on("knock", |_: Event, cx: Context| async move {
        cx.wait_for("never", secs(3_600)).await?;
        Ok::<_, happen::Error>(())
    });
    space.start().await.unwrap();
    space
}

fn one(wait: Wait) -> Request {
    let (node, event_type) = ("counter".into(), "one".into());
    Request::Send(SendEvent { node, event_type, payload: Json::Null, correlation: None, wait })
}

fn count(space: &Space) -> u64 {
    space.find("counter").unwrap().state::<Tally>().get(|tally| tally.count)
}

async fn phase(folder: &Path) -> Phase {
    let mut client = Client::connect(folder).unwrap().unwrap();
    match client.ask(&Request::Stats).await.unwrap() {
        Answer::Stats(stats) => stats.phase,
        other => panic!("{other:?}"),
    }
}

/// What comes back for bytes that are said.
fn said(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let mut stream = UnixStream::connect(folder.join("control")).unwrap();
    // The other side may hang up before all is said.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(std::net::Shutdown::Write));
    let mut told = Vec::new();
    // What was not read when it hung up is told as a reset.
    drop(stream.read_to_end(&mut told));
    told.lines().map(Result::unwrap).collect()
}

fn code(line: &str) -> String {
    Answer::parse(line.as_bytes()).unwrap_err().code().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_are_served_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let space = open(folder.path()).await;
    let clients: Vec<_> = (0..100).map(|_| Client::connect(folder.path()).unwrap().unwrap()).collect();
    let asking = clients.into_iter().map(|mut client| {
        tokio::spawn(async move {
            for _ in 0..3 {
                let answer = client.ask(&one(Wait::Reply)).await.unwrap();
                let Answer::Sent(sent) = answer else { panic!("{answer:?}") };
                let Became::Replied { payload, .. } = sent.became else { panic!("{sent:?}") };
                assert_eq!(payload, "counted");
            }
        })
    });
    for asked in asking.collect::<Vec<_>>() {
        asked.await.unwrap();
    }
    assert_eq!(count(&space), 300);
    space.stop().await.unwrap();
}

#[tokio::test]
async fn rubbish_is_answered_with_an_error_and_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let space = open(folder.path()).await;
    let at = folder.path().to_owned();
    let rubbish = tokio::task::spawn_blocking(move || {
        for bytes in
            [&b"\n"[..], b"{}\n", b"GET / HTTP/1.1\n", b"\xff\xfe\0\n", b"{\"send\":{}}\n", b"\"stop\"\n"]
        {
            let told = said(&at, bytes);
            assert_eq!(told.iter().map(|line| code(line)).collect::<Vec<_>>(), ["misuse"], "{bytes:?}");
        }
        // Lines of two requests and rubbish between them.
        let told = said(&at, b"\"stats\"\nrubbish\n\"stats\"\n");
        assert_eq!((told.len(), code(&told[1])), (3, "misuse".to_owned()));
        // Half a line is no request.
        assert_eq!(said(&at, b"\"stats\""), [""; 0]);
        assert_eq!(said(&at, b""), [""; 0]);
        let deep = [vec![b'['; 100_000], vec![b'\n']].concat();
        assert_eq!(code(&said(&at, &deep)[0]), "misuse");
        // A line without end is not read to its end.
        let endless = vec![b' '; limits::CONTROL_LINE_BYTES_MAX + 100];
        let told = said(&at, &endless);
        assert!(told.is_empty() || code(&told[0]) == "oversized", "{told:?}");
        let mut random = 7_u64;
        for _ in 0..200 {
            let bytes: Vec<u8> = (0..64)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (random >> 56) as u8
                })
                .collect();
            said(&at, &bytes);
        }
    });
    rubbish.await.unwrap();
    assert_eq!(phase(folder.path()).await, Phase::Running);
    assert_eq!(count(&space), 0);
    space.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_hang_hold_up_nobody_and_not_the_end_of_the_space() {
    let folder = tempfile::tempdir().unwrap();
    let space = open(folder.path()).await;
    let connect = || UnixStream::connect(folder.path().join("control")).unwrap();
    let mut hanging: Vec<_> = (0..20).map(|_| connect()).collect();
    for (index, stream) in hanging.iter_mut().enumerate() {
        let said: &[u8] = match index % 3 {
            0 => b"",
            1 => b"\"sta",
            // An answer that never comes.
            _ => b"{\"send\":{\"node\":\"wall\",\"type\":\"knock\",\"wait\":\"reply\"}}\n",
        };
        stream.write_all(said).unwrap();
    }
    assert_eq!(phase(folder.path()).await, Phase::Running);
    space.control(one(Wait::Reply)).await.unwrap();
    space.stop().await.unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        for mut stream in hanging {
            let mut told = Vec::new();
            drop(stream.read_to_end(&mut told));
            assert!(told.is_empty() || code(&String::from_utf8(told).unwrap()) == "closed");
        }
    });
    ended.await.unwrap();
    assert!(Client::connect(folder.path()).unwrap().is_none());
}

#[tokio::test]
async fn a_client_that_goes_away_before_its_answer_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let space = open(folder.path()).await;
    for _ in 0..10 {
        let mut stream = UnixStream::connect(folder.path().join("control")).unwrap();
        stream.write_all(&one(Wait::Reply).to_line().unwrap()).unwrap();
    }
    // Each connection is served by a thread of its own, so there is nothing to wait for but the count.
    while count(&space) < 10 {
        tokio::task::yield_now().await;
    }
    space.stop().await.unwrap();
}

#[tokio::test]
async fn so_many_clients_are_connected_and_one_more_is_told_to_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let space = open(folder.path()).await;
    let mut clients = Vec::new();
    for len in 1..=limits::CONTROL_CLIENTS_MAX + 1 {
        let mut client = Client::connect(folder.path()).unwrap().unwrap();
        let asked = client.ask(&Request::Stats).await;
        if len <= limits::CONTROL_CLIENTS_MAX {
            assert!(asked.is_ok(), "{len}: {asked:?}");
            clients.push(client);
        } else {
            assert_eq!(asked.unwrap_err().code(), "busy");
        }
    }
    drop(clients.pop());
    // The place is free once the other side has noticed.
    let mut client = Client::connect(folder.path()).unwrap().unwrap();
    while let Err(error) = client.ask(&Request::Stats).await {
        assert!(["busy", "io"].contains(&error.code()), "{error:?}");
        client = Client::connect(folder.path()).unwrap().unwrap();
    }
    space.stop().await.unwrap();
}

#[tokio::test]
async fn errors_come_over_the_channel_with_their_kind() {
    let folder = tempfile::tempdir().unwrap();
    let space = open(folder.path()).await;
    let mut client = Client::connect(folder.path()).unwrap().unwrap();
    let event: happen::EventId = "0197a5d0-7c00-7000-8000-000000000001".parse().unwrap();
    let drop_it = Request::Drop(Letters { event: Some(event), ..Letters::default() });
    let there = client.ask(&drop_it).await.unwrap_err();
    let here = space.control(drop_it).await.unwrap_err();
    assert_eq!((there.kind(), there.event_id()), (here.kind(), here.event_id()));
    assert_eq!((there.code(), there.event_id()), ("not-found", Some(event)));
    // Over the same connection.
    assert!(client.ask(&Request::Stats).await.is_ok());
    space.stop().await.unwrap();
    assert_eq!(client.ask(&Request::Stats).await.unwrap_err().code(), "io");
}

#[tokio::test]
async fn the_socket_is_its_owners_and_goes_with_the_space() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control");
    for ends in ["stops", "is dropped"] {
        let space = open(folder.path()).await;
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{mode:o}");
        assert!(!folder.path().join("control.new").exists());
        assert_eq!(phase(folder.path()).await, Phase::Running);
        if ends == "stops" {
            space.stop().await.unwrap();
        }
        drop(space);
        assert!(!socket.exists(), "it {ends}");
        assert!(Client::connect(folder.path()).unwrap().is_none());
    }
}

#[tokio::test]
async fn a_space_that_cannot_listen_goes_on_without() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("control"), "mine").unwrap();
    let space = open(folder.path()).await;
    assert!(space.problems().is_empty());
    space.stop().await.unwrap();
    assert_eq!(std::fs::read(folder.path().join("control")).unwrap(), b"mine");

    // Longer than the path of a socket may be on any system.
    let long = folder.path().join("d".repeat(120));
    std::fs::create_dir(&long).unwrap();
    let space = open(&long).await;
    assert!(Client::connect(&long).unwrap().is_none());
    space.control(one(Wait::Reply)).await.unwrap();
    assert_eq!(count(&space), 1);
    space.stop().await.unwrap();
}

#[tokio::test]
async fn a_socket_of_a_process_that_was_killed_is_known_as_dead_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_that_is_killed", "--nocapture"])
        .env(FOLDER, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("it is open")));
    let mut client = Client::connect(folder.path()).unwrap().unwrap();
    client.ask(&one(Wait::Reply)).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(folder.path().join("control").exists(), "nobody was there to remove it");
    assert_eq!(client.ask(&Request::Stats).await.unwrap_err().code(), "io");
    assert!(Client::connect(folder.path()).unwrap().is_none());

    let space = open(folder.path()).await;
    assert_eq!(phase(folder.path()).await, Phase::Running);
    assert_eq!(count(&space), 1);
    space.stop().await.unwrap();

    // Killed in the middle of opening: the socket is not in its place yet.
    std::fs::create_dir(folder.path().join("control.new")).unwrap();
    drop(UnixListener::bind(folder.path().join("control.new/control")).unwrap());
    let space = open(folder.path()).await;
    assert_eq!(phase(folder.path()).await, Phase::Running);
    space.stop().await.unwrap();
}

/// What the test above starts; by itself it has nothing to do.
#[test]
fn a_process_that_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let _space = open(Path::new(&folder)).await;
        println!("it is open");
        std::future::pending::<()>().await;
    });
}

const FOLDER: &str = "HAPPEN_TEST_FOLDER";
