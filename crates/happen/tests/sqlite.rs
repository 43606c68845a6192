//! The store in a folder keeps every promise of the seam, and what only it promises.
#![cfg(feature = "embedded")]

use std::path::Path;
use std::sync::Arc;

use happen::env::RealEnv;
use happen::store::{SqliteOptions, SqliteStore, Store};
use happen_testing::store_contract::StoreBench;
use tempfile::TempDir;

/// Opens stores in folders that disappear with it.
struct Folders(TempDir);

impl Folders {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl StoreBench for Folders {
    fn open(&self) -> Arc<dyn Store> {
        Arc::new(open(self.0.path()).unwrap())
    }

    fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        assert_eq!(Arc::strong_count(&store), 1, "somebody still has the store");
        drop(store);
        self.open()
    }
}

happen_testing::store_contract!(Folders::new());

fn options() -> SqliteOptions {
    SqliteOptions::new(Arc::new(RealEnv::new()))
}

fn open(folder: &Path) -> happen::Result<SqliteStore> {
    wait(SqliteStore::open(folder, options()))
}

/// Runs a future of the store, which needs no more than somebody who polls it.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}
