//! tellus: actors as state machines on tokio.
//!
//! Settings: unbounded mailboxes (its default), no features. Its `ask` always has a timeout; an hour here, far from the
//! part of the timer that is looked at often. Handlers are plain functions and cannot suspend, so nothing is measured of
//! handlers that do; a reply that takes time is handed to a task, which is what `ReplyTo` is made for. A broadcast is a
//! loop over the actors.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Duration;

use bench_common::mailboxes::{Mailbox, measure};
use bench_common::{Bench, Last, SLEEP, alloc};
use tellus::{Actor, ActorContext, ActorRef, ActorSystem, Control, Incoming, ReplyTo, Untimed};
use tokio::sync::oneshot;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// Starts the actors, since an actor is started by another one.
struct Root;

struct Start(oneshot::Sender<ActorRef<Message>>);

struct Node;

enum Message {
    Ask(u64, ReplyTo<u64>),
    AskSleeping(u64, ReplyTo<u64>),
    Tell(u64, Last),
}

impl Actor for Root {
    type Message = Start;
    type Timers = Untimed;
    type State = ();
    type Error = Infallible;

    fn init(&self, _: &ActorContext<Start>) -> Result<(), Infallible> {
        Ok(())
    }

    fn receive(
        &self,
        context: &ActorContext<Start>,
        incoming: Incoming<Start>,
        (): (),
    ) -> Result<Control<()>, Infallible> {
        if let Incoming::Message(Start(started)) = incoming {
            black_box(started.send(context.spawn(Node)).is_ok());
        }
        Ok(Control::Continue(()))
    }
}

impl Actor for Node {
    type Message = Message;
    type Timers = Untimed;
    type State = ();
    type Error = Infallible;

    fn init(&self, _: &ActorContext<Message>) -> Result<(), Infallible> {
        Ok(())
    }

    fn receive(
        &self,
        _: &ActorContext<Message>,
        incoming: Incoming<Message>,
        (): (),
    ) -> Result<Control<()>, Infallible> {
        match incoming {
            Incoming::Message(Message::Ask(number, reply)) => reply.reply(number + 1),
            Incoming::Message(Message::AskSleeping(number, reply)) => {
                tokio::spawn(async move {
                    tokio::time::sleep(SLEEP).await;
                    reply.reply(number + 1);
                });
            }
            Incoming::Message(Message::Tell(number, last)) => {
                black_box(number);
                last.handled();
            }
            Incoming::Terminated(_) => {}
        }
        Ok(Control::Continue(()))
    }
}

#[derive(Clone)]
struct Tellus(ActorRef<Message>);

/// One system for each runtime; the program uses one after the other.
async fn start(systems: &OnceLock<ActorSystem<Start>>) -> ActorRef<Message> {
    let (started, actor) = oneshot::channel();
    systems.get_or_init(|| ActorSystem::new(Root)).root().tell(Start(started));
    actor.await.expect("it starts")
}

impl Mailbox for Tellus {
    async fn start() -> Self {
        static ON_ONE_THREAD: OnceLock<ActorSystem<Start>> = OnceLock::new();
        static ON_TWO_WORKERS: OnceLock<ActorSystem<Start>> = OnceLock::new();
        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        Self(start(if workers == 1 { &ON_ONE_THREAD } else { &ON_TWO_WORKERS }).await)
    }

    async fn ask(&self, number: u64) -> u64 {
        self.0.ask(HOUR, |reply| Message::Ask(number, reply)).await.expect("it answers")
    }

    async fn ask_suspending(&self, _: u64) -> Option<u64> {
        None
    }

    async fn ask_sleeping(&self, number: u64) -> u64 {
        self.0.ask(HOUR, |reply| Message::AskSleeping(number, reply)).await.expect("it answers")
    }

    async fn tell(&self, number: u64, last: Last) {
        self.0.tell(Message::Tell(number, last));
    }

    async fn tell_suspending(&self, _: u64, _: Last) -> bool {
        false
    }
}

fn main() {
    measure::<Tellus>(&Bench::from_arguments());
}

const HOUR: Duration = Duration::from_hours(1);
