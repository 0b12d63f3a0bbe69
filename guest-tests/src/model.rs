//! What an image must hold: the host applies to a buffer what the guest did to the device.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use guest_agent::pattern::{self, Sum};

/// Content of one namespace.
#[derive(Debug, Clone)]
pub struct Model {
    bytes: Vec<u8>,
    block: usize,
}

impl Model {
    /// All zeroes: a fresh image of `size` bytes in blocks of `block` bytes.
    #[must_use]
    pub fn new(size: usize, block: usize) -> Self {
        Self { bytes: vec![0; size], block }
    }

    /// What the image holds now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(image: &Path, block: usize) -> anyhow::Result<Self> {
        Ok(Self { bytes: std::fs::read(image).with_context(|| image.display().to_string())?, block })
    }

    /// Blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        (self.bytes.len() / self.block) as u64
    }

    /// The agent's `fill` tool, in blocks.
    ///
    /// # Errors
    /// When the range is outside.
    pub fn fill(&mut self, lba: u64, count: u64, seed: u64) -> anyhow::Result<()> {
        let at = lba * self.block as u64;
        let range = self.range(lba, count)?;
        pattern::fill(&mut self.bytes[range], at, seed);
        Ok(())
    }

    /// Copy from `source` (another namespace) or from itself: all ranges read, then written one behind the
    /// other at `sdlba`.
    ///
    /// # Errors
    /// When a range is outside.
    pub fn copy(&mut self, source: Option<&Self>, sdlba: u64, ranges: &[(u64, u32)]) -> anyhow::Result<()> {
        let mut data = Vec::new();
        for &(lba, count) in ranges {
            let from = source.unwrap_or(self);
            data.extend_from_slice(&from.bytes[from.range(lba, u64::from(count))?]);
        }
        let to = self.range(sdlba, (data.len() / self.block) as u64)?;
        self.bytes[to].copy_from_slice(&data);
        Ok(())
    }

    fn range(&self, lba: u64, count: u64) -> anyhow::Result<std::ops::Range<usize>> {
        ensure!(
            lba.checked_add(count).is_some_and(|end| end <= self.blocks()),
            "{count} blocks from {lba} on are outside"
        );
        let start = usize::try_from(lba)? * self.block;
        Ok(start..start + usize::try_from(count)? * self.block)
    }

    /// The sum the agent's `sum` tool prints for an equal device.
    #[must_use]
    pub fn sum(&self) -> String {
        let mut sum = Sum::default();
        sum.update(&self.bytes);
        format!("{:016x}", sum.finish())
    }

    /// Is the image, read from outside, exactly this?
    ///
    /// # Errors
    /// Names the first block that differs.
    pub fn check(&self, image: &Path) -> anyhow::Result<()> {
        let other = Self::of(image, self.block)?;
        ensure!(
            other.bytes.len() == self.bytes.len(),
            "{} has {} bytes, not {}",
            image.display(),
            other.bytes.len(),
            self.bytes.len()
        );
        if other.bytes == self.bytes {
            return Ok(());
        }
        let differs = |lba: &usize| {
            let range = lba * self.block..(lba + 1) * self.block;
            other.bytes[range.clone()] != self.bytes[range]
        };
        let blocks = self.bytes.len() / self.block;
        let wrong: Vec<usize> = (0..blocks).filter(differs).collect();
        bail!(
            "{}: {} of {blocks} blocks differ from the model, the first is {:?}",
            image.display(),
            wrong.len(),
            wrong.first()
        )
    }
}

/// The sum of a file, read in parts; what the agent prints for an equal device.
///
/// # Errors
/// When it cannot be read.
pub fn sum_of(image: &Path) -> anyhow::Result<String> {
    let mut file = File::open(image).with_context(|| image.display().to_string())?;
    let mut sum = Sum::default();
    let mut part = vec![0; 1 << 20];
    loop {
        let mut have = 0;
        while have < part.len() {
            match file.read(&mut part[have..])? {
                0 => break,
                n => have += n,
            }
        }
        sum.update(&part[..have]);
        if have < part.len() {
            return Ok(format!("{:016x}", sum.finish()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_concatenates_and_a_changed_block_is_named() {
        let mut model = Model::new(16 * 512, 512);
        model.fill(0, 8, 1).unwrap();
        model.copy(None, 10, &[(3, 1), (0, 2)]).unwrap();
        assert_eq!(model.bytes[10 * 512..11 * 512], pattern::bytes(3 * 512, 512, 1)[..]);
        assert_eq!(model.bytes[11 * 512..13 * 512], pattern::bytes(0, 1024, 1)[..]);
        assert!(model.copy(None, 15, &[(0, 2)]).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut image = model.bytes.clone();
        std::fs::write(file.path(), &image).unwrap();
        model.check(file.path()).unwrap();
        assert_eq!(sum_of(file.path()).unwrap(), model.sum());
        image[11 * 512 + 7] ^= 1;
        std::fs::write(file.path(), &image).unwrap();
        assert!(model.check(file.path()).unwrap_err().to_string().contains("Some(11)"));
    }
}
