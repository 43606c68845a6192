//! Mistake: the function named by `migrate` takes the old type, which nobody has decoded yet.

use happen::Result;
use serde::{Deserialize, Serialize};

#[derive(Default, Clone, Serialize, Deserialize)]
struct StockV1 {
    apples: u32,
}

#[derive(happen::State, Default, Clone, Serialize, Deserialize)]
#[state("stock", version = 2, migrate = from_old)]
struct Stock {
    fruit: u32,
}

fn from_old(old: StockV1) -> Result<Stock> {
    Ok(Stock { fruit: old.apples })
}

fn main() {}
