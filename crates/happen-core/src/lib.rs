//! The contract under Happen, without a runtime: what an event is, what caused it, which patterns match it,
//! what a step returns, how bytes look, and the three seams. It knows no clock, no task and no thread.
//!
//! Users take the crate `happen`, which re-exports what they need. Adapters build on this one.

pub mod error;
pub mod event;
pub mod id;
pub mod name;
pub mod payload;
pub mod state;
pub mod step;
pub mod value;

pub mod codec;
pub mod hash;
pub mod raw;

pub mod env;
pub mod limits;

pub use error::{Error, ErrorKind, Result};
pub use event::{Envelope, Event, NodeKey};
pub use id::EventId;
pub use name::{EventType, TypeName};
pub use payload::{Dynamic, Payload};
pub use state::State;
pub use step::{IntoStep, Step};
pub use value::Value;
