//! The names that a command is given: on its line, or line by line from standard input. Owns how they are read; what a
//! name means is the journal's.

use std::io::{self, BufRead, Read as _};

use happen::journal::{Journal, Sought};
use happen::{ErrorKind, EventId};

use crate::failure::Failure;
use crate::store::of_store;
use crate::store::opened::Opened;

/// Does something with each of the names, where `-` stands for those that are read from standard input: the first word
/// of each line, so that what other commands print can be given on.
///
/// # Errors
///
/// [`Failure::Input`], [`Failure::Usage`] for a line that is too long, and what `act` gives.
pub(crate) async fn each(
    names: &[String],
    mut act: impl AsyncFnMut(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for name in names {
        if name != "-" {
            act(name).await?;
            continue;
        }
        loop {
            let line = next_line(&mut io::stdin().lock())?;
            let Some(line) = line else { break };
            // A line that begins with `-` is about no event.
            if let Some(name) = line.split_whitespace().next().filter(|name| *name != "-") {
                act(name).await?;
            }
        }
    }
    Ok(())
}

/// The next line, without more of it in memory than a line of this program has.
fn next_line(input: &mut impl BufRead) -> Result<Option<String>, Failure> {
    let mut line = Vec::new();
    let limit = LINE_BYTES_MAX as u64 + 1;
    input.by_ref().take(limit).read_until(b'\n', &mut line).map_err(Failure::Input)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') && line.len() > LINE_BYTES_MAX {
        let text =
            format!("a line of standard input has more than {LINE_BYTES_MAX} bytes; give one id on a line");
        return Err(Failure::Usage(text));
    }
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

/// What a name means: an event, by its id or the beginning of it, or a correlation.
///
/// # Errors
///
/// [`Failure::NotFound`] when the store has none, [`Failure::Usage`] when it has several or the beginning is too short.
pub(crate) async fn sought(store: &Opened, journal: &Journal, text: &str) -> Result<Sought, Failure> {
    journal.find(text).await.map_err(|error| match error.kind() {
        ErrorKind::Misuse { what } => Failure::Usage(what.clone()),
        _ => of_store(store.address(), &error),
    })
}

/// The event that is meant by its id, or by the beginning of it.
///
/// # Errors
///
/// As [`sought`], and [`Failure::Usage`] when a correlation is meant.
pub(crate) async fn event(store: &Opened, journal: &Journal, text: &str) -> Result<EventId, Failure> {
    match sought(store, journal, text).await? {
        Sought::Event(event) => Ok(event),
        _ => Err(Failure::Usage(format!(
            "`{text}` is a correlation and here an event is asked for; `happen trace {text} --json` has the ids of its \
             events"
        ))),
    }
}

/// The bytes of a line of standard input: more than any line of this program that begins with an id or a key.
const LINE_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Result<Vec<String>, Failure> {
        let mut input = text.as_bytes();
        std::iter::from_fn(|| next_line(&mut input).transpose()).collect()
    }

    #[test]
    fn lines_are_read_one_by_one_up_to_a_limit() {
        assert_eq!(lines("").unwrap(), [""; 0]);
        assert_eq!(lines("a\n\nb c").unwrap(), ["a\n", "\n", "b c"]);
        for (len, fits) in [(LINE_BYTES_MAX - 1, true), (LINE_BYTES_MAX, true), (LINE_BYTES_MAX + 1, false)] {
            for end in ["", "\nb"] {
                let text = format!("{}{end}", "a".repeat(len));
                assert_eq!(lines(&text).is_ok(), fits, "{len} {end:?}");
            }
        }
    }
}
