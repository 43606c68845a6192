//! From what a person types to an event or a correlation. Owns how a beginning of an id is looked up; does not know what
//! is asked about what was found.

use std::collections::BTreeSet;
use std::fmt;

use happen_core::store::{Read, Select, Start, Tag};
use happen_core::{Error, EventId, Result};

use super::walk::Walk;
use super::{Journal, no_correlation, no_event, not_found};
use crate::limits;

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sought {
    /// An event.
    Event(EventId),
    /// All events of a correlation, by the name its sender chose or the id of its root.
    Correlation(String),
}

/// The beginning of an id that stands for several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ambiguous {
    text: String,
    candidates: Vec<EventId>,
    has_more: bool,
}

impl Journal {
    /// The event or correlation that a text means: a whole id, the name of a correlation, or the beginning of an id.
    ///
    /// The beginning has at least [`limits::JOURNAL_PREFIX_DIGITS_MIN`] hexadecimal digits, with or without hyphens. It is
    /// looked for among the records that were committed while such ids were made, from
    /// [`limits::JOURNAL_PREFIX_EARLY_MS`] before to [`limits::JOURNAL_PREFIX_LATE_MS`] after; an event that was stored
    /// at another time is found by its whole id.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::NotFound`](crate::ErrorKind::NotFound): nothing is meant by it.
    /// - [`ErrorKind::Misuse`](crate::ErrorKind::Misuse): it is too short; or several ids begin so, and
    ///   [`Error::find_cause`] of [`Ambiguous`] has some of them.
    ///
    /// # Cost
    ///
    /// Two reads by tags. For the beginning of an id also a reading of the log over the time that its digits leave open:
    /// two minutes for eight digits, one for ten.
    pub async fn find(&self, text: &str) -> Result<Sought> {
        if let Ok(id) = text.parse::<EventId>() {
            return match self.event(id).await? {
                Some(_) => Ok(Sought::Event(id)),
                None => Err(no_event(id)),
            };
        }
        let named = Read::forward(Select::tag(Tag::Correlation(text.into()))).at_most(1);
        if !text.is_empty() && !self.store.read(named).await?.records.is_empty() {
            return Ok(Sought::Correlation(text.to_owned()));
        }
        match Prefix::of(text) {
            Some(prefix) => self.find_prefix(text, &prefix).await,
            None => Err(no_correlation(text)),
        }
    }

    async fn find_prefix(&self, text: &str, prefix: &Prefix) -> Result<Sought> {
        let min = limits::JOURNAL_PREFIX_DIGITS_MIN;
        if prefix.digits < min {
            return Err(Error::misuse(format!(
                "`{text}` has {} digits of an id; give {min} or more, or the name of a correlation",
                prefix.digits
            )));
        }
        let mut found = BTreeSet::new();
        let mut looked_at = 0;
        let last_unix_ms = prefix.last_unix_ms().saturating_add(limits::JOURNAL_PREFIX_LATE_MS);
        let first_unix_ms = prefix.first_unix_ms().saturating_sub(limits::JOURNAL_PREFIX_EARLY_MS);
        let read = Read::forward(Select::All).start(Start::Time(first_unix_ms));
        let mut walk = Walk::new(self.store(), read);
        'log: while let Some(records) = walk.next().await? {
            for record in &records {
                if record.at_unix_ms > last_unix_ms || found.len() > limits::JOURNAL_CANDIDATES_MAX {
                    break 'log;
                }
                looked_at += 1;
                if looked_at > limits::JOURNAL_PREFIX_RECORDS_MAX {
                    return Err(Error::misuse(format!(
                        "more than {} records were written while ids began with `{text}`; give more digits",
                        limits::JOURNAL_PREFIX_RECORDS_MAX
                    )));
                }
                found.extend(record.tags.iter().filter_map(|tag| match tag {
                    Tag::Event(id) if prefix.begins(*id) => Some(*id),
                    _ => None,
                }));
            }
        }
        let has_more = found.len() > limits::JOURNAL_CANDIDATES_MAX;
        let candidates: Vec<EventId> = found.into_iter().take(limits::JOURNAL_CANDIDATES_MAX).collect();
        match candidates[..] {
            [] => Err(not_found(format!(
                "`{text}`: no correlation has this name, and no event that was stored when it was sent has an id that \
                 begins so; give the whole id"
            ))),
            [only] => Ok(Sought::Event(only)),
            _ => {
                let ambiguous = Ambiguous { text: text.to_owned(), candidates, has_more };
                Err(Error::misuse(ambiguous.to_string()).with_source(ambiguous))
            }
        }
    }
}

impl Ambiguous {
    /// Some of the ids that begin so, in their order; at most [`limits::JOURNAL_CANDIDATES_MAX`].
    #[must_use]
    pub fn candidates(&self) -> &[EventId] {
        &self.candidates
    }
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "several ids begin with `{}`; give more digits of one of: ", self.text)?;
        for (index, candidate) in self.candidates.iter().enumerate() {
            write!(f, "{}{candidate}", if index == 0 { "" } else { ", " })?;
        }
        if self.has_more { f.write_str(" and more") } else { Ok(()) }
    }
}

impl std::error::Error for Ambiguous {}

impl From<EventId> for Sought {
    fn from(event: EventId) -> Self {
        Self::Event(event)
    }
}

/// A whole id, else the name of a correlation; [`Journal::find`] takes beginnings too.
impl From<&str> for Sought {
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Correlation(text.to_owned()), Self::Event)
    }
}

/// As from a borrowed text.
impl From<String> for Sought {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// The first digits of an id.
struct Prefix {
    /// The digits as the upper part of an id, the rest zero.
    bits: u128,
    digits: usize,
}

impl Prefix {
    /// The digits of a text that may be the beginning of an id.
    fn of(text: &str) -> Option<Self> {
        let hyphens = [8, 13, 18, 23];
        let mut prefix = Self { bits: 0, digits: 0 };
        for (index, letter) in text.chars().enumerate() {
            if letter == '-' && hyphens.contains(&index) {
                continue;
            }
            let digit = letter.to_digit(16)?;
            // A whole id is not a beginning.
            if prefix.digits == DIGITS - 1 {
                return None;
            }
            prefix.digits += 1;
            prefix.bits |= u128::from(digit) << (4 * (DIGITS - prefix.digits));
        }
        (prefix.digits > 0).then_some(prefix)
    }

    fn open_bits(&self) -> u128 {
        u128::MAX >> (4 * self.digits)
    }

    fn begins(&self, id: EventId) -> bool {
        u128::from_be_bytes(id.to_bytes()) & !self.open_bits() == self.bits
    }

    /// The time of the first id that begins so.
    fn first_unix_ms(&self) -> u64 {
        (self.bits >> 80) as u64
    }

    fn last_unix_ms(&self) -> u64 {
        ((self.bits | self.open_bits()) >> 80) as u64
    }
}

/// The hexadecimal digits of an id.
const DIGITS: usize = 32;
