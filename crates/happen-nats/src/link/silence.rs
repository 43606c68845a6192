//! How long a member may be silent until it counts as gone: three heartbeats, and longer for one whose heartbeats come with
//! pauses, as over a network that stands still now and then. Owns what is remembered for that.

use std::time::Duration;

use crate::limits;

/// The silence of a member, and how long those before were.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    /// When the last sign of life came.
    since: Duration,
    /// When the last heartbeat came, since nothing was in its way.
    beat: Option<Duration>,
    /// The longest pause between two heartbeats, less what has faded of it.
    pause: Duration,
}

impl Silence {
    pub(super) fn begins(now: Duration) -> Self {
        Self { since: now, beat: None, pause: Duration::ZERO }
    }

    /// Whether a process that looks for silence now, and did so last at this time, stood still itself between: then it has
    /// not read what was said.
    pub(super) fn went_unread(last: Duration, now: Duration) -> bool {
        now.saturating_sub(last) > limits::STOOD_STILL
    }

    /// Begins anew, because the member could not be heard whatever it said.
    pub(super) fn begins_anew(&mut self, now: Duration) {
        (self.since, self.beat) = (now, None);
    }

    /// Notes a sign of life, and the pause before it, if it is a heartbeat: they are sent at equal times.
    pub(super) fn ends(&mut self, now: Duration, is_beat: bool) {
        self.since = now;
        if is_beat {
            let pause = self.beat.map_or(Duration::ZERO, |beat| now.saturating_sub(beat));
            if pause <= limits::SILENT_ADAPTED_MAX {
                self.pause = pause.max(self.pause - self.pause / limits::PAUSE_FADES);
            }
            self.beat = Some(now);
        }
    }

    pub(super) fn is_too_long(&self, now: Duration) -> bool {
        let more = self.pause.saturating_sub(limits::PAUSE_USUAL).saturating_mul(3);
        let allowed = limits::SILENT_MAX.saturating_add(more).min(limits::SILENT_ADAPTED_MAX);
        now.saturating_sub(self.since) > allowed
    }

    /// Whether a member that is heard now would have made a pause and not been away.
    pub(super) fn may_be_a_pause(&self, now: Duration) -> bool {
        now.saturating_sub(self.since) <= limits::SILENT_ADAPTED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_LITTLE: Duration = Duration::from_millis(1);

    /// One that has sent heartbeats after these pauses, and when the last one came.
    fn after(pauses: &[u64]) -> (Silence, Duration) {
        let mut now = Duration::from_secs(100);
        let mut silence = Silence::begins(now);
        silence.ends(now, true);
        for pause in pauses {
            now += Duration::from_millis(*pause);
            silence.ends(now, true);
        }
        (silence, now)
    }

    fn allowed(pauses: &[u64]) -> Duration {
        let (silence, now) = after(pauses);
        let mut allowed = Duration::ZERO;
        while !silence.is_too_long(now + allowed + A_LITTLE) {
            allowed += A_LITTLE;
        }
        allowed
    }

    #[test]
    fn a_member_whose_heartbeats_come_in_time_may_miss_three() {
        assert_eq!(allowed(&[]), limits::SILENT_MAX);
        assert_eq!(allowed(&[1_000; 20]), limits::SILENT_MAX);
        assert_eq!(allowed(&[700, 1_300, 1_500, 500]), limits::SILENT_MAX);
    }

    #[test]
    fn a_member_whose_heartbeats_come_with_pauses_may_be_silent_for_longer() {
        assert_eq!(allowed(&[1_000, 2_000]), Duration::from_millis(5_000));
        assert_eq!(allowed(&[1_000, 3_400]), Duration::from_millis(9_200));
        assert_eq!(allowed(&[1_000, 9_000]), limits::SILENT_ADAPTED_MAX);
    }

    #[test]
    fn pauses_that_do_not_come_back_are_forgotten() {
        let mut pauses = vec![3_400];
        let mut before = allowed(&pauses);
        for _ in 0..13 {
            pauses.push(1_000);
            let now = allowed(&pauses);
            assert!(now < before, "{now:?}");
            before = now;
        }
        assert_eq!(allowed(&[pauses, vec![1_000; 10]].concat()), limits::SILENT_MAX);
    }

    #[test]
    fn who_was_away_has_made_no_pause() {
        let longest = limits::SILENT_ADAPTED_MAX.as_millis() as u64;
        assert_eq!(allowed(&[longest + 1]), limits::SILENT_MAX);
        assert_eq!(allowed(&[longest]), limits::SILENT_ADAPTED_MAX);
        let (silence, now) = after(&[1_000]);
        assert!(silence.may_be_a_pause(now + limits::SILENT_ADAPTED_MAX));
        assert!(!silence.may_be_a_pause(now + limits::SILENT_ADAPTED_MAX + A_LITTLE));
    }

    #[test]
    fn a_process_that_looks_too_late_has_not_read() {
        let last = Duration::from_secs(100);
        assert!(!Silence::went_unread(last, last + limits::STOOD_STILL));
        assert!(Silence::went_unread(last, last + limits::STOOD_STILL + A_LITTLE));
    }

    #[test]
    fn what_could_not_be_heard_is_no_pause() {
        let (mut silence, now) = after(&[1_000, 1_000]);
        let heard_again = now + Duration::from_secs(9);
        silence.begins_anew(heard_again);
        assert!(!silence.is_too_long(heard_again + limits::SILENT_MAX));
        silence.ends(heard_again + A_LITTLE, true);
        assert!(silence.is_too_long(heard_again + A_LITTLE * 2 + limits::SILENT_MAX));
    }

    #[test]
    fn other_signs_of_life_end_a_silence_and_tell_nothing_of_pauses() {
        let (mut silence, now) = after(&[1_000]);
        silence.ends(now + Duration::from_secs(3), false);
        assert!(!silence.is_too_long(now + Duration::from_secs(6)));
        silence.ends(now + Duration::from_secs(3) + A_LITTLE, false);
        assert!(silence.is_too_long(now + Duration::from_secs(7)));
    }
}
