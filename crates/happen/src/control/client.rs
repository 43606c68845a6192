//! The other end of a control channel: asking the process whose space is open in a folder. Owns how that process is found
//! and told from one that was killed; does not know what it does with a request.

use std::fmt;
use std::path::Path;

use happen_core::Result;

use super::{Answer, Request};

/// A connection to the process whose space is open in a folder.
///
/// # Examples
///
/// ```
/// use happen::control::{Answer, Client, Phase, Request};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path();
/// let space = happen::Space::open(folder).await?;
/// space.start().await?;
/// # #[cfg(unix)]
/// # {
/// // In another process:
/// let mut client = Client::connect(folder)?.expect("a space is open there");
/// let Answer::Stats(stats) = client.ask(&Request::Stats).await? else { unreachable!() };
/// assert_eq!(stats.phase, Phase::Running);
/// # }
/// space.stop().await?;
/// assert!(Client::connect(folder)?.is_none());
/// # Ok(())
/// # }
/// ```
pub struct Client {
    #[cfg(unix)]
    stream: std::os::unix::net::UnixStream,
    #[cfg(not(unix))]
    never: std::convert::Infallible,
}

impl Client {
    /// Connects to the space in a folder. `None` when nobody listens there: no space is open, the process that had it was
    /// killed, it could not open a channel, or the system has none. Whether the store belongs to somebody is told by its
    /// lock, not by this.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](happen_core::ErrorKind::Io) when somebody may be there and cannot be reached: only the user whose
    /// space it is may.
    ///
    /// # Cost
    ///
    /// A few system calls on this thread; it waits only while more processes connect at once than the system keeps.
    #[cfg(unix)]
    pub fn connect(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        use std::io::ErrorKind as Io;
        let path = folder.as_ref().join(SOCKET);
        match std::os::unix::net::UnixStream::connect(&path) {
            Ok(stream) => Ok(Some(Self { stream })),
            // A path that is too long for a socket never had one.
            Err(error) if matches!(error.kind(), Io::NotFound | Io::ConnectionRefused | Io::InvalidInput) => {
                Ok(None)
            }
            Err(error) => {
                let what = format!("connect to the control channel at {}", path.display());
                Err(happen_core::Error::new(happen_core::ErrorKind::Io { what }).with_source(error))
            }
        }
    }

    /// Connects to the space in a folder: to none, for this system has no channels.
    ///
    /// # Errors
    ///
    /// None here.
    #[cfg(not(unix))]
    pub fn connect(_: impl AsRef<Path>) -> Result<Option<Self>> {
        Ok(None)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// What the other process answers, with its kind; [`ErrorKind::Io`](happen_core::ErrorKind::Io) when the connection
    /// ends before: then it is not known whether what was asked for was done.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes nothing back, and the answer to a later request may be that to this one: make a new
    /// connection.
    ///
    /// # Cost
    ///
    /// A thread for the time of the call.
    #[cfg(unix)]
    pub async fn ask(&mut self, request: &Request) -> Result<Answer> {
        use happen_core::{Error, ErrorKind};
        let failed = |error| {
            let what = "ask over the control channel".to_owned();
            Error::new(ErrorKind::Io { what }).with_source(error)
        };
        let line = request.to_line()?;
        let stream = self.stream.try_clone().map_err(failed)?;
        let (told, tells) = tokio::sync::oneshot::channel();
        let named = std::thread::Builder::new().name("happen-ask".to_owned());
        let asking = named.spawn(move || drop(told.send(unix::exchange(&stream, &line))));
        asking.map_err(failed)?;
        let gone = || Err(std::io::ErrorKind::UnexpectedEof.into());
        let answer = tells.await.unwrap_or_else(|_| gone()).map_err(failed)?;
        Answer::parse(&answer)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// None here, where there is no connection.
    #[cfg(not(unix))]
    pub async fn ask(&mut self, _: &Request) -> Result<Answer> {
        match self.never {}
    }
}

#[cfg(unix)]
mod unix {
    use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use crate::limits;

    /// Says a line and reads the one that comes back.
    pub(super) fn exchange(stream: &UnixStream, line: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = stream;
        // One that is not taken may have been answered all the same: there are too many already, for example.
        let said = out.write_all(line);
        let mut answer = Vec::new();
        let most = limits::CONTROL_LINE_BYTES_MAX as u64 + 2;
        BufReader::new(stream).take(most).read_until(b'\n', &mut answer)?;
        if answer.pop() == Some(b'\n') {
            return Ok(answer);
        }
        said?;
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// The name of the socket in the folder of a store.
pub(super) const SOCKET: &str = "control";
