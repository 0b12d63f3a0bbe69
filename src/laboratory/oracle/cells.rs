//! What is known of each block, in chunks that are made as blocks are met.

use super::sum::Sum;

/// Blocks that are watched at most of one namespace: 1 GiB of cells. Those beyond are not watched.
pub const MOST: u64 = 64 << 20;

/// Blocks of a chunk: 64 KiB of cells.
const CHUNK: u64 = 4096;

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// No command has touched it yet, and what it holds is not known.
    Never,
    /// Commands have left it to chance what it holds, until the next plain write.
    Unknown,
    /// It is being written.
    Writing {
        /// By how many commands.
        by: u32,
        /// Were there two at once since it was last written by none?
        clash: bool,
    },
    /// It holds data of this sum.
    Known(Sum),
}

/// A block's state, and since when it is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// See [`BlockState`].
    pub state: BlockState,
    /// The ledger's clock when a write of it last began or ended; 0: there was none.
    pub stamp: u64,
}

/// A cell in 16 bytes.
#[derive(Clone, Copy)]
struct Packed {
    state: u64,
    stamp: u64,
}

const NEVER: u64 = 0;
const UNKNOWN: u64 = 1;
const WRITING: u64 = 2;
const CLASH: u64 = 4;

impl Packed {
    fn of(cell: Cell) -> Self {
        let state = match cell.state {
            BlockState::Never => NEVER,
            BlockState::Unknown => UNKNOWN,
            BlockState::Writing { by, clash } => WRITING | if clash { CLASH } else { 0 } | u64::from(by) << 8,
            BlockState::Known(sum) => sum.bits(),
        };
        Self { state, stamp: cell.stamp }
    }

    fn cell(self) -> Cell {
        let state = match (Sum::of_bits(self.state), self.state) {
            (Some(sum), _) => BlockState::Known(sum),
            (None, NEVER) => BlockState::Never,
            (None, state) if state & WRITING != 0 => {
                BlockState::Writing { by: (state >> 8) as u32, clash: state & CLASH != 0 }
            }
            (None, _) => BlockState::Unknown,
        };
        Cell { state, stamp: self.stamp }
    }
}

/// See the module docs.
pub struct Cells {
    /// State of a block that no command has touched.
    fresh: BlockState,
    chunks: Vec<Option<Box<[Packed]>>>,
    blocks: u64,
}

impl Cells {
    /// Of `nsze` blocks, all of which are `fresh`.
    pub fn new(nsze: u64, fresh: BlockState) -> Self {
        let mut cells = Self { fresh, chunks: Vec::new(), blocks: 0 };
        cells.resize(nsze);
        cells
    }

    /// The namespace has `nsze` blocks now. What is known of those that went is forgotten.
    pub fn resize(&mut self, nsze: u64) {
        let blocks = nsze.min(MOST);
        for lba in blocks..self.blocks.min(blocks.next_multiple_of(CHUNK)) {
            self.set(lba, Cell { state: BlockState::Never, stamp: 0 });
        }
        self.blocks = blocks;
        self.chunks.resize_with(blocks.div_ceil(CHUNK) as usize, || None);
    }

    /// Blocks that are watched: the first ones.
    pub fn watched(&self) -> u64 {
        self.blocks
    }

    /// Bytes that the cells take now.
    pub fn memory(&self) -> usize {
        let chunk = CHUNK as usize * size_of::<Packed>();
        self.chunks.iter().flatten().count() * chunk + self.chunks.len() * size_of::<Option<Box<[Packed]>>>()
    }

    /// Of one that is not watched: not known, since ever.
    pub fn get(&self, lba: u64) -> Cell {
        if lba >= self.blocks {
            return Cell { state: BlockState::Unknown, stamp: 0 };
        }
        let chunk = self.chunks.get((lba / CHUNK) as usize).and_then(Option::as_ref);
        let packed = chunk.and_then(|chunk| chunk.get((lba % CHUNK) as usize));
        packed.map_or(Cell { state: self.fresh, stamp: 0 }, |packed| packed.cell())
    }

    /// Nothing, of one that is not watched.
    pub fn set(&mut self, lba: u64, cell: Cell) {
        if lba >= self.blocks {
            return;
        }
        let fresh = Packed::of(Cell { state: self.fresh, stamp: 0 });
        if let Some(chunk) = self.chunks.get_mut((lba / CHUNK) as usize) {
            let chunk = chunk.get_or_insert_with(|| vec![fresh; CHUNK as usize].into());
            if let Some(packed) = chunk.get_mut((lba % CHUNK) as usize) {
                *packed = Packed::of(cell);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_comes_back_as_it_was() {
        let mut cells = Cells::new(CHUNK + 1, BlockState::Never);
        let states = [
            BlockState::Never,
            BlockState::Unknown,
            BlockState::Writing { by: 1, clash: false },
            BlockState::Writing { by: u32::MAX, clash: true },
            BlockState::Known(Sum::of(&[0; 512])),
        ];
        for (stamp, state) in (1..).zip(states) {
            let cell = Cell { state, stamp };
            cells.set(CHUNK, cell);
            assert_eq!(cells.get(CHUNK), cell);
        }
        assert_eq!(cells.get(0).state, BlockState::Never);
        cells.set(CHUNK + 1, Cell { state: BlockState::Never, stamp: 9 });
        assert_eq!(cells.get(CHUNK + 1), Cell { state: BlockState::Unknown, stamp: 0 }, "it does not exist");
    }

    #[test]
    fn memory_is_taken_by_what_was_touched_and_has_an_end() {
        let mut cells = Cells::new(u64::MAX, BlockState::Never);
        assert_eq!(cells.watched(), MOST);
        let empty = cells.memory();
        for lba in [0, 1, CHUNK - 1, MOST, u64::MAX] {
            cells.set(lba, Cell { state: BlockState::Unknown, stamp: 1 });
        }
        assert_eq!(cells.memory() - empty, 64 << 10);
    }

    #[test]
    fn what_a_resize_took_away_is_not_known_when_it_comes_back() {
        let known = BlockState::Known(Sum::of(&[0; 512]));
        let mut cells = Cells::new(2 * CHUNK, known);
        cells.resize(10);
        cells.resize(2 * CHUNK);
        let states = [9, 10, CHUNK - 1].map(|lba| cells.get(lba).state);
        assert_eq!(states, [known, BlockState::Never, BlockState::Never]);
    }
}
