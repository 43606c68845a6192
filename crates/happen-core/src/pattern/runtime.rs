//! Owns which event types are the runtime's own and what it takes to name them. Knows nothing about matching.

/// Tells whether a type belongs to the runtime: it starts with `node.` or `system.`, or ends with `.error`.
///
/// Such an event carries the runtime's payload, so it reaches only patterns that name it; see
/// [`Pattern::matches_runtime`](super::Pattern::matches_runtime).
///
/// # Examples
///
/// ```
/// use happen_core::pattern::is_runtime;
///
/// assert!(is_runtime("node.down"));
/// assert!(is_runtime("order.created.error"));
/// assert!(!is_runtime("node"));
/// assert!(!is_runtime("order.created"));
/// ```
#[must_use]
pub fn is_runtime(ty: &str) -> bool {
    !Families::of_type(ty).is_empty()
}

/// A set of the three families of runtime events: those a type belongs to, or those a pattern spells out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Families {
    node: bool,
    system: bool,
    error: bool,
}

impl Families {
    pub(super) const NONE: Self = Self { node: false, system: false, error: false };
    pub(super) const ALL: Self = Self { node: true, system: true, error: true };

    pub(super) fn of_type(ty: &str) -> Self {
        match (ty.split_once('.'), ty.rsplit_once('.')) {
            (Some((first, _)), Some((_, last))) => Self::of_first(first).union(Self::of_last(last)),
            _ => Self::NONE,
        }
    }

    /// Looks at the first segment of a type that has more of them.
    pub(super) fn of_first(segment: &str) -> Self {
        Self { node: segment == "node", system: segment == "system", error: false }
    }

    /// Looks at the last segment of a type that has more of them.
    pub(super) fn of_last(segment: &str) -> Self {
        Self { error: segment == "error", ..Self::NONE }
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self {
            node: self.node || other.node,
            system: self.system || other.system,
            error: self.error || other.error,
        }
    }

    pub(super) fn meets(self, other: Self) -> bool {
        (self.node && other.node) || (self.system && other.system) || (self.error && other.error)
    }

    pub(super) fn is_empty(self) -> bool {
        self == Self::NONE
    }
}
