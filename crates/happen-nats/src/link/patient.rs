//! A link that joins as soon as it can: for a space that works on its own meanwhile. Owns the attempts; everything else is
//! the link inside, once it is there.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use happen_core::env::{BoxFuture, Env};
use happen_core::link::{ConnectionStatus, Inbound, Link, Notice, Peer, Replies};
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::watch;

use super::wire::{closed, lock};
use super::{Connection, LinkOptions, NatsLink};
use crate::limits;

/// A member's end of a space that needs nobody to begin: it reaches the others from the moment in which a server can be
/// reached, and until then it is alone.
///
/// # Delivery
///
/// As [`NatsLink`]. Before it has joined, nobody is there: calls fail with [`ErrorKind::NoSuchNode`], and broadcasts reach
/// nobody.
pub struct PatientLink {
    shared: Arc<Shared>,
}

struct Shared {
    connection: Connection,
    env: Arc<dyn Env>,
    options: LinkOptions,
    link: Mutex<Joining>,
    /// True from the moment in which it begins to leave.
    closing: watch::Sender<bool>,
}

#[derive(Default)]
enum Joining {
    #[default]
    NotBegun,
    Begun,
    Joined(Arc<NatsLink>),
}

impl PatientLink {
    /// A link over this connection, which need not be there yet. Its tasks run in the environment.
    ///
    /// # Errors
    ///
    /// As [`NatsLink::new`].
    pub fn new(connection: &Connection, env: Arc<dyn Env>, options: LinkOptions) -> Result<Arc<Self>> {
        // What is wrong with the names is told now, and not to nobody later.
        NatsLink::new(connection, Arc::clone(&env), options.clone())?;
        let connection = connection.clone();
        let closing = watch::Sender::new(false);
        let shared = Shared { connection, env, options, link: Mutex::default(), closing };
        Ok(Arc::new(Self { shared: Arc::new(shared) }))
    }

    /// The connection that it goes over, when there is one.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.shared.connection
    }
}

impl Link for PatientLink {
    fn name(&self) -> &str {
        &self.shared.options.member
    }

    fn attach(&self, inbound: Arc<dyn Inbound>) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(self.begin(inbound)))
    }

    fn changed(&self) {
        if let Some(link) = self.shared.joined() {
            link.changed();
        }
    }

    fn post(&self, to: &str, frame: Vec<u8>) -> Result<()> {
        self.shared.link_to(to)?.post(to, frame)
    }

    fn request(&self, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>> {
        self.shared.link_to(to)?.request(to, frame)
    }

    fn post_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<()> {
        self.shared.link_to(to)?.post_at(member, to, frame)
    }

    fn request_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>> {
        self.shared.link_to(to)?.request_at(member, to, frame)
    }

    fn publish(&self, event_type: &str, frame: Vec<u8>) -> Result<()> {
        self.shared.joined().map_or(Ok(()), |link| link.publish(event_type, frame))
    }

    fn listens(&self, event_type: &str) -> bool {
        self.shared.joined().is_some_and(|link| link.listens(event_type))
    }

    fn peers(&self) -> Vec<Peer> {
        self.shared.joined().map(|link| link.peers()).unwrap_or_default()
    }

    fn revision(&self) -> u64 {
        // Another one when it has joined, whatever the link inside counts from.
        self.shared.joined().map_or(0, |link| link.revision() + 1)
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.shared.closing.send_replace(true);
        match self.shared.joined() {
            Some(link) => link.close(),
            None => Box::pin(std::future::ready(())),
        }
    }
}

impl PatientLink {
    fn begin(&self, inbound: Arc<dyn Inbound>) -> Result<()> {
        if *self.shared.closing.borrow() {
            return Err(closed(self.name()));
        }
        let mut joining = lock(&self.shared.link);
        if !matches!(*joining, Joining::NotBegun) {
            return Err(Error::misuse("a link is attached once"));
        }
        *joining = Joining::Begun;
        self.shared.env.spawn(Box::pin(Arc::clone(&self.shared).join(inbound)));
        Ok(())
    }
}

impl Shared {
    fn joined(&self) -> Option<Arc<NatsLink>> {
        match &*lock(&self.link) {
            Joining::Joined(link) => Some(Arc::clone(link)),
            _ => None,
        }
    }

    fn link_to(&self, node: &str) -> Result<Arc<NatsLink>> {
        if *self.closing.borrow() {
            return Err(closed(&self.options.member));
        }
        self.joined().ok_or_else(|| Error::new(ErrorKind::NoSuchNode { node: node.to_owned() }))
    }

    /// Joins, however long it takes.
    async fn join(self: Arc<Self>, inbound: Arc<dyn Inbound>) {
        let mut status = self.connection.status();
        let mut told = false;
        while !*self.closing.borrow() {
            status.borrow_and_update();
            match self.try_to_join(&inbound).await {
                Ok(()) => return,
                Err(error) if std::mem::replace(&mut told, true) => {
                    tracing::debug!(target: "happen", code = error.code(), "still alone: {error}");
                }
                Err(error) => {
                    tracing::warn!(target: "happen", code = error.code(), "alone until this passes: {error}");
                    let url = self.connection.url();
                    let status = ConnectionStatus::Disconnected;
                    inbound.notice(Notice::Connection { status, url, reason: None });
                    // A name that another member has is told, for it may never pass.
                    if !matches!(error.kind(), ErrorKind::Io { .. }) {
                        inbound.notice(Notice::Lost(&error));
                    }
                }
            }
            self.wait(&mut status).await;
        }
    }

    async fn try_to_join(&self, inbound: &Arc<dyn Inbound>) -> Result<()> {
        let link = NatsLink::new(&self.connection, Arc::clone(&self.env), self.options.clone())?;
        link.attach(Arc::clone(inbound)).await?;
        *lock(&self.link) = Joining::Joined(Arc::clone(&link));
        // What changed while it joined, and whoever closed it while it did.
        link.changed();
        if *self.closing.borrow() {
            link.close().await;
        }
        Ok(())
    }

    /// Waits until another attempt may do better.
    async fn wait(&self, status: &mut watch::Receiver<super::connection::Status>) {
        let mut closing = self.closing.subscribe();
        let mut closing = pin!(closing.wait_for(|closing| *closing));
        let mut changed = pin!(async {
            // A connection that is closed for good changes no more.
            if status.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        let mut late = self.env.sleep(Duration::from_millis(limits::JOIN_AGAIN_MS));
        poll_fn(|task| {
            let ready = late.as_mut().poll(task).is_ready()
                || changed.as_mut().poll(task).is_ready()
                || closing.as_mut().poll(task).is_ready();
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for PatientLink {
    fn drop(&mut self) {
        // Begun by the call; nobody waits for its end.
        drop(self.close());
    }
}

impl fmt::Debug for PatientLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shared.joined() {
            Some(link) => fmt::Debug::fmt(&link, f),
            None => write!(f, "link of `{}`, which has not joined yet", self.shared.options.member),
        }
    }
}
