//! A store that is open, in a folder or on NATS. Owns what the two have in common for the commands, and what is different
//! to be told of them; does not know what is read.

use std::fs;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use happen::control::Client;
use happen::store::{SqliteOptions, SqliteStore, Store, StoreFault, StoreInfo, Verified};
use happen::{Error, ErrorKind};
use happen_nats::{Address, Connection, NatsStore};

use crate::failure::Failure;
use crate::store::reach::Reach;
use crate::store::{env, of_store};

/// A store that is open to be read, also while processes write it.
#[derive(Debug)]
pub(crate) struct Opened {
    at: Address,
    reach: Reach,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    Folder(Arc<SqliteStore>),
    Nats(Arc<NatsStore>, Box<Connection>),
}

impl Opened {
    /// Opens the store at this address. Makes nothing.
    ///
    /// # Errors
    ///
    /// [`Failure::Store`] when there is none, or it cannot be read.
    pub(crate) async fn at(address: &Address, reach: &Reach) -> Result<Self, Failure> {
        let kept = match address {
            Address::Folder(folder) => Kept::Folder(Arc::new(open_to_read(folder).await?)),
            Address::Nats { servers, space } => {
                let connection = connected(address, servers, reach).await?;
                let options = reach.log(space)?.existing();
                let opened = NatsStore::open(connection.client().clone(), options).await;
                let has_jetstream = connection.client().server_info().jetstream;
                let opened = opened.map_err(|error| match has_jetstream {
                    true => not_opened(address, &error),
                    false => without_jetstream(address),
                });
                Kept::Nats(Arc::new(opened?), Box::new(connection))
            }
            _ => return Err(in_memory()),
        };
        Ok(Self { at: address.clone(), reach: reach.clone(), kept })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &Address {
        &self.at
    }

    /// How one gets there.
    pub(crate) fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The store for whoever keeps it.
    pub(crate) fn shared(&self) -> Arc<dyn Store> {
        match &self.kept {
            Kept::Folder(store) => Arc::clone(store) as Arc<dyn Store>,
            Kept::Nats(store, _) => Arc::clone(store) as Arc<dyn Store>,
        }
    }

    /// The log on NATS, and the connection to it.
    pub(crate) fn nats(&self) -> Option<(&NatsStore, &Connection)> {
        match &self.kept {
            Kept::Folder(_) => None,
            Kept::Nats(store, connection) => Some((store, connection)),
        }
    }

    /// As [`SqliteStore::info`]; over NATS of the copy in this process.
    pub(crate) async fn info(&self) -> Result<StoreInfo, Failure> {
        let info = match &self.kept {
            Kept::Folder(store) => store.info().await,
            Kept::Nats(store, _) => store.info().await,
        };
        info.map_err(|error| of_store(&self.at, &error))
    }

    /// As [`SqliteStore::verify`]; over NATS of the copy in this process.
    pub(crate) async fn verify(&self) -> Result<Verified, Failure> {
        let verified = match &self.kept {
            Kept::Folder(store) => store.verify().await,
            Kept::Nats(store, _) => store.verify().await,
        };
        verified.map_err(|error| of_store(&self.at, &error))
    }

    /// As [`SqliteStore::backup`].
    pub(crate) async fn backup(&self, to: &Path) -> Result<(), Failure> {
        let copied = match &self.kept {
            Kept::Folder(store) => store.backup(to).await,
            Kept::Nats(store, _) => store.backup(to).await,
        };
        copied.map_err(|error| of_store(&Address::Folder(to.to_owned()), &error))
    }

    /// Closes it, once what was asked for is written.
    pub(crate) async fn close(&self) {
        match &self.kept {
            Kept::Folder(store) => store.close().await,
            Kept::Nats(store, _) => store.close().await,
        }
    }
}

impl Deref for Opened {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        match &self.kept {
            Kept::Folder(store) => &**store,
            Kept::Nats(store, _) => &**store,
        }
    }
}

/// Connects to the servers of an address.
///
/// # Errors
///
/// [`Failure::Store`], which has nothing secret of the address in it.
pub(crate) async fn connected(
    address: &Address,
    servers: &str,
    reach: &Reach,
) -> Result<Connection, Failure> {
    let opened = reach.connector(servers)?.connect().await;
    opened.map_err(|error| match error.kind() {
        // What is said of an address is its own words, and of a file those of who reads it.
        ErrorKind::Misuse { .. } if error.find_cause::<io::Error>().is_some() => {
            Failure::Store(format!("{address} is no address of NATS; write {FORM}"))
        }
        _ if error.find_cause::<async_nats::ConnectError>().is_none() => {
            Failure::Store(error.chain().join(": "))
        }
        _ => {
            let why = error.chain().pop().unwrap_or_default();
            Failure::Store(format!(
                "no server lets this program in at {address} ({why}); start it, or name {FORM}"
            ))
        }
    })
}

fn not_opened(address: &Address, error: &Error) -> Failure {
    match error.kind() {
        ErrorKind::NotFound { .. } => Failure::Store(format!(
            "there is no space at {address}; name one behind the address of its server: {FORM}"
        )),
        _ => of_store(address, error),
    }
}

fn without_jetstream(address: &Address) -> Failure {
    Failure::Store(format!(
        "JetStream is off on the server at {address}; write `jetstream {{ store_dir: PATH, sync_interval: always }}` into \
         its configuration"
    ))
}

/// The failure of what is asked of a space that only its process has.
pub(crate) fn in_memory() -> Failure {
    Failure::Store(
        "a space in memory is in its process alone; name the folder of a store, or an address of NATS, with --store"
            .to_owned(),
    )
}

/// Opens the store in this folder to read.
///
/// # Errors
///
/// As [`Opened::at`].
pub(crate) async fn open_to_read(folder: &Path) -> Result<SqliteStore, Failure> {
    check_folder(folder)?;
    let opened = SqliteStore::open_read_only(folder, options().readers(1)).await;
    opened.map_err(|error| match error.find_cause::<StoreFault>() {
        // What cannot be opened to read is told by the same fault as what cannot be opened to write.
        Some(StoreFault::ReadOnly { folder }) => {
            Failure::Store(format!("{} cannot be read; allow this user to read it", folder.display()))
        }
        _ => of_store(&Address::Folder(folder.to_owned()), &error),
    })
}

/// Tells what is wrong with a path that should be the folder of a store.
///
/// # Errors
///
/// [`Failure::Store`] when there is nothing, or no folder, or it cannot be looked at.
pub(crate) fn check_folder(folder: &Path) -> Result<(), Failure> {
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => {
            let folder = folder.display();
            Err(Failure::Store(format!("{folder} is not a folder; name the folder of a store with --store")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = folder.display();
            Err(Failure::Store(format!(
                "there is no folder {folder}; name the folder of a store with --store or HAPPEN_STORE"
            )))
        }
        Err(error) => {
            let folder = folder.display();
            Err(Failure::Store(format!("cannot look into {folder} ({error}); allow this user to read it")))
        }
    }
}

/// The way to the space that runs in this folder, if one does.
///
/// # Errors
///
/// As [`check_folder`], and [`Failure::Store`] when this user may not ask the space.
pub(crate) fn channel(folder: &Path) -> Result<Option<Client>, Failure> {
    check_folder(folder)?;
    Client::connect(folder).map_err(|error| match error.find_cause::<io::Error>() {
        Some(cause) if cause.kind() == io::ErrorKind::PermissionDenied => Failure::Store(format!(
            "this user may not ask the space in {}; do it as the one whose space it is",
            folder.display()
        )),
        _ => of_store(&Address::Folder(folder.to_owned()), &error),
    })
}

/// Opens the store in this folder to write, as its only process. Makes nothing.
///
/// # Errors
///
/// As [`Opened::at`], and when a running space has it.
pub(crate) async fn open_to_write(folder: &Path) -> Result<SqliteStore, Failure> {
    // Opening to write would make a store where there is none.
    drop(open_to_read(folder).await?);
    let opened = SqliteStore::open(folder, options()).await;
    opened.map_err(|error| of_store(&Address::Folder(folder.to_owned()), &error))
}

/// How stores are opened here.
fn options() -> SqliteOptions {
    SqliteOptions::new(env())
}

const FORM: &str = "nats://HOST:PORT/SPACE";
