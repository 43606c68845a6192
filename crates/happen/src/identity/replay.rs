//! What was heard before: a bounded memory of the numbers under which frames were signed. Does not know signatures: only
//! what a signature vouches for comes here.
//!
//! Whoever signs counts its frames from a random session on. So a frame that comes a second time has a number that was
//! heard, and one sent anew by its sender, under the same event id, has another: sending again is nobody's attack.

use std::collections::HashMap;

use happen_core::key::PublicKey;

use super::Distrust;
use crate::limits;

/// The numbers heard, by key and session.
#[derive(Debug)]
pub(crate) struct Heard {
    sessions: HashMap<(PublicKey, u64), Session>,
    window_ms: u64,
    /// By key, the latest time of a session that was forgotten while it could still be heard: new ones have to be later.
    floors: HashMap<PublicKey, u64>,
}

#[derive(Debug)]
struct Session {
    highest: u64,
    /// Whether each of the last numbers up to the highest was heard, in the place of its remainder.
    seen: Box<[u64]>,
    last_unix_ms: u64,
}

impl Heard {
    pub(crate) fn new(window_ms: u64) -> Self {
        Self { sessions: HashMap::new(), window_ms, floors: HashMap::new() }
    }

    /// Notes that this was heard.
    ///
    /// # Errors
    ///
    /// When it was heard before, or when that cannot be told any more.
    pub(crate) fn note(
        &mut self,
        key: &PublicKey,
        (session, number): (u64, u64),
        at_unix_ms: u64,
        now_unix_ms: u64,
    ) -> Result<(), Distrust> {
        let stale = || Distrust::Stale { key: *key, at_unix_ms, now_unix_ms };
        if at_unix_ms.abs_diff(now_unix_ms) > self.window_ms {
            return Err(stale());
        }
        let name = (*key, session);
        if !self.sessions.contains_key(&name) {
            if self.floors.get(key).is_some_and(|floor| at_unix_ms <= *floor) {
                return Err(stale());
            }
            self.make_room(now_unix_ms);
        }
        let session = self.sessions.entry(name).or_insert_with(|| Session::new(number));
        session.last_unix_ms = session.last_unix_ms.max(at_unix_ms);
        if session.note(number) { Ok(()) } else { Err(Distrust::Replayed { key: *key, number }) }
    }

    fn make_room(&mut self, now_unix_ms: u64) {
        if self.sessions.len() < limits::REPLAY_SENDERS_MAX {
            return;
        }
        // Whatever was signed before is too old to be taken.
        let since = now_unix_ms.saturating_sub(self.window_ms);
        self.sessions.retain(|_, session| session.last_unix_ms >= since);
        self.floors.retain(|_, floor| *floor >= since);
        if self.sessions.len() < limits::REPLAY_SENDERS_MAX {
            return;
        }
        // Of the key that has the most: whoever begins session after session makes nobody else forgotten.
        let mut sessions = HashMap::<_, usize>::new();
        self.sessions.keys().for_each(|(key, _)| *sessions.entry(*key).or_default() += 1);
        let many = |(key, _): &(PublicKey, u64)| sessions.get(key).copied().unwrap_or_default();
        let oldest = self
            .sessions
            .iter()
            .min_by_key(|(name, session)| (std::cmp::Reverse(many(name)), session.last_unix_ms));
        if let Some((name, last)) = oldest.map(|(name, session)| (*name, session.last_unix_ms)) {
            self.sessions.remove(&name);
            let floor = self.floors.entry(name.0).or_default();
            *floor = last.max(*floor);
        }
    }
}

impl Session {
    fn new(number: u64) -> Self {
        let words = limits::REPLAY_NUMBERS_MAX / 64;
        Self { highest: number, seen: vec![0; words].into(), last_unix_ms: 0 }
    }

    /// Whether the number is new. It is not from now on.
    fn note(&mut self, number: u64) -> bool {
        let max = limits::REPLAY_NUMBERS_MAX as u64;
        if number > self.highest {
            if number - self.highest >= max {
                self.seen.fill(0);
            } else {
                (self.highest + 1..=number).for_each(|passed| *self.word(passed).0 &= !self.word(passed).1);
            }
            self.highest = number;
        } else if self.highest - number >= max {
            return false;
        }
        let (word, bit) = self.word(number);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn word(&mut self, number: u64) -> (&mut u64, u64) {
        let place = number as usize % limits::REPLAY_NUMBERS_MAX;
        (&mut self.seen[place / 64], 1 << (place % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use happen_core::key::KeyKind;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const KEY: PublicKey = PublicKey::new(KeyKind::User, [1; 32]);
    const NOW: u64 = 1_000_000;

    fn note(heard: &mut Heard, session: u64, number: u64, at: u64) -> Result<(), &'static str> {
        heard.note(&KEY, (session, number), at, NOW).map_err(|distrust| distrust.code())
    }

    #[test]
    fn what_was_signed_too_far_from_now_is_stale() {
        let mut heard = Heard::new(100);
        let mut number = 0;
        let mut at = |at| {
            number += 1;
            note(&mut heard, 1, number, at)
        };
        assert_eq!([NOW - 99, NOW - 100, NOW - 101].map(&mut at), [Ok(()), Ok(()), Err("stale")]);
        assert_eq!([NOW + 99, NOW + 100, NOW + 101].map(&mut at), [Ok(()), Ok(()), Err("stale")]);
        assert_eq!([0, u64::MAX].map(&mut at), [Err("stale"); 2]);
    }

    #[test]
    fn numbers_may_be_late_up_to_a_limit() {
        let max = limits::REPLAY_NUMBERS_MAX as u64;
        let mut heard = Heard::new(100);
        assert_eq!(note(&mut heard, 1, 10 + max, NOW), Ok(()));
        assert_eq!(note(&mut heard, 1, 12, NOW), Ok(()));
        assert_eq!(note(&mut heard, 1, 11, NOW), Ok(()));
        assert_eq!(note(&mut heard, 1, 10, NOW), Err("replayed"));
        assert_eq!(note(&mut heard, 1, 11, NOW), Err("replayed"));
        assert_eq!(note(&mut heard, 1, u64::MAX, NOW), Ok(()));
        assert_eq!(note(&mut heard, 1, u64::MAX, NOW), Err("replayed"));
        // Another session counts for itself.
        assert_eq!(note(&mut heard, 2, 11, NOW), Ok(()));
    }

    #[test]
    fn a_session_that_made_room_is_not_believed_again() {
        let max = limits::REPLAY_SENDERS_MAX as u64;
        let mut heard = Heard::new(10_000);
        for session in 0..max {
            assert_eq!(note(&mut heard, session, 1, NOW + session), Ok(()));
        }
        assert_eq!(heard.sessions.len() as u64, max);
        assert_eq!(note(&mut heard, max, 1, NOW + max), Ok(()));
        assert_eq!(heard.sessions.len() as u64, max);
        assert_eq!(note(&mut heard, 0, 1, NOW), Err("stale"));
        assert_eq!(note(&mut heard, 0, 2, NOW), Err("stale"));
        assert_eq!(note(&mut heard, 1, 1, NOW + 1), Err("replayed"));
        assert_eq!(note(&mut heard, 1, 2, NOW + 1), Ok(()));
        // Those that have been silent for longer than the window are forgotten first, without a trace.
        let later = NOW + 20_000 + max;
        assert!(heard.note(&KEY, (max + 1, 1), later, later).is_ok());
        assert_eq!(heard.sessions.len(), 1);
        assert!(heard.floors.is_empty());
    }

    #[test]
    fn a_key_with_many_sessions_makes_room_for_them_alone() {
        let quiet = PublicKey::new(KeyKind::User, [2; 32]);
        let mut heard = Heard::new(1_000_000);
        assert!(heard.note(&quiet, (1, 1), NOW, NOW).is_ok());
        for session in 0..2 * limits::REPLAY_SENDERS_MAX as u64 {
            assert_eq!(note(&mut heard, session, 1, NOW + session), Ok(()));
        }
        assert_eq!(heard.sessions.len(), limits::REPLAY_SENDERS_MAX);
        let note = |heard: &mut Heard, session, number| {
            heard.note(&quiet, (session, number), NOW, NOW).map_err(|distrust| distrust.code())
        };
        assert_eq!(note(&mut heard, 1, 1), Err("replayed"));
        assert_eq!(note(&mut heard, 1, 2), Ok(()));
        // Nor does what was forgotten of the other key make a new process of this one look late.
        assert_eq!(note(&mut heard, 2, 1), Ok(()));
    }

    proptest! {
        #[test]
        fn every_number_is_taken_once(
            numbers in proptest::collection::vec(
                prop_oneof![0..40_u64, 65_500..65_600_u64, 131_000..131_200_u64, any::<u64>()], 1..200,
            ),
        ) {
            let max = limits::REPLAY_NUMBERS_MAX as u64;
            let mut heard = Heard::new(100);
            let (mut known, mut highest) = (HashSet::new(), 0);
            for (place, number) in numbers.into_iter().enumerate() {
                highest = if place == 0 { number } else { highest.max(number) };
                let expected = highest - number < max && known.insert(number);
                prop_assert_eq!(note(&mut heard, 1, number, NOW).is_ok(), expected, "{}", number);
            }
        }
    }
}
