//! The way of entries to the log: what waits leaves together, in order, and is sent again until the log has it. Owns the
//! numbers of this process's messages; does not know what entries say.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use happen_core::env::{BoxFuture, Env};
use happen_core::store::{Committed, Prune, Pruned};
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::copy::Copy;
use super::entry::{BatchBytes, CommitBytes, packed, prune_bytes};
use super::follower::News;
use super::message::{HEADER_BYTES, Message, WriterId};
use super::region;
use super::route::Route;
use crate::limits;

/// What the writer is asked for.
pub(crate) enum Call {
    Commit { batches: BatchBytes, answer: oneshot::Sender<Vec<Result<Committed>>> },
    Prune { prune: Prune, answer: oneshot::Sender<Result<Pruned>> },
}

/// Sends entries to the log.
pub(crate) struct Writer {
    pub(crate) copy: Arc<Copy>,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) context: Context,
    pub(crate) route: Route,
    pub(crate) calls: mpsc::Receiver<Call>,
    pub(crate) news: mpsc::Receiver<News>,
    pub(crate) anew: Arc<Notify>,
    /// Why the server did not take the last message that it did not take.
    pub(crate) trouble: watch::Sender<Option<String>>,
    pub(crate) state: Sending,
}

/// What is on its way.
#[derive(Default)]
pub(crate) struct Sending {
    flights: VecDeque<Flight>,
    /// The number of the last message.
    number: u64,
    acknowledgements: FuturesUnordered<BoxFuture<'static, Acknowledged>>,
    /// Counts how often all was sent again. What is said of an earlier time does not count as trouble.
    epoch: u64,
    /// How often the connection had been made when something was sent last.
    connects: u64,
    /// The next call, when it did not fit into the last entry.
    next: Option<Call>,
    /// How long to wait before all is sent again.
    wait_ms: u64,
    /// When something was sent last, of the environment's monotonic time.
    sent_at: Duration,
    /// How often it was looked while the first entry was acknowledged and did not come.
    silent: u32,
    /// After how many such looks the log is read anew; 0 as long as it never was in vain.
    silent_max: u32,
    /// The same looks, also beyond those after which it was read anew.
    unheard: u32,
}

/// An entry on its way.
struct Flight {
    /// The number of its last message.
    number: u64,
    messages: Vec<Bytes>,
    asked: Asked,
    /// Whether the log has said that it has the last message.
    acknowledged: bool,
    came: Came,
}

/// Who asked for an entry.
enum Asked {
    Commit(Vec<(usize, oneshot::Sender<Vec<Result<Committed>>>)>),
    Prune(oneshot::Sender<Result<Pruned>>),
}

/// What the log did with an entry.
enum Came {
    NotYet,
    Committed(Vec<Result<Committed>>),
    Pruned(Result<Pruned>),
}

struct Acknowledged {
    epoch: u64,
    number: u64,
    why_not: Option<String>,
}

/// What happens next.
enum Event {
    News(Option<News>),
    Acknowledged(Acknowledged),
    Call(Option<Call>),
    /// All is to be sent again.
    Again,
    /// It is to be looked whether all is well.
    Look,
    Failed,
}

impl Writer {
    /// Sends until nobody can ask any more and nobody waits, or until the copy failed.
    pub(crate) async fn run(mut self) {
        let mut failed = self.copy.failed();
        // When to look whether all is well, and when to send all again.
        let mut look: Option<BoxFuture<'static, ()>> = None;
        let mut again: Option<BoxFuture<'static, ()>> = None;
        self.state.connects = self.connects();
        self.state.sent_at = self.env.monotonic();
        loop {
            // Looked up, not only told by the queue: it is not asked for calls while all has to be sent again.
            let is_open = !self.calls.is_closed() || !self.calls.is_empty();
            if !is_open && !self.is_awaited() && self.state.next.is_none() {
                break;
            }
            if self.state.flights.is_empty() {
                look = None;
            } else if look.is_none() {
                look = Some(self.env.sleep(Duration::from_millis(limits::CONNECTION_LOOK_MS)));
            }
            let takes = again.is_none() && self.state.flights.len() < limits::LOG_FLIGHTS_MAX;
            if takes && let Some(call) = self.state.next.take() {
                self.send(call).await;
                continue;
            }
            let event = tokio::select! {
                biased;
                _ = failed.wait_for(|failed| *failed) => Event::Failed,
                news = self.news.recv() => Event::News(news),
                Some(acknowledged) = self.state.acknowledgements.next() => Event::Acknowledged(acknowledged),
                () = when(&mut again) => Event::Again,
                call = self.calls.recv(), if is_open && takes => Event::Call(call),
                () = when(&mut look) => Event::Look,
            };
            match event {
                Event::Failed | Event::News(None) => break,
                Event::Again => again = if self.send_again().await { None } else { Some(self.back_off()) },
                Event::News(Some(News::Missing)) if again.is_none() => again = Some(self.soon(0)),
                Event::News(Some(news)) => self.came(news),
                Event::Call(Some(call)) => {
                    // Whoever else has something to commit is ready by now: it goes into the same entry.
                    tokio::task::yield_now().await;
                    self.send(call).await;
                }
                // The last one is gone who could call.
                Event::Call(None) => {}
                Event::Acknowledged(acknowledged) => {
                    if let Some(why_not) = self.acknowledged(acknowledged) {
                        self.trouble.send_replace(Some(why_not));
                        if again.is_none() {
                            again = Some(self.back_off());
                        }
                    }
                }
                Event::Look => {
                    look = None;
                    self.look_for_silence().await;
                    // What was asked of a connection that is gone is never answered.
                    if again.is_none() && (self.connects() != self.state.connects || !self.is_connected()) {
                        again = Some(self.back_off());
                    }
                }
            }
        }
        self.end();
    }

    /// Whether somebody waits for what is on its way.
    fn is_awaited(&self) -> bool {
        self.state.flights.iter().any(|flight| match &flight.asked {
            Asked::Commit(asked) => asked.iter().any(|(_, answer)| !answer.is_closed()),
            Asked::Prune(answer) => !answer.is_closed(),
        })
    }

    /// Takes a call, and others that wait, into an entry and sends it.
    async fn send(&mut self, call: Call) {
        let standing = self.copy.standing();
        let (entry, asked) = match call {
            Call::Prune { prune, answer } => (prune_bytes(standing, &prune), Asked::Prune(answer)),
            Call::Commit { batches, answer } => {
                let mut entry = CommitBytes::new(standing);
                let mut asked = Vec::new();
                let mut next = Some((batches, answer));
                while let Some((batches, answer)) = next.take() {
                    // Whoever does not wait any more was told that it was not sent.
                    if !answer.is_closed() {
                        entry.push(&batches);
                        asked.push((batches.count(), answer));
                    }
                    if entry.len() >= limits::MESSAGE_BYTES_MAX {
                        break;
                    }
                    match self.calls.try_recv() {
                        Ok(Call::Commit { batches, answer }) => next = Some((batches, answer)),
                        Ok(prune) => self.state.next = Some(prune),
                        Err(_) => {}
                    }
                }
                if asked.is_empty() {
                    return;
                }
                (entry.finish(), Asked::Commit(asked))
            }
        };
        self.begin_anew_after_a_rest();
        let own = self.copy.own();
        let room =
            self.context.client().max_payload().clamp(HEADER_BYTES * 2, PAYLOAD_BYTES_MAX) - HEADER_BYTES;
        let entry = packed(entry);
        let mut parts = entry.chunks(room).peekable();
        let mut messages = Vec::with_capacity(1);
        while let Some(body) = parts.next() {
            self.state.number += 1;
            let message =
                Message { writer: own, number: self.state.number, more: parts.peek().is_some(), body };
            messages.push(Bytes::from(message.encode()));
        }
        let number = self.state.number;
        if self.state.flights.is_empty() {
            self.state.connects = self.connects();
        }
        self.publish(number, &messages).await;
        self.state.flights.push_back(Flight {
            number,
            messages,
            asked,
            acknowledged: false,
            came: Came::NotYet,
        });
    }

    /// Takes another name as a writer when this process has not written for long: the log may have forgotten it, and then
    /// takes nothing from it but a first message.
    fn begin_anew_after_a_rest(&mut self) {
        let now = self.env.monotonic();
        let rested = now.saturating_sub(self.state.sent_at);
        self.state.sent_at = now;
        if self.state.flights.is_empty() && rested >= Duration::from_millis(limits::WRITER_REST_MS) {
            let mut own: WriterId = Default::default();
            self.env.fill_random(&mut own);
            self.copy.begin_anew(own);
            self.state.number = 0;
        }
    }

    /// Sends the messages of an entry whose last one has this number.
    async fn publish(&mut self, last: u64, messages: &[Bytes]) {
        let epoch = self.state.epoch;
        let first = last + 1 - messages.len() as u64;
        for (number, message) in (first..).zip(messages) {
            let sent = self
                .context
                .send_publish(
                    self.route.subject().to_owned(),
                    PublishMessage::build().payload(message.clone()),
                )
                .await;
            let nobody = self.route.nobody();
            self.state.acknowledgements.push(Box::pin(async move {
                let acknowledged = match sent {
                    Ok(acknowledgement) => acknowledgement.await.map(drop),
                    Err(error) => Err(error),
                };
                let why_not = acknowledged.err().map(|error| match error.kind() {
                    PublishErrorKind::StreamNotFound => nobody.to_owned(),
                    _ if region::is_sealed(&error) => "another region writes the log now".to_owned(),
                    _ => told(&error),
                });
                Acknowledged { epoch, number, why_not }
            }));
        }
    }

    /// Sends everything again that the log may not have. False while there is no connection.
    async fn send_again(&mut self) -> bool {
        if !self.is_connected() {
            return false;
        }
        // Another region may write the log by now.
        self.route.look_again(self.state.wait_ms >= limits::RESEND_WAIT_MS_MAX).await;
        self.state.epoch += 1;
        self.state.connects = self.connects();
        let mut flights = std::mem::take(&mut self.state.flights);
        for flight in flights.iter_mut().filter(|flight| !flight.is_over()) {
            flight.acknowledged = false;
            self.publish(flight.number, &flight.messages).await;
        }
        self.state.flights.append(&mut flights);
        // A server that has forgotten who reads gives nothing, however often something is sent.
        self.anew.notify_one();
        true
    }

    /// Has the log read anew when it has an entry and does not give it, and looked after where it is got from elsewhere.
    async fn look_for_silence(&mut self) {
        let first = self.state.flights.front();
        let waits = first.is_some_and(|flight| flight.acknowledged && matches!(flight.came, Came::NotYet));
        self.state.silent = if waits { self.state.silent + 1 } else { 0 };
        self.state.unheard = if waits { self.state.unheard.wrapping_add(1) } else { 0 };
        if waits && self.state.unheard.is_multiple_of(limits::ROUSE_LOOKS) {
            self.route.rouse().await;
        }
        let looks = self.state.silent_max.clamp(limits::SILENT_LOOKS, limits::SILENT_LOOKS_MAX);
        if self.state.silent >= looks {
            self.state.silent = 0;
            // A reader that is replaced before it has begun never reads anything.
            self.state.silent_max = looks * 2;
            self.trouble.send_replace(Some(self.route.silent().to_owned()));
            self.anew.notify_one();
        }
    }

    /// Notes what the server says of a message. Gives why it did not take it, if that matters.
    fn acknowledged(&mut self, acknowledged: Acknowledged) -> Option<String> {
        let Acknowledged { epoch, number, why_not } = acknowledged;
        if let Some(why_not) = why_not {
            let matters =
                epoch == self.state.epoch && self.state.flights.iter().any(|flight| !flight.is_over());
            return matters.then_some(why_not);
        }
        self.state.wait_ms = 0;
        // What was acknowledged before all was sent again may be another copy than the one that counts.
        if epoch == self.state.epoch
            && let Some(flight) = self.flight(number)
        {
            flight.acknowledged = true;
        }
        self.answer();
        None
    }

    /// Notes what the log did with an entry.
    fn came(&mut self, news: News) {
        let (number, came) = match news {
            News::Committed(number, results) => (number, Came::Committed(results)),
            News::Pruned(number, result) => (number, Came::Pruned(result)),
            News::Missing => return,
        };
        self.state.silent_max = 0;
        self.route.heard();
        if let Some(flight) = self.flight(number) {
            flight.came = came;
        }
        self.trouble.send_if_modified(|trouble| trouble.take().is_some());
        self.answer();
    }

    fn flight(&mut self, number: u64) -> Option<&mut Flight> {
        let flights = &mut self.state.flights;
        let index = flights.binary_search_by_key(&number, |flight| flight.number).ok()?;
        flights.get_mut(index)
    }

    /// Answers what is over. A pruning may take long and holds up nobody.
    fn answer(&mut self) {
        let mut index = 0;
        while let Some(flight) = self.state.flights.get(index) {
            if flight.is_over() {
                if let Some(flight) = self.state.flights.remove(index) {
                    flight.answer();
                }
            } else if matches!(flight.asked, Asked::Prune(_)) {
                index += 1;
            } else {
                return;
            }
        }
    }

    /// Answers whoever still waits with why nothing more is written.
    fn end(mut self) {
        self.calls.close();
        let why = || match self.copy.check() {
            Err(error) => error,
            Ok(()) => closed(),
        };
        let mut calls: Vec<Call> = self.state.next.take().into_iter().collect();
        while let Ok(call) = self.calls.try_recv() {
            calls.push(call);
        }
        for call in calls {
            match call {
                Call::Commit { batches, answer } => {
                    drop(answer.send((0..batches.count()).map(|_| Err(why())).collect()));
                }
                Call::Prune { answer, .. } => drop(answer.send(Err(why()))),
            }
        }
        for flight in self.state.flights.drain(..) {
            match flight.asked {
                Asked::Commit(asked) => {
                    for (len, answer) in asked {
                        drop(answer.send((0..len).map(|_| Err(why())).collect()));
                    }
                }
                Asked::Prune(answer) => drop(answer.send(Err(why()))),
            }
        }
    }

    fn back_off(&mut self) -> BoxFuture<'static, ()> {
        let wait_ms = self.state.wait_ms;
        self.state.wait_ms = (wait_ms * 2).clamp(limits::RESEND_WAIT_MS, limits::RESEND_WAIT_MS_MAX);
        self.soon(wait_ms)
    }

    fn soon(&self, wait_ms: u64) -> BoxFuture<'static, ()> {
        self.env.sleep(Duration::from_millis(wait_ms))
    }

    fn is_connected(&self) -> bool {
        self.context.client().connection_state() == State::Connected
    }

    fn connects(&self) -> u64 {
        self.context.client().statistics().connects.load(Ordering::Relaxed)
    }
}

impl Flight {
    fn is_over(&self) -> bool {
        self.acknowledged && !matches!(self.came, Came::NotYet)
    }

    fn answer(self) {
        match (self.asked, self.came) {
            (Asked::Commit(asked), Came::Committed(results)) => {
                let mut results = results.into_iter();
                for (len, answer) in asked {
                    drop(answer.send(results.by_ref().take(len).collect()));
                }
            }
            (Asked::Prune(answer), Came::Pruned(result)) => drop(answer.send(result)),
            // An entry comes back as what it was.
            (Asked::Commit(_), _) | (Asked::Prune(_), _) => {}
        }
    }
}

/// Ends with a wait, if there is one.
pub(crate) async fn when(wait: &mut Option<BoxFuture<'static, ()>>) {
    match wait {
        Some(wait) => wait.await,
        None => pending().await,
    }
}

/// An error with its causes in one line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_told = cause.to_string();
        if !told.contains(&cause_told) {
            told = format!("{told}: {cause_told}");
        }
        source = cause.source();
    }
    told
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed { what: "the store".into() })
}

/// No server takes more in one message, whatever it says.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;
