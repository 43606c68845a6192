//! Frames come back as they were, damaged ones are refused, and docs/format.md shows them as they are.

use happen_core::Pattern;
use happen_core::link::{NodePresence, Routing};
use happen_core::pattern::{domain, exact, predicate};

use super::super::presence::{Nodes, Presence, announce, by_id, change, plain};
use super::*;

const FORMAT: &str = include_str!("../../../../../docs/format.md");

const ALL: [Frame<'static>; 14] = [
    Frame::Post { to: "orders", bytes: b"event" },
    Frame::Request { number: 7, credit: 64, to: "orders", bytes: b"event" },
    Frame::Publish { bytes: b"event" },
    Frame::Cancel { number: 7 },
    Frame::Sync,
    Frame::Returned,
    Frame::Reply { number: 7, bytes: b"reply" },
    Frame::Last { number: 7, bytes: b"reply" },
    Frame::End { number: 7 },
    Frame::Oversized { number: 7, bytes: 2_000_000, bytes_max: 1_048_429 },
    Frame::Broken { number: 7 },
    Frame::Credit { number: 7, units: 32 },
    Frame::Handed { number: 9 },
    Frame::Leave,
];

fn header(kind: u8, number: u64) -> Header<'static> {
    Header { kind, instance: 0x0102_0304_0506_0708, number, name: "api-1" }
}

fn envelope(kind: u8, frames: &[Frame<'_>]) -> Vec<u8> {
    let mut message = Vec::new();
    header(kind, 0).write(&mut message);
    frames.iter().for_each(|frame| frame.write(&mut message));
    Header::set_number(&mut message, 3);
    message
}

fn read(message: &[u8]) -> Result<(Header<'_>, Frames<'_>), Unreadable> {
    let mut input = Input::new(message);
    let header = Header::read(&mut input)?;
    Ok((header, Frames::read(input)?))
}

#[test]
fn frames_come_back() {
    let message = envelope(kind::EVENTS, &ALL);
    let (read_header, frames) = read(&message).unwrap();
    assert_eq!(read_header, header(kind::EVENTS, 3));
    assert_eq!(frames.collect::<Vec<_>>(), ALL);
    for frame in ALL {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        assert!(bytes.len() <= frame.bytes_max(), "{frame:?}");
    }
}

#[test]
fn an_envelope_is_taken_whole_or_not_at_all() {
    let message = envelope(kind::EVENTS, &ALL);
    let whole: Vec<usize> =
        (0..=ALL.len()).map(|count| envelope(kind::EVENTS, &ALL[..count]).len()).collect();
    for length in 0..message.len() {
        assert_eq!(read(&message[..length]).is_ok(), whole.contains(&length), "{length}");
    }
    for (at, byte, reason) in [
        (0, 2, "a version that is not known"),
        (18, 0, "a name that is none"),
        (18, 129, "a name that is none"),
        (19, 0xff, "a text that is no UTF-8"),
        (24, 99, "a frame of a kind that is not known"),
        // A length of 4 GiB allocates nothing.
        (28, 0xff, "it ends too early"),
    ] {
        let mut message = message.clone();
        message[at] = byte;
        assert_eq!(read(&message).unwrap_err(), Unreadable(reason), "{at}");
    }
}

#[test]
fn any_flipped_bit_is_survived() {
    let (nodes, _) = nodes();
    let (mut messages, _) = announce(&header(kind::ANNOUNCE, 1), 9, &nodes, 10_000);
    messages.push(change(&header(kind::CHANGE, 2), 9, &Nodes::new(), &nodes));
    messages.push(envelope(kind::REPLIES, &ALL));
    for message in messages {
        for bit in 0..message.len() * 8 {
            let mut changed = message.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let mut input = Input::new(&changed);
            if let Ok(header) = Header::read(&mut input) {
                let _ = Presence::read(&header, input.clone());
                let _ = Frames::read(input).map(Iterator::count);
            }
        }
    }
}

#[test]
fn a_reply_costs_what_it_takes() {
    let unit = limits::CREDIT_UNIT_BYTES;
    assert_eq!([0, unit - 1, unit, unit + 1, 64 * unit].map(units), [1, 1, 2, 2, 65]);
    assert_eq!(units(usize::MAX), u32::MAX);
}

fn nodes() -> (Nodes, Nodes) {
    let parsed = Pattern::parse("order.*").unwrap();
    let before = Nodes::from([("orders".into(), vec![parsed.clone()]), ("old".into(), vec![])]);
    let mixed = vec![parsed, exact("paid"), domain("tax"), predicate(|_| true)];
    (Nodes::from([("orders".into(), mixed)]), before)
}

#[test]
fn the_vectors_in_the_documentation_are_true() {
    let (nodes, before) = nodes();
    let announced = announce(&header(kind::ANNOUNCE, 1), 1_750_000_000_000, &nodes, 10_000).0.remove(0);
    let changed = change(&header(kind::CHANGE, 2), 1_750_000_000_000, &before, &nodes);
    let resize = NodePresence {
        id: "resize".into(),
        handles: vec![exact("image")],
        share: Some(Routing::LeastLoaded),
    };
    let shared = by_id(vec![resize]);
    let announced_shared =
        announce(&header(kind::ANNOUNCE, 1), 1_750_000_000_000, &shared, 10_000).0.remove(0);
    let vectors = [
        ("events", envelope(kind::EVENTS, &ALL[..6])),
        ("replies", envelope(kind::REPLIES, &ALL[6..])),
        ("announce", announced),
        ("announce-shared", announced_shared),
        ("change", changed),
        ("beat", plain(&header(kind::BEAT, 2), &[1_750_000_000_000])),
        ("leave", plain(&header(kind::LEAVE, 0), &[])),
        ("ask", plain(&header(kind::ASK, 2), &[0])),
        ("hello", plain(&header(kind::HELLO, 0), &[])),
        ("hello-answer", plain(&header(kind::HELLO, 0), &[1_750_000_000_000])),
        ("claim", plain(&header(kind::CLAIM, 0), &[])),
    ];
    let mut lacking = String::new();
    for (name, bytes) in vectors {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let lines: Vec<_> =
            hex.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let vector = format!("```message {name}\n{}\n```", lines.join("\n"));
        if !FORMAT.contains(&vector) {
            lacking += &format!("{vector}\n\n");
        }
    }
    assert!(lacking.is_empty(), "docs/format.md lacks\n{lacking}");
}
