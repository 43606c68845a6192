//! What differs between two values, place by place: to be read, applied, taken back. Owns how differences are found;
//! does not know what made them.

use std::fmt;

use happen_core::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::path::{Path, from_json, index, invalid, to_json};

/// What differs between two values, as edits that make the one into the other.
///
/// Edits are made in their order; indexes of arrays are those of that moment. What is compared is the serialised form, so
/// fields that are not serialised do not count, and a changed value has what it has after being stored and read.
///
/// A difference can be stored, sent and shown: its text has a line of at most 80 columns for each edit.
///
/// # Examples
///
/// ```
/// use happen::model::Diff;
///
/// #[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
/// struct Order { lines: Vec<String>, paid: bool }
///
/// # fn main() -> happen::Result<()> {
/// let before = Order { lines: vec!["apple".into(), "pear".into()], paid: false };
/// let after = Order { lines: vec!["apple".into()], paid: true };
/// let diff = Diff::between(&before, &after)?;
/// assert_eq!(diff.to_string(), "- lines.1: \"pear\"\n~ paid: false -> true\n");
/// assert_eq!(diff.apply(&before)?, after);
/// assert_eq!(diff.inverse().apply(&after)?, before);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Diff {
    edits: Vec<Edit>,
}

/// One place that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "there is nothing else that can differ")]
pub enum Edit {
    /// Something is there that was not: an entry of a map, or an item before which those behind it make room.
    Added {
        /// Where.
        path: Path,
        /// What is there now.
        new: Json,
    },
    /// Something is no longer there; items behind it close up.
    Removed {
        /// Where.
        path: Path,
        /// What was there.
        old: Json,
    },
    /// Something else is there.
    Changed {
        /// Where.
        path: Path,
        /// What was there.
        old: Json,
        /// What is there now.
        new: Json,
    },
}

impl Diff {
    /// What makes one value into another.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unencodable`] when a value has no form in JSON.
    ///
    /// # Cost
    ///
    /// Both values are serialised; then linear in their sizes.
    pub fn between<T: Serialize>(old: &T, new: &T) -> Result<Self> {
        Ok(Self::of_json(&to_json(old)?, &to_json(new)?))
    }

    /// What makes one serialised value into another.
    #[must_use]
    pub fn of_json(old: &Json, new: &Json) -> Self {
        let mut edits = Vec::new();
        compare(&Path::default(), old, new, &mut edits);
        Self { edits }
    }

    /// The edits, in the order in which they are made.
    #[must_use]
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// What leads back.
    #[must_use]
    pub fn inverse(&self) -> Self {
        Self { edits: self.edits.iter().rev().map(Edit::inverse).collect() }
    }

    /// The value after the edits.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Conflict`] when a place does not have what the edit says was there: it is another value than the
    ///   one that was compared.
    /// - [`ErrorKind::Undecodable`] when what comes of it is no `T`, [`ErrorKind::Unencodable`] when the value has no
    ///   form in JSON.
    pub fn apply<T: Serialize + DeserializeOwned>(&self, value: &T) -> Result<T> {
        from_json(self.apply_to_json(to_json(value)?)?)
    }

    /// The serialised value after the edits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] as [`Diff::apply`].
    pub fn apply_to_json(&self, mut json: Json) -> Result<Json> {
        self.edits.iter().try_for_each(|edit| edit.make(&mut json))?;
        Ok(json)
    }
}

impl Edit {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Added { path, .. } | Self::Removed { path, .. } | Self::Changed { path, .. } => path,
        }
    }

    /// What was there.
    #[must_use]
    pub fn old_value(&self) -> Option<&Json> {
        match self {
            Self::Added { .. } => None,
            Self::Removed { old, .. } | Self::Changed { old, .. } => Some(old),
        }
    }

    /// What is there now.
    #[must_use]
    pub fn new_value(&self) -> Option<&Json> {
        match self {
            Self::Removed { .. } => None,
            Self::Added { new, .. } | Self::Changed { new, .. } => Some(new),
        }
    }

    fn inverse(&self) -> Self {
        match self.clone() {
            Self::Added { path, new } => Self::Removed { path, old: new },
            Self::Removed { path, old } => Self::Added { path, new: old },
            Self::Changed { path, old, new } => Self::Changed { path, old: new, new: old },
        }
    }

    fn make(&self, json: &mut Json) -> Result<()> {
        let path = self.path();
        let found = path.find(json);
        if let (Self::Changed { .. } | Self::Removed { .. }, true) = (self, found != self.old_value()) {
            return Err(conflict(path, "not what was compared"));
        }
        if let Self::Changed { new, .. } = self {
            let place = path.find_mut(json).ok_or_else(|| conflict(path, "no longer there"))?;
            place.clone_from(new);
            return Ok(());
        }
        let Some((around, last)) = path.split_last() else {
            return Err(invalid("the whole value can be changed, and neither added nor removed"));
        };
        let nowhere = || conflict(path, "in nothing that has places");
        match (around.find_mut(json).ok_or_else(nowhere)?, self.new_value()) {
            (Json::Object(map), Some(_)) if map.contains_key(last) => Err(conflict(path, "already there")),
            (Json::Object(map), Some(new)) => {
                map.insert(last.to_owned(), new.clone());
                Ok(())
            }
            (Json::Object(map), None) => map.remove(last).map(drop).ok_or_else(nowhere),
            (Json::Array(items), new) => match (index(last), new) {
                (Some(index), Some(new)) if index <= items.len() => {
                    items.insert(index, new.clone());
                    Ok(())
                }
                (Some(index), None) if index < items.len() => {
                    items.remove(index);
                    Ok(())
                }
                _ => Err(conflict(path, "beyond the end")),
            },
            _ => Err(nowhere()),
        }
    }
}

fn conflict(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Conflict { what: format!("what is at `{path}` is {what}") })
}

fn compare(path: &Path, old: &Json, new: &Json, edits: &mut Vec<Edit>) {
    match (old, new) {
        _ if old == new => {}
        (Json::Object(old), Json::Object(new)) => {
            for (key, old) in old {
                match new.get(key) {
                    Some(new) => compare(&path.join(key), old, new, edits),
                    None => edits.push(Edit::Removed { path: path.join(key), old: old.clone() }),
                }
            }
            for (key, new) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                edits.push(Edit::Added { path: path.join(key), new: new.clone() });
            }
        }
        (Json::Array(old), Json::Array(new)) => compare_items(path, old, new, edits),
        _ => edits.push(Edit::Changed { path: path.clone(), old: old.clone(), new: new.clone() }),
    }
}

/// Compares what is left between the same beginning and the same end pair by pair, so that an item put in or taken out
/// is one edit. A longest common subsequence would find fewer edits and take the square of the length.
fn compare_items(path: &Path, old: &[Json], new: &[Json], edits: &mut Vec<Edit>) {
    let first = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[first..], &new[first..]);
    let same = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[..old.len() - same], &new[..new.len() - same]);
    let at = |index: usize| path.join((first + index).to_string());
    for (index, (old, new)) in old.iter().zip(new).enumerate() {
        compare(&at(index), old, new, edits);
    }
    for (index, old) in old.iter().enumerate().skip(new.len()).rev() {
        edits.push(Edit::Removed { path: at(index), old: old.clone() });
    }
    for (index, new) in new.iter().enumerate().skip(old.len()) {
        edits.push(Edit::Added { path: at(index), new: new.clone() });
    }
}

/// Columns of one line.
const WIDTH: usize = 80;
/// Columns of the path in it, so that the values have the larger part.
const PATH_WIDTH: usize = 38;

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.edits.iter().try_for_each(|edit| writeln!(f, "{edit}"))
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match self.path().parts() {
            [] => "(all)".to_owned(),
            _ => cut(&self.path().to_string(), PATH_WIDTH),
        };
        // The sign and the space before the path, the colon and the space behind it.
        let width = WIDTH - path.chars().count() - 4;
        match self {
            Self::Added { new, .. } => write!(f, "+ {path}: {}", cut(&new.to_string(), width)),
            Self::Removed { old, .. } => write!(f, "- {path}: {}", cut(&old.to_string(), width)),
            Self::Changed { old, new, .. } => {
                let width = width - ARROW.len();
                let (old, new) = (old.to_string(), new.to_string());
                // Half for each; what one does not need is for the other.
                let old_width = old.chars().count().min(width.div_ceil(2));
                let new = cut(&new, width - old_width);
                let old = cut(&old, width - new.chars().count());
                write!(f, "~ {path}: {old}{ARROW}{new}")
            }
        }
    }
}

const ARROW: &str = " -> ";

/// The text in at most so many columns, on one line.
fn cut(text: &str, width: usize) -> String {
    let mut letters = text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter });
    let kept: String = letters.by_ref().take(width).collect();
    if letters.next().is_none() {
        return kept;
    }
    kept.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            (0..3).prop_map(Json::from),
            "[a-c\n]{0,2}".prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
                prop::collection::btree_map("[ab.\\\\]{0,2}", inner, 0..5)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_difference_leads_there_and_back(old in any_json(), new in any_json()) {
            let diff = Diff::of_json(&old, &new);
            prop_assert_eq!(diff.is_empty(), old == new);
            prop_assert_eq!(&diff.apply_to_json(old.clone()).unwrap(), &new);
            prop_assert_eq!(&diff.inverse().apply_to_json(new.clone()).unwrap(), &old);
            prop_assert_eq!(&diff.inverse().inverse(), &diff);
            // Also after it was stored, in either form.
            let stored = rmp_serialised(&diff);
            prop_assert_eq!(&stored, &diff);
            prop_assert_eq!(&serde_json::from_str::<Diff>(&serde_json::to_string(&diff).unwrap()).unwrap(), &diff);
            for line in diff.to_string().lines() {
                prop_assert!(line.chars().count() <= WIDTH, "{}", line);
            }
            prop_assert_eq!(diff.to_string().lines().count(), diff.edits().len());
        }

        #[test]
        fn a_difference_of_other_values_breaks_nothing(a in any_json(), b in any_json(), other in any_json()) {
            let diff = Diff::of_json(&a, &b);
            match diff.apply_to_json(other.clone()) {
                // Whatever fits can be taken back.
                Ok(changed) => prop_assert_eq!(diff.inverse().apply_to_json(changed).unwrap(), other),
                Err(error) => prop_assert_eq!(error.code(), "conflict"),
            }
        }
    }

    #[derive(Debug, Default, Clone, Serialize, Deserialize)]
    struct Kept(Diff);

    impl happen_core::State for Kept {
        const NAME: &'static str = "kept";
        const VERSION: u32 = 1;
    }

    fn rmp_serialised(diff: &Diff) -> Diff {
        let stored = happen_core::state::encode(&Kept(diff.clone())).unwrap();
        happen_core::state::decode::<Kept>(&stored).unwrap().0
    }

    #[test]
    fn an_item_put_in_front_is_one_edit() {
        let diff = Diff::of_json(&json!({"a": [1, 2, 3]}), &json!({"a": [0, 1, 2, 3]}));
        assert_eq!(diff.edits(), [Edit::Added { path: "a.0".into(), new: json!(0) }]);
        let diff = Diff::of_json(&json!([1, 2, 3, 4]), &json!([1, 4]));
        assert_eq!(diff.to_string(), "- 2: 3\n- 1: 2\n");
    }

    #[test]
    fn a_line_is_cut_where_it_has_room_for_both_values() {
        let long = "x".repeat(200);
        let line = |old: Json, new: Json| {
            let text = Diff::of_json(&json!({ "key": old }), &json!({ "key": new })).to_string();
            text.trim_end().to_owned()
        };
        let cut = line(json!(1), json!(long));
        assert_eq!((cut.chars().count(), cut.starts_with("~ key: 1 -> \"xxx")), (80, true), "{cut}");
        let cut = line(json!(long), json!(1));
        assert_eq!((cut.chars().count(), cut.ends_with("xxx… -> 1")), (80, true), "{cut}");
        let cut = line(json!(long), json!("y".repeat(200)));
        assert_eq!((cut.chars().count(), cut.matches('…').count()), (80, 2), "{cut}");
        let deep = Diff::of_json(&json!({ &long: 1 }), &json!({ &long: 2 })).to_string();
        assert!(deep.ends_with("…: 1 -> 2\n") && deep.chars().count() <= 80, "{deep}");
        assert_eq!(Diff::of_json(&json!(1), &json!({})).to_string(), "~ (all): 1 -> {}\n");
        assert_eq!(Diff::of_json(&json!({"a\n": 1}), &json!({})).to_string(), "- a\u{fffd}: 1\n");
    }

    #[test]
    fn edits_from_elsewhere_that_cannot_be_made_are_refused() {
        let diff = |edit| Diff { edits: vec![edit] };
        let json = json!({"a": [1], "b": 2});
        let code = |edit| diff(edit).apply_to_json(json.clone()).unwrap_err().code();
        let added = |path: &str| Edit::Added { path: path.into(), new: json!(0) };
        let removed = |path: &str, old| Edit::Removed { path: path.into(), old };
        assert_eq!(
            [added("a.2"), added("a.x"), added("b"), added("b.c"), added("c.d")].map(code),
            ["conflict"; 5]
        );
        assert_eq!([added(""), removed("", json.clone())].map(code), ["invalid"; 2]);
        assert_eq!(
            [removed("a.1", json!(1)), removed("b", json!(1)), removed("c", json!(1))].map(code),
            ["conflict"; 3]
        );
    }
}
