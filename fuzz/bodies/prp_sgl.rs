//! PRP and SGL walks over hostile guest memory, against walkers of this file's own that read the memory as a file.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, LazyLock};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use vfio_user_nvme::memory::{Access, DmaLimits, DmaMap, DmaSpace, GuestBuf, MAX_IOVECS, Rights, prp, sgl};

/// (guest address, bytes, offset in the file, readable, writable)
const REGIONS: [(u64, u64, u64, bool, bool); 4] = [
    (0x10000, 0x8000, 0x4000, true, true),
    (0x18000, 0x4000, 0, true, true), // a neighbour, elsewhere in the file
    (0x1c000, 0x1000, 0xc000, true, false),
    (0x20000, 0x1000, 0xd000, false, true),
];
const FILE: usize = 0xe000;
/// Addresses are folded into this window, or nearly all of them would hit nothing.
const WINDOW: u64 = 0x3_ffff;

struct Guest {
    file: OwnedFd,
    map: Arc<DmaMap>,
    _space: DmaSpace,
}

impl Guest {
    fn new() -> Guest {
        let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, FILE as u64).expect("memfd");
        let mut space = DmaSpace::new(DmaLimits::default(), Arc::new(|| ()));
        for (iova, len, offset, read, write) in REGIONS {
            space.map(iova, len, Rights { read, write }, offset, Some(file.as_fd())).expect("a good map");
        }
        // Memory that exists and cannot be reached.
        space.map(0x24000, 0x1000, Rights::READ_WRITE, 0, None).expect("a good map");
        Guest { file, map: space.epoch().load_full(), _space: space }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut all = vec![0; FILE];
        assert_eq!(pread(&self.file, &mut all, 0), Ok(FILE));
        all
    }
}

thread_local! {
    static GUEST: Guest = Guest::new();
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut v = [0; 8];
    for (to, from) in v.iter_mut().zip(b.iter().skip(at)) {
        *to = *from;
    }
    u64::from_le_bytes(v)
}

/// Byte 0: bit 0 SGL, bit 1 the device writes, bit 2 addresses as they are. Bytes 1 to 3: length. Bytes 4 to 19: DPTR.
/// The rest is guest memory from file offset 0 on, repeated to fill it.
pub fn run(data: &[u8]) {
    if data.len() < 24 {
        return;
    }
    let (head, content) = data.split_at(20);
    let how = head[0];
    let len = 1 + u64_at(&head[1..4], 0) as usize % 0xc000;
    let mut memory = content.repeat(FILE.div_ceil(content.len()));
    memory.truncate(FILE);
    let (mut first, mut second) = (u64_at(head, 4), u64_at(head, 12));
    let is_sgl = how & 1 != 0;
    if how & 4 == 0 {
        first &= WINDOW;
        for (i, word) in memory.chunks_exact_mut(8).enumerate() {
            if !is_sgl || i % 2 == 0 {
                word[3..].fill(0);
                word[2] &= 3;
            }
        }
        if !is_sgl {
            second &= WINDOW;
        }
    }
    let access = if how & 2 != 0 { Access::Write } else { Access::Read };
    GUEST.with(|guest| {
        assert_eq!(pwrite(&guest.file, &memory, 0), Ok(FILE));
        let (got, want) = if is_sgl {
            let mut dptr = [0; 16];
            dptr[..8].copy_from_slice(&first.to_le_bytes());
            dptr[8..].copy_from_slice(&second.to_le_bytes());
            let got = sgl::walk(&guest.map, dptr, len, access).map_err(|e| e.to_string());
            let mut unsure = false;
            let want = sgl_oracle(&memory, dptr, len, access, &mut unsure);
            if unsure && got.is_err() {
                return;
            }
            (got, want)
        } else {
            let got = prp::walk(&guest.map, first, second, len, 4096, access);
            let got = got.map_err(|e| e.to_string());
            (got, prp_oracle(&memory, first, second, len, access))
        };
        match (got, want) {
            (Ok(buf), Some(pieces)) => transfer(guest, &buf, &pieces, memory, len, access),
            (Err(_), None) => {}
            // There is a limit to the number of pieces, which the walkers here do not know.
            (Err(_), Some(pieces)) if pieces.len() >= MAX_IOVECS => {}
            (Ok(buf), None) => panic!("taken, {} bytes, and should not be", buf.len()),
            (Err(e), Some(pieces)) => panic!("refused ({e}), and should give {pieces:?}"),
        }
    });
}

/// What is moved.
static DATA: LazyLock<Vec<u8>> = LazyLock::new(|| (0..FILE).map(|i| (i * 7 + i / 251) as u8).collect());

/// A piece of a transfer: offset in the file (`None`: thrown away) and bytes.
type Piece = (Option<usize>, usize);

/// Moves data through the buffer and looks at every byte of the memory.
fn transfer(
    guest: &Guest,
    buf: &GuestBuf,
    pieces: &[Piece],
    mut memory: Vec<u8>,
    len: usize,
    access: Access,
) {
    assert_eq!(buf.len(), len);
    assert!(buf.iovecs().len() <= MAX_IOVECS);
    let data = &DATA[..len];
    let mut at = 0;
    match access {
        Access::Write => {
            buf.copy_in(0, data).expect("memory that is there");
            for &(place, n) in pieces {
                if let Some(p) = place {
                    memory[p..p + n].copy_from_slice(&data[at..at + n]);
                }
                at += n;
            }
        }
        Access::Read => {
            let mut got = vec![0; len];
            buf.copy_out(0, &mut got).expect("memory that is there");
            for &(place, n) in pieces {
                let p = place.expect("no buckets in a source");
                assert_eq!(got[at..at + n], memory[p..p + n]);
                at += n;
            }
        }
    }
    assert_eq!(at, len);
    assert!(guest.bytes() == memory, "bytes elsewhere have changed");
}

/// Where `len` bytes at `iova` lie in the file; `None` when not all of them may be accessed so.
fn resolve(iova: u64, len: usize, access: Access, out: &mut Vec<Piece>) -> Option<()> {
    let mut at = iova;
    let mut left = len as u64;
    while left > 0 {
        let (base, size, offset, read, write) =
            REGIONS.into_iter().find(|r| (r.0..r.0 + r.1).contains(&at))?;
        let allowed = match access {
            Access::Read => read,
            Access::Write => write,
        };
        if !allowed {
            return None;
        }
        let n = left.min(base + size - at);
        out.push((Some((offset + at - base) as usize), n as usize));
        at += n;
        left -= n;
    }
    Some(())
}

fn fetch(memory: &[u8], iova: u64, len: usize) -> Option<Vec<u8>> {
    let mut pieces = Vec::new();
    resolve(iova, len, Access::Read, &mut pieces)?;
    Some(pieces.iter().flat_map(|&(p, n)| memory[p.unwrap_or(0)..][..n].iter().copied()).collect())
}

/// Page by page, one list entry at a time.
fn prp_oracle(memory: &[u8], prp1: u64, prp2: u64, len: usize, access: Access) -> Option<Vec<Piece>> {
    let mut out = Vec::new();
    if !prp1.is_multiple_of(4) {
        return None;
    }
    let first = len.min(4096 - (prp1 % 4096) as usize);
    resolve(prp1, first, access, &mut out)?;
    let mut left = len - first;
    if left == 0 {
        return Some(out);
    }
    if left <= 4096 {
        if !prp2.is_multiple_of(4096) {
            return None;
        }
        resolve(prp2, left, access, &mut out)?;
        return Some(out);
    }
    let mut entry_at = prp2;
    if !entry_at.is_multiple_of(8) {
        return None;
    }
    while left > 0 {
        let mut entry = u64_at(&fetch(memory, entry_at, 8)?, 0);
        if entry_at % 4096 == 4088 && left > 4096 {
            // The last slot, and more than one page to go: a link.
            if !entry.is_multiple_of(4096) {
                return None;
            }
            entry_at = entry;
            entry = u64_at(&fetch(memory, entry_at, 8)?, 0);
        }
        if !entry.is_multiple_of(4096) {
            return None;
        }
        let n = left.min(4096);
        resolve(entry, n, access, &mut out)?;
        left -= n;
        entry_at += 8;
    }
    Some(out)
}

/// Every descriptor in turn. More than is needed is not looked at; `unsure` when a walker that looks further ahead may
/// find a fault there.
fn sgl_oracle(
    memory: &[u8],
    dptr: [u8; 16],
    len: usize,
    access: Access,
    unsure: &mut bool,
) -> Option<Vec<Piece>> {
    let mut out = Vec::new();
    let mut left = len;
    let mut link = decode(dptr)?;
    match link.0 {
        0 => {
            data(link, &mut left, access, &mut out)?;
            return (left == 0).then_some(out);
        }
        2 | 3 => {}
        _ => return None,
    }
    let mut descriptors = 0;
    for _ in 0..sgl::MAX_SEGMENTS {
        let (kind, address, bytes) = link;
        if bytes == 0 || bytes % 16 != 0 {
            return None;
        }
        let count = bytes / 16;
        *unsure |= descriptors + count > sgl::MAX_DESCRIPTORS || fetch(memory, address, bytes).is_none();
        let mut next = None;
        for i in 0..count {
            if left == 0 {
                return Some(out);
            }
            descriptors += 1;
            if descriptors > sgl::MAX_DESCRIPTORS {
                return None;
            }
            let at = address.checked_add(16 * i as u64)?;
            let d = decode(fetch(memory, at, 16)?.try_into().ok()?)?;
            match d.0 {
                2 | 3 if i + 1 == count && kind == 2 => next = Some(d),
                2 | 3 => return None,
                _ => data(d, &mut left, access, &mut out)?,
            }
        }
        if left == 0 {
            return Some(out);
        }
        link = next?;
    }
    None
}

/// (type, address, length)
fn decode(raw: [u8; 16]) -> Option<(u8, u64, usize)> {
    let (address, len) = (u64_at(&raw, 0), u64_at(&raw[8..12], 0) as usize);
    let kind = raw[15] >> 4;
    if kind > 3 || raw[15] & 0xf != 0 {
        return None;
    }
    // An address of a bit bucket means nothing.
    if kind != 1 && len > 0 {
        address.checked_add(len as u64 - 1)?;
    }
    Some((kind, address, len))
}

fn data(d: (u8, u64, usize), left: &mut usize, access: Access, out: &mut Vec<Piece>) -> Option<()> {
    let n = d.2.min(*left);
    match d.0 {
        0 => resolve(d.1, n, access, out)?,
        // What is thrown away of a source does not count.
        1 if access == Access::Read => return Some(()),
        _ => out.push((None, n)),
    }
    *left -= n;
    Some(())
}
