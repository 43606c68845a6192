//! Numbers in place of texts that come again and again. Owns which texts are known; does not know where they were read.

use std::collections::HashMap;
use std::sync::Arc;

/// A bounded table that gives each text a small number: for handlers that keep something for each sensor, user or topic
/// and should not copy its name for every event.
///
/// Numbers count up from 0 and stay, so they index a vector. A text that finds no room, or is too long to be kept, has
/// none, and the caller decides what that means; nothing is pushed out, for then a number would change its meaning.
///
/// # Cost
///
/// One allocation for a text that is new, none for one that is known. At most `texts_max` times `text_bytes_max` bytes
/// of text are kept.
///
/// # Examples
///
/// ```
/// use happen_core::raw::Texts;
///
/// let mut sensors = Texts::new(2, 64);
/// assert_eq!(sensors.number("kitchen"), Some(0));
/// assert_eq!(sensors.number("cellar"), Some(1));
/// assert_eq!(sensors.number("kitchen"), Some(0));
/// assert_eq!(sensors.number("attic"), None);
/// assert_eq!(sensors.text(1), Some("cellar"));
/// ```
#[derive(Debug)]
pub struct Texts {
    numbers: HashMap<Arc<str>, u32>,
    texts: Vec<Arc<str>>,
    texts_max: usize,
    text_bytes_max: usize,
}

impl Texts {
    /// A table for at most this many texts of at most this many bytes each.
    #[must_use]
    pub fn new(texts_max: usize, text_bytes_max: usize) -> Self {
        Self { numbers: HashMap::new(), texts: Vec::new(), texts_max, text_bytes_max }
    }

    /// The number of the text, a new one when it comes for the first time; `None` when it is too long or the table is
    /// full.
    pub fn number(&mut self, text: &str) -> Option<u32> {
        if let Some(number) = self.known(text) {
            return Some(number);
        }
        if text.len() > self.text_bytes_max || self.texts.len() >= self.texts_max {
            return None;
        }
        let number = u32::try_from(self.texts.len()).ok()?;
        let text: Arc<str> = text.into();
        self.numbers.insert(Arc::clone(&text), number);
        self.texts.push(text);
        Some(number)
    }

    /// The number of a text that came before.
    #[must_use]
    pub fn known(&self, text: &str) -> Option<u32> {
        self.numbers.get(text).copied()
    }

    /// The text with this number.
    #[must_use]
    pub fn text(&self, number: u32) -> Option<&str> {
        self.texts.get(usize::try_from(number).ok()?).map(|text| &**text)
    }

    /// The number of texts that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_keeps_as_many_as_its_limit() {
        for texts_max in [0, 1, 2, 3] {
            let mut texts = Texts::new(texts_max, 8);
            let given: Vec<_> = ["a", "b", "a", ""].map(|text| texts.number(text)).into();
            let expected = [Some(0), Some(1), Some(0), Some(2)];
            let expected = expected.map(|number| number.filter(|number| (*number as usize) < texts_max));
            assert_eq!(given, expected);
            assert_eq!(texts.len(), texts_max);
            assert_eq!(texts.is_empty(), texts_max == 0);
            assert_eq!(texts.text(texts_max as u32), None);
        }
    }

    #[test]
    fn a_text_above_the_limit_is_not_kept() {
        let mut texts = Texts::new(10, 3);
        assert_eq!([texts.number("ab"), texts.number("abc"), texts.number("abcd")], [Some(0), Some(1), None]);
        assert_eq!((texts.known("abc"), texts.known("abcd")), (Some(1), None));
    }
}
