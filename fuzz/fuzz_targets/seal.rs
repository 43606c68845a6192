//! Any bytes as a sealed frame, as one with a sum and as texts of keys: what can be read is written again as the same
//! bytes, and no path of a seal leads past the limits of a group.
#![no_main]

use happen_core::codec::{WireSeal, encode_summed, open_summed};
use happen_core::key::{PublicKey, Seed};
use happen_core::limits::SEAL_GROUP_MAX;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((Some(seal), frame)) = WireSeal::open(bytes) {
        let mut again = Vec::new();
        seal.encode_into(frame, &mut again);
        let (read, inside) = WireSeal::open(&again).expect("what was written is readable");
        assert_eq!((read.as_ref(), inside), (Some(&seal), frame));
        if let Some(root) = seal.root(&[7; 32]) {
            assert!((1..=SEAL_GROUP_MAX).contains(&(seal.count as usize)));
            assert!(seal.index < seal.count);
            let _ = (seal.statement(&root), seal.proof(&root), seal.number());
        }
    }
    if let Ok(Some(frame)) = open_summed(bytes) {
        let mut again = Vec::new();
        encode_summed(&mut again, |out| Ok(out.extend_from_slice(frame))).expect("nothing is refused here");
        assert_eq!(again, bytes);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(key) = text.parse::<PublicKey>() {
            assert_eq!(key.to_string(), text);
        }
        if let Ok(seed) = text.parse::<Seed>() {
            assert_eq!(seed.reveal(), text);
        }
    }
});
