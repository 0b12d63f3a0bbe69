//! Data buffers of a command and the pointers to them: PRP with lists, SGL with segments.

use super::le::{put32, put64};
use super::ram::{PAGE, Ram};
use super::rng::Rng;

/// Guest memory of one transfer, in order, and the 16 bytes of DPTR that describe it.
#[derive(Clone, Debug)]
pub struct Data {
    /// (guest address, length); address 0 is a bit bucket.
    pub pieces: Vec<(u64, usize)>,
    pub dptr: [u8; 16],
    pub psdt: u8,
}

/// How to lay out PRPs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prp {
    /// Offset of the first byte in its page.
    pub offset: u64,
    /// First slot of the PRP list in its page (0 to 511): high values force chaining.
    pub slot: usize,
    /// Pages in random order.
    pub scatter: bool,
}

/// One piece of an SGL.
#[derive(Clone, Copy, Debug)]
pub enum Sgl {
    /// `len` bytes at an address that is `offset` modulo the page size.
    Block { len: usize, offset: u64 },
    /// `len` bytes of a Read that are thrown away.
    Bucket { len: usize },
}

pub const SGL_DATA: u8 = 0x00;
pub const SGL_BUCKET: u8 = 0x10;
pub const SGL_SEGMENT: u8 = 0x20;
pub const SGL_LAST: u8 = 0x30;

pub fn descriptor(addr: u64, len: u32, id: u8) -> [u8; 16] {
    let mut d = [0; 16];
    put64(&mut d, 0, addr);
    put32(&mut d, 8, len);
    d[15] = id;
    d
}

fn prps(prp1: u64, prp2: u64) -> [u8; 16] {
    let mut d = [0; 16];
    put64(&mut d, 0, prp1);
    put64(&mut d, 8, prp2);
    d
}

impl Data {
    /// No data at all.
    pub fn none() -> Data {
        Data { pieces: Vec::new(), dptr: [0; 16], psdt: 0 }
    }

    pub fn len(&self) -> usize {
        self.pieces.iter().map(|p| p.1).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Contiguous, page aligned.
    pub fn prp(ram: &mut Ram, len: usize) -> Data {
        Data::prp_shape(ram, len, Prp::default(), &mut Rng::fixed())
    }

    pub fn prp_shape(ram: &mut Ram, len: usize, shape: Prp, rng: &mut Rng) -> Data {
        if len == 0 {
            return Data::none();
        }
        let count = (shape.offset + len as u64).div_ceil(PAGE);
        let base = ram.alloc(count * PAGE, PAGE);
        // Lists must not begin where the data ends: the byte after it is for canaries.
        ram.alloc(64, 8);
        let mut pages: Vec<u64> = (0..count).map(|i| base + i * PAGE).collect();
        if shape.scatter {
            rng.shuffle(&mut pages);
        }
        let first = ((PAGE - shape.offset) as usize).min(len);
        let mut pieces = vec![(pages[0] + shape.offset, first)];
        let mut left = len - first;
        for page in &pages[1..] {
            let n = left.min(PAGE as usize);
            pieces.push((*page, n));
            left -= n;
        }
        let prp2 = match pages.len() {
            1 => 0,
            2 => pages[1],
            _ => prp_list(ram, &pages[1..], shape.slot),
        };
        Data { dptr: prps(pieces[0].0, prp2), pieces, psdt: 0 }
    }

    /// `split[i]` data descriptors go into segment i; what is left goes into the last one. A single block is
    /// described in the command itself when `split` is empty.
    pub fn sgl(ram: &mut Ram, of: &[Sgl], split: &[usize]) -> Data {
        let mut pieces = Vec::new();
        let mut descs = Vec::new();
        for s in of {
            match *s {
                Sgl::Block { len, offset } => {
                    let room = (offset + len as u64).next_multiple_of(PAGE).max(PAGE);
                    let at = ram.alloc(room, PAGE) + offset;
                    pieces.push((at, len));
                    descs.push(descriptor(at, len as u32, SGL_DATA));
                }
                Sgl::Bucket { len } => {
                    pieces.push((0, len));
                    descs.push(descriptor(0, len as u32, SGL_BUCKET));
                }
            }
        }
        ram.alloc(64, 8);
        let dptr = if split.is_empty() && descs.len() == 1 { descs[0] } else { segments(ram, &descs, split) };
        Data { pieces, dptr, psdt: 1 }
    }

    /// Any legal shape for `len` bytes; `align` is that of SGL addresses, `bucket` allows throwing bytes
    /// away.
    pub fn random(ram: &mut Ram, len: usize, sgl: bool, align: u64, rng: &mut Rng) -> Data {
        if !sgl || rng.chance(2) {
            let shape = Prp {
                offset: if rng.chance(2) { rng.below(PAGE / 4) * 4 } else { 0 },
                slot: if rng.chance(2) { 512 - rng.within(1, 6) as usize } else { 0 },
                scatter: rng.chance(2),
            };
            return Data::prp_shape(ram, len, shape, rng);
        }
        let mut of = Vec::new();
        let mut left = len;
        while left > 0 && of.len() < 20 {
            let n = match rng.below(4) {
                0 => left,
                1 => 0,
                _ => (rng.below(left as u64 + 1) / align * align) as usize,
            };
            let offset = rng.below(PAGE / align) * align;
            of.push(Sgl::Block { len: n, offset });
            left -= n;
        }
        if left > 0 || of.is_empty() {
            of.push(Sgl::Block { len: left, offset: 0 });
        }
        let mut split = Vec::new();
        let mut rest = of.len();
        while rest > 1 && rng.chance(2) {
            let n = rng.within(0, rest as u64 - 1) as usize;
            split.push(n);
            rest -= n;
        }
        Data::sgl(ram, &of, &split)
    }

    pub fn put(&self, ram: &Ram, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.len());
        let mut at = 0;
        for &(iova, len) in &self.pieces {
            if iova != 0 {
                ram.write(iova, &bytes[at..at + len]);
            }
            at += len;
        }
    }

    /// Bit buckets read as zeroes.
    pub fn get(&self, ram: &Ram) -> Vec<u8> {
        let mut v = Vec::with_capacity(self.len());
        for &(iova, len) in &self.pieces {
            if iova == 0 {
                v.resize(v.len() + len, 0);
            } else {
                v.extend(ram.read(iova, len));
            }
        }
        v
    }
}

/// Writes a PRP list that starts in `slot` of its first page and chains through its last slots; returns PRP2.
pub fn prp_list(ram: &mut Ram, entries: &[u64], slot: usize) -> u64 {
    let page = ram.alloc(PAGE, PAGE);
    let room = 512 - slot;
    let mut bytes = Vec::new();
    if entries.len() <= room {
        for e in entries {
            bytes.extend(e.to_le_bytes());
        }
    } else {
        let (here, there) = entries.split_at(room - 1);
        let link = prp_list(ram, there, 0);
        for e in here.iter().chain([&link]) {
            bytes.extend(e.to_le_bytes());
        }
    }
    let at = page + 8 * slot as u64;
    ram.write(at, &bytes);
    at
}

/// Writes SGL segments and returns the descriptor of the first.
pub fn segments(ram: &mut Ram, descs: &[[u8; 16]], split: &[usize]) -> [u8; 16] {
    let here = match split.first() {
        Some(&n) if n < descs.len() => n,
        _ => descs.len(),
    };
    let mut segment: Vec<[u8; 16]> = descs[..here].to_vec();
    let last = here == descs.len();
    if !last {
        segment.push(segments(ram, &descs[here..], &split[1..]));
    }
    let bytes = segment.concat();
    let at = ram.alloc(bytes.len() as u64, 16);
    ram.write(at, &bytes);
    descriptor(at, bytes.len() as u32, if last { SGL_LAST } else { SGL_SEGMENT })
}
