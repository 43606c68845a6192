//! The keys of nodes that live elsewhere. Owns the bounded table from their ids to keys of this space.

use std::collections::VecDeque;
use std::sync::Arc;

use happen_core::NodeKey;

use crate::limits;
use crate::space::SpaceInner;
use crate::sync::{Mutex, lock};

/// Ids of nodes elsewhere that events told of, with the keys they were given here.
#[derive(Debug, Default)]
pub(crate) struct RemoteNames {
    keys: papaya::HashMap<Arc<str>, NodeKey>,
    oldest_first: Mutex<VecDeque<Arc<str>>>,
}

impl SpaceInner {
    /// The key of a node that an event from elsewhere names. A node here and one elsewhere with the same id are the same
    /// name, so they have the same key.
    ///
    /// Beyond [`limits::LINK_NAMES_MAX`] the name that was learned first is forgotten: an event that still waits then
    /// has a sender without a name, which no `accept_from` takes, and the next event teaches the name anew.
    pub(crate) fn key_of(&self, name: &str) -> NodeKey {
        if let Some(node) = self.find(name) {
            return node.key;
        }
        let remote = &self.remote_names;
        if let Some(key) = remote.keys.pin().get(name) {
            return *key;
        }
        let mut names = lock(&remote.oldest_first);
        let keys = remote.keys.pin();
        if let Some(key) = keys.get(name) {
            return *key;
        }
        if names.len() >= limits::LINK_NAMES_MAX
            && let Some(oldest) = names.pop_front()
            && let Some(key) = keys.remove(&oldest)
        {
            self.unname(*key);
        }
        let name: Arc<str> = name.into();
        let key = self.name_key(&name);
        names.push_back(Arc::clone(&name));
        keys.insert(name, key);
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Space;

    #[test]
    fn the_table_of_names_does_not_grow_beyond_its_limit() {
        let space = Space::memory();
        let inner = space.inner();
        let own = space.node("own");
        assert_eq!(inner.key_of("own"), own.inner().key);
        let first = inner.key_of("name-0");
        for number in 1..limits::LINK_NAMES_MAX {
            inner.key_of(&format!("name-{number}"));
        }
        assert_eq!(inner.key_of("name-0"), first);
        assert_eq!(inner.name_of(first).as_deref(), Some("name-0"));
        let last = inner.key_of("one more");
        assert_eq!(inner.name_of(first), None);
        assert_eq!(inner.name_of(last).as_deref(), Some("one more"));
        assert_eq!(lock(&inner.remote_names.oldest_first).len(), limits::LINK_NAMES_MAX);
        assert_eq!(inner.remote_names.keys.pin().len(), limits::LINK_NAMES_MAX);
        // Learned anew, under a key that no event has had.
        assert!(inner.key_of("name-0") > last);
    }
}
