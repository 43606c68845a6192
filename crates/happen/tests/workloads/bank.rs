//! A bank: transfers as flows of several steps over branches whose accounts are entities. Money is withdrawn at one
//! node, given at another, and given back when the other refuses.

use std::collections::BTreeMap;
use std::sync::Arc;

use happen::store::Store;
use happen::{Context, Error, Event, Space, Step, done, millis, next_with, with};
use serde::{Deserialize, Serialize};

use super::audit::{Log, read_all};
use super::{Part, Provider};

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("transfer.create")]
pub(crate) struct Transfer {
    pub(crate) id: u64,
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// 0 is a poison: the handler panics whenever it sees it.
    pub(crate) cents: i64,
}

/// What becomes of a transfer.
#[derive(happen::Event, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[event("transfer.outcome")]
pub(crate) enum Outcome {
    Done,
    /// There was too little money.
    Refused,
    /// The other account takes nothing.
    Returned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    Withdraw,
    Deposit,
    Return,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("post")]
struct Post {
    transfer: u64,
    account: u32,
    kind: Kind,
    cents: i64,
}

#[derive(happen::Event, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[event("posted")]
enum Posted {
    Done,
    Refused,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("transfer.ended")]
struct Ended {
    id: u64,
    outcome: Outcome,
}

#[derive(happen::State, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("account", version = 1)]
struct Account {
    cents: i64,
    posts: Vec<(u64, Kind)>,
}

/// What a branch as a whole holds more than at first, changed in the same step as the account.
#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("till", version = 1)]
struct Till {
    cents: i64,
}

/// What a node has heard of a transfer.
#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("heard", version = 1)]
struct Heard {
    outcomes: Vec<Outcome>,
}

impl Default for Account {
    fn default() -> Self {
        Self { cents: OPENING_CENTS, posts: Vec::new() }
    }
}

/// Makes a part of the nodes of the bank.
pub(crate) fn build(space: &Space, provider: &Provider, part: Part) {
    match part {
        Part::Flows => build_bank(space, provider),
        Part::Asked => build_branches(space),
        Part::Listeners => build_listeners(space),
    }
}

fn build_branches(space: &Space) {
    for branch in 0..BRANCHES {
        let node = space.node(format!("branch-{branch}")).attempts(20, millis(10));
        // One branch takes the posts of an account in their order, the others all at once.
        let node = if branch == 1 { node.serial_by(|post: &Post| post.account) } else { node };
        node.on("post", post).check().unwrap();
    }
}

fn build_bank(space: &Space, provider: &Provider) {
    let bank = space.node("bank").attempts(ATTEMPTS, millis(10));
    bank.on("transfer.create", with(provider.clone(), withdraw))
        .step(with(provider.clone(), deposit))
        .step(with(provider.clone(), give_back))
        .check()
        .unwrap();
}

fn build_listeners(space: &Space) {
    let books = space.node("books").attempts(20, millis(10)).serial();
    books.on("transfer.ended", enter).check().unwrap();
    let clerk = space.node("clerk").attempts(20, millis(10));
    clerk.on("transfer.ended", enter_slowly).check().unwrap();
}

fn branch_of(account: u32) -> String {
    format!("branch-{}", account % BRANCHES)
}

async fn withdraw(provider: Provider, transfer: Event<Transfer>, cx: Context) -> happen::Result<Step> {
    if transfer.cents == 0 {
        // A panic that nobody prints.
        std::panic::resume_unwind(Box::new("a poison"));
    }
    match ask(&cx, &transfer, Kind::Withdraw).await? {
        Posted::Refused => end(&cx, &transfer, Outcome::Refused),
        Posted::Done => next_with(deposit, provider),
    }
}

async fn deposit(provider: Provider, transfer: Event<Transfer>, cx: Context) -> happen::Result<Step> {
    let id = transfer.id;
    let tell = provider.clone();
    let noted: u64 = cx.once("notify", move |key| async move { (tell.0)(&key, id).map(|()| id) }).await?;
    assert_eq!(noted, id);
    match ask(&cx, &transfer, Kind::Deposit).await? {
        Posted::Done => end(&cx, &transfer, Outcome::Done),
        Posted::Refused => next_with(give_back, provider),
    }
}

async fn give_back(_: Provider, transfer: Event<Transfer>, cx: Context) -> happen::Result<Step> {
    match ask(&cx, &transfer, Kind::Return).await? {
        Posted::Done => end(&cx, &transfer, Outcome::Returned),
        Posted::Refused => Err(Error::msg("an account took back nothing")),
    }
}

async fn ask(cx: &Context, transfer: &Transfer, kind: Kind) -> happen::Result<Posted> {
    let (account, cents) = match kind {
        Kind::Withdraw => (transfer.from, -transfer.cents),
        Kind::Deposit => (transfer.to, transfer.cents),
        Kind::Return => (transfer.from, transfer.cents),
    };
    let post = Post { transfer: transfer.id, account, kind, cents };
    Ok(cx.send(&*branch_of(account), post).reply::<Posted>().await?.into_inner())
}

fn end(cx: &Context, transfer: &Transfer, outcome: Outcome) -> happen::Result<Step> {
    cx.entity::<Heard>(transfer.id.to_string()).set(hears(outcome))?;
    cx.broadcast(Ended { id: transfer.id, outcome })?;
    done(outcome)
}

fn hears(outcome: Outcome) -> impl Fn(Heard) -> Heard + Send + Sync + 'static {
    move |mut heard| {
        heard.outcomes.push(outcome);
        heard
    }
}

fn post(post: &Event<Post>, cx: &Context) -> happen::Result<Step> {
    let Post { transfer, account, kind, cents } = **post;
    if kind == Kind::Deposit && account % CLOSED == CLOSED - 1 {
        return done(Posted::Refused);
    }
    let posted = cx.entity::<Account>(account.to_string()).try_set(move |mut account| {
        account.cents += cents;
        account.posts.push((transfer, kind));
        if account.cents < 0 { Err(Error::msg("too little")) } else { Ok(account) }
    });
    if posted.is_err() {
        return done(Posted::Refused);
    }
    cx.state::<Till>().set(move |till| Till { cents: till.cents + cents })?;
    done(Posted::Done)
}

fn enter(ended: &Event<Ended>, cx: &Context) -> happen::Result<()> {
    cx.entity::<Heard>(ended.id.to_string()).set(hears(ended.outcome))
}

async fn enter_slowly(ended: Event<Ended>, cx: Context) -> happen::Result<()> {
    cx.sleep(millis(30)).await;
    let entity = ended.id.to_string();
    let known = cx.entity::<Heard>(&*entity).get_for_update(Clone::clone)?;
    let outcome = ended.outcome;
    cx.entity::<Heard>(&*entity).set(move |_| hears(outcome)(known.clone()))
}

/// What somebody outside knows of a transfer.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) transfer: Transfer,
    /// Whether it was acknowledged.
    pub(crate) acknowledged: bool,
    pub(crate) outcome: Option<Outcome>,
}

/// Checks a bank that has come to rest. `effects` are the calls outside, by transfer with their keys.
pub(crate) async fn check(
    store: &Arc<dyn Store>,
    log: &Log,
    known: &[Known],
    effects: &BTreeMap<u64, Vec<String>>,
) {
    let accounts: BTreeMap<String, Account> = {
        let mut all = BTreeMap::new();
        for branch in 0..BRANCHES {
            all.extend(read_all(store, &format!("entity/branch-{branch}/account/")).await);
        }
        all
    };
    let mut tills = 0;
    for branch in 0..BRANCHES {
        for till in read_all::<Till>(store, &format!("state/branch-{branch}/")).await.values() {
            tills += till.cents;
        }
    }
    let changed: i64 = accounts.values().map(|account| account.cents - OPENING_CENTS).sum();
    let mut posts: BTreeMap<u64, Vec<Kind>> = BTreeMap::new();
    for (transfer, kind) in accounts.values().flat_map(|account| &account.posts) {
        posts.entry(*transfer).or_default().push(*kind);
    }
    let heard: Vec<BTreeMap<String, Heard>> = {
        let mut all = Vec::new();
        for node in ["bank", "books", "clerk"] {
            all.push(read_all(store, &format!("entity/{node}/heard/")).await);
        }
        all
    };
    let dead: Vec<_> = log.dead.iter().filter(|name| name.starts_with("dead/bank/")).collect();
    let poison = |known: &&Known| known.transfer.cents == 0;
    let poisoned = known.iter().filter(poison).count();
    let acknowledged = known.iter().filter(poison).filter(|known| known.acknowledged).count();
    assert!(dead.len() <= poisoned && dead.len() >= acknowledged, "{dead:?} of {acknowledged}..{poisoned}");
    assert_eq!(dead.len(), log.dead.len(), "only a poison is dead: {:?}", log.dead);
    for Known { transfer, acknowledged, outcome } in known.iter().filter(|known| !poison(known)) {
        let id = transfer.id;
        let mut kinds = posts.remove(&id).unwrap_or_default();
        kinds.sort_unstable();
        let ends: Vec<_> =
            heard.iter().map(|heard| heard.get(&id.to_string()).cloned().unwrap_or_default()).collect();
        let Some(end) = ends[0].outcomes.first() else {
            assert!(!acknowledged, "transfer {id} was acknowledged and is lost: {transfer:?}");
            assert!(kinds.is_empty(), "transfer {id} never ended: {kinds:?}");
            continue;
        };
        for (node, end) in ends.iter().enumerate() {
            assert_eq!(end, &ends[0], "transfer {id} at {node}");
        }
        assert_eq!(ends[0].outcomes.len(), 1, "transfer {id} ended twice: {ends:?}");
        assert!(
            outcome.is_none_or(|told| told == *end),
            "transfer {id} was told as {outcome:?} and is {end:?}"
        );
        let expected: &[Kind] = match end {
            Outcome::Refused => &[],
            Outcome::Done => &[Kind::Withdraw, Kind::Deposit],
            Outcome::Returned => &[Kind::Withdraw, Kind::Return],
        };
        assert_eq!(kinds, expected, "transfer {id}, which is {end:?}");
        let mut keys = effects.get(&id).cloned().unwrap_or_default();
        keys.dedup();
        assert_eq!(keys.len(), usize::from(*end != Outcome::Refused), "transfer {id} outside: {keys:?}");
    }
    assert!(posts.is_empty(), "nobody sent these: {posts:?}");
    assert_eq!(changed, 0, "money was made or lost");
    assert_eq!(tills, 0, "the tills and the accounts say something else");
}

/// The transfer with this number, from as many dice as it takes.
pub(crate) fn transfer(id: u64, mut dice: impl FnMut() -> u64) -> Transfer {
    let roll = dice();
    // Half of all go over two hot accounts.
    let account = |roll: u64| {
        if roll.is_multiple_of(2) { (roll / 2 % 2) as u32 } else { (roll / 2 % u64::from(ACCOUNTS)) as u32 }
    };
    let (from, to) = (account(roll), account(dice()));
    let cents = if roll % 23 == 22 { 0 } else { (dice() % 80) as i64 + 1 };
    Transfer { id, from, to, cents }
}

pub(crate) const BRANCHES: u32 = 3;
const ACCOUNTS: u32 = 12;
/// Each such account is closed for deposits.
const CLOSED: u32 = 5;
const OPENING_CENTS: i64 = 100;
/// So many that nothing but a poison runs out of them.
const ATTEMPTS: u32 = 8;
