//! Happen across machines: NATS JetStream as link and store.

mod address;
mod bytes;
mod connect;
pub mod limits;
pub mod link;
mod names;
mod store;

pub use address::Address;
pub use connect::{Connect, Nats};
#[doc(hidden)]
pub use link::read_message;
pub use link::{Connection, LinkOptions, NatsLink, PatientLink};
#[doc(hidden)]
pub use store::read_log_message;
pub use store::{Former, LogInfo, LogPlace, LogRegion, NatsStore, NatsStoreOptions, TakenOver};
