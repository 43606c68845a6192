//! ractor: Erlang-like actors on tokio.
//!
//! Settings: built without `message_span_propogation`, `call` without a timeout, actors without names. Mailboxes are
//! unbounded always. A broadcast is a loop over the actors: a process group gives a copy of its list of members at each
//! look, for the same loop, and an output port has a task for each subscriber that then does the same. A handler that
//! suspends does so inside the actor, which is cheaper than a task; one that sleeps moves its reply port into a task, as
//! ractor's ports are made for.

use std::hint::black_box;

use bench_common::mailboxes::{Mailbox, measure};
use bench_common::{Bench, Last, SLEEP, alloc, suspend_once};
use ractor::rpc::CallResult;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

struct Node;

enum Message {
    Ask(u64, RpcReplyPort<u64>),
    AskSuspending(u64, RpcReplyPort<u64>),
    AskSleeping(u64, RpcReplyPort<u64>),
    Tell(u64, Last),
    TellSuspending(u64, Last),
}

impl Actor for Node {
    type Msg = Message;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Ask(number, reply) => reply.send(number + 1)?,
            Message::AskSuspending(number, reply) => {
                suspend_once().await;
                reply.send(number + 1)?;
            }
            Message::AskSleeping(number, reply) => {
                tokio::spawn(async move {
                    tokio::time::sleep(SLEEP).await;
                    black_box(reply.send(number + 1).is_ok());
                });
            }
            Message::Tell(number, last) => {
                black_box(number);
                last.handled();
            }
            Message::TellSuspending(number, last) => {
                suspend_once().await;
                black_box(number);
                last.handled();
            }
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Ractor(ActorRef<Message>);

impl Ractor {
    async fn call(&self, message: impl FnOnce(RpcReplyPort<u64>) -> Message) -> u64 {
        match self.0.call(message, None).await {
            Ok(CallResult::Success(number)) => number,
            _ => panic!("it answers"),
        }
    }
}

impl Mailbox for Ractor {
    async fn start() -> Self {
        let (actor, _) = Actor::spawn(None, Node, ()).await.expect("it starts");
        Self(actor)
    }

    async fn ask(&self, number: u64) -> u64 {
        self.call(|reply| Message::Ask(number, reply)).await
    }

    async fn ask_suspending(&self, number: u64) -> Option<u64> {
        Some(self.call(|reply| Message::AskSuspending(number, reply)).await)
    }

    async fn ask_sleeping(&self, number: u64) -> u64 {
        self.call(|reply| Message::AskSleeping(number, reply)).await
    }

    async fn tell(&self, number: u64, last: Last) {
        self.0.cast(Message::Tell(number, last)).expect("it takes messages");
    }

    async fn tell_suspending(&self, number: u64, last: Last) -> bool {
        self.0.cast(Message::TellSuspending(number, last)).is_ok()
    }
}

fn main() {
    measure::<Ractor>(&Bench::from_arguments());
}
