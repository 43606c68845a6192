//! The nodes of a space by id, their keys and names, the tables that they begin with, and the policies that all of them are
//! under. Owns who is there; does not know what a node does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use happen_core::{Error, NodeKey};

use super::{NodeSlot, SpaceInner};
use crate::config::{Durability, NodeOptions};
use crate::identity::Policies;
use crate::limits;
use crate::link::RESERVED;
use crate::node::{Node, NodeInner};
use crate::sync::lock;
use crate::table::{Entry, Table};

impl SpaceInner {
    /// Whether a node or a router may have this name; a problem where not.
    pub(crate) fn may_be_named(self: &Arc<Self>, id: &str) -> bool {
        let may = !id.is_empty() && !id.starts_with(RESERVED);
        if !may {
            self.problem(Error::misuse(format!(
                "a node cannot have the id `{id}`: it is empty or begins with `$`"
            )));
        }
        may
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<NodeInner>> {
        self.by_name.pin().get(id)?.0.load_full()
    }

    pub(crate) fn all_nodes(&self) -> Vec<Arc<NodeInner>> {
        self.by_name.pin().values().filter_map(|slot| slot.0.load_full()).collect()
    }

    pub(crate) fn name_of(&self, key: NodeKey) -> Option<Arc<str>> {
        self.names.get(key)
    }

    /// Gives a name a key of its own, for a node that is not here.
    pub(crate) fn name_key(&self, name: &Arc<str>) -> NodeKey {
        let key = NodeKey(self.next_key.fetch_add(1, Ordering::Relaxed));
        self.names.insert(key, Arc::clone(name));
        key
    }

    pub(crate) fn unname(&self, key: NodeKey) {
        self.names.remove(key);
    }

    pub(crate) fn all_names(&self) -> std::collections::HashMap<NodeKey, Arc<str>> {
        self.names.all()
    }

    /// The node that handles what is registered on the space itself.
    pub(super) fn own_node(self: &Arc<Self>) -> Node {
        if let Some(own) = self.find(OWN_NODE) {
            return Node::from_inner(own);
        }
        let key = NodeKey(self.next_key.fetch_add(1, Ordering::Relaxed));
        let name: Arc<str> = OWN_NODE.into();
        self.names.insert(key, Arc::clone(&name));
        let table = self
            .class(NodeOptions { durability: Durability::Ephemeral, ..self.config.options_for(OWN_NODE) });
        let made = Arc::new(NodeInner::new(self, key, Arc::clone(&name), table));
        let node = match self.by_name.pin().try_insert(name, NodeSlot::new(&made)) {
            Ok(_) => None,
            Err(other) => other.current.0.load_full(),
        };
        Node::from_inner(node.unwrap_or(made))
    }

    /// The table that a node with this id begins with.
    pub(super) fn class_for(&self, id: &str) -> Arc<Table> {
        if self.config.nodes.is_empty()
            && let Some(first) = lock(&self.classes).first()
            && *first.options == self.config.node_defaults
        {
            return Arc::clone(first);
        }
        self.class(self.config.options_for(id))
    }

    /// The table that nodes with these options have in common before anything is registered.
    pub(crate) fn class(&self, options: NodeOptions) -> Arc<Table> {
        let mut classes = lock(&self.classes);
        if let Some(known) = classes.iter().find(|known| *known.options == options) {
            return Arc::clone(known);
        }
        if classes.len() >= limits::CLASSES_MAX {
            return Arc::new(self.under_policies(Table::new(options)));
        }
        let class = Arc::new(self.under_policies(Table::common(options)));
        classes.push(Arc::clone(&class));
        class
    }

    /// Changes the policies: of the nodes there are, and of those to come.
    pub(crate) fn set_policy(&self, change: impl FnOnce(&mut Policies)) {
        // Whoever makes a table holds the classes, so none is made meanwhile under the policies of before.
        let mut classes = lock(&self.classes);
        let mut known = lock(&self.policies);
        let mut policies = known.as_deref().cloned().unwrap_or_default();
        change(&mut policies);
        *known = Some(Arc::new(policies));
        drop(known);
        classes.clear();
        drop(classes);
        self.guard_nodes();
    }

    /// Has every node keep to the policies there are, also one that was just being made when they were set.
    pub(super) fn guard_nodes(&self) {
        let Some(policies) = self.policies() else { return };
        for node in self.all_nodes() {
            if !node.table.load().is_under(&policies) {
                node.change(|table| table.set_policies(&policies));
            }
        }
    }

    /// The policies, if there are any.
    pub(crate) fn policies(&self) -> Option<Arc<Policies>> {
        lock(&self.policies).clone()
    }

    fn under_policies(&self, mut table: Table) -> Table {
        if let Some(policies) = self.policies() {
            table.set_policies(&policies);
        }
        table
    }

    pub(crate) fn next_registration(&self) -> u64 {
        self.next_registration.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn index(&self, node: &Arc<NodeInner>, entry: &Entry) {
        self.index.insert(node, entry.id, &entry.pattern);
    }

    pub(crate) fn unindex(&self, node: &Arc<NodeInner>, id: u64) {
        let table = node.table.load();
        if let Some(entry) = table.entry(id) {
            self.index.remove(node, id, &entry.pattern);
        }
    }

    pub(crate) fn forget_entry(&self, node: &NodeInner, entry: &Entry) {
        self.index.remove(node, entry.id, &entry.pattern);
    }

    pub(crate) fn remove(&self, node: &Arc<NodeInner>) {
        let table = node.table.load();
        for entry in &table.entries {
            self.index.remove(node, entry.id, &entry.pattern);
        }
        let is_it = |slot: &NodeSlot| slot.0.load().as_ref().is_some_and(|known| Arc::ptr_eq(known, node));
        let names = self.by_name.pin();
        if let Some(slot) = names.get(&*node.name).filter(|slot| is_it(slot)) {
            slot.0.store(None);
            names.remove(&*node.name);
            self.keep_former_name(node.key);
        }
        self.presence_changed();
    }

    /// Keeps the name of a node that ended for traces, for a while: nodes may come and go for as long as the space lives.
    fn keep_former_name(&self, key: NodeKey) {
        let mut former = lock(&self.former);
        former.push_back(key);
        if former.len() > limits::FORMER_NAMES_MAX
            && let Some(oldest) = former.pop_front()
        {
            self.unname(oldest);
        }
    }
}

/// The id of the node that handles what is registered on the space itself.
pub(super) const OWN_NODE: &str = "$space";
