//! PRP1 and PRP2 of a command to a host buffer (NVMe base specification, Physical Region Page Entry and List).

use super::{Access, DmaError, DmaMap, GuestBuf};

/// Why a PRP pair does not describe a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrpError {
    /// PRP Offset Invalid (generic status 13h): PRP1 not dword aligned, a page entry or chained list with an
    /// offset, a list not qword aligned.
    #[error("a PRP has an invalid offset")]
    Offset,
    /// The list or the data cannot be reached.
    #[error(transparent)]
    Dma(#[from] DmaError),
}

/// Entries fetched at a time: one 4 KiB page on the stack, whatever the guest's page size.
const CHUNK: usize = 512;

/// Bytes of a list entry.
const ENTRY: usize = 8;

/// The host memory of `len` bytes described by `prp1` and `prp2`. `page_size` is 2^(12 + CC.MPS) bytes, a power of
/// two; `access` says what the device does with the data. Each list entry is read once, and no more of them than
/// `len` needs. The caller has checked `len` against MDTS.
pub fn walk(
    map: &DmaMap,
    prp1: u64,
    prp2: u64,
    len: usize,
    page_size: usize,
    access: Access,
) -> Result<GuestBuf, PrpError> {
    debug_assert!(page_size.is_power_of_two() && page_size >= 4096);
    let mask = page_size as u64 - 1;
    let mut buf = GuestBuf::default();
    if prp1 & 3 != 0 {
        return Err(PrpError::Offset);
    }
    let first = len.min(page_size - (prp1 & mask) as usize);
    map.append(prp1, first, access, &mut buf)?;
    let mut left = len - first;
    if left == 0 {
        return Ok(buf);
    }
    if left <= page_size {
        append_page(map, prp2, left, mask, access, &mut buf)?;
        return Ok(buf);
    }
    if prp2 & 7 != 0 {
        return Err(PrpError::Offset);
    }
    buf.reserve(left.div_ceil(page_size));
    let mut list = prp2;
    loop {
        let slots = (page_size - (list & mask) as usize) / ENTRY;
        let needed = left.div_ceil(page_size);
        let chained = needed > slots;
        // The last slot of the page is data when it is the last one needed, else it leads to the next page.
        let mut data = if chained { slots - 1 } else { needed };
        let mut fetch = if chained { slots } else { needed };
        let mut next = 0;
        let mut bytes = [0; CHUNK * ENTRY];
        while fetch > 0 {
            let now = fetch.min(CHUNK);
            let chunk = &mut bytes[..now * ENTRY];
            map.read(list, chunk)?;
            let (entries, _) = chunk.as_chunks::<ENTRY>();
            for entry in entries {
                let entry = u64::from_le_bytes(*entry);
                if data == 0 {
                    next = entry;
                    break;
                }
                let page = left.min(page_size);
                append_page(map, entry, page, mask, access, &mut buf)?;
                left -= page;
                data -= 1;
            }
            fetch -= now;
            // No overflow: the read of these very bytes succeeded; at the end of the address space it is not
            // used again.
            list = list.wrapping_add((now * ENTRY) as u64);
        }
        if !chained {
            return Ok(buf);
        }
        if next & mask != 0 {
            return Err(PrpError::Offset);
        }
        list = next;
    }
}

fn append_page(
    map: &DmaMap,
    entry: u64,
    len: usize,
    mask: u64,
    access: Access,
    buf: &mut GuestBuf,
) -> Result<(), PrpError> {
    if entry & mask != 0 {
        return Err(PrpError::Offset);
    }
    Ok(map.append(entry, len, access, buf)?)
}
