//! Raw tokio: what a message costs with nothing around it. The baseline of all ratios.
//!
//! Settings, each the fastest of what was tried: unbounded mailboxes (a bounded one pays for its semaphore),
//! replies over oneshot channels, no timeouts. Where the handler waits, a task for each message, which is what a program
//! without a framework does, and not an actor, which would handle one message after the other.
//!
//! Two things are measured in two forms. `ask-main` and `send-main` go over bounded channels and are called from the
//! future of `main` itself: so such code is mostly written. `channel` and `channel-2` broadcast over one
//! `tokio::sync::broadcast` instead of 100 mailboxes: less per delivery, but such a receiver has no other messages, and
//! one that is late loses some.

use std::hint::black_box;

use bench_common::mailboxes::{Mailbox, measure};
use bench_common::{
    BROADCASTS, BURST, Bench, LATCHES, LISTENERS, Last, SLEEP, alloc, one_thread, run, suspend_once,
    two_workers,
};
use tokio::sync::{broadcast, mpsc, oneshot};

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

/// A channel that a hundred tasks listen to.
fn listened_to() -> broadcast::Sender<(u64, Last)> {
    let (to, _) = broadcast::channel::<(u64, Last)>(BURST as usize);
    for _ in 0..LISTENERS {
        let mut from = to.subscribe();
        tokio::spawn(async move {
            while let Ok((number, last)) = from.recv().await {
                black_box(number);
                last.handled();
            }
        });
    }
    to
}

async fn broadcasts(to: broadcast::Sender<(u64, Last)>, bursts: u64, sender: u8) {
    let latch = &LATCHES[usize::from(sender)];
    for _ in 0..bursts {
        latch.set(LISTENERS as usize);
        for number in 0..BROADCASTS {
            black_box(to.send((black_box(number), Last::of(number, BROADCASTS, sender))).is_ok());
        }
        latch.opened().await;
    }
}

async fn over_a_channel(bench: Bench) {
    let to = listened_to();
    for count in bench.operation("channel", 300).each(BURST) {
        broadcasts(to.clone(), count, 0).await;
    }
}

async fn over_a_channel_from_two(bench: Bench) {
    let to = listened_to();
    for count in bench.operation("channel-2", 100).each(2 * BURST) {
        for publisher in [0, 1].map(|sender| tokio::spawn(broadcasts(to.clone(), count, sender))) {
            publisher.await.expect("it publishes");
        }
    }
}

fn main() {
    let bench = Bench::from_arguments();
    one_thread().block_on(from_main(&bench));
    run(&two_workers(), over_a_channel_from_two(bench.clone()));
    run(&one_thread(), over_a_channel(bench.clone()));
    measure::<Raw>(&bench);
}
