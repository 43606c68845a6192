//! What differs between two JSON values, place by place. Owns the paths, which are JSON pointers; does not know what
//! the values are of.

use serde_json::Value as Json;

/// A place where two values differ.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Difference {
    /// A JSON pointer (RFC 6901); empty for the whole.
    pub(crate) path: String,
    /// What was there; none when there was nothing.
    pub(crate) before: Option<Json>,
    /// What is there now.
    pub(crate) after: Option<Json>,
}

/// All places where the values differ, as deep as they can be told apart, in the order of their paths.
pub(crate) fn differences(before: &Json, after: &Json) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", Some(before), Some(after), &mut found);
    found
}

fn compare(path: &str, before: Option<&Json>, after: Option<&Json>, found: &mut Vec<Difference>) {
    match (before, after) {
        (Some(Json::Object(old)), Some(Json::Object(new))) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            let mut keys: Vec<_> = old.keys().chain(added).collect();
            keys.sort();
            for key in keys {
                compare(&format!("{path}/{}", escaped(key)), old.get(key), new.get(key), found);
            }
        }
        (Some(Json::Array(old)), Some(Json::Array(new))) => {
            for index in 0..old.len().max(new.len()) {
                compare(&format!("{path}/{index}"), old.get(index), new.get(index), found);
            }
        }
        (before, after) if before == after => {}
        (before, after) => {
            found.push(Difference { path: path.to_owned(), before: before.cloned(), after: after.cloned() })
        }
    }
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_place_is_told_once_and_as_deep_as_can_be() {
        let before = json!({ "a": { "b": [1, 2, 3], "c": 1 }, "gone": null, "same": [{}], "kind": [] });
        let after = json!({ "a": { "b": [1, 9], "c": 1 }, "new/~": {}, "same": [{}], "kind": {} });
        let told: Vec<_> = differences(&before, &after)
            .into_iter()
            .map(|found| (found.path, found.before, found.after))
            .collect();
        assert_eq!(
            told,
            [
                ("/a/b/1".to_owned(), Some(json!(2)), Some(json!(9))),
                ("/a/b/2".to_owned(), Some(json!(3)), None),
                ("/gone".to_owned(), Some(json!(null)), None),
                ("/kind".to_owned(), Some(json!([])), Some(json!({}))),
                ("/new~1~0".to_owned(), None, Some(json!({}))),
            ]
        );
        for found in differences(&before, &after) {
            assert_eq!(before.pointer(&found.path), found.before.as_ref());
            assert_eq!(after.pointer(&found.path), found.after.as_ref());
        }
        assert_eq!(differences(&before, &before), []);
        assert_eq!(differences(&json!(1), &json!("1"))[0].path, "");
    }
}
