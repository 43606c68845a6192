//! The node `inventory`: how many of each article there are. Plain functions: nothing here waits.

use std::collections::BTreeMap;

use happen::{Context, Event, Space, Step, done};
use serde::{Deserialize, Serialize};

use super::events::{OutOfStock, Release, Report, Reserve, Reserved};

/// What is in stock, by article.
#[derive(happen::State, happen::Event, Default, Clone, Debug, Serialize, Deserialize)]
#[state("inventory", version = 1)]
#[event("inventory.state")]
pub(crate) struct Inventory {
    pub(crate) stock: BTreeMap<String, u64>,
}

pub(crate) async fn node(space: &Space, stock: Inventory) -> happen::Result<()> {
    let inventory = space.node("inventory");
    // A shop that was opened before has what is left.
    if inventory.state::<Inventory>().revision() == 0 {
        inventory.state::<Inventory>().commit(move |_| stock.clone()).await?;
    }
    inventory.on("reserve", reserve).check()?;
    inventory.on("release", release).check()?;
    inventory.on("report", report).check()
}

fn reserve(wanted: &Event<Reserve>, cx: &Context) -> happen::Result<Step> {
    let lines = wanted.lines.clone();
    // Whether there is enough and taking it are one change: nobody comes in between.
    let taken = cx.state::<Inventory>().try_set(move |mut inventory| {
        for line in &lines {
            let missing = || Missing(line.article.clone());
            let left = inventory.stock.get_mut(&line.article).ok_or_else(missing)?;
            *left = left.checked_sub(line.quantity).ok_or_else(missing)?;
        }
        Ok::<_, Missing>(inventory)
    });
    match taken {
        Ok(()) => done(Reserved),
        Err(error) => match error.find_cause::<Missing>() {
            Some(Missing(article)) => done(OutOfStock { article: article.clone() }),
            None => Err(error),
        },
    }
}

/// There is too little of this article.
#[derive(Debug, thiserror::Error)]
#[error("too little of {0} is left")]
struct Missing(String);

fn release(back: &Event<Release>, cx: &Context) -> happen::Result<()> {
    let lines = back.lines.clone();
    cx.state::<Inventory>().set(move |mut inventory| {
        for line in &lines {
            *inventory.stock.entry(line.article.clone()).or_default() += line.quantity;
        }
        inventory
    })
}

fn report(_: &Event<Report>, cx: &Context) -> Inventory {
    cx.state::<Inventory>().get(Clone::clone)
}
