//! The simulator from outside: order, time, tasks, failures. Knows its public surface only.

#![expect(clippy::unwrap_used, reason = "a failed test may end by any panic")]

use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use happen_core::env::Env;
use happen_testing::{RunErrorKind, Simulator, check_seeds, limits};

const START_UNIX_MS: u64 = 1_767_225_600_000;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A queue from one task to another.
struct Channel<T> {
    state: Mutex<(VecDeque<T>, Option<Waker>)>,
}

impl<T> Default for Channel<T> {
    fn default() -> Self {
        Self { state: Mutex::new((VecDeque::new(), None)) }
    }
}

impl<T> Channel<T> {
    fn send(&self, value: T) {
        let reader = {
            let mut state = self.state.lock().unwrap();
            state.0.push_back(value);
            state.1.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    async fn receive(&self) -> T {
        poll_fn(|context| {
            let mut state = self.state.lock().unwrap();
            match state.0.pop_front() {
                Some(value) => Poll::Ready(value),
                None => {
                    state.1 = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// Gives way to the other ready tasks once.
async fn give_way() {
    let mut given = false;
    poll_fn(|context| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Four tasks that write their number three times each: the order they wrote in, and the fingerprint.
fn interleaving(seed: u64) -> (Vec<u64>, u64) {
    let sim = Simulator::new(seed);
    let env = sim.env();
    let written = Arc::new(Mutex::new(Vec::new()));
    let ended = Arc::new(Channel::default());
    for number in 0..4 {
        let (env, written, ended) = (sim.env(), Arc::clone(&written), Arc::clone(&ended));
        let task_env = Arc::clone(&env);
        env.spawn(Box::pin(async move {
            for _ in 0..3 {
                written.lock().unwrap().push(number);
                task_env.sleep(Duration::from_millis(task_env.random_u64() % 3)).await;
            }
            ended.send(());
        }));
    }
    sim.run(async {
        for _ in 0..4 {
            ended.receive().await;
        }
        env.sleep(seconds(1)).await;
    });
    let written = written.lock().unwrap().clone();
    (written, sim.fingerprint())
}

#[test]
fn a_year_of_sleep_takes_no_time() {
    let sim = Simulator::new(1);
    let env = sim.env();
    let year = seconds(365 * 24 * 3_600);
    sim.run(async {
        assert_eq!(env.unix_ms(), START_UNIX_MS);
        env.sleep(year).await;
    });
    assert_eq!(sim.now(), year);
    assert_eq!(env.monotonic(), year);
    assert_eq!(env.unix_ms(), START_UNIX_MS + 31_536_000_000);
    assert_eq!(env.clock().unix_ms(), env.unix_ms());
}

#[test]
fn timers_end_in_the_order_of_their_deadlines() {
    check_seeds(0..20, |sim| {
        let order = Arc::new(Mutex::new(Vec::new()));
        for number in [3, 1, 2] {
            let (env, order) = (sim.env(), Arc::clone(&order));
            let sleep = env.sleep(seconds(number));
            sim.env().spawn(Box::pin(async move {
                sleep.await;
                assert_eq!(env.monotonic(), seconds(number));
                assert_eq!(env.clock().unix_ms(), START_UNIX_MS + number * 1_000);
                order.lock().unwrap().push(number);
            }));
        }
        sim.run(sim.env().sleep(seconds(4)));
        assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
    });
}

#[test]
fn a_sleep_runs_from_the_call_on() {
    let sim = Simulator::new(1);
    let env = sim.env();
    sim.run(async {
        let long = env.sleep(seconds(5));
        env.sleep(seconds(3)).await;
        long.await;
        assert_eq!(env.monotonic(), seconds(5));
        let short = env.sleep(seconds(1));
        env.sleep(seconds(3)).await;
        short.await;
        assert_eq!(env.monotonic(), seconds(8));
    });
}

#[test]
fn two_tasks_talk_through_a_channel() {
    check_seeds(0..20, |sim| {
        let (questions, answers) = (Arc::new(Channel::<u64>::default()), Arc::new(Channel::<u64>::default()));
        let (from, to) = (Arc::clone(&questions), Arc::clone(&answers));
        sim.env().spawn(Box::pin(async move {
            loop {
                to.send(from.receive().await * 2);
            }
        }));
        sim.run(async {
            for number in 0..10 {
                questions.send(number);
                assert_eq!(answers.receive().await, number * 2);
            }
        });
        assert_eq!(sim.now(), Duration::ZERO);
    });
}

#[test]
fn one_seed_gives_one_order() {
    for seed in 0..20 {
        assert_eq!(interleaving(seed), interleaving(seed), "seed {seed}");
    }
}

#[test]
fn other_seeds_give_other_orders() {
    let orders: BTreeSet<_> = (0..20).map(|seed| interleaving(seed).0).collect();
    let fingerprints: BTreeSet<_> = (0..20).map(|seed| interleaving(seed).1).collect();
    assert!(orders.len() >= 15, "only {} orders among 20 seeds", orders.len());
    assert_eq!(fingerprints.len(), 20);
}

#[test]
fn ready_tasks_take_turns_in_an_order_of_the_seed() {
    let order = |seed| {
        let sim = Simulator::new(seed);
        let written = Arc::new(Mutex::new(Vec::new()));
        for number in 0..4 {
            let written = Arc::clone(&written);
            sim.env().spawn(Box::pin(async move {
                for _ in 0..3 {
                    written.lock().unwrap().push(number);
                    give_way().await;
                }
            }));
        }
        sim.run(sim.env().sleep(seconds(1)));
        let written = written.lock().unwrap().clone();
        assert_eq!(written.len(), 12);
        written
    };
    let orders: BTreeSet<_> = (0..20).map(order).collect();
    assert!(orders.len() >= 15, "only {} orders among 20 seeds", orders.len());
    assert_eq!(order(3), order(3));
}

#[test]
fn random_bytes_follow_from_the_seed() {
    let draw = |seed| {
        let sim = Simulator::new(seed);
        let mut bytes = [0; 13];
        sim.env().fill_random(&mut bytes);
        (bytes, sim.env().random_u64(), sim.fingerprint())
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1).0, draw(2).0);
    assert_ne!(draw(1).2, Simulator::new(1).fingerprint());
}

/// Writes its number when it is woken.
struct Recorder(usize, Arc<Mutex<Vec<usize>>>);

impl Wake for Recorder {
    fn wake(self: Arc<Self>) {
        self.1.lock().unwrap().push(self.0);
    }
}

#[test]
fn timers_of_one_instant_fire_in_an_order_of_the_seed() {
    let order = |seed| {
        let sim = Simulator::new(seed);
        let env = sim.env();
        let woken = Arc::new(Mutex::new(Vec::new()));
        let mut sleeps: Vec<_> = (0..4).map(|_| env.sleep(seconds(1))).collect();
        for (number, sleep) in sleeps.iter_mut().enumerate() {
            let waker = Waker::from(Arc::new(Recorder(number, Arc::clone(&woken))));
            assert!(sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        sim.run(env.sleep(seconds(2)));
        let woken = woken.lock().unwrap().clone();
        assert_eq!(woken.len(), 4);
        woken
    };
    let orders: BTreeSet<_> = (0..20).map(order).collect();
    assert!(orders.len() >= 5, "only {orders:?}");
    assert_eq!(order(3), order(3));
}

#[test]
fn a_dropped_sleep_holds_no_timer() {
    let sim = Simulator::new(1);
    let env = sim.env();
    let error = sim
        .try_run(async {
            {
                let mut long = env.sleep(seconds(3_600));
                let mut short = env.sleep(seconds(1));
                poll_fn(|context| {
                    assert!(long.as_mut().poll(context).is_pending());
                    short.as_mut().poll(context)
                })
                .await;
            }
            pending::<()>().await;
        })
        .unwrap_err();
    assert!(matches!(error.kind(), RunErrorKind::Stalled { .. }), "{error}");
    assert_eq!(error.now(), seconds(1));
}

#[test]
fn a_sleep_wakes_who_polled_it_last() {
    let sim = Simulator::new(1);
    let env = sim.env();
    let first = Arc::new(Mutex::new(Vec::new()));
    sim.run(async {
        let mut sleep = env.sleep(seconds(1));
        let waker = Waker::from(Arc::new(Recorder(0, Arc::clone(&first))));
        assert!(sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        sleep.await;
    });
    assert!(first.lock().unwrap().is_empty());
}

#[test]
fn a_sleep_of_no_time_lets_others_run() {
    check_seeds(0..20, |sim| {
        let env = sim.env();
        let ran = Arc::new(AtomicUsize::new(0));
        let in_task = Arc::clone(&ran);
        env.spawn(Box::pin(async move {
            in_task.store(1, Ordering::Relaxed);
        }));
        sim.run(async {
            while ran.load(Ordering::Relaxed) == 0 {
                env.sleep(Duration::ZERO).await;
            }
        });
        assert_eq!(sim.now(), Duration::ZERO);
    });
}

#[test]
fn a_sleep_beyond_the_end_of_time_never_ends() {
    let slept = |time| {
        let sim = Simulator::new(1);
        sim.try_run(sim.env().sleep(time)).is_ok()
    };
    let step = Duration::from_nanos(1);
    assert!(slept(limits::VIRTUAL_TIME_MAX - step));
    assert!(slept(limits::VIRTUAL_TIME_MAX));
    assert!(!slept(limits::VIRTUAL_TIME_MAX + step));
    assert!(!slept(Duration::MAX));
}

#[test]
fn a_stalled_run_says_who_waits() {
    let sim = Simulator::new(42);
    let env = sim.env();
    for _ in 0..2 {
        env.spawn(Box::pin(pending()));
    }
    env.spawn(Box::pin(async {}));
    let error = sim
        .try_run(async {
            env.sleep(seconds(3)).await;
            pending::<()>().await;
        })
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "seed 42 at 3s: stalled: nothing is ready and no timer is left; the root waits, and 2 tasks beside it: 0, 1"
    );
    assert_eq!(error.seed(), 42);
    let RunErrorKind::Stalled { waiting, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(*waiting, [0, 1]);
    let alone = Simulator::new(1).try_run(pending::<()>()).unwrap_err();
    assert!(alone.to_string().ends_with("the root waits, and no other task is left"), "{alone}");
}

#[test]
fn a_long_list_of_waiting_tasks_is_cut() {
    let waiting = |len: usize| {
        let sim = Simulator::new(1);
        for _ in 0..len {
            sim.env().spawn(Box::pin(pending()));
        }
        sim.try_run(pending::<()>()).unwrap_err().to_string()
    };
    assert!(
        waiting(16).ends_with("16 tasks beside it: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15")
    );
    assert!(waiting(17).ends_with(", 14, 15, …"));
}

#[test]
#[should_panic(expected = "seed 42 at 0ns: stalled")]
fn run_panics_when_it_stalls() {
    Simulator::new(42).run(pending::<()>());
}

#[test]
fn a_livelock_ends_at_the_step_limit() {
    let sim = Simulator::new(9).steps_max(1_000);
    sim.env().spawn(Box::pin(async {
        loop {
            give_way().await;
        }
    }));
    let error = sim.try_run(pending::<()>()).unwrap_err();
    assert_eq!(error.to_string(), "seed 9 at 0ns: livelock: the root has not ended after 1000 steps");
}

#[test]
fn steps_are_counted_exactly() {
    // Giving way nine times takes ten polls.
    let run = |steps_max| {
        let sim = Simulator::new(1).steps_max(steps_max);
        let root = async {
            for _ in 0..9 {
                give_way().await;
            }
        };
        sim.try_run(root).is_ok() && sim.try_run(async {}).is_ok()
    };
    assert!(!run(9));
    assert!(run(10));
    assert!(run(11));
}

#[test]
fn tasks_are_counted_exactly() {
    let spawn = |len: usize| {
        let sim = Simulator::new(1).tasks_max(10);
        let env = sim.env();
        sim.try_run(async {
            for _ in 0..len {
                env.spawn(Box::pin(pending()));
            }
        })
    };
    assert!(spawn(9).is_ok());
    assert!(spawn(10).is_ok());
    let error = spawn(11).unwrap_err();
    assert_eq!(error.to_string(), "seed 1 at 0ns: too many tasks: there may be 10 at once");
}

#[test]
fn a_task_that_ended_makes_room() {
    let sim = Simulator::new(1).tasks_max(1);
    let env = sim.env();
    sim.run(async {
        for _ in 0..10 {
            env.spawn(Box::pin(async {}));
            env.sleep(seconds(1)).await;
        }
    });
}

#[test]
fn tasks_spawn_tasks() {
    check_seeds(0..20, |sim| {
        let env = sim.env();
        let ended = Arc::new(Channel::default());
        let inner_ended = Arc::clone(&ended);
        env.spawn({
            let env = Arc::clone(&env);
            Box::pin(async move {
                env.sleep(seconds(1)).await;
                let inner_env = Arc::clone(&env);
                env.spawn(Box::pin(async move {
                    inner_env.sleep(seconds(1)).await;
                    inner_ended.send(inner_env.monotonic());
                }));
            })
        });
        assert_eq!(sim.run(ended.receive()), seconds(2));
    });
}

/// Spawns a task when it is dropped.
struct SpawnOnDrop(Arc<dyn Env>, Arc<Channel<&'static str>>);

impl Drop for SpawnOnDrop {
    fn drop(&mut self) {
        let channel = Arc::clone(&self.1);
        self.0.spawn(Box::pin(async move { channel.send("spawned while dropped") }));
    }
}

#[test]
fn destructors_spawn_tasks() {
    let sim = Simulator::new(1);
    let channel = Arc::new(Channel::default());
    let guard = SpawnOnDrop(sim.env(), Arc::clone(&channel));
    sim.env().spawn(Box::pin(async move {
        let _guard = guard;
        give_way().await;
    }));
    assert_eq!(sim.run(channel.receive()), "spawned while dropped");

    // The same when it is the simulator that drops the task; what is spawned then is dropped at once.
    let guard = SpawnOnDrop(sim.env(), Arc::clone(&channel));
    sim.env().spawn(Box::pin(async move {
        let _guard = guard;
        pending::<()>().await;
    }));
    let env = sim.env();
    drop(sim);
    assert_eq!(Arc::strong_count(&channel), 1);
    env.spawn(Box::pin(async move { channel.send("never") }));
}

#[test]
fn dropping_a_simulator_drops_its_tasks() {
    let held = Arc::new(());
    let sim = Simulator::new(1);
    for _ in 0..3 {
        let (env, held) = (sim.env(), Arc::clone(&held));
        sim.env().spawn(Box::pin(async move {
            env.sleep(seconds(100)).await;
            drop(held);
        }));
    }
    sim.run(sim.env().sleep(seconds(1)));
    assert_eq!(Arc::strong_count(&held), 4);
    drop(sim);
    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
fn tasks_go_on_in_the_next_run() {
    let sim = Simulator::new(1);
    let env = sim.env();
    let channel = Arc::new(Channel::default());
    env.spawn({
        let (env, channel) = (sim.env(), Arc::clone(&channel));
        Box::pin(async move {
            env.sleep(seconds(10)).await;
            channel.send(env.monotonic());
        })
    });
    sim.run(env.sleep(seconds(4)));
    assert_eq!(sim.run(channel.receive()), seconds(10));
}

#[test]
fn blocking_work_runs_once_and_later() {
    check_seeds(0..20, |sim| {
        let env = sim.env();
        let channel = Arc::new(Channel::default());
        let from_work = Arc::clone(&channel);
        sim.run(async {
            let count = Arc::new(AtomicUsize::new(0));
            let in_work = Arc::clone(&count);
            env.spawn_blocking(Box::new(move || {
                in_work.fetch_add(1, Ordering::Relaxed);
                from_work.send(std::thread::current().id());
            }));
            assert_eq!(count.load(Ordering::Relaxed), 0);
            assert_eq!(channel.receive().await, std::thread::current().id());
            assert_eq!(count.load(Ordering::Relaxed), 1);
        });
    });
}

#[test]
fn the_root_may_borrow_and_stay_on_its_thread() {
    let sim = Simulator::new(1);
    let text = String::from("borrowed");
    let local = std::rc::Rc::new(std::cell::Cell::new(0));
    let length = sim.run(async {
        local.set(1);
        give_way().await;
        text.len() + local.get()
    });
    assert_eq!(length, 9);
}

#[test]
fn the_wall_clock_jumps_and_monotonic_time_does_not() {
    let sim = Simulator::new(1);
    let env = sim.env();
    sim.run(async {
        env.sleep(seconds(10)).await;
        sim.jump_clock_back(seconds(60));
        assert_eq!(env.unix_ms(), START_UNIX_MS - 50_000);
        assert_eq!(env.clock().unix_ms(), START_UNIX_MS - 50_000);
        assert_eq!(env.monotonic(), seconds(10));
        env.sleep(seconds(1)).await;
        assert_eq!(env.unix_ms(), START_UNIX_MS - 49_000);
        assert_eq!(env.monotonic(), seconds(11));
        sim.jump_clock_forward(seconds(3_600));
        assert_eq!(env.coarse_unix_ms(), START_UNIX_MS + 3_551_000);
        sim.jump_clock_back(Duration::MAX);
        assert_eq!(env.unix_ms(), 1);
        assert_eq!(env.monotonic(), seconds(11));
    });
}

#[test]
#[should_panic(expected = "seed 42 at 2s: task 0 panicked: the till is short by 3")]
fn a_panic_in_a_task_ends_the_run() {
    let sim = Simulator::new(42);
    let env = sim.env();
    sim.env().spawn(Box::pin(async move {
        env.sleep(seconds(2)).await;
        panic!("the till is short by {}", 3);
    }));
    sim.run(pending::<()>());
}

#[test]
fn a_panic_leaves_the_simulator_usable() {
    let sim = Simulator::new(42);
    sim.env().spawn(Box::pin(async { panic!("once") }));
    let error = sim.try_run(pending::<()>()).unwrap_err();
    assert_eq!(error.to_string(), "seed 42 at 0ns: task 0 panicked: once");
    let error = sim.try_run(async { panic!("in the root") }).unwrap_err();
    assert_eq!(error.to_string(), "seed 42 at 0ns: the root panicked: in the root");
    sim.run(sim.env().sleep(seconds(1)));
    assert_eq!(sim.now(), seconds(1));
}

struct PanicOnDrop;

impl Drop for PanicOnDrop {
    fn drop(&mut self) {
        panic!("a broken destructor");
    }
}

#[test]
fn a_panic_in_the_destructor_of_a_task_ends_the_run() {
    let sim = Simulator::new(5);
    sim.env().spawn(Box::pin(async {
        let _guard = PanicOnDrop;
    }));
    let error = sim.try_run(pending::<()>()).unwrap_err();
    assert!(matches!(error.kind(), RunErrorKind::TaskPanicked { .. }), "{error}");
}

#[test]
#[should_panic(expected = "seed 5 at 0ns: stalled")]
fn a_broken_destructor_does_not_hide_the_failure() {
    let sim = Simulator::new(5);
    sim.env().spawn(Box::pin(async {
        let _guard = PanicOnDrop;
        pending::<()>().await;
    }));
    sim.run(pending::<()>());
}

#[test]
#[should_panic(expected = "a broken destructor")]
fn a_broken_destructor_fails_the_test_that_passed() {
    let sim = Simulator::new(5);
    sim.env().spawn(Box::pin(async {
        let _guard = PanicOnDrop;
        pending::<()>().await;
    }));
    sim.run(sim.env().sleep(seconds(1)));
}

#[test]
#[should_panic(expected = "this simulator is running already")]
fn a_run_inside_a_run_is_refused() {
    let sim = Simulator::new(1);
    sim.run(async { sim.run(async {}) });
}

#[test]
fn a_real_thread_may_wake_the_root() {
    let sim = Simulator::new(1);
    let env = sim.env();
    let waker = Mutex::new(None);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut woken = 0;
            while woken < 100 {
                let waker: Option<Waker> = waker.lock().unwrap().clone();
                match waker {
                    Some(waker) => {
                        waker.wake();
                        woken += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
        sim.run(async {
            poll_fn(|context| {
                *waker.lock().unwrap() = Some(context.waker().clone());
                Poll::Ready(())
            })
            .await;
            for _ in 0..200 {
                env.sleep(Duration::from_millis(1)).await;
            }
        });
    });
    assert_eq!(sim.now(), Duration::from_millis(200));
    // The root that the waker belongs to is gone, and the next one is another.
    waker.lock().unwrap().take().unwrap().wake();
    sim.run(env.sleep(seconds(1)));
}

#[test]
fn a_run_does_not_wait_for_real_threads() {
    let sim = Simulator::new(1);
    let (channel, gate) = (Channel::default(), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            gate.wait();
            channel.send("too late");
        });
        let error = sim.try_run(channel.receive()).unwrap_err();
        assert!(matches!(error.kind(), RunErrorKind::Stalled { .. }), "{error}");
        gate.wait();
    });
    assert_eq!(sim.run(channel.receive()), "too late");
}

#[test]
fn a_waker_outlives_its_task_and_its_simulator() {
    let sim = Simulator::new(1);
    let kept = Arc::new(Mutex::new(None));
    let in_task = Arc::clone(&kept);
    sim.env().spawn(Box::pin(poll_fn(move |context| {
        *in_task.lock().unwrap() = Some(context.waker().clone());
        // Ready and woken at once: the wake finds no task any more.
        context.waker().wake_by_ref();
        Poll::Ready(())
    })));
    sim.run(sim.env().sleep(seconds(1)));
    let waker: Waker = kept.lock().unwrap().take().unwrap();
    waker.wake_by_ref();
    sim.run(async {});
    drop(sim);
    waker.wake();
}

#[test]
fn a_task_woken_twice_is_polled_once() {
    let sim = Simulator::new(1);
    let polls = Arc::new(AtomicUsize::new(0));
    let in_task = Arc::clone(&polls);
    sim.env().spawn(Box::pin(poll_fn(move |context| {
        if in_task.fetch_add(1, Ordering::Relaxed) == 0 {
            context.waker().wake_by_ref();
            context.waker().wake_by_ref();
        }
        Poll::<()>::Pending
    })));
    sim.run(sim.env().sleep(seconds(1)));
    assert_eq!(polls.load(Ordering::Relaxed), 2);
}

#[test]
fn two_simulators_do_not_see_each_other() {
    let (one, other) = (Simulator::new(1), Simulator::new(1));
    one.run(one.env().sleep(seconds(1)));
    assert_eq!(other.now(), Duration::ZERO);
    assert_eq!(other.env().unix_ms(), START_UNIX_MS);
    // A timer of the other simulator does not move here.
    let foreign: Pin<Box<dyn Future<Output = ()>>> = other.env().sleep(seconds(5));
    assert!(one.try_run(pin!(foreign)).is_err());
}

#[test]
#[should_panic(expected = "stalled: nothing is ready")]
fn check_seeds_fails_when_a_run_does() {
    check_seeds(0..10, |sim| sim.run(pending::<()>()));
}

#[test]
#[should_panic(expected = "repeat it with: HAPPEN_SEED=")]
fn check_seeds_says_how_to_repeat_an_error() {
    check_seeds(0..10, |_sim| Err("wrong"));
}
