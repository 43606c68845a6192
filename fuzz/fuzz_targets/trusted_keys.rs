//! Any text as a list of trusted keys: it is read or refused, and never panics.
#![no_main]

use happen::identity::TrustStore;
use happen::limits::TRUSTED_KEYS_MAX;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(trust) = TrustStore::from_json(text) {
        assert!(trust.keys().len() <= TRUSTED_KEYS_MAX);
        let before = trust.keys();
        assert!(trust.replace_json(text).is_ok());
        assert_eq!(trust.keys(), before);
    }
});
