//! A space: its nodes, its index, its memory of events, and its lifecycle. Owns the public type [`Space`]; everything
//! in a space hangs from one value of it, so two spaces in one process never see each other.

mod life;
mod memory;
mod publish;
mod registry;
mod tell;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use happen_core::env::{CoarseClock, Env};
use happen_core::{
    Error, ErrorKind, EventId, EventType, IntoPattern, IntoStep, NodeKey, Outgoing, Payload, Result,
};
use tokio::sync::Notify;

use crate::balance::Balance;
use crate::config::Config;
#[cfg(feature = "embedded")]
use crate::control::Listening;
use crate::dispatch::{self, Job, Want};
#[cfg(feature = "embedded")]
use crate::durable::OwnedStore;
use crate::durable::cron::IntoTiming;
use crate::durable::outbox::Outbox;
use crate::durable::schedule::{Schedules, Scheduling};
use crate::durable::timer::Timer;
use crate::durable::{self, Durable};
use crate::env::RealEnv;
use crate::failure::{DeadLetter, DeadLetters};
use crate::gate::Gate;
use crate::global::{Author, Commons, Global};
use crate::handler::{Argument, Handler};
use crate::hooks::{Hooks, Moment, Seen};
use crate::identity::{Guard, Policies};
use crate::index::Index;
use crate::journal::Journal;
use crate::link::{Hashes, Linked, RemoteNames};
use crate::local::{self};
use crate::names::Names;
use crate::node::{Node, NodeInner, Registration};
use crate::published::Readers;
use crate::route::{Routes, Went};
use crate::send::{After, Broadcasting, CancellingTimer, Sender, Sending, Target};
use crate::state::Home;
use crate::store::{Document, Key, Pruned, SpaceStore, Store};
use crate::sync::Mutex;
use crate::table::Table;
use crate::waits::Waits;
use crate::web::Ring;

/// One event space. A handle; cloning shares the space, and dropping the last handle ends it.
///
/// # Examples
///
/// ```
/// use happen::{Context, Event, Space};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let echo = space.node("echo");
/// echo.on("say", |said: &Event, _: &Context| said.get("text").cloned().unwrap_or_default());
/// space.start().await?;
///
/// let said = Event::new("say", serde_json::json!({ "text": "hello" }));
/// let heard = space.send(&echo, said).reply::<serde_json::Value>().await?;
/// assert_eq!(*heard, "hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Space {
    owner: Arc<Owner>,
}

struct Owner(Arc<SpaceInner>);

pub(crate) struct SpaceInner {
    /// The address of `token`, which outlives the space as long as any thread remembers it; so it is never given twice.
    pub(crate) id: u64,
    token: Arc<()>,
    pub(crate) env: Arc<dyn Env>,
    clock: Arc<CoarseClock>,
    pub(crate) config: Config,
    /// What makes nodes durable, in a space with a store that outlives it.
    pub(crate) durable: Option<Arc<Durable>>,
    /// Where the states of ephemeral nodes live.
    states: Arc<SpaceStore>,
    /// What the space remembers: the states and what was committed beside them, or a store that outlives the space.
    store: Arc<dyn Store>,
    pub(crate) commons: Arc<Commons>,
    phase: AtomicU8,
    by_name: papaya::HashMap<Arc<str>, NodeSlot>,
    names: Names,
    /// The tables that nodes begin with, one for each kind of options.
    classes: Mutex<Vec<Arc<Table>>>,
    /// Nodes that ended and whose names are kept, the oldest first.
    former: Mutex<VecDeque<NodeKey>>,
    next_key: AtomicU32,
    next_registration: AtomicU64,
    index: Index,
    /// The names of types by their hash, which is what the rings keep.
    types: papaya::HashMap<u64, EventType, BuildHasherDefault<Hashed>>,
    steps: papaya::HashMap<u64, &'static str>,
    rings: Mutex<Vec<Arc<Ring>>>,
    pub(crate) readers: Readers<Table>,
    threads: AtomicU32,
    correlations: Mutex<VecDeque<(Arc<str>, EventId)>>,
    hooks: ArcSwapOption<Hooks>,
    has_hooks: AtomicBool,
    reads_bytes: AtomicBool,
    problems: Mutex<Vec<Error>>,
    dead: DeadLetters,
    pub(crate) waits: Waits,
    flows: AtomicUsize,
    idle: Notify,
    pressed: Mutex<HashSet<u32>>,
    /// Where other processes ask for something, in a space that was opened in a folder.
    #[cfg(feature = "embedded")]
    control: OnceLock<Listening>,
    /// What watches whether nodes keep up, in a space that has it watched.
    pub(crate) balance: Option<Arc<Balance>>,
    pub(crate) link: OnceLock<Linked>,
    pub(crate) remote_names: RemoteNames,
    pub(crate) routes: Routes,
    pub(crate) hashes: Hashes,
    /// Who the space is to others, if it is somebody.
    pub(crate) guard: OnceLock<Arc<Guard>>,
    policies: Mutex<Option<Arc<Policies>>>,
}

/// Hashes what is the hash of a name already. As there, flooding one place gains nothing: the map has a limit.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A node in the map of nodes. Emptied before it is taken out: the map frees what was taken out at some later time,
/// and the node would keep the space alive, whose part the map is.
struct NodeSlot(ArcSwapOption<NodeInner>);

impl NodeSlot {
    fn new(node: &Arc<NodeInner>) -> Self {
        Self(ArcSwapOption::from(Some(Arc::clone(node))))
    }
}

impl Space {
    /// A space in this process alone: no server, no folder. Its nodes are ephemeral.
    #[must_use]
    #[doc(alias = "initializeHappen")]
    pub fn memory() -> Self {
        Self::made(Config::default(), Arc::new(RealEnv::new()))
    }

    /// A space in memory with this configuration.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when a value of the configuration cannot mean anything.
    pub fn with(config: Config) -> Result<Self> {
        Self::in_env(config, Arc::new(RealEnv::new()))
    }

    /// A space in memory that takes time, randomness and tasks from this environment: a simulator's, for example.
    ///
    /// # Errors
    ///
    /// As [`Space::with`].
    pub fn in_env(config: Config, env: Arc<dyn Env>) -> Result<Self> {
        config.check()?;
        Ok(Self::made(config, env))
    }

    /// A space on a store in a folder, which is made if it is not there. Its nodes are durable unless they are made
    /// [`ephemeral`](Node::ephemeral): every step of their flows is committed, and what a crash interrupts goes on when the
    /// space is opened and started again.
    ///
    /// Other processes of the same user reach it by a Unix domain socket in the folder, as long as it is open: see
    /// [`control`](crate::control). Where none can be made, the space does without, and says so in a warning.
    ///
    /// # Errors
    ///
    /// As [`SqliteStore::open`](crate::store::SqliteStore::open).
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Space};
    ///
    /// #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// struct Counter { count: u64 }
    ///
    /// fn add(n: &Event<u64>, cx: &Context) -> happen::Result<()> {
    ///     let n = **n;
    ///     cx.state::<Counter>().set(move |counter| Counter { count: counter.count + n })
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// for total in [5, 10] {
    ///     let space = Space::open(folder.path()).await?;
    ///     let counter = space.node("counter");
    ///     counter.on("u64", add);
    ///     space.start().await?;
    ///     space.send(&counter, 5u64).reply::<()>().await?;
    ///     assert_eq!(counter.state::<Counter>().get(|counter| counter.count), total);
    ///     space.stop().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "embedded")]
    pub async fn open(folder: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::open_with(folder, Config::default()).await
    }

    /// As [`Space::open`], with this configuration.
    ///
    /// # Errors
    ///
    /// As [`Space::with`] and [`Space::open`].
    #[cfg(feature = "embedded")]
    pub async fn open_with(folder: impl AsRef<std::path::Path>, config: Config) -> Result<Self> {
        use crate::store::{SqliteOptions, SqliteStore};
        config.check()?;
        let env: Arc<dyn Env> = Arc::new(RealEnv::new());
        let store = Arc::new(SqliteStore::open(folder, SqliteOptions::new(Arc::clone(&env))).await?);
        let closing = Arc::clone(&store);
        let measured = Arc::clone(&store);
        let owned = OwnedStore {
            close: Box::new(move || {
                let closing = Arc::clone(&closing);
                Box::pin(async move { closing.close().await })
            }),
            bytes: Box::new(move || {
                let measured = Arc::clone(&measured);
                Box::pin(async move {
                    let info = measured.info().await?;
                    Ok(info.database_bytes.saturating_sub(info.free_bytes))
                })
            }),
        };
        let durable = Durable::new(
            Arc::clone(&store) as Arc<dyn Store>,
            &env,
            config.retention.revisions_max,
            Some(owned),
        );
        let states = Arc::new(SpaceStore::new(Arc::clone(&env)));
        let space = Self::over(config, env, states, Arc::clone(&store) as Arc<dyn Store>, Some(durable));
        space.inner().listen(store.folder());
        Ok(space)
    }

    /// A space on this store, with this configuration and environment. Its nodes are durable, as in [`Space::open`]; the
    /// store stays open when the space ends, until its last handle is dropped.
    ///
    /// # Errors
    ///
    /// As [`Space::with`].
    pub fn with_store(config: Config, env: Arc<dyn Env>, store: Arc<dyn Store>) -> Result<Self> {
        config.check()?;
        let states = Arc::new(SpaceStore::new(Arc::clone(&env)));
        let durable = Durable::new(Arc::clone(&store), &env, config.retention.revisions_max, None);
        Ok(Self::over(config, env, states, store, Some(durable)))
    }

    fn made(config: Config, env: Arc<dyn Env>) -> Self {
        let states = Arc::new(SpaceStore::new(Arc::clone(&env)));
        let store = Arc::clone(&states) as Arc<dyn Store>;
        Self::over(config, env, states, store, None)
    }

    fn over(
        config: Config,
        env: Arc<dyn Env>,
        states: Arc<SpaceStore>,
        store: Arc<dyn Store>,
        durable: Option<Arc<Durable>>,
    ) -> Self {
        local::begin_run();
        let balance = config.balance.clone().map(Balance::new).map(Arc::new);
        let token = Arc::new(());
        let inner = Arc::new(SpaceInner {
            id: Arc::as_ptr(&token) as u64,
            token,
            durable,
            states,
            store,
            commons: Arc::default(),
            clock: Arc::clone(env.clock()),
            env,
            index: Index::new(config.types_max),
            config,
            phase: AtomicU8::new(life::BUILDING),
            by_name: papaya::HashMap::new(),
            names: Names::default(),
            classes: Mutex::default(),
            former: Mutex::default(),
            next_key: AtomicU32::new(1),
            next_registration: AtomicU64::new(1),
            types: papaya::HashMap::default(),
            steps: papaya::HashMap::new(),
            rings: Mutex::default(),
            readers: Readers::new(),
            threads: AtomicU32::new(0),
            correlations: Mutex::default(),
            hooks: ArcSwapOption::empty(),
            has_hooks: AtomicBool::new(false),
            reads_bytes: AtomicBool::new(false),
            problems: Mutex::default(),
            dead: DeadLetters::default(),
            waits: Waits::default(),
            flows: AtomicUsize::new(0),
            idle: Notify::new(),
            pressed: Mutex::default(),
            #[cfg(feature = "embedded")]
            control: OnceLock::new(),
            balance,
            link: OnceLock::new(),
            remote_names: RemoteNames::default(),
            routes: Routes::default(),
            hashes: Hashes::default(),
            guard: OnceLock::new(),
            policies: Mutex::default(),
        });
        Self { owner: Arc::new(Owner(inner)) }
    }

    pub(crate) fn inner(&self) -> &Arc<SpaceInner> {
        &self.owner.0
    }

    /// Makes a node. Its options come from the configuration, and from the methods of [`Node`] called on it.
    ///
    /// An id that is taken already, or empty, gives a node that takes no events; [`Space::start`] tells why, and so
    /// does every send to it.
    #[doc(alias = "createNode")]
    pub fn node(&self, id: impl AsRef<str>) -> Node {
        let id = id.as_ref();
        let inner = self.inner();
        let name: Arc<str> = id.into();
        let key = NodeKey(inner.next_key.fetch_add(1, Ordering::Relaxed));
        let table = inner.class_for(id);
        let node = Arc::new(NodeInner::new(inner, key, Arc::clone(&name), table));
        if !inner.may_be_named(id) {
            node.close();
        } else if inner.routes.has_router(id)
            || inner.by_name.pin().try_insert(Arc::clone(&name), NodeSlot::new(&node)).is_err()
        {
            inner.problem(Error::new(ErrorKind::DuplicateNode { node: id.to_owned() }));
            node.close();
        } else {
            inner.names.insert(key, name);
            inner.presence_changed();
            if inner.is_running() {
                inner.announce("node.started", serde_json::json!({ "node_id": id }));
            }
        }
        Node::from_inner(node)
    }

    /// The node with this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<Node> {
        self.inner().find(id).map(Node::from_inner)
    }

    /// All nodes, by id.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        let mut nodes: Vec<_> = self.inner().all_nodes().into_iter().map(Node::from_inner).collect();
        nodes.sort_by(|a, b| a.id().cmp(b.id()));
        nodes
    }

    /// Sends an event from outside any node. Inside a handler it is caused by the event being handled.
    #[inline]
    pub fn send<'s, T: Outgoing>(&'s self, to: impl Target<'s>, event: T) -> Sending<'s, T::Payload> {
        Sending::new(Sender::Space(self.inner()), to.into_destination(), event)
    }

    /// Sends an event after a while: a timer, which outlives the process. Only a space with a store has them.
    ///
    /// # Errors
    ///
    /// Of `.await`: [`ErrorKind::Misuse`] in a space in memory, [`ErrorKind::NoSuchNode`], and what the store says.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Space, secs};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// let space = Space::open(folder.path()).await?;
    /// let orders = space.node("orders");
    /// orders.on("remind", |_: &Event, _: &Context| {});
    /// space.start().await?;
    ///
    /// let remind = Event::new("remind", serde_json::json!({ "order": 7 }));
    /// space.after(secs(86_400), &orders, remind).key("reminder:order-7").await?;
    /// assert!(space.cancel_timer("reminder:order-7").await?);
    /// # space.stop().await
    /// # }
    /// ```
    pub fn after<'s, T: Payload>(&'s self, time: Duration, to: impl Target<'s>, event: T) -> After<'s, T> {
        After::new(Sender::Space(self.inner()), time, to.into_destination(), event)
    }

    /// Takes the timer with this key back. False when there is none, or no more.
    ///
    /// # Errors
    ///
    /// Of `.await`: [`ErrorKind::Misuse`] in a space in memory, and what the store says.
    pub fn cancel_timer(&self, key: &str) -> CancellingTimer<'_> {
        CancellingTimer::new(Sender::Space(self.inner()), key)
    }

    /// The timers that are set, by when they are due.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] in a space in memory, and what the store says.
    ///
    /// # Cost
    ///
    /// All of them are read, their events included.
    pub async fn timers(&self) -> Result<Vec<Timer>> {
        durable::timers(durable::of(self.inner())?).await
    }

    /// Sends an event again and again, at the times of a text of cron or [`every`](crate::every) so often. Only a space
    /// with a store has schedules; they outlive the process, and a program defines its own at each start.
    ///
    /// # Errors
    ///
    /// Of `.await`: [`ErrorKind::Misuse`] in a space in memory, for a name that is empty and for a text that tells no
    /// times, whose [`CronError`](crate::CronError) is the source; and what the store says.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Missed, Space};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// let space = Space::open(folder.path()).await?;
    /// let reports = space.node("reports");
    /// reports.on("make", |make: &Event, _: &Context| println!("{:?}", make.metadata("due_unix_ms")));
    /// let make = Event::new("make", serde_json::json!({}));
    /// space.schedule("nightly-report", "0 3 * * *", &reports, make).missed(Missed::Once).await?;
    /// space.start().await?;
    ///
    /// space.schedules().trigger("nightly-report").await?;
    /// space.schedules().pause("nightly-report").await?;
    /// # space.stop().await
    /// # }
    /// ```
    pub fn schedule<'s, T: Payload>(
        &'s self,
        name: &str,
        timing: impl IntoTiming,
        to: impl Target<'s>,
        event: T,
    ) -> Scheduling<'s, T> {
        Scheduling::new(self.inner(), name, timing, &to.into_destination(), event)
    }

    /// The schedules: to list, pause, resume, trigger, make up for and remove them.
    #[must_use]
    pub fn schedules(&self) -> Schedules<'_> {
        Schedules::of(self.inner())
    }

    /// Sends an event to every node that listens.
    ///
    /// # Errors
    ///
    /// As [`Broadcasting::publish`].
    pub fn broadcast<T: Payload>(&self, event: T) -> Result<EventId> {
        Broadcasting::new(Sender::Space(self.inner()), event).publish()
    }

    /// A broadcast that is not sent yet, to give it a correlation, metadata, or to make it a stream.
    pub fn broadcasting<T: Payload>(&self, event: T) -> Broadcasting<'_, T> {
        Broadcasting::new(Sender::Space(self.inner()), event)
    }

    /// Registers a handler of the space itself: for the runtime's own events such as `node.down`, for errors
    /// (`**.error`), or for anything else.
    pub fn on<P, PM, H, M>(&self, pattern: P, handler: H) -> Registration
    where
        P: IntoPattern<PM>,
        H: Handler<M>, // what an async handler captures is handed to it by `with`
        H::Argument: Argument,
        H::Output: IntoStep,
        H::Future: Send,
    {
        self.inner().own_node().on(pattern, handler)
    }

    /// Runs a hook for every node, before the node's own. Hooks of higher priority run first. Only
    /// [`Moment::BeforeEmit`] is asked for the whole space; the other moments belong to nodes.
    pub fn before_emit(&self, priority: i32, hook: impl Fn(&Seen<'_>) -> Result<()> + Send + Sync + 'static) {
        let hook = Arc::new(hook);
        let inner = self.inner();
        inner.hooks.rcu(|hooks| {
            let hook = Arc::clone(&hook);
            let mut hooks = hooks.as_deref().cloned().unwrap_or_default();
            hooks.add(Moment::BeforeEmit, priority, move |seen| hook(seen));
            Some(Arc::new(hooks))
        });
        inner.has_hooks.store(true, Ordering::Relaxed);
    }

    /// What could not be delivered, the oldest first.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.inner().dead.all()
    }

    /// Tries to deliver a dead letter once more, under the same id. It is taken off the list.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when there is no such letter; otherwise as a send, and the letter is back on the list.
    pub async fn redrive(&self, event: EventId) -> Result<()> {
        let inner = self.inner();
        let missing = || Error::misuse(format!("no dead letter has the event id {event}"));
        // One that a node elsewhere refused waits for it once more, by a commit.
        if let Some(durable) = &inner.durable
            && durable.redrive_refused(inner, event).await?
        {
            drop(inner.dead.take(event));
            return Ok(());
        }
        let Some(letter) = inner.dead.take(event) else {
            let driven = match &inner.durable {
                Some(durable) => durable.redrive(inner, event).await?,
                None => false,
            };
            return if driven { Ok(()) } else { Err(missing()) };
        };
        let result = match inner.find(&letter.node) {
            None => {
                let (sender, want) = (Sender::Space(inner), (Want::default(), true, None));
                match inner.send_on(sender, &letter.node, &*letter.event, want, &mut Ok(None)) {
                    Ok(Went::Away(Some(away))) => away.outcome().await.map(drop),
                    Ok(Went::Here(dispatch::Delivered::Later(Some(stored)))) => {
                        stored.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled))).map(drop)
                    }
                    sent => sent.map(drop),
                }
            }
            Some(node) => {
                dispatch::deliver(&node, &mut inner.way(), &*letter.event, Want::default(), &mut Ok(None))
                    .map(drop)
            }
        };
        result.map_err(|error| {
            inner.dead.push(letter, inner.config.dead_letters_max);
            error.at_event(event)
        })
    }

    /// What waits here for nodes of other processes: events that steps of durable nodes have sent to them and that they
    /// have not taken in yet. Empty without a link, and where several processes share the log.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Hub, Space};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// let edge = Space::open(folder.path()).await?;
    /// edge.join(Hub::new().link("edge"))?;
    /// edge.node("meter").on("u64", async |read: Event<u64>, cx: Context| {
    ///     // Nobody else is there. It is kept, and handed over when somebody comes who has this node.
    ///     cx.send("hub", *read).await.map(drop)
    /// });
    /// edge.start().await?;
    ///
    /// edge.send("meter", 42u64).reply::<()>().await?;
    /// let waiting = edge.outboxes();
    /// assert_eq!((&*waiting[0].node, waiting[0].events), ("hub", 1));
    /// # edge.stop().await
    /// # }
    /// ```
    #[must_use]
    pub fn outboxes(&self) -> Vec<Outbox> {
        self.inner().durable.as_ref().map(|durable| durable.outboxes.all()).unwrap_or_default()
    }

    /// The number of flows that wait for something.
    #[must_use]
    pub fn flows_under_way(&self) -> usize {
        self.inner().flows.load(Ordering::SeqCst)
    }

    /// The environment of the space: time, randomness, tasks.
    #[must_use]
    pub fn env(&self) -> &Arc<dyn Env> {
        &self.inner().env
    }

    /// What the space remembers: its log, and the documents of its nodes. Of a space that was opened on a store it is
    /// that store, which does not have the states of ephemeral nodes.
    ///
    /// The states of a space in memory live as values: each is encoded when it is asked for here, has no past and no
    /// position in the log, and is changed by its node alone.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # #[state("stock", version = 2)]
    /// # struct Stock { apples: u32 }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = happen::Space::memory();
    /// let shop = space.node("shop");
    /// shop.state::<Stock>().set(|stock| Stock { apples: stock.apples + 5 })?;
    ///
    /// let document = space.store().document("state/shop/stock").await?;
    /// let content = document.and_then(|document| document.content);
    /// assert_eq!(content.map(|content| content.version), Some(2));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.inner().store)
    }

    /// The values that everybody in the space reads and changes, by key.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = happen::Space::memory();
    /// space.global().set("motd", "be kind").await?;
    /// assert_eq!(space.global().get::<String>("motd").await?.as_deref(), Some("be kind"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn global(&self) -> Global {
        Global::new(self.inner(), Author::default())
    }

    /// Forgets now what [`Retention`](crate::config::Retention) lets go, which otherwise happens from time to time: old
    /// records but those that flows and dead letters need, and the past of states. What is forgotten leaves an anchor, a
    /// document that says how far and has a hash over all of it. Nobody who writes waits for it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] in a space in memory, which has nothing to forget; what the store says.
    pub async fn prune(&self) -> Result<Pruned> {
        match &self.inner().durable {
            Some(durable) => durable.prune(self.inner()).await,
            None => Err(Error::misuse("a space in memory keeps no records, so there is nothing to prune")),
        }
    }

    /// What the space's store has of its past: events, traces, states as they were, flows and dead letters. Of a space in
    /// memory it has what was committed there, which is nothing of its nodes.
    #[must_use]
    pub fn journal(&self) -> Journal {
        Journal::new(self.store())
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner().config
    }
}

impl SpaceInner {
    /// The time in milliseconds since 1970 by the coarse clock.
    #[inline]
    pub(crate) fn now_unix_ms(&self) -> u64 {
        match self.clock.unix_ms() {
            0 => self.env.unix_ms(),
            unix_ms => unix_ms,
        }
    }

    /// Whether a durable node of this name lives in another process on the same log.
    pub(crate) fn is_remembered_elsewhere(&self, node: &str) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.is_elsewhere(node))
    }

    /// Whether durable nodes of other processes on the same log listen to an event.
    pub(crate) fn is_heard_elsewhere(&self, envelope: &happen_core::Envelope) -> bool {
        let event_type = envelope.event_type.as_str();
        self.durable.as_ref().is_some_and(|durable| durable.is_heard_elsewhere(event_type))
    }

    /// Whether other processes write the log of this space.
    pub(crate) fn shares_its_log(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.is_shared())
    }

    /// Whether a node that is not here may be somewhere else, or behind a router.
    pub(crate) fn may_be_away(&self, node: &str) -> bool {
        self.link.get().is_some() || self.is_remembered_elsewhere(node) || self.routes.has_router(node)
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// Whether what is committed is remembered no longer than the space lives.
    pub(crate) fn is_in_memory(&self) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.states), Arc::as_ptr(&self.store))
    }

    pub(crate) fn token(&self) -> Arc<()> {
        Arc::clone(&self.token)
    }

    /// Where the documents of the nodes with this id live.
    pub(crate) fn home(&self, node: &Arc<str>) -> Arc<Home> {
        self.states.home(node)
    }

    /// Documents of durable nodes, or of all nodes in a space in memory, at one point of the log.
    pub(crate) async fn documents(&self, keys: Vec<Key>) -> Result<Vec<Option<Document>>> {
        if keys.is_empty() { Ok(Vec::new()) } else { self.store.documents(keys).await }
    }

    /// Documents of ephemeral nodes, at one moment.
    pub(crate) async fn live_documents(&self, keys: Vec<Key>) -> Result<Vec<Option<Document>>> {
        if keys.is_empty() { Ok(Vec::new()) } else { self.states.documents(keys).await }
    }

    /// The journal of a space whose nodes are durable.
    pub(crate) fn journal(&self) -> Option<Journal> {
        self.durable.as_ref().map(|durable| Journal::new(Arc::clone(&durable.store)))
    }

    /// The journal, when the store has this event.
    pub(crate) async fn journal_of(&self, event: EventId) -> Result<Option<Journal>> {
        let Some(journal) = self.journal() else { return Ok(None) };
        Ok(journal.event(event).await?.map(|_| journal))
    }

    /// Notes that a registration reads payloads in place.
    pub(crate) fn note_reads_bytes(&self) {
        self.reads_bytes.store(true, Ordering::Relaxed);
    }

    /// Whether a registration was ever made that reads payloads in place, so that other spaces pay nothing for it.
    #[inline]
    pub(crate) fn reads_bytes(&self) -> bool {
        self.reads_bytes.load(Ordering::Relaxed)
    }

    /// Whether an event may run on its sender's stack without being counted against the limit of its node. A counter
    /// that every event changes would cost more than everything else; so it is left alone as long as even all that can
    /// run inline at this moment would fit beside what is counted.
    ///
    /// Only for plain handlers: they are never more than the threads can hold. One that may wait has to be counted from
    /// its beginning, for others can fill the node between this look and its first wait.
    #[inline]
    pub(crate) fn inline_is_uncounted(&self, max: u32, gate: &Gate<Job>) -> bool {
        let uncounted_max = self.threads.load(Ordering::Relaxed).max(1) * UNCOUNTED_DEPTH;
        local::depth() <= UNCOUNTED_DEPTH
            && gate.waiting() == 0
            && gate.active().saturating_add(uncounted_max) <= max
    }

    pub(crate) fn watches_emits(&self, sender: Sender<'_>) -> bool {
        self.has_hooks.load(Ordering::Relaxed)
            || match sender {
                Sender::Space(_) => false,
                Sender::Node(node) => node.has_hooks(),
                Sender::Flow(flow) => flow.inner().node().has_hooks(),
            }
    }

    pub(crate) fn emit_hooks(&self, sender: Sender<'_>) -> Vec<Arc<Hooks>> {
        let own = match sender {
            Sender::Space(_) => None,
            Sender::Node(node) => node.table.load().hooks.clone(),
            Sender::Flow(flow) => flow.inner().node().table.load().hooks.clone(),
        };
        self.hooks.load_full().into_iter().chain(own).collect()
    }
}

/// Lets other tasks run.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|task| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        give_way(task);
        Poll::Pending
    })
    .await;
}

/// Has the task polled again after the others, and after the runtime has looked at its timers. A task that just wakes
/// itself is polled some sixty times before tokio looks at them. Outside of tokio it is that.
#[cold]
pub(crate) fn give_way(task: &mut std::task::Context<'_>) {
    let yielding = std::pin::pin!(tokio::task::yield_now());
    // Ready at once would mean that it need not be woken: then whoever polls does so by itself.
    if yielding.poll(task).is_ready() {
        task.waker().wake_by_ref();
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.inner(), f)
    }
}

impl fmt::Debug for SpaceInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Space({} nodes)", self.by_name.pin().len())
    }
}

/// Mistakes that are kept to be told.
const PROBLEMS_MAX: usize = 100;
/// Handlers nested on one stack that may go uncounted.
const UNCOUNTED_DEPTH: u32 = 4;
