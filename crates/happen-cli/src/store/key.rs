//! Which document somebody means who writes `orders`. Owns the short forms of keys; does not know what documents say.

use happen::store::List;

use crate::failure::Failure;
use crate::store::of_store;
use crate::store::opened::Opened;

/// The document that was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meant {
    /// Its key.
    pub(crate) key: String,
    /// The node whose it is; none for a document that belongs to no node.
    pub(crate) node: Option<String>,
    /// The name of the state.
    pub(crate) state: String,
}

/// Finds the document that was meant: by its key, by the key without `state/` or `entity/`, or by the name of a node
/// that has one state.
///
/// # Errors
///
/// [`Failure::NotFound`] when nothing is meant; [`Failure::Usage`] when several documents are.
pub(crate) async fn meant(store: &Opened, text: &str) -> Result<Meant, Failure> {
    let keys = candidates(text).into_iter().map(|key| key.to_key()).collect();
    let found = store.documents(keys).await.map_err(|error| of_store(store.address(), &error))?;
    if let Some(document) = found.into_iter().flatten().next() {
        return Ok(Meant::of(&document.key));
    }
    let mut states: Vec<String> = Vec::new();
    // A name with `/` in it is written as it is by people, and with `%2F` in keys.
    for node in [text.to_owned(), escaped(text)] {
        for key in states_of(store, &node).await? {
            if !states.contains(&key) {
                states.push(key);
            }
        }
    }
    match &states[..] {
        [] => Err(Failure::NotFound(format!(
            "no document is called `{text}`; `happen state ls` lists those there are"
        ))),
        [only] => Ok(Meant::of(only)),
        several => {
            let several: Vec<_> = several.iter().map(|key| format!("`{key}`")).collect();
            Err(Failure::Usage(format!("`{text}` has several states: name one of {}", several.join(", "))))
        }
    }
}

/// The key that a document has or would have which is written for the first time.
///
/// # Errors
///
/// [`Failure::Usage`] when the text is no whole key.
pub(crate) fn new_key(text: &str) -> Result<Meant, Failure> {
    match candidates(text).into_iter().next() {
        Some(Candidate::Whole(key)) if Meant::of(&key).node.is_some() => Ok(Meant::of(&key)),
        Some(Candidate::Short(key)) => Ok(Meant::of(&key)),
        _ => Err(Failure::Usage(format!(
            "`{text}` names no document yet; write the whole key of a new one, such as state/NODE/STATE"
        ))),
    }
}

/// The keys of the states of a node, as it is written in keys.
async fn states_of(store: &Opened, node: &str) -> Result<Vec<String>, Failure> {
    if node.contains('/') {
        return Ok(Vec::new());
    }
    let list =
        List { prefix: format!("{STATE}{node}/").into(), after: None, documents_max: STATES_SHOWN_MAX };
    let documents = store.list(list).await.map_err(|error| of_store(store.address(), &error))?;
    Ok(documents.iter().map(|document| document.key.to_string()).collect())
}

enum Candidate {
    Whole(String),
    Short(String),
}

impl Candidate {
    fn to_key(&self) -> happen::store::Key {
        let (Self::Whole(key) | Self::Short(key)) = self;
        key.as_str().into()
    }
}

/// The keys that a text may stand for, the likeliest first.
fn candidates(text: &str) -> Vec<Candidate> {
    let parts: Vec<_> = text.split('/').collect();
    let mut keys = Vec::new();
    match (parts.first(), parts.len()) {
        _ if parts.iter().any(|part| part.is_empty()) => {}
        (Some(&"state"), 3) | (Some(&"entity"), 4) => keys.push(Candidate::Whole(text.to_owned())),
        (Some(&"global"), 2..) => keys.push(Candidate::Whole(text.to_owned())),
        (_, 2) => keys.push(Candidate::Short(format!("{STATE}{text}"))),
        _ => {}
    }
    // A node may be called `state`.
    if parts.len() == 3 && !parts.iter().any(|part| part.is_empty()) {
        keys.push(Candidate::Short(format!("{ENTITY}{text}")));
    }
    keys
}

impl Meant {
    fn of(key: &str) -> Self {
        let of_node = key.strip_prefix(STATE).or_else(|| key.strip_prefix(ENTITY));
        let mut parts = of_node.unwrap_or_default().split('/').map(plain);
        let (node, state) = (parts.next().filter(|_| of_node.is_some()), parts.next().unwrap_or_default());
        Self { key: key.to_owned(), node, state }
    }
}

/// A part of a key as it is written there.
pub(crate) fn escaped(part: &str) -> String {
    part.replace('%', "%25").replace('/', "%2F")
}

/// A part of a key as it was before.
pub(crate) fn plain(part: &str) -> String {
    part.replace("%2F", "/").replace("%25", "%")
}

pub(crate) const STATE: &str = "state/";
pub(crate) const ENTITY: &str = "entity/";

/// How many states of a node are named when one has to be chosen.
const STATES_SHOWN_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<String> {
        candidates(text).iter().map(|key| key.to_key().to_string()).collect()
    }

    #[test]
    fn a_text_stands_for_few_keys() {
        assert_eq!(keys("orders"), [""; 0]);
        assert_eq!(keys("orders/orders"), ["state/orders/orders"]);
        assert_eq!(keys("state/orders/orders"), ["state/orders/orders", "entity/state/orders/orders"]);
        assert_eq!(keys("orders/order/7"), ["entity/orders/order/7"]);
        assert_eq!(keys("entity/orders/order/7"), ["entity/orders/order/7"]);
        assert_eq!(keys("global/a/b/c"), ["global/a/b/c",]);
        assert_eq!(keys("flow/a/b/c"), [""; 0]);
        assert_eq!(keys("orders//"), [""; 0]);
        assert_eq!(keys(""), [""; 0]);
    }

    #[test]
    fn a_key_tells_whose_it_is() {
        let of = |key| Meant::of(key);
        assert_eq!(of("state/a%2Fb/c%25").node.as_deref(), Some("a/b"));
        assert_eq!(of("state/a%2Fb/c%25").state, "c%");
        assert_eq!(of("entity/a/b/c").state, "b");
        assert_eq!(of("global/x").node, None);
        for text in ["a/b", "%2F", "%252F/", "%"] {
            assert_eq!(plain(&escaped(text)), text);
        }
    }
}
