//! Global state: values that everybody in a space reads and changes, by key. Owns the public types; stands on the store
//! alone, whichever it is, and does not know nodes or events beyond who changes a value.
//!
//! [`Space::global`](crate::Space::global), [`Node::global`](crate::Node::global) and
//! [`Context::global`](crate::Context::global) give a [`Global`].

mod commons;
mod format;
mod keys;
mod large;
mod sweep;
mod watch;
mod write;

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use happen_core::env::BoxFuture;
use happen_core::{Error, Result, content};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::local;
use crate::pure;
use crate::space::SpaceInner;
use format::{Kept, Made};
use write::{Place, Wanted};

pub(crate) use commons::Commons;
pub(crate) use format::{Author, is_change};
pub use keys::Keys;
pub use large::{LargeValue, LargeWriter};
pub use watch::{Change, ChangeKind, Watch};

/// Values that everybody in a space reads and changes, by key; or those of one scope. A handle; cloning shares.
///
/// A value is anything that serde encodes. Each entry has a revision, which counts its changes and goes on through
/// deletion, so a change can be made on the condition that nothing happened in between. A space in memory forgets the
/// revision of an entry some time after a day without one
/// ([`GLOBAL_DELETED_KEPT_MS`](crate::limits::GLOBAL_DELETED_KEPT_MS)).
///
/// # Delivery
///
/// A change is committed to the [store of the space](crate::Space::store), as durable as that store is, when its call
/// returns. All changes of one entry are one after the other, from however many tasks and processes. A change made in a
/// handler happens at once and is not part of the step.
///
/// # Errors
///
/// What may go wrong with every call; what else can stands at each:
///
/// - [`ErrorKind::Io`](crate::ErrorKind::Io) and [`ErrorKind::Damaged`](crate::ErrorKind::Damaged), as the store says.
///   After `Io` a change may be made or not: read again.
/// - [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) for a key that is empty or longer than
///   [`GLOBAL_KEY_BYTES_MAX`](crate::limits::GLOBAL_KEY_BYTES_MAX), and inside a function that has to be pure.
/// - [`ErrorKind::Closed`](crate::ErrorKind::Closed) for a change, or a watch, once the space has ended.
///
/// # Cancel safety
///
/// Dropping the future of a change leaves it open whether it is made, whole or not at all. Dropping the future of a
/// reading changes nothing.
///
/// # Cost
///
/// Reading is one reading of a document. A change is that and one commit of a document and a record, both of which hold
/// the value. Nothing is cached.
///
/// # Examples
///
/// ```
/// use happen::{Space, secs};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Profile { name: String }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let global = space.global();
/// global.set("user:profile:123", &Profile { name: "Ada".into() }).await?;
/// let profile = global.get::<Profile>("user:profile:123").await?;
/// assert_eq!(profile.map(|profile| profile.name).as_deref(), Some("Ada"));
///
/// // Everybody counts; no count is lost.
/// global.update("visits", |visits: Option<u64>| visits.unwrap_or(0) + 1).await?;
///
/// // Who comes first leads, for as long as it says so.
/// let team = global.scope("team:red");
/// let term = team.create("leader", "ada").expires_in(secs(30)).await?;
/// assert_eq!(team.create("leader", "bob").await.unwrap_err().code(), "conflict");
/// team.set_at("leader", term, "ada").expires_in(secs(30)).await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "global state is read with `get` and changed with `set`"]
#[derive(Clone)]
pub struct Global {
    space: Arc<SpaceInner>,
    /// What the names of its entries begin with.
    prefix: Arc<str>,
    author: Author,
}

/// An entry of global state, as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry<T> {
    /// What it says.
    pub value: T,
    /// How often the entry was changed, deletions included: from 1.
    pub revision: u64,
    /// When it was written, in milliseconds since 1970, by the clock of the store.
    pub at_unix_ms: u64,
    /// When it expires, in milliseconds since 1970; `None` for never.
    pub expires_at_unix_ms: Option<u64>,
}

/// A value that is not written yet. `.await` writes it and gives the new revision.
#[must_use = "nothing is written before `.await`"]
pub struct Setting {
    global: Global,
    prepared: Result<(Place, Vec<u8>)>,
    author: Author,
    wanted: Wanted,
    expires_in: Option<Duration>,
}

impl Global {
    pub(crate) fn new(space: &Arc<SpaceInner>, author: Author) -> Self {
        Self { space: Arc::clone(space), prefix: Arc::default(), author }
    }

    /// The part of global state whose keys are apart from all others: for a team of agents, a tenant, a job.
    ///
    /// Its entries are those of the whole whose keys begin with the scope and a `/`, so whoever looks after all teams
    /// finds `plan` of the scope `team:red` as `team:red/plan`. Scopes may have scopes.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let space = happen::Space::memory();
    /// let red = space.global().scope("team:red");
    /// red.set("plan", "go left").await?;
    /// assert_eq!(space.global().scope("team:blue").get::<String>("plan").await?, None);
    /// assert_eq!(space.global().get::<String>("team:red/plan").await?.as_deref(), Some("go left"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn scope(&self, name: impl AsRef<str>) -> Self {
        Self { prefix: format!("{}{}/", self.prefix, name.as_ref()).into(), ..self.clone() }
    }

    /// The value of an entry, or `None` when there is none or it has expired.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`](crate::ErrorKind::Undecodable) when it is no `T`; otherwise as said at [`Global`].
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        Ok(self.entry(key).await?.map(|entry| entry.value))
    }

    /// An entry with its revision and times.
    ///
    /// # Errors
    ///
    /// As [`Global::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let space = happen::Space::memory();
    /// let global = space.global();
    /// global.set("page", "first words").await?;
    /// let seen = global.entry::<String>("page").await?.expect("it was written above");
    /// global.set("page", "somebody was faster").await?;
    /// let late = global.set_at("page", seen.revision, "mine").await;
    /// assert_eq!(late.unwrap_err().code(), "conflict");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn entry<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Entry<T>>> {
        pure::check("read global state")?;
        let place = self.place(key)?;
        let standing = self.standing(&*self.space.store(), &place).await?;
        let Some((kept, revision, at_unix_ms)) = standing.value() else { return Ok(None) };
        let value = decoded(kept, &place)?;
        Ok(Some(Entry { value, revision, at_unix_ms, expires_at_unix_ms: kept.until_unix_ms }))
    }

    /// Writes a value, whatever is there. Of several who write at once the last one stands, and all are revisions.
    ///
    /// An entry that was to expire does so no more, unless [`Setting::expires_in`] says it again.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Unencodable`](crate::ErrorKind::Unencodable) when its `Serialize` refuses.
    /// - [`ErrorKind::Oversized`](crate::ErrorKind::Oversized) when it takes more than
    ///   [`DOCUMENT_BYTES_MAX`](happen_core::limits::DOCUMENT_BYTES_MAX); see [`Global::put_large`].
    /// - [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) when others were faster
    ///   [`GLOBAL_ATTEMPTS_MAX`](crate::limits::GLOBAL_ATTEMPTS_MAX) times.
    /// - Otherwise as said at [`Global`].
    pub fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Setting {
        self.setting(key, value, Wanted::Anything)
    }

    /// Writes a value where there is none: it never was, was deleted, or has expired.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) when there is one; otherwise as [`Global::set`].
    pub fn create<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Setting {
        self.setting(key, value, Wanted::Nothing)
    }

    /// Writes a value on the condition that the entry still has this revision; 0 stands for never written.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) when it has another one, also because it has expired; otherwise
    /// as [`Global::set`].
    pub fn set_at<T: Serialize + ?Sized>(&self, key: &str, revision: u64, value: &T) -> Setting {
        self.setting(key, value, Wanted::Revision(revision))
    }

    /// Changes an entry to what the function makes of it, and gives that.
    ///
    /// The function is given the value, or `None` when there is none. Updates of one entry happen one after the other,
    /// each made of what the one before left, from however many tasks and processes: none is lost. The function is to
    /// be pure, because it may run more than once for one update. An update to the same value writes nothing. An entry
    /// that is to expire does so at the same time as before.
    ///
    /// # Errors
    ///
    /// Nothing is changed then:
    ///
    /// - [`ErrorKind::Panicked`](crate::ErrorKind::Panicked) when the function panics.
    /// - [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) when it sends, or changes a state.
    /// - Otherwise as [`Global::get`] and [`Global::set`].
    ///
    /// # Cost
    ///
    /// Updates of one entry that meet wait in line, so each is tried about once; those of other processes are tried again.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let space = happen::Space::memory();
    /// let count = |visits: Option<u64>| visits.unwrap_or(0) + 1;
    /// space.global().update("visits", count).await?;
    /// assert_eq!(space.global().update("visits", count).await?, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn update<T, F>(&self, key: &str, change: F) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Send,
        F: Fn(Option<T>) -> T + Send,
    {
        self.apply(key, move |value| Ok(change(value))).await
    }

    /// Changes an entry to what the function makes of it, or leaves it when the function refuses.
    ///
    /// Otherwise as [`Global::update`].
    ///
    /// # Errors
    ///
    /// What the function refused with, whose type [`Error::find_cause`] finds again; otherwise as [`Global::update`].
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Error, ErrorKind};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let space = happen::Space::memory();
    /// let global = space.global();
    /// let take_three = |stock: Option<u64>| match stock.unwrap_or(2).checked_sub(3) {
    ///     Some(left) => Ok(left),
    ///     None => Err(Error::new(ErrorKind::Invalid { reason: "too few apples".into() })),
    /// };
    /// assert_eq!(global.try_update("apples", take_three).await.unwrap_err().code(), "invalid");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn try_update<T, E, F>(&self, key: &str, change: F) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Send,
        E: Into<Error>,
        F: Fn(Option<T>) -> Result<T, E> + Send,
    {
        self.apply(key, move |value| change(value).map_err(Into::into)).await
    }

    /// Deletes an entry, whatever it says. Says whether there was one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) as for [`Global::set`]; otherwise as said at [`Global`].
    pub async fn delete(&self, key: &str) -> Result<bool> {
        self.delete_wanted(key, Wanted::Anything).await
    }

    /// Deletes an entry on the condition that it still has this revision.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) when it has another one; otherwise as said at [`Global`].
    pub async fn delete_at(&self, key: &str, revision: u64) -> Result<bool> {
        self.delete_wanted(key, Wanted::Revision(revision)).await
    }

    /// The keys that begin with a text, page by page; an empty text stands for all of the scope.
    ///
    /// # Cost
    ///
    /// The store reads the values too.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let space = happen::Space::memory();
    /// # space.global().set("task:1", &1).await?;
    /// # space.global().set("task:2", &2).await?;
    /// let mut keys = space.global().keys("task:");
    /// while let Some(page) = keys.next_page().await? {
    ///     assert_eq!(page, ["task:1", "task:2"]);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn keys(&self, prefix: &str) -> Keys {
        Keys::new(self, prefix)
    }

    /// Follows all entries whose keys begin with a text: first what is there, then each change once, deletions and
    /// expiries included. An empty text stands for all of the scope.
    ///
    /// # Errors
    ///
    /// As said at [`Global`].
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let space = happen::Space::memory();
    /// let global = space.global();
    /// global.set("task:1", "open").await?;
    /// let mut tasks = global.watch("task:").await?;
    /// let there = tasks.next().await.expect("the space runs")?;
    /// assert_eq!((there.key(), there.value::<String>()?.as_deref()), ("task:1", Some("open")));
    ///
    /// global.delete("task:1").await?;
    /// let deleted = tasks.next().await.expect("the space runs")?;
    /// assert_eq!((deleted.revision(), deleted.value::<String>()?), (2, None));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn watch(&self, prefix: &str) -> Result<Watch> {
        Watch::begin(self, watch::Watched::Prefix(format!("{}{prefix}", self.prefix))).await
    }

    /// Follows one entry, as [`Global::watch`] does many.
    ///
    /// # Errors
    ///
    /// As said at [`Global`].
    pub async fn watch_key(&self, key: &str) -> Result<Watch> {
        Watch::begin(self, watch::Watched::Entry(self.place(key)?)).await
    }

    fn setting<T: Serialize + ?Sized>(&self, key: &str, value: &T, wanted: Wanted) -> Setting {
        let prepare = || {
            self.admit()?;
            let place = self.place(key)?;
            let mut bytes = Vec::new();
            content::encode_into(value, std::any::type_name::<T>(), &mut bytes)
                .map_err(|error| error.context(format!("writing global `{}`", place.name)))?;
            Ok((place, bytes))
        };
        let prepared = prepare();
        Setting { global: self.clone(), prepared, author: self.author_now(), wanted, expires_in: None }
    }

    async fn apply<T, F>(&self, key: &str, change: F) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Send,
        F: Fn(Option<T>) -> Result<T> + Send,
    {
        self.admit()?;
        let whole = self.place(key)?;
        let author = self.author_now();
        let place = &whole;
        let decide = move |standing: &write::Standing| {
            let kept = standing.value().map(|(kept, _, _)| kept);
            let before = kept.map(|kept| decoded(kept, place)).transpose()?;
            let after = pure::run(|| change(before))?;
            let mut bytes = Vec::new();
            content::encode_into(&after, std::any::type_name::<T>(), &mut bytes)?;
            let same = kept.is_some_and(|kept| kept.value() == bytes);
            let until_unix_ms = kept.and_then(|kept| kept.until_unix_ms);
            Ok(((!same).then(|| Made::Set(Kept::new(&bytes, until_unix_ms))), after))
        };
        self.change(place, &author, decide).await.map(|(_, after)| after)
    }

    async fn delete_wanted(&self, key: &str, wanted: Wanted) -> Result<bool> {
        self.admit()?;
        let place = self.place(key)?;
        let author = self.author_now();
        let decide = |standing: &write::Standing| {
            standing.check(&place, wanted)?;
            let there = standing.value().is_some();
            Ok((there.then_some(Made::Deleted), there))
        };
        self.change(&place, &author, decide).await.map(|(_, there)| there)
    }

    /// Who changes something by this handle now: the flow whose context gave it, or the one being polled.
    fn author_now(&self) -> Author {
        if self.author.event.is_some() {
            return self.author.clone();
        }
        local::current(&self.space, |flow| match flow {
            None => self.author.clone(),
            Some(flow) => {
                let node = self.author.node.clone().unwrap_or_else(|| Arc::clone(&flow.node().name));
                Author { node: Some(node), event: Some(flow.envelope().id) }
            }
        })
    }
}

impl Setting {
    /// Has the entry expire after this time: from then on it is as if it were deleted, and soon after it is.
    ///
    /// The time counts from the writing, by the wall clock of the space, and goes on while no process runs.
    ///
    /// # Errors
    ///
    /// The writing fails with [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) for a time of less than a millisecond.
    pub fn expires_in(self, time: Duration) -> Self {
        Self { expires_in: Some(time), ..self }
    }

    async fn write(self) -> Result<u64> {
        let Self { global, prepared, author, wanted, expires_in } = self;
        let (place, value) = prepared?;
        // Once more: it may be polled elsewhere than it was made.
        global.admit()?;
        if expires_in.is_some_and(|time| time < Duration::from_millis(1)) {
            let what = format!("global `{}` cannot expire before it is written", place.name);
            return Err(Error::misuse(what));
        }
        let decide = |standing: &write::Standing| {
            standing.check(&place, wanted)?;
            let until = expires_in.map(|time| {
                let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                global.space.env.unix_ms().saturating_add(time)
            });
            Ok((Some(Made::Set(Kept::new(&value, until))), ()))
        };
        global.change(&place, &author, decide).await.map(|(revision, ())| revision)
    }
}

impl IntoFuture for Setting {
    type Output = Result<u64>;
    type IntoFuture = BoxFuture<'static, Result<u64>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.write())
    }
}

fn decoded<T: DeserializeOwned>(kept: &Kept, place: &Place) -> Result<T> {
    kept.decode().map_err(|error| error.context(format!("reading global `{}`", place.name)))
}

impl fmt::Debug for Global {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Global({})", self.prefix)
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.prepared {
            Ok((place, bytes)) => write!(f, "Setting({}, {} bytes)", place.name, bytes.len()),
            Err(error) => write!(f, "Setting({error})"),
        }
    }
}
