//! Following the log, record by record. Owns what was given and what comes next; does not know who looks on.

use std::collections::VecDeque;
use std::fmt;

use happen_core::Result;
use happen_core::store::{Position, Record, Select, Watch};

use super::Journal;
use super::entry::Entry;

/// A reader that follows the log.
///
/// # Cost
///
/// At most a page of records is held, however long the log is and however slowly it is read.
pub struct Tail {
    watch: Box<dyn Watch>,
    waiting: VecDeque<Record>,
    position: Position,
}

impl Journal {
    /// Follows the log behind this position: the records there are, and then those that come, each once and in order.
    /// [`Position::START`] is before all; [`Journal::head`] is behind all there are.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use happen::env::RealEnv;
    /// # use happen::store::{Batch, MemoryStore, NewRecord, Store};
    /// use happen::journal::Journal;
    /// use happen::store::{Position, Select};
    /// # use happen_core::codec::WireRecord;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::new(RealEnv::new())));
    /// # let mut bytes = Vec::new();
    /// # WireRecord::default().encode_into(&mut bytes, 100)?;
    /// # let record = NewRecord { tags: Vec::new(), bytes: bytes.into() };
    /// # store.commit(vec![Batch { records: vec![record], ..Batch::default() }]).await.remove(0)?;
    /// let journal = Journal::new(store);
    /// let mut tail = journal.tail(Select::All, Position::START).await?;
    /// let entry = tail.next().await?;
    /// assert_eq!(tail.position(), entry.position);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn tail(&self, select: Select, after: Position) -> Result<Tail> {
        let watch = self.store.watch(select, after).await?;
        Ok(Tail { watch, waiting: VecDeque::new(), position: after })
    }

    /// How far the log goes.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says.
    pub async fn head(&self) -> Result<Position> {
        let read = happen_core::store::Read::backward(Select::All).at_most(0);
        Ok(self.store.read(read).await?.head)
    }
}

impl Tail {
    /// The next record, as soon as there is one.
    ///
    /// # Errors
    ///
    /// As [`Journal`] says. After [`ErrorKind::Damaged`](crate::ErrorKind::Damaged), which names the position of a
    /// record that cannot be read, a further call goes on behind that record.
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) once the store has gone.
    ///
    /// # Cancel safety
    ///
    /// A record counts as given when the future ends with it. Dropping the future before loses nothing.
    pub async fn next(&mut self) -> Result<Entry> {
        if self.waiting.is_empty() {
            self.waiting = self.watch.next().await?.into();
        }
        let Some(record) = self.waiting.pop_front() else {
            // A watch gives at least one record, so this store breaks its promise.
            return Err(happen_core::Error::msg(
                "a watch of the store ended without a record; please report this",
            ));
        };
        self.position = record.position;
        Entry::read(&record)
    }

    /// The position of the record that was given last. A tail that starts there misses nothing.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tail(after {}, {} waiting)", self.position, self.waiting.len())
    }
}
