//! Nodes that talk to each other: users, a room that broadcasts, and a moderator that not everybody may ask.
//!
//! You learn how to broadcast to whoever listens, how to hand a dependency to a handler with `with`, and how a node
//! chooses whose events it takes (`accept_from`, `accept_if`). Run it with `cargo run --example chat_room`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use happen::{Context, ErrorKind, Event, Node, Space, with};
use serde::{Deserialize, Serialize};

/// What a user asks the room to say.
#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("say")]
struct Say {
    text: String,
}

/// What the room tells everyone.
#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("lobby.said")]
struct Said {
    by: String,
    text: String,
}

/// What only an administrator may ask of the moderator.
#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("ban")]
struct Ban {
    user: String,
}

/// Everything that was heard, as `listener: speaker: text`.
type Log = Arc<Mutex<Vec<String>>>;
/// The ids of users that are kept out.
type Banned = Arc<Mutex<BTreeSet<String>>>;

/// The room passes on what it is told. It knows no user: whoever listens gets it.
fn say(say: &Event<Say>, cx: &Context) -> happen::Result<()> {
    let by = cx.sender().unwrap_or_else(|| "nobody".into()).to_string();
    cx.broadcast(Said { by, text: say.text.clone() })?;
    Ok(())
}

/// A user writes down what others say. What a handler needs is handed to it in front of the event.
async fn listen(log: Log, said: Event<Said>, cx: Context) {
    if said.by != cx.node_id() {
        let line = format!("{}: {}: {}", cx.node_id(), said.by, said.text);
        log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

async fn ban(banned: Banned, ban: Event<Ban>, _: Context) -> bool {
    banned.lock().unwrap_or_else(PoisonError::into_inner).insert(ban.user.clone())
}

fn join(space: &Space, id: &str, log: &Log) -> Node {
    let user = space.node(id);
    user.on("lobby.*", with(Arc::clone(log), listen));
    user
}

#[tokio::main]
async fn main() -> happen::Result<()> {
    let space = Space::memory();
    let (log, banned) = (Log::default(), Banned::default());

    // The room takes events of users alone, and of none that is banned at the moment.
    let keeps_out = Arc::clone(&banned);
    let lobby = space.node("lobby").accept_from(["user-*"]).accept_if(move |origin| {
        let banned = keeps_out.lock().unwrap_or_else(PoisonError::into_inner);
        !origin.sender.is_some_and(|sender| banned.contains(sender))
    });
    lobby.on("say", say);
    let moderator = space.node("moderator").accept_from(["admin:*"]);
    moderator.on("ban", with(Arc::clone(&banned), ban));

    let [ada, bob, eve] = ["user-ada", "user-bob", "user-eve"].map(|id| join(&space, id, &log));
    let bot = space.node("bot");
    space.start().await?;

    ada.send(&lobby, Say { text: "good morning".into() }).await?;
    eve.send(&lobby, Say { text: "buy my watches".into() }).await?;

    // A bot is no user, and a user is no administrator: both are refused, and told why.
    let refusals = [
        bot.send(&lobby, Say { text: "beep".into() }).await.err(),
        bob.send(&moderator, Ban { user: "user-eve".into() }).await.err(),
    ];
    for refusal in refusals.iter().flatten() {
        println!("{refusal}");
        assert!(matches!(refusal.kind(), ErrorKind::Refused { .. }));
    }
    assert_eq!(refusals.iter().flatten().count(), 2);

    // The source is said on the event that comes from outside; everything it causes inherits it.
    let ban = space.send(&moderator, Ban { user: "user-eve".into() }).from_source("admin", "grace");
    assert!(*ban.reply::<bool>().await?);
    let refusal = eve.send(&lobby, Say { text: "still here?".into() }).await.err();
    assert_eq!(refusal.map(|error| error.code()), Some("refused"));
    bob.send(&lobby, Say { text: "quiet again".into() }).await?;

    let log = std::mem::take(&mut *log.lock().unwrap_or_else(PoisonError::into_inner));
    println!("{}", log.join("\n"));
    assert_eq!(
        log,
        [
            "user-bob: user-ada: good morning",
            "user-eve: user-ada: good morning",
            "user-ada: user-eve: buy my watches",
            "user-bob: user-eve: buy my watches",
            "user-ada: user-bob: quiet again",
            "user-eve: user-bob: quiet again",
        ]
    );
    space.stop().await
}
