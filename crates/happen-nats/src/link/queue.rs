//! What waits to leave for a member, in envelopes, and what has left and is not known to have been handed over. Owns both
//! limits; does not know when anything leaves.

use std::collections::VecDeque;

use super::frame::{Frame, HEADER_BYTES_MAX, Header};
use crate::limits;

/// How much may wait for one member.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueMax {
    pub(super) frames: usize,
    pub(super) bytes: usize,
}

impl Default for QueueMax {
    fn default() -> Self {
        Self { frames: limits::LINK_QUEUE_MAX, bytes: limits::LINK_QUEUE_BYTES_MAX }
    }
}

/// The envelopes that wait, the last of which still takes frames.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Envelope>,
    pub(super) frames: usize,
    pub(super) bytes: usize,
    /// The number of the last envelope that left.
    pub(super) number: u64,
}

pub(super) struct Envelope {
    pub(super) message: Vec<u8>,
    pub(super) frames: usize,
    /// The requests in it.
    pub(super) requests: Vec<u64>,
}

/// What has left and is not known to be handed over.
#[derive(Default)]
pub(super) struct Window {
    pub(super) sent: VecDeque<(u64, usize, usize)>,
    pub(super) frames: usize,
    pub(super) bytes: usize,
}

impl Queue {
    pub(super) fn has_room(&self, bytes: usize, max: QueueMax) -> bool {
        self.frames < max.frames && self.bytes + bytes <= max.bytes
    }

    pub(super) fn push(&mut self, header: &Header<'_>, frame: Frame<'_>) {
        let bytes = frame.bytes_max();
        let fits = |envelope: &Envelope| envelope.message.len() + bytes <= limits::ENVELOPE_BYTES_MAX;
        if !self.waiting.back().is_some_and(fits) {
            let mut message = Vec::with_capacity(HEADER_BYTES_MAX + bytes);
            header.write(&mut message);
            self.bytes += message.len();
            self.waiting.push_back(Envelope { message, frames: 0, requests: Vec::new() });
        }
        let Some(envelope) = self.waiting.back_mut() else { return };
        let before = envelope.message.len();
        frame.write(&mut envelope.message);
        envelope.frames += 1;
        if let Frame::Request { number, .. } = frame {
            envelope.requests.push(number);
        }
        self.bytes += envelope.message.len() - before;
        self.frames += 1;
    }

    pub(super) fn pop(&mut self) -> Option<Envelope> {
        let envelope = self.waiting.pop_front()?;
        self.frames -= envelope.frames;
        self.bytes -= envelope.message.len();
        Some(envelope)
    }
}

impl Window {
    pub(super) fn is_open(&self) -> bool {
        self.frames < limits::WINDOW_FRAMES_MAX && self.bytes < limits::WINDOW_BYTES_MAX
    }

    pub(super) fn note(&mut self, number: u64, frames: usize, bytes: usize) {
        self.sent.push_back((number, frames, bytes));
        self.frames += frames;
        self.bytes += bytes;
    }

    pub(super) fn handed_over(&mut self, number: u64) {
        while let Some((sent, frames, bytes)) = self.sent.front().copied()
            && sent <= number
        {
            self.sent.pop_front();
            self.frames -= frames;
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::kind;
    use super::*;

    const HEADER: Header<'static> = Header { kind: kind::EVENTS, instance: 1, number: 0, name: "a" };

    #[test]
    fn a_queue_has_an_end_in_frames_and_in_bytes() {
        for max in [QueueMax::default(), QueueMax { frames: 3, bytes: 1_000 }] {
            let mut queue = Queue::default();
            for _ in 1..max.frames {
                queue.push(&HEADER, Frame::Cancel { number: 1 });
            }
            assert!(queue.has_room(1, max));
            queue.push(&HEADER, Frame::Cancel { number: 1 });
            assert!(!queue.has_room(1, max));
            queue.pop();
            assert!(queue.has_room(1, max));
            let queue = Queue { bytes: max.bytes - 10, ..Queue::default() };
            assert!(queue.has_room(9, max) && queue.has_room(10, max) && !queue.has_room(11, max));
        }
    }

    #[test]
    fn frames_travel_together_up_to_a_size() {
        let mut queue = Queue::default();
        let bytes = vec![0; limits::ENVELOPE_BYTES_MAX / 4];
        for _ in 0..4 {
            queue.push(&HEADER, Frame::Publish { bytes: &bytes });
        }
        assert_eq!(queue.waiting.iter().map(|envelope| envelope.frames).collect::<Vec<_>>(), [3, 1]);
        queue.push(&HEADER, Frame::Publish { bytes: &vec![0; 4 * limits::ENVELOPE_BYTES_MAX] });
        assert_eq!(queue.waiting.len(), 3);
        assert!(queue.waiting.iter().take(2).all(|one| one.message.len() <= limits::ENVELOPE_BYTES_MAX));
        while queue.pop().is_some() {}
        assert_eq!((queue.frames, queue.bytes), (0, 0));
    }

    #[test]
    fn a_window_is_open_up_to_its_limits_and_again_after_word_came() {
        let mut window = Window::default();
        window.note(1, limits::WINDOW_FRAMES_MAX - 1, 0);
        assert!(window.is_open());
        window.note(2, 1, 0);
        assert!(!window.is_open());
        window.handed_over(0);
        assert!(!window.is_open());
        window.handed_over(1);
        assert!(window.is_open());
        window.note(3, 0, limits::WINDOW_BYTES_MAX - 1);
        assert!(window.is_open());
        window.note(4, 0, 1);
        assert!(!window.is_open());
        // Word that was lost comes with the next.
        window.handed_over(4);
        assert_eq!((window.frames, window.bytes, window.sent.len()), (0, 0, 0));
    }
}
