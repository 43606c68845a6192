//! Windows into other nodes' states: what is seen together, how fresh it is, and what is made of it. On nodes in memory
//! and on durable ones.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use happen::store::{MemoryStore, Position, Store};
use happen::{Config, Context, Event, Space, secs, with};
use happen_testing::Simulator;
use serde::{Deserialize, Serialize};

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("account", version = 1)]
struct Account {
    cents: i64,
    next: Option<String>,
}

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("report", version = 1)]
struct Report {
    cents: i64,
}

/// Runs a check in a space in memory and in one whose nodes are durable.
fn in_both(check: impl AsyncFn(Space)) {
    for durable in [false, true] {
        let sim = Simulator::new(3);
        sim.run(async {
            let env = sim.env();
            let space = if durable {
                let store: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
                Space::with_store(Config::default(), env, store).unwrap()
            } else {
                Space::in_env(Config::default(), env).unwrap()
            };
            check(space).await;
        });
    }
}

async fn deposit(space: &Space, node: &str, cents: i64) {
    let node = space.find(node).unwrap();
    node.state::<Account>()
        .commit(move |account| Account { cents: account.cents + cents, ..account })
        .await
        .unwrap();
}

#[test]
fn several_states_are_seen_at_one_point() {
    in_both(async |space| {
        let [a, b] = ["a", "b"].map(|id| space.node(id));
        let nothing = space.collect((a.view::<Account>(), b.entity_view::<Account>("x"))).await.unwrap();
        assert_eq!((nothing.0.cents, nothing.1.cents), (0, 0));
        deposit(&space, "a", 5).await;
        b.entity::<Account>("x").commit(|account| Account { cents: 7, ..account }).await.unwrap();
        let seen = space.collect((a.view::<Account>(), b.entity_view::<Account>("x"))).await.unwrap();
        assert_eq!((seen.0.cents, seen.1.cents), (5, 7));
        assert!(seen.freshness().one_cut);
        assert_eq!(seen.freshness().newest > Position::START, !is_memory(&space));
        let many = space.collect(vec![a.view::<Account>(); 3]).await.unwrap();
        assert_eq!(many.iter().map(|account| account.cents).sum::<i64>(), 15);
    });
}

/// Whether the states of a space have no place in a log.
fn is_memory(space: &Space) -> bool {
    space.nodes().first().is_none_or(|node| node.durability() == happen::Durability::Ephemeral)
}

/// Money moves between two nodes in single commits of each; what is seen together never has it twice.
#[test]
fn a_sum_over_states_is_never_torn() {
    let sim = Simulator::new(9);
    sim.run(async {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(sim.env()));
        let space = Space::with_store(Config::default(), sim.env(), store).unwrap();
        let bank = space.node("bank");
        bank.on("u64", |n: &Event<u64>, cx: &Context| {
            let cents = i64::try_from(**n).unwrap();
            cx.entity::<Account>("from")
                .set(move |account| Account { cents: account.cents - cents, ..account })?;
            cx.entity::<Account>("to").set(move |account| Account { cents: account.cents + cents, ..account })
        });
        space.start().await.unwrap();
        for n in 0..200u64 {
            space.send("bank", n).forget();
            let both = (bank.entity_view::<Account>("from"), bank.entity_view::<Account>("to"));
            let seen = space.collect(both).await.unwrap();
            assert_eq!(seen.0.cents + seen.1.cents, 0);
            sim.env().sleep(std::time::Duration::ZERO).await;
        }
        space.settled(secs(60)).await.unwrap();
        assert_eq!(bank.entity::<Account>("to").get(|account| account.cents), 199 * 100);
        space.stop().await.unwrap();
    });
}

#[test]
fn a_state_is_made_of_what_is_seen_through_windows() {
    in_both(async |space| {
        let [a, b, books] = ["a", "b", "books"].map(|id| space.node(id));
        let views = (a.view::<Account>(), b.view::<Account>());
        books.on("report", with(views, sum));
        space.start().await.unwrap();
        deposit(&space, "a", 5).await;
        deposit(&space, "b", 8).await;
        space.send("books", Event::new("report", serde_json::json!(null))).reply::<()>().await.unwrap();
        assert_eq!(books.state::<Report>().get(|report| report.cents), 13);
        space.stop().await.unwrap();
    });
}

type Two = (happen::View<Account>, happen::View<Account>);

/// Sums what it sees.
async fn sum(views: Two, _: Event, cx: Context) -> happen::Result<()> {
    let viewing = cx.state::<Report>().with_views(views).await?;
    viewing.set(|_, (a, b)| Report { cents: a.cents + b.cents })
}

#[test]
fn references_are_followed_to_their_end_and_circles_too() {
    in_both(async |space| {
        let chain = space.node("chain");
        for (key, next) in [("a", "b"), ("b", "c"), ("c", "a"), ("lonely", "nobody")] {
            let account = Account { cents: 1, next: Some(next.to_owned()) };
            chain.entity::<Account>(key).commit(move |_| account.clone()).await.unwrap();
        }
        let follow =
            |account: &Account| account.next.iter().map(|next| chain.entity_view::<Account>(next)).collect();
        let circle = space.collect_following(vec![chain.entity_view("a")], follow).await.unwrap();
        let keys: Vec<_> = circle.keys().map(|key| key.rsplit('/').next().unwrap().to_owned()).collect();
        assert_eq!(keys, ["a", "b", "c"]);
        let lonely = space.collect_following(vec![chain.entity_view("lonely")], follow).await.unwrap();
        assert_eq!(lonely.len(), 2);
        let endless = |account: &Account| {
            vec![
                chain.entity_view::<Account>(&format!("{}x", account.next.clone().unwrap_or_default().len())),
            ]
        };
        assert!(space.collect_following(vec![chain.entity_view("a")], endless).await.is_ok());
    });
}

#[test]
fn a_window_of_another_space_is_refused() {
    let (one, other) = (Space::memory(), Space::memory());
    let foreign = other.node("x").view::<Account>();
    let sim = Simulator::new(1);
    assert_eq!(sim.run(one.collect(foreign)).unwrap_err().code(), "misuse");
}
