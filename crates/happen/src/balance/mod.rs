//! Whether nodes keep up with what is sent to them: the figures, as data, and what they are told as. Owns what people and
//! programs read of it; where the figures come from is in `sample.rs`, what they mean in `detect.rs`, and when is looked in
//! `watch.rs`. Nothing on the way of an event knows of it.
//!
//! A space watches its balance when its [`Config`](crate::Config) has [`BalanceOptions`](crate::BalanceOptions). Four
//! patterns are told apart, each as an event of the runtime, once when it begins and once when it is over:
//!
//! | pattern | what is seen | event |
//! |---|---|---|
//! | [`Bottleneck`](FlowPattern::Bottleneck) | the lag of one node grows, others keep up | `node.slow` |
//! | [`NodeFailure`](FlowPattern::NodeFailure) | nobody takes what waits, or the process is lost | `node.down` |
//! | [`Overload`](FlowPattern::Overload) | many nodes lag together, or the process is late | `system.overloaded` |
//! | [`Partition`](FlowPattern::Partition) | all nodes of other processes go at once | `system.partitioned` |
//!
//! `system.down` tells that most of the nodes are affected, by whatever it is; `node.recovered` and `system.recovered` that
//! it is over. Who hears of them is a node like any other, so what is to be done about them is one, too.
//!
//! # Examples
//!
//! ```
//! use happen::{BalanceOptions, Config, Context, Event, Space};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> happen::Result<()> {
//! let space = Space::with(Config { balance: Some(BalanceOptions::default()), ..Config::default() })?;
//! space.node("scaler").on("node.slow", |slow: &Event, _: &Context| {
//!     let metrics = slow.get("lag_metrics").cloned().unwrap_or_default();
//!     println!("{:?} needs {} places", slow.get("node_id"), metrics["rates"]["places_needed"]);
//! });
//! space.node("orders").lag_max(50).on("order", |_: &Event, _: &Context| {});
//! space.start().await?;
//!
//! let report = space.balance_report().await?;
//! assert_eq!(report.nodes[0].node, "orders");
//! # Ok(())
//! # }
//! ```

mod among;
mod detect;
mod rates;
mod sample;
mod watch;

use std::fmt;
use std::sync::Arc;

use happen_core::Result;
use happen_core::store::Store;
use serde::{Deserialize, Serialize};

use crate::limits;
use crate::space::{Space, SpaceInner};

pub use among::ProcessBalance;

pub(crate) use watch::Balance;

/// What is wrong where nodes do not keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FlowPattern {
    /// A node gets more than it handles, and others keep up: it needs more places, or a quicker handler.
    Bottleneck,
    /// Nobody takes what comes for a node: it is stopped, held by its supervisor, or its process is gone.
    NodeFailure,
    /// Many nodes get more than they handle, or the process itself is late: there is too much for all of them together.
    Overload,
    /// Other processes cannot be reached, with all of their nodes.
    Partition,
}

/// How a node stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NodeStanding {
    /// It keeps up, as far as is known.
    #[default]
    Well,
    /// It fell behind.
    Slow,
    /// Nobody takes what comes for it.
    Down,
    /// It is in a process that cannot be reached.
    Cut,
}

/// Where a node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NodePlace {
    /// In this space.
    #[default]
    Here,
    /// In another process: beyond the link, or on the same log.
    Elsewhere,
}

/// How nodes keep up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct BalanceReport {
    /// When it was made, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Whether the balance is watched. Without, there are neither rates nor findings.
    pub is_watched: bool,
    /// What was found and is not over.
    pub findings: Vec<Finding>,
    /// The nodes, by id: at most [`BALANCE_NODES_MAX`](crate::limits::BALANCE_NODES_MAX), and those of this space first.
    pub nodes: Vec<NodeBalance>,
    /// How many nodes there are.
    pub nodes_len: u64,
}

/// Something that was told and is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Finding {
    /// The event that told of it.
    pub event: String,
    /// The pattern.
    pub pattern: FlowPattern,
    /// The nodes, by id: the first [`BALANCE_NAMED_MAX`](crate::limits::BALANCE_NAMED_MAX).
    pub nodes: Vec<String>,
    /// How many nodes.
    pub nodes_len: u64,
    /// For how many milliseconds it has been so since it was told.
    pub for_ms: u64,
}

/// How a node keeps up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NodeBalance {
    /// Its id.
    pub node: String,
    /// Where it is.
    pub place: NodePlace,
    /// The processes that have it, where it is elsewhere: the names of their members of the link, or of their documents.
    pub processes: Vec<String>,
    /// How it stands.
    pub standing: NodeStanding,
    /// What is wrong, when something is.
    pub pattern: Option<FlowPattern>,
    /// Events that wait for a place.
    pub waiting: u64,
    /// Events that are kept for it in a log of several processes until its process takes them, counted up to
    /// [`BALANCE_INBOX_MAX`](crate::limits::BALANCE_INBOX_MAX).
    pub inbox: u64,
    /// For how many milliseconds the event that waits longest has been on its way.
    pub oldest_ms: Option<u64>,
    /// Events that have a place. Handlers that do not wait run on their sender's stack and mostly need none.
    pub active: u32,
    /// The places; `None` where every key has places of its own, and elsewhere.
    pub places: Option<u32>,
    /// The events that may wait.
    pub queue_limit: u64,
    /// The events that may wait while it counts as keeping up; 0 for any number.
    pub lag_max: u64,
    /// Its flows in the store that have not ended.
    pub flows: u64,
    /// Those of them that are held back on purpose.
    pub held_back: u64,
    /// Whether what waits is taken: not by a node that is stopped or held, nor by one whose process is not there.
    pub is_taken: bool,
    /// Events for which there was no room, so far.
    pub refused: u64,
    /// Flows that failed for good, so far.
    pub failed: u64,
    /// Attempts that failed and were followed by others, so far.
    pub retried: u64,
    /// What happened within the window; `None` before two looks, and when nobody watches.
    pub rates: Option<Rates>,
}

/// What happened at a node within a window of time, and what it would need.
///
/// Handlers are not timed and events are not counted on their way. How many were handled is read from the headers that the
/// space remembers, and is an estimate where more were handled between two looks than it remembers. The rest follows by
/// Little's law, by which as many are in a system as come in a second times the seconds that each stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Rates {
    /// The length of the window in milliseconds.
    pub window_ms: u64,
    /// Events that came in a second: those that were handled, by which lag grew, and that were refused.
    pub arrived_per_s: f64,
    /// Events that were handled in a second.
    pub handled_per_s: f64,
    /// By how many events the lag grew in a second; less than 0 when it shrank.
    pub lag_per_s: f64,
    /// Events for which there was no room.
    pub refused: u64,
    /// Flows that failed for good.
    pub failed: u64,
    /// Attempts that failed and were followed by others.
    pub retried: u64,
    /// The part of the places that was taken on the average, from 0 to 1; more where flows took theirs again beyond the
    /// limit.
    pub utilisation: Option<f64>,
    /// For how many milliseconds an event had its place: the places taken on the average, divided by the events handled in
    /// a second.
    pub service_ms: Option<f64>,
    /// How many milliseconds an event that comes now has to wait: the lag on the average, divided by the events handled in
    /// a second.
    pub wait_ms: Option<f64>,
    /// The places that it takes to handle what comes, as busy as the options want them: the events that came in a second,
    /// times the seconds that each has its place, divided by the utilisation that is wanted.
    pub places_needed: Option<u64>,
    /// The nodes with as many places that it takes.
    pub instances_needed: Option<u64>,
}

/// How much waits at a node, for whoever is about to send more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Pressure {
    /// Events that wait, or are held back.
    pub waiting: u64,
    /// The events that may wait. The next one is refused, or one is dropped.
    pub queue_limit: u64,
    /// Events that have a place.
    pub active: u32,
    /// Events for which there was no room, so far.
    pub refused: u64,
}

impl Pressure {
    /// How full the queue is, in percent.
    #[must_use]
    pub const fn percent(&self) -> u64 {
        match self.waiting.saturating_mul(100).checked_div(self.queue_limit) {
            Some(percent) => percent,
            // A queue without room is full.
            None => 100,
        }
    }

    /// Whether four fifths of the queue are taken: who can wait or do with less had better.
    #[must_use]
    pub const fn is_high(&self) -> bool {
        self.percent() >= limits::BACK_PRESSURE_PERCENT as u64
    }
}

impl BalanceReport {
    /// The figures of this node.
    #[must_use]
    pub fn node(&self, id: &str) -> Option<&NodeBalance> {
        self.nodes.iter().find(|node| node.node == id)
    }

    /// Leaves so many nodes, those of this space first.
    pub(crate) fn at_most(mut self, nodes: usize) -> Self {
        self.nodes.truncate(nodes);
        self
    }

    /// Leaves as many nodes as can be said in so many bytes of JSON, those of this space first.
    pub(crate) fn within_bytes(mut self, bytes_max: usize) -> Self {
        loop {
            // Figures can be said in JSON; were one not, whoever sends the report is told.
            let bytes = serde_json::to_vec(&self).map_or(0, |json| json.len());
            let len = self.nodes.len();
            if bytes <= bytes_max || len == 0 {
                return self;
            }
            // About so many fit, and at least one has to go.
            self.nodes.truncate((len.saturating_mul(bytes_max) / bytes).min(len - 1));
        }
    }

    /// Leaves what is about nodes that somebody may know of.
    pub(crate) fn only(mut self, may: impl Fn(&str) -> bool) -> Self {
        self.nodes.retain(|figures| may(&figures.node));
        self.nodes_len = self.nodes.len() as u64;
        self.findings.retain_mut(|finding| {
            finding.nodes.retain(|node| may(node));
            finding.nodes_len = finding.nodes.len() as u64;
            !finding.nodes.is_empty()
        });
        self
    }
}

impl NodeBalance {
    /// The events that wait for the node, wherever they do.
    #[must_use]
    pub const fn lag(&self) -> u64 {
        self.waiting.saturating_add(self.inbox)
    }

    /// The lag from which on it falls behind; `None` when it may have any.
    fn lag_limit(&self) -> Option<u64> {
        if self.lag_max == 0 {
            return None;
        }
        let queue = self.queue_limit.saturating_mul(limits::BACK_PRESSURE_PERCENT as u64) / 100;
        let most = match self.place {
            NodePlace::Here => queue,
            NodePlace::Elsewhere => queue.min(limits::BALANCE_INBOX_MAX as u64),
        };
        Some(self.lag_max.min(most).max(1))
    }
}

impl Space {
    /// How the nodes keep up, as figures: those of this moment, and, in a space that watches its balance, the rates of the
    /// last looks and what was found.
    ///
    /// # Errors
    ///
    /// What the store of a log that several processes write says.
    ///
    /// # Cost
    ///
    /// A look at each node, key by key where it has keys, and at the inboxes of such a log.
    pub async fn balance_report(&self) -> Result<BalanceReport> {
        self.inner().balance_report().await
    }

    /// How much waits at a node: of one in this space at this moment, of one elsewhere on the same log at the last look of
    /// a space that watches its [`balance`](crate::balance). `None` for one of which that is not known.
    ///
    /// Whoever sends can ask before, and wait or send less; who does not is refused with
    /// [`Busy`](crate::ErrorKind::Busy) once the queue is full. Inside a handler there is
    /// [`Context::pressure`](crate::Context::pressure).
    ///
    /// # Examples
    ///
    /// ```
    /// # let space = happen::Space::memory();
    /// let mails = space.node("mails").queue_limit(1_000);
    /// let pressure = space.pressure("mails").unwrap();
    /// assert_eq!((pressure.waiting, pressure.percent(), pressure.is_high()), (0, 0, false));
    /// ```
    #[must_use]
    pub fn pressure(&self, node: &str) -> Option<Pressure> {
        self.inner().pressure(node)
    }
}

impl SpaceInner {
    pub(crate) fn pressure(&self, node: &str) -> Option<Pressure> {
        if let Some(node) = self.find(node) {
            let figures = node.figures();
            return Some(Pressure {
                waiting: (figures.waiting + figures.held_back) as u64,
                queue_limit: figures.queue_limit as u64,
                active: figures.active,
                refused: figures.refused,
            });
        }
        self.balance.as_ref()?.pressure_elsewhere(node)
    }

    pub(crate) async fn balance_report(self: &Arc<Self>) -> Result<BalanceReport> {
        let kept = match self.durable.as_ref().filter(|durable| durable.is_shared()) {
            Some(durable) => sample::kept(&*durable.store, &durable.nodes_elsewhere()).await?,
            None => sample::Kept::default(),
        };
        Ok(match &self.balance {
            Some(balance) => balance.report(self, kept),
            None => watch::report_unwatched(self, kept),
        })
    }
}

/// What a store tells alone: which nodes have flows in it, and events that are kept for them.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn report_of_store(store: &Arc<dyn Store>, at_unix_ms: u64) -> Result<BalanceReport> {
    let nodes = sample::stored(store, at_unix_ms).await?;
    let nodes_len = nodes.len() as u64;
    Ok(BalanceReport { at_unix_ms, is_watched: false, findings: Vec::new(), nodes, nodes_len })
}

impl fmt::Display for FlowPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bottleneck => "bottleneck",
            Self::NodeFailure => "node-failure",
            Self::Overload => "overload",
            Self::Partition => "partition",
        })
    }
}
