//! Any text as a pattern, against any text as a type: the first line is the pattern, the rest the type.
#![no_main]

use happen_core::pattern::Pattern;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (pattern, event_type) = text.split_once('\n').unwrap_or((text, "order.created"));
    if let Ok(pattern) = Pattern::parse(pattern) {
        assert_eq!(pattern.matches(event_type), pattern.matches(event_type));
    }
});
