//! The operations on frameworks that hop through mailboxes, written once so that all are measured alike. A contender
//! says how it asks and tells, see [`Mailbox`]; it does not say what is measured.

use std::hint::black_box;

use crate::{
    BROADCASTS, BURST, Bench, CALLERS, LATCHES, LISTENERS, Last, MANY_NODES, one_thread, run, two_workers,
};

/// The address of an actor, as a contender has it. Cloning gives another address of the same actor.
pub trait Mailbox: Clone + Send + Sync + 'static {
    /// Starts an actor; done when the actor can take messages.
    fn start() -> impl Future<Output = Self> + Send;

    /// Asks for `number + 1`, and waits for the reply.
    fn ask(&self, number: u64) -> impl Future<Output = u64> + Send;

    /// As [`Mailbox::ask`], of a handler that does `suspend_once().await` before it answers; `None` for contenders
    /// whose handlers cannot.
    fn ask_suspending(&self, number: u64) -> impl Future<Output = Option<u64>> + Send;

    /// As [`Mailbox::ask`], of a handler that sleeps for [`SLEEP`](crate::SLEEP) before it answers; side by side with
    /// others where the contender has a means for that of its own.
    fn ask_sleeping(&self, number: u64) -> impl Future<Output = u64> + Send;

    /// Sends a message without waiting for it to be handled; the handler does `last.handled()`.
    fn tell(&self, number: u64, last: Last) -> impl Future<Output = ()> + Send;

    /// As [`Mailbox::tell`], to a handler that does `suspend_once().await` before `last.handled()`; false for contenders
    /// whose handlers cannot.
    fn tell_suspending(&self, number: u64, last: Last) -> impl Future<Output = bool> + Send;

    /// Runs something beside the calling task, on the worker with this number where that can be said.
    fn beside<F>(_worker: usize, future: F) -> impl Future<Output = F::Output> + Send
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let task = tokio::spawn(future);
        async { task.await.expect("it ran to its end") }
    }
}

/// Runs all operations, on tokio's runtimes.
pub fn measure<M: Mailbox>(bench: &Bench) {
    run(&two_workers(), two::<M>(bench.clone()));
    run(&one_thread(), one::<M>(bench.clone()));
}

async fn listeners<M: Mailbox>() -> Vec<M> {
    let mut all = Vec::new();
    for _ in 0..LISTENERS {
        all.push(M::start().await);
    }
    all
}

/// Broadcasts by a loop over the mailboxes. The brokers that some contenders have do the same after one more hop.
async fn broadcasts<M: Mailbox>(listeners: &[M], bursts: u64, sender: u8) {
    let latch = &LATCHES[usize::from(sender)];
    for _ in 0..bursts {
        latch.set(listeners.len());
        for number in 0..BROADCASTS {
            let last = Last::of(number, BROADCASTS, sender);
            for listener in listeners {
                listener.tell(black_box(number), last).await;
            }
        }
        latch.opened().await;
    }
}

/// The operations on one thread.
pub async fn one<M: Mailbox>(bench: Bench) {
    let node = M::start().await;
    for count in bench.operation("ask", 200_000) {
        for _ in 0..count {
            black_box(node.ask(black_box(1)).await);
        }
    }
    for count in bench.operation("send", 500).each(BURST) {
        for _ in 0..count {
            LATCHES[0].set(1);
            for number in 0..BURST {
                node.tell(black_box(number), Last::of(number, BURST, 0)).await;
            }
            LATCHES[0].opened().await;
        }
    }
    if node.ask_suspending(1).await.is_some() {
        for count in bench.operation("ask-suspends", 100_000) {
            for _ in 0..count {
                black_box(node.ask_suspending(black_box(1)).await);
            }
        }
    }
    if node.tell_suspending(1, Last::NO).await {
        for count in bench.operation("send-suspends", 100).each(BURST) {
            for _ in 0..count {
                LATCHES[0].set(1);
                for number in 0..BURST {
                    node.tell_suspending(black_box(number), Last::of(number, BURST, 0)).await;
                }
                LATCHES[0].opened().await;
            }
        }
    }
    let listeners = listeners::<M>().await;
    for count in bench.operation("broadcast", 300).each(BURST) {
        broadcasts(&listeners, count, 0).await;
    }
    if bench.wants("publish-many") || bench.wants("idle") {
        let nodes = bench.items("idle", MANY_NODES, async |count| {
            let mut nodes = Vec::new();
            for _ in 0..count {
                nodes.push(M::start().await);
            }
            // Every actor has come to wait for its first message when this task has its turn again.
            tokio::task::yield_now().await;
            nodes
        });
        let nodes = nodes.await;
        // None of the contenders has an index over many actors that would be faster than a sender that knows who
        // listens, so that is what is measured.
        let (step, listeners) = (nodes.len() / LISTENERS as usize, LISTENERS as usize);
        let some: Vec<_> = nodes.iter().step_by(step).take(listeners).cloned().collect();
        for count in bench.operation("publish-many", 30).each(BROADCASTS) {
            broadcasts(&some, count, 0).await;
        }
    }
}

/// The operations on two workers.
pub async fn two<M: Mailbox>(bench: Bench) {
    let listeners = listeners::<M>().await;
    for count in bench.operation("broadcast-2", 100).each(2 * BURST) {
        let publishers = [0, 1].map(|sender| {
            let listeners = listeners.clone();
            M::beside(sender, async move { broadcasts(&listeners, count, sender as u8).await })
        });
        for publisher in publishers {
            publisher.await;
        }
    }
    let node = M::start().await;
    for count in bench.operation("callers", 2_000).each(CALLERS) {
        let caller = |index| {
            let node = node.clone();
            M::beside(index as usize, async move {
                for _ in 0..count {
                    black_box(node.ask(black_box(1)).await);
                }
            })
        };
        for caller in (0..CALLERS).map(caller).collect::<Vec<_>>() {
            caller.await;
        }
    }
    for (name, callers) in [("sleep-one", 1), ("sleep-callers", CALLERS)] {
        for count in bench.operation(name, 10) {
            for _ in 0..count {
                let caller = |index| {
                    let node = node.clone();
                    M::beside(index as usize, async move { node.ask_sleeping(1).await })
                };
                for caller in (0..callers).map(caller).collect::<Vec<_>>() {
                    black_box(caller.await);
                }
            }
        }
    }
}
