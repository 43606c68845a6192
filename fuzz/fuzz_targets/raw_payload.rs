//! Any bytes as a payload and any text as a path: the first line is the path, the rest the payload.
#![no_main]

use happen_core::raw::{FieldPath, RawPayload};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let split = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (path, payload) = bytes.split_at(split);
    let Ok(path) = std::str::from_utf8(path) else { return };
    let raw = RawPayload::new(payload);
    let ahead = &FieldPath::new(path);
    assert_eq!(raw.u64(path), raw.u64(ahead));
    assert_eq!(raw.i64(path), raw.i64(ahead));
    assert_eq!(raw.str(path), raw.str(ahead));
    assert_eq!(raw.bytes(path), raw.bytes(ahead));
    assert_eq!(raw.at(path), raw.at(ahead));
    let _ = (raw.f64(path), raw.f32(path), raw.bool(path), raw.is_nil(path), raw.array_len(path));
    if let Some(records) = raw.records(path) {
        let all: Vec<_> = records.collect();
        assert!(all.len() <= payload.len());
        if let Some(fixed) = records.fixed() {
            assert_eq!(fixed.len(), all.len());
            assert!(all.iter().enumerate().all(|(index, record)| fixed.at(index) == Some(*record)));
        }
    }
    if RawPayload::check(payload).is_ok() {
        assert!(raw.exists(""), "a checked payload has a value");
    }
});
