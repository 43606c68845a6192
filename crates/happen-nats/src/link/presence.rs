//! The bytes by which members tell who they are and what they listen to, as docs/format.md has them. Owns writing and
//! reading; does not know who is there.

use std::collections::BTreeMap;

use happen_core::Pattern;
use happen_core::link::{NodePresence, Routing};
use happen_core::pattern::{Shape, domain, exact};

use super::frame::{HEADER_BYTES_MAX, Header, Input, Unreadable, carry, kind};
use crate::limits;

/// Nodes by their ids, with what they handle.
pub(super) type Nodes = BTreeMap<String, Vec<Pattern>>;

/// What one member tells of itself.
#[derive(Debug)]
pub(super) enum Presence<'a> {
    /// All nodes, or a part of them.
    Announce { stamp: u64, part: u32, parts: u32, nodes: Nodes },
    /// What is different from an earlier revision.
    Change { stamp: u64, base: u64, removed: Vec<&'a str>, nodes: Nodes },
    /// It is there.
    Beat { stamp: u64 },
    /// It is not any more.
    Leave,
    /// This run of a member, or every one when it is 0, has to announce itself to the member that asks.
    Ask { instance: u64 },
    /// Who joins wants to know the latest stamp that anybody has seen.
    Hello,
}

impl<'a> Presence<'a> {
    pub(super) fn read(header: &Header<'_>, mut input: Input<'a>) -> Result<Self, Unreadable> {
        let input = &mut input;
        let presence = match header.kind {
            kind::ANNOUNCE => {
                let (stamp, part, parts) = (input.u64()?, input.u32()?, input.u32()?);
                if part >= parts || parts > limits::PRESENCE_PARTS_MAX {
                    return Err(Unreadable("a part of an announcement that cannot be"));
                }
                Self::Announce { stamp, part, parts, nodes: read_nodes(input)? }
            }
            kind::CHANGE => {
                let (stamp, base, count) = (input.u64()?, input.u64()?, input.u32()?);
                let mut removed = Vec::new();
                for _ in 0..count {
                    removed.push(input.text()?);
                }
                Self::Change { stamp, base, removed, nodes: read_nodes(input)? }
            }
            kind::BEAT => Self::Beat { stamp: input.u64()? },
            kind::LEAVE => Self::Leave,
            kind::ASK => Self::Ask { instance: input.u64()? },
            kind::HELLO => Self::Hello,
            _ => return Err(Unreadable("a message of a kind that is not known")),
        };
        if input.is_empty() { Ok(presence) } else { Err(Unreadable("bytes after its end")) }
    }
}

/// A message of nothing but a header and these numbers.
pub(super) fn plain(header: &Header<'_>, numbers: &[u64]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_BYTES_MAX + 8 * numbers.len());
    header.write(&mut message);
    for number in numbers {
        message.extend(number.to_le_bytes());
    }
    message
}

/// The messages that announce these nodes, each of at most so many bytes; and the ids of nodes that fit into none.
pub(super) fn announce(
    header: &Header<'_>,
    stamp: u64,
    nodes: &Nodes,
    bytes_max: usize,
) -> (Vec<Vec<u8>>, Vec<String>) {
    let room = bytes_max.saturating_sub(HEADER_BYTES_MAX + 16);
    let mut bodies = vec![Vec::new()];
    let mut left_out = Vec::new();
    let mut node = Vec::new();
    for (id, handles) in nodes {
        node.clear();
        write_node(&mut node, id, handles);
        let may_begin = node.len() <= room && bodies.len() < limits::PRESENCE_PARTS_MAX as usize;
        match bodies.last_mut() {
            Some(body) if body.len() + node.len() <= room => body.extend(&node),
            _ if may_begin => bodies.push(node.clone()),
            _ => left_out.push(id.clone()),
        }
    }
    let parts = bodies.len() as u32;
    let messages = (0..parts).zip(bodies).map(|(part, body)| {
        let mut message = Vec::with_capacity(HEADER_BYTES_MAX + 16 + body.len());
        header.write(&mut message);
        message.extend(stamp.to_le_bytes());
        message.extend(part.to_le_bytes());
        message.extend(parts.to_le_bytes());
        message.extend(body);
        message
    });
    (messages.collect(), left_out)
}

/// The message that tells what is different from what was told before.
pub(super) fn change(header: &Header<'_>, stamp: u64, before: &Nodes, now: &Nodes) -> Vec<u8> {
    let mut message = plain(header, &[stamp, header.number - 1]);
    let removed: Vec<_> = before.keys().filter(|id| !now.contains_key(*id)).collect();
    message.extend((removed.len() as u32).to_le_bytes());
    for id in removed {
        carry(&mut message, id.as_bytes());
    }
    for (id, handles) in now {
        if before.get(id).is_none_or(|before| !equal(before, handles)) {
            write_node(&mut message, id, handles);
        }
    }
    message
}

/// Nodes as the runtime tells them. Of one id there is one; one that shares its work has an entry more, whose id says so.
/// Members that do not know of sharing see an id that listens to nothing and that nothing can be sent to.
pub(super) fn by_id(nodes: Vec<NodePresence>) -> Nodes {
    let mut all = Nodes::new();
    for NodePresence { id, handles, share } in nodes {
        if let Some(routing) = share {
            all.insert(format!("{SHARED}{}:{id}", routing.as_str()), Vec::new());
        }
        all.insert(id, handles);
    }
    all
}

/// Nodes as the runtime reads them.
pub(super) fn presence_of(nodes: &Nodes) -> Vec<NodePresence> {
    let shares = shares_of(nodes);
    let told = nodes.iter().filter(|(id, _)| !id.starts_with(SHARED));
    told.map(|(id, handles)| NodePresence {
        id: id.clone(),
        handles: handles.clone(),
        share: shares.get(id.as_str()).copied(),
    })
    .collect()
}

/// The nodes that share their work, and how. A way that is not known here is one after the other.
pub(super) fn shares_of(nodes: &Nodes) -> BTreeMap<&str, Routing> {
    let marks = nodes.keys().filter_map(|id| id.strip_prefix(SHARED)?.split_once(':'));
    marks.map(|(routing, id)| (id, Routing::parse(routing).unwrap_or(Routing::RoundRobin))).collect()
}

/// Whether these are told alike. Two patterns with functions in them are.
pub(super) fn equal(a: &[Pattern], b: &[Pattern]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.shape() == b.shape())
}

fn write_node(out: &mut Vec<u8>, id: &str, handles: &[Pattern]) {
    carry(out, id.as_bytes());
    out.extend((handles.len() as u32).to_le_bytes());
    for pattern in handles {
        let (shape, text) = match pattern.shape() {
            Shape::Text(text) => (1, text),
            Shape::Exact(text) => (2, text),
            Shape::Domain(name) => (3, name),
            _ => (0, ""),
        };
        out.push(shape);
        carry(out, text.as_bytes());
    }
}

fn read_nodes(input: &mut Input<'_>) -> Result<Nodes, Unreadable> {
    let mut nodes = Nodes::new();
    while !input.is_empty() {
        let id = input.text()?;
        let count = input.u32()?;
        let mut handles = Vec::new();
        for _ in 0..count {
            handles.push(read_pattern(input.u8()?, input.text()?));
        }
        nodes.insert(id.to_owned(), handles);
    }
    Ok(nodes)
}

/// A pattern that cannot be told, or not be read here, stands for everything: too much is sent then, and the member
/// itself looks what it takes.
fn read_pattern(shape: u8, text: &str) -> Pattern {
    let everything = || Pattern::runtime(|_| true);
    match shape {
        1 => Pattern::parse(text).unwrap_or_else(|_| everything()),
        2 => exact(text),
        3 => domain(text),
        _ => everything(),
    }
}

/// What the id of the entry begins with that says how a node shares its work.
const SHARED: &str = "$shared:";

#[cfg(test)]
mod tests {
    use happen_core::pattern::predicate;

    use super::*;

    const HEADER: Header<'static> = Header { kind: kind::ANNOUNCE, instance: 7, number: 3, name: "a" };

    fn nodes(count: usize) -> Nodes {
        let pattern = |text| Pattern::parse(text).unwrap();
        (0..count).map(|index| (format!("node-{index}"), vec![pattern("order.*"), exact("a.*")])).collect()
    }

    fn read(message: &[u8]) -> Presence<'_> {
        let mut input = Input::new(message);
        let header = Header::read(&mut input).unwrap();
        Presence::read(&header, input).unwrap()
    }

    #[test]
    fn nodes_are_told_in_as_many_parts_as_they_need() {
        let told = nodes(100);
        let (messages, left_out) = announce(&HEADER, 9, &told, 1_000);
        assert!(messages.len() > 3 && left_out.is_empty());
        let mut all = Nodes::new();
        for (index, message) in messages.iter().enumerate() {
            assert!(message.len() <= 1_000);
            let Presence::Announce { stamp: 9, part, parts, nodes } = read(message) else { panic!() };
            assert_eq!((part as usize, parts as usize), (index, messages.len()));
            all.extend(nodes);
        }
        assert_eq!(all.keys().collect::<Vec<_>>(), told.keys().collect::<Vec<_>>());
        assert!(all.iter().all(|(id, handles)| equal(handles, &told[id])));
        let (messages, _) = announce(&HEADER, 9, &Nodes::new(), 1_000);
        assert_eq!(messages.len(), 1);
    }

    #[test]
    fn the_parts_of_an_announcement_have_an_end() {
        let room = HEADER_BYTES_MAX + 16 + 60;
        let max = limits::PRESENCE_PARTS_MAX as usize;
        for (count, parts, left_out) in [(max - 1, max - 1, 0), (max, max, 0), (max + 1, max, 1)] {
            let (messages, left) = announce(&HEADER, 9, &nodes(count), room);
            assert_eq!((messages.len(), left.len()), (parts, left_out));
        }
        let mut large = nodes(1);
        large.insert("x".repeat(room), Vec::new());
        assert_eq!(announce(&HEADER, 9, &large, room).1, ["x".repeat(room)]);
    }

    #[test]
    fn a_node_that_shares_its_work_is_told_so_that_older_readers_understand() {
        let node = |id: &str, share| NodePresence { id: id.into(), handles: vec![exact("x")], share };
        let told = by_id(vec![
            node("alone", None),
            node("a:b", Some(Routing::Sticky)),
            node("resize", Some(Routing::ByKey)),
        ]);
        let (messages, left_out) = announce(&HEADER, 9, &told, 1_000);
        assert!(left_out.is_empty());
        let Presence::Announce { mut nodes, .. } = read(&messages[0]) else { panic!() };
        // All that is new is an id that is reserved, with no pattern.
        let new: Vec<_> = nodes.keys().filter(|id| id.starts_with('$')).cloned().collect();
        assert_eq!(new, ["$shared:by-key:resize", "$shared:sticky:a:b"]);
        assert!(new.iter().all(|id| nodes[id].is_empty()));
        nodes.insert("$shared:of-the-future:alone".into(), Vec::new());
        let read: Vec<_> = presence_of(&nodes).into_iter().map(|node| (node.id, node.share)).collect();
        let expected = [
            ("a:b", Some(Routing::Sticky)),
            ("alone", Some(Routing::RoundRobin)),
            ("resize", Some(Routing::ByKey)),
        ];
        assert_eq!(read, expected.map(|(id, share)| (id.to_owned(), share)));
        // A node that shares no more takes the entry back.
        let now = by_id(vec![node("resize", None)]);
        let message = change(&Header { kind: kind::CHANGE, ..HEADER }, 9, &nodes, &now);
        let Presence::Change { removed, nodes, .. } = self::read(&message) else { panic!() };
        assert!(removed.contains(&"$shared:by-key:resize") && nodes.is_empty(), "{removed:?} {nodes:?}");
    }

    #[test]
    fn a_change_tells_what_is_different() {
        let (before, mut now) = (nodes(3), nodes(3));
        now.remove("node-0");
        now.insert("node-1".into(), vec![domain("order")]);
        now.insert("node-9".into(), vec![predicate(|_| true)]);
        let message = change(&Header { kind: kind::CHANGE, ..HEADER }, 9, &before, &now);
        let Presence::Change { stamp: 9, base: 2, removed, nodes } = read(&message) else { panic!() };
        assert_eq!(removed, ["node-0"]);
        assert_eq!(nodes.keys().collect::<Vec<_>>(), ["node-1", "node-9"]);
        assert_eq!(nodes["node-1"][0].shape(), Shape::Domain("order"));
        // What cannot be told is taken for everything.
        assert!(nodes["node-9"][0].matches("anything") && nodes["node-9"][0].matches_runtime("x.error"));
    }
}
