//! Names as parts of the keys of documents. Owns how they are written, so that names of any text stay apart.

use std::borrow::Cow;

/// A name as part of a key: `/` is written `%2F` and `%` is written `%25`, so that prefixes select whole names.
pub(crate) fn escaped(part: &str) -> Cow<'_, str> {
    if part.contains(['/', '%']) { part.replace('%', "%25").replace('/', "%2F").into() } else { part.into() }
}

/// The name that a part of a key stands for.
pub(crate) fn plain(part: &str) -> Cow<'_, str> {
    if part.contains('%') { part.replace("%2F", "/").replace("%25", "%").into() } else { part.into() }
}
