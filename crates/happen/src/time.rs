//! Short names for spans of time, as in `.within(secs(2))`. Owns nothing and reads no clock.

use std::time::Duration;

/// A span of so many seconds.
///
/// # Examples
///
/// ```
/// assert_eq!(happen::secs(2), std::time::Duration::from_secs(2));
/// ```
#[must_use]
pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A span of so many milliseconds.
///
/// # Examples
///
/// ```
/// assert_eq!(happen::millis(1_500), std::time::Duration::from_millis(1_500));
/// ```
#[must_use]
pub const fn millis(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
