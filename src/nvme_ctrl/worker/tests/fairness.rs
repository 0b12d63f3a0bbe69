//! What one queue may keep from another.

use super::Machine;

/// Two queues share a completion queue that is always full; whatever the number of turns between two places
/// in it.
#[test]
fn a_full_completion_queue_is_shared_fairly() {
    for turns in 1..=4 {
        let mut m = Machine::new();
        m.cq(1, 4);
        m.sq(1, 256, 1);
        m.sq(2, 256, 1);
        m.sq(3, 256, 1);
        for qid in 1..=3 {
            m.read(qid, 200, 1);
        }
        let mut counts = [0; 4];
        for _ in 0..90 {
            (0..turns).for_each(|_| _ = m.core.turn());
            for sqid in m.take(1, 1) {
                counts[usize::from(sqid)] += 1;
            }
        }
        // The first turn finds room for three.
        assert!(counts[1..].iter().all(|count| (28..=33).contains(count)), "{turns} turns: {counts:?}");
    }
}

/// The same beside a queue that has room for all it does.
#[test]
fn a_busy_neighbour_does_not_decide_who_is_first() {
    for turns in 1..=4 {
        let mut m = Machine::new();
        m.cq(1, 4);
        m.cq(2, 256);
        m.sq(1, 256, 1);
        m.sq(3, 256, 2);
        m.sq(2, 256, 1);
        m.read(1, 200, 1);
        m.read(2, 200, 1);
        let mut counts = [0; 4];
        for _ in 0..90 {
            for _ in 0..turns {
                m.read(3, 1, 1);
                m.core.turn();
                m.take(2, 9);
            }
            for sqid in m.take(1, 1) {
                counts[usize::from(sqid)] += 1;
            }
        }
        assert!(counts[1] >= 40 && counts[2] >= 40, "{turns} turns: {counts:?}");
    }
}

/// However deep a queue is and however large its commands: one turn serves each of the others.
#[test]
fn a_deep_queue_does_not_starve_a_shallow_one() {
    for (deep, pages) in [(1000, 1), (200, 128)] {
        let mut m = Machine::new();
        for qid in 1..=3 {
            m.cq(qid, 1024);
            m.sq(qid, 1024, qid);
        }
        m.read(1, deep, pages);
        let mut all = 0;
        for round in 0..8 {
            m.read(3, 1, 1);
            m.core.turn();
            assert_eq!(m.take(3, 9), [3], "round {round}");
            let burst = m.take(1, 1024).len();
            assert!(burst > 0 && burst <= 36, "{burst} in one turn");
            assert!(burst * usize::from(pages) <= 128 + 4 * usize::from(pages), "{burst} of {pages} pages");
            all += burst;
        }
        assert!(all < usize::from(deep), "the deep one has been deep all the time");
    }
}
