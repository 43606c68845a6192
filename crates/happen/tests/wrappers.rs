//! Handlers that wrap handlers, in virtual time: what is tried again and when, what is given up, and what is let in.
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use happen::wrap::{
    Backoff, Breaker, BreakerState, Bulkhead, breaker, bulkhead, conditional, fallback, parallel,
    parallel_settled, retry, sequence, tap, timeout, validate,
};
use happen::{
    Answer, Batch, Config, Context, Dynamic, Error, ErrorKind, Event, Node, Reply, Result, Space, Step,
    again, done, goto, millis, next, secs, with,
};
use happen_core::env::Env;
use happen_testing::Simulator;
use serde_json::json;

/// Runs a test in a space of virtual time with one node.
fn run<F, Fut, R>(seed: u64, test: F) -> R
where
    F: FnOnce(Space, Node, Log) -> Fut,
    Fut: Future<Output = R>,
{
    let sim = Simulator::new(seed);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    let node = space.node("node");
    let log = Log { env: sim.env(), times: Arc::default() };
    sim.run(test(space, node, log))
}

/// Notes the virtual milliseconds at which something happened.
#[derive(Clone)]
struct Log {
    env: Arc<dyn Env>,
    times: Arc<Mutex<Vec<u128>>>,
}

impl Log {
    fn note(&self) {
        self.times.lock().unwrap().push(self.now());
    }

    fn now(&self) -> u128 {
        self.env.monotonic().as_millis()
    }

    fn take(&self) -> Vec<u128> {
        std::mem::take(&mut self.times.lock().unwrap())
    }
}

fn ping() -> Dynamic {
    Event::new("ping", json!({ "cents": 7 }))
}

async fn ask<R: Answer>(space: &Space, node: &Node) -> Result<R> {
    space.send(node, ping()).reply::<R>().await.map(Reply::into_inner)
}

async fn failing(log: Log, _: Event, cx: Context) -> Result<u32> {
    log.note();
    Err(Error::msg(format!("boom {}", cx.attempt())))
}

/// The waits that follow from the noted times.
fn gaps(times: &[u128]) -> Vec<u128> {
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn waits_double_exactly_without_jitter_up_to_the_longest() {
    run(1, async |space, node, log| {
        let policy = Backoff::new()
            .attempts_max(7)
            .wait(millis(100))
            .factor(2)
            .wait_max(millis(1_000))
            .jitter_percent(0);
        node.on("ping", retry(policy, with(log.clone(), failing))).check().unwrap();
        space.start().await.unwrap();
        let error = ask::<u32>(&space, &node).await.unwrap_err();
        assert_eq!(gaps(&log.take()), [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(
            error.to_string(),
            "gave up after 7 attempts in 3.5s, the last one allowed: boom 7",
            "{error:?}"
        );
        assert_eq!(error.code(), "failed");
        assert_eq!(error.node_id(), Some("node"));
    });
}

#[test]
fn jitter_stays_within_its_part_of_each_wait_and_follows_the_seed() {
    let waits = |seed, percent| {
        run(seed, async |space, node, log| {
            let policy =
                Backoff::new().attempts_max(41).wait(millis(1_000)).factor(1).jitter_percent(percent);
            node.on("ping", retry(policy, with(log.clone(), failing))).check().unwrap();
            space.start().await.unwrap();
            ask::<u32>(&space, &node).await.unwrap_err();
            gaps(&log.take())
        })
    };
    for (percent, least) in [(0, 1_000), (50, 500), (100, 0)] {
        let drawn = waits(3, percent);
        assert_eq!(drawn.len(), 40);
        assert!(drawn.iter().all(|wait| (least..=1_000).contains(wait)), "{percent}: {drawn:?}");
        let spread = drawn.iter().max().unwrap() - drawn.iter().min().unwrap();
        assert!(percent == 0 && spread == 0 || spread > (1_000 - least) / 2, "{percent}: {drawn:?}");
        assert_eq!(drawn, waits(3, percent));
    }
    assert_ne!(waits(3, 50), waits(4, 50));
}

#[test]
fn no_attempt_begins_after_the_longest_time() {
    run(1, async |space, node, log| {
        let policy =
            Backoff::new().attempts_max(50).wait(millis(100)).jitter_percent(0).time_max(millis(700));
        node.on("ping", retry(policy, with(log.clone(), failing))).check().unwrap();
        space.start().await.unwrap();
        let error = ask::<u32>(&space, &node).await.unwrap_err();
        // 100 + 200 + 400 is exactly the limit; the wait of 800 would pass it and is not begun.
        assert_eq!(log.take(), [0, 100, 300, 700]);
        assert_eq!(log.now(), 700);
        assert!(error.to_string().starts_with("gave up after 4 attempts in 700ms"), "{error}");
    });
}

#[test]
fn no_attempt_is_made_for_a_caller_who_would_be_gone() {
    run(1, async |space, node, log| {
        let policy = Backoff::new().attempts_max(50).wait(millis(100)).jitter_percent(0);
        node.on("ping", retry(policy, with(log.clone(), failing))).check().unwrap();
        space.start().await.unwrap();
        let asked = space.send(&node, ping()).reply::<u32>().within(millis(300)).await;
        let error = asked.unwrap_err();
        assert!(error.to_string().contains("the caller would not wait"), "{error}");
        assert_eq!(log.take(), [0, 100]);
    });
}

#[test]
fn errors_that_another_attempt_cannot_help_end_at_once() {
    run(1, async |space, node, log| {
        let once = |log: Log, _: &Event, _: &Context| -> Result<u32> {
            log.note();
            Err(Error::new(ErrorKind::Invalid { reason: "no".into() }))
        };
        node.on("ping", retry(5, with(log.clone(), once))).check().unwrap();
        let other = space.node("other");
        let policy = Backoff::new().attempts_max(5).retry_if(|error| error.to_string().ends_with("boom 1"));
        other.on("ping", retry(policy, with(log.clone(), failing))).check().unwrap();
        space.start().await.unwrap();
        let error = ask::<u32>(&space, &node).await.unwrap_err();
        assert_eq!((error.code(), log.take().len()), ("invalid", 1));
        assert_eq!(error.to_string(), "not valid: no");
        let error = ask::<u32>(&space, &other).await.unwrap_err();
        assert_eq!(log.take().len(), 2);
        assert!(error.to_string().starts_with("gave up after 2 attempts"), "{error}");
        assert!(error.to_string().ends_with("another would not help: boom 2"), "{error}");
    });
}

#[test]
fn an_attempt_sees_its_number_and_the_error_before_and_may_succeed() {
    run(1, async |space, node, _| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler = async |seen: Arc<Mutex<Vec<String>>>, _: Event, cx: Context| -> Result<u32> {
            let before = cx.last_error().map_or("none".to_owned(), Error::to_string);
            seen.lock().unwrap().push(format!("{}: {before}", cx.attempt()));
            match cx.attempt() {
                1 => Err(Error::msg("first")),
                2 => panic!("second"),
                attempt => Ok(attempt),
            }
        };
        node.on("ping", retry(3, with(Arc::clone(&seen), handler))).check().unwrap();
        space.start().await.unwrap();
        assert_eq!(ask::<u32>(&space, &node).await.unwrap(), 3);
        assert_eq!(*seen.lock().unwrap(), ["1: none", "2: first", "3: the handler panicked: second"]);
        assert!(space.dead_letters().is_empty());
    });
}

#[test]
fn a_plain_handler_is_tried_again_too() {
    run(1, async |space, node, log| {
        let plain = |log: Log, event: &Event, cx: &Context| -> Result<u32> {
            log.note();
            assert_eq!(event.get("cents"), Some(&json!(7)));
            if cx.attempt() < 3 { Err(Error::msg("not yet")) } else { Ok(cx.attempt()) }
        };
        let policy = Backoff::new().wait(millis(10)).jitter_percent(0);
        node.on("ping", retry(policy, with(log.clone(), plain))).check().unwrap();
        space.start().await.unwrap();
        assert_eq!(ask::<u32>(&space, &node).await.unwrap(), 3);
        assert_eq!(log.take(), [0, 10, 30]);
    });
}

#[test]
fn steps_that_follow_are_not_covered() {
    run(1, async |space, node, log| {
        async fn first(_: Event, cx: Context) -> Result<Step> {
            if cx.attempt() == 1 { Err(Error::msg("once")) } else { next(second) }
        }
        async fn second(_: Event, cx: Context) -> Result<Step> {
            assert_eq!((cx.attempt(), cx.last_error().is_none()), (1, true));
            Err(Error::msg("not tried again"))
        }
        node.on("ping", retry(5, first)).check().unwrap();
        space.start().await.unwrap();
        let error = ask::<u32>(&space, &node).await.unwrap_err();
        assert_eq!(error.to_string(), "not tried again");
        assert!(log.now() <= 100);
    });
}

#[test]
fn a_timeout_ends_what_takes_too_long_and_drops_it() {
    struct Dropped(Arc<AtomicU32>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    run(1, async |space, node, log| {
        let dropped = Arc::new(AtomicU32::new(0));
        let slow = async |dropped: Arc<AtomicU32>, event: Event, cx: Context| -> u64 {
            let _dropped = Dropped(dropped);
            cx.sleep(millis(event.get("cents").unwrap().as_u64().unwrap())).await;
            1
        };
        node.on("ping", timeout(millis(1_000), with(Arc::clone(&dropped), slow))).check().unwrap();
        space.start().await.unwrap();
        let ask = async |cents: u64| {
            let before = log.now();
            let event = Event::new("ping", json!({ "cents": cents }));
            let result = space.send(&node, event).reply::<u64>().await;
            (result.map(Reply::into_inner).map_err(|error| error.code()), log.now() - before)
        };
        assert_eq!(ask(999).await, (Ok(1), 999));
        assert_eq!(ask(1_001).await, (Err("timed-out"), 1_000));
        assert_eq!(dropped.load(Ordering::SeqCst), 2);
        assert_eq!(ask(10_000).await, (Err("timed-out"), 1_000));
        assert_eq!(dropped.load(Ordering::SeqCst), 3);
        assert_eq!(space.flows_under_way(), 0);
    });
}

#[test]
fn retry_around_timeout_gives_each_attempt_its_time() {
    run(1, async |space, node, log| {
        let slow = async |log: Log, _: Event, cx: Context| -> u64 {
            log.note();
            if cx.attempt() < 3 {
                cx.sleep(secs(60)).await;
            }
            5
        };
        let policy = Backoff::new().wait(millis(100)).jitter_percent(0);
        node.on("ping", retry(policy, timeout(secs(1), with(log.clone(), slow)))).check().unwrap();
        space.start().await.unwrap();
        assert_eq!(ask::<u64>(&space, &node).await.unwrap(), 5);
        assert_eq!(log.take(), [0, 1_100, 2_300]);
    });
}

#[test]
fn a_check_comes_before_the_handler() {
    fn at_least_five(event: &Dynamic) -> std::result::Result<(), String> {
        let cents = event.get("cents").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if cents < 5 { Err(format!("{cents} is too little")) } else { Ok(()) }
    }
    run(1, async |space, node, log| {
        let handler = async |log: Log, _: Event, _: Context| {
            log.note();
        };
        node.on("ping", validate(at_least_five, with(log.clone(), handler))).check().unwrap();
        let batches = space.node("batches");
        let count = |batch: &Batch, _: &Context| batch.len() as u64;
        batches.on("ping", validate(at_least_five, count)).check().unwrap();
        space.start().await.unwrap();
        let one = |cents: u64| Event::new("ping", json!({ "cents": cents }));
        space.send(&node, one(5)).reply::<()>().await.unwrap();
        let error = space.send(&node, one(4)).reply::<()>().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Invalid { reason } if reason == "4 is too little"));
        assert_eq!(log.take().len(), 1);
        assert_eq!(*space.send(&batches, [one(5), one(6)]).reply::<u64>().await.unwrap(), 2);
        let error = space.send(&batches, [one(5), one(3)]).reply::<u64>().await.unwrap_err();
        assert_eq!(error.code(), "invalid");
    });
}

#[test]
fn an_error_is_a_branch_that_the_fallback_takes() {
    #[derive(Debug)]
    struct Declined(u32);
    impl std::fmt::Display for Declined {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "declined with {}", self.0)
        }
    }
    impl std::error::Error for Declined {}

    async fn charge(_: Event, cx: Context) -> Result<Step> {
        cx.sleep(millis(3)).await;
        Err(Declined(42))?
    }
    async fn declined(event: Event, cx: Context) -> Result<Step> {
        assert_eq!(event.get("cents"), Some(&json!(7)));
        let reason = cx.last_error().unwrap().find_cause::<Declined>().unwrap().0;
        cx.put("reason", reason)?;
        next(explain)
    }
    fn explain(_: &Event, cx: &Context) -> Result<String> {
        Ok(format!("sorry, {}", cx.get::<u32>("reason")?))
    }
    async fn worse(_: Event, _: Context) -> Result<Step> {
        Err(Error::msg("worse"))
    }
    run(1, async |space, node, _| {
        let errors = Arc::new(AtomicU32::new(0));
        let heard = Arc::clone(&errors);
        let count = move |_: &Event, _: &Context| {
            heard.fetch_add(1, Ordering::SeqCst);
        };
        space.on("*.error", count).check().unwrap();
        node.on("ping", fallback(charge, declined)).check().unwrap();
        let other = space.node("other");
        other.on("ping", fallback(charge, worse)).check().unwrap();
        space.start().await.unwrap();
        assert_eq!(ask::<String>(&space, &node).await.unwrap(), "sorry, 42");
        assert_eq!(errors.load(Ordering::SeqCst), 0, "an error that was answered is no failure");
        let error = ask::<String>(&space, &other).await.unwrap_err();
        assert_eq!(error.to_string(), "the fallback failed too, after `declined with 42`: worse");
        assert_eq!(errors.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_panic_takes_the_fallback_whether_plain_or_not() {
    fn plain(_: &Event, _: &Context) -> String {
        panic!("plain")
    }
    async fn waiting(_: Event, cx: Context) -> String {
        cx.sleep(millis(1)).await;
        panic!("waiting")
    }
    fn instead(_: &Event, cx: &Context) -> String {
        cx.last_error().unwrap().to_string()
    }
    run(1, async |space, node, _| {
        node.on("ping", fallback(plain, instead)).check().unwrap();
        let other = space.node("other");
        other.on("ping", fallback(waiting, instead)).check().unwrap();
        space.start().await.unwrap();
        assert_eq!(ask::<String>(&space, &node).await.unwrap(), "the handler panicked: plain");
        assert_eq!(ask::<String>(&space, &other).await.unwrap(), "the handler panicked: waiting");
    });
}

#[test]
fn a_look_cannot_fail_the_flow() {
    run(1, async |space, node, log| {
        let look = async |log: Log, _: Event, cx: Context| -> Result<Step> {
            cx.sleep(millis(10)).await;
            log.note();
            Err(Error::msg("not seen"))
        };
        let panics = |_: &Event, _: &Context| -> () { panic!("a look") };
        let handler = |_: &Event, _: &Context| 1u64;
        node.on("ping", tap(with(log.clone(), look), tap(panics, handler))).check().unwrap();
        space.start().await.unwrap();
        assert_eq!(ask::<u64>(&space, &node).await.unwrap(), 1);
        assert_eq!(log.take(), [10]);
        assert!(space.dead_letters().is_empty());
    });
}

#[test]
fn conditions_and_sequences_choose_what_runs() {
    fn cheap(_: &Event, _: &Context) -> String {
        "cheap".into()
    }
    async fn dear(_: Event, cx: Context) -> String {
        cx.sleep(millis(5)).await;
        "dear".into()
    }
    async fn silent(_: Event, cx: Context) -> Result<()> {
        cx.sleep(millis(1)).await;
        cx.put("seen", true)
    }
    fn after(_: &Event, cx: &Context) -> Result<String> {
        cx.take::<bool>("seen").map(|seen| format!("seen {seen}"))
    }
    run(1, async |space, node, _| {
        let is_dear = |event: &Event| event.get("cents").unwrap().as_u64() > Some(10);
        node.on("ping", conditional(is_dear, dear, cheap)).check().unwrap();
        let other = space.node("other");
        other.on("ping", sequence(silent, after)).check().unwrap();
        let third = space.node("third");
        third.on("ping", sequence(cheap, after)).check().unwrap();
        space.start().await.unwrap();
        for (cents, said) in [(11, "dear"), (10, "cheap")] {
            let event = Event::new("ping", json!({ "cents": cents }));
            assert_eq!(*space.send(&node, event).reply::<String>().await.unwrap(), said);
        }
        assert_eq!(ask::<String>(&space, &other).await.unwrap(), "seen true");
        assert_eq!(ask::<String>(&space, &third).await.unwrap(), "cheap", "a value ends the sequence");
    });
}

async fn wait_30(_: Event, cx: Context) -> u64 {
    cx.sleep(millis(30)).await;
    30
}

async fn wait_20(_: Event, cx: Context) -> String {
    cx.sleep(millis(20)).await;
    "20".into()
}

async fn fail_10(_: Event, cx: Context) -> Result<u64> {
    cx.sleep(millis(10)).await;
    Err(Error::msg("at 10"))
}

#[test]
fn parts_run_beside_each_other_and_their_values_arrive_in_order() {
    async fn sum((a, b, c, ()): (u64, String, bool, ()), _: Event, cx: Context) -> Result<String> {
        cx.put("joined", true)?;
        Ok(format!("{a} {b} {c}"))
    }
    fn is_even(_: &Event, _: &Context) -> bool {
        true
    }
    async fn nothing(_: Event, _: Context) {}
    run(1, async |space, node, log| {
        node.on("ping", parallel((wait_30, wait_20, is_even, nothing), sum)).check().unwrap();
        let many = space.node("many");
        let all = |all: Vec<u64>, _: &Event, _: &Context| all.iter().sum::<u64>();
        many.on("ping", parallel(vec![wait_30; 10], all)).check().unwrap();
        let none = space.node("none");
        none.on("ping", parallel(Vec::<happen::wrap::Wrapped>::new(), all)).check().unwrap();
        space.start().await.unwrap();
        assert_eq!(ask::<String>(&space, &node).await.unwrap(), "30 20 true");
        assert_eq!(log.now(), 30);
        assert_eq!(ask::<u64>(&space, &many).await.unwrap(), 300);
        assert_eq!(log.now(), 60);
        assert_eq!(ask::<u64>(&space, &none).await.unwrap(), 0);
    });
}

#[test]
fn the_first_failure_ends_all_parts_or_every_outcome_is_told() {
    type Got = std::result::Result<u64, Arc<Error>>;
    async fn told((a, b): (Got, Got), _: Event, _: Context) -> String {
        format!("{} {}", a.unwrap(), b.unwrap_err())
    }
    async fn never(_: (u64, u64), _: Event, _: Context) -> String {
        panic!("a part failed, so this does not run")
    }
    run(1, async |space, node, log| {
        node.on("ping", parallel((wait_30, fail_10), never)).check().unwrap();
        let settled = space.node("settled");
        settled.on("ping", parallel_settled((wait_30, fail_10), told)).check().unwrap();
        space.start().await.unwrap();
        assert_eq!(ask::<String>(&space, &node).await.unwrap_err().to_string(), "at 10");
        assert_eq!(log.now(), 10);
        assert_eq!(ask::<String>(&space, &settled).await.unwrap(), "30 at 10");
        assert_eq!(log.now(), 40);
    });
}

#[test]
fn a_part_has_no_steps_and_its_value_the_type_that_is_read() {
    async fn strays(_: Event, _: Context) -> Result<Step> {
        again()
    }
    async fn one((value,): (u64,), _: Event, _: Context) -> u64 {
        value
    }
    run(1, async |space, node, _| {
        node.on("ping", parallel((strays,), one)).check().unwrap();
        let other = space.node("other");
        other.on("ping", parallel((wait_20,), one)).check().unwrap();
        space.start().await.unwrap();
        assert_eq!(ask::<u64>(&space, &node).await.unwrap_err().code(), "misuse");
        let error = ask::<u64>(&space, &other).await.unwrap_err();
        assert_eq!(error.code(), "other-reply", "{error}");
    });
}

#[test]
fn parts_have_a_limit() {
    fn none(_: &Event, _: &Context) {}
    async fn len(all: Vec<()>, _: Event, _: Context) -> u64 {
        all.len() as u64
    }
    run(1, async |space, _, _| {
        let max = happen::limits::PARALLEL_PARTS_MAX;
        for (parts, expected) in
            [(max - 1, Ok(max as u64 - 1)), (max, Ok(max as u64)), (max + 1, Err("misuse"))]
        {
            let node = space.node(format!("node {parts}"));
            node.on("ping", parallel(vec![none; parts], len)).check().unwrap();
            space.start().await.unwrap();
            assert_eq!(ask::<u64>(&space, &node).await.map_err(|error| error.code()), expected);
        }
    });
}

/// A handler that fails as long as it is told to.
async fn moody(state: (Log, Arc<AtomicU32>), _: Event, _: Context) -> Result<u64> {
    state.0.note();
    if state.1.load(Ordering::SeqCst) > 0 { Err(Error::msg("down")) } else { Ok(1) }
}

#[test]
fn a_breaker_opens_is_probed_and_closes() {
    run(1, async |space, node, log| {
        let changes = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&changes);
        let hear = move |event: &Event, _: &Context| {
            let text = |field: &str| event.get(field).unwrap().as_str().unwrap().to_owned();
            heard.lock().unwrap().push(format!("{} {} {}", text("name"), text("from"), text("to")));
        };
        space.on("system.breaker", hear).check().unwrap();
        let down = Arc::new(AtomicU32::new(1));
        let bank = Breaker::new().named("bank").failures_max(3).open_for(secs(10));
        node.on("ping", breaker(bank.clone(), with((log.clone(), Arc::clone(&down)), moody)))
            .check()
            .unwrap();
        space.start().await.unwrap();
        let code = async || ask::<u64>(&space, &node).await.map_err(|error| error.code());

        assert_eq!((code().await, code().await), (Err("failed"), Err("failed")));
        assert_eq!(bank.state(), BreakerState::Closed, "one below the limit");
        assert_eq!(code().await, Err("failed"));
        assert_eq!(bank.state(), BreakerState::Open, "at the limit");
        log.take();
        log.env.sleep(millis(9_999)).await;
        let error = ask::<u64>(&space, &node).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the breaker `bank`, open for another 1ms, takes nothing more now; try again later"
        );
        assert_eq!(log.take(), [] as [u128; 0], "the handler was left alone");
        log.env.sleep(millis(1)).await;
        assert_eq!(code().await, Err("failed"), "the probe went through");
        assert_eq!(bank.state(), BreakerState::Open, "and opened it again");
        assert_eq!(code().await, Err("busy"));
        log.env.sleep(secs(10)).await;
        down.store(0, Ordering::SeqCst);
        assert_eq!(code().await, Ok(1));
        assert_eq!(bank.state(), BreakerState::Closed);
        assert_eq!(code().await, Ok(1));
        assert_eq!(
            *changes.lock().unwrap(),
            [
                "bank closed open",
                "bank open half-open",
                "bank half-open open",
                "bank open half-open",
                "bank half-open closed"
            ]
        );
    });
}

#[test]
fn success_ends_a_row_of_failures_but_not_a_window_of_them() {
    run(1, async |space, node, log| {
        let down = Arc::new(AtomicU32::new(0));
        let row = Breaker::new().failures_max(2);
        let window = Breaker::new().failures_max(3).within(secs(10));
        let state = (log.clone(), Arc::clone(&down));
        node.on("ping", breaker(row.clone(), with(state.clone(), moody))).check().unwrap();
        let other = space.node("other");
        other.on("ping", breaker(window.clone(), with(state, moody))).check().unwrap();
        space.start().await.unwrap();
        let step = async |failing: u32| {
            down.store(failing, Ordering::SeqCst);
            let _told = ask::<u64>(&space, &node).await;
            let _told = ask::<u64>(&space, &other).await;
        };
        for failing in [1, 0, 1, 0] {
            step(failing).await;
        }
        assert_eq!((row.state(), window.state()), (BreakerState::Closed, BreakerState::Closed));
        log.env.sleep(secs(10) + millis(1)).await;
        step(1).await;
        step(0).await;
        step(1).await;
        assert_eq!(window.state(), BreakerState::Closed, "the first two are out of the window");
        step(1).await;
        assert_eq!((row.state(), window.state()), (BreakerState::Open, BreakerState::Open));
    });
}

#[test]
fn a_half_open_breaker_lets_so_many_probes_through() {
    run(1, async |space, node, log| {
        let bank = Breaker::new().failures_max(1).open_for(secs(1)).probes_max(2);
        let slow = async |log: Log, _: Event, cx: Context| -> Result<u64> {
            if log.now() < 1_000 {
                return Err(Error::msg("down"));
            }
            cx.sleep(millis(50)).await;
            Ok(1)
        };
        node.on("ping", breaker(bank.clone(), with(log.clone(), slow))).check().unwrap();
        space.start().await.unwrap();
        ask::<u64>(&space, &node).await.unwrap_err();
        log.env.sleep(secs(1)).await;
        let asked: Vec<_> = (0..5).map(|_| spawn_ask(&space, &node)).collect();
        let mut codes = Vec::new();
        for reply in asked {
            codes.push(reply.await.unwrap());
        }
        codes.sort_unstable();
        assert_eq!(codes, ["busy", "busy", "busy", "ok", "ok"]);
        assert_eq!(bank.state(), BreakerState::Closed);
    });
}

/// Asks beside the caller, and says with which code it ended.
fn spawn_ask(space: &Space, node: &Node) -> tokio::sync::oneshot::Receiver<&'static str> {
    let (to, from) = tokio::sync::oneshot::channel();
    let (space, node) = (space.clone(), node.clone());
    space.env().clone().spawn(Box::pin(async move {
        let result = space.send(&node, ping()).reply::<u64>().await;
        let _gone = to.send(result.map_or_else(|error| error.code(), |_| "ok"));
    }));
    from
}

#[test]
fn a_dropped_probe_gives_its_place_back() {
    run(1, async |space, node, log| {
        let bank = Breaker::new().failures_max(1).open_for(secs(1));
        let slow = async |log: Log, _: Event, cx: Context| -> Result<u64> {
            match log.now() {
                0 => Err(Error::msg("down")),
                1_000 => std::future::pending().await,
                _ => {
                    cx.sleep(millis(1)).await;
                    Ok(1)
                }
            }
        };
        node.on("ping", timeout(secs(5), breaker(bank.clone(), with(log.clone(), slow)))).check().unwrap();
        space.start().await.unwrap();
        ask::<u64>(&space, &node).await.unwrap_err();
        log.env.sleep(secs(1)).await;
        assert_eq!(ask::<u64>(&space, &node).await.unwrap_err().code(), "timed-out");
        assert_eq!(bank.state(), BreakerState::HalfOpen);
        assert_eq!(ask::<u64>(&space, &node).await.unwrap(), 1);
        assert_eq!(bank.state(), BreakerState::Closed);
    });
}

#[test]
fn a_breaker_is_shared_and_forced_by_hand() {
    run(1, async |space, node, log| {
        let down = Arc::new(AtomicU32::new(0));
        let bank = Breaker::new().failures_max(1).open_for(secs(1));
        let state = (log.clone(), Arc::clone(&down));
        node.on("ping", breaker(bank.clone(), with(state.clone(), moody))).check().unwrap();
        let other = space.node("other");
        other.on("ping", breaker(bank.clone(), with(state, moody))).check().unwrap();
        space.start().await.unwrap();
        let code = async |node| ask::<u64>(&space, node).await.map_err(|error| error.code());
        bank.force_open();
        log.env.sleep(secs(100)).await;
        assert_eq!((code(&node).await, code(&other).await), (Err("busy"), Err("busy")));
        bank.force_closed();
        down.store(1, Ordering::SeqCst);
        for _ in 0..5 {
            assert_eq!(code(&node).await, Err("failed"));
        }
        assert_eq!(bank.state(), BreakerState::Closed);
        bank.release();
        assert_eq!((code(&node).await, code(&other).await), (Err("failed"), Err("busy")));
        assert_eq!(bank.state(), BreakerState::Open);
    });
}

#[test]
fn errors_of_the_caller_do_not_open_a_breaker() {
    run(1, async |space, node, _| {
        let bank = Breaker::new().failures_max(1);
        let invalid = |_: &Dynamic| Err::<(), _>("never valid");
        node.on("ping", breaker(bank.clone(), validate(invalid, wait_30))).check().unwrap();
        let strict = Breaker::new().failures_max(1).counts_if(|_| true);
        let other = space.node("other");
        other.on("ping", breaker(strict.clone(), validate(invalid, wait_30))).check().unwrap();
        space.start().await.unwrap();
        for node in [&node, &other] {
            assert_eq!(ask::<u64>(&space, node).await.unwrap_err().code(), "invalid");
        }
        assert_eq!((bank.state(), strict.state()), (BreakerState::Closed, BreakerState::Open));
    });
}

#[test]
fn a_bulkhead_has_so_many_places_and_so_many_that_wait() {
    run(7, async |space, node, log| {
        let press = Bulkhead::new(2, 3);
        let most = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
        let work = async |(log, most): (Log, Arc<(AtomicU32, AtomicU32)>), _: Event, cx: Context| -> u64 {
            let inside = most.0.fetch_add(1, Ordering::SeqCst) + 1;
            most.1.fetch_max(inside, Ordering::SeqCst);
            log.note();
            cx.sleep(millis(100)).await;
            most.0.fetch_sub(1, Ordering::SeqCst);
            1
        };
        let state = (log.clone(), Arc::clone(&most));
        node.on("ping", bulkhead(press.clone(), with(state.clone(), work))).check().unwrap();
        let other = space.node("other");
        other.on("ping", bulkhead(press.clone(), with(state, work))).check().unwrap();
        space.start().await.unwrap();
        let asked: Vec<_> =
            (0..6).map(|index| spawn_ask(&space, if index % 2 == 0 { &node } else { &other })).collect();
        log.env.sleep(millis(1)).await;
        assert_eq!((press.running(), press.waiting()), (2, 3));
        let mut codes = Vec::new();
        for reply in asked {
            codes.push(reply.await.unwrap());
        }
        codes.sort_unstable();
        assert_eq!(codes, ["busy", "ok", "ok", "ok", "ok", "ok"]);
        assert_eq!(most.1.load(Ordering::SeqCst), 2);
        assert_eq!(log.take(), [0, 0, 100, 100, 200]);
        assert_eq!((press.running(), press.waiting()), (0, 0));
    });
}

#[test]
fn one_who_leaves_the_waiting_room_makes_room() {
    run(1, async |space, node, log| {
        let press = Bulkhead::new(1, 1);
        node.on("ping", bulkhead(press.clone(), wait_30)).check().unwrap();
        space.start().await.unwrap();
        let first = spawn_ask(&space, &node);
        log.env.sleep(millis(1)).await;
        let gone = space.send(&node, ping()).reply::<u64>().within(millis(5)).await;
        assert_eq!(gone.unwrap_err().code(), "timed-out");
        log.env.sleep(millis(1)).await;
        assert_eq!((press.running(), press.waiting()), (1, 0));
        let third = spawn_ask(&space, &node);
        assert_eq!((first.await.unwrap(), third.await.unwrap()), ("ok", "ok"));
        assert_eq!(log.now(), 60);
    });
}

#[test]
fn wrappers_keep_the_names_of_the_functions_in_them() {
    async fn charge(_: Event, cx: Context) -> Result<Step> {
        if cx.attempt() == 1 { Err(Error::msg("x")) } else { goto("pay") }
    }
    fn pay(_: &Event, _: &Context) -> Result<Step> {
        done(1u64)
    }
    run(1, async |space, node, _| {
        let press = Bulkhead::new(1, 1);
        let wrapped = breaker(Breaker::new(), bulkhead(press, retry(3, timeout(secs(1), charge))));
        node.on("ping", wrapped).step(timeout(secs(1), pay)).check().unwrap();
        assert_eq!(node.handles()[0].handler, "charge");
        space.start().await.unwrap();
        let reply = space.send(&node, ping()).reply::<u64>().await.unwrap();
        let trace = space.trace(reply.event_id()).await.unwrap().to_string();
        assert!(trace.contains("node > charge > pay replied"), "{trace}");
    });
}

#[test]
fn a_cancelled_flow_ends_in_the_wait_between_attempts() {
    run(1, async |space, node, log| {
        let policy = Backoff::new().wait(secs(60)).jitter_percent(0);
        node.on("ping", retry(policy, with(log.clone(), failing))).check().unwrap();
        space.start().await.unwrap();
        let asked = spawn_ask(&space, &node);
        log.env.sleep(secs(1)).await;
        let flow = node.flows()[0];
        assert_eq!(node.cancel(flow), 1);
        assert_eq!(asked.await.unwrap(), "cancelled");
        assert_eq!((log.take().len(), log.now()), (1, 1_000));
    });
}
