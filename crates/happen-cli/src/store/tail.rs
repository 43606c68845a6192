//! `happen tail`: the newest records of the log, and those that come. Owns how a record looks on a line and as JSON; how
//! the log is followed is the store's.

use clap::Args;
use happen::Pattern;
use happen::journal::Entry;
use happen::store::{Position, Read, Record, Select, Start, Tag};
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::output::{Output, Reader, count_of, plain};
use crate::store::flows::{ended, step_json};
use crate::store::moment::{Moment, Utc};
use crate::store::opened::Opened;
use crate::store::table::width_of;
use crate::store::upkeep::position_json;
use crate::store::web::{ids, payload};
use crate::store::{Place, now_unix_ms, of_store};

/// `happen tail`.
#[derive(Debug, Args)]
pub(crate) struct TailArguments {
    /// Go on with the records that come
    #[arg(long, short)]
    follow: bool,
    /// Only records of events whose type matches, such as `order.*`
    #[arg(long = "type", value_name = "PATTERN", value_parser = pattern)]
    pattern: Option<Pattern>,
    /// Only records of what this node handled or sent
    #[arg(long, value_name = "N")]
    node: Option<String>,
    /// Begin at this time: 2026-11-28T07:09:09Z, or an age such as 10m
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Begin with so many of the newest records
    #[arg(long, short = 'n', value_name = "N", default_value_t = LINES, conflicts_with = "since")]
    lines: u64,
    #[command(flatten)]
    place: Place,
}

fn pattern(text: &str) -> Result<Pattern, happen::PatternError> {
    Pattern::parse(text)
}

/// Prints records, the oldest first.
///
/// # Errors
///
/// [`Failure::Store`] when the log cannot be read on, [`Failure::NotWhole`] at the end when records were left out that
/// cannot be read.
pub(crate) async fn run(arguments: &TailArguments, output: &Output) -> Result<(), Failure> {
    let store = arguments.place.open_to_read().await?;
    let failed = |error| of_store(store.address(), &error);
    let mut tail = Tail { arguments, output, select: select(arguments), unreadable: 0 };
    let start = match arguments.since {
        Some(since) => Start::Time(since.unix_ms(now_unix_ms())),
        None => tail.newest(&store, arguments.lines).await?,
    };
    let mut read = Read::forward(tail.select.clone()).start(start);
    let after = loop {
        let page = store.read(read.clone()).await.map_err(failed)?;
        if tail.show(&page.records)? == Reader::Gone {
            return Ok(());
        }
        match page.next {
            Some(next) => read = read.start(Start::Position(next)),
            // All that is selected was given up to here.
            None => break page.head,
        }
    };
    if arguments.follow {
        let mut watch = store.watch(tail.select.clone(), after).await.map_err(failed)?;
        while tail.show(&watch.next().await.map_err(failed)?)? == Reader::There {}
        return Ok(());
    }
    match tail.unreadable {
        0 => Ok(()),
        count => Err(Failure::NotWhole(format!(
            "{} of a form that this program does not read; `happen verify` names the first one",
            count_of(count, "record")
        ))),
    }
}

/// The records that are looked at; what else is asked for is found by looking.
fn select(arguments: &TailArguments) -> Select {
    match (&arguments.node, &arguments.pattern) {
        (Some(node), _) => {
            Select::Tagged(vec![Tag::Node(node.as_str().into()), Tag::Sender(node.as_str().into())])
        }
        (None, Some(pattern)) => {
            pattern.is_literal().map_or(Select::All, |name| Select::tag(Tag::Type(name.into())))
        }
        (None, None) => Select::All,
    }
}

struct Tail<'a> {
    arguments: &'a TailArguments,
    output: &'a Output,
    select: Select,
    unreadable: u64,
}

impl Tail<'_> {
    /// Where the newest records begin of which there are so many. Only their place is kept, however many they are.
    async fn newest(&self, store: &Opened, lines: u64) -> Result<Start, Failure> {
        let mut read = Read::backward(self.select.clone());
        let mut left = lines;
        let mut first: Option<Position> = None;
        loop {
            let page = store.read(read.clone()).await.map_err(|error| of_store(store.address(), &error))?;
            // Without a record to begin with it begins behind all there are.
            let mut start = first.map_or(page.head, before);
            for record in page.records.iter().filter(|record| self.takes(record)) {
                if left == 0 {
                    return Ok(Start::Position(start));
                }
                left -= 1;
                first = Some(record.position);
                start = before(record.position);
            }
            match page.next {
                Some(next) if left > 0 => read = read.start(Start::Position(next)),
                _ => return Ok(Start::Position(start)),
            }
        }
    }

    fn takes(&self, record: &Record) -> bool {
        let Some(pattern) = &self.arguments.pattern else { return true };
        record.tags.iter().any(|tag| matches!(tag, Tag::Type(name) if pattern.matches(name)))
    }

    /// Writes records, all at once.
    fn show(&mut self, records: &[Record]) -> Result<Reader, Failure> {
        let mut text = String::new();
        for record in records {
            if !self.takes(record) {
                continue;
            }
            let entry = Entry::read(record).ok();
            self.unreadable += u64::from(entry.is_none());
            match self.arguments.place.json {
                true => text.push_str(&format!("{}\n", record_json(record, entry.as_ref()))),
                false => text.push_str(&self.line(record, entry.as_ref())),
            }
        }
        match self.arguments.place.json {
            true => self.output.write_as_it_is(&text),
            false => self.output.write_part(&text),
        }
    }

    fn line(&self, record: &Record, entry: Option<&Entry>) -> String {
        let event = first(record, |tag| matches!(tag, Tag::Event(_))).unwrap_or_else(|| "-".to_owned());
        let (word, what) = entry.map_or(("unknown", String::new()), |entry| told(record, entry));
        let line = format!("{event:ID_CHARS$}  {}  {word:7}  {what}", Utc(record.at_unix_ms).clock());
        format!("{}\n", plain(line.trim_end(), width_of(self.output)))
    }
}

/// The position before, behind which a reading begins with the record.
fn before(position: Position) -> Position {
    Position::from_number(position.number().saturating_sub(1))
}

/// The text of the first tag of a kind.
pub(crate) fn first(record: &Record, is: impl Fn(&Tag) -> bool) -> Option<String> {
    record.tags.iter().find(|tag| is(tag)).map(|tag| tag.text().into_owned())
}

/// What a record says: a word for what happened, and of what it is told.
fn told(record: &Record, entry: &Entry) -> (&'static str, String) {
    let name = first(record, |tag| matches!(tag, Tag::Type(_))).unwrap_or_default();
    if let Some(step) = &entry.step {
        let (word, more) = ended(&step.ended);
        let apart = if more.is_empty() { "" } else { ": " };
        return (word, format!("{name} > {}/{}{apart}{more}", step.flow.node, step.name));
    }
    match (entry.events.first(), entry.changes.first()) {
        (Some(event), _) => {
            let sender = event.sender.as_ref().map_or_else(String::new, |sender| format!(" < {sender}"));
            let more = entry.events.len() - 1;
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            ("event", format!("{name}{sender}{more}"))
        }
        (None, Some(change)) => ("changed", format!("{} revision {}", change.key, change.revision)),
        (None, None) => ("other", name),
    }
}

fn record_json(record: &Record, entry: Option<&Entry>) -> Json {
    let causes: Vec<_> =
        record.tags.iter().filter(|tag| matches!(tag, Tag::Cause(_))).map(Tag::text).collect();
    let mut told = json!({
        "position": position_json(record.position),
        "at": Utc(record.at_unix_ms).to_string(),
        "event": first(record, |tag| matches!(tag, Tag::Event(_))),
        "type": first(record, |tag| matches!(tag, Tag::Type(_))),
        "correlation": first(record, |tag| matches!(tag, Tag::Correlation(_))),
        "node": first(record, |tag| matches!(tag, Tag::Node(_))),
        "sender": first(record, |tag| matches!(tag, Tag::Sender(_))),
        "causes": causes,
        "readable": entry.is_some(),
    });
    let Some(entry) = entry else { return told };
    let event = |event: &happen::journal::StoredEvent| {
        json!({
            "event": event.id.to_string(),
            "type": event.event_type,
            "at": Utc(event.at_unix_ms).to_string(),
            "sender": event.sender,
            "causes": ids(&event.causes),
            "depth": event.depth,
            "payload": payload(event),
        })
    };
    let flow =
        |flow: &happen::journal::FlowName| json!({ "node": flow.node, "registration": flow.registration });
    let change = |change: &happen::journal::Change| json!({ "key": change.key, "revision": change.revision });
    told["events"] = entry.events.iter().map(event).collect();
    told["accepted"] = entry.accepted.iter().map(flow).collect();
    told["step"] = entry.step.as_ref().map_or(Json::Null, step_json);
    told["changes"] = entry.changes.iter().map(change).collect();
    told
}

/// Records that are shown first.
const LINES: u64 = 10;
/// The characters of an id.
const ID_CHARS: usize = 36;
