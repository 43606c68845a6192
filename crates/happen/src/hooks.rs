//! Code that runs before and after the runtime does something: emitting, handling, changing state. Owns their order;
//! does not know what they are for.

use std::fmt;
use std::sync::Arc;

use happen_core::{ErasedEvent, Error, Event, Payload, Result};

use crate::handler::Argument;
use crate::model::StateCheck;
use crate::sync::isolated;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Moment {
    /// Before an event leaves a node. An error stops it, and the sender gets the error.
    BeforeEmit,
    /// Before a node handles an event. An error refuses it.
    BeforeHandle,
    /// After a flow ended; [`Seen::error`] says whether it failed.
    AfterHandle,
    /// Before a node's state changes. An error stops the change.
    BeforeState,
    /// After a node's state changed.
    AfterState,
}

/// What a hook sees.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Seen<'e> {
    /// The node at which it happens; `None` for the space itself.
    pub node: Option<&'e str>,
    /// The event; `None` when state changes outside any.
    pub event: Option<&'e Event>,
    /// The state's name, when state changes.
    pub state: Option<&'e str>,
    /// The failure, after handling.
    pub error: Option<&'e Error>,
}

type Hook = Arc<dyn Fn(&Seen<'_>) -> Result<()> + Send + Sync>;
type Transform = Arc<dyn Fn(&dyn ErasedEvent) -> Option<Result<Arc<dyn ErasedEvent>>> + Send + Sync>;

/// The hooks, transformers and checks of states of a node or a space, each kind in the order of its priority.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    hooks: Vec<(Moment, i32, Hook)>,
    transforms: Vec<Transform>,
    state_checks: Vec<StateCheck>,
}

impl Hooks {
    pub(crate) fn add(
        &mut self,
        moment: Moment,
        priority: i32,
        hook: impl Fn(&Seen<'_>) -> Result<()> + Send + Sync + 'static,
    ) {
        let at = self.hooks.partition_point(|(_, other, _)| *other >= priority);
        self.hooks.insert(at, (moment, priority, Arc::new(hook)));
    }

    pub(crate) fn add_transform<T: Payload>(
        &mut self,
        transform: impl Fn(T) -> Result<T> + Send + Sync + 'static,
    ) {
        self.transforms.push(Arc::new(move |event: &dyn ErasedEvent| {
            if event.is_batch() || event.envelope().event_type.as_str() != T::TYPE.as_str() {
                return None;
            }
            let changed = Event::<T>::own(event).and_then(|event| {
                let (envelope, payload) = event.into_parts();
                Ok(Arc::new(Event::from_parts(envelope, transform(payload)?)) as Arc<dyn ErasedEvent>)
            });
            Some(changed)
        }));
    }

    pub(crate) fn add_state_check(&mut self, check: StateCheck) {
        self.state_checks.push(check);
    }

    pub(crate) fn state_checks(&self) -> &[StateCheck] {
        &self.state_checks
    }

    /// These hooks without those of `other`.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        let mut left = self.clone();
        left.hooks.retain(|(.., hook)| !other.hooks.iter().any(|(.., known)| Arc::ptr_eq(known, hook)));
        left.transforms.retain(|own| !other.transforms.iter().any(|known| Arc::ptr_eq(known, own)));
        left.state_checks.retain(|own| !other.state_checks.iter().any(|known| known.is(own)));
        left
    }

    pub(crate) fn has(&self, moment: Moment) -> bool {
        self.hooks.iter().any(|(at, ..)| *at == moment)
    }

    /// Runs the hooks of this moment until one objects.
    pub(crate) fn run(&self, moment: Moment, seen: &Seen<'_>) -> Result<()> {
        let of_moment = self.hooks.iter().filter(|(at, ..)| *at == moment);
        of_moment.map(|(_, _, hook)| isolated("a hook", || hook(seen))).try_for_each(|result| result?)
    }

    /// The event as the transformers leave it; `None` when none concerned it.
    pub(crate) fn transform(&self, event: &dyn ErasedEvent) -> Result<Option<Arc<dyn ErasedEvent>>> {
        let mut changed: Option<Arc<dyn ErasedEvent>> = None;
        for transform in &self.transforms {
            let now = changed.as_deref().unwrap_or(event);
            if let Some(next) = isolated("a transformer", || transform(now))? {
                changed = Some(next?);
            }
        }
        Ok(changed)
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moments: Vec<_> = self.hooks.iter().map(|(moment, priority, _)| (moment, priority)).collect();
        let (transforms, checks) = (self.transforms.len(), self.state_checks.len());
        write!(f, "{moments:?}, {transforms} transformers, {checks} checks of states")
    }
}
