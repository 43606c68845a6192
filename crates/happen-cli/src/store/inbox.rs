//! Events that are kept for nodes: sent while no process had the store, and not begun by one since; or sent to nodes of
//! other processes that have not taken them in. Owns where they are and how they are told; does not know why.

use std::collections::BTreeMap;
use std::path::Path;

use happen::EventId;
use happen::control::{Answer, Client, Request};
use happen::journal::Journal;
use happen::store::List;

use crate::failure::Failure;
use crate::output::{count_of, number};
use crate::store::key::{escaped, plain};
use crate::store::moment::span;
use crate::store::of_store;
use crate::store::opened::Opened;

/// The events that are kept for one node.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) events: u64,
    /// When the oldest was kept.
    pub(crate) since_unix_ms: u64,
    /// The oldest; none when its document names no event.
    pub(crate) first: Option<EventId>,
}

/// The events that are kept, by node; for the one node, when it is named.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn kept(store: &Opened, node: Option<&str>) -> Result<BTreeMap<String, Kept>, Failure> {
    let prefix = node.map_or_else(|| INBOX.to_owned(), |node| format!("{INBOX}{}/", escaped(node)));
    let (mut nodes, mut after) = (BTreeMap::<String, Kept>::new(), None);
    loop {
        let list = List { prefix: prefix.as_str().into(), after, documents_max: usize::MAX };
        let page = store.list(list).await.map_err(|error| of_store(store.address(), &error))?;
        let Some(last) = page.last() else { return Ok(nodes) };
        after = Some(last.key.clone());
        for document in &page {
            let (node, event) = document.key[INBOX.len()..].split_once('/').unwrap_or_default();
            let kept = nodes.entry(plain(node)).or_default();
            let (since, first) = (document.at_unix_ms, event.parse().ok());
            // Of those of one moment the one that was sent first.
            if kept.events == 0 || (since, first) < (kept.since_unix_ms, kept.first) {
                (kept.since_unix_ms, kept.first) = (since, first);
            }
            kept.events += 1;
        }
    }
}

/// The events that wait for nodes of other processes, by node.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn waiting(store: &Opened, journal: &Journal) -> Result<BTreeMap<String, Kept>, Failure> {
    let outboxes = journal.outboxes().await.map_err(|error| of_store(store.address(), &error))?;
    let waiting = outboxes.into_iter().map(|outbox| {
        (outbox.node, Kept { events: outbox.events, since_unix_ms: outbox.since_unix_ms, first: None })
    });
    Ok(waiting.collect())
}

impl Kept {
    /// In a few words: how many wait, and for how long.
    pub(crate) fn waiting_text(&self, now_unix_ms: u64) -> String {
        let age = span(now_unix_ms.saturating_sub(self.since_unix_ms));
        format!("{} waiting {age}", number(self.events))
    }

    /// In a few words: how many, for how long, and the oldest.
    pub(crate) fn text(&self, now_unix_ms: u64) -> String {
        let age = span(now_unix_ms.saturating_sub(self.since_unix_ms));
        let first = self.first.map_or_else(String::new, |event| format!(" {event}"));
        format!("{} kept {age}{first}", number(self.events))
    }

    /// In a sentence about a node.
    pub(crate) fn of(&self, node: &str, now_unix_ms: u64) -> String {
        let age = span(now_unix_ms.saturating_sub(self.since_unix_ms));
        let first = self.first.map_or_else(String::new, |event| format!(", {event},"));
        format!("{} for `{node}`, the oldest{first} since {age}", count_of(self.events, "event"))
    }
}

/// The nodes of the space that runs in a folder, as far as it names them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Registered {
    /// It does not run, cannot be asked, or has more nodes than it names.
    Unknown,
    These(Vec<String>),
}

impl Registered {
    /// Asks the space.
    pub(crate) async fn of(folder: &Path) -> Self {
        // Who cannot be asked tells nothing, which is no failure of what is looked at here.
        let Ok(Some(mut client)) = Client::connect(folder) else { return Self::Unknown };
        match client.ask(&Request::Stats).await {
            Ok(Answer::Stats(stats)) if stats.nodes.len() as u64 == stats.nodes_len => {
                Self::These(stats.nodes.into_iter().map(|node| node.node).collect())
            }
            _ => Self::Unknown,
        }
    }
}

/// What the documents of kept events begin with, as `docs/format.md` has it.
pub(crate) const INBOX: &str = "inbox/";
