//! What is done by hand to a log whose nodes may belong to processes that run. Owns who has a node and what a batch has to
//! have so that it counts only while nobody goes on with it; does not know what the batches do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use happen_core::limits::PAGE_RECORDS_MAX;
use happen_core::store::{Batch, Condition, Key, List, Store};
use happen_core::{Error, Result};

use super::by_hand::deletion;
use super::keys::{OWNERS, PROCESSES, name_of, named};
use super::owners::{StoredOwner, StoredProcess};
use crate::space::SpaceInner;

/// Which process has a durable node of a log that several write.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeOwner {
    /// The id of the node.
    pub node: String,
    /// The process, by the name that it has in the log.
    pub process: String,
    /// Whether it has said that it goes, or others have taken over what it had.
    pub has_gone: bool,
    /// The patterns that the node handles.
    pub handles: Vec<String>,
}

/// By what name a durable node's process is heard of at this moment; `None` when it is not.
pub type Heard<'h> = dyn Fn(&str) -> Option<String> + Sync + 'h;

/// Who may have nodes of a log beside whoever does something to it by hand.
#[derive(Clone, Copy)]
pub(crate) enum Others<'h> {
    /// Nobody: the store is not shared.
    Nobody,
    /// Every process that has not said that it goes.
    Logged,
    /// Those that are heard of.
    Heard(&'h Heard<'h>),
    /// Those that are heard of beyond the link of this space, and can be asked there.
    Linked(&'h Arc<SpaceInner>),
}

impl<'h> Others<'h> {
    /// Those beside whoever has this store, as far as can be told.
    pub(crate) fn of(store: &dyn Store, heard: Option<&'h Heard<'h>>) -> Self {
        match (store.is_shared(), heard) {
            (false, _) => Self::Nobody,
            (true, None) => Self::Logged,
            (true, Some(heard)) => Self::Heard(heard),
        }
    }

    pub(crate) const fn is_nobody(self) -> bool {
        matches!(self, Self::Nobody)
    }
}

/// The key of the document that stands for the process that has a node; `None` when none has it that has not said that it
/// goes.
///
/// # Errors
///
/// What the store says, and when a document cannot be read.
pub(crate) async fn process_of(store: &Arc<dyn Store>, node: &str) -> Result<Option<Key>> {
    let found = store.document(&named(OWNERS, node)).await?;
    let owner = found.as_ref().map(StoredOwner::of).transpose()?.flatten();
    let Some((process, _)) = owner.map(StoredOwner::into_parts) else { return Ok(None) };
    let process: Key = process.into();
    let there = store.document(&process).await?;
    Ok(there.filter(|document| document.content.is_some()).map(|_| process))
}

/// Which process has which durable node, by node.
///
/// # Errors
///
/// What the store says, and when a document cannot be read.
pub(crate) async fn owners_in(store: &Arc<dyn Store>) -> Result<Vec<NodeOwner>> {
    let (mut owners, mut after): (Vec<NodeOwner>, Option<Key>) = (Vec::new(), None);
    loop {
        let list = List { prefix: OWNERS.into(), after, documents_max: PAGE_RECORDS_MAX };
        let page = store.list(list).await?;
        let Some(last) = page.last() else { break };
        after = Some(Arc::clone(&last.key));
        for document in &page {
            let Some(owner) = StoredOwner::of(document)? else { continue };
            let (process, handles) = owner.into_parts();
            owners.push(NodeOwner {
                node: name_of(&document.key, OWNERS).into_owned(),
                process,
                has_gone: true,
                handles,
            });
        }
    }
    let processes: BTreeSet<Key> = owners.iter().map(|owner| owner.process.as_str().into()).collect();
    let processes: Vec<Key> = processes.into_iter().collect();
    let mut there = BTreeMap::new();
    for some in processes.chunks(PAGE_RECORDS_MAX) {
        for (key, found) in some.iter().zip(store.documents(some.to_vec()).await?) {
            there.insert(Arc::clone(key), found.is_some_and(|document| document.content.is_some()));
        }
    }
    for owner in &mut owners {
        owner.has_gone = !there.get(owner.process.as_str()).copied().unwrap_or_default();
        owner.process = name_of(&owner.process, PROCESSES).into_owned();
    }
    owners.sort_unstable_by(|a, b| a.node.cmp(&b.node));
    Ok(owners)
}

/// Has a batch about a node count only when no process goes on with the node but this one, if it is one: with the condition
/// that it changes hands with nobody meanwhile, and with the end of a process that has it and is not heard of. From there
/// on nothing of that process counts, as when another one had taken the node over.
///
/// # Errors
///
/// - [`ErrorKind::Misuse`](happen_core::ErrorKind::Misuse): the process that has the node is heard of.
/// - What the store says.
pub(crate) async fn guarded(
    store: &Arc<dyn Store>,
    others: Others<'_>,
    own: Option<&Key>,
    node: &str,
    mut batch: Batch,
) -> Result<Batch> {
    if others.is_nobody() {
        return Ok(batch);
    }
    let key = named(OWNERS, node);
    let found = store.document(&key).await?;
    let revision = found.as_ref().map_or(0, |document| document.revision);
    let owner = found.as_ref().map(StoredOwner::of).transpose()?.flatten();
    let process = owner.map(|owner| Key::from(owner.into_parts().0));
    if process.is_some() && process.as_ref() == own {
        // Whatever this process commits counts only as long as nobody took its nodes over.
        return Ok(batch);
    }
    batch.conditions.push(Condition::Revision { key, revision });
    let Some(process) = process else { return Ok(batch) };
    let Some(there) = store.document(&process).await?.filter(|document| document.content.is_some()) else {
        return Ok(batch);
    };
    let name = name_of(&process, PROCESSES);
    let member = match others {
        Others::Heard(heard) => {
            // One of its nodes may be so new that nobody has heard of it.
            let all = owners_in(store).await?;
            let its = all.iter().filter(|owner| owner.process == name).map(|owner| owner.node.as_str());
            its.chain([node]).find_map(heard)
        }
        Others::Linked(space) => {
            StoredProcess::member_in(&there)?.filter(|member| space.hears_member(member))
        }
        _ => Some(name.into_owned()),
    };
    if let Some(member) = member {
        return Err(Error::misuse(format!(
            "node `{node}` belongs to the process `{member}`, which runs and would not see the change; ask that process, \
             or stop it first"
        )));
    }
    batch.documents.push(deletion(&there));
    Ok(batch)
}
