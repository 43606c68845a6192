//! What the programs here share: the same payload, the same flood, the same way to a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::ConnectOptions;
use happen::{Config, Space};
use happen_core::env::Env;
use happen_nats::{Connection, LinkOptions, NatsLink};
use happen_testing::NatsServer;
use tokio::sync::Semaphore;

/// Events on their way at once in the flood: a reader of any queue would keep the sender from running ahead further.
const AHEAD: u64 = 8_000;
/// After how many of them their sender looks whether there is room.
const TOGETHER: u64 = 100;

/// The numbers that the program was started with, and those of `defaults` for what was not given.
pub fn arguments<const N: usize>(defaults: [u64; N]) -> [u64; N] {
    let mut given = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    defaults.map(|default| given.next().unwrap_or(default))
}

pub fn payload() -> String {
    (0..200).map(|at| char::from(b'a' + at % 26)).collect()
}

/// What came of a flood. Its sender waits here, as the bare client's sender waits for its connection.
#[derive(Debug)]
pub struct Came {
    count: AtomicU64,
    ahead: Semaphore,
}

impl Default for Came {
    fn default() -> Self {
        Self { count: AtomicU64::new(0), ahead: Semaphore::new(AHEAD as usize) }
    }
}

impl Came {
    /// Notes that one has come.
    pub fn one(&self) {
        if (self.count.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(TOGETHER) {
            self.ahead.add_permits(TOGETHER as usize);
        }
    }

    /// Waits until so many may leave.
    async fn room(&self) {
        self.ahead.acquire_many(TOGETHER as u32).await.expect("a place").forget();
    }

    /// Waits until all that may leave have come.
    async fn all(&self) {
        drop(self.ahead.acquire_many(AHEAD as u32).await.expect("all places"));
    }
}

pub async fn space(server: &NatsServer, env: &Arc<dyn Env>, space: &str, member: &str) -> Space {
    let link = link(server, env, space, member).await;
    let space = Space::in_env(Config::default(), Arc::clone(env)).expect("a space");
    space.join(link).expect("a link");
    space
}

pub async fn link(server: &NatsServer, env: &Arc<dyn Env>, space: &str, member: &str) -> Arc<NatsLink> {
    let connection = Connection::open(&server.url(), ConnectOptions::new()).await.expect("a connection");
    NatsLink::new(&connection, Arc::clone(env), LinkOptions::new(space, member)).expect("names")
}

pub fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Sends from a task of its own, as the bare client does.
pub async fn flooded(events: u64, mut send: impl FnMut() + Send + 'static, came: &Arc<Came>) -> f64 {
    let begun = Instant::now();
    let room = Arc::clone(came);
    let sending = tokio::spawn(async move {
        for _ in 0..events / TOGETHER {
            room.room().await;
            (0..TOGETHER).for_each(|_| send());
        }
        room.all().await;
    });
    sending.await.expect("a sender");
    rate(events / TOGETHER * TOGETHER, begun.elapsed())
}

/// In microseconds.
pub fn p50(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
