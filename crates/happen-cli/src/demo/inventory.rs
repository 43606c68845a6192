//! The node `inventory`: how many of each article there are. Plain functions: nothing here waits.

use std::collections::BTreeMap;

use happen::{Context, Event, Space, Step, done, with};
use serde::{Deserialize, Serialize};

use super::events::{OutOfStock, Release, Report, Reserve, Reserved};
use crate::kept::Kept;

/// What is in stock, by article.
#[derive(happen::State, happen::Event, Default, Clone, Debug, Serialize, Deserialize)]
#[state("inventory", version = 1)]
#[event("inventory.state")]
pub(crate) struct Inventory {
    pub(crate) stock: BTreeMap<String, u64>,
}

pub(crate) fn node(space: &Space, stock: Inventory) -> happen::Result<()> {
    let kept = Kept::from(stock);
    let inventory = space.node("inventory");
    inventory.on("reserve", with(kept.clone(), reserve)).check()?;
    inventory.on("release", with(kept.clone(), release)).check()?;
    inventory.on("report", with(kept, report)).check()
}

fn reserve(kept: Kept<Inventory>, wanted: &Event<Reserve>, _: &Context) -> happen::Result<Step> {
    let missing = kept.change(|inventory| {
        let enough =
            |article: &String, quantity| inventory.stock.get(article).is_some_and(|left| *left >= quantity);
        let missing = wanted.lines.iter().find(|line| !enough(&line.article, line.quantity));
        if missing.is_none() {
            for line in &wanted.lines {
                *inventory.stock.entry(line.article.clone()).or_default() -= line.quantity;
            }
        }
        missing
    });
    match missing {
        None => done(Reserved),
        Some(line) => done(OutOfStock { article: line.article.clone() }),
    }
}

fn release(kept: Kept<Inventory>, back: &Event<Release>, _: &Context) {
    kept.change(|inventory| {
        for line in &back.lines {
            *inventory.stock.entry(line.article.clone()).or_default() += line.quantity;
        }
    });
}

fn report(kept: Kept<Inventory>, _: &Event<Report>, _: &Context) -> Inventory {
    kept.get(Clone::clone)
}
