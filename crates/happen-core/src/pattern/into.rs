//! Owns what may stand where a pattern is asked for. Knows the constructors and nothing else.

use super::error::PatternError;
use super::{Pattern, predicate};

/// Whatever can be turned into a [`Pattern`]: text, a pattern, the result of making one, or a closure.
///
/// The marker `M` only keeps the closures apart from the rest, because the language cannot see that `&str` is
/// not a function. Callers leave it to inference: `fn on<M>(pattern: impl IntoPattern<M>)`.
///
/// # Errors
///
/// Text fails as in [`Pattern::parse`], a result hands its own error on, the rest always works.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::{IntoPattern, PatternError, domain, wildcard};
///
/// fn hears<M>(pattern: impl IntoPattern<M>, ty: &str) -> Result<bool, PatternError> {
///     Ok(pattern.into_pattern()?.matches(ty))
/// }
///
/// assert!(hears("order.*", "order.done")?);
/// assert!(hears(String::from("order.*"), "order.done")?);
/// assert!(hears(domain("order"), "order.done")?);
/// assert!(hears(wildcard("order.*"), "order.done")?);
/// assert!(hears(|ty: &str| ty.ends_with(".done"), "order.done")?);
/// # Ok::<(), PatternError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a pattern",
    label = "expected a pattern",
    note = "a pattern is text such as \"order.*\", a `Pattern` such as `domain(\"order\")`, or a closure \
            such as `|ty: &str| ty.ends_with(\".done\")`"
)]
pub trait IntoPattern<M = ()> {
    /// Makes the pattern.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the text.
    fn into_pattern(self) -> Result<Pattern, PatternError>;
}

/// Marks the closures among the implementations of [`IntoPattern`]; it has no values.
#[derive(Debug)]
#[non_exhaustive]
pub enum AsPredicate {}

impl IntoPattern for &str {
    fn into_pattern(self) -> Result<Pattern, PatternError> {
        Pattern::parse(self)
    }
}

impl IntoPattern for String {
    fn into_pattern(self) -> Result<Pattern, PatternError> {
        Pattern::parse(&self)
    }
}

impl IntoPattern for &String {
    fn into_pattern(self) -> Result<Pattern, PatternError> {
        Pattern::parse(self)
    }
}

impl IntoPattern for Pattern {
    fn into_pattern(self) -> Result<Pattern, PatternError> {
        Ok(self)
    }
}

impl IntoPattern for &Pattern {
    fn into_pattern(self) -> Result<Pattern, PatternError> {
        Ok(self.clone())
    }
}

impl IntoPattern for Result<Pattern, PatternError> {
    fn into_pattern(self) -> Result<Pattern, PatternError> {
        self
    }
}

impl<F> IntoPattern<AsPredicate> for F
where
    F: Fn(&str) -> bool + Send + Sync + 'static,
{
    fn into_pattern(self) -> Result<Pattern, PatternError> {
        Ok(predicate(self))
    }
}
