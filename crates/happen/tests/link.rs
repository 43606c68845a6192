//! Spaces joined by links: the contract on the in-process hub, in virtual time and on threads, and what is the hub's own.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::Arc;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use happen::{Config, Context, Error, ErrorKind, Event, Hub, Link, Space, limits};
use happen_core::codec::{Outcome, WireEvent, WireReply, encode_summed, open_summed};
use happen_core::env::{BoxFuture, Env};
use happen_core::limits::EVENT_BYTES_MAX;
use happen_core::link::{ConnectionStatus, Inbound, Notice, Peer, Replies};
use happen_testing::link::{Probe, until};
use happen_testing::{Simulator, link_contract};

async fn hub_links(env: Arc<dyn Env>, count: usize) -> Vec<Arc<dyn Link>> {
    let hub = Hub::in_env(env);
    (0..count).map(|index| hub.link(format!("space-{index}")) as Arc<dyn Link>).collect()
}

link_contract!(in_virtual_time, simulator, hub_links);
link_contract!(on_threads, tokio, hub_links);

#[test]
fn a_local_stream_ends_when_its_handler_does() {
    let sim = Simulator::new(1);
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    space.node("b").on("u64", async |count: Event<u64>, cx: Context| -> happen::Result<bool> {
        for item in 0..*count.payload() {
            cx.emit(item).await?;
        }
        Ok(true)
    });
    sim.run(async {
        space.start().await.unwrap();
        for count in [0u64, 3, 100] {
            let items = space.send("b", count).stream::<u64>().collect().await.unwrap();
            assert_eq!(items, (0..count).collect::<Vec<_>>());
        }
    });
}

#[test]
fn a_flipped_bit_of_a_reply_is_never_believed() {
    let sim = Simulator::new(1);
    sim.run(async {
        let hub = Hub::in_env(sim.env());
        let asking = Space::in_env(Config::default(), sim.env()).unwrap();
        asking.join(hub.link("asking")).unwrap();
        let (bit, summed) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(AtomicBool::new(true)));
        let (flipped, is_summed) = (Arc::clone(&bit), Arc::clone(&summed));
        let answering = Probe::answering("bank", move |asked| {
            let asked = open_summed(asked).unwrap().unwrap();
            let id = WireEvent::decode(asked, EVENT_BYTES_MAX).unwrap().id;
            let reply = WireReply::new(id, Outcome::Value { event_type: "u64".into(), bytes: &[7] });
            let write = |out: &mut Vec<u8>| reply.encode_into(out, EVENT_BYTES_MAX);
            let mut frame = Vec::new();
            if is_summed.load(Ordering::SeqCst) {
                encode_summed(&mut frame, write).unwrap();
            } else {
                write(&mut frame).unwrap();
            }
            let bit = flipped.load(Ordering::SeqCst);
            if let Some(byte) = frame.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
            vec![frame]
        });
        hub.link("answering").attach(answering).await.unwrap();
        asking.start().await.unwrap();
        let ask = async || asking.send("bank", 1u64).reply::<u64>().await;

        let whole = ask().await.unwrap();
        assert_eq!(*whole, 7);
        let mut bits = 0;
        loop {
            bit.store(bits, Ordering::SeqCst);
            match ask().await {
                Err(error) => assert_eq!(error.code(), "undecodable", "bit {bits}: {error}"),
                // Behind the last.
                Ok(_) => break,
            }
            bits += 1;
        }
        assert!(bits > 40 * 8, "{bits}");
        // A sum is no proof of who answers, and whoever leaves it out is read as well.
        summed.store(false, Ordering::SeqCst);
        assert_eq!(*ask().await.unwrap(), 7);
    });
}

/// A space that never takes its turn: nothing that is sent to it is taken out of its queue.
fn queue_full(sim: &Simulator) -> (Arc<dyn Link>, Arc<Probe>) {
    let hub = Hub::in_env(sim.env());
    let (here, there) = (hub.link("here"), hub.link("there"));
    let probe = Probe::new("probe");
    let attached = Arc::clone(&probe);
    sim.run(async {
        here.attach(Probe::new("own")).await.unwrap();
        there.attach(attached).await.unwrap();
    });
    (here, probe)
}

#[test]
fn the_queue_of_a_hub_has_an_end() {
    let sim = Simulator::new(1);
    let (link, probe) = queue_full(&sim);
    for _ in 0..limits::LINK_QUEUE_MAX {
        link.post("probe", vec![1]).unwrap();
    }
    let error = link.post("probe", vec![2]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Busy { what: "the link to `there`".into() });
    assert_eq!(link.publish("u64", vec![2]).unwrap_err().code(), "busy");
    assert_eq!(link.request("probe", vec![2]).err().unwrap().code(), "busy");
    let env = sim.env();
    sim.run(until(&env, "all came", || probe.frames().len() == limits::LINK_QUEUE_MAX));
    // What was refused did not come, and there is room again.
    link.post("probe", vec![3]).unwrap();
    sim.run(until(&env, "one more came", || probe.frames().len() == limits::LINK_QUEUE_MAX + 1));
    assert_eq!(probe.frames().last().unwrap(), &[3]);
}

#[test]
fn the_queue_of_a_hub_has_an_end_in_bytes_too() {
    let sim = Simulator::new(1);
    let (link, probe) = queue_full(&sim);
    let large = limits::LINK_QUEUE_BYTES_MAX / 4;
    for _ in 0..3 {
        link.post("probe", vec![0; large]).unwrap();
    }
    assert_eq!(link.post("probe", vec![0; large + 1]).unwrap_err().code(), "busy");
    link.post("probe", vec![0; large]).unwrap();
    assert_eq!(link.post("probe", vec![0]).unwrap_err().code(), "busy");
    let env = sim.env();
    sim.run(until(&env, "all came", || probe.frames().len() == 4));
    link.post("probe", vec![0; large]).unwrap();
}

#[test]
fn a_full_link_is_a_letter_for_who_does_not_wait() {
    let sim = Simulator::new(1);
    let hub = Hub::in_env(sim.env());
    let spaces = ["a", "b"].map(|name| {
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        space.join(hub.link(name)).unwrap();
        space
    });
    let [a, b] = &spaces;
    let came = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&came);
    b.node("b").on("u64", move |_: &Event<u64>, _: &Context| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    sim.run(async {
        a.start().await.unwrap();
        b.start().await.unwrap();
        for number in 0..limits::LINK_QUEUE_MAX as u64 {
            a.send("b", number).forget();
        }
        assert!(a.dead_letters().is_empty());
        // A batch is one frame, and one letter for each of its events.
        a.send("b", [1u64, 2, 3]).forget();
        let letters = a.dead_letters();
        assert_eq!(letters.iter().map(|letter| letter.code).collect::<Vec<_>>(), ["busy"; 3]);
        assert_eq!(letters[0].event_type(), "u64");
        let error = a.send("b", 1u64).reply::<()>().await.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
        // A broadcast that does not reach everyone is told.
        let problems = Arc::new(Mutex::new(Vec::new()));
        let push = Arc::clone(&problems);
        a.on("system.problem", move |event: &Event, _: &Context| {
            push.lock().unwrap().push(event.get("code").cloned());
        });
        a.broadcast(1u64).unwrap();
        assert_eq!(*problems.lock().unwrap(), [Some("busy".into())]);
        let env = sim.env();
        until(&env, "the queue is empty", || came.load(Ordering::SeqCst) == limits::LINK_QUEUE_MAX as u64)
            .await;
        a.redrive(letters[2].event_id()).await.unwrap();
        assert_eq!(came.load(Ordering::SeqCst), limits::LINK_QUEUE_MAX as u64 + 1);
    });
}

#[test]
fn a_link_is_joined_once_and_before_the_start() {
    let sim = Simulator::new(1);
    let hub = Hub::in_env(sim.env());
    let new = || Space::in_env(Config::default(), sim.env()).unwrap();
    sim.run(async {
        let (first, second, late) = (new(), new(), new());
        first.join(hub.link("one")).unwrap();
        assert_eq!(first.join(hub.link("two")).unwrap_err().code(), "misuse");
        late.start().await.unwrap();
        assert_eq!(late.join(hub.link("late")).unwrap_err().code(), "misuse");
        first.start().await.unwrap();
        first.start().await.unwrap();
        // A name that is taken keeps a space from starting, until its holder has left.
        second.join(hub.link("one")).unwrap();
        assert_eq!(second.start().await.unwrap_err().code(), "misuse");
        assert_eq!(second.send("x", 1u64).await.unwrap_err().code(), "not-started");
        drop(first);
        second.start().await.unwrap();
        assert_eq!(format!("{hub:?}"), r#"["one"]"#);
        second.stop().await.unwrap();
        assert_eq!(format!("{hub:?}"), "[]");
    });
}

/// A link to nowhere that keeps whom it was attached to.
#[derive(Debug, Default)]
struct Nowhere(Mutex<Option<Arc<dyn Inbound>>>);

impl Link for Nowhere {
    fn name(&self) -> &str {
        "nowhere"
    }
    fn attach(&self, inbound: Arc<dyn Inbound>) -> BoxFuture<'_, happen::Result<()>> {
        *self.0.lock().unwrap() = Some(inbound);
        Box::pin(std::future::ready(Ok(())))
    }
    fn changed(&self) {}
    fn post(&self, to: &str, _: Vec<u8>) -> happen::Result<()> {
        Err(Error::new(ErrorKind::NoSuchNode { node: to.into() }))
    }
    fn request(&self, to: &str, _: Vec<u8>) -> happen::Result<Box<dyn Replies>> {
        Err(Error::new(ErrorKind::NoSuchNode { node: to.into() }))
    }
    fn post_at(&self, _: &str, to: &str, frame: Vec<u8>) -> happen::Result<()> {
        self.post(to, frame)
    }
    fn request_at(&self, _: &str, to: &str, frame: Vec<u8>) -> happen::Result<Box<dyn Replies>> {
        self.request(to, frame)
    }
    fn publish(&self, _: &str, _: Vec<u8>) -> happen::Result<()> {
        Ok(())
    }
    fn revision(&self) -> u64 {
        0
    }
    fn listens(&self, _: &str) -> bool {
        false
    }
    fn peers(&self) -> Vec<Peer> {
        Vec::new()
    }
    fn close(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

#[test]
fn what_a_link_tells_of_itself_is_heard_in_its_process() {
    let sim = Simulator::new(1);
    let link = Arc::new(Nowhere::default());
    let space = Space::in_env(Config::default(), sim.env()).unwrap();
    space.join(Arc::clone(&link) as Arc<dyn Link>).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let push = Arc::clone(&heard);
    space.on("system.*", move |event: &Event, _: &Context| {
        push.lock().unwrap().push((event.event_type().to_owned(), event.payload().json().unwrap().clone()));
    });
    sim.run(async {
        space.start().await.unwrap();
        let inbound = link.0.lock().unwrap().clone().unwrap();
        heard.lock().unwrap().clear();
        for status in [ConnectionStatus::Disconnected, ConnectionStatus::Connected, ConnectionStatus::Closed]
        {
            inbound.notice(Notice::Connection { status, url: "net://one", reason: None });
        }
        for status in ["disconnected", "connected", "closed"] {
            let expected = serde_json::json!({ "status": status, "url": "net://one" });
            assert_eq!(heard.lock().unwrap().remove(0), ("system.connection-status".to_owned(), expected));
        }
        let (status, url) = (ConnectionStatus::Disconnected, "net://one");
        inbound.notice(Notice::Connection { status, url, reason: Some("go away") });
        let (_, told) = heard.lock().unwrap().remove(0);
        assert_eq!(told, serde_json::json!({ "status": "disconnected", "url": url, "reason": "go away" }));
        let error = Error::new(ErrorKind::Io { what: "sending".into() });
        inbound.notice(Notice::Refused(&error));
        assert_eq!(space.refused_frames(), 1);
        inbound.notice(Notice::Lost(&error));
        assert_eq!(space.problems().last().unwrap().code(), "io");
        let types: Vec<_> = heard.lock().unwrap().iter().map(|(event_type, _)| event_type.clone()).collect();
        assert_eq!(types, ["system.refused", "system.problem"]);
    });
}

#[test]
fn spaces_without_a_link_never_see_each_other() {
    let sim = Simulator::new(1);
    let (left, right) = (Hub::in_env(sim.env()), Hub::in_env(sim.env()));
    let heard = Arc::new(AtomicU64::new(0));
    let spaces = [(Some(&left), "a"), (Some(&right), "b"), (None, "c")].map(|(hub, name)| {
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        if let Some(hub) = hub {
            space.join(hub.link(name)).unwrap();
        }
        let count = Arc::clone(&heard);
        space.node(name).on("u64", move |_: &Event<u64>, _: &Context| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        space
    });
    sim.run(async {
        for space in &spaces {
            space.start().await.unwrap();
        }
        for space in &spaces {
            assert!(space.remote_nodes().is_empty());
            space.broadcast(1u64).unwrap();
        }
        sim.env().sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(heard.load(Ordering::SeqCst), 3);
        assert_eq!(spaces[0].send("b", 1u64).await.unwrap_err().code(), "no-such-node");
        assert_eq!(spaces[2].send("a", 1u64).await.unwrap_err().code(), "no-such-node");
    });
}

#[test]
fn nobody_starts_on_an_event_whose_deadline_passed_on_the_way() {
    let sim = Simulator::new(1);
    let hub = Hub::in_env(sim.env());
    let [a, b] = &["a", "b"].map(|name| {
        let space = Space::in_env(Config::default(), sim.env()).unwrap();
        space.join(hub.link(name)).unwrap();
        space
    });
    b.node("b").on("u64", |number: &Event<u64>, _: &Context| {
        assert_eq!(*number.payload(), 1, "this one came too late");
    });
    sim.run(async {
        a.start().await.unwrap();
        b.start().await.unwrap();
        let hour = std::time::Duration::from_secs(3_600);
        a.send("b", 1u64).within(hour).await.unwrap();
        a.send("b", 2u64).within(hour).forget();
        sim.jump_clock_forward(hour);
        let env = sim.env();
        until(&env, "the letter is there", || !b.dead_letters().is_empty()).await;
        assert_eq!(b.dead_letters()[0].code, "timed-out");
    });
}
