//! Who is told of an outcome: one asker, or a part of several flows whose outcomes are joined into one.

use std::sync::Arc;
use std::task::Waker;

use happen_core::Error;
use tokio::sync::oneshot;

use crate::flow::Outcome;
use crate::sync::{Mutex, lock};

/// Who is told of an outcome.
pub(crate) enum Reply {
    Nobody,
    One(oneshot::Sender<Outcome>),
    Part(Arc<Joined>, usize),
}

impl Reply {
    pub(crate) fn send(self, outcome: Outcome) {
        match self {
            Self::Nobody => {}
            // The one who asked may have gone; then nobody is left to tell.
            Self::One(to) => drop(to.send(outcome)),
            Self::Part(joined, index) => joined.settle(index, outcome),
        }
    }

    /// Tells of a failure before any flow started.
    pub(crate) fn refuse(self, error: Error) {
        self.send(Err(error));
    }

    /// Whether the one who asked has gone, which asks the flow to stop.
    pub(super) fn poll_gone(&mut self, task: &mut std::task::Context<'_>) -> bool {
        match self {
            Self::One(to) => to.poll_closed(task).is_ready(),
            Self::Part(joined, index) => joined.poll_gone(*index, task),
            Self::Nobody => false,
        }
    }
}

/// The outcomes of several flows for one event, joined into one: the first value by priority, then by order of
/// registration; without any value the first failure; without that, nothing.
pub(crate) struct Joined(Mutex<Parts>);

struct Parts {
    outcomes: Vec<Option<Outcome>>,
    /// Who is woken when the one who asked has gone: only one task at a time can wait for that itself.
    wakers: Vec<Option<Waker>>,
    reply: Option<Reply>,
}

impl Joined {
    /// The joined outcome of so many flows, for whoever is to be told of it.
    pub(crate) fn new(flows: usize, reply: Reply) -> Arc<Self> {
        let outcomes = (0..flows).map(|_| None).collect();
        Arc::new(Self(Mutex::new(Parts { outcomes, wakers: vec![None; flows], reply: Some(reply) })))
    }

    fn settle(&self, index: usize, outcome: Outcome) {
        let mut parts = lock(&self.0);
        parts.outcomes[index] = Some(outcome);
        parts.wakers[index] = None;
        // This one may have been the task that waits for the asker to go; another one has to take its place.
        let next = parts.wakers.iter_mut().find_map(Option::take);
        let joined = join(&mut parts.outcomes).and_then(|joined| Some((joined, parts.reply.take()?)));
        drop(parts);
        if let Some((joined, reply)) = joined {
            reply.send(joined);
        }
        if let Some(waker) = next {
            waker.wake();
        }
    }

    fn poll_gone(&self, index: usize, task: &mut std::task::Context<'_>) -> bool {
        let mut parts = lock(&self.0);
        let gone = parts.reply.as_mut().is_some_and(|reply| reply.poll_gone(task));
        if !gone {
            parts.wakers[index] = Some(task.waker().clone());
            return false;
        }
        parts.wakers[index] = None;
        let others: Vec<_> = parts.wakers.iter_mut().filter_map(Option::take).collect();
        drop(parts);
        others.into_iter().for_each(Waker::wake);
        true
    }
}

/// The joined outcome, as soon as it cannot change any more.
fn join(outcomes: &mut [Option<Outcome>]) -> Option<Outcome> {
    for outcome in outcomes.iter_mut() {
        match outcome {
            // A flow of higher priority may still give a value.
            None => return None,
            Some(Ok(Some(_))) => return outcome.take(),
            Some(_) => {}
        }
    }
    let failed = outcomes.iter_mut().find(|outcome| matches!(outcome, Some(Err(_))));
    Some(failed.and_then(Option::take).unwrap_or(Ok(None)))
}

/// Who is told of an outcome that comes later: the one who was to be told already, or whoever asked just now.
#[cold]
pub(super) fn later(reply: Reply, wants_reply: bool) -> (Reply, Option<oneshot::Receiver<Outcome>>) {
    match reply {
        Reply::Nobody if wants_reply => {
            let (to, from) = oneshot::channel();
            (Reply::One(to), Some(from))
        }
        reply => (reply, None),
    }
}
