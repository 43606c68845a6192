//! A space on a NATS server or cluster, by its address. Owns how store and link are put together; does not know what either
//! does.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::ConnectOptions;
use happen::env::RealEnv;
use happen::identity::Identity;
use happen::{Config, Space};
#[cfg(doc)]
use happen_core::ErrorKind;
use happen_core::env::Env;
use happen_core::{Error, Result};

use crate::access::Access;
use crate::address::Address;
use crate::limits;
use crate::link::{Connection, Connector, LinkOptions, NatsLink, PatientLink};
use crate::store::{NatsStore, NatsStoreOptions};

/// Opens a space where an address says: one changed line takes a program from memory to a folder to a cluster.
///
/// | address | where |
/// |---|---|
/// | `memory:` | in this process |
/// | `./data`, `file:/var/lib/shop` | in a folder |
/// | `nats://one:4222,nats://two:4222/shop`, `tls://…` | the space `shop` on NATS |
///
/// # Examples
///
/// ```
/// use happen::Space;
/// use happen_nats::Connect;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let server = happen_testing::NatsServer::start();
/// # let url = format!("{}/shop", server.url());
/// // Such as nats://localhost:4222/shop
/// let space = Space::connect(&url).await?;
/// space.node("echo").on("string", |said: &happen::Event<String>, _: &happen::Context| said.to_uppercase());
/// space.start().await?;
/// assert_eq!(*space.send("echo", "hello".to_owned()).reply::<String>().await?, "HELLO");
/// # space.stop().await
/// # }
/// ```
pub trait Connect: Sized {
    /// Opens a space at this address.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Misuse`]: the address means nothing, or the server cannot keep the promise; the error says why.
    /// - [`ErrorKind::Io`]: no server answers within [`limits::OPEN_WAIT_MS`], or it refuses.
    /// - As [`Space::open`] for a folder, and as [`NatsStore::open`] for NATS.
    fn connect(url: &str) -> impl Future<Output = Result<Self>> + Send;

    /// Opens a space at the address in the environment variable `HAPPEN_URL`, or at this one when it is not set. On NATS
    /// it signs in as the environment says, see [`Access`], and begins its subjects with `HAPPEN_NATS_PREFIX`.
    ///
    /// # Errors
    ///
    /// As [`Connect::connect`] and [`Access::from_env`].
    fn connect_from_env(otherwise: &str) -> impl Future<Output = Result<Self>> + Send;
}

impl Connect for Space {
    async fn connect(url: &str) -> Result<Self> {
        match Address::parse(url)? {
            Address::Memory => Ok(Self::memory()),
            Address::Folder(folder) => Self::open(folder).await,
            Address::Nats { .. } => Nats::at(url).open().await,
        }
    }

    async fn connect_from_env(otherwise: &str) -> Result<Self> {
        let named = variable(URL_VARIABLE)?;
        let url = named.as_deref().unwrap_or(otherwise);
        let opened = match Address::parse(url) {
            Ok(Address::Nats { .. }) => {
                let mut nats = Nats::at(url).access(Access::from_env()?);
                if let Some(prefix) = variable(PREFIX_VARIABLE)? {
                    nats = nats.prefix(prefix);
                }
                nats.open().await
            }
            _ => Self::connect(url).await,
        };
        match named {
            Some(_) => opened.map_err(|error| error.context(format!("at `{URL_VARIABLE}`"))),
            None => opened,
        }
    }
}

/// What an environment variable says; one that is empty counts as not set.
///
/// # Errors
///
/// When it is no text.
fn variable(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Error::misuse(format!("the environment variable `{name}` is no text")))
        }
    }
}

/// The connection of a space that is on NATS, with the client for everything that Happen does not do itself; `None` of a
/// space that is elsewhere.
///
/// # Examples
///
/// ```
/// use happen::Space;
/// use happen_nats::Connect;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let server = happen_testing::NatsServer::start();
/// # let url = format!("{}/shop", server.url());
/// let space = Space::connect(&url).await?;
/// let client = happen_nats::connection(&space).map(|connection| connection.client().clone());
/// assert!(client.is_some_and(|client| client.server_info().jetstream));
/// assert!(happen_nats::connection(&Space::memory()).is_none());
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn connection(space: &Space) -> Option<Connection> {
    let link = space.link()?;
    let link: &dyn Any = &*link;
    let joined = link.downcast_ref::<NatsLink>().map(NatsLink::connection);
    joined.or_else(|| link.downcast_ref::<PatientLink>().map(PatientLink::connection)).cloned()
}

/// A space on NATS that is about to be opened, with more to say than its address.
///
/// | what | unless it is said | said by |
/// |---|---|---|
/// | how to sign in, certificates | what the address says | [`Nats::access`] |
/// | timeouts and pings of the client | those of the client | [`Nats::sign_in`] |
/// | how long opening waits for a server | [`limits::OPEN_WAIT_MS`] | [`Nats::open_wait`] |
/// | the wait between attempts to connect again | [`limits::RECONNECT_DELAY_MAX`] | [`Nats::reconnect_wait_max`] |
/// | what may wait for each other process | [`limits::LINK_QUEUE_MAX`], and bytes | [`Nats::queue_max`] |
/// | how long a commit waits for its answer | [`limits::COMMIT_WAIT_MS`] | [`Nats::commit_wait`] |
/// | after which bytes of the log a copy is kept | [`limits::COPY_AFTER_BYTES`] | [`Nats::copy_after`] |
/// | on how many servers the log is kept | three of a cluster, or one | [`Nats::replicas`] |
/// | what subjects and streams begin with | `happen` | [`Nats::prefix`] |
/// | the name of this process | one that no other has | [`Nats::member`] |
/// | who this process is to the others | nobody: nothing is signed | [`Nats::identity`] |
/// | delivery, retries, deadlines, keys of events from outside | those of [`Config`] | [`Nats::config`] |
///
/// # Examples
///
/// ```
/// use happen::Config;
/// use happen_nats::{Access, Nats};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let server = happen_testing::NatsServer::start();
/// # let url = format!("{}/shop", server.url());
/// // With a file of credentials: Access::new().credentials_file("shop.creds")
/// let access = Access::from_env()?;
/// let space = Nats::at(url).access(access).member("api-1").config(Config::default()).open().await?;
/// space.start().await?;
/// # space.stop().await
/// # }
/// ```
#[derive(Debug)]
pub struct Nats {
    url: String,
    connector: Connector,
    open_wait: Duration,
    connection: Option<Connection>,
    config: Config,
    identity: Option<Identity>,
    member: Option<String>,
    folder: Option<PathBuf>,
    prefix: String,
    queue_max: (usize, usize),
    replicas: Option<usize>,
    mirror_of: Option<String>,
    commit_wait: Duration,
    copy_after: u64,
}

impl Nats {
    /// A space at this address, which [`Connect`] describes.
    #[must_use]
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            // The servers are those of the address, once it was read.
            connector: Connector::new(""),
            open_wait: Duration::from_millis(limits::OPEN_WAIT_MS),
            connection: None,
            config: Config::default(),
            identity: None,
            member: None,
            folder: None,
            prefix: "happen".to_owned(),
            queue_max: (limits::LINK_QUEUE_MAX, limits::LINK_QUEUE_BYTES_MAX),
            replicas: None,
            mirror_of: None,
            commit_wait: Duration::from_millis(limits::COMMIT_WAIT_MS),
            copy_after: limits::COPY_AFTER_BYTES,
        }
    }

    /// A space of this name over a connection that is there: its client can be used for other things too.
    #[must_use]
    pub fn over(connection: &Connection, space: &str) -> Self {
        Self { connection: Some(connection.clone()), ..Self::at(format!("nats:///{space}")) }
    }

    /// How to sign in at the servers, and which certificates to show and to believe. Nothing is taken from the environment
    /// unless it is [`Access::from_env`].
    #[must_use]
    pub fn access(self, access: Access) -> Self {
        Self { connector: self.connector.access(access), ..self }
    }

    /// Everything that the client lets say, in place of [`Nats::access`]: timeouts, pings, the room for what was received
    /// and not read yet.
    #[must_use]
    pub fn sign_in(self, options: ConnectOptions) -> Self {
        Self { connector: self.connector.options(options), ..self }
    }

    /// As [`Connector::reconnect_wait_max`].
    #[must_use]
    pub fn reconnect_wait_max(self, wait: Duration) -> Self {
        Self { connector: self.connector.reconnect_wait_max(wait), ..self }
    }

    /// How long opening waits for servers that are not there yet, [`limits::OPEN_WAIT_MS`] unless it is set.
    #[must_use]
    pub fn open_wait(self, wait: Duration) -> Self {
        Self { open_wait: wait, ..self }
    }

    /// Who this process is to the others: what leaves by the link is signed, and what comes is verified, see
    /// [`Space::identity`].
    #[must_use]
    pub fn identity(self, identity: Identity) -> Self {
        Self { identity: Some(identity), ..self }
    }

    /// How much may wait for each of the other processes, see [`LinkOptions::queue_max`].
    #[must_use]
    pub fn queue_max(self, frames: usize, bytes: usize) -> Self {
        Self { queue_max: (frames, bytes), ..self }
    }

    /// After how many bytes of the log a copy of it is kept, see [`NatsStoreOptions::copy_after`].
    #[must_use]
    pub fn copy_after(self, bytes: u64) -> Self {
        Self { copy_after: bytes, ..self }
    }

    /// The configuration of the space.
    #[must_use]
    pub fn config(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// The name of this process among those of the space; without it, one that no other has.
    #[must_use]
    pub fn member(self, name: impl Into<String>) -> Self {
        Self { member: Some(name.into()), ..self }
    }

    /// Keeps the store of this process in a folder of its own, instead of the log on NATS that processes share: it works on
    /// while no server can be reached, and also begins without one. What its durable nodes send to nodes of other processes
    /// waits in the folder until those have it, see [`Space::outboxes`]. What is said of waiting for servers and of the
    /// log, as by [`Nats::commit_wait`], has no meaning then.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_nats::Nats;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let folder = folder.path().join("edge");
    /// // Such as "./edge". Nobody answers at this address.
    /// let edge = Nats::at("nats://localhost:1/shop").folder(&folder).open().await?;
    /// edge.start().await?;
    /// assert!(edge.remote_nodes().is_empty());
    /// assert!(happen_nats::connection(&edge).is_some());
    /// # edge.stop().await
    /// # }
    /// ```
    #[must_use]
    pub fn folder(self, folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()), ..self }
    }

    /// What all subjects and streams begin with instead of `happen`. All processes of a space say the same.
    #[must_use]
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// On how many servers the log is kept, see [`NatsStoreOptions::replicas`].
    #[must_use]
    pub fn replicas(self, replicas: usize) -> Self {
        Self { replicas: Some(replicas), ..self }
    }

    /// These servers follow those of this domain, which write the log, see [`NatsStoreOptions::mirror_of`].
    #[must_use]
    pub fn mirror_of(self, domain: impl Into<String>) -> Self {
        Self { mirror_of: Some(domain.into()), ..self }
    }

    /// How long a commit waits for its answer, see [`NatsStoreOptions::commit_wait`].
    #[must_use]
    pub fn commit_wait(self, wait: Duration) -> Self {
        Self { commit_wait: wait, ..self }
    }

    /// Opens the space. It is not started yet.
    ///
    /// # Errors
    ///
    /// As [`Connect::connect`]; with a [folder](Nats::folder), as [`Space::open`], whether or not a server answers.
    pub async fn open(self) -> Result<Space> {
        // What opening takes is large, and nobody who waits for it should have it on the stack.
        Box::pin(self.opened()).await
    }

    async fn opened(self) -> Result<Space> {
        let Address::Nats { servers, space } = Address::parse(&self.url)? else {
            return Err(Error::misuse("this is no address of NATS; open other spaces with `Space::connect`"));
        };
        let env: Arc<dyn Env> = Arc::new(RealEnv::new());
        let member =
            self.member.unwrap_or_else(|| format!("{}-{:08x}", std::process::id(), env.random_u64() as u32));
        let (frames, bytes) = self.queue_max;
        if let Some(folder) = self.folder {
            if self.mirror_of.is_some() || self.replicas.is_some() {
                return Err(Error::misuse(
                    "a store in a folder has no replicas and is no mirror of a log on NATS",
                ));
            }
            let link = LinkOptions::new(space, member).prefix(self.prefix).queue_max(frames, bytes);
            let way = (self.connection, self.connector.to(servers));
            let space = joined_folder(folder, self.config, env, way, link).await?;
            if let Some(identity) = self.identity {
                space.identity(identity)?;
            }
            return Ok(space);
        }
        let connection = match self.connection {
            Some(connection) => connection,
            None => connected(&env, &self.connector.to(servers), self.open_wait).await?,
        };
        let mut store = NatsStoreOptions::new(space.as_str(), Arc::clone(&env))
            .prefix(self.prefix.as_str())
            .commit_wait(self.commit_wait)
            .copy_after(self.copy_after)
            .over(&connection);
        if let Some(replicas) = self.replicas {
            store = store.replicas(replicas);
        }
        if let Some(domain) = self.mirror_of {
            store = store.mirror_of(domain);
        }
        let store = NatsStore::open(connection.client().clone(), store).await?;
        let link = LinkOptions::new(space, member).prefix(self.prefix).queue_max(frames, bytes);
        let link = NatsLink::new(&connection, Arc::clone(&env), link)?;
        let space = Space::with_store(self.config, env, Arc::new(store))?;
        space.join(link)?;
        if let Some(identity) = self.identity {
            space.identity(identity)?;
        }
        Ok(space)
    }
}

/// Opens a folder, and joins it with the others as soon as a server can be reached.
async fn joined_folder(
    folder: PathBuf,
    config: Config,
    env: Arc<dyn Env>,
    (connection, connector): (Option<Connection>, Connector),
    link: LinkOptions,
) -> Result<Space> {
    let connection = match connection {
        Some(connection) => connection,
        None => connector.patient().connect().await?,
    };
    let link = PatientLink::new(&connection, env, link)?;
    let space = Space::open_with(folder, config).await?;
    space.join(link)?;
    Ok(space)
}

/// Connects, and waits a moment for servers that are just starting. One that lets nobody in like this is not waited for.
async fn connected(env: &Arc<dyn Env>, connector: &Connector, wait: Duration) -> Result<Connection> {
    let begun = env.monotonic();
    loop {
        match connector.connect().await {
            Err(error) if is_away(&error) && env.monotonic() - begun < wait => {
                env.sleep(Duration::from_millis(limits::OPEN_AGAIN_MS)).await;
            }
            result => return result,
        }
    }
}

/// Whether a server may be there in a moment that is not now.
fn is_away(error: &Error) -> bool {
    use async_nats::ConnectErrorKind as K;
    let Some(failed) = error.find_cause::<async_nats::ConnectError>() else { return false };
    // Of what is wrong with certificates only this is left when it gets here.
    let is_mistrusted = error
        .find_cause::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::InvalidData);
    !is_mistrusted
        && !matches!(failed.kind(), K::Authentication | K::AuthorizationViolation | K::Tls | K::ServerParse)
}

/// The environment variable that says where a space is.
const URL_VARIABLE: &str = "HAPPEN_URL";

/// The environment variable that says what subjects begin with.
const PREFIX_VARIABLE: &str = "HAPPEN_NATS_PREFIX";
