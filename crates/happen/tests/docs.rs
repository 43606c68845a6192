//! The documents keep up with the code: every error code has its paragraph, every row of the table of names has its
//! line in a program, every test that a guarantee names is there. That those programs run is the doctests' part.
#![expect(clippy::unwrap_used, reason = "a document of another shape fails the test, wherever it is read")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const ERROR_SOURCE: &str = include_str!("../../happen-core/src/error.rs");
const ERRORS: &str = include_str!("../../../docs/errors.md");
const FROM_JAVASCRIPT: &str = include_str!("../../../docs/from-javascript.md");

/// The codes as the source gives them: the kinds are an open set that a program cannot walk over.
fn codes() -> Vec<&'static str> {
    let start = ERROR_SOURCE.find("pub fn code(&self) -> &'static str {\n        match self {").unwrap();
    let body = &ERROR_SOURCE[start..];
    let arms = body[..body.find("\n    }\n").unwrap()].lines().filter_map(|line| line.split_once(" => \""));
    arms.map(|(_, code)| code.split('"').next().unwrap()).collect()
}

#[test]
fn every_error_code_has_a_paragraph_and_every_paragraph_a_code() {
    let codes = codes();
    let variants = ERROR_SOURCE.split("pub enum ErrorKind {").nth(1).unwrap().split("\n}\n").next().unwrap();
    let is_variant = |line: &&str| line.starts_with("    ") && line.as_bytes()[4].is_ascii_uppercase();
    assert_eq!(codes.len(), variants.lines().filter(is_variant).count(), "{codes:?}");
    let headings: Vec<_> = ERRORS.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(headings, codes, "docs/errors.md has one heading for each code, in the order of the kinds");
    for section in ERRORS.split("\n## ").skip(1) {
        let (code, paragraph) = section.split_once('\n').unwrap();
        assert!(paragraph.trim().len() > 100, "{code}: say what happened, why, and what to do");
    }
}

/// The original names in the first cell of a table's rows, with what follows them in the cell.
fn original_names(section: &str) -> Vec<&str> {
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| original"));
    rows.map(|row| row[2..].split(" | ").next().unwrap().trim()).collect()
}

#[test]
fn every_row_of_the_table_of_names_has_its_line_in_a_program() {
    let mut rows = 0;
    for section in FROM_JAVASCRIPT.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap();
        let names = original_names(section);
        if title == "Not yet" {
            assert_eq!(names, [""; 0], "what does not exist has no row");
            continue;
        }
        assert!(!names.is_empty(), "{title}: a section is a table and a program");
        let program = section.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
        let program = program.unwrap_or_else(|| panic!("{title}: no program"));
        let comments: Vec<_> = program.lines().filter_map(|line| line.trim().strip_prefix("// ")).collect();
        for name in names {
            let name = name.replace('`', "");
            let is_shown = comments.iter().any(|comment| comment.replace('`', "").contains(&name));
            assert!(is_shown, "{title}: no comment of the program says `{name}`");
            rows += 1;
        }
    }
    assert!(rows >= 60, "only {rows} names are told");
}

#[test]
fn documents_have_no_name_twice() {
    let mut seen = BTreeSet::new();
    for section in FROM_JAVASCRIPT.split("\n## ") {
        for name in original_names(section) {
            assert!(seen.insert(name), "`{name}` is told twice");
        }
    }
}

const GUARANTEES: &str = include_str!("../../../docs/guarantees.md");
const CORE_MANIFEST: &str = include_str!("../../happen-core/Cargo.toml");

#[test]
fn every_test_a_guarantee_names_is_there() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for name in GUARANTEES.split('`').skip(1).step_by(2).filter(|code| code.contains(".rs::")) {
        let (file, test) = name.split_once(".rs::").unwrap();
        let source = fs::read_to_string(package.join(format!("{file}.rs"))).unwrap_or_default();
        let test = test.rsplit("::").next().unwrap();
        assert!(
            source.contains(&format!("fn {test}(")),
            "docs/guarantees.md names `{name}`, which is not there"
        );
        named += 1;
    }
    assert!(named > 0, "no guarantee names its test any more");
}

#[test]
fn the_core_depends_on_no_runtime() {
    let dependencies = CORE_MANIFEST.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let names: Vec<_> = dependencies.lines().filter_map(|line| line.split(['.', ' ', '=']).next()).collect();
    assert!(names.contains(&"serde"), "{names:?}");
    for runtime in
        ["tokio", "async-std", "smol", "futures", "futures-util", "async-executor", "getrandom", "tracing"]
    {
        assert!(
            !names.contains(&runtime),
            "the contract has no {runtime}: what needs one belongs into `happen`"
        );
    }
}
