//! Everything on Happen's subjects that nobody of the space has said, all at once and beside real work: each piece is
//! refused, counted and told, and nobody is disturbed.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_nats::ConnectOptions;
use happen::env::RealEnv;
use happen::identity::{Identity, KeyKind, Seed, Signer as _, TrustStore, Trusted};
use happen::{Config, Context, Event, Hub, Link, Space, millis, secs};
use happen_core::env::Env;
use happen_ed25519::KeyPair;
use happen_nats::{Connection, LinkOptions, Nats, NatsLink, NatsStore, NatsStoreOptions};
use happen_testing::NatsServer;
use happen_testing::link::{Probe, until};
use serde::{Deserialize, Serialize};

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

fn key(number: u8) -> KeyPair {
    KeyPair::from_seed(&Seed::new(KeyKind::User, [number; 32]))
}

const SHOP: u8 = 1;
const BANK: u8 = 2;
const STRANGER: u8 = 3;
/// Trusted until it is not.
const FORMER: u8 = 4;

fn env() -> Arc<dyn Env> {
    Arc::new(RealEnv::new())
}

/// What a space refused, by why.
type Refused = Arc<Mutex<BTreeMap<String, u64>>>;

async fn process(url: &str, name: &str, identity: Identity) -> (Space, Refused) {
    let space = Nats::at(format!("{url}/shop")).member(name).open().await.unwrap();
    space.identity(identity).unwrap();
    let refused = Refused::default();
    let counts = Arc::clone(&refused);
    space.on("system.refused", move |told: &Event, _: &Context| {
        let text = |name| told.get(name).and_then(|value| value.as_str()).map(str::to_owned);
        let why = text("distrust").or_else(|| text("code")).unwrap();
        *counts.lock().unwrap().entry(why).or_default() += 1;
    });
    (space, refused)
}

/// The frame in which a number leaves a space with this identity for the node `echo`.
async fn frame(number: u64, identity: Option<Identity>) -> Vec<u8> {
    let hub = Hub::in_env(env());
    let probe = Probe::new("echo");
    hub.link("probe").attach(Arc::<Probe>::clone(&probe)).await.unwrap();
    let space = Space::in_env(Config::default(), env()).unwrap();
    space.join(hub.link("sends")).unwrap();
    if let Some(identity) = identity {
        space.identity(identity).unwrap();
    }
    space.start().await.unwrap();
    space.send("echo", number).forget();
    until(&env(), "a frame left", || !probe.frames().is_empty()).await;
    probe.frames().remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_of_the_space_said_is_refused_and_counted_beside_real_work() {
    let (server, env) = (NatsServer::start(), env());
    let url = server.url();
    let trust = TrustStore::new();
    for (number, node) in [(SHOP, ""), (BANK, "bank"), (FORMER, "")] {
        trust.trust(Trusted::new(key(number).public_key()).nodes([node, "echo"])).unwrap();
    }
    let identity = |number| Identity::new(key(number)).trust(&trust);
    let (bank, refused) = process(&url, "bank", identity(BANK)).await;
    let (shop, refused_at_shop) = process(&url, "shop", identity(SHOP)).await;
    bank.node("bank").on("pay", |pay: &Event<Pay>, cx: &Context| {
        let id = pay.id;
        cx.state::<Till>().set(move |mut till| {
            till.paid.push(id);
            till
        })
    });
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    bank.node("echo").ephemeral().on("u64", move |number: &Event<u64>, _: &Context| {
        hears.lock().unwrap().push(**number);
        **number + 1
    });
    bank.start().await.unwrap();
    shop.start().await.unwrap();
    until(&env, "they know each other", || shop.remote_nodes().len() >= 2).await;

    // Work, by the log and over the link, that goes on all the while.
    let (stop, paid) = (AtomicBool::new(false), AtomicU64::new(0));
    let working = async {
        while !stop.load(Ordering::SeqCst) {
            let id = paid.fetch_add(1, Ordering::SeqCst);
            shop.send("bank", Pay { id }).await.unwrap();
            let number = 1_000_000 + id;
            assert_eq!(*shop.send("echo", number).reply::<u64>().await.unwrap(), number + 1);
        }
    };
    let client = async_nats::connect(&url).await.unwrap();
    let context = async_nats::jetstream::new(client.clone());
    let options = NatsStoreOptions::new("shop", Arc::clone(&env));
    let store = NatsStore::open(async_nats::connect(&url).await.unwrap(), options).await.unwrap();
    let harming = async {
        // Whoever reaches the subjects can attach as a member.
        let connection = Connection::open(&url, ConnectOptions::new()).await.unwrap();
        let outside =
            NatsLink::new(&connection, Arc::clone(&env), LinkOptions::new("shop", "outside")).unwrap();
        outside.attach(Probe::new("outside")).await.unwrap();
        until(&env, "the bank is known", || outside.peers().len() == 2).await;
        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        let forged = frame(1, Some(identity(STRANGER))).await;
        let mut changed = frame(2, Some(identity(SHOP))).await;
        *changed.last_mut().unwrap() ^= 1;
        let replayed = frame(3, Some(identity(SHOP))).await;
        let stale = frame(4, Some(identity(FORMER))).await;
        let unsigned = frame(5, None).await;
        trust.revoke(&key(FORMER).public_key()).unwrap();
        for _ in 0..ROUNDS {
            for (why, frame) in [
                ("unknown-key", &forged),
                ("bad-signature", &changed),
                ("replayed", &replayed),
                ("revoked-key", &stale),
                ("unsigned", &unsigned),
                ("unsigned", &b"rubbish".to_vec()),
                ("unsigned", &vec![0; 900_000]),
            ] {
                outside.post("echo", frame.clone()).unwrap();
                *expected.entry(why).or_default() += 1;
            }
            assert_eq!(outside.post("echo", vec![0; 2 << 20]).unwrap_err().code(), "oversized");
            // Each member is told on its own subjects, and everybody by the subject of all.
            for subject in ["member.bank", "back.bank.x", "presence", "member.shop", "back.shop.x"] {
                for foreign in [Vec::new(), b"hello".to_vec(), vec![0xff; 300], vec![1; 900_000]] {
                    client.publish(format!("happen.shop.{subject}"), foreign.into()).await.unwrap();
                }
            }
            for foreign in [Vec::new(), b"hello".to_vec(), vec![0xff; 300], vec![1; 900_000]] {
                let taken = context.publish("happen.shop.log", foreign.into()).await.unwrap();
                taken.await.unwrap();
            }
            env.sleep(millis(20)).await;
        }
        // The one of them that was true is heard once.
        *expected.get_mut("replayed").unwrap() -= 1;
        let at_bank = expected.values().sum::<u64>() + ROUNDS * FOREIGN;
        until(&env, "all was refused", || bank.refused_frames() >= at_bank).await;
        until(&env, "all was refused", || shop.refused_frames() >= ROUNDS * FOREIGN).await;
        until(&env, "all was refused", || store.refused() >= ROUNDS * 4).await;
        stop.store(true, Ordering::SeqCst);
        expected
    };
    let ((), mut expected) = tokio::join!(working, harming);
    assert_eq!(shop.refused_frames(), ROUNDS * FOREIGN);
    assert_eq!(store.refused(), ROUNDS * 4);
    let foreign = |refused: &Refused| refused.lock().unwrap().get("undecodable").copied();
    expected.insert("undecodable", ROUNDS * FOREIGN);
    let told = refused.lock().unwrap().clone();
    assert_eq!(told.iter().map(|(why, count)| (why.as_str(), *count)).collect::<BTreeMap<_, _>>(), expected);
    assert_eq!(bank.refused_frames(), expected.values().sum::<u64>());
    assert_eq!(foreign(&refused_at_shop), Some(ROUNDS * FOREIGN));

    // Nothing else happened.
    bank.settled(secs(10)).await.unwrap();
    let paid = paid.load(Ordering::SeqCst);
    assert!(paid > ROUNDS, "{paid} payments beside it");
    until(&env, "all is paid", || {
        bank.find("bank").unwrap().state::<Till>().get(|till| till.paid.len() as u64) == paid
    })
    .await;
    let heard = heard.lock().unwrap().clone();
    let false_ones: Vec<_> = heard.iter().filter(|number| **number < 1_000_000).collect();
    assert_eq!(false_ones, [&3], "what was said is heard, once, and nothing else is");
    for space in [&bank, &shop] {
        assert!(space.journal().verify().await.unwrap().is_whole());
        assert!(space.problems().is_empty(), "{:?}", space.problems());
        assert!(space.dead_letters().is_empty());
        space.stop().await.unwrap();
    }
}

/// How often all of it comes.
const ROUNDS: u64 = 20;

/// Foreign messages of a round that reach a member: on its two subjects and on that of all.
const FOREIGN: u64 = 3 * 4;
