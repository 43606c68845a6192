//! Owns the table of names for patterns. Knows nothing about what a pattern looks like inside.

use std::collections::BTreeMap;

use super::Pattern;
use super::error::{PatternError, PatternErrorKind as Kind};
use super::into::IntoPattern;
use super::limits::{ALIASES_LEN_MAX, PATTERN_BYTES_MAX};

/// Names for patterns, written `@name` where a pattern is asked for.
///
/// The table belongs to whoever makes it; there is no global one. An alias stands for a whole pattern and not
/// for part of one; combine with [`one_of`](super::one_of) and the like instead.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::{Aliases, PatternError, domain, exact, not};
///
/// let mut aliases = Aliases::new();
/// aliases.define("orders", domain("order").and(not(exact("order.test"))))?;
/// aliases.define("money", "{payment,refund}.*")?;
/// assert!(aliases.parse("@orders")?.matches("order.created"));
/// assert!(aliases.parse("@money")?.matches("refund.sent"));
/// assert!(aliases.parse("user.*")?.matches("user.created"));
/// # Ok::<(), PatternError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Aliases {
    table: BTreeMap<String, Pattern>,
}

impl Aliases {
    /// Makes an empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives a pattern a name, written here without its `@`.
    ///
    /// # Errors
    ///
    /// - Any mistake in the pattern itself.
    /// - [`BadAliasName`](super::PatternErrorKind::BadAliasName): use letters, digits, `-`, `_` and `.`.
    /// - [`DuplicateAlias`](super::PatternErrorKind::DuplicateAlias): the first definition stays.
    /// - [`TooManyAliases`](super::PatternErrorKind::TooManyAliases): the table is full and stays as it is.
    pub fn define<M>(&mut self, name: &str, pattern: impl IntoPattern<M>) -> Result<(), PatternError> {
        // The `@` counts, so that every name that can be defined can also be written as a pattern.
        let bad = name.len() >= PATTERN_BYTES_MAX || name.is_empty();
        let stranger = name.find(|c: char| !(c.is_alphanumeric() || matches!(c, '-' | '_' | '.')));
        if bad || stranger.is_some() {
            return Err(PatternError::new(name, stranger.unwrap_or(0), Kind::BadAliasName));
        }
        if self.table.contains_key(name) {
            return Err(PatternError::new(name, 0, Kind::DuplicateAlias));
        }
        let pattern = pattern.into_pattern()?;
        if self.table.len() >= ALIASES_LEN_MAX {
            return Err(PatternError::new(name, 0, Kind::TooManyAliases));
        }
        self.table.insert(name.to_owned(), pattern);
        Ok(())
    }

    /// Reads `@name` as the pattern of that name and any other text as [`Pattern::parse`] does.
    ///
    /// # Errors
    ///
    /// - [`UnknownAlias`](super::PatternErrorKind::UnknownAlias): no such name; a type that really starts
    ///   with `@` is written with [`exact`](super::exact).
    /// - Any mistake in the pattern itself.
    pub fn parse(&self, text: &str) -> Result<Pattern, PatternError> {
        match text.strip_prefix('@') {
            None => Pattern::parse(text),
            Some(name) => {
                let found = self.table.get(name).cloned();
                found.ok_or_else(|| PatternError::new(text, 1, Kind::UnknownAlias))
            }
        }
    }

    /// Goes through names and patterns, sorted by name.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Pattern)> {
        self.table.iter().map(|(name, pattern)| (name.as_str(), pattern))
    }
}
