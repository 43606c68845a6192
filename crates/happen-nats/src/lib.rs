//! Happen across machines: NATS JetStream as link and store.

mod access;
mod address;
mod bytes;
mod connect;
pub mod limits;
pub mod link;
mod names;
mod store;

pub use access::Access;
pub use address::Address;
pub use connect::{Connect, Nats, connection};
#[doc(hidden)]
pub use link::read_message;
pub use link::{Connection, Connector, LinkOptions, NatsLink, PatientLink, Traffic};
#[doc(hidden)]
pub use store::read_log_message;
pub use store::{
    Followed, Former, LogInfo, LogPlace, LogRegion, NatsStore, NatsStoreOptions, OtherRegion, Surplus,
    TakenOver,
};
