//! Owns the limits of patterns, each with its reason. Knows nothing about how patterns are read or matched.

/// Longest text of a pattern, in bytes. Event types are tens of bytes long; this leaves room for lists of
/// alternatives and keeps the work of one match small.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// Deepest nesting of `{`. Reading a pattern recurses once per level, and nobody can read more levels.
pub const PATTERN_NESTING_MAX: usize = 8;

/// Most alternatives a pattern may stand for once every `{a,b}` is written out. Braces side by side multiply,
/// so ten pairs would already be 1024; a match may try each of them.
pub const PATTERN_ALTERNATIVES_MAX: usize = 128;

/// Deepest nesting of combinators. Matching and dropping a pattern recurse once per level; `one_of` inside
/// `one_of`, `all_of` inside `all_of` and repeated `not` are flattened and do not count.
pub const PATTERN_DEPTH_MAX: usize = 64;

/// Most names in one [`Aliases`](super::Aliases) table. A table is written by people; more is a leak.
pub const ALIASES_LEN_MAX: usize = 1024;

/// Largest compiled program and largest lazy automaton of one regular expression, in bytes each. A short
/// text can ask for a huge program (`\w{1000}`); the crate's own default of 10 MiB is too much per handler.
pub const REGEX_PROGRAM_BYTES_MAX: usize = 1024 * 1024;
