//! The store over NATS: the contract on one server and on three, and what is its own.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use happen::env::RealEnv;
use happen_core::store::Store;
use happen_nats::{NatsStore, NatsStoreOptions};
use happen_testing::store_contract::StoreBench;
use happen_testing::{NatsCluster, NatsServer, store_contract};
use tokio::runtime::Runtime;

/// Stores over servers of their own.
struct Bench<S> {
    _servers: S,
    url: String,
    runtime: Runtime,
}

impl<S: Sync> Bench<S> {
    fn new(servers: S, url: String) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { _servers: servers, url, runtime }
    }

    fn store(&self) -> Arc<dyn Store> {
        self.runtime.block_on(async {
            let servers: Vec<&str> = self.url.split(',').collect();
            let client = async_nats::connect(servers).await.unwrap();
            let options = NatsStoreOptions::new("contract", Arc::new(RealEnv::new()));
            Arc::new(NatsStore::open(client, options).await.unwrap()) as Arc<dyn Store>
        })
    }
}

impl<S: Sync> StoreBench for Bench<S> {
    fn open(&self) -> Arc<dyn Store> {
        self.store()
    }

    fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        drop(store);
        self.store()
    }

    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        self.runtime.block_on(future);
    }
}

mod on_one_server {
    use super::*;

    store_contract!({
        let server = NatsServer::start();
        let url = server.url();
        Bench::new(server, url)
    });
}

mod on_three_servers {
    use super::*;

    store_contract!({
        let cluster = NatsCluster::start(3);
        let url = cluster.url();
        Bench::new(cluster, url)
    });
}
