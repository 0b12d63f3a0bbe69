//! Which blocks a command touches: random or in sequence, read or write.

use nvme_host::Rng;
use serde::Serialize;

/// What the load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Rw {
    /// Reads, one piece after the other.
    Read,
    /// Writes, one piece after the other.
    Write,
    /// Reads anywhere.
    RandRead,
    /// Writes anywhere.
    RandWrite,
    /// Reads and writes anywhere, in the proportion of --mix.
    RandRw,
    /// NVM Copy of one range each, from anywhere in the first half of the span to anywhere in the second.
    Copy,
}

impl Rw {
    /// Does it leave the data as they are?
    pub(crate) fn only_reads(self) -> bool {
        matches!(self, Self::Read | Self::RandRead)
    }

    /// Its word on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::RandRw => "randrw",
            Self::Copy => "copy",
        }
    }
}

/// One step of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read this piece.
    Read(u64),
    /// Write this piece.
    Write(u64),
    /// Copy from one piece to another.
    Copy {
        /// Source.
        from: u64,
        /// Destination.
        to: u64,
    },
}

/// An endless series of steps over `pieces` pieces of one block size each.
pub(crate) struct Pattern {
    rw: Rw,
    pieces: u64,
    next: u64,
    rng: Rng,
    /// Of 2^32: how many steps of a mix are reads.
    reads: u64,
}

impl Pattern {
    /// For load thread `index` of `of`: sequences of several threads begin evenly spread. `mix`: reads in per
    /// cent.
    pub(crate) fn new(rw: Rw, mix: u8, pieces: u64, index: u64, of: u64) -> Self {
        let next = (u128::from(pieces) * u128::from(index) / u128::from(of.max(1))) as u64;
        let reads = (u64::from(mix) << 32) / 100;
        Self { rw, pieces, next, rng: Rng::numbered(index), reads }
    }

    pub(crate) fn next(&mut self) -> Step {
        match self.rw {
            Rw::Read => Step::Read(self.advance()),
            Rw::Write => Step::Write(self.advance()),
            Rw::RandRead => Step::Read(self.rng.below(self.pieces)),
            Rw::RandWrite => Step::Write(self.rng.below(self.pieces)),
            Rw::RandRw => {
                let piece = self.rng.below(self.pieces);
                if self.rng.next() >> 32 < self.reads { Step::Read(piece) } else { Step::Write(piece) }
            }
            Rw::Copy => {
                let half = self.pieces / 2;
                Step::Copy { from: self.rng.below(half), to: half + self.rng.below(half) }
            }
        }
    }

    fn advance(&mut self) -> u64 {
        let piece = self.next;
        self.next = if piece + 1 >= self.pieces { 0 } else { piece + 1 };
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(rw: Rw, mix: u8, pieces: u64, index: u64, of: u64, count: usize) -> Vec<Step> {
        let mut pattern = Pattern::new(rw, mix, pieces, index, of);
        (0..count).map(|_| pattern.next()).collect()
    }

    #[test]
    fn sequences_begin_spread_and_wrap() {
        let at = |piece| Step::Read(piece);
        assert_eq!(steps(Rw::Read, 0, 4, 1, 2, 4), [at(2), at(3), at(0), at(1)]);
        assert_eq!(steps(Rw::Write, 0, 1, 0, 1, 2), [Step::Write(0), Step::Write(0)]);
    }

    #[test]
    fn random_steps_stay_in_and_reach_all() {
        let mut seen = [false; 8];
        for step in steps(Rw::RandRead, 0, 8, 0, 1, 200) {
            let Step::Read(piece) = step else { panic!("{step:?}") };
            seen[piece as usize] = true;
        }
        assert_eq!(seen, [true; 8]);
    }

    #[test]
    fn a_mix_has_its_share() {
        for (mix, range) in [(0, 0..=0), (30, 2700..=3300), (100, 10_000..=10_000)] {
            let reads = steps(Rw::RandRw, mix, 64, 0, 1, 10_000);
            let reads = reads.iter().filter(|step| matches!(step, Step::Read(_))).count();
            assert!(range.contains(&reads), "{mix}: {reads}");
        }
    }

    #[test]
    fn copies_go_from_the_first_half_to_the_second() {
        for step in steps(Rw::Copy, 0, 9, 0, 1, 100) {
            let Step::Copy { from, to } = step else { panic!("{step:?}") };
            assert!(from < 4 && (4..8).contains(&to));
        }
    }
}
