//! What a store may forget: records and past states by age and number, but nothing that a flow or a rebuilding needs. Owns
//! the order in which that is done; the store does the forgetting.

use std::sync::{Arc, Weak};
use std::time::Duration;

use happen_core::content::ContentHasher;
use happen_core::store::{
    Content, Document, Key, List, Past, Position, Prune, Pruned, Read, Select, Start, Tag, Write,
};
use happen_core::{Pattern, Result};
use serde::{Deserialize, Serialize};

use super::Durable;
use super::keys::{ANCHOR, DEAD, FLOWS, FlowName, SCHEDULES, SEEN, TIMERS};
use crate::config::Retention;
use crate::limits;
use crate::space::SpaceInner;

impl Durable {
    /// Forgets what the configuration lets go, until nothing is left that could be. One at a time.
    ///
    /// # Errors
    ///
    /// What the store says.
    pub(crate) async fn prune(self: &Arc<Self>, space: &Arc<SpaceInner>) -> Result<Pruned> {
        let _one_at_a_time = self.pruning.lock().await;
        let Some(before) = self.horizon(space).await? else { return Ok(Pruned::default()) };
        let keep = self.kept(space).await?;
        let anchor = self.anchor(before, &keep).await?;
        let Some(anchor) = anchor else { return Ok(Pruned::default()) };
        let histories = HISTORIES.iter().map(|prefix| Key::from(*prefix)).collect();
        let prune = Prune { before, records: Select::All, keep, histories, documents: vec![anchor] };
        self.store.prune(prune).await
    }

    /// The position before which everything is old: of the first record that is young enough.
    async fn horizon(&self, space: &SpaceInner) -> Result<Option<Position>> {
        let now = space.env.unix_ms();
        let Retention { age_ms, bytes_max, .. } = space.config.retention;
        let by_age = if age_ms == 0 { 0 } else { now.saturating_sub(age_ms) };
        let by_bytes = if bytes_max == 0 { 0 } else { self.too_much_before(now, bytes_max).await? };
        let since = by_age.max(by_bytes);
        if since == 0 {
            return Ok(None);
        }
        let young = Read::forward(Select::All).start(Start::Time(since)).at_most(1);
        let page = self.store.read(young).await?;
        Ok(Some(page.records.first().map_or(page.head, |record| record.position)))
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

    /// What stays however old it is: events that flows are under way for or that wait as dead letters, with what led to
    /// them, and types that are never to be forgotten.
    async fn kept(&self, space: &SpaceInner) -> Result<Vec<Tag>> {
        let mut keep = Vec::new();
        for prefix in [FLOWS, DEAD] {
            let mut after: Option<Key> = None;
            loop {
                let list =
                    List { prefix: prefix.into(), after: after.take(), documents_max: limits::PRUNE_PAGE };
                let page: Vec<Document> = self.store.list(list).await?;
                let Some(last) = page.last() else { break };
                after = Some(Arc::clone(&last.key));
                let events = page.iter().filter_map(|found| FlowName::of(&found.key, prefix));
                keep.extend(events.map(|name| Tag::Event(name.event)));
            }
        }
        for text in &space.config.retention.keep {
            let pattern = Pattern::parse(text)?;
            if let Some(exact) = pattern.is_literal() {
                keep.push(Tag::Type(exact.into()));
                continue;
            }
            // A pattern stands for the types that this process has met: the log is asked for none.
            let types = space.type_names();
            let matching = types.values().map(happen_core::EventType::as_str);
            keep.extend(matching.filter(|name| pattern.matches(name)).map(|name| Tag::Type(name.into())));
        }
        keep.sort_unstable();
        keep.dedup();
        Ok(keep)
    }

    /// A document that tells what is forgotten: how far, and a hash over all of it and over what was forgotten before.
    /// `None` when nothing would be.
    async fn anchor(&self, before: Position, keep: &[Tag]) -> Result<Option<Write>> {
        let last = self.store.documents(vec![ANCHOR.into()]).await?.pop().flatten();
        let revision = last.as_ref().map_or(0, |document| document.revision) + 1;
        let mut hasher = ContentHasher::new();
        let known = last.and_then(|document| document.content);
        if let Some(known) = &known {
            hasher.update(&known.bytes);
        }
        let (mut records, mut newest) = (0_u64, Position::START);
        let mut start = Start::Edge;
        'pages: loop {
            let page = self.store.read(Read::forward(Select::All).start(start)).await?;
            for record in &page.records {
                if record.position >= before {
                    break 'pages;
                }
                if record.tags.iter().any(|tag| keep.contains(tag)) {
                    continue;
                }
                hasher.update(&record.position.number().to_le_bytes());
                hasher.update(&record.at_unix_ms.to_le_bytes());
                hasher.update(&record.bytes);
                (records, newest) = (records + 1, record.position);
            }
            match page.next {
                Some(next) => start = Start::Position(next),
                None => break,
            }
        }
        if records == 0 {
            return Ok(None);
        }
        let anchor =
            Anchor { before: before.number(), newest: newest.number(), records, hash: hasher.finish() };
        let mut bytes = Vec::new();
        happen_core::content::encode_into(&anchor, "anchor", &mut bytes)?;
        let content = Content { name: "anchor".into(), version: 1, bytes: bytes.into() };
        Ok(Some(Write { key: ANCHOR.into(), revision, content: Some(content), past: Past::Kept }))
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
        Err(error) => {
            tracing::warn!(target: "happen", code = error.code(), "the store could not be pruned: {error}");
            let told = serde_json::json!({ "code": error.code(), "reason": error.chain().join(": ") });
            space.announce("system.prune-failed", told);
        }
    }
    Some(())
}

/// What the anchor says.
#[derive(Debug, Serialize, Deserialize)]
struct Anchor {
    /// What is before this position is forgotten, unless it was to be kept.
    before: u128,
    /// The last record that is forgotten.
    newest: u128,
    /// How many records are.
    records: u64,
    /// The BLAKE3 hash over the anchor before this one and, of each record that was forgotten, in the order of the log, its
    /// position (16 bytes, lowest first), its time (8 bytes) and its bytes.
    hash: [u8; 32],
}

/// Documents whose past may be forgotten, and which may be forgotten wholly once they were deleted.
const HISTORIES: [&str; 9] = ["state/", "entity/", FLOWS, DEAD, TIMERS, SCHEDULES, SEEN, "global/", "large/"];
