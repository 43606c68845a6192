//! The store in memory keeps every promise of the seam, and what only it promises.

use std::sync::Arc;
use std::time::Duration;

use happen::env::RealEnv;
use happen::store::{Batch, MemoryStore, NewRecord, Position, Read, Select, Store};
use happen_testing::Simulator;

happen_testing::store_contract!(|| Arc::new(MemoryStore::new(Arc::new(RealEnv::new()))) as Arc<dyn Store>);

/// What is committed to the store of a space beside the documents of its nodes.
mod of_a_space {
    use happen::{Config, Space};

    use super::{Arc, RealEnv, Store};

    happen_testing::store_contract!(|| -> Arc<dyn Store> {
        let space = Space::in_env(Config::default(), Arc::new(RealEnv::new())).unwrap();
        space.store()
    });
}

fn note(text: &str) -> Batch {
    let record = NewRecord { tags: Vec::new(), bytes: text.as_bytes().into() };
    Batch { records: vec![record], ..Batch::default() }
}

#[test]
fn times_do_not_fall_when_the_clock_jumps_back() {
    let sim = Simulator::new(1);
    sim.run(async {
        let env = sim.env();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::clone(&env)));
        store.commit(vec![note("before")]).await;
        let before = env.unix_ms();
        env.sleep(Duration::from_secs(1)).await;
        store.commit(vec![note("later")]).await;
        sim.jump_clock_back(Duration::from_secs(3600));
        store.commit(vec![note("jumped")]).await;
        let page = store.read(Read::forward(Select::All)).await.unwrap();
        let times: Vec<u64> = page.records.iter().map(|record| record.at_unix_ms - before).collect();
        assert_eq!(times, [0, 1_000, 1_000]);
    });
}

#[test]
fn a_watch_ends_with_the_store() {
    let sim = Simulator::new(2);
    sim.run(async {
        let env = sim.env();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::clone(&env)));
        store.commit(vec![note("last words")]).await;
        let mut watch = store.watch(Select::All, Position::START).await.unwrap();
        let later = Arc::clone(&env);
        env.spawn(Box::pin(async move {
            later.sleep(Duration::from_secs(1)).await;
            drop(store);
        }));
        assert_eq!(watch.next().await.unwrap().len(), 1);
        assert_eq!(watch.next().await.unwrap_err().code(), "closed");
    });
}
