//! What a handler may return. Owns the word "step" and nothing about how steps are run.

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, Result};
use crate::function::{Function, Outcome};
use crate::payload::Payload;
use crate::value::Value;

/// How a flow goes on: a further function, the same again, a named one, or an end with or without a value.
///
/// Made by `next`, `again`, `goto` and `done` of the crate `happen`, or from any payload by [`IntoStep`].
pub struct Step(Kind);

/// What a [`Step`] says; for the runtime that carries it out.
#[non_exhaustive]
pub enum Kind {
    /// Go on with this function.
    Next(Box<dyn Function>),
    /// Run the same function again.
    Again,
    /// Go on with the step of this name.
    Goto(Cow<'static, str>),
    /// End with this value.
    Done(Value),
    /// End without a value.
    End,
}

/// What handlers may return: a [`Step`], any payload as the final value, `()`, or a `Result` of these.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "not a step, not a payload",
    note = "return `happen::Result<Step>` with `next(f)`, `again()`, `goto(\"step\")` or `done(value)`, or return `()`, \
            or a value whose type derives `happen::Event`"
)]
pub trait IntoStep {
    /// The step this value stands for.
    ///
    /// # Errors
    ///
    /// The failure, when the value is one.
    fn into_step(self) -> Result<Step>;
}

impl Step {
    /// The step of this kind.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self(kind)
    }

    /// Puts what ends a flow into its outcome; gives back what goes on with one.
    #[must_use]
    #[inline(always)]
    pub fn settle(step: Result<Self>, outcome: &mut Outcome) -> Option<Self> {
        *outcome = match step {
            Ok(Self(Kind::Done(value))) => Ok(Some(value)),
            Ok(Self(Kind::End)) => Ok(None),
            Ok(step) => return Some(step),
            Err(error) => Err(error),
        };
        None
    }

    /// What the step says.
    #[must_use]
    pub fn into_kind(self) -> Kind {
        self.0
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Next(next) => write!(f, "next({})", next.type_name()),
            Kind::Again => f.write_str("again()"),
            Kind::Goto(name) => write!(f, "goto({name:?})"),
            Kind::Done(value) => write!(f, "done({})", value.event_type()),
            Kind::End => f.write_str("end"),
        }
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Next(_) => "Next",
            Self::Again => "Again",
            Self::Goto(_) => "Goto",
            Self::Done(_) => "Done",
            Self::End => "End",
        })
    }
}

#[diagnostic::do_not_recommend]
impl IntoStep for Step {
    #[inline]
    fn into_step(self) -> Result<Step> {
        Ok(self)
    }
}

impl<T: Payload> IntoStep for T {
    #[inline]
    fn into_step(self) -> Result<Step> {
        Ok(Step(Kind::Done(Value::new(self))))
    }
}

#[diagnostic::do_not_recommend]
impl IntoStep for () {
    #[inline]
    fn into_step(self) -> Result<Step> {
        Ok(Step(Kind::End))
    }
}

#[diagnostic::do_not_recommend]
impl<T: IntoStep, E: Into<Error>> IntoStep for std::result::Result<T, E> {
    #[inline]
    fn into_step(self) -> Result<Step> {
        self.map_err(Into::into)?.into_step()
    }
}
