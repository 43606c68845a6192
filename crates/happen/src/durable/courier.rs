//! Handing over what waits for a node of another process, in its order, many events at a time, until the node has them all.
//! Owns when something is handed over again and what is no use; does not know how the node takes it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use happen_core::codec::{
    self, Handover, StepOutcome, WireError, WireParcel, WireRecord, WireReply, WireStep,
};
use happen_core::env::{BoxFuture, Env};
use happen_core::event::Purpose;
use happen_core::limits::{DOCUMENT_BYTES_MAX, RECORD_BYTES_MAX};
use happen_core::store::{Batch, Content, Past, Position, Read, Record, Replaced, Select, Start, Write};
use happen_core::{ErasedEvent, Error, ErrorKind, EventId, Result};

use super::keys::REFUSED;
use super::outbox::{Moved, outbox_tag};
use super::{Durable, StoredFlow, Whereto};
use crate::flow::Outcome;
use crate::keys::escaped;
use crate::limits;
use crate::link::Away;
use crate::space::SpaceInner;

/// Carries what waits for a node until nothing does.
pub(super) fn carry(space: &Arc<SpaceInner>, node: Arc<str>) {
    let courier = Courier {
        env: Arc::clone(&space.env),
        space: Arc::downgrade(space),
        node,
        window: limits::HANDOVER_WINDOW_MAX,
    };
    space.env.spawn(Box::pin(courier.run()));
}

struct Courier {
    /// Loosely: what waits does not keep a space alive.
    space: Weak<SpaceInner>,
    env: Arc<dyn Env>,
    node: Arc<str>,
    /// As many events leave before the first of them is taken.
    window: usize,
}

/// An event that has left.
struct Left {
    position: Position,
    bytes: i64,
    at_unix_ms: u64,
    away: Result<Away>,
}

/// What the other side made of an event.
enum Judged {
    Taken,
    /// It never will be.
    Refused(Error),
    /// It, or the way to it, is not ready.
    NotNow(Error),
}

impl Courier {
    async fn run(mut self) {
        loop {
            let failures = {
                let Some(space) = self.space.upgrade() else { return };
                let Some(durable) = &space.durable else { return };
                if !space.is_running() {
                    return durable.outboxes.leaves(&self.node);
                }
                match self.carry_some(&space, durable).await {
                    Ok(true) => continue,
                    Ok(false) if durable.outboxes.rests(&self.node) => return,
                    Ok(false) => continue,
                    Err(_) if !space.is_running() => return durable.outboxes.leaves(&self.node),
                    Err(error) => {
                        tracing::debug!(
                            target: "happen", node = &*self.node, code = error.code(),
                            "what waits for a node elsewhere is handed over later: {error}"
                        );
                        durable.outboxes.has_failed(&self.node, error)
                    }
                }
            };
            let shift = failures.saturating_sub(1).min(16);
            let wait = (limits::HANDOVER_AGAIN_MS << shift).min(limits::HANDOVER_AGAIN_MS_MAX);
            self.env.sleep(Duration::from_millis(wait)).await;
        }
    }

    /// Hands over what waits first. False when nothing does.
    ///
    /// # Errors
    ///
    /// Why nothing could be handed over now.
    async fn carry_some(&mut self, space: &Arc<SpaceInner>, durable: &Arc<Durable>) -> Result<bool> {
        let after = durable.outboxes.begin(&self.node);
        let select = Select::tag(outbox_tag(&self.node));
        let read = Read::forward(select).start(Start::Position(after)).at_most(self.window);
        let page = durable.store.read(read).await?;
        if page.records.is_empty() {
            return Ok(false);
        }
        let (mut left, mut failure) = self.send(space, durable, &page.records);
        let mut moved = Moved { after, events: 0, bytes: 0, since_unix_ms: 0 };
        let mut refused = None;
        let mut late = self.silence();
        while let Some(Left { position, bytes, at_unix_ms, away }) = left.pop_front() {
            let judged = match away {
                Ok(away) => heard_in_time(away, &mut late).await,
                Err(error) => Judged::Refused(error),
            };
            match judged {
                Judged::Taken => {}
                Judged::Refused(error) => refused = Some((position, error)),
                Judged::NotNow(error) => {
                    moved.since_unix_ms = at_unix_ms;
                    failure = Some(error);
                    break;
                }
            }
            moved.after = position;
            moved.events += 1;
            moved.bytes += bytes;
            if refused.is_some() {
                break;
            }
        }
        if moved.events == 0 {
            return Err(failure.unwrap_or_else(|| Error::new(ErrorKind::Cancelled)));
        }
        if moved.since_unix_ms == 0 {
            let next = page.records.iter().find(|record| record.position > moved.after);
            moved.since_unix_ms = next.map_or_else(|| space.now_unix_ms(), |next| next.at_unix_ms);
        }
        // What left behind one that is refused comes back; one at a time finds the next such one with less in vain.
        self.window = match refused {
            Some(_) => 1,
            None => (self.window * 2).min(limits::HANDOVER_WINDOW_MAX),
        };
        let refused = refused.and_then(|(position, error)| {
            page.records.iter().find(|record| record.position == position).map(|record| (record, error))
        });
        self.conclude(space, durable, &moved, refused).await?;
        Ok(true)
    }

    /// Has events leave, one behind the other, as far as they can.
    fn send(
        &self,
        space: &Arc<SpaceInner>,
        durable: &Durable,
        records: &[Record],
    ) -> (VecDeque<Left>, Option<Error>) {
        let mut left = VecDeque::with_capacity(records.len());
        let (mut bytes_left, mut before) = (0, 0);
        for record in records {
            if bytes_left >= limits::HANDOVER_WINDOW_BYTES_MAX {
                break;
            }
            let at = record.position.number();
            let handover = Handover { space: durable.identity(), at, after: before };
            let mut bytes = 0;
            let sent = WireRecord::decode(&record.bytes, RECORD_BYTES_MAX).and_then(|record| {
                bytes = record.event.len();
                let parcel = WireParcel::decode(&record.event, RECORD_BYTES_MAX)?;
                space.hand_over(&self.node, parcel, handover)
            });
            let away = match sent {
                Ok(away) => Ok(away),
                // It would be the same the next time.
                Err(error) if matches!(error.kind(), ErrorKind::Oversized { .. }) => Err(error),
                Err(error) => return (left, Some(error)),
            };
            bytes_left += bytes;
            before = at;
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            left.push_back(Left { position: record.position, bytes, at_unix_ms: record.at_unix_ms, away });
        }
        (left, None)
    }

    /// Commits how far the node is, and what it will never take.
    async fn conclude(
        &self,
        space: &Arc<SpaceInner>,
        durable: &Arc<Durable>,
        moved: &Moved,
        refused: Option<(&Record, Error)>,
    ) -> Result<()> {
        let mut batch =
            Batch { documents: vec![durable.outboxes.write(&self.node, moved.after)], ..Batch::default() };
        let mut buried = None;
        if let Some((record, error)) = refused {
            let record = WireRecord::decode(&record.bytes, RECORD_BYTES_MAX)?;
            let parcel = WireParcel::decode(&record.event, RECORD_BYTES_MAX)?;
            let event = space.event_in(&parcel)?;
            // Who asked is told by the node itself.
            if event.envelope().purpose != Purpose::Ask {
                batch.documents.push(self.refusal(durable, &*event, &record.event, &error).await?);
                buried = Some((event, error));
            }
        }
        if let Err(error) = durable.commits.commit(batch).await {
            // It may be committed all the same. What is handed over once more is known there.
            durable.look_up_outbox(&self.node).await?;
            return Err(error);
        }
        durable.outboxes.has_moved(&self.node, moved);
        if let Some((event, error)) = buried {
            tracing::warn!(
                target: "happen", node = &*self.node, code = error.code(),
                "a node elsewhere refused an event that was kept for it: {error}"
            );
            space.bury(&*event, &self.node, &error);
        }
        Ok(())
    }

    /// The document of an event that its node never takes.
    async fn refusal(
        &self,
        durable: &Durable,
        event: &dyn ErasedEvent,
        frame: &[u8],
        error: &Error,
    ) -> Result<Write> {
        let id = event.envelope().id;
        let mut reply = Vec::new();
        let told = WireReply::new(id, codec::Outcome::Error(WireError::of(error)));
        told.encode_into(&mut reply, RECORD_BYTES_MAX)?;
        let step = WireStep::new(id, &self.node, "", "", StepOutcome::Failed(reply.into()));
        let record = WireRecord { event: frame.into(), step: Some(step), ..WireRecord::default() };
        let mut bytes = Vec::new();
        // An event that fills a document stands in the log alone.
        if record.encode_into(&mut bytes, DOCUMENT_BYTES_MAX).is_err() {
            WireRecord { event: (&[][..]).into(), ..record }.encode_into(&mut bytes, DOCUMENT_BYTES_MAX)?;
        }
        let key = format!("{REFUSED}{}/{id}", escaped(&self.node)).into();
        let revision = durable.revision_of(&key).await? + 1;
        let content = Some(Content { name: "refused".into(), version: 1, bytes: bytes.into() });
        Ok(Write { key, revision, content, past: Past::Dropped, replaced: Replaced::Kept })
    }

    fn silence(&self) -> BoxFuture<'static, ()> {
        self.env.sleep(Duration::from_millis(limits::HANDOVER_ANSWER_MS_MAX))
    }
}

/// What the other side makes of an event, when it says so in time.
async fn heard_in_time(away: Away, late: &mut BoxFuture<'static, ()>) -> Judged {
    match in_time(away, late).await {
        Some(Ok(Ok(_))) => Judged::Taken,
        Some(Ok(Err(error))) => judge(error),
        // Too large for the other side, which could not read it.
        Some(Err(error)) if matches!(error.kind(), ErrorKind::Oversized { .. }) => Judged::Refused(error),
        Some(Err(error)) => Judged::NotNow(error),
        None => Judged::NotNow(silent()),
    }
}

async fn in_time(away: Away, late: &mut BoxFuture<'static, ()>) -> Option<Result<Outcome>> {
    let mut heard = pin!(away.heard());
    poll_fn(|task| {
        if let Poll::Ready(heard) = heard.as_mut().poll(task) {
            return Poll::Ready(Some(heard));
        }
        late.as_mut().poll(task).map(|()| None)
    })
    .await
}

/// Whether an error of the other side is one that passes.
fn judge(error: Error) -> Judged {
    match error.kind() {
        ErrorKind::Busy { .. }
        | ErrorKind::NotStarted
        | ErrorKind::Closed { .. }
        | ErrorKind::Cancelled
        | ErrorKind::Io { .. }
        | ErrorKind::Conflict { .. }
        | ErrorKind::NoSuchNode { .. } => Judged::NotNow(error),
        _ => Judged::Refused(error),
    }
}

/// Waits for the outcome of a question that was committed and is kept until its node has taken it in, however often either
/// side ends meanwhile: the node that remembers it tells the same outcome again.
///
/// # Errors
///
/// What the node says, and [`ErrorKind::Io`] when it knows nothing of a question that it had taken.
pub(super) async fn answer(flow: &Arc<StoredFlow>, event: EventId, node: &Arc<str>) -> Outcome {
    let (space, durable) = (&flow.node.space, flow.durable());
    let mut failures = 0u32;
    loop {
        let moved = durable.outboxes.moved(node);
        let mut moved = pin!(moved.notified());
        // Listens from here on, so that nothing comes between the look and the waiting.
        moved.as_mut().enable();
        let is_there = durable.outboxes.is_empty_for(node);
        // A question that waits here is asked when it has its turn.
        let error = match is_there || failures > 0 {
            true => match ask_once(space, durable, event, node).await {
                Ok(outcome) => return outcome,
                Err(error) => error,
            },
            false => Error::new(ErrorKind::Cancelled),
        };
        if is_there && matches!(error.kind(), ErrorKind::NotFound { .. }) {
            let what = format!("asking node `{node}`, which does not know the question any more,");
            return Err(Error::new(ErrorKind::Io { what }));
        }
        if space.has_ended() || durable.is_stopping() {
            return Err(Error::new(ErrorKind::Cancelled));
        }
        let shift = failures.min(16);
        failures += 1;
        let wait = (limits::HANDOVER_AGAIN_MS << shift).min(limits::HANDOVER_AGAIN_MS_MAX);
        let mut sleep = space.env.sleep(Duration::from_millis(wait));
        poll_fn(|task| {
            if moved.as_mut().poll(task).is_ready() {
                return Poll::Ready(());
            }
            sleep.as_mut().poll(task)
        })
        .await;
    }
}

/// Asks once for the outcome of a question.
///
/// # Errors
///
/// When nothing was heard of it.
async fn ask_once(
    space: &Arc<SpaceInner>,
    durable: &Arc<Durable>,
    event: EventId,
    node: &Arc<str>,
) -> Result<Outcome> {
    let Some((_, framed, _)) = durable.event_of(space, event, true).await? else {
        let what = format!("question {event}, which is in the log no more");
        return Err(Error::new(ErrorKind::NotFound { what }));
    };
    let parcel = WireParcel::decode(&framed.frame, RECORD_BYTES_MAX)?;
    let handover = Handover { space: durable.identity(), at: 0, after: 0 };
    space.hand_over(node, parcel, handover)?.heard().await
}

impl Whereto {
    /// The node that an event waits for.
    pub(super) fn waits_for(&self) -> Option<&Arc<str>> {
        match self {
            Self::Waits(node) => Some(node),
            _ => None,
        }
    }
}

#[cold]
fn silent() -> Error {
    Error::new(ErrorKind::TimedOut { after: Duration::from_millis(limits::HANDOVER_ANSWER_MS_MAX) })
}
