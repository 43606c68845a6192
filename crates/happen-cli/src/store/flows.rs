//! `happen flows` and `happen dead`: flows under way, and those that failed for good. Owns how they look; what is done to
//! them is in `hand.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::{Args, Subcommand};
use happen::journal::{
    DeadFlow, FlowFilter, FlowName, FlowUnderWay, Journal, Point, PointKind, Standing, StepEnd, StoredStep,
};
use happen::store::{Key, Position};
use happen::{Dynamic, Error, EventId};
use serde_json::{Map, Value as Json, json};

use crate::failure::Failure;
use crate::output::{Output, Reader, plain};
use crate::store::content::shown;
use crate::store::hand::{self, FlowArguments, LetterArguments, RedriveArguments};
use crate::store::ids::{each, event};
use crate::store::moment::{Utc, span};
use crate::store::opened::Opened;
use crate::store::table::{Listing, WIDTH_CHARS_MAX};
use crate::store::upkeep::position_json;
use crate::store::web::ids;
use crate::store::{Place, journal, now_unix_ms, of_store};

/// What is done with flows.
#[derive(Debug, Subcommand)]
pub(crate) enum FlowsCommand {
    /// List flows, each with the event that it handles
    Ls(ListArguments),
    /// Print everything about the flows that handle an event
    Show(ShowArguments),
    /// Cancel the flows that handle an event; they leave no dead letter
    Cancel(FlowArguments),
    /// Try the flows that handle an event now, when they wait for their next attempt
    Retry(FlowArguments),
}

/// What is done with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// List flows that failed for good, each with the event that it handled
    Ls(ListArguments),
    /// Print everything about the flows that failed for an event
    Show(ShowArguments),
    /// Begin flows anew at the step that failed, or with another payload from the beginning
    Redrive(RedriveArguments),
    /// Give flows up for good
    Drop(LetterArguments),
}

/// `happen flows ls` and `happen dead ls`.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only those of this node
    #[arg(long, value_name = "N")]
    node: Option<String>,
    /// Only those of this registration
    #[arg(long, value_name = "R")]
    registration: Option<String>,
    /// Only those that stand at this step
    #[arg(long, value_name = "S")]
    step: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// `happen flows show` and `happen dead show`.
#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// The id of an event or its beginning; `-` reads them from standard input
    #[arg(required = true, value_name = "ID")]
    names: Vec<String>,
    #[command(flatten)]
    place: Place,
}

/// Which flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    UnderWay,
    Dead,
}

/// A flow of either kind.
struct Flow {
    event: EventId,
    name: FlowName,
    step: String,
    number: u32,
    attempt: u32,
    stands: Stands,
    since_unix_ms: u64,
    values: BTreeMap<String, Dynamic>,
    points: Vec<Point>,
    key: Key,
    revision: u64,
    position: Position,
}

enum Stands {
    UnderWay(Standing),
    Dead(Arc<Error>),
}

/// Does it.
///
/// # Errors
///
/// [`Failure::NotFound`] when no such flow handles the event, [`Failure::Usage`] and [`Failure::Store`] as for all.
pub(crate) async fn run(command: FlowsCommand, output: &Output) -> Result<(), Failure> {
    match command {
        FlowsCommand::Ls(arguments) => list(Which::UnderWay, &arguments, output).await,
        FlowsCommand::Show(arguments) => show(Which::UnderWay, &arguments, output).await,
        FlowsCommand::Cancel(arguments) => hand::cancel(&arguments, output).await,
        FlowsCommand::Retry(arguments) => hand::retry(&arguments, output).await,
    }
}

/// Does it with dead letters.
///
/// # Errors
///
/// As [`run`].
pub(crate) async fn run_dead(command: DeadCommand, output: &Output) -> Result<(), Failure> {
    match command {
        DeadCommand::Ls(arguments) => list(Which::Dead, &arguments, output).await,
        DeadCommand::Show(arguments) => show(Which::Dead, &arguments, output).await,
        DeadCommand::Redrive(arguments) => hand::redrive(&arguments, output).await,
        DeadCommand::Drop(arguments) => hand::drop_letters(&arguments, output).await,
    }
}

async fn list(which: Which, arguments: &ListArguments, output: &Output) -> Result<(), Failure> {
    let (store, journal) = journal(&arguments.place).await?;
    let mut filter = FlowFilter::new();
    if let Some(node) = &arguments.node {
        filter = filter.node(node);
    }
    if let Some(registration) = &arguments.registration {
        filter = filter.registration(registration);
    }
    if let Some(step) = &arguments.step {
        filter = filter.step(step);
    }
    loop {
        let (flows, next) = page(&store, &journal, which, &filter).await?;
        let mut page = Listing::new(&arguments.place, &["EVENT", "NODE", "STEP", "STANDS"]);
        for flow in &flows {
            page.push(|| flow.row(now_unix_ms()), || flow.json());
        }
        if page.write(output)? == Reader::Gone {
            return Ok(());
        }
        let Some(next) = next else { return Ok(()) };
        filter = filter.after(next);
    }
}

type Page = (Vec<Flow>, Option<Key>);

async fn page(store: &Opened, journal: &Journal, which: Which, filter: &FlowFilter) -> Result<Page, Failure> {
    let failed = |error| of_store(store.address(), &error);
    Ok(match which {
        Which::UnderWay => {
            let page = journal.flows(filter).await.map_err(failed)?;
            (page.flows.into_iter().map(Flow::from).collect(), page.next)
        }
        Which::Dead => {
            let page = journal.dead(filter).await.map_err(failed)?;
            (page.flows.into_iter().map(Flow::from).collect(), page.next)
        }
    })
}

async fn show(which: Which, arguments: &ShowArguments, output: &Output) -> Result<(), Failure> {
    let (store, journal) = journal(&arguments.place).await?;
    each(&arguments.names, async |name| {
        let event = event(&store, &journal, name).await?;
        let mut filter = FlowFilter::new().event(event);
        let mut is_found = false;
        loop {
            let (flows, next) = page(&store, &journal, which, &filter).await?;
            for flow in &flows {
                is_found = true;
                let attempts = journal.attempts(event, &flow.name).await;
                let attempts = attempts.map_err(|error| of_store(store.address(), &error))?;
                if arguments.place.json {
                    let mut told = flow.json();
                    told["steps"] = attempts.iter().map(step_json).collect();
                    output.write_json(&told)?;
                } else {
                    output.write(&flow.text(&attempts))?;
                }
            }
            match next {
                Some(next) => filter = filter.after(next),
                None if is_found => return Ok(()),
                None => return Err(none(which, event)),
            }
        }
    })
    .await
}

fn none(which: Which, event: EventId) -> Failure {
    let what = match which {
        Which::UnderWay => "no flow under way handles",
        Which::Dead => "no flow that failed for good handled",
    };
    Failure::NotFound(format!("{what} event {event}; `happen trace {event}` tells what became of it"))
}

impl From<FlowUnderWay> for Flow {
    fn from(flow: FlowUnderWay) -> Self {
        Self {
            event: flow.event,
            name: flow.flow,
            step: flow.step,
            number: flow.number,
            attempt: flow.attempt,
            stands: Stands::UnderWay(flow.standing),
            since_unix_ms: flow.since_unix_ms,
            values: flow.values,
            points: flow.points,
            key: flow.key,
            revision: flow.revision,
            position: flow.position,
        }
    }
}

impl From<DeadFlow> for Flow {
    fn from(flow: DeadFlow) -> Self {
        Self {
            event: flow.event,
            name: flow.flow,
            step: flow.step,
            number: flow.number,
            attempt: flow.attempts,
            stands: Stands::Dead(flow.error),
            since_unix_ms: flow.since_unix_ms,
            values: flow.values,
            points: flow.points,
            key: flow.key,
            revision: flow.revision,
            position: flow.position,
        }
    }
}

impl Flow {
    fn row(&self, now_unix_ms: u64) -> [String; 4] {
        let stands = match &self.stands {
            Stands::UnderWay(standing) => stands(standing, now_unix_ms),
            Stands::Dead(error) => error_text(error),
        };
        [self.event.to_string(), self.name.node.clone(), self.step.clone(), stands]
    }

    fn json(&self) -> Json {
        let (stands, due_unix_ms, error) = match &self.stands {
            Stands::UnderWay(Standing::Ready) => ("ready", 0, None),
            Stands::UnderWay(Standing::Waiting(point)) => ("waiting", point.due_unix_ms, None),
            Stands::UnderWay(Standing::Retrying { due_unix_ms, error }) => {
                ("retrying", *due_unix_ms, Some(error))
            }
            Stands::UnderWay(_) => ("other", 0, None),
            Stands::Dead(error) => ("failed", 0, Some(error)),
        };
        json!({
            "event": self.event.to_string(),
            "node": self.name.node,
            "registration": self.name.registration,
            "step": self.step,
            "number": self.number,
            "attempt": self.attempt,
            "stands": stands,
            "due": due_json(due_unix_ms),
            "error": error.map_or(Json::Null, error_json),
            "since": Utc(self.since_unix_ms).to_string(),
            "key": &*self.key,
            "revision": self.revision,
            "position": position_json(self.position),
            "values": values_json(&self.values),
            "points": self.points.iter().map(point_json).collect::<Vec<_>>(),
        })
    }

    /// Everything about it, for a person: a line for each thing, with its name where there are several of it only before
    /// the first.
    fn text(&self, steps: &[StoredStep]) -> String {
        let stands = match &self.stands {
            Stands::UnderWay(standing) => stands_fully(standing),
            Stands::Dead(error) => format!("failed: {}", error_text(error)),
        };
        let step = format!("{} (number {}, attempt {})", self.step, self.number, self.attempt);
        let values = self.values.iter().map(|(name, value)| format!("{name} = {}", value_json(value)));
        let told = |step: &StoredStep| {
            let (word, more) = ended(&step.ended);
            format!("{}  {} #{} {word} {more}", Utc(step.at_unix_ms).short(), step.name, step.attempt)
        };
        let things: [(&str, Vec<String>); 8] = [
            ("node", vec![self.name.node.clone()]),
            ("registration", vec![self.name.registration.clone()]),
            ("step", vec![step]),
            ("stands", vec![stands]),
            ("since", vec![Utc(self.since_unix_ms).to_string()]),
            ("values", values.collect()),
            ("points", self.points.iter().map(point_text).collect()),
            ("steps", steps.iter().map(told).collect()),
        ];
        let mut text = format!("{}\n", self.event);
        for (name, values) in things {
            for (index, value) in values.iter().enumerate() {
                let name = if index == 0 { name } else { "" };
                let line = plain(&format!("  {name:13} {value}"), WIDTH_CHARS_MAX);
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text
    }
}

/// What a flow waits for, with all that is known of it.
fn stands_fully(standing: &Standing) -> String {
    match standing {
        Standing::Ready => "ready".to_owned(),
        Standing::Waiting(point) => format!("waits for {}", point_text(point)),
        Standing::Retrying { due_unix_ms, error } => {
            format!("again at {}: {}", Utc(*due_unix_ms).short(), error_text(error))
        }
        _ => "other".to_owned(),
    }
}

/// What a flow waits for in as few words as a list has room for.
fn stands(standing: &Standing, now_unix_ms: u64) -> String {
    let due = |due_unix_ms: u64| match due_unix_ms.checked_sub(now_unix_ms) {
        Some(left) => format!("in {}", span(left)),
        None => format!("since {}", span(now_unix_ms - due_unix_ms)),
    };
    match standing {
        Standing::Ready => "ready".to_owned(),
        Standing::Retrying { due_unix_ms, .. } => format!("retry due {}", due(*due_unix_ms)),
        Standing::Waiting(point) if point.kind == PointKind::Sleep => {
            format!("due {}", due(point.due_unix_ms))
        }
        Standing::Waiting(point) => format!("waits for {}", point.name),
        _ => "other".to_owned(),
    }
}

fn point_text(point: &Point) -> String {
    let what = match point.kind {
        PointKind::Ask => format!("an answer of {}", point.name),
        PointKind::Once => format!("the effect {}", point.name),
        PointKind::Sleep => "a time".to_owned(),
        PointKind::Wait => format!("an event {}", point.name),
        _ => "something".to_owned(),
    };
    let due = if point.due_unix_ms == 0 {
        String::new()
    } else {
        format!(" until {}", Utc(point.due_unix_ms).short())
    };
    let settled = if point.is_settled && point.kind != PointKind::Sleep { ", known" } else { "" };
    format!("{what}{due}{settled}")
}

/// A point as JSON.
pub(crate) fn point_json(point: &Point) -> Json {
    json!({
        "ordinal": point.ordinal,
        "kind": point.kind.name(),
        "name": point.name,
        "event": point.event.map(|event| event.to_string()),
        "due": due_json(point.due_unix_ms),
        "settled": point.is_settled,
    })
}

fn due_json(due_unix_ms: u64) -> Json {
    if due_unix_ms == 0 { Json::Null } else { Utc(due_unix_ms).to_string().into() }
}

fn values_json<'v>(values: impl IntoIterator<Item = (&'v String, &'v Dynamic)>) -> Json {
    Json::Object(
        values.into_iter().map(|(name, value)| (name.clone(), value_json(value))).collect::<Map<_, _>>(),
    )
}

/// A value as JSON, also when it has no form there that could be read back.
fn value_json(value: &Dynamic) -> Json {
    let read = value.as_bytes().map(shown);
    match read {
        Some(Ok(shown)) => shown.json,
        _ => Json::Null,
    }
}

fn error_text(error: &Arc<Error>) -> String {
    error.chain().join(": ")
}

fn error_json(error: &Arc<Error>) -> Json {
    json!({ "code": error.code(), "text": error_text(error) })
}

/// How a step ended, in a word and what goes with it.
pub(crate) fn ended(end: &StepEnd) -> (&'static str, String) {
    match end {
        StepEnd::Next(to) => ("next", to.clone()),
        StepEnd::Done(_) => ("replied", String::new()),
        StepEnd::End => ("ended", String::new()),
        StepEnd::Retry { error, .. } => ("retry", error_text(error)),
        StepEnd::Failed(error) => ("failed", error_text(error)),
        StepEnd::Waits => ("waits", String::new()),
        _ => ("other", String::new()),
    }
}

/// What a step did, as JSON.
pub(crate) fn step_json(step: &StoredStep) -> Json {
    let mut told = json!({
        "event": step.event.to_string(),
        "node": step.flow.node,
        "registration": step.flow.registration,
        "step": step.name,
        "number": step.number,
        "attempt": step.attempt,
        "sent": ids(&step.sent),
        "changes": step.changes.iter().map(|change| json!({ "key": change.key, "revision": change.revision }))
            .collect::<Vec<_>>(),
        "points": step.points.iter().map(point_json).collect::<Vec<_>>(),
        "values": values_json(&step.values),
        "at": Utc(step.at_unix_ms).to_string(),
        "position": position_json(step.position),
    });
    match &step.ended {
        StepEnd::Next(to) => told["next"] = to.as_str().into(),
        StepEnd::Done(value) => told["reply"] = value_json(value),
        StepEnd::Retry { due_unix_ms, error } => {
            told["due"] = due_json(*due_unix_ms);
            told["error"] = error_json(error);
        }
        StepEnd::Failed(error) => told["error"] = error_json(error),
        _ => {}
    }
    told["outcome"] = ended(&step.ended).0.into();
    told
}
