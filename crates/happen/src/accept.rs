//! Whose events a node takes: globs over the sender's id and the source, and predicates.

use std::fmt;
use std::sync::Arc;

use happen_core::Envelope;

use crate::config::glob_matches;
use crate::identity::Policies;
use crate::sync::isolated;

/// The rule of one node. Every part must agree.
#[derive(Clone, Default)]
pub(crate) struct Acceptance {
    globs: Arc<[String]>,
    predicates: Vec<Predicate>,
    /// The policies of the space, which every node of it has.
    policies: Option<Arc<Policies>>,
}

type Predicate = Arc<dyn Fn(&Origin<'_>) -> bool + Send + Sync>;

/// Where an event comes from, as a node may ask.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Origin<'e> {
    /// The id of the node that sent the event; `None` for the space itself.
    pub sender: Option<&'e str>,
    /// The id of the node that sent its root event.
    pub node: Option<&'e str>,
    /// Whose source the root came from.
    pub source_id: Option<&'e str>,
    /// What kind of source that is.
    pub source_type: Option<&'e str>,
    /// The event's type.
    pub event_type: &'e str,
}

impl Acceptance {
    pub(crate) fn from_globs(globs: &[String]) -> Option<Self> {
        (!globs.is_empty()).then(|| Self { globs: globs.into(), ..Self::default() })
    }

    pub(crate) fn with_predicate(
        mut self,
        predicate: impl Fn(&Origin<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.predicates.push(Arc::new(predicate));
        self
    }

    pub(crate) fn with_policies(mut self, policies: &Arc<Policies>) -> Self {
        self.policies = Some(Arc::clone(policies));
        self
    }

    /// Whether anything is asked about where an event comes from.
    pub(crate) fn asks_for_origins(&self) -> bool {
        !self.globs.is_empty() || !self.predicates.is_empty()
    }

    pub(crate) fn policies(&self) -> Option<&Policies> {
        self.policies.as_deref()
    }

    pub(crate) fn with_globs(mut self, globs: Vec<String>) -> Self {
        self.globs = globs.into();
        self
    }

    /// This rule without the predicates of `other`; globs are set as a whole, so they stay.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        let mut left = self.clone();
        left.predicates.retain(|own| !other.predicates.iter().any(|known| Arc::ptr_eq(known, own)));
        left
    }

    pub(crate) fn check(&self, origin: &Origin<'_>) -> Result<(), String> {
        if !self.globs.is_empty() && !self.globs.iter().any(|glob| origin.matches(glob)) {
            return Err(format!("it accepts {} and this comes from {origin}", self.globs.join(", ")));
        }
        // A predicate that panics accepts nothing: acceptance fails closed.
        let accepts = |predicate: &Predicate| {
            isolated("an acceptance predicate", || predicate(origin)).unwrap_or(false)
        };
        if !self.predicates.iter().all(accepts) {
            return Err(format!("its predicate does not accept {origin}"));
        }
        Ok(())
    }
}

impl<'e> Origin<'e> {
    pub(crate) fn of(envelope: &'e Envelope, sender: Option<&'e str>, node: Option<&'e str>) -> Self {
        let inherited = envelope.inherited();
        Self {
            sender,
            node,
            source_id: inherited.and_then(|inherited| inherited.source_id.as_deref()),
            source_type: inherited.and_then(|inherited| inherited.source_type.as_deref()),
            event_type: envelope.event_type.as_str(),
        }
    }

    fn matches(&self, glob: &str) -> bool {
        let source = self.source_type.zip(self.source_id).map(|(kind, id)| format!("{kind}:{id}"));
        [self.sender, self.source_id, source.as_deref()]
            .into_iter()
            .flatten()
            .any(|id| glob_matches(glob, id))
    }
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sender {
            Some(sender) => write!(f, "node `{sender}`")?,
            None => f.write_str("outside any node")?,
        }
        match (self.source_type, self.source_id) {
            (Some(kind), Some(id)) => write!(f, ", source `{kind}:{id}`"),
            (None, Some(id)) => write!(f, ", source `{id}`"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Acceptance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "accepts {} ({} predicates)", self.globs.join(", "), self.predicates.len())
    }
}
