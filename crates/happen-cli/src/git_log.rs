//! Reads the history of a git repository by running `git`: commits, tags, and the totals git itself counts.
//! It knows git's output and nothing of nodes, events or what a caller makes of a commit.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::iter::FusedIterator;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use thiserror::Error;

/// One commit, as the author made it.
///
/// Text that is not UTF-8 is kept with replacement characters in place of the bytes that do not decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Full object id in hexadecimal.
    pub(crate) id: String,
    /// Ids of the parents in git's order; none for a root and for the oldest commit of a shallow clone.
    pub(crate) parents: Vec<String>,
    /// Author name as recorded, without mailmap.
    pub(crate) author_name: String,
    /// Author email as recorded, without mailmap.
    pub(crate) author_email: String,
    /// Author date in seconds since 1970; 0 when the commit has no readable date.
    pub(crate) author_time: i64,
    /// First paragraph of the message on one line.
    pub(crate) subject: String,
    /// Paths that differ from the parent; a rename counts as two, a merge as none.
    pub(crate) files_changed: u32,
}

/// A tag and the commit it leads to, however many tag objects stand between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// Name below `refs/tags/`.
    pub(crate) name: String,
    /// Full id of the commit, which need not be part of the history that was opened.
    pub(crate) commit: String,
}

/// What git counts by itself, for checking what was made out of [`History::commits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Commits reachable from the opened commit.
    pub(crate) commits: u64,
    /// Those with more than one parent.
    pub(crate) merges: u64,
    /// Different pairs of author name and email.
    pub(crate) authors: u64,
}

/// Why a history could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum GitError {
    /// There is no program called `git`. The user can install it.
    #[error("git is not installed or not on the PATH; install it to read a history")]
    GitMissing {
        /// What starting it said.
        source: io::Error,
    },
    /// The path names nothing.
    #[error("there is no file or folder at {}", path.display())]
    PathMissing {
        /// The path as given.
        path: PathBuf,
    },
    /// The path is a file, or a folder outside any repository.
    #[error("{} is not a folder of a git repository", path.display())]
    NotARepository {
        /// The path as given.
        path: PathBuf,
    },
    /// The repository's current branch has no commit yet.
    #[error("the git repository at {} has no commits on its current branch", path.display())]
    NoCommits {
        /// The path as given.
        path: PathBuf,
    },
    /// git ended with an error of its own.
    #[error("git {command} failed: {reason}")]
    Failed {
        /// The git command that ran.
        command: &'static str,
        /// First line of its standard error, or its exit status when it said nothing.
        reason: String,
    },
    /// git's output was not what its documentation promises; worth a report to us.
    #[error("git {command} printed something this program cannot read: {what}")]
    Unparsable {
        /// The git command that ran.
        command: &'static str,
        /// What was wrong, and the beginning of the text.
        what: String,
    },
    /// git could not be started, or the pipe to it broke.
    #[error("could not run git {command}")]
    Io {
        /// The git command that ran.
        command: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

/// The history of one commit of one repository: the commit that HEAD named when it was opened.
///
/// The commit is fixed at opening, so that commits made meanwhile cannot make [`commits`](Self::commits) and
/// [`totals_by_git`](Self::totals_by_git) disagree. Other branches are not part of it; it has exactly the
/// commits that `git rev-list HEAD` counts.
#[derive(Clone, Debug)]
pub(crate) struct History {
    git: Git,
    head: String,
}

impl History {
    /// Opens the repository that contains the folder `path`: a work tree, a folder inside one, or a bare
    /// repository.
    ///
    /// # Errors
    ///
    /// - [`GitError::PathMissing`], [`GitError::NotARepository`], [`GitError::NoCommits`]: name another path.
    /// - [`GitError::GitMissing`]: install git.
    /// - [`GitError::Failed`]: git refuses, for example because another user owns the folder; it says why.
    pub(crate) fn open(path: impl Into<PathBuf>) -> Result<History, GitError> {
        History::open_with("git".into(), path.into())
    }

    fn open_with(program: OsString, path: PathBuf) -> Result<History, GitError> {
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(GitError::PathMissing { path });
            }
            Ok(found) if !found.is_dir() => return Err(GitError::NotARepository { path }),
            // Anything else (a folder that may not be read) git explains better.
            _ => {}
        }
        let git = Git { program, path };
        match git.run("rev-parse", &["--git-dir"]) {
            Err(GitError::Failed { reason, .. }) if reason.contains("not a git repository") => {
                return Err(GitError::NotARepository { path: git.path });
            }
            other => other?,
        };
        // Only the name is resolved here, not the object behind it: a damaged repository is not an empty one,
        // and the first command that reads the object says so.
        match git.run("rev-parse", &["--verify", "--quiet", "HEAD"]) {
            Err(GitError::Failed { reason, .. }) if reason == exit_status_text(1) => {
                Err(GitError::NoCommits { path: git.path })
            }
            other => {
                let head = object_id("rev-parse", other?.trim_ascii_end())?;
                Ok(History { git, head })
            }
        }
    }

    /// Streams the commits in topological order, parents before children.
    ///
    /// git reads the whole graph before the first commit appears, then finds the changed files of each commit
    /// as it is asked for; only one commit is held here at a time. The first error ends the iterator. Dropping
    /// the iterator ends git.
    ///
    /// # Errors
    ///
    /// Items are [`GitError::Failed`] when git stops (the commit it stopped in is not given out),
    /// [`GitError::Unparsable`] or [`GitError::Io`].
    pub(crate) fn commits(&self) -> Commits {
        let mut command = self.git.command("log");
        command.args(COMMIT_ARGUMENTS).arg(&self.head).arg("--");
        match Running::start("log", command) {
            Ok(running) => Commits { running: Some(running), failure: None },
            Err(error) => Commits { running: None, failure: Some(error) },
        }
    }

    /// Lists the tags that lead to a commit, by name. Tags of trees and files are left out.
    ///
    /// # Errors
    ///
    /// [`GitError::Failed`], [`GitError::Unparsable`] or [`GitError::Io`].
    pub(crate) fn tags(&self) -> Result<Vec<Tag>, GitError> {
        const COMMAND: &str = "for-each-ref";
        let format = "--format=%(refname)%00%(objecttype)%00%(objectname)%00%(*objecttype)%00%(*objectname)";
        let listed = self.git.run(COMMAND, &["--sort=refname", format, "refs/tags"])?;
        let mut tags = Vec::new();
        for line in listed.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let &[reference, kind, id, inner_kind, inner_id] = fields.as_slice() else {
                return Err(unparsable(COMMAND, "a tag without its five fields", line));
            };
            let commit = match (kind, inner_kind) {
                (b"commit", _) => object_id(COMMAND, id)?,
                (b"tag", b"commit") => object_id(COMMAND, inner_id)?,
                // Before git 2.45 the format looks through one tag object only, so a tag of a tag is asked for
                // by its own id, which also keeps names that are not UTF-8 off the command line.
                (b"tag", b"tag") => match self.commit_behind(&object_id(COMMAND, id)?)? {
                    Some(commit) => commit,
                    None => continue,
                },
                _ => continue,
            };
            let name = reference.strip_prefix(b"refs/tags/").unwrap_or(reference);
            tags.push(Tag { name: text(name), commit });
        }
        Ok(tags)
    }

    /// The full id of the commit whose history this is.
    pub(crate) fn head(&self) -> &str {
        &self.head
    }

    /// Whether a commit is part of the history.
    ///
    /// # Errors
    ///
    /// [`GitError::Failed`], [`GitError::Unparsable`] or [`GitError::Io`].
    pub(crate) fn has(&self, commit: &str) -> Result<bool, GitError> {
        // Of an id that is no commit here, `merge-base` says that it is an error.
        if self.commit_behind(commit)?.is_none() {
            return Ok(false);
        }
        match self.git.run("merge-base", &["--is-ancestor", commit, &self.head]) {
            Ok(_) => Ok(true),
            Err(GitError::Failed { reason, .. }) if reason == exit_status_text(1) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Counts the ancestors of a commit, itself included: all of them, and those on the line of first parents.
    ///
    /// # Errors
    ///
    /// [`GitError::Failed`], [`GitError::Unparsable`] or [`GitError::Io`].
    pub(crate) fn ancestors_by_git(&self, commit: &str) -> Result<(u64, u64), GitError> {
        Ok((self.count_from(commit, &["--count"])?, self.count_from(commit, &["--count", "--first-parent"])?))
    }

    /// Counts commits, merges and authors by other git commands than [`commits`](Self::commits) uses.
    ///
    /// # Errors
    ///
    /// [`GitError::Failed`], [`GitError::Unparsable`] or [`GitError::Io`].
    pub(crate) fn totals_by_git(&self) -> Result<Totals, GitError> {
        Ok(Totals {
            commits: self.count(&["--count"])?,
            merges: self.count(&["--count", "--merges"])?,
            authors: self.authors_len()?,
        })
    }

    fn count(&self, options: &[&str]) -> Result<u64, GitError> {
        self.count_from(&self.head, options)
    }

    fn count_from(&self, commit: &str, options: &[&str]) -> Result<u64, GitError> {
        let arguments = [options, &[commit, "--"]].concat();
        let printed = self.git.run("rev-list", &arguments)?;
        let number = text(printed.trim_ascii_end()).parse();
        number.map_err(|_| unparsable("rev-list", "a count that is not a number", &printed))
    }

    fn authors_len(&self) -> Result<u64, GitError> {
        let mut command = self.git.command("log");
        command.args(["-z", "--encoding=UTF-8", "--no-show-signature", "--format=tformat:%an%x00%ae"]);
        command.arg(&self.head).arg("--");
        let mut running = Running::start("log", command)?;
        let mut authors = HashSet::new();
        while !running.at_end()? {
            let name = text(running.field("an author name")?);
            let email = text(running.field("an author email")?);
            authors.insert((name, email));
        }
        running.finish()?;
        Ok(authors.len() as u64)
    }

    fn commit_behind(&self, id: &str) -> Result<Option<String>, GitError> {
        let wanted = format!("{id}^{{commit}}");
        match self.git.run("rev-parse", &["--verify", "--quiet", &wanted]) {
            Ok(id) => object_id("rev-parse", id.trim_ascii_end()).map(Some),
            Err(GitError::Failed { reason, .. }) if reason == exit_status_text(1) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The commits of a [`History`], read from git as they are asked for.
#[derive(Debug)]
pub(crate) struct Commits {
    running: Option<Running>,
    failure: Option<GitError>,
}

impl Iterator for Commits {
    type Item = Result<Commit, GitError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failure.take() {
            return Some(Err(error));
        }
        match self.running.as_mut()?.commit() {
            Ok(Some(commit)) => Some(Ok(commit)),
            Ok(None) => {
                self.running = None;
                None
            }
            Err(error) => {
                self.running = None;
                Some(Err(error))
            }
        }
    }
}

impl FusedIterator for Commits {}

/// How git is called, the same way for every question.
#[derive(Clone, Debug)]
struct Git {
    program: OsString,
    path: PathBuf,
}

impl Git {
    /// Prepares a command that answers the same whatever the user's settings and environment say.
    fn command(&self, name: &'static str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-C").arg(&self.path).arg("--no-pager");
        for setting in PINNED_SETTINGS {
            command.args(["-c", setting]);
        }
        // A hook or a rebase sets these, and then git would read that repository instead of the one at `path`.
        for variable in FOREIGN_VARIABLES {
            command.env_remove(variable);
        }
        // Errors are recognised by their English text. A partial clone must not start to download.
        command.env("LC_ALL", "C").env("GIT_NO_LAZY_FETCH", "1").env("GIT_OPTIONAL_LOCKS", "0");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.arg(name);
        command
    }

    /// Runs a command whose output is short, and gives the output.
    fn run(&self, name: &'static str, arguments: &[&str]) -> Result<Vec<u8>, GitError> {
        let output = self.command(name).args(arguments).output().map_err(|error| not_started(name, error))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(failed(name, &output.stderr, output.status.code()))
    }
}

/// A git process whose output is read as it comes, and which ends with this value.
#[derive(Debug)]
struct Running {
    name: &'static str,
    child: Child,
    output: BufReader<ChildStdout>,
    complaints: Option<JoinHandle<Vec<u8>>>,
    field: Vec<u8>,
}

impl Running {
    fn start(name: &'static str, mut command: Command) -> Result<Running, GitError> {
        let mut child = command.spawn().map_err(|error| not_started(name, error))?;
        let (Some(output), Some(complaints)) = (child.stdout.take(), child.stderr.take()) else {
            let source = io::Error::other("git was started without pipes");
            return Err(GitError::Io { command: name, source });
        };
        Ok(Running {
            name,
            child,
            output: BufReader::with_capacity(READ_BUFFER_BYTES, output),
            complaints: Some(read_complaints(complaints)),
            field: Vec::new(),
        })
    }

    /// Reads one commit: the fields of [`COMMIT_ARGUMENTS`], then its changed files in git's raw format.
    ///
    /// Each changed file is a field that begins with a colon and a field with the path. An object id cannot
    /// begin with a colon and every field ends in a NUL, which neither names nor messages nor paths can
    /// contain, so no content can pass for structure.
    fn commit(&mut self) -> Result<Option<Commit>, GitError> {
        if self.next_byte()?.is_none() {
            self.finish()?;
            return Ok(None);
        }
        let name = self.name;
        let id = object_id(name, self.field("a commit id")?)?;
        let mut parents = Vec::new();
        for parent in self.field("the parents")?.split(|byte| *byte == b' ').filter(|id| !id.is_empty()) {
            parents.push(object_id(name, parent)?);
        }
        let author_name = text(self.field("an author name")?);
        let author_email = text(self.field("an author email")?);
        let author_time = match self.field("an author date")? {
            b"" => 0,
            digits => text(digits)
                .parse()
                .map_err(|_| unparsable(name, "an author date that is not a number", digits))?,
        };
        let subject = text(self.field("a subject")?);
        let mut files_changed: u32 = 0;
        while self.next_byte()? == Some(b':') {
            self.field("a changed file")?;
            self.field("the path of a changed file")?;
            files_changed = files_changed.saturating_add(1);
        }
        if self.at_end()? {
            // Only now is it known that this commit is whole: git may have died between two changed files.
            self.finish()?;
        }
        Ok(Some(Commit { id, parents, author_name, author_email, author_time, subject, files_changed }))
    }

    /// Reads one field, without the NUL that ends it.
    fn field(&mut self, what: &str) -> Result<&[u8], GitError> {
        self.field.clear();
        let mut limited = (&mut self.output).take(FIELD_BYTES_MAX);
        let read = limited.read_until(0, &mut self.field);
        read.map_err(|source| GitError::Io { command: self.name, source })?;
        if self.field.pop_if(|last| *last == 0).is_some() {
            return Ok(&self.field);
        }
        if self.at_end()? {
            self.finish()?;
            return Err(unparsable(self.name, &format!("the end inside {what}"), &self.field));
        }
        Err(unparsable(self.name, &format!("{what} of more than {FIELD_BYTES_MAX} bytes"), &self.field))
    }

    /// Looks at the byte the next field begins with, past the newline git puts before changed files.
    fn next_byte(&mut self) -> Result<Option<u8>, GitError> {
        loop {
            let name = self.name;
            let waiting = self.output.fill_buf().map_err(|source| GitError::Io { command: name, source })?;
            match waiting.first() {
                Some(b'\n') => self.output.consume(1),
                other => return Ok(other.copied()),
            }
        }
    }

    fn at_end(&mut self) -> Result<bool, GitError> {
        let waiting = self.output.fill_buf();
        Ok(waiting.map_err(|source| GitError::Io { command: self.name, source })?.is_empty())
    }

    /// Waits for git, which has closed its output, and says how it ended. May be called again.
    fn finish(&mut self) -> Result<(), GitError> {
        let status = self.child.wait().map_err(|source| GitError::Io { command: self.name, source })?;
        let complaints = self.complaints.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        if status.success() { Ok(()) } else { Err(failed(self.name, &complaints, status.code())) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when git has ended already, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads standard error beside standard output: git stops when it fills a pipe that nobody empties.
#[expect(
    clippy::disallowed_methods,
    reason = "two pipes of one process need two readers; no event is involved"
)]
fn read_complaints(mut pipe: ChildStderr) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        // What cannot be read is only the wording of an error that the exit status reports anyway.
        drop((&mut pipe).take(COMPLAINT_BYTES_MAX).read_to_end(&mut kept));
        drop(io::copy(&mut pipe, &mut io::sink()));
        kept
    })
}

fn not_started(command: &'static str, source: io::Error) -> GitError {
    match source.kind() {
        io::ErrorKind::NotFound => GitError::GitMissing { source },
        _ => GitError::Io { command, source },
    }
}

fn failed(command: &'static str, complaints: &[u8], exit_code: Option<i32>) -> GitError {
    let complaints = text(complaints);
    // Hints and warnings may come before the error; without an error line the first line has to do.
    let lines = || complaints.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().find(|line| line.starts_with("fatal:") || line.starts_with("error:"));
    let reason = match (line.or_else(|| lines().next()), exit_code) {
        (Some(line), _) => line.to_owned(),
        (None, Some(code)) => exit_status_text(code),
        (None, None) => "it was ended by a signal".to_owned(),
    };
    GitError::Failed { command, reason }
}

fn exit_status_text(code: i32) -> String {
    format!("it ended with status {code}")
}

fn unparsable(command: &'static str, what: &str, bytes: &[u8]) -> GitError {
    let shown = text(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)]);
    GitError::Unparsable { command, what: format!("{what} ({shown:?})") }
}

/// Checks that `bytes` is a full SHA-1 or SHA-256 object id.
fn object_id(command: &'static str, bytes: &[u8]) -> Result<String, GitError> {
    let is_hexadecimal = bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_hexadecimal && matches!(bytes.len(), 40 | 64) {
        return Ok(text(bytes));
    }
    Err(unparsable(command, "no object id where one belongs", bytes))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The fields of a commit in the order [`Running::commit`] reads them, and options against settings that would
/// change which changed files are listed. `--raw` compares trees only; `--shortstat` would read every file.
const COMMIT_ARGUMENTS: [&str; 15] = [
    "-z",
    "--reverse",
    "--topo-order",
    "--raw",
    "--no-abbrev",
    "--no-renames",
    "--no-ext-diff",
    "--no-relative",
    "--ignore-submodules=none",
    "-O/dev/null",
    "--no-color",
    "--no-show-signature",
    "--no-notes",
    "--encoding=UTF-8",
    "--format=tformat:%H%x00%P%x00%an%x00%ae%x00%at%x00%s",
];

const PINNED_SETTINGS: [&str; 6] = [
    "log.showSignature=false",
    "log.showRoot=true",
    "log.mailmap=false",
    "core.quotePath=false",
    "diff.renames=false",
    "color.ui=false",
];

const FOREIGN_VARIABLES: [&str; 9] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_EXTERNAL_DIFF",
    "LANGUAGE",
];

/// A subject or a path longer than this is taken for damage. Real ones stay below a few kilobytes, but a commit
/// may hold a generated message on one line.
const FIELD_BYTES_MAX: u64 = 16 << 20;

/// Only the first lines of standard error are shown.
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;

/// The size of a pipe on Linux, so that one read can empty it.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// How much of unreadable output an error quotes.
const SHOWN_BYTES_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_repository::{Draft, Script, TestRepository, new_folder};

    fn read(repository: &TestRepository) -> Vec<Commit> {
        let history = History::open(repository.path()).unwrap();
        let commits: Vec<Commit> = history.commits().collect::<Result<_, _>>().unwrap();
        let counted = Totals {
            commits: commits.len() as u64,
            merges: commits.iter().filter(|commit| commit.parents.len() > 1).count() as u64,
            authors: commits
                .iter()
                .map(|commit| (&commit.author_name, &commit.author_email))
                .collect::<HashSet<_>>()
                .len() as u64,
        };
        assert_eq!(counted, history.totals_by_git().unwrap());
        assert_eq!(counted.commits.to_string(), repository.git(&["rev-list", "--count", "HEAD"]));
        commits
    }

    fn with_subject<'a>(commits: &'a [Commit], subject: &str) -> &'a Commit {
        commits.iter().find(|commit| commit.subject == subject).unwrap()
    }

    #[test]
    fn a_line_of_commits_comes_oldest_first_with_all_fields() {
        let commits = read(&TestRepository::with(&Script::line(300)));
        assert_eq!(commits.len(), 300);
        for (index, commit) in commits.iter().enumerate() {
            assert_eq!(commit.subject, format!("Commit {index}"));
            assert_eq!(commit.author_name, "Ada");
            assert_eq!(commit.author_email, "ada@example.org");
            assert_eq!(commit.author_time, 1_700_000_000 + index as i64);
            assert_eq!(commit.files_changed, 1);
            let parent = index.checked_sub(1).map(|before| commits[before].id.clone());
            assert_eq!(commit.parents, Vec::from_iter(parent));
        }
    }

    #[test]
    fn parents_come_before_children_through_merges_and_an_octopus() {
        let mut script = Script::new();
        let root = script.commit(Draft { message: b"root", files: &[(b"a", b"1")], ..Draft::default() });
        let side = |script: &mut Script, branch: &str, time| {
            let path = format!("{branch}-file");
            let files: &[(&[u8], &[u8])] = &[(path.as_bytes(), b"1"), (b"shared", branch.as_bytes())];
            let message = branch.as_bytes();
            script.commit(Draft { branch, time, message, parents: &[root], files, ..Draft::default() })
        };
        // Dates that run against the order of the graph must not matter.
        let left = side(&mut script, "left", 30);
        let middle = side(&mut script, "middle", 20);
        let right = side(&mut script, "right", 10);
        let merge = script.commit(Draft {
            message: b"merge",
            time: 5,
            parents: &[left, middle],
            files: &[(b"resolved", b"1")],
            ..Draft::default()
        });
        script.commit(Draft {
            message: b"octopus",
            time: 1,
            parents: &[merge, middle, right],
            files: &[(b"resolved", b"2")],
            ..Draft::default()
        });
        let commits = read(&TestRepository::with(&script));
        assert_eq!(commits.len(), 6);
        let mut seen = HashSet::new();
        for commit in &commits {
            assert!(commit.parents.iter().all(|parent| seen.contains(parent)), "{commit:?}");
            assert!(seen.insert(commit.id.clone()), "twice: {commit:?}");
        }
        let octopus = with_subject(&commits, "octopus");
        let expected = ["merge", "middle", "right"].map(|subject| with_subject(&commits, subject).id.clone());
        assert_eq!(octopus.parents, expected);
        assert_eq!(octopus.files_changed, 0);
        assert_eq!(with_subject(&commits, "merge").files_changed, 0);
        assert_eq!(with_subject(&commits, "left").files_changed, 2);
    }

    #[test]
    fn several_roots_and_empty_commits_are_commits() {
        let mut script = Script::new();
        let first = script.commit(Draft { message: b"first root", ..Draft::default() });
        let second = script.commit(Draft {
            branch: "other",
            message: b"second root",
            files: &[(b"a", b"1"), (b"b/c", b"2")],
            ..Draft::default()
        });
        let merge = script.commit(Draft { message: b"join", parents: &[first, second], ..Draft::default() });
        script.commit(Draft { message: b"nothing", parents: &[merge], ..Draft::default() });
        script.commit(Draft {
            branch: "unmerged",
            message: b"elsewhere",
            parents: &[merge],
            ..Draft::default()
        });
        let commits = read(&TestRepository::with(&script));
        assert_eq!(commits.len(), 4, "another branch is no part of HEAD's history");
        let files = |subject| with_subject(&commits, subject).files_changed;
        assert_eq!((files("first root"), files("second root"), files("nothing")), (0, 2, 0));
        assert_eq!(with_subject(&commits, "second root").parents, Vec::<String>::new());
    }

    #[test]
    fn odd_names_messages_and_paths_confuse_nothing() {
        let mut script = Script::new();
        let odd: [(&[u8], &[u8], &str, &str); 8] = [
            (b"\"Quo\\ted\" O'Brien", b"one line", "\"Quo\\ted\" O'Brien", "one line"),
            ("\u{c4}d\u{e1} \u{1f980}".as_bytes(), "\u{2013} dash".as_bytes(), "Ädá 🦀", "– dash"),
            (b"Inv\xe4lid", b"br\xffken", "Inv\u{fffd}lid", "br\u{fffd}ken"),
            (b"", b"", "", ""),
            (b"A", b"\n\nafter blank lines\nsame paragraph\n\nbody", "A", "after blank lines same paragraph"),
            (b"B", b":100644 100644 0000000 1111111 M", "B", ":100644 100644 0000000 1111111 M"),
            (b":000000", b"%H%x00\x01\x02\t", ":000000", "%H%x00\u{1}\u{2}"),
            (
                b"C",
                b"0123456789012345678901234567890123456789",
                "C",
                "0123456789012345678901234567890123456789",
            ),
        ];
        let paths: [&[u8]; 4] = [b"new\nline", b":colon \"quote\"", b"inv\xe4lid", b" lead"];
        let mut parents = Vec::new();
        for (index, (author, message, ..)) in odd.iter().enumerate() {
            let content = index.to_string();
            let files = paths.map(|path| (path, content.as_bytes()));
            let parent = parents.clone();
            let draft = Draft { author, message, parents: &parent, files: &files, ..Draft::default() };
            parents = vec![script.commit(draft)];
        }
        let commits = read(&TestRepository::with(&script));
        assert_eq!(commits.len(), odd.len());
        for (commit, (_, _, author, subject)) in commits.iter().zip(odd) {
            assert_eq!(commit.author_name, author);
            assert_eq!(commit.subject, subject);
            assert_eq!(commit.files_changed, 4);
        }
    }

    #[test]
    fn a_rename_counts_as_two_files() {
        let repository = TestRepository::with(&Script::line(1));
        let path = repository.path();
        repository.git(&["reset", "-q", "--hard"]);
        fs::rename(path.join("folder-0/file-0"), path.join("moved")).unwrap();
        repository.git(&["add", "--all"]);
        repository.git(&["commit", "-q", "-m", "Move"]);
        assert_eq!(read(&repository)[1].files_changed, 2);
    }

    #[test]
    fn settings_of_the_repository_change_nothing() {
        let repository = TestRepository::with(&Script::line(20));
        let before = read(&repository);
        let settings = [
            ("log.showSignature", "true"),
            ("log.showRoot", "false"),
            ("log.mailmap", "true"),
            ("log.decorate", "full"),
            ("log.follow", "true"),
            ("format.pretty", "fuller"),
            ("color.ui", "always"),
            ("diff.renames", "copies"),
            ("diff.relative", "true"),
            ("diff.noprefix", "true"),
            ("diff.orderFile", "missing"),
            ("diff.ignoreSubmodules", "all"),
            ("core.pager", "false"),
            ("core.abbrev", "5"),
            ("i18n.logOutputEncoding", "UTF-16"),
        ];
        for (name, value) in settings {
            repository.git(&["config", name, value]);
        }
        fs::write(repository.path().join(".mailmap"), "Someone Else <x@y> <ada@example.org>\n").unwrap();
        assert_eq!(read(&repository), before);
    }

    #[test]
    fn a_folder_inside_the_work_tree_gives_the_whole_history() {
        let repository = TestRepository::with(&Script::line(10));
        repository.git(&["config", "diff.relative", "true"]);
        let inside = repository.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let commits: Vec<Commit> =
            History::open(inside).unwrap().commits().collect::<Result<_, _>>().unwrap();
        assert_eq!(commits, read(&repository));
        assert_eq!(commits[3].files_changed, 1);
    }

    #[test]
    fn a_bare_repository_and_a_shallow_clone_are_read() {
        let script = Script::line(12);
        let bare = TestRepository::bare(&script);
        assert_eq!(read(&bare), read(&TestRepository::with(&script)));

        let shallow = read(&bare.shallow_clone(3));
        assert_eq!(shallow.len(), 3);
        assert_eq!(shallow[0].parents, Vec::<String>::new());
        assert_eq!(shallow[0].files_changed, 10, "the oldest commit shows all its files");
        assert_eq!(shallow[1..], read(&bare)[10..]);
    }

    #[test]
    fn tags_lead_to_their_commits() {
        let mut script = Script::line(3);
        script.light_tag("light", 1);
        script.annotated_tag("annotated", 2);
        script.light_tag("folder/\u{1f980}", 3);
        let repository = TestRepository::with(&script);
        repository.git(&["tag", "-a", "-m", "twice", "nested", "annotated"]);
        repository.git(&["tag", "-a", "-m", "thrice", "nested-again", "nested"]);
        repository.git(&["tag", "tree", "HEAD^{tree}"]);
        repository.git(&["tag", "-a", "-m", "a tree", "tree-object", "tree"]);
        repository.git(&["tag", "-a", "-m", "a tree", "tree-object-nested", "tree-object"]);
        let commits = read(&repository);
        let history = History::open(repository.path()).unwrap();
        let tags: Vec<(String, String)> =
            history.tags().unwrap().into_iter().map(|tag| (tag.name, tag.commit)).collect();
        let expected =
            [("annotated", 1), ("folder/\u{1f980}", 2), ("light", 0), ("nested", 1), ("nested-again", 1)];
        assert_eq!(tags, expected.map(|(name, index)| (name.to_owned(), commits[index].id.clone())));
    }

    #[test]
    fn commits_made_after_opening_are_not_read() {
        let repository = TestRepository::with(&Script::line(2));
        let history = History::open(repository.path()).unwrap();
        repository.git(&["commit", "-q", "--allow-empty", "-m", "later"]);
        assert_eq!(history.commits().count(), 2);
        assert_eq!(history.totals_by_git().unwrap().commits, 2);
    }

    #[test]
    fn every_failure_to_open_has_its_own_error() {
        let folder = new_folder();
        let missing = folder.path().join("missing");
        let error = History::open(&missing).unwrap_err();
        assert!(matches!(error, GitError::PathMissing { .. }), "{error:?}");
        assert_eq!(error.to_string(), format!("there is no file or folder at {}", missing.display()));

        let file = folder.path().join("file");
        fs::write(&file, "text").unwrap();
        for path in [folder.path(), &file] {
            let error = History::open(path).unwrap_err();
            assert!(matches!(error, GitError::NotARepository { .. }), "{error:?}");
            assert_eq!(error.to_string(), format!("{} is not a folder of a git repository", path.display()));
        }

        let empty = TestRepository::empty();
        let error = History::open(empty.path()).unwrap_err();
        assert!(matches!(error, GitError::NoCommits { .. }), "{error:?}");

        let error =
            History::open_with("a-git-that-is-not-installed".into(), folder.path().into()).unwrap_err();
        assert!(matches!(error, GitError::GitMissing { .. }), "{error:?}");
    }

    #[test]
    fn a_damaged_repository_is_reported_with_the_words_of_git() {
        let repository = TestRepository::with(&Script::line(3));
        let head = repository.path().join(".git/refs/heads/main");
        fs::write(&head, "1234567890123456789012345678901234567890\n").unwrap();
        let history = History::open(repository.path()).unwrap();
        let items: Vec<_> = history.commits().collect();
        assert_eq!(items.len(), 1, "one error, then the end");
        let Err(GitError::Failed { command: "log", reason }) = &items[0] else { panic!("{items:?}") };
        assert!(reason.contains("bad object"), "{reason}");
        assert!(matches!(history.totals_by_git(), Err(GitError::Failed { command: "rev-list", .. })));
    }

    #[cfg(unix)]
    #[test]
    fn output_that_is_not_gits_is_refused_with_its_beginning() {
        let id = "1".repeat(40);
        let cases = [
            ("not an id\\0".to_owned(), "no object id"),
            (format!("{id}\\0nonsense\\0"), "no object id"),
            (format!("{id}\\0\\0Ada\\0ada@example.org\\0soon\\0"), "date"),
            (format!("{id}\\0\\0Ada\\0ada"), "the end inside an author email"),
            (
                format!("{id}\\0\\0Ada\\0a@b\\0\\0subject\\0\\n:100644 000000 1 2 D\\0"),
                "the end inside the path",
            ),
        ];
        for (printed, expected) in cases {
            let error = commits_of_script(&format!("printf '{printed}'")).pop().unwrap().unwrap_err();
            let GitError::Unparsable { command: "log", what } = &error else { panic!("{error:?}") };
            assert!(what.contains(expected), "{what}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_git_that_dies_takes_its_last_commit_with_it() {
        let record = |digit: &str| format!("printf '{}\\0\\0Ada\\0a@b\\0007\\0subject\\0'", digit.repeat(40));
        let noise = "yes warning | head -c 300000 >&2; echo 'fatal: lost the disk' >&2; echo after >&2";
        // The noise is more than a pipe holds: without a reader this would never end.
        let items = commits_of_script(&format!("{}; {}; {noise}; exit 128", record("1"), record("2")));
        let shown: Vec<String> = items
            .iter()
            .map(|item| item.as_ref().map_or_else(ToString::to_string, |commit| commit.subject.clone()))
            .collect();
        assert_eq!(shown, ["subject", "git log failed: warning"]);

        let items = commits_of_script("echo 'hint: x' >&2; echo 'fatal: lost the disk' >&2; exit 128");
        let shown = items[0].as_ref().unwrap_err().to_string();
        assert_eq!(shown, "git log failed: fatal: lost the disk");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn dropping_the_iterator_ends_git() {
        let repository = TestRepository::with(&Script::line(2_000));
        let mut commits = History::open(repository.path()).unwrap().commits();
        assert!(commits.next().unwrap().is_ok());
        let process = format!("/proc/{}", commits.running.as_ref().unwrap().child.id());
        assert!(fs::exists(&process).unwrap());
        drop(commits);
        assert!(!fs::exists(&process).unwrap());
    }

    /// Reads commits from a shell script that stands in for git.
    #[cfg(unix)]
    fn commits_of_script(script: &str) -> Vec<Result<Commit, GitError>> {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let running = Running::start("log", command).unwrap();
        Commits { running: Some(running), failure: None }.collect()
    }
}
