//! Owns the match of one written-out pattern (no alternatives left) against a type. Knows nothing about text.
//!
//! The algorithm is the usual one for globs: walk both sides at once, remember only the last `**`, and on a
//! mismatch let that one take one segment more. Earlier `**` never need another try, because giving the
//! last one the leftmost place it fits leaves the most room for what follows. Time is at most the segments
//! of the type times the parts of the pattern; a recursive matcher is exponential on `**.**.**.x`.
//!
//! An empty segment in a type is matched by nothing here: a parsed pattern has no empty literal, and a
//! wildcard wants at least one character.

use std::ops::Range;

use super::Needs;
use super::runtime::Families;

/// One part of a written-out pattern. Neighbouring literal segments are one token, dots included, so that a
/// pattern without wildcards is a single comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Literal(Box<str>),
    One,
    Many,
}

impl Token {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Literal(text) => text,
            Self::One => "*",
            Self::Many => "**",
        }
    }
}

/// Sees what [`walk`] does, for those who want more than yes or no.
pub(super) trait Watch {
    /// The token takes these bytes; a later call for the same token replaces an earlier one.
    fn took(&mut self, token_index: usize, bytes: Range<usize>);
    /// The token cannot take the segment that starts at this byte. An index past the tokens means that the
    /// pattern is used up; a byte past the type means that the type is.
    fn stopped(&mut self, token_index: usize, byte: usize);
}

/// Watches nothing and costs nothing.
impl Watch for () {
    fn took(&mut self, _: usize, _: Range<usize>) {}
    fn stopped(&mut self, _: usize, _: usize) {}
}

/// Matches the tokens against the whole type. An earlier `**` takes as few segments as it can.
pub(super) fn walk(tokens: &[Token], ty: &str, watch: &mut impl Watch) -> bool {
    // A segment that ends at byte n is followed by one that starts at n + 1, past its dot. After the last
    // segment that is one past the length, which tells "used up" from "an empty segment at the end".
    let mut start = 0;
    let mut token_index = 0;
    let mut last_many: Option<(usize, Range<usize>)> = None;
    loop {
        let end = match tokens.get(token_index) {
            None if start > ty.len() => return true,
            None => None,
            Some(Token::Literal(text)) => literal_end(ty, start, text),
            Some(Token::One) => segment_end(ty, start),
            Some(Token::Many) => {
                let end = segment_end(ty, start);
                if let Some(end) = end {
                    last_many = Some((token_index, start..end));
                }
                end
            }
        };
        if let Some(end) = end {
            watch.took(token_index, start..end);
            token_index += 1;
            start = end + 1;
            continue;
        }
        watch.stopped(token_index, start);
        if start > ty.len() {
            // Taking more for `**` would leave even less for the rest.
            return false;
        }
        let Some((many_index, taken)) = &mut last_many else { return false };
        let Some(end) = segment_end(ty, taken.end + 1) else { return false };
        taken.end = end;
        watch.took(*many_index, taken.clone());
        token_index = *many_index + 1;
        start = end + 1;
    }
}

/// Finds the end of the segment that starts at this byte; `None` if it is empty or past the type.
pub(super) fn segment_end(ty: &str, start: usize) -> Option<usize> {
    let rest = ty.as_bytes().get(start..)?;
    let len = rest.iter().position(|&byte| byte == b'.').unwrap_or(rest.len());
    (len > 0).then_some(start + len)
}

fn literal_end(ty: &str, start: usize, text: &str) -> Option<usize> {
    let rest = ty.as_bytes().get(start..)?.strip_prefix(text.as_bytes())?;
    matches!(rest.first(), None | Some(b'.')).then_some(start + text.len())
}

/// Gives the segments that all types have which the tokens take.
pub(super) fn needs(tokens: &[Token]) -> Needs<'_> {
    let text = |at: usize| match tokens.get(at)? {
        Token::Literal(text) => Some(&**text),
        _ => None,
    };
    let first = text(0).and_then(|text| text.split('.').next());
    let second = match tokens.first() {
        Some(Token::Literal(text)) => text.split('.').nth(1),
        Some(Token::One) => text(1).and_then(|text| text.split('.').next()),
        _ => None,
    };
    let last = tokens.len().checked_sub(1).and_then(text).and_then(|text| text.rsplit('.').next());
    Needs { first, second, last }
}

/// Gives the runtime families whose distinguishing segment the tokens spell out.
pub(super) fn families(tokens: &[Token]) -> Families {
    let several = tokens.len() > 1 || tokens.first().is_some_and(|token| token.text().contains('.'));
    if !several {
        return Families::NONE;
    }
    let first = match tokens.first() {
        Some(Token::Literal(text)) => Families::of_first(text.split('.').next().unwrap_or(text)),
        _ => Families::NONE,
    };
    let last = match tokens.last() {
        Some(Token::Literal(text)) => Families::of_last(text.rsplit('.').next().unwrap_or(text)),
        _ => Families::NONE,
    };
    first.union(last)
}
