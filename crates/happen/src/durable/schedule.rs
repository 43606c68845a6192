//! Schedules: events that come again and again. Owns their documents, what is made up for when times were missed, and
//! what is committed when one is due; when that is looked after is in `agenda.rs`, and which times there are in `cron.rs`.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;

use happen_core::env::BoxFuture;
use happen_core::event::Purpose;
use happen_core::hash::digest;
use happen_core::limits::PAGE_RECORDS_MAX;
use happen_core::payload::ErasedPayload;
use happen_core::store::{Batch, Content, Document as Stored, Key, List, Store};
use happen_core::{Dynamic, Error, ErrorKind, Event, EventId, EventType, Payload, Result, State};
use serde::{Deserialize, Serialize};

use super::cron::{IntoTiming, Timing};
use super::document::{Document, is_conflict};
use super::keys::{SCHEDULES, name_of, named};
use super::timer::{self, Arriving, Blob, accept, accept_with, check_taken, is_recorded};
use super::{Durable, outside};
use crate::limits;
use crate::send::{Destination, Extras, Sender};
use crate::space::SpaceInner;
use crate::stamp;

/// What becomes of due times that were missed because no process was there, or because the clock was set forward. That some
/// were is told as `system.schedule-missed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Missed {
    /// Nothing: the next one is the first that comes. A time counts as missed when it is over by more than
    /// [`SCHEDULE_LATE_MS_MAX`](crate::limits::SCHEDULE_LATE_MS_MAX).
    Skip,
    /// The last of them is made up for, once.
    #[default]
    Once,
    /// Each of them is made up for, the oldest first; of more than
    /// [`SCHEDULE_MISSED_MAX`](crate::limits::SCHEDULE_MISSED_MAX) the last ones.
    All,
}

/// A schedule that nobody has defined yet.
///
/// # Delivery
///
/// `.await` is ready once it is stored. Defining it again, as a program does at each start, changes nothing; what is
/// defined differently is taken over, and with other times the next one is counted from now. Whether it is paused, and
/// what was due, stays.
///
/// Each time it is due, one commit moves it on and has the node accept the event: exactly once, whatever crashes. The
/// event is the root of its own correlation. Its id follows from the name and the time, and its metadata `schedule` and
/// `due_unix_ms` tell both. It is defined by a commit of its own, also where a step does it.
///
/// # Cancel safety
///
/// Dropping the future leaves open whether the schedule is defined; defining it again is safe.
#[must_use = "nothing is defined before `.await`"]
pub struct Scheduling<'s, T> {
    space: &'s Arc<SpaceInner>,
    name: String,
    timing: Result<Timing>,
    to: Result<String>,
    payload: T,
    missed: Missed,
}

/// The schedules of a space.
#[derive(Clone, Copy)]
pub struct Schedules<'s> {
    space: &'s Arc<SpaceInner>,
}

/// A schedule as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    name: String,
    stored: StoredSchedule,
}

/// What the document of a schedule says. One without a timing stands for none.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredSchedule {
    timing: String,
    to: String,
    event_type: String,
    payload: Blob,
    missed: Missed,
    paused: bool,
    /// When it is due next; 0 for never.
    due_unix_ms: u64,
    /// The due time that was accepted last, and when; 0 for never.
    last_due_unix_ms: u64,
    last_unix_ms: u64,
}

impl State for StoredSchedule {
    const NAME: &'static str = "schedule";
    const VERSION: u32 = 1;
}

impl<'s, T: Payload> Scheduling<'s, T> {
    pub(crate) fn new(
        space: &'s Arc<SpaceInner>,
        name: &str,
        timing: impl IntoTiming,
        to: &Destination<'s>,
        payload: T,
    ) -> Self {
        let timing = timing.into_timing().map_err(super::cron::CronError::into_misuse);
        let to = to.one_name(space);
        Self { space, name: name.to_owned(), timing, to, payload, missed: Missed::default() }
    }

    /// Says what becomes of due times that were missed. Default [`Missed::Once`].
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }
}

impl<'s, T: Payload> IntoFuture for Scheduling<'s, T> {
    type Output = Result<()>;
    type IntoFuture = BoxFuture<'s, Result<()>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { space, name, timing, to, payload, missed } = self;
        Box::pin(async move {
            if name.is_empty() {
                return Err(Error::misuse("a schedule needs a name, by which it is known at the next start"));
            }
            let mut bytes = Vec::new();
            payload.encode(&mut bytes)?;
            let wanted = StoredSchedule {
                timing: timing?.to_string(),
                to: to?,
                event_type: payload.event_type().as_str().to_owned(),
                payload: Blob(bytes.into()),
                missed,
                ..StoredSchedule::default()
            };
            Schedules { space }.define(&name, wanted).await
        })
    }
}

impl<'s> Schedules<'s> {
    pub(crate) const fn of(space: &'s Arc<SpaceInner>) -> Self {
        Self { space }
    }

    /// All schedules, by name.
    ///
    /// # Errors
    ///
    /// What the store says.
    pub async fn list(&self) -> Result<Vec<Schedule>> {
        all_in(&super::of(self.space)?.store).await
    }

    /// Lets due times pass, also over restarts, until [`Schedules::resume`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when there is no schedule of this name; what the store says.
    pub async fn pause(&self, name: &str) -> Result<()> {
        self.change(name, |schedule| schedule.paused = true).await
    }

    /// Goes on with the first due time from now on. Of one that is not paused it counts the next time anew, as is wanted
    /// when the clock had been far ahead.
    ///
    /// # Errors
    ///
    /// As [`Schedules::pause`].
    pub async fn resume(&self, name: &str) -> Result<()> {
        let now = self.space.env.unix_ms();
        self.change(name, move |schedule| schedule.resumes(now)).await
    }

    /// Takes a schedule away. False when there is none of this name.
    ///
    /// # Errors
    ///
    /// What the store says.
    pub async fn remove(&self, name: &str) -> Result<bool> {
        let durable = super::of(self.space)?;
        let document = durable.schedule(name)?;
        if document.read().await?.value.is_none() {
            return Ok(false);
        }
        let removed =
            outside::change(durable, &document, None, |_| Ok(StoredSchedule::default()), |_, _| Ok(())).await;
        durable.note_schedule(&document);
        removed.map(|()| true)
    }

    /// Has the node accept the event now, beside the due times and also of a paused schedule. Its metadata have
    /// `triggered`. Gives its id.
    ///
    /// # Errors
    ///
    /// As [`Schedules::pause`], and what keeps the node from taking the event.
    pub async fn trigger(&self, name: &str) -> Result<EventId> {
        self.space.check_running()?;
        let durable = super::of(self.space)?;
        let schedule = self.existing(durable, name).await?;
        let now = self.space.env.unix_ms();
        let id = crate::local::with_local(self.space, |local| local.next_id(now));
        let arriving = schedule.arriving(self.space, name, id, now, Why::Triggered)?;
        accept(self.space, durable, &arriving).await.map_err(|error| error.at_event(id))?;
        Ok(id)
    }

    /// Makes up for the due times from `from_unix_ms` up to but without `until_unix_ms`, the oldest first, except for
    /// those whose event was accepted before. Times that are still to come are left to come. Gives the ids.
    ///
    /// # Errors
    ///
    /// As [`Schedules::trigger`], and [`ErrorKind::Misuse`] when there are more than
    /// [`SCHEDULE_BACKFILL_MAX`](crate::limits::SCHEDULE_BACKFILL_MAX) due times. After an error the same call goes on
    /// where this one stood.
    pub async fn backfill(&self, name: &str, from_unix_ms: u64, until_unix_ms: u64) -> Result<Vec<EventId>> {
        self.space.check_running()?;
        let durable = super::of(self.space)?;
        let schedule = self.existing(durable, name).await?;
        let timing = schedule.timing()?;
        let until = until_unix_ms.min(self.space.env.unix_ms().saturating_add(1));
        let mut due_times = Vec::new();
        let next = |after: u64| timing.next_after(after, schedule.due_unix_ms).filter(|due| *due < until);
        let mut at = match from_unix_ms.checked_sub(1) {
            Some(before) => next(before),
            None => next(0),
        };
        while let Some(due) = at {
            if due_times.len() >= limits::SCHEDULE_BACKFILL_MAX {
                let max = limits::SCHEDULE_BACKFILL_MAX;
                return Err(Error::misuse(format!(
                    "schedule `{name}` was due more than {max} times in that span; make up for it in parts"
                )));
            }
            due_times.push(due);
            at = next(due);
        }
        let mut accepted = Vec::new();
        for due in due_times {
            let id = id_of(durable, name, due);
            if is_recorded(durable, id).await? {
                continue;
            }
            let arriving = schedule.arriving(self.space, name, id, due, Why::Due)?;
            match accept(self.space, durable, &arriving).await {
                Ok(()) => accepted.push(id),
                // Its time came just now.
                Err(error) if is_conflict(&error) && is_recorded(durable, id).await? => {}
                Err(error) => return Err(error.at_event(id)),
            }
        }
        Ok(accepted)
    }

    async fn define(&self, name: &str, wanted: StoredSchedule) -> Result<()> {
        let durable = super::of(self.space)?;
        let document = durable.schedule(name)?;
        let found = document.read().await?;
        if found.value.says_the_same(&wanted) {
            return Ok(());
        }
        let now = self.space.env.unix_ms();
        let take_over = move |known: StoredSchedule| {
            let mut schedule = wanted.clone();
            schedule.paused = known.paused;
            schedule.last_due_unix_ms = known.last_due_unix_ms;
            schedule.last_unix_ms = known.last_unix_ms;
            schedule.due_unix_ms =
                if known.timing == schedule.timing { known.due_unix_ms } else { schedule.first_after(now) };
            Ok(schedule)
        };
        let defined = outside::change(durable, &document, None, take_over, |_, _| Ok(())).await;
        // Also when it failed: it may be defined all the same.
        durable.note_schedule(&document);
        defined
    }

    async fn existing(&self, durable: &Durable, name: &str) -> Result<StoredSchedule> {
        let found = durable.schedule(name)?.read().await?;
        if found.value.is_none() { Err(no_such(name)) } else { Ok(found.value.clone()) }
    }

    async fn change(
        &self,
        name: &str,
        change: impl Fn(&mut StoredSchedule) + Clone + Send + Sync + 'static,
    ) -> Result<()> {
        let durable = super::of(self.space)?;
        let document = durable.schedule(name)?;
        let missing = name.to_owned();
        let changed = move |mut schedule: StoredSchedule| {
            if schedule.is_none() {
                return Err(no_such(&missing));
            }
            change(&mut schedule);
            Ok(schedule)
        };
        let changed = outside::change(durable, &document, None, changed, |_, _| Ok(())).await;
        durable.note_schedule(&document);
        changed
    }
}

impl Schedule {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When it is due, as the text of [`Cron`](crate::Cron) or as `@every`.
    #[must_use]
    pub fn timing(&self) -> &str {
        &self.stored.timing
    }

    /// The id of the node that its events go to.
    #[must_use]
    pub fn node_id(&self) -> &str {
        &self.stored.to
    }

    /// The type of its events.
    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.stored.event_type
    }

    /// When it is due next, in milliseconds since 1970; `None` while it is paused, or for never.
    #[must_use]
    pub fn due_unix_ms(&self) -> Option<u64> {
        self.stored.due()
    }

    /// The due time whose event was accepted last, in milliseconds since 1970.
    #[must_use]
    pub fn last_due_unix_ms(&self) -> Option<u64> {
        (self.stored.last_due_unix_ms > 0).then_some(self.stored.last_due_unix_ms)
    }

    /// When that event was accepted, in milliseconds since 1970.
    #[must_use]
    pub fn last_unix_ms(&self) -> Option<u64> {
        (self.stored.last_unix_ms > 0).then_some(self.stored.last_unix_ms)
    }

    /// Whether its due times pass.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.stored.paused
    }

    /// What becomes of missed due times.
    #[must_use]
    pub fn missed(&self) -> Missed {
        self.stored.missed
    }
}

/// Why an event of a schedule comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Due,
    Triggered,
}

impl StoredSchedule {
    fn is_none(&self) -> bool {
        self.timing.is_empty()
    }

    fn resumes(&mut self, now: u64) {
        self.paused = false;
        self.due_unix_ms = self.next_after(now);
    }

    fn says_the_same(&self, other: &Self) -> bool {
        self.timing == other.timing
            && self.to == other.to
            && self.event_type == other.event_type
            && self.payload == other.payload
            && self.missed == other.missed
    }

    fn timing(&self) -> Result<Timing> {
        Timing::parse(&self.timing).map_err(super::cron::CronError::into_misuse)
    }

    fn due(&self) -> Option<u64> {
        (!self.is_none() && !self.paused && self.due_unix_ms > 0).then_some(self.due_unix_ms)
    }

    /// The first due time of one that is defined now.
    fn first_after(&self, now: u64) -> u64 {
        match self.timing() {
            Ok(timing) => timing.next_after(now, now).unwrap_or(0),
            Err(_) => 0,
        }
    }

    fn next_after(&self, unix_ms: u64) -> u64 {
        self.timing().ok().and_then(|timing| timing.next_after(unix_ms, self.due_unix_ms)).unwrap_or(0)
    }

    fn arriving(
        &self,
        space: &Arc<SpaceInner>,
        name: &str,
        id: EventId,
        due_unix_ms: u64,
        why: Why,
    ) -> Result<Arriving> {
        let mut extras = Extras::default();
        extras.metadata.insert("schedule".to_owned(), name.into());
        extras.metadata.insert("due_unix_ms".to_owned(), due_unix_ms.into());
        if why == Why::Triggered {
            extras.metadata.insert("triggered".to_owned(), true.into());
        }
        let event_type = EventType::new(&self.event_type);
        let payload = Dynamic::from_bytes(event_type.clone(), Arc::clone(&self.payload.0));
        let envelope = stamp::of_nobody(space, id, event_type, Purpose::Send);
        let mut event = Event::from_parts(envelope, payload);
        stamp::complete(Sender::Space(space), &mut event, Some(&extras))?;
        let to = timer::whereto(space, &self.to)?;
        check_taken(space, &event, &to)?;
        let framed = space.framed_arrival(&event)?;
        Ok(Arriving { event: Arc::new(event), framed, to })
    }
}

impl Durable {
    fn schedule(&self, name: &str) -> Result<Arc<Document<StoredSchedule>>> {
        self.documents.passing(&named(SCHEDULES, name), StoredSchedule::is_none)
    }

    /// Has the agenda know what a schedule says now; where that is not known, that it has to be looked at.
    fn note_schedule(&self, document: &Document<StoredSchedule>) {
        let due = document.known().map_or(Some(0), |known| known.value.due());
        self.agenda.set(document.key(), due);
    }
}

/// What is done with due times that have come.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// The due time whose event comes now.
    fires: Option<u64>,
    /// The due time after it; 0 for never.
    next: u64,
}

/// What is done at `now` about a schedule that was due at `due` first.
fn plan(timing: &Timing, missed: Missed, due: u64, now: u64) -> Plan {
    let next_after = |unix_ms| timing.next_after(unix_ms, due).unwrap_or(0);
    let last = timing.last_until(now, due).map_or(due, |last| last.max(due));
    match missed {
        Missed::Skip => {
            let on_time = now - last <= limits::SCHEDULE_LATE_MS_MAX;
            Plan { fires: on_time.then_some(last), next: next_after(now) }
        }
        Missed::Once => Plan { fires: Some(last), next: next_after(now) },
        Missed::All => {
            let mut first = last;
            for _ in 1..limits::SCHEDULE_MISSED_MAX {
                let Some(earlier) = timing.last_until(first - 1, due).filter(|earlier| *earlier >= due)
                else {
                    break;
                };
                first = earlier;
            }
            Plan { fires: Some(first), next: next_after(first) }
        }
    }
}

/// Commits that a schedule was due: its next due time, and the acceptance of its event.
///
/// # Errors
///
/// What the store says, what keeps the node from the event, and what cannot be read; it is due still.
pub(super) async fn fire(space: &Arc<SpaceInner>, durable: &Arc<Durable>, key: &Key) -> Result<()> {
    let name = name_of(key, SCHEDULES);
    let document = durable.schedule(&name)?;
    let found = document.read().await?;
    let schedule = &found.value;
    let Some(due) = schedule.due() else { return Ok(()) };
    let now = space.env.unix_ms();
    if due > now {
        durable.agenda.set(key, Some(due));
        return Ok(());
    }
    let plan = plan(&schedule.timing()?, schedule.missed, due, now);
    let at = Some(found.revision);
    let fired = match plan.fires {
        None => move_on(durable, &document, at, plan.next).await,
        Some(fires) => {
            let id = id_of(durable, &name, fires);
            let arriving = schedule.arriving(space, &name, id, fires, Why::Due)?;
            let next = plan.next;
            let change = move |schedule: StoredSchedule| {
                let (last_due_unix_ms, last_unix_ms) = (fires, now);
                Ok(StoredSchedule { due_unix_ms: next, last_due_unix_ms, last_unix_ms, ..schedule })
            };
            match accept_with(space, durable, &document, at, change, &arriving).await {
                // It was made up for before its time came, by a clock that was ahead.
                Err(error) if is_conflict(&error) && is_recorded(durable, id).await? => {
                    move_on(durable, &document, at, next).await
                }
                fired => fired,
            }
        }
    };
    match fired {
        Err(error) if is_conflict(&error) => {
            // Somebody changes it just now, and what they make of it is looked at next.
            durable.agenda.set(key, Some(now + limits::STORE_WAIT_MS));
            Ok(())
        }
        Err(error) => Err(error),
        Ok(()) => {
            if plan.fires != Some(due) {
                let told = serde_json::json!({ "schedule": name, "from_unix_ms": due, "until_unix_ms": now });
                space.announce("system.schedule-missed", told);
            }
            durable.note_schedule(&document);
            Ok(())
        }
    }
}

/// Commits the next due time without an event.
async fn move_on(
    durable: &Arc<Durable>,
    document: &Arc<Document<StoredSchedule>>,
    at: Option<u64>,
    next: u64,
) -> Result<()> {
    let change = move |schedule| Ok(StoredSchedule { due_unix_ms: next, ..schedule });
    outside::change(durable, document, at, change, |_, _| Ok(())).await
}

/// The id of the event of a due time: the same, whoever makes it and however often.
fn id_of(durable: &Durable, name: &str, due_unix_ms: u64) -> EventId {
    let identity = durable.identity();
    let hash = digest(&[identity.as_slice(), b"schedule", name.as_bytes(), &due_unix_ms.to_le_bytes()]);
    EventId::derived(due_unix_ms, EventId::MIN, 0, hash)
}

/// The node that a schedule's events go to.
///
/// # Errors
///
/// When it cannot be read.
pub(super) fn node_of(stored: &Stored) -> Result<Option<String>> {
    Ok(decode(stored)?.map(|schedule| schedule.to))
}

/// Notes a schedule that the store has; tells when it fits no node.
///
/// # Errors
///
/// When it cannot be read.
pub(super) fn recover(space: &Arc<SpaceInner>, durable: &Durable, stored: &Stored) -> Result<Option<String>> {
    let Some(schedule) = decode(stored)? else { return Ok(None) };
    durable.agenda.set(&stored.key, schedule.due());
    let why = match schedule.timing() {
        Ok(_) => timer::unfit(space, &schedule.to, &schedule.event_type),
        Err(_) => Some(format!("is due at `{}`, which this version does not know", schedule.timing)),
    };
    Ok(why.map(|why| format!("`{}` {why}", stored.key)))
}

fn decode(stored: &Stored) -> Result<Option<StoredSchedule>> {
    let Some(content) = &stored.content else { return Ok(None) };
    happen_core::state::decode_document(content.version, &content.bytes)
        .map(Some)
        .map_err(|error| error.context(format!("document `{}`", stored.key)))
}

#[cold]
pub(crate) fn no_such(name: &str) -> Error {
    Error::new(ErrorKind::NotFound { what: format!("no schedule `{name}` is there") })
}

/// All schedules of a store, by name.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn all_in(store: &Arc<dyn Store>) -> Result<Vec<Schedule>> {
    let mut all = Vec::new();
    let mut after: Option<Key> = None;
    loop {
        let list = List { prefix: SCHEDULES.into(), after: after.take(), documents_max: PAGE_RECORDS_MAX };
        let page = store.list(list).await?;
        let Some(last) = page.last() else { break };
        after = Some(Arc::clone(&last.key));
        for document in &page {
            let Some(stored) = decode(document)? else { continue };
            all.push(Schedule { name: name_of(&document.key, SCHEDULES).into_owned(), stored });
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// What is done to the document of a schedule in a store that no process has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Edit {
    Pause,
    Resume,
    Remove,
}

/// The node that takes the events of the schedule; `None` when there is no schedule of this name.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn taker_of(store: &Arc<dyn Store>, name: &str) -> Result<Option<String>> {
    let Some(found) = store.document(&named(SCHEDULES, name)).await? else { return Ok(None) };
    Ok(decode(&found)?.map(|schedule| schedule.to))
}

/// The node that takes the events of the schedule, and the batch that does it.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] when there is no schedule of this name; what the store says.
pub(crate) async fn edited(
    store: &Arc<dyn Store>,
    name: &str,
    edit: Edit,
    now: u64,
) -> Result<(String, Batch)> {
    let found = store.document(&named(SCHEDULES, name)).await?.ok_or_else(|| no_such(name))?;
    let mut schedule = decode(&found)?.ok_or_else(|| no_such(name))?;
    let mut write = super::by_hand::deletion(&found);
    let node = schedule.to.clone();
    match edit {
        Edit::Pause => schedule.paused = true,
        Edit::Resume => schedule.resumes(now),
        Edit::Remove => return Ok((node, Batch { documents: vec![write], ..Batch::default() })),
    }
    let bytes = happen_core::state::encode(&schedule)?;
    let (name, version) = (StoredSchedule::NAME.into(), StoredSchedule::VERSION);
    write.content = Some(Content { name, version, bytes: bytes.into() });
    Ok((node, Batch { documents: vec![write], ..Batch::default() }))
}

impl<T> fmt::Debug for Scheduling<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the schedule `{}`, not defined yet", self.name)
    }
}

impl fmt::Debug for Schedules<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the schedules of a space")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_due_time_is_missed_when_it_is_over_by_more_than_the_limit() {
        let timing = Timing::parse("@hourly").unwrap();
        let (hour, late) = (3_600_000, limits::SCHEDULE_LATE_MS_MAX);
        for (now, fires) in [
            (hour, Some(hour)),
            (hour + late - 1, Some(hour)),
            (hour + late, Some(hour)),
            (hour + late + 1, None),
        ] {
            assert_eq!(plan(&timing, Missed::Skip, hour, now), Plan { fires, next: 2 * hour }, "{now}");
            assert_eq!(plan(&timing, Missed::Once, hour, now), Plan { fires: Some(hour), next: 2 * hour });
        }
    }
}
