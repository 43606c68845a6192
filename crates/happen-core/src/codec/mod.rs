//! The wire form of events and replies. Owns the envelope's bytes, and is the only place that knows them; does not know
//! who moves or keeps them.

mod frame;
pub(crate) mod msgpack;

pub use frame::{FORMAT_VERSION, FrameError, FrameProblem, UnknownField};
