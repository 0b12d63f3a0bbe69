//! Which submission queue is asked next: the one that has gone without for longest.
//!
//! To begin elsewhere in each turn is not enough: where a queue has room for its completions in every second
//! turn only, two queues that share it would be asked in the same order whenever there is some, and the
//! second one never served.

/// Commands taken from one queue before the next one has its turn.
pub(super) const BURST: usize = 32;

/// See the module docs. Submission queue ids.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    /// The one that has gone without for longest first.
    order: Vec<u16>,
}

impl Rotation {
    /// Takes a queue in, at the end.
    pub(super) fn push(&mut self, qid: u16) {
        self.order.push(qid);
    }

    /// Forgets a queue, if it is there.
    pub(super) fn remove(&mut self, qid: u16) {
        self.order.retain(|other| *other != qid);
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.order.clear();
    }

    /// The queue at `place`.
    pub(super) fn get(&self, place: usize) -> Option<u16> {
        self.order.get(place).copied()
    }

    /// The queue at `place` was served: it is last now, and the next one in its place.
    pub(super) fn served(&mut self, place: usize) {
        if let Some(rest) = self.order.get_mut(place..).filter(|rest| rest.len() > 1) {
            rest.rotate_left(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(rotation: &Rotation) -> Vec<u16> {
        (0..).map_while(|place| rotation.get(place)).collect()
    }

    #[test]
    fn who_was_served_is_last() {
        let mut rotation = Rotation::default();
        [7, 2, 9, 4].into_iter().for_each(|qid| rotation.push(qid));
        rotation.served(1);
        assert_eq!(order(&rotation), [7, 9, 4, 2]);
        rotation.served(3);
        assert_eq!(order(&rotation), [7, 9, 4, 2]);
        rotation.remove(9);
        rotation.remove(5);
        rotation.served(0);
        assert_eq!(order(&rotation), [4, 2, 7]);
        rotation.clear();
        rotation.served(0);
        assert_eq!(rotation.get(0), None);
    }
}
