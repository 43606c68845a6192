//! Large values, kept in parts and passed on by reference. Owns in which order the parts, the manifest and the mark are
//! written and removed, so that no half-written value is ever seen; does not know who passes the reference on.
//!
//! A value that is begun has a mark. Each part is committed on the condition that the mark is as it was; the manifest
//! is committed last, in one step with the end of the mark. Whoever removes a value sets the mark first. So a value
//! has a manifest and all of its parts, or a mark by which the sweep finds what there is of it.

use std::fmt;
use std::fmt::Write as _;

use happen_core::content::ContentHasher;
use happen_core::store::{Batch, Condition, Content, Document, Key, List, Past, Replaced, Store, Write};
use happen_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::Global;
use super::format::{self, Manifest};
use super::sweep::{self, is_conflict};
use crate::limits::{LARGE_BYTES_MAX, LARGE_PART_BYTES, LARGE_PARTS_AT_ONCE};
use crate::pure;

/// Where a large value is and what it is: small, to be sent in an event or kept in a state or an entry.
///
/// Whoever has it reads the value with [`Global::large`], in every space over the same store.
///
/// # Examples
///
/// ```
/// use happen::global::LargeValue;
///
/// #[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
/// #[event("scan.made")]
/// struct ScanMade { patient: u64, image: LargeValue }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LargeValue {
    id: String,
    bytes: u64,
    hash: String,
}

/// A large value that is being written, piece by piece. Made by [`Global::write_large`].
///
/// Nobody sees it before [`LargeWriter::finish`]. One that is dropped before, or not finished within
/// [`LARGE_UNFINISHED_MS`](crate::limits::LARGE_UNFINISHED_MS), also because the process ended, is removed by the sweep.
#[must_use = "the value is not there before `finish`"]
pub struct LargeWriter {
    global: Global,
    id: String,
    mark: Mark,
    parts: u32,
    bytes: usize,
    hasher: ContentHasher,
    /// What is not a whole part yet.
    rest: Vec<u8>,
}

/// Whether a value has a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// It may have one: a commit is under way or was made.
    Set,
    /// It has none, and nothing that it would stand for.
    None,
}

impl LargeValue {
    /// What it is known by, 32 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.bytes
    }

    /// The BLAKE3 hash of its bytes, 64 hexadecimal digits.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// A reference may come from anywhere; its id becomes a part of keys.
    fn check(&self) -> Result<()> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if self.id.len() == ID_DIGITS && self.id.bytes().all(digit) {
            return Ok(());
        }
        let id: String = self.id.chars().take(ID_DIGITS).collect();
        Err(Error::misuse(format!(
            "`{id}` is not the id of a large value: it has {ID_DIGITS} hexadecimal digits"
        )))
    }
}

impl Global {
    /// Keeps bytes that are too large for an event or an entry, and gives the reference to them. It stays until
    /// [`Global::delete_large`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Oversized`] over [`LARGE_BYTES_MAX`]; otherwise as said at [`Global`].
    ///
    /// # Cancel safety
    ///
    /// What was written when the future is dropped is removed by the sweep.
    ///
    /// # Cost
    ///
    /// One commit for each [`LARGE_PART_BYTES`], and two more.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let space = happen::Space::memory();
    /// let image = vec![7; 3 << 20];
    /// let reference = space.global().put_large(&image).await?;
    /// assert_eq!(reference.len_bytes(), 3 << 20);
    /// assert_eq!(space.global().large(&reference).await?, Some(image));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_large(&self, bytes: &[u8]) -> Result<LargeValue> {
        check_size(bytes.len())?;
        let mut writer = self.write_large()?;
        writer.write(bytes).await?;
        writer.finish().await
    }

    /// Begins a large value that comes in pieces.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] inside a function that has to be pure, [`ErrorKind::Closed`] once the space has ended.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let space = happen::Space::memory();
    /// let mut writer = space.global().write_large()?;
    /// for piece in ["one ", "two ", "three"] {
    ///     writer.write(piece.as_bytes()).await?;
    /// }
    /// let reference = writer.finish().await?;
    /// assert_eq!(space.global().large(&reference).await?, Some(b"one two three".to_vec()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn write_large(&self) -> Result<LargeWriter> {
        self.admit()?;
        let mut random = [0; ID_DIGITS / 2];
        self.space.env.fill_random(&mut random);
        Ok(LargeWriter {
            global: self.clone(),
            id: hex(&random),
            mark: Mark::None,
            parts: 0,
            bytes: 0,
            hasher: ContentHasher::new(),
            rest: Vec::new(),
        })
    }

    /// The bytes of a large value, or `None` when it was deleted.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Damaged`] when they are not those that were written, by their length or hash, or when one part is
    /// missing; [`ErrorKind::Misuse`] when the reference is none, [`ErrorKind::Oversized`] when it speaks of more than
    /// [`LARGE_BYTES_MAX`]; otherwise as said at [`Global`].
    ///
    /// # Cost
    ///
    /// Memory for the value and some parts of it; that of [`Space::catch_up`](crate::Space::catch_up) when it is not there.
    pub async fn large(&self, value: &LargeValue) -> Result<Option<Vec<u8>>> {
        pure::check("read global state")?;
        value.check()?;
        check_size(usize::try_from(value.bytes).unwrap_or(usize::MAX))?;
        let store = self.space.store();
        let mut found = manifest(&*store, &value.id).await?;
        if found.is_none() {
            // The reference may have come by another way than the log, which is not read as far here.
            self.space.catch_up().await?;
            found = manifest(&*store, &value.id).await?;
        }
        let Some(manifest) = found else { return Ok(None) };
        if (manifest.bytes, &manifest.hash) != (value.bytes, &value.hash) {
            return Err(damaged(&value.id, "its manifest does not fit the reference"));
        }
        let mut bytes = Vec::new();
        let mut hasher = ContentHasher::new();
        // Each turn reads what is there, however many parts the manifest speaks of.
        for first in (0..manifest.parts).step_by(LARGE_PARTS_AT_ONCE) {
            let numbers = (first..manifest.parts).take(LARGE_PARTS_AT_ONCE);
            let keys = numbers.map(|number| format::part_key(&value.id, number)).collect();
            for part in store.documents(keys).await? {
                let Some(content) = part.and_then(|part| part.content) else {
                    // It may have been deleted meanwhile.
                    return match self::manifest(&*store, &value.id).await? {
                        None => Ok(None),
                        Some(_) => Err(damaged(&value.id, "a part is missing")),
                    };
                };
                hasher.update(&content.bytes);
                bytes.extend_from_slice(&content.bytes);
            }
            if bytes.len() as u64 > value.bytes {
                return Err(damaged(&value.id, "it has more bytes than were written"));
            }
        }
        if bytes.len() as u64 != value.bytes || hex(&hasher.finish()) != value.hash {
            return Err(damaged(&value.id, "its bytes do not fit its hash"));
        }
        Ok(Some(bytes))
    }

    /// Deletes a large value. Says whether there was one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when the reference is none; otherwise as said at [`Global`].
    ///
    /// # Cancel safety
    ///
    /// It is deleted wholly or not at all. What is left of its parts is removed by the sweep.
    pub async fn delete_large(&self, value: &LargeValue) -> Result<bool> {
        self.admit()?;
        value.check()?;
        let store = self.space.store();
        let keys = [format::manifest_key(&value.id), format::marker_key(&value.id)];
        let found = store.documents(keys.to_vec()).await?;
        let [manifest, mark] = keys;
        let mut found = found.into_iter();
        let (Some(found_manifest), found_mark) = (found.next().flatten(), found.next().flatten()) else {
            return Ok(false);
        };
        if found_manifest.content.is_none() {
            return Ok(false);
        }
        let documents = vec![
            write(manifest, found_manifest.revision + 1, None),
            write(mark, revision(found_mark.as_ref()) + 1, Some(format::marker_content())),
        ];
        match commit(&*store, Batch { documents, ..Batch::default() }).await {
            Ok(()) => {}
            // A manifest is written once, so somebody else deletes it.
            Err(error) if is_conflict(&error) => return Ok(false),
            Err(error) => return Err(error.context(format!("deleting large value {}", value.id))),
        }
        sweep::begin(&self.space);
        self.space.commons.begun();
        remove(&*store, &value.id).await?;
        Ok(true)
    }
}

impl LargeWriter {
    /// Goes on with these bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Oversized`] over [`LARGE_BYTES_MAX`]: nothing of them is taken then. [`ErrorKind::Conflict`] when the
    /// value was given up because it took too long; otherwise as said at [`Global`], and it is not known how much was
    /// taken: drop the writer.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        check_size(self.bytes.saturating_add(bytes.len()))?;
        self.bytes += bytes.len();
        self.hasher.update(bytes);
        while self.rest.len() + bytes.len() >= LARGE_PART_BYTES {
            let (now, later) = bytes.split_at(LARGE_PART_BYTES - self.rest.len());
            self.rest.extend_from_slice(now);
            bytes = later;
            self.write_part().await?;
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    /// Ends the value: from now on it is there, whole.
    ///
    /// # Errors
    ///
    /// As [`LargeWriter::write`]; the value is not there then, except after [`ErrorKind::Io`], when it may be.
    pub async fn finish(mut self) -> Result<LargeValue> {
        if !self.rest.is_empty() || self.parts == 0 {
            self.write_part().await?;
        }
        let hash = hex(&self.hasher.finish());
        let manifest = Manifest { bytes: self.bytes as u64, parts: self.parts, hash: hash.clone() };
        let documents = vec![
            write(format::manifest_key(&self.id), 1, Some(manifest.to_content()?)),
            write(format::marker_key(&self.id), 2, None),
        ];
        self.commit(Batch { documents, ..Batch::default() }).await?;
        self.mark = Mark::None;
        Ok(LargeValue { id: self.id.clone(), bytes: manifest.bytes, hash })
    }

    /// Commits one part; with the first one the mark.
    async fn write_part(&mut self) -> Result<()> {
        self.global.admit()?;
        let part = write(format::part_key(&self.id, self.parts), 1, Some(format::part_content(&self.rest)));
        let key = format::marker_key(&self.id);
        let batch = if self.mark == Mark::None {
            let mark = write(key, 1, Some(format::marker_content()));
            Batch { documents: vec![mark, part], ..Batch::default() }
        } else {
            let conditions = vec![Condition::Revision { key, revision: 1 }];
            Batch { documents: vec![part], conditions, ..Batch::default() }
        };
        let first = self.mark == Mark::None;
        self.mark = Mark::Set;
        self.commit(batch).await?;
        if first {
            sweep::begin(&self.global.space);
            self.global.space.commons.begun();
        }
        self.parts += 1;
        self.rest.clear();
        Ok(())
    }

    async fn commit(&self, batch: Batch) -> Result<()> {
        let store = self.global.space.store();
        commit(&*store, batch)
            .await
            .map_err(|error| error.context(format!("writing large value {}", self.id)))
    }
}

impl Drop for LargeWriter {
    fn drop(&mut self) {
        if self.mark == Mark::Set {
            self.global.space.commons.give_up(std::mem::take(&mut self.id));
        }
    }
}

/// Removes what there is of a value that is not finished: says so by its mark first, so that its writer cannot finish it
/// any more.
pub(super) async fn give_up(store: &dyn Store, id: &str) -> Result<()> {
    let Some(Document { revision, content: Some(content), .. }) =
        store.document(&format::marker_key(id)).await?
    else {
        return Ok(());
    };
    let documents = vec![write(format::marker_key(id), revision + 1, Some(content))];
    match commit(store, Batch { documents, ..Batch::default() }).await {
        Ok(()) => remove(store, id).await,
        // It was finished, or somebody else removes it.
        Err(error) if is_conflict(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the parts of a value that has a mark and no manifest, and then its mark.
async fn remove(store: &dyn Store, id: &str) -> Result<()> {
    loop {
        let prefix = format::parts_prefix(id);
        let list = List { prefix, after: None, documents_max: LARGE_PARTS_AT_ONCE };
        let parts = store.list(list).await?;
        // Each turn takes away what it found, and nobody adds to a value whose mark is set.
        let last = parts.is_empty();
        let documents = if last {
            let Some(mark) = store.document(&format::marker_key(id)).await? else { return Ok(()) };
            if mark.content.is_none() {
                return Ok(());
            }
            vec![write(mark.key, mark.revision + 1, None)]
        } else {
            parts.into_iter().map(|part| write(part.key, part.revision + 1, None)).collect()
        };
        match commit(store, Batch { documents, ..Batch::default() }).await {
            Ok(()) if last => return Ok(()),
            Ok(()) => {}
            // Somebody else removes it too.
            Err(error) if is_conflict(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn manifest(store: &dyn Store, id: &str) -> Result<Option<Manifest>> {
    let document = store.document(&format::manifest_key(id)).await?;
    let content = document.and_then(|document| document.content);
    content.as_ref().map(Manifest::of_content).transpose()
}

async fn commit(store: &dyn Store, batch: Batch) -> Result<()> {
    for result in store.commit(vec![batch]).await {
        result?;
    }
    Ok(())
}

fn write(key: Key, revision: u64, content: Option<Content>) -> Write {
    Write { key, revision, content, past: Past::Dropped, replaced: Replaced::Kept }
}

fn revision(document: Option<&Document>) -> u64 {
    document.map_or(0, |document| document.revision)
}

fn check_size(bytes: usize) -> Result<()> {
    let bytes_max = LARGE_BYTES_MAX;
    if bytes > bytes_max { Err(Error::new(ErrorKind::Oversized { bytes, bytes_max })) } else { Ok(()) }
}

#[cold]
fn damaged(id: &str, what: &str) -> Error {
    Error::new(ErrorKind::Damaged { what: format!("large value {id}: {what}; nothing of it is given") })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a text does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl fmt::Debug for LargeWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LargeWriter({}, {} bytes)", self.id, self.bytes)
    }
}

/// The digits of 16 random bytes.
const ID_DIGITS: usize = 32;
