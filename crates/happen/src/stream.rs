//! Streams: items that a handler emits while it runs, to the one who asked, or from a broadcaster to everyone who
//! listens. Owns the two channels and who waits for whom.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;

use happen_core::{Answer, Error, ErrorKind, EventId, Payload, Result, Value};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::flow::Outcome;
use crate::limits;
use crate::link::{Answered, Away};

/// Where a flow's items go.
#[derive(Clone, Debug)]
pub(crate) struct Sink(mpsc::Sender<Value>);

/// Where a listener's items come from.
pub(crate) type Source = broadcast::Receiver<Value>;

impl Sink {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Value>) {
        let (to, from) = mpsc::channel(limits::STREAM_ITEMS_MAX);
        (Self(to), from)
    }

    pub(crate) async fn emit(&self, item: Value) -> Result<()> {
        self.0.send(item).await.map_err(|_| {
            Error::new(ErrorKind::Closed { what: "the stream, because its reader has gone,".to_owned() })
        })
    }
}

/// The items a handler emits, read at the reader's pace.
///
/// # Cancel safety
///
/// [`Items::next`] loses nothing when it is dropped. Dropping the `Items` asks the handler to stop: its next `emit`
/// fails, and a flow that waits is cancelled.
pub struct Items<T> {
    from: From,
    outcome: Option<Outcome>,
    items: PhantomData<fn() -> T>,
}

enum From {
    Handler { items: mpsc::Receiver<Value>, end: Option<oneshot::Receiver<Outcome>>, event: EventId },
    Away(Box<Away>),
    Broadcast(Source),
    Failed,
}

impl<T: Payload> Items<T> {
    pub(crate) fn from_handler(
        items: mpsc::Receiver<Value>,
        end: Option<oneshot::Receiver<Outcome>>,
        event: EventId,
    ) -> Self {
        Self { from: From::Handler { items, end, event }, outcome: None, items: PhantomData }
    }

    pub(crate) fn ended(items: mpsc::Receiver<Value>, outcome: Outcome, event: EventId) -> Self {
        Self { from: From::Handler { items, end: None, event }, outcome: Some(outcome), items: PhantomData }
    }

    pub(crate) fn from_away(away: Box<Away>) -> Self {
        Self { from: From::Away(away), outcome: None, items: PhantomData }
    }

    pub(crate) fn failed(error: Error) -> Self {
        Self { from: From::Failed, outcome: Some(Err(error)), items: PhantomData }
    }

    pub(crate) fn from_broadcast(source: Source) -> Self {
        Self { from: From::Broadcast(source), outcome: None, items: PhantomData }
    }

    /// The next item; `None` after the last one.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Lagged`] when a listener of a broadcast stream was too slow; it goes on with the oldest kept item.
    /// - [`ErrorKind::OtherReply`] when an item has another type; the value is inside.
    /// - The failure of the handler, once, in the place of a next item.
    pub async fn next(&mut self) -> Option<Result<T>> {
        match &mut self.from {
            From::Handler { items, .. } => match items.recv().await {
                Some(item) => Some(item.take()),
                None => self.failure().await,
            },
            From::Away(away) => {
                if self.outcome.is_none() {
                    match poll_fn(|task| away.poll_next(task)).await {
                        Answered::Item(item) => return Some(item.take()),
                        Answered::End(outcome) => self.outcome = Some(outcome),
                    }
                }
                self.failure().await
            }
            From::Broadcast(source) => match source.recv().await {
                Ok(item) => Some(item.take()),
                Err(broadcast::error::RecvError::Closed) => None,
                Err(broadcast::error::RecvError::Lagged(items)) => {
                    Some(Err(Error::new(ErrorKind::Lagged { items })))
                }
            },
            From::Failed => self.failure().await,
        }
    }

    async fn failure(&mut self) -> Option<Result<T>> {
        self.settle().await;
        match self.outcome.take() {
            Some(Err(error)) => {
                self.outcome = Some(Err(error.duplicate()));
                // A second call finds the stream at its end.
                self.from = From::Broadcast(broadcast::channel(1).1);
                Some(Err(error))
            }
            outcome => {
                self.outcome = outcome;
                None
            }
        }
    }

    async fn settle(&mut self) {
        if self.outcome.is_none()
            && let From::Handler { end: Some(end), event, .. } = &mut self.from
        {
            // Waited for in place: a caller that stops waiting here can come back for the outcome.
            let gone = || Err(Error::new(ErrorKind::Cancelled).at_event(*event));
            self.outcome = Some(end.await.unwrap_or_else(|_| gone()));
        }
    }

    /// Reads the rest of the items without keeping them and gives the handler's final value.
    ///
    /// # Errors
    ///
    /// The failure of the handler, or [`ErrorKind::OtherReply`] when the final value has another type.
    pub async fn finish<V: Answer>(mut self) -> Result<V> {
        if let From::Handler { items, .. } = &mut self.from {
            while items.recv().await.is_some() {}
        }
        if let From::Away(away) = &mut self.from {
            while self.outcome.is_none() {
                if let Answered::End(outcome) = poll_fn(|task| away.poll_next(task)).await {
                    self.outcome = Some(outcome);
                }
            }
        }
        self.settle().await;
        match self.outcome.take() {
            Some(outcome) => V::from_reply(outcome?),
            None => V::from_reply(None),
        }
    }

    /// All items, until the first failure.
    ///
    /// # Errors
    ///
    /// As [`Items::next`].
    pub async fn collect(mut self) -> Result<Vec<T>> {
        let mut all = Vec::new();
        while let Some(item) = self.next().await {
            all.push(item?);
        }
        Ok(all)
    }

    /// The same items in groups of at most `len`, for work that is cheaper in bulk.
    ///
    /// # Errors
    ///
    /// As [`Items::next`]; items read before a failure come first, as a shorter group.
    pub async fn next_chunk(&mut self, len: usize) -> Option<Result<Vec<T>>> {
        let mut chunk = Vec::new();
        while chunk.len() < len.max(1) {
            match self.next().await {
                Some(Ok(item)) => chunk.push(item),
                Some(Err(error)) if chunk.is_empty() => return Some(Err(error)),
                Some(Err(error)) => {
                    self.outcome = Some(Err(error));
                    self.from = From::Failed;
                    break;
                }
                None => break,
            }
        }
        (!chunk.is_empty()).then_some(Ok(chunk))
    }
}

/// The sending end of a broadcast stream.
#[derive(Debug)]
pub struct Outlet<T> {
    to: broadcast::Sender<Value>,
    event: EventId,
    items: PhantomData<fn(T)>,
}

impl<T: Payload> Outlet<T> {
    pub(crate) fn new(to: broadcast::Sender<Value>, event: EventId) -> Self {
        Self { to, event, items: PhantomData }
    }

    /// The id of the event that the listeners got.
    #[must_use]
    pub fn event_id(&self) -> EventId {
        self.event
    }

    /// The number of listeners that still read.
    #[must_use]
    pub fn listeners(&self) -> usize {
        self.to.receiver_count()
    }

    /// Hands one item to every listener. Never waits: a listener that is more than
    /// [`STREAM_BROADCAST_ITEMS_MAX`](limits::STREAM_BROADCAST_ITEMS_MAX) items behind misses the oldest and is told so.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] when no listener is left.
    pub fn emit(&self, item: T) -> Result<usize> {
        crate::pure::check("emit an item")?;
        let closed =
            || ErrorKind::Closed { what: "the stream, because its last listener has gone,".to_owned() };
        self.to.send(Value::new(item)).map_err(|_| Error::new(closed()).at_event(self.event))
    }
}

impl<T> fmt::Debug for Items<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.from {
            From::Handler { .. } => "items of a handler",
            From::Away(_) => "items of a handler beyond the link",
            From::Broadcast(_) => "items of a broadcast",
            From::Failed => "items that failed",
        })
    }
}
