//! Runs one check under many seeds. Owns the variable that repeats a seed and what a failure says; does not know what
//! is checked.

use std::fmt::Debug;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::panic_text::panic_text;
use crate::simulator::Simulator;

/// What a check under one seed may return: nothing, or a result whose error fails the seed.
pub trait SeedOutcome {
    /// Why the seed failed, or `None` when it passed.
    fn failure(self) -> Option<String>;
}

/// Runs a check once for each seed, with a fresh simulator, in ascending order, and stops at the first that fails.
///
/// A seed fails when the check panics or returns an error. While the environment variable `HAPPEN_SEED` holds a
/// number, decimal or hexadecimal with `0x`, only that seed runs, whether or not it lies in the range.
///
/// # Panics
///
/// When a seed fails, with the seed, the reason and the command that repeats it; when the range is empty, as a check
/// of nothing must not pass; when `HAPPEN_SEED` is no number.
///
/// # Examples
///
/// ```
/// use happen_testing::check_seeds;
/// use std::time::Duration;
///
/// check_seeds(0..50, |sim| {
///     let env = sim.env();
///     sim.run(env.sleep(Duration::from_secs(3_600)));
///     assert_eq!(sim.now(), Duration::from_secs(3_600));
/// });
/// ```
#[track_caller]
pub fn check_seeds<R: SeedOutcome>(seeds: Range<u64>, check: impl FnMut(Simulator) -> R) {
    let variable = std::env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned());
    check_each(chosen_seeds(seeds, variable.as_deref()), check);
}

impl SeedOutcome for () {
    fn failure(self) -> Option<String> {
        None
    }
}

impl<E: Debug> SeedOutcome for Result<(), E> {
    fn failure(self) -> Option<String> {
        self.err().map(|error| format!("{error:?}"))
    }
}

/// The seeds to run, given the value of the variable.
fn chosen_seeds(range: Range<u64>, variable: Option<&str>) -> Box<dyn Iterator<Item = u64>> {
    assert!(!range.is_empty(), "the range of seeds {range:?} is empty: nothing would be checked");
    let Some(text) = variable else {
        return Box::new(range);
    };
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(seed) => Box::new(std::iter::once(seed)),
        Err(error) => panic!("{VARIABLE} is `{text}`, which is no seed: {error}"),
    }
}

#[track_caller]
fn check_each<R: SeedOutcome>(seeds: impl Iterator<Item = u64>, mut check: impl FnMut(Simulator) -> R) {
    for seed in seeds {
        // The closure is not called again once it has panicked, so nobody sees what it left half done.
        let failure = match catch_unwind(AssertUnwindSafe(|| check(Simulator::new(seed)).failure())) {
            Ok(failure) => failure,
            Err(payload) => Some(panic_text(&*payload)),
        };
        if let Some(failure) = failure {
            panic!("seed {seed} failed: {failure}\nrepeat it with: {}", repeat_command(seed));
        }
    }
}

/// The command that runs this seed again. The test harness names each thread after its test, except when it runs all
/// of them on the main one.
fn repeat_command(seed: u64) -> String {
    match std::thread::current().name() {
        Some(name) if name != "main" => format!("{VARIABLE}={seed} cargo test {name}"),
        _ => format!("{VARIABLE}={seed} cargo test"),
    }
}

const VARIABLE: &str = "HAPPEN_SEED";

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(variable: &str) -> Vec<u64> {
        chosen_seeds(3..6, Some(variable)).collect()
    }

    #[test]
    fn without_the_variable_the_whole_range_runs() {
        assert_eq!(chosen_seeds(3..6, None).collect::<Vec<_>>(), [3, 4, 5]);
    }

    #[test]
    fn the_variable_chooses_one_seed() {
        assert_eq!(chosen("4"), [4]);
        assert_eq!(chosen("900"), [900]);
        assert_eq!(chosen("0xff"), [255]);
        assert_eq!(chosen("18446744073709551615"), [u64::MAX]);
    }

    #[test]
    #[should_panic(expected = "seed 4 failed: \"wrong\"\nrepeat it with: HAPPEN_SEED=4 cargo test")]
    fn the_first_seed_that_returns_an_error_is_named() {
        check_each(3..6, |sim| if sim.seed() < 4 { Ok(()) } else { Err("wrong") });
    }

    #[test]
    #[should_panic(expected = "seed 5 failed: the order is lost\nrepeat it with: HAPPEN_SEED=5 cargo test")]
    fn the_first_seed_that_panics_is_named() {
        check_each(3..6, |sim| assert!(sim.seed() < 5, "the order is lost"));
    }

    #[test]
    #[should_panic(expected = "HAPPEN_SEED is `seven`, which is no seed")]
    fn a_variable_that_is_no_number_is_refused() {
        chosen("seven");
    }

    #[test]
    #[should_panic(expected = "the range of seeds 5..5 is empty")]
    fn an_empty_range_is_refused() {
        drop(chosen_seeds(5..5, None));
    }
}
