//! Checks on Rust sources: first lines, line length, skipped tests, the seams, unsafe code.

use super::mask::{Masked, mask};
use super::{Finding, has_word, numbered};

const LINE_CHARS_MAX: usize = 124;
/// How far above an unsafe block or impl its reason may stand.
const SAFETY_LINES_MAX: usize = 6;

/// Real time and real threads, which only the Env seam may use, so that a simulator can stand in for both.
const REAL_TIME: [&str; 6] =
    ["Instant::now", "SystemTime::now", "tokio::spawn", "tokio::time::", "thread::spawn", "thread::sleep"];

/// Backends the framework must be able to live without.
const BACKENDS: [&str; 2] = ["nats", "postgres"];

pub(super) fn check(file: &str, text: &str) -> Vec<Finding> {
    let masked = mask(text);
    let mut findings = Vec::new();
    shape(file, text, &mut findings);
    skipped_tests(file, text, &masked, &mut findings);
    seams(file, &masked, &mut findings);
    unsafe_code(file, text, &masked, &mut findings);
    findings
}

/// The framework's manifest must not name a backend either.
pub(super) fn check_manifest(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in numbered(text) {
        let code = line.split('#').next().unwrap_or_default();
        backends(file, number, code, &mut findings);
    }
    findings
}

fn shape(file: &str, text: &str, findings: &mut Vec<Finding>) {
    if !text.starts_with("//!") && !text.starts_with("#!") {
        findings.push(Finding::new(file, 1, "say in a first line `//!` what this file owns"));
    }
    for (number, line) in numbered(text) {
        let length = line.chars().count();
        if length > LINE_CHARS_MAX {
            let advice = format!("break this line of {length} characters; {LINE_CHARS_MAX} is the limit");
            findings.push(Finding::new(file, number, advice));
        }
    }
}

fn skipped_tests(file: &str, text: &str, masked: &Masked, findings: &mut Vec<Finding>) {
    for (number, line) in numbered(&masked.code) {
        if line.contains("#[ignore") {
            findings.push(Finding::new(file, number, "make this test run everywhere, or remove it"));
        }
    }
    for (number, line) in numbered(text) {
        let line = line.trim_start();
        let Some(comment) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else { continue };
        let Some(attributes) = comment.trim_start().strip_prefix("```") else { continue };
        let skips = |word: &str| word == "no_run" || word == "ignore" || word.starts_with("ignore-");
        if attributes.split([',', ' ']).any(|word| skips(word.trim())) {
            findings.push(Finding::new(file, number, "make this example run; a reader will run it too"));
        }
    }
}

fn seams(file: &str, masked: &Masked, findings: &mut Vec<Finding>) {
    let in_framework = file.starts_with("crates/happen/src/") || file.starts_with("crates/happen-core/src/");
    let in_env = file == "crates/happen/src/env.rs" || file.starts_with("crates/happen/src/env/");
    for (number, line) in numbered(&masked.code) {
        for call in REAL_TIME.iter().filter(|call| in_framework && !in_env && has_call(line, call)) {
            findings.push(Finding::new(file, number, format!("ask the Env seam instead of {call}")));
        }
    }
    if file.starts_with("crates/happen/") {
        for (number, line) in numbered(&masked.without_comments) {
            backends(file, number, line, findings);
        }
    }
}

/// Finds a path that begins with these words; `now_or_never` is not `now`.
fn has_call(line: &str, call: &str) -> bool {
    call.ends_with("::") && line.contains(call) || has_word(line, call)
}

fn backends(file: &str, number: usize, line: &str, findings: &mut Vec<Finding>) {
    let line = line.to_lowercase();
    for backend in BACKENDS.iter().filter(|backend| line.contains(**backend)) {
        let advice = format!("move what is about {backend} to its adapter; this crate must not know it");
        findings.push(Finding::new(file, number, advice));
    }
}

fn unsafe_code(file: &str, text: &str, masked: &Masked, findings: &mut Vec<Finding>) {
    // The formatter may break the attribute into lines, so white space does not count.
    let code: String = masked.code.chars().filter(|c| !c.is_whitespace()).collect();
    let is_declared = code.contains("#![expect(unsafe_code,") || code.contains("#![allow(unsafe_code,");
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in numbered(&masked.code).filter(|(_, line)| has_word(line, "unsafe")) {
        if !is_declared {
            let advice =
                "declare `#![expect(unsafe_code, reason = \"..\")]` in this file, or do without unsafe";
            findings.push(Finding::new(file, number, advice));
        }
        let next = masked.code.lines().nth(number).unwrap_or_default();
        let around = format!("{line} {next}");
        let needs_reason = around.split("unsafe").skip(1).any(|after| {
            let after = after.trim_start();
            after.starts_with('{') || has_word(after.split(' ').next().unwrap_or_default(), "impl")
        });
        let above = &lines[number.saturating_sub(SAFETY_LINES_MAX + 1)..number.min(lines.len())];
        if needs_reason && !above.iter().any(|line| line.contains("SAFETY:")) {
            let advice = format!(
                "say why this is sound in a `SAFETY:` comment at most {SAFETY_LINES_MAX} lines above"
            );
            findings.push(Finding::new(file, number, advice));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMEWORK_FILE: &str = "crates/happen/src/dispatch.rs";

    fn lines(file: &str, text: &str) -> Vec<usize> {
        check(file, &format!("//! Owns nothing.\n{text}")).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_file_begins_with_what_it_owns() {
        assert_eq!(check("a.rs", "fn main() {}\n").len(), 1);
        assert_eq!(check("a.rs", "").len(), 1);
        assert_eq!(check("a.rs", "//! Owns main.\nfn main() {}\n").len(), 0);
        assert_eq!(check("a.rs", "#![no_main]\n").len(), 0);
    }

    #[test]
    fn a_line_has_a_greatest_length() {
        for (length, expected) in [(123, 0), (124, 0), (125, 1)] {
            let line = "é".repeat(length - 3);
            assert_eq!(lines("a.rs", &format!("// {line}")).len(), expected);
        }
    }

    #[test]
    fn skipped_tests_and_examples_are_found() {
        assert_eq!(lines("a.rs", "#[test]\n#[ignore = \"slow\"]\nfn a() {}"), [3]);
        assert_eq!(lines("a.rs", "// #[ignore] is not allowed\nlet a = \"#[ignore]\";"), [0; 0]);
        for attributes in ["ignore", "no_run", "rust,ignore", "rust, no_run", "ignore-wasm32"] {
            assert_eq!(lines("a.rs", &format!("/// ```{attributes}\n/// a()\n/// ```")), [2]);
            assert_eq!(lines("a.rs", &format!("//! ```{attributes}\n//! ```")), [2]);
        }
        assert_eq!(lines("a.rs", "/// ```\n/// ignore();\n/// ```\n/// ```text\n/// ```"), [0; 0]);
    }

    #[test]
    fn real_time_is_asked_for_in_the_env_seam_only() {
        for call in REAL_TIME {
            let call = if call.ends_with("::") { format!("{call}sleep") } else { call.to_owned() };
            let text = format!("fn a() {{ std::{call}(); }}");
            assert_eq!(lines(FRAMEWORK_FILE, &text), [2], "{call}");
            assert_eq!(lines("crates/happen-core/src/event.rs", &text), [2], "{call}");
            assert_eq!(lines("crates/happen/src/env.rs", &text), [0; 0]);
            assert_eq!(lines("crates/happen/src/env/real.rs", &text), [0; 0]);
            assert_eq!(lines("crates/happen-cli/src/main.rs", &text), [0; 0]);
            assert_eq!(lines(FRAMEWORK_FILE, &format!("/// {text}")), [0; 0]);
        }
    }

    #[test]
    fn the_framework_names_no_backend() {
        assert_eq!(lines(FRAMEWORK_FILE, "use happen_nats::Link;"), [2]);
        assert_eq!(lines(FRAMEWORK_FILE, "let a = \"postgres://\";"), [2]);
        assert_eq!(lines(FRAMEWORK_FILE, "struct NatsLink;"), [2]);
        assert_eq!(lines(FRAMEWORK_FILE, "/// Across machines on NATS or Postgres."), [0; 0]);
        assert_eq!(lines("crates/happen-nats/src/lib.rs", "struct NatsLink;"), [0; 0]);
        let manifest = "# not nats\n[dependencies]\nasync-nats = \"1\"\n";
        let found = check_manifest("crates/happen/Cargo.toml", manifest);
        assert_eq!(found.into_iter().map(|finding| finding.line).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn unsafe_code_is_declared_and_explained() {
        let block = "fn a() {\n    unsafe { b() }\n}";
        let reason = "// SAFETY: b is sound.\n";
        let declared = "#![expect(unsafe_code, reason = \"measured\")]\n";
        assert_eq!(lines("a.rs", block), [3, 3]);
        assert_eq!(lines("a.rs", &format!("{declared}{block}")), [4]);
        assert_eq!(lines("a.rs", &format!("{reason}{block}")), [4]);
        assert_eq!(lines("a.rs", &format!("{declared}{reason}{block}")), [0; 0]);
        assert_eq!(lines("a.rs", &format!("{declared}{reason}unsafe impl Send for A {{}}")), [0; 0]);
        assert_eq!(lines("a.rs", &format!("{declared}unsafe impl<T> Send for A<T> {{}}")), [3]);
        assert_eq!(lines("a.rs", &format!("{declared}let a = unsafe\n{{ b() }};")), [3]);
        assert_eq!(lines("a.rs", &format!("{declared}unsafe fn a() {{}}")), [0; 0]);
        assert_eq!(lines("a.rs", "// unsafe { }\nlet a = \"unsafe {\"; deny(unsafe_code)"), [0; 0]);
        for (between, expected) in [(5, 0), (6, 1)] {
            let filler = "let a = 1;\n".repeat(between);
            assert_eq!(lines("a.rs", &format!("{declared}{reason}{filler}unsafe {{ b() }}")).len(), expected);
        }
    }
}
