//! actix: actors that live on one thread each, on tokio.
//!
//! Settings: mailboxes larger than anything that waits here (the default of 16 makes callers wait in line), `do_send` to
//! tell, plain handlers where nothing is awaited, `ResponseFuture` where something is, which runs beside the actor. The
//! runtimes are made without I/O, as everywhere here. With two workers there are two arbiters, each with half of the
//! actors and of the callers. A broadcast is a loop over the addresses: the broker of
//! `actix-broker` is an actor that loops over them in its turn.

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix::prelude::*;
use bench_common::mailboxes::{Mailbox, one, two};
use bench_common::{BURST, Bench, Last, SLEEP, alloc, one_thread, suspend_once};
use tokio::sync::oneshot;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

struct Node;

impl Actor for Node {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        context.set_mailbox_capacity(2 * BURST as usize);
    }
}

#[derive(Message)]
#[rtype(result = "u64")]
struct Ask(u64);

#[derive(Message)]
#[rtype(result = "u64")]
struct AskSuspending(u64);

#[derive(Message)]
#[rtype(result = "u64")]
struct AskSleeping(u64);

#[derive(Message)]
#[rtype(result = "()")]
struct Tell(u64, Last);

#[derive(Message)]
#[rtype(result = "()")]
struct TellSuspending(u64, Last);

impl Handler<Ask> for Node {
    type Result = u64;

    fn handle(&mut self, Ask(number): Ask, _: &mut Context<Self>) -> u64 {
        number + 1
    }
}

impl Handler<AskSuspending> for Node {
    type Result = ResponseFuture<u64>;

    fn handle(&mut self, AskSuspending(number): AskSuspending, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            suspend_once().await;
            number + 1
        })
    }
}

impl Handler<AskSleeping> for Node {
    type Result = ResponseFuture<u64>;

    fn handle(&mut self, AskSleeping(number): AskSleeping, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            tokio::time::sleep(SLEEP).await;
            number + 1
        })
    }
}

impl Handler<Tell> for Node {
    type Result = ();

    fn handle(&mut self, Tell(number, last): Tell, _: &mut Context<Self>) {
        black_box(number);
        last.handled();
    }
}

impl Handler<TellSuspending> for Node {
    type Result = ResponseFuture<()>;

    fn handle(
        &mut self,
        TellSuspending(number, last): TellSuspending,
        _: &mut Context<Self>,
    ) -> Self::Result {
        Box::pin(async move {
            suspend_once().await;
            black_box(number);
            last.handled();
        })
    }
}

/// The two workers, while there are two.
static ARBITERS: OnceLock<[ArbiterHandle; 2]> = OnceLock::new();
static STARTED: AtomicUsize = AtomicUsize::new(0);

#[derive(Clone)]
struct Actix(Addr<Node>);

impl Mailbox for Actix {
    async fn start() -> Self {
        let Some(arbiters) = ARBITERS.get() else { return Self(Node.start()) };
        let worker = STARTED.fetch_add(1, Ordering::Relaxed) % arbiters.len();
        Self(Node::start_in_arbiter(&arbiters[worker], |_| Node))
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
        self.0.do_send(Tell(number, last));
    }

    async fn tell_suspending(&self, number: u64, last: Last) -> bool {
        self.0.do_send(TellSuspending(number, last));
        true
    }

    fn beside<F>(worker: usize, future: F) -> impl Future<Output = F::Output> + Send
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let arbiters = ARBITERS.get().expect("there are two workers");
        let (ended, end) = oneshot::channel();
        arbiters[worker % arbiters.len()].spawn(async move {
            drop(ended.send(future.await));
        });
        async { end.await.expect("it ran to its end") }
    }
}

fn main() {
    let bench = Bench::from_arguments();
    // One thread first: a program has one actix system, and its arbiters stay.
    let system = System::with_tokio_rt(one_thread);
    let program = bench.clone();
    system.block_on(async { actix::spawn(one::<Actix>(program)).await.expect("it ran to its end") });
    let arbiters = [0, 1].map(|_| Arbiter::with_tokio_rt(one_thread));
    ARBITERS.set([arbiters[0].handle(), arbiters[1].handle()]).expect("they are set once");
    system.block_on(two::<Actix>(bench));
}
