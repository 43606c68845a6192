//! The task of a space that looks again and again whether its nodes keep up, and tells what it finds. Owns when; holds the
//! space weakly and ends with it. What the looks find is in `sample.rs`, what it means in `detect.rs`.

use std::collections::BTreeSet;
use std::fmt;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use happen_core::env::Env;
use happen_core::link::ConnectionStatus;
use tokio::sync::Notify;

use super::detect::{Detector, Told};
use super::sample::{self, Kept, Look, Sampler};
use super::{BalanceReport, Finding, NodeBalance, Pressure};
use crate::config::BalanceOptions;
use crate::control::within;
use crate::limits;
use crate::space::SpaceInner;
use crate::sync::{Mutex, lock};

/// What watches the balance of a space.
pub(crate) struct Balance {
    options: BalanceOptions,
    watched: Mutex<Watched>,
    /// Members of the link that said that they go, since the last look.
    left: Mutex<BTreeSet<String>>,
    is_cut: AtomicBool,
    has_ended: AtomicBool,
    ended: Notify,
}

struct Watched {
    sampler: Sampler,
    detector: Detector,
}

impl Balance {
    pub(crate) fn new(options: BalanceOptions) -> Self {
        let watched = Watched { sampler: Sampler::default(), detector: Detector::new(options.clone()) };
        Self {
            options,
            watched: Mutex::new(watched),
            left: Mutex::default(),
            is_cut: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            ended: Notify::new(),
        }
    }

    /// Begins to look.
    pub(crate) fn begin(self: &Arc<Self>, space: &Arc<SpaceInner>) {
        let (balance, env, weak) = (Arc::clone(self), Arc::clone(&space.env), Arc::downgrade(space));
        space.env.spawn(Box::pin(async move { balance.watch(&env, &weak).await }));
    }

    /// Ends the looking.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        self.ended.notify_waiters();
    }

    /// Notes whether the link has its connection.
    pub(crate) fn note_connection(&self, status: ConnectionStatus) {
        self.is_cut.store(status != ConnectionStatus::Connected, Ordering::SeqCst);
    }

    /// Notes that a member of the link goes.
    pub(crate) fn note_left(&self, member: &str) {
        let mut left = lock(&self.left);
        if left.len() < limits::BALANCE_NODES_MAX {
            left.insert(member.to_owned());
        }
    }

    async fn watch(&self, env: &Arc<dyn Env>, space: &Weak<SpaceInner>) {
        let every = Duration::from_millis(self.options.every_ms);
        loop {
            let due = env.monotonic() + every;
            if !self.sleep(env, every).await {
                return;
            }
            let late_ms = env.monotonic().saturating_sub(due).as_millis() as u64;
            let Some(durable) = space.upgrade().map(|space| space.durable.clone()) else { return };
            let kept = match durable.filter(|durable| durable.is_shared()) {
                None => Some(Kept::default()),
                Some(durable) => {
                    let owners = durable.nodes_elsewhere();
                    match within(env, self.options.every_ms, sample::kept(&*durable.store, &owners)).await {
                        Some(Ok(kept)) => Some(kept),
                        // A store that says nothing says nothing of nodes either.
                        Some(Err(error)) => {
                            tracing::debug!(target: "happen", code = error.code(), "inboxes cannot be read: {error}");
                            None
                        }
                        None => None,
                    }
                }
            };
            let Some(space) = space.upgrade().filter(|space| space.is_running()) else { return };
            for Told { event_type, content } in self.look(&space, kept, late_ms) {
                space.announce(event_type, content);
            }
        }
    }

    /// Sleeps until the next look. False when there is none.
    async fn sleep(&self, env: &Arc<dyn Env>, time: Duration) -> bool {
        let mut slept = env.sleep(time);
        // Made before the look, so that it hears an end that comes after.
        let mut ended = pin!(self.ended.notified());
        ended.as_mut().enable();
        poll_fn(|task| {
            if self.has_ended.load(Ordering::SeqCst) || ended.as_mut().poll(task).is_ready() {
                return Poll::Ready(false);
            }
            slept.as_mut().poll(task).map(|()| true)
        })
        .await
    }

    fn look(&self, space: &SpaceInner, kept: Option<Kept>, late_ms: u64) -> Vec<Told> {
        let left = std::mem::take(&mut *lock(&self.left));
        let is_cut = self.is_cut.load(Ordering::SeqCst);
        let mut watched = lock(&self.watched);
        let Watched { sampler, detector } = &mut *watched;
        let nodes = sampler.look(space, kept, (&left, is_cut));
        detector.look(Look { at: space.env.monotonic(), nodes, is_cut, late_ms })
    }

    pub(super) fn report(&self, space: &SpaceInner, kept: Kept) -> BalanceReport {
        let is_cut = self.is_cut.load(Ordering::SeqCst);
        let mut watched = lock(&self.watched);
        let Watched { sampler, detector } = &mut *watched;
        let nodes = sampler.nodes(space, kept, (&BTreeSet::new(), is_cut));
        let nodes = nodes.into_iter().map(|(_, seen)| detector.judge(seen.figures)).collect();
        let findings = detector.findings(space.env.monotonic());
        drop(watched);
        report_of(space, nodes, Some(findings))
    }

    pub(super) fn pressure_elsewhere(&self, node: &str) -> Option<Pressure> {
        lock(&self.watched).detector.pressure_elsewhere(node)
    }
}

/// The figures of a space that nobody watches.
pub(super) fn report_unwatched(space: &SpaceInner, kept: Kept) -> BalanceReport {
    let nodes = Sampler::default().nodes(space, kept, (&BTreeSet::new(), false));
    report_of(space, nodes.into_iter().map(|(_, seen)| seen.figures).collect(), None)
}

fn report_of(
    space: &SpaceInner,
    mut nodes: Vec<NodeBalance>,
    findings: Option<Vec<Finding>>,
) -> BalanceReport {
    let nodes_len = nodes.len() as u64;
    nodes.truncate(limits::BALANCE_NODES_MAX);
    BalanceReport {
        at_unix_ms: space.env.unix_ms(),
        is_watched: findings.is_some(),
        findings: findings.unwrap_or_default(),
        nodes,
        nodes_len,
    }
}

impl fmt::Debug for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "watch of a balance, every {} ms", self.options.every_ms)
    }
}
