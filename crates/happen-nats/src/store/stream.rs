//! The stream that is the log of a space: made if it is not there, and checked that it can keep what it is told. Owns its
//! configuration and what a server has to be; does not know what is written.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::context::{CreateStreamError, GetStreamError};
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, External, RetentionPolicy, Source, StorageType, Stream,
};
use async_nats::jetstream::{Context, ErrorCode};
use happen_core::env::Env;
use happen_core::{Error, ErrorKind, Result};

use super::asking::{Unanswered as _, again};
use super::writer::told;
use super::{Make, NatsStoreOptions, region};
use crate::limits;
use crate::names::{check_prefix, token};

/// The name of the stream that has the log of a space.
///
/// # Errors
///
/// When the space or the prefix has no name that can be used.
pub(crate) fn name(options: &NatsStoreOptions) -> Result<String> {
    check_prefix(&options.prefix)?;
    Ok(format!("{}_{}", token("prefix", &options.prefix)?, token("space", &options.space)?))
}

/// The subject that entries of the log are written to.
///
/// # Errors
///
/// As [`name`].
pub(crate) fn subject(options: &NatsStoreOptions) -> Result<String> {
    check_prefix(&options.prefix)?;
    Ok(format!("{}.{}.log", options.prefix, token("space", &options.space)?))
}

/// Finds the log, or makes it.
///
/// # Errors
///
/// - [`ErrorKind::Misuse`]: the server or the stream cannot keep the promise; it says what is wrong.
/// - [`ErrorKind::Io`]: the server does not answer.
pub(crate) async fn open(
    context: &Context,
    env: &Arc<dyn Env>,
    options: &NatsStoreOptions,
) -> Result<Stream> {
    let client = context.client();
    check_version(&client)?;
    let name = name(options)?;
    if options.make == Make::Nothing {
        return existing(context, env, options, &name).await;
    }
    let replicas = replicas(&client, options);
    let mut wanted = match &options.make {
        Make::Mirror(domain) => mirror(options, &name, replicas, domain),
        _ => wanted(options, &name, replicas)?,
    };
    let begun = env.monotonic();
    if let Make::Mirror(domain) = &options.make {
        region_answers(context, env, &name, domain).await?;
    }
    let stream = loop {
        let error = match context.get_or_create_stream(wanted.clone()).await {
            Ok(stream) => break stream,
            Err(error) => error,
        };
        // A server that is alone and a leaf of others says that it is in a cluster, too.
        if options.replicas.is_none() && is_alone(&error) && wanted.num_replicas > 1 {
            wanted.num_replicas = 1;
            continue;
        }
        let lack = error.lack();
        if !again(env, begun, lack).await {
            return Err(not_ready(&format!("open stream `{name}`"), lack, &error));
        }
    };
    check(&stream.cached_info().config, options)?;
    Ok(stream)
}

/// The error of servers that were waited for in vain.
fn not_ready(what: &str, lack: Option<&str>, error: &dyn std::error::Error) -> Error {
    let why = told(error);
    let what = match lack {
        Some(lack) => format!("{what}: {lack}: {why}"),
        None => format!("{what}: {why} {HINT}"),
    };
    Error::new(ErrorKind::Io { what })
}

/// Waits until the log can be followed: a mirror that is made before looks for it again only after long.
///
/// # Errors
///
/// [`ErrorKind::Io`] when the region does not answer in time.
async fn region_answers(context: &Context, env: &Arc<dyn Env>, name: &str, domain: &str) -> Result<()> {
    let begun = env.monotonic();
    // One that is there already may have to do without.
    while context.get_stream(name).await.is_err() {
        let error = match region::at(&context.client(), domain).get_stream(name).await {
            Ok(_) => break,
            Err(error) => error,
        };
        let lack = error.lack();
        if !again(env, begun, lack).await {
            return Err(not_ready(&format!("follow the log `{name}` of region `{domain}`"), lack, &error));
        }
    }
    Ok(())
}

/// Whether servers say that there is no such stream.
pub(crate) fn is_absent(error: &GetStreamError) -> bool {
    error.said().is_some_and(|said| said.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Whether a stream was not made because there is one server only.
fn is_alone(error: &CreateStreamError) -> bool {
    error.said().is_some_and(|said| said.error_code() == ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED)
}

fn check_version(client: &Client) -> Result<()> {
    let (major, minor) = limits::SERVER_VERSION_MIN;
    if client.is_server_compatible(major, minor, 0) {
        return Ok(());
    }
    Err(Error::misuse(format!(
        "the NATS server has version {}, and {major}.{minor} is the oldest that keeps what it acknowledges fast \
         enough; update it",
        client.server_info().version
    )))
}

/// On how many servers a log is kept that is made.
pub(crate) fn replicas(client: &Client, options: &NatsStoreOptions) -> usize {
    options.replicas.unwrap_or(if client.server_info().cluster.is_some() { 3 } else { 1 })
}

/// Whether there is a log of this name, whatever it is like.
///
/// # Errors
///
/// As [`open`].
pub(crate) async fn is_there(context: &Context, options: &NatsStoreOptions) -> Result<bool> {
    check_version(&context.client())?;
    let name = name(options)?;
    match context.get_stream(&name).await {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(refused(&name, &told(&error))),
    }
}

/// Makes a log that must not be there, which nobody can open until [`finish`] was called: it has another subject.
///
/// # Errors
///
/// [`ErrorKind::Conflict`] when somebody made it meanwhile, and as [`open`].
pub(crate) async fn begin(context: &Context, options: &NatsStoreOptions) -> Result<Config> {
    if let Make::Mirror(domain) = &options.make {
        return Err(Error::misuse(format!(
            "a backup is restored in the region that writes the log, and this one follows `{domain}`"
        )));
    }
    let name = name(options)?;
    let mut wanted = wanted(options, &name, replicas(&context.client(), options))?;
    loop {
        let mut closed =
            Config { subjects: vec![format!("{}.{RESTORING}", subject(options)?)], ..wanted.clone() };
        // A stream that is like another one in everything is taken for the same.
        closed.metadata.insert(RESTORING.to_owned(), format!("{:016x}", options.env.random_u64()));
        let made = insist(options, &name, async || match context.create_stream(closed.clone()).await {
            Ok(_) => Ok(Ok(Made::Done)),
            Err(error) if options.replicas.is_none() && is_alone(&error) => Ok(Ok(Made::Alone)),
            Err(error) => match error.said() {
                Some(said) if said.error_code() == ErrorCode::STREAM_NAME_EXIST => Ok(Err(taken(options))),
                _ => Err(told(&error)),
            },
        });
        match made.await? {
            Made::Done => return Ok(wanted),
            Made::Alone if wanted.num_replicas == 1 => {
                return Err(refused(&name, "it takes no stream at all"));
            }
            // As in `open`.
            Made::Alone => wanted.num_replicas = 1,
        }
    }
}

/// What became of making a stream.
enum Made {
    Done,
    /// There is one server only.
    Alone,
}

/// Has a log that was begun be one that can be opened.
///
/// # Errors
///
/// As [`open`].
pub(crate) async fn finish(context: &Context, options: &NatsStoreOptions, wanted: &Config) -> Result<()> {
    insist(options, &wanted.name, async || match context.update_stream(wanted.clone()).await {
        Ok(_) => Ok(Ok(())),
        Err(error) => Err(told(&error)),
    })
    .await
}

/// Asks for something that can be asked for twice, until it is answered or too much time has passed.
async fn insist<T>(
    options: &NatsStoreOptions,
    name: &str,
    ask: impl AsyncFn() -> Result<Result<T>, String>,
) -> Result<T> {
    let mut waited = 0;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(why) if waited >= limits::OPEN_WAIT_MS => return Err(refused(name, &why)),
            Err(_) => {
                options.env.sleep(Duration::from_millis(limits::OPEN_AGAIN_MS)).await;
                waited += limits::OPEN_AGAIN_MS + limits::ASK_WAIT_MS;
            }
        }
    }
}

/// The error of a log that is there and must not be.
#[cold]
pub(crate) fn taken(options: &NatsStoreOptions) -> Error {
    let what =
        format!("there is a space `{}` on this server already, and nothing was changed in it", options.space);
    Error::new(ErrorKind::Conflict { what })
}

/// What marks a stream that a backup is being restored into.
const RESTORING: &str = "restoring";

/// The log as it has to be, on so many servers unless something else is said.
fn wanted(options: &NatsStoreOptions, name: &str, replicas: usize) -> Result<Config> {
    Ok(Config {
        name: name.to_owned(),
        subjects: vec![subject(options)?],
        description: Some(format!("the log of space `{}`", options.space)),
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: options.replicas.unwrap_or(replicas),
        max_consumers: -1,
        // Messages are told apart by their writers and numbers.
        duplicate_window: Duration::from_millis(limits::SERVER_WINDOW_MS),
        deny_delete: true,
        allow_direct: true,
        ..Config::default()
    })
}

/// A copy of the log that the servers of another domain write.
fn mirror(options: &NatsStoreOptions, name: &str, replicas: usize, domain: &str) -> Config {
    let external = External { api_prefix: format!("$JS.{domain}.API"), delivery_prefix: None };
    Config {
        name: name.to_owned(),
        description: Some(format!("the log of space `{}`, which another region writes", options.space)),
        mirror: Some(Source { name: name.to_owned(), external: Some(external), ..Source::default() }),
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: options.replicas.unwrap_or(replicas),
        max_consumers: -1,
        deny_delete: true,
        allow_direct: true,
        ..Config::default()
    }
}

/// The domain whose servers write a log that is a mirror of theirs.
pub(crate) fn mirrored(config: &Config) -> Option<&str> {
    config.mirror.as_ref()?.external.as_ref()?.api_prefix.strip_prefix("$JS.")?.strip_suffix(".API")
}

/// The epoch of a log, which is higher each time another region takes it over, as its subject says; none for a mirror, and
/// for what is no log.
pub(crate) fn epoch(config: &Config, options: &NatsStoreOptions) -> Result<Option<u64>> {
    let [found] = &config.subjects[..] else { return Ok(None) };
    epoch_of(found, options)
}

/// The same by the subject of a message.
pub(crate) fn epoch_of(found: &str, options: &NatsStoreOptions) -> Result<Option<u64>> {
    let first = subject(options)?;
    let Some(rest) = found.strip_prefix(&first) else { return Ok(None) };
    if rest.is_empty() {
        return Ok(Some(1));
    }
    Ok(rest.strip_prefix('.').and_then(|number| number.parse().ok()).filter(|number| *number > 1))
}

/// The log once these servers have taken it over.
pub(crate) fn taken_over(
    config: &Config,
    options: &NatsStoreOptions,
    epoch: u64,
    before: &str,
) -> Result<Config> {
    let mut taken = Config {
        mirror: None,
        // Another subject each time: what is written to the log before does not come here.
        subjects: vec![format!("{}.{epoch}", subject(options)?)],
        duplicate_window: Duration::from_millis(limits::SERVER_WINDOW_MS),
        ..config.clone()
    };
    taken.description = Some(format!("the log of space `{}`", options.space));
    taken.metadata.insert(BEFORE.to_owned(), before.to_owned());
    Ok(taken)
}

/// The domain that wrote a log before it was taken over.
pub(crate) fn before(config: &Config) -> Option<&str> {
    config.metadata.get(BEFORE).map(String::as_str)
}

/// How a stream came to follow another region in place of one that was here before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Another one each time.
    made: String,
    /// Up to which message the one before is known to have been the same.
    pub(crate) shared: u64,
}

/// How a stream came to be here, if it is not the first one.
pub(crate) fn origin(config: &Config) -> Option<Origin> {
    let (made, shared) = config.metadata.get(ORIGIN)?.split_once(' ')?;
    Some(Origin { made: made.to_owned(), shared: shared.parse().ok()? })
}

/// The log of these servers as it has to be once they follow another region than before, or a region at all.
///
/// # Errors
///
/// As [`name`].
pub(crate) fn followed(
    options: &NatsStoreOptions,
    replicas: usize,
    domain: &str,
    shared: u64,
) -> Result<Config> {
    let mut config = mirror(options, &name(options)?, replicas, domain);
    config.metadata.insert(ORIGIN.to_owned(), format!("{:016x} {shared}", options.env.random_u64()));
    Ok(config)
}

/// What says in a stream what was here before it.
const ORIGIN: &str = "happen-origin";

/// What says in a stream who wrote it before.
const BEFORE: &str = "happen-before";

/// Finds a log that has to be there.
async fn existing(
    context: &Context,
    env: &Arc<dyn Env>,
    options: &NatsStoreOptions,
    name: &str,
) -> Result<Stream> {
    let begun = env.monotonic();
    let stream = loop {
        let error = match context.get_stream(name).await {
            Ok(stream) => break stream,
            Err(error) => error,
        };
        if is_absent(&error) {
            let what = format!("a space `{}` on this server, with the log `{name}`", options.space);
            return Err(Error::new(ErrorKind::NotFound { what }));
        }
        if error.is_no() {
            return Err(refused(name, &told(&error)));
        }
        let lack = error.lack();
        if !again(env, begun, lack).await {
            return Err(not_ready(&format!("open stream `{name}`"), lack, &error));
        }
    };
    check(&stream.cached_info().config, options)?;
    Ok(stream)
}

/// Looks whether a stream that was there can be the log.
fn check(found: &Config, options: &NatsStoreOptions) -> Result<()> {
    let wrong = |what: &str| {
        let name = &found.name;
        Err(Error::misuse(format!(
            "stream `{name}` cannot be the log of a space: {what}; give the space another name"
        )))
    };
    let is_none = mirrored(found).is_none() && epoch(found, options)?.is_none();
    if is_none && found.metadata.contains_key(RESTORING) {
        let name = &found.name;
        return Err(Error::misuse(format!(
            "a backup is being restored into stream `{name}`, or was and did not end; wait, or remove the stream and \
             restore it again"
        )));
    }
    if is_none {
        return wrong("it has other subjects");
    }
    if found.storage != StorageType::File {
        return wrong("it is kept in memory only");
    }
    if found.retention != RetentionPolicy::Limits {
        return wrong("it forgets messages once they are read");
    }
    if !found.max_age.is_zero() || found.max_messages_per_subject > 0 || found.discard != DiscardPolicy::New {
        return wrong("it forgets messages by age or number");
    }
    if found.no_ack {
        return wrong("it acknowledges nothing");
    }
    Ok(())
}

fn refused(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Io { what: format!("open stream `{name}`: {why} {HINT}") })
}

/// What to look at where servers say no.
const HINT: &str =
    "(is JetStream on, does the account allow it, and are enough servers there for its replicas?)";
