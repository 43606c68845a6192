//! `happen store`: what a store is, copies of it, what it forgets, and whether all of it is as it was written. Owns how
//! that is told; what a pruning keeps is the library's, how anything is stored is the store's.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use happen::control::{self, Answer, Histories, Mode, PruneBefore, Request};
use happen::store::{Position, SqliteStore, StoreDamage, StoreInfo, Verified};
use happen_nats::{Address, NatsStore};
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::output::{Output, count_of, number, plain};
use crate::store::hand::{self, Hand};
use crate::store::moment::{Moment, Utc};
use crate::store::opened::{connected, in_memory, open_to_read};
use crate::store::{Place, env, now_unix_ms, of_store};

/// What is done with a store as a whole.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Say what is in the store: sizes and counts
    Info(Place),
    /// Copy the store into another folder while it goes on, and check the copy
    Backup(BackupArguments),
    /// Make a store out of a backup, in a folder or a space on NATS that has none
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
    let info = store.info().await?;
    if place.json {
        return output.write_json(&info_json(store.address(), &info));
    }
    let last = if info.at_unix_ms == 0 { "none".to_owned() } else { Utc(info.at_unix_ms).to_string() };
    let bytes = |bytes: u64| format!("{} bytes", number(bytes));
    let place_name = if store.nats().is_some() { "address" } else { "folder" };
    let lines = [
        (place_name, store.address().to_string()),
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

fn info_json(at: &Address, info: &StoreInfo) -> Json {
    json!({
        "folder": at.to_string(),
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
    store.backup(&arguments.to).await?;
    let (from, to) = (store.address().to_string(), arguments.to.display().to_string());
    if arguments.place.json {
        return output.write_json(&json!({ "from": from, "to": to }));
    }
    output.write(&format!("copied {from} to {to}; all of the copy was read and is as it was written\n"))
}

async fn restore(arguments: &RestoreArguments, output: &Output) -> Result<(), Failure> {
    // Looked at first, so that a wrong path leaves no folder and no stream behind.
    drop(open_to_read(&arguments.backup).await?);
    let (place, address) = (&arguments.place, arguments.place.address()?);
    let restored = match &address {
        Address::Folder(folder) => SqliteStore::restore(&arguments.backup, folder).await,
        Address::Nats { servers, space } => {
            let connection = connected(&address, servers, &place.reach).await?;
            let log = place.reach.log(space)?;
            NatsStore::restore(connection.client().clone(), log, &arguments.backup).await
        }
        _ => return Err(in_memory()),
    };
    restored.map_err(|error| of_store(&address, &error))?;
    let (from, to) = (arguments.backup.display().to_string(), address.to_string());
    if arguments.place.json {
        return output.write_json(&json!({ "from": from, "to": to }));
    }
    output.write(&format!("restored {to} from {from}; all of it was read and is as it was written\n"))
}

async fn verify(place: &Place, output: &Output) -> Result<(), Failure> {
    let store = place.open_to_read().await?;
    let verified = store.verify().await?;
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
    let before_unix_ms = arguments.before.unix_ms(now_unix_ms());
    let request = Request::Prune(PruneBefore {
        before_unix_ms,
        types: arguments.types.clone(),
        histories: if arguments.keep_history { Histories::Keep } else { Histories::Forget },
        mode: if arguments.dry_run { Mode::DryRun } else { Mode::CarryOut },
    });
    let answer = if arguments.dry_run {
        let store = place.open_to_read().await?;
        let carried = control::carry_out(&store.shared(), &env(), request).await;
        carried.map_err(|error| of_store(store.address(), &error))?
    } else {
        let mut hand = Hand::at(place).await?;
        let answer = hand.ask(&request).await?;
        hand.close().await;
        answer
    };
    let Answer::Pruned(pruned) = answer else { return Err(hand::other_answer()) };
    let kept = pruned.events_kept;
    if place.json {
        return output.write_json(&json!({
            "before": Utc(before_unix_ms).to_string(),
            "dry_run": arguments.dry_run,
            "records": pruned.records,
            "revisions": pruned.revisions,
            "events_kept": kept,
        }));
    }
    let verb = if arguments.dry_run { "would forget" } else { "forgot" };
    output.write(&format!(
        "{verb} {} and {} from before {}\nkept the records of {}, which flows under way or dead letters need\n",
        count_of(pruned.records, "record"),
        count_of(pruned.revisions, "past revision"),
        Utc(before_unix_ms).short(),
        count_of(kept, "older event")
    ))
}

/// Characters of what is told of one damage.
const DAMAGE_CHARS_MAX: usize = 300;
