//! Tells Rust code from comments and literals, so that a check on code is not misled by text. It knows just
//! enough of the language's tokens for that, and replaces what it removes by spaces: lines and columns stay.

/// A Rust source in two readings.
#[derive(Debug)]
pub(super) struct Masked {
    /// Code without comments and without the contents of string and character literals.
    pub(super) code: String,
    /// Code and literals without comments.
    pub(super) without_comments: String,
}

/// Splits a source. On source that does not compile the result is of no use, but it is a result.
pub(super) fn mask(source: &str) -> Masked {
    let mut masked = Masked { code: String::new(), without_comments: String::new() };
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let (kind, length) = token(rest, masked.code.chars().next_back(), first);
        let (now, later) = rest.split_at(length);
        let blank = || now.chars().map(|character| if character == '\n' { '\n' } else { ' ' });
        match kind {
            Kind::Code => masked.code.push_str(now),
            Kind::Literal | Kind::Comment => masked.code.extend(blank()),
        }
        match kind {
            Kind::Code | Kind::Literal => masked.without_comments.push_str(now),
            Kind::Comment => masked.without_comments.extend(blank()),
        }
        rest = later;
    }
    masked
}

#[derive(Clone, Copy)]
enum Kind {
    Code,
    Literal,
    Comment,
}

/// Gives the kind and length in bytes of what `rest` begins with.
fn token(rest: &str, before: Option<char>, first: char) -> (Kind, usize) {
    if rest.starts_with("//") {
        return (Kind::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Kind::Comment, block_comment(rest));
    }
    if first == '"' {
        return (Kind::Literal, quoted(rest, '"').unwrap_or(rest.len()));
    }
    if first == '\'' {
        return character(rest);
    }
    let is_word_start = !before.is_some_and(|before| before.is_alphanumeric() || before == '_');
    if is_word_start && let Some(length) = raw_string(rest) {
        return (Kind::Literal, length);
    }
    (Kind::Code, first.len_utf8())
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Gives the length up to and with the closing quote.
fn quoted(rest: &str, quote: char) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1);
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            _ if character == quote => return Some(index + character.len_utf8()),
            _ => {}
        }
    }
    None
}

/// A quote begins a character or a lifetime; only a character ends after one (escaped) character.
fn character(rest: &str) -> (Kind, usize) {
    let mut inner = rest.chars().skip(1);
    let (one, two) = (inner.next(), inner.next());
    if one == Some('\\') || two == Some('\'') {
        return (Kind::Literal, quoted(rest, '\'').unwrap_or(rest.len()));
    }
    (Kind::Code, 1)
}

/// `r"…"`, `r#"…"#` and the same after `b` or `c`.
fn raw_string(rest: &str) -> Option<usize> {
    let start = rest.strip_prefix(['b', 'c']).unwrap_or(rest).strip_prefix('r')?;
    let opened = start.trim_start_matches('#');
    let hashes = &start[..start.len() - opened.len()];
    let body = opened.strip_prefix('"')?;
    let end = format!("\"{hashes}");
    let body_end = body.find(&end).map_or(body.len(), |index| index + end.len());
    Some(rest.len() - body.len() + body_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_told_from_code() {
        let source = "let a = \"x // \\\" y\"; // one\n/* two /* three */ \n four */ \
                      let b = 'c'; let c: &'static str = \
                      r#\"five \" six\"#; br\"seven\"; '\\''; '\"'; eight(b'x');\n";
        let masked = mask(source);
        assert_eq!(masked.code.lines().count(), source.lines().count());
        assert_eq!(masked.code.chars().count(), source.chars().count());
        let words: Vec<&str> = masked.code.split_whitespace().collect();
        let expected = "let a = ; let b = ; let c: &'static str = ; ; ; ; eight(b );";
        assert_eq!(words.join(" "), expected);
        let kept = masked.without_comments;
        assert!(kept.contains("x // \\\" y"), "{kept}");
        assert!(kept.contains("five \" six"), "{kept}");
        for gone in ["one", "two", "three", "four"] {
            assert!(!kept.contains(gone), "{kept}");
        }
    }

    #[test]
    fn source_that_ends_early_ends_the_reading() {
        for source in ["\"abc", "/* abc", "r#\"abc", "'\\", "// abc", "'", "r#", "é"] {
            assert_eq!(mask(source).code.chars().count(), source.chars().count());
        }
    }
}
