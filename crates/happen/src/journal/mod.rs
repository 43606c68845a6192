//! The journal: everything a store remembers, read and never written. Owns the questions that people ask of a log; does
//! not know whether the space is running whose log it is, and needs no environment.
//!
//! A [`Journal`] works over any store: that of a space which is running, or one in a folder that was opened to read only
//! while nobody, or another process, has it.

mod entry;
mod walk;
mod find;
mod web;
mod past;
mod when;
mod flows;
mod tail;
mod verify;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use happen_core::codec::WireParcel;
use happen_core::limits::PAGE_RECORDS_MAX;
use happen_core::store::{Position, Read, Record, Select, Store, Tag};
use happen_core::{Error, ErrorKind, EventId, Result};

use self::walk::Walk;
use self::web::Branch;
use crate::durable::outbox::{self, Outbox};
use crate::limits;
use crate::trace::{Cut, Trace};
use crate::tree;

pub use self::entry::{About, Change, Entry, FlowName, Point, StepEnd, StoredEvent, StoredStep};
pub use self::find::{Ambiguous, Sought};
pub use self::flows::{DeadFlow, FlowFilter, FlowUnderWay, Flows, Standing};
pub use self::past::{At, MadeBy, Reason, Then};
pub use self::tail::Tail;
pub use self::verify::{Misfit, Verification};
pub use self::when::{Query, Snapshot, Snapshots, When};
pub use happen_core::codec::PointKind;

/// The reading side of what a store remembers.
///
/// # Errors
///
/// Beside those of the store, every question may end with
///
/// - [`ErrorKind::NotFound`]: nothing of this name is remembered; the message says what was looked for;
/// - [`ErrorKind::Damaged`]: a record that the answer needs cannot be read; [`Journal::verify`] names the first one.
///
/// # Cancel safety
///
/// Nothing is ever written, so dropping a future changes nothing.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use happen::env::RealEnv;
/// use happen::journal::Journal;
/// use happen::store::{Batch, MemoryStore, NewRecord, Store, Tag};
/// use happen_core::codec::{WireEvent, WireRecord};
/// use happen_core::limits::RECORD_BYTES_MAX;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::new(RealEnv::new())));
/// // What a space with durable nodes writes for an event from outside.
/// let id = "0197a5d0-7c00-7000-8000-000000000001".parse()?;
/// let event = WireEvent::new(id, "order.placed", 1_750_000_000_000, &[0x81, 0xa5, b't', b'o', b't', b'a', b'l', 7]);
/// let mut frame = Vec::new();
/// event.encode_into(&mut frame, RECORD_BYTES_MAX)?;
/// let mut bytes = Vec::new();
/// WireRecord { event: frame.into(), ..WireRecord::default() }.encode_into(&mut bytes, RECORD_BYTES_MAX)?;
/// let tags = vec![Tag::Event(id), Tag::Correlation(id.to_string().into()), Tag::Type("order.placed".into())];
/// let record = NewRecord { tags, bytes: bytes.into() };
/// store.commit(vec![Batch { records: vec![record], ..Batch::default() }]).await.remove(0)?;
///
/// let journal = Journal::new(store);
/// let event = journal.event(id).await?.unwrap();
/// assert_eq!(event.event_type, "order.placed");
/// assert_eq!(event.json()?["total"], 7);
/// assert_eq!(journal.trace(id).await?.to_string(), "order.placed +0ms  <\n");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Journal {
    store: Arc<dyn Store>,
}

impl Journal {
    /// The journal of this store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// What waits for nodes of other processes, see [`Space::outboxes`](crate::Space::outboxes).
    ///
    /// # Errors
    ///
    /// As [`Journal`] says.
    ///
    /// # Cost
    ///
    /// Reads what waits.
    pub async fn outboxes(&self) -> Result<Vec<Outbox>> {
        outbox::outboxes(&*self.store).await
    }

    /// The event with this id; `None` when the log does not have it, or not any more.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says.
    ///
    /// # Cost
    ///
    /// One read by the event's tag.
    pub async fn event(&self, id: EventId) -> Result<Option<StoredEvent>> {
        // The record of the event is the first with its tag; a second one tells whether a flow handled it.
        let read = Read::forward(Select::tag(Tag::Event(id))).at_most(1);
        let mut walk = Walk::new(self.store(), read);
        while let Some(records) = walk.next().await? {
            for record in &records {
                if let Some(event) = event_in(record, id)? {
                    return Ok(Some(event));
                }
            }
        }
        Ok(None)
    }

    /// The tree of an event or of a correlation: up to the roots, and down to everything that followed.
    ///
    /// What became of an event at a node is told for each flow, with its registration, its steps and its attempts.
    /// [`Trace::in_columns`] breaks lines that are too long for a screen.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says.
    ///
    /// # Cost
    ///
    /// A few pages of the correlation, and one look into the index of causes for each event of the tree.
    pub async fn trace(&self, what: impl Into<Sought>) -> Result<Trace> {
        let mut branch = Branch::new(self.store());
        let asked: BTreeSet<EventId> = match what.into() {
            Sought::Event(event) => {
                self.find_event(&mut branch, event).await?;
                branch.read_around(event).await?;
                branch.follow_up(&[event]).await?;
                [event].into()
            }
            Sought::Correlation(name) => {
                let roots = branch.read_correlation(&name).await?;
                if roots.is_empty() {
                    return Err(no_correlation(&name));
                }
                let events: Vec<_> = roots.iter().copied().collect();
                branch.follow_up(&events).await?;
                roots
            }
        };
        let roots = branch.first_known(asked.iter().copied());
        branch.read_events(&roots.iter().copied().collect::<Vec<_>>()).await?;
        branch.follow_down(&roots).await?;
        branch.sort();
        let lines = tree::draw(&branch, &roots, &asked.into_iter().collect());
        let cut = match (branch.is_full, branch.is_cut()) {
            (true, _) => Cut::Limit(limits::JOURNAL_TRACE_EVENTS_MAX),
            (false, true) => Cut::Forgotten,
            (false, false) => Cut::Whole,
        };
        Ok(Trace { lines, cut })
    }

    /// The events that caused this one, causes before effects: one for each step back, all of them where an event was
    /// made from several.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says.
    pub async fn why(&self, event: EventId) -> Result<Vec<EventId>> {
        let mut branch = Branch::new(self.store());
        self.find_event(&mut branch, event).await?;
        branch.follow_up(&[event]).await?;
        Ok(branch.in_order(branch.causes_of(event)))
    }

    /// The events that followed from this one, causes before effects.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says; [`ErrorKind::Misuse`] when they are more than [`limits::JOURNAL_TRACE_EVENTS_MAX`].
    pub async fn impact(&self, event: EventId) -> Result<Vec<EventId>> {
        let mut branch = Branch::new(self.store());
        self.find_event(&mut branch, event).await?;
        let below = branch.follow_down(&[event].into()).await?;
        if branch.is_full {
            let max = limits::JOURNAL_TRACE_EVENTS_MAX;
            let what = format!(
                "more than {max} events followed; ask for the impact of a later event, or for the trace"
            );
            return Err(Error::misuse(what).at_event(event));
        }
        Ok(branch.in_order(below))
    }

    /// Those of these events that the log has, so that every cause stands before its effects: in the order of the log.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says.
    pub async fn causal_order(&self, events: impl IntoIterator<Item = EventId>) -> Result<Vec<EventId>> {
        let events: BTreeSet<EventId> = events.into_iter().collect();
        let all: Vec<EventId> = events.into_iter().collect();
        let mut places: HashMap<EventId, (Position, usize)> = HashMap::new();
        for some in all.chunks(limits::JOURNAL_TAGS_MAX) {
            let mut missing: BTreeSet<EventId> = some.iter().copied().collect();
            let tags = some.iter().copied().map(Tag::Event).collect();
            let mut walk = Walk::new(self.store(), Read::forward(Select::Tagged(tags)));
            while !missing.is_empty()
                && let Some(records) = walk.next().await?
            {
                for record in &records {
                    let wire = entry::wire(record)?;
                    let parcel = entry::parcel(record, &wire)?;
                    let found = parcel.iter().flat_map(WireParcel::events).enumerate();
                    for (number, event) in found.filter(|(_, event)| missing.remove(&event.id)) {
                        places.insert(event.id, (record.position, number));
                    }
                }
            }
        }
        let mut placed: Vec<_> = places.into_iter().map(|(event, place)| (place, event)).collect();
        placed.sort_unstable();
        Ok(placed.into_iter().map(|(_, event)| event).collect())
    }

    /// What the steps of all flows did that handled this event, the oldest first: with failed attempts, the history of
    /// its retries.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says.
    pub async fn steps(&self, event: EventId) -> Result<Vec<StoredStep>> {
        let mut walk = Walk::new(self.store(), Read::forward(Select::tag(Tag::Event(event))));
        let mut steps = Vec::new();
        while let Some(records) = walk.next().await? {
            for record in &records {
                steps.extend(Entry::read(record)?.step);
            }
        }
        Ok(steps)
    }

    async fn find_event(&self, branch: &mut Branch<'_>, event: EventId) -> Result<()> {
        branch.read_events(&[event]).await?;
        if branch.knows(event) { Ok(()) } else { Err(no_event(event)) }
    }

    fn store(&self) -> &dyn Store {
        &*self.store
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({:?})", self.store)
    }
}

/// The event of this id, when the record is the one that has it.
fn event_in(record: &Record, id: EventId) -> Result<Option<StoredEvent>> {
    let wire = entry::wire(record)?;
    let parcel = entry::parcel(record, &wire)?;
    let mut events = parcel.iter().flat_map(WireParcel::events);
    Ok(events.find(|event| event.id == id).map(|event| StoredEvent::of(event, record)))
}

#[cold]
fn not_found(what: String) -> Error {
    Error::new(ErrorKind::NotFound { what })
}

#[cold]
fn no_event(event: EventId) -> Error {
    not_found(format!(
        "event {event}: it was never stored here, or was pruned; compare the id, and whether this is its store"
    ))
    .at_event(event)
}

#[cold]
fn no_correlation(name: &str) -> Error {
    not_found(format!(
        "correlation `{name}`: no event of it is stored here, or all were pruned; compare the name with what the sender \
         chose"
    ))
}

// A page of a walk is never larger than what one call gives.
const _: () = assert!(limits::JOURNAL_ROWS_MAX <= PAGE_RECORDS_MAX, "rows of one call fit a page");
