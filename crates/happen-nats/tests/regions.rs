//! A log in two regions: one writes it, the other follows, and takes over when it is told to.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "tasks of the tests run beside those of the stores")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::stream::{self, External, Source};
use happen::env::RealEnv;
use happen::{Error, Event, Space};
use happen_core::env::{BoxFuture, BoxWork, CoarseClock, Env};
use happen_core::store::{Batch, Condition, NewRecord, Position, Read, Select, Start, Store, Tag};
use happen_nats::{Former, LogPlace, LogRegion, Nats, NatsStore, NatsStoreOptions, limits};
use happen_testing::{NatsServer, NatsSetup};

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
        LogRegion::new(client(&self.east).await, options())
    }

    async fn west_region(&self) -> LogRegion {
        LogRegion::new(client(&self.west).await, options())
    }
}

/// Surroundings in which nobody waits long for another region.
#[derive(Debug, Default)]
struct Hasty(RealEnv);

impl Env for Hasty {
    fn unix_ms(&self) -> u64 {
        self.0.unix_ms()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn clock(&self) -> &Arc<CoarseClock> {
        self.0.clock()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.0.fill_random(bytes);
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn(task);
    }

    fn spawn_blocking(&self, work: BoxWork) {
        self.0.spawn_blocking(work);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let [looks, late] =
            [limits::REGION_LOOK_MS, limits::COPY_LATE_MS - 10_000].map(Duration::from_millis);
        let long = time == looks || time >= late;
        self.0.sleep(if long { Duration::from_millis(100) } else { time })
    }
}

fn env() -> Arc<dyn Env> {
    Arc::new(Hasty::default())
}

fn options() -> NatsStoreOptions {
    NatsStoreOptions::new("shop", env())
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
    for _ in 0..2_000 {
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
