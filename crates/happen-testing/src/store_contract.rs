//! What every store promises, as tests that any store can be put to. Owns the checks; knows a store by the seam alone.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a check fails by panicking")]

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};

use happen_core::limits::{DOCUMENT_BYTES_MAX, PAGE_BYTES_MAX, PAGE_RECORDS_MAX, RECORD_BYTES_MAX};
use happen_core::store::{
    Batch, Committed, Condition, Content, Document, History, List, NewRecord, Past, Position, Prune, Pruned,
    Read, Record, Select, Start, Store, Tag, Until, Write,
};
use happen_core::{EventId, Result};

/// How the contract comes by stores and runs their futures.
pub trait StoreBench: Sync {
    /// A new store with nothing in it.
    fn open(&self) -> Arc<dyn Store>;

    /// Runs a future to its end on the calling thread; from several threads at once.
    ///
    /// As given it needs no runtime. A store whose futures need one overrides it.
    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        let thread = Arc::new(Unpark { thread: thread::current(), woken: AtomicBool::new(false) });
        let waker = Waker::from(Arc::clone(&thread));
        let mut future = future;
        while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            while !thread.woken.swap(false, Ordering::SeqCst) {
                thread::park();
            }
        }
    }
}

impl<F: Fn() -> Arc<dyn Store> + Sync> StoreBench for F {
    fn open(&self) -> Arc<dyn Store> {
        self()
    }
}

struct Unpark {
    thread: Thread,
    woken: AtomicBool,
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// Makes one test of each promise of [`Store`](happen_core::store::Store), for the stores that this expression opens.
///
/// The expression is evaluated once per test and gives a [`StoreBench`](crate::store_contract::StoreBench): a closure
/// that returns an empty `Arc<dyn Store>` is one.
///
/// `crates/happen/tests/store.rs` puts the store in memory to it.
#[macro_export]
macro_rules! store_contract {
    ($bench:expr) => {
        $crate::store_contract! { @each $bench;
            a_batch_is_whole_or_not_there
            a_batch_builds_on_an_earlier_one_of_the_call
            revisions_count_on_through_deletion
            a_tag_condition_sees_what_came_after
            the_log_is_read_both_ways
            a_page_is_bounded
            the_log_is_read_from_a_time
            a_history_goes_back_from_anywhere
            documents_are_listed_by_prefix
            pruning_forgets_what_it_says_and_leaves_an_anchor
            what_no_store_may_take_is_refused
            a_watch_gives_each_record_once_beside_many_writers
            a_watch_catches_up_page_by_page
            a_watch_loses_nothing_when_its_future_is_dropped
            one_of_many_wins_under_contention
            documents_are_read_at_one_point
        }
    };
    (@each $bench:expr; $($check:ident)+) => {
        $(
            #[test]
            fn $check() {
                $crate::store_contract::$check(&$bench);
            }
        )+
    };
}

/// A batch is committed whole or not at all, and one that fails stops no other.
pub fn a_batch_is_whole_or_not_there(bench: &dyn StoreBench) {
    run(bench, async |store| {
        let never = Condition::Revision { key: "taken".into(), revision: 7 };
        let whole = Batch {
            records: vec![record("a", "1"), record("a", "2")],
            documents: vec![write("x", 1, "x1"), write("y", 1, "y1")],
            conditions: vec![Condition::Revision { key: "taken".into(), revision: 0 }],
        };
        let unmet = Batch { conditions: vec![never], documents: vec![write("z", 1, "z1")], ..whole.clone() };
        let late = Batch { documents: vec![write("z", 1, "z1"), write("x", 3, "x3")], ..whole.clone() };
        let after = Batch { records: vec![record("a", "3")], ..Batch::default() };
        let results = store.commit(vec![unmet, whole, late, after]).await;
        assert_eq!(codes(&results), ["conflict", "ok", "conflict", "ok"]);
        assert_eq!(texts(&all(&store, "a").await), ["1", "2", "3"]);
        assert_eq!(content(&store, "x").await.as_deref(), Some("x1"));
        assert_eq!(content(&store, "y").await.as_deref(), Some("y1"));
        assert_eq!(store.document("z").await.unwrap(), None);
        let [_, Ok(whole), _, Ok(after)] = &results[..] else { panic!("{results:?}") };
        assert_eq!(whole.records.len(), 2);
        assert!(Position::START < whole.records[0]);
        assert!(whole.records[0] < whole.records[1]);
        assert_eq!(whole.position, whole.records[1]);
        assert!(whole.position < after.position);
        let x = store.document("x").await.unwrap().unwrap();
        assert_eq!((x.revision, x.position), (1, whole.position));
    });
}

/// Batches of one call see what those before them wrote, and fail with those they build on.
pub fn a_batch_builds_on_an_earlier_one_of_the_call(bench: &dyn StoreBench) {
    run(bench, async |store| {
        let revisions = |from: u64, to: u64| (from..=to).map(|revision| one("x", revision)).collect();
        let results = store.commit(revisions(1, 5)).await;
        assert_eq!(codes(&results), ["ok"; 5]);
        assert!(results.windows(2).all(|pair| position(&pair[0]) < position(&pair[1])));
        let mut call: Vec<Batch> = revisions(6, 8);
        call[1].conditions.push(Condition::Revision { key: "y".into(), revision: 1 });
        assert_eq!(codes(&store.commit(call).await), ["ok", "conflict", "conflict"]);
        assert_eq!(store.document("x").await.unwrap().unwrap().revision, 6);
        let claim = |text: &str| Batch {
            records: vec![record("seat:1", text)],
            conditions: vec![Condition::NoneAfter { tag: "seat:1".into(), after: Position::START }],
            ..Batch::default()
        };
        let results = store.commit(vec![claim("ada"), claim("bob")]).await;
        assert_eq!(codes(&results), ["ok", "conflict"]);
    });
}

/// A document counts its revisions from 1, also through its deletion, and takes no other than the next.
pub fn revisions_count_on_through_deletion(bench: &dyn StoreBench) {
    run(bench, async |store| {
        assert_eq!(codes(&store.commit(vec![one("x", 2)]).await), ["conflict"]);
        let delete = Batch {
            documents: vec![Write { key: "x".into(), revision: 2, content: None, past: Past::Dropped }],
            ..Batch::default()
        };
        let results = store.commit(vec![one("x", 1), one("x", 1), delete, one("x", 1)]).await;
        assert_eq!(codes(&results), ["ok", "conflict", "ok", "conflict"]);
        let deleted = store.document("x").await.unwrap().unwrap();
        assert_eq!((deleted.revision, &deleted.content), (2, &None));
        let gone = |revision| Batch {
            conditions: vec![Condition::Revision { key: "x".into(), revision }],
            ..Batch::default()
        };
        let results = store.commit(vec![gone(0), gone(2), one("x", 3), gone(3)]).await;
        assert_eq!(codes(&results), ["conflict", "ok", "ok", "ok"]);
        assert_eq!(content(&store, "x").await.as_deref(), Some("3"));
    });
}

/// A condition on a tag fails when a record with the tag stands behind its position, and only then.
pub fn a_tag_condition_sees_what_came_after(bench: &dyn StoreBench) {
    run(bench, async |store| {
        let first = commit(&store, vec![record("a", "1")]).await;
        let other = commit(&store, vec![record("b", "2")]).await;
        let guarded = |tag: &str, after| Batch {
            records: vec![record("c", "3")],
            conditions: vec![Condition::NoneAfter { tag: tag.into(), after }],
            ..Batch::default()
        };
        let call = vec![
            guarded("a", Position::START),
            guarded("a", first.position),
            guarded("a", other.position),
            guarded("b", first.position),
            guarded("d", Position::START),
        ];
        let results = store.commit(call).await;
        assert_eq!(codes(&results), ["conflict", "ok", "ok", "conflict", "ok"]);
        // Other kinds of tags with the same text are other tags.
        let node = NewRecord { tags: vec![Tag::Node("e".into())], bytes: bytes("4") };
        commit(&store, vec![node]).await;
        assert_eq!(codes(&store.commit(vec![guarded("e", Position::START)]).await), ["ok"]);
        // What a reader knew of the log is a position that can be named, whatever it selected.
        let head = store.read(Read::forward(Select::All).at_most(0)).await.unwrap().head;
        assert_eq!(codes(&store.commit(vec![guarded("c", head)]).await), ["ok"]);
        assert_eq!(codes(&store.commit(vec![guarded("c", head)]).await), ["conflict"]);
    });
}

/// Records are found by any tag, each once, in pages of any size, from any place, in both directions.
pub fn the_log_is_read_both_ways(bench: &dyn StoreBench) {
    run(bench, async |store| {
        let cause = EventId::from_halves(7, 7).unwrap();
        for number in 0..30_u32 {
            let mut tags = vec![Tag::Declared(format!("mod3:{}", number % 3).into())];
            tags.push(Tag::Type(format!("type-{}", number % 2).into()));
            if number % 5 == 0 {
                tags.extend([Tag::Cause(cause), Tag::Cause(cause)]);
            }
            let new = NewRecord { tags, bytes: bytes(&number.to_string()) };
            commit(&store, vec![new]).await;
        }
        let declared = |text: &str| Tag::Declared(text.into());
        let selections: [(Select, Belongs); 6] = [
            (Select::All, |_| true),
            (Select::tag(declared("mod3:1")), |n| n % 3 == 1),
            (Select::tag(Tag::Cause(cause)), |n| n % 5 == 0),
            (Select::Tagged(vec![declared("mod3:0"), Tag::Type("type-1".into())]), |n| {
                n % 3 == 0 || n % 2 == 1
            }),
            (Select::tag(declared("type-1")), |_| false),
            (Select::Tagged(Vec::new()), |_| false),
        ];
        for (select, belongs) in selections {
            let expected: Vec<String> =
                (0..30).filter(|&number| belongs(number)).map(|number| number.to_string()).collect();
            let reversed: Vec<String> = expected.iter().rev().cloned().collect();
            for size in [1, 2, 7, 30, 1_000] {
                let forward = pages(&store, Read::forward(select.clone()).at_most(size)).await;
                assert_eq!(texts(&forward), expected, "{select:?} in pages of {size}");
                let backward = pages(&store, Read::backward(select.clone()).at_most(size)).await;
                assert_eq!(texts(&backward), reversed, "{select:?} backwards in pages of {size}");
            }
            let everything = pages(&store, Read::forward(Select::All)).await;
            let middle = Start::Position(everything[10].position);
            let after = pages(&store, Read::forward(select.clone()).start(middle).at_most(4)).await;
            let before = pages(&store, Read::backward(select.clone()).start(middle).at_most(4)).await;
            let part = |range: std::ops::Range<u32>| -> Vec<String> {
                range.filter(|&number| belongs(number)).map(|number| number.to_string()).collect()
            };
            assert_eq!(texts(&after), part(11..30));
            assert_eq!(texts(&before).into_iter().rev().collect::<Vec<_>>(), part(0..10));
        }
        let page = store.read(Read::forward(Select::All).at_most(30)).await.unwrap();
        assert_eq!(page.next, None);
        assert_eq!(page.head, page.records[29].position);
        let twice = &page.records[5];
        assert_eq!(twice.tags.len(), 4, "tags come back as they were written: {:?}", twice.tags);
    });
}

/// A page has no more records and bytes than its limits, and goes on where it ended.
pub fn a_page_is_bounded(bench: &dyn StoreBench) {
    run(bench, async |store| {
        for _ in 0..3 {
            let records = (0..400).map(|number| record("small", &number.to_string())).collect();
            commit(&store, records).await;
        }
        let page = store.read(Read::forward(Select::All).at_most(usize::MAX)).await.unwrap();
        assert_eq!(page.records.len(), PAGE_RECORDS_MAX);
        assert_eq!(page.next, page.records.last().map(|record| record.position));
        assert_eq!(pages(&store, Read::backward(Select::All).at_most(usize::MAX)).await.len(), 1_200);
        let tag = || Tag::Declared("large".into());
        let large = NewRecord { tags: vec![tag()], bytes: vec![7; RECORD_BYTES_MAX].into() };
        for _ in 0..3 {
            commit(&store, vec![large.clone()]).await;
        }
        let page = store.read(Read::forward(Select::tag(tag()))).await.unwrap();
        assert_eq!(page.records.len(), PAGE_BYTES_MAX / RECORD_BYTES_MAX);
        let read = pages(&store, Read::forward(Select::tag(tag()))).await;
        assert_eq!(read.len(), 3);
        assert!(read.iter().all(|record| *record.bytes == *large.bytes));
    });
}

/// Times do not fall along the log, and reading starts at one in both directions.
pub fn the_log_is_read_from_a_time(bench: &dyn StoreBench) {
    run(bench, async |store| {
        for number in 0..20 {
            commit(&store, vec![record("a", &number.to_string())]).await;
        }
        let records = all(&store, "a").await;
        assert!(records.iter().all(|record| record.at_unix_ms > 0));
        assert!(records.is_sorted_by_key(|record| record.at_unix_ms));
        for time in records.iter().map(|record| record.at_unix_ms) {
            for time in [time - 1, time, time + 1] {
                let start = Start::Time(time);
                let from = pages(&store, Read::forward(Select::All).start(start).at_most(3)).await;
                let expected: Vec<_> =
                    records.iter().filter(|record| record.at_unix_ms >= time).cloned().collect();
                assert_eq!(from, expected);
                let until = pages(&store, Read::backward(Select::All).start(start).at_most(3)).await;
                let older = records.iter().rev().filter(|record| record.at_unix_ms <= time);
                assert_eq!(until, older.cloned().collect::<Vec<_>>());
            }
        }
    });
}

/// Kept revisions are read back from now, from a position and from a revision; dropped ones are gone.
pub fn a_history_goes_back_from_anywhere(bench: &dyn StoreBench) {
    run(bench, async |store| {
        let mut positions = vec![Position::START];
        for revision in 1..=6 {
            let results = store.commit(vec![of(kept("x", revision)), one("y", revision)]).await;
            positions.push(position(&results[0]));
        }
        let history = async |key: &str, until, max| -> Vec<u64> {
            let history = History { key: key.into(), until, documents_max: max };
            let documents = store.history(history).await.unwrap();
            for document in &documents {
                let text = document.content.as_ref().map(|content| text(&content.bytes));
                assert_eq!(text, Some(document.revision.to_string()));
                assert_eq!(&*document.key, key);
            }
            documents.iter().map(|document| document.revision).collect()
        };
        assert_eq!(history("x", Until::Now, 100).await, [6, 5, 4, 3, 2, 1]);
        assert_eq!(history("x", Until::Now, 2).await, [6, 5]);
        assert_eq!(history("x", Until::Before(5), 2).await, [4, 3]);
        assert!(history("x", Until::Before(1), 2).await.is_empty());
        for (revision, &position) in (0..).zip(&positions).skip(1) {
            assert_eq!(history("x", Until::At(position), 1).await, [revision]);
        }
        assert!(history("x", Until::At(Position::START), 1).await.is_empty());
        assert_eq!(history("y", Until::Now, 100).await, [6]);
        assert!(history("nothing", Until::Now, 100).await.is_empty());
        // One write that keeps nothing lets go of all that was kept before.
        store.commit(vec![one("x", 7)]).await;
        assert_eq!(history("x", Until::Now, 100).await, [7]);
    });
}

/// Documents are listed by what their keys begin with, in order, in pages; deleted ones are left out.
pub fn documents_are_listed_by_prefix(bench: &dyn StoreBench) {
    run(bench, async |store| {
        let keys = ["a", "a/1", "a/2", "a/3", "a/\u{e4}", "a0", "b/1"];
        let written = keys.iter().map(|key| one(key, 1)).collect();
        assert_eq!(codes(&store.commit(written).await), ["ok"; 7]);
        let deleted = Write { key: "a/2".into(), revision: 2, content: None, past: Past::Dropped };
        store.commit(vec![Batch { documents: vec![deleted], ..Batch::default() }]).await;
        let list = async |prefix: &str, size| -> Vec<String> {
            let mut found: Vec<Document> = Vec::new();
            loop {
                let after = found.last().map(|last| Arc::clone(&last.key));
                let list = List { prefix: prefix.into(), after, documents_max: size };
                let page = store.list(list).await.unwrap();
                assert!(page.len() <= size);
                if page.is_empty() {
                    return found.iter().map(|document| document.key.to_string()).collect();
                }
                found.extend(page);
            }
        };
        for size in [1, 2, 100] {
            assert_eq!(list("a/", size).await, ["a/1", "a/3", "a/\u{e4}"]);
            assert_eq!(list("a", size).await, ["a", "a/1", "a/3", "a/\u{e4}", "a0"]);
            assert_eq!(list("", size).await, ["a", "a/1", "a/3", "a/\u{e4}", "a0", "b/1"]);
            assert!(list("c", size).await.is_empty());
        }
        let before = List { prefix: "b".into(), after: Some("a".into()), documents_max: 10 };
        assert_eq!(store.list(before).await.unwrap().len(), 1);
    });
}

/// Pruning forgets the selected records and past revisions before a position, keeps the rest, and writes its anchor
/// in the same step or does nothing.
pub fn pruning_forgets_what_it_says_and_leaves_an_anchor(bench: &dyn StoreBench) {
    run(bench, async |store| {
        for number in 0..10_u32 {
            let tags = [format!("mod2:{}", number % 2), format!("mod3:{}", number % 3)];
            let tags = tags.map(|tag| Tag::Declared(tag.into())).into();
            let records = vec![NewRecord { tags, bytes: bytes(&number.to_string()) }];
            let documents = vec![kept("doc/x", u64::from(number) + 1)];
            let results = store.commit(vec![Batch { records, documents, ..Batch::default() }]).await;
            assert_eq!(codes(&results), ["ok"]);
        }
        let deletion = |key: &str| Write { key: key.into(), revision: 2, content: None, past: Past::Kept };
        store.commit(vec![one("doc/gone", 1), one("other/gone", 1)]).await;
        let documents = vec![deletion("doc/gone"), deletion("other/gone")];
        store.commit(vec![Batch { documents, ..Batch::default() }]).await;
        let everything = pages(&store, Read::forward(Select::All)).await;
        let declared = |text: &str| Tag::Declared(text.into());
        let prune = Prune {
            before: everything[8].position,
            records: Select::tag(declared("mod2:0")),
            keep: vec![declared("mod3:0")],
            histories: Vec::new(),
            documents: vec![write("anchor", 2, "hash")],
        };
        let refused = store.prune(prune.clone()).await.unwrap_err();
        assert_eq!(refused.code(), "conflict");
        assert_eq!(pages(&store, Read::forward(Select::All)).await, everything);
        let prune = Prune { documents: vec![write("anchor", 1, "hash")], ..prune };
        let pruned = store.prune(prune).await.unwrap();
        // Of 0, 2, 4 and 6, those which three divides stay.
        assert_eq!(pruned, Pruned { records: 2, revisions: 0 });
        let left = pages(&store, Read::forward(Select::All)).await;
        assert_eq!(texts(&left), ["0", "1", "3", "5", "6", "7", "8", "9"]);
        assert_eq!(left[0], everything[0], "records stay where they are");
        assert_eq!(texts(&all(&store, "mod2:0").await), ["0", "6", "8"]);
        assert_eq!(texts(&all(&store, "mod3:2").await), ["5", "8"]);
        assert_eq!(content(&store, "anchor").await.as_deref(), Some("hash"));
        let head = store.read(Read::forward(Select::All).at_most(0)).await.unwrap().head;
        let prune = |before| Prune {
            before,
            records: Select::Tagged(Vec::new()),
            keep: Vec::new(),
            histories: vec!["doc/".into()],
            documents: Vec::new(),
        };
        // Revision 5 replaced 4 at the fifth record, so before the sixth one 1 to 4 are past.
        let pruned = store.prune(prune(everything[5].position)).await.unwrap();
        assert_eq!(pruned, Pruned { records: 0, revisions: 4 });
        let after = commit(&store, vec![record("end", "end")]).await;
        assert!(after.position > head);
        // The rest of the past, and the deleted document with its last word.
        let pruned = store.prune(prune(after.position)).await.unwrap();
        assert_eq!(pruned.records, 0);
        let history = History { key: "doc/x".into(), until: Until::Now, documents_max: 100 };
        assert_eq!(store.history(history).await.unwrap().len(), 1);
        assert_eq!(store.document("doc/gone").await.unwrap(), None);
        assert!(store.document("other/gone").await.unwrap().is_some());
        assert_eq!(codes(&store.commit(vec![one("doc/gone", 1)]).await), ["ok"]);
        let prune = Prune { records: Select::All, histories: Vec::new(), ..prune(after.position) };
        assert_eq!(store.prune(prune).await.unwrap(), Pruned { records: 8, revisions: 0 });
        assert_eq!(texts(&pages(&store, Read::backward(Select::All)).await), ["end"]);
    });
}

/// What [`Batch::check`] refuses no store takes, and what it allows every store does.
pub fn what_no_store_may_take_is_refused(bench: &dyn StoreBench) {
    run(bench, async |store| {
        let sized = |len: usize| {
            let content = Content { name: "x".into(), version: 1, bytes: vec![7; len].into() };
            let write = Write { key: "x".into(), revision: 1, content: Some(content), past: Past::Dropped };
            Batch { documents: vec![write], ..Batch::default() }
        };
        let twice = Batch { documents: vec![write("x", 1, "1"), write("x", 2, "2")], ..Batch::default() };
        let call = vec![Batch::default(), twice, sized(DOCUMENT_BYTES_MAX + 1), sized(DOCUMENT_BYTES_MAX)];
        assert_eq!(codes(&store.commit(call).await), ["misuse", "misuse", "oversized", "ok"]);
        let kept = store.document("x").await.unwrap().and_then(|document| document.content).unwrap();
        assert_eq!((kept.bytes.len(), &*kept.name, kept.version), (DOCUMENT_BYTES_MAX, "x", 1));
        assert!(store.commit(Vec::new()).await.is_empty());
    });
}

/// However many write, a reader that follows gets each selected record once, in order.
pub fn a_watch_gives_each_record_once_beside_many_writers(bench: &dyn StoreBench) {
    let store = bench.open();
    thread::scope(|threads| {
        let reader = |tag: Option<&str>| {
            let select = tag.map_or(Select::All, |tag| {
                Select::Tagged(vec![Tag::Declared(tag.into()), Tag::Declared("end".into())])
            });
            let store = &store;
            threads.spawn(move || {
                let mut seen: Vec<Record> = Vec::new();
                bench.block_on(Box::pin(async {
                    let mut watch = store.watch(select.clone(), Position::START).await.unwrap();
                    while seen.last().is_none_or(|record| text(&record.bytes) != "end") {
                        let records = watch.next().await.unwrap();
                        assert!(!records.is_empty());
                        seen.extend(records);
                        // Now and then a new watch goes on where the old one stood.
                        if seen.len().is_multiple_of(7) {
                            watch = store.watch(select.clone(), watch.position()).await.unwrap();
                        }
                    }
                }));
                seen
            })
        };
        let (all, some) = (reader(None), reader(Some("writer:3")));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let store = &store;
                threads.spawn(move || {
                    bench.block_on(Box::pin(async {
                        for number in 0..WRITES {
                            let text = format!("{writer}/{number}");
                            commit(store, vec![record(&format!("writer:{writer}"), &text)]).await;
                        }
                    }));
                })
            })
            .collect();
        let failed = writers.into_iter().map(thread::ScopedJoinHandle::join).filter(Result::is_err).count();
        // The readers end whatever became of the writers.
        bench.block_on(Box::pin(async {
            commit(&store, vec![record("end", "end")]).await;
        }));
        assert_eq!(failed, 0, "writers failed");
        let (all, some) = (all.join().unwrap(), some.join().unwrap());
        assert_eq!(all.len(), WRITERS * WRITES + 1);
        assert!(all.is_sorted_by(|a, b| a.position < b.position));
        let mut next: BTreeMap<String, usize> = BTreeMap::new();
        for record in &all[..all.len() - 1] {
            let text = text(&record.bytes);
            let (writer, number) = text.split_once('/').unwrap();
            let expected = next.entry(writer.to_owned()).or_default();
            assert_eq!(number, expected.to_string(), "the writes of one writer keep their order");
            *expected += 1;
        }
        assert_eq!(next.len(), WRITERS);
        assert!(next.values().all(|&count| count == WRITES));
        let expected = all.iter().filter(|record| {
            let text = text(&record.bytes);
            text.starts_with("3/") || text == "end"
        });
        assert_eq!(some, expected.cloned().collect::<Vec<_>>());
    });
}

/// A watch that begins far behind gives everything, in pages of their limit.
pub fn a_watch_catches_up_page_by_page(bench: &dyn StoreBench) {
    run(bench, async |store| {
        for batch in 0..5 {
            let numbers = batch * 500..(batch + 1) * 500;
            commit(&store, numbers.map(|number| record("a", &number.to_string())).collect()).await;
        }
        let mut watch = store.watch(Select::tag(Tag::Declared("a".into())), Position::START).await.unwrap();
        let mut seen = 0;
        while seen < 2_501 {
            let records = watch.next().await.unwrap();
            assert!(!records.is_empty());
            assert!(records.len() <= PAGE_RECORDS_MAX);
            if seen == 0 {
                // Something is left to be given, so a watch that skips the rest does not wait for ever.
                commit(&store, vec![record("a", "2500")]).await;
            }
            for record in &records {
                assert_eq!(text(&record.bytes), seen.to_string());
                assert!(watch.position() >= record.position);
                seen += 1;
            }
        }
    });
}

/// A watch whose future is dropped while it waits gives the next record to the next one.
pub fn a_watch_loses_nothing_when_its_future_is_dropped(bench: &dyn StoreBench) {
    run(bench, async |store| {
        let first = commit(&store, vec![record("a", "1"), record("b", "2")]).await;
        let select = Select::tag(Tag::Declared("a".into()));
        let mut watch = store.watch(select, Position::START).await.unwrap();
        assert_eq!(texts(&watch.next().await.unwrap()), ["1"]);
        assert!(watch.position() >= first.records[0]);
        for number in 3..20 {
            {
                let mut next = watch.next();
                let polled = std::future::poll_fn(|task| std::task::Poll::Ready(next.as_mut().poll(task)));
                assert!(polled.await.is_pending());
            }
            commit(&store, vec![record("b", "no"), record("a", &number.to_string())]).await;
            assert_eq!(texts(&watch.next().await.unwrap()), [number.to_string()]);
        }
    });
}

/// Of those who write on the same condition at once one wins, whether it is about a document or a tag.
pub fn one_of_many_wins_under_contention(bench: &dyn StoreBench) {
    let store = bench.open();
    let wins: Vec<usize> = thread::scope(|threads| {
        let contenders: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let store = &store;
                threads.spawn(move || {
                    let mut wins = 0;
                    bench.block_on(Box::pin(async { wins = contend(store, writer).await }));
                    wins
                })
            })
            .collect();
        contenders.into_iter().map(|contender| contender.join().unwrap()).collect()
    });
    bench.block_on(Box::pin(async {
        assert_eq!(wins, [CONTESTED; WRITERS]);
        let counted = store.document("count").await.unwrap().unwrap();
        let total = (CONTESTED * WRITERS) as u64;
        assert_eq!(counted.revision, total);
        assert_eq!(text(&counted.content.unwrap().bytes), total.to_string());
        let history = History { key: "count".into(), until: Until::Now, documents_max: PAGE_RECORDS_MAX };
        let history = store.history(history).await.unwrap();
        assert!(history.iter().map(|document| document.revision).eq((1..=total).rev()));
        assert!(history.is_sorted_by(|newer, older| newer.position > older.position));
        // Each claim of a seat went to one, and every loser found another one.
        let seats = all(&store, "seat").await;
        let taken: HashSet<String> = seats.iter().map(|record| text(&record.bytes)).collect();
        assert_eq!((seats.len(), taken.len()), (CONTESTED * WRITERS, CONTESTED * WRITERS));
    }));
}

/// Counts up a document and claims a numbered seat under a tag, until both succeeded so often.
async fn contend(store: &Arc<dyn Store>, writer: usize) -> usize {
    let mut tries = 0..TRIES_MAX;
    let mut counted = 0;
    while counted < CONTESTED {
        tries.next().expect("somebody wins each time");
        let before = store.document("count").await.unwrap().map_or(0, |document| document.revision);
        let results = store.commit(vec![of(kept("count", before + 1))]).await;
        match &results[0] {
            Ok(_) => counted += 1,
            Err(error) => assert_eq!(error.code(), "conflict", "{error:?}"),
        }
    }
    let mut seated = 0;
    let seat = || Tag::Declared("seat".into());
    while seated < CONTESTED {
        tries.next().expect("somebody wins each time");
        let page = store.read(Read::backward(Select::tag(seat())).at_most(1)).await.unwrap();
        let next = page.records.first().map_or(0, |last| text(&last.bytes).parse::<usize>().unwrap() + 1);
        let claim = Batch {
            records: vec![NewRecord { tags: vec![seat()], bytes: bytes(&next.to_string()) }],
            conditions: vec![Condition::NoneAfter { tag: "seat".into(), after: page.head }],
            ..Batch::default()
        };
        match &store.commit(vec![claim]).await[0] {
            Ok(_) => seated += 1,
            Err(error) => assert_eq!(error.code(), "conflict", "writer {writer}: {error:?}"),
        }
    }
    counted.min(seated)
}

/// Documents that are always written together are never read one without the other.
pub fn documents_are_read_at_one_point(bench: &dyn StoreBench) {
    let store = bench.open();
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        let (store, done) = (&store, &done);
        let reader = threads.spawn(move || {
            bench.block_on(Box::pin(async {
                let mut last = 0;
                loop {
                    let ending = done.load(Ordering::SeqCst);
                    let read = store.documents(vec!["y".into(), "none".into(), "x".into()]).await.unwrap();
                    let [y, None, x] = &read[..] else { panic!("{read:?}") };
                    let revision = x.as_ref().map_or(0, |document| document.revision);
                    assert_eq!(y.as_ref().map_or(0, |document| document.revision), revision);
                    assert!(revision >= last, "a later read sees no earlier state");
                    last = revision;
                    if ending {
                        assert_eq!(last, WRITES as u64);
                        return;
                    }
                }
            }));
        });
        bench.block_on(Box::pin(async {
            for revision in 1..=WRITES as u64 {
                let documents = vec![write("x", revision, "x"), write("y", revision, "y")];
                let results = store.commit(vec![Batch { documents, ..Batch::default() }]).await;
                assert_eq!(codes(&results), ["ok"]);
            }
        }));
        done.store(true, Ordering::SeqCst);
        reader.join().unwrap();
    });
}

fn run(bench: &dyn StoreBench, check: impl AsyncFnOnce(Arc<dyn Store>)) {
    bench.block_on(Box::pin(check(bench.open())));
}

async fn commit(store: &Arc<dyn Store>, records: Vec<NewRecord>) -> Committed {
    let mut results = store.commit(vec![Batch { records, ..Batch::default() }]).await;
    results.pop().unwrap().unwrap()
}

async fn pages(store: &Arc<dyn Store>, read: Read) -> Vec<Record> {
    let mut records = Vec::new();
    let mut read = read;
    loop {
        let page = store.read(read.clone()).await.unwrap();
        assert!(page.records.len() <= read.records_max);
        records.extend(page.records);
        match page.next {
            Some(next) => read = read.start(Start::Position(next)),
            None => return records,
        }
    }
}

async fn all(store: &Arc<dyn Store>, tag: &str) -> Vec<Record> {
    pages(store, Read::forward(Select::tag(Tag::Declared(tag.into())))).await
}

async fn content(store: &Arc<dyn Store>, key: &str) -> Option<String> {
    let document = store.document(key).await.unwrap()?;
    Some(text(&document.content?.bytes))
}

fn record(tag: &str, text: &str) -> NewRecord {
    NewRecord { tags: vec![Tag::Declared(tag.into())], bytes: bytes(text) }
}

fn write(key: &str, revision: u64, text: &str) -> Write {
    let content = Content { name: "text".into(), version: 1, bytes: bytes(text) };
    Write { key: key.into(), revision, content: Some(content), past: Past::Dropped }
}

fn kept(key: &str, revision: u64) -> Write {
    Write { past: Past::Kept, ..write(key, revision, &revision.to_string()) }
}

fn of(write: Write) -> Batch {
    Batch { documents: vec![write], ..Batch::default() }
}

/// A batch that writes one document with the number of its revision.
fn one(key: &str, revision: u64) -> Batch {
    of(write(key, revision, &revision.to_string()))
}

fn bytes(text: &str) -> Arc<[u8]> {
    text.as_bytes().into()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| text(&record.bytes)).collect()
}

fn codes(results: &[Result<Committed>]) -> Vec<&'static str> {
    results.iter().map(|result| result.as_ref().map_or_else(|error| error.code(), |_| "ok")).collect()
}

fn position(result: &Result<Committed>) -> Position {
    result.as_ref().map(|committed| committed.position).unwrap()
}

/// Whether a record with this number is selected.
type Belongs = fn(u32) -> bool;

const WRITERS: usize = 6;
const WRITES: usize = 100;
const CONTESTED: usize = 20;
/// Each try fails because another writer won, and the others win 200 times: far more means that nobody does.
const TRIES_MAX: usize = 10_000;
