//! Functions that handle events, without their types: how the runtime starts one, and how it tells them apart.

use std::any::{Any, TypeId};
use std::fmt;

use crate::error::Result;
use crate::event::ErasedEvent;
use crate::pool::StepFuture;
use crate::step::Step;
use crate::value::Value;

/// A handler or a further step, without its types.
///
/// The context travels as [`Any`] because what it offers is the runtime's business, not the contract's.
pub trait Function: Send + Sync {
    /// Starts the function on an event. A value that ends the flow, or a failure, is put into `outcome`, which is where
    /// the sender looks for it.
    fn start(&self, event: &dyn ErasedEvent, context: &dyn Any, outcome: &mut Outcome) -> Started;

    /// The identity of the function: every `fn` and every closure has its own.
    fn identity(&self) -> TypeId;

    /// The name of the function's type, such as `shop::orders::validate`.
    fn type_name(&self) -> &'static str;

    /// Whether it takes a batch as a whole.
    fn takes_batch(&self) -> bool {
        false
    }

    /// Whether it runs to its end on the caller's stack; such a function cannot wait.
    fn is_plain(&self) -> bool;

    /// Whether it reads the payload's bytes in place, so that handlers of one event may share them.
    fn reads_bytes(&self) -> bool {
        false
    }

    /// The name of the payload type it takes, for introspection; `None` when it takes any.
    fn payload_name(&self) -> Option<&'static str>;
}

/// What starting a function gives.
#[derive(Debug)]
#[non_exhaustive]
pub enum Started {
    /// It has ended, and the flow with it.
    Ended,
    /// It has ended, and the flow goes on with this.
    Goes(Step),
    /// It goes on as a future.
    Future(StepFuture),
}

/// What a flow ends with: a value, nothing, or a failure.
pub type Outcome = Result<Option<Value>>;

impl Started {
    /// What a function that has ended gives.
    #[must_use]
    #[inline(always)]
    pub fn ended(step: Result<Step>, outcome: &mut Outcome) -> Self {
        match Step::settle(step, outcome) {
            None => Self::Ended,
            Some(step) => Self::Goes(step),
        }
    }
}

impl dyn Function + '_ {
    /// The last part of the function's name, such as `validate`; closures have the name of the function around them
    /// and `{{closure}}`.
    #[must_use]
    pub fn short_name(&self) -> &'static str {
        let full = self.type_name();
        let end = full.find('<').unwrap_or(full.len());
        full[..end].rsplit("::").next().unwrap_or(full)
    }
}

impl fmt::Debug for dyn Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_name())
    }
}
