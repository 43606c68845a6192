//! Random values read by path against the same values navigated; random bytes; limits of the writer.

use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use super::*;
use crate::codec::FrameProblem;
use crate::limits::{NESTING_MAX, PATH_SEGMENTS_AHEAD};
use crate::payload::{Dynamic, ErasedPayload};

fn encoded(json: &Json) -> Vec<u8> {
    let mut bytes = Vec::new();
    json.encode(&mut bytes).unwrap();
    bytes
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        (0u32..64, any::<u64>()).prop_map(|(shift, number)| Json::from(number >> shift)),
        (0u32..64, any::<i64>()).prop_map(|(shift, number)| Json::from(number >> shift)),
        any::<f64>().prop_map(Json::from),
        "[a-z0-9é]{0,40}".prop_map(Json::from),
    ];
    leaf.prop_recursive(5, 60, 20, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Json::from),
            prop::collection::vec(("[a-c0-2]{1,2}|[a-z]{30,40}", inner), 0..20)
                .prop_map(|fields| Json::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Every path there is, and some that lead nowhere.
fn paths(json: &Json, prefix: &str, out: &mut Vec<String>) {
    let inside = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    match json {
        Json::Object(fields) => {
            for (name, value) in fields {
                out.push(inside(name));
                paths(value, &inside(name), out);
            }
        }
        Json::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                out.push(inside(&index.to_string()));
                paths(value, &inside(&index.to_string()), out);
            }
            out.push(inside(&items.len().to_string()));
        }
        _ => {}
    }
    out.push(inside("0"));
    out.push(inside("none"));
}

fn reads_like(raw: RawPayload<'_>, path: impl AsPath + Copy, wanted: Option<&Json>) {
    assert_eq!(raw.exists(path), wanted.is_some());
    assert_eq!(raw.is_nil(path), wanted.map(Json::is_null));
    assert_eq!(raw.bool(path), wanted.and_then(Json::as_bool));
    assert_eq!(raw.str(path), wanted.and_then(Json::as_str));
    assert_eq!(raw.array_len(path), wanted.and_then(Json::as_array).map(Vec::len));
    assert_eq!(raw.bytes(path), None);

    let unsigned = wanted.and_then(Json::as_u64);
    let signed = wanted.and_then(Json::as_i64);
    assert_eq!(raw.u64(path), unsigned);
    assert_eq!(raw.u32(path), unsigned.and_then(|number| number.try_into().ok()));
    assert_eq!(raw.u16(path), unsigned.and_then(|number| number.try_into().ok()));
    assert_eq!(raw.u8(path), unsigned.and_then(|number| number.try_into().ok()));
    assert_eq!(raw.i64(path), signed);
    assert_eq!(raw.i32(path), signed.and_then(|number| number.try_into().ok()));
    assert_eq!(raw.i16(path), signed.and_then(|number| number.try_into().ok()));
    assert_eq!(raw.i8(path), signed.and_then(|number| number.try_into().ok()));

    let exact = |limit: i64| match (unsigned, signed) {
        (Some(number), _) => number <= limit.unsigned_abs(),
        (None, Some(number)) => number >= -limit,
        (None, None) => true,
    };
    let float = wanted.and_then(Json::as_f64);
    assert_eq!(raw.f64(path), float.filter(|_| exact(1 << 53)));
    let small = float.filter(|number| exact(1 << 24) && (*number as f32).is_finite());
    assert_eq!(raw.f32(path), small.map(|number| number as f32));

    let inside = raw.at(path).map(|value| rmp_serde::from_slice::<Json>(value.as_bytes()).unwrap());
    assert_eq!(inside.as_ref(), wanted);
    let records = raw.records(path).map(|records| {
        records.map(|record| rmp_serde::from_slice(record.as_bytes()).unwrap()).collect::<Vec<Json>>()
    });
    assert_eq!(records.as_ref(), wanted.and_then(Json::as_array));
}

proptest! {
    #[test]
    fn every_path_reads_like_the_value_there(json in any_json()) {
        let bytes = encoded(&json);
        let raw = RawPayload::check(&bytes).unwrap();
        reads_like(raw, "", Some(&json));
        let dynamic = Dynamic::new("any", json.clone());
        let mut all = Vec::new();
        paths(&json, "", &mut all);
        for path in all {
            let wanted = dynamic.get(&path);
            reads_like(raw, path.as_str(), wanted);
            reads_like(raw, &FieldPath::new(&path), wanted);
        }
    }

    #[test]
    fn fixed_records_are_those_of_one_length(items in prop::collection::vec(any_json(), 0..8)) {
        let bytes = encoded(&Json::from(items.clone()));
        let lengths: Vec<_> = items.iter().map(|item| encoded(item).len()).collect();
        let same = lengths.windows(2).all(|pair| pair[0] == pair[1]) && !items.is_empty();
        let records = RawPayload::new(&bytes).records("").unwrap();
        let fixed = records.fixed();
        prop_assert_eq!(fixed.is_some(), same);
        if let Some(fixed) = fixed {
            prop_assert_eq!(fixed.len(), items.len());
            prop_assert_eq!(fixed.record_bytes(), lengths[0]);
            for (index, record) in records.enumerate() {
                prop_assert_eq!(fixed.at(index), Some(record));
            }
            prop_assert_eq!(fixed.at(items.len()), None);
            prop_assert_eq!(fixed.at(usize::MAX), None);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        path in "([ab]|[0-3]|)(\\.([ab]|[0-3]|)){0,3}",
    ) {
        read_all(&bytes, &path);
    }

    #[test]
    fn no_flipped_bit_makes_it_panic(json in any_json(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = encoded(&json);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let mut all = Vec::new();
        paths(&json, "", &mut all);
        for path in all.iter().take(20) {
            read_all(&bytes, path);
            read_all(&bytes[..at], path);
        }
    }

    #[test]
    fn what_is_written_is_read(json in any_json()) {
        fn write(writer: &mut RawWriter<'_>, json: &Json) {
            match json {
                Json::Null => writer.nil(),
                Json::Bool(truth) => writer.bool(*truth),
                Json::String(text) => writer.str(text),
                Json::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                    (Some(number), ..) => writer.u64(number),
                    (_, Some(number), _) => writer.i64(number),
                    (.., number) => writer.f64(number.unwrap()),
                },
                Json::Array(items) => {
                    writer.array(items.len());
                    items.iter().for_each(|item| write(writer, item));
                    writer
                }
                Json::Object(fields) => {
                    writer.map(fields.len());
                    fields.iter().for_each(|(name, value)| write(writer.field(name), value));
                    writer
                }
            };
        }
        let wanted = encoded(&json);
        let mut room = vec![0; wanted.len()];
        let mut writer = RawWriter::new(&mut room);
        write(&mut writer, &json);
        prop_assert_eq!(writer.finish().unwrap(), &wanted);

        let mut writer = RawWriter::new(&mut room[1..]);
        write(&mut writer, &json);
        prop_assert_eq!(writer.finish(), Err(WriteError::Full { bytes_max: wanted.len() - 1 }));
    }
}

fn read_all(bytes: &[u8], path: &str) {
    let raw = RawPayload::new(bytes);
    let path = &FieldPath::new(path);
    let _ = RawPayload::check(bytes);
    let _ = (raw.u8(path), raw.u16(path), raw.u32(path), raw.u64(path), raw.f32(path), raw.f64(path));
    let _ = (raw.i8(path), raw.i16(path), raw.i32(path), raw.i64(path), raw.bool(path), raw.str(path));
    let _ = (raw.bytes(path), raw.array_len(path), raw.is_nil(path), raw.exists(path), raw.at(path));
    if let Some(records) = raw.records(path) {
        assert!(records.count() <= bytes.len());
        let _ = records.fixed().map(|fixed| (fixed.at(fixed.len() - 1), fixed.at(fixed.len())));
    }
}

#[test]
fn a_whole_payload_is_checked() {
    assert!(RawPayload::check(&[0x81, 0xa1, b'a', 1]).is_ok());
    let problem = |bytes: &[u8]| RawPayload::check(bytes).unwrap_err();
    assert_eq!(problem(&[]).to_string(), "cut off at byte 0");
    assert_eq!(problem(&[1, 2]).problem(), &FrameProblem::Trailing { bytes: 1 });
    assert_eq!(problem(&[0x91, 0xc1]).to_string(), "a marker that MessagePack does not use at byte 1");
    assert_eq!(problem(&[0xa2, b'a', 0xff]).to_string(), "text that is not UTF-8 at byte 2");
    let mut deep = vec![0x91; NESTING_MAX];
    deep.push(1);
    assert!(RawPayload::check(&deep).is_ok());
    deep.insert(0, 0x91);
    assert_eq!(problem(&deep).problem(), &FrameProblem::TooDeep { max: NESTING_MAX });
}

#[test]
fn paths_are_split_in_advance_up_to_a_limit_and_work_beyond() {
    for segments in [PATH_SEGMENTS_AHEAD - 1, PATH_SEGMENTS_AHEAD, PATH_SEGMENTS_AHEAD + 1, 40] {
        let json = (0..segments).fold(json!(7), |inside, _| json!({ "a": inside }));
        let path = vec!["a"; segments].join(".");
        let bytes = encoded(&json);
        assert_eq!(RawPayload::new(&bytes).u8(&FieldPath::new(&path)), Some(7));
        assert_eq!(RawPayload::new(&bytes).u8(path.as_str()), Some(7));
        assert_eq!(RawPayload::new(&bytes).u8(&FieldPath::new(&format!("{path}.a"))), None);
    }
}

#[test]
fn maps_may_have_keys_that_are_no_texts() {
    let mut bytes = Vec::new();
    let map = std::collections::BTreeMap::from([(1, "one"), (300, "three hundred")]);
    let mut serializer = rmp_serde::Serializer::new(&mut bytes);
    serde::Serialize::serialize(&map, &mut serializer).unwrap();
    assert!(!RawPayload::new(&bytes).exists("1"));
    bytes[0] = 0x83;
    bytes.extend_from_slice(&[0xa1, b'a', 7]);
    assert_eq!(RawPayload::new(&bytes).u8("a"), Some(7));
    assert_eq!(RawPayload::new(&bytes).u8(0), None);
}

#[test]
fn bytes_and_texts_are_kept_apart() {
    let mut buffer = Vec::with_capacity(64);
    let mut writer = RawWriter::append(&mut buffer);
    writer.map(2).field("bytes").bytes(&[1, 2, 3]).field("text").str("abc");
    let raw = RawPayload::new(writer.finish().unwrap());
    assert_eq!((raw.bytes("bytes"), raw.str("bytes")), (Some(&[1, 2, 3][..]), None));
    assert_eq!((raw.bytes("text"), raw.str("text")), (None, Some("abc")));
    let copy = raw.at("bytes").unwrap();
    let mut small = [0; 5];
    let mut writer = RawWriter::new(&mut small);
    writer.raw(copy);
    assert_eq!(writer.finish(), Ok(copy.as_bytes()));
}

#[test]
fn the_writer_tells_what_does_not_add_up() {
    let mut buffer = [0; 16];
    let mut writer = RawWriter::new(&mut buffer);
    writer.map(2).field("a").u64(1);
    assert_eq!(writer.finish(), Err(WriteError::Incomplete { missing: 2 }));
    let mut writer = RawWriter::new(&mut buffer);
    writer.u64(1).u64(2);
    assert_eq!(writer.finish(), Err(WriteError::TooMany));
    assert_eq!(RawWriter::new(&mut buffer).finish(), Err(WriteError::Incomplete { missing: 1 }));

    let mut grown = Vec::with_capacity(8);
    let capacity = grown.capacity();
    let mut writer = RawWriter::append(&mut grown);
    writer.str(&"x".repeat(capacity));
    assert_eq!(writer.finish(), Err(WriteError::Full { bytes_max: capacity }));
    assert_eq!(grown.capacity(), capacity);
}
