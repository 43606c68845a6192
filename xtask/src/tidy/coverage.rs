//! Checks that each feature of the coverage table names a test that exists.

use super::{Finding, has_word, numbered};

/// The table: one row per feature, of the form ``| A01 | where | `path/to/file.rs::test_name` |``.
pub(super) const FILE: &str = "docs/coverage.md";

pub(super) fn check(text: &str, read: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in numbered(text) {
        let Some(feature) = feature(line) else { continue };
        let mut has_test = false;
        // Every second part stands between backticks.
        for item in line.split('`').skip(1).step_by(2) {
            let Some((path, name)) = item.split_once(".rs::") else { continue };
            has_test = true;
            let path = format!("{path}.rs");
            let name = name.rsplit("::").next().unwrap_or(name).trim_end_matches("()");
            let advice = match read(&path) {
                None => format!("{feature}: name a test file that exists instead of {path}"),
                Some(source) if !has_word(&source, &format!("fn {name}")) => {
                    format!("{feature}: name a test of {path}; it has no fn {name}")
                }
                Some(_) => continue,
            };
            findings.push(Finding::new(FILE, number, advice));
        }
        if !has_test {
            let advice = format!("{feature}: name the test that shows it as `path/to/file.rs::test_name`");
            findings.push(Finding::new(FILE, number, advice));
        }
    }
    findings
}

/// Gives the id a row begins with: capital letters and digits.
fn feature(line: &str) -> Option<&str> {
    let id = line.trim_start().strip_prefix('|')?.split('|').next()?.trim();
    let digits = id.trim_start_matches(|character: char| character.is_ascii_uppercase());
    let is_id =
        !digits.is_empty() && digits.len() < id.len() && digits.chars().all(|digit| digit.is_ascii_digit());
    is_id.then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(usize, String)> {
        let read =
            |path: &str| (path == "crates/a/tests/b.rs").then(|| "#[test]\nfn works() {}\n".to_owned());
        check(text, read).into_iter().map(|finding| (finding.line, finding.advice)).collect()
    }

    #[test]
    fn rows_that_name_their_test_are_fine() {
        let text = "# Coverage\n\n| id | where | test |\n|---|---|---|\n\
                    | A01 | `Space` | `crates/a/tests/b.rs::works` and `crates/a/tests/b.rs::tests::works` |\n\
                    text about A02\n";
        assert_eq!(found(text), []);
    }

    #[test]
    fn rows_without_a_real_test_are_found() {
        let one = |row: &str| found(row).pop().map(|(_, advice)| advice).unwrap_or_default();
        assert!(one("| A01 | here | none |").starts_with("A01: name the test that shows it"));
        assert!(one("| A01 | here | `missing.rs::works` |").contains("instead of missing.rs"));
        assert!(one("| A01 | here | `crates/a/tests/b.rs::wor` |").ends_with("it has no fn wor"));
        let second = "| A01 | `crates/a/tests/b.rs::works`, `crates/a/tests/b.rs::gone` |";
        assert!(one(second).ends_with("it has no fn gone"));
    }
}
