//! The points at which a step waits, each of which is committed: questions to other nodes, effects outside, times. Owns
//! what a step that is run again finds there; does not know how the commit is built.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use happen_core::codec::{PointKind, StepOutcome, WireRecord};
use happen_core::content;
use happen_core::env::BoxFuture;
use happen_core::hash::digest;
use happen_core::limits::RECORD_BYTES_MAX;
use happen_core::store::{Bytes, Order, Position, Read, Select, Start, Tag};
use happen_core::{ErasedEvent, Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::accept::recipients;
use super::flow::StoredFlow;
use super::lane::Place;
use super::owners::inbox_tag;
use super::record::{decode_outcome, encode_outcome, event_record};
use super::stage::{Point, Stage, Whereto};
use super::whole::Whole;
use super::{Durable, courier};
use crate::config::Delivery;
use crate::dispatch::{self, Delivered, Joined, Reply, Want};
use crate::flow::Outcome;
use crate::limits;
use crate::link::RESERVED;
use crate::route::Went;
use crate::send::Sender;
use crate::space::SpaceInner;

/// Asks a node from a step, and waits for the answer. The question is committed before it leaves; a step that is run
/// again gets the answer that there was.
pub(crate) async fn ask(
    stage: Arc<Stage>,
    ordinal: u32,
    event: Arc<dyn ErasedEvent>,
    to: Whereto,
    within: Option<Duration>,
) -> Outcome {
    let question = digest_of(&*event, &to)?;
    let flow = Arc::clone(&stage.flow);
    let known = stage.point(PointKind::Ask, ordinal, "")?;
    let point = match &known {
        None => Point {
            ordinal,
            kind: PointKind::Ask,
            name: to.name().to_owned(),
            event: Some(event.envelope().id),
            due_unix_ms: event.envelope().deadline_unix_ms,
            digest: question,
            result: None,
        },
        Some(known) => {
            if known.kind != PointKind::Ask || known.digest != question {
                return Err(diverged(&stage, known, &to));
            }
            if let Some(result) = &known.result {
                return decode_outcome(result);
            }
            known.clone()
        }
    };
    let answering = Answering { stage: &stage, point, answered: false };
    let (to_us, from) = oneshot::channel();
    // A question that was committed before the process ended may be answered already.
    let asked = known.is_some() && attach_to_question(&flow, &answering.point, &to, to_us).await?;
    let from = if asked {
        from
    } else {
        let (to_us, from) = oneshot::channel();
        let sent = send_question(&stage, &answering.point, &event, &to, to_us).await;
        stage.arrived(ordinal);
        sent?;
        from
    };
    let place = flow.durable().place_of(&flow);
    let _given = place.as_ref().map(Given::give);
    let _at_point = flow.durable().at_point();
    let outcome = in_time(&flow, from, within).await;
    answering.answered(outcome)
}

/// Waits for an answer, but not longer than the sender wants to.
async fn in_time(
    flow: &Arc<StoredFlow>,
    mut from: oneshot::Receiver<Outcome>,
    within: Option<Duration>,
) -> Outcome {
    let mut late = within.map(|time| (time, flow.node.space.env.sleep(time)));
    poll_fn(|task| {
        if let Poll::Ready(outcome) = Pin::new(&mut from).poll(task) {
            return Poll::Ready(outcome.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled))));
        }
        if let Some((after, sleep)) = &mut late
            && sleep.as_mut().poll(task).is_ready()
        {
            return Poll::Ready(Err(Error::new(ErrorKind::TimedOut { after: *after })));
        }
        Poll::Pending
    })
    .await
}

/// Commits a question and lets it leave. Once it is on its way to the store it leaves whatever becomes of who asks: a
/// question that is stored and goes nowhere would be found by the next life only.
fn send_question(
    stage: &Arc<Stage>,
    point: &Point,
    event: &Arc<dyn ErasedEvent>,
    to: &Whereto,
    to_us: oneshot::Sender<Outcome>,
) -> Whole<Result<()>> {
    let (stage, point, event, to) = (Arc::clone(stage), point.clone(), Arc::clone(event), to.clone());
    let env = Arc::clone(&stage.flow.node.space.env);
    let sending = async move { commit_question(&stage, point, &event, &to, to_us).await };
    Whole::new(&env, Box::pin(sending))
}

async fn commit_question(
    stage: &Arc<Stage>,
    point: Point,
    event: &Arc<dyn ErasedEvent>,
    to: &Whereto,
    to_us: oneshot::Sender<Outcome>,
) -> Result<()> {
    let flow = &stage.flow;
    let space = &flow.node.space;
    stage.note(point)?;
    let durable_target = matches!(to, Whereto::Node(node) if node.is_durable());
    flow.durable().register(to).await?;
    let mut to_us = Some(to_us);
    let done = flow
        .commit_progress(stage, |batch, done| {
            let framed = flow.frame_effect(&**event)?;
            let begun = recipients(space, event, to)?;
            let mut record = event_record(space, &**event, &framed, &begun)?;
            flow.durable().inboxes(&**event, &framed, to).add_to(&mut record, &mut batch.documents);
            batch.records.push(record);
            done.keeps(to, &framed);
            for begun in &begun {
                batch.documents.push(begun.first_write()?);
            }
            match (&begun[..], to_us.take()) {
                ([one], Some(to_us)) => drop(one.tell(Reply::One(to_us))),
                ([], to_here) => to_us = to_here,
                (many, Some(to_us)) => {
                    let joined = Joined::new(many.len(), Reply::One(to_us));
                    for (index, one) in many.iter().enumerate() {
                        drop(one.tell(Reply::Part(Arc::clone(&joined), index)));
                    }
                }
                (_, None) => {}
            }
            done.begun = begun;
            Ok(())
        })
        .await?;
    flow.stored();
    flow.durable().waiters.offer(space, event);
    flow.durable().release(space, done);
    match to_us {
        Some(to_us) if !durable_target => ask_elsewhere(flow, event, to, to_us),
        _ => {}
    }
    Ok(())
}

/// Asks a node that remembers nothing: one here, or one beyond the link.
fn ask_elsewhere(
    flow: &Arc<StoredFlow>,
    event: &Arc<dyn ErasedEvent>,
    to: &Whereto,
    to_us: oneshot::Sender<Outcome>,
) {
    let space = &flow.node.space;
    match to {
        Whereto::Node(node) => {
            let mark = space.remember_sent(event.envelope(), node.key);
            let mut outcome = Ok(None);
            let delivered =
                dispatch::deliver(node, &mut space.way(), &**event, Want::plain(true), &mut outcome);
            match delivered {
                Err(error) => {
                    space.settle(mark, crate::web::failed(error.code()));
                    drop(to_us.send(Err(error.at_event(event.envelope().id).at_node(&node.name))));
                }
                Ok(Delivered::Now | Delivered::Later(None)) => {
                    space.settle(mark, dispatch::what(&outcome));
                    drop(to_us.send(outcome));
                }
                Ok(Delivered::Later(Some(from))) => {
                    space.env.spawn(Box::pin(async move {
                        if let Ok(outcome) = from.await {
                            drop(to_us.send(outcome));
                        }
                    }));
                }
            }
        }
        Whereto::Waits(name) => answer_from_beyond(flow, event.envelope().id, name, to_us),
        // The question is in the node's inbox, and the answer will be in the log.
        Whereto::Kept(name) => answer_from_log(flow, event.envelope().id, name, to_us),
        Whereto::Away(name) => {
            let (sender, want) = (Sender::Space(space), (Want::plain(true), true, None));
            let mut outcome = Ok(None);
            match space.send_on(sender, name, &**event, want, &mut outcome) {
                Ok(Went::Away(Some(away))) => {
                    space.env.spawn(Box::pin(async move { drop(to_us.send(away.outcome().await)) }));
                }
                Ok(Went::Here(Delivered::Later(Some(from)))) => space.env.spawn(Box::pin(async move {
                    if let Ok(outcome) = from.await {
                        drop(to_us.send(outcome));
                    }
                })),
                Ok(Went::Here(_)) => drop(to_us.send(outcome)),
                Ok(Went::Away(None)) => {}
                Err(error) => drop(to_us.send(Err(error))),
            }
        }
        Whereto::Everyone => {}
    }
}

/// Waits for the answer to a question that was committed by an earlier run of the step. False when nobody got it.
async fn attach_to_question(
    flow: &Arc<StoredFlow>,
    point: &Point,
    to: &Whereto,
    to_us: oneshot::Sender<Outcome>,
) -> Result<bool> {
    match (point.event, to) {
        (Some(event), Whereto::Node(node)) if node.is_durable() => {
            attach(flow.durable(), event, &node.name, to_us).await
        }
        // When it was asked the node may have been unknown to the log.
        (Some(event), Whereto::Kept(name)) if was_kept(flow.durable(), event, name).await? => {
            answer_from_log(flow, event, name, to_us);
            Ok(true)
        }
        (Some(event), Whereto::Waits(name)) => {
            answer_from_beyond(flow, event, name, to_us);
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Whether an event was kept for a node or came to it: then the log tells its outcome, now or later.
async fn was_kept(durable: &Durable, event: happen_core::EventId, node: &str) -> Result<bool> {
    let mut start = Start::Edge;
    loop {
        let read = Read::forward(Select::tag(Tag::Event(event))).start(start);
        let page = durable.store.read(read).await?;
        for record in &page.records {
            let told = WireRecord::decode(&record.bytes, RECORD_BYTES_MAX)?;
            if record.tags.contains(&inbox_tag(node)) || !begun_at(&told, node).is_empty() {
                return Ok(true);
            }
        }
        match page.next {
            Some(next) => start = Start::Position(next),
            None => return Ok(false),
        }
    }
}

/// Waits for the outcome of an event at a durable node of another process, which the log tells.
fn answer_from_log(
    flow: &Arc<StoredFlow>,
    event: happen_core::EventId,
    node: &Arc<str>,
    to_us: oneshot::Sender<Outcome>,
) {
    let (of, at) = (Arc::clone(flow), Arc::clone(node));
    let answered = async move { outcome_in_log(of.durable(), event, &at).await };
    tell_answer(flow, event, node, to_us, Box::pin(answered));
}

/// Waits for the outcome of an event that is kept here until a node beyond the link has taken it in.
fn answer_from_beyond(
    flow: &Arc<StoredFlow>,
    event: happen_core::EventId,
    node: &Arc<str>,
    to_us: oneshot::Sender<Outcome>,
) {
    let (of, at) = (Arc::clone(flow), Arc::clone(node));
    let answered = async move { Ok(courier::answer(&of, event, &at).await) };
    tell_answer(flow, event, node, to_us, Box::pin(answered));
}

/// Tells the answer to who asked, unless that one goes before it is there.
fn tell_answer(
    flow: &Arc<StoredFlow>,
    event: happen_core::EventId,
    node: &Arc<str>,
    to_us: oneshot::Sender<Outcome>,
    mut answered: BoxFuture<'static, Result<Outcome>>,
) {
    let node = Arc::clone(node);
    flow.node.space.env.spawn(Box::pin(async move {
        let mut to_us = to_us;
        let outcome = poll_fn(|task| {
            // Whoever asked may go meanwhile.
            if to_us.poll_closed(task).is_ready() {
                return Poll::Ready(None);
            }
            answered.as_mut().poll(task).map(Some)
        })
        .await;
        if let Some(outcome) = outcome {
            drop(to_us.send(outcome.unwrap_or_else(|error| Err(error.at_event(event).at_node(&node)))));
        }
    }));
}

/// The joined outcome of all flows that an event began at a node, as soon as the log has it.
async fn outcome_in_log(durable: &Durable, event: happen_core::EventId, node: &str) -> Result<Outcome> {
    let mut watch = durable.store.watch(Select::tag(Tag::Event(event)), Position::START).await?;
    let (to_us, mut from) = oneshot::channel();
    let mut asks = Some(to_us);
    let mut parts: BTreeMap<String, Reply> = BTreeMap::new();
    loop {
        for record in watch.next().await? {
            let record = WireRecord::decode(&record.bytes, RECORD_BYTES_MAX)?;
            let here = begun_at(&record, node);
            if !here.is_empty()
                && let Some(to_us) = asks.take()
            {
                let joined = Joined::new(here.len(), Reply::One(to_us));
                let part = |(index, registration)| (registration, Reply::Part(Arc::clone(&joined), index));
                parts = here.into_iter().enumerate().map(part).collect();
            }
            let Some(step) = record.step.filter(|step| step.flow.node == node) else { continue };
            let outcome = match step.outcome {
                StepOutcome::Done(reply) | StepOutcome::Failed(reply) => decode_outcome(&reply),
                StepOutcome::End => Ok(None),
                _ => continue,
            };
            // The node did not take it.
            if step.flow.registration.is_empty() {
                return Ok(outcome);
            }
            if let Some(part) = parts.remove(&*step.flow.registration) {
                part.send(outcome);
            }
        }
        if let Ok(outcome) = from.try_recv() {
            return Ok(outcome);
        }
    }
}

/// Waits for the outcome of an event at a durable node: of the flows that are under way, or as the log has it. False when
/// the log does not have the event there.
pub(super) async fn attach(
    durable: &Durable,
    event: happen_core::EventId,
    node: &str,
    to_us: oneshot::Sender<Outcome>,
) -> Result<bool> {
    let Some(accepted) = accepted_flows(durable, event, node).await? else { return Ok(false) };
    let joined = Joined::new(accepted.len(), Reply::One(to_us));
    for (index, registration) in accepted.iter().enumerate() {
        let part = Reply::Part(Arc::clone(&joined), index);
        let live = durable
            .flows_of(event)
            .into_iter()
            .find(|live| *live.node.name == *node && *live.registration == **registration);
        let part = match live {
            Some(live) => live.tell(part),
            None => Some(part),
        };
        if let Some(part) = part {
            part.send(outcome_of(durable, event, node, registration).await?);
        }
    }
    Ok(true)
}

/// The flows that began with an event at a node; `None` when the log does not have the event.
async fn accepted_flows(
    durable: &Durable,
    event: happen_core::EventId,
    node: &str,
) -> Result<Option<Vec<String>>> {
    let mut start = Start::Edge;
    loop {
        let page = durable.store.read(Read::forward(Select::tag(Tag::Event(event))).start(start)).await?;
        for record in &page.records {
            let begun = begun_at(&WireRecord::decode(&record.bytes, RECORD_BYTES_MAX)?, node);
            if !begun.is_empty() {
                return Ok(Some(begun));
            }
        }
        match page.next {
            // Before it came to the node it may have been kept for it by another process.
            Some(next) => start = Start::Position(next),
            None => return Ok(None),
        }
    }
}

/// The registrations at a node whose flows begin with a record. One that stored its event itself began with that commit.
fn begun_at(record: &WireRecord<'_>, node: &str) -> Vec<String> {
    let alone = record.step.as_ref().filter(|_| !record.event.is_empty() && record.accepted.is_empty());
    let alone = alone.map(|step| &step.flow).filter(|flow| !flow.registration.is_empty());
    let here = record.accepted.iter().chain(alone).filter(|flow| flow.node == node);
    here.map(|flow| flow.registration.clone().into_owned()).collect()
}

/// What a flow that is not under way any more ended with.
async fn outcome_of(
    durable: &Durable,
    event: happen_core::EventId,
    node: &str,
    registration: &str,
) -> Result<Outcome> {
    let mut start = Start::Edge;
    loop {
        let read = Read { order: Order::Backward, ..Read::forward(Select::tag(Tag::Event(event))) };
        let page = durable.store.read(read.start(start)).await?;
        for record in &page.records {
            let record = WireRecord::decode(&record.bytes, RECORD_BYTES_MAX)?;
            let Some(step) = record.step else { continue };
            if step.flow.node != node || step.flow.registration != registration {
                continue;
            }
            match step.outcome {
                StepOutcome::Done(reply) | StepOutcome::Failed(reply) => return Ok(decode_outcome(&reply)),
                StepOutcome::End => return Ok(Ok(None)),
                _ => {}
            }
        }
        match page.next {
            Some(next) => start = Start::Position(next),
            None => {
                let what = format!("the flow `{registration}` of node `{node}`, whose record is gone,");
                return Ok(Err(Error::new(ErrorKind::Closed { what }).at_event(event)));
            }
        }
    }
}

/// A question that waits for its answer. Dropped without one, it counts as given up: a later run of the step gives it up
/// too.
struct Answering<'s> {
    stage: &'s Stage,
    point: Point,
    answered: bool,
}

impl Answering<'_> {
    fn answered(mut self, outcome: Outcome) -> Outcome {
        self.answered = true;
        self.note(&outcome)?;
        outcome
    }

    fn note(&self, outcome: &Outcome) -> Result<()> {
        let result: Bytes = encode_outcome(&self.stage.flow, outcome)?.into();
        self.stage.note(Point { result: Some(result), ..self.point.clone() })
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        if !self.answered {
            // A step that has ended takes nothing more, and needs nothing more.
            drop(self.note(&Err(Error::new(ErrorKind::Cancelled))));
        }
    }
}

/// A place that a flow has given to others while it waits.
pub(super) struct Given<'p>(&'p Arc<Place>);

impl<'p> Given<'p> {
    pub(super) fn give(place: &'p Arc<Place>) -> Self {
        place.release();
        Self(place)
    }
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        self.0.retake();
    }
}

/// Does something outside once: a step that is run again gets the value that there was.
///
/// # Errors
///
/// What the work gives, which is not remembered, and when the value cannot be kept.
pub(crate) async fn once<T, F>(stage: Arc<Stage>, name: String, work: impl FnOnce(String) -> F) -> Result<T>
where
    T: Serialize + DeserializeOwned,
    F: Future<Output = Result<T>>,
{
    let ordinal = stage.ordinal();
    if let Some(known) = stage.point(PointKind::Once, ordinal, &name)?
        && let Some(result) = &known.result
    {
        return content::decode(result, &name);
    }
    let value = {
        let _at_point = stage.flow.durable().at_point();
        work(stage.outside_key(&name)).await?
    };
    let mut result = Vec::new();
    content::encode_into(&value, &name, &mut result)?;
    let point = Point {
        ordinal,
        kind: PointKind::Once,
        name,
        event: None,
        due_unix_ms: 0,
        digest: 0,
        result: Some(result.into()),
    };
    stage.note(point)?;
    stage.flow.commit_progress(&stage, |_, _| Ok(())).await?;
    stage.flow.stored();
    Ok(value)
}

/// Waits for a time, of which what has passed already counts when the step is run again.
pub(crate) async fn sleep(stage: Arc<Stage>, time: Duration) -> Result<()> {
    let ordinal = stage.ordinal();
    let flow = Arc::clone(&stage.flow);
    let env = &flow.node.space.env;
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if millis < limits::SLEEP_REMEMBERED_MS {
        env.sleep(time).await;
        return Ok(());
    }
    let due_unix_ms = match stage.point(PointKind::Sleep, ordinal, "")? {
        Some(known) if known.kind == PointKind::Sleep => known.due_unix_ms,
        Some(known) => return Err(diverged_to(&stage, &known, "slept")),
        None => {
            let due_unix_ms = env.unix_ms().saturating_add(millis);
            let point = Point {
                ordinal,
                kind: PointKind::Sleep,
                name: String::new(),
                event: None,
                due_unix_ms,
                digest: 0,
                result: Some(Bytes::from([])),
            };
            stage.note(point)?;
            flow.commit_progress(&stage, |_, _| Ok(())).await?;
            flow.stored();
            due_unix_ms
        }
    };
    let left = due_unix_ms.saturating_sub(env.unix_ms());
    if left > 0 {
        let _parked = flow.durable().parked(&flow);
        env.sleep(Duration::from_millis(left)).await;
    }
    Ok(())
}

impl Whereto {
    /// The id of the node; empty for everyone.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Node(node) => &node.name,
            Self::Kept(name) | Self::Away(name) | Self::Waits(name) => name,
            Self::Everyone => "",
        }
    }

    /// Where a node may be that is not here. Asked once for each event: what its commit did for it and what is done after
    /// the commit have to agree, whatever is heard of the node meanwhile. How surely it arrives beyond the link is up to
    /// who sends it.
    pub(crate) fn elsewhere(space: &Arc<SpaceInner>, delivery: Delivery, node: &str) -> Option<Self> {
        if space.is_remembered_elsewhere(node) {
            return Some(Self::Kept(node.into()));
        }
        if !space.may_be_away(node) {
            return None;
        }
        // The others on a shared log take what waits from there, nothing waits for what nobody can have, and which of those
        // that share their work gets it is decided when it leaves.
        let waits = space.durable.as_ref().is_some_and(|durable| !durable.is_shared())
            && delivery != Delivery::AtMostOnce
            && !node.starts_with(RESERVED)
            && !space.is_chosen(node);
        Some(if waits { Self::Waits(node.into()) } else { Self::Away(node.into()) })
    }
}

/// What a question is, whenever it is asked.
fn digest_of(event: &dyn ErasedEvent, to: &Whereto) -> Result<u64> {
    let mut bytes = Vec::new();
    for single in (0..event.len()).filter_map(|index| event.single(index)) {
        single.payload().encode(&mut bytes)?;
    }
    Ok(digest(&[to.name().as_bytes(), event.envelope().event_type.as_str().as_bytes(), &bytes]))
}

#[cold]
fn diverged(stage: &Stage, known: &Point, to: &Whereto) -> Error {
    diverged_to(stage, known, &format!("asked `{}`", to.name()))
}

#[cold]
pub(super) fn diverged_to(stage: &Stage, known: &Point, now: &str) -> Error {
    let before = match known.kind {
        PointKind::Ask => format!("had asked `{}` something else", known.name),
        PointKind::Sleep => "had slept".to_owned(),
        PointKind::Wait => format!("had waited for `{}`", known.name),
        _ => format!("had done `{}` once", known.name),
    };
    let step = stage.flow.current_name();
    let what = format!("step `{step}` {now} as its effect {}, where it {before}", known.ordinal);
    Error::new(ErrorKind::Diverged { what })
}
