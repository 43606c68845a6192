//! Requests by hand over the link: asking the process that has a node, and answering as that process. Owns how a request
//! travels, and that none which changes something is done twice when its answer is lost; what it does is in `carry.rs`.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use happen_core::event::Purpose;
use happen_core::link::CONTROL;
use happen_core::payload::Dynamic;
use happen_core::store::{Key, Store};
use happen_core::{ErasedEvent, Error, ErrorKind, Event, EventId, EventType, Result, Value};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::carry::within;
use super::{Answer, Hands, Request};
use crate::balance::BalanceReport;
use crate::durable::keys::{PROCESSES, name_of};
use crate::durable::{beside, schedule};
use crate::flow::Outcome;
use crate::identity::{Distrust, Trusted};
use crate::limits;
use crate::link::{Linked, RESERVED};
use crate::send::Sender;
use crate::space::SpaceInner;
use crate::stamp;
use crate::state::Name;
use crate::sync::{Mutex, lock};

/// A request, and the node that it is about.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByHand {
    pub(crate) node: String,
    request: Request,
}

/// What was asked for over the link of a space and what came of it, for as long as it may be asked again.
#[derive(Default)]
pub(crate) struct Carried(Mutex<Table>);

#[derive(Default)]
struct Table {
    by_id: HashMap<EventId, Stands>,
    /// When each of them came, in milliseconds since the space began.
    oldest_first: VecDeque<(u64, EventId)>,
    /// Of the answers.
    bytes: usize,
}

/// How a request stands.
enum Stands {
    UnderWay(Vec<oneshot::Sender<Outcome>>),
    Done(Result<Arc<[u8]>>),
}

/// What becomes of a request that came.
enum Begins {
    /// It is done now.
    New,
    /// It is under way, or was done.
    Known,
}

impl ByHand {
    /// The request in an event.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when it is none, or one that is not about the node alone.
    pub(crate) fn read(event: &dyn ErasedEvent) -> Result<Self> {
        if event.len() != 1 || event.envelope().event_type.as_str() != REQUEST {
            return Err(Error::misuse(
                "a process is asked for one thing by hand, and this is something else",
            ));
        }
        let json = event.payload().to_json()?;
        let asked: Self = serde_json::from_value(json)
            .map_err(|error| Error::misuse(format!("this is no request of this version ({error})")))?;
        if asked.is_about_its_node() {
            return Ok(asked);
        }
        Err(Error::misuse(format!(
            "what is asked of a process is about one of its nodes, here `{}`",
            asked.node
        )))
    }

    /// Whether it asks how all nodes of the process keep up, and changes nothing.
    pub(crate) fn is_of_balance(&self) -> bool {
        matches!(self.request, Request::Balance)
    }

    /// Whether a key may ask for it: one that operates the node, and for how the nodes keep up, one that operates any of
    /// them; it is told of those alone.
    ///
    /// # Errors
    ///
    /// [`Distrust::NotOperator`].
    pub(crate) fn allows(&self, by: &Trusted, space: &SpaceInner) -> Result<(), Distrust> {
        let may = |node: &str| by.may_operate(node).is_ok();
        if self.is_of_balance()
            && space.all_nodes().iter().any(|node| !node.name.starts_with(RESERVED) && may(&node.name))
        {
            return Ok(());
        }
        by.may_operate(&self.node)
    }

    /// Whether nothing of another node is touched; that of a schedule is looked up.
    fn is_about_its_node(&self) -> bool {
        let is = |node: Option<&str>| node == Some(&self.node);
        match &self.request {
            Request::Cancel(of) | Request::Retry(of) => is(of.node.as_deref()),
            Request::Redrive(redrive) => is(redrive.letters.node.as_deref()),
            Request::Drop(letters) => is(letters.node.as_deref()),
            Request::SetState(set) => {
                let key: Key = set.key.as_str().into();
                is(Name::of(&key).map(|name| name.node).as_deref())
            }
            Request::Schedule(_) => true,
            // The node only says in whose name it is answered.
            Request::Balance => true,
            Request::Send(_) | Request::Prune(_) | Request::Stats => false,
        }
    }
}

/// The id by which the process with this document in the log is asked.
pub(super) fn id_of(process: &Key) -> String {
    format!("{CONTROL}{}", name_of(process, PROCESSES))
}

/// The process that has a node and can be asked, by the id that it is asked by; `None` where it is for `space` to do, or
/// for nobody.
///
/// # Errors
///
/// What the store says.
pub(super) async fn elsewhere(
    space: &Arc<SpaceInner>,
    store: &Arc<dyn Store>,
    node: &str,
) -> Result<Option<String>> {
    let process = beside::process_of(store, node).await?;
    let own = space.durable.as_ref().and_then(|durable| durable.process());
    let other = process.filter(|process| own != Some(process)).map(|process| id_of(&process));
    Ok(other.filter(|id| space.hears_process(id)))
}

/// Asks the process that has a node, and again under the same id when the answer was lost.
///
/// # Errors
///
/// What that process answers; [`ErrorKind::Closed`], [`ErrorKind::Io`] or [`ErrorKind::TimedOut`] when it is not known what
/// became of the request.
pub(super) async fn ask(
    space: &Arc<SpaceInner>,
    process: &str,
    node: &str,
    request: Request,
) -> Result<Answer> {
    let event = event_of(space, node, request)?;
    let begun = space.env.monotonic();
    let mut left = Left::No;
    loop {
        let error = match ask_once(space, process, node, &event, limits::CONTROL_REPLY_MS).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let is_late = space.env.monotonic() - begun >= Duration::from_millis(limits::CONTROL_AGAIN_MS);
        match error.kind() {
            ErrorKind::TimedOut { .. } => return Err(unknown(node, error)),
            ErrorKind::Closed { .. } | ErrorKind::Io { .. } if is_late => return Err(unknown(node, error)),
            ErrorKind::Closed { .. } | ErrorKind::Io { .. } => left = Left::Perhaps,
            ErrorKind::NoSuchNode { .. } => match left {
                Left::No => return Err(gone(node)),
                Left::Perhaps if is_late => return Err(unknown(node, gone(node))),
                // It may only be that nobody here has heard of the process again yet.
                Left::Perhaps => {}
            },
            _ => return Err(error),
        }
        space.env.sleep(Duration::from_millis(limits::CONTROL_AGAIN_WAIT_MS)).await;
    }
}

/// Asks a process how its nodes keep up, in the name of one of which it answers. Nothing is changed by it, so it is asked
/// once, and whoever hears nothing may ask again.
///
/// # Errors
///
/// What that process answers; [`ErrorKind::Closed`], [`ErrorKind::Io`], [`ErrorKind::NoSuchNode`] or
/// [`ErrorKind::TimedOut`] when it does not.
pub(crate) async fn ask_balance(space: &Arc<SpaceInner>, process: &str, node: &str) -> Result<BalanceReport> {
    let event = event_of(space, node, Request::Balance)?;
    match ask_once(space, process, node, &event, limits::BALANCE_ASK_MS).await? {
        Answer::Balance(report) => Ok(report),
        _ => Err(unread()),
    }
}

fn event_of(space: &Arc<SpaceInner>, node: &str, request: Request) -> Result<Event<Dynamic>> {
    let asked = ByHand { node: node.to_owned(), request };
    let json = serde_json::to_value(&asked)
        .map_err(|error| Error::misuse(format!("it cannot be said in JSON ({error})")))?;
    let envelope = stamp::bare(Sender::Space(space), EventType::new(REQUEST), Purpose::Ask);
    Ok(Event::from_parts(envelope, Dynamic::from_json(EventType::new(REQUEST), json)))
}

#[cold]
fn unread() -> Error {
    Error::misuse("the process answered something else than was asked; it may be of another version")
}

#[cold]
fn gone(node: &str) -> Error {
    Error::new(ErrorKind::Closed { what: format!("the process of node `{node}`") })
}

#[cold]
fn unknown(node: &str, error: Error) -> Error {
    error.context(format!("it is not known whether the process of node `{node}` did it; look, and ask again"))
}

/// Whether a request may have reached its process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    No,
    Perhaps,
}

async fn ask_once(
    space: &Arc<SpaceInner>,
    process: &str,
    node: &str,
    event: &Event<Dynamic>,
    wait_ms: u64,
) -> Result<Answer> {
    let away = space.ask_process(process, node, event)?;
    let outcome = within(&space.env, wait_ms, away.outcome()).await;
    let outcome = outcome
        .unwrap_or_else(|| Err(Error::new(ErrorKind::TimedOut { after: Duration::from_millis(wait_ms) })));
    let value = outcome?.ok_or_else(unread)?;
    if value.event_type().as_str() != ANSWER {
        return Err(unread());
    }
    serde_json::from_value(value.as_payload().to_json()?)
        .map_err(|error| unread().context(format!("reading the answer ({error})")))
}

impl SpaceInner {
    /// The id by which this process is asked for something by hand; `None` where it has no log with others.
    pub(crate) fn control_id(&self) -> Option<String> {
        self.durable.as_ref().and_then(|durable| durable.process()).map(id_of)
    }

    /// Does what somebody asks for over the link, or tells what came of it when that was done before.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::NoSuchNode`]: it is meant for another process, such as one that ran here before.
    /// - [`ErrorKind::Busy`]: too much is under way or was just done.
    pub(crate) fn asked_by_hand(
        self: &Arc<Self>,
        to: &str,
        id: EventId,
        asked: ByHand,
    ) -> Result<oneshot::Receiver<Outcome>> {
        let linked = self.asked_as(to)?;
        let now_ms = u64::try_from(self.env.monotonic().as_millis()).unwrap_or(u64::MAX);
        let (told, tells) = oneshot::channel();
        if let Begins::New = linked.carried.begin(id, now_ms, told)? {
            let space = Arc::clone(self);
            // Whoever asked may go away, and what was begun is done all the same.
            self.env.spawn(Box::pin(async move {
                let done = space.carry_out_here(asked).await;
                if let Some(linked) = space.link.get() {
                    linked.carried.done(id, done);
                }
            }));
        }
        Ok(tells)
    }

    /// Tells whoever asks over the link how the nodes keep up: all of them, or those that a key operates. It stops when
    /// nobody waits any more.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchNode`]: another process is meant, such as one that ran here before.
    pub(crate) fn asked_for_balance(
        self: &Arc<Self>,
        to: &str,
        by: Option<Arc<Trusted>>,
    ) -> Result<oneshot::Receiver<Outcome>> {
        self.asked_as(to)?;
        let (mut told, tells) = oneshot::channel();
        let space = Arc::clone(self);
        self.env.spawn(Box::pin(async move {
            let mut looking = pin!(space.balance_for(by.as_deref()));
            let found = poll_fn(|task| match told.poll_closed(task) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => looking.as_mut().poll(task).map(Some),
            })
            .await;
            if let Some(found) = found {
                // Who asked may have gone.
                drop(told.send(found));
            }
        }));
        Ok(tells)
    }

    async fn balance_for(self: &Arc<Self>, by: Option<&Trusted>) -> Outcome {
        let mut report = self.balance_report().await?;
        if let Some(by) = by {
            report = report.only(|node| by.may_operate(node).is_ok());
        }
        let report = report.at_most(limits::CONTROL_NODES_MAX);
        // On its way it is no JSON: most of it is shorter there, and some numbers are longer.
        let report = report.within_bytes(self.config.event_bytes_max / 4 * 3);
        let json = serde_json::to_value(Answer::Balance(report))
            .map_err(|error| Error::misuse(format!("the answer cannot be said in JSON ({error})")))?;
        Ok(Some(Value::new(Dynamic::from_json(EventType::new(ANSWER), json))))
    }

    /// The link by which this process is asked, when it is the one that is meant.
    fn asked_as(&self, to: &str) -> Result<&Linked> {
        let linked = self.link.get().filter(|_| self.control_id().as_deref() == Some(to));
        linked.ok_or_else(|| Error::new(ErrorKind::NoSuchNode { node: to.to_owned() }))
    }

    async fn carry_out_here(self: &Arc<Self>, asked: ByHand) -> Result<Arc<[u8]>> {
        let ByHand { node, request } = asked;
        let hands = Hands::of_asked(self)?;
        if let Request::Schedule(of) = &request {
            let found = schedule::taker_of(hands.store(), &of.name).await?;
            if found.is_some_and(|found| found != node) {
                return Err(Error::misuse(format!(
                    "the events of schedule `{}` are not for node `{node}`",
                    of.name
                )));
            }
        }
        let answer = hands.carry_out(request).await?;
        let bytes = serde_json::to_vec(&answer)
            .map_err(|error| Error::misuse(format!("the answer cannot be said in JSON ({error})")))?;
        Ok(bytes.into())
    }
}

impl Carried {
    fn begin(&self, id: EventId, now_ms: u64, told: oneshot::Sender<Outcome>) -> Result<Begins> {
        let mut table = lock(&self.0);
        let answered = match table.by_id.get_mut(&id) {
            Some(Stands::UnderWay(waiting)) => {
                waiting.retain(|waits| !waits.is_closed());
                waiting.push(told);
                return Ok(Begins::Known);
            }
            Some(Stands::Done(done)) => Some(outcome_of(done)),
            None => None,
        };
        if let Some(outcome) = answered {
            drop(table);
            // Who asked may have gone.
            drop(told.send(outcome));
            return Ok(Begins::Known);
        }
        table.forget_before(now_ms.saturating_sub(limits::CONTROL_CARRIED_MS));
        let is_full = table.by_id.len() >= limits::CONTROL_CARRIED_MAX
            || table.bytes >= limits::CONTROL_CARRIED_BYTES_MAX;
        if is_full {
            let what = "what is asked for by hand over the link".to_owned();
            return Err(Error::new(ErrorKind::Busy { what }));
        }
        table.by_id.insert(id, Stands::UnderWay(vec![told]));
        table.oldest_first.push_back((now_ms, id));
        Ok(Begins::New)
    }

    fn done(&self, id: EventId, done: Result<Arc<[u8]>>) {
        let mut table = lock(&self.0);
        table.bytes += done.as_ref().map_or(0, |bytes| bytes.len());
        let outcomes = done.as_ref().map(Arc::clone).map_err(Error::duplicate);
        let Some(Stands::UnderWay(waiting)) = table.by_id.insert(id, Stands::Done(done)) else { return };
        drop(table);
        for waits in waiting {
            drop(waits.send(outcome_of(&outcomes)));
        }
    }
}

impl Table {
    /// Forgets what came before this time, up to the first that is still under way.
    fn forget_before(&mut self, at_ms: u64) {
        while let Some((came_ms, id)) = self.oldest_first.front() {
            if *came_ms >= at_ms || matches!(self.by_id.get(id), Some(Stands::UnderWay(_))) {
                return;
            }
            if let Some(Stands::Done(Ok(bytes))) = self.by_id.remove(id) {
                self.bytes -= bytes.len();
            }
            self.oldest_first.pop_front();
        }
    }
}

fn outcome_of(done: &Result<Arc<[u8]>>) -> Outcome {
    let bytes = done.as_ref().map_err(Error::duplicate)?;
    let json = serde_json::from_slice(bytes)
        .map_err(|error| Error::misuse(format!("an answer that was kept cannot be read ({error})")))?;
    Ok(Some(Value::new(Dynamic::from_json(EventType::new(ANSWER), json))))
}

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests by hand", lock(&self.0).by_id.len())
    }
}

/// The type of an event that asks a process for something by hand.
const REQUEST: &str = "$control";
/// The type of its answer.
const ANSWER: &str = "$control.answer";

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> EventId {
        EventId::from_halves(0x0197_a5d0_7c00_7000, 1 << 63 | number).unwrap()
    }

    fn begin(carried: &Carried, number: u64, now_ms: u64) -> Result<(bool, oneshot::Receiver<Outcome>)> {
        let (told, tells) = oneshot::channel();
        carried.begin(id(number), now_ms, told).map(|begins| (matches!(begins, Begins::New), tells))
    }

    fn text(tells: &mut oneshot::Receiver<Outcome>) -> String {
        let value = tells.try_recv().unwrap().unwrap().unwrap();
        value.as_payload().to_json().unwrap().to_string()
    }

    #[test]
    fn a_request_that_comes_again_is_not_done_again() {
        let carried = Carried::default();
        let (new, mut first) = begin(&carried, 1, 0).unwrap();
        assert!(new);
        let (new, mut meanwhile) = begin(&carried, 1, 5).unwrap();
        assert!(!new);
        carried.done(id(1), Ok(Arc::from(&b"[7]"[..])));
        assert_eq!((text(&mut first), text(&mut meanwhile)), ("[7]".to_owned(), "[7]".to_owned()));
        let (new, mut later) = begin(&carried, 1, limits::CONTROL_CARRIED_MS).unwrap();
        assert!(!new);
        assert_eq!(text(&mut later), "[7]");
        begin(&carried, 2, 0).unwrap();
        carried.done(id(2), Err(Error::msg("no")));
        let (_, mut later) = begin(&carried, 2, 1).unwrap();
        assert_eq!(later.try_recv().unwrap().unwrap_err().to_string(), "no");
    }

    #[test]
    fn requests_are_remembered_up_to_a_number_and_for_a_time() {
        let carried = Carried::default();
        let max = limits::CONTROL_CARRIED_MAX as u64;
        for number in 0..max {
            assert!(begin(&carried, number, 0).unwrap().0, "{number}");
        }
        assert_eq!(begin(&carried, max, 0).unwrap_err().code(), "busy");
        // What is under way is kept however long it takes, and so is what is behind it.
        let late = limits::CONTROL_CARRIED_MS + 1;
        assert_eq!(begin(&carried, max, late).unwrap_err().code(), "busy");
        carried.done(id(0), Ok(Arc::from(&b"1"[..])));
        assert_eq!(begin(&carried, max, late - 1).unwrap_err().code(), "busy");
        assert!(begin(&carried, max, late).unwrap().0);
        assert!(lock(&carried.0).by_id.len() as u64 == max && lock(&carried.0).bytes == 0);
        // Those that are known are answered also while there is no room.
        assert!(!begin(&carried, 5, late).unwrap().0);
    }

    #[test]
    fn answers_are_remembered_up_to_their_bytes() {
        let max = limits::CONTROL_CARRIED_BYTES_MAX;
        for (bytes, fits) in [(max - 1, true), (max, false), (max + 1, false)] {
            let carried = Carried::default();
            begin(&carried, 1, 0).unwrap();
            carried.done(id(1), Ok(vec![b' '; bytes].into()));
            assert_eq!(begin(&carried, 2, 0).is_ok(), fits, "{bytes}");
            assert!(begin(&carried, 3, limits::CONTROL_CARRIED_MS + 1).unwrap().0, "it is forgotten in time");
        }
    }
}
