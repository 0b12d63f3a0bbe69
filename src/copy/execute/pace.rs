//! How large a segment is and how much may be under way at once: all numbers of that kind, and what they are
//! for.

use crate::copy::bounce::{Bounce, Pool};
use crate::copy::plan::CopyPlan;
use crate::copy::selection::{Choice, Selection};
use crate::disk::How;

/// Bounds of one Copy in execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecOptions {
    /// Bytes of one write at most; rounded down to blocks, one block at least.
    pub segment_bytes: u64,
    /// Operations in flight at most, one at least.
    pub window: u32,
    /// Bytes of bounce buffers in use at most; two blocks at least.
    pub budget: u64,
}

impl Default for ExecOptions {
    /// Four segments of 256 KiB at a time; the wider window is for short ranges, whose reads are small.
    fn default() -> Self {
        Self { segment_bytes: 256 << 10, window: 16, budget: 4 << 20 }
    }
}

impl ExecOptions {
    /// The bounds that are kept for blocks of this size out of `bounce`: as asked for, but two segments
    /// always fit, so that one can be read while another is written.
    pub fn effective(self, block_size: u64, bounce: &Bounce) -> Self {
        let budget = self.budget.max(2 * block_size).min(bounce.total());
        Self {
            segment_bytes: fitting(self.segment_bytes, budget, block_size).max(block_size),
            window: self.window.max(1),
            budget,
        }
    }
}

/// As much of a segment as fits twice into the budget, in whole blocks.
fn fitting(segment: u64, budget: u64, block: u64) -> u64 {
    let most = segment.min(budget / 2);
    most - most % block
}

/// Bytes of a bounced segment that goes past the page cache: its read and its write are requests to a device,
/// which large ones suit better.
const DIRECT_SEGMENT: u64 = 1 << 20;

/// Bytes past the page cache in flight, of all Copies together: some large requests keep a device busy, and
/// with more they are in each other's way (four Copies of 32 MiB: 0.89 of what the host does best with four
/// requests of each, 1.0 with one of each).
const DIRECT_AHEAD: u64 = 4 << 20;

/// Bytes of a segment that is a pool copy, which takes a thread's time and not the worker's: ext4 goes
/// through all blocks of a folio for each write to it, and folios have 1 MiB and more.
const POOL_COPY_SEGMENT: u64 = 1 << 20;

/// Bytes of a segment that touches memory, moved or bounced. It is done in the worker's own time: 15 to 25
/// us.
const SLICE: u64 = 128 << 10;

/// Bytes of a reflink: FICLONERANGE cannot be cancelled and first writes a dirty source back.
const REFLINK_SEGMENT: u64 = 256 << 20;

/// Bytes of an offload: a few milliseconds of copy_file_range; then an Abort is heard.
const OFFLOAD_SEGMENT: u64 = 16 << 20;

/// Bytes of bounced segments in flight. What a ring does at once (a read from the page cache) is done in the
/// worker's time, between one look at the other queues and the next: 1 MiB is some 250 us.
const AHEAD: u64 = 1 << 20;

/// Operations of the file system in flight at most: each may take long and a thread of the engine.
const FILE_SYSTEM_WINDOW: usize = 4;

/// Operations handed out in one poll at least, where they are done at once: more of them wait for nothing but
/// a turn of the worker each.
pub(super) const MEMORY_WINDOW: u32 = 64;

/// Bytes of memory moved in one poll at most: 30 to 50 us, after which a worker looks at its other commands.
const POLL: u64 = 2 * SLICE;

/// What one Copy keeps to.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes of a segment that is read and then written.
    segment: u64,
    /// Bytes of one that is a pool copy.
    pool_copy: u64,
    window: u32,
    budget: u64,
    /// The destination is written past the page cache.
    is_direct: bool,
    /// Bytes of memory that this poll may still move.
    allowance: u64,
}

impl Pace {
    /// `options` as they are asked for.
    pub fn new(options: ExecOptions, plan: &CopyPlan, selection: &Selection, bounce: &Bounce) -> Self {
        let (block, is_direct) = (plan.dst_ns.facts.block_size(), plan.dst_ns.disk.is_direct());
        let ExecOptions { segment_bytes: mut segment, mut window, budget } = options.effective(block, bounce);
        if selection.any_memory() {
            segment = segment.min(SLICE);
            window = window.max(MEMORY_WINDOW);
        } else if is_direct {
            segment = segment.max(fitting(DIRECT_SEGMENT, budget, block));
        }
        let pool_copy = segment.max(fitting(POOL_COPY_SEGMENT, budget, block));
        Self { segment, pool_copy, window, budget, is_direct, allowance: 0 }
    }

    /// Bytes of bounce buffers in use at most.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Bytes at most of the next segment that goes this way, where the order is free.
    pub fn segment(&self, choice: Choice, selection: &Selection) -> u64 {
        match choice {
            Choice::Direct(How::MemMove) => SLICE,
            Choice::Direct(How::Reflink) => REFLINK_SEGMENT,
            Choice::Direct(How::Offload) => OFFLOAD_SEGMENT,
            Choice::Bounce if selection.are_pool_copies() => self.pool_copy,
            Choice::Direct(How::ReadWrite { .. }) | Choice::Bounce => self.segment,
        }
    }

    /// And where it is not.
    pub fn ordered_segment(&self) -> u64 {
        self.segment
    }

    /// A poll begins.
    pub fn begin_poll(&mut self) {
        self.allowance = POLL;
    }

    /// In this poll the worker moves so many bytes of memory.
    pub fn spend(&mut self, bytes: u64) {
        self.allowance = self.allowance.saturating_sub(bytes);
    }

    /// May one more operation start?
    pub fn may_start(&self, in_flight: u32) -> bool {
        in_flight < self.window && self.allowance >= SLICE
    }

    /// May the file system be asked for one more copy?
    pub fn may_ask_file_system(&self, in_flight: usize) -> bool {
        in_flight < FILE_SYSTEM_WINDOW
    }

    /// May one more segment of so many bytes be read, to be held? Its memory is there.
    pub fn may_hold(&self, bytes: u64, in_flight: u32) -> bool {
        in_flight == 0 || (u64::from(in_flight) * self.segment).saturating_add(bytes) <= AHEAD
    }

    /// May one more segment of so many bytes be bounced? Always with nothing in flight, for then no
    /// completion would come after which to ask again.
    pub fn may_bounce(&self, bytes: u64, in_flight: u32, pool: &Pool, selection: &Selection) -> bool {
        let (held, most) = match () {
            () if self.is_direct => (pool.held_by_all(), DIRECT_AHEAD.min(self.budget)),
            // One at a time: two would keep two processors busy, and the other commands are left one.
            () if pool.is_crowded() => (pool.held(), self.segment),
            // Threads do them: two at a time keep two processors busy.
            () if selection.are_pool_copies() => (pool.held(), 2 * self.pool_copy),
            () => (pool.held(), AHEAD),
        };
        in_flight == 0 || held.saturating_add(bytes) <= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::testing::{copy_of, direct, namespace, special};
    use crate::disk::Ways;
    use crate::namespace::{CopyPolicy, Namespace};

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    /// Of 64 blocks from `source` to `dst`.
    fn pace(source: Namespace, dst: Namespace, options: ExecOptions) -> (Pace, Selection) {
        let len = 64 * source.facts.block_size();
        let plan = copy_of(source, dst, &[(0, len)], false);
        let selection = Selection::new(&plan);
        (Pace::new(options, &plan, &selection, &Bounce::default()), selection)
    }

    fn with(shortcuts: Ways) -> Namespace {
        special(1, 64, 9, shortcuts, CopyPolicy::default())
    }

    fn pool_copied() -> (Pace, Selection) {
        pace(namespace(2, 64, 9), with(Ways { read_write: true, ..Ways::default() }), ExecOptions::default())
    }

    fn in_memory(dst: Namespace) -> (Pace, Selection) {
        let memory = Ways { memmove: true, ..Ways::default() };
        pace(special(2, 64, 9, memory, CopyPolicy::default()), dst, ExecOptions::default())
    }

    /// More is held, until one more segment of so many bytes may not be bounced; how much may be held.
    fn most(bytes: u64, (pace, selection): &(Pace, Selection), bounce: &Bounce) -> u64 {
        let mut pool = Pool::new(bounce, 16 * MIB);
        while pace.may_bounce(bytes, 1, &pool, selection) && pool.reserve(bytes).is_some() {}
        assert!(pace.may_bounce(bytes, 0, &pool, selection), "with nothing in flight it may always");
        pool.held()
    }

    #[test]
    fn bounds_are_made_to_work() {
        let zero = ExecOptions { segment_bytes: 0, window: 0, budget: 0 };
        let bounce = Bounce::default();
        assert_eq!(
            zero.effective(4096, &bounce),
            ExecOptions { segment_bytes: 4096, window: 1, budget: 8192 }
        );
        let odd = ExecOptions { segment_bytes: 10_000, window: 5, budget: 1 << 20 };
        assert_eq!(odd.effective(4096, &bounce), ExecOptions { segment_bytes: 8192, ..odd });
        let tight = ExecOptions { segment_bytes: 1 << 20, window: 5, budget: 20_000 };
        assert_eq!(tight.effective(4096, &bounce), ExecOptions { segment_bytes: 8192, ..tight });
        assert_eq!(ExecOptions::default().effective(512, &bounce), ExecOptions::default());
        let little = ExecOptions::default().effective(4096, &Bounce::new(70_000));
        assert_eq!((little.segment_bytes, little.budget), (32768, 70_000));
    }

    #[test]
    fn every_way_has_its_segment() {
        let plain = pace(namespace(2, 64, 9), namespace(1, 64, 9), ExecOptions::default());
        let past_the_cache = pace(namespace(2, 64, 9), direct(1, 64, 9), ExecOptions::default());
        for ((pace, selection), bounced) in [
            (plain, 256 * KIB),
            (past_the_cache, MIB),
            (pool_copied(), MIB),
            (in_memory(namespace(1, 64, 9)), 128 * KIB),
            (in_memory(direct(1, 64, 9)), 128 * KIB),
        ] {
            assert_eq!(
                pace.segment(Choice::Bounce, &selection),
                if selection.are_pool_copies() { MIB } else { bounced }
            );
            for (how, bytes) in
                [(How::MemMove, 128 * KIB), (How::Reflink, 256 * MIB), (How::Offload, 16 * MIB)]
            {
                assert_eq!(pace.segment(Choice::Direct(how), &selection), bytes);
            }
        }
    }

    #[test]
    fn a_refused_pool_copy_makes_segments_small_again() {
        let (pace, mut selection) = pool_copied();
        selection.refuse(2, How::ReadWrite { or_kernel: true });
        assert_eq!(pace.segment(Choice::Bounce, &selection), 256 * KIB);
        assert_eq!(most(256 * KIB, &(pace, selection), &Bounce::default()), MIB);
    }

    /// Two fit into the budget, in whole blocks.
    #[test]
    fn large_segments_shrink_with_the_budget() {
        let tight = ExecOptions { budget: 1_000_000, ..ExecOptions::default() };
        let (pace, selection) = pace(namespace(2, 64, 12), direct(1, 64, 12), tight);
        assert_eq!(pace.segment(Choice::Bounce, &selection), 500_000 / 4096 * 4096);
        assert_eq!(pace.ordered_segment(), 500_000 / 4096 * 4096);
    }

    #[test]
    fn so_much_is_under_way() {
        let plain = pace(namespace(2, 64, 9), namespace(1, 64, 9), ExecOptions::default());
        let past_the_cache = pace(namespace(2, 64, 9), direct(1, 64, 9), ExecOptions::default());
        let (calm, crowded) = (Bounce::default(), Bounce::default());
        crowded.others_are_at_work();
        for (pace, bytes, alone, beside_others) in [
            (plain, 256 * KIB, MIB, 256 * KIB),
            (past_the_cache, MIB, 4 * MIB, 4 * MIB),
            (in_memory(namespace(1, 64, 9)), 128 * KIB, MIB, 128 * KIB),
        ] {
            assert_eq!(most(bytes, &pace, &calm), alone);
            assert_eq!(most(bytes, &pace, &crowded), beside_others);
        }
        assert_eq!(most(MIB, &pool_copied(), &calm), 2 * MIB);
        assert_eq!(most(MIB, &pool_copied(), &crowded), 0, "one, when the one before has ended");
    }

    #[test]
    fn a_device_is_not_overwhelmed_by_many_copies() {
        let one = pace(namespace(2, 64, 9), direct(1, 64, 9), ExecOptions::default());
        let bounce = Bounce::default();
        for (others, left) in [(0, 4), (1, 3), (3, 1), (4, 0), (20, 0)] {
            let mut pool = Pool::new(&bounce, bounce.total());
            assert!((0..others).all(|_| pool.reserve(MIB).is_some()));
            assert_eq!(most(MIB, &one, &bounce), left * MIB, "{others} MiB of others");
        }
    }

    #[test]
    fn a_window_and_a_polls_worth_of_memory_end_a_poll() {
        let (mut plain, _) = pace(namespace(2, 64, 9), namespace(1, 64, 9), ExecOptions::default());
        assert!(!plain.may_start(0), "outside a poll");
        plain.begin_poll();
        assert!(plain.may_start(15) && !plain.may_start(16));
        let (mut memory, _) = in_memory(namespace(1, 64, 9));
        memory.begin_poll();
        assert!(memory.may_start(63) && !memory.may_start(64));
        memory.spend(128 * KIB);
        assert!(memory.may_start(0));
        memory.spend(1);
        assert!(!memory.may_start(0));
        memory.begin_poll();
        assert!(memory.may_start(0));
    }

    #[test]
    fn few_copies_are_asked_of_the_file_system() {
        let (pace, _) = pace(namespace(2, 64, 9), namespace(1, 64, 9), ExecOptions::default());
        assert!(pace.may_ask_file_system(3) && !pace.may_ask_file_system(4));
    }
}
