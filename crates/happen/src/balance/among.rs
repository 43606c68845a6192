//! The figures of all processes of a space: each is asked over the link for its own. Owns who is asked, and how many at
//! once; how a process is asked and answers is in `control/linked.rs`, what it tells in `watch.rs`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use happen_core::env::BoxFuture;
use happen_core::link::{CONTROL, Peer};
use happen_core::{Error, Result};

use super::BalanceReport;
use crate::control;
use crate::limits;
use crate::link::RESERVED;
use crate::space::{Space, SpaceInner};

/// How the nodes of a process keep up, or why nobody knows.
#[derive(Debug)]
#[non_exhaustive]
pub struct ProcessBalance {
    /// The name of its member of the link; empty for a space without a link.
    pub process: String,
    /// What it told.
    pub report: Result<BalanceReport>,
}

/// A process, and by whom it is asked.
struct Asked {
    process: String,
    /// The id by which it is asked; `None` for one that cannot be.
    id: Option<String>,
    /// The node that it answers for.
    node: String,
}

impl Space {
    /// How the nodes of all processes keep up, by the names of those: what each that is heard of at this moment tells of
    /// itself, as by [`Space::balance_report`], and this space too when it has nodes. A member of the link without nodes is
    /// not asked.
    ///
    /// A process with an [identity](Space::identity) tells a key that it trusts of the nodes that this
    /// [operates](crate::identity::Trusted::operates), and of no others.
    ///
    /// # Errors
    ///
    /// None of its own. In [`ProcessBalance::report`] stands what became of each process:
    ///
    /// - [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut): it did not answer within [`limits::BALANCE_ASK_MS`].
    /// - [`ErrorKind::Closed`](crate::ErrorKind::Closed), [`ErrorKind::Io`](crate::ErrorKind::Io) or
    ///   [`ErrorKind::NoSuchNode`](crate::ErrorKind::NoSuchNode): it went, or cannot be reached.
    /// - [`ErrorKind::Untrusted`](crate::ErrorKind::Untrusted): it does not believe the key of this space, or this space
    ///   not its key.
    /// - [`ErrorKind::Misuse`](crate::ErrorKind::Misuse): it shares no log with others, and so it is not asked by hand; or
    ///   it is of a version that cannot tell.
    /// - What its store says.
    ///
    /// # Cancel safety
    ///
    /// Nothing is changed by it; those that were asked stop looking.
    ///
    /// # Cost
    ///
    /// A request to each process, [`limits::BALANCE_ASKED_MAX`] at a time, and there that of [`Space::balance_report`]. A
    /// process tells of [`limits::CONTROL_NODES_MAX`] nodes, or as many as an event has room for.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Config, Context, Event, Hub, Space};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let (hub, env) = (Hub::new(), Space::memory().env().clone());
    /// # let log: std::sync::Arc<dyn happen::store::Store> =
    /// #     std::sync::Arc::new(happen::store::MemoryStore::new(std::sync::Arc::clone(&env)).shared());
    /// // In one process:
    /// let shop = Space::with_store(Config::default(), env, log)?;
    /// shop.join(hub.link("shop"))?;
    /// shop.node("orders").on("order", |_: &Event, _: &Context| {});
    /// shop.start().await?;
    ///
    /// // In another:
    /// let here = Space::memory();
    /// here.join(hub.link("operator"))?;
    /// here.start().await?;
    /// for told in here.balance_reports().await {
    ///     match told.report {
    ///         Ok(report) => println!("{}: {} nodes, {:?}", told.process, report.nodes_len, report.findings),
    ///         Err(error) => println!("{} did not tell: {error}", told.process),
    ///     }
    /// }
    /// # assert!(here.balance_reports().await[0].report.as_ref().unwrap().node("orders").is_some());
    /// # shop.stop().await?;
    /// # here.stop().await
    /// # }
    /// ```
    pub async fn balance_reports(&self) -> Vec<ProcessBalance> {
        reports(self.inner()).await
    }
}

async fn reports(space: &Arc<SpaceInner>) -> Vec<ProcessBalance> {
    let link = space.link.get().map(|linked| &linked.link);
    let mut told = Vec::new();
    if space.all_nodes().iter().any(|node| !node.name.starts_with(RESERVED)) {
        let process = link.map_or_else(String::new, |link| link.name().to_owned());
        told.push(ProcessBalance { process, report: space.balance_report().await });
    }
    let peers = link.map(|link| link.peers()).unwrap_or_default();
    let asked: Vec<_> = peers.into_iter().filter_map(asked).collect();
    for some in asked.chunks(limits::BALANCE_ASKED_MAX) {
        told.extend(all(some.iter().map(|asked| Box::pin(ask(space, asked)) as BoxFuture<'_, _>)).await);
    }
    told.sort_by(|a, b| a.process.cmp(&b.process));
    told
}

/// How a member of the link is asked; `None` for one that has no nodes.
fn asked(peer: Peer) -> Option<Asked> {
    let node = peer.nodes.iter().find(|node| !node.id.starts_with(RESERVED))?.id.clone();
    let id = peer.nodes.into_iter().map(|node| node.id).find(|id| id.starts_with(CONTROL));
    Some(Asked { process: peer.name, id, node })
}

async fn ask(space: &Arc<SpaceInner>, asked: &Asked) -> ProcessBalance {
    let report = match &asked.id {
        Some(id) => control::ask_balance(space, id, &asked.node).await,
        None => Err(Error::misuse("it shares no log with other processes, so it is not asked by hand")),
    };
    ProcessBalance { process: asked.process.clone(), report }
}

/// What comes of all of these, in their order.
async fn all<'f, T>(futures: impl Iterator<Item = BoxFuture<'f, T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.map(|future| (future, None)).collect();
    poll_fn(|task| {
        let mut is_over = true;
        for (future, done) in waiting.iter_mut().filter(|(_, done)| done.is_none()) {
            match future.as_mut().poll(task) {
                Poll::Ready(came) => *done = Some(came),
                Poll::Pending => is_over = false,
            }
        }
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(_, done)| done).collect()
}
