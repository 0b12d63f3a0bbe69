//! What of guest memory is taken.

use nvme_host::memory::PAGE;

/// Hands out pieces of one guest mapping, from its start on.
#[derive(Debug)]
pub(crate) struct Pieces {
    next: usize,
    end: usize,
}

impl Pieces {
    pub(crate) fn new(len: usize) -> Self {
        Self { next: 0, end: len }
    }

    /// Offset of `len` bytes that begin on a page.
    ///
    /// # Errors
    /// The mapping is used up: its size was computed too small.
    pub(crate) fn take(&mut self, len: usize) -> anyhow::Result<usize> {
        let at = self.next;
        let end = len
            .checked_next_multiple_of(PAGE)
            .and_then(|len| at.checked_add(len))
            .filter(|end| *end <= self.end);
        self.next = end.ok_or_else(|| anyhow::anyhow!("{len} bytes more than the benchmark's memory"))?;
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_pages_and_end() {
        let mut pieces = Pieces::new(3 * PAGE);
        assert_eq!((pieces.take(1).unwrap(), pieces.take(PAGE + 1).unwrap()), (0, PAGE));
        assert!(pieces.take(1).is_err() && pieces.take(usize::MAX - PAGE).is_err());
    }
}
