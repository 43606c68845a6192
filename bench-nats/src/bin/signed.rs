//! What do signatures cost? Two pairs of spaces exchange the same events through one server on loopback, in turns: of one
//! pair each signs what leaves it and checks what comes. Figures are medians over rounds.
//!
//! Run: `cargo run --release --bin signed [events of one round] [rounds]`. The server has to be installed
//! (`cargo xtask setup`).

use std::sync::Arc;
use std::time::Instant;

use happen::env::RealEnv;
use happen::identity::{Identity, Signer as _, TrustStore, Trusted};
use happen::{Context, Event, Space};
use happen_bench_nats::{Came, arguments, flooded, median, p50, payload, space};
use happen_core::env::Env;
use happen_ed25519::KeyPair;
use happen_testing::NatsServer;
use happen_testing::link::until;

/// Two spaces of one name, and what came of a flood to the second.
struct Pair {
    here: Space,
    _there: Space,
    came: Arc<Came>,
}

impl Pair {
    async fn start(server: &NatsServer, name: &str, signs: bool) -> Self {
        let env: Arc<dyn Env> = Arc::new(RealEnv::new());
        let [here, there] =
            [space(server, &env, name, "here").await, space(server, &env, name, "there").await];
        if signs {
            let [sends, answers] = [(), ()].map(|()| KeyPair::generate().expect("a key"));
            let trust = TrustStore::new();
            trust.trust(Trusted::new(sends.public_key()).nodes([""])).expect("trust");
            trust.trust(Trusted::new(answers.public_key()).nodes(["sink", "echo"])).expect("trust");
            here.identity(Identity::new(sends).trust(&trust)).expect("an identity");
            there.identity(Identity::new(answers).trust(&trust)).expect("an identity");
        }
        let came = Arc::new(Came::default());
        let count = Arc::clone(&came);
        there.node("sink").on("string", move |_: &Event<String>, _: &Context| {
            count.one();
        });
        there.node("echo").on("string", |text: &Event<String>, _: &Context| text.payload().clone());
        here.start().await.expect("a start");
        there.start().await.expect("a start");
        until(&env, "they know each other", || here.remote_nodes().len() == 2).await;
        Self { here, _there: there, came }
    }

    /// Events a second that nobody waits for, up to their handler.
    async fn flood(&self, events: u64) -> f64 {
        let (space, payload) = (self.here.clone(), payload());
        let rate = flooded(events, move || space.send("sink", payload.clone()).forget(), &self.came).await;
        assert!(self.here.dead_letters().is_empty());
        rate
    }

    /// The median of one ask alone, in microseconds.
    async fn alone(&self, asks: u64) -> f64 {
        let mut times = Vec::new();
        for _ in 0..asks {
            let begun = Instant::now();
            self.here.send("echo", payload()).reply::<String>().await.expect("a reply");
            times.push(begun.elapsed());
        }
        p50(times)
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let [events, rounds] = arguments([200_000, 5]);
    let server = NatsServer::start();
    let pairs = [Pair::start(&server, "plain", false).await, Pair::start(&server, "signed", true).await];
    let (mut floods, mut alones) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    for _ in 0..rounds {
        for (pair, (flood, alone)) in pairs.iter().zip(floods.iter_mut().zip(&mut alones)) {
            flood.push(pair.flood(events).await);
            alone.push(pair.alone(events / 40).await);
        }
    }
    println!("payload 200 bytes, {events} events, {rounds} rounds");
    let [plain, signed] = floods.map(median);
    println!("send -> handler: {plain:.0}/s, signed and checked {signed:.0}/s, {:.2} of it", signed / plain);
    let [plain, signed] = alones.map(median);
    println!(
        "ask alone, p50: {plain:.0} us, signed and checked both ways {signed:.0} us, {:.0} more",
        signed - plain
    );
}
