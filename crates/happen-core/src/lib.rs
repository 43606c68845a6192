//! The contract under Happen, without a runtime: what an event is, what caused it, which patterns match it,
//! what a step returns, how bytes look, and the three seams. It knows no clock, no task and no thread.
//!
//! Users take the crate `happen`, which re-exports what they need. Adapters build on this one.

pub mod codec;
pub mod content;
pub mod downcast;
pub mod env;
pub mod error;
pub mod event;
pub mod function;
pub mod hash;
pub mod id;
pub mod key;
pub mod limits;
pub mod link;
pub mod name;
pub mod pattern;
pub mod payload;
pub mod pool;
pub mod raw;
pub mod reply;
pub mod state;
pub mod step;
pub mod store;
pub mod value;

pub use error::{Error, ErrorKind, Result};
pub use event::{Batch, Envelope, ErasedEvent, Event, NodeKey};
pub use function::Function;
pub use id::EventId;
pub use name::{EventType, TypeName};
pub use pattern::{IntoPattern, Pattern, PatternError};
pub use payload::{Dynamic, Payload};
pub use reply::{Answer, Outgoing, Parcel};
pub use state::{OldState, State};
pub use step::{IntoStep, Step};
pub use value::Value;
