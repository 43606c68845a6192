//! A real NATS server for tests: started in a folder of its own on a port that the system chooses, killed, paused and
//! started again at will, gone with the value. Owns the process and its configuration; knows no client.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "what is missing fails the test that asks for it"
)]
#![expect(clippy::disallowed_methods, reason = "a process is real, and so is the time it takes to start")]

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use crate::disk::TestDisk;
use crate::limits;

/// A server with JetStream that syncs every write, on loopback, in a temporary folder.
///
/// # Panics
///
/// Everything here panics when the server is not installed or does not do what it is told, and says what to do.
///
/// # Examples
///
/// ```
/// let mut server = happen_testing::NatsServer::start();
/// let url = server.url();
/// server.restart();
/// assert_eq!(server.url(), url);
/// ```
#[derive(Debug)]
pub struct NatsServer {
    name: String,
    folder: PathBuf,
    /// Where it keeps its streams.
    store: PathBuf,
    /// What starts its program, if that needs to be started in some place.
    starter: Vec<String>,
    port: u16,
    /// What the configuration says of JetStream beside the folder.
    jetstream: String,
    /// What it says of the cluster, for a server of one.
    cluster: String,
    /// What it says of the regions around, for a server of one.
    region: Option<Region>,
    /// What the configuration has beside all that.
    config: String,
    child: Option<Child>,
    /// How much it had written to its log when it was started last.
    log_before: usize,
    /// Gone with the last server that uses it.
    _temporary: Option<tempfile::TempDir>,
}

/// Where a server is that belongs to one of several regions.
#[derive(Debug, Clone)]
struct Region {
    domain: String,
    /// The ports of those it goes to.
    remotes: Vec<u16>,
    /// Where it listens for others that come to it.
    port: u16,
}

/// A server that is about to be started, or several of them, with more to say than nothing.
///
/// # Examples
///
/// ```
/// use happen_testing::NatsSetup;
///
/// let server = NatsSetup::new().config("max_payload: 65536").start();
/// assert!(server.url().starts_with("nats://"));
/// ```
#[derive(Debug, Clone)]
pub struct NatsSetup {
    jetstream: String,
    config: String,
    store: Option<PathBuf>,
    starter: Vec<String>,
    region: Option<(String, Vec<u16>)>,
}

impl Default for NatsSetup {
    fn default() -> Self {
        Self::new()
    }
}

impl NatsSetup {
    /// One that syncs every write, and keeps its streams in its own temporary folder.
    #[must_use]
    pub fn new() -> Self {
        Self {
            jetstream: "sync_interval: always".to_owned(),
            config: String::new(),
            store: None,
            starter: Vec::new(),
            region: None,
        }
    }

    /// The same with further lines of configuration.
    #[must_use]
    pub fn config(self, lines: &str) -> Self {
        Self { config: lines.to_owned(), ..self }
    }

    /// The same with this in the part about JetStream, where it stands instead of `sync_interval: always`.
    #[must_use]
    pub fn jetstream(self, settings: &str) -> Self {
        Self { jetstream: settings.to_owned(), ..self }
    }

    /// The same with its streams on this disk.
    #[must_use]
    pub fn on(self, disk: &impl TestDisk) -> Self {
        Self { store: Some(disk.folder().join("jetstream")), starter: disk.starter(), ..self }
    }

    /// The same in a region: a JetStream domain with this name. It takes servers of other regions as leaf nodes at
    /// [`NatsServer::leaf_port`], and goes itself as a leaf node to the first of these ports at which somebody is. Of a
    /// cluster each server begins with another one.
    #[must_use]
    pub fn region(self, domain: &str, remotes: &[u16]) -> Self {
        Self { region: Some((domain.to_owned(), remotes.to_vec())), ..self }
    }

    /// Starts the server.
    #[must_use]
    pub fn start(self) -> NatsServer {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        // Servers of all regions are told apart by their names.
        let name = self.region.as_ref().map_or("alone", |(domain, _)| domain);
        let mut server = self.server(name, temporary.path());
        server._temporary = Some(temporary);
        server.starter = self.starter;
        if let Some(store) = self.store {
            server.store = store;
        }
        // Somebody else may take a port between the choice and the start.
        for _ in 1..STARTS_MAX {
            server.launch();
            if server.is_ready() {
                return server;
            }
            server.choose_ports();
        }
        server.restart();
        server
    }

    /// Starts so many servers that know each other, with the ways between them that are asked for: each server reaches each
    /// other one at the port that is given for it, and nowhere else. Clients know the servers that they are told of and no
    /// others.
    #[must_use]
    pub fn start_cluster(self, count: usize, mut way: impl FnMut(RouteTo) -> u16) -> NatsCluster {
        for _ in 1..STARTS_MAX {
            let mut cluster = self.cluster(count, &mut way);
            // As for one alone.
            if cluster.servers.iter_mut().all(NatsServer::is_ready) {
                return cluster;
            }
        }
        let mut cluster = self.cluster(count, &mut way);
        cluster.servers.iter_mut().for_each(NatsServer::until_ready);
        cluster
    }

    fn cluster(&self, count: usize, way: &mut impl FnMut(RouteTo) -> u16) -> NatsCluster {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let ports: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let mut servers = Vec::with_capacity(count);
        for (from, port) in ports.iter().enumerate() {
            let [of, cluster] =
                ["server", "happen"].map(|name| self.region.as_ref().map_or(name, |(domain, _)| domain));
            let name = format!("{of}-{from}");
            let mut routes = String::new();
            for (to, port) in ports.iter().enumerate().filter(|(to, _)| *to != from) {
                let port = way(RouteTo { from, to, port: *port });
                write!(routes, "\"nats://127.0.0.1:{port}\", ").unwrap();
            }
            let mut server = self.server(&name, &temporary.path().join(&name));
            if let Some(region) = server.region.as_mut().filter(|region| !region.remotes.is_empty()) {
                let first = from % region.remotes.len();
                region.remotes.rotate_left(first);
            }
            // What is told to the others as the own address leads nowhere: they know the way.
            server.cluster = format!(
                "cluster {{ name: {cluster}, listen: \"127.0.0.1:{port}\", advertise: \"127.0.0.1:{NOWHERE}\", \
                 no_advertise: true, routes: [{routes}] }}"
            );
            server.launch();
            servers.push(server);
        }
        NatsCluster { servers, _temporary: temporary }
    }

    fn server(&self, name: &str, folder: &Path) -> NatsServer {
        let mut server = NatsServer::new(name, folder, &self.config);
        server.jetstream.clone_from(&self.jetstream);
        if let Some((domain, remotes)) = &self.region {
            let (domain, remotes) = (domain.clone(), remotes.clone());
            server.region = Some(Region { domain, remotes, port: free_port() });
        }
        server
    }
}

/// Servers that form a cluster.
#[derive(Debug)]
pub struct NatsCluster {
    /// The servers, in the order of their names.
    pub servers: Vec<NatsServer>,
    _temporary: tempfile::TempDir,
}

impl NatsServer {
    /// Starts a server.
    #[must_use]
    pub fn start() -> Self {
        Self::with("")
    }

    /// Starts a server with further lines of configuration.
    #[must_use]
    pub fn with(config: &str) -> Self {
        NatsSetup::new().config(config).start()
    }

    fn new(name: &str, folder: &Path, config: &str) -> Self {
        Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            store: folder.join("jetstream"),
            starter: Vec::new(),
            port: free_port(),
            jetstream: NatsSetup::new().jetstream,
            cluster: String::new(),
            region: None,
            log_before: 0,
            config: config.to_owned(),
            child: None,
            _temporary: None,
        }
    }

    /// The address for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port for clients.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port for servers of other regions, of one that is in a region.
    #[must_use]
    pub fn leaf_port(&self) -> u16 {
        self.region.as_ref().expect("the server was started in a region").port
    }

    fn choose_ports(&mut self) {
        self.port = free_port();
        if let Some(region) = &mut self.region {
            region.port = free_port();
        }
    }

    /// What the server wrote to its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The number of its process, while it runs.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills the process at once: nothing is written or said any more.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server can be killed");
            child.wait().expect("the server has ended");
        }
    }

    /// Has the server stand still, as a machine does that lost its processor: its connections stay.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets a paused server go on.
    pub fn go_on(&self) {
        self.signal("-CONT");
    }

    /// Has the running server take other further lines of configuration. Ends when it has.
    pub fn reload(&mut self, config: &str) {
        const TAKEN: &str = "Reloaded server configuration";
        config.clone_into(&mut self.config);
        self.write_config();
        let before = self.log().matches(TAKEN).count();
        self.signal("-HUP");
        for _ in 0..limits::LOOKS_MAX {
            if self.log().matches(TAKEN).count() > before {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("the NATS server does not take its new configuration: {}", self.log());
    }

    /// The folder in which the server keeps its streams.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Starts the server again, on the same port and folder, after killing the one that runs. Ends when it takes clients.
    pub fn restart(&mut self) {
        self.launch();
        self.until_ready();
    }

    fn until_ready(&mut self) {
        assert!(self.is_ready(), "the NATS server ended: {}", self.log());
    }

    fn launch(&mut self) {
        self.kill();
        let program = nats_server_program();
        let file = self.write_config();
        self.log_before = self.log().len();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).expect("a log file");
        let mut starting: Vec<&OsStr> = self.starter.iter().map(OsStr::new).collect();
        starting.push(program.as_os_str());
        let started = Command::new(starting[0])
            .args(&starting[1..])
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child =
            Some(started.unwrap_or_else(|error| panic!("{} does not start: {error}", program.display())));
    }

    fn write_config(&self) -> PathBuf {
        let (mut domain, mut leafs) = (String::new(), String::new());
        if let Some(region) = &self.region {
            domain = format!(", domain: {}", region.domain);
            let urls =
                region.remotes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect::<Vec<_>>();
            let remotes = match &urls[..] {
                [] => String::new(),
                urls => format!("{{ urls: [{}], no_randomize: true }}", urls.join(", ")),
            };
            leafs = format!(
                "leafnodes {{ listen: \"127.0.0.1:{}\", no_advertise: true, reconnect: 1, remotes: [{remotes}] }}",
                region.port
            );
        }
        let config = format!(
            "server_name: {name}\nlisten: \"127.0.0.1:{port}\"\n\
             jetstream {{ store_dir: {store:?}, {jetstream}{domain} }}\n{cluster}\n{leafs}\n{more}\n",
            name = self.name,
            port = self.port,
            store = self.store,
            jetstream = self.jetstream,
            cluster = self.cluster,
            more = self.config,
        );
        let file = self.folder.join("server.conf");
        fs::create_dir_all(&self.folder).expect("a folder for the server");
        fs::write(&file, config).expect("the configuration can be written");
        file
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// Waits until the server says that it is ready, and greets a client: another one may have its port. False when the
    /// process has ended.
    fn is_ready(&mut self) -> bool {
        for _ in 0..limits::LOOKS_MAX {
            let child = self.child.as_mut().expect("the server was started");
            if child.try_wait().expect("the server can be asked").is_some() {
                return false;
            }
            let says = self.log().get(self.log_before..).is_some_and(|log| log.contains(READY));
            if says && greeting(self.port).is_some_and(|info| info.contains("\"jetstream\":true")) {
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("the NATS server takes no clients: {}", self.log());
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().expect("the server runs").id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().expect("`kill` is there");
        assert!(sent.success(), "`kill {signal} {id}` failed");
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A way from one server of a cluster to another.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RouteTo {
    /// Which server connects, counted from zero.
    pub from: usize,
    /// To which one.
    pub to: usize,
    /// The port that the other one listens on.
    pub port: u16,
}

impl NatsCluster {
    /// Starts so many servers that know each other. They may take a moment longer to agree on who leads.
    #[must_use]
    pub fn start(count: usize) -> Self {
        Self::with("", count, |to| to.port)
    }

    /// Starts so many servers, each with further lines of configuration, and with ways between them as with
    /// [`NatsSetup::start_cluster`].
    #[must_use]
    pub fn with(config: &str, count: usize, way: impl FnMut(RouteTo) -> u16) -> Self {
        NatsSetup::new().config(config).start_cluster(count, way)
    }

    /// Kills all servers.
    pub fn kill_all(&mut self) {
        self.servers.iter_mut().for_each(NatsServer::kill);
    }

    /// Kills all servers and starts them again.
    pub fn restart_all(&mut self) {
        self.kill_all();
        self.servers.iter_mut().for_each(NatsServer::launch);
        self.servers.iter_mut().for_each(NatsServer::until_ready);
    }

    /// The addresses of all servers for clients, separated by commas.
    #[must_use]
    pub fn url(&self) -> String {
        self.servers.iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }

    /// The server with this name, such as the one that a stream's information calls its leader.
    #[must_use]
    pub fn named(&mut self, name: &str) -> Option<&mut NatsServer> {
        self.servers.iter_mut().find(|server| server.name == name)
    }
}

/// The first line that a server says to a client, if it takes any.
fn greeting(port: u16) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    Some(line)
}

/// A port that nobody listens on at this moment. A server that is started again needs the one it had.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port on loopback");
    listener.local_addr().expect("the port's number").port()
}

/// The program of a NATS server: the one that `HAPPEN_NATS_SERVER` names, whether it is there or not; else the one in the
/// tools folder of the project around, or one on the path. `None` when there is none.
#[must_use]
pub fn find_nats_server_program() -> Option<PathBuf> {
    if let Some(named) = env::var_os(PROGRAM_VARIABLE).filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let here = env::current_dir().ok();
    let own = here.iter().flat_map(|here| here.ancestors()).map(|folder| folder.join(OWN));
    let paths = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&paths).map(|folder| folder.join("nats-server"));
    own.chain(on_path).find(|path| path.is_file())
}

/// The same for whoever cannot do without.
///
/// # Panics
///
/// When there is none; the text says how to install one.
#[must_use]
pub fn nats_server_program() -> PathBuf {
    find_nats_server_program().unwrap_or_else(|| {
        panic!(
            "no NATS server is installed; install one into the project with `cargo xtask setup`, put `nats-server` \
             2.15 or later on the path, or name one in {PROGRAM_VARIABLE}"
        )
    })
}

/// What a server writes to its log when it takes clients.
const READY: &str = "Server is ready";

/// A port that nobody listens on.
const NOWHERE: u16 = 1;

/// How often a new server tries a port.
const STARTS_MAX: usize = 5;

/// Where this project installs its own.
const OWN: &str = ".tools/nats/bin/nats-server";

/// The environment variable that names the server's program.
const PROGRAM_VARIABLE: &str = "HAPPEN_NATS_SERVER";
