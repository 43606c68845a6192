//! `happen state`: what documents say, what they said, what differs, and a change by hand. Owns how that is told; does not
//! know the Rust types of states, so it cannot check what they would: a space that runs does.

use std::io::{Read as _, Write as _};

use clap::{Args, Subcommand};
use happen::ErrorKind;
use happen::control::{Answer, Request, SetState};
use happen::journal::{At, Journal, Then};
use happen::store::{Document, History, List, Until};
use happen_core::limits::DOCUMENT_BYTES_MAX;
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::output::{Output, Reader, plain};
use crate::store::content::{Exactness, packed, shown};
use crate::store::diff::{Difference, differences};
use crate::store::hand::{self, Hand};
use crate::store::key::{ENTITY, Meant, STATE, escaped, meant, new_key};
use crate::store::moment::{Moment, Utc};
use crate::store::opened::Opened;
use crate::store::table::{Listing, WIDTH_CHARS_MAX};
use crate::store::upkeep::position_json;
use crate::store::web::{NOT_KEPT, made_by, not_kept, reason_json};
use crate::store::{Place, journal, now_unix_ms, of_store};

/// What is done with documents.
#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// List the documents of all nodes, or of one
    Ls(ListArguments),
    /// Print what a document says
    Get(GetArguments),
    /// Print the revisions of a document, the newest first
    History(HistoryArguments),
    /// Print what differs between two revisions of a document
    Diff(DiffArguments),
    /// Write a document, by way of the space when it runs
    Set(SetArguments),
}

/// `happen state ls`.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// The id of a node
    node: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// `happen state get`.
#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    /// NODE, NODE/STATE, or NODE/STATE/KEY for an entity; or the whole key of the document
    key: String,
    /// A past revision instead of the current one
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
    /// What it said then: a time, or an age such as 10m
    #[arg(long, value_name = "TIME", value_parser = Moment::parse, conflicts_with = "revision")]
    at: Option<Moment>,
    /// With --at, the newest kept revision from before where that of then is not kept
    #[arg(long, requires = "at")]
    nearest: bool,
    #[command(flatten)]
    place: Place,
}

/// `happen state history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArguments {
    /// As for `state get`
    key: String,
    #[command(flatten)]
    place: Place,
}

/// `happen state diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffArguments {
    /// As for `state get`
    key: String,
    /// The revision to begin with
    before: u64,
    /// The revision to compare it with
    after: u64,
    #[command(flatten)]
    place: Place,
}

/// `happen state set`.
#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    /// As for `state get`; the whole key, or NODE/STATE, of a document that is new
    key: String,
    /// What it says from now on, in JSON; `-` reads it from standard input
    content: String,
    /// The revision it has now; 0 for a document that was never written
    #[arg(long, value_name = "N")]
    revision: u64,
    /// The version of the state's shape [default: the one it has]
    #[arg(long, value_name = "N")]
    shape: Option<u32>,
    #[command(flatten)]
    place: Place,
}

/// Does it.
///
/// # Errors
///
/// [`Failure::NotFound`] when there is no such document or revision, [`Failure::Usage`] when the name can mean several
/// or the content is no JSON, [`Failure::Store`] for the rest.
pub(crate) async fn run(command: StateCommand, output: &Output) -> Result<(), Failure> {
    match command {
        StateCommand::Ls(arguments) => list(&arguments, output).await,
        StateCommand::Get(arguments) => get(&arguments, output).await,
        StateCommand::History(arguments) => history(&arguments, output).await,
        StateCommand::Diff(arguments) => diff(&arguments, output).await,
        StateCommand::Set(arguments) => set(&arguments, output).await,
    }
}

async fn list(arguments: &ListArguments, output: &Output) -> Result<(), Failure> {
    let store = arguments.place.open_to_read().await?;
    let prefixes = [STATE, ENTITY].map(|kind| match &arguments.node {
        Some(node) => format!("{kind}{}/", escaped(node)),
        None => kind.to_owned(),
    });
    let mut found = 0;
    for prefix in prefixes {
        let mut after = None;
        loop {
            let list = List { prefix: prefix.as_str().into(), after, documents_max: usize::MAX };
            let documents = store.list(list).await.map_err(|error| of_store(store.address(), &error))?;
            let Some(last) = documents.last() else { break };
            found += documents.len();
            let mut page = Listing::new(&arguments.place, &["KEY", "REVISION", "AT"]);
            for document in &documents {
                let (revision, at) = (document.revision.to_string(), Utc(document.at_unix_ms).to_string());
                page.push(|| [document.key.to_string(), revision, at], || revision_json(document));
            }
            if page.write(output)? == Reader::Gone {
                return Ok(());
            }
            after = Some(last.key.clone());
        }
    }
    match &arguments.node {
        Some(node) if found == 0 => Err(Failure::NotFound(format!(
            "no document of a node `{node}` is there; `happen state ls` lists those of all"
        ))),
        _ => Ok(()),
    }
}

async fn get(arguments: &GetArguments, output: &Output) -> Result<(), Failure> {
    let (store, journal) = journal(&arguments.place).await?;
    let meant = meant(&store, &arguments.key).await?;
    let then = match arguments.at {
        Some(moment) => Some(at_moment(&store, &journal, &meant.key, moment, arguments.nearest).await?),
        None => None,
    };
    let missing = then.as_ref().map(|then| then.missing);
    let document = match (then, arguments.revision) {
        (Some(then), _) => then.value,
        (None, Some(revision)) => at_revision(&store, &meant.key, revision).await?,
        (None, None) => current(&store, &meant).await?.ok_or_else(|| not_there(&meant.key))?,
    };
    if let Some(missing) = missing.filter(|missing| *missing > 0 && !arguments.place.json) {
        remark(&format!(
            "this is revision {} of `{}`; {} after it until then {} not kept",
            document.revision,
            meant.key,
            if missing == 1 { "the one".to_owned() } else { format!("up to {missing}") },
            if missing == 1 { "is" } else { "are" },
        ))?;
    }
    let Some(content) = &document.content else {
        return Err(Failure::NotFound(format!(
            "document `{}` was deleted by revision {} at {}; `happen state history` has the revisions before",
            meant.key,
            document.revision,
            Utc(document.at_unix_ms)
        )));
    };
    let shown = shown(&content.bytes)?;
    if !arguments.place.json {
        return output.write_json(&shown.json);
    }
    let mut told = revision_json(&document);
    told["content"] = shown.json;
    told["exact"] = (shown.exactness == Exactness::Exact).into();
    if let Some(missing) = missing {
        told["missing"] = missing.into();
    }
    output.write_json(&told)
}

/// What is kept of a document from then.
///
/// # Errors
///
/// [`Failure::NotFound`] when there was none, or when what is kept is older and nobody asked for that.
async fn at_moment(
    store: &Opened,
    journal: &Journal,
    key: &str,
    moment: Moment,
    nearest: bool,
) -> Result<Then<Document>, Failure> {
    let unix_ms = moment.unix_ms(now_unix_ms());
    let then = journal.nearest(key, At::Time(unix_ms)).await;
    let then = match then {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound { .. }) => {
            return Err(Failure::NotFound(format!(
                "nothing is kept of document `{key}` from {} or before; `happen state history` has what there is",
                Utc(unix_ms)
            )));
        }
        then => then.map_err(|error| of_store(store.address(), &error))?,
    };
    let then = then.ok_or_else(|| {
        Failure::NotFound(format!("document `{key}` was not there yet at {}", Utc(unix_ms)))
    })?;
    if then.is_exact() || nearest {
        return Ok(then);
    }
    Err(Failure::NotFound(format!(
        "what document `{key}` said at {} is not kept; the newest before that is, is revision {}: --nearest prints it",
        Utc(unix_ms),
        then.revision
    )))
}

/// Tells a person something about what is printed, beside it.
fn remark(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stderr().lock(), "happen: {text}").map_err(Failure::Output)
}

fn not_there(key: &str) -> Failure {
    Failure::NotFound(format!("no document has the key `{key}`"))
}

async fn current(store: &Opened, meant: &Meant) -> Result<Option<Document>, Failure> {
    let mut found = store
        .documents(vec![meant.key.as_str().into()])
        .await
        .map_err(|error| of_store(store.address(), &error))?;
    Ok(found.pop().flatten())
}

async fn at_revision(store: &Opened, key: &str, revision: u64) -> Result<Document, Failure> {
    let until = Until::Before(revision.saturating_add(1));
    let history = History { key: key.into(), until, documents_max: 1 };
    let found = store.history(history).await.map_err(|error| of_store(store.address(), &error))?;
    match found.into_iter().next() {
        Some(document) if document.revision == revision => Ok(document),
        older => {
            let current = store
                .documents(vec![key.into()])
                .await
                .map_err(|error| of_store(store.address(), &error))?
                .pop()
                .flatten();
            let has = current.is_some_and(|current| revision > 0 && revision < current.revision);
            let what = match (has, older) {
                (true, Some(older)) => {
                    format!("is not kept; the newest before it that is, is {}", older.revision)
                }
                (true, None) => "is not kept, nor any before it".to_owned(),
                (false, _) => "was never written".to_owned(),
            };
            Err(Failure::NotFound(format!(
                "revision {revision} of document `{key}` {what}; `happen state history` has those there are"
            )))
        }
    }
}

/// What is told of a revision without its content.
fn revision_json(document: &Document) -> Json {
    let content = document.content.as_ref();
    json!({
        "key": &*document.key,
        "revision": document.revision,
        "at": Utc(document.at_unix_ms).to_string(),
        "position": position_json(document.position),
        "deleted": content.is_none(),
        "name": content.map(|content| &*content.name),
        "version": content.map(|content| content.version),
    })
}

async fn history(arguments: &HistoryArguments, output: &Output) -> Result<(), Failure> {
    let (store, journal) = journal(&arguments.place).await?;
    let meant = meant(&store, &arguments.key).await?;
    let mut until = Until::Now;
    loop {
        let reasons = journal.why_document(&meant.key, until).await;
        let reasons = reasons.map_err(|error| of_store(store.address(), &error))?;
        let Some(last) = reasons.last() else { return Ok(()) };
        until = Until::Before(last.revision);
        let mut page = Listing::new(&arguments.place, &["REVISION", "AT", "EVENT", "BY"]);
        for reason in &reasons {
            let row = || {
                let event = reason.event().map_or_else(|| "-".to_owned(), |event| event.to_string());
                [reason.revision.to_string(), Utc(reason.at_unix_ms).short(), event, made_by(reason)]
            };
            page.push(row, || reason_json(&meant.key, reason));
            if let Some(revisions) = not_kept(reason) {
                page.remark([revisions, String::new(), "-".to_owned(), NOT_KEPT.to_owned()]);
            }
        }
        if page.write(output)? == Reader::Gone {
            return Ok(());
        }
    }
}

async fn diff(arguments: &DiffArguments, output: &Output) -> Result<(), Failure> {
    let store = arguments.place.open_to_read().await?;
    let meant = meant(&store, &arguments.key).await?;
    let mut contents = Vec::new();
    for revision in [arguments.before, arguments.after] {
        let document = at_revision(&store, &meant.key, revision).await?;
        contents.push(match &document.content {
            Some(content) => shown(&content.bytes)?.json,
            // A deleted document says nothing.
            None => Json::Null,
        });
    }
    let found = differences(&contents[0], &contents[1]);
    if arguments.place.json {
        let lines: String =
            found.iter().map(|difference| format!("{}\n", difference_json(difference))).collect();
        return output.write_as_it_is(&lines).map(drop);
    }
    output.write(&found.iter().map(difference_text).collect::<String>())
}

fn difference_json(difference: &Difference) -> Json {
    let mut told = json!({ "path": difference.path });
    for (name, value) in [("before", &difference.before), ("after", &difference.after)] {
        if let Some(value) = value {
            told[name] = value.clone();
        }
    }
    told
}

/// `+` for what came, `-` for what went, `~` for what is another value now.
fn difference_text(difference: &Difference) -> String {
    let value = |value: &Json| plain(&value.to_string(), VALUE_CHARS_MAX);
    let (sign, values) = match (&difference.before, &difference.after) {
        (None, Some(after)) => ('+', value(after)),
        (Some(before), None) => ('-', value(before)),
        (Some(before), Some(after)) => ('~', format!("{} -> {}", value(before), value(after))),
        (None, None) => (' ', String::new()),
    };
    let path = if difference.path.is_empty() { "/" } else { &difference.path };
    format!("{}\n", plain(&format!("{sign} {path}  {values}"), WIDTH_CHARS_MAX))
}

async fn set(arguments: &SetArguments, output: &Output) -> Result<(), Failure> {
    let json = content(&arguments.content)?;
    let (key, found) = {
        let store = arguments.place.open_to_read().await?;
        let meant = match meant(&store, &arguments.key).await {
            Err(Failure::NotFound(_)) if arguments.revision == 0 => new_key(&arguments.key)?,
            meant => meant?,
        };
        if meant.node.is_none() {
            return Err(Failure::Usage(format!(
                "`{}` is no document of a node; only those with `state/` and `entity/` can be set",
                meant.key
            )));
        }
        let found = current(&store, &meant).await?;
        (meant.key, found)
    };
    let revision = found.as_ref().map_or(0, |document| document.revision);
    if revision != arguments.revision {
        return Err(conflict(&key, revision, arguments.revision));
    }
    check_exact(&key, found.as_ref())?;
    let bytes = packed(&json)?;
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(Failure::Store(format!(
            "that is {} bytes, and a document has at most {DOCUMENT_BYTES_MAX}; write less",
            bytes.len()
        )));
    }
    let set = SetState { key: key.clone(), revision, shape: arguments.shape, content: json };
    let address = arguments.place.address()?;
    let mut hand = Hand::at(&arguments.place).await?;
    let answer = hand.try_ask(&Request::SetState(set)).await;
    hand.close().await;
    let answer = answer?.map_err(|error| match error.kind() {
        ErrorKind::Conflict { .. } => conflict(&key, revision + 1, revision),
        ErrorKind::Misuse { .. } if arguments.shape.is_none() && revision == 0 => Failure::Usage(format!(
            "`{key}` says nothing yet, so the version of its shape is unknown; give it with --shape"
        )),
        _ => of_store(&address, &error),
    })?;
    let Answer::Written(written) = answer else { return Err(hand::other_answer()) };
    let (key, revision) = (&written.key, written.revision);
    if arguments.place.json {
        let store = arguments.place.open_to_read().await?;
        let document = at_revision(&store, key, revision).await?;
        let position = position_json(document.position);
        return output.write_json(&json!({ "key": key, "revision": revision, "position": position }));
    }
    output.write(&format!("{key}  revision {revision}\n"))
}

fn conflict(key: &str, found: u64, expected: u64) -> Failure {
    Failure::Store(format!(
        "document `{key}` has revision {found} and not {expected}; read it again and decide again: `happen state get`"
    ))
}

/// The content that was given, here or on standard input.
///
/// # Errors
///
/// [`Failure::Usage`] when it is no JSON or too long, [`Failure::Input`].
pub(crate) fn content(text: &str) -> Result<Json, Failure> {
    let mut read = String::new();
    let text = match text {
        "-" => {
            let limit = CONTENT_BYTES_MAX as u64 + 1;
            std::io::stdin().lock().take(limit).read_to_string(&mut read).map_err(Failure::Input)?;
            &read
        }
        text => text,
    };
    if text.len() > CONTENT_BYTES_MAX {
        return Err(Failure::Usage(format!(
            "the content has more than {CONTENT_BYTES_MAX} bytes; write less"
        )));
    }
    serde_json::from_str(text).map_err(|error| {
        Failure::Usage(format!("the content is not JSON ({error}); a text needs quotes of its own"))
    })
}

/// Refuses to replace what JSON cannot say by what it can.
fn check_exact(key: &str, found: Option<&Document>) -> Result<(), Failure> {
    let content = found.and_then(|document| document.content.as_ref());
    if let Some(content) = content
        && shown(&content.bytes)?.exactness == Exactness::Lossy
    {
        return Err(Failure::Usage(format!(
            "`{key}` has bytes, numbers or keys that JSON cannot say; change it from a program"
        )));
    }
    Ok(())
}

/// Characters of a value in a line that tells a difference.
const VALUE_CHARS_MAX: usize = 30;
/// Bytes of JSON that are read: JSON is at most some four times as long as the document it becomes, but for spaces.
const CONTENT_BYTES_MAX: usize = 4 * DOCUMENT_BYTES_MAX;
