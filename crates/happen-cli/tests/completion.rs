//! `happen completion`, as a shell gets it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Command, Output, Stdio};

fn happen(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_happen"));
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output().unwrap()
}

/// The names of the commands that a help lists.
fn commands(of: &[&str]) -> Vec<String> {
    let help = String::from_utf8(happen(&[of, &["--help"]].concat()).stdout).unwrap();
    let listed = help.split_once("Commands:\n").map_or("", |(_, rest)| rest);
    let names = listed.lines().take_while(|line| !line.is_empty());
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

#[test]
fn every_shell_gets_a_completion_of_all_commands() {
    let all = commands(&[]);
    assert!(all.len() >= 4, "{all:?}");
    for shell in ["bash", "zsh", "fish"] {
        let output = happen(&["completion", shell]);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let script = String::from_utf8(output.stdout).unwrap();
        for command in &all {
            assert!(script.contains(command.as_str()), "{shell}: {command} is missing");
            for inner in commands(&[command]) {
                assert!(script.contains(&inner), "{shell}: {command} {inner} is missing");
            }
        }
    }
    assert_eq!(happen(&["completion", "powershell"]).status.code(), Some(2));
}

#[cfg(unix)]
#[test]
fn bash_understands_its_script() {
    let script = happen(&["completion", "bash"]).stdout;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("happen.bash");
    std::fs::write(&path, script).unwrap();
    let ask = r#"source "$0"; COMP_WORDS=(happen dem); COMP_CWORD=1; _happen happen dem happen; echo "${COMPREPLY[@]}""#;
    let output = Command::new("bash").args(["-c", ask]).arg(&path).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "demo\n", "{:?}", output.stderr);
}
