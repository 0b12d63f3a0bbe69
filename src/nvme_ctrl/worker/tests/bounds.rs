//! How much a worker does in one turn, and how much memory its commands make it hold, whatever a host sends.

use super::{LISTS, Machine, PAGE};

const MIB: u64 = 1 << 20;

/// The longest list of descriptors that is followed: each of 128 bytes, none beside another.
const PIECES: u64 = 4096;

/// A data pointer of `pieces` pieces of 128 bytes: a Read of namespace `nsid`.
fn scattered_read(m: &Machine, nsid: u8, pieces: u64) -> [u8; 64] {
    let list: Vec<u8> = (0..pieces)
        .flat_map(|n| {
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&(LISTS + MIB + n * 256).to_le_bytes());
            descriptor[8..12].copy_from_slice(&128_u32.to_le_bytes());
            descriptor
        })
        .collect();
    m.guest.set(LISTS, &list);
    let mut sqe = [0; 64];
    (sqe[0], sqe[1], sqe[4]) = (2, 0x40, nsid);
    sqe[24..32].copy_from_slice(&LISTS.to_le_bytes());
    sqe[32..36].copy_from_slice(&(list.len() as u32).to_le_bytes());
    sqe[39] = 0x30;
    sqe[48..50].copy_from_slice(&((pieces * 128 / PAGE) as u16 - 1).to_le_bytes());
    sqe
}

/// Dataset Management: 256 ranges, each of all blocks.
fn discard_all(m: &Machine, blocks: u32) -> [u8; 64] {
    let list: Vec<u8> = (0..256)
        .flat_map(|_| {
            let mut range = [0; 16];
            range[4..8].copy_from_slice(&blocks.to_le_bytes());
            range
        })
        .collect();
    m.guest.set(LISTS, &list);
    let mut sqe = [0; 64];
    (sqe[0], sqe[4], sqe[40], sqe[44]) = (9, 1, 255, 4);
    sqe[24..32].copy_from_slice(&LISTS.to_le_bytes());
    sqe
}

fn write_zeroes(blocks: u16, deac: bool) -> [u8; 64] {
    let mut sqe = [0; 64];
    (sqe[0], sqe[4]) = (8, 1);
    sqe[48..50].copy_from_slice(&(blocks - 1).to_le_bytes());
    sqe[51] = if deac { 2 } else { 0 };
    sqe
}

/// One command that touches 32 MiB of memory does not fill a turn: it goes on for many, and each serves
/// another queue.
#[test]
fn a_long_command_on_memory_is_done_in_slices() {
    const LEN: u64 = 32 * MIB;
    let blocks = (LEN / PAGE) as u16;
    let mut m = Machine::with_images(LEN);
    for qid in 1..=2 {
        m.cq(qid, 64);
        m.sq(qid, 64, qid);
    }
    for (what, sqe) in [
        ("Write Zeroes", write_zeroes(blocks, false)),
        ("Write Zeroes that deallocate", write_zeroes(blocks, true)),
        ("Dataset Management", discard_all(&m, blocks.into())),
    ] {
        m.fill();
        m.submit(1, 1, sqe);
        let mut turns = 0;
        while m.take(1, 1).is_empty() {
            m.read(2, 1, 1);
            m.core.turn();
            assert_eq!(m.take(2, 9), [2], "{what}: in each turn");
            turns += 1;
            assert!(turns > 1 || (0..LEN).step_by(1 << 20).any(|at| m.byte(at) != 0), "{what} in one turn");
            assert!(turns < 100_000, "{what} has an end");
        }
        assert!((0..LEN).step_by(PAGE as usize).all(|at| m.byte(at) == 0), "{what}");
        assert!(turns > 4, "{what}: {turns} turns");
    }
}

/// The longest transfer there can be (MDTS 11) is done in slices, and is all there.
#[test]
fn a_long_transfer_of_memory_is_done_in_slices() {
    const LEN: u64 = 8 * MIB;
    const FROM: u64 = 2 * super::DATA;
    let mut m = Machine::with_images(LEN + PAGE);
    m.shared.limits.set_mdts(11);
    for qid in 1..=2 {
        m.cq(qid, 64);
        m.sq(qid, 64, qid);
    }
    let data: Vec<u8> = (0..LEN / 4).flat_map(|n| (n as u32 * 3).to_le_bytes()).collect();
    m.guest.set(FROM, &data);
    let to = FROM + LEN;
    for (opcode, at) in [(1, FROM), (2, to)] {
        let mut sqe = [0; 64];
        (sqe[0], sqe[1], sqe[4], sqe[40]) = (opcode, 0x40, 1, 1);
        sqe[24..32].copy_from_slice(&at.to_le_bytes());
        sqe[32..36].copy_from_slice(&(LEN as u32).to_le_bytes());
        sqe[48..50].copy_from_slice(&((LEN / PAGE) as u16 - 1).to_le_bytes());
        m.submit(1, 1, sqe);
        let mut turns = 0;
        while m.take(1, 1).is_empty() {
            m.read(2, 1, 1);
            m.core.turn();
            assert_eq!(m.take(2, 9), [2], "in each turn");
            turns += 1;
            assert!(turns < 1000, "it ends");
        }
        assert!(turns >= 16, "{turns} turns");
    }
    assert_eq!(m.guest.bytes(to, LEN as usize), data);
    assert_eq!((m.byte(PAGE - 1), m.byte(PAGE + 4)), (0, 3), "it went to block 1");
}

/// Commands that are all ready at once take turns.
#[test]
fn many_ready_commands_share_a_turn() {
    let mut m = Machine::new();
    for qid in 1..=2 {
        m.cq(qid, 512);
        m.sq(qid, 512, qid);
    }
    let compare = m.transfer(5, 128);
    m.guest.set(super::DATA, &vec![0; 128 * PAGE as usize]);
    m.submit(1, 200, compare);
    let mut ended = 0;
    for turn in 0.. {
        m.read(2, 1, 1);
        m.core.turn();
        assert_eq!(m.take(2, 9), [2], "in each turn");
        let now = m.take(1, 512).len();
        assert!(now <= 4, "{now} of 512 KiB in turn {turn}");
        ended += now;
        if ended == 200 {
            break;
        }
        assert!(turn < 100_000, "they end");
    }
}

/// To follow a data pointer is work too.
#[test]
fn long_lists_of_descriptors_are_work() {
    let mut m = Machine::new();
    m.cq(1, 256);
    m.sq(1, 256, 1);
    let sqe = scattered_read(&m, 1, PIECES);
    m.submit(1, 200, sqe);
    let mut ended = 0;
    for turn in 0..10_000 {
        m.core.turn();
        let now = m.take(1, 256).len();
        assert!(now <= 4, "{now} in turn {turn}");
        ended += now;
    }
    assert_eq!(ended, 200);
}

/// However many queues there are: one turn serves some, and those to come are the first of the next.
#[test]
fn many_queues_share_turns() {
    const QUEUES: u16 = 24;
    let mut m = Machine::new();
    m.cq(1, 2048);
    for qid in 1..=QUEUES {
        m.sq(qid, 64, 1);
        m.read(qid, 60, 128);
    }
    let mut counts = [0; QUEUES as usize + 1];
    for turn in 1..=48 {
        m.core.turn();
        let from = m.take(1, 2048);
        assert!(from.len() <= 8, "{} of 512 KiB in turn {turn}", from.len());
        from.into_iter().for_each(|sqid| counts[usize::from(sqid)] += 1);
    }
    let (least, most) = (counts[1..].iter().min(), counts[1..].iter().max());
    assert!(*least.unwrap() > 0 && *most.unwrap() <= least.unwrap() + 2, "{counts:?}");
}

/// What all commands hold in memory is bounded, however long their lists are; and another queue gets its part
/// of it.
#[test]
fn commands_that_hang_hold_little_memory() {
    let mut m = Machine::with_images(8 * MIB);
    for qid in 1..=2 {
        m.cq(qid, 1024);
        m.sq(qid, 1024, qid);
    }
    let sqe = scattered_read(&m, 2, PIECES);
    m.submit(1, 1000, sqe);
    for _ in 0..5000 {
        m.core.turn();
    }
    let in_flight = m.core.slots.len() as u64;
    // 16 bytes for each piece, and whoever grows a list doubles it.
    assert!(in_flight > 10 && in_flight * PIECES * 16 <= 24 * MIB, "{in_flight}");
    m.submit(2, 100, sqe);
    for _ in 0..5000 {
        m.core.turn();
    }
    assert!(m.core.slots.iter_mut().filter(|(_, command)| command.sqid == 2).count() > 10);
}

/// A queue that has a thousand commands hanging leaves room for those of another.
#[test]
fn a_queue_does_not_take_all_slots() {
    let mut m = Machine::with_images(8 * MIB);
    for qid in 1..=3 {
        m.cq(qid, 2048);
        m.sq(qid, 2048, qid);
    }
    let mut sqe = m.transfer(2, 1);
    sqe[4] = 2;
    m.submit(1, 1500, sqe);
    m.submit(2, 1500, sqe);
    for _ in 0..200 {
        m.core.turn();
    }
    m.submit(3, 20, sqe);
    m.core.turn();
    m.core.turn();
    assert_eq!(m.core.slots.iter_mut().filter(|(_, command)| command.sqid == 3).count(), 20);
}
