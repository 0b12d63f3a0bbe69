//! Queues of one kind: walked in order, found by their id without a search.

use std::ops::{Deref, DerefMut};

/// See the module docs. As a slice it has the queues in the order they came.
#[derive(Debug)]
pub(super) struct ById<T> {
    queues: Vec<T>,
    /// By id: where in `queues`.
    places: Vec<Option<u16>>,
    id: fn(&T) -> u16,
}

impl<T> ById<T> {
    /// No queue; `id` tells a queue's.
    pub(super) fn new(id: fn(&T) -> u16) -> Self {
        Self { queues: Vec::new(), places: Vec::new(), id }
    }

    /// Where queue `id` is.
    pub(super) fn position(&self, id: u16) -> Option<usize> {
        self.places.get(usize::from(id)).copied().flatten().map(usize::from)
    }

    /// Queue `id`.
    pub(super) fn find(&mut self, id: u16) -> Option<&mut T> {
        self.position(id).and_then(|at| self.queues.get_mut(at))
    }

    /// Takes a queue in; its id is none of those that are there.
    pub(super) fn push(&mut self, queue: T) {
        self.queues.push(queue);
        self.index();
    }

    /// Forgets queue `id`, if it is there.
    pub(super) fn remove(&mut self, id: u16) {
        let of = self.id;
        self.queues.retain(|queue| of(queue) != id);
        self.index();
    }

    /// Takes all of them out.
    pub(super) fn drain(&mut self) -> std::vec::Drain<'_, T> {
        self.places.clear();
        self.queues.drain(..)
    }

    fn index(&mut self) {
        self.places.clear();
        for (at, queue) in (0..).zip(&self.queues) {
            let id = usize::from((self.id)(queue));
            if self.places.len() <= id {
                self.places.resize(id + 1, None);
            }
            self.places[id] = Some(at);
        }
    }
}

impl<T> Deref for ById<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.queues
    }
}

impl<T> DerefMut for ById<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.queues
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_id_whatever_came_and_went() {
        let mut queues = ById::new(|queue: &(u16, char)| queue.0);
        for queue in [(5, 'a'), (1, 'b'), (9, 'c')] {
            queues.push(queue);
        }
        assert_eq!(queues.find(9), Some(&mut (9, 'c')));
        queues.remove(5);
        queues.remove(7);
        assert_eq!(queues.find(5), None);
        assert_eq!((queues.position(1), queues.position(9)), (Some(0), Some(1)));
        assert_eq!(queues.find(u16::MAX), None);
        assert_eq!(queues.drain().count(), 2);
        assert_eq!(queues.find(1), None);
        assert!(queues.is_empty());
    }
}
