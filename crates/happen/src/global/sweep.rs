//! What deletes entries that have expired, and large values that were never finished. Owns when; one task for each
//! space that needs it, which ends with the space. Does not know who waits to hear of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use happen_core::env::Env;
use happen_core::limits::PAGE_RECORDS_MAX;
use happen_core::store::{Key, List, Record, Store};
use happen_core::{Error, ErrorKind, Result};

use super::commons::Commons;
use super::format::{self, Author, Kept, Made, Told};
use super::large;
use super::watch::{Following, closed};
use super::write::{Place, batch, told};
use crate::limits::{
    GLOBAL_EXPIRIES_MAX, GLOBAL_SWEEP_COMMITS, GLOBAL_SWEEP_MS_MAX, GLOBAL_SWEEP_RETRY_MS,
    LARGE_UNFINISHED_MS,
};
use crate::space::SpaceInner;

/// Begins the sweep of a space, unless there is one.
///
/// The first who writes an entry that expires begins it, who watches, who writes a large value, and who finds something
/// that an earlier process left to expire. Spaces that do none of these have none.
pub(super) fn begin(space: &Arc<SpaceInner>) {
    if space.commons.has_stopped() || !space.commons.begin_sweep() {
        return;
    }
    let sweep = Sweep {
        space: Arc::downgrade(space),
        commons: Arc::clone(&space.commons),
        env: Arc::clone(&space.env),
        due: Due::new(GLOBAL_EXPIRIES_MAX),
        unfinished: BTreeMap::new(),
        look_at: None,
    };
    space.env.spawn(Box::pin(sweep.run()));
}

/// It holds the space weakly, and the store only while it asks it.
struct Sweep {
    space: Weak<SpaceInner>,
    commons: Arc<Commons>,
    env: Arc<dyn Env>,
    due: Due,
    /// Large values that are being written, with the time from which they count as given up.
    unfinished: BTreeMap<String, u64>,
    /// When to look for others, of which it is known that there may be some.
    look_at: Option<u64>,
}

/// What expires when: so many entries as may be remembered, those that are due first.
struct Due {
    by_time: BTreeSet<(u64, String)>,
    by_name: HashMap<String, (u64, u64)>,
    /// From here on there may be others that were not remembered.
    beyond: Option<u64>,
    entries_max: usize,
}

/// Why the sweep wakes up.
enum Woken {
    /// Something was changed.
    Changed(Result<Vec<Record>>),
    /// A large value was begun or given up.
    Large,
    /// Something is due, or may be.
    Late,
}

impl Sweep {
    async fn run(mut self) {
        loop {
            let Err(error) = self.sweep().await;
            match error.kind() {
                ErrorKind::Closed { .. } => return,
                // It begins again, which is all there is to do.
                ErrorKind::Lagged { .. } => continue,
                // A store that takes no commits has somebody else who sweeps it.
                ErrorKind::Misuse { .. } => {
                    tracing::warn!(target: "happen", "expired global state is left where it is: {error}");
                    return self.commons.stopped().await;
                }
                _ => {
                    let code = error.code();
                    tracing::warn!(target: "happen", code, "sweeping global state failed and goes on: {error}");
                }
            }
            let mut later = self.env.sleep(Duration::from_millis(GLOBAL_SWEEP_RETRY_MS));
            let mut stopped = pin!(self.commons.stopped());
            poll_fn(|task| match stopped.as_mut().poll(task) {
                Poll::Pending => later.as_mut().poll(task),
                Poll::Ready(()) => Poll::Ready(()),
            })
            .await;
        }
    }

    /// Sweeps until the space ends or the store fails.
    async fn sweep(&mut self) -> Result<Infallible> {
        let (_, mut changes) = Following::begin(&*self.store()?, &self.commons).await?;
        self.look_through().await?;
        self.look_for_unfinished().await?;
        loop {
            self.delete_due().await?;
            self.remove_unfinished().await?;
            let woken = {
                let mut late = self.sleep_ms().map(|ms| self.env.sleep(Duration::from_millis(ms)));
                let mut large = pin!(self.commons.news());
                let mut changed = pin!(changes.next());
                poll_fn(|task| {
                    if let Poll::Ready(records) = changed.as_mut().poll(task) {
                        return Poll::Ready(Woken::Changed(records));
                    }
                    if large.as_mut().poll(task).is_ready() {
                        return Poll::Ready(Woken::Large);
                    }
                    match late.as_mut().map(|late| late.as_mut().poll(task)) {
                        Some(Poll::Ready(())) => Poll::Ready(Woken::Late),
                        Some(Poll::Pending) | None => Poll::Pending,
                    }
                })
                .await
            };
            match woken {
                Woken::Changed(records) => records?.iter().for_each(|record| self.note(record)),
                Woken::Large => self.look_for_unfinished().await?,
                Woken::Late => {}
            }
        }
    }

    fn space(&self) -> Result<Arc<SpaceInner>> {
        if self.commons.has_stopped() {
            return Err(closed());
        }
        self.space.upgrade().ok_or_else(closed)
    }

    fn store(&self) -> Result<Arc<dyn Store>> {
        Ok(self.space()?.store())
    }

    /// Finds what expires by reading all entries: once in the life of a space, unless more expire than are remembered.
    async fn look_through(&mut self) -> Result<()> {
        self.due.forget();
        let mut after = None;
        loop {
            let prefix = format::ENTRIES.into();
            let list = List { prefix, after: after.take(), documents_max: PAGE_RECORDS_MAX };
            let documents = self.store()?.list(list).await?;
            let Some(last) = documents.last() else { return Ok(()) };
            after = Some(Key::clone(&last.key));
            for document in &documents {
                let Some(content) = &document.content else { continue };
                let Some(name) = format::entry_name(&document.key) else { continue };
                match Kept::of_content(content) {
                    Ok(kept) => self.due.note(&name, document.revision, kept.until_unix_ms),
                    Err(error) => passed_over(&name, &error),
                }
            }
        }
    }

    /// Notes what a change means for what is due.
    fn note(&mut self, record: &Record) {
        match Told::of_record(&record.bytes) {
            Ok(Told { name, revision, change, .. }) => {
                let until = match change {
                    Made::Set(kept) => kept.until_unix_ms,
                    Made::Deleted | Made::Expired => None,
                };
                self.due.note(&name, revision, until);
            }
            Err(error) => passed_over(&format!("the record at {}", record.position), &error),
        }
    }

    /// Deletes what is due, each entry on the condition that it was not written meanwhile.
    async fn delete_due(&mut self) -> Result<()> {
        let now = self.env.unix_ms();
        if self.due.beyond.is_some_and(|beyond| beyond <= now) {
            self.look_through().await?;
        }
        loop {
            let due = self.due.until(now, GLOBAL_SWEEP_COMMITS);
            if due.is_empty() {
                return Ok(());
            }
            let mut batches = Vec::with_capacity(due.len());
            for (name, revision) in &due {
                let place = Place { name: name.clone(), document: format::document_key(name) };
                batches.push(batch(&place, revision + 1, Made::Expired, Author::default())?);
            }
            let space = self.space()?;
            let store = space.store();
            let results = store.commit(batches).await;
            let mut failed = None;
            for ((name, revision), result) in due.iter().zip(results) {
                match result {
                    Ok(committed) => {
                        told(&space, &*store, committed.position).await;
                        self.due.done(name, *revision);
                    }
                    // It was written or deleted meanwhile, of which the record will tell.
                    Err(error) if is_conflict(&error) => self.due.done(name, *revision),
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    /// Finds large values that are not finished: few, as only their marks are read.
    async fn look_for_unfinished(&mut self) -> Result<()> {
        let now = self.env.unix_ms();
        let given_up = self.commons.take_given_up();
        let list = List { prefix: format::UNFINISHED.into(), after: None, documents_max: PAGE_RECORDS_MAX };
        let documents = self.store()?.list(list).await?;
        let is_full = documents.len() >= PAGE_RECORDS_MAX;
        self.unfinished.clear();
        for document in documents {
            let Some(id) = format::marked_id(&document.key) else { continue };
            let from = document.at_unix_ms.saturating_add(LARGE_UNFINISHED_MS);
            self.unfinished.insert(id.to_owned(), from);
        }
        // The commit of a writer that gave up may still be under way, and its mark come later.
        let mut comes_later = is_full;
        for id in given_up {
            match self.unfinished.get_mut(&id) {
                Some(from) => *from = now,
                None => comes_later = true,
            }
        }
        self.look_at = comes_later.then(|| now.saturating_add(LARGE_UNFINISHED_MS));
        Ok(())
    }

    async fn remove_unfinished(&mut self) -> Result<()> {
        let now = self.env.unix_ms();
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_for_unfinished().await?;
        }
        let is_due = |(id, from): (&String, &u64)| (*from <= now).then(|| id.clone());
        let due: Vec<String> = self.unfinished.iter().filter_map(is_due).collect();
        for id in due {
            large::give_up(&*self.store()?, &id).await?;
            self.unfinished.remove(&id);
        }
        Ok(())
    }

    /// How long it may sleep; `None` while nothing is to expire.
    fn sleep_ms(&self) -> Option<u64> {
        let large = self.unfinished.values().min().copied();
        let next = [self.due.next(), self.due.beyond, large, self.look_at].into_iter().flatten().min()?;
        Some(next.saturating_sub(self.env.unix_ms()).clamp(1, GLOBAL_SWEEP_MS_MAX))
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        // A runtime may end before the space does, and another one take it over.
        self.commons.end_sweep();
    }
}

impl Due {
    fn new(entries_max: usize) -> Self {
        Self { by_time: BTreeSet::new(), by_name: HashMap::new(), beyond: None, entries_max }
    }

    fn forget(&mut self) {
        *self = Self::new(self.entries_max);
    }

    /// Notes that an entry has this revision and when that expires. An older revision than is known says nothing.
    fn note(&mut self, name: &str, revision: u64, until: Option<u64>) {
        if let Some(&(known_until, known)) = self.by_name.get(name) {
            if revision < known {
                return;
            }
            self.by_time.remove(&(known_until, name.to_owned()));
            self.by_name.remove(name);
        }
        let Some(until) = until else { return };
        self.by_time.insert((until, name.to_owned()));
        self.by_name.insert(name.to_owned(), (until, revision));
        if self.by_time.len() > self.entries_max
            && let Some((last, name)) = self.by_time.pop_last()
        {
            self.by_name.remove(&name);
            self.beyond = Some(self.beyond.map_or(last, |beyond| beyond.min(last)));
        }
    }

    /// The entries that are due by this time, with their revisions.
    fn until(&self, now: u64, entries_max: usize) -> Vec<(String, u64)> {
        let due = self.by_time.iter().take_while(|(until, _)| *until <= now).take(entries_max);
        due.filter_map(|(_, name)| self.by_name.get(name).map(|(_, revision)| (name.clone(), *revision)))
            .collect()
    }

    /// Forgets an entry that was dealt with, unless it has another revision by now.
    fn done(&mut self, name: &str, revision: u64) {
        if let Some(&(until, known)) = self.by_name.get(name)
            && known == revision
        {
            self.by_name.remove(name);
            self.by_time.remove(&(until, name.to_owned()));
        }
    }

    fn next(&self) -> Option<u64> {
        self.by_time.first().map(|(until, _)| *until)
    }
}

pub(super) fn is_conflict(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Conflict { .. })
}

/// What cannot be read is not known to expire. Whoever reads it is told.
fn passed_over(what: &str, error: &Error) {
    tracing::warn!(target: "happen", "sweeping global state passed over {what}: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(due: &[(String, u64)]) -> Vec<(&str, u64)> {
        due.iter().map(|(name, revision)| (&**name, *revision)).collect()
    }

    #[test]
    fn a_later_revision_takes_the_place_of_an_earlier_one() {
        let mut due = Due::new(9);
        due.note("a", 1, Some(10));
        due.note("a", 2, Some(20));
        due.note("a", 1, Some(5));
        assert_eq!((due.next(), names(&due.until(19, 9)).len()), (Some(20), 0));
        due.done("a", 1);
        assert_eq!(names(&due.until(20, 9)), [("a", 2)]);
        due.note("a", 3, None);
        assert!(due.by_time.is_empty() && due.by_name.is_empty());
    }

    #[test]
    fn so_many_entries_are_remembered_as_the_limit_says() {
        let max = GLOBAL_EXPIRIES_MAX as u64;
        let mut due = Due::new(GLOBAL_EXPIRIES_MAX);
        for at in 2..max {
            due.note(&at.to_string(), 1, Some(at));
        }
        // What does not fit is the one that expires last, and only its time is kept.
        for (at, remembered, beyond) in [(max, max - 1, None), (1, max, None), (0, max, Some(max))] {
            due.note(&at.to_string(), 1, Some(at));
            assert_eq!((due.by_time.len() as u64, due.by_name.len() as u64), (remembered, remembered));
            assert_eq!((due.beyond, due.next()), (beyond, due.by_time.first().map(|(until, _)| *until)));
        }
        assert_eq!((due.next(), due.by_name.contains_key(&max.to_string())), (Some(0), false));
    }

    #[test]
    fn those_that_expire_first_are_remembered_and_the_place_of_the_others_is() {
        for (entries, beyond) in [(2, None), (3, None), (4, Some(40)), (5, Some(40))] {
            let mut due = Due::new(3);
            for at in (1..=entries).rev() {
                due.note(&at.to_string(), 1, Some(at * 10));
            }
            assert_eq!(due.beyond, beyond, "{entries}");
            assert_eq!(
                (due.by_time.len(), due.by_name.len()),
                (entries.min(3) as usize, entries.min(3) as usize)
            );
            assert_eq!(names(&due.until(20, 1)), [("1", 1)]);
            assert_eq!(names(&due.until(20, 9)), [("1", 1), ("2", 1)]);
        }
    }
}
