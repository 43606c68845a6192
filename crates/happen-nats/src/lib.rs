//! Happen across machines: NATS JetStream as link and store.

mod bytes;
pub mod limits;
pub mod link;
mod names;
mod store;

#[doc(hidden)]
pub use link::read_message;
pub use link::{Connection, LinkOptions, NatsLink};
pub use store::{NatsStore, NatsStoreOptions};
