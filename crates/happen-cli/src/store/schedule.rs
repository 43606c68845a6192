//! `happen schedule`: events that come again and again. Owns how schedules look and what may be done with them; when they
//! are due is the library's.

use clap::{Args, Subcommand};
use happen::control::{self, Answer, OfSchedule, Request, ScheduleAct};
use happen::{Missed, Schedule};
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::output::Output;
use crate::store::hand::{Hand, other_answer};
use crate::store::moment::{Moment, Utc};
use crate::store::table::Listing;
use crate::store::{Place, now_unix_ms, of_store};

/// What is done with schedules.
#[derive(Debug, Subcommand)]
pub(crate) enum ScheduleCommand {
    /// List schedules, each with its times, its node and when it is due next
    Ls(Place),
    /// Let due times pass, until the schedule is resumed
    Pause(NameArguments),
    /// Go on with the first due time from now on
    Resume(NameArguments),
    /// Take a schedule away; a program that defines it makes it again at its next start
    Rm(NameArguments),
    /// Have the node take the event now; the space has to run
    Trigger(NameArguments),
    /// Make up for the due times of a span that were missed; the space has to run
    Backfill(BackfillArguments),
}

/// A schedule.
#[derive(Debug, Args)]
pub(crate) struct NameArguments {
    /// The name of the schedule
    name: String,
    #[command(flatten)]
    place: Place,
}

/// `happen schedule backfill`.
#[derive(Debug, Args)]
pub(crate) struct BackfillArguments {
    /// The name of the schedule
    name: String,
    /// From this time on, or from so long ago: 2026-11-28T07:00:00Z, 2h
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    from: Moment,
    /// Up to but without this time [default: now]
    #[arg(long, value_name = "TIME", value_parser = Moment::parse, default_value = "0s", hide_default_value = true)]
    until: Moment,
    #[command(flatten)]
    place: Place,
}

/// Does it.
///
/// # Errors
///
/// [`Failure::NotFound`] when there is no schedule of that name, [`Failure::Store`] for the rest.
pub(crate) async fn run(command: ScheduleCommand, output: &Output) -> Result<(), Failure> {
    match command {
        ScheduleCommand::Ls(place) => list(&place, output).await,
        ScheduleCommand::Pause(NameArguments { name, place }) => {
            act(name, ScheduleAct::Pause, "paused", &place, output).await
        }
        ScheduleCommand::Resume(NameArguments { name, place }) => {
            act(name, ScheduleAct::Resume, "resumed", &place, output).await
        }
        ScheduleCommand::Rm(NameArguments { name, place }) => {
            act(name, ScheduleAct::Remove, "removed", &place, output).await
        }
        ScheduleCommand::Trigger(NameArguments { name, place }) => {
            act(name, ScheduleAct::Trigger, "triggered", &place, output).await
        }
        ScheduleCommand::Backfill(BackfillArguments { name, from, until, place }) => {
            let now = now_unix_ms();
            let span =
                ScheduleAct::Backfill { from_unix_ms: from.unix_ms(now), until_unix_ms: until.unix_ms(now) };
            act(name, span, "made up for", &place, output).await
        }
    }
}

async fn list(place: &Place, output: &Output) -> Result<(), Failure> {
    let store = place.open_to_read().await?;
    let schedules = control::schedules(&store.shared()).await;
    let schedules = schedules.map_err(|error| of_store(store.address(), &error))?;
    let mut page = Listing::new(place, &["NAME", "TIMES", "NODE", "DUE"]);
    for schedule in &schedules {
        page.push(|| row(schedule), || told(schedule));
    }
    page.write(output).map(drop)
}

fn row(schedule: &Schedule) -> [String; 4] {
    let due = match schedule.due_unix_ms() {
        Some(unix_ms) => format!("due {}", Utc(unix_ms).short()),
        None if schedule.is_paused() => "paused".to_owned(),
        None => "never due again".to_owned(),
    };
    [schedule.name().to_owned(), schedule.timing().to_owned(), schedule.node_id().to_owned(), due]
}

fn told(schedule: &Schedule) -> Json {
    let time = |unix_ms: Option<u64>| unix_ms.map(|unix_ms| Utc(unix_ms).to_string());
    let missed = match schedule.missed() {
        Missed::Skip => "skip",
        Missed::Once => "once",
        Missed::All => "all",
        _ => "other",
    };
    json!({
        "name": schedule.name(),
        "times": schedule.timing(),
        "node": schedule.node_id(),
        "type": schedule.event_type(),
        "paused": schedule.is_paused(),
        "missed": missed,
        "due": time(schedule.due_unix_ms()),
        "last_due": time(schedule.last_due_unix_ms()),
        "last_at": time(schedule.last_unix_ms()),
    })
}

async fn act(
    name: String,
    act: ScheduleAct,
    word: &'static str,
    place: &Place,
    output: &Output,
) -> Result<(), Failure> {
    let mut hand = Hand::at(place).await?;
    let answer = hand.ask(&Request::Schedule(OfSchedule { name, act })).await;
    hand.close().await;
    let Answer::Scheduled(done) = answer? else { return Err(other_answer()) };
    let events: Vec<_> = done.events.iter().map(ToString::to_string).collect();
    if place.json {
        return output.write_json(&json!({ "name": done.name, "became": word, "events": events }));
    }
    let of_events = matches!(act, ScheduleAct::Trigger | ScheduleAct::Backfill { .. });
    if !of_events {
        return output.write(&format!("{}  {word}\n", done.name));
    }
    // By the events, which the next command may want; a span in which nothing was missed has none.
    let lines: String = events.iter().map(|event| format!("{event}  {}  {word}\n", done.name)).collect();
    output.write(&lines)
}
