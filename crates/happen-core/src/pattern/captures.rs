//! Owns the parts of a type that a pattern captured. Knows nothing about how they were found.

use std::fmt;
use std::ops::Range;

/// What the wildcards and alternatives of a pattern stand for in one type, borrowed from the type.
///
/// Groups are numbered from 0 in the order in which they start in the pattern text: every `*`, every `**` and
/// every `{…}` is one. A group inside an alternative that was not taken is absent, so numbers never shift.
/// See [`Pattern::captures`](super::Pattern::captures) for combinators.
///
/// # Examples
///
/// ```
/// use happen_core::pattern::Pattern;
///
/// let pattern = Pattern::parse("{order,payment}.*.done")?;
/// let captures = pattern.captures("payment.refund.done").unwrap();
/// assert_eq!(captures.get(0), Some("payment"));
/// assert_eq!(captures.get(1), Some("refund"));
/// assert_eq!(captures.get(2), None);
/// # Ok::<(), happen_core::pattern::PatternError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Captures<'t> {
    ty: &'t str,
    spans: Vec<Option<Range<usize>>>,
}

impl<'t> Captures<'t> {
    pub(super) fn new(ty: &'t str, spans: Vec<Option<Range<usize>>>) -> Self {
        Self { ty, spans }
    }

    /// Gives what the group with this number holds; `None` if it is absent or there is no such group.
    #[must_use]
    pub fn get(&self, group_index: usize) -> Option<&'t str> {
        let span = self.spans.get(group_index)?.clone()?;
        self.ty.get(span)
    }

    /// Counts the groups, absent ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Tells whether there are no groups at all, as for a literal pattern.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Goes through the groups in order; an absent one is `None`.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&'t str>> + '_ {
        self.spans.iter().map(|span| self.ty.get(span.clone()?))
    }
}

impl fmt::Debug for Captures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
