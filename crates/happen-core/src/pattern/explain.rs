//! Owns the explanation of one match, for people. Knows every kind of pattern; nobody parses its wording.

use std::fmt;
use std::ops::Range;

use super::error::Quoted;
use super::runtime::is_runtime;
use super::segments::{Token, Watch, segment_end, walk};
use super::{Kind, Pattern};

/// Why a type matches a pattern or does not.
///
/// Display prints the type on one line and then one line per part of the pattern, parts of parts indented,
/// with the segment at which it stopped. The wording is for people and may change.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::{domain, exact, not};
///
/// let pattern = domain("order").and(not(exact("order.test")));
/// assert_eq!(
///     pattern.explain("order.test").to_string(),
///     "type `order.test`\n\
///      no   all_of: not every part matches\n  \
///        yes  domain(order)\n  \
///        no   not: the pattern inside matches\n    \
///          yes  exact(order.test)",
/// );
/// ```
#[derive(Debug, Clone)]
pub struct Explanation {
    ty: String,
    root: Part,
    kept_away: bool,
}

impl Explanation {
    pub(super) fn of(pattern: &Pattern, ty: &str) -> Self {
        let root = Part::of(pattern, ty);
        let kept_away = root.matched && is_runtime(ty) && !pattern.matches_runtime(ty);
        Self { ty: ty.to_owned(), root, kept_away }
    }

    /// Tells whether the type matches, as [`Pattern::matches`] does.
    #[must_use]
    pub fn matched(&self) -> bool {
        self.root.matched
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type `{}`", Quoted(&self.ty))?;
        self.root.print(f, 0)?;
        if self.kept_away {
            f.write_str("\nbut the type is the runtime's own and reaches only patterns that name it")?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Part {
    label: String,
    matched: bool,
    /// Why it is so, where the label does not say it already.
    reason: Option<String>,
    parts: Vec<Part>,
}

impl Part {
    fn of(pattern: &Pattern, ty: &str) -> Self {
        let inside = |parts: &[Pattern]| parts.iter().map(|part| Self::of(part, ty)).collect::<Vec<_>>();
        let (label, parts, why_not) = match &pattern.inner.kind {
            Kind::OneOf(branches) => ("one_of".to_owned(), inside(branches), "no branch matches"),
            Kind::AllOf(parts) => ("all_of".to_owned(), inside(parts), "not every part matches"),
            Kind::Not(inner) => ("not".to_owned(), vec![Self::of(inner, ty)], "the pattern inside matches"),
            Kind::Parsed(parsed) => match parsed.alternatives() {
                [only] => return Self::written_out(pattern.to_string(), &only.tokens, ty),
                several => {
                    let parts =
                        several.iter().map(|one| Self::written_out(spelled(&one.tokens), &one.tokens, ty));
                    (pattern.to_string(), parts.collect(), "no alternative matches")
                }
            },
            Kind::Exact(text) => {
                return Self::written_out(pattern.to_string(), &[Token::Literal(text.clone())], ty);
            }
            Kind::Domain(name) => {
                let tokens = [Token::Literal(name.clone()), Token::Many];
                return Self::written_out(pattern.to_string(), &tokens, ty);
            }
            Kind::Predicate { .. } => (pattern.to_string(), Vec::new(), "the function says false"),
            Kind::Any => (pattern.to_string(), Vec::new(), ""),
            #[cfg(feature = "regex")]
            Kind::Regex(_) => {
                (pattern.to_string(), Vec::new(), "the expression does not match the whole type")
            }
        };
        let matched = pattern.matches(ty);
        Self { label, matched, reason: (!matched).then(|| why_not.to_owned()), parts }
    }

    fn written_out(label: String, tokens: &[Token], ty: &str) -> Self {
        let mut furthest = Furthest { token_index: 0, byte: 0 };
        let matched = walk(tokens, ty, &mut furthest);
        let reason = (!matched).then(|| furthest.reason(tokens, ty));
        Self { label, matched, reason, parts: Vec::new() }
    }

    /// Recursion is bounded by the depth of the pattern.
    fn print(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let verdict = if self.matched { "yes" } else { "no " };
        write!(f, "\n{:indent$}{verdict}  {}", "", Quoted(&self.label), indent = depth * 2)?;
        if let Some(reason) = &self.reason {
            write!(f, ": {}", Quoted(reason))?;
        }
        self.parts.iter().try_for_each(|part| part.print(f, depth + 1))
    }
}

/// Remembers the stop that was nearest to a match; of equally near ones the last.
struct Furthest {
    token_index: usize,
    byte: usize,
}

impl Watch for Furthest {
    fn took(&mut self, _: usize, _: Range<usize>) {}

    fn stopped(&mut self, token_index: usize, byte: usize) {
        if byte >= self.byte {
            *self = Self { token_index, byte };
        }
    }
}

impl Furthest {
    fn reason(&self, tokens: &[Token], ty: &str) -> String {
        let mut start = self.byte;
        let expected = match tokens.get(self.token_index) {
            None => None,
            Some(Token::Literal(text)) => {
                // The token may span segments; the first one that differs is the one to show.
                let mut expected = text.split('.');
                let mut next = expected.next();
                while let Some(segment) = next
                    && let Some(end) = segment_end(ty, start)
                    && ty[start..end] == *segment
                {
                    start = end + 1;
                    next = expected.next();
                }
                next
            }
            Some(wildcard) => Some(wildcard.text()),
        };
        let Some(before) = ty.get(..start) else {
            let segment_len = ty.split('.').count();
            let expected = expected.unwrap_or("nothing");
            return format!("the type ends after segment {segment_len}, `{expected}` is missing");
        };
        let number = before.matches('.').count() + 1;
        match (segment_end(ty, start), expected) {
            (None, _) => format!("segment {number} is empty"),
            (Some(end), None) => format!("segment {number} `{}` is one too many", &ty[start..end]),
            (Some(end), Some(expected)) => {
                format!("segment {number} is `{}`, not `{expected}`", &ty[start..end])
            }
        }
    }
}

fn spelled(tokens: &[Token]) -> String {
    tokens.iter().map(Token::text).collect::<Vec<_>>().join(".")
}
