//! What leaves for the store: batches in the order in which they were made, many at a time. Owns that order and who
//! carries the next group; does not know what the batches say.
//!
//! A step that changes a document builds on the value that the step before it made, also when that one is not committed
//! yet. So batches must reach the store in the order in which they were built, and one call at a time keeps that order,
//! whatever the store does. A store that keeps the order of calls itself is given some at once: then it writes one group
//! while the next one is built. What is built meanwhile goes with the next call: the more there is, the larger the groups.

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use happen_core::env::{BoxFuture, Env};
use happen_core::store::{Batch, Committed, Condition, Key, Store};
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::{oneshot, watch};

use super::whole::Whole;
use crate::limits;
use crate::sync::{Mutex, lock};

/// The batches of one space on their way.
pub(crate) struct Commits {
    store: Arc<dyn Store>,
    env: Arc<dyn Env>,
    queue: Mutex<Queue>,
    /// How many groups may be carried at once.
    leads_max: usize,
    /// What has to be there for anything to be committed, in a log that others write too.
    fence: OnceLock<Key>,
    /// Whether it is not there any more.
    fenced: watch::Sender<bool>,
    /// How many groups have failed that may be committed all the same, or later.
    doubts: watch::Sender<u64>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// How many carry a group now, and look again afterwards.
    leads: usize,
}

struct Waiting {
    batch: Batch,
    told: oneshot::Sender<Result<Committed>>,
}

/// A batch on its way, whose outcome somebody waits for.
#[must_use = "nobody carries the batch unless it is waited for"]
pub(crate) struct Ticket(oneshot::Receiver<Result<Committed>>);

impl Commits {
    pub(crate) fn new(store: Arc<dyn Store>, env: Arc<dyn Env>) -> Arc<Self> {
        let leads_max = store.commits_in_order().clamp(1, limits::COMMIT_GROUPS_MAX);
        Arc::new(Self {
            store,
            env,
            queue: Mutex::default(),
            leads_max,
            fence: OnceLock::new(),
            fenced: watch::Sender::new(false),
            doubts: watch::Sender::new(0),
        })
    }

    /// Takes a batch, behind all that were taken before.
    pub(crate) fn push(&self, mut batch: Batch) -> Ticket {
        let (told, tells) = oneshot::channel();
        if let Some(key) = self.fence.get() {
            batch.conditions.push(Condition::Revision { key: Arc::clone(key), revision: FENCE_REVISION });
        }
        lock(&self.queue).waiting.push(Waiting { batch, told });
        Ticket(tells)
    }

    /// Commits from now on only as long as this document has its first revision.
    pub(super) fn fence(&self, key: &Key) {
        // A process has one for all its life.
        self.fence.get_or_init(|| Arc::clone(key));
    }

    /// Whether another process has taken over what this one had.
    pub(super) fn is_fenced(&self) -> bool {
        *self.fenced.borrow()
    }

    pub(super) async fn until_fenced(&self) {
        // An error would say that there are no commits any more, which this holds.
        drop(self.fenced.subscribe().wait_for(|fenced| *fenced).await);
    }

    /// How many groups have failed so far of which nobody knows whether they are, or will be, in the store.
    pub(super) fn doubts(&self) -> u64 {
        *self.doubts.borrow()
    }

    /// Waits until there are more than these.
    pub(super) async fn until_more_doubts(&self, known: u64) {
        // An error would say that there are no commits any more, which this holds.
        drop(self.doubts.subscribe().wait_for(|doubts| *doubts > known).await);
    }

    /// Waits until nothing is on its way any more that failed before, and until all that others have committed can be read
    /// here: what is committed now stands behind it.
    ///
    /// # Errors
    ///
    /// As [`Commits::commit`].
    pub(super) async fn pass(self: &Arc<Self>) -> Result<()> {
        // It changes nothing and is refused by no store.
        let conditions = vec![Condition::Revision { key: NOWHERE.into(), revision: 0 }];
        self.commit(Batch { conditions, ..Batch::default() }).await.map(drop)
    }

    /// Finds out whether a batch was refused because of the fence. What was refused is in the log before this looks.
    async fn found_fence(&self, error: &Error) -> bool {
        let (ErrorKind::Conflict { .. }, Some(key)) = (error.kind(), self.fence.get()) else { return false };
        let found = self.store.documents(vec![Arc::clone(key)]).await.ok().and_then(|mut found| found.pop());
        let Some(found) = found else { return false };
        let stands = found.is_some_and(|document| document.revision == FENCE_REVISION);
        if !stands {
            self.fenced.send_replace(true);
        }
        !stands
    }

    /// Waits until the batch is committed or not. Whoever finds few carrying carries the next group itself: a lone step
    /// then waits for nothing but the store.
    ///
    /// # Errors
    ///
    /// As [`Store::commit`], and [`ErrorKind::Closed`] when another process has taken over what this one had.
    pub(crate) async fn settle(self: &Arc<Self>, ticket: Ticket) -> Result<Committed> {
        match self.carried(ticket).await {
            Err(error) if self.found_fence(&error).await => Err(fenced()),
            result => result,
        }
    }

    async fn carried(self: &Arc<Self>, mut ticket: Ticket) -> Result<Committed> {
        while let Some(lead) = Lead::take(self) {
            lead.carry_one().await;
            if let Ok(result) = ticket.0.try_recv() {
                return result;
            }
        }
        ticket.0.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Commits one batch that builds on nothing under way.
    ///
    /// # Errors
    ///
    /// As [`Store::commit`].
    pub(crate) async fn commit(self: &Arc<Self>, batch: Batch) -> Result<Committed> {
        let ticket = self.push(batch);
        self.settle(ticket).await
    }
}

/// The right and the duty to carry groups, until there is nothing to carry.
struct Lead(Arc<Commits>);

impl Lead {
    fn take(commits: &Arc<Commits>) -> Option<Self> {
        let mut queue = lock(&commits.queue);
        if queue.leads == commits.leads_max || queue.waiting.is_empty() {
            return None;
        }
        queue.leads += 1;
        Some(Self(Arc::clone(commits)))
    }

    /// Carries one group, and leaves the others to a task of their own. Whoever stops waiting meanwhile stops nobody else:
    /// the group has the batches of others too.
    fn carry_one(self) -> Whole<()> {
        let env = Arc::clone(&self.0.env);
        let carrying = async move {
            let commits = &*self.0;
            let mut told = Vec::new();
            let mut call: Option<BoxFuture<'_, _>> = None;
            let results = poll_fn(|task| {
                if let Some(call) = &mut call {
                    return call.as_mut().poll(task);
                }
                // Others may carry what waits behind this group, so it reaches the store before the queue is let go.
                let mut queue = lock(&commits.queue);
                let len = queue.waiting.len().min(limits::COMMIT_GROUP_MAX);
                let group = queue.waiting.drain(..len).map(|waiting| (waiting.batch, waiting.told));
                let (batches, senders): (Vec<_>, Vec<_>) = group.unzip();
                told = senders;
                if batches.is_empty() {
                    return Poll::Ready(Vec::new());
                }
                call.insert(commits.store.commit(batches)).as_mut().poll(task)
            })
            .await;
            drop(call);
            let mut failures = results.iter().filter_map(|result| result.as_ref().err());
            if failures.any(|error| matches!(error.kind(), ErrorKind::Io { .. })) {
                commits.doubts.send_modify(|doubts| *doubts += 1);
            }
            let results = results.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
            for (told, result) in told.into_iter().zip(results) {
                // Who waited may have gone, and the batch is committed all the same.
                drop(told.send(result.unwrap_or_else(|| Err(lost()))));
            }
            drop(self);
        };
        Whole::new(&env, Box::pin(carrying))
    }
}

impl Drop for Lead {
    /// Also when the runtime ends in the middle: what waits must not wait for ever.
    fn drop(&mut self) {
        {
            let mut queue = lock(&self.0.queue);
            queue.leads -= 1;
            if queue.waiting.is_empty() {
                return;
            }
        }
        let commits = Arc::clone(&self.0);
        // The task takes the lead when it is polled: a runtime that ends drops it unpolled, inside this call.
        self.0.env.spawn(Box::pin(async move {
            if let Some(next) = Self::take(&commits) {
                next.carry_one().await;
            }
        }));
    }
}

#[cold]
fn fenced() -> Error {
    Error::new(ErrorKind::Closed {
        what: "the space, whose nodes another process has taken over,".to_owned(),
    })
}

/// A document that nobody writes.
const NOWHERE: &str = "nowhere";

/// The revision of a fence that stands.
const FENCE_REVISION: u64 = 1;

#[cold]
fn lost() -> Error {
    Error::new(ErrorKind::Io { what: "commit (whoever carried the batch was dropped); it".to_owned() })
}
