//! Who is there of the processes of a space on NATS. Owns how that is found out, and what is sent to them; changes nothing
//! in the log.

use std::sync::Arc;
use std::time::Duration;

use happen::balance::ProcessBalance;
use happen::control::{self, Answer, Became, NodeOwner, Request, SendEvent, SentByHand, Wait};
use happen::store::Store;
use happen::{Dynamic, Error, EventType, Space};
use happen_core::{Answer as Answering, Value};
use happen_nats::{Address, NatsLink};
use serde_json::Value as Json;

use crate::failure::Failure;
use crate::store::opened::Opened;
use crate::store::{env, of_store};

/// A place among the processes of a space, with no node of its own.
#[derive(Debug)]
pub(crate) struct Presence {
    space: Space,
}

impl Presence {
    /// Joins them, and waits until enough is heard of them, but no longer than a moment. `None` in a folder, where the
    /// one process that there may be is reached by its socket.
    ///
    /// # Errors
    ///
    /// [`Failure::Store`] when the server does not let this program join.
    pub(crate) async fn join(
        store: &Opened,
        is_enough: impl Fn(&Self) -> bool,
    ) -> Result<Option<Self>, Failure> {
        let (Some((_, connection)), Address::Nats { space: name, .. }) = (store.nats(), store.address())
        else {
            return Ok(None);
        };
        let failed = |error| of_store(store.address(), &error);
        let (env, space) = (env(), Space::memory());
        let member = format!("happen-{}-{:08x}", std::process::id(), env.random_u64() as u32);
        let link = NatsLink::new(connection, Arc::clone(&env), store.reach().link(name, member)?);
        space.join(link.map_err(failed)?).map_err(failed)?;
        if let Some(identity) = store.reach().identity()? {
            space.identity(identity).map_err(failed)?;
        }
        space.start().await.map_err(failed)?;
        let presence = Self { space };
        let mut waited = 0;
        while waited < LOOK_MS && !is_enough(&presence) {
            env.sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
            waited += LOOK_AGAIN_MS;
        }
        Ok(Some(presence))
    }

    /// Whether all processes are heard of that have not said that they go.
    pub(crate) fn has_all(&self, owners: &[NodeOwner]) -> bool {
        owners.iter().filter(|owner| !owner.has_gone).all(|owner| self.of(owners, owner).is_some())
    }

    /// By what name the process is heard of that has a node.
    pub(crate) fn of_node(&self, node: &str) -> Option<String> {
        self.space.remote_nodes().into_iter().find(|found| found.id == node).map(|found| found.member)
    }

    /// By what name the process of an owner is heard of, by any of its nodes.
    pub(crate) fn of(&self, owners: &[NodeOwner], owner: &NodeOwner) -> Option<String> {
        if owner.has_gone {
            return None;
        }
        let its = owners.iter().filter(|other| other.process == owner.process);
        its.map(|other| other.node.as_str()).find_map(|node| self.of_node(node))
    }

    /// All nodes that are heard of, with their processes and what they listen to.
    pub(crate) fn nodes(&self) -> Vec<happen::RemoteNode> {
        self.space.remote_nodes()
    }

    /// Sends an event to a node that is heard of.
    ///
    /// # Errors
    ///
    /// What the node says, and when no answer comes in time.
    pub(crate) async fn send(&self, send: SendEvent) -> Result<Answer, Error> {
        let payload = Dynamic::from_json(EventType::new(&send.event_type), send.payload);
        let mut sending = self.space.send(&*send.node, payload);
        if let Some(correlation) = send.correlation {
            sending = sending.correlation(correlation);
        }
        sending = sending.within(Duration::from_millis(happen::limits::CONTROL_REPLY_MS));
        let (event, became) = match send.wait {
            Wait::Taken => (sending.await?.event_id(), Became::Taken),
            Wait::Reply => {
                let reply = sending.reply::<Anything>().await?;
                let event = reply.event_id();
                let Anything(event_type, payload) = reply.into_inner();
                (event, Became::Replied { event_type, payload })
            }
            _ => return Err(Error::misuse("this is nothing that can be waited for; please report this")),
        };
        Ok(Answer::Sent(SentByHand::new(event, became)))
    }

    /// Has each process do its part of a request on the log.
    ///
    /// # Errors
    ///
    /// As [`control::carry_out_among`].
    pub(crate) async fn carry_out(&self, log: &Arc<dyn Store>, request: Request) -> Result<Answer, Error> {
        control::carry_out_among(&self.space, log, request).await
    }

    /// What each process tells of how its nodes keep up.
    pub(crate) async fn balance(&self) -> Vec<ProcessBalance> {
        self.space.balance_reports().await
    }

    /// Leaves.
    ///
    /// # Errors
    ///
    /// As [`Space::stop`].
    pub(crate) async fn leave(self) -> Result<(), Error> {
        self.space.stop().await
    }
}

/// An answer of any type, or none, as JSON.
struct Anything(Option<String>, Json);

impl Answering for Anything {
    fn from_reply(value: Option<Value>) -> happen::Result<Self> {
        let Some(value) = value else { return Ok(Self(None, Json::Null)) };
        let event_type = value.event_type().as_str().to_owned();
        Ok(Self(Some(event_type), value.as_payload().to_json()?))
    }
}

/// How long it is waited to hear of a process: as long as one does that has just come.
const LOOK_MS: u64 = happen::limits::OWNER_LOOK_MS;
/// How often it is looked meanwhile.
const LOOK_AGAIN_MS: u64 = 10;
