//! What is written into the log of a space: commits and prunings as bytes. Owns their form, which `docs/format.md`
//! describes; does not know how entries travel or what they do.

use std::sync::Arc;

use happen_core::limits::BATCH_PARTS_MAX;
use happen_core::store::{
    Batch, Condition, Content, Key, NewRecord, Past, Position, Prune, Replaced, Select, Tag, Write,
};
use happen_core::{EventId, Result};
use lz4_flex::block;

use crate::bytes::{Put, Take, unreadable};
use crate::limits;

/// One entry of the log.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    /// Batches to be committed in this order, each by itself.
    Commit(Vec<Batch>),
    /// Something to be forgotten.
    Prune(Prune),
}

/// How the writer's copy stood, so that one that stands otherwise finds out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The sequence of the last entry that the copy took.
    pub(crate) sequence: u64,
    /// The digest of all that came of the log up to there.
    pub(crate) digest: Digest,
}

/// What says in a few bytes what came of a log.
pub(crate) type Digest = [u8; 16];

/// The bytes of batches that are committed by one call.
#[derive(Debug, Default)]
pub(crate) struct BatchBytes {
    bytes: Vec<u8>,
    count: u32,
}

impl BatchBytes {
    pub(crate) fn push(&mut self, batch: &Batch) {
        put_batch(&mut self.bytes, batch);
        self.count += 1;
    }

    pub(crate) fn count(&self) -> usize {
        self.count as usize
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// The bytes of a commit, begun before its batches are all known.
#[derive(Debug)]
pub(crate) struct CommitBytes {
    bytes: Vec<u8>,
    batches: u32,
}

impl CommitBytes {
    pub(crate) fn new(standing: Standing) -> Self {
        let mut bytes = Vec::with_capacity(COMMIT_BYTES);
        put_standing(&mut bytes, standing);
        bytes.put_u8(COMMIT);
        bytes.put_u32(0);
        Self { bytes, batches: 0 }
    }

    pub(crate) fn push(&mut self, batches: &BatchBytes) {
        self.bytes.extend(&batches.bytes);
        self.batches += batches.count;
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        if let Some(count) = self.bytes.get_mut(COUNT_AT..COUNT_AT + 4) {
            count.copy_from_slice(&self.batches.to_le_bytes());
        }
        self.bytes
    }
}

pub(crate) fn prune_bytes(standing: Standing, prune: &Prune) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_standing(&mut bytes, standing);
    bytes.put_u8(PRUNE);
    bytes.put_u128(prune.before.number());
    match &prune.records {
        Select::All => bytes.put_u8(0),
        Select::Tagged(tags) => {
            bytes.put_u8(1);
            put_tags(&mut bytes, tags);
        }
    }
    put_tags(&mut bytes, &prune.keep);
    bytes.put_count(prune.histories.len());
    prune.histories.iter().for_each(|key| bytes.put_bytes(key.as_bytes()));
    put_writes(&mut bytes, &prune.documents);
    bytes
}

/// The entry as it travels and is kept: compressed, where that is worth it. Events of one kind have much in common.
pub(crate) fn packed(entry: Vec<u8>) -> Vec<u8> {
    let (standing, inside) = entry.split_at(STANDING_BYTES.min(entry.len()));
    let Ok(length) = u32::try_from(inside.len()) else { return entry };
    if inside.len() < limits::ENTRY_PACKED_BYTES_MIN {
        return entry;
    }
    let mut bytes = standing.to_vec();
    bytes.put_u8(PACKED);
    bytes.put_u32(length);
    bytes.extend(block::compress(inside));
    if bytes.len() <= entry.len() - entry.len() / 8 { bytes } else { entry }
}

/// What was packed.
fn unpacked(mut take: Take<'_>) -> Result<Vec<u8>> {
    let length = take.u32()? as usize;
    let block = take.rest();
    // No more than so many bytes come from one, so nobody has much memory taken by few bytes.
    if length > limits::ENTRY_BYTES_MAX || length > block.len().saturating_mul(UNPACKED_RATIO_MAX) {
        return Err(unreadable("a packed entry says that it has more bytes than it can have"));
    }
    let mut inside = vec![0; length];
    match block::decompress_into(block, &mut inside) {
        Ok(bytes) if bytes == length => Ok(inside),
        _ => Err(unreadable("a packed entry is not what was packed")),
    }
}

impl Entry {
    /// # Errors
    ///
    /// When the bytes are no entry.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Standing, Self)> {
        let mut take = Take::new(bytes);
        let standing = Standing { sequence: take.u64()?, digest: take.array()? };
        let entry = match take.u8()? {
            PACKED => {
                let inside = unpacked(take)?;
                let mut take = Take::new(&inside);
                let kind = take.u8()?;
                Self::read(kind, take)?
            }
            kind => Self::read(kind, take)?,
        };
        Ok((standing, entry))
    }

    fn read(kind: u8, mut take: Take<'_>) -> Result<Self> {
        let entry = match kind {
            COMMIT => Self::Commit(take.list(batch)?),
            PRUNE => Self::Prune(prune(&mut take)?),
            kind => return Err(unreadable(&format!("an entry of kind {kind} is not known"))),
        };
        take.end()?;
        Ok(entry)
    }
}

fn put_standing(bytes: &mut Vec<u8>, standing: Standing) {
    bytes.put_u64(standing.sequence);
    bytes.extend(standing.digest);
}

fn put_batch(bytes: &mut Vec<u8>, batch: &Batch) {
    bytes.put_count(batch.records.len());
    for record in &batch.records {
        put_tags(bytes, &record.tags);
        bytes.put_bytes(&record.bytes);
    }
    put_writes(bytes, &batch.documents);
    bytes.put_count(batch.conditions.len());
    for condition in &batch.conditions {
        match condition {
            Condition::Revision { key, revision } => {
                bytes.put_u8(0);
                bytes.put_bytes(key.as_bytes());
                bytes.put_u64(*revision);
            }
            Condition::NoneAfter { tag, after } => {
                bytes.put_u8(1);
                bytes.put_bytes(tag.as_bytes());
                bytes.put_u128(after.number());
            }
        }
    }
}

fn batch(take: &mut Take<'_>) -> Result<Batch> {
    let records = take.list(|take| Ok(NewRecord { tags: take.list(tag)?, bytes: take.bytes()?.into() }))?;
    let documents = take.list(write)?;
    let conditions = take.list(|take| {
        Ok(match take.u8()? {
            0 => Condition::Revision { key: take.text()?.into(), revision: take.u64()? },
            1 => {
                Condition::NoneAfter { tag: take.text()?.into(), after: Position::from_number(take.u128()?) }
            }
            kind => return Err(unreadable(&format!("a condition of kind {kind} is not known"))),
        })
    })?;
    if records.len() + documents.len() + conditions.len() > BATCH_PARTS_MAX {
        return Err(unreadable("a batch has too many parts"));
    }
    Ok(Batch { records, documents, conditions })
}

fn prune(take: &mut Take<'_>) -> Result<Prune> {
    Ok(Prune {
        before: Position::from_number(take.u128()?),
        records: match take.u8()? {
            0 => Select::All,
            1 => Select::Tagged(take.list(tag)?),
            kind => return Err(unreadable(&format!("a selection of kind {kind} is not known"))),
        },
        keep: take.list(tag)?,
        histories: take.list(|take| Ok(Key::from(take.text()?)))?,
        documents: take.list(write)?,
    })
}

fn put_tags(bytes: &mut Vec<u8>, tags: &[Tag]) {
    bytes.put_count(tags.len());
    for tag in tags {
        let (kind, text): (u8, &Arc<str>) = match tag {
            Tag::Event(id) | Tag::Cause(id) => {
                bytes.put_u8(u8::from(matches!(tag, Tag::Cause(_))));
                bytes.extend(id.to_bytes());
                continue;
            }
            Tag::Correlation(text) => (2, text),
            Tag::Node(text) => (3, text),
            Tag::Type(text) => (4, text),
            Tag::Sender(text) => (5, text),
            Tag::Declared(text) => (6, text),
            // What this version does not know it cannot have been given to write.
            _ => continue,
        };
        bytes.put_u8(kind);
        bytes.put_bytes(text.as_bytes());
    }
}

fn tag(take: &mut Take<'_>) -> Result<Tag> {
    let id = |take: &mut Take<'_>| {
        EventId::from_bytes(take.array()?).ok_or_else(|| unreadable("an event's id is none"))
    };
    Ok(match take.u8()? {
        0 => Tag::Event(id(take)?),
        1 => Tag::Cause(id(take)?),
        2 => Tag::Correlation(take.text()?.into()),
        3 => Tag::Node(take.text()?.into()),
        4 => Tag::Type(take.text()?.into()),
        5 => Tag::Sender(take.text()?.into()),
        6 => Tag::Declared(take.text()?.into()),
        kind => return Err(unreadable(&format!("a tag of kind {kind} is not known"))),
    })
}

fn put_writes(bytes: &mut Vec<u8>, writes: &[Write]) {
    bytes.put_count(writes.len());
    for write in writes {
        bytes.put_bytes(write.key.as_bytes());
        bytes.put_u64(write.revision);
        let (past, count) = match write.past {
            Past::Dropped => (0, 0),
            Past::Kept => (1, 0),
            Past::Last(count) => (2, count),
        };
        bytes.put_u8(past);
        bytes.put_u32(count);
        bytes.put_u8(u8::from(write.replaced == Replaced::Forgotten));
        match &write.content {
            None => bytes.put_u8(0),
            Some(content) => {
                bytes.put_u8(1);
                bytes.put_bytes(content.name.as_bytes());
                bytes.put_u32(content.version);
                bytes.put_bytes(&content.bytes);
            }
        }
    }
}

fn write(take: &mut Take<'_>) -> Result<Write> {
    let (key, revision) = (take.text()?.into(), take.u64()?);
    let past = match (take.u8()?, take.u32()?) {
        (0, _) => Past::Dropped,
        (1, _) => Past::Kept,
        (2, count) => Past::Last(count),
        (kind, _) => return Err(unreadable(&format!("a past of kind {kind} is not known"))),
    };
    let replaced = match take.u8()? {
        0 => Replaced::Kept,
        1 => Replaced::Forgotten,
        kind => return Err(unreadable(&format!("a way {kind} to be replaced is not known"))),
    };
    let content = match take.u8()? {
        0 => None,
        _ => Some(Content { name: take.text()?.into(), version: take.u32()?, bytes: take.bytes()?.into() }),
    };
    Ok(Write { key, revision, content, past, replaced })
}

const COMMIT: u8 = 0;
const PRUNE: u8 = 1;
const PACKED: u8 = 2;

const STANDING_BYTES: usize = 8 + size_of::<Digest>();

/// Where the number of batches stands: behind the standing and the kind.
const COUNT_AT: usize = STANDING_BYTES + 1;

/// A byte of LZ4 stands for no more than these.
const UNPACKED_RATIO_MAX: usize = 255;

/// What a commit of a step takes, about.
const COMMIT_BYTES: usize = 2_048;

#[cfg(test)]
mod tests {
    use super::super::message::Message;
    use super::*;

    const FORMAT: &str = include_str!("../../../../docs/format.md");

    fn batches() -> Vec<Batch> {
        let id = |byte| EventId::from_bytes([byte; 16]).unwrap();
        let content = Content { name: "counter".into(), version: 3, bytes: [1, 2, 3].into() };
        let write = |past, content| Write {
            key: "state/a".into(),
            revision: 7,
            content,
            past,
            replaced: if past == Past::Kept { Replaced::Forgotten } else { Replaced::Kept },
        };
        vec![
            Batch {
                records: vec![
                    NewRecord {
                        tags: vec![
                            Tag::Event(id(1)),
                            Tag::Cause(id(2)),
                            Tag::Correlation("order-7".into()),
                            Tag::Node("orders".into()),
                            Tag::Type("placed".into()),
                            Tag::Sender("shop".into()),
                            Tag::Declared("größer".into()),
                        ],
                        bytes: [9; 30].into(),
                    },
                    NewRecord { tags: Vec::new(), bytes: [].into() },
                ],
                documents: vec![
                    write(Past::Kept, Some(content.clone())),
                    write(Past::Last(5), None),
                    write(Past::Dropped, Some(content)),
                ],
                conditions: vec![
                    Condition::Revision { key: "owner".into(), revision: u64::MAX },
                    Condition::NoneAfter { tag: "seat".into(), after: Position::from_number(u128::MAX) },
                ],
            },
            Batch::default(),
        ]
    }

    fn standing() -> Standing {
        Standing { sequence: 12, digest: [5; 16] }
    }

    fn commit() -> Vec<u8> {
        let mut entry = CommitBytes::new(standing());
        for batch in &batches() {
            let mut bytes = BatchBytes::default();
            bytes.push(batch);
            entry.push(&bytes);
        }
        entry.finish()
    }

    fn pruning() -> Prune {
        let [first, _] = &batches()[..] else { unreachable!() };
        Prune {
            before: Position::from_number(8),
            records: Select::tag(Tag::Declared("old".into())),
            keep: first.records[0].tags.clone(),
            histories: vec!["state/".into(), "".into()],
            documents: first.documents.clone(),
        }
    }

    #[test]
    fn entries_are_read_as_they_were_written() {
        let (read, entry) = Entry::decode(&commit()).unwrap();
        assert_eq!(read, standing());
        assert_eq!(format!("{entry:?}"), format!("{:?}", Entry::Commit(batches())));
        let (read, entry) = Entry::decode(&prune_bytes(standing(), &pruning())).unwrap();
        assert_eq!(read, standing());
        assert_eq!(format!("{entry:?}"), format!("{:?}", Entry::Prune(pruning())));
    }

    /// An entry whose inside has so many bytes.
    fn of_bytes(inside: usize) -> Vec<u8> {
        let batch = |bytes: usize| Batch {
            records: vec![NewRecord { tags: Vec::new(), bytes: vec![7; bytes].into() }],
            ..Batch::default()
        };
        let entry = |bytes| {
            let (mut entry, mut of_batch) = (CommitBytes::new(standing()), BatchBytes::default());
            of_batch.push(&batch(bytes));
            entry.push(&of_batch);
            entry.finish()
        };
        let around = entry(0).len() - STANDING_BYTES;
        entry(inside - around)
    }

    #[test]
    fn the_documentation_shows_entries_as_they_are() {
        let message =
            |number, body: Vec<u8>| Message { writer: [1; 16], number, more: false, body: &body }.encode();
        let vectors = [
            ("log-commit", message(1, commit())),
            ("log-pruning", message(2, prune_bytes(standing(), &pruning()))),
        ];
        let mut lacking = String::new();
        for (name, bytes) in vectors {
            let vector = shown(name, &bytes);
            if !FORMAT.contains(&vector) {
                lacking += &format!("{vector}\n\n");
            }
        }
        // Another program may pack it otherwise.
        let Some(found) = FORMAT.split_once("```message log-packed\n") else {
            panic!("{lacking}{}", shown("log-packed", &message(3, packed(of_bytes(2_000)))))
        };
        let digits: String = found.1.split("```").next().unwrap().split_whitespace().collect();
        let bytes: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect();
        let read = Message::decode(&bytes).unwrap();
        assert_eq!(read.body[STANDING_BYTES], PACKED);
        let [read, kept] =
            [read.body, &of_bytes(2_000)].map(|body| format!("{:?}", Entry::decode(body).unwrap()));
        assert_eq!(read, kept);
        assert!(lacking.is_empty(), "docs/format.md lacks\n{lacking}");
    }

    fn shown(name: &str, bytes: &[u8]) -> String {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let lines: Vec<_> =
            hex.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("```message {name}\n{}\n```", lines.join("\n"))
    }

    #[test]
    fn only_what_is_large_enough_and_becomes_smaller_is_packed() {
        let min = limits::ENTRY_PACKED_BYTES_MIN;
        for (inside, is_packed) in [(min - 1, false), (min, true), (min + 1, true)] {
            let entry = of_bytes(inside);
            let packed = packed(entry.clone());
            assert_eq!(packed != entry, is_packed, "{inside}");
            assert_eq!(packed[STANDING_BYTES] == PACKED, is_packed, "{inside}");
            let [read, kept] = [&packed, &entry].map(|bytes| format!("{:?}", Entry::decode(bytes).unwrap()));
            assert_eq!(read, kept);
        }
        let mut noise = of_bytes(min);
        let digits = blake3::Hasher::new().finalize_xof();
        std::io::Read::read_exact(&mut { digits }, &mut noise[STANDING_BYTES..]).unwrap();
        assert_eq!(packed(noise.clone()), noise);
    }

    #[test]
    fn what_is_packed_takes_no_more_memory_than_an_entry_may_have() {
        let mut bytes = Vec::new();
        put_standing(&mut bytes, standing());
        bytes.put_u8(PACKED);
        for length in [limits::ENTRY_BYTES_MAX + 1, 64 * UNPACKED_RATIO_MAX + 1] {
            let mut bytes = bytes.clone();
            bytes.put_u32(u32::try_from(length).unwrap());
            bytes.extend([0; 64]);
            assert_eq!(Entry::decode(&bytes).unwrap_err().code(), "damaged");
        }
        // Nothing is packed twice.
        let inside = packed(of_bytes(5_000)).split_off(STANDING_BYTES);
        let again = [&bytes[..], &(inside.len() as u32).to_le_bytes(), &block::compress(&inside)].concat();
        assert_eq!(Entry::decode(&again).unwrap_err().code(), "damaged");
    }

    #[test]
    fn whatever_is_cut_or_changed_is_read_or_refused() {
        for whole in [commit(), prune_bytes(standing(), &pruning()), packed(of_bytes(5_000))] {
            for length in 0..whole.len() {
                assert!(Entry::decode(&whole[..length]).is_err(), "{length} of {}", whole.len());
            }
            for index in 0..whole.len() {
                for bit in 0..8 {
                    let mut changed = whole.clone();
                    changed[index] ^= 1 << bit;
                    drop(Entry::decode(&changed));
                }
            }
            let mut longer = whole;
            longer.push(0);
            assert!(Entry::decode(&longer).is_err());
        }
    }
}
