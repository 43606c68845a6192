//! Events of a history that happened elsewhere, each stored once under the name it has there. Owns the documents that say
//! which name is which event; does not know where a history comes from.

use std::sync::Arc;

use happen_core::codec::WireEvent;
use happen_core::env::BoxFuture;
use happen_core::event::Envelope;
use happen_core::hash::EventHash;
use happen_core::limits::RECORD_BYTES_MAX;
use happen_core::store::Key;
use happen_core::{ErasedEvent, Error, ErrorKind, EventId, EventType, Result, State};
use serde::{Deserialize, Serialize};

use super::document::{Document, is_conflict};
use super::flow::StoredFlow;
use super::keys::{IMPORTED, named};
use super::lane::{Lanes, check_room};
use super::record::event_record;
use super::stage::Whereto;
use super::whole::Whole;
use super::{Durable, accept, outside};
use crate::dispatch;
use crate::limits;
use crate::space::SpaceInner;

/// What the document of a name says: the event without its payload, with its hash, so that it can be named as a cause by
/// another process and when its record is forgotten. One without bytes stands for none.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredImport {
    envelope: Vec<u8>,
}

/// An event that has a name, with its hash.
pub(crate) struct Known {
    pub(crate) envelope: Envelope,
    pub(crate) hash: Option<EventHash>,
}

impl State for StoredImport {
    const NAME: &'static str = "imported";
    const VERSION: u32 = 1;
}

impl StoredImport {
    fn of(space: &SpaceInner, envelope: &Envelope, hash: Option<EventHash>) -> Result<Self> {
        let names = space.names_in(envelope);
        let mut bytes = Vec::new();
        let mut wire = WireEvent::from_envelope(envelope, &[], |key| names.of(key))?;
        wire.hash = hash;
        wire.encode_into(&mut bytes, RECORD_BYTES_MAX)?;
        Ok(Self { envelope: bytes })
    }

    fn is_none(&self) -> bool {
        self.envelope.is_empty()
    }

    fn read(&self, space: &SpaceInner) -> Result<Option<Known>> {
        if self.is_none() {
            return Ok(None);
        }
        let wire = WireEvent::decode(&self.envelope, RECORD_BYTES_MAX)?;
        let event_type = EventType::new(&wire.event_type);
        let envelope = wire.to_envelope(event_type, |name| space.key_of(name))?;
        Ok(Some(Known { envelope, hash: wire.hash }))
    }
}

/// The event that has this name, when there is one.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn known(
    space: &Arc<SpaceInner>,
    durable: &Arc<Durable>,
    name: &str,
) -> Result<Option<Known>> {
    document(durable, &named(IMPORTED, name))?.read().await?.value.read(space)
}

/// Stores an event, whose causes have these hashes, under its name and lets its flows begin, unless there is one of that
/// name; gives the one that there is then. Goes on to its end when nobody waits for it any longer.
///
/// # Errors
///
/// Nothing is stored: what keeps one of the listeners from taking the event, and what the store says.
pub(crate) async fn once(
    space: &Arc<SpaceInner>,
    durable: &Arc<Durable>,
    name: &str,
    (event, causes): (Arc<dyn ErasedEvent>, Vec<(EventId, EventHash)>),
) -> Result<Known> {
    let key = named(IMPORTED, name);
    let (space_then, durable) = (Arc::clone(space), Arc::clone(durable));
    let work = async move {
        let turn = durable.keys.turn(&key);
        let stored = {
            let _mine = turn.lock().await;
            store(&space_then, &durable, &key, (&event, &causes)).await
        };
        durable.keys.gone(&key, &turn);
        stored.map_err(|error| error.at_event(event.envelope().id))
    };
    Whole::new(&space.env, Box::pin(work)).await
}

async fn store(
    space: &Arc<SpaceInner>,
    durable: &Arc<Durable>,
    key: &Key,
    (event, causes): (&Arc<dyn ErasedEvent>, &[(EventId, EventHash)]),
) -> Result<Known> {
    let document = document(durable, key)?;
    let framed = space.framed(&**event, |single| Ok(space.causes_in(single, causes)))?;
    let hash = framed.hashes.first().map(|(_, hash)| *hash);
    let stored = StoredImport::of(space, event.envelope(), hash)?;
    let mut tries = 0;
    loop {
        let found = document.read().await?;
        if let Some(before) = found.value.read(space)? {
            return Ok(before);
        }
        let flows = flows(space, event)?;
        flows.iter().for_each(|flow| durable.begun(flow));
        let value = stored.clone();
        let committed = outside::change(
            durable,
            &document,
            Some(found.revision),
            move |_| Ok(value.clone()),
            |batch, _| {
                batch.records.push(event_record(space, &**event, &framed, &flows)?);
                for flow in &flows {
                    batch.documents.push(flow.first_write()?);
                }
                Ok(())
            },
        )
        .await;
        let committed = match committed {
            Err(error) if matches!(error.kind(), ErrorKind::Io { .. }) => {
                match is_ours(space, durable, &document, &stored).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(error),
                    Err(error) => Err(error),
                }
            }
            committed => committed,
        };
        match committed {
            Ok(()) => {
                durable.waiters.offer(space, event);
                flows.iter().for_each(Lanes::enter);
                space.leave(event, &Whereto::Everyone);
                return Ok(Known { envelope: event.envelope().clone(), hash });
            }
            Err(error) => {
                flows.iter().for_each(|flow| durable.ended(flow));
                // Another process was faster, and then its event is the one.
                if !is_conflict(&error) || tries >= limits::COMMIT_TRIES_MAX {
                    return Err(error);
                }
                tries += 1;
            }
        }
    }
}

/// The flows of all who listen: all of them take the event, or none.
fn flows(space: &Arc<SpaceInner>, event: &Arc<dyn ErasedEvent>) -> Result<Vec<Arc<StoredFlow>>> {
    let mut flows = Vec::new();
    for node in space.durable_listeners(&event.envelope().event_type) {
        let table = node.table.load();
        let mut uncached = None;
        let more = dispatch::admissible(&node, &table, &**event, &mut uncached).and_then(|route| {
            let _coming = check_room(&node, &table)?;
            accept::flows_for(&node, &table, &route.entries, &**event)
        });
        match more {
            Ok(more) => flows.extend(more),
            Err(error) if matches!(error.kind(), ErrorKind::NoHandler { .. }) => {}
            Err(error) => return Err(error.at_node(&node.name)),
        }
    }
    Ok(flows)
}

/// Whether a commit was made of which the store said that it may be.
async fn is_ours(
    space: &SpaceInner,
    durable: &Durable,
    document: &Document<StoredImport>,
    stored: &StoredImport,
) -> Result<bool> {
    let look = || -> BoxFuture<'_, _> { Box::pin(async { Ok(document.read().await?.value == *stored) }) };
    durable.found_out(space, look).await
}

fn document(durable: &Durable, key: &Key) -> Result<Arc<Document<StoredImport>>> {
    durable.documents.passing(key, StoredImport::is_none)
}

/// What an import says where nothing is stored.
pub(crate) fn needs_store() -> Error {
    Error::misuse(
        "`once` stores the event under its name, which a space in memory cannot; use `publish` there",
    )
}
