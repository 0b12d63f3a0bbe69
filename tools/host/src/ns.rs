//! A namespace as the host knows it, with a shadow of every block.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use super::Rng;
use super::identify::NsFacts;

#[derive(Clone, PartialEq, Eq)]
pub struct Ns {
    pub nsid: u32,
    /// Bytes of a block.
    pub lba: usize,
    /// Blocks.
    pub nsze: u64,
    pub mssrl: u32,
    pub mcl: u32,
    /// Ranges, 1-based (the field is 0-based).
    pub ranges: usize,
    /// What every byte must be.
    pub shadow: Vec<u8>,
    /// Blocks that were deallocated and not looked at since: the old content or zeroes.
    pub trimmed: BTreeSet<u64>,
}

impl Ns {
    /// Without a shadow.
    pub fn new(nsid: u32, facts: &NsFacts) -> Ns {
        assert_eq!(facts.ms, 0, "metadata");
        Ns {
            nsid,
            lba: 1 << facts.lbads,
            nsze: facts.nsze,
            mssrl: u32::from(facts.mssrl),
            mcl: facts.mcl,
            ranges: usize::from(facts.msrc) + 1,
            shadow: Vec::new(),
            trimmed: BTreeSet::new(),
        }
    }

    pub fn bytes(&self, slba: u64, blocks: u32) -> std::ops::Range<usize> {
        let at = slba as usize * self.lba;
        at..at + blocks as usize * self.lba
    }

    pub fn at(&self, slba: u64, blocks: u32) -> &[u8] {
        &self.shadow[self.bytes(slba, blocks)]
    }

    /// Content of its own for each place and salt. A block begins with NSID, LBA and salt, so that data in
    /// the wrong place is seen to be that; the rest is a window on random bytes, so that a shift by any
    /// number of bytes shows.
    pub fn pattern(&self, slba: u64, blocks: u32, salt: u64) -> Vec<u8> {
        static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| Rng::fixed().bytes(1 << 17));
        let mut v = Vec::with_capacity(self.lba * blocks as usize);
        for b in slba..slba + u64::from(blocks) {
            let name = u64::from(self.nsid) << 48 | b;
            v.extend_from_slice(&name.to_le_bytes());
            v.extend_from_slice(&salt.to_le_bytes());
            let mixed = (name ^ salt.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let at = (mixed >> 40) as usize % (NOISE.len() - self.lba);
            v.extend_from_slice(&NOISE[at..at + self.lba - 16]);
        }
        v
    }

    pub fn set(&mut self, slba: u64, bytes: &[u8]) {
        let blocks = (bytes.len() / self.lba) as u32;
        let r = self.bytes(slba, blocks);
        self.shadow[r].copy_from_slice(bytes);
        for b in slba..slba + u64::from(blocks) {
            self.trimmed.remove(&b);
        }
    }

    pub fn any_trimmed(&self, slba: u64, blocks: u32) -> bool {
        self.trimmed.range(slba..slba + u64::from(blocks)).next().is_some()
    }

    /// Compares what was read with the shadow, and learns what became of deallocated blocks.
    #[track_caller]
    pub fn check(&mut self, slba: u64, got: &[u8]) {
        let (nsid, lba) = (self.nsid, self.lba);
        for (i, block) in got.chunks(lba).enumerate() {
            let b = slba + i as u64;
            if self.trimmed.contains(&b) && block.iter().all(|&x| x == 0) {
                self.set(b, block);
                continue;
            }
            let want = self.at(b, 1);
            if block != want {
                let k = block.iter().zip(want).position(|(a, b)| a != b).unwrap();
                panic!(
                    "ns {nsid} block {b} byte {k}: {:02x?} instead of {:02x?}",
                    &block[k & !15..(k & !15) + 16],
                    &want[k & !15..(k & !15) + 16],
                );
            }
            self.trimmed.remove(&b);
        }
    }

    /// Reads the image file from outside.
    #[track_caller]
    pub fn verify_image(&mut self, path: &Path) {
        let got = std::fs::read(path).expect("image");
        assert_eq!(got.len(), self.shadow.len(), "size of {}", path.display());
        self.check(0, &got);
    }
}
