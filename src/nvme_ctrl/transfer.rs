//! A command's data pointer to host memory.

use crate::block::Work;
use crate::memory::{Access, DmaMap, GuestBuf, prp, sgl};
use crate::spec::command::Psdt;
use crate::spec::{Sqe, Status};

/// Resolves `len` bytes of the data pointer. Admin commands pass `allow_sgl` false: over PCIe they use PRPs
/// only. What it takes to follow it is charged to `work`.
///
/// # Errors
/// The status the command ends with.
pub fn resolve(
    memory: &DmaMap,
    sqe: &Sqe,
    len: usize,
    page_size: u64,
    access: Access,
    allow_sgl: bool,
    work: &Work,
) -> Result<GuestBuf, Status> {
    match sqe.psdt() {
        Psdt::Prp => Ok(prp::walk(memory, sqe.prp1.get(), sqe.prp2.get(), len, page_size as usize, access)?),
        Psdt::Sgl if allow_sgl => {
            let mut walked = 0;
            let buf = sgl::walk_counted(memory, sqe.sgl(), len, access, &mut walked);
            work.charge(walked as u64 * Work::DESCRIPTOR);
            Ok(buf?)
        }
        Psdt::Sgl | Psdt::Reserved => Err(Status::INVALID_FIELD.dnr()),
    }
}

/// Copies `len` bytes of the data pointer out of guest memory, once.
///
/// # Errors
/// As [`resolve`].
pub fn fetch(
    memory: &DmaMap,
    sqe: &Sqe,
    len: usize,
    page_size: u64,
    allow_sgl: bool,
    work: &Work,
) -> Result<Vec<u8>, Status> {
    let buf = resolve(memory, sqe, len, page_size, Access::Read, allow_sgl, work)?;
    let mut bytes = vec![0; len];
    buf.copy_out(0, &mut bytes)?;
    Ok(bytes)
}
