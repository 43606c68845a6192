//! Placeholder.
#[derive(Default)]
pub(crate) struct States;
