//! The control channel of a space in a folder: a Unix domain socket there, and a thread for each process that is connected.
//! Owns the socket, its threads and their limits; does not know what the requests mean.
//!
//! The threads wait for other processes and never for the runtime's tasks to make room, and the runtime never waits for
//! them: a request goes over as a message, and a thread that waits for its answer holds up nobody.

use std::sync::{Arc, Weak};

use happen_core::env::Env;
use happen_core::{Error, ErrorKind, Result};
use tokio::sync::mpsc::{self, Receiver};

use super::{Answer, Hands, Request};
use crate::limits;
use crate::space::SpaceInner;

#[cfg(not(unix))]
pub(crate) use elsewhere::Listening;
#[cfg(unix)]
pub(crate) use unix::Listening;

/// A request on its way, and who waits for the answer.
struct Work {
    request: Request,
    told: std::sync::mpsc::SyncSender<Result<Answer>>,
}

/// Carries out requests as long as anybody may make some.
async fn serve(env: Arc<dyn Env>, space: Weak<SpaceInner>, mut work: Receiver<Work>) {
    while let Some(Work { request, told }) = work.recv().await {
        let space = Weak::clone(&space);
        // Each in a task of its own, for one may wait for half a minute.
        env.spawn(Box::pin(async move {
            let result = match space.upgrade() {
                Some(space) => match Hands::of_space(&space) {
                    Ok(hands) => hands.carry_out(request).await,
                    Err(error) => Err(error),
                },
                None => Err(closed()),
            };
            // Who asked may have gone.
            drop(told.try_send(result));
        }));
    }
}

#[cold]
fn closed() -> Error {
    Error::new(ErrorKind::Closed { what: "the space".to_owned() })
}

/// Where there are no such sockets, a space has no control channel: stop it, and what is asked for by hand is done to its
/// store.
#[cfg(not(unix))]
mod elsewhere {
    use super::{Arc, Error, ErrorKind, Result, SpaceInner};

    #[derive(Debug)]
    pub(crate) struct Listening;

    impl Listening {
        pub(crate) fn open(_: &Arc<SpaceInner>, _: &std::path::Path) -> Result<Self> {
            let what = "open the control channel, which needs Unix domain sockets;".to_owned();
            Err(Error::new(ErrorKind::Io { what }))
        }

        pub(crate) fn close(&self) {}
    }
}

#[cfg(unix)]
mod unix {
    use std::collections::HashMap;
    use std::fs::{self, DirBuilder, Permissions};
    use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::sync_channel;
    use std::thread;
    use std::time::Duration;

    use super::super::client::SOCKET;
    use super::{
        Answer, Arc, Error, ErrorKind, Request, Result, SpaceInner, Work, closed, limits, mpsc, serve,
    };
    use crate::sync::{Mutex, lock};

    /// The socket of a space, until it is closed.
    #[derive(Debug)]
    pub(crate) struct Listening {
        path: PathBuf,
        listener: UnixListener,
        shared: Arc<Shared>,
    }

    /// What the threads have in common.
    #[derive(Debug)]
    struct Shared {
        work: mpsc::Sender<Work>,
        closed: AtomicBool,
        clients: Mutex<Clients>,
        /// How long a connection may be silent.
        idle: Duration,
    }

    #[derive(Debug, Default)]
    struct Clients {
        next: u64,
        open: HashMap<u64, UnixStream>,
    }

    impl Listening {
        /// Listens in a folder whose store belongs to this process, so that a socket which is there is left from one that
        /// was killed.
        ///
        /// # Errors
        ///
        /// [`ErrorKind::Io`] when the path is too long for a socket or something else is in its place, and what the system
        /// says.
        pub(crate) fn open(space: &Arc<SpaceInner>, folder: &Path) -> Result<Self> {
            let path = folder.join(SOCKET);
            let listener = bind(folder, &path)?;
            let accepting = listener.try_clone().map_err(|error| failed(&path, error))?;
            let (work, todo) = mpsc::channel(limits::CONTROL_CLIENTS_MAX);
            let shared = Arc::new(Shared::new(work, Duration::from_millis(limits::CONTROL_IDLE_MS)));
            let own = Arc::clone(&shared);
            let named = thread::Builder::new().name("happen-control".to_owned());
            let begun = named.spawn(move || own.accept(&accepting));
            begun.map_err(|error| failed(&path, error))?;
            let env = Arc::clone(&space.env);
            space.env.spawn(Box::pin(serve(env, Arc::downgrade(space), todo)));
            Ok(Self { path, listener, shared })
        }

        /// Takes the socket away and ends every connection. Waits for nobody.
        pub(crate) fn close(&self) {
            if self.shared.closed.swap(true, Ordering::SeqCst) {
                return;
            }
            self.wake();
            // Gone already when somebody cleared the folder.
            drop(fs::remove_file(&self.path));
            for client in lock(&self.shared.clients).open.values() {
                // One that went away by itself is closed already.
                drop(client.shutdown(std::net::Shutdown::Both));
            }
        }

        /// Has the thread that accepts look whether it is over.
        fn wake(&self) {
            let Ok(listener) = self.listener.try_clone() else { return };
            // A socket is a socket: what is shut down accepts no more, and whoever waits there is told. Not every system
            // does that to one that listens, and then somebody has to come.
            if UnixStream::from(OwnedFd::from(listener)).shutdown(std::net::Shutdown::Both).is_err() {
                drop(UnixStream::connect(&self.path));
            }
        }
    }

    impl Drop for Listening {
        fn drop(&mut self) {
            self.close();
        }
    }

    /// The socket, which nobody but its owner can connect to at any moment: it is made where nobody else can look, and
    /// then put in its place, over one that is left from a process that was killed.
    fn bind(folder: &Path, path: &Path) -> Result<UnixListener> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                let taken = io::Error::new(io::ErrorKind::AlreadyExists, "something else has this name");
                return Err(failed(path, taken));
            }
            _ => {}
        }
        let hidden = folder.join(HIDDEN);
        let made_at = hidden.join(SOCKET);
        // Left by a process that was killed just here.
        drop(fs::remove_file(&made_at));
        drop(fs::remove_dir(&hidden));
        let bound = DirBuilder::new().mode(0o700).create(&hidden).and_then(|()| {
            let listener = UnixListener::bind(&made_at)?;
            fs::set_permissions(&made_at, Permissions::from_mode(0o600))?;
            fs::rename(&made_at, path)?;
            Ok(listener)
        });
        drop(fs::remove_file(&made_at));
        drop(fs::remove_dir(&hidden));
        bound.map_err(|error| failed(path, error))
    }

    #[cold]
    fn failed(path: &Path, error: io::Error) -> Error {
        let what =
            format!("open the control channel at {} ({} bytes)", path.display(), path.as_os_str().len());
        Error::new(ErrorKind::Io { what }).with_source(error)
    }

    impl Shared {
        fn new(work: mpsc::Sender<Work>, idle: Duration) -> Self {
            Self { work, closed: AtomicBool::new(false), clients: Mutex::default(), idle }
        }

        fn is_closed(&self) -> bool {
            self.closed.load(Ordering::SeqCst)
        }

        fn accept(self: &Arc<Self>, listener: &UnixListener) {
            loop {
                let accepted = listener.accept();
                if self.is_closed() {
                    return;
                }
                match accepted {
                    Ok((stream, _)) => self.begin(stream),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // The process has no descriptors left, for example. It may get some back.
                    Err(_) => thread::park_timeout(ACCEPT_PAUSE),
                }
            }
        }

        /// Begins to serve a connection. One that cannot be served is closed, which tells whoever made it.
        fn begin(self: &Arc<Self>, mut stream: UnixStream) {
            let idle = Some(self.idle);
            let prepared = stream.set_read_timeout(idle).and_then(|()| stream.set_write_timeout(idle));
            let (Ok(()), Ok(kept)) = (prepared, stream.try_clone()) else { return };
            let number = {
                let mut clients = lock(&self.clients);
                if clients.open.len() >= limits::CONTROL_CLIENTS_MAX {
                    None
                } else {
                    clients.next += 1;
                    let number = clients.next;
                    clients.open.insert(number, kept);
                    Some(number)
                }
            };
            let Some(number) = number else {
                let max = limits::CONTROL_CLIENTS_MAX;
                let what = format!("the control channel ({max} connections)");
                let line = Answer::to_line(&Err(Error::new(ErrorKind::Busy { what })));
                // It fits into what an empty socket takes, so nobody is waited for.
                drop(stream.write_all(&line));
                return;
            };
            let own = Arc::clone(self);
            let named = thread::Builder::new().name("happen-control".to_owned());
            let begun = named.spawn(move || {
                // A connection that breaks ends so; there is nobody to tell.
                drop(own.talk(&stream));
                lock(&own.clients).open.remove(&number);
            });
            if begun.is_err() {
                lock(&self.clients).open.remove(&number);
            }
            // One that was begun while the channel closed may not have been among those that were ended.
            if self.is_closed()
                && let Some(late) = lock(&self.clients).open.get(&number)
            {
                drop(late.shutdown(std::net::Shutdown::Both));
            }
        }

        /// Answers line by line, until the other side goes away or says what cannot be gone on from.
        fn talk(&self, stream: &UnixStream) -> io::Result<()> {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            loop {
                line.clear();
                // One byte more for the end of the line, and one to see that there is more.
                let most = limits::CONTROL_LINE_BYTES_MAX as u64 + 2;
                reader.by_ref().take(most).read_until(b'\n', &mut line)?;
                if line.is_empty() {
                    return Ok(());
                }
                let is_whole = line.pop_if(|byte| *byte == b'\n').is_some();
                if !is_whole && line.len() <= limits::CONTROL_LINE_BYTES_MAX {
                    // Half a line is no request, even where it could be read as one.
                    return Ok(());
                }
                let result = Request::parse(&line).and_then(|request| self.ask(request));
                let mut out = stream;
                out.write_all(&Answer::to_line(&result))?;
                if !is_whole {
                    return Ok(());
                }
            }
        }

        /// Has the runtime carry out a request, and waits for what came of it.
        fn ask(&self, request: Request) -> Result<Answer> {
            let (told, tells) = sync_channel(1);
            if self.is_closed() || self.work.blocking_send(Work { request, told }).is_err() {
                return Err(closed());
            }
            // The sender goes with its task, when the runtime ends before it could answer.
            tells.recv().unwrap_or_else(|_| Err(closed()))
        }
    }

    /// The folder in which the socket is made.
    const HIDDEN: &str = "control.new";
    /// Time between two attempts to accept, when the system allows none.
    const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

    #[cfg(test)]
    mod tests {
        use super::*;

        /// A channel whose connections may be silent for so long, and one that was made to it. Nobody carries requests out.
        fn connected(idle: Duration) -> (Arc<Shared>, UnixStream) {
            let (work, _) = mpsc::channel(1);
            let shared = Arc::new(Shared::new(work, idle));
            let (ours, theirs) = UnixStream::pair().unwrap();
            shared.begin(theirs);
            (shared, ours)
        }

        fn answer(client: &UnixStream) -> io::Result<String> {
            let mut line = String::new();
            BufReader::new(client).read_line(&mut line)?;
            Ok(line)
        }

        #[test]
        fn a_connection_is_given_up_when_it_is_silent_too_long_and_not_before() {
            let limit = Duration::from_millis(limits::CONTROL_IDLE_MS);
            let (shared, mut client) = connected(limit);
            // The system ends what waits longer than this, for what is said and for what is read.
            let timeouts = {
                let clients = lock(&shared.clients);
                let served = clients.open.values().next().unwrap();
                (served.read_timeout().unwrap(), served.write_timeout().unwrap())
            };
            assert_eq!(timeouts, (Some(limit), Some(limit)));
            for _ in 0..3 {
                client.write_all(b"rubbish\n").unwrap();
                assert!(answer(&client).unwrap().contains("error"), "it is served on");
            }

            for beginning in [&b""[..], b"half a line"] {
                let (shared, mut client) = connected(Duration::from_millis(1));
                // It may be over before anything is said.
                drop(client.write_all(beginning));
                // Some systems tell that what was said just before the end was not read.
                let ended = answer(&client).or_else(|error| match error.kind() {
                    io::ErrorKind::ConnectionReset => Ok(String::new()),
                    _ => Err(error),
                });
                assert_eq!(ended.unwrap(), "", "the end, and no answer");
                assert!(lock(&shared.clients).open.is_empty(), "its place is free");
            }
        }
    }
}
