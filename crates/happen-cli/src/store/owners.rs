//! `happen nodes`: the nodes of a space over all its processes, which process has each, and what it listens to. Owns where
//! that is found: in the log, among those that are heard of, and in the process that has a folder.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use happen::control::{self, Answer, NodeOwner, Request};
use happen_nats::Address;
use serde_json::json;

use crate::failure::Failure;
use crate::output::Output;
use crate::store::doctor::{Holder, holder};
use crate::store::inbox::kept;
use crate::store::moment::Utc;
use crate::store::nodes::known;
use crate::store::opened::{Opened, channel};
use crate::store::presence::Presence;
use crate::store::table::Listing;
use crate::store::{Place, now_unix_ms, of_store};

/// `happen nodes`.
#[derive(Debug, Args)]
pub(crate) struct OwnersArguments {
    #[command(flatten)]
    place: Place,
}

/// What is known of a node beside its name.
#[derive(Debug, Default)]
struct Found {
    /// The process that has it, by the name that others hear or else that of the log.
    process: Option<String>,
    stands: Stands,
    /// Whether its flows survive its process; none when that is not known.
    is_durable: Option<bool>,
    /// What it listens to; none when that is not known.
    handles: Option<Vec<String>>,
}

/// Whether the process of a node is there.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stands {
    Runs,
    /// It has not said that it goes, and is not heard of.
    Silent,
    #[default]
    Gone,
}

impl Stands {
    fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Silent => "silent",
            Self::Gone => "gone",
        }
    }
}

/// Prints the nodes.
///
/// # Errors
///
/// [`Failure::Store`] when the store cannot be read, or nobody can be asked who is there.
pub(crate) async fn run(arguments: &OwnersArguments, output: &Output) -> Result<(), Failure> {
    let store = arguments.place.open_to_read().await?;
    let nodes = match store.address() {
        Address::Folder(folder) => in_folder(&store, folder).await?,
        _ => over_processes(&store).await?,
    };
    let kept = kept(&store, None).await?;
    let now_unix_ms = now_unix_ms();
    let mut page = Listing::new(&arguments.place, &["NODE", "PROCESS", "STANDS", "KEPT", "HANDLES"]);
    let mut nodes = nodes;
    // What is kept for a node that nobody knows is just what somebody looks for.
    for node in kept.keys() {
        nodes.entry(node.clone()).or_default();
    }
    for (node, found) in &nodes {
        let kept = kept.get(node);
        let row = || {
            let kept = kept.map_or_else(String::new, |kept| kept.text(now_unix_ms));
            let handles = found.handles.as_deref().unwrap_or_default().join(" ");
            let process = found.process.clone().unwrap_or_else(|| "-".to_owned());
            [node.clone(), process, found.stands.name().to_owned(), kept, handles]
        };
        page.push(row, || {
            json!({
                "node": node,
                "process": found.process,
                "stands": found.stands.name(),
                "durable": found.is_durable,
                "handles": found.handles,
                "kept": kept.map_or(0, |kept| kept.events),
                "kept_since": kept.map(|kept| Utc(kept.since_unix_ms).to_string()),
                "kept_first": kept.and_then(|kept| kept.first).map(|event| event.to_string()),
            })
        });
    }
    page.write(output).map(drop)
}

/// The nodes of a log and of all processes that are heard of.
async fn over_processes(store: &Opened) -> Result<BTreeMap<String, Found>, Failure> {
    let failed = |error| of_store(store.address(), &error);
    let owners = control::owners(&store.shared()).await.map_err(failed)?;
    let mut nodes = BTreeMap::new();
    // There may be processes of which the log knows nothing.
    if let Some(presence) = Presence::join(store, |_| false).await? {
        for heard in presence.nodes() {
            let found = nodes.entry(heard.id).or_insert_with(|| Found {
                process: Some(heard.member),
                stands: Stands::Runs,
                is_durable: Some(false),
                handles: Some(Vec::new()),
            });
            found.handles.get_or_insert_default().extend(heard.handles);
        }
        for owner in &owners {
            let found = nodes.entry(owner.node.clone()).or_default();
            *found = of_owner(owner, presence.of(&owners, owner));
        }
        presence.leave().await.map_err(failed)?;
    }
    Ok(nodes)
}

fn of_owner(owner: &NodeOwner, heard: Option<String>) -> Found {
    let stands = match (&heard, owner.has_gone) {
        (Some(_), _) => Stands::Runs,
        (None, false) => Stands::Silent,
        (None, true) => Stands::Gone,
    };
    Found {
        process: Some(heard.unwrap_or_else(|| owner.process.clone())),
        stands,
        is_durable: Some(true),
        handles: Some(owner.handles.clone()),
    }
}

/// The nodes that a folder knows, and those of the process that has it.
async fn in_folder(store: &Opened, folder: &Path) -> Result<BTreeMap<String, Found>, Failure> {
    let process = match holder(folder)? {
        Holder::Nobody => None,
        Holder::Process(pid) => Some(pid.map_or_else(|| "another".to_owned(), |pid| pid.to_string())),
    };
    let mut nodes: BTreeMap<_, _> =
        known(store).await?.into_keys().map(|node| (node, Found::default())).collect();
    let failed = |error| of_store(store.address(), &error);
    let Some(mut client) = channel(folder)? else { return Ok(nodes) };
    let Answer::Stats(stats) = client.ask(&Request::Stats).await.map_err(failed)? else { return Ok(nodes) };
    for node in stats.nodes {
        let (process, is_durable) = (process.clone(), Some(node.is_durable));
        nodes.insert(node.node, Found { process, stands: Stands::Runs, is_durable, handles: None });
    }
    Ok(nodes)
}
