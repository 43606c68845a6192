//! Requests of other members that are being answered here. Owns the way of their replies out, at the pace of their
//! readers; does not know what is in them.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use happen_core::Result;
use happen_core::link::Replies;
use tokio::sync::{Notify, watch};

use super::frame::{Frame, units};
use super::member::{Lane, Member, Room};
use super::wire::{Wire, lock};

/// The requests that are being answered, by the run of the member that asked and its number.
#[derive(Debug, Default)]
pub(super) struct Answering {
    under_way: Mutex<HashMap<(u64, u64), Arc<Answer>>>,
    /// Woken when one has ended.
    ended: Notify,
}

#[derive(Debug)]
struct Answer {
    credit: AtomicI64,
    cancelled: AtomicBool,
    wake: Notify,
}

/// What came next of some replies.
type Next = Option<Result<Vec<u8>>>;

/// The replies to one request on their way out.
struct Way {
    answering: Arc<Answering>,
    wire: Arc<Wire>,
    member: Arc<Member>,
    number: u64,
    replies: Box<dyn Replies>,
    closing: watch::Receiver<bool>,
}

impl Answering {
    /// Sends the replies to a request. What is there already leaves before this returns; the rest is a task's.
    pub(super) fn answer(
        self: &Arc<Self>,
        wire: &Arc<Wire>,
        member: Arc<Member>,
        request: (u64, u32),
        replies: Box<dyn Replies>,
        closing: watch::Receiver<bool>,
    ) {
        let (number, credit) = request;
        let (answering, wire) = (Arc::clone(self), Arc::clone(wire));
        let mut way = Way { answering, wire, member, number, replies, closing };
        let first = way.look();
        if let Some(Some(Ok(reply))) = &first
            && credit > 0
            && way.member.has_room_for_replies(&way.wire)
        {
            match way.look() {
                Some(None) => return way.send(Frame::Last { number, bytes: reply }),
                second => return way.go_on(credit, first, second),
            }
        }
        match first {
            Some(None) => way.send(Frame::End { number }),
            Some(Some(Err(_))) => way.send(Frame::Broken { number }),
            first => way.go_on(credit, first, None),
        }
    }

    /// Gives a request credit.
    pub(super) fn credit(&self, member: u64, number: u64, units: u32) {
        if let Some(answer) = lock(&self.under_way).get(&(member, number)) {
            answer.credit.fetch_add(i64::from(units), Ordering::SeqCst);
            answer.wake.notify_one();
        }
    }

    /// Nobody waits for these replies any more.
    pub(super) fn cancel(&self, member: u64, number: u64) {
        if let Some(answer) = lock(&self.under_way).get(&(member, number)) {
            answer.cancel();
        }
    }

    /// A member waits for nothing any more.
    pub(super) fn cancel_all_of(&self, member: u64) {
        lock(&self.under_way)
            .iter()
            .filter(|((of, _), _)| *of == member)
            .for_each(|(_, answer)| answer.cancel());
    }

    /// Ends when nothing is being answered.
    pub(super) async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            if lock(&self.under_way).is_empty() {
                return;
            }
            ended.await;
        }
    }
}

impl Answer {
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }
}

impl Way {
    /// The next reply, if it is there. Who looks later is woken; nobody is by this.
    fn look(&mut self) -> Option<Next> {
        match self.replies.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(next) => Some(next),
            Poll::Pending => None,
        }
    }

    /// Has a task send what comes. It is known before anything leaves: what is given back may come at once.
    fn go_on(self, credit: u32, first: Option<Next>, second: Option<Next>) {
        let answer = Arc::new(Answer {
            credit: AtomicI64::new(i64::from(credit)),
            cancelled: AtomicBool::new(false),
            wake: Notify::new(),
        });
        let key = (self.member.instance, self.number);
        lock(&self.answering.under_way).insert(key, Arc::clone(&answer));
        let env = Arc::clone(&self.wire.env);
        env.spawn(Box::pin(async move {
            let answering = Arc::clone(&self.answering);
            self.run(&answer, first, second).await;
            lock(&answering.under_way).remove(&key);
            answering.ended.notify_waiters();
        }));
    }

    async fn run(mut self, answer: &Answer, mut next: Option<Next>, mut after: Option<Next>) {
        let number = self.number;
        loop {
            let reply = match next.take() {
                Some(next) => next,
                None => match self.next(answer).await {
                    Some(next) => next,
                    None => return,
                },
            };
            match reply {
                None => return self.send(Frame::End { number }),
                Some(Err(_)) => return self.send(Frame::Broken { number }),
                Some(Ok(bytes)) => {
                    if !self.may_send(answer).await {
                        return;
                    }
                    answer.credit.fetch_sub(i64::from(units(bytes.len())), Ordering::SeqCst);
                    // An end that is known already needs no frame of its own.
                    next = after.take().or_else(|| self.look());
                    if matches!(next, Some(None)) {
                        return self.send(Frame::Last { number, bytes: &bytes });
                    }
                    let fits = self.fits(&bytes);
                    self.send(Frame::Reply { number, bytes: &bytes });
                    if !fits {
                        // The reader was told; dropping the replies stops who makes them.
                        return;
                    }
                }
            }
        }
    }

    /// The next reply; `None` when nobody waits for it any more.
    async fn next(&mut self, answer: &Answer) -> Option<Next> {
        loop {
            if answer.cancelled.load(Ordering::SeqCst) {
                return None;
            }
            let closing = *self.closing.borrow();
            if closing {
                // What is there when a link closes is still sent.
                return self.look();
            }
            tokio::select! {
                biased;
                next = poll_fn(|task| self.replies.poll_next(task)) => return Some(next),
                () = answer.wake.notified() => {}
                _ = self.closing.changed() => {}
            }
        }
    }

    /// Waits until a reply may leave; false when nobody waits for it any more.
    async fn may_send(&mut self, answer: &Answer) -> bool {
        loop {
            let some_left = self.member.some_left();
            if answer.cancelled.load(Ordering::SeqCst) {
                return false;
            }
            let has_room = self.member.has_room_for_replies(&self.wire);
            if answer.credit.load(Ordering::SeqCst) > 0 && has_room {
                return true;
            }
            if *self.closing.borrow() {
                return false;
            }
            tokio::select! {
                () = answer.wake.notified() => {}
                () = some_left, if !has_room => {}
                _ = self.closing.changed() => {}
            }
        }
    }

    fn fits(&self, bytes: &[u8]) -> bool {
        Frame::Reply { number: self.number, bytes }.bytes_max() <= self.wire.frame_bytes_max()
    }

    /// Sends a frame, or says that it is too large.
    fn send(&self, frame: Frame<'_>) {
        let bytes = match frame {
            Frame::Reply { bytes, .. } | Frame::Last { bytes, .. } => bytes,
            _ => &[],
        };
        let (size, size_max) = (frame.bytes_max(), self.wire.frame_bytes_max());
        let frame = if size <= size_max {
            frame
        } else {
            let bytes_max = size_max.saturating_sub(size - bytes.len());
            Frame::Oversized { number: self.number, bytes: bytes.len() as u64, bytes_max: bytes_max as u64 }
        };
        // To one that is gone nothing can be said.
        let _ = self.member.send(&self.wire, Lane::Replies, frame, Room::Made);
    }
}
