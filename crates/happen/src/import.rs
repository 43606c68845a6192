//! Bringing in a history that happened elsewhere: events whose causes are named by whoever read the history.
//! Owns the public types [`Importing`] and [`Imported`]; the envelope itself is made in `stamp.rs`.

use std::fmt;
use std::sync::Arc;

use happen_core::event::{Envelope, Inherited};
use happen_core::hash::EventHash;
use happen_core::{Event, EventId, NodeKey, Payload, Result};

use crate::durable::imported;
use crate::send::{Broadcasting, Reach, spread};
use crate::space::SpaceInner;
use crate::stamp::stamp_imported;

/// An event of a history that happened elsewhere, not sent yet. Made by [`Broadcasting::caused_by`].
#[must_use = "nothing is sent before `.publish()`"]
pub struct Importing<'s, T> {
    broadcasting: Broadcasting<'s, T>,
    causes: Vec<Imported>,
}

/// Says that an event of a history was brought in, and lets later ones name it as their cause.
///
/// Only an import gives one, so a cause is always an event of the same space.
#[derive(Clone)]
pub struct Imported {
    pub(crate) event: EventId,
    pub(crate) root: EventId,
    pub(crate) depth: u32,
    pub(crate) origin: NodeKey,
    /// The number of the space, to tell a receipt of another one.
    pub(crate) space: u64,
    pub(crate) inherited: Option<Arc<Inherited>>,
    /// Its hash, where it is stored: what it causes tells it, from whatever process.
    hash: Option<EventHash>,
}

impl<'s, T: Payload> Broadcasting<'s, T> {
    /// Says what caused the event, for a history that happened elsewhere: the commits of a repository, the
    /// journal of another system. What causes what in this space is never said by hand; it follows from what
    /// handlers send.
    ///
    /// Takes the receipts of the causes, the first one first; without any the event is a root. Correlation,
    /// source and depth come from the first cause; the path starts anew.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Event, Space};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = Space::memory();
    /// space.start().await?;
    /// let commit = |name: &str| Event::new("commit", serde_json::json!({ "name": name }));
    /// let first = space.broadcasting(commit("first")).caused_by([]).publish()?;
    /// let fix = space.broadcasting(commit("fix")).caused_by([&first]).publish()?;
    /// let idea = space.broadcasting(commit("idea")).caused_by([&first]).publish()?;
    /// let merge = space.broadcasting(commit("merge")).caused_by([&fix, &idea]).publish()?;
    ///
    /// let why = space.why(merge.event_id()).await?;
    /// assert_eq!(why, [first.event_id(), fix.event_id(), idea.event_id()]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn caused_by<'c>(self, causes: impl IntoIterator<Item = &'c Imported>) -> Importing<'s, T> {
        Importing { broadcasting: self, causes: causes.into_iter().cloned().collect() }
    }
}

impl<T: Payload> Importing<'_, T> {
    /// Sends the event to every node whose patterns match.
    ///
    /// # Errors
    ///
    /// - As [`Broadcasting::publish`]. The depth of a history counts: set `correlation.depth_max` to its
    ///   length.
    /// - [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) inside a handler, where the handled event is the
    ///   cause; for a cause from another space; for more than
    ///   [`CAUSES_MAX`](happen_core::limits::CAUSES_MAX) causes; and for a correlation or a source on an event
    ///   with causes, which inherits them.
    pub fn publish(self) -> Result<Imported> {
        let (sender, payload, extras) = self.broadcasting.into_parts();
        let space = sender.space();
        space.check_running()?;
        let envelope = stamp_imported(sender, &payload, &self.causes, extras.as_deref())?;
        let imported = Imported::new(space, &envelope, None);
        spread(sender, &Event::from_parts(envelope, payload), None, Reach::Everywhere);
        Ok(imported)
    }

    /// Stores the event under the name it has where it happened, and sends it as [`Importing::publish`] does; when there
    /// is an event of that name already, gives the receipt of that one and does nothing. So a history can be brought in
    /// again from its beginning, after a crash or when it has grown, and only what is new is taken. Whether both say the
    /// same is not compared: the name tells, such as the hash of a commit.
    ///
    /// # Delivery
    ///
    /// The event, its name and the flows of all durable nodes that listen are one commit, and it has happened when this
    /// returns. Each of those nodes handles the event once; nodes that are not durable, and those beyond a link, get it
    /// at most once. Names are never forgotten, whatever the retention is.
    ///
    /// # Errors
    ///
    /// Nothing is stored:
    ///
    /// - [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) in a space without a store, and as for [`Importing::publish`].
    /// - [`ErrorKind::Busy`](crate::ErrorKind::Busy) when a durable node that listens has no place; try again once
    ///   [`Space::settled`](crate::Space::settled) says that there is.
    /// - What keeps another listener from taking the event, and what the store says.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its end, the event may be stored or not. What has begun goes on.
    ///
    /// # Cost
    ///
    /// One commit; for an event that is there, one look into the store.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Event, Space};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// let space = Space::open(folder.path()).await?;
    /// space.start().await?;
    /// let commit = || Event::new("commit", serde_json::json!({ "subject": "Begin" }));
    /// let first = space.broadcasting(commit()).caused_by([]).once("git/5f4dcc3b").await?;
    /// let again = space.broadcasting(commit()).caused_by([]).once("git/5f4dcc3b").await?;
    /// assert_eq!(first.event_id(), again.event_id());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn once(self, name: &str) -> Result<Imported> {
        let (sender, payload, extras) = self.broadcasting.into_parts();
        let space = sender.space();
        space.check_running()?;
        let Some(durable) = &space.durable else { return Err(imported::needs_store()) };
        if let Some(before) = imported::known(space, durable, name).await? {
            return Ok(Imported::new(space, &before.envelope, before.hash));
        }
        let envelope = stamp_imported(sender, &payload, &self.causes, extras.as_deref())?;
        let event = Arc::new(Event::from_parts(envelope, payload));
        let hashes = self.causes.iter().filter_map(|cause| Some((cause.event, cause.hash?))).collect();
        let stored = imported::once(space, durable, name, (event, hashes)).await?;
        Ok(Imported::new(space, &stored.envelope, stored.hash))
    }
}

impl Imported {
    fn new(space: &SpaceInner, envelope: &Envelope, hash: Option<EventHash>) -> Self {
        Self {
            event: envelope.id,
            root: envelope.root,
            depth: envelope.depth,
            origin: envelope.origin,
            space: space.id,
            inherited: envelope.inherited().cloned(),
            hash,
        }
    }

    /// The event's id.
    #[must_use]
    pub fn event_id(&self) -> EventId {
        self.event
    }
}

impl<T: fmt::Debug> fmt::Debug for Importing<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, caused by {:?}", self.broadcasting, self.causes)
    }
}

impl fmt::Debug for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Imported({})", self.event)
    }
}
