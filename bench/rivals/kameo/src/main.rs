//! kameo: actors with typed messages on tokio.
//!
//! Settings: unbounded mailboxes, `tell` by `try_send` (no future needed when there is no capacity to wait for), no
//! timeouts, built without its `tracing` feature. A broadcast is a loop over the actors: the message bus of
//! `kameo_actors` is an actor that loops over them in its turn. A handler that suspends does so inside the actor,
//! which is cheaper than a task; one that sleeps hands its reply over to a task with `Context::spawn`, kameo's own means
//! of not keeping the other callers waiting.

use std::hint::black_box;

use bench_common::mailboxes::{Mailbox, measure};
use bench_common::{Bench, Last, SLEEP, alloc, suspend_once};
use kameo::Actor;
use kameo::actor::{ActorRef, Spawn};
use kameo::message::{Context, Message};
use kameo::reply::DelegatedReply;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

#[derive(Actor)]
struct Node;

struct Ask(u64);
struct AskSuspending(u64);
struct AskSleeping(u64);
struct Tell(u64, Last);
struct TellSuspending(u64, Last);

impl Message<Ask> for Node {
    type Reply = u64;

    async fn handle(&mut self, Ask(number): Ask, _: &mut Context<Self, u64>) -> u64 {
        number + 1
    }
}

impl Message<AskSuspending> for Node {
    type Reply = u64;

    async fn handle(&mut self, AskSuspending(number): AskSuspending, _: &mut Context<Self, u64>) -> u64 {
        suspend_once().await;
        number + 1
    }
}

impl Message<AskSleeping> for Node {
    type Reply = DelegatedReply<u64>;

    async fn handle(
        &mut self,
        AskSleeping(number): AskSleeping,
        context: &mut Context<Self, Self::Reply>,
    ) -> Self::Reply {
        context.spawn(async move {
            tokio::time::sleep(SLEEP).await;
            number + 1
        })
    }
}

impl Message<Tell> for Node {
    type Reply = ();

    async fn handle(&mut self, Tell(number, last): Tell, _: &mut Context<Self, ()>) {
        black_box(number);
        last.handled();
    }
}

impl Message<TellSuspending> for Node {
    type Reply = ();

    async fn handle(&mut self, TellSuspending(number, last): TellSuspending, _: &mut Context<Self, ()>) {
        suspend_once().await;
        black_box(number);
        last.handled();
    }
}

#[derive(Clone)]
struct Kameo(ActorRef<Node>);

impl Mailbox for Kameo {
    async fn start() -> Self {
        Self(Node::spawn_with_mailbox(Node, kameo::mailbox::unbounded()))
    }

    async fn ask(&self, number: u64) -> u64 {
        self.0.ask(Ask(number)).send().await.expect("it answers")
    }

    async fn ask_suspending(&self, number: u64) -> Option<u64> {
        self.0.ask(AskSuspending(number)).send().await.ok()
    }

    async fn ask_sleeping(&self, number: u64) -> u64 {
        self.0.ask(AskSleeping(number)).send().await.expect("it answers")
    }

    async fn tell(&self, number: u64, last: Last) {
        self.0.tell(Tell(number, last)).try_send().expect("it takes messages");
    }

    async fn tell_suspending(&self, number: u64, last: Last) -> bool {
        self.0.tell(TellSuspending(number, last)).try_send().is_ok()
    }
}

fn main() {
    measure::<Kameo>(&Bench::from_arguments());
}
