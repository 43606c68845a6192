//! coerce: actors for distributed systems, on tokio.
//!
//! Settings: no features (no remoting, no metrics, no persistence), anonymous actors (not registered with the
//! scheduler), log levels compiled away. Mailboxes are unbounded always. A broadcast is a loop over the actors. A handler
//! has the actor for itself until it has answered: the reply is what it returns.

use std::hint::black_box;
use std::sync::OnceLock;

use async_trait::async_trait;
use bench_common::mailboxes::{Mailbox, measure};
use bench_common::{Bench, Last, SLEEP, alloc, suspend_once};
use coerce::actor::context::ActorContext;
use coerce::actor::message::{Handler, Message};
use coerce::actor::system::ActorSystem;
use coerce::actor::{Actor, LocalActorRef};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

struct Node;

impl Actor for Node {}

struct Ask(u64);
struct AskSuspending(u64);
struct AskSleeping(u64);
struct Tell(u64, Last);
struct TellSuspending(u64, Last);

impl Message for Ask {
    type Result = u64;
}

impl Message for AskSuspending {
    type Result = u64;
}

impl Message for AskSleeping {
    type Result = u64;
}

impl Message for Tell {
    type Result = ();
}

impl Message for TellSuspending {
    type Result = ();
}

#[async_trait]
impl Handler<Ask> for Node {
    async fn handle(&mut self, Ask(number): Ask, _: &mut ActorContext) -> u64 {
        number + 1
    }
}

#[async_trait]
impl Handler<AskSuspending> for Node {
    async fn handle(&mut self, AskSuspending(number): AskSuspending, _: &mut ActorContext) -> u64 {
        suspend_once().await;
        number + 1
    }
}

#[async_trait]
impl Handler<AskSleeping> for Node {
    async fn handle(&mut self, AskSleeping(number): AskSleeping, _: &mut ActorContext) -> u64 {
        tokio::time::sleep(SLEEP).await;
        number + 1
    }
}

#[async_trait]
impl Handler<Tell> for Node {
    async fn handle(&mut self, Tell(number, last): Tell, _: &mut ActorContext) {
        black_box(number);
        last.handled();
    }
}

#[async_trait]
impl Handler<TellSuspending> for Node {
    async fn handle(&mut self, TellSuspending(number, last): TellSuspending, _: &mut ActorContext) {
        suspend_once().await;
        black_box(number);
        last.handled();
    }
}

#[derive(Clone)]
struct Coerce(LocalActorRef<Node>);

impl Mailbox for Coerce {
    async fn start() -> Self {
        // One system for each runtime; the program uses one after the other.
        static ON_ONE_THREAD: OnceLock<ActorSystem> = OnceLock::new();
        static ON_TWO_WORKERS: OnceLock<ActorSystem> = OnceLock::new();
        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        let systems = if workers == 1 { &ON_ONE_THREAD } else { &ON_TWO_WORKERS };
        let system = systems.get_or_init(ActorSystem::new);
        Self(system.new_anon_actor(Node).await.expect("it starts"))
    }

    async fn ask(&self, number: u64) -> u64 {
        self.0.send(Ask(number)).await.expect("it answers")
    }

    async fn ask_suspending(&self, number: u64) -> Option<u64> {
        self.0.send(AskSuspending(number)).await.ok()
    }

    async fn ask_sleeping(&self, number: u64) -> u64 {
        self.0.send(AskSleeping(number)).await.expect("it answers")
    }

    async fn tell(&self, number: u64, last: Last) {
        self.0.notify(Tell(number, last)).expect("it takes messages");
    }

    async fn tell_suspending(&self, number: u64, last: Last) -> bool {
        self.0.notify(TellSuspending(number, last)).is_ok()
    }
}

fn main() {
    measure::<Coerce>(&Bench::from_arguments());
}
