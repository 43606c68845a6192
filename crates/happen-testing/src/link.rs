//! What tests of links share: a member of a link that is no space, and waiting for something to become true. The suite
//! itself is the macro `link_contract!`.

use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use happen_core::Pattern;
use happen_core::env::Env;
use happen_core::error::Result;
use happen_core::link::{Inbound, NodePresence, Notice, Replies};

use crate::limits;

/// What a probe answers a frame with.
type Answer = Box<dyn Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync>;

/// A member that keeps the frames it gets, as they are, to send them on changed; and answers none, or what it was given.
pub struct Probe {
    node: String,
    answer: Answer,
    frames: Mutex<Vec<Vec<u8>>>,
    left: Mutex<Vec<String>>,
}

impl Probe {
    /// A member with one node, which listens to everything.
    #[must_use]
    pub fn new(node: impl Into<String>) -> Arc<Self> {
        Self::answering(node, |_| Vec::new())
    }

    /// The same, which answers each frame that it is asked with by these.
    #[must_use]
    pub fn answering(
        node: impl Into<String>,
        answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let answer: Answer = Box::new(answer);
        Arc::new(Self { node: node.into(), answer, frames: Mutex::default(), left: Mutex::default() })
    }

    /// The frames that came so far.
    #[must_use]
    pub fn frames(&self) -> Vec<Vec<u8>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The members that said that they go, in order.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, frame: &[u8]) {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).push(frame.to_vec());
    }
}

impl Inbound for Probe {
    fn post(&self, _: &str, frame: &[u8]) {
        self.keep(frame);
    }

    fn request(&self, _: &str, frame: &[u8]) -> Box<dyn Replies> {
        self.keep(frame);
        Box::new(Answers((self.answer)(frame).into_iter()))
    }

    fn publish(&self, frame: &[u8]) {
        self.keep(frame);
    }

    fn presence(&self) -> Vec<NodePresence> {
        vec![NodePresence {
            id: self.node.clone(),
            handles: Pattern::parse("**").into_iter().collect(),
            share: None,
        }]
    }

    fn notice(&self, notice: Notice<'_>) {
        if let Notice::Left { member } = notice {
            self.left.lock().unwrap_or_else(PoisonError::into_inner).push(member.to_owned());
        }
    }
}

struct Answers(std::vec::IntoIter<Vec<u8>>);

impl Replies for Answers {
    fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>>>> {
        Poll::Ready(self.0.next().map(Ok))
    }
}

/// The next frame of these replies.
///
/// # Errors
///
/// What the link gives.
pub async fn next_reply(replies: &mut dyn Replies) -> Option<Result<Vec<u8>>> {
    poll_fn(|task| replies.poll_next(task)).await
}

/// Lets others run until a condition holds.
///
/// # Panics
///
/// When it does not hold after [`limits::LOOKS_MAX`] looks, a millisecond of the environment apart.
pub async fn until(env: &Arc<dyn Env>, what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..limits::LOOKS_MAX {
        if holds() {
            return;
        }
        env.sleep(Duration::from_millis(1)).await;
    }
    panic!("this did not become true: {what}");
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "probe `{}`", self.node)
    }
}
