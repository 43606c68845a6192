//! `happen store`: what a store is, copies of it, what it forgets, and whether all of it is as it was written. Owns what
//! a pruning keeps; how anything is stored is the store's.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use happen::EventId;
use happen::journal::Entry;
use happen::store::{
    Content, History, Key, List, Order, Past, Position, Prune, Pruned, Read, Select, SqliteStore, Start,
    Store as _, StoreDamage, StoreInfo, Tag, Until, Verified, Write,
};
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::output::{Output, count_of, number, plain};
use crate::store::content::packed;
use crate::store::key::plain as plain_part;
use crate::store::moment::{Moment, Utc};
use crate::store::{Place, now_unix_ms, of_store, open_to_read};

/// What is done with a store as a whole.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Say what is in the store: sizes and counts
    Info(Place),
    /// Copy the store into another folder while it goes on, and check the copy
    Backup(BackupArguments),
    /// Make a store out of a backup, in a folder that has none
    Restore(RestoreArguments),
    /// Forget old records and old revisions; what flows under way and dead letters need is kept
    Prune(PruneArguments),
    /// Read everything and tell what is not as it was written
    Verify(Place),
}

/// `happen store backup`.
#[derive(Debug, Args)]
pub(crate) struct BackupArguments {
    /// The folder of the copy; it is made
    to: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// `happen store restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    /// The folder of the backup
    backup: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// `happen store prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArguments {
    /// Forget what was committed before this time: 2026-11-28T07:09:09Z, or an age such as 30d
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    before: Moment,
    /// Forget only records of events of this type; may be given several times
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Keep the past revisions of documents
    #[arg(long)]
    keep_history: bool,
    /// Only count what would be forgotten
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
}

/// Does it.
///
/// # Errors
///
/// [`Failure::Store`] when a store cannot be opened, read or written; [`Failure::NotWhole`] when verifying found damage.
pub(crate) async fn run(command: StoreCommand, output: &Output) -> Result<(), Failure> {
    match command {
        StoreCommand::Info(place) => info(&place, output).await,
        StoreCommand::Backup(arguments) => backup(&arguments, output).await,
        StoreCommand::Restore(arguments) => restore(&arguments, output).await,
        StoreCommand::Prune(arguments) => prune(&arguments, output).await,
        StoreCommand::Verify(place) => verify(&place, output).await,
    }
}

async fn info(place: &Place, output: &Output) -> Result<(), Failure> {
    let store = place.open_to_read().await?;
    let info = store.info().await.map_err(|error| of_store(store.folder(), &error))?;
    if place.json {
        return output.write_json(&info_json(&info));
    }
    let last = if info.at_unix_ms == 0 { "none".to_owned() } else { Utc(info.at_unix_ms).to_string() };
    let bytes = |bytes: u64| format!("{} bytes", number(bytes));
    let lines = [
        ("folder", info.folder.display().to_string()),
        ("format", info.format.to_string()),
        ("records", number(info.records)),
        ("documents", number(info.documents)),
        ("revisions", format!("{} of the past", number(info.revisions))),
        ("head", info.head.to_string()),
        ("last commit", last),
        ("database", format!("{}, {} of them free", bytes(info.database_bytes), number(info.free_bytes))),
        ("log", bytes(info.log_bytes)),
        ("prunings", format!("{} under way", info.prunings)),
    ];
    output.write(&lines.map(|(name, value)| format!("{name:12} {}\n", plain(&value, 200))).concat())
}

fn info_json(info: &StoreInfo) -> Json {
    json!({
        "folder": info.folder.display().to_string(),
        "format": info.format,
        "records": info.records,
        "documents": info.documents,
        "revisions": info.revisions,
        "head": position_json(info.head),
        "last_commit": (info.at_unix_ms > 0).then(|| Utc(info.at_unix_ms).to_string()),
        "database_bytes": info.database_bytes,
        "free_bytes": info.free_bytes,
        "log_bytes": info.log_bytes,
        "prunings": info.prunings,
    })
}

/// A position as JSON: a number as far as all readers of JSON can tell such numbers apart, a text beyond.
pub(crate) fn position_json(position: Position) -> Json {
    match u64::try_from(position.number()) {
        Ok(number) if number < 1 << 53 => number.into(),
        _ => position.to_string().into(),
    }
}

async fn backup(arguments: &BackupArguments, output: &Output) -> Result<(), Failure> {
    let store = arguments.place.open_to_read().await?;
    let copied = store.backup(&arguments.to).await;
    copied.map_err(|error| of_store(&arguments.to, &error))?;
    let (from, to) = (store.folder().display().to_string(), arguments.to.display().to_string());
    if arguments.place.json {
        return output.write_json(&json!({ "from": from, "to": to }));
    }
    output.write(&format!("copied {from} to {to}; all of the copy was read and is as it was written\n"))
}

async fn restore(arguments: &RestoreArguments, output: &Output) -> Result<(), Failure> {
    // Looked at first, so that a wrong path leaves no folder behind.
    drop(open_to_read(&arguments.backup).await?);
    let folder = arguments.place.folder();
    let restored = SqliteStore::restore(&arguments.backup, &folder).await;
    restored.map_err(|error| of_store(&folder, &error))?;
    let (from, to) = (arguments.backup.display().to_string(), folder.display().to_string());
    if arguments.place.json {
        return output.write_json(&json!({ "from": from, "to": to }));
    }
    output.write(&format!("restored {to} from {from}; all of it was read and is as it was written\n"))
}

async fn verify(place: &Place, output: &Output) -> Result<(), Failure> {
    let store = place.open_to_read().await?;
    let verified = store.verify().await.map_err(|error| of_store(store.folder(), &error))?;
    if place.json {
        output.write_json(&verified_json(&verified))?;
    } else {
        output.write(&verified_text(&verified))?;
    }
    whole(&verified)
}

/// What was found, for a person.
pub(crate) fn verified_text(verified: &Verified) -> String {
    let damaged = |damage| format!("damaged: {}\n", plain(&damage_text(damage), DAMAGE_CHARS_MAX));
    let mut text: String = verified.damages.iter().map(damaged).collect();
    let (records, revisions) =
        (count_of(verified.records, "record"), count_of(verified.documents, "revision"));
    text.push_str(&format!("{records} and {revisions} of documents are as they were written\n"));
    text
}

/// Whether all is as it was written, as a failure.
pub(crate) fn whole(verified: &Verified) -> Result<(), Failure> {
    match verified.damages_len {
        0 => Ok(()),
        count => Err(Failure::NotWhole(format!(
            "the store is damaged at {}; keep a copy of the folder and restore a backup",
            count_of(count, "place")
        ))),
    }
}

pub(crate) fn verified_json(verified: &Verified) -> Json {
    let damages: Vec<_> = verified.damages.iter().map(damage_json).collect();
    json!({
        "whole": verified.is_whole(),
        "records": verified.records,
        "documents": verified.documents,
        "damages_len": verified.damages_len,
        "damages": damages,
    })
}

pub(crate) fn damage_text(damage: &StoreDamage) -> String {
    match damage {
        StoreDamage::Record { position } => format!("the record at position {position}"),
        StoreDamage::Records { after, before: Some(before) } => {
            format!("the records between positions {after} and {before}")
        }
        StoreDamage::Records { after, before: None } => {
            format!("all records behind position {after}")
        }
        StoreDamage::Document { key, reason } => format!("document {key}: {reason}"),
        StoreDamage::Structure { reason } => format!("the file: {reason}"),
        other => format!("{other:?}"),
    }
}

fn damage_json(damage: &StoreDamage) -> Json {
    match damage {
        StoreDamage::Record { position } => json!({ "kind": "record", "position": position_json(*position) }),
        StoreDamage::Records { after, before } => json!({
            "kind": "records", "after": position_json(*after), "before": before.map(position_json),
        }),
        StoreDamage::Document { key, reason } => json!({ "kind": "document", "key": key, "reason": reason }),
        StoreDamage::Structure { reason } => json!({ "kind": "structure", "reason": reason }),
        other => json!({ "kind": "other", "reason": format!("{other:?}") }),
    }
}

async fn prune(arguments: &PruneArguments, output: &Output) -> Result<(), Failure> {
    let place = &arguments.place;
    let store = if arguments.dry_run { place.open_to_read().await? } else { place.open_to_write().await? };
    let before_unix_ms = arguments.before.unix_ms(now_unix_ms());
    let prune = planned(&store, before_unix_ms, &arguments.types, arguments.keep_history).await?;
    let pruned = match arguments.dry_run {
        true => counted(&store, &prune).await?,
        false => store.prune(prune.clone()).await.map_err(|error| of_store(store.folder(), &error))?,
    };
    if place.json {
        return output.write_json(&json!({
            "before": Utc(before_unix_ms).to_string(),
            "dry_run": arguments.dry_run,
            "records": pruned.records,
            "revisions": pruned.revisions,
            "events_kept": prune.keep.len(),
        }));
    }
    let verb = if arguments.dry_run { "would forget" } else { "forgot" };
    let kept = prune.keep.len() as u64;
    output.write(&format!(
        "{verb} {} and {} from before {}\nkept the records of {}, which flows under way or dead letters need\n",
        count_of(pruned.records, "record"),
        count_of(pruned.revisions, "past revision"),
        Utc(before_unix_ms).short(),
        count_of(kept, "older event")
    ))
}

/// What is forgotten when everything before this time is to be, but what flows under way and dead letters need.
async fn planned(
    store: &SqliteStore,
    before_unix_ms: u64,
    types: &[String],
    keep_history: bool,
) -> Result<Prune, Failure> {
    let failed = |error| of_store(store.folder(), &error);
    let first = Read::forward(Select::All).start(Start::Time(before_unix_ms)).at_most(1);
    let page = store.read(first).await.map_err(failed)?;
    let before = match page.records.first() {
        Some(record) => record.position,
        None => Position::from_number(page.head.number() + 1),
    };
    let mut keep = Vec::new();
    for event in events_needed(store).await? {
        let oldest = Read::forward(Select::tag(Tag::Event(event))).at_most(1);
        let oldest = store.read(oldest).await.map_err(failed)?;
        if oldest.records.first().is_some_and(|record| record.position < before) {
            keep.push(Tag::Event(event));
        }
        if keep.len() > KEPT_MAX {
            return Err(Failure::Store(format!(
                "more than {} flows under way or dead letters are older than that; let them end, or prune what is \
                 before an earlier time",
                number(KEPT_MAX as u64)
            )));
        }
    }
    let records = match types {
        [] => Select::All,
        types => Select::Tagged(types.iter().map(|name| Tag::Type(name.as_str().into())).collect()),
    };
    let histories = if keep_history { Vec::new() } else { vec!["".into()] };
    let documents = anchor(store, before, before_unix_ms).await?.into_iter().collect();
    Ok(Prune { before, records, keep, histories, documents })
}

/// What stays of what is forgotten: up to where it was, and the hash of the newest event there, which covers those of
/// its causes. Whoever verifies the log goes by it. None when there is nothing to forget.
async fn anchor(
    store: &SqliteStore,
    before: Position,
    before_unix_ms: u64,
) -> Result<Option<Write>, Failure> {
    let failed = |error| of_store(store.folder(), &error);
    let key: Key = ANCHOR.into();
    let found = store.documents(vec![Key::clone(&key)]).await.map_err(failed)?.pop().flatten();
    let mut newest = None;
    let mut read = Read::backward(Select::All).start(Start::Position(before)).at_most(ANCHOR_RECORDS);
    // The records of steps have no event, so the newest event stands a few records back.
    while newest.is_none() {
        let page = store.read(read.clone()).await.map_err(failed)?;
        let events = |record| Entry::read(record).ok().and_then(|entry| entry.events.into_iter().next_back());
        if page.records.is_empty() {
            return Ok(None);
        }
        newest = page.records.iter().find_map(events);
        let Some(next) = page.next else { break };
        read = read.start(Start::Position(next));
    }
    let told = json!({
        "before": position_json(before),
        "before_at": Utc(before_unix_ms).to_string(),
        "event": newest.as_ref().map(|event| event.id.to_string()),
        "hash": newest.as_ref().and_then(|event| event.hash).map(|hash| hash.to_string()),
    });
    let content = Content { name: "anchor".into(), version: 1, bytes: packed(&told)?.into() };
    let revision = found.map_or(1, |document| document.revision + 1);
    Ok(Some(Write { key, revision, content: Some(content), past: Past::Kept }))
}

/// The events that flows under way are for, and those of dead letters.
async fn events_needed(store: &SqliteStore) -> Result<Vec<EventId>, Failure> {
    let mut events = Vec::new();
    for prefix in ["flow/", "dead/"] {
        let mut after = None;
        loop {
            let list = List { prefix: prefix.into(), after, documents_max: usize::MAX };
            let documents = store.list(list).await.map_err(|error| of_store(store.folder(), &error))?;
            let Some(last) = documents.last() else { break };
            for document in &documents {
                let event = document.key.split('/').nth(2).map(plain_part).and_then(|id| id.parse().ok());
                let Some(event) = event else {
                    let key = plain(&document.key, 200);
                    return Err(Failure::Store(format!(
                        "the key `{key}` names no event, so it is unknown what must be kept; use the program that \
                         wrote it"
                    )));
                };
                events.push(event);
            }
            after = Some(last.key.clone());
        }
    }
    events.sort_unstable();
    events.dedup();
    Ok(events)
}

/// How much a pruning would forget.
async fn counted(store: &SqliteStore, prune: &Prune) -> Result<Pruned, Failure> {
    let failed = |error| of_store(store.folder(), &error);
    let mut pruned = Pruned::default();
    let keep = Select::Tagged(prune.keep.clone());
    let mut start = Start::Position(prune.before);
    loop {
        let read = Read { order: Order::Backward, start, ..Read::forward(prune.records.clone()) };
        let page = store.read(read).await.map_err(failed)?;
        pruned.records += page.records.iter().filter(|record| !keep.matches(&record.tags)).count() as u64;
        let Some(next) = page.next else { break };
        start = Start::Position(next);
    }
    for prefix in &prune.histories {
        let mut after = None;
        loop {
            let list = List { prefix: prefix.clone(), after, documents_max: usize::MAX };
            let documents = store.list(list).await.map_err(failed)?;
            let Some(last) = documents.last() else { break };
            for document in &documents {
                pruned.revisions += revisions_before(store, document, prune.before).await?;
            }
            after = Some(last.key.clone());
        }
    }
    Ok(pruned)
}

/// The past revisions of a document that were replaced before this position.
async fn revisions_before(
    store: &SqliteStore,
    document: &happen::store::Document,
    before: Position,
) -> Result<u64, Failure> {
    let (mut count, mut replaced_at, mut until) = (0, document.position, Until::Before(document.revision));
    loop {
        let history = History { key: document.key.clone(), until, documents_max: usize::MAX };
        let revisions = store.history(history).await.map_err(|error| of_store(store.folder(), &error))?;
        let Some(last) = revisions.last() else { return Ok(count) };
        for revision in &revisions {
            count += u64::from(replaced_at < before);
            replaced_at = revision.position;
        }
        until = Until::Before(last.revision);
    }
}

/// The document that tells what was pruned.
const ANCHOR: &str = "anchor/log";
/// Records of the first page in which the newest event is looked for.
const ANCHOR_RECORDS: usize = 16;
/// Characters of what is told of one damage.
const DAMAGE_CHARS_MAX: usize = 300;
/// Events whose records a pruning keeps one by one: it asks for each of them at each record.
const KEPT_MAX: usize = 1_000;
