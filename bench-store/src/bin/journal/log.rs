//! The log that the journal is asked about: steps of many small correlations, and the thousand events of one traced order
//! spread over all of it. Made by counting, so it is the same in every run.

use happen::store::{Batch, Content, NewRecord, Past, Replaced, Store, Tag, Write};
use happen::{EventId, State};
use happen_core::codec::{CauseLink, StepOutcome, WireChange, WireEvent, WireRecord, WireStep};
use happen_core::hash::{EventHash, hash_event};
use happen_core::limits::RECORD_BYTES_MAX;
use serde::{Deserialize, Serialize};

/// How many events the traced order has.
pub const TRACED: u64 = 1_000;

#[derive(State, Default, Clone, Serialize, Deserialize)]
#[state("orders", version = 1)]
pub struct Orders {
    pub revision: u64,
}

pub fn id(number: u64) -> EventId {
    // Ids as they are made: the time first, then a counter, then what belongs to the block.
    let unix_ms = 1_760_000_000_000 + number / 10;
    let high = unix_ms << 16 | 0x7000 | (number % 10);
    EventId::from_halves(high, 0x8000_0000_0000_0000 | number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2)
        .unwrap()
}

/// Where an event stands in the web.
struct Place {
    number: u64,
    cause: Option<(u64, EventHash)>,
    root: u64,
    correlation: String,
    depth: u32,
}

/// The record of an event from outside whose only step ended at once, and the hash of the event.
fn record(place: &Place, changes: Vec<WireChange<'static>>) -> (NewRecord, EventHash) {
    let number = place.number;
    let payload: Vec<u8> = (0..200).map(|at: u64| (number.wrapping_mul(31) + at * 7 >> 3) as u8).collect();
    let (event_type, node) = (format!("type-{}.done", number % 20), format!("node-{}", number % 7));
    let sender = format!("node-{}", (number + 1) % 7);
    let mut event = WireEvent::new(id(number), event_type.as_str(), id(number).unix_ms(), &payload);
    event.root = id(place.root);
    event.cause = place.cause.map(|(cause, hash)| CauseLink::Known { id: id(cause), hash });
    event.depth = place.depth;
    event.sender = sender.as_str().into();
    event.correlation = Some(place.correlation.as_str().into());
    let hash = hash_event(&event);
    event.hash = Some(hash);
    let mut frame = Vec::new();
    event.encode_into(&mut frame, RECORD_BYTES_MAX).unwrap();
    let mut step = WireStep::new(id(number), &node, "on_type", "on_type", StepOutcome::End);
    step.changes = changes;
    let record = WireRecord { event: frame.into(), step: Some(step), ..WireRecord::default() };
    let mut bytes = Vec::new();
    record.encode_into(&mut bytes, RECORD_BYTES_MAX).unwrap();
    let mut tags = vec![Tag::Event(id(number))];
    tags.extend(place.cause.map(|(cause, _)| Tag::Cause(id(cause))));
    tags.push(Tag::Correlation(place.correlation.as_str().into()));
    tags.push(Tag::Node(node.as_str().into()));
    tags.push(Tag::Type(event_type.as_str().into()));
    tags.push(Tag::Sender(sender.as_str().into()));
    (NewRecord { tags, bytes: bytes.into() }, hash)
}

pub async fn fill(store: &dyn Store, records: u64) {
    let every = records / TRACED;
    let mut hashes: Vec<EventHash> = Vec::new();
    let mut small: Option<(u64, EventHash)> = None;
    let mut revisions = [0; 7];
    let mut number = 0;
    while number < records {
        let mut batches = Vec::new();
        for number in number..(number + 500).min(records) {
            let traced = number / every;
            let is_traced = number % every == 0 && traced < TRACED;
            let place = if is_traced {
                // Each causes three more.
                let cause = (traced > 0).then(|| (traced - 1) / 3);
                let depth = (2 * traced + 1).ilog(3);
                Place {
                    number,
                    cause: cause.map(|cause| (cause * every, hashes[cause as usize])),
                    root: 0,
                    correlation: "order-789".to_owned(),
                    depth,
                }
            } else {
                // Chains of five.
                let root = number - number % 5;
                let cause = small.filter(|(cause, _)| *cause >= root && *cause % every != 0);
                let correlation = format!("small-{root}");
                Place { number, cause, root, correlation, depth: (number % 5) as u32 }
            };
            let mut documents = Vec::new();
            let mut changes = Vec::new();
            if is_traced {
                let node = number % 7;
                revisions[node as usize] += 1;
                let (key, revision) = (format!("state/node-{node}/orders"), revisions[node as usize]);
                changes.push(WireChange { key: key.clone().into(), revision });
                let bytes = happen_core::state::encode(&Orders { revision }).unwrap().into();
                let content = Some(Content { name: "orders".into(), version: 1, bytes });
                documents.push(Write {
                    key: key.into(),
                    revision,
                    content,
                    past: Past::Kept,
                    replaced: Replaced::Kept,
                });
            }
            let (record, hash) = record(&place, changes);
            if is_traced {
                hashes.push(hash);
            } else {
                small = Some((number, hash));
            }
            batches.push(Batch { records: vec![record], documents, ..Batch::default() });
        }
        for committed in store.commit(batches).await {
            committed.unwrap();
        }
        number += 500;
    }
}
