//! Images as registered files of a ring: a read of one takes and gives back no reference to it.
//!
//! Such a file stays open until the ring is gone, which with a process that was killed may be a while after its end. So
//! it is a description of its own, without the image's lock: the next process can have that at once.

use std::os::fd::{AsRawFd, RawFd};

use io_uring::IoUring;

use crate::backend::image_file::{ImageFile, ImageId};

/// Images that one ring registers; those that come later are used as they are.
const SLOTS: u32 = 32;

/// What is registered with one ring.
#[derive(Debug)]
pub(super) struct Files {
    /// By slot: the image it is for. None is ever taken out, for images are there as long as the workers.
    images: Vec<ImageId>,
    slots: u32,
}

impl Files {
    /// An empty table, where the kernel can add to it later (5.19).
    pub(super) fn of(ring: &IoUring) -> Self {
        let slots = ring.submitter().register_files_sparse(SLOTS).map_or(0, |()| SLOTS);
        Self { images: Vec::new(), slots }
    }

    /// The slot of an image, if it has one or can have one.
    pub(super) fn slot(&mut self, ring: &IoUring, image: &ImageFile) -> Option<RawFd> {
        let reader = image.reader()?;
        if let Some(slot) = self.images.iter().position(|id| *id == image.id()) {
            return RawFd::try_from(slot).ok();
        }
        let slot = u32::try_from(self.images.len()).ok().filter(|slot| *slot < self.slots)?;
        if !matches!(ring.submitter().register_files_update(slot, &[reader.as_raw_fd()]), Ok(1)) {
            self.slots = slot;
            return None;
        }
        self.images.push(image.id());
        RawFd::try_from(slot).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::probe;
    use super::*;

    fn image() -> ImageFile {
        let file: File = tempfile::tempfile().expect("a file for the test");
        ImageFile::new(file, None).with_reader()
    }

    #[test]
    fn a_slot_for_each_image_as_long_as_there_are_some() {
        if probe().is_err() {
            return;
        }
        let ring = IoUring::new(4).expect("the ring is made");
        let mut files = Files::of(&ring);
        if files.slots == 0 {
            return;
        }
        let images: Vec<ImageFile> = (0..SLOTS).map(|_| image()).collect();
        for _ in 0..2 {
            let slots = images.iter().map(|image| files.slot(&ring, image));
            assert!(slots.eq((0..).map(Some).take(images.len())));
        }
        assert_eq!(files.slot(&ring, &image()), None);
        // A descriptor that is given out again names another image.
        let (mut few, first) = (Files::of(&IoUring::new(4).expect("a ring")), image());
        few.slots = 0;
        assert_eq!(few.slot(&ring, &first), None);
    }

    /// What is registered keeps the file open, but not its lock.
    #[test]
    fn a_registered_image_is_not_locked() {
        use crate::backend::{RawBackend, RawOptions};

        if probe().is_err() {
            return;
        }
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("image");
        File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("the image is made");
        let ring = IoUring::new(4).expect("the ring is made");
        let mut files = Files::of(&ring);
        let first = RawBackend::open(RawOptions::new(&path)).expect("it opens");
        let slot = files.slot(&ring, first.file());
        assert!(slot.is_some() || files.slots == 0);
        RawBackend::open(RawOptions::new(&path)).expect_err("it is locked");
        drop(first);
        RawBackend::open(RawOptions::new(&path)).expect("it is free");
    }
}
