//! Bytes as the log over NATS may have them, or an object as it may be kept beside it: read or refused, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = happen_nats::read_log_message(bytes);
});
