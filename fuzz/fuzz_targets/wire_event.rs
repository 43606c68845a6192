//! Any bytes as an event: what can be read is written again and read as the same.
#![no_main]

use happen_core::codec::WireEvent;
use happen_core::hash::hash_event;
use happen_core::limits::EVENT_BYTES_MAX;
use happen_core::{EventType, NodeKey};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(event) = WireEvent::decode(bytes, EVENT_BYTES_MAX) else { return };
    // Whether the form written is longer than the one read is not the question here, hence the room.
    let mut again = Vec::new();
    event.encode_into(&mut again, 2 * EVENT_BYTES_MAX).expect("what was read keeps to the limits");
    let read = WireEvent::decode(&again, 2 * EVENT_BYTES_MAX).expect("what was written is readable");
    assert_eq!(read, event);
    assert_eq!(hash_event(&read), hash_event(&event));
    let _ = event.to_envelope(EventType::new(&event.event_type), |_| NodeKey(1));
});
