//! Global state: one value for everybody, changed without losing a change, watched without missing one, for a time, and
//! by reference. On a store in memory and in a folder alike.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "whatever is not there fails the test, wherever it is looked for"
)]

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use happen::global::{Change, ChangeKind, Global, LargeValue, Watch};
use happen::limits::{
    GLOBAL_ATTEMPTS_MAX, GLOBAL_DELETED_KEPT_MS, GLOBAL_KEY_BYTES_MAX, GLOBAL_RECORDS_KEPT,
    GLOBAL_SWEEP_MS_MAX, GLOBAL_SWEEP_RETRY_MS, LARGE_BYTES_MAX, LARGE_PART_BYTES, LARGE_UNFINISHED_MS,
};
use happen::store::{
    Batch, Committed, Condition, Content, Document, History, List, MemoryStore, NewRecord, Page, Past,
    Position, Prune, Pruned, Read, Replaced, Select, Start, Store, Tag, Write,
};
use happen::{Config, Context, Error, ErrorKind, Event, EventId, Result, Space, millis, secs, with};
use happen_core::env::{BoxFuture, Env};
use happen_core::limits::{DOCUMENT_BYTES_MAX, PAGE_RECORDS_MAX};
use happen_testing::{Simulator, check_seeds};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Profile {
    name: String,
    tags: Vec<String>,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("scan.made")]
struct ScanMade {
    image: LargeValue,
}

#[derive(happen::State, Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Count {
    total: u64,
}

/// Runs a test over a store in memory and over one in a folder, with threads and time as they are.
fn on_each_store(test: impl AsyncFnOnce(&Space) + Clone) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        test.clone()(&Space::memory()).await;
        #[cfg(feature = "embedded")]
        {
            let folder = tempfile::tempdir().unwrap();
            test(&in_folder(&folder).await).await;
        }
    });
}

#[cfg(feature = "embedded")]
async fn in_folder(folder: &tempfile::TempDir) -> Space {
    use happen::env::RealEnv;
    use happen::store::{SqliteOptions, SqliteStore};
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let store = SqliteStore::open(folder.path(), SqliteOptions::new(Arc::clone(&env))).await.unwrap();
    Space::with_store(Config::default(), env, Arc::new(store)).unwrap()
}

fn in_simulator(sim: &Simulator) -> Space {
    Space::in_env(Config::default(), sim.env()).unwrap()
}

fn code<T: fmt::Debug>(result: Result<T>) -> &'static str {
    result.unwrap_err().code()
}

async fn next(watch: &mut Watch) -> Change {
    watch.next().await.expect("the space has ended").unwrap()
}

/// Key, revision and kind of the next so many changes.
async fn told(watch: &mut Watch, changes: usize) -> Vec<(String, u64, ChangeKind)> {
    let mut told = Vec::new();
    for _ in 0..changes {
        let change = next(watch).await;
        told.push((change.key().to_owned(), change.revision(), change.kind()));
    }
    told
}

fn change(key: &str, revision: u64, kind: ChangeKind) -> (String, u64, ChangeKind) {
    (key.to_owned(), revision, kind)
}

#[test]
fn a_value_is_set_read_and_deleted() {
    on_each_store(async |space| {
        let global = space.global();
        let key = "user:profile:123";
        assert_eq!(global.get::<Profile>(key).await.unwrap(), None);
        assert!(!global.delete(key).await.unwrap());
        let before = space.env().unix_ms();
        let ada = Profile { name: "Ada".into(), tags: vec!["a".into()] };
        assert_eq!(global.set(key, &ada).await.unwrap(), 1);
        let entry = global.entry::<Profile>(key).await.unwrap().unwrap();
        assert_eq!((entry.value, entry.revision, entry.expires_at_unix_ms), (ada.clone(), 1, None));
        assert!((before..=space.env().unix_ms()).contains(&entry.at_unix_ms));
        // The fields have their names, so another program may know a part of them.
        let part: serde_json::Value = global.get(key).await.unwrap().unwrap();
        assert_eq!(part["name"], "Ada");
        let error = global.get::<u64>(key).await.unwrap_err();
        assert_eq!(error.code(), "undecodable");
        assert!(error.to_string().contains(key), "{error}");

        assert_eq!(global.set(key, &ada).await.unwrap(), 2);
        assert!(global.delete(key).await.unwrap());
        assert_eq!(global.get::<Profile>(key).await.unwrap(), None);
        assert!(!global.delete(key).await.unwrap());
        // Revisions count on, so an old one never fits again.
        assert_eq!(global.set(key, "text").await.unwrap(), 4);
        assert_eq!(global.get::<String>(key).await.unwrap().as_deref(), Some("text"));
    });
}

#[test]
fn no_update_is_lost_of_a_hundred_at_once() {
    on_each_store(async |space| {
        let mut tasks = JoinSet::new();
        for _ in 0..100 {
            let global = space.global();
            tasks.spawn(async move {
                global.update("visits", |visits: Option<u64>| visits.unwrap_or(0) + 1).await.unwrap()
            });
        }
        let mut results = tasks.join_all().await;
        results.sort_unstable();
        assert_eq!(results, (1..=100).collect::<Vec<u64>>());
        let entry = space.global().entry::<u64>("visits").await.unwrap().unwrap();
        assert_eq!((entry.value, entry.revision), (100, 100));
    });
}

#[test]
fn values_set_at_once_are_all_revisions_and_one_of_many_creates() {
    on_each_store(async |space| {
        let mut tasks = JoinSet::new();
        for writer in 0..50 {
            let global = space.global();
            tasks.spawn(async move {
                let revision = global.set("last", &writer).await.unwrap();
                (revision, global.create("first", &writer).await.is_ok().then_some(writer))
            });
        }
        let (mut revisions, created): (Vec<u64>, Vec<Option<i32>>) =
            tasks.join_all().await.into_iter().unzip();
        revisions.sort_unstable();
        assert_eq!(revisions, (1..=50).collect::<Vec<u64>>());
        let created: Vec<i32> = created.into_iter().flatten().collect();
        assert_eq!(created.len(), 1);
        assert_eq!(space.global().get::<i32>("first").await.unwrap(), Some(created[0]));
    });
}

#[test]
fn a_change_at_a_revision_is_made_there_or_not_at_all() {
    on_each_store(async |space| {
        let global = space.global();
        assert_eq!(code(global.set_at("page", 1, "x").await), "conflict");
        assert_eq!(global.set_at("page", 0, "one").await.unwrap(), 1);
        assert_eq!(code(global.set_at("page", 0, "x").await), "conflict");
        assert_eq!(global.set_at("page", 1, "two").await.unwrap(), 2);
        assert_eq!(code(global.delete_at("page", 1).await), "conflict");
        assert_eq!(code(global.create("page", "x").await), "conflict");
        assert_eq!(global.get::<String>("page").await.unwrap().as_deref(), Some("two"));
        assert!(global.delete_at("page", 2).await.unwrap());
        assert_eq!(code(global.set_at("page", 2, "x").await), "conflict");
        assert_eq!(global.create("page", "three").await.unwrap(), 4);
    });
}

#[test]
fn a_function_may_refuse_or_panic_and_nothing_is_changed() {
    on_each_store(async |space| {
        let global = space.global();
        global.set("stock", &2_u64).await.unwrap();
        let refused = global
            .try_update("stock", |stock: Option<u64>| {
                stock.and_then(|stock| stock.checked_sub(3)).ok_or_else(|| "x".parse::<u8>().unwrap_err())
            })
            .await
            .unwrap_err();
        assert!(refused.find_cause::<std::num::ParseIntError>().is_some());
        let panicked = global.update("stock", |_: Option<u64>| -> u64 { panic!("oh") }).await.unwrap_err();
        assert!(matches!(panicked.kind(), ErrorKind::Panicked { message } if message == "oh"));
        assert_eq!(code(global.update("stock", |_: Option<String>| String::new()).await), "undecodable");
        assert_eq!(global.entry::<u64>("stock").await.unwrap().map(|entry| entry.revision), Some(1));
        // The same value again is no change, and one that was never there is one.
        assert_eq!(global.update("stock", |stock: Option<u64>| stock.unwrap()).await.unwrap(), 2);
        assert_eq!(global.entry::<u64>("stock").await.unwrap().map(|entry| entry.revision), Some(1));
        assert_eq!(global.update("none", |none: Option<u64>| none.unwrap_or(7)).await.unwrap(), 7);
    });
}

#[test]
fn a_watch_gives_what_is_there_and_then_every_change_once() {
    on_each_store(async |space| {
        let global = space.global();
        global.set("task:1", "open").await.unwrap();
        global.set("task:2", "open").await.unwrap();
        global.set("other", "x").await.unwrap();
        global.set("task:1", "taken").await.unwrap();
        global.delete("task:2").await.unwrap();
        let mut tasks = global.watch("task:").await.unwrap();
        let mut one = global.watch_key("task:1").await.unwrap();
        global.set("task:1", "done").await.unwrap();
        global.set("task:11", "open").await.unwrap();
        global.delete("task:11").await.unwrap();
        global.delete("task:1").await.unwrap();
        let (mut written, mut values) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            let change = next(&mut tasks).await;
            values.push(change.value::<String>().unwrap());
            written.push((change.key().to_owned(), change.revision(), change.kind()));
        }
        // What was changed since the watch began is told by its changes alone.
        assert_eq!(written[0], change("task:1", 3, ChangeKind::Written));
        assert_eq!(written[1], change("task:11", 1, ChangeKind::Written));
        assert_eq!(written[2], change("task:11", 2, ChangeKind::Deleted));
        assert_eq!(written[3], change("task:1", 4, ChangeKind::Deleted));
        assert_eq!(values, [Some("done".into()), Some("open".into()), None, None]);
        assert_eq!(told(&mut one, 2).await, [written[0].clone(), written[3].clone()]);
        let mut there = global.watch("").await.unwrap();
        assert_eq!(told(&mut there, 1).await, [change("other", 1, ChangeKind::There)]);
    });
}

/// A revision and what it says.
type Seen = (u64, Option<(u64, u64)>);

#[test]
fn a_watch_beside_many_writers_misses_nothing_and_gives_nothing_twice() {
    on_each_store(async |space| {
        let mut writers = JoinSet::new();
        for writer in 0..8_u64 {
            let global = space.global();
            writers.spawn(async move {
                for number in 0..40_u64 {
                    let key = format!("key:{}", (writer + number) % 5);
                    if number % 10 == 9 {
                        global.delete(&key).await.unwrap();
                    } else {
                        global.set(&key, &(writer, number)).await.unwrap();
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        // Each begins at another moment, while all write.
        let mut readers = JoinSet::new();
        for reader in 0..6 {
            let global = space.global();
            for _ in 0..reader * 3 {
                global.get::<(u64, u64)>("key:0").await.unwrap();
            }
            let mut watch = global.watch("key:").await.unwrap();
            readers.spawn(async move {
                let mut seen: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
                while !seen.contains_key("key:end") {
                    let change = next(&mut watch).await;
                    let value = change.value().unwrap();
                    assert_eq!(value.is_none(), change.kind() == ChangeKind::Deleted);
                    seen.entry(change.key().to_owned()).or_default().push((change.revision(), value));
                }
                seen
            });
        }
        writers.join_all().await;
        space.global().set("key:end", &(0, 0)).await.unwrap();
        for seen in readers.join_all().await {
            for (key, changes) in seen {
                for pair in changes.windows(2) {
                    assert_eq!(pair[1].0, pair[0].0 + 1, "{key}: {changes:?}");
                }
                let last = changes.last().unwrap();
                let now = space.global().entry::<(u64, u64)>(&key).await.unwrap();
                assert_eq!(now.as_ref().map(|now| now.value), last.1, "{key}");
                assert_eq!(now.map_or(last.0, |now| now.revision), last.0, "{key}");
            }
        }
    });
}

#[test]
fn keys_and_what_is_there_come_page_by_page() {
    on_each_store(async |space| {
        let global = space.global().scope("many");
        let mut tasks = JoinSet::new();
        let entries = PAGE_RECORDS_MAX + 7;
        for writer in 0..16 {
            let global = global.clone();
            tasks.spawn(async move {
                for number in (writer..entries).step_by(16) {
                    global.set(&format!("{number:04}"), &number).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
        let wanted: Vec<String> = (0..entries).map(|number| format!("{number:04}")).collect();
        let mut pages = global.keys("");
        let (mut keys, mut lens) = (Vec::new(), Vec::new());
        while let Some(page) = pages.next_page().await.unwrap() {
            lens.push(page.len());
            keys.extend(page);
        }
        assert_eq!(keys, wanted);
        assert_eq!(lens, [PAGE_RECORDS_MAX, 7]);
        assert_eq!(pages.next_page().await.unwrap(), None);
        let mut watch = global.watch("").await.unwrap();
        let there: Vec<String> = told(&mut watch, entries).await.into_iter().map(|(key, ..)| key).collect();
        assert_eq!(there, wanted);
    });
}

#[test]
fn scopes_are_apart_and_keys_of_any_text_too() {
    on_each_store(async |space| {
        let global = space.global();
        let (red, blue) = (global.scope("team:red"), global.scope("team:blue"));
        red.set("plan", "left").await.unwrap();
        blue.set("plan", "right").await.unwrap();
        red.scope("notes").set("plan", "deep").await.unwrap();
        assert_eq!(red.get::<String>("plan").await.unwrap().as_deref(), Some("left"));
        assert_eq!(global.get::<String>("team:blue/plan").await.unwrap().as_deref(), Some("right"));
        assert_eq!(red.keys("").next_page().await.unwrap().unwrap(), ["notes/plan", "plan"]);
        let mut watch = red.watch("notes/").await.unwrap();
        assert_eq!(told(&mut watch, 1).await, [change("notes/plan", 1, ChangeKind::There)]);
        for key in ["%", "/", "%2F", "a/b", "a%2Fb", "a%252Fb", "ä", " ", "_", "a_b", "aXb", "*"] {
            assert_eq!(global.create(key, key).await.unwrap(), 1, "{key}");
        }
        for key in ["%", "/", "%2F", "a/b", "a%2Fb", "a%252Fb", "ä", " ", "_", "a_b", "aXb", "*"] {
            assert_eq!(global.get::<String>(key).await.unwrap().as_deref(), Some(key));
            assert!(global.keys(key).next_page().await.unwrap().unwrap().contains(&key.to_owned()), "{key}");
        }
        assert_eq!(global.keys("a_").next_page().await.unwrap().unwrap(), ["a_b"]);
        // What others keep in the store is none of it.
        let other = Space::memory();
        assert_eq!(other.global().keys("").next_page().await.unwrap(), None);
    });
}

#[test]
fn limits_hold_to_the_last_one_allowed() {
    on_each_store(async |space| {
        let global = space.global();
        let mut codes = Vec::new();
        for bytes in [0, 1, GLOBAL_KEY_BYTES_MAX - 1, GLOBAL_KEY_BYTES_MAX, GLOBAL_KEY_BYTES_MAX + 1] {
            let key = "k".repeat(bytes);
            let set = global.set(&key, &1).await.map_or_else(|error| error.code(), |_| "ok");
            let read = global.get::<i32>(&key).await.map_or_else(|error| error.code(), |_| "ok");
            assert_eq!(set, read);
            codes.push(set);
        }
        assert_eq!(codes, ["misuse", "ok", "ok", "ok", "misuse"]);
        // What is written longer counts as long as it is written.
        assert_eq!(code(global.set(&"/".repeat(GLOBAL_KEY_BYTES_MAX / 3 + 1), &1).await), "misuse");

        // A text of this length is written with five bytes before it, and an expiry with ten.
        let mut codes = Vec::new();
        for bytes in [DOCUMENT_BYTES_MAX - 1, DOCUMENT_BYTES_MAX, DOCUMENT_BYTES_MAX + 1] {
            let text = "t".repeat(bytes - 5);
            let plain = global.set("large", &text).await.map_or_else(|error| error.code(), |_| "ok");
            let expiring = global.set("large", &text[10..]).expires_in(secs(60)).await;
            assert_eq!(plain, expiring.map_or_else(|error| error.code(), |_| "ok"));
            codes.push(plain);
        }
        assert_eq!(codes, ["ok", "ok", "oversized"]);
    });
}

#[test]
fn an_entry_reads_as_absent_from_the_moment_it_expires_and_watchers_hear_of_it() {
    let sim = Simulator::new(1);
    let space = in_simulator(&sim);
    sim.run(async {
        let (global, env) = (space.global(), space.env());
        let mut watch = global.watch("").await.unwrap();
        let now = env.unix_ms();
        global.set("lease", "ada").expires_in(secs(30)).await.unwrap();
        let entry = global.entry::<String>("lease").await.unwrap().unwrap();
        assert_eq!(entry.expires_at_unix_ms, Some(now + 30_000));
        env.sleep(millis(29_999)).await;
        assert!(global.get::<String>("lease").await.unwrap().is_some());
        env.sleep(millis(1)).await;
        assert_eq!(global.get::<String>("lease").await.unwrap(), None);
        assert_eq!(global.keys("").next_page().await.unwrap(), None);
        let written = next(&mut watch).await;
        assert_eq!(written.expires_at_unix_ms(), Some(now + 30_000));
        let expired = next(&mut watch).await;
        assert_eq!((expired.kind(), expired.revision()), (ChangeKind::Expired, 2));
        assert_eq!(expired.value::<String>().unwrap(), None);
        assert_eq!(expired.at_unix_ms(), now + 30_000);
        let document = space.store().document("global/lease").await.unwrap().unwrap();
        assert_eq!((document.revision, document.content), (2, None));
        assert_eq!(code(global.set("x", &1).expires_in(Duration::ZERO).await), "misuse");
        assert_eq!(code(global.set("x", &1).expires_in(Duration::from_micros(999)).await), "misuse");
        global.set("x", &1).expires_in(Duration::MAX).await.unwrap();
        assert_eq!(global.get::<i32>("x").await.unwrap(), Some(1));
    });
}

#[test]
fn a_refresh_wins_and_one_that_comes_too_late_is_told() {
    let sim = Simulator::new(2);
    let space = in_simulator(&sim);
    sim.run(async {
        let (global, env) = (space.global(), space.env());
        let mut watch = global.watch("").await.unwrap();
        let mut term = global.create("leader", "ada").expires_in(millis(10)).await.unwrap();
        for _ in 0..5 {
            env.sleep(millis(9)).await;
            term = global.set_at("leader", term, "ada").expires_in(millis(10)).await.unwrap();
        }
        assert_eq!(term, 6);
        // An update leaves the expiry as it is, and a plain set ends it.
        global.update("leader", |leader: Option<String>| leader.unwrap() + "!").await.unwrap();
        env.sleep(millis(10)).await;
        assert_eq!(code(global.set_at("leader", 7, "ada").expires_in(millis(10)).await), "conflict");
        assert_eq!(code(global.delete_at("leader", 7).await), "conflict");
        assert!(!global.delete("leader").await.unwrap());
        assert_eq!(global.create("leader", "bob").await.unwrap(), 9);
        env.sleep(secs(3_600)).await;
        assert_eq!(global.get::<String>("leader").await.unwrap().as_deref(), Some("bob"));
        let told = told(&mut watch, 9).await;
        let kinds: Vec<_> = told.iter().map(|(_, revision, kind)| (*revision, *kind)).collect();
        let written = |revision| (revision, ChangeKind::Written);
        let wanted: Vec<_> = (1..=7).map(written).chain([(8, ChangeKind::Expired), written(9)]).collect();
        assert_eq!(kinds, wanted);
    });
}

/// Whoever writes over an entry that has expired deletes it first, so nobody misses the expiry.
#[test]
fn an_expiry_is_told_also_when_a_writer_comes_before_the_sweep() {
    let sim = Simulator::new(3);
    let env = sim.env();
    let store = Arc::new(Unsteady::new(Arc::clone(&env)));
    let space = Space::with_store(Config::default(), Arc::clone(&env), Arc::clone(&store) as Arc<dyn Store>);
    let space = space.unwrap();
    sim.run(async {
        let global = space.global();
        let mut watch = global.watch("").await.unwrap();
        for (turn, revision) in [(0, 0), (1, 3), (2, 6)] {
            let lease = format!("lease {turn}");
            assert_eq!(global.set("lease", &lease).expires_in(secs(5)).await.unwrap(), revision + 1);
            // The clock passes the time and nobody sleeps so long: the sweep does not know yet.
            sim.jump_clock_forward(secs(5));
            assert_eq!(global.get::<String>("lease").await.unwrap(), None);
            let next = match turn {
                0 => global.set("lease", "next").await.unwrap(),
                1 => global.create("lease", "next").await.unwrap(),
                _ => {
                    global.update("lease", |lease: Option<String>| format!("{lease:?}")).await.unwrap();
                    global.entry::<String>("lease").await.unwrap().unwrap().revision
                }
            };
            assert_eq!(next, revision + 3);
        }
        let kinds: Vec<_> = told(&mut watch, 9).await.into_iter().map(|(_, _, kind)| kind).collect();
        assert_eq!(kinds, [ChangeKind::Written, ChangeKind::Expired, ChangeKind::Written].repeat(3));
        assert_eq!(global.get::<String>("lease").await.unwrap().as_deref(), Some("None"));
    });
}

#[test]
fn the_sweep_goes_on_when_the_store_fails_for_a_while() {
    let sim = Simulator::new(4);
    let env = sim.env();
    let store = Arc::new(Unsteady::new(Arc::clone(&env)));
    let space = Space::with_store(Config::default(), Arc::clone(&env), Arc::clone(&store) as Arc<dyn Store>);
    let space = space.unwrap();
    sim.run(async {
        let global = space.global();
        global.set("lease", &1).expires_in(secs(5)).await.unwrap();
        global.set("other", &1).expires_in(secs(9)).await.unwrap();
        env.sleep(secs(4)).await;
        store.fail_next(3, Failing::Io);
        let before = env.unix_ms();
        let mut watch = global.watch("").await.unwrap();
        assert_eq!(next(&mut watch).await.kind(), ChangeKind::There);
        assert_eq!(next(&mut watch).await.kind(), ChangeKind::There);
        let expired = next(&mut watch).await;
        assert_eq!((expired.key(), expired.kind()), ("lease", ChangeKind::Expired));
        assert_eq!(expired.at_unix_ms() - before, 1_000 + 3 * GLOBAL_SWEEP_RETRY_MS);
        assert_eq!(next(&mut watch).await.key(), "other");
        // A writer is told of a failure of the store.
        store.fail_next(1, Failing::Io);
        assert_eq!(code(global.set("lease", &2).await), "io");
    });
}

#[test]
fn an_expiry_survives_a_restart_of_the_space_over_its_store() {
    let sim = Simulator::new(5);
    let env = sim.env();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::clone(&env)));
    let open = || Space::with_store(Config::default(), Arc::clone(&env), Arc::clone(&store)).unwrap();
    sim.run(async {
        let space = open();
        space.global().set("soon", &1).expires_in(secs(5)).await.unwrap();
        space.global().set("late", &1).expires_in(secs(60)).await.unwrap();
        space.global().set("never", &1).await.unwrap();
        space.stop().await.unwrap();
        drop(space);
        env.sleep(secs(10)).await;
        // Nobody was there to delete it, and yet it is not.
        let document = store.document("global/soon").await.unwrap().unwrap();
        assert!(document.content.is_some());
        let space = open();
        assert_eq!(space.global().get::<i32>("soon").await.unwrap(), None);
        let mut watch = space.global().watch("").await.unwrap();
        let before = env.unix_ms();
        let mut told = told(&mut watch, 4).await;
        told.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let wanted = [
            change("late", 1, ChangeKind::There),
            change("late", 2, ChangeKind::Expired),
            change("never", 1, ChangeKind::There),
            change("soon", 2, ChangeKind::Expired),
        ];
        assert_eq!(told, wanted);
        assert_eq!(env.unix_ms() - before, 50_000);
    });
}

#[cfg(feature = "embedded")]
#[test]
fn everything_survives_a_restart_in_a_folder() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let space = in_folder(&folder).await;
        let global = space.global();
        global.set("config", &Profile { name: "x".into(), tags: vec![] }).await.unwrap();
        global.set("lease", &1).expires_in(millis(1)).await.unwrap();
        global.set("long", &1).expires_in(secs(86_400)).await.unwrap();
        global.delete("none").await.unwrap();
        let reference = global.put_large(&vec![7; LARGE_PART_BYTES + 1]).await.unwrap();
        // The sweep and the watch sleep and do not hold the folder.
        let mut watch = global.watch("").await.unwrap();
        space.stop().await.unwrap();
        drop((global, space));
        assert!(watch.next().await.is_none());

        let space = in_folder(&folder).await;
        let global = space.global();
        let config = global.entry::<Profile>("config").await.unwrap().unwrap();
        assert_eq!((config.value.name.as_str(), config.revision), ("x", 1));
        assert_eq!(global.entry::<i32>("long").await.unwrap().map(|entry| entry.revision), Some(1));
        assert_eq!(global.large(&reference).await.unwrap(), Some(vec![7; LARGE_PART_BYTES + 1]));
        let mut watch = global.watch_key("lease").await.unwrap();
        // It may have been swept before the restart; then a new one counts on.
        if global.create("lease", &2).await.unwrap() == 3 {
            let last = loop {
                let change = next(&mut watch).await;
                if change.kind() == ChangeKind::Written {
                    break change.revision();
                }
            };
            assert_eq!(last, 3);
        }
    });
}

#[test]
fn a_watch_loses_nothing_when_its_future_is_dropped_and_ends_with_the_space() {
    let sim = Simulator::new(6);
    let space = in_simulator(&sim);
    let later = sim.run(async {
        let (global, env) = (space.global(), space.env());
        let mut watch = global.watch("").await.unwrap();
        for number in 0..50_u64 {
            if number % 3 == 0 {
                global.set("n", &number).await.unwrap();
            }
            // Polled once, or for a while, and dropped.
            let mut next = Box::pin(watch.next());
            let mut late = env.sleep(millis(number % 2));
            let given = std::future::poll_fn(|task| {
                if let std::task::Poll::Ready(given) = next.as_mut().poll(task) {
                    return std::task::Poll::Ready(Some(given));
                }
                late.as_mut().poll(task).map(|()| None)
            })
            .await;
            drop(next);
            if let Some(change) = given {
                let change = change.unwrap().unwrap();
                assert_eq!(change.revision(), change.value::<u64>().unwrap().unwrap() / 3 + 1);
            }
        }
        global.set("n", &51_u64).await.unwrap();
        while next(&mut watch).await.revision() < 18 {}
        let waiting = async move { watch.next().await.is_none() };
        let stopping = async {
            env.sleep(secs(1)).await;
            space.stop().await.unwrap();
        };
        let (ended, ()) = tokio::join!(waiting, stopping);
        assert!(ended);
        assert_eq!(code(global.set("n", &1).await), "closed");
        assert_eq!(code(global.delete("n").await), "closed");
        assert_eq!(code(global.update("n", |n: Option<u64>| n.unwrap_or(0)).await), "closed");
        assert_eq!(code(global.watch("").await.map(drop)), "closed");
        assert_eq!(code(global.write_large().map(drop)), "closed");
        global.get::<u64>("n").await.unwrap()
    });
    assert_eq!(later, Some(51));
}

/// The sweep sleeps by time that only goes forward, and looks at the wall clock at least this often.
#[test]
fn a_clock_that_is_set_forward_is_noticed_by_readers_at_once_and_by_the_sweep_soon() {
    let sim = Simulator::new(17);
    let space = in_simulator(&sim);
    sim.run(async {
        let (global, env) = (space.global(), space.env());
        let mut watch = global.watch("").await.unwrap();
        global.set("lease", &1).expires_in(secs(10 * 86_400)).await.unwrap();
        assert_eq!(next(&mut watch).await.kind(), ChangeKind::Written);
        env.sleep(secs(1)).await;
        sim.jump_clock_forward(secs(20 * 86_400));
        let before = env.monotonic();
        assert_eq!(global.get::<i32>("lease").await.unwrap(), None);
        assert_eq!(next(&mut watch).await.kind(), ChangeKind::Expired);
        assert_eq!(env.monotonic() - before, Duration::from_millis(GLOBAL_SWEEP_MS_MAX) - secs(1));
        // Set back, it only lets what is there last longer.
        global.set("lease", &2).expires_in(secs(5)).await.unwrap();
        sim.jump_clock_back(secs(60));
        env.sleep(secs(64)).await;
        assert_eq!(global.get::<i32>("lease").await.unwrap(), Some(2));
        env.sleep(secs(1)).await;
        assert_eq!(global.get::<i32>("lease").await.unwrap(), None);
    });
}

#[test]
fn many_entries_expire_at_once() {
    // Around how many the sweep deletes by one call, and how many a page has.
    for entries in [255, 256, 257, PAGE_RECORDS_MAX - 1, PAGE_RECORDS_MAX, PAGE_RECORDS_MAX + 1] {
        let sim = Simulator::new(18);
        let env = sim.env();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::clone(&env)));
        let open = || Space::with_store(Config::default(), Arc::clone(&env), Arc::clone(&store)).unwrap();
        sim.run(async {
            let before = open();
            for entry in 0..entries {
                before.global().set(&entry.to_string(), &entry).expires_in(secs(5)).await.unwrap();
            }
            drop(before);
            let space = open();
            let mut watch = space.global().watch("").await.unwrap();
            env.sleep(secs(5)).await;
            assert_eq!(space.global().keys("").next_page().await.unwrap(), None);
            for _ in 0..entries {
                let change = next(&mut watch).await;
                assert_eq!((change.kind(), change.revision()), (ChangeKind::Expired, 2));
            }
        });
    }
}

#[test]
fn a_space_in_memory_forgets_the_revision_of_what_was_deleted_after_a_day_and_not_before() {
    let day = GLOBAL_DELETED_KEPT_MS;
    for (waited_ms, revision) in [(day - 1, 3), (day, 1), (day + 1, 1)] {
        let sim = Simulator::new(19);
        let space = in_simulator(&sim);
        sim.run(async {
            let (global, env) = (space.global(), space.env());
            let reference = global.put_large(b"x").await.unwrap();
            global.delete_large(&reference).await.unwrap();
            for key in ["old", "there"] {
                global.set(key, &1).await.unwrap();
            }
            global.delete("old").await.unwrap();
            // Two marks: the log is looked at whenever so many changes were made.
            for change in 0..2 * GLOBAL_RECORDS_KEPT {
                global.set("busy", &change).await.unwrap();
                if change + 10 == GLOBAL_RECORDS_KEPT {
                    env.sleep(secs(5)).await;
                } else if change == GLOBAL_RECORDS_KEPT {
                    global.set("later", &1).await.unwrap();
                    global.delete("later").await.unwrap();
                    env.sleep(Duration::from_millis(waited_ms)).await;
                }
            }
            global.delete("busy").await.unwrap();
            assert_eq!(global.set("later", &2).await.unwrap(), 3, "it was not there when the day began");
            assert_eq!(global.set("old", &2).await.unwrap(), revision, "{waited_ms}");
            assert_eq!(global.set("there", &2).await.unwrap(), 2);
            assert_eq!(global.set("busy", &2).await.unwrap(), 2 * GLOBAL_RECORDS_KEPT + 2);
            for key in ["0", "manifest"] {
                let key = format!("large/{}/{key}", reference.id());
                assert!(space.store().document(&key).await.unwrap().is_none(), "{key}");
            }
        });
    }
}

/// As of a reader in another process, whose writer sweeps.
#[test]
fn a_store_that_takes_no_commits_is_read_and_not_swept() {
    let sim = Simulator::new(20);
    let env = sim.env();
    let store = Arc::new(Unsteady::new(Arc::clone(&env)));
    let open = || {
        let store = Arc::clone(&store) as Arc<dyn Store>;
        Space::with_store(Config::default(), Arc::clone(&env), store).unwrap()
    };
    sim.run(async {
        let writer = open();
        writer.global().set("lease", &1).expires_in(secs(5)).await.unwrap();
        writer.global().set("there", &1).await.unwrap();
        writer.stop().await.unwrap();
        store.fail_next(u32::MAX, Failing::Refused);
        let reader = open();
        let mut watch = reader.global().watch("").await.unwrap();
        env.sleep(secs(10)).await;
        assert_eq!(told(&mut watch, 1).await, [change("there", 1, ChangeKind::There)]);
        assert_eq!(reader.global().get::<i32>("lease").await.unwrap(), None);
        assert_eq!(code(reader.global().set("x", &1).await), "misuse");
        // It was tried once by the sweep, and once here.
        env.sleep(secs(3_600)).await;
        assert_eq!(u32::MAX - store.bad.load(Ordering::SeqCst), 2);
        reader.stop().await.unwrap();
    });
}

#[test]
fn the_sweep_holds_nothing_while_it_sleeps_and_ends_with_its_space() {
    let sim = Simulator::new(16);
    let env = sim.env();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::clone(&env)));
    for stops in [true, false] {
        let space = Space::with_store(Config::default(), Arc::clone(&env), Arc::clone(&store)).unwrap();
        let idle = Arc::strong_count(&store);
        sim.run(async {
            space.global().set("lease", &1).expires_in(secs(60)).await.unwrap();
            env.sleep(secs(1)).await;
            assert_eq!(Arc::strong_count(&store), idle, "the space has it, and the test");
            if stops {
                space.stop().await.unwrap();
            }
            drop(space);
            assert_eq!(Arc::strong_count(&store), 1);
            env.sleep(secs(120)).await;
            let lease = store.document("global/lease").await.unwrap().unwrap();
            assert!(lease.content.is_some(), "nobody sweeps any more");
        });
    }
}

/// Keys and revisions that a watch gives without waiting, or the error it gives.
fn given_now(sim: &Simulator, watch: &mut Watch) -> Vec<Result<(ChangeKind, u64), &'static str>> {
    let mut given = Vec::new();
    let mut task = std::task::Context::from_waker(std::task::Waker::noop());
    sim.run(async {
        while let std::task::Poll::Ready(change) = std::pin::pin!(watch.next()).as_mut().poll(&mut task) {
            let change = change.expect("the space runs");
            given.push(change.map(|change| (change.kind(), change.revision())).map_err(|error| error.code()));
        }
    });
    given
}

#[test]
fn a_space_in_memory_forgets_old_changes_and_who_missed_some_is_told() {
    for changes in [2 * GLOBAL_RECORDS_KEPT - 1, 2 * GLOBAL_RECORDS_KEPT, 2 * GLOBAL_RECORDS_KEPT + 1] {
        let sim = Simulator::new(14);
        let space = in_simulator(&sim);
        let global = space.global();
        let (mut idle, mut busy) =
            sim.run(async { (global.watch("").await.unwrap(), global.watch("").await.unwrap()) });
        let mut read = 0;
        for change in 1..=changes {
            sim.run(async { global.set("n", &change).await.unwrap() });
            if change % 1_000 == 0 {
                read += given_now(&sim, &mut busy).into_iter().filter(Result::is_ok).count() as u64;
            }
        }
        read += given_now(&sim, &mut busy).into_iter().filter(Result::is_ok).count() as u64;
        assert_eq!(read, changes, "who reads along misses nothing");
        let given = given_now(&sim, &mut idle);
        if changes < 2 * GLOBAL_RECORDS_KEPT {
            let wanted: Vec<_> = (1..=changes).map(|revision| Ok((ChangeKind::Written, revision))).collect();
            assert_eq!(given, wanted);
        } else {
            assert_eq!(given, [Err("lagged"), Ok((ChangeKind::There, changes))]);
        }
        sim.run(async { global.delete("n").await.unwrap() });
        assert_eq!(given_now(&sim, &mut idle), [Ok((ChangeKind::Deleted, changes + 1))]);
    }
}

#[test]
fn the_records_of_a_space_in_memory_do_not_grow_without_an_end_and_expiries_come_nevertheless() {
    let sim = Simulator::new(15);
    let space = in_simulator(&sim);
    sim.run(async {
        let (global, env) = (space.global(), space.env());
        global.set("first", &1).expires_in(secs(5)).await.unwrap();
        env.sleep(secs(1)).await;
        // Nothing waits in between, so the sweep sees none of it come.
        for number in 0..4 * GLOBAL_RECORDS_KEPT {
            global.set(&format!("lease:{}", number % 10), &number).expires_in(secs(9)).await.unwrap();
        }
        // These expire as often as they are written, and that is recorded too.
        for number in 0..GLOBAL_RECORDS_KEPT {
            global.set("short", &number).expires_in(millis(1)).await.unwrap();
            env.sleep(millis(2)).await;
        }
        let mut records = 0;
        let mut read = Read::forward(Select::All);
        loop {
            let page = space.store().read(read.clone()).await.unwrap();
            records += page.records.len() as u64;
            let Some(next) = page.next else { break };
            read = read.start(Start::Position(next));
        }
        assert!((GLOBAL_RECORDS_KEPT..2 * GLOBAL_RECORDS_KEPT).contains(&records), "{records}");
        env.sleep(secs(20)).await;
        let list = List { prefix: "global/".into(), after: None, documents_max: 100 };
        assert_eq!(space.store().list(list).await.unwrap().len(), 0);
    });
}

#[test]
fn what_others_write_under_our_names_is_told_and_passed() {
    on_each_store(async |space| {
        let (global, store) = (space.global(), space.store());
        let mut watch = global.watch("").await.unwrap();
        for bytes in [&b""[..], b"\x02\x80", b"\x01\x80", b"\x01rubbish"] {
            let record = NewRecord { tags: vec![Tag::Type("$global".into())], bytes: bytes.into() };
            store.commit(vec![Batch { records: vec![record], ..Batch::default() }]).await.remove(0).unwrap();
        }
        let content = Content { name: "value".into(), version: 9, bytes: [1][..].into() };
        let later = Write {
            key: "global/later".into(),
            revision: 1,
            content: Some(content),
            past: Past::Dropped,
            replaced: Replaced::Kept,
        };
        store.commit(vec![Batch { documents: vec![later], ..Batch::default() }]).await.remove(0).unwrap();
        global.set("ours", &1).expires_in(secs(60)).await.unwrap();
        for _ in 0..4 {
            assert_eq!(code(watch.next().await.unwrap()), "undecodable");
        }
        assert_eq!(next(&mut watch).await.key(), "ours");
        let error = global.get::<u64>("later").await.unwrap_err();
        assert_eq!(error.code(), "undecodable");
        assert!(error.to_string().contains("later"), "{error}");
        assert_eq!(code(global.set("later", &1).await), "undecodable");
        let mut there = global.watch("").await.unwrap();
        assert_eq!(code(there.next().await.unwrap()), "undecodable");
        assert_eq!(next(&mut there).await.key(), "ours");
    });
}

#[test]
fn a_change_is_tried_so_often_and_then_given_up() {
    let sim = Simulator::new(7);
    let env = sim.env();
    for (conflicts, wanted) in [
        (GLOBAL_ATTEMPTS_MAX - 1, "ok"),
        (GLOBAL_ATTEMPTS_MAX, "conflict"),
        (GLOBAL_ATTEMPTS_MAX + 1, "conflict"),
    ] {
        let store = Arc::new(Unsteady::new(Arc::clone(&env)));
        let over = Arc::clone(&store) as Arc<dyn Store>;
        let space = Space::with_store(Config::default(), Arc::clone(&env), over).unwrap();
        sim.run(async {
            store.fail_next(conflicts, Failing::Conflict);
            let set = space.global().set("x", &1).await;
            if let Err(error) = &set {
                assert!(error.to_string().contains("64 times"), "{error}");
                assert_eq!(error.chain().len(), 2, "{error:?}");
            }
            assert_eq!(set.map_or_else(|error| error.code(), |_| "ok"), wanted, "{conflicts}");
        });
    }
}

#[test]
fn nothing_is_changed_inside_a_function_that_must_be_pure() {
    let sim = Simulator::new(8);
    let space = in_simulator(&sim);
    let node = space.node("node");
    sim.run(async {
        let global = space.global();
        let inside = global.clone();
        let changed = node.state::<Count>().set(move |count| {
            drop(inside.set("x", &1));
            Count { total: count.total + 1 }
        });
        assert_eq!(code(changed), "misuse");
        assert_eq!(node.state::<Count>().get(|count| count.total), 0);
        let inside = global.clone();
        let updated = global.update("x", move |x: Option<u64>| {
            drop(inside.set("y", &1));
            x.unwrap_or(0)
        });
        assert_eq!(code(updated.await), "misuse");
        let inside = global.clone();
        let updated = global.update("x", move |x: Option<u64>| {
            let mut task = std::task::Context::from_waker(std::task::Waker::noop());
            for _ in 0..2 {
                assert!(std::pin::pin!(inside.delete("x")).as_mut().poll(&mut task).is_ready());
                assert!(std::pin::pin!(inside.get::<u64>("x")).as_mut().poll(&mut task).is_ready());
            }
            x.unwrap_or(0)
        });
        assert_eq!(code(updated.await), "misuse");
        assert_eq!(global.keys("").next_page().await.unwrap(), None);
    });
}

#[test]
fn a_change_in_a_handler_stays_when_its_step_fails_and_names_its_cause() {
    let sim = Simulator::new(9);
    let space = in_simulator(&sim);
    let node = space.node("worker");
    let work = async |outside: Global, _: Event, cx: Context| -> Result<()> {
        cx.global().set("mine", &1).await?;
        cx.node().global().set("node's", &1).await?;
        outside.update("space's", |n: Option<u64>| n.unwrap_or(0) + 1).await?;
        Err(Error::msg("too late"))
    };
    node.on("work", with(space.global(), work)).check().unwrap();
    sim.run(async {
        space.start().await.unwrap();
        let mut watch = space.global().watch("").await.unwrap();
        let mut events: Vec<EventId> = Vec::new();
        for _ in 0..2 {
            let error = space.send(&node, Event::new("work", serde_json::Value::Null)).reply::<()>().await;
            let error = error.unwrap_err();
            assert_eq!(error.code(), "failed");
            events.push(error.event_id().unwrap());
        }
        for event in events {
            for key in ["mine", "node's", "space's"] {
                let change = next(&mut watch).await;
                assert_eq!((change.key(), change.cause(), change.node()), (key, Some(event), Some("worker")));
            }
        }
        space.global().set("outside", &1).await.unwrap();
        let change = next(&mut watch).await;
        assert_eq!((change.cause(), change.node()), (None, None));
        node.global().set("outside", &2).await.unwrap();
        let change = next(&mut watch).await;
        assert_eq!((change.cause(), change.node()), (None, Some("worker")));
    });
}

/// Several tasks do anything to a few keys, through two spaces over one store, as two processes are. Whatever happens,
/// each entry has one history, which every call fits into at a moment between its beginning and its end.
#[test]
fn every_call_fits_into_one_history_of_each_entry() {
    check_seeds(0..60, |sim| {
        let env = sim.env();
        let store: Arc<dyn Store> = Arc::new(Unsteady::slow(Arc::clone(&env)));
        let open = || Space::with_store(Config::default(), Arc::clone(&env), Arc::clone(&store)).unwrap();
        let spaces = [open(), open()];
        sim.run(async {
            let watch = spaces[0].global().watch("").await.unwrap();
            let clients = Clients::new(&[&spaces[0], &spaces[1]]);
            let clients = &clients;
            let work = async |client: u64| {
                for step in 0..30 {
                    clients.step(client * 1_000 + step, Times::Expiring).await;
                    env.sleep(millis(env.random_u64() % 3)).await;
                }
            };
            tokio::join!(work(1), work(2), work(3), work(4));
            env.sleep(secs(1)).await;
            clients.check(watch).await;
        });
    });
}

#[test]
fn every_call_fits_into_one_history_on_threads_too() {
    on_each_store(async |space| {
        let watch = space.global().watch("").await.unwrap();
        let clients = Arc::new(Clients::new(&[space]));
        let mut tasks = JoinSet::new();
        for client in 1..=6 {
            let clients = Arc::clone(&clients);
            tasks.spawn(async move {
                for step in 0..50 {
                    clients.step(client * 1_000 + step, Times::Lasting).await;
                }
            });
        }
        tasks.join_all().await;
        clients.check(watch).await;
    });
}

#[test]
fn a_large_value_goes_by_reference() {
    on_each_store(async |space| {
        let global = space.global();
        for bytes in
            [0, 1, LARGE_PART_BYTES - 1, LARGE_PART_BYTES, LARGE_PART_BYTES + 1, 3 * LARGE_PART_BYTES]
        {
            let value: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
            let reference = global.put_large(&value).await.unwrap();
            assert_eq!((reference.len_bytes(), reference.id().len()), (bytes as u64, 32));
            assert_eq!(global.large(&reference).await.unwrap().as_deref(), Some(&*value), "{bytes}");
            let mut writer = global.write_large().unwrap();
            for piece in value.chunks(LARGE_PART_BYTES / 3 + 1) {
                writer.write(piece).await.unwrap();
            }
            let same = writer.finish().await.unwrap();
            assert_eq!((same.hash(), same.len_bytes()), (reference.hash(), reference.len_bytes()));
            assert_ne!(same.id(), reference.id());
            assert!(global.delete_large(&reference).await.unwrap());
            assert!(!global.delete_large(&reference).await.unwrap());
            assert_eq!(global.large(&reference).await.unwrap(), None);
            assert_eq!(global.large(&same).await.unwrap().as_deref(), Some(&*value));
            assert!(global.delete_large(&same).await.unwrap());
        }
        assert_eq!(left_of_large(space).await, 0);
    });
}

#[test]
fn a_reference_travels_in_an_event() {
    let sim = Simulator::new(10);
    let space = in_simulator(&sim);
    let node = space.node("archive");
    node.on("scan.made", async |scan: Event<ScanMade>, cx: Context| -> Result<u64> {
        let image = cx.global().large(&scan.image).await?.unwrap_or_default();
        Ok(image.iter().map(|byte| u64::from(*byte)).sum())
    })
    .check()
    .unwrap();
    sim.run(async {
        space.start().await.unwrap();
        let image = space.global().put_large(&[1, 2, 3]).await.unwrap();
        let sum = space.send(&node, ScanMade { image }).reply::<u64>().await.unwrap();
        assert_eq!(*sum, 6);
    });
}

#[test]
fn a_large_value_is_whole_or_an_error() {
    on_each_store(async |space| {
        let (global, store) = (space.global(), space.store());
        let value = vec![7; 2 * LARGE_PART_BYTES + 9];
        let reference = global.put_large(&value).await.unwrap();
        let json = serde_json::to_value(&reference).unwrap();
        let forged = |field: &str, to: serde_json::Value| -> LargeValue {
            let mut json = json.clone();
            json[field] = to;
            serde_json::from_value(json).unwrap()
        };
        let large = async |reference: LargeValue| global.large(&reference).await;
        assert_eq!(code(large(forged("bytes", 5.into())).await), "damaged");
        assert_eq!(code(large(forged("bytes", (LARGE_BYTES_MAX + 1).into())).await), "oversized");
        assert_eq!(code(large(forged("bytes", u64::MAX.into())).await), "oversized");
        assert_eq!(code(large(forged("hash", "00".into())).await), "damaged");
        for id in ["", "x", "../../global/x", &"Z".repeat(32), &"0".repeat(33)] {
            assert_eq!(code(large(forged("id", id.into())).await), "misuse", "{id}");
            assert_eq!(code(global.delete_large(&forged("id", id.into())).await), "misuse", "{id}");
        }
        assert_eq!(large(forged("id", "0".repeat(32).into())).await.unwrap(), None);

        let part = |number: u32| format!("large/{}/{number}", reference.id());
        let put = async |number: u32, bytes: Option<Vec<u8>>| {
            let key = part(number);
            let revision = store.document(&key).await.unwrap().map_or(0, |found| found.revision) + 1;
            let content = bytes.map(|bytes| Content { name: "part".into(), version: 1, bytes: bytes.into() });
            let write =
                Write { key: key.into(), revision, content, past: Past::Dropped, replaced: Replaced::Kept };
            store.commit(vec![Batch { documents: vec![write], ..Batch::default() }]).await.remove(0).unwrap();
        };
        let mut flipped = vec![7; LARGE_PART_BYTES];
        flipped[100] ^= 1;
        for (what, bytes) in [
            ("flipped", Some(flipped)),
            ("shorter", Some(vec![7; 10])),
            ("longer", Some(vec![7; LARGE_PART_BYTES + 1])),
            ("missing", None),
        ] {
            put(1, bytes).await;
            assert_eq!(code(global.large(&reference).await), "damaged", "{what}");
        }
        put(1, Some(vec![7; LARGE_PART_BYTES])).await;
        assert_eq!(global.large(&reference).await.unwrap(), Some(value));
    });
}

#[test]
fn a_large_value_has_a_limit_to_the_last_byte() {
    let sim = Simulator::new(11);
    let space = in_simulator(&sim);
    sim.run(async {
        let bytes = vec![0; LARGE_BYTES_MAX + 1];
        let global = space.global();
        for less in [1, 0] {
            let reference = global.put_large(&bytes[..LARGE_BYTES_MAX - less]).await.unwrap();
            assert_eq!(reference.len_bytes(), (LARGE_BYTES_MAX - less) as u64);
            assert_eq!(
                global.large(&reference).await.unwrap().map(|read| read.len()),
                Some(LARGE_BYTES_MAX - less)
            );
            assert!(global.delete_large(&reference).await.unwrap());
        }
        assert_eq!(code(global.put_large(&bytes).await), "oversized");
        // Around how many parts are read by one call.
        for parts in [7, 8, 9, 16] {
            let value: Vec<u8> = (0..parts * LARGE_PART_BYTES).map(|index| (index / 4096) as u8).collect();
            let reference = global.put_large(&value).await.unwrap();
            assert!(global.large(&reference).await.unwrap() == Some(value), "{parts}");
        }
        let mut writer = global.write_large().unwrap();
        writer.write(&bytes[..10]).await.unwrap();
        assert_eq!(code(writer.write(&bytes[..LARGE_BYTES_MAX - 9]).await), "oversized");
        // Nothing of it was taken, so what fits still does.
        writer.write(&bytes[..5]).await.unwrap();
        assert_eq!(writer.finish().await.unwrap().len_bytes(), 15);
    });
}

#[test]
fn a_half_written_large_value_is_never_seen_and_goes() {
    let sim = Simulator::new(12);
    let env = sim.env();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::clone(&env)));
    let open = || Space::with_store(Config::default(), Arc::clone(&env), Arc::clone(&store)).unwrap();
    let half = vec![7; 9 * LARGE_PART_BYTES + 1];
    sim.run(async {
        let space = open();
        let mut writer = space.global().write_large().unwrap();
        writer.write(&half).await.unwrap();
        assert_eq!(left_of_large(&space).await, 9);
        // A writer that is dropped takes back what it wrote.
        drop(writer);
        env.sleep(millis(1)).await;
        assert_eq!(left_of_large(&space).await, 0);

        // One whose process ends leaves it, and the next process removes it once it is sure.
        let mut writer = space.global().write_large().unwrap();
        writer.write(&half).await.unwrap();
        let begun = env.unix_ms();
        space.stop().await.unwrap();
        std::mem::forget(writer);
        drop(space);
        let space = open();
        let whole = space.global().put_large(&half).await.unwrap();
        let mut late = space.global().write_large().unwrap();
        late.write(&half).await.unwrap();
        env.sleep(Duration::from_millis(begun + LARGE_UNFINISHED_MS - 1 - env.unix_ms())).await;
        assert_eq!(left_of_large(&space).await, 9 + 11 + 9);
        env.sleep(millis(2)).await;
        assert_eq!(left_of_large(&space).await, 11);
        // Whoever takes too long is told.
        assert_eq!(code(late.write(&half).await), "conflict");
        assert_eq!(code(late.finish().await), "conflict");
        assert_eq!(space.global().large(&whole).await.unwrap(), Some(half));
        env.sleep(millis(1)).await;
        assert_eq!(left_of_large(&space).await, 11);
    });
}

#[test]
fn a_deletion_of_a_large_value_that_was_interrupted_is_finished_by_the_sweep() {
    let sim = Simulator::new(13);
    let env = sim.env();
    let store = Arc::new(Unsteady::new(Arc::clone(&env)));
    let over = Arc::clone(&store) as Arc<dyn Store>;
    let space = Space::with_store(Config::default(), Arc::clone(&env), over).unwrap();
    sim.run(async {
        let global = space.global();
        let reference = global.put_large(&vec![1; 3 * LARGE_PART_BYTES]).await.unwrap();
        store.fail_after(1, 1, Failing::Io);
        assert_eq!(code(global.delete_large(&reference).await), "io");
        assert_eq!(global.large(&reference).await.unwrap(), None);
        assert_eq!(left_of_large(&space).await, 3);
        env.sleep(Duration::from_millis(LARGE_UNFINISHED_MS + 1)).await;
        assert_eq!(left_of_large(&space).await, 0);
    });
}

/// The documents of large values there are, without those of marks that ended.
async fn left_of_large(space: &Space) -> usize {
    let mut left = 0;
    for prefix in ["large/", "large-unfinished/"] {
        let mut after = None;
        loop {
            let list = List { prefix: prefix.into(), after: after.take(), documents_max: 5 };
            let documents = space.store().list(list).await.unwrap();
            let Some(last) = documents.last() else { break };
            after = Some(Arc::clone(&last.key));
            left += documents.iter().filter(|document| document.key.starts_with("large/")).count();
        }
    }
    left
}

/// A store in memory whose next commits fail, and which takes its time when it is told to.
#[derive(Debug)]
struct Unsteady {
    inner: MemoryStore,
    env: Arc<dyn Env>,
    is_slow: bool,
    good: AtomicU32,
    bad: AtomicU32,
    failing: Mutex<Failing>,
}

#[derive(Debug, Clone, Copy)]
enum Failing {
    Io,
    Refused,
    Conflict,
}

impl Unsteady {
    fn new(env: Arc<dyn Env>) -> Self {
        let (good, bad) = (AtomicU32::new(0), AtomicU32::new(0));
        let failing = Mutex::new(Failing::Io);
        Self { inner: MemoryStore::new(Arc::clone(&env)), env, is_slow: false, good, bad, failing }
    }

    /// One that lets others come between any two of its doings.
    fn slow(env: Arc<dyn Env>) -> Self {
        Self { is_slow: true, ..Self::new(env) }
    }

    /// Takes a moment before and after, during which anything may happen.
    fn later<'s, T: Send + 's>(&'s self, done: BoxFuture<'s, T>) -> BoxFuture<'s, T> {
        if !self.is_slow {
            return done;
        }
        let moment = || self.env.sleep(Duration::from_micros(self.env.random_u64() % 3 * 400));
        Box::pin(async move {
            moment().await;
            let done = done.await;
            moment().await;
            done
        })
    }

    fn fail_next(&self, calls: u32, failing: Failing) {
        self.fail_after(0, calls, failing);
    }

    /// Lets so many calls pass and then fails so many.
    fn fail_after(&self, good: u32, bad: u32, failing: Failing) {
        self.good.store(good, Ordering::SeqCst);
        self.bad.store(bad, Ordering::SeqCst);
        *self.failing.lock().unwrap() = failing;
    }

    fn fails(&self) -> bool {
        let less = |count: &AtomicU32| {
            count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
        };
        !less(&self.good) && less(&self.bad)
    }
}

impl Store for Unsteady {
    fn commit(&self, batches: Vec<Batch>) -> BoxFuture<'_, Vec<Result<Committed>>> {
        if !self.fails() {
            return self.later(self.inner.commit(batches));
        }
        let failing = *self.failing.lock().unwrap();
        let error = move |_: Batch| match failing {
            Failing::Io => Err(Error::new(ErrorKind::Io { what: "writing".into() })),
            Failing::Refused => Err(Error::misuse("the store is read only")),
            Failing::Conflict => Err(Condition::revision_conflict("x", 1, 2)),
        };
        Box::pin(async move { batches.into_iter().map(error).collect() })
    }

    fn read(&self, read: Read) -> BoxFuture<'_, Result<Page>> {
        self.later(self.inner.read(read))
    }

    fn watch(&self, select: Select, after: Position) -> BoxFuture<'_, Result<Box<dyn happen::store::Watch>>> {
        self.inner.watch(select, after)
    }

    fn documents(&self, keys: Vec<Arc<str>>) -> BoxFuture<'_, Result<Vec<Option<Document>>>> {
        self.later(self.inner.documents(keys))
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Vec<Document>>> {
        self.later(self.inner.list(list))
    }

    fn history(&self, history: History) -> BoxFuture<'_, Result<Vec<Document>>> {
        self.inner.history(history)
    }

    fn prune(&self, prune: Prune) -> BoxFuture<'_, Result<Pruned>> {
        self.inner.prune(prune)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Times {
    Lasting,
    Expiring,
}

/// Tasks that do anything, and what they were told.
struct Clients {
    globals: Vec<Global>,
    env: Arc<dyn Env>,
    /// The highest revision that any call has told of each key: what begins later must see it or a later one.
    known: Mutex<HashMap<String, u64>>,
    calls: Mutex<Vec<Call>>,
}

/// One call that ended.
#[derive(Debug)]
struct Call {
    key: String,
    /// What was known when it began.
    known: u64,
    began_unix_ms: u64,
    ended_unix_ms: u64,
    what: Done,
}

/// A value is the tags of the steps that made it.
#[derive(Debug)]
enum Done {
    /// Wrote this; where the call tells it, with the revision.
    Set {
        value: Vec<u64>,
        revision: Option<u64>,
        wanted: Option<u64>,
    },
    Created {
        value: Vec<u64>,
        revision: u64,
    },
    /// A change that must not be in the history.
    Refused {
        tag: u64,
    },
    Read {
        value: Vec<u64>,
        revision: u64,
    },
    Nothing,
    Deleted {
        wanted: Option<u64>,
    },
}

impl Clients {
    fn new(spaces: &[&Space]) -> Self {
        let env = Arc::clone(spaces[0].env());
        Self {
            globals: spaces.iter().map(|space| space.global()).collect(),
            env,
            known: Mutex::default(),
            calls: Mutex::default(),
        }
    }

    /// Makes one call, chosen at random.
    async fn step(&self, tag: u64, times: Times) {
        let (global, env) = (&self.globals[tag as usize % self.globals.len()], &self.env);
        let key = format!("key:{}", env.random_u64() % 3);
        let known = self.known.lock().unwrap().get(&key).copied().unwrap_or(0);
        let began_unix_ms = env.unix_ms();
        let expiring = times == Times::Expiring && env.random_u64() % 3 == 0;
        let timed = |setting: happen::global::Setting| {
            if expiring { setting.expires_in(millis(1 + env.random_u64() % 4)) } else { setting }
        };
        let value = vec![tag];
        let refused = |error: Error| {
            assert_eq!(error.code(), "conflict", "{error}");
            Done::Refused { tag }
        };
        let what = match env.random_u64() % 8 {
            0 => {
                let revision = timed(global.set(&key, &value)).await.unwrap();
                Done::Set { value, revision: Some(revision), wanted: None }
            }
            1 => match timed(global.create(&key, &value)).await {
                Ok(revision) => Done::Created { value, revision },
                Err(error) => refused(error),
            },
            2 => match timed(global.set_at(&key, known, &value)).await {
                Ok(revision) => Done::Set { value, revision: Some(revision), wanted: Some(known) },
                Err(error) => refused(error),
            },
            3 | 4 => {
                let add = |tags: Option<Vec<u64>>| {
                    let mut tags = tags.unwrap_or_default();
                    tags.push(tag);
                    tags
                };
                let value = global.update(&key, add).await.unwrap();
                Done::Set { value, revision: None, wanted: None }
            }
            5 => match global.delete(&key).await.unwrap() {
                true => Done::Deleted { wanted: None },
                false => Done::Nothing,
            },
            6 => match global.delete_at(&key, known).await {
                Ok(true) => Done::Deleted { wanted: Some(known) },
                Ok(false) => Done::Nothing,
                Err(error) => refused(error),
            },
            _ => match global.entry::<Vec<u64>>(&key).await.unwrap() {
                Some(entry) => Done::Read { value: entry.value, revision: entry.revision },
                None => Done::Nothing,
            },
        };
        let told = match &what {
            Done::Set { revision, .. } => *revision,
            Done::Created { revision, .. } | Done::Read { revision, .. } => Some(*revision),
            Done::Refused { .. } | Done::Nothing | Done::Deleted { .. } => None,
        };
        if let Some(told) = told {
            let mut all = self.known.lock().unwrap();
            let known = all.entry(key.clone()).or_default();
            *known = told.max(*known);
        }
        let ended_unix_ms = env.unix_ms();
        self.calls.lock().unwrap().push(Call { key, known, began_unix_ms, ended_unix_ms, what });
    }

    /// Compares what the calls were told with the history that a watch tells.
    async fn check(&self, mut watch: Watch) {
        self.globals[0].set("key:end", &Vec::<u64>::new()).await.unwrap();
        let mut histories: HashMap<String, Vec<Change>> = HashMap::new();
        loop {
            let change = next(&mut watch).await;
            if change.key() == "key:end" {
                break;
            }
            histories.entry(change.key().to_owned()).or_default().push(change);
        }
        for (key, history) in &histories {
            let revisions: Vec<u64> = history.iter().map(Change::revision).collect();
            assert_eq!(revisions, (1..=history.len() as u64).collect::<Vec<_>>(), "{key}");
        }
        let value = |key: &str, revision: u64| -> Option<Vec<u64>> {
            let change = histories[key].get((revision as usize).checked_sub(1)?)?;
            change.value().unwrap()
        };
        let calls = std::mem::take(&mut *self.calls.lock().unwrap());
        let mut accounted = 0;
        for call in &calls {
            let Call { key, known, began_unix_ms, ended_unix_ms, what } = call;
            let history: &[Change] = histories.get(key).map_or(&[], |history| history);
            let revision_of = |wanted: &Vec<u64>| -> u64 {
                let found = history.iter().filter(|change| change.value().unwrap().as_ref() == Some(wanted));
                let found: Vec<u64> = found.map(Change::revision).collect();
                assert_eq!(found.len(), 1, "{call:?}");
                found[0]
            };
            match what {
                Done::Set { value: wrote, revision, wanted } => {
                    let found = revision_of(wrote);
                    assert!(found > *known, "{call:?}");
                    assert_eq!(revision.unwrap_or(found), found, "{call:?}");
                    assert_eq!(wanted.unwrap_or(found - 1), found - 1, "{call:?}");
                    if revision.is_none() {
                        let before = value(key, found - 1).unwrap_or_default();
                        assert_eq!(wrote[..wrote.len() - 1], before, "{call:?}");
                    }
                    accounted += 1;
                }
                Done::Created { value: wrote, revision } => {
                    assert_eq!(revision_of(wrote), *revision);
                    assert!(revision > known, "{call:?}");
                    assert_eq!(value(key, revision - 1), None, "{call:?}");
                    accounted += 1;
                }
                Done::Refused { tag } => {
                    let there = |change: &Change| {
                        change.value::<Vec<u64>>().unwrap().is_some_and(|tags| tags.last() == Some(tag))
                    };
                    assert!(!history.iter().any(there), "{call:?}");
                }
                Done::Read { value: read, revision } => {
                    assert_eq!(value(key, *revision).as_ref(), Some(read), "{call:?}");
                    assert!(revision >= known, "{call:?}");
                    // Nobody is shown what has expired.
                    let until = history[*revision as usize - 1].expires_at_unix_ms();
                    assert!(until.is_none_or(|until| until > *began_unix_ms), "{call:?}");
                }
                Done::Nothing => {
                    let nothing_at = |revision: u64| {
                        value(key, revision).is_none()
                            || history[revision as usize - 1]
                                .expires_at_unix_ms()
                                .is_some_and(|until| until <= *ended_unix_ms)
                    };
                    assert!((*known..=history.len() as u64).any(nothing_at), "{call:?}");
                }
                Done::Deleted { wanted } => {
                    let is_there = |change: &&Change| {
                        change.kind() == ChangeKind::Deleted
                            && change.revision() > *known
                            && wanted.is_none_or(|wanted| change.revision() == wanted + 1)
                    };
                    assert!(history.iter().any(|change| is_there(&change)), "{call:?}");
                    accounted += 1;
                }
            }
        }
        let made = histories.values().flatten().filter(|change| change.kind() != ChangeKind::Expired).count();
        assert_eq!(made, accounted, "every change was made by one call");
        assert!(made > calls.len() / 4, "the calls do something");
    }
}

#[test]
fn a_log_with_global_state_is_verified() {
    on_each_store(async |space| {
        space.global().set("motd", "be kind").await.unwrap();
        space.global().set("motd", "be kind and brief").await.unwrap();
        let verified = space.journal().verify().await.unwrap();
        assert!(verified.is_whole(), "{verified:?}");
        assert_eq!((verified.records, verified.others), (2, 2));
        // Bytes that tell of no change are told, whoever wrote them.
        let rubbish = NewRecord { tags: vec![Tag::Type("$global".into())], bytes: (*b"rubbish").into() };
        let batch = Batch { records: vec![rubbish], ..Batch::default() };
        space.store().commit(vec![batch]).await.remove(0).unwrap();
        let verified = space.journal().verify().await.unwrap();
        assert_eq!((verified.misfits, verified.first.unwrap().position.number()), (1, 3));
    });
}
