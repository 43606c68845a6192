//! `happen ps`: the nodes that a store knows of, and how much each has to do. Owns where nodes are looked for: among the
//! keys of documents and in the newest records.

use std::collections::BTreeMap;

use clap::Args;
use happen::store::{List, Read, Record, Select, Start, Tag};
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::output::{Output, number};
use crate::store::inbox::{INBOX, kept, waiting};
use crate::store::key::{ENTITY, STATE, escaped, plain};
use crate::store::moment::Utc;
use crate::store::opened::Opened;
use crate::store::table::Listing;
use crate::store::tail::first;
use crate::store::upkeep::position_json;
use crate::store::{Place, journal, now_unix_ms, of_store};

/// `happen ps`.
#[derive(Debug, Args)]
pub(crate) struct NodesArguments {
    /// Only this node
    #[arg(long, value_name = "N")]
    node: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// Prints the nodes.
///
/// # Errors
///
/// [`Failure::NotFound`] when the node that was named is not known, [`Failure::Store`] for the rest.
pub(crate) async fn run(arguments: &NodesArguments, output: &Output) -> Result<(), Failure> {
    let (store, journal) = journal(&arguments.place).await?;
    let waiting = waiting(&store, &journal).await?;
    let nodes = match &arguments.node {
        Some(node) => BTreeMap::from([(node.clone(), None)]),
        None => {
            let mut nodes = known(&store).await?;
            for node in waiting.keys() {
                nodes.entry(node.clone()).or_insert(None);
            }
            nodes
        }
    };
    let kept = kept(&store, arguments.node.as_deref()).await?;
    let now_unix_ms = now_unix_ms();
    let mut page = Listing::new(&arguments.place, &["NODE", "FLOWS", "DEAD", "LAST", "TYPE", "KEPT"]);
    for (node, seen) in nodes.iter().take(NODES_MAX) {
        let last = match seen {
            Some(record) => Some(record.clone()),
            None => last(&store, node).await?,
        };
        let flows = count(&store, &format!("flow/{}/", escaped(node))).await?;
        let dead = count(&store, &format!("dead/{}/", escaped(node))).await?;
        let event = last.as_ref().and_then(|record| first(record, |tag| matches!(tag, Tag::Event(_))));
        if arguments.node.is_some()
            && last.is_none()
            && flows + dead == 0
            && kept.is_empty()
            && !waiting.contains_key(node)
            && !has_documents(&store, node).await?
        {
            return Err(Failure::NotFound(format!(
                "no node `{node}` is known to this store; `happen ps` lists those that are"
            )));
        }
        let name = last.as_ref().and_then(|record| first(record, |tag| matches!(tag, Tag::Type(_))));
        let (kept, waiting) = (kept.get(node), waiting.get(node));
        let row = || {
            let at = last.as_ref().map_or_else(String::new, |record| Utc(record.at_unix_ms).short());
            let kept = [
                kept.map(|kept| kept.text(now_unix_ms)),
                waiting.map(|waiting| waiting.waiting_text(now_unix_ms)),
            ];
            let kept = kept.into_iter().flatten().collect::<Vec<_>>().join(", ");
            [node.clone(), number(flows), number(dead), at, name.clone().unwrap_or_default(), kept]
        };
        page.push(row, || {
            json!({
                "node": node,
                "flows": flows,
                "dead": dead,
                "last_at": last.as_ref().map(|record| Utc(record.at_unix_ms).to_string()),
                "last_event": event,
                "last_type": name,
                "last_position": last.as_ref().map_or(Json::Null, |record| position_json(record.position)),
                "kept": kept.map_or(0, |kept| kept.events),
                "kept_since": kept.map(|kept| Utc(kept.since_unix_ms).to_string()),
                "waiting": waiting.map_or(0, |waiting| waiting.events),
                "waiting_since": waiting.map(|waiting| Utc(waiting.since_unix_ms).to_string()),
                "kept_first": kept.and_then(|kept| kept.first).map(|event| event.to_string()),
            })
        });
    }
    page.write(output)?;
    if nodes.len() > NODES_MAX {
        return Err(Failure::Store(format!(
            "there are more than {} nodes, and the others are not shown; name one with --node",
            number(NODES_MAX as u64)
        )));
    }
    Ok(())
}

/// The nodes that have documents, flows or events that are kept for them, and those of the newest records, each with its
/// newest record when it is among those.
pub(crate) async fn known(store: &Opened) -> Result<BTreeMap<String, Option<Record>>, Failure> {
    let mut nodes = BTreeMap::new();
    for prefix in PREFIXES {
        let mut after = None;
        while nodes.len() <= NODES_MAX {
            let list = List { prefix: prefix.into(), after, documents_max: 1 };
            let found = store.list(list).await.map_err(|error| of_store(store.address(), &error))?;
            let Some(document) = found.first() else { break };
            let part = document.key[prefix.len()..].split('/').next().unwrap_or_default();
            nodes.insert(plain(part), None);
            // `0` comes behind `/`, so this is behind all keys of the node and before those of all others.
            after = Some(format!("{prefix}{part}0").into());
        }
    }
    let mut read = Read::backward(Select::All);
    let mut looked_at = 0;
    while looked_at < RECORDS_MAX && nodes.len() <= NODES_MAX {
        let page = store.read(read.clone()).await.map_err(|error| of_store(store.address(), &error))?;
        looked_at += page.records.len();
        for record in page.records {
            let names = record.tags.iter().filter_map(|tag| match tag {
                Tag::Node(name) | Tag::Sender(name) => Some((name.to_string(), matches!(tag, Tag::Node(_)))),
                _ => None,
            });
            for (name, is_handling) in names.collect::<Vec<_>>() {
                let seen = nodes.entry(name).or_insert(None);
                if is_handling && seen.is_none() {
                    *seen = Some(record.clone());
                }
            }
        }
        let Some(next) = page.next else { break };
        read = read.start(Start::Position(next));
    }
    Ok(nodes)
}

/// The newest record of what a node handled.
async fn last(store: &Opened, node: &str) -> Result<Option<Record>, Failure> {
    let read = Read::backward(Select::tag(Tag::Node(node.into()))).at_most(1);
    let page = store.read(read).await.map_err(|error| of_store(store.address(), &error))?;
    Ok(page.records.into_iter().next())
}

async fn has_documents(store: &Opened, node: &str) -> Result<bool, Failure> {
    for prefix in [STATE, ENTITY] {
        let list =
            List { prefix: format!("{prefix}{}/", escaped(node)).into(), after: None, documents_max: 1 };
        if !store.list(list).await.map_err(|error| of_store(store.address(), &error))?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How many documents have a key that begins so.
pub(crate) async fn count(store: &Opened, prefix: &str) -> Result<u64, Failure> {
    let (mut count, mut after) = (0, None);
    loop {
        let list = List { prefix: prefix.into(), after, documents_max: usize::MAX };
        let page = store.list(list).await.map_err(|error| of_store(store.address(), &error))?;
        let Some(last) = page.last() else { return Ok(count) };
        count += page.len() as u64;
        after = Some(last.key.clone());
    }
}

/// What the keys of documents begin with that belong to a node.
const PREFIXES: [&str; 5] = [STATE, ENTITY, "flow/", "dead/", INBOX];
/// Nodes that are shown: more than anybody reads, and few enough to be counted in a second or so.
const NODES_MAX: usize = 10_000;
/// The newest records among which nodes are looked for that have no documents.
const RECORDS_MAX: usize = 10_000;
