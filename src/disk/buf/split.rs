//! One buffer that several reads fill at once, each its own part, and that one write then takes.
//!
//! That no two owners reach the same byte is not a promise of the callers but the only way there is to get at
//! the bytes: parts are cut off in order, so no two overlap; while there are parts the buffer itself cannot
//! be touched; and it comes back only when the last part is gone.
#![expect(unsafe_code, reason = "owners of disjoint parts of one allocation")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use super::buffer::Buffer;

/// A buffer being filled by parts.
#[derive(Debug)]
pub struct SplitBuffer {
    memory: Arc<Memory>,
    /// Bytes handed out as parts: the first ones.
    handed: usize,
    /// Bytes whose part has come back.
    joined: usize,
}

impl SplitBuffer {
    /// Takes `whole` to hand it out in parts.
    pub fn new(whole: Buffer) -> Self {
        Self { memory: Arc::new(Memory(whole)), handed: 0, joined: 0 }
    }

    /// The part of `len` bytes that follows those handed out before; `None` when not so many are left, or for
    /// 0.
    pub fn split(&mut self, len: usize) -> Option<Part> {
        let at = self.handed;
        let end = at.checked_add(len).filter(|end| len > 0 && *end <= self.memory.len())?;
        self.handed = end;
        Some(Part { memory: self.memory.clone(), at, len })
    }

    /// Takes a part back that has been filled. `false`: it is not of this buffer. A part that is dropped
    /// instead never comes back, and the buffer does not either.
    #[must_use]
    pub fn join(&mut self, part: Part) -> bool {
        let ours = Arc::ptr_eq(&self.memory, &part.memory);
        if ours {
            self.joined += part.len;
        }
        ours
    }

    /// The buffer, when all of it has been handed out and come back.
    pub fn whole(self) -> Option<Buffer> {
        if self.joined != self.memory.len() {
            return None;
        }
        Arc::into_inner(self.memory).map(|memory| memory.0)
    }
}

/// Some bytes of a [`SplitBuffer`], which nobody else can reach.
pub struct Part {
    memory: Arc<Memory>,
    at: usize,
    /// `at + len` lies within the memory.
    len: usize,
}

impl Deref for Part {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the allocation (`SplitBuffer::split` is the only one to make a Part),
        // which the Arc keeps; the bytes of a Buffer are initialised. Parts do not overlap and cannot be
        // cloned, and nothing else reaches the bytes while a Part holds the Arc, so whoever writes them needs
        // `&mut self`.
        unsafe { std::slice::from_raw_parts(self.memory.start().add(self.at).as_ptr(), self.len) }
    }
}

impl DerefMut for Part {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; and `&mut self` is the only way to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().add(self.at).as_ptr(), self.len) }
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({}..{})", self.at, self.at + self.len)
    }
}

/// Owns the bytes, and gives no access to them.
#[derive(Debug)]
struct Memory(Buffer);

impl Memory {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn start(&self) -> NonNull<u8> {
        self.0.start()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split_buffer(len: usize) -> SplitBuffer {
        SplitBuffer::new(vec![0xee; len].into())
    }

    #[test]
    fn parts_are_cut_in_order_and_never_too_many() {
        let mut split_buffer = split_buffer(10);
        assert!(
            split_buffer.split(0).is_none()
                && split_buffer.split(11).is_none()
                && split_buffer.split(usize::MAX).is_none()
        );
        let mut first = split_buffer.split(4).expect("there");
        assert!(split_buffer.split(7).is_none() && split_buffer.split(usize::MAX).is_none());
        let mut second = split_buffer.split(6).expect("there");
        assert!(split_buffer.split(1).is_none());
        assert_eq!((first.len(), second.len()), (4, 6));
        second.fill(2);
        first.fill(1);
        assert_eq!((&first[..], &second[..]), (&[1; 4][..], &[2; 6][..]));
        assert!(split_buffer.join(second) && split_buffer.join(first));
        assert_eq!(split_buffer.whole().as_deref(), Some(&[1, 1, 1, 1, 2, 2, 2, 2, 2, 2][..]));
    }

    #[test]
    fn the_buffer_is_the_one_that_was_given() {
        let whole = Buffer::from(vec![3; 100]);
        let place = whole.as_ptr();
        let mut split_buffer = SplitBuffer::new(whole);
        let part = split_buffer.split(100).expect("there");
        assert_eq!(part.as_ptr(), place);
        assert!(split_buffer.join(part));
        let whole = split_buffer.whole().expect("all came back");
        assert_eq!(whole.as_ptr(), place);
        assert!(SplitBuffer::new(Buffer::default()).whole().is_some_and(|whole| whole.is_empty()));
    }

    #[test]
    fn it_comes_back_only_when_every_part_did() {
        let mut untouched = split_buffer(4);
        assert!(untouched.split(2).is_some_and(|part| untouched.join(part)));
        assert!(untouched.whole().is_none(), "never handed out");
        let mut lost = split_buffer(4);
        let (first, second) = (lost.split(2).expect("there"), lost.split(2).expect("there"));
        drop(first);
        assert!(lost.join(second));
        assert!(lost.whole().is_none(), "dropped instead");
        let mut out = split_buffer(4);
        let (first, mut second) = (out.split(2).expect("there"), out.split(2).expect("there"));
        assert!(out.join(first));
        assert!(out.whole().is_none(), "still out");
        second.fill(9);
        assert_eq!(second[..], [9; 2], "lives on without the buffer");
    }

    #[test]
    fn a_part_of_another_buffer_is_refused() {
        let (mut one, mut two) = (split_buffer(4), split_buffer(4));
        let (first, second) = (one.split(4).expect("there"), two.split(4).expect("there"));
        assert!(!one.join(second) && one.join(first));
        assert!(one.whole().is_some() && two.whole().is_none());
    }

    /// Parts written by threads of their own, as engines do.
    #[test]
    fn threads_fill_parts_at_once() {
        let mut split_buffer = split_buffer(64 << 10);
        let parts: Vec<Part> = (0..16).map(|_| split_buffer.split(4 << 10).expect("there")).collect();
        let fill = |(n, mut part): (usize, Part)| {
            std::thread::spawn(move || {
                part.fill(n as u8);
                part
            })
        };
        let threads: Vec<_> = parts.into_iter().enumerate().map(fill).collect();
        for thread in threads.into_iter().rev() {
            assert!(split_buffer.join(thread.join().expect("no panic")));
        }
        let whole = split_buffer.whole().expect("all came back");
        assert!(whole.chunks(4 << 10).zip(0..).all(|(part, n)| part.iter().all(|byte| *byte == n)));
    }

    proptest! {
        /// Any cut, any order of return, some dropped, the buffer dropped before its parts or after them.
        #[test]
        fn any_order(
            cuts in prop::collection::vec((1..50usize, any::<u32>(), prop::bool::weighted(0.1)), 1..20),
            early in any::<bool>(),
        ) {
            let mut split_buffer = split_buffer(cuts.iter().map(|(len, ..)| len).sum());
            let mut parts: Vec<_> = cuts
                .iter()
                .enumerate()
                .map(|(n, &(len, place, dropped))| (place, n, dropped, split_buffer.split(len).expect("there")))
                .collect();
            parts.sort_by_key(|(place, ..)| *place);
            for (_, n, _, part) in &mut parts {
                part.fill(*n as u8);
            }
            for (_, n, _, part) in &parts {
                prop_assert!(part.iter().all(|byte| *byte == *n as u8));
            }
            if early {
                drop(split_buffer);
                return Ok(());
            }
            let complete = parts.iter().all(|(_, _, dropped, _)| !dropped);
            for (_, _, dropped, part) in parts {
                prop_assert!(dropped || split_buffer.join(part));
            }
            let expected = complete.then(|| {
                cuts.iter().enumerate().flat_map(|(n, &(len, ..))| vec![n as u8; len]).collect::<Vec<u8>>()
            });
            prop_assert_eq!(split_buffer.whole().map(|whole| whole.to_vec()), expected);
        }
    }
}
