//! Why a run could not end. Owns the texts; does not know how a run goes.

use std::fmt;
use std::time::Duration;

/// A run that did not reach the end of its root future: why, under which seed, and when in virtual time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunError {
    seed: u64,
    now: Duration,
    kind: RunErrorKind,
}

/// Why a run did not reach the end of its root future. Tasks are numbered in the order they were spawned; each run
/// takes one number for its root.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunErrorKind {
    /// Nothing is ready and no timer is left: the root waits for what will not come.
    #[non_exhaustive]
    Stalled {
        /// The spawned tasks that wait beside the root, in ascending order.
        waiting: Vec<u64>,
    },
    /// The run took as many polls as it may.
    #[non_exhaustive]
    StepsExceeded {
        /// How many those were.
        steps_max: u64,
    },
    /// More tasks were spawned than there may be at once.
    #[non_exhaustive]
    TasksExceeded {
        /// How many there may be.
        tasks_max: usize,
    },
    /// The root future panicked.
    #[non_exhaustive]
    RootPanicked {
        /// What the panic says.
        message: String,
    },
    /// A spawned task panicked.
    #[non_exhaustive]
    TaskPanicked {
        /// The number of the task.
        task: u64,
        /// What the panic says.
        message: String,
    },
}

impl RunError {
    pub(super) fn new(seed: u64, now: Duration, kind: RunErrorKind) -> Self {
        Self { seed, now, kind }
    }

    /// The seed to see it again with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The virtual time at which the run ended.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// What ended the run.
    #[must_use]
    pub fn kind(&self) -> &RunErrorKind {
        &self.kind
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} at {:?}: {}", self.seed, self.now, self.kind)
    }
}

impl fmt::Display for RunErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stalled { waiting } => {
                f.write_str("stalled: nothing is ready and no timer is left; the root waits, ")?;
                write_waiting(f, waiting)
            }
            Self::StepsExceeded { steps_max } => {
                write!(f, "livelock: the root has not ended after {steps_max} steps")
            }
            Self::TasksExceeded { tasks_max } => {
                write!(f, "too many tasks: there may be {tasks_max} at once")
            }
            Self::RootPanicked { message } => write!(f, "the root panicked: {message}"),
            Self::TaskPanicked { task, message } => write!(f, "task {task} panicked: {message}"),
        }
    }
}

impl std::error::Error for RunError {}

fn write_waiting(f: &mut fmt::Formatter<'_>, waiting: &[u64]) -> fmt::Result {
    match waiting.len() {
        0 => return f.write_str("and no other task is left"),
        1 => f.write_str("and 1 task beside it: ")?,
        len => write!(f, "and {len} tasks beside it: ")?,
    }
    for (index, task) in waiting.iter().take(SHOWN_LEN_MAX).enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        write!(f, "{comma}{task}")?;
    }
    if waiting.len() > SHOWN_LEN_MAX { f.write_str(", …") } else { Ok(()) }
}

/// As many numbers as fit on a line; the error itself has them all.
const SHOWN_LEN_MAX: usize = 16;
