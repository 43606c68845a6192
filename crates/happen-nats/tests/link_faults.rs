//! What the link over NATS does when something fails: the server, the way, a member, or who writes on its subjects.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use async_nats::ConnectOptions;
use futures_util::FutureExt as _;
use happen::env::RealEnv;
use happen::{Config, Context, Event, Link, Routing, Space, with};
use happen_core::Pattern;
use happen_core::env::Env;
use happen_core::link::{ConnectionStatus, Inbound, NodePresence, Notice, Replies};
use happen_nats::{Connection, Connector, LinkOptions, NatsLink, limits};
use happen_testing::link::{next_reply, until};
use happen_testing::{NatsCluster, NatsServer, SetClock, Way};

type Shared<T> = Arc<Mutex<T>>;

fn env() -> Arc<dyn Env> {
    Arc::new(RealEnv::new())
}

async fn link(url: &str, env: &Arc<dyn Env>, name: &str) -> Arc<NatsLink> {
    let connection = Connection::open(url, ConnectOptions::new()).await.unwrap();
    NatsLink::new(&connection, Arc::clone(env), LinkOptions::new("tests", name)).unwrap()
}

async fn space(url: &str, env: &Arc<dyn Env>, name: &str) -> Space {
    let space = Space::in_env(Config::default(), Arc::clone(env)).unwrap();
    space.join(link(url, env, name).await).unwrap();
    space
}

async fn knows(env: &Arc<dyn Env>, space: &Space, node: &str) {
    let found = || space.remote_nodes().iter().any(|known| known.id == node);
    until(env, "the node is known", found).await;
}

/// Takes frames in as long as its door is open, and keeps what the link tells.
struct Desk {
    node: String,
    more_nodes: usize,
    open: Mutex<bool>,
    opened: Condvar,
    frames: Mutex<Vec<Vec<u8>>>,
    told: Mutex<Vec<String>>,
    never_answers: AtomicBool,
}

impl Desk {
    fn new(node: &str) -> Arc<Self> {
        Self::with(node, 0)
    }

    fn with(node: &str, more_nodes: usize) -> Arc<Self> {
        Arc::new(Self {
            node: node.to_owned(),
            more_nodes,
            open: Mutex::new(true),
            opened: Condvar::new(),
            frames: Mutex::default(),
            told: Mutex::default(),
            never_answers: AtomicBool::new(false),
        })
    }

    fn set_open(&self, open: bool) {
        *self.open.lock().unwrap() = open;
        self.opened.notify_all();
    }

    fn take(&self, frame: &[u8]) {
        let open = self.open.lock().unwrap();
        if !*open {
            // Other tasks of this thread go on elsewhere.
            tokio::task::block_in_place(|| drop(self.opened.wait_while(open, |open| !*open).unwrap()));
        }
        self.frames.lock().unwrap().push(frame.to_vec());
    }

    fn came(&self) -> usize {
        self.frames.lock().unwrap().len()
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "desk `{}`", self.node)
    }
}

impl Inbound for Desk {
    fn post(&self, _: &str, frame: &[u8]) {
        self.take(frame);
    }

    fn request(&self, _: &str, frame: &[u8]) -> Box<dyn Replies> {
        self.take(frame);
        match self.never_answers.load(Ordering::SeqCst) {
            true => Box::new(Silence),
            false => Box::new(Echo(vec![frame.to_vec()])),
        }
    }

    fn publish(&self, frame: &[u8]) {
        self.take(frame);
    }

    fn presence(&self) -> Vec<NodePresence> {
        let node =
            |id: String| NodePresence { id, handles: vec![Pattern::parse("**").unwrap()], share: None };
        let more = (0..self.more_nodes).map(|index| node(format!("{}-{index}", self.node)));
        std::iter::once(node(self.node.clone())).chain(more).collect()
    }

    fn notice(&self, notice: Notice<'_>) {
        let told = match notice {
            Notice::Connection { status, .. } => status.as_str().to_owned(),
            Notice::Refused(error) => format!("refused: {}", error.chain().join(": ")),
            Notice::Lost(error) => format!("lost: {error}"),
            other => format!("{other:?}"),
        };
        self.told.lock().unwrap().push(told);
    }
}

/// Never answers.
struct Silence;

impl Replies for Silence {
    fn poll_next(&mut self, _: &mut TaskContext<'_>) -> Poll<Option<happen::Result<Vec<u8>>>> {
        Poll::Pending
    }
}

/// Answers with what it was asked.
struct Echo(Vec<Vec<u8>>);

impl Replies for Echo {
    fn poll_next(&mut self, _: &mut TaskContext<'_>) -> Poll<Option<happen::Result<Vec<u8>>>> {
        Poll::Ready(self.0.pop().map(Ok))
    }
}

/// Two links that know each other, with desks of the nodes `a` and `b`.
async fn two(url_of_a: &str, url_of_b: &str, env: &Arc<dyn Env>) -> [(Arc<NatsLink>, Arc<Desk>); 2] {
    let ends = [
        (link(url_of_a, env, "member-a").await, Desk::new("a")),
        (link(url_of_b, env, "member-b").await, Desk::new("b")),
    ];
    for (link, desk) in &ends {
        link.attach(Arc::clone(desk) as Arc<dyn Inbound>).await.unwrap();
    }
    until(env, "they know each other", || ends.iter().all(|(link, _)| link.listens("anything"))).await;
    ends
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_while_the_server_is_away_arrives_when_it_is_back() {
    let env = env();
    let mut server = NatsServer::start();
    let [a, b] = [space(&server.url(), &env, "a").await, space(&server.url(), &env, "b").await];
    let seen: Shared<Vec<u64>> = Shared::default();
    let push = Arc::clone(&seen);
    b.node("b")
        .on("u64", move |number: &Event<u64>, _: &Context| push.lock().unwrap().push(*number.payload()));
    b.node("slow").on("u64", async |_: Event<u64>, cx: Context| cx.sleep(Duration::from_secs(3_600)).await);
    let statuses: Shared<Vec<String>> = Shared::default();
    let push = Arc::clone(&statuses);
    a.on("system.connection-status", move |event: &Event, _: &Context| {
        let text = |name| event.get(name).unwrap().as_str().unwrap().to_owned();
        push.lock().unwrap().push(format!("{} {}", text("status"), text("url")));
    });
    a.start().await.unwrap();
    b.start().await.unwrap();
    knows(&env, &a, "slow").await;
    let ended: Shared<Vec<String>> = Shared::default();
    let push = Arc::clone(&ended);
    a.send("slow", 1u64)
        .reply_with::<()>(move |reply| push.lock().unwrap().push(reply.unwrap_err().code().into()));
    until(&env, "it waits", || b.flows_under_way() == 1).await;

    server.kill();
    until(&env, "the waiting has ended", || *ended.lock().unwrap() == ["closed"]).await;
    until(&env, "the status was told", || statuses.lock().unwrap().len() == 1).await;
    // The flow that nobody waits for any more is asked to stop once the other side knows.
    for number in 0..1_000u64 {
        a.send("b", number).forget();
    }
    let asked = env.clone();
    let late = a.send("b", 1_000u64);
    let answer: Shared<Option<bool>> = Shared::default();
    let keep = Arc::clone(&answer);
    late.reply_with::<()>(move |reply| *keep.lock().unwrap() = Some(reply.is_ok()));
    assert_eq!(a.remote_nodes().len(), 2, "what is known stays known");

    server.restart();
    let back = asked.monotonic();
    until(&env, "all came", || seen.lock().unwrap().len() == 1_001).await;
    let took = env.monotonic() - back;
    assert!(took < Duration::from_secs(1), "handling went on after {took:?}");
    assert_eq!(*seen.lock().unwrap(), (0..=1_000).collect::<Vec<_>>());
    until(&env, "it was answered", || *answer.lock().unwrap() == Some(true)).await;
    a.send("b", 7u64).await.unwrap();
    let url = server.url();
    assert_eq!(*statuses.lock().unwrap(), [format!("disconnected {url}"), format!("connected {url}")]);
    assert!(a.dead_letters().is_empty() && a.problems().is_empty(), "{:?}", a.problems());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_the_server_has_an_end() {
    let env = env();
    let mut server = NatsServer::start();
    let [(a, desk), (_b, there)] = &two(&server.url(), &server.url(), &env).await;
    server.kill();
    until(&env, "it is noticed", || desk.told() == ["disconnected"] && there.told() == ["disconnected"])
        .await;
    let number = |number: usize| (number as u64).to_le_bytes().to_vec();
    for index in 0..limits::LINK_QUEUE_MAX {
        a.post("b", number(index)).unwrap();
    }
    assert_eq!(a.post("b", vec![0]).unwrap_err().code(), "busy");
    assert_eq!(a.publish("anything", vec![0]).unwrap_err().code(), "busy");
    assert_eq!(a.request("b", vec![0]).err().unwrap().code(), "busy");
    server.restart();
    until(&env, "all came", || there.came() == limits::LINK_QUEUE_MAX).await;
    let frames = there.frames.lock().unwrap().clone();
    assert!(frames.iter().enumerate().all(|(index, frame)| *frame == number(index)));
    a.post("b", vec![1]).unwrap();
    until(&env, "one more came", || there.came() == limits::LINK_QUEUE_MAX + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_waits_for_the_server_than_was_said() {
    let env = env();
    let mut server = NatsServer::start();
    let b = link(&server.url(), &env, "member-b").await;
    b.attach(Desk::new("b")).await.unwrap();
    for (name, frames, bytes, fit) in [("member-c", 3, usize::MAX, 3), ("member-d", 10, 10_000, 2)] {
        let connection = Connector::new(server.url()).reconnect_wait_max(Duration::from_millis(20));
        let connection = connection.connect().await.unwrap();
        let options = LinkOptions::new("tests", name).queue_max(frames, bytes);
        let link = NatsLink::new(&connection, Arc::clone(&env), options).unwrap();
        let desk = Desk::new("c");
        link.attach(Arc::clone(&desk) as Arc<dyn Inbound>).await.unwrap();
        until(&env, "they know each other", || link.peers().iter().any(|peer| peer.name == "member-b")).await;
        server.kill();
        until(&env, "it is noticed", || desk.told() == ["disconnected"]).await;
        for _ in 0..fit {
            link.post("b", vec![0; 4_000]).unwrap();
        }
        assert_eq!(link.post("b", vec![0; 4_000]).unwrap_err().code(), "busy", "{name}");
        server.restart();
        until(&env, "it is there again", || desk.told().last().is_some_and(|told| told == "connected")).await;
        link.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_requests_of_a_link_have_an_end() {
    let env = env();
    let server = NatsServer::start();
    let [(a, _), (_b, there)] = &two(&server.url(), &server.url(), &env).await;
    there.never_answers.store(true, Ordering::SeqCst);
    let mut replies = Vec::new();
    while replies.len() < limits::REQUESTS_MAX {
        match a.request("b", vec![0]) {
            Ok(waiting) => replies.push(waiting),
            // The queue is full, which is another limit.
            Err(_) => env.sleep(Duration::from_millis(1)).await,
        }
    }
    until(&env, "all came", || there.came() == limits::REQUESTS_MAX).await;
    let error = a.request("b", vec![0]).err().unwrap();
    assert!(error.to_string().contains("the number of requests"), "{error}");
    // One that nobody waits for any more leaves its place.
    replies.pop();
    there.never_answers.store(false, Ordering::SeqCst);
    let mut one = a.request("b", b"one".to_vec()).unwrap();
    assert_eq!(next_reply(&mut *one).await.unwrap().unwrap(), b"one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_that_are_remembered_have_an_end() {
    let env = env();
    let server = NatsServer::start();
    let [(a, desk), _] = &two(&server.url(), &server.url(), &env).await;
    let stranger = async_nats::connect(server.url()).await.unwrap();
    let beat = |run: u64| {
        let mut bytes = vec![1, 18];
        [run, 1].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend(b"\x01x");
        bytes.extend(1u64.to_le_bytes());
        bytes
    };
    let refused = || desk.told().iter().filter(|told| told.contains("one member too many")).count();
    // The other member is one of them.
    for run in 1..=limits::MEMBERS_MAX as u64 {
        assert_eq!(refused(), 0);
        stranger.publish("happen.tests.presence", beat(run).into()).await.unwrap();
    }
    until(&env, "one is refused", || refused() == 1).await;
    let mut replies = a.request("b", b"still".to_vec()).unwrap();
    assert_eq!(next_reply(&mut *replies).await.unwrap().unwrap(), b"still");
    // Those who say nothing more are forgotten.
    env.sleep(limits::SILENT_MAX + 2 * limits::HEARTBEAT).await;
    stranger.publish("happen.tests.presence", beat(1 << 40).into()).await.unwrap();
    env.sleep(Duration::from_millis(100)).await;
    assert_eq!(refused(), 1);
    assert_eq!(a.peers().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slow_receiver_is_felt_by_who_sends_and_loses_nothing() {
    let env = env();
    let server = NatsServer::start();
    let [(a, _), (b, there)] = &two(&server.url(), &server.url(), &env).await;
    there.set_open(false);
    let mut sent = 0u64;
    let full = loop {
        match a.post("b", [sent.to_le_bytes().as_slice(), &[0; 1_000]].concat()) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        // The others get their turn, so that what may leave does.
        if sent.is_multiple_of(100) {
            env.sleep(Duration::from_millis(1)).await;
        }
    };
    assert_eq!(full.code(), "busy");
    let window = limits::WINDOW_BYTES_MAX / 1_000;
    let bounds = limits::LINK_QUEUE_MAX..limits::LINK_QUEUE_MAX + window + 100;
    assert!(bounds.contains(&(sent as usize)), "{sent} frames on their way");
    // Its own questions are answered while it takes nothing in.
    let mut replies = b.request("a", b"still".to_vec()).unwrap();
    assert_eq!(next_reply(&mut *replies).await.unwrap().unwrap(), b"still");
    there.set_open(true);
    until(&env, "all came", || there.came() as u64 == sent).await;
    let frames = there.frames.lock().unwrap().clone();
    assert!(frames.iter().zip(0..).all(|(frame, number): (_, u64)| frame[..8] == number.to_le_bytes()));
    let mut replies = a.request("b", b"again".to_vec()).unwrap();
    assert_eq!(next_reply(&mut *replies).await.unwrap().unwrap(), b"again");
    assert!(there.told().is_empty(), "{:?}", there.told());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_that_the_client_had_no_room_for_are_told() {
    let env = env();
    let server = NatsServer::start();
    let small =
        Connection::open(&server.url(), ConnectOptions::new().subscription_capacity(4)).await.unwrap();
    let b = NatsLink::new(&small, Arc::clone(&env), LinkOptions::new("tests", "member-b")).unwrap();
    let there = Desk::new("b");
    b.attach(Arc::clone(&there) as Arc<dyn Inbound>).await.unwrap();
    let a = link(&server.url(), &env, "member-a").await;
    a.attach(Desk::new("a")).await.unwrap();
    until(&env, "they know each other", || a.listens("anything") && b.listens("anything")).await;
    there.set_open(false);
    for _ in 0..40 {
        a.post("b", vec![0; limits::ENVELOPE_BYTES_MAX]).unwrap();
    }
    env.sleep(Duration::from_millis(300)).await;
    there.set_open(true);
    // What comes after shows what is missing; and nothing that is missing keeps the way closed.
    until(&env, "the loss was told", || {
        a.post("b", vec![1]).unwrap();
        there.told().iter().any(|told| told.contains("messages did not arrive"))
    })
    .await;
    let mut replies = a.request("b", b"on".to_vec()).unwrap();
    assert_eq!(next_reply(&mut *replies).await.unwrap().unwrap(), b"on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stood_still_takes_nobody_for_gone() {
    let clock = Arc::new(SetClock::over(env()));
    let env = Arc::clone(&clock) as Arc<dyn Env>;
    let server = NatsServer::start();
    let proxy = Way::to(server.port());
    let [(a, _), (_b, there)] = &two(&server.url(), &proxy.url(), &env).await;
    there.never_answers.store(true, Ordering::SeqCst);
    let mut waiting = a.request("b", b"waits".to_vec()).unwrap();
    until(&env, "it has come", || there.came() == 1).await;
    // What the other one says meanwhile has not been read when it is looked for silence.
    proxy.cut();
    clock.stand_still((limits::SILENT_MAX + 2 * limits::HEARTBEAT).as_millis() as u64);
    env.sleep(limits::HEARTBEAT * 3 / 2).await;
    assert!(next_reply(&mut *waiting).now_or_never().is_none());
    assert_eq!(a.peers().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_cut_off_is_gone_and_comes_back() {
    let env = env();
    let server = NatsServer::start();
    let proxy = Way::to(server.port());
    let [(a, desk), (b, there)] = &two(&server.url(), &proxy.url(), &env).await;
    let mut answered = a.request("b", b"before".to_vec()).unwrap();
    assert_eq!(next_reply(&mut *answered).await.unwrap().unwrap(), b"before");
    proxy.cut();
    let mut waiting = a.request("b", b"waits".to_vec()).unwrap();
    let cut = env.monotonic();
    assert_eq!(next_reply(&mut *waiting).await.unwrap().unwrap_err().code(), "closed");
    let took = env.monotonic() - cut;
    // Somewhat longer where its heartbeats came late before, on a busy machine.
    assert!(took < limits::SILENT_ADAPTED_MAX, "{took:?}");
    assert!(a.peers().is_empty());
    assert_eq!(a.post("b", vec![0]).unwrap_err().code(), "no-such-node");
    assert!(desk.told().is_empty(), "nothing waited for it: {:?}", desk.told());
    proxy.heal();
    until(&env, "they know each other", || a.listens("anything") && b.listens("anything")).await;
    until(&env, "the one who was cut off answers", || {
        // What was on the way when it was cut has arrived meanwhile.
        there.frames.lock().unwrap().contains(&b"waits".to_vec())
    })
    .await;
    let mut after = a.request("b", b"after".to_vec()).unwrap();
    assert_eq!(next_reply(&mut *after).await.unwrap().unwrap(), b"after");
    let mut back = b.request("a", b"back".to_vec()).unwrap();
    assert_eq!(next_reply(&mut *back).await.unwrap().unwrap(), b"back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_one_members_until_it_is_gone() {
    let env = env();
    let server = NatsServer::start();
    let proxy = Way::to(server.port());
    let first = link(&server.url(), &env, "one").await;
    first.attach(Desk::new("first")).await.unwrap();
    assert_eq!(first.attach(Desk::new("first")).await.unwrap_err().code(), "misuse");
    let second = link(&proxy.url(), &env, "one").await;
    let desk = Desk::new("second");
    assert_eq!(second.attach(Desk::new("second")).await.unwrap_err().code(), "misuse");
    first.close().await;
    first.close().await;
    assert_eq!(first.attach(Desk::new("first")).await.unwrap_err().code(), "closed");
    second.attach(Arc::clone(&desk) as Arc<dyn Inbound>).await.unwrap();
    // One that does not answer is taken for gone; when it is back, it sees that another has its name, and leaves.
    proxy.cut();
    let third = link(&server.url(), &env, "one").await;
    third.attach(Desk::new("third")).await.unwrap();
    proxy.heal();
    until(&env, "it leaves", || desk.told().last().is_some_and(|told| told == "closed")).await;
    assert_eq!(second.post("third", vec![0]).unwrap_err().code(), "closed");
    let other = link(&server.url(), &env, "two").await;
    other.attach(Desk::new("other")).await.unwrap();
    until(&env, "the third is known", || other.peers().len() == 1 && third.peers().len() == 1).await;
    assert_eq!(other.peers()[0].nodes[0].id, "third");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_link_leaves_too() {
    let env = env();
    let server = NatsServer::start();
    let [(a, _), (b, _)] = two(&server.url(), &server.url(), &env).await;
    let connection = Connection::open(&server.url(), ConnectOptions::new()).await.unwrap();
    drop(b);
    until(&env, "it is gone", || a.peers().is_empty()).await;
    let again = NatsLink::new(&connection, Arc::clone(&env), LinkOptions::new("tests", "member-b")).unwrap();
    again.attach(Desk::new("b")).await.unwrap();
    until(&env, "it is back", || !a.peers().is_empty()).await;
    let mut replies = a.request("b", b"new".to_vec()).unwrap();
    assert_eq!(next_reply(&mut *replies).await.unwrap().unwrap(), b"new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_process_is_killed_is_gone_at_once_for_who_asks_it() {
    const URL: &str = "HAPPEN_TEST_MEMBER_OF";
    let env = env();
    if let Ok(url) = std::env::var(URL) {
        // The process that is killed.
        let member = space(&url, &env, "killed").await;
        member.node("victim").on("u64", async |number: Event<u64>, cx: Context| {
            if *number.payload() == 0 {
                cx.sleep(Duration::from_secs(3_600)).await;
            }
            *number.payload()
        });
        member.start().await.unwrap();
        std::future::pending::<()>().await;
    }
    let server = NatsServer::start();
    let a = space(&server.url(), &env, "a").await;
    a.start().await.unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_member_whose_process_is_killed_is_gone_at_once_for_who_asks_it", "--nocapture"])
        .env(URL, server.url())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    knows(&env, &a, "victim").await;
    assert_eq!(*a.send("victim", 7u64).reply::<u64>().await.unwrap(), 7);
    let ended: Shared<Vec<String>> = Shared::default();
    let push = Arc::clone(&ended);
    a.send("victim", 0u64)
        .reply_with::<u64>(move |reply| push.lock().unwrap().push(reply.unwrap_err().code().into()));
    a.send("victim", 8u64).reply::<u64>().await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    env.sleep(Duration::from_millis(50)).await;
    // The server knows at once, and says so to whoever sends next.
    let killed = env.monotonic();
    let mut codes = vec![a.send("victim", 9u64).reply::<u64>().await.unwrap_err().code()];
    codes.push(a.send("victim", 9u64).reply::<u64>().await.unwrap_err().code());
    assert!(env.monotonic() - killed < limits::HEARTBEAT);
    assert_eq!(codes, ["closed", "no-such-node"]);
    until(&env, "the one before has ended", || *ended.lock().unwrap() == ["closed"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_leaves_its_share_to_the_others() {
    const INSTANCE: &str = "HAPPEN_TEST_INSTANCE_OF";
    const KEYS: u64 = 90;
    let env = env();
    let instance = async |url: &str, name: String| {
        let space = space(url, &env, &name).await;
        let work = space.node("work").shared(Routing::ByKey);
        work.on("u64", move |_: &Event<u64>, _: &Context| name.clone());
        space.start().await.unwrap();
        space
    };
    if let Ok(told) = std::env::var(INSTANCE) {
        // One of the processes that share the work.
        let (name, url) = told.split_once(' ').unwrap();
        let _space = instance(url, name.to_owned()).await;
        std::future::pending::<()>().await;
    }
    let server = NatsServer::start();
    let a = instance(&server.url(), "a".to_owned()).await;
    let mut children = ["b", "c"].map(|name| {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_that_is_killed_leaves_its_share_to_the_others", "--nocapture"])
            .env(INSTANCE, format!("{name} {}", server.url()))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    });
    let others = || a.remote_nodes().iter().filter(|node| node.shared == Some(Routing::ByKey)).count();
    until(&env, "all are known", || others() == 2).await;
    let place = async |key: u64| {
        let sent = a.send("work", key).routing_key(key.to_string()).within(Duration::from_secs(5));
        sent.reply::<String>().await.map(|reply| reply.into_inner()).map_err(|error| error.code())
    };
    let mut before = Vec::new();
    for key in 0..KEYS {
        before.push(place(key).await.unwrap());
    }
    for name in ["a", "b", "c"] {
        let has = before.iter().filter(|at| *at == name).count();
        assert!(has >= 10, "{name} has {has} of {KEYS}");
    }
    let [killed, left] = &mut children;
    killed.kill().unwrap();
    killed.wait().unwrap();
    // The keys of the others never notice. Those of the one that is gone move as soon as the first sender was told.
    let mut told = Vec::new();
    for key in 0..KEYS {
        let mut at = place(key).await;
        while let Err(code) = at {
            told.push(code);
            at = place(key).await;
        }
        let (at, was) = (at.unwrap(), &before[key as usize]);
        assert!(at == *was || was == "b" && at != "b", "{key}: {was}, {at}");
    }
    assert!(told.len() <= 3 && told.iter().all(|code| *code == "closed"), "{told:?}");
    assert_eq!(others(), 1);
    left.kill().unwrap();
    left.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_goes_on_at_another_server_of_the_cluster() {
    let env = env();
    let mut cluster = NatsCluster::start(3);
    let order = |first: usize| {
        let url = |index: usize| cluster.servers[index % 3].url();
        [url(first), url(first + 1), url(first + 2)].join(",")
    };
    let options = || ConnectOptions::new().retain_servers_order();
    let [a, b] = &["a", "b"]
        .map(|name| Space::in_env(Config::default(), Arc::clone(&env)).map(|space| (name, space)).unwrap());
    for (index, (name, space)) in [a, b].into_iter().enumerate() {
        let connection = Connection::open(&order(index), options()).await.unwrap();
        let options = LinkOptions::new("tests", *name);
        space.join(NatsLink::new(&connection, Arc::clone(&env), options).unwrap()).unwrap();
    }
    let ((_, a), (_, b)) = (a, b);
    b.node("b").on("u64", |number: &Event<u64>, _: &Context| *number.payload());
    a.start().await.unwrap();
    b.start().await.unwrap();
    knows(&env, a, "b").await;
    assert_eq!(*a.send("b", 1u64).reply::<u64>().await.unwrap(), 1);
    cluster.servers[1].kill();
    let killed = env.monotonic();
    let mut tries = 0;
    let answer = loop {
        match a.send("b", 2u64).reply::<u64>().await {
            Ok(answer) => break *answer,
            Err(error) => assert!(["closed", "no-such-node"].contains(&error.code()), "{error:?}"),
        }
        tries += 1;
        env.sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(answer, 2);
    let took = env.monotonic() - killed;
    assert!(took < Duration::from_secs(3), "{took:?} and {tries} attempts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_gone_for_a_moment_ends_what_waited_on_both_sides() {
    let env = env();
    let server = NatsServer::start();
    let a = link(&server.url(), &env, "member-a").await;
    a.attach(Desk::new("a")).await.unwrap();
    let connection = Connection::open(&server.url(), ConnectOptions::new()).await.unwrap();
    let b = NatsLink::new(&connection, Arc::clone(&env), LinkOptions::new("tests", "member-b")).unwrap();
    let there = Desk::new("b");
    b.attach(Arc::clone(&there) as Arc<dyn Inbound>).await.unwrap();
    until(&env, "they know each other", || a.listens("anything") && b.listens("anything")).await;
    there.never_answers.store(true, Ordering::SeqCst);
    let mut waiting = a.request("b", b"waits".to_vec()).unwrap();
    until(&env, "it came", || there.came() == 1).await;
    connection.client().force_reconnect().await.unwrap();
    let begun = env.monotonic();
    assert_eq!(next_reply(&mut *waiting).await.unwrap().unwrap_err().code(), "closed");
    assert!(env.monotonic() - begun < limits::HEARTBEAT);
    there.never_answers.store(false, Ordering::SeqCst);
    assert_eq!(a.peers().len(), 1, "it was never missed");
    for (link, node) in [(&a, "b"), (&b, "a")] {
        let mut replies = link.request(node, b"on".to_vec()).unwrap();
        assert_eq!(next_reply(&mut *replies).await.unwrap().unwrap(), b"on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_messages_are_refused_and_disturb_nothing() {
    let env = env();
    let server = NatsServer::start();
    let [(a, desk), (b, there)] = &two(&server.url(), &server.url(), &env).await;
    let stranger = async_nats::connect(server.url()).await.unwrap();
    // A header: version, kind, run, number, name.
    let header = |kind: u8, run: u64, name: &str| {
        let mut bytes = vec![1, kind];
        bytes.extend(run.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.push(name.len() as u8);
        bytes.extend(name.as_bytes());
        bytes
    };
    let message =
        |kind: u8, run: u64, name: &str, rest: &[u8]| [header(kind, run, name), rest.to_vec()].concat();
    let mut waiting = a.request("b", b"kept waiting".to_vec());
    let subjects = ["happen.tests.member.member-a", "happen.tests.back.member-a.x", "happen.tests.presence"];
    let mut refused = 0;
    for subject in subjects {
        for bytes in [
            Vec::new(),
            b"hello".to_vec(),
            vec![0xff; 300],
            vec![1, 1],
            message(99, 5, "x", &[]),
            message(1, 5, "", &[]),
            message(1, 5, "member-a", &[3, 0, 0, 0, 0]),
            message(2, 5, "member-a", &[24]),
            message(1, 5, "x", &[99]),
            message(2, 5, "x", &[17, 1]),
            // A frame of the other kind.
            message(1, 5, "x", &[24]),
            message(2, 5, "x", &[5]),
            message(16, 5, "x", &[0; 17]),
        ] {
            stranger.publish(subject, bytes.into()).await.unwrap();
            refused += 1;
        }
    }
    // The last reply to every request that may wait, from one who was not asked.
    for number in 0..100u64 {
        let forged = [&[18][..], &number.to_le_bytes(), &4u32.to_le_bytes(), b"fake"].concat();
        stranger.publish(subjects[1], message(2, 5, "x", &forged).into()).await.unwrap();
    }
    stranger.flush().await.unwrap();
    until(&env, "all were refused", || {
        desk.told().iter().filter(|told| told.starts_with("refused")).count() == refused
    })
    .await;
    let own = waiting.as_mut().unwrap();
    assert_eq!(next_reply(&mut **own).await.unwrap().unwrap(), b"kept waiting");
    for (link, node) in [(a, "b"), (b, "a")] {
        let mut replies = link.request(node, b"still".to_vec()).unwrap();
        assert_eq!(next_reply(&mut *replies).await.unwrap().unwrap(), b"still");
        assert_eq!(link.peers().len(), 1);
    }
    assert!(there.told().iter().all(|told| told.starts_with("refused")), "{:?}", there.told());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_may_have_any_characters() {
    let env = env();
    let server = NatsServer::start();
    let names = ["a.b", "with space", "größe", "*", ">", "=2A", "$SYS", "x\n\r\0", "MEMBER"];
    let connection = Connection::open(&server.url(), ConnectOptions::new()).await.unwrap();
    let mut links = Vec::new();
    for space in ["tests *.>", "tests"] {
        for name in names {
            let options = LinkOptions::new(space, name).prefix("a.prefix");
            let link = NatsLink::new(&connection, Arc::clone(&env), options).unwrap();
            link.attach(Desk::new(&format!("node {name}"))).await.unwrap();
            links.push(link);
        }
    }
    until(&env, "all know all of their space", || {
        links.iter().all(|link| link.peers().len() == names.len() - 1)
    })
    .await;
    for (link, own) in links.iter().zip(names.iter().cycle()) {
        let peers: Vec<_> = link.peers().into_iter().map(|peer| peer.name).collect();
        let others: Vec<_> = names.iter().filter(|name| *name != own).collect();
        assert_eq!(peers.iter().collect::<Vec<_>>(), others, "in the order of joining");
        for other in others {
            let mut replies = link.request(&format!("node {other}"), other.as_bytes().to_vec()).unwrap();
            assert_eq!(next_reply(&mut *replies).await.unwrap().unwrap(), other.as_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_cannot_carry_is_refused_on_both_ways() {
    let env = env();
    let server = NatsServer::start();
    let [(a, _), (_b, there)] = &two(&server.url(), &server.url(), &env).await;
    let error = a.post("b", vec![0; 2 << 20]).unwrap_err();
    let happen::ErrorKind::Oversized { bytes_max, .. } = *error.kind() else { panic!("{error:?}") };
    assert!(bytes_max > (1 << 20) - 200);
    for bytes in [bytes_max - 1, bytes_max] {
        a.post("b", vec![0; bytes]).unwrap();
    }
    for refused in [a.post("b", vec![0; bytes_max + 1]), a.publish("anything", vec![0; 2 << 20])] {
        assert_eq!(refused.unwrap_err().code(), "oversized");
    }
    assert_eq!(a.request("b", vec![0; bytes_max + 1]).err().unwrap().code(), "oversized");
    until(&env, "both came", || there.came() == 2).await;

    let config = Config { event_bytes_max: 4 << 20, ..Config::default() };
    let [c, d] = ["c", "d"].map(|_| Space::in_env(config.clone(), Arc::clone(&env)).unwrap());
    c.join(link(&server.url(), &env, "c").await).unwrap();
    d.join(link(&server.url(), &env, "d").await).unwrap();
    d.node("d").on("u64", |bytes: &Event<u64>, _: &Context| "x".repeat(*bytes.payload() as usize));
    c.start().await.unwrap();
    d.start().await.unwrap();
    knows(&env, &c, "d").await;
    let error = c.send("d", 2_000_000u64).reply::<String>().await.unwrap_err();
    assert_eq!(error.code(), "oversized");
    assert_eq!(c.send("d", 1_000_000u64).reply::<String>().await.unwrap().len(), 1_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_items_wait_for_their_reader_where_they_are_made() {
    const ITEM: usize = 256 << 10;
    let env = env();
    let server = NatsServer::start();
    let [a, b] = [space(&server.url(), &env, "a").await, space(&server.url(), &env, "b").await];
    let emitted = Arc::new(AtomicU64::new(0));
    let ended = Arc::new(AtomicBool::new(false));
    let state = (Arc::clone(&emitted), Arc::clone(&ended));
    type State = (Arc<AtomicU64>, Arc<AtomicBool>);
    b.node("b").on(
        "u64",
        with(state, async |(emitted, ended): State, _: Event<u64>, cx: Context| -> happen::Result<bool> {
            for _ in 0..200 {
                cx.emit("x".repeat(ITEM)).await?;
                emitted.fetch_add(1, Ordering::SeqCst);
            }
            ended.store(true, Ordering::SeqCst);
            Ok(true)
        }),
    );
    a.start().await.unwrap();
    b.start().await.unwrap();
    knows(&env, &a, "b").await;
    let mut items = a.send("b", 1u64).stream::<String>();
    assert_eq!(items.next().await.unwrap().unwrap().len(), ITEM);
    env.sleep(Duration::from_millis(200)).await;
    let ahead = emitted.load(Ordering::SeqCst);
    assert!(ahead < 60, "{ahead} items of {ITEM} bytes without a reader");
    let mut count = 1;
    while let Some(item) = items.next().await {
        item.unwrap();
        count += 1;
    }
    assert!(count == 200 && ended.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_with_many_nodes_are_known_whole() {
    const NODES: usize = 40_000;
    let env = env();
    let server = NatsServer::start();
    let a = link(&server.url(), &env, "member-a").await;
    a.attach(Desk::new("a")).await.unwrap();
    let b = link(&server.url(), &env, "member-b").await;
    b.attach(Desk::with("b", NODES)).await.unwrap();
    until(&env, "all are known", || a.peers().first().is_some_and(|peer| peer.nodes.len() == NODES + 1))
        .await;
    // Who joins later is told as much.
    let c = link(&server.url(), &env, "member-c").await;
    c.attach(Desk::new("c")).await.unwrap();
    until(&env, "all are known", || c.peers().get(1).is_some_and(|peer| peer.nodes.len() == NODES + 1)).await;
    let mut replies = c.request(&format!("b-{}", NODES - 1), b"last".to_vec()).unwrap();
    assert_eq!(next_reply(&mut *replies).await.unwrap().unwrap(), b"last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_shown() {
    let env = env();
    let server = NatsServer::with("authorization { user: ada, password: \"s3cret@1\" }");
    let url = server.url().replace("nats://", "nats://ada:s3cret%401@");
    let connection = Connection::open(&url, ConnectOptions::new()).await.unwrap();
    let link = NatsLink::new(&connection, Arc::clone(&env), LinkOptions::new("tests", "a")).unwrap();
    link.attach(Desk::new("a")).await.unwrap();
    assert_eq!(connection.url(), server.url());
    let wrong = Connection::open(&url.replace("s3cret", "wr0ng"), ConnectOptions::new()).await.unwrap_err();
    assert_eq!(wrong.code(), "io");
    let unreadable = Connection::open("nats://ada:s3cret@:x", ConnectOptions::new()).await.unwrap_err();
    assert_eq!(unreadable.code(), "misuse");
    for shown in [
        format!("{connection:?} {link:?} {}", connection.url()),
        format!("{wrong:?} {wrong} {}", wrong.chain().join(" ")),
        format!("{unreadable:?} {unreadable} {}", unreadable.chain().join(" ")),
    ] {
        assert!(!shown.contains("s3cret") && !shown.contains("wr0ng"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_nothing_is_joined() {
    let env = env();
    let mut server = NatsServer::start();
    let connection = Connection::open(&server.url(), ConnectOptions::new()).await.unwrap();
    let link = NatsLink::new(&connection, Arc::clone(&env), LinkOptions::new("tests", "a")).unwrap();
    assert_eq!(link.post("b", vec![0]).unwrap_err().code(), "closed");
    server.kill();
    until(&env, "it is noticed", || {
        format!("{connection:?}").ends_with(ConnectionStatus::Disconnected.as_str())
    })
    .await;
    assert_eq!(link.attach(Desk::new("a")).await.unwrap_err().code(), "io");
    let refused = Connection::open(&server.url(), ConnectOptions::new()).await.unwrap_err();
    assert_eq!(refused.code(), "io");
    server.restart();
    until(&env, "it is back", || {
        format!("{connection:?}").ends_with("connected: connected")
            || format!("{connection:?}").ends_with(": connected")
    })
    .await;
    link.attach(Desk::new("a")).await.unwrap();
}
