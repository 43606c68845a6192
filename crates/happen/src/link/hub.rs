//! A link between spaces of one process: frames really encoded and decoded, queues really bounded, no server. Owns the
//! members and their queues; does not look into frames.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use happen_core::env::{BoxFuture, Env};
use happen_core::link::{Inbound, Link, NodePresence, Notice, Peer, Replies, is_addressable};
use happen_core::pattern::is_runtime;
use happen_core::{Error, ErrorKind, Pattern, Result};
use tokio::sync::{mpsc, oneshot, watch};

use crate::env::RealEnv;
use crate::limits;
use crate::sync::{Mutex, lock};

/// Joins spaces of one process with each other: for tests, and for parts of a program that are to be taken apart later.
///
/// Each member has a queue of frames on their way to it and one task that takes them out in order, so spaces joined by
/// a hub behave as if they were in different processes. Cloning shares the hub.
///
/// # Examples
///
/// See [`Space::join`](crate::Space::join).
#[derive(Clone)]
pub struct Hub {
    inner: Arc<HubInner>,
}

/// One member's end of a [`Hub`].
pub struct HubLink {
    hub: Arc<HubInner>,
    member: Arc<Member>,
}

struct HubInner {
    env: Arc<dyn Env>,
    /// Raised after whatever changes what its members are told of each other.
    revision: AtomicU64,
    /// In the order in which they joined.
    members: Mutex<Vec<Arc<Member>>>,
}

struct Member {
    name: String,
    /// The way in; there once attached, gone when closed.
    way_in: Mutex<Option<WayIn>>,
    /// Bytes of the frames on their way in.
    bytes: Arc<AtomicUsize>,
    stale: AtomicBool,
    known: Mutex<Known>,
    closed: watch::Sender<bool>,
}

#[derive(Clone)]
struct WayIn {
    frames: mpsc::Sender<Frame>,
    inbound: Arc<dyn Inbound>,
}

/// What is known of a member's nodes until they change.
#[derive(Default)]
struct Known {
    nodes: Vec<NodePresence>,
    ids: BTreeSet<String>,
    patterns: Vec<Pattern>,
    listens: BTreeMap<String, bool>,
}

struct Frame {
    bytes: Arc<[u8]>,
    kind: FrameKind,
    _weight: Weight,
}

enum FrameKind {
    Post(String),
    Request(String, oneshot::Sender<Box<dyn Replies>>),
    Publish,
}

impl Hub {
    /// A hub whose members' tasks run on the tokio runtime they are started in.
    #[must_use]
    pub fn new() -> Self {
        Self::in_env(Arc::new(RealEnv::new()))
    }

    /// A hub whose members' tasks run in this environment: a simulator's, for example.
    #[must_use]
    pub fn in_env(env: Arc<dyn Env>) -> Self {
        Self { inner: Arc::new(HubInner { env, revision: AtomicU64::new(0), members: Mutex::default() }) }
    }

    /// The end for one space, under a name of its own; for [`Space::join`](crate::Space::join).
    #[must_use]
    pub fn link(&self, name: impl Into<String>) -> Arc<HubLink> {
        let member = Member {
            name: name.into(),
            way_in: Mutex::default(),
            bytes: Arc::default(),
            stale: AtomicBool::new(true),
            known: Mutex::default(),
            closed: watch::Sender::new(false),
        };
        Arc::new(HubLink { hub: Arc::clone(&self.inner), member: Arc::new(member) })
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Link for HubLink {
    fn name(&self) -> &str {
        &self.member.name
    }

    fn attach(&self, inbound: Arc<dyn Inbound>) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(self.attach_now(inbound)))
    }

    fn changed(&self) {
        self.member.stale.store(true, Ordering::SeqCst);
        self.hub.revision.fetch_add(1, Ordering::SeqCst);
    }

    fn post(&self, to: &str, frame: Vec<u8>) -> Result<()> {
        self.find(to, |_| true)?.take(frame.into(), FrameKind::Post(to.to_owned()))
    }

    fn request(&self, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>> {
        let member = self.find(to, |_| true)?;
        self.ask(&member, to, frame)
    }

    fn post_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<()> {
        let found = self.find(to, |known| known.name == member)?;
        found.take(frame.into(), FrameKind::Post(to.to_owned()))
    }

    fn request_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>> {
        let member = self.find(to, |known| known.name == member)?;
        self.ask(&member, to, frame)
    }

    fn publish(&self, event_type: &str, frame: Vec<u8>) -> Result<()> {
        self.member.check_open()?;
        let frame: Arc<[u8]> = frame.into();
        let mut failed = None;
        for member in self.others() {
            if member.listens(event_type)
                && let Err(error) = member.take(Arc::clone(&frame), FrameKind::Publish)
                // One that has left meanwhile listens no more.
                && !matches!(error.kind(), ErrorKind::Closed { .. })
            {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn listens(&self, event_type: &str) -> bool {
        self.others().iter().any(|member| member.listens(event_type))
    }

    fn peers(&self) -> Vec<Peer> {
        let others = self.others().into_iter();
        others
            .map(|member| Peer {
                name: member.name.clone(),
                nodes: member.known(|known| known.nodes.clone()),
            })
            .collect()
    }

    fn revision(&self) -> u64 {
        self.hub.revision.load(Ordering::SeqCst)
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let others = {
            let mut members = lock(&self.hub.members);
            let before = members.len();
            members.retain(|member| !Arc::ptr_eq(member, &self.member));
            if members.len() < before { members.clone() } else { Vec::new() }
        };
        self.hub.revision.fetch_add(1, Ordering::SeqCst);
        self.member.close();
        for inbound in others.iter().filter_map(|member| member.inbound()) {
            inbound.notice(Notice::Left { member: &self.member.name });
        }
        Box::pin(std::future::ready(()))
    }
}

impl HubLink {
    fn attach_now(&self, inbound: Arc<dyn Inbound>) -> Result<()> {
        self.member.check_not_closed()?;
        let (frames, queue) = mpsc::channel(limits::LINK_QUEUE_MAX);
        let mut members = lock(&self.hub.members);
        if members.iter().any(|member| member.name == self.member.name) {
            return Err(Error::misuse(format!(
                "a hub has one member named `{}` at a time",
                self.member.name
            )));
        }
        *lock(&self.member.way_in) = Some(WayIn { frames, inbound: Arc::clone(&inbound) });
        self.member.stale.store(true, Ordering::SeqCst);
        members.push(Arc::clone(&self.member));
        drop(members);
        self.hub.revision.fetch_add(1, Ordering::SeqCst);
        let closed = self.member.closed.subscribe();
        self.hub.env.spawn(Box::pin(hand_over(queue, inbound, closed)));
        Ok(())
    }

    fn others(&self) -> Vec<Arc<Member>> {
        let members = lock(&self.hub.members);
        members.iter().filter(|member| !Arc::ptr_eq(member, &self.member)).cloned().collect()
    }

    fn ask(&self, member: &Member, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>> {
        let (answer, answered) = oneshot::channel();
        member.take(frame.into(), FrameKind::Request(to.to_owned(), answer))?;
        let closed = [self.member.when_closed(), member.when_closed()];
        Ok(Box::new(HubReplies { stage: Stage::Asked(answered), closed, member: member.name.clone() }))
    }

    fn find(&self, node: &str, is_meant: impl Fn(&Member) -> bool) -> Result<Arc<Member>> {
        self.member.check_open()?;
        let mut others = self.others().into_iter().filter(|member| is_meant(member));
        others
            .find(|member| member.known(|known| known.ids.contains(node)))
            .ok_or_else(|| Error::new(ErrorKind::NoSuchNode { node: node.to_owned() }))
    }
}

impl Member {
    fn check_not_closed(&self) -> Result<()> {
        if *self.closed.borrow() { Err(closed(&self.name)) } else { Ok(()) }
    }

    /// Whether it may send: a member that nobody can answer is none.
    fn check_open(&self) -> Result<()> {
        if lock(&self.way_in).is_some() { Ok(()) } else { Err(closed(&self.name)) }
    }

    fn inbound(&self) -> Option<Arc<dyn Inbound>> {
        lock(&self.way_in).as_ref().map(|way_in| Arc::clone(&way_in.inbound))
    }

    fn take(&self, bytes: Arc<[u8]>, kind: FrameKind) -> Result<()> {
        let weight = Weight::of(&self.bytes, bytes.len()).ok_or_else(|| self.busy())?;
        let way_in = lock(&self.way_in);
        let Some(WayIn { frames, .. }) = &*way_in else { return Err(closed(&self.name)) };
        frames.try_send(Frame { bytes, kind, _weight: weight }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => self.busy(),
            mpsc::error::TrySendError::Closed(_) => closed(&self.name),
        })
    }

    #[cold]
    fn busy(&self) -> Error {
        Error::new(ErrorKind::Busy { what: format!("the link to `{}`", self.name) })
    }

    fn known<R>(&self, read: impl FnOnce(&mut Known) -> R) -> R {
        let mut known = lock(&self.known);
        // Cleared before it is asked, so that a change in between is asked for again.
        if self.stale.swap(false, Ordering::SeqCst) {
            let way_in = lock(&self.way_in).clone();
            *known = Known::of(way_in.map(|way_in| way_in.inbound.presence()).unwrap_or_default());
        }
        read(&mut known)
    }

    fn listens(&self, event_type: &str) -> bool {
        self.known(|known| known.listens(event_type))
    }

    fn when_closed(&self) -> BoxFuture<'static, ()> {
        let mut closed = self.closed.subscribe();
        // An error says that the member is gone, which is closed as well.
        Box::pin(async move { drop(closed.wait_for(|closed| *closed).await) })
    }

    fn close(&self) {
        self.closed.send_replace(true);
        let way_in = lock(&self.way_in).take();
        drop(way_in);
    }
}

impl Known {
    fn of(nodes: Vec<NodePresence>) -> Self {
        let ids = nodes.iter().map(|node| node.id.clone()).filter(|id| is_addressable(id)).collect();
        // Who publishes chooses one of those that share.
        let for_all = nodes.iter().filter(|node| node.share.is_none());
        let patterns = for_all.flat_map(|node| node.handles.iter().cloned()).collect();
        Self { nodes, ids, patterns, listens: BTreeMap::new() }
    }

    fn listens(&mut self, event_type: &str) -> bool {
        if let Some(known) = self.listens.get(event_type) {
            return *known;
        }
        let runtime = is_runtime(event_type);
        let listens = self.patterns.iter().any(|pattern| match runtime {
            true => pattern.matches_runtime(event_type),
            false => pattern.matches(event_type),
        });
        if self.listens.len() < limits::TYPES_MAX {
            self.listens.insert(event_type.to_owned(), listens);
        }
        listens
    }
}

/// The bytes a frame takes of its queue's limit, given back when it is dropped.
struct Weight {
    of: Arc<AtomicUsize>,
    bytes: usize,
}

impl Weight {
    fn of(queued: &Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        let before = queued.fetch_add(bytes, Ordering::SeqCst);
        // Made first, so that what does not fit is given back as well.
        let weight = Self { of: Arc::clone(queued), bytes };
        (before + bytes <= limits::LINK_QUEUE_BYTES_MAX).then_some(weight)
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// Hands frames to a member one after the other, until it leaves.
async fn hand_over(
    mut queue: mpsc::Receiver<Frame>,
    inbound: Arc<dyn Inbound>,
    closed: watch::Receiver<bool>,
) {
    let mut run = 0;
    while let Some(Frame { bytes, kind, _weight }) = queue.recv().await {
        if *closed.borrow() {
            return;
        }
        match kind {
            FrameKind::Post(to) => inbound.post(&to, &bytes),
            FrameKind::Request(to, answer) => {
                // Nobody may wait any more; then the replies are dropped, which says so to the flow.
                drop(answer.send(inbound.request(&to, &bytes)));
            }
            FrameKind::Publish => inbound.publish(&bytes),
        }
        run += 1;
        if run % HAND_OVER_RUN == 0 {
            crate::space::yield_now().await;
        }
    }
}

/// The replies of a member, asked for as the reader asks: nothing is read ahead, so the reader's pace is the flow's.
struct HubReplies {
    stage: Stage,
    closed: [BoxFuture<'static, ()>; 2],
    member: String,
}

enum Stage {
    Asked(oneshot::Receiver<Box<dyn Replies>>),
    Answered(Box<dyn Replies>),
    Over,
}

impl Replies for HubReplies {
    fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>>>> {
        if matches!(self.stage, Stage::Over) {
            return Poll::Ready(None);
        }
        // Asked first and acted on last: what was answered before the other end left is still read.
        let closed = self.closed.iter_mut().any(|closed| closed.as_mut().poll(task).is_ready());
        if let Stage::Asked(asked) = &mut self.stage {
            match Pin::new(asked).poll(task) {
                Poll::Pending => {}
                Poll::Ready(Ok(replies)) => self.stage = Stage::Answered(replies),
                Poll::Ready(Err(_)) => return self.end(),
            }
        }
        let polled = match &mut self.stage {
            Stage::Answered(replies) => replies.poll_next(task),
            Stage::Asked(_) | Stage::Over => Poll::Pending,
        };
        match polled {
            Poll::Pending if closed => return self.end(),
            Poll::Ready(None | Some(Err(_))) => self.stage = Stage::Over,
            Poll::Pending | Poll::Ready(Some(Ok(_))) => {}
        }
        polled
    }
}

impl HubReplies {
    fn end(&mut self) -> Poll<Option<Result<Vec<u8>>>> {
        self.stage = Stage::Over;
        Poll::Ready(Some(Err(closed(&self.member))))
    }
}

#[cold]
fn closed(member: &str) -> Error {
    Error::new(ErrorKind::Closed { what: format!("the link to `{member}`") })
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(lock(&self.inner.members).iter().map(|member| &member.name)).finish()
    }
}

impl fmt::Debug for HubLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link of `{}` to a hub", self.member.name)
    }
}

/// Frames handed over in a row before other tasks get their turn.
const HAND_OVER_RUN: usize = 64;
