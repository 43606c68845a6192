//! Following the log: a watch, and for a store that another process writes, the thread that looks for news. Owns where
//! a watch stands; does not know the tables.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use happen_core::Result;
use happen_core::env::BoxFuture;
use happen_core::store::{Position, Read, Record, Select, Start, Watch};
use tokio::sync::watch;

use super::fault;
use super::query::{Queries, number};
use super::readers::Readers;
use super::{schema, start};
use crate::limits;
use crate::sync::{Mutex, lock};

/// One who follows. It holds a position and a page at most, however long the log is.
pub(super) struct LogWatch {
    readers: Arc<Readers>,
    /// How far the log goes.
    news: watch::Receiver<i64>,
    select: Select,
    position: Position,
}

impl LogWatch {
    pub(super) fn new(
        readers: Arc<Readers>,
        news: watch::Receiver<i64>,
        select: Select,
        position: Position,
    ) -> Self {
        Self { readers, news, select, position }
    }
}

impl Watch for LogWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Record>>> {
        Box::pin(async move {
            loop {
                let from = number(self.position);
                self.news.wait_for(|head| *head > from).await.map_err(|_| fault::closed())?;
                let read = Read::forward(self.select.clone()).start(Start::Position(self.position));
                let page = self.readers.ask(move |queries| queries.read(&read)).await?;
                if let Some(last) = page.records.last() {
                    self.position = last.position;
                    return Ok(page.records);
                }
                self.position = page.head.max(self.position);
            }
        })
    }

    fn position(&self) -> Position {
        self.position
    }
}

impl std::fmt::Debug for LogWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogWatch(after {})", self.position)
    }
}

/// Looks for what another process committed, from the first watch on.
pub(super) struct Follower {
    folder: PathBuf,
    tell: Mutex<Option<watch::Sender<i64>>>,
    news: watch::Receiver<i64>,
    thread: Mutex<Option<JoinHandle<()>>>,
    ending: Arc<Ending>,
}

#[derive(Default)]
struct Ending {
    is_over: Mutex<bool>,
    told: Condvar,
}

impl Follower {
    pub(super) fn new(folder: &Path) -> Arc<Self> {
        let (tell, news) = watch::channel(0);
        let tell = Mutex::new(Some(tell));
        let (thread, ending) = (Mutex::default(), Arc::default());
        Arc::new(Self { folder: folder.to_owned(), tell, news, thread, ending })
    }

    pub(super) fn news(&self) -> watch::Receiver<i64> {
        self.news.clone()
    }

    /// Begins to look, once.
    pub(super) fn begin(&self) -> Result<()> {
        let mut thread = lock(&self.thread);
        if thread.is_some() {
            return Ok(());
        }
        let queries = Queries::new(schema::reader(&self.folder)?);
        let Some(tell) = lock(&self.tell).take() else { return Err(fault::closed()) };
        let ending = Arc::clone(&self.ending);
        *thread = Some(start("happen-store-follow", move || look(&queries, &tell, &ending))?);
        Ok(())
    }

    pub(super) fn close(&self) -> Option<JoinHandle<()>> {
        *lock(&self.ending.is_over) = true;
        self.ending.told.notify_all();
        drop(lock(&self.tell).take());
        lock(&self.thread).take()
    }
}

fn look(queries: &Queries, tell: &watch::Sender<i64>, ending: &Ending) {
    let mut over = lock(&ending.is_over);
    while !*over {
        // What keeps the head from being read keeps the next page from being read too, and there somebody is told.
        let head = queries.head().map_or_else(|_| tell.borrow().saturating_add(1), |head| head.position);
        tell.send_if_modified(|known| std::mem::replace(known, head) != head);
        let wait = Duration::from_millis(limits::STORE_FOLLOW_MS);
        // A timer of the environment needs a runtime, and a program that only reads a store may have none.
        let waited = ending.told.wait_timeout(over, wait);
        over = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}
