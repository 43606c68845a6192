//! The command `instructions`: counts the instructions of Happen's operations under callgrind and compares them with
//! the counts kept in the repository. A count moves by what was changed and not by what else the machine does, so small
//! changes can be seen that no clock shows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::bench::{build, program};
use crate::process::{Failure, heading};

/// Counts, then compares or, with `--bless`, keeps the counts.
pub(crate) fn instructions(root: &Path, arguments: &[&str]) -> Result<(), Failure> {
    let is_blessing = match arguments {
        [] => false,
        ["--bless"] => true,
        other => {
            return Err(Failure(format!("instructions takes --bless or nothing, not {}", other.join(" "))));
        }
    };
    if !Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        return Err(Failure(
            "there is no valgrind here; install it with `sudo apt-get install valgrind`".into(),
        ));
    }
    build(root, "bench-happen")?;
    heading("instructions of one operation");
    let mut counts = BTreeMap::new();
    for operation in OPERATIONS {
        // Twice, and the difference: starting up, making nodes and the first events are in both.
        let (few, many) = (counted(root, operation, FEW)?, counted(root, operation, MANY)?);
        let count = many.saturating_sub(few) as f64 / (MANY - FEW) as f64;
        counts.insert(operation.to_owned(), count.round() as u64);
    }
    if is_blessing {
        for (operation, count) in &counts {
            println!("{operation}: {count}");
        }
        return fs::write(root.join(KEPT), written(&counts))
            .map_err(|error| Failure(format!("cannot write {KEPT}: {error}")));
    }
    let kept = fs::read_to_string(root.join(KEPT)).map_err(|error| {
        Failure(format!("cannot read {KEPT}: {error}; `cargo xtask instructions --bless` makes it"))
    })?;
    let (lines, grown) = compared(&counts, &read(&kept)?);
    lines.iter().for_each(|line| println!("{line}"));
    if grown.is_empty() {
        return Ok(());
    }
    Err(Failure(format!(
        "{} grew by more than {GROWTH_PERCENT_MAX} %; make it smaller, or say in the commit why it has to be and \
         run `cargo xtask instructions --bless`",
        grown.join(", ")
    )))
}

/// All instructions of a run.
fn counted(root: &Path, operation: &str, count: u64) -> Result<u64, Failure> {
    let profile = root.join("bench/target/callgrind.out");
    let one = program(root, "one");
    let mut command = Command::new("valgrind");
    // Fairly, or the thread that moves the coarse clock may not have its turn for the whole of the run.
    command.current_dir(root).args(["--tool=callgrind", "--fair-sched=try"]);
    command.arg(format!("--callgrind-out-file={}", profile.display()));
    command.arg(one.get_program()).args([operation, &count.to_string()]);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| Failure(format!("cannot start valgrind: {error}")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(Failure(format!("`one {operation}` failed under valgrind: {}", said.trim_end())));
    }
    collected(&said)
        .ok_or_else(|| Failure(format!("valgrind did not say what it collected: {}", said.trim_end())))
}

fn collected(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
}

fn written(counts: &BTreeMap<String, u64>) -> String {
    let mut text = String::from(
        "# Instructions of one operation, by callgrind. Written by `cargo xtask instructions --bless`.\n",
    );
    for (operation, count) in counts {
        text += &format!("{operation}\t{count}\n");
    }
    text
}

fn read(text: &str) -> Result<BTreeMap<String, u64>, Failure> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (operation, count) = line.split_once('\t')?;
            Some((operation.to_owned(), count.parse().ok()?))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| Failure(format!("{KEPT} has a line that is not `operation<TAB>count`")))
}

/// One line for each operation, and the operations that grew too much.
fn compared(counts: &BTreeMap<String, u64>, kept: &BTreeMap<String, u64>) -> (Vec<String>, Vec<String>) {
    let mut grown = Vec::new();
    let line = |(operation, &count): (&String, &u64)| {
        let Some(&before) = kept.get(operation) else {
            grown.push(operation.clone());
            return format!("{operation}: {count}, which nothing is kept of to compare with");
        };
        let percent = (count as f64 - before as f64) * 100.0 / before as f64;
        if percent > GROWTH_PERCENT_MAX {
            grown.push(operation.clone());
        }
        format!("{operation}: {before} → {count} ({percent:+.1} %)")
    };
    let lines = counts.iter().map(line).collect();
    (lines, grown)
}

const KEPT: &str = "bench/instructions.txt";
/// By how much a count may grow. Less than this comes from addresses and the seeds of hash tables.
const GROWTH_PERCENT_MAX: f64 = 3.0;
const OPERATIONS: [&str; 7] = ["ask", "ask-async", "ask-steps", "serial", "send", "broadcast", "zero"];
/// Operations of the two runs: multiples of a burst of messages, which is what `send` and `broadcast` count in.
const FEW: u64 = 2_000;
const MANY: u64 = 22_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: &[(&str, u64)]) -> BTreeMap<String, u64> {
        all.iter().map(|(operation, count)| ((*operation).to_owned(), *count)).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let all = counts(&[("ask", 1_500), ("send", 900)]);
        assert_eq!(read(&written(&all)), Ok(all));
        assert!(read("ask 7").is_err());
        assert!(read("ask\tmany").is_err());
    }

    #[test]
    fn growth_over_the_limit_is_found() {
        let kept = counts(&[("ask", 1_000), ("send", 1_000), ("zero", 1_000)]);
        let (lines, grown) = compared(&counts(&[("ask", 1_030), ("send", 1_031), ("zero", 500)]), &kept);
        assert_eq!(grown, ["send"]);
        assert_eq!(lines[2], "zero: 1000 → 500 (-50.0 %)");
        assert_eq!(compared(&counts(&[("new", 1)]), &kept).1, ["new"]);
    }

    #[test]
    fn the_total_is_found_in_what_callgrind_says() {
        assert_eq!(collected("==1== Events    : Ir\n==1== Collected : 123456\n==1==\n"), Some(123_456));
        assert_eq!(collected("==1== Collected : none"), None);
    }
}
