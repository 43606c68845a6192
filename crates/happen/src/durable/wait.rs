//! Waiting for an event that somebody else sends: a person's approval, a message that comes back. Owns who waits for
//! which; does not know where the events come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use happen_core::codec::{PointKind, WireParcel, WireRecord};
use happen_core::limits::RECORD_BYTES_MAX;
use happen_core::store::{Position, Read, Record, Select, Start, Tag};
use happen_core::{ErasedEvent, Error, ErrorKind, Event, EventType, Pattern, Result};
use tokio::sync::mpsc;

use super::Durable;
use super::flow::StoredFlow;
use super::point::diverged_to;
use super::record::encode_outcome;
use super::recover::error_in;
use super::stage::{Point, Stage};
use crate::dispatch::as_dynamic;
use crate::space::SpaceInner;
use crate::sync::{Mutex, isolated, lock};

/// Who waits for events of which types.
#[derive(Default)]
pub(crate) struct Waiters {
    count: AtomicUsize,
    /// How often somebody began to wait for what nobody waited for before.
    generation: AtomicU64,
    all: Mutex<Vec<Waiter>>,
}

/// Says, as long as it lives, that somebody will wait for events of some types and look for them in the log.
pub(crate) struct Expected {
    durable: Arc<Durable>,
    number: u64,
}

struct Waiter {
    number: u64,
    /// The node whose flow it is.
    node: Arc<str>,
    pattern: Pattern,
    wanted: Arc<Wanted>,
    /// Has room for one: the first that is wanted is the one that is waited for.
    to: mpsc::Sender<Result<Offered>>,
}

/// An event on its way to a flow that waits. The flow counts as none while it waits, so this counts for it.
struct Offered {
    event: Arc<dyn ErasedEvent>,
    _counted: Counted,
}

struct Counted(Arc<SpaceInner>);

impl Counted {
    fn new(space: &Arc<SpaceInner>) -> Self {
        space.flow_began();
        Self(Arc::clone(space))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.flow_ended();
    }
}

/// Takes a waiter off when it waits no more.
struct Waiting<'w> {
    waiters: &'w Waiters,
    number: u64,
    from: mpsc::Receiver<Result<Offered>>,
}

/// Looks at an event and says whether it is the one that is waited for.
pub(crate) type Wanted = dyn Fn(&Event) -> bool + Send + Sync;

impl Waiters {
    /// Whether anybody waits for events of this type.
    pub(super) fn want(&self, event_type: &EventType) -> bool {
        self.want_type(event_type.as_str())
    }

    fn want_type(&self, event_type: &str) -> bool {
        self.count.load(Ordering::Relaxed) > 0
            && lock(&self.all).iter().any(|waiter| waiter.pattern.matches(event_type))
    }

    /// What anybody waits for, each once, and the generation that has all of it.
    pub(super) fn patterns(&self) -> (u64, Vec<Pattern>) {
        let all = lock(&self.all);
        (self.generation.load(Ordering::SeqCst), different(all.iter()))
    }

    /// What flows of a node wait for, each once.
    pub(crate) fn patterns_of(&self, node: &str) -> Vec<Pattern> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        different(lock(&self.all).iter().filter(|waiter| &*waiter.node == node))
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Shows an event to those who wait for its type. They say here whether it is the one, so that however many come
    /// beside it, it is never too late for it.
    pub(super) fn offer(&self, space: &Arc<SpaceInner>, event: &Arc<dyn ErasedEvent>) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        if !space.policies_allow(&**event) {
            return;
        }
        let event_type = &event.envelope().event_type;
        let matching: Vec<_> = lock(&self.all)
            .iter()
            .filter(|waiter| waiter.pattern.matches(event_type.as_str()))
            .map(|waiter| (Arc::clone(&waiter.wanted), waiter.to.clone()))
            .collect();
        // Without the lock, for it is a function of users.
        for (wanted, to) in matching {
            let offered = match is_wanted(&**event, &wanted) {
                Ok(false) => continue,
                Ok(true) => Ok(Offered { event: Arc::clone(event), _counted: Counted::new(space) }),
                Err(error) => Err(error),
            };
            // One that has its event already needs no other.
            drop(to.try_send(offered));
        }
    }

    /// Shows the events of these records, which any process may have written, to those who wait for their types.
    pub(super) fn offer_records(&self, space: &Arc<SpaceInner>, records: &[Record]) {
        for record in records {
            let wanted = |tag: &Tag| matches!(tag, Tag::Type(found) if self.want_type(found));
            if !record.tags.iter().any(wanted) {
                continue;
            }
            match event_of(space, record) {
                Ok(Some(event)) => self.offer(space, &event),
                Ok(None) => {}
                Err(error) => space.problem(error.context("reading an event that somebody waits for")),
            }
        }
    }

    /// Has a flow wait, and others hear of it who have to know.
    fn wait(&self, flow: &StoredFlow, pattern: Pattern, wanted: &Arc<Wanted>) -> Waiting<'_> {
        let (to, from) = mpsc::channel(1);
        let node = Arc::clone(&flow.node.name);
        let before = self.generation();
        let number = self.add(node, pattern, Arc::clone(wanted), to);
        if self.generation() != before {
            flow.node.space.presence_changed();
        }
        Waiting { waiters: self, number, from }
    }

    fn add(
        &self,
        node: Arc<str>,
        pattern: Pattern,
        wanted: Arc<Wanted>,
        to: mpsc::Sender<Result<Offered>>,
    ) -> u64 {
        let mut all = lock(&self.all);
        let number = all.last().map_or(1, |last| last.number + 1);
        let waiter = Waiter { number, node, pattern, wanted, to };
        if !all.iter().any(|known| known.node == waiter.node && same(&known.pattern, &waiter.pattern)) {
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
        all.push(waiter);
        self.count.store(all.len(), Ordering::Relaxed);
        number
    }

    fn remove(&self, number: u64) {
        let mut all = lock(&self.all);
        all.retain(|waiter| waiter.number != number);
        self.count.store(all.len(), Ordering::Relaxed);
    }
}

impl Expected {
    /// Expects what a flow waited for when the last process ended.
    pub(super) fn of(durable: &Arc<Durable>, node: &Arc<str>, point: &Point) -> Option<Self> {
        if point.kind != PointKind::Wait || point.result.is_some() {
            return None;
        }
        let pattern = Pattern::parse(&point.name).ok()?;
        // Nobody reads there: that events are kept is enough.
        let (to, _) = mpsc::channel(1);
        let number = durable.waiters.add(Arc::clone(node), pattern, Arc::new(|_: &Event| false), to);
        Some(Self { number, durable: Arc::clone(durable) })
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.durable.waiters.remove(self.number);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.waiters.remove(self.number);
    }
}

/// Waits until an event comes that matches and is wanted, or the time is over. It is one that came after the step first
/// waited here, also while the process was not there.
///
/// # Errors
///
/// [`ErrorKind::TimedOut`], and whatever keeps the waiting from being remembered.
pub(crate) async fn wait_for(
    stage: Arc<Stage>,
    pattern: Pattern,
    within: Option<Duration>,
    wanted: Arc<Wanted>,
) -> Result<Event> {
    let ordinal = stage.ordinal();
    let flow = Arc::clone(&stage.flow);
    let env = Arc::clone(&flow.node.space.env);
    let durable = Arc::clone(flow.durable());
    let text = pattern.to_string();
    // The event of the flow itself came before, though it may be stored with the waiting.
    let own = flow.event.envelope().id;
    let wanted: Arc<Wanted> = Arc::new(move |event: &Event| event.id() != own && wanted(event));
    // Before the waiting is committed, so that nothing comes between.
    let mut waiting = durable.waiters.wait(&flow, pattern.clone(), &wanted);
    let known = stage.point(PointKind::Wait, ordinal, "")?;
    let mut point = match known {
        Some(known) if known.kind != PointKind::Wait || known.name != text => {
            return Err(diverged_to(&stage, &known, &format!("waited for `{text}`")));
        }
        Some(known) => known,
        None => {
            let due_unix_ms = within.map_or(0, |within| {
                env.unix_ms().saturating_add(u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1))
            });
            // What is in the log by now was there before; the head may lie behind what others are just committing, and
            // such an event counts as one that came later.
            let head = durable.store.read(Read::forward(Select::All).at_most(0)).await?.head;
            let digest = u64::try_from(head.number()).unwrap_or(u64::MAX);
            let point = Point {
                ordinal,
                kind: PointKind::Wait,
                name: text,
                event: None,
                due_unix_ms,
                digest,
                result: None,
            };
            stage.note(point.clone())?;
            flow.commit_progress(&stage, |_, _| Ok(())).await?;
            flow.stored();
            point
        }
    };
    if let Some(result) = &point.result {
        return if point.event.is_some() { decode(&flow, result) } else { Err(error_in(result)) };
    }
    let after = Position::from_number(point.digest.into());
    // What others write is heard of from here on, and what is in the log by then is found.
    durable.until_followed(durable.waiters.generation()).await;
    let found = loop {
        if let Some(found) = find(&flow, &pattern, (after, point.due_unix_ms), &wanted).await? {
            break Some(found);
        }
        match next(&flow, &mut waiting, point.due_unix_ms).await? {
            Some(offered) if came_behind(&flow, &*offered.event, after).await? => {
                break Some(Arc::clone(&offered.event));
            }
            // The right one may have come beside it.
            Some(_) => {}
            None => break None,
        }
    };
    let Some(event) = found else {
        let error = Error::new(ErrorKind::TimedOut { after: within.unwrap_or_default() })
            .context(format!("waiting for `{}`", point.name));
        // A step that is run again gives up here too, whatever has come since.
        point.result = Some(encode_outcome(&flow, &Err(error.duplicate()))?.into());
        stage.note(point)?;
        return Err(error);
    };
    point.event = Some(event.envelope().id);
    point.result = Some(flow.node.space.framed_arrival(&*event)?.frame.into());
    stage.note(point)?;
    Ok(as_dynamic(&*event))
}

/// The first wanted event of the log behind a position and not later than a time.
async fn find(
    flow: &Arc<StoredFlow>,
    pattern: &Pattern,
    (after, due_unix_ms): (Position, u64),
    wanted: &Arc<Wanted>,
) -> Result<Option<Arc<dyn ErasedEvent>>> {
    let select = match pattern.is_literal() {
        Some(exact) => Select::tag(Tag::Type(exact.into())),
        None => Select::All,
    };
    let mut start = Start::Position(after);
    loop {
        let page = flow.durable().store.read(Read::forward(select.clone()).start(start)).await?;
        for record in &page.records {
            if due_unix_ms > 0 && record.at_unix_ms > due_unix_ms {
                return Ok(None);
            }
            // By the tag, for not every record is one of an event.
            let of_type = |tag: &Tag| matches!(tag, Tag::Type(found) if pattern.matches(found));
            if !record.tags.iter().any(of_type) {
                continue;
            }
            let Some(event) = event_of(&flow.node.space, record)? else { continue };
            if is_wanted(&*event, wanted)? && came_behind(flow, &*event, after).await? {
                return Ok(Some(event));
            }
        }
        match page.next {
            Some(next) => start = Start::Position(next),
            None => return Ok(None),
        }
    }
}

/// Whether an event came behind a position. In a log of several processes it has another record when the node that it is
/// for takes it, and the first one counts.
async fn came_behind(flow: &Arc<StoredFlow>, event: &dyn ErasedEvent, position: Position) -> Result<bool> {
    let durable = flow.durable();
    if !durable.is_shared() {
        return Ok(true);
    }
    let first = Read::forward(Select::tag(Tag::Event(event.envelope().id))).at_most(1);
    let found = durable.store.read(first).await?.records;
    Ok(found.first().is_none_or(|record| record.position > position))
}

/// The event of a record that has one.
fn event_of(space: &Arc<SpaceInner>, record: &Record) -> Result<Option<Arc<dyn ErasedEvent>>> {
    let record = WireRecord::decode(&record.bytes, RECORD_BYTES_MAX)?;
    if record.event.is_empty() {
        return Ok(None);
    }
    let parcel = WireParcel::decode(&record.event, RECORD_BYTES_MAX)?;
    space.event_in(&parcel).map(Some)
}

fn different<'w>(waiters: impl Iterator<Item = &'w Waiter>) -> Vec<Pattern> {
    let mut patterns: Vec<Pattern> = Vec::new();
    for waiter in waiters {
        if !patterns.iter().any(|known| same(known, &waiter.pattern)) {
            patterns.push(waiter.pattern.clone());
        }
    }
    patterns
}

/// Whether two patterns that were waited for are the same: each was made of its text.
fn same(one: &Pattern, other: &Pattern) -> bool {
    one.to_string() == other.to_string()
}

/// The wanted event when it comes; `None` when the time is over.
async fn next(
    flow: &Arc<StoredFlow>,
    waiting: &mut Waiting<'_>,
    due_unix_ms: u64,
) -> Result<Option<Offered>> {
    let env = &flow.node.space.env;
    let parked = flow.durable().parked(flow);
    let mut late = (due_unix_ms > 0)
        .then(|| env.sleep(Duration::from_millis(due_unix_ms.saturating_sub(env.unix_ms()))));
    let come = std::future::poll_fn(|task| {
        if let Poll::Ready(event) = waiting.from.poll_recv(task) {
            return Poll::Ready(event);
        }
        if let Some(late) = &mut late
            && late.as_mut().poll(task).is_ready()
        {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await;
    let Some(offered) = come.transpose()? else { return Ok(None) };
    // The flow counts again before what counted for it goes.
    drop(parked);
    Ok(Some(offered))
}

fn is_wanted(event: &dyn ErasedEvent, wanted: &Arc<Wanted>) -> Result<bool> {
    isolated("what an event is waited for by", || wanted(&as_dynamic(event)))
}

fn decode(flow: &Arc<StoredFlow>, frame: &[u8]) -> Result<Event> {
    let parcel = WireParcel::decode(frame, RECORD_BYTES_MAX)?;
    Ok(as_dynamic(&*flow.node.space.event_in(&parcel)?))
}
