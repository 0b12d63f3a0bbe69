//! Do destinations lie side by side?

use std::collections::BTreeMap;

use crate::laboratory::copy_log::CopyRecord;

/// Faults that are named for each namespace.
const NAMED: usize = 5;

/// Destinations of Copies, by namespace: first block, the one after the last, and which Copy it was.
#[derive(Debug, Default)]
pub(super) struct Tiles(BTreeMap<u32, Vec<(u64, u64, u64)>>);

impl Tiles {
    /// A Copy that succeeded.
    pub fn add(&mut self, copy: &CopyRecord) {
        let (start, blocks) = (copy.command.sdlba, copy.blocks().unwrap_or(0));
        let of = self.0.entry(copy.command.nsid).or_default();
        of.push((start, start.saturating_add(blocks), copy.number));
    }

    /// Where there is a gap, or a block was written twice.
    pub fn faults(self) -> Vec<String> {
        let mut faults = Vec::new();
        for (nsid, mut tiles) in self.0 {
            tiles.sort_unstable();
            let mut found = 0;
            // Which one reaches furthest so far.
            let mut last: Option<(u64, u64)> = None;
            for (start, end, number) in tiles {
                let fault = last.and_then(|(reached, by)| match start {
                    start if start > reached => Some(format!(
                        "namespace {nsid}: no Copy wrote blocks {reached} to {}, between copies {by} and {number}",
                        start - 1
                    )),
                    start if start < reached => Some(format!(
                        "namespace {nsid}: copies {by} and {number} both wrote block {start}"
                    )),
                    _ => None,
                });
                found += usize::from(fault.is_some());
                faults.extend(fault.filter(|_| found <= NAMED));
                last = match last {
                    Some((reached, by)) if reached >= end => Some((reached, by)),
                    _ => Some((end, number)),
                };
            }
            if found > NAMED {
                faults.push(format!("namespace {nsid}: and {} more such places", found - NAMED));
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::succeeded;
    use super::*;

    /// Of Copies given as first block and blocks, in the order in which they ended.
    fn faults(copies: &[(u64, u32)]) -> Vec<String> {
        let mut tiles = Tiles::default();
        for (number, &(sdlba, nlb)) in (1..).zip(copies) {
            tiles.add(&succeeded(number, sdlba, &[(0, nlb)]));
        }
        tiles.faults()
    }

    #[test]
    fn side_by_side_in_any_order() {
        assert_eq!(faults(&[(16, 8), (0, 8), (8, 8)]), [""; 0]);
        assert_eq!(faults(&[]), [""; 0]);
        assert_eq!(
            faults(&[(16, 8), (0, 8)]),
            ["namespace 1: no Copy wrote blocks 8 to 15, between copies 2 and 1"]
        );
        assert_eq!(faults(&[(0, 8), (7, 8)]), ["namespace 1: copies 1 and 2 both wrote block 7"]);
        // One within another, and what lies behind both.
        assert_eq!(
            faults(&[(0, 16), (4, 4), (16, 4), (21, 1)]),
            [
                "namespace 1: copies 1 and 2 both wrote block 4",
                "namespace 1: no Copy wrote blocks 20 to 20, between copies 3 and 4"
            ]
        );
        let gaps: Vec<_> = (0..9).map(|n| (n * 2, 1)).collect();
        assert_eq!(faults(&gaps).last().unwrap(), "namespace 1: and 3 more such places");
    }
}
