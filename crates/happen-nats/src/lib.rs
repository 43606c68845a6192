//! Happen across machines: NATS JetStream as link and store.

mod bytes;
pub mod limits;
mod names;
mod store;

pub use store::{NatsStore, NatsStoreOptions};
