//! Where a space remembers: the seam as the contract has it, and its implementation in memory. Knows nothing of what
//! is remembered.

mod memory;

pub use happen_core::store::{
    Batch, Bytes, Committed, Condition, Content, Document, History, Key, List, NewRecord, Order, Page, Past,
    Position, Prune, Pruned, Read, Record, Select, Start, Store, Tag, Until, Watch, Write,
};

pub use memory::MemoryStore;
