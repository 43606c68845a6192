//! Names as NATS takes them. Owns which characters stand for themselves; does not know what is named.

use std::fmt::Write as _;

use happen_core::{Error, Result};

use crate::limits;

/// A name as one token of a subject, or as the name of a stream: letters, digits, `-` and `_` stay, every other byte is `=`
/// and its two hexadecimal digits. Different names stay different.
///
/// # Errors
///
/// When it is empty or too long.
pub(crate) fn token(what: &str, name: &str) -> Result<String> {
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

/// What subjects may begin with.
///
/// # Errors
///
/// When it is no words with dots between them.
pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
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
}
