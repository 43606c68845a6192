//! Times as people write and read them: RFC 3339 in UTC, and ages such as `10m`. Owns the calendar; knows no clock and
//! no time zone, so it says the same on every machine.

use std::fmt;

/// A time on the command line, before it is known what time it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// At this time, in milliseconds since 1970.
    At(u64),
    /// So many milliseconds ago.
    Ago(u64),
}

/// A time, shown as RFC 3339 in UTC with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Utc(pub(crate) u64);

impl Moment {
    /// Reads `2026-11-28`, `2026-11-28T07:09:09.123Z`, `2026-11-28T09:09+02:00`, or an age: `90s`, `10m`, `2h`, `30d`.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let parsed = age(text).map(Self::Ago).or_else(|| instant(text).map(Self::At));
        parsed.ok_or("write a time as 2026-11-28T07:09:09Z, or an age as 90s, 10m, 2h or 30d")
    }

    /// The time it stands for, in milliseconds since 1970.
    pub(crate) fn unix_ms(self, now_unix_ms: u64) -> u64 {
        match self {
            Self::At(unix_ms) => unix_ms,
            Self::Ago(ms) => now_unix_ms.saturating_sub(ms),
        }
    }
}

impl Utc {
    /// The same to the second, where there is less room.
    pub(crate) fn short(self) -> String {
        let whole = self.to_string();
        whole.split_once('.').map_or(whole.clone(), |(seconds, _)| format!("{seconds}Z"))
    }

    /// The time of the day alone, to the second.
    pub(crate) fn clock(self) -> String {
        let short = self.short();
        short.split_once('T').map_or(short.clone(), |(_, clock)| clock.to_owned())
    }
}

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0 / DAY_MS, self.0 % DAY_MS);
        let (year, month, day) = date_of(days);
        let (hour, minute) = (ms / HOUR_MS, ms % HOUR_MS / MINUTE_MS);
        let (second, ms) = (ms % MINUTE_MS / SECOND_MS, ms % SECOND_MS);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

/// A span of time by its largest unit, such as `2h`.
pub(crate) fn span(ms: u64) -> String {
    match ms {
        ..SECOND_MS => format!("{ms}ms"),
        SECOND_MS..MINUTE_MS => format!("{}s", ms / SECOND_MS),
        MINUTE_MS..HOUR_MS => format!("{}m", ms / MINUTE_MS),
        HOUR_MS..DAY_MS => format!("{}h", ms / HOUR_MS),
        DAY_MS.. => format!("{}d", ms / DAY_MS),
    }
}

fn age(text: &str) -> Option<u64> {
    let unit = text.chars().next_back()?;
    let unit_ms = match unit {
        's' => SECOND_MS,
        'm' => MINUTE_MS,
        'h' => HOUR_MS,
        'd' => DAY_MS,
        _ => return None,
    };
    number(text.strip_suffix(unit)?)?.checked_mul(unit_ms)
}

fn instant(text: &str) -> Option<u64> {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let mut part = |digits| parts.next().filter(|part| part.len() == digits).and_then(number);
    let (year, month, day) = (part(4)?, part(2)?, part(2)?);
    let days = days_of(year, month, day).filter(|_| parts.next().is_none())?;
    let midnight = days.checked_mul(DAY_MS)?;
    let Some(time) = time else { return Some(midnight) };
    let (clock, offset_ms, ahead) = offset(time)?;
    let unix_ms = midnight + clock_ms(clock)?;
    if ahead { unix_ms.checked_sub(offset_ms) } else { Some(unix_ms + offset_ms) }
}

/// The clock before the offset from UTC, the offset, and whether that clock is ahead of UTC.
fn offset(time: &str) -> Option<(&str, u64, bool)> {
    if let Some(clock) = time.strip_suffix(['Z', 'z']) {
        return Some((clock, 0, true));
    }
    let at = time.rfind(['+', '-'])?;
    let (clock, offset) = time.split_at(at);
    let (hours, minutes) = offset[1..].split_once(':')?;
    let minutes = two_digits(hours, 23)? * 60 + two_digits(minutes, 59)?;
    Some((clock, minutes * MINUTE_MS, offset.starts_with('+')))
}

fn clock_ms(clock: &str) -> Option<u64> {
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.split(':');
    let (hour, minute) = (two_digits(parts.next()?, 23)?, two_digits(parts.next()?, 59)?);
    let second = parts.next().map_or(Some(0), |second| two_digits(second, 59))?;
    if parts.next().is_some() || fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // What is finer than a millisecond is left out.
    let ms = number(&format!("{fraction:0<3}")[..3])?;
    Some(hour * HOUR_MS + minute * MINUTE_MS + second * SECOND_MS + ms)
}

fn two_digits(text: &str, max: u64) -> Option<u64> {
    number(text).filter(|value| text.len() == 2 && *value <= max)
}

/// A number in digits alone: the standard parser takes a sign too.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn date_of(days: u64) -> (u64, u64, u64) {
    // The calendar repeats after 400 years, so at most so many are counted one by one.
    let mut year = 1970 + days / CYCLE_DAYS * 400;
    let mut left = days % CYCLE_DAYS;
    while left >= year_days(year) {
        left -= year_days(year);
        year += 1;
    }
    let mut month = 1;
    while left >= month_days(year, month) {
        left -= month_days(year, month);
        month += 1;
    }
    (year, month, left + 1)
}

/// The days from 1970 to this date; none when there is no such date, or it is earlier.
fn days_of(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 || !(1..=12).contains(&month) || !(1..=month_days(year, month)).contains(&day) {
        return None;
    }
    let years: u64 = (1970..year).map(year_days).sum();
    let months: u64 = (1..month).map(|month| month_days(year, month)).sum();
    Some(years + months + day - 1)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn year_days(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
const CYCLE_DAYS: u64 = 400 * 365 + 97;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_750_000_000_000, "2025-06-15T15:06:40.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Utc(unix_ms).to_string(), text);
            assert_eq!(Moment::parse(text), Ok(Moment::At(unix_ms)), "{text}");
        }
        assert_eq!(Utc(1_750_000_000_123).short(), "2025-06-15T15:06:40Z");
        assert_eq!(Utc(1_750_000_000_123).clock(), "15:06:40Z");
        assert!(Utc(u64::MAX).to_string().starts_with("584556019-"), "{}", Utc(u64::MAX));
    }

    #[test]
    fn people_may_leave_out_what_is_zero_and_write_from_where_they_are() {
        for text in [
            "2025-06-15T15:06:40Z",
            "2025-06-15 15:06:40.0009Z",
            "2025-06-15T17:06:40+02:00",
            "2025-06-15t09:36:40-05:30",
        ] {
            assert_eq!(Moment::parse(text), Ok(Moment::At(1_750_000_000_000)), "{text}");
        }
        assert_eq!(Moment::parse("1970-01-02"), Ok(Moment::At(86_400_000)));
        for (text, ms) in [("90s", 90_000), ("10m", 600_000), ("2h", 7_200_000), ("30d", 2_592_000_000)] {
            assert_eq!(Moment::parse(text), Ok(Moment::Ago(ms)));
        }
        assert_eq!(Moment::Ago(7).unix_ms(5), 0);
        assert_eq!(Moment::Ago(2).unix_ms(5), 3);
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "d",
            "+1d",
            "1w",
            "1d ",
            "-5s",
            "99999999999999999999d",
            "200000000000000d",
            "2025",
            "2025-13-01",
            "2025-02-29",
            "2025-00-01",
            "2025-01-00",
            "1969-12-31",
            "1970-01-01T00:00+00:01",
            "2025-01-01T24:00Z",
            "2025-01-01T10:60Z",
            "2025-01-01T1:00Z",
            "2025-01-01T10:00",
            "2025-01-01T10:00:00.Z",
            "2025-01-01T10:00:00.5.5Z",
            "2025-01-01-01",
            "2025-01-01T10:00:00:00Z",
            "2025-01-01T10:00é",
            "tomorrow",
        ] {
            assert!(Moment::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn spans_are_told_by_their_largest_unit() {
        for (ms, text) in
            [(0, "0ms"), (999, "999ms"), (1_000, "1s"), (59_999, "59s"), (60_000, "1m"), (90_000_000, "1d")]
        {
            assert_eq!(span(ms), text);
        }
        assert_eq!(span(7_200_000), "2h");
    }
}
