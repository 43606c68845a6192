//! The store over NATS: one stream is the log of a space, and every process that opens it has a copy that it reads. Owns
//! what is asked of both; does not know what the bytes mean.
//!
//! An entry of the log says what is to be committed and under which conditions. Whether the conditions hold is decided by
//! the order of the log, in every copy alike, so writing never fails because somebody else wrote, many entries can be on
//! their way at once, and one message carries a whole group of batches.

mod about;
mod asking;
mod copy;
mod entry;
mod follower;
mod message;
mod region;
mod route;
mod scratch;
mod snapshot;
mod stream;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::ContextBuilder;
use async_nats::jetstream::stream::Stream;
use happen_core::env::{BoxFuture, Env};
use happen_core::store::{
    Batch, Committed, Document, History, Key, List, Page, Position, Prune, Pruned, Read, Record, Select,
    Store, Watch,
};
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use self::about::LogInfo;
use self::copy::Copy;
use self::entry::{BatchBytes, Entry};
use self::follower::Follower;
use self::message::Message;
pub use self::region::{Followed, Former, LogPlace, LogRegion, OtherRegion, Surplus, TakenOver};
use self::route::Route;
use self::snapshot::{Header, Snapshots};
use self::writer::{Call, Sending, Writer, closed};
use crate::limits;
use crate::link::Connection;

/// Reads bytes as if they had come from a log: a message, an entry, or the header of a copy. How many batches they have, or
/// writers they know, if they are one. For fuzzing.
#[doc(hidden)]
#[must_use]
pub fn read_log_message(bytes: &[u8]) -> Option<usize> {
    if let Ok(message) = Message::decode(bytes) {
        return read_log_message(message.body);
    }
    match Entry::decode(bytes) {
        Ok((_, Entry::Commit(batches))) => Some(batches.len()),
        Ok((_, Entry::Prune(_))) => Some(0),
        Err(_) => Header::decode(bytes).ok().map(|header| header.writers.len()),
    }
}

/// Which log a store has, and how it is made if it is not there.
#[derive(Debug, Clone)]
pub struct NatsStoreOptions {
    env: Arc<dyn Env>,
    prefix: String,
    space: String,
    replicas: Option<usize>,
    commit_wait: Duration,
    copy_after: u64,
    make: Make,
    connection: Option<Connection>,
}

/// What is done where there is no log.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Make {
    Log,
    /// One that follows the log in this domain.
    Mirror(String),
    Nothing,
}

impl NatsStoreOptions {
    /// The log of the space with this name, with tasks and waits from this environment.
    #[must_use]
    pub fn new(space: impl Into<String>, env: Arc<dyn Env>) -> Self {
        Self {
            env,
            prefix: PREFIX.into(),
            space: space.into(),
            replicas: None,
            commit_wait: COMMIT_WAIT,
            copy_after: limits::COPY_AFTER_BYTES,
            make: Make::Log,
            connection: None,
        }
    }

    /// The same with a connection that knows why the servers refuse.
    pub(crate) fn over(self, connection: &Connection) -> Self {
        Self { connection: Some(connection.clone()), ..self }
    }

    /// The same with another beginning of all subjects and streams than `happen`.
    #[must_use]
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// The same for a log that has to be there: opening fails with [`ErrorKind::NotFound`] instead of making one.
    #[must_use]
    pub fn existing(self) -> Self {
        Self { make: Make::Nothing, ..self }
    }

    /// The same for the servers of a region that does not write the log: where there is none, one is made that follows
    /// that of the JetStream domain with this name, to which these servers are connected as leaf nodes. Reading is done
    /// here; what is committed goes to that region and is there when it has come back. See [`LogRegion`] for changing which
    /// region writes.
    #[must_use]
    pub fn mirror_of(self, domain: impl Into<String>) -> Self {
        Self { make: Make::Mirror(domain.into()), ..self }
    }

    /// The same with a log on so many servers, when it has to be made. Without this it is on three servers of a cluster
    /// and on one that is alone.
    #[must_use]
    pub fn replicas(self, replicas: usize) -> Self {
        Self { replicas: Some(replicas), ..self }
    }

    /// The same with a copy that is kept whenever so many bytes were written to the log, instead of
    /// [`limits::COPY_AFTER_BYTES`]. Every process on a log has to say the same.
    #[must_use]
    pub fn copy_after(self, bytes: u64) -> Self {
        Self { copy_after: bytes, ..self }
    }

    /// The same with commits that wait so long for their answer, instead of [`limits::COMMIT_WAIT_MS`].
    #[must_use]
    pub fn commit_wait(self, wait: Duration) -> Self {
        Self { commit_wait: wait, ..self }
    }
}

/// A store whose log is a stream of a NATS server or cluster. Any number of processes may have the same one; each has a
/// copy in a temporary folder, which is made anew whenever the store is opened.
///
/// # Delivery
///
/// A commit has been acknowledged by the server, and taken into the copy of this process, when its future ends with `Ok`.
/// What that is worth is up to the server: with `sync_interval: always` it has been synced, on most of the servers that
/// keep the stream. What other processes commit is seen here as soon as the server tells.
///
/// A copy that cannot follow the log any more, because it is damaged or fell behind what is kept, gives nothing: reading,
/// watching and committing end with the reason. Open the store again.
///
/// While no server answers, commits end with [`ErrorKind::Io`] after [`limits::COMMIT_WAIT_MS`]; the entry stays on its
/// way and may be committed later, so whoever asks again does it under the same conditions. Reading goes on.
///
/// # Cost
///
/// A message for each group of commits that waits, one round trip, and the copy: some 700 bytes of disk for a record.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use happen::env::RealEnv;
/// use happen::store::Store;
/// use happen_nats::{NatsStore, NatsStoreOptions};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let server = happen_testing::NatsServer::start();
/// # let url = server.url();
/// let client = async_nats::connect(url).await?;
/// let store = NatsStore::open(client, NatsStoreOptions::new("shop", Arc::new(RealEnv::new()))).await?;
/// assert!(store.is_shared());
/// # Ok(())
/// # }
/// ```
pub struct NatsStore {
    env: Arc<dyn Env>,
    name: String,
    commit_wait: Duration,
    copy: Arc<Copy>,
    /// Taken when the store closes.
    calls: Mutex<Option<mpsc::Sender<Call>>>,
    trouble: watch::Receiver<Option<String>>,
    connection: Option<Connection>,
    closed: watch::Sender<bool>,
    /// What the server is asked about. On the heap: it is large, and seldom looked at.
    server: Box<Server>,
    /// Ends when the writer has.
    written: watch::Receiver<bool>,
}

/// Where a server has a log and its copies.
struct Server {
    stream: Stream,
    snapshots: Snapshots,
}

impl NatsStore {
    /// Opens the log of a space, which is made if it is not there, and takes it into a copy.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Misuse`]: the server or the stream cannot keep what the store promises; the error says why. Or a
    ///   later version of Happen writes the log.
    /// - [`ErrorKind::NotFound`]: there is no log, and none is to be made.
    /// - [`ErrorKind::Io`]: the server does not answer, or a folder for the copy cannot be made.
    /// - [`ErrorKind::Damaged`]: a part of the log is gone.
    ///
    /// # Cost
    ///
    /// Fetches the copy that was kept last, and reads what was written since: at most some
    /// [`limits::COPY_AFTER_BYTES`] bytes.
    pub async fn open(client: async_nats::Client, options: NatsStoreOptions) -> Result<Self> {
        let env = Arc::clone(&options.env);
        let context = ContextBuilder::new()
            .timeout(Duration::from_millis(limits::ACKNOWLEDGE_WAIT_MS))
            .max_ack_inflight(ACKNOWLEDGEMENTS_MAX)
            .build(client.clone());
        let asks =
            ContextBuilder::new().timeout(Duration::from_millis(limits::ASK_WAIT_MS)).build(client.clone());
        let stream = stream::open(&asks, &env, &options).await?;
        let found = stream.cached_info();
        let replicas = found.config.num_replicas;
        let snapshots = Snapshots::new(context.clone(), &options, replicas)?;
        let origin = stream::origin(&found.config);
        let mut route = Route::new(asks.clone(), &options, &found.config)?;
        // As it was found: whatever was acknowledged before this began is in it.
        let last = found.state.last_sequence.max(route.look().await.unwrap_or_default());
        if let Some(domain) = stream::mirrored(&found.config) {
            let there = Snapshots::new(region::at(&client, domain), &options, replicas)?;
            Box::pin(snapshots.begin_as(&there, &stream)).await?;
        }
        let server = Box::new(Server { stream: stream.clone(), snapshots: snapshots.clone() });
        let (copy, Header { sequence, writers, .. }) = Copy::new(Arc::clone(&env), &snapshots).await?;
        let copy = Arc::new(copy);
        let (calls, waiting) = mpsc::channel(limits::LOG_CALLS_MAX);
        let (tell, news) = mpsc::channel(limits::LOG_FLIGHTS_MAX);
        let (trouble, troubled) = watch::channel(None);
        let (closes, closed) = watch::channel(false);
        let (ended, written) = watch::channel(false);
        let anew = Arc::new(Notify::new());
        let sealer = client.clone();
        let follower = Follower {
            copy: Arc::clone(&copy),
            env: Arc::clone(&env),
            client,
            stream,
            news: tell,
            anew: Arc::clone(&anew),
            closed,
            writers,
            sequence,
            origin,
            snapshots,
            copy_after: options.copy_after.max(1),
            keeps_copy: false,
            overdue: None,
        };
        env.spawn(Box::pin(follower.run()));
        if let Some(former) = region::Sealing::of(&server.stream, &sealer, &options)? {
            env.spawn(Box::pin(former.run(closes.subscribe())));
        }
        let writer = Writer {
            copy: Arc::clone(&copy),
            env: Arc::clone(&env),
            context,
            route: route.clone(),
            calls: waiting,
            news,
            anew: Arc::clone(&anew),
            trouble,
            state: Sending::default(),
        };
        let closes_follower = closes.clone();
        env.spawn(Box::pin(async move {
            writer.run().await;
            closes_follower.send_replace(true);
            ended.send_replace(true);
        }));
        let store = Self {
            env,
            name: stream::name(&options)?,
            commit_wait: options.commit_wait,
            copy,
            calls: Mutex::new(Some(calls)),
            trouble: troubled,
            connection: options.connection,
            closed: closes,
            server,
            written,
        };
        store.catch_up(last, &anew, route).await?;
        Ok(store)
    }

    /// Makes a log out of a backup, where there is none: the whole backup is read and checked first, and then kept at the
    /// server as the copy that everybody begins with. Until that is done nobody can open the log.
    ///
    /// What was committed after the backup is gone, and its positions are not given again, as with
    /// [`SqliteStore::restore`](happen::store::SqliteStore::restore).
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Conflict`]: there is a log of this space already, or somebody made one meanwhile.
    /// - [`ErrorKind::Misuse`], [`ErrorKind::Damaged`]: the folder has no backup, or one that is not as it was written.
    /// - [`ErrorKind::Io`]: the server does not take it, or the disk of this machine is full.
    ///
    /// # Cancel safety
    ///
    /// When it is dropped before its end there may be a stream that nobody can open: remove it, and restore again.
    ///
    /// # Cost
    ///
    /// Writes the backup to a temporary folder of this machine, and sends it to the server once.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    /// use happen::env::RealEnv;
    /// use happen_nats::{NatsStore, NatsStoreOptions};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let server = happen_testing::NatsServer::start();
    /// # let client = async_nats::connect(server.url()).await?;
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let folder = folder.path().join("backup");
    /// let options = |space: &str| NatsStoreOptions::new(space, Arc::new(RealEnv::new()));
    /// let store = NatsStore::open(client.clone(), options("shop")).await?;
    /// store.backup(&folder).await?;
    /// NatsStore::restore(client.clone(), options("copy"), &folder).await?;
    /// let copy = NatsStore::open(client, options("copy").existing()).await?;
    /// # copy.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn restore(
        client: async_nats::Client,
        options: NatsStoreOptions,
        backup: impl AsRef<Path>,
    ) -> Result<()> {
        let [acknowledges, asks] = [limits::ACKNOWLEDGE_WAIT_MS, limits::ASK_WAIT_MS].map(|wait_ms| {
            ContextBuilder::new().timeout(Duration::from_millis(wait_ms)).build(client.clone())
        });
        if stream::is_there(&asks, &options).await? {
            return Err(stream::taken(&options));
        }
        let (_folder, file) = copy::restored(backup.as_ref()).await?;
        let log = stream::begin(&asks, &options).await?;
        let snapshots = Snapshots::new(acknowledges, &options, log.num_replicas)?;
        snapshots.begin_with(&Header::default(), &file).await?;
        stream::finish(&asks, &options, &log).await
    }

    /// The number of messages in the log that were left out because they are none of it: rubbish, damaged ones.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.copy.refused()
    }

    /// Closes the store: what was asked for is written as far as the server takes it, and then everybody is told that it
    /// is closed. Dropping the store begins the same and waits for nothing.
    pub async fn close(&self) {
        drop(self.take_calls());
        let mut written = self.written.clone();
        let wait = self.env.sleep(self.commit_wait);
        tokio::select! {
            // An error says that the writer is gone, which is what is waited for.
            _ = written.wait_for(|written| *written) => {}
            () = wait => {}
        }
        self.closed.send_replace(true);
        self.copy.store.close().await;
    }

    /// Waits until the copy has a message, as long as it gets on.
    async fn catch_up(&self, last: u64, anew: &Notify, mut route: Route) -> Result<()> {
        let mut reached = self.copy.reached();
        let mut failed = self.copy.failed();
        let mut waited = 0;
        loop {
            let before = *reached.borrow_and_update();
            if before >= last {
                return Ok(());
            }
            let came = tokio::select! {
                _ = failed.wait_for(|failed| *failed) => {
                    self.copy.check()?;
                    false
                }
                _ = reached.changed() => true,
                () = self.env.sleep(Duration::from_millis(limits::READER_WAIT_MS)) => false,
            };
            if came {
                waited = 0;
                continue;
            }
            waited += limits::READER_WAIT_MS;
            route.rouse().await;
            anew.notify_one();
            if waited >= limits::AGREE_WAIT_MS {
                let why = self.copy.unread().unwrap_or_else(|| "the server gives nothing".to_owned());
                let (name, next) = (&self.name, before + 1);
                let what = format!("read the log `{name}`: message {next} of {last} does not come: {why}");
                return Err(Error::new(ErrorKind::Io { what }));
            }
        }
    }

    fn take_calls(&self) -> Option<mpsc::Sender<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn calls(&self) -> Result<mpsc::Sender<Call>> {
        self.copy.check()?;
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)
    }

    /// Asks the writer and waits for its answer, or until nobody can know.
    async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T> {
        let calls = self.calls()?;
        let (answer, answered) = oneshot::channel();
        // Stands in line when it is polled first, also when the task has done much already: calls keep their order.
        let sent = tokio::task::unconstrained(calls.send(call(answer)));
        let asked = async {
            sent.await.map_err(|_| closed())?;
            answered.await.map_err(|_| closed())
        };
        tokio::select! {
            biased;
            asked = asked => asked,
            () = self.env.sleep(self.commit_wait) => Err(self.nobody_knows()),
        }
    }

    fn nobody_knows(&self) -> Error {
        let refusal = self.connection.as_ref().and_then(Connection::refusal);
        let why = match (refusal, self.trouble.borrow().clone()) {
            (Some(refusal), _) => format!("the server refuses: {refusal}"),
            (None, Some(trouble)) => trouble,
            (None, None) => "the server does not answer".to_owned(),
        };
        let (name, wait) = (&self.name, self.commit_wait);
        let what = format!("commit to the log `{name}` within {wait:?}: {why}; it may be committed later");
        Error::new(ErrorKind::Io { what })
    }

    async fn commit_all(&self, batches: Vec<Batch>) -> Vec<Result<Committed>> {
        // What no store takes is not written: it would be no entry.
        let mut results: Vec<Option<Result<Committed>>> = Vec::with_capacity(batches.len());
        let mut bytes = BatchBytes::default();
        for batch in &batches {
            let checked = batch.check();
            if checked.is_ok() {
                bytes.push(batch);
            }
            results.push(checked.err().map(Err));
        }
        drop(batches);
        let (count, len) = (bytes.count(), bytes.len());
        let answered = match count {
            0 => Ok(Vec::new()),
            _ if len > limits::CALL_BYTES_MAX => {
                Err(Error::new(ErrorKind::Oversized { bytes: len, bytes_max: limits::CALL_BYTES_MAX })
                    .context("what is committed at once"))
            }
            _ => self.ask(|answer| Call::Commit { batches: bytes, answer }).await,
        };
        let mut answered: Box<dyn Iterator<Item = Result<Committed>> + Send> = match answered {
            Ok(answered) => Box::new(answered.into_iter()),
            Err(error) => Box::new((0..count).map(move |_| Err(error.duplicate()))),
        };
        let result = |checked: Option<Result<Committed>>| match checked {
            Some(refused) => refused,
            None => answered.next().unwrap_or_else(|| Err(closed())),
        };
        results.into_iter().map(result).collect()
    }
}

impl Store for NatsStore {
    fn commit(&self, batches: Vec<Batch>) -> BoxFuture<'_, Vec<Result<Committed>>> {
        Box::pin(self.commit_all(batches))
    }

    /// The log takes calls as they come.
    fn commits_in_order(&self) -> usize {
        limits::LOG_CALLS_MAX
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn read(&self, read: Read) -> BoxFuture<'_, Result<Page>> {
        Box::pin(async move { self.copy.sound()?.read(read).await })
    }

    fn watch(&self, select: Select, after: Position) -> BoxFuture<'_, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            let watch = self.copy.sound()?.watch(select, after).await?;
            Ok(Box::new(CopyWatch { copy: Arc::clone(&self.copy), watch }) as Box<dyn Watch>)
        })
    }

    fn documents(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Option<Document>>>> {
        Box::pin(async move { self.copy.sound()?.documents(keys).await })
    }

    fn document_now(&self, key: &Key) -> Option<Result<Option<Document>>> {
        match self.copy.sound() {
            Ok(store) => store.document_now(key),
            Err(error) => Some(Err(error)),
        }
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Vec<Document>>> {
        Box::pin(async move { self.copy.sound()?.list(list).await })
    }

    fn history(&self, history: History) -> BoxFuture<'_, Result<Vec<Document>>> {
        Box::pin(async move { self.copy.sound()?.history(history).await })
    }

    fn prune(&self, prune: Prune) -> BoxFuture<'_, Result<Pruned>> {
        Box::pin(async move { self.ask(|answer| Call::Prune { prune, answer }).await? })
    }
}

/// Follows the copy as long as it follows the log: one that takes nothing more has nothing more to give.
#[derive(Debug)]
struct CopyWatch {
    copy: Arc<Copy>,
    watch: Box<dyn Watch>,
}

impl Watch for CopyWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Record>>> {
        Box::pin(async move {
            let mut failed = self.copy.failed();
            tokio::select! {
                records = self.watch.next() => records,
                _ = failed.wait_for(|failed| *failed) => {
                    self.copy.check()?;
                    Err(closed())
                }
            }
        })
    }

    fn position(&self) -> Position {
        self.watch.position()
    }
}

impl Drop for NatsStore {
    fn drop(&mut self) {
        drop(self.take_calls());
    }
}

impl fmt::Debug for NatsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NatsStore({}, {:?})", self.name, self.copy)
    }
}

/// What subjects and streams begin with unless something else is said.
const PREFIX: &str = "happen";

const COMMIT_WAIT: Duration = Duration::from_millis(limits::COMMIT_WAIT_MS);

/// More acknowledgements than all entries on their way can wait for.
const ACKNOWLEDGEMENTS_MAX: usize = 65_536;
