//! How a record, a document and a pruning are rows: which tag stands in which column, and the checksum of each. Owns
//! the encoding, of which `docs/format.md` tells; does not know the statements.

use std::borrow::Cow;
use std::sync::Arc;

use happen_core::EventId;
use happen_core::limits::KEY_BYTES_MAX;
use happen_core::store::{Content, Document, Tag};
use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};

/// The kinds of tags as numbers: those of columns first, in the order of the columns.
pub(super) const EVENT: u8 = 1;
pub(super) const CAUSE: u8 = 2;
pub(super) const CORRELATION: u8 = 3;
pub(super) const NODE: u8 = 4;
pub(super) const TYPE: u8 = 5;
pub(super) const SENDER: u8 = 6;
pub(super) const DECLARED: u8 = 7;

/// Set in the number of a kind when the tag itself follows it, and not when a column has it.
const INLINE: u8 = 0x80;

/// The number of a tag's kind; `None` for a kind that a later version has, which nobody can have written here.
pub(super) fn kind(tag: &Tag) -> Option<u8> {
    match tag {
        Tag::Event(_) => Some(EVENT),
        Tag::Cause(_) => Some(CAUSE),
        Tag::Correlation(_) => Some(CORRELATION),
        Tag::Node(_) => Some(NODE),
        Tag::Type(_) => Some(TYPE),
        Tag::Sender(_) => Some(SENDER),
        Tag::Declared(_) => Some(DECLARED),
        _ => None,
    }
}

/// The value of a tag as it is kept: an id as its 16 bytes, also when it is the text of a correlation; any other text
/// as it is.
#[derive(Debug, Clone)]
pub(super) enum TagValue<'t> {
    Id([u8; 16]),
    Text(&'t str),
}

impl<'t> TagValue<'t> {
    pub(super) fn of(tag: &'t Tag) -> Self {
        match tag {
            Tag::Event(id) | Tag::Cause(id) => Self::Id(id.to_bytes()),
            Tag::Correlation(text) => match text.parse::<EventId>() {
                // Only a text that is shown so again; an id may be written in other ways too.
                Ok(id) if id.to_string() == **text => Self::Id(id.to_bytes()),
                _ => Self::Text(text),
            },
            Tag::Node(text) | Tag::Type(text) | Tag::Sender(text) | Tag::Declared(text) => Self::Text(text),
            _ => Self::Text(""),
        }
    }
}

impl ToSql for TagValue<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Id(bytes) => ValueRef::Blob(bytes),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

/// Which tags of a record stand in its columns: the first one of each kind but the declared.
#[derive(Debug, Default)]
pub(super) struct Columns<'t> {
    first: [Option<&'t Tag>; 6],
    further: Vec<&'t Tag>,
    /// The list of tags, unless it is what the columns are in their order.
    pub(super) list: Option<Vec<u8>>,
}

impl<'t> Columns<'t> {
    pub(super) fn of(tags: &'t [Tag]) -> Self {
        let mut columns = Self::default();
        let mut list = Vec::new();
        let mut last = 0;
        let mut plain = true;
        for tag in tags {
            let Some(kind) = kind(tag) else { continue };
            match columns.first.get_mut(usize::from(kind) - 1) {
                Some(free @ None) => {
                    *free = Some(tag);
                    plain &= kind > last;
                    last = kind;
                    list.push(kind);
                }
                _ => {
                    plain = false;
                    columns.further.push(tag);
                    put_tag(&mut list, tag);
                }
            }
        }
        columns.list = (!plain).then_some(list);
        columns
    }

    /// The tag in the column of this kind.
    pub(super) fn first(&self, kind: u8) -> Option<&'t Tag> {
        self.first.get(usize::from(kind) - 1).copied().flatten()
    }

    pub(super) fn value(&self, kind: u8) -> Option<TagValue<'t>> {
        self.first(kind).map(TagValue::of)
    }

    /// The tags that have rows, each once.
    pub(super) fn further(&mut self) -> &[&'t Tag] {
        if self.further.len() > 1 {
            self.further.sort_unstable();
            self.further.dedup();
        }
        &self.further
    }
}

/// Writes a list of tags that stands alone.
pub(super) fn put_tags(tags: &[Tag]) -> Vec<u8> {
    let mut out = Vec::new();
    for tag in tags {
        put_tag(&mut out, tag);
    }
    out
}

fn put_tag(out: &mut Vec<u8>, tag: &Tag) {
    let Some(kind) = kind(tag) else { return };
    out.push(kind | INLINE);
    match tag {
        Tag::Event(id) | Tag::Cause(id) => out.extend(id.to_bytes()),
        _ => put_text(out, &tag.text()),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // At most 1 024, which every batch is checked for.
    let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.extend(len.to_le_bytes());
    out.extend(text.bytes().take(usize::from(len)));
}

/// Writes prefixes of keys.
pub(super) fn put_keys(keys: &[Arc<str>]) -> Vec<u8> {
    let mut out = Vec::new();
    for key in keys {
        put_text(&mut out, key);
    }
    out
}

pub(super) fn keys(bytes: &[u8]) -> Option<Vec<Arc<str>>> {
    let mut rest = bytes;
    let mut keys = Vec::new();
    while !rest.is_empty() {
        keys.push(text(&mut rest)?.into());
    }
    Some(keys)
}

/// Reads a list of tags; `column` gives those that it leaves to the columns. `None` when it is no such list.
pub(super) fn tags(list: &[u8], mut column: impl FnMut(u8) -> Option<Tag>) -> Option<Vec<Tag>> {
    let mut rest = list;
    let mut tags = Vec::new();
    while let Some((&kind, behind)) = rest.split_first() {
        rest = behind;
        if kind & INLINE == 0 {
            tags.push(column(kind)?);
            continue;
        }
        tags.push(match kind & !INLINE {
            EVENT => Tag::Event(id(&mut rest)?),
            CAUSE => Tag::Cause(id(&mut rest)?),
            CORRELATION => Tag::Correlation(text(&mut rest)?.into()),
            NODE => Tag::Node(text(&mut rest)?.into()),
            TYPE => Tag::Type(text(&mut rest)?.into()),
            SENDER => Tag::Sender(text(&mut rest)?.into()),
            DECLARED => Tag::Declared(text(&mut rest)?.into()),
            _ => return None,
        });
    }
    Some(tags)
}

fn id(rest: &mut &[u8]) -> Option<EventId> {
    let (bytes, behind) = rest.split_first_chunk::<16>()?;
    *rest = behind;
    EventId::from_bytes(*bytes)
}

fn text<'b>(rest: &mut &'b [u8]) -> Option<&'b str> {
    let (len, behind) = rest.split_first_chunk::<2>()?;
    let len = usize::from(u16::from_le_bytes(*len));
    if len > KEY_BYTES_MAX {
        return None;
    }
    let (text, behind) = behind.split_at_checked(len)?;
    *rest = behind;
    std::str::from_utf8(text).ok()
}

/// The first eight bytes of a BLAKE3 hash. They find what a disk or a memory changed, not what somebody forged: for
/// that, events have hashes of their own.
struct Checksum(blake3::Hasher);

impl Checksum {
    fn new(what: u8) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[what]);
        Self(hasher)
    }

    fn number(&mut self, number: i64) -> &mut Self {
        self.0.update(&number.to_le_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    fn end(&self) -> i64 {
        let mut first = [0; 8];
        self.0.finalize_xof().fill(&mut first);
        i64::from_le_bytes(first)
    }
}

pub(super) fn record_checksum(position: i64, at_unix_ms: i64, tags: &[Tag], bytes: &[u8]) -> i64 {
    let mut sum = Checksum::new(b'r');
    sum.number(position).number(at_unix_ms).number(tags.len() as i64);
    for tag in tags {
        sum.0.update(&[kind(tag).unwrap_or(0)]);
        match tag {
            Tag::Event(id) | Tag::Cause(id) => sum.bytes(&id.to_bytes()),
            _ => sum.bytes(match tag.text() {
                Cow::Borrowed(text) => text.as_bytes(),
                Cow::Owned(_) => &[],
            }),
        };
    }
    sum.bytes(bytes).end()
}

pub(super) fn document_checksum(document: &Document, position: i64) -> i64 {
    let Document { key, revision, position: _, at_unix_ms, content } = document;
    let mut sum = Checksum::new(b'd');
    sum.bytes(key.as_bytes()).number(*revision as i64).number(position).number(*at_unix_ms as i64);
    if let Some(Content { name, version, bytes }) = content {
        sum.bytes(name.as_bytes()).number(i64::from(*version)).bytes(bytes);
    }
    sum.end()
}

pub(super) fn log_checksum(head: i64, at_unix_ms: i64) -> i64 {
    Checksum::new(b'l').number(head).number(at_unix_ms).end()
}

pub(super) fn prune_checksum(before: i64, selected: Option<&[u8]>, keep: &[u8], histories: &[u8]) -> i64 {
    let mut sum = Checksum::new(b'p');
    sum.number(before).number(i64::from(selected.is_some())).bytes(selected.unwrap_or_default());
    sum.bytes(keep).bytes(histories).end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(text: &str) -> Tag {
        Tag::Declared(text.into())
    }

    fn event(number: u64) -> EventId {
        EventId::from_halves(7, number).unwrap()
    }

    /// The list as a reader gets it back, with what the columns have.
    fn back(tags: &[Tag]) -> Vec<Tag> {
        let columns = Columns::of(tags);
        match &columns.list {
            Some(list) => super::tags(list, |kind| columns.first(kind).cloned()).unwrap(),
            None => (EVENT..=SENDER).filter_map(|kind| columns.first(kind).cloned()).collect(),
        }
    }

    #[test]
    fn tags_come_back_in_their_order_whatever_they_are() {
        let (node, kind) = (Tag::Node("a".into()), Tag::Type("b".into()));
        let cases = [
            vec![],
            vec![Tag::Event(event(1)), Tag::Cause(event(2)), node.clone(), kind.clone()],
            vec![kind.clone(), node.clone()],
            vec![node.clone(), node.clone()],
            vec![Tag::Cause(event(1)), Tag::Cause(event(2)), declared("x"), Tag::Event(event(3))],
            vec![declared(""), declared(&"é".repeat(512)), declared(""), Tag::Sender("s".into())],
            vec![Tag::Correlation(event(1).to_string().into()), Tag::Correlation("order 7".into())],
        ];
        for tags in cases {
            assert_eq!(back(&tags), tags);
            assert_eq!(super::tags(&put_tags(&tags), |_| None).unwrap(), tags);
        }
        // The common case needs no list.
        assert_eq!(Columns::of(&[Tag::Event(event(1)), node, kind]).list, None);
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        let list = put_tags(&[declared("ab"), Tag::Event(event(9))]);
        for len in 1..list.len() {
            let cut = tags(&list[..len], |_| None);
            assert!(cut.is_none_or(|tags| tags.len() == 1), "{len}");
        }
        for bad in [&[0x88][..], &[8], &[0x87, 255, 255, 0], &[0x87, 1, 0, 0xff]] {
            assert_eq!(tags(bad, |_| None), None, "{bad:?}");
        }
    }

    /// The vectors of the document, which people who write other readers go by.
    #[test]
    fn checksums_are_those_of_the_document() {
        let tags = [Tag::Event(event(9)), Tag::Type("order.created".into()), declared("order:7")];
        let content = Content { name: "orders".into(), version: 2, bytes: (*b"paid").into() };
        let mut document = Document {
            key: "state/shop/orders".into(),
            revision: 3,
            position: happen_core::store::Position::from_number(17),
            at_unix_ms: 1_750_000_000_000,
            content: Some(content),
        };
        let with_content = document_checksum(&document, 17);
        document.content = None;
        let vectors = [
            ("record", record_checksum(17, 1_750_000_000_000, &tags, b"paid")),
            ("document", with_content),
            ("deleted document", document_checksum(&document, 17)),
            ("log", log_checksum(17, 1_750_000_000_000)),
            ("pruning", prune_checksum(17, None, &put_tags(&tags[2..]), &put_keys(&["state/".into()]))),
        ];
        let format = include_str!("../../../../../docs/format.md");
        for (what, checksum) in vectors {
            let row = format!("| {what} | {checksum} |");
            assert!(format.contains(&row), "docs/format.md lacks {row}");
        }
    }

    #[test]
    fn a_correlation_is_an_id_only_when_it_is_shown_so_again() {
        let id = event(5).to_string();
        let value = |text: &str| matches!(TagValue::of(&Tag::Correlation(text.into())), TagValue::Id(_));
        assert!(value(&id));
        assert!(!value(&id.replace('-', "")));
        assert!(!value(&id.to_uppercase().replace('0', "A")));
        assert!(!value("order 7"));
    }
}
