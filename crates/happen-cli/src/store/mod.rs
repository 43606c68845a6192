//! The commands over a store, live or stopped: where it is, how it is opened, and what its failures are called on a
//! command line. What a command does is in its own file; none knows the tables of a store.

pub(crate) mod content;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod flows;
pub(crate) mod hand;
pub(crate) mod ids;
pub(crate) mod inbox;
pub(crate) mod key;
pub(crate) mod moment;
pub(crate) mod nodes;
pub(crate) mod schedule;
pub(crate) mod state;
pub(crate) mod table;
pub(crate) mod tail;
pub(crate) mod upkeep;
pub(crate) mod verify;
pub(crate) mod web;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use happen::env::RealEnv;
use happen::journal::Journal;
use happen::store::{SqliteOptions, SqliteStore, Store, StoreFault};
use happen::{Error, ErrorKind};
use happen_core::env::Env;

use crate::failure::Failure;

/// Which store, and in which form to answer.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// The folder of the store [default: $HAPPEN_STORE, or else ./data]
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Place {
    /// The folder that was named, here or in the environment.
    pub(crate) fn folder(&self) -> PathBuf {
        let named = || std::env::var_os("HAPPEN_STORE").filter(|named| !named.is_empty()).map(PathBuf::from);
        self.store.clone().or_else(named).unwrap_or_else(|| PathBuf::from("./data"))
    }

    /// Opens the store to read, also while a process writes it. Makes nothing.
    ///
    /// # Errors
    ///
    /// [`Failure::Store`] when there is none, or it cannot be read.
    pub(crate) async fn open_to_read(&self) -> Result<SqliteStore, Failure> {
        open_to_read(&self.folder()).await
    }

    /// Opens the store to write, as its only process. Makes nothing.
    ///
    /// # Errors
    ///
    /// As [`Place::open_to_read`], and when a running space has it.
    pub(crate) async fn open_to_write(&self) -> Result<SqliteStore, Failure> {
        let folder = self.folder();
        // Opening to write would make a store where there is none.
        drop(open_to_read(&folder).await?);
        let opened = SqliteStore::open(&folder, options()).await;
        opened.map_err(|error| of_store(&folder, &error))
    }
}

/// Opens the store in this folder to read.
///
/// # Errors
///
/// As [`Place::open_to_read`].
pub(crate) async fn open_to_read(folder: &Path) -> Result<SqliteStore, Failure> {
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => {
            let folder = folder.display();
            return Err(Failure::Store(format!(
                "{folder} is not a folder; name the folder of a store with --store"
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = folder.display();
            return Err(Failure::Store(format!(
                "there is no folder {folder}; name the folder of a store with --store or HAPPEN_STORE"
            )));
        }
        Err(error) => {
            let folder = folder.display();
            return Err(Failure::Store(format!(
                "cannot look into {folder} ({error}); allow this user to read it"
            )));
        }
    }
    let opened = SqliteStore::open_read_only(folder, options().readers(1)).await;
    opened.map_err(|error| of_store(folder, &error))
}

/// Opens the store to read, and the journal of it.
///
/// # Errors
///
/// As [`Place::open_to_read`].
pub(crate) async fn journal(place: &Place) -> Result<(Arc<SqliteStore>, Journal), Failure> {
    let store = Arc::new(place.open_to_read().await?);
    let journal = Journal::new(Arc::clone(&store) as Arc<dyn Store>);
    Ok((store, journal))
}

/// What a failure of a store is on a command line: what happened, and what to do.
pub(crate) fn of_store(folder: &Path, error: &Error) -> Failure {
    let folder = folder.display();
    let text = match error.find_cause::<StoreFault>() {
        Some(StoreFault::InUse { pid, .. }) => {
            let holder = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            format!("{folder} belongs to a running space ({holder}); stop it and try again")
        }
        Some(StoreFault::NewerFormat { found, known }) => format!(
            "the store in {folder} has format {found} and this program knows {known}; use the program that wrote it"
        ),
        Some(StoreFault::Missing { .. }) => {
            format!("there is no store in {folder}; name the folder of one with --store or HAPPEN_STORE")
        }
        Some(StoreFault::NotAStore { file }) => {
            format!("{} is not the database of a store; name another folder with --store", file.display())
        }
        Some(StoreFault::ReadOnly { folder }) => {
            format!("{} cannot be written; allow this user to write there", folder.display())
        }
        Some(StoreFault::Full) => {
            format!("there is no room left on the disk of {folder}; make room and try again")
        }
        None => match error.kind() {
            ErrorKind::NotFound { what } => return Failure::NotFound(on_the_line(what)),
            ErrorKind::NoSuchNode { node } => {
                return Failure::NotFound(format!(
                    "no node `{node}` is there; `happen ps` lists those the store knows"
                ));
            }
            ErrorKind::Damaged { .. } | ErrorKind::Misuse { .. } => on_the_line(&error.to_string()),
            _ => on_the_line(&error.chain().join(": ")),
        },
        Some(_) => on_the_line(&error.to_string()),
    };
    Failure::Store(text)
}

/// What the framework tells programs to call, in the words of the command line.
fn on_the_line(text: &str) -> String {
    [
        ("`SqliteStore::verify`", "`happen store verify`"),
        ("`Journal::verify`", "`happen verify`"),
        ("`Store::list`", "`happen state ls`"),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (call, command)| text.replace(call, command))
}

/// How stores are opened here.
fn options() -> SqliteOptions {
    SqliteOptions::new(env())
}

/// Time and randomness of this process.
pub(crate) fn env() -> Arc<dyn Env> {
    Arc::new(RealEnv::new())
}

/// The time now, in milliseconds since 1970.
pub(crate) fn now_unix_ms() -> u64 {
    RealEnv::new().unix_ms()
}
