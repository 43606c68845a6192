//! The configuration of a space, as data with defaults. Owns what can be set, and the rule by which a node gets its
//! options; does not know how they are used.

use std::time::Duration;

use happen_core::link::Routing;
use happen_core::{Error, Pattern, Result};
use serde::{Deserialize, Serialize};

use crate::limits;

/// How a space behaves. Every field has a default, so a file names only what differs.
///
/// # Examples
///
/// ```
/// let config: happen::Config = serde_json::from_str(
///     r#"{ "environment": "test", "nodes": { "api-*": { "max_concurrent": 10 } } }"#,
/// ).unwrap();
/// assert_eq!(config.options_for("api-users").max_concurrent, 10);
/// assert_eq!(config.options_for("orders").max_concurrent, 100);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The name of the environment, such as `production`; events tell it as `system.environment`.
    pub environment: String,
    /// The region; events tell it as `system.region`.
    pub region: String,
    /// The options of nodes that no table entry names.
    pub node_defaults: NodeOptions,
    /// Options by glob over node ids, such as `api-*`. Of several that match, the one with most literal characters
    /// wins field by field.
    pub nodes: std::collections::BTreeMap<String, NodeOverrides>,
    /// The limits on correlations.
    pub correlation: CorrelationLimits,
    /// Event headers remembered per thread.
    pub remembered_events: usize,
    /// Event types whose routes are kept.
    pub types_max: usize,
    /// Undeliverable events kept.
    pub dead_letters_max: usize,
    /// Bytes of an encoded event.
    pub event_bytes_max: usize,
    /// How long a stopping space waits for flows under way, in milliseconds.
    pub drain_ms: u64,
    /// How long an idempotency key of an event from outside is remembered, in milliseconds.
    pub idempotency_window_ms: u64,
    /// How much may wait for nodes of other processes.
    pub outbox: OutboxLimits,
    /// How long the store of the space remembers.
    pub retention: Retention,
    /// What becomes of flows in the store that do not fit the nodes and steps of the program.
    pub unfit_flows: UnfitFlows,
    /// How it is watched whether nodes keep up, and told when they do not; absent for not at all. See
    /// [`balance`](crate::balance).
    pub balance: Option<BalanceOptions>,
}

/// How a node takes events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeOptions {
    /// Flows under way at once; 1 makes a node serial.
    pub max_concurrent: u32,
    /// Events that may wait.
    pub queue_limit: usize,
    /// Events that may wait while the node counts as keeping up, in a space that watches its [`balance`](crate::balance);
    /// never more than four fifths of the queue. 0 for a node that may have any number wait.
    pub lag_max: usize,
    /// In which order waiting events start.
    pub queue_order: QueueOrder,
    /// What happens to an event that finds the queue full.
    pub overflow: Overflow,
    /// Globs over the node id, the source id or `source_type:source_id` of accepted events; empty accepts all.
    pub accept_from: Vec<String>,
    /// Steps of one flow.
    pub steps_max: u32,
    /// How long one flow may take, in milliseconds; 0 for no limit. Of a durable node, one attempt at one step.
    pub flow_ms_max: u64,
    /// Whether the store remembers what the node does, in a space that has one.
    pub durability: Durability,
    /// How often a step of a durable node is tried, the first time included, before its flow becomes a dead letter.
    pub attempts_max: u32,
    /// How long the second attempt waits, in milliseconds; each further one waits twice as long.
    pub retry_wait_ms: u64,
    /// How surely events pass between the node and those of other processes.
    pub delivery: Delivery,
    /// Patterns of event types whose changes of states and entities stay in the past as snapshots; empty keeps those of
    /// all. A change made by another event is written like any other, and is not kept once it is replaced. Changes from
    /// outside any handler are always kept. How many and how long is up to [`Retention`].
    pub snapshots: Vec<String>,
    /// How the node shares its work with those of its id in other processes; see [`Node::shared`](crate::Node::shared).
    pub shared: Option<Routing>,
}

/// Options that a table entry sets; what is absent stays as it was.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeOverrides {
    /// See [`NodeOptions::max_concurrent`].
    pub max_concurrent: Option<u32>,
    /// See [`NodeOptions::queue_limit`].
    pub queue_limit: Option<usize>,
    /// See [`NodeOptions::lag_max`].
    pub lag_max: Option<usize>,
    /// See [`NodeOptions::queue_order`].
    pub queue_order: Option<QueueOrder>,
    /// See [`NodeOptions::overflow`].
    pub overflow: Option<Overflow>,
    /// See [`NodeOptions::accept_from`].
    pub accept_from: Option<Vec<String>>,
    /// See [`NodeOptions::steps_max`].
    pub steps_max: Option<u32>,
    /// See [`NodeOptions::flow_ms_max`].
    pub flow_ms_max: Option<u64>,
    /// See [`NodeOptions::durability`].
    pub durability: Option<Durability>,
    /// See [`NodeOptions::attempts_max`].
    pub attempts_max: Option<u32>,
    /// See [`NodeOptions::retry_wait_ms`].
    pub retry_wait_ms: Option<u64>,
    /// See [`NodeOptions::delivery`].
    pub delivery: Option<Delivery>,
    /// See [`NodeOptions::snapshots`].
    pub snapshots: Option<Vec<String>>,
    /// See [`NodeOptions::shared`].
    pub shared: Option<Routing>,
}

/// Whether the store of a space remembers what a node does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Durability {
    /// Every step is committed; flows go on after a crash. In a space without a store it is the same as the other.
    #[default]
    Durable,
    /// Nothing is kept: handlers run at once, and what they were doing ends with the process.
    Ephemeral,
}

/// How surely events pass between a node and those of other processes, in spaces that are joined by a link and do not
/// share one log. Two nodes of one process, or on one log, need none of it: between them everything happens once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Delivery {
    /// What steps of the node send is kept in the store until the other side has taken it in; what comes that others keep
    /// is taken in once and in their order, however often it comes. A node that is not durable remembers nothing over the
    /// end of its process, and handles at least once what it had not ended by then.
    #[default]
    ExactlyOnce,
    /// What steps send is kept likewise, and what comes is handled, once or more often. A durable node takes it in once all
    /// the same, as what it remembers costs no commit of its own.
    AtLeastOnce,
    /// What steps send leaves once, after their commit, and is lost when nobody is there. What comes counts as taken in
    /// when it is there: a node that is not durable does not handle it again when its process ends meanwhile.
    AtMostOnce,
}

/// How much may wait in a space for nodes of other processes. A step that sends more fails with the error `busy`, and is
/// tried again like any that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboxLimits {
    /// Events; a batch counts as one.
    pub events_max: usize,
    /// Bytes of events. The event with which it is reached still has room.
    pub bytes_max: u64,
}

/// What becomes of flows under way whose node, registration or step is not there when a space is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum UnfitFlows {
    /// The space does not start, and the error lists them.
    #[default]
    Refuse,
    /// They stay as they are, all others go on, and [`Space::problems`](crate::Space::problems) lists them.
    Park,
}

/// In which order waiting events start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum QueueOrder {
    /// First come, first started.
    #[default]
    Fifo,
    /// Last come, first started.
    Lifo,
    /// By the priority of the event (metadata `priority`, default 0), the highest first; equal ones first come first.
    Priority,
}

/// What happens to an event that finds the queue full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Overflow {
    /// It is refused: the sender gets the error `busy`.
    #[default]
    Reject,
    /// The event that waited longest goes to the dead letters; in a queue by priority, the one that waited longest of
    /// the lowest priority, which may be the newcomer.
    DropOldest,
    /// It goes to the dead letters itself, and the sender is told that it was taken.
    DropNewest,
}

/// How long the store of a space remembers what was. States as they are, flows under way and dead letters are never
/// forgotten.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Past revisions of one state or entity; 0 keeps none.
    pub revisions_max: u32,
    /// How old a record or a past revision may become, in milliseconds; 0 for any age.
    pub age_ms: u64,
    /// Bytes that the store may take before the oldest records go, whatever their age; 0 for any number. Only a space that
    /// opened its store itself knows its size.
    pub bytes_max: u64,
    /// Patterns of event types whose records are never forgotten. Those with wildcards stand for the types that this
    /// process has met.
    pub keep: Vec<String>,
    /// How often is looked for what may be forgotten, in milliseconds; 0 for never.
    pub every_ms: u64,
}

/// How it is watched whether nodes keep up. Every field has a default: an empty object in a file, or
/// `BalanceOptions::default()`, switches it on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalanceOptions {
    /// Milliseconds between two looks.
    pub every_ms: u64,
    /// For how many milliseconds something has to hold before it is told; rates are measured over as many.
    pub window_ms: u64,
    /// For how many milliseconds it has to be gone before its end is told.
    pub calm_ms: u64,
    /// Nodes that are many. Fewer than this that fall behind are told one by one and not as an overload, and fewer that are
    /// affected are never most of the system.
    pub many_nodes: usize,
    /// The part of the busy nodes, in percent, that falls behind together in an overload.
    pub many_percent: u32,
    /// The part of all watched nodes, in percent, that is affected when the system counts as down.
    pub most_percent: u32,
    /// Nodes of other processes that go at once in a partition. Fewer have failed.
    pub partition_nodes_min: usize,
    /// Milliseconds by which a look may be late before the process counts as overloaded.
    pub late_ms_max: u64,
    /// How busy places are to be, in percent, for which [`Rates::places_needed`](crate::balance::Rates::places_needed)
    /// tells how many a node needs.
    pub utilisation_percent: u32,
}

/// Limits that end runaway loops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorrelationLimits {
    /// Causes between an event and its root.
    pub depth_max: u32,
    /// Events one flow may send.
    pub fan_out_max: u32,
    /// Events below one root that one thread may handle.
    pub events_max: u64,
    /// How long events may follow from one root, in milliseconds; 0 for no limit.
    pub deadline_ms: u64,
}

impl Config {
    /// The options of the node with this id.
    #[must_use]
    pub fn options_for(&self, node: &str) -> NodeOptions {
        let mut options = self.node_defaults.clone();
        let mut matching: Vec<_> = self.nodes.iter().filter(|(glob, _)| glob_matches(glob, node)).collect();
        matching.sort_by_key(|(glob, _)| glob.chars().filter(|&c| c != '*').count());
        for (_, overrides) in matching {
            overrides.apply(&mut options);
        }
        options
    }

    /// Checks that every value can mean something.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) that names the first field that cannot.
    pub fn check(&self) -> Result<()> {
        let all = self.nodes.iter().map(|(glob, overrides)| {
            let mut options = self.node_defaults.clone();
            overrides.apply(&mut options);
            (glob.as_str(), options)
        });
        for (name, options) in all.chain([("node_defaults", self.node_defaults.clone())]) {
            if options.max_concurrent == 0 {
                return Err(Error::misuse(format!(
                    "`{name}`: max_concurrent is 0, so nothing would ever run"
                )));
            }
            if options.attempts_max == 0 {
                return Err(Error::misuse(format!(
                    "`{name}`: attempts_max is 0, so no step would ever be tried"
                )));
            }
            if options.steps_max == 0 {
                return Err(Error::misuse(format!("`{name}`: steps_max is 0, so no flow could take a step")));
            }
            patterns(&options.snapshots).map_err(|error| {
                error.context(format!("`{name}`: `snapshots` has a pattern that cannot be understood"))
            })?;
        }
        if self.outbox.events_max == 0 || self.outbox.bytes_max == 0 {
            return Err(Error::misuse(
                "outbox: a limit is 0, so nothing could be sent to nodes of other processes",
            ));
        }
        if self.idempotency_window_ms == 0 {
            return Err(Error::misuse("idempotency_window_ms is 0, so no key would be known a second time"));
        }
        patterns(&self.retention.keep)
            .map_err(|error| error.context("`retention.keep` has a pattern that cannot be understood"))?;
        if let Some(balance) = &self.balance {
            balance.check()?;
        }
        if self.remembered_events == 0 {
            return Err(Error::misuse("remembered_events is 0; the causal web needs at least one header"));
        }
        Ok(())
    }
}

impl BalanceOptions {
    fn check(&self) -> Result<()> {
        let looks_max = limits::BALANCE_LOOKS_MAX;
        let percents = [
            ("many_percent", self.many_percent),
            ("most_percent", self.most_percent),
            ("utilisation_percent", self.utilisation_percent),
        ];
        if let Some((name, percent)) = percents.iter().find(|(_, percent)| !(1..=100).contains(percent)) {
            return Err(Error::misuse(format!(
                "`balance.{name}` is {percent}, and is to be one of 1 to 100"
            )));
        }
        if self.every_ms == 0 {
            return Err(Error::misuse(
                "`balance.every_ms` is 0, so there would be no time between two looks",
            ));
        }
        if self.window_ms < self.every_ms || self.window_ms / self.every_ms > looks_max {
            return Err(Error::misuse(format!(
                "`balance.window_ms` is {}, and is to be 1 to {looks_max} times `every_ms`, which is {}",
                self.window_ms, self.every_ms
            )));
        }
        if self.many_nodes == 0 || self.partition_nodes_min == 0 {
            return Err(Error::misuse("`balance.many_nodes` and `partition_nodes_min` are to be 1 or more"));
        }
        Ok(())
    }
}

impl Default for BalanceOptions {
    fn default() -> Self {
        Self {
            every_ms: limits::BALANCE_EVERY_MS,
            window_ms: limits::BALANCE_WINDOW_MS,
            calm_ms: limits::BALANCE_CALM_MS,
            many_nodes: limits::BALANCE_MANY_NODES,
            many_percent: limits::BALANCE_MANY_PERCENT,
            most_percent: limits::BALANCE_MOST_PERCENT,
            partition_nodes_min: limits::BALANCE_PARTITION_NODES_MIN,
            late_ms_max: limits::BALANCE_LATE_MS_MAX,
            utilisation_percent: limits::BALANCE_UTILISATION_PERCENT,
        }
    }
}

impl NodeOverrides {
    fn apply(&self, options: &mut NodeOptions) {
        let Self {
            max_concurrent,
            queue_limit,
            lag_max,
            queue_order,
            overflow,
            accept_from,
            steps_max,
            flow_ms_max,
            durability,
            attempts_max,
            retry_wait_ms,
            delivery,
            snapshots,
            shared,
        } = self;
        options.shared = shared.or(options.shared);
        options.max_concurrent = max_concurrent.unwrap_or(options.max_concurrent);
        options.queue_limit = queue_limit.unwrap_or(options.queue_limit);
        options.lag_max = lag_max.unwrap_or(options.lag_max);
        options.queue_order = queue_order.unwrap_or(options.queue_order);
        options.overflow = overflow.unwrap_or(options.overflow);
        options.steps_max = steps_max.unwrap_or(options.steps_max);
        options.flow_ms_max = flow_ms_max.unwrap_or(options.flow_ms_max);
        options.durability = durability.unwrap_or(options.durability);
        options.attempts_max = attempts_max.unwrap_or(options.attempts_max);
        options.retry_wait_ms = retry_wait_ms.unwrap_or(options.retry_wait_ms);
        options.delivery = delivery.unwrap_or(options.delivery);
        if let Some(globs) = accept_from {
            options.accept_from.clone_from(globs);
        }
        if let Some(patterns) = snapshots {
            options.snapshots.clone_from(patterns);
        }
    }
}

impl NodeOptions {
    pub(crate) fn flow_time_max(&self) -> Option<Duration> {
        (self.flow_ms_max > 0).then(|| Duration::from_millis(self.flow_ms_max))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            environment: "development".to_owned(),
            region: "local".to_owned(),
            node_defaults: NodeOptions::default(),
            nodes: std::collections::BTreeMap::new(),
            correlation: CorrelationLimits::default(),
            remembered_events: limits::REMEMBERED_EVENTS,
            types_max: limits::TYPES_MAX,
            dead_letters_max: limits::DEAD_LETTERS_MAX,
            event_bytes_max: limits::EVENT_BYTES_MAX,
            drain_ms: limits::DRAIN_MS,
            idempotency_window_ms: limits::IDEMPOTENCY_WINDOW_MS,
            outbox: OutboxLimits::default(),
            retention: Retention::default(),
            unfit_flows: UnfitFlows::Refuse,
            balance: None,
        }
    }
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self { events_max: limits::OUTBOX_EVENTS_MAX, bytes_max: limits::OUTBOX_BYTES_MAX }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            revisions_max: limits::REVISIONS_MAX,
            age_ms: limits::RECORD_AGE_MS,
            bytes_max: 0,
            keep: Vec::new(),
            every_ms: limits::PRUNE_EVERY_MS,
        }
    }
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            max_concurrent: limits::MAX_CONCURRENT,
            queue_limit: limits::QUEUE_LIMIT,
            lag_max: limits::LAG_MAX,
            queue_order: QueueOrder::Fifo,
            overflow: Overflow::Reject,
            accept_from: Vec::new(),
            steps_max: limits::STEPS_MAX,
            flow_ms_max: 0,
            durability: Durability::Durable,
            attempts_max: limits::RETRY_ATTEMPTS_MAX,
            retry_wait_ms: limits::RETRY_WAIT_MS,
            delivery: Delivery::ExactlyOnce,
            snapshots: Vec::new(),
            shared: None,
        }
    }
}

impl Default for CorrelationLimits {
    fn default() -> Self {
        Self {
            depth_max: limits::DEPTH_MAX,
            fan_out_max: limits::FAN_OUT_MAX,
            events_max: limits::CORRELATION_EVENTS_MAX,
            deadline_ms: 0,
        }
    }
}

/// Reads patterns over event types.
///
/// # Errors
///
/// That of the first one which cannot be read.
pub(crate) fn patterns(texts: &[String]) -> Result<Vec<Pattern>> {
    texts.iter().map(|text| Pattern::parse(text).map_err(Error::from)).collect()
}

/// Whether an id matches a glob in which `*` stands for any characters, none included. Ids are no event types: they
/// have no segments, so this is not a [`Pattern`].
pub(crate) fn glob_matches(glob: &str, id: &str) -> bool {
    let mut parts = glob.split('*');
    let Some(mut rest) = parts.next().and_then(|first| id.strip_prefix(first)) else { return false };
    if !glob.contains('*') {
        return rest.is_empty();
    }
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (glob, id, expected) in [
            ("api-*", "api-users", true),
            ("api-*", "api-", true),
            ("api-*", "app", false),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("tenant:acme:*", "tenant:acme:u1", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("*ab", "aab", true),
        ] {
            assert_eq!(glob_matches(glob, id), expected, "{glob} {id}");
        }
    }

    #[test]
    fn the_more_literal_entry_wins_field_by_field() {
        let config: Config = serde_json::from_value(serde_json::json!({
            "nodes": {
                "*": { "queue_limit": 5, "max_concurrent": 7 },
                "api-*": { "max_concurrent": 2 },
            }
        }))
        .unwrap();
        let options = config.options_for("api-x");
        assert_eq!((options.max_concurrent, options.queue_limit), (2, 5));
        assert_eq!(config.options_for("x").max_concurrent, 7);
    }

    #[test]
    fn impossible_values_and_misspelt_fields_are_named() {
        let mut config = Config::default();
        config.node_defaults.max_concurrent = 0;
        assert!(config.check().unwrap_err().to_string().contains("max_concurrent"));
        let error = serde_json::from_str::<Config>(r#"{ "enviroment": "x" }"#).unwrap_err();
        assert!(error.to_string().contains("enviroment"), "{error}");
    }
}
