//! What people ask of a space by hand: to send an event, to cancel or retry a flow, to redrive or drop dead letters, to
//! write a state, to prune. Owns the requests and answers; how they are carried out is in `carry.rs`, how they reach
//! another process in `listen.rs` and `client.rs`.
//!
//! One request means the same in three places: [`Space::control`](crate::Space::control) carries it out in this process,
//! [`Client::ask`] in the process whose space is open in a folder, and [`carry_out`] on a store that no process has.
//! On a log whose nodes belong to several processes, [`carry_out_among`] has each do its part over their link, as
//! [`Space::control`](crate::Space::control) of one of them does; [`carry_out_beside`] does what is safe beside them and
//! refuses the rest.

mod carry;
mod linked;
#[cfg(feature = "embedded")]
mod client;
#[cfg(feature = "embedded")]
mod listen;
mod wire;

use std::sync::Arc;

use happen_core::env::Env;
use happen_core::store::Store;
use happen_core::{EventId, Result};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value as Json;

#[cfg(feature = "embedded")]
pub use client::Client;

use crate::balance::BalanceReport;
use crate::durable::beside;
use crate::durable::schedule::{self, Schedule};
#[cfg(doc)]
use crate::limits;
use crate::space::Space;

pub use crate::durable::beside::{Heard, NodeOwner};

pub(crate) use carry::{Hands, within};
pub(crate) use linked::{ByHand, Carried, ask_balance};
#[cfg(feature = "embedded")]
pub(crate) use listen::Listening;

/// What is asked for.
///
/// As JSON, a request is one line: an object with the name of the request, or the name alone where there is nothing to say.
///
/// # Examples
///
/// ```
/// use happen::control::{FlowsOf, Request};
///
/// let event: happen::EventId = "0197a5d0-7c00-7000-8000-000000000001".parse()?;
/// let line = br#"{"cancel":{"event":"0197a5d0-7c00-7000-8000-000000000001"}}"#;
/// assert_eq!(Request::parse(line)?, Request::Cancel(FlowsOf { event, node: None }));
/// assert_eq!(Request::parse(b"\"stats\"")?, Request::Stats);
/// # Ok::<(), happen::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Request {
    /// To send an event to a node. On a store that no process has, it is kept, and delivered once by the next start.
    Send(SendEvent),
    /// To cancel flows under way: each ends with [`ErrorKind::Cancelled`](happen_core::ErrorKind::Cancelled) and leaves no
    /// dead letter.
    Cancel(FlowsOf),
    /// To try flows now that wait for their next attempt.
    Retry(FlowsOf),
    /// To begin flows anew that failed for good.
    Redrive(Redrive),
    /// To give up flows that failed for good.
    Drop(Letters),
    /// To write the document of a durable node.
    SetState(SetState),
    /// To forget what is old.
    Prune(PruneBefore),
    /// To do something with a schedule.
    Schedule(OfSchedule),
    /// To tell how the space is.
    Stats,
    /// To tell how its nodes keep up. [`Space::balance_reports`](crate::Space::balance_reports) asks all processes.
    Balance,
}

/// An event to be sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "it is made by whoever asks")]
pub struct SendEvent {
    /// The id of the node.
    pub node: String,
    /// The type of the event.
    #[serde(rename = "type")]
    pub event_type: String,
    /// What it says.
    #[serde(default)]
    pub payload: Json,
    /// The correlation of what begins with it.
    #[serde(default)]
    pub correlation: Option<String>,
    /// How long the answer waits.
    #[serde(default)]
    pub wait: Wait,
}

/// How long whoever sends an event waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Wait {
    /// Until it is taken; by a durable node, until it is stored.
    #[default]
    Taken,
    /// Until it is answered, at most [`limits::CONTROL_REPLY_MS`].
    Reply,
}

/// The flows that handle an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "it is made by whoever asks")]
pub struct FlowsOf {
    /// The event.
    pub event: EventId,
    /// Only those of this node.
    #[serde(default)]
    pub node: Option<String>,
}

/// Dead letters: all, or those that everything agrees with which is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "it is made by whoever asks")]
pub struct Letters {
    /// Of this event.
    #[serde(default)]
    pub event: Option<EventId>,
    /// Of this node.
    #[serde(default)]
    pub node: Option<String>,
    /// Of events of this type.
    #[serde(default, rename = "type")]
    pub event_type: Option<String>,
    /// Behind this key, which the answer before gave to go on with.
    #[serde(default)]
    pub after: Option<String>,
    /// Whether anything is done.
    #[serde(default)]
    pub mode: Mode,
}

/// Whether what is asked for is done, or only told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Mode {
    /// It is done.
    #[default]
    CarryOut,
    /// It is only told what would be done.
    DryRun,
}

/// Dead letters that begin anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "it is made by whoever asks")]
pub struct Redrive {
    /// Which.
    pub letters: Letters,
    /// Another payload for their event, which is then handled from the beginning, under a new id, caused by the one that
    /// failed. Without one, the step that failed runs again.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub payload: Option<Json>,
}

/// A document to be written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "it is made by whoever asks")]
pub struct SetState {
    /// Its key: `state/<node>/<state>` or `entity/<node>/<state>/<key>`.
    pub key: String,
    /// The revision that it has to have now; 0 when it was never written.
    pub revision: u64,
    /// The version of the shape that the content has. Without one it is that of what the document says now.
    #[serde(default)]
    pub shape: Option<u32>,
    /// What it says from now on.
    pub content: Json,
}

/// What is to be forgotten, as in [`retention`](crate::retention).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "it is made by whoever asks")]
pub struct PruneBefore {
    /// What was committed before this time, in milliseconds since 1970.
    pub before_unix_ms: u64,
    /// Only records of events of these types; of all types when none is named.
    #[serde(default)]
    pub types: Vec<String>,
    /// What becomes of the past revisions of documents.
    #[serde(default)]
    pub histories: Histories,
    /// Whether anything is done.
    #[serde(default)]
    pub mode: Mode,
}

/// What becomes of the past revisions of documents in a pruning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Histories {
    /// They are forgotten too.
    #[default]
    Forget,
    /// They stay.
    Keep,
}

/// A schedule, and what is done with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "it is made by whoever asks")]
pub struct OfSchedule {
    /// The name of the schedule.
    pub name: String,
    /// What is done with it.
    pub act: ScheduleAct,
}

/// What is done with a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ScheduleAct {
    /// As [`Schedules::pause`](crate::Schedules::pause).
    Pause,
    /// As [`Schedules::resume`](crate::Schedules::resume).
    Resume,
    /// As [`Schedules::remove`](crate::Schedules::remove).
    Remove,
    /// As [`Schedules::trigger`](crate::Schedules::trigger); only a space that runs can.
    Trigger,
    /// As [`Schedules::backfill`](crate::Schedules::backfill); only a space that runs can.
    Backfill {
        /// From this time on, in milliseconds since 1970.
        from_unix_ms: u64,
        /// Up to but without this one.
        until_unix_ms: u64,
    },
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Answer {
    /// An event was sent.
    Sent(SentByHand),
    /// Flows were cancelled or tried.
    Flows(Vec<FlowByHand>),
    /// Dead letters began anew or were dropped.
    Letters(LettersByHand),
    /// A document was written.
    Written(Written),
    /// Something was forgotten.
    Pruned(PrunedByHand),
    /// Something was done with a schedule.
    Scheduled(ScheduledByHand),
    /// How the space is.
    Stats(Stats),
    /// How its nodes keep up. Of a store that no process has, what is kept there for them.
    Balance(BalanceReport),
}

/// An event that was sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SentByHand {
    /// Its id.
    pub event: EventId,
    /// What became of it.
    pub became: Became,
}

impl SentByHand {
    /// The event with this id, and what became of it.
    #[must_use]
    pub const fn new(event: EventId, became: Became) -> Self {
        Self { event, became }
    }
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Became {
    /// The node took it; a durable one has stored it.
    Taken,
    /// It was handled, and this is the answer.
    Replied {
        /// The type of the answer; `None` when there is none.
        #[serde(rename = "type")]
        event_type: Option<String>,
        /// What it says.
        payload: Json,
    },
    /// It is kept for the next start.
    Kept,
}

/// A flow that something was done to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FlowByHand {
    /// The event that it handles.
    pub event: EventId,
    /// The node.
    pub node: String,
    /// The name of its registration.
    pub registration: String,
    /// What became of it.
    pub became: FlowBecame,
}

/// What became of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FlowBecame {
    /// It is cancelled.
    Cancelled,
    /// It ended before it could be cancelled.
    Ended,
    /// It was asked to stop, and is still at something that cannot be interrupted, or waits for its turn to begin.
    Asked,
    /// It is tried now, or by the next start.
    Due,
}

/// Dead letters that something was done to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LettersByHand {
    /// The letters.
    pub letters: Vec<LetterByHand>,
    /// Where to go on with [`Letters::after`]; `None` when there are no more.
    pub next: Option<String>,
}

/// A dead letter that something was done to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LetterByHand {
    /// The event that was handled.
    pub event: EventId,
    /// The node.
    pub node: String,
    /// The name of the registration.
    pub registration: String,
    /// The event that is handled in its place, when it was given another payload.
    pub instead: Option<EventId>,
    /// Why nothing was done to it.
    pub refused: Option<Refused>,
}

/// Why something was not done, where others were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Refused {
    /// The stable code of the error.
    pub code: String,
    /// The error in words.
    pub text: String,
}

/// A document that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Written {
    /// Its key.
    pub key: String,
    /// The revision that it has now.
    pub revision: u64,
}

/// What a pruning forgot, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PrunedByHand {
    /// Records.
    pub records: u64,
    /// Past revisions.
    pub revisions: u64,
    /// Older events whose records stay because flows under way or dead letters need them.
    pub events_kept: u64,
}

/// A schedule that something was done with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ScheduledByHand {
    /// Its name.
    pub name: String,
    /// The events that its node took now.
    pub events: Vec<EventId>,
}

/// How a space is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Stats {
    /// What it is at.
    pub phase: Phase,
    /// The end of the log, as a number in digits.
    pub head: String,
    /// Flows of durable nodes that have not ended.
    pub flows: u64,
    /// The number of nodes; 0 where no process has the store.
    pub nodes_len: u64,
    /// The first [`limits::CONTROL_NODES_MAX`] nodes, by id.
    pub nodes: Vec<NodeStats>,
}

/// What a space is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Phase {
    /// It is being built.
    Building,
    /// It delivers events.
    Running,
    /// It has ended, or no process has its store.
    Stopped,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NodeStats {
    /// Its id.
    pub node: String,
    /// Whether its flows survive the process.
    pub is_durable: bool,
    /// Its flows that wait for something.
    pub flows: u64,
    /// Its events that wait for a place.
    pub waiting: u64,
}

/// Carries out a request on a store that no process has: what a running space would do at once is left in the store for the
/// next start where it needs handlers.
///
/// The caller sees to it that no space runs on the store. One that does finds its flows and documents changed behind its
/// back: it gives them up or reads them again, and nothing is lost or done twice, but it cannot tell anybody. On a store
/// that is shared nobody has to see to it: every process that has not said that it goes counts as one that runs, and
/// [`carry_out_beside`] can tell more.
///
/// # Errors
///
/// - [`ErrorKind::NotFound`](happen_core::ErrorKind::NotFound): no flow or dead letter of that name.
/// - [`ErrorKind::Conflict`](happen_core::ErrorKind::Conflict): a document has another revision.
/// - [`ErrorKind::Misuse`](happen_core::ErrorKind::Misuse): what was asked for cannot mean anything, such as a reply where
///   nobody answers.
/// - What the store says.
///
/// # Examples
///
/// ```
/// use happen::control::{self, Answer, Became, Request, SendEvent, Wait};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let space = happen::Space::memory();
/// # let (env, store) = (space.env(), happen::store::MemoryStore::new(std::sync::Arc::clone(space.env())));
/// # let store: std::sync::Arc<dyn happen::store::Store> = std::sync::Arc::new(store);
/// let send = SendEvent {
///     node: "orders".into(),
///     event_type: "order.create".into(),
///     payload: serde_json::json!({ "item": "tea" }),
///     correlation: None,
///     wait: Wait::Taken,
/// };
/// let Answer::Sent(sent) = control::carry_out(&store, env, Request::Send(send)).await? else { unreachable!() };
/// assert_eq!(sent.became, Became::Kept);
/// # Ok(())
/// # }
/// ```
pub async fn carry_out(store: &Arc<dyn Store>, env: &Arc<dyn Env>, request: Request) -> Result<Answer> {
    Hands::of_store(store, env, None).carry_out(request).await
}

/// Carries out a request on a store whose nodes may belong to processes that run, such as one over NATS.
///
/// What is safe beside them is done: an event is kept for its node, whose process takes it at once; dead letters are
/// dropped; records are pruned. What a process would have to know of that has the node is done when no process has it.
/// `heard` tells by what name the process of a node is heard of at this moment. A process that has a node, has not said
/// that it goes, and is not heard of has ended for good with the change: nothing that it writes counts from there on.
///
/// Over a store that is not shared it is the same as [`carry_out`].
///
/// # Errors
///
/// - [`ErrorKind::Misuse`](happen_core::ErrorKind::Misuse): the process that has the node is heard of; the error names it.
/// - [`ErrorKind::Conflict`](happen_core::ErrorKind::Conflict): the node changed hands meanwhile.
/// - As [`carry_out`].
///
/// # Examples
///
/// ```
/// use happen::control::{self, Request};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let space = happen::Space::memory();
/// # let (env, store) = (space.env(), happen::store::MemoryStore::new(std::sync::Arc::clone(space.env())));
/// # let store: std::sync::Arc<dyn happen::store::Store> = std::sync::Arc::new(store);
/// let nobody = |_: &str| None;
/// let stats = control::carry_out_beside(&store, env, &nobody, Request::Stats).await?;
/// # assert!(matches!(stats, control::Answer::Stats(_)));
/// # Ok(())
/// # }
/// ```
pub async fn carry_out_beside(
    store: &Arc<dyn Store>,
    env: &Arc<dyn Env>,
    heard: &Heard<'_>,
    request: Request,
) -> Result<Answer> {
    Hands::of_store(store, env, Some(heard)).carry_out(request).await
}

/// Carries out a request on a log whose nodes belong to processes that run, for somebody who has a place at their link and
/// none of the nodes: a space in memory that has joined it and started.
///
/// What is about a node goes to the process that has it, over the link, and is done there as by [`Space::control`]. What is
/// about a node whose process is not there is done to the log, as by [`carry_out_beside`]; dead letters are dropped and
/// records pruned there in any case, for nobody has them in memory. An event is kept for its node in the log; to wait for
/// its answer, send it by the space.
///
/// [`Space::control`]: crate::Space::control
///
/// # Delivery
///
/// A request whose answer is lost is made again under the same id for [`limits::CONTROL_AGAIN_MS`], and a process does each
/// once. One that ended meanwhile did it or not: then the error says that this is not known.
///
/// A process with an [identity](crate::Space::identity) does only what a trusted key has signed that
/// [may operate](crate::identity::Trusted::operates) the node. Without one it does what anybody asks who reaches its link.
///
/// # Errors
///
/// - What the process of the node says.
/// - [`ErrorKind::Closed`](happen_core::ErrorKind::Closed), [`ErrorKind::Io`](happen_core::ErrorKind::Io) or
///   [`ErrorKind::TimedOut`](happen_core::ErrorKind::TimedOut): it is not known whether it was done.
/// - [`ErrorKind::Untrusted`](happen_core::ErrorKind::Untrusted): the process does not believe the key of this space.
/// - As [`carry_out_beside`].
///
/// # Cancel safety
///
/// What was asked for over the link is done all the same.
///
/// # Examples
///
/// ```
/// use happen::control::{self, Answer, Request, SetState};
/// use happen::{Config, Hub, Space};
/// # use happen::{Context, Event};
/// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
/// # #[state("count", version = 1)]
/// # struct Count { count: u64 }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let (hub, env) = (Hub::new(), Space::memory().env().clone());
/// # let log: std::sync::Arc<dyn happen::store::Store> =
/// #     std::sync::Arc::new(happen::store::MemoryStore::new(std::sync::Arc::clone(&env)).shared());
/// // In one process:
/// let shop = Space::with_store(Config::default(), std::sync::Arc::clone(&env), std::sync::Arc::clone(&log))?;
/// shop.join(hub.link("shop"))?;
/// shop.node("orders").on("u64", |_: &Event<u64>, _: &Context| {});
/// shop.start().await?;
///
/// // In another:
/// let here = Space::memory();
/// here.join(hub.link("operator"))?;
/// here.start().await?;
/// let set = SetState {
///     key: "state/orders/count".into(),
///     revision: 0,
///     shape: Some(1),
///     content: serde_json::json!({ "count": 7 }),
/// };
/// let answer = control::carry_out_among(&here, &log, Request::SetState(set)).await?;
/// # assert!(matches!(answer, Answer::Written(_)));
/// assert_eq!(shop.node("orders").state::<Count>().get(|count| count.count), 7);
/// # shop.stop().await?;
/// # here.stop().await
/// # }
/// ```
pub async fn carry_out_among(space: &Space, store: &Arc<dyn Store>, request: Request) -> Result<Answer> {
    Hands::among(space.inner(), store).carry_out(request).await
}

/// Which process has which durable node of a log that several write; empty for a store that is not shared.
///
/// # Errors
///
/// What the store says.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let space = happen::Space::memory();
/// # let store = happen::store::MemoryStore::new(std::sync::Arc::clone(space.env()));
/// # let store: std::sync::Arc<dyn happen::store::Store> = std::sync::Arc::new(store);
/// for owner in happen::control::owners(&store).await? {
///     println!("{} belongs to {}", owner.node, owner.process);
/// }
/// # Ok(())
/// # }
/// ```
pub async fn owners(store: &Arc<dyn Store>) -> Result<Vec<NodeOwner>> {
    beside::owners_in(store).await
}

/// All schedules of a store, by name; of a running space too.
///
/// # Errors
///
/// What the store says.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// let space = happen::Space::open(folder.path()).await?;
/// let reports = space.node("reports");
/// reports.on("u32", |_: &happen::Event<u32>, _: &happen::Context| {});
/// space.start().await?;
/// space.schedule("nightly", "0 3 * * *", &reports, 7u32).await?;
///
/// let schedules = happen::control::schedules(&space.store()).await?;
/// assert_eq!((schedules[0].name(), schedules[0].node_id()), ("nightly", "reports"));
/// # space.stop().await?;
/// # Ok(())
/// # }
/// ```
pub async fn schedules(store: &Arc<dyn Store>) -> Result<Vec<Schedule>> {
    schedule::all_in(store).await
}

/// A payload that is there, also when it is `null`.
fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}
