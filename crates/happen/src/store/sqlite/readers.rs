//! The threads that read, each with a connection of its own, and the line of those who ask them. Owns who is next;
//! does not know the questions.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, PoisonError};

use happen_core::Result;
use tokio::sync::{Semaphore, oneshot};

use super::fault;
use super::query::Queries;
use crate::limits;
use crate::sync::{Mutex, lock};

type Question = Box<dyn FnOnce(&mut Queries) + Send>;

/// What the readers share with those who ask.
pub(super) struct Readers {
    line: Mutex<Line>,
    more: Condvar,
    places: Arc<Semaphore>,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Question>,
    closed: bool,
}

impl Readers {
    pub(super) fn new() -> Arc<Self> {
        let places = Arc::new(Semaphore::new(limits::STORE_READS_MAX));
        Arc::new(Self { line: Mutex::default(), more: Condvar::new(), places })
    }

    /// Asks the next reader that is free.
    ///
    /// # Errors
    ///
    /// What the question gives, or that the store was closed.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Queries) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| fault::closed())?;
        let (answer, answered) = oneshot::channel();
        let question = Box::new(move |queries: &mut Queries| {
            // Nobody waits for the answer any more when the future was dropped.
            if !answer.is_closed() {
                drop(answer.send(question(queries)));
            }
            drop(place);
        });
        {
            let mut line = lock(&self.line);
            if line.closed {
                return Err(fault::closed());
            }
            line.waiting.push_back(question);
        }
        self.more.notify_one();
        answered.await.unwrap_or_else(|_| Err(fault::closed()))
    }

    /// As [`Readers::ask`], for a caller that cannot wait otherwise. It goes to the front of the line, as it holds up a
    /// whole thread, and needs no place in it: there are no more such callers than threads.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) fn ask_and_wait<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Queries) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let question = Box::new(move |queries: &mut Queries| drop(answer.send(question(queries))));
        {
            let mut line = lock(&self.line);
            if line.closed {
                return Err(fault::closed());
            }
            line.waiting.push_front(question);
        }
        self.more.notify_one();
        answered.recv().unwrap_or_else(|_| Err(fault::closed()))
    }

    /// Answers until the store is closed and nobody waits.
    pub(super) fn serve(&self, mut queries: Queries) {
        loop {
            let question = {
                let mut line = lock(&self.line);
                loop {
                    match line.waiting.pop_front() {
                        Some(question) => break question,
                        None if line.closed => return,
                        None => line = self.more.wait(line).unwrap_or_else(PoisonError::into_inner),
                    }
                }
            };
            question(&mut queries);
        }
    }

    pub(super) fn close(&self) {
        lock(&self.line).closed = true;
        self.places.close();
        self.more.notify_all();
    }
}
