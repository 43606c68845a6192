//! Buffers that are used again. Owns how many are kept; does not know what is written into them.

/// A bounded stock of byte buffers.
///
/// # Examples
///
/// ```
/// use happen_core::raw::{Buffers, RawWriter};
///
/// let mut buffers = Buffers::new(256, 4);
/// let mut buffer = buffers.take();
/// let mut writer = RawWriter::append(&mut buffer);
/// writer.map(1).field("celsius").f64(21.5);
/// writer.finish()?;
/// buffers.give(buffer);
/// assert_eq!(buffers.take().capacity(), 256);
/// # Ok::<(), happen_core::raw::WriteError>(())
/// ```
#[derive(Debug)]
pub struct Buffers {
    free: Vec<Vec<u8>>,
    capacity_bytes: usize,
    slots_max: usize,
}

impl Buffers {
    /// A stock of at most `slots_max` buffers of `capacity_bytes` each. The buffers are made when they are first asked
    /// for.
    #[must_use]
    pub fn new(capacity_bytes: usize, slots_max: usize) -> Self {
        Self { free: Vec::with_capacity(slots_max), capacity_bytes, slots_max }
    }

    /// An empty buffer.
    ///
    /// # Cost
    ///
    /// One allocation when the stock is empty, none otherwise.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| Vec::with_capacity(self.capacity_bytes))
    }

    /// Takes a buffer back. It is freed instead when the stock is full, and when it has another capacity by now: a stock
    /// of grown buffers would have no bound in bytes.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        if self.free.len() < self.slots_max && buffer.capacity() == self.capacity_bytes {
            buffer.clear();
            self.free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stock_keeps_as_many_as_its_limit() {
        let mut buffers = Buffers::new(16, 2);
        for (given, kept) in [(1, 1), (2, 2), (3, 2)] {
            buffers.free.clear();
            let taken: Vec<_> = (0..given).map(|_| buffers.take()).collect();
            taken.into_iter().for_each(|buffer| buffers.give(buffer));
            assert_eq!(buffers.free.len(), kept);
        }
    }

    #[test]
    fn a_buffer_comes_back_empty_and_a_grown_one_is_freed() {
        let mut buffers = Buffers::new(16, 2);
        let mut buffer = buffers.take();
        buffer.push(1);
        buffers.give(buffer);
        assert!(buffers.take().is_empty());
        buffers.give(vec![0; 1_000]);
        assert_eq!(buffers.take().capacity(), 16);
    }
}
