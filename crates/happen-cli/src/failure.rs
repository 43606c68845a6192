//! Why a command of this program failed, each in one sentence for the person who ran it, and the exit code that tells a
//! script. A wrong usage is mostly told by the parser of the command line.

use std::io;

use thiserror::Error;

use crate::git_log::GitError;

/// A command that could not do what it was asked, or found that something does not add up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum Failure {
    /// The history could not be read.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A part of the framework refused something that this program relies on.
    #[error("{}", .0.chain().join(": "))]
    Happen(happen::Error),
    /// The runtime could not be started.
    #[error("could not start the threads that handle events")]
    Runtime(#[source] io::Error),
    /// Standard output took nothing more, for another reason than that nobody reads it.
    #[error("could not write to standard output")]
    Output(#[source] io::Error),
    /// The results of the demonstration contradict each other.
    #[error("the books do not balance: {0}")]
    Unbalanced(String),
    /// What the space counted is not what git counts.
    #[error("the counts differ from git's own: {0}")]
    Differs(String),
    /// The commit to be traced is none, or several.
    #[error("{0}")]
    NoSuchCommit(String),
    /// The history is larger than this program keeps in memory.
    #[error("the history has {commits} commits, and this command takes at most {commits_max}")]
    TooLarge {
        /// Its commits.
        commits: u64,
        /// The limit.
        commits_max: u64,
    },
    /// A store cannot be opened, read or written.
    #[error("{0}")]
    Store(String),
    /// There is nothing of the name or id that was given.
    #[error("{0}")]
    NotFound(String),
    /// What was asked for can mean several things, or nothing.
    #[error("{0}")]
    Usage(String),
    /// What was checked is not as it was written.
    #[error("{0}")]
    NotWhole(String),
    /// Standard input could not be read.
    #[error("could not read standard input")]
    Input(#[source] io::Error),
}

impl Failure {
    /// The exit code of a command that failed so.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::NotFound(_) => 4,
            Self::NotWhole(_) => 5,
            _ => 1,
        }
    }
}

impl From<happen::Error> for Failure {
    fn from(error: happen::Error) -> Self {
        Self::Happen(error)
    }
}

/// The failure and what caused it, as one line.
pub(crate) fn sentence(failure: &Failure) -> String {
    let mut text = failure.to_string();
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
