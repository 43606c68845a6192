//! Checks the dependency budget of the framework.

use std::collections::BTreeSet;
use std::path::Path;

use super::Finding;
use crate::process::{Failure, cargo, output};

/// Every package is one more to trust, to update and to compile for each program that uses the framework. The
/// project's budget is fewer than 60.
const PACKAGES_MAX: usize = 59;

const MANIFEST: &str = "crates/happen/Cargo.toml";

pub(super) fn check(root: &Path) -> Result<Option<Finding>, Failure> {
    let mut command = cargo(root);
    command.args(["tree", "--package", "happen", "--edges", "normal", "--prefix", "none"]);
    let tree = String::from_utf8_lossy(&output(&mut command)?).into_owned();
    let count = packages_len(&tree);
    println!("happen and its dependencies are {count} packages of at most {PACKAGES_MAX}");
    Ok(judge(count))
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
    fn the_limit_is_the_last_number_allowed() {
        assert_eq!(judge(PACKAGES_MAX - 1), None);
        assert_eq!(judge(PACKAGES_MAX), None);
        assert!(judge(PACKAGES_MAX + 1).unwrap().advice.contains("60 packages"));
    }
}
