//! The MSI-X table and the pending bit array, as BAR 4 shows them.
//!
//! | offset in the BAR | bytes | what |
//! |---|---|---|
//! | 0 | 16 a vector | table: address 63:2, data, vector control (bit 0: masked) |
//! | next page | 8 per 64 vectors | pending bits, read-only |
//!
//! Nothing is sent from here: the client turns eventfds into messages. QEMU keeps a table of its own
//! on top of this one; other clients read back what they have written.

/// Bytes in a table entry.
const ENTRY: usize = 16;
/// Table and pending bits begin on pages of their own, so that a client can map or trap each.
const PAGE: u64 = 4096;

/// Table and layout of the BAR.
#[derive(Debug)]
pub struct Msix {
    table: Vec<u8>,
}

impl Msix {
    /// A table of `vectors` entries (1 to 2048), all masked.
    pub(super) fn new(vectors: u16) -> Self {
        let mut msix = Msix { table: vec![0; usize::from(vectors) * ENTRY] };
        msix.reset();
        msix
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        (self.table.len() / ENTRY) as u16
    }

    /// Offset of the pending bits in the BAR.
    pub fn pba_offset(&self) -> u64 {
        (self.table.len() as u64).next_multiple_of(PAGE)
    }

    /// Bytes in the pending bit array.
    fn pba_size(&self) -> u64 {
        u64::from(self.vectors()).div_ceil(64) * 8
    }

    /// Bytes in the BAR: a power of two that holds both.
    pub fn bar_size(&self) -> u64 {
        (self.pba_offset() + PAGE).next_power_of_two()
    }

    /// Is the vector masked in this table?
    pub fn is_masked(&self, vector: u16) -> bool {
        self.table.get(usize::from(vector) * ENTRY + 12).is_none_or(|control| control & 1 != 0)
    }

    pub(super) fn reset(&mut self) {
        for entry in self.table.chunks_exact_mut(ENTRY) {
            entry.fill(0);
            entry[12] = 1;
        }
    }

    /// Bytes that are neither table nor pending bits read as zero, as PCI has it for what a memory
    /// BAR decodes and does not use.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], pending: &[u64]) {
        let pba = self.pba_offset();
        if offset >= self.bar_size() {
            data.fill(0);
            return;
        }
        for (at, byte) in (offset..).zip(data) {
            *byte = if at < pba {
                usize::try_from(at).ok().and_then(|at| self.table.get(at)).copied().unwrap_or(0)
            } else if at - pba < self.pba_size() {
                let bit_byte = (at - pba) as usize;
                pending.get(bit_byte / 8).map_or(0, |word| word.to_le_bytes()[bit_byte % 8])
            } else {
                0
            };
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        for (at, byte) in (offset.min(self.table.len())..self.table.len()).zip(data) {
            self.table[at] = byte & write_mask(at);
        }
    }
}

/// Bits of a table byte that software can change: the address is a dword's, and of vector control
/// only the mask bit exists.
fn write_mask(at: usize) -> u8 {
    match at % ENTRY {
        0 => 0xfc,
        12 => 1,
        13..=15 => 0,
        _ => 0xff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_by_number_of_vectors() {
        for (vectors, pba, bar) in
            [(1, 4096, 8192), (2, 4096, 8192), (256, 4096, 8192), (257, 8192, 16384), (2048, 32768, 65536)]
        {
            let msix = Msix::new(vectors);
            assert_eq!(msix.vectors(), vectors);
            assert_eq!(msix.pba_offset(), pba, "{vectors} vectors");
            assert_eq!(msix.bar_size(), bar, "{vectors} vectors");
        }
    }

    #[test]
    fn entries_keep_what_is_theirs() {
        let mut msix = Msix::new(2);
        assert!(msix.is_masked(1));
        assert!(msix.is_masked(2), "no such vector");
        msix.write(16, &[0xff; 16]);
        let mut entry = [0; 16];
        msix.read(16, &mut entry, &[]);
        let mut expected = [0xff; 16];
        expected[0] = 0xfc;
        expected[12..].copy_from_slice(&[1, 0, 0, 0]);
        assert_eq!(entry, expected);
        msix.write(16 + 12, &[0; 4]);
        assert!(!msix.is_masked(1));
        assert!(msix.is_masked(0));
    }

    #[test]
    fn accesses_across_every_border() {
        let mut msix = Msix::new(2);
        let bar = msix.bar_size() as usize;
        msix.write(0, &vec![0xff; bar + 100]);
        for at in [bar as u64, u64::MAX] {
            msix.write(at, &[0xff; 8]);
            let mut data = [0x55; 8];
            msix.read(at, &mut data, &[u64::MAX]);
            assert_eq!(data, [0; 8]);
        }
        let mut all = vec![0x55; bar];
        msix.read(0, &mut all, &[0x8000_0000_0000_0003]);
        assert!(all[32..4096].iter().all(|byte| *byte == 0));
        assert_eq!(&all[4096..4104], &[3, 0, 0, 0, 0, 0, 0, 0x80]);
        assert!(all[4104..].iter().all(|byte| *byte == 0));
        let mut middle = [0x55; 4];
        msix.read(4096 + 6, &mut middle, &[0x8000_0000_0000_0003]);
        assert_eq!(middle, [0, 0x80, 0, 0]);
    }

    #[test]
    fn pending_words_beyond_the_array_do_not_show() {
        let msix = Msix::new(64);
        let mut data = [0x55; 16];
        msix.read(msix.pba_offset(), &mut data, &[1, u64::MAX]);
        assert_eq!(data, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
