//! How a sender learns that everything it sent was handled, the same for all contenders. Owns the latches; does not
//! know what is counted.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::Notify;

/// Counts down to zero and wakes whoever waits for that.
///
/// Only the last message of a burst counts down, so it adds nothing to the cost of a message.
#[derive(Debug)]
pub struct Latch {
    left: AtomicUsize,
    opened: Notify,
}

/// The latch of the first, second, … sender.
pub static LATCHES: [Latch; 2] = [Latch::new(), Latch::new()];

impl Latch {
    const fn new() -> Self {
        Self { left: AtomicUsize::new(0), opened: Notify::const_new() }
    }

    /// Sets how many times it has to be counted down.
    pub fn set(&self, count: usize) {
        self.left.store(count, Ordering::Release);
    }

    /// Counts one down.
    pub fn count_down(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.opened.notify_one();
        }
    }

    /// Waits until it is at zero; one waiter at a time.
    pub async fn opened(&self) {
        while self.left.load(Ordering::Acquire) > 0 {
            self.opened.notified().await;
        }
    }
}

/// What a burst of messages carries besides its number: whether it is the last one, and of which sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Last(u8);

impl Last {
    /// Another one follows.
    pub const NO: Self = Self(0);

    /// `NO` but for the last of `count` messages of this sender.
    #[must_use]
    pub const fn of(index: u64, count: u64, sender: u8) -> Self {
        if index + 1 == count { Self(sender + 1) } else { Self::NO }
    }

    /// From the number it was turned into, for payloads that are plain data.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        Self(number)
    }

    /// As a number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Counts the sender's latch down when this was the last message.
    #[inline]
    pub fn handled(self) {
        if self.0 > 0 {
            LATCHES[usize::from(self.0) - 1].count_down();
        }
    }
}

/// Suspends once: asks to be polled again at once, as something does that becomes ready while it is being polled.
///
/// Not `tokio::task::yield_now`, which goes behind everything else the scheduler has, the drivers included: that would
/// measure the scheduler more than the frameworks.
#[must_use]
pub fn suspend_once() -> Suspend {
    Suspend(false)
}

/// See [`suspend_once`].
#[derive(Debug)]
pub struct Suspend(bool);

impl Future for Suspend {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }
}
