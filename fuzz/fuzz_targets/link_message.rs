//! Any bytes as a message between members over NATS: they are read or refused, and what was read is whole.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(frames) = happen_nats::read_message(bytes) {
        // A frame is at least its kind, so nothing is made of less.
        assert!(frames <= bytes.len());
    }
});
