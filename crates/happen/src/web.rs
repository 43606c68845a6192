//! The causal web as far as it is remembered: headers of events and of what became of them, in one bounded ring for
//! each thread. Written on the way of every event, so a write is a few plain stores; read by `trace`, which costs more.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use happen_core::{Envelope, EventId, NodeKey};

/// The headers one thread wrote last. One writer, any number of readers.
///
/// A slot is guarded by its stamp: the writer clears it, writes the words, and sets it to the number of the write; a
/// reader that sees the same stamp before and after has read one whole header (a sequence lock whose data are atomics,
/// so a torn read is impossible to act on and no unsafe code is needed).
#[derive(Debug)]
pub(crate) struct Ring {
    slots: Box<[Slot]>,
    written: AtomicU64,
    closed: std::sync::atomic::AtomicBool,
}

#[derive(Debug, Default)]
struct Slot {
    stamp: AtomicU64,
    words: [AtomicU64; WORDS],
}

/// One remembered header.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Header {
    /// An event was sent, to one node or to whoever listens.
    Sent {
        id: EventId,
        cause: Option<EventId>,
        root: EventId,
        event_type: u64,
        sender: NodeKey,
        to: NodeKey,
        what: u8,
    },
    /// What became of an event at one node.
    Handled { id: EventId, node: NodeKey, what: u8 },
    /// A further step of a flow, by the address of its name, and how many the flow took before it. A flow may go on on
    /// another thread, so the order of writing says nothing.
    Step { id: EventId, node: NodeKey, step: u64, after: u32 },
    /// A further cause of an event made from several.
    Cause { id: EventId, cause: EventId },
}

/// Where a header was written, so that its outcome can be filled in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    number: u64,
}

impl Ring {
    pub(crate) fn new(len: usize) -> Self {
        // A power of two, so that finding a slot is a mask; the next greater one, so that as many are kept as asked.
        let len = len.next_power_of_two();
        Self {
            slots: (0..len).map(|_| Slot::default()).collect(),
            written: AtomicU64::new(0),
            closed: std::sync::atomic::AtomicBool::new(false),
        }
    }

    #[inline]
    fn write(&self, words: [u64; WORDS]) -> Mark {
        let number = self.written.load(Ordering::Relaxed) + 1;
        let slot = &self.slots[(number as usize) & (self.slots.len() - 1)];
        slot.stamp.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        for (to, word) in slot.words.iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
        slot.stamp.store(number, Ordering::Release);
        self.written.store(number, Ordering::Relaxed);
        Mark { number }
    }

    #[inline]
    pub(crate) fn sent(&self, envelope: &Envelope, to: NodeKey, what: u8) -> Mark {
        let (id_high, id_low) = envelope.id.to_halves();
        let (cause_high, cause_low) = envelope.cause.map_or((0, 0), EventId::to_halves);
        let (root_high, root_low) = envelope.root.to_halves();
        self.write([
            id_high,
            id_low,
            cause_high,
            cause_low,
            root_high,
            root_low,
            envelope.event_type.hash(),
            u64::from(envelope.sender.0) << 32 | u64::from(to.0),
            u64::from(what) << 32 | SENT,
        ])
    }

    #[inline]
    pub(crate) fn handled(&self, id: EventId, node: NodeKey, what: u8) {
        let (high, low) = id.to_halves();
        self.write([high, low, 0, 0, 0, 0, 0, u64::from(node.0), u64::from(what) << 32 | HANDLED]);
    }

    #[inline]
    pub(crate) fn step(&self, id: EventId, node: NodeKey, step: u64, after: u32) {
        let (high, low) = id.to_halves();
        self.write([high, low, u64::from(after), 0, 0, 0, step, u64::from(node.0), STEP]);
    }

    #[cold]
    pub(crate) fn cause(&self, id: EventId, cause: EventId) {
        let (id_high, id_low) = id.to_halves();
        let (cause_high, cause_low) = cause.to_halves();
        self.write([id_high, id_low, cause_high, cause_low, 0, 0, 0, 0, CAUSE]);
    }

    /// Fills in what became of an event whose header this thread wrote, unless it was overwritten meanwhile.
    #[inline]
    pub(crate) fn settle(&self, mark: Mark, what: u8) {
        let slot = &self.slots[(mark.number as usize) & (self.slots.len() - 1)];
        if slot.stamp.load(Ordering::Relaxed) == mark.number {
            slot.words[WORDS - 1].store(u64::from(what) << 32 | SENT, Ordering::Relaxed);
        }
    }

    /// The headers in the order they were written, and whether older ones were overwritten.
    pub(crate) fn read(&self) -> (Vec<Header>, bool) {
        let mut numbered: Vec<_> = self.slots.iter().filter_map(Slot::read).collect();
        numbered.sort_unstable_by_key(|&(number, _)| number);
        let cut = self.written.load(Ordering::Relaxed) > self.slots.len() as u64;
        (numbered.into_iter().map(|(_, header)| header).collect(), cut)
    }

    /// Shows the headers that were written after the one with this number, as far as they are there. Gives the number of
    /// the last, and how many were shown.
    pub(crate) fn since(&self, after: u64, mut show: impl FnMut(&Header)) -> (u64, u64) {
        let written = self.written.load(Ordering::Relaxed);
        let len = self.slots.len() as u64;
        let first = (after + 1).max((written + 1).saturating_sub(len));
        let mut shown = 0;
        for number in first..=written {
            let slot = &self.slots[(number as usize) & (self.slots.len() - 1)];
            if let Some((_, header)) = slot.read().filter(|(found, _)| *found == number) {
                shown += 1;
                show(&header);
            }
        }
        (written, shown)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

impl Slot {
    /// The header in the slot with the number of its write; `None` for one that is empty or just being written.
    fn read(&self) -> Option<(u64, Header)> {
        let before = self.stamp.load(Ordering::Acquire);
        if before == 0 {
            return None;
        }
        let mut words = [0; WORDS];
        for (word, from) in words.iter_mut().zip(&self.words) {
            *word = from.load(Ordering::Relaxed);
        }
        fence(Ordering::Acquire);
        let is_whole = self.stamp.load(Ordering::Relaxed) == before;
        header(words).filter(|_| is_whole).map(|header| (before, header))
    }
}

fn header(words: [u64; WORDS]) -> Option<Header> {
    let [id_high, id_low, cause_high, cause_low, root_high, root_low, name, nodes, end] = words;
    let id = EventId::from_halves(id_high, id_low)?;
    let cause = EventId::from_halves(cause_high, cause_low);
    let node = NodeKey(nodes as u32);
    let what = (end >> 32) as u8;
    Some(match end & KIND {
        SENT => Header::Sent {
            id,
            cause,
            root: EventId::from_halves(root_high, root_low)?,
            event_type: name,
            sender: NodeKey((nodes >> 32) as u32),
            to: node,
            what,
        },
        HANDLED => Header::Handled { id, node, what },
        STEP => Header::Step { id, node, step: name, after: cause_high as u32 },
        _ => Header::Cause { id, cause: cause? },
    })
}

/// Nothing is known yet of what became of the event.
pub(crate) const SENT_ON: u8 = 0;
/// Its flow ended without a value.
pub(crate) const ENDED: u8 = 1;
/// Its flow ended with a value.
pub(crate) const VALUE: u8 = 2;
/// Its flow waits, or the event waits for its flow.
pub(crate) const WAITING: u8 = 3;
/// It was broadcast; the outcomes are told for each listener.
pub(crate) const PUBLISHED: u8 = 4;

/// What is remembered of a failure: which of the known codes it had.
pub(crate) fn failed(code: &str) -> u8 {
    let index = CODES.iter().position(|known| *known == code).unwrap_or(0);
    FAILED + index as u8
}

/// Whether a handler has run to its end, whatever came of it: neither is it under way, nor was it refused before.
pub(crate) fn is_handled(what: u8) -> bool {
    const REFUSED: [&str; 8] =
        ["not-started", "closed", "no-such-node", "no-handler", "refused", "busy", "deadlock", "untrusted"];
    matches!(what, ENDED | VALUE) || code(what).is_some_and(|code| !REFUSED.contains(&code))
}

/// The code of a failure, when `what` is one.
pub(crate) fn code(what: u8) -> Option<&'static str> {
    CODES.get(usize::from(what.checked_sub(FAILED)?)).copied()
}

const FAILED: u8 = 16;

/// The codes of errors in the order they are remembered by; only ever appended to.
const CODES: [&str; 32] = [
    "unknown",
    "not-started",
    "closed",
    "no-such-node",
    "no-handler",
    "refused",
    "busy",
    "failed",
    "panicked",
    "timed-out",
    "cancelled",
    "other-reply",
    "wrong-payload",
    "undecodable",
    "wrong-version",
    "unencodable",
    "oversized",
    "bad-pattern",
    "duplicate-node",
    "misuse",
    "unknown-step",
    "runaway",
    "deadlock",
    "lagged",
    "invalid",
    "conflict",
    "io",
    "damaged",
    "diverged",
    "unfit",
    "not-found",
    "untrusted",
];

const WORDS: usize = 9;
const KIND: u64 = 7 << 40;
const SENT: u64 = 1 << 40;
const HANDLED: u64 = 2 << 40;
const CAUSE: u64 = 3 << 40;
const STEP: u64 = 4 << 40;

#[cfg(test)]
mod tests {
    use super::*;
    use happen_core::id::IdBlock;

    #[test]
    fn every_code_of_an_error_is_remembered_by_its_name() {
        let source = include_str!("../../happen-core/src/error.rs");
        let codes = source.split("pub fn code(&self) -> &'static str {").last().unwrap();
        let codes = &codes[..codes.find("\n    }\n").unwrap()];
        let mut seen = 0;
        for line in codes.lines().filter_map(|line| line.split_once("=> \"")) {
            let known = line.1.trim_end_matches("\",");
            assert_eq!(code(failed(known)), Some(known));
            seen += 1;
        }
        assert_eq!(seen, CODES.len() - 1);
    }

    #[test]
    fn the_oldest_headers_give_way() {
        let ring = Ring::new(4);
        let mut ids = IdBlock::new(1);
        let all: Vec<_> = (0..6).map(|_| ids.next_id(1)).collect();
        for &id in &all {
            ring.handled(id, NodeKey(3), 2);
        }
        let (headers, cut) = ring.read();
        assert!(cut);
        let seen: Vec<_> = headers
            .iter()
            .map(|header| match header {
                Header::Handled { id, node: NodeKey(3), what: 2 } => *id,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seen, all[2..]);
    }

    #[test]
    fn what_was_written_since_a_look_is_shown_once_as_far_as_it_is_there() {
        let ring = Ring::new(4);
        let mut ids = IdBlock::new(1);
        let mut after = 0;
        for (written, shown) in [(0, 0), (3, 3), (0, 0), (4, 4), (5, 4), (9, 4), (1, 1)] {
            (0..written).for_each(|_| ring.handled(ids.next_id(1), NodeKey(3), VALUE));
            let (last, seen) = ring.since(after, |header| assert!(matches!(header, Header::Handled { .. })));
            assert_eq!((last - after, seen), (written, shown));
            after = last;
        }
    }

    #[test]
    fn what_was_refused_or_waits_was_not_handled() {
        for what in
            [ENDED, VALUE, failed("failed"), failed("panicked"), failed("timed-out"), failed("cancelled")]
        {
            assert!(is_handled(what), "{what}");
        }
        for what in [SENT_ON, WAITING, PUBLISHED, failed("busy"), failed("closed"), failed("no-handler")] {
            assert!(!is_handled(what), "{what}");
        }
    }

    #[test]
    fn a_reader_never_sees_half_of_one_header_and_half_of_another() {
        // Two slots, so that the writer is always about to overwrite what is being read.
        let rings: Vec<_> = (0..8).map(|_| Ring::new(2)).collect();
        let (start, writing) = (std::sync::Barrier::new(9), AtomicU64::new(8));
        let mut seen = 0_u64;
        std::thread::scope(|scope| {
            for ring in &rings {
                let (start, writing) = (&start, &writing);
                scope.spawn(move || {
                    start.wait();
                    for number in 1..=200_000_u64 {
                        let mut words = [number; WORDS];
                        words[WORDS - 1] = SENT;
                        let mark = ring.write(words);
                        ring.settle(mark, 0);
                    }
                    writing.fetch_sub(1, Ordering::Release);
                });
            }
            start.wait();
            let mut last_round = false;
            while !last_round {
                last_round = writing.load(Ordering::Acquire) == 0;
                for header in rings.iter().flat_map(|ring| ring.read().0) {
                    let Header::Sent { id, cause, root, event_type, sender, to, what } = header else {
                        panic!("{header:?}")
                    };
                    let number = id.to_halves().1;
                    assert_eq!(EventId::from_halves(number, number), Some(id));
                    assert_eq!((cause, root), (Some(id), id));
                    assert_eq!((event_type, sender, what), (number, NodeKey(0), 0));
                    assert_eq!(to, NodeKey(number as u32));
                    seen += 1;
                }
            }
        });
        assert!(seen >= 16, "the last headers of every ring are there at the end");
    }
}
