//! Two workloads over durable nodes, a bank and a shop, and what has to be true of them whatever happened: used by the
//! campaigns in virtual time and by the processes that are killed. Knows nothing of how they are interrupted.

pub(crate) mod audit;
pub(crate) mod bank;
pub(crate) mod orders;

use std::fmt;
use std::sync::Arc;

/// Some of the nodes: all in one process, or each part in one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Those whose flows take several steps.
    Flows,
    /// Those that are asked and told by them.
    Asked,
    /// Those that hear of what became of them.
    Listeners,
}

impl Part {
    pub(crate) const ALL: [Self; 3] = [Self::Flows, Self::Asked, Self::Listeners];
}

/// Something outside that a step calls once, known by the key it was given.
pub(crate) type Outside = Arc<dyn Fn(&str, u64) -> happen::Result<()> + Send + Sync>;

/// What is outside, as a dependency of a step.
#[derive(Clone)]
pub(crate) struct Provider(pub(crate) Outside);

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Provider")
    }
}
