//! The bytes of global state: keys and contents of its documents, and the records of its changes. Owns both directions,
//! and is the only place that knows them; does not know who writes when. `docs/format.md` has the same for people.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeFrom;
use std::sync::Arc;

use happen_core::store::{Bytes, Content, Key, NewRecord, Record, Tag};
use happen_core::{Error, ErrorKind, EventId, Result, content};
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::keys::{escaped, plain};

/// What an entry says: the value's MessagePack, and until when it counts.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Kept {
    bytes: Bytes,
    value: RangeFrom<usize>,
    pub(super) until_unix_ms: Option<u64>,
}

/// A change of an entry, as its record tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    /// The whole name of the entry, with its scopes.
    pub(super) name: String,
    pub(super) revision: u64,
    pub(super) change: Made,
    pub(super) author: Author,
}

/// What was made of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Made {
    Set(Kept),
    Deleted,
    Expired,
}

/// Who changes an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Author {
    /// The node whose handler, or whose handle, it was.
    pub(crate) node: Option<Arc<str>>,
    /// The event that was being handled.
    pub(crate) event: Option<EventId>,
}

/// What a finished large value is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) bytes: u64,
    pub(super) parts: u32,
    pub(super) hash: String,
}

/// The map of a record.
#[derive(Serialize, Deserialize)]
struct Wire {
    is: String,
    key: String,
    rev: u64,
    #[serde(rename = "do")]
    made: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Binary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<EventId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

/// A byte string, which serde takes for an array unless it is told.
struct Binary(Vec<u8>);

impl Kept {
    pub(super) fn new(value: &[u8], until_unix_ms: Option<u64>) -> Self {
        let Some(until) = until_unix_ms else {
            return Self { bytes: value.into(), value: 0.., until_unix_ms };
        };
        let mut bytes = Vec::with_capacity(EXPIRING_HEAD + value.len());
        bytes.extend_from_slice(&EXPIRING_MARKS);
        bytes.extend_from_slice(&until.to_be_bytes());
        bytes.extend_from_slice(value);
        Self { bytes: bytes.into(), value: EXPIRING_HEAD.., until_unix_ms }
    }

    /// The value's MessagePack.
    pub(super) fn value(&self) -> &[u8] {
        self.bytes.get(self.value.clone()).unwrap_or_default()
    }

    pub(super) fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        content::decode(self.value(), std::any::type_name::<T>())
    }

    pub(super) fn has_expired(&self, now_unix_ms: u64) -> bool {
        self.until_unix_ms.is_some_and(|until| until <= now_unix_ms)
    }

    pub(super) fn to_content(&self) -> Content {
        let name = if self.until_unix_ms.is_some() { EXPIRING } else { VALUE };
        Content { name: name.into(), version: VERSION, bytes: Arc::clone(&self.bytes) }
    }

    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] when it is the content of something else, or of a later version.
    pub(super) fn of_content(content: &Content) -> Result<Self> {
        let bytes = Arc::clone(&content.bytes);
        match (&*content.name, content.version) {
            (VALUE, VERSION) => Ok(Self { bytes, value: 0.., until_unix_ms: None }),
            (EXPIRING, VERSION) => {
                let rest = bytes.strip_prefix(&EXPIRING_MARKS).and_then(<[u8]>::first_chunk);
                let until = u64::from_be_bytes(*rest.ok_or_else(|| undecodable("an entry that expires"))?);
                Ok(Self { bytes, value: EXPIRING_HEAD.., until_unix_ms: Some(until) })
            }
            (name, version) => {
                let found = format!("the content is a `{name}` of version {version}");
                Err(undecodable("an entry of global state").context(found))
            }
        }
    }
}

impl Told {
    pub(super) fn to_record(&self) -> Result<NewRecord> {
        let (made, kept) = match &self.change {
            Made::Set(kept) => (SET, Some(kept)),
            Made::Deleted => (DELETED, None),
            Made::Expired => (EXPIRED, None),
        };
        let wire = Wire {
            is: GLOBAL.to_owned(),
            key: self.name.clone(),
            rev: self.revision,
            made: made.to_owned(),
            value: kept.map(|kept| Binary(kept.value().to_vec())),
            until: kept.and_then(|kept| kept.until_unix_ms),
            event: self.author.event,
            node: self.author.node.as_deref().map(str::to_owned),
        };
        let mut bytes = vec![RECORD_VERSION];
        content::encode_into(&wire, CHANGE, &mut bytes)?;
        Ok(NewRecord { tags: vec![tag()], bytes: bytes.into() })
    }

    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`] when the bytes are no record of a change, or one of a later version.
    pub(super) fn of_record(bytes: &[u8]) -> Result<Self> {
        let wire: Wire = match bytes.split_first() {
            Some((&RECORD_VERSION, map)) => content::decode(map, CHANGE)?,
            Some((version, _)) => {
                return Err(undecodable(CHANGE).context(format!("the record has version {version}")));
            }
            None => return Err(undecodable(CHANGE).context("the record is empty")),
        };
        let Wire { is, key, rev, made, value, until, event, node } = wire;
        if is != GLOBAL {
            return Err(undecodable(CHANGE).context(format!("the record is a `{is}`")));
        }
        let change = match (&*made, value) {
            (SET, Some(Binary(value))) => Made::Set(Kept::new(&value, until)),
            (DELETED, None) => Made::Deleted,
            (EXPIRED, None) => Made::Expired,
            (made, _) => return Err(undecodable(CHANGE).context(format!("the record tells of `{made}`"))),
        };
        let author = Author { node: node.map(Arc::from), event };
        Ok(Self { name: key, revision: rev, change, author })
    }
}

impl Manifest {
    pub(super) fn to_content(&self) -> Result<Content> {
        let mut bytes = Vec::new();
        content::encode_into(self, MANIFEST, &mut bytes)?;
        Ok(Content { name: MANIFEST.into(), version: VERSION, bytes: bytes.into() })
    }

    pub(super) fn of_content(content: &Content) -> Result<Self> {
        content::decode(&content.bytes, MANIFEST)
    }
}

/// The tag of every record of a change. A column of a store, as records without an event have that one free; names that
/// begin with `$` belong to the framework.
pub(super) fn tag() -> Tag {
    Tag::Type("$global".into())
}

/// Whether a record tells of a change of global state; an error when it should and cannot be read.
///
/// # Errors
///
/// As [`Told::of_record`].
pub(crate) fn is_change(record: &Record) -> Result<bool> {
    if record.tags[..] != [tag()] {
        return Ok(false);
    }
    Told::of_record(&record.bytes).map(|_| true)
}

/// The key of the document of an entry, or what those of all entries begin with whose names begin so.
pub(super) fn document_key(name: &str) -> Key {
    format!("{ENTRIES}{}", escaped(name)).into()
}

/// The name of the entry whose document has this key.
pub(super) fn entry_name(key: &str) -> Option<Cow<'_, str>> {
    key.strip_prefix(ENTRIES).map(plain)
}

/// The parts, manifest and marker of a large value.
pub(super) fn part_key(id: &str, number: u32) -> Key {
    format!("{LARGE}{id}/{number}").into()
}

pub(super) fn manifest_key(id: &str) -> Key {
    format!("{LARGE}{id}/manifest").into()
}

pub(super) fn parts_prefix(id: &str) -> Key {
    format!("{LARGE}{id}/").into()
}

pub(super) fn marker_key(id: &str) -> Key {
    format!("{UNFINISHED}{id}").into()
}

/// The id of the large value whose marker has this key.
pub(super) fn marked_id(key: &str) -> Option<&str> {
    key.strip_prefix(UNFINISHED)
}

pub(super) fn part_content(bytes: &[u8]) -> Content {
    Content { name: PART.into(), version: VERSION, bytes: bytes.into() }
}

pub(super) fn marker_content() -> Content {
    Content { name: UNFINISHED_MARK.into(), version: VERSION, bytes: Arc::default() }
}

#[cold]
fn undecodable(wanted: &str) -> Error {
    Error::new(ErrorKind::Undecodable { wanted: wanted.to_owned() })
}

impl Serialize for Binary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Binary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Binary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Binary, E> {
                Ok(Binary(bytes.to_vec()))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Binary, E> {
                Ok(Binary(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes until {:?}", self.value().len(), self.until_unix_ms)
    }
}

/// What the keys of all documents of entries begin with.
pub(super) const ENTRIES: &str = "global/";
/// What the keys of all marks of large values that are not finished begin with. Not below `large/`: a list of marks must
/// not read the parts.
pub(super) const UNFINISHED: &str = "large-unfinished/";
/// What the keys of the parts and manifests of all large values begin with.
pub(super) const LARGE: &str = "large/";

const VALUE: &str = "value";
const EXPIRING: &str = "expiring";
const MANIFEST: &str = "manifest";
const PART: &str = "part";
const UNFINISHED_MARK: &str = "unfinished";
const VERSION: u32 = 1;

/// An array of two, the first of which is a number of 64 bits: of fixed length, so that the value begins where it does.
const EXPIRING_MARKS: [u8; 2] = [0x92, 0xcf];
const EXPIRING_HEAD: usize = EXPIRING_MARKS.len() + size_of::<u64>();

const RECORD_VERSION: u8 = 1;
const GLOBAL: &str = "global";
const CHANGE: &str = "record of a change of global state";
const SET: &str = "set";
const DELETED: &str = "delete";
const EXPIRED: &str = "expire";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMAT: &str = include_str!("../../../../docs/format.md");

    fn told(change: Made) -> Told {
        let event = "0197a5d0-7c00-7000-8000-000000000002".parse().ok();
        let author = Author { node: Some("orders".into()), event };
        Told { name: "team:red/plan".into(), revision: 3, change, author }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn bytes(told: &Told) -> Vec<u8> {
        told.to_record().unwrap().bytes.to_vec()
    }

    #[test]
    fn the_vectors_in_the_documentation_are_true() {
        let set = told(Made::Set(Kept::new(&[0xa2, b'g', b'o'], Some(1_750_000_000_000))));
        let expired = Told { author: Author::default(), ..told(Made::Expired) };
        let content = Kept::new(&[0xa2, b'g', b'o'], Some(1_750_000_000_000)).to_content();
        let vectors = [
            ("a record that sets", bytes(&set)),
            ("a record of an expiry", bytes(&expired)),
            ("a content that expires", content.bytes.to_vec()),
        ];
        for (what, bytes) in vectors {
            let row = format!("| {what} | {} |", hex(&bytes));
            assert!(FORMAT.contains(&row), "docs/format.md lacks {row}");
        }
    }

    #[test]
    fn records_and_contents_come_back() {
        for until in [None, Some(0), Some(u64::MAX)] {
            for value in [&[0xc0][..], &[], &[7; 300]] {
                let kept = Kept::new(value, until);
                assert_eq!(kept.value(), value);
                assert_eq!(Kept::of_content(&kept.to_content()).unwrap(), kept);
                let set = told(Made::Set(kept));
                assert_eq!(Told::of_record(&bytes(&set)).unwrap(), set);
            }
        }
        for change in [Made::Deleted, Made::Expired] {
            let told = told(change);
            assert_eq!(Told::of_record(&bytes(&told)).unwrap(), told);
        }
    }

    #[test]
    fn other_versions_and_kinds_are_refused_and_later_fields_are_not() {
        let mut record = bytes(&told(Made::Deleted));
        record[0] = 2;
        let error = Told::of_record(&record).unwrap_err();
        assert_eq!(
            (error.code(), error.context_lines().next()),
            ("undecodable", Some("the record has version 2"))
        );
        for other in [
            "{}",
            r#"{"is":"x","key":"a","rev":1,"do":"set"}"#,
            r#"{"is":"global","key":"a","rev":1,"do":"set"}"#,
        ] {
            let json: serde_json::Value = serde_json::from_str(other).unwrap();
            let mut record = vec![1];
            content::encode_into(&json, "json", &mut record).unwrap();
            assert_eq!(Told::of_record(&record).unwrap_err().code(), "undecodable", "{other}");
        }
        let later =
            serde_json::json!({"is": "global", "key": "a", "rev": 1, "do": "delete", "mood": [1, {"a": 2}]});
        let mut record = vec![1];
        content::encode_into(&later, "json", &mut record).unwrap();
        assert_eq!(Told::of_record(&record).unwrap().change, Made::Deleted);
        assert_eq!(Told::of_record(&[]).unwrap_err().code(), "undecodable");
        let content = Content { version: 2, ..Kept::new(&[1], None).to_content() };
        assert_eq!(Kept::of_content(&content).unwrap_err().code(), "undecodable");
        for short in 0..EXPIRING_HEAD {
            let bytes = Kept::new(&[], Some(7)).to_content().bytes[..short].into();
            let content = Content { name: EXPIRING.into(), version: VERSION, bytes };
            assert_eq!(Kept::of_content(&content).unwrap_err().code(), "undecodable", "{short}");
        }
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_record_are_an_error_and_no_panic(
            noise in prop::collection::vec(any::<u8>(), 0..60),
            cut: usize,
        ) {
            prop_assert!(Told::of_record(&noise).is_err() || noise.first() == Some(&1));
            let whole = bytes(&told(Made::Set(Kept::new(&noise, Some(7)))));
            let cut = cut % whole.len();
            prop_assert_eq!(Told::of_record(&whole[..cut]).unwrap_err().code(), "undecodable");
        }

        #[test]
        fn names_come_back_from_their_keys_and_prefixes_stay_prefixes(a in "[a/%25F]{0,6}", b in "[a/%25F]{0,6}") {
            let key = document_key(&a);
            prop_assert_eq!(entry_name(&key).unwrap(), &*a);
            prop_assert_eq!(document_key(&b).starts_with(&*key), b.starts_with(&a));
        }
    }
}
