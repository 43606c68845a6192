//! The bytes of the newest frames, one behind the other. Owns their room, in which what is new is written over what is
//! oldest; does not know what they are.
//!
//! One stretch of memory that is written from its beginning to its end is the only kind that many frames can be copied into
//! without waiting for memory each time.

/// Where a frame was written.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kept {
    /// Counted over all that was ever written.
    at: u64,
    len: u32,
}

/// Room for frames; taken when the first is kept.
#[derive(Debug)]
pub(super) struct Frames {
    room: Vec<u8>,
    room_bytes: usize,
    /// Where the next one goes, counted over all that was ever written.
    end: u64,
}

impl Frames {
    pub(super) const fn new(room_bytes: usize) -> Self {
        Self { room: Vec::new(), room_bytes, end: 0 }
    }

    /// Keeps a frame that fits into the room.
    pub(super) fn keep(&mut self, frame: &[u8]) -> Kept {
        if self.room.is_empty() {
            self.room = vec![0; self.room_bytes];
        }
        let left = self.room.len() - self.place(self.end);
        if left < frame.len() {
            // What is left at the end of the room stays empty.
            self.end += left as u64;
        }
        let kept = Kept { at: self.end, len: frame.len() as u32 };
        let place = self.place(kept.at);
        self.room[place..place + frame.len()].copy_from_slice(frame);
        self.end += frame.len() as u64;
        kept
    }

    /// A frame that was kept, unless newer ones were written over it.
    pub(super) fn of(&self, kept: Kept) -> Option<&[u8]> {
        if self.end - kept.at > self.room.len() as u64 {
            return None;
        }
        let place = self.place(kept.at);
        self.room.get(place..place + kept.len as usize)
    }

    fn place(&self, at: u64) -> usize {
        (at % self.room.len().max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_is_there_until_its_room_is_needed() {
        let mut frames = Frames::new(10);
        let [first, second] = [b"first", b"secnd"].map(|frame| frames.keep(frame));
        assert_eq!((frames.of(first), frames.of(second)), (Some(&b"first"[..]), Some(&b"secnd"[..])));
        let third = frames.keep(b"3");
        assert_eq!((frames.of(first), frames.of(second)), (None, Some(&b"secnd"[..])));
        // Nine bytes are left, of which the last ones are those of the second frame.
        let fourth = frames.keep(b"the room..");
        assert_eq!(
            (frames.of(second), frames.of(third), frames.of(fourth)),
            (None, None, Some(&b"the room.."[..]))
        );
        assert_eq!(frames.keep(b"").len, 0);
    }

    proptest! {
        #[test]
        fn what_is_there_is_what_was_kept(lens in proptest::collection::vec(0..=40_usize, 1..60)) {
            let mut frames = Frames::new(100);
            let mut all = Vec::new();
            for (at, len) in lens.into_iter().enumerate() {
                let frame = vec![at as u8; len];
                all.push((frames.keep(&frame), frame));
                for (kept, frame) in &all {
                    prop_assert!(frames.of(*kept).is_none_or(|found| found == frame));
                }
                // Room for 40 bytes may be lost at the end.
                let newest = all.iter().rev().scan(0, |sum, kept| { *sum += kept.1.len(); Some((*sum, kept)) });
                for (_, (kept, _)) in newest.take_while(|(sum, _)| *sum <= 60) {
                    prop_assert!(frames.of(*kept).is_some());
                }
            }
        }
    }
}
