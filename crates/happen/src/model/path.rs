//! Places in the serialised form of a state, and how a state gets into that form and out of it. Owns the text of a
//! path; does not know what is done at the place.

use std::fmt;

use happen_core::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// A place in a serialised value: keys of maps and indexes of arrays, with dots between them, as in `lines.0.price`.
///
/// A dot that belongs to a key is written `\.`, a backslash `\\`, and a key without any text `\_`. The empty path is the
/// whole value.
///
/// # Examples
///
/// ```
/// use happen::model::Path;
///
/// let path = Path::from("prices.example\\.org.0");
/// assert_eq!(path.parts(), ["prices", "example.org", "0"]);
/// assert_eq!(path.to_string(), "prices.example\\.org.0");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Path {
    parts: Vec<String>,
}

impl Path {
    /// The keys and indexes, from the outside in.
    #[must_use]
    pub fn parts(&self) -> &[String] {
        &self.parts
    }

    /// The path of something inside the value at this one: a key, or an index as text.
    #[must_use]
    pub fn join(&self, part: impl Into<String>) -> Self {
        let mut parts = self.parts.clone();
        parts.push(part.into());
        Self { parts }
    }

    /// The path that goes on with another one.
    pub(super) fn followed_by(&self, rest: &Self) -> Self {
        Self { parts: [&self.parts[..], &rest.parts].concat() }
    }

    /// The value at this place.
    pub(super) fn find<'j>(&self, json: &'j Json) -> Option<&'j Json> {
        self.parts.iter().try_fold(json, |json, part| match json {
            Json::Object(map) => map.get(part),
            Json::Array(items) => items.get(index(part)?),
            _ => None,
        })
    }

    /// The value at this place, to be changed.
    pub(super) fn find_mut<'j>(&self, json: &'j mut Json) -> Option<&'j mut Json> {
        self.parts.iter().try_fold(json, |json, part| match json {
            Json::Object(map) => map.get_mut(part),
            Json::Array(items) => items.get_mut(index(part)?),
            _ => None,
        })
    }

    /// The value around this place, with the last part; `None` for the whole value, which has nothing around it.
    pub(super) fn split_last(&self) -> Option<(Self, &str)> {
        let (last, parts) = self.parts.split_last()?;
        Some((Self { parts: parts.to_vec() }, last))
    }
}

/// The index that a part of a path stands for, in the only way it is written.
pub(super) fn index(part: &str) -> Option<usize> {
    let is_plain = part == "0" || !part.starts_with(['0', '+']);
    part.parse().ok().filter(|_| is_plain)
}

impl From<&str> for Path {
    fn from(text: &str) -> Self {
        if text.is_empty() {
            return Self::default();
        }
        let mut parts = vec![String::new()];
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            let letter = match letter {
                '.' => {
                    parts.push(String::new());
                    continue;
                }
                '\\' => match letters.next() {
                    Some('_') => continue,
                    // One at the end stands for itself.
                    escaped => escaped.unwrap_or('\\'),
                },
                letter => letter,
            };
            if let Some(last) = parts.last_mut() {
                last.push(letter);
            }
        }
        Self { parts }
    }
}

impl From<String> for Path {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<Path> for String {
    fn from(path: Path) -> Self {
        path.to_string()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, part) in self.parts.iter().enumerate() {
            if number > 0 {
                f.write_str(".")?;
            }
            if part.is_empty() {
                f.write_str("\\_")?;
            }
            for letter in part.chars() {
                if matches!(letter, '.' | '\\') {
                    f.write_str("\\")?;
                }
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// The serialised form.
pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Json> {
    serde_json::to_value(value).map_err(|error| {
        let kind = ErrorKind::Unencodable { event_type: std::any::type_name::<T>().to_owned() };
        Error::new(kind).with_source(error)
    })
}

/// The value of a serialised form.
pub(super) fn from_json<T: DeserializeOwned>(json: Json) -> Result<T> {
    T::deserialize(json).map_err(|error| {
        let kind = ErrorKind::Undecodable { wanted: std::any::type_name::<T>().to_owned() };
        Error::new(kind).with_source(error)
    })
}

/// The error of something that is not possible with these values.
pub(super) fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid { reason: reason.into() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn a_path_comes_back_from_its_text(parts in prop::collection::vec("[a-z._\\\\ é\n]{0,4}", 0..5)) {
            let path = Path { parts };
            prop_assert_eq!(Path::from(path.to_string()), path.clone());
            let stored = serde_json::to_string(&path).unwrap();
            prop_assert_eq!(serde_json::from_str::<Path>(&stored).unwrap(), path);
        }

        #[test]
        fn any_text_is_a_path(text in ".{0,12}") {
            let path = Path::from(text.as_str());
            prop_assert_eq!(Path::from(path.to_string()), path);
        }
    }

    #[test]
    fn a_path_leads_to_one_place_or_to_none() {
        let json = json!({"a": [{"b": 1}, 2], "": {"": 3}, "0": 4});
        for (path, found) in [
            ("a.0.b", Some(json!(1))),
            ("a.1", Some(json!(2))),
            ("a.2", None),
            ("a.01", None),
            ("a.+1", None),
            ("a.-1", None),
            ("a.1.b", None),
            ("\\_.\\_", Some(json!(3))),
            (".", Some(json!(3))),
            ("0", Some(json!(4))),
            ("b", None),
            ("", Some(json.clone())),
        ] {
            assert_eq!(Path::from(path).find(&json), found.as_ref(), "{path}");
            assert_eq!(Path::from(path).find_mut(&mut json.clone()), found.clone().as_mut(), "{path}");
        }
    }
}
