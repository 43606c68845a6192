//! A store with faults: it dies at a commit of your choice, forgets what it was told or does not tell what it did, and
//! takes its time. Owns what goes wrong when; everything else is the store inside.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use happen_core::env::{BoxFuture, Env};
use happen_core::store::{
    Batch, Committed, Document, History, Key, List, Page, Position, Prune, Pruned, Read, Select, Store, Watch,
};
use happen_core::{Error, ErrorKind, Result};

/// A store over another one that goes wrong as planned.
///
/// With the store in memory inside it stands for a disk that outlives a process: let it die, make a new one over the
/// same store inside, and open the next space over that.
///
/// # Examples
///
/// ```
/// # use std::sync::Arc;
/// # use happen_core::store::{Batch, NewRecord, Store};
/// # use happen_testing::{Dies, FaultyStore, Simulator};
/// # fn memory(_: &Simulator) -> Option<Arc<dyn Store>> { None }
/// let sim = Simulator::new(7);
/// # let Some(inner) = memory(&sim) else { return };
/// let store = FaultyStore::new(inner, sim.env());
/// store.dies_at(3, Dies::Unheard);
/// ```
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    env: Arc<dyn Env>,
    plan: Mutex<Plan>,
}

/// What a process that dies in a commit leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a commit is there or it is not")]
pub enum Dies {
    /// Nothing of the commit.
    Before,
    /// The whole commit, of which nobody heard.
    Unheard,
}

#[derive(Default)]
struct Plan {
    commits: u64,
    dies: Option<(u64, Dies)>,
    /// Calls that fail, and what is there of them all the same.
    failing: Vec<(u64, Dies)>,
    dead: bool,
    /// Of a thousand commits, so many fail.
    failing_per_mille: u64,
    /// The longest time that a commit takes.
    latency: Duration,
    full: bool,
    /// How much later commits happen that fail at first.
    late: Duration,
    /// Until when those behind them wait.
    late_until: Duration,
}

impl FaultyStore {
    /// A store without faults so far, which takes its time and its dice from this environment.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, env: Arc<dyn Env>) -> Arc<Self> {
        Arc::new(Self { inner, env, plan: Mutex::default() })
    }

    /// Plans that the process dies in the commit call with this number, from 1. From then on nothing is answered but that
    /// the store is closed.
    pub fn dies_at(&self, commit: u64, dies: Dies) {
        self.plan().dies = Some((commit, dies));
    }

    /// Has so many of a thousand commit calls fail, half of them although they were committed.
    pub fn fails(&self, per_mille: u64) {
        self.plan().failing_per_mille = per_mille;
    }

    /// Has the commit call with this number, from 1, fail once, and go on. [`Dies::Unheard`] fails although it was
    /// committed.
    pub fn fails_at(&self, commit: u64, how: Dies) {
        self.plan().failing.push((commit, how));
    }

    /// Has each commit take up to this time.
    pub fn takes(&self, latency: Duration) {
        self.plan().latency = latency;
    }

    /// Has each commit from now on fail at first and happen so much later, in order, as one does that is on its way to a
    /// server which is not there; none of them any more when it is no time.
    pub fn happen_later(&self, late: Duration) {
        self.plan().late = late;
    }

    /// Lets no commit through, as a full disk does, or lets them through again.
    pub fn fill(&self, full: bool) {
        self.plan().full = full;
    }

    /// Whether the process has died.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.plan().dead
    }

    /// The number of commit calls so far.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.plan().commits
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> Result<()> {
        if self.is_dead() { Err(closed()) } else { Ok(()) }
    }
}

/// What happens to one commit call.
enum Fate {
    Passes,
    DiesBefore,
    DiesAfter,
    FailsBefore,
    FailsAfter,
    /// Fails, and happens after this time.
    Late(Duration),
}

impl Store for FaultyStore {
    fn commit(&self, batches: Vec<Batch>) -> BoxFuture<'_, Vec<Result<Committed>>> {
        Box::pin(async move {
            let len = batches.len();
            let all = |error: fn() -> Error| (0..len).map(|_| Err(error())).collect::<Vec<_>>();
            let (fate, latency, behind) = {
                let mut plan = self.plan();
                if plan.dead {
                    return all(closed);
                }
                plan.commits += 1;
                let dice = self.env.random_u64() % 1_000;
                let planned =
                    plan.failing.iter().find(|(commit, _)| *commit == plan.commits).map(|(_, how)| *how);
                let fate = match plan.dies {
                    Some((commit, Dies::Before)) if commit == plan.commits => Fate::DiesBefore,
                    Some((commit, Dies::Unheard)) if commit == plan.commits => Fate::DiesAfter,
                    _ if planned == Some(Dies::Before) => Fate::FailsBefore,
                    _ if planned == Some(Dies::Unheard) => Fate::FailsAfter,
                    _ if plan.full => Fate::FailsBefore,
                    _ if !plan.late.is_zero() => Fate::Late(plan.late),
                    _ if dice < plan.failing_per_mille && dice.is_multiple_of(2) => Fate::FailsBefore,
                    _ if dice < plan.failing_per_mille => Fate::FailsAfter,
                    _ => Fate::Passes,
                };
                plan.dead |= matches!(fate, Fate::DiesBefore | Fate::DiesAfter);
                let now = self.env.monotonic();
                if let Fate::Late(late) = fate {
                    plan.late_until = now + late;
                }
                (fate, plan.latency, plan.late_until.saturating_sub(now))
            };
            if let Fate::Late(late) = fate {
                let (inner, env) = (Arc::clone(&self.inner), Arc::clone(&self.env));
                self.env.spawn(Box::pin(async move {
                    env.sleep(late).await;
                    drop(inner.commit(batches).await);
                }));
                return all(failed);
            }
            if !behind.is_zero() {
                self.env.sleep(behind + Duration::from_millis(1)).await;
            }
            if !latency.is_zero() {
                let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
                self.env.sleep(Duration::from_micros(self.env.random_u64() % micros.max(1))).await;
            }
            match fate {
                Fate::Passes => self.inner.commit(batches).await,
                Fate::DiesBefore => all(closed),
                Fate::FailsBefore | Fate::Late(_) => all(failed),
                Fate::DiesAfter => {
                    drop(self.inner.commit(batches).await);
                    all(closed)
                }
                Fate::FailsAfter => {
                    drop(self.inner.commit(batches).await);
                    all(failed)
                }
            }
        })
    }

    fn read(&self, read: Read) -> BoxFuture<'_, Result<Page>> {
        Box::pin(async move {
            self.alive()?;
            self.inner.read(read).await
        })
    }

    fn watch(&self, select: Select, after: Position) -> BoxFuture<'_, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            self.alive()?;
            self.inner.watch(select, after).await
        })
    }

    fn documents(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Option<Document>>>> {
        Box::pin(async move {
            self.alive()?;
            self.inner.documents(keys).await
        })
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn document_now(&self, key: &Key) -> Option<Result<Option<Document>>> {
        if let Err(error) = self.alive() {
            return Some(Err(error));
        }
        self.inner.document_now(key)
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Vec<Document>>> {
        Box::pin(async move {
            self.alive()?;
            self.inner.list(list).await
        })
    }

    fn history(&self, history: History) -> BoxFuture<'_, Result<Vec<Document>>> {
        Box::pin(async move {
            self.alive()?;
            self.inner.history(history).await
        })
    }

    fn prune(&self, prune: Prune) -> BoxFuture<'_, Result<Pruned>> {
        Box::pin(async move {
            self.alive()?;
            self.inner.prune(prune).await
        })
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed { what: "the store, whose process died,".to_owned() })
}

fn failed() -> Error {
    Error::new(ErrorKind::Io { what: "a commit that was made to fail".to_owned() })
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan();
        write!(f, "FaultyStore({} commits{})", plan.commits, if plan.dead { ", dead" } else { "" })
    }
}
