//! The table of checks, row by row and against a model that thinks in single blocks.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::capabilities::Capabilities;
use super::checks::TABLE;
use super::plan::*;
use super::range::SourceRange;
use super::testing::{command, encode, namespace, special};
use crate::disk::Ways;
use crate::namespace::{Cntlid, CopyPolicy, Method, Namespace, Namespaces, Overlap};
use crate::spec::Status;
use crate::spec::copy::CopyCommand;

/// A command, its list and the world it meets. Every field may be changed before it is tried.
struct Scenario {
    command: CopyCommand,
    ranges: Vec<SourceRange>,
    /// NSID 1, 2 and 4; NSID 3 and 5 are inactive.
    namespaces: [Namespace; 3],
    capabilities: Capabilities,
}

const DST: usize = 0;
const OTHER: usize = 1;
const BLOCKS: u64 = 2000;

impl Scenario {
    /// Nine ranges of eight blocks from namespace 2 to 1, format 2: allowed.
    fn new() -> Self {
        Self::of(2, 1000, (0..9).map(|i| SourceRange::plain(Some(2), i * 16, 8)).collect())
    }

    /// Ranges to namespace 1.
    fn of(desfmt: u8, sdlba: u64, ranges: Vec<SourceRange>) -> Self {
        Self {
            command: command(1, sdlba, desfmt, ranges.len()),
            ranges,
            namespaces: [namespace(1, BLOCKS, 9), namespace(2, BLOCKS, 9), namespace(4, BLOCKS, 12)],
            capabilities: Capabilities { ocfs: 0xf, cdfe: 0xc, ..Capabilities::default() },
        }
    }

    fn set_sdlba(&mut self, sdlba: u64) {
        self.command.cdw[0] = sdlba as u32;
        self.command.cdw[1] = (sdlba >> 32) as u32;
    }

    /// Through bytes, as a worker would.
    fn try_it(self) -> Result<CopyPlan, Reject> {
        let namespaces = Namespaces::new(self.namespaces.into(), 5);
        let checked = check_command(&self.command, &namespaces, self.capabilities)?;
        let list = encode(self.command.desfmt(), &self.ranges);
        assert_eq!(checked.list_len(), list.len());
        plan(&checked, &checked.decode(&list)?, &namespaces)
    }

    fn status(self) -> Status {
        self.try_it().err().map_or(Status::SUCCESS, |reject| reject.status)
    }
}

/// Under `copy_overlap=reject`.
fn tried(desfmt: u8, sdlba: u64, ranges: &[(u32, u64, u32)]) -> Result<CopyPlan, Reject> {
    tried_under(Overlap::Reject, desfmt, sdlba, ranges)
}

fn tried_under(
    overlap: Overlap,
    desfmt: u8,
    sdlba: u64,
    ranges: &[(u32, u64, u32)],
) -> Result<CopyPlan, Reject> {
    let ranges = ranges
        .iter()
        .map(|&(snsid, slba, nlb)| SourceRange::plain((desfmt >= 2).then_some(snsid), slba, nlb))
        .collect();
    let mut scenario = Scenario::of(desfmt, sdlba, ranges);
    scenario.namespaces[DST].facts.policy.overlap = overlap;
    scenario.try_it()
}

/// Breaks a command.
type Fault = fn(&mut Scenario);

/// For each row of the table: what breaks it and nothing above it, the status in full, the range to blame.
const FAULTS: [(Fault, u16, Option<u8>); 19] = [
    (|s| s.command.nsid = 6, 0x400b, None),
    (|s| s.command.nsid = 3, 0x4002, None),
    (|s| s.capabilities.cdfe = 0, 0x4002, None),
    (|s| s.command.cdw[2] |= 1 << 20, 0x4002, None),
    (|s| s.command.cdw[2] |= 1 << 16, 0x4002, None),
    (|s| s.namespaces[DST].facts.copy.msrc = 7, 0x4183, None),
    (|s| s.command.cdw[2] |= 3 << 8, 0x400b, None),
    (|s| s.namespaces[DST].facts.read_only = true, 0x4020, None),
    (|s| s.ranges[0].reserved = true, 0x4002, Some(0)),
    (|s| s.ranges[1].cetype = 1, 0x4002, Some(1)),
    (|s| s.ranges[2].snsid = Some(0), 0x400b, Some(2)),
    (|s| s.ranges[3].snsid = Some(3), 0x4002, Some(3)),
    (|s| s.ranges[4].snsid = Some(4), 0x4185, Some(4)),
    (
        |s| {
            s.namespaces[OTHER].facts.copy.mssrl = 32;
            s.ranges[5].nlb = 33;
        },
        0x4183,
        Some(5),
    ),
    (|s| s.namespaces[DST].facts.copy.mcl = 71, 0x4183, None),
    (|s| s.set_sdlba(BLOCKS - 71), 0x4080, None),
    (|s| s.ranges[6].slba = BLOCKS - 7, 0x4080, Some(6)),
    (|s| s.ranges[7] = SourceRange::plain(Some(1), s.command.sdlba(), 8), 0x4187, Some(7)),
    (|s| s.ranges[8].fco = true, 0x4186, Some(8)),
];

/// 64 KiB of memory, in one range, and nothing that needs more than a move. What is left to a task has not
/// begun.
#[test]
fn only_a_short_plain_move_is_made_at_once() {
    use crate::disk::MemoryDisk;
    use crate::namespace::Identity;
    type Change<'a> = &'a dyn Fn(&mut Scenario);

    let memory = |nsid| {
        let image = Arc::new(MemoryDisk::new(BLOCKS << 9).expect("the memory is there"));
        Namespace::new(nsid, image, 9, super::testing::LIMITS, Identity::default())
    };
    let scenario = |blocks: &[u32], change: Change<'_>| {
        let ranges = blocks.iter().map(|nlb| SourceRange::plain(Some(2), 0, *nlb)).collect();
        let mut scenario = Scenario::of(2, 1000, ranges);
        (scenario.namespaces[DST], scenario.namespaces[OTHER]) = (memory(1), memory(2));
        change(&mut scenario);
        scenario.try_it()
    };
    let policy = |method| CopyPolicy { method, ..CopyPolicy::default() };
    let unchanged = |_: &mut Scenario| {};
    let fua = |scenario: &mut Scenario| scenario.command.cdw[2] |= 1 << 30;
    let bounce = |s: &mut Scenario| s.namespaces[DST].facts.policy = policy(Method::Bounce);
    let dulbe = |s: &mut Scenario| s.namespaces[OTHER].set_dulbe(Cntlid::default(), true);
    let from_file = |s: &mut Scenario| s.namespaces[OTHER] = namespace(2, BLOCKS, 9);
    let to_file = |s: &mut Scenario| s.namespaces[DST] = namespace(1, BLOCKS, 9);
    let cases: [(&[u32], Change<'_>, bool); 9] = [
        (&[1], &unchanged, true),
        (&[128], &unchanged, true),
        (&[129], &unchanged, false),
        (&[1, 1], &unchanged, false),
        (&[8], &fua, false),
        (&[8], &bounce, false),
        (&[8], &dulbe, false),
        (&[8], &from_file, false),
        (&[8], &to_file, false),
    ];
    for (n, (blocks, change, at_once)) in cases.into_iter().enumerate() {
        let plan = scenario(blocks, change).expect("the command is sound");
        assert_eq!(plan.move_now(), at_once, "case {n}");
    }
    let plan = scenario(&[8], &unchanged).expect("the command is sound").durable();
    assert!(!plan.move_now());
}

#[test]
fn a_sound_command_is_planned() {
    assert_eq!(Scenario::new().status(), Status::SUCCESS);
}

#[test]
fn each_row_refuses_what_it_names() {
    assert_eq!(TABLE.len(), FAULTS.len(), "every row has its fault here");
    for (row, (fault, status, range)) in TABLE.iter().zip(FAULTS) {
        let mut scenario = Scenario::new();
        fault(&mut scenario);
        let reject = scenario.try_it().expect_err(row.what);
        assert_eq!(reject, Reject { status: Status(status), range, rule: row.rule, what: row.what });
    }
}

#[test]
fn of_two_faults_the_upper_row_answers() {
    for (upper, (upper_fault, ..)) in FAULTS.iter().enumerate() {
        for (lower, (lower_fault, ..)) in FAULTS.iter().enumerate().skip(upper + 1) {
            if (upper, lower) == (0, 1) {
                continue; // one NSID cannot be both
            }
            let mut scenario = Scenario::new();
            lower_fault(&mut scenario);
            upper_fault(&mut scenario);
            let reject = scenario.try_it().expect_err("two faults");
            assert_eq!(reject.what, TABLE[upper].what, "rows {upper} and {lower}");
        }
    }
}

#[test]
fn the_lowest_range_of_a_row_is_blamed() {
    let mut scenario = Scenario::new();
    scenario.ranges[7].slba = BLOCKS;
    scenario.ranges[3].slba = BLOCKS;
    assert_eq!(scenario.try_it().expect_err("out of range").range, Some(3));
}

#[test]
fn nsid_and_snsid_are_told_apart_from_inactive_ones() {
    for (nsid, status) in [(0, 0x400b), (u32::MAX, 0x400b), (6, 0x400b), (5, 0x4002), (3, 0x4002)] {
        let mut scenario = Scenario::new();
        scenario.command.nsid = nsid;
        assert_eq!(scenario.status(), Status(status), "NSID {nsid:#x}");
        let mut scenario = Scenario::new();
        scenario.ranges[8].snsid = Some(nsid);
        assert_eq!(scenario.status(), Status(status), "SNSID {nsid:#x}");
    }
}

#[test]
fn formats_need_ocfs_and_the_cross_ones_cdfe() {
    let of = |desfmt: u32, ocfs, cdfe| {
        let snsid = (desfmt == 2).then_some(2);
        let mut scenario = Scenario::of(0, 1000, vec![SourceRange::plain(snsid, 0, 8)]);
        scenario.command.cdw[2] |= desfmt << 8;
        scenario.capabilities.ocfs = ocfs;
        scenario.capabilities.cdfe = cdfe;
        scenario.status().0
    };
    assert_eq!([of(0, 1, 0), of(0, !1, !0)], [0, 0x4002]);
    assert_eq!([of(2, 4, 4), of(2, !4, !0), of(2, !0, !4)], [0, 0x4002, 0x4002]);
    assert_eq!([of(1, 2, 0), of(1, !2, !0)], [0x400b, 0x4002]);
    assert_eq!([of(3, 8, 8), of(3, !8, !0), of(3, !0, !8)], [0x400b, 0x4002, 0x4002]);
    for desfmt in 4..=15 {
        assert_eq!(of(desfmt, !0, !0), 0x4002, "format {desfmt}");
    }
}

#[test]
fn fields_without_meaning_here_are_let_through() {
    for (dword, value) in [
        (2, 0xf << 12),
        (2, 0xf << 26),
        (2, 3 << 24),
        (2, 1 << 31),
        (3, 0xffff_ffff),
        (4, 0xdead_beef),
        (5, 0xffff_ffff),
    ] {
        let mut scenario = Scenario::new();
        scenario.command.cdw[dword] |= value;
        scenario.ranges[0].cev = 9;
        scenario.ranges[0].tags.elbt = 0xffff_ffff;
        scenario.ranges[0].tags.elbat = 0xffff;
        scenario.ranges[0].tags.elbatm = 0xffff;
        let plan = scenario.try_it().expect("no protection information, no extension");
        assert!(!plan.fua());
    }
    let mut scenario = Scenario::new();
    scenario.command.cdw[2] |= 1 << 30;
    assert!(scenario.try_it().expect("FUA").fua());
}

#[test]
fn range_count_up_to_msrc() {
    let of = |ranges: u64, msrc| {
        let ranges = (0..ranges).map(|i| SourceRange::plain(None, i, 1)).collect();
        let mut scenario = Scenario::of(0, 1000, ranges);
        scenario.namespaces[DST].facts.copy.msrc = msrc;
        scenario.namespaces[OTHER].facts.copy.msrc = 0;
        scenario.status().0
    };
    assert_eq!([of(1, 0), of(2, 0), of(127, 126), of(128, 126)], [0, 0x4183, 0, 0x4183]);
    assert_eq!([of(256, 255), of(256, 254), of(256, 126)], [0, 0x4183, 0x4183]);
}

#[test]
fn mssrl_is_the_sources_and_mcl_the_destinations() {
    let of = |nlb: &[u32], dst: (u16, u32), source: (u16, u32)| {
        let ranges = nlb.iter().map(|&nlb| SourceRange::plain(Some(2), 0, nlb)).collect();
        let mut scenario = Scenario::of(2, 0, ranges);
        scenario.namespaces = [namespace(1, 1 << 30, 9), namespace(2, 1 << 30, 9), namespace(4, 1, 12)];
        for (ns, (mssrl, mcl)) in scenario.namespaces.iter_mut().zip([dst, source]) {
            ns.facts.copy.mssrl = mssrl;
            ns.facts.copy.mcl = mcl;
        }
        scenario.status().0
    };
    assert_eq!([of(&[8], (1, 8), (8, 1)), of(&[9], (99, 99), (8, 99))], [0, 0x4183]);
    assert_eq!([of(&[8, 8, 8], (1, 24), (8, 1)), of(&[8, 8, 8], (9, 23), (8, 99))], [0, 0x4183]);
    assert_eq!([of(&[65535], (1, 65535), (65535, 1)), of(&[65536], (1, u32::MAX), (65535, 1))], [0, 0x4183]);
    assert_eq!(of(&[65535; 256], (1, 256 * 65535), (65535, 1)), 0);
    assert_eq!(of(&[65535; 256], (1, 256 * 65535 - 1), (65535, 1)), 0x4183);
}

/// What the kernel series sends when its ioctl was given nonsense.
#[test]
fn nonsense_of_a_copy_offload_kernel_is_refused() {
    let mut scenario = Scenario::of(0, 0, vec![SourceRange::plain(None, 0, 1); 256]);
    scenario.namespaces[DST].facts.copy.msrc = 126;
    assert_eq!(scenario.status(), Status(0x4183));
    assert_eq!(tried(0, 0, &[(0, 100, 65536)]).expect_err("NLB ffffh").status, Status(0x4183));
    assert_eq!(tried(0, 0, &[(0, BLOCKS, 1)]).expect_err("past the end").status, Status(0x4080));
}

/// It also hands over a page whatever the number of ranges is.
#[test]
fn a_list_longer_than_needed_is_fine_and_a_shorter_one_is_not() {
    let namespaces = Namespaces::new(vec![namespace(1, BLOCKS, 9)], 1);
    let capabilities = Capabilities { ocfs: 1, cdfe: 0, ..Capabilities::default() };
    let checked = check_command(&command(1, 100, 0, 2), &namespaces, capabilities).expect("sound");
    let mut page = encode(0, &[SourceRange::plain(None, 0, 8), SourceRange::plain(None, 20, 8)]);
    assert_eq!(checked.decode(&page[..63]).expect_err("short").status, Status(0x400f));
    page.resize(4096, 0);
    let ranges = checked.decode(&page).expect("long");
    assert_eq!(plan(&checked, &ranges, &namespaces).expect("sound").ranges().len(), 2);
}

#[test]
fn bounds_do_not_wrap() {
    let status = |sdlba, ranges: &[_]| tried(2, sdlba, ranges).err().map_or(0, |reject| reject.status.0);
    assert_eq!(status(BLOCKS - 16, &[(2, 0, 8), (2, 0, 8)]), 0);
    assert_eq!(status(BLOCKS - 15, &[(2, 0, 8), (2, 0, 8)]), 0x4080);
    for sdlba in [BLOCKS, u64::MAX, u64::MAX - 7, u64::MAX - 15, 1 << 55, 1 << 63] {
        assert_eq!(status(sdlba, &[(2, 0, 8)]), 0x4080, "SDLBA {sdlba:#x}");
        assert_eq!(status(0, &[(2, 0, 8), (2, sdlba, 8)]), 0x4080, "SLBA {sdlba:#x}");
        assert_eq!(status(0, &[(1, sdlba, 8)]), 0x4080, "SLBA {sdlba:#x}, own namespace");
    }
    assert_eq!(status(0, &[(2, BLOCKS - 8, 8)]), 0);
    assert_eq!(status(0, &[(2, BLOCKS - 7, 8)]), 0x4080);
}

#[test]
fn source_bounds_are_the_sources() {
    let mut scenario = Scenario::of(2, 0, vec![SourceRange::plain(Some(2), 100, 8)]);
    scenario.namespaces[OTHER] = namespace(2, 107, 9);
    assert_eq!(scenario.status(), Status(0x4080));
    let mut scenario = Scenario::of(2, 0, vec![SourceRange::plain(Some(2), BLOCKS, 8)]);
    scenario.namespaces[OTHER] = namespace(2, BLOCKS + 8, 9);
    assert_eq!(scenario.status(), Status::SUCCESS);
}

#[test]
fn a_read_only_source_is_fine() {
    let mut scenario = Scenario::new();
    scenario.namespaces[OTHER].facts.read_only = true;
    assert_eq!(scenario.status(), Status::SUCCESS);
}

#[test]
fn namespaces_must_agree_in_metadata_too() {
    let mut scenario = Scenario::new();
    scenario.namespaces[OTHER].facts.ms = 8;
    assert_eq!(scenario.status(), Status(0x4185));
    let mut scenario = Scenario::new();
    scenario.namespaces[OTHER].facts.ms = 8;
    scenario.namespaces[DST].facts.ms = 8;
    assert_eq!(scenario.status(), Status::SUCCESS);
}

/// QEMU looks at the end of the source only, and at a destination that slides along with its progress.
#[test]
fn qemu_fault_2_overlap_is_exact() {
    let overlap = |sdlba, ranges: &[(u32, u64, u32)]| {
        let outcomes =
            [0, 2].map(|desfmt| tried(desfmt, sdlba, ranges).map_err(|reject| reject.status).err());
        assert_eq!(outcomes[0], outcomes[1], "formats 0 and 2 are judged alike");
        match outcomes[0] {
            None => false,
            Some(status) => {
                assert_eq!(status, Status(0x4187));
                true
            }
        }
    };
    // What it misses.
    assert!(overlap(5, &[(1, 10, 10)]), "the source begins inside, ends after");
    assert!(overlap(10, &[(1, 10, 10)]), "the source is the destination");
    assert!(overlap(400, &[(1, 0, 8), (1, 396, 8)]), "the first range overwrites what the second reads");
    // What it reports and should not.
    assert!(!overlap(300, &[(1, 100, 8), (1, 315, 7)]), "nothing overlaps");
    // The rest of the square.
    assert!(overlap(15, &[(1, 10, 10)]), "the source begins before, ends inside");
    assert!(overlap(12, &[(1, 10, 10)]), "the destination begins inside");
    assert!(
        overlap(8, &[(1, 10, 2), (1, 50, 10)]),
        "the source lies inside the whole, outside its own share"
    );
    assert!(overlap(10, &[(1, 0, 40)]), "the source holds the destination's beginning");
    assert!(overlap(19, &[(1, 10, 10)]), "one block, at the end");
    assert!(overlap(1, &[(1, 10, 10)]), "one block, at the beginning");
    assert!(!overlap(20, &[(1, 10, 10)]), "touching behind");
    assert!(!overlap(0, &[(1, 10, 10)]), "touching before");
    assert!(!overlap(0, &[(1, 5, 2), (1, 4, 2)]), "sources may overlap each other");
    assert!(!overlap(0, &[(1, 5, 2), (1, 5, 2)]), "and be named twice");
}

/// Formats 0 and 1 follow the destination's policy, 2 and 3 the specification.
#[test]
fn overlap_is_refused_where_it_must_be() {
    for overlap in [Overlap::Snapshot, Overlap::InOrder, Overlap::Reject] {
        let status =
            |desfmt| tried_under(overlap, desfmt, 12, &[(1, 10, 10)]).err().map(|reject| reject.status.0);
        assert_eq!(status(0), (overlap == Overlap::Reject).then_some(0x4187), "{overlap:?}");
        assert_eq!(status(2), Some(0x4187), "{overlap:?}");
    }
    assert_eq!(CopyPolicy::default().overlap, Overlap::Snapshot);
    // The destination's policy, not the source's.
    let mut scenario = Scenario::of(0, 12, vec![SourceRange::plain(None, 10, 10)]);
    scenario.namespaces[OTHER].facts.policy.overlap = Overlap::Reject;
    assert_eq!(scenario.status(), Status::SUCCESS);
}

#[test]
fn different_namespaces_never_overlap() {
    tried(2, 10, &[(2, 10, 10)]).expect("two namespaces");
    assert_eq!(tried(2, 10, &[(2, 10, 10), (1, 10, 10)]).expect_err("own").range, Some(1));
}

/// QEMU keeps reading from the foreign namespace when the list comes back to the destination's own.
#[test]
fn qemu_fault_1_each_range_reads_its_own_namespace() {
    let plan = tried(2, 100, &[(2, 0, 1), (1, 1, 2), (2, 7, 3), (1, 9, 1)]).expect("sound");
    let laid_out: Vec<_> =
        plan.ranges().iter().map(|r| (r.ns.nsid, r.src.offset / 512, r.src.len / 512, r.at / 512)).collect();
    assert_eq!(laid_out, [(2, 0, 1, 0), (1, 1, 2, 1), (2, 7, 3, 3), (1, 9, 1, 6)]);
    assert_eq!((plan.dst_ns().nsid, plan.dst().offset, plan.dst().len), (1, 100 * 512, 7 * 512));
}

/// QEMU checks a range when those before it are written. What can be known fails here before there is a plan.
#[test]
fn qemu_fault_3_nothing_is_planned_of_what_fails_late() {
    let faults: [(Fault, u16, Option<u8>); 6] = [
        (|s| s.set_sdlba(BLOCKS - 71), 0x4080, None),
        (|s| s.ranges[8].slba = BLOCKS - 7, 0x4080, Some(8)),
        (|s| s.ranges[8].slba = u64::MAX - 3, 0x4080, Some(8)),
        (|s| s.namespaces[OTHER].facts.copy.mssrl = 7, 0x4183, Some(0)),
        (|s| s.ranges[8].snsid = Some(4), 0x4185, Some(8)),
        (|s| s.ranges[8] = SourceRange::plain(Some(1), 1071, 8), 0x4187, Some(8)),
    ];
    for (fault, status, range) in faults {
        let mut scenario = Scenario::new();
        fault(&mut scenario);
        let reject = scenario.try_it().expect_err("refused as a whole");
        assert_eq!((reject.status, reject.range), (Status(status), range), "{}", reject.what);
    }
}

/// SPDK enforces neither MSSRL nor MCL: NLB 65536 is accepted where 65535 is what Identify says.
#[test]
fn spdk_fault_3_limits_hold_to_the_block() {
    let of = |nlb: &[u32], mcl| {
        let ranges = nlb.iter().map(|&nlb| SourceRange::plain(None, 0, nlb)).collect();
        let mut scenario = Scenario::of(0, 1 << 20, ranges);
        scenario.namespaces[DST] = namespace(1, 1 << 30, 9);
        scenario.namespaces[DST].facts.copy.mssrl = 65535;
        scenario.namespaces[DST].facts.copy.mcl = mcl;
        scenario.try_it().err().map(|reject| (reject.status.0, reject.range))
    };
    assert_eq!(of(&[65535], 65535), None);
    assert_eq!(of(&[65536], u32::MAX), Some((0x4183, Some(0))));
    assert_eq!(of(&[1, 65536], u32::MAX), Some((0x4183, Some(1))));
    assert_eq!(of(&[65535, 1], 65535), Some((0x4183, None)));
    assert_eq!(of(&[65535, 1], 65536), None);
}

/// A namespace may change while the list is fetched: source and destination of one NSID stay one namespace.
#[test]
fn own_ranges_read_the_namespace_that_was_checked() {
    let capabilities = Capabilities { ocfs: 4, cdfe: 4, ..Capabilities::default() };
    let before = Namespaces::new(vec![namespace(1, BLOCKS, 9)], 1);
    let after = Namespaces::new(vec![namespace(1, 1, 12)], 1);
    let checked = check_command(&command(1, 100, 2, 1), &before, capabilities).expect("sound");
    let plan = plan(&checked, &[SourceRange::plain(Some(1), 8, 8)], &after).expect("sound");
    assert!(std::sync::Arc::ptr_eq(&plan.ranges()[0].ns, plan.dst_ns()));
}

#[test]
fn fast_copy_only_is_a_matter_of_format() {
    // The bit that is FCO in format 2 is reserved in format 0.
    let mut scenario = Scenario::of(0, 1000, vec![SourceRange::plain(None, 0, 8)]);
    scenario.ranges[0].fco = true;
    assert_eq!(scenario.status(), Status(0x4002));
}

/// The answer is the truth: all of the range is shared, or the Copy is refused before anything moves.
#[test]
fn fast_copy_only_needs_a_reflink_of_the_whole_range() {
    let reflink = |align| Ways { reflink: Some(align), offload: true, ..Ways::default() };
    let status = |shortcuts, method, sdlba, ranges: &[(u64, u32, bool)]| {
        let ranges = ranges
            .iter()
            .map(|&(slba, nlb, fco)| SourceRange { fco, ..SourceRange::plain(Some(2), slba, nlb) });
        let mut scenario = Scenario::of(2, sdlba, ranges.collect());
        scenario.namespaces[DST] =
            special(1, BLOCKS, 9, shortcuts, CopyPolicy { method, ..CopyPolicy::default() });
        scenario.namespaces[OTHER] = namespace(2, BLOCKS - 4, 9);
        scenario.try_it().map_or_else(|reject| (reject.status.0, reject.range), |_| (0, None))
    };
    let no = |range| (0x4186, Some(range));
    for method in [Method::Auto, Method::Reflink] {
        let status = |sdlba, ranges: &[_]| status(reflink(4096), method, sdlba, ranges);
        assert_eq!(status(8, &[(16, 8, true)]), (0, None), "short, but it can be shared");
        assert_eq!(status(8, &[(17, 8, true)]), no(0), "not aligned at the source");
        assert_eq!(status(9, &[(16, 8, true)]), no(0), "not aligned at the destination");
        assert_eq!(status(9, &[(17, 15, true)]), no(0), "aligned in between only");
        assert_eq!(status(8, &[(16, 7, true)]), no(0), "the end is not aligned");
        assert_eq!(status(8, &[(16, 7, false), (3, 1, false), (32, 8, true)]), (0, None));
        assert_eq!(status(8, &[(16, 7, false), (32, 8, true)]), no(1), "others push it out of place");
        // 1996 blocks end with half a unit, 2000 with a whole one: an image's end is the end of both or of
        // neither.
        assert_eq!(status(8, &[(1984, 12, true)]), no(0));
    }
    for (shortcuts, method) in [
        (Ways::default(), Method::Auto),
        (Ways { memmove: true, offload: true, offload_pays: true, ..Ways::default() }, Method::Auto),
        (reflink(4096), Method::Offload),
        (reflink(4096), Method::Bounce),
        (reflink(0), Method::Auto),
    ] {
        assert_eq!(status(shortcuts, method, 8, &[(16, 8, true)]), no(0), "{shortcuts:?} {method:?}");
        assert_eq!(status(shortcuts, method, 8, &[(16, 8, false)]), (0, None));
    }
    // Both images end here, with half a unit.
    let ranges = vec![SourceRange { fco: true, ..SourceRange::plain(Some(2), 16, 12) }];
    let mut scenario = Scenario::of(2, 24, ranges);
    scenario.namespaces[DST] = special(1, 36, 9, reflink(4096), CopyPolicy::default());
    scenario.namespaces[OTHER] = namespace(2, 28, 9);
    assert_eq!(scenario.status(), Status::SUCCESS);
}

/// What a specification-minded reader without any interval arithmetic would answer: blocks one by one.
fn model(scenario: &Scenario) -> Result<Vec<(u32, u128, u128)>, u16> {
    let facts = |nsid| scenario.namespaces.iter().find(|ns| ns.nsid == nsid).map(|ns| ns.facts);
    let blocks = || {
        let each = scenario
            .ranges
            .iter()
            .flat_map(|r| (0..r.nlb).map(|b| (r.snsid.unwrap_or(1), u128::from(r.slba) + u128::from(b))));
        each.zip(u128::from(scenario.command.sdlba())..)
    };
    let dst = facts(1).expect("the destination is there");
    let snsids: Vec<_> = scenario.ranges.iter().map(|r| r.snsid.unwrap_or(1)).collect();
    if scenario.ranges.len() > usize::from(dst.copy.msrc) + 1 {
        return Err(0x4183);
    }
    if snsids.iter().any(|snsid| !(1..=5).contains(snsid)) {
        return Err(0x400b);
    }
    if snsids.iter().any(|snsid| [3, 5].contains(snsid)) {
        return Err(0x4002);
    }
    if snsids.contains(&4) {
        return Err(0x4185);
    }
    let mssrl = |snsid| facts(snsid).map_or(0, |f| u32::from(f.copy.mssrl));
    if scenario.ranges.iter().zip(&snsids).any(|(r, snsid)| r.nlb > mssrl(*snsid)) {
        return Err(0x4183);
    }
    if blocks().count() > dst.copy.mcl as usize {
        return Err(0x4183);
    }
    if blocks().any(|(_, to)| to >= u128::from(dst.nsze)) {
        return Err(0x4080);
    }
    if blocks().any(|((snsid, from), _)| from >= u128::from(facts(snsid).map_or(0, |f| f.nsze))) {
        return Err(0x4080);
    }
    let refused = scenario.command.desfmt() >= 2 || dst.policy.overlap == Overlap::Reject;
    let written: HashSet<_> = blocks().map(|(_, to)| (1, to)).collect();
    if refused && blocks().any(|(from, _)| written.contains(&from)) {
        return Err(0x4187);
    }
    Ok(blocks().map(|((snsid, from), to)| (snsid, from, to)).collect())
}

fn lba() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0..90u64, 1 => u64::MAX - 20..=u64::MAX, 1 => (1u64 << 55) - 3..(1 << 55) + 3]
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let snsid = prop_oneof![20 => 1..=2u32, 1 => 0..=6u32, 1 => Just(u32::MAX)];
    let nlb = prop_oneof![20 => 1..10u32, 1 => 65530..=65536u32];
    let ranges = prop::collection::vec((snsid, lba(), nlb), 1..7);
    let limits = ((6..12u16), (6..12u16), (20..60u32), (3..8u8));
    let overlap =
        prop_oneof![1 => Just(Overlap::Snapshot), 1 => Just(Overlap::InOrder), 2 => Just(Overlap::Reject)];
    ((any::<bool>(), overlap), lba(), ranges, (60..100u64, 60..100u64), limits).prop_map(
        |((cross, overlap), sdlba, ranges, blocks, (mssrl, other_mssrl, mcl, msrc))| {
            let ranges = ranges
                .into_iter()
                .map(|(snsid, slba, nlb)| SourceRange::plain(cross.then_some(snsid), slba, nlb))
                .collect();
            let mut scenario = Scenario::of(if cross { 2 } else { 0 }, sdlba, ranges);
            scenario.namespaces[DST] = namespace(1, blocks.0, 9);
            scenario.namespaces[OTHER] = namespace(2, blocks.1, 9);
            scenario.namespaces[DST].facts.policy.overlap = overlap;
            scenario.namespaces[DST].facts.copy.mssrl = mssrl;
            scenario.namespaces[OTHER].facts.copy.mssrl = other_mssrl;
            scenario.namespaces[DST].facts.copy.mcl = mcl;
            scenario.namespaces[DST].facts.copy.msrc = msrc;
            scenario
        },
    )
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let facts = self.namespaces.each_ref().map(|ns| ns.facts);
        write!(f, "{:?} {:?} {facts:?}", self.command, self.ranges)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn planner_answers_as_the_model(scenario in scenario()) {
        let expected = model(&scenario);
        let planned = scenario.try_it().map_err(|reject| reject.status.0).map(|plan| {
            let first = u128::from(plan.dst().offset / 512);
            let blocks = plan.ranges().iter().flat_map(|r| {
                let (from, to) = (u128::from(r.src.offset / 512), first + u128::from(r.at / 512));
                (0..u128::from(r.src.len / 512)).map(move |b| (r.ns.nsid, from + b, to + b))
            });
            blocks.collect::<Vec<_>>()
        });
        prop_assert_eq!(planned, expected);
    }

    /// Whatever bytes come, there is an answer and no panic.
    #[test]
    fn any_bytes_get_an_answer(
        cdw in any::<[u32; 6]>(),
        desfmt in 0..5u32,
        list in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let namespaces = Namespaces::new(vec![namespace(1, BLOCKS, 9), namespace(2, BLOCKS, 9)], 2);
        let mut command = CopyCommand { nsid: 1, cdw };
        command.cdw[2] = cdw[2] & 0x7 | desfmt << 8;
        let capabilities = Capabilities { ocfs: !0, cdfe: !0, ..Capabilities::default() };
        if let Ok(checked) = check_command(&command, &namespaces, capabilities)
            && let Ok(ranges) = checked.decode(&list)
            && let Ok(plan) = plan(&checked, &ranges, &namespaces)
        {
            prop_assert!(plan.dst().len > 0);
        }
    }
}
