//! Checks the dependency budget of the framework, and that of each dependency is told why it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Finding, numbered};
use crate::process::{Failure, cargo, output};

/// Every package is one more to trust, to update and to compile for each program that uses the framework. The
/// project's budget is fewer than 60.
const PACKAGES_MAX: usize = 59;

/// Where the workspace names its dependencies, and where it says why.
pub(super) const WORKSPACE: &str = "Cargo.toml";
pub(super) const REASONS: &str = "docs/decisions/dependencies.md";

const MANIFEST: &str = "crates/happen/Cargo.toml";

pub(super) fn check(root: &Path) -> Result<Option<Finding>, Failure> {
    let mut command = cargo(root);
    command.args(["tree", "--package", "happen", "--edges", "normal", "--prefix", "none"]);
    let tree = String::from_utf8_lossy(&output(&mut command)?).into_owned();
    let count = packages_len(&tree);
    println!("happen and its dependencies are {count} packages of at most {PACKAGES_MAX}");
    Ok(judge(count))
}

/// Compares the dependencies that the workspace names with the rows of the document that says why they are there.
pub(super) fn check_reasons(manifest: &str, document: &str) -> Vec<Finding> {
    let named: BTreeMap<&str, usize> = named(manifest).collect();
    let told: BTreeMap<&str, usize> = told(document).collect();
    let missing = named.iter().filter(|(name, _)| !told.contains_key(*name));
    let missing = missing.map(|(name, line)| {
        Finding::new(WORKSPACE, *line, format!("say in {REASONS} what `{name}` saves and how to drop it"))
    });
    let gone = told.iter().filter(|(name, _)| !named.contains_key(*name));
    let gone = gone.map(|(name, line)| {
        Finding::new(REASONS, *line, format!("take the row out: the workspace has no dependency `{name}`"))
    });
    missing.chain(gone).collect()
}

/// The dependencies of the workspace that are not its own packages, with their lines.
fn named(manifest: &str) -> impl Iterator<Item = (&str, usize)> {
    let dependencies = numbered(manifest).skip_while(|(_, line)| *line != "[workspace.dependencies]").skip(1);
    let dependencies = dependencies.take_while(|(_, line)| !line.starts_with('['));
    dependencies
        .filter(|(_, line)| !line.contains("path ="))
        .filter_map(|(number, line)| Some((line.split_once(" = ")?.0, number)))
}

/// The crates that have a row in the document, with their lines.
fn told(document: &str) -> impl Iterator<Item = (&str, usize)> {
    numbered(document)
        .filter_map(|(number, line)| Some((line.strip_prefix("| `")?.split_once('`')?.0, number)))
}

fn judge(count: usize) -> Option<Finding> {
    let advice = format!("drop a dependency: the tree has {count} packages, {PACKAGES_MAX} is the limit");
    (count > PACKAGES_MAX).then(|| Finding::new(MANIFEST, 1, advice))
}

/// Counts the packages of a tree, in which one that was shown before has a mark at its end.
fn packages_len(tree: &str) -> usize {
    let name_and_version = |line: &str| line.split_whitespace().take(2).map(String::from).collect::<Vec<_>>();
    tree.lines().map(name_and_version).filter(|package| !package.is_empty()).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_counted_once_for_each_version() {
        let tree = "happen v0.1.0 (folder)\nserde v1.0.0\nsyn v2.0.0\n\nsyn v3.0.0\nserde v1.0.0 (*)\n";
        assert_eq!(packages_len(tree), 4);
    }

    #[test]
    fn a_dependency_without_a_reason_and_a_reason_without_a_dependency_are_found() {
        let manifest = "[workspace.dependencies]\nhappen = { path = \"here\" }\nserde = \"1\"\n\
                        async-nats = { version = \"1\", features = [\n    \"ring\",\n] }\n\n\
                        [workspace.lints]\nb = \"c\"\n";
        let document =
            "Why.\n\n| crate | what it saves |\n|---|---|\n| `serde` | work |\n| `regex` | work |\n";
        let found = check_reasons(manifest, document);
        let found: Vec<_> = found.iter().map(|finding| (&*finding.file, finding.line)).collect();
        assert_eq!(found, [(WORKSPACE, 4), (REASONS, 6)]);
        assert_eq!(check_reasons(manifest, &document.replace("regex", "async-nats")), []);
    }

    #[test]
    fn the_limit_is_the_last_number_allowed() {
        assert_eq!(judge(PACKAGES_MAX - 1), None);
        assert_eq!(judge(PACKAGES_MAX), None);
        assert!(judge(PACKAGES_MAX + 1).unwrap().advice.contains("60 packages"));
    }
}
