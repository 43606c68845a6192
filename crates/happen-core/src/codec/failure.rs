//! The wire form of an error. Owns how each kind is told and built again; does not know the frame around it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::time::Duration;

use crate::codec::msgpack::{Head, put_head, put_number, put_text};
use crate::error::{Error, ErrorKind, text_of, told_causes};
use crate::id::EventId;
use crate::limits::{ERROR_LINES_MAX, ERROR_TEXT_BYTES_MAX};
use crate::raw::RawPayload;

/// An error as it crosses a link: everything but values and Rust types. Causes become text.
///
/// Texts and lists beyond their limits are cut, and say so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireError<'a> {
    pub(crate) code: Cow<'a, str>,
    /// What the kind says beside its code, as a MessagePack map; empty for nothing.
    pub(crate) with: Cow<'a, [u8]>,
    pub(crate) retryable: bool,
    pub(crate) text: Cow<'a, str>,
    pub(crate) context: Vec<Cow<'a, str>>,
    pub(crate) causes: Vec<Cow<'a, str>>,
    pub(crate) node: Option<Cow<'a, str>>,
    pub(crate) event: Option<EventId>,
}

impl<'a> WireError<'a> {
    /// The wire form of an error. The value it may carry stays here.
    #[must_use]
    pub fn of(error: &'a Error) -> Self {
        let mut causes = Vec::new();
        let mut cause: Option<&(dyn StdError + 'static)> = error.source().map(|source| source as _);
        // One more than the limit, so that it shows when there are more.
        while let Some(found) = cause.filter(|_| causes.len() <= ERROR_LINES_MAX) {
            causes.push(text_of(found));
            cause = found.source();
        }
        Self {
            code: error.code().into(),
            with: encode_parts(error.kind()).into(),
            retryable: error.is_retryable(),
            text: cut(Cow::Owned(error.to_string())),
            context: cut_lines(error.context_lines().map(Cow::Borrowed)),
            causes: cut_lines(causes.into_iter().map(Cow::Owned)),
            node: error.node_id().map(|node| cut(node.into())),
            event: error.event_id(),
        }
    }

    /// The error again: kind, places and context as they were, causes as text.
    ///
    /// A code that this version does not know becomes [`ErrorKind::Failed`] when the same call may succeed later, and
    /// [`ErrorKind::Refused`] when it will not; code and text stay readable in both.
    #[must_use]
    pub fn to_error(&self) -> Error {
        let owned =
            |lines: &[Cow<'_, str>]| lines.iter().map(|line| line.clone().into_owned()).collect::<Vec<_>>();
        let with = RawPayload::new(&self.with);
        let mut causes = owned(&self.causes);
        let mut error = Error::new(match kind_of(&self.code, with) {
            Some(kind) => kind,
            None => {
                let told = format!("{} (code `{}`)", self.text, self.code);
                if self.retryable {
                    causes.insert(0, told);
                    ErrorKind::Failed
                } else {
                    let node = self.node.clone().unwrap_or_default().into_owned();
                    ErrorKind::Refused { node, reason: told }
                }
            }
        });
        if let (ErrorKind::Runaway { limit: OTHER_LIMIT, .. }, Some(name)) = (error.kind(), with.str("limit"))
        {
            error = error.context(format!("limit `{name}`"));
        }
        if let Some(source) = told_causes(causes.into_iter()) {
            error = error.with_source(source);
        }
        if let Some(node) = &self.node {
            error = error.at_node(node);
        }
        if let Some(event) = self.event {
            error = error.at_event(event);
        }
        owned(&self.context).into_iter().fold(error, Error::context)
    }

    /// The stable code of the kind.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// What happened in words, as the sender would show it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.retryable
    }
}

enum Part<'a> {
    Text(&'a str),
    Number(u64),
    Texts(&'a [String]),
}

/// What a kind says beside its code, by the names of its fields.
fn parts_of(kind: &ErrorKind) -> Vec<(&'static str, Part<'_>)> {
    use ErrorKind as K;
    use Part::{Number, Text, Texts};
    match kind {
        K::NotStarted | K::Failed | K::Cancelled => vec![],
        K::Closed { what }
        | K::Busy { what }
        | K::Misuse { what }
        | K::Conflict { what }
        | K::Diverged { what }
        | K::Io { what }
        | K::Damaged { what }
        | K::NotFound { what } => vec![("what", Text(what))],
        K::NoSuchNode { node } | K::DuplicateNode { node } => vec![("node", Text(node))],
        K::NoHandler { node, event_type } => vec![("node", Text(node)), ("event_type", Text(event_type))],
        K::Refused { node, reason } => vec![("node", Text(node)), ("reason", Text(reason))],
        K::Panicked { message } => vec![("message", Text(message))],
        // 64 bits of nanoseconds are 584 years.
        K::TimedOut { after } => {
            vec![("after_ns", Number(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))]
        }
        K::OtherReply { asked, found } => vec![("asked", Text(asked)), ("found", Text(found))],
        K::WrongPayload { wanted, found } => vec![("wanted", Text(wanted)), ("found", Text(found))],
        K::Undecodable { wanted } => vec![("wanted", Text(wanted))],
        K::WrongVersion { name, stored, known } => {
            vec![
                ("name", Text(name)),
                ("stored", Number(u64::from(*stored))),
                ("known", Number(u64::from(*known))),
            ]
        }
        K::Unencodable { event_type } => vec![("event_type", Text(event_type))],
        K::Oversized { bytes, bytes_max } => {
            vec![("bytes", Number(*bytes as u64)), ("bytes_max", Number(*bytes_max as u64))]
        }
        K::BadPattern { pattern, position, reason } => {
            vec![("pattern", Text(pattern)), ("position", Number(*position as u64)), ("reason", Text(reason))]
        }
        K::UnknownStep { step, known } => vec![("step", Text(step)), ("known", Texts(known))],
        K::Runaway { limit, max, path } => {
            vec![("limit", Text(limit)), ("max", Number(*max)), ("path", Texts(path))]
        }
        K::Deadlock { cycle } => vec![("cycle", Texts(cycle))],
        K::Unfit { flows } => vec![("flows", Texts(flows))],
        K::Lagged { items } => vec![("items", Number(*items))],
        K::Invalid { reason } | K::Untrusted { reason } => vec![("reason", Text(reason))],
    }
}

/// The kind with this code; `None` when this version knows no such code, or the parts do not fit it.
fn kind_of(code: &str, with: RawPayload<'_>) -> Option<ErrorKind> {
    use ErrorKind as K;
    let text = |name: &str| with.str(name).map(str::to_owned);
    let number = |name: &str| with.u64(name);
    let size = |name: &str| with.u64(name).map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    let texts = |name: &str| {
        let items = with.records(name)?.take(ERROR_LINES_MAX);
        items.map(|item| item.str("").map(str::to_owned)).collect::<Option<Vec<_>>>()
    };
    Some(match code {
        "not-started" => K::NotStarted,
        "closed" => K::Closed { what: text("what")? },
        "no-such-node" => K::NoSuchNode { node: text("node")? },
        "no-handler" => K::NoHandler { node: text("node")?, event_type: text("event_type")? },
        "refused" => K::Refused { node: text("node")?, reason: text("reason")? },
        "busy" => K::Busy { what: text("what")? },
        "failed" => K::Failed,
        "panicked" => K::Panicked { message: text("message")? },
        "timed-out" => K::TimedOut { after: Duration::from_nanos(number("after_ns")?) },
        "cancelled" => K::Cancelled,
        "other-reply" => K::OtherReply { asked: text("asked")?, found: text("found")? },
        "wrong-payload" => K::WrongPayload { wanted: text("wanted")?, found: text("found")? },
        "undecodable" => K::Undecodable { wanted: text("wanted")? },
        "wrong-version" => K::WrongVersion {
            name: text("name")?,
            stored: u32::try_from(number("stored")?).ok()?,
            known: u32::try_from(number("known")?).ok()?,
        },
        "unencodable" => K::Unencodable { event_type: text("event_type")? },
        "oversized" => K::Oversized { bytes: size("bytes")?, bytes_max: size("bytes_max")? },
        "bad-pattern" => {
            K::BadPattern { pattern: text("pattern")?, position: size("position")?, reason: text("reason")? }
        }
        "duplicate-node" => K::DuplicateNode { node: text("node")? },
        "misuse" => K::Misuse { what: text("what")? },
        "unknown-step" => K::UnknownStep { step: text("step")?, known: texts("known")? },
        "runaway" => {
            let limit = with.str("limit")?;
            let limit = RUNAWAY_LIMITS.iter().find(|name| **name == limit).copied().unwrap_or(OTHER_LIMIT);
            K::Runaway { limit, max: number("max")?, path: texts("path")? }
        }
        "deadlock" => K::Deadlock { cycle: texts("cycle")? },
        "lagged" => K::Lagged { items: number("items")? },
        "invalid" => K::Invalid { reason: text("reason")? },
        "untrusted" => K::Untrusted { reason: text("reason")? },
        "conflict" => K::Conflict { what: text("what")? },
        "diverged" => K::Diverged { what: text("what")? },
        "unfit" => K::Unfit { flows: texts("flows")? },
        "io" => K::Io { what: text("what")? },
        "damaged" => K::Damaged { what: text("what")? },
        "not-found" => K::NotFound { what: text("what")? },
        _ => return None,
    })
}

fn encode_parts(kind: &ErrorKind) -> Vec<u8> {
    let parts = parts_of(kind);
    let mut out = Vec::new();
    if parts.is_empty() {
        return out;
    }
    put_head(&mut out, Head::Map(parts.len()));
    for (name, part) in parts {
        put_text(&mut out, name);
        match part {
            Part::Text(text) => put_text(&mut out, &cut(text.into())),
            Part::Number(number) => put_number(&mut out, number),
            Part::Texts(texts) => {
                let lines = cut_lines(texts.iter().map(Cow::from));
                put_head(&mut out, Head::Array(lines.len()));
                lines.iter().for_each(|line| put_text(&mut out, line));
            }
        }
    }
    out
}

fn cut(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.len() <= ERROR_TEXT_BYTES_MAX {
        return text;
    }
    // Room for the note, whose number has at most 20 digits.
    let kept = text.floor_char_boundary(ERROR_TEXT_BYTES_MAX - 40);
    format!("{}… ({} bytes more)", &text[..kept], text.len() - kept).into()
}

fn cut_lines<'a>(lines: impl Iterator<Item = Cow<'a, str>>) -> Vec<Cow<'a, str>> {
    let mut kept: Vec<_> = lines.take(ERROR_LINES_MAX + 1).map(cut).collect();
    if kept.len() > ERROR_LINES_MAX {
        kept.truncate(ERROR_LINES_MAX - 1);
        kept.push("… and more".into());
    }
    kept
}

/// The names that [`ErrorKind::Runaway`] may have here. Its field is a constant text, so a name that comes from elsewhere
/// is looked up among these; another one goes into the error's context.
const RUNAWAY_LIMITS: &[&str] = &[
    "steps_max",
    "correlation.depth_max",
    "correlation.fan_out_max",
    "correlation.events_max",
    "state_hooks_nested_max",
    "views_followed_max",
];

const OTHER_LIMIT: &str = "of another version";
