//! The copy of a log that this process has, and how far it is. Owns what is asked of it from several sides; does not know
//! how entries come or go.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use happen::store::{SqliteOptions, SqliteStore};
use happen_core::env::Env;
use happen_core::store::{Committed, Pruned};
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::watch;

use super::entry::{Digest, Standing};
use super::message::WriterId;
use super::scratch::{self, Scratch};
use super::snapshot::{Header, Snapshots};
use crate::limits;

/// What this process has of a log.
pub(crate) struct Copy {
    pub(crate) store: SqliteStore,
    /// Up to which message everything was taken.
    reached: watch::Sender<u64>,
    standings: Mutex<Standings>,
    /// Why nothing more is taken.
    failure: Mutex<Option<Error>>,
    failed: watch::Sender<bool>,
    /// Why the log cannot be read at this moment.
    unread: Mutex<Option<String>>,
    /// Who this process is as a writer.
    own: Mutex<WriterId>,
    /// Messages that were left out because they are none of this log.
    refused: AtomicU64,
    _folder: Scratch,
}

/// How the copy stood after each of the last entries.
#[derive(Default)]
struct Standings {
    last: Standing,
    kept: VecDeque<Standing>,
}

impl Copy {
    /// A copy in a folder of its own: that which was kept last, or an empty one.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made, and as [`Snapshots::load`].
    pub(crate) async fn new(env: Arc<dyn Env>, snapshots: &Snapshots) -> Result<(Self, Header)> {
        scratch::remove_deserted();
        let folder = Scratch::new()?;
        let header = snapshots.load(&folder.path().join(DATABASE)).await?.unwrap_or_default();
        let mut own: WriterId = Default::default();
        env.fill_random(&mut own);
        let store = SqliteStore::open(folder.path(), SqliteOptions::new(env).unsynced()).await?;
        let copy = Self {
            store,
            own: Mutex::new(own),
            reached: watch::Sender::new(header.sequence),
            standings: Mutex::new(Standings {
                last: header.standing,
                kept: VecDeque::from([header.standing]),
            }),
            failure: Mutex::default(),
            failed: watch::Sender::new(false),
            unread: Mutex::default(),
            refused: AtomicU64::new(0),
            _folder: folder,
        };
        Ok((copy, header))
    }

    /// Who this process is as a writer.
    pub(crate) fn own(&self) -> WriterId {
        *lock(&self.own)
    }

    /// Makes this process another writer. Nothing that it wrote may be on its way.
    pub(crate) fn begin_anew(&self, own: WriterId) {
        *lock(&self.own) = own;
    }

    /// Writes the copy as it is into a new folder. Nothing may be taken meanwhile.
    ///
    /// # Errors
    ///
    /// As [`SqliteStore::backup`].
    pub(crate) async fn write(&self) -> Result<(Scratch, PathBuf)> {
        let folder = Scratch::new()?;
        self.store.backup(folder.path()).await?;
        let file = folder.path().join(DATABASE);
        Ok((folder, file))
    }

    /// Notes what came of an entry.
    ///
    /// # Errors
    ///
    /// When another copy made something else of an earlier entry: one of the two is damaged.
    pub(crate) fn took(&self, sequence: u64, theirs: Standing, outcome: &[u8]) -> Result<()> {
        let mut standings = lock(&self.standings);
        let known = standings.kept.iter().rev().find(|standing| standing.sequence == theirs.sequence);
        if let Some(ours) = known.filter(|ours| ours.digest != theirs.digest) {
            return Err(Error::new(ErrorKind::Damaged {
                what: format!(
                    "the copy of the log in this process has something else at message {} than the process that wrote \
                     message {sequence}; open the store again, and look at the other process if this comes back",
                    ours.sequence
                ),
            }));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&standings.last.digest);
        hasher.update(&sequence.to_le_bytes());
        hasher.update(outcome);
        let mut digest: Digest = [0; size_of::<Digest>()];
        hasher.finalize_xof().fill(&mut digest);
        standings.last = Standing { sequence, digest };
        let last = standings.last;
        standings.kept.push_back(last);
        if standings.kept.len() > limits::STANDINGS_KEPT {
            standings.kept.pop_front();
        }
        Ok(())
    }

    /// How the copy stands.
    pub(crate) fn standing(&self) -> Standing {
        lock(&self.standings).last
    }

    pub(crate) fn reach(&self, sequence: u64) {
        self.reached.send_replace(sequence);
    }

    /// Up to which message everything was taken.
    pub(crate) fn reached(&self) -> watch::Receiver<u64> {
        self.reached.subscribe()
    }

    /// Notes why the log cannot be read at this moment, or that it can.
    pub(crate) fn reads(&self, why_not: Option<String>) {
        *lock(&self.unread) = why_not;
    }

    /// Why the log cannot be read at this moment.
    pub(crate) fn unread(&self) -> Option<String> {
        lock(&self.unread).clone()
    }

    /// Takes nothing more, because of this.
    pub(crate) fn fail(&self, error: &Error) {
        tracing::error!(target: "happen", code = error.code(), "the copy of the log takes nothing more: {error}");
        lock(&self.failure).get_or_insert_with(|| error.duplicate());
        self.failed.send_replace(true);
    }

    pub(crate) fn failed(&self) -> watch::Receiver<bool> {
        self.failed.subscribe()
    }

    /// # Errors
    ///
    /// Why nothing more is taken.
    pub(crate) fn check(&self) -> Result<()> {
        if !*self.failed.borrow() {
            return Ok(());
        }
        let failure = lock(&self.failure).as_ref().map(Error::duplicate);
        failure.map_or(Ok(()), |error| Err(error.context("the copy of the log takes nothing more")))
    }

    /// The store that has it.
    ///
    /// # Errors
    ///
    /// As [`Copy::check`].
    pub(crate) fn sound(&self) -> Result<&SqliteStore> {
        self.check().map(|()| &self.store)
    }

    pub(crate) fn refuse(&self, error: &Error) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(target: "happen", code = error.code(), "a message in the log was left out: {error}");
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// The database of a backup, checked and with its positions ahead of all that were given, in a folder of its own.
///
/// # Errors
///
/// As [`SqliteStore::restore`].
pub(crate) async fn restored(backup: &Path) -> Result<(Scratch, PathBuf)> {
    let folder = Scratch::new()?;
    SqliteStore::restore(backup, folder.path()).await?;
    let file = folder.path().join(DATABASE);
    Ok((folder, file))
}

/// What every copy has to make of these batches, in a few bytes.
///
/// # Errors
///
/// The first failure that is this copy's own and not what was asked.
pub(crate) fn outcome_of(results: &[Result<Committed>]) -> Result<Vec<u8>> {
    let mut outcome = Vec::with_capacity(results.len() * 17);
    for result in results {
        match result {
            Ok(committed) => {
                outcome.push(1);
                outcome.extend(committed.position.number().to_le_bytes());
            }
            Err(error) => {
                check_meant(error)?;
                outcome.push(0);
            }
        }
    }
    Ok(outcome)
}

/// # Errors
///
/// As [`outcome_of`].
pub(crate) fn check_pruned(result: &Result<Pruned>) -> Result<()> {
    result.as_ref().map_or_else(check_meant, |_| Ok(()))
}

/// Whether an error says something of what was asked: then every copy says it.
fn check_meant(error: &Error) -> Result<()> {
    use ErrorKind as K;
    match error.kind() {
        K::Conflict { .. } | K::Misuse { .. } | K::Oversized { .. } => Ok(()),
        _ => Err(error.duplicate()),
    }
}

/// The file of a store in a folder.
const DATABASE: &str = "happen.db";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copy up to message {}", *self.reached.borrow())
    }
}
