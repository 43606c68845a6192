//! Owns the builder that spells the types of one domain. Knows patterns only as a user of the combinators.

use super::{Pattern, domain, exact, one_of};

/// The first part of a family of event types, which builds patterns for them.
///
/// The name is literal text of one or more segments: wildcards and braces have no meaning in it.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::Domain;
///
/// let order = Domain::new("order");
/// assert!(order.event("submitted").matches("order.submitted"));
/// assert!(order.all().matches("order.item.added"));
/// assert!(order.one_of(["paid", "shipped"]).matches("order.paid"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[doc(alias = "createDomain")]
pub struct Domain {
    name: String,
}

impl Domain {
    /// Takes the name of the domain, without a dot at its end.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Gives the name of the domain.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Matches exactly one event of the domain.
    #[must_use]
    pub fn event(&self, event: &str) -> Pattern {
        exact(&format!("{}.{event}", self.name))
    }

    /// Matches every event of the domain: its name and one or more segments.
    #[must_use]
    pub fn all(&self) -> Pattern {
        domain(&self.name)
    }

    /// Matches exactly the listed events of the domain, and nothing if the list is empty.
    #[must_use]
    pub fn one_of<'e>(&self, events: impl IntoIterator<Item = &'e str>) -> Pattern {
        one_of(events.into_iter().map(|event| self.event(event)))
    }
}
