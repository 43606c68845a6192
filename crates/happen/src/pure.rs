//! Code that must have no effects, because it may run more than once: functions from state to state. Owns the mark
//! that the thread carries meanwhile; does not know which effects there are.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use happen_core::{Error, Result};

#[derive(Clone, Copy)]
enum Inside {
    /// Ordinary code, which may do what it likes.
    No,
    /// A function that has had no effect so far.
    Pure,
    /// A function that tried to have this effect.
    Broken(&'static str),
}

thread_local! {
    static INSIDE: Cell<Inside> = const { Cell::new(Inside::No) };
}

/// Runs a function that must have no effects and says whether it kept to that.
///
/// # Errors
///
/// Its panic, or the effect it tried to have: also when it ignored the refusal, since nothing is to be swallowed.
#[inline]
pub(crate) fn run<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    check("run another function that has to be pure")?;
    INSIDE.set(Inside::Pure);
    let result = catch_unwind(AssertUnwindSafe(work));
    match (result, INSIDE.replace(Inside::No)) {
        (_, Inside::Broken(effect)) => Err(refused(effect)),
        (Ok(result), _) => result,
        (Err(panic), _) => Err(Error::panicked(&*panic)),
    }
}

/// Refuses an effect inside a function that must have none.
///
/// # Errors
///
/// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) that names the effect.
#[inline]
pub(crate) fn check(effect: &'static str) -> Result<()> {
    match INSIDE.get() {
        Inside::No => Ok(()),
        Inside::Pure | Inside::Broken(_) => Err(broken(effect)),
    }
}

#[cold]
fn broken(effect: &'static str) -> Error {
    INSIDE.set(Inside::Broken(effect));
    refused(effect)
}

#[cold]
fn refused(effect: &'static str) -> Error {
    Error::misuse(format!(
        "a function that changes a state may run more than once, so it cannot {effect}; do that before or afterwards"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_effect_is_refused_there_and_told_at_the_end() {
        let mut refused = None;
        let result = run(|| {
            refused = check("whistle").err();
            Ok(1)
        });
        assert!(refused.is_some_and(|error| error.to_string().contains("cannot whistle")));
        assert_eq!(result.unwrap_err().code(), "misuse");
        assert!(check("whistle").is_ok());
    }

    #[test]
    fn the_mark_goes_with_a_panic_and_an_error() {
        assert_eq!(run(|| -> Result<()> { panic!("oh") }).unwrap_err().code(), "panicked");
        assert_eq!(run(|| Err::<(), _>(Error::msg("no"))).unwrap_err().code(), "failed");
        assert_eq!(run(|| run(|| Ok(1))).unwrap_err().code(), "misuse");
        assert_eq!(run(|| Ok(1)).unwrap(), 1);
    }
}
