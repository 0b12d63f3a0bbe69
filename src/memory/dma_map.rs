//! An immutable table of regions: translation and small accesses.
use super::{Access, DmaError, GuestBuf};
/// An immutable snapshot of the DMA table.
#[derive(Debug, Default)]
pub struct DmaMap {}
impl DmaMap {
    /// Copies guest memory at `iova` into `dst`.
    pub fn read(&self, _iova: u64, _dst: &mut [u8]) -> Result<(), DmaError> {
        unreachable!("skeleton")
    }
    /// Copies `src` to guest memory at `iova`.
    pub fn write(&self, _iova: u64, _src: &[u8]) -> Result<(), DmaError> {
        unreachable!("skeleton")
    }
    /// Stores one aligned little-endian dword with release order (the last dword of a CQE).
    pub fn store_u32(&self, _iova: u64, _value: u32) -> Result<(), DmaError> {
        unreachable!("skeleton")
    }
    /// Appends the host memory behind `iova..iova + len` to `buf` and pins it.
    pub fn append(
        &self,
        _iova: u64,
        _len: usize,
        _access: Access,
        _buf: &mut GuestBuf,
    ) -> Result<(), DmaError> {
        unreachable!("skeleton")
    }
}
