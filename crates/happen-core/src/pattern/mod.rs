//! Owns patterns: which event types a handler hears. Knows types only as text; payloads, handlers, caches and
//! the index over nodes are elsewhere.
//!
//! A pattern is text, or is built from functions:
//!
//! | text | matches |
//! |---|---|
//! | `order.created` | exactly this type |
//! | `order.*` | `order` and exactly one more segment |
//! | `order.**` | `order` and one or more segments |
//! | `*.created`, `**.created` | one, or one or more segments, then `created` |
//! | `{order,payment}.created` | either; alternatives may hold dots, wildcards and more braces |
//! | `order-{a,b}` | part of a segment may have alternatives too |
//!
//! Segments are what stands between dots and are never empty: a type with an empty segment is matched only by
//! [`exact`], [`any`], [`not`], predicates and regular expressions. There is no escape character, as
//! [`exact`] takes its text literally.
//!
//! # The runtime's own events
//!
//! Types that [`is_runtime`] accepts carry the runtime's payloads. They reach only patterns that *name* them,
//! so that `order.**` or a predicate never hands a foreign payload to a handler; see
//! [`Pattern::matches_runtime`].

mod aliases;
mod captures;
mod combine;
mod domain;
mod error;
mod explain;
mod into;
pub mod limits;
mod parse;
#[cfg(feature = "regex")]
mod regex;
mod runtime;
mod segments;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use self::aliases::Aliases;
pub use self::captures::Captures;
#[cfg(feature = "regex")]
pub use self::combine::regex;
pub use self::combine::{all_of, any, domain, exact, not, one_of, predicate, wildcard};
pub use self::domain::Domain;
pub use self::error::{PatternError, PatternErrorKind};
pub use self::explain::Explanation;
pub use self::into::{AsPredicate, IntoPattern};
pub use self::runtime::is_runtime;

use self::parse::Parsed;
use self::runtime::Families;
use self::segments::Token;

/// A matcher over event types, compiled once and cheap to clone.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::Pattern;
///
/// let pattern = Pattern::parse("{order,payment}.*")?;
/// assert!(pattern.matches("order.created"));
/// assert!(!pattern.matches("order.item.added"));
/// assert_eq!(pattern.to_string(), "{order,payment}.*");
/// # Ok::<(), happen_core::pattern::PatternError>(())
/// ```
#[derive(Clone)]
pub struct Pattern {
    inner: Arc<Inner>,
}

/// The first segments that a type can have if a pattern is to match it, as [`Pattern::first_segment`] tells.
///
/// An index may skip the pattern for all other types. A variant it does not know means [`Any`](Self::Any).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FirstSegment<'p> {
    /// Only this one.
    Literal(&'p str),
    /// One of these, sorted and without repeats; none at all if the pattern matches nothing.
    OneOf(Vec<&'p str>),
    /// Nothing is known.
    Any,
}

/// Segments that every type has which a pattern matches, as [`Pattern::needs`] tells.
///
/// `None` means that nothing is known of that place, not that the segment may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Needs<'p> {
    /// The first segment.
    pub first: Option<&'p str>,
    /// The second one.
    pub second: Option<&'p str>,
    /// The last one, which is the first one too in a type that has no other.
    pub last: Option<&'p str>,
}

impl Pattern {
    /// Reads the text of a pattern; the grammar is in the documentation of the [module](self).
    ///
    /// # Errors
    ///
    /// A [`PatternError`] with the place of the mistake and one of these kinds; the text has to be changed.
    ///
    /// - [`EmptyPattern`](PatternErrorKind::EmptyPattern), [`EmptySegment`](PatternErrorKind::EmptySegment),
    ///   [`EmptyAlternative`](PatternErrorKind::EmptyAlternative): something is missing.
    /// - [`UnclosedBrace`](PatternErrorKind::UnclosedBrace), [`StrayBrace`](PatternErrorKind::StrayBrace):
    ///   braces do not pair up.
    /// - [`PartialWildcard`](PatternErrorKind::PartialWildcard),
    ///   [`TooManyStars`](PatternErrorKind::TooManyStars): a wildcard is `*` or `**`, alone in its segment.
    /// - [`TooLong`](PatternErrorKind::TooLong), [`TooDeep`](PatternErrorKind::TooDeep),
    ///   [`TooManyAlternatives`](PatternErrorKind::TooManyAlternatives): over one of the [`limits`].
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::Pattern;
    ///
    /// assert!(Pattern::parse("user.**")?.matches("user.profile.changed"));
    /// assert_eq!(
    ///     Pattern::parse("{order,payment.created").unwrap_err().to_string(),
    ///     "bad pattern `{order,payment.created` at byte 0: `{` is never closed",
    /// );
    /// # Ok::<(), happen_core::pattern::PatternError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        Parsed::read(text).map(|parsed| Self::of(Kind::Parsed(parsed)))
    }

    /// Tells whether the type fits the pattern, whoever it belongs to.
    ///
    /// Whether an event of the runtime may be delivered is for [`matches_runtime`](Self::matches_runtime).
    ///
    /// # Cost
    ///
    /// Allocates nothing (predicates and regular expressions aside). A literal is one comparison; otherwise
    /// at most alternatives × parts of the pattern × segments of the type.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::Pattern;
    ///
    /// let pattern = Pattern::parse("*.created")?;
    /// assert!(pattern.matches("order.created"));
    /// assert!(!pattern.matches("order.item.created"));
    /// # Ok::<(), happen_core::pattern::PatternError>(())
    /// ```
    #[must_use]
    pub fn matches(&self, ty: &str) -> bool {
        match &self.inner.kind {
            Kind::Any => true,
            Kind::Exact(text) => **text == *ty,
            Kind::Domain(name) => below(name, ty).is_some(),
            Kind::Parsed(parsed) => parsed.matches(ty),
            Kind::OneOf(branches) => branches.iter().any(|branch| branch.matches(ty)),
            Kind::AllOf(parts) => parts.iter().all(|part| part.matches(ty)),
            Kind::Not(inner) => !inner.matches(ty),
            Kind::Predicate { test, .. } => test(ty),
            #[cfg(feature = "regex")]
            Kind::Regex(whole) => whole.matches(ty),
        }
    }

    /// Tells whether both are the same value, or were written with the same text in the same way.
    ///
    /// False does not mean that they match different types.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::{Pattern, exact};
    ///
    /// assert!(Pattern::parse("order.*")?.is_same(&Pattern::parse("order.*")?));
    /// assert!(!Pattern::parse("order.test")?.is_same(&exact("order.test")));
    /// # Ok::<(), happen_core::pattern::PatternError>(())
    /// ```
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
            || match (&self.inner.kind, &other.inner.kind) {
                (Kind::Parsed(one), Kind::Parsed(other)) => one.text() == other.text(),
                (Kind::Exact(one), Kind::Exact(other)) => one == other,
                _ => false,
            }
    }

    /// Gives what the wildcards and alternatives stand for in this type; `None` if it does not match.
    ///
    /// Parsed text has one group for each `*`, `**` and `{…}`; of several ways to match, the alternative
    /// written first counts, and an earlier `**` takes as little as it can. A regular expression has its own
    /// groups, [`domain`] one for all segments below it. [`one_of`] has those of its first branch that
    /// matches, [`all_of`] those of all its parts in a row, all others none.
    ///
    /// # Cost
    ///
    /// One or two allocations; the strings are borrowed from the type.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::Pattern;
    ///
    /// let pattern = Pattern::parse("user.*.**")?;
    /// let captures = pattern.captures("user.42.profile.changed").unwrap();
    /// assert_eq!(captures.iter().collect::<Vec<_>>(), [Some("42"), Some("profile.changed")]);
    /// # Ok::<(), happen_core::pattern::PatternError>(())
    /// ```
    #[must_use]
    pub fn captures<'t>(&self, ty: &'t str) -> Option<Captures<'t>> {
        let mut spans = Vec::new();
        self.capture(ty, &mut spans).then(|| Captures::new(ty, spans))
    }

    /// Gives the text of the only type that this pattern matches, if that can be told.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::Pattern;
    ///
    /// assert_eq!(Pattern::parse("order.created")?.is_literal(), Some("order.created"));
    /// assert_eq!(Pattern::parse("order.*")?.is_literal(), None);
    /// # Ok::<(), happen_core::pattern::PatternError>(())
    /// ```
    #[must_use]
    pub fn is_literal(&self) -> Option<&str> {
        match &self.inner.kind {
            Kind::Exact(text) => Some(text),
            Kind::Parsed(parsed) => parsed.literal(),
            Kind::OneOf(only) | Kind::AllOf(only) => match &**only {
                [only] => only.is_literal(),
                _ => None,
            },
            _ => None,
        }
    }

    /// Gives the first segments that matching types can have, so that an index need not test all patterns.
    ///
    /// The answer may be too wide and is never too narrow. The first segment of a type is its text up to the
    /// first dot, or all of it if it has none.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::{FirstSegment, Pattern, any, domain};
    ///
    /// assert_eq!(domain("order").and(any()).first_segment(), FirstSegment::Literal("order"));
    /// let either = Pattern::parse("{payment,order}.*")?;
    /// assert_eq!(either.first_segment(), FirstSegment::OneOf(vec!["order", "payment"]));
    /// assert_eq!(Pattern::parse("*.created")?.first_segment(), FirstSegment::Any);
    /// # Ok::<(), happen_core::pattern::PatternError>(())
    /// ```
    #[must_use]
    pub fn first_segment(&self) -> FirstSegment<'_> {
        match self.first_segments() {
            None => FirstSegment::Any,
            Some(segments) => match segments[..] {
                [only] => FirstSegment::Literal(only),
                _ => FirstSegment::OneOf(segments),
            },
        }
    }

    /// Gives segments that matching types have in any case, so that most types are told not to match without a look at
    /// the whole pattern.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::Pattern;
    ///
    /// let pattern = Pattern::parse("{order,payment}.eu.*.done")?;
    /// let needs = pattern.needs();
    /// assert_eq!((needs.first, needs.second, needs.last), (None, Some("eu"), Some("done")));
    /// # Ok::<(), happen_core::pattern::PatternError>(())
    /// ```
    #[must_use]
    pub fn needs(&self) -> Needs<'_> {
        match &self.inner.kind {
            Kind::Exact(text) => Needs {
                first: Some(first_of(text)),
                second: text.split('.').nth(1),
                last: text.rsplit('.').next(),
            },
            Kind::Parsed(parsed) => {
                let each =
                    parsed.alternatives().iter().map(|alternative| segments::needs(&alternative.tokens));
                let common = each.reduce(|one, other| Needs {
                    first: one.first.filter(|_| one.first == other.first),
                    second: one.second.filter(|_| one.second == other.second),
                    last: one.last.filter(|_| one.last == other.last),
                });
                common.unwrap_or(Needs { first: None, second: None, last: None })
            }
            _ => match self.first_segment() {
                FirstSegment::Literal(first) => Needs { first: Some(first), second: None, last: None },
                _ => Needs { first: None, second: None, last: None },
            },
        }
    }

    /// Tells whether the pattern names any of the runtime's own events, so that others need not be asked.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::Pattern;
    ///
    /// assert!(Pattern::parse("order.*.error")?.names_runtime());
    /// assert!(!Pattern::parse("order.**")?.names_runtime());
    /// # Ok::<(), happen_core::pattern::PatternError>(())
    /// ```
    #[must_use]
    pub fn names_runtime(&self) -> bool {
        !self.families().is_empty()
    }

    /// Tells whether the pattern spells out what makes this type one of the runtime's own.
    ///
    /// The telling segment of a type is its first for `node.` and `system.`, its last for `.error`; one of
    /// them is enough for a type that has both. What counts as spelling it:
    ///
    /// - text, [`exact`] and [`domain`]: an alternative has more than one segment and literally that segment
    ///   in that place. `node.down`, `node.*`, `{node,order}.*` and `system.**` do, for all of `node.` or
    ///   `system.`; `*.error` and `order.*.error` do, for all of `.error`; `*`, `**`, `*.*`, `order.**` and
    ///   `*.down` do not;
    /// - [`one_of`] and [`all_of`]: some part does;
    /// - [`not`], [`any`], [`predicate`] and regular expressions: never, since nothing in them can be read as
    ///   a wish for such events. [`Pattern::runtime`] is a predicate that names them all.
    ///
    /// Naming is about the wording and not about the match: `node.down` names `node.slow` without matching
    /// it. No pattern names a type that is not the runtime's.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::{Pattern, domain, not};
    ///
    /// assert!(Pattern::parse("node.*")?.names("node.down"));
    /// assert!(!Pattern::parse("*.*")?.names("node.down"));
    /// assert!(!not(domain("order")).names("node.down"));
    /// # Ok::<(), happen_core::pattern::PatternError>(())
    /// ```
    #[must_use]
    pub fn names(&self, ty: &str) -> bool {
        self.families().meets(Families::of_type(ty))
    }

    /// Tells whether one of the runtime's own events reaches this pattern; false for all other types.
    ///
    /// The pattern must match the type and [name](Self::names) it, and the same part must do both: in
    /// [`one_of`] and among written-out alternatives one branch has to match and name; in [`all_of`] every
    /// part has to match and one of them has to name. So `one_of([exact("node.down"), any()])` hears of
    /// `node.down` and not of `node.slow`.
    ///
    /// Delivery asks this for types that [`is_runtime`] accepts and [`matches`](Self::matches) for all
    /// others.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::{Pattern, domain, exact, not};
    ///
    /// assert!(Pattern::parse("*.error")?.matches_runtime("order.error"));
    /// assert!(!Pattern::parse("order.**")?.matches_runtime("order.error"));
    /// let nodes = domain("node").and(not(exact("node.slow")));
    /// assert!(nodes.matches_runtime("node.down"));
    /// # Ok::<(), happen_core::pattern::PatternError>(())
    /// ```
    #[must_use]
    pub fn matches_runtime(&self, ty: &str) -> bool {
        let wanted = Families::of_type(ty);
        !wanted.is_empty() && self.reaches(ty, wanted)
    }

    /// Explains, part by part, why the type matches or does not.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::Pattern;
    ///
    /// let explanation = Pattern::parse("order.*.done")?.explain("order.item.added");
    /// assert!(!explanation.matched());
    /// assert_eq!(
    ///     explanation.to_string(),
    ///     "type `order.item.added`\nno   order.*.done: segment 3 is `added`, not `done`",
    /// );
    /// # Ok::<(), happen_core::pattern::PatternError>(())
    /// ```
    #[must_use]
    pub fn explain(&self, ty: &str) -> Explanation {
        Explanation::of(self, ty)
    }

    fn capture(&self, ty: &str, spans: &mut Vec<Option<Range<usize>>>) -> bool {
        match &self.inner.kind {
            Kind::Domain(name) => {
                let Some(start) = below(name, ty) else { return false };
                spans.push(Some(start..ty.len()));
                true
            }
            Kind::Parsed(parsed) => parsed.capture(ty, spans),
            Kind::OneOf(branches) => branches.iter().any(|branch| branch.capture(ty, spans)),
            // A part that fails after others have captured leaves their spans behind, hence the cut.
            Kind::AllOf(parts) => {
                let base = spans.len();
                let all = parts.iter().all(|part| part.capture(ty, spans));
                if !all {
                    spans.truncate(base);
                }
                all
            }
            #[cfg(feature = "regex")]
            Kind::Regex(whole) => whole.capture(ty, spans),
            Kind::Any | Kind::Exact(_) | Kind::Not(_) | Kind::Predicate { .. } => self.matches(ty),
        }
    }

    fn first_segments(&self) -> Option<Vec<&str>> {
        let mut segments = match &self.inner.kind {
            Kind::Exact(text) | Kind::Domain(text) => vec![first_of(text)],
            Kind::Parsed(parsed) => {
                let firsts =
                    parsed.alternatives().iter().map(|alternative| match alternative.tokens.first() {
                        Some(Token::Literal(text)) => Some(first_of(text)),
                        _ => None,
                    });
                firsts.collect::<Option<Vec<_>>>()?
            }
            Kind::OneOf(branches) => {
                branches.iter().map(Self::first_segments).collect::<Option<Vec<_>>>()?.concat()
            }
            Kind::AllOf(parts) => {
                let known = parts.iter().filter_map(Self::first_segments);
                known.reduce(|mut left, right| {
                    left.retain(|segment| right.contains(segment));
                    left
                })?
            }
            _ => return None,
        };
        segments.sort_unstable();
        segments.dedup();
        Some(segments)
    }

    fn families(&self) -> Families {
        match &self.inner.kind {
            Kind::Exact(text) => Families::of_type(text),
            // Something follows the name, so its last segment is never the last of the type.
            Kind::Domain(name) => Families::of_first(first_of(name)),
            Kind::Parsed(parsed) => {
                parsed.alternatives().iter().fold(Families::NONE, |all, one| all.union(one.families))
            }
            Kind::OneOf(parts) | Kind::AllOf(parts) => {
                parts.iter().fold(Families::NONE, |all, part| all.union(part.families()))
            }
            Kind::Predicate { reach: Reach::Everything, .. } => Families::ALL,
            Kind::Predicate { reach: Reach::Ordinary, .. } | Kind::Any | Kind::Not(_) => Families::NONE,
            #[cfg(feature = "regex")]
            Kind::Regex(_) => Families::NONE,
        }
    }

    fn reaches(&self, ty: &str, wanted: Families) -> bool {
        match &self.inner.kind {
            Kind::Parsed(parsed) => parsed
                .alternatives()
                .iter()
                .any(|alternative| alternative.families.meets(wanted) && alternative.matches(ty)),
            Kind::OneOf(branches) => branches.iter().any(|branch| branch.reaches(ty, wanted)),
            Kind::AllOf(parts) => {
                parts.iter().any(|part| part.reaches(ty, wanted)) && parts.iter().all(|part| part.matches(ty))
            }
            _ => self.families().meets(wanted) && self.matches(ty),
        }
    }
}

/// Shows the text that was parsed, or the functions that built the pattern, as in `not(exact(order.test))`.
impl Pattern {
    /// What of it can be told to another process; what it matches beyond that only its own process knows.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen_core::pattern::{Pattern, Shape, domain, exact, predicate};
    ///
    /// assert_eq!(Pattern::parse("order.*")?.shape(), Shape::Text("order.*"));
    /// assert_eq!(exact("order.*").shape(), Shape::Exact("order.*"));
    /// assert_eq!(domain("order").shape(), Shape::Domain("order"));
    /// assert_eq!(predicate(|_| true).shape(), Shape::Other);
    /// # Ok::<_, happen_core::PatternError>(())
    /// ```
    #[must_use]
    pub fn shape(&self) -> Shape<'_> {
        match &self.inner.kind {
            Kind::Parsed(parsed) => Shape::Text(parsed.text()),
            Kind::Exact(text) => Shape::Exact(text),
            Kind::Domain(name) => Shape::Domain(name),
            _ => Shape::Other,
        }
    }
}

/// A pattern as it is told to other processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shape<'p> {
    /// The pattern that [`Pattern::parse`] makes of this text.
    Text(&'p str),
    /// The pattern that [`exact`] makes of this text.
    Exact(&'p str),
    /// The pattern that [`domain()`] makes of this name.
    Domain(&'p str),
    /// One that has functions in it, or others.
    Other,
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner.kind {
            Kind::Any => f.write_str("any()"),
            Kind::Exact(text) => write!(f, "exact({text})"),
            Kind::Domain(name) => write!(f, "domain({name})"),
            Kind::Parsed(parsed) => f.write_str(parsed.text()),
            Kind::OneOf(branches) => list(f, "one_of", branches),
            Kind::AllOf(parts) => list(f, "all_of", parts),
            Kind::Not(inner) => write!(f, "not({inner})"),
            Kind::Predicate { reach: Reach::Ordinary, .. } => f.write_str("predicate(..)"),
            Kind::Predicate { reach: Reach::Everything, .. } => f.write_str("runtime(..)"),
            #[cfg(feature = "regex")]
            Kind::Regex(whole) => write!(f, "regex({})", whole.source()),
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({self})")
    }
}

struct Inner {
    /// Levels of combinators, this one included; at most `PATTERN_DEPTH_MAX`, which bounds every recursion.
    depth: usize,
    kind: Kind,
}

enum Kind {
    Any,
    Exact(Box<str>),
    Domain(Box<str>),
    Parsed(Parsed),
    OneOf(Vec<Pattern>),
    AllOf(Vec<Pattern>),
    Not(Pattern),
    Predicate {
        test: Box<dyn Fn(&str) -> bool + Send + Sync>,
        reach: Reach,
    },
    #[cfg(feature = "regex")]
    Regex(regex::Whole),
}

/// Which events a predicate may receive.
#[derive(Clone, Copy)]
enum Reach {
    Ordinary,
    Everything,
}

/// Gives the byte at which the segments below the domain start, if the type has any and none is empty.
fn below(name: &str, ty: &str) -> Option<usize> {
    let rest = ty.strip_prefix(name)?.strip_prefix('.')?;
    let empty_segment =
        rest.is_empty() || rest.starts_with('.') || rest.ends_with('.') || rest.contains("..");
    (!empty_segment).then_some(name.len() + 1)
}

fn first_of(text: &str) -> &str {
    text.split_once('.').map_or(text, |(first, _)| first)
}

fn list(f: &mut fmt::Formatter<'_>, name: &str, parts: &[Pattern]) -> fmt::Result {
    write!(f, "{name}(")?;
    for (index, part) in parts.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        write!(f, "{comma}{part}")?;
    }
    f.write_str(")")
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
