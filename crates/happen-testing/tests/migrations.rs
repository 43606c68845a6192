//! Documents of old versions: what the kit accepts, and what it says when a version can no longer be read.
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use happen_core::{Error, OldState, Result, State};
use happen_testing::Migrations;
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct OrdersV2 {
    open: u32,
}

impl State for OrdersV2 {
    const NAME: &'static str = "orders";
    const VERSION: u32 = 2;
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Orders {
    new: u32,
    paid: u32,
}

impl State for Orders {
    const NAME: &'static str = "orders";
    const VERSION: u32 = 3;

    fn migrate(old: &OldState<'_>) -> Result<Self> {
        Ok(Self { new: old.state::<OrdersV2>()?.open, paid: 0 })
    }
}

const CURRENT: &str = "82 a3 6e6577 07 a4 70616964 01";

fn current() -> Orders {
    Orders { new: 7, paid: 1 }
}

fn whole() -> Migrations<Orders> {
    Migrations::new().no_way(1).written_by(&OrdersV2 { open: 5 }, Orders { new: 5, paid: 0 }).written_as(
        3,
        CURRENT,
        current(),
    )
}

/// The lines of what the check says is wrong.
fn wrong(migrations: Migrations<impl State + PartialEq + std::fmt::Debug>) -> Vec<String> {
    let panic = catch_unwind(AssertUnwindSafe(|| migrations.check())).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    text.lines().skip(1).map(|line| line.strip_prefix("- ").unwrap().to_owned()).collect()
}

#[test]
fn every_version_that_reads_or_is_refused_passes() {
    whole().check();
    whole().written_as(2, "81A46f70 656E 05", Orders { new: 5, paid: 0 }).check();
}

#[test]
fn a_version_without_a_document_is_told() {
    let migrations = Migrations::new().written_as(3, CURRENT, current());
    let missing = |version| {
        format!(
            "version {version} has no document: add `.written_by(..)` or `.written_as({version}, ..)`, or say \
             `.no_way({version})`"
        )
    };
    assert_eq!(wrong(migrations), [missing(1), missing(2)]);
}

#[test]
fn the_current_version_has_to_be_written_down() {
    let migrations =
        Migrations::new().no_way(1).written_by(&OrdersV2 { open: 5 }, Orders { new: 5, paid: 0 });
    let line = "the current version 3 has no document that was written down: add \
                `.written_as(3, \"82a36e657700a47061696400\", <the default>)`, or one with more in it";
    // One that is made of the type as it is now shows nothing: it changes together with it.
    assert_eq!(wrong(migrations.written_by(&current(), current())), [line]);
}

#[test]
fn what_is_read_otherwise_or_not_at_all_is_told() {
    let all = wrong(whole().written_as(2, "81a46f70656e06", current()).written_as(2, "c0", current()));
    assert_eq!(
        all[0],
        "version 2 is read as Orders { new: 6, paid: 0 } and not as Orders { new: 7, paid: 1 }"
    );
    assert!(
        all[1].starts_with("version 2 is not read: making version 3 of state `orders` from version 2"),
        "{}",
        all[1]
    );
}

#[test]
fn a_version_that_reads_has_a_way() {
    assert_eq!(wrong(whole().no_way(2)), ["version 2 has a document and is said to have no way"]);
    let migrations = Migrations::<Unlimited>::new().no_way(1).written_as(2, "c0", Unlimited);
    assert_eq!(wrong(migrations), ["version 1 is to be refused, and is read as Unlimited"]);
    assert_eq!(
        wrong(Migrations::<Unlimited>::new().written_by(&Unlimited, Unlimited).no_way(1).no_way(2))[0],
        "version 1 is to be refused, and is read as Unlimited"
    );
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Unlimited;

impl State for Unlimited {
    const NAME: &'static str = "unlimited";
    const VERSION: u32 = 2;

    fn migrate(_: &OldState<'_>) -> Result<Self> {
        Ok(Self)
    }
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Careless;

impl State for Careless {
    const NAME: &'static str = "careless";
    const VERSION: u32 = 2;

    fn migrate(_: &OldState<'_>) -> Result<Self> {
        Err(Error::msg("no"))
    }
}

#[test]
fn a_refusal_has_to_name_the_version() {
    let all = wrong(Migrations::<Careless>::new().no_way(1).written_as(2, "c0", Careless));
    assert!(all[0].starts_with("version 1 has no way, and the error does not say so: "), "{}", all[0]);
    assert_eq!(all.len(), 1);
}

#[test]
fn mistakes_in_the_cases_are_told() {
    let all = wrong(
        whole()
            .written_by(&Careless, current())
            .written_as(2, "81a", current())
            .written_as(2, "xy", current())
            .written_as(4, CURRENT, current())
            .no_way(0),
    );
    assert_eq!(all[0], "`careless` is another state than `orders`");
    assert_eq!(all[1], "version 2: `81a` is not in hexadecimal");
    assert_eq!(all[2], "version 2: `xy` is not in hexadecimal");
    assert!(all.contains(&"there is no version 4: the current one is 3".to_owned()), "{all:?}");
    assert!(all.contains(&"there is no version 0: the current one is 3".to_owned()), "{all:?}");
}
