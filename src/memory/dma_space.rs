//! The control thread's side of guest memory: map and unmap.
#![expect(
    unsafe_code,
    reason = "asks libc for the page size of the machine, which rustix hides behind another feature"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::backing;
use super::map_error::MapError;
use super::region::{KeptFile, Mapping, OnRelease};
use super::{DmaMap, Region, Rights, sigbus};

/// Maps with a descriptor come in multiples of this: the `pgsizes` that our VERSION reply offers.
const PAGE: u64 = 4096;

/// `f_type` of hugetlbfs, memfds with MFD_HUGETLB included.
const HUGETLBFS_MAGIC: u64 = libc::HUGETLBFS_MAGIC as u64;

/// What one client may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaLimits {
    /// Maps at a time (the `max_dma_maps` of our VERSION reply).
    pub max_maps: usize,
    /// Bytes of all maps together, whether they have a descriptor or not.
    pub max_bytes: u64,
}

impl Default for DmaLimits {
    /// 4096 maps (each costs a VMA of 65530), 64 TiB (half of what user space can address on x86-64).
    fn default() -> Self {
        Self { max_maps: 4096, max_bytes: 1 << 46 }
    }
}

/// Guest memory as one epoch sees it: from one reset of the function, or one client, to the next.
///
/// A queue belongs to the epoch of its creation, and is served through its table alone: should a worker be
/// late, it finds nothing of what came after. Workers read it through an `arc_swap::Cache`.
pub type Epoch = Arc<ArcSwap<DmaMap>>;

/// Owner of the DMA table; see the module docs.
pub struct DmaSpace {
    limits: DmaLimits,
    on_release: OnRelease,
    regions: BTreeMap<u64, Arc<Region>>,
    bytes: u64,
    /// The files of hugetlb regions, by device, inode and whether they may be written; see [`KeptFile`].
    kept: BTreeMap<(u64, u64, bool), std::sync::Weak<OwnedFd>>,
    epoch: Epoch,
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSpace")
            .field("limits", &self.limits)
            .field("bytes", &self.bytes)
            .field("regions", &self.regions.values())
            .finish()
    }
}

impl DmaSpace {
    /// An empty table. `on_release` is called from any thread when the last pin of a removed region falls (it
    /// should wake the control thread, which then asks [`Unmapping::released`]); it may be called too often.
    /// Installs the process's SIGBUS handler.
    pub fn new(limits: DmaLimits, on_release: Arc<dyn Fn() + Send + Sync>) -> Self {
        sigbus::install();
        Self {
            limits,
            on_release,
            regions: BTreeMap::new(),
            bytes: 0,
            kept: BTreeMap::new(),
            epoch: Epoch::default(),
        }
    }

    /// The epoch that has begun last.
    pub fn epoch(&self) -> Epoch {
        Arc::clone(&self.epoch)
    }

    /// Ends the epoch and begins another over the same maps.
    ///
    /// Who looks at the table of the old one finds nothing from now on. Who looked before may still be at it,
    /// until it is fenced or the memory is [taken back](Self::take_back).
    pub fn begin_epoch(&mut self) -> Epoch {
        let old = std::mem::take(&mut self.epoch);
        self.publish();
        old.store(Arc::new(DmaMap::end()));
        self.epoch()
    }

    /// Maps now in the table.
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Nothing mapped?
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// DMA_MAP: `size` bytes of guest memory at `iova`, found at `file_offset` of `file`. Without a file
    /// (ROM, BARs, private guest RAM) the range is known, but DMA to it fails.
    pub fn map(
        &mut self,
        iova: u64,
        size: u64,
        rights: Rights,
        file_offset: u64,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(), MapError> {
        let more = size.checked_sub(1).ok_or(MapError::Invalid("size 0"))?;
        let last = iova.checked_add(more).ok_or(MapError::Invalid("address + size wraps"))?;
        if self.overlaps(iova, last) {
            return Err(MapError::Overlap);
        }
        let bytes = self.bytes.checked_add(size).ok_or(MapError::Limit)?;
        if self.regions.len() >= self.limits.max_maps || bytes > self.limits.max_bytes {
            return Err(MapError::Limit);
        }
        let host = match file {
            None => None,
            Some(file) => {
                if [iova, size, file_offset].iter().any(|n| !n.is_multiple_of(PAGE)) {
                    return Err(MapError::Invalid("address, size and file offset must be page aligned"));
                }
                Some(self.map_file(file, file_offset, size, rights)?)
            }
        };
        let region = Region::new(iova, size, rights, host, Arc::clone(&self.on_release));
        self.regions.insert(iova, Arc::new(region));
        self.bytes = bytes;
        self.publish();
        Ok(())
    }

    fn overlaps(&self, first: u64, last: u64) -> bool {
        // The maps do not overlap each other, so the one that begins latest within `..=last` ends latest too.
        self.regions.range(..=last).next_back().is_some_and(|(_, region)| region.last() >= first)
    }

    fn map_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        size: u64,
        rights: Rights,
    ) -> Result<Mapping, MapError> {
        backing::check(file)?;
        let stat = rustix::fs::fstat(file).map_err(MapError::Host)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(MapError::Invalid("the descriptor is not a memory file"));
        }
        let end = offset.checked_add(size).ok_or(MapError::Invalid("file offset + size wraps"))?;
        if end > u64::try_from(stat.st_size).unwrap_or(0) {
            return Err(MapError::Invalid("the range ends beyond the file"));
        }
        let len = usize::try_from(size).map_err(|_| MapError::Limit)?;
        let statfs = rustix::fs::fstatfs(file).map_err(MapError::Host)?;
        let mut granule = host_page();
        let mut keep = None;
        // Clients map hugetlb memory in pieces that ignore its page size (the holes of a PC's first
        // megabyte).
        if statfs.f_type as u64 == HUGETLBFS_MAGIC {
            granule = usize::try_from(statfs.f_bsize)
                .ok()
                .filter(|n| n.is_power_of_two())
                .ok_or(MapError::Invalid("unusable huge page size"))?;
            keep = Some(self.keep(file, stat.st_dev, stat.st_ino)?);
        }
        Mapping::new(&file, offset, len, granule, rights, keep).map_err(|errno| match errno {
            Errno::NOSPC => MapError::Limit,
            errno => MapError::Host(errno),
        })
    }

    fn keep(&mut self, file: BorrowedFd<'_>, dev: u64, ino: u64) -> Result<KeptFile, MapError> {
        let flags = rustix::fs::fcntl_getfl(file).map_err(MapError::Host)?;
        let key = (dev, ino, flags.contains(OFlags::RDWR));
        if let Some(kept) = self.kept.get(&key).and_then(std::sync::Weak::upgrade) {
            return Ok(kept);
        }
        self.kept.retain(|_, kept| kept.strong_count() > 0);
        let kept = Arc::new(
            file.try_clone_to_owned()
                .map_err(|error| MapError::Host(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))?,
        );
        self.kept.insert(key, Arc::downgrade(&kept));
        Ok(kept)
    }

    fn publish(&self) {
        let map = DmaMap::new(self.regions.values().cloned());
        self.epoch.store(Arc::new(map));
    }

    /// DMA_UNMAP of exactly one earlier map. It is out of the published table on return; see [`Unmapping`].
    pub fn unmap(&mut self, iova: u64, size: u64) -> Result<Unmapping, MapError> {
        let more = size.checked_sub(1).ok_or(MapError::Invalid("size 0"))?;
        let last = iova.checked_add(more).ok_or(MapError::Invalid("address + size wraps"))?;
        let region = match self.regions.get(&iova) {
            Some(region) if region.size() == size => Arc::clone(region),
            _ if self.overlaps(iova, last) => return Err(MapError::NotExact),
            _ => return Err(MapError::NotMapped),
        };
        self.regions.remove(&iova);
        self.bytes -= size;
        self.publish();
        region.set_removed();
        Ok(Unmapping { regions: vec![region] })
    }

    /// Removes every map: DMA_UNMAP with the flag "all", or the client left.
    pub fn unmap_all(&mut self) -> Unmapping {
        let regions: Vec<_> = std::mem::take(&mut self.regions).into_values().collect();
        self.bytes = 0;
        self.publish();
        for region in &regions {
            region.set_removed();
        }
        Unmapping { regions }
    }

    /// Can no transfer in flight touch any of the memory?
    pub fn is_released(&self) -> bool {
        self.regions.values().all(|region| region.pins() == 0)
    }

    /// Takes the memory from who is late, while the table keeps it: a second mapping of the same pages takes
    /// a region's place, and the old one is revoked. Snapshots taken before answer `Unmapped` for such a
    /// region.
    ///
    /// `all`: somebody was not fenced, and may touch any region without a pin. Otherwise those that are
    /// pinned.
    ///
    /// A region that cannot be mapped a second time stays in the table, but DMA there fails from now on.
    pub fn take_back(&mut self, all: bool) -> Revoked {
        let mut old = Vec::new();
        for region in self.regions.values_mut() {
            if region.pins() == 0 && !all {
                continue;
            }
            match region.duplicate() {
                // No memory, or none of the client's any more.
                None => {}
                Some(Ok(fresh)) => old.push(std::mem::replace(region, Arc::new(fresh))),
                Some(Err(errno)) => {
                    log::error!(
                        "guest memory at {:#x} cannot be mapped again after a hung transfer ({errno}); DMA there \
                         fails until the client maps it anew",
                        region.iova()
                    );
                    old.push(Arc::clone(region));
                }
            }
        }
        if !old.is_empty() {
            self.publish();
        }
        for region in &old {
            if !self.regions.get(&region.iova()).is_some_and(|now| Arc::ptr_eq(now, region)) {
                region.set_removed();
            }
            revoke(region);
        }
        let pinned = old.iter().filter(|region| region.pins() > 0).count();
        Revoked { pinned, held: old.iter().any(|region| region.is_held()) }
    }
}

impl Drop for DmaSpace {
    /// Snapshots that workers keep must not look as if the client were still there.
    fn drop(&mut self) {
        let _ = self.unmap_all();
    }
}

/// What taking memory from transfers in flight came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Regions that transfers were using.
    pub pinned: usize,
    /// The kernel may have pinned pages for one of them, and reach them still.
    pub held: bool,
}

fn revoke(region: &Region) {
    if let Err(errno) = region.revoke() {
        log::error!("guest memory at {:#x} cannot be taken from a hung transfer: {errno}", region.iova());
    }
}

/// Maps that left the table; transfers in flight may still hold pins on them. Dropping it gives nothing up:
/// the last pin unmaps the memory.
#[derive(Debug)]
#[must_use = "the client's memory may be in use until it is released or revoked"]
pub struct Unmapping {
    regions: Vec<Arc<Region>>,
}

impl Unmapping {
    /// No transfer can touch the memory any more. (Small accesses through a snapshot take no pin: workers
    /// must have dropped theirs, which a fence shows.) Once true it stays true.
    pub fn released(&self) -> bool {
        self.regions.iter().all(|region| region.pins() == 0)
    }

    /// Takes `other` in.
    pub fn add(&mut self, other: Self) {
        self.regions.extend(other.regions);
    }

    /// Could the kernel still reach it after [`revoke`](Self::revoke), because it has pinned the pages
    /// themselves?
    pub fn is_held(&self) -> bool {
        self.regions.iter().any(|region| region.is_held())
    }

    /// Takes the memory from whoever still uses it; see [`Region::revoke`]. Only pages that the kernel itself
    /// pinned (O_DIRECT) can still be reached.
    pub fn revoke(&self) -> Revoked {
        let mut pinned = 0;
        // All of them: a worker that never answered the fence may use one without a pin.
        for region in &self.regions {
            pinned += usize::from(region.pins() > 0);
            revoke(region);
        }
        // After that: a call that begins later finds other pages.
        Revoked { pinned, held: self.is_held() }
    }
}

/// Page size of the machine, in bytes.
fn host_page() -> usize {
    // SAFETY: no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).ok().filter(|n| n.is_power_of_two()).unwrap_or(PAGE as usize)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;
    use crate::memory::region::Pin;
    use crate::memory::testing::{Guest, memfd};
    use crate::memory::{Access, DmaError, GuestBuf};

    const RW: Rights = Rights::READ_WRITE;

    fn errno(result: Result<(), MapError>) -> i32 {
        result.map_or_else(|error| error.errno(), |()| 0)
    }

    fn pinned(map: &DmaMap, iova: u64, len: usize) -> GuestBuf {
        let mut buf = GuestBuf::default();
        map.append(iova, len, Access::Write, &mut buf).unwrap();
        buf
    }

    /// The kernel writes into the iovecs, as an engine's read from an image would; false when it finds no
    /// memory there.
    fn kernel_read(buf: &GuestBuf, byte: u8) -> bool {
        let image = memfd(0x1_0000);
        rustix::io::pwrite(&image, &vec![byte; buf.len()], 0).unwrap();
        let iovecs = buf.iovecs();
        // SAFETY: the iovecs are valid while `buf` lives.
        let n = unsafe { libc::preadv(image.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int, 0) };
        assert!(n == buf.len() as isize || n < 0);
        n > 0
    }

    #[test]
    fn malformed_maps() {
        let mut guest = Guest::unmapped(0x4000);
        let file = |guest: &Guest| guest.file.try_clone().unwrap();
        for (iova, size, offset) in [
            (0, 0, 0),
            (0x800, 0x1000, 0),
            (0, 0x800, 0),
            (0, 0x1000, 0x10),
            (0, 0x5000, 0),
            (0, 0x1000, 0x4000),
            (0, 0x1000, u64::MAX - 0xfff),
            (0, 0x1000, 1 << 63),
            (u64::MAX - 0xfff, 0x2000, 0),
            (0, u64::MAX - 0xfff, 0x1000),
        ] {
            let fd = file(&guest);
            let result = guest.space.map(iova, size, RW, offset, Some(fd.as_fd()));
            // The largest one meets the cap first.
            let expected = if size > 1 << 46 { libc::ENOSPC } else { libc::EINVAL };
            assert_eq!(errno(result), expected, "{iova:#x} {size:#x} {offset:#x}");
        }
        assert!(guest.space.is_empty());
        // What is not a memory file.
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert_eq!(errno(guest.space.map(0, 0x1000, RW, 0, Some(pipe.as_fd()))), libc::EINVAL);
        // More rights than the descriptor gives.
        let path = format!("/proc/self/fd/{}", guest.file.as_raw_fd());
        let read_only = std::fs::File::open(path).unwrap();
        let fd = || Some(read_only.as_fd());
        assert_eq!(errno(guest.space.map(0, 0x1000, RW, 0, fd())), libc::EACCES);
        guest.space.map(0, 0x1000, Rights::READ_ONLY, 0, fd()).unwrap();
    }

    #[test]
    fn any_overlap_is_refused() {
        let mut guest = Guest::unmapped(0x8000);
        guest.map(0x4000, 0x3000, RW, 0);
        for (iova, size) in [
            (0x4000, 0x3000),
            (0x4000, 0x1000),
            (0x3000, 0x2000),
            (0x3000, 0x5000),
            (0x5000, 0x1000),
            (0x6000, 0x2000),
        ] {
            let fd = guest.file.try_clone().unwrap();
            assert_eq!(errno(guest.space.map(iova, size, RW, 0, Some(fd.as_fd()))), libc::EEXIST);
            assert_eq!(errno(guest.space.map(iova, size, RW, 0, None)), libc::EEXIST);
        }
        // By one byte at either end.
        for (iova, size) in [(0x3000, 0x1001), (0x6fff, 1), (0x6fff, 0x1000)] {
            assert_eq!(errno(guest.space.map(iova, size, RW, 0, None)), libc::EEXIST);
        }
        guest.map(0x3000, 0x1000, RW, 0);
        guest.map(0x7000, 0x1000, RW, 0);
        assert_eq!(guest.space.len(), 3);
    }

    #[test]
    fn caps_on_number_and_size() {
        let limits = DmaLimits { max_maps: 2, max_bytes: 0x5000 };
        let mut space = DmaSpace::new(limits, Arc::new(|| {}));
        space.map(0, 0x1000, RW, 0, None).unwrap();
        assert_eq!(errno(space.map(0x1000, 0x4001, RW, 0, None)), libc::ENOSPC);
        assert_eq!(errno(space.map(0x1000, u64::MAX - 0x1000, RW, 0, None)), libc::ENOSPC);
        space.map(0x1000, 0x4000, RW, 0, None).unwrap();
        let _ = space.unmap(0, 0x1000).unwrap();
        space.map(0x8000, 0x800, RW, 0, None).unwrap();
        assert_eq!(errno(space.map(0x9000, 1, RW, 0, None)), libc::ENOSPC);
        let _ = space.unmap_all();
        space.map(0, 0x5000, RW, 0, None).unwrap();
    }

    #[test]
    fn a_map_outlives_its_descriptor() {
        let guest = Guest::new(0, 0x1000);
        let map = guest.dma();
        map.write(0, &[1]).unwrap();
        drop(guest.file);
        map.write(0, &[2]).unwrap();
    }

    #[test]
    fn unmap_names_exactly_one_map() {
        let mut guest = Guest::unmapped(0x8000);
        guest.map(0x1000, 0x2000, RW, 0);
        guest.map(0x3000, 0x1000, RW, 0x2000);
        let mut refused = |iova, size| guest.space.unmap(iova, size).unwrap_err().errno();
        assert_eq!(refused(0x1000, 0), libc::EINVAL);
        assert_eq!(refused(0x1000, 0x1000), libc::EINVAL);
        assert_eq!(refused(0x1000, 0x3000), libc::EINVAL);
        assert_eq!(refused(0x2000, 0x1000), libc::EINVAL);
        assert_eq!(refused(0, 0x2000), libc::EINVAL);
        assert_eq!(refused(0x4000, 0x1000), libc::ENOENT);
        assert_eq!(refused(0x4000, u64::MAX), libc::EINVAL);
        assert_eq!(guest.space.len(), 2);
        assert!(guest.space.unmap(0x1000, 0x2000).unwrap().released());
        assert_eq!(guest.space.unmap(0x1000, 0x2000).unwrap_err().errno(), libc::ENOENT);
        let mut byte = [0];
        assert_eq!(guest.dma().read(0x1000, &mut byte), Err(DmaError::Unmapped(0x1000)));
        guest.dma().read(0x3000, &mut byte).unwrap();
        // The same range may come back at once: firmware does that.
        guest.map(0x1000, 0x2000, RW, 0);
    }

    #[test]
    fn released_when_the_last_pin_falls() {
        let mut guest = Guest::new(0, 0x4000);
        let map = guest.dma();
        let (a, b) = (pinned(&map, 0, 16), pinned(&map, 0x1000, 16));
        drop(pinned(&map, 0, 1));
        assert_eq!(guest.releases(), 0);
        let gone = guest.space.unmap(0, 0x4000).unwrap();
        assert!(!gone.released());
        drop(a);
        assert!(!gone.released());
        assert_eq!(guest.releases(), 0);
        // A transfer in flight goes on.
        b.copy_in(0, &[4]).unwrap();
        assert_eq!(guest.bytes(0x1000, 1), [4]);
        std::thread::spawn(move || drop(b)).join().unwrap();
        assert!(gone.released());
        assert_eq!(guest.releases(), 1);
    }

    #[test]
    fn a_stale_snapshot_pins_nothing() {
        let mut guest = Guest::new(0, 0x1000);
        let stale = guest.dma();
        let gone = guest.space.unmap_all();
        assert!(gone.released());
        let mut buf = GuestBuf::default();
        let appended = stale.append(0, 1, Access::Read, &mut buf);
        assert_eq!(appended, Err(DmaError::Unmapped(0)));
        assert_eq!(stale.write(0, &[1]), Err(DmaError::Unmapped(0)));
        // Nor does one that had looked before the unmap and pins after it.
        let pin = Pin::new(&gone.regions[0]);
        assert_eq!(pin.err(), Some(DmaError::Unmapped(0)));
        assert!(gone.released());
    }

    #[test]
    fn pins_and_unmaps_race() {
        for _ in 0..200 {
            let mut guest = Guest::new(0, 0x1000);
            let map = guest.dma();
            let worker = std::thread::spawn(move || {
                let mut buf = GuestBuf::default();
                // Holds its pin, if it got one, until after the look below.
                map.append(0, 1, Access::Read, &mut buf).is_ok().then_some(buf)
            });
            let gone = guest.space.unmap(0, 0x1000).unwrap();
            let released = gone.released();
            let buf = worker.join().unwrap();
            assert!(!(released && buf.is_some()));
            drop(buf);
            assert!(gone.released());
        }
    }

    #[test]
    fn the_memory_is_unmapped_with_the_last_holder() {
        let mut guest = Guest::new(0, 0x1000);
        let region = Arc::downgrade(guest.space.regions.get(&0).unwrap());
        let snapshot = guest.dma();
        let buf = pinned(&snapshot, 0, 1);
        drop(guest.space.unmap_all());
        drop(snapshot);
        assert!(region.upgrade().is_some());
        drop(buf);
        assert!(region.upgrade().is_none());
    }

    #[test]
    fn after_revoke_the_kernel_cannot_reach_the_client() {
        let mut guest = Guest::new(0, 0x4000);
        let map = guest.dma();
        let buf = pinned(&map, 0x1000, 0x2000);
        assert!(kernel_read(&buf, 1));
        assert_eq!(guest.bytes(0x1000, 0x2000), [1; 0x2000]);
        let gone = guest.space.unmap(0, 0x4000).unwrap();
        assert_eq!(gone.revoke().pinned, 1);
        assert!(!kernel_read(&buf, 2), "nor does a write find zeroes there");
        assert_eq!(buf.copy_in(0, &[3; 64]), Err(DmaError::Gone(0)));
        assert_eq!(buf.check(), Err(DmaError::Gone(0)));
        assert_eq!(guest.bytes(0x1000, 0x2000), [1; 0x2000]);
        assert!(!gone.released());
        drop(buf);
        assert!(gone.released());
        assert_eq!(gone.revoke().pinned, 0);
    }

    /// For memory and huge pages alike: `at` is where transfers go, `file` is mapped from 0.
    fn reset_takes_memory_from_transfers(guest: &mut Guest, at: u64) {
        let stale = guest.dma();
        let buf = pinned(&stale, at, 0x1000);
        assert_eq!(guest.space.take_back(false).pinned, 1);
        assert!(!kernel_read(&buf, 9));
        assert_eq!(buf.copy_in(0, &[9]), Err(DmaError::Gone(0)));
        assert_eq!(stale.write(at, &[9]), Err(DmaError::Unmapped(at)));
        assert_eq!(guest.bytes(at, 0x1000), [0; 0x1000]);

        let map = guest.dma();
        map.write(at, &[5; 16]).unwrap();
        assert_eq!(guest.bytes(at, 16), [5; 16]);
        guest.set(at, &[6]);
        let again = pinned(&map, at, 16);
        let mut byte = [0];
        again.copy_out(0, &mut byte).unwrap();
        assert_eq!(byte, [6]);
        let releases = guest.releases();
        drop(buf);
        assert_eq!(guest.releases(), releases + 1);
        again.copy_in(0, &[7]).unwrap();
        assert_eq!(guest.bytes(at, 1), [7]);
    }

    #[test]
    fn memory_is_taken_back_and_the_table_kept() {
        let mut guest = Guest::unmapped(0x8000);
        guest.map(0, 0x4000, RW, 0);
        // Not pinned, so not touched; the kernel may have joined both mappings.
        guest.map(0x4000, 0x4000, RW, 0x4000);
        let idle = Arc::clone(guest.space.regions.get(&0x4000).unwrap());
        assert_eq!(guest.space.take_back(false).pinned, 0);
        reset_takes_memory_from_transfers(&mut guest, 0x1000);
        assert!(Arc::ptr_eq(&idle, guest.space.regions.get(&0x4000).unwrap()));
        guest.dma().write(0x3fff, &[1, 2]).unwrap();
        assert_eq!(guest.bytes(0x3fff, 2), [1, 2]);
        assert!(guest.space.unmap(0, 0x4000).unwrap().released());
    }

    #[test]
    fn an_epoch_that_is_over_has_no_memory() {
        let mut guest = Guest::new(0, 0x4000);
        let (old, looked) = (guest.space.epoch(), guest.dma());
        let new = guest.space.begin_epoch();
        assert!(old.load().has_ended() && !new.load().has_ended());
        assert_eq!(old.load().write(0, &[1]), Err(DmaError::Unmapped(0)));
        new.load().write(0, &[2]).unwrap();
        // Who looked before is fenced, or this.
        looked.write(1, &[3]).unwrap();
        let words = looked.words(0, 4).unwrap();
        assert_eq!(guest.space.take_back(true), Revoked { pinned: 0, held: false });
        assert_eq!(looked.write(0, &[4]), Err(DmaError::Unmapped(0)));
        assert_eq!(words.store(0, 4), Err(DmaError::Unmapped(0)));
        assert_eq!(words.last(0), Err(DmaError::Gone(0)));
        assert_eq!(guest.bytes(0, 2), [2, 3]);
        // What is mapped later is the new one's alone.
        guest.map(0x4000, 0x1000, RW, 0x1000);
        new.load().write(0x4000, &[5]).unwrap();
        assert_eq!(old.load().write(0x4000, &[6]), Err(DmaError::Unmapped(0x4000)));
        assert_eq!(guest.bytes(0x1000, 1), [5]);
    }

    /// A copy that began before goes on in pages of ours.
    #[test]
    fn a_small_access_that_is_late_reaches_nothing() {
        let mut guest = Guest::new(0, 0x1000);
        let map = guest.dma();
        let mut data = crate::memory::Transient::default();
        map.append(0, 0x10, Access::Write, &mut data).unwrap();
        guest.space.take_back(true);
        data.pieces().for_each(|piece| piece.copy_from(&[1_u8; 0x10]));
        assert_eq!(data.check(), Err(DmaError::Gone(0)));
        assert_eq!(guest.bytes(0, 1), [0]);
    }

    #[test]
    fn what_is_dead_stays_dead() {
        let mut guest = Guest::new(0, 0x2000);
        let buf = pinned(&guest.dma(), 0, 1);
        ftruncate(&guest.file, 0).unwrap();
        assert_eq!(buf.zero(0, 1), Err(DmaError::Gone(0)));
        assert_eq!(guest.space.take_back(false).pinned, 0);
        assert_eq!(guest.dma().write(0, &[1]), Err(DmaError::Gone(0)));
    }

    #[test]
    fn huge_pages() {
        const HUGE: u64 = 2 << 20;
        let mut guest = Guest::unmapped(0);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let enough = memfd_create("huge", flags).ok().filter(|file| {
            rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, 2 * HUGE).is_ok()
        });
        let Some(file) = enough else {
            eprintln!("skipped: this machine has no two free huge pages (vm.nr_hugepages)");
            return;
        };
        guest.file = file;
        // As a PC's RAM comes: around a hole, not aligned to huge pages.
        guest.map(0, 0xa_0000, RW, 0);
        guest.map(0xc_0000, 2 * HUGE - 0xc_0000, RW, 0xc_0000);
        assert_eq!(guest.space.kept.len(), 1);
        let map = guest.dma();
        map.write(0xc_0000, &[8]).unwrap();
        map.write(2 * HUGE - 1, &[8]).unwrap();
        // hugetlbfs has no write(2), and the client's bytes are seen through a map of our own.
        let mut seen = Guest::unmapped(0);
        seen.file = guest.file.try_clone().unwrap();
        seen.map(0, 2 * HUGE, RW, 0);
        let mut byte = [0];
        for at in [0xc_0000, 2 * HUGE - 1] {
            seen.dma().read(at, &mut byte).unwrap();
            assert_eq!(byte, [8]);
        }
        let buf = pinned(&map, 0x1000, 0x1000);
        assert_eq!(guest.space.take_back(false).pinned, 1);
        assert!(!kernel_read(&buf, 9));
        seen.dma().read(0x1000, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        guest.dma().write(0x1000, &[5]).unwrap();
        seen.dma().read(0x1000, &mut byte).unwrap();
        assert_eq!(byte, [5]);
        drop(buf);
        // The file shrinks: contained as with small pages.
        ftruncate(&guest.file, 0).unwrap();
        assert_eq!(guest.dma().read(0x1000, &mut byte), Err(DmaError::Gone(0x1000)));
        drop(map);
        let _ = guest.space.unmap_all();
        assert!(guest.space.kept.values().all(|kept| kept.strong_count() == 0));
    }
}
