//! Checks on any text file: notes to oneself, and paths of one machine.

use super::{Finding, has_word, numbered};

// The words are put together from parts, so that this file passes its own checks.
const NOTES: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

pub(super) fn check(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in numbered(text) {
        for note in NOTES.iter().filter(|note| has_word(line, note)) {
            findings.push(Finding::new(
                file,
                number,
                format!("do what {note} says, or open an issue for it"),
            ));
        }
        for path in MACHINE_PATHS.iter().filter(|path| has_path(line, path)) {
            let advice = format!("name a path that exists on every machine instead of one below {path}");
            findings.push(Finding::new(file, number, advice));
        }
    }
    findings
}

/// Finds a path where it begins and goes on, unlike `docs/home/` and `"/home/"` alone.
fn has_path(line: &str, path: &str) -> bool {
    let is_name = |character: char| character.is_alphanumeric() || "_.-~*}$)".contains(character);
    line.match_indices(path).any(|(start, _)| {
        let after = &line[start + path.len()..];
        !line[..start].ends_with(is_name)
            && after.starts_with(|next: char| next.is_alphanumeric() || next == '.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(file: &str, text: &str) -> Vec<usize> {
        check(file, text).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn notes_to_oneself_are_found() {
        for note in NOTES {
            assert_eq!(lines("a.sh", &format!("fine\n# {note}: later\n")), [2]);
            assert_eq!(lines("a.sh", &format!("mktemp {note}{note}\n")), [0; 0]);
        }
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        for path in MACHINE_PATHS {
            assert_eq!(lines("a.toml", &format!("at = \"{path}someone/x\"")), [1]);
            assert_eq!(lines("a.toml", &format!("cd {path}.config")), [1]);
            assert_eq!(
                lines("a.toml", &format!("https://example.org{path}page docs{path}page \"{path}\"")),
                [0; 0]
            );
        }
    }
}
