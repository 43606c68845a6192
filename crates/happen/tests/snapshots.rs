//! Which events make snapshots: what others make is not kept once it is replaced, and no answer about the past passes an
//! older revision off as what was.
#![cfg(feature = "embedded")]
#![expect(clippy::unwrap_used, reason = "whatever is not there fails the test, wherever it is looked for")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use happen::config::NodeOverrides;
use happen::env::RealEnv;
use happen::journal::{At, MadeBy, Query};
use happen::retention::Pruning;
use happen::store::{
    Document, History, MemoryStore, Position, Prune, Select, SqliteOptions, SqliteStore, Store, Until,
};
use happen::{Config, Context, Event, EventId, Retention, Space};
use happen_testing::Simulator;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

const KEY: &str = "state/meter/meter";

#[derive(happen::State, Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Meter {
    watts: u64,
}

/// A store that a test opens again: the one in memory as it is, the one in a folder from its files.
enum Disk {
    Memory(Arc<dyn Store>),
    Folder(tempfile::TempDir),
}

fn disks() -> [Disk; 2] {
    let memory = Arc::new(MemoryStore::new(Arc::new(RealEnv::new())));
    [Disk::Memory(memory), Disk::Folder(tempfile::tempdir().unwrap())]
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn sqlite(folder: &Path) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(folder, SqliteOptions::new(Arc::new(RealEnv::new()))).await.unwrap())
}

impl Disk {
    async fn space(&self, config: Config) -> Space {
        let store = match self {
            Self::Memory(store) => Arc::clone(store),
            Self::Folder(folder) => sqlite(folder.path()).await,
        };
        let space = Space::with_store(config, Arc::new(RealEnv::new()), store).unwrap();
        for node in ["meter", "other"] {
            space.node(node).on("*.*", measure);
        }
        space
    }
}

fn measure(event: &Event, cx: &Context) -> happen::Result<()> {
    let watts = event.payload().json()?.as_u64().unwrap_or_default();
    cx.state::<Meter>().set(move |_| Meter { watts })
}

/// Only `day.ended` makes snapshots of the meter.
fn by_day(revisions_max: u32) -> Config {
    let mut config =
        Config { retention: Retention { revisions_max, ..Retention::default() }, ..Config::default() };
    let overrides = NodeOverrides { snapshots: Some(vec!["day.*".to_owned()]), ..NodeOverrides::default() };
    config.nodes.insert("meter".to_owned(), overrides);
    config
}

/// Handles an event and gives its id and where the log ends then.
async fn handle(space: &Space, node: &str, event_type: &str, watts: u64) -> (EventId, Position) {
    let reply = space.send(node, Event::new(event_type, json!(watts))).reply::<()>().await.unwrap();
    (reply.event_id(), space.journal().head().await.unwrap())
}

async fn revisions(space: &Space, key: &str) -> Vec<u64> {
    let history = History { key: key.into(), until: Until::Now, documents_max: 999 };
    let found = space.store().history(history).await.unwrap();
    found.iter().map(|document| document.revision).collect()
}

fn watts(document: &Document) -> u64 {
    let content = document.content.as_ref().unwrap();
    happen_core::state::decode_document::<Meter>(content.version, &content.bytes).unwrap().watts
}

fn code<T: std::fmt::Debug>(result: happen::Result<T>) -> &'static str {
    result.unwrap_err().code()
}

#[test]
fn only_what_chosen_events_make_is_kept_over_restarts_too() {
    for disk in disks() {
        run(async {
            let space = disk.space(by_day(3)).await;
            space.start().await.unwrap();
            // Revisions 2 and 5 are those of days; the current one is there whatever made it.
            for (event_type, watts) in [
                ("tick.one", 1),
                ("day.ended", 2),
                ("tick.one", 3),
                ("tick.two", 4),
                ("day.ended", 5),
                ("tick.one", 6),
            ] {
                handle(&space, "meter", event_type, watts).await;
                handle(&space, "other", event_type, watts).await;
            }
            assert_eq!(revisions(&space, KEY).await, [6, 5, 2]);
            assert_eq!(revisions(&space, "state/other/meter").await, [6, 5, 4, 3]);
            space.stop().await.unwrap();
            drop(space);

            let space = disk.space(by_day(3)).await;
            space.start().await.unwrap();
            let meter = space.find("meter").unwrap();
            assert_eq!(meter.state::<Meter>().get(|meter| meter.watts), 6);
            // What was current when the process ended goes too; a change from outside stays.
            meter.state::<Meter>().commit(|_| Meter { watts: 7 }).await.unwrap();
            handle(&space, "meter", "tick.one", 8).await;
            assert_eq!(revisions(&space, KEY).await, [8, 7, 5, 2]);
            // The bound counts what is kept.
            handle(&space, "meter", "day.ended", 9).await;
            assert_eq!(revisions(&space, KEY).await, [9, 7, 5, 2]);
            handle(&space, "meter", "tick.one", 10).await;
            handle(&space, "meter", "tick.one", 11).await;
            assert_eq!(revisions(&space, KEY).await, [11, 9, 7, 5]);
            assert!(space.journal().verify().await.unwrap().is_whole());
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn no_answer_passes_an_older_revision_off_as_what_was() {
    for disk in disks() {
        run(async {
            let space = disk.space(by_day(100)).await;
            space.start().await.unwrap();
            let before = space.journal().head().await.unwrap();
            let mut at = vec![(None, before)];
            for (event_type, watts) in [
                ("tick.one", 1),
                ("day.ended", 2),
                ("tick.one", 3),
                ("tick.two", 4),
                ("day.ended", 5),
                ("tick.one", 6),
            ] {
                let (event, position) = handle(&space, "meter", event_type, watts).await;
                at.push((Some(event), position));
                // Others' records lie between.
                handle(&space, "other", event_type, watts).await;
            }
            let journal = space.journal();
            // In force, what is kept of it, and how many later ones are missing.
            let expected = [(0, 0, 0), (1, 0, 1), (2, 2, 0), (3, 2, 1), (4, 2, 2), (5, 5, 0), (6, 6, 0)];
            for (in_force, kept, missing) in expected {
                let (event, position) = at[in_force];
                for moment in [Some(At::Position(position)), event.map(At::Event)].into_iter().flatten() {
                    let nearest = journal.nearest(KEY, moment).await;
                    let exact = journal.at(KEY, moment).await;
                    let state = journal.state_at::<Meter>("meter", moment).await;
                    match (kept, missing) {
                        (0, 0) => {
                            assert_eq!(
                                (nearest.unwrap(), exact.unwrap(), state.unwrap()),
                                (None, None, None)
                            );
                        }
                        (0, _) => {
                            assert_eq!(
                                (code(nearest), code(exact), code(state)),
                                ("not-found", "not-found", "not-found")
                            );
                        }
                        (_, 0) => {
                            let then = nearest.unwrap().unwrap();
                            assert!(then.is_exact());
                            assert_eq!((then.revision, watts(&then.value)), (kept, kept));
                            assert_eq!(exact.unwrap(), Some(then.value));
                            assert_eq!(state.unwrap(), Some(Meter { watts: kept }));
                        }
                        _ => {
                            let then = nearest.unwrap().unwrap();
                            assert_eq!(
                                (then.revision, then.missing, watts(&then.value)),
                                (kept, missing, kept)
                            );
                            let error = exact.unwrap_err();
                            assert_eq!(error.code(), "not-found");
                            assert!(error.to_string().contains("not kept"), "{error}");
                            assert_eq!(code(state), "not-found");
                            let then =
                                journal.nearest_state::<Meter>("meter", moment).await.unwrap().unwrap();
                            assert_eq!((then.value, then.missing), (Meter { watts: kept }, missing));
                        }
                    }
                }
            }
            let found = journal.when::<Meter>("meter", Query::new()).await.unwrap();
            let told: Vec<_> = found.snapshots.iter().map(|then| (then.revision, then.value.watts)).collect();
            assert_eq!((told, found.forgotten), (vec![(2, 2), (5, 5), (6, 6)], 3));
            let ticks = journal.when::<Meter>("meter", Query::new().event_type("tick.two")).await.unwrap();
            assert_eq!((ticks.snapshots.len(), ticks.forgotten), (0, 1));
            let reasons = journal.why_document(KEY, Until::Now).await.unwrap();
            let told: Vec<_> = reasons.iter().map(|reason| (reason.revision, reason.missing)).collect();
            assert_eq!(told, [(6, 0), (5, 2), (2, 1)]);
            assert!(reasons.iter().all(|reason| matches!(reason.made_by, MadeBy::Step { .. })));
            let rest = journal.why_document(KEY, Until::Before(5)).await.unwrap();
            assert_eq!((rest.len(), rest[0].missing), (1, 1));

            let meter = space.find("meter").unwrap();
            let refused = meter.state::<Meter>().restore(At::Position(at[4].1)).await;
            assert_eq!(code(refused), "not-found");
            assert_eq!(meter.state::<Meter>().revision(), 6);
            // Who wants the older one says so.
            let then = journal.nearest(KEY, At::Position(at[4].1)).await.unwrap().unwrap();
            meter.state::<Meter>().restore(At::Position(then.value.position)).await.unwrap();
            assert_eq!(meter.state::<Meter>().get(|meter| meter.watts), 2);
            assert_eq!(revisions(&space, KEY).await, [7, 5, 2]);
            space.stop().await.unwrap();
        });
    }
}

/// Where the records are gone that tell which revision was in force, the answer says the most that can be missing.
#[test]
fn what_the_log_does_not_tell_any_more_is_not_claimed() {
    for disk in disks() {
        run(async {
            let space = disk.space(by_day(100)).await;
            space.start().await.unwrap();
            let mut at = vec![space.journal().head().await.unwrap()];
            for (event_type, watts) in [
                ("day.ended", 1),
                ("tick.one", 2),
                ("tick.one", 3),
                ("tick.one", 4),
                ("day.ended", 5),
                ("tick.one", 6),
            ] {
                at.push(handle(&space, "meter", event_type, watts).await.1);
            }
            let store = space.store();
            let journal = space.journal();
            let at_first = journal.nearest(KEY, At::Position(at[1])).await.unwrap().unwrap();
            assert_eq!((at_first.revision, at_first.missing), (1, 0));
            let prune = Prune {
                before: at[5],
                records: Select::All,
                keep: Vec::new(),
                histories: Vec::new(),
                documents: Vec::new(),
            };
            store.prune(prune).await.unwrap();
            // The first one may have been exact, and nothing is left that says so.
            for moment in &at[1..=4] {
                let then = journal.nearest(KEY, At::Position(*moment)).await.unwrap().unwrap();
                assert_eq!((then.revision, then.missing), (1, 3));
                assert_eq!(code(journal.at(KEY, At::Position(*moment)).await), "not-found");
            }
            assert!(journal.nearest(KEY, At::Position(at[5])).await.unwrap().unwrap().is_exact());
            assert_eq!(journal.nearest(KEY, At::Position(at[0])).await.unwrap(), None);
            // What was kept is pruned with the kept one that follows it.
            let planned = Pruning::before(&store, u64::MAX).await.unwrap();
            assert_eq!(planned.count(&store).await.unwrap().revisions, 2);
            assert_eq!(planned.carry_out(&store).await.unwrap().revisions, 2);
            assert_eq!(revisions(&space, KEY).await, [6]);
            assert_eq!(code(journal.nearest(KEY, At::Position(at[4])).await), "not-found");
            assert_eq!(journal.why_document(KEY, Until::Now).await.unwrap()[0].missing, 5);
            space.stop().await.unwrap();
        });
    }
}

#[test]
fn a_time_before_a_missing_revision_is_told_exactly() {
    let sim = Simulator::new(7);
    sim.run(async {
        let store = Arc::new(MemoryStore::new(sim.env()));
        let space = Space::with_store(by_day(9), sim.env(), store).unwrap();
        space.node("meter").on("*.*", measure);
        space.start().await.unwrap();
        let mut times = Vec::new();
        for (event_type, watts) in [("day.ended", 1), ("tick.one", 2), ("tick.one", 3), ("day.ended", 4)] {
            sim.env().sleep(Duration::from_secs(1)).await;
            handle(&space, "meter", event_type, watts).await;
            times.push(space.store().document(KEY).await.unwrap().unwrap().at_unix_ms);
        }
        let told = async |unix_ms| {
            let then = space.journal().nearest(KEY, At::Time(unix_ms)).await.unwrap();
            then.map(|then| (then.revision, then.missing))
        };
        assert_eq!(told(times[0] - 1).await, None);
        assert_eq!(told(times[0]).await, Some((1, 0)));
        assert_eq!(told(times[1] - 1).await, Some((1, 0)));
        assert_eq!(told(times[1]).await, Some((1, 1)));
        assert_eq!(told(times[2]).await, Some((1, 2)));
        assert_eq!(told(times[3] - 1).await, Some((1, 2)));
        assert_eq!(told(times[3]).await, Some((4, 0)));
        assert_eq!(told(u64::MAX).await, Some((4, 0)));
        space.stop().await.unwrap();
    });
}

#[test]
fn a_pattern_that_cannot_be_read_is_told_before_anything_runs() {
    run(async {
        let space = Space::memory();
        let _meter = space.node("meter").snapshots(["day.{ended"]);
        assert_eq!(code(space.start().await), "bad-pattern");
        let mut config = Config::default();
        config.node_defaults.snapshots = vec!["day.{ended".to_owned()];
        let store = Arc::new(MemoryStore::new(Arc::new(RealEnv::new())));
        let refused = Space::with_store(config, Arc::new(RealEnv::new()), store);
        assert_eq!(refused.err().map(|error| error.code()), Some("bad-pattern"));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever makes snapshots and whatever is bounded: an answer is what was, or says how far it is from it.
    #[test]
    fn every_answer_is_true_of_any_history(
        types in prop::collection::vec((0..3_usize, prop::bool::ANY), 1..24),
        revisions_max in 0..6_u32,
        in_folder in prop::bool::ANY,
    ) {
        let disk = disks().into_iter().nth(usize::from(in_folder)).unwrap();
        run(async {
            let mut space = disk.space(by_day(revisions_max)).await;
            space.start().await.unwrap();
            let mut at = vec![space.journal().head().await.unwrap()];
            for (number, (event_type, restarts)) in (1..).zip(&types) {
                if *restarts {
                    space.stop().await.unwrap();
                    drop(space);
                    space = disk.space(by_day(revisions_max)).await;
                    space.start().await.unwrap();
                }
                let event_type = ["tick.one", "day.ended", "tick.two"][*event_type];
                at.push(handle(&space, "meter", event_type, number).await.1);
            }
            let days = (1_u64..).zip(&types).filter(|(_, (event_type, _))| *event_type == 1);
            let last = types.len() as u64;
            let days: Vec<u64> = days.map(|(number, _)| number).filter(|number| *number < last).collect();
            let kept = &days[days.len().saturating_sub(revisions_max as usize)..];
            let mut expected: Vec<u64> = kept.to_vec();
            expected.push(last);
            expected.reverse();
            prop_assert_eq!(&revisions(&space, KEY).await, &expected);
            for (in_force, position) in (0_u64..).zip(&at) {
                let nearest = expected.iter().copied().find(|revision| *revision <= in_force);
                match (space.journal().nearest(KEY, At::Position(*position)).await, nearest) {
                    (Ok(Some(then)), Some(revision)) => {
                        prop_assert_eq!((then.revision, then.missing), (revision, in_force - revision));
                        prop_assert_eq!(watts(&then.value), revision);
                    }
                    (Ok(None), None) => prop_assert_eq!(in_force, 0),
                    (Err(error), None) => {
                        prop_assert_eq!(error.code(), "not-found");
                        prop_assert!(in_force > 0);
                    }
                    (found, nearest) => prop_assert!(false, "{:?} for {:?}", found, nearest),
                }
            }
            space.stop().await.unwrap();
            Ok(())
        })?;
    }
}
