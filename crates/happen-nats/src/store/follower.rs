//! The way from the log into the copy: messages in the order of the log, each entry taken once, nothing left out. Owns
//! how the log is followed; does not know who wrote what and why.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_nats::jetstream::consumer::push::{Config, Messages};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PushConsumer};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use futures_util::{FutureExt as _, StreamExt as _};
use happen_core::env::{BoxFuture, Env};
use happen_core::store::{Committed, Pruned};
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::{Notify, mpsc, watch};

use super::copy::{Copy, check_pruned, outcome_of};
use super::entry::{Entry, Standing};
use super::message::{Arrived, Message, Writers};
use super::snapshot::{Header, Snapshots};
use super::stream::{self, Origin};
use super::writer::{told, when};
use crate::limits;

/// What the log did with what this process wrote.
#[derive(Debug)]
pub(crate) enum News {
    /// An entry was taken that ends with this message of ours.
    Committed(u64, Vec<Result<Committed>>),
    /// A pruning was taken, which is this message of ours.
    Pruned(u64, Result<Pruned>),
    /// A message came without those before it.
    Missing,
}

/// Follows the log.
pub(crate) struct Follower {
    pub(crate) copy: Arc<Copy>,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) client: async_nats::Client,
    pub(crate) stream: Stream,
    pub(crate) news: mpsc::Sender<News>,
    /// Asks to read anew, because the server seems to have forgotten the reader.
    pub(crate) anew: Arc<Notify>,
    pub(crate) closed: watch::Receiver<bool>,
    pub(crate) writers: Writers,
    /// The last message that was read.
    pub(crate) sequence: u64,
    /// How the stream came to be here, if it is not the first one.
    pub(crate) origin: Option<Origin>,
    pub(crate) snapshots: Snapshots,
    /// A copy is due after so many bytes.
    pub(crate) copy_after: u64,
    /// Whether the copy is to be kept once everything that was read is taken.
    pub(crate) keeps_copy: bool,
    /// Another process, perhaps of another region, wrote the message with this sequence, at which a copy was due: when to
    /// look whether it was kept, of the environment's monotonic time.
    pub(crate) overdue: Option<(u64, Duration)>,
}

/// A message on its way into the copy.
struct Taking {
    sequence: u64,
    taken: BoxFuture<'static, Taken>,
}

/// What became of a message.
enum Taken {
    Commit { own: Option<u64>, standing: Standing, results: Vec<Result<Committed>> },
    Pruning(Standing),
    Nothing,
}

/// Why reading ends.
enum End {
    Closed,
    Failed(Error),
}

/// Why the server has to be asked anew.
#[derive(Debug)]
enum Again {
    /// What came is not the next message.
    Missing,
    /// Something was written and does not come.
    Silent,
    Failed(String),
}

impl Follower {
    /// Follows until the store closes or the copy cannot take something.
    pub(crate) async fn run(mut self) {
        if let End::Failed(error) = self.follow().await {
            self.copy.fail(&error);
        }
    }

    async fn follow(&mut self) -> End {
        let mut wait = limits::RESEND_WAIT_MS;
        let mut in_vain = 0;
        loop {
            let begun = self.sequence;
            let mut closed = self.closed.clone();
            let read = tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => return End::Closed,
                read = self.read() => read,
            };
            match read {
                Ok(end) => return end,
                Err(again) => {
                    tracing::debug!(target: "happen", "the log is read anew: {again:?}");
                    let is_missing = matches!(again, Again::Missing) && self.sequence == begun;
                    in_vain = if is_missing { in_vain + 1 } else { 0 };
                    if let Again::Failed(why) = again {
                        self.copy.reads(Some(why));
                    }
                }
            }
            if in_vain > 0
                && let Some(why) = self.why_gone(in_vain).await
            {
                return End::Failed(gone(self.sequence + 1, &why));
            }
            if self.sequence > begun {
                wait = limits::RESEND_WAIT_MS;
            }
            self.env.sleep(Duration::from_millis(wait)).await;
            wait = (wait * 2).min(limits::RESEND_WAIT_MS_MAX);
        }
    }

    /// Reads on from where it stands.
    ///
    /// # Errors
    ///
    /// When the server has to be asked anew.
    async fn read(&mut self) -> Result<End, Again> {
        let mut messages = self.messages().await.map_err(Again::Failed)?;
        // The reader is of the stream that is looked at now, or of none: whoever begins anew deletes the one before.
        if let Some(error) = self.made_anew().await.map_err(Again::Failed)? {
            return Ok(End::Failed(error));
        }
        self.copy.reads(None);
        // This is the reader that was asked for meanwhile: one that is replaced at once never gives anything.
        let _ = self.anew.notified().now_or_never();
        let mut taking: VecDeque<Taking> = VecDeque::new();
        let mut look: Option<BoxFuture<'static, ()>> = None;
        let end = loop {
            if let (Some((_, at)), None) = (self.overdue, &look) {
                look = Some(self.env.sleep(at.saturating_sub(self.env.monotonic())));
            }
            if self.keeps_copy && taking.is_empty() {
                self.keeps_copy = false;
                self.keep_copy().await;
            }
            tokio::select! {
                biased;
                (sequence, taken) = next_taken(&mut taking) => {
                    if let Err(error) = self.took(sequence, taken).await {
                        return Ok(End::Failed(error));
                    }
                }
                message = messages.next(), if taking.len() < limits::LOG_AHEAD_MAX && !self.keeps_copy => {
                    let message = match message {
                        Some(Ok(message)) => message,
                        Some(Err(error)) => break Err(Again::Failed(error.to_string())),
                        None => break Err(Again::Failed("the connection is gone".into())),
                    };
                    match self.take(&message, &mut taking).await {
                        Ok(true) => {}
                        Ok(false) => break Err(Again::Missing),
                        Err(error) => break Ok(End::Failed(error)),
                    }
                }
                () = self.anew.notified() => break Err(Again::Silent),
                () = when(&mut look) => {
                    look = None;
                    if let Some((sequence, _)) = self.overdue.take() {
                        let kept = self.snapshots.kept().await;
                        self.keeps_copy |= kept.is_ok_and(|kept| kept.is_none_or(|kept| kept < sequence));
                    }
                }
            }
        };
        // What was read is taken before anything is read again.
        while !taking.is_empty() {
            let (sequence, taken) = next_taken(&mut taking).await;
            if let Err(error) = self.took(sequence, taken).await {
                return Ok(End::Failed(error));
            }
        }
        end
    }

    /// Why this copy cannot go on, if these servers have begun anew with the log as another region has it.
    async fn made_anew(&mut self) -> Result<Option<Error>, String> {
        let info = self.stream.get_info().await.map_err(|error| told(&error))?;
        let origin = stream::origin(&info.config);
        if origin == self.origin {
            return Ok(None);
        }
        let shared = origin.as_ref().map_or(0, |origin| origin.shared);
        if self.sequence > shared {
            let what = format!(
                "the log goes on as another region has it, and of what this copy has only the messages up to {shared} are \
                 known to be in it; open the store again"
            );
            return Ok(Some(Error::new(ErrorKind::Damaged { what })));
        }
        self.origin = origin;
        Ok(None)
    }

    /// Why the log does not have the next message any more: it begins behind it, or whoever leads it says so. A server that
    /// gives one behind it may only not have come after the others yet.
    async fn why_gone(&mut self, in_vain: u32) -> Option<String> {
        let next = self.sequence + 1;
        let state = self.stream.info().await.ok()?.state.clone();
        if state.first_sequence > next {
            return Some(format!("the log begins with message {}", state.first_sequence));
        }
        if in_vain < limits::READ_AGAIN_MAX || state.last_sequence < next {
            return None;
        }
        let error = self.stream.get_raw_message(next).await.err()?;
        let missing = matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound);
        missing.then(|| format!("the log goes up to message {} without it", state.last_sequence))
    }

    /// Writes the copy as it is now, and keeps it beside.
    async fn keep_copy(&self) {
        let header =
            Header { standing: self.copy.standing(), sequence: self.sequence, writers: self.writers.clone() };
        let (folder, file) = match self.copy.write().await {
            Ok(written) => written,
            Err(error) => {
                tracing::warn!(target: "happen", code = error.code(), "no copy of the log was written: {error}");
                return;
            }
        };
        let (snapshots, stream) = (self.snapshots.clone(), self.stream.clone());
        self.env.spawn(Box::pin(async move {
            if let Err(error) = snapshots.save(&header, &file, &stream).await {
                tracing::warn!(target: "happen", code = error.code(), "no copy of the log was kept: {error}");
            }
            drop(folder);
        }));
    }

    async fn messages(&self) -> Result<Messages, String> {
        let mut reader = self.reader().await?;
        // At another server than the one that leads the log, an entry is given only once that one has told that it counts:
        // a step takes a fifth longer. Servers choose by chance.
        if let Some(leader) = self.leader(&reader).await {
            for _ in 0..limits::READER_PLACES_MAX {
                let place = reader.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.as_ref());
                if place == Some(&leader) {
                    break;
                }
                let Ok(another) = self.reader().await else { break };
                let before = std::mem::replace(&mut reader, another);
                // One that cannot be deleted now goes by itself, because nobody reads.
                drop(self.stream.delete_consumer(&before.cached_info().name).await);
            }
        }
        reader.messages().await.map_err(|error| told(&error))
    }

    /// The server that leads the log, if there are several.
    async fn leader(&self, reader: &PushConsumer) -> Option<String> {
        reader.cached_info().cluster.as_ref()?;
        self.stream.get_info().await.ok()?.cluster?.leader
    }

    async fn reader(&self) -> Result<PushConsumer, String> {
        let deliver_policy = match self.sequence {
            0 => DeliverPolicy::All,
            last => DeliverPolicy::ByStartSequence { start_sequence: last + 1 },
        };
        let config = Config {
            deliver_subject: self.client.new_inbox(),
            deliver_policy,
            ack_policy: AckPolicy::None,
            flow_control: true,
            idle_heartbeat: Duration::from_millis(limits::LOG_HEARTBEAT_MS),
            inactive_threshold: Duration::from_millis(limits::READER_KEPT_MS),
            memory_storage: true,
            num_replicas: 1,
            ..Config::default()
        };
        self.stream.create_consumer(config).await.map_err(|error| told(&error))
    }

    /// Takes a message. False when some before it are missing and have to be read first.
    ///
    /// # Errors
    ///
    /// When the copy cannot go on with what came.
    async fn take(
        &mut self,
        message: &async_nats::jetstream::Message,
        taking: &mut VecDeque<Taking>,
    ) -> Result<bool> {
        let Ok(info) = message.info() else {
            self.copy.refuse(&Error::misuse("a message came that is not of the stream"));
            return Ok(true);
        };
        let sequence = info.stream_sequence;
        if sequence <= self.sequence {
            return Ok(true);
        }
        if sequence != self.sequence + 1 {
            return Ok(false);
        }
        self.sequence = sequence;
        let at_unix_ms = u64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
        let taken = self.taken(&message.payload, at_unix_ms).await?;
        if sequence.is_multiple_of(limits::WRITER_LOOK_MESSAGES) {
            self.writers.forget_before(at_unix_ms.saturating_sub(limits::WRITER_AGE_MS));
        }
        let mut taken = taken.unwrap_or_else(|| Box::pin(std::future::ready(Taken::Nothing)));
        // Stands in line at the store when it is polled first, and the order is that of the log.
        let polled = poll_fn(|task| Poll::Ready(taken.as_mut().poll(task))).await;
        if let Poll::Ready(done) = polled {
            taken = Box::pin(std::future::ready(done));
        }
        taking.push_back(Taking { sequence, taken });
        Ok(true)
    }

    /// What becomes of the bytes of a message; none when it has no effect.
    async fn taken(&mut self, bytes: &[u8], at_unix_ms: u64) -> Result<Option<BoxFuture<'static, Taken>>> {
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(error) if matches!(error.kind(), ErrorKind::Misuse { .. }) => return Err(error),
            Err(error) => {
                self.copy.refuse(&error);
                return Ok(None);
            }
        };
        let own = (message.writer == self.copy.own()).then_some(message.number);
        // Whoever writes the message at which a copy is due keeps it.
        if self.writers.is_copy_due(bytes.len(), self.copy_after) {
            self.keeps_copy |= own.is_some();
            let wait = limits::COPY_LATE_MS + self.env.random_u64() % limits::COPY_LATE_MS;
            let at = self.env.monotonic() + Duration::from_millis(wait);
            self.overdue = own.is_none().then_some((self.sequence, at));
        }
        let whole = match self.writers.take(&message, at_unix_ms) {
            Ok(Arrived::Whole(whole)) => whole,
            Ok(Arrived::Part | Arrived::Again) => return Ok(None),
            Ok(Arrived::Early) => {
                if own.is_some() {
                    // Nobody to tell means that the store closes.
                    drop(self.news.send(News::Missing).await);
                }
                return Ok(None);
            }
            Err(error) => {
                self.copy.refuse(&error);
                return Ok(None);
            }
        };
        let (standing, entry) = match Entry::decode(&whole) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.copy.refuse(&error);
                return Ok(None);
            }
        };
        let copy = Arc::clone(&self.copy);
        Ok(Some(match entry {
            Entry::Commit(batches) => Box::pin(async move {
                let results = copy.store.commit_at(at_unix_ms, batches).await;
                Taken::Commit { own, standing, results }
            }),
            Entry::Prune(prune) => {
                let (env, news) = (Arc::clone(&self.env), self.news.clone());
                Box::pin(async move {
                    let begun = copy.store.prune_at(at_unix_ms, prune).await;
                    let sweeping = Arc::clone(&copy);
                    // It is true for whoever comes behind it; its room is freed while the log goes on.
                    env.spawn(Box::pin(async move {
                        let swept = match begun {
                            Ok(swept) => swept.await,
                            Err(error) => Err(error),
                        };
                        if let Err(error) = check_pruned(&swept) {
                            sweeping.fail(&error);
                        }
                        if let Some(number) = own {
                            // Nobody to tell means that the store closes.
                            drop(news.send(News::Pruned(number, swept)).await);
                        }
                    }));
                    Taken::Pruning(standing)
                })
            }
        }))
    }

    /// Notes what was taken, in the order of the log.
    async fn took(&self, sequence: u64, taken: Taken) -> Result<()> {
        match taken {
            Taken::Nothing => {}
            Taken::Pruning(standing) => self.copy.took(sequence, standing, b"prune")?,
            Taken::Commit { own, standing, results } => {
                self.copy.took(sequence, standing, &outcome_of(&results)?)?;
                self.copy.reach(sequence);
                if let Some(number) = own {
                    drop(self.news.send(News::Committed(number, results)).await);
                }
            }
        }
        self.copy.reach(sequence);
        Ok(())
    }
}

/// The message that is next in the order of the log, once it was taken. Waits for ever when there is none.
async fn next_taken(taking: &mut VecDeque<Taking>) -> (u64, Taken) {
    poll_fn(|task| {
        let Some(Taking { sequence, taken }) = taking.front_mut() else { return Poll::Pending };
        let sequence = *sequence;
        taken.as_mut().poll(task).map(|taken| {
            taking.pop_front();
            (sequence, taken)
        })
    })
    .await
}

fn gone(sequence: u64, why: &str) -> Error {
    Error::new(ErrorKind::Damaged {
        what: format!(
            "message {sequence} of the log is gone, for {why}, and the copy of this process does not have it; open the \
             store again, which begins with what is kept of the log"
        ),
    })
}
