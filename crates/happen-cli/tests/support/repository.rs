//! Makes git repositories for tests with `git fast-import`: fixed authors and dates, no setting of the user.
//! Unit tests and integration tests include this file; it knows nothing of what is tested.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A repository in a folder that is removed with this value.
#[derive(Debug)]
pub(crate) struct TestRepository {
    folder: TempDir,
    path: PathBuf,
}

impl TestRepository {
    /// A repository with a work tree and no commit; HEAD names the branch `main`.
    pub(crate) fn empty() -> TestRepository {
        TestRepository::init(&[])
    }

    /// A bare repository with what the script says.
    pub(crate) fn bare(script: &Script) -> TestRepository {
        let repository = TestRepository::init(&["--bare"]);
        repository.import(script);
        repository
    }

    /// A repository with what the script says. Its work tree stays empty; reading history needs none.
    pub(crate) fn with(script: &Script) -> TestRepository {
        let repository = TestRepository::empty();
        repository.import(script);
        repository
    }

    /// The newest `depth` commits of `main`, cloned.
    pub(crate) fn shallow_clone(&self, depth: u32) -> TestRepository {
        let folder = new_folder();
        let path = folder.path().join("repository");
        let source = format!("file://{}", self.path.display());
        let arguments = ["clone", "-q", "--bare", "--depth", &depth.to_string(), &source];
        run(git(folder.path(), folder.path()).args(arguments).arg(&path), b"");
        TestRepository { folder, path }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs git in it and gives what it printed, without the last newline.
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        let printed = run(git(self.folder.path(), &self.path).args(arguments), b"");
        String::from_utf8_lossy(&printed).trim_end_matches('\n').to_owned()
    }

    /// Adds what the script says to the repository.
    pub(crate) fn import(&self, script: &Script) {
        let arguments = ["fast-import", "--quiet", "--date-format=raw", "--done"];
        let stream = [script.stream.as_slice(), b"done\n"].concat();
        run(git(self.folder.path(), &self.path).args(arguments), &stream);
    }

    fn init(options: &[&str]) -> TestRepository {
        let folder = new_folder();
        let path = folder.path().join("repository");
        let arguments = ["init", "-q", "--initial-branch=main"];
        run(git(folder.path(), folder.path()).args(arguments).args(options).arg(&path), b"");
        TestRepository { folder, path }
    }
}

/// A commit to be made. Everything has a plain default, so that a test names what it is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft<'a> {
    /// Branch that moves to the commit.
    pub(crate) branch: &'a str,
    /// Author name: any bytes but `<`, `>`, newline and NUL.
    pub(crate) author: &'a [u8],
    /// Author email, the same.
    pub(crate) email: &'a [u8],
    /// Author and committer date in seconds since 1970.
    pub(crate) time: i64,
    /// Message: any bytes but NUL.
    pub(crate) message: &'a [u8],
    /// Parents by number; none makes a root.
    pub(crate) parents: &'a [usize],
    /// Paths and contents that are written on top of the first parent's files.
    pub(crate) files: &'a [(&'a [u8], &'a [u8])],
}

impl Default for Draft<'_> {
    fn default() -> Self {
        Draft {
            branch: "main",
            author: b"Ada",
            email: b"ada@example.org",
            time: 1_700_000_000,
            message: b"Change something",
            parents: &[],
            files: &[],
        }
    }
}

/// A history to be imported.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    stream: Vec<u8>,
    commits_len: usize,
}

impl Script {
    /// A script that makes nothing yet.
    pub(crate) fn new() -> Script {
        Script::default()
    }

    /// A line of commits, each of which writes one file.
    pub(crate) fn line(commits_len: usize) -> Script {
        let mut script = Script::new();
        let mut parents = Vec::new();
        for number in 0..commits_len {
            let path = format!("folder-{}/file-{}", number % 7, number % 50);
            let content = format!("{number}\n");
            let message = format!("Commit {number}");
            let made = script.commit(Draft {
                time: 1_700_000_000 + number as i64,
                message: message.as_bytes(),
                parents: &parents,
                files: &[(path.as_bytes(), content.as_bytes())],
                ..Draft::default()
            });
            parents = vec![made];
        }
        script
    }

    /// Adds a commit and gives its number.
    pub(crate) fn commit(&mut self, draft: Draft<'_>) -> usize {
        self.commits_len += 1;
        let number = self.commits_len;
        // Without the reset a commit without parents would continue the branch.
        if draft.parents.is_empty() {
            self.words(&["reset refs/heads/", draft.branch, "\n\n"]);
        }
        self.words(&["commit refs/heads/", draft.branch, "\n", &format!("mark :{number}\n")]);
        for role in ["author ", "committer "] {
            self.words(&[role]);
            self.stream.extend_from_slice(draft.author);
            self.words(&[" <"]);
            self.stream.extend_from_slice(draft.email);
            self.words(&["> ", &format!("{} +0000\n", draft.time)]);
        }
        self.data(draft.message);
        for (index, parent) in draft.parents.iter().enumerate() {
            let word = if index == 0 { "from" } else { "merge" };
            self.words(&[&format!("{word} :{parent}\n")]);
        }
        for (path, content) in draft.files {
            self.words(&["M 100644 inline "]);
            self.quoted(path);
            self.words(&["\n"]);
            self.data(content);
        }
        self.words(&["\n"]);
        number
    }

    /// Adds a tag object for a commit by number.
    pub(crate) fn annotated_tag(&mut self, name: &str, commit: usize) {
        self.words(&[&format!(
            "tag {name}\nfrom :{commit}\ntagger Ada <ada@example.org> 1700000000 +0000\n"
        )]);
        self.data(b"A tag");
    }

    /// Adds a tag that is only a name for a commit by number.
    pub(crate) fn light_tag(&mut self, name: &str, commit: usize) {
        self.words(&[&format!("reset refs/tags/{name}\nfrom :{commit}\n\n")]);
    }

    fn words(&mut self, words: &[&str]) {
        for word in words {
            self.stream.extend_from_slice(word.as_bytes());
        }
    }

    fn data(&mut self, bytes: &[u8]) {
        self.words(&[&format!("data {}\n", bytes.len())]);
        self.stream.extend_from_slice(bytes);
        self.words(&["\n"]);
    }

    fn quoted(&mut self, path: &[u8]) {
        self.stream.push(b'"');
        for byte in path {
            match byte {
                b'"' => self.stream.extend_from_slice(b"\\\""),
                b'\\' => self.stream.extend_from_slice(b"\\\\"),
                b'\n' => self.stream.extend_from_slice(b"\\n"),
                other => self.stream.push(*other),
            }
        }
        self.stream.push(b'"');
    }
}

/// A folder of its own for one test.
pub(crate) fn new_folder() -> TempDir {
    TempDir::new().unwrap_or_else(|error| panic!("no temporary folder for a test: {error}"))
}

/// git without the user's and the machine's settings; `home` is a folder without any.
fn git(home: &Path, folder: &Path) -> Command {
    let mut command = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GIT_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", home).env("XDG_CONFIG_HOME", home).env("GIT_CONFIG_NOSYSTEM", "1");
    command.env("GIT_CONFIG_GLOBAL", home.join("no-settings")).env("LC_ALL", "C");
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), "Ada").env(format!("GIT_{role}_EMAIL"), "ada@example.org");
        command.env(format!("GIT_{role}_DATE"), "1700000000 +0000");
    }
    command.arg("-C").arg(folder);
    command
}

fn run(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let shown: Vec<_> = command.get_args().map(OsStr::to_os_string).collect();
    let mut attempt = || {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(input)?;
        }
        child.wait_with_output()
    };
    let output = attempt().unwrap_or_else(|error: std::io::Error| panic!("git {shown:?}: {error}"));
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {shown:?} failed: {complaints}");
    output.stdout
}
