//! The commands over a store, live or stopped: where it is, how it is opened, and what its failures are called on a
//! command line. What a command does is in its own file; none knows the tables of a store.

pub(crate) mod balance;
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
pub(crate) mod opened;
pub(crate) mod owners;
pub(crate) mod presence;
pub(crate) mod reach;
pub(crate) mod region;
pub(crate) mod schedule;
pub(crate) mod server;
pub(crate) mod state;
pub(crate) mod table;
pub(crate) mod tail;
pub(crate) mod upkeep;
pub(crate) mod verify;
pub(crate) mod web;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueHint};
use happen::env::RealEnv;
use happen::journal::Journal;
use happen::store::StoreFault;
use happen::{Error, ErrorKind};
use happen_core::env::Env;
use happen_nats::Address;

use crate::failure::Failure;
use crate::store::opened::Opened;
use crate::store::reach::Reach;

/// Which store, and in which form to answer.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// The folder of the store, or nats://HOST:PORT/SPACE [default: $HAPPEN_STORE, $HAPPEN_URL, or else ./data]
    #[arg(long, visible_alias = "url", value_name = "ADDRESS", value_hint = ValueHint::AnyPath)]
    store: Option<OsString>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// How to get there, when it is on NATS.
    #[command(flatten)]
    pub(crate) reach: Reach,
}

impl Place {
    /// The address that was named, here or in the environment.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] when it means nothing.
    pub(crate) fn address(&self) -> Result<Address, Failure> {
        let named = |name| std::env::var_os(name).filter(|named| !named.is_empty());
        let named = self.store.clone().or_else(|| named("HAPPEN_STORE")).or_else(|| named("HAPPEN_URL"));
        let Some(named) = named else { return Ok(Address::Folder(PathBuf::from("./data"))) };
        // The name of a folder need not be a text.
        match named.to_str() {
            Some(text) => Address::parse(text).map_err(|error| Failure::Usage(error.to_string())),
            None => Ok(Address::Folder(named.into())),
        }
    }

    /// Opens the store to read, also while processes write it. Makes nothing.
    ///
    /// # Errors
    ///
    /// As [`Opened::at`] and [`Place::address`].
    pub(crate) async fn open_to_read(&self) -> Result<Opened, Failure> {
        Opened::at(&self.address()?, &self.reach).await
    }
}

/// Opens the store to read, and the journal of it.
///
/// # Errors
///
/// As [`Place::open_to_read`].
pub(crate) async fn journal(place: &Place) -> Result<(Opened, Journal), Failure> {
    let store = place.open_to_read().await?;
    let journal = Journal::new(store.shared());
    Ok((store, journal))
}

/// What a failure of a store is on a command line: what happened, and what to do.
pub(crate) fn of_store(at: &Address, error: &Error) -> Failure {
    let folder = at;
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

/// Time and randomness of this process.
pub(crate) fn env() -> Arc<dyn Env> {
    Arc::new(RealEnv::new())
}

/// The time now, in milliseconds since 1970.
pub(crate) fn now_unix_ms() -> u64 {
    RealEnv::new().unix_ms()
}
