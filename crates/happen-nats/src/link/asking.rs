//! Requests of this member that wait for replies. Owns their numbers, the replies that have come and are not read yet, and
//! the pace; does not know how either travels.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use happen_core::link::Replies;
use happen_core::{Error, ErrorKind, Result};

use super::frame::{Frame, units};
use super::member::{Lane, Member, Room};
use super::wire::{Wire, closed, lock};
use crate::limits;

/// The requests that wait.
#[derive(Debug, Default)]
pub(super) struct Asking {
    last: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    member: Arc<Member>,
    inbox: Arc<Inbox>,
}

/// The replies to one request that nobody has read.
#[derive(Debug, Default)]
struct Inbox(Mutex<Came>);

#[derive(Debug, Default)]
struct Came {
    replies: VecDeque<Vec<u8>>,
    units: u64,
    end: Option<Result<()>>,
    reader: Option<Waker>,
}

impl Asking {
    /// Asks a member.
    pub(super) fn ask(
        self: &Arc<Self>,
        wire: &Arc<Wire>,
        member: Arc<Member>,
        to: &str,
        bytes: &[u8],
    ) -> Result<Asked> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let inbox = Arc::<Inbox>::default();
        let mut waiting = lock(&self.waiting);
        if waiting.len() >= limits::REQUESTS_MAX {
            let what = format!("the number of requests that wait ({})", limits::REQUESTS_MAX);
            return Err(Error::new(ErrorKind::Busy { what }));
        }
        // Before it leaves: its reply may be here before this function returns.
        waiting.insert(number, Waiting { member: Arc::clone(&member), inbox: Arc::clone(&inbox) });
        drop(waiting);
        let frame = Frame::Request { number, credit: limits::CREDIT_UNITS, to, bytes };
        if let Err(error) = member.send(wire, Lane::Events, frame, Room::Needed) {
            lock(&self.waiting).remove(&number);
            return Err(error);
        }
        let asking = Arc::clone(self);
        Ok(Asked { asking, wire: Arc::clone(wire), member, number, inbox, read: 0, over: false })
    }

    /// Takes what a member says about a request. What belongs to none comes too late and is left out.
    pub(super) fn take(&self, member: u64, frame: Frame<'_>) {
        let (number, reply, end) = match frame {
            Frame::Reply { number, bytes } => (number, Some(bytes), None),
            Frame::Last { number, bytes } => (number, Some(bytes), Some(Ok(()))),
            Frame::End { number } => (number, None, Some(Ok(()))),
            Frame::Oversized { number, bytes, bytes_max } => {
                let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
                let kind = ErrorKind::Oversized { bytes: size(bytes), bytes_max: size(bytes_max) };
                (number, None, Some(Err(Error::new(kind))))
            }
            Frame::Broken { number } => (number, None, Some(Err(closed("the node that was asked")))),
            _ => return,
        };
        let mut waiting = lock(&self.waiting);
        // Numbers can be guessed; only who was asked may answer.
        let Some(asked) = waiting.get(&number).filter(|asked| asked.member.instance == member) else {
            return;
        };
        let inbox = Arc::clone(&asked.inbox);
        if end.is_some() {
            waiting.remove(&number);
        }
        drop(waiting);
        inbox.put(reply, end);
    }

    /// Ends the requests to a member.
    pub(super) fn end_of(&self, member: &Member) {
        self.end_where(|_, asked| asked.instance == member.instance);
    }

    /// Ends the requests that have left, to one member or to all.
    pub(super) fn end_left(&self, members: &[Arc<Member>]) {
        let still_here: HashSet<u64> = members.iter().flat_map(|member| member.waiting_requests()).collect();
        let asked: HashSet<u64> = members.iter().map(|member| member.instance).collect();
        self.end_where(|number, member| asked.contains(&member.instance) && !still_here.contains(&number));
    }

    /// Ends all requests.
    pub(super) fn end_all(&self) {
        self.end_where(|_, _| true);
    }

    fn end_where(&self, mut ends: impl FnMut(u64, &Member) -> bool) {
        let ended: Vec<_> =
            lock(&self.waiting).extract_if(|number, asked| ends(*number, &asked.member)).collect();
        for (_, asked) in ended {
            asked.inbox.put(None, Some(Err(closed(&asked.member.name))));
        }
    }
}

impl Inbox {
    fn put(&self, reply: Option<&[u8]>, end: Option<Result<()>>) {
        let mut came = lock(&self.0);
        if came.end.is_some() {
            return;
        }
        if let Some(bytes) = reply {
            // Whoever keeps to the credit is never so far ahead.
            if came.units >= u64::from(2 * limits::CREDIT_UNITS) {
                let what = "reading replies, of which more came than were asked for,".to_owned();
                came.end = Some(Err(Error::new(ErrorKind::Io { what })));
            } else {
                came.units += u64::from(units(bytes.len()));
                came.replies.push_back(bytes.to_vec());
            }
        }
        if came.end.is_none() {
            came.end = end;
        }
        let reader = came.reader.take();
        drop(came);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// The replies to a request of this member.
pub(super) struct Asked {
    asking: Arc<Asking>,
    wire: Arc<Wire>,
    member: Arc<Member>,
    number: u64,
    inbox: Arc<Inbox>,
    /// The units that were read and not given back yet.
    read: u32,
    over: bool,
}

impl Replies for Asked {
    fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let mut came = lock(&self.inbox.0);
        let Some(reply) = came.replies.pop_front() else {
            let Some(end) = came.end.take() else {
                came.reader = Some(task.waker().clone());
                return Poll::Pending;
            };
            self.over = true;
            return Poll::Ready(end.err().map(Err));
        };
        let taken = units(reply.len());
        came.units -= u64::from(taken);
        let ended = came.end.is_some();
        drop(came);
        self.read += taken;
        if !ended && self.read >= limits::CREDIT_UNITS / 2 {
            let credit = Frame::Credit { number: self.number, units: std::mem::take(&mut self.read) };
            // When the member is gone, the end is on its way.
            let _ = self.member.send(&self.wire, Lane::Replies, credit, Room::Made);
        }
        Poll::Ready(Some(Ok(reply)))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if lock(&self.asking.waiting).remove(&self.number).is_some() {
            let cancel = Frame::Cancel { number: self.number };
            // Who is gone need not be told.
            let _ = self.member.send(&self.wire, Lane::Events, cancel, Room::Made);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_sends_far_beyond_the_credit() {
        let max = 2 * limits::CREDIT_UNITS as usize;
        for (replies, ends) in [(max - 1, false), (max, false), (max + 1, true)] {
            let inbox = Inbox::default();
            (0..replies).for_each(|_| inbox.put(Some(b"reply"), None));
            let came = lock(&inbox.0);
            assert_eq!(matches!(came.end, Some(Err(_))), ends, "{replies}");
            assert_eq!(came.replies.len(), replies.min(max));
        }
    }
}
