//! The subjects of a space, and how names stand in them. Owns what a name may be; does not know what is sent there.

use async_nats::Subject;
use happen_core::Result;

use crate::names::{check_prefix, token};

/// The subjects of one space as one member sees them.
#[derive(Debug, Clone)]
pub(super) struct Subjects {
    base: String,
    own: String,
}

impl Subjects {
    pub(super) fn new(prefix: &str, space: &str, member: &str) -> Result<Self> {
        check_prefix(prefix)?;
        let own = token("member", member)?;
        Ok(Self { base: format!("{prefix}.{}", token("space", space)?), own })
    }

    /// Where members say who they are.
    pub(super) fn presence(&self) -> Subject {
        format!("{}.presence", self.base).into()
    }

    /// Where this member takes events.
    pub(super) fn own_events(&self) -> Subject {
        format!("{}.member.{}", self.base, self.own).into()
    }

    /// Where this member takes replies, from everyone.
    pub(super) fn own_replies(&self) -> Subject {
        format!("{}.back.{}.*", self.base, self.own).into()
    }

    /// Where a member takes events.
    pub(super) fn events_of(&self, member: &str) -> Result<Subject> {
        Ok(format!("{}.member.{}", self.base, token("member", member)?).into())
    }

    /// Where a member takes replies from this one.
    pub(super) fn replies_of(&self, member: &str) -> Result<Subject> {
        Ok(format!("{}.back.{}.{}", self.base, token("member", member)?, self.own).into())
    }

    /// Where this member is told that nobody takes the events of a member.
    pub(super) fn bounces_of(&self, member: &str) -> Result<Subject> {
        Ok(format!("{}.back.{}.{}", self.base, self.own, token("member", member)?).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;

    #[test]
    fn the_longest_subjects_fit_into_one_command() {
        let name = "ü".repeat(limits::NAME_BYTES_MAX / 2);
        let prefix = "x".repeat(limits::NAME_BYTES_MAX);
        let subjects = Subjects::new(&prefix, &name, &name).unwrap();
        let command = subjects.events_of(&name).unwrap().len() + subjects.bounces_of(&name).unwrap().len();
        assert!(command + "PUB   1048576".len() < 4_096, "{command}");
    }

    #[test]
    fn a_prefix_is_words_with_dots() {
        for prefix in ["happen", "a.b", "team-1.prod"] {
            assert!(Subjects::new(prefix, "space", "member").is_ok(), "{prefix}");
        }
        for prefix in ["", ".", "a.", "a..b", "a b", "*", "a.>", "$SYS", "ü"] {
            assert_eq!(Subjects::new(prefix, "space", "member").unwrap_err().code(), "misuse", "{prefix}");
        }
    }
}
