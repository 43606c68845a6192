//! `happen trace`, `why` and `impact`: the causal web as a tree and as lists. Owns how they look; what belongs to them is
//! the journal's.

use clap::Args;
use happen::journal::{Journal, MadeBy, Reason, StoredEvent};
use happen::store::Until;
use happen::{EventId, Handled, Line, Trace, TraceOutcome};
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::output::{Output, Reader, plain};
use crate::store::content::shown;
use crate::store::ids::{each, event, sought};
use crate::store::key::meant;
use crate::store::moment::Utc;
use crate::store::opened::Opened;
use crate::store::table::{Listing, WIDTH_CHARS_MAX};
use crate::store::upkeep::position_json;
use crate::store::{Place, journal, of_store};

/// `happen trace`.
#[derive(Debug, Args)]
pub(crate) struct TraceArguments {
    /// The id of an event or its beginning, or a correlation; `-` reads them from standard input
    #[arg(required = true, value_name = "ID|CORRELATION")]
    names: Vec<String>,
    #[command(flatten)]
    place: Place,
}

/// `happen why`.
#[derive(Debug, Args)]
pub(crate) struct WhyArguments {
    /// The id of an event or its beginning, or a document as for `state get`; `-` reads them from standard input
    #[arg(required = true, value_name = "ID|DOCUMENT")]
    names: Vec<String>,
    #[command(flatten)]
    place: Place,
}

/// `happen impact`.
#[derive(Debug, Args)]
pub(crate) struct ImpactArguments {
    /// The id of an event or its beginning; `-` reads them from standard input
    #[arg(required = true, value_name = "ID")]
    names: Vec<String>,
    #[command(flatten)]
    place: Place,
}

/// Prints the tree of each event or correlation.
///
/// # Errors
///
/// [`Failure::NotFound`] and [`Failure::Usage`] as [`event`] says, [`Failure::Store`] for the rest.
pub(crate) async fn trace(arguments: &TraceArguments, output: &Output) -> Result<(), Failure> {
    let (store, journal) = journal(&arguments.place).await?;
    let mut is_first = true;
    each(&arguments.names, async |name| {
        let sought = sought(&store, &journal, name).await?;
        let trace = journal.trace(sought).await.map_err(|error| of_store(store.address(), &error))?;
        if arguments.place.json {
            return output.write_json(&trace_json(name, &trace));
        }
        let apart = if is_first { "" } else { "\n" };
        is_first = false;
        let tree = trace.in_columns(WIDTH_CHARS_MAX);
        let lines = tree.lines().map(|line| format!("{}\n", plain(line, usize::MAX)));
        output.write(&format!("{apart}{}", lines.collect::<String>()))
    })
    .await
}

fn trace_json(name: &str, trace: &Trace) -> Json {
    let events: Vec<_> = trace.lines().iter().map(line_json).collect();
    json!({ "asked_for": name, "cut": trace.is_cut(), "events": events })
}

fn line_json(line: &Line) -> Json {
    json!({
        "event": line.event.to_string(),
        "type": line.event_type,
        "depth": line.depth,
        "causes": ids(&line.causes),
        "sender": line.sender,
        "at": Utc(line.at_unix_ms).to_string(),
        "after_ms": line.after_ms,
        "asked_for": line.asked_for,
        "handled": line.handled.iter().map(handled_json).collect::<Vec<_>>(),
    })
}

fn handled_json(handled: &Handled) -> Json {
    let (outcome, code) = match &handled.outcome {
        TraceOutcome::Ended => ("ended", None),
        TraceOutcome::Value => ("replied", None),
        TraceOutcome::Failed(code) => ("failed", Some(*code)),
        TraceOutcome::Waiting => ("waits", None),
        TraceOutcome::Retrying(code) => ("retrying", Some(*code)),
        _ => ("other", None),
    };
    json!({
        "node": handled.node,
        "registration": handled.registration,
        "steps": handled.steps,
        "attempts": handled.attempts,
        "outcome": outcome,
        "code": code,
    })
}

/// Ids as JSON.
pub(crate) fn ids(events: &[EventId]) -> Vec<String> {
    events.iter().map(EventId::to_string).collect()
}

/// Prints what caused each event, the root first, or what made each revision of a document, the newest first.
///
/// # Errors
///
/// As [`trace`].
pub(crate) async fn why(arguments: &WhyArguments, output: &Output) -> Result<(), Failure> {
    let (store, journal) = journal(&arguments.place).await?;
    each(&arguments.names, async |name| {
        let is_id = name.parse::<EventId>().is_ok();
        let document = if is_id { None } else { Some(meant(&store, name).await) };
        match document {
            Some(Ok(document)) => {
                why_document(&store, &journal, &document.key, &arguments.place, output).await
            }
            Some(Err(failure)) if name.contains('/') || !matches!(failure, Failure::NotFound(_)) => {
                Err(failure)
            }
            _ => {
                let event = event(&store, &journal, name).await.map_err(|failure| match failure {
                    Failure::NotFound(text) if !is_id => {
                        Failure::NotFound(format!("{text}; no document is called so: `happen state ls`"))
                    }
                    failure => failure,
                })?;
                let causes = journal.why(event).await.map_err(|error| of_store(store.address(), &error))?;
                list(&store, &journal, &causes, &arguments.place, output).await
            }
        }
    })
    .await
}

/// Prints what followed from each event, causes before effects.
///
/// # Errors
///
/// As [`trace`].
pub(crate) async fn impact(arguments: &ImpactArguments, output: &Output) -> Result<(), Failure> {
    let (store, journal) = journal(&arguments.place).await?;
    each(&arguments.names, async |name| {
        let event = event(&store, &journal, name).await?;
        let effects = journal.impact(event).await.map_err(|error| of_store(store.address(), &error))?;
        list(&store, &journal, &effects, &arguments.place, output).await
    })
    .await
}

/// Prints events line by line, each with its type, its time, and who sent it.
async fn list(
    store: &Opened,
    journal: &Journal,
    events: &[EventId],
    place: &Place,
    output: &Output,
) -> Result<(), Failure> {
    for events in events.chunks(PAGE_EVENTS) {
        let mut page = Listing::new(place, &["EVENT", "AT", "TYPE", "SENDER"]);
        for id in events {
            let found = journal.event(*id).await.map_err(|error| of_store(store.address(), &error))?;
            match found {
                Some(event) => page.push(|| event_row(&event), || event_json(&event)),
                // It was pruned between the two readings, or only its effects tell of it.
                None => page.push(
                    || [id.to_string(), String::new(), "(not remembered any more)".to_owned(), String::new()],
                    || json!({ "event": id.to_string(), "type": Json::Null }),
                ),
            }
        }
        if page.write(output)? == Reader::Gone {
            return Ok(());
        }
    }
    Ok(())
}

fn event_row(event: &StoredEvent) -> [String; 4] {
    let sender = event.sender.clone().unwrap_or_default();
    [event.id.to_string(), Utc(event.at_unix_ms).short(), event.event_type.clone(), sender]
}

fn event_json(event: &StoredEvent) -> Json {
    json!({
        "event": event.id.to_string(),
        "type": event.event_type,
        "at": Utc(event.at_unix_ms).to_string(),
        "sender": event.sender,
        "correlation": event.correlation,
        "causes": ids(&event.causes),
        "position": position_json(event.position),
        "payload": payload(event),
    })
}

/// What an event says, as JSON; null when it is no MessagePack.
pub(crate) fn payload(event: &StoredEvent) -> Json {
    shown(event.payload_bytes()).map_or(Json::Null, |shown| shown.json)
}

async fn why_document(
    store: &Opened,
    journal: &Journal,
    key: &str,
    place: &Place,
    output: &Output,
) -> Result<(), Failure> {
    let mut until = Until::Now;
    loop {
        let reasons = journal.why_document(key, until).await;
        let reasons = reasons.map_err(|error| of_store(store.address(), &error))?;
        let Some(last) = reasons.last() else { return Ok(()) };
        until = Until::Before(last.revision);
        let mut page = Listing::new(place, &["EVENT", "AT", "REVISION", "BY"]);
        for reason in &reasons {
            let row = || {
                let event = reason.event().map_or_else(|| "-".to_owned(), |event| event.to_string());
                [event, Utc(reason.at_unix_ms).short(), reason.revision.to_string(), made_by(reason)]
            };
            page.push(row, || reason_json(key, reason));
            if let Some(revisions) = not_kept(reason) {
                page.remark(["-".to_owned(), String::new(), revisions, NOT_KEPT.to_owned()]);
            }
        }
        if page.write(output)? == Reader::Gone {
            return Ok(());
        }
    }
}

/// The revisions right before this one that are not kept, as a range.
pub(crate) fn not_kept(reason: &Reason) -> Option<String> {
    let (first, last) = (reason.revision - reason.missing, reason.revision - 1);
    match reason.missing {
        0 => None,
        1 => Some(last.to_string()),
        _ => Some(format!("{first}-{last}")),
    }
}

/// What made a revision, in a few words.
pub(crate) fn made_by(reason: &Reason) -> String {
    let by = match &reason.made_by {
        MadeBy::Step { step, .. } => format!("{}/{}", step.flow.node, step.name),
        MadeBy::Outside => "(from outside)".to_owned(),
        _ => "(not remembered)".to_owned(),
    };
    if reason.is_deletion { format!("{by}, deleted") } else { by }
}

/// What made a revision, as JSON.
pub(crate) fn reason_json(key: &str, reason: &Reason) -> Json {
    let mut told = json!({
        "key": key,
        "revision": reason.revision,
        "at": Utc(reason.at_unix_ms).to_string(),
        "position": position_json(reason.position),
        "deleted": reason.is_deletion,
        "missing": reason.missing,
        "event": reason.event().map(|event| event.to_string()),
        "by": match &reason.made_by {
            MadeBy::Step { .. } => "step",
            MadeBy::Outside => "outside",
            _ => "unknown",
        },
    });
    if let MadeBy::Step { step, about } = &reason.made_by {
        told["type"] = about.event_type.as_str().into();
        told["node"] = step.flow.node.as_str().into();
        told["registration"] = step.flow.registration.as_str().into();
        told["step"] = step.name.as_str().into();
    }
    told
}

/// What is told of revisions that are not kept.
pub(crate) const NOT_KEPT: &str = "(not kept)";
/// Events that are written at once: of the largest ones 64 MiB are read, of common ones some ten KiB.
const PAGE_EVENTS: usize = 64;
