//! The Env seam answered by the simulator. Owns the timer as a future; time and tasks themselves are the world's.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use happen_core::env::{BoxFuture, BoxWork, CoarseClock, Env};

use super::world::{Armed, TimerKey, World};

/// The environment of one simulator.
pub(super) struct VirtualEnv {
    world: Arc<World>,
}

impl VirtualEnv {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self { world }
    }
}

impl Env for VirtualEnv {
    fn unix_ms(&self) -> u64 {
        self.world.unix_ms()
    }

    fn monotonic(&self) -> Duration {
        self.world.now()
    }

    fn clock(&self) -> &Arc<CoarseClock> {
        &self.world.clock
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.world.fill_random(bytes);
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.world.spawn(task);
    }

    fn spawn_blocking(&self, work: BoxWork) {
        self.world.spawn(Box::pin(async move { work() }));
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let deadline = self.world.now().saturating_add(time);
        let state = if time.is_zero() { SleepState::GiveWay } else { SleepState::Unarmed };
        Box::pin(Sleep { world: Arc::clone(&self.world), deadline, state })
    }
}

impl fmt::Debug for VirtualEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualEnv").field("world", &self.world).finish()
    }
}

/// Ends once virtual time has reached its deadline. The time runs from the call on, not from the first poll.
struct Sleep {
    world: Arc<World>,
    deadline: Duration,
    state: SleepState,
}

enum SleepState {
    /// No time at all, which still lets the others run: a loop around it is then many steps, not an endless one.
    GiveWay,
    Unarmed,
    Armed(TimerKey),
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let armed = match self.state {
            SleepState::GiveWay => {
                self.state = SleepState::Unarmed;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            SleepState::Unarmed => None,
            SleepState::Armed(key) => Some(key),
        };
        match self.world.arm(self.deadline, armed, context.waker()) {
            Armed::Due => {
                self.state = SleepState::Unarmed;
                Poll::Ready(())
            }
            Armed::At(key) => {
                self.state = SleepState::Armed(key);
                Poll::Pending
            }
            Armed::Never => Poll::Pending,
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let SleepState::Armed(key) = self.state {
            self.world.disarm(key);
        }
    }
}
