//! What the documents of durable flows are called. Owns the keys; does not know what the documents say.

use std::borrow::Cow;

use happen_core::EventId;
use happen_core::store::Key;

use crate::keys::{escaped, plain};

/// What flows under way are kept under.
pub(crate) const FLOWS: &str = "flow/";

/// What flows that failed for good are kept under.
pub(crate) const DEAD: &str = "dead/";

/// Keys that outside callers gave their events, for a while.
pub(crate) const SEEN: &str = "seen/";

/// Events that were sent while no process was there, until the next one takes them.
pub(crate) const INBOX: &str = "inbox/";

/// How far nodes of other processes have what waits for them here.
pub(crate) const OUTBOX: &str = "outbox/";

/// Events that nodes of other processes refused.
pub(crate) const REFUSED: &str = "refused/";

/// How far nodes have taken in what other spaces keep for them.
pub(crate) const TAKEN: &str = "taken/";

/// Events of histories that happened elsewhere, by their names there.
pub(crate) const IMPORTED: &str = "imported/";

/// Events that are to come at a time.
pub(crate) const TIMERS: &str = "timer/";

/// Those of them that have a key of the user's.
pub(crate) const KEYED_TIMERS: &str = "timer/key/";

/// Events that come again and again.
pub(crate) const SCHEDULES: &str = "schedule/";

/// What is told of records that were forgotten.
pub(crate) const ANCHOR: &str = "anchor/log";

/// Which process has which durable node, in a log that several write.
pub(crate) const OWNERS: &str = "owner/";

/// The processes that write such a log.
pub(crate) const PROCESSES: &str = "process/";

/// Who the space is.
pub(crate) const IDENTITY: &str = "space/identity";

/// A flow, as its documents are called: `<node>/<event>/<registration>` behind their prefix, with `/` in names as `%2F`
/// and `%` as `%25`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FlowKey<'k> {
    pub(crate) node: Cow<'k, str>,
    pub(crate) event: EventId,
    pub(crate) registration: Cow<'k, str>,
}

impl<'k> FlowKey<'k> {
    pub(crate) fn key(&self, prefix: &str) -> Key {
        let (node, registration) = (escaped(&self.node), escaped(&self.registration));
        format!("{prefix}{node}/{}/{registration}", self.event).into()
    }

    /// The flow that a key with this prefix names; `None` when it is no such key.
    pub(crate) fn of(key: &'k str, prefix: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(prefix)?.split('/');
        let (node, event, registration) = (parts.next()?, parts.next()?, parts.next()?);
        let event = event.parse().ok()?;
        parts.next().is_none().then(|| Self { node: plain(node), event, registration: plain(registration) })
    }
}

/// The document of a name of any text under this prefix.
pub(crate) fn named(prefix: &str, name: &str) -> Key {
    format!("{prefix}{}", escaped(name)).into()
}

/// The name of such a document.
pub(crate) fn name_of<'k>(key: &'k str, prefix: &str) -> Cow<'k, str> {
    plain(key.strip_prefix(prefix).unwrap_or(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_text_come_back_from_their_keys() {
        let event: EventId = "0197a5d0-7c00-7000-8000-000000000001".parse().unwrap();
        for text in ["a", "a/b", "%2F", "validate#2", "tenant:acme/ä", "{{closure}}"] {
            let name = FlowKey { node: text.into(), event, registration: text.into() };
            for prefix in [FLOWS, DEAD] {
                assert_eq!(FlowKey::of(&name.key(prefix), prefix).as_ref(), Some(&name), "{text}");
            }
        }
        for other in ["", "flow/", "flow/a/b/c", "flow/a/0197a5d0-7c00-7000-8000-000000000001", "state/a/b"] {
            assert_eq!(FlowKey::of(other, FLOWS), None, "{other}");
        }
    }
}
