//! A space on a NATS server or cluster, by its address. Owns how store and link are put together; does not know what either
//! does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectError, ConnectErrorKind, ConnectOptions};
use happen::env::RealEnv;
use happen::{Config, Space};
use happen_core::env::Env;
use happen_core::{Error, ErrorKind, Result};

use crate::address::Address;
use crate::limits;
use crate::link::{Connection, LinkOptions, NatsLink, PatientLink};
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

    /// Opens a space at the address in the environment variable `HAPPEN_URL`, or at this one when it is not set.
    ///
    /// # Errors
    ///
    /// As [`Connect::connect`].
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
        match std::env::var(URL_VARIABLE) {
            Ok(url) => {
                Self::connect(&url).await.map_err(|error| error.context(format!("at `{URL_VARIABLE}`")))
            }
            Err(std::env::VarError::NotPresent) => Self::connect(otherwise).await,
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(Error::misuse(format!("the environment variable `{URL_VARIABLE}` is no text")))
            }
        }
    }
}

/// A space on NATS that is about to be opened, with more to say than its address.
///
/// # Examples
///
/// ```
/// use async_nats::ConnectOptions;
/// use happen::Config;
/// use happen_nats::Nats;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let server = happen_testing::NatsServer::start();
/// # let url = format!("{}/shop", server.url());
/// // With a file of credentials: ConnectOptions::with_credentials_file("shop.creds").await?
/// let options = ConnectOptions::new().name("api");
/// let space = Nats::at(url).sign_in(options).member("api-1").config(Config::default()).open().await?;
/// space.start().await?;
/// # space.stop().await
/// # }
/// ```
#[derive(Debug)]
pub struct Nats {
    url: String,
    options: ConnectOptions,
    connection: Option<Connection>,
    config: Config,
    member: Option<String>,
    folder: Option<PathBuf>,
    prefix: String,
    replicas: Option<usize>,
    mirror_of: Option<String>,
    commit_wait: Duration,
}

impl Nats {
    /// A space at this address, which [`Connect`] describes.
    #[must_use]
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            options: ConnectOptions::new(),
            connection: None,
            config: Config::default(),
            member: None,
            folder: None,
            prefix: "happen".to_owned(),
            replicas: None,
            mirror_of: None,
            commit_wait: Duration::from_millis(limits::COMMIT_WAIT_MS),
        }
    }

    /// A space of this name over a connection that is there: its client can be used for other things too.
    #[must_use]
    pub fn over(connection: &Connection, space: &str) -> Self {
        Self { connection: Some(connection.clone()), ..Self::at(format!("nats:///{space}")) }
    }

    /// How to sign in at the servers, and what else their client lets say: certificates, timeouts.
    #[must_use]
    pub fn sign_in(self, options: ConnectOptions) -> Self {
        Self { options, ..self }
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
    /// waits in the folder until those have it, see [`Space::outboxes`].
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
        // Aside, for it is large and is held by whoever opens.
        Box::pin(self.opened()).await
    }

    async fn opened(self) -> Result<Space> {
        let Address::Nats { servers, space } = Address::parse(&self.url)? else {
            return Err(Error::misuse("this is no address of NATS; open other spaces with `Space::connect`"));
        };
        let env: Arc<dyn Env> = Arc::new(RealEnv::new());
        let member =
            self.member.unwrap_or_else(|| format!("{}-{:08x}", std::process::id(), env.random_u64() as u32));
        if let Some(folder) = self.folder {
            if self.mirror_of.is_some() || self.replicas.is_some() {
                return Err(Error::misuse(
                    "a store in a folder has no replicas and is no mirror of a log on NATS",
                ));
            }
            let link = LinkOptions::new(space, member).prefix(self.prefix);
            return joined_folder(folder, self.config, env, servers, (self.connection, self.options), link)
                .await;
        }
        let connection = match self.connection {
            Some(connection) => connection,
            None => connected(&env, &servers, &self.options).await?,
        };
        let mut store = NatsStoreOptions::new(space.as_str(), Arc::clone(&env))
            .prefix(self.prefix.as_str())
            .commit_wait(self.commit_wait)
            .over(&connection);
        if let Some(replicas) = self.replicas {
            store = store.replicas(replicas);
        }
        if let Some(domain) = self.mirror_of {
            store = store.mirror_of(domain);
        }
        let store = NatsStore::open(connection.client().clone(), store).await?;
        let link = LinkOptions::new(space, member).prefix(self.prefix);
        let link = NatsLink::new(&connection, Arc::clone(&env), link)?;
        let space = Space::with_store(self.config, env, Arc::new(store))?;
        space.join(link)?;
        Ok(space)
    }
}

/// Opens a folder, and joins it with the others as soon as a server can be reached.
async fn joined_folder(
    folder: PathBuf,
    config: Config,
    env: Arc<dyn Env>,
    servers: String,
    (connection, options): (Option<Connection>, ConnectOptions),
    link: LinkOptions,
) -> Result<Space> {
    let connection = match connection {
        Some(connection) => connection,
        None => Connection::open(&servers, options.retry_on_initial_connect()).await?,
    };
    let link = PatientLink::new(&connection, env, link)?;
    let space = Space::open_with(folder, config).await?;
    space.join(link)?;
    Ok(space)
}

/// Connects, and waits a moment for servers that are just starting.
async fn connected(env: &Arc<dyn Env>, servers: &str, options: &ConnectOptions) -> Result<Connection> {
    let mut waited = 0;
    loop {
        match Connection::open(servers, options.clone()).await {
            Err(error) if is_worth_a_wait(&error) && waited < limits::OPEN_WAIT_MS => {
                env.sleep(Duration::from_millis(limits::OPEN_AGAIN_MS)).await;
                waited += limits::OPEN_AGAIN_MS;
            }
            result => return result,
        }
    }
}

/// Whether another attempt may go better: who may not sign in now may not in a moment either.
fn is_worth_a_wait(error: &Error) -> bool {
    let refused = error.find_cause::<ConnectError>().is_some_and(|cause| {
        matches!(cause.kind(), ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication)
    });
    matches!(error.kind(), ErrorKind::Io { .. }) && !refused
}

/// The environment variable that says where a space is.
const URL_VARIABLE: &str = "HAPPEN_URL";
