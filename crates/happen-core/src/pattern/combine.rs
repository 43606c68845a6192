//! Owns the constructors of patterns other than parsing, and what flattens them. Knows no matching.

use std::sync::Arc;

use super::error::PatternError;
use super::limits::PATTERN_DEPTH_MAX;
use super::{Inner, Kind, Pattern, Reach};

/// Matches exactly this text; `*`, `{` and the rest mean themselves.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::exact;
///
/// assert!(exact("order.*").matches("order.*"));
/// assert!(!exact("order.*").matches("order.created"));
/// ```
#[must_use]
pub fn exact(ty: &str) -> Pattern {
    Pattern::of(Kind::Exact(ty.into()))
}

/// Matches the types below a domain: its name, taken literally, followed by one or more segments.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::domain;
///
/// let orders = domain("order");
/// assert!(orders.matches("order.created"));
/// assert!(orders.matches("order.item.added"));
/// assert!(!orders.matches("order"));
/// assert!(!orders.matches("orders.created"));
/// ```
#[must_use]
pub fn domain(name: &str) -> Pattern {
    Pattern::of(Kind::Domain(name.into()))
}

/// Reads the text of a pattern; another name for [`Pattern::parse`], for use beside the other combinators.
///
/// # Errors
///
/// Those of [`Pattern::parse`].
///
/// # Examples
///
/// ```
/// use happen_core::pattern::{one_of, exact, wildcard};
///
/// let pattern = one_of([exact("ping"), wildcard("order.*")?]);
/// assert!(pattern.matches("order.created"));
/// # Ok::<(), happen_core::pattern::PatternError>(())
/// ```
pub fn wildcard(text: &str) -> Result<Pattern, PatternError> {
    Pattern::parse(text)
}

/// Matches what at least one branch matches; nothing if there are none.
///
/// # Panics
///
/// If the branches are nested deeper than [`PATTERN_DEPTH_MAX`].
///
/// # Cost
///
/// A match tries the branches in order. Joining many is linear here and quadratic with [`Pattern::or`].
///
/// # Examples
///
/// ```
/// use happen_core::pattern::{domain, exact, one_of};
///
/// let pattern = one_of([domain("order"), exact("ping")]);
/// assert!(pattern.matches("ping"));
/// assert_eq!(pattern.to_string(), "one_of(domain(order), exact(ping))");
/// ```
#[must_use]
#[doc(alias = "oneOf")]
pub fn one_of(branches: impl IntoIterator<Item = Pattern>) -> Pattern {
    let mut flat = Vec::new();
    for branch in branches {
        match &branch.inner.kind {
            Kind::OneOf(inner) => flat.extend_from_slice(inner),
            _ => flat.push(branch),
        }
    }
    Pattern::of(Kind::OneOf(flat))
}

/// Matches what all parts match; everything if there are none.
///
/// # Panics
///
/// If the parts are nested deeper than [`PATTERN_DEPTH_MAX`].
///
/// # Examples
///
/// ```
/// use happen_core::pattern::{all_of, domain, exact, not};
///
/// let pattern = all_of([domain("order"), not(exact("order.test"))]);
/// assert!(pattern.matches("order.created"));
/// assert!(!pattern.matches("order.test"));
/// ```
#[must_use]
#[doc(alias = "allOf")]
pub fn all_of(parts: impl IntoIterator<Item = Pattern>) -> Pattern {
    let mut flat = Vec::new();
    for part in parts {
        match &part.inner.kind {
            Kind::AllOf(inner) => flat.extend_from_slice(inner),
            _ => flat.push(part),
        }
    }
    Pattern::of(Kind::AllOf(flat))
}

/// Matches what the pattern inside does not match. Alone it never receives the runtime's own events.
///
/// # Panics
///
/// If the pattern is nested deeper than [`PATTERN_DEPTH_MAX`].
///
/// # Examples
///
/// ```
/// use happen_core::pattern::{exact, not};
///
/// let pattern = not(exact("order.test"));
/// assert!(pattern.matches("order.created"));
/// assert!(!pattern.matches_runtime("node.down"));
/// assert_eq!(pattern.to_string(), "not(exact(order.test))");
/// ```
#[must_use]
pub fn not(pattern: Pattern) -> Pattern {
    // `not(not(x))` differs from `x`, which may name runtime events, but a third `not` undoes the second.
    if let Kind::Not(inner) = &pattern.inner.kind
        && let Kind::Not(_) = &inner.inner.kind
    {
        return inner.clone();
    }
    Pattern::of(Kind::Not(pattern))
}

/// Matches every type, except that it does not receive the runtime's own events.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::any;
///
/// assert!(any().matches("order.created"));
/// assert!(!any().matches_runtime("node.down"));
/// ```
#[must_use]
pub fn any() -> Pattern {
    Pattern::of(Kind::Any)
}

/// Matches the types for which a function says true.
///
/// The function should depend on nothing but the type, because its answer is kept. What it looks for cannot
/// be seen from outside, so it never names the runtime's own events; [`Pattern::runtime`] does.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::predicate;
///
/// let done = predicate(|ty| ty.ends_with(".done"));
/// assert!(done.matches("order.done"));
/// ```
#[must_use]
pub fn predicate(test: impl Fn(&str) -> bool + Send + Sync + 'static) -> Pattern {
    Pattern::of(Kind::Predicate { test: Box::new(test), reach: Reach::Ordinary })
}

/// Matches the types that a regular expression matches from start to end (feature `regex`).
///
/// It never names the runtime's own events; combine it for those, as in
/// `domain("node").and(regex("node[.](up|down)")?)`. Its groups are the captures.
///
/// # Errors
///
/// - [`EmptyPattern`](super::PatternErrorKind::EmptyPattern),
///   [`TooLong`](super::PatternErrorKind::TooLong): as for parsed patterns.
/// - [`BadRegex`](super::PatternErrorKind::BadRegex): the source of the error says what is wrong.
/// - [`RegexTooLarge`](super::PatternErrorKind::RegexTooLarge): repeat less, or use a predicate.
///
/// # Cost
///
/// A match is linear in the type; the first ones on a thread may allocate a cache.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::regex;
///
/// let pattern = regex("order[.](.+)[.]v[0-9]+")?;
/// assert!(!pattern.matches("an order.created.v2"));
/// assert_eq!(pattern.captures("order.created.v2").unwrap().get(0), Some("created"));
/// # Ok::<(), happen_core::pattern::PatternError>(())
/// ```
#[cfg(feature = "regex")]
pub fn regex(source: &str) -> Result<Pattern, PatternError> {
    super::regex::Whole::read(source).map(|whole| Pattern::of(Kind::Regex(whole)))
}

impl Pattern {
    /// Matches what both match; see [`all_of`].
    ///
    /// # Panics
    ///
    /// If the patterns are nested deeper than [`PATTERN_DEPTH_MAX`].
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::{domain, exact, not};
    ///
    /// let pattern = domain("order").and(not(exact("order.test")));
    /// assert!(pattern.matches("order.created"));
    /// ```
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        all_of([self, other])
    }

    /// Matches what either matches; see [`one_of`].
    ///
    /// # Panics
    ///
    /// If the patterns are nested deeper than [`PATTERN_DEPTH_MAX`].
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::{domain, exact};
    ///
    /// assert!(domain("order").or(exact("ping")).matches("ping"));
    /// ```
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        one_of([self, other])
    }

    /// Matches what this pattern does not; see [`not`].
    ///
    /// # Panics
    ///
    /// If the pattern is nested deeper than [`PATTERN_DEPTH_MAX`].
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::exact;
    ///
    /// assert!(exact("ping").negate().matches("pong"));
    /// ```
    #[must_use]
    pub fn negate(self) -> Self {
        not(self)
    }

    /// Matches the types for which a function says true, the runtime's own events included.
    ///
    /// The handler must be ready for the runtime's payloads; [`predicate`] keeps them away.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::{Pattern, predicate};
    ///
    /// let is_down = |ty: &str| ty.ends_with("down");
    /// assert!(Pattern::runtime(is_down).matches_runtime("node.down"));
    /// assert!(!predicate(is_down).matches_runtime("node.down"));
    /// ```
    #[must_use]
    pub fn runtime(test: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self::of(Kind::Predicate { test: Box::new(test), reach: Reach::Everything })
    }

    pub(super) fn of(kind: Kind) -> Self {
        let below = match &kind {
            Kind::OneOf(inner) | Kind::AllOf(inner) => inner.iter().map(|part| part.inner.depth).max(),
            Kind::Not(inner) => Some(inner.inner.depth),
            _ => None,
        };
        let depth = below.unwrap_or(0) + 1;
        assert!(
            depth <= PATTERN_DEPTH_MAX,
            "patterns are combined more than {PATTERN_DEPTH_MAX} levels deep"
        );
        Self { inner: Arc::new(Inner { depth, kind }) }
    }
}
