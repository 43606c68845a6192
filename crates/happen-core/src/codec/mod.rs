//! The wire form of events, replies and records. Owns the envelope's bytes, and is the only place that knows them; does
//! not know who moves or keeps them. `docs/format.md` describes the form for other languages.

mod batch;
mod envelope;
mod event;
mod failure;
mod frame;
pub(crate) mod msgpack;
mod record;
mod reply;
mod seal;
mod sum;

pub use batch::{WireParcel, encode_batch_into};
pub use event::{CauseLink, Handover, WireDelegation, WireEvent, WirePath, WireTrace, WireUser};
pub use failure::WireError;
pub use frame::{FORMAT_VERSION, FrameError, FrameProblem, UnknownField};
pub use record::{PointKind, StepOutcome, WireChange, WireFlow, WirePoint, WireRecord, WireStep};
pub use reply::{Outcome, WireReply};
pub use seal::{Addressee, SealHash, SealTree, Statement, WireSeal, seal_leaf};
pub use sum::{SUM_BYTES, encode_summed, open_summed};

#[cfg(test)]
pub(crate) mod tests;
