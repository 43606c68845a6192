//! Copies of a log as it was at one message, kept in the object store of the server, so that whoever opens the log need not
//! read all of it and what lies before can be let go. Owns how such a copy is kept and found; does not know what is in it.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::object_store::{Config, InfoErrorKind, ObjectInfo, ObjectMetadata, ObjectStore};
use async_nats::jetstream::stream::{StorageType, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use happen_core::env::Env;
use happen_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::entry::Standing;
use super::message::Writers;
use super::scratch::Scratch;
use super::writer::told;
use super::{NatsStoreOptions, stream};
use crate::bytes::{Put, Take, unreadable};
use crate::limits;

/// Where the copies of one log are kept. There is one at a time.
#[derive(Clone)]
pub(crate) struct Snapshots {
    env: Arc<dyn Env>,
    context: Context,
    bucket: String,
    replicas: usize,
}

/// What belongs to a copy beside the database.
#[derive(Debug, Default)]
pub(crate) struct Header {
    /// How the copy stands: behind the message with this sequence.
    pub(crate) standing: Standing,
    /// The last message that it has taken, which may be one without effect behind the last entry.
    pub(crate) sequence: u64,
    pub(crate) writers: Writers,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_u8(VERSION);
        bytes.put_u64(self.sequence);
        bytes.put_u64(self.standing.sequence);
        bytes.extend(self.standing.digest);
        self.writers.put(&mut bytes);
        bytes
    }

    /// # Errors
    ///
    /// When the bytes are no header, or one of a later version.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut take = Take::new(bytes);
        let version = take.u8()?;
        if version != VERSION {
            return Err(Error::misuse(format!(
                "a later version of Happen keeps the copy of this log (format {version}, known is {VERSION}); update this \
                 program"
            )));
        }
        let sequence = take.u64()?;
        let standing = Standing { sequence: take.u64()?, digest: take.array()? };
        let writers = Writers::taken(&mut take)?;
        take.end()?;
        Ok(Self { standing, sequence, writers })
    }
}

impl Snapshots {
    /// # Errors
    ///
    /// When the space has no name that can be used.
    pub(crate) fn new(context: Context, options: &NatsStoreOptions, replicas: usize) -> Result<Self> {
        Ok(Self { env: Arc::clone(&options.env), context, bucket: bucket(options)?, replicas })
    }

    /// Writes the newest copy into a file. None when there is none.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Misuse`]: a later version made it.
    /// - [`ErrorKind::Damaged`]: it is not what was put there.
    /// - [`ErrorKind::Io`]: the server does not give it, or the file cannot be written.
    pub(crate) async fn load(&self, file: &Path) -> Result<Option<Header>> {
        let mut tries = 1;
        loop {
            match self.load_once(file).await? {
                Loaded::None => return Ok(None),
                Loaded::Whole(header) => return Ok(Some(header)),
                Loaded::Replaced if tries == limits::SNAPSHOT_TRIES_MAX => {
                    let what = "read the copy of the log: its parts do not come".to_owned();
                    return Err(Error::new(ErrorKind::Io { what }));
                }
                Loaded::Replaced => tries += 1,
            }
        }
    }

    async fn load_once(&self, file: &Path) -> Result<Loaded> {
        let Some((objects, _)) = self.newest_in_time().await? else { return Ok(Loaded::None) };
        let mut object = objects.get(COPY).await.map_err(|error| failed("get the copy", &error))?;
        let mut read = Vec::new();
        let mut to = tokio::fs::File::create(file).await.map_err(|error| failed("write the copy", &error))?;
        let mut header: Option<Header> = None;
        loop {
            // One that is replaced meanwhile loses its parts, and whoever reads it would wait for them for ever.
            let got = tokio::select! {
                got = object.read_buf(&mut read) => got.ok(),
                () = self.env.sleep(Duration::from_millis(limits::SNAPSHOT_PART_WAIT_MS)) => None,
            };
            let Some(got) = got else { return Ok(Loaded::Replaced) };
            if header.is_none() {
                header = first(&mut read)?;
            }
            if header.is_some() {
                to.write_all(&read).await.map_err(|error| failed("write the copy", &error))?;
                read.clear();
            }
            if got == 0 {
                to.flush().await.map_err(|error| failed("write the copy", &error))?;
                return header.map(Loaded::Whole).ok_or_else(|| {
                    Error::new(ErrorKind::Io {
                        what: "read the copy of the log: it ends too early".to_owned(),
                    })
                });
            }
        }
    }

    /// Begins with the copy that another region has, if it has one: what its log has let go, or began with, never comes
    /// here. Where copies have a place already that was done, and nobody is asked.
    ///
    /// # Errors
    ///
    /// As [`Snapshots::load`] and [`Snapshots::save`].
    pub(crate) async fn begin_as(&self, there: &Self, stream: &Stream) -> Result<()> {
        let begun = self.env.monotonic();
        let place = loop {
            let place = self.place().await;
            if !self.again(begun, &place).await {
                break place?;
            }
        };
        if place.is_some() {
            return Ok(());
        }
        let folder = Scratch::new()?;
        let file = folder.path().join(COPY);
        match there.load(&file).await? {
            Some(header) => self.save(&header, &file, stream).await.map(drop),
            None => self.objects().await.map(drop),
        }
    }

    /// Lets go the copy if it goes behind this message: what is there of the log is not what was copied.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`].
    pub(crate) async fn forget_behind(&self, sequence: u64) -> Result<()> {
        let begun = self.env.monotonic();
        loop {
            // A copy that was let go when nobody could say so is not found by the next look.
            let forgotten = Box::pin(self.try_forget_behind(sequence)).await;
            if !self.again(begun, &forgotten).await {
                return forgotten;
            }
        }
    }

    async fn try_forget_behind(&self, sequence: u64) -> Result<()> {
        if self.kept().await?.is_none_or(|kept| kept <= sequence) {
            return Ok(());
        }
        let forgotten = self.context.delete_object_store(&self.bucket).await;
        forgotten.map_err(|error| failed("let go the copy", &error))
    }

    /// Up to which message a copy is kept; none when there is no copy.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when the server does not tell.
    pub(crate) async fn kept(&self) -> Result<Option<u64>> {
        Ok(self.newest().await?.and_then(|(_, info)| sequence_of(&info)))
    }

    /// The newest copy, with the place that it is in; none when there is none.
    async fn newest(&self) -> Result<Option<(ObjectStore, ObjectInfo)>> {
        let Some(objects) = self.place().await? else { return Ok(None) };
        match objects.info(COPY).await {
            Ok(info) if info.deleted => Ok(None),
            Ok(info) => Ok(Some((objects, info))),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("find the copy", &error)),
        }
    }

    /// The same, with a moment for servers that choose who leads them.
    async fn newest_in_time(&self) -> Result<Option<(ObjectStore, ObjectInfo)>> {
        let begun = self.env.monotonic();
        loop {
            let found = Box::pin(self.newest()).await;
            if !self.again(begun, &found).await {
                return found;
            }
        }
    }

    /// Waits before servers are asked again that may not have agreed yet on who leads them. False for what they have
    /// answered, and when that took too long.
    async fn again<T>(&self, begun: Duration, found: &Result<T>) -> bool {
        let is_away = found.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::Io { .. }));
        if !is_away || self.env.monotonic() - begun >= Duration::from_millis(limits::AGREE_WAIT_MS) {
            return false;
        }
        self.env.sleep(Duration::from_millis(limits::OPEN_AGAIN_MS)).await;
        true
    }

    /// Keeps the copy in a file in place of the one before, and lets go what the stream has of the time before that one.
    /// False when another process has kept a later one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`].
    pub(crate) async fn save(&self, header: &Header, file: &Path, stream: &Stream) -> Result<bool> {
        let objects = self.objects().await?;
        let before = match objects.info(COPY).await {
            Ok(info) => sequence_of(&info),
            Err(error) if error.kind() == InfoErrorKind::NotFound => None,
            Err(error) => return Err(failed("find the copy before", &error)),
        };
        if before.is_some_and(|before| before >= header.sequence) {
            return Ok(false);
        }
        put(&objects, header, file).await?;
        // Whoever reads behind the copy before still finds everything, and has until the next one to get here.
        if let Some(before) = before {
            self.env.sleep(Duration::from_millis(limits::PURGE_AFTER_MS)).await;
            let purged = stream.purge().sequence(before + 1).await;
            purged.map_err(|error| failed("let go what the copy has", &error))?;
        }
        Ok(true)
    }

    /// The place for copies; none when nobody made it. A server that does not answer says nothing about it: whoever took
    /// that for a log without a copy would miss what was let go.
    async fn place(&self) -> Result<Option<ObjectStore>> {
        let error = match self.context.get_object_store(&self.bucket).await {
            Ok(objects) => return Ok(Some(objects)),
            Err(error) => error,
        };
        let cause =
            std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<GetStreamError>());
        match cause.map(|cause| cause.kind()) {
            Some(GetStreamErrorKind::JetStream(error))
                if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(None)
            }
            _ => Err(failed("find the place for copies", &error)),
        }
    }

    /// Keeps the copy in a file for a log that is not there yet, in place of any that is left of one before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`].
    pub(crate) async fn begin_with(&self, header: &Header, file: &Path) -> Result<()> {
        put(&self.objects().await?, header, file).await
    }

    async fn objects(&self) -> Result<ObjectStore> {
        if let Some(objects) = self.place().await? {
            return Ok(objects);
        }
        let config = Config {
            bucket: self.bucket.clone(),
            description: Some("copies of a log".to_owned()),
            storage: StorageType::File,
            num_replicas: self.replicas,
            ..Config::default()
        };
        let made = self.context.create_object_store(config).await;
        made.map_err(|error| failed("make a place for copies", &error))
    }
}

/// Puts the copy in a file in the place of the one before.
async fn put(objects: &ObjectStore, header: &Header, file: &Path) -> Result<()> {
    let mut first = Vec::new();
    first.put_bytes(&header.encode());
    let database = tokio::fs::File::open(file).await.map_err(|error| failed("read the copy", &error))?;
    let mut data = Cursor::new(first).chain(database);
    let meta = ObjectMetadata {
        name: COPY.to_owned(),
        description: None,
        chunk_size: None,
        metadata: HashMap::from([(SEQUENCE.to_owned(), header.sequence.to_string())]),
        headers: None,
    };
    objects.put(meta, &mut data).await.map(drop).map_err(|error| failed("keep the copy", &error))
}

/// Up to which message a copy goes.
fn sequence_of(info: &ObjectInfo) -> Option<u64> {
    info.metadata.get(SEQUENCE).and_then(|text| text.parse().ok())
}

/// What became of reading a copy.
enum Loaded {
    /// There is none.
    None,
    Whole(Header),
    /// Another one came meanwhile.
    Replaced,
}

/// Takes the header off the bytes that were read, once all of it is there.
fn first(read: &mut Vec<u8>) -> Result<Option<Header>> {
    let Some((len, rest)) = read.split_first_chunk() else { return Ok(None) };
    let len = u32::from_le_bytes(*len) as usize;
    if len > limits::SNAPSHOT_HEADER_BYTES_MAX {
        return Err(unreadable("the copy of the log says too much of itself"));
    }
    let Some(said) = rest.get(..len) else { return Ok(None) };
    let header = Header::decode(said)?;
    read.drain(..size_of::<u32>() + len);
    Ok(Some(header))
}

/// The name of the bucket, in which fewer characters are allowed than in that of a stream.
fn bucket(options: &NatsStoreOptions) -> Result<String> {
    let plain = stream::name(options)?;
    if !plain.contains('=') {
        return Ok(plain);
    }
    let hash = blake3::hash(plain.as_bytes()).to_hex();
    let short: String = hash.chars().take(BUCKET_HASH_DIGITS).collect();
    Ok(format!("{}_{short}", plain.replace('=', "-")))
}

fn failed(what: &str, error: &dyn std::error::Error) -> Error {
    Error::new(ErrorKind::Io { what: format!("{what} of the log: {}", told(error)) })
}

/// The name of the copy.
const COPY: &str = "copy";

/// What says in the server's list up to where a copy goes.
const SEQUENCE: &str = "sequence";

const VERSION: u8 = 1;

/// Enough of a hash that two spaces do not meet.
const BUCKET_HASH_DIGITS: usize = 16;

#[cfg(test)]
mod tests {
    use happen::env::RealEnv;
    use happen_testing::NatsServer;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_copy_is_let_go_however_late_the_servers_answer() {
        let server = NatsServer::start();
        let client = async_nats::connect(server.url()).await.unwrap();
        let mut context = async_nats::jetstream::new(client);
        context.set_timeout(Duration::from_millis(limits::ASK_WAIT_MS));
        let env: Arc<dyn Env> = Arc::new(RealEnv::new());
        let options = NatsStoreOptions::new("shop", Arc::clone(&env));
        let snapshots = Snapshots::new(context, &options, 1).unwrap();
        snapshots.objects().await.unwrap();
        // Servers that choose who leads them answer nothing; neither does one that stands still.
        server.pause();
        let answers = async {
            env.sleep(Duration::from_millis(limits::ASK_WAIT_MS * 3)).await;
            server.go_on();
        };
        let (forgotten, ()) = tokio::join!(Box::pin(snapshots.forget_behind(7)), answers);
        forgotten.unwrap();
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = Header {
            standing: Standing { sequence: 7, digest: [3; 16] },
            sequence: 9,
            writers: Writers::default(),
        };
        let bytes = header.encode();
        let read = Header::decode(&bytes).unwrap();
        assert_eq!((read.sequence, read.standing), (header.sequence, header.standing));
        for length in 0..bytes.len() {
            assert!(Header::decode(&bytes[..length]).is_err());
        }
        let later = [&[VERSION + 1], &bytes[1..]].concat();
        assert!(matches!(Header::decode(&later).unwrap_err().kind(), ErrorKind::Misuse { .. }));
    }

    #[test]
    fn spaces_of_any_name_have_a_bucket_of_their_own() {
        let name = |space: &str| bucket(&NatsStoreOptions::new(space, Arc::new(RealEnv::new()))).unwrap();
        assert_eq!(name("shop-1"), "happen_shop-1");
        let all = [name("a.b"), name("a-2eb"), name("a=2eb"), name("größe"), name("a b")];
        for (index, one) in all.iter().enumerate() {
            assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{one}");
            assert!(!all[..index].contains(one), "{one}");
        }
    }
}
