//! Names as NATS takes them. Owns which characters stand for themselves; does not know what is named.

use std::fmt::Write as _;

/// A name as one part of a subject, or as the name of a stream: letters, digits, `-` and `_` stand for themselves, every
/// other byte is `=` and its two hexadecimal digits. Different names stay different.
pub(crate) fn token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            token.push(char::from(byte));
        } else {
            // Writing to a text cannot fail.
            let _ = write!(token, "={byte:02x}");
        }
    }
    token
}

#[cfg(test)]
mod tests {
    use super::token;

    #[test]
    fn names_are_written_so_that_no_two_are_the_same() {
        for (name, expected) in [
            ("orders", "orders"),
            ("Orders-1_a", "Orders-1_a"),
            ("a.b", "a=2eb"),
            ("a=2eb", "a=3d2eb"),
            ("*", "=2a"),
            (">", "=3e"),
            ("größe", "gr=c3=b6=c3=9fe"),
            ("a b", "a=20b"),
            ("", ""),
        ] {
            assert_eq!(token(name), expected);
        }
    }
}
