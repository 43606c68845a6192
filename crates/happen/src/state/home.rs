//! Where the documents of one node live, and what they are called in the store. Owns the shelves, one for each type of
//! state, and the keys; does not know who may change what.

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use happen_core::State;
use happen_core::store::Key;

use super::cell::{Cell, Live};

/// The documents of all nodes that had, have or will have one id: they belong to the id, so a node that is destroyed
/// and made again finds them.
pub(crate) struct Home {
    first: OnceLock<Box<Slot>>,
}

/// A shelf in a list that only grows, at most by one for each type of state in the program: found without a lock.
struct Slot {
    type_id: TypeId,
    name: &'static str,
    kind: Kind,
    shelf: Box<dyn Shelf>,
    next: OnceLock<Box<Self>>,
}

/// Whether a document is the state of a node or one of its entities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    State,
    Entity,
}

/// What a live document is called.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Name<'k> {
    pub(crate) kind: Kind,
    pub(crate) node: Cow<'k, str>,
    pub(crate) state: Cow<'k, str>,
    /// The key of an entity; empty for a state.
    pub(crate) key: Cow<'k, str>,
}

/// The documents of one type.
pub(crate) trait Shelf: Any + Send + Sync {
    /// The document with this key, when there is one.
    fn find(&self, key: &str) -> Option<Arc<dyn Live>>;

    /// Shows every document with its key.
    fn each(&self, show: &mut dyn FnMut(&str, Arc<dyn Live>));
}

/// The one document that is the state of a node.
pub(super) struct Single<S>(pub(super) Arc<Cell<S>>);

/// Documents by key.
pub(super) struct Entities<S>(papaya::HashMap<Arc<str>, Arc<Cell<S>>>);

/// Another type has the same name.
pub(super) struct Clash;

impl Home {
    pub(crate) fn new() -> Self {
        Self { first: OnceLock::new() }
    }

    /// The shelf of this type, put up when there is none.
    #[inline]
    pub(super) fn shelf<S: State, T: Shelf>(&self, kind: Kind, make: fn() -> T) -> Result<&T, Clash> {
        let wanted = TypeId::of::<T>();
        let mut at = self.first.get();
        while let Some(slot) = at {
            if slot.type_id == wanted {
                return (&*slot.shelf as &dyn Any).downcast_ref().ok_or(Clash);
            }
            at = slot.next.get();
        }
        self.put_up::<S, T>(kind, make)
    }

    #[cold]
    fn put_up<S: State, T: Shelf>(&self, kind: Kind, make: fn() -> T) -> Result<&T, Clash> {
        let wanted = TypeId::of::<T>();
        let mut end = &self.first;
        loop {
            // Whoever comes first fills the end of the list; the others find what it put there.
            let slot = end.get_or_init(|| {
                let shelf = Box::new(make());
                Box::new(Slot { type_id: wanted, name: S::NAME, kind, shelf, next: OnceLock::new() })
            });
            if slot.type_id == wanted {
                return (&*slot.shelf as &dyn Any).downcast_ref().ok_or(Clash);
            }
            if slot.kind == kind && slot.name == S::NAME {
                return Err(Clash);
            }
            end = &slot.next;
        }
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        std::iter::successors(self.first.get(), |slot| slot.next.get()).map(|slot| &**slot)
    }

    /// The document of this name.
    pub(crate) fn find(&self, name: &Name<'_>) -> Option<Arc<dyn Live>> {
        let mut slots = self.slots();
        let slot = slots.find(|slot| slot.kind == name.kind && slot.name == name.state)?;
        slot.shelf.find(&name.key)
    }

    /// Shows every document with its name.
    pub(crate) fn each(&self, node: &str, show: &mut dyn FnMut(&Name<'_>, Arc<dyn Live>)) {
        for slot in self.slots() {
            slot.shelf.each(&mut |key, live| {
                let name =
                    Name { kind: slot.kind, node: node.into(), state: slot.name.into(), key: key.into() };
                show(&name, live);
            });
        }
    }
}

impl<S: State> Single<S> {
    pub(super) fn new() -> Self {
        Self(Arc::new(Cell::new()))
    }
}

impl<S: State> Entities<S> {
    pub(super) fn new() -> Self {
        Self(papaya::HashMap::new())
    }

    #[inline]
    pub(super) fn get(&self, key: &str) -> Option<Arc<Cell<S>>> {
        self.0.pin().get(key).cloned()
    }

    pub(super) fn get_or_make(&self, key: &str) -> Arc<Cell<S>> {
        match self.get(key) {
            Some(cell) => cell,
            None => Arc::clone(self.0.pin().get_or_insert_with(key.into(), || Arc::new(Cell::new()))),
        }
    }

    /// Takes a cell off that was never written. The caller holds its right to write, so nobody writes to it any more.
    pub(super) fn take_off(&self, key: &str) {
        self.0.pin().remove(key);
    }
}

impl<S: State> Shelf for Single<S> {
    fn find(&self, key: &str) -> Option<Arc<dyn Live>> {
        key.is_empty().then(|| Arc::clone(&self.0) as Arc<dyn Live>)
    }

    fn each(&self, show: &mut dyn FnMut(&str, Arc<dyn Live>)) {
        show("", Arc::clone(&self.0) as Arc<dyn Live>);
    }
}

impl<S: State> Shelf for Entities<S> {
    fn find(&self, key: &str) -> Option<Arc<dyn Live>> {
        self.get(key).map(|cell| cell as Arc<dyn Live>)
    }

    fn each(&self, show: &mut dyn FnMut(&str, Arc<dyn Live>)) {
        for (key, cell) in &self.0.pin() {
            show(key, Arc::clone(cell) as Arc<dyn Live>);
        }
    }
}

impl Name<'_> {
    /// The key of the document: `state/<node>/<state>`, or `entity/<node>/<state>/<key>`. In each part `/` is written
    /// `%2F` and `%` is written `%25`, so that ids and keys of any text stay apart and prefixes select whole nodes.
    pub(crate) fn to_key(&self) -> Key {
        let (node, state) = (escaped(&self.node), escaped(&self.state));
        match self.kind {
            Kind::State => format!("{STATE}{node}/{state}").into(),
            Kind::Entity => format!("{ENTITY}{node}/{state}/{}", escaped(&self.key)).into(),
        }
    }

    /// The name that a key stands for; `None` when it is not the key of a node's document.
    pub(crate) fn of(key: &str) -> Option<Name<'_>> {
        let (kind, rest) = match (key.strip_prefix(STATE), key.strip_prefix(ENTITY)) {
            (Some(rest), _) => (Kind::State, rest),
            (_, Some(rest)) => (Kind::Entity, rest),
            (None, None) => return None,
        };
        let mut parts = rest.split('/').map(plain);
        let (node, state) = (parts.next()?, parts.next()?);
        let key = if kind == Kind::Entity { parts.next()? } else { Cow::Borrowed("") };
        parts.next().is_none().then_some(Name { kind, node, state, key })
    }

    /// Whether a key is in the part that belongs to nodes.
    pub(crate) fn owns(key: &str) -> bool {
        key.starts_with(STATE) || key.starts_with(ENTITY)
    }
}

/// A part of a key, with `/` and `%` written so that parts stay apart.
pub(crate) fn escaped(part: &str) -> Cow<'_, str> {
    if part.contains(['/', '%']) { part.replace('%', "%25").replace('/', "%2F").into() } else { part.into() }
}

fn plain(part: &str) -> Cow<'_, str> {
    if part.contains('%') { part.replace("%2F", "/").replace("%25", "%").into() } else { part.into() }
}

const STATE: &str = "state/";
const ENTITY: &str = "entity/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_text_come_back_from_their_keys() {
        for text in ["a", "a/b", "%2F", "%252F/", "/", "%", "tenant:acme/ä"] {
            for kind in [Kind::State, Kind::Entity] {
                let key = if kind == Kind::Entity { text } else { "" };
                let name = Name { kind, node: text.into(), state: text.into(), key: key.into() };
                assert_eq!(Name::of(&name.to_key()), Some(name), "{text}");
            }
        }
        for other in ["", "state/", "state/a", "state/a/b/c", "entity/a/b", "entity/a/b/c/d", "global/x"] {
            assert_eq!(Name::of(other), None, "{other}");
        }
    }
}
