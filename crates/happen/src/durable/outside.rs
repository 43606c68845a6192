//! Changes of documents from outside of steps: of a durable node's state, with a record that says so, and of the
//! runtime's own documents, with what belongs to them; and the empty one that shows how far the log is read. Each is a
//! commit of its own.

use std::sync::Arc;

use happen_core::codec::{WireChange, WireRecord};
use happen_core::limits::RECORD_BYTES_MAX;
use happen_core::store::{Batch, NewRecord, Tag};
use happen_core::{Error, Result, State};

use super::Durable;
use super::commit::Ticket;
use super::document::{Applied, Document, Staged, Staging, is_conflict};
use crate::limits;
use crate::node::NodeInner;
use crate::space::{Space, SpaceInner};

/// Commits what was staged for documents of one node.
///
/// # Errors
///
/// What a function refuses with, a conflict that does not end, and what the store says.
pub(crate) async fn commit(node: &Arc<NodeInner>, mut documents: Vec<Box<dyn Staged>>) -> Result<()> {
    let Some(durable) = &node.space.durable else {
        return Err(Error::misuse("a durable node without a store; please report this"));
    };
    documents.sort_by(|a, b| a.key().cmp(b.key()));
    let mut tries = 0;
    loop {
        for staged in &documents {
            staged.load().await?;
        }
        let Some(ticket) = build(node, &mut documents)? else { continue };
        let result = durable.commits.settle(ticket).await;
        documents.iter_mut().for_each(|staged| staged.settle(result.is_ok()));
        match result {
            Ok(_) => return Ok(()),
            Err(error) if is_conflict(&error) && tries < limits::COMMIT_TRIES_MAX => {
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

impl Space {
    /// Waits until this process can read whatever was committed before the call, by whichever process.
    ///
    /// Over a log that several processes write each reads what it has of it, which is behind by as long as an entry takes
    /// to come, or longer after it was cut off. Who was told of something by another way than the log, and reads what it
    /// says now, waits for it here first. Elsewhere there is nothing to wait for.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](happen_core::ErrorKind::Io) when the log cannot be reached,
    /// [`ErrorKind::Closed`](happen_core::ErrorKind::Closed) when another process has taken over what this one had;
    /// otherwise as the store says.
    ///
    /// # Cost
    ///
    /// An empty commit, in a log that several processes write.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let space = happen::Space::memory();
    /// space.catch_up().await?;
    /// let stock = space.global().get::<u64>("stock").await?;
    /// # assert!(stock.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn catch_up(&self) -> Result<()> {
        self.inner().catch_up().await
    }
}

impl SpaceInner {
    pub(crate) async fn catch_up(&self) -> Result<()> {
        match self.durable.as_ref().filter(|durable| durable.is_shared()) {
            Some(durable) => durable.commits.pass().await,
            None => Ok(()),
        }
    }
}

/// Builds the batch while its documents are held; `None` when one of them has to be read again.
fn build(node: &Arc<NodeInner>, documents: &mut [Box<dyn Staged>]) -> Result<Option<Ticket>> {
    let Some(durable) = &node.space.durable else { return Ok(None) };
    let keys: Vec<_> = documents.iter().map(|staged| Arc::clone(staged.key())).collect();
    let mut held: Vec<_> = documents.iter_mut().map(|staged| staged.hold()).collect();
    if !held.iter().all(|document| document.is_loaded()) {
        return Ok(None);
    }
    let mut batch = Batch::default();
    let mut changes = Vec::new();
    let built = held.iter_mut().zip(&keys).try_for_each(|(document, key)| {
        let mut events = Vec::new();
        let Applied { write, condition } = document.apply(&mut events)?;
        if !events.is_empty() {
            return Err(Error::misuse(
                "events follow from a change inside a handler; from outside, send them yourself",
            ));
        }
        batch.conditions.extend(condition);
        if let Some(write) = write {
            changes.push(WireChange { key: key.to_string().into(), revision: write.revision });
            batch.documents.push(write);
        }
        Ok(())
    });
    let record = WireRecord { changes, ..WireRecord::default() };
    let mut bytes = Vec::new();
    let encoded = built.and_then(|()| record.encode_into(&mut bytes, RECORD_BYTES_MAX));
    let tags = vec![Tag::Node(Arc::clone(&node.name))];
    batch.records.push(NewRecord { tags, bytes: bytes.into() });
    if let Err(error) = encoded.and_then(|()| batch.check()) {
        held.iter_mut().for_each(|document| document.forget());
        return Err(error);
    }
    held.iter_mut().for_each(|document| document.adopt());
    Ok(Some(durable.commits.push(batch)))
}

/// A change of one document on its way, with what belongs to it.
#[must_use = "nobody carries it unless it is waited for"]
pub(super) struct Pending<S> {
    staging: Staging<S>,
    ticket: Ticket,
}

/// Changes one document of the runtime's own, and commits with it what `add` puts into the batch. It is told the change as
/// a record tells it.
///
/// # Errors
///
/// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) when the document has another revision than is asked for, what the
/// functions give, and what the store says.
pub(super) async fn change<S: State>(
    durable: &Arc<Durable>,
    document: &Arc<Document<S>>,
    at: Option<u64>,
    change: impl Fn(S) -> Result<S> + Send + Sync + 'static,
    mut add: impl FnMut(&mut Batch, WireChange<'_>) -> Result<()>,
) -> Result<()> {
    let change = Arc::new(change);
    let mut tries = 0;
    loop {
        let again = Arc::clone(&change);
        let pending = hand_on(durable, document, at, move |value| again(value), &mut add).await?;
        match pending.settle(durable).await {
            Err(error) if at.is_none() && is_conflict(&error) && tries < limits::COMMIT_TRIES_MAX => {
                tries += 1;
            }
            result => return result,
        }
    }
}

/// Hands such a change on, behind all that were handed on before.
///
/// # Errors
///
/// As [`change`], but for what the store says to the commit.
pub(super) async fn hand_on<S: State>(
    durable: &Arc<Durable>,
    document: &Arc<Document<S>>,
    at: Option<u64>,
    change: impl Fn(S) -> Result<S> + Send + Sync + 'static,
    mut add: impl FnMut(&mut Batch, WireChange<'_>) -> Result<()>,
) -> Result<Pending<S>> {
    document.read().await?;
    let mut staging = Staging::new(Arc::clone(document))?;
    if let Some(revision) = at {
        staging.expect(revision)?;
    }
    staging.change(Box::new(move |value, _| change(value)))?;
    loop {
        if let Some(ticket) = build_one(durable, &mut staging, &mut add)? {
            return Ok(Pending { staging, ticket });
        }
        // A commit that failed meanwhile has left open what the store has.
        document.read().await?;
    }
}

impl<S: State> Pending<S> {
    /// Waits until it is committed or not.
    ///
    /// # Errors
    ///
    /// What the store says.
    pub(super) async fn settle(self, durable: &Arc<Durable>) -> Result<()> {
        let Self { mut staging, ticket } = self;
        let result = durable.commits.settle(ticket).await;
        staging.settle(result.is_ok());
        result.map(drop)
    }
}

fn build_one<S: State>(
    durable: &Durable,
    staging: &mut Staging<S>,
    add: &mut impl FnMut(&mut Batch, WireChange<'_>) -> Result<()>,
) -> Result<Option<Ticket>> {
    let key = Arc::clone(staging.key());
    let mut held = staging.hold();
    if !held.is_loaded() {
        return Ok(None);
    }
    let mut batch = Batch::default();
    let built = held.apply(&mut Vec::new()).and_then(|Applied { write, condition }| {
        batch.conditions.extend(condition);
        let revision = write.as_ref().map_or(0, |write| write.revision);
        batch.documents.extend(write);
        add(&mut batch, WireChange { key: (&*key).into(), revision })?;
        batch.check()
    });
    if let Err(error) = built {
        held.forget();
        return Err(error);
    }
    held.adopt();
    Ok(Some(durable.commits.push(batch)))
}
