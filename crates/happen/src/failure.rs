//! Failures as events and as letters: what everyone may observe of an error that happened somewhere in the space.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use happen_core::payload::Payload;
use happen_core::{ErasedEvent, Error, EventId, TypeName};
use serde::{Deserialize, Serialize};

use crate::sync::{Mutex, lock};

/// The payload of the events `<type>.error`, which the runtime broadcasts when a flow fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failure {
    /// The event whose flow failed.
    pub event: EventId,
    /// Its type.
    pub event_type: String,
    /// The node it failed at.
    pub node: String,
    /// The handler's name.
    pub handler: String,
    /// The error's stable code.
    pub code: String,
    /// The error and its causes, one line each.
    pub causes: Vec<String>,
    /// Whether another try may succeed.
    pub retryable: bool,
}

#[diagnostic::do_not_recommend]
impl Payload for Failure {
    const TYPE: &'static TypeName = &TypeName::new("failure");
}

impl Failure {
    pub(crate) fn new(node: &str, handler: &str, event: &dyn ErasedEvent, error: &Error) -> Self {
        let envelope = event.envelope();
        Self {
            event: envelope.id,
            event_type: envelope.event_type.as_str().to_owned(),
            node: node.to_owned(),
            handler: handler.to_owned(),
            code: error.code().to_owned(),
            causes: error.chain(),
            retryable: error.is_retryable(),
        }
    }
}

/// An event that could not be delivered, or whose error event failed too.
#[derive(Clone)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The event.
    pub(crate) event: Arc<dyn ErasedEvent>,
    /// The node it was for.
    pub node: String,
    /// The error's stable code.
    pub code: &'static str,
    /// The error and its causes, one line each.
    pub causes: Vec<String>,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
}

impl DeadLetter {
    /// The event's id.
    #[must_use]
    pub fn event_id(&self) -> EventId {
        self.event.envelope().id
    }

    /// The event's type.
    #[must_use]
    pub fn event_type(&self) -> &str {
        self.event.envelope().event_type.as_str()
    }
}

/// The letters of one space: the newest, up to a limit.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters {
    letters: Mutex<VecDeque<DeadLetter>>,
}

impl DeadLetters {
    pub(crate) fn push(&self, letter: DeadLetter, max: usize) {
        let mut letters = lock(&self.letters);
        let oldest = if letters.len() >= max { letters.pop_front() } else { None };
        if max > 0 {
            letters.push_back(letter);
        }
        drop(letters);
        drop(oldest);
    }

    pub(crate) fn all(&self) -> Vec<DeadLetter> {
        lock(&self.letters).iter().cloned().collect()
    }

    pub(crate) fn take(&self, event: EventId) -> Option<DeadLetter> {
        let mut letters = lock(&self.letters);
        let at = letters.iter().position(|letter| letter.event_id() == event)?;
        letters.remove(at)
    }
}

impl fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} for `{}`: {}", self.event, self.node, self.causes.join(": "))
    }
}
