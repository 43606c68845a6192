//! Owns the error of every fallible operation on patterns. Knows nothing about how patterns are read.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use super::limits::{
    ALIASES_LEN_MAX, PATTERN_ALTERNATIVES_MAX, PATTERN_BYTES_MAX, PATTERN_NESTING_MAX,
    REGEX_PROGRAM_BYTES_MAX,
};

/// Says why a text is not a pattern, and where.
///
/// The mistake is always the caller's: the same text fails again, so there is nothing to retry.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::{Pattern, PatternErrorKind};
///
/// let error = Pattern::parse("order..x").unwrap_err();
/// assert_eq!(error.to_string(), "bad pattern `order..x` at byte 6: empty segment");
/// assert_eq!(error.position(), 6);
/// assert_eq!(error.kind(), PatternErrorKind::EmptySegment);
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[error("bad pattern `{}` at byte {position}: {kind}", Quoted(.text))]
pub struct PatternError {
    text: String,
    position: usize,
    kind: PatternErrorKind,
    #[source]
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

impl PatternError {
    pub(super) fn new(text: &str, position: usize, kind: PatternErrorKind) -> Self {
        assert!(position <= text.len(), "a position lies inside its text");
        Self { text: shortened(text), position, kind, cause: None }
    }

    #[cfg(feature = "regex")]
    pub(super) fn caused_by(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    /// Gives the text that was refused; a text over the limit is cut and ends in `…`.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Gives the byte of the text at which the mistake is, from 0 up to the length of the text.
    ///
    /// It is 0 for a regular expression whose mistake cannot be placed.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Gives what is wrong.
    #[must_use]
    pub fn kind(&self) -> PatternErrorKind {
        self.kind
    }
}

/// What is wrong with the text of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PatternErrorKind {
    /// The text is empty.
    EmptyPattern,
    /// Two dots meet, or a dot is first or last.
    EmptySegment,
    /// An alternative between `{`, `,` and `}` is empty.
    EmptyAlternative,
    /// A `{` has no `}`.
    UnclosedBrace,
    /// A `}` has no `{`.
    StrayBrace,
    /// A `*` or `**` is only part of a segment.
    PartialWildcard,
    /// Three or more `*` in a row.
    TooManyStars,
    /// The text is longer than [`PATTERN_BYTES_MAX`](super::limits::PATTERN_BYTES_MAX).
    TooLong,
    /// Braces are nested deeper than [`PATTERN_NESTING_MAX`](super::limits::PATTERN_NESTING_MAX).
    TooDeep,
    /// Written out, the pattern has more than
    /// [`PATTERN_ALTERNATIVES_MAX`](super::limits::PATTERN_ALTERNATIVES_MAX) alternatives.
    TooManyAlternatives,
    /// The text is not a regular expression; the source of the error tells more.
    BadRegex,
    /// The regular expression needs more than
    /// [`REGEX_PROGRAM_BYTES_MAX`](super::limits::REGEX_PROGRAM_BYTES_MAX).
    RegexTooLarge,
    /// No alias has this name.
    UnknownAlias,
    /// The alias is defined already.
    DuplicateAlias,
    /// The name of an alias is empty, too long, or has other characters than letters, digits, `-`, `_`, `.`.
    BadAliasName,
    /// The table is full: [`ALIASES_LEN_MAX`](super::limits::ALIASES_LEN_MAX).
    TooManyAliases,
}

impl fmt::Display for PatternErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyPattern => f.write_str("empty pattern"),
            Self::EmptySegment => f.write_str("empty segment"),
            Self::EmptyAlternative => f.write_str("empty alternative"),
            Self::UnclosedBrace => f.write_str("`{` is never closed"),
            Self::StrayBrace => f.write_str("`}` without a `{` before it"),
            Self::PartialWildcard => f.write_str(
                "a wildcard is a whole segment, write it between dots as in `order.*`, \
                 or match part of a segment with alternatives such as `order-{a,b}` or with a predicate",
            ),
            Self::TooManyStars => {
                f.write_str("more than two `*` in a row, write `**` for one or more segments")
            }
            Self::TooLong => write!(f, "longer than {PATTERN_BYTES_MAX} bytes"),
            Self::TooDeep => write!(f, "braces nested more than {PATTERN_NESTING_MAX} deep"),
            Self::TooManyAlternatives => {
                write!(f, "stands for more than {PATTERN_ALTERNATIVES_MAX} alternatives")
            }
            Self::BadRegex => f.write_str("not a regular expression"),
            Self::RegexTooLarge => {
                write!(f, "the regular expression needs more than {REGEX_PROGRAM_BYTES_MAX} bytes")
            }
            Self::UnknownAlias => f.write_str("no alias has this name"),
            Self::DuplicateAlias => f.write_str("the alias is defined already"),
            Self::BadAliasName => {
                f.write_str("the name of an alias is made of letters, digits, `-`, `_` and `.`")
            }
            Self::TooManyAliases => write!(f, "more than {ALIASES_LEN_MAX} aliases"),
        }
    }
}

/// Shows foreign text on one line: control characters are escaped, all else is as it was.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// A text over the limit may be of any size, and an error must not carry it around.
fn shortened(text: &str) -> String {
    if text.len() <= PATTERN_BYTES_MAX {
        return text.to_owned();
    }
    let mut cut = text[..text.floor_char_boundary(PATTERN_BYTES_MAX)].to_owned();
    cut.push('…');
    cut
}
