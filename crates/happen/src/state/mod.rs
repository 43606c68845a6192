//! The state of nodes: documents that are read and changed by functions. Owns the public type [`StateOf`], the hooks
//! around a change, and what a change may not do; does not know how documents are stored.

mod cell;
mod home;
mod restore;
mod views;

use std::borrow::Cow;
use std::cell::Cell as ThreadCell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use happen_core::store::Key;
use happen_core::{Dynamic, Envelope, Error, ErrorKind, Event, Payload, Result, State};

use crate::durable::{self, Change, Document, Durable, Stage, Staging};
use crate::flow::FlowInner;
use crate::hooks::{Hooks, Moment, Seen};
use crate::limits;
use crate::local;
use crate::model::{Bells, checked};
use crate::node::{Node, NodeInner};
use crate::pure;
use crate::stamp::Unstamped;
use crate::sync::lock;
use crate::table::{Phase, Table};
use cell::{Cell, Replaced, Writing};
use home::{Clash, Entities, Single};

pub(crate) use cell::{Live, Snapshot};
pub(crate) use home::{Home, Kind, Name};
pub use views::{Collected, Freshness, View, Viewing, Views};

/// The state of a node, or one of its entities: a value of type `S` that functions read and change.
///
/// Made by [`Node::state`](crate::Node::state) and [`Node::entity`](crate::Node::entity), and inside a handler by
/// [`Context::state`](crate::Context::state) and [`Context::entity`](crate::Context::entity), which reach only what the
/// handler's own node owns. A node's handle is the authority to change its state: whoever is not to change it gets an
/// event to send instead.
///
/// A state that nobody has set is `S::default()`. What was set belongs to the id of the node and lasts as long as the
/// space: a node that is destroyed and made again under the same id finds it.
///
/// # Examples
///
/// ```
/// use happen::{Context, Event, Space};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(happen::Event, Clone, Serialize, Deserialize)]
/// #[event("item.added")]
/// struct ItemAdded { name: String }
///
/// #[derive(happen::State, Default, Clone, Serialize, Deserialize)]
/// #[state("basket", version = 1)]
/// struct Basket { items: Vec<String> }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let basket = space.node("basket");
/// basket.on("item.added", |added: &Event<ItemAdded>, cx: &Context| {
///     let name = added.name.clone();
///     cx.state::<Basket>().set(move |mut basket| {
///         basket.items.push(name.clone());
///         basket
///     })
/// });
/// space.start().await?;
///
/// space.send(&basket, ItemAdded { name: "apple".into() }).await?;
/// assert_eq!(basket.state::<Basket>().get(|basket| basket.items.len()), 1);
/// # Ok(())
/// # }
/// ```
#[must_use = "a state is read with `get` and changed with `set`"]
pub struct StateOf<'n, S> {
    node: &'n Arc<NodeInner>,
    flow: Option<&'n FlowInner>,
    place: Place<'n, S>,
    expected: Option<u64>,
    sees: Sees,
}

/// What of a durable node's state is seen inside its steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sees {
    /// What the step has made of it.
    Step,
    /// What is committed, as for everybody else.
    Committed,
}

enum Place<'n, S> {
    Single(&'n Cell<S>),
    Entity(&'n Entities<S>, Cow<'n, str>),
    /// A document of a durable node.
    Stored(Key, Arc<Document<S>>),
    /// The node keeps another type under this name.
    Taken,
}

/// The documents of a node, as far as it ever asked for one.
#[derive(Default)]
pub(crate) struct States {
    home: OnceLock<Arc<Home>>,
    told_of_clash: AtomicBool,
    /// Rung for those who follow a document.
    pub(crate) bells: Bells,
}

impl<'n, S: State> StateOf<'n, S> {
    #[inline]
    pub(crate) fn single(node: &'n Arc<NodeInner>, flow: Option<&'n FlowInner>) -> Self {
        if let Some(durable) = durable_of(node) {
            return Self::stored(node, flow, durable, Kind::State, "");
        }
        let place = match home(node).shelf::<S, _>(Kind::State, Single::<S>::new) {
            Ok(single) => Place::Single(&single.0),
            Err(Clash) => taken::<S>(node),
        };
        Self { node, flow, place, expected: None, sees: Sees::Step }
    }

    #[inline]
    pub(crate) fn entity(node: &'n Arc<NodeInner>, flow: Option<&'n FlowInner>, key: Cow<'n, str>) -> Self {
        if let Some(durable) = durable_of(node) {
            return Self::stored(node, flow, durable, Kind::Entity, &key);
        }
        let place = match home(node).shelf::<S, _>(Kind::Entity, Entities::<S>::new) {
            Ok(entities) => Place::Entity(entities, key),
            Err(Clash) => taken::<S>(node),
        };
        Self { node, flow, place, expected: None, sees: Sees::Step }
    }

    #[cold]
    fn stored(
        node: &'n Arc<NodeInner>,
        flow: Option<&'n FlowInner>,
        durable: &Durable,
        kind: Kind,
        key: &str,
    ) -> Self {
        let name = Name { kind, node: (&*node.name).into(), state: S::NAME.into(), key: key.into() };
        let key = name.to_key();
        let place = match durable.documents.document(&key) {
            Some(document) => Place::Stored(key, document),
            None => taken::<S>(node),
        };
        Self { node, flow, place, expected: None, sees: Sees::Step }
    }

    /// Reads the state: what the function returns, without a copy of the rest. `get(Clone::clone)` is a copy of all.
    ///
    /// The function sees one revision, whole, and holds up nobody: it may take its time, read again, send, and change
    /// the state, of which it goes on seeing what it began with. What it returned may be outdated at once; decide what
    /// the next state is inside [`StateOf::set`].
    ///
    /// Of a durable node it is what is committed, and inside a step what the step has made of it.
    ///
    /// # Panics
    ///
    /// When a document of a durable node cannot be read: the disk fails, or an old shape has no way to the present one. A
    /// handler then fails with that error and is tried again; [`StateOf::try_get`] gives it.
    ///
    /// # Cost
    ///
    /// No allocation. An entity that was never set is made by `S::default()` for this call. A document that is not in
    /// memory is read from the store, on this thread.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Stock { apples: u32, pears: u32 }
    /// let space = happen::Space::memory();
    /// let shop = space.node("shop");
    /// assert_eq!(shop.state::<Stock>().get(|stock| stock.apples + stock.pears), 0);
    /// ```
    #[inline]
    pub fn get<R>(&self, read: impl FnOnce(&S) -> R) -> R {
        match &self.place {
            Place::Single(cell) => cell.read(read),
            Place::Entity(entities, key) => match entities.get(key) {
                Some(cell) => cell.read(read),
                None => read(&S::default()),
            },
            Place::Stored(..) => match self.try_get(read) {
                Ok(value) => value,
                // The error itself is thrown, so that the flow fails with it and nobody prints a panic.
                Err(error) => std::panic::resume_unwind(Box::new(error)),
            },
            Place::Taken => read(&S::default()),
        }
    }

    /// As [`StateOf::get`], with an error where that panics.
    ///
    /// # Errors
    ///
    /// What the store says, and [`ErrorKind::WrongVersion`] or [`ErrorKind::Undecodable`] for a document that is no `S`.
    pub fn try_get<R>(&self, read: impl FnOnce(&S) -> R) -> Result<R> {
        let Place::Stored(key, document) = &self.place else { return Ok(self.get(read)) };
        let mut read = Some(read);
        let staged = self.with_stage(|stage| match (stage, read.take()) {
            (Some(stage), Some(read)) => Some(stage.read(key, document, read)),
            (_, back) => {
                read = back;
                None
            }
        });
        let result = match (staged, read) {
            (Some(result), _) => result,
            (None, Some(read)) => document.committed().map(|version| read(&version.value)),
            (None, None) => Err(Error::misuse("a state was read twice; please report this")),
        };
        result.map_err(|error| self.placed(error))
    }

    /// As [`StateOf::get`], for a step of a durable node that decides on what it sees: the step is committed only when the
    /// state still is what it was, and runs again otherwise. Elsewhere it is the same as `get`.
    ///
    /// # Errors
    ///
    /// As [`StateOf::try_get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Stock { apples: u32 }
    /// # fn main() -> happen::Result<()> {
    /// # let space = happen::Space::memory();
    /// # let shop = space.node("shop");
    /// let apples = shop.state::<Stock>().get_for_update(|stock| stock.apples)?;
    /// # assert_eq!(apples, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_for_update<R>(&self, read: impl FnOnce(&S) -> R) -> Result<R> {
        if let Place::Stored(key, document) = &self.place {
            self.with_stage(|stage| match stage {
                None => Ok(()),
                Some(stage) => stage.stage(key, document, |staging| {
                    staging.expect_base();
                    Ok(())
                }),
            })
            .map_err(|error| self.placed(error))?;
        }
        self.try_get(read)
    }

    /// Reads the document into memory, when it is one of a durable node and not there yet. For a loop over many entities:
    /// `get` would read each on the thread of the runtime.
    ///
    /// # Errors
    ///
    /// As [`StateOf::try_get`].
    pub async fn load(&self) -> Result<()> {
        match &self.place {
            Place::Stored(_, document) => document.read().await.map(drop).map_err(|error| self.placed(error)),
            _ => Ok(()),
        }
    }

    /// Changes the state to what the function makes of it.
    ///
    /// Changes of one state happen one after the other, each made of what the one before left, from however many
    /// threads and tasks they come. The function is given a copy, so it may take it apart; it is to be pure, because
    /// it may run more than once for one change. If it panics, nothing is changed.
    ///
    /// In a step of a durable node the change is staged: the step sees it, and it happens with the step's commit, to what
    /// the state is then. So the function runs once now, and once more if others changed the state meanwhile. Outside of
    /// its handlers use [`StateOf::commit`] there.
    ///
    /// Every change makes a revision, also one to an equal value, which could not be told without a comparison;
    /// [`StateOf::try_set`] can refuse to change what need not be changed.
    ///
    /// Hooks of [`Moment::BeforeState`] run before, [`Moment::AfterState`] afterwards; they may read, send and change
    /// states. The change stands whatever a hook afterwards says: its error goes to the log.
    ///
    /// # Errors
    ///
    /// Nothing is changed, and the error has the id of the event being handled:
    ///
    /// - [`ErrorKind::Panicked`] when the function panics.
    /// - [`ErrorKind::Misuse`] when the function sends an event, sets a state, or when the node keeps another type
    ///   under the same name.
    /// - [`ErrorKind::Conflict`] when [`StateOf::at_revision`] expects another revision.
    /// - [`ErrorKind::Closed`] when the node was destroyed, or never was because its id was taken.
    /// - [`ErrorKind::Misuse`] for the state of a durable node outside of a step of its own.
    /// - [`ErrorKind::Runaway`] when hooks change states whose hooks change states, and so on.
    /// - What a hook objects with.
    ///
    /// # Cost
    ///
    /// One clone of the state, which is why a large one is better split into entities. No allocation beside it, unless
    /// somebody reads at the same moment.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Stock { apples: u32 }
    /// # fn main() -> happen::Result<()> {
    /// let space = happen::Space::memory();
    /// let shop = space.node("shop");
    /// shop.state::<Stock>().set(|stock| Stock { apples: stock.apples + 5 })?;
    /// assert_eq!(shop.state::<Stock>().get(|stock| stock.apples), 5);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "update")]
    #[inline]
    pub fn set(&self, change: impl Fn(S) -> S + Send + Sync + 'static) -> Result<()> {
        self.apply(move |state| Ok(change(state)))
    }

    /// Changes the state to what the function makes of it, or leaves it when the function refuses.
    ///
    /// Otherwise as [`StateOf::set`].
    ///
    /// # Errors
    ///
    /// What the function refused with, whose type [`Error::find_cause`] finds again; otherwise as [`StateOf::set`].
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Error, ErrorKind};
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Stock { apples: u32 }
    ///
    /// let space = happen::Space::memory();
    /// let shop = space.node("shop");
    /// let sold = shop.state::<Stock>().try_set(|stock| match stock.apples.checked_sub(3) {
    ///     Some(apples) => Ok(Stock { apples }),
    ///     None => Err(Error::new(ErrorKind::Invalid { reason: "too few apples".into() })),
    /// });
    /// assert_eq!(sold.unwrap_err().code(), "invalid");
    /// ```
    #[inline]
    pub fn try_set<E: Into<Error>>(
        &self,
        change: impl Fn(S) -> Result<S, E> + Send + Sync + 'static,
    ) -> Result<()> {
        self.apply(move |state| change(state).map_err(Into::into))
    }

    /// Changes the state, and broadcasts the events that follow from the change: a pure function gives both. In a step of a
    /// durable node they are part of the same commit; otherwise they are sent once the state is changed.
    ///
    /// # Errors
    ///
    /// As [`StateOf::set`] and [`Context::broadcast`](crate::Context::broadcast).
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Space};
    ///
    /// #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// struct Stock { apples: u32 }
    ///
    /// #[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
    /// #[event("stock.low")]
    /// struct Low { apples: u32 }
    ///
    /// fn sell(n: &Event<u32>, cx: &Context) -> happen::Result<()> {
    ///     let n = **n;
    ///     cx.state::<Stock>().set_emit(move |stock| {
    ///         let apples = stock.apples.saturating_sub(n);
    ///         (Stock { apples }, (apples < 3).then_some(Low { apples }))
    ///     })
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let space = Space::memory();
    /// # let shop = space.node("shop");
    /// # shop.on("u32", sell);
    /// # let seen = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    /// # let sees = seen.clone();
    /// # shop.on("stock.low", move |_: &Event<Low>, _: &Context| {
    /// #     sees.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    /// # });
    /// # space.start().await?;
    /// # shop.state::<Stock>().set(|_| Stock { apples: 9 })?;
    /// # space.send(&shop, 2u32).await?;
    /// # space.send(&shop, 5u32).await?;
    /// # assert_eq!(seen.load(std::sync::atomic::Ordering::SeqCst), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_emit<T: Payload, I: IntoIterator<Item = T>>(
        &self,
        change: impl Fn(S) -> (S, I) + Send + Sync + 'static,
    ) -> Result<()> {
        if let Place::Stored(key, document) = &self.place {
            return self.stage(
                key,
                document,
                Box::new(move |state, events| {
                    let (state, following) = change(state);
                    events.extend(following.into_iter().map(Unstamped::of));
                    Ok(state)
                }),
            );
        }
        let following = std::sync::Mutex::new(Vec::new());
        self.change_now(|state| {
            let (state, events) = change(state);
            // Of the run that counts, which is the last.
            *lock(&following) = events.into_iter().collect();
            Ok(state)
        })?;
        let node = Node::from_inner(Arc::clone(self.node));
        let following = std::mem::take(&mut *lock(&following));
        following.into_iter().try_for_each(|event| node.broadcast(event).map(drop))
    }

    /// Changes the state from outside of its node's handlers, whether the node is durable or not: of a durable one the
    /// change is committed when the future ends. What it means is that somebody intervened; what a program does as a matter
    /// of course belongs into a handler.
    ///
    /// # Errors
    ///
    /// As [`StateOf::set`], and what the store says. Inside a step of a durable node [`ErrorKind::Misuse`]: there `set` is
    /// part of the step.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Stock { apples: u32 }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// let space = happen::Space::open(folder.path()).await?;
    /// let shop = space.node("shop");
    /// shop.state::<Stock>().commit(|_| Stock { apples: 12 }).await?;
    /// assert_eq!(shop.state::<Stock>().get(|stock| stock.apples), 12);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn commit(&self, change: impl Fn(S) -> S + Send + Sync + 'static) -> Result<()> {
        self.try_commit(move |state| Ok::<_, Error>(change(state))).await
    }

    /// As [`StateOf::commit`], with a function that may refuse.
    ///
    /// # Errors
    ///
    /// As there, and what the function refused with.
    pub async fn try_commit<E: Into<Error>>(
        &self,
        change: impl Fn(S) -> Result<S, E> + Send + Sync + 'static,
    ) -> Result<()> {
        let change = move |state| change(state).map_err(Into::into);
        let Place::Stored(_, document) = &self.place else { return self.change_now(change) };
        if self.with_stage(|stage| stage.is_some()) {
            let what =
                "a step of a durable node changes its state with `set`, which is committed with the step";
            return Err(self.placed(Error::misuse(what)));
        }
        let table = self.node.table.load();
        let hooks = self.admit(&table).map_err(|error| self.placed(error))?;
        document.read().await.map_err(|error| self.placed(error))?;
        let mut staging = Staging::new(Arc::clone(document))?;
        if let Some(expected) = self.expected {
            staging.expect(expected).map_err(|error| self.placed(error))?;
        }
        let change = with_checks(table.hooks.as_ref(), Box::new(move |state, _| change(state)));
        staging.change(change).map_err(|error| self.placed(error))?;
        let node = Arc::clone(self.node);
        // In a task of its own, for whoever waits may stop waiting while others build on the change.
        let (told, tells) = tokio::sync::oneshot::channel();
        self.node.space.env.spawn(Box::pin(async move {
            drop(told.send(durable::commit_outside(&node, vec![Box::new(staging)]).await));
        }));
        let committed = tells.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled)));
        committed.map_err(|error| self.placed(error))?;
        self.node.states().bells.ring(|| self.document_key());
        if let Some(hooks) = hooks {
            self.after(&hooks);
        }
        Ok(())
    }

    /// The same state, to be changed only while it has this revision: for a change that was decided elsewhere, by a
    /// person or another system, on the ground of what [`StateOf::get`] told.
    ///
    /// Ask for the revision before reading the value: then a change in between is noticed.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Page { text: String }
    /// # fn main() -> happen::Result<()> {
    /// let space = happen::Space::memory();
    /// let wiki = space.node("wiki");
    /// let seen = wiki.entity::<Page>("home").revision();
    /// wiki.entity::<Page>("home").set(|_| Page { text: "somebody was faster".into() })?;
    ///
    /// let late = wiki.entity::<Page>("home").at_revision(seen).set(|_| Page { text: "mine".into() });
    /// assert_eq!(late.unwrap_err().code(), "conflict");
    /// # Ok(())
    /// # }
    /// ```
    pub fn at_revision(self, revision: u64) -> Self {
        Self { expected: Some(revision), ..self }
    }

    /// How often the state was changed: 0 while it never was, one more for each change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        match &self.place {
            Place::Single(cell) => cell.revision(),
            Place::Entity(entities, key) => entities.get(key).map_or(0, |cell| cell.revision()),
            Place::Stored(_, document) => document.committed().map_or(0, |version| version.revision),
            Place::Taken => 0,
        }
    }

    /// The key under which the space's store knows the document, see [`Space::store`](crate::Space::store):
    /// `state/<node>/<name>`, or `entity/<node>/<name>/<key>`, each part with `/` as `%2F` and `%` as `%25`.
    #[must_use]
    pub fn document_key(&self) -> String {
        if let Place::Stored(key, _) = &self.place {
            return key.as_ref().to_owned();
        }
        let (kind, key) = match &self.place {
            Place::Single(_) | Place::Stored(..) | Place::Taken => (Kind::State, ""),
            Place::Entity(_, key) => (Kind::Entity, &**key),
        };
        Name { kind, node: (&*self.node.name).into(), state: S::NAME.into(), key: key.into() }
            .to_key()
            .as_ref()
            .to_owned()
    }

    #[inline]
    fn apply(&self, change: impl Fn(S) -> Result<S> + Send + Sync + 'static) -> Result<()> {
        match &self.place {
            Place::Stored(key, document) => {
                self.stage(key, document, Box::new(move |state, _| change(state)))
            }
            _ => self.change_now(change),
        }
    }

    /// Stages a change in the step that makes it.
    #[cold]
    fn stage(&self, key: &Key, document: &Arc<Document<S>>, change: Change<S>) -> Result<()> {
        let table = self.node.table.load();
        let hooks = self.admit(&table).map_err(|error| self.placed(error))?;
        let change = with_checks(table.hooks.as_ref(), change);
        let staged = self.with_stage(|stage| {
            let Some(stage) = stage else { return Err(outside_of_a_step::<S>()) };
            stage.change(key, document, self.expected, change)?;
            let (node, key) = (Arc::clone(self.node), Arc::clone(key));
            let event = stage.durable_flow().event.envelope().clone();
            stage.afterwards(move || {
                node.states().bells.ring(|| key.to_string());
                if let Some(hooks) = hooks {
                    run_after::<S>(&node, &hooks, Some(event));
                }
            })
        });
        staged.map_err(|error| self.placed(error))
    }

    /// The step of a durable node that this is part of, when the state is one of that node's.
    fn with_stage<R>(&self, work: impl FnOnce(Option<&Arc<Stage>>) -> R) -> R {
        if self.sees == Sees::Committed {
            return work(None);
        }
        self.with_flow(|flow| {
            let own = flow.filter(|flow| flow.node().key == self.node.key);
            work(own.and_then(FlowInner::stage))
        })
    }

    /// The same as everybody else sees it, also inside a step that has staged a change.
    pub(crate) fn committed(self) -> Self {
        Self { sees: Sees::Committed, ..self }
    }

    #[inline]
    fn change_now(&self, change: impl Fn(S) -> Result<S>) -> Result<()> {
        let table = self.node.table.load();
        let hooks = self.admit(&table).map_err(|error| self.placed(error))?;
        let replaced = match table.hooks.as_deref().map_or(&[][..], Hooks::state_checks) {
            [] => self.write(change),
            checks => self.write(checked(checks, change)),
        };
        let replaced = replaced.map_err(|error| self.placed(error))?;
        // The user's value: what its drop does is done when no lock is held.
        drop(replaced);
        self.node.states().bells.ring(|| self.document_key());
        if let Some(hooks) = hooks {
            self.after(&hooks);
        }
        Ok(())
    }

    /// Whether the state may be changed, and the hooks that are to be told afterwards.
    #[inline]
    fn admit(&self, table: &Table) -> Result<Option<Arc<Hooks>>> {
        // Before any lock, as the function that is being run may hold the same one.
        pure::check("set a state")?;
        if table.phase == Phase::Closed {
            return Err(self.node.closed_error(table.phase));
        }
        match &table.hooks {
            None => Ok(None),
            Some(hooks) => self.before(hooks),
        }
    }

    #[inline]
    fn write(&self, change: impl Fn(S) -> Result<S>) -> Result<Replaced<S>> {
        match &self.place {
            Place::Single(cell) => match cell.writing() {
                Some(writing) => self.change(&writing, change),
                None => Err(Error::misuse("the state of a node was taken off its list; please report this")),
            },
            Place::Entity(entities, key) => loop {
                let cell = entities.get_or_make(key);
                // Each turn more means that another caller's change failed and took the cell off meanwhile.
                let Some(mut writing) = cell.writing() else { continue };
                let result = self.change(&writing, change);
                if result.is_err() && writing.drop_unwritten() {
                    entities.take_off(key);
                }
                return result;
            },
            Place::Stored(..) => Err(outside_of_a_step::<S>()),
            Place::Taken => Err(clash::<S>(self.node)),
        }
    }

    #[inline]
    fn change(&self, writing: &Writing<'_, S>, change: impl Fn(S) -> Result<S>) -> Result<Replaced<S>> {
        let now = self.node.space.now_unix_ms();
        writing.change(self.expected, || self.document_key(), now, change)
    }

    /// The error with its place: the node, and the event being handled.
    #[cold]
    fn placed(&self, error: Error) -> Error {
        let error = error.at_node(&self.node.name);
        match self.with_flow(|flow| flow.map(|flow| flow.envelope().id)) {
            Some(event) => error.at_event(event),
            None => error,
        }
    }

    /// The flow that the change is part of: the one whose context was used, or the one being polled.
    fn with_flow<R>(&self, work: impl FnOnce(Option<&FlowInner>) -> R) -> R {
        match self.flow {
            Some(flow) => work(Some(flow)),
            None => local::current(&self.node.space, work),
        }
    }

    /// Asks the hooks, and gives those that are to be told afterwards.
    #[cold]
    fn before(&self, hooks: &Arc<Hooks>) -> Result<Option<Arc<Hooks>>> {
        let after = hooks.has(Moment::AfterState).then(|| Arc::clone(hooks));
        if hooks.has(Moment::BeforeState) {
            self.run_hooks(hooks, Moment::BeforeState)
                .map_err(|error| error.context(format!("a hook stopped a change of state `{}`", S::NAME)))?;
        } else if after.is_some() {
            // What would be refused afterwards is refused before the change.
            Nested::enter(self.node, S::NAME)?;
        }
        Ok(after)
    }

    #[cold]
    fn after(&self, hooks: &Hooks) {
        run_after::<S>(self.node, hooks, self.with_flow(|flow| flow.map(|flow| flow.envelope().clone())));
    }

    fn run_hooks(&self, hooks: &Hooks, moment: Moment) -> Result<()> {
        let envelope = self.with_flow(|flow| flow.map(|flow| flow.envelope().clone()));
        run_hooks::<S>(self.node, hooks, moment, envelope)
    }

    /// Reads the state as [`StateOf::get`] does, together with the revision that was read: for a change that is decided
    /// elsewhere and made by [`StateOf::at_revision`].
    ///
    /// The function runs again when the state was changed meanwhile.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Page { text: String }
    /// # fn main() -> happen::Result<()> {
    /// let space = happen::Space::memory();
    /// let wiki = space.node("wiki");
    /// let (revision, text) = wiki.entity::<Page>("home").versioned(|page| page.text.clone());
    /// let longer = text + "more";
    /// wiki.entity::<Page>("home").at_revision(revision).set(move |_| Page { text: longer.clone() })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn versioned<R>(&self, read: impl Fn(&S) -> R) -> (u64, R) {
        let mut revision = self.revision();
        loop {
            let value = self.get(&read);
            // A revision never comes back, so what was read between two looks at the same one is of that revision.
            // Each turn more means that somebody else changed the state meanwhile.
            let now = self.revision();
            if now == revision {
                return (revision, value);
            }
            revision = now;
        }
    }
}

/// Runs the hooks after a change, whose event this is.
#[cold]
fn run_after<S: State>(node: &NodeInner, hooks: &Hooks, envelope: Option<Envelope>) {
    if let Err(error) = run_hooks::<S>(node, hooks, Moment::AfterState, envelope) {
        tracing::warn!(
            target: "happen",
            node = &*node.name,
            state = S::NAME,
            code = error.code(),
            "a hook after a change of state failed: {error}"
        );
    }
}

fn run_hooks<S: State>(
    node: &NodeInner,
    hooks: &Hooks,
    moment: Moment,
    envelope: Option<Envelope>,
) -> Result<()> {
    let _nested = Nested::enter(node, S::NAME)?;
    // A flow knows the context of its event and no longer the payload.
    let event = envelope.map(|envelope| {
        let payload = Dynamic::from_json(envelope.event_type.clone(), serde_json::Value::Null);
        Event::from_parts(envelope, payload)
    });
    let seen = Seen { node: Some(&node.name), event: event.as_ref(), state: Some(S::NAME), error: None };
    hooks.run(moment, &seen)
}

/// Writes a document of a durable node as somebody says by hand who saw it in this revision.
///
/// # Errors
///
/// As [`StateOf::try_commit`].
pub(crate) async fn set_by_hand<S: State>(
    node: &Arc<NodeInner>,
    key: Key,
    document: Arc<Document<S>>,
    value: S,
    expected: u64,
) -> Result<()> {
    let place = Place::Stored(key, document);
    let state = StateOf { node, flow: None, place, expected: Some(expected), sees: Sees::Committed };
    state.try_commit(move |_| Ok::<_, Error>(value.clone())).await
}

/// A change with the checks of its node around it.
fn with_checks<S: State>(hooks: Option<&Arc<Hooks>>, change: Change<S>) -> Change<S> {
    let Some(hooks) = hooks.filter(|hooks| !hooks.state_checks().is_empty()) else { return change };
    let hooks = Arc::clone(hooks);
    Box::new(move |state, events| {
        let events = std::cell::RefCell::new(events);
        checked(hooks.state_checks(), |state| change(state, &mut events.borrow_mut()))(state)
    })
}

/// The durable part of a node's space, when the node is.
#[inline]
fn durable_of(node: &NodeInner) -> Option<&Durable> {
    node.space.durable.as_deref().filter(|_| node.is_durable())
}

#[cold]
fn outside_of_a_step<S: State>() -> Error {
    Error::misuse(format!(
        "state `{}` belongs to a durable node, and its handlers change it; from outside use `.commit(..).await`, or \
         send an event",
        S::NAME
    ))
}

#[inline]
fn home(node: &NodeInner) -> &Home {
    node.states().home.get_or_init(|| node.space.home(&node.name))
}

/// Tells of a name that two types of one node have, once.
#[cold]
fn taken<'n, S: State>(node: &'n NodeInner) -> Place<'n, S> {
    if !node.states().told_of_clash.swap(true, Ordering::Relaxed) {
        node.space.problem(clash::<S>(node));
    }
    Place::Taken
}

#[cold]
fn clash<S: State>(node: &NodeInner) -> Error {
    let (rust, name) = (std::any::type_name::<S>(), S::NAME);
    let what =
        format!("`{rust}` cannot be kept as `{name}`: another type of the node has that name; rename one");
    Error::misuse(what).at_node(&node.name)
}

thread_local! {
    static HOOKS_NESTED: ThreadCell<u32> = const { ThreadCell::new(0) };
}

/// One level of hooks around a change, so that hooks that set each other off come to an end.
struct Nested;

impl Nested {
    fn enter(node: &NodeInner, state: &str) -> Result<Self> {
        let now = HOOKS_NESTED.get();
        let max = limits::STATE_HOOKS_NESTED_MAX;
        if now >= max {
            let path = vec![format!("hook of state `{state}` of node `{}`", node.name)];
            let limit = "state_hooks_nested_max";
            return Err(Error::new(ErrorKind::Runaway { limit, max: max.into(), path }));
        }
        HOOKS_NESTED.set(now + 1);
        Ok(Self)
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        HOOKS_NESTED.set(HOOKS_NESTED.get() - 1);
    }
}

impl<S: State> fmt::Debug for StateOf<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at revision {}", self.document_key(), self.revision())
    }
}
