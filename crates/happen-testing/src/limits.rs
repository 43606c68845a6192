//! Every limit of the test tools with its reason. Owns the numbers; does not know what is done when one is reached.

use std::time::Duration;

/// How many steps one run of a simulator may take, unless [`Simulator::steps_max`] says otherwise.
///
/// A step is one poll of one task. Simulated scenarios take thousands of them to a few million, so ten million means
/// that the tasks keep each other busy and get nowhere; that many polls end within seconds.
///
/// [`Simulator::steps_max`]: crate::Simulator::steps_max
pub const STEPS_MAX: u64 = 10_000_000;

/// How many spawned tasks a simulator holds at once, unless [`Simulator::tasks_max`] says otherwise.
///
/// A million small tasks take a few hundred megabytes: a leak of tasks ends with an error before it ends the machine.
///
/// [`Simulator::tasks_max`]: crate::Simulator::tasks_max
pub const TASKS_MAX: usize = 1_000_000;

/// How far virtual time goes: a sleep that would end later never ends.
///
/// A thousand years of 365.25 days. `Duration::MAX` is how programs write *never*, and a jump there would carry the
/// clock beyond the 48 bits that an event id has for its milliseconds.
pub const VIRTUAL_TIME_MAX: Duration = Duration::from_secs(31_557_600_000);

/// How often a test looks whether something has become true before it fails: with a millisecond between two looks, long
/// enough for a loaded machine and short enough for a person who waits for the failure.
pub const LOOKS_MAX: u32 = 20_000;
