//! The store of a space in memory: what was committed, and beside it the documents of its nodes, which live as values
//! and are encoded when somebody asks. Owns how the two are shown as one; does not know the types of the values.

use std::sync::Arc;

use happen_core::env::{BoxFuture, Env};
use happen_core::store::{
    Batch, Committed, Condition, Document, History, Key, List, Page, Position, Prune, Pruned, Read, Select,
    Store, Until, Watch,
};
use happen_core::{Error, Result};

use super::memory::{MemoryStore, page};
use crate::pure;
use crate::state::{Home, Live, Name, Snapshot};

/// What a space in memory remembers.
///
/// A document of a node was changed by the node and not by a commit, so its position is [`Position::START`] and it has
/// no past revisions. Only its node writes it: a batch that writes it, or depends on it, is refused.
pub(crate) struct SpaceStore {
    memory: MemoryStore,
    homes: papaya::HashMap<Arc<str>, Arc<Home>>,
}

impl SpaceStore {
    pub(crate) fn new(env: Arc<dyn Env>) -> Self {
        Self { memory: MemoryStore::new(env), homes: papaya::HashMap::new() }
    }

    /// Where the documents of the nodes with this id live.
    pub(crate) fn home(&self, node: &Arc<str>) -> Arc<Home> {
        Arc::clone(self.homes.pin().get_or_insert_with(Arc::clone(node), || Arc::new(Home::new())))
    }

    fn live(&self, key: &str) -> Option<Arc<dyn Live>> {
        let name = Name::of(key)?;
        self.homes.pin().get(&*name.node)?.find(&name)
    }

    /// Documents at one moment: those that live are kept from changing while all are looked at.
    fn documents_now(&self, keys: &[Key]) -> Result<Vec<Option<Document>>> {
        // A function that changes a state holds its document already.
        pure::check("read documents")?;
        let find = || -> Vec<Option<Arc<dyn Live>>> { keys.iter().map(|key| self.live(key)).collect() };
        let mut live = find();
        let (committed, snapshots) = loop {
            let mut all: Vec<&Arc<dyn Live>> = live.iter().flatten().collect();
            // Everybody who holds several takes them in this order, so nobody waits for another one in a circle.
            all.sort_unstable_by_key(|live| address(live));
            all.dedup_by_key(|live| address(live));
            let held: Vec<_> = all.iter().map(|live| live.hold()).collect();
            let committed = self.memory.documents_now(keys);
            // What was not there could not be held. If it is there now, others may have changed what was held later
            // than it came; each turn more means that somebody made a document meanwhile.
            let now = find();
            let same = live.iter().zip(&now).all(|pair| match pair {
                (Some(before), Some(now)) => address(before) == address(now),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            });
            if same {
                let snapshot = |live: &Option<Arc<dyn Live>>| live.as_ref().map(|live| live.snapshot());
                break (committed, live.iter().map(snapshot).collect::<Vec<_>>());
            }
            drop(held);
            live = now;
        };
        let shown = keys.iter().zip(snapshots).zip(committed);
        shown
            .map(|((key, snapshot), committed)| match snapshot {
                Some(snapshot) => document(key, &*snapshot),
                None => Ok(committed),
            })
            .collect()
    }

    fn list_live(&self, list: &List) -> Result<Vec<Document>> {
        let mut found: Vec<(Key, Arc<dyn Snapshot>)> = Vec::new();
        for (node, home) in &self.homes.pin() {
            home.each(node, &mut |name, live| {
                let key = name.to_key();
                let behind = list.after.as_ref().is_none_or(|after| key > *after);
                let snapshot = live.snapshot();
                if behind && key.starts_with(&*list.prefix) && snapshot.revision() > 0 {
                    found.push((key, snapshot));
                }
            });
        }
        found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        found.truncate(list.documents_max.min(happen_core::limits::PAGE_RECORDS_MAX));
        let documents = found.iter().map(|(key, snapshot)| document(key, &**snapshot));
        Ok(documents.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    async fn list_all(&self, list: List) -> Result<Vec<Document>> {
        let live = self.list_live(&list)?;
        let max = list.documents_max;
        let committed = self.memory.list(list).await?;
        // The committed ones may be the beginning of a longer list, so the two are not mixed: whichever begins comes
        // first, up to where the other one begins.
        let (Some(first_live), Some(first_committed)) = (live.first(), committed.first()) else {
            return Ok(page(live.iter().chain(&committed), max));
        };
        let (first, limit) = if first_live.key < first_committed.key {
            (&live, &first_committed.key)
        } else {
            (&committed, &first_live.key)
        };
        Ok(page(first.iter().take_while(|document| document.key < *limit), max))
    }

    fn check(batch: &Batch) -> Result<()> {
        let written = batch.documents.iter().map(|write| &write.key);
        let named = batch.conditions.iter().filter_map(|condition| match condition {
            Condition::Revision { key, .. } => Some(key),
            Condition::NoneAfter { .. } => None,
        });
        match written.chain(named).find(|key| Name::owns(key)) {
            None => Ok(()),
            Some(key) => Err(Error::misuse(format!(
                "document `{key}` belongs to a node of a space in memory, which changes it by `node.state()` alone"
            ))),
        }
    }
}

impl Store for SpaceStore {
    fn commit(&self, batches: Vec<Batch>) -> BoxFuture<'_, Vec<Result<Committed>>> {
        Box::pin(async move {
            let checked: Vec<Result<()>> = batches.iter().map(Self::check).collect();
            let allowed = batches.into_iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
            let allowed = allowed.map(|(batch, _)| batch).collect();
            let mut results = self.memory.commit(allowed).await.into_iter();
            let lost = || Err(Error::misuse("the store gave no result for a batch; please report this"));
            checked
                .into_iter()
                .map(|checked| match checked {
                    Ok(()) => results.next().unwrap_or_else(lost),
                    Err(error) => Err(error),
                })
                .collect()
        })
    }

    fn read(&self, read: Read) -> BoxFuture<'_, Result<Page>> {
        self.memory.read(read)
    }

    fn watch(&self, select: Select, after: Position) -> BoxFuture<'_, Result<Box<dyn Watch>>> {
        self.memory.watch(select, after)
    }

    fn documents(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Option<Document>>>> {
        Box::pin(async move { self.documents_now(&keys) })
    }

    fn document_now(&self, key: &Key) -> Option<Result<Option<Document>>> {
        Some(self.documents_now(std::slice::from_ref(key)).map(|mut found| found.pop().flatten()))
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Vec<Document>>> {
        Box::pin(self.list_all(list))
    }

    fn history(&self, history: History) -> BoxFuture<'_, Result<Vec<Document>>> {
        Box::pin(async move {
            let Some(live) = self.live(&history.key) else { return self.memory.history(history).await };
            let current = document(&history.key, &*live.snapshot())?;
            let selected = current.iter().filter(|document| match history.until {
                Until::Now | Until::At(_) => true,
                Until::Before(revision) => document.revision < revision,
            });
            Ok(page(selected, history.documents_max))
        })
    }

    fn prune(&self, prune: Prune) -> BoxFuture<'_, Result<Pruned>> {
        Box::pin(async move {
            let anchors = Batch { documents: prune.documents.clone(), ..Batch::default() };
            Self::check(&anchors)?;
            self.memory.prune(prune).await
        })
    }
}

fn document(key: &Key, snapshot: &dyn Snapshot) -> Result<Option<Document>> {
    let revision = snapshot.revision();
    if revision == 0 {
        return Ok(None);
    }
    Ok(Some(Document {
        key: Arc::clone(key),
        revision,
        position: Position::START,
        at_unix_ms: snapshot.at_unix_ms(),
        content: Some(snapshot.content()?),
    }))
}

fn address(live: &Arc<dyn Live>) -> *const () {
    Arc::as_ptr(live).cast()
}

impl std::fmt::Debug for SpaceStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} beside the documents of {} nodes", self.memory, self.homes.pin().len())
    }
}
