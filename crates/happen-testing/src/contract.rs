//! The contract suites: what every adapter of a seam has to do, as tests that are written out in the adapter's own
//! crate. The macros name the crate `happen` where they are used, so this crate need not depend on it.

/// Writes out the contract of a [`Link`](happen_core::link::Link) as tests of the module it is used in.
///
/// The first argument names the module of the tests. The second says how they run: `simulator` in virtual time, each
/// under several seeds, or `tokio` on threads. The third is an `async fn(Arc<dyn Env>, usize) -> Vec<Arc<dyn Link>>`
/// that makes so many links joined with each other, not attached yet; they join in the order of the list. The crate
/// that uses it depends on `happen`, `happen-core` and, for `tokio`, on that with its feature `rt-multi-thread`.
///
/// A fourth argument, a `fn(&Space)`, is called with each space before it starts: to give all of them an identity, say,
/// under which the contract holds too.
#[macro_export]
macro_rules! link_contract {
    ($name:ident, $mode:ident, $links:path) => {
        $crate::link_contract!($name, $mode, $links, drop);
    };
    ($name:ident, $mode:ident, $links:path, $prepared:path) => {
        mod $name {
            $crate::__link_cases!($links, $prepared);
            $crate::__link_tests! { $mode;
                a_send_says_that_it_was_taken
                a_reply_comes_back_by_the_name_of_its_type
                failures_are_built_again
                an_unknown_node_is_told
                order_holds_for_each_sender
                a_broadcast_reaches_every_listener_once
                a_stream_goes_at_the_pace_of_its_reader
                a_reader_that_leaves_ends_the_flow
                a_batch_arrives_whole
                deadlines_travel
                presence_tells_who_is_there
                what_is_too_large_is_refused
                bytes_that_are_no_event_disturb_nothing
                a_flipped_bit_is_never_believed
                waiting_ends_when_a_link_closes
                who_leaves_says_so
                of_equal_names_the_nearest_is_found
                a_frame_reaches_the_member_that_is_named
                instances_share_their_work
                causality_goes_on
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __link_tests {
    (simulator; $($case:ident)+) => {$(
        #[test]
        fn $case() {
            $crate::check_seeds(0..SEEDS, |sim| sim.run(cases::$case(sim.env())));
        }
    )+
        /// Orders of tasks that each case is run in.
        const SEEDS: u64 = 10;
    };
    (tokio; $($case:ident)+) => {$(
        #[test]
        fn $case() {
            let runtime = ::tokio::runtime::Builder::new_multi_thread();
            let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let env = ::std::sync::Arc::new(::happen::env::RealEnv::new());
                ::tokio::task::LocalSet::new().run_until(cases::$case(env)).await;
            });
        }
    )+};
}

#[doc(hidden)]
#[macro_export]
macro_rules! __link_cases {
    ($links:path, $prepared:path) => {
        mod cases {
            use ::std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
            use ::std::sync::{Arc, Mutex};
            use ::std::time::Duration;

            use ::happen::{
                Batch, Config, Context, Dynamic, Envelope, Error, ErrorKind, Event, Link, Routing, Space, Step,
                User, again, done, goto, with,
            };
            use ::happen_core::codec::{Outcome, WireEvent, WireReply, WireSeal, open_summed};
            use ::happen_core::hash::hash_event;
            use ::happen_core::env::Env;
            use $crate::link::{Probe, next_reply, until};

            use super::super::*;

            type Shared<T> = Arc<Mutex<T>>;

            async fn links(env: &Arc<dyn Env>, count: usize) -> Vec<Arc<dyn Link>> {
                let links = $links(Arc::clone(env), count).await;
                assert_eq!(links.len(), count);
                links
            }

            fn linked(env: &Arc<dyn Env>, config: Config, link: &Arc<dyn Link>) -> Space {
                let space = Space::in_env(config, Arc::clone(env)).unwrap();
                space.join(Arc::clone(link)).unwrap();
                $prepared(&space);
                space
            }

            /// A frame without what is in front of it.
            fn inside(frame: &[u8]) -> &[u8] {
                let (_, inside) = WireSeal::open(frame).unwrap();
                open_summed(inside).unwrap().unwrap_or(inside)
            }

            async fn spaces(env: &Arc<dyn Env>, count: usize) -> Vec<Space> {
                let links = links(env, count).await;
                links.iter().map(|link| linked(env, Config::default(), link)).collect()
            }

            /// Starts all in order and waits until the first knows these nodes.
            async fn start(env: &Arc<dyn Env>, spaces: &[&Space], known: &[&str]) {
                for space in spaces {
                    space.start().await.unwrap();
                }
                knows(env, spaces[0], known).await;
            }

            async fn knows(env: &Arc<dyn Env>, space: &Space, known: &[&str]) {
                until(env, "the nodes are known", || {
                    let nodes = space.remote_nodes();
                    known.iter().all(|id| nodes.iter().any(|node| node.id == *id))
                })
                .await;
            }

            fn named(event_type: &str, text: &str) -> Dynamic {
                Dynamic::new(event_type, text.into())
            }

            /// Sets its flag when it is dropped.
            struct Ends(Arc<AtomicBool>);

            impl Drop for Ends {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::SeqCst);
                }
            }

            async fn never(ended: Arc<AtomicBool>, _: Event<u64>, _: Context) -> u64 {
                let _ends = Ends(ended);
                ::std::future::pending().await
            }

            pub(super) async fn a_send_says_that_it_was_taken(env: Arc<dyn Env>) {
                let [a, b] = &spaces(&env, 2).await[..] else { panic!() };
                let seen = Arc::new(AtomicU64::new(0));
                let sum = Arc::clone(&seen);
                b.node("b").on("u64", move |number: &Event<u64>, _: &Context| {
                    sum.fetch_add(*number.payload(), Ordering::SeqCst);
                });
                b.node("slow").on("u64", async |_: Event<u64>, cx: Context| {
                    cx.sleep(Duration::from_secs(3_600)).await;
                });
                assert_eq!(a.send("b", 1u64).await.unwrap_err().code(), "not-started");
                start(&env, &[a, b], &["b", "slow"]).await;
                let sent = a.send("b", 1u64).await.unwrap();
                assert_eq!(seen.load(Ordering::SeqCst), 1);
                assert!(b.trace(sent.event_id()).await.is_ok());
                a.send("b", 10u64).forget();
                until(&env, "the second came", || seen.load(Ordering::SeqCst) == 11).await;
                // That it was taken is told at once, whatever the handler does.
                a.send("slow", 1u64).await.unwrap();
                let both = a.send(["b", "slow"], 100u64).await.unwrap();
                assert_ne!(both.event_id(), sent.event_id());
                assert_eq!(seen.load(Ordering::SeqCst), 111);
            }

            pub(super) async fn a_reply_comes_back_by_the_name_of_its_type(env: Arc<dyn Env>) {
                let [a, b] = &spaces(&env, 2).await[..] else { panic!() };
                let node = b.node("b");
                node.on("u64", async |number: Event<u64>, cx: Context| {
                    assert!(cx.expects_reply());
                    cx.sleep(Duration::from_millis(1)).await;
                    number.payload() + 1
                });
                node.on("nothing", |_: &Event, _: &Context| {});
                node.on("maybe", |event: &Event, _: &Context| -> happen::Result<Step> {
                    let text = event.payload().json()?.as_str().unwrap_or_default().to_owned();
                    if text.is_empty() { done(false) } else { done(text) }
                });
                a.node("own").on("u64", |number: &Event<u64>, _: &Context| *number.payload());
                start(&env, &[a, b], &["b"]).await;
                assert_eq!(*a.send("b", 7u64).reply::<u64>().await.unwrap(), 8);
                a.send("b", named("nothing", "")).reply::<()>().await.unwrap();
                let either = a.send("b", named("maybe", "yes")).reply::<Result<bool, String>>().await.unwrap();
                assert_eq!(either.into_inner(), Err("yes".to_owned()));
                let either = a.send("b", named("maybe", "")).reply::<Result<bool, String>>().await.unwrap();
                assert_eq!(either.into_inner(), Ok(false));
                let mut other = a.send("b", 7u64).reply::<String>().await.unwrap_err();
                assert_eq!(other.code(), "other-reply");
                assert_eq!(other.take_value().unwrap().take::<u64>().unwrap(), 8);
                let replies = a.send(["own", "b", "nobody"], 7u64).replies::<u64>().await;
                assert_eq!(**replies["own"].as_ref().unwrap(), 7);
                assert_eq!(**replies["b"].as_ref().unwrap(), 8);
                assert_eq!(replies["nobody"].as_ref().unwrap_err().code(), "no-such-node");
                let told = Arc::new(AtomicU64::new(0));
                let tell = Arc::clone(&told);
                a.send("b", 41u64).reply_with::<u64>(move |reply| {
                    tell.store(*reply.unwrap(), Ordering::SeqCst);
                });
                until(&env, "the callback was called", || told.load(Ordering::SeqCst) == 42).await;
            }

            pub(super) async fn failures_are_built_again(env: Arc<dyn Env>) {
                let [a, b] = &spaces(&env, 2).await[..] else { panic!() };
                let node = b.node("b").steps_max(3);
                node.on("u64", |number: &Event<u64>, _: &Context| -> happen::Result<Step> {
                    match number.payload() {
                        0 => Err(Error::from("x".parse::<u8>().unwrap_err()).context("reading")),
                        1 => panic!("no ones"),
                        2 => goto("nowhere"),
                        3 => again(),
                        4 => Err(Error::new(ErrorKind::Invalid { reason: "four".into() })),
                        _ => done(true),
                    }
                });
                node.on("string", |_: &Event<u64>, _: &Context| {});
                let _closed = b.node("closed").accept_from(["friend"]).on("u64", |_: &Event<u64>, _: &Context| {});
                let heard = Arc::new(AtomicU64::new(0));
                let count = Arc::clone(&heard);
                a.node("watch").on("u64.error", move |_: &Event<happen::Failure>, _: &Context| {
                    count.fetch_add(1, Ordering::SeqCst);
                });
                start(&env, &[a, b], &["b", "closed"]).await;
                knows(&env, b, &["watch"]).await;
                for (number, code) in
                    [(0u64, "failed"), (1, "panicked"), (2, "unknown-step"), (3, "runaway"), (4, "invalid")]
                {
                    let error = a.send("b", number).reply::<bool>().await.unwrap_err();
                    assert_eq!(error.code(), code, "{error:?}");
                    assert_eq!(error.node_id(), Some("b"));
                    let event = error.event_id().unwrap();
                    assert!(a.trace(event).await.is_ok() && b.trace(event).await.is_ok());
                    match error.kind() {
                        ErrorKind::Failed => {
                            assert_eq!(error.chain(), ["reading: invalid digit found in string"]);
                        }
                        ErrorKind::Panicked { message } => assert_eq!(message, "no ones"),
                        ErrorKind::UnknownStep { step, .. } => assert_eq!(step, "nowhere"),
                        ErrorKind::Runaway { limit, max, .. } => assert_eq!((*limit, *max), ("steps_max", 3)),
                        ErrorKind::Invalid { reason } => assert_eq!(reason, "four"),
                        other => panic!("{other:?}"),
                    }
                }
                until(&env, "the error events came", || heard.load(Ordering::SeqCst) == 5).await;
                let refused = a.send("closed", 1u64).await.unwrap_err();
                assert!(matches!(refused.kind(), ErrorKind::Refused { node, .. } if node == "closed"));
                let error = a.send("b", true).await.unwrap_err();
                let expected = ErrorKind::NoHandler { node: "b".into(), event_type: "bool".into() };
                assert_eq!(error.kind(), &expected);
                assert!(error.event_id().is_some());
                let error = a.send("b", "text".to_owned()).reply::<()>().await.unwrap_err();
                assert_eq!(error.code(), "wrong-payload", "{error:?}");
                // What nobody waits for is kept where it failed.
                a.send("b", true).forget();
                until(&env, "the letter is there", || b.dead_letters().len() == 1).await;
                assert_eq!(b.dead_letters()[0].code, "no-handler");
            }

            pub(super) async fn an_unknown_node_is_told(env: Arc<dyn Env>) {
                let [a, b] = &spaces(&env, 2).await[..] else { panic!() };
                b.on("u64", |_: &Event<u64>, _: &Context| {});
                start(&env, &[a, b], &[]).await;
                let expected = ErrorKind::NoSuchNode { node: "nobody".into() };
                let error = a.send("nobody", 1u64).await.unwrap_err();
                assert_eq!(error.kind(), &expected);
                assert!(error.event_id().is_some());
                assert_eq!(a.send("nobody", 1u64).reply::<u64>().await.unwrap_err().kind(), &expected);
                let first = a.send("nobody", 1u64).stream::<u64>().next().await.unwrap();
                assert_eq!(first.unwrap_err().kind(), &expected);
                // The runtime's own node listens and takes nothing from elsewhere.
                assert_eq!(a.send("$space", 1u64).await.unwrap_err().code(), "no-such-node");
                a.send("nobody", 1u64).forget();
                until(&env, "there is a letter", || !a.dead_letters().is_empty()).await;
                let letter = a.dead_letters().remove(0);
                assert_eq!((letter.code, &*letter.node), ("no-such-node", "nobody"));
                // Once the node is there, the letter can be delivered.
                let came = Arc::new(AtomicU64::new(0));
                let count = Arc::clone(&came);
                b.node("nobody").on("u64", move |number: &Event<u64>, _: &Context| {
                    count.fetch_add(*number.payload(), Ordering::SeqCst);
                });
                knows(&env, a, &["nobody"]).await;
                a.redrive(letter.event_id()).await.unwrap();
                assert_eq!(came.load(Ordering::SeqCst), 1);
                assert!(a.dead_letters().is_empty());
            }

            pub(super) async fn order_holds_for_each_sender(env: Arc<dyn Env>) {
                const EVENTS: u64 = 1_000;
                let [a, b, c] = &spaces(&env, 3).await[..] else { panic!() };
                let seen: Shared<Vec<(String, u64)>> = Shared::default();
                let push = Arc::clone(&seen);
                b.node("b").on("u64", move |number: &Event<u64>, cx: &Context| {
                    let sender = cx.sender().unwrap().to_string();
                    push.lock().unwrap().push((sender, *number.payload()));
                });
                start(&env, &[a, c, b], &["b"]).await;
                knows(&env, c, &["b"]).await;
                let mut senders = Vec::new();
                for (index, space) in [a, a, c].into_iter().enumerate() {
                    let name = format!("sender-{index}");
                    let node = space.node(&name);
                    senders.push(name);
                    env.spawn(Box::pin(async move {
                        for number in 0..EVENTS {
                            // All ways of sending share one order; waiting now and then lets the others in between.
                            match number % 10 {
                                7 => drop(node.send("b", number).await.unwrap()),
                                8 => drop(node.send("b", number).reply::<()>().await.unwrap()),
                                _ => node.send("b", number).forget(),
                            }
                        }
                    }));
                }
                let all = senders.len() * EVENTS as usize;
                until(&env, "all came", || seen.lock().unwrap().len() == all).await;
                let seen = seen.lock().unwrap();
                for sender in &senders {
                    let own: Vec<_> =
                        seen.iter().filter(|(from, _)| from == sender).map(|(_, number)| *number).collect();
                    assert_eq!(own, (0..EVENTS).collect::<Vec<_>>(), "{sender}");
                }
            }

            pub(super) async fn a_broadcast_reaches_every_listener_once(env: Arc<dyn Env>) {
                let spaces = spaces(&env, 3).await;
                let [a, b, c] = &spaces[..] else { panic!() };
                let seen: Shared<Vec<String>> = Shared::default();
                for (index, space) in spaces.iter().enumerate() {
                    let push = Arc::clone(&seen);
                    space.node(format!("ear-{index}")).on("note.*", move |note: &Event, cx: &Context| {
                        let line = format!("{} at {}", note.event_type(), cx.node_id());
                        push.lock().unwrap().push(line);
                    });
                }
                // A listener that answers a broadcast with another one: each goes once around, never back.
                c.node("echo").on("note.first", |_: &Event, cx: &Context| {
                    cx.broadcast(named("note.second", "")).map(drop)
                });
                let system = Arc::new(AtomicU64::new(0));
                let count = Arc::clone(&system);
                b.on("node.started", move |_: &Event, _: &Context| {
                    count.fetch_add(1, Ordering::SeqCst);
                });
                start(&env, &[a, b, c], &["ear-1", "ear-2", "echo"]).await;
                knows(&env, c, &["ear-0", "ear-1"]).await;
                let first = a.broadcast(named("note.first", "")).unwrap();
                until(&env, "all heard", || seen.lock().unwrap().len() >= 6).await;
                // Whatever came too often would come before this.
                a.send("echo", named("note.first", "")).await.unwrap();
                until(&env, "all heard again", || seen.lock().unwrap().len() >= 9).await;
                let mut seen = seen.lock().unwrap().clone();
                seen.sort();
                let mut expected: Vec<_> =
                    (0..3).flat_map(|ear| [format!("note.first at ear-{ear}"); 1]).collect();
                expected.extend((0..3).flat_map(|ear| [0; 2].map(|_| format!("note.second at ear-{ear}"))));
                assert_eq!(seen, expected);
                assert!(b.trace(first).await.unwrap().lines().iter().any(|line| line.event == first));
                // What happens to nodes is told in their process alone.
                a.node("new");
                b.node("new-too");
                knows(&env, b, &["new"]).await;
                until(&env, "the own node was told", || system.load(Ordering::SeqCst) == 1).await;
                // Nobody beyond listens: nothing is sent, and nothing is wrong with that.
                a.broadcast(named("silence", "")).unwrap();
                assert_eq!(a.problems().len(), 0);
            }

            pub(super) async fn a_stream_goes_at_the_pace_of_its_reader(env: Arc<dyn Env>) {
                const ITEMS: u64 = 1_000;
                let [a, b] = &spaces(&env, 2).await[..] else { panic!() };
                let emitted = Arc::new(AtomicU64::new(0));
                let count = Arc::clone(&emitted);
                let node = b.node("b");
                node.on(
                    "u64",
                    with(count, async |count: Arc<AtomicU64>, first: Event<u64>, cx: Context| -> happen::Result<Step> {
                        for item in *first.payload()..ITEMS {
                            cx.emit(item).await?;
                            count.fetch_add(1, Ordering::SeqCst);
                        }
                        done("all".to_owned())
                    }),
                );
                node.on("bool", async |_: Event<bool>, cx: Context| -> happen::Result<Step> {
                    cx.emit(1u64).await?;
                    Err(Error::msg("no more"))
                });
                start(&env, &[a, b], &["b"]).await;
                let mut items = a.send("b", 0u64).stream::<u64>();
                for expected in 0..3 {
                    assert_eq!(items.next().await.unwrap().unwrap(), expected);
                }
                // However long the reader does not read, the writer stays within a window ahead of it.
                for _ in 0..100 {
                    env.sleep(Duration::from_millis(1)).await;
                }
                assert!(emitted.load(Ordering::SeqCst) < 200, "{emitted:?} items without a reader");
                for expected in 3..ITEMS {
                    assert_eq!(items.next().await.unwrap().unwrap(), expected);
                }
                assert!(items.next().await.is_none());
                assert_eq!(items.finish::<String>().await.unwrap(), "all");
                let last = a.send("b", ITEMS - 2).stream::<u64>();
                assert_eq!(last.finish::<String>().await.unwrap(), "all");
                let few = a.send("b", ITEMS - 2).stream::<u64>().collect().await.unwrap();
                assert_eq!(few, [ITEMS - 2, ITEMS - 1]);
                let mut broken = a.send("b", true).stream::<u64>();
                assert_eq!(broken.next().await.unwrap().unwrap(), 1);
                let error = broken.next().await.unwrap().unwrap_err();
                assert_eq!((error.code(), error.to_string()), ("failed", "no more".to_owned()));
                assert!(broken.next().await.is_none());
            }

            pub(super) async fn a_reader_that_leaves_ends_the_flow(env: Arc<dyn Env>) {
                let [a, b] = &spaces(&env, 2).await[..] else { panic!() };
                let (emits, waits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
                let node = b.node("b");
                node.on(
                    "bool",
                    with(Arc::clone(&emits), async |ended: Arc<AtomicBool>, _: Event<bool>, cx: Context| {
                        let _ends = Ends(ended);
                        for item in 0u64.. {
                            if cx.emit(item).await.is_err() {
                                break;
                            }
                        }
                    }),
                );
                node.on("u64", with(Arc::clone(&waits), never));
                start(&env, &[a, b], &["b"]).await;
                let mut items = a.send("b", true).stream::<u64>();
                assert_eq!(items.next().await.unwrap().unwrap(), 0);
                drop(items);
                until(&env, "the flow that emits has ended", || emits.load(Ordering::SeqCst)).await;
                // Long enough to arrive on a busy machine: nobody starts on an event whose deadline has passed.
                let asked = Duration::from_millis(100);
                let error = a.send("b", 1u64).reply::<u64>().within(asked).await.unwrap_err();
                assert_eq!(error.code(), "timed-out");
                until(&env, "the flow that was asked has ended", || waits.load(Ordering::SeqCst)).await;
                until(&env, "nothing is under way", || b.flows_under_way() == 0).await;
            }

            pub(super) async fn a_batch_arrives_whole(env: Arc<dyn Env>) {
                let [a, b] = &spaces(&env, 2).await[..] else { panic!() };
                let causes: Shared<Vec<usize>> = Shared::default();
                let push = Arc::clone(&causes);
                a.node("ear").on("bool", move |event: &Event<bool>, _: &Context| {
                    push.lock().unwrap().push(event.causes().count());
                });
                b.node("whole").on("u64", |batch: &Batch<u64>, cx: &Context| -> happen::Result<Step> {
                    cx.broadcast(true)?;
                    done(batch.payloads().map(|number| number.to_string()).collect::<Vec<_>>().join(" "))
                });
                let singles: Shared<Vec<u64>> = Shared::default();
                let push = Arc::clone(&singles);
                b.node("singles").on("u64", move |number: &Event<u64>, _: &Context| {
                    push.lock().unwrap().push(*number.payload());
                });
                start(&env, &[a, b], &["whole", "singles"]).await;
                knows(&env, b, &["ear"]).await;
                let numbers: Vec<u64> = (0..100).collect();
                let joined = a.send("whole", numbers.clone()).reply::<String>().await.unwrap();
                let expected: Vec<_> = numbers.iter().map(u64::to_string).collect();
                assert_eq!(*joined, expected.join(" "));
                until(&env, "the effect came", || *causes.lock().unwrap() == [100]).await;
                a.send("singles", numbers.clone()).await.unwrap();
                assert_eq!(*singles.lock().unwrap(), numbers);
                assert_eq!(a.send("whole", Vec::<u64>::new()).await.unwrap_err().code(), "misuse");
            }

            pub(super) async fn deadlines_travel(env: Arc<dyn Env>) {
                let [a, b] = &spaces(&env, 2).await[..] else { panic!() };
                let left_ms = |cx: &Context| {
                    cx.time_left().map_or(u64::MAX, |left| u64::try_from(left.as_millis()).unwrap())
                };
                b.node("b").on("u64", move |_: &Event<u64>, cx: &Context| left_ms(cx));
                b.node("on").on("u64", async |event: Event<u64>, cx: Context| -> happen::Result<Step> {
                    done(cx.send("back", *event.payload()).reply::<u64>().await?.into_inner())
                });
                a.node("back").on("u64", move |_: &Event<u64>, cx: &Context| left_ms(cx));
                start(&env, &[a, b], &["b", "on"]).await;
                knows(&env, b, &["back"]).await;
                assert_eq!(*a.send("b", 1u64).reply::<u64>().await.unwrap(), u64::MAX);
                for node in ["b", "on"] {
                    let within = Duration::from_secs(3_600);
                    let left = *a.send(node, 1u64).reply::<u64>().within(within).await.unwrap();
                    assert!((1..=3_600_000).contains(&left), "{node}: {left}");
                }
            }

            pub(super) async fn presence_tells_who_is_there(env: Arc<dyn Env>) {
                let [a, b] = &spaces(&env, 2).await[..] else { panic!() };
                let node = b.node("b");
                let registered = node.on("order.*", |_: &Event, _: &Context| {});
                b.on("node.*", |_: &Event, _: &Context| {});
                a.start().await.unwrap();
                assert!(a.remote_nodes().is_empty(), "a space that has not started has no nodes");
                b.start().await.unwrap();
                knows(&env, a, &["b"]).await;
                let nodes = a.remote_nodes();
                assert_eq!(nodes.len(), 1, "{nodes:?}");
                assert_eq!(nodes[0].handles, ["order.*"]);
                assert!(!nodes[0].member.is_empty());
                node.on("refund", |_: &Event, _: &Context| {});
                registered.off();
                until(&env, "the change is known", || a.remote_nodes()[0].handles == ["refund"]).await;
                b.node("c");
                knows(&env, a, &["c"]).await;
                node.destroy();
                until(&env, "the end is known", || a.remote_nodes().len() == 1).await;
                assert_eq!(a.send("b", 1u64).await.unwrap_err().code(), "no-such-node");
                b.stop().await.unwrap();
                until(&env, "the leaving is known", || a.remote_nodes().is_empty()).await;
                assert_eq!(a.send("c", 1u64).await.unwrap_err().code(), "no-such-node");
            }

            pub(super) async fn what_is_too_large_is_refused(env: Arc<dyn Env>) {
                const SMALL: usize = 1_000;
                let links = links(&env, 2).await;
                let a = &linked(&env, Config::default(), &links[0]);
                let small = Config { event_bytes_max: SMALL, ..Config::default() };
                let b = &linked(&env, small, &links[1]);
                let echo = |text: &Event<String>, _: &Context| text.repeat(2);
                a.node("a").on("string", echo);
                b.node("b").on("string", echo);
                start(&env, &[a, b], &["b"]).await;
                knows(&env, b, &["a"]).await;
                let text = |bytes: usize| "x".repeat(bytes);
                // Too large to leave.
                let error = b.send("a", text(SMALL)).reply::<String>().await.unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::Oversized { bytes_max: SMALL, .. }), "{error:?}");
                assert!(error.event_id().is_some());
                // Too large to come in.
                let error = a.send("b", text(SMALL)).reply::<String>().await.unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::Oversized { bytes_max: SMALL, .. }), "{error:?}");
                assert_eq!(b.refused_frames(), 1);
                // Too large to be answered.
                let error = a.send("b", text(SMALL / 2)).reply::<String>().await.unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::Oversized { bytes_max: SMALL, .. }), "{error:?}");
                // And the rest goes on.
                assert_eq!(a.send("b", text(10)).reply::<String>().await.unwrap().len(), 20);
                assert_eq!(b.refused_frames(), 1);
            }

            pub(super) async fn bytes_that_are_no_event_disturb_nothing(env: Arc<dyn Env>) {
                let links = links(&env, 3).await;
                let (a, b) = (
                    &linked(&env, Config::default(), &links[0]),
                    &linked(&env, Config::default(), &links[1]),
                );
                b.node("b").on("u64", |number: &Event<u64>, _: &Context| *number.payload());
                b.node("all").on("**", |_: &Event, _: &Context| {});
                let refused: Shared<Vec<String>> = Shared::default();
                let push = Arc::clone(&refused);
                b.on("system.refused", move |event: &Event, _: &Context| {
                    push.lock().unwrap().push(event.get("code").unwrap().as_str().unwrap().to_owned());
                });
                start(&env, &[a, b], &["b"]).await;
                links[2].attach(Probe::new("probe")).await.unwrap();
                let stranger = &links[2];
                until(&env, "the stranger knows", || stranger.listens("anything")).await;
                // With an identity they are first of all not signed.
                const WHY: [&str; 2] = ["undecodable", "untrusted"];
                let mut expected = 0;
                for bytes in [&b""[..], b"\x01", b"\x01\x80", b"hello", b"\x02\x80\xc4\x00", &[0xff; 300]] {
                    let mut replies = stranger.request("b", bytes.to_vec()).unwrap();
                    let frame = next_reply(&mut *replies).await.unwrap().unwrap();
                    let Outcome::Error(told) = WireReply::decode(inside(&frame), 1 << 20).unwrap().outcome else {
                        panic!("{frame:?}");
                    };
                    assert!(WHY.contains(&told.code()), "{told:?}");
                    assert!(next_reply(&mut *replies).await.is_none());
                    stranger.post("b", bytes.to_vec()).unwrap();
                    stranger.publish("anything", bytes.to_vec()).unwrap();
                    expected += 3;
                }
                until(&env, "all were counted", || b.refused_frames() == expected).await;
                // A frame is counted before it is told.
                until(&env, "all were told", || refused.lock().unwrap().len() as u64 == expected).await;
                assert!(refused.lock().unwrap().iter().all(|code| WHY.contains(&&**code)));
                assert_eq!(*a.send("b", 7u64).reply::<u64>().await.unwrap(), 7);
                assert_eq!(a.refused_frames(), 0);
                assert!(b.dead_letters().is_empty());
            }

            pub(super) async fn a_flipped_bit_is_never_believed(env: Arc<dyn Env>) {
                let links = links(&env, 3).await;
                let (a, b) = (
                    &linked(&env, Config::default(), &links[0]),
                    &linked(&env, Config::default(), &links[1]),
                );
                let believed: Shared<Vec<Event>> = Shared::default();
                let push = Arc::clone(&believed);
                b.node("b").on("**", move |event: &Event, _: &Context| {
                    push.lock().unwrap().push(event.clone());
                });
                a.start().await.unwrap();
                b.start().await.unwrap();
                let probe = Probe::new("probe");
                links[2].attach(Arc::clone(&probe) as Arc<dyn happen_core::link::Inbound>).await.unwrap();
                knows(&env, a, &["probe"]).await;
                a.send("probe", "pay 10".to_owned())
                    .correlation("order-7")
                    .from_source("user", "ada")
                    .metadata("tries", 1)
                    .forget();
                until(&env, "the frame came", || probe.frames().len() == 1).await;
                let frame = probe.frames().remove(0);
                let told = async |frame: Vec<u8>| {
                    let mut replies = links[2].request("b", frame).unwrap();
                    let reply = next_reply(&mut *replies).await.unwrap().unwrap();
                    match WireReply::decode(inside(&reply), 1 << 20).unwrap().outcome {
                        Outcome::Error(told) => Some(told.code().to_owned()),
                        other => (other != Outcome::End).then(|| format!("{other:?}")),
                    }
                };
                // One that was signed for the probe is of no use here, changed or not.
                let (seal, _) = WireSeal::open(&frame).unwrap();
                let codes = if seal.is_some() { ["undecodable", "untrusted"] } else { ["undecodable"; 2] };
                for bit in 0..frame.len() * 8 {
                    let mut changed = frame.clone();
                    changed[bit / 8] ^= 1 << (bit % 8);
                    let told = told(changed).await;
                    assert!(told.as_deref().is_some_and(|code| codes.contains(&code)), "bit {bit}: {told:?}");
                }
                assert_eq!(b.refused_frames() as usize, frame.len() * 8);
                assert!(believed.lock().unwrap().is_empty());
                if seal.is_some() {
                    return;
                }
                // Whoever does not sign has a sum, or hashes.
                let inside = open_summed(&frame).unwrap().unwrap();
                let mut event = WireEvent::decode(inside, 1 << 20).unwrap();
                assert_eq!(event.hash, None);
                assert_eq!(told(inside.to_vec()).await.as_deref(), Some("invalid"));
                assert_eq!(told(frame.clone()).await, None);
                event.hash = Some(hash_event(&event));
                let mut hashed = Vec::new();
                event.encode_into(&mut hashed, 1 << 20).unwrap();
                assert_eq!(told(hashed).await, None);
                let believed = believed.lock().unwrap();
                assert_eq!(believed.len(), 2);
                for believed in &*believed {
                    assert_eq!(believed.id(), event.id);
                    assert_eq!(a.hash_of(believed).unwrap(), event.hash.unwrap());
                    assert_eq!(b.hash_of(believed).unwrap(), event.hash.unwrap());
                }
            }

            pub(super) async fn waiting_ends_when_a_link_closes(env: Arc<dyn Env>) {
                let links = links(&env, 3).await;
                let spaces: Vec<_> =
                    links.iter().map(|link| linked(&env, Config::default(), link)).collect();
                let [a, b, c] = &spaces[..] else { panic!() };
                let ended = Arc::new(AtomicBool::new(false));
                let begun = Arc::new(AtomicBool::new(false));
                for (space, name) in [(b, "b"), (c, "c")] {
                    let node = space.node(name);
                    node.on("u64", with(Arc::clone(&ended), never));
                    node.on(
                        "bool",
                        with(Arc::clone(&begun), async |begun: Arc<AtomicBool>, _: Event<bool>, cx: Context| {
                            begun.store(true, Ordering::SeqCst);
                            cx.sleep(Duration::from_millis(100)).await;
                            true
                        }),
                    );
                }
                start(&env, &[a, b, c], &["b", "c"]).await;
                // A space that stops answers first what it has begun.
                let answered: Shared<Vec<Result<bool, Error>>> = Shared::default();
                let push = Arc::clone(&answered);
                a.send("b", true).reply_with::<bool>(move |reply| {
                    push.lock().unwrap().push(reply.map(|reply| *reply));
                });
                // Under way is what waits; before its first wait a flow is still on the stack that brought the event.
                until(&env, "it has begun", || begun.load(Ordering::SeqCst) && b.flows_under_way() == 1).await;
                b.stop().await.unwrap();
                until(&env, "it is answered", || !answered.lock().unwrap().is_empty()).await;
                assert!(matches!(answered.lock().unwrap()[0], Ok(true)), "{answered:?}");
                // The other side leaves without a word.
                let told: Shared<Vec<Error>> = Shared::default();
                let wait = |told: &Shared<Vec<Error>>| {
                    let told = Arc::clone(told);
                    a.send("c", 1u64)
                        .reply_with::<u64>(move |reply| told.lock().unwrap().push(reply.unwrap_err()));
                };
                wait(&told);
                until(&env, "it waits", || c.flows_under_way() == 1).await;
                drop(links[2].close());
                until(&env, "the waiting has ended", || told.lock().unwrap().len() == 1).await;
                assert_eq!(told.lock().unwrap()[0].code(), "closed");
                assert!(told.lock().unwrap()[0].event_id().is_some());
                until(&env, "its flow was asked to stop", || ended.load(Ordering::SeqCst)).await;
                until(&env, "nobody is left", || a.remote_nodes().is_empty()).await;
                // The own side leaves.
                links[0].close().await;
                for error in [
                    a.send("c", 1u64).await.unwrap_err(),
                    a.send("c", 1u64).reply::<u64>().await.unwrap_err(),
                ] {
                    assert_eq!(error.code(), "closed", "{error:?}");
                }
            }

            pub(super) async fn who_leaves_says_so(env: Arc<dyn Env>) {
                let links = links(&env, 3).await;
                let probe = Probe::new("a");
                links[0].attach(probe.clone()).await.unwrap();
                for (link, name) in [(&links[1], "b"), (&links[2], "c")] {
                    link.attach(Probe::new(name)).await.unwrap();
                }
                until(&env, "both are there", || links[0].peers().len() == 2).await;
                assert_eq!(probe.left(), [""; 0]);
                for link in [&links[2], &links[1]] {
                    let name = link.name().to_owned();
                    link.close().await;
                    until(&env, "it has said that it goes", || probe.left().contains(&name)).await;
                    until(&env, "it is no peer", || links[0].peers().iter().all(|peer| peer.name != name)).await;
                }
            }

            pub(super) async fn of_equal_names_the_nearest_is_found(env: Arc<dyn Env>) {
                let spaces = spaces(&env, 3).await;
                let [a, b, c] = &spaces[..] else { panic!() };
                let heard = Arc::new(AtomicU64::new(0));
                for (space, name) in [(b, "b"), (c, "c")] {
                    let node = space.node("same");
                    node.on("u64", move |_: &Event<u64>, _: &Context| name.to_owned());
                    let count = Arc::clone(&heard);
                    node.on("bool", move |_: &Event<bool>, _: &Context| {
                        count.fetch_add(1, Ordering::SeqCst);
                    });
                }
                start(&env, &[a, b, c], &["same"]).await;
                until(&env, "both are known", || a.remote_nodes().len() == 2).await;
                knows(&env, c, &["same"]).await;
                let asked = async |space: &Space| space.send("same", 1u64).reply::<String>().await.unwrap().into_inner();
                // Its own first, then the one that joined first.
                assert_eq!(asked(b).await, "b");
                assert_eq!(asked(c).await, "c");
                assert_eq!(asked(a).await, "b");
                a.broadcast(true).unwrap();
                until(&env, "both heard", || heard.load(Ordering::SeqCst) == 2).await;
                b.stop().await.unwrap();
                until(&env, "one has left", || a.remote_nodes().len() == 1).await;
                assert_eq!(asked(a).await, "c");
                let own = a.node("same");
                own.on("u64", |_: &Event<u64>, _: &Context| "a".to_owned());
                assert_eq!(asked(a).await, "a");
            }

            pub(super) async fn a_frame_reaches_the_member_that_is_named(env: Arc<dyn Env>) {
                let links = links(&env, 3).await;
                let probes = ["own", "same", "same"].map(Probe::new);
                for (link, probe) in links.iter().zip(&probes) {
                    let probe = Arc::clone(probe);
                    link.attach(probe).await.unwrap();
                }
                let a = &links[0];
                until(&env, "both are known", || a.peers().len() == 2).await;
                for (place, probe) in probes.iter().enumerate().skip(1) {
                    let (member, number) = (links[place].name(), place as u8);
                    a.post_at(member, "same", vec![number]).unwrap();
                    let mut replies = a.request_at(member, "same", vec![10 + number]).unwrap();
                    assert!(next_reply(&mut *replies).await.is_none());
                    assert_eq!(probe.frames(), [[number], [10 + number]]);
                    for (member, node) in [(member, "other"), ("nobody", "same"), (a.name(), "own")] {
                        assert_eq!(a.post_at(member, node, vec![0]).unwrap_err().code(), "no-such-node");
                        let refused = a.request_at(member, node, vec![0]).err();
                        assert_eq!(refused.unwrap().code(), "no-such-node");
                    }
                }
                // A number says when it is worth asking again who is there.
                let before = a.revision();
                assert_eq!(a.revision(), before);
                links[2].close().await;
                until(&env, "one has left", || a.peers().len() == 1).await;
                assert_ne!(a.revision(), before);
                assert_eq!(a.post_at(links[2].name(), "same", vec![0]).unwrap_err().code(), "no-such-node");
            }

            pub(super) async fn instances_share_their_work(env: Arc<dyn Env>) {
                let spaces = spaces(&env, 4).await;
                let handled = Arc::new(AtomicU64::new(0));
                for (place, space) in spaces.iter().enumerate().skip(1) {
                    let work = space.node("work").shared(Routing::RoundRobin);
                    work.on("u64", move |_: &Event<u64>, _: &Context| place as u64);
                    let count = Arc::clone(&handled);
                    work.on("bool", move |_: &Event<bool>, _: &Context| {
                        count.fetch_add(1, Ordering::SeqCst);
                    });
                    let keyed = space.node("keyed").shared(Routing::ByKey);
                    keyed.on("u64", move |_: &Event<u64>, _: &Context| place as u64);
                }
                let [a, b, c, d] = &spaces[..] else { panic!() };
                start(&env, &[a, b, c, d], &["work"]).await;
                let knows = |space: &Space, count| {
                    let nodes = space.remote_nodes();
                    nodes.iter().filter(|node| node.id == "work" && node.shared.is_some()).count() == count
                };
                for (space, others) in [(a, 3), (b, 2), (c, 2), (d, 2)] {
                    until(&env, "all are known", || knows(space, others)).await;
                }
                let spread = async |space: &Space, count: u64| {
                    let mut at = [0; 4];
                    for number in 0..count {
                        at[*space.send("work", number).reply::<u64>().await.unwrap() as usize] += 1;
                    }
                    at
                };
                // Whoever sends, one that has an instance itself, too.
                for space in [a, b] {
                    assert_eq!(spread(space, 30).await, [0, 10, 10, 10]);
                }
                for key in ["ada", "grace", "edsger", "barbara"] {
                    let mut at = Vec::new();
                    for space in [a, c, d] {
                        let sent = space.send("keyed", 1u64).routing_key(key);
                        at.push(sent.reply::<u64>().await.unwrap().into_inner());
                    }
                    assert!(at.iter().all(|one| *one == at[0]), "{key}: {at:?}");
                }
                // One of them takes a broadcast.
                for space in [a, b, a] {
                    space.broadcast(true).unwrap();
                }
                until(&env, "all came", || handled.load(Ordering::SeqCst) == 3).await;
                env.sleep(Duration::from_millis(20)).await;
                assert_eq!(handled.load(Ordering::SeqCst), 3);
                b.stop().await.unwrap();
                until(&env, "one has left", || knows(a, 2)).await;
                assert_eq!(spread(a, 20).await, [0, 0, 10, 10]);
            }

            pub(super) async fn causality_goes_on(env: Arc<dyn Env>) {
                let [a, b] = &spaces(&env, 2).await[..] else { panic!() };
                let orders = a.node("orders");
                orders.on("order", async |_: Event, cx: Context| -> happen::Result<Step> {
                    done(cx.send("payments", 10u64).reply::<bool>().await?.into_inner())
                });
                type Charged = Shared<Option<Event<u64>>>;
                let charged = Charged::default();
                let keep = Arc::clone(&charged);
                b.node("payments").on(
                    "u64",
                    with(keep, async |keep: Charged, event: Event<u64>, cx: Context| -> happen::Result<bool> {
                        *keep.lock().unwrap() = Some(event);
                        cx.sleep(Duration::from_millis(1)).await;
                        cx.broadcast(named("paid", "10"))?;
                        Ok(true)
                    }),
                );
                let paid: Shared<Option<Event>> = Shared::default();
                let keep = Arc::clone(&paid);
                let path: Shared<Vec<String>> = Shared::default();
                let way = Arc::clone(&path);
                a.node("audit").on("paid", move |event: &Event, cx: &Context| {
                    assert_eq!(cx.sender().as_deref(), Some("payments"));
                    assert_eq!(cx.origin().as_deref(), Some("shop"));
                    *way.lock().unwrap() = cx.path().iter().map(ToString::to_string).collect();
                    *keep.lock().unwrap() = Some(event.clone());
                });
                start(&env, &[a, b], &["payments"]).await;
                knows(&env, b, &["audit"]).await;
                let trace = happen::TraceContext { parent: "00-1-2-01".into(), state: "k=v".into() };
                let user = User { id: "ada".into(), permissions: vec!["pay".into()] };
                let reply = a
                    .node("shop")
                    .send("orders", named("order", "789"))
                    .correlation("order-789")
                    .from_source("user", "ada")
                    .user(user.clone())
                    .trace_context(trace.clone())
                    .reply::<bool>()
                    .await
                    .unwrap();
                until(&env, "the effect came back", || paid.lock().unwrap().is_some()).await;
                let charged = charged.lock().unwrap().take().unwrap();
                let paid = paid.lock().unwrap().take().unwrap();
                let root = reply.event_id();
                assert_eq!(charged.causation_id(), Some(root));
                assert_eq!(paid.causation_id(), Some(charged.id()));
                assert_eq!((charged.envelope().depth, paid.envelope().depth), (1, 2));
                for envelope in [charged.envelope(), paid.envelope()] {
                    assert_eq!(envelope.root, root);
                    assert_eq!(envelope.correlation(), "order-789");
                    let inherited = envelope.inherited().unwrap();
                    assert_eq!(inherited.source_id.as_deref(), Some("ada"));
                    assert_eq!(inherited.source_type.as_deref(), Some("user"));
                    assert_eq!(inherited.user.as_deref(), Some(&user));
                    assert_eq!(inherited.trace.as_deref(), Some(&trace));
                }
                assert_eq!(*path.lock().unwrap(), ["payments", "orders", "shop"]);
                // Both sides remember what they saw, and know it by the name of its correlation.
                let seen = |trace: happen::Trace| trace.lines().iter().map(|line| line.event).collect::<Vec<_>>();
                assert_eq!(seen(a.trace("order-789").await.unwrap()), [root, charged.id(), paid.id()]);
                assert_eq!(seen(b.trace("order-789").await.unwrap()), [charged.id(), paid.id()]);
                assert_eq!(a.why(paid.id()).await.unwrap(), [root, charged.id()]);
                let lines = a.trace(charged.id()).await.unwrap().to_string();
                assert!(lines.contains("payments replied"), "{lines}");
                // The hash is one event's, wherever it is computed, and covers the causes' hashes.
                let hash = a.hash_of(&charged).unwrap();
                assert_eq!(b.hash_of(&charged).unwrap(), hash);
                b.verify(&charged, hash).unwrap();
                let changed = Event::from_parts(charged.envelope().clone(), 11u64);
                assert_eq!(b.verify(&changed, hash).unwrap_err().code(), "invalid");
                let hash = b.hash_of(&paid).unwrap();
                assert_eq!(a.hash_of(&paid).unwrap(), hash);
                a.verify(&paid, hash).unwrap();
                assert_eq!((a.refused_frames(), b.refused_frames()), (0, 0));
            }
        }
    };
}
