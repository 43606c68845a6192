//! Telling what went on: problems, the runtime's own events, failures, dead letters, pressure.

use std::sync::Arc;

use happen_core::{Envelope, ErasedEvent, Error, Event, EventType, NodeKey};

use super::registry::OWN_NODE;
use super::{PROBLEMS_MAX, SpaceInner};
use crate::context::Context;
use crate::dispatch::Reply;
use crate::durable::Spread;
use crate::failure::{DeadLetter, Failure};
use crate::flow::FlowInner;
use crate::limits;
use crate::node::NodeInner;
use crate::send::{Broadcasting, Sender};
use crate::stamp::stamp_failure;
use crate::sync::lock;
use crate::web;

impl SpaceInner {
    pub(crate) fn problem(self: &Arc<Self>, error: Error) {
        let running = self.is_running();
        let told = running.then(|| serde_json::json!({ "code": error.code(), "problem": error.to_string() }));
        let mut problems = lock(&self.problems);
        if problems.len() < PROBLEMS_MAX {
            problems.push(error);
        }
        drop(problems);
        if let Some(told) = told {
            self.announce("system.problem", told);
        }
    }

    pub(crate) fn first_problem_of(&self, node: &str) -> Error {
        let problems = lock(&self.problems);
        let own = problems.iter().rev().find(|error| error.node_id() == Some(node));
        own.map_or_else(|| Error::misuse("nothing was registered"), Error::duplicate)
    }

    /// Broadcasts one of the runtime's own events.
    pub(crate) fn announce(self: &Arc<Self>, event_type: &str, content: serde_json::Value) {
        if !self.is_running() {
            return;
        }
        let event = Event::new(event_type, content);
        if let Err(error) = Broadcasting::new(Sender::Space(self), event).publish_here() {
            tracing::warn!(target: "happen", code = error.code(), "{event_type} could not be announced: {error}");
        }
    }

    /// Broadcasts one of the runtime's own events from a node, as an effect of the event with this context.
    pub(crate) fn announce_from(
        self: &Arc<Self>,
        node: &Arc<NodeInner>,
        cause: Option<&Envelope>,
        event_type: &str,
        content: serde_json::Value,
    ) {
        if let Some(cause) = cause {
            let event = Event::new(event_type, content.clone());
            let flow = Context::owned(consequence(node, cause));
            if Broadcasting::new(Sender::Flow(&flow), event).publish().is_ok() {
                return;
            }
        }
        // A correlation that ran away takes no more events, and this one must be heard.
        self.announce(event_type, content);
    }

    /// Tells of an event that a policy kept from a node, as an effect of that event: what answers a refusal with an event
    /// that is refused comes to the limits of a correlation, and then nothing more is told.
    #[cold]
    pub(crate) fn tell_refused(self: &Arc<Self>, node: &NodeInner, envelope: &Envelope, error: &Error) {
        let Some(node) = self.find(&node.name).filter(|_| self.is_running()) else { return };
        let sender = self.name_of(envelope.sender);
        let told = serde_json::json!({
            "code": error.code(),
            "reason": error.chain().join(": "),
            "event": envelope.id.to_string(),
            "event_type": envelope.event_type.as_str(),
            "node": &*node.name,
            "sender": sender.as_deref(),
        });
        let flow = Context::owned(consequence(&node, envelope));
        if let Err(objection) =
            Broadcasting::new(Sender::Flow(&flow), Event::new("system.refused", told)).publish_here()
        {
            self.warn(&node, envelope, &objection);
        }
    }

    #[cold]
    pub(crate) fn warn(&self, node: &NodeInner, envelope: &Envelope, error: &Error) {
        tracing::warn!(
            target: "happen",
            node = &*node.name,
            event = %envelope.id,
            event_type = envelope.event_type.as_str(),
            code = error.code(),
            "{error}"
        );
    }

    /// Tells of a failed flow: as the event `<type>.error`, caused by the event that failed; a failure while handling
    /// an error event becomes a dead letter instead, so that errors of errors end.
    #[cold]
    pub(crate) fn flow_failed(
        self: &Arc<Self>,
        node: &Arc<NodeInner>,
        handler: &str,
        event: &dyn ErasedEvent,
        error: &Error,
    ) {
        let envelope = event.envelope();
        self.warn(node, envelope, error);
        if envelope.event_type.as_str().ends_with(".error") {
            self.bury(event, &node.name, error);
            return;
        }
        let failure = Failure::new(&node.name, handler, event, error);
        let error_type = EventType::new(&format!("{}.error", envelope.event_type));
        let mut cause = consequence(node, envelope);
        let others = (1..event.len()).filter_map(|index| event.single(index));
        cause.more_causes.extend(others.map(|event| event.envelope().id));
        let cause = Context::owned(cause);
        let result = stamp_failure(&cause, error_type, &failure).map(|envelope| {
            let mark = self.remember_sent(&envelope, NodeKey(0));
            self.settle(mark, web::PUBLISHED);
            let event = Event::from_parts(envelope, failure);
            let takers = self.publish_away(Sender::Flow(&cause), &event, false);
            self.publish_to_listeners(&event, None, Spread::Here, &takers);
        });
        if let Err(objection) = result {
            self.warn(node, envelope, &objection);
            self.bury(event, &node.name, error);
        }
    }

    /// Tells of an event that its node did not take after its sender had gone on.
    #[cold]
    pub(crate) fn undelivered(&self, event: &dyn ErasedEvent, node: &str, error: Error, reply: Reply) {
        let envelope = event.envelope();
        let error = error.at_event(envelope.id).at_node(node);
        if let Some(found) = self.find(node) {
            self.remember(envelope.id, found.key, web::failed(error.code()));
        }
        match reply {
            Reply::Nobody => self.bury(event, node, &error),
            reply => reply.refuse(error),
        }
    }

    /// Keeps an event that nobody is told of as a dead letter.
    #[cold]
    pub(crate) fn bury(&self, event: &dyn ErasedEvent, node: &str, error: &Error) {
        let letter = DeadLetter {
            event: event.to_shared(),
            node: node.to_owned(),
            code: error.code(),
            causes: error.chain(),
            at_unix_ms: self.now_unix_ms(),
        };
        self.dead.push(letter, self.config.dead_letters_max);
    }

    /// Signals back-pressure when a queue passes four fifths of its limit, once until it is below half again.
    #[cold]
    pub(crate) fn note_pressure(self: &Arc<Self>, node: &Arc<NodeInner>, waiting: usize, limit: usize) {
        let pressed = waiting * 100 >= limit * limits::BACK_PRESSURE_PERCENT;
        let relaxed = waiting * 2 < limit;
        if !pressed && !relaxed {
            return;
        }
        let mut nodes = lock(&self.pressed);
        let changed = if pressed { nodes.insert(node.key.0) } else { nodes.remove(&node.key.0) };
        drop(nodes);
        // Who watches the balance tells of it with figures, and not of a queue that is empty again in a moment.
        if changed && pressed && self.balance.is_none() && &*node.name != OWN_NODE {
            let told =
                serde_json::json!({ "node_id": &*node.name, "waiting": waiting, "queue_limit": limit });
            self.announce("node.slow", told);
        }
    }
}

/// A flow to send the runtime's own events from, as effects of an event. They have no deadline: whoever observes the
/// space wants to hear of a failure also when nobody waits for the reply any more.
fn consequence(node: &Arc<NodeInner>, cause: &Envelope) -> FlowInner {
    let mut cause = cause.clone();
    cause.deadline_unix_ms = 0;
    FlowInner::new(Arc::clone(node), cause)
}
