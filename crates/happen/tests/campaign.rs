//! Campaigns in virtual time: the bank and the shop over several lives of a process, each of which ends at any commit or
//! at any moment, over a store that fails, is slow and is full for a while. Whatever happened, what is left at the end of
//! a healthy life is what was acknowledged, once.
#![expect(clippy::unwrap_used, reason = "whatever is not there fails the test, wherever it is looked for")]

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use happen::store::{MemoryStore, Store};
use happen::{Config, Context, Error, ErrorKind, Event, Space, millis, secs};
use happen_core::env::Env;
use happen_testing::{Dies, FaultyStore, Simulator, check_seeds};
use workloads::orders::{Approved, Note};
use workloads::{Part, Provider, audit, bank, orders};

mod workloads;

#[test]
fn a_bank_that_is_killed_again_and_again_loses_no_cent() {
    check_seeds(0..seeds(SEEDS), |sim| {
        bank_campaign(&sim);
    });
}

#[test]
fn a_shop_that_is_killed_again_and_again_ships_each_order_once() {
    check_seeds(0..seeds(SEEDS), |sim| {
        shop_campaign(&sim);
    });
}

/// A failing seed can only be repeated when nothing but the seed decides what happens.
#[test]
fn a_campaign_goes_the_same_way_each_time() {
    for seed in 0..5 {
        let ways = [(); 2].map(|()| {
            let sim = Simulator::new(seed);
            (bank_campaign(&sim), shop_campaign(&sim))
        });
        assert_eq!(ways[0], ways[1], "seed {seed} went two ways");
    }
}

/// What goes wrong in one life of a process.
struct Life {
    sim: Simulator,
    store: Arc<FaultyStore>,
    healthy: bool,
    ends: Ends,
}

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ends {
    /// The process stops as it should, when its work is done.
    Stops,
    /// It is killed after this time, wherever it is.
    Killed(Duration),
    /// The handle of the space is dropped while there is work.
    Dropped(Duration),
}

/// The lives of one campaign.
struct Campaign {
    disk: Arc<dyn Store>,
    lives: u64,
    dice: Arc<dyn Env>,
    ways: Mutex<Vec<u64>>,
}

impl Campaign {
    fn new(sim: &Simulator) -> Self {
        let dice = sim.env();
        let disk = Arc::new(MemoryStore::new(sim.env()));
        Self { disk, lives: dice.random_u64() % 4, dice, ways: Mutex::default() }
    }

    /// Lives the lives one after the other, the last one without faults.
    fn live(&self, mut each: impl FnMut(&Life, u64)) -> u64 {
        for number in 0..=self.lives {
            let healthy = number == self.lives;
            let sim = Simulator::new(self.dice.random_u64());
            // What the clock says after a restart need not be later than what it said before.
            let ahead = if self.dice.random_u64().is_multiple_of(3) { 0 } else { number * 10 };
            sim.jump_clock_forward(secs(ahead));
            let life = self.life(sim, healthy);
            each(&life, number);
            let way = life.sim.fingerprint();
            self.ways.lock().unwrap_or_else(PoisonError::into_inner).push(way);
        }
        let ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        ways.iter().fold(0, |all, way| all.rotate_left(7) ^ way)
    }

    fn life(&self, sim: Simulator, healthy: bool) -> Life {
        let store = FaultyStore::new(Arc::clone(&self.disk), sim.env());
        // A disk takes its time, which is no fault.
        store.takes(millis([0, 0, 3, 40][self.dice.random_u64() as usize % 4]));
        if healthy {
            return Life { sim, store, healthy, ends: Ends::Stops };
        }
        let dice = |sides: u64| self.dice.random_u64() % sides;
        let dies = if dice(2) == 0 { Dies::Before } else { Dies::Unheard };
        let mut ends = Ends::Stops;
        match dice(6) {
            0..=2 => store.dies_at(1 + dice(120), dies),
            3 => ends = Ends::Dropped(millis(dice(4_000))),
            _ => ends = Ends::Killed(millis(dice(4_000))),
        }
        store.fails([0, 0, 30, 150][dice(4) as usize]);
        if dice(4) == 0 {
            let (full, env) = (Arc::clone(&store), sim.env());
            let (from, time) = (millis(dice(2_000)), millis(dice(20_000)));
            sim.env().spawn(Box::pin(async move {
                env.sleep(from).await;
                full.fill(true);
                env.sleep(time).await;
                full.fill(false);
            }));
        }
        Life { sim, store, healthy, ends }
    }
}

impl Life {
    /// A space over what the earlier lives left.
    fn space(&self) -> Space {
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        Space::with_store(Config::default(), self.sim.env(), store).unwrap()
    }

    /// Runs a program until its end, or until the process is killed.
    fn run(&self, work: impl Future<Output = ()>) {
        let Ends::Killed(after) = self.ends else { return self.sim.run(work) };
        let mut killed = self.sim.env().sleep(after);
        self.sim.run(async {
            let mut work = pin!(work);
            poll_fn(|task| {
                let over = killed.as_mut().poll(task).is_ready() || work.as_mut().poll(task).is_ready();
                if over { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        });
    }

    /// Waits until the work is done, or as long as this life has.
    async fn rest(&self, space: Space) {
        if let Ends::Dropped(after) = self.ends {
            self.sim.env().sleep(after).await;
            drop(space);
            self.sim.env().sleep(millis(50)).await;
            return;
        }
        if !self.healthy {
            drop(space.settled(secs(30)).await);
            drop(space.stop().await);
            return;
        }
        let mut flows = Vec::new();
        for _ in 0..PATIENCE {
            space.settled(secs(600)).await.unwrap();
            let store = Arc::clone(&self.store) as Arc<dyn Store>;
            flows = audit::flows(&store).await;
            if flows.is_empty() {
                space.stop().await.unwrap();
                return;
            }
            self.sim.env().sleep(secs(1)).await;
        }
        panic!("flows that never end: {flows:?}");
    }

    fn dice(&self) -> impl FnMut() -> u64 + use<> {
        let env = self.sim.env();
        move || env.random_u64()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bank_campaign(sim: &Simulator) -> u64 {
    let campaign = Campaign::new(sim);
    let known: Arc<Mutex<Vec<bank::Known>>> = Arc::default();
    let effects: Arc<Mutex<BTreeMap<u64, Vec<String>>>> = Arc::default();
    let way = campaign.live(|life, number| {
        let provider = provider(life, &effects);
        life.run(async {
            let space = life.space();
            Part::ALL.iter().for_each(|part| bank::build(&space, &provider, *part));
            if space.start().await.is_err() {
                assert!(!life.healthy, "a healthy space starts");
                return;
            }
            for transfer in 0..TRANSFERS {
                let mut dice = life.dice();
                let transfer = bank::transfer(number * 1_000 + transfer, &mut dice);
                let (space, known) = (space.clone(), Arc::clone(&known));
                let (wait, kind) = (millis(dice() % 2_000), dice() % 3);
                let env = life.sim.env();
                life.sim.env().spawn(Box::pin(async move {
                    env.sleep(wait).await;
                    let at = {
                        let mut known = locked(&known);
                        known.push(bank::Known {
                            transfer: transfer.clone(),
                            acknowledged: false,
                            outcome: None,
                        });
                        known.len() - 1
                    };
                    let sending = space.send("bank", transfer);
                    match kind {
                        0 => {
                            let reply = sending.reply::<bank::Outcome>().await;
                            if let Ok(reply) = reply {
                                let mut known = locked(&known);
                                known[at].acknowledged = true;
                                known[at].outcome = Some(*reply);
                            }
                        }
                        1 => {
                            let sent = sending.await.is_ok();
                            locked(&known)[at].acknowledged = sent;
                        }
                        _ => sending.forget(),
                    }
                }));
            }
            if life.ends == Ends::Stops {
                life.sim.env().sleep(secs(3)).await;
            }
            life.rest(space).await;
        });
    });
    let check = Simulator::new(0);
    check.run(async {
        assert_eq!(audit::flows(&campaign.disk).await, Vec::<String>::new());
        let log = audit::check(&campaign.disk).await;
        let known = locked(&known).clone();
        let effects = locked(&effects).clone();
        bank::check(&campaign.disk, &log, &known, &effects).await;
        assert!(known.iter().filter(|known| known.acknowledged).count() > 0);
    });
    way
}

/// A service outside that fails from time to time, and hears nothing of a process that is dead.
fn provider(life: &Life, effects: &Arc<Mutex<BTreeMap<u64, Vec<String>>>>) -> Provider {
    let (effects, store, env) = (Arc::clone(effects), Arc::clone(&life.store), life.sim.env());
    Provider(Arc::new(move |key, transfer| {
        if store.is_dead() {
            return Err(Error::new(ErrorKind::Closed { what: "the process".to_owned() }));
        }
        if env.random_u64().is_multiple_of(10) {
            return Err(Error::new(ErrorKind::Io { what: "the provider".to_owned() }));
        }
        locked(&effects).entry(transfer).or_default().push(key.to_owned());
        Ok(())
    }))
}

fn shop_campaign(sim: &Simulator) -> u64 {
    let campaign = Campaign::new(sim);
    let known: Arc<Mutex<Vec<orders::Known>>> = Arc::default();
    let notes: Arc<Mutex<BTreeMap<String, orders::Notes>>> = Arc::default();
    let screen = Arc::new(AtomicU64::new(0));
    let way = campaign.live(|life, number| {
        life.run(async {
            let space = life.space();
            Part::ALL.iter().for_each(|part| orders::build(&space, &screen, *part));
            space.on("system.started", |_: &Event, _: &Context| {}).check().unwrap();
            if space.start().await.is_err() {
                assert!(!life.healthy, "a healthy space starts");
                return;
            }
            for order in 0..ORDERS {
                order_one(life, &space, number * 1_000 + order, &known);
            }
            for key in 0..NOTE_KEYS {
                note_some(life, &space, format!("key-{key}"), &notes);
            }
            // A space that is dropped is one that nobody has any more.
            if !matches!(life.ends, Ends::Dropped(_)) {
                approve_all(life, &space, &known);
            }
            if life.ends == Ends::Stops {
                life.sim.env().sleep(secs(3)).await;
            }
            life.rest(space).await;
        });
    });
    let check = Simulator::new(0);
    check.run(async {
        assert_eq!(audit::flows(&campaign.disk).await, Vec::<String>::new());
        let log = audit::check(&campaign.disk).await;
        let (known, notes) = (locked(&known).clone(), locked(&notes).clone());
        orders::check(&campaign.disk, &log, &known, &notes).await;
        assert!(known.iter().filter(|known| known.acknowledged).count() > 0);
    });
    way
}

fn order_one(life: &Life, space: &Space, id: u64, known: &Arc<Mutex<Vec<orders::Known>>>) {
    let mut dice = life.dice();
    let order = orders::order(id, &mut dice);
    let (wait, replies) = (millis(dice() % 2_000), dice().is_multiple_of(2));
    let (space, known, env) = (space.clone(), Arc::clone(known), life.sim.env());
    life.sim.env().spawn(Box::pin(async move {
        env.sleep(wait).await;
        let at = {
            let mut known = locked(&known);
            known.push(orders::Known { order: order.clone(), acknowledged: false, outcome: None });
            known.len() - 1
        };
        let sending = space.send("orders", order);
        if replies {
            if let Ok(reply) = sending.reply::<orders::Outcome>().await {
                let mut known = locked(&known);
                known[at].acknowledged = true;
                known[at].outcome = Some(*reply);
            }
        } else if sending.await.is_ok() {
            locked(&known)[at].acknowledged = true;
        }
    }));
}

/// Sends notes with one key, one after the other.
fn note_some(life: &Life, space: &Space, key: String, notes: &Arc<Mutex<BTreeMap<String, orders::Notes>>>) {
    let (space, notes, env) = (space.clone(), Arc::clone(notes), life.sim.env());
    let mut dice = life.dice();
    life.sim.env().spawn(Box::pin(async move {
        for _ in 0..NOTES {
            env.sleep(millis(dice() % 50)).await;
            let number = {
                let mut notes = locked(&notes);
                let known = notes.entry(key.clone()).or_default();
                known.sent += 1;
                known.sent
            };
            let sending = space.send("journal", Note { key: key.clone(), number });
            if dice().is_multiple_of(3) {
                sending.forget();
            } else if sending.await.is_ok()
                && let Some(known) = locked(&notes).get_mut(&key)
            {
                known.acknowledged.push(number);
            }
        }
    }));
}

/// A person who approves of every large order from time to time.
fn approve_all(life: &Life, space: &Space, known: &Arc<Mutex<Vec<orders::Known>>>) {
    let (space, known, env) = (space.clone(), Arc::clone(known), life.sim.env());
    life.sim.env().spawn(Box::pin(async move {
        for _ in 0..PATIENCE {
            env.sleep(millis(1_500)).await;
            let large: Vec<_> = {
                let known = locked(&known);
                known
                    .iter()
                    .filter(|known| orders::needs_approval(&known.order))
                    .map(|known| known.order.id)
                    .collect()
            };
            for order in large {
                // A space that has ended takes nothing more.
                if space.broadcast(Approved { order }).is_err() {
                    return;
                }
            }
        }
    }));
}

/// How many seeds run: more at night.
fn seeds(ordinary: u64) -> u64 {
    let number = std::env::var("HAPPEN_SEEDS").ok();
    number.map_or(ordinary, |number| number.parse().unwrap())
}

const SEEDS: u64 = 150;
const TRANSFERS: u64 = 12;
const ORDERS: u64 = 5;
const NOTE_KEYS: u64 = 2;
const NOTES: u64 = 6;
/// How often a healthy life looks whether all flows have ended.
const PATIENCE: u32 = 400;
