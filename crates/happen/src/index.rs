//! Which nodes listen to a type, over all nodes of a space: an index of patterns, and a cache of what it answered. A
//! broadcast costs its matches, not the number of nodes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use happen_core::pattern::{FirstSegment, is_runtime};
use happen_core::{EventType, Pattern};

use crate::dispatch::Listener;
use crate::node::NodeInner;
use crate::sync::{Mutex, isolated, lock};

/// The nodes that listen to one type, in the order they were made.
pub(crate) type Listeners = Arc<Vec<Listener>>;

/// The index of one space.
pub(crate) struct Index {
    patterns: Mutex<Patterns>,
    cache: papaya::HashMap<EventType, Answer>,
    types_max: usize,
}

/// What was answered for a type, until a registration changes it.
///
/// Emptied before it is taken out of the map: the map frees what was taken out at some later time, and the nodes in it
/// would keep the space alive, whose part the map is.
struct Answer(ArcSwapOption<Vec<Listener>>);

/// Registrations by what their pattern begins with: the whole type, its first segment, or anything.
#[derive(Default)]
struct Patterns {
    /// For a whole type all registrations of a node are alike.
    literal: HashMap<Box<str>, Counted>,
    first: HashMap<String, BTreeMap<RegistrationKey, (Pattern, Arc<NodeInner>)>>,
    any: BTreeMap<RegistrationKey, (Pattern, Arc<NodeInner>)>,
}

/// Nodes by their keys, each with the number of its registrations.
type Counted = HashMap<u32, (u32, Arc<NodeInner>)>;

/// A registration by its node and its own number.
type RegistrationKey = (u32, u64);

impl Index {
    pub(crate) fn new(types_max: usize) -> Self {
        Self { patterns: Mutex::default(), cache: papaya::HashMap::new(), types_max }
    }

    pub(crate) fn insert(&self, node: &Arc<NodeInner>, id: u64, pattern: &Pattern) {
        let key = (node.key.0, id);
        let mut patterns = lock(&self.patterns);
        let entry = || (pattern.clone(), Arc::clone(node));
        match (pattern.is_literal(), pattern.first_segment()) {
            (Some(text), _) => {
                // Looked for first: of the very many that have the same handler only one needs a copy of the text.
                if !patterns.literal.contains_key(text) {
                    patterns.literal.insert(text.into(), HashMap::new());
                }
                if let Some(all) = patterns.literal.get_mut(text) {
                    all.entry(node.key.0).or_insert_with(|| (0, Arc::clone(node))).0 += 1;
                }
            }
            (None, FirstSegment::Literal(first)) => {
                patterns.first.entry(first.to_owned()).or_default().insert(key, entry());
            }
            (None, FirstSegment::OneOf(all)) => {
                for first in all {
                    patterns.first.entry(first.to_owned()).or_default().insert(key, entry());
                }
            }
            (None, _) => {
                patterns.any.insert(key, entry());
            }
        }
        self.forget(pattern);
    }

    pub(crate) fn remove(&self, node: &NodeInner, id: u64, pattern: &Pattern) {
        let key = (node.key.0, id);
        let mut patterns = lock(&self.patterns);
        if let Some(text) = pattern.is_literal()
            && let Some(all) = patterns.literal.get_mut(text)
        {
            if let Entry::Occupied(mut of_node) = all.entry(node.key.0) {
                of_node.get_mut().0 -= 1;
                if of_node.get().0 == 0 {
                    of_node.remove();
                }
            }
            if all.is_empty() {
                patterns.literal.remove(text);
            }
        } else {
            patterns.any.remove(&key);
            for first in firsts(pattern) {
                if let Some(all) = patterns.first.get_mut(&first) {
                    all.remove(&key);
                    if all.is_empty() {
                        patterns.first.remove(&first);
                    }
                }
            }
        }
        self.forget(pattern);
    }

    /// Forgets what was answered for the types a changed pattern concerns. Called with the patterns locked, so that an
    /// answer from before the change cannot be put back after it.
    fn forget(&self, pattern: &Pattern) {
        let cache = self.cache.pin();
        if let Some(text) = pattern.is_literal() {
            if let Some(answer) = cache.remove(text) {
                answer.0.store(None);
            }
            return;
        }
        let concerns =
            |event_type: &EventType| isolated("a pattern", || pattern.matches(event_type.as_str()));
        cache.retain(|event_type, answer| {
            let stale = concerns(event_type).unwrap_or(true);
            if stale {
                answer.0.store(None);
            }
            !stale
        });
    }

    /// The nodes that listen to a type.
    #[inline]
    pub(crate) fn listeners(&self, event_type: &EventType) -> Listeners {
        let known = self.cache.pin().get(event_type).and_then(|answer| answer.0.load_full());
        known.unwrap_or_else(|| self.find(event_type))
    }

    #[cold]
    fn find(&self, event_type: &EventType) -> Listeners {
        let text = event_type.as_str();
        let runtime = is_runtime(text);
        let patterns = lock(&self.patterns);
        let mut nodes = BTreeMap::new();
        for (node_key, (_, node)) in patterns.literal.get(text).into_iter().flatten() {
            nodes.insert(*node_key, Arc::clone(node));
        }
        let first = text.split('.').next().unwrap_or(text);
        let by_first = patterns.first.get(first).into_iter().flatten();
        for ((node_key, _), (pattern, node)) in by_first.chain(&patterns.any) {
            let matches = || if runtime { pattern.matches_runtime(text) } else { pattern.matches(text) };
            if isolated("a pattern", matches).unwrap_or(false) {
                nodes.insert(*node_key, Arc::clone(node));
            }
        }
        let listeners = nodes.into_values().map(|node| Listener::new(node, event_type));
        let listeners: Listeners = Arc::new(listeners.collect());
        let cache = self.cache.pin();
        if cache.len() < self.types_max {
            let answer = Answer(ArcSwapOption::from(Some(Arc::clone(&listeners))));
            if let Some(older) = cache.insert(event_type.clone(), answer) {
                older.0.store(None);
            }
        }
        drop(patterns);
        listeners
    }

    /// Forgets what was answered for a type, because a node has changed since.
    #[cold]
    pub(crate) fn refresh(&self, event_type: &EventType) {
        let _patterns = lock(&self.patterns);
        if let Some(answer) = self.cache.pin().remove(event_type.as_str()) {
            answer.0.store(None);
        }
    }

    pub(crate) fn clear(&self) {
        let mut patterns = lock(&self.patterns);
        let all = std::mem::take(&mut *patterns);
        let cache = self.cache.pin_owned();
        cache.values().for_each(|answer| answer.0.store(None));
        drop(patterns);
        drop(all);
    }
}

fn firsts(pattern: &Pattern) -> Vec<String> {
    match pattern.first_segment() {
        FirstSegment::Literal(first) => vec![first.to_owned()],
        FirstSegment::OneOf(all) => all.into_iter().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}
