//! The subjects of a space, and how names stand in them. Owns what a name may be; does not know what is sent there.

use std::fmt::Write as _;

use async_nats::Subject;
use happen_core::{Error, Result};

use crate::limits;

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

/// A name as one token of a subject: letters, digits, `-` and `_` stay, every other byte is `=` and two digits.
pub(super) fn token(what: &str, name: &str) -> Result<String> {
    if name.is_empty() || name.len() > limits::NAME_BYTES_MAX {
        let max = limits::NAME_BYTES_MAX;
        return Err(Error::misuse(format!(
            "the name of a {what} has 1 to {max} bytes, `{name}` has {}",
            name.len()
        )));
    }
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            token.push(char::from(byte));
        } else {
            // Writing to a text does not fail.
            let _ = write!(token, "={byte:02X}");
        }
    }
    Ok(token)
}

fn check_prefix(prefix: &str) -> Result<()> {
    let plain = |part: &str| {
        let takes = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>');
        !part.is_empty() && part.bytes().all(takes)
    };
    if prefix.len() <= limits::NAME_BYTES_MAX && !prefix.starts_with('$') && prefix.split('.').all(plain) {
        return Ok(());
    }
    Err(Error::misuse(format!(
        "`{prefix}` is no prefix of subjects: at most {} bytes of words without `*`, `>` and spaces, with dots between \
         them, and not the server's own, which begin with `$`",
        limits::NAME_BYTES_MAX
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tokens_whatever_is_in_them() {
        for (name, expected) in [
            ("api-1_B", "api-1_B"),
            ("a.b", "a=2Eb"),
            ("a b", "a=20b"),
            ("*", "=2A"),
            (">", "=3E"),
            ("=", "=3D"),
            ("ü", "=C3=BC"),
            ("\0", "=00"),
        ] {
            assert_eq!(token("member", name).unwrap(), expected);
        }
    }

    #[test]
    fn names_have_an_end() {
        let long = |bytes| "x".repeat(bytes);
        assert!(token("member", &long(limits::NAME_BYTES_MAX - 1)).is_ok());
        assert!(token("member", &long(limits::NAME_BYTES_MAX)).is_ok());
        assert_eq!(token("member", &long(limits::NAME_BYTES_MAX + 1)).unwrap_err().code(), "misuse");
        assert_eq!(token("member", "").unwrap_err().code(), "misuse");
    }

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
