//! Checks of a state before it is changed. Owns where they stand in a change; does not know how the change is made.

use std::any::{Any, TypeId};
use std::sync::Arc;

use happen_core::{Error, ErrorKind, Result, State};

use crate::node::Node;

type Check<S> = Box<dyn Fn(&S, &S) -> Result<()> + Send + Sync>;

/// A check with the type of the state it is for.
#[derive(Clone)]
pub(crate) struct StateCheck {
    type_id: TypeId,
    check: Arc<dyn Any + Send + Sync>,
}

impl StateCheck {
    fn new<S: State>(check: impl Fn(&S, &S) -> Result<()> + Send + Sync + 'static) -> Self {
        let check: Check<S> = Box::new(check);
        Self { type_id: TypeId::of::<S>(), check: Arc::new(check) }
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.check, &other.check)
    }

    fn of<S: State>(&self) -> Option<&Check<S>> {
        if self.type_id == TypeId::of::<S>() { self.check.downcast_ref() } else { None }
    }
}

/// The change with the checks of the node around it, so that they are part of it: they see what it begins with and what
/// it made, and nobody changes the state between them and the change.
pub(crate) fn checked<S: State>(
    checks: &[StateCheck],
    change: impl Fn(S) -> Result<S>,
) -> impl Fn(S) -> Result<S> {
    move |before| {
        let mut checks = checks.iter().filter_map(StateCheck::of::<S>).peekable();
        if checks.peek().is_none() {
            return change(before);
        }
        let after = change(before.clone())?;
        checks.try_for_each(|check| check(&before, &after)).map_err(refused)?;
        Ok(after)
    }
}

/// What a check said, as a refusal.
#[cold]
fn refused(error: Error) -> Error {
    if !matches!(error.kind(), ErrorKind::Failed) {
        return error;
    }
    // What the lines of context say is said by the same lines again.
    let context: String = error.context_lines().rev().map(|line| format!("{line}: ")).collect();
    let text = error.to_string();
    let reason = text.strip_prefix(&context).unwrap_or(&text).to_owned();
    error.with_kind(ErrorKind::Invalid { reason })
}

impl Node {
    /// Checks every change of the node's states of this type, its entities included, before it counts: the function
    /// sees the state before and the one after, and an error leaves the state as it was.
    ///
    /// It is a part of the change: nobody changes the state in between, and like the change it may run more than once
    /// and must have no effects. Checks run in the order they were added. What is stored already is not checked.
    ///
    /// # Errors
    ///
    /// Whoever changes the state gets [`ErrorKind::Invalid`] with the function's own error as its cause, an error of
    /// Happen that it returned as it is, and [`ErrorKind::Panicked`] when it panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::Error;
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Account { cents: i64 }
    ///
    /// let space = happen::Space::memory();
    /// let bank = space.node("bank").validate_state(|_: &Account, after: &Account| {
    ///     if after.cents < 0 { Err(Error::msg("no credit here")) } else { Ok(()) }
    /// });
    /// let account = bank.entity::<Account>("ada");
    /// assert!(account.set(|account| Account { cents: account.cents + 5 }).is_ok());
    /// let refused = account.set(|account| Account { cents: account.cents - 6 }).unwrap_err();
    /// assert_eq!(refused.code(), "invalid");
    /// assert_eq!(account.get(|account| account.cents), 5);
    /// ```
    #[must_use]
    pub fn validate_state<S: State>(
        self,
        check: impl Fn(&S, &S) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let check = StateCheck::new(check);
        self.inner().change(|table| {
            let mut hooks = table.hooks.as_deref().cloned().unwrap_or_default();
            hooks.add_state_check(check.clone());
            table.hooks = Some(Arc::new(hooks));
        });
        self
    }
}
