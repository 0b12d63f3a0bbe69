//! What a page shows of a log, gathered line by line in bounded memory.

use std::collections::BTreeMap;

use super::text::result;
use crate::copy::By;
use crate::laboratory::copy_log::{CopyRecord, Opening, Word};

/// Ribbons that a map shows, and points that a chart does: of more, every second one is left out, again and again.
pub(super) const SHAPES: usize = 3000;
/// Rows of the table at the end.
pub(super) const ROWS: usize = 500;

/// Everything that is shown.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// When the log was begun, and by which version.
    pub title: String,
    pub copies: u64,
    pub failed: u64,
    pub dropped: u64,
    /// Bytes by what moved them.
    pub moved: BTreeMap<Word<By>, u64>,
    /// Copies by their source ranges.
    pub ranges: BTreeMap<u64, u64>,
    /// Copies by the power of two of bytes that they reach.
    pub sizes: BTreeMap<u32, u64>,
    /// Copies by the rule that refused them.
    pub rules: BTreeMap<String, u64>,
    /// Copies by how else they failed.
    pub failures: BTreeMap<String, u64>,
    /// Namespaces and the blocks of them that Copies name: the first, and the one after the last.
    pub spaces: BTreeMap<u32, (u64, u64)>,
    pub ribbons: Sample<Ribbon>,
    pub latencies: Sample<Latency>,
    /// The first ones.
    pub rows: Vec<Row>,
}

/// A source range and where it went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ribbon {
    pub from: (u32, u64),
    pub to: (u32, u64),
    pub blocks: u64,
    pub hue: Hue,
    pub number: u64,
}

/// Of one Copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Latency {
    pub ns: u64,
    pub bytes: u64,
    pub hue: Hue,
    pub number: u64,
}

/// One Copy in the table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub number: u64,
    pub time: String,
    pub queue: String,
    pub to: String,
    pub ranges: u64,
    pub blocks: Option<u64>,
    pub latency_ns: u64,
    pub result: String,
    pub hue: Hue,
}

/// What a thing is drawn as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hue {
    Moved(Word<By>),
    /// By several.
    Mixed,
    Failed,
}

impl Hue {
    pub const ALL: [Hue; 6] = [
        Hue::Moved(Word(By::MemMove)),
        Hue::Moved(Word(By::Shared)),
        Hue::Moved(Word(By::KernelCopy)),
        Hue::Moved(Word(By::ReadWrite)),
        Hue::Mixed,
        Hue::Failed,
    ];

    /// What all of these parts were moved by.
    fn of<'a>(copy: &CopyRecord, mut by: impl Iterator<Item = &'a Word<By>>) -> Self {
        if !copy.status.is_success() {
            return Hue::Failed;
        }
        match by.next() {
            Some(first) if by.all(|other| other == first) => Hue::Moved(*first),
            _ => Hue::Mixed,
        }
    }

    /// For the key.
    pub fn name(self) -> &'static str {
        match self {
            Hue::Moved(by) => by.text(),
            Hue::Mixed => "several ways",
            Hue::Failed => "failed or refused",
        }
    }

    /// Its class in the style sheet.
    pub fn class(self) -> &'static str {
        match self {
            Hue::Moved(Word(By::MemMove)) => "memmove",
            Hue::Moved(Word(By::Shared)) => "shared",
            Hue::Moved(Word(By::KernelCopy)) => "kernel",
            Hue::Moved(Word(By::ReadWrite)) => "readwrite",
            Hue::Mixed => "mixed",
            Hue::Failed => "failed",
        }
    }
}

/// Some of many, evenly: every n-th.
#[derive(Debug)]
pub(super) struct Sample<T> {
    pub kept: Vec<T>,
    pub every: u64,
    seen: u64,
}

impl<T> Default for Sample<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), every: 1, seen: 0 }
    }
}

impl<T> Sample<T> {
    fn add(&mut self, one: T) {
        if self.seen.is_multiple_of(self.every) {
            if self.kept.len() == SHAPES {
                let mut keep = false;
                self.kept.retain(|_| {
                    keep = !keep;
                    keep
                });
                self.every *= 2;
            }
            if self.seen.is_multiple_of(self.every) {
                self.kept.push(one);
            }
        }
        self.seen += 1;
    }
}

impl Page {
    pub fn opening(&mut self, opening: &Opening) {
        self.title = format!("begun {} by vfio-user-nvme {}", opening.time, opening.version);
    }

    pub fn dropped(&mut self, count: u64) {
        self.dropped = self.dropped.saturating_add(count);
    }

    pub fn copy(&mut self, copy: &CopyRecord) {
        self.copies += 1;
        let hue = Hue::of(copy, copy.moved.iter().map(|part| &part.by));
        for part in &copy.moved {
            let sum = self.moved.entry(part.by).or_default();
            *sum = sum.saturating_add(part.len);
        }
        let block = copy.namespaces.first().map_or(1, |ns| ns.logical_block_size);
        let bytes = copy.blocks().map(|blocks| blocks.saturating_mul(block));
        *self.ranges.entry(copy.command.nr.into()).or_default() += 1;
        if let Some(bytes) = bytes.filter(|bytes| *bytes > 0) {
            *self.sizes.entry(bytes.ilog2()).or_default() += 1;
        }
        if !copy.status.is_success() {
            self.failed += 1;
            match &copy.refused {
                Some(refusal) => *self.rules.entry(refusal.rule.clone()).or_default() += 1,
                None => *self.failures.entry(copy.status.to_string()).or_default() += 1,
            }
        }
        self.latencies.add(Latency {
            ns: copy.latency_ns,
            bytes: bytes.unwrap_or(0),
            hue,
            number: copy.number,
        });
        self.map(copy);
        if self.rows.len() < ROWS {
            self.rows.push(Row {
                number: copy.number,
                time: copy.time.to_string(),
                queue: format!("{}/{} {:#06x}", copy.controller, copy.sqid, copy.cid),
                to: format!("{}:{}", copy.command.nsid, copy.command.sdlba),
                ranges: copy.command.nr.into(),
                blocks: copy.blocks(),
                latency_ns: copy.latency_ns,
                result: result(copy),
                hue,
            });
        }
    }

    fn map(&mut self, copy: &CopyRecord) {
        let dst = copy.command.nsid;
        let mut to = copy.command.sdlba;
        for (index, range) in (0_u16..).zip(copy.ranges.as_deref().unwrap_or_default()) {
            let (snsid, blocks) = (range.snsid.unwrap_or(dst), u64::from(range.nlb));
            let parts = copy.moved.iter().filter(|part| part.range == index);
            let hue = Hue::of(copy, parts.map(|part| &part.by));
            self.reach(snsid, range.slba, blocks);
            self.reach(dst, to, blocks);
            let ribbon =
                Ribbon { from: (snsid, range.slba), to: (dst, to), blocks, hue, number: copy.number };
            self.ribbons.add(ribbon);
            to = to.saturating_add(blocks);
        }
    }

    fn reach(&mut self, nsid: u32, start: u64, blocks: u64) {
        let end = start.saturating_add(blocks);
        let space = self.spaces.entry(nsid).or_insert((start, end));
        *space = (space.0.min(start), space.1.max(end));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refused, succeeded};
    use super::*;

    #[test]
    fn a_sample_is_even_and_bounded() {
        let mut sample = Sample::default();
        (0..SHAPES as u64 * 5).for_each(|n| sample.add(n));
        assert!(sample.kept.len() > SHAPES / 2 && sample.kept.len() <= SHAPES);
        assert_eq!(sample.every, 8);
        assert!(sample.kept.iter().enumerate().all(|(at, n)| *n == at as u64 * 8));
    }

    #[test]
    fn all_of_it_is_counted() {
        let mut page = Page::default();
        page.copy(&succeeded(1, 1000, &[(0, 8), (50, 16)]));
        page.copy(&refused(2, 2000, &[(10, 101)]));
        page.dropped(3);
        assert_eq!((page.copies, page.failed, page.dropped), (2, 1, 3));
        assert_eq!(page.spaces, BTreeMap::from([(1, (0, 2101))]));
        assert_eq!(page.sizes, BTreeMap::from([(13, 1), (15, 1)]));
        assert_eq!(page.ranges, BTreeMap::from([(1, 1), (2, 1)]));
        assert_eq!(page.rules, BTreeMap::from([("mssrl".to_owned(), 1)]));
        let hues: Vec<_> = page.ribbons.kept.iter().map(|ribbon| (ribbon.to.1, ribbon.hue)).collect();
        let memory = Hue::Moved(Word(By::MemMove));
        assert_eq!(hues, [(1000, memory), (1008, memory), (2000, Hue::Failed)]);
    }
}
