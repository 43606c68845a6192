//! Any bytes as a record: what can be read is written again and read as the same.
#![no_main]

use happen_core::codec::WireRecord;
use happen_core::limits::RECORD_BYTES_MAX;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(record) = WireRecord::decode(bytes, RECORD_BYTES_MAX) else { return };
    let mut again = Vec::new();
    record.encode_into(&mut again, 2 * RECORD_BYTES_MAX).expect("what was read keeps to the limits");
    assert_eq!(WireRecord::decode(&again, 2 * RECORD_BYTES_MAX).expect("what was written is readable"), record);
});
