//! Selected records page by page. Owns where a reading goes on; does not know what the records say.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use happen_core::Result;
use happen_core::limits::PAGE_RECORDS_MAX;
use happen_core::store::{Position, Read, Record, Start, Store};

/// A reading of the log that ends when nothing further is selected.
pub(super) struct Walk<'s> {
    store: &'s dyn Store,
    read: Option<Read>,
}

impl<'s> Walk<'s> {
    pub(super) fn new(store: &'s dyn Store, read: Read) -> Self {
        Self { store, read: Some(read) }
    }

    /// Whether there are no further records.
    pub(super) fn is_at_end(&self) -> bool {
        self.read.is_none()
    }

    /// The next records; `None` at the end. A short first page is followed by whole ones.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Record>>> {
        let Some(read) = self.read.take() else { return Ok(None) };
        let page = self.store.read(read.clone()).await?;
        self.read = page.next.map(|next| read.start(Start::Position(next)).at_most(PAGE_RECORDS_MAX));
        Ok((!page.records.is_empty()).then_some(page.records))
    }
}

/// The next records of two walks, read beside each other: a store in a folder has more readers than one.
pub(super) async fn next_of_both<'s>(
    one: &mut Walk<'s>,
    other: &mut Walk<'s>,
) -> (Result<Option<Vec<Record>>>, Result<Option<Vec<Record>>>) {
    let (mut one, mut other) = (pin!(one.next()), pin!(other.next()));
    let mut ended = (None, None);
    poll_fn(|cx| {
        if ended.0.is_none()
            && let Poll::Ready(records) = one.as_mut().poll(cx)
        {
            ended.0 = Some(records);
        }
        if ended.1.is_none()
            && let Poll::Ready(records) = other.as_mut().poll(cx)
        {
            ended.1 = Some(records);
        }
        match (ended.0.take(), ended.1.take()) {
            (Some(one), Some(other)) => Poll::Ready((one, other)),
            so_far => {
                ended = so_far;
                Poll::Pending
            }
        }
    })
    .await
}

/// Where a reading starts that goes back and has the record at this position too.
pub(super) fn up_to(position: Position) -> Start {
    match position.number().checked_add(1) {
        Some(behind) => Start::Position(Position::from_number(behind)),
        None => Start::Edge,
    }
}

/// Where a reading starts that goes forward and has the record at this position too.
pub(super) fn from(position: Position) -> Start {
    match position.number().checked_sub(1) {
        Some(before) => Start::Position(Position::from_number(before)),
        None => Start::Edge,
    }
}
