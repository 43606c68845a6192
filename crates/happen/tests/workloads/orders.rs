//! A shop: orders as flows that branch, repeat a step, jump, sleep, and wait for a person; listeners of several kinds;
//! a journal that keeps the order of what is told about each key; and parcels that are taken in batches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use happen::store::Store;
use happen::{Batch, Context, Event, Space, Step, again, done, goto, millis, next, secs, with};
use serde::{Deserialize, Serialize};

use super::Part;
use super::audit::{Log, read_all};

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.place")]
pub(crate) struct Place {
    pub(crate) id: u64,
    /// How many pieces; more than [`LARGE`] need an approval, and none at all is refused.
    pub(crate) pieces: u64,
    /// How often the step that looks for a carrier has to look.
    pub(crate) looks: u32,
    pub(crate) gift: bool,
}

/// What became of an order.
#[derive(happen::Event, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[event("order.outcome")]
pub(crate) enum Outcome {
    Shipped,
    SoldOut,
    Empty,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("stock.take")]
struct Take {
    order: u64,
    pieces: u64,
}

#[derive(happen::Event, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[event("stock.taken")]
enum Taken {
    Done,
    SoldOut,
}

/// Follows from a change of the stock.
#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("stock.changed")]
struct Changed {
    order: u64,
    left: u64,
}

/// What a person says to a large order.
#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("order.approved")]
pub(crate) struct Approved {
    pub(crate) order: u64,
}

#[derive(happen::Event, Clone, Debug, Serialize, Deserialize)]
#[event("order.shipped")]
struct Shipped {
    order: u64,
}

/// A line of the journal; those of one key come in the order of their numbers.
#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("journal.note")]
pub(crate) struct Note {
    pub(crate) key: String,
    pub(crate) number: u64,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event("parcel")]
pub(crate) struct Parcel {
    pub(crate) id: u64,
}

#[derive(happen::State, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("stock", version = 1)]
struct Stock {
    pieces: u64,
}

impl Default for Stock {
    fn default() -> Self {
        Self { pieces: STOCK }
    }
}

#[derive(happen::State, Default, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[state("seen", version = 1)]
struct Seen {
    what: Vec<String>,
}

/// Makes a part of the nodes of the shop. What an ephemeral node hears is counted.
pub(crate) fn build(space: &Space, screen: &Arc<AtomicU64>, part: Part) {
    match part {
        Part::Flows => build_orders(space),
        Part::Asked => build_stock_and_journal(space),
        Part::Listeners => build_listeners(space, screen),
    }
}

fn build_orders(space: &Space) {
    let orders = space.node("orders").attempts(20, millis(10)).steps_max(60);
    orders.on("order.place", receive).step(find_carrier).step(take).step(approve).step(ship).check().unwrap();
}

fn build_stock_and_journal(space: &Space) {
    let stock = space.node("stock").attempts(20, millis(10)).serial();
    stock.on("stock.take", take_from_stock).check().unwrap();
    stock.on("stock.changed", hear_of_stock).check().unwrap();
    let journal = space.node("journal").attempts(20, millis(10)).serial_by(|note: &Note| note.key.clone());
    journal.on("journal.note", with((), open_line)).step(with((), close_line)).check().unwrap();
}

fn build_listeners(space: &Space, screen: &Arc<AtomicU64>) {
    // Three durable registrations at two nodes and an ephemeral one hear of the same event.
    let mails = space.node("mails").attempts(20, millis(10));
    mails.on("order.shipped", mail).check().unwrap();
    mails.on("order.shipped", mail_once_more).check().unwrap();
    let parcels = space.node("parcels").attempts(20, millis(10));
    parcels.on("order.shipped", count).check().unwrap();
    parcels.on("parcel", sort_all).check().unwrap();
    parcels.on("parcel", sort_one).check().unwrap();
    let hears = Arc::clone(screen);
    let screens = space.node("screen").ephemeral();
    screens
        .on("order.shipped", move |_: &Event<Shipped>, _: &Context| {
            hears.fetch_add(1, Ordering::SeqCst);
        })
        .check()
        .unwrap();
}

async fn receive(order: Event<Place>, cx: Context) -> happen::Result<Step> {
    note(&cx, order.id, 1).await?;
    note(&cx, order.id, 2).await?;
    if order.pieces == 0 {
        return end(&cx, &order, Outcome::Empty);
    }
    cx.put("looks", 0u32)?;
    next(find_carrier)
}

async fn find_carrier(order: Event<Place>, cx: Context) -> happen::Result<Step> {
    let looks: u32 = cx.get("looks")?;
    if looks < order.looks {
        cx.put("looks", looks + 1)?;
        if looks % 2 == 1 {
            cx.sleep(millis(250)).await;
        }
        // Beside the order of the steps: each of these is one event, whatever is run again.
        see(&cx, order.id, &format!("look {looks}"))?;
        return again();
    }
    next(take)
}

async fn take(order: Event<Place>, cx: Context) -> happen::Result<Step> {
    let asked = cx.send("stock", Take { order: order.id, pieces: order.pieces });
    let taken = asked.reply::<Taken>().within(secs(3_600)).await?.into_inner();
    note(&cx, order.id, 3).await?;
    match taken {
        Taken::SoldOut => end(&cx, &order, Outcome::SoldOut),
        Taken::Done if order.gift => goto("ship"),
        Taken::Done => next(approve),
    }
}

async fn approve(order: Event<Place>, cx: Context) -> happen::Result<Step> {
    if order.pieces > LARGE {
        let id = order.id;
        let wanted = move |event: &Event| event.get("order").and_then(serde_json::Value::as_u64) == Some(id);
        let approved = cx.wait_for_one("order.approved", secs(86_400), wanted).await?;
        assert!(wanted(&approved));
        see(&cx, order.id, "approved")?;
    }
    // The longer one is remembered, the shorter one begins anew.
    cx.sleep(if order.pieces > LARGE { secs(1) } else { millis(150) }).await;
    next(ship)
}

async fn ship(order: Event<Place>, cx: Context) -> happen::Result<Step> {
    cx.broadcast(Shipped { order: order.id })?;
    let parcels: Vec<_> = (0..order.pieces % 4).map(|piece| Parcel { id: order.id * 10 + piece }).collect();
    if !parcels.is_empty() {
        cx.send("parcels", parcels).await?;
    }
    end(&cx, &order, Outcome::Shipped)
}

async fn note(cx: &Context, order: u64, number: u64) -> happen::Result<()> {
    cx.send("journal", Note { key: format!("order-{order}"), number }).await.map(drop)
}

fn end(cx: &Context, order: &Place, outcome: Outcome) -> happen::Result<Step> {
    see(cx, order.id, &format!("{outcome:?}"))?;
    done(outcome)
}

/// Keeps a word under a number.
fn see(cx: &Context, id: u64, what: &str) -> happen::Result<()> {
    let what = what.to_owned();
    cx.entity::<Seen>(id.to_string()).set(move |mut seen| {
        seen.what.push(what.clone());
        seen
    })
}

fn take_from_stock(take: &Event<Take>, cx: &Context) -> happen::Result<Step> {
    let Take { order, pieces } = **take;
    if cx.state::<Stock>().get_for_update(|stock| stock.pieces)? < pieces {
        return done(Taken::SoldOut);
    }
    cx.state::<Stock>().set_emit(move |stock| {
        let left = stock.pieces - pieces;
        (Stock { pieces: left }, [Changed { order, left }])
    })?;
    done(Taken::Done)
}

async fn hear_of_stock(changed: Event<Changed>, cx: Context) -> happen::Result<()> {
    see(&cx, changed.order, &changed.left.to_string())
}

fn mail(shipped: &Event<Shipped>, cx: &Context) -> happen::Result<()> {
    see(cx, shipped.order, "mail")
}

async fn mail_once_more(shipped: Event<Shipped>, cx: Context) -> happen::Result<()> {
    cx.sleep(millis(40)).await;
    see(&cx, shipped.order, "mail")
}

fn count(shipped: &Event<Shipped>, cx: &Context) -> happen::Result<()> {
    see(cx, shipped.order, "shipped")
}

/// Takes all parcels of a shipment at once.
async fn sort_all(parcels: Batch<Parcel>, cx: Context) -> happen::Result<()> {
    for parcel in parcels.iter() {
        see(&cx, PARCELS + parcel.id, "all")?;
    }
    Ok(())
}

fn sort_one(parcel: &Event<Parcel>, cx: &Context) -> happen::Result<()> {
    see(cx, PARCELS + parcel.id, "one")
}

async fn open_line(_: (), note: Event<Note>, cx: Context) -> happen::Result<Step> {
    write(&cx, &note, "open")?;
    if note.number.is_multiple_of(3) {
        cx.sleep(millis(15)).await;
    }
    happen::next_with(close_line, ())
}

async fn close_line(_: (), note: Event<Note>, cx: Context) -> happen::Result<()> {
    write(&cx, &note, "close")
}

fn write(cx: &Context, note: &Note, what: &str) -> happen::Result<()> {
    let line = format!("{what} {}", note.number);
    cx.entity::<Seen>(&*note.key).set(move |mut seen| {
        seen.what.push(line.clone());
        seen
    })
}

/// What somebody outside knows of an order.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) order: Place,
    pub(crate) acknowledged: bool,
    pub(crate) outcome: Option<Outcome>,
}

/// What somebody outside knows of the notes with one key, which were sent one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    pub(crate) sent: u64,
    pub(crate) acknowledged: Vec<u64>,
}

/// Checks a shop that has come to rest.
pub(crate) async fn check(
    store: &Arc<dyn Store>,
    log: &Log,
    known: &[Known],
    notes: &BTreeMap<String, Notes>,
) {
    assert!(log.dead.is_empty(), "nothing fails for good here: {:?}", log.dead);
    let seen = async |node: &str| -> BTreeMap<String, Vec<String>> {
        let all = read_all::<Seen>(store, &format!("entity/{node}/seen/")).await;
        all.into_iter().map(|(key, seen)| (key, seen.what)).collect()
    };
    let (orders, mails, parcels) = (seen("orders").await, seen("mails").await, seen("parcels").await);
    let mut stock = seen("stock").await;
    let journal = seen("journal").await;
    let mut left = STOCK;
    let mut levels = Vec::new();
    let mut sorted = 0;
    for Known { order, acknowledged, outcome } in known {
        let id = order.id;
        let Some(words) = orders.get(&id.to_string()) else {
            assert!(!acknowledged, "order {id} was acknowledged and is lost: {order:?}");
            continue;
        };
        let end = words.last().unwrap();
        assert!(outcome.is_none_or(|outcome| format!("{outcome:?}") == *end), "{outcome:?} is {end}");
        let mut expected: Vec<_> = match order.pieces {
            0 => Vec::new(),
            _ => (0..order.looks).map(|look| format!("look {look}")).collect(),
        };
        if end == "Shipped" && !order.gift && order.pieces > LARGE {
            expected.push("approved".to_owned());
        }
        expected.push(end.clone());
        assert_eq!(words, &expected, "order {id}: {order:?}");
        let shipped = end == "Shipped";
        let times = |words: &BTreeMap<_, Vec<String>>| words.get(&id.to_string()).map_or(0, Vec::len);
        assert_eq!(times(&mails), 2 * usize::from(shipped), "mails of order {id}");
        assert_eq!(times(&parcels), usize::from(shipped), "order {id} ships once");
        let levels_told = stock.remove(&id.to_string()).unwrap_or_default();
        assert_eq!(levels_told.len(), usize::from(shipped), "what follows from the stock of order {id}");
        levels.extend(levels_told);
        left -= if shipped { order.pieces } else { 0 };
        for piece in 0..order.pieces % 4 {
            let mut words =
                parcels.get(&(PARCELS + id * 10 + piece).to_string()).cloned().unwrap_or_default();
            words.sort_unstable();
            let expected: &[&str] = if shipped { &["all", "one"] } else { &[] };
            assert_eq!(words, expected, "parcel {piece} of order {id}");
            sorted += usize::from(shipped);
        }
        let lines = journal.get(&format!("order-{id}")).cloned().unwrap_or_default();
        let numbers = if order.pieces == 0 { 1..=2 } else { 1..=3 };
        let expected: Vec<_> =
            numbers.flat_map(|number| [format!("open {number}"), format!("close {number}")]).collect();
        assert_eq!(lines, expected, "the journal of order {id}");
    }
    let stocks = read_all::<Stock>(store, "state/stock/").await;
    assert_eq!(stocks.values().next().map_or(STOCK, |stock| stock.pieces), left);
    let shipped = levels.len();
    levels.sort_unstable();
    levels.dedup();
    assert_eq!(levels.len(), shipped, "two changes told the same");
    assert!(stock.is_empty(), "nobody ordered these: {stock:?}");
    assert!(parcels.len() >= sorted);
    for (key, Notes { sent, acknowledged }) in notes {
        let lines = journal.get(key).cloned().unwrap_or_default();
        let mut last = 0;
        let mut found = Vec::new();
        for pair in lines.chunks(2) {
            let number: u64 =
                pair[0].strip_prefix("open ").unwrap_or_else(|| panic!("{key}: {lines:?}")).parse().unwrap();
            assert_eq!(
                pair.get(1),
                Some(&format!("close {number}")),
                "{key}: one note within another: {lines:?}"
            );
            assert!(last < number && number <= *sent, "{key}: {lines:?}");
            last = number;
            found.push(number);
        }
        let lost: Vec<_> = acknowledged.iter().filter(|number| !found.contains(number)).collect();
        assert!(lost.is_empty(), "{key}: {lost:?} were acknowledged and are lost");
    }
}

/// The order with this number, from as many dice as it takes.
pub(crate) fn order(id: u64, mut dice: impl FnMut() -> u64) -> Place {
    let pieces = match dice() % 6 {
        0 => 0,
        1 => LARGE + 1 + dice() % 3,
        _ => 1 + dice() % LARGE,
    };
    Place { id, pieces, looks: (dice() % 4) as u32, gift: dice().is_multiple_of(4) }
}

/// Whether an order waits for a person.
pub(crate) fn needs_approval(order: &Place) -> bool {
    order.pieces > LARGE && !order.gift
}

const LARGE: u64 = 5;
const STOCK: u64 = 40;
/// What the numbers of parcels begin with, where they stand beside those of orders.
const PARCELS: u64 = 1_000_000;
