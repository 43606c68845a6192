//! Where text goes: results to standard output, progress to standard error. Owns what depends on the reader,
//! such as a terminal, a pipe, a pipe that was closed, or a locale that has only ASCII; knows nothing of what
//! is written.

use std::io::{self, IsTerminal, Write};

use crate::failure::Failure;

/// Standard output, and what its reader can show.
#[derive(Debug)]
pub(crate) struct Output {
    characters: Characters,
    is_terminal: bool,
}

/// Whether anybody still reads what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    There,
    Gone,
}

/// The characters a reader can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Characters {
    All,
    Ascii,
}

impl Output {
    /// Standard output as the environment describes its reader.
    pub(crate) fn standard() -> Self {
        let names_utf8 = |value: &str| {
            let lower = value.to_ascii_lowercase();
            lower.contains("utf-8") || lower.contains("utf8")
        };
        // The first of these that is set and not empty decides, as in the C library.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|value| !value.is_empty());
        let utf8 = cfg!(windows) || locale.is_some_and(|locale| names_utf8(&locale));
        let characters = if utf8 { Characters::All } else { Characters::Ascii };
        Self { characters, is_terminal: io::stdout().is_terminal() }
    }

    /// A pipe whose reader can show everything.
    #[cfg(test)]
    pub(crate) fn piped() -> Self {
        Self { characters: Characters::All, is_terminal: false }
    }

    /// A terminal that can show everything.
    #[cfg(test)]
    pub(crate) fn terminal() -> Self {
        Self { characters: Characters::All, is_terminal: true }
    }

    /// Whether a person looks on, who is glad of names above columns.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Writes a whole text at once. A reader that has gone, as after `| head`, wants no more, which is no
    /// failure.
    ///
    /// # Errors
    ///
    /// [`Failure::Output`] when it could not be written for another reason, such as a full disk.
    pub(crate) fn write(&self, text: &str) -> Result<(), Failure> {
        self.write_part(text).map(drop)
    }

    /// Writes a part of a text of which more may follow, unless nobody reads it any more.
    ///
    /// # Errors
    ///
    /// As [`Output::write`].
    pub(crate) fn write_part(&self, text: &str) -> Result<Reader, Failure> {
        let shown = self.shown(text);
        let mut out = io::stdout().lock();
        match out.write_all(shown.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(Reader::There),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
            Err(error) => Err(Failure::Output(error)),
        }
    }

    /// Writes a value as JSON, with a newline.
    ///
    /// # Errors
    ///
    /// As [`Output::write`].
    pub(crate) fn write_json(&self, value: &serde_json::Value) -> Result<(), Failure> {
        self.write_as_it_is(&format!("{value:#}\n")).map(drop)
    }

    /// Writes a text for a program, such as JSON, which is UTF-8 whatever the locale says.
    ///
    /// # Errors
    ///
    /// As [`Output::write`].
    pub(crate) fn write_as_it_is(&self, text: &str) -> Result<Reader, Failure> {
        Self { characters: Characters::All, ..*self }.write_part(text)
    }

    fn shown(&self, text: &str) -> String {
        let draw = |character| match character {
            '│' => '|',
            '├' | '└' => '+',
            '─' => '-',
            '…' => '~',
            other => other,
        };
        match self.characters {
            Characters::All => text.to_owned(),
            Characters::Ascii => {
                text.chars().map(draw).map(|shown| if shown.is_ascii() { shown } else { '?' }).collect()
            }
        }
    }
}

/// Text from elsewhere on one line of at most so many characters, without anything that could steer a
/// terminal.
pub(crate) fn plain(text: &str, chars_max: usize) -> String {
    let mut shown: String =
        text.chars().map(|char| if is_steering(char) { '?' } else { char }).take(chars_max).collect();
    if text.chars().nth(chars_max).is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

/// Control characters, and those that turn the direction of the text around them.
fn is_steering(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// How far a command is, on standard error: one line that is written over on a terminal, a few lines
/// elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    of: u64,
    shown: u64,
    is_terminal: bool,
}

impl Progress {
    /// Nothing done yet of so many.
    pub(crate) fn new(what: &'static str, of: u64) -> Self {
        Self { what, of, shown: 0, is_terminal: io::stderr().is_terminal() }
    }

    /// Shows how many are done, when that is news.
    pub(crate) fn show(&mut self, done: u64) {
        let parts = if self.is_terminal { TERMINAL_UPDATES } else { PIPE_LINES };
        let part = |count: u64| count.saturating_mul(parts) / self.of.max(1);
        if part(done) <= part(self.shown) && done < self.of || done == self.shown {
            return;
        }
        self.shown = done;
        let percent = done.saturating_mul(100) / self.of.max(1);
        let line = format!("{}: {done} of {} ({percent} %)", self.what, self.of);
        // Spaces over the end of the line before need no control codes; the line only ever grows.
        let (start, end) = match self.is_terminal {
            true if done < self.of => ("\r", ""),
            true => ("\r", "\n"),
            false => ("", "\n"),
        };
        // Progress that nobody reads is no reason to stop.
        drop(write!(io::stderr().lock(), "{start}{line}{end}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // What is told next, a failure for example, begins on a line of its own.
        if self.is_terminal && self.shown > 0 && self.shown < self.of {
            drop(writeln!(io::stderr().lock()));
        }
    }
}

/// A number with a space between groups of three digits.
pub(crate) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(' ');
        }
        shown.push(digit);
    }
    shown
}

/// So many of something: `1 record`, `2 records`.
pub(crate) fn count_of(count: u64, one: &str) -> String {
    format!("{} {one}{}", number(count), if count == 1 { "" } else { "s" })
}

/// How many in a second, rounded.
pub(crate) fn per_second(count: u64, time: std::time::Duration) -> u64 {
    let seconds = time.as_secs_f64().max(f64::EPSILON);
    (count as f64 / seconds).round() as u64
}

/// How often the line on a terminal changes.
const TERMINAL_UPDATES: u64 = 200;
/// Lines written where there is no terminal.
const PIPE_LINES: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (value, shown) in [(0, "0"), (999, "999"), (1_000, "1 000"), (1_234_567, "1 234 567")] {
            assert_eq!(number(value), shown);
        }
    }

    #[test]
    fn one_is_no_plural() {
        let told = [0, 1, 2, 1_000].map(|count| count_of(count, "record"));
        assert_eq!(told, ["0 records", "1 record", "2 records", "1 000 records"]);
    }

    #[test]
    fn foreign_text_cannot_steer_a_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\nc\u{202e}d", 80), "a?[31mb?c?d");
        assert_eq!(plain("abcdef", 6), "abcdef");
        assert_eq!(plain("abcdefg", 6), "abcde…");
    }

    #[test]
    fn a_locale_without_utf8_gets_ascii() {
        let output = Output { characters: Characters::Ascii, is_terminal: false };
        assert_eq!(output.shown("│  ├─ é …\n"), "|  +- ? ~\n");
    }
}
