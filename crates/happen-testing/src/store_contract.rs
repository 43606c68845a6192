//! What every store promises, as tests that any store can be put to. Owns the checks; knows a store by the seam alone.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a check fails by panicking")]

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use happen_core::limits::{DOCUMENT_BYTES_MAX, PAGE_BYTES_MAX, PAGE_RECORDS_MAX, RECORD_BYTES_MAX};
use happen_core::store::{
    Batch, Committed, Condition, Content, Document, History, List, NewRecord, Past, Position, Prune, Pruned,
    Read, Record, Replaced, Select, Start, Store, Tag, Until, Write,
};
use happen_core::{EventId, Result};

/// How the contract comes by stores and runs their futures.
pub trait StoreBench: Sync {
    /// A new store with nothing in it.
    fn open(&self) -> Arc<dyn Store>;

    /// The same store after everybody let go of it, as a process finds it that is started again. Nobody else has it.
    ///
    /// As given it is the store itself, which is all that one in memory can do. A store that outlives its process
    /// overrides it: it closes this one and opens what is left.
    fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        store
    }

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
            of_a_past_the_last_revisions_stay
            a_revision_may_be_forgotten_when_it_is_replaced
            a_pruning_takes_what_only_a_forgotten_revision_hid
            documents_are_listed_by_prefix
            pruning_forgets_what_it_says_and_leaves_an_anchor
            what_no_store_may_take_is_refused
            a_watch_gives_each_record_once_beside_many_writers
            a_watch_catches_up_page_by_page
            a_watch_loses_nothing_when_its_future_is_dropped
            one_of_many_wins_under_contention
            documents_are_read_at_one_point
            a_batch_is_never_seen_in_part
            a_reader_misses_nothing_beside_many_writers
            a_sum_over_documents_stays_under_contention
            nobody_sees_half_of_a_pruning
            what_was_committed_outlives_a_restart
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
            documents: vec![Write {
                key: "x".into(),
                revision: 2,
                content: None,
                past: Past::Dropped,
                replaced: Replaced::Kept,
            }],
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

/// Of a document whose past has a bound so many revisions before the current one stay, and no more.
pub fn of_a_past_the_last_revisions_stay(bench: &dyn StoreBench) {
    run(bench, async |store| {
        let revisions = async || revisions(&store, "x").await;
        let bounded = |revision, past| of(Write { past, ..kept("x", revision) });
        for revision in 1..=6 {
            write_one(&store, bounded(revision, Past::Kept)).await;
        }
        assert_eq!(revisions().await, [6, 5, 4, 3, 2, 1]);
        write_one(&store, bounded(7, Past::Last(3))).await;
        assert_eq!(revisions().await, [7, 6, 5, 4]);
        // A wider bound brings nothing back.
        write_one(&store, bounded(8, Past::Last(100))).await;
        assert_eq!(revisions().await, [8, 7, 6, 5, 4]);
        for revision in 9..=20 {
            write_one(&store, bounded(revision, Past::Last(1))).await;
        }
        assert_eq!(revisions().await, [20, 19]);
        write_one(&store, bounded(21, Past::Last(0))).await;
        assert_eq!(revisions().await, [21]);
        write_one(&store, bounded(22, Past::Last(2))).await;
        assert_eq!(revisions().await, [22, 21]);
    });
}

/// A revision whose writer keeps it for no longer is there until it is replaced; those before it stay, and a bound
/// counts those that are kept.
pub fn a_revision_may_be_forgotten_when_it_is_replaced(bench: &dyn StoreBench) {
    let passing = |revision, past| of(Write { past, replaced: Replaced::Forgotten, ..kept("x", revision) });
    let staying = |revision, past| of(Write { past, ..kept("x", revision) });
    let store = bench.open();
    bench.block_on(Box::pin(async {
        write_one(&store, passing(1, Past::Kept)).await;
        assert_eq!(revisions(&store, "x").await, [1]);
        // What comes in one call is replaced as anything else is.
        let results = store.commit(vec![staying(2, Past::Kept), passing(3, Past::Kept)]).await;
        let at = [position(&results[0]), position(&results[1])];
        assert_eq!(revisions(&store, "x").await, [3, 2]);
        write_one(&store, passing(4, Past::Kept)).await;
        write_one(&store, staying(5, Past::Kept)).await;
        assert_eq!(revisions(&store, "x").await, [5, 2]);
        // What was in force then is gone, and the store gives what it has from before.
        for at in at {
            let history = History { key: "x".into(), until: Until::At(at), documents_max: 9 };
            let found = store.history(history).await.unwrap();
            assert_eq!(found.iter().map(|document| document.revision).collect::<Vec<_>>(), [2]);
        }
        // It outlives the process that what is current now is not to be kept.
        write_one(&store, passing(6, Past::Kept)).await;
    }));
    let store = bench.reopen(store);
    bench.block_on(Box::pin(async {
        write_one(&store, staying(7, Past::Kept)).await;
        write_one(&store, staying(8, Past::Kept)).await;
        assert_eq!(revisions(&store, "x").await, [8, 7, 5, 2]);
        write_one(&store, staying(9, Past::Last(4))).await;
        assert_eq!(revisions(&store, "x").await, [9, 8, 7, 5, 2]);
        write_one(&store, staying(10, Past::Last(4))).await;
        assert_eq!(revisions(&store, "x").await, [10, 9, 8, 7, 5]);
        // One that goes takes the place of none that stays.
        write_one(&store, passing(11, Past::Last(4))).await;
        assert_eq!(revisions(&store, "x").await, [11, 10, 9, 8, 7]);
        for revision in 12..=40 {
            write_one(&store, passing(revision, Past::Last(4))).await;
        }
        assert_eq!(revisions(&store, "x").await, [40, 10, 9, 8, 7]);
        write_one(&store, passing(41, Past::Last(2))).await;
        assert_eq!(revisions(&store, "x").await, [41, 10, 9]);
        let deletion = Write { content: None, ..kept("x", 42) };
        write_one(&store, of(Write { replaced: Replaced::Forgotten, ..deletion })).await;
        assert_eq!(revisions(&store, "x").await, [42, 10, 9]);
        write_one(&store, staying(43, Past::Kept)).await;
        assert_eq!(revisions(&store, "x").await, [43, 10, 9]);
        write_one(&store, passing(44, Past::Dropped)).await;
        assert_eq!(revisions(&store, "x").await, [44]);
        for revision in 45..=60 {
            write_one(&store, staying(revision, Past::Last(3))).await;
        }
        assert_eq!(revisions(&store, "x").await, [60, 59, 58, 57]);
        write_one(&store, staying(61, Past::Last(0))).await;
        assert_eq!(revisions(&store, "x").await, [61]);
    }));
}

/// A revision is pruned with the kept one that follows it; and what is pruned does not come back because that one goes
/// when it is replaced, however soon that is.
pub fn a_pruning_takes_what_only_a_forgotten_revision_hid(bench: &dyn StoreBench) {
    run(bench, async |store| {
        let passing =
            |key: &str, revision| of(Write { replaced: Replaced::Forgotten, ..kept(key, revision) });
        for revision in 1..=4 {
            write_one(&store, of(kept("doc/x", revision))).await;
            write_one(&store, of(kept("doc/y", revision))).await;
        }
        write_one(&store, passing("doc/x", 5)).await;
        write_one(&store, passing("doc/y", 5)).await;
        let before = commit(&store, vec![record("end", "end")]).await.position;
        write_one(&store, of(kept("doc/y", 6))).await;
        let prune = Prune {
            before,
            records: Select::Tagged(Vec::new()),
            keep: Vec::new(),
            histories: vec!["doc/".into()],
            documents: Vec::new(),
        };
        // Handed over at once, so that a store which deletes in the background has not done it when the write comes.
        let mut prune = store.prune(prune);
        let mut write = store.commit(vec![of(kept("doc/x", 6)), of(kept("doc/x", 7))]);
        let (mut pruned, mut written) = (None, None);
        std::future::poll_fn(|task| {
            if pruned.is_none()
                && let Poll::Ready(done) = prune.as_mut().poll(task)
            {
                pruned = Some(done);
            }
            if written.is_none()
                && let Poll::Ready(done) = write.as_mut().poll(task)
            {
                written = Some(done);
            }
            if pruned.is_some() && written.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert_eq!(codes(&written.unwrap()), ["ok", "ok"]);
        pruned.unwrap().unwrap();
        assert_eq!(revisions(&store, "doc/x").await, [7, 6]);
        // The kept one after 4 is 6, which came later.
        assert_eq!(revisions(&store, "doc/y").await, [6, 4]);
    });
}

/// Documents are listed by what their keys begin with, in order, in pages; deleted ones are left out.
pub fn documents_are_listed_by_prefix(bench: &dyn StoreBench) {
    run(bench, async |store| {
        let keys = ["a", "a/1", "a/2", "a/3", "a/\u{e4}", "a0", "b/1"];
        let written = keys.iter().map(|key| one(key, 1)).collect();
        assert_eq!(codes(&store.commit(written).await), ["ok"; 7]);
        let deleted = Write {
            key: "a/2".into(),
            revision: 2,
            content: None,
            past: Past::Dropped,
            replaced: Replaced::Kept,
        };
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
        let deletion = |key: &str| Write {
            key: key.into(),
            revision: 2,
            content: None,
            past: Past::Kept,
            replaced: Replaced::Kept,
        };
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
            let write = Write {
                key: "x".into(),
                revision: 1,
                content: Some(content),
                past: Past::Dropped,
                replaced: Replaced::Kept,
            };
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
                let polled = std::future::poll_fn(|task| Poll::Ready(next.as_mut().poll(task)));
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

/// Whoever reads beside a writer sees all records of a batch or none, and with them its documents.
pub fn a_batch_is_never_seen_in_part(bench: &dyn StoreBench) {
    let store = bench.open();
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        let (store, done) = (&store, &done);
        let reader = threads.spawn(move || {
            bench.block_on(Box::pin(async {
                loop {
                    let ending = done.load(Ordering::SeqCst);
                    let page = store.read(Read::backward(Select::All).at_most(PARTS * 2)).await.unwrap();
                    assert_eq!(page.records.len() % PARTS, 0, "{:?}", texts(&page.records));
                    for batch in page.records.chunks(PARTS) {
                        let number = text(&batch[0].bytes);
                        assert!(batch.iter().all(|record| text(&record.bytes) == number));
                        assert!(batch.iter().all(|record| record.at_unix_ms == batch[0].at_unix_ms));
                    }
                    let seen = page.records.first().map(|record| text(&record.bytes));
                    let seen: u64 = seen.map_or(0, |number| number.parse().unwrap());
                    let revision = store.document("count").await.unwrap().map_or(0, |count| count.revision);
                    assert!(revision >= seen, "batch {seen} was read and its document was not there");
                    if ending {
                        assert_eq!((seen, revision), (WRITES as u64, WRITES as u64));
                        return;
                    }
                }
            }));
        });
        bench.block_on(Box::pin(async {
            for revision in 1..=WRITES as u64 {
                let records = vec![record("part", &revision.to_string()); PARTS];
                let batch =
                    Batch { records, documents: vec![write("count", revision, "")], ..Batch::default() };
                let results = store.commit(vec![batch]).await;
                assert_eq!(codes(&results), ["ok"]);
            }
        }));
        done.store(true, Ordering::SeqCst);
        reader.join().unwrap();
    });
}

/// However many write, a reader that goes on from the head of its last page gets each record once.
pub fn a_reader_misses_nothing_beside_many_writers(bench: &dyn StoreBench) {
    let store = bench.open();
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        let (store, done) = (&store, &done);
        let reader = threads.spawn(move || {
            let mut seen: Vec<String> = Vec::new();
            bench.block_on(Box::pin(async {
                let mut after = Position::START;
                loop {
                    let ending = done.load(Ordering::SeqCst);
                    let read = Read::forward(Select::All).start(Start::Position(after)).at_most(50);
                    let page = store.read(read).await.unwrap();
                    assert!(page.records.iter().all(|record| record.position > after));
                    assert!(page.records.last().is_none_or(|last| last.position <= page.head));
                    seen.extend(texts(&page.records));
                    // At the end of what there is, the head stands for all that was not selected too.
                    after = page.next.unwrap_or(page.head);
                    if ending && page.next.is_none() {
                        return;
                    }
                }
            }));
            seen
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                threads.spawn(move || {
                    bench.block_on(Box::pin(async {
                        for number in 0..WRITES {
                            // Positions without a record between those with one.
                            let key = format!("beside/{writer}");
                            let call = vec![
                                of(write(&key, number as u64 + 1, "")),
                                Batch {
                                    records: vec![record("a", &format!("{writer}/{number}"))],
                                    ..Batch::default()
                                },
                            ];
                            assert_eq!(codes(&store.commit(call).await), ["ok", "ok"]);
                        }
                    }));
                })
            })
            .collect();
        let failed = writers.into_iter().map(thread::ScopedJoinHandle::join).filter(Result::is_err).count();
        done.store(true, Ordering::SeqCst);
        assert_eq!(failed, 0, "writers failed");
        let seen = reader.join().unwrap();
        let different: HashSet<&String> = seen.iter().collect();
        assert_eq!((seen.len(), different.len()), (WRITERS * WRITES, WRITERS * WRITES));
    });
}

/// Many move amounts between the same few documents, and no amount is made or lost at any moment.
pub fn a_sum_over_documents_stays_under_contention(bench: &dyn StoreBench) {
    let store = bench.open();
    let accounts: Vec<Arc<str>> = (0..ACCOUNTS).map(|number| format!("account/{number}").into()).collect();
    bench.block_on(Box::pin(async {
        let opened = accounts.iter().map(|key| of(write(key, 1, "100"))).collect();
        assert_eq!(codes(&store.commit(opened).await), ["ok"; ACCOUNTS]);
    }));
    let balances = async |store: &Arc<dyn Store>| -> Vec<(u64, i64)> {
        let documents = store.documents(accounts.clone()).await.unwrap();
        let balance = |document: Option<Document>| {
            let document = document.unwrap();
            (document.revision, text(&document.content.unwrap().bytes).parse().unwrap())
        };
        documents.into_iter().map(balance).collect()
    };
    let moved: usize = thread::scope(|threads| {
        let (store, accounts, balances) = (&store, &accounts, &balances);
        let contenders: Vec<_> = (0..WRITERS)
            .map(|writer| {
                threads.spawn(move || {
                    let mut moved = 0;
                    bench.block_on(Box::pin(async {
                        for number in 0..TRANSFERS {
                            let from = (writer + number) % ACCOUNTS;
                            let to = (from + 1 + writer % (ACCOUNTS - 1)) % ACCOUNTS;
                            let found = balances(store).await;
                            let sum: i64 = found.iter().map(|(_, balance)| balance).sum();
                            assert_eq!(sum, 100 * ACCOUNTS as i64, "one point of the log: {found:?}");
                            let change = |account: usize, by: i64| {
                                let (revision, balance) = found[account];
                                write(&accounts[account], revision + 1, &(balance + by).to_string())
                            };
                            let documents = vec![change(from, -7), change(to, 7)];
                            let records = vec![record("moved", &format!("{from} to {to}"))];
                            let batch = Batch { records, documents, ..Batch::default() };
                            match codes(&store.commit(vec![batch]).await)[..] {
                                ["ok"] => moved += 1,
                                ["conflict"] => {}
                                ref other => panic!("{other:?}"),
                            }
                        }
                    }));
                    moved
                })
            })
            .collect();
        contenders.into_iter().map(|contender| contender.join().unwrap()).sum()
    });
    bench.block_on(Box::pin(async {
        let found = balances(&store).await;
        assert_eq!(found.iter().map(|(_, balance)| balance).sum::<i64>(), 100 * ACCOUNTS as i64);
        // Each that succeeded counts two revisions and one record, and each that did not leaves nothing.
        let revisions: u64 = found.iter().map(|(revision, _)| revision - 1).sum();
        assert_eq!(revisions, 2 * moved as u64);
        assert_eq!(all(&store, "moved").await.len(), moved);
        assert!(moved >= TRANSFERS, "somebody wins each time: {moved}");
    }));
}

/// Whoever reads and writes beside a pruning sees all of what is forgotten or nothing of it.
pub fn nobody_sees_half_of_a_pruning(bench: &dyn StoreBench) {
    let store = bench.open();
    let mut before = Position::START;
    bench.block_on(Box::pin(async {
        for _ in 0..PRUNED / 250 {
            before = commit(&store, vec![record("old", "old"); 250]).await.position;
        }
        for revision in 1..=PRUNED as u64 / 10 {
            before = position(&store.commit(vec![of(kept("past", revision))]).await[0]);
        }
        commit(&store, vec![record("new", "new")]).await;
    }));
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        let (store, done) = (&store, &done);
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                threads.spawn(move || {
                    bench.block_on(Box::pin(async {
                        let mut last = usize::MAX;
                        loop {
                            let ending = done.load(Ordering::SeqCst);
                            let anchored = store.document("anchor").await.unwrap().is_some();
                            let select = if reader == 0 {
                                Select::All
                            } else {
                                Select::Tagged(vec![Tag::Declared("old".into()), Tag::Declared("new".into())])
                            };
                            let page = store.read(Read::forward(select)).await.unwrap();
                            let old = page.records.iter().filter(|record| text(&record.bytes) == "old");
                            let old = old.count();
                            assert!(old == 0 || old == PRUNED, "{old} of {PRUNED} are seen");
                            assert!(old == 0 || !anchored, "the anchor was there before");
                            assert!(old <= last, "what was forgotten came back");
                            last = old;
                            let until = Until::Now;
                            let history = History { key: "past".into(), until, documents_max: 1_000 };
                            let past = store.history(history).await.unwrap().len();
                            // Two after the first pruning, one after the second.
                            assert!([PRUNED / 10, 2, 1].contains(&past), "{past} revisions are seen");
                            if ending {
                                assert_eq!((old, past), (0, 1));
                                return;
                            }
                        }
                    }));
                })
            })
            .collect();
        let writer = threads.spawn(move || {
            bench.block_on(Box::pin(async {
                let mut number = 0;
                while !done.load(Ordering::SeqCst) {
                    let claim = Batch {
                        records: vec![record("claim", &number.to_string())],
                        conditions: vec![Condition::NoneAfter {
                            tag: format!("never:{number}").into(),
                            after: Position::START,
                        }],
                        ..Batch::default()
                    };
                    assert_eq!(codes(&store.commit(vec![claim]).await), ["ok"]);
                    number += 1;
                }
            }));
        });
        bench.block_on(Box::pin(async {
            let prune = Prune {
                before,
                records: Select::All,
                keep: Vec::new(),
                histories: vec!["".into()],
                documents: vec![write("anchor", 1, "hash")],
            };
            let pruned = store.prune(prune).await.unwrap();
            // The last revision but one was replaced at the position itself, so it stays until the next pruning.
            assert_eq!(pruned.records, PRUNED as u64);
            assert_eq!(pruned.revisions, PRUNED as u64 / 10 - 2);
            let free = Batch {
                conditions: vec![Condition::NoneAfter { tag: "old".into(), after: Position::START }],
                ..Batch::default()
            };
            let last = Prune {
                before: Position::from_number(before.number() + 1),
                records: Select::Tagged(Vec::new()),
                keep: Vec::new(),
                histories: vec!["past".into()],
                documents: Vec::new(),
            };
            assert_eq!(store.prune(last).await.unwrap().revisions, 1);
            assert_eq!(codes(&store.commit(vec![free]).await), ["ok"]);
        }));
        done.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().unwrap();
        }
        writer.join().unwrap();
    });
}

/// Everything is there after a restart, positions and revisions go on, and a watch goes on where one stood.
pub fn what_was_committed_outlives_a_restart(bench: &dyn StoreBench) {
    let mut store = bench.open();
    let mut stood = Position::START;
    let mut last = Position::START;
    let mut at_unix_ms = 0;
    for round in 1..=4_u64 {
        let select = Select::Tagged(vec![Tag::Declared("a".into()), Tag::Declared("end".into())]);
        bench.block_on(Box::pin(async {
            let call = vec![
                Batch {
                    records: vec![record("a", &format!("{round}/1")), record("b", &format!("{round}/2"))],
                    documents: vec![kept("x", round), write("y", round, "y")],
                    ..Batch::default()
                },
                Batch { records: vec![record("a", &format!("{round}/3"))], ..Batch::default() },
                // The last position of all is one that no record and no document has.
                Batch {
                    conditions: vec![Condition::Revision { key: "x".into(), revision: round }],
                    ..Batch::default()
                },
            ];
            let results = store.commit(call).await;
            assert_eq!(codes(&results), ["ok"; 3]);
            let Ok(first) = &results[0] else { panic!("{results:?}") };
            assert!(first.records[0] > last, "no position is given twice");
            last = position(&results[2]);
            // Both of a round are followed by a watch that begins where that of the last round stood.
            let mut watch = store.watch(select.clone(), stood).await.unwrap();
            let mut seen = Vec::new();
            while seen.len() < 2 {
                seen.extend(watch.next().await.unwrap());
            }
            assert_eq!(texts(&seen), [format!("{round}/1"), format!("{round}/3")]);
            assert!(seen[0].at_unix_ms >= at_unix_ms, "times do not fall over a restart");
            (stood, at_unix_ms) = (watch.position(), seen[1].at_unix_ms);
        }));
        store = bench.reopen(store);
        bench.block_on(Box::pin(async {
            let page = store.read(Read::forward(Select::All)).await.unwrap();
            assert_eq!(page.records.len() as u64, 3 * round);
            assert_eq!(page.head, last);
            let history = History { key: "x".into(), until: Until::Now, documents_max: 100 };
            let revisions = store.history(history).await.unwrap();
            assert!(revisions.iter().map(|document| document.revision).eq((1..=round).rev()));
            assert_eq!(store.document("y").await.unwrap().unwrap().revision, round);
            assert_eq!(codes(&store.commit(vec![one("y", round)]).await), ["conflict"]);
        }));
    }
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
    Write { key: key.into(), revision, content: Some(content), past: Past::Dropped, replaced: Replaced::Kept }
}

async fn revisions(store: &Arc<dyn Store>, key: &str) -> Vec<u64> {
    let history = History { key: key.into(), until: Until::Now, documents_max: 99 };
    let found = store.history(history).await.unwrap();
    found.iter().map(|document| document.revision).collect()
}

async fn write_one(store: &Arc<dyn Store>, batch: Batch) {
    store.commit(vec![batch]).await.pop().unwrap().unwrap();
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
const PARTS: usize = 3;
const ACCOUNTS: usize = 4;
const TRANSFERS: usize = 40;
/// As many as make a pruning several steps of a store that prunes in steps, and as fit into one page.
const PRUNED: usize = 500;
/// Each try fails because another writer won, and the others win 200 times: far more means that nobody does.
const TRIES_MAX: usize = 10_000;
