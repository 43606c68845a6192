//! Making a state again what it was. Owns the event that tells of it; what the past was is the journal's to say.

use happen_core::{Error, ErrorKind, Event, Result, State, state};

use super::{Place, StateOf};
use crate::journal::At;
use crate::node::Node;

impl<S: State> StateOf<'_, S> {
    /// Makes the state of a durable node again what it was then, as a new revision, and broadcasts `state-rebuilt` from the
    /// node, with `node`, `document`, `revision` and `from`, the revision that it is again.
    ///
    /// What was done since stays in the past of the state and in the log; what others made of it is theirs.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::NotFound`] when the past of the state does not reach so far back.
    /// - [`ErrorKind::Misuse`] for an ephemeral node, whose state has no past, and inside a step.
    /// - As [`StateOf::commit`].
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::journal::At;
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Stock { apples: u32 }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// let space = happen::Space::open(folder.path()).await?;
    /// let shop = space.node("shop");
    /// space.start().await?;
    /// shop.state::<Stock>().commit(|_| Stock { apples: 12 }).await?;
    /// let noon = space.journal().head().await?;
    /// shop.state::<Stock>().commit(|_| Stock { apples: 0 }).await?;
    ///
    /// shop.state::<Stock>().restore(At::Position(noon)).await?;
    /// assert_eq!(shop.state::<Stock>().get(|stock| stock.apples), 12);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn restore(&self, at: At) -> Result<()> {
        let (Place::Stored(key, _), Some(journal)) = (&self.place, self.node.space.journal()) else {
            let what = "the state of an ephemeral node has no past that it could be restored from";
            return Err(self.placed(Error::misuse(what)));
        };
        let then = journal.at(key, at).await.map_err(|error| self.placed(error))?;
        let missing = || Error::new(ErrorKind::NotFound { what: format!("document `{key}` at that time") });
        let then = then.ok_or_else(missing).map_err(|error| self.placed(error))?;
        let from = then.revision;
        let value: S = match &then.content {
            None => S::default(),
            Some(content) => state::decode_document(content.version, &content.bytes).map_err(|error| {
                self.placed(error.context(format!("document `{key}` in revision {from}")))
            })?,
        };
        self.commit(move |_| value.clone()).await?;
        let told = serde_json::json!({
            "node": &*self.node.name,
            "document": &**key,
            "revision": self.revision(),
            "from": from,
        });
        if self.node.space.is_running() {
            let node = Node::from_inner(std::sync::Arc::clone(self.node));
            node.broadcast(Event::new("state-rebuilt", told)).map_err(|error| self.placed(error))?;
        }
        Ok(())
    }
}
