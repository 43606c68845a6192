//! A bank that is down for a while, and a breaker in front of it: callers learn at once, and the bank can recover.
//!
//! You learn how handlers are wrapped in handlers (`wrap::breaker`, `wrap::fallback`), the three states of a breaker, and
//! how to watch it through its events. Run it with `cargo run --example circuit_breaker`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use happen::wrap::{Breaker, BreakerState, breaker, fallback};
use happen::{Context, Error, Event, Space, millis, with};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("charge")]
struct Charge {
    cents: u64,
}

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("charge-or-note")]
struct ChargeOrNote {
    cents: u64,
}

/// The service behind the breaker, as a program would hold a client of it.
#[derive(Default)]
struct Bank {
    is_up: AtomicBool,
    calls: AtomicU32,
}

impl Bank {
    fn charge(&self, cents: u64) -> Result<String, Error> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.is_up.load(Ordering::SeqCst) {
            Ok(format!("paid {cents}"))
        } else {
            Err(Error::msg("the bank is down"))
        }
    }
}

async fn charge(bank: Arc<Bank>, charge: Event<Charge>, _: Context) -> happen::Result<String> {
    bank.charge(charge.cents)
}

async fn charge_or_note(bank: Arc<Bank>, charge: Event<ChargeOrNote>, _: Context) -> happen::Result<String> {
    bank.charge(charge.cents)
}

/// Takes the place of a handler that failed, and knows why it failed.
fn note(charge: &Event<ChargeOrNote>, cx: &Context) -> String {
    let code = cx.last_error().map_or("nothing", Error::code);
    format!("noted {} for later ({code})", charge.cents)
}

#[tokio::main]
async fn main() -> happen::Result<()> {
    let bank = Arc::new(Bank::default());
    let changes = Arc::new(Mutex::new(Vec::new()));

    // One breaker for both handlers: they stand before the same bank.
    let switch = Breaker::new().named("bank").failures_max(2).open_for(millis(50));
    let space = Space::memory();
    let payments = space.node("payments");
    payments.on("charge", breaker(switch.clone(), with(Arc::clone(&bank), charge)));
    let guarded = breaker(switch.clone(), with(Arc::clone(&bank), charge_or_note));
    payments.on("charge-or-note", fallback(guarded, note));
    let seen = Arc::clone(&changes);
    space.on("system.breaker", move |change: &Event, _: &Context| {
        let to = change.get("to").and_then(|to| to.as_str()).unwrap_or_default().to_owned();
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(to);
    });
    space.start().await?;

    // Two failures open the breaker; the third charge does not reach the bank.
    let mut told = Vec::new();
    for cents in [10, 20, 30] {
        let answer = space.send(&payments, Charge { cents }).reply::<String>().await;
        told.push(answer.map_or_else(|error| error.code().to_owned(), |text| text.into_inner()));
    }
    assert_eq!(told, ["failed", "failed", "busy"]);
    assert_eq!((bank.calls.load(Ordering::SeqCst), switch.state()), (2, BreakerState::Open));

    // Whoever has something better to do than to fail says so with a fallback.
    let noted = space.send(&payments, ChargeOrNote { cents: 40 }).reply::<String>().await?;
    told.push(noted.into_inner());

    // The bank is up again. After its time the breaker lets one event through as a probe, and closes.
    bank.is_up.store(true, Ordering::SeqCst);
    space.env().sleep(millis(60)).await;
    told.push(space.send(&payments, Charge { cents: 50 }).reply::<String>().await?.into_inner());

    println!("{}", told.join("\n"));
    assert_eq!(told[3..], ["noted 40 for later (busy)", "paid 50"]);
    assert_eq!(switch.state(), BreakerState::Closed);
    let changes = std::mem::take(&mut *changes.lock().unwrap_or_else(PoisonError::into_inner));
    println!("the breaker became {}", changes.join(", "));
    assert_eq!(changes, ["open", "half-open", "closed"]);
    space.stop().await
}
