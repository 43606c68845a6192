//! Contract suites, virtual time and test tools for Happen. It knows the contract in `happen-core` and not the
//! framework above it, so that the framework's own tests can use it.
//!
//! What is here fails by panicking, with a message that says how to see the failure again: it is made for tests.

pub mod limits;

mod contract;
mod disk;
mod faulty_link;
mod faulty_store;
pub mod link;
mod migrations;
mod nats_server;
mod noise;
mod panic_text;
mod seeds;
mod set_clock;
mod simulator;
pub mod store_contract;
mod way;

pub use disk::{ImageDisk, SmallDisk, TestDisk, unwritten_pages};
pub use faulty_link::FaultyLink;
pub use faulty_store::{Dies, FaultyStore};
pub use migrations::Migrations;
pub use nats_server::{
    NatsCluster, NatsServer, NatsSetup, RouteTo, find_nats_server_program, nats_server_program,
};
pub use noise::noise;
pub use seeds::{SeedOutcome, check_seeds};
pub use set_clock::SetClock;
pub use simulator::{RunError, RunErrorKind, Simulator};
pub use way::Way;
