//! Round trips, damaged bytes, limits, and the vectors of `docs/format.md`, which are read from there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::codec::msgpack::{Head, put_head, put_text};
use crate::error::{Error, ErrorKind};
use crate::event::{Envelope, NodeKey, PATH_HOPS_MAX, Path, Purpose};
use crate::hash::{EventHash, hash_event};
use crate::id::EventId;
use crate::limits::*;
use crate::name::EventType;
use crate::payload::ErasedPayload;

const FORMAT: &str = include_str!("../../../../docs/format.md");

fn id(number: u64) -> EventId {
    EventId::from_halves(0x0197_a5d0_7c00_7000, 1 << 63 | number).unwrap()
}

fn leak<T: ?Sized>(owned: Box<T>) -> &'static T {
    Box::leak(owned)
}

fn any_id() -> impl Strategy<Value = EventId> {
    (1..=u64::MAX, any::<u64>()).prop_map(|(high, low)| EventId::from_halves(high, low).unwrap())
}

fn any_text() -> impl Strategy<Value = Cow<'static, str>> {
    "[a-zé.*]{0,40}".prop_map(Cow::from)
}

fn any_cause() -> impl Strategy<Value = CauseLink<'static>> {
    prop_oneof![
        any_id().prop_map(|id| CauseLink::Bare { id }),
        (any_id(), any::<[u8; 32]>())
            .prop_map(|(id, hash)| CauseLink::Known { id, hash: EventHash::from(hash) }),
        (any_id(), any_text()).prop_map(|(id, text)| {
            CauseLink::Local { id, event_type: leak(text.into_owned().into_boxed_str()) }
        }),
    ]
}

fn any_unknown() -> impl Strategy<Value = Vec<UnknownField<'static>>> {
    let value = prop_oneof![
        Just(&[0xc0][..]),
        Just(&[0x81, 0xa1, b'a', 0x92, 1, 2][..]),
        Just(&[0xc7, 2, 9, 1, 2][..])
    ];
    prop::collection::btree_map("_?x[a-z]{1,6}", value, 0..4).prop_map(|fields| {
        let field = |(key, value): (String, _)| UnknownField { key: leak(key.into_boxed_str()), value };
        fields.into_iter().map(field).collect()
    })
}

/// Any event there can be.
pub(crate) fn any_event() -> impl Strategy<Value = WireEvent<'static>> {
    let who = (any_id(), any_text(), any::<u64>(), prop::option::of(any_id()), any::<u32>());
    let causes = (
        prop::option::of(any_cause()),
        prop::collection::vec(any_cause(), 0..4),
        prop::option::of(any::<[u8; 32]>()),
    );
    let nodes = (any_text(), any_text(), prop::collection::vec(any_text(), 0..=PATH_HOPS_MAX));
    let source = (
        prop::option::of(any_text()),
        prop::option::of(any_text()),
        prop::option::of(any_text()),
        prop::option::of((any_text(), prop::collection::vec(any_text(), 0..4))),
        prop::option::of((any_text(), any_text())),
        prop::collection::vec((any_text(), any_text()), 0..3),
    );
    let purpose =
        prop::sample::select(vec![Purpose::Send, Purpose::Ask, Purpose::Stream, Purpose::Broadcast]);
    let metadata = prop::collection::btree_map("[a-z]{1,9}", any::<i64>(), 0..3);
    let handover = (any::<[u8; 16]>(), any::<u128>(), any::<u128>());
    let handed = (prop::option::of(any_text()), prop::option::of(handover));
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    let rest = (purpose, any::<u64>(), metadata, any_unknown(), payload, handed);
    (who, causes, nodes, source, rest).prop_map(|(who, causes, nodes, source, rest)| {
        let mut event = WireEvent::new(who.0, who.1, who.2, leak(rest.4.into_boxed_slice()));
        event.root = who.3.unwrap_or(who.0);
        event.depth = who.4;
        if let Some(first) = causes.0 {
            event.cause = Some(first);
            event.more_causes = causes.1;
        }
        event.hash = causes.2.map(EventHash::from);
        event.sender = nodes.0;
        event.origin = nodes.1;
        event.path = nodes.2.into_iter().collect();
        event.correlation = source.0;
        event.source_id = source.1;
        event.source_type = source.2;
        event.user = source.3.map(|(id, permissions)| WireUser { id, permissions });
        event.trace = source.4.map(|(parent, state)| WireTrace { parent, state });
        event.delegations =
            source.5.into_iter().map(|(node, on_behalf_of)| WireDelegation { node, on_behalf_of }).collect();
        event.purpose = rest.0;
        event.deadline_unix_ms = rest.1;
        if !rest.2.is_empty() {
            event.metadata = rmp_serde::to_vec(&rest.2).unwrap().into();
        }
        event.unknown = rest.3;
        event.key = rest.5.0;
        event.handover = rest.5.1.map(|(space, at, after)| Handover { space, at, after });
        event
    })
}

fn any_kind() -> impl Strategy<Value = ErrorKind> {
    let text = || "[a-zé ]{0,12}";
    let texts = || prop::collection::vec("[a-z]{0,6}", 0..4);
    let places = (text(), text(), text(), texts(), any::<u64>(), any::<usize>(), any::<usize>());
    (0..31, places).prop_map(|(which, (a, b, c, list, number, size, other))| match which {
        0 => ErrorKind::NotStarted,
        1 => ErrorKind::Closed { what: a },
        2 => ErrorKind::NoSuchNode { node: a },
        3 => ErrorKind::NoHandler { node: a, event_type: b },
        4 => ErrorKind::Refused { node: a, reason: b },
        5 => ErrorKind::Busy { what: a },
        6 => ErrorKind::Failed,
        7 => ErrorKind::Panicked { message: a },
        8 => ErrorKind::TimedOut { after: Duration::from_nanos(number) },
        9 => ErrorKind::Cancelled,
        10 => ErrorKind::OtherReply { asked: a, found: b },
        11 => ErrorKind::WrongPayload { wanted: a, found: b },
        12 => ErrorKind::Undecodable { wanted: a },
        13 => ErrorKind::Unencodable { event_type: a },
        14 => ErrorKind::Oversized { bytes: size, bytes_max: other },
        15 => ErrorKind::BadPattern { pattern: a, position: size, reason: c },
        16 => ErrorKind::DuplicateNode { node: a },
        17 => ErrorKind::Misuse { what: a },
        18 => ErrorKind::UnknownStep { step: a, known: list },
        19 => ErrorKind::Runaway { limit: "correlation.depth_max", max: number, path: list },
        20 => ErrorKind::Deadlock { cycle: list },
        21 => ErrorKind::Lagged { items: number },
        22 => ErrorKind::Invalid { reason: a },
        23 => ErrorKind::Conflict { what: a },
        24 => ErrorKind::Io { what: a },
        25 => ErrorKind::WrongVersion { name: a, stored: number as u32, known: size as u32 },
        26 => ErrorKind::Diverged { what: a },
        27 => ErrorKind::Unfit { flows: list },
        28 => ErrorKind::Damaged { what: a },
        29 => ErrorKind::Untrusted { reason: a },
        _ => ErrorKind::NotFound { what: a },
    })
}

fn any_error() -> impl Strategy<Value = Error> {
    let places = (prop::option::of("[a-z]{1,6}"), prop::option::of(any_id()));
    let lines = (prop::collection::vec("[a-z]{0,6}", 0..4), prop::collection::vec("[a-z]{0,6}", 0..4));
    (any_kind(), places, lines).prop_map(|(kind, (node, event), (context, causes))| {
        let mut error = Error::new(kind);
        if let Some(node) = node {
            error = error.at_node(&node);
        }
        if let Some(event) = event {
            error = error.at_event(event);
        }
        if let Some(source) = crate::error::told_causes(causes.into_iter()) {
            error = error.with_source(source);
        }
        context.into_iter().fold(error, Error::context)
    })
}

fn any_reply() -> impl Strategy<Value = WireReply<'static>> {
    let value = || {
        let bytes = prop::collection::vec(any::<u8>(), 0..50);
        (any_text(), bytes).prop_map(|(event_type, bytes)| (event_type, leak(bytes.into_boxed_slice())))
    };
    let outcome = prop_oneof![
        value().prop_map(|(event_type, bytes)| Outcome::Value { event_type, bytes }),
        value().prop_map(|(event_type, bytes)| Outcome::Item { event_type, bytes }),
        Just(Outcome::End),
        any_error().prop_map(|error| Outcome::Error(WireError::of(leak(Box::new(error))))),
    ];
    let rest = (prop::option::of(any_id()), any_unknown());
    (any_id(), any::<u64>(), outcome, rest).prop_map(|(to, sequence, outcome, (first, unknown))| {
        let mut reply = WireReply::new(to, outcome);
        reply.sequence = sequence;
        reply.first = first;
        reply.unknown = unknown;
        reply
    })
}

fn encode(event: &WireEvent<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    event.encode_into(&mut bytes, EVENT_BYTES_MAX).unwrap();
    bytes
}

fn encode_reply(reply: &WireReply<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    reply.encode_into(&mut bytes, EVENT_BYTES_MAX).unwrap();
    bytes
}

fn problem(error: &Error) -> &FrameError {
    error.find_cause().unwrap()
}

proptest! {
    #[test]
    fn events_come_back(event in any_event()) {
        let bytes = encode(&event);
        let read = WireEvent::decode(&bytes, EVENT_BYTES_MAX).unwrap();
        prop_assert_eq!(&read, &event);
        prop_assert!(bytes.as_ptr_range().contains(&read.payload.as_ptr()) || event.payload.is_empty());
        prop_assert_eq!(encode(&read), bytes);
    }

    #[test]
    fn envelopes_come_back(mut event in any_event()) {
        // An envelope has no place for these.
        event.hash = None;
        event.key = None;
        event.handover = None;
        event.unknown.clear();
        let bare = |cause: &CauseLink<'_>| CauseLink::Bare { id: cause.id() };
        event.cause = event.cause.as_ref().map(bare);
        event.more_causes = event.more_causes.iter().map(bare).collect();
        // The space itself has no name, and ends a path.
        event.path = event.path.hops().filter(|hop| !hop.is_empty()).map(str::to_owned).collect();

        let mut names = vec![String::new()];
        let envelope = event
            .to_envelope(EventType::new(&event.event_type), |name| {
                names.push(name.to_owned());
                NodeKey(names.len() as u32 - 1)
            })
            .unwrap();
        let name = |key: NodeKey| Cow::from(&names[key.0 as usize]);
        let again = WireEvent::from_envelope(&envelope, event.payload, name).unwrap();
        prop_assert_eq!(again, event);
    }

    #[test]
    fn replies_come_back(reply in any_reply()) {
        let bytes = encode_reply(&reply);
        let read = WireReply::decode(&bytes, EVENT_BYTES_MAX).unwrap();
        prop_assert_eq!(&read, &reply);
        prop_assert_eq!(encode_reply(&read), bytes);
    }

    #[test]
    fn errors_come_back(error in any_error()) {
        let told = WireError::of(&error);
        let again = told.to_error();
        prop_assert_eq!(again.kind(), error.kind());
        prop_assert_eq!(again.chain(), error.chain());
        prop_assert_eq!(again.node_id(), error.node_id());
        prop_assert_eq!(again.event_id(), error.event_id());
        prop_assert!(again.context_lines().eq(error.context_lines()));
        prop_assert_eq!(again.is_retryable(), told.is_retryable());
        prop_assert_eq!(WireError::of(&again), told);
    }

    #[test]
    fn what_is_cut_off_is_refused(event in any_event(), reply in any_reply(), at in any::<prop::sample::Index>()) {
        let bytes = encode(&event);
        let cut = &bytes[..at.index(bytes.len())];
        prop_assert!(WireEvent::decode(cut, EVENT_BYTES_MAX).is_err());
        let bytes = encode_reply(&reply);
        let cut = &bytes[..at.index(bytes.len())];
        prop_assert!(WireReply::decode(cut, EVENT_BYTES_MAX).is_err());
    }

    #[test]
    fn a_changed_byte_makes_nothing_panic(
        event in any_event(),
        reply in any_reply(),
        at in any::<prop::sample::Index>(),
        to in any::<u8>(),
    ) {
        let mut bytes = encode(&event);
        let index = at.index(bytes.len());
        bytes[index] = to;
        if let Ok(event) = WireEvent::decode(&bytes, EVENT_BYTES_MAX) {
            let _ = (event.metadata(), event.to_envelope(EventType::new("x"), |_| NodeKey(1)), hash_event(&event));
            let again = encode(&event);
            prop_assert_eq!(&WireEvent::decode(&again, EVENT_BYTES_MAX).unwrap(), &event);
        }
        let mut bytes = encode_reply(&reply);
        let index = at.index(bytes.len());
        bytes[index] = to;
        if let Ok(reply) = WireReply::decode(&bytes, EVENT_BYTES_MAX) {
            if let Outcome::Error(error) = &reply.outcome {
                let _ = error.to_error();
            }
            let again = encode_reply(&reply);
            prop_assert_eq!(&WireReply::decode(&again, EVENT_BYTES_MAX).unwrap(), &reply);
        }
    }

    #[test]
    fn rubbish_makes_nothing_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = WireEvent::decode(&bytes, EVENT_BYTES_MAX);
        let _ = WireReply::decode(&bytes, EVENT_BYTES_MAX);
        bytes.splice(0..0, [FORMAT_VERSION, 0x83, 0xa2, b'i', b'd']);
        let _ = WireEvent::decode(&bytes, EVENT_BYTES_MAX);
    }
}

#[test]
fn the_size_of_a_frame_ends_at_its_limit() {
    let event = WireEvent::new(id(1), "order.created", 1, &[7; 100]);
    let len = encode(&event).len();
    let reply = WireReply::new(id(1), Outcome::Value { event_type: "paid".into(), bytes: &[7; 100] });
    let reply_len = encode_reply(&reply).len();
    for (room, fits) in [(-1, false), (0, true), (1, true)] {
        let max = |len: usize| len.saturating_add_signed(room);
        let mut out = vec![9];
        let refused = |error: Error, bytes: usize, bytes_max: usize| {
            assert_eq!(error.kind(), &ErrorKind::Oversized { bytes, bytes_max });
        };
        assert_eq!(
            event.encode_into(&mut out, max(len)).map_err(|e| refused(e, len, max(len))).is_ok(),
            fits
        );
        assert_eq!(out.len(), if fits { 1 + len } else { 1 }, "nothing is appended when it is refused");
        let bytes = encode(&event);
        assert_eq!(WireEvent::decode(&bytes, max(len)).map_err(|e| refused(e, len, max(len))).is_ok(), fits);
        let read = reply.encode_into(&mut Vec::new(), max(reply_len));
        assert_eq!(read.map_err(|e| refused(e, reply_len, max(reply_len))).is_ok(), fits);
        let bytes = encode_reply(&reply);
        assert_eq!(WireReply::decode(&bytes, max(reply_len)).is_ok(), fits);
    }
}

#[test]
fn lists_end_at_their_limits() {
    // A large limit of bytes, so that only the lists are tested.
    const ROOM: usize = 1 << 30;
    let check = |event: &WireEvent<'_>, found: usize, max: usize, field: &str| {
        let mut bytes = Vec::new();
        let wanted = FrameProblem::OverLimit { found, max };
        match event.encode_into(&mut bytes, ROOM) {
            Ok(()) => {
                assert!(found <= max, "{field}");
                assert_eq!(&WireEvent::decode(&bytes, ROOM).unwrap(), event);
            }
            Err(error) => {
                assert!(found > max, "{field}: {error:?}");
                assert_eq!(error.code(), "unencodable");
                assert_eq!((problem(&error).problem(), problem(&error).field()), (&wanted, Some(field)));
            }
        }
    };
    let new = || WireEvent::new(id(1), "x", 1, &[]);
    for more in [-1, 0, 1] {
        let around = |max: usize| max.saturating_add_signed(more);
        let mut event = new();
        event.cause = Some(CauseLink::Bare { id: id(2) });
        event.more_causes = vec![CauseLink::Bare { id: id(3) }; around(CAUSES_MAX) - 1];
        check(&event, around(CAUSES_MAX), CAUSES_MAX, "causes");

        let mut event = new();
        let delegation = WireDelegation { node: "a".into(), on_behalf_of: "user:b".into() };
        event.delegations = vec![delegation; around(DELEGATIONS_MAX)];
        check(&event, around(DELEGATIONS_MAX), DELEGATIONS_MAX, "behalf");

        let mut event = new();
        let permissions = vec!["read".into(); around(PERMISSIONS_MAX)];
        event.user = Some(WireUser { id: "u".into(), permissions });
        check(&event, around(PERMISSIONS_MAX), PERMISSIONS_MAX, "user");

        let mut event = new();
        let content = around(METADATA_BYTES_MAX) - 6;
        let mut metadata = vec![0x81, 0xa1, b'a', 0xc5];
        metadata.extend_from_slice(&(content as u16).to_be_bytes());
        metadata.resize(metadata.len() + content, 0);
        event.metadata = metadata.into();
        check(&event, around(METADATA_BYTES_MAX), METADATA_BYTES_MAX, "meta");
    }
}

#[test]
fn the_reader_keeps_to_the_limits_too() {
    let frame = |key: &str, value: &[u8]| {
        let mut bytes = vec![FORMAT_VERSION, 0x81];
        put_text(&mut bytes, key);
        bytes.extend_from_slice(value);
        bytes
    };
    for (key, max) in [("causes", CAUSES_MAX), ("behalf", DELEGATIONS_MAX), ("user", PERMISSIONS_MAX + 1)] {
        let mut value = Vec::new();
        put_head(&mut value, Head::Array(max + 1));
        value.resize(value.len() + max + 1, 0xc0);
        let error = WireEvent::decode(&frame(key, &value), EVENT_BYTES_MAX).unwrap_err();
        assert_eq!(problem(&error).problem(), &FrameProblem::OverLimit { found: max + 1, max }, "{key}");
    }
    for (more, fits) in [(-1, true), (0, true), (1, false)] {
        let mut event = WireEvent::new(id(1), "x", 1, &[]);
        let key = |index: usize| leak(format!("x{index}").into_boxed_str());
        let fields = UNKNOWN_FIELDS_MAX.saturating_add_signed(more);
        event.unknown = (0..fields).map(|index| UnknownField { key: key(index), value: &[1] }).collect();
        assert_eq!(WireEvent::decode(&encode(&event), EVENT_BYTES_MAX).is_ok(), fits);

        let lines = ERROR_LINES_MAX.saturating_add_signed(more);
        let mut told = WireError::of(leak(Box::new(Error::new(ErrorKind::Failed))));
        told.context = vec!["line".into(); lines];
        let bytes = encode_reply(&WireReply::new(id(1), Outcome::Error(told)));
        assert_eq!(WireReply::decode(&bytes, EVENT_BYTES_MAX).is_ok(), fits);

        let mut metadata = vec![0x91; NESTING_MAX.saturating_add_signed(more) - 1];
        metadata.splice(0..0, [0x81, 0xa1, b'a']);
        metadata.push(1);
        let error = WireEvent::decode(&frame("meta", &metadata), EVENT_BYTES_MAX).unwrap_err();
        let deep = matches!(problem(&error).problem(), FrameProblem::TooDeep { .. });
        assert_eq!(!deep, fits, "{error:?}");
    }
}

#[test]
fn errors_are_cut_and_say_so() {
    for (more, whole) in [(-1, true), (0, true), (1, false)] {
        let text = "é".repeat(ERROR_TEXT_BYTES_MAX);
        let text = &text[..ERROR_TEXT_BYTES_MAX.saturating_add_signed(more) / 2 * 2];
        let text =
            format!("{text}{}", "x".repeat(ERROR_TEXT_BYTES_MAX.saturating_add_signed(more) - text.len()));
        let error = Error::new(ErrorKind::Panicked { message: text.clone() });
        let again = WireError::of(&error).to_error();
        let ErrorKind::Panicked { message } = again.kind() else { panic!() };
        assert_eq!(message == &text, whole);
        assert!(message.len() <= ERROR_TEXT_BYTES_MAX);
        assert_eq!(!message.ends_with("bytes more)"), whole);

        let lines = ERROR_LINES_MAX.saturating_add_signed(more);
        let cycle = vec!["node".to_owned(); lines];
        let error = (0..lines).fold(Error::new(ErrorKind::Deadlock { cycle }), |error, line| {
            error.context(format!("line {line}"))
        });
        let causes = (0..lines).map(|line| format!("cause {line}"));
        let error = error.with_source(crate::error::told_causes(causes).unwrap());
        let again = WireError::of(&error).to_error();
        assert_eq!(again.kind() == error.kind(), whole);
        assert_eq!(again.chain() == error.chain(), whole);
        assert_eq!(again.chain().last().unwrap() != "… and more", whole);
    }
    let text = "x".repeat(EVENT_BYTES_MAX);
    let cycle = vec![text.clone(); 100];
    let error = (0..100).fold(Error::new(ErrorKind::Deadlock { cycle }), |error, _| error.context(&*text));
    let error = error.with_source(crate::error::told_causes(vec![text; 100].into_iter()).unwrap());
    assert!(
        encode_reply(&WireReply::new(id(1), Outcome::Error(WireError::of(&error)))).len() < EVENT_BYTES_MAX
    );
}

#[test]
fn a_code_of_a_later_version_keeps_its_meaning() {
    let told = |retryable| WireError {
        code: "quarantined".into(),
        text: "the node is quarantined".into(),
        node: Some("orders".into()),
        retryable,
        ..WireError::default()
    };
    for retryable in [true, false] {
        let error = told(retryable).to_error();
        assert_eq!(error.is_retryable(), retryable);
        assert!(error.to_string().contains("the node is quarantined (code `quarantined`)"), "{error}");
    }
    let kind = ErrorKind::Runaway { limit: "spread", max: 3, path: vec![] };
    let error = WireError::of(&Error::new(kind)).to_error();
    assert_eq!((error.code(), error.is_retryable()), ("runaway", false));
    assert!(error.to_string().starts_with("limit `spread`: "), "{error}");
}

#[test]
fn hops_beyond_the_path_are_left_out() {
    let mut bytes = encode(&WireEvent::new(id(1), "x", 1, &[]));
    let payload = bytes.len() - 2;
    let mut path = Vec::new();
    put_text(&mut path, "_path");
    put_head(&mut path, Head::Array(PATH_HOPS_MAX + 2));
    (0..PATH_HOPS_MAX + 2).for_each(|hop| put_text(&mut path, &format!("n{hop}")));
    bytes.splice(payload..payload, path);
    bytes[1] += 1;
    let event = WireEvent::decode(&bytes, EVENT_BYTES_MAX).unwrap();
    assert!(event.path.hops().eq(["n0", "n1", "n2", "n3", "n4"]));
}

#[test]
fn metadata_survive_as_json() {
    let mut envelope = Envelope {
        id: id(1),
        cause: None,
        root: id(1),
        at_unix_ms: 1,
        event_type: EventType::new("x"),
        extra: None,
        deadline_unix_ms: 0,
        sender: NodeKey(0),
        origin: NodeKey(0),
        depth: 0,
        path: Path::default(),
        purpose: Purpose::Send,
    };
    let metadata = BTreeMap::from([("a".to_owned(), json!({"b": [1, -2, 2.5, null, "é"]}))]);
    envelope.extra_mut().metadata.clone_from(&metadata);
    envelope.inherited_mut().correlation = Some(Arc::from("order-789"));
    let event = WireEvent::from_envelope(&envelope, &[], |_| Cow::default()).unwrap();
    let bytes = encode(&event);
    let read = WireEvent::decode(&bytes, EVENT_BYTES_MAX).unwrap();
    assert_eq!(read.metadata().unwrap(), metadata);
    let again = read.to_envelope(EventType::new("x"), |_| NodeKey(1)).unwrap();
    assert_eq!(again.correlation(), "order-789");

    let mut event = WireEvent::new(id(1), "x", 1, &[]);
    event.metadata = Cow::Borrowed(&[0x91, 1]);
    assert_eq!(event.encode_into(&mut Vec::new(), EVENT_BYTES_MAX).unwrap_err().code(), "unencodable");
}

#[test]
fn causes_without_a_first_one_are_not_lost() {
    let mut event = WireEvent::new(id(1), "x", 1, &[]);
    event.more_causes = vec![CauseLink::Bare { id: id(2) }, CauseLink::Bare { id: id(3) }];
    let bytes = encode(&event);
    let read = WireEvent::decode(&bytes, EVENT_BYTES_MAX).unwrap();
    assert!(read.causes().eq(event.causes()));
}

fn payload() -> &'static [u8] {
    let mut bytes = Vec::new();
    json!({"total": 700}).encode(&mut bytes).unwrap();
    leak(bytes.into_boxed_slice())
}

fn smallest() -> WireEvent<'static> {
    WireEvent::new(id(1), "tick", 1_750_000_000_000, &[0xc0])
}

fn ordinary() -> WireEvent<'static> {
    let mut event = WireEvent::new(id(2), "order.created", 1_750_000_000_007, payload());
    event.root = id(1);
    event.cause = Some(CauseLink::Known { id: id(1), hash: hash_event(&smallest()) });
    event.depth = 1;
    event.sender = "orders".into();
    event.origin = "".into();
    event.path = ["orders"].into_iter().collect();
    event.hash = Some(hash_event(&event));
    event
}

fn full() -> WireEvent<'static> {
    let mut event = WireEvent::new(id(3), "invoice.sent", 1_750_000_000_009, payload());
    event.root = id(1);
    event.cause = Some(CauseLink::Known { id: id(2), hash: hash_event(&ordinary()) });
    event.more_causes =
        vec![CauseLink::Local { id: id(4), event_type: "timer.due" }, CauseLink::Bare { id: id(5) }];
    event.depth = 2;
    event.sender = "billing".into();
    event.origin = "shop".into();
    event.correlation = Some("order-789".into());
    event.source_id = Some("ada".into());
    event.source_type = Some("user".into());
    event.user = Some(WireUser { id: "ada".into(), permissions: vec!["order.read".into()] });
    event.delegations = vec![WireDelegation { node: "billing".into(), on_behalf_of: "user:ada".into() }];
    event.metadata = Cow::Borrowed(&[0x81, 0xa4, b't', b'r', b'y', b's', 2]);
    event.path = ["billing", "orders"].into_iter().collect();
    event.deadline_unix_ms = 1_750_000_005_000;
    event.purpose = Purpose::Ask;
    event.trace = Some(WireTrace {
        parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        state: "".into(),
    });
    event.unknown = vec![
        UnknownField { key: "region", value: &[0xa2, b'e', b'u'] },
        UnknownField { key: "_relay", value: &[3] },
    ];
    event.hash = Some(hash_event(&event));
    event
}

fn replies() -> Vec<(&'static str, WireReply<'static>)> {
    let value = Outcome::Value { event_type: "accepted".into(), bytes: payload() };
    let mut item = WireReply::new(id(2), Outcome::Item { event_type: "progress".into(), bytes: &[0x91, 40] });
    item.sequence = 3;
    let mut end = WireReply::new(id(2), Outcome::End);
    end.sequence = 4;
    let cause = "connection reset".parse::<std::net::IpAddr>().unwrap_err();
    let error = Error::new(ErrorKind::TimedOut { after: Duration::from_secs(2) })
        .with_source(cause)
        .at_node("payments")
        .at_event(id(2))
        .context("charging the card");
    let mut first = WireReply::new(id(2), Outcome::End);
    first.first = Some(id(1));
    vec![
        ("reply-first", first),
        ("reply-value", WireReply::new(id(2), value)),
        ("reply-item", item),
        ("reply-end", end),
        ("reply-error", WireReply::new(id(2), Outcome::Error(WireError::of(leak(Box::new(error)))))),
    ]
}

fn events() -> Vec<(&'static str, WireEvent<'static>)> {
    let mut handed = ordinary();
    handed.key = Some("order-7".into());
    handed.handover = Some(Handover { space: std::array::from_fn(|index| index as u8), at: 42, after: 41 });
    vec![
        ("event-smallest", smallest()),
        ("event-ordinary", ordinary()),
        ("event-full", full()),
        ("event-handed-over", handed),
    ]
}

fn id_text(number: u64) -> String {
    id(number).to_string()
}

fn step(number: u32, attempt: u32, outcome: StepOutcome<'static>) -> WireStep<'static> {
    let mut step = WireStep::new(id(2), "orders", "validate", "charge", outcome);
    (step.number, step.attempt) = (number, attempt);
    step.values = vec![("total".into(), vec![0xcd, 2, 0xbc].into())];
    step
}

fn reply(name: &str) -> Cow<'static, [u8]> {
    let (_, reply) = replies().into_iter().find(|(of, _)| *of == name).unwrap();
    encode_reply(&reply).into()
}

/// The records of the documentation, and the contents of its documents.
fn records() -> Vec<(&'static str, WireRecord<'static>)> {
    let flow = |node: &'static str, registration: &'static str| WireFlow {
        node: node.into(),
        registration: registration.into(),
    };
    let accepted = vec![flow("orders", "validate"), flow("audit", "note")];
    let event = WireRecord { event: encode(&smallest()).into(), accepted, ..WireRecord::default() };

    let mut full =
        step(2, 2, StepOutcome::Retry { due_unix_ms: 1_750_000_001_000, error: reply("reply-error") });
    full.flow.registration = "validate#2".into();
    full.changes = vec![WireChange { key: "state/orders/basket".into(), revision: 7 }];
    full.sent = vec![id(3), id(4)];
    let point = |ordinal, kind, name: &'static str| WirePoint {
        ordinal,
        kind,
        name: name.into(),
        event: None,
        due_unix_ms: 0,
        digest: 0,
        result: None,
    };
    let asked = WirePoint {
        event: Some(id(3)),
        due_unix_ms: 1_750_000_005_000,
        digest: u64::MAX,
        result: Some(reply("reply-value")),
        ..point(0, PointKind::Ask, "payments")
    };
    full.points = vec![
        asked.clone(),
        WirePoint {
            digest: 1,
            result: Some(vec![0xc3].into()),
            ..point(2, PointKind::Once, "print the label")
        },
        WirePoint { due_unix_ms: 1_750_000_002_000, ..point(3, PointKind::Sleep, "") },
        point(4, PointKind::Wait, "order.*"),
    ];
    let changes = vec![WireChange { key: "state/orders/basket".into(), revision: 8 }];

    let mut waits = step(1, 1, StepOutcome::Waits);
    waits.points = vec![WirePoint { result: None, ..asked }];
    let dead = step(1, 3, StepOutcome::Failed(reply("reply-error")));
    let of_step = |step| WireRecord { step: Some(step), ..WireRecord::default() };
    vec![
        ("record-event", event),
        ("record-step", of_step(full)),
        ("record-changes", WireRecord { changes, ..WireRecord::default() }),
        ("document-flow", of_step(waits)),
        ("document-dead", of_step(dead)),
    ]
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn as_hex(bytes: &[u8]) -> String {
    let lines =
        bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}

/// The blocks that start with a line of three backticks, `hex`, and a name.
fn vectors() -> BTreeMap<&'static str, Vec<u8>> {
    let blocks = FORMAT.split("\n```hex ").skip(1);
    blocks
        .map(|block| {
            let (name, rest) = block.split_once('\n').unwrap();
            (name, hex(rest.split("```").next().unwrap()))
        })
        .collect()
}

/// The rows of the table that follows this heading, without the two of its head.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let section = FORMAT.split(heading).nth(1).unwrap();
    let rows =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &'static str| row.trim_matches('|').split(" | ").map(|cell| cell.trim()).collect();
    rows.skip(2).map(cells).collect()
}

#[test]
fn the_vectors_in_the_documentation_are_true() {
    let mut vectors = vectors();
    for (name, event) in events() {
        let bytes = encode(&event);
        let documented = vectors.remove(name).unwrap_or_default();
        assert_eq!(as_hex(&bytes), as_hex(&documented), "{name}");
        assert_eq!(WireEvent::decode(&documented, EVENT_BYTES_MAX).unwrap(), event);
    }
    for (name, reply) in replies() {
        let bytes = encode_reply(&reply);
        let documented = vectors.remove(name).unwrap_or_default();
        assert_eq!(as_hex(&bytes), as_hex(&documented), "{name}");
        assert_eq!(WireReply::decode(&documented, EVENT_BYTES_MAX).unwrap(), reply);
    }
    for (name, record) in records() {
        let mut bytes = Vec::new();
        record.encode_into(&mut bytes, RECORD_BYTES_MAX).unwrap();
        let documented = vectors.remove(name).unwrap_or_default();
        assert_eq!(as_hex(&bytes), as_hex(&documented), "{name}");
        assert_eq!(WireRecord::decode(&documented, RECORD_BYTES_MAX).unwrap(), record);
    }
    let documented = vectors.remove("sum-smallest").unwrap_or_default();
    let mut summed = Vec::new();
    encode_summed(&mut summed, |out| smallest().encode_into(out, EVENT_BYTES_MAX)).unwrap();
    assert_eq!(as_hex(&summed), as_hex(&documented));
    // That they are signed as the document says is tested where keys are.
    for (name, frame, path) in [("seal-alone", smallest(), 0), ("seal-second-of-three", ordinary(), 2)] {
        let documented = vectors.remove(name).unwrap_or_default();
        let (seal, inside) = WireSeal::open(&documented).unwrap();
        assert_eq!(as_hex(inside), as_hex(&encode(&frame)), "{name}");
        let mut again = Vec::new();
        let seal = seal.unwrap();
        seal.encode_into(inside, &mut again);
        assert_eq!(as_hex(&again), as_hex(&documented), "{name}");
        assert_eq!(seal.path.len(), path, "{name}");
    }
    for kind in ["flow", "dead"] {
        assert!(FORMAT.contains(&format!("`{kind}/orders/{}/validate`", id_text(2))), "{kind}");
    }
    let other = vectors.remove("event-other-order").unwrap();
    assert_eq!(WireEvent::decode(&other, EVENT_BYTES_MAX).unwrap(), smallest());
    assert!(vectors.is_empty(), "vectors without a test: {vectors:?}");
}

#[test]
fn the_hashes_in_the_documentation_are_true() {
    let rows = table("### Hashes");
    assert_eq!(rows.len(), events().len());
    for (row, (name, event)) in rows.iter().zip(events()) {
        assert_eq!(row, &[name, &*hash_event(&event).to_string()]);
    }
}

#[test]
fn the_refusals_in_the_documentation_are_true() {
    let rows = table("### Refused\n");
    assert!(rows.len() >= 8);
    for row in rows {
        let error = WireEvent::decode(&hex(row[0]), EVENT_BYTES_MAX).unwrap_err();
        assert_eq!(problem(&error).to_string().replace('`', ""), row[1], "{}", row[0]);
    }
}

#[test]
fn the_refusals_of_records_in_the_documentation_are_true() {
    let rows = table("### Records refused");
    assert!(rows.len() >= 7);
    for row in rows {
        let error = WireRecord::decode(&hex(row[0]), RECORD_BYTES_MAX).unwrap_err();
        assert_eq!(problem(&error).to_string().replace('`', ""), row[1], "{}", row[0]);
    }
}
