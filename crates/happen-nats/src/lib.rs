//! Happen across machines: NATS JetStream as link and store.

pub mod limits;
pub mod link;

#[doc(hidden)]
pub use link::read_message;
pub use link::{Connection, LinkOptions, NatsLink};
