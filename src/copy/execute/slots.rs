//! Numbered places for what is under way.

/// The lowest free number is taken first, so that numbers stay below the largest count there has been at one
/// time.
#[derive(Debug)]
pub(super) struct Slots<T> {
    places: Vec<Option<T>>,
    taken: usize,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { places: Vec::new(), taken: 0 }
    }
}

impl<T> Slots<T> {
    /// Takes a place; its number.
    pub fn insert(&mut self, value: T) -> usize {
        let number = self.places.iter().position(Option::is_none).unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[number] = Some(value);
        self.taken += 1;
        number
    }

    /// Empties a place.
    pub fn remove(&mut self, number: usize) -> Option<T> {
        let value = self.places.get_mut(number).and_then(Option::take);
        self.taken -= usize::from(value.is_some());
        value
    }

    pub fn get_mut(&mut self, number: usize) -> Option<&mut T> {
        self.places.get_mut(number)?.as_mut()
    }

    /// By number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        self.places.iter_mut().enumerate().filter_map(|(number, place)| Some((number, place.as_mut()?)))
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().flatten()
    }

    pub fn len(&self) -> usize {
        self.taken
    }

    pub fn is_empty(&self) -> bool {
        self.taken == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_place_is_taken() {
        let mut slots = Slots::default();
        assert_eq!(['a', 'b', 'c'].map(|value| slots.insert(value)), [0, 1, 2]);
        assert_eq!((slots.remove(2), slots.remove(0), slots.len()), (Some('c'), Some('a'), 1));
        assert_eq!((slots.insert('d'), slots.insert('e'), slots.insert('f')), (0, 2, 3));
        assert_eq!(slots.iter().collect::<String>(), "dbef");
        assert_eq!(slots.iter_mut().map(|(number, _)| number).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn an_empty_place_is_not_emptied_again() {
        let mut slots = Slots::default();
        slots.insert(());
        assert_eq!((slots.remove(0), slots.remove(0), slots.remove(7)), (Some(()), None, None));
        assert!(slots.is_empty() && slots.get_mut(0).is_none() && slots.get_mut(7).is_none());
    }
}
