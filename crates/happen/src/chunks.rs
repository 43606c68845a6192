//! A batch sent in parts, one after the other, with the reply to each. Owns how far the sender is.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

use happen_core::{Answer, Payload, Result};

use crate::send::{Asking, Reply, Sending};

/// A batch on its way in chunks; made by [`Sending::chunks`]. The next chunk leaves when its turn is asked
/// for, so a slow reader slows the sender down.
///
/// # Cancel safety
///
/// [`Chunks::next`] loses nothing when it is dropped: the next call goes on waiting for the same reply.
/// Dropping the `Chunks` asks the flow of the chunk under way to stop, and the rest is not sent.
#[must_use = "nothing is sent before `.next()`"]
pub struct Chunks<'s, T, R> {
    rest: VecDeque<(Range<usize>, Sending<'s, T>)>,
    current: Option<(Range<usize>, Asking<'s, T, R>)>,
    len: usize,
}

/// What became of one chunk.
#[derive(Debug)]
#[non_exhaustive]
pub struct Chunk<R> {
    /// Which of the batch's events it had, counted from 0.
    pub events: Range<usize>,
    /// The events of the whole batch.
    pub len: usize,
    /// The reply. A failed chunk does not keep the next one from being sent.
    pub reply: Result<Reply<R>>,
}

impl<'s, T: Payload, R: Answer> Chunks<'s, T, R> {
    pub(crate) fn new(rest: VecDeque<(Range<usize>, Sending<'s, T>)>, len: usize) -> Self {
        Self { rest, current: None, len }
    }

    /// Sends the next chunk and waits for its reply; `None` after the last one.
    pub async fn next(&mut self) -> Option<Chunk<R>> {
        if self.current.is_none() {
            let (events, sending) = self.rest.pop_front()?;
            self.current = Some((events, sending.reply()));
        }
        let (_, asking) = self.current.as_mut()?;
        // Waited for in place, so that a call that is dropped here leaves the reply to the next one.
        let reply = asking.await;
        let (events, _) = self.current.take()?;
        Some(Chunk { events, len: self.len, reply })
    }
}

impl<R> Chunk<R> {
    /// How much of the batch has its reply by now, in percent.
    #[must_use]
    pub fn percent(&self) -> u8 {
        (self.events.end * 100).checked_div(self.len).unwrap_or(100) as u8
    }
}

impl<T, R> fmt::Debug for Chunks<'_, T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} chunks left of {} events", self.rest.len(), self.len)
    }
}
