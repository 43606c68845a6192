//! What the compiler says to the mistakes that are made most: part of the API, so each message is pinned here. Every
//! file in `ui/` is one mistake, the `.stderr` beside it what its author reads.
//!
//! The words around ours are the compiler's and change with it, so the messages are those of one version, [`PINNED`],
//! and are checked with that one alone.

use std::process::Command;

#[test]
fn the_commonest_mistakes_are_explained() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().expect("the compiler runs");
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(
        found.starts_with(PINNED),
        "the messages in tests/ui are pinned for `{PINNED}`, and this is `{found}`. Check them with `cargo +{version} \
         test -p happen --test ui`. To move on to another version, set PINNED here, run the test with \
         TRYBUILD=overwrite, and read the difference as somebody would who made the mistake.",
        version = PINNED.trim_start_matches("rustc ").trim_end_matches('.'),
    );
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

const PINNED: &str = "rustc 1.95.";
