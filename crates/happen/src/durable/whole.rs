//! Work that goes on to its end when whoever waits for it stops waiting. Owns how it goes on; does not know what it is.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use happen_core::env::{BoxFuture, Env};

/// A future that is polled where it is awaited, and becomes a task of its own when it is dropped before its end.
pub(super) struct Whole<T: Send + 'static> {
    work: Option<BoxFuture<'static, T>>,
    env: Arc<dyn Env>,
}

impl<T: Send + 'static> Whole<T> {
    pub(super) fn new(env: &Arc<dyn Env>, work: BoxFuture<'static, T>) -> Self {
        Self { work: Some(work), env: Arc::clone(env) }
    }
}

impl<T: Send + 'static> Future for Whole<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<T> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let polled = work.as_mut().poll(task);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Whole<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.env.spawn(Box::pin(async move { drop(work.await) }));
        }
    }
}
