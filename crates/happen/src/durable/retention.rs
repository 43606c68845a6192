//! When a space prunes its store, and what its configuration lets go. Owns the times; what has to stay and what is left of
//! the rest is in `crate::retention`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use happen_core::store::{Pruned, Read, Select};
use happen_core::{Pattern, Result};

use super::Durable;
use super::document::is_conflict;
use crate::config::Retention;
use crate::retention::Pruning;
use crate::space::SpaceInner;

impl Durable {
    /// Forgets what the configuration lets go, until nothing is left that could be. One at a time.
    ///
    /// # Errors
    ///
    /// As [`Pruning::as_far_as`].
    pub(crate) async fn prune(self: &Arc<Self>, space: &Arc<SpaceInner>) -> Result<Pruned> {
        let _one_at_a_time = self.one_pruning().await;
        let Some(before_unix_ms) = self.horizon(space).await? else { return Ok(Pruned::default()) };
        let pruning = Pruning::as_far_as(&self.store, before_unix_ms).await?;
        pruning.keep_types(space.types_kept()?).carry_out(&self.store).await
    }

    /// The time before which everything is old.
    async fn horizon(&self, space: &SpaceInner) -> Result<Option<u64>> {
        let now = space.env.unix_ms();
        let Retention { age_ms, bytes_max, .. } = space.config.retention;
        let by_age = if age_ms == 0 { 0 } else { now.saturating_sub(age_ms) };
        let by_bytes = if bytes_max == 0 { 0 } else { self.too_much_before(now, bytes_max).await? };
        Ok(Some(by_age.max(by_bytes)).filter(|before_unix_ms| *before_unix_ms > 0))
    }

    /// The time before which there is about as much as is too much, taken that records come evenly. 0 when there is room.
    async fn too_much_before(&self, now_unix_ms: u64, bytes_max: u64) -> Result<u64> {
        let bytes = match &self.owned {
            Some(owned) => (owned.bytes)().await?,
            None => return Ok(0),
        };
        let oldest = self.store.read(Read::forward(Select::All).at_most(1)).await?;
        let Some(oldest) = oldest.records.first().filter(|_| bytes > bytes_max) else { return Ok(0) };
        let span = u128::from(now_unix_ms.saturating_sub(oldest.at_unix_ms));
        let too_old = span * u128::from(bytes - bytes_max) / u128::from(bytes.max(1));
        Ok(oldest.at_unix_ms + u64::try_from(too_old).unwrap_or(u64::MAX) + 1)
    }
}

impl SpaceInner {
    /// The types that are never to be forgotten. A pattern stands for the types that this process has met: the log is asked
    /// for none.
    ///
    /// # Errors
    ///
    /// When a pattern cannot be read.
    pub(crate) fn types_kept(&self) -> Result<Vec<Arc<str>>> {
        let mut keep: Vec<Arc<str>> = Vec::new();
        for text in &self.config.retention.keep {
            let pattern = Pattern::parse(text)?;
            if let Some(exact) = pattern.is_literal() {
                keep.push(exact.into());
                continue;
            }
            let types = self.type_names();
            let matching = types.values().map(happen_core::EventType::as_str);
            keep.extend(matching.filter(|name| pattern.matches(name)).map(Arc::from));
        }
        keep.sort_unstable();
        keep.dedup();
        Ok(keep)
    }
}

/// Prunes from time to time, as long as the space is there.
pub(super) fn keep_pruning(space: &Arc<SpaceInner>) {
    let every = space.config.retention.every_ms;
    if every == 0 {
        return;
    }
    let (env, space) = (Arc::clone(&space.env), Arc::downgrade(space));
    let sleeper = Arc::clone(&env);
    env.spawn(Box::pin(async move {
        loop {
            sleeper.sleep(Duration::from_millis(every)).await;
            if prune_once(&space).await.is_none() {
                return;
            }
        }
    }));
}

async fn prune_once(space: &Weak<SpaceInner>) -> Option<()> {
    let space = space.upgrade().filter(|space| space.is_running())?;
    let durable = space.durable.as_ref().filter(|durable| !durable.is_stopping())?;
    match durable.prune(&space).await {
        Ok(pruned) if pruned == Pruned::default() => {}
        Ok(Pruned { records, revisions }) => {
            let told = serde_json::json!({ "records": records, "revisions": revisions });
            space.announce("system.pruned", told);
        }
        // Another process on the same log prunes at the same time.
        Err(error) if durable.is_shared() && is_conflict(&error) => {}
        Err(error) => {
            tracing::warn!(target: "happen", code = error.code(), "the store could not be pruned: {error}");
            let told = serde_json::json!({ "code": error.code(), "reason": error.chain().join(": ") });
            space.announce("system.prune-failed", told);
        }
    }
    Some(())
}
