//! Raw tokio: what a message costs with nothing around it. The baseline of all ratios.
//!
//! Settings, each the fastest of what was tried: unbounded mailboxes (a bounded one pays for its semaphore: 120 against
//! 100 ns for an ask), replies over oneshot channels, no timeouts, a loop over 100 mailboxes rather than
//! `tokio::sync::broadcast`. Where the handler waits, a task for each message, which is what a program without a
//! framework does, and not an actor, which would handle one message after the other.
//!
//! The operations `ask-main` and `send-main` are the same over bounded channels, called from the future of `main`
//! itself: the form in which such code is mostly written, and the one the targets were set by.

use std::hint::black_box;

use bench_common::mailboxes::{Mailbox, measure};
use bench_common::{BURST, Bench, LATCHES, Last, SLEEP, alloc, one_thread, suspend_once};
use tokio::sync::{mpsc, oneshot};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

struct Message {
    number: u64,
    last: Last,
    reply: Option<oneshot::Sender<u64>>,
}

impl Message {
    fn ask(number: u64, reply: oneshot::Sender<u64>) -> Self {
        Self { number, last: Last::NO, reply: Some(reply) }
    }

    fn tell(number: u64, last: Last) -> Self {
        Self { number, last, reply: None }
    }

    fn handle(self) {
        match self.reply {
            Some(reply) => {
                black_box(reply.send(self.number + 1).is_ok());
            }
            None => {
                black_box(self.number);
                self.last.handled();
            }
        }
    }
}

#[derive(Clone)]
struct Raw(mpsc::UnboundedSender<Message>);

impl Mailbox for Raw {
    async fn start() -> Self {
        let (to, mut from) = mpsc::unbounded_channel::<Message>();
        tokio::spawn(async move {
            while let Some(message) = from.recv().await {
                message.handle();
            }
        });
        Self(to)
    }

    async fn ask(&self, number: u64) -> u64 {
        let (reply, answer) = oneshot::channel();
        drop(self.0.send(Message::ask(number, reply)));
        answer.await.expect("it answers")
    }

    async fn ask_suspending(&self, number: u64) -> Option<u64> {
        let task = tokio::spawn(async move {
            suspend_once().await;
            number + 1
        });
        task.await.ok()
    }

    async fn ask_sleeping(&self, number: u64) -> u64 {
        let task = tokio::spawn(async move {
            tokio::time::sleep(SLEEP).await;
            number + 1
        });
        task.await.expect("it answers")
    }

    async fn tell(&self, number: u64, last: Last) {
        drop(self.0.send(Message::tell(number, last)));
    }

    async fn tell_suspending(&self, number: u64, last: Last) -> bool {
        tokio::spawn(async move {
            suspend_once().await;
            black_box(number);
            last.handled();
        });
        true
    }
}

async fn from_main(bench: &Bench) {
    let (to, mut from) = mpsc::channel::<Message>(1_024);
    tokio::spawn(async move {
        while let Some(message) = from.recv().await {
            message.handle();
        }
    });
    for count in bench.operation("ask-main", 200_000) {
        for _ in 0..count {
            let (reply, answer) = oneshot::channel();
            black_box(to.send(Message::ask(black_box(1), reply)).await.is_ok());
            black_box(answer.await.is_ok());
        }
    }
    for count in bench.operation("send-main", 500).each(BURST) {
        for _ in 0..count {
            LATCHES[0].set(1);
            for number in 0..BURST {
                let last = Last::of(number, BURST, 0);
                black_box(to.send(Message::tell(black_box(number), last)).await.is_ok());
            }
            LATCHES[0].opened().await;
        }
    }
}

fn main() {
    let bench = Bench::from_arguments();
    one_thread().block_on(from_main(&bench));
    measure::<Raw>(&bench);
}
