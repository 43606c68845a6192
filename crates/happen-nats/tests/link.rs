//! Spaces joined over NATS: the contract on one real server and on three, and what is this link's own.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::Arc;

use async_nats::ConnectOptions;
use happen::Link;
use happen_core::env::Env;
use happen_nats::{Connection, LinkOptions, NatsLink};
use happen_testing::{NatsCluster, NatsServer, link_contract};

/// Links that keep their servers running.
mod kept {
    use std::fmt;

    use happen::{Error, Result};
    use happen_core::env::BoxFuture;
    use happen_core::link::{Inbound, Peer, Replies};

    use super::*;

    /// A link, and the servers it needs.
    pub(crate) struct Kept<S> {
        pub(crate) link: Arc<NatsLink>,
        pub(crate) _servers: Arc<S>,
    }

    impl<S> fmt::Debug for Kept<S> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.link.fmt(f)
        }
    }

    impl<S: Send + Sync + 'static> Link for Kept<S> {
        fn name(&self) -> &str {
            self.link.name()
        }
        fn attach(&self, inbound: Arc<dyn Inbound>) -> BoxFuture<'_, Result<()>> {
            self.link.attach(inbound)
        }
        fn changed(&self) {
            self.link.changed();
        }
        fn post(&self, to: &str, frame: Vec<u8>) -> Result<(), Error> {
            self.link.post(to, frame)
        }
        fn request(&self, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>> {
            self.link.request(to, frame)
        }
        fn post_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<()> {
            self.link.post_at(member, to, frame)
        }
        fn request_at(&self, member: &str, to: &str, frame: Vec<u8>) -> Result<Box<dyn Replies>> {
            self.link.request_at(member, to, frame)
        }
        fn publish(&self, event_type: &str, frame: Vec<u8>) -> Result<()> {
            self.link.publish(event_type, frame)
        }
        fn revision(&self) -> u64 {
            self.link.revision()
        }
        fn listens(&self, event_type: &str) -> bool {
            self.link.listens(event_type)
        }
        fn peers(&self) -> Vec<Peer> {
            self.link.peers()
        }
        fn close(&self) -> BoxFuture<'static, ()> {
            self.link.close()
        }
    }
}

use kept::Kept;

async fn link(url: &str, env: &Arc<dyn Env>, name: &str) -> Arc<NatsLink> {
    let connection = Connection::open(url, ConnectOptions::new()).await.unwrap();
    NatsLink::new(&connection, Arc::clone(env), LinkOptions::new("tests", name)).unwrap()
}

async fn one_server(env: Arc<dyn Env>, count: usize) -> Vec<Arc<dyn Link>> {
    let server = Arc::new(NatsServer::start());
    let mut links: Vec<Arc<dyn Link>> = Vec::new();
    for index in 0..count {
        let link = link(&server.url(), &env, &format!("space-{index}")).await;
        links.push(Arc::new(Kept { link, _servers: Arc::clone(&server) }));
    }
    links
}

async fn three_servers(env: Arc<dyn Env>, count: usize) -> Vec<Arc<dyn Link>> {
    let cluster = Arc::new(NatsCluster::start(3));
    let mut links: Vec<Arc<dyn Link>> = Vec::new();
    for index in 0..count {
        let url = cluster.servers[index % 3].url();
        let link = link(&url, &env, &format!("space-{index}")).await;
        links.push(Arc::new(Kept { link, _servers: Arc::clone(&cluster) }));
    }
    links
}

link_contract!(on_one_server, tokio, one_server);
link_contract!(on_three_servers, tokio, three_servers);
