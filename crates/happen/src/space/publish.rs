//! Events that several nodes of a space get, and those that leave behind a commit. Owns which nodes of each kind take one,
//! and in which order; how one is delivered is in `dispatch/`.

use std::sync::Arc;

use happen_core::{ErasedEvent, EventType, NodeKey};

use super::SpaceInner;
use crate::dispatch::{self, Want};
use crate::durable::{self, Spread, Whereto};
use crate::node::NodeInner;
use crate::route::Takers;
use crate::send::Sender;

impl SpaceInner {
    /// Brings an event to everyone here who listens.
    #[inline]
    pub(crate) fn publish_to_listeners(
        self: &Arc<Self>,
        event: &dyn ErasedEvent,
        source: Option<&tokio::sync::broadcast::Sender<happen_core::Value>>,
        spread: Spread,
        takers: &Takers,
    ) {
        let envelope = event.envelope();
        let listeners = self.index.listeners(&envelope.event_type);
        let mut aside = Vec::new();
        if dispatch::publish(&listeners, event, envelope.id, source, &mut aside) {
            self.index.refresh(&envelope.event_type);
        }
        if !aside.is_empty() {
            self.publish_to_shared(event, source, &mut aside, takers);
        }
        if self.durable.is_some() {
            durable::publish(self, event, &aside, spread);
        }
    }

    /// Brings an event to those nodes that share their work and take it, and leaves the durable ones.
    #[cold]
    fn publish_to_shared(
        self: &Arc<Self>,
        event: &dyn ErasedEvent,
        source: Option<&tokio::sync::broadcast::Sender<happen_core::Value>>,
        aside: &mut Vec<Arc<NodeInner>>,
        takers: &Takers,
    ) {
        for node in aside.extract_if(.., |node| !node.is_durable()).filter(|node| takers.has(node)) {
            dispatch::bring_to(&node, &mut self.way(), event, event.envelope().id, source);
        }
    }

    /// Brings an event to everyone here who listens and does not remember: the others have it by the log.
    #[cold]
    pub(crate) fn publish_to_forgetful(self: &Arc<Self>, event: &dyn ErasedEvent, takers: &Takers) {
        let envelope = event.envelope();
        let listeners = self.index.listeners(&envelope.event_type);
        let mut aside = Vec::new();
        if dispatch::publish(&listeners, event, envelope.id, None, &mut aside) {
            self.index.refresh(&envelope.event_type);
        }
        self.publish_to_shared(event, None, &mut aside, takers);
    }

    /// Brings an event whose commit has happened to those who are not part of the commit: ephemeral nodes, and whoever is
    /// beyond the link.
    #[cold]
    pub(crate) fn leave(self: &Arc<Self>, event: &Arc<dyn ErasedEvent>, to: &Whereto) {
        let envelope = event.envelope();
        match to {
            Whereto::Node(node) if node.is_durable() => {}
            Whereto::Node(node) => {
                let mut outcome = Ok(None);
                let mark = self.remember_sent(envelope, node.key);
                let delivered =
                    dispatch::deliver(node, &mut self.way(), &**event, Want::default(), &mut outcome);
                match delivered {
                    Ok(dispatch::Delivered::Now) => self.settle(mark, dispatch::what(&outcome)),
                    Ok(dispatch::Delivered::Later(_)) => self.settle(mark, crate::web::WAITING),
                    Err(error) => self.undelivered(&**event, &node.name, error, dispatch::Reply::Nobody),
                }
            }
            Whereto::Kept(name) => {
                self.remember_sent(envelope, self.key_of(name));
            }
            // It waits in the log, and a courier is on its way.
            Whereto::Waits(name) => {
                let mark = self.remember_sent(envelope, self.key_of(name));
                self.settle(mark, crate::web::WAITING);
            }
            Whereto::Away(name) => {
                let want = (Want::default(), false, None);
                if let Err(error) = self.send_on(Sender::Space(self), name, &**event, want, &mut Ok(None)) {
                    self.bury(&**event, name, &error);
                }
            }
            Whereto::Everyone => {
                let mark = self.remember_sent(envelope, NodeKey(0));
                self.settle(mark, crate::web::PUBLISHED);
                let takers = self.publish_away(Sender::Space(self), &**event, self.shares_its_log());
                // Those that are durable have it by the commit.
                self.publish_to_forgetful(&**event, &takers);
            }
        }
    }

    /// The durable nodes that listen to a type.
    pub(crate) fn durable_listeners(&self, event_type: &EventType) -> Vec<Arc<NodeInner>> {
        let listeners = self.index.listeners(event_type);
        let nodes = listeners.iter().map(dispatch::Listener::node);
        nodes.filter(|node| node.is_durable()).cloned().collect()
    }
}
