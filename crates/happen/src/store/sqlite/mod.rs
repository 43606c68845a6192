//! The store in a folder: a SQLite database, one thread that writes it and a few that read it. Owns opening and
//! closing and how calls reach the threads; does not know what the bytes mean.

mod fault;
mod schema;
mod log_file;
mod rows;
mod packing;
mod horizon;
mod query;
mod writer;
mod prune;
mod readers;
mod follow;
mod upkeep;

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use happen_core::env::{BoxFuture, Env};
use happen_core::store::{
    Batch, Committed, Document, History, Key, List, Page, Position, Prune, Pruned, Read, Select, Store, Watch,
};
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot, watch};

use self::follow::{Follower, LogWatch};
use self::query::Queries;
use self::readers::Readers;
use self::writer::{At, Call, Writer};
use crate::limits;
use crate::sync::{Mutex, lock};

pub use self::fault::StoreFault;
pub use self::upkeep::{StoreDamage, StoreInfo, Verified};

/// A store in a folder. Its promises are those of [`Store`]; what is committed outlives the process and, as far as the
/// disk keeps what it was told to sync, the loss of power.
///
/// One process at a time writes a folder; any number may read it meanwhile, see [`SqliteStore::open_read_only`]. The
/// tables are a documented format (`docs/format.md`), so people can ask them with `sqlite3`.
///
/// # Delivery
///
/// A commit has been synced to the disk when its future ends with `Ok`. Commits that come while the disk syncs form a
/// group, which is one transaction and one sync; each batch of it still succeeds or fails by itself.
///
/// Everything read is checked against a checksum: bytes that a disk changed are the error
/// [`ErrorKind::Damaged`] and never a record. SQLite's indexes have no checksums, so damage there may hide a record
/// from those who look for its tags, but not from those who follow the log; [`SqliteStore::verify`] finds it.
///
/// # Cancel safety
///
/// As [`Store`] says. The work goes on on the store's own threads, and nobody waits for it on a thread of a runtime.
///
/// # Cost
///
/// A thread for the writer and one for each reader, some ten MiB of memory for each, and a sync for each group of
/// commits.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use happen::env::RealEnv;
/// use happen::store::{Batch, NewRecord, Read, Select, SqliteOptions, SqliteStore, Store, Tag};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let temporary = tempfile::tempdir().unwrap();
/// # let folder = temporary.path().join("data");
/// let store = SqliteStore::open(&folder, SqliteOptions::new(Arc::new(RealEnv::new()))).await?;
/// let placed = NewRecord { tags: vec![Tag::Declared("order:7".into())], bytes: (*b"placed").into() };
/// let committed = store.commit(vec![Batch { records: vec![placed], ..Batch::default() }]).await.remove(0)?;
/// drop(store);
///
/// let store = SqliteStore::open(&folder, SqliteOptions::new(Arc::new(RealEnv::new()))).await?;
/// let page = store.read(Read::forward(Select::tag(Tag::Declared("order:7".into())))).await?;
/// assert_eq!(page.records[0].position, committed.position);
/// # Ok(())
/// # }
/// ```
pub struct SqliteStore {
    folder: PathBuf,
    /// Taken when the store closes; none in a store that only reads.
    calls: Mutex<Option<mpsc::Sender<Call>>>,
    readers: Arc<Readers>,
    news: watch::Receiver<i64>,
    follower: Option<Arc<Follower>>,
    /// The threads that read.
    threads: Mutex<Vec<JoinHandle<()>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    access: Access,
    /// What keeps other processes away, held until all threads have ended.
    lock: Mutex<Option<File>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadWrite,
    ReadOnly,
}

/// How a store in a folder is opened.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    env: Arc<dyn Env>,
    readers: usize,
    bytes_max: Option<u64>,
    synced: bool,
}

impl SqliteOptions {
    /// The defaults, with times from this environment.
    #[must_use]
    pub fn new(env: Arc<dyn Env>) -> Self {
        Self { env, readers: limits::STORE_READERS, bytes_max: None, synced: true }
    }

    /// The same with so many threads that read; at least one.
    #[must_use]
    pub fn readers(self, readers: usize) -> Self {
        Self { readers: readers.max(1), ..self }
    }

    /// The same with a limit on the database's size. A commit beyond fails as on a full disk, and pruning makes room.
    /// Beside it, the write-ahead log takes some 16 MiB.
    #[must_use]
    pub fn bytes_max(self, bytes: u64) -> Self {
        Self { bytes_max: Some(bytes), ..self }
    }

    /// The same without syncing: for a copy of what is kept elsewhere. It outlives its process, and may be damaged after
    /// the loss of power.
    #[must_use]
    pub fn unsynced(self) -> Self {
        Self { synced: false, ..self }
    }
}

impl SqliteStore {
    /// Opens the store in this folder, which is made if it is not there. What a crash left is put right first.
    ///
    /// # Errors
    ///
    /// [`Error::find_cause`] of a [`StoreFault`] tells the cases apart:
    ///
    /// - [`ErrorKind::Busy`]: another process has it ([`StoreFault::InUse`]). Stop that one, or open it to read only.
    /// - [`ErrorKind::Misuse`]: a later version wrote it, it may not be written, or it is no store.
    /// - [`ErrorKind::Damaged`]: what is there cannot be read, or commits were lost. Restore a backup.
    /// - [`ErrorKind::Io`]: the disk is full or failed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves a store that opens and closes again.
    pub async fn open(folder: impl AsRef<Path>, options: SqliteOptions) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        on_a_thread("open a store", move || Self::open_now(folder, &options)).await
    }

    /// Opens the store in this folder to read only, also while another process writes it. What that one commits is
    /// seen at once by a read, and by a watch within [`limits::STORE_FOLLOW_MS`].
    ///
    /// # Errors
    ///
    /// As [`SqliteStore::open`], but for [`ErrorKind::Busy`].
    pub async fn open_read_only(folder: impl AsRef<Path>, options: SqliteOptions) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        on_a_thread("open a store", move || Self::open_to_read(folder, &options)).await
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Closes the store: what was asked for is done, and then everybody is told that it is closed. Dropping the store
    /// does the same and waits for it, for the few milliseconds that takes, on the thread that drops.
    pub async fn close(&self) {
        let ending = self.end();
        // Without a thread to wait on there is nothing to wait for either: it ends by itself.
        let wait = move || {
            ending.wait();
            Ok(())
        };
        drop(on_a_thread("close a store", wait).await);
    }

    fn open_now(folder: PathBuf, options: &SqliteOptions) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(|error| fault::file("make", &folder, error))?;
        let held = take_lock(&folder)?;
        schema::create(&folder)?;
        log_file::check(&folder.join(schema::WRITE_AHEAD_LOG))?;
        let pages_max = options.bytes_max.map(|bytes| bytes / PAGE_BYTES);
        let connection = schema::writer(&folder, pages_max, options.synced)?;
        let (calls, waiting) = mpsc::channel(limits::STORE_CALLS_MAX);
        let (tell, news) = watch::channel(0);
        let writer = Writer::new(connection, Arc::clone(&options.env), waiting, tell)?;
        let readers = Readers::new();
        let threads = start_readers(&readers, &folder, options.readers)?;
        let writer = start("happen-store", move || writer.run()).inspect_err(|_| readers.close())?;
        Ok(Self {
            folder,
            calls: Mutex::new(Some(calls)),
            readers,
            news,
            follower: None,
            threads: Mutex::new(threads),
            writer: Mutex::new(Some(writer)),
            access: Access::ReadWrite,
            lock: Mutex::new(Some(held)),
        })
    }

    fn open_to_read(folder: PathBuf, options: &SqliteOptions) -> Result<Self> {
        let readers = Readers::new();
        let threads = start_readers(&readers, &folder, options.readers)?;
        let follower = Follower::new(&folder);
        Ok(Self {
            news: follower.news(),
            folder,
            calls: Mutex::new(None),
            readers,
            follower: Some(follower),
            threads: Mutex::new(threads),
            writer: Mutex::default(),
            access: Access::ReadOnly,
            lock: Mutex::default(),
        })
    }

    /// Commits as [`Store::commit`] does, but at this time, in milliseconds since 1970: for a copy of a log that is kept
    /// elsewhere and tells when it took what the copy takes now. Calls are committed in the order in which their futures
    /// were polled first.
    ///
    /// # Errors
    ///
    /// As [`Store::commit`].
    pub async fn commit_at(&self, unix_ms: u64, batches: Vec<Batch>) -> Vec<Result<Committed>> {
        self.call_to_commit(batches, Some(unix_ms)).await
    }

    /// Prunes as [`Store::prune`] does, in the order of the calls of [`SqliteStore::commit_at`] and at this time. Ends when
    /// what is forgotten is seen by nobody any more; what is given then waits until its room is freed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] when the store was closed. Everything else is told at the end.
    pub async fn prune_at(
        &self,
        unix_ms: u64,
        prune: Prune,
    ) -> Result<impl Future<Output = Result<Pruned>> + Send + 'static> {
        self.call_to_prune(prune, Some(unix_ms)).await
    }

    async fn call_to_commit(&self, batches: Vec<Batch>, at: At) -> Vec<Result<Committed>> {
        let len = batches.len();
        if len == 0 {
            return Vec::new();
        }
        let calls = match self.calls() {
            Ok(calls) => calls,
            Err(error) => return (0..len).map(|_| Err(fault::again(&error))).collect(),
        };
        let (answer, answered) = oneshot::channel();
        let bytes = writer::bytes_of(&batches);
        // Stands in line when it is polled first, also when the task has done much already: calls keep their order.
        let sent = tokio::task::unconstrained(calls.send(Call::Commit { batches, bytes, at, answer })).await;
        if sent.is_err() {
            return writer::closed(len);
        }
        drop(calls);
        answered.await.map_or_else(|_| writer::closed(len), |(results, _)| results)
    }

    async fn call_to_prune(
        &self,
        prune: Prune,
        at: At,
    ) -> Result<impl Future<Output = Result<Pruned>> + Send + 'static> {
        let calls = self.calls()?;
        let (begun, begins) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        let call = Call::Prune { prune, at, begun, answer };
        tokio::task::unconstrained(calls.send(call)).await.map_err(|_| fault::closed())?;
        drop(calls);
        begins.await.map_err(|_| fault::closed())?;
        Ok(async move { answered.await.unwrap_or_else(|_| Err(fault::closed())) })
    }

    /// Who to call to write.
    fn calls(&self) -> Result<mpsc::Sender<Call>> {
        if self.access == Access::ReadOnly {
            let folder = self.folder.display();
            return Err(Error::misuse(format!("the store in {folder} was opened to be read only")));
        }
        lock(&self.calls).clone().ok_or_else(fault::closed)
    }

    /// Lets nobody ask any more; gives what is left to wait for.
    fn end(&self) -> Ending {
        let calls = lock(&self.calls).take();
        self.readers.close();
        let mut readers = std::mem::take(&mut *lock(&self.threads));
        readers.extend(self.follower.as_ref().and_then(|follower| follower.close()));
        Ending { calls, readers, writer: lock(&self.writer).take(), lock: lock(&self.lock).take() }
    }
}

/// A store that closes.
struct Ending {
    calls: Option<mpsc::Sender<Call>>,
    readers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
    lock: Option<File>,
}

impl Ending {
    /// Waits until all is done. The writer's connection closes last, because only it may carry the write-ahead log
    /// over, and the last one has to.
    fn wait(self) {
        for reader in self.readers {
            // A thread that panicked has ended too.
            drop(reader.join());
        }
        drop(self.calls);
        drop(self.writer.map(JoinHandle::join));
        drop(self.lock);
    }
}

impl Store for SqliteStore {
    fn commit(&self, batches: Vec<Batch>) -> BoxFuture<'_, Vec<Result<Committed>>> {
        Box::pin(self.call_to_commit(batches, None))
    }

    /// The writer takes calls as they come.
    fn commits_in_order(&self) -> usize {
        limits::STORE_CALLS_MAX
    }

    fn read(&self, read: Read) -> BoxFuture<'_, Result<Page>> {
        Box::pin(self.readers.ask(move |queries| queries.read(&read)))
    }

    fn watch(&self, select: Select, after: Position) -> BoxFuture<'_, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            if let Some(follower) = &self.follower {
                follower.begin()?;
            }
            let watch = LogWatch::new(Arc::clone(&self.readers), self.news.clone(), select, after);
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn documents(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Option<Document>>>> {
        Box::pin(self.readers.ask(move |queries| queries.documents(&keys)))
    }

    /// Asks a reader and waits for it on this thread: some ten microseconds for a document in memory, and what the disk
    /// takes for another one.
    fn document_now(&self, key: &Key) -> Option<Result<Option<Document>>> {
        let keys = vec![Arc::clone(key)];
        let asked = self.readers.ask_and_wait(move |queries| queries.documents(&keys));
        Some(asked.map(|mut found| found.pop().flatten()))
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Vec<Document>>> {
        Box::pin(self.readers.ask(move |queries| queries.list(&list)))
    }

    fn history(&self, history: History) -> BoxFuture<'_, Result<Vec<Document>>> {
        Box::pin(self.readers.ask(move |queries| queries.history(&history)))
    }

    /// What is forgotten is not seen by anybody from the moment of the commit that writes the anchors. Its rows are
    /// deleted behind that, in steps that other commits carry along, so nobody waits; the future ends with the last
    /// one. A process that is killed meanwhile goes on when it opens the store again.
    ///
    /// A record that cannot be read is left, and told at the end by [`ErrorKind::Damaged`]: all else was pruned.
    fn prune(&self, prune: Prune) -> BoxFuture<'_, Result<Pruned>> {
        Box::pin(async move { self.call_to_prune(prune, None).await?.await })
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.end().wait();
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.access == Access::ReadOnly { ", read only" } else { "" };
        write!(f, "SqliteStore({}{access})", self.folder.display())
    }
}

/// Takes the lock that says which process has the folder. The system lets go of it however the process ends.
fn take_lock(folder: &Path) -> Result<File> {
    let path = folder.join(schema::LOCK);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.map_err(|error| fault::file("lock", folder, error))?;
    let mut looks = 0;
    let (locked, pid) = loop {
        let locked = file.try_lock();
        // Who has it is told as far as it can be read.
        let pid = if locked.is_ok() { None } else { holder_in(&mut file) };
        // A child that this process has just started has all its files until it runs its own program, also that of a
        // store which was closed a moment ago.
        if pid != Some(std::process::id()) || looks == limits::STORE_LOCK_LOOKS_MAX {
            break (locked, pid);
        }
        looks += 1;
        thread::park_timeout(Duration::from_millis(limits::STORE_LOCK_LOOK_MS));
    };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let folder = folder.to_owned();
            let holder = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            let what = format!(
                "the store in {}, which {holder} has open (stop that one, or read the store with \
                 `SqliteStore::open_read_only`),",
                folder.display()
            );
            return Err(Error::new(ErrorKind::Busy { what }).with_source(StoreFault::InUse { folder, pid }));
        }
        Err(TryLockError::Error(error)) => return Err(fault::file("lock", folder, error)),
    }
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|error| fault::file("lock", folder, error))?;
    Ok(file)
}

/// The process that the lock's file names.
fn holder_in(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn start_readers(readers: &Arc<Readers>, folder: &Path, count: usize) -> Result<Vec<JoinHandle<()>>> {
    let start_one = |_| {
        let queries = Queries::new(schema::reader(folder)?);
        let readers = Arc::clone(readers);
        start("happen-store-read", move || readers.serve(queries))
    };
    let started: Result<_> = (0..count).map(start_one).collect();
    // Those that were started before one was not have nothing to do.
    started.inspect_err(|_| readers.close())
}

/// Starts a thread of the store. The environment has tasks, and none that may live as long as a store does: a runtime
/// that ends would wait for it.
fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map_err(|error| {
        Error::new(ErrorKind::Io { what: format!("start the thread `{name}`") }).with_source(error)
    })
}

/// Does something that waits for the disk on a thread of its own.
async fn on_a_thread<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    // The thread ends with its work, and the answer says that it has.
    drop(start("happen-store-work", move || drop(answer.send(work())))?);
    answered.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Io { what: what.to_owned() })))
}

/// The size of a page of the database.
const PAGE_BYTES: u64 = 4_096;
