//! A way to a server that can be cut and healed: what is sent meanwhile waits, as it does when a network drops packets for
//! a while, and no connection is closed. Owns the bytes on the way; does not know what they say.
#![expect(clippy::unwrap_used, reason = "what is missing fails the test that asks for it")]
#![expect(clippy::disallowed_methods, reason = "the network is real, and runs beside what is tested")]

use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// A way to a port of the own machine. Its connections end with it, as soon as something is sent.
///
/// # Panics
///
/// When the machine has no port left.
///
/// # Examples
///
/// ```
/// let server = happen_testing::NatsServer::start();
/// let way = happen_testing::Way::to(server.port());
/// way.cut();
/// // Whoever uses `way.url()` hears nothing.
/// way.heal();
/// ```
#[derive(Debug)]
pub struct Way {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    passable: Mutex<Passable>,
    changed: Condvar,
    /// Both ends of each connection that was made.
    connections: Mutex<Vec<TcpStream>>,
}

#[derive(Debug, Default)]
struct Passable {
    is_cut: bool,
    /// Whether the way is gone, and its connections with it.
    is_over: bool,
}

impl Way {
    /// A way to this port, open.
    #[must_use]
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let of_all = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                if of_all.is_over() {
                    return;
                }
                // Whoever comes while nobody is there is sent away.
                let server = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
                if let (Ok(client), Ok(server)) = (client, server) {
                    of_all.join(client, server);
                }
            }
        });
        Self { port: own, state }
    }

    /// The port at which the way begins.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Holds up whatever is sent from now on, in both directions.
    pub fn cut(&self) {
        self.state.change(|passable| passable.is_cut = true);
    }

    /// Lets what was held up, and what comes, pass again.
    pub fn heal(&self) {
        self.state.change(|passable| passable.is_cut = false);
    }

    /// Ends all connections, and what was held up on them is gone.
    pub fn break_off(&self) {
        let mut connections = self.state.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in connections.drain(..) {
            // One that has ended already is what is wanted.
            drop(connection.shutdown(Shutdown::Both));
        }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.state.change(|passable| passable.is_over = true);
        // Wakes whoever waits for the next connection.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

impl State {
    fn change(&self, change: impl FnOnce(&mut Passable)) {
        change(&mut self.passable.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn is_over(&self) -> bool {
        self.passable.lock().unwrap_or_else(PoisonError::into_inner).is_over
    }

    /// Waits until something may pass. False when nothing ever will.
    fn until_passable(&self) -> bool {
        let passable = self.passable.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |passable: &mut Passable| passable.is_cut && !passable.is_over;
        !self.changed.wait_while(passable, waits).unwrap_or_else(PoisonError::into_inner).is_over
    }

    fn join(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        for end in [&client, &server] {
            // A connection that is broken by now ends when it is read.
            drop(end.set_nodelay(true));
        }
        let ends = (client.try_clone(), server.try_clone());
        let (Ok(to_client), Ok(to_server)) = ends else { return };
        let kept = [to_client.try_clone(), to_server.try_clone()];
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).extend(kept.into_iter().flatten());
        for (from, to) in [(client, to_server), (server, to_client)] {
            let state = Arc::clone(self);
            thread::spawn(move || state.forward(from, to));
        }
    }

    /// Passes on what one end says, until one of them ends.
    fn forward(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if !self.until_passable() || to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        // What has ended already says so again, which changes nothing.
        drop(from.shutdown(Shutdown::Both));
        drop(to.shutdown(Shutdown::Both));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_sent_over_a_way_that_is_cut_arrives_when_it_is_healed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let way = Way::to(listener.local_addr().unwrap().port());
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, way.port())).unwrap();
        let mut server = listener.accept().unwrap().0;
        let mut buffer = [0; 8];
        client.write_all(b"before").unwrap();
        assert_eq!(server.read(&mut buffer).unwrap(), 6);
        way.cut();
        client.write_all(b"cut").unwrap();
        server.write_all(b"too").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(server.read(&mut buffer).is_err());
        way.heal();
        server.set_read_timeout(None).unwrap();
        assert_eq!(server.read(&mut buffer).unwrap(), 3);
        assert_eq!(&buffer[..3], b"cut");
        assert_eq!(client.read(&mut buffer).unwrap(), 3);
        way.cut();
        client.write_all(b"lost").unwrap();
        way.break_off();
        way.heal();
        assert_eq!(server.read(&mut buffer).unwrap(), 0);
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, way.port())).unwrap();
        let mut server = listener.accept().unwrap().0;
        drop(way);
        client.write_all(b"gone").unwrap();
        assert_eq!(server.read(&mut buffer).unwrap(), 0);
    }
}
