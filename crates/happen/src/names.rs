//! The names of nodes by their keys. Owns the pages they are on; does not know which of the nodes are there.
//!
//! Keys are given one after the other, so a page of neighbours costs little more than its names; a map of single ones took
//! three times as much for each node, and an allocation.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use happen_core::NodeKey;

/// The names of all nodes that a space knows.
#[derive(Default)]
pub(crate) struct Names(RwLock<BTreeMap<u32, Page>>);

struct Page {
    names: Box<[Option<Arc<str>>]>,
    len: usize,
}

impl Names {
    pub(crate) fn insert(&self, key: NodeKey, name: Arc<str>) {
        let mut pages = self.write();
        let page = pages.entry(key.0 / PAGE_LEN).or_insert_with(Page::new);
        page.len += usize::from(page.names[Page::at(key)].replace(name).is_none());
    }

    pub(crate) fn get(&self, key: NodeKey) -> Option<Arc<str>> {
        self.read().get(&(key.0 / PAGE_LEN))?.names[Page::at(key)].clone()
    }

    /// Forgets a name, and its page with the last one on it.
    pub(crate) fn remove(&self, key: NodeKey) {
        let mut pages = self.write();
        let number = key.0 / PAGE_LEN;
        let Some(page) = pages.get_mut(&number) else { return };
        page.len -= usize::from(page.names[Page::at(key)].take().is_some());
        if page.len == 0 {
            pages.remove(&number);
        }
    }

    pub(crate) fn all(&self) -> HashMap<NodeKey, Arc<str>> {
        let pages = self.read();
        let all = pages.iter().flat_map(|(number, page)| {
            let names = page.names.iter().enumerate();
            names.filter_map(move |(at, name)| Some((NodeKey(number * PAGE_LEN + at as u32), name.clone()?)))
        });
        all.collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u32, Page>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<u32, Page>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Page {
    fn new() -> Self {
        Self { names: vec![None; PAGE_LEN as usize].into(), len: 0 }
    }

    const fn at(key: NodeKey) -> usize {
        (key.0 % PAGE_LEN) as usize
    }
}

/// Names on a page. Nodes that come and go leave holes, which are freed when the whole page has ended.
const PAGE_LEN: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_their_pages_end_with_them() {
        let names = Names::default();
        for key in 0..3 * PAGE_LEN {
            names.insert(NodeKey(key), format!("node-{key}").into());
        }
        assert_eq!(names.get(NodeKey(PAGE_LEN)).as_deref(), Some(&*format!("node-{PAGE_LEN}")));
        assert_eq!(names.all().len(), 3 * PAGE_LEN as usize);
        (0..2 * PAGE_LEN).for_each(|key| names.remove(NodeKey(key)));
        names.remove(NodeKey(0));
        assert_eq!(names.get(NodeKey(1)), None);
        assert_eq!(names.read().len(), 1);
        assert_eq!(names.all().len(), PAGE_LEN as usize);
    }
}
