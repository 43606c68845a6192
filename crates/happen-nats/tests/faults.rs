//! What becomes of payments while servers are cut from each other, a disk is full or loses its power, a clock is set, or an
//! account has no room or no rights any more: what was acknowledged is there once, and what cannot be is told.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::stream;
use futures_util::TryStreamExt as _;
use happen::env::RealEnv;
use happen::global::LargeValue;
use happen::{Config, Context, Event, Space, millis, secs};
use happen_core::env::{BoxFuture, BoxWork, CoarseClock, Env};
use happen_core::store::{Batch, NewRecord, Read, Select, Start, Store as _, Tag};
use happen_nats::{Connection, LinkOptions, Nats, NatsLink, NatsStore, NatsStoreOptions, limits};
use happen_testing::link::until;
use happen_testing::{
    ImageDisk, NatsCluster, NatsServer, NatsSetup, SetClock, SmallDisk, TestDisk, Way, noise, unwritten_pages,
};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("pay")]
struct Pay {
    id: u64,
    note: String,
}

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("till", version = 1)]
struct Till {
    paid: Vec<u64>,
}

/// A process with a till of its own, which keeps each payment in its state.
struct Process {
    space: Space,
    till: String,
    /// What the space told of its store and its connection.
    told: Arc<Mutex<Vec<String>>>,
}

impl Process {
    async fn open(url: &str, till: &str) -> Self {
        Self::start(Nats::at(format!("{url}/shop")).commit_wait(secs(2)).open().await.unwrap(), till).await
    }

    async fn start(space: Space, till: &str) -> Self {
        space.node(till).on("pay", |pay: &Event<Pay>, cx: &Context| {
            let id = pay.id;
            cx.state::<Till>().set(move |mut till| {
                till.paid.push(id);
                till
            })
        });
        let told = Arc::new(Mutex::new(Vec::new()));
        for heard in ["system.store-failed", "system.store-recovered", "system.connection-status"] {
            let push = Arc::clone(&told);
            space.on(heard, move |event: &Event, _: &Context| {
                let said = event.payload().json().unwrap();
                push.lock().unwrap().push(format!("{} {said}", event.event_type()));
            });
        }
        space.start().await.unwrap();
        Self { space, till: till.to_owned(), told }
    }

    async fn pay(&self, id: u64) -> happen::Result<()> {
        self.space.send(&*self.till, Pay { id, note: String::new() }).await.map(drop)
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    fn has_told(&self, what: &str) -> bool {
        self.told().iter().any(|told| told.starts_with(what))
    }

    /// What the copy of this process says that a till has.
    async fn paid(&self, till: &str) -> Vec<u64> {
        let found = self.space.store().documents(vec![format!("state/{till}/till").into()]).await.unwrap();
        let Some(document) = found.into_iter().next().unwrap() else { return Vec::new() };
        let content = document.content.unwrap();
        let till: Till = happen_core::state::decode_document(content.version, &content.bytes).unwrap();
        till.paid
    }
}

/// Payments without an end, into several tills.
#[derive(Default)]
struct Paying {
    acknowledged: Vec<Mutex<Vec<u64>>>,
    refusals: Vec<Mutex<BTreeSet<&'static str>>>,
    next: AtomicU64,
    stop: AtomicBool,
}

impl Paying {
    fn into(tills: usize) -> Self {
        Self {
            acknowledged: (0..tills).map(|_| Mutex::default()).collect(),
            refusals: (0..tills).map(|_| Mutex::default()).collect(),
            ..Self::default()
        }
    }

    async fn pay_into(&self, index: usize, process: &Process) {
        let env = env();
        while !self.stop.load(Ordering::SeqCst) {
            let id = self.next.fetch_add(1, Ordering::SeqCst);
            match process.pay(id).await {
                Ok(()) => self.acknowledged[index].lock().unwrap().push(id),
                Err(error) => {
                    self.refusals[index].lock().unwrap().insert(error.code());
                    env.sleep(millis(20)).await;
                }
            }
        }
    }

    fn acknowledged(&self, index: usize) -> Vec<u64> {
        self.acknowledged[index].lock().unwrap().clone()
    }

    fn count(&self, index: usize) -> usize {
        self.acknowledged[index].lock().unwrap().len()
    }

    /// Waits until so many more were acknowledged.
    async fn goes_on(&self, index: usize, more: usize) {
        let enough = self.count(index) + more;
        until(&env(), "payments go on", || self.count(index) >= enough).await;
    }

    /// Pays into the tills of these processes while something is done to them, and checks what became of it: in the
    /// copies of all, and in that of one who comes later.
    async fn while_this_is_done(
        &self,
        processes: &[&Process],
        harm: impl AsyncFnOnce(),
        later: impl AsyncFnOnce() -> Process,
    ) {
        let paying = processes.iter().enumerate().map(|(index, process)| self.pay_into(index, process));
        let harming = async {
            harm().await;
            self.stop.store(true, Ordering::SeqCst);
        };
        tokio::join!(futures_util::future::join_all(paying), harming);
        for process in processes {
            process.space.settled(secs(30)).await.unwrap();
        }
        let later = later().await;
        let mut all: Vec<&Process> = processes.to_vec();
        all.push(&later);
        let env = env();
        for (index, process) in processes.iter().enumerate() {
            let paid = process.paid(&process.till).await;
            once(&paid);
            let lost: Vec<_> = self.acknowledged(index).into_iter().filter(|id| !paid.contains(id)).collect();
            assert!(lost.is_empty(), "{lost:?} were acknowledged and are gone");
            for other in &all {
                let mut looks = 0;
                while other.paid(&process.till).await != paid {
                    looks += 1;
                    assert!(looks < 500, "the copies differ: {paid:?}");
                    env.sleep(millis(10)).await;
                }
            }
        }
        for process in all {
            let verified = process.space.journal().verify().await.unwrap();
            assert!(verified.is_whole(), "{verified:?}");
            assert_eq!(process.space.dead_letters().len(), 0);
        }
    }
}

fn once(paid: &[u64]) {
    let different: BTreeSet<_> = paid.iter().collect();
    assert_eq!(different.len(), paid.len(), "something was paid twice");
}

fn env() -> Arc<dyn Env> {
    Arc::new(RealEnv::new())
}

/// A cluster whose servers can be cut from each other.
struct Divisible {
    cluster: NatsCluster,
    ways: Vec<(usize, usize, Way)>,
}

impl Divisible {
    fn start() -> Self {
        let mut ways = Vec::new();
        let cluster = NatsCluster::with("", 3, |route| {
            let way = Way::to(route.port);
            let port = way.port();
            ways.push((route.from, route.to, way));
            port
        });
        Self { cluster, ways }
    }

    fn ways_of(&self, server: usize) -> impl Iterator<Item = &Way> {
        self.ways.iter().filter(move |(from, to, _)| [from, to].contains(&&server)).map(|(_, _, way)| way)
    }

    async fn leader(&self, url: &str) -> usize {
        let client = async_nats::connect(url.split(',').collect::<Vec<_>>()).await.unwrap();
        let stream = async_nats::jetstream::new(client).get_stream("happen_shop").await.unwrap();
        let leader = stream.cached_info().cluster.as_ref().unwrap().leader.clone().unwrap();
        leader.strip_prefix("server-").unwrap().parse().unwrap()
    }
}

/// The side of one server stops committing and says so, the side of two goes on, and in the end all agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_servers_that_are_cut_from_each_other_the_larger_part_goes_on() {
    for leads in [true, false] {
        let servers = Divisible::start();
        let url = servers.cluster.url();
        // Whoever makes the log waits until the servers agree on a leader.
        let first = Process::open(&url, "first").await;
        let leader = servers.leader(&url).await;
        let alone = if leads { leader } else { (leader + 1) % 3 };
        let others: Vec<_> = (0..3).filter(|server| *server != alone).collect();
        let cut_off = Process::open(&servers.cluster.servers[alone].url(), "alone").await;
        let together = others.iter().map(|server| servers.cluster.servers[*server].url()).collect::<Vec<_>>();
        let majority = Process::open(&together.join(","), "together").await;
        first.space.stop().await.unwrap();
        let paying = Paying::into(2);
        let harm = async || {
            paying.goes_on(0, 10).await;
            paying.goes_on(1, 10).await;
            servers.ways_of(alone).for_each(Way::cut);
            until(&env(), "it is told", || cut_off.has_told("system.store-failed")).await;
            let (refused_since, known) = (paying.count(0), cut_off.paid("alone").await.len());
            // They choose another leader first, if the one that was cut off led.
            paying.goes_on(1, 20).await;
            assert_eq!(paying.count(0), refused_since, "a commit that most servers do not know");
            assert_eq!(cut_off.paid("alone").await.len(), known, "reading goes on");
            assert!(!cut_off.has_told("system.store-recovered"));
            servers.ways_of(alone).for_each(Way::heal);
            until(&env(), "it is told", || cut_off.has_told("system.store-recovered")).await;
            paying.goes_on(0, 20).await;
            paying.goes_on(1, 20).await;
        };
        let later = async || Process::open(&url, "later").await;
        paying.while_this_is_done(&[&cut_off, &majority], harm, later).await;
        let failed = cut_off.told().into_iter().find(|told| told.starts_with("system.store-failed")).unwrap();
        assert!(failed.contains("may be committed later") && failed.contains("\"code\":\"io\""), "{failed}");
        assert_eq!(*paying.refusals[0].lock().unwrap(), BTreeSet::from(["io"]));
    }
}

/// Surroundings whose time goes faster, so that nobody waits long for servers that do not come.
#[derive(Debug, Default)]
struct Fast(RealEnv);

impl Fast {
    const TIMES: u32 = 20;
}

impl Env for Fast {
    fn unix_ms(&self) -> u64 {
        self.0.unix_ms()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic() * Self::TIMES
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
        self.0.sleep(time / Self::TIMES)
    }
}

async fn opened(env: Arc<dyn Env>, url: String) -> happen::Result<NatsStore> {
    let client = async_nats::connect(url).await.unwrap();
    NatsStore::open(client, NatsStoreOptions::new("shop", env)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_have_not_agreed_yet_are_waited_for_and_what_they_lack_is_told() {
    let fast: Arc<dyn Env> = Arc::new(Fast::default());
    let mut cluster = NatsCluster::start(3);
    cluster.kill_all();
    cluster.servers[0].restart();
    let begun = fast.monotonic();
    let error = opened(Arc::clone(&fast), cluster.servers[0].url()).await.unwrap_err();
    let waited = fast.monotonic() - begun;
    assert_eq!(error.code(), "io");
    assert!(waited >= millis(limits::AGREE_WAIT_MS), "{waited:?}");
    assert!(error.to_string().contains("no server answers that leads JetStream or the log"), "{error}");
    // Two have a leader, and are too few for a log on three.
    cluster.servers[1].restart();
    let mut told = String::new();
    for _ in 0..20 {
        told = opened(Arc::clone(&fast), cluster.servers[0].url()).await.unwrap_err().to_string();
        if told.contains("fewer servers know each other and have room") {
            break;
        }
    }
    assert!(told.contains("fewer servers know each other and have room than the log has replicas"), "{told}");
    let opening = opened(env(), cluster.servers[1].url());
    tokio::pin!(opening);
    tokio::select! {
        opened = &mut opening => panic!("two servers are enough: {opened:?}"),
        () = env().sleep(millis(300)) => {}
    }
    cluster.servers[2].restart();
    let store = opening.await.unwrap();
    assert_eq!(store.log_info().await.unwrap().replicas, 3);
}

/// An account whose user may read the log, or may not begin to.
fn reading(may: bool) -> String {
    let denied = if may { "" } else { ", permissions: { publish: { deny: \"$JS.API.CONSUMER.CREATE.>\" } }" };
    format!(
        "accounts {{ SHOP {{ jetstream: enabled, users: [\
         {{ user: shop, password: \"s3cret\"{denied} }}, {{ user: admin, password: \"s3cret\" }}] }} }}"
    )
}

/// While no reader can begin, the writer asks for another one again and again. None of that counts for the one that does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_while_the_log_cannot_be_read_is_read_as_soon_as_it_can() {
    let mut server = NatsServer::with(&reading(true));
    let sign_in = |user: &str| ConnectOptions::with_user_and_password(user.into(), "s3cret".into());
    let client = sign_in("shop").connect(server.url()).await.unwrap();
    let store = NatsStore::open(client, NatsStoreOptions::new("shop", env())).await.unwrap();
    let admin = async_nats::jetstream::new(sign_in("admin").connect(server.url()).await.unwrap());
    let log = admin.get_stream("happen_shop").await.unwrap();
    server.reload(&reading(false));
    let readers: Vec<String> = log.consumer_names().try_collect().await.unwrap();
    for reader in &readers {
        log.delete_consumer(reader).await.unwrap();
    }
    let record = NewRecord { tags: vec![Tag::Declared("all".into())], bytes: b"one".as_slice().into() };
    let committing = store.commit(vec![Batch { records: vec![record], ..Batch::default() }]);
    tokio::pin!(committing);
    tokio::select! {
        committed = &mut committing => panic!("nobody reads the log: {committed:?}"),
        () = env().sleep(secs(4)) => {}
    }
    assert_eq!(
        (readers.len(), admin.get_stream("happen_shop").await.unwrap().cached_info().state.messages),
        (1, 1)
    );
    server.reload(&reading(true));
    committing.await.remove(0).unwrap();
}

/// What a server with this setup has on its disk when the power is lost at a moment at which payments are being made: how
/// many that were acknowledged are gone.
async fn lost_with_the_power(disk: &ImageDisk, setup: NatsSetup) -> usize {
    let server = setup.clone().on(disk).start();
    let process = Process::open(&server.url(), "till").await;
    let paying = Paying::into(1);
    let cutting = async {
        let mut lost = 0;
        for _ in 0..POWER_CUTS {
            paying.goes_on(0, 50).await;
            let acknowledged = paying.acknowledged(0);
            server.pause();
            let after = disk.after_loss_of_power().unwrap();
            server.go_on();
            let server = setup.clone().on(&after).start();
            let again = Process::open(&server.url(), "another").await;
            let paid = again.paid("till").await;
            once(&paid);
            lost += acknowledged.iter().filter(|id| !paid.contains(id)).count();
        }
        paying.stop.store(true, Ordering::SeqCst);
        lost
    };
    tokio::join!(paying.pay_into(0, &process), cutting).1
}

/// How many pages of the log a server with this setup has in memory only at moments at which all payments that were
/// begun have been acknowledged.
async fn unwritten_when_acknowledged(setup: NatsSetup) -> u64 {
    // On a disk: temporary folders may be in memory.
    let disk = Folder(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
    let server = setup.on(&disk).start();
    let process = Process::open(&server.url(), "till").await;
    let mut unwritten = 0;
    for id in 0..50 {
        process.pay(id).await.unwrap();
        process.space.settled(secs(10)).await.unwrap();
        unwritten += unwritten_pages(server.store(), ".blk").unwrap();
    }
    unwritten
}

struct Folder(tempfile::TempDir);

impl TestDisk for Folder {
    fn folder(&self) -> std::path::PathBuf {
        self.0.path().to_owned()
    }

    fn starter(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Looks at the disk itself where that is allowed, and asks the system what it has not written to it where it is not. The
/// same server without `sync_interval: always` shows that what is looked at would be seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_on_the_disk_when_the_power_is_lost() {
    let (syncs, lazy) = (NatsSetup::new(), NatsSetup::new().jetstream("sync_interval: \"2m\""));
    if !cfg!(target_os = "linux") {
        panic!("only Linux can tell what is on a disk; run this test there");
    }
    match ImageDisk::new(DISK_BYTES) {
        Ok(disk) => {
            assert_eq!(lost_with_the_power(&disk, syncs).await, 0, "acknowledged payments are gone");
            let disk = ImageDisk::new(DISK_BYTES).unwrap();
            assert!(lost_with_the_power(&disk, lazy).await > 0, "a loss of power that loses nothing is none");
        }
        Err(why) => {
            eprintln!(
                "a disk needs the rights of root ({why}), so the system is asked what it has in memory"
            );
            assert_eq!(unwritten_when_acknowledged(syncs).await, 0);
            assert!(unwritten_when_acknowledged(lazy).await > 0);
        }
    }
}

/// The form of the test above that needs no rights.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_acknowledged_is_in_memory_only() {
    assert_eq!(unwritten_when_acknowledged(NatsSetup::new()).await, 0);
    let lazy = NatsSetup::new().jetstream("sync_interval: \"2m\"");
    assert!(unwritten_when_acknowledged(lazy).await > 0, "what is not synced is not seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_server_refuses_and_loses_nothing() {
    let disk = SmallDisk::new(DISK_BYTES).unwrap_or_else(|why| {
        panic!(
            "this test makes a small file system of its own, and this machine does not let it ({why}): allow user \
             namespaces, or run it as root; `an_account_without_room_refuses_and_goes_on_when_it_has_some` needs neither"
        )
    });
    let mut server = NatsSetup::new().on(&disk).start();
    let url = server.url();
    let process = Process::open(&url, "till").await;
    let paying = Paying::into(1);
    let harm = async || {
        paying.goes_on(0, 10).await;
        disk.fill();
        until(&env(), "it is told", || process.has_told("system.store-failed")).await;
        let (count, known) = (paying.count(0), process.paid("till").await.len());
        env().sleep(secs(1)).await;
        assert_eq!(paying.count(0), count, "a commit for which there is no room");
        assert_eq!(process.paid("till").await.len(), known, "reading goes on");
        disk.make_room();
        server.restart();
        until(&env(), "it is told", || process.has_told("system.store-recovered")).await;
        paying.goes_on(0, 20).await;
    };
    paying.while_this_is_done(&[&process], harm, async || Process::open(&url, "later").await).await;
    assert_eq!(*paying.refusals[0].lock().unwrap(), BTreeSet::from(["io"]));
}

async fn in_env(env: &Arc<dyn Env>, url: &str) -> Space {
    let connection = Connection::open(url, ConnectOptions::new()).await.unwrap();
    let options = NatsStoreOptions::new("shop", Arc::clone(env));
    let store = NatsStore::open(connection.client().clone(), options).await.unwrap();
    let space = Space::with_store(Config::default(), Arc::clone(env), Arc::new(store)).unwrap();
    space
        .join(NatsLink::new(&connection, Arc::clone(env), LinkOptions::new("shop", "set")).unwrap())
        .unwrap();
    space
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_while_payments_are_made_loses_none_and_changes_no_order() {
    let server = NatsServer::start();
    let url = server.url();
    let clock = Arc::new(SetClock::over(Arc::new(RealEnv::new())));
    let set = in_env(&(Arc::clone(&clock) as Arc<dyn Env>), &url).await;
    let (set, other) = (Process::start(set, "set").await, Process::open(&url, "other").await);
    let paying = Paying::into(2);
    let harm = async || {
        for days in [1, -1, 400, -400, 20 * 365, 0] {
            clock.set_ahead(days * 24 * 3_600_000);
            paying.goes_on(0, 20).await;
            paying.goes_on(1, 20).await;
        }
    };
    paying.while_this_is_done(&[&set, &other], harm, async || Process::open(&url, "later").await).await;
    for process in [&set, &other] {
        assert_eq!(process.told(), Vec::<String>::new());
        let order = process.paid("set").await;
        assert!(order.is_sorted(), "one sender's payments are in their order");
    }
    // The times of the log are the server's.
    let (mut read, mut last) = (Read::forward(Select::All), 0);
    loop {
        let page = other.space.store().read(read.clone()).await.unwrap();
        for record in page.records {
            assert!(record.at_unix_ms >= last);
            last = record.at_unix_ms;
        }
        let Some(next) = page.next else { break };
        read = read.start(Start::Position(next));
    }
    assert!(last.abs_diff(env().unix_ms()) < 60_000, "{last}");
}

/// The accounts of a server, the one of the shop with so much room.
fn account(room: &str) -> String {
    format!(
        "accounts {{ SHOP {{ jetstream {{ {room} }}, users: [{{ user: shop, password: \"s3cret\" }}] }} }}"
    )
}

fn signed_in(url: &str) -> String {
    url.replace("nats://", "nats://shop:s3cret@")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_without_room_refuses_and_goes_on_when_it_has_some() {
    let mut server = NatsServer::with(&account("max_file: 64KB"));
    let url = signed_in(&server.url());
    let process = Process::open(&url, "till").await;
    let paying = Paying::into(1);
    let harm = async || {
        until(&env(), "it is told", || process.has_told("system.store-failed")).await;
        let (count, known) = (paying.count(0), process.paid("till").await.len());
        env().sleep(millis(500)).await;
        assert_eq!(paying.count(0), count, "a commit for which there is no room");
        assert!(count > 0 && process.paid("till").await.len() == known, "reading goes on");
        server.reload(&account("max_file: 64MB"));
        until(&env(), "it is told", || process.has_told("system.store-recovered")).await;
        paying.goes_on(0, 20).await;
    };
    paying.while_this_is_done(&[&process], harm, async || Process::open(&url, "later").await).await;
    let failed = process.told().into_iter().find(|told| told.starts_with("system.store-failed")).unwrap();
    assert!(failed.contains("resource limits exceeded"), "{failed}");
    assert!(!process.told().concat().contains("s3cret"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_with_no_stream_left_opens_no_other_space() {
    let server = NatsServer::with(&account("max_streams: 1"));
    let url = signed_in(&server.url());
    let process = Process::open(&url, "till").await;
    let refused = Nats::at(format!("{url}/another")).open().await.unwrap_err();
    assert_eq!(refused.code(), "io");
    let told = refused.chain().join(": ");
    assert!(told.contains("maximum number of streams reached") && !told.contains("s3cret"), "{told}");
    // The log of the space that is there grows on, although no copy of it can be kept beside.
    let options = NatsStoreOptions::new("shop", env()).copy_after(1_000);
    let client = ConnectOptions::with_user_and_password("shop".into(), "s3cret".into());
    let client = client.connect(server.url()).await.unwrap();
    let beside = NatsStore::open(client, options).await.unwrap();
    for id in 0..20 {
        process.pay(id).await.unwrap();
    }
    process.space.settled(secs(10)).await.unwrap();
    let read = beside.read(Read::forward(Select::All)).await.unwrap();
    assert!(!read.records.is_empty());
    assert_eq!(process.paid("till").await, (0..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_too_many_is_told_and_disturbs_nobody() {
    let server = NatsServer::with("max_connections: 1");
    let process = Process::open(&server.url(), "till").await;
    let refused = Connection::open(&server.url(), ConnectOptions::new()).await.unwrap_err();
    assert_eq!(refused.code(), "io");
    assert!(refused.chain().join(": ").contains("maximum connections exceeded"), "{:?}", refused.chain());
    for id in 0..20 {
        process.pay(id).await.unwrap();
    }
    process.space.settled(secs(10)).await.unwrap();
    assert_eq!(process.paid("till").await.len(), 20);
    assert_eq!(process.told(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_small_messages_only_keeps_large_commits_whole() {
    let server = NatsServer::with("max_payload: 16384");
    let process = Process::open(&server.url(), "till").await;
    let other = Process::open(&server.url(), "other").await;
    let large = |id| Pay { id, note: noise(id, 200_000) };
    for id in 0..5 {
        process.space.send("till", large(id)).await.unwrap();
    }
    // Also into the till of another process, for that goes by the log.
    other.space.send("till", large(5)).await.unwrap();
    process.space.settled(secs(10)).await.unwrap();
    until(&env(), "all came", || {
        let paid = process.space.find("till").unwrap().state::<Till>().get(|till| till.paid.len());
        paid == 6
    })
    .await;
    // What goes over the link is one message.
    other.space.node("echo").ephemeral().on("pay", |pay: &Event<Pay>, _: &Context| pay.id);
    until(&env(), "it is known", || process.space.remote_nodes().iter().any(|node| node.id == "echo")).await;
    let refused = process.space.send("echo", large(7)).reply::<u64>().await.unwrap_err();
    assert_eq!(refused.code(), "oversized", "{refused}");
    let small = Pay { id: 8, note: String::new() };
    assert_eq!(*process.space.send("echo", small).reply::<u64>().await.unwrap(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_are_taken_back_stop_the_process_that_has_them_and_no_other() {
    let users =
        |shop: &str| format!("authorization {{ users: [{shop} {{ user: bank, password: \"b4nk\" }}] }}");
    let shop = "{ user: shop, password: \"s3cret\" },";
    let mut server = NatsServer::with(&users(shop));
    let with_shop = signed_in(&server.url());
    let with_bank = server.url().replace("nats://", "nats://bank:b4nk@");
    let process = Process::open(&with_shop, "till").await;
    let other = Process::open(&with_bank, "other").await;
    let paying = Paying::into(2);
    let harm = async || {
        paying.goes_on(0, 10).await;
        server.reload(&users(""));
        until(&env(), "it is told", || process.has_told("system.store-failed")).await;
        let count = paying.count(0);
        paying.goes_on(1, 20).await;
        assert_eq!(paying.count(0), count, "a commit by one who may not");
        let told = process.told();
        let says = |told: &String| told.to_lowercase().contains("authorization violation");
        assert!(
            told.iter().any(|told| told.starts_with("system.connection-status") && says(told)),
            "{told:?}"
        );
        assert!(told.iter().any(|told| told.starts_with("system.store-failed") && says(told)), "{told:?}");
        let refused = process.pay(u64::MAX).await.unwrap_err();
        assert!(!format!("{told:?} {refused:?} {}", refused.chain().join(" ")).contains("s3cret"));
        let env = env();
        let begun = env.monotonic();
        let late = Nats::at(format!("{with_shop}/shop")).open().await.unwrap_err();
        assert_eq!(late.code(), "io");
        assert!(env.monotonic() - begun < secs(5), "nobody waits for what will not come");
        assert!(!late.chain().join(" ").contains("s3cret") && says(&late.chain().join(" ")), "{late:?}");
        server.reload(&users(shop));
        until(&env, "it is told", || process.has_told("system.store-recovered")).await;
        paying.goes_on(0, 20).await;
    };
    let later = async || Process::open(&with_bank, "later").await;
    paying.while_this_is_done(&[&process, &other], harm, later).await;
    assert_eq!(other.told(), Vec::<String>::new());
}

/// A stream that is full is one more kind of full disk, and one that an operator sees to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_at_its_limit_refuses_and_goes_on_when_it_may_be_larger() {
    let server = NatsServer::start();
    let url = server.url();
    let process = Process::open(&url, "till").await;
    let context = async_nats::jetstream::new(async_nats::connect(&url).await.unwrap());
    let log = async |max_bytes| {
        let stream = context.get_stream("happen_shop").await.unwrap();
        let config = stream::Config { max_bytes, ..stream.cached_info().config.clone() };
        context.update_stream(config).await.unwrap();
    };
    let paying = Paying::into(1);
    let harm = async || {
        paying.goes_on(0, 10).await;
        log(1_000).await;
        until(&env(), "it is told", || process.has_told("system.store-failed")).await;
        log(-1).await;
        until(&env(), "it is told", || process.has_told("system.store-recovered")).await;
        paying.goes_on(0, 20).await;
    };
    paying.while_this_is_done(&[&process], harm, async || Process::open(&url, "later").await).await;
}

/// Room for some thousand payments and what the server keeps beside.
const DISK_BYTES: u64 = 64 << 20;

/// How often the power is lost in one test.
const POWER_CUTS: usize = 3;

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("scan")]
struct Scan {
    image: LargeValue,
}

/// What came by the link speaks of what is not in the log as far as this process has read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_behind_the_log_reads_what_it_was_told_of_by_the_link() {
    let server = NatsServer::start();
    let way = Way::to(server.port());
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let writing = in_env(&env, &server.url()).await;
    // The log comes by a way that stands still, and the link by another one.
    let log = Connection::open(&way.url(), ConnectOptions::new()).await.unwrap();
    let store = NatsStore::open(log.client().clone(), NatsStoreOptions::new("shop", Arc::clone(&env))).await;
    let reading = Space::with_store(Config::default(), Arc::clone(&env), Arc::new(store.unwrap())).unwrap();
    let direct = Connection::open(&server.url(), ConnectOptions::new()).await.unwrap();
    let options = LinkOptions::new("shop", "reading");
    reading.join(NatsLink::new(&direct, Arc::clone(&env), options).unwrap()).unwrap();
    reading.node("scans").ephemeral().on(
        "scan",
        async |scan: Event<Scan>, cx: Context| -> happen::Result<u64> {
            let image = cx.global().large(&scan.image).await?;
            Ok(image.map_or(0, |image| image.len() as u64))
        },
    );
    writing.start().await.unwrap();
    reading.start().await.unwrap();
    until(&env, "the node is known", || writing.remote_nodes().iter().any(|node| node.id == "scans")).await;
    way.cut();
    let image = writing.global().put_large(&vec![3; 3 << 20]).await.unwrap();
    let asked = writing.send("scans", Scan { image: image.clone() }).reply::<u64>();
    let healed = async || {
        env.sleep(millis(500)).await;
        way.heal();
    };
    assert_eq!(*tokio::join!(asked, healed()).0.unwrap(), 3 << 20);
    way.cut();
    writing.global().set("stock", &7u64).await.unwrap();
    assert_eq!(reading.global().get::<u64>("stock").await.unwrap(), None);
    tokio::join!(reading.catch_up(), healed()).0.unwrap();
    assert_eq!(reading.global().get::<u64>("stock").await.unwrap(), Some(7));
    assert!(writing.global().delete_large(&image).await.unwrap());
    assert_eq!(reading.global().large(&image).await.unwrap(), None);
}
