//! Errors: what happened, to which event, at which node, and what to do about it. Owns the kinds and their stable
//! codes; `docs/errors.md` has a paragraph for each.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::id::EventId;
use crate::limits::ERROR_CAUSES_MAX;
use crate::pattern::PatternError;
use crate::value::Value;

/// The result of an operation of Happen, or of a handler.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: its kind, the event and node it belongs to, and what caused it.
///
/// Any [`std::error::Error`] becomes one through `?` (kind [`ErrorKind::Failed`]), so handlers need no conversion of
/// their own. For that reason it does not implement that trait itself; [`Error::into_std`] gives a value that does.
/// One pointer wide, so that a `Result` stays small on the way of an event.
///
/// # Examples
///
/// ```
/// use happen_core::{Error, ErrorKind};
///
/// fn parse(text: &str) -> happen_core::Result<u32> {
///     Ok(text.parse()?)
/// }
///
/// let error = parse("seven").unwrap_err();
/// assert!(matches!(error.kind(), ErrorKind::Failed));
/// assert_eq!(error.code(), "failed");
/// assert_eq!(error.to_string(), "invalid digit found in string");
/// ```
pub struct Error(Box<Inner>);

/// What kind of failure an [`Error`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The space was not started yet, so nothing is delivered.
    NotStarted,
    /// The space, node or stream was closed.
    Closed {
        /// What was closed, such as ``node `orders` ``.
        what: String,
    },
    /// No node has this id, here or behind the link.
    NoSuchNode {
        /// The id that was asked for.
        node: String,
    },
    /// The node has no registration whose pattern matches.
    NoHandler {
        /// The node.
        node: String,
        /// The event's type.
        event_type: String,
    },
    /// The node does not accept events of this origin.
    Refused {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// A queue was full, or a breaker or bulkhead let nothing through.
    Busy {
        /// What was busy, such as ``queue of node `orders` (10000 events)``.
        what: String,
    },
    /// The handler returned an error of its own; it is the source.
    Failed,
    /// The handler panicked; the process goes on.
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// No answer within the time given.
    TimedOut {
        /// The time that was given.
        after: Duration,
    },
    /// The flow was cancelled, or its caller went away.
    Cancelled,
    /// The reply has another type than asked for; [`Error::take_value`] gives it.
    OtherReply {
        /// The type that was asked for.
        asked: String,
        /// The type that came.
        found: String,
    },
    /// The event's payload has another shape than the handler takes.
    WrongPayload {
        /// The payload type the handler takes.
        wanted: String,
        /// The event's type.
        found: String,
    },
    /// Bytes that are no payload of the type they are said to be.
    Undecodable {
        /// The type that was wanted.
        wanted: String,
    },
    /// A stored state has a version that this program cannot read: a newer one, or an older one without a way to the
    /// version that the type has now.
    WrongVersion {
        /// The state's name.
        name: String,
        /// The version it was stored in.
        stored: u32,
        /// The version of the type that was wanted.
        known: u32,
    },
    /// A payload could not be encoded.
    Unencodable {
        /// The type it has.
        event_type: String,
    },
    /// The event is larger than the limit.
    Oversized {
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        bytes_max: usize,
    },
    /// A pattern could not be understood.
    BadPattern {
        /// The pattern.
        pattern: String,
        /// Where, in bytes from its start.
        position: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A node of this id exists already.
    DuplicateNode {
        /// The id.
        node: String,
    },
    /// A configuration or a call that cannot mean anything.
    Misuse {
        /// What is wrong and what to do instead.
        what: String,
    },
    /// A flow went on to a step its node does not know.
    UnknownStep {
        /// The step.
        step: String,
        /// The steps there are.
        known: Vec<String>,
    },
    /// A flow or a correlation went over a limit that stops runaway loops.
    Runaway {
        /// The limit's name.
        limit: &'static str,
        /// Its value.
        max: u64,
        /// The way of the events, oldest first, as far as it is remembered.
        path: Vec<String>,
    },
    /// Waiting would never end: these serial nodes wait for each other.
    Deadlock {
        /// The nodes in the order in which they wait, the first one again at the end.
        cycle: Vec<String>,
    },
    /// The reader of a stream was too slow and items were dropped for it.
    Lagged {
        /// How many.
        items: u64,
    },
    /// A value did not pass a check before it was handled.
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// What came over the link is not signed by somebody who may say it. Nothing of it was handled.
    Untrusted {
        /// Why.
        reason: String,
    },
    /// A condition on a revision or a position did not hold.
    Conflict {
        /// What was expected and what was found.
        what: String,
    },
    /// A step of a durable node that was run again did something else in the place of what it had done before.
    Diverged {
        /// What it did, and what it had done.
        what: String,
    },
    /// Flows that were under way do not fit the nodes and steps of this program.
    Unfit {
        /// The flows, each with what it waits for.
        flows: Vec<String>,
    },
    /// The connection or the disk failed.
    Io {
        /// What was being done.
        what: String,
    },
    /// What was stored is not what was written.
    Damaged {
        /// What is damaged, what of it is still readable, and what to do.
        what: String,
    },
    /// What was asked for is not remembered.
    NotFound {
        /// What was looked for, why it may be missing, and what to do.
        what: String,
    },
}

struct Inner {
    kind: ErrorKind,
    event: Option<EventId>,
    node: Option<String>,
    context: Vec<String>,
    value: Option<Value>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind.
    #[must_use]
    #[cold]
    pub fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner {
            kind,
            event: None,
            node: None,
            context: Vec::new(),
            value: None,
            source: None,
        }))
    }

    /// A failure of the user's own, told in words.
    #[must_use]
    #[cold]
    pub fn msg(text: impl Into<String>) -> Self {
        Self::from(Message(text.into()))
    }

    /// A call or a configuration that cannot mean anything.
    #[must_use]
    #[cold]
    pub fn misuse(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Misuse { what: what.into() })
    }

    /// A handler's panic.
    #[must_use]
    #[cold]
    pub fn panicked(payload: &(dyn Any + Send)) -> Self {
        // What could not be told in another way, such as a state that could not be read, was thrown as it is.
        if let Some(error) = payload.downcast_ref::<Self>() {
            return error.duplicate();
        }
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a value that is no text".to_owned());
        Self::new(ErrorKind::Panicked { message })
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error as one of another kind: places, context and causes stay.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// The same error with the event it belongs to, unless it has one already: the first place to know it knows best.
    #[must_use]
    pub fn at_event(mut self, event: EventId) -> Self {
        self.0.event.get_or_insert(event);
        self
    }

    /// The same error with the node it belongs to, unless it has one already.
    #[must_use]
    pub fn at_node(mut self, node: &str) -> Self {
        self.0.node.get_or_insert_with(|| node.to_owned());
        self
    }

    /// The same error with a line about what was being done; the newest is shown first.
    #[must_use]
    pub fn context(mut self, line: impl Into<String>) -> Self {
        self.0.context.push(line.into());
        self
    }

    /// The same error carrying a value, such as a reply of another type.
    #[must_use]
    pub fn with_value(mut self, value: Value) -> Self {
        self.0.value = Some(value);
        self
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The stable code of the kind, in small letters with hyphens; `docs/errors.md` has a paragraph for each.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.0.kind.code()
    }

    /// The event it belongs to.
    #[must_use]
    pub fn event_id(&self) -> Option<EventId> {
        self.0.event
    }

    /// The node it belongs to.
    #[must_use]
    pub fn node_id(&self) -> Option<&str> {
        self.0.node.as_deref()
    }

    /// Lines about what was being done, the oldest first.
    pub fn context_lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.context.iter().map(String::as_str)
    }

    /// Whether the same call may succeed later without anything being changed by the caller.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        use ErrorKind as K;
        match self.kind() {
            K::NotStarted
            | K::Busy { .. }
            | K::Failed
            | K::Panicked { .. }
            | K::TimedOut { .. }
            | K::Conflict { .. }
            | K::Io { .. } => true,
            K::Closed { .. }
            | K::NoSuchNode { .. }
            | K::NoHandler { .. }
            | K::Refused { .. }
            | K::Cancelled
            | K::OtherReply { .. }
            | K::WrongPayload { .. }
            | K::Undecodable { .. }
            | K::WrongVersion { .. }
            | K::Unencodable { .. }
            | K::Oversized { .. }
            | K::BadPattern { .. }
            | K::DuplicateNode { .. }
            | K::Misuse { .. }
            | K::UnknownStep { .. }
            | K::Runaway { .. }
            | K::Deadlock { .. }
            | K::Lagged { .. }
            | K::Invalid { .. }
            | K::Untrusted { .. }
            | K::Diverged { .. }
            | K::Unfit { .. }
            | K::Damaged { .. }
            | K::NotFound { .. } => false,
        }
    }

    /// The value the error carries.
    #[must_use]
    pub fn value(&self) -> Option<&Value> {
        self.0.value.as_ref()
    }

    /// Takes the value the error carries.
    pub fn take_value(&mut self) -> Option<Value> {
        self.0.value.take()
    }

    /// What caused it.
    #[must_use]
    pub fn source(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.0.source.as_deref()
    }

    /// The cause of this type, anywhere in the chain of causes.
    #[must_use]
    pub fn find_cause<E: StdError + 'static>(&self) -> Option<&E> {
        causes(self.source().map(|source| source as _)).find_map(|error| error.downcast_ref())
    }

    /// The error and its causes as one line each, for text that leaves the process.
    #[must_use]
    pub fn chain(&self) -> Vec<String> {
        let mut lines = vec![self.to_string()];
        let mut cause: Option<&(dyn StdError + 'static)> = self.source().map(|source| source as _);
        // A failure without words of its own shows its cause already.
        if matches!(self.kind(), ErrorKind::Failed) {
            cause = cause.and_then(StdError::source);
        }
        lines.extend(causes(cause).map(text_of));
        lines
    }

    /// The error as a value that implements [`std::error::Error`].
    #[must_use]
    pub fn into_std(self) -> Box<dyn StdError + Send + Sync> {
        Box::new(Report(self))
    }

    /// A second error that says the same: kind, places and lines are copied, causes become text.
    ///
    /// An error belongs to one place, and yet the reply, the error event and the dead letter all tell of it.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let mut copy = Self::new(self.0.kind.clone());
        copy.0.event = self.0.event;
        copy.0.node.clone_from(&self.0.node);
        copy.0.context.clone_from(&self.0.context);
        copy.0.source = self.source().map(|source| Copied::boxed(source));
        copy
    }
}

impl ErrorKind {
    /// The stable code, in small letters with hyphens.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotStarted => "not-started",
            Self::Closed { .. } => "closed",
            Self::NoSuchNode { .. } => "no-such-node",
            Self::NoHandler { .. } => "no-handler",
            Self::Refused { .. } => "refused",
            Self::Busy { .. } => "busy",
            Self::Failed => "failed",
            Self::Panicked { .. } => "panicked",
            Self::TimedOut { .. } => "timed-out",
            Self::Cancelled => "cancelled",
            Self::OtherReply { .. } => "other-reply",
            Self::WrongPayload { .. } => "wrong-payload",
            Self::Undecodable { .. } => "undecodable",
            Self::WrongVersion { .. } => "wrong-version",
            Self::Unencodable { .. } => "unencodable",
            Self::Oversized { .. } => "oversized",
            Self::BadPattern { .. } => "bad-pattern",
            Self::DuplicateNode { .. } => "duplicate-node",
            Self::Misuse { .. } => "misuse",
            Self::UnknownStep { .. } => "unknown-step",
            Self::Runaway { .. } => "runaway",
            Self::Deadlock { .. } => "deadlock",
            Self::Lagged { .. } => "lagged",
            Self::Invalid { .. } => "invalid",
            Self::Untrusted { .. } => "untrusted",
            Self::Conflict { .. } => "conflict",
            Self::Diverged { .. } => "diverged",
            Self::Unfit { .. } => "unfit",
            Self::Io { .. } => "io",
            Self::Damaged { .. } => "damaged",
            Self::NotFound { .. } => "not-found",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted => f.write_str("the space is not started; call `space.start()` first"),
            Self::Closed { what } => write!(f, "{what} is closed"),
            Self::NoSuchNode { node } => write!(f, "no node has the id `{node}`"),
            Self::NoHandler { node, event_type } => {
                write!(f, "node `{node}` has no handler for `{event_type}`; register one with `on`")
            }
            Self::Refused { node, reason } => write!(f, "node `{node}` refused the event: {reason}"),
            Self::Busy { what } => write!(f, "{what} takes nothing more now; try again later"),
            Self::Failed => f.write_str("the handler failed"),
            Self::Panicked { message } => write!(f, "the handler panicked: {message}"),
            Self::TimedOut { after } => write!(f, "no answer within {after:?}"),
            Self::Cancelled => f.write_str("the flow was cancelled"),
            Self::OtherReply { asked, found } => {
                write!(f, "the reply is a `{found}`, not a `{asked}`; read it with `error.value()`")
            }
            Self::WrongPayload { wanted, found } => {
                write!(
                    f,
                    "the payload of `{found}` does not have the shape of `{wanted}` that the handler takes"
                )
            }
            Self::Undecodable { wanted } => write!(f, "the bytes are no `{wanted}`"),
            Self::WrongVersion { name, stored, known } if stored > known => write!(
                f,
                "state `{name}` was stored in version {stored}, and this program knows it up to version {known}: \
                 run the program that wrote it, or a newer one"
            ),
            Self::WrongVersion { name, stored, known } => write!(
                f,
                "state `{name}` was stored in version {stored}, and version {known} has no way from there: \
                 give it one with `migrate`"
            ),
            Self::Unencodable { event_type } => write!(f, "the payload of `{event_type}` cannot be encoded"),
            Self::Oversized { bytes, bytes_max } => {
                write!(
                    f,
                    "the event has {bytes} bytes and the limit is {bytes_max}; send large values by reference"
                )
            }
            Self::BadPattern { pattern, position, reason } => {
                write!(f, "bad pattern `{pattern}` at byte {position}: {reason}")
            }
            Self::DuplicateNode { node } => {
                write!(f, "a node with the id `{node}` exists already; use `space.find` to get it")
            }
            Self::Misuse { what } => f.write_str(what),
            Self::UnknownStep { step, known } => {
                write!(f, "no step is called `{step}`; known are: {}", Listed(known))
            }
            Self::Runaway { limit, max, path } => {
                write!(
                    f,
                    "the limit `{limit}` of {max} was passed, which looks like a loop: {}",
                    Arrows(path)
                )
            }
            Self::Deadlock { cycle } => {
                write!(
                    f,
                    "waiting would never end, these serial nodes wait for each other: {}",
                    Arrows(cycle)
                )
            }
            Self::Lagged { items } => write!(f, "the reader was too slow and missed {items} items"),
            Self::Invalid { reason } => write!(f, "not valid: {reason}"),
            Self::Untrusted { reason } => write!(f, "not to be trusted: {reason}"),
            Self::Conflict { what } => write!(f, "conflict: {what}"),
            Self::Diverged { what } => {
                write!(f, "a step that was run again did something else than before: {what}")
            }
            Self::Unfit { flows } => {
                write!(f, "flows under way do not fit this program: {}", flows.join("; "))
            }
            Self::Io { what } => write!(f, "{what} failed"),
            Self::Damaged { what } => write!(f, "damaged: {what}"),
            Self::NotFound { what } => write!(f, "not found: {what}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.0.context.iter().rev() {
            write!(f, "{line}: ")?;
        }
        match (&self.0.kind, &self.0.source) {
            (ErrorKind::Failed, Some(source)) => f.write_str(&text_of(&**source)),
            (kind, _) => fmt::Display::fmt(kind, f),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} [{}", self.code())?;
        if let Some(node) = &self.0.node {
            write!(f, ", node {node}")?;
        }
        if let Some(event) = self.0.event {
            write!(f, ", event {event}")?;
        }
        f.write_str("]")?;
        for cause in self.chain().iter().skip(1) {
            write!(f, "\n  caused by: {cause}")?;
        }
        Ok(())
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    #[cold]
    fn from(error: E) -> Self {
        // A report of ours that went through somebody's `Box<dyn Error>` is taken back whole.
        let mut slot = Some(error);
        if let Some(report) = (&mut slot as &mut dyn Any).downcast_mut::<Option<Report>>()
            && let Some(Report(inner)) = report.take()
        {
            return inner;
        }
        // One implementation is for every error, so the one that has a kind of its own is known by its type.
        if let Some(Some(bad)) = (&slot as &dyn Any).downcast_ref::<Option<PatternError>>() {
            let mut made = Self::new(ErrorKind::BadPattern {
                pattern: bad.text().to_owned(),
                position: bad.position(),
                reason: bad.kind().to_string(),
            });
            made.0.source = StdError::source(bad).map(Copied::boxed);
            return made;
        }
        let mut made = Self::new(ErrorKind::Failed);
        made.0.source = slot.map(|error| Box::new(error) as _);
        made
    }
}

/// A failure told in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Message(String);

/// An error as something that implements the standard trait.
struct Report(Error);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl StdError for Report {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source = self.0.source().map(|source| source as &(dyn StdError + 'static));
        match self.0.kind() {
            ErrorKind::Failed => source.and_then(StdError::source),
            _ => source,
        }
    }
}

/// What is left of a cause that was copied: its words, and those of its own causes.
#[derive(Debug)]
struct Copied {
    text: String,
    source: Option<Box<Self>>,
}

impl Copied {
    fn boxed(error: &(dyn StdError + 'static)) -> Box<dyn StdError + Send + Sync> {
        let below: Vec<_> = causes(error.source()).map(text_of).collect();
        let source = below.into_iter().rfold(None, |source, text| Some(Box::new(Self { text, source })));
        Box::new(Self { text: text_of(error), source })
    }
}

/// An error and its causes, as far as they are looked at.
fn causes<'e>(
    first: Option<&'e (dyn StdError + 'static)>,
) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(first, |&error| error.source()).take(ERROR_CAUSES_MAX)
}

/// The text of an error of whatever kind. One that panics, or fails, while it is told is told so: a failure that cannot
/// be told would be lost, and whoever tells it with it.
pub(crate) fn text_of(error: &(dyn StdError + 'static)) -> String {
    let told = || {
        let mut text = String::new();
        let ended = fmt::Write::write_fmt(&mut text, format_args!("{error}"));
        ended.map(|()| text)
    };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(told)) {
        Ok(Ok(text)) => text,
        Ok(Err(fmt::Error)) | Err(_) => "an error whose text could not be told".to_owned(),
    }
}

/// Causes that came from elsewhere as words, the outermost first.
pub(crate) fn told_causes(
    lines: impl DoubleEndedIterator<Item = String>,
) -> Option<Box<dyn StdError + Send + Sync>> {
    let outermost = lines.rfold(None, |source, text| Some(Box::new(Copied { text, source })));
    outermost.map(|cause| cause as _)
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Copied {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, item) in self.0.iter().enumerate() {
            write!(f, "{}`{item}`", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

struct Arrows<'a>(&'a [String]);

impl fmt::Display for Arrows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if index == 0 { "" } else { " -> " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::num::ParseIntError);

    fn outer() -> Error {
        Error::from(Outer("x".parse::<u8>().unwrap_err()))
    }

    #[test]
    fn an_error_is_one_pointer() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }

    #[test]
    fn causes_survive_a_copy_and_a_standard_box() {
        let error = outer().context("charging").at_node("payments");
        assert_eq!(error.chain(), ["charging: outer", "invalid digit found in string"]);
        assert!(error.find_cause::<std::num::ParseIntError>().is_some());
        let copy = error.duplicate();
        assert_eq!(copy.chain(), error.chain());
        assert_eq!(copy.node_id(), Some("payments"));
        let boxed = error.into_std();
        assert_eq!(boxed.source().unwrap().to_string(), "invalid digit found in string");
        let report = boxed.downcast::<Report>().unwrap();
        let back = Error::from(*report);
        assert_eq!(back.node_id(), Some("payments"));
    }

    #[test]
    fn a_bad_pattern_keeps_its_kind_and_its_place() {
        let refused = crate::pattern::Pattern::parse("order..x").unwrap_err();
        let error = Error::from(refused.clone());
        assert_eq!((error.code(), error.to_string()), ("bad-pattern", refused.to_string()));
        assert!(matches!(error.kind(), ErrorKind::BadPattern { position: 6, .. }));
    }

    #[test]
    fn the_debug_form_has_the_place_and_the_causes() {
        let text = format!("{:?}", outer().at_node("payments"));
        assert_eq!(text, "outer [failed, node payments]\n  caused by: invalid digit found in string");
    }
}
