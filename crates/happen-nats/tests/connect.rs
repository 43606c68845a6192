//! One program at any address: in memory, in a folder, on one server and on three, without a changed line; and several
//! processes of it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use happen::env::RealEnv;
use happen::global::LargeValue;
use happen::{Context, Event, Space, Step, done, next, secs};
use happen_core::env::Env;
use happen_nats::{Connect, Connection, Nats};
use happen_testing::{NatsCluster, NatsServer};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.create")]
struct Create {
    cents: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("charge")]
struct Charge {
    cents: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("paid")]
struct Paid {
    cents: u64,
}

#[derive(happen::State, Default, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[state("sum", version = 1)]
struct Sum {
    cents: u64,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("scan")]
struct Scan {
    image: LargeValue,
}

async fn check(order: Event<Create>, cx: Context) -> happen::Result<Step> {
    cx.put("cents", order.cents)?;
    next(charge)
}

async fn charge(_: Event<Create>, cx: Context) -> happen::Result<Step> {
    let paid = cx.send("bank", Charge { cents: cx.get("cents")? }).reply::<Paid>().await?;
    cx.broadcast(Paid::clone(&paid))?;
    done(Paid::clone(&paid))
}

fn bank(space: &Space) {
    space.node("bank").on("charge", async |charge: Event<Charge>, cx: Context| -> happen::Result<Paid> {
        let cents = charge.cents;
        cx.state::<Sum>().set(move |sum| Sum { cents: sum.cents + cents })?;
        Ok(Paid { cents })
    });
}

fn shop(space: &Space) {
    space.node("orders").on("order.create", check).step(charge);
    space.node("books").on("paid", |paid: &Event<Paid>, cx: &Context| {
        let cents = paid.cents;
        cx.state::<Sum>().set(move |sum| Sum { cents: sum.cents + cents })
    });
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let env = RealEnv::new();
    for _ in 0..3_000 {
        if holds().await {
            return;
        }
        env.sleep(Duration::from_millis(10)).await;
    }
    panic!("this takes longer than half a minute");
}

fn sum(space: &Space, node: &str) -> u64 {
    space.find(node).unwrap().state::<Sum>().get(|sum| sum.cents)
}

/// The program.
async fn program(url: &str) {
    let space = Space::connect(url).await.unwrap();
    bank(&space);
    shop(&space);
    space.start().await.unwrap();
    for cents in 1..=10 {
        let paid = space.send("orders", Create { cents }).reply::<Paid>().await.unwrap();
        assert_eq!(paid.cents, cents);
    }
    space.settled(secs(10)).await.unwrap();
    for node in ["bank", "books"] {
        assert_eq!(sum(&space, node), 55, "{node} at {url}");
    }
    space.stop().await.unwrap();
}

/// What a second run finds of the first.
async fn remembers(url: &str) {
    let space = Space::connect(url).await.unwrap();
    bank(&space);
    shop(&space);
    space.start().await.unwrap();
    assert_eq!(sum(&space, "bank"), 55);
    assert_eq!(sum(&space, "books"), 55);
    assert!(space.journal().verify().await.unwrap().is_whole());
    space.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_program_runs_in_memory_in_a_folder_on_a_server_and_on_a_cluster() {
    program("memory:").await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("data");
    program(folder.to_str().unwrap()).await;
    remembers(folder.to_str().unwrap()).await;
    let server = NatsServer::start();
    let url = format!("{}/shop", server.url());
    program(&url).await;
    remembers(&url).await;
    let cluster = NatsCluster::start(3);
    let url = format!("{}/shop", cluster.url());
    program(&url).await;
    remembers(&url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_parts_run_in_several_processes_and_know_each_other() {
    let server = NatsServer::start();
    let url = format!("{}/shop", server.url());
    let (shopping, banking) = (Space::connect(&url).await.unwrap(), Space::connect(&url).await.unwrap());
    shop(&shopping);
    bank(&banking);
    banking.node("till").ephemeral().on("string", |said: &Event<String>, _: &Context| said.to_uppercase());
    banking.start().await.unwrap();
    shopping.start().await.unwrap();
    until(async || shopping.remote_nodes().iter().any(|node| node.id == "till")).await;
    for cents in 1..=10 {
        let paid = shopping.send("orders", Create { cents }).reply::<Paid>().await.unwrap();
        assert_eq!(paid.cents, cents);
    }
    until(async || sum(&shopping, "books") == 55 && sum(&banking, "bank") == 55).await;
    // From outside of nodes a question goes over the link.
    assert_eq!(*shopping.send("till", "hello".to_owned()).reply::<String>().await.unwrap(), "HELLO");
    assert_eq!(banking.send("orders", Create { cents: 1 }).reply::<Paid>().await.unwrap().cents, 1);
    for space in [shopping, banking] {
        assert!(space.problems().is_empty(), "{:?}", space.problems());
        space.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_stands_by_and_goes_on_when_the_first_has_gone() {
    let server = NatsServer::start();
    let connection = Connection::open(&server.url(), async_nats::ConnectOptions::new()).await.unwrap();
    let first = Nats::over(&connection, "shop").member("first").open().await.unwrap();
    let second = Nats::at(format!("{}/shop", server.url())).member("second").open().await.unwrap();
    for space in [&first, &second] {
        bank(space);
    }
    first.start().await.unwrap();
    let started = Arc::new(AtomicBool::new(false));
    let (starts, standing) = (Arc::clone(&started), second.clone());
    let env = RealEnv::new();
    env.spawn(Box::pin(async move {
        standing.start().await.unwrap();
        starts.store(true, Ordering::SeqCst);
    }));
    for cents in [10, 20] {
        env.sleep(secs(1)).await;
        assert!(!started.load(Ordering::SeqCst));
        assert_eq!(first.send("bank", Charge { cents }).reply::<Paid>().await.unwrap().cents, cents);
    }
    first.stop().await.unwrap();
    until(async || started.load(Ordering::SeqCst)).await;
    assert_eq!(second.send("bank", Charge { cents: 30 }).reply::<Paid>().await.unwrap().cents, 30);
    assert_eq!(sum(&second, "bank"), 60);
    second.stop().await.unwrap();
}

/// A value of many parts, and the reference to it by the link, which is faster than the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_value_is_there_before_the_reference_to_it_arrives() {
    let server = NatsServer::start();
    let url = format!("{}/large", server.url());
    let (writing, reading) = (Space::connect(&url).await.unwrap(), Space::connect(&url).await.unwrap());
    let scans = reading.node("scans").ephemeral();
    scans.on("scan", async |scan: Event<Scan>, cx: Context| -> happen::Result<u64> {
        let image = cx.global().large(&scan.image).await?;
        Ok(image.map_or(0, |image| image.iter().map(|byte| u64::from(*byte)).sum()))
    });
    writing.start().await.unwrap();
    reading.start().await.unwrap();
    until(async || writing.remote_nodes().iter().any(|node| node.id == "scans")).await;
    for len in [1usize, 3 << 20, 20 << 20] {
        let image = writing.global().put_large(&vec![3; len]).await.unwrap();
        let sum = writing.send("scans", Scan { image }).reply::<u64>().await.unwrap();
        assert_eq!(*sum, 3 * len as u64);
    }
    writing.stop().await.unwrap();
    reading.stop().await.unwrap();
}
