//! Where a space remembers: the seam as the contract has it, its implementations in memory and in a folder, and the
//! documents of live nodes. Knows nothing of what the documents are for.

mod live;
mod memory;
#[cfg(feature = "embedded")]
mod sqlite;

pub use happen_core::store::{
    Batch, Bytes, Committed, Condition, Content, Document, History, Key, List, NewRecord, Order, Page, Past,
    Position, Prune, Pruned, Read, Record, Replaced, Select, Start, Store, Tag, Until, Watch, Write,
};

pub(crate) use live::SpaceStore;
pub use memory::MemoryStore;
#[cfg(feature = "embedded")]
pub use sqlite::{SqliteOptions, SqliteStore, StoreDamage, StoreFault, StoreInfo, Verified};
