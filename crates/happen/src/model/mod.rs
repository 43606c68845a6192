//! What is done with the values of states: places in them ([`lens`]), values made of them ([`Selection`]), changes made of
//! changes ([`all`]), what differs ([`Diff`]), the way back ([`Undoable`]), what is allowed ([`Machine`]), two copies made
//! into one ([`merge`]). Owns functions of values; does not know how a state is kept or committed, and has no part in it
//! but checks before a change and a bell after it.
//!
//! Most of it gives functions that [`StateOf::set`](crate::StateOf::set) and [`StateOf::try_set`](crate::StateOf::try_set)
//! take, so it holds in every kind of node that whatever they do is done whole, once, and to the newest state.

mod path;
mod lens;
mod selection;
mod combine;
mod diff;
mod undo;
mod machine;
mod merge;
mod check;
mod watch;

pub use combine::{InOrder, Partial, Total, Transform, all, when};
pub use diff::{Diff, Edit};
pub use lens::{Lens, PathLens, lens};
pub use machine::{Machine, MachineBuilder, NotAllowed, Passage, Passages};
pub use merge::{Conflict, Conflicts, Policy, Prefer, merge};
pub use path::Path;
pub use selection::{Selection, SelectionChanges};
pub use undo::Undoable;
pub use watch::{Changed, Changes};

pub(crate) use check::{StateCheck, checked};
pub(crate) use watch::Bells;
