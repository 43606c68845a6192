//! Any bytes as a reply: what can be read is written again and read as the same, and an error in it can be built.
#![no_main]

use happen_core::codec::{Outcome, WireReply};
use happen_core::limits::EVENT_BYTES_MAX;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(reply) = WireReply::decode(bytes, EVENT_BYTES_MAX) else { return };
    let mut again = Vec::new();
    reply.encode_into(&mut again, 2 * EVENT_BYTES_MAX).expect("what was read keeps to the limits");
    assert_eq!(WireReply::decode(&again, 2 * EVENT_BYTES_MAX).expect("what was written is readable"), reply);
    if let Outcome::Error(error) = &reply.outcome {
        let _ = error.to_error();
    }
});
