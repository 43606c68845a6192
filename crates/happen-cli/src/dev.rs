//! `happen dev`: what a program needs on this machine while it is written. Owns how a local server of NATS is found and
//! configured; the server itself takes the place of this program, so whatever ends the one ends the other.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, ValueHint, value_parser};
use happen_nats::limits::SERVER_VERSION_MIN;
use happen_testing::find_nats_server_program;

use crate::failure::Failure;
use crate::output::Output;

/// `happen dev`.
#[derive(Debug, Args)]
pub(crate) struct DevArguments {
    /// Start a server of NATS that syncs every write
    #[arg(long, required = true)]
    nats: bool,
    /// The folder that it keeps its streams in; it is made
    #[arg(long, value_name = "PATH", default_value = "./nats-data", value_hint = ValueHint::DirPath)]
    folder: PathBuf,
    /// The port on this machine that it listens on
    #[arg(long, value_name = "N", default_value_t = PORT, value_parser = value_parser!(u16).range(1..))]
    port: u16,
}

/// Prints the address to use, and becomes the server.
///
/// # Errors
///
/// [`Failure::Store`] when no server is installed, when one has the port or the folder already, or when it cannot be
/// started so.
pub(crate) fn run(arguments: &DevArguments, output: &Output) -> Result<(), Failure> {
    let DevArguments { folder, port, .. } = arguments;
    let program = program()?;
    check_version(&program)?;
    // The server would tell in its own words, after the address was printed.
    if let Err(error) = listen_on(*port) {
        return Err(Failure::Store(format!("port {port} cannot be had ({error}); name another with --port")));
    }
    let cannot = |what: &str, error: &io::Error| {
        Failure::Store(format!("cannot {what} {} ({error}); name another with --folder", folder.display()))
    };
    fs::create_dir_all(folder).map_err(|error| cannot("make the folder", &error))?;
    let folder = fs::canonicalize(folder).map_err(|error| cannot("look into", &error))?;
    let config = folder.join("server.conf");
    let Some(streams) = folder.to_str() else {
        return Err(Failure::Store(
            "the name of the folder is no text; name another with --folder".to_owned(),
        ));
    };
    // Two servers on the same streams would each write over what the other one has acknowledged.
    if let Some(earlier) = port_of_server_in(&config) {
        return Err(Failure::Store(format!(
            "a server that listens on port {earlier} has {}; stop that one, or name another folder with --folder",
            folder.display()
        )));
    }
    let text = format!(
        "# Written by `happen dev --nats`, anew at each start.\nserver_name: dev\n{LISTEN}{port}\"\n\
         jetstream {{ store_dir: {streams:?}, sync_interval: always }}\n"
    );
    fs::write(&config, text).map_err(|error| cannot("write into", &error))?;
    output.write(&format!("HAPPEN_URL=nats://127.0.0.1:{port}/{SPACE}\n"))?;
    let mut command = Command::new(&program);
    command.arg("-c").arg(&config);
    become_it(command)
        .map_err(|error| Failure::Store(format!("{} does not start ({error})", program.display())))
}

#[cfg(unix)]
fn become_it(mut command: Command) -> io::Result<()> {
    use std::os::unix::process::CommandExt as _;
    // Comes back only when it failed.
    Err(command.exec())
}

#[cfg(not(unix))]
fn become_it(mut command: Command) -> io::Result<()> {
    command.status().map(drop)
}

/// Listens on this port for a moment, which nobody else may do then.
fn listen_on(port: u16) -> io::Result<()> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop)
}

/// The port of the server that was started last in a folder, by its configuration there, while somebody listens on it.
/// The server itself locks nothing.
fn port_of_server_in(config: &Path) -> Option<u16> {
    let text = fs::read_to_string(config).ok()?;
    let port = text.lines().find_map(|line| line.strip_prefix(LISTEN)?.strip_suffix('"')?.parse().ok())?;
    listen_on(port).is_err().then_some(port)
}

/// The program, which tests of programs find in the same way.
fn program() -> Result<PathBuf, Failure> {
    find_nats_server_program().ok_or_else(|| {
        let (major, minor) = SERVER_VERSION_MIN;
        Failure::Store(format!(
            "no server of NATS is installed; put `nats-server` {major}.{minor} or later on the path, or name it in \
             HAPPEN_NATS_SERVER"
        ))
    })
}

/// Refuses a server that a space would refuse.
fn check_version(program: &Path) -> Result<(), Failure> {
    let told = Command::new(program).arg("--version").output();
    let told =
        told.map_err(|error| Failure::Store(format!("{} does not start ({error})", program.display())))?;
    let text = String::from_utf8_lossy(&told.stdout);
    match version(&text) {
        Some(found) if found >= SERVER_VERSION_MIN => Ok(()),
        _ => {
            let (major, minor) = SERVER_VERSION_MIN;
            Err(Failure::Store(format!(
                "{} says that it is `{}`, and {major}.{minor} is the oldest that Happen runs on; install a later one",
                program.display(),
                text.trim()
            )))
        }
    }
}

/// The version in a text such as `nats-server: v2.15.1`.
fn version(text: &str) -> Option<(i64, i64)> {
    let mut numbers = text.trim().rsplit_once('v')?.1.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What stands in the configuration before the port.
const LISTEN: &str = "listen: \"127.0.0.1:";
/// The port that servers of NATS have by default.
const PORT: u16 = 4222;
/// The space of the address that is printed; there may be any others.
const SPACE: &str = "main";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_a_server_says() {
        assert_eq!(version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(version("nats-server: v3.0.0-beta.1"), Some((3, 0)));
        for text in ["", "nats-server", "nats-server: v2", "nats-server: vx.y"] {
            assert_eq!(version(text), None, "{text}");
        }
    }
}
