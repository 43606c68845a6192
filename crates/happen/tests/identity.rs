//! Who says what between processes: what is signed by a trusted key is believed, and nothing else is.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen::env::RealEnv;
use happen::identity::{
    Distrust, Identity, KeyKind, PublicKey, Seed, Signature, Signer, TrustStore, Trusted, Verifier,
};
use happen::store::MemoryStore;
use happen::{Config, Context, ErrorKind, Event, EventId, Hub, Link, Routing, Space, limits, secs};
use happen_core::codec::{
    Addressee, CauseLink, SealTree, WireEvent, WireParcel, WireSeal, WireUser, encode_batch_into,
    encode_summed, seal_leaf,
};
use happen_core::env::Env;
use happen_core::hash::hash_event;

use happen_core::limits::EVENT_BYTES_MAX;
use happen_ed25519::{Ed25519, KeyPair};
use happen_testing::link::{Probe, next_reply, until};
use happen_testing::{Simulator, link_contract};

fn key(number: u8) -> KeyPair {
    KeyPair::from_seed(&Seed::new(KeyKind::User, [number; 32]))
}

fn public(number: u8) -> PublicKey {
    key(number).public_key()
}

const SHOP: u8 = 1;
const BANK: u8 = 2;
const STRANGER: u8 = 3;

/// The shop may speak for the orders and for nobody in particular, the bank for the payments.
fn trust() -> TrustStore {
    let trust = TrustStore::new();
    trust
        .trust(Trusted::new(public(SHOP)).nodes(["orders", ""]).origins(["tenant:acme"]).users(["ada"]))
        .unwrap();
    trust.trust(Trusted::new(public(BANK)).nodes(["payments"])).unwrap();
    trust
}

/// A space with the node `payments`, and what it heard and refused.
struct Bank {
    space: Space,
    /// A link by which anybody sends it anything.
    outside: Arc<dyn Link>,
    heard: Arc<Mutex<Vec<u64>>>,
    refused: Arc<Mutex<Vec<String>>>,
}

impl Bank {
    async fn open(sim: &Simulator, identity: Option<Identity>) -> Self {
        let hub = Hub::in_env(sim.env());
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        space.join(hub.link("bank")).unwrap();
        if let Some(identity) = identity {
            space.identity(identity).unwrap();
        }
        let heard = Arc::new(Mutex::new(Vec::new()));
        for node in ["payments", "refunds"] {
            let push = Arc::clone(&heard);
            space.node(node).on("u64", move |number: &Event<u64>, _: &Context| {
                push.lock().unwrap().push(**number);
                **number + 1
            });
        }
        let refused = Arc::new(Mutex::new(Vec::new()));
        let push = Arc::clone(&refused);
        space.on("system.refused", move |told: &Event, _: &Context| {
            let text = |name| told.get(name).and_then(|value| value.as_str()).map(str::to_owned);
            push.lock().unwrap().push(text("distrust").or_else(|| text("code")).unwrap());
        });
        space.start().await.unwrap();
        let outside = hub.link("outside");
        outside.attach(Probe::new("outside")).await.unwrap();
        Self { space, outside, heard, refused }
    }

    /// What this frame leads to: what is heard of it, or why it is refused.
    async fn post(&self, sim: &Simulator, to: &str, frame: &[u8]) -> Result<u64, String> {
        let before = (self.heard.lock().unwrap().len(), self.refused.lock().unwrap().len());
        let counted = self.space.refused_frames();
        self.outside.post(to, frame.to_vec()).unwrap();
        let env = sim.env();
        let after = || (self.heard.lock().unwrap().len(), self.refused.lock().unwrap().len());
        until(&env, "the frame led to something", || after() != before).await;
        let counted = self.space.refused_frames() - counted;
        match after() {
            (heard, refused) if (heard, refused) == (before.0 + 1, before.1) => {
                assert_eq!(counted, 0);
                Ok(*self.heard.lock().unwrap().last().unwrap())
            }
            (heard, refused) => {
                assert_eq!((heard, refused, counted), (before.0, before.1 + 1, 1));
                Err(self.refused.lock().unwrap().last().unwrap().clone())
            }
        }
    }
}

/// The frames that leave a space with this identity for a node `payments`, which only keeps them.
async fn leaving(sim: &Simulator, identity: Option<Identity>, send: impl FnOnce(&Space)) -> Vec<Vec<u8>> {
    let hub = Hub::in_env(sim.env());
    let probe = Probe::new("payments");
    let attached = Arc::clone(&probe);
    hub.link("probe").attach(attached).await.unwrap();
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    space.join(hub.link("shop")).unwrap();
    if let Some(identity) = identity {
        space.identity(identity).unwrap();
    }
    space.start().await.unwrap();
    send(&space);
    let env = sim.env();
    until(&env, "a frame left", || !probe.frames().is_empty()).await;
    env.sleep(Duration::from_millis(5)).await;
    probe.frames()
}

async fn one_leaving(sim: &Simulator, number: u8, payload: u64) -> Vec<u8> {
    let frames = leaving(sim, Some(Identity::new(key(number))), |shop| {
        shop.send("payments", payload).forget();
    });
    let [frame] = <[_; 1]>::try_from(frames.await).unwrap();
    frame
}

/// An event written and signed by hand: by a key that is trusted and does not keep to what it may say.
fn written(sim: &Simulator, by: &KeyPair, number: u64, change: impl FnOnce(&mut WireEvent<'_>)) -> Vec<u8> {
    let now = sim.env().unix_ms();
    let mut event = WireEvent::new(EventId::from_halves(now, number).unwrap(), "u64", now, &[7]);
    change(&mut event);
    event.hash = Some(hash_event(&event));
    let mut frame = Vec::new();
    event.encode_into(&mut frame, EVENT_BYTES_MAX).unwrap();
    sealed(sim, by, number, &frame)
}

fn sealed(sim: &Simulator, by: &KeyPair, number: u64, frame: &[u8]) -> Vec<u8> {
    sealed_for(Addressee::Node("payments"), sim, by, number, frame)
}

fn sealed_for(to: Addressee<'_>, sim: &Simulator, by: &KeyPair, number: u64, frame: &[u8]) -> Vec<u8> {
    let leaf = seal_leaf(to, "", frame);
    let mut seal = WireSeal::new(by.public_key(), 77, number, sim.env().unix_ms());
    seal.signature = by.sign(&seal.statement(&leaf)).unwrap();
    let mut sealed = Vec::new();
    seal.encode_into(frame, &mut sealed);
    sealed
}

/// Both spaces on one hub, with these identities.
async fn joined(sim: &Simulator, shop: Option<Identity>, bank: Option<Identity>) -> (Space, Space) {
    let hub = Hub::in_env(sim.env());
    let spaces = [("shop", shop), ("bank", bank)].map(|(name, identity)| {
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        space.join(hub.link(name)).unwrap();
        if let Some(identity) = identity {
            space.identity(identity).unwrap();
        }
        space
    });
    let [shop, bank] = spaces;
    let payments = bank.node("payments");
    payments.on("u64", |number: &Event<u64>, _: &Context| **number + 1);
    payments.on("string", |_: &Event<String>, _: &Context| Err::<(), _>(happen::Error::msg("no")));
    bank.start().await.unwrap();
    shop.start().await.unwrap();
    (shop, bank)
}

async fn hub_links(env: Arc<dyn Env>, count: usize) -> Vec<Arc<dyn Link>> {
    let hub = Hub::in_env(env);
    (0..count).map(|index| hub.link(format!("space-{index}")) as Arc<dyn Link>).collect()
}

/// All spaces of the contract have one key, which may say everything.
fn trusting(space: &Space) {
    let trust = TrustStore::new();
    trust.trust(Trusted::new(public(SHOP)).nodes(["*"]).origins(["*"]).users(["*"])).unwrap();
    space.identity(Identity::new(key(SHOP)).trust(&trust)).unwrap();
}

link_contract!(signed_in_virtual_time, simulator, hub_links, trusting);
link_contract!(signed_on_threads, tokio, hub_links, trusting);

#[test]
fn who_trusts_each_other_notices_nothing() {
    let sim = Simulator::new(1);
    sim.run(async {
        let trust = trust();
        let identity = |number| Some(Identity::new(key(number)).trust(&trust).realm("test"));
        let (shop, bank) = joined(&sim, identity(SHOP), identity(BANK)).await;
        let heard = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&heard);
        bank.node("listener").on("bool", move |_: &Event<bool>, _: &Context| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        bank.find("payments").unwrap().on(
            "u32",
            async |count: Event<u32>, cx: Context| -> happen::Result<bool> {
                for item in 0..*count.payload() {
                    cx.emit(item).await?;
                }
                Ok(true)
            },
        );
        let env = sim.env();
        until(&env, "the listener is known", || shop.remote_nodes().len() == 2).await;
        assert_eq!(*shop.send("payments", 7u64).reply::<u64>().await.unwrap(), 8);
        shop.send("payments", 7u64).await.unwrap();
        shop.send("payments", [1u64, 2, 3]).await.unwrap();
        let error = shop.send("payments", "x".to_owned()).reply::<()>().await.unwrap_err();
        assert_eq!(error.code(), "failed");
        let items = shop.send("payments", 50u32).stream::<u32>().collect().await.unwrap();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
        shop.broadcast(true).unwrap();
        until(&env, "the broadcast came", || heard.load(Ordering::SeqCst) == 1).await;
        assert_eq!((shop.refused_frames(), bank.refused_frames()), (0, 0));
    });
}

#[test]
fn what_is_not_signed_is_refused_and_nothing_else_disturbed() {
    let sim = Simulator::new(2);
    sim.run(async {
        let bank = Bank::open(&sim, Some(Identity::new(key(BANK)).trust(&trust()))).await;
        let unsigned = leaving(&sim, None, |shop| shop.send("payments", 1u64).forget()).await.remove(0);
        assert_eq!(bank.post(&sim, "payments", &unsigned).await, Err("unsigned".into()));
        // A signature that is cut off leaves what was never signed.
        let signed = one_leaving(&sim, SHOP, 2).await;
        let (_, inside) = WireSeal::open(&signed).unwrap();
        assert_eq!(bank.post(&sim, "payments", inside).await, Err("unsigned".into()));
        assert_eq!(bank.post(&sim, "payments", &signed).await, Ok(2));
        assert_eq!(bank.post(&sim, "payments", b"rubbish").await, Err("unsigned".into()));

        // Who asks is told, and a reply that is not signed is no reply.
        let (shop, bank) = joined(&sim, None, Some(Identity::new(key(BANK)).trust(&trust()))).await;
        let error = shop.send("payments", 1u64).reply::<u64>().await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Untrusted { reason: "it is not signed".into() });
        assert!(!error.is_retryable());
        assert_eq!(bank.refused_frames(), 1);
        let (shop, bank) = joined(&sim, Some(Identity::new(key(SHOP)).trust(&trust())), None).await;
        let error = shop.send("payments", 1u64).reply::<u64>().await.unwrap_err();
        assert_eq!(error.find_cause::<Distrust>(), Some(&Distrust::Unsigned));
        assert_eq!((shop.refused_frames(), bank.refused_frames()), (1, 0));
        // Here signing is enough for what needs no answer: a space without an identity believes everybody.
        shop.send("payments", 1u64).forget();
    });
}

#[test]
fn unsigned_frames_are_taken_where_that_was_said() {
    let sim = Simulator::new(3);
    sim.run(async {
        let identity = Identity::new(key(BANK)).trust(&trust()).accept_unsigned();
        let bank = Bank::open(&sim, Some(identity)).await;
        let unsigned = leaving(&sim, None, |shop| shop.send("payments", 1u64).forget()).await.remove(0);
        assert_eq!(bank.post(&sim, "payments", &unsigned).await, Ok(1));
        let mut signed = one_leaving(&sim, SHOP, 2).await;
        *signed.last_mut().unwrap() ^= 1;
        assert_eq!(bank.post(&sim, "payments", &signed).await, Err("bad-signature".into()));
    });
}

#[test]
fn no_bit_can_be_flipped() {
    let sim = Simulator::new(4);
    sim.run(async {
        let bank = Bank::open(&sim, Some(Identity::new(key(BANK)).trust(&trust()))).await;
        let frame = one_leaving(&sim, SHOP, 7).await;
        let mut reasons = BTreeMap::<_, u32>::new();
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let refused = bank.post(&sim, "payments", &flipped).await;
            *reasons.entry(refused.unwrap_err()).or_default() += 1;
        }
        // Those of the first bytes are no seal; a flipped key is another key.
        let reasons: Vec<_> = reasons.into_keys().collect();
        assert_eq!(reasons, ["bad-signature", "undecodable", "unknown-key", "unsigned"]);
        // Not one of them has used the number of the frame up.
        assert_eq!(bank.post(&sim, "payments", &frame).await, Ok(7));
    });
}

#[test]
fn a_frame_is_of_no_use_for_anybody_else() {
    let sim = Simulator::new(5);
    sim.run(async {
        let bank = Bank::open(&sim, Some(Identity::new(key(BANK)).trust(&trust()))).await;
        let frame = one_leaving(&sim, SHOP, 7).await;
        assert_eq!(bank.post(&sim, "refunds", &frame).await, Err("bad-signature".into()));
        bank.outside.publish("u64", frame.clone()).unwrap();
        let env = sim.env();
        until(&env, "the broadcast is refused", || bank.space.refused_frames() == 2).await;
        assert_eq!(*bank.refused.lock().unwrap(), ["bad-signature"; 2]);
        let elsewhere = Identity::new(key(BANK)).trust(&trust()).realm("another");
        let other = Bank::open(&sim, Some(elsewhere)).await;
        assert_eq!(other.post(&sim, "payments", &frame).await, Err("bad-signature".into()));
        assert_eq!(bank.post(&sim, "payments", &frame).await, Ok(7));
    });
}

#[test]
fn what_one_instance_of_a_node_takes_is_of_no_use_at_another() {
    let sim = Simulator::new(5);
    sim.run(async {
        let bank = Bank::open(&sim, Some(Identity::new(key(BANK)).trust(&trust()))).await;
        let leaving = one_leaving(&sim, SHOP, 7).await;
        let (_, frame) = WireSeal::open(&leaving).unwrap();
        drop(bank.space.find("payments").unwrap().shared(Routing::RoundRobin));
        let sealed = |number, to| sealed_for(to, &sim, &key(SHOP), number, frame);
        let node = "payments";
        let elsewhere = sealed(1, Addressee::Instance { node, member: "bank-2" });
        let anywhere = sealed(2, Addressee::Node(node));
        for frame in [elsewhere, anywhere] {
            assert_eq!(bank.post(&sim, node, &frame).await, Err("bad-signature".into()));
            let mut replies = bank.outside.request(node, frame).unwrap();
            assert!(next_reply(&mut *replies).await.unwrap().is_ok());
            assert_eq!(bank.refused.lock().unwrap().last().unwrap(), "bad-signature");
        }
        let here = sealed(3, Addressee::Instance { node, member: "bank" });
        assert_eq!(bank.post(&sim, node, &here).await, Ok(7));
        assert_eq!(bank.post(&sim, node, &here).await, Err("replayed".into()));
        assert_eq!(*bank.heard.lock().unwrap(), [7]);
    });
}

#[test]
fn what_came_before_does_not_come_again() {
    let sim = Simulator::new(6);
    sim.run(async {
        let identity = || Identity::new(key(BANK)).trust(&trust());
        let bank = Bank::open(&sim, Some(identity())).await;
        let frame = one_leaving(&sim, SHOP, 7).await;
        assert_eq!(bank.post(&sim, "payments", &frame).await, Ok(7));
        assert_eq!(bank.post(&sim, "payments", &frame).await, Err("replayed".into()));
        // As a question, too: whoever repeats it learns nothing.
        let mut replies = bank.outside.request("payments", frame.clone()).unwrap();
        assert!(next_reply(&mut *replies).await.unwrap().is_ok());
        assert_eq!(bank.refused.lock().unwrap().last().unwrap(), "replayed");
        // Long after, it is refused without being remembered.
        let late = one_leaving(&sim, SHOP, 8).await;
        sim.env().sleep(Duration::from_millis(limits::REPLAY_WINDOW_MS + 1_000)).await;
        assert_eq!(bank.post(&sim, "payments", &late).await, Err("stale".into()));
        assert_eq!(bank.post(&sim, "payments", &frame).await, Err("stale".into()));
        // A shorter window, at its edges, for a clock that is ahead as for one that is behind.
        let bank = Bank::open(&sim, Some(identity().window(secs(10)))).await;
        for (apart, taken) in [(9_000, true), (10_000, true), (10_500, false)] {
            let frame = one_leaving(&sim, SHOP, 9).await;
            let signed_at = WireSeal::open(&frame).unwrap().0.unwrap().at_unix_ms;
            let wait = (signed_at + apart).saturating_sub(sim.env().unix_ms() + 1);
            sim.env().sleep(Duration::from_millis(wait)).await;
            assert_eq!(bank.post(&sim, "payments", &frame).await.is_ok(), taken, "{apart}");
        }
        assert_eq!(*bank.heard.lock().unwrap(), [9, 9]);
    });
}

#[test]
fn keys_that_are_unknown_expired_or_revoked_are_not_believed() {
    let sim = Simulator::new(7);
    sim.run(async {
        let trust = trust();
        let bank = Bank::open(&sim, Some(Identity::new(key(BANK)).trust(&trust))).await;
        let by = async |number, payload| one_leaving(&sim, number, payload).await;
        assert_eq!(bank.post(&sim, "payments", &by(STRANGER, 1).await).await, Err("unknown-key".into()));
        let now = sim.env().unix_ms();
        trust.trust(Trusted::new(public(STRANGER)).nodes([""]).between(now + 60_000, now + 120_000)).unwrap();
        assert_eq!(bank.post(&sim, "payments", &by(STRANGER, 2).await).await, Err("expired-key".into()));
        sim.env().sleep(secs(60)).await;
        assert_eq!(bank.post(&sim, "payments", &by(STRANGER, 3).await).await, Ok(3));
        sim.env().sleep(secs(60)).await;
        assert_eq!(bank.post(&sim, "payments", &by(STRANGER, 4).await).await, Err("expired-key".into()));
        // Signed while it was trusted, and revoked before it came.
        let under_way = by(SHOP, 5).await;
        assert_eq!(bank.post(&sim, "payments", &by(SHOP, 6).await).await, Ok(6));
        trust.revoke(&public(SHOP)).unwrap();
        assert_eq!(bank.post(&sim, "payments", &under_way).await, Err("revoked-key".into()));
        assert_eq!(trust.trust(Trusted::new(public(SHOP)).nodes(["*"])).unwrap_err().code(), "misuse");
        let text = format!(r#"{{"keys":[{{"key":"{}","nodes":["*"]}}]}}"#, public(SHOP));
        trust.replace_json(&text).unwrap();
        assert_eq!(bank.post(&sim, "payments", &by(SHOP, 7).await).await, Err("revoked-key".into()));
        assert_eq!(*bank.heard.lock().unwrap(), [3, 6]);
    });
}

#[test]
fn a_key_is_exchanged_without_an_outage() {
    let sim = Simulator::new(8);
    sim.run(async {
        let (at_shop, at_bank) = (trust(), trust());
        let (shop, bank) = joined(
            &sim,
            Some(Identity::new(key(SHOP)).trust(&at_shop)),
            Some(Identity::new(key(BANK)).trust(&at_bank)),
        )
        .await;
        let sent = Arc::new(AtomicUsize::new(0));
        let running = {
            let (shop, sent) = (shop.clone(), Arc::clone(&sent));
            async move {
                for number in 0..300 {
                    assert_eq!(*shop.send("payments", number).reply::<u64>().await.unwrap(), number + 1);
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            }
        };
        let done = Arc::new(AtomicUsize::new(0));
        let end = Arc::clone(&done);
        sim.env().spawn(Box::pin(async move {
            running.await;
            end.store(1, Ordering::SeqCst);
        }));
        let env = sim.env();
        until(&env, "a hundred were answered", || sent.load(Ordering::SeqCst) >= 100).await;
        let new = public(STRANGER);
        at_bank.trust(Trusted::new(new).nodes(["orders", ""])).unwrap();
        shop.sign_with(key(STRANGER)).unwrap();
        until(&env, "two hundred were answered", || sent.load(Ordering::SeqCst) >= 200).await;
        at_bank.revoke(&public(SHOP)).unwrap();
        until(&env, "all were answered", || done.load(Ordering::SeqCst) == 1).await;
        assert_eq!((shop.refused_frames(), bank.refused_frames()), (0, 0));
        shop.sign_with(key(SHOP)).unwrap();
        assert_eq!(shop.send("payments", 1u64).reply::<u64>().await.unwrap_err().code(), "untrusted");
    });
}

#[test]
fn a_key_says_only_what_it_may() {
    let sim = Simulator::new(9);
    sim.run(async {
        let bank = Bank::open(&sim, Some(Identity::new(key(BANK)).trust(&trust()))).await;
        let by = key(SHOP);
        let cause = EventId::from_halves(5, 5).unwrap();
        type Change = Box<dyn Fn(&mut WireEvent<'_>)>;
        let cases: Vec<(&str, Change, Result<u64, String>)> = vec![
            ("nothing", Box::new(|_| {}), Ok(7)),
            (
                "its node",
                Box::new(|event| (event.sender, event.origin) = ("orders".into(), "orders".into())),
                Ok(7),
            ),
            (
                "another node",
                Box::new(|event| event.sender = "payments".into()),
                Err("foreign-sender".into()),
            ),
            (
                "a root that began elsewhere",
                Box::new(|event| (event.sender, event.origin) = ("orders".into(), "payments".into())),
                Err("foreign-sender".into()),
            ),
            (
                "an effect of what began elsewhere",
                Box::new(move |event| {
                    (event.sender, event.origin) = ("orders".into(), "payments".into());
                    (event.cause, event.root) = (Some(CauseLink::Bare { id: cause }), cause);
                    event.depth = 1;
                }),
                Ok(7),
            ),
            (
                "its source",
                Box::new(|event| {
                    (event.source_type, event.source_id) = (Some("tenant".into()), Some("acme".into()));
                }),
                Ok(7),
            ),
            (
                "another source",
                Box::new(|event| {
                    (event.source_type, event.source_id) = (Some("tenant".into()), Some("umbrella".into()));
                }),
                Err("foreign-origin".into()),
            ),
            (
                "a source of no kind",
                Box::new(|event| event.source_id = Some("acme".into())),
                Err("foreign-origin".into()),
            ),
            (
                "a kind of no source",
                Box::new(|event| event.source_type = Some("tenant".into())),
                Err("foreign-origin".into()),
            ),
            (
                "its user",
                Box::new(|event| {
                    event.user = Some(WireUser { id: "ada".into(), permissions: vec![] });
                }),
                Ok(7),
            ),
            (
                "another user",
                Box::new(|event| {
                    event.user = Some(WireUser { id: "root".into(), permissions: vec![] });
                }),
                Err("foreign-user".into()),
            ),
            (
                "a user without a name",
                Box::new(|event| event.user = Some(WireUser::default())),
                Err("foreign-user".into()),
            ),
        ];
        for (number, (what, change, expected)) in cases.into_iter().enumerate() {
            let frame = written(&sim, &by, number as u64 + 1, change);
            assert_eq!(bank.post(&sim, "payments", &frame).await, expected, "{what}");
        }
        // A signature does not make an event fit its hash.
        let frame = written(&sim, &by, 100, |_| {});
        let (_, inside) = WireSeal::open(&frame).unwrap();
        let mut changed = inside.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        let frame = sealed(&sim, &by, 101, &changed);
        assert_eq!(bank.post(&sim, "payments", &frame).await, Err("invalid".into()));
        // Nor does it stand for a hash, and a sum is for those who do not sign.
        let mut event = WireEvent::decode(inside, EVENT_BYTES_MAX).unwrap();
        event.hash = None;
        let (mut bare, mut summed) = (Vec::new(), Vec::new());
        event.encode_into(&mut bare, EVENT_BYTES_MAX).unwrap();
        encode_summed(&mut summed, |out| event.encode_into(out, EVENT_BYTES_MAX)).unwrap();
        let frame = sealed(&sim, &by, 102, &bare);
        assert_eq!(bank.post(&sim, "payments", &frame).await, Err("invalid".into()));
        let frame = sealed(&sim, &by, 103, &summed);
        assert_eq!(bank.post(&sim, "payments", &frame).await, Err("undecodable".into()));
    });
}

#[test]
fn every_event_of_a_batch_is_looked_at() {
    let sim = Simulator::new(10);
    sim.run(async {
        let bank = Bank::open(&sim, Some(Identity::new(key(BANK)).trust(&trust()))).await;
        let now = sim.env().unix_ms();
        let batch = |number: u64, change: &dyn Fn(&mut WireEvent<'_>)| {
            let mut events: Vec<_> = (0..3)
                .map(|index| {
                    WireEvent::new(EventId::from_halves(number, index + 1).unwrap(), "u64", now, &[7])
                })
                .collect();
            change(&mut events[2]);
            events.iter_mut().for_each(|event| event.hash = Some(hash_event(event)));
            let mut frame = Vec::new();
            encode_batch_into(&events, &mut frame, EVENT_BYTES_MAX).unwrap();
            sealed(&sim, &key(SHOP), number, &frame)
        };
        let last = |event: &mut WireEvent<'_>| event.sender = "payments".into();
        assert_eq!(bank.post(&sim, "payments", &batch(1, &last)).await, Err("foreign-sender".into()));
        let last = |event: &mut WireEvent<'_>| event.event_type = "admin".into();
        assert_eq!(bank.post(&sim, "payments", &batch(2, &last)).await, Err("invalid".into()));
        bank.outside.post("payments", batch(3, &|_| {})).unwrap();
        let env = sim.env();
        until(&env, "all three came", || bank.heard.lock().unwrap().len() == 3).await;
    });
}

#[test]
fn a_reply_is_believed_only_from_whom_was_asked_and_to_what_was_asked() {
    let sim = Simulator::new(11);
    sim.run(async {
        // A true answer, to another question.
        let bank = Bank::open(&sim, Some(Identity::new(key(BANK)).trust(&trust()))).await;
        let question = one_leaving(&sim, SHOP, 7).await;
        let mut replies = bank.outside.request("payments", question).unwrap();
        let answer = next_reply(&mut *replies).await.unwrap().unwrap();
        let (_, inside) = WireSeal::open(&answer).unwrap();
        for (lie, code) in [(answer.clone(), "bad-signature"), (inside.to_vec(), "unsigned")] {
            let hub = Hub::in_env(sim.env());
            hub.link("liar").attach(Probe::answering("payments", move |_| vec![lie.clone()])).await.unwrap();
            let shop = Space::in_env(Config::default(), sim.env()).unwrap();
            shop.join(hub.link("shop")).unwrap();
            shop.identity(Identity::new(key(SHOP)).trust(&trust())).unwrap();
            shop.start().await.unwrap();
            let error = shop.send("payments", 7u64).reply::<u64>().await.unwrap_err();
            assert_eq!(error.find_cause::<Distrust>().map(Distrust::code), Some(code));
            assert_eq!(shop.refused_frames(), 1);
        }
        // A key that is trusted, and not for this node.
        let at_shop = TrustStore::new();
        at_shop.trust(Trusted::new(public(BANK)).nodes(["refunds"])).unwrap();
        let (shop, _bank) = joined(
            &sim,
            Some(Identity::new(key(SHOP)).trust(&at_shop)),
            Some(Identity::new(key(BANK)).trust(&trust())),
        )
        .await;
        let error = shop.send("payments", 7u64).reply::<u64>().await.unwrap_err();
        let foreign = Distrust::ForeignSender { key: public(BANK), node: "payments".into() };
        assert_eq!(error.find_cause::<Distrust>(), Some(&foreign));
    });
}

#[test]
fn nodes_may_have_keys_of_their_own() {
    let sim = Simulator::new(12);
    sim.run(async {
        let identity = || Identity::new(key(STRANGER)).sign_as("pay*", key(BANK)).sign_as("*", key(STRANGER));
        let (shop, bank) =
            joined(&sim, Some(Identity::new(key(SHOP)).trust(&trust())), Some(identity().trust(&trust())))
                .await;
        assert_eq!(*shop.send("payments", 7u64).reply::<u64>().await.unwrap(), 8);
        // Another node of the same process has another key, which the shop does not know.
        bank.node("ledger").on("u64", |_: &Event<u64>, _: &Context| true);
        let env = sim.env();
        until(&env, "the ledger is known", || shop.remote_nodes().iter().any(|node| node.id == "ledger"))
            .await;
        let error = shop.send("ledger", 7u64).reply::<bool>().await.unwrap_err();
        assert_eq!(error.find_cause::<Distrust>().map(Distrust::code), Some("unknown-key"));
    });
}

/// A verifier that counts what it is asked.
#[derive(Debug, Default, Clone)]
struct Counting(Arc<AtomicUsize>);

impl Verifier for Counting {
    fn verifies(&self, key: &PublicKey, message: &[u8], signature: &Signature) -> bool {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ed25519.verifies(key, message, signature)
    }
}

#[test]
fn one_signature_covers_a_group_and_is_verified_once() {
    let sim = Simulator::new(13);
    sim.run(async {
        let counting = Counting::default();
        let identity = Identity::new(key(BANK)).trust(&trust()).verifier(counting.clone());
        let bank = Bank::open(&sim, Some(identity)).await;
        let by = key(SHOP);
        let now = sim.env().unix_ms();
        let frames: Vec<_> = (0..100)
            .map(|number| {
                let payload = [number];
                let id = EventId::from_halves(9, u64::from(number) + 1).unwrap();
                let mut event = WireEvent::new(id, "u64", now, &payload);
                event.hash = Some(hash_event(&event));
                let mut frame = Vec::new();
                event.encode_into(&mut frame, EVENT_BYTES_MAX).unwrap();
                frame
            })
            .collect();
        let leaves = frames.iter().map(|frame| seal_leaf(Addressee::Node("payments"), "", frame)).collect();
        let tree = SealTree::new(leaves).unwrap();
        let mut seal = WireSeal::new(by.public_key(), 5, 1_000, now);
        seal.count = 100;
        seal.signature = by.sign(&seal.statement(&tree.root())).unwrap();
        let group: Vec<_> = frames
            .iter()
            .enumerate()
            .map(|(index, frame)| {
                (seal.index, seal.path) = (index as u32, tree.path(index).unwrap());
                let mut sealed = Vec::new();
                seal.encode_into(frame, &mut sealed);
                sealed
            })
            .collect();
        // One that is changed does not spoil the others, nor do they vouch for it.
        for (number, frame) in group.iter().enumerate() {
            assert_eq!(bank.post(&sim, "payments", frame).await, Ok(number as u64));
        }
        assert_eq!(counting.0.load(Ordering::SeqCst), 1);
        for frame in [&group[0], &group[99]] {
            assert_eq!(bank.post(&sim, "payments", frame).await, Err("replayed".into()));
            let mut changed = frame.clone();
            *changed.last_mut().unwrap() ^= 1;
            assert_eq!(bank.post(&sim, "payments", &changed).await, Err("bad-signature".into()));
        }
        assert_eq!(counting.0.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn what_leaves_together_is_signed_together_and_in_order() {
    let sim = Simulator::new(17);
    sim.run(async {
        let counting = Counting::default();
        let bank =
            Bank::open(&sim, Some(Identity::new(key(BANK)).trust(&trust()).verifier(counting.clone()))).await;
        let count = happen_core::limits::SEAL_GROUP_MAX as u64 + 300;
        let frames = leaving(&sim, Some(Identity::new(key(SHOP))), |shop| {
            for number in 0..count {
                shop.send("payments", number).forget();
            }
        })
        .await;
        assert_eq!(frames.len() as u64, count);
        let seals: Vec<_> = frames.iter().map(|frame| WireSeal::open(frame).unwrap().0.unwrap()).collect();
        assert!(seals.is_sorted_by(|one, other| one.number() + 1 == other.number()));
        let counts: std::collections::BTreeSet<_> = seals.iter().map(|seal| seal.count).collect();
        assert_eq!(counts, [300, happen_core::limits::SEAL_GROUP_MAX as u32].into());
        for frame in frames {
            bank.outside.post("payments", frame).unwrap();
        }
        let env = sim.env();
        until(&env, "all came", || bank.heard.lock().unwrap().len() as u64 == count).await;
        assert_eq!(*bank.heard.lock().unwrap(), (0..count).collect::<Vec<_>>());
        assert_eq!(counting.0.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn a_question_does_not_overtake_what_was_sent_before_it() {
    let sim = Simulator::new(18);
    sim.run(async {
        let trust = TrustStore::new();
        trust.trust(Trusted::new(public(SHOP)).nodes([""])).unwrap();
        trust.trust(Trusted::new(public(BANK)).nodes(["payments*"])).unwrap();
        let identity = |number| Some(Identity::new(key(number)).trust(&trust));
        let (shop, bank) = joined(&sim, identity(SHOP), identity(BANK)).await;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let push = Arc::clone(&heard);
        bank.node("payments-log")
            .on("u64", move |number: &Event<u64>, _: &Context| push.lock().unwrap().push(**number));
        let env = sim.env();
        until(&env, "the log is known", || shop.remote_nodes().iter().any(|node| node.id == "payments-log"))
            .await;
        for number in 0..10u64 {
            shop.send("payments-log", 10 * number).forget();
            shop.broadcast(10 * number + 1).unwrap();
            shop.send("payments-log", 10 * number + 2).await.unwrap();
        }
        let expected: Vec<_> =
            (0..10u64).flat_map(|number| [10 * number, 10 * number + 1, 10 * number + 2]).collect();
        assert_eq!(*heard.lock().unwrap(), expected);
        drop(bank);
    });
}

#[test]
fn who_acts_for_somebody_else_has_to_be_trusted_with_it() {
    let sim = Simulator::new(20);
    sim.run(async {
        let identity = |number| Some(Identity::new(key(number)).trust(&trust()));
        let (shop, bank) = joined(&sim, identity(SHOP), identity(BANK)).await;
        let orders = shop.node("orders");
        orders.on("buy", async |event: Event, cx: Context| -> happen::Result<u64> {
            let sending = cx.send("payments", 1u64);
            let sending = match event.get("for").and_then(|name| name.as_str()) {
                Some(name) => sending.on_behalf_of("tenant", name),
                None => sending,
            };
            Ok(sending.reply::<u64>().await?.into_inner())
        });
        let buy = |content| shop.send("orders", Event::new("buy", content)).from_source("tenant", "acme");
        assert_eq!(*buy(serde_json::json!({})).reply::<u64>().await.unwrap(), 2);
        let for_acme = buy(serde_json::json!({ "for": "acme" }));
        assert_eq!(*for_acme.reply::<u64>().await.unwrap(), 2);
        let for_others = buy(serde_json::json!({ "for": "umbrella" }));
        assert_eq!(for_others.reply::<u64>().await.unwrap_err().code(), "untrusted");
        assert_eq!(bank.refused_frames(), 1);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_that_send_at_once_do_not_look_like_an_attack() {
    let trust = trust();
    let hub = Hub::new();
    let spaces = [("shop", SHOP), ("bank", BANK)].map(|(name, number)| {
        let space = Space::memory();
        space.join(hub.link(name)).unwrap();
        space.identity(Identity::new(key(number)).trust(&trust)).unwrap();
        space
    });
    let [shop, bank] = spaces;
    let heard = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heard);
    bank.node("payments").on("u64", move |number: &Event<u64>, _: &Context| {
        count.fetch_add(1, Ordering::SeqCst);
        **number
    });
    bank.start().await.unwrap();
    shop.start().await.unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..4 {
        let (sender, done) = (shop.clone(), Arc::clone(&done));
        shop.env().spawn(Box::pin(async move {
            for number in 0..200u64 {
                for _ in 0..4 {
                    sender.send("payments", number).forget();
                }
                let reply = sender.send("payments", number).reply::<u64>().await;
                done.fetch_add(usize::from(*reply.unwrap() == number), Ordering::SeqCst);
            }
        }));
    }
    until(shop.env(), "all were answered", || done.load(Ordering::SeqCst) == 4 * 200).await;
    // The answers say that everything before them had come.
    assert_eq!(heard.load(Ordering::SeqCst), 4 * 200 * 5);
    assert_eq!((shop.refused_frames(), bank.refused_frames()), (0, 0));
    assert!(shop.dead_letters().is_empty() && bank.dead_letters().is_empty());
}

#[test]
fn what_could_not_leave_is_told() {
    let sim = Simulator::new(19);
    sim.run(async {
        let trust = TrustStore::new();
        trust.trust(Trusted::new(Wax(8).public_key()).nodes(["*"])).unwrap();
        let identity = || Some(Identity::new(Wax(8)).trust(&trust));
        let (shop, bank) = joined(&sim, identity(), identity()).await;
        shop.sign_with(Wax(0)).unwrap();
        let problems = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&problems);
        shop.on("system.problem", move |_: &Event, cx: &Context| {
            count.fetch_add(1, Ordering::SeqCst);
            // Whoever hears of it may send; this one is not signed either.
            cx.send("payments", 1u64).forget();
        });
        shop.send("payments", [1u64, 2, 3]).forget();
        let env = sim.env();
        until(&env, "there are letters", || shop.dead_letters().len() == 3).await;
        shop.broadcast(4u64).unwrap();
        until(&env, "there is one letter more", || shop.dead_letters().len() == 4).await;
        assert_eq!(problems.load(Ordering::SeqCst), 1);
        assert!(shop.dead_letters().iter().all(|letter| letter.code == "failed"));
        // What was sent before the end leaves before the end.
        shop.sign_with(Wax(8)).unwrap();
        let heard = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&heard);
        bank.node("last").on("bool", move |_: &Event<bool>, _: &Context| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        until(&env, "the last is known", || shop.remote_nodes().iter().any(|node| node.id == "last")).await;
        shop.send("last", true).forget();
        drop(shop);
        until(&env, "the last came", || heard.load(Ordering::SeqCst) == 1).await;
    });
}

/// Not cryptography: it shows that both sides of it can be replaced.
#[derive(Debug, Clone, Copy)]
struct Wax(u8);

impl Signer for Wax {
    fn public_key(&self) -> PublicKey {
        PublicKey::new(KeyKind::Account, [self.0; 32])
    }

    fn sign(&self, message: &[u8]) -> happen::Result<Signature> {
        match self.0 {
            0 => Err(happen::Error::msg("the device is locked")),
            1 => panic!("the device is gone"),
            number => Ok(Signature::from([message[message.len() - 1] ^ number; 64])),
        }
    }
}

impl Verifier for Wax {
    fn verifies(&self, key: &PublicKey, message: &[u8], signature: &Signature) -> bool {
        signature.as_bytes() == &[message[message.len() - 1] ^ key.as_bytes()[0]; 64]
    }
}

#[test]
fn cryptography_is_replaced_by_value() {
    let sim = Simulator::new(14);
    sim.run(async {
        let trust = TrustStore::new();
        for number in [0, 1, 8, 9] {
            trust.trust(Trusted::new(Wax(number).public_key()).nodes(["*"])).unwrap();
        }
        let identity = |number| Some(Identity::new(Wax(number)).trust(&trust));
        let (shop, bank) = joined(&sim, identity(8), identity(9)).await;
        assert_eq!(*shop.send("payments", 7u64).reply::<u64>().await.unwrap(), 8);
        // What cannot be signed does not leave, and what can be answered by nobody is an error.
        for (number, code) in [(0, "failed"), (1, "panicked")] {
            shop.sign_with(Wax(number)).unwrap();
            assert_eq!(shop.send("payments", 7u64).reply::<u64>().await.unwrap_err().code(), code);
            shop.sign_with(Wax(8)).unwrap();
            bank.sign_with(Wax(number)).unwrap();
            assert_eq!(shop.send("payments", 7u64).reply::<u64>().await.unwrap_err().code(), code);
            bank.sign_with(Wax(9)).unwrap();
        }
        assert_eq!(bank.refused_frames(), 0);
    });
}

#[test]
fn an_identity_is_given_once_and_before_the_start() {
    let sim = Simulator::new(15);
    sim.run(async {
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        assert_eq!(space.sign_with(key(1)).unwrap_err().code(), "misuse");
        let none = Identity::new(key(1)).window(Duration::ZERO);
        assert_eq!(space.identity(none).unwrap_err().code(), "misuse");
        space.identity(Identity::new(key(1))).unwrap();
        assert_eq!(space.identity(Identity::new(key(1))).unwrap_err().code(), "misuse");
        let late = Space::in_env(Config::default(), sim.env()).unwrap();
        late.start().await.unwrap();
        assert_eq!(late.identity(Identity::new(key(1))).unwrap_err().code(), "misuse");
    });
}

#[test]
fn no_secret_is_ever_shown() {
    let secret = key(SHOP).seed().reveal();
    let secret = &secret[3..20];
    let identity = Identity::new(key(SHOP)).sign_as("x", key(BANK)).trust(&trust());
    let shown = format!("{identity:?} {:?} {:?}", key(SHOP), key(SHOP).seed());
    assert!(shown.contains(&public(SHOP).to_string()));
    assert!(!shown.contains(secret), "{shown}");
    // Nor one that somebody put where the public key belongs.
    let text = format!(r#"{{"keys":[{{"key":"{}"}}]}}"#, key(SHOP).seed().reveal());
    let error = TrustStore::from_json(&text).unwrap_err();
    assert!(!format!("{error:?}").contains(secret), "{error:?}");
}

#[test]
fn trusted_keys_come_from_a_file_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trust.json");
    let entry = |number, rest: &str| format!(r#"{{"key":"{}"{rest}}}"#, public(number));
    let write = |keys: &str| std::fs::write(&file, format!(r#"{{"keys":[{keys}]}}"#)).unwrap();
    assert_eq!(TrustStore::open(&file).unwrap_err().code(), "io");
    write(&entry(1, r#","nodes":["orders"]"#));
    let trust = TrustStore::open(&file).unwrap();
    assert_eq!(trust.keys(), [Trusted::new(public(1)).nodes(["orders"])]);
    for bad in [
        "nonsense".to_owned(),
        entry(1, r#","node":["orders"]"#),
        format!("{},{}", entry(2, ""), entry(2, r#","nodes":["*"]"#)),
        r#"{"key":"UAAA"}"#.to_owned(),
        r#"{"nodes":["*"]}"#.to_owned(),
    ] {
        write(&bad);
        assert_eq!(trust.reload().unwrap_err().code(), "misuse", "{bad}");
        assert_eq!(trust.keys().len(), 1);
    }
    trust.revoke(&public(3)).unwrap();
    write(&[entry(2, ""), entry(3, "")].join(","));
    trust.reload().unwrap();
    assert_eq!(trust.keys().iter().map(Trusted::key).collect::<Vec<_>>().len(), 2);
    assert!(trust.is_revoked(&public(3)));
    assert_eq!(TrustStore::new().reload().unwrap_err().code(), "misuse");
}

#[tokio::test]
async fn a_durable_node_keeps_the_refusals() {
    let hub = Hub::new();
    let env = Arc::new(RealEnv::new());
    let store = Arc::new(MemoryStore::new(Arc::clone(&env) as Arc<dyn Env>));
    let space = Space::with_store(Config::default(), env, store).unwrap();
    space.join(hub.link("bank")).unwrap();
    space.identity(Identity::new(key(BANK)).trust(&trust())).unwrap();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let push = Arc::clone(&kept);
    space.node("audit").on("system.refused", move |told: &Event, _: &Context| {
        push.lock().unwrap().push((told.get("distrust").cloned(), told.get("key").cloned()));
    });
    space.start().await.unwrap();
    let outside = hub.link("outside");
    outside.attach(Probe::new("outside")).await.unwrap();
    let frame = {
        let leaf = seal_leaf(Addressee::Node("audit"), "", b"anything");
        let mut seal = WireSeal::new(public(STRANGER), 1, 1, space.env().unix_ms());
        seal.signature = key(STRANGER).sign(&seal.statement(&leaf)).unwrap();
        let mut frame = Vec::new();
        seal.encode_into(b"anything", &mut frame);
        frame
    };
    outside.post("audit", frame).unwrap();
    until(space.env(), "the refusal is kept", || !kept.lock().unwrap().is_empty()).await;
    let expected = (Some("unknown-key".into()), Some(public(STRANGER).to_string().into()));
    assert_eq!(*kept.lock().unwrap(), [expected]);
    space.stop().await.unwrap();
}

#[test]
fn a_sealed_frame_holds_the_frame_as_it_is() {
    let sim = Simulator::new(16);
    sim.run(async {
        let frame = one_leaving(&sim, SHOP, 7).await;
        let (seal, inside) = WireSeal::open(&frame).unwrap();
        let parcel = WireParcel::decode(inside, EVENT_BYTES_MAX).unwrap();
        assert_eq!(parcel.events()[0].payload, [7]);
        let seal = seal.unwrap();
        assert_eq!((seal.key, seal.count, seal.path.len()), (public(SHOP), 1, 0));
        assert_eq!(frame.len() - inside.len(), 132);
    });
}
