//! Several nodes at once: one handler on each of them, one event to each of them, and sets of nodes that
//! change at run time. Owns who belongs to a group; does not know how an event reaches a node.

use happen_core::IntoStep;
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use happen_core::{Answer, Error, Function, IntoPattern, NodeKey, Outgoing, Pattern, Payload, Result};
use serde_json::Value as Json;

use crate::handler::{Argument, Handler};
use crate::node::{Node, Registration};
use crate::send::{Acceptance, Destination, Replies, Sender, Sending, Sent, Target, no_destination};
use crate::space::{Space, SpaceInner};
use crate::sync::{Mutex, lock};
use crate::table::Phase;

/// What several nodes can do at once: arrays, slices and vectors of `Node` or `&Node`.
///
/// # Examples
///
/// ```
/// use happen::{Context, Event, Nodes, Space};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let (a, b) = (space.node("a"), space.node("b"));
/// let registrations = [&a, &b].on("update", |_: &Event, cx: &Context| cx.node_id().to_owned());
/// space.start().await?;
///
/// let replies = [&a, &b].send(Event::new("update", serde_json::json!({}))).replies::<String>().await;
/// assert_eq!(**replies["b"].as_ref().unwrap(), "b");
/// registrations.off();
/// # Ok(())
/// # }
/// ```
#[doc(alias = "confluence")]
pub trait Nodes {
    /// Registers one handler on each of the nodes, as [`Node::on`] does on one. The flows of different nodes
    /// share nothing but what the handler captured: each has a [`Context`](crate::Context) of its own.
    fn on<P, PM, H, M>(&self, pattern: P, handler: H) -> Registrations
    where
        P: IntoPattern<PM>,
        H: Handler<M>,
        H::Argument: Argument,
        H::Output: IntoStep,
        H::Future: Send;

    /// Sends an event to each of the nodes from outside any node, as [`Space::send`] does to one. Each gets
    /// an event of its own. Nothing leaves before `.await`, `.replies()` or `.forget()`.
    fn send<T: Outgoing>(&self, event: T) -> FanOut<'_, T::Payload>;
}

impl<N: Borrow<Node>> Nodes for [N] {
    fn on<P, PM, H, M>(&self, pattern: P, handler: H) -> Registrations
    where
        P: IntoPattern<PM>,
        H: Handler<M>,
        H::Argument: Argument,
        H::Output: IntoStep,
        H::Future: Send,
    {
        let pattern = pattern.into_pattern();
        let function: Arc<dyn Function> = handler.into_function().into();
        let register =
            |node: &N| node.borrow().register(pattern.clone().map_err(Error::from), Arc::clone(&function));
        Registrations(self.iter().map(register).collect())
    }

    fn send<T: Outgoing>(&self, event: T) -> FanOut<'_, T::Payload> {
        let first = self.first().map(|node| Sender::Space(&node.borrow().inner().space));
        FanOut(first.map(|sender| {
            let all = self.iter().map(|node| node.borrow().into_destination());
            Sending::new(sender, Destination::many(all), event)
        }))
    }
}

/// The registrations of one handler on several nodes, in the order of the nodes. Dropping them changes
/// nothing.
#[derive(Clone, Debug)]
pub struct Registrations(Vec<Registration>);

impl Registrations {
    /// Takes all of them back. Flows under way go on.
    pub fn off(&self) {
        self.0.iter().for_each(Registration::off);
    }

    /// Refines each of them, such as by `.each(|one| one.priority(5))`.
    pub fn each(self, refine: impl FnMut(Registration) -> Registration) -> Self {
        Self(self.0.into_iter().map(refine).collect())
    }

    /// Says why nothing was registered.
    ///
    /// # Errors
    ///
    /// The pattern's error.
    pub fn check(&self) -> Result<()> {
        self.0.iter().try_for_each(Registration::check)
    }
}

/// An event for several nodes that was not sent yet. Awaiting it sends to all of them, and gives the first
/// error when one did not take it; `replies` gives one result for each node.
#[must_use = "nothing is sent before `.await`, `.replies()` or `.forget()`"]
pub struct FanOut<'s, T>(Option<Sending<'s, T>>);

impl<T: Payload> FanOut<'_, T> {
    /// As [`Sending::correlation`].
    pub fn correlation(self, name: impl Into<Arc<str>>) -> Self {
        Self(self.0.map(|sending| sending.correlation(name)))
    }

    /// As [`Sending::metadata`].
    pub fn metadata(self, name: impl Into<String>, value: impl Into<Json>) -> Self {
        Self(self.0.map(|sending| sending.metadata(name, value)))
    }

    /// As [`Sending::within`].
    pub fn within(self, time: Duration) -> Self {
        Self(self.0.map(|sending| sending.within(time)))
    }

    /// As [`Sending::replies`].
    pub async fn replies<R: Answer>(self) -> Replies<R> {
        match self.0 {
            Some(sending) => sending.replies().await,
            None => Replies::new(),
        }
    }

    /// As [`Sending::forget`].
    pub fn forget(self) {
        if let Some(sending) = self.0 {
            sending.forget();
        }
    }
}

impl<T: Payload> IntoFuture for FanOut<'_, T> {
    type Output = Result<Sent>;
    type IntoFuture = Acceptance;

    fn into_future(self) -> Self::IntoFuture {
        match self.0 {
            Some(sending) => sending.into_future(),
            None => Acceptance::now(Err(no_destination())),
        }
    }
}

/// A set of nodes that changes at run time. A handle; cloning shares the set.
///
/// What is registered with [`Group::on`] holds for the nodes that are added later too, and is taken back from
/// a node that is removed. An event goes to those that are members when it is sent. A node that is destroyed
/// leaves by itself. A group is also a destination: `cx.send(&group, event).replies()`.
///
/// # Examples
///
/// ```
/// use happen::{Context, Event, Space};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = Space::memory();
/// let observers = space.group();
/// observers.on("price", |_: &Event, cx: &Context| cx.node_id().to_owned());
/// space.start().await?;
///
/// observers.add(&space.node("late"))?;
/// let price = || Event::new("price", serde_json::json!({ "cents": 7 }));
/// assert_eq!(observers.send(price()).replies::<String>().await.len(), 1);
/// observers.remove("late");
/// assert_eq!(observers.send(price()).replies::<String>().await.len(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Group {
    inner: Arc<GroupInner>,
}

struct GroupInner {
    space: Arc<SpaceInner>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    members: BTreeMap<String, Node>,
    handlers: Vec<GroupHandler>,
    next: u64,
}

/// A handler of the whole group, and where it is registered.
struct GroupHandler {
    id: u64,
    pattern: Pattern,
    function: Arc<dyn Function>,
    at: BTreeMap<NodeKey, Registration>,
}

/// A handler's registration in a group. Dropping it changes nothing.
#[derive(Clone)]
pub struct GroupRegistration {
    group: Group,
    registered: Result<u64, Arc<Error>>,
}

impl Group {
    /// A group of nodes of this space, without members yet.
    #[must_use]
    pub fn new(space: &Space) -> Self {
        let inner = GroupInner { space: Arc::clone(space.inner()), state: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Adds a node; a member stays one. It handles from now on what the group handles.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) when the node belongs to another space or is
    /// destroyed.
    pub fn add(&self, node: &Node) -> Result<()> {
        let inner = node.inner();
        if inner.space.id != self.inner.space.id {
            return Err(Error::misuse(format!("node `{}` belongs to another space", node.id())));
        }
        if is_gone(node) {
            return Err(Error::misuse(format!("node `{}` takes no events any more", node.id())));
        }
        let mut state = self.state();
        if state.members.contains_key(node.id()) {
            return Ok(());
        }
        state.members.insert(node.id().to_owned(), node.clone());
        state.handlers.iter_mut().for_each(|handler| handler.put_on(node));
        Ok(())
    }

    /// Removes the node with this id, and takes the group's handlers back from it.
    pub fn remove(&self, id: &str) {
        let mut state = self.state();
        if let Some(node) = state.members.remove(id) {
            state.handlers.iter_mut().for_each(|handler| handler.take_off(&node));
        }
    }

    /// Whether the node with this id is a member.
    #[must_use]
    pub fn contains(&self, id: &str) -> bool {
        self.state().members.contains_key(id)
    }

    /// The ids of the members, sorted.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.state().members.keys().cloned().collect()
    }

    /// Registers one handler on every member, now and later, as [`Node::on`] does on one node.
    pub fn on<P, PM, H, M>(&self, pattern: P, handler: H) -> GroupRegistration
    where
        P: IntoPattern<PM>,
        H: Handler<M>,
        H::Argument: Argument,
        H::Output: IntoStep,
        H::Future: Send,
    {
        let group = self.clone();
        let pattern = match pattern.into_pattern().map_err(Error::from) {
            Ok(pattern) => pattern,
            Err(error) => {
                let told = error.duplicate();
                self.inner.space.problem(error);
                return GroupRegistration { group, registered: Err(Arc::new(told)) };
            }
        };
        let mut state = self.state();
        let State { members, handlers, next } = &mut *state;
        *next += 1;
        let function = handler.into_function().into();
        let mut handler = GroupHandler { id: *next, pattern, function, at: BTreeMap::new() };
        members.values().for_each(|node| handler.put_on(node));
        handlers.push(handler);
        GroupRegistration { group, registered: Ok(*next) }
    }

    /// Sends an event to each of the members of now, from outside any node. Each gets an event of its own;
    /// without members `.replies()` gives none and `.await` an error.
    pub fn send<T: Outgoing>(&self, event: T) -> Sending<'_, T::Payload> {
        Sending::new(Sender::Space(&self.inner.space), self.into_destination(), event)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        let mut state = lock(&self.inner.state);
        let State { members, handlers, .. } = &mut *state;
        members.retain(|_, node| {
            let stays = !is_gone(node);
            if !stays {
                handlers.iter_mut().for_each(|handler| handler.take_off(node));
            }
            stays
        });
        state
    }
}

impl Space {
    /// Makes a group of nodes; see [`Group`].
    #[must_use]
    pub fn group(&self) -> Group {
        Group::new(self)
    }
}

impl GroupHandler {
    fn put_on(&mut self, node: &Node) {
        let registration = node.register(Ok(self.pattern.clone()), Arc::clone(&self.function));
        self.at.insert(node.inner().key, registration);
    }

    fn take_off(&mut self, node: &Node) {
        if let Some(registration) = self.at.remove(&node.inner().key) {
            registration.off();
        }
    }
}

impl GroupRegistration {
    /// Takes the handler back from every member. Flows under way go on.
    pub fn off(&self) {
        let Ok(id) = self.registered else { return };
        let handler = {
            let mut state = self.group.state();
            let at = state.handlers.iter().position(|handler| handler.id == id);
            at.map(|at| state.handlers.remove(at))
        };
        if let Some(handler) = handler {
            handler.at.values().for_each(Registration::off);
        }
    }

    /// Says why nothing was registered.
    ///
    /// # Errors
    ///
    /// The pattern's error.
    pub fn check(&self) -> Result<()> {
        self.registered.as_ref().map(drop).map_err(|error| error.duplicate())
    }
}

impl<'t> Target<'t> for &'t Group {
    fn into_destination(self) -> Destination<'t> {
        Destination::many(self.ids().into_iter().map(Target::into_destination))
    }
}

fn is_gone(node: &Node) -> bool {
    node.inner().table.load().phase == Phase::Closed
}

impl<T: fmt::Debug> fmt::Debug for FanOut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(sending) => fmt::Debug::fmt(sending, f),
            None => f.write_str("to no nodes"),
        }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({})", self.ids().join(", "))
    }
}

impl fmt::Debug for GroupRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupRegistration({:?} of {:?})", self.registered, self.group)
    }
}
