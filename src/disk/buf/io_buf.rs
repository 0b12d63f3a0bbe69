//! The memory of one transfer, guest's or ours, seen as pieces.
#![expect(unsafe_code, reason = "guest memory is raw pointers until it is a VolatileSlice")]

use vm_memory::volatile_memory::VolatileSlice;

use super::buffer::Buffer;
use super::split::Part;
use crate::disk::DiskError;
use crate::memory::GuestBuf;

/// Memory of a transfer: the guest's own, or ours. The operation owns it until it completes.
#[derive(Debug)]
pub enum IoBuf {
    /// Guest memory, pinned.
    Guest(GuestBuf),
    /// A bounce buffer; the transfer covers all of it.
    Pool(Buffer),
    /// Part of a buffer that several reads fill at once ([`super::SplitBuffer`]); the transfer covers all of the part.
    Part(Part),
}

impl IoBuf {
    /// Bytes of the transfer.
    pub fn len(&self) -> usize {
        match self {
            IoBuf::Guest(buf) => buf.len(),
            IoBuf::Pool(buf) => buf.len(),
            IoBuf::Part(part) => part.len(),
        }
    }

    /// No byte at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, when the memory is ours.
    pub fn ours(&self) -> Option<&[u8]> {
        match self {
            IoBuf::Guest(_) => None,
            IoBuf::Pool(buf) => Some(buf),
            IoBuf::Part(part) => Some(part),
        }
    }

    /// The bytes, to be changed, when the memory is ours.
    pub fn ours_mut(&mut self) -> Option<&mut [u8]> {
        match self {
            IoBuf::Guest(_) => None,
            IoBuf::Pool(buf) => Some(buf),
            IoBuf::Part(part) => Some(part),
        }
    }

    /// Copies what lies from byte `at` on to `bytes`.
    pub(in crate::disk) fn load(&self, at: usize, bytes: &mut [u8]) -> Result<(), DiskError> {
        if let IoBuf::Guest(buf) = self {
            return buf.copy_out(at, bytes).map_err(|_| DiskError::GuestMemory);
        }
        let from = self.ours().and_then(|ours| ours.get(at..at + bytes.len())).ok_or(DiskError::Truncated)?;
        bytes.copy_from_slice(from);
        Ok(())
    }

    /// Copies `bytes` to where byte `at` lies.
    pub(in crate::disk) fn store(&mut self, at: usize, bytes: &[u8]) -> Result<(), DiskError> {
        if let IoBuf::Guest(buf) = self {
            return buf.copy_in(at, bytes).map_err(|_| DiskError::GuestMemory);
        }
        let to = self.ours_mut().and_then(|ours| ours.get_mut(at..at + bytes.len()));
        to.ok_or(DiskError::Truncated)?.copy_from_slice(bytes);
        Ok(())
    }

    /// Fails when the pages of guest memory were lost on the way: then the transfer went to or came from pages
    /// of ours that stand in for them. To be asked when the transfer is over.
    pub(in crate::disk) fn check(&self) -> Result<(), DiskError> {
        match self {
            IoBuf::Guest(buf) => buf.check().map_err(|_| DiskError::GuestMemory),
            IoBuf::Pool(_) | IoBuf::Part(_) => Ok(()),
        }
    }

    /// Calls `each` with every piece and the offset of its first byte in the transfer, in order.
    /// Volatile, because the guest may change its memory at any moment.
    pub(in crate::disk) fn for_each_piece(&mut self, mut each: impl FnMut(usize, VolatileSlice<'_>)) {
        match self {
            IoBuf::Guest(buf) => {
                let mut at = 0;
                for iov in buf.iovecs() {
                    // SAFETY: the pins of the GuestBuf keep the range mapped as long as `buf` lives,
                    // which is longer than the call; nobody makes references to guest memory.
                    each(at, unsafe { VolatileSlice::new(iov.iov_base.cast(), iov.iov_len) });
                    at += iov.iov_len;
                }
            }
            IoBuf::Pool(buf) => each(0, VolatileSlice::from(&mut buf[..])),
            IoBuf::Part(part) => each(0, VolatileSlice::from(&mut part[..])),
        }
    }
}
