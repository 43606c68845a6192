//! One log and many copies: several processes on it, servers that go and come back, and what does not belong there.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::stream;
use futures_util::StreamExt as _;
use happen::env::RealEnv;
use happen_core::env::{BoxFuture, BoxWork, CoarseClock, Env};
use happen_core::store::{
    Batch, Condition, Content, NewRecord, Past, Position, Prune, Read, Record, Replaced, Select, Start,
    Store, Tag, Write,
};
use happen_core::{Error, ErrorKind};
use happen_nats::{NatsStore, NatsStoreOptions, limits};
use happen_testing::{NatsCluster, NatsServer, noise};

const SPACE: &str = "log";

fn env() -> Arc<dyn Env> {
    Arc::new(RealEnv::new())
}

async fn client(url: &str) -> Client {
    async_nats::connect(url.split(',').collect::<Vec<_>>()).await.unwrap()
}

fn options() -> NatsStoreOptions {
    NatsStoreOptions::new(SPACE, env())
}

async fn open(url: &str) -> NatsStore {
    NatsStore::open(client(url).await, options()).await.unwrap()
}

fn record(tag: &str, text: &str) -> NewRecord {
    NewRecord { tags: vec![Tag::Declared(tag.into())], bytes: text.as_bytes().into() }
}

fn one(tag: &str, text: &str) -> Batch {
    Batch { records: vec![record(tag, text)], ..Batch::default() }
}

fn count(key: &str, revision: u64, value: u64) -> Batch {
    let content = Content { name: "count".into(), version: 1, bytes: value.to_le_bytes().into() };
    let write = Write {
        key: key.into(),
        revision,
        content: Some(content),
        past: Past::Dropped,
        replaced: Replaced::Kept,
    };
    Batch { documents: vec![write], ..Batch::default() }
}

async fn all(store: &NatsStore) -> Vec<Record> {
    let mut records = Vec::new();
    let mut read = Read::forward(Select::All);
    loop {
        let page = store.read(read.clone()).await.unwrap();
        records.extend(page.records);
        match page.next {
            Some(next) => read = read.start(Start::Position(next)),
            None => return records,
        }
    }
}

fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8_lossy(&record.bytes).into_owned()).collect()
}

/// Waits until a store has so many records.
async fn has(store: &NatsStore, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    let mut watch = store.watch(Select::All, Position::START).await.unwrap();
    while records.len() < count {
        records.extend(watch.next().await.unwrap());
    }
    records
}

/// Adds one to a count, however many others do the same. Gives how often somebody else was faster.
async fn add(store: &NatsStore, key: &str) -> u64 {
    for conflicts in 0.. {
        let found = store.documents(vec![key.into()]).await.unwrap().remove(0);
        let (revision, value) = found.map_or((0, 0), |document| {
            let bytes = document.content.unwrap().bytes;
            (document.revision, u64::from_le_bytes(bytes.as_ref().try_into().unwrap()))
        });
        match store.commit(vec![count(key, revision + 1, value + 1)]).await.remove(0) {
            Ok(_) => return conflicts,
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Conflict { .. }), "{error}"),
        }
    }
    unreachable!("the loop has no end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_write_one_log_and_none_loses_anything() {
    let server = NatsServer::start();
    let stores = [open(&server.url()).await, open(&server.url()).await, open(&server.url()).await];
    let adding = stores.iter().flat_map(|store| [store; 4]).map(async |store| {
        let mut conflicts = 0;
        for _ in 0..25 {
            conflicts += add(store, "shared").await;
        }
        conflicts
    });
    let conflicts: u64 = futures_util::future::join_all(adding).await.into_iter().sum();
    assert!(conflicts > 0, "twelve that write the same document at once were never in each other's way");
    // A copy may be a moment behind what others were told; a conflict tells where the log is.
    assert!(add(&stores[1], "shared").await <= 1);
    let last = stores[1].documents(vec!["shared".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!(last.revision, 301);
    assert_eq!(last.content.unwrap().bytes.as_ref(), 301_u64.to_le_bytes());
    // All copies have the same at the same places, and one that is made now as well.
    let writing = stores.iter().enumerate().map(async |(index, store)| {
        for number in 0..50 {
            let both = vec![one("a", &format!("{index}:{number}")), one("b", "beside")];
            assert!(store.commit(both).await.iter().all(Result::is_ok));
        }
    });
    futures_util::future::join_all(writing).await;
    let first = has(&stores[0], 300).await;
    for store in [&stores[1], &stores[2], &open(&server.url()).await] {
        assert_eq!(has(store, 300).await, first);
    }
    for index in 0..3 {
        let own: Vec<_> =
            texts(&first).into_iter().filter(|text| text.starts_with(&format!("{index}:"))).collect();
        assert_eq!(own, (0..50).map(|number| format!("{index}:{number}")).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn whoever_waits_for_nothing_keeps_the_order_all_the_same() {
    let server = NatsServer::start();
    let store = open(&server.url()).await;
    let calls = (1..=500).map(|revision| store.commit(vec![count("x", revision, revision)]));
    let results = futures_util::future::join_all(calls).await;
    assert!(results.iter().flatten().all(Result::is_ok));
    assert!(results.iter().flatten().map(|done| done.as_ref().unwrap().position).is_sorted());
}

#[tokio::test]
async fn what_is_larger_than_a_message_arrives_whole() {
    let server = NatsServer::start();
    let store = open(&server.url()).await;
    let text = noise(1, 3 << 20);
    let batch = Batch { records: vec![record("a", &text), record("a", &text[1..])], ..Batch::default() };
    let committed = store.commit(vec![one("a", "before"), batch, one("a", "behind")]).await;
    assert!(committed.iter().all(Result::is_ok));
    let other = open(&server.url()).await;
    let sizes: Vec<_> = has(&other, 4).await.iter().map(|record| record.bytes.len()).collect();
    assert_eq!(sizes, [6, 3 << 20, (3 << 20) - 1, 6]);
}

/// What is written together has much in common.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_repeats_takes_less_of_the_log_than_it_says() {
    let server = NatsServer::start();
    let store = open(&server.url()).await;
    let texts: Vec<_> =
        (0..200).map(|number| format!("a payment of {number} cents into the same account")).collect();
    let committed = store.commit(texts.iter().map(|text| one("a", text)).collect()).await;
    assert!(committed.iter().all(Result::is_ok));
    let context = async_nats::jetstream::new(client(&server.url()).await);
    let stream = context.get_stream(format!("happen_{SPACE}")).await.unwrap();
    let bytes = stream.get_info().await.unwrap().state.bytes;
    let said: usize = texts.iter().map(String::len).sum();
    assert!(bytes < said as u64 / 2, "{bytes} bytes for {said}");
    assert_eq!(self::texts(&has(&open(&server.url()).await, 200).await), texts);
}

#[tokio::test]
async fn a_call_has_an_end() {
    let server = NatsServer::start();
    let store = open(&server.url()).await;
    let text = "x".repeat(8 << 20);
    let call = |count| (0..count).map(|_| one("a", &text)).collect::<Vec<_>>();
    let within = limits::CALL_BYTES_MAX / text.len() - 1;
    assert!(store.commit(call(within)).await.iter().all(Result::is_ok));
    for result in store.commit(call(within + 1)).await {
        assert!(matches!(result.unwrap_err().kind(), ErrorKind::Oversized { .. }));
    }
    assert_eq!(all(&store).await.len(), within);
}

/// Writes numbered records until told to stop; gives those that were acknowledged and the longest wait for one.
async fn write_on(store: &NatsStore, writer: u64, stop: &AtomicBool, written: &AtomicU64) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let text = format!("{writer}:{number}");
        let result = store.commit(vec![one("a", &text)]).await.remove(0);
        if result.is_ok() {
            acknowledged.push(text);
            written.fetch_add(1, Ordering::SeqCst);
        }
    }
    acknowledged
}

/// Has a few write while something is done to the servers, and checks that nothing is lost and nothing comes twice.
async fn survives(url: &str, harm: impl AsyncFnOnce(&AtomicU64)) {
    let stores = [open(url).await, open(url).await];
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let writing = stores.iter().enumerate().flat_map(|(index, store)| {
        let (stop, written) = (&stop, &written);
        (0..4).map(move |part| write_on(store, index as u64 * 4 + part, stop, written))
    });
    let harming = async {
        until(&written, 20).await;
        harm(&written).await;
        let since = written.load(Ordering::SeqCst);
        until(&written, since + 100).await;
        stop.store(true, Ordering::SeqCst);
    };
    let (acknowledged, ()) = tokio::join!(futures_util::future::join_all(writing), harming);
    let acknowledged: Vec<String> = acknowledged.into_iter().flatten().collect();
    let reopened = open(url).await;
    let records = all(&reopened).await;
    let found = texts(&records);
    let unique: BTreeSet<&String> = found.iter().collect();
    assert_eq!(unique.len(), found.len(), "something was written twice");
    for text in &acknowledged {
        assert!(unique.contains(text), "{text} was acknowledged and is gone");
    }
    for store in &stores {
        assert_eq!(has(store, records.len()).await, records, "two copies of one log differ");
        assert_eq!(store.refused(), 0);
    }
}

async fn until(written: &AtomicU64, count: u64) {
    let env = env();
    happen_testing::link::until(&env, "enough is written", || written.load(Ordering::SeqCst) >= count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_read_at_the_server_that_leads_it() {
    let cluster = NatsCluster::start(3);
    let url = cluster.url();
    let context = async_nats::jetstream::new(client(&url).await);
    let (mut readers, mut there) = (0, 0);
    // Servers of a busy machine may choose another leader at any time, and then the next readers are there.
    for _ in 0..5 {
        let stores = [open(&url).await, open(&url).await, open(&url).await, open(&url).await];
        stores[0].commit(vec![one("a", "one")]).await.remove(0).unwrap();
        let stream = context.get_stream(format!("happen_{SPACE}")).await.unwrap();
        let leader = stream.cached_info().cluster.as_ref().unwrap().leader.clone();
        let names: Vec<_> = stream.consumer_names().filter_map(async |name| name.ok()).collect().await;
        (readers, there) = (0, 0);
        for name in names {
            // One that was elsewhere may have been deleted meanwhile.
            if let Ok(info) = stream.consumer_info(name).await {
                readers += 1;
                there += usize::from(info.cluster.and_then(|cluster| cluster.leader) == leader);
            }
        }
        // Each is with a chance of 199 in 200.
        if readers >= stores.len() && there * 4 >= readers * 3 {
            return;
        }
    }
    panic!("{there} of {readers} are at the server that leads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_again_and_again_loses_nothing() {
    let mut server = NatsServer::start();
    let url = server.url();
    survives(&url, async |written| {
        for _ in 0..5 {
            server.restart();
            let since = written.load(Ordering::SeqCst);
            until(written, since + 20).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_for_a_while_loses_nothing() {
    let server = NatsServer::start();
    survives(&server.url(), async |_| {
        server.pause();
        env().sleep(Duration::from_millis(limits::ACKNOWLEDGE_WAIT_MS + 500)).await;
        server.go_on();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_killed_is_followed_by_another() {
    let mut cluster = NatsCluster::start(3);
    let url = cluster.url();
    // The log is there before its leader is looked for.
    open(&url).await.close().await;
    survives(&url, async |_| {
        let context = async_nats::jetstream::new(client(&url).await);
        let stream = context.get_stream(format!("happen_{SPACE}")).await.unwrap();
        let leader = stream.cached_info().cluster.as_ref().unwrap().leader.clone().unwrap();
        cluster.named(&leader).unwrap().kill();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_that_are_killed_at_once_come_back_with_everything() {
    let mut cluster = NatsCluster::start(3);
    let url = cluster.url();
    survives(&url, async |_| cluster.restart_all()).await;
}

#[tokio::test]
async fn a_commit_without_a_server_says_that_nobody_knows() {
    let mut server = NatsServer::start();
    let wait = Duration::from_millis(300);
    let store = NatsStore::open(client(&server.url()).await, options().commit_wait(wait)).await.unwrap();
    assert!(store.commit(vec![one("a", "before")]).await.remove(0).is_ok());
    server.kill();
    let once = Batch {
        conditions: vec![Condition::NoneAfter { tag: "once".into(), after: Position::START }],
        ..one("once", "meanwhile")
    };
    let error = store.commit(vec![once.clone()]).await.remove(0).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io { .. }), "{error}");
    assert!(error.to_string().contains("may be committed later"), "{error}");
    // Reading goes on with what is known.
    assert_eq!(texts(&all(&store).await), ["before"]);
    server.restart();
    // Whichever of the two the log has first, the other one finds it.
    let again = loop {
        match store.commit(vec![once.clone()]).await.remove(0) {
            Err(error) if matches!(error.kind(), ErrorKind::Io { .. }) => {}
            result => break result,
        }
    };
    assert!(again.is_ok() || matches!(again.unwrap_err().kind(), ErrorKind::Conflict { .. }));
    assert_eq!(texts(&all(&store).await), ["before", "meanwhile"]);
}

#[tokio::test]
async fn what_does_not_belong_into_the_log_is_left_out_and_counted() {
    let server = NatsServer::start();
    let store = open(&server.url()).await;
    assert!(store.commit(vec![one("a", "1")]).await.remove(0).is_ok());
    let context = async_nats::jetstream::new(client(&server.url()).await);
    let stream = context.get_stream(format!("happen_{SPACE}")).await.unwrap();
    let written = stream.get_raw_message(1).await.unwrap().payload;
    let subject = format!("happen.{SPACE}.log");
    let mut flipped = written.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    for foreign in [b"".to_vec(), b"hello".to_vec(), written[..20].to_vec(), flipped] {
        context.publish(subject.clone(), foreign.into()).await.unwrap().await.unwrap();
    }
    // The same once more is no second time.
    context.publish(subject, written).await.unwrap().await.unwrap();
    assert!(store.commit(vec![one("a", "2")]).await.remove(0).is_ok());
    let other = open(&server.url()).await;
    for store in [&store, &other] {
        assert_eq!(texts(&all(store).await), ["1", "2"]);
        assert_eq!(store.refused(), 4);
    }
}

#[tokio::test]
async fn a_later_version_in_the_log_stops_an_earlier_one() {
    let server = NatsServer::start();
    let store = open(&server.url()).await;
    let context = async_nats::jetstream::new(client(&server.url()).await);
    assert!(store.commit(vec![one("a", "0")]).await.remove(0).is_ok());
    let mut watch = store.watch(Select::All, Position::START).await.unwrap();
    assert_eq!(texts(&watch.next().await.unwrap()), ["0"]);
    let later = [b"HL", &[u8::MAX][..], &[0; 33]].concat();
    context.publish(format!("happen.{SPACE}.log"), later.into()).await.unwrap().await.unwrap();
    let stopped = |error: Error| {
        assert!(matches!(error.kind(), ErrorKind::Misuse { .. }), "{error}");
        assert!(error.chain().join(" ").contains("update this program"), "{error}");
    };
    // Whoever waits for what comes is told as well, and nobody is given what is no longer true.
    stopped(store.commit(vec![one("a", "1")]).await.remove(0).unwrap_err());
    stopped(watch.next().await.unwrap_err());
    stopped(store.watch(Select::All, Position::START).await.map(drop).unwrap_err());
    stopped(store.read(Read::forward(Select::All)).await.map(drop).unwrap_err());
    stopped(store.documents(vec!["x".into()]).await.map(drop).unwrap_err());
    stopped(store.document_now(&"x".into()).unwrap().map(drop).unwrap_err());
    stopped(NatsStore::open(client(&server.url()).await, options()).await.unwrap_err());
}

#[tokio::test]
async fn a_log_that_was_cut_off_is_told_and_not_taken_for_the_whole() {
    let server = NatsServer::start();
    let store = open(&server.url()).await;
    for text in ["1", "2", "3"] {
        assert!(store.commit(vec![one("a", text)]).await.remove(0).is_ok());
    }
    let context = async_nats::jetstream::new(client(&server.url()).await);
    let stream = context.get_stream(format!("happen_{SPACE}")).await.unwrap();
    stream.purge().sequence(3).await.unwrap();
    let error = NatsStore::open(client(&server.url()).await, options()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Damaged { .. }), "{error}");
    // Whoever has all of it goes on.
    assert!(store.commit(vec![one("a", "4")]).await.remove(0).is_ok());
    assert_eq!(texts(&all(&store).await), ["1", "2", "3", "4"]);
}

#[tokio::test]
async fn a_server_or_a_stream_that_cannot_keep_the_promise_is_told() {
    let server = NatsServer::start();
    let context = async_nats::jetstream::new(client(&server.url()).await);
    let usual = |space: &str| stream::Config {
        name: format!("happen_{space}"),
        subjects: vec![format!("happen.{space}.log")],
        discard: stream::DiscardPolicy::New,
        ..stream::Config::default()
    };
    let opened = async |space: &str| {
        let options = NatsStoreOptions::new(space, env());
        NatsStore::open(client(&server.url()).await, options).await.map(drop)
    };
    let cases = [
        (stream::Config { subjects: vec!["other".into()], ..usual("a") }, "other subjects"),
        (stream::Config { storage: stream::StorageType::Memory, ..usual("b") }, "in memory"),
        (
            stream::Config { retention: stream::RetentionPolicy::WorkQueue, ..usual("c") },
            "once they are read",
        ),
        (stream::Config { max_age: Duration::from_secs(60), ..usual("d") }, "by age"),
        (stream::Config { discard: stream::DiscardPolicy::Old, ..usual("e") }, "by age or number"),
        (stream::Config { no_ack: true, ..usual("f") }, "acknowledges nothing"),
    ];
    for (space, (config, why)) in ["a", "b", "c", "d", "e", "f"].into_iter().zip(cases) {
        context.create_stream(config).await.unwrap();
        let error = opened(space).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Misuse { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    context.create_stream(usual("g")).await.unwrap();
    opened("g").await.unwrap();
}

#[tokio::test]
async fn a_full_account_refuses_and_takes_again_when_there_is_room() {
    let server = NatsServer::start();
    let context = async_nats::jetstream::new(client(&server.url()).await);
    let name = format!("happen_{SPACE}");
    let config = |max_bytes| stream::Config {
        name: name.clone(),
        subjects: vec![format!("happen.{SPACE}.log")],
        discard: stream::DiscardPolicy::New,
        max_bytes,
        ..stream::Config::default()
    };
    context.create_stream(config(10_000)).await.unwrap();
    let wait = Duration::from_millis(300);
    let store = NatsStore::open(client(&server.url()).await, options().commit_wait(wait)).await.unwrap();
    let text = noise(1, 3_000);
    let mut taken = 0;
    let error = loop {
        match store.commit(vec![one("a", &text)]).await.remove(0) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(taken, 3);
    assert!(matches!(error.kind(), ErrorKind::Io { .. }));
    assert!(error.to_string().contains("maximum bytes exceeded"), "{error}");
    context.update_stream(config(-1)).await.unwrap();
    let behind = Batch {
        conditions: vec![Condition::NoneAfter { tag: "once".into(), after: Position::START }],
        ..one("once", "behind")
    };
    while let Err(error) = store.commit(vec![behind.clone()]).await.remove(0) {
        if matches!(error.kind(), ErrorKind::Conflict { .. }) {
            break;
        }
    }
    // What nobody knew of was written as well, in its place.
    let found = all(&store).await;
    assert_eq!(found.len(), 5);
    assert_eq!(texts(&found)[4], "behind");
}

#[tokio::test]
async fn a_pruning_is_the_same_in_every_copy() {
    let server = NatsServer::start();
    let (here, there) = (open(&server.url()).await, open(&server.url()).await);
    for text in ["1", "2", "3", "4"] {
        assert!(here.commit(vec![one("a", text)]).await.remove(0).is_ok());
    }
    let before = has(&there, 4).await[2].position;
    let prune = |revision| Prune {
        before,
        records: Select::All,
        keep: Vec::new(),
        histories: Vec::new(),
        documents: count("anchor", revision, 2).documents,
    };
    assert_eq!(here.prune(prune(1)).await.unwrap().records, 2);
    let error = there.prune(prune(1)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Conflict { .. }), "{error}");
    assert_eq!(texts(&all(&there).await), ["3", "4"]);
    assert_eq!(all(&open(&server.url()).await).await, all(&here).await);
}

#[tokio::test]
async fn a_store_that_is_closed_says_so() {
    let server = NatsServer::start();
    let store = open(&server.url()).await;
    assert!(store.commit(vec![one("a", "1")]).await.remove(0).is_ok());
    store.close().await;
    let error = store.commit(vec![one("a", "2")]).await.remove(0).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed { .. }), "{error}");
    let error = store.read(Read::forward(Select::All)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed { .. }), "{error}");
}

/// Writes a kilobyte so many times, by turns, and gives the texts.
async fn write_much(stores: &[&NatsStore], count: usize) -> Vec<String> {
    let mut written = Vec::new();
    for number in 0..count {
        let text = noise(number as u64, 1_000);
        assert!(stores[number % stores.len()].commit(vec![one("a", &text)]).await.remove(0).is_ok());
        written.push(text);
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_kept_and_the_log_before_it_is_let_go() {
    let server = NatsServer::start();
    let often = || options().copy_after(20_000);
    let opened = async || NatsStore::open(client(&server.url()).await, often()).await.unwrap();
    let (here, there) = (opened().await, opened().await);
    let mut written = write_much(&[&here, &there], 150).await;
    let context = async_nats::jetstream::new(client(&server.url()).await);
    let stream = context.get_stream(format!("happen_{SPACE}")).await.unwrap();
    let env = env();
    for _ in 0..3_000 {
        if stream.get_info().await.unwrap().state.first_sequence > 40 {
            break;
        }
        env.sleep(Duration::from_millis(5)).await;
    }
    let state = stream.get_info().await.unwrap().state;
    assert!(state.first_sequence > 40, "{state:?}");
    assert!(state.messages < 110, "{state:?}");
    // Whoever comes now has everything, writes on, and is at the same places as those that were there all the time.
    let new = opened().await;
    assert_eq!(texts(&all(&new).await), written);
    written.extend(write_much(&[&new, &here], 100).await);
    let records = has(&there, written.len()).await;
    assert_eq!(texts(&records), written);
    for store in [&here, &new, &opened().await] {
        assert_eq!(has(store, written.len()).await, records);
        assert_eq!(store.refused(), 0);
    }
    // What a writer sent before its copy was kept is known to be there also behind it.
    let newest = stream.get_info().await.unwrap().state.last_sequence;
    let last = stream.get_raw_message(newest).await.unwrap().payload;
    context.publish(format!("happen.{SPACE}.log"), last).await.unwrap().await.unwrap();
    assert!(new.commit(vec![one("a", "behind")]).await.remove(0).is_ok());
    assert_eq!(texts(&all(&opened().await).await).len(), written.len() + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_kept_while_many_open_and_write() {
    let server = NatsServer::start();
    let often = || options().copy_after(10_000);
    let opened = async || NatsStore::open(client(&server.url()).await, often()).await.unwrap();
    let stores = [opened().await, opened().await];
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let writing =
        stores.iter().enumerate().map(|(index, store)| write_on(store, index as u64, &stop, &written));
    let opening = async {
        for _ in 0..15 {
            let since = written.load(Ordering::SeqCst);
            until(&written, since + 20).await;
            let new = opened().await;
            let known = all(&new).await.len() as u64;
            assert!(known >= since + 20, "{known} records are known, and {since} were there before");
        }
        stop.store(true, Ordering::SeqCst);
    };
    let (acknowledged, ()) = tokio::join!(futures_util::future::join_all(writing), opening);
    let count = acknowledged.iter().map(Vec::len).sum();
    let records = has(&stores[0], count).await;
    assert_eq!(all(&opened().await).await, records);
}

#[tokio::test]
async fn a_copy_that_is_none_is_told() {
    let server = NatsServer::start();
    let context = async_nats::jetstream::new(client(&server.url()).await);
    let config = async_nats::jetstream::object_store::Config {
        bucket: format!("happen_{SPACE}"),
        ..Default::default()
    };
    let objects = context.create_object_store(config).await.unwrap();
    // Of another version, with a header that has no end, and with one that claims more than there is.
    let header = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
    let rest = [0; 8 + 8 + 16 + 8 + 4];
    for (bytes, code) in [
        (header(&[&[9][..], &rest].concat()), "misuse"),
        (header(&[1, 2, 3]), "damaged"),
        (u32::MAX.to_le_bytes().to_vec(), "damaged"),
        (vec![1], "io"),
        ([header(&[&[1][..], &rest].concat()), b"no database".to_vec()].concat(), "misuse"),
    ] {
        objects.put("copy", &mut &bytes[..]).await.unwrap();
        let error = NatsStore::open(client(&server.url()).await, options()).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    objects.delete("copy").await.unwrap();
    open(&server.url()).await.close().await;
}

/// Surroundings in which a test can let time pass, and see whether tasks have ended.
#[derive(Debug, Default)]
struct Watched {
    real: RealEnv,
    passed_ms: AtomicU64,
    tasks: Arc<AtomicU64>,
}

impl Env for Watched {
    fn unix_ms(&self) -> u64 {
        self.real.unix_ms()
    }

    fn monotonic(&self) -> Duration {
        self.real.monotonic() + Duration::from_millis(self.passed_ms.load(Ordering::SeqCst))
    }

    fn clock(&self) -> &Arc<CoarseClock> {
        self.real.clock()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.real.fill_random(bytes);
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let tasks = Arc::clone(&self.tasks);
        tasks.fetch_add(1, Ordering::SeqCst);
        self.real.spawn(Box::pin(async move {
            task.await;
            tasks.fetch_sub(1, Ordering::SeqCst);
        }));
    }

    fn spawn_blocking(&self, work: BoxWork) {
        self.real.spawn_blocking(work);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.real.sleep(time)
    }
}

#[tokio::test]
async fn a_process_that_rested_for_long_is_another_writer() {
    let server = NatsServer::start();
    let watched = Arc::new(Watched::default());
    let options = NatsStoreOptions::new(SPACE, Arc::clone(&watched) as Arc<dyn Env>);
    let store = NatsStore::open(client(&server.url()).await, options).await.unwrap();
    let context = async_nats::jetstream::new(client(&server.url()).await);
    let mut writers = BTreeSet::new();
    // Short of the limit it stays who it is, and at it it is somebody else, as often as it rests.
    for (sequence, (rest, expected)) in (1..).zip([
        (0, 1),
        (limits::WRITER_REST_MS - 60_000, 1),
        (limits::WRITER_REST_MS, 2),
        (0, 2),
        (limits::WRITER_REST_MS, 3),
    ]) {
        watched.passed_ms.fetch_add(rest, Ordering::SeqCst);
        assert!(store.commit(vec![one("a", "1")]).await.remove(0).is_ok());
        let stream = context.get_stream(format!("happen_{SPACE}")).await.unwrap();
        let message = stream.get_raw_message(sequence).await.unwrap().payload;
        writers.insert(message[4..20].to_vec());
        assert_eq!(writers.len(), expected, "message {sequence}");
    }
    assert_eq!(all(&store).await.len(), 5);
}

#[tokio::test]
async fn a_store_that_nobody_has_any_more_ends_without_a_server() {
    let mut server = NatsServer::start();
    let watched = Arc::new(Watched::default());
    let options = NatsStoreOptions::new(SPACE, Arc::clone(&watched) as Arc<dyn Env>);
    let options = options.commit_wait(Duration::from_millis(100));
    let store = NatsStore::open(client(&server.url()).await, options).await.unwrap();
    server.kill();
    assert!(store.commit(vec![one("a", "1")]).await.remove(0).is_err());
    assert!(watched.tasks.load(Ordering::SeqCst) > 0);
    drop(store);
    happen_testing::link::until(&env(), "its tasks have ended", || watched.tasks.load(Ordering::SeqCst) == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_becomes_a_log_that_nobody_opens_before_it_is_whole() {
    let server = NatsServer::start();
    let url = server.url();
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup");
    let store = open(&url).await;
    let written = write_much(&[&store], 200).await;
    store.commit(vec![count("n", 1, 7)]).await.pop().unwrap().unwrap();
    store.backup(&backup).await.unwrap();
    let last = all(&store).await.last().unwrap().position;
    store.commit(vec![one("a", "after the backup")]).await.pop().unwrap().unwrap();

    // Others try to open it all the time.
    let restored = || NatsStoreOptions::new("restored", env()).copy_after(2_000);
    let opens = (0..4).map(|_| async {
        loop {
            match NatsStore::open(client(&url).await, restored().existing()).await {
                Ok(store) => return store,
                Err(error) => match error.kind() {
                    ErrorKind::NotFound { .. } => {}
                    ErrorKind::Misuse { what } => assert!(what.contains("is being restored"), "{what}"),
                    _ => panic!("{error}"),
                },
            }
        }
    });
    let restore = NatsStore::restore(client(&url).await, restored(), &backup);
    let (done, opened) = tokio::join!(restore, futures_util::future::join_all(opens));
    done.unwrap();
    for copy in opened {
        assert_eq!(texts(&all(&copy).await), written);
        assert_eq!(copy.documents(vec!["n".into()]).await.unwrap()[0].as_ref().unwrap().revision, 1);
        copy.close().await;
    }
    // It goes on, behind every position that was given, and keeps copies of its own.
    let copy = NatsStore::open(client(&url).await, restored()).await.unwrap();
    let committed = copy.commit(vec![count("n", 2, 8)]).await.pop().unwrap().unwrap();
    assert!(committed.position > last);
    let more = write_much(&[&copy], 200).await;
    let later = NatsStore::open(client(&url).await, restored()).await.unwrap();
    assert_eq!(texts(&all(&later).await), [written.clone(), more].concat());
    assert_eq!(later.verify().await.unwrap().damages_len, 0);
    for store in [later, copy] {
        store.close().await;
    }

    // One that is there stays as it is.
    let error = NatsStore::restore(client(&url).await, options(), &backup).await.unwrap_err();
    assert_eq!(error.code(), "conflict");
    assert_eq!(all(&store).await.len(), written.len() + 1);
    // One that did not end is told by everybody, and nothing else takes its name.
    let context = async_nats::jetstream::new(client(&url).await);
    let config = stream::Config {
        name: "happen_half".into(),
        subjects: vec!["happen.half.log.restoring".into()],
        metadata: [("restoring".to_owned(), "x".to_owned())].into(),
        ..stream::Config::default()
    };
    context.create_stream(config).await.unwrap();
    let half = || NatsStoreOptions::new("half", env());
    let error = NatsStore::open(client(&url).await, half()).await.unwrap_err();
    assert!(error.to_string().contains("remove the stream and restore it again"), "{error}");
    let error = NatsStore::restore(client(&url).await, half(), &backup).await.unwrap_err();
    assert_eq!(error.code(), "conflict");
    // A backup that is not as it was written becomes nothing.
    let database = backup.join("happen.db");
    let mut bytes = std::fs::read(&database).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0xAA);
    std::fs::write(&database, bytes).unwrap();
    let other = || NatsStoreOptions::new("other", env());
    NatsStore::restore(client(&url).await, other(), &backup).await.unwrap_err();
    let error = NatsStore::open(client(&url).await, other().existing()).await.unwrap_err();
    assert_eq!(error.code(), "not-found");
    store.close().await;
}
