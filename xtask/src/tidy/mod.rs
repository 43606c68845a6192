//! The repository's own checks, each of which says where something is wrong and what to do about it. This file
//! owns the list of files and the printing; the checks are in the files below, as functions of text.

mod coverage;
mod dependencies;
mod markdown;
mod mask;
mod rust;
mod words;

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process::{Failure, heading, output};

/// One thing to correct.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    line: usize,
    advice: String,
}

impl Finding {
    fn new(file: &str, line: usize, advice: impl Into<String>) -> Finding {
        Finding { file: file.into(), line, advice: advice.into() }
    }
}

impl Display for Finding {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.file, self.line, self.advice)
    }
}

/// Runs all checks and prints all findings.
pub(crate) fn run(root: &Path) -> Result<(), Failure> {
    heading("tidy");
    let files = files(root)?;
    let mut findings = Vec::new();
    for path in &files {
        // A file that is not text (an image, a recorded disk) has no lines to check.
        let Ok(bytes) = fs::read(root.join(path)) else { continue };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        findings.extend(words::check(path, &text));
        if path.ends_with(".rs") {
            findings.extend(rust::check(path, &text));
        }
        if path.starts_with("crates/happen/") && path.ends_with("Cargo.toml") {
            findings.extend(rust::check_manifest(path, &text));
        }
        if path.ends_with(".md") {
            findings.extend(markdown::check(path, &text, |target| root.join(target).exists()));
        }
        if path == coverage::FILE {
            findings.extend(coverage::check(&text, |source| fs::read_to_string(root.join(source)).ok()));
        }
    }
    if !files.iter().any(|path| path == coverage::FILE) {
        println!("{} does not exist, so no feature was checked for its test", coverage::FILE);
    }
    findings.extend(dependencies::check(root)?);
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (workspace, reasons) = (read(dependencies::WORKSPACE), read(dependencies::REASONS));
    findings.extend(dependencies::check_reasons(&workspace, &reasons));
    findings.sort();
    findings.dedup();
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("{} files are tidy", files.len());
            Ok(())
        }
        count => Err(Failure(format!("tidy found {count} things to correct"))),
    }
}

/// Lists the files that are tracked or would be added, as paths from the top folder with `/`.
fn files(root: &Path) -> Result<Vec<String>, Failure> {
    let mut command = Command::new("git");
    command.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = String::from_utf8_lossy(&output(&mut command)?).into_owned();
    let mut files: Vec<String> = listed.split_terminator('\0').map(String::from).collect();
    // A file that was removed but not yet from the index is still listed.
    files.retain(|path| root.join(path).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

/// Numbers the lines of a text from 1.
fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// Finds `word` where it is not part of a longer identifier.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(start, _)| {
        !line[..start].ends_with(is_part) && !line[start + word.len()..].starts_with(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_not_found_inside_another() {
        assert!(has_word("an unsafe block", "unsafe"));
        assert!(has_word("unsafe", "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe"));
        assert!(!has_word("nonunsafe", "unsafe"));
        assert!(has_word("unsafe_code unsafe", "unsafe"));
    }

    #[test]
    fn a_finding_prints_where_and_what() {
        assert_eq!(Finding::new("a/b.rs", 7, "do this").to_string(), "a/b.rs:7: do this");
    }
}
