//! How an entry is read and changed: read, decide, commit on the condition that nothing happened in between, and again
//! when something did. Owns the retries; does not know what is decided.

use std::sync::Arc;

use happen_core::store::{Batch, Document, Key, Past, Position, Prune, Replaced, Select, Store, Write};
use happen_core::{Error, ErrorKind, Result};

use super::Global;
use super::commons::Turn;
use super::format::{self, Author, Kept, Made, Told};
use super::sweep;
use crate::limits::{GLOBAL_ATTEMPTS_MAX, GLOBAL_KEY_BYTES_MAX};
use crate::pure;
use crate::space::SpaceInner;

/// An entry by its names.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The whole name, with the scopes.
    pub(super) name: String,
    pub(super) document: Key,
}

/// An entry as it stands.
#[derive(Debug)]
pub(super) struct Standing {
    /// The revision of its document, 0 when it was never written.
    revision: u64,
    at_unix_ms: u64,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Nothing,
    Value(Kept),
    /// Its time is over, and nobody has deleted it yet.
    Expired,
}

/// What somebody expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Anything,
    Nothing,
    Revision(u64),
}

impl Standing {
    fn of(document: Option<Document>, now_unix_ms: u64) -> Result<Self> {
        let Some(document) = document else {
            return Ok(Self { revision: 0, at_unix_ms: 0, held: Held::Nothing });
        };
        let held = match &document.content {
            None => Held::Nothing,
            Some(content) => match Kept::of_content(content)? {
                kept if kept.has_expired(now_unix_ms) => Held::Expired,
                kept => Held::Value(kept),
            },
        };
        Ok(Self { revision: document.revision, at_unix_ms: document.at_unix_ms, held })
    }

    /// What is there, with its revision and time.
    pub(super) fn value(&self) -> Option<(&Kept, u64, u64)> {
        match &self.held {
            Held::Value(kept) => Some((kept, self.revision, self.at_unix_ms)),
            Held::Nothing | Held::Expired => None,
        }
    }

    /// The revision, counting the deletion of an entry that expired.
    fn revision(&self) -> u64 {
        match self.held {
            Held::Expired => self.revision + 1,
            Held::Nothing | Held::Value(_) => self.revision,
        }
    }

    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] when it is not as wanted.
    pub(super) fn check(&self, place: &Place, wanted: Wanted) -> Result<()> {
        let name = &place.name;
        let revision = self.revision();
        let what = match (wanted, &self.held) {
            (Wanted::Nothing, Held::Value(_)) => format!("global `{name}` is there, in revision {revision}"),
            (Wanted::Revision(wanted), Held::Expired) if wanted != revision => {
                format!("global `{name}` has expired, which made revision {revision} and not {wanted}")
            }
            (Wanted::Revision(wanted), _) if wanted != revision => {
                format!("global `{name}` has revision {revision} and not {wanted}")
            }
            _ => return Ok(()),
        };
        Err(Error::new(ErrorKind::Conflict { what }))
    }
}

impl Global {
    /// The entry with this key.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] for a key that is empty or too long.
    pub(super) fn place(&self, key: &str) -> Result<Place> {
        if key.is_empty() {
            return Err(Error::misuse("a key of global state is empty"));
        }
        let name = format!("{}{key}", self.prefix);
        let document = format::document_key(&name);
        let (bytes, max) = (document.len() - format::ENTRIES.len(), GLOBAL_KEY_BYTES_MAX);
        if bytes > max {
            let what = format!("a key of global state has {bytes} bytes and the limit is {max}");
            return Err(Error::misuse(what));
        }
        Ok(Place { name, document })
    }

    /// The entry as it stands now.
    pub(super) async fn standing(&self, store: &dyn Store, place: &Place) -> Result<Standing> {
        let document = store.document(&place.document).await?;
        let named = |error: Error| error.context(format!("reading global `{}`", place.name));
        let standing = Standing::of(document, self.space.env.unix_ms()).map_err(named)?;
        if let Held::Expired = standing.held {
            sweep::begin(&self.space);
        }
        Ok(standing)
    }

    /// Changes an entry to what is decided on the ground of how it stands: a new content, or none. The decision is made
    /// again for each attempt; `None` leaves everything as it is. Gives the new revision, or the one that stays.
    pub(super) async fn change<R>(
        &self,
        place: &Place,
        author: &Author,
        mut decide: impl FnMut(&Standing) -> Result<(Option<Made>, R)>,
    ) -> Result<(u64, R)> {
        let store = self.space.store();
        let line = self.space.commons.line(&place.document);
        let mut turn: Option<Turn<'_>> = if line.is_waited_in() { Some(line.turn().await) } else { None };
        let mut last = None;
        for _ in 0..GLOBAL_ATTEMPTS_MAX {
            self.space.check_not_stopped()?;
            let standing = self.standing(&*store, place).await?;
            let (made, result) = decide(&standing)?;
            let Some(made) = made else { return Ok((standing.revision, result)) };
            match self.commit(&*store, place, author, &standing, made).await {
                Ok(revision) => return Ok((revision, result)),
                Err(error) if matches!(error.kind(), ErrorKind::Conflict { .. }) => last = Some(error),
                Err(error) => return Err(error.context(format!("changing global `{}`", place.name))),
            }
            if turn.is_none() {
                turn = Some(line.turn().await);
            }
        }
        let what = format!(
            "global `{}` was changed by others each of the {GLOBAL_ATTEMPTS_MAX} times that this change was tried",
            place.name
        );
        let error = Error::new(ErrorKind::Conflict { what });
        Err(match last {
            Some(last) => error.with_source(last.into_std()),
            None => error,
        })
    }

    /// Commits a change of an entry that stands so: one document and one record. When it expired, its deletion is
    /// committed before, as if the sweep had come in time; so whoever watches hears of both.
    async fn commit(
        &self,
        store: &dyn Store,
        place: &Place,
        author: &Author,
        standing: &Standing,
        made: Made,
    ) -> Result<u64> {
        let revision = standing.revision() + 1;
        let expires = matches!(&made, Made::Set(Kept { until_unix_ms: Some(_), .. }));
        let batch = batch(place, revision, made, author.clone())?;
        // An entry must not be deleted for the sake of a change that is refused.
        batch.check()?;
        if let Held::Expired = standing.held {
            // Not in the same call: when this fails because somebody wrote the entry instead, the other batch would find
            // the revision it expects, and write over what nobody has seen.
            let deletion = self::batch(place, standing.revision + 1, Made::Expired, Author::default())?;
            self.commit_one(store, deletion).await?;
        }
        self.commit_one(store, batch).await?;
        if expires {
            sweep::begin(&self.space);
        }
        Ok(revision)
    }

    async fn commit_one(&self, store: &dyn Store, batch: Batch) -> Result<()> {
        for result in store.commit(vec![batch]).await {
            told(&self.space, store, result?.position).await;
        }
        Ok(())
    }

    /// Refuses a change inside a function that must be pure, and in a space that has ended.
    pub(super) fn admit(&self) -> Result<()> {
        pure::check("change global state")?;
        self.space.check_not_stopped()
    }
}

/// Has a space in memory forget old changes and deletions from time to time, now that there is a record more.
pub(super) async fn told(space: &SpaceInner, store: &dyn Store, at: Position) {
    if !space.is_in_memory() {
        return;
    }
    let Some(forget) = space.commons.count_change(at, space.env.unix_ms()) else { return };
    // Ids of large values are never used again, so nobody asks for the revision of a deleted one.
    let large = vec![format::LARGE.into(), format::UNFINISHED.into()];
    let none = Select::Tagged(Vec::new());
    for (before, records, histories) in [
        (forget.changes_before, Select::tag(format::tag()), large),
        (forget.deletions_before, none, vec![format::ENTRIES.into()]),
    ] {
        let prune = Prune { before, records, keep: Vec::new(), histories, documents: Vec::new() };
        // The change itself is made, so this is no failure of it.
        if let Err(error) = store.prune(prune).await {
            tracing::warn!(target: "happen", "old changes of global state are kept: {error}");
        }
    }
}

/// The batch that makes this revision of an entry: its document, and the record that tells of it.
pub(super) fn batch(place: &Place, revision: u64, change: Made, author: Author) -> Result<Batch> {
    let content = match &change {
        Made::Set(kept) => Some(kept.to_content()),
        Made::Deleted | Made::Expired => None,
    };
    let told = Told { name: place.name.clone(), revision, change, author };
    let write = Write {
        key: Arc::clone(&place.document),
        revision,
        content,
        past: Past::Dropped,
        replaced: Replaced::Kept,
    };
    Ok(Batch { records: vec![told.to_record()?], documents: vec![write], conditions: Vec::new() })
}
