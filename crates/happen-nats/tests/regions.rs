//! A log in several regions: one writes it, the others follow, and one of them takes over when it is told to.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "tasks of the tests run beside those of the stores")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::stream::{self, External, Source};
use futures_util::StreamExt as _;
use happen::env::RealEnv;
use happen::{Error, Event, Space, secs};
use happen_core::env::{BoxFuture, BoxWork, CoarseClock, Env};
use happen_core::store::{Batch, Condition, NewRecord, Position, Read, Select, Start, Store, Tag};
use happen_nats::{Former, LogPlace, LogRegion, Nats, NatsStore, NatsStoreOptions, Surplus, limits};
use happen_testing::{NatsCluster, NatsServer, NatsSetup, Way};
use serde::{Deserialize, Serialize};

/// Servers of two regions, connected with each other.
struct World {
    east: NatsServer,
    west: NatsServer,
}

impl World {
    fn start() -> Self {
        let east = NatsSetup::new().region("east", &[]).start();
        let west = NatsSetup::new().region("west", &[east.leaf_port()]).start();
        Self { east, west }
    }

    async fn in_east(&self) -> NatsStore {
        NatsStore::open(client(&self.east).await, options()).await.unwrap()
    }

    /// The servers may have just begun to know each other.
    async fn in_west(&self) -> NatsStore {
        let client = client(&self.west).await;
        NatsStore::open(client, options().mirror_of("east")).await.unwrap()
    }

    async fn east_region(&self) -> LogRegion {
        LogRegion::new(client(&self.east).await, hurried())
    }

    async fn west_region(&self) -> LogRegion {
        LogRegion::new(client(&self.west).await, hurried())
    }
}

/// Surroundings in which nobody waits long for another region.
#[derive(Debug, Default)]
struct Hasty {
    real: RealEnv,
    /// Whether time passes five times as fast for whoever waits for an answer.
    gives_up: bool,
}

impl Env for Hasty {
    fn unix_ms(&self) -> u64 {
        self.real.unix_ms()
    }

    fn monotonic(&self) -> Duration {
        self.real.monotonic() * if self.gives_up { 5 } else { 1 }
    }

    fn clock(&self) -> &Arc<CoarseClock> {
        self.real.clock()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.real.fill_random(bytes);
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.real.spawn(task);
    }

    fn spawn_blocking(&self, work: BoxWork) {
        self.real.spawn_blocking(work);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let [looks, late] =
            [limits::REGION_LOOK_MS, limits::COPY_LATE_MS - 10_000].map(Duration::from_millis);
        let long = time == looks || time >= late;
        self.real.sleep(if long { Duration::from_millis(100) } else { time })
    }
}

fn env() -> Arc<dyn Env> {
    Arc::new(Hasty::default())
}

fn options() -> NatsStoreOptions {
    NatsStoreOptions::new("shop", env())
}

/// For asking servers that are gone, or that are alone and so never choose who leads them.
fn hurried() -> NatsStoreOptions {
    NatsStoreOptions::new("shop", Arc::new(Hasty { gives_up: true, ..Hasty::default() }))
}

async fn client(server: &NatsServer) -> Client {
    async_nats::connect(server.url()).await.unwrap()
}

fn one(text: &str) -> Batch {
    let record = NewRecord { tags: vec![Tag::Declared("all".into())], bytes: text.as_bytes().into() };
    Batch { records: vec![record], ..Batch::default() }
}

async fn write(store: &NatsStore, text: &str) -> happen::Result<Position> {
    store.commit(vec![one(text)]).await.remove(0).map(|committed| committed.position)
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..6_000 {
        if holds().await {
            return;
        }
        env().sleep(Duration::from_millis(10)).await;
    }
    panic!("this did not become true: {what}");
}

async fn all(store: &NatsStore) -> Vec<String> {
    let mut texts = Vec::new();
    let mut start = Start::Edge;
    loop {
        let page = store.read(Read::forward(Select::All).start(start)).await.unwrap();
        let read = page.records.iter().map(|record| String::from_utf8(record.bytes.to_vec()).unwrap());
        texts.extend(read);
        match page.next {
            Some(next) => start = Start::Position(next),
            None => return texts,
        }
    }
}

#[tokio::test]
async fn a_region_that_follows_reads_here_and_writes_there() {
    let mut world = World::start();
    let east = world.in_east().await;
    let first = write(&east, "one").await.unwrap();
    let west = world.in_west().await;
    assert_eq!(all(&west).await, ["one"]);
    let second = write(&west, "two").await.unwrap();
    let mut watch = east.watch(Select::All, first).await.unwrap();
    assert_eq!(watch.next().await.unwrap()[0].position, second);
    // Two that decide by what they know: the order of the log decides between them.
    let none_since = || Condition::NoneAfter { tag: "all".into(), after: second };
    let decided = |text| Batch { conditions: vec![none_since()], ..one(text) };
    let (here, there) = tokio::join!(west.commit(vec![decided("west")]), east.commit(vec![decided("east")]));
    assert_eq!([&here[0], &there[0]].iter().filter(|result| result.is_ok()).count(), 1);
    let place = world.west_region().await.look().await.unwrap();
    assert!(matches!(&place, LogPlace::Mirrored { domain, .. } if domain == "east"), "{place:?}");

    world.east.kill();
    let impatient = options().commit_wait(Duration::from_millis(300));
    let cut_off = NatsStore::open(client(&world.west).await, impatient).await.unwrap();
    let error = write(&cut_off, "lost").await.unwrap_err();
    assert!(error.to_string().contains("the region that writes the log is out of reach"), "{error}");
    assert_eq!(all(&west).await.len(), 3);
    assert_eq!(all(&cut_off).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_handed_over_while_everybody_writes() {
    let world = World::start();
    let patient = |patience| options().commit_wait(Duration::from_millis(patience));
    let east = Arc::new(NatsStore::open(client(&world.east).await, patient(2_000)).await.unwrap());
    let west = options().mirror_of("east");
    let west = Arc::new(NatsStore::open(client(&world.west).await, west).await.unwrap());
    let stops = Arc::new(AtomicU64::new(0));
    let writers = [("east", Arc::clone(&east)), ("west", Arc::clone(&west))].map(|(name, store)| {
        let stops = Arc::clone(&stops);
        tokio::spawn(async move {
            let mut written = Vec::new();
            for number in 0.. {
                let text = format!("{name} {number}");
                match write(&store, &text).await {
                    Ok(_) => written.push(text),
                    Err(error) => {
                        assert!(error.to_string().contains("another region writes the log now"), "{error}");
                        break;
                    }
                }
                if stops.load(Ordering::SeqCst) == 1 {
                    break;
                }
            }
            written
        })
    });
    until("both have written", async || all(&west).await.len() > 50).await;
    let region = world.west_region().await;
    let taken = region.take_over(Former::Answers).await.unwrap();
    assert_eq!(taken.epoch, 2);
    let [in_east, in_west] = writers;
    // Whoever writes at the region before finds out.
    let mut acknowledged = in_east.await.unwrap();
    let before = all(&west).await.len();
    until("it is written in the west", async || all(&west).await.len() > before + 10).await;
    stops.store(1, Ordering::SeqCst);
    acknowledged.extend(in_west.await.unwrap());
    let kept = all(&west).await;
    let distinct: BTreeSet<_> = kept.iter().collect();
    assert_eq!(distinct.len(), kept.len(), "nothing is there twice");
    for text in &acknowledged {
        assert!(distinct.contains(text), "{text} was acknowledged");
    }
    assert!(matches!(region.look().await.unwrap(), LogPlace::Written { epoch: 2, .. }));
    assert!(matches!(world.east_region().await.look().await.unwrap(), LogPlace::Sealed { .. }));
    // Taking over again is nothing new, and the one before cannot.
    assert_eq!(region.take_over(Former::Answers).await.unwrap().epoch, 2);
    let error = world.east_region().await.take_over(Former::Answers).await.unwrap_err();
    assert_eq!(error.code(), "misuse");
}

#[tokio::test]
async fn a_region_that_is_lost_is_given_up_and_comes_back_as_a_follower() {
    let mut world = World::start();
    let east = world.in_east().await;
    let west = world.in_west().await;
    write(&east, "one").await.unwrap();
    let mut watch = west.watch(Select::All, Position::START).await.unwrap();
    assert_eq!(watch.next().await.unwrap().len(), 1);
    let region = world.west_region().await;
    assert_eq!(region.take_over(Former::Lost).await.unwrap_err().code(), "misuse", "it answers");
    let other = async || {
        let other = region.look_at_other().await.unwrap().unwrap();
        assert_eq!(other.domain, "east");
        other.place
    };
    assert_eq!(other().await, Some(LogPlace::Written { epoch: 1, sequence: 1 }));
    assert_eq!(world.east_region().await.look_at_other().await.unwrap(), None, "it knows of no other");
    world.east.kill();
    assert_eq!(other().await, None);
    assert_eq!(region.take_over(Former::Answers).await.unwrap_err().code(), "io");
    let taken = region.take_over(Former::Lost).await.unwrap();
    assert_eq!(taken.sequence, 1);
    // Who was there goes on.
    write(&west, "two").await.unwrap();

    world.east.restart();
    // Whoever opens the log tells the region before, and again until it is heard.
    let impatient = options().commit_wait(Duration::from_millis(500));
    let another = NatsStore::open(client(&world.west).await, impatient).await.unwrap();
    let returned = world.east_region().await;
    until("the east has heard of it", async || matches!(returned.look().await, Ok(LogPlace::Sealed { .. })))
        .await;
    assert_eq!(returned.look().await.unwrap(), LogPlace::Sealed { sequence: 1 });
    assert_eq!(other().await, Some(LogPlace::Sealed { sequence: 1 }));
    drop(east);
    // It begins anew as one that follows.
    let context = async_nats::jetstream::new(client(&world.east).await);
    context.delete_stream("happen_shop").await.unwrap();
    assert_eq!(other().await, Some(LogPlace::Absent));
    let follows = NatsStore::open(client(&world.east).await, options().mirror_of("west")).await.unwrap();
    write(&follows, "three").await.unwrap();
    assert_eq!(all(&follows).await, ["one", "two", "three"]);
    let theirs = other().await;
    assert!(matches!(&theirs, Some(LogPlace::Mirrored { domain, .. }) if domain == "west"), "{theirs:?}");
    // And takes it over again.
    assert!(returned.take_over(Former::Answers).await.unwrap().epoch > 2);
    write(&follows, "four").await.unwrap();
    assert_eq!(all(&follows).await, ["one", "two", "three", "four"]);
    let error = write(&another, "five").await.unwrap_err();
    assert!(error.to_string().contains("another region writes the log now"), "{error}");
}

#[tokio::test]
async fn a_region_that_comes_late_gets_what_the_log_has_let_go() {
    let world = World::start();
    let small = || options().copy_after(4_096);
    let east = NatsStore::open(client(&world.east).await, small()).await.unwrap();
    let texts: Vec<_> = (0..100).map(|number| format!("{number:0200}")).collect();
    let context = async_nats::jetstream::new(client(&world.east).await);
    for text in &texts {
        write(&east, text).await.unwrap();
    }
    until("the log has let go its beginning", async || {
        let stream = context.get_stream("happen_shop").await.unwrap();
        stream.cached_info().state.first_sequence > 1
    })
    .await;
    let west = small().mirror_of("east");
    let west = NatsStore::open(client(&world.west).await, west).await.unwrap();
    assert_eq!(all(&west).await, texts);
    // Copies are kept in each region, also when all is written from the other one.
    let before = west.log_info().await.unwrap().copied_up_to.unwrap();
    for text in &texts {
        write(&east, text).await.unwrap();
    }
    until("a copy is kept in the region that follows", async || {
        west.log_info().await.unwrap().copied_up_to.unwrap() > before
    })
    .await;
}

#[tokio::test]
async fn a_region_follows_a_log_that_began_with_a_backup() {
    let world = World::start();
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup");
    let other = NatsStoreOptions::new("other", env());
    let before = NatsStore::open(client(&world.east).await, other).await.unwrap();
    write(&before, "one").await.unwrap();
    before.backup(&backup).await.unwrap();
    NatsStore::restore(client(&world.east).await, options(), &backup).await.unwrap();
    let east = world.in_east().await;
    write(&east, "two").await.unwrap();
    // As whoever died left it who made it, when everything has come that is not in the copy.
    let context = async_nats::jetstream::new(client(&world.west).await);
    let external = External { api_prefix: "$JS.east.API".to_owned(), delivery_prefix: None };
    let east_log = Source { name: "happen_shop".to_owned(), external: Some(external), ..Source::default() };
    let mirror = stream::Config {
        name: "happen_shop".to_owned(),
        discard: stream::DiscardPolicy::New,
        mirror: Some(east_log),
        ..stream::Config::default()
    };
    context.create_stream(mirror).await.unwrap();
    until("the log has come", async || {
        context.get_stream("happen_shop").await.unwrap().cached_info().state.last_sequence > 0
    })
    .await;
    let west = world.in_west().await;
    assert_eq!(all(&west).await, ["one", "two"]);
    write(&west, "three").await.unwrap();
    assert_eq!(all(&west).await, ["one", "two", "three"]);
}

fn count(space: &Space, handled: &Arc<AtomicU64>) {
    let handled = Arc::clone(handled);
    space.node("counter").on("u64", move |_: &Event<u64>, _: &happen::Context| {
        handled.fetch_add(1, Ordering::SeqCst);
        Ok::<_, Error>(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_stands_by_in_another_region_and_goes_on_there() {
    let mut world = World::start();
    let handled = [Arc::default(), Arc::default()];
    let address = |server: &NatsServer| format!("{}/shop", server.url());
    let east = Nats::at(address(&world.east)).member("east").open().await.unwrap();
    count(&east, &handled[0]);
    east.start().await.unwrap();
    let asking = Nats::at(address(&world.west)).mirror_of("east").member("asks").open().await.unwrap();
    asking.start().await.unwrap();
    until("the node is known", async || asking.send("counter", 1_u64).await.is_ok()).await;
    until("it is handled in the east", async || handled[0].load(Ordering::SeqCst) == 1).await;
    let west = Nats::at(address(&world.west)).mirror_of("east").member("west").open().await.unwrap();
    count(&west, &handled[1]);
    let standing_by = west.clone();
    let started = tokio::spawn(async move { standing_by.start().await });
    // The region goes, with its servers and its processes.
    world.east.kill();
    drop(east);
    world.west_region().await.take_over(Former::Lost).await.unwrap();
    started.await.unwrap().unwrap();
    asking.send("counter", 2_u64).await.unwrap();
    until("it is handled in the west", async || handled[1].load(Ordering::SeqCst) == 1).await;
    assert_eq!(handled[0].load(Ordering::SeqCst), 1);
}

/// Regions of three single servers. The third goes to the first, and to the second when that one is gone.
struct ThreeRegions {
    east: NatsServer,
    west: NatsServer,
    north: NatsServer,
    /// The way from the west to the east.
    way: Way,
}

impl ThreeRegions {
    fn start() -> Self {
        let east = NatsSetup::new().region("east", &[]).start();
        let way = Way::to(east.leaf_port());
        let west = NatsSetup::new().region("west", &[way.port()]).start();
        let north = NatsSetup::new().region("north", &[east.leaf_port(), west.leaf_port()]).start();
        Self { east, west, north, way }
    }
}

async fn region(server: &NatsServer) -> LogRegion {
    LogRegion::new(client(server).await, hurried())
}

/// Keeps a copy soon, so that there is one that has to be let go.
fn copying() -> NatsStoreOptions {
    options().copy_after(4_096)
}

async fn has(store: &NatsStore, texts: &[String]) {
    until("it has come", async || all(store).await == texts).await;
}

async fn open(server: &NatsServer, options: NatsStoreOptions) -> NatsStore {
    NatsStore::open(client(server).await, options).await.unwrap()
}

/// Writes until it is taken: another region may be about to write the log, and an entry that nobody took stays on its way.
async fn write_all(store: &NatsStore, texts: impl IntoIterator<Item = String>, written: &mut Vec<String>) {
    for text in texts {
        write(store, &text).await.unwrap();
        written.push(text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_region_follows_the_one_that_has_taken_over() {
    let mut world = ThreeRegions::start();
    let east = open(&world.east, copying()).await;
    let west = open(&world.west, copying().mirror_of("east")).await;
    let north = open(&world.north, copying().mirror_of("east")).await;
    let text = |number: u32| format!("{number:0100}");
    let mut written = Vec::new();
    write_all(&east, (0..20).map(text), &mut written).await;
    has(&north, &written).await;
    let error = region(&world.north).await.follow("west", Surplus::GiveUp).await.unwrap_err();
    assert!(error.to_string().contains("region `west` does not write the log"), "{error}");
    let error = region(&world.east).await.follow("west", Surplus::GiveUp).await.unwrap_err();
    assert_eq!(error.code(), "misuse", "{error}");

    // Handed over, nobody has anything that is not in the log, and all processes go on as they are.
    region(&world.west).await.take_over(Former::Answers).await.unwrap();
    for server in [&world.north, &world.east] {
        let region = region(server).await;
        let followed = region.follow("west", Surplus::Keep).await.unwrap();
        assert_eq!(followed.given_up, 0);
        assert_eq!(region.follow("west", Surplus::Keep).await.unwrap().given_up, 0, "again is nothing new");
        let place = region.look().await.unwrap();
        assert!(matches!(&place, LogPlace::Mirrored { domain, .. } if domain == "west"), "{place:?}");
    }
    for (store, from) in [(&west, 20), (&north, 40), (&east, 60)] {
        write_all(store, (from..from + 20).map(text), &mut written).await;
    }
    for store in [&east, &west, &north] {
        has(store, &written).await;
    }

    // Back to the east, which then is lost with what only the north has heard of.
    region(&world.east).await.take_over(Former::Answers).await.unwrap();
    for server in [&world.north, &world.west] {
        assert_eq!(region(server).await.follow("east", Surplus::Keep).await.unwrap().given_up, 0);
    }
    write_all(&east, (80..100).map(text), &mut written).await;
    for store in [&west, &north] {
        has(store, &written).await;
    }
    let shared = region(&world.west).await.look().await.unwrap();
    let LogPlace::Mirrored { sequence: shared, .. } = shared else { panic!("{shared:?}") };
    world.way.cut();
    let mut heard = written.clone();
    write_all(&east, (1_000..1_050).map(text), &mut heard).await;
    has(&north, &heard).await;
    until("the north has a copy with it", async || {
        north.log_info().await.unwrap().copied_up_to.is_some_and(|copied| copied > shared)
    })
    .await;
    world.east.kill();
    world.way.break_off();
    region(&world.west).await.take_over(Former::Lost).await.unwrap();
    write_all(&west, (100..120).map(text), &mut written).await;
    // The north gets to the west by itself.
    let third = region(&world.north).await;
    until("the north has got to the west", async || {
        third.follow("west", Surplus::Keep).await.is_err_and(|error| error.code() == "conflict")
    })
    .await;
    let error = third.follow("west", Surplus::Keep).await.unwrap_err();
    assert!(error.to_string().contains(&format!("messages {} to {}", shared + 1, shared + 50)), "{error}");
    assert_eq!(all(&north).await, heard, "they can be read until they are given up");
    let followed = third.follow("west", Surplus::GiveUp).await.unwrap();
    assert_eq!((followed.shared, followed.given_up), (shared, 50));
    until("whoever has read what is given up is told", async || {
        let error = north.read(Read::forward(Select::All)).await;
        error.is_err_and(|error| error.chain().join(": ").contains("open the store again"))
    })
    .await;
    let north = open(&world.north, copying().mirror_of("west")).await;
    write_all(&north, (120..140).map(text), &mut written).await;
    assert_eq!(all(&north).await, written);
    has(&west, &written).await;
    // The one that was lost comes back, is told, and follows.
    drop(east);
    world.east.restart();
    world.way.heal();
    let again = open(&world.west, copying()).await;
    let lost = region(&world.east).await;
    until("the east is told", async || matches!(lost.look().await, Ok(LogPlace::Sealed { .. }))).await;
    assert_eq!(lost.follow("west", Surplus::Keep).await.unwrap_err().code(), "conflict");
    assert_eq!(lost.follow("west", Surplus::GiveUp).await.unwrap().given_up, 50);
    let east = open(&world.east, copying().mirror_of("west")).await;
    for store in [&east, &again] {
        has(store, &written).await;
    }
}

#[tokio::test]
async fn a_server_that_hears_nothing_of_the_log_is_replaced_before_it_notices() {
    let east = NatsSetup::new().region("east", &[]).start();
    let direct = |route: happen_testing::RouteTo| route.port;
    let west = NatsSetup::new().region("west", &[east.leaf_port()]).start_cluster(3, direct);
    let writes = NatsStore::open(client(&east).await, options()).await.unwrap();
    // Servers do not list the consumers that they have for others, but they tell what was answered.
    let mut told = client(&east).await.subscribe("$JS.EVENT.ADVISORY.API").await.unwrap();
    let patient = options().commit_wait(Duration::from_secs(40)).mirror_of("east");
    let follows = NatsStore::open(of_all(&west).await, patient).await.unwrap();
    write(&follows, "one").await.unwrap();
    let log = async |client| async_nats::jetstream::new(client).get_stream("happen_shop").await.unwrap();
    let leads =
        async || log(of_all(&west).await).await.cached_info().cluster.as_ref().unwrap().leader.clone();
    let led = leads().await;
    // Nothing comes to it any more, and nobody says so.
    let there = log(client(&east).await).await;
    let mirror = loop {
        let told: serde_json::Value = serde_json::from_slice(&told.next().await.unwrap().payload).unwrap();
        let answer: serde_json::Value =
            serde_json::from_str(told["response"].as_str().unwrap_or_default()).unwrap_or_default();
        match answer["name"].as_str() {
            Some(name) if name.starts_with("JS_MIRROR_") => break name.to_owned(),
            _ => {}
        }
    };
    there.delete_consumer(&mirror).await.unwrap();
    write(&writes, "two").await.unwrap();
    write(&follows, "three").await.unwrap();
    assert_ne!(leads().await, led);
    assert_eq!(all(&follows).await, ["one", "two", "three"]);
}

#[tokio::test]
async fn a_region_that_chooses_its_leader_is_not_lost() {
    let world = World::start();
    let (east, _west) = (world.in_east().await, world.in_west().await);
    write(&east, "one").await.unwrap();
    let region = LogRegion::new(client(&world.west).await, options());
    // Servers that choose answer nothing; neither does one that stands still.
    world.east.pause();
    let takes = tokio::spawn(async move { region.take_over(Former::Lost).await });
    env().sleep(Duration::from_millis(limits::ASK_WAIT_MS * 3)).await;
    world.east.go_on();
    assert_eq!(takes.await.unwrap().unwrap_err().code(), "misuse", "it answers");
    write(&east, "two").await.unwrap();
    // Each question may be asked by a task of its own.
    let region = LogRegion::new(client(&world.west).await, options());
    let asked = tokio::spawn(async move {
        region.look_at_other().await.unwrap();
        region.follow("east", Surplus::Keep).await.unwrap().given_up
    });
    assert_eq!(asked.await.unwrap(), 0);
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("pay")]
struct Pay {
    id: u64,
}

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("till", version = 1)]
struct Till {
    paid: Vec<u64>,
}

/// A process with a till of its own, and what it was told of the payments into it.
struct Process {
    space: Space,
    till: &'static str,
    acknowledged: Mutex<Vec<u64>>,
    refusals: Mutex<BTreeSet<String>>,
    stop: AtomicBool,
}

impl Process {
    async fn start(nats: Nats, till: &'static str) -> Self {
        let space = nats.commit_wait(secs(2)).open().await.unwrap();
        space.node(till).on("pay", |pay: &Event<Pay>, cx: &happen::Context| {
            let id = pay.id;
            cx.state::<Till>().set(move |mut till| {
                till.paid.push(id);
                till
            })
        });
        space.start().await.unwrap();
        let (acknowledged, refusals, stop) = Default::default();
        Self { space, till, acknowledged, refusals, stop }
    }

    /// Pays until it is told to stop.
    async fn pay(&self, next: &AtomicU64) {
        while !self.stop.load(Ordering::SeqCst) {
            let id = next.fetch_add(1, Ordering::SeqCst);
            match self.space.send(self.till, Pay { id }).await {
                Ok(_) => self.acknowledged.lock().unwrap().push(id),
                Err(error) => {
                    self.refusals.lock().unwrap().insert(error.chain().join(": "));
                    env().sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    fn acknowledged(&self) -> Vec<u64> {
        self.acknowledged.lock().unwrap().clone()
    }

    async fn goes_on(&self, what: &str, more: usize) {
        let enough = self.acknowledged().len() + more;
        until(&format!("{what}, in the {}", self.till), async || self.acknowledged().len() >= enough).await;
    }

    /// What the copy of this process says that a till has.
    async fn paid(&self, till: &str) -> Vec<u64> {
        paid(&*self.space.store(), till).await
    }

    /// Whether everything in its copy is whole and has its causes.
    async fn verify(&self) {
        let verified = self.space.journal().verify().await.unwrap();
        assert!(verified.is_whole(), "{verified:?}");
        assert_eq!(self.space.dead_letters().len(), 0);
    }
}

async fn paid(store: &dyn Store, till: &str) -> Vec<u64> {
    let found = store.documents(vec![format!("state/{till}/till").into()]).await.unwrap();
    let Some(document) = found.into_iter().next().unwrap() else { return Vec::new() };
    let content = document.content.unwrap();
    let till: Till = happen_core::state::decode_document(content.version, &content.bytes).unwrap();
    let different: BTreeSet<_> = till.paid.iter().collect();
    assert_eq!(different.len(), till.paid.len(), "something was paid twice");
    till.paid
}

/// Two regions of three servers each. Each server of the west knows all of the east.
struct TwoClusters {
    east: NatsCluster,
    west: NatsCluster,
    ways: Vec<Way>,
}

impl TwoClusters {
    fn start() -> Self {
        let direct = |route: happen_testing::RouteTo| route.port;
        let east = NatsSetup::new().region("east", &[]).start_cluster(3, direct);
        let ways: Vec<Way> = east.servers.iter().map(|server| Way::to(server.leaf_port())).collect();
        let remotes: Vec<u16> = ways.iter().map(Way::port).collect();
        let west = NatsSetup::new().region("west", &remotes).start_cluster(3, direct);
        Self { east, west, ways }
    }

    async fn region(cluster: &NatsCluster) -> LogRegion {
        LogRegion::new(of_all(cluster).await, options())
    }

    fn nats(cluster: &NatsCluster) -> Nats {
        Nats::at(format!("{}/shop", cluster.url()))
    }
}

async fn of_all(cluster: &NatsCluster) -> Client {
    async_nats::connect(cluster.servers.iter().map(NatsServer::url).collect::<Vec<_>>()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_clusters_a_leader_dies_then_the_log_moves_then_one_is_lost_and_comes_back() {
    let mut world = TwoClusters::start();
    let next = Arc::new(AtomicU64::new(0));
    let begin = |process: &Arc<Process>| {
        let (process, next) = (Arc::clone(process), Arc::clone(&next));
        tokio::spawn(async move { process.pay(&next).await })
    };
    let east = Arc::new(Process::start(TwoClusters::nats(&world.east), "east").await);
    let west = Arc::new(Process::start(TwoClusters::nats(&world.west).mirror_of("east"), "west").await);
    let pays = [begin(&east), begin(&west)];
    let both_go_on = async |what: &str| tokio::join!(east.goes_on(what, 20), west.goes_on(what, 20));
    both_go_on("both pay").await;

    // The leader of the log dies.
    let log = async_nats::jetstream::new(of_all(&world.east).await).get_stream("happen_shop").await.unwrap();
    let leader = log.cached_info().cluster.as_ref().unwrap().leader.clone().unwrap();
    world.east.named(&leader).unwrap().kill();
    both_go_on("both pay without the leader").await;
    world.east.named(&leader).unwrap().restart();

    // The log is handed over while both pay, and the region before follows.
    let (in_east, in_west) = (TwoClusters::region(&world.east).await, TwoClusters::region(&world.west).await);
    assert_eq!(in_west.take_over(Former::Answers).await.unwrap().epoch, 2);
    west.goes_on("the west pays on", 20).await;
    let told = "another region writes the log now";
    until("the east is told", async || east.refusals.lock().unwrap().iter().any(|why| why.contains(told)))
        .await;
    assert_eq!(in_east.follow("west", Surplus::Keep).await.unwrap().given_up, 0);
    both_go_on("both pay after it was handed over").await;

    // The region that writes is cut off, goes on for a while, and is lost.
    let sent_on = west.acknowledged();
    until("the east has it", async || {
        let known = east.paid("west").await;
        sent_on.iter().all(|id| known.contains(id))
    })
    .await;
    world.ways.iter().for_each(Way::cut);
    // One may have been on its way.
    let with_others = west.acknowledged().len() + 1;
    west.goes_on("the west pays alone", 30).await;
    world.west.kill_all();
    world.ways.iter().for_each(Way::break_off);
    world.ways.iter().for_each(Way::heal);
    west.stop.store(true, Ordering::SeqCst);
    let alone = LogRegion::new(of_all(&world.east).await, hurried());
    assert_eq!(alone.take_over(Former::Answers).await.unwrap_err().code(), "io");
    alone.take_over(Former::Lost).await.unwrap();
    east.goes_on("the east pays on", 20).await;

    // It comes back with what it has, and is told by whoever opens the log.
    world.west.restart_all();
    let later = Process::start(TwoClusters::nats(&world.east), "later").await;
    until("the west is told", async || matches!(in_west.look().await, Ok(LogPlace::Sealed { .. }))).await;
    let error = in_west.follow("east", Surplus::Keep).await.unwrap_err();
    assert_eq!(error.code(), "conflict", "{error}");
    assert!(in_west.follow("east", Surplus::GiveUp).await.unwrap().given_up > 0);
    until("its process is told", async || {
        let read = west.space.store().read(Read::forward(Select::All)).await;
        read.is_err_and(|error| error.chain().join(": ").contains("open the store again"))
    })
    .await;
    let [east_pays, west_pays] = pays;
    west_pays.await.unwrap();
    let lost = west.acknowledged().split_off(with_others);
    drop(west);
    let west = Arc::new(Process::start(TwoClusters::nats(&world.west).mirror_of("east"), "west").await);
    let west_pays = begin(&west);
    west.goes_on("the west pays again", 20).await;
    east.goes_on("the east pays beside", 20).await;
    east.stop.store(true, Ordering::SeqCst);
    west.stop.store(true, Ordering::SeqCst);
    east_pays.await.unwrap();
    west_pays.await.unwrap();

    // Both have the same: what was acknowledged but for what was given up, each once, with its causes.
    for process in [&east, &west] {
        process.space.settled(secs(30)).await.unwrap();
    }
    let [paid_east, paid_west] = [east.paid("east").await, west.paid("west").await];
    for (process, till, paid) in [
        (&*west, "east", &paid_east),
        (&*east, "west", &paid_west),
        (&later, "east", &paid_east),
        (&later, "west", &paid_west),
    ] {
        until("the copies agree", async || process.paid(till).await == *paid).await;
    }
    let acknowledged =
        [(east.acknowledged(), &paid_east), (sent_on, &paid_west), (west.acknowledged(), &paid_west)];
    for (acknowledged, paid) in acknowledged {
        let missing: Vec<_> = acknowledged.into_iter().filter(|id| !paid.contains(id)).collect();
        assert!(missing.is_empty(), "{missing:?} were acknowledged and are gone");
    }
    assert!(lost.len() >= 29 && !lost.iter().any(|id| paid_west.contains(id)), "{lost:?} of {paid_west:?}");
    for process in [&*east, &*west, &later] {
        process.verify().await;
    }
}
