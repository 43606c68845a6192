//! Walking the whole log and checking that it fits together. Owns what has to fit and how the first misfit is named; does
//! not know checksums of a store, which speak for themselves when a record is read.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use happen_core::codec::{CauseLink, WireEvent, WireParcel, WireStep};
use happen_core::hash::{EventHash, hash_event};
use happen_core::limits::PAGE_RECORDS_MAX;
use happen_core::store::{List, Order, Position, Read, Record, Select, Start, Tag};
use happen_core::{Error, ErrorKind, EventId, Result};

use super::entry;
use super::walk::Walk;
use super::{Journal, limits};
use crate::global;
use crate::retention::Anchor;

/// What a verification counted, and the first record that does not fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// Records that were looked at.
    pub records: u64,
    /// Events whose content was checked against their hash.
    pub events: u64,
    /// Steps whose event was looked for.
    pub steps: u64,
    /// Causes whose hash is the one that their effect tells.
    pub causes: u64,
    /// Causes that could not be checked: they are not stored here, or their effect does not tell their hash. Here the web
    /// that can be verified ends.
    pub edge: u64,
    /// Steps whose event was pruned.
    pub forgotten: u64,
    /// Records that are about no event and no node: changes of global state, which can be read, and what somebody else
    /// wrote, which was not checked.
    pub others: u64,
    /// Things that do not fit.
    pub misfits: u64,
    /// The first of them.
    pub first: Option<Misfit>,
    /// Whether the log was walked to its end; not so when the store could not read on.
    pub is_complete: bool,
}

/// A record that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Misfit {
    /// Where it stands; when the store could not read it, the position before it.
    pub position: Position,
    /// The event that it is about.
    pub event: Option<EventId>,
    /// What does not fit.
    pub what: String,
}

impl Verification {
    /// Whether everything was looked at and fits.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_complete && self.misfits == 0
    }

    /// The same, unless something does not fit.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Damaged`] with the first misfit.
    pub fn into_result(self) -> Result<Self> {
        let Some(first) = &self.first else { return Ok(self) };
        let what = format!(
            "the log: {first}; {} of {} records were looked at and {} things do not fit; records elsewhere are \
             readable; keep a copy and restore a backup",
            self.records,
            if self.is_complete { "all" } else { "more" },
            self.misfits
        );
        let error = Error::new(ErrorKind::Damaged { what });
        Err(match first.event {
            Some(event) => error.at_event(event),
            None => error,
        })
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "position {}", self.position)?;
        if let Some(event) = self.event {
            write!(f, ", event {event}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl Journal {
    /// Walks the whole log and checks that every record can be read and stands in order, that every event fits its hash
    /// and the hashes of its causes, and that every step has its event.
    ///
    /// One flipped bit of an event is found at the record that has it, except in what its hash does not cover: the way
    /// it came by. Who changes an event and its hash with it is found at its effects.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says, but for damage, which is what the answer tells; [`Verification::into_result`] makes it an
    /// error.
    ///
    /// # Cost
    ///
    /// Reads the log once, a page at a time, and a record by its tag for each cause that stands far back. Memory does not
    /// grow with the log: a page, and the hashes of the last [`limits::JOURNAL_HASHES_MAX`] events.
    pub async fn verify(&self) -> Result<Verification> {
        self.verify_with(|_| {}).await
    }

    /// As [`Journal::verify`], and tells after each page how far it is.
    ///
    /// # Errors
    ///
    /// As [`Journal::verify`].
    pub async fn verify_with(&self, mut progress: impl FnMut(&Verification) + Send) -> Result<Verification> {
        let mut check = Check {
            journal: self,
            found: Verification::default(),
            hashes: Hashes::default(),
            pruned: self.pruned().await?,
            last: (Position::START, 0),
        };
        let mut start = Start::Edge;
        loop {
            let read =
                Read { select: Select::All, start, order: Order::Forward, records_max: PAGE_RECORDS_MAX };
            let page = match self.store.read(read).await {
                Ok(page) => page,
                Err(error) if is_damage(&error) => {
                    check.misfit(check.last.0, error.event_id(), told(&error));
                    return Ok(check.found);
                }
                Err(error) => return Err(error),
            };
            for record in &page.records {
                check.record(record).await?;
            }
            progress(&check.found);
            let Some(next) = page.next else { break };
            start = Start::Position(next);
        }
        check.found.is_complete = true;
        Ok(check.found)
    }

    /// What was pruned, as the anchor tells it that whoever prunes leaves.
    async fn pruned(&self) -> Result<ForgottenUntil> {
        let anchors = List { prefix: ANCHORS.into(), after: None, documents_max: 1 };
        let anchors = self.store.list(anchors).await?;
        let until =
            anchors.first().map(|anchor| Anchor::of(anchor).map_or(u64::MAX, |told| told.newest_unix_ms));
        // An id may be ahead of the store's clock by what the clocks of two processes differ.
        Ok(ForgottenUntil(until.map(|until| until.saturating_add(limits::JOURNAL_PREFIX_EARLY_MS))))
    }

    /// The hash of an event, from the record that has it; `None` when no record has it.
    async fn stored(&self, event: EventId) -> Result<Option<Stored>> {
        let mut walk = Walk::new(self.store(), Read::forward(Select::tag(Tag::Event(event))).at_most(1));
        while let Some(records) = walk.next().await? {
            for record in &records {
                let wire = entry::wire(record)?;
                let parcel = entry::parcel(record, &wire)?;
                let mut events = parcel.iter().flat_map(WireParcel::events);
                if let Some(found) = events.find(|found| found.id == event) {
                    return Ok(Some(Stored { hash: found.hash }));
                }
            }
        }
        Ok(None)
    }
}

struct Stored {
    hash: Option<EventHash>,
}

/// The time up to which events may have been forgotten, in milliseconds since 1970; `None` when none was.
#[derive(Debug, Clone, Copy)]
struct ForgottenUntil(Option<u64>);

impl ForgottenUntil {
    /// Whether the record that has this event may have been forgotten: it was not committed before the event was made.
    fn covers(self, event: EventId) -> bool {
        self.0.is_some_and(|until| event.unix_ms() <= until)
    }
}

/// A verification under way.
struct Check<'j> {
    journal: &'j Journal,
    found: Verification,
    hashes: Hashes,
    pruned: ForgottenUntil,
    /// Position and time of the record before.
    last: (Position, u64),
}

impl Check<'_> {
    async fn record(&mut self, record: &Record) -> Result<()> {
        self.found.records += 1;
        let (position, at_unix_ms) = self.last;
        self.last = (record.position, record.at_unix_ms);
        let event = entry::event_of(record);
        if record.position <= position {
            self.misfit(record.position, event, format!("it stands behind position {position}"));
        }
        if record.at_unix_ms < at_unix_ms {
            self.misfit(record.position, event, "its time is before that of the record before it".to_owned());
        }
        if record.tags.iter().all(|tag| matches!(tag, Tag::Declared(_))) {
            self.found.others += 1;
            return Ok(());
        }
        let wire = match global::is_change(record) {
            Ok(true) => {
                self.found.others += 1;
                return Ok(());
            }
            Ok(false) => entry::wire(record),
            Err(error) => Err(error),
        };
        let wire = match wire {
            Ok(wire) => wire,
            Err(error) => {
                self.misfit(record.position, event, told(&error));
                return Ok(());
            }
        };
        match entry::parcel(record, &wire) {
            Ok(parcel) => {
                for event in parcel.iter().flat_map(WireParcel::events) {
                    self.event(record, event).await?;
                }
            }
            Err(error) => self.misfit(record.position, event, told(&error)),
        }
        match &wire.step {
            Some(step) => self.step(record, step).await,
            None => Ok(()),
        }
    }

    async fn event(&mut self, record: &Record, event: &WireEvent<'_>) -> Result<()> {
        self.found.events += 1;
        let (position, id) = (record.position, event.id);
        match event.hash {
            None => self.misfit(position, Some(id), "it has no hash".to_owned()),
            Some(hash) if hash != hash_event(event) => {
                let what = "it does not fit its hash: it was changed, or its hash was";
                self.misfit(position, Some(id), what.to_owned());
            }
            Some(hash) => {
                if self.hashes.get(id).is_some_and(|other| other != hash) {
                    self.misfit(
                        position,
                        Some(id),
                        "an earlier record has another event of this id".to_owned(),
                    );
                }
            }
        }
        if !record.tags.contains(&Tag::Event(id)) {
            self.misfit(
                position,
                Some(id),
                "it is not found by its id, for its record has another tag".to_owned(),
            );
        }
        for cause in event.causes() {
            self.cause(record, id, cause).await?;
        }
        if let Some(hash) = event.hash {
            self.hashes.keep(id, hash);
        }
        Ok(())
    }

    async fn cause(&mut self, record: &Record, event: EventId, link: &CauseLink<'_>) -> Result<()> {
        let CauseLink::Known { id: cause, hash } = link else {
            self.found.edge += 1;
            return Ok(());
        };
        let found = match self.hashes.get(*cause) {
            Some(found) => Some(found),
            None => match self.journal.stored(*cause).await {
                Ok(stored) => stored.and_then(|stored| stored.hash),
                Err(error) if is_damage(&error) => {
                    let what = format!("its cause {cause} cannot be read: {}", told(&error));
                    self.misfit(record.position, Some(event), what);
                    return Ok(());
                }
                Err(error) => return Err(error),
            },
        };
        match found {
            Some(found) if found == *hash => self.found.causes += 1,
            Some(_) => {
                let what =
                    format!("it was caused by an event {cause} with another hash: the cause was changed");
                self.misfit(record.position, Some(event), what);
            }
            None => self.found.edge += 1,
        }
        Ok(())
    }

    async fn step(&mut self, record: &Record, step: &WireStep<'_>) -> Result<()> {
        self.found.steps += 1;
        let event = step.event;
        for tag in [Tag::Event(event), Tag::Node(step.flow.node.as_ref().into())] {
            if !record.tags.contains(&tag) {
                let what =
                    format!("its step is not found by its {}, for its record has another tag", tag.kind());
                self.misfit(record.position, Some(event), what);
            }
        }
        if self.hashes.get(event).is_some() {
            return Ok(());
        }
        match self.journal.stored(event).await {
            Ok(Some(_)) => {}
            Ok(None) if self.pruned.covers(event) => self.found.forgotten += 1,
            Ok(None) => {
                let what = "it tells of a step, and no record has the event".to_owned();
                self.misfit(record.position, Some(event), what);
            }
            // The record that has the event is told of where it stands.
            Err(error) if is_damage(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn misfit(&mut self, position: Position, event: Option<EventId>, what: String) {
        self.found.misfits += 1;
        self.found.first.get_or_insert(Misfit { position, event, what });
    }
}

/// The hashes of the events that were met last.
#[derive(Default)]
struct Hashes {
    by_event: HashMap<EventId, EventHash>,
    order: VecDeque<EventId>,
}

impl Hashes {
    fn get(&self, event: EventId) -> Option<EventHash> {
        self.by_event.get(&event).copied()
    }

    fn keep(&mut self, event: EventId, hash: EventHash) {
        if self.by_event.insert(event, hash).is_some() {
            return;
        }
        self.order.push_back(event);
        if self.order.len() > limits::JOURNAL_HASHES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_event.remove(&oldest);
        }
    }
}

fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged { .. })
}

/// An error and its causes in one line.
fn told(error: &Error) -> String {
    error.chain().join(": ")
}

/// What the keys of documents begin with that tell what was pruned.
const ANCHORS: &str = "anchor/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_kept_up_to_the_limit_and_the_oldest_goes() {
        let mut hashes = Hashes::default();
        let id = |number: usize| EventId::from_halves(7, number as u64).unwrap();
        let max = limits::JOURNAL_HASHES_MAX;
        for number in 0..=max {
            hashes.keep(id(number), EventHash::from([0; 32]));
            let first_is_there = hashes.get(id(0)).is_some();
            match number + 1 {
                len if len + 1 == max || len == max => assert!(first_is_there, "{len}"),
                len if len > max => assert!(!first_is_there, "{len}"),
                _ => {}
            }
        }
        assert_eq!((hashes.by_event.len(), hashes.order.len()), (max, max));
    }
}
