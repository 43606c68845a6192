//! Owns patterns that are regular expressions (feature `regex`). Knows the crate `regex`, which no other file
//! of the folder names.

use std::ops::Range;

use regex::{Regex, RegexBuilder};

use super::error::{PatternError, PatternErrorKind as Kind};
use super::limits::{PATTERN_BYTES_MAX, REGEX_PROGRAM_BYTES_MAX};

/// A regular expression over the whole type.
#[derive(Debug)]
pub(super) struct Whole {
    source: Box<str>,
    anchored: Regex,
}

impl Whole {
    pub(super) fn read(source: &str) -> Result<Self, PatternError> {
        if source.is_empty() {
            return Err(PatternError::new(source, 0, Kind::EmptyPattern));
        }
        if source.len() > PATTERN_BYTES_MAX {
            let position = source.floor_char_boundary(PATTERN_BYTES_MAX);
            return Err(PatternError::new(source, position, Kind::TooLong));
        }
        // Alone first: `a)|(b` is a mistake, but would be none between the parentheses below.
        compile(source).map_err(|cause| refused(source, cause))?;
        // In verbose mode (`(?x)a # note`) a comment at the end swallows the closing parenthesis, and only a
        // line break, which that mode ignores, ends it.
        let anchored = compile(&format!(r"\A(?:{source})\z"))
            .or_else(|_| compile(&format!("\\A(?:{source}\n)\\z")))
            .map_err(|cause| refused(source, cause))?;
        Ok(Self { source: source.into(), anchored })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn matches(&self, ty: &str) -> bool {
        self.anchored.is_match(ty)
    }

    pub(super) fn capture(&self, ty: &str, spans: &mut Vec<Option<Range<usize>>>) -> bool {
        let Some(found) = self.anchored.captures(ty) else { return false };
        // Group 0 is the whole type, which the caller has already.
        spans.extend(found.iter().skip(1).map(|group| group.map(|group| group.range())));
        true
    }
}

fn compile(source: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(source)
        .size_limit(REGEX_PROGRAM_BYTES_MAX)
        .dfa_size_limit(REGEX_PROGRAM_BYTES_MAX)
        .build()
}

fn refused(source: &str, cause: regex::Error) -> PatternError {
    let (position, kind) = match &cause {
        regex::Error::CompiledTooBig(_) => (0, Kind::RegexTooLarge),
        other => (marked(source, &other.to_string()).unwrap_or(0), Kind::BadRegex),
    };
    PatternError::new(source, position, kind).caused_by(cause)
}

/// Finds the place that the message marks with `^` under the source, its only form for a source of one line.
/// The crate has no accessor for it; a message of another form only costs the position.
fn marked(source: &str, message: &str) -> Option<usize> {
    let mut lines = message.lines().map(|line| line.strip_prefix("    "));
    lines.find(|line| *line == Some(source))?;
    let column = lines.next()??.find('^')?;
    source.char_indices().map(|(byte, _)| byte).chain([source.len()]).nth(column)
}
