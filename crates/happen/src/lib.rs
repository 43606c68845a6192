//! Event-driven and agentic systems out of two things: nodes and events.
//!
//! A [`Space`] holds [`Node`]s. A node handles events with functions ([`Node::on`]) and sends them ([`Node::send`],
//! [`Node::broadcast`]). A handler returns the next function or a final value ([`next`], [`done`]). Every event knows
//! what caused it, so a running system can be asked why ([`Space::trace`]).
//!
//! ```
//! use happen::{Context, Event, Space};
//!
//! #[derive(happen::Event, Clone, serde::Serialize, serde::Deserialize)]
//! #[event("greet")]
//! struct Greet { name: String }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> happen::Result<()> {
//!     let space = Space::memory();
//!     let greeter = space.node("greeter");
//!     greeter.on("greet", |greet: &Event<Greet>, _: &Context| format!("hello {}", greet.name));
//!     space.start().await?;
//!
//!     let text = space.send(&greeter, Greet { name: "Ada".into() }).reply::<String>().await?;
//!     assert_eq!(*text, "hello Ada");
//!     Ok(())
//! }
//! ```

// In the order in which an event meets them.
pub mod config;
pub mod limits;
mod space;
mod names;
mod node;
mod group;
mod handler;
mod step;
pub mod wrap;
mod send;
mod route;
mod stamp;
mod import;
mod link;
pub mod identity;
mod dispatch;
mod accept;
mod hooks;
mod table;
mod published;
mod index;
mod gate;
mod waits;
mod slow;
mod flow;
mod context;
mod lent;
mod stream;
mod chunks;
mod zero;
mod encoded;
mod state;
mod durable;
pub mod retention;
pub mod balance;
pub mod control;
pub mod global;
mod keys;
mod wire;
pub mod model;
pub mod store;
mod pure;
mod failure;
mod supervise;
mod web;
mod trace;
mod tree;
pub mod journal;
mod local;
mod current;
mod sync;
mod time;
pub mod env;

pub use happen_core::event::{Delegation, Purpose, Trace as TraceContext, User};
pub use happen_core::hash::EventHash;
pub use happen_core::link::{Link, Routing};
pub use happen_core::pattern::{
    Aliases, Domain, Pattern, PatternError, all_of, any, domain, exact, not, one_of, predicate, wildcard,
};
pub use happen_core::raw;
pub use happen_core::{
    Answer, Batch, Dynamic, Envelope, Error, ErrorKind, Event, EventId, EventType, IntoPattern, IntoStep,
    OldState, Outgoing, Payload, Result, State, Step, TypeName, Value,
};
pub use happen_macros::{Event, State};

pub use accept::Origin;
pub use chunks::{Chunk, Chunks};
pub use config::{
    BalanceOptions, Config, Delivery, Durability, NodeOptions, OutboxLimits, Overflow, QueueOrder, Retention,
    UnfitFlows,
};
pub use context::Context;
pub use durable::cron::{Cron, CronError, CronProblem, Every, IntoTiming, every};
pub use durable::outbox::Outbox;
pub use durable::schedule::{Missed, Schedule, Schedules, Scheduling};
pub use durable::timer::Timer;
pub use failure::{DeadLetter, Failure};
pub use group::{FanOut, Group, GroupRegistration, Nodes, Registrations};
pub use handler::{Argument, Asynchronous, Handler, Plain, With, WithDependency, with};
pub use hooks::{Moment, Seen};
pub use import::{Imported, Importing};
pub use link::{Hub, HubLink, RemoteNode};
pub use node::{Handles, Node, Registration};
pub use route::Router;
pub use send::{
    Acceptance, After, Asking, Broadcasting, CancellingTimer, Replies, Reply, Sending, Sent, Target,
};
pub use space::Space;
pub use state::{Collected, Freshness, StateOf, View, Viewing, Views};
pub use step::{again, done, goto, next, next_with};
pub use stream::{Items, Outlet};
pub use supervise::{Standing, Strategy, Supervised, Supervisor};
pub use time::{millis, secs};
pub use trace::{Handled, Line, Trace, TraceOutcome, Traceable};
pub use zero::{RawEvent, Zero};

/// The documents of the repository whose programs are tested.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../../README.md")]
    mod readme {}
    #[doc = include_str!("../../../docs/from-javascript.md")]
    mod from_javascript {}
    #[doc = include_str!("../../../docs/balance.md")]
    mod balance {}
}
