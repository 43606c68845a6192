//! When a schedule is due: the text of cron, and spans of time. Owns what the fields mean and the calendar they are read
//! by, which is that of UTC; does not know what happens then, and reads no clock.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use happen_core::Error;

use crate::limits;

/// Times that come again and again, as the text of cron tells them. All of it is UTC, in which every day has 24 hours.
///
/// Five fields: minute (0–59), hour (0–23), day of the month (1–31), month (1–12 or `JAN`–`DEC`), day of the week (0–7 or
/// `SUN`–`SAT`; 0 and 7 are Sunday). Six have the second (0–59) before them. A field is `*`, a value, a range `1-5`, either
/// of the last two with a step `1-30/2`, or several of these with commas. `*/5` is every fifth from the least value, and
/// `3/5` every fifth from 3. `?` stands for `*` in both fields of days.
///
/// When neither field of days begins with `*` or `?`, a day is meant that fits one of them; otherwise one that fits both.
///
/// `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight` and `@hourly` are short for the first moment of
/// what they name.
///
/// # Source
///
/// The manual page crontab(5) of Vixie cron, and its rule for the two fields of days.
///
/// # Examples
///
/// ```
/// use happen::Cron;
///
/// let nightly: Cron = "0 3 * * *".parse()?;
/// // From 2026-01-01T00:00:00Z on, first at 03:00 of that day.
/// assert_eq!(nightly.next_after(1_767_225_600_000), Some(1_767_225_600_000 + 3 * 3_600_000));
///
/// let error = "0 25 * * *".parse::<Cron>().unwrap_err();
/// assert_eq!(error.position(), 2);
/// # Ok::<(), happen::CronError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    seconds: u64,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether a day is meant that fits one of the two fields of days.
    either_day: bool,
}

/// A text that tells no times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CronError {
    text: String,
    position: usize,
    problem: CronProblem,
}

/// What is wrong with the text of a [`CronError`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CronProblem {
    /// It has more or fewer than five or six fields.
    Fields {
        /// How many it has.
        found: usize,
    },
    /// Something that is neither a number nor a name of this field.
    NoValue {
        /// The field.
        field: &'static str,
    },
    /// A value that the field does not have.
    OutOfRange {
        /// The field.
        field: &'static str,
        /// The least value.
        min: u32,
        /// The greatest value.
        max: u32,
    },
    /// A range whose end comes before its beginning.
    Backwards,
    /// A step that is no number from 1 on.
    BadStep,
    /// A word after `@` that stands for nothing.
    UnknownWord,
    /// Days that never come, such as the 30th of February.
    Never,
    /// More than [`CRON_BYTES_MAX`](crate::limits::CRON_BYTES_MAX) bytes.
    TooLong,
}

/// When something is due that is due again and again; made by [`IntoTiming`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[doc(hidden)]
#[non_exhaustive]
#[expect(unnameable_types, reason = "what a timing becomes concerns only the runtime")]
pub enum Timing {
    Cron(Cron),
    /// Whole periods from some time on.
    Every {
        period_ms: u64,
    },
}

/// What tells when a schedule is due: the text of [`Cron`] (`"0 3 * * *"`), a `Cron`, or [`every`]. As text,
/// `@every 90s` is the same as `every(secs(90))`; it takes `ms`, `s`, `m`, `h` and `d`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not tell when a schedule is due",
    note = "a timing is the text of cron such as \"0 3 * * *\", a `Cron`, or `every(secs(30))`"
)]
pub trait IntoTiming {
    #[doc(hidden)]
    fn into_timing(self) -> Result<Timing, CronError>;
}

/// So much time between one due time and the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Every(Duration);

/// Says that a schedule is due again and again after this time, in whole milliseconds. The first time is one such span
/// after the schedule was defined.
///
/// # Examples
///
/// ```
/// # use happen::{Context, Event, Space, every, secs};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// let space = Space::open(folder.path()).await?;
/// let probe = space.node("probe");
/// probe.on("look", |_: &Event, _: &Context| {});
/// space.schedule("look-around", every(secs(30)), &probe, Event::new("look", serde_json::json!({}))).await?;
/// space.start().await?;
/// assert_eq!(space.schedules().list().await?[0].timing(), "@every 30000ms");
/// # space.stop().await
/// # }
/// ```
#[must_use]
pub const fn every(time: Duration) -> Every {
    Every(time)
}

impl IntoTiming for &str {
    fn into_timing(self) -> Result<Timing, CronError> {
        Timing::parse(self)
    }
}

impl IntoTiming for String {
    fn into_timing(self) -> Result<Timing, CronError> {
        Timing::parse(&self)
    }
}

impl IntoTiming for Cron {
    fn into_timing(self) -> Result<Timing, CronError> {
        Ok(Timing::Cron(self))
    }
}

impl IntoTiming for Every {
    fn into_timing(self) -> Result<Timing, CronError> {
        match u64::try_from(self.0.as_millis()) {
            Ok(period_ms) if period_ms > 0 => Ok(Timing::Every { period_ms }),
            _ => Err(CronError { text: format!("{self:?}"), position: 0, problem: CronProblem::BadStep }),
        }
    }
}

impl Cron {
    /// The first due time after this one, both in milliseconds since 1970; `None` when there is none that has a number.
    #[must_use]
    pub fn next_after(&self, unix_ms: u64) -> Option<u64> {
        let second = unix_ms / MS + 1;
        let (today, now) = (second / DAY, second % DAY);
        if self.has_day(&Date::of(today))
            && let Some(time) = self.first_from(now)
        {
            return at(today, time);
        }
        let mut day = today + 1;
        for _ in 0..CYCLE_DAYS {
            let date = Date::of(day);
            if !has(self.months, date.month) {
                day += u64::from(date.month_len() - date.day) + 1;
                continue;
            }
            if self.has_day(&date) {
                return at(day, self.first_from(0)?);
            }
            day += 1;
        }
        None
    }

    /// The last due time that is not after this one, both in milliseconds since 1970; `None` when there was none since
    /// 1970.
    #[must_use]
    pub fn last_until(&self, unix_ms: u64) -> Option<u64> {
        let second = unix_ms / MS;
        let (today, now) = (second / DAY, second % DAY);
        if self.has_day(&Date::of(today))
            && let Some(time) = self.last_to(now)
        {
            return at(today, time);
        }
        let mut day = today.checked_sub(1)?;
        for _ in 0..CYCLE_DAYS {
            let date = Date::of(day);
            if !has(self.months, date.month) {
                day = day.checked_sub(u64::from(date.day))?;
                continue;
            }
            if self.has_day(&date) {
                return at(day, self.last_to(DAY - 1)?);
            }
            day = day.checked_sub(1)?;
        }
        None
    }

    fn has_day(&self, date: &Date) -> bool {
        let (day, weekday) = (has(self.days, date.day), has(self.weekdays, date.weekday));
        has(self.months, date.month) && if self.either_day { day || weekday } else { day && weekday }
    }

    /// The first time of a day that is not before this one, in seconds.
    fn first_from(&self, second_of_day: u64) -> Option<u64> {
        let (hour, minute, second) = parts(second_of_day);
        if has(self.hours, hour) {
            if has(self.minutes, minute)
                && let Some(second) = first_at(self.seconds, second)
            {
                return Some(time(hour, minute, second));
            }
            if let Some(minute) = first_at(self.minutes, minute + 1) {
                return Some(time(hour, minute, first_at(self.seconds, 0)?));
            }
        }
        let hour = first_at(self.hours, hour + 1)?;
        Some(time(hour, first_at(self.minutes, 0)?, first_at(self.seconds, 0)?))
    }

    /// The last time of a day that is not after this one, in seconds.
    fn last_to(&self, second_of_day: u64) -> Option<u64> {
        let (hour, minute, second) = parts(second_of_day);
        if has(self.hours, hour) {
            if has(self.minutes, minute)
                && let Some(second) = last_below(self.seconds, second + 1)
            {
                return Some(time(hour, minute, second));
            }
            if let Some(minute) = last_below(self.minutes, minute) {
                return Some(time(hour, minute, last_below(self.seconds, 60)?));
            }
        }
        let hour = last_below(self.hours, hour)?;
        Some(time(hour, last_below(self.minutes, 60)?, last_below(self.seconds, 60)?))
    }
}

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        let error = |position, problem| CronError::new(text, position, problem);
        if text.len() > limits::CRON_BYTES_MAX {
            return Err(error(limits::CRON_BYTES_MAX, CronProblem::TooLong));
        }
        let trimmed = text.trim();
        let at = text.len() - text.trim_start().len();
        let spelt = match trimmed.strip_prefix('@') {
            None => trimmed,
            Some(word) => spelt(word).ok_or_else(|| error(at, CronProblem::UnknownWord))?,
        };
        let fields: Vec<&str> = spelt.split_ascii_whitespace().collect();
        let second = match fields.len() {
            5 => None,
            6 => Some(fields[0]),
            found => return Err(error(text.len(), CronProblem::Fields { found })),
        };
        let read = |index: usize, field: &Field| {
            let part = fields[fields.len() - 5 + index];
            read_field(text, offset_in(text, part), part, field)
        };
        let seconds = match second {
            None => 1,
            Some(part) => read_field(text, offset_in(text, part), part, &SECOND)?,
        };
        let (days, weekdays) = (read(2, &DAY_OF_MONTH)?, read(4, &DAY_OF_WEEK)?);
        let is_open = |part: &str| part.starts_with(['*', '?']);
        let either_day = !is_open(fields[fields.len() - 3]) && !is_open(fields[fields.len() - 1]);
        let cron = Self {
            text: text.to_owned(),
            seconds,
            minutes: read(0, &MINUTE)?,
            hours: read(1, &HOUR)?,
            days,
            months: read(3, &MONTH)?,
            // Sunday has two numbers.
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            either_day,
        };
        match cron.next_after(0) {
            Some(_) => Ok(cron),
            None => Err(error(offset_in(text, fields[fields.len() - 3]), CronProblem::Never)),
        }
    }
}

impl Timing {
    /// # Errors
    ///
    /// When the text tells no times.
    pub(crate) fn parse(text: &str) -> Result<Self, CronError> {
        let Some(span) = text.trim().strip_prefix("@every") else { return text.parse().map(Self::Cron) };
        let error = |at| CronError::new(text, offset_in(text, at), CronProblem::BadStep);
        let span = span.trim();
        let unit_at = span.find(|c: char| !c.is_ascii_digit()).unwrap_or(span.len());
        let (number, unit) = span.split_at(unit_at);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => MS,
            "m" => 60 * MS,
            "h" => 3_600 * MS,
            "d" => DAY * MS,
            _ => return Err(error(unit)),
        };
        let period_ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
        match period_ms {
            Some(period_ms) if period_ms > 0 => Ok(Self::Every { period_ms }),
            _ => Err(error(span)),
        }
    }

    /// The first due time after this one. `anchor` is a time at which it is due: periods are counted from there.
    pub(crate) fn next_after(&self, unix_ms: u64, anchor: u64) -> Option<u64> {
        match self {
            Self::Cron(cron) => cron.next_after(unix_ms),
            Self::Every { period_ms } => {
                let phase = anchor % period_ms;
                match unix_ms.checked_sub(phase) {
                    None => Some(phase),
                    Some(since) => (since / period_ms + 1).checked_mul(*period_ms)?.checked_add(phase),
                }
            }
        }
    }

    /// The last due time that is not after this one.
    pub(crate) fn last_until(&self, unix_ms: u64, anchor: u64) -> Option<u64> {
        match self {
            Self::Cron(cron) => cron.last_until(unix_ms),
            Self::Every { period_ms } => {
                let phase = anchor % period_ms;
                unix_ms.checked_sub(phase).map(|since| since / period_ms * period_ms + phase)
            }
        }
    }
}

impl CronError {
    fn new(text: &str, position: usize, problem: CronProblem) -> Self {
        Self { text: text.chars().take(limits::CRON_BYTES_MAX).collect(), position, problem }
    }

    /// Where, in bytes from the start of the text.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.position
    }

    /// What is wrong there.
    #[must_use]
    pub const fn problem(&self) -> &CronProblem {
        &self.problem
    }

    pub(super) fn into_misuse(self) -> Error {
        Error::misuse(format!("`{}` does not tell when something is due", self.text)).with_source(self)
    }
}

impl std::error::Error for CronError {}

impl fmt::Display for CronError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` at byte {}: {}", self.text, self.position, self.problem)
    }
}

impl fmt::Display for CronProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fields { found } => write!(
                f,
                "{found} fields; expected minute, hour, day, month, day of the week, and possibly a second before them"
            ),
            Self::NoValue { field } => write!(f, "not a value of the field {field}"),
            Self::OutOfRange { field, min, max } => write!(f, "the field {field} goes from {min} to {max}"),
            Self::Backwards => f.write_str("the range ends before it begins"),
            Self::BadStep => f.write_str("not a step: expected a number from 1 on"),
            Self::UnknownWord => f.write_str(
                "expected @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly or @every",
            ),
            Self::Never => f.write_str("such a day never comes"),
            Self::TooLong => write!(f, "more than {} bytes", limits::CRON_BYTES_MAX),
        }
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cron({})", self.text)
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cron(cron) => fmt::Display::fmt(cron, f),
            Self::Every { period_ms } => write!(f, "@every {period_ms}ms"),
        }
    }
}

/// A field: its name, its values, and names for some of them.
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    /// Names of values from `min` on.
    names: &'static [&'static str],
}

const SECOND: Field = Field { name: "second", min: 0, max: 59, names: &[] };
const MINUTE: Field = Field { name: "minute", min: 0, max: 59, names: &[] };
const HOUR: Field = Field { name: "hour", min: 0, max: 23, names: &[] };
const DAY_OF_MONTH: Field = Field { name: "day of the month", min: 1, max: 31, names: &[] };
const MONTH: Field = Field {
    name: "month",
    min: 1,
    max: 12,
    names: &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
};
const DAY_OF_WEEK: Field = Field {
    name: "day of the week",
    min: 0,
    max: 7,
    names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
};

fn spelt(word: &str) -> Option<&'static str> {
    Some(match word {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => return None,
    })
}

/// Where a part of a text begins; the end for a part of another text.
fn offset_in(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize).checked_sub(text.as_ptr() as usize).filter(|at| *at <= text.len()).unwrap_or(0)
}

/// The values of a field, as bits.
fn read_field(text: &str, at: usize, part: &str, field: &Field) -> Result<u64, CronError> {
    let mut bits = 0;
    let mut item_at = at;
    for item in part.split(',') {
        bits |= read_item(text, item_at, item, field)?;
        item_at += item.len() + 1;
    }
    Ok(bits)
}

fn read_item(text: &str, at: usize, item: &str, field: &Field) -> Result<u64, CronError> {
    let error = |at, problem| Err(CronError::new(text, at, problem));
    let (values, step) = match item.split_once('/') {
        None => (item, None),
        Some((values, step)) => match step.parse::<u32>() {
            Ok(number) if number > 0 && step.bytes().all(|byte| byte.is_ascii_digit()) => {
                (values, Some(number))
            }
            _ => return error(at + values.len() + 1, CronProblem::BadStep),
        },
    };
    let is_day = field.name == DAY_OF_MONTH.name || field.name == DAY_OF_WEEK.name;
    // Of the days of the week the last is the first again, so that `*` ends before it.
    let greatest = if field.name == DAY_OF_WEEK.name { 6 } else { field.max };
    let (first, last) = if values == "*" || (values == "?" && is_day) {
        (field.min, greatest)
    } else if let Some((from, to)) = values.split_once('-') {
        let first = read_value(text, at, from, field)?;
        let last = read_value(text, at + from.len() + 1, to, field)?;
        // A week may end with Sunday.
        let last = if last == 0 && first > 0 && field.name == DAY_OF_WEEK.name { 7 } else { last };
        if last < first {
            return error(at, CronProblem::Backwards);
        }
        (first, last)
    } else {
        let first = read_value(text, at, values, field)?;
        (first, if step.is_some() { greatest.max(first) } else { first })
    };
    let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
    Ok((first..=last).step_by(step).fold(0, |bits, value| bits | 1 << value))
}

fn read_value(text: &str, at: usize, value: &str, field: &Field) -> Result<u32, CronError> {
    if let Some(index) = field.names.iter().position(|name| name.eq_ignore_ascii_case(value)) {
        return Ok(field.min + u32::try_from(index).unwrap_or(0));
    }
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(CronError::new(text, at, CronProblem::NoValue { field: field.name }));
    }
    let Field { name, min, max, .. } = *field;
    let in_range = value.parse().ok().filter(|number| (min..=max).contains(number));
    in_range.ok_or_else(|| CronError::new(text, at, CronProblem::OutOfRange { field: name, min, max }))
}

/// A day of the calendar.
struct Date {
    year: u64,
    month: u32,
    day: u32,
    /// From Sunday.
    weekday: u32,
}

impl Date {
    /// The day with this number, from 1970-01-01 on.
    ///
    /// # Source
    ///
    /// Howard Hinnant, *chrono-Compatible Low-Level Date Algorithms*: years that begin in March have their odd day last.
    fn of(day: u64) -> Self {
        let from_march_of_0 = day + 719_468;
        let (era, of_era) = (from_march_of_0 / CYCLE_DAYS, from_march_of_0 % CYCLE_DAYS);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day_of_month = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self { year, month: small(month), day: small(day_of_month), weekday: small((day + 4) % 7) }
    }

    fn month_len(&self) -> u32 {
        match self.month {
            2 if self.year.is_multiple_of(4)
                && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400)) =>
            {
                29
            }
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }
}

fn has(bits: u64, value: u32) -> bool {
    bits >> value & 1 == 1
}

/// The first value from this one on.
fn first_at(bits: u64, value: u32) -> Option<u32> {
    let left = bits.checked_shr(value).unwrap_or(0);
    (left != 0).then(|| value + left.trailing_zeros())
}

/// The last value below this one.
fn last_below(bits: u64, value: u32) -> Option<u32> {
    let left = if value >= 64 { bits } else { bits & ((1 << value) - 1) };
    (left != 0).then(|| 63 - left.leading_zeros())
}

/// Hour, minute and second of a time of day.
fn parts(second_of_day: u64) -> (u32, u32, u32) {
    let small = |number: u64| u32::try_from(number).unwrap_or(0);
    (small(second_of_day / 3_600), small(second_of_day / 60 % 60), small(second_of_day % 60))
}

fn time(hour: u32, minute: u32, second: u32) -> u64 {
    u64::from(hour) * 3_600 + u64::from(minute) * 60 + u64::from(second)
}

fn at(day: u64, second_of_day: u64) -> Option<u64> {
    day.checked_mul(DAY)?.checked_add(second_of_day)?.checked_mul(MS)
}

/// Milliseconds of a second.
const MS: u64 = 1_000;
/// Seconds of a day.
const DAY: u64 = 86_400;
/// Days after which the calendar repeats, with its weekdays: 400 years. What did not come by then never comes.
const CYCLE_DAYS: u64 = 146_097;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The time of a date, counted day by day.
    fn unix_ms(year: u64, month: u32, day: u32, hour: u64, minute: u64, second: u64) -> u64 {
        let mut days = 0;
        for earlier in 1970..year {
            days += if is_leap(earlier) { 366 } else { 365 };
        }
        days += (1..month).map(|month| u64::from(len(year, month))).sum::<u64>();
        (((days + u64::from(day) - 1) * 24 + hour) * 60 + minute) * 60_000 + second * 1_000
    }

    fn is_leap(year: u64) -> bool {
        (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
    }

    fn len(year: u64, month: u32) -> u32 {
        [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month as usize - 1]
    }

    fn due(text: &str, after: u64) -> u64 {
        text.parse::<Cron>().unwrap().next_after(after).unwrap()
    }

    #[test]
    fn leap_years_and_the_ends_of_months_are_those_of_the_calendar() {
        let start = unix_ms(2026, 1, 1, 0, 0, 0);
        for (text, after, expected) in [
            ("0 0 29 2 *", start, unix_ms(2028, 2, 29, 0, 0, 0)),
            ("0 0 29 2 *", unix_ms(2096, 2, 29, 0, 0, 0), unix_ms(2104, 2, 29, 0, 0, 0)),
            ("0 0 29 2 *", unix_ms(1999, 1, 1, 0, 0, 0), unix_ms(2000, 2, 29, 0, 0, 0)),
            ("30 4 31 * *", unix_ms(2026, 3, 31, 4, 30, 0), unix_ms(2026, 5, 31, 4, 30, 0)),
            ("@yearly", start, unix_ms(2027, 1, 1, 0, 0, 0)),
            ("@annually", start - 1, start),
            ("@monthly", start, unix_ms(2026, 2, 1, 0, 0, 0)),
            // 2026-01-01 is a Thursday.
            ("@weekly", start, unix_ms(2026, 1, 4, 0, 0, 0)),
            ("@daily", start, unix_ms(2026, 1, 2, 0, 0, 0)),
            ("@midnight", start - 1, start),
            ("@hourly", start, unix_ms(2026, 1, 1, 1, 0, 0)),
            ("0 9 * * MON-FRI", unix_ms(2026, 1, 2, 9, 0, 0), unix_ms(2026, 1, 5, 9, 0, 0)),
            ("0 9 * * fri-sun", unix_ms(2026, 1, 2, 9, 0, 0), unix_ms(2026, 1, 3, 9, 0, 0)),
            ("0 0 * * 7", start, unix_ms(2026, 1, 4, 0, 0, 0)),
            ("*/15 * * * * *", start, start + 15_000),
            ("59 59 23 31 12 *", start, unix_ms(2026, 12, 31, 23, 59, 59)),
            // Both fields of days are given: one of them is enough.
            ("0 0 13 * FRI", start, unix_ms(2026, 1, 2, 0, 0, 0)),
            // One of them begins with a star: both have to fit. A Sunday that is the 29th of February.
            ("0 0 29 2 */7", start, unix_ms(2032, 2, 29, 0, 0, 0)),
        ] {
            assert_eq!(due(text, after), expected, "{text}");
        }
    }

    #[test]
    fn there_is_no_hour_that_comes_twice_or_never() {
        // Every hour of a year, also of the days on which clocks are changed in many places.
        let mut at = unix_ms(2026, 1, 1, 0, 0, 0);
        for _ in 0..8_760 {
            let next = due("0 * * * *", at);
            assert_eq!(next, at + 3_600_000);
            at = next;
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        use CronProblem as P;
        let backwards = || P::Backwards;
        for (text, position, problem) in [
            ("", 0, P::Fields { found: 0 }),
            ("* * * *", 7, P::Fields { found: 4 }),
            ("* * * * * * *", 13, P::Fields { found: 7 }),
            ("60 * * * *", 0, P::OutOfRange { field: "minute", min: 0, max: 59 }),
            ("0 24 * * *", 2, P::OutOfRange { field: "hour", min: 0, max: 23 }),
            ("0 0 0 * *", 4, P::OutOfRange { field: "day of the month", min: 1, max: 31 }),
            ("0 0 1,32 * *", 6, P::OutOfRange { field: "day of the month", min: 1, max: 31 }),
            ("0 0 1 13 *", 6, P::OutOfRange { field: "month", min: 1, max: 12 }),
            ("0 0 1 JAN-FOO *", 10, P::NoValue { field: "month" }),
            ("0 0 * * 8", 8, P::OutOfRange { field: "day of the week", min: 0, max: 7 }),
            ("0 0 * * 5#2", 8, P::NoValue { field: "day of the week" }),
            ("0 0 L * *", 4, P::NoValue { field: "day of the month" }),
            ("? * * * *", 0, P::NoValue { field: "minute" }),
            ("5-1 * * * *", 0, backwards()),
            ("1,5-1 * * * *", 2, backwards()),
            ("0 0 * * SAT-MON", 8, backwards()),
            ("*/0 * * * *", 2, P::BadStep),
            ("*/ * * * *", 2, P::BadStep),
            ("*/+5 * * * *", 2, P::BadStep),
            ("1,,2 * * * *", 2, P::NoValue { field: "minute" }),
            ("+5 * * * *", 0, P::NoValue { field: "minute" }),
            ("99999999999999999999 * * * *", 0, P::OutOfRange { field: "minute", min: 0, max: 59 }),
            ("@fortnightly", 0, P::UnknownWord),
            (" @reboot", 1, P::UnknownWord),
            ("0 0 30 2 *", 4, P::Never),
            ("0 0 31 4,6,9,11 *", 4, P::Never),
        ] {
            let error = text.parse::<Cron>().unwrap_err();
            assert_eq!((error.position(), error.problem()), (position, &problem), "{text}");
        }
        for (text, position) in [("@every", 6), ("@every 5", 8), ("@every 5w", 8), ("@every 0s", 7)] {
            let error = Timing::parse(text).unwrap_err();
            assert_eq!((error.position(), error.problem()), (position, &P::BadStep), "{text}");
        }
    }

    #[test]
    fn a_text_has_a_limit() {
        for (len, is_read) in [
            (limits::CRON_BYTES_MAX - 1, true),
            (limits::CRON_BYTES_MAX, true),
            (limits::CRON_BYTES_MAX + 1, false),
        ] {
            let text = format!("{:len$}", "0 3 * * *");
            assert_eq!(text.parse::<Cron>().is_ok(), is_read, "{len}");
        }
    }

    #[test]
    fn periods_are_counted_from_their_anchor() {
        let every = Timing::parse("@every 5m").unwrap();
        let anchor = 1_000_007;
        let next = every.next_after(anchor, anchor).unwrap();
        assert_eq!(next, anchor + 300_000);
        assert_eq!(every.next_after(next - 1, anchor), Some(next));
        assert_eq!(every.last_until(next - 1, next), Some(anchor));
        assert_eq!(every.last_until(next, anchor), Some(next));
        assert_eq!(every.next_after(u64::MAX, anchor), None);
        assert_eq!(Timing::parse(&every.to_string()).unwrap(), every);
        assert!(super::every(Duration::ZERO).into_timing().is_err());
        assert!(super::every(Duration::MAX).into_timing().is_err());
    }

    /// One part of a field between commas: from, to, step, and how it is written.
    #[derive(Debug, Clone)]
    struct Item {
        text: String,
        from: u32,
        to: u32,
        step: u32,
    }

    fn item(min: u32, max: u32) -> impl Strategy<Value = Item> {
        let values = (min..=max, min..=max, 1..=max + 3);
        (0..5, values).prop_map(move |(kind, (a, b, step))| {
            let (from, to) = (a.min(b), a.max(b));
            let item = |text: String, from, to, step| Item { text, from, to, step };
            match kind {
                0 => item("*".to_owned(), min, max, 1),
                1 => item(format!("*/{step}"), min, max, step),
                2 => item(a.to_string(), a, a, 1),
                3 => item(format!("{from}-{to}/{step}"), from, to, step),
                _ => item(format!("{a}/{step}"), a, max, step),
            }
        })
    }

    fn field(min: u32, max: u32) -> impl Strategy<Value = Vec<Item>> {
        proptest::collection::vec(item(min, max), 1..3)
    }

    fn fits(items: &[Item], value: u32) -> bool {
        items.iter().any(|item| {
            (item.from..=item.to).contains(&value) && (value - item.from).is_multiple_of(item.step)
        })
    }

    fn text_of(items: &[Item]) -> String {
        items.iter().map(|item| item.text.as_str()).collect::<Vec<_>>().join(",")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Compared with looking at every second of every day for 400 days in both directions.
        #[test]
        fn due_times_are_those_that_are_found_by_looking_at_each(
            second in proptest::option::of(field(0, 59)), minute in field(0, 59), hour in field(0, 23),
            day in field(1, 31), month in field(1, 12), weekday in field(0, 6),
            start_day in 0_u32..20_000, start_second in 0_u64..86_400, offset_ms in 0_u64..1_000,
        ) {
            let fields = [&minute, &hour, &day, &month, &weekday].map(|field| text_of(field)).join(" ");
            let text = second.iter().map(|second| text_of(second) + " ").collect::<String>() + &fields;
            let Ok(cron) = text.parse::<Cron>() else {
                // Only a day that never comes is refused.
                prop_assert!(!weekday.is_empty() && text.parse::<Cron>().unwrap_err().problem() == &CronProblem::Never);
                return Ok(());
            };
            let open = |items: &[Item]| items[0].text.starts_with('*');
            let either = !open(&day) && !open(&weekday);
            let times: Vec<u64> = (0..86_400_u32)
                .filter(|time| {
                    let (hour_now, minute_now, second_now) = (time / 3_600, time / 60 % 60, time % 60);
                    fits(&hour, hour_now)
                        && fits(&minute, minute_now)
                        && second.as_ref().map_or(second_now == 0, |second| fits(second, second_now))
                })
                .map(u64::from)
                .collect();
            let (mut year, mut month_now, mut day_now) = (1970_u64, 1, 1);
            let mut found_next = None;
            let mut found_last = None;
            let start = (u64::from(start_day) * 86_400 + start_second) * 1_000 + offset_ms;
            // The calendar is walked day by day from 1970 on, by its own rules.
            for day_index in 0..start_day + 400 {
                let is_near = day_index + 400 >= start_day;
                let (by_day, by_week) = (fits(&day, day_now), fits(&weekday, (day_index + 4) % 7));
                let has_day = if either { by_day || by_week } else { by_day && by_week };
                if is_near && has_day && fits(&month, month_now) {
                    let at = |second: &u64| (u64::from(day_index) * 86_400 + second) * 1_000;
                    found_last = times.iter().map(at).rfind(|at| *at <= start).or(found_last);
                    found_next = times.iter().map(at).find(|at| *at > start);
                }
                if found_next.is_some() {
                    break;
                }
                day_now += 1;
                if day_now > len(year, month_now) {
                    (day_now, month_now) = (1, month_now + 1);
                }
                if month_now > 12 {
                    (month_now, year) = (1, year + 1);
                }
            }
            let horizon = (u64::from(start_day) + 400) * 86_400_000;
            let next = cron.next_after(start).unwrap();
            prop_assert!(found_next.map_or(next >= horizon, |found| found == next), "{text}: {next} {found_next:?}");
            let last = cron.last_until(start);
            let early = (u64::from(start_day)).saturating_sub(400) * 86_400_000;
            prop_assert!(
                found_last.map_or(last.is_none_or(|last| last < early), |found| Some(found) == last),
                "{text}: {last:?} {found_last:?}"
            );
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-*/,0-9A-Za-z@?# ]{0,40}") {
            if let Ok(timing) = Timing::parse(&text) {
                prop_assert_eq!(Timing::parse(&timing.to_string()).unwrap(), timing);
            }
        }
    }
}
