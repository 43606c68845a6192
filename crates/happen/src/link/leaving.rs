//! Frames that nobody waits for, on their way to their signature: those that leave together are signed together. Owns their
//! queue and their order; does not know what a seal says.
//!
//! A task signs whatever has come since it signed last, so a lone frame waits for its turn and for nothing else, and the
//! more there are, the less each of them costs. What somebody waits for is signed at once, behind all that was sent before.

use std::collections::VecDeque;
use std::sync::Arc;

use happen_core::codec::{Addressee, SealHash};
use happen_core::limits::SEAL_GROUP_MAX;
use happen_core::{ErasedEvent, Error, ErrorKind, Result};

use crate::identity::Guard;
use crate::limits;
use crate::link::Linked;
use crate::space::{SpaceInner, yield_now};
use crate::sync::{Mutex, lock};

/// What waits.
#[derive(Default)]
pub(crate) struct Leaving {
    waiting: Mutex<Waiting>,
    /// Held while frames are handed to the link, so that they get there in their order.
    handing: Mutex<()>,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Departure>,
    bytes: usize,
    /// Whether a task is there to sign them.
    carried: bool,
}

/// A frame, and what it was made of: for the link that needs to know whom it is for, and for telling what became of it.
pub(crate) struct Departure {
    pub(crate) to: To,
    pub(crate) by: Arc<str>,
    pub(crate) frame: Vec<u8>,
    pub(crate) leaf: SealHash,
    pub(crate) event: Arc<dyn ErasedEvent>,
}

/// Whom it is for.
pub(crate) enum To {
    Node {
        node: Arc<str>,
        /// The member it is meant in, of several that share it.
        member: Option<Arc<str>>,
    },
    Everyone,
}

impl To {
    pub(crate) fn addressee(&self) -> Addressee<'_> {
        match self {
            Self::Node { node, member: None } => Addressee::Node(node),
            Self::Node { node, member: Some(member) } => Addressee::Instance { node, member },
            Self::Everyone => Addressee::Everyone,
        }
    }
}

impl Linked {
    /// Hands a frame to the link that nobody waits for.
    pub(super) fn post(&self, to: &To, event: &dyn ErasedEvent, frame: Vec<u8>) -> Result<()> {
        match to {
            To::Node { node, member: None } => self.link.post(node, frame),
            To::Node { node, member: Some(member) } => self.link.post_at(member, node, frame),
            To::Everyone => self.link.publish(event.envelope().event_type.as_str(), frame),
        }
    }
}

impl SpaceInner {
    /// Has a frame leave that nobody waits for.
    ///
    /// # Errors
    ///
    /// When too many wait.
    pub(super) fn depart(self: &Arc<Self>, linked: &Linked, departure: Departure) -> Result<()> {
        let mut waiting = lock(&linked.leaving.waiting);
        let bytes = waiting.bytes + departure.frame.len();
        if waiting.frames.len() >= limits::LINK_QUEUE_MAX || bytes > limits::LINK_QUEUE_BYTES_MAX {
            return Err(Error::new(ErrorKind::Busy { what: "signing what leaves by the link".to_owned() }));
        }
        waiting.bytes = bytes;
        waiting.frames.push_back(departure);
        if std::mem::replace(&mut waiting.carried, true) {
            return Ok(());
        }
        drop(waiting);
        let space = Arc::clone(self);
        self.env.spawn(Box::pin(async move {
            while space.carry_group() {
                yield_now().await;
            }
        }));
        Ok(())
    }

    /// Hands everything that waits to the link.
    pub(super) fn carry_all(self: &Arc<Self>) {
        while self.carry_group() {}
    }

    /// Signs what has come, as much as one signature covers, and hands it to the link. False when nothing was there.
    fn carry_group(self: &Arc<Self>) -> bool {
        let (Some(linked), Some(guard)) = (self.link.get(), self.guard.get()) else { return false };
        let handing = lock(&linked.leaving.handing);
        let group = {
            let mut waiting = lock(&linked.leaving.waiting);
            let count = waiting.frames.len().min(SEAL_GROUP_MAX);
            let group: Vec<_> = waiting.frames.drain(..count).collect();
            waiting.bytes -= group.iter().map(|departure| departure.frame.len()).sum::<usize>();
            waiting.carried = !group.is_empty();
            group
        };
        if group.is_empty() {
            return false;
        }
        let mut failed = Vec::new();
        for run in group.chunk_by(|one, other| guard.signs_alike(&one.by, &other.by)) {
            self.hand_on(linked, guard, run, &mut failed);
        }
        // Handlers who hear of a failure may send, and would wait for themselves.
        drop(handing);
        for (departure, error) in failed {
            self.tell_left_behind(departure, error);
        }
        true
    }

    fn hand_on<'d>(
        &self,
        linked: &Linked,
        guard: &Guard,
        run: &'d [Departure],
        failed: &mut Vec<(&'d Departure, Error)>,
    ) {
        match guard.seal_all(run) {
            Ok(sealed) => {
                for (departure, frame) in run.iter().zip(sealed) {
                    let handed = linked.post(&departure.to, &*departure.event, frame);
                    failed.extend(handed.err().map(|error| (departure, error)));
                }
            }
            Err(error) => failed.extend(run.iter().map(|departure| (departure, error.duplicate()))),
        }
    }

    /// Tells of a frame that did not leave after its sender had gone on.
    #[cold]
    fn tell_left_behind(self: &Arc<Self>, departure: &Departure, error: Error) {
        let event = &*departure.event;
        match &departure.to {
            To::Node { node, .. } => {
                self.remember(event.envelope().id, self.key_of(node), crate::web::failed(error.code()));
                for single in (0..event.len()).filter_map(|index| event.single(index)) {
                    self.bury(single, node, &error);
                }
            }
            To::Everyone => self.not_everyone_reached(event, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::{Event, Hub, Space};
    use happen_core::codec::WireEvent;
    use happen_core::key::{KeyKind, PublicKey, Signature, Signer, Verifier};
    use happen_core::{EventId, EventType, NodeKey};

    #[derive(Debug)]
    struct Wax;

    impl Signer for Wax {
        fn public_key(&self) -> PublicKey {
            PublicKey::new(KeyKind::User, [1; 32])
        }

        fn sign(&self, _: &[u8]) -> Result<Signature> {
            Ok(Signature::from([1; 64]))
        }
    }

    impl Verifier for Wax {
        fn verifies(&self, _: &PublicKey, _: &[u8], _: &Signature) -> bool {
            true
        }
    }

    /// A space whose tasks do not get their turn.
    #[tokio::test]
    async fn what_waits_for_its_signature_has_a_limit() {
        let hub = Hub::new();
        let space = Space::memory();
        space.join(hub.link("here")).unwrap();
        space.identity(Identity::new(Wax)).unwrap();
        let inner = space.inner();
        let linked = inner.link.get().unwrap();
        let id = EventId::from_halves(1, 1).unwrap();
        let wire = WireEvent::new(id, "x", 1, &[]);
        let envelope = wire.to_envelope(EventType::new("x"), |_| NodeKey(0)).unwrap();
        let event: Arc<dyn ErasedEvent> = Arc::new(Event::from_parts(envelope, 7_u64));
        let departure = |bytes| Departure {
            to: To::Everyone,
            by: "".into(),
            frame: vec![0; bytes],
            leaf: [0; 32],
            event: Arc::clone(&event),
        };
        let full = |result: Result<()>| result.err().map(|error| error.code());
        for _ in 0..limits::LINK_QUEUE_MAX {
            assert_eq!(full(inner.depart(linked, departure(1))), None);
        }
        assert_eq!(full(inner.depart(linked, departure(1))), Some("busy"));
        inner.carry_all();
        assert_eq!(full(inner.depart(linked, departure(limits::LINK_QUEUE_BYTES_MAX - 1))), None);
        assert_eq!(full(inner.depart(linked, departure(2))), Some("busy"));
        assert_eq!(full(inner.depart(linked, departure(1))), None);
        inner.carry_all();
        assert_eq!(lock(&linked.leaving.waiting).bytes, 0);
    }
}
