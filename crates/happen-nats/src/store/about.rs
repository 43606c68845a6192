//! What can be told of a log and its server by whoever looks after them. Owns the figures; changes nothing.

use std::path::Path;

use async_nats::jetstream::stream::StorageType;
use happen::store::{StoreInfo, Verified};
use happen_core::{Error, ErrorKind, Result};

use super::{NatsStore, writer};

/// What a server says of a log.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogInfo {
    /// The stream that is the log.
    pub stream: String,
    /// Its messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The sequence of the first message that is still there.
    pub first_sequence: u64,
    /// The sequence of the last message.
    pub last_sequence: u64,
    /// On how many servers it is to be kept.
    pub replicas: usize,
    /// On how many of them it is now, and up to date.
    pub replicas_current: usize,
    /// Which server leads the others; none while they choose, or where there is one.
    pub leader: Option<String>,
    /// Whether it is kept on disks.
    pub is_on_disk: bool,
    /// Up to which message a copy of the log is kept at the server; none before the first copy.
    pub copied_up_to: Option<u64>,
}

impl NatsStore {
    /// What the server says of the log at this moment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when it does not answer.
    ///
    /// # Cost
    ///
    /// Two round trips.
    pub async fn log_info(&self) -> Result<LogInfo> {
        let stream = self.server.stream.get_info().await.map_err(|error| {
            Error::new(ErrorKind::Io { what: format!("ask for the log: {}", writer::told(&error)) })
        })?;
        let copied_up_to = self.server.snapshots.kept().await?;
        let (leader, others) = stream.cluster.map_or((None, Vec::new()), |it| (it.leader, it.replicas));
        let current = others.iter().filter(|replica| replica.current && !replica.offline).count();
        Ok(LogInfo {
            stream: stream.config.name,
            messages: stream.state.messages,
            bytes: stream.state.bytes,
            first_sequence: stream.state.first_sequence,
            last_sequence: stream.state.last_sequence,
            replicas: stream.config.num_replicas,
            // The one that answers is none of the others.
            replicas_current: current + 1,
            leader,
            is_on_disk: stream.config.storage == StorageType::File,
            copied_up_to,
        })
    }

    /// How large the copy of the log in this process is.
    ///
    /// # Errors
    ///
    /// As [`SqliteStore::info`](happen::store::SqliteStore::info).
    pub async fn info(&self) -> Result<StoreInfo> {
        self.copy.store.info().await
    }

    /// Reads the whole copy in this process, which was made of the log, and tells what is not as it was written.
    ///
    /// # Errors
    ///
    /// As [`SqliteStore::verify`](happen::store::SqliteStore::verify).
    pub async fn verify(&self) -> Result<Verified> {
        self.copy.store.verify().await
    }

    /// Copies the log as it is now into a folder: a store like any other, which a space can be opened in.
    ///
    /// # Errors
    ///
    /// As [`SqliteStore::backup`](happen::store::SqliteStore::backup).
    pub async fn backup(&self, folder: &Path) -> Result<()> {
        self.copy.store.backup(folder).await
    }
}
