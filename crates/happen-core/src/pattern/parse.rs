//! Owns the reading of pattern text: braces are written out into plain alternatives, each a list of tokens.
//! Knows the grammar and its mistakes, and leaves matching to `segments`.
//!
//! Alternatives may begin and end anywhere (`order-{a,b}`, `{order.*,payment}.done`), so whether a segment is
//! empty or a `*` stands alone is only known once they are written out. A tree of alternatives inside the
//! matcher would save memory for long lists, but needs backtracking through groups that end mid-segment.

use std::ops::Range;

use super::error::{PatternError, PatternErrorKind as Kind};
use super::limits::{PATTERN_ALTERNATIVES_MAX, PATTERN_BYTES_MAX, PATTERN_NESTING_MAX};
use super::runtime::Families;
use super::segments::{Token, Watch, families, walk};

/// A pattern text, read. Invariant: at least one alternative, each with at least one token.
#[derive(Debug)]
pub(super) struct Parsed {
    text: Box<str>,
    alternatives: Box<[Alternative]>,
    group_len: usize,
}

/// One way to write the pattern out.
#[derive(Debug)]
pub(super) struct Alternative {
    pub(super) tokens: Box<[Token]>,
    pub(super) families: Families,
    groups: Box<[Group]>,
}

/// Where a wildcard or a brace pair of the text ended up in an alternative.
#[derive(Debug, Clone, Copy)]
struct Group {
    group_index: usize,
    start: Point,
    end: Point,
}

/// A place between two characters, given relative to what a token takes, because only the match knows bytes.
#[derive(Debug, Clone, Copy)]
enum Point {
    FromStart { token_index: usize, offset_bytes: usize },
    FromEnd { token_index: usize, offset_bytes: usize },
}

impl Parsed {
    pub(super) fn read(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::new(text, 0, Kind::EmptyPattern));
        }
        if text.len() > PATTERN_BYTES_MAX {
            let position = text.floor_char_boundary(PATTERN_BYTES_MAX);
            return Err(PatternError::new(text, position, Kind::TooLong));
        }
        let mut reader = Reader { text, at: 0, group_len: 0 };
        let sequence = reader.sequence(0)?;
        assert!(reader.at == text.len(), "a pattern is read to its end");
        let alternatives = written_out(&sequence.pieces)
            .into_iter()
            .map(|atoms| Alternative::build(text, &atoms))
            .collect::<Result<Box<[_]>, _>>()?;
        assert!(alternatives.len() == sequence.alternatives_len, "alternatives were counted right");
        Ok(Self { text: text.into(), alternatives, group_len: reader.group_len })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn alternatives(&self) -> &[Alternative] {
        &self.alternatives
    }

    pub(super) fn literal(&self) -> Option<&str> {
        let [alternative] = &*self.alternatives else { return None };
        let [Token::Literal(text)] = &*alternative.tokens else { return None };
        Some(text)
    }

    pub(super) fn matches(&self, ty: &str) -> bool {
        self.alternatives.iter().any(|alternative| alternative.matches(ty))
    }

    /// Appends the groups of the first alternative that matches, one per wildcard and brace pair of the text.
    pub(super) fn capture(&self, ty: &str, spans: &mut Vec<Option<Range<usize>>>) -> bool {
        let mut taken = Taken(Vec::new());
        for alternative in &self.alternatives {
            taken.0.clear();
            taken.0.resize(alternative.tokens.len(), 0..0);
            if !walk(&alternative.tokens, ty, &mut taken) {
                continue;
            }
            let base = spans.len();
            spans.resize(base + self.group_len, None);
            for group in &alternative.groups {
                let span = group.start.resolve(&taken.0)..group.end.resolve(&taken.0);
                assert!(ty.is_char_boundary(span.start), "a capture starts between characters");
                assert!(ty.is_char_boundary(span.end), "a capture ends between characters");
                spans[base + group.group_index] = Some(span);
            }
            return true;
        }
        false
    }
}

impl Alternative {
    pub(super) fn matches(&self, ty: &str) -> bool {
        walk(&self.tokens, ty, &mut ())
    }

    /// Turns one written-out sequence into tokens, and finds the mistakes that only show now.
    fn build(text: &str, atoms: &[Atom<'_>]) -> Result<Self, PatternError> {
        let mut builder =
            Builder { tokens: Vec::new(), literal: String::new(), segment: Segment::Start { at: 0 } };
        let mut groups: Vec<Group> = Vec::new();
        for atom in atoms {
            match *atom {
                Atom::Open { group_index } => {
                    let point = builder.point();
                    groups.push(Group { group_index, start: point, end: point });
                }
                Atom::Close { group_index } => {
                    let point = builder.point();
                    for group in groups.iter_mut().filter(|group| group.group_index == group_index) {
                        group.end = point;
                    }
                }
                Atom::Wildcard { at, group_index, ref token } => {
                    if !matches!(builder.segment, Segment::Start { .. }) {
                        return Err(PatternError::new(text, at, Kind::PartialWildcard));
                    }
                    builder.flush();
                    let token_index = builder.tokens.len();
                    builder.tokens.push(token.clone());
                    builder.segment = Segment::Wildcard { at };
                    groups.push(Group {
                        group_index,
                        start: Point::FromStart { token_index, offset_bytes: 0 },
                        end: Point::FromEnd { token_index, offset_bytes: 0 },
                    });
                }
                Atom::Text { at, text: part } => {
                    for (offset, character) in part.char_indices() {
                        builder
                            .push(character, at + offset)
                            .map_err(|(position, kind)| PatternError::new(text, position, kind))?;
                    }
                }
            }
        }
        if let Segment::Start { at } = builder.segment {
            return Err(PatternError::new(text, at, Kind::EmptySegment));
        }
        builder.flush();
        assert!(!builder.tokens.is_empty(), "an alternative has a token");
        let families = families(&builder.tokens);
        Ok(Self { tokens: builder.tokens.into(), families, groups: groups.into() })
    }
}

impl Point {
    fn resolve(self, taken: &[Range<usize>]) -> usize {
        match self {
            Self::FromStart { token_index, offset_bytes } => taken[token_index].start + offset_bytes,
            Self::FromEnd { token_index, offset_bytes } => taken[token_index].end + offset_bytes,
        }
    }
}

/// Remembers what each token took.
struct Taken(Vec<Range<usize>>);

impl Watch for Taken {
    fn took(&mut self, token_index: usize, bytes: Range<usize>) {
        self.0[token_index] = bytes;
    }
    fn stopped(&mut self, _: usize, _: usize) {}
}

/// Puts tokens together character by character.
struct Builder {
    tokens: Vec<Token>,
    /// The literal token under construction; it spans segments until a wildcard ends it.
    literal: String,
    segment: Segment,
}

/// What the current segment holds so far, and where in the text it (or its wildcard) starts.
enum Segment {
    Start { at: usize },
    Literal,
    Wildcard { at: usize },
}

impl Builder {
    fn push(&mut self, character: char, at: usize) -> Result<(), (usize, Kind)> {
        match (&self.segment, character) {
            (Segment::Start { .. }, '.') => return Err((at, Kind::EmptySegment)),
            (_, '.') => self.segment = Segment::Start { at: at + 1 },
            (Segment::Wildcard { at }, _) => return Err((*at, Kind::PartialWildcard)),
            (Segment::Start { .. }, _) => {
                if !self.literal.is_empty() {
                    self.literal.push('.');
                }
                self.literal.push(character);
                self.segment = Segment::Literal;
            }
            (Segment::Literal, _) => self.literal.push(character),
        }
        Ok(())
    }

    fn flush(&mut self) {
        if !self.literal.is_empty() {
            self.tokens.push(Token::Literal(std::mem::take(&mut self.literal).into()));
        }
    }

    /// Gives the place reached, which may be behind a dot that no token holds yet.
    fn point(&self) -> Point {
        let behind_dot = match self.segment {
            Segment::Start { .. } => 1,
            Segment::Literal | Segment::Wildcard { .. } => 0,
        };
        if !self.literal.is_empty() {
            let offset_bytes = self.literal.len() + behind_dot;
            return Point::FromStart { token_index: self.tokens.len(), offset_bytes };
        }
        match self.tokens.len().checked_sub(1) {
            Some(token_index) => Point::FromEnd { token_index, offset_bytes: behind_dot },
            None => Point::FromStart { token_index: 0, offset_bytes: 0 },
        }
    }
}

/// A piece of the text as it is written.
enum Piece<'p> {
    Text { at: usize, text: &'p str },
    Wildcard { at: usize, group_index: usize, token: Token },
    Braces { group_index: usize, alternatives: Vec<Vec<Piece<'p>>> },
}

/// A piece of a written-out alternative.
#[derive(Clone)]
enum Atom<'p> {
    Text { at: usize, text: &'p str },
    Wildcard { at: usize, group_index: usize, token: Token },
    Open { group_index: usize },
    Close { group_index: usize },
}

/// Pieces up to the end of the text, a `,` or a `}`, and how many alternatives they stand for.
struct Sequence<'p> {
    pieces: Vec<Piece<'p>>,
    alternatives_len: usize,
}

/// Reads the text by bytes: every byte with a meaning is ASCII, so no character is ever cut.
struct Reader<'p> {
    text: &'p str,
    at: usize,
    group_len: usize,
}

impl<'p> Reader<'p> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn error(&self, position: usize, kind: Kind) -> PatternError {
        PatternError::new(self.text, position, kind)
    }

    fn open_group(&mut self) -> usize {
        self.group_len += 1;
        self.group_len - 1
    }

    /// Reads one sequence; `depth` counts the braces around it. Recursion ends at `PATTERN_NESTING_MAX`.
    fn sequence(&mut self, depth: usize) -> Result<Sequence<'p>, PatternError> {
        let mut pieces = Vec::new();
        let mut alternatives_len: usize = 1;
        while let Some(byte) = self.peek() {
            match byte {
                b'{' => {
                    let open = self.at;
                    let (piece, len) = self.braces(depth)?;
                    pieces.push(piece);
                    alternatives_len = alternatives_len.saturating_mul(len);
                    if alternatives_len > PATTERN_ALTERNATIVES_MAX {
                        return Err(self.error(open, Kind::TooManyAlternatives));
                    }
                }
                b'}' | b',' if depth > 0 => break,
                b'}' => return Err(self.error(self.at, Kind::StrayBrace)),
                b'*' => pieces.push(self.wildcard()?),
                _ => pieces.push(self.literal(depth)),
            }
        }
        Ok(Sequence { pieces, alternatives_len })
    }

    fn braces(&mut self, depth: usize) -> Result<(Piece<'p>, usize), PatternError> {
        let open = self.at;
        if depth == PATTERN_NESTING_MAX {
            return Err(self.error(open, Kind::TooDeep));
        }
        let group_index = self.open_group();
        let mut alternatives = Vec::new();
        let mut alternatives_len: usize = 0;
        loop {
            // Steps over the `{` or `,` in front of the alternative.
            self.at += 1;
            let start = self.at;
            let sequence = self.sequence(depth + 1)?;
            let Some(close) = self.peek() else {
                return Err(self.error(open, Kind::UnclosedBrace));
            };
            if sequence.pieces.is_empty() {
                return Err(self.error(start, Kind::EmptyAlternative));
            }
            alternatives.push(sequence.pieces);
            alternatives_len = alternatives_len.saturating_add(sequence.alternatives_len);
            if alternatives_len > PATTERN_ALTERNATIVES_MAX {
                return Err(self.error(open, Kind::TooManyAlternatives));
            }
            if close == b'}' {
                self.at += 1;
                return Ok((Piece::Braces { group_index, alternatives }, alternatives_len));
            }
        }
    }

    fn wildcard(&mut self) -> Result<Piece<'p>, PatternError> {
        let at = self.at;
        while self.peek() == Some(b'*') {
            self.at += 1;
        }
        let token = match self.at - at {
            1 => Token::One,
            2 => Token::Many,
            _ => return Err(self.error(at, Kind::TooManyStars)),
        };
        Ok(Piece::Wildcard { at, group_index: self.open_group(), token })
    }

    /// A comma has a meaning only between braces.
    fn literal(&mut self, depth: usize) -> Piece<'p> {
        let at = self.at;
        while let Some(byte) = self.peek() {
            match byte {
                b'{' | b'}' | b'*' => break,
                b',' if depth > 0 => break,
                _ => self.at += 1,
            }
        }
        assert!(self.at > at, "a literal is not empty");
        Piece::Text { at, text: &self.text[at..self.at] }
    }
}

/// Writes the alternatives out, in the order of the text. The reader has already bounded depth and number.
fn written_out<'p>(pieces: &[Piece<'p>]) -> Vec<Vec<Atom<'p>>> {
    let mut lists: Vec<Vec<Atom<'p>>> = vec![Vec::new()];
    for piece in pieces {
        match piece {
            Piece::Text { at, text } => {
                lists.iter_mut().for_each(|list| list.push(Atom::Text { at: *at, text }));
            }
            Piece::Wildcard { at, group_index, token } => {
                for list in &mut lists {
                    list.push(Atom::Wildcard { at: *at, group_index: *group_index, token: token.clone() });
                }
            }
            Piece::Braces { group_index, alternatives } => {
                let group_index = *group_index;
                let inner: Vec<Vec<Atom<'p>>> =
                    alternatives.iter().flat_map(|alternative| written_out(alternative)).collect();
                let mut longer = Vec::with_capacity(lists.len() * inner.len());
                for list in &lists {
                    for atoms in &inner {
                        let mut list = list.clone();
                        list.push(Atom::Open { group_index });
                        list.extend_from_slice(atoms);
                        list.push(Atom::Close { group_index });
                        longer.push(list);
                    }
                }
                lists = longer;
            }
        }
    }
    lists
}
