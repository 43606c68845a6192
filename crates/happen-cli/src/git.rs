//! A git history as a causal web: each commit is an event caused by its parents, each author and each tag is
//! a node. Owns the space and its report; how a history is read is in `git_log.rs`, whose store it is in `git_store.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use happen::{Config, Context, Event, EventId, Imported, Node, Space, State};
use happen_nats::Address;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::git_log::{Commit, History, Tag, Totals};
use crate::git_store;
use crate::output::{Output, Progress, number, per_second, plain};
use crate::store::reach::Reach;

/// What the command was asked for.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) path: PathBuf,
    /// The beginning of the id of the commit to trace; `None` for HEAD.
    pub(crate) commit: Option<String>,
    /// Where the events and states are kept; `None` for memory.
    pub(crate) store: Option<Address>,
    /// How to get there, when it is on NATS.
    pub(crate) reach: Reach,
    pub(crate) json: bool,
}

/// A commit was made.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("commit")]
struct Committed {
    id: String,
    parents: u32,
    author_name: String,
    author_email: String,
    files_changed: u32,
}

/// A tag was given to a commit.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("tag")]
struct Tagged {
    name: String,
    commit: String,
}

/// Tells a tag which commit it was given to.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("tagged")]
struct Given {
    name: String,
    commit: String,
}

/// Tells an author of a commit of theirs.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("authored")]
struct Authored {
    files_changed: u32,
}

/// The state of an author's node, which is addressed by e-mail.
#[derive(happen::State, Default, Clone, Debug, Serialize, Deserialize)]
#[state("git.author", version = 1)]
struct Author {
    email: String,
    commits: u64,
    files_changed: u64,
}

/// A name with an e-mail, an entity of the node that tells authors. In the state of an author, which is
/// copied whenever it is changed, the many names of a shared address would be copied at every commit.
#[derive(happen::State, Default, Clone, Debug, Serialize, Deserialize)]
#[state("git.identity", version = 1)]
struct Identity {
    commits: u64,
}

/// The state of a tag's node.
#[derive(happen::State, Default, Clone, Debug, Serialize, Deserialize)]
#[state("git.tag", version = 1)]
struct TagState {
    name: String,
    commit: String,
    /// How often it was given to a commit: a tag may be moved.
    given: u32,
}

/// The state of the node that counts everything.
#[derive(happen::State, Default, Clone, Debug, Serialize, Deserialize)]
#[state("git.audit", version = 1)]
struct Audit {
    commits: u64,
    merges: u64,
    files_changed: u64,
    tags: u64,
}

/// A history that was brought into a space.
struct Web {
    space: Space,
    /// Whether the events are kept in a store.
    is_stored: bool,
    /// What was counted when the store was opened.
    before: Audit,
    counter: Node,
    commits: Vec<Made>,
    by_id: HashMap<String, usize>,
    /// The node whose entities are the names of authors.
    teller: Node,
    /// The ids of the nodes made for authors, and the names to ask for: a node does not list its entities.
    authors: BTreeMap<String, BTreeSet<String>>,
    /// The nodes made for tags.
    tags: Vec<Node>,
    /// Time from the first commit to the last, and how much of it was the events' own.
    time: Duration,
    handling: Duration,
}

/// A commit that became an event.
struct Made {
    id: String,
    subject: String,
    event: Imported,
}

/// What the nodes and the web say.
struct Findings {
    audit: Audit,
    authors: Vec<Contributor>,
    tags: Vec<TagState>,
    /// Those that were not in the store before.
    new_commits: u64,
    /// Events of this run.
    events: u64,
    traced: Traced,
}

/// What the nodes say of an author.
#[derive(Serialize)]
struct Contributor {
    email: String,
    /// Commits by the name they were made under.
    names: BTreeMap<String, u64>,
    commits: u64,
    files_changed: u64,
}

/// A commit traced to the root.
struct Traced {
    commit: usize,
    /// All commits that led to it, without itself.
    ancestors: u64,
    /// The line of first parents, itself first.
    line: Vec<usize>,
}

/// A number found here and the same counted by git.
struct Check {
    what: &'static str,
    found: u64,
    by_git: u64,
    command: String,
}

/// Reads a history into a space, and writes what the space knows of it.
///
/// # Errors
///
/// [`Failure::Git`] when there is no history to read, [`Failure::Differs`] when the space and git disagree,
/// after the report was written.
pub(crate) async fn run(request: &Request, output: &Output) -> Result<(), Failure> {
    let history = History::open(&request.path)?;
    let totals = history.totals_by_git()?;
    if totals.commits > COMMITS_MAX {
        return Err(Failure::TooLarge { commits: totals.commits, commits_max: COMMITS_MAX });
    }
    let tags = history.tags()?;
    let web = bring_in(&history, totals, &tags, request).await?;
    let wanted = request.commit.as_deref().unwrap_or_else(|| history.head());
    let traced = trace(&web, wanted).await?;
    let findings = ask(&web, traced).await?;
    let id = &web.commits[findings.traced.commit].id;
    let checks = checks(&findings, totals, history.ancestors_by_git(id)?, id, &request.path);
    if request.json {
        output.write_json(&report_json(&web, &findings, &checks, &request.path))?;
    } else {
        output.write(&report_text(&web, &findings, &checks, request))?;
    }
    web.space.stop().await?;
    let differs = checks.iter().filter(|check| check.found != check.by_git);
    let told: Vec<_> = differs
        .map(|check| {
            format!("{} {} here and {} by `{}`", check.found, check.what, check.by_git, check.command)
        })
        .collect();
    if told.is_empty() { Ok(()) } else { Err(Failure::Differs(told.join("; "))) }
}

/// Makes the space and broadcasts every commit and every tag, causes before effects.
async fn bring_in(
    history: &History,
    totals: Totals,
    tags: &[Tag],
    Request { store, reach, .. }: &Request,
) -> Result<Web, Failure> {
    let config = config(totals, tags.len());
    let space = match store {
        Some(address) => {
            let config = Config { remembered_events: REMEMBERED, ..config };
            git_store::open(address, reach, config, history).await?
        }
        None => Space::with(config)?,
    };
    let counter = space.node("audit");
    counter.on("commit", count_commit).check()?;
    counter.on("tag", count_tag).check()?;
    let teller = space.node("authors");
    teller.on("commit", tell_author).check()?;
    space.node("tags").on("tag", tell_tag).check()?;
    if store.is_some() {
        // Before the start, at which events go on that are on their way to them.
        for author in git_store::nodes(&space, AUTHOR).await? {
            space.node(author).on("authored", authored).check()?;
        }
        for tag in git_store::nodes(&space, TAG).await? {
            space.node(tag).on("tagged", tagged).check()?;
        }
    }
    space.start().await?;
    // What an earlier run left is counted before anything is compared with it.
    space.settled(SETTLED).await?;

    let mut web = Web {
        space: space.clone(),
        is_stored: store.is_some(),
        before: state(&counter).await?,
        counter,
        commits: Vec::new(),
        by_id: HashMap::new(),
        teller,
        authors: BTreeMap::new(),
        tags: Vec::new(),
        time: Duration::ZERO,
        handling: Duration::ZERO,
    };
    let mut progress = Progress::new("commits", totals.commits);
    let start = space.env().monotonic();
    for commit in history.commits() {
        web.add_commit(commit?).await?;
        progress.show(web.commits.len() as u64);
    }
    for tag in tags {
        web.add_tag(tag).await?;
    }
    web.settle().await?;
    web.time = space.env().monotonic() - start;
    Ok(web)
}

/// A space that remembers all of a history, which is what its two settings are for.
fn config(totals: Totals, tags: usize) -> Config {
    let Totals { commits, merges, authors } = totals;
    let tags = tags as u64;
    // For a commit: its own header, one for each of the two that listen, and one for what its author is told.
    // For a merge, its further parents. For an author and a tag: their node, and what it is told and asked.
    let headers = commits * 4 + merges * FURTHER_PARENTS + authors * 2 + tags * 6 + 64;
    let mut config = Config { remembered_events: to_usize(headers), ..Config::default() };
    // No commit is deeper than there are commits, and what follows from it here is one deeper.
    let depth = u32::try_from(commits).unwrap_or(u32::MAX).saturating_add(2);
    config.correlation.depth_max = config.correlation.depth_max.max(depth);
    config.correlation.events_max = config.correlation.events_max.max(headers);
    config
}

impl Web {
    /// Makes a commit an event that is caused by its parents.
    async fn add_commit(&mut self, commit: Commit) -> Result<(), Failure> {
        let start = self.space.env().monotonic();
        let author = author_node(&commit.author_email);
        if let Some(names) = self.authors.get_mut(&author) {
            if !names.contains(&commit.author_name) {
                names.insert(commit.author_name.clone());
            }
        } else {
            if self.space.find(&author).is_none() {
                let node = self.space.node(&author);
                let email = commit.author_email.clone();
                let named = move |author| Author { email: email.clone(), ..author };
                node.state::<Author>().commit(named).await?;
                node.on("authored", authored).check()?;
            }
            self.authors.insert(author, [commit.author_name.clone()].into());
        }
        let committed = Committed {
            id: commit.id.clone(),
            parents: u32::try_from(commit.parents.len()).unwrap_or(u32::MAX),
            author_name: commit.author_name,
            author_email: commit.author_email,
            files_changed: commit.files_changed,
        };
        let parents = commit.parents.iter().map(|parent| match self.by_id.get(parent) {
            Some(index) => Ok(&self.commits[*index].event),
            None => Err(Failure::Differs(format!("{} came before its parent {parent}", commit.id))),
        });
        let parents = parents.collect::<Result<Vec<_>, _>>()?;
        let importing = self.space.broadcasting(committed).caused_by(parents);
        let event = match self.is_stored {
            true => importing.once(&format!("commit/{}", commit.id)).await?,
            false => importing.publish()?,
        };
        self.by_id.insert(commit.id.clone(), self.commits.len());
        self.commits.push(Made { id: commit.id, subject: plain(&commit.subject, SUBJECT_CHARS), event });
        if self.is_stored && self.commits.len().is_multiple_of(UNDER_WAY_MAX) {
            self.settle().await?;
        }
        self.handling += self.space.env().monotonic() - start;
        Ok(())
    }

    /// Makes a tag an event that is caused by its commit, when that is part of the history.
    async fn add_tag(&mut self, tag: &Tag) -> Result<(), Failure> {
        let start = self.space.env().monotonic();
        let id = tag_node(&tag.name);
        let node = match self.space.find(&id) {
            Some(node) => node,
            None => {
                let node = self.space.node(&id);
                let name = tag.name.clone();
                node.state::<TagState>().commit(move |tag| TagState { name: name.clone(), ..tag }).await?;
                node.on("tagged", tagged).check()?;
                node
            }
        };
        let known: TagState = state(&node).await?;
        self.tags.push(node);
        // A tag that is moved and moved back is given thrice.
        if known.commit != tag.commit {
            let event = Tagged { name: tag.name.clone(), commit: tag.commit.clone() };
            let cause = self.by_id.get(&tag.commit).map(|index| &self.commits[*index].event);
            let importing = self.space.broadcasting(event).caused_by(cause);
            match self.is_stored {
                true => importing.once(&format!("tag/{}/{}", known.given + 1, tag.name)).await?,
                false => importing.publish()?,
            };
        }
        if self.is_stored && self.tags.len().is_multiple_of(UNDER_WAY_MAX) {
            self.settle().await?;
        }
        self.handling += self.space.env().monotonic() - start;
        Ok(())
    }

    /// Waits until what was brought in is handled, which in memory it is at once.
    async fn settle(&self) -> Result<(), Failure> {
        if self.is_stored {
            self.space.settled(SETTLED).await?;
        }
        Ok(())
    }
}

/// What a node keeps.
async fn state<S: State>(node: &Node) -> Result<S, Failure> {
    let state = node.state::<S>();
    state.load().await?;
    Ok(state.try_get(S::clone)?)
}

/// Tells the author's node of a commit, so that nobody but the author has to know what an author keeps.
async fn tell_author(commit: Event<Committed>, cx: Context) -> happen::Result<()> {
    let identity = identity(&commit.author_name, &commit.author_email);
    cx.entity::<Identity>(identity).set(|identity| Identity { commits: identity.commits + 1 })?;
    let authored = Authored { files_changed: commit.files_changed };
    cx.send(author_node(&commit.author_email), authored).await?;
    Ok(())
}

async fn tell_tag(tag: Event<Tagged>, cx: Context) -> happen::Result<()> {
    let given = Given { name: tag.name.clone(), commit: tag.commit.clone() };
    cx.send(tag_node(&tag.name), given).await?;
    Ok(())
}

fn authored(authored: &Event<Authored>, cx: &Context) -> happen::Result<()> {
    let files = u64::from(authored.files_changed);
    cx.state::<Author>().set(move |mut author| {
        author.commits += 1;
        author.files_changed += files;
        author
    })
}

fn tagged(given: &Event<Given>, cx: &Context) -> happen::Result<()> {
    let (name, commit) = (given.name.clone(), given.commit.clone());
    cx.state::<TagState>().set(move |tag| TagState {
        name: name.clone(),
        commit: commit.clone(),
        given: tag.given + 1,
    })
}

fn count_commit(commit: &Event<Committed>, cx: &Context) -> happen::Result<()> {
    let (merge, files) = (u64::from(commit.parents > 1), u64::from(commit.files_changed));
    cx.state::<Audit>().set(move |audit| Audit {
        commits: audit.commits + 1,
        merges: audit.merges + merge,
        files_changed: audit.files_changed + files,
        ..audit
    })
}

fn count_tag(_: &Event<Tagged>, cx: &Context) -> happen::Result<()> {
    cx.state::<Audit>().set(|audit| Audit { tags: audit.tags + 1, ..audit })
}

fn author_node(email: &str) -> String {
    format!("{AUTHOR}{email}")
}

/// As git writes it. A name ends at the first `<`, so no two authors are written alike.
fn identity(name: &str, email: &str) -> String {
    format!("{name} <{email}>")
}

fn tag_node(name: &str) -> String {
    format!("{TAG}{name}")
}

/// Follows the causes of a commit to the root.
async fn trace(web: &Web, wanted: &str) -> Result<Traced, Failure> {
    let commit = find(web, wanted)?;
    let event = web.commits[commit].event.event_id();
    let ancestors = web.space.why(event).await?.len() as u64;
    let by_event: HashMap<EventId, usize> =
        web.commits.iter().enumerate().map(|(index, made)| (made.event.event_id(), index)).collect();
    let mut first_cause = HashMap::new();
    if !web.is_stored {
        let lines = web.space.trace(event).await?.into_iter();
        first_cause.extend(lines.filter_map(|line| Some((line.event, *line.causes.first()?))));
    }
    let journal = web.space.journal();
    let mut line = vec![commit];
    let mut at = event;
    loop {
        let cause = match web.is_stored {
            // A trace ends after so many events, and a line of first parents may be longer.
            true => journal.event(at).await?.and_then(|event| event.causes.first().copied()),
            false => first_cause.get(&at).copied(),
        };
        let Some(index) = cause.and_then(|cause| by_event.get(&cause)) else { break };
        line.push(*index);
        at = web.commits[*index].event.event_id();
    }
    Ok(Traced { commit, ancestors, line })
}

/// The one commit whose id begins so.
fn find(web: &Web, wanted: &str) -> Result<usize, Failure> {
    let wanted = wanted.to_ascii_lowercase();
    if let Some(index) = web.by_id.get(&wanted) {
        return Ok(*index);
    }
    let shown = plain(&wanted, SUBJECT_CHARS);
    let mut found = web.commits.iter().enumerate().filter(|(_, made)| made.id.starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some((index, _)), None) => Ok(index),
        (None, _) => Err(Failure::NoSuchCommit(format!("no commit of this history begins with `{shown}`"))),
        (Some((_, one)), Some((_, other))) => Err(Failure::NoSuchCommit(format!(
            "several commits begin with `{shown}`: {} and {}, for example",
            one.id, other.id
        ))),
    }
}

/// Reads the state of every node.
async fn ask(web: &Web, traced: Traced) -> Result<Findings, Failure> {
    let audit: Audit = state(&web.counter).await?;
    let mut authors = Vec::with_capacity(web.authors.len());
    for (node, names) in &web.authors {
        let author = web.space.find(node).ok_or_else(|| Failure::Differs(format!("{node} is gone")))?;
        let Author { email, commits, files_changed } = state(&author).await?;
        let mut told = BTreeMap::new();
        for name in names {
            let identity = web.teller.entity::<Identity>(identity(name, &email));
            identity.load().await?;
            let commits = identity.try_get(|identity| identity.commits)?;
            // A name that no node heard of is none, which the check of authors then shows.
            if commits > 0 {
                told.insert(name.clone(), commits);
            }
        }
        authors.push(Contributor { email, names: told, commits, files_changed });
    }
    // Of equally busy authors the one whose e-mail comes first.
    authors.sort_by(|a, b| b.commits.cmp(&a.commits).then_with(|| a.email.cmp(&b.email)));
    let mut tags = Vec::with_capacity(web.tags.len());
    for node in &web.tags {
        tags.push(state(node).await?);
    }
    let new_commits = audit.commits - web.before.commits;
    // Each commit and each tag is told to one node more.
    let events = 2 * (new_commits + audit.tags - web.before.tags);
    Ok(Findings { audit, authors, tags, new_commits, events, traced })
}

/// What was found here beside what git says by itself.
fn checks(
    findings: &Findings,
    totals: Totals,
    (ancestors, line): (u64, u64),
    commit: &str,
    path: &Path,
) -> Vec<Check> {
    let git = format!("git -C {}", quoted(path));
    let check = |what, found, by_git, command: String| Check {
        what,
        found,
        by_git,
        command: format!("{git} {command}"),
    };
    let names = findings.authors.iter().map(|author| author.names.len() as u64).sum();
    let told = findings.authors.iter().map(|author| author.commits).sum();
    let count = "rev-list --count";
    vec![
        check("commits", findings.audit.commits, totals.commits, format!("{count} HEAD")),
        check("merges", findings.audit.merges, totals.merges, format!("{count} --merges HEAD")),
        check("authors", names, totals.authors, "log --format='%an <%ae>' HEAD | sort -u | wc -l".to_owned()),
        check("commits told to their authors", told, totals.commits, format!("{count} HEAD")),
        check(
            "commits in its history",
            findings.traced.ancestors + 1,
            ancestors,
            format!("{count} {commit}"),
        ),
        check(
            "commits on its line of first parents",
            findings.traced.line.len() as u64,
            line,
            format!("{count} --first-parent {commit}"),
        ),
    ]
}

/// What can be checked by hand only, with the command to do it.
fn by_hand(findings: &Findings, path: &Path) -> [(&'static str, u64, String); 2] {
    let git = format!("git -C {}", quoted(path));
    let files = "log --raw --no-renames --format= HEAD | grep -c '^:'";
    let tags = "for-each-ref --format='%(objecttype) %(*objecttype)' refs/tags | grep -cw commit";
    [
        ("files changed", findings.audit.files_changed, format!("{git} {files}")),
        ("tags of commits", findings.tags.len() as u64, format!("{git} {tags}")),
    ]
}

fn authors_command(path: &Path) -> String {
    format!("git -C {} log --format=%ae HEAD | sort | uniq -c | sort -rn | head", quoted(path))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    quoted_text(&path.to_string_lossy())
}

fn quoted_text(text: &str) -> String {
    let text = plain(text, usize::MAX);
    let is_simple = |char: char| char.is_ascii_alphanumeric() || "/._-+:@".contains(char);
    if !text.is_empty() && text.chars().all(is_simple) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn report_text(web: &Web, findings: &Findings, checks: &[Check], request: &Request) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _written = write_report(web, findings, checks, request, &mut text);
    text
}

fn write_report(
    web: &Web,
    findings: &Findings,
    checks: &[Check],
    request: &Request,
    out: &mut String,
) -> std::fmt::Result {
    let path = &*request.path;
    let Findings { authors, events, traced, .. } = findings;
    writeln!(
        out,
        "{} commits read by git in {:.2} s; {} events handled in {:.2} s of it: {} events/s",
        number(findings.audit.commits),
        web.time.as_secs_f64(),
        number(*events),
        web.handling.as_secs_f64(),
        number(per_second(*events, web.handling)),
    )?;
    if let Some(address) = &request.store {
        let new = number(findings.new_commits);
        writeln!(out, "{new} of the commits are new to the store in {}", quoted_text(&address.to_string()))?;
    }
    writeln!(out, "\ntotals, and how to count them with git:")?;
    let (totals, of_commit) = checks.split_at(checks.len().min(TOTALS));
    for check in totals {
        row(out, check.what, check.found, &check.command, verdict(check))?;
    }
    for (what, found, command) in by_hand(findings, path) {
        row(out, what, found, &command, String::new())?;
    }

    writeln!(out, "\ncommits of the busiest of {} e-mail addresses:", number(authors.len() as u64))?;
    for author in authors.iter().take(AUTHORS_SHOWN) {
        let name = author.names.iter().max_by_key(|(_, commits)| **commits).map_or("", |(name, _)| name);
        let shown = format!("{name} <{}>", author.email);
        writeln!(out, "  {:>9}  {}", number(author.commits), plain(&shown, SUBJECT_CHARS))?;
    }
    writeln!(out, "  {}", authors_command(path))?;

    let commit = &web.commits[traced.commit];
    writeln!(out, "\nwhy commit {} is there:", commit.id)?;
    for check in of_commit {
        row(out, check.what, check.found, &check.command, verdict(check))?;
    }
    let left_out = traced.line.len().saturating_sub(LINE_START + LINE_END);
    for (index, made) in traced.line.iter().map(|index| &web.commits[*index]).enumerate() {
        if left_out > 1 && index == LINE_START {
            writeln!(out, "  … {} more", number(left_out as u64))?;
        }
        if left_out <= 1 || index < LINE_START || index >= LINE_START + left_out {
            let short = made.id.get(..SHORT_ID).unwrap_or(&made.id);
            writeln!(out, "  {short} {}", made.subject)?;
        }
    }
    if let Some(address) = &request.store {
        writeln!(out, "\nask the store about it:")?;
        let address = quoted_text(&address.to_string());
        writeln!(out, "  happen why {} --store {address}", commit.event.event_id())?;
    }
    Ok(())
}

fn row(out: &mut String, what: &str, found: u64, command: &str, verdict: String) -> std::fmt::Result {
    writeln!(out, "  {:>9}  {what}{verdict}\n             {command}", number(found))
}

fn verdict(check: &Check) -> String {
    if check.found == check.by_git {
        ", the same by git".to_owned()
    } else {
        format!(", WRONG: {} by git", number(check.by_git))
    }
}

fn report_json(web: &Web, findings: &Findings, checks: &[Check], path: &Path) -> Json {
    let checks: Vec<_> = checks
        .iter()
        .map(|check| {
            let holds = check.found == check.by_git;
            let Check { what, found, by_git, command } = check;
            json!({ "what": what, "found": found, "by_git": by_git, "holds": holds, "command": command })
        })
        .collect();
    let by_hand = by_hand(findings, path)
        .map(|(what, found, command)| json!({ "what": what, "found": found, "command": command }));
    let traced = &findings.traced;
    let line: Vec<_> = traced.line.iter().map(|index| &web.commits[*index].id).collect();
    json!({
        "commits": findings.audit.commits,
        "new_commits": findings.new_commits,
        "merges": findings.audit.merges,
        "authors": findings.authors.iter().map(|author| author.names.len()).sum::<usize>(),
        "files_changed": findings.audit.files_changed,
        "tags": findings.tags,
        "top_authors": findings.authors.iter().take(AUTHORS_SHOWN).collect::<Vec<_>>(),
        "trace": {
            "commit": web.commits[traced.commit].id,
            "event": web.commits[traced.commit].event.event_id().to_string(),
            "ancestors": traced.ancestors,
            "first_parents": line,
        },
        "checks": checks,
        "by_hand": by_hand,
        "events": findings.events,
        "seconds": web.time.as_secs_f64(),
        "seconds_handling": web.handling.as_secs_f64(),
        "events_per_second": per_second(findings.events, web.handling),
    })
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The longest history taken. Everything is kept in memory, about a kilobyte for each commit.
const COMMITS_MAX: u64 = 1_000_000;
/// Parents beyond the first for which a merge is given room. Merges of more are rare, and there is room to
/// spare; should it not be enough, the ancestors counted differ from git's, which is told.
const FURTHER_PARENTS: u64 = 4;
/// Commits that may be under way over a store, fewer than a node lets wait.
const UNDER_WAY_MAX: usize = 256;
/// How long those may take: far longer than any disk needs.
const SETTLED: Duration = Duration::from_secs(3_600);
/// Headers that are kept in memory beside a store, which has them all.
const REMEMBERED: usize = 1_024;
/// What the ids of the nodes of authors and tags begin with.
const AUTHOR: &str = "author:";
const TAG: &str = "tag:";
/// Of the checks, those of the whole history; the others are about the traced commit.
const TOTALS: usize = 4;
const AUTHORS_SHOWN: usize = 10;
const SUBJECT_CHARS: usize = 72;
const SHORT_ID: usize = 10;
/// Commits shown at the start and at the end of a line of first parents.
const LINE_START: usize = 5;
const LINE_END: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_a_shell() {
        for (path, shown) in
            [(".", "."), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("$x", "'$x'"), ("", "''")]
        {
            assert_eq!(quoted(Path::new(path)), shown);
        }
    }
}
