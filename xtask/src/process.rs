//! Starts programs for the tasks and says what failed. It knows nothing of what they do.

use std::env;
use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::process::{Command, Stdio};

/// Why a task stops, in words for the person who started it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) String);

impl Display for Failure {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Announces a part of a task.
pub(crate) fn heading(title: &str) {
    println!("\n== {title}");
}

/// Prepares the cargo that started this task, in the top folder.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Runs a command whose output goes straight to the terminal.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command.stdin(Stdio::null()).status();
    let status = status.map_err(|error| Failure(format!("cannot start {}: {error}", shown(command))))?;
    if status.success() { Ok(()) } else { Err(Failure(format!("{} failed ({status})", shown(command)))) }
}

/// Runs a command and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>, Failure> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| Failure(format!("cannot start {}: {error}", shown(command))))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let complaints = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    Err(Failure(format!("{} failed ({}): {complaints}", shown(command), output.status)))
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default().to_string_lossy();
    let mut words = vec![format!("`{program}")];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ") + "`"
}
