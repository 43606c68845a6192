//! The bytes of payloads for handlers that read in place: encoded into buffers that each thread uses again, once for
//! several handlers of one event. Owns how long such bytes are valid; does not know who reads them.
//!
//! Bytes are shared while a [`Scope`] is open. It is opened by the code that brings one event to several handlers,
//! borrows the event, and takes bytes for this very object only, by its address: while the scope borrows it, nothing
//! else can be there. An id would not do. A transformer gives a node another payload under the same id, two virtual
//! spaces may count from the same seed, and a stranger may send an id twice.
//!
//! A buffer is taken out of its place while a handler reads it, so an event that this handler sends, whose handlers
//! read in place too, cannot write into it.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use happen_core::downcast::downcast_ref;
use happen_core::{Dynamic, ErasedEvent, Result};

use crate::limits;
use crate::space::SpaceInner;

thread_local! {
    static HERE: RefCell<Here> = const { RefCell::new(Here { scopes: Vec::new(), free: Vec::new() }) };
}

/// What this thread keeps.
struct Here {
    /// The scopes that are open, the innermost last.
    scopes: Vec<Shared>,
    free: Vec<Sheet>,
}

/// What an open scope shares.
struct Shared {
    /// The addresses of the event; of a batch, those of its first and its last one.
    first: usize,
    last: usize,
    /// Nothing before the first handler asks for it, and while one reads it.
    sheet: Option<Sheet>,
}

/// A buffer, and which events' payloads stand in it: their addresses ascend.
#[derive(Default)]
struct Sheet {
    bytes: Vec<u8>,
    events: Vec<(usize, Range<usize>)>,
}

/// The time in which several handlers get one event, or one batch, and share its bytes.
pub(crate) struct Scope<'e> {
    index: usize,
    /// Borrows the event, so that its address stays its own; and stays on its thread.
    _event: PhantomData<(&'e (), *const ())>,
}

impl<'e> Scope<'e> {
    /// Begins to share the bytes of this event; nothing when a scope around this one does so already, or when no
    /// handler of the space reads in place.
    #[inline]
    pub(crate) fn open(space: &SpaceInner, event: &'e dyn ErasedEvent) -> Option<Self> {
        if space.reads_bytes() { Self::open_here(event) } else { None }
    }

    fn open_here(event: &'e dyn ErasedEvent) -> Option<Self> {
        // The events of a batch stand in one vector, so the first and the last one enclose the others.
        let first = address(event.single(0)?);
        let last = address(event.single(event.len().checked_sub(1)?)?);
        HERE.with_borrow_mut(|here| {
            if here.scope_of(first).is_some() {
                return None;
            }
            let index = here.scopes.len();
            here.scopes.push(Shared { first, last, sheet: None });
            Some(Self { index, _event: PhantomData })
        })
    }
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        HERE.with_borrow_mut(|here| {
            debug_assert_eq!(
                here.scopes.len(),
                self.index + 1,
                "scopes end in the reverse order of their beginning"
            );
            while here.scopes.len() > self.index {
                let sheet = here.scopes.pop().and_then(|shared| shared.sheet);
                here.keep(sheet);
            }
        });
    }
}

/// Runs `work` with the bytes of the event's payload.
///
/// # Errors
///
/// [`ErrorKind::Unencodable`](happen_core::ErrorKind::Unencodable) when the payload refuses to be encoded.
///
/// # Cost
///
/// A payload that came as bytes is lent where it is. Others are encoded into a buffer that was used before; this
/// allocates while buffers grow to what the thread needs, and for payloads above
/// [`ENCODED_BUFFER_BYTES_MAX`](limits::ENCODED_BUFFER_BYTES_MAX).
#[inline]
pub(crate) fn with_bytes<R>(event: &dyn ErasedEvent, work: impl FnOnce(&[u8]) -> R) -> Result<R> {
    let payload = event.payload();
    if let Some(bytes) = downcast_ref::<Dynamic>(payload.as_any()).and_then(Dynamic::as_bytes) {
        return Ok(work(bytes));
    }
    let mut lease = HERE.with_borrow_mut(|here| here.lease(address(event)));
    let at = lease.encoded(event)?;
    Ok(work(&lease.sheet.bytes[at]))
}

/// A sheet that is being read. It goes back to its scope, or to those that are free, also when the reader panics.
struct Lease {
    sheet: Sheet,
    event: usize,
    scope: Option<usize>,
}

impl Lease {
    /// Where the event's payload stands, encoded now unless it was before.
    fn encoded(&mut self, event: &dyn ErasedEvent) -> Result<Range<usize>> {
        let Sheet { bytes, events } = &mut self.sheet;
        if let Ok(index) = events.binary_search_by_key(&self.event, |(address, _)| *address) {
            return Ok(events[index].1.clone());
        }
        // What one scope shares is bounded by the buffer that is kept, whatever the length of a batch.
        let ascends = events.last().is_none_or(|(address, _)| *address < self.event);
        if !ascends || bytes.len() >= limits::ENCODED_BUFFER_BYTES_MAX {
            self.give_back();
            self.sheet = HERE.with_borrow_mut(Here::blank);
        }
        let Sheet { bytes, events } = &mut self.sheet;
        let start = bytes.len();
        if let Err(error) = event.payload().encode(bytes) {
            bytes.truncate(start);
            return Err(error.at_event(event.envelope().id));
        }
        let at = start..bytes.len();
        events.push((self.event, at.clone()));
        Ok(at)
    }

    fn give_back(&mut self) {
        let sheet = std::mem::take(&mut self.sheet);
        let scope = self.scope.take();
        // A thread that ends keeps nothing.
        let _kept = HERE.try_with(|here| {
            let mut here = here.borrow_mut();
            match scope.and_then(|index| here.scopes.get_mut(index)) {
                Some(shared) if shared.sheet.is_none() => shared.sheet = Some(sheet),
                _ => here.keep(Some(sheet)),
            }
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Here {
    fn lease(&mut self, event: usize) -> Lease {
        let scope = self.scope_of(event);
        let shared = scope.and_then(|index| self.scopes[index].sheet.take());
        let sheet = shared.unwrap_or_else(|| self.blank());
        Lease { sheet, event, scope }
    }

    /// The open scope that shares this event; there is one at most, and seldom more than two are open.
    #[inline]
    fn scope_of(&self, event: usize) -> Option<usize> {
        self.scopes.iter().rposition(|shared| shared.first <= event && event <= shared.last)
    }

    fn blank(&mut self) -> Sheet {
        self.free.pop().unwrap_or_else(|| Sheet {
            bytes: Vec::with_capacity(limits::ENCODED_BUFFER_BYTES_MIN),
            events: Vec::with_capacity(1),
        })
    }

    fn keep(&mut self, sheet: Option<Sheet>) {
        let Some(mut sheet) = sheet else { return };
        let events_bytes = sheet.events.capacity() * size_of::<(usize, Range<usize>)>();
        let small = sheet.bytes.capacity().max(events_bytes) <= limits::ENCODED_BUFFER_BYTES_MAX;
        if small && self.free.len() < limits::ENCODED_BUFFERS_MAX {
            sheet.bytes.clear();
            sheet.events.clear();
            self.free.push(sheet);
        }
    }
}

#[inline]
fn address(event: &dyn ErasedEvent) -> usize {
    std::ptr::from_ref(event).cast::<()>().addr()
}
