//! What can be wrong with a folder, a file or a disk, as errors that say what to do. Owns the wording; does not know
//! which operation met it.

use std::path::{Path, PathBuf};

use happen_core::{Error, ErrorKind, Result};
use rusqlite::ErrorCode;

/// What is wrong with the folder of an embedded store. The source of the [`Error`] that tells of it:
/// [`Error::find_cause`] finds it there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreFault {
    /// Another running space has it. The error's kind is [`ErrorKind::Busy`].
    #[error("the lock of {folder} is held by {}", holder(*.pid))]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The process, as far as it could be read.
        pid: Option<u32>,
    },
    /// A later version of this crate wrote it ([`ErrorKind::Misuse`]).
    #[error("the format is {found} and {known} is known")]
    NewerFormat {
        /// The version of the format found.
        found: i64,
        /// The newest that this version reads.
        known: i64,
    },
    /// Nothing may be written there ([`ErrorKind::Misuse`]).
    #[error("{folder} is read-only")]
    ReadOnly {
        /// The folder.
        folder: PathBuf,
    },
    /// There is no store ([`ErrorKind::Misuse`]).
    #[error("{folder} has no store")]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// The file where the database should be is something else ([`ErrorKind::Misuse`]).
    #[error("{file} is not the database of a store")]
    NotAStore {
        /// The file.
        file: PathBuf,
    },
    /// The disk, or the room that the options allow, is used up ([`ErrorKind::Io`]).
    #[error("there is no room left")]
    Full,
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// Says of a result of SQLite what was being done.
pub(super) trait Fault<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Fault<T> for rusqlite::Result<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| sql(what(), error))
    }
}

#[cold]
fn sql(what: String, error: rusqlite::Error) -> Error {
    use rusqlite::Error as E;
    match &error {
        E::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::DatabaseCorrupt => structure(&what).with_source(error),
            ErrorCode::NotADatabase => {
                let what = format!("{what}: the file is not a database, or its beginning is damaged");
                Error::misuse(format!("{what}; give another folder, or restore a backup")).with_source(error)
            }
            ErrorCode::DiskFull => {
                let what = format!("{what}: there is no room left; make room, or prune, and try again; that");
                Error::new(ErrorKind::Io { what }).with_source(StoreFault::Full)
            }
            _ => Error::new(ErrorKind::Io { what }).with_source(error),
        },
        // A value of another kind than was written there.
        E::FromSqlConversionFailure(..)
        | E::IntegralValueOutOfRange(..)
        | E::InvalidColumnType(..)
        | E::Utf8Error(..)
        | E::QueryReturnedNoRows => structure(&what).with_source(error),
        _ => Error::new(ErrorKind::Io { what }).with_source(error),
    }
}

/// Damage to the shape of the file, which SQLite found.
fn structure(what: &str) -> Error {
    damaged(format!(
        "the database (met while trying to {what}); other parts of it may be readable: `SqliteStore::verify` tells \
         which; keep a copy of the folder and restore a backup"
    ))
}

/// Damage, in words.
#[cold]
pub(super) fn damaged(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Damaged { what: what.into() })
}

/// A record that is not what was written.
#[cold]
pub(super) fn record(position: i64, why: &str) -> Error {
    damaged(format!(
        "the record at position {position}: {why}; those before it and behind it are readable, so read on from its \
         position, or restore a backup; `SqliteStore::verify` finds all that is damaged"
    ))
}

/// A document that is not what was written.
#[cold]
pub(super) fn document(key: &str, why: &str) -> Error {
    damaged(format!(
        "document `{key}`: {why}; all others are readable; restore a backup, or write the document anew; \
         `SqliteStore::verify` finds all that is damaged"
    ))
}

#[cold]
pub(super) fn not_a_store(file: &Path) -> Error {
    let what = format!("{} is a database of something else; give another folder", file.display());
    Error::misuse(what).with_source(StoreFault::NotAStore { file: file.to_owned() })
}

/// A failure of the file system.
#[cold]
pub(super) fn file(doing: &str, path: &Path, error: std::io::Error) -> Error {
    use std::io::ErrorKind as K;
    match error.kind() {
        K::PermissionDenied | K::ReadOnlyFilesystem => {
            let what = format!(
                "a store in {} cannot be written ({error}): allow this user to write there, give another folder, or \
                 open it with `SqliteStore::open_read_only`",
                path.display()
            );
            Error::misuse(what).with_source(StoreFault::ReadOnly { folder: path.to_owned() })
        }
        // A folder that is there already is made without an error: this is something else, or lies behind it.
        K::AlreadyExists | K::NotADirectory => {
            Error::misuse(format!("{} is not a folder, and cannot become one; give another", path.display()))
                .with_source(error)
        }
        K::StorageFull | K::QuotaExceeded => {
            let what =
                format!("{doing} {}: there is no room left; make room and try again; that", path.display());
            Error::new(ErrorKind::Io { what }).with_source(StoreFault::Full)
        }
        _ => Error::new(ErrorKind::Io { what: format!("{doing} {}", path.display()) }).with_source(error),
    }
}

#[cold]
pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed { what: "the store".to_owned() })
}

/// A second error that says the same, and whose cause can still be told by its type.
#[cold]
pub(super) fn again(error: &Error) -> Error {
    let copy = error.duplicate();
    match error.find_cause::<StoreFault>() {
        Some(cause) => copy.with_source(cause.clone()),
        None => copy,
    }
}
