//! NVMe Copy by nvme-cli against the model: every limit, one past it, refusals that change nothing.

use anyhow::ensure;
use guest_tests::device::Kind;
use guest_tests::model::Model;
use guest_tests::nvme::{self, Copy, Status};

use crate::session::Session;
use crate::{Outcome, kind};

/// A namespace filled with pattern, and its model.
pub struct Target {
    pub nsid: u32,
    pub node: String,
    pub model: Model,
}

impl Target {
    /// Fills the first eighth of the namespace.
    pub fn fill(s: &Session, nsid: u32, seed: u64) -> anyhow::Result<Self> {
        let ns = s.ns(nsid)?;
        let node = s.node(nsid)?;
        let mut model = Model::of(ns.image()?, ns.block)?;
        let blocks = model.blocks() / 8;
        s.guest.tool(&["fill", &node, "0", &(blocks * ns.block as u64).to_string(), &seed.to_string()])?;
        model.fill(0, blocks, seed)?;
        let target = Self { nsid, node, model };
        target.check(s)?;
        Ok(target)
    }

    /// The image from outside and the device from inside are what the model says.
    pub fn check(&self, s: &Session) -> anyhow::Result<()> {
        self.model.check(s.ns(self.nsid)?.image()?)?;
        let inside = s.guest.tool(&["sum", &self.node])?;
        ensure!(inside == self.model.sum(), "the guest reads other data than the image holds");
        Ok(())
    }

    /// Must succeed; `source` is for formats that name one.
    pub fn accept(&mut self, s: &Session, copy: &Copy, source: Option<&Model>) -> anyhow::Result<()> {
        let answer = copy.run(&s.guest, &self.node)?;
        ensure!(answer.is_ok(), "{copy:?}: {answer:?}");
        self.model.copy(source, copy.sdlba, &copy.ranges)
    }

    /// Must be refused with `status`.
    pub fn refuse(&self, s: &Session, copy: &Copy, status: u16) -> anyhow::Result<()> {
        let answer = copy.run(&s.guest, &self.node)?;
        let right = answer.is_err_and(|got| got.code() == status);
        ensure!(right, "{copy:?}: {answer:?}, not a refusal with {status:#x}");
        Ok(())
    }
}

/// Every limit of one namespace and one past it.
fn limits(s: &Session, nsid: u32) -> Outcome {
    let (mssrl, mcl, msrc) = s.ns(nsid)?.limits;
    let mut t = Target::fill(s, nsid, 100 + u64::from(nsid))?;
    let half = t.model.blocks() / 2;
    let ranges = msrc + 1;
    t.accept(s, &Copy::new(half, &[(5, 1)]), None)?;
    t.accept(s, &Copy::new(half + 10, &[(17, 8), (1000, 16), (0, 1)]), None)?;
    // A single range of MSSRL blocks, and one block more.
    t.accept(s, &Copy::new(half + 1000, &[(3, mssrl)]), None)?;
    t.refuse(s, &Copy::new(half + 1000, &[(7, mssrl + 1)]), nvme::SIZE_LIMIT)?;
    // MSRC + 1 ranges, and one range more.
    let few: Vec<(u64, u32)> = (0..u64::from(ranges)).map(|n| (n * 31, 1)).collect();
    t.accept(s, &Copy::new(half + 2000, &few), None)?;
    t.refuse(s, &Copy::new(half + 2000, &[&few[..], &[(2, 1)]].concat()), nvme::SIZE_LIMIT)?;
    // MCL blocks in all, and one more, in ranges that are each allowed.
    let mut whole = Vec::new();
    let mut left = mcl;
    while left > 0 {
        let n = left.min(mssrl);
        whole.push((whole.len() as u64 * 300, n));
        left -= n;
    }
    ensure!(whole.len() < ranges as usize, "the limits of the session leave no room for one block past MCL");
    t.accept(s, &Copy::new(half + 3000, &whole), None)?;
    let before = t.model.clone();
    t.refuse(s, &Copy::new(half + 3500, &[&whole[..], &[(9, 1)]].concat()), nvme::SIZE_LIMIT)?;
    if kind() == Kind::Daemon {
        // QEMU's own device copies range by range and looks at MSSRL only when a range's turn comes.
        t.refuse(s, &Copy::new(half + 3800, &[(0, 4), (0, mssrl + 1)]), nvme::SIZE_LIMIT)?;
    }
    t.model = before;
    // The same source twice and overlapping sources are allowed.
    t.accept(s, &Copy::new(half + 4000, &[(50, 4), (50, 4), (52, 4)]), None)?;
    // Source and destination side by side.
    t.accept(s, &Copy::new(half + 4108, &[(half + 4100, 8)]), None)?;
    t.check(s)?;
    Ok(None)
}

pub fn limits_512(s: &Session) -> Outcome {
    limits(s, 1)
}

pub fn limits_4096(s: &Session) -> Outcome {
    limits(s, 2)
}

/// The limits a device has when nobody names any: 127 ranges, 16 MiB a range, 64 MiB a command (512-byte
/// blocks).
pub fn default_limits(s: &Session) -> Outcome {
    const NSID: u32 = 7;
    let (mssrl, mcl, msrc) = s.ns(NSID)?.limits;
    let mut t = Target::fill(s, NSID, 110)?;
    let half = t.model.blocks() / 2;
    let many: Vec<(u64, u32)> = (0..=u64::from(msrc)).map(|n| (n * 200, 1 + n as u32 % 90)).collect();
    t.accept(s, &Copy::new(half, &many), None)?;
    t.refuse(s, &Copy::new(half, &[&many[..], &[(0, 1)]].concat()), nvme::SIZE_LIMIT)?;
    t.accept(s, &Copy::new(half + 10_000, &[(1, mssrl)]), None)?;
    t.refuse(s, &Copy::new(half + 10_000, &[(3, mssrl + 1)]), nvme::SIZE_LIMIT)?;
    // MSSRL divides MCL: four whole ranges fill a command to the brim.
    let brim: Vec<(u64, u32)> = (0..u64::from(mcl / mssrl)).map(|n| (n * 1000 + 7, mssrl)).collect();
    t.accept(s, &Copy::new(half + 20_000, &brim), None)?;
    t.refuse(s, &Copy::new(half + 20_000, &[&brim[..], &[(0, 1)]].concat()), nvme::SIZE_LIMIT)?;
    t.check(s)?;
    Ok(None)
}

/// The largest limits there can be: 256 ranges, and a range of all but one of the blocks the field can say.
pub fn largest_limits(s: &Session) -> Outcome {
    const NSID: u32 = 8;
    let (mssrl, _, msrc) = s.ns(NSID)?.limits;
    let mut t = Target::fill(s, NSID, 120)?;
    let half = t.model.blocks() / 2;
    let all: Vec<(u64, u32)> = (0..=u64::from(msrc)).map(|n| (n * 120, 1 + n as u32 % 100)).collect();
    t.accept(s, &Copy::new(half, &all), None)?;
    t.accept(s, &Copy::new(half + 50_000, &[(11, mssrl)]), None)?;
    t.refuse(s, &Copy::new(half + 50_000, &[(13, mssrl + 1)]), nvme::SIZE_LIMIT)?;
    t.check(s)?;
    Ok(None)
}

/// Ranges past the end on either side are refused, and nothing is written.
pub fn out_of_range(s: &Session) -> Outcome {
    for nsid in [1, 2] {
        let t = Target::fill(s, nsid, 200 + u64::from(nsid))?;
        let end = t.model.blocks();
        let half = end / 2;
        for copy in [
            Copy::new(half, &[(end - 3, 4)]),
            Copy::new(half, &[(end, 1)]),
            Copy::new(half, &[(u64::MAX, 1)]),
            Copy::new(end - 3, &[(0, 4)]),
            Copy::new(end, &[(0, 1)]),
            Copy::new(u64::MAX, &[(0, 2)]),
        ] {
            t.refuse(s, &copy, nvme::LBA_OUT_OF_RANGE)?;
        }
        if kind() == Kind::Daemon {
            // A later range is wrong: the earlier ones must not have been copied. (QEMU's own device has
            // copied them.)
            t.refuse(s, &Copy::new(half, &[(0, 4), (8, 4), (end - 1, 2)]), nvme::LBA_OUT_OF_RANGE)?;
        }
        t.check(s)?;
    }
    Ok(None)
}

/// The agent's own loop, which the benchmark measures: it copies what it says it copies.
pub fn in_a_loop(s: &Session) -> Outcome {
    let mut t = Target::fill(s, 1, 250)?;
    let half = t.model.blocks() / 2;
    let block = s.ns(1)?.block as u64;
    // Two ranges of 64 blocks in each command, one command in flight, for 300 ms.
    let said = s.guest.tool(&["copies", &t.node, "1", &block.to_string(), "64", "2", "1", "300"])?;
    let bytes: u64 = said.split(' ').next().unwrap_or_default().parse()?;
    ensure!(bytes > 0 && bytes.is_multiple_of(128 * block), "{said}");
    // It goes round once it has been through the half, and copies the same again. Its two ranges are the
    // wrong way round.
    for at in (0..half.min(bytes / block)).step_by(128) {
        t.model.copy(None, half + at, &[(at + 64, 64), (at, 64)])?;
    }
    t.check(s)?;
    // More blocks in a range than MSSRL: the loop ends and says why.
    let refused = s.guest.tool(&["copies", &t.node, "1", &block.to_string(), "129", "1", "1", "0"]);
    let told = refused.as_ref().map_err(ToString::to_string).err().unwrap_or_default();
    let hex = told.trim_end().rsplit_once("refused: status 0x").map_or("", |(_, hex)| hex);
    // Whether there is More in the error log is not this case's matter.
    let right = u16::from_str_radix(hex, 16).is_ok_and(|status| Status(status).code() == nvme::SIZE_LIMIT);
    ensure!(right, "MSSRL was not held: {refused:?}");
    t.check(s)?;
    Ok(None)
}
