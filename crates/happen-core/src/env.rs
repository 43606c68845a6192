//! The Env seam: time, randomness, and tasks. Owns what the framework may ask of its surroundings; the real answers are
//! in the crate `happen`, virtual ones in `happen-testing`.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A boxed piece of work for a thread of its own.
pub type BoxWork = Box<dyn FnOnce() + Send>;

/// Where time, randomness and tasks come from. One value serves a whole space.
pub trait Env: Debug + Send + Sync + 'static {
    /// The time in milliseconds since 1970, read now.
    fn unix_ms(&self) -> u64;

    /// A time that only goes forward, since some fixed moment.
    fn monotonic(&self) -> Duration;

    /// The coarse clock that the way of an event reads instead of asking for the time. Shared, so that whoever reads it
    /// for every event can keep it at hand.
    fn clock(&self) -> &Arc<CoarseClock>;

    /// Fills the bytes with randomness good enough to start ids from, not for secrets.
    fn fill_random(&self, bytes: &mut [u8]);

    /// Runs a future beside the caller, to its end.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Runs work that takes long, or waits, where it holds up no task.
    fn spawn_blocking(&self, work: BoxWork);

    /// Ends after this time.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;

    /// A random number; the same sequence for the same seed in a virtual environment.
    fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_random(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// A clock that costs one load to read: somebody else moves it, at least once in [`CoarseClock::TICK_MS`] while it is
/// read.
///
/// 0 means that it stands because nobody read it for a while; the reader then asks [`Env::unix_ms`], which sets it
/// going again.
#[derive(Debug, Default)]
pub struct CoarseClock(AtomicU64);

impl CoarseClock {
    /// How far the coarse clock may lag behind, in milliseconds.
    pub const TICK_MS: u64 = 1;

    /// The time in milliseconds since 1970, or 0 while the clock stands.
    #[inline]
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets the time; 0 makes it stand.
    pub fn set(&self, unix_ms: u64) {
        self.0.store(unix_ms, Ordering::Relaxed);
    }
}

impl dyn Env {
    /// The time in milliseconds since 1970: the coarse clock's while it goes, read now otherwise.
    #[inline]
    #[must_use]
    pub fn coarse_unix_ms(&self) -> u64 {
        match self.clock().unix_ms() {
            0 => self.unix_ms(),
            unix_ms => unix_ms,
        }
    }
}
