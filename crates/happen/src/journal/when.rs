//! States of the past, found by what made them. Owns which index a question goes to; does not know what a state means.

use std::fmt;
use std::sync::Arc;

use happen_core::env::BoxFuture;
use happen_core::store::{Document, Order, Position, Read, Record, Select, Start, Tag};
use happen_core::{EventId, Result, State};

use super::entry::{self, About};
use super::past;
use super::walk::Walk;
use super::{Journal, limits};
use crate::state::{Kind, Name};

/// Which changes of documents are looked for: those made by steps that handled such events, in a span of time.
///
/// What is not said does not matter. A change from outside any handler has no event, so a query that names something of
/// an event does not find it.
///
/// # Examples
///
/// ```
/// use happen::journal::Query;
///
/// let query = Query::new().correlation("order-789").event_type("order.paid").newest_first().at_most(1);
/// assert_eq!(query, query.clone());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    event: Option<EventId>,
    cause: Option<EventId>,
    correlation: Option<String>,
    event_type: Option<String>,
    sender: Option<String>,
    since_unix_ms: u64,
    until_unix_ms: u64,
    order: Order,
    after: Option<Position>,
    at_most: usize,
}

/// A value as one commit left it, and what led to that.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Snapshot<T> {
    /// The value: what the document said after the step.
    pub value: T,
    /// The key of the document.
    pub key: String,
    /// Its revision.
    pub revision: u64,
    /// The event that was handled; `None` when the change came from outside any handler.
    pub about: Option<About>,
    /// The name of the step that made the change.
    pub step: Option<String>,
    /// When it was committed, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The position of the record that tells of the change.
    pub position: Position,
}

/// What was found of the past.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Snapshots<T> {
    /// The snapshots, in the order of the query.
    pub snapshots: Vec<Snapshot<T>>,
    /// Where to go on with [`Query::after`]; `None` when all was looked through.
    pub next: Option<Position>,
    /// Revisions that were selected and are not kept: made by events that make no snapshots, or forgotten.
    pub forgotten: u64,
}

/// A question for snapshots of one type of state that has not been asked yet; `.await` asks it.
#[must_use = "nothing is asked before `.await`"]
pub struct When<'j, S> {
    journal: &'j Journal,
    node: String,
    of: Of,
    query: Query,
    matches: Option<Box<Matches<'j, S>>>,
}

type Matches<'j, S> = dyn Fn(&Snapshot<S>) -> bool + Send + Sync + 'j;

/// Which documents of a node.
enum Of {
    State,
    Entity(String),
    Entities,
}

impl Query {
    /// All changes, the oldest first.
    #[must_use]
    pub fn new() -> Self {
        Self {
            event: None,
            cause: None,
            correlation: None,
            event_type: None,
            sender: None,
            since_unix_ms: 0,
            until_unix_ms: u64::MAX,
            order: Order::Forward,
            after: None,
            at_most: limits::JOURNAL_ROWS_MAX,
        }
    }

    /// Only what was done to handle this event.
    #[must_use]
    pub fn event(self, event: EventId) -> Self {
        Self { event: Some(event), ..self }
    }

    /// Only what was done to handle events that this one caused.
    #[must_use]
    #[doc(alias = "causationId")]
    pub fn caused_by(self, cause: EventId) -> Self {
        Self { cause: Some(cause), ..self }
    }

    /// Only what was done to handle events of this correlation: the name its sender chose, or the id of its root.
    #[must_use]
    #[doc(alias = "correlationId")]
    pub fn correlation(self, correlation: impl Into<String>) -> Self {
        Self { correlation: Some(correlation.into()), ..self }
    }

    /// Only what was done to handle events of exactly this type.
    #[must_use]
    pub fn event_type(self, event_type: impl Into<String>) -> Self {
        Self { event_type: Some(event_type.into()), ..self }
    }

    /// Only what was done to handle events that this node sent.
    #[must_use]
    pub fn sender(self, node: impl Into<String>) -> Self {
        Self { sender: Some(node.into()), ..self }
    }

    /// Only what was committed at this time or later, in milliseconds since 1970.
    #[must_use]
    pub fn since(self, unix_ms: u64) -> Self {
        Self { since_unix_ms: unix_ms, ..self }
    }

    /// Only what was committed at this time or earlier, in milliseconds since 1970.
    #[must_use]
    pub fn until(self, unix_ms: u64) -> Self {
        Self { until_unix_ms: unix_ms, ..self }
    }

    /// The newest first.
    #[must_use]
    pub fn newest_first(self) -> Self {
        Self { order: Order::Backward, ..self }
    }

    /// Goes on behind this position, which [`Snapshots::next`] gave.
    #[must_use]
    pub fn after(self, position: Position) -> Self {
        Self { after: Some(position), ..self }
    }

    /// Ends after so many snapshots; those of one commit stay together, so there may be a few more.
    #[must_use]
    pub fn at_most(self, snapshots: usize) -> Self {
        Self { at_most: snapshots.clamp(1, limits::JOURNAL_ROWS_MAX), ..self }
    }

    fn read(&self, node: &str) -> Read {
        let select = Select::tag(self.narrowest(node));
        let start = match (self.after, self.order) {
            (Some(position), _) => Start::Position(position),
            (None, Order::Forward) if self.since_unix_ms > 0 => Start::Time(self.since_unix_ms),
            (None, Order::Backward) if self.until_unix_ms < u64::MAX => Start::Time(self.until_unix_ms),
            (None, _) => Start::Edge,
        };
        // Most questions are answered by a few records; whole pages follow.
        let read = Read { order: self.order, ..Read::forward(select) };
        read.start(start).at_most(RECORDS_FIRST)
    }

    /// The tag that the fewest records have. An event, a cause or a correlation has few in any log; of the others the
    /// type says most.
    fn narrowest(&self, node: &str) -> Tag {
        if let Some(event) = self.event {
            return Tag::Event(event);
        }
        if let Some(cause) = self.cause {
            return Tag::Cause(cause);
        }
        if let Some(correlation) = &self.correlation {
            return Tag::Correlation(correlation.as_str().into());
        }
        match (&self.event_type, &self.sender) {
            (Some(event_type), _) => Tag::Type(event_type.as_str().into()),
            (None, Some(sender)) => Tag::Sender(sender.as_str().into()),
            (None, None) => Tag::Node(node.into()),
        }
    }

    /// Whether a record with these tags is one of them. By its tags, for that of a batch is about several events.
    fn is_about(&self, tags: &[Tag]) -> bool {
        let has = |asked: Option<Tag>| asked.is_none_or(|asked| tags.contains(&asked));
        let text = |asked: &Option<String>| asked.as_deref().map(Arc::from);
        has(self.event.map(Tag::Event))
            && has(self.cause.map(Tag::Cause))
            && has(text(&self.correlation).map(Tag::Correlation))
            && has(text(&self.event_type).map(Tag::Type))
            && has(text(&self.sender).map(Tag::Sender))
    }

    fn is_behind(&self, record: &Record) -> bool {
        match self.order {
            Order::Forward => record.at_unix_ms > self.until_unix_ms,
            Order::Backward => record.at_unix_ms < self.since_unix_ms,
        }
    }

    fn is_in_time(&self, record: &Record) -> bool {
        (self.since_unix_ms..=self.until_unix_ms).contains(&record.at_unix_ms)
    }
}

impl Default for Query {
    fn default() -> Self {
        Self::new()
    }
}

impl Journal {
    /// Snapshots of a node's state: what it was after each of the steps that the query selects, with the event that was
    /// handled then. [`When::entity`] and [`When::entities`] ask for entities instead.
    ///
    /// # Errors
    ///
    /// The future ends with what [`Journal`] says, and with [`ErrorKind::Undecodable`](crate::ErrorKind::Undecodable)
    /// when a state was written in another shape.
    ///
    /// # Cost
    ///
    /// The records are found by an index: by event, cause or correlation if the query names one, else by type, sender or
    /// node. Each snapshot is one read more. One call looks at most at [`limits::JOURNAL_LOOKED_AT_MAX`] records and
    /// says where to go on.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use happen::env::RealEnv;
    /// # use happen::store::{MemoryStore, Store};
    /// use happen::journal::{Journal, Query};
    ///
    /// #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// struct Orders { open: u64 }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::new(RealEnv::new())));
    /// let journal = Journal::new(store);
    /// let query = Query::new().correlation("order-789");
    /// let found = journal.when::<Orders>("orders", query).matching(|then| then.value.open > 100).await?;
    /// for then in found.snapshots {
    ///     println!("{} open after {:?}", then.value.open, then.about);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn when<S: State>(&self, node: &str, query: Query) -> When<'_, S> {
        When { journal: self, node: node.to_owned(), of: Of::State, query, matches: None }
    }

    /// As [`Journal::when`], of all documents of the node, as they stand in the store.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says.
    pub async fn when_documents(&self, node: &str, query: &Query) -> Result<Snapshots<Document>> {
        self.snapshots(node, query, |_| true, |found| Ok(Some(found))).await
    }

    /// Looks for changes of documents of a node whose keys are wanted.
    async fn snapshots<T>(
        &self,
        node: &str,
        query: &Query,
        wants: impl Fn(&str) -> bool,
        mut take: impl FnMut(Snapshot<Document>) -> Result<Option<Snapshot<T>>>,
    ) -> Result<Snapshots<T>> {
        let mut found = Snapshots { snapshots: Vec::new(), next: None, forgotten: 0 };
        let mut looked_at = 0;
        let mut walk = Walk::new(self.store(), query.read(node));
        while let Some(records) = walk.next().await? {
            for record in &records {
                if query.is_behind(record) {
                    return Ok(found);
                }
                looked_at += 1;
                if query.is_in_time(record) {
                    for change in changes(record, node, query, &wants)? {
                        let key = change.key.as_str().into();
                        match self.revision(&key, change.revision).await? {
                            Some(document) => found.snapshots.extend(take(change.of(document))?),
                            None => found.forgotten += 1,
                        }
                    }
                }
                if found.snapshots.len() >= query.at_most || looked_at >= limits::JOURNAL_LOOKED_AT_MAX {
                    found.next = Some(record.position);
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }
}

impl<'j, S: State> When<'j, S> {
    /// Of the entity with this key instead of the node's state.
    pub fn entity(self, key: impl Into<String>) -> Self {
        Self { of: Of::Entity(key.into()), ..self }
    }

    /// Of all entities of this type.
    pub fn entities(self) -> Self {
        Self { of: Of::Entities, ..self }
    }

    /// Only those of which this says yes. It is asked of what the query selected, and sees the state and what led to it.
    pub fn matching(self, matches: impl Fn(&Snapshot<S>) -> bool + Send + Sync + 'j) -> Self {
        Self { matches: Some(Box::new(matches)), ..self }
    }

    async fn ask(self) -> Result<Snapshots<S>> {
        let Self { journal, node, of, query, matches } = self;
        let wants = |key: &str| {
            Name::of(key).is_some_and(|name| {
                let is_of = match &of {
                    Of::State => name.kind == Kind::State,
                    Of::Entity(wanted) => name.kind == Kind::Entity && name.key == *wanted,
                    Of::Entities => name.kind == Kind::Entity,
                };
                is_of && name.node == node && name.state == S::NAME
            })
        };
        let take = |snapshot: Snapshot<Document>| {
            // A deletion leaves no state to show.
            let Some(value) = past::decode_document::<S>(&snapshot.value)? else { return Ok(None) };
            let snapshot = snapshot.with(value);
            Ok(matches.as_ref().is_none_or(|matches| matches(&snapshot)).then_some(snapshot))
        };
        journal.snapshots(&node, &query, wants, take).await
    }
}

impl<'j, S: State> IntoFuture for When<'j, S> {
    type Output = Result<Snapshots<S>>;
    type IntoFuture = BoxFuture<'j, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.ask())
    }
}

impl<S> fmt::Debug for When<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "When({} by {:?})", self.node, self.query)
    }
}

impl<T> Snapshot<T> {
    fn with<U>(self, value: U) -> Snapshot<U> {
        let Self { value: _, key, revision, about, step, at_unix_ms, position } = self;
        Snapshot { value, key, revision, about, step, at_unix_ms, position }
    }
}

/// A change that was found, before its document was read.
struct Found {
    key: String,
    revision: u64,
    about: Option<About>,
    step: Option<String>,
    at_unix_ms: u64,
    position: Position,
}

impl Found {
    fn of(self, document: Document) -> Snapshot<Document> {
        let Self { key, revision, about, step, at_unix_ms, position } = self;
        Snapshot { value: document, key, revision, about, step, at_unix_ms, position }
    }
}

/// The changes that a record tells of, when it is one of those asked for.
fn changes(record: &Record, node: &str, query: &Query, wants: &impl Fn(&str) -> bool) -> Result<Vec<Found>> {
    let is_of_node = record.tags.iter().any(|tag| matches!(tag, Tag::Node(of) if **of == *node));
    if !is_of_node || !query.is_about(&record.tags) {
        return Ok(Vec::new());
    }
    let about = About::of(record);
    let wire = entry::wire(record)?;
    let step = wire.step.as_ref();
    let changes = step.map_or(&wire.changes, |step| &step.changes);
    let found = changes.iter().filter(|change| wants(&change.key)).map(|change| Found {
        key: change.key.clone().into_owned(),
        revision: change.revision,
        about: about.clone(),
        step: step.map(|step| step.name.clone().into_owned()),
        at_unix_ms: record.at_unix_ms,
        position: record.position,
    });
    Ok(found.collect())
}

/// Records of the first page that is read for a query.
const RECORDS_FIRST: usize = 32;
