//! The configurations in `deploy/`, started with the real program on ports of their own, and looked at by `happen doctor`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use happen::store::{Read, Select};
use happen::{Context, Event, Space, secs};
use happen_nats::Connect;
use happen_testing::nats_server_program;
use serde_json::Value as Json;

/// A server with one of the configurations, killed at the end.
struct Server {
    child: Child,
    port: u16,
    monitor: u16,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

/// A port that nobody listens on at this moment.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(config: &str, name: &str, store: &Path, cluster: u16, routes: &str) -> Server {
    let (port, monitor) = (port(), port());
    let log = store.join(format!("{name}.log"));
    let mut command = Command::new(nats_server_program());
    command.arg("-c").arg(folder().join("nats").join(config)).stdin(Stdio::null());
    command.env("ACME_PASSWORD", "acme-s3cret").env("GLOBEX_PASSWORD", "globex-s3cret");
    command.stderr(fs::File::create(&log).unwrap());
    command
        .env("NATS_NAME", name)
        .env("NATS_STORE", store.join(name))
        .env("NATS_PORT", port.to_string())
        .env("NATS_MONITOR", format!("127.0.0.1:{monitor}"))
        .env("NATS_USER", "happen")
        .env("NATS_PASSWORD", "s3cret")
        .env("NATS_CLUSTER", format!("127.0.0.1:{cluster}"))
        .env("NATS_ROUTES", routes);
    Server { child: command.spawn().unwrap(), port, monitor, log }
}

fn doctor(servers: &[Server], url: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_happen"));
    command.args(["doctor", "--json", "--url", url]).env_clear();
    for server in servers {
        command.args(["--monitor", &format!("http://127.0.0.1:{}", server.monitor)]);
    }
    command.output().unwrap()
}

/// Has a space made on these servers, and gives what the doctor found of it: the verdict and the words, by the check.
fn checked(servers: &[Server]) -> Vec<(String, String)> {
    let addresses: Vec<_> =
        servers.iter().map(|server| format!("nats://happen:s3cret@127.0.0.1:{}", server.port)).collect();
    let url = format!("{}/shop", addresses.join(","));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let space = Space::connect(&url).await.unwrap_or_else(|error| {
            let logs: Vec<_> = servers.iter().map(|server| fs::read_to_string(&server.log)).collect();
            panic!("{error}: {logs:?}")
        });
        space.start().await.unwrap();
        space.stop().await.unwrap();
    });
    for _ in 0..1000 {
        let output = doctor(servers, &url);
        assert!(output.status.success(), "{output:?}");
        let told: Json = serde_json::from_slice(&output.stdout).unwrap();
        let text = |check: &Json, name: &str| check[name].as_str().unwrap().to_owned();
        let checks = told["checks"].as_array().unwrap().iter().map(|check| {
            (text(check, "check"), format!("{} {}", text(check, "verdict"), text(check, "found")))
        });
        let checks: Vec<_> = checks.collect();
        // Servers that have just begun may have to catch up.
        if checks.iter().all(|(_, found)| found.starts_with("ok ")) {
            return checks;
        }
    }
    panic!("{:?}", doctor(servers, &url));
}

#[track_caller]
fn found<'c>(checks: &'c [(String, String)], name: &str) -> Vec<&'c str> {
    checks.iter().filter(|(check, _)| check == name).map(|(_, found)| found.as_str()).collect()
}

#[test]
fn one_server_keeps_what_it_acknowledges() {
    let store = tempfile::tempdir().unwrap();
    let checks = checked(&[start("one.conf", "nats-1", store.path(), 0, "")]);
    assert_eq!(found(&checks, "sync"), ["ok nats-1 syncs every write"]);
    assert_eq!(found(&checks, "replicas"), ["ok 1 of 1 up to date, led by nats-1"]);
}

#[test]
fn three_servers_keep_a_log_three_times_and_sync_it() {
    let store = tempfile::tempdir().unwrap();
    let clusters = [port(), port(), port()];
    let routes: Vec<_> = clusters.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
    let routes = format!("[{}]", routes.join(","));
    let named = clusters.iter().zip(["nats-1", "nats-2", "nats-3"]);
    let servers: Vec<_> =
        named.map(|(cluster, name)| start("three.conf", name, store.path(), *cluster, &routes)).collect();
    let checks = checked(&servers);
    let synced =
        ["ok nats-1 syncs every write", "ok nats-2 syncs every write", "ok nats-3 syncs every write"];
    assert_eq!(found(&checks, "sync"), synced);
    assert!(found(&checks, "replicas")[0].starts_with("ok 3 of 3 up to date, led by nats-"), "{checks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_share_a_server_and_nothing_else() {
    let store = tempfile::tempdir().unwrap();
    let server = start("tenants.conf", "nats-1", store.path(), 0, "");
    let url =
        |tenant: &str, password: &str| format!("nats://{tenant}:{password}@127.0.0.1:{}/shop", server.port);
    // The same program in a space of the same name, once for each.
    let open = async |tenant: &str| {
        let url = url(tenant, &format!("{tenant}-s3cret"));
        let space = Space::connect(&url).await.unwrap();
        let shown = tenant.to_owned();
        space
            .node("till")
            .on("u64", move |cents: &Event<u64>, _: &Context| format!("{shown} took {}", **cents));
        let heard = Arc::new(AtomicU64::new(0));
        let counts = Arc::clone(&heard);
        space.node("listener").ephemeral().on("u64", move |_: &Event<u64>, _: &Context| {
            counts.fetch_add(1, Ordering::SeqCst);
        });
        space.start().await.unwrap();
        (space, heard)
    };
    let (acme, heard_by_acme) = open("acme").await;
    // With one account this process would stand by, for the other one has its nodes.
    let (globex, heard_by_globex) = open("globex").await;
    for (space, name) in [(&acme, "acme"), (&globex, "globex")] {
        assert_eq!(*space.send("till", 7u64).reply::<String>().await.unwrap(), format!("{name} took 7"));
        assert!(space.remote_nodes().is_empty(), "{name} hears of others");
    }
    acme.broadcast(1u64).unwrap();
    acme.settled(secs(10)).await.unwrap();
    globex.global().set("secret", &42u64).await.unwrap();
    assert_eq!(acme.global().get::<u64>("secret").await.unwrap(), None);
    assert_eq!((heard_by_acme.load(Ordering::SeqCst), heard_by_globex.load(Ordering::SeqCst)), (1, 0));

    // Whatever subject somebody listens to, nothing of another tenant comes.
    let client = happen_nats::connection(&globex).unwrap().client().clone();
    let mut all = client.subscribe(">").await.unwrap();
    client.flush().await.unwrap();
    acme.send("till", 8u64).reply::<String>().await.unwrap();
    acme.broadcast(2u64).unwrap();
    acme.settled(secs(10)).await.unwrap();
    client.publish("the.end", "".into()).await.unwrap();
    loop {
        let message = all.next().await.unwrap();
        if &*message.subject == "the.end" {
            break;
        }
        assert!(!message.payload.windows(4).any(|some| some == b"acme"), "{}", message.subject);
    }
    let records = |space: &Space| {
        let store = space.store();
        async move { store.read(Read::forward(Select::All)).await.unwrap().records.len() }
    };
    assert!(records(&acme).await > records(&globex).await);
    for wrong in [url("acme", "globex-s3cret"), url("nobody", "acme-s3cret")] {
        assert_eq!(Space::connect(&wrong).await.unwrap_err().code(), "io");
    }
    for space in [acme, globex] {
        assert!(space.problems().is_empty(), "{:?}", space.problems());
        space.stop().await.unwrap();
    }
}

#[test]
fn the_containers_are_given_what_the_configuration_asks_for() {
    let read = |name: &str| fs::read_to_string(folder().join(name)).unwrap();
    let compose = read("compose.yaml");
    assert!(compose.contains("\"/etc/nats/three.conf\"") && compose.contains("./nats:/etc/nats:ro"));
    let mut variables = 0;
    for config in ["nats/common.conf", "nats/three.conf"] {
        let config = read(config);
        for line in config.lines().filter(|line| !line.trim_start().starts_with('#')) {
            if let Some((_, variable)) = line.split_once('$') {
                assert!(compose.contains(&format!("{}: ", variable.trim())), "{variable}");
                variables += 1;
            }
        }
    }
    assert_eq!(variables, 8);
}
