//! A log in several regions, each with servers of its own: one of them writes it, the others follow. Owns which one that is
//! and how it becomes another; does not know what is written.
//!
//! Servers of a region are a JetStream domain. The stream of the others is a mirror with the same sequences, so a process
//! there reads at its own servers, and what it writes goes to the subject of the stream that takes it. A region that takes
//! over writes to another subject than the one before: whatever that one still takes stays out of the log.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{GetStreamError, PublishError};
use async_nats::jetstream::stream::{Config, LastRawMessageError, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context, ContextBuilder, ErrorCode};
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::watch;

use super::asking::{Unanswered, patiently};
use super::snapshot::Snapshots;
use super::writer::told;
use super::{NatsStoreOptions, stream};
use crate::limits;

/// The log of a space as the servers of one region have it.
///
/// Servers that choose who leads them answer nothing for some seconds. So whatever is asked of a region is asked again for
/// [`limits::OPEN_WAIT_MS`] before it counts as one that does not answer.
///
/// # Examples
///
/// What is done when the region that writes is lost, by a person or by whatever decides in their place:
///
/// ```
/// use std::sync::Arc;
/// use happen::env::RealEnv;
/// use happen_nats::{Former, LogPlace, LogRegion, NatsStoreOptions};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let server = happen_testing::NatsServer::start();
/// # let client = async_nats::connect(server.url()).await.unwrap();
/// let region = LogRegion::new(client, NatsStoreOptions::new("shop", Arc::new(RealEnv::new())));
/// match region.look().await? {
///     LogPlace::Mirrored { domain, .. } => {
///         let taken = region.take_over(Former::Lost).await?;
///         println!("written here and not in {domain}, from message {} on", taken.sequence + 1);
///     }
///     place => println!("nothing to take over: {place:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LogRegion {
    context: Context,
    client: async_nats::Client,
    options: NatsStoreOptions,
}

/// What the servers of a region do with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogPlace {
    /// They have none.
    Absent,
    /// They write it.
    Written {
        /// Higher each time it is taken over; 1 for a log that never was.
        epoch: u64,
        /// Its last message.
        sequence: u64,
    },
    /// They follow those of another domain, which write it.
    Mirrored {
        /// That domain.
        domain: String,
        /// The last message that came.
        sequence: u64,
        /// How many are known that have not come.
        behind: u64,
    },
    /// Another region has taken it over: nothing is written here any more.
    Sealed {
        /// The last message, which the other region may not have.
        sequence: u64,
    },
}

/// Another region that has to do with a log, as it is seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OtherRegion {
    /// Its domain.
    pub domain: String,
    /// What its servers do with the log; `None` when they do not answer.
    pub place: Option<LogPlace>,
}

/// What is to be done about the region that writes a log, when another one takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "it answers or it does not")]
pub enum Former {
    /// It answers: it takes nothing more, and everything it has comes along first. Nothing is lost.
    Answers,
    /// It does not answer and is given up: what it acknowledged and did not send on yet is not in the log. It is kept
    /// there, and that region is told to take nothing more as soon as it answers again.
    Lost,
}

/// What is to be done about messages that a region has and the log does not: it wrote or got them, and was given up, or
/// followed one that was, before they had come to the region that took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "they are kept or they are not")]
pub enum Surplus {
    /// Nothing is done while there are some: they can still be read here.
    Keep,
    /// They are deleted here.
    GiveUp,
}

/// Servers that follow a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Followed {
    /// Up to which message what was here is known to be in the log.
    pub shared: u64,
    /// How many messages behind that were here and are deleted.
    pub given_up: u64,
}

/// A log that was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TakenOver {
    /// Higher each time; 1 for a log that never was taken over.
    pub epoch: u64,
    /// The last message from before.
    pub sequence: u64,
}

impl LogRegion {
    /// The log of this space at the servers of this client.
    #[must_use]
    pub fn new(client: async_nats::Client, options: NatsStoreOptions) -> Self {
        let wait = Duration::from_millis(limits::ASK_WAIT_MS);
        Self { context: ContextBuilder::new().timeout(wait).build(client.clone()), client, options }
    }

    /// What these servers do with the log.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when they do not answer; [`ErrorKind::Misuse`] when the stream is no log of a space.
    pub async fn look(&self) -> Result<LogPlace> {
        self.place_of(self.stream().await?.as_ref())
    }

    /// What the other region does with the log that these servers know of: the one that they follow, or else the one that
    /// they took the log over from. `None` when there is no such region; of others nothing is known here.
    ///
    /// # Errors
    ///
    /// As [`LogRegion::look`]; that the other region does not answer is none.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    /// use happen::env::RealEnv;
    /// use happen_nats::{LogRegion, NatsStoreOptions};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// # let server = happen_testing::NatsServer::start();
    /// # let client = async_nats::connect(server.url()).await.unwrap();
    /// let region = LogRegion::new(client, NatsStoreOptions::new("shop", Arc::new(RealEnv::new())));
    /// if let Some(other) = region.look_at_other().await? {
    ///     println!("{}: {:?}", other.domain, other.place);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn look_at_other(&self) -> Result<Option<OtherRegion>> {
        let Some(stream) = self.stream().await? else { return Ok(None) };
        let config = &stream.cached_info().config;
        let Some(domain) = stream::mirrored(config).or_else(|| stream::before(config)) else {
            return Ok(None);
        };
        let there = at(&self.client, domain);
        let place = match found(self.ask(&there, &stream::name(&self.options)?).await) {
            Ok(stream) => Some(self.place_of(stream.as_ref())?),
            // Whatever is said in place of its servers, they did not say anything.
            Err(_) => None,
        };
        Ok(Some(OtherRegion { domain: domain.to_owned(), place }))
    }

    fn place_of(&self, stream: Option<&Stream>) -> Result<LogPlace> {
        let Some(stream) = stream else { return Ok(LogPlace::Absent) };
        let info = stream.cached_info();
        let sequence = info.state.last_sequence;
        if info.config.sealed {
            return Ok(LogPlace::Sealed { sequence });
        }
        if let Some(domain) = stream::mirrored(&info.config) {
            let behind = info.mirror.as_ref().map_or(0, |mirror| mirror.lag);
            return Ok(LogPlace::Mirrored { domain: domain.to_owned(), sequence, behind });
        }
        let epoch = stream::epoch(&info.config, &self.options)?.ok_or_else(|| self.no_log())?;
        Ok(LogPlace::Written { epoch, sequence })
    }

    /// Has these servers write the log from now on. Processes here go on as they are; those of the region before
    /// stop committing when they hear of it, until that region [follows](Self::follow) this one, as every other has to.
    /// Doing it again changes nothing.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::NotFound`]: there is no mirror of the log here.
    /// - [`ErrorKind::Misuse`]: another region has taken over from these servers; or the region before answers and was to
    ///   be given up, which would lose what can be had.
    /// - [`ErrorKind::Io`]: the region before does not answer, and was to be stopped first; or what it has does not come
    ///   along.
    ///
    /// # Cancel safety
    ///
    /// The region before may be stopped already; doing it again goes on there.
    pub async fn take_over(&self, former: Former) -> Result<TakenOver> {
        let Some(stream) = self.stream().await? else {
            let what = format!("a mirror of the log of space `{}` on these servers", self.options.space);
            return Err(Error::new(ErrorKind::NotFound { what }));
        };
        let config = &stream.cached_info().config;
        if config.sealed {
            return Err(Error::misuse(
                "another region took the log over from these servers; take it over from that one",
            ));
        }
        let Some(domain) = stream::mirrored(config).map(str::to_owned) else {
            let epoch = stream::epoch(config, &self.options)?.ok_or_else(|| self.no_log())?;
            return Ok(TakenOver { epoch, sequence: stream.cached_info().state.last_sequence });
        };
        let (env, there) = (&self.options.env, at(&self.client, &domain));
        let before = match (self.ask(&there, &stream::name(&self.options)?).await, former) {
            (Ok(theirs), Former::Answers) => {
                let last = patiently(env, |_| false, || seal(&there, &theirs)).await?;
                self.caught_up(&domain, last).await?;
                stream::epoch(&theirs.cached_info().config, &self.options)?.unwrap_or_default()
            }
            (Ok(_), Former::Lost) => {
                return Err(Error::misuse(format!(
                    "region `{domain}` answers: hand the log over, so that nothing is lost"
                )));
            }
            (Err(error), Former::Answers) => {
                let what = format!(
                    "ask region `{domain}`, which writes the log: {} (to go on without what it has, give it up)",
                    told(&error)
                );
                return Err(Error::new(ErrorKind::Io { what }));
            }
            // Nobody can say its epoch. The time is later than any that went before it.
            (Err(_), Former::Lost) => self.options.env.unix_ms(),
        };
        let epoch = before + 1;
        let taken = stream::taken_over(config, &self.options, epoch, &domain)?;
        let taken = patiently(env, Unanswered::is_no, || self.context.update_stream(&taken)).await;
        let taken = taken.map_err(|error| failed("take over", &error))?;
        Ok(TakenOver { epoch, sequence: taken.state.last_sequence })
    }

    /// Has these servers follow another region from now on, which writes the log. That is what is left to do where a region
    /// was taken over from, and in each further region that followed it. Processes here go on as they are, and commit to
    /// the region that writes; one whose copy has messages that are not in the log is told, and has to open it again. Doing
    /// it again changes nothing.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Conflict`]: messages are here that are not, or not known to be, in the log. They can be read from
    ///   these servers until they are given up.
    /// - [`ErrorKind::Misuse`]: these servers write the log; or the other region does not, or has an older one.
    /// - [`ErrorKind::Io`]: one of the two does not answer.
    ///
    /// # Cancel safety
    ///
    /// The log may be gone here, and only here; doing it again gets it from the other region.
    ///
    /// # Cost
    ///
    /// Everything that the other region has of its log comes anew, and is compared before with some questions about single
    /// messages.
    pub async fn follow(&self, domain: &str, surplus: Surplus) -> Result<Followed> {
        let name = stream::name(&self.options)?;
        let there = at(&self.client, domain);
        let theirs = self.ask(&there, &name).await.map_err(|error| {
            let what = format!("ask region `{domain}`, which is to be followed: {}", told(&error));
            Error::new(ErrorKind::Io { what })
        })?;
        let their_config = &theirs.cached_info().config;
        let epoch = stream::epoch(their_config, &self.options)?.filter(|_| !their_config.sealed);
        let Some(epoch) = epoch else {
            return Err(Error::misuse(format!(
                "region `{domain}` does not write the log; follow the one that does"
            )));
        };
        let ours = self.stream().await?;
        let config = ours.as_ref().map(|ours| ours.cached_info().config.clone());
        let last = ours.as_ref().map_or(0, |ours| ours.cached_info().state.last_sequence);
        let mut shared = 0;
        if let (Some(ours), Some(config)) = (&ours, &config) {
            if stream::mirrored(config) == Some(domain) {
                return Ok(Followed { shared: last, given_up: 0 });
            }
            if stream::mirrored(config).is_none() && !config.sealed {
                return Err(Error::misuse(
                    "these servers write the log; take it over from another region first",
                ));
            }
            shared = self.shared(ours, &theirs, epoch).await?;
        }
        let given_up = last - shared;
        if given_up > 0 && surplus == Surplus::Keep {
            let (space, first) = (&self.options.space, shared + 1);
            let what = format!(
                "messages {first} to {last} of the log of space `{space}` are here and not, or not known to be, in the log \
                 that region `{domain}` writes; read them here, then give them up"
            );
            return Err(Error::new(ErrorKind::Conflict { what }));
        }
        let replicas = config
            .map_or_else(|| stream::replicas(&self.client, &self.options), |config| config.num_replicas);
        let mirror = stream::followed(&self.options, replicas, domain, shared)?;
        let env = &self.options.env;
        if ours.is_some() {
            let delete = || async {
                match self.context.delete_stream(&name).await {
                    // It was deleted when nobody could say so.
                    Err(error) if stream::is_absent(&error) => Ok(()),
                    deleted => deleted.map(drop),
                }
            };
            patiently(env, Unanswered::is_no, delete).await.map_err(|error| failed("delete", &error))?;
        }
        Snapshots::new(self.context.clone(), &self.options, replicas)?.forget_behind(shared).await?;
        let create = || self.context.create_stream(mirror.clone());
        patiently(env, Unanswered::is_no, create).await.map_err(|error| failed("follow", &error))?;
        Ok(Followed { shared, given_up })
    }

    /// Up to which message two regions have the same. A message has the subject of whoever wrote the log when it was taken
    /// and the sequence that it was given there, so where both have the same they have the same before it.
    async fn shared(&self, ours: &Stream, theirs: &Stream, epoch: u64) -> Result<u64> {
        let [here, there] = [ours, theirs].map(|stream| &stream.cached_info().state);
        if here.messages > 0 {
            let newest = self.subject(ours, here.last_sequence).await?;
            if stream::epoch_of(&newest, &self.options)?.is_some_and(|here| here > epoch) {
                return Err(Error::misuse(
                    "what is here was written after the other region was taken over from; follow the one that wrote it",
                ));
            }
        }
        let is_same = async |sequence| {
            Ok::<_, Error>(self.subject(ours, sequence).await? == self.subject(theirs, sequence).await?)
        };
        // What both have, from behind `low` up to `high`.
        let mut low = here.first_sequence.max(there.first_sequence).saturating_sub(1);
        let mut high = here.last_sequence.min(there.last_sequence);
        if high <= low || !is_same(low + 1).await? {
            return Ok(0);
        }
        low += 1;
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if is_same(middle).await? {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        Ok(low)
    }

    /// Waits until the mirror has a message, as long as it gets on.
    async fn caught_up(&self, domain: &str, last: u64) -> Result<()> {
        let (mut before, mut waited) = (0, 0);
        loop {
            let sequence = match self.stream().await {
                Ok(Some(stream)) => stream.cached_info().state.last_sequence,
                _ => 0,
            };
            if sequence >= last {
                return Ok(());
            }
            waited = if sequence > before { 0 } else { waited + limits::OPEN_AGAIN_MS };
            before = sequence;
            if waited >= limits::OPEN_WAIT_MS {
                let what = format!(
                    "take over the log: it stands at message {sequence} here and at {last} in region `{domain}`, which \
                     takes nothing more"
                );
                return Err(Error::new(ErrorKind::Io { what }));
            }
            self.options.env.sleep(Duration::from_millis(limits::OPEN_AGAIN_MS)).await;
        }
    }

    async fn stream(&self) -> Result<Option<Stream>> {
        found(self.ask(&self.context, &stream::name(&self.options)?).await)
    }

    /// The stream at these servers or at others.
    async fn ask(&self, servers: &Context, name: &str) -> Result<Stream, GetStreamError> {
        let ask = || servers.get_stream(name);
        patiently(&self.options.env, Unanswered::is_no, ask).await
    }

    /// The subject of a message.
    async fn subject(&self, stream: &Stream, sequence: u64) -> Result<String> {
        let is_final = |error: &LastRawMessageError| error.kind() != LastRawMessageErrorKind::Other;
        let ask = || stream.get_raw_message(sequence);
        let message = patiently(&self.options.env, is_final, ask).await;
        message.map(|message| message.subject.to_string()).map_err(|error| failed("read", &error))
    }

    fn no_log(&self) -> Error {
        Error::misuse(format!("the stream of this name is not the log of space `{}`", self.options.space))
    }
}

/// Tells the region that wrote a log before that it is taken over, as soon as it answers.
pub(crate) struct Sealing {
    there: Context,
    name: String,
    options: NatsStoreOptions,
    epoch: u64,
}

impl Sealing {
    /// What is to be told by whoever opens this log; nothing for one that was never taken over.
    pub(crate) fn of(
        own: &Stream,
        client: &async_nats::Client,
        options: &NatsStoreOptions,
    ) -> Result<Option<Self>> {
        let config = &own.cached_info().config;
        let (Some(domain), Some(epoch)) = (stream::before(config), stream::epoch(config, options)?) else {
            return Ok(None);
        };
        Ok(Some(Self {
            there: at(client, domain),
            name: stream::name(options)?,
            options: options.clone(),
            epoch,
        }))
    }

    /// Tells it, and again until it has heard or the store closes.
    pub(crate) async fn run(self, mut closed: watch::Receiver<bool>) {
        let env = Arc::clone(&self.options.env);
        loop {
            match self.told().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(target: "happen", code = error.code(), "the region before is not sealed: {error}");
                }
            }
            let wait = env.sleep(Duration::from_millis(limits::REGION_LOOK_MS));
            tokio::select! {
                _ = closed.wait_for(|closed| *closed) => return,
                () = wait => {}
            }
        }
    }

    /// False as long as it does not answer.
    async fn told(&self) -> Result<bool> {
        let Ok(theirs) = self.there.get_stream(&self.name).await else { return Ok(false) };
        let config = &theirs.cached_info().config;
        let is_older = stream::epoch(config, &self.options)?.is_some_and(|epoch| epoch < self.epoch);
        if is_older && !config.sealed {
            seal(&self.there, &theirs).await?;
        }
        Ok(true)
    }
}

/// Has a stream take nothing more. Gives its last message.
async fn seal(there: &Context, stream: &Stream) -> Result<u64> {
    let config = &stream.cached_info().config;
    if !config.sealed {
        let sealed = Config { sealed: true, ..config.clone() };
        there.update_stream(&sealed).await.map_err(|error| failed("seal", &error))?;
    }
    let info = stream.get_info().await.map_err(|error| failed("ask for", &error))?;
    Ok(info.state.last_sequence)
}

/// Whether a message was not taken because the log was taken over by another region.
pub(crate) fn is_sealed(error: &PublishError) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    source.is_some_and(|source| source.error_code() == ErrorCode::STREAM_SEALED)
}

/// The servers of another domain, by way of these.
pub(crate) fn at(client: &async_nats::Client, domain: &str) -> Context {
    ContextBuilder::new()
        .timeout(Duration::from_millis(limits::ASK_WAIT_MS))
        .domain(domain)
        .build(client.clone())
}

fn found(got: Result<Stream, GetStreamError>) -> Result<Option<Stream>> {
    match got {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if stream::is_absent(&error) => Ok(None),
        Err(error) => Err(failed("ask for", &error)),
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> Error {
    Error::new(ErrorKind::Io { what: format!("{what} the log: {}", told(error)) })
}
