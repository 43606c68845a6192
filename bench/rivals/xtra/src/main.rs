//! xtra: small actors on any runtime; on tokio here.
//!
//! Settings: unbounded mailboxes, no tracing. A broadcast is a loop over the actors: `Address::broadcast` to a hundred
//! actors that share one address was tried and took six times as long. A handler has the actor for itself until it has
//! answered; xtra's means against that, several actors that take from one mailbox, gives each its own state and is not
//! used.

use std::hint::black_box;

use bench_common::mailboxes::{Mailbox as Measured, measure};
use bench_common::{Bench, Last, SLEEP, alloc, suspend_once};
use xtra::{Actor, Address, Context, Handler, Mailbox};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

#[derive(Actor)]
struct Node;

struct Ask(u64);
struct AskSuspending(u64);
struct AskSleeping(u64);
struct Tell(u64, Last);
struct TellSuspending(u64, Last);

impl Handler<Ask> for Node {
    type Return = u64;

    async fn handle(&mut self, Ask(number): Ask, _: &mut Context<Self>) -> u64 {
        number + 1
    }
}

impl Handler<AskSuspending> for Node {
    type Return = u64;

    async fn handle(&mut self, AskSuspending(number): AskSuspending, _: &mut Context<Self>) -> u64 {
        suspend_once().await;
        number + 1
    }
}

impl Handler<AskSleeping> for Node {
    type Return = u64;

    async fn handle(&mut self, AskSleeping(number): AskSleeping, _: &mut Context<Self>) -> u64 {
        tokio::time::sleep(SLEEP).await;
        number + 1
    }
}

impl Handler<Tell> for Node {
    type Return = ();

    async fn handle(&mut self, Tell(number, last): Tell, _: &mut Context<Self>) {
        black_box(number);
        last.handled();
    }
}

impl Handler<TellSuspending> for Node {
    type Return = ();

    async fn handle(&mut self, TellSuspending(number, last): TellSuspending, _: &mut Context<Self>) {
        suspend_once().await;
        black_box(number);
        last.handled();
    }
}

#[derive(Clone)]
struct Xtra(Address<Node>);

impl Measured for Xtra {
    async fn start() -> Self {
        Self(xtra::spawn_tokio(Node, Mailbox::unbounded()))
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
        drop(self.0.send(Tell(number, last)).detach().await);
    }

    async fn tell_suspending(&self, number: u64, last: Last) -> bool {
        self.0.send(TellSuspending(number, last)).detach().await.is_ok()
    }
}

fn main() {
    measure::<Xtra>(&Bench::from_arguments());
}
