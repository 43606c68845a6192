//! Names of event types. Owns their text and the hash that makes looking them up cheap.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The name of a payload type, known when the program is compiled, with its hash.
#[derive(Debug)]
pub struct TypeName {
    text: &'static str,
    hash: u64,
}

/// The type of an event: a text of segments separated by dots, such as `order.created`.
///
/// Cloning one that came from a typed payload copies two words; one made at run time is shared.
#[derive(Clone)]
pub struct EventType(Repr);

#[derive(Clone)]
enum Repr {
    Static(&'static TypeName),
    Shared(Arc<SharedName>),
}

#[derive(Debug)]
struct SharedName {
    hash: u64,
    text: Box<str>,
}

impl TypeName {
    /// The name with this text. Derives and constants use it; its hash is computed by the compiler.
    #[must_use]
    pub const fn new(text: &'static str) -> Self {
        Self { text, hash: hash_of(text) }
    }

    /// The text.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        self.text
    }
}

impl EventType {
    /// The type of a typed payload.
    #[must_use]
    #[inline]
    pub const fn of(name: &'static TypeName) -> Self {
        Self(Repr::Static(name))
    }

    /// A type named at run time.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Repr::Shared(Arc::new(SharedName { hash: hash_of(text), text: text.into() })))
    }

    /// The text.
    #[must_use]
    #[inline]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Static(name) => name.text,
            Repr::Shared(name) => &name.text,
        }
    }

    /// A hash of the text: the same for equal texts, in every process and version.
    #[must_use]
    #[inline]
    pub fn hash(&self) -> u64 {
        match &self.0 {
            Repr::Static(name) => name.hash,
            Repr::Shared(name) => name.hash,
        }
    }
}

impl PartialEq for EventType {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.0, &other.0) {
            (Repr::Static(a), Repr::Static(b)) => std::ptr::eq(*a, *b),
            (Repr::Shared(a), Repr::Shared(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        same || self.hash() == other.hash() && self.as_str() == other.as_str()
    }
}

impl Eq for EventType {}

impl Hash for EventType {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Borrow<str> for EventType {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// FNV-1a in 64 bits with a final mix (the table slots take the low bits). Constant, so that derives cost nothing at
/// run time; names are not chosen by strangers in a table that grows, so flooding one slot gains an attacker nothing
/// beyond the bound of the table.
#[must_use]
pub const fn hash_of(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut index = 0;
    while index < bytes.len() {
        hash ^= bytes[index] as u64;
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
        index += 1;
    }
    hash ^= hash >> 32;
    hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hash >> 29
}

#[cfg(test)]
mod tests {
    use super::*;

    static NAME: TypeName = TypeName::new("order.created");

    #[test]
    fn static_and_shared_names_are_equal_by_text() {
        let a = EventType::of(&NAME);
        let b = EventType::new("order.created");
        assert_eq!(a, b);
        assert_eq!(a.hash(), b.hash());
        assert_ne!(a, EventType::new("order.creates"));
        assert_eq!(size_of::<EventType>(), 16);
    }
}
